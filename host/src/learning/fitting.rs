//! The whole fit: from a rollouts file to head files.
//!
//! Features of all rollouts are read once and serve every reward. For each reward a look-ahead head is
//! fitted on the learn prompts with penalties and features chosen on the tune prompts ([`Material::look_ahead`]). Its spread is
//! measured over candidates of real states, and a one-pass head is distilled from its values there
//! ([`distilling`](super::distilling)). What a dial costs in KL is measured last, by decoding. Start at [`Material`].

use std::collections::HashMap;

use vassal_kernels::Device;

use super::comparison;
use super::features::{FeatureSource, FeaturesError, States};
use super::look_ahead::{self, Layout, ValueHead};
use super::prompts::Split;
use super::quality::{self, Evaluation};
use super::rewards;
use super::ridge::{Covariance, RidgeError};
use super::rollouts::{End, RewardAbout, Rollout, Rollouts, RolloutsError, column};
use super::text_columns::TextColumns;
use crate::engine::{Engine, EngineError};
use crate::model::heads::{SharedReading, TextTerm};
use crate::token::{Token, Vocabulary};

/// Parts of the token limit that explained variance is reported for.
pub const POSITION_PARTS: usize = 4;

/// Learn responses that ended by themselves, from which on what an end is worth is fitted: fewer say more of themselves than of it.
const ENDS_MIN: usize = 50;

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
    pub(super) learn_groups: Vec<Vec<&'a Rollout>>,
    pub(super) tune_groups: Vec<Vec<&'a Rollout>>,
    pub(super) learn: States,
    pub(super) tune: States,
    /// One a reward; none where it cannot be read off text.
    pub(super) texts: Vec<Option<RewardText>>,
    pub(super) token_limit: usize,
}

/// A reward that is read off the text so far, at all states.
pub(super) struct RewardText {
    reward: String,
    highest: f64,
    pub(super) reading: SharedReading,
    learn: TextColumns,
    tune: TextColumns,
}

impl RewardText {
    /// What a head with these weights adds to its values.
    pub(super) fn term(&self, head: &ValueHead) -> Option<TextTerm> {
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
        let fitted = on_threads(rewards, threads, |place| self.look_ahead_of(place, &all, &tune_targets[place]))?;
        let plain: Vec<usize> = (0..2 * hidden).chain([3 * hidden]).collect();
        Ok((fitted, all.learn.select(&plain)))
    }

    /// The look-ahead head of one reward: of every choice of features, the one that explains most on tune prompts.
    fn look_ahead_of(&self, place: usize, all: &BothMoments, targets: &[f64]) -> Result<FittedLookAhead, FitError> {
        let hidden = self.learn.hidden();
        let text = self.tune_text(place);
        let (plain, share) = (Layout::plain(hidden), Layout::with_share(hidden));
        let with_text = text.map(|text| ("with the reward of the text so far", share.with_text(text.width())));
        let layouts = [("residual and running mean", plain), ("with the running mean times the used share", share)];
        let (mut best, mut ablation) = (None::<look_ahead::Fit>, Vec::new());
        for (name, layout) in layouts.into_iter().chain(with_text) {
            let fit = self.fitted(layout, all, place)?;
            ablation.push((name.to_owned(), fit.explained));
            // A lever is kept only where it wins on the tune split.
            best = Some(best.filter(|best| best.explained >= fit.explained).unwrap_or(fit));
        }
        let best = best.ok_or(RidgeError::Singular { column: 0 })?;
        let evaluation = quality::evaluate(&best.head, (&self.tune, text), targets, self.token_limit, POSITION_PARTS);
        Ok(FittedLookAhead { head: best.head, penalties: best.penalties.to_vec(), evaluation, ablation })
    }

    /// Fits the target of reward `place`. Where too few responses ended, what an end is worth is not fitted but taken from the limit.
    fn fitted(&self, layout: Layout, all: &BothMoments, place: usize) -> Result<look_ahead::Fit, FitError> {
        let (learn, tune) = all.of(self, layout, place);
        let mut fit = look_ahead::fit(layout, &learn, &tune, 0)?;
        let ended = self.learn_groups.iter().flatten().filter(|rollout| rollout.end == End::EndOfText).count();
        if ended < ENDS_MIN && !fit.head.text.is_empty() {
            TextTerm::end_as_at_the_limit(&mut fit.head.text);
        }
        Ok(fit)
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
            let discriminant = self.fitted(layout, &classes, place)?.head;
            let args = match self.texts.get(place) {
                Some(Some(text)) => comparison::text_reward(hidden, &text.tune, text.highest),
                _ => look_ahead::fit(plain, &ends, &ends_tune, place)?.head,
            };
            let good = comparison::classes(&tune[place]);
            Ok(ComparisonHeads { fudge: comparison::calibrate(&discriminant, (&self.tune, text), &good), args })
        };
        on_threads(rewards, threads, of)
    }
}

/// What comes of each of `count` pieces of work, in order, on so many threads.
fn on_threads<T: Send>(
    count: usize,
    threads: usize,
    work: impl Fn(usize) -> Result<T, FitError> + Sync,
) -> Result<Vec<T>, FitError> {
    let mut out = Vec::new();
    for first in (0..count).step_by(threads.max(1)) {
        let some = first..count.min(first + threads.max(1));
        let done = std::thread::scope(|scope| {
            let running: Vec<_> = some
                .map(|place| {
                    scope.spawn({
                        let work = &work;
                        move || work(place)
                    })
                })
                .collect();
            running
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .collect::<Vec<_>>()
        });
        for one in done {
            out.push(one?);
        }
    }
    Ok(out)
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
