//! What sandboxed calls cost beyond their median: the slowest of a million, many alive at once, the safeties themselves.
//!
//! Beside `bench.rs`, whose workloads these are. [`measure_safeties`] has an engine of its own without fuel and clock, which
//! is the only one there is: it runs a component of ours, in this file, and nothing else can have one.

use super::bench::{BenchError, BlankVocabulary, Inputs, Runner, Workload, median, percentile};
use super::imports::{POLICY, StoreData, linkers, start_clock, window_passed};
use super::step::refill;
use super::{Progress, Sandbox, StartRequest, VocabularyText, bindings, config};
use std::sync::Arc;
use std::time::Instant;
use wasmtime::component::{Component, TypedFunc};
use wasmtime::{Engine, Store};

/// How long a step takes, over very many of them; nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Percentiles {
    /// Steps timed, each by itself.
    pub steps: usize,
    /// The median.
    pub p50_ns: f64,
    /// 99 of 100 steps take at most this.
    pub p99_ns: f64,
    /// 999 of 1,000 do.
    pub p999_ns: f64,
}

/// What many live instances hold.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Live {
    /// Instances alive at once, each of which has answered a step.
    pub instances: usize,
    /// Resident memory of each, bytes.
    pub resident_bytes: f64,
    /// Mappings of each.
    pub mappings: f64,
}

/// Candidates of a step where their number is not what is measured.
const STEP_CANDIDATES: usize = 20;

/// Calls that are timed together.
const CALLS_A_TURN: usize = 200;

/// Times every step of a workload that is not suspended, `steps` of them, over `sequences` instances in turn.
///
/// # Errors
/// As [`super::bench::measure`].
pub fn measure_steps(
    sandbox: &Sandbox,
    workload: &Workload<'_>,
    sequences: usize,
    steps: usize,
) -> Result<Percentiles, BenchError> {
    let text = VocabularyText::new(Arc::new(BlankVocabulary));
    let mut runner = Runner::load(sandbox, "steps", workload, &text)?;
    runner.restart(sequences)?;
    let inputs = Inputs::new(STEP_CANDIDATES);
    runner.round(&inputs, false)?;
    let mut times = Vec::with_capacity(steps);
    let one = inputs.step(&runner, false);
    while times.len() < steps {
        for instance in &mut runner.instances {
            let before = Instant::now();
            let progress = instance.decide(&one);
            times.push(before.elapsed().as_nanos() as f64);
            if let Progress::Faulted(fault) = progress {
                return Err(fault.into());
            }
        }
    }
    times.sort_unstable_by(f64::total_cmp);
    let [p50_ns, p99_ns, p999_ns] = [0.5, 0.99, 0.999].map(|share| percentile(&times, share));
    Ok(Percentiles { steps: times.len(), p50_ns, p99_ns, p999_ns })
}

/// Keeps so many instances alive, each after a step, and says what they hold. None where the system does not say.
///
/// # Errors
/// As [`super::bench::measure`].
pub fn measure_live(sandbox: &Sandbox, workload: &Workload<'_>, instances: usize) -> Result<Option<Live>, BenchError> {
    let text = VocabularyText::new(Arc::new(BlankVocabulary));
    let mut runner = Runner::load(sandbox, "live", workload, &text)?;
    let Some(before) = held() else { return Ok(None) };
    runner.restart(instances)?;
    runner.round(&Inputs::new(STEP_CANDIDATES), false)?;
    Ok(held().map(|after| Live {
        instances,
        resident_bytes: (after.0 - before.0) / instances as f64,
        mappings: (after.1 - before.1) / instances as f64,
    }))
}

/// Resident bytes and mappings of this process, by Linux's account.
fn held() -> Option<(f64, f64)> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes: f64 = resident.trim().trim_end_matches(" kB").parse().ok()?;
    let mappings = std::fs::read_to_string("/proc/self/maps").ok()?.lines().count();
    Some((1024.0 * kilobytes, mappings as f64))
}

/// What a call costs with fuel and clock and without them, nanoseconds: medians of one warm instance each, in turn.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Safeties {
    /// With them, as always.
    pub with_ns: f64,
    /// Without.
    pub without_ns: f64,
}

/// Measures a workload that does not import `values`, compiled with fuel and clock and without.
///
/// # Errors
/// As [`super::bench::measure`].
pub fn measure_safeties(sandbox: &Sandbox, workload: &Workload<'_>, turns: usize) -> Result<Safeties, BenchError> {
    let text = VocabularyText::new(Arc::new(BlankVocabulary));
    let runner = Runner::load(sandbox, "safeties", workload, &text)?;
    let unlike = |_: wasmtime::Error| BenchError::Workload("safeties");
    let mut with = Bare::new(&runner, &text, workload, true).map_err(unlike)?;
    let mut without = Bare::new(&runner, &text, workload, false).map_err(unlike)?;
    let mut times: [Vec<f64>; 2] = Default::default();
    for turn in 0..=turns {
        for (bare, times) in [&mut with, &mut without].into_iter().zip(&mut times) {
            let before = Instant::now();
            for _ in 0..CALLS_A_TURN {
                bare.call().map_err(unlike)?;
            }
            // The first turn warms up.
            if turn > 0 {
                times.push(before.elapsed().as_secs_f64() * 1e9 / CALLS_A_TURN as f64);
            }
        }
    }
    let [with_ns, without_ns] = times.map(median);
    Ok(Safeties { with_ns, without_ns })
}

/// One instance outside the pool, called without anything around the call.
struct Bare {
    store: Store<StoreData>,
    decide: TypedFunc<(Arc<bindings::Step>,), (bindings::Decision,)>,
    step: Arc<bindings::Step>,
    /// Fuel of a call; none without it.
    fuel: Option<u64>,
}

impl Bare {
    fn new(
        runner: &Runner<'_>,
        text: &Arc<VocabularyText>,
        workload: &Workload<'_>,
        safe: bool,
    ) -> wasmtime::Result<Self> {
        let compiled = &runner.compiled.0;
        let limits = &compiled.loaded.shared.limits;
        let engine = Engine::new(config::compiler().consume_fuel(safe).epoch_interruption(safe))?;
        let (plain, _) = linkers(&engine)?;
        let component = Component::from_binary(&engine, workload.component)?;
        let mut data = StoreData::new(&compiled.loaded.shared, text);
        data.heads = runner.manifest.heads.len();
        let mut store = Store::new(&engine, data);
        store.limiter(|data| data);
        store.set_hostcall_fuel(limits.answer_bytes);
        if safe {
            store.set_fuel(limits.fuel_start)?;
            store.epoch_deadline_callback(window_passed);
            start_clock(&mut store);
        }
        let instance = plain.instantiate(&mut store, &component)?;
        let interface = component.get_export_index(None, POLICY);
        let export = |name| interface.and_then(|interface| component.get_export_index(Some(&interface), name));
        let missing = || wasmtime::format_err!("no policy");
        let request = StartRequest {
            settings: &runner.settings,
            prompt: &[],
            candidates: 256,
            max_tokens: 1_000,
            temperature: 1.0,
            top_p: 1.0,
            seed: 1,
        };
        let request = super::policy::lower_request(&runner.manifest, &request, text);
        let start = instance
            .get_typed_func::<_, (Result<bindings::Plan, String>,)>(&mut store, export("start").ok_or_else(missing)?)?;
        start.call(&mut store, (request,))?.0.map_err(wasmtime::Error::msg)?;
        let decide = instance.get_typed_func(&mut store, export("decide").ok_or_else(missing)?)?;
        let mut step = Arc::default();
        refill(&mut step, &Inputs::new(STEP_CANDIDATES).step(runner, false));
        Ok(Self { store, decide, step, fuel: safe.then_some(limits.fuel_decide) })
    }

    fn call(&mut self) -> wasmtime::Result<()> {
        if let Some(fuel) = self.fuel {
            self.store.set_fuel(fuel)?;
            start_clock(&mut self.store);
        }
        self.decide.call(&mut self.store, (Arc::clone(&self.step),)).map(drop)
    }
}
