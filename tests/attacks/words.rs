//! Words: what a policy says, on its way to a terminal, a log and JSON.
//!
//! Every text of a guest is cut to its number of bytes and loses what could move a cursor or turn the reading
//! direction. The three roads out of the process are taken by the program itself.

use std::sync::Arc;

use vassal::audit::Record;
use vassal::engine::Finish;
use vassal::sandbox::{
    Decision, FaultKind, Limits, LoadError, ManifestError, Progress, Sandbox, Scope, TrapCode, settings,
};

use super::alone::folder;
use super::forged::{Forged, put};
use super::{
    GRANTED, Served, asked, assert_plain, drive, fault_of, head, hostile, hostile_bytes, hostile_in, start, step, text,
};
use crate::program::Run;
use crate::support::{PROMPT, Setup, compilation};

/// Where a kind names no number of its own, the call and its bound stand behind it.
#[test]
fn faults_say_what_was_given_and_what_the_bound_is() {
    let _served = Served::as_before();
    let limits = Limits { sequences: 2, deadline_windows: 3_000, ..Limits::default() };
    let small = Sandbox::new(limits, compilation()).unwrap();
    let policy = small.compile("hostile", hostile_bytes()).unwrap();
    let manifest = Arc::new(policy.describe(&[head("value")], GRANTED).unwrap());
    let start = |mode: &str| {
        let settings = settings::resolve(&manifest, &[("mode", mode)], Scope::Request, small.limits()).unwrap();
        policy.start(&manifest, &asked(&settings), text())
    };
    let at_start = |mode: &str| start(mode).err().unwrap().to_string();
    let in_a_step = |mode: &str| match drive(&mut start(mode).unwrap(), &step()).0 {
        Progress::Faulted(fault) => fault.to_string(),
        other => panic!("`{mode}`: {other:?}"),
    };
    assert_eq!(in_a_step("loop"), "policy `hostile`: out of fuel: `decide` may use 250000 units");
    let fuel = "policy `hostile`: out of fuel: instantiation and `start` may use 1000000 units";
    assert_eq!(at_start("start-loop"), fuel);
    let every = "policy `hostile`: bad plan: head 0's schedule is `every` 0, but it must be 1 or more";
    assert_eq!(at_start("plan-every"), every);
    let head = "policy `hostile`: bad decision: `blend` names head 7, the manifest has 1, counted from 0";
    assert_eq!(in_a_step("head"), head);
    let live = [start("none").unwrap(), start("none").unwrap()];
    assert_eq!(at_start("none"), "policy `hostile`: no free instance: the host holds 2, and all are in use");
    drop(live);
}

#[test]
fn a_panic_is_a_trap_that_tells_its_message() {
    let _served = Served::as_before();
    let mut instance = hostile_in("panic");
    let Progress::Faulted(fault) = instance.decide(&step()) else { panic!() };
    assert_eq!(fault.kind, FaultKind::Trap(TrapCode::Unreachable));
    assert!(fault.detail.contains("out of ideas"), "{fault}");
    assert_plain(&fault.to_string());
    assert!(instance.take_notes()[0].contains("out of ideas"), "notes survive a fault");
    assert_eq!(fault_of("divide"), FaultKind::Trap(TrapCode::Unreachable));
    let refused = start(&hostile(), &[("mode", "start-panic")]).err().unwrap();
    assert_eq!(refused.kind, FaultKind::Trap(TrapCode::Unreachable));
    assert!(refused.detail.contains("giving up in start"), "{refused}");
    assert_plain(&refused.to_string());
    let described = hostile().describe(&[head("lie-panic")], GRANTED);
    let Err(LoadError::Describe(fault)) = described else { panic!("{described:?}") };
    assert_eq!(fault.kind, FaultKind::Trap(TrapCode::Unreachable));
}

#[test]
fn start_may_refuse_in_clean_words() {
    let _served = Served::as_before();
    let fault = start(&hostile(), &[("mode", "start-refuse")]).err().unwrap();
    assert_eq!(fault.kind, FaultKind::StartRefused);
    assert!(fault.detail.starts_with("not today not today"), "{fault}");
    assert!(fault.detail.len() <= 256);
    assert_plain(&fault.to_string());
}

#[test]
fn notes_are_counted_cut_and_cleaned() {
    let _served = Served::as_before();
    let mut instance = hostile_in("note-flood");
    assert_eq!(instance.decide(&step()), Progress::Decided(Decision::Keep));
    let notes = instance.take_notes();
    assert_eq!((notes.len(), instance.notes_dropped()), (64, 36));
    assert!(notes.iter().all(|note| note.len() <= 1_024));
    notes.iter().for_each(|note| assert_plain(note));
    assert!(instance.take_notes().is_empty());
    assert_eq!(fault_of("note-forever"), FaultKind::OutOfFuel);
}

/// Clears a screen, sets a title, turns the reading direction, hides, ends a line.
const NASTY: &str = "\u{1b}[2J\u{1b}]0;x\u{7}\u{202e}\u{2066}\u{200b}\u{feff}\u{e0041}\u{9b}1m\r\n\u{2028}";

/// Nothing of [`NASTY`] is in a line of text.
#[track_caller]
fn is_clean(line: &str) {
    let hidden = |c: char| c.is_control() || (NASTY.contains(c) && !c.is_ascii());
    assert!(!line.contains(hidden), "{line:?}");
}

#[test]
fn a_manifests_words_are_cleaned_or_refused() {
    let _served = Served::as_before();
    let manifest = hostile().describe(&[head("lie-words")], GRANTED).unwrap();
    is_clean(&manifest.summary);
    is_clean(&manifest.settings[0].summary);
    assert!(
        manifest.summary.starts_with("[2J]0;x   shown[2J") && manifest.summary.len() <= 256,
        "{:?}",
        manifest.summary
    );
    assert!(manifest.settings[0].summary.len() <= 256);
    for (lie, whose) in [
        ("lie-version", "the policy's version"),
        ("lie-setting-name", "setting"),
        ("lie-word", "a choice's word"),
        ("lie-equals", "setting"),
    ] {
        let error = hostile().describe(&[head(lie)], GRANTED).unwrap_err();
        assert_plain(&error.to_string());
        is_clean(&error.to_string());
        let LoadError::Manifest { error: ManifestError::Name { what, .. }, .. } = error else { panic!("{error:?}") };
        assert_eq!(what, whose, "`{lie}`");
    }
}

#[test]
fn a_reason_reaches_the_response_the_log_and_json_cleaned_and_cut() {
    let _served = Served::as_before();
    let mut tiny = Setup::with_heads().open();
    // The script's words end at white space, so the reason has none.
    let nasty: String = NASTY.chars().filter(|c| !c.is_whitespace()).collect();
    let script = format!("2 note {nasty}seen\n3 stop {nasty}enough{}", "!".repeat(1_000));
    let request = tiny.endless(tiny.request(PROMPT, vec![tiny.scripted(&script)]));
    let response = tiny.run(vec![request.clone()]).remove(0);
    let Finish::Stopped { reason, .. } = &response.finish else { panic!("{:?}", response.finish) };
    assert!(reason.starts_with("[2J]0;x1menough!") && reason.len() <= 256, "{reason:?}");
    is_clean(reason);
    assert_eq!(response.notes[0].message, "[2J]0;x1mseen");
    let path = folder("audit").join("log.jsonl");
    crate::audit::recorder(&path, &tiny).append(&request, &response).unwrap();
    let log = std::fs::read_to_string(&path).unwrap();
    let record = Record::parse(log.trim_end().as_bytes()).unwrap();
    // The settings are the request's own words; what the policy said stands in the response.
    let said = serde_json::to_string(&record.response).unwrap();
    assert!(said.contains("[2J]0;x1menough!") && said.contains("[2J]0;x1mseen"), "{said}");
    // As it is in the line, before anything is parsed out of it.
    let said = &log[log.find("\"response\":").unwrap()..];
    is_clean(said.trim_end());
    assert!(!said.contains("\\u"), "nothing had to be escaped: {said}");
}

#[test]
fn the_program_shows_no_words_as_they_were_given() {
    let _served = Served::as_before();
    // A component whose name is what it is, whose panic and refusal are words of its own, and an import that shouts.
    let shouting = "(component (import \"a:b/c@0.1.0\" (instance (export \"x\" (func)))))";
    let named = Forged {
        describe: &format!("{} i32.const 64", put(&[(80, 8_192), (84, 60)])),
        fields: "(data (i32.const 8192) \"\\1b[2J\\e2\\80\\aeliah\\0a\\c2\\9bshown\\1b]0;x\\07 and more of it, up to sixty bytes\")",
        ..Forged::default()
    };
    let written = |name: &str, bytes: &[u8]| {
        let path = folder("words").join(name);
        std::fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let hostile = written("hostile.wasm", hostile_bytes());
    let named = written("summary.wasm", &named.bytes());
    let shouting = written("import.wasm", &wat::parse_str(shouting).unwrap());
    for (arguments, code, said) in [
        (vec!["policy", "inspect", &named], 0, "[2Jliah shown"),
        (vec!["policy", "inspect", &named, "--json"], 0, "[2Jliah shown"),
        (vec!["policy", "check", &named], 0, "forged"),
        (vec!["policy", "check", &shouting, "--json"], 3, "a:b/c@0.1.0"),
        (vec!["policy", "check", &hostile, "--set", "mode=panic"], 3, "out of ideas"),
        (vec!["policy", "check", &hostile, "--set", "mode=panic", "--json"], 3, "out of ideas"),
        (vec!["policy", "check", &hostile, "--set", "mode=start-refuse", "--json"], 3, "not today"),
    ] {
        let run = Run::of(&arguments);
        assert_eq!(run.code, Some(code), "{arguments:?}: {run:?}");
        assert!(run.out.contains(said) || run.error.contains(said), "`{said}` is not in {run:?}");
        run.out.lines().chain(run.error.lines()).for_each(is_clean);
        // Nothing that a parser of JSON would make of it, either.
        assert!(!run.out.contains("\\u00") && !run.out.contains("\\u20"), "{run:?}");
    }
}
