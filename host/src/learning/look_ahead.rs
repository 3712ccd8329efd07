//! The look-ahead head: V(s), the reward that a state's response will earn on average, as a linear
//! function of the state's features.
//!
//! Every state of every rollout, the state before the first token and the end state included, is a row
//! whose target is the finished response's reward (λ = 1, γ = 1; Han et al., arXiv 2405.06639, section
//! 3.1), a response cut at the token limit counting as finished. All states weigh the same: late states
//! say more about the reward, early ones more of the guidance is decided at.
//!
//! Features and targets are centred by prompt and position ([`panel`](super::panel)): nothing else guides.
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
use super::panel::{Panel, PanelMoments};
use super::ridge::RidgeError;
use super::statistics::mean;
use super::text_columns::TextColumns;

/// Rewards of rollouts by prompt, less their prompt's mean.
pub fn centre(rewards: &[Vec<f64>]) -> Vec<f64> {
    let of_prompt = |group: &Vec<f64>| {
        let mean = mean(group);
        group.iter().map(move |reward| reward - mean).collect::<Vec<_>>()
    };
    rewards.iter().flat_map(of_prompt).collect()
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

/// Second moments of all states: [`Columns`] with those of all `texts` one after the other, then one for each of `targets`, whose
/// entries are one number a rollout; `sizes` says how many rollouts in turn answer each prompt.
///
/// # Errors
/// Targets or sizes that do not match the rollouts.
pub fn moments(
    (states, sizes): (&States, &[usize]),
    texts: &[&TextColumns],
    targets: &[&[f64]],
    threads: usize,
) -> Result<PanelMoments, RidgeError> {
    let columns = Columns { hidden: states.hidden() };
    moments_from((|_| 0, columns.with_share()), (states, sizes, texts), targets, threads)
}

/// The same of the end states' plain columns alone: what a reward model of finished responses is fitted on.
///
/// # Errors
/// Targets or sizes that do not match the rollouts.
pub fn end_moments(
    (states, sizes): (&States, &[usize]),
    targets: &[&[f64]],
    threads: usize,
) -> Result<PanelMoments, RidgeError> {
    let columns = Columns { hidden: states.hidden() };
    moments_from((|count| count - 1, columns.plain()), (states, sizes, &[]), targets, threads)
}

/// `first` says with which of a rollout's so many states to begin, `end` with which column those of hidden states end.
fn moments_from(
    (first, end): (impl Fn(usize) -> usize, usize),
    (states, sizes, texts): (&States, &[usize], &[&TextColumns]),
    targets: &[&[f64]],
    threads: usize,
) -> Result<PanelMoments, RidgeError> {
    let lengths = targets.iter().map(|target| ("the numbers of a target", target.len()));
    for (what, got) in lengths.chain([("the rollouts of all prompts", sizes.iter().sum())]) {
        if got != states.rollouts() {
            let (expected, got) = (states.rollouts().to_string(), got.to_string());
            return Err(RidgeError::Request { what, expected, got });
        }
    }
    let columns = Columns { hidden: states.hidden() };
    let of_text: usize = texts.iter().map(|text| text.width()).sum();
    let mut panel = Panel::new(end + of_text + targets.len(), targets.len(), threads);
    let (mut rows, mut next) = (Vec::new(), 0);
    for size in sizes {
        let mut responses: Vec<Vec<f32>> = Vec::new();
        for rollout in next..next + size {
            states.rows(rollout, &mut rows);
            let mut response = Vec::new();
            let first = first(states.range(rollout).len());
            for (state, row) in states.range(rollout).zip(rows.chunks_exact(states.width())).skip(first) {
                let start = response.len();
                columns.extend(row, &mut response);
                response.truncate(start + end);
                texts.iter().for_each(|text| response.extend_from_slice(text.of(state)));
                response.extend(targets.iter().map(|target| target[rollout] as f32));
            }
            responses.push(response);
        }
        next += size;
        panel.add(responses)?;
    }
    Ok(panel.finish())
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
    fn rewards_are_centred_by_their_prompts_mean() {
        assert_eq!(centre(&[vec![1.0, 2.0, 6.0], vec![5.0]]), [-2.0, -1.0, 3.0, 0.0]);
    }

    #[test]
    fn a_planted_value_is_found_on_unseen_prompts() {
        let (learn, learn_rewards) = world(1, 60, 8);
        let (tune, tune_rewards) = world(2, 20, 8);
        let (learn_scores, tune_scores) = (learn_rewards.concat(), tune_rewards.concat());
        let other = vec![0.5; learn_scores.len()];
        let learned = moments((&learn, &[8; 60]), &[], &[&other, &learn_scores], 2).expect("fits");
        let tuned = moments((&tune, &[8; 20]), &[], &[&other[..tune_scores.len()], &tune_scores], 2).expect("fits");
        let (tuned, learned) = (tuned.about(&learned).within, learned.within);
        let fitted = |features| {
            let choice = Choice { features, target: Columns { hidden: HIDDEN }.with_share() + 1 };
            let fit = fit(HIDDEN, (&learned, &tuned), &[choice], 2).expect("solvable").remove(0);
            let found = evaluate(&fit.head, (&tune, &[8; 20], None), &tune_scores, 6, 3);
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

    /// A feature that counts within prompts, and differs far more between them, where it tells nothing of the centred reward.
    #[test]
    fn what_differs_between_prompts_does_not_weaken_a_feature_and_values_stay_level() {
        let (mut random, mut states, mut scores) = (7, States::new(1), Vec::new());
        for _ in 0..50 {
            let prompt = 10.0 * noise(&mut random);
            for _ in 0..8 {
                let own = noise(&mut random);
                // It also grows along every response.
                let residual = |position: f32| [prompt + position + own, 0.0, 1.0 - position / 3.0, 1.0];
                states
                    .push(&[1; 3], &[residual(0.0), residual(1.0), residual(2.0), residual(3.0)].concat())
                    .expect("fits");
                scores.push(f64::from(own) + 0.1 * f64::from(noise(&mut random)));
            }
        }
        let within = moments((&states, &[8; 50]), &[], &[&scores], 1).expect("fits").within;
        let choice = Choice { features: Features::Plain, target: Columns { hidden: 1 }.with_share() };
        let fit = fit(1, (&within, &within), &[choice], 1).expect("solvable").remove(0);
        let linear = &fit.head.linear;
        assert!((linear.residual[0] - 1.0).abs() < 0.02, "{linear:?}");
        assert!((linear.remaining - 3.0).abs() < 0.1, "what every response gains is no change of value: {linear:?}");
        let (mut rows, mut total) = (Vec::new(), 0.0);
        for rollout in 0..states.rollouts() {
            let mut values_of = Vec::new();
            states.rows(rollout, &mut rows);
            values(linear, &rows, &mut values_of);
            assert!((values_of[3] - values_of[0]).abs() < 0.1, "{values_of:?}");
            total += values_of[0];
        }
        assert!((total / states.rollouts() as f64).abs() < 1e-3, "{total}");
    }

    #[test]
    fn a_reward_model_sees_end_states_alone() {
        let (states, rewards) = world(1, 2, 2);
        let ends = end_moments((&states, &[2; 2]), &[&rewards.concat()], 1).expect("fits");
        assert_eq!((ends.within.rows, ends.within.width), (4, Columns { hidden: HIDDEN }.plain() + 1));
        assert!(ends.total.at(0, 0) > ends.within.at(0, 0), "{ends:?}");
    }

    #[test]
    fn targets_must_match_the_rollouts() {
        let (states, _) = world(1, 2, 2);
        let error = moments((&states, &[2; 2]), &[], &[&[0.0; 3]], 1).expect_err("three for four rollouts");
        assert_eq!(error.to_string(), "ridge regression: the numbers of a target must be 4, got 3");
        let error = moments((&states, &[2; 3]), &[], &[&[0.0; 4]], 1).expect_err("six for four rollouts");
        assert_eq!(error.to_string(), "ridge regression: the rollouts of all prompts must be 4, got 6");
    }
}
