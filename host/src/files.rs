//! Files of the caller's: opened only where they are files, replaced in one step or not at all.
//!
//! Whoever can write a folder may have put a pipe or a link where a file should be. A pipe would be waited for until
//! somebody writes, and a link written through; neither happens here. What is locked, chained or appended to
//! (`host/src/audit/log.rs`, `host/src/sandbox/compiler/cache.rs`, the downloads) has its own ways.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// Opens a regular file for reading.
///
/// # Errors
/// The system's; of kind [`io::ErrorKind::InvalidInput`] for what is there and is no file.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    is_regular(&fs::metadata(path)?)?;
    File::open(path)
}

/// Reads a regular file, and of one that is longer than `most` bytes no more than one byte beyond, by which it is refused.
///
/// # Errors
/// As [`open`].
pub(crate) fn read(path: &Path, most: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open(path)?.take(most as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Writes a file under a temporary name beside `path`, and renames it: nobody sees it in part.
///
/// # Errors
/// The system's, and as [`open`] where something else than a file is there. What stood there stands then, and nothing is
/// left over.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if let Ok(about) = fs::metadata(path) {
        is_regular(&about)?;
    }
    let mut part = path.as_os_str().to_owned();
    part.push(format!(".{}.part", std::process::id()));
    let part = PathBuf::from(part);
    let mut file = OpenOptions::new().write(true).create_new(true).open(&part)?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    written.and_then(|()| fs::rename(&part, path)).inspect_err(|_| {
        // The error at hand matters more than a leftover that its name gives away.
        let _ = fs::remove_file(&part);
    })
}

fn is_regular(about: &fs::Metadata) -> io::Result<()> {
    if about.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    let refuse = || io::Error::new(io::ErrorKind::InvalidInput, "not a regular file");
    if about.is_file() { Ok(()) } else { Err(refuse()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_what_is_none_is_left_alone() {
        let folder = std::env::temp_dir().join(format!("vassal-files-{}", std::process::id()));
        fs::create_dir_all(folder.join("folder")).unwrap();
        let path = folder.join("file");
        replace(&path, b"one").unwrap();
        replace(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(replace(&folder.join("folder"), b"x").unwrap_err().kind(), io::ErrorKind::IsADirectory);
        assert_eq!(replace(Path::new("/dev/null"), b"x").unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert_eq!(open(Path::new("/dev/zero")).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert_eq!(read(Path::new("/dev/zero"), 9).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert_eq!([2, 3, 4].map(|most| read(&path, most).unwrap().len()), [3, 3, 3], "one byte beyond at most");
        assert_eq!(read(&path, 1).unwrap(), b"tw");
        assert_eq!(open(&folder.join("none")).unwrap_err().kind(), io::ErrorKind::NotFound);
        let left: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left.len(), 2, "{left:?}");
        fs::remove_dir_all(&folder).unwrap();
    }
}
