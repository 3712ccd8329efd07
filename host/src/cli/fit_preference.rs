//! `vassal fit preference`: two learned rewards from preference pairs, one that guides and one that judges.
//!
//! They are fitted to disjoint halves of the pairs and read different layers, so that what the first is guided to exploit
//! the second need not share. Start at [`fit`].

use std::path::PathBuf;

use clap::Args;
use serde_json::json;
use vassal_kernels::ModelShape;

use super::learn::bar;
use super::{ModelArguments, between, complain, print, print_json};
use crate::error::Error;
use crate::host::{Host, HostOptions};
use crate::learning::preference::pairs::{Half, Pair, PairSet};
use crate::learning::preference::{Collected, Fitted, PAIRS_MIN, Validation};
use crate::learning::rewards::check_name;
use crate::learning::rewards::learned::file::{Description, FORMAT, RewardFile};
use crate::learning::rewards::learned::reading;
use crate::learning::rollouts;
use crate::learning::statistics::Estimate;

#[derive(Debug, Args)]
pub(super) struct PreferenceArguments {
    /// JSON lines with "prompt" (messages), "chosen" and "rejected"; decompressed where the name ends in .gz.
    #[arg(long, value_name = "FILE")]
    pairs: PathBuf,
    /// Pairs of other requests that both rewards are judged by.
    #[arg(long, value_name = "FILE")]
    validation: Option<PathBuf>,
    /// The name of the reward that guides; the one that judges is NAME-gold.
    #[arg(long, default_value = "preference")]
    name: String,
    /// The layer that the guiding reward reads; 0.6 of all layers where none is given.
    #[arg(long)]
    layer: Option<usize>,
    /// The layer that the judging reward reads; 0.8 of all layers where none is given.
    #[arg(long)]
    gold_layer: Option<usize>,
    /// Tokens of an answer that are read at most: as many as the responses have that shall be scored.
    #[arg(long, default_value_t = 60, value_parser = between(1, rollouts::TOKENS_MAX as u64))]
    max_tokens: usize,
    /// The folder that gets NAME.safetensors and NAME-gold.safetensors.
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
    /// One JSON object on standard output, and nothing else.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    model: ModelArguments,
}

/// One reward that was fitted.
struct Outcome {
    file: RewardFile,
    path: PathBuf,
    passed_over: usize,
    validation: Option<Validation>,
}

pub(super) fn fit(arguments: &PreferenceArguments) -> Result<(), Error> {
    let gold_name = format!("{}-gold", arguments.name);
    check_name(&gold_name)?;
    let pairs = PairSet::open(&arguments.pairs)?;
    let held = arguments.validation.as_ref().map(|path| PairSet::open(path).map(|set| (set, path))).transpose()?;
    if let Some((held, path)) = &held {
        held.apart_from(&pairs, path)?;
    }
    let options = arguments.model.resolve()?;
    let shape = options.shape()?;
    let [layer, gold_layer] = layers(arguments, shape.layers)?;
    // What is wrong with either is said before minutes are spent on the other.
    let mut works = Vec::new();
    for (half, name, layer) in [(Half::Proxy, &arguments.name, layer), (Half::Gold, &gold_name, gold_layer)] {
        let own: Vec<&Pair> = pairs.pairs.iter().filter(|pair| pair.half() == half).collect();
        enough(arguments, name, own.len())?;
        works.push(Work { arguments, name, half, layer, shape: &shape, sha256: &pairs.sha256, own });
    }
    let folder_failed = |source| Error::File { what: "folder", path: arguments.out.display().to_string(), source };
    std::fs::create_dir_all(&arguments.out).map_err(folder_failed)?;
    let held: Vec<&Pair> = held.iter().flat_map(|(set, _)| &set.pairs).collect();
    let outcomes = works.iter().map(|work| work.fit(&options, &held)).collect::<Result<Vec<_>, _>>()?;
    for outcome in &outcomes {
        outcome.file.write(&outcome.path)?;
    }
    if arguments.json {
        print_json(&json!({"rewards": outcomes.iter().map(Outcome::json).collect::<Vec<_>>()}));
    } else {
        print(&table(&outcomes));
    }
    Ok(())
}

/// The layers that the two read, of so many.
fn layers(arguments: &PreferenceArguments, of: usize) -> Result<[usize; 2], Error> {
    let share = |tenths: usize| (of * tenths).div_ceil(10);
    let layers = [arguments.layer.unwrap_or(share(6)), arguments.gold_layer.unwrap_or(share(8))];
    if let Some(wrong) = layers.iter().find(|layer| !(1..=of).contains(*layer)) {
        return Err(Error::Usage(format!("a layer of this model is 1 to {of}, got {wrong}")));
    }
    if layers[0] == layers[1] {
        return Err(Error::Usage(format!(
            "what judges must read another layer than what guides, both would read {}: --layer and --gold-layer choose",
            layers[0]
        )));
    }
    Ok(layers)
}

fn enough(arguments: &PreferenceArguments, name: &str, pairs: usize) -> Result<(), Error> {
    if pairs >= PAIRS_MIN {
        return Ok(());
    }
    Err(Error::Usage(format!(
        "{}: a reward needs at least {PAIRS_MIN} pairs that can be read, and each of the two gets half: {name} has {pairs}",
        arguments.pairs.display()
    )))
}

/// One of the two rewards.
struct Work<'a> {
    arguments: &'a PreferenceArguments,
    name: &'a str,
    half: Half,
    layer: usize,
    shape: &'a ModelShape,
    /// Of the pairs' file.
    sha256: &'a str,
    /// The pairs that it is fitted to.
    own: Vec<&'a Pair>,
}

impl Work<'_> {
    fn fit(&self, options: &HostOptions, held: &[&Pair]) -> Result<Outcome, Error> {
        let mut host = Host::open(&reading(options.clone(), self.layer, self.shape.context_tokens))?;
        let mut read = |pairs: &[&Pair]| {
            let progress = bar(pairs.len(), "pairs");
            let found = Collected::read(&mut host, pairs, self.layer, self.arguments.max_tokens, || progress.inc(1));
            progress.finish_and_clear();
            found
        };
        let (own, held) = (read(&self.own)?, read(held)?);
        let pairs = own.differences.count();
        enough(self.arguments, self.name, pairs)?;
        complain(&format!("fitting {} to {pairs} pairs", self.name));
        let fitted = own.fit();
        let validation = held.validate(&fitted);
        let path = self.arguments.out.join(format!("{}.safetensors", self.name));
        let file = self.file(&host.model().sha256, &fitted, pairs, validation.as_ref());
        Ok(Outcome { file, path, passed_over: own.passed_over, validation })
    }

    fn file(&self, model_sha256: &str, fitted: &Fitted, pairs: usize, validation: Option<&Validation>) -> RewardFile {
        let shape = self.shape;
        let (residual, mean) = fitted.preference.weights.split_at(shape.hidden);
        let single = |numbers: &[f64]| numbers.iter().map(|&x| x as f32).collect();
        let accuracy = |Estimate { mean, ci_low, ci_high }| (mean, ci_low, ci_high);
        let description = Description {
            format: FORMAT.to_owned(),
            name: self.name.to_owned(),
            summary: "how people prefer it among answers to one prompt, 0 to 1: learned from pairs, length taken out"
                .to_owned(),
            layer: self.layer,
            layers: shape.layers,
            hidden: shape.hidden,
            vocabulary: shape.vocabulary,
            model_sha256: model_sha256.to_owned(),
            token_limit: self.arguments.max_tokens,
            pairs_sha256: self.sha256.to_owned(),
            half: self.half,
            pairs,
            penalty: fitted.penalty,
            accuracy: validation.map(|found| accuracy(found.accuracy)),
            command: super::command_line(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        RewardFile { description, residual: single(residual), mean: single(mean), bias: fitted.bias as f32 }
    }
}

impl Outcome {
    fn json(&self) -> serde_json::Value {
        let about = &self.file.description;
        json!({
            "name": about.name, "path": self.path.display().to_string(), "layer": about.layer, "pairs": about.pairs,
            "passed_over": self.passed_over, "penalty": about.penalty, "validation": self.validation,
        })
    }
}

fn table(outcomes: &[Outcome]) -> String {
    let mut out = String::from(
        "| reward | layer | pairs | passed over | penalty | validation pairs | passed over | right | by length alone | with length |\n\
         |---|---|---|---|---|---|---|---|---|---|\n",
    );
    for Outcome { file: RewardFile { description, .. }, passed_over, validation, .. } in outcomes {
        let Description { name, layer, pairs, penalty, .. } = description;
        let share = |Estimate { mean, ci_low, ci_high }: Estimate| format!("{mean:.3} [{ci_low:.3}, {ci_high:.3}]");
        let validation = match validation {
            Some(found) => format!(
                "{} | {} | {} | {} | {}",
                found.pairs,
                found.passed_over,
                share(found.accuracy),
                share(found.accuracy_of_length),
                share(found.accuracy_with_length)
            ),
            None => "0 | | | |".to_owned(),
        };
        out.push_str(&format!("| {name} | {layer} | {pairs} | {passed_over} | {penalty} | {validation} |\n"));
    }
    out
}
