//! Rewards: the number that a finished response earns.
//!
//! A [`Reward`] is asked for many exchanges at once, since a learned one or a stranger's component is slow one at a
//! time. An exchange that it has no number for is [`Unscored`], with the reason: nothing turns into a zero. What follows
//! from that is one rule for everybody, [`Scores::accept`].
//!
//! Rewards are named on a command line by a [`Spec`], as `sentiment` or `short:length=20`. The built-in ones
//! ([`builtin`]) read nothing but the response, [`learned`] ones what the base model makes of prompt and response. Start at
//! [`Reward`].

pub mod builtin;
mod component;
pub mod learned;
mod reading;
mod scores;
mod spec;
mod text;
mod vader;

use std::ops::RangeInclusive;
use std::sync::Arc;

pub use builtin::BuiltIn;
pub use scores::{FAILURES_MAX, Scores, ScoresError};
pub use spec::{Opening, Spec, SpecError, check_name, find};
pub use text::reading;

use crate::error::Error;
pub use crate::sandbox::Exchange;
use crate::token::Token;

/// Why an exchange has no score.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Unscored {
    /// Not a number.
    #[error("gave no number")]
    NotANumber,
    /// Outside of what the reward says it gives, or infinite.
    #[error("gave {given}, outside {minimum}..{maximum}")]
    OutOfRange {
        /// What it gave.
        given: f64,
        /// The least it may give.
        minimum: f64,
        /// The most it may give.
        maximum: f64,
    },
    /// The reward failed on it; how, in words.
    #[error("{0}")]
    Fault(String),
}

/// What a reward says of one exchange.
pub type Score = Result<f64, Unscored>;

/// A judge of finished responses. The same exchange always gets the same score, whatever it is asked beside.
pub trait Reward: Send + Sync {
    /// The name in tables, in heads, and of the dial that turns one: 1 to 32 bytes of `a`-`z`, `0`-`9` and `-`.
    fn name(&self) -> &str;

    /// One line for people: what is measured, and what the ends of the range mean.
    fn summary(&self) -> String;

    /// What it is, exactly: equal for two rewards only if they score alike. It goes into the provenance of files.
    fn definition(&self) -> String;

    /// The lowest and the highest score.
    fn range(&self) -> RangeInclusive<f64> {
        0.0..=1.0
    }

    /// What a score costs for each token of a response, in plain rows of the base model; 0 for a reward that reads text alone.
    fn forwards_per_token(&self) -> f64 {
        0.0
    }

    /// Tokens of a response that it reads at most, if it was made for responses of a length.
    fn token_limit(&self) -> Option<usize> {
        None
    }

    /// One score an exchange, in order.
    ///
    /// # Errors
    /// The host's own: what an exchange is to blame for is its [`Score`].
    fn score(&self, exchanges: &[Exchange<'_>]) -> Result<Vec<Score>, Error>;

    /// One score each of the response's first 0, 1, … T tokens, as of a response that has ended there; `decode` gives the text of tokens.
    ///
    /// # Errors
    /// As [`Reward::score`].
    fn score_so_far(
        &self,
        prompt: &str,
        tokens: &[Token],
        decode: &dyn Fn(&[Token]) -> String,
    ) -> Result<Vec<Score>, Error> {
        let texts: Vec<String> = (0..=tokens.len()).map(|count| decode(&tokens[..count])).collect();
        let exchanges: Vec<Exchange<'_>> = texts.iter().map(|response| Exchange { prompt, response }).collect();
        self.score(&exchanges)
    }
}

/// A reward that many share.
pub type SharedReward = Arc<dyn Reward>;

/// The rewards that the shipped heads are for, in the order of reports.
pub fn of_shipped_heads() -> [BuiltIn; 2] {
    [BuiltIn::sentiment(), BuiltIn::simplicity()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_score_says_what_was_given_and_what_is_accepted() {
        let outside = |given| Unscored::OutOfRange { given, minimum: 0.0, maximum: 1.0 }.to_string();
        assert_eq!(outside(f64::INFINITY), "gave inf, outside 0..1");
        assert_eq!(outside(-0.25), "gave -0.25, outside 0..1");
        assert_eq!(Unscored::NotANumber.to_string(), "gave no number");
    }
}
