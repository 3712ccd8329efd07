//! A policy on its way to serving one response: instantiation and `start`, in slices where the policy is slow.
//!
//! Begun by [`CompiledPolicy::begin`](super::CompiledPolicy::begin). One that is not known to be slow runs through at
//! once, bounded by its fuel; one that is gets a slice at each [`Starting::proceed`], so that nobody waits for it.

use super::bindings;
use super::fault::{Fault, FaultKind};
use super::imports::{Exchange, StoreData};
use super::instance::Instance;
use super::limits::Limits;
use super::manifest::Manifest;
use super::plan::Plan;
use super::policy::Compiled;
use super::slice::{Running, Slice};
use super::words::clean;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use wasmtime::Store;
use wasmtime::component;

type Answer = (Result<bindings::Plan, String>,);
type Started = wasmtime::Result<(Store<StoreData>, component::Instance, Answer)>;

/// An instance in the making.
pub struct Starting {
    compiled: Arc<Compiled>,
    manifest: Arc<Manifest>,
    exchange: Exchange,
    sliced: bool,
    running: Running,
    slices: u32,
    call: Pin<Box<dyn Future<Output = Started> + Send>>,
}

impl fmt::Debug for Starting {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Starting").field("policy", &self.compiled.loaded.guest.name).finish_non_exhaustive()
    }
}

impl Starting {
    pub(super) fn new(
        compiled: &Arc<Compiled>,
        manifest: &Arc<Manifest>,
        data: StoreData,
        request: bindings::Request,
    ) -> Self {
        let (exchange, sliced) = (data.exchange.clone(), compiled.runs_in_slices());
        let call = {
            let compiled = Arc::clone(compiled);
            Box::pin(async move {
                let mut store = compiled.loaded.store(data, compiled.loaded.shared.limits.fuel_start)?;
                let called = compiled.instantiate_and_call(&mut store, sliced, compiled.start, (request,));
                let (instance, answer) = called.await?;
                Ok((store, instance, answer))
            })
        };
        Self {
            compiled: Arc::clone(compiled),
            manifest: Arc::clone(manifest),
            exchange,
            sliced,
            running: Running::default(),
            slices: 0,
            call,
        }
    }

    /// Goes on for a slice; none where that was not enough.
    ///
    /// # Panics
    /// After it has answered.
    pub fn proceed(&mut self) -> Option<Result<Instance, Fault>> {
        self.exchange.lock().pauses += 1;
        let (limits, since) = (&self.compiled.loaded.shared.limits, Instant::now());
        let slice = self.running.poll(self.call.as_mut(), &self.exchange, limits);
        self.slices += 1;
        let quick = match &slice {
            // Little fuel is little time, whatever a busy machine's clock says.
            Slice::Done(Ok((store, ..))) if fuel_used(store, limits) <= limits.fuel_slice => true,
            // One that was not known to be slow ran through, however long that took.
            Slice::Done(_) => self.slices == 1 && since.elapsed() < Duration::from_micros(limits.slice_us),
            Slice::Waits | Slice::Over | Slice::Late => false,
        };
        self.compiled.slow_to_start.store(!quick, Ordering::Relaxed);
        if !quick {
            // Also where it failed: the next one shall not run through.
            self.compiled.call_in_slices();
        }
        match slice {
            Slice::Done(started) => Some(self.finish(started)),
            Slice::Late => Some(Err(self.of_start(Fault::new(&self.compiled.loaded.guest, FaultKind::Deadline)))),
            // Nothing is waited for in `start`: values are not answered there.
            Slice::Over | Slice::Waits => None,
        }
    }

    fn of_start(&self, fault: Fault) -> Fault {
        let limits = &self.compiled.loaded.shared.limits;
        fault.of_call("instantiation and `start`", limits.fuel_start, limits.deadline_windows, limits)
    }

    fn finish(&self, started: Started) -> Result<Instance, Fault> {
        let compiled = &self.compiled;
        let fault = |kind| Fault::new(&compiled.loaded.guest, kind);
        let failed = |error| self.of_start(self.exchange.fault(&compiled.loaded.guest, &error));
        let (store, instance, (answer,)) = started.map_err(failed)?;
        compiled.note_fuel(fuel_used(&store, &compiled.loaded.shared.limits));
        let plan = answer.map_err(|reason| {
            let detail = clean(&reason, compiled.loaded.shared.limits.summary_bytes);
            Fault { detail, ..fault(FaultKind::StartRefused) }
        })?;
        let plan = Plan::check(&plan, &self.manifest).map_err(|error| fault(FaultKind::BadPlan(error)))?;
        Instance::new(compiled, &self.manifest, plan, store, &instance, self.sliced)
    }
}

/// Fuel that instantiation and `start` have used, units.
fn fuel_used(store: &Store<StoreData>, limits: &Limits) -> u64 {
    limits.fuel_start.saturating_sub(store.get_fuel().unwrap_or(0))
}
