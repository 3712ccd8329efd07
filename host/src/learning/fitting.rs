//! The whole fit: from a rollouts file to head files.
//!
//! Features of all rollouts are read once and serve every reward. For each reward a look-ahead head is
//! fitted on the learn prompts with penalties chosen on the tune prompts, its spread is measured over
//! candidates of real states, and a one-pass head is distilled from its values there. What a dial costs in
//! KL is measured last, by decoding. Start at [`Material`].

use std::collections::HashMap;

use vassal_kernels::Device;

use super::comparison;
use super::features::{FeatureSource, FeaturesError, States};
use super::look_ahead::{self, Evaluation, Layout, Spread, ValueHead};
use super::one_pass;
use super::prompts::Split;
use super::rewards;
use super::ridge::{Covariance, RidgeError};
use super::rollouts::{RewardAbout, Rollout, Rollouts, RolloutsError, column};
use super::text_columns::TextColumns;
use crate::engine::teacher::CandidateState;
use crate::engine::{Engine, EngineError, HeadId};
use crate::model::heads::{SharedReading, TextTerm};
use crate::token::{Token, Vocabulary};

/// Parts of the token limit that explained variance is reported for.
pub const POSITION_PARTS: usize = 4;

/// What to fit.
#[derive(Debug, Clone)]
pub struct FitOptions {
    /// The layer that heads read.
    pub layer: usize,
    /// Rank of the one-pass heads.
    pub rank: usize,
    /// Candidates valued at a state.
    pub candidates: usize,
    /// States of a learn rollout whose candidates are valued, and how many rollouts a prompt are used so.
    pub states_per_rollout: usize,
    /// See `states_per_rollout`.
    pub rollouts_per_prompt: usize,
    /// Threads for the algebra; results do not depend on it.
    pub threads: usize,
    /// Fixes every choice.
    pub seed: u64,
}

/// Why nothing was fitted.
#[derive(Debug, thiserror::Error)]
pub enum FitError {
    /// The rollouts.
    #[error(transparent)]
    Rollouts(#[from] RolloutsError),
    /// The engine.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// Features that are no numbers.
    #[error(transparent)]
    Features(#[from] FeaturesError),
    /// The algebra.
    #[error(transparent)]
    Ridge(#[from] RidgeError),
    /// A spread of 0: the head says the same of every token.
    #[error("the head {0:?} values all tokens alike: the reward does not vary enough in these rollouts")]
    NoSpread(String),
}

/// A look-ahead head with what it is worth.
#[derive(Debug, Clone)]
pub struct FittedLookAhead {
    /// The head.
    pub head: ValueHead,
    /// Ridge penalties of residual, running mean and share.
    pub penalties: Vec<f64>,
    /// On the tune prompts.
    pub evaluation: Evaluation,
    /// What each choice of features explains on the tune prompts: the chosen one, and those that lost to it.
    pub ablation: Vec<(String, f64)>,
}

/// States of rollouts at one layer, with what the fits need of them.
pub struct Material<'a> {
    learn_groups: Vec<Vec<&'a Rollout>>,
    tune_groups: Vec<Vec<&'a Rollout>>,
    learn: States,
    tune: States,
    /// One a reward; none where it cannot be read off text.
    texts: Vec<Option<RewardText>>,
    token_limit: usize,
}

/// A reward that is read off the text so far, at all states.
struct RewardText {
    reward: String,
    highest: f64,
    reading: SharedReading,
    learn: TextColumns,
    tune: TextColumns,
}

impl RewardText {
    /// What a head with these weights adds to its values.
    fn term(&self, head: &ValueHead) -> Option<TextTerm> {
        (!head.text.is_empty()).then(|| TextTerm { reward: self.reward.clone(), weights: head.text.clone() })
    }
}

/// The engine as a source of features.
pub(super) struct Source<'a, D: Device> {
    pub(super) engine: &'a mut Engine<D>,
    /// Each prompt id's tokens.
    pub(super) prompts: &'a HashMap<String, Vec<Token>>,
    pub(super) layer: usize,
    pub(super) token_limit: usize,
    pub(super) hidden: usize,
}

/// Either side's failure while features are collected.
#[derive(Debug, thiserror::Error)]
pub(super) enum CollectError {
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Features(#[from] FeaturesError),
}

impl From<CollectError> for FitError {
    fn from(error: CollectError) -> Self {
        match error {
            CollectError::Engine(error) => Self::Engine(error),
            CollectError::Features(error) => Self::Features(error),
        }
    }
}

impl<D: Device> FeatureSource for Source<'_, D> {
    type Error = EngineError;

    fn hidden(&self) -> usize {
        self.hidden
    }

    fn features(&mut self, rollouts: &[&Rollout], out: &mut Vec<f32>) -> Result<(), EngineError> {
        let Some(prompt) = rollouts.first().and_then(|rollout| self.prompts.get(&rollout.id)) else { return Ok(()) };
        let responses: Vec<&[Token]> = rollouts.iter().map(|rollout| rollout.tokens.as_slice()).collect();
        self.engine.features(self.layer, prompt, &responses, self.token_limit, out)
    }
}

impl<'a> Material<'a> {
    /// Runs the learn and tune rollouts through the layers below `layer`, which the engine must tap;
    /// `prompts` gives each prompt id's tokens. Rewards that can be read off the text so far are, at every state, with the tokens'
    /// texts by `vocabulary`. `done` is told how many rollouts there are.
    ///
    /// # Errors
    /// Too few rollouts, and the engine's.
    pub fn collect<D: Device>(
        engine: &mut Engine<D>,
        rollouts: &'a Rollouts,
        (prompts, vocabulary): (&HashMap<String, Vec<Token>>, &dyn Vocabulary),
        layer: usize,
        mut done: impl FnMut(usize),
    ) -> Result<Self, FitError> {
        let (samples, token_limit) = (rollouts.header.samples.min(2) as usize, rollouts.header.token_limit as usize);
        let learn_groups = rollouts.groups(Split::Learn, 8, samples)?;
        let tune_groups = rollouts.groups(Split::Tune, 2, samples)?;
        let hidden = engine.hidden();
        let (mut learn, mut tune) = (States::new(hidden), States::new(hidden));
        let mut source = Source { engine, prompts, layer, token_limit, hidden };
        learn.collect(&mut source, &learn_groups, &mut done).map_err(|error: CollectError| FitError::from(error))?;
        let before = learn.rollouts();
        tune.collect(&mut source, &tune_groups, |count| done(before + count))
            .map_err(|error: CollectError| FitError::from(error))?;
        let read = |reward: &RewardAbout| {
            let reading = rewards::reading(&reward.definition)?;
            let columns = |groups: &[Vec<&'a Rollout>]| {
                TextColumns::read(reading.as_ref(), vocabulary, groups.iter().flatten().copied(), token_limit)
            };
            let (learn, tune) = (columns(&learn_groups), columns(&tune_groups));
            Some(RewardText { reward: reward.definition.clone(), highest: reward.range.1, reading, learn, tune })
        };
        let texts = rollouts.rewards.iter().map(read).collect();
        Ok(Self { learn_groups, tune_groups, learn, tune, texts, token_limit })
    }

    /// What a head of reward `place` adds for the text so far, if anything.
    pub fn term(&self, place: usize, head: &ValueHead) -> Option<TextTerm> {
        self.texts.get(place)?.as_ref()?.term(head)
    }

    /// The columns of reward `place` at the tune states.
    fn tune_text(&self, place: usize) -> Option<&TextColumns> {
        Some(&self.texts.get(place)?.as_ref()?.tune)
    }

    /// Prompts and rollouts fitted to.
    pub fn counts(&self) -> (usize, usize) {
        (self.learn_groups.len(), self.learn.rollouts())
    }

    /// Fits a look-ahead head to each of the rollouts' rewards, every one of which has scored every rollout
    /// ([`Rollouts::scored_by`]); the covariance of the learn states comes along, in the plain
    /// layout, for [`Material::distil`].
    ///
    /// # Errors
    /// The algebra's.
    pub fn look_ahead(&self, rewards: usize, threads: usize) -> Result<(Vec<FittedLookAhead>, Covariance), FitError> {
        let hidden = self.learn.hidden();
        let all = self.moments(rewards, |targets| targets, threads)?;
        let tune_targets = targets(&self.tune_groups, rewards);
        let mut fitted = Vec::new();
        for (place, targets) in tune_targets.iter().enumerate() {
            let mut best: Option<look_ahead::Fit> = None;
            let mut ablation = Vec::new();
            let layouts = [
                ("residual and running mean", Layout::plain(hidden), false),
                ("with the running mean times the used share", Layout::with_share(hidden), false),
                ("with the reward of the text so far", Layout::with_share(hidden), true),
            ];
            for (name, layout, with_text) in layouts {
                let text = if with_text { self.tune_text(place).map_or(0, TextColumns::width) } else { 0 };
                if with_text && text == 0 {
                    continue;
                }
                let layout = layout.with_text(text);
                let (learn, tune) = all.of(self, layout, place);
                let fit = look_ahead::fit(layout, &learn, &tune, 0)?;
                ablation.push((name.to_owned(), fit.explained));
                // A lever is kept only where it wins on the tune prompts.
                if best.as_ref().is_none_or(|best| fit.explained > best.explained) {
                    best = Some(fit);
                }
            }
            let Some(best) = best else { continue };
            let states = (&self.tune, self.tune_text(place));
            let evaluation = look_ahead::evaluate(&best.head, states, targets, self.token_limit, POSITION_PARTS);
            fitted.push(FittedLookAhead { head: best.head, penalties: best.penalties.to_vec(), evaluation, ablation });
        }
        let plain: Vec<usize> = (0..2 * hidden).chain([3 * hidden]).collect();
        Ok((fitted, all.learn.select(&plain)))
    }

    /// Second moments of all features and the first `rewards` rewards' targets, for both splits; `classes` makes other targets of
    /// the centred rewards.
    fn moments(
        &self,
        rewards: usize,
        classes: impl Fn(Vec<f64>) -> Vec<f64>,
        threads: usize,
    ) -> Result<BothMoments, FitError> {
        let of = |groups, states, text: fn(&RewardText) -> &TextColumns| {
            let targets: Vec<Vec<f64>> = targets(groups, rewards).into_iter().map(&classes).collect();
            let texts: Vec<&TextColumns> = self.texts.iter().take(rewards).flatten().map(text).collect();
            let layout = Layout::with_share(self.learn.hidden()).with_text(texts.iter().map(|text| text.width()).sum());
            Ok::<_, FitError>(look_ahead::moments(layout, states, &texts, &slices(&targets), threads)?)
        };
        Ok(BothMoments {
            rewards,
            learn: of(&self.learn_groups, &self.learn, |text| &text.learn)?,
            tune: of(&self.tune_groups, &self.tune, |text| &text.tune)?,
        })
    }

    /// Values candidates at states of the learn and tune rollouts by the engine's look-ahead heads.
    ///
    /// # Errors
    /// The engine's.
    pub fn candidates<D: Device>(
        &self,
        engine: &mut Engine<D>,
        prompts: &HashMap<String, Vec<Token>>,
        options: &FitOptions,
        mut done: impl FnMut(usize),
    ) -> Result<Candidates, FitError> {
        let mut count = 0;
        let mut counted = || {
            count += 1;
            done(count);
        };
        let (learn, tune) = ((&self.learn_groups, &self.learn), (&self.tune_groups, &self.tune));
        Ok(Candidates {
            learn: self.valued(engine, learn, prompts, options, &mut counted)?,
            tune: self.valued(engine, tune, prompts, options, &mut counted)?,
        })
    }

    fn valued<D: Device>(
        &self,
        engine: &mut Engine<D>,
        (groups, states): (&Vec<Vec<&Rollout>>, &States),
        prompts: &HashMap<String, Vec<Token>>,
        options: &FitOptions,
        done: &mut dyn FnMut(),
    ) -> Result<Vec<ValuedState>, FitError> {
        let heads: Vec<HeadId> = (0..engine.head_count()).map(HeadId).collect();
        let (mut out, mut rollout) = (Vec::new(), 0);
        for group in groups {
            for (place, sampled) in group.iter().enumerate() {
                if place < options.rollouts_per_prompt {
                    // States at even steps through the response, from a different one for each rollout.
                    let step = (sampled.tokens.len() / options.states_per_rollout).max(1);
                    let first = (rollout * 7 + options.seed as usize) % step;
                    let wanted: Vec<usize> = (first..sampled.tokens.len()).step_by(step).collect();
                    let prompt = prompts.get(&sampled.id).map_or(&[][..], Vec::as_slice);
                    let k = options.candidates;
                    let valued =
                        engine.candidate_states(&heads, prompt, &sampled.tokens, &wanted, k, self.token_limit)?;
                    let start = states.range(rollout).start;
                    out.extend(valued.into_iter().map(|found| ValuedState {
                        state: (start + found.response_count) as u32,
                        response: sampled.tokens[..found.response_count].to_vec(),
                        found,
                    }));
                    done();
                }
                rollout += 1;
            }
        }
        Ok(out)
    }

    /// The spread of each of the engine's look-ahead heads, what they add for the text included, over the tune prompts' candidates.
    ///
    /// # Errors
    /// The engine's, and [`FitError::NoSpread`] with the head's place.
    pub fn spreads<D: Device>(
        &self,
        engine: &mut Engine<D>,
        prompts: &HashMap<String, Vec<Token>>,
        options: &FitOptions,
    ) -> Result<Vec<f64>, FitError> {
        let valued = self.valued(engine, (&self.tune_groups, &self.tune), prompts, options, &mut || ())?;
        let of = |head: usize| {
            let mut spread = Spread::default();
            for ValuedState { found, .. } in &valued {
                spread.add(&found.values[head], &probabilities(found));
            }
            let positive = spread.get().filter(|spread| *spread > 0.0);
            positive.ok_or_else(|| FitError::NoSpread(format!("number {}", head + 1)))
        };
        (0..engine.head_count()).map(of).collect()
    }

    /// The heads that other methods than Value Augmented Sampling read, one of each a reward.
    ///
    /// # Errors
    /// The algebra's.
    pub fn comparison(&self, rewards: usize, threads: usize) -> Result<Vec<ComparisonHeads>, FitError> {
        let hidden = self.learn.hidden();
        let (learn, tune) = (targets(&self.learn_groups, rewards), targets(&self.tune_groups, rewards));
        let classes = self.moments(rewards, |own| comparison::classes(&own), threads)?;
        let plain = Layout::plain(hidden);
        let ends = look_ahead::end_moments(plain, &self.learn, &slices(&learn), threads)?;
        let ends_tune = look_ahead::end_moments(plain, &self.tune, &slices(&tune), threads)?;
        let of = |place: usize| {
            let text = self.tune_text(place);
            let layout = Layout::with_share(hidden).with_text(text.map_or(0, TextColumns::width));
            let (classes_learn, classes_tune) = classes.of(self, layout, place);
            let discriminant = look_ahead::fit(layout, &classes_learn, &classes_tune, 0)?.head;
            let args = match self.texts.get(place) {
                Some(Some(text)) => comparison::text_reward(hidden, &text.tune, text.highest),
                _ => look_ahead::fit(plain, &ends, &ends_tune, place)?.head,
            };
            let good = comparison::classes(&tune[place]);
            Ok(ComparisonHeads { fudge: comparison::calibrate(&discriminant, (&self.tune, text), &good), args })
        };
        (0..rewards).map(of).collect()
    }

    /// Distils head `place` of the engine's, which adds nothing for the text, into a one-pass head; `head` is the same with what it adds.
    /// That is known without a row, so the one-pass head adds it too and learns the rest. The look-ahead head's spread comes
    /// back beside it, and the one-pass head's own, both over the tune prompts' candidates and with the text.
    ///
    /// # Errors
    /// The algebra's, and [`FitError::NoSpread`].
    pub fn distil<D: Device>(
        &self,
        (engine, vocabulary): (&mut Engine<D>, &dyn Vocabulary),
        candidates: &Candidates,
        (place, head): (usize, &ValueHead),
        covariance: &Covariance,
        options: &FitOptions,
        name: &str,
    ) -> Result<Distilled, FitError> {
        let hidden = engine.hidden();
        let size = engine.vocabulary_size();
        let all: Vec<Token> = (0..size as Token).collect();
        let table = engine.embeddings(&all)?;
        let row = |token: u32| &table[token as usize * hidden..][..hidden];
        let added = |valued: &[ValuedState]| -> Vec<Vec<f32>> {
            valued.iter().map(|state| self.added(place, head, vocabulary, state)).collect()
        };
        let (learn_added, tune_added) = (added(&candidates.learn), added(&candidates.tune));
        let fit = |rank: usize, added: Option<(&[Vec<f32>], &[Vec<f32>])>| {
            let learn = samples(&candidates.learn, added.map(|(learn, _)| learn), place);
            let tune = samples(&candidates.tune, added.map(|(_, tune)| tune), place);
            one_pass::fit(
                one_pass::Pairs { states: &self.learn, samples: &learn },
                one_pass::Pairs { states: &self.tune, samples: &tune },
                covariance,
                &mut |token, out: &mut [f32]| out.copy_from_slice(row(token)),
                one_pass::Options { rank, vocabulary: size, threads: options.threads, seed: options.seed },
            )
        };
        let mut found = fit(options.rank, None)?;
        if !head.text.is_empty() {
            // The context-free head knows no text: its tokens stand for what texts gain by them too.
            let bias = fit(0, Some((&learn_added, &tune_added)))?;
            (found.bias_head, found.explained_by_bias) = (bias.bias_head, bias.explained_by_bias);
        }
        let (mut spread, mut own) = (Spread::default(), Spread::default());
        for (ValuedState { found: valued, .. }, added) in candidates.tune.iter().zip(&tune_added) {
            let probabilities = probabilities(valued);
            let with_text = |(value, added): (f32, &f32)| value + added;
            let look_ahead: Vec<f32> = valued.values[place].iter().copied().zip(added).map(with_text).collect();
            spread.add(&look_ahead, &probabilities);
            let one_pass = |&token: &Token| one_pass::value(&found.head, &valued.features, token, row(token)) as f32;
            let one_pass: Vec<f32> = valued.top.tokens.iter().map(one_pass).zip(added).map(with_text).collect();
            own.add(&one_pass, &probabilities);
        }
        let positive = |spread: Spread| spread.get().filter(|spread| *spread > 0.0);
        let (Some(look_ahead_spread), Some(spread)) = (positive(spread), positive(own)) else {
            return Err(FitError::NoSpread(name.to_owned()));
        };
        Ok(Distilled { fit: found, look_ahead_spread, spread })
    }

    /// What the head of reward `place` adds for the text with each candidate of a state, less what it adds for the text before.
    fn added(&self, place: usize, head: &ValueHead, vocabulary: &dyn Vocabulary, state: &ValuedState) -> Vec<f32> {
        let tokens = &state.found.top.tokens;
        let part = self.texts.get(place).and_then(Option::as_ref).and_then(|text| Some((text, text.term(head)?)));
        let Some((text, term)) = part else { return vec![0.0; tokens.len()] };
        let value =
            |response: &[Token]| term.of_response(text.reading.as_ref(), vocabulary, response, self.token_limit);
        let before = value(&state.response);
        let after = |&token: &Token| value(&[state.response.as_slice(), &[token]].concat()) - before;
        tokens.iter().map(after).collect()
    }
}

/// Moments of both splits: features of all layouts, every reward's text columns, every reward's targets.
struct BothMoments {
    rewards: usize,
    learn: Covariance,
    tune: Covariance,
}

impl BothMoments {
    /// Those of one reward and layout, the targets behind its features.
    fn of(&self, material: &Material<'_>, layout: Layout, place: usize) -> (Covariance, Covariance) {
        let hidden = material.learn.hidden();
        let width = |text: &Option<RewardText>| text.as_ref().map_or(0, |text| text.tune.width());
        let before: usize = material.texts[..place].iter().map(width).sum();
        let vectors = if layout.has_share() { 3 } else { 2 };
        let own = 3 * hidden + 1 + before;
        let target = self.learn.width - self.rewards + place;
        let columns = (0..vectors * hidden).chain([3 * hidden]).chain(own..own + layout.text_columns()).chain([target]);
        let columns: Vec<usize> = columns.collect();
        (self.learn.select(&columns), self.tune.select(&columns))
    }
}

/// A state of a rollout with valued candidates.
struct ValuedState {
    /// Its number among the split's states.
    state: u32,
    /// The response before it.
    response: Vec<Token>,
    found: CandidateState,
}

/// What head `place` says that each candidate changes, and what the text adds to it where that is asked for.
fn samples(valued: &[ValuedState], added: Option<&[Vec<f32>]>, place: usize) -> Vec<one_pass::Sample> {
    let mut samples = Vec::new();
    for (at, ValuedState { state, found, .. }) in valued.iter().enumerate() {
        for (candidate, (&token, &value)) in found.top.tokens.iter().zip(&found.values[place]).enumerate() {
            let added = added.map_or(0.0, |added| added[at][candidate]);
            let target = value - found.state_values[place] + added;
            samples.push(one_pass::Sample { state: *state, token, target });
        }
    }
    samples.sort_by_key(|sample| sample.state);
    samples
}

/// Base probabilities of a state's candidates.
fn probabilities(state: &CandidateState) -> Vec<f32> {
    let top = &state.top;
    top.logits.iter().map(|logit| (logit - top.log_normalizer).exp()).collect()
}

/// Rewards of all rollouts, centred by prompt, a row for each of the first `rewards` columns.
fn targets(groups: &[Vec<&Rollout>], rewards: usize) -> Vec<Vec<f64>> {
    let scores = |place| groups.iter().map(|group| column(group, place)).collect::<Vec<_>>();
    (0..rewards).map(|place| look_ahead::centre(&scores(place))).collect()
}

fn slices(targets: &[Vec<f64>]) -> Vec<&[f64]> {
    targets.iter().map(Vec::as_slice).collect()
}

/// Heads of the methods that Value Augmented Sampling is compared with: see [`comparison`].
#[derive(Debug, Clone)]
pub struct ComparisonHeads {
    /// Log-odds that the finished response is better than its prompt's others.
    pub fudge: ValueHead,
    /// A reward model of finished responses.
    pub args: ValueHead,
}

/// States with valued candidates, each with its number among the split's states.
pub struct Candidates {
    learn: Vec<ValuedState>,
    tune: Vec<ValuedState>,
}

/// A one-pass head, and both spreads.
pub struct Distilled {
    /// The one-pass head.
    pub fit: one_pass::Fit,
    /// σ_A of the look-ahead head it is distilled from.
    pub look_ahead_spread: f64,
    /// Its own.
    pub spread: f64,
}
