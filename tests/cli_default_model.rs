//! The road of the README on the default model, a few tokens long: the two sides of `--compare`, the user's own
//! prompt with policies, dials and heads, and what people see of it.
//!
//! Skipped, visibly, where the model has not been pulled ([`default_model`]); nothing is fetched. Seeds are
//! fixed, so a response without the policy at hand is the control of the one with it.

use serde_json::Value;

use crate::program::{REPORT_KEYS, Run, finite, folder, has_keys, written};
use crate::rebuild::root;
use crate::support::default_model;

const PROMPT: &str = "How was your day?";

/// The figures of a response in the JSON.
const FIGURES: [&str; 4] = ["kl", "cross_entropy", "tokens_per_second", "forwards_per_token"];

/// `vassal run` of a prompt on the default model, as JSON: at most 12 tokens, with seed 7.
fn run(arguments: &[&str]) -> Value {
    let fixed = ["run", PROMPT, "--seed", "7", "--max-tokens", "12", "--json"];
    let object = Run::of(&[&fixed[..], arguments].concat()).object(0);
    has_keys(&object, &REPORT_KEYS);
    assert!((1..=12).contains(&object["tokens"].as_array().unwrap().len()), "{object:#}");
    finite(&object, FIGURES);
    object
}

fn number(object: &Value, pointer: &str) -> f64 {
    object.pointer(pointer).and_then(Value::as_f64).unwrap_or_else(|| panic!("no number {pointer} in {object:#}"))
}

fn text(object: &Value) -> &str {
    object["text"].as_str().unwrap()
}

/// A word of five letters or more that a text begins with or has soon.
fn long_word(text: &str) -> String {
    let words = text.split(|c: char| !c.is_ascii_alphabetic()).filter(|word| word.len() >= 5);
    words.map(str::to_lowercase).next().unwrap_or_else(|| panic!("no long word in {text:?}"))
}

#[test]
fn the_default_model_is_compared() {
    let Some(_) = default_model() else { return };
    let run = || Run::of(&["run", "--compare", "--json", "--max-tokens", "16", "--seed", "7"]).object(0);
    let (first, second) = (run(), run());
    for side in ["base", "aligned"] {
        let response = &first[side];
        has_keys(response, &REPORT_KEYS);
        let [kl, cross_entropy, tokens_per_second, forwards] = finite(response, FIGURES);
        assert!(kl >= 0.0 && cross_entropy > 0.0 && tokens_per_second > 0.0 && forwards > 0.0, "{response:#}");
        let rewards = finite(&response["reward"], ["sentiment", "simplicity"]);
        assert!(rewards.iter().all(|reward| (0.0..=1.0).contains(reward)), "{response:#}");
        finite(&response["seconds"], ["model", "heads", "policies"]);
        assert!(!text(response).is_empty());
        assert_eq!(response["tokens"], second[side]["tokens"], "the same seed draws the same tokens");
    }
    let (base, aligned) = (&first["base"], &first["aligned"]);
    assert_eq!(base["kl"], 0.0);
    assert!(number(aligned, "/kl") > 0.0, "{aligned:#}");
    assert_ne!(base["tokens"], aligned["tokens"]);
    assert_ne!(base["text"], aligned["text"]);
    // Look-ahead rows cost something, and what they cost is printed.
    assert!(number(aligned, "/forwards_per_token") > number(base, "/forwards_per_token") + 1.0, "{first:#}");
}

#[test]
fn two_dials_of_vas_steer_the_users_prompt() {
    let Some(_) = default_model() else { return };
    let base = run(&[]);
    assert_eq!((number(&base, "/kl"), number(&base, "/rows/candidate")), (0.0, 0.0));
    let both = ["--policy", "vas", "--set", "sentiment=0.8", "--set", "simplicity=0.4"];
    let (steered, again) = (run(&both), run(&both));
    assert_eq!(steered["tokens"], again["tokens"]);
    assert!(number(&steered, "/kl") > 0.0 && number(&steered, "/rows/candidate") > 0.0, "{steered:#}");
    // The second dial is heard too.
    let one = run(&both[..4]);
    assert!(number(&one, "/kl") > 0.0 && one["kl"] != steered["kl"], "{one:#} {steered:#}");
}

#[test]
fn a_chain_of_two_policies_steers_and_guards() {
    let Some(_) = default_model() else { return };
    let vas = ["--policy", "vas", "--set", "sentiment=0.8"];
    let alone = run(&vas);
    let word = long_word(text(&alone));
    let phrases = format!("phrases={word}");
    let chain = run(&[&vas[..], &["--policy", "guard", "--tenant-set", &phrases]].concat());
    assert!(!text(&chain).to_lowercase().contains(&word), "{word:?} in {chain:#}");
    assert!(number(&chain, "/kl") > 0.0 && number(&chain, "/rows/candidate") > 0.0, "{chain:#}");
    // A phrase that nobody would say leaves what vas does as it is.
    let idle = run(&[&vas[..], &["--policy", "guard", "--tenant-set", "phrases=zqxjkvwz"]].concat());
    assert_eq!(idle["tokens"], alone["tokens"]);
    assert!(number(&idle, "/fuel") > number(&alone, "/fuel"), "both policies ran");
}

#[test]
fn a_required_guard_keeps_a_tenants_phrase_unsaid() {
    let Some(_) = default_model() else { return };
    let word = long_word(text(&run(&[])));
    let guarded = run(&["--require", "guard", "--tenant-set", &format!("phrases={}", word.to_uppercase())]);
    assert!(!text(&guarded).to_lowercase().contains(&word), "{word:?} in {guarded:#}");
    assert!(number(&guarded, "/kl") > 0.0, "the model would have said it: {guarded:#}");
}

#[test]
fn one_pass_heads_steer_without_rows() {
    let Some(_) = default_model() else { return };
    let steered = run(&["--heads", "one-pass", "--policy", "vas", "--set", "sentiment=1"]);
    assert!(number(&steered, "/kl") > 0.0, "{steered:#}");
    assert_eq!(number(&steered, "/rows/candidate"), 0.0);
    assert!(number(&steered, "/forwards_per_token") <= 1.0, "{steered:#}");
}

#[test]
fn a_heads_file_is_the_head_that_ships() {
    let Some(_) = default_model() else { return };
    let file = root().join("host/data/heads/sentiment.look-ahead.safetensors");
    let vas = ["--policy", "vas", "--set", "sentiment=0.8"];
    let (shipped, from_file) = (run(&vas), run(&[&vas[..], &["--head", file.to_str().unwrap()]].concat()));
    assert_eq!((&from_file["tokens"], &from_file["kl"]), (&shipped["tokens"], &shipped["kl"]));
    assert!(number(&from_file, "/kl") > 0.0);
    // It came instead of the shipped ones: the other dial is gone.
    let other = ["run", PROMPT, "--policy", "vas", "--set", "simplicity=0.4", "--head", file.to_str().unwrap()];
    Run::of(&other).refuses(2, &["no setting `simplicity`"]);
}

/// A table's cells by the name that its row begins with.
fn cells<'a>(out: &'a str, name: &str) -> [&'a str; 2] {
    let row = out.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("no `{name}` in {out}"));
    let mut cells = row.split("  ").map(str::trim).filter(|cell| !cell.is_empty());
    let (Some(base), Some(aligned), None) = (cells.next(), cells.next(), cells.next()) else { panic!("{row:?}") };
    [base, aligned]
}

#[test]
fn people_see_both_texts_and_their_figures() {
    let Some(_) = default_model() else { return };
    let arguments = ["run", PROMPT, "--compare", "--seed", "7", "--max-tokens", "12"];
    let object = Run::of(&[&arguments[..], &["--json"]].concat()).object(0);
    let run = Run::of(&arguments);
    assert_eq!(run.code, Some(0), "{run:?}");
    assert!(run.out.starts_with(&format!("> {PROMPT}\n")), "{}", run.out);
    // The texts, word for word, in their columns.
    let rows: Vec<(&str, &str)> = run.out.lines().filter_map(|line| line.split_once(" | ")).collect();
    assert_eq!((rows[0].0.trim(), rows[0].1.trim()), ("base", "aligned"));
    assert!(rows[1].0.starts_with("----") && rows[1].1.starts_with("----"), "{}", run.out);
    let (base, aligned): (Vec<&str>, Vec<&str>) = rows[2..].iter().copied().unzip();
    for (column, side) in [(base, "base"), (aligned, "aligned")] {
        let shown = column.join(" ");
        let shown: Vec<&str> = shown.split_whitespace().collect();
        assert_eq!(shown, text(&object[side]).split_whitespace().collect::<Vec<_>>(), "{side}");
    }
    // The table: what can be compared with the JSON is the same, rounded.
    let rounded = |pointer: &str, digits: usize| {
        ["base", "aligned"].map(|side| format!("{:.digits$}", number(&object[side], pointer)))
    };
    assert_eq!(cells(&run.out, "sentiment"), rounded("/reward/sentiment", 3));
    assert_eq!(cells(&run.out, "simplicity"), rounded("/reward/simplicity", 3));
    assert_eq!(cells(&run.out, "KL from the base, nats"), rounded("/kl", 2));
    assert_eq!(cells(&run.out, "cross-entropy, nats a token"), rounded("/cross_entropy", 2));
    assert_eq!(cells(&run.out, "forwards a token"), rounded("/forwards_per_token", 2));
    for speed in cells(&run.out, "tokens a second") {
        assert!(speed.parse::<f64>().is_ok_and(|speed| speed.is_finite() && speed > 0.0), "{speed}");
    }
    // Shares of the time: three of each, which make a whole.
    for shares in cells(&run.out, "time in model / heads / policies") {
        let shares = shares.strip_suffix(" %").unwrap().split(" / ").map(|share| share.parse::<f64>().unwrap());
        let shares: Vec<f64> = shares.collect();
        assert_eq!(shares.len(), 3);
        assert!((shares.iter().sum::<f64>() - 100.0).abs() <= 0.2, "{shares:?}");
    }
}

/// What a policy says of itself depends on the heads that it was offered.
#[test]
fn a_response_under_a_tenant_with_fewer_heads_replays() {
    let Some(_) = default_model() else { return };
    let tenant =
        written("sentiment.toml", b"name = \"acme\"\nheads = [\"sentiment\"]\n[[policies]]\npolicy = \"vas\"\n");
    let log = folder().join("tenant.jsonl");
    let _ = std::fs::remove_file(&log);
    let log = log.to_str().unwrap();
    run(&["--tenant", &tenant, "--policy", "vas", "--set", "sentiment=0.8", "--audit", log]);
    let replayed = Run::of(&["replay", log]);
    assert_eq!(replayed.code, Some(0), "{replayed:?}");
}
