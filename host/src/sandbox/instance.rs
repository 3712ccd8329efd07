//! One policy serving one response.
//!
//! [`Instance::decide`] shows it a step. The answer is a decision, a fault, or a request for values; in the
//! last case the guest stands suspended inside its `evaluate` until [`Instance::resume`] brings the answer.
//! The caller may keep any number of instances suspended and answer them together.
//!
//! A policy that imports `values` runs as a future that owns its store while a call is under way, polled by
//! hand with a waker that does nothing. One that does not is called plainly, which costs a third less, until a call
//! of it has used more fuel than a slice: from then on its calls are futures too, and can be left alone between two
//! slices ([`Instance::decide_sliced`]), so that a slow policy holds up nobody but itself.
//! After a fault the store is gone and the instance answers that fault for ever.

use super::bindings;
use super::decision::Context;
use super::fault::{Fault, FaultKind};
use super::imports::{Exchange, StoreData, start_clock};
use super::manifest::Manifest;
use super::plan::Plan;
use super::policy::Compiled;
use super::slice::{Running, Slice};
use super::step::{Progress, Step, ValueAnswer, refill};
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use wasmtime::Store;
use wasmtime::component::{self, TypedFunc};

type Decide = TypedFunc<(Arc<bindings::Step>,), (bindings::Decision,)>;
type Answer = wasmtime::Result<(bindings::Decision,)>;
type Call = Pin<Box<dyn Future<Output = (Store<StoreData>, Answer)> + Send>>;

/// One policy serving one response.
pub struct Instance {
    compiled: Arc<Compiled>,
    manifest: Arc<Manifest>,
    plan: Plan,
    decide: Decide,
    state: State,
    exchange: Exchange,
    /// The step under way, in the form in which it is lowered; its buffers are used again.
    step: Arc<bindings::Step>,
    vocabulary: usize,
    /// What the caller was last told to answer with.
    wanted: usize,
    fuel_used: u64,
    started_fuel: u64,
    /// Calls are futures.
    sliced: bool,
    /// Time that it may take before it counts as slow, microseconds.
    credit_us: i64,
    /// The call under way.
    running: Running,
}

impl fmt::Debug for Instance {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut instance = formatter.debug_struct("Instance");
        instance.field("policy", &self.compiled.loaded.guest.name).field("fault", &self.fault());
        instance.field("suspended", &self.is_suspended()).finish_non_exhaustive()
    }
}

enum State {
    Idle(Store<StoreData>),
    /// Waits for values; the future owns the store.
    Suspended(Call),
    /// Waits for its next slice.
    Unfinished(Call),
    Faulted(Fault),
    /// Only inside a method.
    Moved,
}

impl Instance {
    /// Wraps an instance whose `start` has answered `plan`.
    pub(super) fn new(
        compiled: &Arc<Compiled>,
        manifest: &Arc<Manifest>,
        plan: Plan,
        mut store: Store<StoreData>,
        instance: &component::Instance,
        sliced: bool,
    ) -> Result<Self, Fault> {
        let decide = instance
            .get_typed_func(&mut store, compiled.decide)
            .map_err(|error| Fault::from_error(&compiled.loaded.guest, &error, None))?;
        let left = store.get_fuel().unwrap_or(0);
        Ok(Self {
            compiled: Arc::clone(compiled),
            manifest: Arc::clone(manifest),
            plan,
            decide,
            exchange: store.data().exchange.clone(),
            vocabulary: store.data().text.size(),
            state: State::Idle(store),
            step: Arc::default(),
            wanted: 0,
            fuel_used: 0,
            started_fuel: compiled.loaded.shared.limits.fuel_start.saturating_sub(left),
            sliced,
            credit_us: 5 * compiled.loaded.shared.limits.slice_us as i64,
            running: Running::default(),
        })
    }

    /// Shows the policy a step, and lets it run until it has decided or waits for values.
    ///
    /// # Panics
    /// If the last step is not decided yet, or the step's lists do not fit each other: the host's bugs.
    pub fn decide(&mut self, step: &Step<'_>) -> Progress {
        let progress = self.decide_sliced(step);
        self.run_on(progress)
    }

    /// Gives a suspended policy what it waits for, and lets it run until it has decided or waits again.
    ///
    /// # Panics
    /// If it waits for nothing, or for another number of values: the host's bugs.
    pub fn resume(&mut self, answer: ValueAnswer) -> Progress {
        let progress = self.resume_sliced(answer);
        self.run_on(progress)
    }

    fn run_on(&mut self, mut progress: Option<Progress>) -> Progress {
        loop {
            if let Some(progress) = progress {
                return progress;
            }
            progress = self.go_on();
        }
    }

    /// As [`Self::decide`], for one slice if the policy is slow. None where the slice was not enough:
    /// [`Self::proceed`] gives it another.
    ///
    /// # Panics
    /// As [`Self::decide`].
    pub fn decide_sliced(&mut self, step: &Step<'_>) -> Option<Progress> {
        assert_eq!(step.logits.len(), step.candidates.len(), "one logit a candidate");
        let rows = step.prefetched.count_ones() as usize;
        assert_eq!(step.values.len(), rows * step.candidates.len(), "one value a prefetched head and candidate");
        let limits = &self.compiled.loaded.shared.limits;
        let mut store = match std::mem::replace(&mut self.state, State::Moved) {
            State::Idle(store) => store,
            State::Faulted(fault) => {
                self.state = State::Faulted(fault.clone());
                return Some(Progress::Faulted(fault));
            }
            State::Suspended(_) | State::Unfinished(_) | State::Moved => {
                panic!("a step is shown while another is under way")
            }
        };
        refill(&mut self.step, step);
        if !self.sliced && self.compiled.is_slow() {
            // From here on its store takes calls as futures only.
            store.data_mut().sliced = true;
            self.sliced = true;
        }
        if store.data().sliced {
            let set = store.fuel_async_yield_interval(Some(limits.fuel_slice));
            debug_assert!(set.is_ok(), "fuel is on");
        }
        // A store that runs with fuel takes any amount of it.
        let fuelled = store.set_fuel(limits.fuel_decide);
        debug_assert!(fuelled.is_ok(), "fuel is on");
        start_clock(&mut store);
        let (decide, parameters) = (self.decide, (Arc::clone(&self.step),));
        if !self.sliced {
            let answer = decide.call(&mut store, parameters);
            return Some(self.settle(store, answer));
        }
        self.running = Running::default();
        let data = store.data_mut();
        data.slice_fuel = limits.fuel_decide;
        if self.compiled.imports_values && !step.ended {
            data.deciding.open(Arc::clone(&self.step), limits.evaluations);
        }
        self.poll(Box::pin(async move {
            let answer = decide.call_async(&mut store, parameters).await;
            (store, answer)
        }))
    }

    /// As [`Self::resume`], for one slice; none where that was not enough.
    ///
    /// # Panics
    /// As [`Self::resume`].
    pub fn resume_sliced(&mut self, answer: ValueAnswer) -> Option<Progress> {
        if let ValueAnswer::Values(values) = &answer {
            assert_eq!(values.len(), self.wanted, "one value a head and token asked for");
        }
        match std::mem::replace(&mut self.state, State::Moved) {
            State::Suspended(running) => {
                self.exchange.lock().answer = Some(answer);
                self.running = Running::default();
                self.poll(running)
            }
            State::Faulted(fault) => {
                self.state = State::Faulted(fault.clone());
                Some(Progress::Faulted(fault))
            }
            State::Idle(_) | State::Unfinished(_) | State::Moved => panic!("an answer that no policy waits for"),
        }
    }

    /// Gives a policy whose slice was over another. The time between the two is not on its clock.
    ///
    /// # Panics
    /// If no slice was over: the host's bug.
    pub fn proceed(&mut self) -> Option<Progress> {
        self.exchange.lock().pauses += 1;
        self.go_on()
    }

    fn go_on(&mut self) -> Option<Progress> {
        match std::mem::replace(&mut self.state, State::Moved) {
            State::Unfinished(running) => self.poll(running),
            _ => panic!("a slice that no policy waits for"),
        }
    }

    fn poll(&mut self, mut running: Call) -> Option<Progress> {
        match self.running.poll(running.as_mut(), &self.exchange, &self.compiled.loaded.shared.limits) {
            Slice::Done((store, answer)) => Some(self.settle(store, answer)),
            Slice::Waits => {
                let request = self.exchange.lock().request.take()?;
                self.wanted = request.len();
                self.state = State::Suspended(running);
                Some(Progress::Wants(request))
            }
            Slice::Over => {
                self.state = State::Unfinished(running);
                None
            }
            Slice::Late => {
                self.fuel_used = 0;
                let fault = self.of_decide(Fault::new(&self.compiled.loaded.guest, FaultKind::Deadline));
                self.state = State::Faulted(fault.clone());
                Some(Progress::Faulted(fault))
            }
        }
    }

    fn of_decide(&self, fault: Fault) -> Fault {
        let limits = &self.compiled.loaded.shared.limits;
        fault.of_call("`decide`", limits.fuel_decide, limits.deadline_windows, limits)
    }

    /// Takes the store back, or drops it with the fault it has earned.
    fn settle(&mut self, mut store: Store<StoreData>, answer: Answer) -> Progress {
        let limits = &self.compiled.loaded.shared.limits;
        self.fuel_used = limits.fuel_decide.saturating_sub(store.get_fuel().unwrap_or(0));
        self.compiled.note_fuel(self.fuel_used);
        store.data_mut().deciding.close();
        let context = Context {
            manifest: &self.manifest,
            limits,
            vocabulary: self.vocabulary,
            candidates: self.step.candidates.len(),
            response: self.step.kept.saturating_add(self.step.appended.len().try_into().unwrap_or(u32::MAX)),
            ended: self.step.ended,
        };
        let decided = match answer {
            Ok((raw,)) => context
                .check(raw)
                .map_err(|error| Fault::new(&self.compiled.loaded.guest, FaultKind::BadDecision(error))),
            Err(error) => Err(self.of_decide(self.exchange.fault(&self.compiled.loaded.guest, &error))),
        };
        match decided {
            Ok(decision) => {
                self.state = State::Idle(store);
                Progress::Decided(decision)
            }
            Err(fault) => {
                self.state = State::Faulted(fault.clone());
                Progress::Faulted(fault)
            }
        }
    }

    /// How this response's steps shall be prepared.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The manifest that it was started with.
    pub fn manifest(&self) -> &Arc<Manifest> {
        &self.manifest
    }

    /// The host's name for the policy.
    pub fn policy(&self) -> &str {
        &self.compiled.loaded.guest.name
    }

    /// The fault that ended it, if one did.
    pub fn fault(&self) -> Option<&Fault> {
        if let State::Faulted(fault) = &self.state { Some(fault) } else { None }
    }

    /// Whether it waits for values.
    pub fn is_suspended(&self) -> bool {
        matches!(self.state, State::Suspended(_))
    }

    /// Whether its slice was over before it had answered.
    pub fn is_unfinished(&self) -> bool {
        matches!(self.state, State::Unfinished(_))
    }

    /// Whether its calls have taken more time than it has earned: see [`Self::took`].
    pub fn is_slow(&self) -> bool {
        self.credit_us < 0
    }

    /// Tells it what its last slice took. Each call earns half a slice's time, up to five slices: one that is slow now and then
    /// stays quick, one that always is does not.
    pub fn took(&mut self, time: Duration) {
        let slice = self.compiled.loaded.shared.limits.slice_us as i64;
        let earned = if self.is_unfinished() { 0 } else { slice / 2 };
        // A busy machine may have let a quick call stand still for long: no slice counts for more than two.
        let spent = (time.as_micros() as i64).min(2 * slice);
        self.credit_us = (self.credit_us + earned - spent).clamp(-5 * slice, 5 * slice);
    }

    /// Fuel used by the last step that was answered or failed, units.
    pub fn fuel_used(&self) -> u64 {
        self.fuel_used
    }

    /// Fuel used by instantiation and `start`, units.
    pub fn start_fuel_used(&self) -> u64 {
        self.started_fuel
    }

    /// The notes since the last call, cleaned and capped. They survive a fault.
    pub fn take_notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.exchange.lock().notes)
    }

    /// Notes beyond the limit, dropped so far.
    pub fn notes_dropped(&self) -> u64 {
        self.exchange.lock().notes_dropped
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn instances_may_move_between_threads() {
        fn is_send<T: Send>() {}
        is_send::<super::Instance>();
        is_send::<crate::sandbox::CompiledPolicy>();
        is_send::<crate::sandbox::Sandbox>();
    }
}
