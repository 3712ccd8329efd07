//! `vassal reward`: lets rewards score the rollouts of a file, a column each.
//!
//! The file is written whole or not at all. What rewards before the last have said stands in `OUT.part` meanwhile, so
//! that a command that was killed asks only those again that were not done. Start at [`reward`].

use std::fs::File;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Value, json};

use super::learn::{bar, check_out, find_rewards, warn_of_limits};
use super::{ModelArguments, print, print_json};
use crate::error::Error;
use crate::files;
use crate::learning::journal::{self, JournalError};
use crate::learning::rewards::{Scores, SharedReward};
use crate::learning::rollouts::{RewardAbout, Rollouts, RolloutsError, part_of};
use crate::learning::statistics::mean;

/// Responses that a reward is asked for at once.
const BATCH: usize = 256;

#[derive(Debug, Args)]
pub(super) struct RewardArguments {
    /// A file that `vassal rollout` wrote.
    #[arg(long, value_name = "FILE")]
    pub(super) rollouts: PathBuf,
    /// A reward, as `sentiment` or `short:length=20`; may repeat.
    #[arg(long = "reward", value_name = "REWARD", required = true)]
    pub(super) rewards: Vec<String>,
    /// A reward takes the place of another one of its name, if that scored these rollouts before.
    #[arg(long)]
    pub(super) replace: bool,
    /// The file to write: the rollouts with a column for each reward more. It may be the one that is read.
    #[arg(long, value_name = "FILE")]
    pub(super) out: PathBuf,
    /// One JSON object on standard output, and nothing else.
    #[arg(long)]
    pub(super) json: bool,
    /// The model that made the rollouts; only a learned reward reads it.
    #[command(flatten)]
    pub(super) model: ModelArguments,
}

pub(super) fn reward(arguments: &RewardArguments) -> Result<(), Error> {
    let rewards = find_rewards(&arguments.rewards, &arguments.model)?;
    // Two at once on one file would each write what they have read with their own columns, and the other's would be lost.
    let same = |out: &Path| Some(out.canonicalize().ok()? == arguments.rollouts.canonicalize().ok()?);
    let _locked = if same(&arguments.out) == Some(true) { Some(lock(&arguments.out)?) } else { None };
    let mut rollouts = Rollouts::read(&arguments.rollouts)?;
    warn_of_limits(&rewards, rollouts.header.token_limit);
    check_out(&arguments.out)?;
    let mut missing = missing(&rollouts, &rewards, arguments.replace)?;
    let part = part_of(&arguments.out);
    if let Some(unfinished) = unfinished(&part, &rollouts)? {
        missing = take_over(&mut rollouts, &unfinished, missing);
    }
    let mut kept = part.exists();
    for (place, reward) in missing.iter().enumerate() {
        let scores = score(&rollouts, reward)?;
        rollouts.add(&***reward, scores);
        if place + 1 < missing.len() {
            rollouts.write(&part)?;
            kept = true;
        }
    }
    rollouts.write(&arguments.out)?;
    // Another one that has locked the new file since may have taken it up already, and removed it.
    if kept
        && let Err(source) = std::fs::remove_file(&part)
        && source.kind() != std::io::ErrorKind::NotFound
    {
        return Err(RolloutsError::File { path: part, source }.into());
    }
    if arguments.json {
        print_json(&report(&rollouts, &arguments.out));
    } else {
        print_summaries(&rollouts);
    }
    Ok(())
}

/// The file of rollouts, locked as long as it is open.
fn lock(path: &Path) -> Result<File, RolloutsError> {
    let failed = |source| RolloutsError::File { path: path.to_path_buf(), source };
    let file = files::open(path).map_err(failed)?;
    if journal::lock(&file, path).map_err(failed)? {
        return Ok(file);
    }
    Err(JournalError::Busy { path: path.to_path_buf() }.into())
}

/// The rewards that have no column in the file, or another's that they shall replace.
fn missing<'a>(
    rollouts: &Rollouts,
    rewards: &'a [SharedReward],
    replace: bool,
) -> Result<Vec<&'a SharedReward>, RolloutsError> {
    let mut missing = Vec::new();
    for reward in rewards {
        match rollouts.rewards.iter().find(|about| about.name == reward.name()) {
            Some(about) if about.definition == reward.definition() => {}
            Some(about) if !replace => {
                let (name, theirs) = (about.name.clone(), about.definition.clone());
                return Err(RolloutsError::OtherReward { name, theirs, ours: reward.definition() });
            }
            _ => missing.push(reward),
        }
    }
    Ok(missing)
}

/// What a run that was killed left of the same rollouts; an error where something else is in the way.
fn unfinished(part: &Path, rollouts: &Rollouts) -> Result<Option<Rollouts>, RolloutsError> {
    if !part.exists() {
        return Ok(None);
    }
    let in_the_way = |reason: String| JournalError::Foreign { path: part.to_path_buf(), reason }.into();
    let unfinished = Rollouts::read(part).map_err(|error| -> RolloutsError { in_the_way(error.to_string()) })?;
    if !rollouts.same_rollouts(&unfinished) {
        return Err(in_the_way("it has other rollouts".to_owned()));
    }
    Ok(Some(unfinished))
}

/// Takes over the columns that are done; the rewards that are still missing come back.
fn take_over<'a>(
    rollouts: &mut Rollouts,
    unfinished: &Rollouts,
    missing: Vec<&'a SharedReward>,
) -> Vec<&'a SharedReward> {
    let is = |about: &RewardAbout, reward: &SharedReward| {
        about.name == reward.name() && about.definition == reward.definition()
    };
    let (done, missing): (Vec<_>, Vec<_>) =
        missing.into_iter().partition(|reward| unfinished.rewards.iter().any(|about| is(about, reward)));
    for reward in done {
        let place = unfinished.rewards.iter().position(|about| is(about, reward)).unwrap_or_default();
        let scores = unfinished.all.iter().map(|rollout| rollout.scores[place]).collect();
        let failures = unfinished.rewards[place].failures.clone();
        rollouts.add(&**reward, Scores { reward: reward.name().to_owned(), scores, failures });
    }
    missing
}

/// Asks one reward for all rollouts.
pub(super) fn score(rollouts: &Rollouts, reward: &SharedReward) -> Result<Scores, Error> {
    let exchanges = rollouts.exchanges();
    let bar = bar(exchanges.len(), "scores");
    let mut given = Vec::with_capacity(exchanges.len());
    for batch in exchanges.chunks(BATCH) {
        given.extend(reward.score(batch)?);
        bar.inc(batch.len() as u64);
    }
    bar.finish();
    Ok(Scores::new(reward.name(), given).accept()?)
}

/// What a column comes to.
struct Summary {
    mean: f64,
    /// The standard deviation over all rollouts.
    sd: f64,
    min: f64,
    max: f64,
    unscored: usize,
}

fn summary(rollouts: &Rollouts, place: usize) -> Summary {
    let scores: Vec<f64> = rollouts.all.iter().filter_map(|rollout| rollout.scores[place]).collect();
    let mean_of_all = mean(&scores);
    let squares: Vec<f64> = scores.iter().map(|score| (score - mean_of_all).powi(2)).collect();
    Summary {
        mean: mean_of_all,
        sd: mean(&squares).sqrt(),
        min: scores.iter().copied().fold(f64::INFINITY, f64::min),
        max: scores.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        unscored: rollouts.all.len() - scores.len(),
    }
}

/// A table of all columns.
pub(super) fn print_summaries(rollouts: &Rollouts) {
    let mut out = format!(
        "{} rollouts\n\n| reward | mean | sd | min | max | unscored |\n|---|---|---|---|---|---|\n",
        rollouts.all.len()
    );
    for (place, about) in rollouts.rewards.iter().enumerate() {
        let Summary { mean, sd, min, max, unscored } = summary(rollouts, place);
        let reasons: Vec<String> = about.failures.iter().map(|(reason, count)| format!("{count} x {reason}")).collect();
        let reasons = if reasons.is_empty() { String::new() } else { format!(": {}", reasons.join("; ")) };
        let name = &about.name;
        out.push_str(&format!("| {name} | {mean:.4} | {sd:.4} | {min:.4} | {max:.4} | {unscored}{reasons} |\n"));
    }
    print(&out);
}

fn report(rollouts: &Rollouts, out: &Path) -> Value {
    let line = |(place, about): (usize, &RewardAbout)| {
        let Summary { mean, sd, min, max, unscored } = summary(rollouts, place);
        json!({
            "name": about.name, "definition": about.definition, "mean": mean, "sd": sd, "min": min, "max": max,
            "unscored": unscored, "reasons": about.failures,
        })
    };
    json!({
        "out": out.display().to_string(), "rollouts": rollouts.all.len(),
        "rewards": rollouts.rewards.iter().enumerate().map(line).collect::<Vec<_>>(),
    })
}
