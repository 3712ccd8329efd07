//! Rollouts as a Parquet file: the columns, how they are written, and what a reader accepts.
//!
//! A row a rollout; columns `id`, `prompt`, `split`, `sample` (u32), `tokens` (list of u32), `text`, `end`, and a
//! nullable double `reward.NAME` for each reward. The header stands as JSON under one key of the file's metadata
//! ([`KEY`]), with a hash of everything that the file holds, so that a damaged file is told from a whole one wherever the
//! damage is. Pages are not compressed: what a file can make its reader allocate is bounded by its size.
//!
//! A reader expects these columns in this order and no others. The Parquet library checks most of what it reads; what it
//! believes is checked here and in `pages.rs` before it gets to see it, and a panic of its is an error of the file's.

use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use parquet::basic::{ConvertedType, LogicalType, Repetition, Type as Physical};
use parquet::data_type::{ByteArray, ByteArrayType, DataType, DoubleType, Int32Type};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::file::reader::{FileReader, RowGroupReader, SerializedFileReader};
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::printer::print_schema;
use parquet::schema::types::{ColumnPath, Type, TypePtr};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::pages::{self, Column};
use super::{Checker, End, Header, REWARDS_MAX, RewardAbout, Rollout, Rollouts, RolloutsError};
use crate::hex::hexadecimal;
use crate::learning::prompts::{PROMPT_BYTES_MAX, Split};

/// The key of the file's metadata that has the header.
pub const KEY: &str = "vassal";

/// What a reward's column is called, before the reward's name.
pub const REWARD_PREFIX: &str = "reward.";

/// Rows that are written, and read, at once.
pub const GROUP_ROWS: usize = 8192;

/// The largest file, and the most that its rollouts may take in memory: prompts stand in a file once a group of rows.
const BYTES_MAX: u64 = 4 << 30;

/// What stands under [`KEY`].
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Described {
    rollouts: Header,
    rewards: Vec<RewardAbout>,
    /// [`content_sha256`].
    sha256: String,
}

/// What is wrong with a file: as a whole, or with a row, counted from 1.
enum Refusal {
    File(String),
    Row(usize, String),
}

impl From<String> for Refusal {
    fn from(reason: String) -> Self {
        Self::File(reason)
    }
}

impl From<ParquetError> for Refusal {
    fn from(error: ParquetError) -> Self {
        Self::File(error.to_string())
    }
}

/// The columns of a file with these rewards.
fn schema(rewards: &[RewardAbout]) -> Result<TypePtr, ParquetError> {
    let made = |name: &str, physical, repetition, logical| {
        let builder = Type::primitive_type_builder(name, physical).with_repetition(repetition);
        builder.with_logical_type(logical).build().map(Arc::new)
    };
    let text = |name| made(name, Physical::BYTE_ARRAY, Repetition::REQUIRED, Some(LogicalType::String));
    let number = |name| made(name, Physical::INT32, Repetition::REQUIRED, Some(LogicalType::integer(32, false)));
    let element = Type::group_type_builder("list").with_repetition(Repetition::REPEATED);
    let element = Arc::new(element.with_fields(vec![number("element")?]).build()?);
    let tokens = Type::group_type_builder("tokens").with_repetition(Repetition::REQUIRED);
    let tokens = tokens.with_logical_type(Some(LogicalType::List)).with_converted_type(ConvertedType::LIST);
    let tokens = Arc::new(tokens.with_fields(vec![element]).build()?);
    let mut columns = vec![text("id")?, text("prompt")?, text("split")?, number("sample")?, tokens];
    columns.extend([text("text")?, text("end")?]);
    for reward in rewards {
        columns.push(made(&column_name(reward), Physical::DOUBLE, Repetition::OPTIONAL, None)?);
    }
    Type::group_type_builder("rollouts").with_fields(columns).build().map(Arc::new)
}

fn column_name(reward: &RewardAbout) -> String {
    format!("{REWARD_PREFIX}{}", reward.name)
}

/// A hash of all that a file says: equal for equal rollouts, whatever bytes they are written as.
fn content_sha256(rollouts: &Rollouts) -> String {
    let mut hash = Sha256::new();
    let text = |hash: &mut Sha256, text: &[u8]| {
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text);
    };
    // Plain data: numbers, strings and lists of them can always be written.
    text(&mut hash, &serde_json::to_vec(&(&rollouts.header, &rollouts.rewards)).unwrap_or_default());
    for rollout in &rollouts.all {
        for part in [&rollout.id, &rollout.prompt, rollout.split.name(), &rollout.text, rollout.end.name()] {
            text(&mut hash, part.as_bytes());
        }
        hash.update(rollout.sample.to_le_bytes());
        hash.update((rollout.tokens.len() as u64).to_le_bytes());
        rollout.tokens.iter().for_each(|token| hash.update(token.to_le_bytes()));
        for score in &rollout.scores {
            hash.update([u8::from(score.is_some())]);
            hash.update(score.unwrap_or_default().to_bits().to_le_bytes());
        }
    }
    hexadecimal(&hash.finalize())
}

/// The bytes of a file.
///
/// # Errors
/// The library's, which has nothing to complain of here.
pub(super) fn encode(rollouts: &Rollouts) -> Result<Vec<u8>, ParquetError> {
    let (rollouts_header, rewards) = (rollouts.header.clone(), rollouts.rewards.clone());
    let described = Described { rollouts: rollouts_header, rewards, sha256: content_sha256(rollouts) };
    let header = serde_json::to_string(&described).map_err(|error| ParquetError::External(Box::new(error)))?;
    let mut properties = WriterProperties::builder()
        .set_created_by(format!("vassal {}", env!("CARGO_PKG_VERSION")))
        .set_key_value_metadata(Some(vec![KeyValue::new(KEY.to_owned(), header)]))
        .set_statistics_enabled(EnabledStatistics::None)
        .set_offset_index_disabled(true)
        .set_dictionary_enabled(false);
    for repeating in ["id", "prompt", "split", "end"] {
        properties = properties.set_column_dictionary_enabled(ColumnPath::from(repeating), true);
    }
    let mut out = Vec::new();
    let mut writer = SerializedFileWriter::new(&mut out, schema(&rollouts.rewards)?, Arc::new(properties.build()))?;
    for rows in rollouts.all.chunks(GROUP_ROWS) {
        let mut group = writer.next_row_group()?;
        encode_group(&mut group, rows, rollouts.rewards.len())?;
        group.close()?;
    }
    writer.close()?;
    Ok(out)
}

type GroupWriter<'a, 'b> = SerializedRowGroupWriter<'a, &'b mut Vec<u8>>;

fn encode_group(group: &mut GroupWriter<'_, '_>, rows: &[Rollout], rewards: usize) -> Result<(), ParquetError> {
    let texts = |of: fn(&Rollout) -> &str| rows.iter().map(|row| ByteArray::from(of(row))).collect::<Vec<_>>();
    write::<ByteArrayType>(group, &texts(|row| &row.id), None, None)?;
    write::<ByteArrayType>(group, &texts(|row| &row.prompt), None, None)?;
    write::<ByteArrayType>(group, &texts(|row| row.split.name()), None, None)?;
    let samples: Vec<i32> = rows.iter().map(|row| row.sample as i32).collect();
    write::<Int32Type>(group, &samples, None, None)?;
    // A list's first element begins a row (repetition 0), the others go on with it; an empty list defines nothing.
    let (mut tokens, mut defined, mut repeated) = (Vec::new(), Vec::new(), Vec::new());
    for row in rows {
        tokens.extend(row.tokens.iter().map(|&token| token as i32));
        defined.extend(std::iter::repeat_n(i16::from(!row.tokens.is_empty()), row.tokens.len().max(1)));
        repeated.extend((0..row.tokens.len().max(1)).map(|place| i16::from(place > 0)));
    }
    write::<Int32Type>(group, &tokens, Some(&defined), Some(&repeated))?;
    write::<ByteArrayType>(group, &texts(|row| &row.text), None, None)?;
    write::<ByteArrayType>(group, &texts(|row| row.end.name()), None, None)?;
    for place in 0..rewards {
        let scores = || rows.iter().map(|row| row.scores.get(place).copied().flatten());
        let defined: Vec<i16> = scores().map(|score| i16::from(score.is_some())).collect();
        write::<DoubleType>(group, &scores().flatten().collect::<Vec<_>>(), Some(&defined), None)?;
    }
    Ok(())
}

fn write<T: DataType>(
    group: &mut GroupWriter<'_, '_>,
    values: &[T::T],
    defined: Option<&[i16]>,
    repeated: Option<&[i16]>,
) -> Result<(), ParquetError> {
    let column = group.next_column()?;
    let mut column = column.ok_or_else(|| ParquetError::General("one column too many".to_owned()))?;
    column.typed::<T>().write_batch(values, defined, repeated)?;
    column.close()
}

/// Reads a file.
pub(super) fn read(path: &Path) -> Result<Rollouts, RolloutsError> {
    let failed = |source| RolloutsError::File { path: path.to_path_buf(), source };
    let mut bytes = Vec::new();
    let file = crate::files::open(path).map_err(failed)?;
    file.take(BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    parse(bytes, path)
}

/// Reads a file's bytes; `path` is for messages only.
///
/// # Errors
/// [`RolloutsError::Format`] and [`RolloutsError::Rollout`].
pub fn parse(bytes: Vec<u8>, path: &Path) -> Result<Rollouts, RolloutsError> {
    let path = path.to_path_buf();
    if bytes.len() as u64 > BYTES_MAX {
        let reason = format!("a file has at most {BYTES_MAX} bytes");
        return Err(RolloutsError::Format { path, reason });
    }
    // Nothing that the closure touches is looked at again after a panic.
    let decoded = catch_unwind(AssertUnwindSafe(|| decode(Bytes::from(bytes))));
    decoded.unwrap_or_else(|_| Err(Refusal::File("the Parquet library gave up on it".to_owned()))).map_err(|refusal| {
        match refusal {
            Refusal::File(reason) => RolloutsError::Format { path, reason },
            Refusal::Row(number, reason) => RolloutsError::Rollout { path, number, reason },
        }
    })
}

fn decode(bytes: Bytes) -> Result<Rollouts, Refusal> {
    let size = bytes.len() as u64;
    let reader = SerializedFileReader::new(bytes)?;
    let about = reader.metadata().file_metadata();
    let values = about.key_value_metadata().into_iter().flatten().filter(|pair| pair.key == KEY);
    let [Some(header)] = values.map(|pair| pair.value.as_deref()).collect::<Vec<_>>()[..] else {
        return Err(format!("its metadata must have one value of the key {KEY:?}").into());
    };
    let Described { rollouts: header, rewards, sha256 } =
        serde_json::from_str(header).map_err(|error| format!("its header is wrong: {error}"))?;
    if rewards.len() > REWARDS_MAX {
        return Err(format!("a file has at most {REWARDS_MAX} rewards, this has {}", rewards.len()).into());
    }
    same_columns(&*schema(&rewards)?, about.schema())?;

    let mut rollouts = Rollouts { header: header.clone(), rewards: rewards.clone(), all: Vec::new() };
    let mut checker = Checker::new(&header, &rewards)?;
    let mut memory_bytes = 0;
    for group in 0..reader.num_row_groups() {
        pages::check_chunks(reader.metadata().row_group(group), size)?;
        for rollout in decode_group(&*reader.get_row_group(group)?, rewards.len(), &mut memory_bytes)? {
            checker.check(&rollout).map_err(|reason| Refusal::Row(rollouts.all.len() + 1, reason))?;
            rollouts.all.push(rollout);
        }
    }
    if content_sha256(&rollouts) != sha256 {
        return Err("it is damaged, or was changed: what it holds is not what was written".to_owned().into());
    }
    Ok(rollouts)
}

/// Refuses columns that are not the expected ones, naming the first that differs.
fn same_columns(expected: &Type, found: &Type) -> Result<(), String> {
    if expected == found {
        return Ok(());
    }
    let (expected, found) = (expected.get_fields(), if found.is_group() { found.get_fields() } else { &[] });
    let shown = |column: Option<&TypePtr>| {
        let mut out = Vec::new();
        column.inspect(|column| print_schema(&mut out, column));
        let words = String::from_utf8_lossy(&out).split_whitespace().collect::<Vec<_>>().join(" ");
        if words.is_empty() { "nothing".to_owned() } else { words.chars().take(200).collect() }
    };
    let count = expected.len().max(found.len());
    let differs = |place: &usize| expected.get(*place) != found.get(*place);
    match (0..count).find(differs) {
        Some(place) => Err(format!(
            "column {} must be `{}`, it is `{}`",
            place + 1,
            shown(expected.get(place)),
            shown(found.get(place))
        )),
        None => Err("its columns are not in a group named `rollouts`".to_owned()),
    }
}

fn decode_group(group: &dyn RowGroupReader, rewards: usize, memory_bytes: &mut u64) -> Result<Vec<Rollout>, Refusal> {
    let texts = |place| pages::read::<ByteArrayType>(group, place).map(|column| column.values);
    let (ids, prompts, splits) = (texts(0)?, texts(1)?, texts(2)?);
    let samples = pages::read::<Int32Type>(group, 3)?.values;
    let Column { values: tokens, defined, repeated } = pages::read::<Int32Type>(group, 4)?;
    let (responses, ends) = (texts(5)?, texts(6)?);
    if defined.contains(&0) {
        return Err("a response without tokens: each has at least one".to_owned().into());
    }
    // Row r's tokens are those from its first, which alone has repetition 0, to the next row's.
    let mut starts: Vec<usize> = (0..repeated.len()).filter(|&place| repeated[place] == 0).collect();
    if starts.first() != Some(&0) || starts.len() != ids.len() || repeated.len() != tokens.len() {
        return Err("the lists of tokens are not one a row".to_owned().into());
    }
    starts.push(tokens.len());
    let mut scores = Vec::new();
    for reward in 0..rewards {
        let Column { values, defined, .. } = pages::read::<DoubleType>(group, 7 + reward)?;
        let mut values = values.into_iter();
        let score = |defined: i16| if defined == 0 { None } else { values.next() };
        scores.push(defined.into_iter().map(score).collect::<Vec<_>>());
    }
    let mut rollouts = Vec::with_capacity(ids.len());
    for row in 0..ids.len() {
        let tokens = tokens[starts[row]..starts[row + 1]].iter().map(|&token| token as u32).collect::<Vec<_>>();
        let texts = [&ids[row], &prompts[row], &responses[row]];
        *memory_bytes += texts.iter().map(|text| text.len() as u64).sum::<u64>() + 4 * tokens.len() as u64;
        if *memory_bytes > BYTES_MAX || prompts[row].len() > PROMPT_BYTES_MAX {
            let reason = format!("a prompt has at most {PROMPT_BYTES_MAX} bytes, and a file's rollouts {BYTES_MAX}");
            return Err(reason.into());
        }
        let [id, prompt, text] = texts.map(|text| text.as_utf8().map(str::to_owned));
        rollouts.push(Rollout {
            id: id?,
            prompt: prompt?,
            split: named(&splits[row], [Split::Learn, Split::Tune, Split::Test], Split::name)?,
            sample: samples[row] as u32,
            tokens,
            text: text?,
            end: named(&ends[row], [End::EndOfText, End::TokenLimit], End::name)?,
            scores: scores.iter().map(|column| column[row]).collect(),
        });
    }
    Ok(rollouts)
}

fn named<T: Copy, const N: usize>(found: &ByteArray, all: [T; N], name: fn(T) -> &'static str) -> Result<T, String> {
    let wrong = || format!("expected one of {:?}, got {:?}", all.map(name), String::from_utf8_lossy(found.data()));
    all.into_iter().find(|one| name(*one).as_bytes() == found.data()).ok_or_else(wrong)
}
