//! `vassal evaluate`: base, Best-of-16 and `vas` on test prompts, as two tables and as JSON.
//!
//! What is measured, and how, is [`crate::learning::evaluation`]'s; here are flags, a progress bar and the
//! tables. Start at [`evaluate`].

use std::path::PathBuf;

use clap::Args;
use indicatif::ProgressBar;
use serde_json::{Value, json};

use super::learn::{bar, find_rewards, read_prompts};
use super::{ModelArguments, print, print_json};
use crate::engine::EngineOptions;
use crate::error::Error;
use crate::host::{Host, HostOptions};
use crate::learning::decoding::{Decoding, respond, vas};
use crate::learning::evaluation::{Estimate, Measured, best_of_pools, dial_for_kl, measure};
use crate::learning::prompts::{Prompt, Split};
use crate::learning::rewards::SharedReward;
use crate::learning::rollouts::{Rollouts, score};
use crate::learning::statistics::repeated_4;
use crate::model::heads::HeadKind;

/// Best-of-n that guided decoding is set against.
const BEST_OF: usize = 16;

#[derive(Debug, Args)]
pub(super) struct EvaluateArguments {
    /// The base model's pool: a file that `vassal rollout --splits test --samples 32` wrote.
    #[arg(long, value_name = "FILE")]
    base: PathBuf,
    /// The prompts file that it was made from; the project's own where there is none.
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// A reward, as `sentiment` or `short:length=20`; may repeat.
    #[arg(long = "reward", default_values = ["sentiment", "simplicity"])]
    rewards: Vec<String>,
    /// Dials are set to cost this many nats a token by the heads' own tables, measured on tune prompts; one or
    /// several budgets. Rewards are mixed half and half at the first.
    #[arg(long, value_name = "NATS", value_delimiter = ',', default_value = "0.25,0.12", value_parser = parse_nats)]
    kl: Vec<f64>,
    /// Candidates of a step.
    #[arg(long, default_value_t = 20)]
    candidates: usize,
    /// What becomes of the tokens that are not candidates: keep or mask.
    #[arg(long, default_value = "keep")]
    tail: String,
    /// Guided responses a prompt.
    #[arg(long, default_value_t = 2)]
    samples: usize,
    /// Only the first of the split's prompts.
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// The split: test, or tune while settings are chosen.
    #[arg(long, default_value = "test", value_parser = super::learn::parse_split)]
    split: Split,
    /// Fixes every draw.
    #[arg(long, default_value_t = 11)]
    seed: u64,
    /// Heads from this folder (as `vassal fit --out` writes them) instead of the shipped ones.
    #[arg(long, value_name = "FOLDER")]
    heads: Option<PathBuf>,
    /// One JSON object on standard output, and nothing else.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    model: ModelArguments,
}

/// One line of the tables.
struct Line {
    method: String,
    dials: String,
    measured: Measured,
}

pub(super) fn evaluate(arguments: &EvaluateArguments) -> Result<(), Error> {
    let set = read_prompts(arguments.prompts.as_deref())?;
    let rewards = find_rewards(&arguments.rewards)?;
    let rollouts = Rollouts::read(&arguments.base)?;
    rollouts.require_prompts(&set.sha256)?;
    let header = &rollouts.header;
    if (header.temperature, header.top_p) != (1.0, 1.0) {
        return Err(Error::Usage(format!(
            "{}: the pool must be samples at temperature 1 and top-p 1, as the methods are; its are {} and {}",
            arguments.base.display(),
            header.temperature,
            header.top_p
        )));
    }
    let groups = rollouts.groups(arguments.split, 2, BEST_OF)?;
    let count = arguments.limit.unwrap_or(usize::MAX).min(groups.len());
    let groups = &groups[..count];
    let find = |id: &str| set.prompts.iter().find(|prompt| prompt.id == id);
    let prompts: Vec<&Prompt> = groups.iter().filter_map(|group| find(&group.first()?.id)).collect();
    let pools: Vec<Vec<Vec<f64>>> = rewards.iter().map(|reward| score(groups, &**reward)).collect::<Result<_, _>>()?;
    let of_pools = |n| pools.iter().map(|pools| best_of_pools(pools, n, arguments.seed)).collect::<Vec<_>>();
    let (base, best) = (of_pools(1), of_pools(BEST_OF));

    let kinds = [HeadKind::LookAhead, HeadKind::OnePass];
    let runs = 1 + kinds.len() * (rewards.len() * arguments.kl.len() + usize::from(rewards.len() > 1));
    let progress = bar(runs * prompts.len() * arguments.samples, "responses");
    let mut lines = Vec::new();
    for (place, kind) in kinds.into_iter().enumerate() {
        let mut host = open(arguments, kind, &rewards)?;
        rollouts.require_model(&host.model().sha256)?;
        let dials_at = |host: &Host, kl: f64| -> Vec<(String, f64)> {
            let heads = || host.heads().iter().map(|head| &head.description);
            let table = |name| heads().find(|head| head.name == name).map(|head| &head.provenance.dial_to_kl);
            let dial = |name| table(name).map_or(0.0, |table| dial_for_kl(table, kl));
            rewards.iter().map(|reward| (reward.name().to_owned(), dial(reward.name()))).collect()
        };
        if place == 0 {
            let mut base = run(&mut host, arguments, &prompts, &rewards, "base", &[], &progress)?;
            if arguments.tail == "keep" {
                // The pool is the same distribution and many times the text, which so rare an event needs.
                let pool = groups.iter().flatten().map(|rollout| rollout.tokens.as_slice());
                base.measured.repeated_4 = repeated_4(pool).unwrap_or(base.measured.repeated_4);
            }
            lines.push(base);
        }
        for (budget, &kl) in arguments.kl.iter().enumerate() {
            let dials = dials_at(&host, kl);
            let mut settings: Vec<Vec<(String, f64)>> = dials.iter().map(|dial| vec![dial.clone()]).collect();
            if budget == 0 && dials.len() > 1 {
                settings.push(dials.iter().map(|(name, dial)| (name.clone(), dial / 2.0)).collect());
            }
            for dials in settings {
                lines.push(run(&mut host, arguments, &prompts, &rewards, kind.name(), &dials, &progress)?);
            }
        }
    }
    progress.finish_and_clear();
    if arguments.json {
        print_json(&report(arguments, &rewards, &base, &best, &lines, prompts.len()));
    } else {
        print(&tables(arguments, &rewards, &base, &best, &lines, prompts.len()));
    }
    Ok(())
}

fn parse_nats(text: &str) -> Result<f64, String> {
    let nats = text.parse::<f64>().ok().filter(|nats| nats.is_finite() && *nats > 0.0);
    nats.ok_or_else(|| format!("{text:?} is no number of nats above 0"))
}

fn open(arguments: &EvaluateArguments, kind: HeadKind, rewards: &[SharedReward]) -> Result<Host, Error> {
    let engine = EngineOptions { sequences_max: 24, cache_tokens: 24 * 512, ..EngineOptions::default() };
    let engine = arguments.model.device.engine(engine);
    let file =
        |folder: &PathBuf, reward: &SharedReward| folder.join(format!("{}.{}.safetensors", reward.name(), kind.name()));
    let heads = arguments.heads.iter().flat_map(|folder| rewards.iter().map(|reward| file(folder, reward))).collect();
    Host::open(&HostOptions { heads, head_kind: Some(kind), engine, ..arguments.model.resolve()? })
}

/// Decodes one method on all prompts.
fn run(
    host: &mut Host,
    arguments: &EvaluateArguments,
    prompts: &[&Prompt],
    rewards: &[SharedReward],
    method: &str,
    dials: &[(String, f64)],
    progress: &ProgressBar,
) -> Result<Line, Error> {
    let mut settings: Vec<(&str, String)> =
        dials.iter().map(|(name, dial)| (name.as_str(), dial.to_string())).collect();
    // Base samples are drawn with the same tail: fluency is compared like with like.
    settings.push(("candidates", arguments.candidates.to_string()));
    settings.push(("tail", arguments.tail.clone()));
    let policies = vec![vas(host, &settings)?];
    let max_tokens = host.heads().first().map_or(60, |head| head.description.token_limit as usize);
    let decoding = Decoding { policies, samples: arguments.samples, max_tokens, seed: arguments.seed };
    let responses = respond(host, prompts, &decoding, || progress.inc(1))?;
    let dials: Vec<String> = dials.iter().map(|(name, dial)| format!("{name} {dial:.2}")).collect();
    Ok(Line {
        method: method.to_owned(),
        dials: dials.join(", "),
        measured: measure(prompts, &responses, rewards, arguments.seed)?,
    })
}

fn cell(estimate: &Estimate) -> String {
    format!("{:.3} [{:.3}, {:.3}]", estimate.mean, estimate.interval.start(), estimate.interval.end())
}

/// How far a method comes from base to Best-of-n.
fn share(value: f64, base: &Estimate, best: &Estimate) -> f64 {
    (value - base.mean) / (best.mean - base.mean)
}

fn tables(
    arguments: &EvaluateArguments,
    rewards: &[SharedReward],
    base: &[Estimate],
    best: &[Estimate],
    lines: &[Line],
    prompts: usize,
) -> String {
    let mut out = format!(
        "{prompts} {} prompts, T = 1, top-p 1, {} candidates, tail {}; base and Best-of-{BEST_OF} from a pool of\n\
         samples by the unbiased estimator, guided methods {} responses a prompt; 95 % bootstrap over prompts;\n\
         \"way\" is the share of the way from base to Best-of-{BEST_OF}.\n\n",
        arguments.split.name(),
        arguments.candidates,
        arguments.tail,
        arguments.samples
    );
    out.push_str("| method | dials |");
    rewards.iter().for_each(|reward| out.push_str(&format!(" {} | way |", reward.name())));
    out.push_str("\n|---|---|");
    rewards.iter().for_each(|_| out.push_str("---|---|"));
    out.push('\n');
    for (name, estimates) in [("base".to_owned(), base), (format!("Best-of-{BEST_OF}"), best)] {
        out.push_str(&format!("| {name} (pool) | |"));
        let ways = estimates.iter().zip(base.iter().zip(best));
        ways.for_each(|(own, (base, best))| {
            out.push_str(&format!(" {} | {:.2} |", cell(own), share(own.mean, base, best)))
        });
        out.push('\n');
    }
    for line in lines {
        out.push_str(&format!("| {} | {} |", line.method, line.dials));
        let ways = line.measured.rewards.iter().zip(base.iter().zip(best));
        ways.for_each(|(own, (base, best))| {
            out.push_str(&format!(" {} | {:.2} |", cell(own), share(own.mean, base, best)))
        });
        out.push('\n');
    }
    out.push_str("\nCost and fluency; ratios are to the base samples decoded beside them (repeated 4-grams: to the pool's, where the \
         tail is kept).\n\n",
    );
    out.push_str("| method | dials | KL a token | forwards a token | tail draws | cross-entropy | ratio | distinct-2 | ratio | repeated 4-grams | ratio |\n");
    out.push_str("|---|---|---|---|---|---|---|---|---|---|---|\n");
    let Some(reference) = lines.first().map(|line| &line.measured) else { return out };
    for line in lines {
        let own = &line.measured;
        out.push_str(&format!(
            "| {} | {} | {:.3} | {:.2} | {:.1} % | {:.3} | {:.2} | {:.3} | {:.2} | {:.4} | {:.2} |\n",
            line.method,
            line.dials,
            own.kl_per_token,
            own.forwards_per_token,
            100.0 * own.tail_share,
            own.cross_entropy,
            own.cross_entropy / reference.cross_entropy,
            own.distinct_2,
            own.distinct_2 / reference.distinct_2,
            own.repeated_4,
            own.repeated_4 / reference.repeated_4
        ));
    }
    out
}

fn report(
    arguments: &EvaluateArguments,
    rewards: &[SharedReward],
    base: &[Estimate],
    best: &[Estimate],
    lines: &[Line],
    prompts: usize,
) -> Value {
    let estimates = |estimates: &[Estimate]| -> Value {
        let one = |(reward, own): (&SharedReward, &Estimate)| {
            (
                reward.name().to_owned(),
                json!({ "mean": own.mean, "ci_low": own.interval.start(), "ci_high": own.interval.end() }),
            )
        };
        rewards.iter().zip(estimates).map(one).collect::<serde_json::Map<_, _>>().into()
    };
    let line = |line: &Line| {
        let own = &line.measured;
        json!({
            "method": line.method, "dials": line.dials, "rewards": estimates(&own.rewards), "kl_per_token": own.kl_per_token,
            "cross_entropy": own.cross_entropy, "distinct_2": own.distinct_2, "repeated_4": own.repeated_4,
            "forwards_per_token": own.forwards_per_token, "tail_share": own.tail_share,
        })
    };
    json!({
        "prompts": prompts, "split": arguments.split.name(), "samples": arguments.samples, "seed": arguments.seed,
        "candidates": arguments.candidates, "tail": arguments.tail,
        "base": estimates(base), "best_of": { "n": BEST_OF, "rewards": estimates(best) },
        "methods": lines.iter().map(line).collect::<Vec<_>>(),
    })
}
