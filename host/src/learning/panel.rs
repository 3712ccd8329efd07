//! Second moments of responses to prompts, as panel regression wants them: within prompt and position, and in all.
//!
//! Decoding chooses among continuations of one state, so what is fitted are differences between responses that have come as far on the
//! same prompt: features and targets alike less their means in a *cell*, the states of one prompt at one position (fixed effects). With
//! targets alone centred a feature that differs between prompts explains nothing there, and its weight shrinks for all of it.
//!
//! How values move with the position whatever is said is left open by that. The means by position, over all prompts, are put back: the
//! mean reward of those still going on there, less that of their prompts, is what they are to have. Start at [`Panel::add`].

use super::ridge::{Covariance, Moments, RidgeError};

/// Moments while prompts are added.
pub struct Panel {
    width: usize,
    targets: usize,
    /// Rows less their cell's mean.
    within: Moments,
    /// Means of cells less `origin`, times the root of their number of rows.
    cells: Moments,
    /// Near the mean of all rows: the first cell's.
    origin: Vec<f64>,
    /// Rows and their sums by position.
    positions: Vec<(f64, Vec<f64>)>,
}

/// Both kinds of moments of the same rows. In either, targets are less their prompt's mean, and the mean is that of all rows.
#[derive(Debug, Clone)]
pub struct PanelMoments {
    /// Covariances within cells and of the means by position.
    pub within: Covariance,
    /// Covariances of all rows as they are.
    pub total: Covariance,
}

impl PanelMoments {
    /// These of one split, judged within prompts about the means of another: what differs between prompts is no error.
    pub fn about(mut self, other: &Self) -> Self {
        self.within.mean.clone_from(&other.within.mean);
        self
    }
}

impl Panel {
    /// Moments of rows of `width` columns, the last `targets` of which are the same for all states of a response; `threads` do not
    /// change the result.
    pub fn new(width: usize, targets: usize, threads: usize) -> Self {
        let (within, cells) = (Moments::new(width, threads), Moments::new(width, threads));
        Self { width, targets, within, cells, origin: vec![0.0; width], positions: Vec::new() }
    }

    /// Adds the responses to one prompt, the rows `[states, width]` of each.
    ///
    /// # Errors
    /// Rows of another width, and numbers that are not finite.
    pub fn add(&mut self, mut responses: Vec<Vec<f32>>) -> Result<(), RidgeError> {
        self.centre_targets(&mut responses);
        let longest = responses.iter().map(Vec::len).max().unwrap_or(0) / self.width;
        for position in 0..longest {
            let row = position * self.width..(position + 1) * self.width;
            let cell: Vec<&[f32]> = responses.iter().filter_map(|rows| rows.get(row.clone())).collect();
            let count = cell.len() as f64;
            let mut sums = vec![0.0_f64; self.width];
            for row in &cell {
                sums.iter_mut().zip(*row).for_each(|(sum, &x)| *sum += f64::from(x));
            }
            let mean: Vec<f64> = sums.iter().map(|sum| sum / count).collect();
            let centred =
                cell.iter().flat_map(|row| row.iter().zip(&mean).map(|(&x, mean)| (f64::from(x) - mean) as f32));
            self.within.add(&centred.collect::<Vec<f32>>())?;
            if self.positions.is_empty() {
                self.origin.clone_from(&mean);
            }
            let weighted = mean.iter().zip(&self.origin).map(|(mean, origin)| (count.sqrt() * (mean - origin)) as f32);
            self.cells.add(&weighted.collect::<Vec<f32>>())?;
            if position == self.positions.len() {
                self.positions.push((0.0, vec![0.0; self.width]));
            }
            let (rows, of_all) = &mut self.positions[position];
            *rows += count;
            of_all.iter_mut().zip(&sums).for_each(|(all, sum)| *all += sum);
        }
        Ok(())
    }

    /// Takes the prompt's mean from the targets.
    fn centre_targets(&self, responses: &mut [Vec<f32>]) {
        for column in self.width - self.targets..self.width {
            let first = responses.iter().filter_map(|rows| rows.get(column)).map(|&target| f64::from(target));
            let mean = first.sum::<f64>() / responses.len().max(1) as f64;
            for target in responses.iter_mut().flat_map(|rows| rows.iter_mut().skip(column).step_by(self.width)) {
                *target = (f64::from(*target) - mean) as f32;
            }
        }
    }

    /// Ends the stream.
    pub fn finish(self) -> PanelMoments {
        let all: f64 = self.positions.iter().map(|(rows, _)| rows).sum::<f64>().max(1.0);
        let mut mean = vec![0.0; self.width];
        for (_, sums) in &self.positions {
            mean.iter_mut().zip(sums).for_each(|(mean, sum)| *mean += sum / all);
        }
        let mut within = Covariance { mean: mean.clone(), ..self.within.finish() };
        let mut total = within.clone();
        let cells = self.cells.finish();
        let share = cells.rows as f64 / all;
        let away: Vec<f64> = mean.iter().zip(&self.origin).map(|(mean, origin)| mean - origin).collect();
        let lines = total.matrix.chunks_exact_mut(self.width).zip(cells.matrix.chunks_exact(self.width)).enumerate();
        for (row, (line, of_cells)) in lines {
            for (column, entry) in line.iter_mut().enumerate() {
                *entry += share * (of_cells[column] + cells.mean[row] * cells.mean[column]);
                *entry -= away[row] * away[column];
            }
        }
        for (rows, sums) in &self.positions {
            let away: Vec<f64> = sums.iter().zip(&mean).map(|(sum, mean)| sum / rows - mean).collect();
            for (x, line) in away.iter().zip(within.matrix.chunks_exact_mut(self.width)) {
                let weighted = rows / all * x;
                line.iter_mut().zip(&away).for_each(|(entry, y)| *entry += weighted * y);
            }
        }
        PanelMoments { within, total }
    }
}

#[cfg(test)]
mod tests {
    use super::super::statistics::SplitMix;
    use super::*;

    const WIDTH: usize = 3;

    /// Prompt, position and row, the target less its prompt's mean.
    type State = (usize, usize, [f64; WIDTH]);

    /// Prompts of three responses of up to four states: two features that differ between prompts and positions, and a target.
    fn world() -> Vec<Vec<Vec<f32>>> {
        let mut random = SplitMix::new(3);
        let mut number = |scale: f64| scale * (random.unit() - 0.5);
        let prompts = (0..5).map(|prompt| {
            let of_prompt = number(8.0);
            let responses = (0..3).map(|response| {
                let target = of_prompt + number(1.0);
                // Some end early, so that one goes on alone.
                let states = 2 + (prompt + response) % 3;
                let state = |position: usize| {
                    [40.0 + of_prompt + position as f64 + number(1.0), number(2.0) + target, target].map(|x| x as f32)
                };
                (0..states).flat_map(state).collect()
            });
            responses.collect()
        });
        prompts.collect()
    }

    /// Covariances of rows that each have one, two or no effects taken away, by their definition.
    fn plain(rows: &[[f64; WIDTH]]) -> Vec<f64> {
        let mean = |column: usize| rows.iter().map(|row| row[column]).sum::<f64>() / rows.len() as f64;
        let of = |i: usize, j: usize| {
            let products = rows.iter().map(|row| (row[i] - mean(i)) * (row[j] - mean(j)));
            products.sum::<f64>() / rows.len() as f64
        };
        (0..WIDTH * WIDTH).map(|at| of(at / WIDTH, at % WIDTH)).collect()
    }

    #[test]
    fn covariances_are_those_of_the_definition() {
        let mut panel = Panel::new(WIDTH, 1, 2);
        let mut states: Vec<State> = Vec::new();
        for (prompt, responses) in world().into_iter().enumerate() {
            let mean = responses.iter().map(|rows| f64::from(rows[2])).sum::<f64>() / responses.len() as f64;
            for rows in &responses {
                for (position, row) in rows.chunks_exact(WIDTH).enumerate() {
                    states.push((prompt, position, [row[0], row[1], row[2]].map(f64::from)));
                    if let Some((_, _, row)) = states.last_mut() {
                        row[2] -= mean;
                    }
                }
            }
            panel.add(responses).expect("rows");
        }
        let found = panel.finish();
        let mean = |of: &dyn Fn(&State) -> bool, column: usize| {
            let here: Vec<f64> = states.iter().filter(|state| of(state)).map(|state| state.2[column]).collect();
            here.iter().sum::<f64>() / here.len() as f64
        };
        // A row less its cell's mean, with the mean of its position put back.
        let centred = states.iter().map(|(prompt, position, row)| {
            let cell = |column| mean(&|other| (other.0, other.1) == (*prompt, *position), column);
            let all = |column| mean(&|other| other.1 == *position, column);
            std::array::from_fn(|column| row[column] - cell(column) + all(column))
        });
        let raw: Vec<[f64; WIDTH]> = states.iter().map(|state| state.2).collect();
        for (got, expected) in [(&found.within, plain(&centred.collect::<Vec<_>>())), (&found.total, plain(&raw))] {
            assert_eq!(got.rows, states.len() as u64);
            for (got, expected) in got.matrix.iter().zip(&expected) {
                assert!((got - expected).abs() <= 1e-4, "{got} for {expected}");
            }
            (0..WIDTH).for_each(|column| assert!((got.mean[column] - mean(&|_| true, column)).abs() <= 1e-4));
        }
        assert!(found.total.at(0, 0) > 2.0 * found.within.at(0, 0), "prompts differ");
    }
}
