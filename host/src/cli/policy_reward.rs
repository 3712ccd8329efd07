//! What `vassal policy inspect` and `vassal policy check` say of a component that is a reward: what it is, how it is used,
//! and what a host would refuse it for.
//!
//! Rewards go the road of policies and share these commands, so that whoever is given a component need not know
//! beforehand what it is. Scoring with one is `vassal reward`'s.

use serde_json::json;

use super::policy_report::{caps_json, caps_text, stages_json, stages_text};
use super::policy_sign::Found;
use super::{print, print_json};
use crate::error::Error;
use crate::host::hexadecimal;
use crate::policy_check::reward::RewardReport;
use crate::sandbox::{CompiledReward, Guest, GuestKind, RewardManifest};

/// `inspect`, for scripts or for people.
pub(super) fn inspect(source: &str, reward: &CompiledReward, signatures: &Found, json: bool) -> Result<(), Error> {
    let RewardManifest { name, version, summary, minimum, maximum } = reward.describe()?;
    let sha256 = hexadecimal(reward.sha256());
    if json {
        print_json(&json!({
            "reward": source,
            "name": name,
            "version": version,
            "summary": summary,
            "size_bytes": reward.size_bytes(),
            "sha256": sha256,
            "imports": reward.imports(),
            "minimum": minimum,
            "maximum": maximum,
            "signatures": signatures.json(),
        }));
        return Ok(());
    }
    let mut out = format!("{name} {version}: {summary}\n");
    let mut line = |name: &str, value: &str| out.push_str(&format!("{name:<12}{value}\n"));
    line("kind", &format!("a reward, not a policy: {}", GuestKind::Reward.usage()));
    line("size", &format!("{} bytes", reward.size_bytes()));
    line("sha256", &sha256);
    out.push_str(&signatures.text());
    out.push_str(&format!("{:<12}none\n{:<12}{minimum} to {maximum}, higher is better\n", "imports", "scores"));
    print(&out);
    Ok(())
}

/// `check`, for scripts or for people.
pub(super) fn say(
    source: &str,
    name: &str,
    report: &RewardReport,
    signatures: &Found,
    json: bool,
) -> Result<(), Error> {
    if json {
        print_json(&json!({
            "reward": source,
            "name": report.manifest.as_ref().map(|manifest| &manifest.name),
            "refused": report.refusal().is_some(),
            "stages": stages_json(&report.stages),
            "signatures": signatures.json(),
            "caps": report.footprint.as_ref().map(|footprint| caps_json(footprint, &report.limits)),
            "exchanges": report.exchanges,
            "fuel": {
                "exchange_budget": report.limits.fuel_score,
                "byte_budget": report.limits.fuel_score_byte,
            },
        }));
    } else {
        let caps = report.footprint.as_ref().map(|footprint| caps_text(footprint, &report.limits));
        let kind = format!("{:<12}a reward, not a policy: {}\n", "kind", GuestKind::Reward.usage());
        print(&[stages_text(&report.stages), kind, signatures.text(), caps.unwrap_or_default()].concat());
    }
    match report.refusal() {
        Some(stage) => Err(Error::Refused { guest: Guest::reward(name), stage: stage.name }),
        None => Ok(()),
    }
}
