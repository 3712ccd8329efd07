//! Shared memory of a block: bytes, whether they were written, and who touched them last.
//!
//! Races are found by clocks, not by luck of the schedule. Each warp has an epoch that grows at every
//! barrier it passes; a stamp on each byte says which thread touched it in which epoch of its warp,
//! and a barrier tells its warps each other's epochs. An access races with a stamp of another thread
//! whose epoch its own warp was not told, if one of the two writes and they are not both atomic.
//! `bar.warp.sync` orders a whole warp, even if its mask names only some of it. Two readers are kept
//! a byte, the latest and the latest of another thread. Start at [`Shared::read`].

use super::Fault;
use crate::device::allocation::copy_bytes;
use crate::device::finding::Kind;

/// Epoch in the upper half, then 20 bits of line, 10 of thread, one for atomics; 0 is nobody.
type Stamp = u64;

fn stamp(epoch: u32, line: u32, thread: u32, atomic: bool) -> Stamp {
    u64::from(epoch) << 32 | u64::from(line & 0xf_ffff) << 12 | u64::from(thread) << 2 | u64::from(atomic)
}

fn thread_of(stamp: Stamp) -> u32 {
    (stamp >> 2) as u32 & 0x3ff
}

const WRITTEN: u8 = 1;
const PENDING: u8 = 2;

/// Who accesses, and how.
#[derive(Clone, Copy, Debug)]
pub(super) struct Who {
    /// Number of the thread in its block.
    pub(super) thread: u32,
    pub(super) line: u32,
    /// Atomics and relaxed or volatile accesses do not race with each other.
    pub(super) atomic: bool,
}

#[derive(Debug, Default)]
pub(super) struct Shared {
    data: Vec<u8>,
    state: Vec<u8>,
    writer: Vec<Stamp>,
    reader: Vec<Stamp>,
    other_reader: Vec<Stamp>,
    /// The epoch of each warp.
    epoch: Vec<u32>,
    /// `seen[w * warps + v]`: the epoch of warp v that warp w was told.
    seen: Vec<u32>,
    warps: usize,
    /// What warps knew when they arrived at a barrier without waiting: (barrier, epochs).
    arrived: Vec<(u32, Vec<u32>)>,
}

impl Shared {
    /// As it is when a block starts.
    pub(super) fn reset(&mut self, bytes: usize, warps: usize) {
        fn fill<T: Clone>(all: &mut Vec<T>, count: usize, value: T) {
            all.clear();
            all.resize(count, value);
        }
        fill(&mut self.data, bytes, 0);
        fill(&mut self.state, bytes, 0);
        fill(&mut self.writer, bytes, 0);
        fill(&mut self.reader, bytes, 0);
        fill(&mut self.other_reader, bytes, 0);
        fill(&mut self.epoch, warps, 1);
        fill(&mut self.seen, warps * warps, 0);
        self.warps = warps;
        self.arrived.clear();
    }

    fn row(&self, warp: usize) -> std::ops::Range<usize> {
        warp * self.warps..(warp + 1) * self.warps
    }

    /// A warp arrives at a barrier and goes on: it tells what it did before, and is told nothing.
    pub(super) fn arrive(&mut self, id: u32, warp: usize) {
        self.meet_lanes(warp);
        self.arrived.push((id, self.seen[self.row(warp)].to_vec()));
    }

    /// A barrier completes: what these warps and those that arrived knew, these warps know from now on.
    pub(super) fn meet(&mut self, id: u32, warps: &[usize]) {
        let mut told = vec![0; self.warps];
        let mut tell = |row: &[u32]| told.iter_mut().zip(row).for_each(|(told, epoch)| *told = (*told).max(*epoch));
        for &warp in warps {
            self.meet_lanes(warp);
            tell(&self.seen[self.row(warp)]);
        }
        self.arrived.iter().filter(|(arrived, _)| *arrived == id).for_each(|(_, row)| tell(row));
        self.arrived.retain(|(arrived, _)| *arrived != id);
        for &warp in warps {
            let row = self.row(warp);
            self.seen[row].copy_from_slice(&told);
        }
    }

    /// A barrier for the lanes of one warp.
    pub(super) fn meet_lanes(&mut self, warp: usize) {
        self.epoch[warp] += 1;
        self.seen[warp * self.warps + warp] = self.epoch[warp];
    }

    #[inline]
    fn ordered(&self, before: Stamp, who: Who) -> bool {
        let thread = thread_of(before);
        if before == 0 || thread == who.thread {
            return true;
        }
        let (mine, theirs) = (who.thread as usize / 32, thread as usize / 32);
        ((before >> 32) as u32) < self.seen[mine * self.warps + theirs] || before & 1 == 1 && who.atomic
    }

    fn race(&self, at: usize, before: Stamp, wrote: bool, writes: bool, who: Who) -> Fault {
        let verb = |writes| if writes { "writes" } else { "reads" };
        let detail = format!(
            "{} shared byte {at}, which thread {} {} at line {} with no barrier between",
            verb(writes),
            thread_of(before),
            verb(wrote),
            before >> 12 & 0xf_ffff
        );
        Fault::at(Kind::Race, who.thread % 32, at as u64, detail)
    }

    fn range(&self, address: u64, bytes: usize, who: Who) -> Result<std::ops::Range<usize>, Fault> {
        let lane = who.thread % 32;
        if address.checked_add(bytes as u64).is_none_or(|end| end > self.data.len() as u64) {
            let detail = format!("{bytes} bytes of shared memory, of which the block has {}", self.data.len());
            return Err(Fault::at(Kind::OutOfBounds, lane, address, detail));
        }
        if !address.is_multiple_of(bytes as u64) {
            return Err(Fault::at(Kind::Misaligned, lane, address, format!("{bytes} bytes of shared memory")));
        }
        Ok(address as usize..address as usize + bytes)
    }

    fn not_pending(&self, range: &std::ops::Range<usize>, who: Who) -> Result<(), Fault> {
        match range.clone().find(|at| self.state[*at] & PENDING != 0) {
            Some(at) => {
                let detail = "shared memory that an asynchronous copy is still writing";
                Err(Fault::at(Kind::PendingCopy, who.thread % 32, at as u64, detail))
            }
            None => Ok(()),
        }
    }

    fn check_writer(&self, range: &std::ops::Range<usize>, who: Who, writes: bool) -> Result<(), Fault> {
        let mut last = 0;
        for at in range.clone() {
            let before = self.writer[at];
            if before != last && !self.ordered(before, who) {
                return Err(self.race(at, before, true, writes, who));
            }
            last = before;
        }
        Ok(())
    }

    /// Reads into `out`.
    pub(super) fn read(&mut self, address: u64, out: &mut [u8], who: Who) -> Result<(), Fault> {
        let range = self.range(address, out.len(), who)?;
        if self.state[range.clone()].iter().any(|state| *state != WRITTEN) {
            self.not_pending(&range, who)?;
            let detail = format!("{} bytes of shared memory that nothing wrote", out.len());
            return Err(Fault::at(Kind::Uninitialised, who.thread % 32, address, detail));
        }
        self.check_writer(&range, who, false)?;
        let mine = stamp(self.epoch[who.thread as usize / 32], who.line, who.thread, who.atomic);
        for at in range.clone() {
            let before = self.reader[at];
            if thread_of(before) != who.thread {
                self.other_reader[at] = before;
            }
            self.reader[at] = mine;
        }
        copy_bytes(out, &self.data[range]);
        Ok(())
    }

    fn claim(&mut self, range: &std::ops::Range<usize>, who: Who) -> Result<(), Fault> {
        self.check_writer(range, who, true)?;
        let (mut last, mut last_other) = (0, 0);
        for at in range.clone() {
            let (before, other) = (self.reader[at], self.other_reader[at]);
            if before != last && !self.ordered(before, who) {
                return Err(self.race(at, before, false, true, who));
            }
            if other != last_other && !self.ordered(other, who) {
                return Err(self.race(at, other, false, true, who));
            }
            (last, last_other) = (before, other);
        }
        let mine = stamp(self.epoch[who.thread as usize / 32], who.line, who.thread, who.atomic);
        self.writer[range.clone()].fill(mine);
        self.reader[range.clone()].fill(0);
        self.other_reader[range.clone()].fill(0);
        Ok(())
    }

    /// Writes `from`.
    pub(super) fn write(&mut self, address: u64, from: &[u8], who: Who) -> Result<(), Fault> {
        let range = self.range(address, from.len(), who)?;
        if self.state[range.clone()].iter().any(|state| state & PENDING != 0) {
            self.not_pending(&range, who)?;
        }
        self.claim(&range, who)?;
        self.state[range.clone()].fill(WRITTEN);
        copy_bytes(&mut self.data[range], from);
        Ok(())
    }

    /// An asynchronous copy begins: its bytes belong to nobody until it ends.
    pub(super) fn begin_copy(&mut self, address: u64, bytes: usize, who: Who) -> Result<(), Fault> {
        let range = self.range(address, bytes, who)?;
        self.not_pending(&range, who)?;
        self.claim(&range, who)?;
        self.state[range].iter_mut().for_each(|state| *state |= PENDING);
        Ok(())
    }

    /// It ends, because its thread waited: now it is a write of that thread.
    pub(super) fn end_copy(&mut self, address: u64, from: &[u8], who: Who) -> Result<(), Fault> {
        let range = self.range(address, from.len(), who)?;
        self.state[range].fill(WRITTEN);
        self.write(address, from, who)
    }
}
