//! Journals: what a long command has done so far, a line each, so that it can be killed and go on.
//!
//! A line is JSON, a tab, and the first 16 digits of the JSON's SHA-256, so that a line that was damaged or changed is told
//! and not taken for work. The first one says what work it is. A line counts once its newline is there; what a kill left after the
//! last one is cut off. A journal is locked while a process has it open, and a file that is none is left as it is.
//! Start at [`Journal::open`].

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufRead, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use crate::hex::hexadecimal;

/// Digits of a line's hash.
const DIGITS: usize = 16;

/// Why a journal cannot be used. Lines count from 1.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Reading or writing failed.
    #[error("journal {path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
    /// Another process has it open.
    #[error("{path}: another process is at work on it")]
    Busy {
        /// The file.
        path: PathBuf,
    },
    /// What stands in its place is none.
    #[error(
        "{path} is in the way and not what a command ended before its time would leave ({reason}): move or delete it"
    )]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A line that is not as it was written, or that no command wrote.
    #[error("{path}, line {line}: {reason}: delete the file to start over")]
    Line {
        /// The file.
        path: PathBuf,
        /// Which.
        line: usize,
        /// What is wrong.
        reason: String,
    },
}

/// What its owner says of a line that it cannot use.
pub type Refused = String;

/// A journal, open and locked.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    out: BufWriter<File>,
}

/// A line of a journal, newline and all.
///
/// # Errors
/// What cannot be written as JSON.
pub fn line(value: &impl Serialize) -> io::Result<String> {
    let json = serde_json::to_string(value)?;
    Ok(format!("{json}\t{}\n", digits(&json)))
}

fn digits(json: &str) -> String {
    let mut digits = hexadecimal(&Sha256::digest(json.as_bytes()));
    digits.truncate(DIGITS);
    digits
}

/// The JSON of a whole line.
fn content(line: &[u8]) -> Result<&str, Refused> {
    let text = std::str::from_utf8(line).map_err(|error| error.to_string())?;
    let (json, hash) = text.trim_end_matches('\n').rsplit_once('\t').ok_or("no hash at its end")?;
    if digits(json) == hash { Ok(json) } else { Err("it is not as it was written".to_owned()) }
}

impl Journal {
    /// Opens the journal of the work that `header` names, or begins it; its first line begins with `begins`, and a line has at most
    /// `bytes_max`. `other` says of the header that is there whether it is of other work; `each` is told every further line.
    /// The header that is there comes back.
    ///
    /// # Errors
    /// What `other` says, and [`JournalError`]; what `each` refuses becomes [`JournalError::Line`]. Nothing is changed then.
    pub fn open<H, E>(
        path: &Path,
        (begins, bytes_max): (&str, u64),
        header: &H,
        other: impl Fn(&H) -> Option<E>,
        mut each: impl FnMut(&str) -> Result<(), Refused>,
    ) -> Result<(Self, H), E>
    where
        H: Serialize + DeserializeOwned + Clone,
        E: From<JournalError>,
    {
        let failed = |source| JournalError::File { path: path.to_path_buf(), source };
        let foreign = |reason: String| JournalError::Foreign { path: path.to_path_buf(), reason };
        let mut file = open_locked(path)?;
        let (mut reader, mut read, mut end, mut there) = (BufReader::new(&file), Vec::new(), 0, None);
        for line in 1.. {
            read.clear();
            Read::take(&mut reader, bytes_max).read_until(b'\n', &mut read).map_err(failed)?;
            if line == 1 {
                // A run that was killed while it wrote its first line has left the beginning of one like ours, or nothing.
                let begun = read.len().min(begins.len());
                if begins.as_bytes()[..begun] != read[..begun] {
                    return Err(foreign("it does not begin with a header".to_owned()).into());
                }
            }
            let refused = |reason| JournalError::Line { path: path.to_path_buf(), line, reason };
            if read.last() != Some(&b'\n') {
                if read.len() as u64 == bytes_max {
                    return Err(refused(format!("a line has at most {bytes_max} bytes")).into());
                }
                break;
            }
            if line == 1 {
                let parsed = |json: &str| serde_json::from_str(json).map_err(|error| error.to_string());
                let found = content(&read).and_then(parsed).map_err(|reason| foreign(format!("line 1: {reason}")))?;
                if let Some(error) = other(&found) {
                    return Err(error);
                }
                there = Some(found);
            } else {
                content(&read).and_then(&mut each).map_err(refused)?;
            }
            end += read.len() as u64;
        }
        drop(reader);
        file.set_len(end).map_err(failed)?;
        file.seek(SeekFrom::Start(end)).map_err(failed)?;
        let mut journal = Self { path: path.to_path_buf(), out: BufWriter::new(file) };
        let header = match there {
            Some(there) => there,
            None => {
                journal.add(header)?;
                journal.flush()?;
                header.clone()
            }
        };
        Ok((journal, header))
    }

    /// Adds a line. It is safe from a kill after [`Journal::flush`].
    ///
    /// # Errors
    /// The system's.
    pub fn add(&mut self, value: &impl Serialize) -> Result<(), JournalError> {
        let written = line(value).and_then(|line| self.out.write_all(line.as_bytes()));
        written.map_err(|source| JournalError::File { path: self.path.clone(), source })
    }

    /// Hands everything over to the system.
    ///
    /// # Errors
    /// The system's.
    pub fn flush(&mut self) -> Result<(), JournalError> {
        self.out.flush().map_err(|source| JournalError::File { path: self.path.clone(), source })
    }

    /// Removes the journal, whose work is done.
    ///
    /// # Errors
    /// The system's.
    pub fn remove(self) -> Result<(), JournalError> {
        // Still locked: nobody takes up what is on its way out.
        fs::remove_file(&self.path).map_err(|source| JournalError::File { path: self.path.clone(), source })
    }
}

/// Opens the file, or makes it, and locks it. What another process removed in the meantime is not it any more.
fn open_locked(path: &Path) -> Result<File, JournalError> {
    let failed = |source| JournalError::File { path: path.to_path_buf(), source };
    if fs::metadata(path).is_ok_and(|about| !about.is_file()) {
        return Err(JournalError::Foreign { path: path.to_path_buf(), reason: "no regular file".to_owned() });
    }
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).create(true).truncate(false).open(path).map_err(failed)?;
    if lock(&file, path).map_err(failed)? {
        return Ok(file);
    }
    Err(JournalError::Busy { path: path.to_path_buf() })
}

/// Locks an open file, if no other process has, and if it is still the one of its name.
pub(crate) fn lock(file: &File, path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(false),
        Err(TryLockError::Error(source)) => return Err(source),
    }
    let ours = file.metadata()?;
    Ok(fs::metadata(path).is_ok_and(|named| (named.dev(), named.ino()) == (ours.dev(), ours.ino())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened(path: &Path) -> Result<(Journal, Vec<String>), JournalError> {
        let (work, mut lines) = (serde_json::json!({"work": 1}), Vec::new());
        let there = path.exists() && fs::read(path).is_ok_and(|bytes| bytes.contains(&b'\n'));
        let (journal, header) = Journal::open(
            path,
            ("{\"work\"", 64),
            &work,
            |_| None::<JournalError>,
            |line| {
                lines.push(line.to_owned());
                if line == "9" { Err("no nine".into()) } else { Ok(()) }
            },
        )?;
        if there {
            lines.insert(0, header.to_string());
        }
        Ok((journal, lines))
    }

    #[test]
    fn lines_are_whole_and_unchanged_or_told() {
        let folder = std::env::temp_dir().join(format!("vassal-lines-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("a temporary folder");
        let path = folder.join("journal");
        let (mut journal, _) = opened(&path).expect("begun");
        journal.add(&"a\tb").and_then(|()| journal.add(&2)).and_then(|()| journal.flush()).expect("written");
        assert!(opened(&path).expect_err("locked").to_string().contains("another process"));
        drop(journal);
        let whole = fs::read(&path).expect("a journal");
        for end in 0..=whole.len() {
            fs::write(&path, &whole[..end]).expect("written");
            let (_, lines) = opened(&path).expect("taken up");
            assert_eq!(lines.len(), whole[..end].iter().filter(|&&byte| byte == b'\n').count(), "cut at {end}");
        }
        for place in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[place] ^= 1;
            fs::write(&path, &damaged).expect("written");
            match opened(&path) {
                Err(_) => assert_eq!(fs::read(&path).expect("kept"), damaged, "a refused file is left as it is"),
                // A last newline that is gone is a line that was cut short, whatever stands in its place.
                Ok((_, lines)) => {
                    assert!(place == whole.len() - 1 && lines.len() == 2, "changed at {place}: {lines:?}")
                }
            }
        }
        let refused = |text: String, expected: &str| {
            fs::write(&path, &text).expect("written");
            let error = opened(&path).expect_err(expected).to_string();
            assert!(error.contains(expected), "{error}");
            assert_eq!(fs::read_to_string(&path).expect("kept"), text);
        };
        let first = String::from_utf8(whole).expect("text").lines().next().expect("a line").to_owned() + "\n";
        refused("my notes".into(), "does not begin with a header");
        refused("x".repeat(80), "does not begin with a header");
        refused("{\"work\": 1}\n".into(), "line 1: no hash");
        refused(first.clone() + &line(&9).expect("a line"), "line 2: no nine");
        refused(first + &"x".repeat(64), "line 2: a line has at most 64 bytes");
        fs::remove_file(&path).and_then(|()| fs::create_dir(&path)).expect("a folder in the way");
        assert!(opened(&path).expect_err("a folder").to_string().contains("no regular file"));
        fs::remove_dir_all(&folder).expect("removed");
    }
}
