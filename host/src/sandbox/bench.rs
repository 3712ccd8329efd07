//! What a sandboxed call costs: many live instances asked in turn, as a batch would ask them.
//!
//! Three workloads of the caller's choice (a policy without `values`, one with values prefetched, one that
//! asks for them) take turns in one process, and medians over rounds are reported. All safeties are on,
//! because there is no way to switch them off. What a model or a head costs is not in these figures.

use super::compiler::seal::Subject;
use super::{
    ChildCompiler, Compilation, CompiledPolicy, Fault, Guest, HeadOffer, Instance, Limits, LoadError, Manifest, Needs,
    Progress, Sandbox, SandboxError, Scope, SettingError, StartRequest, Step, ValueAnswer, VocabularyText, settings,
};
use crate::token::{Token, Vocabulary};
use sha2::{Digest, Sha256};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

/// A component and how it is set.
#[derive(Debug, Clone, Copy)]
pub struct Workload<'a> {
    /// The component.
    pub component: &'a [u8],
    /// Its settings, by name.
    pub settings: &'a [(&'a str, &'a str)],
}

/// What is measured, and how long.
#[derive(Debug, Clone, Copy)]
pub struct Bench<'a> {
    /// A policy that does not import `values`.
    pub plain: Workload<'a>,
    /// One that imports `values` and works on what is prefetched.
    pub prefetched: Workload<'a>,
    /// One that asks for its values.
    pub suspended: Workload<'a>,
    /// Live instances, asked in turn.
    pub sequences: usize,
    /// Steps of each instance that are timed, at least.
    pub rounds: usize,
}

/// The figures for one number of candidates; times are medians.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Row {
    /// Candidates of each step.
    pub candidates: usize,
    /// Live instances.
    pub sequences: usize,
    /// A step without `values`, nanoseconds.
    pub plain_call_ns: f64,
    /// A step with `values` imported and not called, nanoseconds.
    pub prefetched_ns: f64,
    /// A step suspended in `evaluate` until all have asked, nanoseconds.
    pub suspended_ns: f64,
    /// Instantiation and `start` of a policy, microseconds: the dearest of the three.
    pub start_us: f64,
}

/// What it takes until a component can be started; times are medians, milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct LoadTimes {
    /// Validated, compiled in a child, taken in and compared with the contract.
    pub cold_ms: f64,
    /// The same with the machine code in the cache.
    pub cached_ms: f64,
    /// A child that is started and compiles an empty component.
    pub child_start_ms: f64,
}

/// Why there are no figures.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// A workload does not load.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// There is no sandbox.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// A workload's settings are refused.
    #[error(transparent)]
    Setting(#[from] SettingError),
    /// A workload is at fault.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// A workload is not what it is said to be.
    #[error("the workload `{0}` does not do what it is there to measure")]
    Workload(&'static str),
}

/// Timed rounds before the next workload has its turn.
const ROUNDS_A_TURN: usize = 20;

/// The head that workloads are offered: its name is its dial's in `vas`.
pub const HEAD: &str = "value";

/// Loads of each kind, in turn.
const LOADS: usize = 9;

/// A component without anything in it.
const EMPTY: &[u8] = b"\0asm\x0d\0\x01\0";

/// Measures loading, by a compiler that is this program, with a cache in a folder that is the caller's.
///
/// # Errors
/// If the component does not load, or there is no compiler.
pub fn measure_load(component: &[u8], cache: &Path) -> Result<LoadTimes, BenchError> {
    let limits = Limits { sequences: 2, ..Limits::default() };
    let child = |cache: Option<&Path>| ChildCompiler { program: None, cache: cache.map(Path::to_owned) };
    let without = Sandbox::new(limits.clone(), Compilation::Child(child(None)))?;
    let with = Sandbox::new(limits.clone(), Compilation::Child(child(Some(cache))))?;
    let empty = Subject { component: Sha256::digest(EMPTY).into(), settings: without.0.settings };
    let timed = |run: &dyn Fn() -> Result<(), LoadError>| -> Result<f64, LoadError> {
        let before = Instant::now();
        run()?;
        Ok(before.elapsed().as_secs_f64() * 1e3)
    };
    let mut times: [Vec<f64>; 3] = Default::default();
    // The first round fills the cache.
    for round in 0..=LOADS {
        let cold = timed(&|| without.compile("load", component).map(drop))?;
        let cached = timed(&|| with.compile("load", component).map(drop))?;
        let start = timed(&|| {
            let code = child(None).code(EMPTY, &empty, &limits, true);
            code.map(drop).map_err(|failure| LoadError::uncompiled(&Guest::policy("empty"), failure, &limits))
        })?;
        if round > 0 {
            times.iter_mut().zip([cold, cached, start]).for_each(|(times, time)| times.push(time));
        }
    }
    let [cold_ms, cached_ms, child_start_ms] = times.map(median);
    Ok(LoadTimes { cold_ms, cached_ms, child_start_ms })
}

/// Measures each number of candidates.
///
/// # Errors
/// If a workload does not load, is at fault, or suspends where it should not (or the reverse).
pub fn measure(sandbox: &Sandbox, bench: &Bench<'_>, candidates: &[usize]) -> Result<Vec<Row>, BenchError> {
    let text = VocabularyText::new(Arc::new(BlankVocabulary));
    let mut plain = Runner::load(sandbox, "plain", &bench.plain, &text)?;
    let mut prefetched = Runner::load(sandbox, "prefetched", &bench.prefetched, &text)?;
    let mut suspended = Runner::load(sandbox, "suspended", &bench.suspended, &text)?;
    if plain.compiled.imports_values() || !suspended.compiled.imports_values() {
        return Err(BenchError::Workload("plain"));
    }
    let mut rows = Vec::new();
    for &k in candidates {
        let step = Inputs::new(k);
        let starts = [&mut plain, &mut prefetched, &mut suspended].map(|runner| runner.restart(bench.sequences));
        let mut start_us = 0.0_f64;
        for start in starts {
            start_us = start_us.max(start?);
        }
        let mut times = [Vec::new(), Vec::new(), Vec::new()];
        // In turns of some rounds, so that whatever else the machine does falls on all three alike, and each
        // has the caches to its own instances.
        while times[0].len() < bench.rounds.max(1) {
            let runners = [(&mut plain, false), (&mut prefetched, false), (&mut suspended, true)];
            for ((runner, suspends), times) in runners.into_iter().zip(&mut times) {
                runner.round(&step, suspends)?;
                for _ in 0..ROUNDS_A_TURN {
                    times.push(runner.round(&step, suspends)?);
                }
            }
        }
        let [plain_call_ns, prefetched_ns, suspended_ns] = times.map(median);
        rows.push(Row {
            candidates: k,
            sequences: bench.sequences,
            plain_call_ns,
            prefetched_ns,
            suspended_ns,
            start_us,
        });
    }
    Ok(rows)
}

/// One workload and its live instances.
pub(super) struct Runner<'a> {
    name: &'static str,
    text: &'a Arc<VocabularyText>,
    pub(super) compiled: CompiledPolicy,
    pub(super) manifest: Arc<Manifest>,
    pub(super) settings: Vec<super::SettingValue>,
    pub(super) instances: Vec<Instance>,
    response: u32,
}

impl<'a> Runner<'a> {
    pub(super) fn load(
        sandbox: &Sandbox,
        name: &'static str,
        workload: &Workload<'_>,
        text: &'a Arc<VocabularyText>,
    ) -> Result<Self, BenchError> {
        let compiled = sandbox.compile(name, workload.component)?;
        let offered = [HeadOffer { name: HEAD.into(), kind: "value".into(), spread: 0.1 }];
        let manifest = Arc::new(compiled.describe(&offered, Needs::ALL)?);
        let settings = settings::resolve(&manifest, workload.settings, Scope::Tenant, sandbox.limits())?;
        Ok(Self { name, text, compiled, manifest, settings, instances: Vec::new(), response: 0 })
    }

    /// Replaces the live instances; returns the median time of a start, microseconds.
    pub(super) fn restart(&mut self, sequences: usize) -> Result<f64, BenchError> {
        let mut times = Vec::new();
        // Twice, because the pool's memories are touched for the first time in the first.
        for _ in 0..2 {
            self.instances.clear();
            times.clear();
            for seed in 0..sequences as u64 {
                let request = StartRequest {
                    settings: &self.settings,
                    prompt: &[],
                    candidates: 256,
                    max_tokens: 1_000,
                    temperature: 1.0,
                    top_p: 1.0,
                    seed,
                };
                let before = Instant::now();
                let instance = self.compiled.start(&self.manifest, &request, self.text)?;
                times.push(before.elapsed().as_secs_f64() * 1e6);
                self.instances.push(instance);
            }
        }
        self.response = 0;
        Ok(median(times))
    }

    /// One step of every instance; returns the time of one, nanoseconds.
    pub(super) fn round(&mut self, inputs: &Inputs, suspends: bool) -> Result<f64, BenchError> {
        let step = inputs.step(self, suspends);
        self.response += 1;
        // Somebody's evaluation brings the answers, so they are not the sandbox's time.
        let answers = if suspends { self.instances.len() } else { 0 };
        let mut answers: Vec<_> = (0..answers).map(|_| ValueAnswer::Values(inputs.values.clone())).collect();
        let before = Instant::now();
        for instance in &mut self.instances {
            match instance.decide(&step) {
                Progress::Decided(_) if !suspends => {}
                Progress::Wants(_) if suspends => {}
                Progress::Faulted(fault) => return Err(fault.into()),
                _ => return Err(BenchError::Workload(self.name)),
            }
        }
        if suspends {
            for (instance, answer) in self.instances.iter_mut().zip(answers.drain(..)) {
                match instance.resume(answer) {
                    Progress::Decided(_) => {}
                    Progress::Faulted(fault) => return Err(fault.into()),
                    Progress::Wants(_) => return Err(BenchError::Workload(self.name)),
                }
            }
        }
        Ok(before.elapsed().as_secs_f64() * 1e9 / self.instances.len().max(1) as f64)
    }
}

/// What every step shows.
pub(super) struct Inputs {
    candidates: Vec<Token>,
    logits: Vec<f32>,
    values: Vec<f32>,
}

impl Inputs {
    pub(super) fn new(k: usize) -> Self {
        let tokens = 0..k.max(1) as u32;
        Self {
            candidates: tokens.clone().map(|token| token * 7).collect(),
            logits: tokens.clone().map(|token| 10.0 - token as f32 * 0.1).collect(),
            values: tokens.map(|token| (token % 5) as f32 * 0.1).collect(),
        }
    }

    /// The next step of a runner's instances.
    pub(super) fn step(&self, runner: &Runner<'_>, suspends: bool) -> Step<'_> {
        let prefetches = !suspends && !runner.manifest.heads.is_empty();
        Step {
            kept: runner.response.saturating_sub(1),
            appended: if runner.response == 0 { &[] } else { &self.candidates[..1] },
            candidates: &self.candidates,
            logits: &self.logits,
            prefetched: u32::from(prefetches),
            values: if prefetches { &self.values } else { &[] },
            log_normalizer: 1.0,
            entropy: 1.0,
            ended: false,
        }
    }
}

/// As many tokens as the default model has, without text.
pub(super) struct BlankVocabulary;

impl Vocabulary for BlankVocabulary {
    fn size(&self) -> usize {
        49_152
    }
    fn bytes(&self, _: Token) -> &[u8] {
        &[]
    }
    fn is_special(&self, _: Token) -> bool {
        false
    }
    fn tokens(&self, _: &str) -> Vec<Token> {
        Vec::new()
    }
    fn end_of_text(&self) -> &[Token] {
        &[0]
    }
}

/// The figure that this share of the others does not exceed; `sorted` ascending, and the answer NaN where it is empty.
pub fn percentile(sorted: &[f64], share: f64) -> f64 {
    let place = (sorted.len() as f64 * share) as usize;
    sorted.get(place.min(sorted.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
}

/// The figure in the middle.
pub fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_unstable_by(f64::total_cmp);
    percentile(&figures, 0.5)
}
