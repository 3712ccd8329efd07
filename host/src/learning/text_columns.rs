//! What a reward reads off the text so far, at every state of rollouts: columns beside their features.
//!
//! A state's columns are the basis of [`TextTerm`](crate::model::heads::TextTerm), so that what a fit finds for them is that term's
//! weights. Start at [`TextColumns::read`].

use std::convert::Infallible;

use super::rollouts::Rollout;
use super::threads::on_threads;
use crate::model::heads::text::{TextReading, basis, basis_width};
use crate::token::{Token, Vocabulary, push_bytes, remaining_share};

/// Rollouts that a thread reads at a time.
const PART: usize = 64;

/// Columns of the states of some rollouts, in their order.
#[derive(Debug, Clone, PartialEq)]
pub struct TextColumns {
    width: usize,
    /// `[states, width]`.
    numbers: Vec<f32>,
}

impl TextColumns {
    /// Reads all T + 1 states of each rollout, of responses with at most `token_limit` tokens, on threads.
    pub fn read(
        reading: &dyn TextReading,
        vocabulary: &dyn Vocabulary,
        rollouts: &[&Rollout],
        (token_limit, threads): (usize, usize),
    ) -> Self {
        let width = basis_width(reading.count());
        let parts: Vec<&[&Rollout]> = rollouts.chunks(PART).collect();
        let read = |at: usize| {
            let mut part = Self { width, numbers: Vec::new() };
            for rollout in parts[at] {
                part.push(reading, vocabulary, &rollout.tokens, token_limit);
            }
            Ok::<_, Infallible>(part.numbers)
        };
        let Ok(numbers) = on_threads(parts.len(), threads, read);
        Self { width, numbers: numbers.concat() }
    }

    fn push(&mut self, reading: &dyn TextReading, vocabulary: &dyn Vocabulary, tokens: &[Token], token_limit: usize) {
        let (mut bytes, mut readings) = (Vec::new(), Vec::new());
        for count in 0..=tokens.len() {
            let last = count.checked_sub(1).map(|last| tokens[last]);
            if let Some(token) = last {
                push_bytes(vocabulary, token, &mut bytes);
            }
            readings.clear();
            reading.read(&String::from_utf8_lossy(&bytes), &mut readings);
            let remaining = remaining_share(count, token_limit);
            let ended = last.is_some_and(|last| vocabulary.end_of_text().contains(&last));
            basis(&readings, remaining, ended, &mut self.numbers);
        }
    }

    #[cfg(test)]
    pub(super) fn of_rows(width: usize, numbers: Vec<f32>) -> Self {
        Self { width, numbers }
    }

    /// Columns.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Of a state, `[width]`.
    pub fn of(&self, state: usize) -> &[f32] {
        &self.numbers[state * self.width..][..self.width]
    }
}
