//! RMS norm of one row: `x · gain / sqrt(mean(x²) + epsilon)`.
//!
//! The sum of squares runs in the one order of [`super::lanes::dot`], so a row's result is its own
//! whatever the instruction set or the batch. Quantising the result is the linear layers' part.

use super::lanes::{Simd, dot, for_every_isa};

for_every_isa! {
    /// Writes the norm of `x` times `gain` to `out`; all three have one length, H.
    pub(crate) fn rms_norm(x: &[f32], gain: &[f32], epsilon: f32, out: &mut [f32]) = norm;
}

#[inline(always)]
fn norm<S: Simd>(s: S, x: &[f32], gain: &[f32], epsilon: f32, out: &mut [f32]) {
    let scale = 1.0 / (dot(s, x, x) / x.len() as f32 + epsilon).sqrt();
    for ((o, x), g) in out.iter_mut().zip(x).zip(gain) {
        *o = (x * scale) * g;
    }
}
