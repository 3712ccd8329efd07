//! Coordinates in which features are alike, and the leading directions of a matrix.
//!
//! Low-rank fits over raw features would find the features with the largest numbers. In *whitened*
//! coordinates every direction varies by about 1, except directions so weak that a small ridge leaves
//! them below it. [`leading_directions`] is the truncated singular value decomposition such fits start from.

use super::cholesky::{Factor, dot};
use super::ridge::{Covariance, RidgeError};
use super::statistics::SplitMix;

/// Share of a standardised feature's variance that is added before factoring: keeps directions that
/// hardly vary from being blown up to the size of the others.
const RIDGE: f64 = 1e-3;

/// Rounds of subspace iteration. Directions that are not told apart by then are equally good.
const ROUNDS: usize = 40;

/// A linear change of coordinates: x̃ = L⁻¹ D⁻¹ x, with D the features' deviations and L the factor of
/// their correlations. Features that never vary are left out.
#[derive(Debug, Clone)]
pub struct Whitening {
    /// Features that vary, ascending.
    kept: Vec<usize>,
    deviations: Vec<f64>,
    factor: Factor,
}

impl Whitening {
    /// Coordinates for the first `features` columns of a covariance.
    pub fn new(covariance: &Covariance, features: usize) -> Result<Self, RidgeError> {
        let deviations = covariance.deviations(features);
        let kept: Vec<usize> = (0..features).filter(|&feature| deviations[feature] > 0.0).collect();
        let entry = |row: usize, column: usize| {
            let correlation =
                covariance.at(kept[row], kept[column]) / (deviations[kept[row]] * deviations[kept[column]]);
            correlation + if row == column { RIDGE } else { 0.0 }
        };
        let factor = Factor::of(kept.len(), entry).map_err(|at| RidgeError::Singular { column: kept[at] })?;
        Ok(Self { kept, deviations, factor })
    }

    /// Whitened coordinates.
    pub fn width(&self) -> usize {
        self.kept.len()
    }

    /// The coordinates of a point, `[features]` → `[width]`.
    pub fn apply(&self, point: &[f64]) -> Vec<f64> {
        let mut out: Vec<f64> = self.kept.iter().map(|&feature| point[feature] / self.deviations[feature]).collect();
        self.factor.solve_lower(&mut out);
        out
    }

    /// The weights `[features]` of raw features that give the same function as `weights` `[width]` of
    /// whitened ones.
    pub fn raw_weights(&self, weights: &[f64]) -> Vec<f64> {
        let mut solved = weights.to_vec();
        self.factor.solve_upper(&mut solved);
        let mut out = vec![0.0; self.deviations.len()];
        for (&feature, weight) in self.kept.iter().zip(solved) {
            out[feature] = weight / self.deviations[feature];
        }
        out
    }
}

/// The `count` leading right singular vectors of a matrix `[rows, columns]`, row by row, orthonormal, by
/// subspace iteration from a seeded start. Fewer come back where the matrix has fewer.
pub fn leading_directions(matrix: &[f64], columns: usize, count: usize, seed: u64) -> Vec<Vec<f64>> {
    let rows = matrix.len() / columns.max(1);
    let mut square = vec![0.0; columns * columns];
    for row in matrix.chunks_exact(columns.max(1)) {
        for (i, &x) in row.iter().enumerate() {
            square[i * columns..][..columns].iter_mut().zip(row).for_each(|(sum, y)| *sum += x * y);
        }
    }
    let mut random = SplitMix::new(seed);
    // A few more than asked for make the wanted ones converge.
    let tracked = (count + 8).min(columns).min(rows.max(1));
    let mut basis: Vec<Vec<f64>> = (0..tracked).map(|_| (0..columns).map(|_| random.unit() - 0.5).collect()).collect();
    orthonormalize(&mut basis);
    for _ in 0..ROUNDS {
        for direction in &mut basis {
            *direction = square.chunks_exact(columns).map(|row| dot(row, direction)).collect();
        }
        orthonormalize(&mut basis);
    }
    basis.truncate(count);
    basis
}

/// Gram and Schmidt's procedure, twice for accuracy; directions that vanish are dropped.
fn orthonormalize(basis: &mut Vec<Vec<f64>>) {
    let mut done: Vec<Vec<f64>> = Vec::with_capacity(basis.len());
    for mut direction in basis.drain(..) {
        let before = dot(&direction, &direction).sqrt();
        for _ in 0..2 {
            for other in &done {
                let share = dot(&direction, other);
                direction.iter_mut().zip(other).for_each(|(x, y)| *x -= share * y);
            }
        }
        let length = dot(&direction, &direction).sqrt();
        if length.is_finite() && length > 1e-9 * before && length > 0.0 {
            direction.iter_mut().for_each(|x| *x /= length);
            done.push(direction);
        }
    }
    *basis = done;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::learning::ridge::Moments;

    #[test]
    fn whitened_features_vary_by_one_and_functions_stay_the_same() {
        let mut random = SplitMix::new(4);
        let rows: Vec<f32> = (0..4_000)
            .flat_map(|_| {
                let (a, b) = (random.unit() as f32, random.unit() as f32);
                [1_000.0 + 30.0 * a, a + 0.5 * b, 7.0, 0.01 * b]
            })
            .collect();
        let mut moments = Moments::new(4, 1);
        moments.add(&rows).expect("finite rows");
        let covariance = moments.finish();
        let whitening = Whitening::new(&covariance, 4).expect("positive definite");
        assert_eq!(whitening.width(), 3);
        let centred: Vec<Vec<f64>> = rows
            .chunks_exact(4)
            .map(|row| row.iter().zip(&covariance.mean).map(|(&x, mean)| f64::from(x) - mean).collect())
            .collect();
        let whitened: Vec<Vec<f64>> = centred.iter().map(|row| whitening.apply(row)).collect();
        for axis in 0..2 {
            let variance = whitened.iter().map(|row| row[axis] * row[axis]).sum::<f64>() / 4_000.0;
            assert!((variance - 1.0).abs() <= 0.05, "axis {axis} varies by {variance}");
        }
        let weights = [0.3, -2.0, 1.1];
        let raw = whitening.raw_weights(&weights);
        for (row, white) in centred.iter().zip(&whitened).take(20) {
            let (got, expected) = (dot(&raw, row), dot(&weights, white));
            assert!((got - expected).abs() <= 1e-9 * (1.0 + expected.abs()), "{got} for {expected}");
        }
    }

    #[test]
    fn leading_directions_of_a_planted_matrix() {
        // 3 u1 v1' + 1 u2 v2' with orthogonal v.
        let (v1, v2) = ([0.6, 0.8, 0.0], [0.0, 0.0, 1.0]);
        let (u1, u2) = ([1.0, 0.0, 0.0, 0.0], [0.0, 0.5, 0.5, 0.5]);
        let matrix: Vec<f64> = (0..4).flat_map(|i| (0..3).map(move |j| 3.0 * u1[i] * v1[j] + u2[i] * v2[j])).collect();
        let found = leading_directions(&matrix, 3, 2, 1);
        assert_eq!(found.len(), 2);
        assert!((dot(&found[0], &v1).abs() - 1.0).abs() <= 1e-9, "{found:?}");
        assert!((dot(&found[1], &v2).abs() - 1.0).abs() <= 1e-9, "{found:?}");
        assert_eq!(leading_directions(&matrix, 3, 9, 1).len(), 2);
    }
}
