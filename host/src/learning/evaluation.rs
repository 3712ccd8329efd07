//! What guided decoding buys, on test prompts: rewards with intervals, what they cost in KL and rows, and
//! whether the text stays fluent.
//!
//! The base model's pool of samples (a rollouts file of the test split) gives the base's mean and Best-of-n
//! by the unbiased estimator. Each guided method is the shipped policy `vas` with dials; it and fresh base
//! samples are decoded in the same way, so that fluency is compared at the same temperature, nucleus,
//! tail and number of texts. Everything is per prompt first, and intervals are over prompts. Start at
//! [`measure`].

use std::ops::RangeInclusive;

use super::decoding::kl_per_token;
use super::prompts::Prompt;
use super::rewards::{Exchange, Scores, SharedReward};
use super::statistics::{best_of, bootstrap, distinct_2, mean, repeated_4};
use crate::engine::Response;
use crate::error::Error;

/// Resamplings of the prompts behind an interval.
pub const BOOTSTRAP_ROUNDS: usize = 2000;

/// A mean over prompts with its 95 % interval.
#[derive(Debug, Clone, PartialEq)]
pub struct Estimate {
    /// The mean over prompts.
    pub mean: f64,
    /// The percentile interval.
    pub interval: RangeInclusive<f64>,
}

/// What one method did.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    /// Mean of each reward, in the order asked for.
    pub rewards: Vec<Estimate>,
    /// Nats a token, all responses together.
    pub kl_per_token: f64,
    /// Under the base at temperature 1, nats a token.
    pub cross_entropy: f64,
    /// Different pairs of neighbouring tokens as a share of all.
    pub distinct_2: f64,
    /// Runs of four tokens seen before in the same response, as a share of all.
    pub repeated_4: f64,
    /// Plain rows of arithmetic a token after the prompt.
    pub forwards_per_token: f64,
    /// Tokens drawn from outside the candidates, as a share of all.
    pub tail_share: f64,
}

/// Measures responses `[prompts][samples]`.
///
/// # Errors
/// A reward's, and too many responses without a score.
pub fn measure(
    prompts: &[&Prompt],
    responses: &[Vec<Response>],
    rewards: &[SharedReward],
    seed: u64,
) -> Result<Measured, Error> {
    let all = || responses.iter().flatten();
    let tokens: Vec<Vec<u32>> = all().map(Response::token_ids).collect();
    let (mut log_probability, mut drawn, mut forwards, mut tail) = (0.0, 0usize, 0.0, 0u64);
    for response in all() {
        for draw in response.tokens.iter().filter_map(|token| token.draw) {
            log_probability += f64::from(draw.base_log_probability);
            drawn += 1;
        }
        forwards += response.counters.forward_equivalents;
        tail += response.counters.tail_draws;
    }
    let count: usize = tokens.iter().map(Vec::len).sum::<usize>().max(1);
    let exchanges: Vec<Exchange<'_>> = prompts
        .iter()
        .zip(responses)
        .flat_map(|(prompt, group)| {
            group.iter().map(|response| Exchange { prompt: &prompt.text, response: &response.text })
        })
        .collect();
    let of_prompts = |reward: &SharedReward| -> Result<Estimate, Error> {
        let mut scores = Scores::of(&**reward, &exchanges)?.accept()?.scores.into_iter();
        let by_prompt: Vec<Vec<f64>> =
            responses.iter().map(|group| scores.by_ref().take(group.len()).flatten().collect()).collect();
        let scored = by_prompt.iter().filter(|scores| !scores.is_empty());
        Ok(estimate(&scored.map(|scores| mean(scores)).collect::<Vec<_>>(), seed))
    };
    let texts = || tokens.iter().map(Vec::as_slice);
    Ok(Measured {
        rewards: rewards.iter().map(of_prompts).collect::<Result<_, _>>()?,
        kl_per_token: kl_per_token(all()),
        cross_entropy: -log_probability / drawn.max(1) as f64,
        distinct_2: distinct_2(texts()).unwrap_or(0.0),
        repeated_4: repeated_4(texts()).unwrap_or(0.0),
        forwards_per_token: forwards / count as f64,
        tail_share: tail as f64 / count as f64,
    })
}

/// The mean of numbers by prompt, with its interval.
pub fn estimate(by_prompt: &[f64], seed: u64) -> Estimate {
    let statistic = |drawn: &[usize]| mean(&drawn.iter().map(|&prompt| by_prompt[prompt]).collect::<Vec<_>>());
    let interval = bootstrap(by_prompt.len(), BOOTSTRAP_ROUNDS, seed, statistic);
    let interval = interval.map_or(f64::NAN..=f64::NAN, |interval| interval.start..=interval.end);
    Estimate { mean: mean(by_prompt), interval }
}

/// The base's mean, or Best-of-n, from pools of rewards by prompt. Pools smaller than n are passed over.
pub fn best_of_pools(pools: &[Vec<f64>], n: usize, seed: u64) -> Estimate {
    let by_prompt: Vec<f64> = pools.iter().filter_map(|pool| best_of(pool, n)).collect();
    estimate(&by_prompt, seed)
}

/// The dial that costs `kl` nats a token by a head's table, interpolated between its entries (KL is about
/// quadratic in the dial, so its root is interpolated); the table's last dial where it never costs as much.
pub fn dial_for_kl(table: &[(f64, f64)], kl: f64) -> f64 {
    let (mut below, root) = ((0.0, 0.0), kl.max(0.0).sqrt());
    for &(dial, cost) in table {
        let above = cost.max(0.0).sqrt();
        if above >= root && above > below.1 {
            return below.0 + (dial - below.0) * (root - below.1) / (above - below.1);
        }
        below = (dial, above);
    }
    below.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dial_is_found_between_the_entries_of_a_table() {
        let table = [(0.5, 0.04), (1.0, 0.16), (1.5, 0.36)];
        assert!((dial_for_kl(&table, 0.16) - 1.0).abs() < 1e-12);
        assert!((dial_for_kl(&table, 0.09) - 0.75).abs() < 1e-12);
        assert!((dial_for_kl(&table, 0.01) - 0.25).abs() < 1e-12);
        assert_eq!(dial_for_kl(&table, 9.0), 1.5);
        assert_eq!(dial_for_kl(&[], 1.0), 0.0);
    }

    #[test]
    fn pools_give_base_and_best_of_n() {
        let pools = vec![vec![0.0, 1.0], vec![1.0, 1.0]];
        assert_eq!(best_of_pools(&pools, 1, 1).mean, 0.75);
        assert_eq!(best_of_pools(&pools, 2, 1).mean, 1.0);
        let interval = best_of_pools(&pools, 1, 1).interval;
        assert!(*interval.start() <= 0.75 && *interval.end() >= 0.75);
    }
}
