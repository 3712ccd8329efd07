//! Features of rollouts: the one place where learning meets the engine.
//!
//! A rollout with T tokens has T + 1 *states*: state 0 is the last row of its prompt, state t the row
//! after its t-th token; state T is the end (the end-of-text token's row, or the last row before the cut).
//! The engine runs prompt and response through the layers below the tap and gives, for each state, the
//! row `[residual; running mean over the response; remaining share of the token limit; 1]`, 2H + 2 wide.
//!
//! [`States`] keeps the residuals only: 4H bytes a state (0.6 GB for 250,000 states of the default model).
//! Running means are summed again from them when rows are wanted, in the device's own order.

use std::ops::Range;

use super::rollouts::Rollout;
use crate::engine::EngineError;
use crate::host::Host;
use crate::token::Token;

/// Runs rollouts through the model. Implemented by the engine.
pub trait FeatureSource {
    /// What can go wrong in the engine.
    type Error;

    /// Width of the residual stream, H.
    fn hidden(&self) -> usize;

    /// Appends the rows of all T + 1 states of each rollout, `[T + 1, 2H + 2]` row-major, in order. The
    /// rollouts of one call answer the same prompt.
    fn features(&mut self, rollouts: &[&Rollout], out: &mut Vec<f32>) -> Result<(), Self::Error>;
}

/// Responses whose states are read at once: some 70 kB a token each for a wide model.
const RESPONSES: usize = 16;

/// The last states of some responses to one prompt, a row `[2H + 2]` each, at a layer that the host's engine taps. An empty response's
/// is the prompt's end.
///
/// # Errors
/// The engine's.
pub fn end_states(
    host: &mut Host,
    prompt: &[Token],
    responses: &[&[Token]],
    layer: usize,
    token_limit: usize,
) -> Result<Vec<Vec<f32>>, EngineError> {
    let (mut rows, mut found, width) = (Vec::new(), Vec::new(), 2 * host.shape().hidden + 2);
    for some in responses.chunks(RESPONSES) {
        rows.clear();
        host.engine().features(layer, prompt, some, token_limit, &mut rows)?;
        let mut rest = rows.chunks_exact(width);
        // A response of T tokens has T + 1 states.
        found.extend(some.iter().filter_map(|response| Some(rest.nth(response.len())?.to_vec())));
    }
    Ok(found)
}

/// Why rows were refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FeaturesError {
    /// Not T + 1 rows.
    #[error("a rollout of {tokens} tokens needs {expected} feature numbers, got {got}")]
    Shape {
        /// Tokens of the rollout.
        tokens: usize,
        /// (T + 1) · (2H + 2).
        expected: usize,
        /// What came.
        got: usize,
    },
    /// A feature is NaN or infinite.
    #[error("feature {column} of state {state} is not finite")]
    NotFinite {
        /// The state within its rollout.
        state: usize,
        /// The column of its row.
        column: usize,
    },
}

/// States of many rollouts.
#[derive(Debug, Clone, Default)]
pub struct States {
    hidden: usize,
    /// `[states, H]`.
    residual: Vec<f32>,
    /// `[states]`.
    remaining: Vec<f32>,
    /// Every rollout's tokens, one after the other.
    tokens: Vec<u32>,
    /// First state of every rollout, and the end.
    starts: Vec<usize>,
}

impl States {
    /// No states yet, of a model whose residual stream is `hidden` wide.
    pub fn new(hidden: usize) -> Self {
        Self { hidden, starts: vec![0], ..Self::default() }
    }

    /// Width of the residual stream, H.
    pub fn hidden(&self) -> usize {
        self.hidden
    }

    /// Width of a row of features, 2H + 2.
    pub fn width(&self) -> usize {
        2 * self.hidden + 2
    }

    /// Rollouts held.
    pub fn rollouts(&self) -> usize {
        self.starts.len() - 1
    }

    /// All states held.
    pub fn count(&self) -> usize {
        self.remaining.len()
    }

    /// The states of a rollout, as a range of all.
    pub fn range(&self, rollout: usize) -> Range<usize> {
        self.starts[rollout]..self.starts[rollout + 1]
    }

    /// The tokens of a rollout: token i leads from its state i to its state i + 1.
    pub fn tokens(&self, rollout: usize) -> &[u32] {
        let range = self.range(rollout);
        &self.tokens[range.start - rollout..range.end - rollout - 1]
    }

    /// Adds a rollout: its tokens `[T]` and the rows of its states `[T + 1, 2H + 2]`.
    pub fn push(&mut self, tokens: &[u32], rows: &[f32]) -> Result<(), FeaturesError> {
        let width = self.width();
        let expected = (tokens.len() + 1) * width;
        if rows.len() != expected {
            return Err(FeaturesError::Shape { tokens: tokens.len(), expected, got: rows.len() });
        }
        if let Some(bad) = rows.iter().position(|number| !number.is_finite()) {
            return Err(FeaturesError::NotFinite { state: bad / width, column: bad % width });
        }
        for row in rows.chunks_exact(width) {
            self.residual.extend_from_slice(&row[..self.hidden]);
            self.remaining.push(row[2 * self.hidden]);
        }
        self.tokens.extend_from_slice(tokens);
        self.starts.push(self.count());
        Ok(())
    }

    /// Fetches and adds the rollouts of each prompt, in order; `done` is told after each prompt how many
    /// rollouts there are.
    pub fn collect<S, E>(
        &mut self,
        source: &mut S,
        groups: &[Vec<&Rollout>],
        mut done: impl FnMut(usize),
    ) -> Result<(), E>
    where
        S: FeatureSource,
        E: From<S::Error> + From<FeaturesError>,
    {
        let mut rows = Vec::new();
        for group in groups {
            rows.clear();
            source.features(group, &mut rows)?;
            let mut rest = rows.as_slice();
            for rollout in group {
                let (mine, after) = rest.split_at(((rollout.tokens.len() + 1) * self.width()).min(rest.len()));
                self.push(&rollout.tokens, mine)?;
                rest = after;
            }
            done(self.rollouts());
        }
        Ok(())
    }

    /// Writes the rows of one rollout's states to `out`, `[T + 1, 2H + 2]`.
    pub fn rows(&self, rollout: usize, out: &mut Vec<f32>) {
        out.clear();
        let mut sum = vec![0.0_f32; self.hidden];
        for (position, state) in self.range(rollout).enumerate() {
            let residual = &self.residual[state * self.hidden..][..self.hidden];
            out.extend_from_slice(residual);
            if position > 0 {
                sum.iter_mut().zip(residual).for_each(|(sum, &x)| *sum += x);
                out.extend(sum.iter().map(|sum| sum / position as f32));
            } else {
                out.extend_from_slice(&sum);
            }
            out.extend([self.remaining[state], 1.0]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::learning::prompts::Split;
    use crate::learning::rollouts::End;

    /// Rows of a rollout with one residual dimension.
    fn rows(residual: &[f32]) -> Vec<f32> {
        let mut sum = 0.0;
        let mut out = Vec::new();
        for (at, &x) in residual.iter().enumerate() {
            sum += if at > 0 { x } else { 0.0 };
            let mean = if at > 0 { sum / at as f32 } else { 0.0 };
            out.extend([x, mean, 1.0 - at as f32 / 8.0, 1.0]);
        }
        out
    }

    #[test]
    fn rows_come_back_as_they_went_in() {
        let mut states = States::new(1);
        let (one, two) = (rows(&[5.0, 1.0, 2.5]), rows(&[7.0, -1.0]));
        states.push(&[10, 11], &one).expect("fits");
        states.push(&[12], &two).expect("fits");
        assert_eq!((states.rollouts(), states.count(), states.width()), (2, 5, 4));
        assert_eq!((states.tokens(0), states.tokens(1)), (&[10, 11][..], &[12][..]));
        let mut out = Vec::new();
        states.rows(0, &mut out);
        assert_eq!(out, one);
        states.rows(1, &mut out);
        assert_eq!(out, two);
    }

    #[derive(Debug, PartialEq)]
    struct Failed(String);

    impl From<FeaturesError> for Failed {
        fn from(error: FeaturesError) -> Self {
            Self(error.to_string())
        }
    }

    impl From<std::convert::Infallible> for Failed {
        fn from(never: std::convert::Infallible) -> Self {
            match never {}
        }
    }

    /// Gives each rollout rows whose residual is its tokens, and leaves the last row of `short` out.
    struct Source {
        short: bool,
    }

    impl FeatureSource for Source {
        type Error = std::convert::Infallible;

        fn hidden(&self) -> usize {
            1
        }

        fn features(&mut self, rollouts: &[&Rollout], out: &mut Vec<f32>) -> Result<(), Self::Error> {
            for rollout in rollouts {
                let residual: Vec<f32> = [0].iter().chain(&rollout.tokens).map(|&token| token as f32).collect();
                out.extend(rows(&residual));
            }
            out.truncate(out.len() - if self.short { 4 } else { 0 });
            Ok(())
        }
    }

    #[test]
    fn rollouts_are_collected_prompt_by_prompt() {
        let rollout = |tokens: &[u32]| Rollout {
            id: "a".into(),
            prompt: "a".into(),
            split: Split::of("a"),
            sample: 0,
            tokens: tokens.to_vec(),
            text: String::new(),
            end: End::TokenLimit,
            scores: Vec::new(),
        };
        let all = [rollout(&[3, 4]), rollout(&[5]), rollout(&[6, 7, 8])];
        let groups = [vec![&all[0], &all[1]], vec![&all[2]]];
        let (mut states, mut told) = (States::new(1), Vec::new());
        states.collect::<_, Failed>(&mut Source { short: false }, &groups, |count| told.push(count)).expect("fits");
        assert_eq!((states.count(), told), (9, vec![2, 3]));
        assert_eq!(states.tokens(2), [6, 7, 8]);
        let failed = States::new(1).collect::<_, Failed>(&mut Source { short: true }, &groups, |_| ());
        assert_eq!(failed, Err(Failed("a rollout of 1 tokens needs 8 feature numbers, got 4".into())));
    }

    #[test]
    fn wrong_rows_are_refused() {
        let mut states = States::new(1);
        let error = states.push(&[1, 2], &[0.0; 8]).expect_err("a state is missing");
        assert_eq!(error.to_string(), "a rollout of 2 tokens needs 12 feature numbers, got 8");
        let mut bad = rows(&[1.0, 2.0]);
        bad[5] = f32::NAN;
        assert_eq!(states.push(&[1], &bad), Err(FeaturesError::NotFinite { state: 1, column: 1 }));
        assert_eq!(states.count(), 0);
    }
}
