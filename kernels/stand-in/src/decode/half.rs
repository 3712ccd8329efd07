//! f16 and bf16 instructions, single and packed in pairs, as functions over lanes.
//!
//! Every result is the exact one rounded once: the operands go to f64, sums are rounded to odd there,
//! and [`crate::number::narrow`] rounds to the format. `.ftz`, `.sat` and `.relu` of these types are
//! not implemented (nothing of ours uses them) and come out as errors. Start at [`two`].

use super::Type;
use super::lanes::{Bits, W1, W2, W3, lanes};
use crate::number::{BF16, F16, Format, Round, flush, fma_to_odd, narrow, sum_to_odd, widen};

fn value(bits: u64, format: Format) -> f64 {
    widen(bits as u32 & 0xffff, format)
}

fn rounded(x: f64, format: Format) -> u64 {
    narrow(x, format, Round::Nearest).bits()
}

/// A function on f64 values for each of the four types, once a half or for both halves.
macro_rules! halves {
    ($kind:expr, |$($a:ident),+| $value:expr) => {
        match $kind {
            Type::F16 => Some(lanes!(|$($a),+| { $(let $a = value($a, F16);)+ rounded($value, F16) })),
            Type::Bf16 => Some(lanes!(|$($a),+| { $(let $a = value($a, BF16);)+ rounded($value, BF16) })),
            Type::F16x2 => Some(lanes!(|$($a),+| {
                let low = { $(let $a = value($a, F16);)+ rounded($value, F16) };
                let high = { $(let $a = value($a >> 16, F16);)+ rounded($value, F16) };
                high << 16 | low
            })),
            Type::Bf16x2 => Some(lanes!(|$($a),+| {
                let low = { $(let $a = value($a, BF16);)+ rounded($value, BF16) };
                let high = { $(let $a = value($a >> 16, BF16);)+ rounded($value, BF16) };
                high << 16 | low
            })),
            _ => None,
        }
    };
}

fn minimum(a: f64, b: f64) -> f64 {
    if a.is_nan() {
        return b;
    }
    if b.is_nan() || a < b || a == b && a.is_sign_negative() { a } else { b }
}

fn either_nan(a: f64, b: f64, otherwise: f64) -> f64 {
    if a.is_nan() || b.is_nan() { f64::NAN } else { otherwise }
}

/// Instructions with one source.
pub(super) fn one(name: &str, kind: Type) -> Option<W1> {
    let pair = matches!(kind, Type::F16x2 | Type::Bf16x2);
    match name {
        "mov" if pair => Some(lanes!(|a| a & 0xffff_ffff)),
        "mov" => Some(lanes!(|a| a & 0xffff)),
        "neg" if pair => Some(lanes!(|a| (a ^ 0x8000_8000) & 0xffff_ffff)),
        "neg" => Some(lanes!(|a| (a ^ 0x8000) & 0xffff)),
        "abs" if pair => Some(lanes!(|a| a & 0x7fff_7fff)),
        "abs" => Some(lanes!(|a| a & 0x7fff)),
        "ex2.approx" => halves!(kind, |a| a.exp2()),
        // PTX has this of bf16 with flushing only, in which f32's smallest normal is the bound too.
        "ex2.approx.ftz" if matches!(kind, Type::Bf16 | Type::Bf16x2) => {
            halves!(kind, |a| f64::from(flush(flush(a as f32).exp2())))
        }
        "tanh.approx" => halves!(kind, |a| a.tanh()),
        _ => None,
    }
}

/// Instructions with two sources.
pub(super) fn two(name: &str, kind: Type) -> Option<W2> {
    match name {
        "add" => halves!(kind, |a, b| sum_to_odd(a, b)),
        "sub" => halves!(kind, |a, b| sum_to_odd(a, -b)),
        "mul" => halves!(kind, |a, b| a * b),
        "min" => halves!(kind, |a, b| minimum(a, b)),
        "max" => halves!(kind, |a, b| -minimum(-a, -b)),
        "min.NaN" => halves!(kind, |a, b| either_nan(a, b, minimum(a, b))),
        "max.NaN" => halves!(kind, |a, b| either_nan(a, b, -minimum(-a, -b))),
        _ => None,
    }
}

/// Instructions with three sources.
pub(super) fn three(name: &str, kind: Type) -> Option<W3> {
    match name {
        "fma" => halves!(kind, |a, b, c| fma_to_odd(a, b, c)),
        _ => None,
    }
}
