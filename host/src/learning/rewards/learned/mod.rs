//! A learned reward: a linear function of the base model's own features at a response's end, fitted to preferences.
//!
//! Scoring runs prompt and response through the layers below the one that it reads, so a score has a price in rows of the model, which
//! [`Reward::forwards_per_token`] tells. The score is σ of the function, 0 to 1. It compares responses to *one* prompt: what a prompt
//! itself adds to the function cancels in the pairs that it was fitted to, so that nothing is known of it. A response
//! without a token scores 0: it answers nothing, and no state of it can be read. Start at [`file::RewardFile`].

pub mod file;

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use sha2::{Digest, Sha256};

use self::file::RewardFile;
use super::spec::check_name;
use super::{Exchange, Reward, Score, SharedReward, Unscored};
use crate::engine::EngineOptions;
use crate::error::Error;
use crate::hex::hexadecimal;
use crate::host::{Host, HostOptions};
use crate::learning::features::end_states;
use crate::model::heads::ModelIdentity;
use crate::token::{Token, Vocabulary};

struct Learned {
    name: String,
    file: RewardFile,
    sha256: String,
    forwards_per_token: f64,
    host: Mutex<Host>,
}

/// The options of a host that reads the features of one layer and decodes nothing: room for one sequence as long as the model's
/// context, and for its shared prompt.
pub fn reading(options: HostOptions, layer: usize, context_tokens: usize) -> HostOptions {
    let engine = EngineOptions {
        sequences_max: 1,
        cache_tokens: options.engine.cache_tokens.max(2 * context_tokens),
        taps: vec![layer],
        ..options.engine.clone()
    };
    HostOptions { heads: Vec::new(), head_kind: None, engine, ..options }
}

/// A learned reward's file as a reward, under its own name or another; `options` open the model that it reads.
///
/// # Errors
/// The file's, and those of a model that is not the one it was fitted to.
pub(super) fn open(
    path: &Path,
    name: Option<String>,
    options: impl FnOnce() -> Result<HostOptions, Error>,
) -> Result<SharedReward, Error> {
    let (file, bytes) = RewardFile::open(path)?;
    let name = name.unwrap_or_else(|| file.description.name.clone());
    check_name(&name)?;
    let (options, layer) = (options()?, file.description.layer);
    let shape = options.shape()?;
    // A layer that the model lacks is told by the model, which is then another.
    let tap = layer.min(shape.layers);
    let mut host = Host::open(&reading(options, tap, shape.context_tokens))?;
    file.check_model(path, ModelIdentity::of(&host.model().sha256, &shape))?;
    let forwards_per_token = host.engine().forwards_below(layer);
    let sha256 = hexadecimal(&Sha256::digest(&bytes));
    Ok(Arc::new(Learned { name, sha256, file, forwards_per_token, host: Mutex::new(host) }))
}

impl Learned {
    fn of_prompt(&self, host: &mut Host, group: &[Exchange<'_>], out: &mut Vec<Score>) -> Result<(), Error> {
        let description = &self.file.description;
        let prompt = match prompt_tokens(host, group.first().map_or("", |exchange| exchange.prompt)) {
            Ok(prompt) => prompt,
            Err(unscored) => {
                out.extend(group.iter().map(|_| Err(unscored.clone())));
                return Ok(());
            }
        };
        let mut read = Vec::new();
        for exchange in group {
            let tokens =
                host.tokenizer().encode(exchange.response, false).map_err(|error| unreadable(error.to_string()));
            read.push(tokens.and_then(|mut tokens| {
                tokens.truncate(description.token_limit);
                fits(host, prompt.len() + tokens.len()).map(|()| tokens)
            }));
        }
        let responses: Vec<&[Token]> =
            read.iter().flatten().map(Vec::as_slice).filter(|tokens| !tokens.is_empty()).collect();
        let features = end_states(host, &prompt, &responses, description.layer, description.token_limit)?;
        let mut features = features.iter();
        out.extend(read.into_iter().map(|tokens| match tokens?.is_empty() {
            true => Ok(0.0),
            false => features.next().map_or(Err(Unscored::NotANumber), |own| self.of_state(own)),
        }));
        Ok(())
    }

    /// The score of a response that ends in this state.
    fn of_state(&self, features: &[f32]) -> Score {
        Some(self.value(features)).filter(|value| value.is_finite()).ok_or(Unscored::NotANumber)
    }

    /// σ of the linear function of `[residual; running mean]`.
    fn value(&self, features: &[f32]) -> f64 {
        let weights = self.file.residual.iter().chain(&self.file.mean);
        let sum: f64 = weights.zip(features).map(|(&w, &x)| f64::from(w) * f64::from(x)).sum();
        1.0 / (1.0 + (-(sum + f64::from(self.file.bias))).exp())
    }
}

fn unreadable(reason: String) -> Unscored {
    Unscored::Fault(format!("cannot be read: {reason}"))
}

fn prompt_tokens(host: &Host, prompt: &str) -> Result<Vec<Token>, Unscored> {
    host.request(prompt).map(|request| request.prompt).map_err(|error| unreadable(error.to_string()))
}

/// Whether so many tokens fit the model's context.
fn fits(host: &Host, needed: usize) -> Result<(), Unscored> {
    let context_tokens = host.model().context_tokens;
    if needed <= context_tokens {
        return Ok(());
    }
    Err(unreadable(format!("{needed} tokens, and the model's context is {context_tokens}")))
}

impl Reward for Learned {
    fn name(&self) -> &str {
        &self.name
    }

    fn summary(&self) -> String {
        self.file.description.summary.clone()
    }

    fn definition(&self) -> String {
        format!("learned {}", self.sha256)
    }

    fn forwards_per_token(&self) -> f64 {
        self.forwards_per_token
    }

    fn token_limit(&self) -> Option<usize> {
        Some(self.file.description.token_limit)
    }

    fn score(&self, exchanges: &[Exchange<'_>]) -> Result<Vec<Score>, Error> {
        let mut host = self.host.lock().unwrap_or_else(PoisonError::into_inner);
        let mut out = Vec::with_capacity(exchanges.len());
        for group in exchanges.chunk_by(|a, b| a.prompt == b.prompt) {
            self.of_prompt(&mut host, group, &mut out)?;
        }
        Ok(out)
    }

    /// In one pass: the score of a response's first tokens is that of its state after them, whether it goes on or not. The tokens are read
    /// as they were drawn, where [`Reward::score`] encodes their text anew.
    fn score_so_far(
        &self,
        prompt: &str,
        tokens: &[Token],
        _: &dyn Fn(&[Token]) -> String,
    ) -> Result<Vec<Score>, Error> {
        let mut host = self.host.lock().unwrap_or_else(PoisonError::into_inner);
        let (layer, token_limit) = (self.file.description.layer, self.file.description.token_limit);
        let prompt = prompt_tokens(&host, prompt).and_then(|prompt| fits(&host, prompt.len()).map(|()| prompt));
        let prompt = match prompt {
            Ok(prompt) => prompt,
            Err(unscored) => return Ok(vec![Err(unscored); tokens.len() + 1]),
        };
        // Special tokens are no text. So many of what is read belong to so many tokens:
        let (mut read, mut counts) = (Vec::new(), vec![0]);
        for &token in tokens {
            read.extend(Some(token).filter(|&token| !host.tokenizer().is_special(token)));
            counts.push(read.len().min(token_limit));
        }
        read.truncate(token_limit.min(host.model().context_tokens - prompt.len()));
        let mut rows = Vec::new();
        host.engine().features(layer, &prompt, &[&read], token_limit, &mut rows)?;
        let states: Vec<&[f32]> = rows.chunks_exact(rows.len() / (read.len() + 1)).collect();
        let of = |count: usize| match states.get(count) {
            _ if count == 0 => Ok(0.0),
            Some(state) => self.of_state(state),
            None => fits(&host, prompt.len() + count).and(Err(Unscored::NotANumber)),
        };
        Ok(counts.into_iter().map(of).collect())
    }
}
