//! Value heads: features of a row, linear and one-pass heads over them.
//!
//! A row's features at a tap are `[residual; running mean; remaining; 1]`, the mean of the residual stream
//! over the response up to and including the row, zero in the prompt. Dot products run in the one order
//! of [`super::lanes::dot`], so a value depends on its own row or token only.
//!
//! Heads are trained elsewhere; here they are read.

use std::sync::Mutex;

use super::cache::Cache;
use super::isa::Detected;
use super::lanes::{Simd, dot, for_every_isa};
use crate::device::{LinearHead, OnePassHead, Plan, Row};
use crate::pool::Pool;

/// Rows that one task of the pool takes.
const ROWS_PER_TASK: usize = 16;

/// The head's value of every row, `[R]`; `x`: `[R, H]`. After [`Cache::accumulate`] of its tap.
pub(crate) fn values(isa: Detected, plan: &Plan, x: &[f32], cache: &Cache, head: &LinearHead) -> Vec<f32> {
    let mut mean = vec![0.0; head.residual.len()];
    let rows = plan.rows.iter().zip(x.chunks_exact(head.residual.len()));
    rows.map(|(row, x)| {
        running_mean(row, cache, head.tap, &mut mean);
        value(isa, x, &mean, row.remaining, head)
    })
    .collect()
}

/// The head's projection of every row, `[R, rank]` row-major; `x`: `[R, H]`. After [`Cache::accumulate`]
/// of its tap.
pub(crate) fn project(
    isa: Detected,
    pool: &Pool,
    plan: &Plan,
    x: &[f32],
    cache: &Cache,
    head: &OnePassHead,
) -> Vec<f32> {
    let rows = plan.rows.len();
    let mut out = vec![0.0; rows * head.rank];
    if out.is_empty() {
        return out;
    }
    let width = head.embedding.len() / head.rank;
    let chunks: Vec<_> = out.chunks_mut(ROWS_PER_TASK * head.rank).map(Mutex::new).collect();
    pool.for_each(chunks.len(), &|task| {
        let mut mean = vec![0.0; width];
        let mut out = chunks[task].lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        for (i, out) in out.chunks_exact_mut(head.rank).enumerate() {
            let index = task * ROWS_PER_TASK + i;
            let row = &plan.rows[index];
            running_mean(row, cache, head.tap, &mut mean);
            project_row(isa, &x[index * width..][..width], &mean, row.remaining, &head.state, out);
        }
    });
    out
}

/// Values of tokens from one row's projection `[rank]` and the tokens' embeddings `[n, H]`, row-major.
/// A token without a bias of its own has bias 0.
pub(crate) fn score(
    isa: Detected,
    head: &OnePassHead,
    projection: &[f32],
    embeddings: &[f32],
    tokens: &[u32],
) -> Vec<f32> {
    let width = head.embedding.len() / head.rank.max(1);
    let mut direction = vec![0.0; width];
    // Bᵀp once, then one dot product a token, instead of rank of them.
    for (p, b) in projection.iter().zip(head.embedding.chunks_exact(width.max(1))) {
        add_scaled(isa, *p, b, &mut direction);
    }
    let mut out = vec![0.0; tokens.len()];
    for (i, (out, token)) in out.iter_mut().zip(tokens).enumerate() {
        let bias = head.token_bias.get(*token as usize).map_or(0.0, |bias| bias.to_f32());
        *out = product(isa, &direction, &embeddings[i * width..][..width]) + bias;
    }
    out
}

/// Appends the features of every row, `[R, 2H + 2]` row-major; `x`: `[R, hidden]`. After
/// [`Cache::accumulate`] of the tap.
pub(crate) fn read_features(plan: &Plan, x: &[f32], hidden: usize, cache: &Cache, tap: usize, out: &mut Vec<f32>) {
    let mut mean = vec![0.0; hidden];
    out.reserve(plan.rows.len() * (2 * hidden + 2));
    for (row, x) in plan.rows.iter().zip(x.chunks_exact(hidden)) {
        running_mean(row, cache, tap, &mut mean);
        out.extend_from_slice(x);
        out.extend_from_slice(&mean);
        out.extend_from_slice(&[row.remaining, 1.0]);
    }
}

/// The running mean of the residual stream at a row, `[H]`.
fn running_mean(row: &Row, cache: &Cache, tap: usize, mean: &mut [f32]) {
    if row.response_count == 0 {
        mean.fill(0.0);
        return;
    }
    let count = row.response_count as f32;
    for (mean, sum) in mean.iter_mut().zip(cache.sum(tap, row.slot as usize)) {
        *mean = sum / count;
    }
}

for_every_isa! {
    fn value(x: &[f32], mean: &[f32], remaining: f32, head: &LinearHead) -> f32 = value_of;
}

#[inline(always)]
fn value_of<S: Simd>(s: S, x: &[f32], mean: &[f32], remaining: f32, head: &LinearHead) -> f32 {
    let mut state = dot(s, &head.residual, x) + dot(s, &head.mean, mean);
    if !head.share.is_empty() {
        state += (1.0 - remaining) * dot(s, &head.share, mean);
    }
    state + (head.remaining * remaining + head.bias)
}

for_every_isa! {
    fn project_row(x: &[f32], mean: &[f32], remaining: f32, state: &[f32], out: &mut [f32]) = project_one;
}

#[inline(always)]
fn project_one<S: Simd>(s: S, x: &[f32], mean: &[f32], remaining: f32, state: &[f32], out: &mut [f32]) {
    let width = x.len();
    for (out, a) in out.iter_mut().zip(state.chunks_exact(2 * width + 2)) {
        let products = dot(s, &a[..width], x) + dot(s, &a[width..2 * width], mean);
        *out = products + (a[2 * width] * remaining + a[2 * width + 1]);
    }
}

for_every_isa! {
    fn product(a: &[f32], b: &[f32]) -> f32 = dot;
}

for_every_isa! {
    fn add_scaled(scale: f32, from: &[f32], to: &mut [f32]) = add_scaled_to;
}

#[inline(always)]
fn add_scaled_to<S: Simd>(_: S, scale: f32, from: &[f32], to: &mut [f32]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = from.mul_add(scale, *to);
    }
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::*;
    use crate::cpu::testing::{Random, bits, every_isa};
    use crate::device::{CacheShape, ModelShape, RopePairing};

    const HIDDEN: usize = 77;
    const RANK: usize = 5;
    const ROWS: usize = 40;

    /// Forty positions of one response behind a prompt of four, accumulated at the second of two taps.
    fn world(random: &mut Random) -> (Plan, Vec<f32>, Cache) {
        let model = ModelShape {
            layers: 3,
            hidden: HIDDEN,
            heads: 1,
            kv_heads: 1,
            head_width: 2,
            feed_forward: 1,
            vocabulary: 10,
            context_tokens: 64,
            norm_epsilon: 1e-5,
            rope_pairing: RopePairing::Halves,
            rope_inverse_frequencies: vec![1.0],
        };
        let mut cache = Cache::new(&model, &CacheShape { pages: 2, taps: vec![1, 3] }).expect("a small cache");
        let row = |i: u32| Row {
            token: 0,
            position: i,
            sequence: 0,
            slot: (i + 32) % 64,
            response_count: (i + 1).saturating_sub(4),
            remaining: 1.0 - i as f32 / 64.0,
        };
        let plan = Plan { rows: (0..ROWS as u32).map(row).collect(), block_tables: vec![vec![1, 0]] };
        let x = random.bells(ROWS * HIDDEN, 2.0);
        cache.accumulate(&plan, 1, &x);
        (plan, x, cache)
    }

    fn dot(a: &[f32], b: &[f32]) -> f64 {
        a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    }

    fn one_pass(random: &mut Random) -> OnePassHead {
        OnePassHead {
            tap: 1,
            rank: RANK,
            state: random.bells(RANK * (2 * HIDDEN + 2), 1.0),
            embedding: random.bells(RANK * HIDDEN, 1.0),
            token_bias: random.bells(10, 1.0).into_iter().map(f16::from_f32).collect(),
        }
    }

    #[test]
    fn features_are_the_residual_its_mean_and_what_remains() {
        let (plan, x, cache) = world(&mut Random(1));
        let mut out = vec![7.0];
        read_features(&plan, &x, HIDDEN, &cache, 1, &mut out);
        assert_eq!(out.remove(0), 7.0, "appended");
        for (i, features) in out.chunks_exact(2 * HIDDEN + 2).enumerate() {
            assert_eq!(features[..HIDDEN], x[i * HIDDEN..][..HIDDEN]);
            for d in 0..HIDDEN {
                let response = (4..=i).map(|row| f64::from(x[row * HIDDEN + d]));
                let mean = if i < 4 { 0.0 } else { response.sum::<f64>() / (i - 3) as f64 };
                assert!((f64::from(features[HIDDEN + d]) - mean).abs() <= 1e-5);
            }
            assert_eq!(features[2 * HIDDEN..], [plan.rows[i].remaining, 1.0]);
        }
        assert_eq!(out.len(), ROWS * (2 * HIDDEN + 2));
    }

    #[test]
    fn heads_are_products_with_the_features() {
        let mut random = Random(2);
        let (plan, x, cache) = world(&mut random);
        let weights = random.bells(2 * HIDDEN + 2, 1.0);
        let linear = LinearHead {
            tap: 1,
            residual: weights[..HIDDEN].to_vec(),
            mean: weights[HIDDEN..2 * HIDDEN].to_vec(),
            share: random.bells(HIDDEN, 1.0),
            remaining: weights[2 * HIDDEN],
            bias: weights[2 * HIDDEN + 1],
        };
        let one_pass = one_pass(&mut random);
        let mut features = Vec::new();
        read_features(&plan, &x, HIDDEN, &cache, 1, &mut features);
        let features: Vec<&[f32]> = features.chunks_exact(2 * HIDDEN + 2).collect();
        let mut all = Vec::new();
        for isa in every_isa() {
            let values = values(isa, &plan, &x, &cache, &linear);
            for (value, features) in values.iter().zip(&features) {
                let used = 1.0 - f64::from(features[2 * HIDDEN]);
                let expected = dot(&weights, features) + used * dot(&linear.share, &features[HIDDEN..2 * HIDDEN]);
                assert!((f64::from(*value) - expected).abs() <= 1e-4);
            }
            for threads in [1, 3] {
                let projected = project(isa, &Pool::new(threads), &plan, &x, &cache, &one_pass);
                for (row, features) in projected.chunks_exact(RANK).zip(&features) {
                    for (p, a) in row.iter().zip(one_pass.state.chunks_exact(2 * HIDDEN + 2)) {
                        assert!((f64::from(*p) - dot(a, features)).abs() <= 1e-4);
                    }
                }
                all.push(bits(&[values.clone(), projected].concat()));
            }
        }
        assert!(all.windows(2).all(|pair| pair[0] == pair[1]), "the same bits everywhere");
        assert!(all[0].len() == ROWS * (1 + RANK));
    }

    #[test]
    fn a_row_alone_has_the_value_it_has_in_a_batch() {
        let mut random = Random(3);
        let (plan, x, cache) = world(&mut random);
        let head = one_pass(&mut random);
        let isa = every_isa().pop().expect("scalar");
        let together = project(isa, &Pool::new(2), &plan, &x, &cache, &head);
        for i in [0, 3, 4, 39] {
            let alone = Plan { rows: vec![plan.rows[i]], block_tables: plan.block_tables.clone() };
            let alone = project(isa, &Pool::new(1), &alone, &x[i * HIDDEN..][..HIDDEN], &cache, &head);
            assert_eq!(bits(&alone), bits(&together[i * RANK..][..RANK]));
        }
    }

    #[test]
    fn scores_are_bilinear_and_depend_on_their_own_token_only() {
        let mut random = Random(4);
        let head = one_pass(&mut random);
        let projection = random.bells(RANK, 1.0);
        let tokens = [3, 9, 0, 3, 10];
        let table = random.bells(11 * HIDDEN, 1.0);
        let row = |token: u32| &table[token as usize * HIDDEN..][..HIDDEN];
        let embeddings: Vec<f32> = tokens.iter().flat_map(|token| row(*token)).copied().collect();
        for isa in every_isa() {
            let scores = score(isa, &head, &projection, &embeddings, &tokens);
            for (token, score_of) in tokens.iter().zip(&scores) {
                let products = projection.iter().zip(head.embedding.chunks_exact(HIDDEN));
                let products = products.map(|(p, b)| f64::from(*p) * dot(b, row(*token)));
                let bias = head.token_bias.get(*token as usize).map_or(0.0, |bias| bias.to_f64());
                assert!((f64::from(*score_of) - (products.sum::<f64>() + bias)).abs() <= 1e-3);
                let alone = score(isa, &head, &projection, row(*token), &[*token]);
                assert_eq!(alone[0].to_bits(), score_of.to_bits());
            }
            assert!(scores[0] == scores[3] && scores[0] != scores[1]);
        }
    }
}
