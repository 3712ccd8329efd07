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
    #[error("setting `{name}` of policy `{policy}` belongs to the tenant: a request cannot turn it")]
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
        let Some((place, (setting, value))) = named.into_iter().find(|(_, (setting, _))| setting.name == name) else {
            let all = || manifest.settings.iter().map(|setting| setting.name.as_str());
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
            return Err(SettingError::Tenant { policy: manifest.name.clone(), name: setting.name.clone() });
        }
        *value = parse(setting, text.as_ref(), limits)?;
    }
    Ok(())
}

fn parse(setting: &Setting, text: &str, limits: &Limits) -> Result<SettingValue, SettingError> {
    let name = || setting.name.clone();
    let given = || clean(text, limits.name_bytes);
    match &setting.kind {
        SettingKind::Number { minimum, maximum, .. } => {
            let number = text.trim().parse::<f64>().ok().filter(|number| (*minimum..=*maximum).contains(number));
            let refused =
                || SettingError::Number { name: name(), given: given(), minimum: *minimum, maximum: *maximum };
            number.map(SettingValue::Number).ok_or_else(refused)
        }
        SettingKind::Flag(_) => match text.trim() {
            "true" | "on" | "yes" => Ok(SettingValue::Flag(true)),
            "false" | "off" | "no" => Ok(SettingValue::Flag(false)),
            _ => Err(SettingError::Flag { name: name(), given: given() }),
        },
        SettingKind::Choice(words) => {
            let word = words.iter().find(|word| *word == text.trim());
            let refused = || SettingError::Choice { name: name(), given: given(), words: words.clone() };
            word.map(|word| SettingValue::Choice(word.clone())).ok_or_else(refused)
        }
        SettingKind::Text(_) => {
            let (bytes, limit_bytes) = (text.len(), limits.setting_text_bytes);
            if bytes > limit_bytes {
                return Err(SettingError::Text { name: name(), bytes, limit_bytes });
            }
            Ok(SettingValue::Text(text.to_owned()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::Needs;

    fn manifest() -> Manifest {
        let setting = |name: &str, scope, kind| Setting { name: name.into(), summary: String::new(), scope, kind };
        let number = SettingKind::Number { minimum: -1.5, maximum: 1.5, initial: 0.0 };
        let words = ["blend", "adjust"].map(String::from).to_vec();
        Manifest {
            name: "vas".into(),
            version: "1".into(),
            summary: String::new(),
            candidates_max: 20,
            rewind_max: 0,
            heads: Vec::new(),
            settings: vec![
                setting("sentiment", Scope::Request, number),
                setting("mode", Scope::Request, SettingKind::Choice(words)),
                setting("loud", Scope::Request, SettingKind::Flag(true)),
                setting("phrases", Scope::Tenant, SettingKind::Text("none".into())),
            ],
            needs: Needs::default(),
        }
    }

    fn resolved(given: &[(&str, &str)], who: Scope) -> Result<String, String> {
        let values = resolve(&manifest(), given, who, &Limits::default()).map_err(|error| error.to_string())?;
        Ok(values.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
    }

    fn refused(name: &str, text: &str) -> String {
        resolved(&[(name, text)], Scope::Request).unwrap_err()
    }

    #[test]
    fn what_is_not_given_stays_initial() {
        assert_eq!(resolved(&[], Scope::Request).unwrap(), "0 blend true none");
        let given = [("sentiment", " -1.5"), ("mode", "adjust"), ("loud", "off"), ("phrases", "a, b")];
        assert_eq!(resolved(&given, Scope::Tenant).unwrap(), "-1.5 adjust false a, b");
    }

    #[test]
    fn a_request_is_laid_over_a_tenants_configuration() {
        let (manifest, limits) = (manifest(), Limits::default());
        let tenant = [("sentiment", "1"), ("phrases", "never this")];
        let mut values = resolve(&manifest, &tenant, Scope::Tenant, &limits).unwrap();
        apply(&manifest, &mut values, &[("sentiment", "0.5")], Scope::Request, &limits).unwrap();
        assert_eq!(values[0], SettingValue::Number(0.5));
        assert_eq!(values[3], SettingValue::Text("never this".into()));
    }

    #[test]
    fn refusals_say_what_would_be_accepted() {
        assert_eq!(refused("sentimant", "1"), "policy `vas` has no setting `sentimant`; near: sentiment");
        assert_eq!(refused("x", "1"), "policy `vas` has no setting `x`; it has sentiment, mode, loud, phrases");
        for beyond in ["1.6", "-2", "NaN", "inf", "lots"] {
            let range = format!("setting `sentiment` takes a number from -1.5 to 1.5, not `{beyond}`");
            assert_eq!(refused("sentiment", beyond), range);
        }
        assert_eq!(refused("mode", "mix"), "setting `mode` takes one of blend, adjust, not `mix`");
        assert_eq!(refused("loud", "1"), "setting `loud` takes `true` or `false`, not `1`");
        let tenant = "setting `phrases` of policy `vas` belongs to the tenant: a request cannot turn it";
        assert_eq!(refused("phrases", "all"), tenant);
        let twice = resolved(&[("loud", "on"), ("loud", "off")], Scope::Request);
        assert_eq!(twice.unwrap_err(), "setting `loud` is given twice");
        let long = resolved(&[("phrases", &"p".repeat(4_097))], Scope::Tenant);
        assert_eq!(long.unwrap_err(), "setting `phrases` takes at most 4096 bytes of text, not 4097");
        assert!(!refused("mode", "\u{1b}[2J").contains('\u{1b}'));
    }
}
