//! A tenant's configuration file: TOML, every key documented here, checked before anything is loaded. What the
//! policies and heads that it names say to it is `tenant/mod.rs`'s. Start at [`TenantConfig::read`]; the guide is
//! `docs/tenants.md`.
//!
//! ```toml
//! name = "acme"                          # for logs and errors
//! grants = ["insert", "rewind", "stop"]  # what policies may need; none where absent
//! heads = ["sentiment"]                  # what they are offered; all of the host's where absent
//!
//! [[required]]                           # on every request, in this order, before the request's own
//! policy = "guard"                       # a shipped name, or a path from this file's folder
//! on-fault = "abort"                     # or "base": go on without it
//! settings = { phrases = "big deal" }    # any dial, the tenant's own among them
//!
//! [[policies]]                           # what a request may name
//! policy = "policies/mine.wasm"
//! name = "mine"                          # its name here; the shipped one's, or the file's, where absent
//! grants = []                            # instead of the tenant's
//!
//! [limits]                               # of one request
//! max-tokens = 256
//! candidates = 64
//! policies = 4
//!
//! [quotas]                               # of any minute
//! policy-ms = 2000
//! forwards = 50000
//! notes = 500
//!
//! [signatures]                           # policies need one, by a key below; none do without this table
//! required = true                        # the default here; false only takes down who signed
//!
//! [[signatures.keys]]
//! name = "acme-security"
//! key = "ed25519:d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
//! expires = 2027-06-30                   # the last day on which it is trusted, in UTC
//! ```
//!
//! An unknown key, a wrong type and a value out of range are refused with the file and the line.

mod signatures;

use std::io::Read;
use std::path::{MAIN_SEPARATOR, Path};

use serde::Deserialize;
use toml::Spanned;

use self::signatures::RawSignatures;
use super::quotas::Quotas;
use crate::files;
use crate::names::{hint, near_names};
use crate::request::{FaultPolicy, MAX_TOKENS_MAX};
use crate::sandbox::Needs;
use crate::signature::TrustStore;

/// The longest configuration, in bytes: thousands of policies, and short of harm.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The most policies of a tenant, required or not, and of a request.
const POLICIES_MAX: usize = 64;

/// The longest name, in bytes.
const NAME_BYTES_MAX: usize = 64;

/// Why a configuration is refused: the tenant's mistake.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("tenant {file}: {source}")]
    File {
        /// Which.
        file: String,
        /// The system's words.
        source: std::io::Error,
    },
    /// More than a configuration may have.
    #[error("tenant {file}: {bytes} bytes, at most {FILE_BYTES_MAX} are read")]
    TooLarge {
        /// Which.
        file: String,
        /// Its size.
        bytes: u64,
    },
    /// No TOML, an unknown key, or a value of another type.
    #[error("{file}, line {line}: {message}")]
    Syntax {
        /// Which.
        file: String,
        /// Where.
        line: usize,
        /// The parser's words.
        message: String,
    },
    /// A value that is not accepted.
    #[error("{file}, line {line}: {what} must be {accepted}, got {given}")]
    Value {
        /// Which file.
        file: String,
        /// Where.
        line: usize,
        /// Of what.
        what: &'static str,
        /// What is accepted.
        accepted: String,
        /// What was given.
        given: String,
    },
    /// Two policies of one name.
    #[error("{file}, line {line}: the policy {name:?} is there twice; give one of them another `name`")]
    Twice {
        /// Which file.
        file: String,
        /// Where the second one is.
        line: usize,
        /// The name.
        name: String,
    },
}

/// One policy of a tenant.
#[derive(Debug, Clone, PartialEq)]
pub struct PolicyConfig {
    /// The name that requests and errors use.
    pub name: String,
    /// A shipped name or a path.
    pub source: String,
    /// What it is granted.
    pub grants: Needs,
    /// Settings as text, by name.
    pub settings: Vec<(String, String)>,
    /// What follows when it fails.
    pub fault_policy: FaultPolicy,
    /// Where its table begins.
    pub line: usize,
}

/// Limits of one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestLimits {
    /// Response tokens, also where a request does not say; 256 by default.
    pub max_tokens: usize,
    /// Candidates a step, also where a request does not say; 256 by default.
    pub candidates: usize,
    /// Policies that a request may add; 4 by default.
    pub policies: usize,
}

/// A checked configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct TenantConfig {
    /// The file, for errors.
    pub file: String,
    /// The tenant's name.
    pub name: String,
    /// Offered heads with their lines; all of the host's where none.
    pub heads: Option<Vec<(String, usize)>>,
    /// Required policies, in rank order.
    pub required: Vec<PolicyConfig>,
    /// Policies that a request may name.
    pub policies: Vec<PolicyConfig>,
    /// Limits of one request.
    pub limits: RequestLimits,
    /// Quotas of any minute.
    pub quotas: Quotas,
    /// Whose signatures count.
    pub signatures: TrustStore,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RawTenant {
    name: Spanned<String>,
    #[serde(default)]
    grants: Vec<Spanned<String>>,
    heads: Option<Vec<Spanned<String>>>,
    #[serde(default)]
    required: Vec<Spanned<RawPolicy>>,
    #[serde(default)]
    policies: Vec<Spanned<RawPolicy>>,
    #[serde(default)]
    limits: RawLimits,
    #[serde(default)]
    quotas: RawQuotas,
    signatures: Option<RawSignatures>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RawPolicy {
    policy: Spanned<String>,
    name: Option<Spanned<String>>,
    on_fault: Option<Spanned<String>>,
    grants: Option<Vec<Spanned<String>>>,
    #[serde(default)]
    settings: toml::Table,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RawLimits {
    max_tokens: Option<Spanned<i64>>,
    candidates: Option<Spanned<i64>>,
    policies: Option<Spanned<i64>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RawQuotas {
    policy_ms: Option<Spanned<i64>>,
    forwards: Option<Spanned<i64>>,
    notes: Option<Spanned<i64>>,
}

impl TenantConfig {
    /// Reads and checks a file. Paths in it are taken from its folder.
    ///
    /// # Errors
    /// [`ConfigError`] for the first thing that is wrong.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let file = path.display().to_string();
        let failed = |source| ConfigError::File { file: file.clone(), source };
        let bytes = std::fs::metadata(path).map_err(failed)?.len();
        if bytes > FILE_BYTES_MAX {
            return Err(ConfigError::TooLarge { file, bytes });
        }
        // One byte more than is read, for a file that has no length of its own.
        let mut text = String::new();
        let opened = files::open(path).map_err(failed)?;
        let read = opened.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(failed)? as u64;
        if read > FILE_BYTES_MAX {
            return Err(ConfigError::TooLarge { file, bytes: read });
        }
        Self::parse(&file, &text, path.parent().unwrap_or(Path::new("")))
    }

    /// Checks the text of a file; `folder` is where its paths begin.
    ///
    /// # Errors
    /// [`ConfigError`] for the first thing that is wrong.
    pub fn parse(file: &str, text: &str, folder: &Path) -> Result<Self, ConfigError> {
        let source = Source { file, text, folder };
        let raw: RawTenant = toml::from_str(text).map_err(|error| ConfigError::Syntax {
            file: file.to_owned(),
            line: source.line(error.span().map_or(0, |span| span.start)),
            message: crate::sandbox::words::clean(error.message(), 512),
        })?;
        let name = source.name("name", &raw.name)?;
        let grants = source.grants(&raw.grants)?;
        let heads = raw.heads.map(|heads| {
            heads.iter().map(|head| (head.get_ref().clone(), source.line(head.span().start))).collect::<Vec<_>>()
        });
        let required = raw.required.iter().map(|entry| source.policy(entry, grants)).collect::<Result<Vec<_>, _>>()?;
        let policies = raw.policies.iter().map(|entry| source.policy(entry, grants)).collect::<Result<Vec<_>, _>>()?;
        let mut names: Vec<&str> = Vec::new();
        for entry in required.iter().chain(&policies) {
            if names.contains(&entry.name.as_str()) {
                return Err(ConfigError::Twice { file: file.to_owned(), line: entry.line, name: entry.name.clone() });
            }
            names.push(&entry.name);
        }
        if let Some(beyond) = raw.required.iter().chain(&raw.policies).nth(POLICIES_MAX) {
            let (accepted, given) = (format!("at most {POLICIES_MAX}"), names.len().to_string());
            return Err(source.refuse(beyond, "the number of policies", accepted, given));
        }
        let limits = RequestLimits {
            max_tokens: source.count("max-tokens", &raw.limits.max_tokens, 1, MAX_TOKENS_MAX)?.unwrap_or(256),
            candidates: source
                .count("candidates", &raw.limits.candidates, 1, vassal_kernels::CANDIDATES_MAX)?
                .unwrap_or(vassal_kernels::CANDIDATES_MAX),
            policies: source.count("policies", &raw.limits.policies, 0, POLICIES_MAX)?.unwrap_or(4),
        };
        let quota = |what, given| source.count(what, given, 0, usize::MAX).map(|quota| quota.map(|quota| quota as u64));
        let quotas = Quotas {
            policy_ms: quota("policy-ms", &raw.quotas.policy_ms)?,
            forwards: quota("forwards", &raw.quotas.forwards)?,
            notes: quota("notes", &raw.quotas.notes)?,
        };
        let signatures = source.trust(raw.signatures)?;
        Ok(Self { file: file.to_owned(), name, heads, required, policies, limits, quotas, signatures })
    }
}

/// A file's text, for lines and errors.
struct Source<'a> {
    file: &'a str,
    text: &'a str,
    folder: &'a Path,
}

impl Source<'_> {
    /// The line of a byte, from 1.
    fn line(&self, byte: usize) -> usize {
        1 + self.text.as_bytes().iter().take(byte).filter(|&&byte| byte == b'\n').count()
    }

    fn refuse<T>(&self, at: &Spanned<T>, what: &'static str, accepted: String, given: String) -> ConfigError {
        ConfigError::Value { file: self.file.to_owned(), line: self.line(at.span().start), what, accepted, given }
    }

    fn name(&self, what: &'static str, name: &Spanned<String>) -> Result<String, ConfigError> {
        let text = name.get_ref();
        let plain = crate::sandbox::words::clean(text, NAME_BYTES_MAX) == *text;
        if plain && !text.is_empty() {
            return Ok(text.clone());
        }
        let accepted = format!("1 to {NAME_BYTES_MAX} bytes of printable text");
        Err(self.refuse(name, what, accepted, format!("{text:?}")))
    }

    /// A whole number between bounds, where one is given.
    fn count(
        &self,
        what: &'static str,
        given: &Option<Spanned<i64>>,
        least: usize,
        most: usize,
    ) -> Result<Option<usize>, ConfigError> {
        let Some(given) = given else { return Ok(None) };
        let number = usize::try_from(*given.get_ref()).ok().filter(|number| (least..=most).contains(number));
        let accepted = || if most == usize::MAX { format!("{least} or more") } else { format!("{least} to {most}") };
        number.map(Some).ok_or_else(|| self.refuse(given, what, accepted(), given.get_ref().to_string()))
    }

    fn grants(&self, given: &[Spanned<String>]) -> Result<Needs, ConfigError> {
        let mut grants = Needs::default();
        for need in given {
            let Some(field) = grants.by_name(need.get_ref()) else {
                let names = Needs::ALL.names();
                let near = near_names(need.get_ref(), names.iter().copied());
                let all: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
                let given = format!("{:?}{}", need.get_ref(), hint(&near, &all));
                return Err(self.refuse(need, "a grant", format!("one of {}", names.join(", ")), given));
            };
            *field = true;
        }
        Ok(grants)
    }

    /// `grants` are the tenant's, where the policy has none of its own.
    fn policy(&self, entry: &Spanned<RawPolicy>, grants: Needs) -> Result<PolicyConfig, ConfigError> {
        let raw = entry.get_ref();
        let given = raw.policy.get_ref();
        let is_path = given.ends_with(".wasm") || given.contains(MAIN_SEPARATOR);
        let stem = Path::new(given).file_stem().map_or(given.clone(), |stem| stem.to_string_lossy().into_owned());
        let name = match &raw.name {
            Some(name) => self.name("a policy's name", name)?,
            None => self.name("a policy", &Spanned::new(raw.policy.span(), stem))?,
        };
        let fault_policy = match raw.on_fault.as_ref().map(|word| (word, word.get_ref().as_str())) {
            None | Some((_, "abort")) => FaultPolicy::Abort,
            Some((_, "base")) => FaultPolicy::Base,
            Some((word, other)) => {
                return Err(self.refuse(word, "on-fault", "\"abort\" or \"base\"".into(), format!("{other:?}")));
            }
        };
        let setting = |(name, value): (&String, &toml::Value)| match value {
            toml::Value::String(text) => Ok((name.clone(), text.clone())),
            toml::Value::Integer(number) => Ok((name.clone(), number.to_string())),
            toml::Value::Float(number) => Ok((name.clone(), number.to_string())),
            toml::Value::Boolean(flag) => Ok((name.clone(), flag.to_string())),
            other => {
                let accepted = "a text, a number or a flag".to_owned();
                Err(self.refuse(entry, "a setting", accepted, format!("{name:?}, a {}", other.type_str())))
            }
        };
        Ok(PolicyConfig {
            name,
            grants: raw.grants.as_deref().map_or(Ok(grants), |given| self.grants(given))?,
            source: if is_path { self.folder.join(given).display().to_string() } else { given.clone() },
            settings: raw.settings.iter().map(setting).collect::<Result<_, _>>()?,
            fault_policy,
            line: self.line(entry.span().start),
        })
    }
}

#[cfg(test)]
mod tests;
