//! What the tests of several files share: reproducible numbers and the instruction sets to try.
//!
//! Not a reference implementation of anything; those stand beside the tests that use them.

use super::isa::{Detected, Isa};

/// A small generator (splitmix64), so that data is the same in every run.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Below `bound`.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// From -1 to 1.
    pub(crate) fn symmetric(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    /// Bell-shaped, deviation 1.
    pub(crate) fn bell(&mut self) -> f32 {
        (0..3).map(|_| self.symmetric()).sum()
    }

    pub(crate) fn bells(&mut self, count: usize, scale: f32) -> Vec<f32> {
        (0..count).map(|_| self.bell() * scale).collect()
    }
}

/// Scalar first, then every other instruction set of this processor.
pub(crate) fn every_isa() -> Vec<Detected> {
    Isa::ALL.into_iter().filter_map(Detected::new).collect()
}

/// The fastest instruction set of this processor.
pub(crate) fn best_isa() -> Detected {
    every_isa().pop().expect("scalar is always there")
}

/// The bits, for comparisons that mean bits.
pub(crate) fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}
