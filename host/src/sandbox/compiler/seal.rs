//! Machine code under a seal: proof that whoever had the key made it, of this component, for these settings.
//!
//! A sealed message is `MAGIC`, the component's SHA-256, the digest of the settings, the code, and an
//! HMAC-SHA-256 of all that. [`Authentic`] can only be had by opening a seal, and is all that is ever
//! deserialised. Two kinds of keys exist: one for each child, which lives as long as it, and the cache's.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// The form of the message; another form is another number.
const MAGIC: &[u8; 16] = b"vassal-code-0001";

/// Bytes of a key and of a tag.
pub(super) const KEY_BYTES: usize = 32;

/// Bytes of a sealed message beside the code.
pub(super) const SEAL_BYTES: usize = MAGIC.len() + 3 * 32;

/// What machine code is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::sandbox) struct Subject {
    /// The component's SHA-256.
    pub(in crate::sandbox) component: [u8; 32],
    /// The digest of all that decides whether this process can run it: see `config::settings_digest`.
    pub(in crate::sandbox) settings: [u8; 32],
}

/// A secret.
pub(super) struct Key([u8; KEY_BYTES]);

/// Machine code whose seal was opened.
pub(in crate::sandbox) struct Authentic {
    message: Vec<u8>,
}

impl std::fmt::Debug for Authentic {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} bytes of machine code", self.code().len())
    }
}

impl Authentic {
    /// The code.
    pub(in crate::sandbox) fn code(&self) -> &[u8] {
        &self.message[SEAL_BYTES - 32..self.message.len() - 32]
    }
}

impl Key {
    /// A new one, from the system; none where the system has none to give.
    pub(super) fn random() -> Option<Self> {
        let mut bytes = [0; KEY_BYTES];
        getrandom::fill(&mut bytes).ok()?;
        Some(Self(bytes))
    }

    pub(super) fn from_bytes(bytes: [u8; KEY_BYTES]) -> Self {
        Self(bytes)
    }

    pub(super) fn bytes(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }

    fn mac(&self, message: &[u8]) -> Hmac<Sha256> {
        // HMAC fills a short key up to a block with zeros.
        let mut block = [0; 64];
        block[..KEY_BYTES].copy_from_slice(&self.0);
        let mut mac = Hmac::new(&block.into());
        mac.update(message);
        mac
    }

    /// The sealed message.
    pub(super) fn seal(&self, subject: &Subject, code: &[u8]) -> Vec<u8> {
        let mut message = Vec::with_capacity(SEAL_BYTES + code.len());
        for part in [MAGIC.as_slice(), &subject.component, &subject.settings, code] {
            message.extend_from_slice(part);
        }
        let tag = self.mac(&message).finalize().into_bytes();
        message.extend_from_slice(&tag);
        message
    }

    /// The code, if this key sealed it and it is of this subject. Tags are compared in constant time.
    pub(super) fn open(&self, subject: &Subject, message: Vec<u8>) -> Option<Authentic> {
        if message.len() < SEAL_BYTES {
            return None;
        }
        let (sealed, tag) = message.split_at(message.len() - 32);
        self.mac(sealed).verify_slice(tag).ok()?;
        let expected = [MAGIC.as_slice(), &subject.component, &subject.settings].concat();
        sealed.starts_with(&expected).then_some(Authentic { message })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seal_opens_with_its_key_for_its_subject_and_unchanged() {
        let key = Key::random().unwrap();
        let subject = Subject { component: [1; 32], settings: [2; 32] };
        let message = key.seal(&subject, b"code");
        assert_eq!(key.open(&subject, message.clone()).unwrap().code(), b"code");
        assert!(key.open(&subject, key.seal(&subject, b"")).unwrap().code().is_empty());
        assert!(Key::random().unwrap().open(&subject, message.clone()).is_none());
        assert!(key.open(&Subject { component: [3; 32], ..subject }, message.clone()).is_none());
        assert!(key.open(&Subject { settings: [3; 32], ..subject }, message.clone()).is_none());
        for place in 0..message.len() {
            let mut flipped = message.clone();
            flipped[place] ^= 1;
            assert!(key.open(&subject, flipped).is_none(), "byte {place}");
            assert!(key.open(&subject, message[..place].to_vec()).is_none(), "{place} bytes");
        }
    }
}
