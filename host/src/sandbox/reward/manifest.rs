//! What a reward is, checked before anything relies on it.
//!
//! [`RewardManifest`] is what `describe` answered, after validation: its name fit for a command line and a file, its
//! range a range, its words cleaned. `RewardManifest::check` is the only way from the guest's record to this type.

use super::bindings;
use crate::sandbox::limits::Limits;
use crate::sandbox::manifest::{ManifestError, checked_name};
use crate::sandbox::words::clean;

/// A reward's manifest, validated.
#[derive(Debug, Clone, PartialEq)]
pub struct RewardManifest {
    /// The reward's name for itself: 1 to 64 bytes, each of a to z, 0 to 9 or `-`.
    pub name: String,
    /// Its version, cleaned.
    pub version: String,
    /// One line about it, cleaned.
    pub summary: String,
    /// The lowest score that there is; finite.
    pub minimum: f64,
    /// The highest, which is the best; finite, above the minimum.
    pub maximum: f64,
}

impl RewardManifest {
    /// Validates what `describe` answered.
    pub(super) fn check(raw: bindings::Manifest, limits: &Limits) -> Result<Self, ManifestError> {
        let bindings::Manifest { name, version, summary, minimum, maximum } = raw;
        let limit_bytes = limits.name_bytes;
        let letter = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if !((1..=limit_bytes).contains(&name.len()) && name.bytes().all(letter)) {
            return Err(ManifestError::RewardName { given: clean(&name, limit_bytes), limit_bytes });
        }
        if !(minimum.is_finite() && maximum.is_finite() && minimum < maximum) {
            return Err(ManifestError::RewardRange { minimum, maximum });
        }
        let version = checked_name("the reward's version", &version, limits.version_bytes)?;
        Ok(Self { name, version, summary: clean(&summary, limits.summary_bytes), minimum, maximum })
    }

    /// The first part in which two manifests differ.
    pub(super) fn difference(&self, other: &Self) -> Option<&'static str> {
        let parts = [
            ("name", self.name == other.name),
            ("version", self.version == other.version),
            ("summary", self.summary == other.summary),
            ("minimum", self.minimum.to_bits() == other.minimum.to_bits()),
            ("maximum", self.maximum.to_bits() == other.maximum.to_bits()),
        ];
        parts.into_iter().find_map(|(part, equal)| (!equal).then_some(part))
    }
}
