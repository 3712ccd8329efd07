//! Errors of the whole program, and whose they are.
//!
//! Four causes are kept apart, since a caller must act differently on each: the *client* gave what
//! cannot be accepted, a *guest* failed or was refused, there is no *capacity*, or the *host* itself (its
//! files, its device, its network) failed. The command line's exit codes are these causes.

use vassal_kernels::DeviceError;

use crate::audit::{AuditError, Difference, ReplayError};
use crate::engine::EngineError;
use crate::learning::fitting::FitError;
use crate::learning::journal::JournalError;
use crate::learning::preference::pairs::PairsError;
use crate::learning::prompts::PromptsError;
use crate::learning::report::samples::DecodedError;
use crate::learning::rewards::learned::file::RewardFileError;
use crate::learning::rewards::{ScoresError, SpecError};
use crate::learning::rollouts::RolloutsError;
use crate::model::config::ConfigError;
use crate::model::gguf::GgufError;
use crate::model::heads::HeadError;
use crate::model::llama::LlamaError;
use crate::model::source::SourceError;
use crate::model::template::TemplateError;
use crate::model::tokenizer::TokenizerError;
use crate::names::{hint, near_names};
use crate::policy_build::BuildError;
use crate::request::RequestError;
use crate::sandbox::{Fault, FaultKind, Guest, LoadError, SandboxError, SettingError};
use crate::signature::{KeyError, SignatureError};
use crate::tenant::TenantError;

/// Whose fault an error is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// What was asked for cannot be accepted: a name, a number, a file.
    Client,
    /// A policy was refused or failed.
    Guest,
    /// Not enough room.
    Capacity,
    /// The host: a file, a device, the network.
    Host,
}

impl Cause {
    /// The command line's exit code: 2 client, 3 guest, 4 capacity, 1 host.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Host => 1,
            Self::Client => 2,
            Self::Guest => 3,
            Self::Capacity => 4,
        }
    }
}

/// Anything that can stop the host from doing what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The model could not be found or fetched.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The model's file is bad.
    #[error("model file: {0}")]
    Gguf(#[from] GgufError),
    /// The model's numbers are bad, or of a kind that is not supported.
    #[error("model file: {0}")]
    Config(#[from] ConfigError),
    /// The model's tokenizer.
    #[error("tokenizer: {0}")]
    Tokenizer(#[from] TokenizerError),
    /// The model's chat template.
    #[error("chat template: {0}")]
    Template(#[from] TemplateError),
    /// The model on the device.
    #[error(transparent)]
    Llama(#[from] LlamaError),
    /// A value head.
    #[error(transparent)]
    Head(#[from] HeadError),
    /// A value head of the caller's.
    #[error("head {path}: {source}")]
    HeadFile {
        /// Where.
        path: String,
        /// What is wrong with it.
        source: HeadError,
    },
    /// The sandbox could not be made.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// A policy or a reward was refused.
    #[error(transparent)]
    Policy(#[from] LoadError),
    /// A setting of a policy was refused.
    #[error(transparent)]
    Setting(#[from] SettingError),
    /// A request was refused.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The engine.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A name that nothing bears.
    #[error("there is no {what} {name:?}{}", hint(.near, .all))]
    Unknown {
        /// What was looked for: a policy, a head, ...
        what: &'static str,
        /// The name given.
        name: String,
        /// Names close to it.
        near: Vec<String>,
        /// All names.
        all: Vec<String>,
    },
    /// A file of the caller's.
    #[error("{what} {path}: {source}")]
    File {
        /// What it is.
        what: &'static str,
        /// Where.
        path: String,
        /// The system's words.
        source: std::io::Error,
    },
    /// The prompts' file is bad.
    #[error(transparent)]
    Prompts(#[from] PromptsError),
    /// The rollouts' file is bad, or could not be written.
    #[error(transparent)]
    Rollouts(#[from] RolloutsError),
    /// The words that name a reward.
    #[error(transparent)]
    Reward(#[from] SpecError),
    /// A learned reward's file.
    #[error(transparent)]
    RewardFile(#[from] RewardFileError),
    /// Preference pairs.
    #[error(transparent)]
    Pairs(#[from] PairsError),
    /// A reward had no score for too many responses.
    #[error(transparent)]
    Scores(#[from] Box<ScoresError>),
    /// An evaluation's journal.
    #[error(transparent)]
    Decoded(#[from] DecodedError),
    /// A policy's or a reward's crate made no component.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// `vassal policy check` found something.
    #[error("{guest} would be refused: see {stage:?} above")]
    Refused {
        /// Which component.
        guest: Guest,
        /// The first stage that refused it.
        stage: &'static str,
    },
    /// A policy that nobody answers for whom its tenant trusts.
    #[error(transparent)]
    Signature(#[from] SignatureError),
    /// A key for signatures.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// A tenant's configuration, or what it does not allow.
    #[error(transparent)]
    Tenant(#[from] TenantError),
    /// Nothing could be fitted.
    #[error(transparent)]
    Fit(#[from] FitError),
    /// A policy's fault ended a response.
    #[error("the response was ended by a fault of {0}")]
    Fault(Fault),
    /// An audit file is wrong, or cannot be written.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// A record cannot be replayed here.
    #[error("replay: {0}")]
    Replay(#[from] ReplayError),
    /// A replay gave something else: a promise of this program is broken.
    #[error("record {record} differs from its replay in {difference}")]
    Difference {
        /// Which, from 1.
        record: u64,
        /// The first difference.
        difference: Difference,
    },
    /// Anything else that the caller asked for wrongly.
    #[error("{0}")]
    Usage(String),
}

impl Error {
    /// There is no `what` of this name among `all`.
    pub fn unknown<'a>(what: &'static str, name: &str, all: impl Iterator<Item = &'a str> + Clone) -> Self {
        let near = near_names(name, all.clone());
        Self::Unknown { what, name: name.to_owned(), near, all: all.map(str::to_owned).collect() }
    }

    /// Whose fault it is.
    pub fn cause(&self) -> Cause {
        match self {
            Self::Fault(fault) | Self::Policy(LoadError::Describe(fault)) if fault.kind == FaultKind::Capacity => {
                Cause::Capacity
            }
            Self::Fault(fault) | Self::Policy(LoadError::Describe(fault)) if fault.kind.is_the_hosts() => Cause::Host,
            Self::Policy(error) if error.is_the_hosts() => Cause::Host,
            Self::File { source, .. }
            | Self::Rollouts(RolloutsError::File { source, .. })
            | Self::Rollouts(RolloutsError::Lines(JournalError::File { source, .. }))
            | Self::Decoded(DecodedError::Lines(JournalError::File { source, .. }))
            | Self::RewardFile(RewardFileError::File { source, .. })
            | Self::Pairs(PairsError::File { source, .. })
            | Self::Head(HeadError::File { source, .. })
            | Self::HeadFile { source: HeadError::File { source, .. }, .. }
            | Self::Key(KeyError::File { source, .. })
            | Self::Gguf(GgufError::Open { source, .. } | GgufError::Read { source, .. }) => cause_of_io(source),
            Self::Policy(_) | Self::Fault(_) | Self::Refused { .. } | Self::Signature(_) | Self::Scores(_) => {
                Cause::Guest
            }
            Self::Build(BuildError::NotAComponent(_) | BuildError::NoGuest(_)) => Cause::Guest,
            Self::Build(BuildError::NoCrate(_) | BuildError::NoModule(_) | BuildError::Cargo { .. }) => Cause::Client,
            Self::Build(_) | Self::Key(KeyError::NoRandomness) => Cause::Host,
            Self::Audit(AuditError::Write { .. } | AuditError::TooLong { .. }) | Self::Difference { .. } => Cause::Host,
            Self::Tenant(TenantError::Quota { .. }) => Cause::Capacity,
            Self::Tenant(TenantError::Policy { source, .. }) => source.cause(),
            Self::Llama(LlamaError::Device(error)) => cause_of_device(error),
            Self::Engine(error) | Self::Fit(FitError::Engine(error)) => cause_of_engine(error),
            Self::Setting(_)
            | Self::Request(_)
            | Self::Unknown { .. }
            | Self::Usage(_)
            | Self::Audit(_)
            | Self::Replay(_)
            | Self::Prompts(_)
            | Self::Rollouts(_)
            | Self::Reward(_)
            | Self::RewardFile(_)
            | Self::Pairs(_)
            | Self::Decoded(_)
            | Self::Fit(_)
            | Self::Gguf(_)
            | Self::Config(_)
            | Self::Tokenizer(_)
            | Self::Template(_)
            | Self::HeadFile { .. }
            | Self::Key(_)
            | Self::Tenant(_)
            | Self::Head(_) => Cause::Client,
            Self::Source(SourceError::Unknown { .. } | SourceError::Path { .. }) => Cause::Client,
            Self::Source(_) | Self::Llama(_) | Self::Sandbox(_) => Cause::Host,
        }
    }
}

/// Whose fault an engine's error is, whoever drove it.
fn cause_of_engine(error: &EngineError) -> Cause {
    match error {
        EngineError::Device(error) => cause_of_device(error),
        EngineError::Memory { .. } | EngineError::TooLong { .. } => Cause::Capacity,
        EngineError::TooManyPolicies { .. } | EngineError::Full { .. } => Cause::Capacity,
        EngineError::HeadNotOffered { .. } | EngineError::Head(_) | EngineError::Options { .. } => Cause::Client,
        EngineError::Failed { .. } | EngineError::NoTap { .. } => Cause::Host,
    }
}

/// Whose fault a device's error is: who asks for a card where there is none asked wrongly.
fn cause_of_device(error: &DeviceError) -> Cause {
    match error {
        DeviceError::Memory { .. } => Cause::Capacity,
        DeviceError::NoDriver
        | DeviceError::DriverTooOld { .. }
        | DeviceError::NoDevice { .. }
        | DeviceError::CardTooOld { .. } => Cause::Client,
        DeviceError::Shape { .. } | DeviceError::Lost { .. } | DeviceError::Failed { .. } => Cause::Host,
    }
}

/// Whose fault it is that a file cannot be read or written: a path that leads nowhere, or to what is no file, is the
/// client's; a disk that is full or fails is the host's.
fn cause_of_io(error: &std::io::Error) -> Cause {
    use std::io::ErrorKind;
    match error.kind() {
        ErrorKind::NotFound
        | ErrorKind::PermissionDenied
        | ErrorKind::NotADirectory
        | ErrorKind::IsADirectory
        | ErrorKind::AlreadyExists
        | ErrorKind::InvalidInput
        | ErrorKind::InvalidFilename
        | ErrorKind::InvalidData
        | ErrorKind::UnexpectedEof => Cause::Client,
        _ => Cause::Host,
    }
}
