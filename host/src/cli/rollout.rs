//! `vassal rollout`: samples responses of the base model, for learning.
//!
//! Every draw is fixed by the seed, the prompt's place and the sample's number, so a command that was killed goes on with
//! what its journal lacks and writes the same bytes in the end. Start at [`rollout`].

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;

use clap::Args;

use super::learn::{SEQUENCES, bar, check_out, find_rewards, parse_split, read_prompts, warn_of_limits};
use super::reward::{print_summaries, score};
use super::{ModelArguments, between, complain};
use crate::engine::{EngineOptions, Event, Finish, SequenceId};
use crate::error::Error;
use crate::host::{Host, HostOptions};
use crate::learning::prompts::{Prompt, Split};
use crate::learning::rollouts::{self, End, Header, Journal, Rollout, Rollouts};
use crate::request::Request;

#[derive(Debug, Args)]
pub(super) struct RolloutArguments {
    /// JSON lines with "id", "kind" and "prompt"; the project's own prompts where there is none.
    #[arg(long, value_name = "FILE")]
    pub(super) prompts: Option<PathBuf>,
    /// Responses a prompt.
    #[arg(long, default_value_t = 16, value_parser = between(1, 1024))]
    pub(super) samples: usize,
    /// Only prompts of these splits.
    #[arg(long, value_delimiter = ',', default_value = "learn,tune", value_parser = parse_split)]
    pub(super) splits: Vec<Split>,
    /// Response tokens at most.
    #[arg(long, default_value_t = 60, value_parser = between(1, rollouts::TOKENS_MAX as u64))]
    pub(super) max_tokens: usize,
    /// Temperature of the draws.
    #[arg(long, default_value_t = 1.0)]
    pub(super) temperature: f32,
    /// Nucleus of the draws.
    #[arg(long, default_value_t = 1.0)]
    pub(super) top_p: f32,
    /// Fixes every draw.
    #[arg(long, default_value_t = 1)]
    pub(super) seed: u64,
    /// A reward that scores the rollouts at once, as `vassal reward` would; may repeat.
    #[arg(long = "reward", value_name = "REWARD")]
    pub(super) rewards: Vec<String>,
    /// The file to write. What there is of it stands beside it until then, under its name and `.part`: the same command
    /// goes on from there.
    #[arg(long, value_name = "FILE")]
    pub(super) out: PathBuf,
    #[command(flatten)]
    pub(super) model: ModelArguments,
}

pub(super) fn rollout(arguments: &RolloutArguments) -> Result<(), Error> {
    check_out(&arguments.out)?;
    let set = read_prompts(arguments.prompts.as_deref())?;
    let rewards = find_rewards(&arguments.rewards, &arguments.model)?;
    warn_of_limits(&rewards, arguments.max_tokens as u32);
    let splits: Vec<Split> =
        [Split::Learn, Split::Tune, Split::Test].into_iter().filter(|split| arguments.splits.contains(split)).collect();
    let prompts: Vec<&Prompt> = set.prompts.iter().filter(|prompt| splits.contains(&prompt.split)).collect();
    let count = prompts.len() * arguments.samples;
    if count == 0 || count > rollouts::ROLLOUTS_MAX {
        let most = rollouts::ROLLOUTS_MAX;
        return Err(Error::Usage(format!("a file has 1 to {most} rollouts, asked for are {count}")));
    }
    let engine = EngineOptions { sequences_max: SEQUENCES, cache_tokens: SEQUENCES * 512, ..EngineOptions::default() };
    let engine = arguments.model.device.engine(engine);
    let mut host = Host::open(&HostOptions { head_kind: None, engine, ..arguments.model.resolve()? })?;
    let header = Header {
        format: rollouts::FORMAT.to_owned(),
        model_sha256: host.model().sha256.clone(),
        prompts_sha256: set.sha256.clone(),
        splits,
        seed: arguments.seed,
        samples: arguments.samples as u32,
        temperature: arguments.temperature,
        top_p: arguments.top_p,
        token_limit: arguments.max_tokens as u32,
        command: super::command_line(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    // Everything is checked before a journal stands that a better command would find in its way.
    let requests = prompts.iter().map(|prompt| request_of(&host, arguments, prompt)).collect::<Result<Vec<_>, _>>()?;
    let mut journal = Journal::open(&arguments.out, &header)?;
    let waiting = submit(&mut host, arguments, (&prompts, &requests), journal.rollouts())?;
    if waiting.len() < count {
        complain(&format!("{} of {count} rollouts are there already", count - waiting.len()));
    }
    sample(&mut host, waiting, count, &mut journal)?;
    drop(host);

    let mut rollouts = journal.rollouts().clone();
    let places: HashMap<&str, usize> =
        prompts.iter().enumerate().map(|(place, prompt)| (prompt.id.as_str(), place)).collect();
    rollouts.all.sort_by_key(|rollout| (places.get(rollout.id.as_str()).copied(), rollout.sample));
    for reward in &rewards {
        let scores = score(&rollouts, reward)?;
        rollouts.add(&**reward, scores);
    }
    rollouts.write(&arguments.out)?;
    journal.remove()?;
    if !rewards.is_empty() {
        print_summaries(&rollouts);
    }
    Ok(())
}

/// What samples one prompt.
fn request_of(host: &Host, arguments: &RolloutArguments, prompt: &Prompt) -> Result<Request, Error> {
    let request = Request {
        max_tokens: Some(arguments.max_tokens),
        temperature: Some(arguments.temperature),
        top_p: Some(arguments.top_p),
        seed: Some(arguments.seed),
        ..host.request(&prompt.text)?
    };
    host.validate(request.clone())?;
    Ok(request)
}

/// Hands what is not there yet to the engine: each prompt's samples in runs of neighbours, which share its prefill.
fn submit<'a>(
    host: &mut Host,
    arguments: &RolloutArguments,
    (prompts, requests): (&[&'a Prompt], &[Request]),
    there: &Rollouts,
) -> Result<HashMap<SequenceId, (&'a Prompt, usize)>, Error> {
    let there: HashSet<(&str, u32)> = there.all.iter().map(|rollout| (rollout.id.as_str(), rollout.sample)).collect();
    let mut waiting = HashMap::new();
    for (place, prompt) in prompts.iter().enumerate() {
        let missing: Vec<usize> =
            (0..arguments.samples).filter(|&sample| !there.contains(&(prompt.id.as_str(), sample as u32))).collect();
        for run in missing.chunk_by(|one, next| one + 1 == *next) {
            // Every prompt has streams of its own, and every sample its place among them.
            let stream = (place * arguments.samples + run[0]) as u64;
            let request = host.validate(Request { stream, ..requests[place].clone() })?;
            let ids = host.engine().submit_samples(request, run.len())?;
            waiting.extend(ids.into_iter().zip(run).map(|(id, &sample)| (id, (*prompt, sample))));
        }
    }
    Ok(waiting)
}

/// Runs the engine until nothing waits; each step's rollouts are in the journal before the next.
fn sample(
    host: &mut Host,
    mut waiting: HashMap<SequenceId, (&Prompt, usize)>,
    count: usize,
    journal: &mut Journal,
) -> Result<(), Error> {
    let bar = bar(count, "rollouts");
    bar.set_position((count - waiting.len()) as u64);
    bar.reset_eta();
    while !host.engine().is_idle() {
        for event in host.engine().step()? {
            let Event::Finished { sequence, response } = event else { continue };
            let Some((prompt, sample)) = waiting.remove(&sequence) else { continue };
            let end = if response.finish == Finish::EndOfText { End::EndOfText } else { End::TokenLimit };
            journal.append(Rollout {
                id: prompt.id.clone(),
                prompt: prompt.text.clone(),
                split: prompt.split,
                sample: sample as u32,
                tokens: response.token_ids(),
                text: response.text.clone(),
                end,
                scores: Vec::new(),
            })?;
            bar.inc(1);
        }
        journal.flush()?;
    }
    bar.finish();
    Ok(())
}
