//! What every device must agree on when it draws a token.
//!
//! Floating-point sums depend on their order, and a draw that depends on a sum's order gives other
//! tokens on another device, instruction set or number of threads. So a draw is exact in integers: one
//! shared [`exp`], one [`weight`] a token in fixed point, sums in u64, and one comparison in u128. What
//! follows from the weights (the [`threshold`], the nucleus' [`nucleus_target`] and [`NucleusCut`]) is
//! the same in any order of evaluation.
//!
//! This is not the sampler: that is [`crate::Device::sample`]. The functions here are the plain
//! definition; a device may compute them eight at a time, but bit for bit the same.

/// Binary digits after the point of a [`weight`]: the likeliest token weighs 2^40.
pub const WEIGHT_BITS: u32 = 40;

/// [`exp`] of anything not above this is 0: beyond it a result would be denormal.
pub const EXP_FLOOR: f32 = -87.0;

/// [`exp`] of anything above this is exp of this, so that no result is infinite.
pub const EXP_CEILING: f32 = 88.0;

/// 1.5 * 2^23: adding it rounds a small f32 to a whole number, held in the low bits.
pub(crate) const ROUNDER: f32 = 12_582_912.0;

/// ln 2 in two parts; the first has few digits, so that its products with whole numbers are exact.
pub(crate) const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];

/// (exp(r) - 1 - r) / r² on |r| <= ln(2)/2, highest power first (the coefficients of Cephes' expf).
pub(crate) const EXP_POLYNOMIAL: [f32; 6] =
    [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];

/// e^x within 2 units in the last place, the same on every device.
///
/// `exp(0) == 1` exactly; 0 where x is not above [`EXP_FLOOR`] (NaN included); exp([`EXP_CEILING`])
/// above that. The order of operations is the definition: every multiplication that feeds an addition
/// is fused.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    let clamped = if x < EXP_CEILING { x } else { EXP_CEILING };
    let rounded = clamped.mul_add(std::f32::consts::LOG2_E, ROUNDER);
    let n = rounded - ROUNDER;
    let r = n.mul_add(-LN_2[1], n.mul_add(-LN_2[0], clamped));
    let mut p = EXP_POLYNOMIAL[0];
    for c in &EXP_POLYNOMIAL[1..] {
        p = p.mul_add(r, *c);
    }
    let mantissa = p.mul_add(r * r, r) + 1.0;
    // The low bits of `rounded` hold n; moved to the exponent's place they make 2^n.
    let power = f32::from_bits((rounded.to_bits() << 23).wrapping_add(1.0f32.to_bits()));
    if x > EXP_FLOOR { mantissa * power } else { 0.0 }
}

/// The weight of a token in a draw: floor(exp(difference) · 2^40), where `difference` is its scaled logit
/// less the largest, so at most 0. NaN and −∞ weigh nothing.
#[inline(always)]
pub fn weight(difference: f32) -> u64 {
    weight_of(exp(difference))
}

/// floor(e · 2^40) of an e that [`exp`] gave: the product is exact, for it only moves the exponent.
#[inline(always)]
pub fn weight_of(e: f32) -> u64 {
    (e * (1u64 << WEIGHT_BITS) as f32) as u64
}

/// floor(random · total / 2^64), below `total`: the token drawn is the first, in order of id, whose
/// running sum of weights exceeds this.
#[inline]
pub fn threshold(random: u64, total: u64) -> u64 {
    ((u128::from(random) * u128::from(total)) >> 64) as u64
}

/// The weight that a nucleus must reach: ceil(total · floor(top_p · 2^32) / 2^32), and at least 1, so
/// that some token is always kept. `total` where `top_p` is 1 or more, or NaN.
pub fn nucleus_target(total: u64, top_p: f32) -> u64 {
    if top_p < 1.0 {
        let share = (f64::from(top_p.max(0.0)) * (1u64 << 32) as f64) as u64;
        let product = u128::from(total) * u128::from(share);
        (product.div_ceil(1 << 32) as u64).max(1)
    } else {
        total
    }
}

/// Where a nucleus ends in the order of falling weight, ties to the lower token: its last token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NucleusCut {
    /// The last token's weight.
    pub weight: u64,
    /// The last token.
    pub token: u32,
}

impl NucleusCut {
    /// Whether a token belongs to the nucleus.
    #[inline]
    pub fn keeps(&self, weight: u64, token: u32) -> bool {
        weight > self.weight || (weight == self.weight && token <= self.token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Distance in units in the last place of the nearest f32.
    fn error_in_ulps(x: f32) -> f64 {
        let expected = f64::from(x).exp();
        let nearest = expected as f32;
        let ulp = f64::from(f32::from_bits(nearest.to_bits() + 1)) - f64::from(nearest);
        (f64::from(exp(x)) - expected).abs() / ulp
    }

    #[test]
    fn exp_is_accurate_over_its_range() {
        let mut worst = 0.0f64;
        let mut count = 0;
        let mut x = EXP_FLOOR + 1e-3;
        while x < EXP_CEILING {
            worst = worst.max(error_in_ulps(x));
            x += 1.7e-4;
            count += 1;
        }
        for bits in (1e-30f32.to_bits()..1.0f32.to_bits()).step_by(1009) {
            worst = worst.max(error_in_ulps(-f32::from_bits(bits)));
            count += 1;
        }
        assert!(count > 1_000_000, "only {count} points");
        assert!(worst > 0.3, "rounding alone must show: {worst}");
        assert!(worst <= 2.0, "{worst} units in the last place");
    }

    #[test]
    fn exp_is_exact_where_the_sampler_needs_it() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-0.0), 1.0);
        for nothing in [EXP_FLOOR, -88.0, -1e30, f32::MIN, f32::NEG_INFINITY, f32::NAN] {
            assert_eq!(exp(nothing).to_bits(), 0, "{nothing}");
        }
        assert!(exp(-86.9) > f32::MIN_POSITIVE);
        assert_eq!(exp(f32::INFINITY), exp(EXP_CEILING));
        assert!(exp(f32::MAX).is_finite());
        // No difference is above 0, so no weight may be above that of the likeliest.
        for bits in (0..f32::MIN_POSITIVE.to_bits()).step_by(99_991).chain((0..1.0f32.to_bits()).step_by(4999)) {
            assert!(exp(-f32::from_bits(bits)) <= 1.0);
        }
    }

    #[test]
    fn exp_never_falls_by_more_than_its_rounding() {
        // Neighbouring inputs are apart by less than the error, so steps down by an ulp may occur.
        let mut last = exp(-20.0);
        for bits in (1e-3f32.to_bits()..20.0f32.to_bits()).rev() {
            let y = exp(-f32::from_bits(bits));
            assert!(y >= last * (1.0 - 2.5e-7), "{} after {last} at {}", y, -f32::from_bits(bits));
            last = y;
        }
    }

    #[test]
    fn weights_are_fixed_point() {
        assert_eq!(weight(0.0), 1 << 40);
        assert_eq!(weight(f32::NEG_INFINITY), 0);
        assert_eq!(weight(f32::NAN), 0);
        assert_eq!(weight(-30.0), 0, "below 2^-40");
        let half = weight(-std::f32::consts::LN_2);
        assert!(half.abs_diff(1 << 39) <= 1 << 17, "{half}");
    }

    #[test]
    fn thresholds_cover_the_total_and_never_reach_it() {
        for total in [1, 2, 3, 1 << 40, u64::MAX] {
            assert_eq!(threshold(0, total), 0);
            assert_eq!(threshold(u64::MAX, total), total - 1);
        }
        assert_eq!(threshold(1 << 63, 10), 5);
    }

    #[test]
    fn a_nucleus_target_is_exact_at_its_bounds() {
        assert_eq!(nucleus_target(1000, 1.0), 1000);
        assert_eq!(nucleus_target(1000, 2.0), 1000);
        assert_eq!(nucleus_target(1000, f32::NAN), 1000);
        assert_eq!(nucleus_target(1000, 0.5), 500);
        assert_eq!(nucleus_target(1001, 0.5), 501);
        assert_eq!(nucleus_target(1000, 0.0), 1);
        assert_eq!(nucleus_target(1000, -1.0), 1);
        let cut = NucleusCut { weight: 5, token: 7 };
        assert!(cut.keeps(6, 9) && cut.keeps(5, 7) && !cut.keeps(5, 8) && !cut.keeps(4, 0));
    }
}
