//! Cholesky factors of symmetric matrices that may grow by a column, and solutions for their leading blocks.
//!
//! The factor of a matrix's leading block is the leading block of its factor: nested choices of features cost one factor, and a few
//! columns more cost a triangular solve each. Rows are worked on four at a time, so that a finished row is read once for four; every
//! inner product keeps its own fixed order, so blocks do not change a bit. Cost: n³/6 products. Start at [`Factor::of`].

/// Rows that are factored side by side.
const BLOCK: usize = 4;

/// The lower triangle L of L·Lᵀ = A, a row after the other: row i has i + 1 numbers.
#[derive(Debug, Clone, Default)]
pub struct Factor {
    size: usize,
    rows: Vec<f64>,
}

/// Where row `row` begins in a triangle.
fn start(row: usize) -> usize {
    row * (row + 1) / 2
}

impl Factor {
    /// The factor of the matrix `[n, n]` whose lower triangle `entry` gives by row and column. The error is the column at which it is not
    /// positive definite.
    pub fn of(n: usize, entry: impl Fn(usize, usize) -> f64) -> Result<Self, usize> {
        let mut out = Self { size: 0, rows: Vec::with_capacity(start(n)) };
        let row = |row: usize| (0..=row).map(|column| entry(row, column)).collect::<Vec<f64>>();
        while out.size + BLOCK <= n {
            let solved = out.size;
            let mut block: [Vec<f64>; BLOCK] = std::array::from_fn(|at| row(solved + at));
            out.solve_block(&mut block);
            block.into_iter().try_for_each(|row| out.push_from(solved, row))?;
        }
        (out.size..n).try_for_each(|at| out.push(row(at)))?;
        Ok(out)
    }

    /// Adds a row and column: the new row of A, its diagonal entry last.
    pub fn push(&mut self, row: Vec<f64>) -> Result<(), usize> {
        self.push_from(0, row)
    }

    /// Takes all but the first `size` rows and columns out again.
    pub fn truncate(&mut self, size: usize) {
        self.size = self.size.min(size);
        self.rows.truncate(start(self.size));
    }

    /// `vector = L⁻¹ vector` for the leading block of the vector's length.
    pub fn solve_lower(&self, vector: &mut [f64]) {
        self.solve_lower_from(0, vector);
    }

    /// `vector = L⁻ᵀ vector`, likewise.
    pub fn solve_upper(&self, vector: &mut [f64]) {
        for row in (0..vector.len()).rev() {
            let line = self.row(row);
            let value = vector[row] / line[row];
            vector[row] = value;
            vector[..row].iter_mut().zip(line).for_each(|(left, factor)| *left -= value * factor);
        }
    }

    fn row(&self, row: usize) -> &[f64] {
        &self.rows[start(row)..start(row + 1)]
    }

    /// Of a vector whose first `from` numbers are solved already.
    fn solve_lower_from(&self, from: usize, vector: &mut [f64]) {
        for row in from..vector.len() {
            let line = self.row(row);
            vector[row] = (vector[row] - dot(&line[..row], &vector[..row])) / line[row];
        }
    }

    /// Solves the first `size` numbers of four rows.
    fn solve_block(&self, rows: &mut [Vec<f64>; BLOCK]) {
        let [a, b, c, d] = rows;
        for row in 0..self.size {
            let line = self.row(row);
            let products = four_dots([&a[..row], &b[..row], &c[..row], &d[..row]], &line[..row]);
            for (vector, product) in [&mut *a, b, c, d].into_iter().zip(products) {
                vector[row] = (vector[row] - product) / line[row];
            }
        }
    }

    fn push_from(&mut self, solved: usize, mut row: Vec<f64>) -> Result<(), usize> {
        let size = self.size;
        debug_assert_eq!(row.len(), size + 1);
        let Some((last, before)) = row.split_last_mut() else { return Ok(()) };
        self.solve_lower_from(solved, before);
        let rest = *last - dot(before, before);
        if !(rest.is_finite() && rest > 0.0) {
            return Err(size);
        }
        *last = rest.sqrt();
        self.rows.append(&mut row);
        self.size += 1;
        Ok(())
    }
}

/// Inner product in four interleaved sums, whose order is fixed.
pub fn dot(left: &[f64], right: &[f64]) -> f64 {
    let (left, left_rest) = left.as_chunks::<4>();
    let (right, right_rest) = right.as_chunks::<4>();
    let mut sums = [0.0; 4];
    for (l, r) in left.iter().zip(right) {
        for i in 0..4 {
            sums[i] += l[i] * r[i];
        }
    }
    let rest: f64 = left_rest.iter().zip(right_rest).map(|(l, r)| l * r).sum();
    (sums[0] + sums[1]) + (sums[2] + sums[3]) + rest
}

/// [`dot`] of four rows with one, bit for bit. Named sums: an array of them stays in memory.
fn four_dots(rows: [&[f64]; BLOCK], other: &[f64]) -> [f64; BLOCK] {
    let [(a, _), (b, _), (c, _), (d, _)] = rows.map(|row| row.as_chunks::<4>());
    let (chunks, other_rest) = other.as_chunks::<4>();
    let [mut p, mut q, mut r, mut s] = [[0.0_f64; 4]; BLOCK];
    for ((((a, b), c), d), x) in a.iter().zip(b).zip(c).zip(d).zip(chunks) {
        for i in 0..4 {
            p[i] += a[i] * x[i];
        }
        for i in 0..4 {
            q[i] += b[i] * x[i];
        }
        for i in 0..4 {
            r[i] += c[i] * x[i];
        }
        for i in 0..4 {
            s[i] += d[i] * x[i];
        }
    }
    let rests = rows.map(|row| row.as_chunks::<4>().1.iter().zip(other_rest).map(|(l, r)| l * r).sum::<f64>());
    let [p, q, r, s] = [p, q, r, s].map(|sums| (sums[0] + sums[1]) + (sums[2] + sums[3]));
    [p + rests[0], q + rests[1], r + rests[2], s + rests[3]]
}

#[cfg(test)]
mod tests {
    use super::super::statistics::SplitMix;
    use super::*;

    /// Of rows of noise, which is positive definite.
    fn matrix(n: usize) -> Vec<f64> {
        let mut random = SplitMix::new(3);
        let rows: Vec<f64> = (0..n * 2 * n).map(|_| random.unit() - 0.5).collect();
        let row = |i: usize| &rows[i * 2 * n..][..2 * n];
        (0..n * n).map(|at| dot(row(at / n), row(at % n))).collect()
    }

    #[test]
    fn a_factor_times_its_transpose_is_the_matrix() {
        for n in [1, 4, 7, 30] {
            let matrix = matrix(n);
            let factor = Factor::of(n, |row, column| matrix[row * n + column]).expect("positive definite");
            for row in 0..n {
                for column in 0..=row {
                    let product = dot(&factor.row(row)[..=column], &factor.row(column)[..=column]);
                    assert!((product - matrix[row * n + column]).abs() <= 1e-12, "({row}, {column}) of {n}");
                }
            }
        }
    }

    #[test]
    fn blocks_and_growth_do_not_change_a_bit_and_leading_blocks_are_their_own_factors() {
        let (n, leading) = (23, 14);
        let matrix = matrix(n);
        let entry = |row: usize, column: usize| matrix[row * n + column];
        let whole = Factor::of(n, entry).expect("positive definite");
        let mut grown = Factor::default();
        for row in 0..n {
            grown.push((0..=row).map(|column| entry(row, column)).collect()).expect("positive definite");
        }
        assert_eq!(grown.rows, whole.rows);
        grown.truncate(leading);
        assert_eq!(grown.rows, Factor::of(leading, entry).expect("positive definite").rows);
        let wanted: Vec<f64> = (0..leading).map(|at| at as f64 - 5.0).collect();
        let mut solved: Vec<f64> =
            (0..leading).map(|row| (0..leading).map(|column| entry(row, column) * wanted[column]).sum()).collect();
        whole.solve_lower(&mut solved);
        whole.solve_upper(&mut solved);
        assert!(solved.iter().zip(&wanted).all(|(got, wanted)| (got - wanted).abs() <= 1e-9), "{solved:?}");
    }

    #[test]
    fn what_is_not_positive_definite_is_told_by_its_column() {
        let singular = |n: usize, bad: usize| {
            Factor::of(n, |row, column| f64::from(u8::from(row == column && row != bad))).expect_err("singular")
        };
        assert_eq!((singular(2, 1), singular(9, 2), singular(9, 8)), (1, 2, 8));
    }
}
