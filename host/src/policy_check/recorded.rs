//! Steps of a real response, recorded once and committed, so that a policy can be driven without a model.
//!
//! [`Recording::built_in`] is `host/data/recorded_steps.json`: the likeliest candidates of each step of a
//! response of the default model, with logits and the values of one head, and the bytes of every token
//! that occurs. `cargo run --release -p vassal --example record_steps` wrote it. The head is a made-up one:
//! its values are as uneven as a real head's, and mean nothing.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::token::{Token, Vocabulary};

/// The value of [`Recording::format`].
pub const FORMAT: &str = "vassal-recorded-steps-1";

/// A response as it was decoded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recording {
    /// [`FORMAT`].
    pub format: String,
    /// SHA-256 of the model file.
    pub model_sha256: String,
    /// Tokens that the model knows.
    pub vocabulary: usize,
    /// The tokens that end a response.
    pub end_of_text: Vec<Token>,
    /// The user's prompt.
    pub prompt: Vec<Token>,
    /// The steps, in order.
    pub steps: Vec<RecordedStep>,
    /// Every token that occurs, and all of one byte: its bytes in hexadecimal.
    pub tokens: BTreeMap<Token, String>,
}

/// One step of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecordedStep {
    /// The token that was drawn.
    pub drawn: Token,
    /// The likeliest next tokens, in order.
    pub candidates: Vec<Token>,
    /// Their logits.
    pub logits: Vec<f32>,
    /// The head's values of them, in units of its spread.
    pub values: Vec<f32>,
    /// The head's value of the state, in units of its spread.
    pub state: f32,
    /// ln Σ exp(logit) over the vocabulary.
    pub log_normalizer: f32,
    /// In nats.
    pub entropy: f32,
}

/// Why a recording cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordingError {
    /// It cannot be read.
    #[error("the recorded steps are damaged: {0}")]
    Damaged(String),
    /// It is of another model than the vocabulary.
    #[error("the recorded steps are those of the model with SHA-256 {recorded}, not of {given}")]
    OtherModel {
        /// The recording's.
        recorded: String,
        /// The caller's.
        given: String,
    },
}

impl Recording {
    /// The recording that ships with the program.
    ///
    /// # Errors
    /// [`RecordingError::Damaged`]; never as it is committed.
    pub fn built_in() -> Result<Self, RecordingError> {
        Self::parse(include_str!("../../data/recorded_steps.json"))
    }

    /// Reads a recording and checks that its lists fit each other.
    ///
    /// # Errors
    /// [`RecordingError::Damaged`] says what does not fit.
    pub fn parse(text: &str) -> Result<Self, RecordingError> {
        let damaged = |what: String| Err(RecordingError::Damaged(what));
        let recording: Self = match serde_json::from_str(text) {
            Ok(recording) => recording,
            Err(error) => return damaged(error.to_string()),
        };
        if recording.format != FORMAT {
            return damaged(format!("format {:?}, expected {FORMAT:?}", recording.format));
        }
        if recording.steps.is_empty() {
            return damaged("no steps".to_owned());
        }
        for (number, step) in recording.steps.iter().enumerate() {
            let count = step.candidates.len();
            let finite = step.logits.iter().chain(&step.values).all(|number| number.is_finite());
            if count == 0 || step.logits.len() != count || step.values.len() != count || !finite {
                return damaged(format!("step {number}: candidates, logits and values must be as many, and finite"));
            }
        }
        Ok(recording)
    }

    /// Refuses the vocabulary of another model.
    ///
    /// # Errors
    /// [`RecordingError::OtherModel`].
    pub fn check_model(&self, sha256: &str) -> Result<(), RecordingError> {
        if self.model_sha256 == sha256 {
            Ok(())
        } else {
            Err(RecordingError::OtherModel { recorded: self.model_sha256.clone(), given: sha256.to_owned() })
        }
    }

    /// The vocabulary as far as it was recorded: as large as the model's, but only tokens that occur have bytes.
    pub fn vocabulary(&self) -> RecordedVocabulary {
        let bytes = self.tokens.iter().map(|(&token, hexadecimal)| (token, from_hexadecimal(hexadecimal)));
        RecordedVocabulary { size: self.vocabulary, bytes: bytes.collect(), end_of_text: self.end_of_text.clone() }
    }
}

/// Tokens of a recording. Text becomes the longest tokens that fit, from left to right.
#[derive(Debug, Clone)]
pub struct RecordedVocabulary {
    size: usize,
    bytes: BTreeMap<Token, Vec<u8>>,
    end_of_text: Vec<Token>,
}

impl Vocabulary for RecordedVocabulary {
    fn size(&self) -> usize {
        self.size
    }

    fn bytes(&self, token: Token) -> &[u8] {
        self.bytes.get(&token).map_or(&[], Vec::as_slice)
    }

    fn is_special(&self, token: Token) -> bool {
        self.end_of_text.contains(&token)
    }

    fn tokens(&self, text: &str) -> Vec<Token> {
        let mut left = text.as_bytes();
        let mut tokens = Vec::new();
        while !left.is_empty() {
            let fits = |(_, bytes): &(&Token, &Vec<u8>)| !bytes.is_empty() && left.starts_with(bytes);
            match self.bytes.iter().filter(fits).max_by_key(|(_, bytes)| bytes.len()) {
                Some((token, bytes)) => {
                    tokens.push(*token);
                    left = &left[bytes.len()..];
                }
                // A byte that no token has alone: left out, as there is nothing to stand for it.
                None => left = &left[1..],
            }
        }
        tokens
    }

    fn end_of_text(&self) -> &[Token] {
        &self.end_of_text
    }
}

/// Bytes from pairs of hexadecimal digits; what is none is left out.
fn from_hexadecimal(text: &str) -> Vec<u8> {
    let pairs = (0..text.len() / 2).filter_map(|place| text.get(2 * place..2 * place + 2));
    pairs.filter_map(|pair| u8::from_str_radix(pair, 16).ok()).collect()
}
