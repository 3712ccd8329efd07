//! Audit: one record a response, in a file that shows when it was changed, and the response once more from it.
//!
//! - `record.rs`: what a record holds, `line.rs`: its line; `surroundings.rs`: what bits depend on beside the request.
//! - `log.rs` appends records and mends what a crash left; `verify.rs` reads a file and checks its chain.
//! - `replay.rs`: from a record to a request, and from its response to the first difference.
//!
//! A [`Recorder`] is all that a program which answers needs. `docs/audit.md` is the guide: an example of a
//! record, what the chain proves and what it cannot.

mod line;
pub mod log;
pub mod record;
pub mod replay;
pub mod surroundings;
pub mod verify;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub use self::log::{AuditLog, Recovered};
pub use self::record::{FORMAT, LINE_BYTES_MAX, Record};
pub use self::replay::{Difference, ReplayError};
pub use self::surroundings::Surroundings;
pub use self::verify::{Verified, verify};

use crate::engine::Response;
use crate::hex::hexadecimal;
use crate::request::ValidRequest;

/// Why an audit file cannot be written or read. Lines count from 1.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The caller's file cannot be opened or read.
    #[error("audit file {path}: {source}")]
    Open {
        /// The file.
        path: PathBuf,
        /// The system's words.
        source: std::io::Error,
    },
    /// A record could not be written: the file is as it was before, as far as that could be done.
    #[error("audit file {path}: the record could not be written: {source}")]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's words.
        source: std::io::Error,
    },
    /// A line is wrong.
    #[error("audit file {path}, line {line}: {fault}")]
    Line {
        /// The file.
        path: PathBuf,
        /// Which.
        line: u64,
        /// What is wrong with it.
        fault: LineFault,
    },
    /// The last record is wrong, so that nothing may follow it.
    #[error("audit file {path}: nothing can be appended, its last line is wrong: {fault}; see `vassal audit verify`")]
    Tail {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        fault: LineFault,
    },
    /// The chain holds, but does not end where the caller expects.
    #[error(
        "audit file {path}: its last record has SHA-256 {found}, expected {expected}: records are missing or were added"
    )]
    Last {
        /// The file.
        path: PathBuf,
        /// What was expected.
        expected: String,
        /// What is there.
        found: String,
    },
    /// A record would be longer than any reader takes.
    #[error("the record would have {bytes} bytes, at most {LINE_BYTES_MAX} are allowed")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// A head cannot be hashed.
    #[error(transparent)]
    Head(#[from] crate::model::heads::HeadError),
}

/// What is wrong with a line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LineFault {
    /// No newline at its end.
    #[error(
        "incomplete, {bytes} bytes without an end: a crash, or something was cut off; the next append puts it aside"
    )]
    Incomplete {
        /// Bytes of it.
        bytes: u64,
    },
    /// More bytes than a record has.
    #[error("{bytes} bytes or more, at most {LINE_BYTES_MAX} are a record")]
    TooLong {
        /// As far as it was read.
        bytes: u64,
    },
    /// It does not end in its own hash.
    #[error("not a record: it does not end in `,\"sha256\":\"…\"}}`")]
    NoHash,
    /// Its bytes are not those that were hashed.
    #[error("changed: its bytes have SHA-256 {found}, the line says {stated}")]
    Changed {
        /// Of the bytes at hand.
        found: String,
        /// In the line.
        stated: String,
    },
    /// Its predecessor is another.
    #[error("it follows the record {stated}, but the line before is {found}: a line was removed, added or moved")]
    Previous {
        /// The hash that it names.
        stated: String,
        /// The hash of the line before.
        found: String,
    },
    /// Another format, or another version of it.
    #[error("its format is {0:?}, this program reads {FORMAT:?}")]
    Format(String),
    /// No JSON, or not a record's.
    #[error("not a record: {0}")]
    NotARecord(String),
}

/// Records the responses of one host.
pub struct Recorder {
    log: AuditLog,
    surroundings: Surroundings,
    /// By SHA-256 of the component: where a replay may look for it.
    sources: BTreeMap<String, String>,
}

impl Recorder {
    /// Opens a log for the responses of this host, and mends what a crash left of it.
    ///
    /// # Errors
    /// The file's.
    pub fn open(path: &Path, surroundings: Surroundings) -> Result<Self, AuditError> {
        Ok(Self { log: AuditLog::open(path)?, surroundings, sources: BTreeMap::new() })
    }

    /// Says where the component with this hash came from: a shipped name or a path. Only a hint for a replay.
    pub fn name_source(&mut self, sha256: &[u8; 32], source: &str) {
        self.sources.insert(hexadecimal(sha256), source.to_owned());
    }

    /// Appends a response's record, and has it on the disk. `request.stream` must be the response's own.
    ///
    /// # Errors
    /// [`AuditError::Write`] above all.
    pub fn append(&mut self, request: &ValidRequest, response: &Response) -> Result<Record, AuditError> {
        self.log.append(Record::new(&self.surroundings, request, &self.sources, response))
    }

    /// What a crash had left, where anything was; handed out once.
    pub fn take_recovered(&mut self) -> Option<Recovered> {
        self.log.take_recovered()
    }
}
