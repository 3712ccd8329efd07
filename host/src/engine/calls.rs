//! Calls of policies: what they are shown, and what a call took.
//!
//! Most policies need nothing but the step, and are called for all sequences at once on the threads that ran the pass
//! ([`show_early`]): a hundred small instances out of the cache are slow one after the other. What they said waits in
//! their links until `decide.rs` comes to them in its order, and only then counts: fuel, notes and faults are the same as
//! if they had been called there. Where the response ends before it comes to them, nothing of such a call counts.

use std::time::{Duration, Instant};

use super::chain::{Asked, Link};
use super::response::{Counters, Timing};
use super::sequence::{Round, RoundKind, Sequence};
use super::slices::Slices;
use super::values::known_values;
use crate::sandbox::{Instance, Progress, Step};

/// A call that was made, and is not counted yet.
#[derive(Debug)]
pub(super) struct Called {
    /// None where its slice was not enough.
    progress: Option<Progress>,
    time: Duration,
    was_slow: bool,
    /// Notes beyond their limit before it.
    notes_dropped: u64,
}

impl Called {
    /// Makes a call.
    pub(super) fn make(instance: &mut Instance, call: impl FnOnce(&mut Instance) -> Option<Progress>) -> Called {
        let (was_slow, notes_dropped) = (instance.is_slow(), instance.notes_dropped());
        let start = Instant::now();
        let progress = call(instance);
        Called { progress, time: start.elapsed(), was_slow, notes_dropped }
    }

    /// Notes beyond their limit, had the call not been made.
    pub(super) fn notes_dropped_before(&self) -> u64 {
        self.notes_dropped
    }

    /// Counts what the call took. None where its slice was not enough.
    pub(super) fn count(
        self,
        link: &mut Link,
        slices: &mut Slices,
        counters: &mut Counters,
        timing: &mut Timing,
    ) -> Option<Progress> {
        let instance = link.instance.as_mut()?;
        instance.took(self.time);
        if self.was_slow || instance.is_slow() {
            slices.took(self.time);
        }
        timing.policy_seconds += self.time.as_secs_f64();
        let is_over = matches!(self.progress, Some(Progress::Decided(_) | Progress::Faulted(_)));
        link.fuel = is_over.then(|| instance.fuel_used());
        counters.fuel += link.fuel.unwrap_or(0);
        self.progress
    }
}

/// The heads that a policy prefetches in this round: as a bit set over those of its manifest, and as the engine's.
pub(super) fn prefetched(sequence: &Sequence, round: &Round, link: usize) -> (u32, Vec<usize>) {
    let link = &sequence.chain.links[link];
    let bits = match round.kind {
        RoundKind::Draw => link.prefetched(sequence.response().len(), &round.top),
        RoundKind::Offer(_) | RoundKind::Ended => 0,
    };
    let asked = link.heads.iter().enumerate().filter(|(bit, _)| bits >> bit & 1 == 1);
    (bits, asked.map(|(_, &head)| head).collect())
}

/// Shows the round to a policy, with the values that it prefetches, all of them known by now.
pub(super) fn show(sequence: &mut Sequence, round: &Round, link: usize) -> Option<Called> {
    let (prefetched, heads) = prefetched(sequence, round, link);
    let link = &mut sequence.chain.links[link];
    let seen = link.seen(&round.top);
    let candidates = &round.top.tokens[..seen];
    let values: Vec<f32> = heads.iter().flat_map(|&head| known_values(round, head, candidates)).collect();
    let step = Step {
        kept: link.kept as u32,
        appended: &sequence.tokens[sequence.prompt_tokens + link.kept..],
        candidates,
        logits: &round.top.logits[..seen],
        prefetched,
        values: &values,
        log_normalizer: round.top.log_normalizer,
        entropy: round.top.entropy,
        ended: round.kind == RoundKind::Ended,
    };
    link.kept = sequence.tokens.len() - sequence.prompt_tokens;
    link.resumed = 0;
    Some(Called::make(link.instance.as_mut()?, |instance| instance.decide_sliced(&step)))
}

/// Whether [`show_early`] has somebody to call.
pub(super) fn can_show_early(sequence: &Sequence) -> bool {
    let Some(round) = &sequence.round else { return false };
    let draws = sequence.takes_part() && round.kind == RoundKind::Draw && !sequence.is_cancelled();
    draws && !round.waits_for_rows() && (0..sequence.chain.links.len()).any(|link| is_early(sequence, round, link))
}

/// Calls every policy of the sequence that needs nothing but the step and what heads have said by now. Not those that are
/// slow, and not where a replay puts a fault of the host in the call's place.
pub(super) fn show_early(sequence: &mut Sequence) {
    let Some(round) = sequence.round.take() else { return };
    for link in 0..sequence.chain.links.len() {
        if is_early(sequence, &round, link) {
            sequence.chain.links[link].called = show(sequence, &round, link);
        }
    }
    sequence.round = Some(round);
}

fn is_early(sequence: &Sequence, round: &Round, index: usize) -> bool {
    let link = &sequence.chain.links[index];
    let is_due = link.instance.is_some() && link.called.is_none() && matches!(link.asked, Asked::Not);
    if !is_due || link.is_slow() || sequence.request.replay.fault(link.place, sequence.step(), 0).is_some() {
        return false;
    }
    let (tokens, _) = link.view(&round.top);
    let known = |head: usize| tokens.iter().enumerate().all(|(at, &token)| round.value(head, token, at).is_some());
    prefetched(sequence, round, index).1.into_iter().all(known)
}
