//! Rewards: the number that a finished response earns.
//!
//! A reward reads nothing but text and always gives a number within its range, whatever the text is:
//! there is no error to handle and NaN cannot occur. Two are built in, both cheap enough to score
//! every rollout on the fly and transparent enough to judge by eye. A learned reward model is not here.
//!
//! Start at [`Reward`] and [`by_name`].

use std::ops::RangeInclusive;

use super::vader;

/// A judge of finished responses.
pub trait Reward: Send + Sync {
    /// The name on the command line and in heads.
    fn name(&self) -> &'static str;

    /// One line for people: what is measured, and what the ends of the range mean.
    fn summary(&self) -> &'static str;

    /// The lowest and the highest score.
    fn range(&self) -> RangeInclusive<f64> {
        0.0..=1.0
    }

    /// The score of a response: finite and within [`Reward::range`]. The same text always scores the same.
    fn score(&self, text: &str) -> f64;
}

/// VADER's compound score, moved from -1..1 to 0..1. A text without words scores 0.5.
#[derive(Debug, Clone, Copy)]
pub struct Sentiment;

impl Reward for Sentiment {
    fn name(&self) -> &'static str {
        "sentiment"
    }

    fn summary(&self) -> &'static str {
        "how positive the words are, by VADER: 0 negative, 0.5 neutral, 1 positive"
    }

    fn score(&self, text: &str) -> f64 {
        (vader::compound(text) + 1.0) / 2.0
    }
}

/// Mean word length in letters that scores 0.
const LETTERS_HARD: f64 = 7.0;

/// Mean word length in letters that scores 1.
const LETTERS_EASY: f64 = 3.0;

/// Short words: with m the mean number of letters and digits a word, `(7 - m) / 4`, kept within 0..1.
/// English prose has m between 4 and 5. A word is a run of letters, digits and apostrophes; apostrophes
/// do not count as length. A text without words scores 0, so that saying nothing never pays.
#[derive(Debug, Clone, Copy)]
pub struct Simplicity;

impl Reward for Simplicity {
    fn name(&self) -> &'static str {
        "simplicity"
    }

    fn summary(&self) -> &'static str {
        "how short the words are: 0 at a mean of 7 letters or more, 1 at 3 or fewer"
    }

    fn score(&self, text: &str) -> f64 {
        let (mut letters, mut words) = (0_u64, 0_u64);
        for word in text.split(|c: char| !(c.is_alphanumeric() || c == '\'' || c == '’')) {
            let length = word.chars().filter(|c| c.is_alphanumeric()).count() as u64;
            letters += length;
            words += u64::from(length > 0);
        }
        if words == 0 {
            return 0.0;
        }
        let mean = letters as f64 / words as f64;
        ((LETTERS_HARD - mean) / (LETTERS_HARD - LETTERS_EASY)).clamp(0.0, 1.0)
    }
}

/// Every built-in reward.
pub const ALL: [&dyn Reward; 2] = [&Sentiment, &Simplicity];

/// All rewards, in the order of reports.
pub fn all() -> &'static [&'static dyn Reward] {
    &ALL
}

/// The reward of this name.
pub fn by_name(name: &str) -> Option<&'static dyn Reward> {
    ALL.into_iter().find(|reward| reward.name() == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentiment_is_vader_between_0_and_1() {
        assert_eq!(Sentiment.score(""), 0.5);
        assert_eq!(Sentiment.score("VADER is smart, handsome, and funny."), (0.8316 + 1.0) / 2.0);
        assert!(Sentiment.score("A horrible, sad and ugly war.") < 0.1);
    }

    #[test]
    fn simplicity_follows_its_formula() {
        let check = |text: &str, expected: f64| assert_eq!(Simplicity.score(text), expected, "{text:?}");
        check("", 0.0);
        check("... --- !!!", 0.0);
        check("the cat sat", 1.0);
        check("five letters", 0.25 * (7.0 - 5.5));
        check("don't", 0.75);
        check("incomprehensibilities", 0.0);
        check("größer", 0.25);
    }

    #[test]
    fn every_reward_stays_in_its_range() {
        for reward in ALL {
            assert!(by_name(reward.name()).is_some_and(|found| found.name() == reward.name()));
            for text in ["", "'", "no but bad", "\u{0}\u{feff}", "a", &"happy! ".repeat(5_000)] {
                let score = reward.score(text);
                assert!(reward.range().contains(&score), "{} gives {score} for {text:?}", reward.name());
            }
        }
        assert!(by_name("kindness").is_none());
    }
}
