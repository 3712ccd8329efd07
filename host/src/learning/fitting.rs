//! The whole fit: from a rollouts file to head files.
//!
//! Features of all rollouts are read once and serve every reward. For each reward a look-ahead head is
//! fitted on the learn prompts with penalties and features chosen on the tune prompts ([`Material::look_ahead`]). Its spread is
//! measured over candidates of real states, and a one-pass head is distilled from its values there
//! ([`distilling`](super::distilling)). What a dial costs in KL is measured last, by decoding. Start at [`Material`].

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use vassal_kernels::Device;

use super::comparison;
use super::features::{FeatureSource, FeaturesError, States};
use super::look_ahead::{self, Columns, ValueHead};
use super::panel::PanelMoments;
use super::penalties::{self, Choice, Features};
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
    /// Whether the heads of other methods are wanted too.
    pub comparison: bool,
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
    pub(super) texts: Vec<Option<Arc<RewardText>>>,
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
    /// Runs the learn and tune rollouts, which every reward has scored ([`Rollouts::scored_by`]), through the layers below `layer`, which
    /// the engine must tap; `prompts` gives each prompt id's tokens. Rewards that can be read off the text so far are, at every
    /// state, with the tokens' texts by `vocabulary`. Where there is `other` material, of the same rollouts at another layer, its texts serve.
    /// `done` is told how many rollouts there are.
    ///
    /// # Errors
    /// Too few rollouts, the engine's, and features that are no numbers.
    pub fn collect<D: Device>(
        engine: &mut Engine<D>,
        rollouts: &'a Rollouts,
        (prompts, vocabulary): (&HashMap<String, Vec<Token>>, &dyn Vocabulary),
        (layer, threads): (usize, usize),
        other: Option<&Self>,
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
        let (learn_all, tune_all) = (learn_groups.concat(), tune_groups.concat());
        let read = |reward: &RewardAbout| {
            let reading = rewards::reading(&reward.definition)?;
            let columns =
                |all: &[&Rollout]| TextColumns::read(reading.as_ref(), vocabulary, all, (token_limit, threads));
            let (learn, tune) = (columns(&learn_all), columns(&tune_all));
            Some(Arc::new(RewardText {
                reward: reward.definition.clone(),
                highest: reward.range.1,
                reading,
                learn,
                tune,
            }))
        };
        let texts = match other {
            Some(other) => other.texts.clone(),
            None => rollouts.rewards.iter().map(read).collect(),
        };
        Ok(Self { learn_groups, tune_groups, learn, tune, texts, token_limit })
    }

    /// What a head of reward `place` adds for the text so far, if anything.
    pub fn term(&self, place: usize, head: &ValueHead) -> Option<TextTerm> {
        self.texts.get(place)?.as_ref()?.term(head)
    }

    /// The columns of reward `place` at the tune states.
    fn tune_text(&self, place: usize) -> Option<&TextColumns> {
        self.texts.get(place)?.as_deref().map(|text| &text.tune)
    }

    /// Prompts and rollouts fitted to.
    pub fn counts(&self) -> (usize, usize) {
        (self.learn_groups.len(), self.learn.rollouts())
    }

    /// Sweeps all states once, for everything that is fitted to them.
    ///
    /// # Errors
    /// The algebra's.
    pub fn moments(&self, threads: usize) -> Result<BothMoments, FitError> {
        let of = |groups: &[Vec<&Rollout>], states, text: fn(&RewardText) -> &TextColumns| {
            let mut targets = scores(groups, self.texts.len());
            targets.extend(classes(groups, self.texts.len()));
            let targets: Vec<&[f64]> = targets.iter().map(Vec::as_slice).collect();
            let texts: Vec<&TextColumns> = self.texts.iter().flatten().map(|all| text(all)).collect();
            look_ahead::moments((states, &sizes(groups)), &texts, &targets, threads)
        };
        let learn = of(&self.learn_groups, &self.learn, |text| &text.learn)?;
        let tune = of(&self.tune_groups, &self.tune, |text| &text.tune)?;
        Ok(BothMoments { tune: tune.about(&learn), learn })
    }

    /// Fits a look-ahead head to each of the rollouts' rewards: of every choice of features, the one that explains most on tune
    /// prompts.
    ///
    /// # Errors
    /// The algebra's.
    pub fn look_ahead(&self, moments: &BothMoments, threads: usize) -> Result<Vec<FittedLookAhead>, FitError> {
        let choices: Vec<Vec<(&str, Choice)>> = (0..self.texts.len()).map(|place| self.choices(place)).collect();
        let all: Vec<Choice> = choices.iter().flatten().map(|(_, choice)| choice.clone()).collect();
        let mut fits = self.fits((&moments.learn.within, &moments.tune.within), &all, threads)?.into_iter();
        let tune_scores = scores(&self.tune_groups, self.texts.len());
        let tune_sizes = sizes(&self.tune_groups);
        let mut fitted = Vec::new();
        for (place, choices) in choices.iter().enumerate() {
            let (mut best, mut ablation) = (None::<penalties::Fit>, Vec::new());
            for ((name, _), fit) in choices.iter().zip(&mut fits) {
                ablation.push(((*name).to_owned(), fit.explained));
                // A lever is kept only where it wins on the tune split.
                best = Some(best.filter(|best| best.explained >= fit.explained).unwrap_or(fit));
            }
            let best = best.ok_or(RidgeError::Singular { column: 0 })?;
            let tune = (&self.tune, &tune_sizes[..], self.tune_text(place));
            let evaluation = quality::evaluate(&best.head, tune, &tune_scores[place], self.token_limit, POSITION_PARTS);
            fitted.push(FittedLookAhead { head: best.head, penalties: best.penalties.to_vec(), evaluation, ablation });
        }
        Ok(fitted)
    }

    /// What a head of a reward may read.
    fn choices(&self, place: usize) -> Vec<(&'static str, Choice)> {
        let choice = |features| Choice { features, target: self.target(place) };
        let mut choices = vec![
            ("residual and running mean", choice(Features::Plain)),
            ("with the running mean times the used share", choice(Features::Share)),
        ];
        if let all @ Features::ShareAndText(_) = self.all_features(place) {
            choices.push(("with the reward of the text so far", choice(all)));
        }
        choices
    }

    /// Everything that is known of a reward's states.
    fn all_features(&self, place: usize) -> Features {
        let text = self.text_columns(place);
        if text.is_empty() { Features::Share } else { Features::ShareAndText(text) }
    }

    /// The columns of a reward's text among those of the moments; empty where it has none.
    fn text_columns(&self, place: usize) -> Range<usize> {
        let width = |text: &Option<Arc<RewardText>>| text.as_ref().map_or(0, |text| text.tune.width());
        let first =
            self.texts[..place].iter().map(width).sum::<usize>() + Columns { hidden: self.learn.hidden() }.with_share();
        first..first + width(&self.texts[place])
    }

    /// The column of a reward among those of the moments; its classes' comes as many behind as there are rewards.
    fn target(&self, place: usize) -> usize {
        let text: usize = (0..self.texts.len()).map(|place| self.text_columns(place).len()).sum();
        Columns { hidden: self.learn.hidden() }.with_share() + text + place
    }

    /// Fits choices. Where too few responses ended, what an end is worth is not fitted but taken from the limit.
    fn fits(
        &self,
        moments: (&Covariance, &Covariance),
        choices: &[Choice],
        threads: usize,
    ) -> Result<Vec<penalties::Fit>, FitError> {
        let mut fits = penalties::fit(self.learn.hidden(), moments, choices, threads)?;
        let ended = self.learn_groups.iter().flatten().filter(|rollout| rollout.end == End::EndOfText).count();
        if ended < ENDS_MIN {
            let texts = fits.iter_mut().map(|fit| &mut fit.head.text).filter(|text| !text.is_empty());
            texts.for_each(|text| TextTerm::end_as_at_the_limit(text));
        }
        Ok(fits)
    }

    /// The heads that other methods than Value Augmented Sampling read, one of each a reward.
    ///
    /// # Errors
    /// The algebra's.
    pub fn comparison(&self, moments: &BothMoments, threads: usize) -> Result<Vec<ComparisonHeads>, FitError> {
        let rewards = self.texts.len();
        let of_class = |place| Choice { features: self.all_features(place), target: self.target(place) + rewards };
        // A probability needs its level in every prompt, which moments within prompts leave open.
        let totals = (&moments.learn.total, &moments.tune.total);
        let discriminants = self.fits(totals, &(0..rewards).map(of_class).collect::<Vec<_>>(), threads)?;
        let args = self.args(threads)?;
        let good = classes(&self.tune_groups, rewards);
        let heads = discriminants.iter().zip(args).zip(&good).enumerate();
        let of = |(place, ((discriminant, args), good)): (usize, ((&penalties::Fit, _), &Vec<f64>))| {
            let tune = (&self.tune, self.tune_text(place));
            ComparisonHeads { fudge: comparison::calibrate(&discriminant.head, tune, good), args }
        };
        Ok(heads.map(of).collect())
    }

    /// Heads of ARGS: the reward itself where it can be read off text, else what end states say of it.
    fn args(&self, threads: usize) -> Result<Vec<ValueHead>, FitError> {
        let (hidden, rewards) = (self.learn.hidden(), self.texts.len());
        let unread: Vec<usize> = (0..rewards).filter(|&place| self.texts[place].is_none()).collect();
        let mut fits = Vec::new();
        if !unread.is_empty() {
            let ends = |groups: &[Vec<&Rollout>], states| {
                let scores = scores(groups, rewards);
                let targets: Vec<&[f64]> = unread.iter().map(|&place| scores[place].as_slice()).collect();
                look_ahead::end_moments((states, &sizes(groups)), &targets, threads)
            };
            let (learn, tune) = (ends(&self.learn_groups, &self.learn)?, ends(&self.tune_groups, &self.tune)?);
            let tune = tune.about(&learn);
            let first = Columns { hidden }.plain();
            let choice = |at| Choice { features: Features::Plain, target: first + at };
            let choices: Vec<Choice> = (0..unread.len()).map(choice).collect();
            fits = penalties::fit(hidden, (&learn.within, &tune.within), &choices, threads)?;
        }
        let mut fits = fits.into_iter();
        let of = |text: &Option<Arc<RewardText>>| match text {
            Some(text) => Some(comparison::text_reward(hidden, &text.tune, text.highest)),
            None => fits.next().map(|fit| fit.head),
        };
        Ok(self.texts.iter().filter_map(of).collect())
    }
}

/// Second moments of both splits' states: [`Columns`], every reward's text columns, every reward's scores, and its classes.
pub struct BothMoments {
    /// Its plain features in front are what [`Material::distil`] asks for.
    pub learn: PanelMoments,
    tune: PanelMoments,
}

/// [`comparison::classes`] of each reward's scores, centred by prompt.
fn classes(groups: &[Vec<&Rollout>], rewards: usize) -> Vec<Vec<f64>> {
    let of_prompts = |place| groups.iter().map(|group| column(group, place)).collect::<Vec<_>>();
    (0..rewards).map(|place| comparison::classes(&look_ahead::centre(&of_prompts(place)))).collect()
}

/// Rewards of all rollouts, a row for each of the first `rewards` columns.
fn scores(groups: &[Vec<&Rollout>], rewards: usize) -> Vec<Vec<f64>> {
    (0..rewards).map(|place| groups.iter().flat_map(|group| column(group, place)).collect()).collect()
}

/// Rollouts of each prompt.
fn sizes(groups: &[Vec<&Rollout>]) -> Vec<usize> {
    groups.iter().map(Vec::len).collect()
}

/// Heads of the methods that Value Augmented Sampling is compared with: see [`comparison`].
#[derive(Debug, Clone)]
pub struct ComparisonHeads {
    /// Log-odds that the finished response is better than its prompt's others.
    pub fudge: ValueHead,
    /// A reward model of finished responses.
    pub args: ValueHead,
}
