//! The oracle of the linear layers: what a product is, without packing or quantised activations.
//!
//! [`linear`] multiplies exactly dequantised weights with the activations as they are, in f64. The kernels
//! differ from it by the rounding of activations to 8 bits and of f32 sums; [`error_bound`] says by how much
//! at most, from the numbers themselves, so tests need no tolerance by feel.

use crate::format::{BLOCK, Format};

/// `out[r][i] = weight row i · activation row r` for `[n, k]` weights in a format and `[rows, k]` activations.
pub(crate) fn linear(format: Format, n: usize, k: usize, bytes: &[u8], activations: &[f32]) -> Vec<f64> {
    let weights = dequantized(format, n, k, bytes);
    let dot = |a: &[f32], w: &[f32]| a.iter().zip(w).map(|(a, w)| f64::from(*a) * f64::from(*w)).sum();
    activations.chunks_exact(k).flat_map(|a| weights.chunks_exact(k).map(move |w| dot(a, w))).collect()
}

/// The most that a kernel's result may differ from [`linear`]'s, in the same order.
///
/// An activation of a block with largest magnitude a is off by at most half a step, a/254, plus what f32 rounds
/// off; f32 sums over b blocks are off by some b + 40 roundings of the sum of magnitudes.
pub(crate) fn error_bound(format: Format, n: usize, k: usize, bytes: &[u8], activations: &[f32]) -> Vec<f64> {
    let weights = dequantized(format, n, k, bytes);
    let step = if matches!(format, Format::F32 | Format::F16 | Format::Bf16) { 0.0 } else { 0.501 / 127.0 };
    let roundings = (k.div_ceil(BLOCK) + 40) as f64 * f64::from(f32::EPSILON);
    let bound = |a: &[f32], w: &[f32]| -> f64 {
        let blocks = a.chunks(BLOCK).zip(w.chunks(BLOCK));
        blocks
            .map(|(a, w)| {
                let largest = f64::from(a.iter().fold(0.0f32, |most, a| most.max(a.abs())));
                let (low, high) = w.iter().fold((0.0f32, 0.0f32), |(low, high), w| (low.min(*w), high.max(*w)));
                // Q4_1 adds d·Σq·a and m·Σa, each as large as the widest weight allows.
                let widest = f64::from(high - low) * a.len() as f64;
                let weight: f64 = w.iter().map(|w| f64::from(w.abs())).sum();
                largest * (weight * step + 2.0 * widest * roundings)
            })
            .sum()
    };
    activations.chunks_exact(k).flat_map(|a| weights.chunks_exact(k).map(move |w| bound(a, w))).collect()
}

fn dequantized(format: Format, n: usize, k: usize, bytes: &[u8]) -> Vec<f32> {
    let mut weights = vec![0.0; n * k];
    assert!(format.dequantize(bytes, &mut weights), "{n} by {k} in {format}");
    weights
}
