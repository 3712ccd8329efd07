//! Machine code kept in a folder, so that a component is compiled once a machine and version.
//!
//! An entry's name is the component's hash and the settings' digest, which covers the runtime's version, the
//! instruction set and all that changes code; its contents are sealed with a key that lies beside the folder,
//! readable by the user alone. What does not open (damaged, cut short, of another component under this name, under
//! another key) is not there. Files appear under their names complete, by renaming; two processes may share the
//! folder; whoever deletes the folder or the key, at any time, only makes the next load slower. Errors
//! of the disk are never a load's.

use super::seal::{Authentic, KEY_BYTES, Key, SEAL_BYTES, Subject};
use crate::hex::hexadecimal;
use crate::sandbox::limits::Limits;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

/// The folder's name, and the key's beside it.
const FOLDER: &str = "policy-cache";
const KEY: &str = "policy-cache.key";

/// How entries and files that are being written end.
const ENTRY: &str = "code";
const PART: &str = "part";

/// A part this old was left by a process that died.
const STALE: Duration = Duration::from_secs(3_600);

pub(super) struct Cache {
    folder: PathBuf,
    key: PathBuf,
    /// All entries together.
    bytes_max: u64,
    /// One entry.
    entry_bytes_max: u64,
}

impl Cache {
    /// The cache below this folder; nothing is made yet.
    pub(super) fn below(home: &Path, limits: &Limits) -> Self {
        Self {
            folder: home.join(FOLDER),
            key: home.join(KEY),
            bytes_max: limits.cache_bytes,
            entry_bytes_max: (limits.code_bytes + SEAL_BYTES) as u64,
        }
    }

    /// The entry of this subject, if there is one that can be trusted.
    pub(super) fn get(&self, subject: &Subject) -> Option<Authentic> {
        let key = self.read_key()?;
        let mut message = Vec::new();
        let file = File::open(self.path(subject)).ok()?;
        file.take(self.entry_bytes_max + 1).read_to_end(&mut message).ok()?;
        key.open(subject, message)
    }

    /// Keeps an entry, and drops the oldest where all are too large together.
    pub(super) fn put(&self, subject: &Subject, code: &Authentic) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
        let key = self.key()?;
        let part = self.write_part(&self.folder, &key.seal(subject, code.code()))?;
        let done = fs::rename(&part, self.path(subject));
        if done.is_err() {
            let _ = fs::remove_file(&part);
        }
        done?;
        self.drop_oldest()
    }

    fn path(&self, subject: &Subject) -> PathBuf {
        // Half of the settings' digest tells settings apart; the seal compares all of it.
        let (component, settings) = (hexadecimal(&subject.component), hexadecimal(&subject.settings[..16]));
        self.folder.join(format!("{component}-{settings}.{ENTRY}"))
    }

    /// The key, if there is one that nobody else can read or has put there.
    fn read_key(&self) -> Option<Key> {
        let mut file = File::open(&self.key).ok()?;
        let about = file.metadata().ok()?;
        let private = about.mode() & 0o077 == 0 && about.uid() == rustix::process::geteuid().as_raw();
        if !about.is_file() || !private || about.len() != KEY_BYTES as u64 {
            return None;
        }
        let mut bytes = [0; KEY_BYTES];
        file.read_exact(&mut bytes).ok()?;
        Some(Key::from_bytes(bytes))
    }

    /// The key, made where there is none that can be used.
    fn key(&self) -> io::Result<Key> {
        if let Some(key) = self.read_key() {
            return Ok(key);
        }
        let key = Key::random().ok_or(io::ErrorKind::Unsupported)?;
        let home = self.key.parent().unwrap_or(Path::new("."));
        let part = self.write_part(home, key.bytes())?;
        // A link fails where another process was first; its key is then everybody's.
        let mut made = fs::hard_link(&part, &self.key);
        if made.is_err() && self.read_key().is_none() {
            // What is there is no key: cut short, or open to others.
            made = fs::rename(&part, &self.key);
        }
        let _ = fs::remove_file(&part);
        self.read_key().ok_or_else(|| made.err().unwrap_or(io::ErrorKind::PermissionDenied.into()))
    }

    /// A new file with these contents, readable by the user alone.
    fn write_part(&self, folder: &Path, contents: &[u8]) -> io::Result<PathBuf> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = folder.join(format!("policy-{}-{count}.{PART}", std::process::id()));
        let _ = fs::remove_file(&path);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        let done = file.write_all(contents);
        if done.is_err() {
            let _ = fs::remove_file(&path);
        }
        done.map(|()| path)
    }

    fn drop_oldest(&self) -> io::Result<()> {
        let mut entries = Vec::new();
        for file in fs::read_dir(&self.folder)?.flatten() {
            let (path, Ok(about)) = (file.path(), file.metadata()) else { continue };
            let written = about.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            let ending = path.extension().and_then(|ending| ending.to_str());
            match ending {
                Some(ENTRY) => entries.push((written, about.len(), path)),
                Some(PART) if written.elapsed().is_ok_and(|age| age > STALE) => drop(fs::remove_file(path)),
                _ => {}
            }
        }
        entries.sort();
        let mut total: u64 = entries.iter().map(|entry| entry.1).sum();
        for (_, bytes, path) in entries {
            if total <= self.bytes_max {
                break;
            }
            // Another process may have been first.
            let _ = fs::remove_file(path);
            total = total.saturating_sub(bytes);
        }
        Ok(())
    }
}
