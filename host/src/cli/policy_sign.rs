//! `vassal policy keygen`, `sign` and `verify`, and the signatures that `inspect` and `check` show.
//!
//! Only `verify` knows whom to trust: keys that are given, or a tenant's. The others say what is there. What is signed,
//! and why the signature lies beside the component, is [`crate::signature`]'s.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use clap::Args;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use time::Date;

use super::{print, print_json};
use crate::error::Error;
use crate::host::{hexadecimal, read_component};
use crate::shipped;
use crate::signature::{
    self, PrivateKey, PublicKey, SIGNATURES_MAX, Signature, SignatureError, SignatureFault, TrustStore, TrustedKey,
    Verdict, trust,
};
use crate::tenant::TenantError;
use crate::tenant::config::TenantConfig;

/// The name of a key that the command line trusts.
const GIVEN: &str = "--trust";

#[derive(Debug, Args)]
pub(super) struct KeygenArguments {
    /// The private key's file, made readable by you alone and never overwritten.
    #[arg(value_name = "KEY")]
    file: PathBuf,
    /// One JSON object on standard output.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct SignArguments {
    /// The component; its signatures are written beside it, with `.sig` at the end of its name.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The private key's file, of `vassal policy keygen`.
    #[arg(long, value_name = "KEY")]
    key: PathBuf,
    /// One JSON object on standard output.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct VerifyArguments {
    /// The component, with its signatures beside it.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// A public key to trust; may repeat.
    #[arg(long, value_name = "PUBLIC-KEY", required_unless_present = "tenant", conflicts_with = "tenant")]
    trust: Vec<PublicKey>,
    /// A tenant's configuration, for the keys that it trusts today.
    #[arg(long, value_name = "FILE")]
    tenant: Option<PathBuf>,
    /// One JSON object on standard output.
    #[arg(long)]
    json: bool,
}

pub(super) fn keygen(arguments: &KeygenArguments) -> Result<(), Error> {
    let public = PrivateKey::make(&arguments.file)?.public().to_string();
    if arguments.json {
        print_json(&json!({ "private": arguments.file, "public": public }));
    } else {
        print(&format!("{public}\n"));
    }
    Ok(())
}

/// How every component begins: the magic number, and the version of the component model's format.
const COMPONENT: &[u8] = b"\0asm\x0d\0\x01\0";

/// Adds a signature to those that are there. Those of other bytes, of an earlier build most likely, can be of no use
/// to anybody and are dropped.
pub(super) fn sign(arguments: &SignArguments) -> Result<(), Error> {
    let component = read_component("policy", &arguments.file.to_string_lossy())?;
    if !component.starts_with(COMPONENT) {
        let file = arguments.file.display();
        return Err(Error::Usage(format!("{file} is no component: it does not begin as one does")));
    }
    let key = PrivateKey::read(&arguments.key)?;
    let signed = Signature::of(&component, &key, trust::unix_seconds(SystemTime::now()));
    let refuse = |fault| SignatureError { policy: name_of(&arguments.file), fault };
    let there = signature::beside(&arguments.file)?.unwrap_or_default();
    let there = signature::parse(&there).map_err(refuse)?;
    let sha256: [u8; 32] = Sha256::digest(&component).into();
    let others = there.iter().filter(|other| other.key != signed.key);
    let mut signatures: Vec<Signature> = others.clone().filter(|other| other.holds(&sha256)).cloned().collect();
    let dropped = others.count() - signatures.len();
    if signatures.len() == SIGNATURES_MAX {
        return Err(refuse(SignatureFault::TooMany).into());
    }
    signatures.push(signed.clone());
    let path = signature::write(&arguments.file, &signatures)?;
    if arguments.json {
        print_json(&json!({
            "signatures": path, "sha256": hexadecimal(&sha256), "key": signed.key.to_string(),
            "signed_unix": signed.signed_unix, "count": signatures.len(), "dropped": dropped,
        }));
        return Ok(());
    }
    let mut out = format!("{}: signed by {}\n", path.display(), signed.key);
    if dropped > 0 {
        out.push_str(&format!("signatures of other bytes than these, dropped: {dropped}\n"));
    }
    print(&out);
    Ok(())
}

pub(super) fn verify(arguments: &VerifyArguments) -> Result<(), Error> {
    let keys = match &arguments.tenant {
        Some(file) => TenantConfig::read(file).map_err(TenantError::Config)?.signatures.keys,
        None => {
            let given = |key: &PublicKey| TrustedKey { name: GIVEN.to_owned(), key: *key, expires: Date::MAX };
            arguments.trust.iter().map(given).collect()
        }
    };
    let store = TrustStore { required: true, keys };
    let (file, now) = (&arguments.file, SystemTime::now());
    let component = read_component("policy", &file.to_string_lossy())?;
    let signatures = signature::beside(file)?;
    let checked = store.check(&name_of(file), &component, signatures.as_deref(), now);
    if arguments.json {
        let found = signature::parse(signatures.as_deref().unwrap_or_default()).unwrap_or_default();
        let verdicts = store.judge(&component, &found, now);
        print_json(&json!({
            "policy": file, "sha256": hexadecimal(&Sha256::digest(&component)), "trusted": checked.is_ok(),
            "signatures": verdicts.iter().map(verdict_json).collect::<Vec<_>>(),
            "error": checked.as_ref().err().map(ToString::to_string),
        }));
    }
    let signers = checked?;
    if !arguments.json {
        print(&signers.iter().map(|signer| format!("signed by {signer}\n")).collect::<String>());
    }
    Ok(())
}

fn verdict_json(verdict: &Verdict) -> Value {
    let (word, name, key, signed_unix) = match verdict {
        Verdict::Trusted(signer) => ("trusted", Some(&signer.name), signer.key, Some(signer.signed_unix)),
        Verdict::Unknown(key) => ("unknown", None, *key, None),
        Verdict::Expired(trusted) => ("expired", Some(&trusted.name), trusted.key, None),
        Verdict::Future(signer) => ("future", Some(&signer.name), signer.key, Some(signer.signed_unix)),
        Verdict::Wrong(signer) => ("wrong", Some(&signer.name), signer.key, Some(signer.signed_unix)),
    };
    json!({ "verdict": word, "name": name, "key": key.to_string(), "signed_unix": signed_unix })
}

/// The policy's name in messages.
fn name_of(file: &Path) -> String {
    file.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

/// The signatures beside a policy, without regard to whom one trusts.
pub(super) struct Found {
    shipped: bool,
    sha256: [u8; 32],
    signatures: Result<Vec<Signature>, SignatureFault>,
}

impl Found {
    /// `policy` is a shipped name or a path.
    pub(super) fn of(policy: &str, component: &[u8]) -> Result<Self, Error> {
        let bytes = signature::find(policy)?.unwrap_or_default();
        let sha256 = Sha256::digest(component).into();
        Ok(Self { shipped: shipped::ships(policy, &sha256), sha256, signatures: signature::parse(&bytes) })
    }

    /// For scripts.
    pub(super) fn json(&self) -> Value {
        let one = |signature: &Signature| {
            json!({
                "key": signature.key.to_string(), "signed_unix": signature.signed_unix,
                "holds": signature.holds(&self.sha256),
            })
        };
        let found = self.signatures.as_ref().map(|found| found.iter().map(one).collect::<Vec<_>>());
        json!({
            "shipped": self.shipped, "found": found.as_ref().ok(), "error": found.err().map(ToString::to_string),
        })
    }

    /// For people: a line a signature.
    pub(super) fn text(&self) -> String {
        let line = |words: String| format!("{:<12}{words}\n", "signed");
        match &self.signatures {
            Err(fault) => line(format!("not readably: {fault}")),
            Ok(found) if found.is_empty() && self.shipped => {
                line("needs no signature: it ships with this program".to_owned())
            }
            Ok(found) if found.is_empty() => line("by nobody".to_owned()),
            Ok(found) => found
                .iter()
                .map(|signature| {
                    let (key, day) = (signature.key, trust::day(signature.signed_unix));
                    let holds = signature.holds(&self.sha256);
                    line(if holds { format!("by {key} on {day}") } else { format!("NOT by {key}: of other bytes") })
                })
                .collect(),
        }
    }
}
