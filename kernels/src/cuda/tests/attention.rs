//! Queries, keys and values against f64, and attention against a softmax in f64 over what the cache holds.
//!
//! The oracle of attention reads the card's own queries and cache, so that the two halves are judged apart: projections,
//! RoPE and the cache's layout by their products, attention by what it was given. Bounds: a query is rounded to 11
//! bits, which moves a score by 2^-11 of its products' magnitudes; so are the weights of keys.

use vassal_cuda_stand_in::in_child;

use half::f16;

use super::linear::{Weights, normed};
use super::{Random, bits, cuda, model, read, rows_of, slot_of};
use crate::cuda::{Cuda, CudaCache, Matrix, Rows};
use crate::device::{CacheShape, Device, ModelShape, PAGE_TOKENS, Plan, Projections, RopePairing, Row};
use crate::format::Format;

const HIDDEN: usize = 32;

/// Pages of two sequences, interleaved and backwards, so that nothing is contiguous by luck.
fn tables(pages: u32) -> Vec<Vec<u32>> {
    (0..2).map(|sequence| (0..pages).map(|page| 2 * (pages - 1 - page) + sequence).collect()).collect()
}

/// A layer's projections on the card, and the same in f64.
struct World {
    cuda: Cuda,
    shape: ModelShape,
    cache: CudaCache,
    gain: Vec<f32>,
    weights: [Weights; 3],
    matrices: [Matrix; 3],
    biases: Option<[Vec<f32>; 3]>,
    tables: Vec<Vec<u32>>,
}

impl World {
    fn new(seed: u64, heads: [usize; 3], pairing: RopePairing, pages: u32, biased: bool) -> World {
        let (mut cuda, mut random) = (cuda(), Random(seed));
        let shape = model(HIDDEN, heads, pairing);
        let cache = cuda.cache(&shape, &CacheShape { pages: 2 * pages as usize + 2, taps: vec![] }).unwrap();
        let widths = [heads[0] * heads[2], heads[1] * heads[2], heads[1] * heads[2]];
        let formats = [Format::Q4_1, Format::Q8_0, Format::F16];
        let weights = [0, 1, 2].map(|i| Weights::new(&mut random, formats[i], widths[i], HIDDEN));
        let matrices = [0, 1, 2].map(|i| cuda.matrix(formats[i], widths[i], HIDDEN, &weights[i].bytes).unwrap());
        let biases = biased.then(|| widths.map(|width| random.bells(width, 1.0)));
        let gain = random.bells(HIDDEN, 0.3);
        World { cuda, shape, cache, gain, weights, matrices, biases, tables: tables(pages) }
    }

    /// Residuals of a position of a sequence, with a spike, so that softmax is far from a mean.
    fn x(&self, sequence: u32, position: u32) -> Vec<f32> {
        let mut random = Random(u64::from(sequence) << 32 | u64::from(position) | 1 << 50);
        let mut x = random.bells(HIDDEN, 1.0);
        x[random.below(HIDDEN)] *= 3.0;
        x
    }

    fn row(&self, sequence: u32, position: u32) -> Row {
        let slot = slot_of(&self.tables[sequence as usize], position);
        Row { token: 0, position, sequence, slot, response_count: 0, remaining: 0.0 }
    }

    /// Stores and attends in layer 1; queries and outputs, `[R, A*D]`.
    fn pass(&mut self, rows: &[Row]) -> [Vec<f32>; 2] {
        let x: Vec<f32> = rows.iter().flat_map(|row| self.x(row.sequence, row.position)).collect();
        let width = self.shape.heads * self.shape.head_width;
        let device_x = rows_of(&mut self.cuda, &x, HIDDEN);
        let World { cuda, cache, .. } = self;
        let gain = cuda.vector(&self.gain).unwrap();
        let biases = self.biases.as_ref().map(|biases| [0, 1, 2].map(|i| cuda.vector(&biases[i]).unwrap()));
        let [query, key, value] = &self.matrices;
        let biases = biases.as_ref().map(|[q, k, v]| [q, k, v]);
        let mut q: Rows = cuda.rows(rows.len(), width).unwrap();
        let mut out = cuda.rows(rows.len(), width).unwrap();
        cuda.begin(&Plan { rows: rows.to_vec(), block_tables: self.tables.clone() }).unwrap();
        let weights = Projections { query, key, value, biases };
        cuda.norm_qkv_store(&device_x, &gain, weights, cache, 1, &mut q).unwrap();
        cuda.attend(&q, cache, 1, &mut out).unwrap();
        cuda.end().unwrap();
        [read(cuda, &q, rows.len()), read(cuda, &out, rows.len())]
    }

    /// The whole cache as f32: keys, values.
    fn contents(&self) -> [Vec<f32>; 2] {
        [&self.cache.keys, &self.cache.values].map(|memory| {
            let halves: Vec<u16> = self.cuda.gpu.read("test", memory, 0, memory.len() / 2).unwrap();
            halves.into_iter().map(|bits| f16::from_bits(bits).to_f32()).collect()
        })
    }

    /// Key and value of a slot and key head in layer 1.
    fn kept<'a>(&self, contents: &'a [Vec<f32>; 2], slot: u32, head: usize) -> (Vec<f32>, Vec<f32>, &'a [f32]) {
        let (width, padded) = (self.shape.head_width, self.shape.head_width.next_multiple_of(32));
        let (page, offset) = (slot as usize / PAGE_TOKENS, slot as usize % PAGE_TOKENS);
        let tile = ((page * self.shape.layers + 1) * self.shape.kv_heads + head) * padded * PAGE_TOKENS;
        let key = contents[0][tile + offset * padded..][..width].to_vec();
        let value = (0..width).map(|d| contents[1][tile + d * PAGE_TOKENS + offset]).collect();
        (key, value, &contents[0][tile + offset * padded..][width..padded])
    }

    /// Checks one row's query, key and value against products in f64.
    fn check_projections(&self, row: &Row, q: &[f32], contents: &[Vec<f32>; 2]) {
        let ModelShape { kv_heads, head_width, .. } = self.shape;
        let normed = normed(&self.x(row.sequence, row.position), &self.gain, 1e-5);
        let kept: Vec<_> = (0..kv_heads).map(|head| self.kept(contents, row.slot, head)).collect();
        let stored = |which: usize| -> Vec<f32> {
            kept.iter().flat_map(|(key, value, _)| if which == 1 { key.clone() } else { value.clone() }).collect()
        };
        assert!(kept.iter().all(|(_, _, padding)| padding.iter().all(|x| *x == 0.0)), "past a head's width is zero");
        for (which, got) in [q.to_vec(), stored(1), stored(2)].into_iter().enumerate() {
            let mut expected = self.weights[which].product(&normed);
            if let Some(biases) = &self.biases {
                expected.iter_mut().zip(&biases[which]).for_each(|(x, bias)| x.0 += f64::from(*bias));
            }
            if which < 2 {
                for head in expected.chunks_exact_mut(head_width) {
                    self.turn(row.position, head);
                }
            }
            // Stored numbers are rounded to 11 bits once more.
            let rounding = if which == 0 { 1e-6 } else { 1.0 / 2048.0 };
            for (d, (got, (expected, bound))) in got.iter().zip(expected).enumerate() {
                let bound = 1.5 * bound + rounding * expected.abs() + 1e-6;
                assert!(
                    (f64::from(*got) - expected).abs() <= bound,
                    "{which}, {d}: {got} is not {expected} in {bound}"
                );
            }
        }
    }

    fn turn(&self, position: u32, head: &mut [(f64, f64)]) {
        let pairs = head.len() / 2;
        for (pair, frequency) in self.shape.rope_inverse_frequencies.iter().enumerate() {
            let (sin, cos) = (f64::from(position) * frequency).sin_cos();
            let (a, b) = match self.shape.rope_pairing {
                RopePairing::Interleaved => (2 * pair, 2 * pair + 1),
                RopePairing::Halves => (pair, pair + pairs),
            };
            let ((x, x_bound), (y, y_bound)) = (head[a], head[b]);
            head[a] = (x * cos - y * sin, x_bound + y_bound);
            head[b] = (x * sin + y * cos, x_bound + y_bound);
        }
    }

    /// Checks one row's attention against a softmax in f64 over the cache.
    fn check_attention(&self, row: &Row, q: &[f32], out: &[f32], contents: &[Vec<f32>; 2]) {
        let ModelShape { heads, kv_heads, head_width, .. } = self.shape;
        let table = &self.tables[row.sequence as usize];
        let mut slots: Vec<u32> = (0..row.position).map(|position| slot_of(table, position)).collect();
        slots.push(row.slot);
        for head in 0..heads {
            let query = &q[head * head_width..][..head_width];
            let kept: Vec<_> = slots.iter().map(|slot| self.kept(contents, *slot, head / (heads / kv_heads))).collect();
            let products = |key: &[f32], f: fn(f64) -> f64| -> f64 {
                let sum: f64 = query.iter().zip(key).map(|(q, k)| f(f64::from(*q) * f64::from(*k))).sum();
                sum / (head_width as f64).sqrt()
            };
            let scores: Vec<f64> = kept.iter().map(|(key, ..)| products(key, |x| x)).collect();
            let off = kept.iter().map(|(key, ..)| products(key, f64::abs)).fold(0.0, f64::max) / 2048.0;
            let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = scores.iter().map(|s| (s - largest).exp()).sum();
            for d in 0..head_width {
                let weigh = |f: fn(f64) -> f64| -> f64 {
                    let terms = scores.iter().zip(&kept);
                    terms.map(|(s, (_, value, _))| (s - largest).exp() / sum * f(f64::from(value[d]))).sum()
                };
                let (expected, got) = (weigh(|x| x), f64::from(out[head * head_width + d]));
                let bound = weigh(f64::abs) * (2.0 * off + 1.0 / 1024.0) + 1e-6;
                assert!(
                    (got - expected).abs() <= bound,
                    "{row:?} head {head} dimension {d}: {got} is not {expected} within {bound}"
                );
            }
        }
    }

    /// Runs rows in passes of these sizes and checks every row; what each gave.
    fn check(&mut self, rows: &[Row], passes: &[usize]) -> Vec<Vec<u32>> {
        let width = self.shape.heads * self.shape.head_width;
        let (mut start, mut given) = (0, Vec::new());
        for &size in passes {
            let rows = &rows[start..start + size];
            let [q, out] = self.pass(rows);
            let contents = self.contents();
            for (index, row) in rows.iter().enumerate() {
                let (q, out) = (&q[index * width..][..width], &out[index * width..][..width]);
                if index < 3 || index + 3 > size || index % 41 == 0 {
                    self.check_projections(row, q, &contents);
                    self.check_attention(row, q, out, &contents);
                }
                given.push([bits(q), bits(out)].concat());
            }
            start += size;
        }
        assert_eq!(start, rows.len());
        given
    }
}

#[test]
fn projections_and_attention_are_right_for_every_shape_of_heads() {
    in_child!({
        use RopePairing::{Halves, Interleaved};
        for (seed, (heads, pairing)) in [
            ([3, 1, 64], Interleaved),
            ([4, 4, 16], Halves),
            ([7, 1, 80], Halves),
            ([2, 2, 6], Interleaved),
            ([2, 1, 128], Interleaved),
        ]
        .into_iter()
        .enumerate()
        {
            let mut world = World::new(seed as u64, heads, pairing, 3, seed % 2 == 0);
            let mut rows: Vec<Row> = (0..40).map(|position| world.row(0, position)).collect();
            rows.extend((0..2).map(|position| world.row(1, position)));
            // A long chunk, one row, and one of each sequence.
            rows.swap(39, 40);
            world.check(&rows, &[38, 1, 1, 2]);
        }
    });
}

#[test]
fn long_contexts_are_split_and_a_row_is_as_if_alone() {
    in_child!({
        let heads = [4, 2, 32];
        let positions = 2 * 256 + 40;
        let mut together = World::new(9, heads, RopePairing::Interleaved, 18, true);
        let rows: Vec<Row> = (0..positions).map(|position| together.row(0, position)).collect();
        let expected = together.check(&rows, &[255, 257, 40]);
        // The last rows alone, over the same prompt.
        for row in [rows[256], rows[511], rows[513], rows[551]] {
            let [q, out] = together.pass(&[row]);
            assert_eq!([bits(&q), bits(&out)].concat(), expected[row.position as usize], "{row:?} alone");
        }
    });
}

/// Candidates share their prefix; each has its own key in a scratch slot.
#[test]
fn candidates_attend_to_their_prefix_and_themselves() {
    in_child!({
        let mut world = World::new(11, [6, 2, 16], RopePairing::Interleaved, 10, false);
        let prompt: Vec<Row> = (0..290).map(|position| world.row(0, position)).collect();
        world.check(&prompt, &[290]);
        let other: Vec<Row> = (0..33).map(|position| world.row(1, position)).collect();
        world.check(&other, &[33]);
        // 20 candidates of one sequence and 3 of another, in the scratch pages after the tables'.
        let candidate = |i: u32| {
            let (sequence, position) = if i < 20 { (0, 290) } else { (1, 33) };
            Row { slot: 20 * PAGE_TOKENS as u32 + i, ..world.row(sequence, position) }
        };
        let candidates: Vec<Row> = (0..23).map(candidate).collect();
        let together = world.check(&candidates, &[23]);
        for index in [0, 19, 22] {
            let [q, out] = world.pass(&candidates[index..=index]);
            assert_eq!([bits(&q), bits(&out)].concat(), together[index]);
        }
    });
}
