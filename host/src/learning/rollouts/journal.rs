//! The journal of a command that samples: what it has so far, so that it can be killed and go on.
//!
//! Beside `OUT` stands `OUT.part`: JSON lines, the header first, then a rollout a line in the order in which they
//! ended. A line counts once its newline is there; what a kill left after the last one is cut off. The journal is locked
//! while a process writes it, is never taken over by a command that would sample something else, and goes away when
//! `OUT` is written.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::{Checker, Header, Rollout, Rollouts, RolloutsError};

/// The most bytes of a line: the longest text and the most tokens.
const LINE_BYTES_MAX: u64 = 1 << 22;

/// How every journal begins.
const HEADER_START: &str = "{\"format\":\"vassal-rollouts-";

/// Where what is unfinished of a file stands.
pub fn part_of(out: &Path) -> PathBuf {
    let mut part = out.as_os_str().to_os_string();
    part.push(".part");
    PathBuf::from(part)
}

/// A journal, open and locked.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    out: BufWriter<File>,
    rollouts: Rollouts,
}

impl Journal {
    /// Starts the journal of `out`, or takes up the one that an earlier run of the same command left.
    ///
    /// # Errors
    /// [`RolloutsError::Busy`], [`RolloutsError::Journal`], [`RolloutsError::NotAJournal`], and the system's.
    pub fn open(out: &Path, header: &Header) -> Result<Self, RolloutsError> {
        let path = part_of(out);
        let failed = |source| RolloutsError::File { path: path.clone(), source };
        let mut file = open_locked(&path)?;
        let first = serde_json::to_string(header).map_err(io::Error::from).map_err(failed)? + "\n";
        let (rollouts, end) = read(&file, &path, header)?;
        file.set_len(end).map_err(failed)?;
        file.seek(SeekFrom::Start(end)).map_err(failed)?;
        let mut journal = Self { path: path.clone(), out: BufWriter::new(file), rollouts };
        if end == 0 {
            journal.out.write_all(first.as_bytes()).map_err(failed)?;
            journal.flush()?;
        }
        Ok(journal)
    }

    /// What there is so far, in no order. Its header is that of the run that began, whose command may have been
    /// worded otherwise.
    pub fn rollouts(&self) -> &Rollouts {
        &self.rollouts
    }

    /// Adds a rollout. It is safe from a kill after [`Journal::flush`].
    ///
    /// # Errors
    /// The system's.
    pub fn append(&mut self, rollout: Rollout) -> Result<(), RolloutsError> {
        let written = serde_json::to_writer(&mut self.out, &rollout).map_err(io::Error::from);
        let written = written.and_then(|()| self.out.write_all(b"\n"));
        written.map_err(|source| RolloutsError::File { path: self.path.clone(), source })?;
        self.rollouts.all.push(rollout);
        Ok(())
    }

    /// Hands everything over to the system.
    ///
    /// # Errors
    /// The system's.
    pub fn flush(&mut self) -> Result<(), RolloutsError> {
        self.out.flush().map_err(|source| RolloutsError::File { path: self.path.clone(), source })
    }

    /// Removes the journal, whose file is written.
    ///
    /// # Errors
    /// The system's.
    pub fn remove(self) -> Result<(), RolloutsError> {
        // Still locked: nobody takes up what is on its way out.
        fs::remove_file(&self.path).map_err(|source| RolloutsError::File { path: self.path.clone(), source })
    }
}

/// Opens the file, or makes it, and locks it. What another process removed in the meantime is not it any more.
fn open_locked(path: &Path) -> Result<File, RolloutsError> {
    let failed = |source| RolloutsError::File { path: path.to_path_buf(), source };
    if fs::metadata(path).is_ok_and(|about| !about.is_file()) {
        let reason = "no regular file".to_owned();
        return Err(RolloutsError::NotAJournal { path: path.to_path_buf(), reason });
    }
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).create(true).truncate(false).open(path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(fs::TryLockError::WouldBlock) => return Err(RolloutsError::Busy { path: path.to_path_buf() }),
        Err(fs::TryLockError::Error(source)) => return Err(failed(source)),
    }
    let (ours, named) = (file.metadata().map_err(failed)?, fs::metadata(path));
    if named.is_ok_and(|named| same_file(&ours, &named)) {
        return Ok(file);
    }
    Err(RolloutsError::Busy { path: path.to_path_buf() })
}

fn same_file(one: &fs::Metadata, other: &fs::Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}

/// What a journal holds, and the length of its whole lines; 0 where not even its first line is whole.
fn read(file: &File, path: &Path, header: &Header) -> Result<(Rollouts, u64), RolloutsError> {
    let not_a_journal = |reason: String| RolloutsError::NotAJournal { path: path.to_path_buf(), reason };
    let (mut reader, mut line, mut end) = (BufReader::new(file), Vec::new(), 0);
    let mut next = |line: &mut Vec<u8>| -> Result<bool, RolloutsError> {
        line.clear();
        let read = Read::take(&mut reader, LINE_BYTES_MAX).read_until(b'\n', line);
        read.map_err(|source| RolloutsError::File { path: path.to_path_buf(), source })?;
        Ok(line.last() == Some(&b'\n'))
    };
    let mut rollouts = Rollouts { header: header.clone(), rewards: Vec::new(), all: Vec::new() };
    if !next(&mut line)? {
        // A run that was killed while it wrote its first line has left the beginning of one like ours, or nothing.
        let begun = line.len().min(HEADER_START.len());
        if HEADER_START.as_bytes()[..begun] == line[..begun] {
            return Ok((rollouts, 0));
        }
        return Err(not_a_journal("it does not begin with a header".to_owned()));
    }
    rollouts.header = serde_json::from_slice(&line).map_err(|error| not_a_journal(format!("line 1: {error}")))?;
    if let Some((what, theirs, ours)) = rollouts.header.difference(header) {
        return Err(RolloutsError::Journal { path: path.to_path_buf(), what, theirs, ours });
    }
    end += line.len() as u64;
    let mut checker = Checker::new(header, &[]).map_err(not_a_journal)?;
    for number in 2.. {
        if !next(&mut line)? {
            break;
        }
        let refused =
            |reason: String| RolloutsError::Rollout { path: path.to_path_buf(), place: "line", number, reason };
        let rollout: Rollout = serde_json::from_slice(&line).map_err(|error| refused(error.to_string()))?;
        checker.check(&rollout).map_err(refused)?;
        rollouts.all.push(rollout);
        end += line.len() as u64;
    }
    Ok((rollouts, end))
}
