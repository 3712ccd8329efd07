//! What a look-ahead head is worth on rollouts that it was not fitted to, and how far its values differ between next tokens.
//!
//! Explained variance is of the reward over all states and by position, rewards and values both less their means within prompt and
//! position: what a head says of the prompt itself is useless to decoding. The *spread* is the unit of dials. Start at [`evaluate`].

use super::features::States;
use super::look_ahead::ValueHead;
use super::text_columns::TextColumns;

/// What a head is worth on rollouts it was not fitted to.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluation {
    /// Share of the targets' variance explained over all states.
    pub explained: f64,
    /// The same for equal parts of the token limit, the states before the first token apart in front:
    /// they see no response and can explain nothing of a centred target.
    pub explained_by_position: Vec<f64>,
    /// Mean change of V from state to state: 0 for the true V, along the base model's own responses.
    pub mean_change: f64,
    /// Root mean square of that change.
    pub deviation_of_change: f64,
}

/// Which of `parts` of the token limit a state lies in, from 1 on; 0 is the state before the first token.
pub fn part_of(position: usize, token_limit: usize, parts: usize) -> usize {
    position.checked_sub(1).map_or(0, |before| (before * parts / token_limit.max(1)).min(parts - 1) + 1)
}

/// Evaluates a head on states and their rewards, one a rollout; `sizes` says how many rollouts in turn answer each prompt. For
/// `parts` of `token_limit` tokens.
pub fn evaluate(
    head: &ValueHead,
    (states, sizes, text): (&States, &[usize], Option<&TextColumns>),
    rewards: &[f64],
    token_limit: usize,
    parts: usize,
) -> Evaluation {
    let mut errors = vec![[0.0_f64; 2]; parts + 1];
    let (mut change, mut square, mut changes) = (0.0, 0.0, 0.0_f64);
    let (mut rows, mut next) = (Vec::new(), 0);
    for size in sizes {
        let rollouts = next..next + size;
        next += size;
        let mut group: Vec<Vec<f64>> = Vec::new();
        for rollout in rollouts.clone() {
            let mut of_states = Vec::new();
            states.rows(rollout, &mut rows);
            head.values(states, text, rollout, &rows, &mut of_states);
            for pair in of_states.windows(2) {
                change += pair[1] - pair[0];
                square += (pair[1] - pair[0]).powi(2);
                changes += 1.0;
            }
            group.push(of_states);
        }
        for position in 0..group.iter().map(Vec::len).max().unwrap_or(0) {
            let part = part_of(position, token_limit, parts);
            let here = group.iter().zip(rewards.iter().skip(rollouts.start));
            let here: Vec<(f64, f64)> =
                here.filter_map(|(values, &reward)| Some((*values.get(position)?, reward))).collect();
            let mean = |of: fn(&(f64, f64)) -> f64| here.iter().map(of).sum::<f64>() / here.len() as f64;
            let (value_mean, reward_mean) = (mean(|pair| pair.0), mean(|pair| pair.1));
            for (value, reward) in &here {
                errors[part][0] += (reward - reward_mean - (value - value_mean)).powi(2);
                errors[part][1] += (reward - reward_mean).powi(2);
            }
        }
    }
    let share = |[error, power]: [f64; 2]| {
        if power > 0.0 { 1.0 - error / power } else { 0.0 }
    };
    let total = errors.iter().fold([0.0; 2], |sum, part| [sum[0] + part[0], sum[1] + part[1]]);
    Evaluation {
        explained: share(total),
        explained_by_position: errors.into_iter().map(share).collect(),
        mean_change: change / changes.max(1.0),
        deviation_of_change: (square / changes.max(1.0)).sqrt(),
    }
}

/// The spread σ_A of a head: root mean over states of the variance of V over next tokens under the base
/// model. It turns a dial d into the strength β = d·T/σ_A, so that KL a token is about d²/2 for every
/// reward.
///
/// Only candidates have values, so the variance is over the base model restricted to them: of a state's
/// values and probabilities, the latter are scaled to sum 1. The neglected tail (15-18 % of the default
/// model's draws outside its top 20) is not steered either. States are to come from the base model's own
/// responses, each as often as it occurs.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Spread {
    variance: f64,
    states: f64,
}

impl Spread {
    /// Adds a state: the candidates' values and base probabilities, `[k]` each. Candidates without weight
    /// add nothing.
    pub fn add(&mut self, values: &[f32], probabilities: &[f32]) {
        let pairs = || values.iter().zip(probabilities).map(|(&v, &p)| (f64::from(v), f64::from(p)));
        let total: f64 = pairs().map(|(_, p)| p).sum();
        let mean = pairs().map(|(v, p)| p * v).sum::<f64>() / total;
        let variance = pairs().map(|(v, p)| p * (v - mean).powi(2)).sum::<f64>() / total;
        if variance.is_finite() {
            self.variance += variance;
            self.states += 1.0;
        }
    }

    /// σ_A in units of the reward; nothing before a state with a finite variance has been added.
    pub fn get(&self) -> Option<f64> {
        (self.states > 0.0).then(|| (self.variance / self.states).sqrt())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_differences_at_one_position_of_one_prompt_count() {
        // The value is the residual. Responses of different lengths, and of prompts at different levels.
        let head = ValueHead {
            linear: vassal_kernels::LinearHead {
                tap: 0,
                residual: vec![1.0],
                mean: vec![0.0],
                share: vec![],
                remaining: 0.0,
                bias: 0.0,
            },
            text: Vec::new(),
        };
        let (mut states, mut rewards) = (States::new(1), Vec::new());
        for level in [0.0, 50.0] {
            for response in [&[0.0, 1.0][..], &[0.0, -1.0, -1.0]] {
                let rows: Vec<f32> = response.iter().flat_map(|x| [level + x, 0.0, 0.5, 1.0]).collect();
                states.push(&vec![1; response.len() - 1], &rows).expect("rows");
                rewards.push(f64::from(response[1]) - f64::from(level));
            }
        }
        let found = evaluate(&head, (&states, &[2, 2], None), &rewards, 2, 2);
        // Nothing is known before the first token, everything after it, and the last state has no company.
        assert_eq!((found.explained, &found.explained_by_position[..]), (0.5, &[0.0, 1.0, 0.0][..]));
        assert!(found.mean_change.abs() < 1e-9 && (found.deviation_of_change.powi(2) - 4.0 / 6.0).abs() < 1e-9);
    }

    #[test]
    fn the_spread_is_the_weighted_deviation() {
        let mut spread = Spread::default();
        assert_eq!(spread.get(), None);
        spread.add(&[1.0, 3.0], &[0.25, 0.25]);
        spread.add(&[2.0, 7.0, 9.0], &[0.5, 0.0, 0.0]);
        spread.add(&[1.0], &[0.0]);
        assert_eq!(spread.get(), Some(0.5_f64.sqrt()));
    }
}
