//! `atom` and `red`: read, combine, write, lane after lane in order.
//!
//! Sums of floats are rounded each time, in the order of lanes, warps and blocks; hardware promises no
//! order. Start at [`atomic`].

use super::Fault;
use super::access::Spaces;
use super::warp::{Warp, lanes_of};
use crate::decode::{Atomic, AtomicOp, Type};
use crate::number::{BF16, F16, Format, Round, f32_bits, narrow, sum_to_odd, widen};

/// The instruction for the lanes of `mask`.
pub(super) fn atomic(
    space: &mut Spaces<'_>,
    warp: &mut Warp,
    atomic: &Atomic,
    mask: u32,
    line: u32,
) -> Result<(), Fault> {
    let bytes = atomic.kind.bits() as usize / 8;
    for lane in lanes_of(mask) {
        let register = |reg: u32| warp.registers[reg as usize][lane];
        let address = register(atomic.address).wrapping_add_signed(atomic.offset);
        let (value, other) = (register(atomic.value), register(atomic.other));
        let who = warp.who(lane, line, true);
        let mut old = [0; 8];
        space.read(warp, who, atomic.space, address, &mut old[..bytes])?;
        let old = u64::from_le_bytes(old);
        let new = if atomic.op == AtomicOp::CompareExchange {
            if old == value { other } else { old }
        } else {
            combine(atomic.op, atomic.kind, old, value)
        };
        space.write(warp, who, atomic.space, address, &new.to_le_bytes()[..bytes])?;
        if let Some(result) = atomic.result {
            warp.registers[result as usize][lane] = old;
        }
    }
    Ok(())
}

fn half_sum(old: u64, value: u64, format: Format) -> u64 {
    let number = |bits: u64| widen(bits as u32 & 0xffff, format);
    u64::from(narrow(sum_to_odd(number(old), number(value)), format, Round::Nearest))
}

/// `old op value`, in the bits of `kind`; also what `redux` folds with.
pub(super) fn combine(op: AtomicOp, kind: Type, old: u64, value: u64) -> u64 {
    let unused = 64 - kind.bits().min(64);
    let signed = |bits: u64| (bits << unused) as i64 >> unused;
    let keep = |bits: u64| bits << unused >> unused;
    match (op, kind) {
        (AtomicOp::Add, Type::F32) => f32_bits(f32::from_bits(old as u32) + f32::from_bits(value as u32)),
        (AtomicOp::Add, Type::F64) => (f64::from_bits(old) + f64::from_bits(value)).to_bits(),
        (AtomicOp::Add, Type::F16) => half_sum(old, value, F16),
        (AtomicOp::Add, Type::Bf16) => half_sum(old, value, BF16),
        (AtomicOp::Add, Type::F16x2) => half_sum(old >> 16, value >> 16, F16) << 16 | half_sum(old, value, F16),
        (AtomicOp::Add, Type::Bf16x2) => half_sum(old >> 16, value >> 16, BF16) << 16 | half_sum(old, value, BF16),
        (AtomicOp::Add, _) => keep(old.wrapping_add(value)),
        (AtomicOp::And, _) => old & value,
        (AtomicOp::Or, _) => old | value,
        (AtomicOp::Xor, _) => old ^ value,
        (AtomicOp::Min, _) if kind.is_signed() => keep(signed(old).min(signed(value)) as u64),
        (AtomicOp::Max, _) if kind.is_signed() => keep(signed(old).max(signed(value)) as u64),
        (AtomicOp::Min, _) => old.min(value),
        (AtomicOp::Max, _) => old.max(value),
        (AtomicOp::Inc, _) => {
            if old >= value {
                0
            } else {
                old + 1
            }
        }
        (AtomicOp::Dec, _) => {
            if old == 0 || old > value {
                value
            } else {
                old - 1
            }
        }
        (AtomicOp::Exchange | AtomicOp::CompareExchange, _) => value,
    }
}
