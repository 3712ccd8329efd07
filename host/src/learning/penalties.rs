//! Which features a look-ahead head reads, and with which penalties: choices made on the tune prompts.
//!
//! Everything that is wanted of the same moments is searched together. One penalty for all groups of features is tried first: it is
//! factored once, since every choice of features is a leading part of the same columns, with a few of text behind. From the best of
//! these each choice goes its own way, a group and a step at a time, as long as the error on tune prompts falls. Start at [`fit`].

use std::ops::Range;

use super::look_ahead::{Columns, ValueHead};
use super::ridge::{Covariance, Linear, Ridge, RidgeError};
use super::threads::on_threads;

/// Penalties that [`fit`] tries, relative to standardised features.
pub const PENALTIES: [f64; 10] = [1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0];

/// The penalty of text columns: they are few, and a reward's own numbers.
const TEXT_PENALTY: f64 = 1e-4;

/// A choice of features for a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Whether the running mean times the used share is among them.
    pub share: bool,
    /// Which text columns are; may be empty.
    pub text: Range<usize>,
    /// The column to explain.
    pub target: usize,
}

/// A fitted head and how it was chosen.
#[derive(Debug, Clone, PartialEq)]
pub struct Fit {
    /// The head.
    pub head: ValueHead,
    /// Penalties of the residual, of the running mean, and of the share (unused in the plain layout). The
    /// remaining share of the limit has the running mean's; text columns have their own, always the same.
    pub penalties: [f64; 3],
    /// Share of the tune targets' variance explained, over all states.
    pub explained: f64,
}

/// Fits a head for everything that is wanted, with penalties chosen by their error on `tune`: first one for all groups of features,
/// which is factored once for all that is wanted, then each group's in turn, twice, as long as it gets better. `threads` do
/// not change the result, nor does what else is wanted.
///
/// # Errors
/// Moments that do not belong together, and the algebra's.
pub fn fit(
    hidden: usize,
    (learn, tune): (&Covariance, &Covariance),
    wanted: &[Wanted],
    threads: usize,
) -> Result<Vec<Fit>, RidgeError> {
    let columns = Columns { hidden };
    let least = wanted.iter().map(|wanted| wanted.target).fold(columns.with_share(), usize::max);
    if learn.width != tune.width || least >= learn.width {
        let expected = format!("wider than {least} columns, alike for both splits");
        let got = format!("{} and {}", learn.width, tune.width);
        return Err(RidgeError::Request { what: "moments", expected, got });
    }
    let fitting = Fitting { columns, learn, tune };
    let share = wanted.iter().any(|wanted| wanted.share);
    let uniform = on_threads(PENALTIES.len(), threads, |at| {
        let penalties = [PENALTIES[at]; 3];
        let ridge = fitting.ridge(share, penalties)?;
        let attempts = wanted.iter().map(|wanted| fitting.attempt(ridge.as_ref(), wanted, penalties));
        attempts.collect::<Result<Vec<_>, _>>()
    })?;
    on_threads(wanted.len(), threads, |place| {
        let first = uniform.iter().filter_map(|attempts| attempts[place].as_ref());
        let Some(first) = first.min_by(|left, right| left.error.total_cmp(&right.error)) else {
            return Err(RidgeError::Singular { column: 0 });
        };
        let Attempt { error, penalties, linear } = fitting.search(first.clone(), &wanted[place])?;
        let target = wanted[place].target;
        let power = tune.at(target, target) + tune.mean[target] * tune.mean[target];
        let explained = if power > 0.0 { 1.0 - error / power } else { 0.0 };
        Ok(Fit { head: columns.head(&linear, &wanted[place]), penalties, explained })
    })
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

    fn attempt(
        &self,
        ridge: Option<&Ridge<'_>>,
        wanted: &Wanted,
        penalties: [f64; 3],
    ) -> Result<Option<Attempt>, RidgeError> {
        let Some(ridge) = ridge else { return Ok(None) };
        let linear = if wanted.text.is_empty() {
            ridge.solve(if wanted.share { self.columns.with_share() } else { self.columns.plain() }, wanted.target)?
        } else {
            let mut with_text = ridge.clone();
            let Some(()) = if_regular(with_text.extend(wanted.text.clone(), TEXT_PENALTY))? else { return Ok(None) };
            with_text.solve(wanted.text.end, wanted.target)?
        };
        Ok(Some(Attempt { error: self.tune.fit_error(&linear, wanted.target), penalties, linear }))
    }

    /// Goes on from one penalty for all groups, a group at a time and a step at a time, as long as the error falls.
    fn search(&self, first: Attempt, wanted: &Wanted) -> Result<Attempt, RidgeError> {
        let groups = 2 + usize::from(wanted.share);
        let (mut best, mut tried) = (first, Vec::new());
        for group in (0..groups).rev().cycle().take(2 * groups) {
            for up in [false, true] {
                while let Some(penalty) = neighbour(best.penalties[group], up) {
                    let mut penalties = best.penalties;
                    penalties[group] = penalty;
                    if tried.contains(&penalties) {
                        break;
                    }
                    tried.push(penalties);
                    let ridge = self.ridge(wanted.share, penalties)?;
                    match self.attempt(ridge.as_ref(), wanted, penalties)? {
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
