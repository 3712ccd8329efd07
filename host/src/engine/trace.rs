//! What the policies of a response did, step by step, for the audit record; and what a replay puts in their way.
//!
//! A [`TraceEvent`] is kept for every start, note, fault, and for the splice or stop that won its step. The
//! trace is bounded by what bounds the response: starts and faults by the chain, notes by their limit,
//! splices and stops by the budget of steps, and the tokens of splices by the same budget.
//!
//! What a policy does is a function of the request, so a replay repeats it, but for faults that were the
//! host's (its clock, its pool): [`Replay`] names those, and they happen where they did. A cancellation
//! comes from outside too, so a replay is told after which step it came.

use super::Note;
use super::chain::Chain;
use crate::sandbox::{Fault, FaultKind, Guest};
use crate::token::Token;

/// Something that a policy did.
#[derive(Debug, Clone, PartialEq)]
pub struct TraceEvent {
    /// The decoding step, from 1; 0 is the start.
    pub step: u64,
    /// The policy's rank on the response, from 0: required ones first.
    pub place: usize,
    /// Its name.
    pub policy: String,
    /// Fuel of the call in which it happened, units; none where the call did not come to its end or the
    /// policy did not start.
    pub fuel: Option<u64>,
    /// How often the call had been given values and gone on by then (see [`crate::sandbox::Instance::resume`]).
    pub resumed: u32,
    /// What happened.
    pub what: TraceKind,
}

/// The kinds of events.
#[derive(Debug, Clone, PartialEq)]
pub enum TraceKind {
    /// It has started.
    Started,
    /// It left a note, capped and cleaned.
    Note(String),
    /// So many notes of the response were beyond the limit and are lost.
    NotesDropped(u64),
    /// Its splice won the step.
    Splice {
        /// Tokens taken back.
        remove: usize,
        /// Tokens that it wanted inserted.
        insert_count: usize,
        /// The first of them: all, until those of a response come to its budget of steps.
        insert: Vec<Token>,
    },
    /// It stopped the response, or the insertion that it was offered; with its reason.
    Stop(String),
    /// It failed.
    Fault(Fault),
}

/// What a replay repeats although no request says it. Empty for everybody else.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Replay {
    /// Faults that were the host's.
    pub faults: Vec<InjectedFault>,
    /// The caller cancelled the response after this many steps.
    pub cancelled_after: Option<u64>,
}

/// A fault of the host's that a replay repeats: the call is not made, or not resumed once more.
#[derive(Debug, Clone, PartialEq)]
pub struct InjectedFault {
    /// The step, 0 for the start.
    pub step: u64,
    /// The policy's rank.
    pub place: usize,
    /// How often the call had been resumed.
    pub resumed: u32,
    /// [`FaultKind::Deadline`] or [`FaultKind::Capacity`].
    pub kind: FaultKind,
    /// The fault's detail.
    pub detail: String,
    /// Fuel that the call had used, units.
    pub fuel: Option<u64>,
    /// Notes that it had left in the call.
    pub notes: Vec<String>,
}

impl TraceEvent {
    /// The fault, where it is one.
    pub fn fault(&self) -> Option<&Fault> {
        if let TraceKind::Fault(fault) = &self.what { Some(fault) } else { None }
    }

    /// The note, where it is one.
    pub fn note(&self) -> Option<Note> {
        let TraceKind::Note(message) = &self.what else { return None };
        Some(Note { policy: self.policy.clone(), step: self.step, message: message.clone() })
    }
}

impl Replay {
    /// The fault that hits this policy in this step, when its call has been resumed so often.
    pub(super) fn fault(&self, place: usize, step: u64, resumed: u32) -> Option<&InjectedFault> {
        self.faults.iter().find(|fault| (fault.place, fault.step, fault.resumed) == (place, step, resumed))
    }
}

impl InjectedFault {
    /// It, as a fault of this policy.
    pub(super) fn of(&self, policy: &str) -> Fault {
        Fault { kind: self.kind.clone(), guest: Guest::policy(policy), detail: self.detail.clone() }
    }
}

impl Chain {
    /// Puts into the trace what a link did in a step, with the fuel of its call.
    pub(super) fn record(&mut self, link: usize, step: u64, what: TraceKind) {
        let link = &self.links[link];
        let (place, policy, fuel, resumed) = (link.place, link.policy.name.clone(), link.fuel, link.resumed);
        self.trace.push(TraceEvent { step, place, policy, fuel, resumed, what });
    }

    /// Puts into the trace what a link's policy has noted since the last call of this.
    pub(super) fn record_notes(&mut self, link: usize, step: u64) {
        let instance = self.links[link].instance.as_mut();
        for note in instance.map(|instance| instance.take_notes()).unwrap_or_default() {
            self.record(link, step, TraceKind::Note(note));
        }
    }

    /// Puts into the trace what the policies of a response that has ended have left: notes of calls that wait for values
    /// which nobody will bring, and the count of those beyond their limit.
    pub(super) fn record_rest(&mut self, step: u64) {
        for link in 0..self.links.len() {
            // A call that was made early, and whose turn never came, is as if it had not been made: alone, the response
            // would have ended before it.
            if self.links[link].called.is_none() {
                self.record_notes(link, step);
            }
            self.record_dropped_notes(link, step);
        }
    }

    /// Notes beyond their limit are counted once, when no more can come.
    fn record_dropped_notes(&mut self, link: usize, step: u64) {
        let own = &self.links[link];
        let dropped = match &own.called {
            Some(called) => called.notes_dropped_before(),
            None => own.instance.as_ref().map_or(0, |instance| instance.notes_dropped()),
        };
        if dropped > 0 {
            self.record(link, step, TraceKind::NotesDropped(dropped));
        }
    }

    /// A link's policy has failed: it takes no further part.
    pub(super) fn retire(&mut self, link: usize, step: u64, fault: Fault) {
        // Where the host cut a call, the count is chance.
        if !fault.kind.is_the_hosts() {
            self.record_dropped_notes(link, step);
        }
        self.links[link].instance = None;
        self.record(link, step, TraceKind::Fault(fault));
    }

    /// A splice won; of what it inserts the trace keeps tokens up to `budget` in all.
    pub(super) fn record_splice(&mut self, link: usize, step: u64, remove: usize, insert: &[Token], budget: usize) {
        let kept = |event: &TraceEvent| match &event.what {
            TraceKind::Splice { insert, .. } => insert.len(),
            _ => 0,
        };
        let room = budget.saturating_sub(self.trace.iter().map(kept).sum());
        let insert_count = insert.len();
        let insert = insert[..insert_count.min(room)].to_vec();
        self.record(link, step, TraceKind::Splice { remove, insert_count, insert });
    }

    /// The trace in order of steps, then of rank: in which order policies were asked within a step depends
    /// on what they waited for.
    pub(super) fn take_trace(&mut self) -> Vec<TraceEvent> {
        let mut trace = std::mem::take(&mut self.trace);
        trace.sort_by_key(|event| (event.step, event.place));
        trace
    }
}
