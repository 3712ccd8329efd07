//! `cvt`: between any two of the integer and float types, with rounding and saturation.
//!
//! One function serves all pairs: a source is an integer or an f64 that holds it exactly, and the
//! destination's rule is applied once. Pairs of float (`cvt.rn.bf16x2.f32 d, high, low`) are two of
//! these. Start at [`Conversion::apply`].

use super::Type;
use super::float::saturate;
use crate::number::{BF16, F16, F32, Format, Round, TF32, bf16_value, f32_bits, flush, narrow, sum_to_odd, widen};

/// Everything that `cvt` says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Conversion {
    pub(crate) to: Type,
    pub(crate) from: Type,
    pub(crate) round: Round,
    /// `.rni` and its kin: round to an integer, also where the result is a float.
    pub(crate) integral: bool,
    pub(crate) saturate: bool,
    pub(crate) ftz: bool,
    pub(crate) relu: bool,
}

enum Source {
    Integer(i128),
    Float(f64),
}

fn format_of(kind: Type) -> Option<Format> {
    Some(match kind {
        Type::F16 | Type::F16x2 => F16,
        Type::Bf16 | Type::Bf16x2 => BF16,
        Type::Tf32 => TF32,
        Type::F32 => F32,
        _ => return None,
    })
}

/// Rounds to an integer in f64, in any of the modes.
fn integral(x: f64, round: Round) -> f64 {
    match round {
        Round::Nearest => x.round_ties_even(),
        Round::Away => x.round(),
        Round::Zero => x.trunc(),
        Round::Down => x.floor(),
        Round::Up => x.ceil(),
    }
}

impl Conversion {
    /// The converted bits.
    #[inline]
    pub(crate) fn apply(&self, bits: u64) -> u64 {
        // The three that fill our kernels, ahead of the general rule.
        if !(self.saturate || self.ftz || self.relu || self.integral) {
            match (self.to, self.from) {
                (Type::F32, Type::Bf16) => return f32_bits(bf16_value(bits)),
                (Type::F32, Type::S32) if self.round == Round::Nearest => {
                    return u64::from((bits as i32 as f32).to_bits());
                }
                (Type::Bf16, Type::F32) if self.round == Round::Nearest => return bf16_nearest(bits as u32),
                _ => {}
            }
        }
        let source = self.source(bits);
        if self.to.is_float() { self.float_bits(source) } else { self.integer_bits(source) }
    }

    fn source(&self, bits: u64) -> Source {
        let x = match self.from {
            Type::F64 => f64::from_bits(bits),
            Type::F32 => {
                let x = f32::from_bits(bits as u32);
                f64::from(if self.ftz { flush(x) } else { x })
            }
            Type::F16 => widen(bits as u32 & 0xffff, F16),
            Type::Bf16 => f64::from(bf16_value(bits)),
            kind => {
                let unused = 64 - kind.bits().min(64);
                return Source::Integer(if kind.is_signed() {
                    i128::from((bits << unused) as i64 >> unused)
                } else {
                    i128::from(bits << unused >> unused)
                });
            }
        };
        Source::Float(x)
    }

    fn integer_bits(&self, source: Source) -> u64 {
        let bits = self.to.bits();
        let (least, most) = if self.to.is_signed() {
            (-(1_i128 << (bits - 1)), (1_i128 << (bits - 1)) - 1)
        } else {
            (0, (1_i128 << bits) - 1)
        };
        let keep = |value: i128| (value & ((1_i128 << bits) - 1)) as u64;
        match source {
            Source::Integer(value) if self.saturate => keep(value.clamp(least, most)),
            Source::Integer(value) => keep(value),
            // The value of NaN is PTX's: the middle of a 64-bit range, else zero.
            Source::Float(x) if x.is_nan() => {
                if bits == 64 || self.from == Type::F64 {
                    1 << (bits - 1)
                } else {
                    0
                }
            }
            Source::Float(x) => keep((integral(x, self.round) as i128).clamp(least, most)),
        }
    }

    fn float_bits(&self, source: Source) -> u64 {
        let mut x = match source {
            // In two exact parts, so that a narrower format sees one rounding of the whole.
            Source::Integer(value) if self.to == Type::F64 && self.round == Round::Nearest => value as f64,
            Source::Integer(value) => {
                let high = value >> 32 << 32;
                sum_to_odd(high as f64, (value - high) as f64)
            }
            Source::Float(x) => x,
        };
        if self.integral {
            x = integral(x, self.round);
        }
        if self.relu && x <= 0.0 {
            x = 0.0;
        }
        if self.to == Type::F64 {
            return x.to_bits();
        }
        let round = if self.integral { Round::Nearest } else { self.round };
        let bits = match format_of(self.to) {
            Some(TF32) => narrow(x, TF32, round) << 13,
            Some(format) => narrow(x, format, round),
            None => 0,
        };
        if self.to != Type::F32 {
            return u64::from(bits);
        }
        let mut value = f32::from_bits(bits);
        if self.ftz {
            value = flush(value);
        }
        f32_bits(if self.saturate { saturate(value) } else { value })
    }
}

/// f32 to bf16, to nearest: the bits are the upper half, and a carry may go into the exponent.
fn bf16_nearest(bits: u32) -> u64 {
    if f32::from_bits(bits).is_nan() {
        return 0x7fff;
    }
    u64::from((bits + 0x7fff + (bits >> 16 & 1)) >> 16)
}
