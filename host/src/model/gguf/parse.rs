//! The header of a GGUF file: magic, metadata and the table of tensors, from bytes nobody vouches for.
//!
//! Every count, length, rank and nesting depth has a named limit with its source, and is compared
//! with the bytes that are left before anything is allocated for it. After parsing, each tensor has a
//! format that this project runs, lies inside the file on its alignment, and overlaps no other.
//!
//! The format is documented by the ggml project. Start at `parse`.

use std::collections::{BTreeMap, HashSet};
use std::io::Read;

use vassal_kernels::Format;

use super::value::{NumberKind, NumberList, TextList, Value};
use super::{GgufError, TensorInfo};

/// Bytes that the whole header may take. Gemma's, with 262,144 tokens and 514,906 merges, takes 16 MB:
/// four times that.
pub const HEADER_BYTES_MAX: u64 = 64 << 20;
/// Metadata keys. Published files have 20 to 60.
pub const METADATA_MAX: u64 = 4096;
/// Bytes of a key: the format's own bound.
pub const KEY_BYTES_MAX: u64 = 65_535;
/// Bytes of one string. The longest in published files are chat templates of 10 to 30 kB.
pub const TEXT_BYTES_MAX: u64 = 1 << 20;
/// Items of a list: twice the merges of the largest published vocabulary.
pub const LIST_ITEMS_MAX: u64 = 1 << 20;
/// Depth of lists in lists. No key of the format nests at all.
pub const NESTING_MAX: usize = 4;
/// Tensors. A Llama of 126 layers (405B) has 1,137.
pub const TENSORS_MAX: u64 = 16_384;
/// Bytes of a tensor's name: the format's own bound.
pub const TENSOR_NAME_BYTES_MAX: u64 = 64;
/// Dimensions of a tensor: the format's own bound.
pub const RANK_MAX: u32 = 4;
/// Alignment of tensors: the largest page of a common machine. The default is 32.
pub const ALIGNMENT_MAX: u64 = 65_536;

const ALIGNMENT_DEFAULT: u64 = 32;
const TEXT_ID: u32 = 8;
const LIST_ID: u32 = 9;

/// What a header says.
pub(super) struct Header {
    pub(super) version: u32,
    pub(super) metadata: BTreeMap<String, Value>,
    pub(super) tensors: Vec<TensorInfo>,
}

/// Reads and checks a header. `length` is the length of the whole file.
pub(super) fn parse(input: impl Read, length: u64) -> Result<Header, GgufError> {
    let mut reader = Reader { input, position: 0, end: length.min(HEADER_BYTES_MAX), length };
    let magic = reader.array::<4>("the magic number")?;
    if &magic != b"GGUF" {
        return Err(GgufError::Magic { found: magic });
    }
    let version = reader.u32("the version")?;
    if !(2..=3).contains(&version) {
        return Err(GgufError::Version { found: version });
    }
    let tensor_count = reader.count("tensors", TENSORS_MAX)?;
    let metadata_count = reader.count("metadata keys", METADATA_MAX)?;

    let mut metadata = BTreeMap::new();
    for _ in 0..metadata_count {
        let key = reader.text("a metadata key", KEY_BYTES_MAX)?;
        let kind = reader.u32("a metadata type")?;
        let value = reader.value(&key, kind)?;
        if metadata.insert(key.clone(), value).is_some() {
            return Err(GgufError::Duplicate { what: "metadata key", name: key });
        }
    }
    let alignment = alignment(&metadata)?;

    let mut tensors = Vec::new();
    for _ in 0..tensor_count {
        tensors.push(reader.tensor()?);
    }
    let data_start = reader.position.checked_next_multiple_of(alignment).unwrap_or(u64::MAX);
    place(&mut tensors, data_start, alignment, length)?;
    Ok(Header { version, metadata, tensors })
}

fn alignment(metadata: &BTreeMap<String, Value>) -> Result<u64, GgufError> {
    let Some(value) = metadata.get("general.alignment") else {
        return Ok(ALIGNMENT_DEFAULT);
    };
    let given = match value {
        Value::Number(number) => number.as_u64().unwrap_or(0),
        _ => 0,
    };
    if given.is_power_of_two() && (8..=ALIGNMENT_MAX).contains(&given) {
        Ok(given)
    } else {
        Err(GgufError::Alignment { given })
    }
}

/// Turns offsets within the data into offsets within the file, and refuses names that come twice,
/// tensors outside the file and tensors that share bytes.
fn place(tensors: &mut [TensorInfo], data_start: u64, alignment: u64, length: u64) -> Result<(), GgufError> {
    let mut names = HashSet::new();
    for tensor in tensors.iter_mut() {
        if !names.insert(tensor.name.clone()) {
            return Err(GgufError::Duplicate { what: "tensor", name: tensor.name.clone() });
        }
        if !tensor.offset.is_multiple_of(alignment) {
            return Err(GgufError::Offset { tensor: tensor.name.clone(), offset: tensor.offset, alignment });
        }
        let start = data_start.checked_add(tensor.offset);
        let end = start.and_then(|start| start.checked_add(tensor.size_bytes));
        match (start, end) {
            (Some(start), Some(end)) if end <= length => tensor.offset = start,
            _ => {
                return Err(GgufError::Outside {
                    tensor: tensor.name.clone(),
                    start: start.unwrap_or(u64::MAX),
                    size_bytes: tensor.size_bytes,
                    file_bytes: length,
                });
            }
        }
    }
    let mut by_offset: Vec<&TensorInfo> = tensors.iter().collect();
    by_offset.sort_by_key(|tensor| tensor.offset);
    for pair in by_offset.windows(2) {
        // Neither sum can overflow: both ends lie within the file.
        if pair[0].offset + pair[0].size_bytes > pair[1].offset {
            return Err(GgufError::Overlap { first: pair[0].name.clone(), second: pair[1].name.clone() });
        }
    }
    Ok(())
}

/// Reads forward and knows how many bytes are left.
struct Reader<R> {
    input: R,
    position: u64,
    /// No byte of the header lies at or past this.
    end: u64,
    length: u64,
}

impl<R: Read> Reader<R> {
    fn left(&self) -> u64 {
        self.end - self.position
    }

    /// Refuses what the rest of the header cannot hold: called before every allocation.
    fn need(&self, what: &'static str, bytes: u64) -> Result<(), GgufError> {
        if bytes <= self.left() {
            return Ok(());
        }
        if bytes <= self.length - self.position {
            return Err(GgufError::Limit {
                what: "bytes of the header",
                given: self.position.saturating_add(bytes),
                max: HEADER_BYTES_MAX,
            });
        }
        Err(GgufError::Truncated { what, needed_bytes: bytes, left_bytes: self.length - self.position })
    }

    fn fill(&mut self, what: &'static str, buffer: &mut [u8]) -> Result<(), GgufError> {
        self.need(what, buffer.len() as u64)?;
        self.input.read_exact(buffer).map_err(|source| GgufError::Read { what, source })?;
        self.position += buffer.len() as u64;
        Ok(())
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], GgufError> {
        let mut bytes = [0; N];
        self.fill(what, &mut bytes)?;
        Ok(bytes)
    }

    fn u32(&mut self, what: &'static str) -> Result<u32, GgufError> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    fn u64(&mut self, what: &'static str) -> Result<u64, GgufError> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    fn count(&mut self, what: &'static str, max: u64) -> Result<u64, GgufError> {
        let given = self.u64(what)?;
        if given <= max { Ok(given) } else { Err(GgufError::Limit { what, given, max }) }
    }

    fn bytes(&mut self, what: &'static str, count: u64) -> Result<Vec<u8>, GgufError> {
        self.need(what, count)?;
        let mut bytes = vec![0; count as usize];
        self.fill(what, &mut bytes)?;
        Ok(bytes)
    }

    fn text(&mut self, what: &'static str, bytes_max: u64) -> Result<String, GgufError> {
        let count = self.count(what, bytes_max)?;
        let bytes = self.bytes(what, count)?;
        String::from_utf8(bytes).map_err(|_| GgufError::Text { what })
    }

    fn value(&mut self, key: &str, kind: u32) -> Result<Value, GgufError> {
        if let Some(kind) = NumberKind::from_id(kind) {
            let bytes = self.bytes("a number", kind.size_bytes() as u64)?;
            return Ok(Value::Number(kind.decode(&bytes)));
        }
        match kind {
            TEXT_ID => Ok(Value::Text(self.text("a string", TEXT_BYTES_MAX)?)),
            LIST_ID => self.list(key, 1),
            _ => Err(GgufError::ValueType { key: key.to_owned(), id: kind }),
        }
    }

    fn list(&mut self, key: &str, depth: usize) -> Result<Value, GgufError> {
        let kind = self.u32("a list's type")?;
        let items = self.count("items of a list", LIST_ITEMS_MAX)?;
        if let Some(kind) = NumberKind::from_id(kind) {
            let bytes = self.bytes("a list of numbers", items * kind.size_bytes() as u64)?;
            return Ok(Value::Numbers(NumberList::new(kind, bytes)));
        }
        match kind {
            TEXT_ID => {
                // A string takes at least the eight bytes of its length.
                self.need("a list of strings", items * 8)?;
                let mut list = TextList::default();
                for _ in 0..items {
                    // The header is smaller than 4 GiB, so that `push` always has room.
                    list.push(&self.text("a string of a list", TEXT_BYTES_MAX)?);
                }
                Ok(Value::Texts(list))
            }
            LIST_ID if depth < NESTING_MAX => {
                // A list takes at least the twelve bytes of its type and length.
                self.need("a list of lists", items * 12)?;
                for _ in 0..items {
                    self.list(key, depth + 1)?;
                }
                Ok(Value::Nested)
            }
            LIST_ID => Err(GgufError::Limit {
                what: "levels of lists in lists",
                given: depth as u64 + 1,
                max: NESTING_MAX as u64,
            }),
            _ => Err(GgufError::ValueType { key: key.to_owned(), id: kind }),
        }
    }

    /// One entry of the tensor table; its offset is still that within the data.
    fn tensor(&mut self) -> Result<TensorInfo, GgufError> {
        let name = self.text("a tensor's name", TENSOR_NAME_BYTES_MAX)?;
        let rank = self.u32("a tensor's rank")?;
        if !(1..=RANK_MAX).contains(&rank) {
            return Err(GgufError::Rank { tensor: name, given: rank });
        }
        let mut shape = Vec::with_capacity(rank as usize);
        for _ in 0..rank {
            shape.push(self.u64("a tensor's shape")?);
        }
        let format = self.u32("a tensor's format")?;
        let Some(format) = format_of(format) else {
            return Err(GgufError::Format { tensor: name, format: format_name(format) });
        };
        let offset = self.u64("a tensor's offset")?;
        match size_bytes(format, &shape) {
            Some(size_bytes) => Ok(TensorInfo { name, shape, format, offset, size_bytes }),
            None => Err(GgufError::Shape { tensor: name, shape, format }),
        }
    }
}

/// Bytes of a tensor; none where a dimension is zero, a row is no whole number of blocks, or the
/// product does not fit.
fn size_bytes(format: Format, shape: &[u64]) -> Option<u64> {
    let block_elements = format.block_elements() as u64;
    let row = *shape.first()?;
    if row == 0 || !row.is_multiple_of(block_elements) {
        return None;
    }
    let mut blocks = row / block_elements;
    for &dimension in &shape[1..] {
        if dimension == 0 {
            return None;
        }
        blocks = blocks.checked_mul(dimension)?;
    }
    blocks.checked_mul(format.block_bytes() as u64)
}

fn format_of(id: u32) -> Option<Format> {
    Some(match id {
        0 => Format::F32,
        1 => Format::F16,
        2 => Format::Q4_0,
        3 => Format::Q4_1,
        8 => Format::Q8_0,
        30 => Format::Bf16,
        _ => return None,
    })
}

/// The id of a format in the file format.
pub(super) fn format_id(format: Format) -> u32 {
    match format {
        Format::F32 => 0,
        Format::F16 => 1,
        Format::Q4_0 => 2,
        Format::Q4_1 => 3,
        Format::Q8_0 => 8,
        Format::Bf16 => 30,
    }
}

/// ggml's name of a tensor type, for an error.
fn format_name(id: u32) -> String {
    const NAMES: [(u32, &str); 26] = [
        (6, "Q5_0"),
        (7, "Q5_1"),
        (9, "Q8_1"),
        (10, "Q2_K"),
        (11, "Q3_K"),
        (12, "Q4_K"),
        (13, "Q5_K"),
        (14, "Q6_K"),
        (15, "Q8_K"),
        (16, "IQ2_XXS"),
        (17, "IQ2_XS"),
        (18, "IQ3_XXS"),
        (19, "IQ1_S"),
        (20, "IQ4_NL"),
        (21, "IQ3_S"),
        (22, "IQ2_S"),
        (23, "IQ4_XS"),
        (24, "I8"),
        (25, "I16"),
        (26, "I32"),
        (27, "I64"),
        (28, "F64"),
        (29, "IQ1_M"),
        (34, "TQ1_0"),
        (35, "TQ2_0"),
        (39, "MXFP4"),
    ];
    match NAMES.iter().find(|(known, _)| *known == id) {
        Some((_, name)) => (*name).to_owned(),
        None => format!("tensor type {id}"),
    }
}
