//! What a head's file says of the head, apart from its numbers.
//!
//! The description is checked as a whole before anything is allocated by it: names, shapes and the spread
//! are used later without a second look. The provenance is for people and reports; nothing depends on it.

use serde::{Deserialize, Serialize};

use super::HeadError;
use super::text::{READINGS_MAX, TextTerm, basis_width};

/// The value of [`Description::format`].
pub const FORMAT: &str = "vassal-head-1";

const HIDDEN_MAX: usize = 1 << 16;
const VOCABULARY_MAX: usize = 1 << 21;
/// Weights of the text so far are at most this in magnitude: a reward's units are its own, but no reward needs more.
const TEXT_WEIGHT_MAX: f32 = 1e6;
/// The longest name of a head, and so of a reward, bytes.
pub const NAME_BYTES_MAX: usize = 32;

/// How a head reads the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HeadKind {
    /// From the row after each candidate.
    LookAhead,
    /// From the row before the candidates and their embeddings.
    OnePass,
}

impl HeadKind {
    /// Both kinds.
    pub const ALL: [Self; 2] = [Self::LookAhead, Self::OnePass];

    /// `look-ahead` or `one-pass`: in names of files and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::LookAhead => "look-ahead",
            Self::OnePass => "one-pass",
        }
    }
}

/// What a head is and for which model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Description {
    /// [`FORMAT`].
    pub format: String,
    /// The reward's name, by which policies ask for the head: `a-z`, `0-9` and `-`, at most 32 bytes.
    pub name: String,
    /// How it reads the model.
    pub kind: HeadKind,
    /// It reads the residual stream after this many layers.
    pub layer: usize,
    /// Layers of the model.
    pub layers: usize,
    /// Width of the model's residual stream, H.
    pub hidden: usize,
    /// The model's vocabulary, V.
    pub vocabulary: usize,
    /// SHA-256 of the model file, lower-case hexadecimal.
    pub model_sha256: String,
    /// σ_A: how much values differ between next tokens, in units of the reward; above 0.
    pub spread: f64,
    /// The token limit of the rollouts; at another limit values are less true.
    pub token_limit: u32,
    /// What is added for the text so far, if anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<TextTerm>,
    /// Where it comes from.
    pub provenance: Provenance,
}

/// Where a head comes from and what it was measured to be worth.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provenance {
    /// SHA-256 of the prompts file.
    pub prompts_sha256: String,
    /// SHA-256 of the rollouts file.
    pub rollouts_sha256: String,
    /// What the reward is, exactly; empty in files from before it was noted.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reward: String,
    /// Prompts fitted to.
    pub prompts: usize,
    /// Rollouts fitted to.
    pub rollouts: usize,
    /// Rollouts a prompt.
    pub samples: u32,
    /// Temperature of the rollouts.
    pub temperature: f32,
    /// Nucleus of the rollouts.
    pub top_p: f32,
    /// Discount of later targets; 1 means the finished response's reward itself.
    pub lambda: f64,
    /// Ridge penalties, by group of weights.
    pub penalties: Vec<f64>,
    /// What each choice of features explains on the tune prompts, the chosen one and those that lost to it; empty where there was no choice.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ablation: Vec<(String, f64)>,
    /// Share of variance explained on held-out prompts. Look-ahead: of the reward, within prompt and
    /// position, over all states. One-pass: of the look-ahead head's change of value within a state, but for what both add for the text.
    pub explained: f64,
    /// The same by position: the state before the response, then equal parts of the token limit. Empty
    /// where it was not measured.
    pub explained_by_position: Vec<f64>,
    /// Measured on tune prompts: a dial, and the KL in nats a token that it costs.
    pub dial_to_kl: Vec<(f64, f64)>,
    /// The seed of everything random.
    pub seed: u64,
    /// The command that made it.
    pub command: String,
    /// The version of the program that made it.
    pub version: String,
}

impl Provenance {
    /// Of a head that nobody has learned: its weights were chosen by `command`, for a test or a measurement.
    pub fn made_up(command: &str) -> Self {
        Self {
            prompts_sha256: String::new(),
            rollouts_sha256: String::new(),
            reward: String::new(),
            prompts: 0,
            rollouts: 0,
            samples: 0,
            temperature: 1.0,
            top_p: 1.0,
            lambda: 1.0,
            penalties: Vec::new(),
            ablation: Vec::new(),
            explained: 0.0,
            explained_by_position: Vec::new(),
            dial_to_kl: Vec::new(),
            seed: 0,
            command: command.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

impl Description {
    /// Refuses what no head can be.
    pub(super) fn check(&self) -> Result<(), HeadError> {
        let ensure = |accepted: bool, what, expected: &str, got: String| {
            if accepted { Ok(()) } else { Err(HeadError::Description { what, expected: expected.into(), got }) }
        };
        let between = |number: usize, most: usize| (1..=most).contains(&number);
        let hash = |text: &str| text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let plain = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-');
        let named = between(self.name.len(), NAME_BYTES_MAX) && self.name.bytes().all(plain);
        let name = format!("1 to {NAME_BYTES_MAX} characters of a-z, 0-9 and -");
        ensure(self.format == FORMAT, "format", FORMAT, self.format.clone())?;
        ensure(named, "name", &name, format!("{:?}", self.name))?;
        ensure(between(self.layers, 1_000), "layers", "1 to 1000", self.layers.to_string())?;
        ensure(between(self.layer, self.layers), "layer", &format!("1 to {}", self.layers), self.layer.to_string())?;
        ensure(between(self.hidden, HIDDEN_MAX), "hidden", &format!("1 to {HIDDEN_MAX}"), self.hidden.to_string())?;
        let (vocabulary, most) = (self.vocabulary, format!("1 to {VOCABULARY_MAX}"));
        ensure(between(vocabulary, VOCABULARY_MAX), "vocabulary", &most, vocabulary.to_string())?;
        let sha256 = &self.model_sha256;
        ensure(hash(sha256), "model_sha256", "64 hexadecimal digits in lower case", format!("{sha256:?}"))?;
        let spread = self.spread;
        ensure(spread.is_finite() && spread > 0.0, "spread", "finite and > 0", spread.to_string())?;
        ensure(self.token_limit > 0, "token_limit", "at least 1", self.token_limit.to_string())?;
        let Some(TextTerm { weights, .. }) = &self.text else { return Ok(()) };
        let fits = (1..=READINGS_MAX).any(|readings| weights.len() == basis_width(readings));
        let expected = format!("5, 9, 13 or 17 finite numbers up to {TEXT_WEIGHT_MAX}");
        let known = weights.iter().all(|weight| weight.abs() <= TEXT_WEIGHT_MAX);
        ensure(fits && known, "text.weights", &expected, format!("{weights:?}"))
    }
}
