//! Rotary position embedding: pairs of a head's dimensions turn by `position · frequency`.
//!
//! Angles, sines and cosines are computed in f64 (at position 8,000 an f32 angle is off by 5e-4) and
//! kept as f32 in a table that grows with the longest position seen: 256 bytes a position for heads
//! of 64. Products and sums are rounded one by one, so every instruction set gives the same bits.

use crate::device::{ModelShape, RopePairing};

/// The rotation of one model's heads.
pub(crate) struct Rope {
    pairing: RopePairing,
    inverse_frequencies: Vec<f64>,
    context_tokens: usize,
    /// `[positions, D / 2]` pairs of (cos, sin).
    table: Vec<(f32, f32)>,
}

impl Rope {
    /// An empty table for this model's heads.
    pub(crate) fn new(model: &ModelShape) -> Rope {
        Rope {
            pairing: model.rope_pairing,
            inverse_frequencies: model.rope_inverse_frequencies.clone(),
            context_tokens: model.context_tokens,
            table: Vec::new(),
        }
    }

    /// Makes positions below `positions` ready; at least doubles, so that growth is rare.
    pub(crate) fn reserve(&mut self, positions: usize) {
        let pairs = self.inverse_frequencies.len();
        let ready = self.ready();
        if positions <= ready {
            return;
        }
        let wanted = positions.max((2 * ready).clamp(256, self.context_tokens.max(256)));
        self.table.reserve_exact((wanted - ready) * pairs);
        for position in ready..wanted {
            for frequency in &self.inverse_frequencies {
                let (sin, cos) = (position as f64 * frequency).sin_cos();
                self.table.push((cos as f32, sin as f32));
            }
        }
    }

    /// How many positions are ready.
    pub(crate) fn ready(&self) -> usize {
        self.table.len() / self.inverse_frequencies.len().max(1)
    }

    /// Turns one head, `[D]`, or several side by side, `[heads, D]`. The position has been reserved.
    pub(crate) fn apply(&self, position: usize, heads: &mut [f32]) {
        let pairs = self.inverse_frequencies.len();
        let table = &self.table[position * pairs..][..pairs];
        for head in heads.chunks_exact_mut(2 * pairs) {
            match self.pairing {
                RopePairing::Interleaved => {
                    for ([a, b], &turn) in head.as_chunks_mut::<2>().0.iter_mut().zip(table) {
                        (*a, *b) = rotate(*a, *b, turn);
                    }
                }
                RopePairing::Halves => {
                    let (first, second) = head.split_at_mut(pairs);
                    for ((a, b), &turn) in first.iter_mut().zip(second).zip(table) {
                        (*a, *b) = rotate(*a, *b, turn);
                    }
                }
            }
        }
    }
}

#[inline(always)]
fn rotate(a: f32, b: f32, (cos, sin): (f32, f32)) -> (f32, f32) {
    (a * cos - b * sin, a * sin + b * cos)
}
