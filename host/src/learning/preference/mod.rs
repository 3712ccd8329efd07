//! Learned rewards: what people prefer, as a function of the frozen base model's own features.
//!
//! [`pairs`] reads preference pairs, [`bradley_terry`] fits which of two answers was preferred. The features of an answer are
//! those of its end, `[residual of a layer; its running mean over the answer]`, `[2H]`, as the model has them after at most
//! so many tokens: what a reward will read of a response that was cut at a limit, it is fitted to in the same form. How long
//! the whole answers are is taken out: the longer one wins more often, and a reward that knows only that would make a model wordy.
//!
//! Scores compare answers to one conversation: what the conversation itself adds cancels in every pair, and nothing is known of it.
//!
//! Two rewards come of one file, a *proxy* that guides and a *gold* one that judges, fitted to disjoint pairs and reading
//! different layers. Start at [`Collected`].

pub mod bradley_terry;
pub mod pairs;

use std::collections::HashMap;

use self::bradley_terry::{Differences, Preference, fit};
use self::pairs::{Pair, Turn};
use super::features::end_states;
use super::statistics::{Estimate, ROUNDS, bootstrap, mean};
use crate::error::Error;
use crate::host::Host;
use crate::model::template::Message;

/// Penalties that are tried; chosen by the log-loss of pairs that the fit has not seen.
pub const PENALTIES: [f64; 7] = [0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0];

/// Fewer pairs than this are refused: with fewer no penalty makes a preference of a thousand features.
pub const PAIRS_MIN: usize = 100;

/// Of the resamplings behind an interval.
const SEED: u64 = 1;

/// Pairs as features.
#[derive(Debug, Default)]
pub struct Collected {
    /// Chosen less rejected; the nuisance is ln((1 + words chosen) / (1 + words rejected)).
    pub differences: Differences,
    /// Whether a fit's penalty is chosen by the pair ([`Pair::chooses_penalty`]).
    choosing: Vec<bool>,
    /// Which opening request each pair is of, numbered from 0.
    openings: Vec<usize>,
    /// Sums of all answers' features, `[2H]`.
    sums: Vec<f64>,
    /// Pairs that were passed over: they spell a special token, or do not fit the model's context.
    pub passed_over: usize,
}

/// A reward, fitted.
#[derive(Debug, Clone)]
pub struct Fitted {
    /// Weights of `[residual; running mean]`, `[2H]`; and that of length, which the score does without.
    pub preference: Preference,
    /// The weight of length where nothing else is known.
    of_length: Preference,
    /// So that the mean of all answers' scores is 0.
    pub bias: f64,
    /// What was chosen of [`PENALTIES`].
    pub penalty: f64,
}

/// How right a reward is on pairs that it was not fitted to: shares of them, with intervals that resample opening requests,
/// since pairs of one request are not independent.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Validation {
    /// Pairs.
    pub pairs: usize,
    /// Pairs that could not be read.
    pub passed_over: usize,
    /// Pairs that the score orders as people did.
    pub accuracy: Estimate,
    /// The same by the lengths of the whole answers alone.
    pub accuracy_of_length: Estimate,
    /// The same with length let in again.
    pub accuracy_with_length: Estimate,
}

fn words(text: &str) -> f64 {
    text.split_whitespace().count() as f64
}

impl Collected {
    /// Runs both answers of each pair through the layers below `layer`, which the host's engine must tap. Answers are read up
    /// to `token_limit` tokens. `told` hears of each pair.
    ///
    /// # Errors
    /// The template's, the engine's.
    pub fn read(
        host: &mut Host,
        pairs: &[&Pair],
        layer: usize,
        token_limit: usize,
        mut told: impl FnMut(),
    ) -> Result<Self, Error> {
        let (mut found, mut openings) = (Self::default(), HashMap::new());
        for pair in pairs {
            match features_of(host, pair, layer, token_limit)? {
                Some([chosen, rejected]) => {
                    let longer = ((1.0 + words(&pair.chosen)) / (1.0 + words(&pair.rejected))).ln();
                    let next = openings.len();
                    let opening = *openings.entry(pair.opening()).or_insert(next);
                    found.push(&chosen, &rejected, longer, (opening, pair.chooses_penalty()));
                }
                None => found.passed_over += 1,
            }
            told();
        }
        Ok(found)
    }

    fn push(&mut self, chosen: &[f32], rejected: &[f32], longer: f64, (opening, choosing): (usize, bool)) {
        self.differences.push(chosen, rejected, longer);
        self.choosing.push(choosing);
        self.openings.push(opening);
        self.sums.resize(chosen.len(), 0.0);
        for own in [chosen, rejected] {
            self.sums.iter_mut().zip(own).for_each(|(sum, &x)| *sum += f64::from(x));
        }
    }

    /// Fits a reward to these pairs.
    pub fn fit(&self) -> Fitted {
        let part = |wanted: bool| {
            let (own, width) = (&self.differences, self.differences.width);
            let mut part = Differences { width, ..Differences::default() };
            for (pair, _) in self.choosing.iter().enumerate().filter(|(_, choosing)| **choosing == wanted) {
                part.features.extend_from_slice(&own.features[pair * width..][..width]);
                part.nuisance.push(own.nuisance[pair]);
            }
            part
        };
        let (fitted, held) = (part(false), part(true));
        let loss = |penalty: &f64| held.loss(&fit(&fitted, *penalty), true);
        let losses = PENALTIES.each_ref().map(loss);
        // Where nothing tells them apart, the strongest.
        let best = (0..PENALTIES.len()).rev().min_by(|&a, &b| losses[a].total_cmp(&losses[b])).unwrap_or(0);
        let preference = fit(&self.differences, PENALTIES[best]);
        let answers = 2.0 * self.differences.count() as f64;
        let bias = -preference.weights.iter().zip(&self.sums).map(|(w, sum)| w * sum / answers).sum::<f64>();
        let of_length = fit(&self.differences.nuisance_alone(), PENALTIES[best]);
        Fitted { preference, of_length, bias, penalty: PENALTIES[best] }
    }

    /// How right a reward is on these pairs, which it was not fitted to; none where there are none.
    pub fn validate(&self, reward: &Fitted) -> Option<Validation> {
        let requests = self.openings.iter().max()? + 1;
        let share = |right: Vec<f64>| {
            let mut sums = vec![(0.0, 0.0); requests];
            for (&opening, right) in self.openings.iter().zip(&right) {
                sums[opening] = (sums[opening].0 + right, sums[opening].1 + 1.0);
            }
            let of = |drawn: &[usize]| {
                let sum = drawn.iter().fold((0.0, 0.0), |sum, &own| (sum.0 + sums[own].0, sum.1 + sums[own].1));
                sum.0 / sum.1
            };
            Estimate::new(mean(&right), bootstrap(requests, ROUNDS, SEED, of))
        };
        Some(Validation {
            pairs: self.differences.count(),
            passed_over: self.passed_over,
            accuracy: share(self.differences.right(&reward.preference, false)),
            accuracy_of_length: share(self.differences.nuisance_alone().right(&reward.of_length, true)),
            accuracy_with_length: share(self.differences.right(&reward.preference, true)),
        })
    }
}

/// The features of both answers; none for a pair that cannot be read, because it spells a special token, because the template
/// refuses such a conversation, or because it is longer than the context.
fn features_of(host: &mut Host, pair: &Pair, layer: usize, token_limit: usize) -> Result<Option<[Vec<f32>; 2]>, Error> {
    let texts = pair.prompt.iter().map(|turn| &turn.content).chain([&pair.chosen, &pair.rejected]);
    if texts.into_iter().any(|text| host.tokenizer().names_special(text)) {
        return Ok(None);
    }
    let message = |turn: &Turn| Message::new(turn.role.clone(), turn.content.clone());
    let prompt = match host.conversation(&pair.prompt.iter().map(message).collect::<Vec<_>>()) {
        Err(Error::Template(_) | Error::Tokenizer(_)) => return Ok(None),
        other => other?,
    };
    let mut answers = Vec::new();
    for answer in [&pair.chosen, &pair.rejected] {
        let Ok(mut tokens) = host.tokenizer().encode(answer, false) else { return Ok(None) };
        tokens.truncate(token_limit);
        answers.push(tokens);
    }
    if prompt.len() + token_limit > host.model().context_tokens || answers.iter().any(Vec::is_empty) {
        return Ok(None);
    }
    let answers: Vec<&[u32]> = answers.iter().map(Vec::as_slice).collect();
    let mut found = end_states(host, &prompt, &answers, layer, token_limit)?;
    let width = 2 * host.shape().hidden;
    found.iter_mut().for_each(|state| state.truncate(width));
    Ok(<[Vec<f32>; 2]>::try_from(found).ok())
}

#[cfg(test)]
mod tests {
    use super::super::statistics::SplitMix;
    use super::*;

    #[test]
    fn a_reward_orders_unseen_pairs_and_does_not_follow_their_lengths() {
        let collected = |seed: u64| {
            let mut random = SplitMix::new(seed);
            let mut found = Collected::default();
            for pair in 0..600 {
                let (good, long) = (random.unit() - 0.5, random.unit() - 0.5);
                let chosen = random.unit() < 1.0 / (1.0 + (-(12.0 * good + 4.0 * long)).exp());
                let sign = if chosen { 1.0 } else { -1.0 };
                let row = [sign * good, sign * long].map(|x| 5.0 + x as f32);
                found.push(&row, &[5.0, 5.0], sign * long, (pair / 2, pair % 4 < 2));
            }
            found
        };
        let (fitted, unseen) = (collected(1), collected(2));
        let reward = fitted.fit();
        let judged = unseen.validate(&reward).expect("pairs");
        assert!(Collected::default().validate(&reward).is_none());
        assert!(judged.accuracy.ci_low > 0.75 && judged.accuracy.mean < judged.accuracy_with_length.mean, "{judged:?}");
        assert!((0.52..0.68).contains(&judged.accuracy_of_length.mean), "{judged:?}");
        let [of_good, of_long] = reward.preference.weights[..] else { panic!("{reward:?}") };
        // A step of length changes the score by far less than people like it.
        assert!(of_good > 5.0 && reward.preference.nuisance > 1.0 && of_long.abs() < 2.0, "{reward:?}");
        let mean_score = (of_good * fitted.sums[0] + of_long * fitted.sums[1]) / 1200.0;
        assert!((mean_score + reward.bias).abs() < 1e-9);
    }
}
