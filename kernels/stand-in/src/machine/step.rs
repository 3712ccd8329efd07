//! One instruction for the lanes of one group.
//!
//! [`step`] says where the lanes are afterwards; everything that only changes registers or memory is
//! in [`execute`]. Values of all lanes are copied out before a result is written, so that a result may
//! be a source. Barriers and collectives that must wait are only announced here; `block.rs` waits.

use super::access::{Spaces, resolve};
use super::warp::{Waiting, Warp, lanes_of};
use super::{Fault, atomic, copies, together};
use crate::decode::lanes::Lanes;
use crate::decode::{BarrierKind, Carry, Inst, Op};
use crate::device::finding::Kind;

/// Where the lanes of the group are after an instruction.
pub(super) enum Flow {
    /// All of them at the next instruction.
    Next,
    /// All of them at this one.
    Jump(u32),
    /// These lanes at that place, the others at the next instruction.
    Split(Vec<(u32, u32)>),
    /// These lanes have left their group: they exited or wait at a barrier.
    Leave(u32),
    /// These lanes stay, waiting for others; the rest goes on.
    Block(u32),
}

/// Lanes of `mask` that the guard lets execute.
#[inline]
fn guarded(warp: &Warp, inst: &Inst, mask: u32) -> u32 {
    if !inst.guarded {
        return mask;
    }
    let guard = &warp.registers[inst.guard as usize];
    let mut set = 0_u32;
    for (lane, value) in guard.iter().enumerate() {
        set |= ((value & 1) as u32) << lane;
    }
    mask & if inst.negated { !set } else { set }
}

/// Executes the instruction at `place` for the lanes of `group`.
#[inline]
pub(super) fn step(
    space: &mut Spaces<'_>,
    warp: &mut Warp,
    inst: &Inst,
    place: u32,
    group: u32,
) -> Result<Flow, Fault> {
    let mask = guarded(warp, inst, group);
    space.work.thread_instructions += u64::from(mask.count_ones());
    space.clock += 1;
    if mask == 0 {
        return Ok(Flow::Next);
    }
    Ok(match &inst.op {
        Op::Branch(target) if mask == group => Flow::Jump(*target),
        Op::Branch(target) => Flow::Split(vec![(*target, mask)]),
        Op::Switch { index, targets } => {
            let mut places: Vec<(u32, u32)> = Vec::new();
            for lane in lanes_of(mask) {
                let choice = warp.registers[*index as usize][lane] as u32;
                let Some(target) = targets.get(choice as usize) else {
                    let detail = format!("a branch table of {} places, index {choice}", targets.len());
                    return Err(Fault::new(Kind::OutOfBounds, lane as u32, detail));
                };
                match places.iter_mut().find(|(have, _)| have == target) {
                    Some((_, lanes)) => *lanes |= 1 << lane,
                    None => places.push((*target, 1 << lane)),
                }
            }
            Flow::Split(places)
        }
        Op::Exit => {
            warp.exit(mask);
            Flow::Leave(mask)
        }
        Op::Trap => return Err(Fault::new(Kind::Trap, mask.trailing_zeros(), "the kernel trapped")),
        Op::Barrier { kind, id, count, .. } => barrier(space, warp, *kind, (*id, *count), place, mask)?,
        Op::Together(what, named) => {
            let left = together::together(space, warp, what, *named, mask, inst.line)?;
            if left == 0 { Flow::Next } else { Flow::Block(left) }
        }
        op => {
            execute(space, warp, op, mask, inst.line)?;
            Flow::Next
        }
    })
}

fn barrier(
    space: &mut Spaces<'_>,
    warp: &mut Warp,
    kind: BarrierKind,
    (id, count): (u32, Option<u32>),
    place: u32,
    mask: u32,
) -> Result<Flow, Fault> {
    let first = mask.trailing_zeros();
    let value = |reg: u32| warp.registers[reg as usize][first as usize] as u32;
    let (id_value, count_value) = (value(id), count.map_or(0, value));
    let same = |reg: u32, wanted: u32| lanes_of(mask).all(|lane| warp.registers[reg as usize][lane] as u32 == wanted);
    if !same(id, id_value) || count.is_some_and(|count| !same(count, count_value)) {
        let detail = "lanes of a warp name different barriers or counts in one instruction";
        return Err(Fault::new(Kind::BarrierDivergence, first, detail));
    }
    if id_value > 15 || count.is_some() && (count_value == 0 || count_value % 32 != 0) {
        let detail =
            format!("barrier {id_value} with count {count_value}: 0 to 15, and a multiple of 32, are accepted");
        return Err(Fault::new(Kind::BarrierDivergence, first, detail));
    }
    warp.waiting.push(Waiting { place, mask, id: id_value, count: count_value });
    if kind != BarrierKind::Arrive {
        return Ok(Flow::Leave(mask));
    }
    // Who only arrives goes on at once; the entry stays until the barrier is complete.
    space.shared.arrive(id_value, warp.index as usize);
    Ok(Flow::Next)
}

#[inline]
fn lanes(warp: &Warp, register: u32) -> Lanes {
    warp.registers[register as usize]
}

/// Executes what neither moves lanes nor makes them wait.
#[inline]
fn execute(space: &mut Spaces<'_>, warp: &mut Warp, op: &Op, mask: u32, line: u32) -> Result<(), Fault> {
    match op {
        Op::One(function, d, a) => {
            let a = lanes(warp, *a);
            function(&mut warp.registers[*d as usize], &a, mask);
        }
        Op::Two(function, d, [a, b]) => {
            let (a, b) = (lanes(warp, *a), lanes(warp, *b));
            function(&mut warp.registers[*d as usize], &a, &b, mask);
        }
        Op::Three(function, d, [a, b, c]) => {
            let (a, b, c) = (lanes(warp, *a), lanes(warp, *b), lanes(warp, *c));
            function(&mut warp.registers[*d as usize], &a, &b, &c, mask);
        }
        Op::Four(function, d, [a, b, c, e]) => {
            let (a, b, c, e) = (lanes(warp, *a), lanes(warp, *b), lanes(warp, *c), lanes(warp, *e));
            function(&mut warp.registers[*d as usize], &a, &b, &c, &e, mask);
        }
        Op::Compare { order, accept, result, left, right } => {
            let (left, right) = (lanes(warp, *left), lanes(warp, *right));
            let mut outcome = [0; 32];
            order(&mut outcome, &left, &right, mask);
            let result = &mut warp.registers[*result as usize];
            for lane in 0..32 {
                if mask >> lane & 1 == 1 {
                    result[lane] = u64::from(accept >> outcome[lane] & 1);
                }
            }
        }
        Op::Convert(spec, d, a) => {
            let a = lanes(warp, *a);
            let result = &mut warp.registers[*d as usize];
            for lane in lanes_of(mask) {
                result[lane] = spec.apply(a[lane]);
            }
        }
        Op::Load(access) => space.load(warp, access, mask, line)?,
        Op::Store(access) => space.store(warp, access, mask, line)?,
        Op::Nothing => {}
        other => rare(space, warp, other, mask, line)?,
    }
    Ok(())
}

fn rare(space: &mut Spaces<'_>, warp: &mut Warp, op: &Op, mask: u32, line: u32) -> Result<(), Fault> {
    match op {
        Op::Carry(carry, d, [a, b]) => add_with_carry(warp, *carry, (*d, *a, *b), mask),
        Op::Atomic(what) => atomic::atomic(space, warp, what, mask, line)?,
        Op::CopyAsync(copy) => copies::issue(space, warp, copy, mask, line)?,
        Op::CommitGroup => copies::commit(warp, mask),
        Op::WaitGroup(keep) => copies::wait(space, warp, Some(*keep), mask)?,
        Op::WaitAll => copies::wait(space, warp, None, mask)?,
        Op::ActiveMask(d) => {
            for lane in lanes_of(mask) {
                warp.registers[*d as usize][lane] = u64::from(mask);
            }
        }
        Op::Elect { result, chosen, mask: named } => {
            for lane in lanes_of(mask) {
                let leader = (warp.registers[*named as usize][lane] as u32).trailing_zeros();
                warp.registers[*result as usize][lane] = u64::from(leader);
                warp.registers[*chosen as usize][lane] = u64::from(lane as u32 == leader);
            }
        }
        Op::IsSpace { space: wanted, result, address } => {
            for lane in lanes_of(mask) {
                let (found, _) = resolve(crate::decode::Where::Generic, warp.registers[*address as usize][lane]);
                warp.registers[*result as usize][lane] = u64::from(found == *wanted);
            }
        }
        Op::Clock(d) => {
            for lane in lanes_of(mask) {
                warp.registers[*d as usize][lane] = space.clock;
            }
        }
        other => return Err(Fault::new(Kind::Module, mask.trailing_zeros(), format!("{other:?} cannot be executed"))),
    }
    Ok(())
}

fn add_with_carry(warp: &mut Warp, carry: Carry, (d, a, b): (u32, u32, u32), mask: u32) {
    let wrap = 1_u128 << carry.bits;
    for lane in lanes_of(mask) {
        let value = |reg: u32| u128::from(warp.registers[reg as usize][lane]) & (wrap - 1);
        let flag = if carry.reads { u128::from(warp.registers[carry.flag as usize][lane] & 1) } else { 0 };
        let (left, right) = (value(a), value(b));
        let (sum, out) = if carry.subtract {
            (left + 2 * wrap - right - flag, u64::from(left < right + flag))
        } else {
            (left + right + flag, u64::from(left + right + flag >= wrap))
        };
        warp.registers[d as usize][lane] = (sum & (wrap - 1)) as u64;
        if carry.writes {
            warp.registers[carry.flag as usize][lane] = out;
        }
    }
}
