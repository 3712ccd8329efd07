//! The rounds of all sequences at once: they begin when logits are known, and what is left of them once everybody has
//! been asked is one batch of draws.
//!
//! What needs the device is asked for all sequences together, candidates ([`Engine::become_ready`]) and draws
//! ([`Engine::advance_all`]): on a row each, a hundred sequences would pay a hundred hand-overs to its threads. How one
//! sequence's round goes on is `decide.rs`'s.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use vassal_kernels::{Device, Draw, Drawn, TopK, TopKQuery};

use super::calls::{can_show_early, show_early};
use super::decide::{Advance, Steered};
use super::pass::{Going, in_turn};
use super::response::{DrawRecord, Finish};
use super::sequence::{HeldRow, Round, RoundKind, Sequence, StateValues};
use super::{Body, Engine, EngineError, Event, Head};
use crate::token::Token;

/// Fewer sequences are done by one thread before another has woken.
const TOGETHER_MIN: usize = 8;

impl<D: Device> Engine<D> {
    /// The logits after the last tokens of these sequences are known: their rounds of decisions begin.
    pub(super) fn become_ready(&mut self, sequences: impl Iterator<Item = usize>) -> Result<(), EngineError> {
        let start = Instant::now();
        let (mut ready, mut queries) = (Vec::new(), Vec::new());
        for index in sequences {
            // A round that waited for the last token's own row goes on.
            let Some(sequence) = self.running[index].as_ref().filter(|sequence| sequence.round.is_none()) else {
                continue;
            };
            let (kind, k) = match sequence.inserting.front() {
                Some(&token) => (RoundKind::Offer(token), 1),
                None => (RoundKind::Draw, sequence.chain.candidates()),
            };
            ready.push((index, kind, k > 0));
            // Without policies there is nobody to look at candidates.
            queries.extend((k > 0).then_some(TopKQuery { slot: sequence.logits_slot, k, vocabulary: &[] }));
        }
        let mut found = self.device.top_k(&self.logits, &queries)?.into_iter();
        let share = start.elapsed().as_secs_f64() / ready.len().max(1) as f64;
        for (index, kind, asked) in &ready {
            let top = if *asked { found.next().unwrap_or_default() } else { TopK::default() };
            let top = if let RoundKind::Offer(token) = *kind { self.offered(*index, token, top)? } else { top };
            let Some(sequence) = self.running[*index].as_mut() else { continue };
            sequence.timing.model_seconds += share;
            sequence.chain.clear();
            sequence.round = Some(Round::new(*kind, top));
        }
        Ok(())
    }

    /// The one candidate of a round that offers an inserted token.
    fn offered(&mut self, index: usize, token: Token, top: TopK) -> Result<TopK, EngineError> {
        let Some(sequence) = self.running[index].as_ref() else { return Ok(top) };
        let mut logits = Vec::new();
        self.device.read_logits(&self.logits, sequence.logits_slot, &mut logits)?;
        let logit = logits.get(token as usize).copied().unwrap_or(f32::NEG_INFINITY);
        Ok(TopK { tokens: vec![token], logits: vec![logit], ..top })
    }

    /// Calls the policies that need nothing more, on all threads.
    fn show_all(&mut self, going: &[Going]) {
        let running = self.running.iter_mut().enumerate().filter_map(|(index, one)| Some((index, one.as_mut()?)));
        let waiting =
            running.filter(|(index, one)| can_show_early(one) && going.iter().all(|row| row.sequence != *index));
        let waiting: Vec<Mutex<&mut Sequence>> = waiting.map(|(_, sequence)| Mutex::new(sequence)).collect();
        if waiting.len() < TOGETHER_MIN {
            return;
        }
        self.device.pool().for_each(waiting.len(), &|item| {
            show_early(&mut waiting[item].lock().unwrap_or_else(PoisonError::into_inner));
        });
    }

    /// Brings every round as far as it goes without more rows; what is drawn with a row goes on.
    pub(super) fn advance_all(&mut self, going: &mut Vec<Going>, events: &mut Vec<Event>) -> Result<(), EngineError> {
        self.show_all(going);
        let mut draws = Vec::new();
        for index in in_turn(self.slices.next(), self.running.len()) {
            let Some(mut sequence) = self.running[index].take() else { continue };
            if !sequence.takes_part() || sequence.round.is_none() || going.iter().any(|row| row.sequence == index) {
                self.running[index] = Some(sequence);
                continue;
            }
            match self.advance(&mut sequence)? {
                Advance::Draws(steered) => {
                    self.slices.turn(index, false);
                    self.running[index] = Some(sequence);
                    draws.push((index, *steered));
                }
                advance => self.follow(index, sequence, advance, going, events)?,
            }
        }
        if draws.is_empty() {
            return Ok(());
        }
        let start = Instant::now();
        let asked: Vec<Draw> = draws.iter_mut().map(|(_, steered)| std::mem::take(&mut steered.draw)).collect();
        let drawn = self.device.sample(&self.logits, &asked)?;
        let share = start.elapsed().as_secs_f64() / draws.len() as f64;
        for ((index, steered), drawn) in draws.into_iter().zip(drawn) {
            let Some(mut sequence) = self.running[index].take() else { continue };
            sequence.timing.model_seconds += share;
            let advance = self.take_drawn(&mut sequence, steered, drawn);
            self.follow(index, sequence, advance, going, events)?;
        }
        Ok(())
    }

    /// Follows what a round came to, but for a draw: its row goes on, and where the response has ended the policies are
    /// asked about that.
    fn follow(
        &mut self,
        index: usize,
        mut sequence: Sequence,
        mut advance: Advance,
        going: &mut Vec<Going>,
        events: &mut Vec<Event>,
    ) -> Result<(), EngineError> {
        let end = loop {
            match advance {
                Advance::Drawn(_) if sequence.ended.is_some() => {
                    // The answers to the draw are no answers to the end.
                    sequence.chain.clear();
                    sequence.round = Some(Round::new(RoundKind::Ended, TopK::default()));
                    advance = self.advance(&mut sequence)?;
                }
                Advance::Drawn(Some(HeldRow { held, slot })) => {
                    let position = sequence.tokens.len() - 1;
                    let row = self.row(&sequence, position, index, sequence.slot(position));
                    going.push(Going { sequence: index, row, held, from: Some(slot), last: true });
                    break None;
                }
                // Nothing is drawn once the response has ended.
                Advance::Drawn(None) | Advance::Rows | Advance::Pending | Advance::Draws(_) => break None,
                Advance::Finished(finish) => break Some(finish),
            }
        };
        let is_held = sequence.round.as_ref().is_some_and(|round| round.held_at.is_some());
        self.slices.turn(index, is_held);
        match end {
            Some(finish) => {
                going.retain(|row| row.sequence != index);
                self.finish(sequence, finish, events);
            }
            None => self.running[index] = Some(sequence),
        }
        Ok(())
    }

    /// Appends what was drawn; none where nothing was left to draw.
    fn take_drawn(&self, sequence: &mut Sequence, steered: Steered, drawn: Option<Drawn>) -> Advance {
        let Steered { mut round, forbidding, .. } = steered;
        let Some(drawn) = drawn else {
            return Advance::Finished(Finish::NothingAllowed { policies: forbidding });
        };
        let entry = round.entry(drawn.token, 0);
        sequence.counters.tail_draws += u64::from(!round.valued.is_empty() && entry.is_none());
        sequence.push(
            drawn.token,
            Some(DrawRecord {
                log_probability: drawn.log_probability,
                base_log_probability: drawn.base_log_probability,
                kl: drawn.kl,
            }),
        );
        let valued = entry.map(|entry| round.valued.swap_remove(entry)).filter(|valued| valued.row.is_some());
        let Some(valued) = valued else { return Advance::Drawn(None) };
        // A one-pass head's value of the drawn token is none of the sequence that it makes.
        let look_ahead =
            |(head, value): (&Head, Option<f32>)| value.filter(|_| matches!(head.body, Body::LookAhead(_)));
        let values = self.heads.iter().zip(valued.values).map(look_ahead).collect();
        sequence.state = Some(StateValues { values, projections: valued.projections });
        Advance::Drawn(valued.row)
    }
}
