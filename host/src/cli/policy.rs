//! `vassal policy`: what a policy is, whether a host would take it, and a component made of its crate.
//!
//! None of them needs a model: `inspect` and `check` offer a policy the shipped heads or those named, and
//! `check` drives it with recorded steps (see [`crate::policy_check`]). A component may be a reward as well: what is said
//! of one is `policy_reward.rs`'s. Keys and signatures are `policy_sign.rs`'s.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::policy_report::{report_json, report_text};
use super::policy_reward;
use super::policy_sign::{self, Found, KeygenArguments, SignArguments, VerifyArguments};
use super::{parse_setting, print, print_json};
use crate::error::Error;
use crate::host::{find_policy, hexadecimal};
use crate::model::gguf::Gguf;
use crate::model::heads::HeadFile;
use crate::model::source::Models;
use crate::model::tokenizer::Tokenizer;
use crate::policy_build;
use crate::policy_check::recorded::Recording;
use crate::policy_check::reward::RewardCheck;
use crate::policy_check::{Check, CheckError, Report};
use crate::sandbox::{
    CompiledPolicy, ContractError, Guest, GuestKind, HeadOffer, Limits, LoadError, Manifest, Needs, Sandbox, Scope,
    Setting, SettingKind,
};
use crate::shipped;

/// What a head may be, to a policy.
const KINDS: [&str; 3] = ["value", "probability", "log-probability"];

/// What `--grant` takes for no right at all.
const NO_NEED: &str = "none";

/// The spread of a head that only has a name: a usual one for rewards between 0 and 1.
const SPREAD: f32 = 0.05;

#[derive(Debug, Subcommand)]
pub(super) enum PolicyCommand {
    /// Says what a policy is: its dials, what it imports and needs, its size and hash; and what a reward is.
    Inspect(InspectArguments),
    /// Loads a policy, drives it with recorded steps, and says what a host would refuse it for (exit code 3); the same
    /// of a reward, which scores exchanges.
    Check(CheckArguments),
    /// Builds a component of a policy's or a reward's crate.
    Build(BuildArguments),
    /// Makes a key to sign policies with, and prints its public half.
    Keygen(KeygenArguments),
    /// Signs a component, beside its file.
    Sign(SignArguments),
    /// Says whether somebody who is trusted has signed a component (exit code 3: nobody has).
    Verify(VerifyArguments),
}

/// The policy, and what it is offered.
#[derive(Debug, Args)]
struct PolicyArguments {
    /// A shipped policy's name, or a component's path.
    #[arg(value_name = "FILE|NAME")]
    policy: String,
    /// A head to offer: a name, `NAME=KIND` (value, probability or log-probability), or a head's file; may
    /// repeat. The shipped heads where none is given.
    #[arg(long = "head", value_name = "HEAD")]
    heads: Vec<String>,
    /// One JSON object on standard output, and nothing else.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct InspectArguments {
    #[command(flatten)]
    policy: PolicyArguments,
}

#[derive(Debug, Args)]
pub(super) struct CheckArguments {
    #[command(flatten)]
    policy: PolicyArguments,
    /// Turns a dial, as its tenant would, for all steps that are not about that dial; may repeat.
    #[arg(long = "set", value_name = "NAME=VALUE", value_parser = parse_setting)]
    settings: Vec<(String, String)>,
    /// A right that the policy would have: prompt, insert, rewind, stop, or none; may repeat. All where none is
    /// given.
    #[arg(long = "grant", value_name = "NEED")]
    granted: Vec<String>,
    /// Takes the whole vocabulary of this model, in place of the recorded tokens: what `text` costs is then
    /// what it will cost. It must be the model of the recorded steps.
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct BuildArguments {
    /// The crate's folder.
    #[arg(value_name = "DIR", default_value = ".")]
    dir: PathBuf,
    /// The file to write; the package's name, in its folder, where none is given.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

pub(super) fn run(command: &PolicyCommand) -> Result<(), Error> {
    match command {
        PolicyCommand::Inspect(arguments) => inspect(&arguments.policy),
        PolicyCommand::Check(arguments) => check(arguments),
        PolicyCommand::Build(arguments) => build(arguments),
        PolicyCommand::Keygen(arguments) => policy_sign::keygen(arguments),
        PolicyCommand::Sign(arguments) => policy_sign::sign(arguments),
        PolicyCommand::Verify(arguments) => policy_sign::verify(arguments),
    }
}

impl PolicyArguments {
    /// The component, and the name that messages use.
    fn component(&self) -> Result<(String, Vec<u8>), Error> {
        Ok((self.name(), find_policy(&self.policy)?))
    }

    fn name(&self) -> String {
        let stem = Path::new(&self.policy).file_stem();
        stem.map_or(self.policy.clone(), |stem| stem.to_string_lossy().into_owned())
    }

    /// The heads on offer.
    fn offered(&self) -> Result<Vec<HeadOffer>, Error> {
        let mut offered: Vec<HeadOffer> = Vec::new();
        if self.heads.is_empty() {
            for shipped in &shipped::HEADS {
                let offer = offer_of(&HeadFile::read(shipped.file)?);
                // A reward has a head of either kind; a policy is offered one of them.
                if offered.iter().all(|other| other.name != offer.name) {
                    offered.push(offer);
                }
            }
        }
        for head in &self.heads {
            let offer = named_head(head)?;
            if offered.iter().any(|other| other.name == offer.name) {
                return Err(Error::Usage(format!("--head {}: offered twice", offer.name)));
            }
            offered.push(offer);
        }
        Ok(offered)
    }
}

fn offer_of(head: &HeadFile) -> HeadOffer {
    let (name, spread) = (head.description.name.clone(), head.description.spread as f32);
    HeadOffer { name, kind: KINDS[0].to_owned(), spread }
}

/// A head by name, `NAME=KIND` or file.
fn named_head(given: &str) -> Result<HeadOffer, Error> {
    if given.ends_with(".safetensors") || given.contains(std::path::MAIN_SEPARATOR) {
        return Ok(offer_of(&HeadFile::open(Path::new(given))?));
    }
    let (name, kind) = given.split_once('=').unwrap_or((given, KINDS[0]));
    if !KINDS.contains(&kind) {
        return Err(Error::unknown("kind of head", kind, KINDS.into_iter()));
    }
    if name.is_empty() || name.len() > Limits::default().name_bytes {
        return Err(Error::Usage(format!("--head {given:?}: a name has 1 to {} bytes", Limits::default().name_bytes)));
    }
    for shipped in &shipped::HEADS {
        let offer = offer_of(&HeadFile::read(shipped.file)?);
        if offer.name == name && kind == offer.kind {
            return Ok(offer);
        }
    }
    Ok(HeadOffer { name: name.to_owned(), kind: kind.to_owned(), spread: SPREAD })
}

fn inspect(arguments: &PolicyArguments) -> Result<(), Error> {
    let (name, component) = arguments.component()?;
    let offered = arguments.offered()?;
    let sandbox = Sandbox::new(Limits { sequences: 2, ..Limits::default() }, super::compilation())?;
    let signatures = Found::of(&arguments.policy, &component)?;
    let compiled = match sandbox.compile(&name, &component) {
        Err(LoadError::Contract { error: ContractError::OtherKind { is: GuestKind::Reward, .. }, .. }) => {
            let reward = sandbox.compile_reward(&name, &component)?;
            return policy_reward::inspect(&arguments.policy, &reward, &signatures, arguments.json);
        }
        compiled => compiled?,
    };
    let manifest = compiled.describe(&offered, Needs::ALL)?;
    if arguments.json {
        let mut report = inspection(&arguments.policy, &compiled, &manifest, &offered);
        report["signatures"] = signatures.json();
        print_json(&report);
    } else {
        print(&inspection_text(&compiled, &manifest, &offered, &signatures));
    }
    Ok(())
}

/// `inspect` for scripts.
fn inspection(source: &str, compiled: &CompiledPolicy, manifest: &Manifest, offered: &[HeadOffer]) -> Value {
    let names = |heads: &[HeadOffer]| heads.iter().map(|head| head.name.clone()).collect::<Vec<_>>();
    json!({
        "policy": source,
        "name": manifest.name,
        "version": manifest.version,
        "summary": manifest.summary,
        "size_bytes": compiled.size_bytes(),
        "sha256": hexadecimal(compiled.sha256()),
        "call": if compiled.imports_values() { "suspended" } else { "plain" },
        "imports": compiled.imports(),
        "needs": manifest.needs.names(),
        "candidates_max": manifest.candidates_max,
        "rewind_max": manifest.rewind_max,
        "heads": names(&manifest.heads),
        "heads_offered": names(offered),
        "settings": manifest.settings.iter().map(setting_json).collect::<Vec<_>>(),
    })
}

fn setting_json(setting: &Setting) -> Value {
    let mut value = json!({ "name": setting.name, "summary": setting.summary, "owner": owner(setting) });
    let kind = match &setting.kind {
        SettingKind::Number { minimum, maximum, initial } => {
            json!({ "kind": "number", "minimum": minimum, "maximum": maximum, "initial": initial })
        }
        SettingKind::Flag(initial) => json!({ "kind": "flag", "initial": initial }),
        SettingKind::Choice(words) => json!({ "kind": "choice", "words": words, "initial": words.first() }),
        SettingKind::Text(initial) => json!({ "kind": "text", "initial": initial }),
    };
    if let (Some(value), Value::Object(kind)) = (value.as_object_mut(), kind) {
        value.extend(kind);
    }
    value
}

fn owner(setting: &Setting) -> &'static str {
    match setting.scope {
        Scope::Tenant => "tenant",
        Scope::Request => "request",
    }
}

/// `inspect` for people.
fn inspection_text(
    compiled: &CompiledPolicy,
    manifest: &Manifest,
    offered: &[HeadOffer],
    signatures: &Found,
) -> String {
    let list = |names: Vec<&str>| if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    let heads = |heads: &[HeadOffer]| list(heads.iter().map(|head| head.name.as_str()).collect());
    let mut out = format!("{} {}: {}\n", manifest.name, manifest.version, manifest.summary);
    out.push_str(&format!("{:<12}{} bytes\n{:<12}", "size", compiled.size_bytes(), "sha256"));
    out.push_str(&format!("{}\n{}", hexadecimal(compiled.sha256()), signatures.text()));
    let mut line = |name: &str, value: String| out.push_str(&format!("{name:<12}{value}\n"));
    line("imports", list(compiled.imports().iter().map(String::as_str).collect()));
    line("call", if compiled.imports_values() { "may be suspended, to ask for values" } else { "plain" }.to_owned());
    line("needs", list(manifest.needs.names()));
    line("heads", format!("{} (offered: {})", heads(&manifest.heads), heads(offered)));
    line("candidates", format!("{} a step at most", manifest.candidates_max));
    line("rewind", format!("{} tokens at most", manifest.rewind_max));
    line("dials", if manifest.settings.is_empty() { "none".to_owned() } else { String::new() });
    for setting in &manifest.settings {
        let takes = match &setting.kind {
            SettingKind::Number { minimum, maximum, initial } => format!("{minimum} to {maximum}, initially {initial}"),
            SettingKind::Flag(initial) => format!("true or false, initially {initial}"),
            SettingKind::Choice(words) => format!("{}; initially the first", words.join(" | ")),
            SettingKind::Text(initial) => format!("text, initially {initial:?}"),
        };
        let owner = match setting.scope {
            Scope::Tenant => "  [the tenant's]",
            Scope::Request => "",
        };
        out.push_str(&format!("  {:<16}  {takes}{owner}\n  {:<16}  {}\n", setting.name, "", setting.summary));
    }
    out
}

fn check(arguments: &CheckArguments) -> Result<(), Error> {
    let rights = granted(&arguments.granted)?;
    let (name, component) = match arguments.policy.component() {
        // A file that is too large is not read. It is refused like any other.
        Err(Error::Policy(error)) => {
            return show_check(&arguments.policy, &arguments.policy.name(), &Report::unread(&error, rights), None);
        }
        found => found?,
    };
    let offered = arguments.policy.offered()?;
    let vocabulary = arguments.model.as_deref().map(vocabulary_of).transpose()?;
    let check = Check {
        name: &name,
        component: &component,
        offered: &offered,
        granted: rights,
        settings: &arguments.settings,
        vocabulary: vocabulary.map(|tokenizer| std::sync::Arc::new(tokenizer) as _),
        compilation: super::compilation(),
    };
    let signatures = Found::of(&arguments.policy.policy, &component)?;
    let failed = |error| match error {
        CheckError::Sandbox(error) => error.into(),
        CheckError::Setting(error) => error.into(),
        CheckError::Compiler(error) => LoadError::Compiler { guest: Guest::policy(&name), error }.into(),
        CheckError::Host(fault) => Error::Fault(fault),
        CheckError::Recording(error) => Error::Usage(error.to_string()),
    };
    let report = check.run().map_err(failed)?;
    if report.kind == GuestKind::Reward {
        let check = RewardCheck { name: &name, component: &component, compilation: super::compilation() };
        let report = check.run().map_err(failed)?;
        return policy_reward::say(&arguments.policy.policy, &name, &report, &signatures, arguments.policy.json);
    }
    show_check(&arguments.policy, &name, &report, Some(&signatures))
}

/// A check's report; a refusal is an error of the guest, after it has been shown.
fn show_check(asked: &PolicyArguments, name: &str, report: &Report, signatures: Option<&Found>) -> Result<(), Error> {
    if asked.json {
        print_json(&report_json(&asked.policy, report, signatures));
    } else {
        print(&report_text(report, signatures));
    }
    match report.refusal() {
        Some(stage) => Err(Error::Refused { guest: Guest::policy(name), stage: stage.name }),
        None => Ok(()),
    }
}

/// The rights of these names.
fn granted(names: &[String]) -> Result<Needs, Error> {
    if names.is_empty() {
        return Ok(Needs::ALL);
    }
    let mut granted = Needs::default();
    for name in names.iter().filter(|name| *name != NO_NEED) {
        let all = Needs::ALL.names().into_iter().chain([NO_NEED]).collect::<Vec<_>>();
        let unknown = || Error::unknown("need", name, all.iter().copied());
        *granted.by_name(name).ok_or_else(unknown)? = true;
    }
    Ok(granted)
}

/// The vocabulary of the model that the steps were recorded with.
fn vocabulary_of(model: &str) -> Result<Tokenizer, Error> {
    let gguf = Gguf::open(&Models::from_env()?.find(model)?)?;
    let sha256 = hexadecimal(&gguf.sha256()?);
    let checked = Recording::built_in().and_then(|recording| recording.check_model(&sha256));
    checked.map_err(|error| Error::Usage(error.to_string()))?;
    Ok(Tokenizer::from_gguf(&gguf)?)
}

fn build(arguments: &BuildArguments) -> Result<(), Error> {
    let out = match &arguments.out {
        Some(out) => out.clone(),
        None => policy_build::default_out(&arguments.dir)?,
    };
    let built = policy_build::build(&arguments.dir, &out)?;
    print(&format!("{}: {} bytes\n", built.path.display(), built.size_bytes));
    Ok(())
}
