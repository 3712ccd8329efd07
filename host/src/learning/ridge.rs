//! Ridge regression from streamed rows.
//!
//! [`Moments`] takes rows in any portions and keeps their second moments: memory is `width²`, not the
//! number of rows. Targets are columns like the others, so one sweep over the features serves every
//! reward. [`Covariance::ridge`] standardises and factors for given penalties, [`Ridge::solve`] solves for a target and folds the
//! standardisation back into plain weights; [`Covariance::fit_error`] evaluates weights on the moments of *other* rows, so penalties
//! are chosen on held-out prompts without a second sweep.
//!
//! The residual stream has dimensions whose mean is hundreds of times their deviation. Rows are therefore
//! shifted by the first rows' mean before f32 products, and sums over [`CHUNK_ROWS`] rows go on in f64.
//! Plain loops over fixed tiles: the sums' order depends on nothing but the rows, so a head can be made
//! again bit for bit on another machine, whatever its instruction set and number of threads.
//!
//! Cost: `rows · width² / 2` products; see the test `gram_speed` for the figure.

use super::cholesky::{Factor, dot};

/// Rows whose products are summed in f32 before they join the f64 sums.
pub const CHUNK_ROWS: usize = 256;

/// Columns of a tile.
const TILE: usize = 8;

/// Why moments or a solution were refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RidgeError {
    /// Rows of the wrong width or with a number that is not finite.
    #[error("rows must have {width} finite columns; got {got}")]
    Rows {
        /// Columns expected.
        width: usize,
        /// What came.
        got: String,
    },
    /// Too few rows or an impossible request.
    #[error("ridge regression: {what} must be {expected}, got {got}")]
    Request {
        /// Which argument.
        what: &'static str,
        /// What is accepted.
        expected: String,
        /// What was given.
        got: String,
    },
    /// The matrix could not be factored: the penalty is too small for the data.
    #[error("the penalised matrix is not positive definite at column {column}; raise the penalty")]
    Singular {
        /// Where the factorisation stopped.
        column: usize,
    },
}

/// Running first and second moments of rows `[n, width]`.
#[derive(Debug, Clone)]
pub struct Moments {
    width: usize,
    tiles: usize,
    threads: usize,
    rows: u64,
    /// What is subtracted from every row, `[width]`; the mean of the first chunk.
    shift: Option<Vec<f32>>,
    /// Sums of shifted columns, `[tiles * TILE]`.
    sums: Vec<f64>,
    /// Lower triangle of tiles, row of tiles by row of tiles, each `[TILE, TILE]`.
    products: Vec<f64>,
    /// Rows that wait for a full chunk, `[.., width]`.
    waiting: Vec<f32>,
}

/// A linear function `weights·x + bias`.
#[derive(Debug, Clone, PartialEq)]
pub struct Linear {
    /// One a feature.
    pub weights: Vec<f64>,
    /// The constant.
    pub bias: f64,
}

impl Moments {
    /// Moments of rows of `width` columns; `threads` work on a chunk and do not change the result.
    pub fn new(width: usize, threads: usize) -> Self {
        let tiles = width.div_ceil(TILE);
        Self {
            width,
            tiles,
            threads: threads.max(1),
            rows: 0,
            shift: None,
            sums: vec![0.0; tiles * TILE],
            products: vec![0.0; tiles * (tiles + 1) / 2 * TILE * TILE],
            waiting: Vec::with_capacity(CHUNK_ROWS * width),
        }
    }

    /// Adds rows `[n, width]`, row-major.
    pub fn add(&mut self, rows: &[f32]) -> Result<(), RidgeError> {
        if !rows.len().is_multiple_of(self.width) {
            let got = format!("{} numbers", rows.len());
            return Err(RidgeError::Rows { width: self.width, got });
        }
        if let Some(bad) = rows.iter().position(|number| !number.is_finite()) {
            let got = format!("{} in column {}", rows[bad], bad % self.width);
            return Err(RidgeError::Rows { width: self.width, got });
        }
        for row in rows.chunks_exact(self.width) {
            self.waiting.extend_from_slice(row);
            if self.waiting.len() == CHUNK_ROWS * self.width {
                self.flush();
            }
        }
        Ok(())
    }

    /// Rows so far.
    pub fn rows(&self) -> u64 {
        self.rows + (self.waiting.len() / self.width) as u64
    }

    /// Ends the stream: the moments can be read from here on.
    pub fn finish(mut self) -> Covariance {
        if !self.waiting.is_empty() {
            self.flush();
        }
        let count = (self.rows.max(1)) as f64;
        let shift = self.shift.unwrap_or_else(|| vec![0.0; self.width]);
        let mean_shifted: Vec<f64> = self.sums.iter().map(|sum| sum / count).collect();
        let mut matrix = vec![0.0; self.width * self.width];
        for row in 0..self.width {
            for column in 0..=row {
                let (i, j) = (row / TILE, column / TILE);
                let tile = (i * (i + 1) / 2 + j) * TILE * TILE;
                let product = self.products[tile + row % TILE * TILE + column % TILE] / count;
                let covariance = product - mean_shifted[row] * mean_shifted[column];
                matrix[row * self.width + column] = covariance;
                matrix[column * self.width + row] = covariance;
            }
        }
        let mean = (0..self.width).map(|column| f64::from(shift[column]) + mean_shifted[column]).collect();
        Covariance { width: self.width, rows: self.rows, mean, matrix }
    }

    fn flush(&mut self) {
        let width = self.width;
        let rows = self.waiting.len() / width;
        let shift = self.shift.get_or_insert_with(|| {
            let mut mean = vec![0.0_f64; width];
            for row in self.waiting.chunks_exact(width) {
                mean.iter_mut().zip(row).for_each(|(mean, &number)| *mean += f64::from(number));
            }
            mean.iter().map(|sum| (sum / rows as f64) as f32).collect()
        });
        // Panels: TILE columns of all rows side by side, so that a tile reads two short streams.
        let mut panels = vec![[0.0_f32; TILE]; self.tiles * rows];
        for (index, row) in self.waiting.chunks_exact(width).enumerate() {
            for (column, (&number, &shift)) in row.iter().zip(shift.iter()).enumerate() {
                let shifted = number - shift;
                panels[column / TILE * rows + index][column % TILE] = shifted;
                self.sums[column] += f64::from(shifted);
            }
        }
        multiply(&panels, rows, self.tiles, self.threads, &mut self.products);
        self.rows += rows as u64;
        self.waiting.clear();
    }
}

/// Adds the products of all pairs of panels to the lower triangle of tiles. Threads own whole rows of
/// tiles, with about equally many tiles each.
fn multiply(panels: &[[f32; TILE]], rows: usize, tiles: usize, threads: usize, products: &mut [f64]) {
    let work = |first: usize, last: usize, out: &mut [f64]| {
        let mut out = out.chunks_exact_mut(TILE * TILE);
        for i in first..last {
            let left = &panels[i * rows..(i + 1) * rows];
            for (right, out) in panels.chunks_exact(rows).take(i + 1).zip(&mut out) {
                add_tile(left, right, out);
            }
        }
    };
    std::thread::scope(|scope| {
        let (mut rest, mut first) = (products, 0);
        for thread in 0..threads {
            let share = (thread + 1) as f64 / threads as f64;
            let last = if thread + 1 == threads { tiles } else { (tiles as f64 * share.sqrt()) as usize };
            let last = last.max(first);
            let count = (last * (last + 1) - first * (first + 1)) / 2 * TILE * TILE;
            let (mine, after) = rest.split_at_mut(count);
            rest = after;
            if thread + 1 == threads {
                work(first, last, mine);
            } else {
                scope.spawn(move || work(first, last, mine));
            }
            first = last;
        }
    });
}

/// `out += leftᵀ · right` for two panels, in two halves of 4 x 8 sums that fit the registers.
fn add_tile(left: &[[f32; TILE]], right: &[[f32; TILE]], out: &mut [f64]) {
    let (first, second) = out.split_at_mut(TILE * TILE / 2);
    add_half_tile::<0>(left, right, first);
    add_half_tile::<4>(left, right, second);
}

/// Columns `FROM..FROM + 4` of the left panel. Four named sums: with an array of them the compiler
/// keeps them in memory, at a third of the speed.
#[inline(always)]
fn add_half_tile<const FROM: usize>(left: &[[f32; TILE]], right: &[[f32; TILE]], out: &mut [f64]) {
    let [mut a, mut b, mut c, mut d] = [[0.0_f32; TILE]; 4];
    for (l, r) in left.iter().zip(right) {
        for at in 0..TILE {
            a[at] += l[FROM] * r[at];
        }
        for at in 0..TILE {
            b[at] += l[FROM + 1] * r[at];
        }
        for at in 0..TILE {
            c[at] += l[FROM + 2] * r[at];
        }
        for at in 0..TILE {
            d[at] += l[FROM + 3] * r[at];
        }
    }
    for (out, &sum) in out.iter_mut().zip([a, b, c, d].as_flattened()) {
        *out += f64::from(sum);
    }
}

/// Means and covariances of rows.
#[derive(Debug, Clone)]
pub struct Covariance {
    /// Columns.
    pub width: usize,
    /// Rows that went in.
    pub rows: u64,
    /// Mean of every column, `[width]`: what a regression's bias is fitted to.
    pub mean: Vec<f64>,
    /// Covariances, `[width, width]`, symmetric, divided by the number of rows.
    pub matrix: Vec<f64>,
}

impl Covariance {
    /// Covariance of two columns.
    pub fn at(&self, row: usize, column: usize) -> f64 {
        self.matrix[row * self.width + column]
    }

    /// Prepares ridge regressions on some columns. A penalty is relative to the standardised feature: with 1, a lone feature keeps half
    /// its weight. Features that never vary are left out, and get weight 0.
    pub fn ridge(
        &self,
        columns: impl IntoIterator<Item = usize>,
        penalty: impl Fn(usize) -> f64,
    ) -> Result<Ridge<'_>, RidgeError> {
        if self.rows < 2 {
            return refused("rows", "at least 2", self.rows);
        }
        let mut columns = columns.into_iter().peekable();
        if columns.peek().is_none() {
            return refused("columns", "at least 1", "none");
        }
        let deviations = self.deviations(self.width);
        let mut out = Ridge { covariance: self, deviations, columns: Vec::new(), factor: Factor::default() };
        let columns = out.kept(columns)?;
        let penalties = columns.iter().map(|&column| checked(penalty(column))).collect::<Result<Vec<_>, _>>()?;
        let entry = |row: usize, column: usize| {
            out.correlation(columns[row], columns[column]) + if row == column { penalties[row] } else { 0.0 }
        };
        out.factor = Factor::of(columns.len(), entry).map_err(|at| RidgeError::Singular { column: columns[at] })?;
        out.columns = columns;
        Ok(out)
    }

    /// Mean squared error of `linear` on these rows, for the column `target`.
    pub fn fit_error(&self, linear: &Linear, target: usize) -> f64 {
        let weights = &linear.weights;
        let mut error = self.at(target, target);
        for (row, &weight) in weights.iter().enumerate().filter(|(_, weight)| **weight != 0.0) {
            let line = &self.matrix[row * self.width..][..weights.len()];
            error += weight * (dot(line, weights) - 2.0 * self.at(row, target));
        }
        let mean_error = self.mean[target] - dot(weights, &self.mean[..weights.len()]) - linear.bias;
        error.max(0.0) + mean_error * mean_error
    }

    /// Standard deviations of the first columns; 0 where a column varies by no more than rounding.
    pub fn deviations(&self, features: usize) -> Vec<f64> {
        (0..features)
            .map(|feature| {
                let variance = self.at(feature, feature);
                let rounding = self.mean[feature].abs() * 1e-6;
                if variance.is_finite() && variance > rounding * rounding { variance.sqrt() } else { 0.0 }
            })
            .collect()
    }
}

/// Ridge regressions on some columns of a covariance: every target, and every leading part of the columns, costs two triangular solves.
#[derive(Debug, Clone)]
pub struct Ridge<'a> {
    covariance: &'a Covariance,
    deviations: Vec<f64>,
    /// Those that vary.
    columns: Vec<usize>,
    factor: Factor,
}

impl Ridge<'_> {
    /// Takes more columns in, behind those that are there.
    pub fn extend(&mut self, columns: impl IntoIterator<Item = usize>, penalty: f64) -> Result<(), RidgeError> {
        let penalty = checked(penalty)?;
        for column in self.kept(columns)? {
            let mut row: Vec<f64> = self.columns.iter().map(|&other| self.correlation(column, other)).collect();
            row.push(self.correlation(column, column) + penalty);
            self.factor.push(row).map_err(|_| RidgeError::Singular { column })?;
            self.columns.push(column);
        }
        Ok(())
    }

    /// Takes all but the first `columns` out again.
    pub fn truncate(&mut self, columns: usize) {
        self.columns.truncate(columns);
        self.factor.truncate(columns);
    }

    /// Columns, but for those that never vary.
    pub fn columns(&self) -> usize {
        self.columns.len()
    }

    /// The regression of the column `target` on the leading columns below `end`. Weights are one a column of the covariance up to `end`,
    /// 0 for all that are not among them or never vary: where none varies, only the target's mean is left.
    pub fn solve(&self, end: usize, target: usize) -> Result<Linear, RidgeError> {
        let Covariance { width, mean, .. } = self.covariance;
        if !(1..=*width).contains(&end) || (target < end && self.columns.contains(&target)) || target >= *width {
            let expected = format!("features below an end of 1 to {width}, without the target, which is below {width}");
            return refused("columns", expected, format!("end {end} and target {target}"));
        }
        let used = self.columns.iter().position(|&column| column >= end).unwrap_or(self.columns.len());
        let columns = &self.columns[..used];
        let standardised = |&column: &usize| self.covariance.at(column, target) / self.deviations[column];
        let mut solution: Vec<f64> = columns.iter().map(standardised).collect();
        self.factor.solve_lower(&mut solution);
        self.factor.solve_upper(&mut solution);
        let mut weights = vec![0.0; end];
        for (&column, value) in columns.iter().zip(solution) {
            weights[column] = value / self.deviations[column];
        }
        let bias = mean[target] - dot(&weights, &mean[..end]);
        Ok(Linear { weights, bias })
    }

    fn correlation(&self, row: usize, column: usize) -> f64 {
        self.covariance.at(row, column) / (self.deviations[row] * self.deviations[column])
    }

    /// Those of the columns that vary.
    fn kept(&self, columns: impl IntoIterator<Item = usize>) -> Result<Vec<usize>, RidgeError> {
        let varies = |column: usize| match self.deviations.get(column) {
            Some(&deviation) => Ok((deviation > 0.0).then_some(column)),
            None => refused("columns", format!("below {}", self.covariance.width), column),
        };
        columns.into_iter().filter_map(|column| varies(column).transpose()).collect()
    }
}

fn checked(penalty: f64) -> Result<f64, RidgeError> {
    if penalty.is_finite() && penalty > 0.0 {
        return Ok(penalty);
    }
    refused("penalty", "finite and > 0", penalty)
}

fn refused<T>(what: &'static str, expected: impl Into<String>, got: impl ToString) -> Result<T, RidgeError> {
    Err(RidgeError::Request { what, expected: expected.into(), got: got.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers in -1..1 from a counter: the tests need no more of a generator.
    fn noise(counter: u64) -> f64 {
        let mut x = counter.wrapping_add(0x9e37_79b9_7f4a_7c15).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((x ^ (x >> 31)) >> 11) as f64 / (1_u64 << 52) as f64 - 1.0
    }

    fn rows(count: usize, width: usize) -> Vec<f32> {
        let column = |at: usize| noise(at as u64) * (1.0 + (at % width) as f64) + 100.0 * (at % width % 3) as f64;
        (0..count * width).map(|at| column(at) as f32).collect()
    }

    fn moments(rows: &[f32], width: usize, threads: usize) -> Covariance {
        let mut moments = Moments::new(width, threads);
        moments.add(rows).expect("finite rows");
        moments.finish()
    }

    /// The last column on all others.
    fn solve(found: &Covariance, penalty: f64) -> Result<Linear, RidgeError> {
        let target = found.width - 1;
        found.ridge(0..target, |_| penalty)?.solve(target, target)
    }

    fn column(rows: &[f32], width: usize, column: usize) -> Vec<f64> {
        rows.chunks_exact(width).map(|row| f64::from(row[column])).collect()
    }

    #[test]
    fn covariances_equal_the_plain_sums() {
        for (count, width) in [(1, 3), (5, 8), (700, 19)] {
            let rows = rows(count, width);
            let got = moments(&rows, width, 2);
            assert_eq!(got.rows, count as u64);
            let columns: Vec<_> = (0..width).map(|at| column(&rows, width, at)).collect();
            let mean: Vec<f64> = columns.iter().map(|values| values.iter().sum::<f64>() / count as f64).collect();
            for i in 0..width {
                assert!((got.mean[i] - mean[i]).abs() <= 1e-4, "mean {i}");
                for j in 0..width {
                    let pairs = columns[i].iter().zip(&columns[j]);
                    let expected = pairs.map(|(a, b)| (a - mean[i]) * (b - mean[j])).sum::<f64>() / count as f64;
                    assert!((got.at(i, j) - expected).abs() <= 1e-3, "({i}, {j}): {} for {expected}", got.at(i, j));
                }
            }
        }
    }

    #[test]
    fn neither_threads_nor_portions_change_a_bit() {
        let rows = rows(900, 21);
        let whole = moments(&rows, 21, 1);
        for threads in 2..5 {
            assert_eq!(moments(&rows, 21, threads).matrix, whole.matrix);
        }
        let mut portions = Moments::new(21, 2);
        for part in rows.chunks(21 * 37) {
            portions.add(part).expect("finite rows");
        }
        assert_eq!(portions.rows(), 900);
        assert_eq!(portions.finish().matrix, whole.matrix);
    }

    #[test]
    fn a_planted_function_is_recovered_and_its_error_known() {
        let width = 8;
        let mut rows = rows(3_000, width);
        for row in rows.chunks_exact_mut(width) {
            row[5] = 4.0;
            row[7] = 0.5 * row[0] - 2.0 * row[4] + row[6] + 3.0;
        }
        let found = moments(&rows, width, 1);
        let linear = solve(&found, 1e-9).expect("solvable");
        let expected = [0.5, 0.0, 0.0, 0.0, -2.0, 0.0, 1.0];
        for (got, expected) in linear.weights.iter().zip(expected) {
            assert!((got - expected).abs() <= 1e-4, "{:?}", linear.weights);
        }
        assert!((linear.bias - 3.0).abs() <= 1e-2, "bias {}", linear.bias);

        let shrunk = solve(&found, 0.3).expect("solvable");
        let errors = rows.chunks_exact(width).map(|row| {
            let value: f64 = shrunk.weights.iter().zip(row).map(|(weight, &x)| weight * f64::from(x)).sum();
            (value + shrunk.bias - f64::from(row[7])).powi(2)
        });
        let expected = errors.sum::<f64>() / 3_000.0;
        let got = found.fit_error(&shrunk, 7);
        assert!(expected > 0.1 && (got / expected - 1.0).abs() <= 1e-3, "{got} for {expected}");
    }

    #[test]
    fn leading_parts_and_columns_taken_in_later_are_regressions_of_their_own() {
        let found = moments(&rows(500, 9), 9, 1);
        let penalty = |column: usize| 0.1 + column as f64;
        let alone = |columns: &[usize]| {
            found.ridge(columns.iter().copied(), penalty).and_then(|ridge| ridge.solve(8, 8)).expect("solved")
        };
        let mut ridge = found.ridge([0, 1, 2, 4], penalty).expect("factored");
        let close = |got: Linear, expected: Linear| {
            let pairs = got.weights.iter().zip(&expected.weights);
            assert!(pairs.into_iter().all(|(got, expected)| (got - expected).abs() <= 1e-9), "{got:?} {expected:?}");
        };
        close(ridge.solve(2, 8).expect("solved"), alone(&[0, 1]));
        ridge.extend([6], penalty(6)).expect("factored");
        close(ridge.solve(8, 8).expect("solved"), alone(&[0, 1, 2, 4, 6]));
    }

    #[test]
    fn a_lone_feature_keeps_half_its_weight_at_penalty_one() {
        let rows: Vec<f32> = (0..100).flat_map(|i| [i as f32, 2.0 * i as f32]).collect();
        let linear = solve(&moments(&rows, 2, 1), 1.0).expect("solvable");
        assert!((linear.weights[0] - 1.0).abs() <= 1e-6, "{linear:?}");
    }

    #[test]
    fn nonsense_is_refused() {
        let mut some = Moments::new(2, 1);
        assert!(matches!(some.add(&[1.0]), Err(RidgeError::Rows { width: 2, .. })));
        let error = some.add(&[1.0, f32::NAN]).expect_err("not finite");
        assert_eq!(error.to_string(), "rows must have 2 finite columns; got NaN in column 1");
        some.add(&[1.0, 2.0, 3.0, 4.0]).expect("finite rows");
        let found = some.finish();
        let wrong =
            [(0.0, 0..1, 1), (f64::NAN, 0..1, 1), (1.0, 0..1, 0), (1.0, 0..0, 1), (1.0, 0..1, 2), (1.0, 0..3, 1)];
        for (penalty, columns, target) in wrong {
            let solved = found.ridge(columns, |_| penalty).and_then(|ridge| ridge.solve(1, target));
            assert!(matches!(solved, Err(RidgeError::Request { .. })), "{solved:?}");
        }
        assert_eq!(solve(&moments(&[7.0, 1.0, 7.0, 2.0], 2, 1), 1.0), Ok(Linear { weights: vec![0.0], bias: 1.5 }));
    }

    #[test]
    #[ignore = "a measurement: cargo test --release gram_speed -- --ignored --nocapture"]
    fn gram_speed() {
        let (width, count) = (1_155, 20_480);
        let rows = rows(count, width);
        let start = std::time::Instant::now();
        let found = moments(&rows, width, 2);
        let gram = start.elapsed().as_secs_f64();
        let start = std::time::Instant::now();
        solve(&found, 0.1).expect("solvable");
        let (speed, solve) = ((count * width * width / 2) as f64 / gram / 1e9, start.elapsed().as_secs_f64());
        eprintln!("{speed:.2} G products/s on 2 threads, {gram:.2} s; solve {solve:.2} s");
    }
}
