//! `vassal fit`: value heads from scored rollouts.
//!
//! Arguments become calls of [`crate::learning`]; what is written stands under its final name only
//! once it is whole. A fit that was killed begins anew: features are read again, because they are
//! too large to keep (some 4 kB a token).

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use vassal_kernels::ModelShape;

use super::fit_comparison::Comparison;
use super::learn::{SEQUENCES, bar, file_sha256, read_prompts};
use super::{ModelArguments, between, complain, fit_preference};
use crate::engine::EngineOptions;
use crate::error::Error;
use crate::host::{Host, HostOptions, cores};
use crate::learning::decoding::dial_to_kl;
use crate::learning::fitting::{FitOptions, FittedLookAhead, Material};
use crate::learning::prompts::{Prompt, PromptSet, Split};
use crate::learning::report::run::head_path;
use crate::learning::rollouts::{Header, RewardAbout, Rollouts};
use crate::learning::threads::on_threads;
use crate::model::heads::{self, Description, HeadFile, HeadKind, HeadWeights, Provenance};
use crate::token::{Token, Vocabulary};

/// Dials whose KL a head's file tells. Each is decoded, for each head; between them the root of KL, about linear in the dial, is interpolated.
const DIALS: [f64; 4] = [0.25, 0.5, 1.0, 1.5];

/// Tune prompts that the dial-to-KL table is measured on.
const DIAL_PROMPTS: usize = 12;

/// What is fitted, to what, and where it goes.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(super) struct FitCommand {
    #[command(subcommand)]
    other: Option<OtherFit>,
    /// A file that `vassal rollout` wrote and rewards have scored.
    #[arg(long, value_name = "FILE", required = true)]
    rollouts: Option<PathBuf>,
    /// The folder that gets REWARD.look-ahead.safetensors and REWARD.one-pass.safetensors.
    #[arg(long, value_name = "FOLDER", required = true)]
    out: Option<PathBuf>,
    #[command(flatten)]
    arguments: FitArguments,
}

#[derive(Debug, Subcommand)]
enum OtherFit {
    /// Fits rewards to preference pairs: one that guides, one that judges.
    Preference(fit_preference::PreferenceArguments),
}

pub(super) fn run(command: &FitCommand) -> Result<(), Error> {
    match (&command.other, &command.rollouts, &command.out) {
        (Some(OtherFit::Preference(arguments)), ..) => fit_preference::fit(arguments),
        (None, Some(rollouts), Some(out)) => fit(rollouts, out, &command.arguments),
        // The parser has asked for both.
        (None, ..) => Err(Error::Usage("vassal fit needs --rollouts and --out, or `preference`".into())),
    }
}

/// How value heads are fitted.
#[derive(Debug, Args)]
pub(super) struct FitArguments {
    /// The prompts file that it was made from; the project's own where there is none.
    #[arg(long, value_name = "FILE")]
    pub(super) prompts: Option<PathBuf>,
    /// The name of a reward that has scored the rollouts; may repeat. All of them where none is given.
    #[arg(long = "reward", value_name = "NAME")]
    pub(super) rewards: Vec<String>,
    /// The layer that heads read; 0.7 of all layers where none is given.
    #[arg(long)]
    pub(super) layer: Option<usize>,
    /// Rank of the one-pass heads, 1 to 64.
    #[arg(long, default_value_t = 32, value_parser = between(1, heads::RANK_MAX as u64))]
    pub(super) rank: usize,
    /// Fixes every choice.
    #[arg(long, default_value_t = 1)]
    pub(super) seed: u64,
    /// Fits the heads of the methods too that an evaluation compares with: ARGS, FUDGE, a context-free token bias, and a value
    /// model of the first third of the layers.
    #[arg(long)]
    pub(super) comparison: bool,
    #[command(flatten)]
    pub(super) model: ModelArguments,
}

/// The layer that heads shall read, of so many.
fn layer_of(arguments: &FitArguments, layers: usize) -> Result<usize, Error> {
    let layer = arguments.layer.unwrap_or((layers * 7).div_ceil(10));
    if (1..=layers).contains(&layer) {
        return Ok(layer);
    }
    Err(Error::Usage(format!("--layer must be 1 to {layers}, got {layer}")))
}

/// Fits heads to the rollouts of a file, into a folder.
pub(super) fn fit(path: &Path, out: &Path, arguments: &FitArguments) -> Result<(), Error> {
    let set = read_prompts(arguments.prompts.as_deref())?;
    let rollouts = Rollouts::read(path)?;
    rollouts.require_prompts(&set.sha256)?;
    let (rollouts, left_out) = rollouts.scored_by(&arguments.rewards)?;
    if left_out > 0 {
        complain(&format!("{left_out} rollouts are left out, which not every reward has scored"));
    }
    refuse_constant(&rollouts)?;
    let rewards = &rollouts.rewards;
    let failed = |source| Error::File { what: "folder", path: out.display().to_string(), source };
    std::fs::create_dir_all(out).map_err(failed)?;
    let options = HostOptions { head_kind: None, ..arguments.model.resolve()? };
    let shape = options.shape()?;
    let layer = layer_of(arguments, shape.layers)?;
    let fit_options = FitOptions {
        layer,
        rank: arguments.rank,
        candidates: 20,
        states_per_rollout: 9,
        rollouts_per_prompt: 2,
        threads: options.device.threads().unwrap_or_else(cores),
        seed: arguments.seed,
        comparison: arguments.comparison,
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
    let vocabulary = host.tokenizer().clone();
    let told = |count: usize| progress.set_position(count as u64);
    let known = (&prompts, vocabulary.as_ref() as &dyn Vocabulary);
    let material = Material::collect(host.engine(), &rollouts, known, (layer, fit_options.threads), None, told)?;
    progress.finish();
    drop(host);
    complain("fitting look-ahead heads");
    let moments = material.moments(fit_options.threads)?;
    let fitted = material.look_ahead(&moments, fit_options.threads)?;
    for (reward, fitted) in rewards.iter().zip(&fitted) {
        complain(&format!(
            "{}: {:.3} of the variance explained on tune prompts, by position {:.3?}",
            reward.name, fitted.evaluation.explained, fitted.evaluation.explained_by_position
        ));
        for (features, explained) in &fitted.ablation {
            complain(&format!("{}: {explained:.3} {features}", reward.name));
        }
    }

    let (count_prompts, count_rollouts) = material.counts();
    let header = &rollouts.header;
    let provenance = provenance((path, arguments), &set, header, (count_prompts, count_rollouts))?;
    let describe = |reward: &RewardAbout, kind, spread, provenance| {
        describe((header, &shape), reward, kind, layer, spread, provenance)
    };
    let look_ahead_files = |spreads: &[f64]| -> Vec<HeadFile> {
        let file = |(place, fitted): (usize, &FittedLookAhead)| {
            let (reward, spread) = (&rewards[place], spreads[place]);
            let provenance = Provenance {
                penalties: fitted.penalties.clone(),
                ablation: fitted.ablation.clone(),
                explained: fitted.evaluation.explained,
                explained_by_position: fitted.evaluation.explained_by_position.clone(),
                ..provenance.clone()
            };
            let mut description = describe(reward, HeadKind::LookAhead, spread, provenance);
            description.text = material.term(place, &fitted.head);
            HeadFile { description, weights: HeadWeights::LookAhead(fitted.head.linear.clone()) }
        };
        fitted.iter().enumerate().map(file).collect()
    };

    // Spreads are not known yet, and nothing here asks for them. What one-pass heads learn is what the text does not say.
    let mut textless = look_ahead_files(&vec![1.0; rewards.len()]);
    textless.iter_mut().for_each(|file| file.description.text = None);
    let with_engine = HostOptions { engine: engine(Vec::new()), ..options };
    let mut host = Host::open_with(&with_engine, |_, _| Ok(textless))?;
    let progress = bar((count_prompts + prompts.len() / 8) * fit_options.rollouts_per_prompt, "candidates");
    let candidates =
        material.candidates(host.engine(), &prompts, &fit_options, |count| progress.set_position(count as u64))?;
    progress.finish();
    let all: Vec<Token> = (0..shape.vocabulary as Token).collect();
    let embeddings = host.engine().embeddings(&all)?;
    drop(host);
    complain("distilling one-pass heads");
    let at_once = rewards.len().min(fit_options.threads).max(1);
    let shared = FitOptions { threads: (fit_options.threads / at_once).max(1), ..fit_options.clone() };
    let distilled = on_threads(rewards.len(), at_once, |place| {
        let (known, head) = ((&embeddings[..], vocabulary.as_ref() as &dyn Vocabulary), (place, &fitted[place].head));
        material.distil(known, &candidates, head, &moments.learn, &shared, &rewards[place].name)
    });
    let (mut spreads, mut one_pass) = (Vec::new(), Vec::new());
    for (place, (reward, distilled)) in rewards.iter().zip(distilled).enumerate() {
        let distilled = distilled?;
        complain(&format!(
            "{}: spread {:.4}; one-pass explains {:.3} within states beside the text (token bias alone {:.3}), spread {:.4}",
            reward.name,
            distilled.look_ahead_spread,
            distilled.fit.explained,
            distilled.fit.explained_by_bias,
            distilled.spread
        ));
        spreads.push(distilled.look_ahead_spread);
        if arguments.comparison {
            let provenance = Provenance { explained: distilled.bias_explains, ..provenance.clone() };
            let description = describe(reward, HeadKind::OnePass, distilled.spread, provenance);
            let weights = HeadWeights::OnePass(distilled.fit.bias_head);
            HeadFile { description, weights }.write(&head_path(out, &reward.name, "token-bias"))?;
        }
        let provenance = Provenance { explained: distilled.fit.explained, ..provenance.clone() };
        let mut description = describe(reward, HeadKind::OnePass, distilled.spread, provenance);
        description.text = material.term(place, &fitted[place].head);
        one_pass.push(HeadFile { description, weights: HeadWeights::OnePass(distilled.fit.head) });
    }

    let files = [(HeadKind::LookAhead, look_ahead_files(&spreads)), (HeadKind::OnePass, one_pass)];
    write_with_dials(files, out, (&set, arguments.seed), &with_engine)?;
    if arguments.comparison {
        let comparison = Comparison {
            out,
            rollouts: &rollouts,
            prompts: &prompts,
            shape: &shape,
            options: &with_engine,
            fit: &fit_options,
            provenance: &provenance,
        };
        comparison.fit(&material, &moments)?;
    }
    Ok(())
}

/// Measures what dials cost on tune prompts, and writes the heads with it.
fn write_with_dials(
    files: [(HeadKind, Vec<HeadFile>); 2],
    out: &Path,
    (set, seed): (&PromptSet, u64),
    options: &HostOptions,
) -> Result<(), Error> {
    let tune: Vec<&Prompt> = set.of(Split::Tune).take(DIAL_PROMPTS).collect();
    for (kind, mut files) in files {
        let kind = kind.name();
        let mut host = Host::open_with(options, |_, _| Ok(files.clone()))?;
        for file in &mut files {
            let name = file.description.name.clone();
            let limit = file.description.token_limit as usize;
            let table = dial_to_kl(&mut host, &name, &tune, &DIALS, limit, seed)?;
            complain(&format!("{name} {kind}: nats a token by dial {table:.3?}"));
            file.description.provenance.dial_to_kl = table;
            file.write(&head_path(out, &name, kind))?;
        }
    }
    Ok(())
}

/// Refuses a reward that never differs, before minutes are spent on finding no head of it.
fn refuse_constant(rollouts: &Rollouts) -> Result<(), Error> {
    for (place, reward) in rollouts.rewards.iter().enumerate() {
        let mut scores = rollouts.all.iter().filter_map(|rollout| rollout.scores[place]);
        let first = scores.next();
        if scores.all(|score| Some(score) == first) {
            let (name, score) = (&reward.name, first.unwrap_or_default());
            return Err(Error::Usage(format!(
                "the reward {name:?} is {score} for every rollout: there is nothing to learn from it; name the others by --reward"
            )));
        }
    }
    Ok(())
}

/// What all heads of a fit have in common.
fn provenance(
    (path, arguments): (&Path, &FitArguments),
    set: &PromptSet,
    header: &Header,
    (prompts, rollouts): (usize, usize),
) -> Result<Provenance, Error> {
    Ok(Provenance {
        prompts_sha256: set.sha256.clone(),
        rollouts_sha256: file_sha256("rollouts", path)?,
        reward: String::new(),
        prompts,
        rollouts,
        samples: header.samples,
        temperature: header.temperature,
        top_p: header.top_p,
        lambda: 1.0,
        penalties: Vec::new(),
        ablation: Vec::new(),
        explained: 0.0,
        explained_by_position: Vec::new(),
        dial_to_kl: Vec::new(),
        seed: arguments.seed,
        command: "vassal rollout, then vassal fit: docs/evaluation.md".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    })
}

/// A head's description.
pub(super) fn describe(
    (header, shape): (&Header, &ModelShape),
    reward: &RewardAbout,
    kind: HeadKind,
    layer: usize,
    spread: f64,
    provenance: Provenance,
) -> Description {
    Description {
        format: heads::FORMAT.to_owned(),
        name: reward.name.clone(),
        kind,
        layer,
        layers: shape.layers,
        hidden: shape.hidden,
        vocabulary: shape.vocabulary,
        model_sha256: header.model_sha256.clone(),
        spread,
        token_limit: header.token_limit,
        text: None,
        provenance: Provenance { reward: reward.definition.clone(), ..provenance },
    }
}
