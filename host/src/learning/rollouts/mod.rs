//! Rollouts: responses that the base model gave, with what rewards say of them, in a file.
//!
//! A file is Parquet ([`mod@file`]): a row a rollout, a column a reward, and beside them the [`Header`] that says where
//! the rollouts come from and, for each reward, what it is ([`RewardAbout`]). It is written whole or not at all; what
//! was sampled before that is kept in a [`Journal`], so that a command that was killed can go on. Reading trusts
//! nothing: rollouts of another shape, too long, doubled, or filed under a split that is not their prompt's are refused.
//!
//! Sampling is the engine's, scoring [`crate::learning::rewards`]'. Start at [`Rollouts`].

mod error;
pub mod file;
mod journal;
mod pages;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

use serde::{Deserialize, Serialize};

pub use self::error::RolloutsError;
pub use self::journal::{Journal, part_of};
use super::prompts::Split;
use super::rewards::{Exchange, Reward, Scores};
use crate::error::Error;

/// The value of [`Header::format`]; a change of the columns' meaning changes it.
pub const FORMAT: &str = "vassal-rollouts-2";

/// The most rollouts of one file, so that a wrong file cannot take all memory.
pub const ROLLOUTS_MAX: usize = 1_000_000;

/// The most rewards of one file: far above any use.
pub const REWARDS_MAX: usize = 64;

/// The most tokens of one response.
pub const TOKENS_MAX: u32 = 1 << 16;

/// The longest text of one response, and the longest id of a prompt, bytes.
pub const TEXT_BYTES_MAX: usize = 1 << 20;
const ID_BYTES_MAX: usize = 1 << 10;

/// Where rollouts come from: enough to make them again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    /// [`FORMAT`].
    pub format: String,
    /// SHA-256 of the model file, lower-case hexadecimal.
    pub model_sha256: String,
    /// SHA-256 of the prompts file.
    pub prompts_sha256: String,
    /// The splits whose prompts were answered.
    pub splits: Vec<Split>,
    /// The seed of every draw.
    pub seed: u64,
    /// Rollouts a prompt.
    pub samples: u32,
    /// Temperature of the draws.
    pub temperature: f32,
    /// Nucleus of the draws; 1 keeps all.
    pub top_p: f32,
    /// The most tokens of a response.
    pub token_limit: u32,
    /// The command that wrote the file.
    pub command: String,
    /// The version of this program.
    pub version: String,
}

impl Header {
    /// What differs first from another header, with this one's and the other's; the command's words are not compared.
    fn difference(&self, other: &Self) -> Option<(&'static str, String, String)> {
        let named = |header: &Self| {
            let splits: Vec<&str> = header.splits.iter().map(|split| split.name()).collect();
            [
                ("format", header.format.clone()),
                ("version of this program", header.version.clone()),
                ("model", header.model_sha256.clone()),
                ("prompts file", header.prompts_sha256.clone()),
                ("choice of splits", splits.join(",")),
                ("seed", header.seed.to_string()),
                ("number of samples", header.samples.to_string()),
                ("temperature", header.temperature.to_string()),
                ("top-p", header.top_p.to_string()),
                ("token limit", header.token_limit.to_string()),
            ]
        };
        let mut pairs = named(self).into_iter().zip(named(other));
        pairs.find(|(own, theirs)| own != theirs).map(|((what, own), (_, theirs))| (what, own, theirs))
    }
}

/// Why a rollout ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum End {
    /// The model ended it; its last token is an end-of-text token.
    EndOfText,
    /// It was cut at the token limit.
    TokenLimit,
}

impl End {
    /// The name in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::EndOfText => "end-of-text",
            Self::TokenLimit => "token-limit",
        }
    }
}

/// One response of the base model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rollout {
    /// The prompt's id.
    pub id: String,
    /// The prompt's text.
    pub prompt: String,
    /// The prompt's split.
    pub split: Split,
    /// 0 to `samples` - 1 within its prompt.
    pub sample: u32,
    /// The response's tokens, an end-of-text token at the end included: 1 to `token_limit`.
    pub tokens: Vec<u32>,
    /// The response's text, without the end-of-text token.
    pub text: String,
    /// Why it ended.
    pub end: End,
    /// What each of [`Rollouts::rewards`] says of it, in their order; none where one had no score for it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scores: Vec<Option<f64>>,
}

/// A reward whose scores are in a file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RewardAbout {
    /// Its name; the column is `reward.` and the name.
    pub name: String,
    /// What it is, exactly: [`Reward::definition`].
    pub definition: String,
    /// The lowest and the highest score.
    pub range: (f64, f64),
    /// How often each reason left a rollout without a score.
    pub failures: BTreeMap<String, usize>,
}

/// All rollouts of a file.
#[derive(Debug, Clone, PartialEq)]
pub struct Rollouts {
    /// Where they come from.
    pub header: Header,
    /// The rewards that have scored them.
    pub rewards: Vec<RewardAbout>,
    /// In order of the file: by prompt, then by sample, where `vassal rollout` wrote it.
    pub all: Vec<Rollout>,
}

/// Checks rollouts one after the other against their header.
struct Checker<'a> {
    header: &'a Header,
    rewards: &'a [RewardAbout],
    seen: HashSet<(String, u32)>,
    prompts: HashMap<String, String>,
}

impl<'a> Checker<'a> {
    /// Refuses a header that nothing could be checked against, and rewards that are not apart.
    fn new(header: &'a Header, rewards: &'a [RewardAbout]) -> Result<Self, String> {
        let Header { format, token_limit, .. } = header;
        if format != FORMAT {
            return Err(format!("its format is {format:?}"));
        }
        if !(1..=TOKENS_MAX).contains(token_limit) {
            return Err(format!("the token limit must be 1 to {TOKENS_MAX}, it is {token_limit}"));
        }
        if rewards.len() > REWARDS_MAX {
            return Err(format!("a file has at most {REWARDS_MAX} rewards, this has {}", rewards.len()));
        }
        for (place, reward) in rewards.iter().enumerate() {
            if rewards[..place].iter().any(|before| before.name == reward.name) {
                return Err(format!("two rewards are named {:?}", reward.name));
            }
            let (low, high) = reward.range;
            if !(low.is_finite() && high.is_finite() && low <= high) {
                let reason = format!("the range of the reward {:?} must be finite and ascend", reward.name);
                return Err(format!("{reason}, it is {low} to {high}"));
            }
        }
        Ok(Self { header, rewards, seen: HashSet::new(), prompts: HashMap::new() })
    }

    fn check(&mut self, rollout: &Rollout) -> Result<(), String> {
        let Header { samples, token_limit, .. } = *self.header;
        let (count, sample) = (rollout.tokens.len(), rollout.sample);
        if count == 0 || count > token_limit as usize {
            return Err(format!("a response has 1 to {token_limit} tokens, this has {count}"));
        }
        if sample >= samples {
            return Err(format!("samples are numbered 0 to {}, this is {sample}", samples.saturating_sub(1)));
        }
        for (what, text, most) in [("id", &rollout.id, ID_BYTES_MAX), ("text", &rollout.text, TEXT_BYTES_MAX)] {
            if text.len() > most {
                return Err(format!("the {what} has at most {most} bytes, this has {}", text.len()));
            }
        }
        let split = Split::of(&rollout.prompt);
        if split != rollout.split {
            let (right, wrong) = (split.name(), rollout.split.name());
            return Err(format!("prompt {:?} belongs to the split {right} but is filed under {wrong}", rollout.id));
        }
        let prompt = self.prompts.entry(rollout.id.clone()).or_insert_with(|| rollout.prompt.clone());
        if *prompt != rollout.prompt {
            return Err(format!("two different prompts have the id {:?}", rollout.id));
        }
        if !self.seen.insert((rollout.id.clone(), sample)) {
            return Err(format!("sample {sample} of prompt {:?} occurs twice", rollout.id));
        }
        if self.seen.len() > ROLLOUTS_MAX {
            return Err(format!("a file has at most {ROLLOUTS_MAX} rollouts"));
        }
        for (reward, score) in self.rewards.iter().zip(&rollout.scores) {
            let (low, high) = reward.range;
            if let Some(score) = score.filter(|score| !(low..=high).contains(score)) {
                return Err(format!("the reward {:?} gives {low} to {high}, this is {score}", reward.name));
            }
        }
        Ok(())
    }
}

impl Rollouts {
    /// Reads a file.
    ///
    /// # Errors
    /// The system's, and everything in the file that is not as [`mod@file`] says.
    pub fn read(path: &Path) -> Result<Self, RolloutsError> {
        file::read(path)
    }

    /// Writes a file in place of what is there, whole or not at all. Equal rollouts give equal bytes.
    ///
    /// # Errors
    /// The system's.
    pub fn write(&self, path: &Path) -> Result<(), RolloutsError> {
        let bytes = file::encode(self)
            .map_err(|error| RolloutsError::Format { path: path.to_path_buf(), reason: error.to_string() })?;
        crate::files::replace(path, &bytes).map_err(|source| RolloutsError::File { path: path.to_path_buf(), source })
    }

    /// Refuses rollouts of another model.
    ///
    /// # Errors
    /// [`RolloutsError::Other`].
    pub fn require_model(&self, sha256: &str) -> Result<(), RolloutsError> {
        same("model", &self.header.model_sha256, sha256)
    }

    /// Refuses rollouts of another prompts file.
    ///
    /// # Errors
    /// [`RolloutsError::Other`].
    pub fn require_prompts(&self, sha256: &str) -> Result<(), RolloutsError> {
        same("prompts file", &self.header.prompts_sha256, sha256)
    }

    /// Every rollout as a reward reads it, in order.
    pub fn exchanges(&self) -> Vec<Exchange<'_>> {
        self.all.iter().map(exchange).collect()
    }

    /// Adds a reward's column, or puts it in place of the one of its name. `scores` are those of
    /// [`Rollouts::exchanges`].
    ///
    /// # Panics
    /// If there is not one score a rollout.
    pub fn add(&mut self, reward: &dyn Reward, scores: Scores) {
        assert_eq!(scores.scores.len(), self.all.len(), "the reward {:?} scores every rollout", scores.reward);
        let range = reward.range();
        let about = RewardAbout {
            name: reward.name().to_owned(),
            definition: reward.definition(),
            range: (*range.start(), *range.end()),
            failures: scores.failures,
        };
        let place = self.rewards.iter().position(|other| other.name == about.name).unwrap_or(self.rewards.len());
        self.rewards.splice(place..(place + 1).min(self.rewards.len()), [about]);
        for (rollout, score) in self.all.iter_mut().zip(scores.scores) {
            rollout.scores.splice(place..(place + 1).min(rollout.scores.len()), [score]);
        }
    }

    /// Whether these are the same rollouts, whatever rewards say of them.
    pub fn same_rollouts(&self, other: &Self) -> bool {
        let bare = |rollout: &Rollout| Rollout { scores: Vec::new(), ..rollout.clone() };
        self.header == other.header
            && self.all.len() == other.all.len()
            && self.all.iter().zip(&other.all).all(|(own, theirs)| bare(own) == bare(theirs))
    }

    /// Only these rewards' columns, in this order (all where none is named), and only the rollouts that every one of
    /// them has scored, since heads are fitted to one set. The number of those left out comes along.
    ///
    /// # Errors
    /// [`RolloutsError::NoRewards`] and [`RolloutsError::NoReward`].
    pub fn scored_by(mut self, names: &[String]) -> Result<(Self, usize), RolloutsError> {
        if self.rewards.is_empty() {
            return Err(RolloutsError::NoRewards);
        }
        let all = || self.rewards.iter().map(|reward| reward.name.as_str()).collect::<Vec<_>>().join(", ");
        let find = |name: &String| {
            let place = self.rewards.iter().position(|reward| reward.name == *name);
            place.ok_or_else(|| RolloutsError::NoReward { name: name.clone(), all: all() })
        };
        let mut places: Vec<usize> = names.iter().map(find).collect::<Result<_, _>>()?;
        if places.is_empty() {
            places = (0..self.rewards.len()).collect();
        }
        let mut seen = HashSet::new();
        places.retain(|place| seen.insert(*place));
        self.rewards = places.iter().map(|&place| self.rewards[place].clone()).collect();
        let before = self.all.len();
        for rollout in &mut self.all {
            rollout.scores = places.iter().map(|&place| rollout.scores[place]).collect();
        }
        self.all.retain(|rollout| rollout.scores.iter().all(Option::is_some));
        let left_out = before - self.all.len();
        Ok((self, left_out))
    }

    /// The rollouts of one split by prompt: ids ascending, samples ascending. Prompts with fewer than
    /// `samples` rollouts are an error when fewer than `prompts` prompts are left without them; otherwise
    /// they are left out.
    ///
    /// # Errors
    /// [`RolloutsError::NoSplit`] and [`RolloutsError::TooFew`].
    pub fn groups(&self, split: Split, prompts: usize, samples: usize) -> Result<Vec<Vec<&Rollout>>, RolloutsError> {
        if !self.header.splits.contains(&split) {
            let splits: Vec<&str> = self.header.splits.iter().map(|split| split.name()).collect();
            return Err(RolloutsError::NoSplit { split: split.name(), splits: splits.join(",") });
        }
        let mut groups: BTreeMap<&str, Vec<&Rollout>> = BTreeMap::new();
        for rollout in self.all.iter().filter(|rollout| rollout.split == split) {
            groups.entry(&rollout.id).or_default().push(rollout);
        }
        let mut groups: Vec<_> = groups.into_values().filter(|group| group.len() >= samples).collect();
        if groups.len() < prompts {
            return Err(RolloutsError::TooFew { split: split.name(), prompts, samples, enough: groups.len() });
        }
        for group in &mut groups {
            group.sort_by_key(|rollout| rollout.sample);
        }
        Ok(groups)
    }

    /// The scores of grouped rollouts of this file, in the groups' shape. They are the file's where it has a column of the
    /// same definition; otherwise the reward is asked.
    ///
    /// # Errors
    /// The reward's, and too many without a score.
    pub fn score(&self, groups: &[Vec<&Rollout>], reward: &dyn Reward) -> Result<Vec<Vec<Option<f64>>>, Error> {
        let definition = reward.definition();
        if let Some(place) = self.rewards.iter().position(|about| about.definition == definition) {
            let of = |rollout: &&Rollout| *rollout.scores.get(place)?;
            return Ok(groups.iter().map(|group| group.iter().map(of).collect()).collect());
        }
        let exchanges: Vec<Exchange<'_>> = groups.iter().flatten().map(|rollout| exchange(rollout)).collect();
        let mut scores = Scores::of(reward, &exchanges)?.accept()?.scores.into_iter();
        Ok(groups.iter().map(|group| scores.by_ref().take(group.len()).collect()).collect())
    }
}

/// What the reward at this place of the file's says of rollouts; those without a score are left out.
pub fn column(rollouts: &[&Rollout], place: usize) -> Vec<f64> {
    rollouts.iter().filter_map(|rollout| *rollout.scores.get(place)?).collect()
}

fn exchange(rollout: &Rollout) -> Exchange<'_> {
    Exchange { prompt: &rollout.prompt, response: &rollout.text }
}

fn same(what: &'static str, theirs: &str, ours: &str) -> Result<(), RolloutsError> {
    let other = || RolloutsError::Other { what, theirs: theirs.to_string(), ours: ours.to_string() };
    if theirs == ours { Ok(()) } else { Err(other()) }
}

#[cfg(test)]
mod tests;
