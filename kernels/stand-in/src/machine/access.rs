//! All state spaces that a lane can address, and the checks on every access.
//!
//! An access is checked for its whole size at once: bounds, alignment, then whether the bytes were
//! written. Generic addresses find their space by window. Start at [`Spaces::read`].

use std::sync::Arc;
use std::time::Instant;

use super::shared::{Shared, Who};
use super::warp::Warp;
use super::{Fault, LOCAL_WINDOW, Launch, SHARED_WINDOW, WINDOW_BYTES, Work};
use crate::decode::lanes::Lanes;
use crate::decode::{Access, Kernel, Where};
use crate::device::allocation::{Allocation, Refusal};
use crate::device::finding::Kind;
use crate::device::memory::Memory;

/// Everything outside a warp's registers.
pub(super) struct Spaces<'a> {
    pub(super) kernel: &'a Kernel,
    pub(super) launch: &'a Launch,
    pub(super) shared: Shared,
    pub(super) block: [u32; 3],
    pub(super) clock: u64,
    pub(super) deadline: Instant,
    pub(super) work: Work,
    /// Warps of the last block, for their room.
    pub(super) warps: Vec<Warp>,
    /// Registers as a warp starts with them, special ones aside.
    pub(super) template: Vec<Lanes>,
    memory: Memory,
    /// The allocation that was hit last: neighbouring lanes and instructions tend to hit it again.
    last: Option<Arc<Allocation>>,
}

/// A lane with what findings need to know of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lane {
    pub(super) lane: u32,
    pub(super) who: Who,
}

/// The space of a generic address, and the address inside it.
pub(super) fn resolve(space: Where, address: u64) -> (Where, u64) {
    if space != Where::Generic {
        return (space, address);
    }
    if address.wrapping_sub(SHARED_WINDOW) < WINDOW_BYTES {
        (Where::Shared, address - SHARED_WINDOW)
    } else if address.wrapping_sub(LOCAL_WINDOW) < WINDOW_BYTES {
        (Where::Local, address - LOCAL_WINDOW)
    } else {
        (Where::Global, address)
    }
}

impl<'a> Spaces<'a> {
    pub(super) fn new(kernel: &'a Kernel, launch: &'a Launch, memory: Memory, deadline: Instant) -> Self {
        Self {
            kernel,
            launch,
            shared: Shared::default(),
            block: [0; 3],
            clock: 0,
            deadline,
            work: Work::default(),
            warps: Vec::new(),
            template: super::warp::template(kernel),
            memory,
            last: None,
        }
    }

    /// The allocation that holds the range, which must be aligned to its size.
    fn global(&mut self, address: u64, bytes: usize, lane: u32) -> Result<&Allocation, Fault> {
        if !address.is_multiple_of(bytes as u64) {
            return Err(Fault::at(Kind::Misaligned, lane, address, format!("{bytes} bytes of global memory")));
        }
        if !self.last.as_ref().is_some_and(|last| last.contains(address, bytes as u64)) {
            let found = self.memory.holding(address, bytes as u64).cloned();
            if found.is_none() {
                let kind = if self.memory.was_freed(address) { Kind::UseAfterFree } else { Kind::OutOfBounds };
                let around = self.memory.describe(address, bytes as u64);
                return Err(Fault::at(kind, lane, address, format!("{bytes} bytes of global memory: {around}")));
            }
            self.last = found;
        }
        match &self.last {
            Some(last) => Ok(last),
            None => Err(Fault::at(Kind::OutOfBounds, lane, address, "no memory")),
        }
    }

    /// Reads for one lane.
    pub(super) fn read(
        &mut self,
        warp: &Warp,
        lane: Lane,
        space: Where,
        address: u64,
        out: &mut [u8],
    ) -> Result<(), Fault> {
        match resolve(space, address) {
            (Where::Shared, at) => self.shared.read(at, out, lane.who),
            (Where::Local, at) => warp.read_local(at, out, lane.lane),
            (Where::Param, at) => self.read_param(at, out, lane.lane),
            (_, at) => {
                let bytes = out.len();
                self.global(at, bytes, lane.lane)?.read(at, out).map_err(|refusal| refused(refusal, at, lane.lane))
            }
        }
    }

    fn read_param(&self, at: u64, out: &mut [u8], lane: u32) -> Result<(), Fault> {
        let have = self.launch.params.len() as u64;
        let bytes = out.len() as u64;
        if at.checked_add(bytes).is_none_or(|end| end > have) {
            let detail = format!("{bytes} bytes of {have} bytes of parameters");
            return Err(Fault::at(Kind::OutOfBounds, lane, at, detail));
        }
        if !at.is_multiple_of(bytes) {
            return Err(Fault::at(Kind::Misaligned, lane, at, format!("{bytes} bytes of parameters")));
        }
        out.copy_from_slice(&self.launch.params[at as usize..at as usize + out.len()]);
        Ok(())
    }

    /// Writes for one lane.
    pub(super) fn write(
        &mut self,
        warp: &mut Warp,
        lane: Lane,
        space: Where,
        address: u64,
        from: &[u8],
    ) -> Result<(), Fault> {
        match resolve(space, address) {
            (Where::Shared, at) => self.shared.write(at, from, lane.who),
            (Where::Local, at) => warp.write_local(at, from, lane.lane),
            (Where::Const | Where::Param, at) => {
                Err(Fault::at(Kind::ReadOnly, lane.lane, at, "a write to constants or parameters"))
            }
            (_, at) => self
                .global(at, from.len(), lane.lane)?
                .write(at, from)
                .map_err(|refusal| refused(refusal, at, lane.lane)),
        }
    }

    /// `ld` for the lanes of `mask`.
    pub(super) fn load(&mut self, warp: &mut Warp, access: &Access, mask: u32, line: u32) -> Result<(), Fault> {
        let each = access.bytes as usize;
        let bytes = each * access.registers.len();
        for lane in super::warp::lanes_of(mask) {
            let address = warp.registers[access.address as usize][lane].wrapping_add_signed(access.offset);
            let mut buffer = [0; 16];
            let who = warp.who(lane, line, access.strong);
            self.read(warp, who, access.space, address, &mut buffer[..bytes])?;
            for (index, register) in access.registers.iter().enumerate() {
                let mut element = [0; 8];
                element[..each].copy_from_slice(&buffer[index * each..(index + 1) * each]);
                let mut value = u64::from_le_bytes(element);
                if access.sign_to != 0 {
                    let unused = 64 - 8 * access.bytes;
                    value = ((value << unused) as i64 >> unused) as u64 & (u64::MAX >> (64 - access.sign_to));
                }
                warp.registers[*register as usize][lane] = value;
            }
        }
        Ok(())
    }

    /// `st` for the lanes of `mask`.
    pub(super) fn store(&mut self, warp: &mut Warp, access: &Access, mask: u32, line: u32) -> Result<(), Fault> {
        let each = access.bytes as usize;
        let bytes = each * access.registers.len();
        for lane in super::warp::lanes_of(mask) {
            let address = warp.registers[access.address as usize][lane].wrapping_add_signed(access.offset);
            let mut buffer = [0; 16];
            for (index, register) in access.registers.iter().enumerate() {
                let value = warp.registers[*register as usize][lane].to_le_bytes();
                buffer[index * each..(index + 1) * each].copy_from_slice(&value[..each]);
            }
            let who = warp.who(lane, line, access.strong);
            self.write(warp, who, access.space, address, &buffer[..bytes])?;
        }
        Ok(())
    }
}

fn refused(refusal: Refusal, address: u64, lane: u32) -> Fault {
    match refusal {
        Refusal::Uninitialised(at) => {
            let detail = format!("global memory that nothing wrote, first at {at:#x}");
            Fault::at(Kind::Uninitialised, lane, address, detail)
        }
        Refusal::ReadOnly => Fault::at(Kind::ReadOnly, lane, address, "a write to a constant"),
    }
}
