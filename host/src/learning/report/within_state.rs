//! Within-state accuracy: whether a head ranks next tokens as their true values do.
//!
//! States are drawn from the pool's responses, a few next tokens of each from the base's distribution, and each is continued
//! by the base model many times: the mean reward of the finished texts is its Monte-Carlo value. The correlation of V(s·a) − V(s)
//! with it, both centred within the state, is what predicts guidance. The noise of the Monte-Carlo values is taken out
//! by splitting the continuations in halves: the product of two halves has the true values' variance as its mean.
//! Start at [`sample`].

use std::collections::HashMap;

use super::super::rewards::{Exchange, Scores, SharedReward};
use super::super::rollouts::Rollout;
use super::super::statistics::{ROUNDS, SplitMix, bootstrap, mean};
use super::Estimate;
use crate::engine::teacher::CandidateState;
use crate::engine::{Event, HeadId};
use crate::error::Error;
use crate::host::Host;
use crate::request::Request;
use crate::token::{Token, Vocabulary};

/// How much is sampled.
#[derive(Debug, Clone, Copy)]
pub struct Amount {
    /// States.
    pub states: usize,
    /// Next tokens of each.
    pub tokens: usize,
    /// Continuations of each token; even.
    pub continuations: usize,
}

/// One state: its next tokens' values and Monte-Carlo values.
#[derive(Debug, Clone, PartialEq)]
pub struct StateValues {
    /// V(s·a) − V(s) of each token.
    pub values: Vec<f64>,
    /// Mean rewards of the two halves of each token's continuations.
    pub halves: Vec<[f64; 2]>,
}

/// A next token that waits for its continuations.
struct Waiting<'a> {
    state: usize,
    prompt: &'a str,
    prompt_tokens: &'a [Token],
    /// The response up to this token, which is included.
    tokens: Vec<Token>,
    /// Texts of the continuations that are done.
    texts: Vec<String>,
}

/// Samples states of these responses for every head of the host: `[heads][states]`. Heads are in the order of `rewards`.
/// `prompts` gives each prompt id's tokens.
///
/// # Errors
/// The engine's and the rewards'.
pub fn sample(
    host: &mut Host,
    groups: &[Vec<&Rollout>],
    prompts: &HashMap<String, Vec<Token>>,
    rewards: &[SharedReward],
    amount: Amount,
    (candidates, token_limit, seed): (usize, usize, u64),
    mut done: impl FnMut(),
) -> Result<Vec<Vec<StateValues>>, Error> {
    let heads: Vec<HeadId> = (0..rewards.len()).map(HeadId).collect();
    let mut random = SplitMix::new(seed);
    let (mut states, mut waiting) = (Vec::<CandidateState>::new(), Vec::new());
    let mut chosen_of: Vec<Vec<usize>> = Vec::new();
    for _ in 0..amount.states {
        let group = &groups[random.below(groups.len())];
        let rollout = group[random.below(group.len())];
        let count = random.below(rollout.tokens.len());
        let Some(prompt) = prompts.get(&rollout.id) else { continue };
        let found =
            host.engine().candidate_states(&heads, prompt, &rollout.tokens, &[count], candidates, token_limit)?;
        let Some(state) = found.into_iter().next() else { continue };
        let chosen = draw(&state, amount.tokens, &mut random);
        for &place in &chosen {
            let mut tokens = rollout.tokens[..count].to_vec();
            tokens.push(state.top.tokens[place]);
            waiting.push(Waiting {
                state: states.len(),
                prompt: &rollout.prompt,
                prompt_tokens: prompt,
                tokens,
                texts: Vec::new(),
            });
        }
        chosen_of.push(chosen);
        states.push(state);
    }
    continue_all(host, &mut waiting, amount.continuations, (token_limit, seed), &mut done)?;
    judge(&states, &chosen_of, &waiting, rewards)
}

/// Lets the base model continue every token so many times, all in one batch.
fn continue_all(
    host: &mut Host,
    waiting: &mut [Waiting<'_>],
    continuations: usize,
    (token_limit, seed): (usize, u64),
    done: &mut dyn FnMut(),
) -> Result<(), Error> {
    let mut of = HashMap::new();
    for (place, token) in waiting.iter_mut().enumerate() {
        let left = token_limit.saturating_sub(token.tokens.len());
        let ended = token.tokens.last().is_some_and(|last| host.tokenizer().end_of_text().contains(last));
        if left == 0 || ended {
            token.texts = vec![host.decode(&token.tokens); continuations];
            continue;
        }
        let request = Request {
            prompt: [token.prompt_tokens, &token.tokens].concat(),
            max_tokens: Some(left),
            seed: Some(seed),
            stream: (place * continuations) as u64,
            ..Request::default()
        };
        let request = host.validate(request)?;
        for id in host.engine().submit_samples(request, continuations)? {
            of.insert(id, place);
        }
    }
    let mut found: Vec<Vec<(u64, Vec<Token>)>> = waiting.iter().map(|_| Vec::new()).collect();
    while !host.engine().is_idle() {
        for event in host.engine().step()? {
            let Event::Finished { sequence, response } = event else { continue };
            if let Some(&place) = of.get(&sequence) {
                found[place].push((sequence.0, response.token_ids()));
                done();
            }
        }
    }
    for (token, mut continuations) in waiting.iter_mut().zip(found) {
        // Sequences end in any order.
        continuations.sort();
        let text = |(_, rest): (u64, Vec<Token>)| host.decode(&[token.tokens.as_slice(), rest.as_slice()].concat());
        token.texts.extend(continuations.into_iter().map(text));
    }
    Ok(())
}

/// Different places among the candidates, drawn by base probability.
fn draw(state: &CandidateState, count: usize, random: &mut SplitMix) -> Vec<usize> {
    let top = &state.top;
    let mut weights: Vec<f64> = top.logits.iter().map(|logit| f64::from(logit - top.log_normalizer).exp()).collect();
    let mut chosen = Vec::new();
    while chosen.len() < count.min(weights.len()) {
        let mut at = random.unit() * weights.iter().sum::<f64>();
        let place = weights.iter().position(|&weight| {
            at -= weight;
            weight > 0.0 && at < 0.0
        });
        // Rounding may leave nothing at the very end.
        let Some(place) = place.or_else(|| weights.iter().position(|&weight| weight > 0.0)) else { break };
        chosen.push(place);
        weights[place] = 0.0;
    }
    chosen
}

fn judge(
    states: &[CandidateState],
    chosen: &[Vec<usize>],
    waiting: &[Waiting<'_>],
    rewards: &[SharedReward],
) -> Result<Vec<Vec<StateValues>>, Error> {
    let exchanges: Vec<Exchange<'_>> = waiting
        .iter()
        .flat_map(|token| token.texts.iter().map(|text| Exchange { prompt: token.prompt, response: text }))
        .collect();
    let mut all = Vec::new();
    for (head, reward) in rewards.iter().enumerate() {
        let scores = Scores::of(&**reward, &exchanges)?.accept()?.scores;
        let empty = StateValues { values: Vec::new(), halves: Vec::new() };
        let mut of_states = vec![empty; states.len()];
        let (mut start, mut next_of_state) = (0, vec![0; states.len()]);
        for token in waiting {
            let own = &scores[start..start + token.texts.len()];
            start += token.texts.len();
            let (state, place) = (&states[token.state], chosen[token.state][next_of_state[token.state]]);
            next_of_state[token.state] += 1;
            let (first, second) = own.split_at(own.len() / 2);
            let half = |half: &[Option<f64>]| mean(&half.iter().flatten().copied().collect::<Vec<_>>());
            of_states[token.state].values.push(f64::from(state.values[head][place] - state.state_values[head]));
            of_states[token.state].halves.push([half(first), half(second)]);
        }
        all.push(of_states);
    }
    Ok(all)
}

/// The corrected correlation, with its interval over states. None where the Monte-Carlo values do not vary beyond their noise.
pub fn correlation(states: &[StateValues], seed: u64) -> Option<Estimate> {
    let sums: Vec<[f64; 3]> = states.iter().map(sums).collect();
    let statistic = |drawn: &mut dyn Iterator<Item = usize>| {
        let [product, value, truth] =
            drawn.fold([0.0; 3], |total, state| std::array::from_fn(|at| total[at] + sums[state][at]));
        if value > 0.0 && truth > 0.0 { product / (value * truth).sqrt() } else { f64::NAN }
    };
    let all = statistic(&mut (0..sums.len()));
    let interval = bootstrap(sums.len(), ROUNDS, seed, |drawn| statistic(&mut drawn.iter().copied()));
    all.is_finite().then(|| Estimate::new(all, interval))
}

/// Within a state: value times truth, value squared, and the product of the truth's halves.
fn sums(state: &StateValues) -> [f64; 3] {
    let count = state.values.len().max(1) as f64;
    let value_mean = state.values.iter().sum::<f64>() / count;
    let half_means = [0, 1].map(|half| state.halves.iter().map(|halves| halves[half]).sum::<f64>() / count);
    state.values.iter().zip(&state.halves).fold([0.0; 3], |total, (value, halves)| {
        let (value, [a, b]) = (value - value_mean, [halves[0] - half_means[0], halves[1] - half_means[1]]);
        [total[0] + value * (a + b) / 2.0, total[1] + value * value, total[2] + a * b]
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// States whose halves are the truth with noise, and values that are the truth with noise of their own.
    fn states(value_noise: f64, truth_noise: f64) -> Vec<StateValues> {
        let mut random = SplitMix::new(9);
        let mut normal = move || (0..12).map(|_| random.unit()).sum::<f64>() - 6.0;
        let mut state = || {
            let truth: Vec<f64> = (0..5).map(|_| normal()).collect();
            let values = truth.iter().map(|truth| 3.0 * truth + value_noise * normal()).collect();
            let halves = truth.iter().map(|truth| [truth + truth_noise * normal(), truth + truth_noise * normal()]);
            StateValues { values, halves: halves.collect() }
        };
        (0..400).map(|_| state()).collect()
    }

    #[test]
    fn noise_of_the_continuations_does_not_hide_a_true_value() {
        for noise in [0.0, 2.0] {
            let found = correlation(&states(0.0, noise), 1).expect("varies");
            assert!((found.mean - 1.0).abs() < 0.1, "noise {noise}: {found:?}");
        }
        // Values that are half noise: 1/√2.
        let half = correlation(&states(3.0, 1.0), 1).expect("varies");
        assert!((half.mean - 0.5f64.sqrt()).abs() < 0.08 && half.ci_low > 0.5 && half.ci_high < 0.9, "{half:?}");
    }

    #[test]
    fn what_does_not_vary_has_no_correlation() {
        let flat = StateValues { values: vec![1.0, 2.0], halves: vec![[0.5, 0.5]; 2] };
        assert_eq!(correlation(&[flat.clone(), flat], 1), None);
    }
}
