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
//! running mean and the remaining share there may be a *share* group ([`Layout::with_share`]): the running
//! mean times the share of the token limit used, in other words the residual's sum over the limit. What a
//! token adds to a sum does not fade as the response grows, what it adds to a running mean does. Where the reward can be read off
//! text there may be its columns besides ([`TextColumns`]).
//! Start at [`moments`], then [`fit`].

use vassal_kernels::LinearHead;

use super::features::States;
use super::ridge::{Covariance, Linear, Moments, RidgeError};
use super::text_columns::TextColumns;

/// Penalties that [`fit`] tries, relative to standardised features.
pub const PENALTIES: [f64; 10] = [1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0];

/// The penalty of text columns: they are few, and a reward's own numbers.
const TEXT_PENALTY: f64 = 1e-4;

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

/// Which columns the moments of a fit have: features, then targets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    hidden: usize,
    share: bool,
    text: usize,
}

impl Layout {
    /// Residual `[H]`, running mean `[H]`, remaining share.
    pub fn plain(hidden: usize) -> Self {
        Self { hidden, share: false, text: 0 }
    }

    /// The same, and the running mean times the used share of the limit `[H]`, in front of the remaining share.
    pub fn with_share(hidden: usize) -> Self {
        Self { hidden, share: true, text: 0 }
    }

    /// The same, and so many text columns behind the remaining share.
    pub fn with_text(self, text: usize) -> Self {
        Self { text, ..self }
    }

    /// Whether the share's columns are among them.
    pub fn has_share(self) -> bool {
        self.share
    }

    /// Text columns.
    pub fn text_columns(self) -> usize {
        self.text
    }

    /// Feature columns.
    pub fn features(self) -> usize {
        self.vectors() * self.hidden + 1 + self.text
    }

    fn vectors(self) -> usize {
        2 + usize::from(self.share)
    }

    /// Appends the columns of one row `[residual; running mean; remaining; 1]`, but for those of text.
    fn extend(self, row: &[f32], out: &mut Vec<f32>) {
        let remaining = row[2 * self.hidden];
        out.extend_from_slice(&row[..2 * self.hidden]);
        if self.share {
            out.extend(row[self.hidden..2 * self.hidden].iter().map(|mean| mean * (1.0 - remaining)));
        }
        out.push(remaining);
    }
}

/// Second moments of all states: the layout's features, in it the columns of all `texts` one after the other, then one column for
/// each reward in `targets`, whose entries are one number a rollout.
pub fn moments(
    layout: Layout,
    states: &States,
    texts: &[&TextColumns],
    targets: &[&[f64]],
    threads: usize,
) -> Result<Covariance, RidgeError> {
    moments_from(|_| 0, layout, (states, texts), targets, threads)
}

/// The same of the end states alone: what a reward model of finished responses is fitted on.
pub fn end_moments(
    layout: Layout,
    states: &States,
    targets: &[&[f64]],
    threads: usize,
) -> Result<Covariance, RidgeError> {
    moments_from(|count| count - 1, layout, (states, &[]), targets, threads)
}

/// `first` says with which of a rollout's so many states to begin.
fn moments_from(
    first: impl Fn(usize) -> usize,
    layout: Layout,
    (states, texts): (&States, &[&TextColumns]),
    targets: &[&[f64]],
    threads: usize,
) -> Result<Covariance, RidgeError> {
    let columns: usize = texts.iter().map(|text| text.width()).sum();
    if columns != layout.text {
        let (expected, got) = (layout.text.to_string(), columns.to_string());
        return Err(RidgeError::Request { what: "text columns", expected, got });
    }
    for target in targets {
        if target.len() != states.rollouts() {
            let (expected, got) = (format!("{} numbers", states.rollouts()), target.len().to_string());
            return Err(RidgeError::Request { what: "targets", expected, got });
        }
    }
    let mut moments = Moments::new(layout.features() + targets.len(), threads);
    let (mut rows, mut portion) = (Vec::new(), Vec::new());
    for rollout in 0..states.rollouts() {
        states.rows(rollout, &mut rows);
        portion.clear();
        let first = first(states.range(rollout).len());
        for (state, row) in states.range(rollout).zip(rows.chunks_exact(states.width())).skip(first) {
            layout.extend(row, &mut portion);
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
    /// Its tap is 0 until an engine knows better. `share` is empty in the plain layout.
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

/// A fitted head and how it was chosen.
#[derive(Debug, Clone, PartialEq)]
pub struct Fit {
    /// The head.
    pub head: ValueHead,
    /// Penalties of the residual, of the running mean, and of the share (unused in the plain layout). The
    /// remaining share of the limit has the running mean's; text columns have their own, always the same.
    pub penalties: [f64; 3],
    /// Share of the tune targets' variance explained, over all states.
    pub explained: f64,
}

/// Fits reward number `reward` of the moments, with penalties chosen by their error on `tune`: first one
/// for all groups, then each group's in turn, twice.
pub fn fit(layout: Layout, learn: &Covariance, tune: &Covariance, reward: usize) -> Result<Fit, RidgeError> {
    let target = layout.features() + reward;
    if learn.width != tune.width || target >= learn.width {
        let expected = format!("wider than {target} columns, alike for both splits");
        let got = format!("{} and {}", learn.width, tune.width);
        return Err(RidgeError::Request { what: "moments", expected, got });
    }
    let mut search = Search { layout, learn, tune, target, tried: Vec::new(), best: None };
    for penalty in PENALTIES {
        search.attempt([penalty; 3])?;
    }
    for group in (0..layout.vectors()).rev().cycle().take(2 * layout.vectors()) {
        let Some(mut penalties) = search.best.as_ref().map(|best| best.penalties) else {
            break;
        };
        for penalty in PENALTIES {
            penalties[group] = penalty;
            search.attempt(penalties)?;
        }
    }
    let Some(Attempt { error, penalties, linear }) = search.best else {
        return Err(RidgeError::Singular { column: 0 });
    };
    let power = tune.at(target, target) + tune.mean[target] * tune.mean[target];
    let explained = if power > 0.0 { 1.0 - error / power } else { 0.0 };
    Ok(Fit { head: head(layout, &linear), penalties, explained })
}

struct Attempt {
    error: f64,
    penalties: [f64; 3],
    linear: Linear,
}

struct Search<'a> {
    layout: Layout,
    learn: &'a Covariance,
    tune: &'a Covariance,
    target: usize,
    tried: Vec<[f64; 3]>,
    best: Option<Attempt>,
}

impl Search<'_> {
    /// Keeps the solution if it is the best so far. Penalties too small for these rows are passed over.
    fn attempt(&mut self, penalties: [f64; 3]) -> Result<(), RidgeError> {
        if self.tried.contains(&penalties) {
            return Ok(());
        }
        self.tried.push(penalties);
        let Layout { hidden, .. } = self.layout;
        let remaining = self.layout.vectors() * hidden;
        let penalty = |column: usize| match column {
            vector if vector < remaining => penalties[vector / hidden],
            _ if column == remaining => penalties[1],
            _ => TEXT_PENALTY,
        };
        let each: Vec<f64> = (0..self.layout.features()).map(penalty).collect();
        let linear = match self.learn.solve(&each, self.target) {
            Ok(linear) => linear,
            Err(RidgeError::Singular { .. }) => return Ok(()),
            Err(error) => return Err(error),
        };
        let error = self.tune.fit_error(&linear, self.target);
        if self.best.as_ref().is_none_or(|best| error < best.error) {
            self.best = Some(Attempt { error, penalties, linear });
        }
        Ok(())
    }
}

fn head(layout: Layout, linear: &Linear) -> ValueHead {
    let all: Vec<f32> = linear.weights.iter().map(|&weight| weight as f32).collect();
    let (residual, rest) = all.split_at(layout.hidden);
    let (mean, rest) = rest.split_at(layout.hidden);
    let (share, rest) = rest.split_at(rest.len() - 1 - layout.text);
    let linear = LinearHead {
        tap: 0,
        residual: residual.to_vec(),
        mean: mean.to_vec(),
        share: share.to_vec(),
        remaining: rest[0],
        bias: linear.bias as f32,
    };
    ValueHead { linear, text: rest[1..].to_vec() }
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
        let fitted = |layout| {
            let learned = moments(layout, &learn, &[], &[&other, &learn_targets], 2).expect("fits");
            let tuned = moments(layout, &tune, &[], &[&other[..tune_targets.len()], &tune_targets], 2).expect("fits");
            let fit = fit(layout, &learned, &tuned, 1).expect("solvable");
            let found = evaluate(&fit.head, (&tune, None), &tune_targets, 6, 3);
            assert!((found.explained - fit.explained).abs() <= 1e-3, "{} and {}", found.explained, fit.explained);
            assert!(found.mean_change.abs() <= 0.02 && found.deviation_of_change > 0.05, "{found:?}");
            (fit.head.linear, found.explained_by_position)
        };
        // The planted V is the mean times the used share, which the plain features only approach.
        let (weights, plain) = fitted(Layout::plain(HIDDEN));
        assert!(weights.share.is_empty());
        assert!(weights.mean[1] > 4.0 * weights.mean[2].abs(), "{weights:?}");
        let (weights, shared) = fitted(Layout::with_share(HIDDEN));
        assert!(weights.share[1] > 0.5 && weights.share[1] > 4.0 * weights.share[2].abs(), "{weights:?}");
        assert!(shared[0] < 0.05 && shared[3] > 0.6 && shared[3] > plain[3] + 0.1, "{plain:?} {shared:?}");
    }

    #[test]
    fn targets_must_match_the_rollouts() {
        let (states, _) = world(1, 2, 2);
        let error = moments(Layout::plain(HIDDEN), &states, &[], &[&[0.0; 3]], 1).expect_err("three for four rollouts");
        assert_eq!(error.to_string(), "ridge regression: targets must be 4 numbers, got 3");
    }
}
