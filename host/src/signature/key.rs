//! Keys: as one line of text, and the private ones in files that only their user can read.
//!
//! A public key is `ed25519:` and 64 hexadecimal digits, and is its own name: nothing is shortened that two keys could
//! share. A private key is a file of one line, made whole under its name and never overwritten; one that others can
//! read is refused, because they may have read it.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use ed25519_dalek::{Signer, SigningKey, VerifyingKey};

use super::bytes_of;
use crate::files;
use crate::hex::hexadecimal;

/// How a public key begins.
const PUBLIC: &str = "ed25519:";

/// How a private key's file begins: nothing that could be taken for a public key.
const PRIVATE: &str = "vassal-private-key-1 ";

/// The permissions that a private key may not give: any to the group or to others.
const NOT_THE_USERS: u32 = 0o077;

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// A text that is no public key.
    #[error("a public key is `ed25519:` and 64 lower-case hexadecimal digits, got {given}")]
    NotPublic {
        /// What was given, as far as it may be shown.
        given: &'static str,
    },
    /// A file that is no private key.
    #[error("key {path}: not a private key of `vassal policy keygen`")]
    NotPrivate {
        /// Which.
        path: PathBuf,
    },
    /// A private key that others can read.
    #[error("key {path}: others than its user have access (mode {mode:o}): make another, or `chmod 600` it")]
    Exposed {
        /// Which.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// A private key's name is taken.
    #[error("key {path}: there is such a file, and a key is never overwritten")]
    Exists {
        /// Which.
        path: PathBuf,
    },
    /// A file cannot be read or written.
    #[error("key {path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
    /// The system has no random bytes to give.
    #[error("no key can be made: the system gives no random bytes")]
    NoRandomness,
}

/// Whom a signature is by.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PublicKey(VerifyingKey);

impl PublicKey {
    pub(super) fn bytes(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }

    pub(super) fn verifying(&self) -> &VerifyingKey {
        &self.0
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{PUBLIC}{}", hexadecimal(self.bytes()))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let refuse = |given| KeyError::NotPublic { given };
        if text.starts_with(PRIVATE.trim_end()) {
            return Err(refuse("a private key, which is nobody's to read"));
        }
        let bytes = text.strip_prefix(PUBLIC).and_then(bytes_of).ok_or_else(|| refuse("something else"))?;
        let key = VerifyingKey::from_bytes(&bytes).map_err(|_| refuse("digits that are no point of the curve"))?;
        // Signatures that hold for many messages could be made for such a key by anybody.
        if key.is_weak() { Err(refuse("a point of small order")) } else { Ok(Self(key)) }
    }
}

/// What signs. Its memory is cleared when it is dropped.
pub struct PrivateKey(SigningKey);

impl PrivateKey {
    /// Makes a key of the system's random bytes and writes its file.
    ///
    /// # Errors
    /// [`KeyError::Exists`] where the name is taken; the file's.
    pub fn make(path: &Path) -> Result<Self, KeyError> {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(|_| KeyError::NoRandomness)?;
        let key = Self(SigningKey::from_bytes(&seed));
        key.write(path)?;
        Ok(key)
    }

    /// Written whole under a temporary name, then linked to its own, which fails where that is taken.
    fn write(&self, path: &Path) -> Result<(), KeyError> {
        let failed = |source: io::Error| KeyError::File { path: path.to_owned(), source };
        // Before the temporary file: a device or a folder under this name is no reason to write one.
        if path.symlink_metadata().is_ok() {
            return Err(KeyError::Exists { path: path.to_owned() });
        }
        let mut part = path.as_os_str().to_owned();
        part.push(format!(".{}.part", std::process::id()));
        let part = PathBuf::from(part);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&part).map_err(failed)?;
        let text = format!("{PRIVATE}{}\n", hexadecimal(self.0.as_bytes()));
        let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_all());
        let linked = written.and_then(|()| fs::hard_link(&part, path));
        let _ = fs::remove_file(&part);
        linked.map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => KeyError::Exists { path: path.to_owned() },
            _ => failed(source),
        })
    }

    /// Reads a key's file.
    ///
    /// # Errors
    /// [`KeyError::Exposed`], [`KeyError::NotPrivate`]; the file's.
    pub fn read(path: &Path) -> Result<Self, KeyError> {
        let failed = |source| KeyError::File { path: path.to_owned(), source };
        let file = files::open(path).map_err(failed)?;
        let mode = file.metadata().map_err(failed)?.mode() & 0o777;
        if mode & NOT_THE_USERS != 0 {
            return Err(KeyError::Exposed { path: path.to_owned(), mode });
        }
        let mut text = Vec::new();
        file.take(PRIVATE.len() as u64 + 66).read_to_end(&mut text).map_err(failed)?;
        let seed = std::str::from_utf8(&text).ok().and_then(|text| {
            let line = text.strip_suffix('\n').unwrap_or(text);
            bytes_of(line.strip_prefix(PRIVATE)?)
        });
        seed.map(|seed| Self(SigningKey::from_bytes(&seed)))
            .ok_or_else(|| KeyError::NotPrivate { path: path.to_owned() })
    }

    /// Its other half.
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key())
    }

    pub(super) fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign(message).to_bytes()
    }
}
