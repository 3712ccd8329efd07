//! `vassal rollout`, `fit` and `evaluate`: learning from the base model's own samples.
//!
//! Arguments become calls of [`crate::learning`]; what is written stands under its final name only
//! once it is whole.

use std::path::{Path, PathBuf};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use super::ModelArguments;
use crate::engine::{EngineOptions, Event};
use crate::error::Error;
use crate::host::{Host, HostOptions};
use crate::learning::prompts::{Prompt, PromptSet, Split};
use crate::learning::rollouts::{self, End, Header, Rollout};

/// Sequences that decode at once while learning.
const SEQUENCES: usize = 48;

#[derive(Debug, Args)]
pub(super) struct RolloutArguments {
    /// JSON lines with "id", "kind" and "prompt"; the project's own prompts where there is none.
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// Responses a prompt.
    #[arg(long, default_value_t = 16)]
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

fn parse_split(text: &str) -> Result<Split, String> {
    let all = [Split::Learn, Split::Tune, Split::Test];
    all.into_iter().find(|split| split.name() == text).ok_or_else(|| format!("expected learn, tune or test, got {text:?}"))
}

/// The prompts of a file, or the project's own.
fn read_prompts(path: Option<&Path>) -> Result<PromptSet, Error> {
    let Some(path) = path else { return Ok(PromptSet::built_in()) };
    let failed = |source| Error::File { what: "prompts", path: path.display().to_string(), source };
    Ok(PromptSet::parse(&std::fs::read_to_string(path).map_err(failed)?)?)
}

/// A bar on standard error, with the time left.
fn bar(total: usize, what: &'static str) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} {eta}");
    ProgressBar::new(total as u64).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar())).with_message(what)
}

pub(super) fn rollout(arguments: &RolloutArguments) -> Result<(), Error> {
    let set = read_prompts(arguments.prompts.as_deref())?;
    let prompts: Vec<&Prompt> = set.prompts.iter().filter(|prompt| arguments.splits.contains(&prompt.split)).collect();
    let engine = EngineOptions { sequences_max: SEQUENCES, cache_tokens: SEQUENCES * 512, ..EngineOptions::default() };
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
    let mut of = std::collections::HashMap::new();
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
            let end = if response.finish == crate::engine::Finish::EndOfText { End::EndOfText } else { End::TokenLimit };
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
