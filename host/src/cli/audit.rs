//! `vassal audit verify` and `vassal replay`: what was recorded is checked, and made once more.
//!
//! A replay finds model, heads and policies by their hashes: among what ships, where the record says
//! they were, and where the caller points. One host serves all records of the same model and heads. What a
//! record holds and what its chain proves is [`crate::audit`]'s.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::device::DeviceArguments;
use super::{ModelArguments, print, print_json};
use crate::audit::record::{PolicyRecord, Record};
use crate::audit::surroundings::{HeadRecord, ModelRecord};
use crate::audit::{AuditError, Difference, ReplayError, Surroundings, replay, verify};
use crate::engine::{EngineError, HeadId};
use crate::error::Error;
use crate::host::{Host, HostOptions, find_policy, hexadecimal};
use crate::model::heads::HeadFile;
use crate::model::source::known_models;
use crate::request::LoadedPolicy;
use crate::sandbox::Limits;
use crate::shipped;

/// A window of a replay's clock: what the clock once did is in the record, and fuel bounds the rest.
const REPLAY_DEADLINE_MS: u64 = 60_000;

#[derive(Debug, Subcommand)]
pub(super) enum AuditCommand {
    /// Checks the chain of an audit file: every line, and that none was changed, removed, added or moved.
    Verify(VerifyArguments),
}

#[derive(Debug, Args)]
pub(super) struct VerifyArguments {
    /// The audit file.
    file: PathBuf,
    /// The SHA-256 that the last record must have: records missing at the end show only so.
    #[arg(long, value_name = "HASH")]
    expect: Option<String>,
    /// One JSON object on standard output.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct ReplayArguments {
    /// The audit file.
    file: PathBuf,
    /// Which record, counted from 1, or `all`.
    #[arg(long, value_name = "N", default_value = "all", value_parser = parse_which)]
    record: Which,
    /// A component's path, where a policy is not shipped and no longer where the record says; may repeat.
    #[arg(long = "policy", value_name = "PATH")]
    policies: Vec<PathBuf>,
    /// The model: a name or a path; by its hash where this is not given.
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
    /// A head's file; may repeat.
    #[arg(long = "head", value_name = "FILE")]
    heads: Vec<PathBuf>,
    #[command(flatten)]
    device: DeviceArguments,
    /// One JSON object on standard output.
    #[arg(long)]
    json: bool,
}

/// Which records to replay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Which {
    All,
    One(u64),
}

fn parse_which(text: &str) -> Result<Which, String> {
    match text.parse() {
        _ if text == "all" => Ok(Which::All),
        Ok(number) if number > 0 => Ok(Which::One(number)),
        _ => Err(format!("expected a number from 1 or all, got {text:?}")),
    }
}

pub(super) fn run(command: &AuditCommand) -> Result<(), Error> {
    let AuditCommand::Verify(arguments) = command;
    let verified = verify(&arguments.file, arguments.expect.as_deref());
    if arguments.json {
        print_json(&match &verified {
            Ok(verified) => json!({ "holds": true, "records": verified.records, "last": verified.last }),
            Err(error) => json!({ "holds": false, "line": wrong_line(error), "error": error.to_string() }),
        });
    }
    let verified = verified?;
    if !arguments.json {
        let (records, last) = (verified.records, verified.last);
        print(&format!("{records} records, the chain holds\nlast record: {last}\n"));
    }
    Ok(())
}

fn wrong_line(error: &AuditError) -> Option<u64> {
    if let AuditError::Line { line, .. } = error { Some(*line) } else { None }
}

/// The surroundings of a host's responses.
pub(super) fn surroundings(host: &mut Host, head_sources: &[String], limits: &Limits) -> Result<Surroundings, Error> {
    let device = vassal_kernels::Device::info(host.engine().device());
    let model = host.model();
    let model = ModelRecord {
        name: model.name.clone(),
        sha256: model.sha256.clone(),
        source: absolute(&model.path).to_string_lossy().into_owned(),
    };
    Ok(Surroundings::new(&device, limits, model, host.heads(), head_sources)?)
}

/// A path that still leads there from another folder.
pub(super) fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

pub(super) fn replay(arguments: &ReplayArguments) -> Result<(), Error> {
    let mut open: Option<Open> = None;
    let (mut reports, mut seen, mut first) = (Vec::new(), 0, None);
    for record in verify::Reader::open(&arguments.file)? {
        let record = record?;
        seen += 1;
        if !matches!(arguments.record, Which::All) && arguments.record != Which::One(seen) {
            continue;
        }
        let fits =
            |open: &&mut Open| open.host.model().sha256 == record.host.model.sha256 && open.heads == record.host.heads;
        let host = match open.as_mut().filter(fits) {
            Some(host) => host,
            // The last one's memory first: two models may not fit.
            None => {
                drop(open.take());
                open.insert(Open::new(arguments, &record)?)
            }
        };
        let (difference, tokens) = host.replay(arguments, &record)?;
        let remarks = record.host.remarks(&host.surroundings);
        if arguments.json {
            reports.push(report(seen, tokens, difference.as_ref(), &remarks));
        } else {
            let outcome = match &difference {
                None => format!("equal: {tokens} tokens, {} events", record.response.events.len()),
                Some(difference) => format!("DIFFERS in {difference}"),
            };
            print(&format!("record {seen}: {outcome}\n"));
            remarks.iter().for_each(|remark| print(&format!("  {remark}\n")));
        }
        first = first.or(difference.map(|difference| (seen, difference)));
    }
    if let Which::One(number) = arguments.record
        && number > seen
    {
        return Err(Error::Usage(format!("there is no record {number}: the file has {seen}")));
    }
    if arguments.json {
        print_json(&json!({ "equal": first.is_none(), "records": reports }));
    }
    first.map_or(Ok(()), |(record, difference)| Err(Error::Difference { record, difference }))
}

fn report(record: u64, tokens: usize, difference: Option<&Difference>, remarks: &[String]) -> Value {
    let difference =
        difference.map(|one| json!({ "what": one.what, "recorded": one.recorded, "replayed": one.replayed }));
    json!({ "record": record, "equal": difference.is_none(), "tokens": tokens, "difference": difference, "remarks": remarks })
}

/// A host for records of one model and one set of heads.
struct Open {
    host: Host,
    heads: Vec<HeadRecord>,
    surroundings: Surroundings,
    limits: Limits,
    /// Policies so far, each with the heads that it was offered.
    loaded: Vec<(Vec<HeadId>, Arc<LoadedPolicy>)>,
}

impl Open {
    fn new(arguments: &ReplayArguments, record: &Record) -> Result<Self, Error> {
        // A device that gives other bits is refused before a model is found, fetched and put on it.
        let device = arguments.device.choose()?;
        record.host.check_isa(&device.isa().map_err(EngineError::from)?)?;
        let model = match &arguments.model {
            Some(model) => model.clone(),
            None => find_model(&record.host.model)?,
        };
        let model = ModelArguments { model, device: arguments.device.clone() };
        let limits = Limits { deadline_ms: REPLAY_DEADLINE_MS, ..Limits::default() };
        let options = HostOptions { limits: limits.clone(), ..model.resolve_on(device)? };
        let heads = record.host.heads.clone();
        let mut host = Host::open_with(&options, |sha256, _| {
            // Before its heads, which would be missing only because it is another model.
            let (name, recorded) = (&record.host.model.name, &record.host.model.sha256);
            if sha256 != recorded {
                let what = format!("model {name:?}: SHA-256");
                return Err(ReplayError::Other { what, recorded: recorded.clone(), ours: sha256.to_owned() }.into());
            }
            heads.iter().map(|head| find_head(head, &arguments.heads)).collect()
        })?;
        let surroundings = surroundings(&mut host, &[], &limits)?;
        Ok(Self { host, heads, surroundings, limits, loaded: Vec::new() })
    }

    /// The first difference, if there is one, and the tokens of the replay.
    fn replay(&mut self, arguments: &ReplayArguments, record: &Record) -> Result<(Option<Difference>, usize), Error> {
        let tokenizer = self.host.tokenizer().clone();
        let context_tokens = self.host.model().context_tokens;
        // What a policy says of itself depends on the heads that it was offered: a tenant's may be fewer.
        let offered = record.request.heads.iter();
        let heads: Vec<HeadId> =
            offered.filter_map(|name| self.heads.iter().position(|head| head.name == *name).map(HeadId)).collect();
        let (host, loaded) = (&self.host, &mut self.loaded);
        let load = |policy: &PolicyRecord| -> Result<Arc<LoadedPolicy>, Error> {
            let same = |known: &&(Vec<HeadId>, Arc<LoadedPolicy>)| {
                known.0 == heads && hexadecimal(known.1.compiled.sha256()) == policy.sha256
            };
            if let Some((_, known)) = loaded.iter().find(same) {
                return Ok(known.clone());
            }
            let fresh = host.load_component(&policy.name, &find_component(policy, &arguments.policies)?, &heads)?;
            loaded.push((heads.clone(), fresh.clone()));
            Ok(fresh)
        };
        let request =
            replay::prepare(record, &self.surroundings, tokenizer.as_ref(), context_tokens, &self.limits, load)?;
        let response = self.host.generate_valid(request, |_| {})?;
        Ok((replay::compare(record, &response).err(), response.tokens.len()))
    }
}

/// Where the recorded model may be: where it was, or among the known ones.
fn find_model(model: &ModelRecord) -> Result<String, Error> {
    if Path::new(&model.source).is_file() {
        return Ok(model.source.clone());
    }
    let known = known_models().into_iter().find(|known| known.sha256 == model.sha256);
    known.map(|known| known.name).ok_or_else(|| {
        let hint = format!(", and {:?} is no file any more; --model takes its path", model.source);
        ReplayError::Missing { what: format!("model {:?}", model.name), sha256: model.sha256.clone(), hint }.into()
    })
}

/// The head with the recorded hash: shipped, where it was, or where the caller points.
fn find_head(head: &HeadRecord, given: &[PathBuf]) -> Result<HeadFile, Error> {
    let mut others = Vec::new();
    let was = (!head.source.is_empty()).then(|| PathBuf::from(&head.source)).filter(|path| path.is_file());
    let files = given.iter().cloned().chain(was).map(|path| {
        let refused = |source| Error::HeadFile { path: path.to_string_lossy().into_owned(), source };
        HeadFile::open(&path).map_err(refused)
    });
    for file in files.chain(shipped::HEADS.iter().map(|shipped| Ok(HeadFile::read(shipped.file)?))) {
        let file = file?;
        let found = HeadRecord::new(&file, String::new())?;
        if found.sha256 == head.sha256 {
            return Ok(file);
        }
        if found.name == head.name && found.kind == head.kind {
            others.push(found.sha256);
        }
    }
    let what = format!("head {:?} ({})", head.name, head.kind.name());
    Err(ReplayError::Missing { what, sha256: head.sha256.clone(), hint: hint(&others, "--head") }.into())
}

/// The component with the recorded hash: shipped, where it was, or where the caller points.
fn find_component(policy: &PolicyRecord, given: &[PathBuf]) -> Result<Vec<u8>, Error> {
    let mut others = Vec::new();
    let was = Some(PathBuf::from(&policy.source)).filter(|path| path.is_file());
    let files = given.iter().cloned().chain(was).map(|path| {
        // With its folder, so that it is no shipped name.
        find_policy(&absolute(&path).to_string_lossy()).map(|component| (None, component))
    });
    let shipped = shipped::POLICIES.iter().map(|shipped| Ok((Some(shipped.name), shipped.component.to_vec())));
    for file in files.chain(shipped) {
        let (name, component) = file?;
        let sha256 = hexadecimal(&Sha256::digest(&component));
        if sha256 == policy.sha256 {
            return Ok(component);
        }
        if name.is_none_or(|name| name == policy.name) {
            others.push(sha256);
        }
    }
    let what = format!("policy {:?}", policy.name);
    Err(ReplayError::Missing { what, sha256: policy.sha256.clone(), hint: hint(&others, "--policy") }.into())
}

/// What was found in a missing one's place, and how to name another.
fn hint(others: &[String], option: &str) -> String {
    if others.is_empty() {
        format!("; {option} takes a path")
    } else {
        format!("; found {} instead; {option} takes a path", others.join(", "))
    }
}
