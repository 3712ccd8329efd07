//! How a reward is named on a command line: `[NAME:]KIND[=ARGUMENT]`, or the path of a component.
//!
//! The kind is the name where none is given; a name of one's own lets one kind stand twice, as in
//! `short:length=20` beside `long:length=80`. What has a `/`, or ends in `.wasm` or `.safetensors`, before any `=` is a path: of
//! a component, or of a learned reward.

use std::path::PathBuf;
use std::sync::Arc;

use super::builtin::{self, BuiltIn};
use super::{SharedReward, component, learned};
use crate::error::Error;
use crate::host::HostOptions;
use crate::model::heads::NAME_BYTES_MAX as NAME_BYTES;
use crate::names::{hint, near_names};
use crate::sandbox::Compilation;

/// A reward, named.
#[derive(Debug, Clone, PartialEq)]
pub enum Spec {
    /// One of [`builtin::KINDS`].
    BuiltIn(BuiltIn),
    /// A file: a component, or a learned reward. `name` is the user's, if it has one.
    File {
        /// The name given.
        name: Option<String>,
        /// Where it is.
        path: PathBuf,
    },
}

/// What rewards need that come in files.
pub struct Opening<'a> {
    /// How components are compiled.
    pub compilation: &'a Compilation,
    /// The base model, which learned rewards read; asked for only where there is one.
    pub model: &'a dyn Fn() -> Result<HostOptions, Error>,
}

/// How the name of a learned reward's file ends.
const LEARNED: &str = ".safetensors";

/// Why a reward's words mean nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// No such kind.
    #[error("there is no reward {kind:?}{}; a component or a learned reward is given by its path, as ./{kind}.wasm", hint(.near, .all))]
    Unknown {
        /// What was given.
        kind: String,
        /// Names close to it.
        near: Vec<String>,
        /// All kinds.
        all: Vec<String>,
    },
    /// A name that no setting could have.
    #[error("a reward's name has 1 to {NAME_BYTES} characters of a-z, 0-9 and -, got {0:?}")]
    Name(String),
    /// The argument of a kind.
    #[error("the reward {spec:?}: {reason}")]
    Argument {
        /// What was given.
        spec: String,
        /// What is accepted.
        reason: String,
    },
    /// Two rewards of one name.
    #[error("two rewards are named {0:?}; give one a name of its own, as other:{0}")]
    Twice(String),
}

impl Spec {
    /// Reads one.
    ///
    /// # Errors
    /// [`SpecError`].
    pub fn parse(spec: &str) -> Result<Self, SpecError> {
        let before_argument = spec.split('=').next().unwrap_or(spec);
        let (name, rest) = match before_argument.split_once(':') {
            Some((name, _)) if !name.contains('/') => (Some(name), &spec[name.len() + 1..]),
            _ => (None, spec),
        };
        if let Some(name) = name {
            check_name(name)?;
        }
        let (kind, argument) = match rest.split_once('=') {
            Some((kind, argument)) => (kind, Some(argument)),
            None => (rest, None),
        };
        if kind.contains('/') || kind.ends_with(".wasm") || kind.ends_with(LEARNED) {
            return Ok(Self::File { name: name.map(str::to_owned), path: PathBuf::from(rest) });
        }
        let Some(made) = builtin::make(kind, argument) else {
            let all = builtin::KINDS.iter().map(|kind| kind.name);
            let near = near_names(kind, all.clone());
            return Err(SpecError::Unknown { kind: kind.to_owned(), near, all: all.map(str::to_owned).collect() });
        };
        let made = made.map_err(|reason| SpecError::Argument { spec: spec.to_owned(), reason })?;
        Ok(Self::BuiltIn(match name {
            Some(name) => made.named(name),
            None => made,
        }))
    }
}

/// The rewards that a command line names, no two alike.
///
/// # Errors
/// [`SpecError`], and why a file is refused.
pub fn find(specs: &[String], opening: &Opening<'_>) -> Result<Vec<SharedReward>, Error> {
    let mut found: Vec<SharedReward> = Vec::new();
    for spec in specs {
        let reward: SharedReward = match Spec::parse(spec)? {
            Spec::BuiltIn(reward) => Arc::new(reward),
            Spec::File { name, path } if path.to_string_lossy().ends_with(LEARNED) => {
                learned::open(&path, name, opening.model)?
            }
            Spec::File { name, path } => component::open(&path, name, opening.compilation)?,
        };
        if found.iter().any(|other| other.name() == reward.name()) {
            return Err(SpecError::Twice(reward.name().to_owned()).into());
        }
        found.push(reward);
    }
    Ok(found)
}

/// Refuses what cannot be the name of a dial.
///
/// # Errors
/// [`SpecError::Name`].
pub fn check_name(name: &str) -> Result<(), SpecError> {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if (1..=NAME_BYTES).contains(&name.len()) && name.bytes().all(allowed) {
        return Ok(());
    }
    Err(SpecError::Name(name.chars().take(2 * NAME_BYTES).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::learning::rewards::Reward;

    #[test]
    fn kinds_names_arguments_and_paths() {
        let built_in = |spec: &str| match Spec::parse(spec) {
            Ok(Spec::BuiltIn(reward)) => (reward.name().to_owned(), reward.definition()),
            other => panic!("{spec}: {other:?}"),
        };
        assert_eq!(built_in("sentiment"), ("sentiment".into(), "sentiment 1".into()));
        assert_eq!(built_in("length=20"), ("length".into(), "length 1: 20".into()));
        assert_eq!(built_in("short:length=20"), ("short".into(), "length 1: 20".into()));
        assert_eq!(built_in("ratio:regex=a:b=c/d.wasm").1, "regex 1: share of a:b=c/d.wasm");
        let path = |spec: &str| match Spec::parse(spec) {
            Ok(Spec::File { name, path }) => (name, path.to_str().unwrap_or_default().to_owned()),
            other => panic!("{spec}: {other:?}"),
        };
        assert_eq!(path("./kind.wasm"), (None, "./kind.wasm".into()));
        assert_eq!(path("kind.wasm"), (None, "kind.wasm".into()));
        assert_eq!(path("gold:kind.safetensors"), (Some("gold".into()), "kind.safetensors".into()));
        assert_eq!(path("mine:/a:b/kind"), (Some("mine".into()), "/a:b/kind".into()));
    }

    #[test]
    fn what_means_nothing_is_refused_with_what_would() {
        let error = |spec: &str| Spec::parse(spec).expect_err(spec).to_string();
        assert!(error("sentimant").contains("near: sentiment"), "{}", error("sentimant"));
        assert!(error("Mine:length=3").contains("a-z, 0-9 and -, got \"Mine\""));
        assert!(error(":length=3").contains("got \"\""));
        assert!(error("length").contains("length=WORDS"), "{}", error("length"));
        assert!(error("length=0").contains("got \"0\""), "{}", error("length=0"));
        assert!(error("sentiment=3").contains("takes no argument"));
        assert!(error("regex=(").contains("unclosed group"), "{}", error("regex=("));
    }
}
