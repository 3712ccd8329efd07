//! `vassal bench`: what a decoding step and a sandboxed call cost on this machine.
//!
//! Everything is interleaved in one process and medians are printed, since machines are noisy. `decode`
//! times whole steps of the engine (draw and policy included) and bare passes beside them, which is what
//! `tests/compare/llama_cpp.py` sets against llama.cpp.

use std::time::Instant;

use clap::{Args, Subcommand};
use serde_json::json;
use vassal_kernels::{Device, LinearHead, ModelShape, PAGE_TOKENS, Plan, Row};

use super::learn::SEQUENCES;
use super::{ModelArguments, bench_engine, between, print, print_json};
use crate::engine::{EngineOptions, Event, Response};
use crate::error::Error;
use crate::host::{Host, HostOptions};
use crate::model::heads::{self, Description, HeadFile, HeadKind, HeadWeights, Provenance};
use crate::model::llama::Taps;
use crate::request::{FaultPolicy, Request};
use crate::sandbox::bench::{Bench, BenchError, Workload, measure, measure_load, median};
use crate::sandbox::bench_live::{Live, Percentiles, Safeties, measure_live, measure_safeties, measure_steps};
use crate::sandbox::{Limits, Sandbox};
use crate::shipped;

/// What the timed tokens follow. It does not repeat itself, or the model would be so sure of what comes next that
/// hardly a candidate passed the floor.
const PROSE: &str = "The harbour lay quiet when the last of the fishing boats came in. Old Martha, who had mended nets \
    on this quay for fifty years, looked up from her work and counted the sails, as she did every evening. Tonight there \
    was one too few. She did not say so to the children who played between the crates, nor to the young priest who had \
    come down from the church to ask about her brother's leg. Instead she put the needle away, walked to the end of the \
    stone pier, and lit the small lamp that her father had hung there. The wind had turned to the west. Far out, where \
    grey water met a grey sky, something moved, though it might have been only a bird. People say that waiting is a kind \
    of work, and that some are born to it. She pulled her shawl closer and thought of the summer when";

/// Positions in the cache before what is timed.
const PREFIX_TOKENS: usize = 128;

/// Tokens of the prefill that is timed.
const PREFILL_TOKENS: usize = 512;

/// Response tokens that are timed: the difference between a run of as many more than [`WARM_TOKENS`] and one of those.
const RUN_TOKENS: usize = 16;

/// Response tokens of the shorter run. What a response costs once, and its last token, which has no row, fall out.
const WARM_TOKENS: usize = 4;

/// Room for [`SEQUENCES`] samples of one prompt, a few pages each, and for the prefill.
const CACHE_TOKENS: usize = 4096;

/// Candidates of the look-ahead that is timed.
const CANDIDATES: usize = 20;

/// Steps that are timed one by one.
const MILLION: usize = 1_000_000;

/// Instances that are alive at once.
const LIVE: usize = 1_000;

/// Turns of calls with fuel and clock and without.
const SAFETIES_TURNS: usize = 500;

#[derive(Debug, Subcommand)]
pub(super) enum BenchCommand {
    /// A decoding step: plain, 20 rows, look-ahead, prefill, many sequences.
    Decode(DecodeArguments),
    /// A sandboxed call, in turn over many live instances.
    Sandbox(SandboxArguments),
    /// An engine full of sequences: slow neighbours, a policy each, the audit log.
    Engine(bench_engine::EngineArguments),
}

#[derive(Debug, Args)]
pub(super) struct DecodeArguments {
    #[command(flatten)]
    model: ModelArguments,
    /// Interleaved rounds; medians are printed.
    #[arg(long, default_value_t = 7, value_parser = between(1, 10_000))]
    rounds: usize,
    /// One JSON object on standard output, and nothing else.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct SandboxArguments {
    /// Live instances, asked in turn.
    #[arg(long, default_value_t = 32, value_parser = between(1, 1024))]
    sequences: usize,
    /// Timed steps of each instance.
    #[arg(long, default_value_t = 2000, value_parser = between(1, 1_000_000))]
    rounds: usize,
    /// Besides: a million steps one by one, the cost of fuel and clock, 1,000 live instances.
    #[arg(long)]
    full: bool,
    /// One JSON object on standard output, and nothing else.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(command: &BenchCommand) -> Result<(), Error> {
    match command {
        BenchCommand::Decode(arguments) => decode(arguments),
        BenchCommand::Sandbox(arguments) => sandbox(arguments),
        BenchCommand::Engine(arguments) => bench_engine::run(arguments),
    }
}

fn decode(arguments: &DecodeArguments) -> Result<(), Error> {
    let options = arguments.model.resolve()?;
    let engine = EngineOptions { sequences_max: SEQUENCES, cache_tokens: CACHE_TOKENS, ..EngineOptions::default() };
    let options = HostOptions { engine: arguments.model.device.engine(engine), ..options };
    let mut host = Host::open_with(&options, |model, shape| {
        let layer = (shape.layers * 7).div_ceil(10);
        Ok(vec![probe_head(layer, model, shape)])
    })?;
    let layer = host.engine().exit_layer();
    let vas = host.load_policy("vas")?;
    let dial = ("probe".to_owned(), "1".to_owned());
    let with = |host: &Host, floor: &str| {
        let given = [dial.clone(), ("floor".to_owned(), floor.to_owned())];
        host.use_policy(&vas, &[], &given, false, FaultPolicy::Abort)
    };
    let (look_ahead, floored) = (with(&host, "0")?, with(&host, "0.01")?);
    let prompt = prefix(&host)?;
    let mut times: [Vec<f64>; 6] = Default::default();
    let (mut rows_of_floor, mut policy_shares) = (Vec::new(), Vec::new());
    for round in 0..=arguments.rounds {
        let request = Request { prompt: prompt.clone(), seed: Some(round as u64), ..host.request("x")? };
        let plain = engine_ms(&mut host, &request)?.ms;
        let batch = batch_ms(&mut host, &request)?;
        let rows20 = rows_ms(&mut host, &prompt)?;
        let ahead = engine_ms(&mut host, &Request { policies: vec![look_ahead.clone()], ..request.clone() })?;
        let floor = engine_ms(&mut host, &Request { policies: vec![floored.clone()], ..request })?;
        let prefill = prefill_ms(&mut host, &prompt)?;
        // The first round warms up.
        if round > 0 {
            for (times, time) in times.iter_mut().zip([plain, rows20, ahead.ms, floor.ms, prefill, batch]) {
                times.push(time);
            }
            rows_of_floor.push(floor.forwards);
            policy_shares.push(ahead.policy_ms / ahead.ms);
        }
    }
    let [plain, rows20, ahead, floor, prefill, batch] = times.map(median);
    let (floor_forwards, policy_share) = (median(rows_of_floor), median(policy_shares));
    let info = host.engine().device().info();
    if arguments.json {
        print_json(&json!({
            "threads": info.threads, "isa": info.isa, "plain_ms": plain, "rows20_ms": rows20, "lookahead20_ms": ahead,
            "lookahead20_floor_ms": floor, "prefill512_ms": prefill, "head_layer": layer, "rounds": arguments.rounds,
            "lookahead20_floor_forwards": floor_forwards, "policy_share": policy_share,
            "batch_sequences": SEQUENCES, "batch_step_ms": batch,
        }));
    } else {
        print(&format!(
            "{} {}, {} threads; ms, medians of {} rounds, prefix {PREFIX_TOKENS}\n\
             plain decoding, a token                      {plain:8.2}\n\
             {CANDIDATES} rows through all layers, 1 row of logits  {rows20:8.2}  ({:.2} x plain)\n\
             look-ahead, {CANDIDATES} candidates to layer {layer}, a token {ahead:8.2}  ({:.2} x plain)\n\
             the same above 1 % base probability           {floor:8.2}  ({:.2} x plain)\n\
             prefill of {PREFILL_TOKENS} tokens                         {prefill:8.2}\n\
             a step of {SEQUENCES} sequences, as in a rollout      {batch:8.2}  ({:.2} x the tokens a second of plain)\n\
             above the floor {floor_forwards:.1} forwards a token; the sandboxed policy takes {:.2} % of a look-ahead step\n",
            info.name,
            info.isa,
            info.threads,
            arguments.rounds,
            rows20 / plain,
            ahead / plain,
            floor / plain,
            plain * SEQUENCES as f64 / batch,
            100.0 * policy_share
        ));
    }
    Ok(())
}

/// The tokens that everything timed follows.
fn prefix(host: &Host) -> Result<Vec<u32>, Error> {
    let tokens: Vec<u32> = host.tokenizer().encode(PROSE, false)?.into_iter().take(PREFIX_TOKENS).collect();
    if tokens.len() < PREFIX_TOKENS {
        let found = tokens.len();
        return Err(Error::Usage(format!(
            "the bench's text makes {found} tokens of this model, {PREFIX_TOKENS} are needed"
        )));
    }
    Ok(tokens)
}

/// What a token of a response costs.
struct PerToken {
    ms: f64,
    /// Of it, the policies'.
    policy_ms: f64,
    /// Plain rows of arithmetic.
    forwards: f64,
}

/// A token of a response after its prompt, draw and policies included: what [`RUN_TOKENS`] more of them add.
fn engine_ms(host: &mut Host, request: &Request) -> Result<PerToken, Error> {
    let (short, long) =
        (response_of(host, request, WARM_TOKENS)?, response_of(host, request, WARM_TOKENS + RUN_TOKENS)?);
    let a_token = |of: fn(&(f64, Response)) -> f64| (of(&long) - of(&short)) / RUN_TOKENS as f64;
    Ok(PerToken {
        ms: a_token(|(ms, _)| *ms),
        policy_ms: a_token(|(_, response)| response.timing.policy_seconds * 1e3),
        forwards: a_token(|(_, response)| response.counters.forward_equivalents),
    })
}

/// A response of exactly so many tokens, and the milliseconds that it took after its prompt.
fn response_of(host: &mut Host, request: &Request, tokens: usize) -> Result<(f64, Response), Error> {
    let mut request = host.validate(Request { max_tokens: Some(tokens), ..request.clone() })?;
    request.end_of_text.clear();
    let engine = host.engine();
    engine.submit(request)?;
    engine.step()?;
    let start = Instant::now();
    loop {
        for event in engine.step()? {
            if let Event::Finished { response, .. } = event {
                return Ok((start.elapsed().as_secs_f64() * 1e3, *response));
            }
        }
    }
}

/// Milliseconds of a step in which [`SEQUENCES`] samples of one prompt get a token each, draws included.
fn batch_ms(host: &mut Host, request: &Request) -> Result<f64, Error> {
    let mut of = |tokens: usize| {
        let mut request = host.validate(Request { max_tokens: Some(tokens), ..request.clone() })?;
        request.end_of_text.clear();
        let engine = host.engine();
        engine.submit_samples(request, SEQUENCES)?;
        let start = Instant::now();
        while !engine.is_idle() {
            engine.step()?;
        }
        Ok::<_, Error>(start.elapsed().as_secs_f64() * 1e3)
    };
    let (short, long) = (of(WARM_TOKENS)?, of(WARM_TOKENS + RUN_TOKENS)?);
    Ok((long - short) / RUN_TOKENS as f64)
}

/// Milliseconds of 20 rows after the prefix (a tree of depth 1) through all layers, with one row of logits.
fn rows_ms(host: &mut Host, prompt: &[u32]) -> Result<f64, Error> {
    let pages: Vec<u32> = (0..(PREFIX_TOKENS / PAGE_TOKENS) as u32).collect();
    let row = |token, position: usize, slot: usize| Row {
        token,
        position: position as u32,
        sequence: 0,
        slot: slot as u32,
        response_count: 0,
        remaining: 0.0,
    };
    let prefix: Vec<Row> = prompt.iter().enumerate().map(|(position, &token)| row(token, position, position)).collect();
    let candidates = (0..CANDIDATES).map(|place| row(prompt[place], PREFIX_TOKENS, PREFIX_TOKENS + place)).collect();
    pass_ms(host, Plan { rows: prefix, block_tables: vec![pages.clone()] })?;
    pass_ms(host, Plan { rows: candidates, block_tables: vec![pages] })
}

/// Milliseconds of a prompt through all layers, with the last row's logits.
fn prefill_ms(host: &mut Host, prompt: &[u32]) -> Result<f64, Error> {
    let pages: Vec<u32> = (0..(PREFILL_TOKENS / PAGE_TOKENS) as u32).collect();
    let rows = (0..PREFILL_TOKENS).map(|position| Row {
        token: prompt[position % prompt.len()],
        position: position as u32,
        sequence: 0,
        slot: position as u32,
        response_count: 0,
        remaining: 0.0,
    });
    pass_ms(host, Plan { rows: rows.collect(), block_tables: vec![pages] })
}

/// One pass through all layers and one row of logits.
fn pass_ms(host: &mut Host, plan: Plan) -> Result<f64, Error> {
    let (device, model, cache, logits) = host.engine().parts();
    let device_error = crate::engine::EngineError::from;
    let layers = model.shape().layers;
    let start = Instant::now();
    device.begin(&plan).map_err(device_error)?;
    model.forward(device, cache, 0..layers, &Taps::default()).map_err(device_error)?;
    device.end().map_err(device_error)?;
    model.head(device, &[(plan.rows.len() as u32 - 1, 0)], logits).map_err(device_error)?;
    Ok(start.elapsed().as_secs_f64() * 1e3)
}

fn sandbox(arguments: &SandboxArguments) -> Result<(), Error> {
    let limits = Limits { sequences: 4 * arguments.sequences as u32, ..Limits::default() };
    let sandbox = Sandbox::new(limits, super::compilation())?;
    let vas = shipped::POLICIES[0].component;
    let dial = (crate::sandbox::bench::HEAD, "1");
    // The paper's baseline: the exponentials of the weighted one are the policy's own work, not the call's.
    let evaluate = [dial, ("mode", "evaluate"), ("baseline", "candidates")];
    let blend = [dial, ("mode", "blend")];
    let bench = Bench {
        plain: Workload { component: shipped::VAS_PLAIN, settings: &blend },
        prefetched: Workload { component: vas, settings: &blend },
        suspended: Workload { component: vas, settings: &evaluate },
        sequences: arguments.sequences,
        rounds: arguments.rounds,
    };
    let rows = measure(&sandbox, &bench, &[20, 64, 256]).map_err(|error| Error::Usage(error.to_string()))?;
    let cache = std::env::temp_dir().join(format!("vassal-bench-{}", std::process::id()));
    let load = measure_load(vas, &cache);
    // Ours alone, and of no further use; what cannot be removed is the system's to clear away.
    let _ = std::fs::remove_dir_all(&cache);
    let load = load.map_err(|error| Error::Usage(error.to_string()))?;
    let full = arguments.full.then(|| full(&sandbox, &bench)).transpose()?;
    if arguments.json {
        print_json(&json!({ "rows": rows, "load": load, "full": full }));
        return Ok(());
    }
    print(
        "candidates  plain call  prefetched  suspended  start\n                    ns          ns         ns     us\n",
    );
    for row in rows {
        print(&format!(
            "{:>10}  {:>10.0}  {:>10.0}  {:>9.0}  {:>5.1}\n",
            row.candidates, row.plain_call_ns, row.prefetched_ns, row.suspended_ns, row.start_us
        ));
    }
    print(&format!(
        "load, ms: cold {:.1}, cached {:.1}, child start alone {:.1}\n",
        load.cold_ms, load.cached_ms, load.child_start_ms
    ));
    if let Some(full) = full {
        print(&full.text());
    }
    Ok(())
}

/// What takes longer to measure.
#[derive(serde::Serialize)]
struct Full {
    steps: Percentiles,
    safeties: Safeties,
    live: Option<Live>,
}

impl Full {
    fn text(&self) -> String {
        let Self { steps, safeties, live } = self;
        let live = live.map_or("live instances: this system does not say what they hold\n".to_owned(), |live| {
            let kib = live.resident_bytes / 1024.0;
            format!("{} live instances: {kib:.1} KiB resident and {:.2} mappings each\n", live.instances, live.mappings)
        });
        format!(
            "{} plain steps each by itself, ns: p50 {:.0}, p99 {:.0}, p99.9 {:.0}\n\
             fuel and clock: a call of {:.0} ns costs {:.0} ns without them ({:.3} x)\n{live}",
            steps.steps,
            steps.p50_ns,
            steps.p99_ns,
            steps.p999_ns,
            safeties.with_ns,
            safeties.without_ns,
            safeties.with_ns / safeties.without_ns
        )
    }
}

fn full(sandbox: &Sandbox, bench: &Bench<'_>) -> Result<Full, Error> {
    let failed = |error: BenchError| Error::Usage(error.to_string());
    let steps = measure_steps(sandbox, &bench.plain, bench.sequences, MILLION).map_err(failed)?;
    let safeties = measure_safeties(sandbox, &bench.plain, SAFETIES_TURNS).map_err(failed)?;
    // A sandbox of its own: memory that others have touched before would not show.
    let crowd = Limits { sequences: LIVE as u32, ..Limits::default() };
    let live = measure_live(&Sandbox::new(crowd, super::compilation())?, &bench.plain, LIVE).map_err(failed)?;
    Ok(Full { steps, safeties, live })
}

/// A look-ahead head at some layer that values everything alike: it costs what any other costs, and
/// leaves the base model's draws as they are.
fn probe_head(layer: usize, model_sha256: &str, shape: &ModelShape) -> HeadFile {
    let provenance = Provenance::made_up("vassal bench decode");
    let description = Description {
        format: heads::FORMAT.to_owned(),
        name: "probe".to_owned(),
        kind: HeadKind::LookAhead,
        layer,
        layers: shape.layers,
        hidden: shape.hidden,
        vocabulary: shape.vocabulary,
        model_sha256: model_sha256.to_owned(),
        spread: 1.0,
        token_limit: RUN_TOKENS as u32,
        text: None,
        provenance,
    };
    let zeros = vec![0.0; shape.hidden];
    let (mean, share) = (zeros.clone(), zeros.clone());
    let head = LinearHead { tap: 0, residual: zeros, mean, share, remaining: 0.0, bias: 0.0 };
    HeadFile { description, weights: HeadWeights::LookAhead(head) }
}
