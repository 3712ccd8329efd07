//! Loading: files that are no policies, and policies that lie about what they are.
//!
//! Caps and compile bombs are `tests/loading/caps.rs`, the compiler's child `tests/loading/compiler.rs`, proposals in
//! detail `tests/loading/proposals.rs`. Here is what comes after: the contract, start functions, and `describe`.

use vassal::sandbox::{
    ContractError, Decision, Fault, FaultKind, LoadError, Manifest, ManifestError, Needs, Progress, TrapCode,
};

use super::forged::{Forged, WIT, load_text, put};
use super::{GRANTED, Served, assert_plain, good_policy_is_served, head, hostile, start, step};
use crate::support::sandbox;

#[test]
fn files_that_are_no_policies_are_refused() {
    let _served = Served::as_before();
    let good = Forged::default().bytes();
    let load = |bytes: &[u8]| sandbox().compile("file", bytes).map(|_| ()).unwrap_err();
    assert!(matches!(load(b""), LoadError::NotWebAssembly { .. }));
    assert!(matches!(load(b"GGUF\0\0\0\0\0"), LoadError::NotWebAssembly { .. }));
    assert!(matches!(load(&wat::parse_str("(module)").unwrap()), LoadError::CoreModule { .. }));
    assert!(matches!(load(&vec![0; (1 << 20) + 1]), LoadError::TooLarge { bytes: 1_048_577, .. }));
    assert!(matches!(
        load_text("(component)").unwrap_err(),
        LoadError::Contract { error: ContractError::MissingExport { .. }, .. }
    ));
    // Cut anywhere, it is refused; never a panic, never accepted.
    for length in (0..good.len()).step_by(97).chain([good.len() - 1]) {
        let error = load(&good[..length]);
        assert_plain(&error.to_string());
    }
    good_policy_is_served();
}

#[test]
fn proposals_that_no_guest_needs_are_off() {
    let _served = Served::as_before();
    let refused = |fields: &str| {
        let error = Forged { fields, ..Forged::default() }.load().err();
        assert!(matches!(error, Some(LoadError::Invalid { .. })), "`{fields}`: {error:?}");
    };
    refused("(memory 1)");
    refused("(memory $large i64 1)");
    refused("(func $f (return_call $f))");
    refused("(memory $shared 1 1 shared)");
    refused("(type $s (struct (field i32)))");
    refused("(tag $t)");
    refused(
        "(func (param i64 i64 i64 i64) (result i64 i64) (i64.add128 (local.get 0) (local.get 1) (local.get 2) (local.get 3)))",
    );
}

#[test]
fn imports_beyond_the_contract_are_refused_by_name() {
    let _served = Served::as_before();
    let wasi = r#"(component
        (import "wasi:clocks/monotonic-clock@0.2.0" (instance (export "now" (func (result u64))))))"#;
    let error = load_text(wasi).unwrap_err();
    let LoadError::Contract { error: ContractError::UnknownImport { import, known, .. }, .. } = error else { panic!() };
    assert_eq!(import, "wasi:clocks/monotonic-clock@0.2.0");
    assert_eq!(known.len(), 3);
    let later = r#"(component (import "vassal:policy/text@0.2.0" (instance)))"#;
    let error = load_text(later).unwrap_err().to_string();
    assert!(error.contains("`vassal:policy/text@0.2.0`"), "{error}");
    let function = r#"(component
        (import "vassal:policy/text@0.1.0" (instance (export "fetch" (func (param "url" string))))))"#;
    let error = load_text(function).unwrap_err().to_string();
    assert!(error.contains("vassal:policy/text@0.1.0#fetch"), "{error}");
    let plain = r#"(component (import "\1b[2Jhelp" (func)))"#;
    assert!(load_text(plain).is_err());
}

#[test]
fn types_that_differ_are_refused_at_the_first_difference() {
    let _served = Served::as_before();
    let refused = |from: &str, to: &str| {
        let wit = WIT.replace(from, to);
        assert_ne!(wit, WIT, "`{from}` is in the contract");
        match (Forged { wit: &wit, ..Forged::default() }).load() {
            Err(LoadError::Contract { error: ContractError::Types { function, difference }, .. }) => {
                format!("{function}: {difference}")
            }
            other => panic!("`{from}` -> `{to}`: {:?}", other.map(|policy| policy.name().to_owned())),
        }
    };
    assert_eq!(
        refused("        stop(string),\n", "        stop(string),\n        fork,\n"),
        "vassal:policy/policy@0.1.0#decide: result case `fork` is not in the contract"
    );
    assert_eq!(
        refused("        ended: bool,\n", "        ended: u8,\n"),
        "vassal:policy/policy@0.1.0#decide: parameter `step` field `ended` is u8, but bool in the contract"
    );
    assert_eq!(
        refused("enum tail {", "enum tail { both,"),
        "vassal:policy/policy@0.1.0#decide: result case `steer` field `tail` case `both` stands where the \
         contract has `keep`"
    );
    assert_eq!(
        refused("        needs: list<string>,\n", ""),
        "vassal:policy/policy@0.1.0#describe: result field `needs` of the contract is missing"
    );
}

#[test]
fn a_table_or_memory_that_starts_too_large_is_refused() {
    let _served = Served::as_before();
    let load = |fields| {
        Forged { fields, ..Forged::default() }.load().and_then(|policy| policy.describe(&[], GRANTED).map(|_| ()))
    };
    assert!(load("(table 10000 funcref)").is_ok());
    assert!(load("(table 10001 funcref)").is_err());
    assert!(load("(table 1000000 funcref)").is_err());
    let large = Forged { memory: 257, ..Forged::default() }.load();
    assert!(large.is_err());
}

#[test]
fn core_start_functions_run_under_the_limits() {
    let _served = Served::as_before();
    let fields = "(func $spin (loop $forever (br $forever))) (start $spin)";
    let policy = Forged { fields, ..Forged::default() }.load().unwrap();
    let described = policy.describe(&[], GRANTED);
    assert!(matches!(described, Err(LoadError::Describe(Fault { kind: FaultKind::OutOfFuel, .. }))), "{described:?}");
}

#[test]
fn lying_manifests_are_refused_by_name() {
    let _served = Served::as_before();
    let refused = |lie| match hostile().describe(&[head(lie)], GRANTED) {
        Err(LoadError::Manifest { error, .. }) => {
            assert_plain(&error.to_string());
            error
        }
        other => panic!("`{lie}`: {other:?}"),
    };
    for lie in ["lie-candidates", "lie-rewind", "lie-heads", "lie-settings", "lie-choice"] {
        let error = refused(lie);
        assert!(matches!(error, ManifestError::Bound { .. }), "`{lie}`: {error:?}");
    }
    for lie in ["lie-range", "lie-nan"] {
        let error = refused(lie);
        assert!(matches!(error, ManifestError::Range { .. }), "`{lie}`: {error:?}");
    }
    for lie in ["lie-name", "lie-long-name", "lie-no-name"] {
        let error = refused(lie);
        assert!(matches!(error, ManifestError::Name { .. }), "`{lie}`: {error:?}");
    }
    for lie in ["lie-head-twice", "lie-setting-twice"] {
        let error = refused(lie);
        assert!(matches!(error, ManifestError::Twice { .. }), "`{lie}`: {error:?}");
    }
    let near = vec![String::from("lie-head")];
    assert_eq!(refused("lie-head"), ManifestError::UnknownHead { name: "lie-heed".into(), near });
    assert_eq!(refused("lie-need"), ManifestError::UnknownNeed("network".into()));
    assert_eq!(refused("lie-stop"), ManifestError::NotGranted("stop"));
    let granted = hostile().describe(&[head("lie-stop")], Needs { stop: true, ..GRANTED }).unwrap();
    assert!(granted.needs.stop);
}

#[test]
fn the_shipped_text_and_the_sandbox_agree_on_a_good_policy() {
    let _served = Served::as_before();
    let policy = Forged::default().load().unwrap();
    assert!(!policy.imports_values());
    assert!(policy.imports().is_empty());
    let manifest: Manifest = policy.describe(&[], GRANTED).unwrap();
    assert_eq!((manifest.name.as_str(), manifest.version.as_str(), manifest.candidates_max), ("forged", "1.0", 20));
    let mut instance = start(&policy, &[]).unwrap();
    assert_eq!(instance.plan().candidates, 20);
    assert_eq!(instance.decide(&step()), Progress::Decided(Decision::Keep));
    assert!((1..1_000).contains(&instance.fuel_used()), "{}", instance.fuel_used());
    assert!(hostile().imports_values());
}

#[test]
fn core_start_functions_can_neither_grow_nor_recurse_beyond_the_limits() {
    let _served = Served::as_before();
    let described = |fields: &str| {
        let policy = Forged { fields, ..Forged::default() }.load().unwrap();
        match policy.describe(&[], GRANTED) {
            Err(LoadError::Describe(fault)) => fault.kind,
            other => panic!("{other:?}"),
        }
    };
    let grow = "(func $grow (drop (memory.grow (i32.const 255)))) (start $grow)";
    assert_eq!(described(grow), FaultKind::Memory { wanted_bytes: 257 << 16, limit_bytes: 256 << 16 });
    let table =
        "(table $t 0 funcref) (func $grow (drop (table.grow $t (ref.null func) (i32.const 10001)))) (start $grow)";
    assert_eq!(described(table), FaultKind::Table { wanted: 10_001, limit: 10_000 });
    let deeper = "(func $deeper (call $deeper)) (start $deeper)";
    assert_eq!(described(deeper), FaultKind::Trap(TrapCode::StackOverflow));
    // Within them it may work, and pays from the fuel of the call that it comes before.
    let work = "(func $work (memory.fill (i32.const 8192) (i32.const 1) (i32.const 100000))) (start $work)";
    let working = Forged { fields: work, ..Forged::default() }.start();
    let idle = Forged::default().start();
    assert!((100_000..100_100).contains(&(working.start_fuel_used() - idle.start_fuel_used())));
}

#[test]
fn describe_cannot_know_which_call_it_is() {
    let _served = Served::as_before();
    // It counts its calls in a global, in its memory, beyond it, and in a table, and announces as many candidates.
    let fields = "(global $calls (mut i32) (i32.const 20)) (table $t 1 2 funcref) (elem declare func $count)
        (func $count (result i32)
            (global.set $calls (i32.add (global.get $calls) (i32.const 1)))
            (i32.store (i32.const 8192) (i32.add (i32.load (i32.const 8192)) (i32.const 1)))
            (drop (memory.grow (i32.const 200)))
            (i32.store (i32.const 10000000) (i32.add (i32.load (i32.const 10000000)) (i32.const 1)))
            (drop (table.grow $t (ref.func $count) (i32.const 1)))
            (i32.add (i32.add (global.get $calls) (i32.load (i32.const 8192)))
                (i32.add (i32.load (i32.const 10000000)) (i32.add (memory.size) (table.size $t)))))";
    let describe = "(i32.store (i32.const 88) (call $count)) i32.const 64";
    let policy = Forged { fields, describe, ..Forged::default() }.load().unwrap();
    for _ in 0..3 {
        // 21 and two ones, 202 pages, 2 entries; `describe` itself asks twice and compares.
        assert_eq!(policy.describe(&[], GRANTED).unwrap().candidates_max, 227);
    }
}

#[test]
fn a_manifest_cannot_hide_behind_forged_lists() {
    let _served = Served::as_before();
    for (list, at) in [("heads", 96), ("settings", 104), ("needs", 112)] {
        let describe = put(&[(at, 1_024), (at + 4, u32::MAX)]) + "i32.const 64";
        let policy = Forged { describe: &describe, ..Forged::default() }.load().unwrap();
        let Err(LoadError::Describe(fault)) = policy.describe(&[], GRANTED) else { panic!("`{list}` is read") };
        assert!(matches!(fault.kind, FaultKind::Error | FaultKind::Trap(TrapCode::InvalidValue)), "{list}: {fault}");
    }
}
