//! Settings given as text, resolved against a manifest.
//!
//! [`resolve`] starts from the initial values; [`apply`] lays one more layer on top (a tenant's
//! configuration, then a request's). An unknown name is answered with the near ones, a value out of range
//! with the range, and a setting that belongs to the tenant says so.

use super::limits::Limits;
use super::manifest::{Manifest, Scope, Setting, SettingKind, SettingValue};
use super::words::clean;
use crate::names::near_names;

/// Why a setting is refused.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SettingError {
    /// The manifest has no setting of this name.
    #[error("policy `{policy}` has no setting `{name}`{}", near_or_all(.near, .all))]
    Unknown {
        /// The policy.
        policy: String,
        /// The name given, cleaned.
        name: String,
        /// Names close to it.
        near: Vec<String>,
        /// All names.
        all: Vec<String>,
    },
    /// A request tried to turn a tenant's setting.
    #[error(
        "setting `{name}` of policy `{policy}` belongs to the tenant: a request cannot turn it"
    )]
    Tenant {
        /// The policy.
        policy: String,
        /// The setting.
        name: String,
    },
    /// A number outside its range, or none.
    #[error("setting `{name}` takes a number from {minimum} to {maximum}, not `{given}`")]
    Number {
        /// The setting.
        name: String,
        /// What was given, cleaned.
        given: String,
        /// The least it takes.
        minimum: f64,
        /// The most it takes.
        maximum: f64,
    },
    /// Neither on nor off.
    #[error("setting `{name}` takes `true` or `false`, not `{given}`")]
    Flag {
        /// The setting.
        name: String,
        /// What was given, cleaned.
        given: String,
    },
    /// None of a choice's words.
    #[error("setting `{name}` takes one of {}, not `{given}`", words.join(", "))]
    Choice {
        /// The setting.
        name: String,
        /// What was given, cleaned.
        given: String,
        /// The words.
        words: Vec<String>,
    },
    /// Too much text.
    #[error("setting `{name}` takes at most {limit_bytes} bytes of text, not {bytes}")]
    Text {
        /// The setting.
        name: String,
        /// What was given.
        bytes: usize,
        /// The limit.
        limit_bytes: usize,
    },
    /// The same setting twice in one layer.
    #[error("setting `{0}` is given twice")]
    Twice(String),
}

fn near_or_all(near: &[String], all: &[String]) -> String {
    match (near, all) {
        ([], []) => String::from("; it has none"),
        ([], all) => format!("; it has {}", all.join(", ")),
        (near, _) => format!("; near: {}", near.join(", ")),
    }
}

/// One value a setting, in the manifest's order: what is given, initial values for the rest.
///
/// # Errors
/// [`SettingError`] for the first that is refused.
pub fn resolve<N: AsRef<str>, T: AsRef<str>>(
    manifest: &Manifest,
    given: &[(N, T)],
    who: Scope,
    limits: &Limits,
) -> Result<Vec<SettingValue>, SettingError> {
    let mut values: Vec<SettingValue> = manifest.settings.iter().map(Setting::initial).collect();
    apply(manifest, &mut values, given, who, limits)?;
    Ok(values)
}

/// Changes the values that are given; `values` has one a setting, in the manifest's order.
///
/// # Errors
/// [`SettingError`] for the first that is refused; those before it are applied.
pub fn apply<N: AsRef<str>, T: AsRef<str>>(
    manifest: &Manifest,
    values: &mut [SettingValue],
    given: &[(N, T)],
    who: Scope,
    limits: &Limits,
) -> Result<(), SettingError> {
    let mut seen = Vec::with_capacity(given.len());
    for (name, text) in given {
        let name = name.as_ref();
        let named = manifest.settings.iter().zip(&mut *values).enumerate();
        let Some((place, (setting, value))) = named
            .into_iter()
            .find(|(_, (setting, _))| setting.name == name)
        else {
            let all = || {
                manifest
                    .settings
                    .iter()
                    .map(|setting| setting.name.as_str())
            };
            return Err(SettingError::Unknown {
                policy: manifest.name.clone(),
                name: clean(name, limits.name_bytes),
                near: near_names(name, all()),
                all: all().map(str::to_owned).collect(),
            });
        };
        if seen.contains(&place) {
            return Err(SettingError::Twice(setting.name.clone()));
        }
        seen.push(place);
        if (who, setting.scope) == (Scope::Request, Scope::Tenant) {
            return Err(SettingError::Tenant {
                policy: manifest.name.clone(),
                name: setting.name.clone(),
            });
        }
        *value = parse(setting, text.as_ref(), limits)?;
    }
    Ok(())
}

fn parse(setting: &Setting, text: &str, limits: &Limits) -> Result<SettingValue, SettingError> {
    let name = || setting.name.clone();
    let given = || clean(text, limits.name_bytes);
    match &setting.kind {
        SettingKind::Number {
            minimum, maximum, ..
        } => {
            let number = text
                .trim()
                .parse::<f64>()
                .ok()
                .filter(|number| (*minimum..=*maximum).contains(number));
            let refused = || SettingError::Number {
                name: name(),
                given: given(),
                minimum: *minimum,
                maximum: *maximum,
            };
            number.map(SettingValue::Number).ok_or_else(refused)
        }
        SettingKind::Flag(_) => match text.trim() {
            "true" | "on" | "yes" => Ok(SettingValue::Flag(true)),
            "false" | "off" | "no" => Ok(SettingValue::Flag(false)),
            _ => Err(SettingError::Flag {
                name: name(),
                given: given(),
            }),
        },
        SettingKind::Choice(words) => {
            let word = words.iter().find(|word| *word == text.trim());
            let refused = || SettingError::Choice {
                name: name(),
                given: given(),
                words: words.clone(),
            };
            word.map(|word| SettingValue::Choice(word.clone()))
                .ok_or_else(refused)
        }
        SettingKind::Text(_) => {
            let (bytes, limit_bytes) = (text.len(), limits.setting_text_bytes);
            if bytes > limit_bytes {
                return Err(SettingError::Text {
                    name: name(),
                    bytes,
                    limit_bytes,
                });
            }
            Ok(SettingValue::Text(text.to_owned()))
        }
    }
}
