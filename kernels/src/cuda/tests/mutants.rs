//! Proof that these tests see: the kernels' PTX is broken on purpose, one line at a time, and a test must fail.
//!
//! A mutant is an edit of one line of one entry: a barrier removed, an index shifted, a bound dropped, operands swapped. A
//! small probe runs with it in a child ([`MUTANT`] names it there), and fails by the interpreter's checks or by
//! its own comparison. Without a mutant the same probe passes.

use std::process::Command;

use vassal_cuda_stand_in::in_child;

use super::{Random, cuda, features, linear, pass, vocabulary};
use crate::cuda::Cuda;
use crate::device::DeviceError;
use crate::format::Format;

/// The environment variable that names the mutant in a child, by its index.
const MUTANT: &str = "VASSAL_MUTANT";

/// An edit of a line; none where the line is not one to edit.
type Edit = fn(&str) -> Option<String>;

/// One line of one entry changed, and the probe that must notice.
struct Mutant {
    what: &'static str,
    entry: &'static str,
    edit: Edit,
    /// Which of the lines that the edit takes, from 0.
    nth: usize,
    probe: &'static str,
}

fn barrier_removed(line: &str) -> Option<String> {
    line.contains("bar.sync").then(String::new)
}

/// A loop's or a store's guard: the branch that skips it is never taken.
fn guard_dropped(line: &str) -> Option<String> {
    (line.trim_start().starts_with("@%p") && line.contains("bra")).then(String::new)
}

/// The two registers of mma's second operand change places.
fn operands_swapped(line: &str) -> Option<String> {
    let mut groups: Vec<&str> = line.strip_prefix('\t')?.starts_with("mma.").then(|| line.split('{').collect())?;
    let (b, rest) = groups[3].split_once('}')?;
    let (first, second) = b.split_once(", ")?;
    let swapped = format!("{second}, {first}}}{rest}");
    groups[3] = &swapped;
    Some(groups.join("{"))
}

/// A 16-byte load takes its neighbour's bytes.
fn load_shifted(line: &str) -> Option<String> {
    (line.contains("ld.global.nc") && line.contains(".v4.u32")).then(|| line.replace("];", "+16];"))
}

fn replaced(line: &str, from: &str, to: &str) -> Option<String> {
    line.contains(from).then(|| line.replacen(from, to, 1))
}

fn mask_widened(line: &str) -> Option<String> {
    replaced(line, "setp.lt.s32", "setp.le.s32")
}

fn order_reversed(line: &str) -> Option<String> {
    replaced(line, "setp.lt.u64", "setp.gt.u64")
}

fn sum_subtracted(line: &str) -> Option<String> {
    replaced(line, "add.rn.f32", "sub.rn.f32")
}

fn atomic_overwrites(line: &str) -> Option<String> {
    replaced(line, "atom.shared.add.u64", "atom.shared.exch.b64")
}

fn shuffle_repeated(line: &str) -> Option<String> {
    line.contains("shfl.sync").then(|| line.replace("bfly", "idx"))
}

fn half_store_shifted(line: &str) -> Option<String> {
    (line.contains("st.global.u16") || line.contains("st.global.b16")).then(|| line.replace("],", "+2],"))
}

fn word_store_shifted(line: &str) -> Option<String> {
    line.contains("st.global.f32").then(|| line.replace("],", "+4],"))
}

const MUTANTS: &[Mutant] = &[
    Mutant {
        what: "partial sums are added before all warps have written theirs",
        entry: "linear_1",
        edit: barrier_removed,
        nth: 0,
        probe: "linear",
    },
    Mutant {
        what: "results are used before all are there",
        entry: "linear_1",
        edit: barrier_removed,
        nth: 1,
        probe: "linear",
    },
    Mutant { what: "elements of k change places", entry: "linear_1", edit: operands_swapped, nth: 0, probe: "linear" },
    Mutant { what: "weights of the next lane", entry: "linear_1", edit: load_shifted, nth: 0, probe: "linear" },
    Mutant { what: "rows past the last are stored", entry: "linear_1", edit: guard_dropped, nth: 0, probe: "linear" },
    Mutant { what: "a norm without its barrier", entry: "prepare", edit: barrier_removed, nth: 1, probe: "linear" },
    Mutant { what: "sums of blocks miss lanes", entry: "prepare", edit: shuffle_repeated, nth: 0, probe: "linear" },
    Mutant { what: "a row's end is not looked for", entry: "embed", edit: guard_dropped, nth: 0, probe: "linear" },
    Mutant { what: "a row sees its own page's key", entry: "attend_32", edit: mask_widened, nth: 0, probe: "pass" },
    Mutant { what: "dimensions change places", entry: "attend_32", edit: operands_swapped, nth: 0, probe: "pass" },
    Mutant { what: "keys change places", entry: "attend_32", edit: operands_swapped, nth: 9, probe: "pass" },
    Mutant { what: "own scores miss lanes", entry: "merge_splits", edit: shuffle_repeated, nth: 1, probe: "pass" },
    Mutant { what: "an output goes next door", entry: "merge_splits", edit: word_store_shifted, nth: 0, probe: "pass" },
    Mutant { what: "a key goes next door", entry: "rope_store", edit: half_store_shifted, nth: 2, probe: "pass" },
    Mutant { what: "sums fall", entry: "accumulate", edit: sum_subtracted, nth: 0, probe: "features" },
    Mutant { what: "a head without its barrier", entry: "values", edit: barrier_removed, nth: 2, probe: "features" },
    Mutant { what: "a copy goes next door", entry: "commit", edit: half_store_shifted, nth: 0, probe: "features" },
    Mutant { what: "sorted without a barrier", entry: "top_k_chunks", edit: barrier_removed, nth: 12, probe: "top" },
    Mutant { what: "sorted upside down", entry: "top_k_merge", edit: order_reversed, nth: 0, probe: "top" },
    Mutant { what: "running sums without a barrier", entry: "choose", edit: barrier_removed, nth: 60, probe: "draw" },
    Mutant { what: "bins are overwritten", entry: "choose", edit: atomic_overwrites, nth: 0, probe: "draw" },
    Mutant {
        what: "deltas before the logits are there",
        entry: "adjust",
        edit: barrier_removed,
        nth: 0,
        probe: "draw",
    },
];

/// The PTX of a module with a mutant in it; unchanged where it has no such entry.
fn mutated(ptx: &str, mutant: &Mutant) -> Option<String> {
    let start = ptx.find(&format!(".visible .entry {}(", mutant.entry))?;
    let mut lines: Vec<String> = ptx[start..].lines().map(str::to_owned).collect();
    let end = lines.iter().position(|line| line == "}")?;
    let candidates = lines[..end].iter().enumerate().filter_map(|(at, line)| Some((at, (mutant.edit)(line)?)));
    let (at, line) = candidates.collect::<Vec<_>>().into_iter().nth(mutant.nth)?;
    assert_ne!(lines[at], line, "{}: nothing changed", mutant.what);
    lines[at] = line;
    Some(format!("{}{}\n", &ptx[..start], lines.join("\n")))
}

/// Opens the card with the mutant that the environment names, or with the PTX as it is.
pub(super) fn open() -> Result<Cuda, DeviceError> {
    let Some(index) = std::env::var(MUTANT).ok().and_then(|index| index.parse::<usize>().ok()) else {
        return Cuda::open(0);
    };
    let changed = std::cell::Cell::new(0);
    let cuda = Cuda::open_with(0, &|module| match mutated(module.ptx, &MUTANTS[index]) {
        Some(ptx) => {
            changed.set(changed.get() + 1);
            ptx
        }
        None => module.ptx.to_owned(),
    });
    assert_eq!(changed.get(), 1, "{} is in one module", MUTANTS[index].what);
    cuda
}

#[test]
fn probe_linear() {
    in_child!({
        let (mut cuda, mut random) = (cuda(), Random(1));
        // Whichever the compiler put first is the one that mutants change: both its loops run.
        for format in Format::ALL {
            linear::check(&mut cuda, &mut random, format, 17, 640, 3);
        }
        linear::check_gates(&mut cuda, &mut random, [Format::Q8_0, Format::F32], 3);
    });
}

#[test]
fn probe_pass() {
    in_child!({ pass::check_near() });
}

#[test]
fn probe_features() {
    in_child!({
        features::check_heads();
        features::check_commits();
    });
}

#[test]
fn probe_top() {
    in_child!({ vocabulary::check_likeliest(8) });
}

#[test]
fn probe_draw() {
    in_child!({
        vocabulary::check_draws(9);
    });
}

/// Every mutant fails its probe, and not because the stand-in could not read it.
#[test]
fn mutants_are_caught() {
    if std::env::var(MUTANT).is_ok() {
        return;
    }
    let binary = std::env::current_exe().expect("the test binary has a path");
    let mut survivors = Vec::new();
    for (index, mutant) in MUTANTS.iter().enumerate() {
        let probe = format!("cuda::tests::mutants::probe_{}", mutant.probe);
        let output = Command::new(&binary)
            .args([probe.as_str(), "--exact", "--nocapture"])
            .env(MUTANT, index.to_string())
            .output();
        let output = output.expect("the child starts");
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        let unread =
            text.contains("INVALID_PTX") || text.contains("is in one module") || text.contains("nothing changed");
        assert!(!unread && text.contains("running 1 test"), "{}: not a mutant\n{text}", mutant.what);
        if output.status.success() {
            survivors.push(format!("{} ({})", mutant.what, mutant.entry));
        }
    }
    assert!(survivors.is_empty(), "not caught: {survivors:#?}");
    assert!(MUTANTS.len() >= 12);
}
