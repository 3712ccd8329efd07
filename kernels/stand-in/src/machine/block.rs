//! One block: its warps take turns, and its barriers bring them together.
//!
//! A warp runs until all its lanes wait or have exited, or until its turn is over, so that a warp that
//! spins on another's store lets it run. If no warp can go on and threads are left, they wait for each
//! other at different places, or for threads that exited: barrier divergence. Start at [`run`].

use std::time::Instant;

use super::access::Spaces;
use super::step::{Flow, step};
use super::warp::{Group, Waiting, Warp, lanes_of};
use super::{Fault, Launch};
use crate::decode::{BarrierKind, Kernel, Op};
use crate::device::finding::{Finding, Kind};

/// Instructions of one turn of a warp.
const TURN: u32 = 1 << 14;

/// Runs block `block` to its end.
pub(super) fn run(kernel: &Kernel, launch: &Launch, block: [u32; 3], space: &mut Spaces<'_>) -> Result<(), Finding> {
    let threads: u32 = launch.block.iter().product();
    let count = threads.div_ceil(32) as usize;
    space.block = block;
    let bytes = kernel.shared_bytes as usize + launch.dynamic_shared_bytes as usize;
    space.shared.reset(bytes, count);
    // The warps of the block before lend their room.
    let mut warps = std::mem::take(&mut space.warps);
    warps.resize_with(count, Warp::default);
    for (index, warp) in warps.iter_mut().enumerate() {
        warp.start(index as u32, threads, space);
    }
    let mut block = Block { kernel, threads, warps, fair: vec![false; count] };
    while block.warps.iter().any(|warp| warp.alive != 0) {
        let mut moved = false;
        for index in 0..count {
            moved |= block.turn(space, index)?;
            moved |= block.release(space, index);
        }
        if !moved {
            return Err(block.stuck(space));
        }
        if Instant::now() > space.deadline {
            let text = format!("kernel {} ran longer than {} s", kernel.name, launch.seconds_max);
            return Err(Finding::new(Kind::Timeout, text));
        }
    }
    space.warps = block.warps;
    Ok(())
}

struct Block<'a> {
    kernel: &'a Kernel,
    threads: u32,
    warps: Vec<Warp>,
    /// Warps whose last turn ran out: another group goes first in the next.
    fair: Vec<bool>,
}

impl Block<'_> {
    /// Lets a warp run; says whether it did.
    fn turn(&mut self, space: &mut Spaces<'_>, index: usize) -> Result<bool, Finding> {
        let (mut budget, mut moved) = (TURN, false);
        let mut fair = std::mem::take(&mut self.fair[index]);
        while let Some(chosen) = self.warps[index].choose(std::mem::take(&mut fair)) {
            moved = true;
            let warp = &mut self.warps[index];
            let group = warp.groups.swap_remove(chosen);
            let mut place = group.place;
            let done = run_group(self.kernel, space, warp, group, &mut place, &mut budget);
            if let Err(fault) = done {
                return Err(self.finding(space, index, place, fault));
            }
            if budget == 0 {
                self.fair[index] = true;
                break;
            }
        }
        Ok(moved)
    }

    /// Lets go every barrier that the arrival of this warp completed; says whether there was one.
    fn release(&mut self, space: &mut Spaces<'_>, index: usize) -> bool {
        let ids = self.warps[index].waiting.iter().fold(0_u32, |ids, waiting| ids | 1 << waiting.id);
        let mut any = false;
        for id in lanes_of(ids).map(|id| id as u32) {
            if self.is_complete(id) {
                self.let_go(space, id);
                any = true;
            }
        }
        any
    }

    fn is_complete(&self, id: u32) -> bool {
        let (mut arrived, mut first) = (0, None);
        for waiting in self.warps.iter().flat_map(|warp| &warp.waiting).filter(|waiting| waiting.id == id) {
            arrived += waiting.mask.count_ones();
            first.get_or_insert(*waiting);
        }
        let Some(Waiting { place, count, .. }) = first else { return false };
        // A count is in whole warps: a short last warp counts as one.
        let wanted = if count == 0 { self.threads } else { count.min(self.threads) };
        if arrived < wanted {
            return false;
        }
        // The lanes of a warp meet at one instruction, and at a barrier for all so do the warps.
        self.warps.iter().all(|warp| {
            let mut places = warp.waiting.iter().filter(|waiting| waiting.id == id).map(|waiting| waiting.place);
            places.next().is_none_or(|own| (count != 0 || own == place) && places.all(|other| other == own))
        })
    }

    fn let_go(&mut self, space: &mut Spaces<'_>, id: u32) {
        let (mut ballot, mut all, mut met) = (0_u32, true, Vec::new());
        let kernel = self.kernel;
        let value_of = |place: u32| match &kernel.code[place as usize].op {
            Op::Barrier { kind, .. } => *kind,
            _ => BarrierKind::Wait,
        };
        for (index, warp) in self.warps.iter().enumerate() {
            for waiting in warp.waiting.iter().filter(|waiting| waiting.id == id) {
                if value_of(waiting.place) != BarrierKind::Arrive {
                    met.push(index);
                }
                if let BarrierKind::Count { value, negated, .. }
                | BarrierKind::And { value, negated, .. }
                | BarrierKind::Or { value, negated, .. } = value_of(waiting.place)
                {
                    let values = &warp.registers[value as usize];
                    for lane in lanes_of(waiting.mask) {
                        let yes = (values[lane] & 1 == 1) != negated;
                        ballot += u32::from(yes);
                        all &= yes;
                    }
                }
            }
        }
        met.dedup();
        space.shared.meet(id, &met);
        for warp in &mut self.warps {
            let (done, rest): (Vec<_>, Vec<_>) = warp.waiting.drain(..).partition(|waiting| waiting.id == id);
            warp.waiting = rest;
            for Waiting { place, mask, .. } in done {
                let outcome = match value_of(place) {
                    BarrierKind::Arrive => continue,
                    BarrierKind::Wait => None,
                    BarrierKind::Count { result, .. } => Some((result, u64::from(ballot))),
                    BarrierKind::And { result, .. } => Some((result, u64::from(all))),
                    BarrierKind::Or { result, .. } => Some((result, u64::from(ballot != 0))),
                };
                if let Some((result, value)) = outcome {
                    lanes_of(mask).for_each(|lane| warp.registers[result as usize][lane] = value);
                }
                warp.groups.push(Group { place: place + 1, mask, blocked: false });
            }
        }
    }

    /// Nobody can go on: says who waits where.
    fn stuck(&self, space: &Spaces<'_>) -> Finding {
        let alive: u32 = self.warps.iter().map(|warp| warp.alive.count_ones()).sum();
        let line = |place: u32| self.kernel.code[place as usize].line;
        let mut places: Vec<(u32, String, u32)> = Vec::new();
        for warp in &self.warps {
            let barriers = warp.waiting.iter().map(|waiting| {
                (waiting.place, format!("at barrier {} on line {}", waiting.id, line(waiting.place)), waiting.mask)
            });
            let collectives = warp
                .groups
                .iter()
                .map(|group| (group.place, format!("for lanes at line {}", line(group.place)), group.mask));
            for (place, what, mask) in barriers.chain(collectives) {
                match places.iter_mut().find(|entry| entry.0 == place) {
                    Some(entry) => entry.2 += mask.count_ones(),
                    None => places.push((place, what, mask.count_ones())),
                }
            }
        }
        let waits = places.iter().map(|(_, what, count)| format!("{count} threads wait {what}"));
        let exited = self.threads - alive;
        let text = format!(
            "kernel {}, block {:?}: {}, {exited} of {} threads have exited",
            self.kernel.name,
            space.block,
            waits.collect::<Vec<_>>().join(", "),
            self.threads
        );
        let only_collectives = self.warps.iter().all(|warp| warp.waiting.is_empty());
        Finding::new(if only_collectives { Kind::WarpDivergence } else { Kind::BarrierDivergence }, text)
    }

    fn finding(&self, space: &Spaces<'_>, warp: usize, place: u32, fault: Fault) -> Finding {
        let [x, y, _] = space.launch.block;
        let thread = warp as u32 * 32 + fault.lane;
        let at = fault.address.map(|address| format!(", address {address:#x}")).unwrap_or_default();
        let text = format!(
            "kernel {}, PTX line {}, block {:?}, thread {:?}{at}: {}",
            self.kernel.name,
            self.kernel.code[place as usize].line,
            space.block,
            [thread % x, thread / x % y, thread / x / y],
            fault.detail
        );
        Finding::new(fault.kind, text)
    }
}

/// Runs one group until it meets another, splits, waits or its budget ends.
fn run_group(
    kernel: &Kernel,
    space: &mut Spaces<'_>,
    warp: &mut Warp,
    group: Group,
    place: &mut u32,
    budget: &mut u32,
) -> Result<(), Fault> {
    let mask = group.mask;
    let ahead = warp.groups.iter().map(|other| other.place).filter(|other| *other > group.place).min();
    let limit = ahead.unwrap_or(u32::MAX);
    let put = |warp: &mut Warp, place: u32, mask: u32, blocked: bool| {
        if mask != 0 {
            warp.groups.push(Group { place, mask, blocked });
        }
    };
    loop {
        let inst = &kernel.code[*place as usize];
        *budget = budget.saturating_sub(1);
        match step(space, warp, inst, *place, mask)? {
            Flow::Next => *place += 1,
            Flow::Jump(target) => *place = target,
            Flow::Split(places) => {
                let mut rest = mask;
                for (target, lanes) in places {
                    rest &= !lanes;
                    put(warp, target, lanes, false);
                }
                put(warp, *place + 1, rest, false);
                return Ok(());
            }
            Flow::Leave(lanes) => {
                put(warp, *place + 1, mask & !lanes, false);
                return Ok(());
            }
            Flow::Block(lanes) => {
                put(warp, *place, lanes, true);
                put(warp, *place + 1, mask & !lanes, false);
                return Ok(());
            }
        }
        let meets =
            !warp.groups.is_empty() && (*place >= limit || warp.groups.iter().any(|other| other.place == *place));
        if *budget == 0 || meets {
            put(warp, *place, mask, false);
            return Ok(());
        }
    }
}
