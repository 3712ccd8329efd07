//! A reward's component: a stranger's judge of finished responses.
//!
//! [`Sandbox::compile_reward`] takes it the road of every component (`compiled.rs`), under the contract of rewards,
//! which has no imports. [`CompiledReward::score`] gives it exchanges in calls, each in an instance of its own, and
//! checks each number that comes back. What fails is one exchange's: where a call fails, its exchanges are given
//! again, one at a time, so that only those fail that do so alone.
//!
//! **Why an instance a call.** Nothing that a reward remembers can reach another call: no caller's texts, and no
//! score by the order in which calls came. Within a call it could tell its first exchange from its second; the SDK
//! gives an author no way to, and `vassal policy check` compares scores given together, alone and in another order. An
//! instance an exchange would rule it out, and would prepare a reward's word lists anew for each.
//!
//! Start at [`CompiledReward::score`].

mod bindings;
mod manifest;

pub use manifest::RewardManifest;

use super::Sandbox;
use super::caps::Footprint;
use super::compiled::{Loaded, instantiate_and_call};
use super::fault::Fault;
use super::guest::Guest;
use super::imports::StoreData;
use super::limits::Limits;
use super::load_error::LoadError;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, OnceLock};
use wasmtime::component::{ComponentExportIndex, ComponentNamedList, InstancePre, Lift, Lower};

/// A reward's component, checked and compiled. Clones share it, also between threads.
#[derive(Clone)]
pub struct CompiledReward(Arc<Compiled>);

struct Compiled {
    loaded: Loaded,
    instance: InstancePre<StoreData>,
    describe: ComponentExportIndex,
    score: ComponentExportIndex,
    /// What it has said of itself.
    manifest: OnceLock<RewardManifest>,
}

impl fmt::Debug for CompiledReward {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("CompiledReward").field("name", &self.name()).finish_non_exhaustive()
    }
}

/// A finished response, and what it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exchange<'a> {
    /// What the user wrote, without marks of a chat template; may be empty.
    pub prompt: &'a str,
    /// What the model answered, without special tokens; may be empty.
    pub response: &'a str,
}

impl Exchange<'_> {
    /// Its text, bytes.
    fn bytes(&self) -> usize {
        self.prompt.len().saturating_add(self.response.len())
    }
}

/// Why one exchange has no score.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ScoreFault {
    /// More text than the contract lets a call have: whoever asks is to blame, nobody else.
    #[error("{bytes} bytes of prompt and response, at most {limit_bytes} can be scored")]
    TooLong {
        /// The exchange's text.
        bytes: usize,
        /// The limit.
        limit_bytes: usize,
    },
    /// The reward is refused: its `describe` failed, or what it said.
    #[error(transparent)]
    Refused(Box<LoadError>),
    /// The guest failed over the exchange alone; or the host, as the fault's kind says.
    #[error("{0}")]
    Fault(Fault),
    /// The guest answered another number of scores than one.
    #[error("{given} scores for one exchange")]
    Count {
        /// How many.
        given: usize,
    },
    /// The score is NaN.
    #[error("the score is not a number")]
    NotANumber,
    /// The score is outside the range that the manifest gives; an infinity always is.
    #[error("the score {given} is outside the reward's range, {minimum} to {maximum}")]
    OutOfRange {
        /// The score.
        given: f64,
        /// The manifest's minimum.
        minimum: f64,
        /// The manifest's maximum.
        maximum: f64,
    },
}

impl ScoreFault {
    /// Whether the host, not the guest, is to blame.
    pub fn is_the_hosts(&self) -> bool {
        match self {
            Self::Fault(fault) => fault.kind.is_the_hosts(),
            Self::Refused(error) => error.is_the_hosts(),
            Self::TooLong { .. } | Self::Count { .. } | Self::NotANumber | Self::OutOfRange { .. } => false,
        }
    }
}

impl Sandbox {
    /// Checks and compiles a reward's component. `name` is the host's name for it, used in errors.
    ///
    /// # Errors
    /// [`LoadError`], before any code of the guest has run.
    pub fn compile_reward(&self, name: &str, bytes: &[u8]) -> Result<CompiledReward, LoadError> {
        let (loaded, component) = self.load(Guest::reward(name), bytes)?;
        let instance = self.0.empty.instantiate_pre(&component);
        Ok(CompiledReward(Arc::new(Compiled {
            instance: instance.map_err(|error| LoadError::invalid(&loaded.guest, &format!("{error:#}")))?,
            describe: loaded.export(&component, "describe")?,
            score: loaded.export(&component, "score")?,
            loaded,
            manifest: OnceLock::new(),
        })))
    }
}

impl CompiledReward {
    /// The host's name for it.
    pub fn name(&self) -> &str {
        &self.0.loaded.guest.name
    }

    /// The component's SHA-256.
    pub fn sha256(&self) -> &[u8; 32] {
        &self.0.loaded.sha256
    }

    /// The component's size, bytes.
    pub fn size_bytes(&self) -> usize {
        self.0.loaded.size_bytes()
    }

    /// What the component is made of.
    pub fn footprint(&self) -> &Footprint {
        &self.0.loaded.footprint
    }

    /// The functions that it imports: none, because the contract has none.
    pub fn imports(&self) -> &[String] {
        &self.0.loaded.imports
    }

    /// Asks the guest what it is, in two instances that must agree, and validates the answer; once, unless that failed.
    ///
    /// # Errors
    /// [`LoadError::Describe`] if the guest fails, [`LoadError::Manifest`] if its manifest is refused.
    pub fn describe(&self) -> Result<RewardManifest, LoadError> {
        self.0.manifest().cloned()
    }

    /// The score of each exchange, in their order: finite, within the manifest's range. A score is never made up: what
    /// has none has a [`ScoreFault`]. Takes as long as the guest does, at most its budget for each exchange twice.
    pub fn score(&self, exchanges: &[Exchange<'_>]) -> Vec<Result<f64, ScoreFault>> {
        let compiled = &self.0;
        let manifest = match compiled.manifest() {
            Ok(manifest) => manifest,
            Err(error) => return vec![Err(ScoreFault::Refused(Box::new(error))); exchanges.len()],
        };
        let mut scores = Vec::with_capacity(exchanges.len());
        for call in calls(exchanges, &compiled.loaded.shared.limits) {
            let call = &exchanges[call];
            match compiled.call(call) {
                Ok(given) if given.len() == call.len() => {
                    scores.extend(given.into_iter().map(|score| checked(score, manifest)));
                }
                // One of them is the cause, and alone it fails alone.
                _ if call.len() > 1 => {
                    scores.extend(call.chunks(1).map(|alone| of_one(compiled.call(alone), manifest)));
                }
                answer => scores.push(of_one(answer, manifest)),
            }
        }
        scores
    }
}

/// Which exchanges are given in one call: neighbours, as many as may be.
fn calls(exchanges: &[Exchange<'_>], limits: &Limits) -> Vec<Range<usize>> {
    let mut calls: Vec<Range<usize>> = Vec::new();
    let mut bytes = 0_usize;
    for (place, exchange) in exchanges.iter().enumerate() {
        bytes = bytes.saturating_add(exchange.bytes());
        match calls.last_mut() {
            Some(call) if call.len() < limits.score_exchanges && bytes <= limits.score_text_bytes => call.end += 1,
            _ => {
                bytes = exchange.bytes();
                calls.push(place..place + 1);
            }
        }
    }
    calls
}

impl Compiled {
    fn manifest(&self) -> Result<&RewardManifest, LoadError> {
        if let Some(manifest) = self.manifest.get() {
            return Ok(manifest);
        }
        let shared = &self.loaded.shared;
        let described = || {
            let answer =
                self.run::<_, (bindings::Manifest,)>("describe", self.describe, shared.limits.fuel_describe, ());
            let (raw,) = answer.map_err(LoadError::Describe)?;
            RewardManifest::check(raw, &shared.limits).map_err(|error| self.loaded.refused(error))
        };
        let manifest = self.loaded.agreed(described, RewardManifest::difference)?;
        Ok(self.manifest.get_or_init(|| manifest))
    }

    /// What the guest answers for exchanges that go into one call, not checked.
    fn call(&self, exchanges: &[Exchange<'_>]) -> Result<Vec<f64>, ScoreFault> {
        let limits = &self.loaded.shared.limits;
        let bytes = exchanges.iter().map(Exchange::bytes).fold(0, usize::saturating_add);
        if bytes > limits.score_text_bytes {
            return Err(ScoreFault::TooLong { bytes, limit_bytes: limits.score_text_bytes });
        }
        let fuel = limits.fuel_score.saturating_mul(exchanges.len() as u64);
        let fuel = limits.fuel_score_byte.saturating_mul(bytes as u64).saturating_add(fuel);
        let lowered = exchanges.iter().map(|&Exchange { prompt, response }| bindings::Exchange { prompt, response });
        let lowered: Vec<_> = lowered.collect();
        let answer = self.run::<_, (Vec<f64>,)>("score", self.score, fuel, (&lowered[..],));
        answer.map(|(scores,)| scores).map_err(ScoreFault::Fault)
    }

    /// One call of a new instance, to its end.
    fn run<P, R>(&self, name: &str, export: ComponentExportIndex, fuel: u64, parameters: P) -> Result<R, Fault>
    where
        P: ComponentNamedList + Lower,
        R: ComponentNamedList + Lift,
    {
        let shared = &self.loaded.shared;
        let mut data = StoreData::new(shared, &shared.no_text);
        data.windows = shared.limits.score_windows;
        let answer = self.loaded.store(data, fuel).and_then(|mut store| {
            instantiate_and_call(&self.instance, &mut store, export, parameters).map(|(_, answer)| answer)
        });
        answer.map_err(|error| {
            let (call, limits) = (format!("instantiation and `{name}`"), &shared.limits);
            Fault::from_error(&self.loaded.guest, &error, None).of_call(&call, fuel, limits.score_windows, limits)
        })
    }
}

/// The score of an exchange that was alone in its call.
fn of_one(answer: Result<Vec<f64>, ScoreFault>, manifest: &RewardManifest) -> Result<f64, ScoreFault> {
    match answer?[..] {
        [score] => checked(score, manifest),
        ref given => Err(ScoreFault::Count { given: given.len() }),
    }
}

/// A number, if it is a score.
fn checked(score: f64, manifest: &RewardManifest) -> Result<f64, ScoreFault> {
    let RewardManifest { minimum, maximum, .. } = *manifest;
    if (minimum..=maximum).contains(&score) {
        Ok(score)
    } else if score.is_nan() {
        Err(ScoreFault::NotANumber)
    } else {
        Err(ScoreFault::OutOfRange { given: score, minimum, maximum })
    }
}
