//! Tenants: whose policies run on a request, with which rights, dials and limits.
//!
//! A tenant is a configuration file ([`config`]): what its policies are granted, which of them are required on
//! every request, which a request may name, the heads they are offered, limits and quotas. [`Tenant`] is that
//! file with its policies loaded: it makes requests into such that the engine may run, so that a request can
//! neither turn a tenant's dial, nor leave a required policy out, nor outrank it. Policies can be replaced and
//! removed while sequences run: a running response keeps the one that it started with.
//!
//! Not here: who a client is. Whoever serves decides which tenant a request belongs to. Start at
//! [`Tenant::open`] and [`Tenant::request`].

pub mod config;
pub mod quotas;

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime};

use sha2::{Digest, Sha256};

use crate::engine::{HeadId, Response};
use crate::error::Error;
use crate::host::{Host, find_policy};
use crate::names::{hint, near_names};
use crate::request::{Account, LoadedPolicy, PolicyUse, Request};
use crate::sandbox::{Limits, Scope, SettingError, settings};
use crate::shipped;
use crate::signature;
use config::{ConfigError, PolicyConfig, TenantConfig};
use quotas::{Meter, QuotaError};

/// Why a tenant refuses. All but [`TenantError::Quota`] and [`TenantError::Policy`] are the client's or the tenant's own
/// mistakes.
#[derive(Debug, thiserror::Error)]
pub enum TenantError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A setting that the tenant gives a policy is refused by it.
    #[error("{file}, line {line}: {source}")]
    Setting {
        /// The configuration.
        file: String,
        /// Where the policy's table begins.
        line: usize,
        /// Why.
        source: Box<SettingError>,
    },
    /// A policy that cannot be found, read or loaded: the cause is its own.
    #[error("{file}, line {line}: {source}")]
    Policy {
        /// The configuration.
        file: String,
        /// Where the policy's table begins.
        line: usize,
        /// Why.
        source: Box<Error>,
    },
    /// A head that the host does not have.
    #[error("{file}, line {line}: there is no head {name:?}{}", hint(.near, .all))]
    UnknownHead {
        /// The configuration.
        file: String,
        /// Where it is named.
        line: usize,
        /// The name given.
        name: String,
        /// Names close to it.
        near: Vec<String>,
        /// All names.
        all: Vec<String>,
    },
    /// A policy that this tenant does not let requests name.
    #[error("tenant {tenant:?} lets no request name the policy {name:?}{}", hint(.near, .all))]
    UnknownPolicy {
        /// The tenant.
        tenant: String,
        /// The name given.
        name: String,
        /// Names close to it.
        near: Vec<String>,
        /// All that a request may name.
        all: Vec<String>,
    },
    /// A request names a required policy, which runs anyhow and once.
    #[error("tenant {tenant:?} requires the policy {name:?} on every request; a request cannot add or set it")]
    AlreadyRequired {
        /// The tenant.
        tenant: String,
        /// The policy.
        name: String,
    },
    /// The same policy twice on one request.
    #[error("the policy {name:?} is on this request twice")]
    Twice {
        /// The policy.
        name: String,
    },
    /// A required policy is to be removed.
    #[error("tenant {tenant:?} requires the policy {name:?}: it can be replaced, but not removed")]
    Required {
        /// The tenant.
        tenant: String,
        /// The policy.
        name: String,
    },
    /// A request asks for more than the tenant allows.
    #[error("tenant {tenant:?} allows at most {limit} {what}, got {given}")]
    Limit {
        /// The tenant.
        tenant: String,
        /// Of what.
        what: &'static str,
        /// The tenant's limit.
        limit: usize,
        /// What the request asks for.
        given: usize,
    },
    /// A quota is used up.
    #[error("tenant {tenant:?}: {source}")]
    Quota {
        /// The tenant.
        tenant: String,
        /// Which, and when there is room again.
        source: QuotaError,
    },
}

/// A policy that a request asks for, with the settings that it gives.
#[derive(Debug, Clone, Default)]
pub struct Asked {
    /// The policy's name in the tenant's configuration.
    pub name: String,
    /// Settings as text; a tenant's own are refused.
    pub settings: Vec<(String, String)>,
}

/// A policy of a tenant, loaded.
struct Entry {
    config: PolicyConfig,
    required: bool,
    policy: Arc<LoadedPolicy>,
}

/// A tenant's configuration with its policies loaded.
pub struct Tenant {
    config: TenantConfig,
    heads: Vec<HeadId>,
    entries: Vec<Entry>,
    limits: Limits,
    meter: Arc<Counted>,
}

/// What the tenant's responses have used. Its requests carry it to the engine, which tells it of each that ends.
struct Counted(Mutex<Meter>);

impl Account for Counted {
    fn count(&self, response: &Response) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).account(response, Instant::now());
    }
}

impl Tenant {
    /// Reads a configuration and loads all its policies, with its settings tried out on them.
    ///
    /// # Errors
    /// The first thing that is wrong, with its line; nothing is loaded then.
    pub fn open(host: &mut Host, path: &Path) -> Result<Self, Error> {
        Self::open_at(host, path, SystemTime::now())
    }

    /// As [`Tenant::open`], at this time: keys are trusted until a day.
    ///
    /// # Errors
    /// As [`Tenant::open`].
    pub fn open_at(host: &mut Host, path: &Path, now: SystemTime) -> Result<Self, Error> {
        let config = TenantConfig::read(path).map_err(TenantError::Config)?;
        let heads = offered_heads(host, &config)?;
        let limits = host.engine().sandbox_limits().clone();
        let meter = Arc::new(Counted(Mutex::new(Meter::new(config.quotas.clone()))));
        let mut tenant = Self { config, heads, entries: Vec::new(), limits, meter };
        let required = tenant.config.required.iter().map(|entry| (entry, true));
        let entries = required.chain(tenant.config.policies.iter().map(|entry| (entry, false)));
        let mut loaded = Vec::new();
        for (config, required) in entries {
            let policy = tenant.find(host, config, now).map_err(|error| match error {
                Error::Tenant(error) => error,
                error => {
                    let (file, line) = (tenant.config.file.clone(), config.line);
                    TenantError::Policy { file, line, source: Box::new(error) }
                }
            })?;
            loaded.push(Entry { config: config.clone(), required, policy });
        }
        tenant.entries = loaded;
        Ok(tenant)
    }

    /// Finds a policy with its signatures, and loads it.
    fn find(&self, host: &mut Host, config: &PolicyConfig, now: SystemTime) -> Result<Arc<LoadedPolicy>, Error> {
        let component = find_policy(&config.source)?;
        let asks = !self.config.signatures.is_empty();
        let signatures = if asks { signature::find(&config.source)? } else { None };
        self.load(host, config, &component, signatures.as_deref(), now)
    }

    /// The configuration.
    pub fn config(&self) -> &TenantConfig {
        &self.config
    }

    /// The policies as they stand: required ones first, each with whether it is required.
    pub fn policies(&self) -> impl Iterator<Item = (&PolicyConfig, bool, &Arc<LoadedPolicy>)> {
        self.entries.iter().map(|entry| (&entry.config, entry.required, &entry.policy))
    }

    /// Loads a component under this tenant's grants and heads, and tries the tenant's settings on it. Who signed it
    /// comes first: what nobody answers for is not even validated.
    fn load(
        &self,
        host: &mut Host,
        config: &PolicyConfig,
        component: &[u8],
        signatures: Option<&[u8]>,
        now: SystemTime,
    ) -> Result<Arc<LoadedPolicy>, Error> {
        let signers = match shipped::ships(&config.source, &Sha256::digest(component).into()) {
            true => Vec::new(),
            false => self.config.signatures.check(&config.name, component, signatures, now)?,
        };
        let mut policy = host.engine().load_policy(&config.name, component, &self.heads, config.grants)?;
        policy.signers = signers;
        settings::resolve(&policy.manifest, &config.settings, Scope::Tenant, &self.limits)
            .map_err(Box::new)
            .map_err(|source| TenantError::Setting { file: self.config.file.clone(), line: config.line, source })?;
        Ok(Arc::new(policy))
    }

    /// Replaces a policy by another component, unsigned, for requests from now on. What runs keeps what it started
    /// with.
    ///
    /// # Errors
    /// As [`Tenant::replace_signed`].
    pub fn replace(&mut self, host: &mut Host, name: &str, component: &[u8]) -> Result<(), Error> {
        self.replace_signed(host, name, component, None, SystemTime::now())
    }

    /// As [`Tenant::replace`], with the contents of the file of signatures beside the component.
    ///
    /// # Errors
    /// An unknown name, or why the component, its signatures or the tenant's settings for it are refused; nothing
    /// changes then.
    pub fn replace_signed(
        &mut self,
        host: &mut Host,
        name: &str,
        component: &[u8],
        signatures: Option<&[u8]>,
        now: SystemTime,
    ) -> Result<(), Error> {
        let place = self.place(name)?;
        let policy = self.load(host, &self.entries[place].config, component, signatures, now)?;
        self.entries[place].policy = policy;
        Ok(())
    }

    /// Takes a policy away from requests from now on. What runs keeps it.
    ///
    /// # Errors
    /// An unknown name, or one that is required.
    pub fn remove(&mut self, name: &str) -> Result<(), Error> {
        let place = self.place(name)?;
        if self.entries[place].required {
            let tenant = self.config.name.clone();
            return Err(TenantError::Required { tenant, name: name.to_owned() }.into());
        }
        self.entries.remove(place);
        Ok(())
    }

    fn place(&self, name: &str) -> Result<usize, TenantError> {
        self.entries.iter().position(|entry| entry.config.name == name).ok_or_else(|| {
            let all: Vec<&str> = self.entries.iter().map(|entry| entry.config.name.as_str()).collect();
            self.unknown(name, &all)
        })
    }

    fn unknown(&self, name: &str, all: &[&str]) -> TenantError {
        TenantError::UnknownPolicy {
            tenant: self.config.name.clone(),
            name: name.to_owned(),
            near: near_names(name, all.iter().copied()),
            all: all.iter().map(|&name| name.to_owned()).collect(),
        }
    }

    /// A request of this tenant's: its required policies first, then those asked for, its heads, within its limits.
    /// Whatever policies and heads the request had are gone. What its response uses is counted against the quotas when it
    /// ends: the engine does it.
    ///
    /// # Errors
    /// A quota that is used up ([`TenantError::Quota`], capacity), or what the tenant does not allow (the client's).
    pub fn request(&mut self, request: Request, asked: &[Asked], now: Instant) -> Result<Request, Error> {
        let tenant = || self.config.name.clone();
        let admitted = self.meter.0.lock().unwrap_or_else(PoisonError::into_inner).admit(now);
        admitted.map_err(|source| TenantError::Quota { tenant: tenant(), source })?;
        let limits = &self.config.limits;
        let within = |what, limit: usize, given: usize| {
            if given <= limit { Ok(()) } else { Err(TenantError::Limit { tenant: tenant(), what, limit, given }) }
        };
        within("policies of a request's own", limits.policies, asked.len())?;
        let max_tokens = request.max_tokens.unwrap_or(limits.max_tokens);
        within("response tokens", limits.max_tokens, max_tokens)?;
        let candidates = request.candidates_max.unwrap_or(limits.candidates);
        within("candidates", limits.candidates, candidates)?;
        let mut policies = Vec::new();
        for entry in self.entries.iter().filter(|entry| entry.required) {
            policies.push(self.used(entry, &[])?);
        }
        for (place, asked_for) in asked.iter().enumerate() {
            let name = &asked_for.name;
            let entry = self.entries.iter().find(|entry| entry.config.name == *name).ok_or_else(|| {
                let free = self.entries.iter().filter(|entry| !entry.required);
                self.unknown(name, &free.map(|entry| entry.config.name.as_str()).collect::<Vec<_>>())
            })?;
            if entry.required {
                return Err(TenantError::AlreadyRequired { tenant: tenant(), name: name.clone() }.into());
            }
            if asked[..place].iter().any(|other| other.name == *name) {
                return Err(TenantError::Twice { name: name.clone() }.into());
            }
            policies.push(self.used(entry, &asked_for.settings)?);
        }
        Ok(Request {
            policies,
            heads: self.heads.clone(),
            max_tokens: Some(max_tokens),
            candidates_max: Some(candidates),
            account: Some(self.meter.clone()),
            ..request
        })
    }

    /// A policy with the tenant's settings, and a request's laid over them.
    fn used(&self, entry: &Entry, given: &[(String, String)]) -> Result<PolicyUse, Error> {
        let manifest = &entry.policy.manifest;
        let mut values = settings::resolve(manifest, &entry.config.settings, Scope::Tenant, &self.limits)?;
        settings::apply(manifest, &mut values, given, Scope::Request, &self.limits)?;
        Ok(PolicyUse {
            policy: Arc::clone(&entry.policy),
            settings: values,
            required: entry.required,
            fault_policy: entry.config.fault_policy,
        })
    }
}

/// The host's heads that the tenant offers: all where it names none.
fn offered_heads(host: &Host, config: &TenantConfig) -> Result<Vec<HeadId>, TenantError> {
    let all = || host.heads().iter().map(|head| head.description.name.as_str());
    let Some(names) = &config.heads else { return Ok((0..host.heads().len()).map(HeadId).collect()) };
    let find = |(name, line): &(String, usize)| {
        all().position(|head| head == name).map(HeadId).ok_or_else(|| TenantError::UnknownHead {
            file: config.file.clone(),
            line: *line,
            name: name.clone(),
            near: near_names(name, all()),
            all: all().map(str::to_owned).collect(),
        })
    };
    names.iter().map(find).collect()
}
