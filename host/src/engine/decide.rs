//! Rounds: from candidates to a token, through every policy of the sequence.
//!
//! [`Engine::advance`] brings a round as far as it goes without more rows: it asks each policy, answers
//! what they ask of heads, and settles what they decided. Where values are missing, the tokens they
//! need are left in [`Round::wanted`], the next pass runs them as candidate rows, and the round goes on.

use vassal_kernels::{Device, Draw, TopKQuery};

use super::calls::{Called, prefetched, show};
use super::chain::{Asked, Link, Merged, Verdict, is_forbidden};
use super::response::Finish;
use super::sequence::{HeldRow, Round, RoundKind, Sequence};
use super::trace::TraceKind;
use super::values::known_values;
use super::{Body, Engine, EngineError};
use crate::request::FaultPolicy;
use crate::sandbox::{Fault, Instance, Progress, ValueAnswer, ValueRequest};
use crate::token::Token;

/// How far a round came.
pub(super) enum Advance {
    /// It waits for rows of the next pass.
    Rows,
    /// A token can be drawn: those of all sequences are, together.
    Draws(Box<Steered>),
    /// A token was appended; its candidate row goes on where there is one.
    Drawn(Option<HeldRow>),
    /// Tokens wait to run; the round is over.
    Pending,
    /// The response is over.
    Finished(Finish),
}

/// A draw as the policies want it.
pub(super) struct Steered {
    pub(super) draw: Draw,
    pub(super) round: Round,
    /// Policies that forbade something.
    pub(super) forbidding: Vec<String>,
}

/// How asking the policies went.
enum Answers {
    All,
    Waiting,
    Fault(Fault),
}

impl<D: Device> Engine<D> {
    /// Brings the sequence's round as far as it goes without more rows.
    pub(super) fn advance(&mut self, sequence: &mut Sequence) -> Result<Advance, EngineError> {
        if sequence.is_cancelled() {
            return Ok(Advance::Finished(Finish::Cancelled));
        }
        self.decide(sequence)
    }

    fn decide(&mut self, sequence: &mut Sequence) -> Result<Advance, EngineError> {
        let Some(mut round) = sequence.round.take() else { return Ok(Advance::Pending) };
        if round.waits_for_rows() {
            sequence.round = Some(round);
            return Ok(Advance::Rows);
        }
        match self.ask(sequence, &mut round)? {
            Answers::All => {}
            Answers::Waiting => {
                sequence.round = Some(round);
                return Ok(Advance::Rows);
            }
            Answers::Fault(fault) => return Ok(Advance::Finished(Finish::Faulted(fault))),
        }
        match round.kind {
            RoundKind::Draw => self.settle_draw(sequence, round),
            RoundKind::Offer(token) => self.settle_offer(sequence, &round, token),
            RoundKind::Ended => self.settle_end(sequence),
        }
    }

    /// Asks every policy that takes part, as far as values are known.
    fn ask(&mut self, sequence: &mut Sequence, round: &mut Round) -> Result<Answers, EngineError> {
        // Where there was no time to go on, it goes on exactly there: what policies do must not depend on the time.
        for index in round.held_at.take().unwrap_or(0)..sequence.chain.links.len() {
            let link = &sequence.chain.links[index];
            if link.instance.is_none() || (matches!(round.kind, RoundKind::Offer(_)) && !link.required) {
                continue;
            }
            loop {
                let link = &sequence.chain.links[index];
                if link.is_slow() && !matches!(link.asked, Asked::Decided(_)) && !self.slices.is_open() {
                    round.held_at = Some(index);
                    return Ok(Answers::Waiting);
                }
                let progress = match link.asked.clone() {
                    Asked::Decided(_) => break,
                    Asked::Unfinished => self.call(sequence, index, Instance::proceed),
                    Asked::Not => match sequence.chain.links[index].called.take() {
                        Some(called) => self.count(sequence, index, called),
                        None => self.show_step(sequence, round, index)?,
                    },
                    Asked::Waiting(request) => self.answer(sequence, round, index, &request)?,
                };
                let step = sequence.step();
                if matches!(progress, Some(Progress::Decided(_) | Progress::Faulted(_))) {
                    sequence.chain.record_notes(index, step);
                }
                let link = &mut sequence.chain.links[index];
                match progress {
                    // It has more slices, one after the other, while there is time.
                    None if link.instance.as_ref().is_some_and(Instance::is_unfinished) => {
                        link.asked = Asked::Unfinished;
                    }
                    None => break,
                    Some(Progress::Decided(decision)) => link.asked = Asked::Decided(decision),
                    Some(Progress::Wants(request)) => {
                        sequence.counters.evaluations += u64::from(matches!(request, ValueRequest::Evaluate { .. }));
                        link.asked = Asked::Waiting(request);
                    }
                    Some(Progress::Faulted(fault)) => {
                        let aborts = link.fault_policy == FaultPolicy::Abort;
                        sequence.chain.retire(index, step, fault.clone());
                        if aborts {
                            return Ok(Answers::Fault(fault));
                        }
                        // The response goes on without this policy, as if it had kept.
                        break;
                    }
                }
            }
        }
        let asks = |link: &&Link| link.required || !matches!(round.kind, RoundKind::Offer(_));
        let all = sequence.chain.live().filter(asks).all(|link| link.decision().is_some());
        Ok(if all { Answers::All } else { Answers::Waiting })
    }

    /// Shows a policy the step, once the values it prefetches are known.
    fn show_step(
        &mut self,
        sequence: &mut Sequence,
        round: &mut Round,
        index: usize,
    ) -> Result<Option<Progress>, EngineError> {
        let (_, heads) = prefetched(sequence, round, index);
        let mut known = true;
        for head in heads {
            let tokens = sequence.chain.links[index].view(&round.top).0.to_vec();
            known &= self.find_values(sequence, round, head, &tokens)?;
        }
        if !known {
            return Ok(None);
        }
        sequence.chain.links[index].resumed = 0;
        if let Some(fault) = sequence.injected_fault(index) {
            return Ok(Some(Progress::Faulted(fault)));
        }
        let called = show(sequence, round, index);
        Ok(called.and_then(|called| self.count(sequence, index, called)))
    }

    /// Goes on with a call. None where its slice was not enough.
    fn call(
        &mut self,
        sequence: &mut Sequence,
        index: usize,
        call: impl FnOnce(&mut Instance) -> Option<Progress>,
    ) -> Option<Progress> {
        let instance = sequence.chain.links[index].instance.as_mut()?;
        let called = Called::make(instance, call);
        self.count(sequence, index, called)
    }

    /// Counts what a call took. None where its slice was not enough.
    fn count(&mut self, sequence: &mut Sequence, index: usize, called: Called) -> Option<Progress> {
        let link = &mut sequence.chain.links[index];
        called.count(link, &mut self.slices, &mut sequence.counters, &mut sequence.timing)
    }

    /// Answers a suspended policy, once what it asked for is known.
    fn answer(
        &mut self,
        sequence: &mut Sequence,
        round: &mut Round,
        index: usize,
        request: &ValueRequest,
    ) -> Result<Option<Progress>, EngineError> {
        let link = &sequence.chain.links[index];
        let answer = match request {
            // Not after the end: there the sandbox itself answers that it is not now.
            ValueRequest::Evaluate { heads, tokens } => {
                let heads: Vec<usize> = heads.iter().map(|&head| link.heads[head as usize]).collect();
                let mut known = true;
                for &head in &heads {
                    known &= self.find_values(sequence, round, head, tokens)?;
                }
                if !known {
                    return Ok(None);
                }
                ValueAnswer::Values(heads.iter().flat_map(|&head| known_values(round, head, tokens)).collect())
            }
            ValueRequest::Current { head } => {
                let head = link.heads[*head as usize];
                match (&self.heads[head].body, &sequence.state) {
                    // Its values are differences from the sequence as it stands.
                    (Body::OnePass(_), _) => ValueAnswer::Values(vec![0.0]),
                    (Body::LookAhead(_), Some(state)) => match state.values[head] {
                        Some(value) => ValueAnswer::Values(vec![value]),
                        None => ValueAnswer::Unavailable,
                    },
                    (Body::LookAhead(_), None) => {
                        round.wants_state = true;
                        return Ok(None);
                    }
                }
            }
        };
        sequence.chain.links[index].resumed += 1;
        if let Some(fault) = sequence.injected_fault(index) {
            return Ok(Some(Progress::Faulted(fault)));
        }
        Ok(self.call(sequence, index, |instance| instance.resume_sliced(answer)))
    }

    /// Stop, splice, or what to draw from.
    fn settle_draw(&mut self, sequence: &mut Sequence, mut round: Round) -> Result<Advance, EngineError> {
        match sequence.chain.verdict() {
            Verdict::Stop { link, reason } => return Ok(Advance::Finished(stop(sequence, link, reason))),
            Verdict::Splice { link, remove, insert } => {
                let step = sequence.step();
                sequence.record_splice(link, step, remove, &insert);
                return self.splice(sequence, remove, insert);
            }
            Verdict::Steer => {}
        }
        if !self.find_blends(sequence, &mut round)? {
            sequence.round = Some(round);
            return Ok(Advance::Rows);
        }
        if let Some(finish) = sequence.count_step() {
            return Ok(Advance::Finished(finish));
        }
        let merged = merge(sequence, &round);
        let draw = Draw {
            slot: sequence.logits_slot,
            temperature: sequence.request.temperature,
            top_p: sequence.request.top_p,
            deltas: merged.deltas,
            vocabulary: merged.vocabulary,
            only: merged.only,
            random: sequence.random.draw(),
        };
        Ok(Advance::Draws(Box::new(Steered { draw, round, forbidding: merged.forbidding })))
    }

    /// Chooses candidates again under vocabulary biases, and finds the values that blends need.
    fn find_blends(&mut self, sequence: &mut Sequence, round: &mut Round) -> Result<bool, EngineError> {
        let biases = sequence.chain.vocabulary();
        if !biases.is_empty() && round.rechosen.is_empty() {
            // Once for each width: the likeliest five under the biases are not among a wider policy's by base logit.
            let mut widths: Vec<usize> = sequence.chain.live().map(|link| link.candidates).collect();
            widths.sort_unstable();
            widths.dedup();
            let query = |&k: &usize| TopKQuery { slot: sequence.logits_slot, k, vocabulary: &biases };
            let queries: Vec<TopKQuery<'_>> = widths.iter().map(query).collect();
            round.rechosen = widths.iter().copied().zip(self.device.top_k(&self.logits, &queries)?).collect();
        }
        let mut needed = Vec::new();
        for link in sequence.chain.live() {
            let Some(steering) = link.steering() else { continue };
            let (tokens, _) = link.view(round.chosen(link.candidates));
            needed.extend(steering.blend.iter().map(|term| (link.heads[term.head as usize], tokens.to_vec())));
        }
        let mut known = true;
        for (head, tokens) in needed {
            known &= self.find_values(sequence, round, head, &tokens)?;
        }
        Ok(known)
    }

    /// An inserted token stands unless a required policy forbids it; the first that does not cuts the insertion.
    fn settle_offer(&mut self, sequence: &mut Sequence, round: &Round, token: Token) -> Result<Advance, EngineError> {
        let verdict = sequence.chain.verdict();
        if let Verdict::Stop { link, reason } = &verdict {
            // It stops the insertion only.
            stop(sequence, *link, reason.clone());
        }
        if let Some(finish) = sequence.count_step() {
            return Ok(Advance::Finished(finish));
        }
        let merged = merge(sequence, round);
        let bit = |bits: &[u64]| bits.get(token as usize / 64).is_some_and(|word| word >> (token % 64) & 1 == 1);
        let forbidden = matches!(verdict, Verdict::Stop { .. })
            || merged.deltas.iter().any(|&(at, delta)| at == token && is_forbidden(delta))
            || merged.vocabulary.iter().any(|bias| is_forbidden(if bit(&bias.bits) { bias.set } else { bias.unset }));
        sequence.chain.clear();
        if !forbidden {
            sequence.inserting.pop_front();
            sequence.push(token, None);
            return Ok(Advance::Drawn(None));
        }
        sequence.inserting.clear();
        let k = sequence.chain.candidates();
        let query = TopKQuery { slot: sequence.logits_slot, k, vocabulary: &[] };
        let top = self.device.top_k(&self.logits, &[query])?.pop().unwrap_or_default();
        sequence.round = Some(Round::new(RoundKind::Draw, top));
        self.decide(sequence)
    }

    /// The response has ended: it may be stopped with a reason, or tokens may be taken back.
    fn settle_end(&mut self, sequence: &mut Sequence) -> Result<Advance, EngineError> {
        let verdict = sequence.chain.verdict();
        if let Verdict::Stop { link, reason } = verdict {
            let finish = stop(sequence, link, reason);
            return Ok(Advance::Finished(sequence.count_step().unwrap_or(finish)));
        }
        let step = sequence.step();
        if let Some(finish) = sequence.count_step() {
            return Ok(Advance::Finished(finish));
        }
        match verdict {
            Verdict::Splice { link, remove, insert } if remove.min(sequence.revocable()) > 0 => {
                sequence.record_splice(link, step, remove, &insert);
                self.splice(sequence, remove, insert)
            }
            _ => Ok(Advance::Finished(sequence.ended.take().unwrap_or(Finish::TokenLimit))),
        }
    }

    /// Takes tokens back and appends others, offered one at a time where a policy is required.
    fn splice(&mut self, sequence: &mut Sequence, remove: usize, insert: Vec<Token>) -> Result<Advance, EngineError> {
        if let Some(finish) = sequence.count_step() {
            return Ok(Advance::Finished(finish));
        }
        sequence.chain.clear();
        let remove = remove.min(sequence.revocable());
        sequence.rewind(remove);
        if sequence.chain.live().any(|link| link.required) {
            sequence.inserting = insert.into();
        } else {
            for token in insert {
                if sequence.ended.is_none() {
                    // As one that is offered it costs a step: rewinding and inserting for ever is bounded by rows.
                    if let Some(finish) = sequence.count_step() {
                        return Ok(Advance::Finished(finish));
                    }
                    sequence.push(token, None);
                }
            }
        }
        if sequence.ended.is_some() {
            return Ok(Advance::Drawn(None));
        }
        // Also for an offer: the logits after what still stands have to be known.
        if !sequence.is_pending() {
            sequence.replay_last();
        }
        Ok(Advance::Pending)
    }
}

/// A policy stops the response, or refuses what is offered.
fn stop(sequence: &mut Sequence, link: usize, reason: String) -> Finish {
    let step = sequence.step();
    sequence.chain.record(link, step, TraceKind::Stop(reason.clone()));
    Finish::Stopped { policy: sequence.chain.links[link].policy.name.clone(), reason }
}

/// The chain's steerings, merged with the values that the round knows.
fn merge(sequence: &Sequence, round: &Round) -> Merged {
    let state = |head: usize| sequence.state.as_ref().and_then(|state| state.values[head]).unwrap_or(0.0);
    let values = |head: usize, token, place| round.value(head, token, place).unwrap_or(0.0);
    sequence.chain.merge(&round.top, |width| round.chosen(width), values, state)
}
