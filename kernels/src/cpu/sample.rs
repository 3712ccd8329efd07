//! Draws tokens: adjusted logits, temperature, nucleus and an exact integer choice.
//!
//! [`crate::Device::sample`] says what a draw is and [`crate::sampling`] holds its arithmetic. The order here:
//!
//! 1. z of every token that can be drawn: (logit + vocabulary deltas + sparse deltas) / temperature, and z*;
//! 2. integer weights, summed by chunks of [`CHUNK`] tokens (or listed, where a nucleus or `only` leaves few);
//! 3. the chunk in which the running sum passes the threshold, and the token within it;
//! 4. log-probabilities and KL against the unadjusted logits, in f64.
//!
//! Tokens depend on step 2's integers alone, so they are the same on every device. Nothing sorts the
//! vocabulary: a nucleus comes from a list of all tokens above a floor, lowered until it is heavy enough.

use std::cell::RefCell;

use super::buffers::{LogitRow, Logits};
use super::disjoint::Disjoint;
use super::isa::Detected;
use super::lanes::{Simd, exp_of_difference, for_every_isa};
use super::vocabulary::{
    Eights, Normalizer, biased, biased_one, clean, clean_one, largest, log_sum, scaled, scaled_one,
};
use crate::device::{DeviceError, Draw, Drawn};
use crate::pool::Pool;
use crate::sampling::{self, NucleusCut, WEIGHT_BITS};

/// Tokens whose weights are summed together before the choice.
const CHUNK: usize = 512;

/// Floors of exp(z - z*) down to which tokens are listed for a nucleus, tried in turn. Powers of two, so that
/// the integer weights of a listed and an unlisted token never tie.
const FLOORS: [f32; 8] = [pow2(4), pow2(6), pow2(8), pow2(10), pow2(12), pow2(15), pow2(20), 0.0];

const fn pow2(negative: u32) -> f32 {
    1.0 / (1u32 << negative) as f32
}

/// Draws one token from each. [`DeviceError::Shape`] where a draw names a slot or token that is not there; nothing is drawn
/// then.
pub(super) fn sample(
    isa: Detected,
    pool: &Pool,
    logits: &Logits,
    draws: &[Draw],
) -> Result<Vec<Option<Drawn>>, DeviceError> {
    draws.iter().try_for_each(|draw| check(draw, logits.slots, logits.vocabulary))?;
    let rows = draws.iter().map(|draw| logits.slot("sample", draw.slot)).collect::<Result<Vec<_>, _>>()?;
    let mut drawn = vec![None; draws.len()];
    let out = Disjoint::new(&mut drawn);
    pool.for_each(draws.len(), &|i| {
        // SAFETY: every item writes its own element.
        let to = unsafe { out.part(i..i + 1) };
        to[0] = SCRATCH.with_borrow_mut(|scratch| sample_one(isa, rows[i], &draws[i], scratch));
    });
    Ok(drawn)
}

fn check(draw: &Draw, slots: usize, vocabulary: usize) -> Result<(), DeviceError> {
    let refuse = |what, bound: usize, got: u32| DeviceError::Shape {
        operation: "sample",
        what,
        expected: format!("below {bound}"),
        got: got.to_string(),
    };
    if draw.slot as usize >= slots {
        return Err(refuse("slot", slots, draw.slot));
    }
    let mut tokens = draw.deltas.iter().map(|(token, _)| token).chain(draw.only.iter().flatten());
    match tokens.find(|token| **token as usize >= vocabulary) {
        Some(token) => Err(refuse("token", vocabulary, *token)),
        None => Ok(()),
    }
}

/// Buffers of one thread, reused.
#[derive(Default)]
struct Scratch {
    /// z of the tokens that can be drawn, all or those of `tokens`; filled up with −∞ to a multiple of eight.
    /// Neither NaN nor +∞.
    z: Vec<f32>,
    /// The tokens of a masked draw, ascending.
    tokens: Vec<u32>,
    /// exp(z - z*) of all tokens, where a nucleus asks for it.
    relatives: Vec<[f32; 8]>,
    /// Weights by chunk of [`CHUNK`] tokens.
    chunks: Vec<u64>,
    /// Tokens and weights above a floor, in order of token.
    list: Vec<(u32, u64)>,
    /// The same, being ordered for a nucleus.
    ordered: Vec<(u32, u64)>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// What the integer draw found.
struct Choice {
    token: u32,
    weight: u64,
    /// The weight of all tokens that could be drawn.
    total: u64,
    /// z*.
    largest: f32,
    /// Where the nucleus ends, if it left a token out.
    cut: Option<NucleusCut>,
}

fn sample_one(isa: Detected, row: LogitRow<'_>, draw: &Draw, scratch: &mut Scratch) -> Option<Drawn> {
    let LogitRow { logits: row, normalizer } = row;
    adjust(isa, row, draw, scratch);
    let base = normalizer.get().map_or_else(|| log_sum(isa, row, 1.0), Normalizer::log);
    let logit = |token: u32| f64::from(clean_one(row[token as usize]));
    if draw.temperature > 0.0 {
        let choice = choose(isa, draw, scratch)?;
        let log_probability = (choice.weight as f64).ln() - (choice.total as f64).ln();
        return Some(Drawn {
            token: choice.token,
            log_probability: log_probability as f32,
            base_log_probability: (logit(choice.token) - base) as f32,
            kl: divergence(isa, row, draw, scratch, &choice, base) as f32,
        });
    }
    let token = greedy(isa, draw, scratch)?;
    let base_log_probability = (logit(token) - base) as f32;
    Some(Drawn { token, log_probability: 0.0, base_log_probability, kl: -base_log_probability })
}

for_every_isa! {
    /// Step 1: z of every token that can be drawn, into `scratch.z`.
    fn adjust(row: &[f32], draw: &Draw, scratch: &mut Scratch) = adjust_with;
}

#[inline(always)]
fn adjust_with<S: Simd>(s: S, row: &[f32], draw: &Draw, scratch: &mut Scratch) {
    let Scratch { z, tokens, .. } = scratch;
    if let Some(only) = &draw.only {
        tokens.clone_from(only);
        tokens.sort_unstable();
        tokens.dedup();
        z.clear();
        z.resize(tokens.len().next_multiple_of(8), f32::NEG_INFINITY);
        for (z, token) in z.iter_mut().zip(&*tokens) {
            *z = clean_one(biased_one(&draw.vocabulary, *token, clean_one(row[*token as usize])));
        }
        for (token, delta) in &draw.deltas {
            if let Ok(at) = tokens.binary_search(token) {
                z[at] = clean_one(z[at] + delta);
            }
        }
    } else {
        let row = Eights::new(row);
        z.resize(8 * row.count(), 0.0);
        for (i, to) in z.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            s.store(clean(s, biased(s, &draw.vocabulary, i, row.at(s, i))), to);
        }
        for (token, delta) in &draw.deltas {
            z[*token as usize] = clean_one(z[*token as usize] + delta);
        }
    }
    if draw.temperature > 0.0 && draw.temperature != 1.0 {
        for eight in z.as_chunks_mut::<8>().0 {
            s.store(scaled(s, s.load(eight), draw.temperature), eight);
        }
    }
}

for_every_isa! {
    /// The token of the largest z, the lowest of several.
    fn greedy(draw: &Draw, scratch: &Scratch) -> Option<u32> = greedy_with;
}

#[inline(always)]
fn greedy_with<S: Simd>(s: S, draw: &Draw, scratch: &Scratch) -> Option<u32> {
    let top = largest(s, &scratch.z);
    if top == f32::NEG_INFINITY {
        return None;
    }
    let at = scratch.z.iter().position(|z| *z == top)?;
    Some(if draw.only.is_some() { scratch.tokens[at] } else { at as u32 })
}

for_every_isa! {
    /// Steps 2 and 3: weights, nucleus and choice. `None` where nothing has any weight.
    fn choose(draw: &Draw, scratch: &mut Scratch) -> Option<Choice> = choose_with;
}

#[inline(always)]
fn choose_with<S: Simd>(s: S, draw: &Draw, scratch: &mut Scratch) -> Option<Choice> {
    let top = largest(s, &scratch.z);
    if top == f32::NEG_INFINITY {
        return None;
    }
    let masked = draw.only.is_some();
    let total = if masked { list_masked(top, scratch) } else { sum_chunks(s, top, scratch) };
    let (mut kept, mut cut) = (total, None);
    if draw.top_p < 1.0 {
        let target = sampling::nucleus_target(total, draw.top_p);
        if !masked {
            list_heaviest(s, top, target, scratch);
        }
        let last = nucleus(&scratch.list, target, &mut scratch.ordered);
        kept = scratch.list.iter().filter(|(token, weight)| last.keeps(*weight, *token)).map(|(_, w)| w).sum();
        cut = (kept < total).then_some(last);
    }
    let threshold = sampling::threshold(draw.random, kept);
    let (token, weight) = if masked || draw.top_p < 1.0 {
        let mut running = 0;
        let allowed = |(token, weight): &&(u32, u64)| cut.is_none_or(|cut| cut.keeps(*weight, *token));
        *scratch.list.iter().filter(allowed).find(|(_, weight)| {
            running += weight;
            running > threshold
        })?
    } else {
        find_in_chunks(s, top, threshold, scratch)?
    };
    Some(Choice { token, weight, total: kept, largest: top, cut })
}

/// Lists the tokens of a masked draw with their weights; their sum.
#[inline(always)]
fn list_masked(top: f32, scratch: &mut Scratch) -> u64 {
    let Scratch { z, tokens, list, .. } = scratch;
    list.clear();
    let mut sum = 0;
    for (token, z) in tokens.iter().zip(&*z) {
        let weight = sampling::weight(*z - top);
        sum += weight;
        list.push((*token, weight));
    }
    sum
}

/// exp(z - z*) of eight tokens.
#[inline(always)]
fn relative<S: Simd>(s: S, z: S::F, top: f32) -> S::F {
    exp_of_difference(s, s.sub(z, s.splat(top)))
}

/// Sums the weights of each chunk of tokens into `scratch.chunks`; the sum of all.
#[inline(always)]
fn sum_chunks<S: Simd>(s: S, top: f32, scratch: &mut Scratch) -> u64 {
    let Scratch { z, chunks, .. } = scratch;
    chunks.clear();
    for chunk in z.chunks(CHUNK) {
        let mut sum = s.wide_zero();
        for eight in chunk.as_chunks::<8>().0 {
            sum = s.weights_add(sum, relative(s, s.load(eight), top));
        }
        chunks.push(s.wide_sum(sum) as u64);
    }
    chunks.iter().sum()
}

/// The first token whose running sum exceeds the threshold, and its weight.
#[inline(always)]
fn find_in_chunks<S: Simd>(s: S, top: f32, threshold: u64, scratch: &Scratch) -> Option<(u32, u64)> {
    let mut running = 0;
    let chunk = scratch.chunks.iter().position(|sum| {
        let passed = running + sum > threshold;
        running += if passed { 0 } else { *sum };
        passed
    })?;
    let first = chunk * CHUNK;
    let (eights, _) = scratch.z[first..].as_chunks::<8>();
    for (i, eight) in eights.iter().take(CHUNK / 8).enumerate() {
        let mut e = [0.0; 8];
        s.store(relative(s, s.load(eight), top), &mut e);
        for (lane, e) in e.into_iter().enumerate() {
            let weight = sampling::weight_of(e);
            running += weight;
            if running > threshold {
                return Some(((first + 8 * i + lane) as u32, weight));
            }
        }
    }
    None
}

/// Lists the tokens above the highest floor above which the weights reach `target`, in order of token.
#[inline(always)]
fn list_heaviest<S: Simd>(s: S, top: f32, target: u64, scratch: &mut Scratch) {
    let Scratch { z, list, relatives, .. } = scratch;
    let (eights, _) = z.as_chunks::<8>();
    relatives.resize(eights.len(), [0.0; 8]);
    for (eight, to) in eights.iter().zip(&mut *relatives) {
        s.store(relative(s, s.load(eight), top), to);
    }
    // The number just below a floor, so that the floor itself passes.
    let mut below = s.splat(0.0);
    for floor in FLOORS {
        below = s.splat(f32::from_bits(floor.to_bits().saturating_sub(1)));
        let mut total = 0;
        for chunk in relatives.chunks(CHUNK) {
            let mut sum = s.wide_zero();
            for eight in chunk {
                let relative = s.load(eight);
                sum = s.weights_add(sum, s.where_above(relative, below, relative));
            }
            total += s.wide_sum(sum) as u64;
        }
        if total >= target {
            break;
        }
    }
    list.clear();
    for (i, eight) in relatives.iter().enumerate() {
        let mut passed = s.above(s.load(eight), below);
        while passed != 0 {
            let lane = passed.trailing_zeros() as usize;
            list.push(((8 * i + lane) as u32, sampling::weight_of(eight[lane])));
            passed &= passed - 1;
        }
    }
}

/// The last token of the fewest that reach `target`, by falling weight, ties to the lower token. Halves the
/// list around its middle weight until a few are left to sort: linear in its length. `target` is at least 1
/// and at most the list's sum.
fn nucleus(list: &[(u32, u64)], target: u64, ordered: &mut Vec<(u32, u64)>) -> NucleusCut {
    ordered.clear();
    ordered.extend_from_slice(list);
    let rank = |&(token, weight): &(u32, u64)| (std::cmp::Reverse(weight), token);
    let mut rest = &mut ordered[..];
    let mut heavier = 0;
    while rest.len() > 32 {
        let middle = rest.len() / 2;
        rest.select_nth_unstable_by_key(middle, rank);
        let (upper, lower) = rest.split_at_mut(middle);
        let sum: u64 = upper.iter().map(|(_, weight)| weight).sum();
        if heavier + sum >= target {
            rest = upper;
        } else {
            heavier += sum;
            rest = lower;
        }
    }
    rest.sort_unstable_by_key(rank);
    let last = rest.iter().find(|(_, weight)| {
        heavier += weight;
        heavier >= target
    });
    last.or(rest.last())
        .map_or(NucleusCut { weight: 0, token: u32::MAX }, |&(token, weight)| NucleusCut { weight, token })
}

/// Step 4: KL(drawn from || softmax(logits / temperature)) = Σ p (z' - z) - ln Z' + ln Z, where z' differs from z
/// in adjusted tokens only, p is the integer weight over its total, and Z' that total.
fn divergence(isa: Detected, row: &[f32], draw: &Draw, scratch: &mut Scratch, choice: &Choice, base: f64) -> f64 {
    let Scratch { z, tokens, list, .. } = scratch;
    let temperature = draw.temperature;
    let before = |token: u32| scaled_one(clean_one(row[token as usize]), temperature);
    let biased = draw.vocabulary.iter().any(|bias| bias.set != 0.0 || bias.unset != 0.0);
    // Σ weight · (z' - z), in units of the likeliest token's weight; a token without weight may have z' = -∞.
    let term = |weight: u64, after: f32, token: u32| {
        if weight == 0 { 0.0 } else { weight as f64 * (f64::from(after) - f64::from(before(token))) }
    };
    let shift: f64 = if draw.only.is_some() {
        let kept = list.iter().zip(z.iter()).filter(|((t, w), _)| choice.cut.is_none_or(|cut| cut.keeps(*w, *t)));
        kept.map(|((token, weight), after)| term(*weight, *after, *token)).sum()
    } else if biased && draw.top_p < 1.0 {
        let kept = list.iter().filter(|(t, w)| choice.cut.is_none_or(|cut| cut.keeps(*w, *t)));
        kept.map(|(token, weight)| term(*weight, z[*token as usize], *token)).sum()
    } else if biased {
        shift_of_all(isa, row, temperature, z, choice.largest) * (1u64 << WEIGHT_BITS) as f64
    } else {
        tokens.clear();
        tokens.extend(draw.deltas.iter().map(|(token, _)| *token));
        tokens.sort_unstable();
        tokens.dedup();
        if choice.cut.is_none() && tokens.iter().all(|t| z[*t as usize] == before(*t)) {
            return 0.0;
        }
        let weighed = tokens.iter().map(|t| (*t, sampling::weight(z[*t as usize] - choice.largest)));
        let kept = weighed.filter(|(t, w)| choice.cut.is_none_or(|cut| cut.keeps(*w, *t)));
        kept.map(|(token, weight)| term(weight, z[token as usize], token)).sum()
    };
    let total = choice.total as f64;
    let after = f64::from(choice.largest) + total.ln() - f64::from(WEIGHT_BITS) * std::f64::consts::LN_2;
    let before = if temperature == 1.0 { base } else { log_sum(isa, row, temperature) };
    (shift / total - after + before).max(0.0)
}

for_every_isa! {
    /// Σ exp(z' - z*) · (z' - z) over the vocabulary.
    fn shift_of_all(row: &[f32], temperature: f32, after: &[f32], top: f32) -> f64 = shift_with;
}

#[inline(always)]
fn shift_with<S: Simd>(s: S, row: &[f32], temperature: f32, after: &[f32], top: f32) -> f64 {
    let mut sum = s.wide_zero();
    let (before, after) = (Eights::new(row), Eights::new(after));
    for i in 0..before.count() {
        let (before, after) = (scaled(s, before.at(s, i), temperature), after.at(s, i));
        let e = relative(s, after, top);
        // Where a token has no weight the difference may be -∞ or NaN.
        let difference = s.where_above(e, s.splat(0.0), s.sub(after, before));
        sum = s.wide_mul_add(sum, e, difference);
    }
    s.wide_sum(sum)
}

#[cfg(test)]
#[path = "sample_tests.rs"]
mod tests;
