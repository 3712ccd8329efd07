//! The machine: runs a decoded kernel over a grid and watches every access.
//!
//! Blocks run one after the other; the warps of a block take turns; a warp executes one instruction
//! for a group of its lanes that are at the same place, always the group that is furthest behind, so
//! that lanes meet again. Not a model of time or caches. Start at [`run`]; `block.rs` schedules,
//! `step.rs` executes, `shared.rs` finds races.

mod access;
mod atomic;
mod block;
mod copies;
mod matrix;
mod shared;
mod step;
mod together;
mod warp;

use crate::decode::Kernel;
use crate::device::finding::{Finding, Kind};
use crate::device::memory::Memory;

/// Generic addresses of shared memory begin here.
pub(crate) const SHARED_WINDOW: u64 = 0x100_0000_0000;
/// Generic addresses of local memory begin here.
pub(crate) const LOCAL_WINDOW: u64 = 0x200_0000_0000;
/// Size of either window.
pub(crate) const WINDOW_BYTES: u64 = 1 << 24;

/// What a launch says besides the kernel.
#[derive(Clone, Debug)]
pub(crate) struct Launch {
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    pub(crate) dynamic_shared_bytes: u32,
    /// The parameters, laid out as the kernel wants them.
    pub(crate) params: Vec<u8>,
    /// The launch is given up after so many seconds.
    pub(crate) seconds_max: u64,
}

/// What went wrong in one lane; the block adds where.
#[derive(Debug)]
pub(crate) struct Fault {
    pub(crate) kind: Kind,
    pub(crate) lane: u32,
    pub(crate) address: Option<u64>,
    pub(crate) detail: String,
}

impl Fault {
    fn new(kind: Kind, lane: u32, detail: impl Into<String>) -> Self {
        Self { kind, lane, address: None, detail: detail.into() }
    }

    fn at(kind: Kind, lane: u32, address: u64, detail: impl Into<String>) -> Self {
        Self { kind, lane, address: Some(address), detail: detail.into() }
    }
}

/// Work done, for measuring speed.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Work {
    /// Instructions, each counted once for every lane that executed it.
    pub(crate) thread_instructions: u64,
}

/// Runs the kernel to its end or to the first finding.
pub(crate) fn run(kernel: &Kernel, launch: &Launch, memory: &Memory) -> Result<Work, Finding> {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(launch.seconds_max);
    let mut space = access::Spaces::new(kernel, launch, memory.clone(), deadline);
    for z in 0..launch.grid[2] {
        for y in 0..launch.grid[1] {
            for x in 0..launch.grid[0] {
                block::run(kernel, launch, [x, y, z], &mut space)?;
            }
        }
    }
    Ok(space.work)
}
