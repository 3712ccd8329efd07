//! What `vassal policy check` prints: every stage with its outcome, what was asked, granted and missing, who signed, and
//! how near the component comes to each cap. The check itself is [`crate::policy_check`]'s.
//!
//! One function a form: [`report_json`] for scripts, [`report_text`] for people.

use serde_json::{Value, json};

use super::policy_sign::Found;
use crate::policy_check::{Outcome, Report, Stage};
use crate::sandbox::{Cap, Footprint, Limits, Needs};

/// `check` for scripts.
pub(super) fn report_json(source: &str, report: &Report, signatures: Option<&Found>) -> Value {
    let tally = &report.tally;
    let declined = tally.declined.iter().map(|(settings, words)| json!({ "settings": settings, "words": words }));
    json!({
        "policy": source,
        "name": report.manifest.as_ref().map(|manifest| &manifest.name),
        "refused": report.refusal().is_some(),
        "stages": stages_json(&report.stages),
        "needs": report.manifest.as_ref().map(|manifest| json!({
            "asked": manifest.needs.names(),
            "granted": report.granted.names(),
            "missing": manifest.needs.without(report.granted).names(),
        })),
        "signatures": signatures.map(Found::json),
        "caps": report.footprint.as_ref().map(|footprint| caps_json(footprint, &report.limits)),
        "responses": tally.responses,
        "steps": tally.steps,
        "value_requests": tally.value_requests,
        "notes": tally.notes,
        "declined": declined.collect::<Vec<_>>(),
        "fuel": {
            "start_max": tally.fuel_start_max,
            "start_budget": report.limits.fuel_start,
            "step_max": tally.fuel_step_max,
            "step_budget": report.limits.fuel_decide,
        },
    })
}

/// Each stage, its outcome, and of what kind a refusal is.
pub(super) fn stages_json(stages: &[Stage]) -> Vec<Value> {
    let of = |stage: &Stage| {
        let (outcome, kind) = match stage.outcome {
            Outcome::Passed => ("passed", None),
            Outcome::Refused { kind } => ("refused", Some(kind)),
            Outcome::NotReached => ("not-reached", None),
        };
        json!({ "stage": stage.name, "outcome": outcome, "kind": kind, "detail": stage.detail })
    };
    stages.iter().map(of).collect()
}

/// How near each cap a component comes.
pub(super) fn caps_json(footprint: &Footprint, limits: &Limits) -> Vec<Value> {
    let of = |cap: &Cap| json!({ "cap": cap.name(), "given": footprint.of(*cap), "limit": cap.limit(limits) });
    Cap::ALL.iter().map(of).collect()
}

/// What is asked, granted and missing, and how near each cap the component comes.
fn needs_and_caps_text(report: &Report) -> String {
    let list = |needs: Needs| if needs == Needs::default() { "none".to_owned() } else { needs.names().join(", ") };
    let mut out = String::new();
    if let Some(manifest) = &report.manifest {
        let (asked, granted) = (manifest.needs, report.granted);
        for (name, needs) in [("needs", asked), ("granted", granted), ("missing", asked.without(granted))] {
            out.push_str(&format!("{name:<10}  {}\n", list(needs)));
        }
    }
    if let Some(footprint) = &report.footprint {
        out.push_str(&caps_text(footprint, &report.limits));
    }
    out
}

/// How near each cap a component comes, a line each.
pub(super) fn caps_text(footprint: &Footprint, limits: &Limits) -> String {
    let mut out = "caps        (given / most allowed)\n".to_owned();
    for cap in Cap::ALL {
        let (given, limit) = (footprint.of(cap), cap.limit(limits));
        let share = 100.0 * given as f64 / limit.max(1) as f64;
        out.push_str(&format!("  {cap:<44}  {given:>8} / {limit:<8}  {share:>5.1} %\n"));
    }
    out
}

/// Each stage, a line each.
pub(super) fn stages_text(stages: &[Stage]) -> String {
    let mut out = String::new();
    for stage in stages {
        let outcome = match stage.outcome {
            Outcome::Passed => "passed",
            Outcome::Refused { .. } => "REFUSED",
            Outcome::NotReached => "not reached",
        };
        out.push_str(format!("{:<10}  {outcome:<11}  {}", stage.name, stage.detail).trim_end());
        if let Outcome::Refused { kind } = stage.outcome {
            out.push_str(&format!(" ({kind})"));
        }
        out.push('\n');
    }
    out
}

/// `check` for people.
pub(super) fn report_text(report: &Report, signatures: Option<&Found>) -> String {
    let mut out = stages_text(&report.stages);
    for (settings, words) in &report.tally.declined {
        out.push_str(&format!("declined to start with {settings}: {words}\n"));
    }
    let asked = report.tally.value_requests;
    if asked > 0 {
        out.push_str(&format!("asked for values {asked} times\n"));
    }
    out.push_str(&signatures.map(Found::text).unwrap_or_default());
    out.push_str(&needs_and_caps_text(report));
    out
}
