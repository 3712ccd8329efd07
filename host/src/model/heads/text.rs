//! What a head adds for the text so far: a reward that can be read off an unfinished response is known, not learned.
//!
//! A linear head of hidden states does not add up words; the reward itself does. So where a reward reads text alone, a head may have a
//! [`TextTerm`]: a few numbers that the reward reads off the text with the candidate, weighed by how much of the token limit is
//! used, and apart where the candidate ends the response: there the text's own reward is all there is to know. The term is added on the
//! host, to look-ahead and one-pass values alike; the device never sees text. Who reads is a [`TextReading`],
//! which the engine is given.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::HeadError;
use crate::token::{Token, Vocabulary, decode, remaining_share};

/// The most numbers that a reading gives.
pub const READINGS_MAX: usize = 4;

/// Reads numbers off a text, the same ones each time.
pub trait TextReading: Send + Sync {
    /// How many numbers it gives: 1 to [`READINGS_MAX`].
    fn count(&self) -> usize;

    /// Reads a text, finished or not; appends [`TextReading::count`] finite numbers, some -4 to 4 in size.
    fn read(&self, text: &str, out: &mut Vec<f32>);
}

/// A reading that many share.
pub type SharedReading = Arc<dyn TextReading>;

/// Finds the reading of a reward by its exact definition; none where there is no such reward or it cannot be read off text.
pub type Readings<'a> = &'a dyn Fn(&str) -> Option<SharedReading>;

/// What is added to a head's value for the text so far.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextTerm {
    /// The reward's definition, exactly.
    pub reward: String,
    /// One for each number of [`basis`].
    pub weights: Vec<f32>,
}

/// Numbers of the basis of so many readings.
pub fn basis_width(readings: usize) -> usize {
    4 * readings + 1
}

/// How many readings a basis of this width is of.
pub fn readings_of(width: usize) -> usize {
    width.saturating_sub(1) / 4
}

/// What a term is linear in, appended to `out`: each of a text's readings x times 1, u and u², where u is the used share of the token
/// limit, while the response goes on; and 1 and each x where it has ended. The other half is 0.
pub fn basis(readings: &[f32], remaining: f32, ended: bool, out: &mut Vec<f32>) {
    let used = 1.0 - remaining;
    let goes_on = f32::from(u8::from(!ended));
    out.extend(readings.iter().flat_map(|x| [1.0, used, used * used].map(|power| goes_on * power * x)));
    out.push(1.0 - goes_on);
    out.extend(readings.iter().map(|x| (1.0 - goes_on) * x));
}

impl TextTerm {
    /// Finds what reads for the head of this name.
    ///
    /// # Errors
    /// [`HeadError::NoReading`].
    pub fn reading(&self, head: &str, readings: Readings<'_>) -> Result<SharedReading, HeadError> {
        let found = readings(&self.reward).filter(|reading| basis_width(reading.count()) == self.weights.len());
        found.ok_or_else(|| HeadError::NoReading {
            head: head.to_owned(),
            reward: self.reward.clone(),
            weights: self.weights.len(),
        })
    }

    /// A response that ends is weighed as one that goes on to the limit: for weights that were fitted to too few ends.
    pub fn end_as_at_the_limit(weights: &mut [f32]) {
        let readings = readings_of(weights.len());
        let (goes_on, ended) = weights.split_at_mut(3 * readings);
        ended[0] = 0.0;
        for (weight, powers) in ended[1..].iter_mut().zip(goes_on.chunks_exact(3)) {
            *weight = powers.iter().sum();
        }
    }

    /// The term for a text, in units of the reward; `remaining` is the remaining share of the token limit.
    pub fn value(&self, reading: &dyn TextReading, text: &str, remaining: f32, ended: bool) -> f32 {
        let (mut readings, mut numbers) = (Vec::with_capacity(READINGS_MAX), Vec::with_capacity(4 * READINGS_MAX + 1));
        reading.read(text, &mut readings);
        basis(&readings, remaining, ended, &mut numbers);
        numbers.iter().zip(&self.weights).map(|(number, weight)| number * weight).sum()
    }

    /// The term for a response of at most `token_limit` tokens, as it stands.
    pub fn of_response(
        &self,
        reading: &dyn TextReading,
        vocabulary: &dyn Vocabulary,
        response: &[Token],
        token_limit: usize,
    ) -> f32 {
        let remaining = remaining_share(response.len(), token_limit);
        let ended = response.last().is_some_and(|last| vocabulary.end_of_text().contains(last));
        self.value(reading, &decode(vocabulary, response), remaining, ended)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Length;

    impl TextReading for Length {
        fn count(&self) -> usize {
            1
        }

        fn read(&self, text: &str, out: &mut Vec<f32>) {
            out.push(text.len() as f32);
        }
    }

    #[test]
    fn a_term_weighs_by_the_used_share_and_knows_the_end() {
        let term = TextTerm { reward: "length".into(), weights: vec![1.0, 10.0, 100.0, -3.0, 2.0] };
        assert_eq!(term.weights.len(), basis_width(Length.count()));
        assert_eq!(term.value(&Length, "ab", 0.5, false), 2.0 * (1.0 + 5.0 + 25.0));
        assert_eq!(term.value(&Length, "ab", 0.5, true), -3.0 + 2.0 * 2.0);
        assert_eq!(term.value(&Length, "", 1.0, false), 0.0);
        let mut weights = term.weights.clone();
        TextTerm::end_as_at_the_limit(&mut weights);
        let term = TextTerm { weights, ..term };
        assert_eq!(term.value(&Length, "ab", 0.5, true), term.value(&Length, "ab", 0.0, false));
    }
}
