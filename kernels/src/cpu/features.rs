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
use super::pool::Pool;
use crate::device::{LinearHead, OnePassHead, Plan, Row};

/// Rows that one task of the pool takes.
const ROWS_PER_TASK: usize = 16;

/// The head's value of every row, `[R]`; `x`: `[R, H]`. After [`Cache::accumulate`] of its tap.
pub(crate) fn values(
    isa: Detected,
    plan: &Plan,
    x: &[f32],
    cache: &Cache,
    head: &LinearHead,
) -> Vec<f32> {
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
    let chunks: Vec<_> = out
        .chunks_mut(ROWS_PER_TASK * head.rank)
        .map(Mutex::new)
        .collect();
    pool.for_each(chunks.len(), &|task| {
        let mut mean = vec![0.0; width];
        let mut out = chunks[task]
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        for (i, out) in out.chunks_exact_mut(head.rank).enumerate() {
            let index = task * ROWS_PER_TASK + i;
            let row = &plan.rows[index];
            running_mean(row, cache, head.tap, &mut mean);
            project_row(
                isa,
                &x[index * width..][..width],
                &mean,
                row.remaining,
                &head.state,
                out,
            );
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
    for (p, b) in projection
        .iter()
        .zip(head.embedding.chunks_exact(width.max(1)))
    {
        add_scaled(isa, *p, b, &mut direction);
    }
    let mut out = vec![0.0; tokens.len()];
    for (i, (out, token)) in out.iter_mut().zip(tokens).enumerate() {
        let bias = head
            .token_bias
            .get(*token as usize)
            .map_or(0.0, |bias| bias.to_f32());
        *out = product(isa, &direction, &embeddings[i * width..][..width]) + bias;
    }
    out
}

/// Appends the features of every row, `[R, 2H + 2]` row-major; `x`: `[R, hidden]`. After
/// [`Cache::accumulate`] of the tap.
pub(crate) fn read_features(
    plan: &Plan,
    x: &[f32],
    hidden: usize,
    cache: &Cache,
    tap: usize,
    out: &mut Vec<f32>,
) {
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
    let state = dot(s, &head.residual, x) + dot(s, &head.mean, mean);
    state + (head.remaining * remaining + head.bias)
}

for_every_isa! {
    fn project_row(x: &[f32], mean: &[f32], remaining: f32, state: &[f32], out: &mut [f32]) = project_one;
}

#[inline(always)]
fn project_one<S: Simd>(
    s: S,
    x: &[f32],
    mean: &[f32],
    remaining: f32,
    state: &[f32],
    out: &mut [f32],
) {
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
