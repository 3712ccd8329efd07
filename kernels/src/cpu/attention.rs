//! Causal grouped-query attention over the cache.
//!
//! For a row at position p and a query head: scores `q·k_j / √D` over positions j < p in tiles of
//! [`PAGE_TOKENS`] keys from position 0, then over the row's own key, wherever its slot is, as a tile of
//! one; softmax is merged tile by tile in that order:
//!
//! ```text
//! m' = max(m, max_j s_j)    l' = l·e^(m-m') + Σ_j e^(s_j-m')    o' = o·e^(m-m') + Σ_j e^(s_j-m')·v_j
//! ```
//!
//! A row's numbers depend on its own position only: on no neighbour, thread, or pass in which earlier
//! positions came. What is shared is work: a task takes the queries of up to [`TASK_ROWS`] rows of one
//! sequence that read one key head, and widens each f16 tile once for all of them. Both products of a tile
//! are one kernel, [`panel`]: three queries by 32 columns in twelve registers.
//!
//! Kernels here loop with `for`, never with closures over lanes: a closure is a function of its own, without the
//! instruction set of the kernel around it.
//!
//! Cost: a tile is 32·D·2 multiplications a query, 256 cycles of AVX2 at D = 64.

use std::cell::RefCell;
use std::ops::Range;

use super::cache::{Cache, PANEL};
use super::disjoint::Disjoint;
use super::isa::Detected;
use super::lanes::{Simd, exp_of_difference, for_every_isa};
use crate::device::{PAGE_TOKENS, Plan};
use crate::pool::Pool;

/// Rows of one sequence that share widened tiles.
const TASK_ROWS: usize = 8;

/// Queries that one call of [`panel`] takes: 3 x 4 accumulators fill the registers.
const BLOCK: usize = 3;

/// One row of a tile's panel, 32 columns.
type Columns<T> = [[T; 8]; 4];

/// Rows of one sequence and the key head that they read.
struct Task {
    rows: Range<usize>,
    kv_head: usize,
}

/// Writes every row's attention to `out`; q, out: `[R, A*D]` with A a multiple of the cache's KV heads.
/// The rows' own keys and values have been stored, and the plan checked against the cache.
pub(crate) fn attend(isa: Detected, pool: &Pool, plan: &Plan, q: &[f32], cache: &Cache, layer: usize, out: &mut [f32]) {
    let tasks = tasks(plan, cache.kv_heads());
    let width = out.len() / plan.rows.len().max(1);
    let out = Disjoint::new(out);
    pool.for_each(tasks.len(), &|index| {
        SCRATCH.with_borrow_mut(|scratch| {
            let pass = Pass { plan, q, cache, layer, width };
            run(isa, &pass, &tasks[index], scratch, &out);
        });
    });
}

/// What all tasks of a call share.
struct Pass<'a> {
    plan: &'a Plan,
    /// `[R, A*D]`.
    q: &'a [f32],
    cache: &'a Cache,
    layer: usize,
    /// A*D.
    width: usize,
}

/// Buffers of one thread, reused. Q: queries of a task, row by row, then head by head.
#[derive(Default)]
struct Scratch {
    /// D, and D rounded up to whole panels.
    width: usize,
    padded: usize,
    /// Query heads that read one key head.
    group: usize,
    /// Queries times 1/√D, `[Q, D]`.
    q: Vec<f32>,
    /// Running maxima, `[Q]`, and sums in lanes, `[Q, 8]`; Q rounded up to eight.
    largest: Vec<f32>,
    sums: Vec<[f32; 8]>,
    /// Weighted values, `[Q, D/32]`.
    outputs: Vec<Columns<f32>>,
    /// A key tile, `[D]`, and a value tile, `[D/32, 32]`, widened.
    keys: Vec<Columns<f32>>,
    values: Vec<Columns<f32>>,
    /// Rows' own keys, `[rows, padded]`, and values, `[rows, D/32]`; scores of own keys, `[Q]` rounded up to eight.
    own_keys: Vec<f32>,
    own_values: Vec<Columns<u16>>,
    own: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Cuts runs of rows of one sequence into tasks. The cut changes nothing in the results.
fn tasks(plan: &Plan, kv_heads: usize) -> Vec<Task> {
    let mut tasks = Vec::new();
    let same = |a: &crate::Row, b: &crate::Row| a.sequence == b.sequence;
    let mut start = 0;
    for run in plan.rows.chunk_by(same) {
        let end = start + run.len();
        for first in (start..end).step_by(TASK_ROWS) {
            let rows = first..end.min(first + TASK_ROWS);
            tasks.extend((0..kv_heads).map(|kv_head| Task { rows: rows.clone(), kv_head }));
        }
        start = end;
    }
    tasks
}

for_every_isa! {
    fn run(pass: &Pass<'_>, task: &Task, scratch: &mut Scratch, out: &Disjoint<'_, f32>) = run_task;
}

#[inline(always)]
fn run_task<S: Simd>(s: S, pass: &Pass<'_>, task: &Task, scratch: &mut Scratch, out: &Disjoint<'_, f32>) {
    let (cache, plan) = (pass.cache, pass.plan);
    let rows = &plan.rows[task.rows.clone()];
    scratch.begin(s, pass, task);
    let group = scratch.group;
    let pages = rows.first().map_or(&[][..], |row| &plan.block_tables[row.sequence as usize]);
    let keys_before = rows.iter().map(|row| row.position as usize).max().unwrap_or(0);
    for (tile, page) in pages[..keys_before.div_ceil(PAGE_TOKENS)].iter().enumerate() {
        let page = *page as usize;
        let keys = columns(cache.key_tile(page, pass.layer, task.kv_head));
        let values = columns(cache.value_tile(page, pass.layer, task.kv_head));
        let count = |query: usize| {
            let position = rows[query / group].position as usize;
            position.saturating_sub(tile * PAGE_TOKENS).min(PAGE_TOKENS)
        };
        // One block reads each key once and widens in registers; several share what one widening wrote.
        if rows.len() * group <= BLOCK {
            scratch.state().take_tile(s, keys, values, count);
        } else {
            scratch.widen(s, keys, values);
            let (keys, values) = (std::mem::take(&mut scratch.keys), std::mem::take(&mut scratch.values));
            scratch.state().take_tile(s, &keys, &values, count);
            (scratch.keys, scratch.values) = (keys, values);
        }
    }
    scratch.merge_own(s);
    let row_width = group * scratch.width;
    for (i, row) in task.rows.clone().enumerate() {
        let start = row * pass.width + task.kv_head * row_width;
        // SAFETY: these columns of this row belong to this task alone: tasks differ in rows or in the key head.
        let to = unsafe { out.part(start..start + row_width) };
        scratch.finish(s, i, to);
    }
}

/// A tile as rows of 32 columns.
#[inline(always)]
fn columns(tile: &[u16]) -> &[Columns<u16>] {
    tile.as_chunks::<8>().0.as_chunks::<4>().0
}

/// What a tile is made of: f16 by its bits, or f32.
trait Element: Copy {
    fn load<S: Simd>(s: S, x: &[Self; 8]) -> S::F;
}

impl Element for u16 {
    #[inline(always)]
    fn load<S: Simd>(s: S, x: &[u16; 8]) -> S::F {
        s.load_f16(x)
    }
}

impl Element for f32 {
    #[inline(always)]
    fn load<S: Simd>(s: S, x: &[f32; 8]) -> S::F {
        s.load(x)
    }
}

/// `acc[g][c] += Σ_i a[g][i] · b[i][c]`, i in order: G queries by 32 columns.
#[inline(always)]
fn panel<S: Simd, T: Element, const G: usize>(
    s: S,
    a: [&[f32]; G],
    b: &[Columns<T>],
    mut acc: [[S::F; 4]; G],
) -> [[S::F; 4]; G] {
    let a = a.map(|a| &a[..b.len()]);
    for (i, row) in b.iter().enumerate() {
        let mut factors = [s.splat(0.0); G];
        for g in 0..G {
            factors[g] = s.splat(a[g][i]);
        }
        for (c, eight) in row.iter().enumerate() {
            let b = T::load(s, eight);
            for g in 0..G {
                acc[g][c] = s.mul_add(factors[g], b, acc[g][c]);
            }
        }
    }
    acc
}

/// The running softmax of a task's queries.
struct State<'a> {
    width: usize,
    q: &'a [f32],
    largest: &'a mut [f32],
    sums: &'a mut [[f32; 8]],
    outputs: &'a mut [Columns<f32>],
}

impl State<'_> {
    /// Merges a tile into every query; `count(query)` of its keys come before that query's row.
    #[inline(always)]
    fn take_tile<S: Simd, T: Element>(
        &mut self,
        s: S,
        keys: &[Columns<T>],
        values: &[Columns<T>],
        count: impl Fn(usize) -> usize,
    ) {
        let queries = self.q.len() / self.width;
        let mut query = 0;
        while query < queries {
            // Queries of a block stop at the same key: no query touches a value that it does not attend to.
            let here = count(query);
            let alike = (query + 1..queries).take(BLOCK - 1).take_while(|&other| count(other) == here).count();
            if here > 0 {
                match alike {
                    0 => self.take_block::<S, T, 1>(s, query, keys, values, here),
                    1 => self.take_block::<S, T, 2>(s, query, keys, values, here),
                    _ => self.take_block::<S, T, BLOCK>(s, query, keys, values, here),
                }
            }
            query += alike + 1;
        }
    }

    /// Merges the first `count` keys of a tile into G queries from `first` on.
    #[inline(always)]
    fn take_block<S: Simd, T: Element, const G: usize>(
        &mut self,
        s: S,
        first: usize,
        keys: &[Columns<T>],
        values: &[Columns<T>],
        count: usize,
    ) {
        let q: [&[f32]; G] = std::array::from_fn(|g| &self.q[(first + g) * self.width..][..self.width]);
        let scores = panel(s, q, keys, [[s.splat(0.0); 4]; G]);
        let mut weights = [[[0.0f32; 8]; 4]; G];
        let mut decay = [0.0f32; G];
        for g in 0..G {
            let scores = if count < PAGE_TOKENS { masked(s, scores[g], count) } else { scores[g] };
            let upper = s.max(s.max(scores[0], scores[1]), s.max(scores[2], scores[3]));
            let (before, here) = (self.largest[first + g], s.largest(upper));
            // exp(0) is exactly 1, so leaving it out changes nothing.
            (self.largest[first + g], decay[g]) =
                if here > before { (here, crate::sampling::exp(before - here)) } else { (before, 1.0) };
            let largest = s.splat(self.largest[first + g]);
            let mut p = scores;
            for p in &mut p {
                *p = exp_of_difference(s, s.sub(*p, largest));
            }
            let sum = s.add(s.add(p[0], p[1]), s.add(p[2], p[3]));
            let lanes = &mut self.sums[first + g];
            s.store(s.mul_add(s.load(lanes), s.splat(decay[g]), sum), lanes);
            for (p, to) in p.into_iter().zip(&mut weights[g]) {
                s.store(p, to);
            }
        }
        let weights: [&[f32]; G] = std::array::from_fn(|g| &weights[g].as_flattened()[..count]);
        let panels = values.len() / PAGE_TOKENS;
        for index in 0..panels {
            let at = |g: usize| (first + g) * panels + index;
            let mut acc = [[s.splat(0.0); 4]; G];
            for (g, acc) in acc.iter_mut().enumerate() {
                for (acc, output) in acc.iter_mut().zip(&self.outputs[at(g)]) {
                    *acc = s.mul(s.load(output), s.splat(decay[g]));
                }
            }
            let acc = panel(s, weights, &values[index * PAGE_TOKENS..][..count], acc);
            for (g, acc) in acc.into_iter().enumerate() {
                for (acc, output) in acc.into_iter().zip(&mut self.outputs[at(g)]) {
                    s.store(acc, output);
                }
            }
        }
    }
}

/// −∞ from `count` on: those keys come later, or are whatever a page held before.
#[inline(always)]
fn masked<S: Simd>(s: S, scores: [S::F; 4], count: usize) -> [S::F; 4] {
    let mut plain = [[0.0; 8]; 4];
    for (score, to) in scores.into_iter().zip(&mut plain) {
        s.store(score, to);
    }
    plain.as_flattened_mut()[count..].fill(f32::NEG_INFINITY);
    let mut scores = scores;
    for (score, from) in scores.iter_mut().zip(&plain) {
        *score = s.load(from);
    }
    scores
}

impl Scratch {
    /// Takes a task's queries and its rows' own keys and values, and starts their softmax.
    #[inline(always)]
    fn begin<S: Simd>(&mut self, s: S, pass: &Pass<'_>, task: &Task) {
        let cache = pass.cache;
        (self.width, self.padded) = (cache.head_width(), cache.padded_width());
        self.group = pass.width / self.width / cache.kv_heads();
        let row_width = self.group * self.width;
        let scale = 1.0 / (self.width as f32).sqrt();
        self.q.clear();
        self.own_keys.clear();
        self.own_values.clear();
        for row in task.rows.clone() {
            let from = row * pass.width + task.kv_head * row_width;
            self.q.extend(pass.q[from..from + row_width].iter().map(|q| q * scale));
            let slot = pass.plan.rows[row].slot as usize;
            let (page, offset) = (slot / PAGE_TOKENS, slot % PAGE_TOKENS);
            let keys = cache.key_tile(page, pass.layer, task.kv_head);
            for first in (0..self.padded).step_by(8) {
                let bits =
                    std::array::from_fn(|i| keys.get((first + i) * PAGE_TOKENS + offset).map_or(0, |bits| *bits));
                let mut eight = [0.0; 8];
                s.store(s.load_f16(&bits), &mut eight);
                self.own_keys.extend(eight);
            }
            let values = cache.value_tile(page, pass.layer, task.kv_head);
            self.own_values.extend(values.chunks_exact(PANEL * PAGE_TOKENS).map(|panel| columns(panel)[offset]));
        }
        let queries = task.rows.len() * self.group;
        let eights = queries.next_multiple_of(8);
        self.largest.clear();
        self.largest.resize(eights, f32::NEG_INFINITY);
        self.sums.clear();
        self.sums.resize(eights, [0.0; 8]);
        self.own.clear();
        self.own.resize(eights, 0.0);
        self.outputs.clear();
        self.outputs.resize(queries * self.padded / PANEL, [[0.0; 8]; 4]);
    }

    #[inline(always)]
    fn state(&mut self) -> State<'_> {
        State {
            width: self.width,
            q: &self.q,
            largest: &mut self.largest,
            sums: &mut self.sums,
            outputs: &mut self.outputs,
        }
    }

    /// Writes a tile to `keys` and `values` in f32.
    #[inline(always)]
    fn widen<S: Simd>(&mut self, s: S, keys: &[Columns<u16>], values: &[Columns<u16>]) {
        for (from, to) in [(keys, &mut self.keys), (values, &mut self.values)] {
            to.resize(from.len(), [[0.0; 8]; 4]);
            for (from, to) in from.as_flattened().iter().zip(to.as_flattened_mut()) {
                s.store(s.load_f16(from), to);
            }
        }
    }

    /// Merges every row's own key into its queries. Leaves in `largest` what an output, and in `own` what the own
    /// value is to be multiplied by: both with the sum of the softmax divided out.
    #[inline(always)]
    fn merge_own<S: Simd>(&mut self, s: S) {
        let queries = self.q.len() / self.width;
        for first in (0..queries).step_by(8) {
            // Eight sums side by side, each in the order of `panel`; past the end the last one again.
            let query = |i: usize| (first + i).min(queries - 1);
            let q: [&[f32]; 8] = std::array::from_fn(|i| &self.q[query(i) * self.width..][..self.width]);
            let keys: [&[f32]; 8] =
                std::array::from_fn(|i| &self.own_keys[query(i) / self.group * self.padded..][..self.width]);
            let mut scores = [0.0f32; 8];
            for d in 0..self.width {
                for i in 0..8 {
                    scores[i] = q[i][d].mul_add(keys[i][d], scores[i]);
                }
            }
            let mut sums = [0.0; 8];
            for (sum, lanes) in sums.iter_mut().zip(&self.sums[first..]) {
                *sum = s.sum(s.load(lanes));
            }
            let [largest, own] = [&mut self.largest, &mut self.own].map(|x| &mut x.as_chunks_mut::<8>().0[first / 8]);
            let (before, here) = (s.load(largest), s.load(&scores));
            let upper = s.max(before, here);
            let (decay, weight) =
                (exp_of_difference(s, s.sub(before, upper)), exp_of_difference(s, s.sub(here, upper)));
            let sum = s.mul_add(s.load(&sums), decay, weight);
            s.store(s.div(decay, sum), largest);
            s.store(s.div(weight, sum), own);
        }
    }

    /// Writes the outputs of the task's row `i`, `[group * D]`. After [`Scratch::merge_own`].
    #[inline(always)]
    fn finish<S: Simd>(&mut self, s: S, i: usize, to: &mut [f32]) {
        let panels = self.padded / PANEL;
        let own = &self.own_values[i * panels..][..panels];
        for (head, to) in to.chunks_exact_mut(self.width).enumerate() {
            let query = i * self.group + head;
            let (decay, weight) = (s.splat(self.largest[query]), s.splat(self.own[query]));
            let outputs = &mut self.outputs[query * panels..][..panels];
            for (output, own) in outputs.as_flattened_mut().iter_mut().zip(own.as_flattened()) {
                let earlier = s.mul(s.load(output), decay);
                s.store(s.mul_add(s.load_f16(own), weight, earlier), output);
            }
            to.copy_from_slice(&outputs.as_flattened().as_flattened()[..to.len()]);
        }
    }
}

#[cfg(test)]
#[path = "attention_tests.rs"]
mod tests;
