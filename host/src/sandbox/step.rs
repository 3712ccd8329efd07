//! What a policy is shown in a step, and what may come back.
//!
//! [`Step`] is lent by the caller and copied into buffers that serve one step after the other (`refill`), because a
//! call that may be suspended must own what it is given.

use super::bindings;
use super::decision::Decision;
use super::fault::Fault;
use crate::token::Token;
use std::sync::Arc;

/// One decoding step, as a policy sees it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step<'a> {
    /// How many of the response tokens already shown to this policy still stand.
    pub kept: u32,
    /// The response tokens committed after those.
    pub appended: &'a [Token],
    /// The candidates, `[k]`, most likely first; none where `ended`.
    pub candidates: &'a [Token],
    /// Their base logits, `[k]`, in nats.
    pub logits: &'a [f32],
    /// Which heads have a row in `values`: bit i is head i of the manifest.
    pub prefetched: u32,
    /// The prefetched values, `[heads prefetched, k]`.
    pub values: &'a [f32],
    /// ln Σ exp(logit) over the vocabulary.
    pub log_normalizer: f32,
    /// The entropy of the base model's next-token distribution, in nats.
    pub entropy: f32,
    /// Whether the response would end here.
    pub ended: bool,
}

/// How far a step has come.
#[derive(Debug, Clone, PartialEq)]
pub enum Progress {
    /// It is decided.
    Decided(Decision),
    /// The guest waits for values; answer with [`Instance::resume`](super::Instance::resume).
    Wants(ValueRequest),
    /// The guest is at fault, now and in every later step.
    Faulted(Fault),
}

/// What a suspended guest waits for: already checked, and not known to it yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ValueRequest {
    /// The values of the sequence followed by each token.
    Evaluate {
        /// Heads by index in the manifest, at least one; the same may be named twice.
        heads: Vec<u32>,
        /// Tokens of the vocabulary, 1 to the request's candidates; the same may be named twice.
        tokens: Vec<Token>,
    },
    /// The value of the sequence as it stands.
    Current {
        /// The head's index in the manifest.
        head: u32,
    },
}

impl ValueRequest {
    /// How many values answer it.
    pub fn len(&self) -> usize {
        match self {
            Self::Evaluate { heads, tokens } => heads.len() * tokens.len(),
            Self::Current { .. } => 1,
        }
    }

    /// Whether it asks for nothing, which none does.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The answer to a [`ValueRequest`].
#[derive(Debug, Clone, PartialEq)]
pub enum ValueAnswer {
    /// `[heads, tokens]` for an evaluation, one value for a current value.
    Values(Vec<f32>),
    /// The head failed.
    Unavailable,
}

/// Copies a step into the buffers of the last one.
pub(super) fn refill(buffers: &mut Arc<bindings::Step>, step: &Step<'_>) {
    // The last call has dropped its share; if it had not, fresh buffers would serve as well.
    match Arc::get_mut(buffers) {
        Some(buffers) => fill(buffers, step),
        None => {
            let mut fresh = bindings::Step::default();
            fill(&mut fresh, step);
            *buffers = Arc::new(fresh);
        }
    }
}

fn fill(buffers: &mut bindings::Step, step: &Step<'_>) {
    let bindings::Step { kept, appended, candidates, logits, prefetched, values, log_normalizer, entropy, ended } =
        buffers;
    copy(appended, step.appended);
    copy(candidates, step.candidates);
    copy(logits, step.logits);
    copy(values, step.values);
    (*kept, *prefetched, *ended) = (step.kept, step.prefetched, step.ended);
    (*log_normalizer, *entropy) = (step.log_normalizer, step.entropy);
}

pub(super) fn copy<T: Copy>(to: &mut Vec<T>, from: &[T]) {
    to.clear();
    to.extend_from_slice(from);
}
