//! The look-ahead head: V(s), the reward that a state's response will earn on average, as a linear
//! function of the state's features.
//!
//! Every state of every rollout, the state before the first token and the end state included, is a row
//! whose target is the finished response's reward (λ = 1, γ = 1; Han et al., arXiv 2405.06639, section
//! 3.1), a response cut at the token limit counting as finished. All states weigh the same: late states
//! say more about the reward, early ones more of the guidance is decided at. Differences between prompts
//! are useless to decoding, so targets are centred by prompt ([`centre`]).
//!
//! Features come in groups with a penalty each, chosen on the tune prompts: the running mean is far
//! smoother over a response than the residual, and their best penalties differ. Besides the residual, its
//! running mean and the remaining share there may be a *share* group ([`Columns::with_share`]): the running
//! mean times the share of the token limit used, in other words the residual's sum over the limit. What a
//! token adds to a sum does not fade as the response grows, what it adds to a running mean does. Where the reward can be read off
//! text there may be its columns besides ([`TextColumns`]).
//! Start at [`moments`], then [`penalties::fit`](super::penalties::fit).

use vassal_kernels::LinearHead;

use super::features::States;
use super::ridge::{Covariance, Moments, RidgeError};
use super::text_columns::TextColumns;

/// Rewards of rollouts by prompt, less the mean of the *other* rollouts of the same prompt: without its
/// own reward in the mean, a target stays unbiased. Prompts with one rollout are given 0.
pub fn centre(rewards: &[Vec<f64>]) -> Vec<f64> {
    let mut out = Vec::new();
    for group in rewards {
        let sum: f64 = group.iter().sum();
        let others = group.len().saturating_sub(1).max(1) as f64;
        let lone = group.len() == 1;
        out.extend(group.iter().map(|reward| if lone { 0.0 } else { reward - (sum - reward) / others }));
    }
    out
}

/// Columns of moments: residual `[H]`, running mean `[H]`, remaining share, running mean times the used share `[H]`, then the text columns
/// of every reward that has some, then targets. Every choice of features without text is a leading part of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Columns {
    /// Width of the residual stream, H.
    pub hidden: usize,
}

impl Columns {
    /// The end of residual, running mean and remaining share.
    pub fn plain(self) -> usize {
        2 * self.hidden + 1
    }

    /// The end of the same with the running mean times the used share: where text begins.
    pub fn with_share(self) -> usize {
        3 * self.hidden + 1
    }

    /// Appends the columns of one row `[residual; running mean; remaining; 1]`, but for those of text.
    fn extend(self, row: &[f32], out: &mut Vec<f32>) {
        let remaining = row[2 * self.hidden];
        out.extend_from_slice(&row[..2 * self.hidden + 1]);
        out.extend(row[self.hidden..2 * self.hidden].iter().map(|mean| mean * (1.0 - remaining)));
    }
}

/// Second moments of all states: [`Columns`] with those of all `texts` one after the other, then one for
/// each of `targets`, whose entries are one number a rollout.
pub fn moments(
    states: &States,
    texts: &[&TextColumns],
    targets: &[&[f64]],
    threads: usize,
) -> Result<Covariance, RidgeError> {
    let columns = Columns { hidden: states.hidden() };
    moments_from((|_| 0, columns.with_share()), (states, texts), targets, threads)
}

/// The same of the end states' plain columns alone: what a reward model of finished responses is fitted on.
pub fn end_moments(states: &States, targets: &[&[f64]], threads: usize) -> Result<Covariance, RidgeError> {
    let columns = Columns { hidden: states.hidden() };
    moments_from((|count| count - 1, columns.plain()), (states, &[]), targets, threads)
}

/// `first` says with which of a rollout's so many states to begin, `end` with which column those of hidden states end.
fn moments_from(
    (first, end): (impl Fn(usize) -> usize, usize),
    (states, texts): (&States, &[&TextColumns]),
    targets: &[&[f64]],
    threads: usize,
) -> Result<Covariance, RidgeError> {
    for target in targets {
        if target.len() != states.rollouts() {
            let (expected, got) = (format!("{} numbers", states.rollouts()), target.len().to_string());
            return Err(RidgeError::Request { what: "targets", expected, got });
        }
    }
    let columns = Columns { hidden: states.hidden() };
    let of_text: usize = texts.iter().map(|text| text.width()).sum();
    let mut moments = Moments::new(end + of_text + targets.len(), threads);
    let (mut rows, mut portion) = (Vec::new(), Vec::new());
    for rollout in 0..states.rollouts() {
        states.rows(rollout, &mut rows);
        portion.clear();
        let first = first(states.range(rollout).len());
        for (state, row) in states.range(rollout).zip(rows.chunks_exact(states.width())).skip(first) {
            let start = portion.len();
            columns.extend(row, &mut portion);
            portion.truncate(start + end);
            texts.iter().for_each(|text| portion.extend_from_slice(text.of(state)));
            portion.extend(targets.iter().map(|target| target[rollout] as f32));
        }
        moments.add(&portion)?;
    }
    Ok(moments.finish())
}

/// A look-ahead head: what it reads off hidden states, and off the text so far.
#[derive(Debug, Clone, PartialEq)]
pub struct ValueHead {
    /// Its tap is 0 until an engine knows better. `share` is empty where it reads none.
    pub linear: LinearHead,
    /// Weights of text columns; empty where it reads none.
    pub text: Vec<f32>,
}

impl ValueHead {
    /// V at the states of a rollout, `[T + 1]` in place of `out`; `rows` are those states', and `text` their columns, which a head that
    /// reads none does not need.
    pub fn values(
        &self,
        states: &States,
        text: Option<&TextColumns>,
        rollout: usize,
        rows: &[f32],
        out: &mut Vec<f64>,
    ) {
        out.clear();
        values(&self.linear, rows, out);
        let Some(text) = text.filter(|_| !self.text.is_empty()) else { return };
        for (state, value) in states.range(rollout).zip(out) {
            let terms = text.of(state).iter().zip(&self.text);
            *value += terms.map(|(&x, &weight)| f64::from(x) * f64::from(weight)).sum::<f64>();
        }
    }
}

/// Values of rows of features `[n, 2H + 2]`, appended to `out`.
pub fn values(head: &LinearHead, rows: &[f32], out: &mut Vec<f64>) {
    let hidden = head.residual.len();
    let product = |weights: &[f32], x: &[f32]| -> f64 {
        weights.iter().zip(x).map(|(&weight, &x)| f64::from(weight) * f64::from(x)).sum()
    };
    out.extend(rows.chunks_exact(2 * hidden + 2).map(|row| {
        let (residual, rest) = row.split_at(hidden);
        let (mean, rest) = rest.split_at(hidden);
        let remaining = f64::from(rest[0]);
        let of_mean = product(&head.mean, mean) + product(&head.share, mean) * (1.0 - remaining);
        product(&head.residual, residual) + of_mean + f64::from(head.remaining) * remaining + f64::from(head.bias)
    }));
}

#[cfg(test)]
mod tests {
    use super::super::penalties::{Choice, Features, fit};
    use super::super::quality::evaluate;
    use super::*;

    /// A tiny generator of numbers in -1..1.
    fn noise(state: &mut u64) -> f32 {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (*state >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    const HIDDEN: usize = 3;

    /// Rollouts of 6 tokens whose reward is the sum over tokens of residual 1, and noise.
    fn world(seed: u64, prompts: usize, samples: usize) -> (States, Vec<Vec<f64>>) {
        let mut state = seed;
        let mut states = States::new(HIDDEN);
        let mut rewards = Vec::new();
        for _ in 0..prompts {
            let easy = f64::from(noise(&mut state));
            let mut group = Vec::new();
            for _ in 0..samples {
                let (mut rows, mut sum) = (Vec::new(), [0.0_f32; HIDDEN]);
                for position in 0..=6 {
                    let residual = [50.0 + noise(&mut state), noise(&mut state), noise(&mut state)];
                    if position > 0 {
                        sum.iter_mut().zip(residual).for_each(|(sum, x)| *sum += x);
                    }
                    rows.extend(residual);
                    rows.extend(sum.map(|sum| sum / (position as f32).max(1.0)));
                    rows.extend([1.0 - position as f32 / 6.0, 1.0]);
                }
                states.push(&[1; 6], &rows).expect("fits");
                group.push(f64::from(sum[1]) / 6.0 + 2.0 * easy + 0.2 * f64::from(noise(&mut state)));
            }
            rewards.push(group);
        }
        (states, rewards)
    }

    #[test]
    fn targets_are_centred_by_the_others_mean() {
        assert_eq!(centre(&[vec![1.0, 2.0, 6.0], vec![5.0]]), [-3.0, -1.5, 4.5, 0.0]);
    }

    #[test]
    fn a_planted_value_is_found_on_unseen_prompts() {
        let (learn, learn_rewards) = world(1, 60, 8);
        let (tune, tune_rewards) = world(2, 20, 8);
        let (learn_targets, tune_targets) = (centre(&learn_rewards), centre(&tune_rewards));
        let other = vec![0.5; learn_targets.len()];
        let learned = moments(&learn, &[], &[&other, &learn_targets], 2).expect("fits");
        let tuned = moments(&tune, &[], &[&other[..tune_targets.len()], &tune_targets], 2).expect("fits");
        let fitted = |features| {
            let choice = Choice { features, target: Columns { hidden: HIDDEN }.with_share() + 1 };
            let fit = fit(HIDDEN, (&learned, &tuned), &[choice], 2).expect("solvable").remove(0);
            let found = evaluate(&fit.head, (&tune, None), &tune_targets, 6, 3);
            assert!((found.explained - fit.explained).abs() <= 1e-3, "{} and {}", found.explained, fit.explained);
            assert!(found.mean_change.abs() <= 0.02 && found.deviation_of_change > 0.05, "{found:?}");
            (fit.head.linear, found.explained_by_position)
        };
        // The planted V is the mean times the used share, which the plain features only approach.
        let (weights, plain) = fitted(Features::Plain);
        assert!(weights.share.is_empty());
        assert!(weights.mean[1] > 4.0 * weights.mean[2].abs(), "{weights:?}");
        let (weights, shared) = fitted(Features::Share);
        assert!(weights.share[1] > 0.5 && weights.share[1] > 4.0 * weights.share[2].abs(), "{weights:?}");
        assert!(shared[0] < 0.05 && shared[3] > 0.6 && shared[3] > plain[3] + 0.1, "{plain:?} {shared:?}");
    }

    #[test]
    fn targets_must_match_the_rollouts() {
        let (states, _) = world(1, 2, 2);
        let error = moments(&states, &[], &[&[0.0; 3]], 1).expect_err("three for four rollouts");
        assert_eq!(error.to_string(), "ridge regression: targets must be 4 numbers, got 3");
    }
}
