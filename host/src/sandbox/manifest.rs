//! What a policy is and does, checked before anything relies on it.
//!
//! [`Manifest`] is what `describe` answered, after validation: within the limits, names unique, numbers
//! finite, heads among the offered, needs known and granted, words cleaned. `Manifest::check` is the
//! only way from the guest's record to this type.

use super::bindings;
use super::limits::Limits;
use super::words::clean;
use crate::names::near_names;
use std::fmt;

/// A head that the tenant offers to a policy.
#[derive(Debug, Clone, PartialEq)]
pub struct HeadOffer {
    /// Its name.
    pub name: String,
    /// `value`, `probability` or `log-probability`.
    pub kind: String,
    /// The standard deviation of its values over the base model's next tokens, in units of value; positive.
    pub spread: f32,
}

/// A policy's manifest, validated.
#[derive(Debug, Clone, PartialEq)]
pub struct Manifest {
    /// The policy's name for itself, cleaned.
    pub name: String,
    /// Its version, cleaned.
    pub version: String,
    /// One line about it, cleaned.
    pub summary: String,
    /// The most candidates it ever asks for, 1 to 256.
    pub candidates_max: u32,
    /// How many response tokens a splice of its may take back, at most 256.
    pub rewind_max: u32,
    /// The heads it uses, as they were offered: their order gives them their indices.
    pub heads: Vec<HeadOffer>,
    /// Its dials.
    pub settings: Vec<Setting>,
    /// What it needs; all of it is granted.
    pub needs: Needs,
}

/// A typed dial.
#[derive(Debug, Clone, PartialEq)]
pub struct Setting {
    /// Its name: printable, without `=`.
    pub name: String,
    /// One line about it, cleaned.
    pub summary: String,
    /// Who may turn it.
    pub scope: Scope,
    /// What it takes.
    pub kind: SettingKind,
}

/// Who turns a dial, or may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// The tenant's configuration.
    Tenant,
    /// A request.
    Request,
}

/// What a setting takes.
#[derive(Debug, Clone, PartialEq)]
pub enum SettingKind {
    /// A finite number, `minimum <= initial <= maximum`.
    Number {
        /// The least it takes.
        minimum: f64,
        /// The most it takes.
        maximum: f64,
        /// Where nobody turns it.
        initial: f64,
    },
    /// On or off; initially as given.
    Flag(bool),
    /// One of these words, of which there is at least one; the first is the initial one.
    Choice(Vec<String>),
    /// Any text; initially as given.
    Text(String),
}

/// What a setting has come to.
#[derive(Debug, Clone, PartialEq)]
pub enum SettingValue {
    /// A number in its range.
    Number(f64),
    /// On or off.
    Flag(bool),
    /// One of the setting's words.
    Choice(String),
    /// Text.
    Text(String),
}

impl fmt::Display for SettingValue {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(formatter, "{number}"),
            Self::Flag(flag) => write!(formatter, "{flag}"),
            Self::Choice(text) | Self::Text(text) => formatter.write_str(text),
        }
    }
}

impl Setting {
    /// Its value where nobody turns it.
    pub fn initial(&self) -> SettingValue {
        match &self.kind {
            SettingKind::Number { initial, .. } => SettingValue::Number(*initial),
            SettingKind::Flag(flag) => SettingValue::Flag(*flag),
            // Validation leaves no empty choice.
            SettingKind::Choice(words) => SettingValue::Choice(words.first().cloned().unwrap_or_default()),
            SettingKind::Text(text) => SettingValue::Text(text.clone()),
        }
    }
}

/// What a policy may need and a tenant may grant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Needs {
    /// To see the prompt.
    pub prompt: bool,
    /// To commit tokens that nobody sampled.
    pub insert: bool,
    /// To take response tokens back.
    pub rewind: bool,
    /// To end a response.
    pub stop: bool,
}

impl Needs {
    /// Everything.
    pub const ALL: Self = Self { prompt: true, insert: true, rewind: true, stop: true };

    /// The names of what is needed or granted, in the contract's order.
    pub fn names(&self) -> Vec<&'static str> {
        [("prompt", self.prompt), ("insert", self.insert), ("rewind", self.rewind), ("stop", self.stop)]
            .into_iter()
            .filter_map(|(name, set)| set.then_some(name))
            .collect()
    }

    /// What is needed here and not granted there.
    pub fn without(mut self, mut granted: Self) -> Self {
        for name in Self::ALL.names() {
            if let (Some(needed), Some(granted)) = (self.by_name(name), granted.by_name(name)) {
                *needed &= !*granted;
            }
        }
        self
    }

    /// The field of this name, if there is one.
    pub fn by_name(&mut self, name: &str) -> Option<&mut bool> {
        match name {
            "prompt" => Some(&mut self.prompt),
            "insert" => Some(&mut self.insert),
            "rewind" => Some(&mut self.rewind),
            "stop" => Some(&mut self.stop),
            _ => None,
        }
    }
}

/// Why a manifest is refused. All names are cleaned.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ManifestError {
    /// A name, version or word that is empty, too long, or not plain text.
    #[error("{what} `{given}` must be 1 to {limit_bytes} bytes of printable text without `=`")]
    Name {
        /// Whose name it is.
        what: &'static str,
        /// The name, cleaned.
        given: String,
        /// The limit.
        limit_bytes: usize,
    },
    /// A number or a count outside its bounds.
    #[error("{what} is {given}, but must be {least} to {most}")]
    Bound {
        /// What it is.
        what: &'static str,
        /// What was given.
        given: u64,
        /// The least allowed.
        least: u64,
        /// The most allowed.
        most: u64,
    },
    /// A number setting whose numbers are not finite or not in order.
    #[error("setting `{name}`: minimum {minimum} <= initial {initial} <= maximum {maximum} must hold, all finite")]
    Range {
        /// The setting.
        name: String,
        /// Its minimum.
        minimum: f64,
        /// Its initial value.
        initial: f64,
        /// Its maximum.
        maximum: f64,
    },
    /// A setting's initial text that is too long.
    #[error("setting `{name}`: {bytes} bytes of initial text, at most {limit_bytes} allowed")]
    LongText {
        /// The setting.
        name: String,
        /// The text's length.
        bytes: usize,
        /// The limit.
        limit_bytes: usize,
    },
    /// A name given twice.
    #[error("{what} `{name}` is named twice")]
    Twice {
        /// Whose name it is.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// A head that is not among the offered.
    #[error("head `{name}` is not offered{}", near_hint(.near))]
    UnknownHead {
        /// The head.
        name: String,
        /// Offered names close to it.
        near: Vec<String>,
    },
    /// A need that this host does not know.
    #[error("need `{0}` is unknown; known are prompt, insert, rewind, stop")]
    UnknownNeed(String),
    /// A need that is not granted.
    #[error("need `{0}` is not granted")]
    NotGranted(&'static str),
    /// A reward's name that is not of the letters that it may have.
    #[error("the reward's name `{given}` must be 1 to {limit_bytes} bytes, each of a to z, 0 to 9 or -")]
    RewardName {
        /// The name, cleaned.
        given: String,
        /// The limit.
        limit_bytes: usize,
    },
    /// A reward's range that is none.
    #[error("the reward's minimum {minimum} must be less than its maximum {maximum}, both finite")]
    RewardRange {
        /// Its minimum.
        minimum: f64,
        /// Its maximum.
        maximum: f64,
    },
    /// Two calls of `describe` answered differently. Insurance: each has an instance of its own, with the same fuel and
    /// nothing else, so no guest can tell which it is, and only a bug of the runtime's could come to this.
    #[error("`describe` answered two calls differently: {0}")]
    Unstable(&'static str),
}

fn near_hint(names: &[String]) -> String {
    if names.is_empty() { String::new() } else { format!("; near: {}", names.join(", ")) }
}

impl Manifest {
    /// Validates what `describe` answered against what is offered and granted.
    pub(super) fn check(
        raw: bindings::Manifest,
        offered: &[HeadOffer],
        granted: Needs,
        limits: &Limits,
    ) -> Result<Self, ManifestError> {
        bound("candidates-max", raw.candidates_max.into(), 1, limits.candidates.into())?;
        bound("rewind-max", raw.rewind_max.into(), 0, limits.rewind.into())?;
        bound("the number of heads", raw.heads.len() as u64, 0, limits.heads as u64)?;
        bound("the number of settings", raw.settings.len() as u64, 0, limits.settings as u64)?;
        let heads = raw.heads.iter().map(|name| offered_head(name, offered, limits)).collect::<Result<Vec<_>, _>>()?;
        unique("head", heads.iter().map(|head| head.name.as_str()))?;
        let settings =
            raw.settings.into_iter().map(|setting| Setting::check(setting, limits)).collect::<Result<Vec<_>, _>>()?;
        unique("setting", settings.iter().map(|setting| setting.name.as_str()))?;
        Ok(Self {
            name: checked_name("the policy's name", &raw.name, limits.name_bytes)?,
            version: checked_name("the policy's version", &raw.version, limits.version_bytes)?,
            summary: clean(&raw.summary, limits.summary_bytes),
            candidates_max: raw.candidates_max,
            rewind_max: raw.rewind_max,
            heads,
            settings,
            needs: checked_needs(&raw.needs, granted, limits)?,
        })
    }

    /// The first part in which two manifests differ.
    pub(super) fn difference(&self, other: &Self) -> Option<&'static str> {
        let parts = [
            ("name", self.name == other.name),
            ("version", self.version == other.version),
            ("summary", self.summary == other.summary),
            ("candidates-max", self.candidates_max == other.candidates_max),
            ("rewind-max", self.rewind_max == other.rewind_max),
            ("heads", self.heads == other.heads),
            ("settings", self.settings == other.settings),
            ("needs", self.needs == other.needs),
        ];
        parts.into_iter().find_map(|(part, equal)| (!equal).then_some(part))
    }
}

impl Setting {
    fn check(raw: bindings::Setting, limits: &Limits) -> Result<Self, ManifestError> {
        let name = checked_name("setting", &raw.name, limits.name_bytes)?;
        let kind = match raw.kind {
            bindings::SettingKind::Number(bindings::NumberSetting { minimum, maximum, initial }) => {
                let finite = minimum.is_finite() && maximum.is_finite();
                if !(finite && minimum <= initial && initial <= maximum) {
                    return Err(ManifestError::Range { name, minimum, initial, maximum });
                }
                SettingKind::Number { minimum, maximum, initial }
            }
            bindings::SettingKind::Flag(flag) => SettingKind::Flag(flag),
            bindings::SettingKind::Choice(words) => {
                bound("the number of a choice's words", words.len() as u64, 1, limits.choices as u64)?;
                let words = words
                    .iter()
                    .map(|word| checked_name("a choice's word", word, limits.name_bytes))
                    .collect::<Result<Vec<_>, _>>()?;
                unique("a choice's word", words.iter().map(String::as_str))?;
                SettingKind::Choice(words)
            }
            bindings::SettingKind::Text(text) => {
                let (bytes, limit_bytes) = (text.len(), limits.setting_text_bytes);
                if bytes > limit_bytes {
                    return Err(ManifestError::LongText { name, bytes, limit_bytes });
                }
                SettingKind::Text(clean(&text, limit_bytes))
            }
        };
        let scope = match raw.scope {
            bindings::Scope::Tenant => Scope::Tenant,
            bindings::Scope::Request => Scope::Request,
        };
        Ok(Self { name, summary: clean(&raw.summary, limits.summary_bytes), scope, kind })
    }
}

fn bound(what: &'static str, given: u64, least: u64, most: u64) -> Result<(), ManifestError> {
    if (least..=most).contains(&given) { Ok(()) } else { Err(ManifestError::Bound { what, given, least, most }) }
}

/// A name is what cleaning leaves as it is: two that look alike cannot differ in hidden characters.
pub(super) fn checked_name(what: &'static str, name: &str, limit_bytes: usize) -> Result<String, ManifestError> {
    let cleaned = clean(name, limit_bytes);
    let plain = cleaned == name && name.trim() == name && !name.contains('=');
    if plain && !name.is_empty() { Ok(cleaned) } else { Err(ManifestError::Name { what, given: cleaned, limit_bytes }) }
}

fn unique<'a>(what: &'static str, names: impl Iterator<Item = &'a str>) -> Result<(), ManifestError> {
    let mut names: Vec<&str> = names.collect();
    names.sort_unstable();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(ManifestError::Twice { what, name: pair[0].to_owned() }),
        None => Ok(()),
    }
}

fn offered_head(name: &str, offered: &[HeadOffer], limits: &Limits) -> Result<HeadOffer, ManifestError> {
    offered.iter().find(|offer| offer.name == name).cloned().ok_or_else(|| ManifestError::UnknownHead {
        name: clean(name, limits.name_bytes),
        near: near_names(name, offered.iter().map(|offer| offer.name.as_str())),
    })
}

fn checked_needs(names: &[String], mut granted: Needs, limits: &Limits) -> Result<Needs, ManifestError> {
    let mut needs = Needs::default();
    for name in names {
        let Some(need) = needs.by_name(name) else {
            return Err(ManifestError::UnknownNeed(clean(name, limits.name_bytes)));
        };
        *need = true;
    }
    for name in needs.names() {
        if !granted.by_name(name).is_some_and(|granted| *granted) {
            return Err(ManifestError::NotGranted(name));
        }
    }
    Ok(needs)
}
