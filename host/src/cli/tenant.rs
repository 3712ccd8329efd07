//! `vassal tenant check`: a tenant's configuration with its policies loaded, as a request would meet them.
//!
//! What is wrong is said with its line and decides the exit code; what is right is printed resolved: every
//! policy with its rank, its rights asked and granted, and its dials as the tenant leaves them.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{HeadArguments, ModelArguments, print, print_json};
use crate::error::Error;
use crate::host::{Host, hexadecimal};
use crate::request::FaultPolicy;
use crate::sandbox::{Scope, settings};
use crate::shipped;
use crate::signature::Signer;
use crate::tenant::Tenant;

#[derive(Debug, Subcommand)]
pub(super) enum TenantCommand {
    /// Loads a tenant's configuration and its policies, and prints what they come to.
    Check(CheckArguments),
}

#[derive(Debug, Args)]
pub(super) struct CheckArguments {
    /// The configuration: docs/tenants.md.
    file: PathBuf,
    /// One JSON object on standard output, and nothing else.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    model: ModelArguments,
    #[command(flatten)]
    heads: HeadArguments,
}

pub(super) fn run(command: &TenantCommand) -> Result<(), Error> {
    let TenantCommand::Check(arguments) = command;
    let options = arguments.heads.offered_by(arguments.model.resolve()?);
    let mut host = Host::open(&options)?;
    let tenant = Tenant::open(&mut host, &arguments.file)?;
    let report = report(&mut host, &tenant)?;
    if arguments.json {
        print_json(&report)
    } else {
        print(&table(&report))
    }
    Ok(())
}

fn report(host: &mut Host, tenant: &Tenant) -> Result<Value, Error> {
    let limits = host.engine().sandbox_limits().clone();
    let mut policies = Vec::new();
    for (config, required, policy) in tenant.policies() {
        let manifest = &policy.manifest;
        let values = settings::resolve(manifest, &config.settings, Scope::Tenant, &limits)?;
        let dial = |(setting, value): (&crate::sandbox::Setting, &crate::sandbox::SettingValue)| {
            let owner = if setting.scope == Scope::Tenant { "tenant" } else { "request" };
            json!({ "name": setting.name, "value": value.to_string(), "owner": owner })
        };
        policies.push(json!({
            "name": config.name, "required": required, "component": hexadecimal(policy.compiled.sha256()),
            "on_fault": if config.fault_policy == FaultPolicy::Abort { "abort" } else { "base" },
            "shipped": shipped::ships(&config.source, policy.compiled.sha256()),
            "signed_by": policy.signers.iter().map(signer_json).collect::<Vec<_>>(),
            "needs": manifest.needs.names(), "granted": config.grants.names(),
            "heads": manifest.heads.iter().map(|head| head.name.as_str()).collect::<Vec<_>>(),
            "settings": manifest.settings.iter().zip(&values).map(dial).collect::<Vec<_>>(),
        }));
    }
    let config = tenant.config();
    Ok(json!({
        "tenant": config.name, "policies": policies,
        "limits": {
            "max_tokens": config.limits.max_tokens, "candidates": config.limits.candidates,
            "policies": config.limits.policies,
        },
        "quotas": config.quotas,
        "signatures_required": config.signatures.required,
    }))
}

fn signer_json(signer: &Signer) -> Value {
    json!({
        "name": signer.name, "key": signer.key.to_string(), "signed_unix": signer.signed_unix,
        "words": signer.to_string(),
    })
}

/// The same for people.
fn table(report: &Value) -> String {
    let list = |value: &Value| {
        let words: Vec<&str> = value.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        if words.is_empty() { "nothing".to_owned() } else { words.join(", ") }
    };
    let word = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let mut out = format!("tenant {}\n", word(&report["tenant"]));
    for policy in report["policies"].as_array().into_iter().flatten() {
        let rank = if policy["required"] == true { "required on every request" } else { "a request may name it" };
        out.push_str(&format!(
            "\n{}: {rank}; on a fault {}\n  needs {}; granted {}; heads {}\n",
            word(&policy["name"]),
            if policy["on_fault"] == "abort" { "the response ends" } else { "the response goes on without it" },
            list(&policy["needs"]),
            list(&policy["granted"]),
            list(&policy["heads"]),
        ));
        let signers = policy["signed_by"].as_array().into_iter().flatten().map(|signer| word(&signer["words"]));
        let signers = signers.collect::<Vec<_>>().join(", ");
        out.push_str(&match (policy["shipped"] == true, signers.as_str()) {
            (true, _) => "  ships with this program: needs no signature\n".to_owned(),
            (false, "") => "  signed by nobody who is trusted\n".to_owned(),
            (false, signers) => format!("  signed by {signers}\n"),
        });
        for dial in policy["settings"].as_array().into_iter().flatten() {
            let (name, value, owner) = (word(&dial["name"]), word(&dial["value"]), word(&dial["owner"]));
            out.push_str(&format!("  {name:<16} {value} (the {owner}'s)\n"));
        }
    }
    out.push_str("\na request: ");
    let limits = &report["limits"];
    out.push_str(&format!(
        "at most {} tokens, {} candidates, {} policies of its own\n",
        limits["max_tokens"], limits["candidates"], limits["policies"]
    ));
    for (name, quota) in report["quotas"].as_object().into_iter().flatten().filter(|(_, quota)| !quota.is_null()) {
        let name = name.replace('_', "-");
        out.push_str(&format!("a minute: {quota} {name}, counted by each process that keeps the tenant open\n"));
    }
    out
}
