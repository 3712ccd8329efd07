//! Files of rollouts, through the program: killed and taken up again, scored, and opened by others.
//!
//! What a file may hold and why one is refused is tested beside the format, in `host/src/learning/rollouts/tests.rs`;
//! `tests/cli_learning.rs` follows a file to the heads and figures that come of it. Here it is that no kill changes a
//! byte, that nothing of the user's is overwritten, and that pyarrow reads what the program does.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use vassal::host::hexadecimal;
use vassal::learning::journal::line;
use vassal::learning::rollouts::Rollouts;

use crate::program::{Run, folder, started, tiny, written};
use crate::rebuild::root;
use crate::support::component;

/// Three prompts, and where to put a file of this name.
fn place(name: &str) -> (String, String) {
    let line =
        |n: u32| format!("{}\n", json!({ "id": format!("p{n}"), "kind": "count", "prompt": format!("say {n} words") }));
    let prompts = written("few-prompts.jsonl", (0..12).map(line).collect::<String>().as_bytes());
    let out = folder().join(name);
    for leftover in [out.clone(), part(&out)] {
        let _ = std::fs::remove_file(leftover);
    }
    (prompts, out.to_str().unwrap().to_owned())
}

fn part(out: &Path) -> PathBuf {
    PathBuf::from(format!("{}.part", out.display()))
}

fn rollout<'a>(prompts: &'a str, out: &'a str, samples: &'a str) -> Vec<&'a str> {
    let fixed = ["rollout", "--model", tiny(), "--prompts", prompts, "--threads", "1", "--max-tokens", "24"];
    [&fixed[..], &["--splits", "learn,tune,test", "--samples", samples, "--out", out]].concat()
}

#[track_caller]
fn done(arguments: &[&str]) -> Run {
    let run = Run::of(arguments);
    assert_eq!(run.code, Some(0), "{run:?}");
    run
}

#[test]
fn a_killed_rollout_goes_on_and_ends_with_the_same_bytes() {
    let (prompts, out) = place("killed.parquet");
    let arguments = rollout(&prompts, &out, "96");
    done(&arguments);
    let expected = std::fs::read(&out).unwrap();
    std::fs::remove_file(&out).unwrap();

    let part = part(Path::new(&out));
    let mut child = started(&arguments).stderr(Stdio::null()).spawn().unwrap();
    let lines = || std::fs::read(&part).map_or(0, |text| text.iter().filter(|&&byte| byte == b'\n').count());
    while lines() < 40 {
        assert!(child.try_wait().unwrap().is_none(), "it was done before it could be killed");
        std::thread::yield_now();
    }
    // Somebody else may not write the same file meanwhile.
    Run::of(&arguments).refuses(2, &["killed.parquet.part", "another process"]);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!Path::new(&out).exists(), "it was done before it was killed");
    let run = done(&arguments);
    assert!(run.error.contains("are there already"), "{run:?}");
    assert!(std::fs::read(&out).unwrap() == expected);
    assert!(!part.exists());

    // Whatever is there of a prompt's samples, and half a line.
    let all = Rollouts::read(Path::new(&out)).unwrap();
    let mut journal = line(&all.header).unwrap();
    for (place, rollout) in all.all.iter().enumerate().rev().filter(|(place, _)| place % 5 < 2 || place % 7 == 3) {
        journal += &line(rollout).unwrap();
        journal += if place == 0 { "{\"id\":\"p" } else { "" };
    }
    std::fs::write(&part, journal).unwrap();
    done(&arguments);
    assert!(std::fs::read(&out).unwrap() == expected);
}

#[test]
fn a_journal_of_other_arguments_is_left_alone() {
    let (prompts, out) = place("other.parquet");
    done(&rollout(&prompts, &out, "2"));
    let part = part(Path::new(&out));
    let header = line(&Rollouts::read(Path::new(&out)).unwrap().header).unwrap();
    std::fs::write(&part, &header).unwrap();
    let run = Run::of(&[&rollout(&prompts, &out, "2")[..], &["--seed", "9"]].concat());
    run.refuses(2, &["other.parquet.part", "another seed (1, this has 9)", "delete"]);
    assert_eq!(std::fs::read_to_string(&part).unwrap(), header);
    // Nor does `vassal reward` take it for its own.
    let reward = ["reward", "--rollouts", &out, "--reward", "simplicity", "--out", &out];
    Run::of(&reward).refuses(2, &["other.parquet.part", "move or delete it"]);
    std::fs::remove_file(&part).unwrap();
    done(&reward);
}

#[test]
fn rewards_are_added_kept_replaced_and_refused() {
    let (prompts, out) = place("scored.parquet");
    done(&rollout(&prompts, &out, "3"));
    let reward = |specs: &[&str], more: &[&str]| {
        let specs: Vec<&str> = specs.iter().flat_map(|spec| ["--reward", spec]).collect();
        Run::of(&[&["reward", "--rollouts", &out, "--out", &out], &specs[..], more].concat())
    };
    let names = || -> Vec<String> {
        let rewards = Rollouts::read(Path::new(&out)).unwrap().rewards;
        rewards.into_iter().map(|about| format!("{}: {}", about.name, about.definition)).collect()
    };
    let table = reward(&["simplicity", "words:length=5"], &[]);
    assert!(table.out.contains("| simplicity |") && table.out.contains("| words |"), "{table:?}");
    let before = names();
    reward(&["words:length=6"], &[]).refuses(2, &["\"words\"", "length 1: 5", "length 1: 6", "--replace"]);
    assert_eq!(names(), before);
    let figures = reward(&["words:length=6"], &["--replace", "--json"]).object(0);
    assert_eq!(figures["rewards"].as_array().unwrap().len(), 2);
    assert_eq!(names(), [before[0].clone(), "words: length 1: 6".to_owned()]);
    reward(&["simplicity", "simplicity"], &[]).refuses(2, &["two rewards are named \"simplicity\""]);
    reward(&["./judge.wasm"], &[]).refuses(2, &["reward ./judge.wasm", "No such file"]);
    reward(&["kindness"], &[]).refuses(2, &["there is no reward \"kindness\""]);

    // A run that was killed after its first reward: what that has said is taken, not asked again.
    let mut unfinished = Rollouts::read(Path::new(&out)).unwrap().scored_by(&["words".to_owned()]).unwrap().0;
    let mut bare = Rollouts { rewards: Vec::new(), ..unfinished.clone() };
    bare.all.iter_mut().for_each(|rollout| rollout.scores.clear());
    bare.write(Path::new(&out)).unwrap();
    unfinished.all[0].scores[0] = Some(0.125);
    let part = part(Path::new(&out));
    unfinished.write(&part).unwrap();
    assert_eq!(reward(&["words:length=6", "readability"], &[]).code, Some(0));
    let read = Rollouts::read(Path::new(&out)).unwrap();
    assert_eq!((read.rewards.len(), read.all[0].scores[0]), (2, Some(0.125)));
    assert!(!part.exists());
}

#[test]
fn a_strangers_reward_scores_rollouts_and_what_it_cannot_score_is_told() {
    let (prompts, out) = place("judged.parquet");
    done(&rollout(&prompts, &out, "3"));
    let judge = written("hostile-judge.wasm", &component("hostile_reward"));
    let named = format!("mine:{judge}");
    let reward = |spec: &str, of: &str| Run::of(&["reward", "--rollouts", of, "--reward", spec, "--out", of, "--json"]);
    assert_eq!(reward(&named, &out).object(0)["rewards"][0]["name"], "mine");
    let mut scored = Rollouts::read(Path::new(&out)).unwrap();
    let about = &scored.rewards[0];
    let sha256 = hexadecimal(&Sha256::digest(component("hostile_reward")));
    assert_eq!((about.definition.clone(), about.failures.len()), (format!("component {sha256}"), 0));
    assert!(scored.all.iter().all(|rollout| rollout.scores[0].is_some_and(f64::is_finite)));
    // One in twelve is more than a hundredth.
    scored.all[0].text = "score-nan".to_owned();
    let bad = folder().join("judged-badly.parquet");
    scored.write(&bad).unwrap();
    let before = std::fs::read(&bad).unwrap();
    let run = reward(&format!("other:{judge}"), bad.to_str().unwrap());
    run.refuses(3, &["\"other\" has no score for 1 of", "at most 1 %", "gave no number"]);
    assert!(std::fs::read(&bad).unwrap() == before);
    // What is no file of rollouts is not written over.
    let model = std::fs::read(tiny()).unwrap();
    let copy = written("precious.gguf", &model);
    let over = Run::of(&["reward", "--rollouts", &out, "--reward", "simplicity", "--out", &copy]);
    over.refuses(2, &["precious.gguf", "not written over"]);
    Run::of(&rollout(&prompts, &copy, "1")).refuses(2, &["precious.gguf", "not written over"]);
    assert!(std::fs::read(&copy).unwrap() == model);
    Run::of(&rollout("/dev/zero", &out, "1")).refuses(2, &["/dev/zero", "not a regular file"]);
    // A policy is no reward, and says which it is.
    let policy = written("policy-as-reward.wasm", &component("hostile"));
    reward(&policy, &out).refuses(3, &["policy"]);
}

#[test]
fn damaged_files_are_refused_by_name() {
    let (prompts, out) = place("damaged.parquet");
    done(&rollout(&prompts, &out, "2"));
    let whole = std::fs::read(&out).unwrap();
    let damaged = |name: &str, bytes: &[u8]| {
        let path = written(name, bytes);
        let fit = ["fit", "--model", tiny(), "--prompts", &prompts, "--rollouts", &path, "--out", "x"];
        Run::of(&fit).refuses(2, &[name, "expected a whole vassal-rollouts-2 file"]);
    };
    damaged("cut.parquet", &whole[..whole.len() / 2]);
    damaged("empty.parquet", b"");
    let mut flipped = whole.clone();
    let id = whole.windows(3).position(|window| window == b"p11").unwrap();
    flipped[id] ^= 1;
    damaged("flipped.parquet", &flipped);
}

/// A Python that has pyarrow: the one that `tests/parquet/prepare` makes, or the machine's own.
fn python() -> Option<PathBuf> {
    let own = root().join("target/parquet-venv/bin/python");
    let has = |python: &PathBuf| {
        let mut command = Command::new(python);
        let command = command.args(["-c", "import pyarrow.parquet"]).stderr(Stdio::null()).stdin(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    let found = [own, "python3".into()].into_iter().find(has);
    if found.is_none() {
        assert!(std::env::var_os("CI").is_none(), "pyarrow's test may not be skipped here: tests/parquet/prepare");
        let _ = writeln!(std::io::stderr(), "SKIPPED pyarrow_opens_rollouts: tests/parquet/prepare installs pyarrow");
    }
    found
}

#[test]
fn pyarrow_opens_rollouts() {
    let Some(python) = python() else { return };
    let (prompts, out) = place("for-pyarrow.parquet");
    done(&[&rollout(&prompts, &out, "2")[..], &["--reward", "simplicity", "--reward", "words:length=5"]].concat());
    let script = root().join("tests/parquet/read_rollouts.py");
    let output = Command::new(python).arg(script).arg(&out).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let read: Value = serde_json::from_slice(&output.stdout).unwrap();
    let ours = Rollouts::read(Path::new(&out)).unwrap();
    let columns = read["columns"].as_array().unwrap().iter().map(|column| {
        let word = |place: usize| column[place].as_str().unwrap();
        format!("{} {}", word(0), word(1))
    });
    let columns: Vec<String> = columns.collect();
    let expected = ["id string", "prompt string", "split string", "sample uint32"];
    assert_eq!(columns[..4], expected);
    assert!(columns[4].starts_with("tokens list<") && columns[4].contains("uint32"), "{columns:?}");
    assert_eq!(columns[5..], ["text string", "end string", "reward.simplicity double", "reward.words double"]);
    assert_eq!(read["header"]["rollouts"], serde_json::to_value(&ours.header).unwrap());
    assert_eq!(read["header"]["rewards"], serde_json::to_value(&ours.rewards).unwrap());
    let rows = read["rows"].as_array().unwrap();
    assert_eq!(rows.len(), ours.all.len());
    for (row, rollout) in rows.iter().zip(&ours.all) {
        let own = json!({
            "id": rollout.id, "prompt": rollout.prompt, "split": rollout.split, "sample": rollout.sample,
            "tokens": rollout.tokens, "text": rollout.text, "end": rollout.end,
            "reward.simplicity": rollout.scores[0], "reward.words": rollout.scores[1],
        });
        assert_eq!(*row, own);
    }
}
