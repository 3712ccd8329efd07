//! Rounding to and from the small float formats, and sums with the exact rounding asked for.
//!
//! Everything goes through f64: products of f32 are exact there, and a sum is rounded *to odd* first,
//! so that the second rounding, to a narrower format, is the correct one in every mode. This is about
//! bits, not speed; the common cases have shortcuts where they are used. Start at [`narrow`].

/// How a result is rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Round {
    /// To nearest, ties to even: `.rn`.
    Nearest,
    /// To nearest, ties away from zero: `.rna`.
    Away,
    /// Towards zero: `.rz`.
    Zero,
    /// Towards minus infinity: `.rm`.
    Down,
    /// Towards plus infinity: `.rp`.
    Up,
}

/// A binary float format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Format {
    exponent_bits: u32,
    mantissa_bits: u32,
    /// The bits of the NaN that the hardware writes.
    nan: u32,
}

pub(crate) const F16: Format = Format { exponent_bits: 5, mantissa_bits: 10, nan: 0x7fff };
pub(crate) const BF16: Format = Format { exponent_bits: 8, mantissa_bits: 7, nan: 0x7fff };
pub(crate) const TF32: Format = Format { exponent_bits: 8, mantissa_bits: 10, nan: 0x3_ffff };
pub(crate) const F32: Format = Format { exponent_bits: 8, mantissa_bits: 23, nan: 0x7fff_ffff };

/// `x` rounded to `format`, in its low bits.
pub(crate) fn narrow(x: f64, format: Format, round: Round) -> u32 {
    let bits = x.to_bits();
    let negative = bits >> 63 == 1;
    let sign = u32::from(negative) << (format.exponent_bits + format.mantissa_bits);
    let infinity = ((1_u32 << format.exponent_bits) - 1) << format.mantissa_bits;
    if x.is_nan() {
        return format.nan;
    }
    if x.is_infinite() {
        return sign | infinity;
    }
    let field = (bits >> 52 & 0x7ff) as i32;
    let mantissa = if field == 0 { 0 } else { bits & ((1 << 52) - 1) | 1 << 52 };
    if mantissa == 0 && bits << 1 == 0 {
        return sign;
    }
    // f64 subnormals are below half of any format's smallest number: a sticky bit stands for them.
    let (mantissa, exponent) = if mantissa == 0 { (1, -1022) } else { (mantissa, field - 1023) };
    let least = 2 - (1 << (format.exponent_bits - 1));
    let quantum = exponent.max(least) - format.mantissa_bits as i32;
    let shift = (quantum - (exponent - 52)).min(63) as u32;
    let (mut kept, rest, half) = (mantissa >> shift, mantissa & ((1 << shift) - 1), 1_u64 << (shift - 1));
    let up = match round {
        Round::Nearest => rest > half || rest == half && kept & 1 == 1,
        Round::Away => rest >= half,
        Round::Zero => false,
        Round::Down => negative && rest != 0,
        Round::Up => !negative && rest != 0,
    };
    kept += u64::from(up);
    let base = (quantum + format.mantissa_bits as i32 - least) as u64;
    let magnitude = (base << format.mantissa_bits) + kept;
    if magnitude < u64::from(infinity) {
        return sign | magnitude as u32;
    }
    let to_infinity = match round {
        Round::Nearest | Round::Away => true,
        Round::Zero => false,
        Round::Down => negative,
        Round::Up => !negative,
    };
    sign | if to_infinity { infinity } else { infinity - 1 }
}

/// The value of `bits` in `format`.
pub(crate) fn widen(bits: u32, format: Format) -> f64 {
    let mantissa = bits & ((1 << format.mantissa_bits) - 1);
    let field = bits >> format.mantissa_bits & ((1 << format.exponent_bits) - 1);
    let negative = bits >> (format.mantissa_bits + format.exponent_bits) & 1 == 1;
    let bias = (1_i32 << (format.exponent_bits - 1)) - 1;
    let magnitude = if field == (1 << format.exponent_bits) - 1 {
        if mantissa == 0 { f64::INFINITY } else { f64::NAN }
    } else if field == 0 {
        f64::from(mantissa) * power_of_two(1 - bias - format.mantissa_bits as i32)
    } else {
        f64::from(mantissa | 1 << format.mantissa_bits)
            * power_of_two(field as i32 - bias - format.mantissa_bits as i32)
    };
    if negative { -magnitude } else { magnitude }
}

/// 2 to the `exponent`, for exponents of normal f64.
fn power_of_two(exponent: i32) -> f64 {
    f64::from_bits(((exponent + 1023) as u64) << 52)
}

/// `a + b` rounded to odd: exact where it can be, otherwise with the last bit set, so that a later
/// rounding to a format with at least two bits less is the rounding of the exact sum.
pub(crate) fn sum_to_odd(a: f64, b: f64) -> f64 {
    let sum = a + b;
    if !sum.is_finite() {
        return sum;
    }
    // Knuth's two-sum: `error` is exactly what the rounding of `sum` left out.
    let part = sum - a;
    let error = (a - (sum - part)) + (b - part);
    let bits = sum.to_bits();
    if error == 0.0 || bits & 1 == 1 {
        return sum;
    }
    let away_from_zero = (error > 0.0) == (sum > 0.0);
    f64::from_bits(if away_from_zero { bits + 1 } else { bits - 1 })
}

/// `a * b + c` of values whose product is exact in f64, rounded to odd.
pub(crate) fn fma_to_odd(a: f64, b: f64, c: f64) -> f64 {
    sum_to_odd(a * b, c)
}

/// A zero of the same sign in place of an f32 subnormal: `.ftz`.
#[inline(always)]
pub(crate) fn flush(x: f32) -> f32 {
    if x.abs() < f32::MIN_POSITIVE { 0.0_f32.copysign(x) } else { x }
}

/// The bits of an f32 result, with the one NaN that the hardware writes.
#[inline(always)]
pub(crate) fn f32_bits(x: f32) -> u64 {
    if x.is_nan() { 0x7fff_ffff } else { u64::from(x.to_bits()) }
}

/// The value of f16 bits.
#[inline(always)]
pub(crate) fn f16_value(bits: u64) -> f64 {
    widen(bits as u32 & 0xffff, F16)
}

/// The value of bf16 bits.
#[inline(always)]
pub(crate) fn bf16_value(bits: u64) -> f32 {
    f32::from_bits((bits as u32 & 0xffff) << 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_f16_survives_and_rounding_is_correct() {
        for bits in 0..=0xffff_u32 {
            let value = widen(bits, F16);
            if value.is_nan() {
                assert_eq!(narrow(value, F16, Round::Nearest), 0x7fff);
                continue;
            }
            for round in [Round::Nearest, Round::Away, Round::Zero, Round::Down, Round::Up] {
                assert_eq!(narrow(value, F16, round), bits, "{bits:#x} {round:?}");
            }
        }
        assert_eq!(narrow(65519.99, F16, Round::Nearest), 0x7bff);
        assert_eq!(narrow(65520.0, F16, Round::Nearest), 0x7c00);
        assert_eq!(narrow(65536.0, F16, Round::Zero), 0x7bff);
        assert_eq!(narrow(1.0 + 1.0 / 2048.0, F16, Round::Nearest), 0x3c00);
        assert_eq!(narrow(1.0 + 1.0 / 2048.0, F16, Round::Away), 0x3c01);
        assert_eq!(narrow(-1e-30, F16, Round::Down), 0x8001);
        assert_eq!(narrow(-1e-30, F16, Round::Up), 0x8000);
    }

    #[test]
    fn f32_rounding_is_that_of_the_machine() {
        let mut state = 1_u64;
        for _ in 0..100_000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let x = f64::from_bits(state);
            if !x.is_nan() {
                assert_eq!(narrow(x, F32, Round::Nearest), (x as f32).to_bits(), "{x:e}");
            }
            let (a, b) = (f32::from_bits(state as u32), f32::from_bits((state >> 32) as u32));
            let sum = sum_to_odd(f64::from(a), f64::from(b));
            if !(a + b).is_nan() {
                assert_eq!(narrow(sum, F32, Round::Nearest), (a + b).to_bits(), "{a:e} + {b:e}");
            }
        }
    }
}
