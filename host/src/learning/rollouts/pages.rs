//! A column's pages, checked before the Parquet library decodes them.
//!
//! The library believes what a page says of itself: how many values it has, and that they were compressed. Here every
//! page has to be able to hold what it claims, in one of the two encodings that are written, before a value of it is
//! decoded; so nothing is allocated that the file's own size, or the rows of a group, do not bound.

use parquet::basic::{Compression, Encoding, Type};
use parquet::column::page::{Page, PageMetadata, PageReader};
use parquet::column::reader::ColumnReaderImpl;
use parquet::data_type::DataType;
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::RowGroupMetaData;
use parquet::file::reader::RowGroupReader;

use super::file::GROUP_ROWS;

/// The fewest bytes of a value in a plain page: a u32, or a text's length.
const VALUE_BYTES_MIN: usize = 4;

/// A column of a group of rows.
pub(super) struct Column<T> {
    /// The values that there are.
    pub(super) values: Vec<T>,
    /// For each place 1 where there is a value; empty for a column that always has one.
    pub(super) defined: Vec<i16>,
    /// For each place 0 where a row begins; empty for a column without lists.
    pub(super) repeated: Vec<i16>,
}

/// Refuses a group of rows whose columns do not lie within the file, or are not as they are written.
pub(super) fn check_chunks(group: &RowGroupMetaData, file_bytes: u64) -> std::result::Result<(), String> {
    if !(1..=GROUP_ROWS as i64).contains(&group.num_rows()) {
        return Err(format!("a group has 1 to {GROUP_ROWS} rows, this has {}", group.num_rows()));
    }
    for chunk in group.columns() {
        let name = chunk.column_path().string();
        if chunk.compression() != Compression::UNCOMPRESSED {
            return Err(format!("the column {name} is compressed, which none may be"));
        }
        let start = chunk.dictionary_page_offset().unwrap_or_else(|| chunk.data_page_offset());
        let end = start.checked_add(chunk.compressed_size()).and_then(|end| u64::try_from(end).ok());
        if start < 0 || chunk.compressed_size() < 0 || end.is_none_or(|end| end > file_bytes) {
            return Err(format!("the column {name} does not lie within the file"));
        }
    }
    Ok(())
}

/// Reads a whole column of a group.
pub(super) fn read<T: DataType>(group: &dyn RowGroupReader, place: usize) -> Result<Column<T::T>> {
    let about = group.metadata();
    let descriptor = about.schema_descr().column(place);
    let name = descriptor.path().string();
    let texts = descriptor.physical_type() == Type::BYTE_ARRAY;
    let pages = group.get_column_page_reader(place)?;
    let pages = Checked { pages, name: name.clone(), texts, dictionary: false };
    let mut reader = ColumnReaderImpl::<T>::new(descriptor, Box::new(pages));
    let (mut values, mut defined, mut repeated) = (Vec::new(), Vec::new(), Vec::new());
    let rows = about.num_rows() as usize;
    // One more than there should be, so that a longer column is noticed.
    let (found, ..) = reader.read_records(rows + 1, Some(&mut defined), Some(&mut repeated), &mut values)?;
    let places = if defined.is_empty() { found } else { defined.len() };
    let complete = if defined.is_empty() { values.len() } else { defined.iter().filter(|&&is| is > 0).count() };
    if found != rows || complete != values.len() || (!repeated.is_empty() && repeated.len() != places) {
        return Err(ParquetError::General(format!("the column {name} has {found} rows, the group {rows}")));
    }
    Ok(Column { values, defined, repeated })
}

/// Pages that can hold what they claim.
struct Checked {
    pages: Box<dyn PageReader>,
    name: String,
    /// Whether its values are texts, each after its length.
    texts: bool,
    /// Whether the dictionary has come.
    dictionary: bool,
}

impl Checked {
    fn check(&self, page: &Page) -> Result<()> {
        let refused = |reason: String| ParquetError::General(format!("the column {}: {reason}", self.name));
        let (count, held) = (page.num_values() as usize, page.buffer().len() / VALUE_BYTES_MIN);
        // Places in a dictionary, and values that are not there, take no bytes each.
        let most = if matches!(page, Page::DictionaryPage { .. }) { held } else { held.max(GROUP_ROWS) };
        if count > most {
            return Err(refused(format!("a page claims {count} values and can have {most}")));
        }
        let known = match page {
            Page::DictionaryPage { encoding, .. } => *encoding == Encoding::PLAIN && !self.dictionary,
            Page::DataPage { encoding, def_level_encoding, rep_level_encoding, .. } => {
                let dictionary = *encoding == Encoding::RLE_DICTIONARY && self.dictionary;
                (*encoding == Encoding::PLAIN || dictionary)
                    && [def_level_encoding, rep_level_encoding].iter().all(|levels| **levels == Encoding::RLE)
            }
            Page::DataPageV2 { .. } => false,
        };
        if !known {
            let kind = page.page_type();
            return Err(refused(format!("a {kind} of encoding {} is not written so", page.encoding())));
        }
        if self.texts && page.encoding() == Encoding::PLAIN {
            let mut rest = page.buffer().as_ref();
            for _ in 0..count {
                let text = rest.split_first_chunk().map(|(length, rest)| (u32::from_le_bytes(*length) as usize, rest));
                let after = text.and_then(|(length, rest)| rest.get(length..));
                rest = after.ok_or_else(|| refused("a page is shorter than its texts".to_owned()))?;
            }
        }
        Ok(())
    }
}

impl Iterator for Checked {
    type Item = Result<Page>;

    fn next(&mut self) -> Option<Self::Item> {
        self.get_next_page().transpose()
    }
}

impl PageReader for Checked {
    fn get_next_page(&mut self) -> Result<Option<Page>> {
        let page = self.pages.get_next_page()?;
        page.as_ref().map_or(Ok(()), |page| self.check(page))?;
        self.dictionary |= matches!(page, Some(Page::DictionaryPage { .. }));
        Ok(page)
    }

    fn peek_next_page(&mut self) -> Result<Option<PageMetadata>> {
        self.pages.peek_next_page()
    }

    fn skip_next_page(&mut self) -> Result<()> {
        self.pages.skip_next_page()
    }
}
