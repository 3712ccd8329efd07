//! `vassal rollout`, `fit` and `evaluate`: learning from the base model's own samples.
//!
//! Arguments become calls of [`crate::learning`]; what is written stands under its final name only
//! once it is whole.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use super::{ModelArguments, between, complain};
use crate::engine::{EngineOptions, Event};
use crate::error::Error;
use crate::host::{Host, HostOptions, cores, hexadecimal};
use crate::learning::decoding::dial_to_kl;
use crate::learning::fitting::{FitOptions, FittedLookAhead, Material};
use crate::learning::prompts::{Prompt, PromptSet, Split};
use crate::learning::rewards::{SharedReward, Spec, SpecError};
use crate::learning::rollouts::{self, End, Header, Rollout, Rollouts};
use crate::model::config::LlamaConfig;
use crate::model::gguf::Gguf;
use crate::model::heads::{self, Description, HeadFile, HeadKind, HeadWeights, Provenance};

/// Dials whose KL a head's file tells.
const DIALS: [f64; 5] = [0.25, 0.5, 0.75, 1.0, 1.5];

/// Tune prompts that the dial-to-KL table is measured on.
const DIAL_PROMPTS: usize = 20;

/// Sequences that decode at once while learning.
const SEQUENCES: usize = 48;

#[derive(Debug, Args)]
pub(super) struct RolloutArguments {
    /// JSON lines with "id", "kind" and "prompt"; the project's own prompts where there is none.
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// Responses a prompt.
    #[arg(long, default_value_t = 16, value_parser = between(1, 1024))]
    samples: usize,
    /// Only prompts of these splits.
    #[arg(long, value_delimiter = ',', default_value = "learn,tune", value_parser = parse_split)]
    splits: Vec<Split>,
    /// Response tokens at most.
    #[arg(long, default_value_t = 60)]
    max_tokens: usize,
    /// Temperature of the draws.
    #[arg(long, default_value_t = 1.0)]
    temperature: f32,
    /// Nucleus of the draws.
    #[arg(long, default_value_t = 1.0)]
    top_p: f32,
    /// Fixes every draw.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The file to write.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    #[command(flatten)]
    model: ModelArguments,
}

pub(super) fn parse_split(text: &str) -> Result<Split, String> {
    let all = [Split::Learn, Split::Tune, Split::Test];
    all.into_iter()
        .find(|split| split.name() == text)
        .ok_or_else(|| format!("expected learn, tune or test, got {text:?}"))
}

/// The prompts of a file, or the project's own.
pub(super) fn read_prompts(path: Option<&Path>) -> Result<PromptSet, Error> {
    let Some(path) = path else { return Ok(PromptSet::built_in()) };
    let failed = |source| Error::File { what: "prompts", path: path.display().to_string(), source };
    Ok(PromptSet::parse(&std::fs::read_to_string(path).map_err(failed)?)?)
}

/// A bar on standard error, with the time left.
pub(super) fn bar(total: usize, what: &'static str) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} {eta}");
    ProgressBar::new(total as u64).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar())).with_message(what)
}

pub(super) fn rollout(arguments: &RolloutArguments) -> Result<(), Error> {
    let set = read_prompts(arguments.prompts.as_deref())?;
    let prompts: Vec<&Prompt> = set.prompts.iter().filter(|prompt| arguments.splits.contains(&prompt.split)).collect();
    let engine = EngineOptions { sequences_max: SEQUENCES, cache_tokens: SEQUENCES * 512, ..EngineOptions::default() };
    let engine = arguments.model.device.engine(engine);
    let mut host = Host::open(&HostOptions { head_kind: None, engine, ..arguments.model.resolve()? })?;
    let header = Header {
        format: rollouts::FORMAT.to_owned(),
        model_sha256: host.model().sha256.clone(),
        prompts_sha256: set.sha256.clone(),
        seed: arguments.seed,
        samples: arguments.samples as u32,
        temperature: arguments.temperature,
        top_p: arguments.top_p,
        token_limit: arguments.max_tokens as u32,
        command: std::env::args().skip(1).fold("vassal".to_owned(), |command, word| command + " " + &word),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let mut writer = rollouts::Writer::create(&arguments.out, &header)?;
    let mut of = HashMap::new();
    for (place, prompt) in prompts.iter().enumerate() {
        let request = crate::request::Request {
            max_tokens: Some(arguments.max_tokens),
            temperature: Some(arguments.temperature),
            top_p: Some(arguments.top_p),
            seed: Some(arguments.seed),
            // Every prompt has streams of its own.
            stream: (place * arguments.samples) as u64,
            ..host.request(&prompt.text)?
        };
        let request = host.validate(request)?;
        for (sample, id) in host.engine().submit_samples(request, arguments.samples)?.into_iter().enumerate() {
            of.insert(id, (*prompt, sample));
        }
    }
    let bar = bar(of.len(), "rollouts");
    while !host.engine().is_idle() {
        for event in host.engine().step()? {
            let Event::Finished { sequence, response } = event else { continue };
            let Some((prompt, sample)) = of.remove(&sequence) else { continue };
            let end =
                if response.finish == crate::engine::Finish::EndOfText { End::EndOfText } else { End::TokenLimit };
            writer.append(&Rollout {
                id: prompt.id.clone(),
                prompt: prompt.text.clone(),
                split: prompt.split,
                sample: sample as u32,
                tokens: response.token_ids(),
                text: response.text.clone(),
                end,
            })?;
            bar.inc(1);
        }
    }
    bar.finish();
    Ok(writer.finish()?)
}

#[derive(Debug, Args)]
pub(super) struct FitArguments {
    /// A file that `vassal rollout` wrote.
    #[arg(long, value_name = "FILE")]
    rollouts: PathBuf,
    /// The prompts file that it was made from; the project's own where there is none.
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// A reward to fit heads to, as `sentiment` or `short:length=20`; may repeat.
    #[arg(long = "reward", default_values = ["sentiment", "simplicity"])]
    rewards: Vec<String>,
    /// The layer that heads read; 0.7 of all layers where none is given.
    #[arg(long)]
    layer: Option<usize>,
    /// Rank of the one-pass heads, 1 to 64.
    #[arg(long, default_value_t = 32, value_parser = between(1, heads::RANK_MAX as u64))]
    rank: usize,
    /// Fixes every choice.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The folder that gets REWARD.look-ahead.safetensors and REWARD.one-pass.safetensors.
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
    #[command(flatten)]
    model: ModelArguments,
}

/// The rewards that a command line names.
pub(super) fn find_rewards(specs: &[String]) -> Result<Vec<SharedReward>, Error> {
    let mut found: Vec<SharedReward> = Vec::new();
    for spec in specs {
        let reward: SharedReward = match Spec::parse(spec)? {
            Spec::BuiltIn(reward) => Arc::new(reward),
            Spec::File { path, .. } => {
                return Err(Error::Usage(format!("{}: rewards as components cannot be used yet", path.display())));
            }
        };
        if found.iter().any(|other| other.name() == reward.name()) {
            return Err(SpecError::Twice(reward.name().to_owned()).into());
        }
        found.push(reward);
    }
    Ok(found)
}

/// SHA-256 of a file.
fn file_sha256(path: &Path) -> Result<String, Error> {
    use sha2::{Digest, Sha256};
    let failed = |source| Error::File { what: "rollouts", path: path.display().to_string(), source };
    Ok(hexadecimal(&Sha256::digest(std::fs::read(path).map_err(failed)?)))
}

/// The layer that heads shall read, of so many.
fn layer_of(arguments: &FitArguments, layers: usize) -> Result<usize, Error> {
    let layer = arguments.layer.unwrap_or((layers * 7).div_ceil(10));
    if (1..=layers).contains(&layer) {
        return Ok(layer);
    }
    Err(Error::Usage(format!("--layer must be 1 to {layers}, got {layer}")))
}

pub(super) fn fit(arguments: &FitArguments) -> Result<(), Error> {
    let set = read_prompts(arguments.prompts.as_deref())?;
    let rollouts = Rollouts::read(&arguments.rollouts)?;
    rollouts.require_prompts(&set.sha256)?;
    let rewards = find_rewards(&arguments.rewards)?;
    let failed = |source| Error::File { what: "folder", path: arguments.out.display().to_string(), source };
    std::fs::create_dir_all(&arguments.out).map_err(failed)?;
    let options = HostOptions { head_kind: None, ..arguments.model.resolve()? };
    let config = LlamaConfig::from_gguf(&Gguf::open(&options.model)?)?;
    let layer = layer_of(arguments, config.shape.layers)?;
    let fit_options = FitOptions {
        layer,
        rank: arguments.rank,
        candidates: 20,
        states_per_rollout: 6,
        rollouts_per_prompt: 3,
        threads: options.device.threads().unwrap_or_else(cores),
        seed: arguments.seed,
    };
    let engine = |taps| {
        let (sequences_max, cache_tokens) = (SEQUENCES, SEQUENCES * 512);
        arguments.model.device.engine(EngineOptions { sequences_max, cache_tokens, taps, ..EngineOptions::default() })
    };

    let mut host = Host::open(&HostOptions { engine: engine(vec![layer]), ..options.clone() })?;
    rollouts.require_model(&host.model().sha256)?;
    let mut prompts = HashMap::new();
    for prompt in &set.prompts {
        prompts.insert(prompt.id.clone(), host.request(&prompt.text)?.prompt);
    }
    let progress = bar(rollouts.all.len(), "features");
    let material =
        Material::collect(host.engine(), &rollouts, &prompts, layer, |count| progress.set_position(count as u64))?;
    progress.finish();
    drop(host);
    complain("fitting look-ahead heads");
    let (fitted, covariance) = material.look_ahead(&rewards, fit_options.threads)?;
    for (reward, fitted) in rewards.iter().zip(&fitted) {
        complain(&format!(
            "{}: {:.3} of the variance explained on tune prompts ({:.3} without share weights), by position {:.3?}",
            reward.name(),
            fitted.evaluation.explained,
            fitted.explained_plain,
            fitted.evaluation.explained_by_position
        ));
    }

    let (count_prompts, count_rollouts) = material.counts();
    let header = &rollouts.header;
    let provenance = Provenance {
        prompts_sha256: set.sha256.clone(),
        rollouts_sha256: file_sha256(&arguments.rollouts)?,
        prompts: count_prompts,
        rollouts: count_rollouts,
        samples: header.samples,
        temperature: header.temperature,
        top_p: header.top_p,
        lambda: 1.0,
        penalties: Vec::new(),
        explained: 0.0,
        explained_by_position: Vec::new(),
        dial_to_kl: Vec::new(),
        seed: arguments.seed,
        command: "vassal rollout, then vassal fit: docs/evaluation.md".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let shape = &config.shape;
    let describe = |name: &str, kind, spread, provenance| Description {
        format: heads::FORMAT.to_owned(),
        name: name.to_owned(),
        kind,
        layer,
        layers: shape.layers,
        hidden: shape.hidden,
        vocabulary: shape.vocabulary,
        model_sha256: header.model_sha256.clone(),
        spread,
        token_limit: header.token_limit,
        provenance,
    };
    let look_ahead_files = |spreads: &[f64]| -> Vec<HeadFile> {
        let file = |((reward, fitted), &spread): ((&SharedReward, &FittedLookAhead), &f64)| {
            let provenance = Provenance {
                penalties: fitted.penalties.clone(),
                explained: fitted.evaluation.explained,
                explained_by_position: fitted.evaluation.explained_by_position.clone(),
                ..provenance.clone()
            };
            let description = describe(reward.name(), HeadKind::LookAhead, spread, provenance);
            HeadFile { description, weights: HeadWeights::LookAhead(fitted.head.clone()) }
        };
        rewards.iter().zip(&fitted).zip(spreads).map(file).collect()
    };

    // Spreads are not known yet, and nothing here asks for them.
    let unit = vec![1.0; rewards.len()];
    let with_engine = HostOptions { engine: engine(Vec::new()), ..options };
    let mut host = Host::open_with(&with_engine, |_, _| Ok(look_ahead_files(&unit)))?;
    let progress = bar((count_prompts + prompts.len() / 8) * fit_options.rollouts_per_prompt, "candidates");
    let candidates =
        material.candidates(host.engine(), &prompts, &fit_options, |count| progress.set_position(count as u64))?;
    progress.finish();
    let (mut spreads, mut one_pass) = (Vec::new(), Vec::new());
    for (place, reward) in rewards.iter().enumerate() {
        complain(&format!("distilling the one-pass head of {}", reward.name()));
        let distilled = material.distil(host.engine(), &candidates, place, &covariance, &fit_options, reward.name())?;
        complain(&format!(
            "{}: spread {:.4}; one-pass explains {:.3} within states (token bias alone {:.3}), spread {:.4}",
            reward.name(),
            distilled.look_ahead_spread,
            distilled.fit.explained,
            distilled.fit.explained_by_bias,
            distilled.spread
        ));
        spreads.push(distilled.look_ahead_spread);
        let provenance = Provenance { explained: distilled.fit.explained, ..provenance.clone() };
        let description = describe(reward.name(), HeadKind::OnePass, distilled.spread, provenance);
        one_pass.push(HeadFile { description, weights: HeadWeights::OnePass(distilled.fit.head) });
    }
    drop(host);

    let tune: Vec<&Prompt> = set.of(Split::Tune).take(DIAL_PROMPTS).collect();
    for (kind, mut files) in [(HeadKind::LookAhead, look_ahead_files(&spreads)), (HeadKind::OnePass, one_pass)] {
        let kind = kind.name();
        let mut host = Host::open_with(&with_engine, |_, _| Ok(files.clone()))?;
        for file in &mut files {
            let name = file.description.name.clone();
            let limit = header.token_limit as usize;
            let table = dial_to_kl(&mut host, &name, &tune, &DIALS, limit, arguments.seed)?;
            complain(&format!("{name} {kind}: nats a token by dial {table:.3?}"));
            file.description.provenance.dial_to_kl = table;
            file.write(&arguments.out.join(format!("{name}.{kind}.safetensors")))?;
        }
    }
    Ok(())
}
