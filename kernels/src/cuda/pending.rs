//! Launches of a pass that wait: between `begin` and `end` the device gathers what it is to launch, and gives it to the
//! driver together, at the next thing that needs their results or whose order matters.
//!
//! A list of launches is plain words, so that two lists can be compared: `graphs.rs` knows a list again and has the driver
//! run it in one call. Memory that is freed while launches wait is kept until they are on their way, for they hold
//! its address.

use std::sync::{Mutex, MutexGuard, PoisonError};

use cudarc::driver::CudaSlice;

use super::binaries::Kernel;
use super::parameters::{Plain, bytes_of};

/// A kernel with its grid, threads of a block, and parameters.
pub(super) struct Launch<'a> {
    pub(super) operation: &'static str,
    /// Index of the function.
    pub(super) kernel: usize,
    pub(super) grid: (u32, u32, u32),
    pub(super) threads: u32,
    /// The one parameter's words.
    pub(super) parameters: &'a [u64],
}

/// Launches in order, as words: kernel and threads, grid, the parameters' length, the parameters.
#[derive(Default)]
pub(super) struct Launches {
    pub(super) words: Vec<u64>,
    operations: Vec<&'static str>,
    /// Freed since the first of them.
    freed: Vec<CudaSlice<u8>>,
    /// Whether a pass is under way.
    pub(super) gathering: bool,
}

/// Words before the parameters.
const HEADER: usize = 3;

impl Launches {
    pub(super) fn count(&self) -> usize {
        self.operations.len()
    }

    pub(super) fn push<P: Plain>(
        &mut self,
        operation: &'static str,
        kernel: Kernel,
        (x, y, z): (u32, u32, u32),
        threads: u32,
        parameters: &P,
    ) {
        const { assert!(size_of::<P>().is_multiple_of(8), "parameters are whole words") };
        let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        let bytes = bytes_of(std::slice::from_ref(parameters));
        self.words.extend([pair(kernel as u32, threads), pair(x, y), pair(z, (bytes.len() / 8) as u32)]);
        self.words.extend(bytes.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word)));
        self.operations.push(operation);
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = Launch<'_>> {
        let mut rest = &self.words[..];
        self.operations.iter().map(move |operation| {
            let (header, after) = rest.split_at(HEADER);
            let high = |word: u64| (word >> 32) as u32;
            let (parameters, after) = after.split_at(high(header[2]) as usize);
            rest = after;
            Launch {
                operation,
                kernel: header[0] as u32 as usize,
                grid: (header[1] as u32, high(header[1]), header[2] as u32),
                threads: high(header[0]),
                parameters,
            }
        })
    }

    /// They are on their way, or never will be: what was freed meanwhile may go.
    pub(super) fn clear(&mut self) {
        self.words.clear();
        self.operations.clear();
        self.freed.clear();
    }
}

/// The launches that wait, known to the card and to all of its memory.
#[derive(Default)]
pub(super) struct Pending(Mutex<Launches>);

impl Pending {
    /// While this is held nothing is freed on the stream: a capture sees launches only.
    pub(super) fn lock(&self) -> MutexGuard<'_, Launches> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Frees memory behind whatever waits.
    pub(super) fn free(&self, slice: CudaSlice<u8>) {
        let mut launches = self.lock();
        if launches.count() > 0 {
            launches.freed.push(slice);
        } else {
            drop(slice);
        }
    }
}
