//! Which features a look-ahead head reads, and with which penalties: choices made on the tune prompts.
//!
//! Everything that is wanted of the same moments is searched together. One penalty for all groups of features is tried first: it is
//! factored once, since every choice of features is a leading part of the same columns, with a few of text behind. From the best of
//! these each choice goes its own way, a group and a step at a time, as long as the error on tune prompts falls. Start at [`fit`].

use std::ops::Range;

use vassal_kernels::LinearHead;

use super::look_ahead::{Columns, ValueHead};
use super::ridge::{Covariance, Linear, Ridge, RidgeError};
use super::threads::on_threads;

/// Penalties that [`fit`] tries, relative to standardised features.
pub const PENALTIES: [f64; 10] = [1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0];

/// The penalty of text columns: they are few, and a reward's own numbers.
const TEXT_PENALTY: f64 = 1e-4;

/// Which of [`Columns`] a head reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Features {
    /// Residual, running mean and remaining share.
    Plain,
    /// These, and the running mean times the used share.
    Share,
    /// These, and some columns of text.
    ShareAndText(Range<usize>),
}

impl Features {
    /// The head with a solution's weights.
    fn head(&self, columns: Columns, linear: &Linear) -> ValueHead {
        let part =
            |range: Range<usize>| linear.weights[range].iter().map(|&weight| weight as f32).collect::<Vec<f32>>();
        let share = columns.plain()..columns.with_share();
        let (share, text) = match self {
            Self::Plain => (0..0, 0..0),
            Self::Share => (share, 0..0),
            Self::ShareAndText(text) => (share, text.clone()),
        };
        let (share, text) = (part(share), part(text));
        let linear = LinearHead {
            tap: 0,
            residual: part(0..columns.hidden),
            mean: part(columns.hidden..2 * columns.hidden),
            share,
            remaining: linear.weights[2 * columns.hidden] as f32,
            bias: linear.bias as f32,
        };
        ValueHead { linear, text }
    }
}

/// A choice of features for a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// What is read.
    pub features: Features,
    /// The column to explain.
    pub target: usize,
}

/// A fitted head and how it was chosen.
#[derive(Debug, Clone, PartialEq)]
pub struct Fit {
    /// The head.
    pub head: ValueHead,
    /// Penalties of the residual, of the running mean, and of the share (unused where it is not read). The
    /// remaining share of the limit has the running mean's; text columns have their own, always the same.
    pub penalties: [f64; 3],
    /// Share of the tune targets' variance explained, over all states, by the moments: within prompts, a drift of values is an error too.
    pub explained: f64,
}

/// Fits a head for every choice, with penalties chosen by their error on `tune`: first one for all groups of features, then each group's
/// in turn, twice, as long as it gets better. `threads` do not change the result.
///
/// # Errors
/// Moments that do not belong together, and the algebra's.
pub fn fit(
    hidden: usize,
    (learn, tune): (&Covariance, &Covariance),
    choices: &[Choice],
    threads: usize,
) -> Result<Vec<Fit>, RidgeError> {
    let columns = Columns { hidden };
    let least = choices.iter().map(|choice| choice.target).fold(columns.plain(), usize::max);
    if learn.width != tune.width || least >= learn.width {
        let expected = format!("wider than {least} columns, alike for both splits");
        let got = format!("{} and {}", learn.width, tune.width);
        return Err(RidgeError::Request { what: "moments", expected, got });
    }
    let fitting = Fitting { columns, learn, tune };
    let uniform = on_threads(PENALTIES.len(), threads, |at| fitting.uniform(choices, PENALTIES[at]));
    let uniform = uniform.into_iter().collect::<Result<Vec<_>, _>>()?;
    let fits = on_threads(choices.len(), threads, |place| {
        let first = uniform.iter().filter_map(|attempts| attempts[place].as_ref());
        let Some(first) = first.min_by(|left, right| left.error.total_cmp(&right.error)) else {
            return Err(RidgeError::Singular { column: 0 });
        };
        let Choice { features, target } = &choices[place];
        let Attempt { error, penalties, linear } = fitting.search(first.clone(), &choices[place])?;
        let power = tune.at(*target, *target) + tune.mean[*target] * tune.mean[*target];
        let explained = if power > 0.0 { 1.0 - error / power } else { 0.0 };
        Ok(Fit { head: features.head(columns, &linear), penalties, explained })
    });
    fits.into_iter().collect()
}

#[derive(Clone)]
struct Attempt {
    error: f64,
    penalties: [f64; 3],
    linear: Linear,
}

struct Fitting<'a> {
    columns: Columns,
    learn: &'a Covariance,
    tune: &'a Covariance,
}

impl<'a> Fitting<'a> {
    /// Every choice with one penalty for all groups of features.
    fn uniform(&self, choices: &[Choice], penalty: f64) -> Result<Vec<Option<Attempt>>, RidgeError> {
        let penalties = [penalty; 3];
        let has_share = |choice: &Choice| choice.features != Features::Plain;
        let mut whole = match choices.iter().any(has_share) {
            true => self.ridge(true, penalties)?,
            false => None,
        };
        // Where the whole is singular its leading part need not be.
        let mut plain = match whole.is_none() && !choices.iter().all(has_share) {
            true => self.ridge(false, penalties)?,
            false => None,
        };
        let attempt = |choice| {
            let ridge = if has_share(choice) { whole.as_mut() } else { whole.as_mut().or(plain.as_mut()) };
            self.attempt(ridge, choice, penalties)
        };
        choices.iter().map(attempt).collect()
    }

    /// The regressions on all features but those of text; none where the penalties are too small for these rows.
    fn ridge(&self, share: bool, penalties: [f64; 3]) -> Result<Option<Ridge<'a>>, RidgeError> {
        let Columns { hidden } = self.columns;
        let end = if share { self.columns.with_share() } else { self.columns.plain() };
        let penalty = |column: usize| match column {
            column if column < hidden => penalties[0],
            column if column < self.columns.plain() => penalties[1],
            _ => penalties[2],
        };
        if_regular(self.learn.ridge(0..end, penalty))
    }

    /// Leaves the ridge as it was.
    fn attempt(
        &self,
        ridge: Option<&mut Ridge<'_>>,
        Choice { features, target }: &Choice,
        penalties: [f64; 3],
    ) -> Result<Option<Attempt>, RidgeError> {
        let Some(ridge) = ridge else { return Ok(None) };
        let linear = match features {
            Features::Plain => Some(ridge.solve(self.columns.plain(), *target)?),
            Features::Share => Some(ridge.solve(self.columns.with_share(), *target)?),
            Features::ShareAndText(text) => {
                let before = ridge.columns();
                let solved = ridge.extend(text.clone(), TEXT_PENALTY).and_then(|()| ridge.solve(text.end, *target));
                ridge.truncate(before);
                if_regular(solved)?
            }
        };
        let attempt = |linear| Attempt { error: self.tune.fit_error(&linear, *target), penalties, linear };
        Ok(linear.map(attempt))
    }

    /// Goes on from one penalty for all groups, a group at a time and a step at a time, as long as the error falls.
    fn search(&self, first: Attempt, choice: &Choice) -> Result<Attempt, RidgeError> {
        let share = choice.features != Features::Plain;
        let groups = 2 + usize::from(share);
        // None of these is better than the first.
        let mut tried = PENALTIES.map(|penalty| [penalty; 3]).to_vec();
        let mut best = first;
        for group in (0..groups).rev().cycle().take(2 * groups) {
            for up in [false, true] {
                while let Some(penalty) = neighbour(best.penalties[group], up) {
                    let mut penalties = best.penalties;
                    penalties[group] = penalty;
                    if tried.contains(&penalties) {
                        break;
                    }
                    tried.push(penalties);
                    let mut ridge = self.ridge(share, penalties)?;
                    match self.attempt(ridge.as_mut(), choice, penalties)? {
                        Some(next) if next.error < best.error => best = next,
                        _ => break,
                    }
                }
            }
        }
        Ok(best)
    }
}

/// The penalty beside this one among [`PENALTIES`].
fn neighbour(penalty: f64, up: bool) -> Option<f64> {
    if up {
        PENALTIES.into_iter().find(|&other| other > penalty)
    } else {
        PENALTIES.into_iter().rfind(|&other| other < penalty)
    }
}

/// Nothing where the matrix was singular.
fn if_regular<T>(result: Result<T, RidgeError>) -> Result<Option<T>, RidgeError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(RidgeError::Singular { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::super::ridge::Moments;
    use super::super::statistics::SplitMix;
    use super::*;

    const HIDDEN: usize = 4;

    /// Rows of [`Columns`], with two rewards' text columns, two and three, and a target for each: a weak function of the first residual and a
    /// strong one of a text column of its own.
    fn moments(seed: u64, rows: usize) -> Covariance {
        let mut random = SplitMix::new(seed);
        let columns = Columns { hidden: HIDDEN };
        let mut moments = Moments::new(columns.with_share() + 5 + 2, 1);
        for _ in 0..rows {
            let mut row: Vec<f32> = (0..columns.with_share() + 5).map(|_| random.unit() as f32 - 0.5).collect();
            let text = columns.with_share();
            let noise = |random: &mut SplitMix| 0.3 * (random.unit() as f32 - 0.5);
            let first = 0.2 * row[0] + row[text + 1] + noise(&mut random);
            let second = 0.2 * row[0] + row[HIDDEN] - 2.0 * row[text + 3] + noise(&mut random);
            row.extend([first, second]);
            moments.add(&row).expect("a row");
        }
        moments.finish()
    }

    fn choices() -> Vec<Choice> {
        let text = Columns { hidden: HIDDEN }.with_share();
        let of = |features, reward: usize| Choice { features, target: text + 5 + reward };
        vec![
            of(Features::Plain, 0),
            of(Features::Share, 1),
            of(Features::ShareAndText(text..text + 2), 0),
            of(Features::ShareAndText(text + 2..text + 5), 1),
        ]
    }

    #[test]
    fn each_reward_reads_its_own_text() {
        let (learn, tune) = (moments(1, 2_000), moments(2, 500));
        let fits = fit(HIDDEN, (&learn, &tune), &choices(), 2).expect("solvable");
        let lengths = fits.iter().map(|fit| (fit.head.linear.share.len(), fit.head.text.len())).collect::<Vec<_>>();
        assert_eq!(lengths, [(0, 0), (HIDDEN, 0), (HIDDEN, 2), (HIDDEN, 3)]);
        let close = |got: f32, planted: f32| assert!((got - planted).abs() < 0.05, "{got} for {planted}");
        fits[2].head.text.iter().zip([0.0, 1.0]).for_each(|(&got, planted)| close(got, planted));
        fits[3].head.text.iter().zip([0.0, -2.0, 0.0]).for_each(|(&got, planted)| close(got, planted));
        close(fits[3].head.linear.mean[0], 1.0);
        assert!(fits[2].explained > 0.85 && fits[3].explained > 0.9, "{fits:?}");
        assert!(fits[0].explained < 0.1 && fits[1].explained < 0.3, "{fits:?}");
    }

    #[test]
    fn neither_threads_nor_company_change_a_choice_and_a_search_is_no_worse_than_its_start() {
        let (learn, tune) = (moments(3, 60), moments(4, 60));
        let together = fit(HIDDEN, (&learn, &tune), &choices(), 3).expect("solvable");
        let fitting = Fitting { columns: Columns { hidden: HIDDEN }, learn: &learn, tune: &tune };
        for (choice, together) in choices().iter().zip(&together) {
            let alone = fit(HIDDEN, (&learn, &tune), std::slice::from_ref(choice), 1).expect("solvable");
            assert_eq!(&alone[0], together);
            for penalty in PENALTIES {
                let attempt = fitting.uniform(std::slice::from_ref(choice), penalty).expect("solvable").remove(0);
                let power = tune.at(choice.target, choice.target) + tune.mean[choice.target].powi(2);
                let explained = 1.0 - attempt.expect("regular").error / power;
                assert!(explained <= together.explained + 1e-12, "{penalty}: {explained} for {together:?}");
            }
        }
    }

    #[test]
    fn features_that_cannot_be_solved_for_do_not_keep_their_leading_part_from_it() {
        let (mut learn, tune) = (moments(3, 60), moments(4, 60));
        let plain = fit(HIDDEN, (&learn, &tune), &choices()[..1], 1).expect("solvable");
        // No covariance: a column of the share that goes with another more than it varies.
        let (share, width) = (Columns { hidden: HIDDEN }.plain(), learn.width);
        for (row, column) in [(share, share + 1), (share + 1, share)] {
            learn.matrix[row * width + column] = 10.0 * learn.at(share, share);
        }
        let error = fit(HIDDEN, (&learn, &tune), &choices()[..2], 1).expect_err("the share is singular");
        assert!(matches!(error, RidgeError::Singular { .. }), "{error}");
        let fitting = Fitting { columns: Columns { hidden: HIDDEN }, learn: &learn, tune: &tune };
        for penalty in PENALTIES {
            let together = fitting.uniform(&choices()[..2], penalty).expect("moments");
            let alone = fitting.uniform(&choices()[..1], penalty).expect("moments");
            let error = |attempt: &Option<Attempt>| attempt.as_ref().map(|attempt| attempt.error);
            assert_eq!(error(&together[0]), error(&alone[0]));
            assert!(together[0].is_some() && together[1].is_none(), "{penalty}");
        }
        assert_eq!(fit(HIDDEN, (&learn, &tune), &choices()[..1], 1).expect("solvable"), plain);
    }

    #[test]
    fn moments_must_belong_together() {
        let (learn, tune) = (moments(1, 9), moments(2, 9));
        let beyond = [Choice { features: Features::Plain, target: learn.width }];
        let error = fit(HIDDEN, (&learn, &tune), &beyond, 1).expect_err("no such column").to_string();
        assert_eq!(
            error,
            "ridge regression: moments must be wider than 20 columns, alike for both splits, got 20 and 20"
        );
    }
}
