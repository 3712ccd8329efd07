//! Every number of the sandbox's limits that a running policy meets, at its bound and one beyond.
//!
//! A [`Bound`] names a field of `Limits` (`host/src/sandbox/limits.rs`), a guest that needs just so much of it, and what
//! is said where there is one less. Caps on files are `tests/loading/caps.rs`, the compiler's limits
//! `tests/loading/compiler.rs`, fuel to the unit [`super::rates`]; what has no unit to be beyond by (time, stack) is tried far beyond, below. Which test
//! stands for which field is the second table of `tests/attacks/README.md`.

use std::path::PathBuf;
use std::sync::Arc;

use vassal::sandbox::{
    ChildCompiler, Compilation, Decision, Guest, Instance, Limits, LoadError, Progress, Sandbox, Scope, StartRequest,
    settings,
};

use super::alone::folder;
use super::forged::{Forged, put};
use super::{GRANTED, Served, drive, head, hostile_bytes, step, text};

type Probe = fn(&Sandbox) -> Result<(), String>;

/// A field, what just suffices, how it is set, who needs it, and the words where it is one less.
struct Bound(&'static str, u64, fn(&mut Limits, u64), Probe, &'static str);

/// A sandbox under some limits. What it compiles is compiled once for all of them.
pub(super) fn under(limits: Limits) -> Sandbox {
    let program = Some(PathBuf::from(env!("CARGO_BIN_EXE_vassal-under-test")));
    let child = ChildCompiler { program, cache: Some(folder("limits")) };
    Sandbox::new(limits, Compilation::Child(child)).unwrap()
}

/// A patient clock with short windows: its thread ends within one.
pub(super) fn defaults() -> Limits {
    Limits { sequences: 2, deadline_windows: 3_000, ..Limits::default() }
}

/// An instance of a component, or why there is none.
pub(super) fn started(sandbox: &Sandbox, component: &[u8], given: &[(&str, &str)]) -> Result<Instance, String> {
    let policy = sandbox.compile("guest", component).map_err(|error| error.to_string())?;
    let manifest = policy.describe(&[head("a"), head("b")], GRANTED).map_err(|error| error.to_string())?;
    let settings = settings::resolve(&manifest, given, Scope::Tenant, sandbox.limits()).map_err(|e| e.to_string())?;
    let request = StartRequest {
        settings: &settings,
        prompt: &[],
        candidates: 20,
        max_tokens: 100,
        temperature: 1.0,
        top_p: 1.0,
        seed: 1,
    };
    policy.start(&Arc::new(manifest), &request, text()).map_err(|fault| fault.to_string())
}

pub(super) fn decided(mut instance: Instance) -> Result<(Decision, Instance), String> {
    match drive(&mut instance, &step()).0 {
        Progress::Decided(decision) => Ok((decision, instance)),
        Progress::Faulted(fault) => Err(fault.to_string()),
        other => panic!("{other:?}"),
    }
}

pub(super) fn forged(sandbox: &Sandbox, forged: &Forged<'_>) -> Result<(), String> {
    decided(started(sandbox, &forged.bytes(), &[])?).map(|_| ())
}

fn hostile(sandbox: &Sandbox, mode: &str) -> Result<(Decision, Instance), String> {
    decided(started(sandbox, hostile_bytes(), &[("mode", mode)])?)
}

fn plain(sandbox: &Sandbox) -> Result<(), String> {
    forged(sandbox, &Forged::default())
}

fn vas(sandbox: &Sandbox) -> Result<(), String> {
    let vas = vassal::shipped::POLICIES.iter().find(|policy| policy.name == "vas").unwrap();
    started(sandbox, vas.component, &[]).map(|_| ())
}

/// A component in text that keeps no contract, as far as the runtime takes it.
fn runtime_takes(sandbox: &Sandbox, component: &str) -> Result<(), String> {
    match sandbox.compile("text", &wat::parse_str(component).unwrap()) {
        Err(LoadError::Contract { .. }) => Ok(()),
        Err(error) => Err(error.to_string()),
        Ok(_) => panic!("it keeps the contract"),
    }
}

/// Decides after a call of one function of `text`, which is given ten bytes.
fn ten_bytes(sandbox: &Sandbox) -> Result<(), String> {
    let imports = "(import \"vassal:policy/text@0.1.0\" \"tokens\" (func $tokens (param i32 i32 i32)))";
    let decide = "(call $tokens (i32.const 1024) (i32.const 10) (i32.const 600)) i32.const 512";
    forged(sandbox, &Forged { imports, decide, ..Forged::default() })
}

/// The note of ten bytes that a policy leaves.
fn ten_byte_note(sandbox: &Sandbox) -> Result<(), String> {
    let imports = "(import \"vassal:policy/audit@0.1.0\" \"note\" (func $note (param i32 i32)))";
    let decide = "(call $note (i32.const 8192) (i32.const 10)) i32.const 512";
    let noting = Forged { imports, fields: "(data (i32.const 8192) \"tenletters\")", decide, ..Forged::default() };
    let (_, mut instance) = decided(started(sandbox, &noting.bytes(), &[])?)?;
    let notes = instance.take_notes();
    if notes == ["tenletters"] { Ok(()) } else { Err(format!("{notes:?}")) }
}

fn notes(sandbox: &Sandbox) -> Result<(), String> {
    let (_, mut instance) = hostile(sandbox, "note-flood")?;
    let (kept, dropped) = (instance.take_notes().len(), instance.notes_dropped());
    if dropped == 0 { Ok(()) } else { Err(format!("{kept} notes kept, {dropped} dropped")) }
}

fn summary(sandbox: &Sandbox) -> Result<(), String> {
    let policy = sandbox.compile("guest", &Forged::default().bytes()).unwrap();
    let summary = policy.describe(&[], GRANTED).map_err(|error| error.to_string())?.summary;
    if summary == "forged" { Ok(()) } else { Err(summary) }
}

fn two_instances(sandbox: &Sandbox) -> Result<(), String> {
    let first = started(sandbox, &Forged::default().bytes(), &[])?;
    let second = started(sandbox, &Forged::default().bytes(), &[])?;
    decided(first)?;
    decided(second).map(|_| ())
}

fn six_core_instances(sandbox: &Sandbox) -> Result<(), String> {
    runtime_takes(sandbox, &format!("(component (core module $m) {})", "(core instance (instantiate $m))".repeat(6)))
}

fn two_memories(sandbox: &Sandbox) -> Result<(), String> {
    let module = "(core module $m (memory 1)) (core module $n (memory 1))";
    runtime_takes(
        sandbox,
        &format!("(component {module} (core instance (instantiate $m)) (core instance (instantiate $n)))"),
    )
}

fn three_tables(sandbox: &Sandbox) -> Result<(), String> {
    let tables = "(core instance (instantiate $m))".repeat(3);
    runtime_takes(sandbox, &format!("(component (core module $m (table 1 funcref)) {tables})"))
}

fn five_pages(sandbox: &Sandbox) -> Result<(), String> {
    let decide = "(drop (memory.grow (i32.const 3))) i32.const 512";
    forged(sandbox, &Forged { decide, ..Forged::default() })
}

fn fifty_entries(sandbox: &Sandbox) -> Result<(), String> {
    let decide = "(drop (table.grow $t (ref.null func) (i32.const 49))) i32.const 512";
    forged(sandbox, &Forged { fields: "(table $t 1 funcref)", decide, ..Forged::default() })
}

fn seven_handles(sandbox: &Sandbox) -> Result<(), String> {
    let wit = super::forged::WIT.replace("    describe: func(", "    resource thing {}\n    describe: func(");
    let imports =
        r#"(import "[export]vassal:policy/policy@0.1.0" "[resource-new]thing" (func $new (param i32) (result i32)))"#;
    let decide = "(drop (call $new (i32.const 1))) ".repeat(7) + "i32.const 512";
    forged(sandbox, &Forged { wit: &wit, imports, decide: &decide, ..Forged::default() })
}

/// A splice of one token at the least, `count` tokens to be inserted; it is refused, but it is lifted before.
fn lifted(sandbox: &Sandbox, count: u32) -> Result<(), String> {
    let decide = put(&[(520, 8_192), (524, count)]) + "(i32.store8 (i32.const 512) (i32.const 2)) i32.const 512";
    match forged(sandbox, &Forged { decide: &decide, ..Forged::default() }) {
        Err(words) if words.contains("bad decision") => Ok(()),
        other => other,
    }
}

/// Each field, at what just suffices; one less is refused in these words.
const BOUNDS: [Bound; 26] = [
    Bound("sequences", 2, |l, n| l.sequences = n as u32, two_instances, "no free instance"),
    Bound("core_instances", 6, |l, n| l.core_instances = n as u32, six_core_instances, "core module instances"),
    Bound("memories", 2, |l, n| l.memories = n as u32, two_memories, "memories"),
    Bound("tables", 3, |l, n| l.tables = n as u32, three_tables, "tables"),
    Bound("memory_bytes", 5 << 16, |l, n| l.memory_bytes = n as usize, five_pages, "memory limit"),
    Bound("table_elements", 50, |l, n| l.table_elements = n as usize, fifty_entries, "table limit"),
    Bound("handles", 7, |l, n| l.handles = n as usize, seven_handles, "failed"),
    Bound("text_bytes", 10, |l, n| l.text_bytes = n as usize, ten_bytes, "10 bytes of text, at most 9"),
    Bound("notes", 100, |l, n| l.notes = n as usize, notes, "99 notes kept, 1 dropped"),
    Bound("note_bytes", 10, |l, n| l.note_bytes = n as usize, ten_byte_note, "tenlet…"),
    Bound("name_bytes", 6, |l, n| l.name_bytes = n as usize, plain, "must be 1 to 5 bytes"),
    Bound("version_bytes", 3, |l, n| l.version_bytes = n as usize, plain, "must be 1 to 2 bytes"),
    Bound("summary_bytes", 6, |l, n| l.summary_bytes = n as usize, summary, "fo…"),
    Bound(
        "setting_text_bytes",
        14,
        |l, n| l.setting_text_bytes = n as usize,
        |s| hostile(s, "fourteen bytes").map(|_| ()),
        "at most 13 bytes of text",
    ),
    Bound(
        "candidates",
        256,
        |l, n| l.candidates = n as u32,
        |s| hostile(s, "none").map(|_| ()),
        "candidates-max is 256",
    ),
    Bound("rewind", 4, |l, n| l.rewind = n as u32, |s| hostile(s, "none").map(|_| ()), "rewind-max is 4"),
    Bound("heads", 2, |l, n| l.heads = n as usize, |s| hostile(s, "none").map(|_| ()), "number of heads is 2"),
    Bound("settings", 1, |l, n| l.settings = n as usize, |s| hostile(s, "none").map(|_| ()), "number of settings is 1"),
    Bound("choices", 4, |l, n| l.choices = n as usize, vas, "a choice's words is 4"),
    Bound(
        "bias_tokens",
        3,
        |l, n| l.bias_tokens = n as usize,
        |s| hostile(s, "bias-twice").map(|_| ()),
        "`bias` has 3",
    ),
    Bound(
        "insert_tokens",
        1,
        |l, n| l.insert_tokens = n as usize,
        |s| hostile(s, "insert").map(|_| ()),
        "`insert` has 1",
    ),
    Bound("magnitude", 10_000, |l, n| l.magnitude = n as f32, |s| hostile(s, "bound").map(|_| ()), "a delta of 10000"),
    Bound("evaluations", 100, |l, n| l.evaluations = n as u32, |s| evaluations(s, 100), "99 of 100"),
    Bound("answer_bytes", 4_000, |l, n| l.answer_bytes = n as usize, |s| lifted(s, 1_000), "failed"),
    Bound("component_bytes", 0, |l, n| l.component_bytes = n as usize, plain, "bytes"),
    Bound("async_stack_bytes", 256 << 10, |l, n| l.async_stack_bytes = n as usize, plain, "stack"),
];

fn evaluations(sandbox: &Sandbox, most: u32) -> Result<(), String> {
    match hostile(sandbox, "evaluate-flood")?.0 {
        Decision::Steer(steering) if steering.adjust[0] == most as f32 => Ok(()),
        Decision::Steer(steering) => Err(format!("{} of {most}", steering.adjust[0])),
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_number_holds_at_its_bound_and_one_beyond() {
    let _served = Served::as_before();
    let mut failures = Vec::new();
    for Bound(field, at, set, probe, words) in BOUNDS {
        let at = match field {
            "component_bytes" => Forged::default().bytes().len() as u64,
            _ => at,
        };
        let with = |value: u64| {
            let mut limits = defaults();
            set(&mut limits, value);
            limits
        };
        if field == "async_stack_bytes" {
            assert!(Sandbox::new(with(at), Compilation::default()).is_ok());
            let error = Sandbox::new(with(at - 1), Compilation::default()).err().map(|e| e.to_string());
            assert!(error.is_some_and(|error| error.contains(words)));
            continue;
        }
        if let Err(error) = probe(&under(with(at))) {
            failures.push(format!("{field} = {at}: {error}"));
        }
        match probe(&under(with(at - 1))) {
            Ok(()) => failures.push(format!("{field} = {}: taken", at - 1)),
            Err(error) if error.contains(words) => {}
            Err(error) => failures.push(format!("{field} = {}: `{words}` is not in `{error}`", at - 1)),
        }
    }
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
}

#[test]
fn machine_code_and_the_cache_are_as_large_as_their_limits_and_no_larger() {
    let _served = Served::as_before();
    let home = folder("code");
    let child = |cache| ChildCompiler { program: Some(env!("CARGO_BIN_EXE_vassal-under-test").into()), cache };
    let compile = |limits: Limits, cache, fields: &str| {
        let sandbox = Sandbox::new(limits, Compilation::Child(child(cache))).unwrap();
        sandbox.compile("guest", &Forged { fields, ..Forged::default() }.bytes()).map(|_| ())
    };
    let entries =
        || std::fs::read_dir(home.join("policy-cache")).unwrap().map(|file| file.unwrap().metadata().unwrap().len());
    compile(defaults(), Some(home.clone()), "").unwrap();
    // A seal around the code: 16 bytes of magic and three digests (`host/src/sandbox/compiler/seal.rs`).
    let first = entries().sum::<u64>();
    let code_bytes = first as usize - 16 - 3 * 32;
    compile(Limits { code_bytes, ..defaults() }, None, "").unwrap();
    let error = compile(Limits { code_bytes: code_bytes - 1, ..defaults() }, None, "").unwrap_err();
    assert_eq!(error, LoadError::CodeTooLarge { guest: Guest::policy("guest"), limit_bytes: code_bytes - 1 });
    compile(defaults(), Some(home.clone()), "(func $more)").unwrap();
    let both = entries().sum::<u64>();
    assert_eq!(entries().count(), 2);
    for (cache_bytes, kept) in [(both, 2), (both - 1, 1)] {
        std::fs::remove_dir_all(home.join("policy-cache")).unwrap();
        let limits = Limits { cache_bytes, ..defaults() };
        compile(limits.clone(), Some(home.clone()), "").unwrap();
        compile(limits, Some(home.clone()), "(func $more)").unwrap();
        assert_eq!(entries().count(), kept, "{cache_bytes} bytes of cache");
    }
}

#[test]
fn stack_and_clock_hold_what_they_should_and_end_what_is_far_beyond() {
    let _served = Served::as_before();
    let deep =
        "(func $deeper (param i32) (if (local.get 0) (then (call $deeper (i32.sub (local.get 0) (i32.const 1))))))";
    let recursing =
        Forged { fields: deep, decide: "(call $deeper (i32.const 1000)) i32.const 512", ..Forged::default() };
    forged(&under(defaults()), &recursing).unwrap();
    let error = forged(&under(Limits { stack_bytes: 8 << 10, ..defaults() }), &recursing).unwrap_err();
    assert!(error.contains("stack overflow"), "{error}");
    // Some tenths of a second of work: many short windows hold it, one does not.
    let long = "(func $long (local $left i32) (local.set $left (i32.const 200000000))
        (loop $again (br_if $again (local.tee $left (i32.sub (local.get $left) (i32.const 1))))))";
    let working = Forged { fields: long, decide: "(call $long) i32.const 512", ..Forged::default() };
    let windows =
        |deadline_windows, deadline_ms| Limits { fuel_decide: u64::MAX, deadline_windows, deadline_ms, ..defaults() };
    forged(&under(windows(100_000, 5)), &working).unwrap();
    forged(&under(windows(1, 500_000)), &working).unwrap();
    let error = forged(&under(windows(1, 5)), &working).unwrap_err();
    assert!(error.contains("the host's deadline passed: `decide` may take 1 times 5 ms"), "{error}");
}
