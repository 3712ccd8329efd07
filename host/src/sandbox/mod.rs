//! The sandbox: runs policies and rewards that nobody has to trust.
//!
//! Three lifetimes. A [`Sandbox`] is the process's: the runtime's configuration, its pool and its clock.
//! A [`CompiledPolicy`] is a component that has been checked against the contract and compiled; responses
//! share it. An [`Instance`] serves one response: it is started, asked once a step, and dropped; a fault
//! ends it and touches nobody else. A [`CompiledReward`] went the same road, and has an instance a call.
//!
//! The sandbox knows values only as an [`ValueRequest`] that it hands out and an answer that it is
//! given: it knows no model, no device and no server. Every number that bounds a guest is in [`Limits`].
//! There is no asynchronous runtime: a guest that waits for values is simply polled again by its driver.
//!
//! Start at `compiled.rs` for what happens to a file, at `instance.rs` for what happens in a step, at `reward/` for
//! what happens to a finished response. A file is looked at first by `validate.rs`, and compiled by a child process
//! (`compiler/`).

pub mod bench;
pub mod bench_live;
pub mod caps;
pub mod compiler;
pub mod contract;
pub mod decision;
pub mod fault;
pub mod guest;
pub mod instance;
pub mod limits;
pub mod load_error;
pub mod manifest;
pub mod plan;
pub mod policy;
pub mod reward;
pub mod settings;
pub mod starting;
pub mod step;
pub mod text;
pub mod words;

mod bindings;
mod compiled;
mod config;
mod imports;
mod slice;
mod validate;
mod values;

pub use caps::{Cap, Footprint};
pub use compiler::{ChildCompiler, Compilation, CompilerError};
pub use contract::ContractError;
pub use decision::{BadDecision, Baseline, Decision, HeadWeight, Steering, Tail};
pub use fault::{BadCall, Fault, FaultKind, TrapCode};
pub use guest::{Guest, GuestKind};
pub use instance::Instance;
pub use limits::Limits;
pub use load_error::LoadError;
pub use manifest::{HeadOffer, Manifest, ManifestError, Needs, Scope, Setting, SettingKind, SettingValue};
pub use plan::{BadPlan, BadSchedule, Plan, Schedule};
pub use policy::{CompiledPolicy, StartRequest};
pub use reward::{CompiledReward, Exchange, RewardManifest, ScoreFault};
pub use settings::SettingError;
pub use starting::Starting;
pub use step::{Progress, Step, ValueAnswer, ValueRequest};
pub use text::VocabularyText;
pub use validate::inspect;

use contract::Contract;
use imports::StoreData;
use std::sync::Arc;
use wasmtime::Engine;
use wasmtime::component::Linker;

/// Where policies run. Clones share everything; the clock ends with the last of them and of what they made.
#[derive(Clone)]
pub struct Sandbox(Arc<Shared>);

struct Shared {
    engine: Engine,
    limits: Arc<Limits>,
    compilation: Compilation,
    /// What machine code must have been compiled for.
    settings: [u8; 32],
    /// Epochs in a window of the clock.
    window_ticks: u64,
    /// For policies without `values`, until they are slow.
    plain: Linker<StoreData>,
    /// For the others.
    suspending: Linker<StoreData>,
    /// For rewards: nothing is linked.
    empty: Linker<StoreData>,
    policies: Contract,
    rewards: Contract,
    /// What `describe` sees of the vocabulary.
    no_text: Arc<VocabularyText>,
}

/// Why there is no sandbox: limits that the machine cannot give, or no thread for the clock.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The runtime refused the configuration made from the limits.
    #[error("the sandbox's runtime cannot be set up: {0}")]
    Runtime(String),
    /// No thread for the clock.
    #[error("the sandbox's clock cannot be started: {0}")]
    Clock(#[from] std::io::Error),
}

impl Shared {
    /// What guests of a kind have to keep.
    fn contract(&self, kind: GuestKind) -> &Contract {
        match kind {
            GuestKind::Policy => &self.policies,
            GuestKind::Reward => &self.rewards,
        }
    }
}

impl Sandbox {
    /// Reserves the pool and starts the clock. Nothing is compiled before a component is given.
    ///
    /// # Errors
    /// If the machine cannot give what the limits ask for (address space, mostly).
    pub fn new(limits: Limits, compilation: Compilation) -> Result<Self, SandboxError> {
        let runtime = |error: wasmtime::Error| SandboxError::Runtime(format!("{error:#}"));
        if limits.fuel_slice == 0 || limits.deadline_windows == 0 || limits.score_windows == 0 {
            return Err(SandboxError::Runtime(
                "the limits `fuel_slice`, `deadline_windows` and `score_windows` are at least 1, got 0".into(),
            ));
        }
        let engine = Engine::new(&config::config(&limits)).map_err(runtime)?;
        let (plain, suspending) = imports::linkers(&engine).map_err(runtime)?;
        let policies = Contract::new(&engine, GuestKind::Policy).map_err(runtime)?;
        let rewards = Contract::new(&engine, GuestKind::Reward).map_err(runtime)?;
        let window_ticks = config::start_clock(&engine, limits.deadline_ms)?;
        let settings = config::settings_digest(&engine);
        Ok(Self(Arc::new(Shared {
            empty: Linker::new(&engine),
            engine,
            compilation,
            settings,
            limits: Arc::new(limits),
            window_ticks,
            plain,
            suspending,
            policies,
            rewards,
            no_text: VocabularyText::empty(),
        })))
    }

    /// The limits that every guest here runs under.
    pub fn limits(&self) -> &Limits {
        &self.0.limits
    }
}
