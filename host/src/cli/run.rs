//! `vassal run`: a prompt answered, and with `--compare` twice, side by side.
//!
//! Flags become a chain of policies and one or two requests; what comes back is shown as it is decoded, then
//! as a table or, with `--json`, as one object. Start at [`run`].

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Value, json};

use super::audit::{absolute, surroundings};
use super::display::SideBySide;
use super::{HeadArguments, ModelArguments, chain, complain, parse_setting, print, print_json, process};
use crate::audit::Recorder;
use crate::engine::{Event, Finish, Response};
use crate::error::Error;
use crate::host::{Host, HostOptions};
use crate::learning::rewards::{self, Reward};
use crate::request::{FaultPolicy, PolicyUse, Request, ValidRequest};
use crate::shipped;

/// Response tokens where nobody says how many.
pub(super) const MAX_TOKENS: usize = 60;

/// The dial of `vassal run --compare` where nobody turns one.
pub(super) const COMPARE_DIAL: (&str, &str) = ("sentiment", "1.0");

#[derive(Debug, Args)]
pub(super) struct RunArguments {
    /// The prompt; a built-in one where there is none.
    pub(super) prompt: Option<String>,
    /// Answers as the base model and as aligned, side by side.
    #[arg(long)]
    pub(super) compare: bool,
    /// A shipped policy's name or a component's path; may repeat: a chain. With `--compare` and without
    /// this, `vas`.
    #[arg(long = "policy", value_name = "POLICY")]
    pub(super) policies: Vec<String>,
    /// A policy as a tenant would require it: it ranks first and vets insertions; may repeat.
    #[arg(long = "require", value_name = "POLICY")]
    pub(super) required: Vec<String>,
    /// Runs the request as a tenant's: its required policies, dials, grants, heads and limits (docs/tenants.md). Policies
    /// are then named as its configuration names them.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["required", "tenant_settings", "on_fault"])]
    pub(super) tenant: Option<PathBuf>,
    /// Turns a dial of every policy that has it, or of one: `NAME=VALUE` or `POLICY.NAME=VALUE`.
    #[arg(long = "set", value_name = "NAME=VALUE", value_parser = parse_setting)]
    pub(super) settings: Vec<(String, String)>,
    /// Turns a dial that belongs to the tenant.
    #[arg(long = "tenant-set", value_name = "NAME=VALUE", value_parser = parse_setting)]
    pub(super) tenant_settings: Vec<(String, String)>,
    /// What follows when a policy fails that is not required: `abort` ends the response, `base` goes on without it.
    #[arg(long, value_name = "WHAT", default_value = "abort", value_parser = parse_fault_policy)]
    pub(super) on_fault: FaultPolicy,
    /// Fixes every draw.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Response tokens at most; 60 without this, or the tenant's limit where that is less.
    #[arg(long)]
    pub(super) max_tokens: Option<usize>,
    /// 0 is greedy.
    #[arg(long, default_value_t = 1.0, allow_negative_numbers = true)]
    temperature: f32,
    /// Nucleus: the share of probability to draw from.
    #[arg(long, default_value_t = 1.0, allow_negative_numbers = true)]
    top_p: f32,
    /// Appends a record of each response to this file; `vassal replay` makes them once more.
    #[arg(long, value_name = "FILE")]
    audit: Option<PathBuf>,
    /// One JSON object on standard output, and nothing else.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    model: ModelArguments,
    #[command(flatten)]
    heads: HeadArguments,
}

fn parse_fault_policy(text: &str) -> Result<FaultPolicy, String> {
    match text {
        "abort" => Ok(FaultPolicy::Abort),
        "base" => Ok(FaultPolicy::Base),
        _ => Err(format!("expected abort or base, got {text:?}")),
    }
}

pub(super) fn run(arguments: &RunArguments) -> Result<(), Error> {
    let options = arguments.heads.offered_by(arguments.model.resolve()?);
    let mut host = Host::open(&options)?;
    let base = Request {
        max_tokens: Some(arguments.max_tokens.unwrap_or(MAX_TOKENS)),
        temperature: Some(arguments.temperature),
        top_p: Some(arguments.top_p),
        seed: Some(arguments.seed),
        ..host.request(arguments.prompt.as_deref().unwrap_or(shipped::PROMPT))?
    };
    let (aligned, sources) = match &arguments.tenant {
        Some(file) => chain::of_tenant(&mut host, arguments, file, base.clone())?,
        None => {
            let policies = chain::use_policies(&host, arguments)?;
            let sources = arguments.required.iter().chain(&arguments.policies).cloned().collect();
            (Request { policies, ..base.clone() }, sources)
        }
    };
    let open = |path: &PathBuf| open_recorder(&mut host, arguments, path, &aligned.policies, &sources, &options);
    let recorder = arguments.audit.as_ref().map(open).transpose()?;
    // Compared with a response of the same length.
    let base = Request { max_tokens: aligned.max_tokens, ..base };
    warn_of_limits(&host, &aligned.policies, aligned.max_tokens.unwrap_or(MAX_TOKENS));
    if arguments.compare && host.heads().is_empty() && aligned.policies.iter().all(|used| used.policy.name == "vas") {
        complain(&format!(
            "no value head fits this model (SHA-256 {}), so nothing steers: make one with `vassal rollout` and \
             `vassal fit`, or name one with --head",
            host.model().sha256
        ));
    }
    if arguments.compare {
        compare(&mut host, arguments, base, aligned, recorder)
    } else {
        single(&mut host, arguments, aligned, recorder)
    }
}

/// The audit file, before anything is answered that could not be recorded. `sources` say where the policies came
/// from, in their order.
fn open_recorder(
    host: &mut Host,
    arguments: &RunArguments,
    path: &Path,
    policies: &[PolicyUse],
    sources: &[String],
    options: &HostOptions,
) -> Result<Recorder, Error> {
    let of_file =
        |path: &Path| if path.is_file() { absolute(path).to_string_lossy().into_owned() } else { String::new() };
    let heads: Vec<String> = arguments.heads.files.iter().map(|path| of_file(path)).collect();
    let mut recorder = Recorder::open(path, surroundings(host, &heads, &options.limits)?)?;
    // What is shipped is found without a hint.
    for (name, used) in sources.iter().zip(policies) {
        let shipped = shipped::POLICIES.iter().any(|policy| policy.name == name);
        if !shipped {
            recorder.name_source(used.policy.compiled.sha256(), &of_file(Path::new(name)));
        }
    }
    if let Some(recovered) = recorder.take_recovered() {
        complain(&recovered.to_string());
    }
    Ok(recorder)
}

/// Records a response, where that is asked for.
fn record(recorder: &mut Option<Recorder>, request: &ValidRequest, response: &Response) -> Result<(), Error> {
    if let Some(recorder) = recorder {
        recorder.append(request, response)?;
        if let Some(recovered) = recorder.take_recovered() {
            complain(&recovered.to_string());
        }
    }
    Ok(())
}

/// A head was trained for one token limit; another at run time is worth a word.
fn warn_of_limits(host: &Host, policies: &[PolicyUse], max_tokens: usize) {
    let used = |name: &str| policies.iter().any(|used| used.policy.manifest.heads.iter().any(|head| head.name == name));
    for head in host.heads().iter().map(|head| &head.description) {
        if used(&head.name) && head.token_limit as usize != max_tokens {
            let (name, limit) = (&head.name, head.token_limit);
            complain(&format!(
                "the head {name} was fitted with a limit of {limit} tokens a response; this one's is {max_tokens}, for which it \
                 is less sure"
            ));
        }
    }
}

fn single(
    host: &mut Host,
    arguments: &RunArguments,
    request: Request,
    mut recorder: Option<Recorder>,
) -> Result<(), Error> {
    let request = host.validate(request)?;
    let response = host.generate_valid(request.clone(), |text| {
        process::has_text();
        if !arguments.json {
            print(&clean(text));
        }
    })?;
    record(&mut recorder, &request, &response)?;
    if arguments.json {
        let mut report = report(&response);
        report["process"] = process::report(host);
        print_json(&report);
    } else {
        print("\n\n");
        print(&table(&[("", &response)]));
        print(&process::line(host));
    }
    ended_well(&response)
}

fn compare(
    host: &mut Host,
    arguments: &RunArguments,
    base: Request,
    aligned: Request,
    mut recorder: Option<Recorder>,
) -> Result<(), Error> {
    if !arguments.json {
        print(&format!("> {}\n\n", clean(arguments.prompt.as_deref().unwrap_or(shipped::PROMPT))));
    }
    let mut block = SideBySide::new(["base", "aligned"]);
    let requests = [host.validate(base)?, host.validate(aligned)?];
    let engine = host.engine();
    let ids = [engine.submit(requests[0].clone())?, engine.submit(requests[1].clone())?];
    let mut responses: [Option<Response>; 2] = [None, None];
    // They take turns, so that each is timed alone.
    for turn in 0.. {
        if responses.iter().all(Option::is_some) {
            break;
        }
        if turn > 0 {
            let runs = if responses[turn % 2].is_none() { turn % 2 } else { 1 - turn % 2 };
            engine.set_paused(ids[runs], false);
            engine.set_paused(ids[1 - runs], true);
        }
        for event in engine.step()? {
            process::has_text();
            match event {
                Event::Text { sequence, text } if !arguments.json => block.push(usize::from(sequence == ids[1]), &text),
                Event::Text { .. } => {}
                Event::Finished { sequence, response } => responses[usize::from(sequence == ids[1])] = Some(*response),
            }
        }
    }
    let [Some(base), Some(aligned)] = responses else { return Ok(()) };
    record(&mut recorder, &requests[0], &base)?;
    record(&mut recorder, &requests[1], &aligned)?;
    if arguments.json {
        print_json(&json!({ "base": report(&base), "aligned": report(&aligned), "process": process::report(host) }));
    } else {
        block.finish();
        print("\n");
        print(&table(&[("base", &base), ("aligned", &aligned)]));
        print(&process::line(host));
        let info = vassal_kernels::Device::info(host.engine().device());
        let model = host.model();
        print(&format!(
            "{} on {} ({}, {} threads); keys and values take {} bytes a token\n",
            model.name, info.name, info.isa, info.threads, model.cache_bytes_per_token
        ));
    }
    ended_well(&aligned)
}

/// A response that a policy's fault ended is an error of the guest, after it has been shown.
fn ended_well(response: &Response) -> Result<(), Error> {
    for fault in &response.faults {
        complain(&format!("went on without a policy: {fault}"));
    }
    match &response.finish {
        Finish::Faulted(fault) => Err(Error::Fault(fault.clone())),
        _ => Ok(()),
    }
}

/// What scripts get of a response.
fn report(response: &Response) -> Value {
    let rewards: serde_json::Map<String, Value> = rewards::of_shipped_heads()
        .iter()
        .map(|reward| (reward.name().to_owned(), json!(reward.score_text(&response.text))))
        .collect();
    let counters = &response.counters;
    json!({
        "text": response.text,
        "tokens": response.token_ids(),
        "finish": response.finish.name(),
        "ended_by": match &response.finish {
            Finish::Faulted(fault) => json!(fault.to_string()),
            Finish::Stopped { policy, reason } => json!(format!("policy `{policy}`: {reason}")),
            Finish::NothingAllowed { policies } => json!(policies.join(", ")),
            _ => Value::Null,
        },
        "reward": rewards,
        "kl": response.kl(),
        "cross_entropy": response.cross_entropy(),
        "tokens_per_second": response.tokens_per_second(),
        "forwards_per_token": response.forwards_per_token(),
        "prompt_tokens": response.prompt_tokens,
        "draws": response.draws,
        "rows": {
            "prompt": counters.prompt_rows,
            "pending": counters.pending_rows,
            "candidate": counters.candidate_rows,
            "winner": counters.winner_rows,
            "logits": counters.logit_rows,
        },
        "tail_draws": counters.tail_draws,
        "evaluations": counters.evaluations,
        "fuel": counters.fuel,
        "seconds": {
            "model": response.timing.model_seconds,
            "prompt": response.timing.prompt_seconds,
            "heads": response.timing.head_seconds,
            "policies": response.timing.policy_seconds,
        },
        "faults": response.faults.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "notes": response.notes.iter().map(|note| json!({ "policy": note.policy, "step": note.step, "message": note.message })).collect::<Vec<_>>(),
    })
}

/// What people get: a row a figure, a column a response.
fn table(columns: &[(&str, &Response)]) -> String {
    let mut rows: Vec<(String, Vec<String>)> = Vec::new();
    let mut row = |name: &str, cell: &dyn Fn(&Response) -> String| {
        rows.push((name.to_owned(), columns.iter().map(|(_, response)| cell(response)).collect()));
    };
    for reward in rewards::of_shipped_heads() {
        row(reward.name(), &|response| format!("{:.3}", reward.score_text(&response.text)));
    }
    row("KL from the base, nats", &|response| format!("{:.2}", response.kl()));
    row("cross-entropy, nats a token", &|response| format!("{:.2}", response.cross_entropy()));
    row("tokens", &|response| format!("{} ({})", response.tokens.len(), response.finish.name()));
    row("tokens a second", &|response| format!("{:.1}", response.tokens_per_second()));
    row("forwards a token", &|response| format!("{:.2}", response.forwards_per_token()));
    row("time in model / heads / policies", &|response| {
        let timing = &response.timing;
        let total = (timing.model_seconds + timing.head_seconds + timing.policy_seconds).max(f64::MIN_POSITIVE);
        let share = |seconds: f64| 100.0 * seconds / total;
        format!(
            "{:.1} / {:.1} / {:.2} %",
            share(timing.model_seconds),
            share(timing.head_seconds),
            share(timing.policy_seconds)
        )
    });
    let mut out = String::new();
    if columns.len() > 1 {
        out.push_str(&format!("{:<34}", ""));
        columns.iter().for_each(|(title, _)| out.push_str(&format!("{title:>24}")));
        out.push('\n');
    }
    for (name, cells) in rows {
        out.push_str(&format!("{name:<34}"));
        cells.iter().for_each(|cell| out.push_str(&format!("{cell:>24}")));
        out.push('\n');
    }
    out
}

/// A model's words may hold control characters; a terminal must not obey them.
fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' && c != '\t' { '\u{FFFD}' } else { c }).collect()
}
