//! The arithmetic of a blend, bit for bit as the host does it.
//!
//! A policy that answers with [`Steering::blend`](crate::Steering::blend) needs none of this. It is
//! for policies that compute their own adjustments and want them equal to a blend's, and for the
//! host's tests, which compare the two. Everything is f32, in one written order, without fused
//! operations: WebAssembly has none, and the same bits must come out everywhere.

use crate::Baseline;

/// The baseline of one head's row of values. `logits` are the candidates' base logits, as many as
/// values; `state` is the value of the sequence as it stands, read for [`Baseline::State`] only.
/// No candidates have the baseline 0.
pub fn baseline(kind: Baseline, values: &[f32], logits: &[f32], state: f32) -> f32 {
    match kind {
        Baseline::None => 0.0,
        Baseline::State => state,
        _ if values.is_empty() || logits.is_empty() => 0.0,
        Baseline::Candidates => {
            let mut sum = 0.0f32;
            for value in values {
                sum += value;
            }
            sum / values.len() as f32
        }
        Baseline::Weighted => {
            let (mut sum, mut mass) = (0.0f32, 0.0f32);
            // Exponentials eight at a time, independent of each other; the sums in candidate order.
            for (values, logits_here) in values.chunks(8).zip(logits.chunks(8)) {
                let mut weights = [0.0f32; 8];
                for (weight, logit) in weights.iter_mut().zip(logits_here) {
                    *weight = logit - logits[0];
                }
                weights = weights.map(exp);
                for (value, weight) in values.iter().zip(&weights[..logits_here.len()]) {
                    sum += weight * value;
                    mass += weight;
                }
            }
            sum / mass
        }
    }
}

/// Adds one term, `weight * (value - baseline)`, to each candidate's adjustment. Starting from zeros
/// and adding the terms in the order of a blend gives what the host adds.
pub fn add_term(adjust: &mut [f32], weight: f32, values: &[f32], baseline: f32) {
    for (delta, value) in adjust.iter_mut().zip(values) {
        *delta += weight * (value - baseline);
    }
}

/// e to the power x, within 2 units in the last place, the same bits on every machine. Below -87 it
/// is 0, above 88 it is that of 88.
///
/// The argument is split into n ln 2 + r with |r| <= ln 2 / 2, in two steps so that r is exact, and
/// exp(r) is the polynomial of degree 6 of the Cephes library (`expf.c`, Moshier).
#[inline]
pub fn exp(x: f32) -> f32 {
    // Selections in place of branches, so that a loop over candidates runs in vectors. NaN passes through.
    let bounded = if x > 88.0 { 88.0 } else { x };
    let bounded = if bounded < -87.0 { -87.0 } else { bounded };
    let n = (bounded * core::f32::consts::LOG2_E + 0.5).floor();
    let r = bounded - n * 0.693_359_4 - n * -2.121_944_4e-4;
    let mut p = 1.987_569_1e-4f32;
    for coefficient in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = p * r + coefficient;
    }
    let value = (p * r * r + r + 1.0) * f32::from_bits(((n as i32 + 127) as u32) << 23);
    if x < -87.0 { 0.0 } else { value }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_accurate_and_total() {
        let mut x = -86.9f32;
        while x < 87.9 {
            let (found, exact) = (f64::from(exp(x)), f64::from(x).exp());
            assert!(((found - exact) / exact).abs() <= 2.4e-7, "exp({x}) = {found}, not {exact}");
            x += 0.0137;
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert!(exp(f32::INFINITY).is_finite());
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn baselines_are_what_the_contract_says() {
        let (values, logits) = ([1.0, 3.0, 5.0], [2.0, 2.0, 2.0]);
        assert_eq!(baseline(Baseline::None, &values, &logits, 9.0), 0.0);
        assert_eq!(baseline(Baseline::Candidates, &values, &logits, 9.0), 3.0);
        assert_eq!(baseline(Baseline::Weighted, &values, &logits, 9.0), 3.0);
        assert_eq!(baseline(Baseline::State, &values, &logits, 9.0), 9.0);
        assert_eq!(baseline(Baseline::Candidates, &[], &[], 9.0), 0.0);
        let skewed = [0.0, f32::NEG_INFINITY, f32::NEG_INFINITY];
        assert_eq!(baseline(Baseline::Weighted, &values, &skewed, 9.0), 1.0);
    }
}
