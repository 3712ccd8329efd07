//! Small arrays for one upload: a pass's plan, a batch of queries or draws.
//!
//! One copy of a few kilobytes costs what one of a few bytes does, so everything that an operation sends goes as one
//! block, each array at a multiple of 16 bytes.

use super::parameters::{Plain, bytes_of};

/// What is to be uploaded together.
#[derive(Default)]
pub(super) struct Stage {
    pub(super) bytes: Vec<u8>,
}

impl Stage {
    /// Adds an array; where it starts from the upload's address.
    pub(super) fn push<T: Plain>(&mut self, values: &[T]) -> u64 {
        self.bytes.resize(self.bytes.len().next_multiple_of(16), 0);
        let start = self.bytes.len() as u64;
        self.bytes.extend_from_slice(bytes_of(values));
        start
    }
}

/// Arrays side by side in scratch that kernels write: sizes in bytes to offsets.
pub(super) fn offsets<const N: usize>(sizes: [usize; N]) -> ([u64; N], usize) {
    let mut end = 0usize;
    let starts = sizes.map(|size| {
        let start = end as u64;
        end = end.saturating_add(size).next_multiple_of(16);
        start
    });
    (starts, end)
}
