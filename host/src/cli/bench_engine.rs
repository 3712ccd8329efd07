//! `vassal bench engine`: what policies, slow neighbours and the audit log cost an engine full of sequences.
//!
//! Three measurements. *Neighbours*: a step of 16 well-behaved sequences on the model, without and beside 16 whose
//! policy (`--slow`, such as `tests/spinner`) works to its limit in every step. *Throughput*: tokens a second, by the median step, of 64 and
//! 256 sequences with a policy each against none, on a tiny model whose step is short enough to show it, and of 64 on the
//! model itself. *Audit*: what recording a response costs for each of its tokens. The runs that are compared take turns.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use clap::Args;
use serde_json::{Value, json};
use vassal_kernels::Format;

use super::audit::surroundings;
use super::{ModelArguments, between, print, print_json};
use crate::audit::Recorder;
use crate::engine::{EngineOptions, Event, Response};
use crate::error::Error;
use crate::host::{Host, HostOptions};
use crate::model::synthetic::SyntheticModel;
use crate::request::{FaultPolicy, LoadedPolicy, PolicyUse, Request, ValidRequest};
use crate::sandbox::Limits;
use crate::sandbox::bench::{median, percentile};

/// Well-behaved sequences, and as many slow ones.
const NEIGHBOURS: usize = 16;

/// Tokens of a response beside neighbours.
const LONG_TOKENS: usize = 120;

/// Steps of those that are not timed: policies are started and prompts are read in them.
const LONG_WARM_STEPS: usize = 40;

/// Tokens of a response on the tiny model.
const TOKENS: usize = 60;

/// Tokens of a response on the model itself.
const WHOLE_TOKENS: usize = 20;

/// Steps of either that are not timed.
const WARM_STEPS: usize = 3;

/// Sequences of the throughput's runs.
const BATCHES: [usize; 2] = [64, 256];

/// What everybody is asked.
const PROMPT: &str = "Tell me about the sea.";

#[derive(Debug, Args)]
pub(super) struct EngineArguments {
    #[command(flatten)]
    model: ModelArguments,
    /// A policy that is slow; without it there is no figure for neighbours.
    #[arg(long, value_name = "FILE")]
    slow: Option<PathBuf>,
    /// Rounds in which what is compared takes turns.
    #[arg(long, default_value_t = 9, value_parser = between(1, 1_000))]
    rounds: usize,
    /// One JSON object on standard output, and nothing else.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &EngineArguments) -> Result<(), Error> {
    let options = arguments.model.resolve()?;
    let neighbours = arguments.slow.as_deref().map(|slow| neighbours(arguments, &options, slow)).transpose()?;
    let folder = std::env::temp_dir().join(format!("vassal-bench-{}", std::process::id()));
    let tiny = std::fs::create_dir_all(&folder)
        .map_err(|source| unwritten(&folder, source))
        .and_then(|()| tiny(arguments, &options, &folder));
    // Ours alone, and of no further use; what cannot be removed is the system's to clear away.
    let _ = std::fs::remove_dir_all(&folder);
    let (mut throughput, audit_us) = tiny?;
    throughput.push(whole(arguments, &options)?);
    if arguments.json {
        let neighbours = neighbours.map_or(Value::Null, |found| found.json());
        let throughput: Vec<_> = throughput.iter().map(Throughput::json).collect();
        print_json(&json!({ "neighbours": neighbours, "throughput": throughput, "audit_us_per_token": audit_us }));
        return Ok(());
    }
    match neighbours {
        Some(found) => print(&found.text()),
        None => print("neighbours: not measured without --slow\n"),
    }
    throughput.iter().for_each(|found| print(&found.text()));
    print(&format!("audit: {audit_us:.2} us a token, written to the file\n"));
    Ok(())
}

/// Steps of well-behaved sequences, in milliseconds, ascending: without and beside slow ones.
struct Neighbours {
    alone: Vec<f64>,
    beside: Vec<f64>,
    /// Whether their tokens were the same.
    unchanged: bool,
    /// Tokens of the slow ones meanwhile.
    slow_tokens: usize,
    /// Whether they were slow at all.
    slow: bool,
}

impl Neighbours {
    fn ratio(&self) -> f64 {
        percentile(&self.beside, 0.99) / percentile(&self.alone, 0.99)
    }

    fn json(&self) -> Value {
        let of = |steps: &[f64]| json!({ "p50_ms": percentile(steps, 0.5), "p99_ms": percentile(steps, 0.99) });
        json!({
            "sequences": NEIGHBOURS, "alone": of(&self.alone), "beside": of(&self.beside), "p99_ratio": self.ratio(),
            "tokens_unchanged": self.unchanged, "steps": [self.alone.len(), self.beside.len()], "slow_tokens": self.slow_tokens,
            "slow": self.slow,
        })
    }

    fn text(&self) -> String {
        let line = |name: &str, steps: &[f64]| {
            let (p50, p99) = (percentile(steps, 0.5), percentile(steps, 0.99));
            format!("  {name:<28} p50 {p50:7.2} ms   p99 {p99:7.2} ms\n")
        };
        format!(
            "a step of {NEIGHBOURS} well-behaved sequences\n{}{}  p99 {:.2} x; tokens {}; {} steps against {}; {} tokens of the slow ones meanwhile\n",
            line("alone", &self.alone),
            line("beside as many slow ones", &self.beside),
            self.ratio(),
            if self.unchanged { "unchanged" } else { "CHANGED" },
            self.beside.len(),
            self.alone.len(),
            self.slow_tokens,
        ) + if self.slow { "" } else { "  the policy was never slow: this is what as many ordinary sequences cost\n" }
    }
}

fn neighbours(arguments: &EngineArguments, options: &HostOptions, slow: &Path) -> Result<Neighbours, Error> {
    // Room for all at once: a request that waited would have its prompt read in a step that is timed.
    let cache_tokens = 2 * NEIGHBOURS * 512;
    let engine = EngineOptions { sequences_max: 2 * NEIGHBOURS, cache_tokens, ..EngineOptions::default() };
    let engine = arguments.model.device.engine(engine);
    let mut host = open(HostOptions { engine, ..options.clone() })?;
    let guard = guard(&host)?;
    let loaded = host.load_policy(&slow.to_string_lossy())?;
    let slow = host.use_policy(&loaded, &[], &[], false, FaultPolicy::Abort)?;
    let mut found = Neighbours { alone: Vec::new(), beside: Vec::new(), unchanged: true, slow_tokens: 0, slow: false };
    for round in 0..=arguments.rounds {
        let good = requests(&host, &vec![Some(guard.clone()); NEIGHBOURS], LONG_TOKENS)?;
        // The slow ones shall not come to their end before.
        let slow = requests(&host, &vec![Some(slow.clone()); NEIGHBOURS], 3 * LONG_TOKENS)?;
        let alone = timed(&mut host, &good, &[])?;
        let beside = timed(&mut host, &good, &slow)?;
        found.unchanged &= alone.tokens() == beside.tokens();
        // The first round warms up.
        if round > 0 {
            found.alone.extend(&alone.steps[LONG_WARM_STEPS..]);
            found.beside.extend(&beside.steps[LONG_WARM_STEPS..]);
            found.slow_tokens += beside.others;
        }
    }
    found.slow = loaded.compiled.is_slow();
    found.alone.sort_by(f64::total_cmp);
    found.beside.sort_by(f64::total_cmp);
    Ok(found)
}

/// Tokens a second of many sequences.
struct Throughput {
    model: &'static str,
    sequences: usize,
    with: f64,
    without: f64,
    ratio: f64,
}

impl Throughput {
    fn json(&self) -> Value {
        json!({
            "model": self.model, "sequences": self.sequences, "policy_tokens_per_second": self.with,
            "base_tokens_per_second": self.without, "ratio": self.ratio,
        })
    }

    fn text(&self) -> String {
        format!(
            "{:>3} sequences of {}, tokens/s: {:.0} with a policy each, {:.0} without ({:.3} x)\n",
            self.sequences, self.model, self.with, self.without, self.ratio
        )
    }
}

/// Throughput of many sequences on a host's model, with a policy each and without, by the median step of a run; the ratio
/// is the median of those of runs that followed one another. What other work the machine has comes and goes, and so weighs
/// least.
fn throughput(
    host: &mut Host,
    model: &'static str,
    sequences: usize,
    tokens: usize,
    rounds: usize,
) -> Result<Throughput, Error> {
    let with = requests(host, &vec![Some(guard(host)?); sequences], tokens)?;
    let without = requests(host, &vec![None; sequences], tokens)?;
    let mut rates: [Vec<f64>; 2] = Default::default();
    for round in 0..=rounds {
        for (requests, rates) in [&with, &without].into_iter().zip(&mut rates) {
            let run = timed(host, requests, &[])?;
            // The first round warms up.
            if round > 0 {
                rates.push(sequences as f64 / median(run.steps[WARM_STEPS..].to_vec()) * 1e3);
            }
        }
    }
    let ratio = median(rates[0].iter().zip(&rates[1]).map(|(with, without)| with / without).collect());
    let [with, without] = rates.map(median);
    Ok(Throughput { model, sequences, with, without, ratio })
}

/// Throughput of the model itself, whose steps are as long as they really are.
fn whole(arguments: &EngineArguments, options: &HostOptions) -> Result<Throughput, Error> {
    let sequences = BATCHES[0];
    let engine = EngineOptions { sequences_max: sequences, cache_tokens: sequences * 128, ..EngineOptions::default() };
    let engine = arguments.model.device.engine(engine);
    let mut host = open(HostOptions { engine, ..options.clone() })?;
    throughput(&mut host, "the model", sequences, WHOLE_TOKENS, arguments.rounds)
}

/// Throughput with and without policies, and microseconds of audit a token, on a tiny model.
fn tiny(arguments: &EngineArguments, options: &HostOptions, folder: &Path) -> Result<(Vec<Throughput>, f64), Error> {
    let model = folder.join("tiny.gguf");
    let tiny = SyntheticModel {
        layers: 4,
        hidden: 256,
        heads: 4,
        kv_heads: 2,
        feed_forward: 704,
        vocabulary: 8192,
        embedding: Format::Q8_0,
        ..SyntheticModel::default()
    };
    tiny.write(&model).map_err(|source| unwritten(&model, source))?;
    let most = BATCHES[BATCHES.len() - 1];
    let engine = EngineOptions { sequences_max: most, cache_tokens: most * 128, ..EngineOptions::default() };
    let engine = arguments.model.device.engine(engine);
    let mut host = open(HostOptions { model, model_sha256: None, engine, ..options.clone() })?;
    let guard = guard(&host)?;
    let throughput = |sequences| throughput(&mut host, "a tiny model", sequences, TOKENS, arguments.rounds);
    let throughput = BATCHES.into_iter().map(throughput).collect::<Result<Vec<_>, _>>()?;
    let recorded = requests(&host, &vec![Some(guard); BATCHES[0]], TOKENS)?;
    let run = timed(&mut host, &recorded, &[])?;
    let audit_us = audit(&mut host, &folder.join("audit.jsonl"), &run)?;
    Ok((throughput, audit_us))
}

/// Microseconds a token that recording took.
fn audit(host: &mut Host, file: &Path, run: &Run) -> Result<f64, Error> {
    let surroundings = surroundings(host, &[], &Limits::default())?;
    let mut recorder = Recorder::open(file, surroundings)?;
    let start = Instant::now();
    for (request, response) in run.requests.iter().zip(&run.responses) {
        recorder.append(request, response)?;
    }
    let tokens: usize = run.responses.iter().map(|response| response.tokens.len()).sum();
    Ok(start.elapsed().as_secs_f64() * 1e6 / tokens as f64)
}

/// A run of requests to their end.
struct Run {
    requests: Vec<ValidRequest>,
    responses: Vec<Response>,
    /// Milliseconds of each step.
    steps: Vec<f64>,
    /// Tokens of the others meanwhile.
    others: usize,
}

impl Run {
    fn tokens(&self) -> Vec<Vec<u32>> {
        let tokens = |response: &Response| response.tokens.iter().map(|record| record.token).collect();
        self.responses.iter().map(tokens).collect()
    }
}

/// Runs requests to their end beside others, which are cancelled then.
fn timed(host: &mut Host, requests: &[ValidRequest], others: &[ValidRequest]) -> Result<Run, Error> {
    let engine = host.engine();
    let mut submit = |requests: &[ValidRequest]| -> Result<Vec<_>, Error> {
        requests.iter().map(|request| Ok(engine.submit(request.clone())?)).collect()
    };
    let (ids, others) = (submit(requests)?, submit(others)?);
    let mut responses: Vec<Option<Response>> = ids.iter().map(|_| None).collect();
    let mut steps = Vec::new();
    while responses.iter().any(Option::is_none) {
        let start = Instant::now();
        let events = engine.step()?;
        steps.push(start.elapsed().as_secs_f64() * 1e3);
        for event in events {
            let Event::Finished { sequence, response } = event else { continue };
            if let Some(place) = ids.iter().position(|id| *id == sequence) {
                responses[place] = Some(*response);
            }
        }
    }
    let cancelled = others.into_iter().filter_map(|id| match engine.cancel(id)? {
        Event::Finished { response, .. } => Some(response.tokens.len()),
        Event::Text { .. } => None,
    });
    let others = cancelled.sum();
    Ok(Run { requests: requests.to_vec(), responses: responses.into_iter().flatten().collect(), steps, others })
}

/// Requests of exactly so many tokens, each with its policy.
fn requests(host: &Host, policies: &[Option<PolicyUse>], tokens: usize) -> Result<Vec<ValidRequest>, Error> {
    let request = |(seed, policy): (usize, &Option<PolicyUse>)| {
        let policies = policy.iter().cloned().collect();
        let request = Request { policies, seed: Some(seed as u64), max_tokens: Some(tokens), ..host.request(PROMPT)? };
        let mut request = host.validate(request)?;
        request.end_of_text.clear();
        Ok(request)
    };
    policies.iter().enumerate().map(request).collect()
}

/// A host without heads: no measurement here needs one.
fn open(options: HostOptions) -> Result<Host, Error> {
    Host::open_with(&HostOptions { heads: Vec::new(), ..options }, |_, _| Ok(Vec::new()))
}

/// A policy as many requests have it: it watches for some phrases.
fn guard(host: &Host) -> Result<PolicyUse, Error> {
    let guard: Arc<LoadedPolicy> = host.load_policy("guard")?;
    let phrases = ("phrases".to_owned(), "company secret\nwire the money".to_owned());
    host.use_policy(&guard, &[phrases], &[], true, FaultPolicy::Abort)
}

fn unwritten(path: &Path, source: std::io::Error) -> Error {
    Error::File { what: "the bench's own file", path: path.display().to_string(), source }
}
