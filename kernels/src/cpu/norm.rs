//! RMS norm of one row: `x · gain / sqrt(mean(x²) + epsilon)`.
//!
//! The sum of squares runs in the one order of [`super::lanes::dot`], so a row's result is its own
//! whatever the instruction set or the batch. Quantising the result is the linear layers' part.

use super::lanes::{Simd, dot, for_every_isa};

for_every_isa! {
    /// Writes the norm of `x` times `gain` to `out`; all three have one length, H.
    pub(crate) fn rms_norm(x: &[f32], gain: &[f32], epsilon: f32, out: &mut [f32]) = norm;
}

#[inline(always)]
fn norm<S: Simd>(s: S, x: &[f32], gain: &[f32], epsilon: f32, out: &mut [f32]) {
    let scale = 1.0 / (dot(s, x, x) / x.len() as f32 + epsilon).sqrt();
    for ((o, x), g) in out.iter_mut().zip(x).zip(gain) {
        *o = (x * scale) * g;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::testing::{Random, bits, every_isa};

    #[test]
    fn rows_are_divided_by_their_root_mean_square() {
        let mut random = Random(1);
        for width in [1, 8, 30, 576, 1000] {
            let (x, gain) = (random.bells(width, 3.0), random.bells(width, 1.0));
            let squares: f64 = x.iter().map(|x| f64::from(*x).powi(2)).sum();
            let scale = 1.0 / (squares / width as f64 + 1e-5).sqrt();
            let mut all = Vec::new();
            for isa in every_isa() {
                let mut out = vec![f32::NAN; width];
                rms_norm(isa, &x, &gain, 1e-5, &mut out);
                for ((out, x), gain) in out.iter().zip(&x).zip(&gain) {
                    let expected = f64::from(*x) * scale * f64::from(*gain);
                    assert!((f64::from(*out) - expected).abs() <= 1e-6 * expected.abs());
                }
                all.push(bits(&out));
            }
            assert!(all.windows(2).all(|pair| pair[0] == pair[1]), "the same bits everywhere");
        }
        let mut out = [1.0; 4];
        rms_norm(every_isa()[0], &[0.0; 4], &[1.0; 4], 1e-5, &mut out);
        assert_eq!(out, [0.0; 4], "epsilon keeps a zero row from dividing by zero");
    }
}
