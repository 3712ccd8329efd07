//! Reading GGUF files: metadata by typed getters, tensors by name into a buffer of the caller's.
//!
//! A file is hostile until parsed: see `parse.rs` for the limits. Tensors are read with
//! positioned reads into a reused buffer. Nothing is mapped into memory, so a file that shrinks under
//! us is an error and not a signal, and the process never holds the weights twice.
//!
//! What this module does not do: interpret keys (see [`super::config`]), run tensors (see the
//! kernels), or know formats beyond the five that the kernels run. Start at [`Gguf::open`].

pub mod parse;
pub mod value;
pub mod write;

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, BufReader, Cursor};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use sha2::{Digest, Sha256};
use vassal_kernels::Format;

use self::value::{Number, NumberList, TextList, Value};
use crate::files;

/// Why a GGUF file was refused. The path is the caller's to add; [`GgufError::Open`] has it.
#[derive(Debug, thiserror::Error)]
pub enum GgufError {
    /// The file could not be opened or measured.
    #[error("{}: {source}", path.display())]
    Open {
        /// Which file.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
    /// Reading failed in the middle.
    #[error("reading {what} failed: {source}")]
    Read {
        /// What was being read.
        what: &'static str,
        /// The system's words.
        source: io::Error,
    },
    /// Not a GGUF file.
    #[error("not a GGUF file: it starts with {found:?} instead of \"GGUF\"")]
    Magic {
        /// Its first four bytes.
        found: [u8; 4],
    },
    /// A version nobody here reads, or a big-endian file.
    #[error("GGUF version {found} is not supported; supported: 2 and 3, little-endian")]
    Version {
        /// The number in the file.
        found: u32,
    },
    /// The file ends before what it announces.
    #[error("the file is cut short: {what} takes {needed_bytes} bytes, {left_bytes} are left")]
    Truncated {
        /// What was announced.
        what: &'static str,
        /// Bytes it takes.
        needed_bytes: u64,
        /// Bytes there are.
        left_bytes: u64,
    },
    /// A count or length past its limit.
    #[error("{what}: {given}, the limit is {max}")]
    Limit {
        /// What was counted.
        what: &'static str,
        /// The number in the file.
        given: u64,
        /// The most that is read.
        max: u64,
    },
    /// A string that is not UTF-8.
    #[error("{what} is not valid UTF-8")]
    Text {
        /// Which string.
        what: &'static str,
    },
    /// A metadata type that the format does not have.
    #[error("metadata key {key:?} has the unknown type {id}")]
    ValueType {
        /// The key.
        key: String,
        /// The number in the file.
        id: u32,
    },
    /// A key or tensor that comes twice.
    #[error("{what} {name:?} comes twice")]
    Duplicate {
        /// Key or tensor.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// An alignment that is no power of two from 8 to the limit.
    #[error("general.alignment is {given}; accepted: powers of two from 8 to {}", parse::ALIGNMENT_MAX)]
    Alignment {
        /// The number in the file; 0 where it is none.
        given: u64,
    },
    /// A tensor with too many dimensions, or none.
    #[error("tensor {tensor:?} has {given} dimensions; accepted: 1 to {}", parse::RANK_MAX)]
    Rank {
        /// The tensor.
        tensor: String,
        /// Dimensions in the file.
        given: u32,
    },
    /// A tensor in a format that the kernels do not run.
    #[error("{format} is not supported (tensor {tensor:?}); supported: F32, F16, BF16, Q8_0, Q4_0, Q4_1")]
    Format {
        /// The tensor.
        tensor: String,
        /// ggml's name of the format.
        format: String,
    },
    /// A shape with a zero, a row of no whole number of blocks, or more bytes than can be counted.
    #[error("tensor {tensor:?} of {format:?} cannot have the shape {shape:?}")]
    Shape {
        /// The tensor.
        tensor: String,
        /// Its dimensions, the fastest first.
        shape: Vec<u64>,
        /// Its format.
        format: Format,
    },
    /// A tensor off its alignment.
    #[error("tensor {tensor:?} starts at {offset}, which is no multiple of {alignment}")]
    Offset {
        /// The tensor.
        tensor: String,
        /// Its offset within the data.
        offset: u64,
        /// The file's alignment.
        alignment: u64,
    },
    /// A tensor that leaves the file.
    #[error("tensor {tensor:?} has {size_bytes} bytes from {start}, outside the file of {file_bytes} bytes")]
    Outside {
        /// The tensor.
        tensor: String,
        /// Where it starts in the file.
        start: u64,
        /// Its size.
        size_bytes: u64,
        /// The file's size.
        file_bytes: u64,
    },
    /// Two tensors share bytes.
    #[error("tensors {first:?} and {second:?} overlap")]
    Overlap {
        /// The one that starts first.
        first: String,
        /// The other.
        second: String,
    },
    /// A key that must be there.
    #[error("metadata key {key:?} is missing")]
    Missing {
        /// The key.
        key: String,
    },
    /// A value of another kind than the key has.
    #[error("metadata key {key:?} must be {expected}, the file has {found}")]
    Kind {
        /// The key.
        key: String,
        /// The kind it has.
        expected: &'static str,
        /// The kind found.
        found: &'static str,
    },
}

/// One tensor of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Its name.
    pub name: String,
    /// Its dimensions in ggml's order: the fastest first, so a matrix `[n, k]` of n rows has `[k, n]`.
    pub shape: Vec<u64>,
    /// How its elements are stored.
    pub format: Format,
    /// Where it starts in the file, in bytes.
    pub offset: u64,
    /// Its size in bytes: all of it lies within the file.
    pub size_bytes: u64,
}

enum Source {
    File(File),
    Memory(Vec<u8>),
}

impl Source {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        match self {
            Source::File(file) => file.read_exact_at(buffer, offset),
            Source::Memory(bytes) => {
                let start = usize::try_from(offset).unwrap_or(usize::MAX);
                let end = start.saturating_add(buffer.len());
                match bytes.get(start..end) {
                    Some(part) => buffer.copy_from_slice(part),
                    None => return Err(io::ErrorKind::UnexpectedEof.into()),
                }
                Ok(())
            }
        }
    }
}

/// An open GGUF file whose header has been checked.
pub struct Gguf {
    path: PathBuf,
    source: Source,
    length: u64,
    version: u32,
    metadata: BTreeMap<String, Value>,
    tensors: Vec<TensorInfo>,
    by_name: HashMap<String, usize>,
    sha256: OnceLock<[u8; 32]>,
}

impl std::fmt::Debug for Gguf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gguf")
            .field("path", &self.path)
            .field("length", &self.length)
            .field("tensors", &self.tensors.len())
            .finish_non_exhaustive()
    }
}

impl Gguf {
    /// Opens a file and checks its header; tensors are read later, one by one.
    pub fn open(path: &Path) -> Result<Gguf, GgufError> {
        let open_error = |source| GgufError::Open { path: path.to_owned(), source };
        let file = files::open(path).map_err(open_error)?;
        let length = file.metadata().map_err(open_error)?.len();
        let header = parse::parse(BufReader::with_capacity(1 << 16, &file), length)?;
        Ok(Gguf::new(path.to_owned(), Source::File(file), length, header))
    }

    /// The same over bytes in memory: for tests and generated models.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Gguf, GgufError> {
        let length = bytes.len() as u64;
        let header = parse::parse(Cursor::new(&bytes), length)?;
        Ok(Gguf::new(PathBuf::from("(memory)"), Source::Memory(bytes), length, header))
    }

    fn new(path: PathBuf, source: Source, length: u64, header: parse::Header) -> Gguf {
        let by_name = header.tensors.iter().enumerate().map(|(index, tensor)| (tensor.name.clone(), index)).collect();
        Gguf {
            path,
            source,
            length,
            version: header.version,
            metadata: header.metadata,
            tensors: header.tensors,
            by_name,
            sha256: OnceLock::new(),
        }
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file's size.
    pub fn length_bytes(&self) -> u64 {
        self.length
    }

    /// The version of the format, 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// All tensors, in the file's order.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// One tensor.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(*self.by_name.get(name)?)
    }

    /// One metadata value.
    pub fn metadata(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key)
    }

    /// All keys, sorted.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.metadata.keys().map(String::as_str)
    }

    /// Frees the values of all keys with this prefix: a vocabulary's megabytes once the tokenizer
    /// stands (`"tokenizer."`).
    pub fn forget(&mut self, prefix: &str) {
        self.metadata.retain(|key, _| !key.starts_with(prefix));
    }

    /// An integer that is not negative, if the key is there.
    pub fn integer(&self, key: &str) -> Result<Option<u64>, GgufError> {
        self.typed(key, "an integer, not negative", |value| match value {
            Value::Number(number) => number.as_u64(),
            _ => None,
        })
    }

    /// A finite number, if the key is there.
    pub fn float(&self, key: &str) -> Result<Option<f64>, GgufError> {
        self.typed(key, "a finite number", |value| match value {
            Value::Number(number) => number.as_f64().filter(|value| value.is_finite()),
            _ => None,
        })
    }

    /// A truth value, if the key is there.
    pub fn boolean(&self, key: &str) -> Result<Option<bool>, GgufError> {
        self.typed(key, "a truth value", |value| match value {
            Value::Number(Number::Bool(value)) => Some(*value),
            _ => None,
        })
    }

    /// A string, if the key is there.
    pub fn text(&self, key: &str) -> Result<Option<&str>, GgufError> {
        self.typed(key, "a string", |value| match value {
            Value::Text(text) => Some(text.as_str()),
            _ => None,
        })
    }

    /// A list of strings, if the key is there.
    pub fn texts(&self, key: &str) -> Result<Option<&TextList>, GgufError> {
        self.typed(key, "a list of strings", |value| match value {
            Value::Texts(list) => Some(list),
            _ => None,
        })
    }

    /// A list of numbers, if the key is there.
    pub fn numbers(&self, key: &str) -> Result<Option<&NumberList>, GgufError> {
        self.typed(key, "a list of numbers", |value| match value {
            Value::Numbers(list) => Some(list),
            _ => None,
        })
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &'static str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, GgufError> {
        let Some(value) = self.metadata.get(key) else {
            return Ok(None);
        };
        match read(value) {
            Some(read) => Ok(Some(read)),
            None => Err(GgufError::Kind { key: key.to_owned(), expected, found: value.kind() }),
        }
    }

    /// Reads a tensor's bytes into `buffer`, which is resized to [`TensorInfo::size_bytes`]. Reuse the
    /// buffer: its size is bounded by the largest tensor of the file.
    pub fn read(&self, tensor: &TensorInfo, buffer: &mut Vec<u8>) -> Result<(), GgufError> {
        // A TensorInfo is a plain value, so it may come from elsewhere than this file.
        if tensor.size_bytes > self.length {
            return Err(GgufError::Outside {
                tensor: tensor.name.clone(),
                start: tensor.offset,
                size_bytes: tensor.size_bytes,
                file_bytes: self.length,
            });
        }
        buffer.resize(tensor.size_bytes as usize, 0);
        self.source.read_at(buffer, tensor.offset).map_err(|source| GgufError::Read { what: "a tensor", source })
    }

    /// SHA-256 of the whole file, read once in small pieces and remembered.
    pub fn sha256(&self) -> Result<[u8; 32], GgufError> {
        if let Some(hash) = self.sha256.get() {
            return Ok(*hash);
        }
        let mut hasher = Sha256::new();
        let mut piece = vec![0; 1 << 18];
        let mut position = 0;
        while position < self.length {
            let count = (self.length - position).min(piece.len() as u64) as usize;
            self.source
                .read_at(&mut piece[..count], position)
                .map_err(|source| GgufError::Read { what: "the file for its checksum", source })?;
            hasher.update(&piece[..count]);
            position += count as u64;
        }
        let hash: [u8; 32] = hasher.finalize().into();
        Ok(*self.sha256.get_or_init(|| hash))
    }
}

/// The value of a key that must be there.
pub fn required<T>(key: &str, value: Option<T>) -> Result<T, GgufError> {
    value.ok_or_else(|| GgufError::Missing { key: key.to_owned() })
}
