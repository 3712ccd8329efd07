//! The whole fit: from a rollouts file to head files.
//!
//! Features of all rollouts are read once and serve every reward. For each reward a look-ahead head is
//! fitted on the learn prompts with penalties chosen on the tune prompts, its spread is measured over
//! candidates of real states, and a one-pass head is distilled from its values there. What a dial costs in
//! KL is measured last, by decoding. Start at [`Material`].

use std::collections::HashMap;

use vassal_kernels::{Device, LinearHead};

use super::comparison;
use super::features::{FeatureSource, FeaturesError, States};
use super::look_ahead::{self, Evaluation, Layout, Spread};
use super::one_pass;
use super::prompts::Split;
use super::ridge::{Covariance, RidgeError};
use super::rollouts::{Rollout, Rollouts, RolloutsError, column};
use crate::engine::teacher::CandidateState;
use crate::engine::{Engine, EngineError, HeadId};
use crate::token::Token;

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
    pub head: LinearHead,
    /// Ridge penalties of residual, running mean and share.
    pub penalties: Vec<f64>,
    /// On the tune prompts.
    pub evaluation: Evaluation,
    /// Explained variance on tune without the share weights, for the record.
    pub explained_plain: f64,
}

/// States of rollouts at one layer, with what the fits need of them.
pub struct Material<'a> {
    learn_groups: Vec<Vec<&'a Rollout>>,
    tune_groups: Vec<Vec<&'a Rollout>>,
    learn: States,
    tune: States,
    token_limit: usize,
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
    /// `prompts` gives each prompt id's tokens. `done` is told how many rollouts there are.
    ///
    /// # Errors
    /// Too few rollouts, and the engine's.
    pub fn collect<D: Device>(
        engine: &mut Engine<D>,
        rollouts: &'a Rollouts,
        prompts: &HashMap<String, Vec<Token>>,
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
        Ok(Self { learn_groups, tune_groups, learn, tune, token_limit })
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
        let layout = Layout::with_share(hidden);
        let (learn_targets, tune_targets) = (targets(&self.learn_groups, rewards), targets(&self.tune_groups, rewards));
        let moments = |states: &States, targets: &[Vec<f64>]| {
            look_ahead::moments(layout, states, &slices(targets), threads).map_err(FitError::from)
        };
        let learn = moments(&self.learn, &learn_targets)?;
        let tune = moments(&self.tune, &tune_targets)?;
        // The plain layout is the same columns without the share's.
        let plain_columns: Vec<usize> = (0..2 * hidden).chain(3 * hidden..learn.width).collect();
        let (plain_learn, plain_tune) = (learn.select(&plain_columns), tune.select(&plain_columns));
        let mut fitted = Vec::new();
        for (place, targets) in tune_targets.iter().enumerate() {
            let plain =
                look_ahead::fit(Layout::plain(hidden), &plain_learn, &plain_tune, place).map_err(FitError::from)?;
            let shared = look_ahead::fit(layout, &learn, &tune, place).map_err(FitError::from)?;
            let explained_plain = plain.explained;
            // A lever is kept only where it wins on the tune prompts.
            let best = if shared.explained > plain.explained { shared } else { plain };
            let evaluation = look_ahead::evaluate(&best.head, &self.tune, targets, self.token_limit, POSITION_PARTS);
            fitted.push(FittedLookAhead {
                head: best.head,
                penalties: best.penalties.to_vec(),
                evaluation,
                explained_plain,
            });
        }
        Ok((fitted, plain_learn))
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
    ) -> Result<Vec<(u32, CandidateState)>, FitError> {
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
                    out.extend(valued.into_iter().map(|state| ((start + state.response_count) as u32, state)));
                    done();
                }
                rollout += 1;
            }
        }
        Ok(out)
    }

    /// The spread of each of the engine's look-ahead heads, over the tune prompts' candidates.
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
            for (_, state) in &valued {
                spread.add(&state.values[head], &probabilities(state));
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
        let layout = Layout::with_share(hidden);
        let (learn, tune) = (targets(&self.learn_groups, rewards), targets(&self.tune_groups, rewards));
        let good = |targets: &[Vec<f64>]| targets.iter().map(|own| comparison::classes(own)).collect::<Vec<_>>();
        let (learn_good, tune_good) = (good(&learn), good(&tune));
        let classes = look_ahead::moments(layout, &self.learn, &slices(&learn_good), threads)?;
        let classes_tune = look_ahead::moments(layout, &self.tune, &slices(&tune_good), threads)?;
        let plain = Layout::plain(hidden);
        let ends = look_ahead::end_moments(plain, &self.learn, &slices(&learn), threads)?;
        let ends_tune = look_ahead::end_moments(plain, &self.tune, &slices(&tune), threads)?;
        let of = |place: usize| {
            let discriminant = look_ahead::fit(layout, &classes, &classes_tune, place)?.head;
            Ok(ComparisonHeads {
                fudge: comparison::calibrate(&discriminant, &self.tune, &tune_good[place]),
                args: look_ahead::fit(plain, &ends, &ends_tune, place)?.head,
            })
        };
        (0..rewards).map(of).collect()
    }

    /// Distils head `place` of the engine's into a one-pass head. The look-ahead head's spread comes back
    /// beside it, and the one-pass head's own, both over the tune prompts' candidates.
    ///
    /// # Errors
    /// The algebra's, and [`FitError::NoSpread`].
    pub fn distil<D: Device>(
        &self,
        engine: &mut Engine<D>,
        candidates: &Candidates,
        place: usize,
        covariance: &Covariance,
        options: &FitOptions,
        name: &str,
    ) -> Result<Distilled, FitError> {
        let samples = |valued: &[(u32, CandidateState)]| {
            let mut samples = Vec::new();
            for (state, valued) in valued {
                for (&token, &value) in valued.top.tokens.iter().zip(&valued.values[place]) {
                    let target = value - valued.state_values[place];
                    samples.push(one_pass::Sample { state: *state, token, target });
                }
            }
            samples.sort_by_key(|sample| sample.state);
            samples
        };
        let (learn, tune) = (samples(&candidates.learn), samples(&candidates.tune));
        let hidden = engine.hidden();
        let vocabulary = engine.vocabulary_size();
        let all: Vec<Token> = (0..vocabulary as Token).collect();
        let table = engine.embeddings(&all)?;
        let row = |token: u32| &table[token as usize * hidden..][..hidden];
        let fit = one_pass::fit(
            one_pass::Pairs { states: &self.learn, samples: &learn },
            one_pass::Pairs { states: &self.tune, samples: &tune },
            covariance,
            &mut |token, out: &mut [f32]| out.copy_from_slice(row(token)),
            one_pass::Options { rank: options.rank, vocabulary, threads: options.threads, seed: options.seed },
        )?;
        let (mut spread, mut own) = (Spread::default(), Spread::default());
        for (_, valued) in &candidates.tune {
            let (top, probabilities) = (&valued.top, probabilities(valued));
            spread.add(&valued.values[place], &probabilities);
            let values: Vec<f32> = top
                .tokens
                .iter()
                .map(|&token| one_pass::value(&fit.head, &valued.features, token, row(token)) as f32)
                .collect();
            own.add(&values, &probabilities);
        }
        let positive = |spread: Spread| spread.get().filter(|spread| *spread > 0.0);
        let (Some(look_ahead_spread), Some(spread)) = (positive(spread), positive(own)) else {
            return Err(FitError::NoSpread(name.to_owned()));
        };
        Ok(Distilled { fit, look_ahead_spread, spread })
    }
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
    pub fudge: LinearHead,
    /// A reward model of finished responses.
    pub args: LinearHead,
}

/// States with valued candidates, each with its number among the split's states.
pub struct Candidates {
    learn: Vec<(u32, CandidateState)>,
    tune: Vec<(u32, CandidateState)>,
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
