//! Sweeps over one row of logits, `[V]`: what `top_k.rs` and `sample.rs` share.
//!
//! A row may come from a broken model, so every sweep reads logits through [`clean`]: NaN counts as −∞ and
//! +∞ as the largest finite number, and no later difference of two of them is NaN. Sums run in f64, eight
//! lanes, in order of token.

use super::lanes::{Simd, exp_of_difference, for_every_isa};
use crate::device::VocabularyBias;

/// NaN becomes −∞, +∞ the largest finite f32.
#[inline(always)]
pub(crate) fn clean<S: Simd>(s: S, x: S::F) -> S::F {
    s.min(s.max(x, s.splat(f32::NEG_INFINITY)), s.splat(f32::MAX))
}

/// [`clean`] of one number.
#[inline(always)]
pub(crate) fn clean_one(x: f32) -> f32 {
    let number = if x > f32::NEG_INFINITY { x } else { f32::NEG_INFINITY };
    if number < f32::MAX { number } else { f32::MAX }
}

/// A row of logits, eight tokens at a time; −∞ past its end.
///
/// Kernels loop over it with `for`, never with closures: a closure is a function of its own, without the
/// instruction set of the kernel around it.
pub(crate) struct Eights<'a> {
    whole: &'a [[f32; 8]],
    last: [f32; 8],
    count: usize,
}

impl<'a> Eights<'a> {
    #[inline(always)]
    pub(crate) fn new(row: &'a [f32]) -> Eights<'a> {
        let (whole, rest) = row.as_chunks::<8>();
        let mut last = [f32::NEG_INFINITY; 8];
        last[..rest.len()].copy_from_slice(rest);
        Eights { whole, last, count: row.len().div_ceil(8) }
    }

    /// How many there are, the last one filled up.
    #[inline(always)]
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// Logits of tokens 8i to 8i + 7, cleaned.
    #[inline(always)]
    pub(crate) fn at<S: Simd>(&self, s: S, i: usize) -> S::F {
        clean(s, s.load(self.whole.get(i).unwrap_or(&self.last)))
    }
}

/// Adds every bias, in order, to tokens 8i to 8i + 7.
#[inline(always)]
pub(crate) fn biased<S: Simd>(s: S, biases: &[VocabularyBias], i: usize, x: S::F) -> S::F {
    let mut x = x;
    for bias in biases {
        let bits = bias.bits.get(i / 8).map_or(0, |word| (word >> (i % 8 * 8)) as u8);
        x = s.add(x, s.pick(bits, s.splat(bias.set), s.splat(bias.unset)));
    }
    x
}

/// Adds every bias, in order, to one token.
#[inline(always)]
pub(crate) fn biased_one(biases: &[VocabularyBias], token: u32, x: f32) -> f32 {
    biases.iter().fold(x, |x, bias| {
        let word = bias.bits.get(token as usize / 64).copied().unwrap_or(0);
        x + if word >> (token % 64) & 1 == 1 { bias.set } else { bias.unset }
    })
}

/// The largest of a row, cleaned; −∞ where there is none.
#[inline(always)]
pub(crate) fn largest<S: Simd>(s: S, row: &[f32]) -> f32 {
    let (eights, rest) = row.as_chunks::<8>();
    let (fours, left) = eights.as_chunks::<4>();
    let mut most = [s.splat(f32::NEG_INFINITY); 4];
    // NaN loses as the first operand, so only the result needs cleaning.
    for four in fours {
        for c in 0..4 {
            most[c] = s.max(s.load(&four[c]), most[c]);
        }
    }
    for eight in left {
        most[0] = s.max(s.load(eight), most[0]);
    }
    let most = s.largest(s.max(s.max(most[0], most[1]), s.max(most[2], most[3])));
    clean_one(rest.iter().fold(most, |most, x| if *x > most { *x } else { most }))
}

/// What softmax(row / temperature) is normalised by, before the logarithm.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Normalizer {
    /// z*, the largest z = logit / temperature.
    largest: f32,
    /// Σ exp(z − z*).
    sum: f64,
    /// Σ exp(z − z*) · (z − z*).
    moment: f64,
}

impl Normalizer {
    /// Of a row without a finite logit.
    pub(crate) const NONE: Normalizer = Normalizer { largest: f32::NEG_INFINITY, sum: 0.0, moment: 0.0 };

    /// ln Σ exp(z); −∞ for a row without a finite logit.
    pub(crate) fn log(&self) -> f64 {
        if self.sum > 0.0 { f64::from(self.largest) + self.sum.ln() } else { f64::NEG_INFINITY }
    }

    /// Entropy of softmax(z) in nats; 0 for a row without a finite logit.
    pub(crate) fn entropy(&self) -> f64 {
        if self.sum > 0.0 { (self.sum.ln() - self.moment / self.sum).max(0.0) } else { 0.0 }
    }
}

for_every_isa! {
    /// The normaliser of a row at temperature 1, and what its entropy takes.
    pub(crate) fn normalizer(row: &[f32]) -> Normalizer = normalize_with_moment;
}

for_every_isa! {
    /// ln Σ exp(logit / temperature) at a temperature above 0.
    pub(crate) fn log_sum(row: &[f32], temperature: f32) -> f64 = log_sum_with;
}

#[inline(always)]
fn normalize_with_moment<S: Simd>(s: S, row: &[f32]) -> Normalizer {
    normalize::<S, true>(s, row, 1.0)
}

#[inline(always)]
fn log_sum_with<S: Simd>(s: S, row: &[f32], temperature: f32) -> f64 {
    normalize::<S, false>(s, row, temperature).log()
}

#[inline(always)]
fn normalize<S: Simd, const MOMENT: bool>(s: S, row: &[f32], temperature: f32) -> Normalizer {
    let top = scaled_one(largest(s, row), temperature);
    let (mut sum, mut moment) = (s.wide_zero(), s.wide_zero());
    if top == f32::NEG_INFINITY {
        return Normalizer::NONE;
    }
    let row = Eights::new(row);
    for i in 0..row.count() {
        let z = if temperature == 1.0 { row.at(s, i) } else { scaled(s, row.at(s, i), temperature) };
        let difference = s.sub(z, s.splat(top));
        let e = exp_of_difference(s, difference);
        sum = s.wide_add(sum, e);
        if MOMENT {
            // exp is 0 long before -100, and 0 · −∞ would be NaN.
            moment = s.wide_mul_add(moment, e, s.max(difference, s.splat(-100.0)));
        }
    }
    Normalizer { largest: top, sum: s.wide_sum(sum), moment: s.wide_sum(moment) }
}

/// Logits over a temperature above 0, cleaned.
#[inline(always)]
pub(crate) fn scaled<S: Simd>(s: S, x: S::F, temperature: f32) -> S::F {
    clean(s, s.div(x, s.splat(temperature)))
}

/// [`scaled`] of one logit.
#[inline(always)]
pub(crate) fn scaled_one(x: f32, temperature: f32) -> f32 {
    clean_one(x / temperature)
}
