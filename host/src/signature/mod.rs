//! Signatures of policies: who answers for these very bytes, and whom a tenant believes.
//!
//! A signature is Ed25519 over `message` and lies beside its component, in a file of the same name with `.sig` at
//! the end, a line of text a signer. It is checked before anything reads the component, so that what nobody
//! answers for costs one hash. `docs/security.md` says why it lies beside, and what it proves.
//!
//! - `key.rs`: keys as text and in files.
//! - `trust.rs`: whom a tenant trusts and until when. Start at [`TrustStore::check`].
//!
//! Not here: what a signed policy may do. A signature grants nothing.

pub mod key;
pub mod trust;

use std::path::{Path, PathBuf};

use ed25519_dalek::Signature as Ed25519;
use sha2::{Digest, Sha256};

pub use self::key::{KeyError, PrivateKey, PublicKey};
pub use self::trust::{SignatureError, SignatureFault, Signer, TrustStore, TrustedKey, Verdict};

use crate::error::Error;
use crate::files;
use crate::hex::hexadecimal;
use crate::sandbox::words::clean;
use crate::shipped;

/// How a line begins; another form is another number.
const FORMAT: &str = "vassal-signature-1";

/// What is signed begins so: a key that signs other things signs nothing that could be taken for this.
const DOMAIN: &[u8; 26] = b"vassal policy signature 1\0";

/// Signatures in one file at most: a policy has few signers, and each costs the host a check.
pub const SIGNATURES_MAX: usize = 16;

/// The longest file of signatures, bytes: room for as many lines as are allowed.
pub const FILE_BYTES_MAX: usize = 4_096;

/// The latest time that a signature may bear, seconds since 1970: the year 9999 ends. Every date has its four digits.
const SIGNED_MAX: u64 = 253_402_300_799;

/// One signature, not checked yet: foreign input in its right form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    /// Whose it claims to be.
    pub key: PublicKey,
    /// When it was made, seconds since 1970, by its signer's clock.
    pub signed_unix: u64,
    bytes: [u8; 64],
}

/// What a signature is of: the domain, the component's SHA-256, the signer's key, and the time of signing as a
/// little-endian 64-bit number. All have fixed lengths, so no two contents give one message.
fn message(component_sha256: &[u8; 32], key: &PublicKey, signed_unix: u64) -> Vec<u8> {
    [DOMAIN.as_slice(), component_sha256, key.bytes(), &signed_unix.to_le_bytes()].concat()
}

impl Signature {
    /// Signs a component's bytes. `now_unix` is in seconds since 1970.
    pub fn of(component: &[u8], key: &PrivateKey, now_unix: u64) -> Self {
        let (public, signed_unix) = (key.public(), now_unix.min(SIGNED_MAX));
        let message = message(&Sha256::digest(component).into(), &public, signed_unix);
        Self { key: public, signed_unix, bytes: key.sign(&message) }
    }

    /// Whether its key made it of this component, with this time. Strictly: one form of each signature, and none under
    /// keys of small order, which would hold for many messages.
    pub fn holds(&self, component_sha256: &[u8; 32]) -> bool {
        let message = message(component_sha256, &self.key, self.signed_unix);
        self.key.verifying().verify_strict(&message, &Ed25519::from_bytes(&self.bytes)).is_ok()
    }

    /// Its line, newline included.
    pub fn line(&self) -> String {
        format!("{FORMAT} {} {} {}\n", self.key, self.signed_unix, hexadecimal(&self.bytes))
    }

    /// Reads a line without its newline; else what is accepted in place of what is there.
    fn parse(line: &str) -> Result<Self, &'static str> {
        let words: Vec<&str> = line.splitn(5, ' ').collect();
        let [format, key, signed, bytes] = words[..] else {
            return Err("four words: the format, a public key, seconds since 1970 and a signature");
        };
        if format != FORMAT {
            return Err("a line that begins with vassal-signature-1");
        }
        let key = key.parse().map_err(|_| "a public key after the format: ed25519: and 64 hexadecimal digits")?;
        // One text a number, as everywhere in this file.
        let signed_unix = signed.parse().ok().filter(|&unix: &u64| unix <= SIGNED_MAX && unix.to_string() == signed);
        let signed_unix = signed_unix.ok_or("seconds since 1970 after the key, up to the year 9999")?;
        let bytes = bytes_of(bytes).ok_or("a signature of 128 hexadecimal digits at the end")?;
        Ok(Self { key, signed_unix, bytes })
    }
}

/// Reads a file of signatures: within its bounds, and nothing but signatures. Nothing is checked yet.
///
/// # Errors
/// The first thing that is not a signature, or too much of it.
pub fn parse(file: &[u8]) -> Result<Vec<Signature>, SignatureFault> {
    if file.len() > FILE_BYTES_MAX {
        return Err(SignatureFault::TooLarge { bytes: file.len() });
    }
    let mut signatures = Vec::new();
    for (place, line) in String::from_utf8_lossy(file).lines().enumerate() {
        if place == SIGNATURES_MAX {
            return Err(SignatureFault::TooMany);
        }
        let malformed =
            |accepted| SignatureFault::Malformed { line: place + 1, accepted, given: clean(line, GIVEN_BYTES) };
        signatures.push(Signature::parse(line).map_err(malformed)?);
    }
    Ok(signatures)
}

/// What an error shows of a line, bytes.
const GIVEN_BYTES: usize = 40;

/// Where a component's signatures lie.
pub fn path_of(component: &Path) -> PathBuf {
    let mut path = component.as_os_str().to_owned();
    path.push(".sig");
    path.into()
}

/// The signatures of a policy by its shipped name or path, as [`beside`]; what is shipped has none.
///
/// # Errors
/// As [`beside`].
pub fn find(policy: &str) -> Result<Option<Vec<u8>>, Error> {
    if shipped::component(policy).is_some() { Ok(None) } else { beside(Path::new(policy)) }
}

/// The bytes of the signatures beside a component; none where there is no such file.
///
/// # Errors
/// The file's, where there is one. One that is too long is not read to its end.
pub fn beside(component: &Path) -> Result<Option<Vec<u8>>, Error> {
    let path = path_of(component);
    let failed = |source| Error::File { what: "signatures", path: path.display().to_string(), source };
    match files::read(&path, FILE_BYTES_MAX) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        read => read.map(Some).map_err(failed),
    }
}

/// Writes the signatures beside a component: under a temporary name, then renamed.
///
/// # Errors
/// The file's.
pub fn write(component: &Path, signatures: &[Signature]) -> Result<PathBuf, Error> {
    let path = path_of(component);
    let text: String = signatures.iter().map(Signature::line).collect();
    match files::replace(&path, text.as_bytes()) {
        Ok(()) => Ok(path),
        Err(source) => Err(Error::File { what: "signatures", path: path.display().to_string(), source }),
    }
}

/// The bytes of `N` pairs of lower-case hexadecimal digits.
fn bytes_of<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if pairs.len() != N || !rest.is_empty() {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
        *byte = digit(*high)? << 4 | digit(*low)?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests;
