//! Learning end to end through the program, on a tiny model and prompts of this test: `vassal rollout`, `vassal reward`,
//! `vassal fit`. What comes of the heads, `vassal evaluate`, is `tests/cli_evaluation.rs`'s.
//!
//! The toy model's text is noise in which VADER finds no word, so the reward is `simplicity` alone: words of noise
//! have lengths too. That heads of the default model are worth something is measured by the commands in
//! `docs/evaluation.md`; here it is that each stage reads what the one before has written, says where it comes from,
//! and gives the same bytes again.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use vassal::host::hexadecimal;
use vassal::learning::prompts::{PromptSet, Split};
use vassal::learning::rewards::{BuiltIn, Reward};
use vassal::learning::rollouts::{Rollout, Rollouts};
use vassal::model::heads::{HeadFile, HeadKind, HeadWeights};
use vassal::model::synthetic::SyntheticModel;

use crate::program::{Run, folder, tiny, written};

const MAX_TOKENS: usize = 12;

/// Prompts that fall into all three splits.
pub(crate) fn prompts() -> (String, PromptSet) {
    let line = |n: u32| json!({ "id": format!("p{n}"), "kind": "count", "prompt": format!("say {n} words") });
    let text: String = (0..48).map(|n| format!("{}\n", line(n))).collect();
    let set = PromptSet::parse(&text).unwrap();
    let count = |split| set.of(split).count();
    assert!(count(Split::Learn) >= 16 && count(Split::Tune) >= 3 && count(Split::Test) >= 3, "{set:?}");
    (written("prompts.jsonl", text.as_bytes()), set)
}

/// A command of learning on the tiny model and these prompts, done.
#[track_caller]
pub(crate) fn done(command: &str, prompts: &str, arguments: &[&str]) -> Run {
    let run = Run::of(&[&[command, "--model", tiny(), "--prompts", prompts, "--threads", "2"], arguments].concat());
    assert_eq!(run.code, Some(0), "{run:?}");
    run
}

/// `vassal reward`, done, with its JSON.
#[track_caller]
fn reward(rollouts: &str, rewards: &[&str], out: &str) -> Value {
    let rewards: Vec<&str> = rewards.iter().flat_map(|reward| ["--reward", reward]).collect();
    Run::of(&[&["reward", "--rollouts", rollouts, "--out", out, "--json"], &rewards[..]].concat()).object(0)
}

fn rollout(prompts: &str, out: &str, seed: &str, arguments: &[&str]) -> Rollouts {
    let limit = MAX_TOKENS.to_string();
    let fixed = ["--out", out, "--seed", seed, "--max-tokens", &limit];
    let run = done("rollout", prompts, &[&fixed[..], arguments].concat());
    assert_eq!(run.out, "");
    Rollouts::read(Path::new(out)).unwrap()
}

pub(crate) fn sha256(path: &str) -> String {
    hexadecimal(&Sha256::digest(std::fs::read(path).unwrap()))
}

#[test]
fn learning_on_a_tiny_model_from_rollouts_to_heads() {
    let (prompts, set) = prompts();
    let path = |name: &str| folder().join(name).to_str().unwrap().to_owned();
    let (learned, pool, heads) = (path("learn.parquet"), path("pool.parquet"), path("learned-heads"));
    let _ = std::fs::remove_dir_all(&heads);

    let rollouts = rollout(&prompts, &learned, "3", &["--samples", "8"]);
    check_rollouts(&rollouts, &set);
    let bytes = std::fs::read(&learned).unwrap();
    // Another seed draws other responses; a few are so short that they come out alike.
    let tokens = |rollouts: Rollouts| -> BTreeMap<(String, u32), Vec<u32>> {
        rollouts.all.into_iter().map(|rollout| ((rollout.id, rollout.sample), rollout.tokens)).collect()
    };
    let (other, own) = (tokens(rollout(&prompts, &learned, "4", &["--samples", "8"])), tokens(rollouts));
    let alike = own.iter().filter(|(key, tokens)| other[*key] == **tokens).count();
    assert!(10 * alike < own.len(), "{alike} of {} are alike", own.len());
    rollout(&prompts, &learned, "3", &["--samples", "8"]);
    assert!(std::fs::read(&learned).unwrap() == bytes, "the same command writes the same bytes");

    let fit = ["--rollouts", &learned, "--rank", "4", "--out", &heads];
    let run = Run::of(&[&["fit", "--model", tiny(), "--prompts", &prompts], &fit[..]].concat());
    run.refuses(2, &["`vassal reward`"]);
    let table = reward(&learned, &["simplicity"], &learned);
    assert_eq!((&table["rollouts"], &table["rewards"][0]["name"]), (&json!(own.len()), &json!("simplicity")));
    let scored = std::fs::read(&learned).unwrap();
    assert!(scored != bytes);
    reward(&learned, &["simplicity"], &learned);
    assert!(std::fs::read(&learned).unwrap() == scored, "a column that is there is left as it is");
    done("fit", &prompts, &fit);
    let names = ["look-ahead", "one-pass"].map(|kind| format!("{heads}/simplicity.{kind}.safetensors"));
    let files = names.each_ref().map(|name| std::fs::read(name).unwrap());
    for (name, kind) in names.iter().zip([HeadKind::LookAhead, HeadKind::OnePass]) {
        check_head(name, kind, &prompts, &learned, &set);
    }
    done("fit", &prompts, &fit);
    assert!(names.each_ref().map(|name| std::fs::read(name).unwrap()) == files, "and the fit the same heads");

    let run = done("rollout", &prompts, &pool_arguments(&pool));
    assert!(run.out.contains("| simplicity |"), "{run:?}");
    let run = Run::of(&[&["fit", "--model", tiny(), "--prompts", &prompts, "--rollouts", &pool], &fit[2..]].concat());
    run.refuses(2, &["no rollouts of learn prompts", "--splits test"]);
    // Rollouts of other prompts are no material.
    let other = written("other-prompts.jsonl", b"{\"id\": \"a\", \"kind\": \"b\", \"prompt\": \"c\"}\n");
    let run = Run::of(&[&["fit", "--model", tiny(), "--prompts", &other], &fit[..]].concat());
    run.refuses(2, &[&set.sha256, &sha256(&other)]);
    let run =
        Run::of(&[&["fit", "--model", tiny(), "--prompts", &prompts, "--reward", "sentiment"], &fit[..]].concat());
    run.refuses(2, &["\"sentiment\"", "they have: simplicity"]);
}

/// A pool that its reward scores at once.
pub(crate) fn pool_arguments(out: &str) -> Vec<&str> {
    let fixed = ["--out", out, "--seed", "5", "--max-tokens", "12", "--samples", "16", "--splits", "test"];
    [&fixed[..], &["--reward", "simplicity"]].concat()
}

fn check_rollouts(rollouts: &Rollouts, set: &PromptSet) {
    let header = &rollouts.header;
    assert_eq!(header.model_sha256, sha256(tiny()));
    assert_eq!(header.prompts_sha256, set.sha256);
    assert_eq!((header.seed, header.samples, header.token_limit as usize), (3, 8, MAX_TOKENS));
    let expected = set.of(Split::Learn).chain(set.of(Split::Tune));
    let expected: HashSet<(&str, u32)> =
        expected.flat_map(|prompt| (0..8).map(|sample| (prompt.id.as_str(), sample))).collect();
    let found: HashSet<(&str, u32)> =
        rollouts.all.iter().map(|rollout| (rollout.id.as_str(), rollout.sample)).collect();
    assert_eq!((found.len(), found), (rollouts.all.len(), expected));
    let fits = |rollout: &Rollout| (1..=MAX_TOKENS).contains(&rollout.tokens.len());
    assert!(rollouts.all.iter().all(fits));
}

fn check_head(path: &str, kind: HeadKind, prompts: &str, rollouts: &str, set: &PromptSet) {
    let HeadFile { description, weights } = HeadFile::open(Path::new(path)).unwrap();
    let model = SyntheticModel::default();
    assert_eq!((description.name.as_str(), description.kind), ("simplicity", kind));
    assert_eq!(description.model_sha256, sha256(tiny()));
    assert_eq!((description.layers, description.layer, description.hidden), (3, 3, model.hidden));
    assert_eq!(description.token_limit as usize, MAX_TOKENS);
    assert!(description.spread.is_finite() && description.spread > 0.0);
    let provenance = description.provenance;
    assert_eq!((provenance.prompts_sha256, provenance.rollouts_sha256), (sha256(prompts), sha256(rollouts)));
    let learn = set.of(Split::Learn).count();
    assert_eq!((provenance.prompts, provenance.rollouts, provenance.samples), (learn, 8 * learn, 8));
    assert!(provenance.explained.is_finite() && provenance.explained <= 1.0, "{}", provenance.explained);
    assert!(provenance.command.contains("vassal fit"), "{}", provenance.command);
    assert_eq!(provenance.reward, BuiltIn::simplicity().definition());
    let table = provenance.dial_to_kl;
    assert!(table.len() >= 3 && table.is_sorted_by(|a, b| a.0 < b.0), "{table:?}");
    assert!(table.iter().all(|(_, kl)| kl.is_finite() && *kl > 0.0), "{table:?}");
    match weights {
        HeadWeights::LookAhead(head) => assert!(head.residual.iter().chain(&head.mean).any(|weight| *weight != 0.0)),
        HeadWeights::OnePass(head) => assert!(head.rank == 4 && head.embedding.iter().any(|weight| *weight != 0.0)),
    }
}
