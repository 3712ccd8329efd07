//! Every cap at its bound and one beyond, compile bombs, and how near real guests come.
//!
//! [`having`] makes a component with a given amount of what a cap counts, and as little of the rest as it can.
//! Nothing here is compiled: whether a component passes is the validator's answer alone. Figures of real guests are
//! printed, and stand in `docs/security.md`.

use std::time::{Duration, Instant};

use vassal::sandbox::{Cap, Guest, Limits, LoadError, inspect};

use super::{inspect_text, module};
use crate::attacks::Served;
use crate::rebuild::root;
use crate::support::component;

/// A component of which `inspect` counts `n`.
fn having(cap: Cap, n: u64) -> Vec<u8> {
    let times = |text: &str| text.repeat(n as usize);
    let text = match cap {
        Cap::ComponentBytes => return padded(n as usize),
        Cap::ComponentDepth => return nested(n as usize),
        Cap::Components => format!("(component {})", "(component)".repeat(n as usize - 1)),
        Cap::Modules => format!("(component {})", times("(core module)")),
        Cap::Instances => format!("(component (core module $m) {})", times("(core instance (instantiate $m))")),
        Cap::Functions => module(&times("(func)")),
        Cap::Types => module(&times("(type (func))")),
        // The section's own count looks like one more.
        Cap::NestedTypes => return nested_types(n as usize - 1),
        Cap::Imports => module(&(0..n).map(|at| format!("(import \"a\" \"b{at}\" (func))")).collect::<String>()),
        Cap::Exports => module(
            &(0..n).map(|at| format!("(export \"e{at}\" (func $f))")).chain(["(func $f)".into()]).collect::<String>(),
        ),
        Cap::Aliases => format!(
            "(component (core module $m (memory (export \"m\") 1)) (core instance $i (instantiate $m)) {})",
            times("(alias core export $i \"m\" (core memory))")
        ),
        Cap::Globals => module(&times("(global i32 (i32.const 0))")),
        Cap::Memories => format!("(component {})", times("(core module (memory 1))")),
        Cap::Tables => module(&times("(table 1 funcref)")),
        Cap::DataSegments => module(&format!("(memory 1) {}", times("(data (i32.const 0) \"\")"))),
        Cap::ElementSegments => module(&format!("(table 1 funcref) {}", times("(elem (i32.const 0) func)"))),
        Cap::ElementEntries => module(&format!("(func $f) (elem func {})", times(" $f"))),
        Cap::MemoryBytes => module(&format!("(memory {})", n.div_ceil(1 << 16))),
        Cap::TableEntries => module(&format!("(table {n} funcref)")),
        // A byte says that there are no locals, another ends the body.
        Cap::FunctionBytes => module(&format!("(func {})", "nop ".repeat(n as usize - 2))),
        Cap::FunctionLocals => module(&format!("(func (param i32 i64) (local {}))", " f32".repeat(n as usize - 2))),
        Cap::FunctionBlocks => module(&format!("(func {} {})", times("block "), times("end "))),
        Cap::FunctionLoops => module(&format!("(func {} {})", times("loop "), times("end "))),
        Cap::FunctionOperands => module(&format!("(func {} {})", times("i32.const 0 "), times("drop "))),
        Cap::SignatureValues => {
            module(&format!("(type (func (param {}) (result i32)))", " i32".repeat(n as usize - 1)))
        }
    };
    wat::parse_str(text).unwrap_or_else(|error| panic!("{cap}: {error}"))
}

const HEADER: &[u8] = b"\0asm\x0d\0\x01\0";

/// An empty component of so many bytes: the rest is a custom section.
fn padded(bytes: usize) -> Vec<u8> {
    let mut component = HEADER.to_vec();
    // The section's kind, and a length of five bytes.
    section(&mut component, 0, &[&[1, b'x'], vec![0; bytes - HEADER.len() - 6 - 2].as_slice()].concat());
    component
}

/// Components inside each other.
fn nested(depth: usize) -> Vec<u8> {
    let mut component = HEADER.to_vec();
    for _ in 1..depth {
        let inner = std::mem::replace(&mut component, HEADER.to_vec());
        section(&mut component, 4, &inner);
    }
    component
}

/// Instance types inside each other, so many of them inside others.
fn nested_types(depth: usize) -> Vec<u8> {
    let mut component = HEADER.to_vec();
    // A type of one declaration, which is a type; the last has none.
    section(&mut component, 7, &[&[1], [0x42, 1, 1].repeat(depth).as_slice(), &[0x42, 0]].concat());
    component
}

/// Appends a section, its length padded to five bytes.
fn section(component: &mut Vec<u8>, kind: u8, body: &[u8]) {
    component.push(kind);
    let mut left = body.len();
    for place in 0..5 {
        component.push((left & 0x7f) as u8 | if place < 4 { 0x80 } else { 0 });
        left >>= 7;
    }
    component.extend_from_slice(body);
}

#[test]
fn every_cap_holds_at_its_bound_and_one_beyond() {
    let _served = Served::as_before();
    // The file's size would hide what takes many bytes.
    let limits = Limits { component_bytes: 16 << 20, ..Limits::default() };
    for cap in Cap::ALL.into_iter().filter(|cap| *cap != Cap::ComponentBytes) {
        let limit = cap.limit(&limits);
        let footprint = inspect(&Guest::policy("text"), &having(cap, limit), &limits)
            .unwrap_or_else(|error| panic!("{cap}: {error}"));
        assert_eq!(footprint.of(cap), limit, "{cap}");
        let error = inspect(&Guest::policy("text"), &having(cap, limit + 1), &limits).expect_err(cap.name());
        let LoadError::Cap { guest, cap: refused, given, limit: bound, .. } = &error else { panic!("{cap}: {error}") };
        // Memories are counted in whole pages.
        let beyond = if cap == Cap::MemoryBytes { limit + (1 << 16) } else { limit + 1 };
        assert_eq!((guest.name.as_str(), *refused, *given, *bound), ("text", cap, beyond, limit));
        let words = error.to_string();
        assert!(words.contains(&format!("{beyond} {cap}, at most {limit} allowed")), "{words}");
    }
}

#[test]
fn a_file_is_as_large_as_its_limit_and_no_larger() {
    let _served = Served::as_before();
    let limits = Limits::default();
    let limit = limits.component_bytes;
    let footprint = inspect(&Guest::policy("file"), &padded(limit), &limits).unwrap();
    assert_eq!(footprint.of(Cap::ComponentBytes), limit as u64);
    let error = inspect(&Guest::policy("file"), &padded(limit + 1), &limits).unwrap_err();
    assert_eq!(error, LoadError::TooLarge { guest: Guest::policy("file"), bytes: limit + 1, limit_bytes: limit });
}

#[test]
fn a_function_beyond_a_cap_is_named() {
    let error = inspect_text(&module(&format!("(func) (func) (func (local {}))", " i32".repeat(513)))).unwrap_err();
    assert_eq!(error.to_string(), "policy `text`: function 2: 513 locals in a function, at most 512 allowed");
}

#[test]
fn types_inside_types_count() {
    let inner = "(type u8)".repeat(3);
    let text = format!("(component (type (component (type (instance {inner})))) (core type (module (type (func)))))");
    let footprint = inspect_text(&text).unwrap();
    // Two at the top, the instance type and its three, and the module type's one.
    assert_eq!(footprint.of(Cap::Types), 7);
}

#[test]
fn compile_bombs_are_refused_before_they_are_compiled() {
    let _served = Served::as_before();
    let text = |text: String| wat::parse_str(text).unwrap();
    let bombs = [
        (Cap::FunctionLoops, having(Cap::FunctionLoops, 10_000)),
        (Cap::FunctionBlocks, having(Cap::FunctionBlocks, 10_000)),
        (Cap::FunctionLocals, text(module(&format!("(func (local {}))", " i64".repeat(40_000))))),
        (Cap::FunctionOperands, having(Cap::FunctionOperands, 15_000)),
        (Cap::Functions, text(module(&"(func)".repeat(250_000)))),
        (Cap::TableEntries, text(module("(table 1000000 funcref)"))),
        (Cap::MemoryBytes, text(module("(memory 65536)"))),
        (Cap::ComponentDepth, nested(10_000)),
        (Cap::NestedTypes, nested_types(300_000)),
        (Cap::SignatureValues, text(module(&format!("(type (func (param {})))", " i32".repeat(1_000))))),
    ];
    for (expected, bytes) in bombs {
        assert!(bytes.len() <= Limits::default().component_bytes, "{expected}: {} bytes", bytes.len());
        let begun = Instant::now();
        let error = inspect(&Guest::policy("bomb"), &bytes, &Limits::default()).expect_err(expected.name());
        assert!(matches!(error, LoadError::Cap { cap, .. } if cap == expected), "{expected}: {error}");
        // Compiling the worst of them takes tens of seconds; this, milliseconds, on a machine that is not busy.
        assert!(begun.elapsed() < Duration::from_secs(3), "{expected}: {:?}", begun.elapsed());
    }
    // Locals that the file does not even name one by one.
    let lie = [&[0, b'a', b's', b'm', 1, 0, 0, 0][..], &[1, 4, 1, 0x60, 0, 0, 3, 2, 1, 0, 10, 10, 1, 8, 1]].concat();
    let lie = [&lie[..], &[0xff, 0xff, 0xff, 0xff, 0x0f, 0x7f, 0x0b]].concat();
    let mut component = HEADER.to_vec();
    section(&mut component, 1, &lie);
    let error = inspect(&Guest::policy("bomb"), &component, &Limits::default()).unwrap_err();
    assert!(matches!(error, LoadError::Cap { cap: Cap::FunctionLocals, given: 4_294_967_295, .. }), "{error}");
}

#[test]
fn real_guests_keep_well_within_every_cap() {
    let mut guests: Vec<(String, Vec<u8>)> = ["vas", "vas_plain", "guard"]
        .map(|name| (name.to_owned(), std::fs::read(root().join(format!("guest/policies/{name}.wasm"))).unwrap()))
        .into();
    for name in ["contrastive", "grammar", "segment_rejection", "watermark", "hostile", "hostile_reward"] {
        guests.push((name.into(), component(name)));
    }
    let limits = Limits::default();
    let footprints =
        guests.iter().map(|(name, bytes)| inspect(&Guest::policy(name), bytes, &limits).unwrap()).collect::<Vec<_>>();
    for cap in Cap::ALL {
        let most = footprints.iter().map(|footprint| footprint.of(cap)).max().unwrap();
        let limit = cap.limit(&limits);
        eprintln!("{cap:<44} {most:>8} of {limit:>8}");
        // Room for guests twice as large in every way; memory and tables are counted in few, large parts.
        let room = if matches!(cap, Cap::ComponentDepth | Cap::Memories | Cap::Tables) { limit } else { limit / 2 };
        assert!(most <= room, "{cap}: {most} of {limit}");
    }
}
