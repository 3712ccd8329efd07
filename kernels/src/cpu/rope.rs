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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::testing::Random;

    fn rope(pairing: RopePairing) -> Rope {
        let frequencies = (0..8).map(|i| 1e5f64.powf(-f64::from(i) / 8.0)).collect();
        Rope { pairing, inverse_frequencies: frequencies, context_tokens: 9000, table: Vec::new() }
    }

    #[test]
    fn pairs_turn_by_position_times_frequency() {
        for pairing in [RopePairing::Interleaved, RopePairing::Halves] {
            let mut rope = rope(pairing);
            for position in [0usize, 1, 255, 256, 8191] {
                rope.reserve(position + 1);
                let before = Random(9).bells(32, 1.0);
                let mut after = before.clone();
                rope.apply(position, &mut after);
                for i in 0..16 {
                    let (head, pair) = (i / 8 * 16, i % 8);
                    let (first, second) = match pairing {
                        RopePairing::Interleaved => (head + 2 * pair, head + 2 * pair + 1),
                        RopePairing::Halves => (head + pair, head + pair + 8),
                    };
                    let (sin, cos) = (position as f64 * rope.inverse_frequencies[pair]).sin_cos();
                    let [a, b] = [first, second].map(|d| f64::from(before[d]));
                    assert!((f64::from(after[first]) - (a * cos - b * sin)).abs() <= 5e-7, "{pairing:?} {position}");
                    assert!((f64::from(after[second]) - (a * sin + b * cos)).abs() <= 5e-7, "{pairing:?} {position}");
                }
                assert_eq!(after == before, position == 0, "position 0 alone stands still");
            }
        }
    }

    #[test]
    fn the_table_grows_only_as_far_as_it_must() {
        let mut rope = rope(RopePairing::Halves);
        rope.reserve(1);
        assert_eq!(rope.ready(), 256);
        rope.reserve(257);
        assert_eq!(rope.ready(), 512);
        rope.reserve(8500);
        assert_eq!(rope.ready(), 8500);
        rope.reserve(8501);
        assert_eq!(rope.ready(), 9000, "doubling stops at the context");
    }
}
