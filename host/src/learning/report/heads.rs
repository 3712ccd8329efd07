//! The heads of a report: diagnosed on the pool's own responses, against rules that know less.
//!
//! States, targets and texts come together here; the arithmetic is in [`diagnosis`](super::diagnosis) and
//! [`within_state`]. A head is judged by the first responses of each prompt only: what a hundred prompts'
//! eight responses do not show, more of them do not show either. Start at [`judge`].

use std::collections::{BTreeMap, HashMap};

use super::super::features::States;
use super::super::fitting::Source;
use super::super::look_ahead::{ValueHead, centre};
use super::super::prompts::Prompt;
use super::super::rewards::{self, Reward, Scores, SharedReward};
use super::super::rollouts::{Rollout, Rollouts};
use super::super::text_columns::TextColumns;
use super::diagnosis::{Judged, centred, diagnose, explained_by};
use super::within_state::{self, Amount};
use super::{Estimate, HeadReport};
use crate::error::Error;
use crate::host::Host;
use crate::learning::fitting::CollectError;
use crate::model::heads::{Description, HeadFile, HeadWeights};
use crate::token::Token;

/// Responses of each prompt that heads are judged by.
const RESPONSES: usize = 8;

/// How heads are judged.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// What the within-state accuracy is sampled of.
    pub amount: Amount,
    /// Candidates of a step.
    pub candidates: usize,
    /// Threads that texts are read on.
    pub threads: usize,
    /// Response tokens at most.
    pub token_limit: usize,
    /// Fixes choices and intervals.
    pub seed: u64,
}

/// Judges the look-ahead heads of a host, which are in the order of `rewards`, on a pool `[prompts][responses]`.
/// `token_bias` are context-free heads of the same rewards, where there are any. `told` hears of states and of continuations
/// that are done.
///
/// # Errors
/// The engine's and the rewards'.
pub fn judge<'a>(
    host: &mut Host,
    (rollouts, groups): (&Rollouts, &[Vec<&'a Rollout>]),
    prompts: &[&Prompt],
    rewards: &[SharedReward],
    token_bias: &[HeadFile],
    options: Options,
    mut told: impl FnMut(),
) -> Result<BTreeMap<String, HeadReport>, Error> {
    let groups: Vec<Vec<&'a Rollout>> =
        groups.iter().map(|group| group.iter().take(RESPONSES).copied().collect()).collect();
    let mut tokens: HashMap<String, Vec<Token>> = HashMap::new();
    for prompt in prompts {
        tokens.insert(prompt.id.clone(), host.request(&prompt.text)?.prompt);
    }
    let all: Vec<Vec<within_state::StateValues>> = within_state::sample(
        host,
        &groups,
        &tokens,
        rewards,
        options.amount,
        (options.candidates, options.token_limit, options.seed),
        &mut told,
    )?;
    let files = host.heads().to_vec();
    let (mut reports, mut shared) = (BTreeMap::new(), None);
    for (place, (reward, HeadFile { description, weights })) in rewards.iter().zip(&files).enumerate() {
        let HeadWeights::LookAhead(linear) = weights else { continue };
        let scores = rollouts.score(&groups, &**reward)?;
        let whole = scores.iter().flatten().all(Option::is_some);
        let groups = scored(&groups, &scores);
        // Rewards that have scored everything share the states.
        let layer = description.layer;
        let states = match shared.take().filter(|(of, _)| whole && *of == layer) {
            Some((_, states)) => states,
            None => states_of(host, &groups, &tokens, layer, options.token_limit)?,
        };
        let known: Vec<Vec<f64>> = scores.into_iter().map(|group| group.into_iter().flatten().collect()).collect();
        let targets = centre(&known);
        let judged = Judged {
            groups: &groups,
            states: &states,
            targets: &targets,
            token_limit: options.token_limit,
            seed: options.seed,
        };
        let text = text_of(host, description, &groups, (options.token_limit, options.threads));
        let weights = description.text.as_ref().map_or_else(Vec::new, |term| term.weights.clone());
        let head = ValueHead { linear: linear.clone(), text: weights };
        let found = diagnose(&head, text.as_ref(), &judged);
        let bias = token_bias.iter().find(|head| head.description.name == reward.name());
        let report = HeadReport {
            layer,
            explained_variance: found.explained_variance,
            explained_by_position: found.explained_by_position,
            explained_by_controls: controls(host, &**reward, bias, &judged)?,
            within_state: within_state::correlation(&all[place], options.seed),
            calibration_slope: found.calibration_slope,
            calibration: found.calibration,
            martingale: found.martingale,
            martingale_terminal: found.martingale_terminal,
            spread: description.spread,
            dial_to_kl: description.provenance.dial_to_kl.clone(),
            ablation: description.provenance.ablation.clone(),
        };
        reports.insert(reward.name().to_owned(), report);
        shared = whole.then_some((layer, states));
    }
    Ok(reports)
}

/// Those rollouts that have a score.
fn scored<'a>(groups: &[Vec<&'a Rollout>], scores: &[Vec<Option<f64>>]) -> Vec<Vec<&'a Rollout>> {
    let of = |(group, scores): (&Vec<&'a Rollout>, &Vec<Option<f64>>)| {
        let own = group.iter().zip(scores).filter(|(_, score)| score.is_some());
        own.map(|(rollout, _)| *rollout).collect()
    };
    groups.iter().zip(scores).map(of).collect()
}

/// What a head reads off the text so far, at all states; `limits` are the token limit and threads.
fn text_of(host: &Host, head: &Description, groups: &[Vec<&Rollout>], limits: (usize, usize)) -> Option<TextColumns> {
    let reading = rewards::reading(&head.text.as_ref()?.reward)?;
    Some(TextColumns::read(reading.as_ref(), host.tokenizer().as_ref(), &groups.concat(), limits))
}

/// What rules that know less explain of the same targets.
fn controls(
    host: &Host,
    reward: &dyn Reward,
    token_bias: Option<&HeadFile>,
    judged: &Judged<'_>,
) -> Result<BTreeMap<String, Estimate>, Error> {
    let mut controls = BTreeMap::new();
    // Centred targets have the mean 0 in every prompt: a prompt's own mean explains nothing of them.
    controls.insert("prompt mean".into(), Estimate { mean: 0.0, ci_low: 0.0, ci_high: 0.0 });
    controls.insert("position".into(), explained_by(None, judged));
    let so_far = prefix_scores(host, judged.groups, reward)?;
    controls.insert("prefix reward".into(), explained_by(Some(&centred(so_far, judged)), judged));
    if let Some(HeadFile { weights: HeadWeights::OnePass(bias), .. }) = token_bias {
        let sums = summed(judged.groups, |token| f64::from(bias.token_bias[token as usize]));
        controls.insert("token bias".into(), explained_by(Some(&centred(sums, judged)), judged));
    }
    Ok(controls)
}

fn states_of(
    host: &mut Host,
    groups: &[Vec<&Rollout>],
    prompts: &HashMap<String, Vec<Token>>,
    layer: usize,
    token_limit: usize,
) -> Result<States, Error> {
    let hidden = host.engine().hidden();
    let mut states = States::new(hidden);
    let mut source = Source { engine: host.engine(), prompts, layer, token_limit, hidden };
    states.collect(&mut source, groups, |_| ()).map_err(|error: CollectError| Error::Fit(error.into()))?;
    Ok(states)
}

/// The reward of the text so far at each state, `[responses][states]`; what has none counts as the prompt's average.
fn prefix_scores(host: &Host, groups: &[Vec<&Rollout>], reward: &dyn Reward) -> Result<Vec<Vec<f64>>, Error> {
    let mut all = Vec::new();
    for rollout in groups.iter().flatten() {
        let scores = reward.score_so_far(&rollout.prompt, &rollout.tokens, &|tokens| host.decode(tokens))?;
        let scores = Scores::new(reward.name(), scores).scores;
        let known: Vec<f64> = scores.iter().flatten().copied().collect();
        let mean = super::super::statistics::mean(&known);
        all.push(scores.into_iter().map(|score| score.unwrap_or(mean)).collect());
    }
    Ok(all)
}

/// The sum over a response's tokens so far, `[responses][states]`.
fn summed(groups: &[Vec<&Rollout>], of: impl Fn(Token) -> f64) -> Vec<Vec<f64>> {
    let sums = |rollout: &&Rollout| {
        let mut sum = 0.0;
        let later = rollout.tokens.iter().map(|&token| {
            sum += of(token);
            sum
        });
        std::iter::once(0.0).chain(later.collect::<Vec<_>>()).collect()
    };
    groups.iter().flatten().map(sums).collect()
}
