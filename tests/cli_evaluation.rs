//! `vassal evaluate` through the program, on a tiny model with heads that this test learns.
//!
//! Figures of a model of noise say nothing of the method, but the report has to: every method that was asked for is in
//! it, identities hold, more divergence buys more of a reward that can be guided, and values beat the same values shuffled.
//! Besides: a kill loses nothing, a partial report says so, and what cannot be evaluated is refused.

use std::path::Path;
use std::process::Stdio;
use std::sync::OnceLock;

use serde_json::Value;
use vassal::learning::prompts::{PromptSet, Split};
use vassal::model::synthetic::SyntheticModel;

use crate::cli_learning::{done, pool_arguments, prompts, sha256};
use crate::program::{Run, finite, folder, has_keys, started, tiny};

struct Learned {
    prompts: String,
    set: PromptSet,
    pool: String,
    heads: String,
}

/// Rollouts, a pool and every kind of heads, learned once.
fn learned() -> &'static Learned {
    static LEARNED: OnceLock<Learned> = OnceLock::new();
    LEARNED.get_or_init(|| {
        let (prompts, set) = prompts();
        let path = |name: &str| folder().join(name).to_str().unwrap().to_owned();
        let (rollouts, pool, heads) = (path("evaluated.parquet"), path("evaluated-pool.parquet"), path("evaluated"));
        let scored = ["--reward", "half:regex=[a-m]", "--reward", "length=6"];
        let fixed = ["--out", &rollouts, "--seed", "3", "--max-tokens", "12", "--samples", "24"];
        done("rollout", &prompts, &[&fixed[..], &scored].concat());
        done("rollout", &prompts, &[&pool_arguments(&pool)[..], &scored[2..]].concat());
        let fit = ["--rollouts", &rollouts, "--rank", "4", "--comparison", "--out", &heads];
        done("fit", &prompts, &fit);
        Learned { prompts, set, pool, heads }
    })
}

/// An evaluation into a folder of this name, which is empty.
fn evaluation<'a>(learned: &'a Learned, out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let _ = std::fs::remove_dir_all(out);
    let fixed = ["evaluate", "--model", tiny(), "--prompts", &learned.prompts, "--threads", "2"];
    let asked = ["--pool", &learned.pool, "--heads", &learned.heads, "--kl", "0.3,0.1", "--seeds", "11,12"];
    [&fixed[..], &asked, &["--reward", "half:regex=[a-m]", "--reward", "length=6", "--out", out, "--json"], more]
        .concat()
}

fn place(name: &str) -> String {
    folder().join(name).to_str().unwrap().to_owned()
}

#[test]
fn a_report_holds_every_method_and_what_must_hold_of_each() {
    let learned = learned();
    let out = place("report");
    let (same, other) = (format!("dpo:half:0.5={}", tiny()), format!("ppo:half:0.1={}", another()));
    let report = Run::of(&evaluation(learned, &out, &["--grid", "3", "--tuned", &same, "--tuned", &other])).object(0);
    check_tuned(&report);
    assert_eq!(report["about"]["prompts"], learned.set.of(Split::Test).count());
    assert_eq!((&report["about"]["settings_missing"], &report["about"]["split"]), (&0.into(), &"test".into()));
    for reward in ["half", "length"] {
        check_points(&report, reward);
        check_head(&report["heads"][reward]);
    }
    let comparison = |against: &str| {
        let found = report["comparisons"].as_array().unwrap().iter().find(|found| {
            found["reward"] == "half"
                && found["method"] == "vas"
                && found["against"] == against
                && found["matched"] == "kl 0.3"
        });
        found.unwrap_or_else(|| panic!("nothing against {against}: {:#}", report["comparisons"]))
    };
    for against in ["shuffled", "random"] {
        let [difference, low] = finite(comparison(against), ["difference", "ci_low"]);
        assert!(low > 0.0 && difference > 0.0, "values are worth no more than {against} ones: {difference}, {low}");
    }
    // A method that does not reach the divergence is not compared at it, and that is told.
    let failed = report["failed"].as_array().unwrap();
    for against in ["fudge", "args", "token_bias", "vas_one_pass", "value_model"] {
        let all = report["comparisons"].as_array().unwrap().iter();
        let mut own = all.filter(|found| found["against"] == against && found["reward"] == "half");
        let told = |sentence: &Value| sentence.as_str().unwrap().starts_with(&format!("half: {against} has"));
        assert!(own.next().is_some() || failed.iter().any(told), "{against}: {failed:?}");
    }
    assert_eq!(report["grid"]["means"][0].as_array().unwrap().len(), 3);
    assert_eq!(report["grid"]["trends"].as_array().unwrap().len(), 6);
    assert!(report["failed"].is_array() && !report["side_by_side"].as_array().unwrap().is_empty());
    let written = std::fs::read_to_string(format!("{out}/report.json")).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&written).unwrap(), report);
    let page = std::fs::read_to_string(format!("{out}/report.html")).unwrap();
    let tables = std::fs::read_to_string(format!("{out}/report.md")).unwrap();
    assert!(std::fs::read_to_string(format!("{out}/report.svg")).unwrap().starts_with("<svg "));
    assert!(page.contains("<svg") && tables.contains("guided Best-of-n"), "{tables}");
}

/// A model of the same shape and tokens with other weights.
fn another() -> &'static str {
    static PATH: OnceLock<String> = OnceLock::new();
    PATH.get_or_init(|| {
        let path = folder().join("another.gguf");
        SyntheticModel { seed: 2, ..SyntheticModel::default() }.write(&path).unwrap();
        path.to_str().unwrap().to_owned()
    })
}

/// A tuned model that is the base is the base to the last digit; one that is not diverges from it.
fn check_tuned(report: &Value) {
    let [base, same, other] = ["base", "dpo", "ppo"].map(|method| points(report, method, "half")[0].clone());
    for figure in ["mean", "cross_entropy_ratio", "distinct2_ratio", "forwards_per_token"] {
        let [base, same] = [&base, &same].map(|point| finite(point, [figure])[0]);
        assert!((base - same).abs() < 1e-6, "{figure}: {base} and {same}");
    }
    assert_eq!(finite(&same, ["kl_per_token", "dial"]), [0.0, 0.5]);
    let [kl, cross_entropy] = finite(&other, ["kl_per_token", "cross_entropy_ratio"]);
    assert!(kl > 0.05 && cross_entropy > 1.0, "{other:#}");
    assert!(points(report, "dpo", "length").is_empty(), "it was tuned for another reward");
    let compared = |found: &Value| found["method"] == "vas" && found["against"] == "ppo";
    assert!(report["comparisons"].as_array().unwrap().iter().any(compared), "{:#}", report["comparisons"]);
}

fn points<'a>(report: &'a Value, method: &str, reward: &str) -> Vec<&'a Value> {
    let all = report["points"].as_array().unwrap().iter();
    let mut own: Vec<&Value> = all.filter(|point| point["method"] == method && point["reward"] == reward).collect();
    own.sort_by(|a, b| a["kl_per_token"].as_f64().unwrap().total_cmp(&b["kl_per_token"].as_f64().unwrap()));
    own
}

fn check_points(report: &Value, reward: &str) {
    let guided = ["vas", "vas_one_pass", "value_model", "fudge", "args", "token_bias", "shuffled", "random"];
    for method in ["base", "base_top_k", "best_of_n", "guided_best_of_n"].into_iter().chain(guided) {
        let points = points(report, method, reward);
        assert!(!points.is_empty(), "no {method} for {reward}");
        for point in points {
            let [mean, low, high, kl, forwards, ms] =
                finite(point, ["mean", "ci_low", "ci_high", "kl_per_token", "forwards_per_token", "ms_per_token"]);
            // Sums of ones may round upwards.
            assert!(0.0 <= low && low <= mean && mean <= high && high <= 1.0 + 1e-9, "{point:#}");
            assert!(kl >= 0.0 && forwards > 0.0 && ms > 0.0, "{point:#}");
            has_keys(point, &["dial", "n", "seeds", "prompts", "cross_entropy_ratio", "distinct2_ratio"]);
        }
    }
    let chosen = points(report, "guided_best_of_n", reward);
    let by_value = chosen.iter().filter_map(|point| Some((point, point["variant"].as_str()?.strip_suffix(", by V")?)));
    assert_eq!(by_value.clone().count(), chosen.len() / 2, "each is chosen by the reward, and by V");
    for (point, variant) in by_value {
        let same = chosen.iter().find(|other| other["variant"] == variant && other["n"] == point["n"]);
        let [by_value, by_reward] = [point, same.unwrap()].map(|point| finite(point, ["mean"])[0]);
        assert!(by_value <= by_reward + 1e-9, "nothing chooses a reward's best but the reward: {point:#}");
    }
    let base = points(report, "base", reward)[0];
    assert_eq!(finite(base, ["kl_per_token", "cross_entropy_ratio", "distinct2_ratio"]), [0.0, 1.0, 1.0]);
    let top_k = points(report, "base_top_k", reward)[0];
    assert!(finite(top_k, ["kl_per_token"])[0] > 0.0, "cutting the tail is a divergence: {top_k:#}");
    let best: Vec<f64> = points(report, "best_of_n", reward).iter().map(|point| finite(point, ["mean"])[0]).collect();
    // Sums of ones may round upwards.
    assert!(best.len() >= 4 && best.is_sorted_by(|a, b| *a <= b + 1e-9), "{best:?}");
    let cost = |method| finite(points(report, method, reward)[0], ["forwards_per_token"])[0];
    assert!(cost("vas") > 3.0 * cost("base") && cost("value_model") < cost("vas"), "{} {}", cost("vas"), cost("base"));
    assert!((cost("vas_one_pass") - cost("base")).abs() < 0.2 && cost("random") < 1.2 * cost("base"));
    let [weak, .., strong] = points(report, "vas", reward)[..] else { panic!("two divergences were asked for") };
    let [weak, strong] = [weak, strong].map(|point| finite(point, ["mean"])[0]);
    let of_base = finite(base, ["mean"])[0];
    if reward == "half" {
        assert!(of_base < strong && weak < strong, "more divergence buys more: {of_base} {weak} {strong}");
    }
}

fn check_head(head: &Value) {
    for figure in ["explained_variance", "calibration_slope", "martingale"] {
        let [mean, low, high] = finite(&head[figure], ["mean", "ci_low", "ci_high"]);
        assert!(low <= mean && mean <= high, "{figure}: {head:#}");
    }
    assert!(finite(head, ["spread"])[0] > 0.0);
    for control in ["prompt mean", "position", "prefix reward", "token bias"] {
        finite(&head["explained_by_controls"][control], ["mean", "ci_low", "ci_high"]);
    }
    assert_eq!(head["explained_by_position"].as_array().unwrap().len(), 4);
    has_keys(head, &["within_state", "calibration", "dial_to_kl", "layer"]);
}

/// A report without its times, which no two runs have in common.
fn timeless(out: &str) -> Value {
    let mut report: Value = serde_json::from_slice(&std::fs::read(format!("{out}/report.json")).unwrap()).unwrap();
    for point in report["points"].as_array_mut().unwrap() {
        point["ms_per_token"] = Value::Null;
    }
    report["about"]["command"] = Value::Null;
    report
}

#[test]
fn a_killed_evaluation_goes_on_and_a_partial_report_says_so() {
    let learned = learned();
    let (whole, killed) = (place("whole-report"), place("killed-report"));
    let quick = ["--quick"];
    let partial = Run::of(&[&evaluation(learned, &killed, &quick)[..], &["--partial"]].concat());
    partial.refuses(2, &["nothing of this evaluation has been decoded yet", "settings are missing"]);
    Run::of(&evaluation(learned, &whole, &quick)).object(0);

    let arguments = evaluation(learned, &killed, &quick);
    let mut child = started(&arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let journal = format!("{killed}/decoded.jsonl");
    let lines = || std::fs::read(&journal).map_or(0, |text| text.iter().filter(|&&byte| byte == b'\n').count());
    while lines() < 4 {
        assert!(child.try_wait().unwrap().is_none(), "it was done before it could be killed");
        std::thread::yield_now();
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!Path::new(&format!("{killed}/report.json")).exists(), "it was done before it was killed");
    let report = Run::of(&[&arguments[..], &["--partial"]].concat()).object(0);
    assert!(report["about"]["settings_missing"].as_u64().unwrap() > 0, "{:#}", report["about"]);
    let page = std::fs::read_to_string(format!("{killed}/report.html")).unwrap();
    assert!(page.contains("partial"), "the page says that it is not whole");
    Run::of(&arguments).object(0);
    assert_eq!(timeless(&killed), timeless(&whole));

    // Another evaluation does not go on in the same folder.
    let other = Run::of(&[&arguments[..], &["--candidates", "10"]].concat());
    other.refuses(2, &["another number of candidates", "decoded.jsonl"]);
    let mut seeds = arguments.clone();
    seeds[arguments.iter().position(|word| *word == "11,12").unwrap()] = "12,11";
    Run::of(&seeds).refuses(2, &["another choice of --kl, --seeds, --grid or --quick"]);
}

#[test]
fn what_cannot_be_evaluated_is_refused() {
    let learned = learned();
    let out = place("refused-report");
    let run = Run::of(&evaluation(learned, &out, &["--split", "learn"]));
    run.refuses(2, &["--split is test or tune"]);
    let tuned = |words: &str| Run::of(&evaluation(learned, &out, &["--tuned", words]));
    tuned("sft:half:1=a.gguf").refuses(2, &["dpo or ppo", "\"sft:half:1\""]);
    let twice = evaluation(learned, &out, &["--tuned", "dpo:half:1=a.gguf", "--tuned", "dpo:half:1.0=b.gguf"]);
    Run::of(&twice).refuses(2, &["--tuned dpo:half:1 is given twice"]);
    tuned("dpo:hlaf:1=a.gguf").refuses(2, &["\"hlaf\"", "near: half"]);
    tuned("dpo:half:1=a.gguf").refuses(2, &["tuned model", "a.gguf"]);
    let model = SyntheticModel::default();
    let wider = SyntheticModel { vocabulary: model.vocabulary_size() + 8, ..model.clone() };
    let of_bytes = |name: &str, bytes: &[u8]| tuned(&format!("dpo:half:1={}", crate::program::written(name, bytes)));
    of_bytes("wider.gguf", &wider.bytes()).refuses(2, &["wider.gguf", "other tokens than the base model"]);
    // A template of the same length that names a role otherwise.
    let mut renamed = model.bytes();
    let role = renamed.windows(11).position(|bytes| bytes == b"|>assistant").expect("a template") + 2;
    renamed[role] = b'A';
    of_bytes("renamed.gguf", &renamed).refuses(2, &["renamed.gguf", "chat template is another"]);
    let run = Run::of(&evaluation(learned, &out, &["--reward", "sentimant"]));
    run.refuses(2, &["\"sentimant\"", "near: sentiment"]);
    let other = crate::program::written("no-prompts.jsonl", b"{\"id\": \"a\", \"kind\": \"b\", \"prompt\": \"c\"}\n");
    let mut arguments = evaluation(learned, &out, &[]);
    let place = arguments.iter().position(|word| *word == learned.prompts).unwrap();
    arguments[place] = &other;
    Run::of(&arguments).refuses(2, &[&learned.set.sha256, &sha256(&other)]);
    // Heads of a reward that has the same name and is another.
    let mut arguments = evaluation(learned, &out, &[]);
    for word in arguments.iter_mut().filter(|word| **word == "length=6") {
        *word = "length=7";
    }
    Run::of(&arguments).refuses(2, &["\"length\"", "length 1: 6", "length 1: 7"]);
}

#[test]
fn one_command_learns_and_reports_and_makes_nothing_twice() {
    let (prompts, _) = prompts();
    let out = place("learned-at-once");
    let _ = std::fs::remove_dir_all(&out);
    let fixed = ["learn", "--model", tiny(), "--prompts", &prompts, "--threads", "2", "--reward", "half:regex=[a-m]"];
    let sizes = ["--samples", "8", "--pool", "16", "--max-tokens", "12", "--rank", "4", "--quick", "--out", &out];
    let arguments = [&fixed[..], &sizes].concat();
    let run = Run::of(&arguments);
    assert_eq!(run.code, Some(0), "{run:?}");
    run.says(&["vassal rollout --samples 8", "vassal reward", "vassal fit", "vassal evaluate"]);
    let report: Value = serde_json::from_slice(&std::fs::read(format!("{out}/report/report.json")).unwrap()).unwrap();
    assert!(points(&report, "vas", "half").len() == 2 && points(&report, "fudge", "half").is_empty());
    let again = Run::of(&arguments);
    assert_eq!(again.code, Some(0), "{again:?}");
    assert!(!again.error.contains("vassal rollout") && !again.error.contains("vassal fit"), "{}", again.error);
    let mut other = arguments.clone();
    other[arguments.iter().position(|word| *word == "16").unwrap()] = "17";
    let refused = Run::of(&other);
    assert_eq!(refused.code, Some(2), "{refused:?}");
    refused.says(&["test.parquet has rollouts of other prompts", "another --out"]);
    let wrong = [&arguments[..], &["--reward", "lenght=3"]].concat();
    Run::of(&wrong).refuses(2, &["\"lenght\"", "near: length"]);
}
