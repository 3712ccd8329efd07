//! Starting the policies of a sequence, in their order of rank.
//!
//! It happens once the sequence has its memory and before any row of it runs. A policy that is slow to start gets
//! slices, like a slow one in later calls: other sequences go on, this one is left out of passes.

use std::sync::Arc;
use std::time::Instant;

use vassal_kernels::Device;

use super::chain::{Asked, Link};
use super::response::Finish;
use super::sequence::Sequence;
use super::trace::{TraceEvent, TraceKind};
use super::{Engine, Event};
use crate::request::{FaultPolicy, PolicyUse};
use crate::sandbox::{Fault, FaultKind, Instance, Starting};

/// How far the policies of a sequence have started.
#[derive(Default)]
pub(super) struct StartingChain {
    /// The rank of the next one.
    place: usize,
    /// That one, where it has begun to.
    begun: Option<Starting>,
}

/// Where starting stands.
enum Started {
    All,
    Unfinished,
    Ended(Finish),
}

impl<D: Device> Engine<D> {
    /// Goes on with the policies of sequences that have just been let in.
    pub(super) fn start_all(&mut self, events: &mut Vec<Event>) {
        for index in super::pass::in_turn(self.starts.next(), self.running.len()) {
            let Some(sequence) = &self.running[index] else { continue };
            if sequence.paused || sequence.starting.is_none() {
                continue;
            }
            let Some(mut sequence) = self.running[index].take() else { continue };
            let started = self.start_policies(&mut sequence);
            self.starts.turn(index, matches!(started, Started::Unfinished));
            match started {
                Started::Ended(finish) => {
                    self.finish(sequence, finish, events);
                    continue;
                }
                Started::All => sequence.starting = None,
                Started::Unfinished => {}
            }
            self.running[index] = Some(sequence);
        }
    }

    /// Starts the request's policies, required ones first. A policy that fails under the fault policy
    /// `base` is left out; under `abort`, and where it refuses the request, its fault is the end, with what the trace
    /// has by then.
    fn start_policies(&mut self, sequence: &mut Sequence) -> Started {
        let request = sequence.request.clone();
        if request.replay.cancelled_after == Some(0) {
            return Started::Ended(Finish::Cancelled);
        }
        let ranked = request.policies.iter().filter(|policy| policy.required);
        let ranked = ranked.chain(request.policies.iter().filter(|policy| !policy.required));
        let begun = sequence.starting.as_ref().map_or(0, |starting| starting.place);
        for (place, used) in ranked.enumerate().skip(begun) {
            let injected = request.replay.fault(place, 0, 0).map(|fault| fault.of(used.policy.compiled.name()));
            let started = match injected {
                Some(fault) => Err(fault),
                None => match self.start_one(sequence, used, place) {
                    Some(started) => started,
                    None => return Started::Unfinished,
                },
            };
            sequence.starting = Some(StartingChain { place: place + 1, begun: None });
            match started {
                Ok(instance) => self.add_link(sequence, used, place, instance),
                Err(fault) => {
                    let (policy, what) = (used.policy.name.clone(), TraceKind::Fault(fault.clone()));
                    sequence.chain.trace.push(TraceEvent { step: 0, place, policy, fuel: None, resumed: 0, what });
                    // A policy that refuses the request has not failed: nothing goes on without its consent.
                    if used.fault_policy == FaultPolicy::Abort || fault.kind == FaultKind::StartRefused {
                        sequence.chain.links.clear();
                        return Started::Ended(Finish::Faulted(fault));
                    }
                }
            }
        }
        Started::All
    }

    /// Goes on with one policy; none where a slice was not enough, or there is no time for one.
    fn start_one(
        &mut self,
        sequence: &mut Sequence,
        used: &PolicyUse,
        place: usize,
    ) -> Option<Result<Instance, Fault>> {
        let has_begun = sequence.starting.as_ref().is_some_and(|starting| starting.begun.is_some());
        let slow = has_begun || used.policy.compiled.is_slow_to_start();
        if slow && !self.starts.is_open() {
            return None;
        }
        let since = Instant::now();
        let begun = sequence.starting.take().and_then(|starting| starting.begun);
        let mut begun = begun.unwrap_or_else(|| {
            let start = sequence.request.start_request(used, sequence.random.stream(), place as u64);
            used.policy.compiled.begin(&used.policy.manifest, &start, &self.text)
        });
        let mut started = begun.proceed();
        if slow || started.is_none() {
            self.starts.took(since.elapsed());
        }
        while started.is_none() && self.starts.is_open() {
            let since = Instant::now();
            started = begun.proceed();
            self.starts.took(since.elapsed());
        }
        sequence.timing.policy_seconds += since.elapsed().as_secs_f64();
        if started.is_none() {
            sequence.starting = Some(StartingChain { place, begun: Some(begun) });
        }
        started
    }

    /// A policy has started: it takes part from here on.
    fn add_link(&self, sequence: &mut Sequence, used: &PolicyUse, place: usize, instance: Instance) {
        let plan = instance.plan();
        let heads = self.policy_heads(&sequence.request, &used.policy).unwrap_or_default();
        let chain = &mut sequence.chain;
        chain.links.push(Link {
            candidates: (plan.candidates as usize).min(sequence.request.candidates_max),
            floor: plan.candidates_floor,
            prefetch: plan.prefetch.clone(),
            policy: Arc::clone(&used.policy),
            place,
            fuel: Some(instance.start_fuel_used()),
            instance: Some(instance),
            required: used.required,
            fault_policy: used.fault_policy,
            heads,
            kept: 0,
            asked: Asked::Not,
            called: None,
            resumed: 0,
        });
        let link = chain.links.len() - 1;
        chain.record(link, 0, TraceKind::Started);
        chain.record_notes(link, 0);
    }
}
