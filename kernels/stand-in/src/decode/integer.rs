//! Integer and bit instructions as functions over lanes.
//!
//! Each table takes the instruction's name and type and gives `None` where PTX has no such pair or
//! it is not implemented; the caller turns that into an error with the line. Division by zero gives
//! all ones, as the hardware's code does (PTX leaves it open). Start at [`two`].

use super::Type;
use super::lanes::{Bits, W1, W2, W3, W4, lanes};

/// `$function` for each width of integer, with `T` as the Rust type.
macro_rules! each_type {
    ($kind:expr, $T:ident, $function:expr) => {
        match $kind {
            Type::B16 | Type::U16 => Some({
                type $T = u16;
                $function
            }),
            Type::B32 | Type::U32 => Some({
                type $T = u32;
                $function
            }),
            Type::B64 | Type::U64 => Some({
                type $T = u64;
                $function
            }),
            Type::S16 => Some({
                type $T = i16;
                $function
            }),
            Type::S32 => Some({
                type $T = i32;
                $function
            }),
            Type::S64 => Some({
                type $T = i64;
                $function
            }),
            _ => None,
        }
    };
}

/// Instructions with one source.
pub(super) fn one(name: &str, kind: Type) -> Option<W1> {
    match name {
        "mov" | "cvta" => match kind {
            Type::Pred => Some(lanes!(|a| a & 1)),
            _ if kind.bits() == 16 => Some(lanes!(|a| a & 0xffff)),
            _ if kind.bits() == 32 => Some(lanes!(|a| a & 0xffff_ffff)),
            _ if kind.bits() == 64 => Some(lanes!(|a| a)),
            _ => None,
        },
        "not" if kind == Type::Pred => Some(lanes!(|a| a & 1 ^ 1)),
        "not" => each_type!(kind, T, lanes!(|a| (!T::of(a)).bits())),
        "cnot" => each_type!(kind, T, lanes!(|a| u64::from(T::of(a) == 0))),
        "neg" => each_type!(kind, T, lanes!(|a| (0 as T).wrapping_sub(T::of(a)).bits())),
        "abs" => match kind {
            Type::S16 => Some(lanes!(|a| i16::of(a).wrapping_abs().bits())),
            Type::S32 => Some(lanes!(|a| i32::of(a).wrapping_abs().bits())),
            Type::S64 => Some(lanes!(|a| i64::of(a).wrapping_abs().bits())),
            _ => None,
        },
        "popc" => each_type!(kind, T, lanes!(|a| u64::from(T::of(a).count_ones()))),
        "clz" => each_type!(kind, T, lanes!(|a| u64::from(T::of(a).leading_zeros()))),
        "brev" => each_type!(kind, T, lanes!(|a| T::of(a).reverse_bits().bits())),
        // The shift that brings the bit found to the top.
        "bfind.shiftamt" => match kind {
            Type::U32 => Some(lanes!(|a| (if a as u32 == 0 { u32::MAX } else { (a as u32).leading_zeros() }).bits())),
            Type::U64 => Some(lanes!(|a| (if a == 0 { u32::MAX } else { a.leading_zeros() }).bits())),
            _ => None,
        },
        "bfind" => match kind {
            Type::U32 => Some(lanes!(|a| 31_u32.wrapping_sub(u32::of(a).leading_zeros()).bits())),
            Type::U64 => Some(lanes!(|a| 63_u32.wrapping_sub(a.leading_zeros()).bits())),
            Type::S32 => Some(lanes!(|a| {
                let a = i32::of(a);
                31_u32.wrapping_sub((a ^ a >> 31).leading_zeros()).bits()
            })),
            _ => None,
        },
        _ => None,
    }
}

/// Instructions with two sources.
pub(super) fn two(name: &str, kind: Type) -> Option<W2> {
    match name {
        "add" => each_type!(kind, T, lanes!(|a, b| T::of(a).wrapping_add(T::of(b)).bits())),
        "sub" => each_type!(kind, T, lanes!(|a, b| T::of(a).wrapping_sub(T::of(b)).bits())),
        "add.sat" if kind == Type::S32 => Some(lanes!(|a, b| i32::of(a).saturating_add(i32::of(b)).bits())),
        "sub.sat" if kind == Type::S32 => Some(lanes!(|a, b| i32::of(a).saturating_sub(i32::of(b)).bits())),
        "mul.lo" => each_type!(kind, T, lanes!(|a, b| T::of(a).wrapping_mul(T::of(b)).bits())),
        "mul.hi" => Some(match kind {
            Type::U16 => lanes!(|a, b| ((a & 0xffff) * (b & 0xffff)) >> 16),
            Type::S16 => lanes!(|a, b| (((i32::from(i16::of(a)) * i32::from(i16::of(b))) >> 16) as i16).bits()),
            Type::U32 => lanes!(|a, b| ((a & 0xffff_ffff) * (b & 0xffff_ffff)) >> 32),
            Type::S32 => lanes!(|a, b| (((i64::from(i32::of(a)) * i64::from(i32::of(b))) >> 32) as i32).bits()),
            Type::U64 => lanes!(|a, b| ((u128::from(a) * u128::from(b)) >> 64) as u64),
            Type::S64 => lanes!(|a, b| ((i128::from(a as i64) * i128::from(b as i64)) >> 64) as u64),
            _ => return None,
        }),
        "mul.wide" => Some(match kind {
            Type::U16 => lanes!(|a, b| (u32::from(u16::of(a)) * u32::from(u16::of(b))).bits()),
            Type::S16 => lanes!(|a, b| (i32::from(i16::of(a)) * i32::from(i16::of(b))).bits()),
            Type::U32 => lanes!(|a, b| (a & 0xffff_ffff) * (b & 0xffff_ffff)),
            Type::S32 => lanes!(|a, b| (i64::from(i32::of(a)) * i64::from(i32::of(b))).bits()),
            _ => return None,
        }),
        "mul24.lo" => match kind {
            Type::U32 => Some(lanes!(|a, b| ((a & 0xff_ffff) * (b & 0xff_ffff)) & 0xffff_ffff)),
            Type::S32 => Some(lanes!(|a, b| ((i32::of(a) << 8 >> 8).wrapping_mul(i32::of(b) << 8 >> 8)).bits())),
            _ => None,
        },
        "div" => each_type!(
            kind,
            T,
            lanes!(|a, b| match T::of(b) {
                0 => (!0 as T).bits(),
                b => T::of(a).wrapping_div(b).bits(),
            })
        ),
        "rem" => each_type!(
            kind,
            T,
            lanes!(|a, b| match T::of(b) {
                0 => (!0 as T).bits(),
                b => T::of(a).wrapping_rem(b).bits(),
            })
        ),
        "min" => each_type!(kind, T, lanes!(|a, b| T::of(a).min(T::of(b)).bits())),
        "max" => each_type!(kind, T, lanes!(|a, b| T::of(a).max(T::of(b)).bits())),
        "and" if kind == Type::Pred => Some(lanes!(|a, b| a & b & 1)),
        "or" if kind == Type::Pred => Some(lanes!(|a, b| (a | b) & 1)),
        "xor" if kind == Type::Pred => Some(lanes!(|a, b| (a ^ b) & 1)),
        "and" => each_type!(kind, T, lanes!(|a, b| (T::of(a) & T::of(b)).bits())),
        "or" => each_type!(kind, T, lanes!(|a, b| (T::of(a) | T::of(b)).bits())),
        "xor" => each_type!(kind, T, lanes!(|a, b| (T::of(a) ^ T::of(b)).bits())),
        "shl" => each_type!(kind, T, lanes!(|a, b| T::of(a).checked_shl(b as u32).unwrap_or(0).bits())),
        "shr" => each_type!(
            kind,
            T,
            lanes!(|a, b| {
                // Beyond the width a shift gives what shifting on and on would: zero or the sign.
                let (a, last) = (T::of(a), T::BITS - 1);
                let by = b as u32;
                if by > last { (a >> last >> 1_u32.min(last)).bits() } else { (a >> by).bits() }
            })
        ),
        _ => None,
    }
}

/// Instructions with three sources.
pub(super) fn three(name: &str, kind: Type) -> Option<W3> {
    match name {
        "mad.lo" => {
            each_type!(kind, T, lanes!(|a, b, c| T::of(a).wrapping_mul(T::of(b)).wrapping_add(T::of(c)).bits()))
        }
        "mad.hi" => Some(match kind {
            Type::U32 => lanes!(|a, b, c| ((((a & 0xffff_ffff) * (b & 0xffff_ffff)) >> 32) + c) & 0xffff_ffff),
            Type::S32 => lanes!(|a, b, c| (((i64::from(i32::of(a)) * i64::from(i32::of(b))) >> 32) as i32)
                .wrapping_add(i32::of(c))
                .bits()),
            Type::U64 => lanes!(|a, b, c| (((u128::from(a) * u128::from(b)) >> 64) as u64).wrapping_add(c)),
            _ => return None,
        }),
        "mad.wide" => Some(match kind {
            Type::U16 => {
                lanes!(|a, b, c| (u32::from(u16::of(a)) * u32::from(u16::of(b))).wrapping_add(u32::of(c)).bits())
            }
            Type::S16 => {
                lanes!(|a, b, c| (i32::from(i16::of(a)) * i32::from(i16::of(b))).wrapping_add(i32::of(c)).bits())
            }
            Type::U32 => lanes!(|a, b, c| ((a & 0xffff_ffff) * (b & 0xffff_ffff)).wrapping_add(c)),
            Type::S32 => lanes!(|a, b, c| (i64::from(i32::of(a)) * i64::from(i32::of(b))).bits().wrapping_add(c)),
            _ => return None,
        }),
        "sad" => {
            each_type!(kind, T, lanes!(|a, b, c| T::of(c).wrapping_add(T::of(a).abs_diff(T::of(b)) as T).bits()))
        }
        "selp" => match kind.bits() {
            16 => Some(lanes!(|a, b, p| if p & 1 == 1 { a & 0xffff } else { b & 0xffff })),
            32 => Some(lanes!(|a, b, p| if p & 1 == 1 { a & 0xffff_ffff } else { b & 0xffff_ffff })),
            64 => Some(lanes!(|a, b, p| if p & 1 == 1 { a } else { b })),
            _ => None,
        },
        "bfe" => Some(match kind {
            Type::U32 => lanes!(|a, b, c| bit_field(a & 0xffff_ffff, b, c, 32, false)),
            Type::S32 => lanes!(|a, b, c| bit_field(a & 0xffff_ffff, b, c, 32, true)),
            Type::U64 => lanes!(|a, b, c| bit_field(a, b, c, 64, false)),
            Type::S64 => lanes!(|a, b, c| bit_field(a, b, c, 64, true)),
            _ => return None,
        }),
        "shf.l.wrap" => Some(lanes!(|a, b, c| funnel(a, b) << (c & 31) >> 32)),
        "shf.l.clamp" => {
            Some(lanes!(|a, b, c| ((u128::from(funnel(a, b)) << (c as u32).min(32)) >> 32) as u64 & 0xffff_ffff))
        }
        "shf.r.wrap" => Some(lanes!(|a, b, c| funnel(a, b) >> (c & 31) & 0xffff_ffff)),
        "shf.r.clamp" => Some(lanes!(|a, b, c| funnel(a, b) >> (c as u32).min(32) & 0xffff_ffff)),
        "prmt" => Some(lanes!(|a, b, c| permute(a, b, c))),
        "dp4a.u32.u32" => Some(lanes!(|a, b, c| dot4(a, b, c, |v| i32::from(v as u8), |v| i32::from(v as u8)))),
        "dp4a.u32.s32" => Some(lanes!(|a, b, c| dot4(a, b, c, |v| i32::from(v as u8), |v| i32::from(v as i8)))),
        "dp4a.s32.u32" => Some(lanes!(|a, b, c| dot4(a, b, c, |v| i32::from(v as i8), |v| i32::from(v as u8)))),
        "dp4a.s32.s32" => Some(lanes!(|a, b, c| dot4(a, b, c, |v| i32::from(v as i8), |v| i32::from(v as i8)))),
        _ => None,
    }
}

/// Instructions with four sources.
pub(super) fn four(name: &str, kind: Type) -> Option<W4> {
    match (name, kind) {
        ("lop3", Type::B32) => Some(lanes!(|a, b, c, table| {
            // Bit i of the table is the result where a, b and c spell i.
            let pick = |bit: u64, term: u64| if table >> bit & 1 == 1 { term } else { 0 };
            let low = pick(0, !a & !b & !c) | pick(1, !a & !b & c) | pick(2, !a & b & !c) | pick(3, !a & b & c);
            let high = pick(4, a & !b & !c) | pick(5, a & !b & c) | pick(6, a & b & !c) | pick(7, a & b & c);
            (low | high) & 0xffff_ffff
        })),
        ("bfi", Type::B32) => Some(lanes!(|a, b, c, e| insert_field(a, b, c, e, 32) & 0xffff_ffff)),
        ("bfi", Type::B64) => Some(lanes!(|a, b, c, e| insert_field(a, b, c, e, 64))),
        _ => None,
    }
}

fn funnel(low: u64, high: u64) -> u64 {
    high << 32 | low & 0xffff_ffff
}

fn low_bits(count: u64) -> u64 {
    if count >= 64 { u64::MAX } else { (1 << count) - 1 }
}

fn bit_field(a: u64, position: u64, length: u64, bits: u64, signed: bool) -> u64 {
    let (position, length) = (position & 0xff, length & 0xff);
    if length == 0 {
        return 0;
    }
    let sign = signed && a >> (position + length - 1).min(bits - 1) & 1 == 1;
    let shifted = if position >= bits { 0 } else { a >> position };
    let have = length.min(bits.saturating_sub(position));
    let value = shifted & low_bits(have);
    (if sign { value | !low_bits(have) } else { value }) & low_bits(bits)
}

fn insert_field(a: u64, b: u64, position: u64, length: u64, bits: u64) -> u64 {
    let (position, length) = (position & 0xff, length & 0xff);
    if position >= bits {
        return b;
    }
    let field = low_bits(length.min(bits - position)) << position;
    b & !field | a << position & field
}

fn permute(a: u64, b: u64, selector: u64) -> u64 {
    let bytes = b << 32 | a & 0xffff_ffff;
    let mut out = 0;
    for index in 0..4 {
        let choice = selector >> (4 * index) & 0xf;
        let byte = bytes >> (8 * (choice & 7)) & 0xff;
        // The high bit of a choice asks for the sign of the byte, replicated.
        let byte = if choice & 8 == 0 { byte } else { (byte >> 7) * 0xff };
        out |= byte << (8 * index);
    }
    out
}

fn dot4(a: u64, b: u64, c: u64, left: fn(u64) -> i32, right: fn(u64) -> i32) -> u64 {
    let sum = (0..4).fold(c as i32, |sum, index| sum.wrapping_add(left(a >> (8 * index)) * right(b >> (8 * index))));
    sum.bits()
}
