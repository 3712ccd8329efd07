//! Passes: rows through the two halves of the model, and one step of the engine.
//!
//! [`Engine::step`] is the decoding loop. The lower half runs pending and candidate rows to the exit
//! layer; what may go on is held there while policies decide; the upper half takes up the pending
//! rows and the winners. Rounds of decisions are `rounds.rs`'s.

use std::time::Instant;

use vassal_kernels::{Device, Plan, Row};

use super::sequence::{Round, Sequence};
use super::{Body, Engine, EngineError, Event};
use crate::model::llama::Taps;
use crate::token::Token;

/// A row that goes on to the upper half.
pub(super) struct Going {
    /// Index of its sequence in `running`.
    pub(super) sequence: usize,
    pub(super) row: Row,
    pub(super) held: u32,
    /// It is a candidate's: its scratch slot is `from`.
    pub(super) from: Option<u32>,
    /// Its logits are wanted.
    pub(super) last: bool,
}

/// Whose row it is.
#[derive(Clone, Copy)]
pub(super) enum Owner {
    Pending { sequence: usize, last: bool },
    Candidate { sequence: usize, token: Token },
}

impl<D: Device> Engine<D> {
    /// One step: every sequence that can go on does. Returns what it brought about.
    ///
    /// # Errors
    /// The device's. All sequences end with it, waiting ones and those that came to their end in this very step included,
    /// and no event tells of them: what they had in the device's memory can no longer be trusted. From then on every
    /// step is refused with [`EngineError::Failed`].
    pub fn step(&mut self) -> Result<Vec<Event>, EngineError> {
        if let Some(first) = &self.failed {
            return Err(EngineError::Failed { first: first.clone() });
        }
        let mut events = Vec::new();
        match self.step_into(&mut events) {
            Ok(()) => Ok(events),
            Err(error) => {
                let error = self.needs.beside(error);
                self.fail(&error);
                Err(error)
            }
        }
    }

    fn step_into(&mut self, events: &mut Vec<Event>) -> Result<(), EngineError> {
        self.slices.begin();
        self.starts.begin();
        self.admit()?;
        self.start_all(events);
        self.turn = self.turn.wrapping_add(1);
        let (mut going, mut held, mut scratch) = (Vec::new(), 0usize, 0usize);
        let mut first = true;
        loop {
            self.advance_all(&mut going, events)?;
            let owners = self.lower_half(first, &mut held, &mut scratch)?;
            first = false;
            let mut any_candidate = false;
            for (owner, row, at) in owners {
                match owner {
                    Owner::Pending { sequence, last } => {
                        going.push(Going { sequence, row, held: at, from: None, last })
                    }
                    Owner::Candidate { .. } => any_candidate = true,
                }
            }
            if !any_candidate {
                break;
            }
        }
        self.upper_half(&going)?;
        for sequence in self.running.iter_mut().flatten() {
            // Held rows are gone with the pass.
            for valued in sequence.round.iter_mut().flat_map(|round| &mut round.valued) {
                valued.row = None;
            }
            let text = sequence.take_text(self.vocabulary.as_ref(), false);
            if !text.is_empty() {
                events.push(Event::Text { sequence: sequence.id, text });
            }
        }
        Ok(())
    }

    /// The row of a position of a sequence. `sequence` in it is the index into `running`; plans renumber it.
    pub(super) fn row(&self, sequence: &Sequence, position: usize, index: usize, slot: u32) -> Row {
        let response_count = (position + 1).saturating_sub(sequence.prompt_tokens);
        Row {
            token: sequence.tokens[position],
            position: position as u32,
            sequence: index as u32,
            slot,
            response_count: response_count as u32,
            remaining: sequence.remaining(response_count),
        }
    }

    /// Runs `[0, exit)` for candidate rows, and in the first pass of a step for pending rows. Returns
    /// every row with its owner and where its residual is held.
    fn lower_half(
        &mut self,
        with_pending: bool,
        held: &mut usize,
        scratch: &mut usize,
    ) -> Result<Vec<(Owner, Row, u32)>, EngineError> {
        let mut rows: Vec<(Owner, Row)> = Vec::new();
        let budget = self.model.rows_max().min(self.held_max - *held);
        let pending = self.running.iter().map(|one| if with_pending { pending_rows(one) } else { 0 });
        let pending: Vec<usize> = pending.collect();
        // Wide rounds leave room for whoever only decodes or reads its prompt.
        let reserved = (self.model.rows_max() / 4).max(1);
        let widest = (self.model.rows_max() - reserved).min(self.candidate_rows_max);
        let unreserved = budget.saturating_sub(reserved.min(pending.iter().sum()));
        let mut room = unreserved.min(self.candidate_rows_max - *scratch);
        for index in in_turn(self.turn, self.running.len()) {
            let Some(sequence) = self.running[index].as_ref() else { continue };
            let wanted = sequence.wanted();
            // All of a round's rows run together, or it waits for its turn; one that no pass could hold
            // runs in parts, and its winner may have to run again.
            let count = match wanted.len() {
                all if all <= room => all,
                all if all > widest => room,
                _ => 0,
            };
            room -= count;
            let response_count = sequence.response().len() + 1;
            for &token in &wanted[..count] {
                let (position, slot) = (sequence.tokens.len() as u32, self.scratch_slot + *scratch as u32);
                let (sequence_index, remaining) = (index as u32, sequence.remaining(response_count));
                let response_count = response_count as u32;
                let row = Row { token, position, sequence: sequence_index, slot, response_count, remaining };
                *scratch += 1;
                rows.push((Owner::Candidate { sequence: index, token }, row));
            }
        }
        let counts = share_out(budget - rows.len(), &pending, self.turn);
        for (index, count) in counts.into_iter().enumerate().filter(|(_, count)| *count > 0) {
            let Some(sequence) = self.running[index].as_ref() else { continue };
            for position in sequence.cached..sequence.cached + count {
                let row = self.row(sequence, position, index, sequence.slot(position));
                rows.push((Owner::Pending { sequence: index, last: position + 1 == sequence.tokens.len() }, row));
            }
        }
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let start = Instant::now();
        let plan = self.plan(rows.iter().map(|(_, row)| *row));
        self.device.begin(&plan)?;
        let valued = rows.iter().any(|(owner, row)| {
            matches!(owner, Owner::Candidate { .. })
                || self.running[row.sequence as usize]
                    .as_ref()
                    .is_some_and(|sequence| sequence.chain.live().any(|link| !link.heads.is_empty()))
        });
        let mut taps = Taps { layers: &self.taps, ..Taps::default() };
        for head in self.heads.iter().filter(|_| valued) {
            match &head.body {
                Body::LookAhead(head) => taps.linear.push(head),
                Body::OnePass(head) => taps.one_pass.push(head),
            }
        }
        let tapped = self.model.forward(&mut self.device, &mut self.cache, 0..self.exit, &taps)?;
        self.device.end()?;
        let places: Vec<u32> = (0..rows.len() as u32).collect();
        self.device.copy_rows(self.model.residual(), &places, &mut self.held, *held)?;
        self.slices.ran_rows(start);
        self.starts.ran_rows(start);
        let seconds = start.elapsed().as_secs_f64();
        self.account_lower(&rows, seconds, tapped.seconds);
        if valued {
            self.take_values(&rows, &tapped, *held);
        }
        let first = *held as u32;
        *held += rows.len();
        Ok(rows.into_iter().zip(first..).map(|((owner, row), at)| (owner, row, at)).collect())
    }

    /// A plan of rows, with the pages of the sequences in it.
    fn plan(&self, rows: impl Iterator<Item = Row>) -> Plan {
        let mut plan = Plan::default();
        let mut numbers = vec![u32::MAX; self.running.len()];
        for mut row in rows {
            let index = row.sequence as usize;
            if numbers[index] == u32::MAX {
                numbers[index] = plan.block_tables.len() as u32;
                plan.block_tables
                    .push(self.running[index].as_ref().map_or_else(Vec::new, |sequence| sequence.pages.clone()));
            }
            row.sequence = numbers[index];
            plan.rows.push(row);
        }
        plan
    }

    /// Runs `[exit, layers)` for the rows that go on, takes logits and makes sequences ready.
    fn upper_half(&mut self, going: &[Going]) -> Result<(), EngineError> {
        if going.is_empty() {
            return Ok(());
        }
        let start = Instant::now();
        let copies: Vec<(u32, u32)> = going.iter().filter_map(|row| Some((row.from?, row.row.slot))).collect();
        if !copies.is_empty() {
            self.device.commit(&mut self.cache, &copies, 0..self.exit)?;
        }
        // The budget of the lower half bounds pending rows, and a sequence has one winner: chunks are
        // needed only where winners come on top of a full pass.
        for chunk in going.chunks(self.model.rows_max()) {
            let held: Vec<u32> = chunk.iter().map(|row| row.held).collect();
            self.device.copy_rows(&self.held, &held, self.model.residual_mut(), 0)?;
            if self.exit < self.costs.layers {
                let plan = self.plan(chunk.iter().map(|row| row.row));
                self.device.begin(&plan)?;
                self.model.forward(
                    &mut self.device,
                    &mut self.cache,
                    self.exit..self.costs.layers,
                    &Taps::default(),
                )?;
                self.device.end()?;
            }
            let heads: Vec<(u32, u32)> = chunk
                .iter()
                .enumerate()
                .filter(|(_, row)| row.last)
                .filter_map(|(place, row)| Some((place as u32, self.running[row.sequence].as_ref()?.logits_slot)))
                .collect();
            if !heads.is_empty() {
                self.model.head(&mut self.device, &heads, &mut self.logits)?;
            }
        }
        self.slices.ran_rows(start);
        self.starts.ran_rows(start);
        let share = start.elapsed().as_secs_f64() / going.len() as f64;
        for row in going {
            let Some(mut sequence) = self.running[row.sequence].take() else { continue };
            let in_prompt = sequence.in_prompt();
            let upper = self.costs.layers - self.exit;
            sequence.cached = row.row.position as usize + 1;
            sequence.timing.model_seconds += share;
            sequence.counters.logit_rows += u64::from(row.last);
            if in_prompt {
                sequence.timing.prompt_seconds += share;
            } else {
                sequence.counters.forward_equivalents += self.costs.forwards(1, upper, usize::from(row.last));
                sequence.counters.winner_rows += u64::from(row.from.is_some());
            }
            if in_prompt && row.last {
                self.share_prompt(&sequence);
            }
            self.running[row.sequence] = Some(sequence);
        }
        self.become_ready(going.iter().filter(|row| row.last).map(|row| row.sequence))
    }

    /// Counts the rows of a lower half and shares its time out by rows.
    fn account_lower(&mut self, rows: &[(Owner, Row)], seconds: f64, head_seconds: f64) {
        let share = (seconds - head_seconds) / rows.len() as f64;
        let head_share = head_seconds / rows.len() as f64;
        for (owner, row) in rows {
            let Some(sequence) = self.running[row.sequence as usize].as_mut() else { continue };
            let in_prompt = sequence.in_prompt();
            sequence.timing.model_seconds += share;
            sequence.timing.head_seconds += head_share;
            match owner {
                Owner::Candidate { .. } => sequence.counters.candidate_rows += 1,
                Owner::Pending { .. } if in_prompt => sequence.counters.prompt_rows += 1,
                Owner::Pending { .. } => sequence.counters.pending_rows += 1,
            }
            if in_prompt {
                sequence.timing.prompt_seconds += share;
            } else {
                sequence.counters.forward_equivalents += self.costs.forwards(1, self.exit, 0);
            }
        }
    }
}

/// Rows that a sequence has ready to run as pending ones.
fn pending_rows(sequence: &Option<Sequence>) -> usize {
    let runs = |sequence: &&Sequence| sequence.takes_part() && sequence.round.as_ref().is_none_or(Round::wants_state);
    sequence.as_ref().filter(runs).map_or(0, |sequence| sequence.tokens.len() - sequence.cached)
}

/// Every index once, starting further on in each step, so that nobody is always last.
pub(super) fn in_turn(turn: usize, count: usize) -> impl Iterator<Item = usize> {
    (0..count).map(move |index| (turn % count + index) % count)
}

/// Rows for each of those that want some: nobody gets more than an equal share while another wants
/// more than it has. A long prompt does not hold up those who run a row at a time.
fn share_out(rows: usize, wanted: &[usize], turn: usize) -> Vec<usize> {
    let mut given = vec![0; wanted.len()];
    let mut left = rows;
    let mut open: Vec<usize> = in_turn(turn, wanted.len()).filter(|&index| wanted[index] > 0).collect();
    while left > 0 && !open.is_empty() {
        let share = (left / open.len()).max(1);
        open.retain(|&index| {
            let more = share.min(wanted[index] - given[index]).min(left);
            given[index] += more;
            left -= more;
            given[index] < wanted[index]
        });
    }
    given
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_shared_out_fairly_and_nobody_is_always_last() {
        assert_eq!(share_out(10, &[1, 0, 3], 0), [1, 0, 3]);
        assert_eq!(share_out(10, &[100, 1, 1], 0), [8, 1, 1]);
        assert_eq!(share_out(11, &[100, 2, 100], 0), [5, 2, 4]);
        assert_eq!(share_out(0, &[1, 2], 0), [0, 0]);
        assert_eq!(share_out(3, &[], 0), [0; 0]);
        let served: Vec<usize> =
            (0..3).filter_map(|turn| share_out(1, &[5, 5, 5], turn).iter().position(|&count| count == 1)).collect();
        assert_eq!(served, [0, 1, 2]);
    }
}
