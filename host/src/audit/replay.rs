//! A response once more, from its record.
//!
//! [`prepare`] makes the request again: it refuses surroundings under which bits may differ, and policies that
//! are not the recorded ones, naming both hashes. Whoever calls runs the request, alone or among others,
//! and [`compare`] gives the first difference. Faults that were the host's are repeated where they
//! happened ([`crate::engine::Replay`]), a cancellation after the same step; guests' own faults happen by themselves.
//!
//! A record is foreign input: what it asks for is validated like any request.

use std::sync::Arc;

use super::record::{EventRecord, FinishRecord, OnFault, PolicyRecord, Record, ResponseRecord, WhatRecord};
use super::surroundings::Surroundings;
use crate::engine::{HeadId, InjectedFault, Replay, Response};
use crate::hex::hexadecimal;
use crate::request::{FaultPolicy, LoadedPolicy, PolicyUse, Request, RequestError, ValidRequest};
use crate::sandbox::{FaultKind, Limits, Scope, SettingError, settings};
use crate::token::Vocabulary;

/// Why a record is not replayed.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// Something is not what it was.
    #[error("{what} recorded {recorded}, here {ours}")]
    Other {
        /// What, by name.
        what: String,
        /// The record's.
        recorded: String,
        /// What is there.
        ours: String,
    },
    /// Something is not found.
    #[error("{what} with SHA-256 {sha256} is not here{hint}")]
    Missing {
        /// What, by name.
        what: String,
        /// The hash in the record.
        sha256: String,
        /// What was found instead, or how to name it.
        hint: String,
    },
    /// The record asks for what no request may.
    #[error("the record's request: {0}")]
    Request(#[from] RequestError),
    /// The record has a setting that its policy does not take.
    #[error("the record's settings: {0}")]
    Setting(#[from] SettingError),
    /// The record contradicts itself.
    #[error("the record says of {what}: {given}; accepted is {accepted}")]
    Invalid {
        /// Of what.
        what: &'static str,
        /// What it says.
        given: String,
        /// What it may say.
        accepted: String,
    },
}

/// The first thing in which a replay differs from its record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}: recorded {recorded}, replayed {replayed}")]
pub struct Difference {
    /// What.
    pub what: String,
    /// In the record.
    pub recorded: String,
    /// In the replay.
    pub replayed: String,
}

/// Makes a record's request again. `load` gives a policy, compiled and described with all heads of the engine;
/// `vocabulary` and `context_tokens` are the model's.
///
/// # Errors
/// What is not as recorded, what is not found, and what no request may ask.
pub fn prepare<E: From<ReplayError>>(
    record: &Record,
    ours: &Surroundings,
    vocabulary: &dyn Vocabulary,
    context_tokens: usize,
    limits: &Limits,
    mut load: impl FnMut(&PolicyRecord) -> Result<Arc<LoadedPolicy>, E>,
) -> Result<ValidRequest, E> {
    record.host.check(ours)?;
    let asked = &record.request;
    let head = |name: &String| {
        let place = record.host.heads.iter().position(|head| head.name == *name);
        let accepted = || record.host.heads.iter().map(|head| head.name.as_str()).collect::<Vec<_>>().join(", ");
        place.map(HeadId).ok_or_else(|| invalid("the heads on offer", name, accepted()))
    };
    let mut policies = Vec::with_capacity(asked.policies.len());
    for policy in &asked.policies {
        policies.push(use_policy(policy, load(policy)?, limits)?);
    }
    let request = Request {
        prompt: asked.prompt.clone(),
        user_prompt: asked.user_prompt.clone(),
        max_tokens: Some(asked.max_tokens),
        temperature: Some(asked.temperature as f32),
        top_p: Some(asked.top_p as f32),
        seed: Some(asked.seed),
        stream: asked.stream,
        policies,
        heads: asked.heads.iter().map(head).collect::<Result<_, _>>()?,
        candidates_max: Some(asked.candidates_max),
        // It was counted when it was made.
        account: None,
    };
    let valid = request.validate(vocabulary, context_tokens).map_err(ReplayError::from)?;
    if let Some(&token) = asked.end_of_text.iter().find(|&&token| token as usize >= vocabulary.size()) {
        return Err(ReplayError::from(RequestError::UnknownToken { token, vocabulary: vocabulary.size() }).into());
    }
    let cancelled = record.response.finish == FinishRecord::Cancelled;
    let replay = Replay {
        faults: injected(&record.response.events)?,
        cancelled_after: cancelled.then_some(record.response.steps),
    };
    Ok(ValidRequest { end_of_text: asked.end_of_text.clone(), replay, ..valid })
}

/// A recorded use of a policy, with the policy at hand.
fn use_policy(recorded: &PolicyRecord, policy: Arc<LoadedPolicy>, limits: &Limits) -> Result<PolicyUse, ReplayError> {
    let ours = hexadecimal(policy.compiled.sha256());
    if ours != recorded.sha256 {
        let what = format!("policy {:?}: SHA-256", recorded.name);
        return Err(ReplayError::Other { what, recorded: recorded.sha256.clone(), ours });
    }
    let heads: Vec<&str> = policy.manifest.heads.iter().map(|head| head.name.as_str()).collect();
    if heads != recorded.heads {
        let what = format!("policy {:?}: heads", recorded.name);
        return Err(ReplayError::Other { what, recorded: recorded.heads.join(", "), ours: heads.join(", ") });
    }
    let given: Vec<(&str, &str)> =
        recorded.settings.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    // Resolved settings: whoever turned them was allowed to.
    let settings = settings::resolve(&policy.manifest, &given, Scope::Tenant, limits)?;
    let fault_policy = match recorded.on_fault {
        OnFault::Abort => FaultPolicy::Abort,
        OnFault::Base => FaultPolicy::Base,
    };
    Ok(PolicyUse { policy, settings, required: recorded.required, fault_policy })
}

fn invalid(what: &'static str, given: &str, accepted: String) -> ReplayError {
    ReplayError::Invalid { what, given: crate::sandbox::words::clean(given, 64), accepted }
}

/// The host's faults among the events, with the notes of their calls.
fn injected(events: &[EventRecord]) -> Result<Vec<InjectedFault>, ReplayError> {
    let mut faults = Vec::new();
    for event in events {
        let WhatRecord::Fault(fault) = &event.what else { continue };
        if !fault.host {
            continue;
        }
        let kind = match fault.fault.as_str() {
            "deadline" => FaultKind::Deadline,
            "capacity" => FaultKind::Capacity,
            other => return Err(invalid("a fault of the host's", other, "deadline or capacity".to_owned())),
        };
        let same_call = events.iter().filter(|other| (other.step, other.policy) == (event.step, event.policy));
        let note = |event: &EventRecord| match &event.what {
            WhatRecord::Note(message) => Some(message.clone()),
            _ => None,
        };
        faults.push(InjectedFault {
            step: event.step,
            place: event.policy,
            resumed: event.resumed,
            kind,
            detail: fault.detail.clone(),
            fuel: event.fuel,
            notes: same_call.filter_map(note).collect(),
        });
    }
    Ok(faults)
}

/// Compares a record with what its replay gave: tokens, their probabilities, draws, steps, fuel, events, the end.
///
/// # Errors
/// The first difference.
pub fn compare(record: &Record, response: &Response) -> Result<(), Difference> {
    let (recorded, replayed) = (&record.response, ResponseRecord::new(response));
    let tokens = recorded.tokens.iter().zip(&replayed.tokens).position(|(a, b)| a != b);
    if let Some(place) = tokens {
        return differ(&format!("token {place}"), &recorded.tokens[place], &replayed.tokens[place]);
    }
    same("number of tokens", &recorded.tokens.len(), &replayed.tokens.len())?;
    same("inserted tokens", &recorded.inserted, &replayed.inserted)?;
    same("probabilities' SHA-256", &recorded.probabilities_sha256, &replayed.probabilities_sha256)?;
    let cancelled = recorded.finish == FinishRecord::Cancelled;
    for (place, (a, b)) in recorded.events.iter().zip(&replayed.events).enumerate() {
        same(&format!("event {place}"), a, b)?;
    }
    // A cancelled response may have been in the middle of a step, whose events a replay does not begin.
    if !cancelled || replayed.events.len() > recorded.events.len() {
        same("number of events", &recorded.events.len(), &replayed.events.len())?;
    }
    same("end", &recorded.finish, &replayed.finish)?;
    same("draws", &recorded.draws, &replayed.draws)?;
    same("steps", &recorded.steps, &replayed.steps)?;
    if cancelled { Ok(()) } else { same("fuel", &recorded.fuel, &replayed.fuel) }
}

fn same<T: PartialEq + std::fmt::Debug>(what: &str, recorded: &T, replayed: &T) -> Result<(), Difference> {
    if recorded == replayed { Ok(()) } else { differ(what, recorded, replayed) }
}

fn differ<T: std::fmt::Debug>(what: &str, recorded: &T, replayed: &T) -> Result<(), Difference> {
    let shown = |value: &T| crate::sandbox::words::clean(&format!("{value:?}"), 512);
    Err(Difference { what: what.to_owned(), recorded: shown(recorded), replayed: shown(replayed) })
}
