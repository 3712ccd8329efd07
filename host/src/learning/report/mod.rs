//! The report of an evaluation: every number in one object, from which a page and tables are drawn.
//!
//! [`Report`] is the file report.json; [`html`] and [`markdown`] show it and compute nothing of their own, so no
//! number stands in one of the three files only. [`methods`] says what is compared, [`run`] decodes it into the journal of
//! [`samples`], [`analysis`] and [`best_of`] estimate, [`diagnosis`] and [`within_state`] judge the heads, [`assemble`] puts all
//! together. Start at [`Report`].

pub mod analysis;
pub mod assemble;
pub mod best_of;
mod charts;
pub mod diagnosis;
#[cfg(test)]
mod example;
pub mod heads;
pub mod html;
pub mod markdown;
mod markup;
pub mod methods;
pub mod picture;
pub mod run;
pub mod samples;
mod svg;
mod tables;
#[cfg(test)]
mod tests;
mod trends;
pub mod tuned;
pub mod within_state;
mod wording;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use super::statistics::Estimate;

/// The value of [`Report::format`]; a change of what a number means changes it.
pub const FORMAT: &str = "vassal-report-1";

/// Everything that `vassal evaluate` found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`FORMAT`].
    pub format: String,
    /// How it was made.
    pub about: About,
    /// The rewards, by name.
    pub rewards: BTreeMap<String, RewardAbout>,
    /// The look-ahead heads, by reward.
    pub heads: BTreeMap<String, HeadReport>,
    /// Every method at every setting.
    pub points: Vec<Point>,
    /// One method against another at equal cost.
    pub comparisons: Vec<Comparison>,
    /// The least compute that reaches Best-of-n's reward.
    pub compute: Vec<Compute>,
    /// Two dials at once, where there are two rewards.
    pub grid: Option<Grid>,
    /// What was asked for and is not so, a sentence each.
    pub failed: Vec<String>,
    /// Random responses, base and aligned.
    pub side_by_side: Vec<SideBySide>,
}

/// How a report was made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct About {
    /// The command line.
    pub command: String,
    /// The program's version.
    pub version: String,
    /// The model's name.
    pub model: String,
    /// SHA-256 of its file.
    pub model_sha256: String,
    /// SHA-256 of the prompts file.
    pub prompts_sha256: String,
    /// SHA-256 of the pool's file.
    pub pool_sha256: String,
    /// Which split the prompts are of.
    pub split: String,
    /// Prompts.
    pub prompts: usize,
    /// Samples a prompt in the pool.
    pub pool_samples: usize,
    /// The seeds; a response a prompt and a seed.
    pub seeds: Vec<u64>,
    /// Temperature of all draws.
    pub temperature: f32,
    /// Nucleus of all draws.
    pub top_p: f32,
    /// Candidates of a step.
    pub candidates: usize,
    /// What becomes of other tokens: keep or mask.
    pub tail: String,
    /// Response tokens at most.
    pub token_limit: u32,
    /// What computed it: device, instruction set, threads.
    pub device: String,
    /// Settings that were planned and not decoded; 0 in a whole report.
    pub settings_missing: usize,
}

/// A reward.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RewardAbout {
    /// What is measured, in a line.
    pub summary: String,
    /// Exactly which reward it is.
    pub definition: String,
    /// The lowest and the highest score.
    pub range: (f64, f64),
    /// Responses without a score, left out of its numbers.
    pub unscored: usize,
    /// Why, with counts.
    pub reasons: String,
}

/// What a look-ahead head is worth on prompts that it has not seen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HeadReport {
    /// The layer that it reads.
    pub layer: usize,
    /// Share of the variance of the final reward, less its prompt's mean, that V explains over all states; V is centred by prompt and position,
    /// since what it says of the prompt itself guides nothing, and so are the rules that it is compared with.
    pub explained_variance: Estimate,
    /// The same by position: equal parts of the token limit.
    pub explained_by_position: Vec<f64>,
    /// The same by rules that know less: `prompt mean`, `position`, `prefix reward`, `token bias`.
    pub explained_by_controls: BTreeMap<String, Estimate>,
    /// Correlation of V(s·a) − V(s) with Monte-Carlo values of sampled next tokens, corrected for their noise by split
    /// halves; none where too few states could be sampled.
    pub within_state: Option<Estimate>,
    /// Slope of the final reward on V, prompt-centred: 1 is calibrated.
    pub calibration_slope: Estimate,
    /// Tenths of the states by V: mean V and mean final reward, both prompt-centred.
    pub calibration: Vec<(f64, f64)>,
    /// Mean change of V from state to state along base rollouts, in units of the reward: 0 for the true V.
    pub martingale: Estimate,
    /// The mean of the final reward less V at the end state, both less their prompt's mean (V's over its states): it completes the sum.
    pub martingale_terminal: f64,
    /// σ_A.
    pub spread: f64,
    /// A dial, and the nats a token that it costs.
    pub dial_to_kl: Vec<(f64, f64)>,
    /// What each choice of features explains on the tune prompts; the best was taken.
    #[serde(default)]
    pub ablation: Vec<(String, f64)>,
}

/// One method at one setting.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// `base`, `base_top_k`, `vas`, `vas_one_pass`, `value_model`, `best_of_n`, `guided_best_of_n`, `fudge`, `args`, `token_bias`, `dpo`, `ppo`,
    /// `shuffled`, `random`.
    pub method: String,
    /// What else tells it from others of its method, as `floor 0.01`; may be empty.
    pub variant: String,
    /// The reward that is guided, and judged here.
    pub reward: String,
    /// The dial, 0 where there is none.
    pub dial: f64,
    /// Samples of which the best counts; 1 for a single response.
    pub n: usize,
    /// Seeds.
    pub seeds: usize,
    /// Prompts.
    pub prompts: usize,
    /// Mean reward.
    pub mean: f64,
    /// The lower end of its 95 % interval.
    pub ci_low: f64,
    /// The upper end.
    pub ci_high: f64,
    /// Nats a token; for Best-of-n the upper bound (ln n − (n − 1)/n) over the mean length, for guided
    /// Best-of-n that bound beside what guidance costs.
    pub kl_per_token: f64,
    /// Cross-entropy under the base over that of base samples; none for Best-of-n, whose pool keeps no probabilities.
    pub cross_entropy_ratio: Option<f64>,
    /// Distinct-2 over that of as many base samples.
    pub distinct2_ratio: Option<f64>,
    /// Repeated 4-grams over that of base samples.
    pub repeated4_ratio: Option<f64>,
    /// Plain rows of arithmetic a response token, after the prompt.
    pub forwards_per_token: f64,
    /// Milliseconds a response token, a shared pass divided by its rows.
    pub ms_per_token: f64,
}

/// One method less another, at equal cost.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// The reward.
    pub reward: String,
    /// The method.
    pub method: String,
    /// What it is compared with.
    pub against: String,
    /// What is equal: `kl 0.25`, `forwards 11.5`.
    pub matched: String,
    /// The difference of mean rewards.
    pub difference: f64,
    /// The lower end of its 95 % interval.
    pub ci_low: f64,
    /// The upper end.
    pub ci_high: f64,
}

/// The least compute that reaches a reward.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Compute {
    /// The reward.
    pub reward: String,
    /// Best-of-n's n.
    pub n: usize,
    /// Its mean reward.
    pub target: f64,
    /// The cheapest point that reaches it, if any: method, variant, n and dial in words.
    pub reached_by: Option<String>,
    /// Its forwards a token.
    pub forwards_per_token: Option<f64>,
    /// Best-of-n's forwards a token over it.
    pub times_cheaper: Option<f64>,
}

/// Mean rewards over two dials.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Grid {
    /// The two rewards.
    pub rewards: [String; 2],
    /// The dials of the first: rows.
    pub first: Vec<f64>,
    /// The dials of the second: columns.
    pub second: Vec<f64>,
    /// Mean of each reward, `[rewards][rows][columns]`.
    pub means: [Vec<Vec<f64>>; 2],
    /// Whether each reward rises with its own dial, at each setting of the other.
    pub trends: Vec<Trend>,
}

/// A test that a reward rises with its own dial.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Trend {
    /// The reward.
    pub reward: String,
    /// The other dial's setting.
    pub other: f64,
    /// One-sided p of no rise, by permuting dials within prompts.
    pub p: f64,
    /// The same, corrected for all tests of the grid (Holm).
    pub p_holm: f64,
}

/// A prompt answered twice.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SideBySide {
    /// The reward that is guided.
    pub reward: String,
    /// The prompt.
    pub prompt: String,
    /// The base model's response.
    pub base: String,
    /// Its reward.
    pub base_reward: f64,
    /// The guided response.
    pub aligned: String,
    /// Its reward.
    pub aligned_reward: f64,
}
