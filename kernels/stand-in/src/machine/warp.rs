//! A warp: registers of its lanes, local memory, and where its lanes are.
//!
//! Lanes at the same place form a group. Groups split at branches and merge when they are at the same
//! place again; the one that is furthest behind runs. Start at [`Warp::start`].

use super::shared::Who;
use super::{Fault, access::Lane, access::Spaces, copies::Copies};
use crate::decode::lanes::Lanes;
use crate::decode::{Init, Kernel, Special};
use crate::device::finding::Kind;

/// What an uninitialised register holds: NaN as f32 and as f64, and easy to recognise.
const POISON: u64 = 0x7ff8_dead_7fc0_dead;

/// Lanes at one place.
#[derive(Clone, Copy, Debug)]
pub(super) struct Group {
    pub(super) place: u32,
    pub(super) mask: u32,
    /// Waits for other lanes at a collective instruction.
    pub(super) blocked: bool,
}

/// Lanes that wait at a barrier of the block.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiting {
    pub(super) place: u32,
    pub(super) mask: u32,
    pub(super) id: u32,
    /// Threads that the barrier waits for, 0 for all of the block.
    pub(super) count: u32,
}

#[derive(Debug, Default)]
pub(super) struct Warp {
    pub(super) index: u32,
    pub(super) registers: Vec<Lanes>,
    pub(super) groups: Vec<Group>,
    pub(super) waiting: Vec<Waiting>,
    /// Lanes that exist: all but in a block's last warp.
    pub(super) all: u32,
    /// Lanes that have not exited.
    pub(super) alive: u32,
    pub(super) copies: Copies,
    /// Local memory of lane 0, then of lane 1, ...
    local: Vec<u8>,
    local_written: Vec<bool>,
}

/// Registers as the warps of a launch's first block start with them; special ones are each warp's own.
pub(super) fn template(kernel: &Kernel) -> Vec<Lanes> {
    let start = |init: &Init| match *init {
        Init::Constant(bits) => [bits; 32],
        Init::Poison | Init::Special(_) => [POISON; 32],
    };
    kernel.registers.iter().map(start).collect()
}

/// The lanes of a mask, in order.
pub(super) fn lanes_of(mut mask: u32) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        if mask == 0 {
            return None;
        }
        let lane = mask.trailing_zeros();
        mask &= mask - 1;
        Some(lane as usize)
    })
}

impl Warp {
    /// Warp `index` of a block of `threads` threads, at its first instruction.
    pub(super) fn start(&mut self, index: u32, threads: u32, space: &Spaces<'_>) {
        let lanes = (threads - index * 32).min(32);
        self.index = index;
        self.all = if lanes == 32 { u32::MAX } else { (1 << lanes) - 1 };
        self.alive = self.all;
        self.groups.clear();
        self.groups.push(Group { place: 0, mask: self.all, blocked: false });
        self.waiting.clear();
        self.copies = Copies::default();
        let local = space.kernel.local_bytes as usize * 32;
        self.local.resize(local, 0);
        self.local_written.clear();
        self.local_written.resize(local, false);
        // Only the first block of a launch starts with the pattern of registers that nobody wrote: a copy of them all for
        // every warp costs more than many kernels do. Later ones find what the block before left, as on hardware.
        if self.registers.is_empty() {
            self.registers.extend_from_slice(&space.template);
        }
        for (register, init) in self.registers.iter_mut().zip(&space.kernel.registers) {
            if let Init::Special(special) = *init {
                *register = std::array::from_fn(|lane| value_of(special, index, lane as u32, space));
            }
        }
    }

    pub(super) fn who(&self, lane: usize, line: u32, atomic: bool) -> Lane {
        Lane { lane: lane as u32, who: Who { thread: self.index * 32 + lane as u32, line, atomic } }
    }

    fn local_range(&self, at: u64, bytes: usize, lane: u32) -> Result<std::ops::Range<usize>, Fault> {
        let each = self.local.len() as u64 / 32;
        if at.checked_add(bytes as u64).is_none_or(|end| end > each) {
            let detail = format!("{bytes} bytes of local memory, of which a thread has {each}");
            return Err(Fault::at(Kind::OutOfBounds, lane, at, detail));
        }
        if !at.is_multiple_of(bytes as u64) {
            return Err(Fault::at(Kind::Misaligned, lane, at, format!("{bytes} bytes of local memory")));
        }
        let start = (u64::from(lane) * each + at) as usize;
        Ok(start..start + bytes)
    }

    pub(super) fn read_local(&self, at: u64, out: &mut [u8], lane: u32) -> Result<(), Fault> {
        let range = self.local_range(at, out.len(), lane)?;
        if self.local_written[range.clone()].iter().any(|written| !written) {
            return Err(Fault::at(Kind::Uninitialised, lane, at, "local memory that nothing wrote"));
        }
        out.copy_from_slice(&self.local[range]);
        Ok(())
    }

    pub(super) fn write_local(&mut self, at: u64, from: &[u8], lane: u32) -> Result<(), Fault> {
        let range = self.local_range(at, from.len(), lane)?;
        self.local_written[range.clone()].fill(true);
        self.local[range].copy_from_slice(from);
        Ok(())
    }

    /// Merges groups at the same place and gives the index of the one to run: the furthest behind of
    /// those that can, or with `fair` the furthest ahead, so that a lane that spins lets others go on.
    pub(super) fn choose(&mut self, fair: bool) -> Option<usize> {
        if self.groups.len() > 1 {
            self.groups.sort_by_key(|group| group.place);
            let mut merged: Vec<Group> = Vec::with_capacity(self.groups.len());
            for group in self.groups.drain(..) {
                match merged.last_mut() {
                    Some(last) if last.place == group.place => {
                        // Together they may be all that a collective waits for.
                        last.blocked = last.blocked && group.blocked && last.mask & group.mask == group.mask;
                        last.mask |= group.mask;
                    }
                    _ => merged.push(group),
                }
            }
            self.groups = merged;
        }
        let mut able = self.groups.iter().enumerate().filter(|(_, group)| !group.blocked).map(|(index, _)| index);
        if fair { able.next_back() } else { able.next() }
    }

    /// Takes exited lanes away, and lets collectives look again at who is missing.
    pub(super) fn exit(&mut self, mask: u32) {
        self.alive &= !mask;
        self.unblock();
    }

    pub(super) fn unblock(&mut self) {
        for group in &mut self.groups {
            group.blocked = false;
        }
    }
}

fn value_of(special: Special, warp: u32, lane: u32, space: &Spaces<'_>) -> u64 {
    let (block, grid, dynamic) = (space.launch.block, space.launch.grid, space.launch.dynamic_shared_bytes);
    let thread = warp * 32 + lane;
    let value = match special {
        Special::ThreadX => thread % block[0],
        Special::ThreadY => thread / block[0] % block[1],
        Special::ThreadZ => thread / block[0] / block[1],
        Special::ThreadsX => block[0],
        Special::ThreadsY => block[1],
        Special::ThreadsZ => block[2],
        Special::BlockX => space.block[0],
        Special::BlockY => space.block[1],
        Special::BlockZ => space.block[2],
        Special::BlocksX => grid[0],
        Special::BlocksY => grid[1],
        Special::BlocksZ => grid[2],
        Special::Lane => lane,
        Special::Warp => warp,
        Special::Warps => (block[0] * block[1] * block[2]).div_ceil(32),
        Special::LanesEqual => 1 << lane,
        Special::LanesLess => (1 << lane) - 1,
        Special::LanesLessEqual => ((1 << lane) - 1) | (1 << lane),
        Special::LanesGreater => !(((1 << lane) - 1) | (1 << lane)),
        Special::LanesGreaterEqual => !((1 << lane) - 1),
        Special::DynamicSharedBytes => dynamic,
        Special::TotalSharedBytes => space.kernel.shared_bytes as u32 + dynamic,
    };
    u64::from(value)
}
