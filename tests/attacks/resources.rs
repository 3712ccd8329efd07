//! Fuel, memory, tables, stack, handles and the clock: what a policy may take, and what it costs it to ask.
//!
//! That each stops at its bound is here; the bounds themselves, to the unit, are in [`super::limits`]. Fuel stands for
//! time: the dearest instructions that were found are timed until it is spent.

use std::time::{Duration, Instant};

use vassal::sandbox::{
    BadCall, CompiledPolicy, Decision, Fault, FaultKind, Limits, LoadError, Progress, Sandbox, TrapCode,
};

use super::forged::{BUMP, Forged, WIT, put};
use super::{GRANTED, Served, fault_of, head, hostile, hostile_in, start, step};
use crate::support::compilation;

#[test]
fn endless_loops_run_out_of_fuel() {
    let _served = Served::as_before();
    assert_eq!(fault_of("loop"), FaultKind::OutOfFuel);
    assert_eq!(start(&hostile(), &[("mode", "start-loop")]).err().unwrap().kind, FaultKind::OutOfFuel);
    let described = hostile().describe(&[head("lie-loop")], GRANTED);
    assert!(matches!(described, Err(LoadError::Describe(Fault { kind: FaultKind::OutOfFuel, .. }))));
    let mut instance = hostile_in("loop");
    instance.decide(&step());
    assert_eq!(instance.fuel_used(), 250_000);
}

#[test]
fn a_realloc_that_spins_runs_out_of_fuel() {
    let _served = Served::as_before();
    let policy = Forged { realloc: "(loop $forever (br $forever)) unreachable", ..Forged::default() }.load().unwrap();
    let described = policy.describe(&[head("value")], GRANTED);
    assert!(matches!(described, Err(LoadError::Describe(Fault { kind: FaultKind::OutOfFuel, .. }))), "{described:?}");
    // It behaves while nothing is offered and nothing prompted, and spins where a step is lowered.
    let body = format!("(if (global.get $started) (then (loop $forever (br $forever)))) {BUMP}");
    let policy = Forged { realloc: &body, ..Forged::default() }.load().unwrap();
    let mut instance = start(&policy, &[]).unwrap();
    assert!(matches!(instance.decide(&step()), Progress::Faulted(Fault { kind: FaultKind::OutOfFuel, .. })));
}

#[test]
fn memory_grows_to_its_limit_and_no_further() {
    let _served = Served::as_before();
    let FaultKind::Memory { wanted_bytes, limit_bytes } = fault_of("grow") else { panic!() };
    assert_eq!(limit_bytes, 16 << 20);
    assert!(wanted_bytes > limit_bytes);
    let grow = |pages: u32| {
        let decide = format!("(drop (memory.grow (i32.const {pages}))) i32.const 512");
        let policy = Forged { decide: &decide, ..Forged::default() }.load().unwrap();
        start(&policy, &[]).unwrap().decide(&step())
    };
    // The forged policy has 2 pages of 64 KiB.
    assert_eq!(grow(254), Progress::Decided(Decision::Keep));
    let Progress::Faulted(fault) = grow(255) else { panic!() };
    assert_eq!(fault.kind, FaultKind::Memory { wanted_bytes: 257 << 16, limit_bytes: 256 << 16 });
}

#[test]
fn tables_grow_to_their_limit_and_no_further() {
    let _served = Served::as_before();
    let grow = |entries: u32| {
        let decide = format!("(drop (table.grow $t (ref.null func) (i32.const {entries}))) i32.const 512");
        let policy = Forged { fields: "(table $t 0 funcref)", decide: &decide, ..Forged::default() }.load().unwrap();
        start(&policy, &[]).unwrap().decide(&step())
    };
    assert_eq!(grow(10_000), Progress::Decided(Decision::Keep));
    let Progress::Faulted(fault) = grow(10_001) else { panic!() };
    assert_eq!(fault.kind, FaultKind::Table { wanted: 10_001, limit: 10_000 });
}

#[test]
fn recursion_ends_in_a_trap() {
    let _served = Served::as_before();
    // A Rust guest's stack lies at the start of its memory.
    let kind = fault_of("recurse");
    let known = [TrapCode::MemoryOutOfBounds, TrapCode::StackOverflow].map(FaultKind::Trap);
    assert!(known.contains(&kind), "{kind:?}");
    let fields = "(func $deeper (result i32) (i32.add (i32.const 1) (call $deeper)))";
    let policy = Forged { fields, decide: "call $deeper", ..Forged::default() }.load().unwrap();
    let Progress::Faulted(fault) = start(&policy, &[]).unwrap().decide(&step()) else { panic!() };
    assert_eq!(fault.kind, FaultKind::Trap(TrapCode::StackOverflow));
}

#[test]
fn text_functions_are_paid_for_by_the_byte() {
    let _served = Served::as_before();
    for mode in ["text-flood", "bytes-flood", "find-flood"] {
        assert_eq!(fault_of(mode), FaultKind::OutOfFuel, "`{mode}`");
    }
    let long = FaultKind::BadCall(BadCall::TextTooLong { bytes: 4_097, limit: 4_096 });
    assert_eq!(fault_of("text-long"), long);
    assert!(matches!(fault_of("find-invalid"), FaultKind::BadCall(BadCall::Pattern(_))));
}

#[test]
fn the_clock_is_a_backstop_and_the_hosts_fault() {
    let _served = Served::as_before();
    let impatient =
        Limits { fuel_decide: u64::MAX, deadline_ms: 20, deadline_windows: 2, sequences: 2, ..Limits::default() };
    let sandbox = Sandbox::new(impatient, compilation()).unwrap();
    let forged = Forged { decide: "(loop $forever (br $forever)) unreachable", ..Forged::default() };
    let policy = sandbox.compile("slow", &forged.bytes()).unwrap();
    let Progress::Faulted(fault) = start(&policy, &[]).unwrap().decide(&step()) else { panic!() };
    assert_eq!(fault.kind, FaultKind::Deadline);
    assert!(fault.kind.is_the_hosts());
}

/// A policy whose `decide` is a function of this body.
fn deciding(body: &str) -> CompiledPolicy {
    let parts = "(type $plain (func)) (func $nothing) (table $t 10 funcref) (elem (i32.const 9) $nothing)
        (elem $e func $attack $attack) (data $d \"0123456789\")";
    let fields = format!("{parts} (func $attack {body})");
    Forged { fields: &fields, decide: "(call $attack) i32.const 512", ..Forged::default() }.load().unwrap()
}

/// The fuel of a `decide` that keeps, or the fault that it ends in.
fn fuel_of(body: &str) -> Result<u64, FaultKind> {
    let mut instance = start(&deciding(body), &[]).unwrap();
    match instance.decide(&step()) {
        Progress::Decided(Decision::Keep) => Ok(instance.fuel_used()),
        Progress::Faulted(fault) => Err(fault.kind),
        other => panic!("{other:?}"),
    }
}

#[test]
fn bulk_instructions_are_paid_for_by_the_byte() {
    let _served = Served::as_before();
    for (instruction, most) in [
        ("memory.fill (i32.const 8192) (i32.const 7)", 50_000),
        ("memory.copy (i32.const 8192) (i32.const 8193)", 50_000),
        ("memory.init $d (i32.const 8192) (i32.const 0)", 10),
        ("table.fill $t (i32.const 0) (ref.null func)", 10),
        ("table.copy (i32.const 0) (i32.const 0)", 10),
        ("table.init $t $e (i32.const 0) (i32.const 0)", 2),
    ] {
        let fuel = |count: u32| fuel_of(&format!("({instruction} (i32.const {count}))")).unwrap();
        assert_eq!(fuel(most) - fuel(0), u64::from(most), "`{instruction}`");
    }
    // All of the largest memory is 67 times what a step may use, and a loop of it ends before its first round.
    let grown = "(drop (memory.grow (i32.const 254)))";
    for instruction in ["memory.fill (i32.const 0) (i32.const 7)", "memory.copy (i32.const 0) (i32.const 0)"] {
        let body = format!("{grown} (loop $again ({instruction} (i32.const 0x1000000)) (br $again))");
        let begun = Instant::now();
        assert_eq!(fuel_of(&body), Err(FaultKind::OutOfFuel), "`{instruction}`");
        assert!(begun.elapsed() < Duration::from_secs(3), "`{instruction}`: {:?}", begun.elapsed());
    }
}

/// What a step may take at the bound of its fuel, milliseconds. Where this was written the dearest was to grow memory by
/// nothing, 250,000 units of which took 5 ms; denormal arithmetic, which other processors do much slower, took 0.8 ms.
/// A slower machine may need four times as long.
const STEP_MS: f64 = 20.0;

#[test]
fn the_dearest_instructions_end_within_a_steps_time() {
    let _served = Served::as_before();
    let looped = |body: &str| format!("(loop $again {body} (br $again))");
    // Each round goes on from what the last one stored, and lengths are read, so that nothing can be left out.
    let chain = |kind: &str, step: &str| {
        looped(&format!("({kind}.store (i32.const 8192) ({kind}.load (i32.const 8192)) {})", step.repeat(100)))
    };
    let many = |instruction: &str| looped(&instruction.repeat(50));
    let locals = "(local $two f64) (local $twos v128) (local $none i32) (local $one i64)
        (local.set $two (f64.convert_i32_u (memory.size))) (local.set $twos (f64x2.splat (local.get $two)))
        (local.set $none (i32.load (i32.const 16384))) (local.set $one (i64.div_u (i64.const 2) (i64.extend_i32_u (memory.size))))";
    let small = "(f64.store (i32.const 8192) (f64.const 4e-320)) (f64.store (i32.const 8200) (f64.const 4e-320))";
    let (nothing, none) = ("(local.get $none)", "(i32.const 0)");
    for (name, body) in [
        ("denormal divisions", chain("f64", "(local.get $two) f64.div (local.get $two) f64.mul ")),
        ("pairs of them", chain("v128", "(local.get $twos) f64x2.div (local.get $twos) f64x2.mul ")),
        (
            "denormal conversions",
            format!(
                "(f64.store (i32.const 8192) (f64.const 1e-40)) {}",
                chain("f64", "f32.demote_f64 f64.promote_f32 ")
            ),
        ),
        (
            "integer divisions",
            format!("(i64.store (i32.const 8192) (i64.const -7)) {}", chain("i64", "(local.get $one) i64.div_u ")),
        ),
        ("growing memory by nothing", many(&format!("(drop (memory.grow {nothing}))"))),
        ("growing tables by nothing", many(&format!("(drop (table.grow $t (ref.null func) {nothing}))"))),
        ("copying nothing", many(&format!("(memory.copy {none} {none} {nothing})"))),
        ("filling with nothing", many(&format!("(memory.fill {none} {none} {nothing})"))),
        ("initialising with nothing", many(&format!("(memory.init $d {none} {none} {nothing})"))),
        ("filling tables with nothing", many(&format!("(table.fill $t {none} (ref.null func) {nothing})"))),
        ("copying nothing in tables", many(&format!("(table.copy {none} {none} {nothing})"))),
        ("calls through a table", many("(call_indirect $t (type $plain) (i32.const 9))")),
    ] {
        let policy = deciding(&format!("{locals} {small} {body}"));
        let timed = || {
            let mut instance = start(&policy, &[]).unwrap();
            let begun = Instant::now();
            let Progress::Faulted(fault) = instance.decide(&step()) else { panic!("`{name}` is not at fault") };
            let took = begun.elapsed();
            assert_eq!((fault.kind, instance.fuel_used()), (FaultKind::OutOfFuel, 250_000), "`{name}`");
            took.as_secs_f64() * 1e3
        };
        // The best of some: others use this machine too.
        let best = (0..8).map(|_| timed()).fold(f64::INFINITY, f64::min);
        eprintln!("{name:<28} {best:>7.3} ms a step");
        assert!(best <= STEP_MS, "`{name}`: {best} ms");
    }
}

#[test]
fn two_hundred_thousand_handles_are_a_thousand() {
    let _served = Served::as_before();
    // A resource of the guest's own: the contract has none.
    let wit = WIT.replace("    describe: func(", "    resource thing {}\n    describe: func(");
    assert_ne!(wit, WIT);
    let policy = |count: u32| {
        let fields = format!(
            "(func $attack (local $made i32) (loop $again
                (drop (call $new (i32.const 1)))
                (local.set $made (i32.add (local.get $made) (i32.const 1)))
                (br_if $again (i32.lt_u (local.get $made) (i32.const {count})))))"
        );
        let imports = r#"(import "[export]vassal:policy/policy@0.1.0" "[resource-new]thing" (func $new (param i32) (result i32)))"#;
        let decide = "(call $attack) i32.const 512";
        Forged { wit: &wit, imports, fields: &fields, decide, ..Forged::default() }.start()
    };
    assert_eq!(policy(1_000).decide(&step()), Progress::Decided(Decision::Keep));
    for count in [1_001, 200_000] {
        let Progress::Faulted(fault) = policy(count).decide(&step()) else { panic!("{count} handles are given") };
        assert_eq!(fault.kind, FaultKind::Error, "{fault}");
    }
    // They are a response's, not a step's.
    let mut twice = policy(600);
    assert_eq!(twice.decide(&step()), Progress::Decided(Decision::Keep));
    assert!(matches!(twice.decide(&step()), Progress::Faulted(Fault { kind: FaultKind::Error, .. })));
}

#[test]
fn lists_that_claim_to_be_endless_never_reach_a_host_function() {
    let _served = Served::as_before();
    let text = "vassal:policy/text@0.1.0";
    for (interface, function, parameters, call) in [
        (text, "bytes", "i32 i32 i32", "(i32.const 1024) (i32.const -1) (i32.const 600)"),
        (text, "tokens", "i32 i32 i32", "(i32.const 1024) (i32.const -1) (i32.const 600)"),
        ("vassal:policy/audit@0.1.0", "note", "i32 i32", "(i32.const 1024) (i32.const -1)"),
        (
            text,
            "find",
            "i32 i32 i32 i32 i32 i32 i32 i32",
            "(i32.const 1024) (i32.const 1) (i32.const 1024) (i32.const -1) (i32.const 1024) (i32.const -1)
                (i32.const 0) (i32.const 600)",
        ),
        (
            "vassal:policy/values@0.1.0",
            "evaluate",
            "i32 i32 i32 i32 i32",
            "(i32.const 1024) (i32.const -1) (i32.const 1024) (i32.const -1) (i32.const 600)",
        ),
    ] {
        let imports = format!("(import \"{interface}\" \"{function}\" (func $call (param {parameters})))");
        let decide = format!("(call $call {call}) i32.const 512");
        let mut instance = Forged { imports: &imports, decide: &decide, ..Forged::default() }.start();
        let Progress::Faulted(fault) = instance.decide(&step()) else { panic!("`{function}` is not at fault") };
        assert!(
            matches!(fault.kind, FaultKind::Error | FaultKind::Trap(TrapCode::InvalidValue)),
            "{function}: {fault}"
        );
        assert!(instance.take_notes().is_empty());
    }
}

#[test]
fn a_list_of_aliases_is_as_dear_as_what_it_names() {
    let _served = Served::as_before();
    // `needs` of 1.9 million entries of eight bytes, in the largest memory, none of which was written.
    let nothing = put(&[(112, 131_072), (116, 1_900_000)]) + "i32.const 64";
    let described = |fields: &str, describe: &str| {
        let policy = Forged { memory: 256, fields, describe, ..Forged::default() }.load().unwrap();
        let begun = Instant::now();
        let Err(LoadError::Describe(fault)) = policy.describe(&[], GRANTED) else { panic!("it is described") };
        assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
        fault.kind
    };
    assert_eq!(described("", &nothing), FaultKind::Error);
    // 60,000 entries that all name the same six bytes.
    let fields = "(func $alias (local $at i32) (local.set $at (i32.const 131072)) (loop $again
        (i64.store (local.get $at) (i64.const 0x600000010))
        (local.set $at (i32.add (local.get $at) (i32.const 8)))
        (br_if $again (i32.lt_u (local.get $at) (i32.const 611072)))))";
    let aliases = format!("(call $alias) {} i32.const 64", put(&[(112, 131_072), (116, 60_000)]));
    assert_eq!(described(fields, &aliases), FaultKind::Error);
    // To write 1.9 million of them is not paid for by any call, however they are copied.
    let copy = "(memory.copy (i32.const 611072) (i32.const 131072) (i32.const 480000))";
    let all = format!("(call $alias) {} {} i32.const 64", copy.repeat(3), put(&[(112, 131_072), (116, 1_900_000)]));
    assert_eq!(described(fields, &all), FaultKind::OutOfFuel);
}

#[test]
fn what_runs_around_an_answer_is_under_the_same_fuel_and_can_reach_nothing() {
    let _served = Served::as_before();
    let imports = r#"(import "vassal:policy/audit@0.1.0" "note" (func $note (param i32 i32)))"#;
    let kind = |fields: &str, realloc: &str| {
        let mut instance = Forged { imports, fields, realloc, ..Forged::default() }.start();
        match instance.decide(&step()) {
            Progress::Faulted(fault) => (fault.kind, instance.take_notes().len()),
            other => panic!("{other:?}"),
        }
    };
    // After an answer has been lifted, its sender may clean up.
    let after = |body: &str| {
        let fields = format!("(func (export \"cabi_post_vassal:policy/policy@0.1.0#decide\") (param i32) {body})");
        kind(&fields, BUMP)
    };
    assert_eq!(after("(loop $forever (br $forever))"), (FaultKind::OutOfFuel, 0));
    assert_eq!(after("unreachable"), (FaultKind::Trap(TrapCode::Unreachable), 0));
    assert_eq!(after("(call $note (i32.const 16) (i32.const 6))"), (FaultKind::Trap(TrapCode::Other), 0));
    // While a step is lowered, it may find room for it, and do nothing else.
    let noting = format!("(if (global.get $started) (then (call $note (i32.const 16) (i32.const 6)))) {BUMP}");
    assert_eq!(kind("", &noting), (FaultKind::Trap(TrapCode::Other), 0));
}
