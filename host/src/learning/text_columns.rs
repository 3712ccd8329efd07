//! What a reward reads off the text so far, at every state of rollouts: columns beside their features.
//!
//! A state's columns are the basis of [`TextTerm`](crate::model::heads::TextTerm), so that what a fit finds for them is that term's
//! weights. Start at [`TextColumns::read`].

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
            part.numbers
        };
        Self { width, numbers: on_threads(parts.len(), threads, read).concat() }
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

#[cfg(test)]
mod tests {
    use super::super::prompts::Split;
    use super::super::rewards;
    use super::super::rollouts::End;
    use super::*;

    /// A word a token; the last one ends a response.
    struct Words(Vec<&'static str>);

    impl Vocabulary for Words {
        fn size(&self) -> usize {
            self.0.len()
        }

        fn bytes(&self, token: Token) -> &[u8] {
            self.0[token as usize].as_bytes()
        }

        fn is_special(&self, token: Token) -> bool {
            token + 1 == self.0.len() as Token
        }

        fn tokens(&self, _: &str) -> Vec<Token> {
            Vec::new()
        }

        fn end_of_text(&self) -> &[Token] {
            &[3]
        }
    }

    #[test]
    fn rollouts_are_read_in_order_on_any_number_of_threads() {
        let words = Words(vec!["good ", "bad ", "day. ", ""]);
        let rollout = |place: usize| Rollout {
            id: "a".into(),
            prompt: "a".into(),
            split: Split::Learn,
            sample: place as u32,
            tokens: (0..place % 5).map(|at| ((place / 5 + at) % 3) as Token).chain([3]).collect(),
            text: String::new(),
            end: End::EndOfText,
            scores: Vec::new(),
        };
        // More than three threads' parts.
        let rollouts: Vec<Rollout> = (0..3 * PART + 5).map(rollout).collect();
        let all: Vec<&Rollout> = rollouts.iter().collect();
        let reading = rewards::reading("sentiment 1").expect("a reading");
        let read = |all: &[&Rollout], threads| TextColumns::read(reading.as_ref(), &words, all, (8, threads));
        let whole = read(&all, 1);
        assert_eq!(read(&all, 3), whole);
        assert_eq!(whole.numbers.len(), whole.width() * all.iter().map(|one| one.tokens.len() + 1).sum::<usize>());
        let (last, before) = all.split_last().expect("some");
        let start = read(before, 2).numbers.len();
        assert_eq!(read(&[last], 1).numbers, whole.numbers[start..]);
        assert_eq!(rollouts[1].tokens.len(), rollouts[6].tokens.len());
        assert_ne!(read(&[&rollouts[1]], 1), read(&[&rollouts[6]], 1), "texts differ");
    }
}
