//! Collectives of a warp: each set of lanes that one mask names executes once all of it is there.
//!
//! Lanes with different masks in one instruction (tiles of a warp) are different sets. A lane that is
//! not in its own mask, a shuffle from a lane that takes no part, and a mask that names an exited lane
//! are findings, because hardware leaves their results open. Start at [`together`].

use super::access::Spaces;
use super::warp::{Warp, lanes_of};
use super::{Fault, atomic, matrix};
use crate::decode::{Reg, ShuffleMode, Together, VoteMode};
use crate::device::finding::Kind;

/// Executes `what` for every complete set of lanes in `present`; gives the lanes that must wait.
pub(super) fn together(
    space: &mut Spaces<'_>,
    warp: &mut Warp,
    what: &Together,
    named: Option<Reg>,
    present: u32,
    line: u32,
) -> Result<u32, Fault> {
    let (mut left, mut waiting) = (present, 0);
    while left != 0 {
        let first = left.trailing_zeros();
        let mask = named.map_or(warp.all, |reg| warp.registers[reg as usize][first as usize] as u32);
        let set = match named {
            None => present,
            Some(reg) => lanes_of(left)
                .filter(|lane| warp.registers[reg as usize][*lane] as u32 == mask)
                .fold(0, |set, lane| set | 1 << lane),
        };
        left &= !set;
        if set & !mask != 0 {
            let lane = (set & !mask).trailing_zeros();
            return Err(Fault::new(
                Kind::WarpDivergence,
                lane,
                format!("the mask {mask:#010x} does not name this lane"),
            ));
        }
        // A mask may name lanes that a short last warp does not have.
        let gone = mask & warp.all & !warp.alive;
        if gone != 0 {
            let detail = format!("the mask {mask:#010x} names lanes {gone:#010x}, which have exited");
            return Err(Fault::new(Kind::WarpDivergence, first, detail));
        }
        if mask & warp.all & !set != 0 {
            waiting |= set;
            continue;
        }
        execute(space, warp, what, set, line)?;
    }
    Ok(waiting)
}

fn execute(space: &mut Spaces<'_>, warp: &mut Warp, what: &Together, set: u32, line: u32) -> Result<(), Fault> {
    match what {
        Together::Sync => space.shared.meet_lanes(warp.index as usize),
        Together::Shuffle { .. } => return shuffle(warp, what, set),
        Together::Vote { mode, result, value, negated } => vote(warp, *mode, *result, (*value, *negated), set),
        Together::MatchAny { result, value } => {
            let values = warp.registers[*value as usize];
            for lane in lanes_of(set) {
                let same = lanes_of(set).filter(|other| values[*other] == values[lane]);
                warp.registers[*result as usize][lane] = same.fold(0, |mask, other| mask | 1 << other);
            }
        }
        Together::MatchAll { result, same, value } => {
            let values = warp.registers[*value as usize];
            let equal = lanes_of(set).all(|lane| values[lane] == values[set.trailing_zeros() as usize]);
            for lane in lanes_of(set) {
                warp.registers[*result as usize][lane] = if equal { u64::from(set) } else { 0 };
                warp.registers[*same as usize][lane] = u64::from(equal);
            }
        }
        Together::Reduce { op, kind, result, value } => {
            let values = warp.registers[*value as usize];
            let folded = lanes_of(set).map(|lane| values[lane]).reduce(|a, b| atomic::combine(*op, *kind, a, b));
            for lane in lanes_of(set) {
                warp.registers[*result as usize][lane] = folded.unwrap_or(0);
            }
        }
        Together::LoadMatrix { .. }
        | Together::StoreMatrix { .. }
        | Together::MoveMatrix { .. }
        | Together::Multiply(_)
            if set != u32::MAX =>
        {
            let detail = format!("a matrix instruction needs all 32 lanes, got {set:#010x}");
            return Err(Fault::new(Kind::WarpDivergence, set.trailing_zeros(), detail));
        }
        Together::LoadMatrix { transposed, registers, address, offset } => {
            return matrix::load(space, warp, (registers, *address, *offset), *transposed, line);
        }
        Together::StoreMatrix { transposed, registers, address, offset } => {
            return matrix::store(space, warp, (registers, *address, *offset), *transposed, line);
        }
        Together::MoveMatrix { result, value } => matrix::transpose(warp, *result, *value),
        Together::Multiply(multiply) => matrix::multiply(warp, multiply),
    }
    Ok(())
}

/// `shfl.sync`: PTX ISA, section of `shfl.sync`; `clamp` holds the segment mask in its bits 8 to 12.
fn shuffle(warp: &mut Warp, what: &Together, set: u32) -> Result<(), Fault> {
    let Together::Shuffle { mode, result, valid, value, lane, clamp } = what else { return Ok(()) };
    let (values, by, clamps) =
        (warp.registers[*value as usize], warp.registers[*lane as usize], warp.registers[*clamp as usize]);
    for own in lanes_of(set) {
        let (by, clamp) = (by[own] as i32 & 31, clamps[own] as i32 & 31);
        let segment = (clamps[own] >> 8) as i32 & 31;
        let me = own as i32;
        let last = me & segment | clamp & !segment;
        let first = me & segment;
        let (source, inside) = match mode {
            ShuffleMode::Up => (me - by, me - by >= last),
            ShuffleMode::Down => (me + by, me + by <= last),
            ShuffleMode::Butterfly => (me ^ by, (me ^ by) <= last),
            ShuffleMode::Index => (first | by & !segment, (first | by & !segment) <= last),
        };
        let source = if inside { source } else { me };
        // A lane behind the end of a short warp reads as what a register starts with.
        if set >> source & 1 == 0 && warp.all >> source & 1 == 1 {
            let detail = format!("a shuffle reads lane {source}, which takes no part (lanes {set:#010x})");
            return Err(Fault::new(Kind::WarpDivergence, own as u32, detail));
        }
        warp.registers[*result as usize][own] = values[source as usize] & 0xffff_ffff;
        warp.registers[*valid as usize][own] = u64::from(inside);
    }
    Ok(())
}

fn vote(warp: &mut Warp, mode: VoteMode, result: Reg, (value, negated): (Reg, bool), set: u32) {
    let values = warp.registers[value as usize];
    let ballot =
        lanes_of(set).filter(|lane| (values[*lane] & 1 == 1) != negated).fold(0_u32, |ballot, lane| ballot | 1 << lane);
    let out = match mode {
        VoteMode::All => u64::from(ballot == set),
        VoteMode::Any => u64::from(ballot != 0),
        VoteMode::Uniform => u64::from(ballot == set || ballot == 0),
        VoteMode::Ballot => u64::from(ballot),
    };
    for lane in lanes_of(set) {
        warp.registers[result as usize][lane] = out;
    }
}
