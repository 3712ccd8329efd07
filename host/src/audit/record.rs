//! What a record holds of a response; `line.rs` has the line that it becomes.
//!
//! Numbers that must come back exactly are written so: settings as the text that the command line takes, 32-bit
//! floats widened.
//!
//! Records are read as foreign input: unknown entries, another format and numbers out of range are
//! refused here or where a replay validates the request.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::surroundings::Surroundings;
use crate::engine::{Finish, Response, TraceEvent, TraceKind};
use crate::hex::hexadecimal;
use crate::policy_check::fault_kind;
use crate::request::{FaultPolicy, PolicyUse, ValidRequest};
use crate::sandbox::Fault;
use crate::signature::Signer;
use crate::token::Token;

/// The value of [`Record::format`]; a change of the entries' meaning changes it.
pub const FORMAT: &str = "vassal-audit-1";

/// The most bytes of a line: a response of 32,768 tokens with a splice at every step of its budget.
pub const LINE_BYTES_MAX: usize = 64 << 20;

/// What the first record has for its predecessor's hash.
pub const NO_PREVIOUS: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// One response.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// [`FORMAT`].
    pub format: String,
    /// The hash of the record before it in its file; zeros for the first.
    pub previous: String,
    /// When it was made, milliseconds since 1970 by the host's clock. A replay ignores it.
    pub unix_ms: u64,
    /// What was asked.
    pub request: RequestRecord,
    /// What else the bits depend on.
    pub host: Surroundings,
    /// What came of it.
    pub response: ResponseRecord,
    /// The hash of the line before this entry; empty until the log has written it.
    pub sha256: String,
}

/// What was asked: a request with every option resolved.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RequestRecord {
    /// The whole prompt.
    pub prompt: Vec<Token>,
    /// The user's part of it.
    pub user_prompt: Vec<Token>,
    /// Response tokens at most.
    pub max_tokens: usize,
    /// 0 is greedy. A 32-bit float, widened.
    pub temperature: f64,
    /// Nucleus. A 32-bit float, widened.
    pub top_p: f64,
    /// Fixes every draw, with
    pub seed: u64,
    /// the stream of the response.
    pub stream: u64,
    /// Tokens that end the response.
    pub end_of_text: Vec<Token>,
    /// Candidates a step at most.
    pub candidates_max: usize,
    /// Names of the heads on offer.
    pub heads: Vec<String>,
    /// In rank order.
    pub policies: Vec<PolicyRecord>,
}

/// A policy of the chain.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyRecord {
    /// In its manifest.
    pub name: String,
    /// SHA-256 of the component.
    pub sha256: String,
    /// Its shipped name or its path, where known: a hint for a replay.
    pub source: String,
    /// The heads in its manifest.
    pub heads: Vec<String>,
    /// Its settings, resolved, as `--set` takes them.
    pub settings: BTreeMap<String, String>,
    /// The tenant requires it.
    pub required: bool,
    /// `abort` or `base`.
    pub on_fault: OnFault,
    /// Who signed it, of those whom its tenant trusted; left out where there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub signers: Vec<SignerRecord>,
}

/// [`Signer`], in a record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignerRecord {
    /// The tenant's name for them.
    pub name: String,
    /// Their public key.
    pub key: String,
    /// When they signed, seconds since 1970, as they say.
    pub signed_unix: u64,
}

/// [`FaultPolicy`], in a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnFault {
    /// The response ends.
    Abort,
    /// It goes on without the policy.
    Base,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResponseRecord {
    /// The response's tokens.
    pub tokens: Vec<Token>,
    /// Of these, indices of those that a splice inserted.
    pub inserted: Vec<usize>,
    /// Why it ended.
    pub finish: FinishRecord,
    /// Random numbers used, discarded draws included.
    pub draws: u64,
    /// Decoding steps.
    pub steps: u64,
    /// Fuel of all `decide` calls, units.
    pub fuel: u64,
    /// SHA-256 of each token's probabilities, three little-endian 32-bit floats a token and zeros for an inserted
    /// one: equal only where all logits that mattered were.
    pub probabilities_sha256: String,
    /// What the policies did.
    pub events: Vec<EventRecord>,
}

/// Why a response ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum FinishRecord {
    /// The model said so.
    EndOfText,
    /// The limit.
    TokenLimit,
    /// A policy stopped it.
    Stopped {
        /// Which.
        policy: String,
        /// Why.
        reason: String,
    },
    /// Everything was forbidden.
    NothingAllowed {
        /// By whom.
        policies: Vec<String>,
    },
    /// The fault of a policy: the last of the events.
    Fault {
        /// What happened.
        fault: FaultRecord,
    },
    /// The budget of steps was spent.
    StepBudget {
        /// The budget.
        steps: u64,
    },
    /// The budget of rows was spent.
    RowBudget {
        /// The budget.
        rows: u64,
    },
    /// The caller cancelled it.
    Cancelled,
}

/// A fault, without the name under which the host had the policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FaultRecord {
    /// Its kind, of a closed set.
    pub fault: String,
    /// Whether it was the host's.
    pub host: bool,
    /// The kind in words, with its numbers.
    pub words: String,
    /// More; may be empty.
    pub detail: String,
}

/// Something that a policy did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EventRecord {
    /// The decoding step, from 1; 0 is the start.
    pub step: u64,
    /// The policy's index in the chain.
    pub policy: usize,
    /// Fuel of its call, units; null where the call did not come to its end.
    pub fuel: Option<u64>,
    /// How often its call had been given values and gone on by then.
    pub resumed: u32,
    /// What it did.
    pub what: WhatRecord,
}

/// The kinds of events.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum WhatRecord {
    /// It started.
    Start,
    /// It left a note.
    Note(String),
    /// So many notes were beyond the limit.
    NotesDropped(u64),
    /// It took tokens back and inserted others.
    Splice {
        /// Tokens taken back.
        remove: usize,
        /// Tokens that it wanted inserted.
        insert_count: usize,
        /// The first of them.
        insert: Vec<Token>,
    },
    /// It stopped the response, or refused an insertion.
    Stop(String),
    /// It failed.
    Fault(FaultRecord),
}

impl Record {
    /// A response's record, not yet in a chain. `sources` are hints by the components' hashes.
    pub fn new(
        surroundings: &Surroundings,
        request: &ValidRequest,
        sources: &BTreeMap<String, String>,
        response: &Response,
    ) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            format: FORMAT.to_owned(),
            previous: String::new(),
            unix_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
            request: RequestRecord::new(surroundings, request, sources),
            host: surroundings.clone(),
            response: ResponseRecord::new(response),
            sha256: String::new(),
        }
    }
}

impl RequestRecord {
    fn new(surroundings: &Surroundings, request: &ValidRequest, sources: &BTreeMap<String, String>) -> Self {
        let ranked = request.policies.iter().filter(|policy| policy.required);
        let ranked = ranked.chain(request.policies.iter().filter(|policy| !policy.required));
        let head = |head: &crate::engine::HeadId| surroundings.heads.get(head.0).map(|head| head.name.clone());
        Self {
            prompt: request.prompt.clone(),
            user_prompt: request.user_prompt.clone(),
            max_tokens: request.max_tokens,
            temperature: request.temperature.into(),
            top_p: request.top_p.into(),
            seed: request.seed,
            stream: request.stream,
            end_of_text: request.end_of_text.clone(),
            candidates_max: request.candidates_max,
            heads: request.heads.iter().filter_map(head).collect(),
            policies: ranked.map(|policy| PolicyRecord::new(policy, sources)).collect(),
        }
    }
}

impl PolicyRecord {
    fn new(used: &PolicyUse, sources: &BTreeMap<String, String>) -> Self {
        let manifest = &used.policy.manifest;
        let sha256 = hexadecimal(used.policy.compiled.sha256());
        let settings = manifest.settings.iter().zip(&used.settings);
        Self {
            name: used.policy.name.clone(),
            source: sources.get(&sha256).cloned().unwrap_or_default(),
            sha256,
            heads: manifest.heads.iter().map(|head| head.name.clone()).collect(),
            settings: settings.map(|(setting, value)| (setting.name.clone(), value.to_string())).collect(),
            required: used.required,
            on_fault: match used.fault_policy {
                FaultPolicy::Abort => OnFault::Abort,
                FaultPolicy::Base => OnFault::Base,
            },
            signers: used.policy.signers.iter().map(SignerRecord::new).collect(),
        }
    }
}

impl SignerRecord {
    fn new(signer: &Signer) -> Self {
        Self { name: signer.name.clone(), key: signer.key.to_string(), signed_unix: signer.signed_unix }
    }
}

impl ResponseRecord {
    /// What a record says of a response.
    pub fn new(response: &Response) -> Self {
        let inserted = response.tokens.iter().enumerate().filter(|(_, record)| record.draw.is_none());
        let mut probabilities = Sha256::new();
        for draw in response.tokens.iter().map(|record| record.draw) {
            let numbers = draw.map_or([0.0; 3], |draw| [draw.log_probability, draw.base_log_probability, draw.kl]);
            numbers.iter().for_each(|number| probabilities.update(number.to_le_bytes()));
        }
        Self {
            tokens: response.token_ids(),
            inserted: inserted.map(|(place, _)| place).collect(),
            finish: FinishRecord::new(&response.finish),
            draws: response.draws,
            steps: response.counters.steps,
            fuel: response.counters.fuel,
            probabilities_sha256: hexadecimal(&probabilities.finalize()),
            events: response.trace.iter().map(EventRecord::new).collect(),
        }
    }
}

impl FinishRecord {
    fn new(finish: &Finish) -> Self {
        match finish {
            Finish::EndOfText => Self::EndOfText,
            Finish::TokenLimit => Self::TokenLimit,
            Finish::Stopped { policy, reason } => Self::Stopped { policy: policy.clone(), reason: reason.clone() },
            Finish::NothingAllowed { policies } => Self::NothingAllowed { policies: policies.clone() },
            Finish::Faulted(fault) => Self::Fault { fault: FaultRecord::new(fault) },
            Finish::StepBudget { steps } => Self::StepBudget { steps: *steps },
            Finish::RowBudget { rows } => Self::RowBudget { rows: *rows },
            Finish::Cancelled => Self::Cancelled,
        }
    }
}

impl FaultRecord {
    fn new(fault: &Fault) -> Self {
        Self {
            fault: fault_kind(&fault.kind).to_owned(),
            host: fault.kind.is_the_hosts(),
            words: fault.kind.to_string(),
            detail: fault.detail.clone(),
        }
    }
}

impl EventRecord {
    fn new(event: &TraceEvent) -> Self {
        let what = match &event.what {
            TraceKind::Started => WhatRecord::Start,
            TraceKind::Note(message) => WhatRecord::Note(message.clone()),
            TraceKind::NotesDropped(count) => WhatRecord::NotesDropped(*count),
            TraceKind::Splice { remove, insert_count, insert } => {
                WhatRecord::Splice { remove: *remove, insert_count: *insert_count, insert: insert.clone() }
            }
            TraceKind::Stop(reason) => WhatRecord::Stop(reason.clone()),
            TraceKind::Fault(fault) => WhatRecord::Fault(FaultRecord::new(fault)),
        };
        Self { step: event.step, policy: event.place, fuel: event.fuel, resumed: event.resumed, what }
    }
}
