//! The contract's records and variants as the runtime lowers and lifts them; nothing else.
//!
//! These types stay inside the sandbox: `manifest.rs`, `decision.rs` and `instance.rs` turn them into the
//! host's own, checked ones. Their shapes follow `wit/policy-0.1/policy.wit` item by item, and
//! `contract.rs` compares a guest's types with that file before any of them is used.

use wasmtime::component::{ComponentType, Lift, Lower};

/// `types.step`. Handed over behind an `Arc`, so that a call that may be suspended owns it without a copy.
#[derive(ComponentType, Lower, Default)]
#[component(record)]
pub(super) struct Step {
    pub(super) kept: u32,
    pub(super) appended: Vec<u32>,
    pub(super) candidates: Vec<u32>,
    pub(super) logits: Vec<f32>,
    pub(super) prefetched: u32,
    pub(super) values: Vec<f32>,
    #[component(name = "log-normalizer")]
    pub(super) log_normalizer: f32,
    pub(super) entropy: f32,
    pub(super) ended: bool,
}

#[derive(ComponentType, Lift, Clone, Copy)]
#[component(enum)]
#[repr(u8)]
#[expect(dead_code, reason = "values are made by lifting only")]
pub(super) enum Baseline {
    #[component(name = "none")]
    None,
    #[component(name = "candidates")]
    Candidates,
    #[component(name = "weighted")]
    Weighted,
    #[component(name = "state")]
    State,
}

#[derive(ComponentType, Lift)]
#[component(record)]
pub(super) struct HeadWeight {
    pub(super) head: u32,
    pub(super) weight: f32,
    pub(super) baseline: Baseline,
}

#[derive(ComponentType, Lift)]
#[component(record)]
pub(super) struct TokenBias {
    pub(super) tokens: Vec<u32>,
    pub(super) deltas: Vec<f32>,
}

#[derive(ComponentType, Lift)]
#[component(record)]
pub(super) struct VocabularyBias {
    pub(super) bits: Vec<u64>,
    pub(super) set: f32,
    pub(super) unset: f32,
}

#[derive(ComponentType, Lift, Clone, Copy)]
#[component(enum)]
#[repr(u8)]
#[expect(dead_code, reason = "values are made by lifting only")]
pub(super) enum Tail {
    #[component(name = "keep")]
    Keep,
    #[component(name = "mask")]
    Mask,
}

#[derive(ComponentType, Lift)]
#[component(record)]
pub(super) struct Steering {
    pub(super) adjust: Vec<f32>,
    pub(super) blend: Vec<HeadWeight>,
    pub(super) bias: Option<TokenBias>,
    pub(super) vocabulary: Option<VocabularyBias>,
    pub(super) tail: Tail,
}

#[derive(ComponentType, Lift)]
#[component(record)]
pub(super) struct Splice {
    pub(super) remove: u32,
    pub(super) insert: Vec<u32>,
}

#[derive(ComponentType, Lift)]
#[component(variant)]
pub(super) enum Decision {
    #[component(name = "keep")]
    Keep,
    #[component(name = "steer")]
    Steer(Steering),
    #[component(name = "splice")]
    Splice(Splice),
    #[component(name = "stop")]
    Stop(String),
}

#[derive(ComponentType, Lower, Clone, Copy)]
#[component(variant)]
pub(super) enum ValueError {
    #[component(name = "not-now")]
    NotNow,
    #[component(name = "unknown-head")]
    UnknownHead,
    #[component(name = "invalid-tokens")]
    InvalidTokens,
    #[component(name = "budget-spent")]
    BudgetSpent,
    #[component(name = "unavailable")]
    Unavailable,
}

#[derive(ComponentType, Lift)]
#[component(record)]
pub(super) struct NumberSetting {
    pub(super) minimum: f64,
    pub(super) maximum: f64,
    pub(super) initial: f64,
}

#[derive(ComponentType, Lift)]
#[component(variant)]
pub(super) enum SettingKind {
    #[component(name = "number")]
    Number(NumberSetting),
    #[component(name = "flag")]
    Flag(bool),
    #[component(name = "choice")]
    Choice(Vec<String>),
    #[component(name = "text")]
    Text(String),
}

#[derive(ComponentType, Lift, Clone, Copy)]
#[component(enum)]
#[repr(u8)]
#[expect(dead_code, reason = "values are made by lifting only")]
pub(super) enum Scope {
    #[component(name = "tenant")]
    Tenant,
    #[component(name = "request")]
    Request,
}

#[derive(ComponentType, Lift)]
#[component(record)]
pub(super) struct Setting {
    pub(super) name: String,
    pub(super) summary: String,
    pub(super) scope: Scope,
    pub(super) kind: SettingKind,
}

#[derive(ComponentType, Lower)]
#[component(variant)]
pub(super) enum SettingValue {
    #[component(name = "number")]
    Number(f64),
    #[component(name = "flag")]
    Flag(bool),
    #[component(name = "choice")]
    Choice(String),
    #[component(name = "text")]
    Text(String),
}

#[derive(ComponentType, Lower)]
#[component(record)]
pub(super) struct NamedValue {
    pub(super) name: String,
    pub(super) value: SettingValue,
}

#[derive(ComponentType, Lower, Clone)]
#[component(record)]
pub(super) struct HeadOffer {
    pub(super) name: String,
    pub(super) kind: String,
    pub(super) spread: f32,
}

#[derive(ComponentType, Lift)]
#[component(variant)]
pub(super) enum Schedule {
    #[component(name = "never")]
    Never,
    #[component(name = "every")]
    Every(u32),
    #[component(name = "unsure")]
    Unsure(f32),
}

#[derive(ComponentType, Lift)]
#[component(record)]
pub(super) struct Plan {
    pub(super) candidates: u32,
    #[component(name = "candidates-floor")]
    pub(super) candidates_floor: f32,
    pub(super) prefetch: Vec<Schedule>,
}

#[derive(ComponentType, Lift)]
#[component(record)]
pub(super) struct Pattern {
    pub(super) bytes: Vec<u8>,
    pub(super) spellings: Vec<u32>,
    pub(super) letters: Vec<u32>,
}

#[derive(ComponentType, Lift, Clone, Copy)]
#[component(enum)]
#[repr(u8)]
#[expect(dead_code, reason = "values are made by lifting only")]
pub(super) enum Place {
    #[component(name = "whole")]
    Whole,
    #[component(name = "start")]
    Start,
    #[component(name = "end")]
    End,
    #[component(name = "anywhere")]
    Anywhere,
}

#[derive(ComponentType, Lift)]
#[component(record)]
pub(super) struct Manifest {
    pub(super) name: String,
    pub(super) version: String,
    pub(super) summary: String,
    #[component(name = "candidates-max")]
    pub(super) candidates_max: u32,
    #[component(name = "rewind-max")]
    pub(super) rewind_max: u32,
    pub(super) heads: Vec<String>,
    pub(super) settings: Vec<Setting>,
    pub(super) needs: Vec<String>,
}

#[derive(ComponentType, Lower)]
#[component(record)]
pub(super) struct Request {
    pub(super) settings: Vec<NamedValue>,
    pub(super) heads: Vec<HeadOffer>,
    pub(super) prompt: Vec<u32>,
    pub(super) candidates: u32,
    #[component(name = "vocabulary-size")]
    pub(super) vocabulary_size: u32,
    #[component(name = "end-of-text")]
    pub(super) end_of_text: Vec<u32>,
    #[component(name = "max-tokens")]
    pub(super) max_tokens: u32,
    pub(super) temperature: f32,
    #[component(name = "top-p")]
    pub(super) top_p: f32,
    pub(super) seed: u64,
}
