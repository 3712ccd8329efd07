//! What attention and the cache promise: right against f64, the same bits however rows are batched, chunked
//! or computed, and exact commits and prefix sums.
//!
//! A [`World`] gives every position of every sequence its own numbers, so that a row read from the wrong place
//! shows.

use half::f16;

use super::attend;
use crate::cpu::cache::Cache;
use crate::cpu::isa::Detected;
use crate::cpu::testing::{Random, best_isa, bits, every_isa};
use crate::device::{CacheShape, ModelShape, PAGE_TOKENS, Plan, RopePairing, Row};
use crate::pool::Pool;

const HIDDEN: usize = 24;
const LAYERS: usize = 2;
/// Pages of one sequence's block table, and of all.
const PAGES: [usize; 2] = [5, 24];
/// The first page that no block table names.
const SCRATCH_SLOT: usize = (PAGES[1] - 2) * PAGE_TOKENS;

/// Heads, key heads and head width: SmolLM2's, one key head a query head, odd widths and groups.
const SHAPES: [[usize; 3]; 5] = [[9, 3, 64], [4, 4, 16], [7, 1, 80], [8, 2, 128], [2, 2, 6]];

fn model([heads, kv_heads, head_width]: [usize; 3]) -> ModelShape {
    ModelShape {
        layers: LAYERS,
        hidden: HIDDEN,
        heads,
        kv_heads,
        head_width,
        feed_forward: 8,
        vocabulary: 8,
        context_tokens: 256,
        norm_epsilon: 1e-5,
        rope_pairing: RopePairing::Interleaved,
        rope_inverse_frequencies: vec![1.0; head_width / 2],
    }
}

/// A cache, and made-up queries, keys, values and residuals of every (sequence, position).
struct World {
    shape: [usize; 3],
    cache: Cache,
    block_tables: Vec<Vec<u32>>,
}

impl World {
    fn new(shape: [usize; 3], sequences: usize) -> World {
        let cache = Cache::new(&model(shape), &CacheShape { pages: PAGES[1], taps: vec![1, 2] }).unwrap();
        // Pages interleaved and backwards, so that nothing is contiguous by luck.
        let table = |s| (0..PAGES[0]).map(|page| (PAGES[1] - 3 - (page * sequences + s)) as u32).collect();
        World { shape, cache, block_tables: (0..sequences).map(table).collect() }
    }

    fn numbers(&self, what: u64, sequence: u32, position: u32, count: usize, scale: f32) -> Vec<f32> {
        let mut random = Random(what << 48 | u64::from(sequence) << 32 | u64::from(position));
        let mut numbers = random.bells(count, scale);
        // A spike now and then, so that softmax is far from a mean.
        let at = random.below(count);
        numbers[at] *= 4.0;
        numbers
    }

    /// `[A*D]`, `[KV*D]`, `[KV*D]`: query, key and value, the last two as f16 keeps them.
    fn qkv(&self, sequence: u32, position: u32) -> [Vec<f32>; 3] {
        let [heads, kv_heads, width] = self.shape;
        let rounded = |x: Vec<f32>| x.into_iter().map(|x| f16::from_f32(x).to_f32()).collect();
        [
            self.numbers(1, sequence, position, heads * width, 1.5),
            rounded(self.numbers(2, sequence, position, kv_heads * width, 1.0)),
            rounded(self.numbers(3, sequence, position, kv_heads * width, 2.0)),
        ]
    }

    fn slot(&self, sequence: u32, position: u32) -> u32 {
        let page = self.block_tables[sequence as usize][position as usize / PAGE_TOKENS];
        page * PAGE_TOKENS as u32 + position % PAGE_TOKENS as u32
    }

    fn row(&self, sequence: u32, position: u32) -> Row {
        let slot = self.slot(sequence, position);
        Row { token: 0, position, sequence, slot, response_count: position + 1, remaining: 0.5 }
    }

    /// Stores the rows' own keys and values and attends, as a pass does. `[R, A*D]`.
    fn pass(&mut self, isa: Detected, pool: &Pool, rows: &[Row]) -> Vec<f32> {
        let plan = Plan { rows: rows.to_vec(), block_tables: self.block_tables.clone() };
        let mut q = Vec::new();
        for row in rows {
            let [query, key, value] = self.qkv(row.sequence, row.position);
            self.cache.store(1, row.slot as usize, &key, &value);
            q.extend(query);
        }
        let mut out = vec![f32::NAN; q.len()];
        attend(isa, pool, &plan, &q, &self.cache, 1, &mut out);
        out
    }

    /// Softmax attention in f64, all keys at once; and without the own key, to show that the test can tell.
    fn oracle(&self, row: &Row) -> [Vec<f64>; 2] {
        let [heads, kv_heads, width] = self.shape;
        let dot = |a: &[f32], b: &[f32]| -> f64 { a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum() };
        let all: Vec<_> = (0..=row.position).map(|position| self.qkv(row.sequence, position)).collect();
        let mut out = [Vec::new(), Vec::new()];
        for head in 0..heads {
            let own = head / (heads / kv_heads) * width;
            let query = &all[row.position as usize][0][head * width..][..width];
            for (out, all) in out.iter_mut().zip([&all[..], &all[..all.len() - 1]]) {
                let scores: Vec<f64> =
                    all.iter().map(|[_, k, _]| dot(query, &k[own..own + width]) / (width as f64).sqrt()).collect();
                let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = scores.iter().map(|s| (s - largest).exp()).sum();
                out.extend((0..width).map(|d| {
                    let weighed = scores.iter().zip(all).map(|(s, x)| (s - largest).exp() * f64::from(x[2][own + d]));
                    weighed.sum::<f64>() / sum
                }));
            }
        }
        out
    }
}

fn positions(world: &World, sequence: u32, range: std::ops::Range<u32>) -> Vec<Row> {
    range.map(|position| world.row(sequence, position)).collect()
}

#[test]
fn attention_agrees_with_f64_over_ragged_lengths() {
    let pool = Pool::new(2);
    for shape in SHAPES {
        let mut world = World::new(shape, 4);
        // Earlier positions, then one ragged batch whose rows straddle tiles.
        let lengths = [1u32, 31, 64, 97];
        for (sequence, length) in lengths.into_iter().enumerate() {
            let rows = positions(&world, sequence as u32, 0..length);
            world.pass(best_isa(), &pool, &rows);
        }
        let rows: Vec<Row> =
            (0..4).flat_map(|s| positions(&world, s, lengths[s as usize]..lengths[s as usize] + 3)).collect();
        let out = world.pass(best_isa(), &pool, &rows);
        let mut told_apart = 0;
        for (row, out) in rows.iter().zip(out.chunks_exact(shape[0] * shape[2])) {
            let [expected, without_own] = world.oracle(row);
            // Scores are sums of D products rounded at 2^-24 of some 100, values at most 30.
            let bound = 2e-4;
            for ((out, expected), without) in out.iter().zip(&expected).zip(&without_own) {
                let difference = (f64::from(*out) - expected).abs();
                assert!(difference <= bound, "{shape:?} {row:?}: {out} is not {expected}");
                told_apart += usize::from((expected - without).abs() > 10.0 * bound);
            }
        }
        assert!(told_apart > out.len() / 20, "{shape:?}: the own key shows in {told_apart} of {}", out.len());
    }
}

#[test]
fn every_isa_and_any_number_of_threads_give_the_same_bits() {
    for shape in SHAPES {
        let mut results = Vec::new();
        for isa in every_isa() {
            for threads in [1, 3] {
                let mut world = World::new(shape, 3);
                let rows: Vec<Row> = (0..3).flat_map(|s| positions(&world, s, 0..[5, 40, 67][s as usize])).collect();
                results.push(bits(&world.pass(isa, &Pool::new(threads), &rows)));
            }
        }
        assert!(results.windows(2).all(|pair| pair[0] == pair[1]), "{shape:?}");
        assert!(results[0].iter().all(|bits| f32::from_bits(*bits).is_finite()));
    }
}

#[test]
fn chunks_of_any_size_equal_one_row_at_a_time() {
    let pool = Pool::new(2);
    for shape in SHAPES {
        let run = |chunks: &[u32], dirty: bool| {
            let mut world = World::new(shape, 2);
            if dirty {
                // What a page held before must not matter, be it infinite or no number.
                let width = shape[1] * shape[2];
                for slot in 0..PAGES[1] * PAGE_TOKENS {
                    let junk = [f32::NAN, f32::INFINITY, -7.0][slot % 3];
                    world.cache.store(1, slot, &vec![junk; width], &vec![junk; width]);
                }
            }
            let (mut out, mut start) = (Vec::new(), 0);
            for length in chunks {
                let rows = positions(&world, 0, start..start + length);
                out.extend(world.pass(best_isa(), &pool, &rows));
                start += length;
            }
            bits(&out)
        };
        let single = run(&[1; 103], false);
        assert_eq!(single, run(&[103], false), "{shape:?}");
        assert_eq!(single, run(&[7, 25, 33, 1, 37], true), "{shape:?}");
        assert_eq!(single, run(&[1; 103], true), "{shape:?}");
    }
}

#[test]
fn candidates_in_scratch_slots_equal_their_rows_in_pages() {
    let pool = Pool::new(2);
    for (shape, position) in SHAPES.into_iter().zip([0u32, 31, 32, 45, 64]) {
        // The candidates of this step are the same position of other sequences, so that each has its own key.
        let alone: Vec<_> = (0..3)
            .map(|s| {
                let mut world = World::new(shape, 3);
                let prefix = positions(&world, 0, 0..position);
                world.pass(best_isa(), &pool, &prefix);
                let row = Row { sequence: 0, slot: world.slot(0, position), ..world.row(s, position) };
                let plan = Plan { rows: vec![row], block_tables: world.block_tables.clone() };
                let [q, k, v] = world.qkv(s, position);
                world.cache.store(1, row.slot as usize, &k, &v);
                let mut out = vec![0.0; q.len()];
                attend(best_isa(), &pool, &plan, &q, &world.cache, 1, &mut out);
                bits(&out)
            })
            .collect();
        let mut world = World::new(shape, 3);
        let prefix = positions(&world, 0, 0..position);
        world.pass(best_isa(), &pool, &prefix);
        // Twenty rows of one sequence and position, the three candidates over and over.
        let rows: Vec<Row> =
            (0..20).map(|i| Row { slot: (SCRATCH_SLOT + i) as u32, ..world.row(0, position) }).collect();
        let mut q = Vec::new();
        for (i, row) in rows.iter().enumerate() {
            let [query, k, v] = world.qkv(i as u32 % 3, position);
            world.cache.store(1, row.slot as usize, &k, &v);
            q.extend(query);
        }
        let plan = Plan { rows, block_tables: world.block_tables.clone() };
        let mut out = vec![0.0; q.len()];
        attend(best_isa(), &pool, &plan, &q, &world.cache, 1, &mut out);
        for (i, out) in out.chunks_exact(shape[0] * shape[2]).enumerate() {
            assert_eq!(bits(out), alone[i % 3], "{shape:?} candidate {i}");
        }
        assert!(alone[0] != alone[1], "candidates must differ");
    }
}

#[test]
fn a_committed_winner_continues_as_if_it_had_never_left() {
    let pool = Pool::new(1);
    for shape in SHAPES {
        let run = |through_scratch: bool| {
            let mut world = World::new(shape, 2);
            let rows = positions(&world, 0, 0..35);
            let mut out = world.pass(best_isa(), &pool, &rows);
            world.accumulate(&rows);
            for position in 35..68 {
                let home = world.row(0, position);
                let row = if through_scratch { Row { slot: (SCRATCH_SLOT + 5) as u32, ..home } } else { home };
                out.extend(world.pass(best_isa(), &pool, &[row]));
                world.accumulate(&[row]);
                if through_scratch {
                    world.cache.commit(&[(row.slot, home.slot)], 0..LAYERS);
                }
            }
            let sums = [0, 1].map(|tap| bits(world.cache.sum(tap, world.slot(0, 67) as usize)));
            (bits(&out), sums)
        };
        assert_eq!(run(true), run(false), "{shape:?}");
    }
}

#[test]
fn commit_copies_its_layers_and_their_taps_only() {
    let mut world = World::new([2, 1, 40], 1);
    let (from, to) = (SCRATCH_SLOT + 3, 2 * PAGE_TOKENS + 9);
    for layer in 0..LAYERS {
        world.cache.store(layer, from, &[layer as f32 + 1.0; 40], &[layer as f32 + 3.0; 40]);
    }
    world.accumulate(&[Row { slot: from as u32, ..world.row(0, 0) }]);
    world.cache.commit(&[(from as u32, to as u32)], 0..1);
    let key = |world: &World, layer| f16::from_bits(world.cache.key_tile(2, layer, 0)[39 * PAGE_TOKENS + 9]).to_f32();
    let value =
        |world: &World, layer| f16::from_bits(world.cache.value_tile(2, layer, 0)[(PAGE_TOKENS + 9) * 32 + 7]).to_f32();
    let sums = |world: &World| [0, 1].map(|tap| world.cache.sum(tap, to) == world.cache.sum(tap, from));
    assert_eq!([key(&world, 0), value(&world, 0)], [1.0, 3.0]);
    assert_eq!([key(&world, 1), value(&world, 1)], [0.0, 0.0], "layer 1 was not in 0..1");
    assert_eq!(sums(&world), [true, false]);
    world.cache.commit(&[(from as u32, to as u32)], 1..2);
    assert_eq!([key(&world, 1), value(&world, 1)], [2.0, 4.0]);
    assert_eq!(sums(&world), [true, true]);
}

impl World {
    /// Accumulates made-up residuals of the rows at both taps.
    fn accumulate(&mut self, rows: &[Row]) {
        let x: Vec<f32> =
            rows.iter().flat_map(|row| self.numbers(4, row.sequence, row.position, HIDDEN, 1.0)).collect();
        let plan = Plan { rows: rows.to_vec(), block_tables: self.block_tables.clone() };
        for tap in 0..2 {
            self.cache.accumulate(&plan, tap, &x);
        }
    }
}

#[test]
fn prefix_sums_are_exact_after_a_rewind() {
    let mut world = World::new([2, 1, 8], 2);
    // The response starts at position 20.
    let response = |world: &World, range: std::ops::Range<u32>| -> Vec<Row> {
        positions(world, 0, range)
            .into_iter()
            .map(|r| Row { response_count: (r.position + 1).saturating_sub(20), ..r })
            .collect()
    };
    let rows = response(&world, 0..70);
    world.accumulate(&rows);
    let before: Vec<_> = rows.iter().map(|row| bits(world.cache.sum(1, row.slot as usize))).collect();
    assert!(before[..20].iter().flatten().all(|bits| *bits == 0), "the prompt has no sums");
    assert_eq!(before[20], bits(&world.numbers(4, 0, 20, HIDDEN, 1.0)), "the first is the residual itself");
    assert!(before[69].iter().any(|b| f32::from_bits(*b).abs() > 2.0));
    // Rewind to 40, write other positions' residuals there, rewind again, and go on in single rows.
    let other: Vec<Row> = response(&world, 40..55).into_iter().map(|row| Row { sequence: 1, ..row }).collect();
    let tables = world.block_tables.clone();
    world.block_tables[1] = tables[0].clone();
    world.accumulate(&other);
    assert!(bits(world.cache.sum(1, rows[54].slot as usize)) != before[54]);
    for row in &rows[40..] {
        world.accumulate(std::slice::from_ref(row));
    }
    let after: Vec<_> = rows.iter().map(|row| bits(world.cache.sum(1, row.slot as usize))).collect();
    assert_eq!(before, after);
}

#[test]
fn a_cache_refuses_what_cannot_be() {
    let refused =
        |taps: &[usize], pages| Cache::new(&model([2, 1, 8]), &CacheShape { pages, taps: taps.to_vec() }).err();
    for taps in [&[0][..], &[3], &[2, 1], &[1, 1]] {
        assert!(matches!(refused(taps, 4), Some(crate::DeviceError::Shape { what: "taps", .. })), "{taps:?}");
    }
    assert!(matches!(refused(&[1], usize::MAX / 64), Some(crate::DeviceError::Shape { .. })));
    assert!(matches!(
        refused(&[1], 1 << 50),
        Some(crate::DeviceError::Failed { .. } | crate::DeviceError::Shape { .. })
    ));
    assert!(refused(&[], 0).is_none());
}
