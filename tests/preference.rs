//! Learned rewards end to end through the program, on a tiny model and pairs of this test: `vassal fit preference`, then a column
//! by `vassal reward`, heads, and an evaluation that one reward guides and another one judges.
//!
//! In these pairs people like one set of words and not the other, and the longer answer a little more. A toy model's features
//! tell tokens apart, so that can be learned; what is learned of real pairs is measured by the commands of `docs/learning.md`.

use std::sync::OnceLock;

use serde_json::{Value, json};
use vassal::host::{Host, HostOptions};
use vassal::learning::rewards::{Exchange, Opening, find};
use vassal::model::synthetic::SyntheticModel;
use vassal::token::Vocabulary as _;

use crate::cli_learning::{done, prompts};
use crate::program::{Run, finite, folder, tiny, written};
use crate::support::compilation;

const GOOD: [&str; 4] = ["abba", "cab", "bead", "face"];
const BAD: [&str; 4] = ["zoo", "tutu", "your", "vows"];

fn words(of: [&str; 4], count: usize, turn: usize) -> String {
    (0..count).map(|n| of[(n * 3 + turn * turn) % 4]).collect::<Vec<_>>().join(" ")
}

/// Pairs from this number on: nine of ten prefer good words, and of equally many the one has some more.
fn pairs(name: &str, numbers: std::ops::Range<usize>) -> String {
    let line = |n: usize| {
        let (good, bad) = (words(GOOD, 4 + n % 5, n), words(BAD, 4 + n % 3, n));
        let (chosen, rejected) = if n.is_multiple_of(10) { (bad, good) } else { (good, bad) };
        let opening = json!({"role": "user", "content": format!("Say something about number {n}.")});
        json!({"id": n.to_string(), "prompt": [opening], "chosen": chosen, "rejected": rejected}).to_string() + "\n"
    };
    written(name, numbers.map(line).collect::<String>().as_bytes())
}

fn fit(pairs: &str, more: &[&str]) -> Run {
    let fixed = ["fit", "preference", "--model", tiny(), "--threads", "2", "--max-tokens", "12", "--json"];
    Run::of(&[&fixed[..], &["--pairs", pairs], more].concat())
}

/// Both rewards, fitted once, in a folder; and what the command said.
fn fitted() -> &'static (String, Value) {
    static FITTED: OnceLock<(String, Value)> = OnceLock::new();
    FITTED.get_or_init(|| {
        let out = folder().join("preference").to_str().unwrap().to_owned();
        let (own, held) = (pairs("pairs.jsonl", 0..480), pairs("held.jsonl", 1000..1160));
        let run = fit(&own, &["--validation", &held, "--name", "taste", "--out", &out]);
        (out, run.object(0))
    })
}

fn reward_file(name: &str) -> String {
    format!("{}/{name}.safetensors", fitted().0)
}

#[test]
fn two_rewards_of_disjoint_pairs_and_other_layers_order_unseen_pairs() {
    let rewards = fitted().1["rewards"].as_array().unwrap();
    let [proxy, gold] = &rewards[..] else { panic!("{rewards:?}") };
    assert_eq!((&proxy["name"], &gold["name"]), (&"taste".into(), &"taste-gold".into()));
    assert!(proxy["layer"].as_u64() < gold["layer"].as_u64(), "{rewards:?}");
    assert_eq!(proxy["pairs"].as_u64().unwrap() + gold["pairs"].as_u64().unwrap(), 480);
    for reward in rewards {
        let validation = &reward["validation"];
        assert_eq!(validation["pairs"], 160);
        let [low, high] = finite(&validation["accuracy"], ["ci_low", "mean"]);
        assert!(low > 0.75 && high < 0.95, "one of ten prefers the other: {validation}");
        let [length] = finite(&validation["accuracy_of_length"], ["mean"]);
        assert!((0.4..0.85).contains(&length), "{validation}");
    }
}

#[test]
fn a_learned_reward_scores_rollouts_and_is_known_by_its_bytes() {
    let (prompts, _) = prompts();
    let path = folder().join("tasted.parquet").to_str().unwrap().to_owned();
    done("rollout", &prompts, &["--out", &path, "--samples", "2", "--max-tokens", "12", "--splits", "test"]);
    let file = reward_file("taste");
    let score = |spec: &str| {
        let fixed = ["reward", "--model", tiny(), "--rollouts", &path, "--out", &path, "--json", "--reward", spec];
        Run::of(&fixed)
    };
    let found = score(&file).object(0);
    let column = &found["rewards"][0];
    assert_eq!(column["name"], "taste");
    assert!(column["definition"].as_str().unwrap().starts_with("learned "), "{column}");
    let [low, high, sd] = finite(column, ["min", "max", "sd"]);
    assert!(low > 0.0 && high < 1.0 && sd > 0.0, "{column}");
    assert_eq!(score(&file).object(0), found, "the same column is left as it is");
    let other = score(&format!("taste:{}", reward_file("taste-gold")));
    other.refuses(2, &["taste", "learned "]);
}

#[test]
fn scores_so_far_are_those_of_the_texts_so_far() {
    let options = || Ok(HostOptions { head_kind: None, ..HostOptions::new(tiny()) });
    let opening = Opening { compilation: &compilation(), model: &options };
    let reward = find(&[reward_file("taste")], &opening).unwrap().remove(0);
    let host = Host::open(&options().unwrap()).unwrap();
    let (prompt, text) = ("Say something.", "abba zoo face tutu cab");
    // More than the twelve tokens that it reads, with a token that is no text in the middle and at the end.
    let mut tokens = host.tokenizer().encode(text, false).unwrap();
    let end = host.tokenizer().end_of_text()[0];
    tokens.insert(4, end);
    tokens.push(end);
    assert!(tokens.len() > 13);
    let so_far = reward.score_so_far(prompt, &tokens, &|_| unreachable!("it reads tokens")).unwrap();
    assert_eq!(so_far.len(), tokens.len() + 1);
    for (count, so_far) in so_far.into_iter().enumerate() {
        let response = host.decode(&tokens[..count]);
        let whole = reward.score(&[Exchange { prompt, response: &response }]).unwrap().remove(0);
        assert!((so_far.unwrap() - whole.unwrap()).abs() < 1e-6, "{response:?}");
    }
    let long = vec![tokens[0]; 12];
    let unread = reward.score_so_far(&"x".repeat(10_000), &long, &|_| String::new()).unwrap();
    assert!(unread.len() == 13 && unread.iter().all(Result::is_err), "a prompt beyond the model's context");
}

#[test]
fn what_a_proxy_guides_a_gold_reward_judges() {
    let (prompts, _) = prompts();
    let path = |name: &str| folder().join(name).to_str().unwrap().to_owned();
    let (rollouts, pool, heads, out) =
        (path("taste.parquet"), path("taste-pool.parquet"), path("taste"), path("judged"));
    let (file, gold) = (reward_file("taste"), format!("taste={}", reward_file("taste-gold")));
    let sampled = ["--max-tokens", "12", "--reward", &file];
    done("rollout", &prompts, &[&["--out", &rollouts, "--samples", "16", "--seed", "3"][..], &sampled].concat());
    let of_pool = ["--out", &pool, "--samples", "16", "--seed", "5", "--splits", "test"];
    done("rollout", &prompts, &[&of_pool[..], &sampled].concat());
    done("fit", &prompts, &["--rollouts", &rollouts, "--rank", "4", "--out", &heads]);
    let evaluate = |judge: &str| {
        let _ = std::fs::remove_dir_all(&out);
        let fixed = ["evaluate", "--model", tiny(), "--prompts", &prompts, "--threads", "2", "--json", "--out", &out];
        let asked = ["--pool", &pool, "--heads", &heads, "--reward", &file, "--judge", judge];
        Run::of(&[&fixed[..], &asked, &["--kl", "0.3", "--seeds", "11", "--quick"]].concat())
    };
    let report = evaluate(&gold).object(0);
    let points = report["points"].as_array().unwrap();
    let of = |reward: &str, method: &str| {
        let found = points.iter().find(|point| point["reward"] == reward && point["method"] == method);
        found.unwrap_or_else(|| panic!("no {method} of {reward}"))
    };
    for reward in ["taste", "taste-gold"] {
        let [base, guided] = ["base", "vas"].map(|method| finite(of(reward, method), ["mean"])[0]);
        assert!(guided > base, "{reward}: {base} to {guided}");
        let [dial] = finite(of(reward, "vas"), ["dial"]);
        assert!(dial > 0.0, "a judge tells of the dial that was turned");
    }
    // A score is rows of the model, without logits: those of the proxy, by which Best-of-n chooses.
    let [plain] = finite(of("taste", "base"), ["forwards_per_token"]);
    let costs =
        ["taste", "taste-gold"].map(|reward| finite(of(reward, "best_of_n"), ["forwards_per_token"])[0] - plain);
    let layers = fitted().1["rewards"][0]["layer"].as_f64().unwrap() / SyntheticModel::default().layers as f64;
    assert!(costs[0] == costs[1] && costs[0] > 0.1 && costs[0] < layers, "{costs:?} for {layers} of the layers");
    assert!(report["rewards"]["taste-gold"]["summary"].as_str().unwrap().ends_with("judges what taste guides"));
    assert!(report["heads"].get("taste-gold").is_none());
    assert!(report["side_by_side"].as_array().unwrap().iter().all(|shown| shown["reward"] == "taste"));

    evaluate(&gold.replacen("taste", "tate", 1)).refuses(2, &["no reward to judge \"tate\"", "taste"]);
    evaluate(&format!("taste=taste:{}", reward_file("taste-gold"))).refuses(2, &["two rewards are named \"taste\""]);
    evaluate(&format!("taste=mine:{file}")).refuses(2, &["a reward cannot judge what it guides itself"]);
}

#[test]
fn pairs_and_files_that_cannot_be_used_are_refused_by_name() {
    let out = folder().join("unfitted").to_str().unwrap().to_owned();
    let own = pairs("some.jsonl", 0..480);
    let few = pairs("few.jsonl", 0..150);
    fit(&few, &["--out", &out]).refuses(2, &["few.jsonl", "at least 100 pairs"]);
    let known = pairs("known.jsonl", 479..600);
    fit(&own, &["--validation", &known, "--out", &out])
        .refuses(2, &["known.jsonl", "1 opening requests", "number 479"]);
    let broken = written("broken.jsonl", b"{\"id\": \"a\"}\n");
    fit(&broken, &["--out", &out]).refuses(2, &["broken.jsonl, line 1", "missing field"]);
    fit(&own, &["--gold-layer", "99", "--out", &out]).refuses(2, &["a layer of this model is 1 to", "99"]);
    fit(&own, &["--layer", "2", "--gold-layer", "2", "--out", &out]).refuses(2, &["another layer", "--gold-layer"]);
    fit(&own, &["--name", "Nice!", "--out", &out]).refuses(2, &["a-z, 0-9 and -"]);
    assert!(!std::path::Path::new(&out).join("preference.safetensors").exists());

    let (prompts, _) = prompts();
    let rollouts = folder().join("unscored.parquet").to_str().unwrap().to_owned();
    done("rollout", &prompts, &["--out", &rollouts, "--samples", "2", "--max-tokens", "4", "--splits", "tune"]);
    let other = written("other.gguf", &SyntheticModel { seed: 9, ..SyntheticModel::default() }.bytes());
    let scored = |model: &str, reward: &str| {
        Run::of(&["reward", "--model", model, "--rollouts", &rollouts, "--out", &rollouts, "--reward", reward])
    };
    scored(&other, &reward_file("taste")).refuses(2, &["taste.safetensors", "reads the model with SHA-256"]);
    let text = written("text.safetensors", b"not tensors");
    scored(tiny(), &text).refuses(2, &["text.safetensors", "not a safetensors file"]);
}
