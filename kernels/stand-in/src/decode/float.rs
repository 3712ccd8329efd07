//! f32 and f64 instructions as functions over lanes, and how values of any type compare.
//!
//! `.rn` sums, products, fma, quotients and roots are IEEE's, so bit-exact; other rounding modes of
//! f32 go through [`crate::number`]. `.approx` functions are computed in f64 and rounded to f32: more
//! exact than the hardware, hence not its bits. Start at [`two`].

use super::Type;
use super::lanes::{Bits, W1, W2, W3, lanes};
use crate::number::{F32, Round, bf16_value, f16_value, f32_bits, flush, narrow, sum_to_odd};

/// A function on f32, with subnormals flushed on the way in and out where `$ftz`.
macro_rules! f32_lanes {
    ($ftz:expr, |$a:ident| $value:expr) => {
        if $ftz {
            lanes!(|x| {
                let $a = flush(f32::of(x));
                f32_bits(flush($value))
            })
        } else {
            lanes!(|x| {
                let $a = f32::of(x);
                f32_bits($value)
            })
        }
    };
    ($ftz:expr, |$a:ident, $b:ident| $value:expr) => {
        if $ftz {
            lanes!(|x, y| {
                let ($a, $b) = (flush(f32::of(x)), flush(f32::of(y)));
                f32_bits(flush($value))
            })
        } else {
            lanes!(|x, y| {
                let ($a, $b) = (f32::of(x), f32::of(y));
                f32_bits($value)
            })
        }
    };
    ($ftz:expr, |$a:ident, $b:ident, $c:ident| $value:expr) => {
        if $ftz {
            lanes!(|x, y, z| {
                let ($a, $b, $c) = (flush(f32::of(x)), flush(f32::of(y)), flush(f32::of(z)));
                f32_bits(flush($value))
            })
        } else {
            lanes!(|x, y, z| {
                let ($a, $b, $c) = (f32::of(x), f32::of(y), f32::of(z));
                f32_bits($value)
            })
        }
    };
}

/// f32 results of an exact f64 expression in the three directed modes; `$mode` is the mode in it.
macro_rules! directed {
    (@mode $mode:ident, $value_of:expr, |$($a:ident),+| $value:expr) => {
        Some(lanes!(|$($a),+| {
            $(let $a = f64::from($value_of(f32::of($a)));)+
            $value_of(f32::from_bits(narrow($value, F32, Round::$mode))).bits()
        }))
    };
    ($round:expr, $ftz:expr, |$($a:ident),+| $value:expr) => {
        match ($round, $ftz) {
            (Round::Zero, false) => directed!(@mode Zero, std::convert::identity, |$($a),+| $value),
            (Round::Zero, true) => directed!(@mode Zero, flush, |$($a),+| $value),
            (Round::Up, false) => directed!(@mode Up, std::convert::identity, |$($a),+| $value),
            (Round::Up, true) => directed!(@mode Up, flush, |$($a),+| $value),
            (Round::Down, false) => directed!(@mode Down, std::convert::identity, |$($a),+| $value),
            (Round::Down, true) => directed!(@mode Down, flush, |$($a),+| $value),
            _ => None,
        }
    };
}

/// An exact sum for a directed mode: a zero of two signs is negative where rounding goes down.
fn exact_sum(a: f64, b: f64, round: Round) -> f64 {
    let sum = sum_to_odd(a, b);
    let negative = a.is_sign_negative() || b.is_sign_negative();
    if sum == 0.0 && round == Round::Down && negative { -0.0 } else { sum }
}

/// Instructions with one source.
pub(super) fn one(name: &str, kind: Type, ftz: bool) -> Option<W1> {
    match (name, kind) {
        ("mov", Type::F32) => Some(lanes!(|a| a & 0xffff_ffff)),
        ("mov", Type::F64) => Some(lanes!(|a| a)),
        ("neg", Type::F32) if !ftz => Some(lanes!(|a| (a ^ 0x8000_0000) & 0xffff_ffff)),
        ("neg", Type::F32) => Some(f32_lanes!(true, |a| -a)),
        ("abs", Type::F32) => Some(f32_lanes!(ftz, |a| a.abs())),
        ("sat", Type::F32) => Some(lanes!(|a| saturate(f32::of(a)).bits())),
        ("sqrt" | "sqrt.approx", Type::F32) => Some(f32_lanes!(ftz, |a| a.sqrt())),
        ("rcp" | "rcp.approx", Type::F32) => Some(f32_lanes!(ftz, |a| 1.0 / a)),
        ("rsqrt.approx", Type::F32) => Some(f32_lanes!(ftz, |a| (1.0 / f64::from(a).sqrt()) as f32)),
        ("ex2.approx", Type::F32) => Some(f32_lanes!(ftz, |a| f64::from(a).exp2() as f32)),
        ("lg2.approx", Type::F32) => Some(f32_lanes!(ftz, |a| f64::from(a).log2() as f32)),
        ("sin.approx", Type::F32) => Some(f32_lanes!(ftz, |a| f64::from(a).sin() as f32)),
        ("cos.approx", Type::F32) => Some(f32_lanes!(ftz, |a| f64::from(a).cos() as f32)),
        ("tanh.approx", Type::F32) => Some(f32_lanes!(ftz, |a| f64::from(a).tanh() as f32)),
        ("neg", Type::F64) => Some(lanes!(|a| a ^ 1 << 63)),
        ("abs", Type::F64) => Some(lanes!(|a| a & !(1 << 63))),
        ("sqrt", Type::F64) => Some(lanes!(|a| f64::of(a).sqrt().bits())),
        ("rcp", Type::F64) => Some(lanes!(|a| (1.0 / f64::of(a)).bits())),
        ("rcp.approx", Type::F64) => Some(lanes!(|a| (1.0 / f64::of(a)).bits() & !0xffff_ffff)),
        ("rsqrt.approx", Type::F64) => Some(lanes!(|a| (1.0 / f64::of(a).sqrt()).bits())),
        ("testp.finite", Type::F32) => Some(lanes!(|a| f32::of(a).is_finite().bits())),
        ("testp.infinite", Type::F32) => Some(lanes!(|a| f32::of(a).is_infinite().bits())),
        ("testp.number", Type::F32) => Some(lanes!(|a| (!f32::of(a).is_nan()).bits())),
        ("testp.notanumber", Type::F32) => Some(lanes!(|a| f32::of(a).is_nan().bits())),
        ("testp.normal", Type::F32) => Some(lanes!(|a| f32::of(a).is_normal().bits())),
        ("testp.subnormal", Type::F32) => Some(lanes!(|a| f32::of(a).is_subnormal().bits())),
        _ => None,
    }
}

/// Clamped to [0, 1], NaN to 0: `.sat`.
pub(super) fn saturate(x: f32) -> f32 {
    if x > 0.0 { x.min(1.0) } else { 0.0 }
}

fn minimum(a: f32, b: f32) -> f32 {
    if a.is_nan() {
        return b;
    }
    // Zeros are ordered by their sign.
    if b.is_nan() || a < b || a == b && a.is_sign_negative() { a } else { b }
}

/// Instructions with two sources.
pub(super) fn two(name: &str, kind: Type, ftz: bool, round: Round) -> Option<W2> {
    if round != Round::Nearest {
        return match (name, kind) {
            ("add", Type::F32) if round == Round::Down => directed!(round, ftz, |a, b| exact_sum(a, b, Round::Down)),
            ("add", Type::F32) => directed!(round, ftz, |a, b| exact_sum(a, b, Round::Up)),
            ("sub", Type::F32) if round == Round::Down => directed!(round, ftz, |a, b| exact_sum(a, -b, Round::Down)),
            ("sub", Type::F32) => directed!(round, ftz, |a, b| exact_sum(a, -b, Round::Up)),
            ("mul", Type::F32) => directed!(round, ftz, |a, b| a * b),
            _ => None,
        };
    }
    match (name, kind) {
        ("add", Type::F32) => Some(f32_lanes!(ftz, |a, b| a + b)),
        ("sub", Type::F32) => Some(f32_lanes!(ftz, |a, b| a - b)),
        ("mul", Type::F32) => Some(f32_lanes!(ftz, |a, b| a * b)),
        ("div" | "div.approx" | "div.full", Type::F32) => Some(f32_lanes!(ftz, |a, b| a / b)),
        ("min", Type::F32) => Some(f32_lanes!(ftz, |a, b| minimum(a, b))),
        ("max", Type::F32) => Some(f32_lanes!(ftz, |a, b| -minimum(-a, -b))),
        ("min.NaN", Type::F32) => {
            Some(f32_lanes!(ftz, |a, b| if a.is_nan() || b.is_nan() { f32::NAN } else { minimum(a, b) }))
        }
        ("max.NaN", Type::F32) => {
            Some(f32_lanes!(ftz, |a, b| if a.is_nan() || b.is_nan() { f32::NAN } else { -minimum(-a, -b) }))
        }
        ("copysign", Type::F32) => Some(lanes!(|a, b| b & 0x7fff_ffff | a & 0x8000_0000)),
        ("copysign", Type::F64) => Some(lanes!(|a, b| b & !(1 << 63) | a & 1 << 63)),
        ("add", Type::F64) => Some(lanes!(|a, b| (f64::of(a) + f64::of(b)).bits())),
        ("sub", Type::F64) => Some(lanes!(|a, b| (f64::of(a) - f64::of(b)).bits())),
        ("mul", Type::F64) => Some(lanes!(|a, b| (f64::of(a) * f64::of(b)).bits())),
        ("div", Type::F64) => Some(lanes!(|a, b| (f64::of(a) / f64::of(b)).bits())),
        ("min", Type::F64) => Some(lanes!(|a, b| f64::of(a).min(f64::of(b)).bits())),
        ("max", Type::F64) => Some(lanes!(|a, b| f64::of(a).max(f64::of(b)).bits())),
        _ => None,
    }
}

/// Instructions with three sources.
pub(super) fn three(name: &str, kind: Type, ftz: bool, round: Round) -> Option<W3> {
    match (name, kind, round) {
        ("fma", Type::F32, Round::Nearest) => Some(f32_lanes!(ftz, |a, b, c| a.mul_add(b, c))),
        ("fma", Type::F64, Round::Nearest) => Some(lanes!(|a, b, c| f64::of(a).mul_add(f64::of(b), f64::of(c)).bits())),
        ("fma", Type::F32, Round::Down) => directed!(round, ftz, |a, b, c| exact_sum(a * b, c, Round::Down)),
        ("fma", Type::F32, _) => directed!(round, ftz, |a, b, c| exact_sum(a * b, c, Round::Up)),
        _ => None,
    }
}

const LESS: u64 = 0;
const EQUAL: u64 = 1;
const GREATER: u64 = 2;
const UNORDERED: u64 = 3;

fn ordering<T: PartialOrd>(a: T, b: T) -> u64 {
    match a.partial_cmp(&b) {
        Some(std::cmp::Ordering::Less) => LESS,
        Some(std::cmp::Ordering::Equal) => EQUAL,
        Some(std::cmp::Ordering::Greater) => GREATER,
        None => UNORDERED,
    }
}

/// How two values of a type compare: 0 less, 1 equal, 2 greater, 3 unordered.
pub(super) fn order(kind: Type, ftz: bool) -> Option<W2> {
    Some(match kind {
        Type::B16 | Type::U16 => lanes!(|a, b| ordering(u16::of(a), u16::of(b))),
        Type::S16 => lanes!(|a, b| ordering(i16::of(a), i16::of(b))),
        Type::B32 | Type::U32 => lanes!(|a, b| ordering(u32::of(a), u32::of(b))),
        Type::S32 => lanes!(|a, b| ordering(i32::of(a), i32::of(b))),
        Type::B64 | Type::U64 => lanes!(|a, b| ordering(a, b)),
        Type::S64 => lanes!(|a, b| ordering(i64::of(a), i64::of(b))),
        Type::F32 if ftz => lanes!(|a, b| ordering(flush(f32::of(a)), flush(f32::of(b)))),
        Type::F32 => lanes!(|a, b| ordering(f32::of(a), f32::of(b))),
        Type::F64 => lanes!(|a, b| ordering(f64::of(a), f64::of(b))),
        Type::F16 if !ftz => lanes!(|a, b| ordering(f16_value(a), f16_value(b))),
        Type::Bf16 => lanes!(|a, b| ordering(bf16_value(a), bf16_value(b))),
        _ => return None,
    })
}

/// Which of the four outcomes of [`order`] make a comparison true, as a set of bits.
pub(super) fn accepted(comparison: &str, float: bool) -> Option<u8> {
    let set = |outcomes: &[u64]| outcomes.iter().fold(0_u8, |set, outcome| set | 1 << outcome);
    Some(match comparison {
        "eq" => set(&[EQUAL]),
        // Of floats, `ne` is false for NaN and `neu` is true.
        "ne" => set(&[LESS, GREATER]),
        "lt" => set(&[LESS]),
        "le" => set(&[LESS, EQUAL]),
        "gt" => set(&[GREATER]),
        "ge" => set(&[GREATER, EQUAL]),
        "lo" if !float => set(&[LESS]),
        "ls" if !float => set(&[LESS, EQUAL]),
        "hi" if !float => set(&[GREATER]),
        "hs" if !float => set(&[GREATER, EQUAL]),
        "equ" if float => set(&[EQUAL, UNORDERED]),
        "neu" if float => set(&[LESS, GREATER, UNORDERED]),
        "ltu" if float => set(&[LESS, UNORDERED]),
        "leu" if float => set(&[LESS, EQUAL, UNORDERED]),
        "gtu" if float => set(&[GREATER, UNORDERED]),
        "geu" if float => set(&[GREATER, EQUAL, UNORDERED]),
        "num" if float => set(&[LESS, EQUAL, GREATER]),
        "nan" if float => set(&[UNORDERED]),
        _ => return None,
    })
}
