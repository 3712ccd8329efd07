//! `vassal evaluate`: what guided decoding buys, as a report in three files.
//!
//! What is measured, and how, is [`crate::learning::report`]'s; here are flags, a progress bar and the files. What was decoded
//! is kept as it comes, so the same command goes on after a kill. Start at [`evaluate`].

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Args;
use sha2::{Digest, Sha256};

use super::evaluate_inputs::Inputs;
use super::learn::{bar, file_sha256};
use super::{ModelArguments, complain, print, print_json};
use crate::engine::EngineOptions;
use crate::error::Error;
use crate::files;
use crate::host::{Host, HostOptions, cores, hexadecimal};
use crate::learning::decoding::use_with;
use crate::learning::prompts::{Prompt, Split};
use crate::learning::report::assemble::{Material, assemble};
use crate::learning::report::methods::{Wanted, head_kinds};
use crate::learning::report::run::{Progress, Runner, head_path};
use crate::learning::report::samples::{FORMAT, Header, Journal};
use crate::learning::report::tuned::Tuned;
use crate::learning::report::within_state::Amount;
use crate::learning::report::{About, HeadReport, Report, heads, html, markdown, picture};
use crate::learning::rewards::SharedReward;
use crate::learning::rollouts::{Rollout, Rollouts};
use crate::model::heads::HeadFile;
use crate::shipped;

/// Sequences that decode at once.
const SEQUENCES: usize = 24;

/// Nats a token that dials are set to cost, seeds, and dials along a side of the grid, where nothing else is asked for.
const KL: [f64; 3] = [0.25, 0.12, 0.06];
const SEEDS: [u64; 3] = [11, 12, 13];
const GRID: usize = 5;

#[derive(Debug, Args)]
pub(super) struct EvaluateArguments {
    /// The base model's samples of these prompts: a file that `vassal rollout --splits test --samples 64` wrote.
    #[arg(long, value_name = "FILE")]
    pub(super) pool: PathBuf,
    /// The prompts file that it was made from; the project's own where there is none.
    #[arg(long, value_name = "FILE")]
    pub(super) prompts: Option<PathBuf>,
    /// Another file whose tune prompts dials are calibrated on; those of the prompts file where there is none.
    #[arg(long, value_name = "FILE")]
    pub(super) tune_prompts: Option<PathBuf>,
    /// A reward, as `sentiment` or `short:length=20`; may repeat. A grid of dials is of the first two.
    #[arg(long = "reward", default_values = ["sentiment", "simplicity"])]
    pub(super) rewards: Vec<String>,
    /// A reward that guides nothing and judges what another one guides, as `helpful=helpful-gold.safetensors`; may repeat.
    #[arg(long = "judge", value_name = "REWARD=JUDGE", value_parser = super::parse_setting)]
    pub(super) judges: Vec<(String, String)>,
    /// A model that was tuned for a reward, as `dpo:sentiment:0.1=dpo.gguf` (method dpo or ppo, reward, strength), compared with what
    /// is guided; may repeat.
    #[arg(long = "tuned", value_name = "METHOD:REWARD:STRENGTH=FILE", value_parser = parse_tuned)]
    pub(super) tuned: Vec<Tuned>,
    /// Dials are set to cost this many nats a token, measured on tune prompts; the first is the main one.
    #[arg(long, value_name = "NATS", value_delimiter = ',', default_values_t = KL, value_parser = parse_nats)]
    pub(super) kl: Vec<f64>,
    /// Seeds; a guided response for each prompt and seed.
    #[arg(long, value_delimiter = ',', default_values_t = SEEDS)]
    pub(super) seeds: Vec<u64>,
    /// Dials along each side of the grid of two rewards; 0 for none.
    #[arg(long, default_value_t = GRID, value_parser = super::between(0, 9))]
    grid: usize,
    /// 60 prompts, one seed, one divergence, no grid: some minutes.
    #[arg(long)]
    pub(super) quick: bool,
    /// Decodes nothing: a report, marked as partial, of what an evaluation that was stopped has decoded so far.
    #[arg(long)]
    partial: bool,
    /// Candidates of a step.
    #[arg(long, default_value_t = 20)]
    candidates: usize,
    /// What becomes of the tokens that are not candidates: keep or mask.
    #[arg(long, default_value = "keep")]
    tail: String,
    /// Only the first of the split's prompts.
    #[arg(long, value_name = "N")]
    pub(super) limit: Option<usize>,
    /// The split: test, or tune while settings are chosen.
    #[arg(long, default_value = "test", value_parser = super::learn::parse_split)]
    pub(super) split: Split,
    /// Prompts are told by their ids, not by their texts: for prompts that the report's readers may not be given.
    #[arg(long)]
    show_ids: bool,
    /// Heads from this folder (as `vassal fit --out` writes them) instead of the shipped ones.
    #[arg(long, value_name = "FOLDER")]
    heads: Option<PathBuf>,
    /// The folder that gets report.html, report.json, report.md and report.svg, and what they are made of.
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
    /// The report as one JSON object on standard output, and nothing else.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    pub(super) model: ModelArguments,
}

impl EvaluateArguments {
    /// Of heads that were just learned, with everything else as it is by default.
    pub(super) fn of_learned(
        (pool, heads, out): (PathBuf, PathBuf, PathBuf),
        (prompts, rewards): (Option<PathBuf>, Vec<String>),
        quick: bool,
        model: ModelArguments,
    ) -> Self {
        Self {
            pool,
            prompts,
            tune_prompts: None,
            rewards,
            judges: Vec::new(),
            tuned: Vec::new(),
            kl: KL.to_vec(),
            seeds: SEEDS.to_vec(),
            grid: GRID,
            quick,
            partial: false,
            candidates: 20,
            tail: "keep".to_owned(),
            limit: None,
            split: Split::Test,
            show_ids: false,
            heads: Some(heads),
            out,
            json: false,
            model,
        }
    }
}

fn parse_tuned(text: &str) -> Result<Tuned, String> {
    let (words, path) = super::parse_setting(text)?;
    Tuned::parse(&words, Path::new(&path))
}

fn parse_nats(text: &str) -> Result<f64, String> {
    let nats = text.parse::<f64>().ok().filter(|nats| nats.is_finite() && *nats > 0.0);
    nats.ok_or_else(|| format!("{text:?} is no number of nats above 0"))
}

pub(super) fn evaluate(arguments: &EvaluateArguments) -> Result<(), Error> {
    let inputs = Inputs::read(arguments)?;
    let Inputs { rollouts, judging, .. } = &inputs;
    let (groups, prompts) = inputs.groups(arguments)?;
    let folder_failed = |source| Error::File { what: "folder", path: arguments.out.display().to_string(), source };
    std::fs::create_dir_all(&arguments.out).map_err(folder_failed)?;

    let runner = runner(arguments, &inputs, &prompts)?;
    let mut host = runner.open("look-ahead")?;
    rollouts.require_model(&host.model().sha256)?;
    // What every setting has in common is checked before minutes are spent on the heads.
    use_with(&host, "vas", runner.common.clone())?;
    let header = header(arguments, &runner, (rollouts, judging), &host)?;
    let mut journal = Journal::open(&arguments.out.join("decoded.jsonl"), &header)?;
    if !arguments.partial {
        runner.check_tuned(&host, &journal)?;
    }
    let (settings, responses) = runner.amount();
    if arguments.partial && journal.done().iter().all(|decoded| decoded.setting.tune) {
        return Err(Error::Usage(format!(
            "nothing of this evaluation has been decoded yet: {settings} settings are missing; leave --partial out"
        )));
    }
    let heads = judged_heads(arguments, &runner, &mut host, (rollouts, &groups), &header)?;
    let about = about(arguments, &header, rollouts, &mut host);
    let layers: Vec<usize> = host.heads().iter().map(|head| head.description.layer).collect();
    let value_forwards: Vec<f64> = layers.iter().map(|&layer| host.engine().forwards_below(layer)).collect();
    drop(host);

    if !arguments.partial {
        let progress = bar(responses, "responses");
        runner.run(&mut journal, &mut |told| match told {
            Progress::Setting(setting) => progress.set_message(words(&setting.method, &setting.dials)),
            Progress::Response => progress.inc(1),
            Progress::Done(count) => progress.inc(count as u64),
        })?;
        progress.finish_and_clear();
    }
    let scored = runner.scored();
    let pools = scored.iter().map(|reward| rollouts.score(&groups, &**reward)).collect::<Result<Vec<_>, _>>()?;
    let lengths: Vec<f64> = groups.iter().flatten().map(|rollout| rollout.tokens.len() as f64).collect();
    let done = journal.done().iter().filter(|decoded| !decoded.setting.tune).count();
    let report = assemble(Material {
        about: About { settings_missing: settings.saturating_sub(done), ..about },
        rewards: &scored,
        judges: judging,
        wanted: &runner.wanted,
        prompts: &prompts,
        journal: &journal,
        pools: &pools,
        value_forwards: &value_forwards,
        show_ids: arguments.show_ids,
        pool_tokens: crate::learning::statistics::mean(&lengths),
        heads,
        seed: arguments.seeds.first().copied().unwrap_or(0),
    });
    write(arguments, &report)
}

fn runner<'a>(arguments: &EvaluateArguments, inputs: &'a Inputs, prompts: &[&'a Prompt]) -> Result<Runner<'a>, Error> {
    let engine = EngineOptions { sequences_max: SEQUENCES, cache_tokens: SEQUENCES * 512, ..EngineOptions::default() };
    let engine = arguments.model.device.engine(engine);
    let common = [("candidates", arguments.candidates.to_string()), ("tail", arguments.tail.clone())];
    Ok(Runner {
        options: HostOptions { engine, ..arguments.model.resolve()? },
        heads: arguments.heads.clone(),
        prompts: prompts.to_vec(),
        tune: inputs.tune(),
        rewards: inputs.rewards.clone(),
        judges: inputs.judges.clone(),
        tuned: hashed(&arguments.tuned)?,
        wanted: wanted(arguments, &inputs.rewards),
        common: common.map(|(name, value)| (name.to_owned(), value)).to_vec(),
        max_tokens: inputs.rollouts.header.token_limit as usize,
    })
}

/// Tuned models with the hashes of their files, by which the journal knows them.
fn hashed(tuned: &[Tuned]) -> Result<Vec<Tuned>, Error> {
    let of = |tuned: &Tuned| Ok(Tuned { sha256: file_sha256("tuned model", &tuned.path)?, ..tuned.clone() });
    tuned.iter().map(of).collect()
}

fn wanted(arguments: &EvaluateArguments, rewards: &[SharedReward]) -> Wanted {
    let first = |numbers: usize| if arguments.quick { 1 } else { numbers };
    Wanted {
        rewards: rewards.iter().map(|reward| reward.name().to_owned()).collect(),
        kls: different(&arguments.kl[..first(arguments.kl.len())]),
        seeds: different(&arguments.seeds[..first(arguments.seeds.len())]),
        grid: if arguments.quick { 0 } else { arguments.grid },
    }
}

/// Each once, in the order in which they come first.
fn different<T: PartialEq + Copy>(all: &[T]) -> Vec<T> {
    let first = |(place, one): (usize, &T)| (!all[..place].contains(one)).then_some(*one);
    all.iter().enumerate().filter_map(first).collect()
}

/// What heads are judged by.
fn amount(arguments: &EvaluateArguments) -> Amount {
    match arguments.quick {
        true => Amount { states: 40, tokens: 4, continuations: 8 },
        false => Amount { states: 100, tokens: 5, continuations: 16 },
    }
}

fn header(
    arguments: &EvaluateArguments,
    runner: &Runner<'_>,
    (rollouts, judging): (&Rollouts, &[(String, String)]),
    host: &Host,
) -> Result<Header, Error> {
    let mut hashes = BTreeMap::new();
    match &arguments.heads {
        Some(folder) => {
            for reward in &runner.rewards {
                for kind in head_kinds() {
                    let path = head_path(folder, reward.name(), kind);
                    if path.is_file() {
                        hashes.insert(format!("{}.{kind}", reward.name()), file_sha256("head", &path)?);
                    }
                }
            }
        }
        None => {
            let shipped = shipped::HEADS.iter();
            hashes.extend(shipped.map(|head| (head.name.to_owned(), hexadecimal(&Sha256::digest(head.file)))));
        }
    }
    let judged_by = amount(arguments);
    let ids = |prompts: &[&Prompt]| prompts.iter().map(|prompt| prompt.id.clone()).collect();
    Ok(Header {
        format: FORMAT.to_owned(),
        model_sha256: host.model().sha256.clone(),
        pool_sha256: file_sha256("rollouts", &arguments.pool)?,
        heads: hashes,
        judges: judging.to_vec(),
        rewards: runner.scored().iter().map(|reward| (reward.name().to_owned(), reward.definition())).collect(),
        prompts: ids(&runner.prompts),
        tune_prompts: ids(&runner.tune),
        token_limit: rollouts.header.token_limit,
        candidates: arguments.candidates,
        tail: arguments.tail.clone(),
        wanted: runner.wanted.clone(),
        judged_by: [judged_by.states, judged_by.tokens, judged_by.continuations],
    })
}

/// What the look-ahead heads are worth: kept beside the journal, since it takes minutes.
fn judged_heads(
    arguments: &EvaluateArguments,
    runner: &Runner<'_>,
    host: &mut Host,
    (rollouts, groups): (&Rollouts, &[Vec<&Rollout>]),
    header: &Header,
) -> Result<BTreeMap<String, HeadReport>, Error> {
    let path = arguments.out.join("heads.json");
    if let Ok(text) = std::fs::read_to_string(&path)
        && let Ok((of, heads)) = serde_json::from_str::<(Header, BTreeMap<String, HeadReport>)>(&text)
        && of == *header
    {
        return Ok(heads);
    }
    let amount = amount(arguments);
    let paths = arguments
        .heads
        .iter()
        .flat_map(|folder| runner.rewards.iter().map(|reward| head_path(folder, reward.name(), "token-bias")));
    let there = paths.filter(|path| path.is_file());
    let bias = there.map(|path| HeadFile::open(&path)).collect::<Result<Vec<_>, _>>()?;
    let options = heads::Options {
        amount,
        candidates: arguments.candidates,
        threads: runner.options.device.threads().unwrap_or_else(cores),
        token_limit: runner.max_tokens,
        seed: arguments.seeds.first().copied().unwrap_or(0),
    };
    let progress = bar(amount.states * amount.tokens * amount.continuations, "continuations of states");
    let found =
        heads::judge(host, (rollouts, groups), &runner.prompts, &runner.rewards, &bias, options, || progress.inc(1))?;
    progress.finish_and_clear();
    save(&path, &serde_json::to_vec(&(header, &found)).map_err(unwritten)?)?;
    Ok(found)
}

fn about(arguments: &EvaluateArguments, header: &Header, rollouts: &Rollouts, host: &mut Host) -> About {
    let info = vassal_kernels::Device::info(host.engine().device());
    About {
        command: super::command_line(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        model: host.model().name.clone(),
        model_sha256: header.model_sha256.clone(),
        prompts_sha256: rollouts.header.prompts_sha256.clone(),
        pool_sha256: header.pool_sha256.clone(),
        split: arguments.split.name().to_owned(),
        prompts: header.prompts.len(),
        pool_samples: rollouts.header.samples as usize,
        seeds: header.wanted.seeds.clone(),
        temperature: 1.0,
        top_p: 1.0,
        candidates: header.candidates,
        tail: header.tail.clone(),
        token_limit: header.token_limit,
        device: format!("{} ({}, {} threads)", info.name, info.isa, info.threads),
        settings_missing: 0,
    }
}

fn words(method: &str, dials: &[(String, f64)]) -> String {
    let dials: Vec<String> = dials.iter().map(|(name, dial)| format!("{name} {dial:.2}")).collect();
    if dials.is_empty() { method.to_owned() } else { format!("{method} ({})", dials.join(", ")) }
}

/// A report that JSON cannot say would be the program's own fault.
fn unwritten(error: serde_json::Error) -> Error {
    Error::File { what: "report", path: "report.json".to_owned(), source: std::io::Error::other(error) }
}

fn save(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let failed = |source| Error::File { what: "report", path: path.display().to_string(), source };
    files::replace(path, bytes).map_err(failed)
}

fn write(arguments: &EvaluateArguments, report: &Report) -> Result<(), Error> {
    let tables = markdown::tables(report);
    let object = serde_json::to_value(report).map_err(unwritten)?;
    save(&arguments.out.join("report.json"), &serde_json::to_vec_pretty(&object).map_err(unwritten)?)?;
    save(&arguments.out.join("report.md"), tables.as_bytes())?;
    save(&arguments.out.join("report.html"), html::page(report).as_bytes())?;
    if let Some(picture) = picture::picture(report) {
        save(&arguments.out.join("report.svg"), picture.as_bytes())?;
    }
    if arguments.json {
        print_json(&object);
    } else {
        print(&tables);
        complain(&format!("the page is {}", arguments.out.join("report.html").display()));
    }
    Ok(())
}
