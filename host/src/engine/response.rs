//! What comes back of a sequence: events while it runs, one response at its end.
//!
//! Everything that is reported is counted here, never estimated: tokens with their probabilities,
//! rows by kind, draws from the tail, evaluations, and the time spent in model, heads and policies.

use super::trace::TraceEvent;
use crate::sandbox::Fault;
use crate::token::Token;

/// One sequence of an engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(pub u64);

/// What a step of the engine brought about.
#[derive(Debug, Clone)]
pub enum Event {
    /// More text that can no longer be taken back, in whole characters.
    Text {
        /// Whose.
        sequence: SequenceId,
        /// The text.
        text: String,
    },
    /// The sequence has ended and is gone from the engine.
    Finished {
        /// Which.
        sequence: SequenceId,
        /// All there is to know of it.
        response: Box<Response>,
    },
}

/// Why a response ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Finish {
    /// The model said so.
    EndOfText,
    /// The request's token limit.
    TokenLimit,
    /// A policy stopped it.
    Stopped {
        /// The policy's name.
        policy: String,
        /// Its reason, capped and cleaned.
        reason: String,
    },
    /// The policies together forbade every token.
    NothingAllowed {
        /// Those that forbade something in that step.
        policies: Vec<String>,
    },
    /// A policy failed and its fault policy is `abort`.
    Faulted(Fault),
    /// Splices and rewinds used up the budget of steps ([`Limits::steps_max`](crate::sandbox::Limits::steps_max)).
    StepBudget {
        /// The budget, in steps.
        steps: u64,
    },
    /// Steps and the candidate rows that policies wanted in them used up the budget of rows
    /// ([`Limits::rows_max`](crate::sandbox::Limits::rows_max)): only where tokens were taken back.
    RowBudget {
        /// The budget, in rows.
        rows: u64,
    },
    /// The caller cancelled it.
    Cancelled,
}

impl Finish {
    /// A short name for reports: `end-of-text`, `token-limit`, `stopped`, `nothing-allowed`, `fault`,
    /// `step-budget`, `row-budget` or `cancelled`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::EndOfText => "end-of-text",
            Self::TokenLimit => "token-limit",
            Self::Stopped { .. } => "stopped",
            Self::NothingAllowed { .. } => "nothing-allowed",
            Self::Faulted(_) => "fault",
            Self::StepBudget { .. } => "step-budget",
            Self::RowBudget { .. } => "row-budget",
            Self::Cancelled => "cancelled",
        }
    }
}

/// One response token and how it came about.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TokenRecord {
    /// The token.
    pub token: Token,
    /// How it was drawn; none where a splice inserted it.
    pub draw: Option<DrawRecord>,
}

/// The probabilities of a drawn token, in nats.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DrawRecord {
    /// ln of the probability with which it was drawn.
    pub log_probability: f32,
    /// ln of its probability under the base model at temperature 1, untruncated.
    pub base_log_probability: f32,
    /// KL of the distribution it was drawn from, from the base at the request's temperature.
    pub kl: f32,
}

/// What a sequence cost.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Counters {
    /// Decoding steps: rounds of decisions, and one for every inserted token.
    pub steps: u64,
    /// Rows of prompts that ran through all layers.
    pub prompt_rows: u64,
    /// Rows after the prompt that ran as pending rows: tail draws, insertions, replays, and every token of plain decoding.
    pub pending_rows: u64,
    /// Candidate rows, up to the exit layer.
    pub candidate_rows: u64,
    /// Winners' rows, from the exit layer on.
    pub winner_rows: u64,
    /// Rows of logits, the prompt's last included.
    pub logit_rows: u64,
    /// Tokens drawn from outside the valued candidates, while values were used.
    pub tail_draws: u64,
    /// Calls of `evaluate` that reached the host.
    pub evaluations: u64,
    /// Multiply-adds of weight matrices after the prompt, in units of one plain row (all layers and the LM head).
    pub forward_equivalents: f64,
    /// Fuel that all policies used.
    pub fuel: u64,
}

/// Seconds of wall clock, a shared pass divided by rows.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Timing {
    /// Layers, logits, top-k and draw, prompt included.
    pub model_seconds: f64,
    /// The part of `model_seconds` spent on the prompt.
    pub prompt_seconds: f64,
    /// Value heads.
    pub head_seconds: f64,
    /// Policies, the host's side of the call included.
    pub policy_seconds: f64,
}

impl Timing {
    /// Seconds after the prompt: what tokens a second are counted by.
    pub fn decode_seconds(&self) -> f64 {
        self.model_seconds - self.prompt_seconds + self.head_seconds + self.policy_seconds
    }
}

/// A note that a policy left for the tenant's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// The policy's name.
    pub policy: String,
    /// The decoding step.
    pub step: u64,
    /// Capped and cleaned.
    pub message: String,
}

/// A finished response.
#[derive(Debug, Clone)]
pub struct Response {
    /// The text, without special tokens.
    pub text: String,
    /// The response's tokens, end of text included.
    pub tokens: Vec<TokenRecord>,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Why it ended.
    pub finish: Finish,
    /// Random numbers used.
    pub draws: u64,
    /// What it cost.
    pub counters: Counters,
    /// How long it took.
    pub timing: Timing,
    /// Policies that were dropped on the way (fault policy `base`).
    pub faults: Vec<Fault>,
    /// The policies' notes.
    pub notes: Vec<Note>,
    /// What the policies did, in order of steps and of rank; faults and notes among it.
    pub trace: Vec<TraceEvent>,
}

impl Response {
    /// Total KL of what was drawn from, from the base, in nats.
    pub fn kl(&self) -> f64 {
        self.draws_of_tokens().map(|draw| f64::from(draw.kl)).sum()
    }

    /// Mean of −ln base probability over the drawn tokens, in nats a token; 0 where none was drawn.
    pub fn cross_entropy(&self) -> f64 {
        let (mut sum, mut count) = (0.0, 0usize);
        for draw in self.draws_of_tokens() {
            sum -= f64::from(draw.base_log_probability);
            count += 1;
        }
        if count == 0 { 0.0 } else { sum / count as f64 }
    }

    /// Forward-equivalents a response token: 1 is plain decoding.
    pub fn forwards_per_token(&self) -> f64 {
        self.counters.forward_equivalents / self.tokens.len().max(1) as f64
    }

    /// Response tokens a second after the prompt.
    pub fn tokens_per_second(&self) -> f64 {
        let seconds = self.timing.decode_seconds();
        if seconds > 0.0 { self.tokens.len() as f64 / seconds } else { 0.0 }
    }

    /// The token ids.
    pub fn token_ids(&self) -> Vec<Token> {
        self.tokens.iter().map(|record| record.token).collect()
    }

    fn draws_of_tokens(&self) -> impl Iterator<Item = &DrawRecord> {
        self.tokens.iter().filter_map(|record| record.draw.as_ref())
    }
}
