//! Random numbers by counter: Philox4x32-10 (Salmon et al., *Parallel random numbers: as easy as
//! 1, 2, 3*, SC 2011).
//!
//! A draw's number is a pure function of (seed, stream, draw index), so a sequence draws the same
//! tokens alone or among a hundred, and a record of seed and draw count replays it. The index counts
//! *draws*, discarded ones included: keyed by position, a rejected segment would be drawn again for ever.

/// The source of one sequence's random numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Philox {
    seed: u64,
    stream: u64,
    draws: u64,
}

impl Philox {
    /// Numbers for one stream of a seed, from the first.
    pub fn new(seed: u64, stream: u64) -> Self {
        Self { seed, stream, draws: 0 }
    }

    /// The stream that it was made for.
    pub fn stream(&self) -> u64 {
        self.stream
    }

    /// How many numbers have been drawn.
    pub fn draws(&self) -> u64 {
        self.draws
    }

    /// The next 64 bits.
    pub fn draw(&mut self) -> u64 {
        let bits = bits(self.seed, self.stream, self.draws);
        self.draws += 1;
        bits
    }

    /// A float in [0, 1) with 53 bits: for learning and statistics, never for the engine's draws.
    pub fn uniform(&mut self) -> f64 {
        (self.draw() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// An index below `bound` (> 0), without bias worth naming (2^-64 a value).
    pub fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.draw()) * bound as u128) >> 64) as usize
    }
}

/// The 64 bits of draw `index` of `stream` under `seed`: the first two words of the block.
pub fn bits(seed: u64, stream: u64, index: u64) -> u64 {
    let counter = [index as u32, (index >> 32) as u32, stream as u32, (stream >> 32) as u32];
    let block = philox4x32_10(counter, [seed as u32, (seed >> 32) as u32]);
    u64::from(block[0]) | u64::from(block[1]) << 32
}

/// Ten rounds of Philox4x32.
fn philox4x32_10(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let a = u64::from(counter[0]) * 0xD251_1F53;
        let b = u64::from(counter[2]) * 0xCD9E_8D57;
        counter = [(b >> 32) as u32 ^ counter[1] ^ key[0], b as u32, (a >> 32) as u32 ^ counter[3] ^ key[1], a as u32];
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    counter
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers of the Random123 distribution (`kat_vectors`, philox4x32 with 10 rounds).
    #[test]
    fn philox_gives_the_published_answers() {
        assert_eq!(philox4x32_10([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox4x32_10([u32::MAX; 4], [u32::MAX; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        assert_eq!(
            philox4x32_10([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn streams_and_indices_are_apart() {
        let mut first = Philox::new(7, 0);
        let mut second = Philox::new(7, 1);
        let (a, b) = (first.draw(), second.draw());
        assert_ne!(a, b);
        assert_eq!(first.draws(), 1);
        assert_eq!(a, bits(7, 0, 0));
        assert_ne!(first.draw(), a);
    }
}
