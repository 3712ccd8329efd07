//! The scores of many exchanges, and the rule for those that have none.
//!
//! An exchange without a score is left out of everything that its reward is used for, counted and told with its reason.
//! Past a share of all of them the whole run is refused instead: what is left would be a choice of the reward's own.

use std::collections::BTreeMap;

use super::{Exchange, Reward, Score};
use crate::error::Error;

/// The share of exchanges that may be without a score.
pub const FAILURES_MAX: f64 = 0.01;

/// Different reasons that are kept apart; further ones are counted together.
const REASONS_MAX: usize = 16;

/// One reward's scores, an exchange each.
#[derive(Debug, Clone, PartialEq)]
pub struct Scores {
    /// The reward's name.
    pub reward: String,
    /// In the exchanges' order; none where there is no score.
    pub scores: Vec<Option<f64>>,
    /// How often each reason left one without.
    pub failures: BTreeMap<String, usize>,
}

/// Too many exchanges have no score.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error(
    "the reward {reward:?} has no score for {failed} of {of} responses, at most {:.0} % may be without: {reasons}",
    100.0 * share_max
)]
pub struct ScoresError {
    /// The reward.
    pub reward: String,
    /// Responses without a score.
    pub failed: usize,
    /// All responses.
    pub of: usize,
    /// The share allowed.
    pub share_max: f64,
    /// Each reason with its count.
    pub reasons: String,
}

impl Scores {
    /// Asks a reward.
    ///
    /// # Errors
    /// The host's own; exchanges without a score are in the answer.
    pub fn of(reward: &dyn Reward, exchanges: &[Exchange<'_>]) -> Result<Self, Error> {
        Ok(Self::new(reward.name(), reward.score(exchanges)?))
    }

    /// What a reward has answered.
    pub fn new(reward: &str, given: Vec<Score>) -> Self {
        let mut failures = BTreeMap::new();
        let mut keep = |score: Score| {
            score
                .map_err(|reason| {
                    let mut reason = reason.to_string();
                    if failures.len() >= REASONS_MAX && !failures.contains_key(&reason) {
                        reason = "another reason".to_owned();
                    }
                    *failures.entry(reason).or_default() += 1;
                })
                .ok()
        };
        let scores = given.into_iter().map(&mut keep).collect();
        Self { reward: reward.to_owned(), scores, failures }
    }

    /// Exchanges without a score.
    pub fn failed(&self) -> usize {
        self.failures.values().sum()
    }

    /// Each reason with its count, for people.
    pub fn reasons(&self) -> String {
        let reasons: Vec<String> = self.failures.iter().map(|(reason, count)| format!("{count} x {reason}")).collect();
        reasons.join("; ")
    }

    /// Refuses scores of which more than [`FAILURES_MAX`] are missing.
    ///
    /// # Errors
    /// [`ScoresError`], with the reasons.
    pub fn accept(self) -> Result<Self, Box<ScoresError>> {
        let (failed, of) = (self.failed(), self.scores.len());
        if failed as f64 <= FAILURES_MAX * of as f64 {
            return Ok(self);
        }
        let reasons = self.reasons();
        Err(Box::new(ScoresError { reward: self.reward, failed, of, share_max: FAILURES_MAX, reasons }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::learning::rewards::Unscored;

    #[test]
    fn a_hundredth_may_be_without_a_score_and_no_more() {
        let given = |failed: usize| {
            let mut given: Vec<Score> = vec![Ok(0.5); 200 - failed];
            given.extend(vec![Err(Unscored::NotANumber); failed]);
            Scores::new("r", given)
        };
        let kept = given(2).accept().expect("2 of 200");
        assert_eq!((kept.failed(), kept.scores.len(), kept.scores[199]), (2, 200, None));
        let error = given(3).accept().expect_err("3 of 200").to_string();
        assert_eq!(
            error,
            "the reward \"r\" has no score for 3 of 200 responses, at most 1 % may be without: 3 x gave no number"
        );
    }

    #[test]
    fn reasons_without_end_are_counted_together() {
        let fault = |n: usize| Err(Unscored::Fault(format!("fault {n}")));
        let scores = Scores::new("r", (0..100).map(fault).collect());
        assert_eq!((scores.failed(), scores.failures.len()), (100, REASONS_MAX + 1));
        assert_eq!(scores.failures["another reason"], 100 - REASONS_MAX);
    }
}
