//! Requests: what a caller asks for, and the different type that a checked one becomes.
//!
//! [`Request`] has options; [`Request::validate`] resolves every one of them or refuses, naming the
//! parameter, what is accepted and what was given. Downstream of it there is only [`ValidRequest`].

use std::sync::Arc;

use crate::engine::{HeadId, Replay, Response};
use crate::sampling::philox;
use crate::sandbox::{CompiledPolicy, Manifest, SettingValue, StartRequest};
use crate::signature::Signer;
use crate::token::{Token, Vocabulary};

/// The most tokens a response may have.
pub const MAX_TOKENS_MAX: usize = 32_768;

/// The highest temperature: above it every distribution is near enough to uniform.
pub const TEMPERATURE_MAX: f32 = 100.0;

/// The lowest temperature but 0: the greatest logits that policies can make, divided by it, are still told apart.
pub const TEMPERATURE_MIN: f32 = 1e-6;

/// What follows when a policy fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FaultPolicy {
    /// The response ends: fail-closed.
    #[default]
    Abort,
    /// The response goes on without the policy; the fault is reported with it.
    Base,
}

/// A policy that has been compiled and has described itself: shared by all its responses.
pub struct LoadedPolicy {
    /// The name in its manifest.
    pub name: String,
    /// The component.
    pub compiled: CompiledPolicy,
    /// What it says of itself, checked.
    pub manifest: Arc<Manifest>,
    /// Who signed it, of those whom its tenant trusts; nobody where it has no tenant, or is shipped.
    pub signers: Vec<Signer>,
}

impl LoadedPolicy {
    /// How many of the newest tokens it may take back.
    pub fn rewind_max(&self) -> usize {
        if self.manifest.needs.rewind { self.manifest.rewind_max as usize } else { 0 }
    }
}

/// A policy on a request.
#[derive(Clone)]
pub struct PolicyUse {
    /// Which.
    pub policy: Arc<LoadedPolicy>,
    /// One value a setting of its manifest, in order (`sandbox::settings::resolve`).
    pub settings: Vec<SettingValue>,
    /// The tenant requires it: it ranks before the others and vets insertions.
    pub required: bool,
    /// What follows when it fails.
    pub fault_policy: FaultPolicy,
}

/// Whoever counts what responses use: the engine tells it of each that ends, so that nobody else has to remember.
pub trait Account: Send + Sync {
    /// A response has ended, for whatever reason.
    fn count(&self, response: &Response);
}

/// What a caller asks for. Everything but the prompt has a default.
#[derive(Clone, Default)]
pub struct Request {
    /// The whole prompt, as tokens: template, special tokens and all.
    pub prompt: Vec<Token>,
    /// The user's own part of it, shown to policies that are granted `prompt`.
    pub user_prompt: Vec<Token>,
    /// Response tokens at most, 1 to [`MAX_TOKENS_MAX`]; 60 by default.
    pub max_tokens: Option<usize>,
    /// 0 (greedy), or [`TEMPERATURE_MIN`] to [`TEMPERATURE_MAX`]; 1 by default.
    pub temperature: Option<f32>,
    /// Nucleus, above 0 to 1; 1 (everything) by default.
    pub top_p: Option<f32>,
    /// Fixes every draw; 0 by default.
    pub seed: Option<u64>,
    /// Numbers independent samples of one seed; 0 by default.
    pub stream: u64,
    /// In rank order; required ones are put first.
    pub policies: Vec<PolicyUse>,
    /// The heads that policies may use.
    pub heads: Vec<HeadId>,
    /// Candidates a step at most, 1 to 256; 256 by default: policies choose below it.
    pub candidates_max: Option<usize>,
    /// Who counts what the response uses; a tenant's quotas, where it is a tenant's.
    pub account: Option<Arc<dyn Account>>,
}

/// A request that an engine can run: every option resolved, every number in range.
#[derive(Clone)]
pub struct ValidRequest {
    /// The whole prompt; not empty, every token in the vocabulary.
    pub prompt: Vec<Token>,
    /// The user's part of it.
    pub user_prompt: Vec<Token>,
    /// Response tokens at most.
    pub max_tokens: usize,
    /// 0 is greedy.
    pub temperature: f32,
    /// Nucleus share.
    pub top_p: f32,
    /// Fixes every draw.
    pub seed: u64,
    /// Of the seed's streams, this one.
    pub stream: u64,
    /// Tokens that end the response.
    pub end_of_text: Vec<Token>,
    /// The policies.
    pub policies: Vec<PolicyUse>,
    /// The heads on offer.
    pub heads: Vec<HeadId>,
    /// Candidates a step at most.
    pub candidates_max: usize,
    /// Who counts what the response uses.
    pub account: Option<Arc<dyn Account>>,
    /// What a replay repeats; empty for a request of anybody else.
    pub replay: Replay,
}

/// Why a request is refused: the caller's mistake.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum RequestError {
    /// A number out of range.
    #[error("{parameter} must be {accepted}, got {given}")]
    Range {
        /// Which.
        parameter: &'static str,
        /// What is accepted.
        accepted: String,
        /// What was given.
        given: String,
    },
    /// Nothing to go on.
    #[error("the prompt is empty: it needs at least one token")]
    EmptyPrompt,
    /// A token that the model does not have.
    #[error("the prompt holds token {token}, but the vocabulary has {vocabulary} tokens")]
    UnknownToken {
        /// The token.
        token: Token,
        /// Tokens there are.
        vocabulary: usize,
    },
    /// Longer than the model's context.
    #[error(
        "the prompt has {prompt_tokens} tokens and the response may have {max_tokens}, but the context holds {context_tokens}"
    )]
    TooLong {
        /// Tokens of the prompt.
        prompt_tokens: usize,
        /// Tokens of the response at most.
        max_tokens: usize,
        /// Tokens of the context.
        context_tokens: usize,
    },
    /// Settings that do not fit their policy.
    #[error("policy {policy:?} has {settings} settings, {given} values were given")]
    Settings {
        /// The policy.
        policy: String,
        /// Settings in its manifest.
        settings: usize,
        /// Values given.
        given: usize,
    },
}

impl Request {
    /// Checks the request against a model's vocabulary and context.
    ///
    /// # Errors
    /// [`RequestError`], for the first thing that is wrong.
    pub fn validate(self, vocabulary: &dyn Vocabulary, context_tokens: usize) -> Result<ValidRequest, RequestError> {
        let range =
            |parameter, accepted: String, given: String| Err(RequestError::Range { parameter, accepted, given });
        let max_tokens = self.max_tokens.unwrap_or(60);
        if !(1..=MAX_TOKENS_MAX).contains(&max_tokens) {
            return range("max-tokens", format!("1 to {MAX_TOKENS_MAX}"), max_tokens.to_string());
        }
        let temperature = self.temperature.unwrap_or(1.0);
        if temperature != 0.0 && !(TEMPERATURE_MIN..=TEMPERATURE_MAX).contains(&temperature) {
            let accepted = format!("0, or {TEMPERATURE_MIN} to {TEMPERATURE_MAX}");
            return range("temperature", accepted, temperature.to_string());
        }
        let top_p = self.top_p.unwrap_or(1.0);
        if !(top_p > 0.0 && top_p <= 1.0) {
            return range("top-p", "above 0 to 1".to_owned(), top_p.to_string());
        }
        let candidates_max = self.candidates_max.unwrap_or(vassal_kernels::CANDIDATES_MAX);
        if !(1..=vassal_kernels::CANDIDATES_MAX).contains(&candidates_max) {
            return range("candidates", format!("1 to {}", vassal_kernels::CANDIDATES_MAX), candidates_max.to_string());
        }
        if self.prompt.is_empty() {
            return Err(RequestError::EmptyPrompt);
        }
        if let Some(&token) =
            self.prompt.iter().chain(&self.user_prompt).find(|&&token| token as usize >= vocabulary.size())
        {
            return Err(RequestError::UnknownToken { token, vocabulary: vocabulary.size() });
        }
        let prompt_tokens = self.prompt.len();
        if prompt_tokens + max_tokens > context_tokens {
            return Err(RequestError::TooLong { prompt_tokens, max_tokens, context_tokens });
        }
        for used in &self.policies {
            let settings = used.policy.manifest.settings.len();
            if settings != used.settings.len() {
                let policy = used.policy.name.clone();
                return Err(RequestError::Settings { policy, settings, given: used.settings.len() });
            }
        }
        Ok(ValidRequest {
            prompt: self.prompt,
            user_prompt: self.user_prompt,
            max_tokens,
            temperature,
            top_p,
            seed: self.seed.unwrap_or(0),
            stream: self.stream,
            end_of_text: vocabulary.end_of_text().to_vec(),
            policies: self.policies,
            heads: self.heads,
            candidates_max,
            account: self.account,
            replay: Replay::default(),
        })
    }
}

impl ValidRequest {
    /// What a policy of this request is started with. Its seed is fixed by the request's seed, the stream
    /// and its rank, and is none of the engine's own draws.
    pub(crate) fn start_request<'a>(&'a self, used: &'a PolicyUse, stream: u64, rank: u64) -> StartRequest<'a> {
        StartRequest {
            settings: &used.settings,
            prompt: &self.user_prompt,
            candidates: self.candidates_max as u32,
            max_tokens: self.max_tokens as u32,
            temperature: self.temperature,
            top_p: self.top_p,
            seed: philox::bits(self.seed, stream, u64::MAX - rank),
        }
    }
}
