//! Appending records: one write a line, on the disk before the call returns, under a lock.
//!
//! Every append takes the file's lock, reads the hash of the last line (another process may have written it)
//! and writes the successor. A line without its newline is what a crash left of the record being
//! written: it is put aside into a file of its own beside the log, never thrown away, and the chain goes on from the last
//! whole line. A last line that is whole but wrong is not appended to.
//!
//! Checking the lines before the last is `verify.rs`'s.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::record::{LINE_BYTES_MAX, NO_PREVIOUS, Record};
use super::{AuditError, LineFault};

/// How every record begins.
const RECORD_START: &str = "{\"format\":\"vassal-audit-";

/// How much is read at once when the last line is looked for.
const BLOCK_BYTES: u64 = 64 << 10;

/// Names tried for what is put aside.
const ASIDE_MAX: usize = 1_000;

/// A file of records, open for appending.
pub struct AuditLog {
    file: File,
    path: PathBuf,
    /// Length of the file after our last append and the hash of its last line.
    known: Option<(u64, String)>,
    recovered: Option<Recovered>,
}

/// An incomplete last line that was put aside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovered {
    /// Bytes of it.
    pub bytes: u64,
    /// Where they are now.
    pub kept_in: PathBuf,
}

impl AuditLog {
    /// Opens a log, or makes an empty one that only this user can read.
    ///
    /// # Errors
    /// The file's, and [`AuditError::Tail`] for a last line that nothing may follow.
    pub fn open(path: &Path) -> Result<Self, AuditError> {
        let failed = |source| AuditError::Open { path: path.to_owned(), source };
        let file = private().read(true).append(true).create(true).open(path).map_err(failed)?;
        if !file.metadata().map_err(failed)?.is_file() {
            return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")));
        }
        let mut log = Self { file, path: path.to_owned(), known: None, recovered: None };
        log.locked(Self::mend)?;
        // The file's name is on the disk as well.
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)?;
        Ok(log)
    }

    /// Appends a record and waits until it is on the disk. What comes back has its place in the chain.
    ///
    /// # Errors
    /// [`AuditError::Write`], after which the file is as before; [`AuditError::Tail`].
    pub fn append(&mut self, mut record: Record) -> Result<Record, AuditError> {
        self.locked(|log| {
            let (length, previous) = log.mend()?;
            let line = record.seal(&previous);
            if line.len() > LINE_BYTES_MAX {
                return Err(AuditError::TooLong { bytes: line.len() });
            }
            if let Err(source) = log.file.write_all(line.as_bytes()).and_then(|()| log.file.sync_data()) {
                // Half a line would be mended by the next append; where it can, it goes at once.
                let _ = log.file.set_len(length);
                log.known = None;
                return Err(AuditError::Write { path: log.path.clone(), source });
            }
            log.known = Some((length + line.len() as u64, record.sha256.clone()));
            Ok(())
        })?;
        Ok(record)
    }

    /// What a crash had left, where anything was; handed out once.
    pub fn take_recovered(&mut self) -> Option<Recovered> {
        self.recovered.take()
    }

    /// Does something while no other process appends or verifies.
    fn locked<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T, AuditError>) -> Result<T, AuditError> {
        let failed = |path: &Path, source| AuditError::Write { path: path.to_owned(), source };
        self.file.lock().map_err(|source| failed(&self.path, source))?;
        let done = work(self);
        self.file.unlock().map_err(|source| failed(&self.path, source))?;
        done
    }

    /// Puts an incomplete last line aside. Gives the length of the file and the hash of its last line.
    fn mend(&mut self) -> Result<(u64, String), AuditError> {
        let path = self.path.clone();
        let failed = |source| AuditError::Open { path: path.clone(), source };
        let length = self.file.metadata().map_err(failed)?.len();
        if let Some((known, hash)) = self.known.as_ref().filter(|(known, _)| *known == length) {
            return Ok((*known, hash.clone()));
        }
        let end = self.line_start(length).map_err(failed)?;
        // The file of somebody else is left as it is: what a crash leaves begins as a record does.
        let begun = self.read(end, length.min(end + RECORD_START.len() as u64)).map_err(failed)?;
        if !RECORD_START.as_bytes().starts_with(&begun) {
            return Err(AuditError::Tail { path, fault: LineFault::Incomplete { bytes: length - end } });
        }
        let hash = if end == 0 {
            NO_PREVIOUS.to_owned()
        } else {
            let start = self.line_start(end - 1).map_err(failed)?;
            let tail = |fault| AuditError::Tail { path: path.clone(), fault };
            if end - start > LINE_BYTES_MAX as u64 {
                return Err(tail(LineFault::TooLong { bytes: end - start }));
            }
            let line = self.read(start, end - 1).map_err(failed)?;
            Record::parse(&line).map_err(tail)?.sha256
        };
        if end < length {
            self.put_aside(end, length).map_err(failed)?;
        }
        self.known = Some((end, hash.clone()));
        Ok((end, hash))
    }

    /// Where the line begins that reaches up to `end`.
    fn line_start(&mut self, end: u64) -> io::Result<u64> {
        let mut upto = end;
        while upto > 0 {
            let from = upto.saturating_sub(BLOCK_BYTES);
            let block = self.read(from, upto)?;
            if let Some(at) = block.iter().rposition(|&byte| byte == b'\n') {
                return Ok(from + at as u64 + 1);
            }
            upto = from;
        }
        Ok(0)
    }

    fn read(&mut self, from: u64, upto: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity((upto - from) as usize);
        self.file.seek(SeekFrom::Start(from))?;
        (&self.file).take(upto - from).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Copies the file's end into a file of its own, and cuts it off.
    fn put_aside(&mut self, from: u64, upto: u64) -> io::Result<()> {
        for number in 1..=ASIDE_MAX {
            let mut name = self.path.clone().into_os_string();
            name.push(format!(".incomplete-{number}"));
            let kept_in = PathBuf::from(name);
            let mut aside = match private().write(true).create_new(true).open(&kept_in) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                opened => opened?,
            };
            self.file.seek(SeekFrom::Start(from))?;
            io::copy(&mut (&self.file).take(upto - from), &mut aside)?;
            aside.sync_all()?;
            self.file.set_len(from)?;
            self.recovered = Some(Recovered { bytes: upto - from, kept_in });
            return Ok(());
        }
        Err(io::Error::other(format!("{ASIDE_MAX} incomplete lines lie beside it already")))
    }
}

/// What is made with it, only this user can read: records hold prompts and a tenant's settings.
fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

impl std::fmt::Display for Recovered {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (bytes, kept_in) = (self.bytes, self.kept_in.display());
        write!(
            formatter,
            "an incomplete last record of {bytes} bytes was put aside into {kept_in}: a crash, most likely"
        )
    }
}
