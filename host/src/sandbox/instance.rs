//! One policy serving one response.
//!
//! [`Instance::decide`] shows it a step. The answer is a decision, a fault, or a request for values; in the
//! last case the guest stands suspended inside its `evaluate` until [`Instance::resume`] brings the answer.
//! The caller may keep any number of instances suspended and answer them together.
//!
//! A policy that imports `values` runs as a future that owns its store while a call is under way, polled by
//! hand with a waker that does nothing. One that does not is called plainly, which costs a third less.
//! After a fault the store is gone and the instance answers that fault for ever.

use super::bindings;
use super::compiled::Compiled;
use super::decision::{Context, Decision};
use super::fault::{Fault, FaultKind};
use super::imports::{Exchange, StoreData, start_clock};
use super::manifest::Manifest;
use super::plan::Plan;
use crate::token::Token;
use std::fmt;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Poll, Waker};
use wasmtime::Store;
use wasmtime::component::{self, TypedFunc};

/// One decoding step, as a policy sees it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step<'a> {
    /// How many of the response tokens already shown to this policy still stand.
    pub kept: u32,
    /// The response tokens committed after those.
    pub appended: &'a [Token],
    /// The candidates, `[k]`, most likely first; none where `ended`.
    pub candidates: &'a [Token],
    /// Their base logits, `[k]`, in nats.
    pub logits: &'a [f32],
    /// Which heads have a row in `values`: bit i is head i of the manifest.
    pub prefetched: u32,
    /// The prefetched values, `[heads prefetched, k]`.
    pub values: &'a [f32],
    /// ln Σ exp(logit) over the vocabulary.
    pub log_normalizer: f32,
    /// The entropy of the base model's next-token distribution, in nats.
    pub entropy: f32,
    /// Whether the response would end here.
    pub ended: bool,
}

/// How far a step has come.
#[derive(Debug, Clone, PartialEq)]
pub enum Progress {
    /// It is decided.
    Decided(Decision),
    /// The guest waits for values; answer with [`Instance::resume`].
    Wants(ValueRequest),
    /// The guest is at fault, now and in every later step.
    Faulted(Fault),
}

/// What a suspended guest waits for: already checked, and not known to it yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ValueRequest {
    /// The values of the sequence followed by each token.
    Evaluate {
        /// Heads by index in the manifest, at least one; the same may be named twice.
        heads: Vec<u32>,
        /// Tokens of the vocabulary, 1 to the request's candidates; the same may be named twice.
        tokens: Vec<Token>,
    },
    /// The value of the sequence as it stands.
    Current {
        /// The head's index in the manifest.
        head: u32,
    },
}

impl ValueRequest {
    /// How many values answer it.
    pub fn len(&self) -> usize {
        match self {
            Self::Evaluate { heads, tokens } => heads.len() * tokens.len(),
            Self::Current { .. } => 1,
        }
    }

    /// Whether it asks for nothing, which none does.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The answer to a [`ValueRequest`].
#[derive(Debug, Clone, PartialEq)]
pub enum ValueAnswer {
    /// `[heads, tokens]` for an evaluation, one value for a current value.
    Values(Vec<f32>),
    /// The head failed.
    Unavailable,
}

type Decide = TypedFunc<(Arc<bindings::Step>,), (bindings::Decision,)>;
type Answer = wasmtime::Result<(bindings::Decision,)>;
type Running = Pin<Box<dyn Future<Output = (Store<StoreData>, Answer)> + Send>>;

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
}

impl fmt::Debug for Instance {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut instance = formatter.debug_struct("Instance");
        instance.field("policy", &self.compiled.name).field("fault", &self.fault());
        instance.field("suspended", &self.is_suspended()).finish_non_exhaustive()
    }
}

enum State {
    Idle(Store<StoreData>),
    /// Suspended; the future owns the store.
    Suspended(Running),
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
    ) -> Result<Self, Fault> {
        let decide = instance
            .get_typed_func(&mut store, compiled.decide)
            .map_err(|error| Fault::from_error(&compiled.name, &error, None))?;
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
            started_fuel: compiled.shared.limits.fuel_start.saturating_sub(left),
        })
    }

    /// Shows the policy a step.
    ///
    /// # Panics
    /// If the last step is not decided yet, or the step's lists do not fit each other: the host's bugs.
    pub fn decide(&mut self, step: &Step<'_>) -> Progress {
        assert_eq!(step.logits.len(), step.candidates.len(), "one logit a candidate");
        let rows = step.prefetched.count_ones() as usize;
        assert_eq!(step.values.len(), rows * step.candidates.len(), "one value a prefetched head and candidate");
        let limits = &self.compiled.shared.limits;
        let mut store = match std::mem::replace(&mut self.state, State::Moved) {
            State::Idle(store) => store,
            State::Faulted(fault) => {
                self.state = State::Faulted(fault.clone());
                return Progress::Faulted(fault);
            }
            State::Suspended(_) | State::Moved => {
                panic!("a step is shown while another is under way")
            }
        };
        refill(&mut self.step, step);
        // A store that runs with fuel takes any amount of it.
        let fuelled = store.set_fuel(limits.fuel_decide);
        debug_assert!(fuelled.is_ok(), "fuel is on");
        start_clock(&mut store);
        let (decide, parameters) = (self.decide, (Arc::clone(&self.step),));
        if !self.compiled.imports_values {
            let answer = decide.call(&mut store, parameters);
            return self.settle(store, answer);
        }
        if !step.ended {
            store.data_mut().deciding.open(Arc::clone(&self.step), limits.evaluations);
        }
        self.poll(Box::pin(async move {
            let answer = decide.call_async(&mut store, parameters).await;
            (store, answer)
        }))
    }

    /// Gives a suspended policy what it waits for.
    ///
    /// # Panics
    /// If it waits for nothing, or for another number of values: the host's bugs.
    pub fn resume(&mut self, answer: ValueAnswer) -> Progress {
        if let ValueAnswer::Values(values) = &answer {
            assert_eq!(values.len(), self.wanted, "one value a head and token asked for");
        }
        match std::mem::replace(&mut self.state, State::Moved) {
            State::Suspended(running) => {
                self.exchange.lock().answer = Some(answer);
                self.poll(running)
            }
            State::Faulted(fault) => {
                self.state = State::Faulted(fault.clone());
                Progress::Faulted(fault)
            }
            State::Idle(_) | State::Moved => panic!("an answer that no policy waits for"),
        }
    }

    fn poll(&mut self, mut running: Running) -> Progress {
        match running.as_mut().poll(&mut std::task::Context::from_waker(Waker::noop())) {
            Poll::Ready((store, answer)) => self.settle(store, answer),
            Poll::Pending => match self.exchange.lock().request.take() {
                Some(request) => {
                    self.wanted = request.len();
                    self.state = State::Suspended(running);
                    Progress::Wants(request)
                }
                // Nothing else ever waits, so this is a runtime that does not do what it says.
                None => {
                    let fault = Fault::new(&self.compiled.name, FaultKind::Error);
                    self.state = State::Faulted(fault.clone());
                    Progress::Faulted(fault)
                }
            },
        }
    }

    /// Takes the store back, or drops it with the fault it has earned.
    fn settle(&mut self, mut store: Store<StoreData>, answer: Answer) -> Progress {
        let limits = &self.compiled.shared.limits;
        self.fuel_used = limits.fuel_decide.saturating_sub(store.get_fuel().unwrap_or(0));
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
            Ok((raw,)) => {
                context.check(raw).map_err(|error| Fault::new(&self.compiled.name, FaultKind::BadDecision(error)))
            }
            Err(error) => Err(self.exchange.fault(&self.compiled.name, &error)),
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
        &self.compiled.name
    }

    /// The fault that ended it, if one did.
    pub fn fault(&self) -> Option<&Fault> {
        if let State::Faulted(fault) = &self.state { Some(fault) } else { None }
    }

    /// Whether it waits for values.
    pub fn is_suspended(&self) -> bool {
        matches!(self.state, State::Suspended(_))
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

/// Copies a step into the buffers of the last one.
fn refill(buffers: &mut Arc<bindings::Step>, step: &Step<'_>) {
    // The last call has dropped its share; if it had not, fresh buffers would serve as well.
    match Arc::get_mut(buffers) {
        Some(buffers) => fill(buffers, step),
        None => {
            let mut fresh = bindings::Step::default();
            fill(&mut fresh, step);
            *buffers = Arc::new(fresh);
        }
    }
}

fn fill(buffers: &mut bindings::Step, step: &Step<'_>) {
    let bindings::Step { kept, appended, candidates, logits, prefetched, values, log_normalizer, entropy, ended } =
        buffers;
    copy(appended, step.appended);
    copy(candidates, step.candidates);
    copy(logits, step.logits);
    copy(values, step.values);
    (*kept, *prefetched, *ended) = (step.kept, step.prefetched, step.ended);
    (*log_normalizer, *entropy) = (step.log_normalizer, step.entropy);
}

pub(super) fn copy<T: Copy>(to: &mut Vec<T>, from: &[T]) {
    to.clear();
    to.extend_from_slice(from);
}

/// Runs a future that cannot wait: instantiation, `describe` and `start`, where `values` answers at once.
pub(super) fn once<T>(future: impl Future<Output = wasmtime::Result<T>>) -> wasmtime::Result<T> {
    match pin!(future).poll(&mut std::task::Context::from_waker(Waker::noop())) {
        Poll::Ready(result) => result,
        Poll::Pending => Err(wasmtime::format_err!("a call that cannot wait did")),
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
