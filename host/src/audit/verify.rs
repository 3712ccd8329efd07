//! Reading an audit file: line after line, each checked against itself and against the one before.
//!
//! [`Reader`] gives the records of a file and stops at the first line that is wrong, saying which and how;
//! [`verify`] reads to the end. A chain shows that a line was changed, removed, moved or added between
//! others. It cannot show that whole records are missing at the end: whoever wants that keeps the last hash
//! elsewhere and says what they expect.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Take};
use std::path::{Path, PathBuf};

use super::record::{LINE_BYTES_MAX, NO_PREVIOUS, Record};
use super::{AuditError, LineFault};
use crate::files;

/// A file whose chain holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// Records in it.
    pub records: u64,
    /// The hash of the last; zeros where there is none. Kept elsewhere, it shows later what is missing.
    pub last: String,
}

/// The records that a file has when it is opened, checked as they come. Nobody who appends waits for a reader.
pub struct Reader {
    path: PathBuf,
    reader: BufReader<Take<File>>,
    line: u64,
    previous: String,
    failed: bool,
}

impl Reader {
    /// Opens a file.
    ///
    /// # Errors
    /// The file's.
    pub fn open(path: &Path) -> Result<Self, AuditError> {
        let failed = |source| AuditError::Open { path: path.to_owned(), source };
        // A pipe has no length, and nothing would be found wrong with nothing.
        let file = files::open(path).map_err(failed)?;
        // A line that is being written is not incomplete: under the lock there is none, and what stands stays.
        file.lock_shared().map_err(failed)?;
        let length = file.metadata().map_err(failed)?.len();
        file.unlock().map_err(failed)?;
        Ok(Self {
            path: path.to_owned(),
            reader: BufReader::new(file.take(length)),
            line: 0,
            previous: NO_PREVIOUS.to_owned(),
            failed: false,
        })
    }

    /// The number of the line that came last, from 1.
    pub fn line(&self) -> u64 {
        self.line
    }

    fn read(&mut self) -> Result<Option<Record>, AuditError> {
        self.line += 1;
        let mut bytes = Vec::new();
        let most = LINE_BYTES_MAX as u64;
        let read = (&mut self.reader).take(most + 1).read_until(b'\n', &mut bytes);
        let read = read.map_err(|source| AuditError::Open { path: self.path.clone(), source })?;
        if read == 0 {
            return Ok(None);
        }
        let wrong = |fault| AuditError::Line { path: self.path.clone(), line: self.line, fault };
        if read > LINE_BYTES_MAX {
            return Err(wrong(LineFault::TooLong { bytes: read as u64 }));
        }
        let Some(line) = bytes.strip_suffix(b"\n") else {
            return Err(wrong(LineFault::Incomplete { bytes: read as u64 }));
        };
        let record = Record::parse(line).map_err(wrong)?;
        if record.previous != self.previous {
            let (stated, found) = (record.previous, self.previous.clone());
            let stated = crate::sandbox::words::clean(&stated, stated.len().min(NO_PREVIOUS.len()));
            return Err(wrong(LineFault::Previous { stated, found }));
        }
        self.previous.clone_from(&record.sha256);
        Ok(Some(record))
    }
}

impl Iterator for Reader {
    type Item = Result<Record, AuditError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let next = self.read();
        self.failed = !matches!(next, Ok(Some(_)));
        next.transpose()
    }
}

/// Checks a whole file, and that it ends in the record with the hash `expected` where one is given.
///
/// # Errors
/// [`AuditError::Line`] for the first line that is wrong; [`AuditError::Last`]; the file's.
pub fn verify(path: &Path, expected: Option<&str>) -> Result<Verified, AuditError> {
    let mut verified = Verified { records: 0, last: NO_PREVIOUS.to_owned() };
    for record in Reader::open(path)? {
        verified = Verified { records: verified.records + 1, last: record?.sha256 };
    }
    match expected.filter(|expected| !expected.eq_ignore_ascii_case(&verified.last)) {
        None => Ok(verified),
        Some(expected) => {
            let expected = crate::sandbox::words::clean(expected, 64);
            Err(AuditError::Last { path: path.to_owned(), expected, found: verified.last })
        }
    }
}
