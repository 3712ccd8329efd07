//! The gate of the feed-forward part: `silu(g)·u = g·u / (1 + e^−g)`, for the 16 results of a tile.

use super::lanes::{Simd, exp, for_every_isa};
use super::tile::Lanes;

for_every_isa! {
    /// silu(gate) times up, lane by lane.
    pub(crate) fn silu_mul(gate: &Lanes, up: &Lanes) -> Lanes = silu_mul_lanes;
}

#[inline(always)]
fn silu_mul_lanes<S: Simd>(s: S, gate: &Lanes, up: &Lanes) -> Lanes {
    let mut out = [0.0; 16];
    let halves = gate.as_chunks::<8>().0.iter().zip(up.as_chunks::<8>().0);
    for ((gate, up), out) in halves.zip(out.as_chunks_mut::<8>().0) {
        let (g, u) = (s.load(gate), s.load(up));
        let e = exp(s, s.sub(s.splat(0.0), g));
        s.store(s.div(s.mul(g, u), s.add(s.splat(1.0), e)), out);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::isa::{Detected, Isa};

    #[test]
    fn silu_is_right_and_the_same_everywhere() {
        let scalar = Detected::new(Isa::Scalar).unwrap();
        let best = Detected::new(Isa::best()).unwrap();
        for start in -120..120 {
            let gate: Lanes = std::array::from_fn(|i| start as f32 + i as f32 / 16.0);
            let up: Lanes = std::array::from_fn(|i| 1.5 - i as f32);
            let values = silu_mul(scalar, &gate, &up);
            for i in 0..16 {
                let (g, u) = (f64::from(gate[i]), f64::from(up[i]));
                let expected = g * u / (1.0 + (-g).exp());
                assert!((f64::from(values[i]) - expected).abs() <= 1e-6 * expected.abs() + 1e-30, "silu({g})·{u}");
            }
            assert_eq!(values.map(f32::to_bits), silu_mul(best, &gate, &up).map(f32::to_bits));
        }
    }
}
