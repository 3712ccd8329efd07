//! `[signatures]` of a configuration: the keys that a tenant trusts, each with the last day on which it is trusted, and
//! whether a policy may be loaded without a signature by one of them. Whoever writes the table asks for
//! signatures, unless it says `required = false`.

use serde::Deserialize;
use time::{Date, Month};
use toml::Spanned;

use super::{ConfigError, Source};
use crate::signature::{KeyError, PublicKey, TrustStore, TrustedKey};

/// The most keys of a tenant.
const KEYS_MAX: usize = 64;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct RawSignatures {
    required: Option<bool>,
    #[serde(default)]
    keys: Vec<Spanned<RawKey>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RawKey {
    name: Spanned<String>,
    key: Spanned<String>,
    expires: Spanned<toml::value::Date>,
}

impl Source<'_> {
    /// Nobody is trusted and no signature is asked for where there is no table.
    pub(super) fn trust(&self, raw: Option<RawSignatures>) -> Result<TrustStore, ConfigError> {
        let Some(raw) = raw else { return Ok(TrustStore::default()) };
        let mut keys: Vec<TrustedKey> = Vec::new();
        for entry in &raw.keys {
            if keys.len() == KEYS_MAX {
                let (accepted, given) = (format!("at most {KEYS_MAX}"), raw.keys.len().to_string());
                return Err(self.refuse(entry, "the number of keys", accepted, given));
            }
            let found = self.key(entry.get_ref())?;
            if let Some(other) = keys.iter().find(|other| other.key == found.key || other.name == found.name) {
                let accepted = "another key under another name than those before".to_owned();
                return Err(self.refuse(entry, "a key", accepted, format!("that of {:?} again", other.name)));
            }
            keys.push(found);
        }
        Ok(TrustStore { required: raw.required.unwrap_or(true), keys })
    }

    fn key(&self, raw: &RawKey) -> Result<TrustedKey, ConfigError> {
        let name = self.name("a key's name", &raw.name)?;
        let key = raw.key.get_ref().parse::<PublicKey>().map_err(|error| {
            let accepted = "`ed25519:` and 64 lower-case hexadecimal digits".to_owned();
            // Not what is there: it may be a secret, in the wrong place.
            let given = if let KeyError::NotPublic { given } = error { given } else { "something else" };
            self.refuse(&raw.key, "a key", accepted, given.to_owned())
        })?;
        let date = raw.expires.get_ref();
        let month = Month::try_from(date.month);
        let expires = month.and_then(|month| Date::from_calendar_date(date.year.into(), month, date.day));
        let expires = expires
            .map_err(|_| self.refuse(&raw.expires, "expires", "a date like 2027-06-30".to_owned(), date.to_string()))?;
        Ok(TrustedKey { name, key, expires })
    }
}
