//! Asynchronous copies from global to shared memory (`cp.async`) and their groups.
//!
//! The source is read and checked when the copy is issued; the bytes arrive only when the thread that
//! issued it waits for its group. Until then an access to them by anyone is a finding, and afterwards
//! other threads need a barrier, as after any write. Start at [`issue`].

use super::Fault;
use super::access::{Spaces, resolve};
use super::warp::{Warp, lanes_of};
use crate::decode::{CopyAsync, Where};
use crate::device::finding::Kind;

#[derive(Clone, Copy, Debug)]
struct Pending {
    lane: u32,
    /// Number of its group among those of its thread.
    group: u32,
    to: u64,
    bytes: [u8; 16],
    size: u32,
    line: u32,
}

/// Copies under way, of all lanes of a warp.
#[derive(Clone, Debug, Default)]
pub(super) struct Copies {
    pending: Vec<Pending>,
    /// Groups that each lane has closed.
    closed: [u32; 32],
}

/// `cp.async` for the lanes of `mask`.
pub(super) fn issue(
    space: &mut Spaces<'_>,
    warp: &mut Warp,
    copy: &CopyAsync,
    mask: u32,
    line: u32,
) -> Result<(), Fault> {
    for lane in lanes_of(mask) {
        let register = |reg: u32| warp.registers[reg as usize][lane];
        let to = register(copy.to).wrapping_add_signed(copy.to_offset);
        let from = register(copy.from).wrapping_add_signed(copy.from_offset);
        let source = copy.source_bytes.map_or(copy.bytes, |reg| register(reg) as u32);
        let who = warp.who(lane, line, false);
        if source > copy.bytes {
            let detail = format!("an asynchronous copy of {} bytes from {source} bytes", copy.bytes);
            return Err(Fault::new(Kind::OutOfBounds, lane as u32, detail));
        }
        let mut bytes = [0; 16];
        if from % u64::from(copy.bytes) != 0 {
            let detail = format!("{} bytes of global memory, copied asynchronously", copy.bytes);
            return Err(Fault::at(Kind::Misaligned, lane as u32, from, detail));
        }
        // A part of the source may end anywhere, so it is read in pieces that are aligned.
        let mut at = 0;
        while at < source {
            let piece = [16, 8, 4, 2, 1].into_iter().find(|piece| at % piece == 0 && at + piece <= source).unwrap_or(1);
            let range = at as usize..(at + piece) as usize;
            space.read(warp, who, Where::Global, from + u64::from(at), &mut bytes[range])?;
            at += piece;
        }
        let to = match resolve(Where::Shared, to) {
            (_, at) if at >= super::SHARED_WINDOW => at - super::SHARED_WINDOW,
            (_, at) => at,
        };
        space.shared.begin_copy(to, copy.bytes as usize, who.who)?;
        let group = warp.copies.closed[lane];
        warp.copies.pending.push(Pending { lane: lane as u32, group, to, bytes, size: copy.bytes, line });
    }
    Ok(())
}

/// `cp.async.commit_group`.
pub(super) fn commit(warp: &mut Warp, mask: u32) {
    for lane in lanes_of(mask) {
        warp.copies.closed[lane] += 1;
    }
}

/// Ends the copies of all groups but the `keep` latest; with `None` of everything, closed or not.
pub(super) fn wait(space: &mut Spaces<'_>, warp: &mut Warp, keep: Option<u32>, mask: u32) -> Result<(), Fault> {
    let pending = std::mem::take(&mut warp.copies.pending);
    for copy in pending {
        let ends = mask >> copy.lane & 1 == 1
            && keep.is_none_or(|keep| copy.group + keep < warp.copies.closed[copy.lane as usize]);
        if ends {
            let who = warp.who(copy.lane as usize, copy.line, false).who;
            space.shared.end_copy(copy.to, &copy.bytes[..copy.size as usize], who)?;
        } else {
            warp.copies.pending.push(copy);
        }
    }
    Ok(())
}
