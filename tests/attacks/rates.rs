//! Fuel to the unit: what each host function takes, and that a call has all that its limit says and no more.
//!
//! The rates are told apart by setting one of them and leaving the others at nothing, so what is compared is the price
//! alone. The runtime looks at fuel where functions and loops begin, so what is paid for stands before another call.

use vassal::sandbox::Limits;

use super::Served;
use super::forged::{Forged, put};
use super::limits::{decided, defaults, forged, started, under};

/// A policy that calls one function of the host, and the fuel of its `decide`.
fn fuel_of_call(limits: Limits, (interface, function, parameters, call): (&str, &str, &str, &str)) -> u64 {
    let imports =
        format!("(import \"vassal:policy/{interface}@0.1.0\" \"{function}\" (func $call (param {parameters})))");
    let decide = format!("(call $call {call}) i32.const 512");
    // Ten bytes, and two tokens, `12` and `345`.
    let fields = r#"(data (i32.const 8192) "0123456789") (data (i32.const 8208) "\0c\00\00\00\59\01\00\00")"#;
    let calling = Forged { imports: &imports, fields, decide: &decide, ..Forged::default() };
    decided(started(&under(limits), &calling.bytes(), &[]).unwrap()).unwrap().1.fuel_used()
}

#[test]
fn every_host_function_is_paid_for_by_the_call_and_by_what_crosses() {
    let _served = Served::as_before();
    let free = Limits { fuel_call: 0, fuel_item: 0, fuel_text_byte: 0, ..defaults() };
    // Each with the items and bytes of text that cross: what is refused is paid for too.
    for (call, items, text_bytes) in [
        (("audit", "note", "i32 i32", "(i32.const 8192) (i32.const 10)"), 10, 0),
        (("text", "tokens", "i32 i32 i32", "(i32.const 8192) (i32.const 10) (i32.const 600)"), 0, 10),
        (("text", "bytes", "i32 i32 i32", "(i32.const 8208) (i32.const 2) (i32.const 600)"), 2 + 5, 0),
        (
            (
                "values",
                "evaluate",
                "i32 i32 i32 i32 i32",
                "(i32.const 0) (i32.const 1) (i32.const 8208) (i32.const 2) (i32.const 600)",
            ),
            3,
            0,
        ),
        (("values", "current", "i32 i32", "(i32.const 0) (i32.const 600)"), 1, 0),
    ] {
        let fuel = |limits: Limits| fuel_of_call(limits, call);
        let base = fuel(free.clone());
        let beyond = |limits: Limits| fuel(limits) - base;
        assert_eq!(beyond(Limits { fuel_call: 1_000, ..free.clone() }), 1_000, "{call:?}");
        assert_eq!(beyond(Limits { fuel_item: 100, ..free.clone() }), 100 * items, "{call:?}");
        assert_eq!(beyond(Limits { fuel_text_byte: 100, ..free.clone() }), 100 * text_bytes, "{call:?}");
    }
    // A search is paid for by what it looks at, on top of the call: here it finds the digit `0`.
    let imports = r#"(import "vassal:policy/text@0.1.0" "find" (func $find (param i32 i32 i32 i32 i32 i32 i32 i32)))"#;
    let letter = "(i32.const 8192) (i32.const 1) (i32.const 8216) (i32.const 1) (i32.const 8216) (i32.const 1)";
    let decide = format!("{} (call $find {letter} (i32.const 3) (i32.const 600)) i32.const 512", put(&[(8_216, 1)]));
    let fuel = |fuel_call| {
        let finding = Forged { imports, fields: "(data (i32.const 8192) \"0\")", decide: &decide, ..Forged::default() };
        let sandbox = under(Limits { fuel_call, ..free.clone() });
        decided(started(&sandbox, &finding.bytes(), &[]).unwrap()).unwrap().1.fuel_used()
    };
    assert_eq!(fuel(1_000) - fuel(0), 1_000);
    assert!(fuel(0) > 100, "a search of a thousand tokens costs {}", fuel(0));
}

#[test]
fn fuel_is_enough_to_the_unit() {
    let _served = Served::as_before();
    // The least fuel with which a policy comes to its decision.
    let least = |set: fn(&mut Limits, u64), forged_: &Forged<'_>| {
        let enough = |fuel: u64| {
            let mut limits = defaults();
            set(&mut limits, fuel);
            match forged(&under(limits), forged_) {
                Ok(()) => true,
                Err(words) => {
                    assert!(words.contains("out of fuel"), "{words}");
                    false
                }
            }
        };
        let (mut refused, mut taken) = (0, 4_096);
        while taken - refused > 1 {
            let middle = (taken + refused) / 2;
            *(if enough(middle) { &mut taken } else { &mut refused }) = middle;
        }
        taken
    };
    let paying = |bytes: u32| format!("(memory.fill (i32.const 8192) (i32.const 7) (i32.const {bytes})) (call $look)");
    let look = "(func $look)";
    let once = |set: fn(&mut Limits, u64), place: &str| {
        let needs = |bytes| {
            let (body, nothing) = (paying(bytes), String::new());
            let start = if place == "start" { &body } else { &nothing };
            let fields = format!("{look} (func $begin {start}) (start $begin)");
            let describe = format!("{} i32.const 64", if place == "describe" { &body } else { &nothing });
            let decide = format!("{} i32.const 512", if place == "decide" { &body } else { &nothing });
            least(set, &Forged { fields: &fields, describe: &describe, decide: &decide, ..Forged::default() })
        };
        let (some, more) = (needs(500), needs(1_500));
        assert_eq!(more - some, 1_000, "{place}");
        assert!((500..600).contains(&some), "{place}: {some}");
    };
    once(|limits, fuel| limits.fuel_decide = fuel, "decide");
    once(|limits, fuel| limits.fuel_start = fuel, "start");
    once(|limits, fuel| limits.fuel_describe = fuel, "describe");
}
