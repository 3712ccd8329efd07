//! Ridge regression of a target on products of a state's factors and a token's embedding.
//!
//! The model is `y ≈ Σ_j p_j (B e_a)_j + δ_a`: p the state's factors, e_a the token's embedding, δ_a a bias of
//! the token. With p given it is linear in B and δ, but has more features than can be written out
//! (factors times embedding width). Conjugate gradients need them only inside two products, and
//! samples sorted by token make both cheap: B e_a is computed once a token, not once a sample.
//!
//! Cost of an iteration: 4 · tokens · factors · embedding width operations and a sweep over the factors.
//! Every sum is in an order that does not depend on the number of threads.

use std::ops::Range;

use super::threads::on_threads;

/// Iterations at most; a solve usually stops earlier.
const ITERATIONS_MAX: usize = 40;

/// A solve stops when the preconditioned residual has fallen to this share of its start.
const TOLERANCE: f64 = 1e-3;

/// Samples grouped by token.
#[derive(Debug, Clone)]
pub struct Design {
    /// State factors a sample, `[n, factors]`.
    pub factors: Vec<f32>,
    /// Factors of one sample.
    pub rank: usize,
    /// The samples of each distinct token.
    pub segments: Vec<Range<usize>>,
    /// Embeddings of the distinct tokens, `[segments, width]`.
    pub embeddings: Vec<f32>,
    /// Width of an embedding.
    pub width: usize,
    /// Threads to work with; the result does not depend on it.
    pub threads: usize,
}

/// What a solve finds.
#[derive(Debug, Clone, PartialEq)]
pub struct Solution {
    /// B, `[rank, width]`.
    pub matrix: Vec<f32>,
    /// δ of every distinct token, `[segments]`.
    pub bias: Vec<f32>,
}

/// Penalties in samples: a token seen this often keeps half of its bias.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Penalty {
    /// Of B's entries.
    pub matrix: f64,
    /// Of token biases.
    pub bias: f64,
}

impl Solution {
    fn zero(design: &Design) -> Self {
        Self { matrix: vec![0.0; design.rank * design.width], bias: vec![0.0; design.segments.len()] }
    }

    fn dot(&self, other: &Self) -> f64 {
        let product = |left: &[f32], right: &[f32]| -> f64 {
            left.iter().zip(right).map(|(&l, &r)| f64::from(l) * f64::from(r)).sum()
        };
        product(&self.matrix, &other.matrix) + product(&self.bias, &other.bias)
    }

    fn add(&mut self, scale: f64, other: &Self) {
        let add = |left: &mut [f32], right: &[f32]| {
            left.iter_mut().zip(right).for_each(|(l, &r)| *l = (f64::from(*l) + scale * f64::from(r)) as f32);
        };
        add(&mut self.matrix, &other.matrix);
        add(&mut self.bias, &other.bias);
    }
}

impl Design {
    /// Predictions of all samples, `[n]`.
    pub fn predict(&self, solution: &Solution) -> Vec<f32> {
        let parts = on_threads(self.segments.len(), self.threads, |token| {
            let embedding = &self.embeddings[token * self.width..][..self.width];
            let rows = solution.matrix.chunks_exact(self.width.max(1));
            let projected: Vec<f32> = rows.map(|row| dot(row, embedding)).collect();
            let samples = self.segments[token].clone();
            let factors = self.factors[samples.start * self.rank..samples.end * self.rank].chunks_exact(self.rank);
            factors.map(|factors| dot(factors, &projected) + solution.bias[token]).collect::<Vec<f32>>()
        });
        parts.concat()
    }

    /// The transpose: gradients of B and δ from a number a sample.
    fn gather(&self, numbers: &[f32]) -> Solution {
        let sums = on_threads(self.segments.len(), self.threads, |token| {
            let samples = self.segments[token].clone();
            let factors = self.factors[samples.start * self.rank..samples.end * self.rank].chunks_exact(self.rank);
            let mut sum = vec![0.0_f32; self.rank + 1];
            for (factors, &number) in factors.zip(&numbers[samples]) {
                sum.iter_mut().zip(factors).for_each(|(sum, factor)| *sum += factor * number);
                sum[self.rank] += number;
            }
            sum
        });
        let matrix = on_threads(self.rank, self.threads, |rank| {
            let mut row = vec![0.0_f32; self.width];
            for (sum, embedding) in sums.iter().zip(self.embeddings.chunks_exact(self.width.max(1))) {
                let scale = sum[rank];
                row.iter_mut().zip(embedding).for_each(|(row, x)| *row += scale * x);
            }
            row
        });
        Solution { matrix: matrix.concat(), bias: sums.iter().map(|sum| sum[self.rank]).collect() }
    }

    /// The ridge solution for a target a sample, from `start` or from zero.
    pub fn solve(&self, targets: &[f32], penalty: Penalty, start: Option<&Solution>) -> Solution {
        let mut solution = start.cloned().unwrap_or_else(|| Solution::zero(self));
        // Diagonal of the normal matrix, approximately: factors and embeddings vary by about 1.
        let samples = targets.len() as f64;
        let precondition = |gradient: &Solution| {
            let matrix = (samples + penalty.matrix).recip();
            let bias = self.segments.iter().map(|samples| (samples.len() as f64 + penalty.bias).recip());
            Solution {
                matrix: gradient.matrix.iter().map(|&x| (f64::from(x) * matrix) as f32).collect(),
                bias: gradient.bias.iter().zip(bias).map(|(&x, scale)| (f64::from(x) * scale) as f32).collect(),
            }
        };
        let penalize = |out: &mut Solution, of: &Solution, sign: f64| {
            let part = Solution { matrix: of.matrix.clone(), bias: vec![0.0; of.bias.len()] };
            out.add(sign * penalty.matrix, &part);
            let part = Solution { matrix: vec![0.0; of.matrix.len()], bias: of.bias.clone() };
            out.add(sign * penalty.bias, &part);
        };
        let predicted = self.predict(&solution);
        let rest: Vec<f32> = targets.iter().zip(predicted).map(|(target, value)| target - value).collect();
        let mut residual = self.gather(&rest);
        penalize(&mut residual, &solution, -1.0);
        let mut conditioned = precondition(&residual);
        let mut direction = conditioned.clone();
        let mut power = residual.dot(&conditioned);
        let enough = power * TOLERANCE * TOLERANCE;
        for _ in 0..ITERATIONS_MAX {
            if !(power > enough && power > 0.0) {
                break;
            }
            let mut image = self.gather(&self.predict(&direction));
            penalize(&mut image, &direction, 1.0);
            let step = power / direction.dot(&image);
            if !step.is_finite() {
                break;
            }
            solution.add(step, &direction);
            residual.add(-step, &image);
            conditioned = precondition(&residual);
            let next = residual.dot(&conditioned);
            let mut turned = conditioned.clone();
            turned.add(next / power, &direction);
            direction = turned;
            power = next;
        }
        solution
    }
}

/// Inner product in eight interleaved sums.
pub(super) fn dot(left: &[f32], right: &[f32]) -> f32 {
    let (left, left_rest) = left.as_chunks::<8>();
    let (right, right_rest) = right.as_chunks::<8>();
    let mut sums = [0.0_f32; 8];
    for (l, r) in left.iter().zip(right) {
        for at in 0..8 {
            sums[at] += l[at] * r[at];
        }
    }
    let rest: f32 = left_rest.iter().zip(right_rest).map(|(l, r)| l * r).sum();
    sums.iter().sum::<f32>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::learning::cholesky::Factor;
    use crate::learning::statistics::SplitMix;

    fn design(threads: usize) -> (Design, Vec<f32>) {
        let mut random = SplitMix::new(8);
        let mut numbers = |count: usize| -> Vec<f32> { (0..count).map(|_| random.unit() as f32 * 3.4 - 1.7).collect() };
        let segments = vec![0..40, 40..41, 41..90, 90..200];
        let design = Design { factors: numbers(400), rank: 2, segments, embeddings: numbers(12), width: 3, threads };
        (design, numbers(200))
    }

    #[test]
    fn the_solution_satisfies_the_normal_equations() {
        let (design, targets) = design(2);
        let penalty = Penalty { matrix: 5.0, bias: 2.0 };
        let got = design.solve(&targets, penalty, None);
        // The same by writing all 2 * 3 + 4 features out.
        let n = 10;
        let (mut matrix, mut solution) = (vec![0.0; n * n], vec![0.0; n]);
        for (token, samples) in design.segments.iter().enumerate() {
            for sample in samples.clone() {
                let mut row = vec![0.0; n];
                for j in 0..2 {
                    for k in 0..3 {
                        row[j * 3 + k] = f64::from(design.factors[sample * 2 + j] * design.embeddings[token * 3 + k]);
                    }
                }
                row[6 + token] = 1.0;
                for i in 0..n {
                    (0..n).for_each(|j| matrix[i * n + j] += row[i] * row[j]);
                    solution[i] += row[i] * f64::from(targets[sample]);
                }
            }
        }
        (0..n).for_each(|i| matrix[i * n + i] += if i < 6 { 5.0 } else { 2.0 });
        let factor = Factor::of(n, |row, column| matrix[row * n + column]).expect("positive definite");
        factor.solve_lower(&mut solution);
        factor.solve_upper(&mut solution);
        let found: Vec<f32> = got.matrix.iter().chain(&got.bias).copied().collect();
        for (got, expected) in found.iter().zip(&solution) {
            assert!((f64::from(*got) - expected).abs() <= 2e-3, "{found:?} for {solution:?}");
        }
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        let penalty = Penalty { matrix: 5.0, bias: 2.0 };
        let solve = |threads| {
            let (design, targets) = design(threads);
            design.solve(&targets, penalty, None)
        };
        assert_eq!(solve(1), solve(3));
    }
}
