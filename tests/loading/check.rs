//! What a user is told of loading: what a policy asks for and how near each cap it comes, what loading costs.
//!
//! The program is run, and its words and its JSON read; what it is asked for is a policy of this repository.
//! That a check refuses what a host would is in `tests/cli.rs`.

use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};
use vassal::sandbox::{Cap, Guest, Limits};

use super::{PROGRAM, folder};
use crate::support::component;

/// A run of the program, with a home of its own.
fn run(home: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(PROGRAM);
    command.args(arguments).env("VASSAL_HOME", folder(home)).stdin(Stdio::null()).output().unwrap()
}

fn object(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

#[test]
fn a_check_says_what_is_asked_granted_and_missing() {
    let path = folder("check").join("hostile.wasm");
    std::fs::write(&path, component("hostile")).unwrap();
    let check = |more: &[&str]| run("check-home", &[&["policy", "check", path.to_str().unwrap()], more].concat());
    let all = check(&["--json", "--set", "mode=none"]);
    assert_eq!(all.status.code(), Some(0), "{all:?}");
    let all = object(&all)["needs"].clone();
    assert_eq!((&all["granted"], &all["missing"]), (&json!(["prompt", "insert", "rewind", "stop"]), &json!([])));
    assert_eq!(all["asked"], json!(["insert", "rewind"]));
    let some = check(&["--json", "--grant", "stop", "--grant", "insert"]);
    let refused = object(&some);
    assert_eq!(some.status.code(), Some(3), "{some:?}");
    let needs = json!({ "asked": ["insert", "rewind"], "granted": ["insert", "stop"], "missing": ["rewind"] });
    assert_eq!(refused["needs"], needs);
    let describe = &refused["stages"].as_array().unwrap()[2];
    assert_eq!((&describe["stage"], &describe["kind"]), (&json!("describe"), &json!("manifest")));
    let none = check(&["--grant", "none"]);
    let words = String::from_utf8(none.stdout.clone()).unwrap();
    assert!(none.status.code() == Some(3) && words.contains("missing     insert, rewind"), "{words}");
    let unknown = check(&["--grant", "rewnid"]);
    let words = String::from_utf8(unknown.stderr).unwrap();
    assert!(unknown.status.code() == Some(2) && words.contains("near: rewind"), "{words}");
}

#[test]
fn a_check_says_how_near_each_cap_is() {
    let report = object(&run("check-caps", &["policy", "check", "guard", "--json"]));
    let caps = report["caps"].as_array().unwrap();
    assert_eq!(caps.len(), Cap::ALL.len());
    let guard = vassal::shipped::POLICIES.iter().find(|policy| policy.name == "guard").unwrap();
    let footprint = vassal::sandbox::inspect(&Guest::policy("guard"), guard.component, &Limits::default()).unwrap();
    for (cap, shown) in Cap::ALL.iter().zip(caps) {
        let limit = cap.limit(&Limits::default());
        assert_eq!(*shown, json!({ "cap": cap.name(), "given": footprint.of(*cap), "limit": limit }));
    }
    let plain = run("check-caps", &["policy", "check", "guard"]);
    let words = String::from_utf8(plain.stdout).unwrap();
    let bytes = format!("{} / 1048576", guard.component.len());
    for expected in ["needs ", "missing     none", "nested loops in a function", &bytes] {
        assert!(words.contains(expected), "`{expected}` is not in {words}");
    }
}

#[test]
fn the_bench_says_what_loading_costs() {
    let bench = ["bench", "sandbox", "--sequences", "1", "--rounds", "1", "--json"];
    let report = object(&run("bench", &bench));
    assert_eq!(report["rows"].as_array().unwrap().len(), 3);
    for key in ["cold_ms", "cached_ms", "child_start_ms"] {
        assert!(report["load"][key].as_f64().is_some_and(|ms| ms > 0.0), "{report:#}");
    }
}
