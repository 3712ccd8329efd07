//! Decoding many prompts for learning: in one batch, with what is needed to judge the responses.
//!
//! Everything that is reported of guided decoding, the dial-to-KL table of a head and the evaluation,
//! comes through [`respond`], so that all of it is decoded by one engine in one way.

use std::collections::HashMap;

use super::prompts::Prompt;
use crate::engine::{Event, Response};
use crate::error::Error;
use crate::host::Host;
use crate::request::{FaultPolicy, PolicyUse, Request};

/// How prompts are answered.
#[derive(Clone)]
pub struct Decoding {
    /// The policies, set.
    pub policies: Vec<PolicyUse>,
    /// Responses a prompt.
    pub samples: usize,
    /// Response tokens at most.
    pub max_tokens: usize,
    /// Fixes every draw.
    pub seed: u64,
}

/// Answers prompts, `[prompts][samples]`; `done` is told of every finished response.
///
/// # Errors
/// The template's, the request's and the engine's.
pub fn respond(
    host: &mut Host,
    prompts: &[&Prompt],
    decoding: &Decoding,
    mut done: impl FnMut(),
) -> Result<Vec<Vec<Response>>, Error> {
    let mut places = HashMap::new();
    for (place, prompt) in prompts.iter().enumerate() {
        let request = Request {
            max_tokens: Some(decoding.max_tokens),
            seed: Some(decoding.seed),
            stream: (place * decoding.samples) as u64,
            policies: decoding.policies.clone(),
            ..host.request(&prompt.text)?
        };
        let request = host.validate(request)?;
        for id in host.engine().submit_samples(request, decoding.samples)? {
            places.insert(id, place);
        }
    }
    let mut responses: Vec<Vec<(u64, Response)>> = prompts.iter().map(|_| Vec::new()).collect();
    while !host.engine().is_idle() {
        for event in host.engine().step()? {
            if let Event::Finished { sequence, response } = event
                && let Some(&place) = places.get(&sequence)
            {
                responses[place].push((sequence.0, *response));
                done();
            }
        }
    }
    // Sequences end in any order; samples are told apart by their ids.
    let in_order = |mut group: Vec<(u64, Response)>| {
        group.sort_by_key(|(id, _)| *id);
        group.into_iter().map(|(_, response)| response).collect()
    };
    Ok(responses.into_iter().map(in_order).collect())
}

/// The shipped policy `vas` with some dials and settings.
///
/// # Errors
/// The policy's and its settings'.
pub fn vas(host: &Host, settings: &[(&str, String)]) -> Result<PolicyUse, Error> {
    use_with(host, "vas", settings.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect())
}

/// A shipped policy with settings: whoever learns is the tenant.
///
/// # Errors
/// The policy's and its settings'.
pub fn use_with(host: &Host, policy: &str, settings: Vec<(String, String)>) -> Result<PolicyUse, Error> {
    let policy = host.load_policy(policy)?;
    let of_tenant = |name: &str| {
        let setting = policy.manifest.settings.iter().find(|setting| setting.name == name);
        setting.is_some_and(|setting| setting.scope == crate::sandbox::Scope::Tenant)
    };
    let (tenant, given): (Vec<_>, Vec<_>) = settings.into_iter().partition(|(name, _)| of_tenant(name));
    host.use_policy(&policy, &tenant, &given, false, FaultPolicy::Abort)
}

/// KL in nats a token that some dials of one head cost on these prompts, one response each.
///
/// # Errors
/// As [`respond`].
pub fn dial_to_kl(
    host: &mut Host,
    head: &str,
    prompts: &[&Prompt],
    dials: &[f64],
    max_tokens: usize,
    seed: u64,
) -> Result<Vec<(f64, f64)>, Error> {
    let mut table = Vec::new();
    for &dial in dials {
        let policies = vec![vas(host, &[(head, dial.to_string())])?];
        let responses = respond(host, prompts, &Decoding { policies, samples: 1, max_tokens, seed }, || ())?;
        table.push((dial, kl_per_token(responses.iter().flatten())));
    }
    Ok(table)
}

/// Mean KL of drawn tokens, in nats a token, over all responses together.
pub fn kl_per_token<'a>(responses: impl Iterator<Item = &'a Response>) -> f64 {
    let (kl, tokens) =
        responses.fold((0.0, 0usize), |(kl, tokens), response| (kl + response.kl(), tokens + response.tokens.len()));
    kl / tokens.max(1) as f64
}

/// The dial that costs `kl` nats a token by a head's table, interpolated between its entries (KL is about
/// quadratic in the dial, so its root is interpolated); the table's last dial where it never costs as much.
pub fn dial_for_kl(table: &[(f64, f64)], kl: f64) -> f64 {
    let (mut below, root) = ((0.0, 0.0), kl.max(0.0).sqrt());
    for &(dial, cost) in table {
        let above = cost.max(0.0).sqrt();
        if above >= root && above > below.1 {
            return below.0 + (dial - below.0) * (root - below.1) / (above - below.1);
        }
        below = (dial, above);
    }
    below.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dial_is_found_between_the_entries_of_a_table() {
        let table = [(0.5, 0.04), (1.0, 0.16), (1.5, 0.36)];
        assert!((dial_for_kl(&table, 0.16) - 1.0).abs() < 1e-12);
        assert!((dial_for_kl(&table, 0.09) - 0.75).abs() < 1e-12);
        assert!((dial_for_kl(&table, 0.01) - 0.25).abs() < 1e-12);
        assert_eq!(dial_for_kl(&table, 9.0), 1.5);
        assert_eq!(dial_for_kl(&[], 1.0), 0.0);
    }
}
