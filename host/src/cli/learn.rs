//! `vassal learn`: from prompts and rewards to heads and a report in one command; and what the commands of learning share.
//!
//! It is the four commands one after the other, each told on standard error as it would be typed, and everything that they write in
//! one folder. What is there already is not made again if it is of the same work, so the same command goes on after a kill.
//! Start at [`learn`].

use std::path::{Path, PathBuf};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use super::evaluate::{EvaluateArguments, evaluate};
use super::fit::{FitArguments, fit};
use super::reward::{RewardArguments, reward};
use super::rollout::{RolloutArguments, rollout};
use super::{ModelArguments, between, complain};
use crate::error::Error;
use crate::files;
use crate::host::hexadecimal;
use crate::learning::prompts::{PromptSet, Split};
use crate::learning::report::methods::head_kinds;
use crate::learning::report::run::head_path;
use crate::learning::rewards::{self, Opening, SharedReward};
use crate::learning::rollouts::{self, Rollouts};
use crate::model::heads::{HeadFile, HeadKind, RANK_MAX};

/// Sequences that decode at once while learning.
pub(super) const SEQUENCES: usize = 48;

pub(super) fn parse_split(text: &str) -> Result<Split, String> {
    let all = [Split::Learn, Split::Tune, Split::Test];
    all.into_iter()
        .find(|split| split.name() == text)
        .ok_or_else(|| format!("expected learn, tune or test, got {text:?}"))
}

/// The longest prompts file: as many prompts as a file may have, of a thousand bytes each.
const PROMPTS_BYTES: usize = 100 << 20;

/// Refuses to write rollouts where something else is that would be lost.
pub(super) fn check_out(out: &Path) -> Result<(), Error> {
    if !out.exists() {
        return Ok(());
    }
    Rollouts::read(out).map(|_| ()).map_err(|error| {
        Error::Usage(format!("{} is there and holds no rollouts, so it is not written over: {error}", out.display()))
    })
}

/// The prompts of a file, or the project's own.
pub(super) fn read_prompts(path: Option<&Path>) -> Result<PromptSet, Error> {
    let Some(path) = path else { return Ok(PromptSet::built_in()) };
    let failed = |source| Error::File { what: "prompts", path: path.display().to_string(), source };
    let bytes = files::read(path, PROMPTS_BYTES).map_err(failed)?;
    if bytes.len() > PROMPTS_BYTES {
        return Err(Error::Usage(format!("{}: a prompts file has at most {PROMPTS_BYTES} bytes", path.display())));
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let place = error.utf8_error().valid_up_to();
        Error::Usage(format!("{}: a prompts file is UTF-8, this is not at byte {place}", path.display()))
    })?;
    Ok(PromptSet::parse(&text)?)
}

/// The rewards that a command line names; learned ones read this model.
pub(super) fn find_rewards(specs: &[String], model: &ModelArguments) -> Result<Vec<SharedReward>, Error> {
    let opening = Opening { compilation: &super::compilation(), model: &|| model.resolve() };
    rewards::find(specs, &opening)
}

/// Says where a reward was made for responses of another length than these.
pub(super) fn warn_of_limits<'a>(rewards: impl IntoIterator<Item = &'a SharedReward>, token_limit: u32) {
    for reward in rewards {
        if let Some(limit) = reward.token_limit().filter(|&limit| limit != token_limit as usize) {
            complain(&format!(
                "{} was learned from answers of at most {limit} tokens and reads no more; these responses have up to {token_limit}",
                reward.name()
            ));
        }
    }
}

/// A bar on standard error, with the time left.
pub(super) fn bar(total: usize, what: &'static str) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} {eta}");
    ProgressBar::new(total as u64).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar())).with_message(what)
}

/// SHA-256 of a file.
pub(super) fn file_sha256(what: &'static str, path: &Path) -> Result<String, Error> {
    use sha2::{Digest, Sha256};
    let failed = |source| Error::File { what, path: path.display().to_string(), source };
    Ok(hexadecimal(&Sha256::digest(std::fs::read(path).map_err(failed)?)))
}

#[derive(Debug, Args)]
pub(super) struct LearnArguments {
    /// A reward, as `sentiment`, `short:length=20` or `./mine.wasm`; may repeat.
    #[arg(long = "reward", value_name = "REWARD", required = true)]
    rewards: Vec<String>,
    /// JSON lines with "id", "kind" and "prompt"; the project's own prompts where there is none.
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// Responses a prompt that heads are fitted to.
    #[arg(long, default_value_t = 24, value_parser = between(2, 1024))]
    samples: usize,
    /// Responses a test prompt that Best-of-n is computed from.
    #[arg(long, default_value_t = 64, value_parser = between(2, 1024))]
    pool: usize,
    /// Response tokens at most.
    #[arg(long, default_value_t = 60, value_parser = between(1, rollouts::TOKENS_MAX as u64))]
    max_tokens: usize,
    /// Rank of the one-pass heads, 1 to 64.
    #[arg(long, default_value_t = 32, value_parser = between(1, RANK_MAX as u64))]
    rank: usize,
    /// Fixes every draw; the pool has the next.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Fits and evaluates the methods too that Value Augmented Sampling is compared with.
    #[arg(long)]
    comparison: bool,
    /// A quick evaluation: 60 prompts, one seed, one divergence, no grid.
    #[arg(long)]
    quick: bool,
    /// The folder that gets learn.parquet, test.parquet, heads and report.
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
    #[command(flatten)]
    model: ModelArguments,
}

pub(super) fn learn(arguments: &LearnArguments) -> Result<(), Error> {
    // What is named wrongly is said before the first hour is spent.
    let names: Vec<String> =
        find_rewards(&arguments.rewards, &arguments.model)?.iter().map(|reward| reward.name().to_owned()).collect();
    let folder_failed = |source| Error::File { what: "folder", path: arguments.out.display().to_string(), source };
    std::fs::create_dir_all(&arguments.out).map_err(folder_failed)?;
    let [learned, pool, heads, report] =
        ["learn.parquet", "test.parquet", "heads", "report"].map(|name| arguments.out.join(name));
    sampled(arguments, &[Split::Learn, Split::Tune], arguments.samples, arguments.seed, &learned)?;
    fitted(arguments, &learned, &heads, names)?;
    sampled(arguments, &[Split::Test], arguments.pool, arguments.seed.wrapping_add(1), &pool)?;
    complain(&format!("vassal evaluate --pool {} --heads {}", pool.display(), heads.display()));
    evaluate(&EvaluateArguments::of_learned(
        (pool, heads, report),
        (arguments.prompts.clone(), arguments.rewards.clone()),
        arguments.quick,
        arguments.model.clone(),
    ))
}

/// Rollouts of these splits, scored by every reward.
fn sampled(arguments: &LearnArguments, splits: &[Split], samples: usize, seed: u64, out: &Path) -> Result<(), Error> {
    let shown = out.display();
    if out.exists() {
        let header = Rollouts::read(out)?.header;
        let set = read_prompts(arguments.prompts.as_deref())?;
        let same = header.prompts_sha256 == set.sha256
            && (header.samples as usize, header.token_limit as usize) == (samples, arguments.max_tokens)
            && (header.seed, header.splits.as_slice()) == (seed, splits);
        if !same {
            return Err(Error::Usage(format!(
                "{shown} has rollouts of other prompts, another number of samples or tokens, or another seed: give another --out, or \
                 remove it to start over"
            )));
        }
    } else {
        complain(&format!("vassal rollout --samples {samples} --seed {seed} --out {shown}"));
        rollout(&RolloutArguments {
            prompts: arguments.prompts.clone(),
            samples,
            splits: splits.to_vec(),
            max_tokens: arguments.max_tokens,
            temperature: 1.0,
            top_p: 1.0,
            seed,
            rewards: Vec::new(),
            out: out.to_path_buf(),
            model: arguments.model.clone(),
        })?;
    }
    complain(&format!("vassal reward --rollouts {shown} --out {shown}"));
    reward(&RewardArguments {
        rollouts: out.to_path_buf(),
        rewards: arguments.rewards.clone(),
        replace: false,
        out: out.to_path_buf(),
        json: false,
        model: arguments.model.clone(),
    })
}

/// Heads of the rewards, unless all of them are there and were fitted to this very file.
fn fitted(arguments: &LearnArguments, rollouts: &Path, heads: &Path, names: Vec<String>) -> Result<(), Error> {
    let sha256 = file_sha256("rollouts", rollouts)?;
    let own = HeadKind::ALL.map(HeadKind::name).to_vec();
    let kinds = if arguments.comparison { head_kinds() } else { own };
    let is_there = |name: &String, kind: &&str| {
        let head = HeadFile::open(&head_path(heads, name, kind));
        head.is_ok_and(|head| head.description.provenance.rollouts_sha256 == sha256)
    };
    if names.iter().all(|name| kinds.iter().all(|kind| is_there(name, kind))) {
        return Ok(());
    }
    complain(&format!("vassal fit --rollouts {} --out {}", rollouts.display(), heads.display()));
    let how = FitArguments {
        prompts: arguments.prompts.clone(),
        rewards: names,
        layer: None,
        rank: arguments.rank,
        seed: arguments.seed,
        comparison: arguments.comparison,
        model: arguments.model.clone(),
    };
    fit(rollouts, heads, &how)
}
