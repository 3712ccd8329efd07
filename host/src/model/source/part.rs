//! A file that is not complete yet: `NAME.part` beside `NAME`, hashed as it grows, renamed when it is whole.
//!
//! It knows files and hashes, not where the bytes come from: that is `download.rs`. What a killed process left
//! is taken up again by hashing it once more. Start at [`Part`].

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::download::{DownloadError, Fetch};
use crate::hex::hexadecimal;

/// A file that is not complete yet.
pub(super) struct Part {
    path: PathBuf,
    file: File,
    length: u64,
    hasher: Sha256,
}

impl Part {
    /// Opens `NAME.part` and reads what is there; without a checksum to tell mixtures, from the start.
    pub(super) fn open(fetch: &Fetch<'_>) -> Result<Part, DownloadError> {
        let mut part = Part::create(fetch.path)?;
        if fetch.sha256.is_none() {
            part.restart()?;
            return Ok(part);
        }
        let mut piece = vec![0; 1 << 18];
        loop {
            let count = part.file.read(&mut piece).map_err(disk(&part.path))?;
            if count == 0 {
                break;
            }
            part.hasher.update(&piece[..count]);
            part.length += count as u64;
        }
        if part.length > fetch.max_bytes {
            part.restart()?;
        }
        Ok(part)
    }

    /// Opens `NAME.part` without looking at what it holds.
    pub(super) fn create(path: &Path) -> Result<Part, DownloadError> {
        let path = part_path(path);
        let mut options = OpenOptions::new();
        options.create(true).read(true).append(true);
        let file = options.open(&path).map_err(disk(&path))?;
        Ok(Part { path, file, length: 0, hasher: Sha256::new() })
    }

    pub(super) fn restart(&mut self) -> Result<(), DownloadError> {
        self.file.set_len(0).map_err(disk(&self.path))?;
        self.length = 0;
        self.hasher = Sha256::new();
        Ok(())
    }

    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<(), DownloadError> {
        self.file.write_all(bytes).map_err(disk(&self.path))?;
        self.hasher.update(bytes);
        self.length += bytes.len() as u64;
        Ok(())
    }

    pub(super) fn length(&self) -> u64 {
        self.length
    }

    pub(super) fn sha256(&self) -> String {
        hexadecimal(&self.hasher.clone().finalize())
    }

    pub(super) fn discard(self) -> Result<(), DownloadError> {
        fs::remove_file(&self.path).map_err(disk(&self.path))
    }

    /// Gives the complete file its name: bytes first, then the name, then the folder.
    pub(super) fn finish(self, path: &Path) -> Result<(), DownloadError> {
        self.file.sync_all().map_err(disk(&self.path))?;
        fs::rename(&self.path, path).map_err(disk(path))?;
        if let Some(folder) = path.parent() {
            let folder_file = File::open(folder).map_err(disk(folder))?;
            folder_file.sync_all().map_err(disk(folder))?;
        }
        Ok(())
    }
}

/// `NAME.part` beside `NAME`.
pub(super) fn part_path(path: &Path) -> PathBuf {
    let mut name = OsString::from(path.as_os_str());
    name.push(".part");
    PathBuf::from(name)
}

pub(super) fn disk(path: &Path) -> impl FnOnce(io::Error) -> DownloadError {
    let path = path.to_owned();
    move |source| DownloadError::Disk { path, source }
}

/// SHA-256 of a file as lower-case hex, read in pieces.
pub(super) fn file_sha256(path: &Path) -> Result<String, DownloadError> {
    let mut file = File::open(path).map_err(disk(path))?;
    let mut hasher = Sha256::new();
    let mut piece = vec![0; 1 << 18];
    loop {
        let count = file.read(&mut piece).map_err(disk(path))?;
        if count == 0 {
            return Ok(hexadecimal(&hasher.finalize()));
        }
        hasher.update(&piece[..count]);
    }
}
