//! Value heads, prefix sums, copies and commits against the CPU's: sums and copies bit for bit, products within f32
//! rounding.
//!
//! A product of n terms in another order is off by at most some n roundings of the sum of magnitudes: bounds are
//! 2^-18 of it, for widths below a hundred.

use vassal_cuda_stand_in::in_child;

use half::f16;

use super::{Random, bits, cpu, cuda, model, read, rows_of};
use crate::device::{CacheShape, Device, LinearHead, ModelShape, OnePassHead, Plan, RopePairing, Row};
use crate::format::Format;

const HIDDEN: usize = 77;
const RANK: usize = 5;
const VOCABULARY: usize = 40;

fn shape() -> ModelShape {
    ModelShape { layers: 3, ..model(HIDDEN, [2, 1, 6], RopePairing::Interleaved) }
}

/// A response behind a prompt of four, in two passes: single rows, then two sequences side by side.
fn plans() -> Vec<Plan> {
    let row = |sequence: u32, position: u32| Row {
        token: 0,
        position,
        sequence,
        slot: (sequence * 64) + (position + 32) % 64,
        response_count: (position + 1).saturating_sub(4),
        remaining: 1.0 - position as f32 / 64.0,
    };
    let tables = vec![vec![1, 0], vec![3, 2]];
    let plan = |rows: Vec<Row>| Plan { rows, block_tables: tables.clone() };
    let candidates = (0..3).map(|i| Row { slot: 160 + i, ..row(1, 9) });
    vec![
        plan((0..40).map(|position| row(0, position)).collect()),
        plan((40..45).map(|position| row(0, position)).chain((0..9).map(|position| row(1, position))).collect()),
        plan([row(0, 45)].into_iter().chain(candidates).collect()),
    ]
}

fn linear(random: &mut Random, share: bool) -> LinearHead {
    LinearHead {
        tap: 1,
        residual: random.bells(HIDDEN, 1.0),
        mean: random.bells(HIDDEN, 1.0),
        share: if share { random.bells(HIDDEN, 1.0) } else { vec![] },
        remaining: random.bell(),
        bias: random.bell(),
    }
}

fn one_pass(random: &mut Random) -> OnePassHead {
    OnePassHead {
        tap: 1,
        rank: RANK,
        state: random.bells(RANK * (2 * HIDDEN + 2), 1.0),
        embedding: random.bells(RANK * HIDDEN, 1.0),
        token_bias: random.bells(VOCABULARY - 3, 1.0).into_iter().map(f16::from_f32).collect(),
    }
}

/// What heads say of the plans, and the features behind it.
#[derive(Debug, Default)]
struct Said {
    features: Vec<f32>,
    values: Vec<f32>,
    projections: Vec<f32>,
    scores: Vec<f32>,
    committed: Vec<f32>,
}

fn run<D: Device>(device: &mut D) -> Said {
    let mut random = Random(7);
    let mut cache = device.cache(&shape(), &CacheShape { pages: 6, taps: vec![1, 3] }).unwrap();
    let heads = [linear(&mut random, true), linear(&mut random, false)];
    let one_pass = one_pass(&mut random);
    let table = random.weights(Format::F16, VOCABULARY, HIDDEN, 1.0);
    let table = device.matrix(Format::F16, VOCABULARY, HIDDEN, &table).unwrap();
    let mut said = Said::default();
    for plan in plans() {
        let x = random.bells(plan.rows.len() * HIDDEN, 2.0);
        let x = rows_of(device, &x, HIDDEN);
        device.begin(&plan).unwrap();
        device.accumulate(&x, 1, &mut cache).unwrap();
        device.read_features(&x, 1, &cache, &mut said.features).unwrap();
        // Twice: the second time the heads are already on the device.
        for _ in 0..2 {
            for head in &heads {
                said.values.extend(device.values(&x, &cache, head).unwrap());
            }
        }
        said.projections.extend(device.project(&x, &cache, &one_pass).unwrap());
        device.end().unwrap();
    }
    let tokens: Vec<u32> = (0..VOCABULARY as u32).rev().chain([3, 3]).collect();
    said.scores = device.score_tokens(&one_pass, &table, &said.projections[..RANK], &tokens).unwrap();
    assert!(device.score_tokens(&one_pass, &table, &said.projections[..RANK], &[]).unwrap().is_empty());
    // A candidate's sums go to its page, and the next row's sum follows from them.
    device.commit(&mut cache, &[(161, 64 + 41), (7, 7)], 0..3).unwrap();
    let row = Row { token: 0, position: 10, sequence: 1, slot: 64 + 42, response_count: 7, remaining: 0.5 };
    let x = rows_of(device, &random.bells(HIDDEN, 1.0), HIDDEN);
    device.begin(&Plan { rows: vec![row], block_tables: vec![vec![1, 0], vec![3, 2]] }).unwrap();
    device.accumulate(&x, 1, &mut cache).unwrap();
    device.read_features(&x, 1, &cache, &mut said.committed).unwrap();
    device.end().unwrap();
    said
}

#[track_caller]
fn close(what: &str, got: &[f32], expected: &[f32], magnitude: f32) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        assert!((got - expected).abs() <= magnitude / 262_144.0, "{what} {i}: {got} is not {expected}");
    }
    assert!(expected.iter().any(|x| *x != 0.0), "{what}: zeros would prove nothing");
}

pub(super) fn check_heads() {
    let (got, expected) = (run(&mut cuda()), run(&mut cpu()));
    assert_eq!(bits(&got.features), bits(&expected.features), "features are exact");
    assert_eq!(bits(&got.committed), bits(&expected.committed), "and after a commit");
    // Means are up to 5, weights some 1, over three times the width.
    close("values", &got.values, &expected.values, 3.0 * 5.0 * HIDDEN as f32);
    close("projections", &got.projections, &expected.projections, 2.0 * 5.0 * HIDDEN as f32);
    close("scores", &got.scores, &expected.scores, 5.0 * 100.0 * HIDDEN as f32);
    assert_eq!(bits(&got.scores[VOCABULARY..]), [got.scores[VOCABULARY - 4]; 2].map(f32::to_bits));
}

#[test]
fn heads_and_sums_are_the_cpus() {
    in_child!({ check_heads() });
}

/// Rows leave and come back in any order.
#[test]
fn rows_are_copied_where_they_are_told() {
    in_child!({
        let (mut cuda, width) = (cuda(), 300);
        let values = Random(1).bells(4 * width, 1.0);
        let x = rows_of(&mut cuda, &values, width);
        let mut y = cuda.rows(5, width).unwrap();
        cuda.copy_rows(&x, &[3, 0, 3], &mut y, 1).unwrap();
        cuda.copy_rows(&x, &[], &mut y, 5).unwrap();
        let row = |index: usize| &values[index * width..][..width];
        let zero = vec![0.0; width];
        assert_eq!(read(&mut cuda, &y, 5), [&zero[..], row(3), row(0), row(3), &zero].concat());
    });
}

/// Copies in order: a slot that was written is what a later copy of it reads.
pub(super) fn check_commits() {
    let mut cuda = cuda();
    let shape = shape();
    let mut cache = cuda.cache(&shape, &CacheShape { pages: 3, taps: vec![1, 3] }).unwrap();
    let mut random = Random(3);
    let halves = |random: &mut Random, count: usize| -> Vec<u16> {
        (0..count).map(|_| f16::from_f32(random.bell()).to_bits()).collect()
    };
    let (keys, values) = (halves(&mut random, 3 * 3 * 32 * 32), halves(&mut random, 3 * 3 * 32 * 32));
    let sums = random.bells(3 * 2 * 32 * HIDDEN, 1.0);
    cache.keys = cuda.gpu.upload("keys", &keys).unwrap();
    cache.values = cuda.gpu.upload("values", &values).unwrap();
    cache.sums = cuda.gpu.upload("sums", &sums).unwrap();
    cuda.commit(&mut cache, &[(70, 1), (1, 35), (2, 70)], 1..3).unwrap();
    let after: [Vec<u16>; 2] = [&cache.keys, &cache.values].map(|m| cuda.gpu.read("test", m, 0, keys.len()).unwrap());
    let after_sums: Vec<f32> = cuda.gpu.read("test", &cache.sums, 0, sums.len()).unwrap();
    let came_from = |slot: usize| match slot {
        1 | 35 => 70,
        70 => 2,
        _ => slot,
    };
    for slot in 0..96 {
        for layer in 0..3 {
            let from = if layer >= 1 { came_from(slot) } else { slot };
            for d in 0..32 {
                let key = |s: usize| ((s / 32 * 3 + layer) * 32 + s % 32) * 32 + d;
                let value = |s: usize| ((s / 32 * 3 + layer) * 32 + d) * 32 + s % 32;
                assert_eq!(after[0][key(slot)], keys[key(from)], "key {slot} {layer} {d}");
                assert_eq!(after[1][value(slot)], values[value(from)], "value {slot} {layer} {d}");
            }
        }
        // Tap 0 is after layer 1, so outside layers 1..3; tap 1 after layer 3, within.
        for (tap, from) in [(0, slot), (1, came_from(slot))] {
            let sum = |s: usize| ((s / 32 * 2 + tap) * 32 + s % 32) * HIDDEN;
            let (got, expected) = (&after_sums[sum(slot)..][..HIDDEN], &sums[sum(from)..][..HIDDEN]);
            assert_eq!(bits(got), bits(expected), "sum {slot} {tap}");
        }
    }
}

#[test]
fn commits_copy_layers_in_order() {
    in_child!({ check_commits() });
}
