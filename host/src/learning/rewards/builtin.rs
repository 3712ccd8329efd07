//! The built-in rewards: transparent rules over the response's text, cheap enough to score every sample at once.
//!
//! All of them are defined on every text, so none ever leaves a response without a score. A rule that changes gets
//! another number in its definition. Start at [`KINDS`].

use std::ops::RangeInclusive;

use regex::Regex;

use super::reading::Counts;
use super::vader;
use super::{Exchange, Reward, Score};
use crate::error::Error;

/// A kind of reward.
#[derive(Debug, Clone, Copy)]
pub struct Kind {
    /// Its word on the command line.
    pub name: &'static str,
    /// What stands behind it, as `=WORDS`; empty where it takes no argument.
    pub argument: &'static str,
    /// One line for people.
    pub summary: &'static str,
}

/// Every built-in kind.
pub const KINDS: [Kind; 7] = [
    Kind {
        name: "sentiment",
        argument: "",
        summary: "how positive the words are, by VADER: 0 negative, 0.5 neutral, 1 positive",
    },
    Kind {
        name: "simplicity",
        argument: "",
        summary: "how short the words are: 0 at a mean of 7 letters or more, 1 at 3 or fewer",
    },
    Kind {
        name: "readability",
        argument: "",
        summary: "Flesch's reading ease over 100: 0 hard, 1 easy; short words in short sentences",
    },
    Kind {
        name: "length",
        argument: "=WORDS",
        summary: "how near the number of words is to the asked: 1 at it, 0 at none or twice",
    },
    Kind {
        name: "regex",
        argument: "=[share:|count:|exactly-N:]PATTERN",
        summary: "what a regular expression finds: the share of the text, matches up to 16, or whether there are N",
    },
    Kind { name: "one-question", argument: "", summary: "1 if the response asks exactly one question, else 0" },
    Kind {
        name: "json",
        argument: "[=KEY,...]",
        summary: "0 if the response is not JSON; else (1 + asked keys that it has) / (1 + asked keys)",
    },
];

/// Mean word length in letters that scores 0.
const LETTERS_HARD: f64 = 7.0;

/// Mean word length in letters that scores 1.
const LETTERS_EASY: f64 = 3.0;

/// Matches past this many count no more.
const COUNT_MAX: f64 = 16.0;

/// The most words that can be asked for.
const WORDS_MAX: u32 = 10_000;

/// The most bytes of a compiled expression: it comes from a command line, but a wrong one shall not take all memory.
const REGEX_BYTES: usize = 1 << 20;

/// What an expression's matches are worth.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Matches {
    /// The share of the text's characters that lie in one.
    Share,
    /// Their number, up to [`COUNT_MAX`].
    Count,
    /// 1 if there are so many, else 0.
    Exactly(u32),
}

#[derive(Debug, Clone)]
pub(super) enum Rule {
    Sentiment,
    Simplicity,
    Readability,
    Length { words: u32 },
    Regex { pattern: Regex, matches: Matches },
    OneQuestion,
    Json { keys: Vec<String> },
}

/// A built-in reward.
#[derive(Debug, Clone)]
pub struct BuiltIn {
    name: String,
    kind: &'static Kind,
    pub(super) rule: Rule,
}

impl PartialEq for BuiltIn {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name && self.definition() == other.definition()
    }
}

/// The reward of a kind with its argument, or what is wrong with that; none where there is no such kind.
pub(super) fn make(kind: &str, argument: Option<&str>) -> Option<Result<BuiltIn, String>> {
    let kind = KINDS.iter().find(|known| known.name == kind)?;
    let rule = match (kind.name, argument) {
        ("sentiment", None) => Ok(Rule::Sentiment),
        ("simplicity", None) => Ok(Rule::Simplicity),
        ("readability", None) => Ok(Rule::Readability),
        ("one-question", None) => Ok(Rule::OneQuestion),
        ("json", keys) => json(keys),
        ("length", Some(words)) => length(words),
        ("regex", Some(pattern)) => regex(pattern),
        (name, None) => Err(format!("it needs an argument, {name}{}", kind.argument)),
        (_, Some(given)) => Err(format!("it takes no argument, got {given:?}")),
    };
    Some(rule.map(|rule| BuiltIn { name: kind.name.to_owned(), kind, rule }))
}

fn length(words: &str) -> Result<Rule, String> {
    match words.parse() {
        Ok(words) if (1..=WORDS_MAX).contains(&words) => Ok(Rule::Length { words }),
        _ => Err(format!("the asked number of words is 1 to {WORDS_MAX}, got {words:?}")),
    }
}

fn regex(argument: &str) -> Result<Rule, String> {
    let exactly = |mode: &str| mode.strip_prefix("exactly-")?.parse().ok();
    let (matches, pattern) = match argument.split_once(':') {
        Some(("share", pattern)) => (Matches::Share, pattern),
        Some(("count", pattern)) => (Matches::Count, pattern),
        Some((mode, pattern)) if exactly(mode).is_some() => (Matches::Exactly(exactly(mode).unwrap_or(0)), pattern),
        _ => (Matches::Share, argument),
    };
    let built = regex::RegexBuilder::new(pattern).size_limit(REGEX_BYTES).build();
    built.map(|pattern| Rule::Regex { pattern, matches }).map_err(|error| error.to_string())
}

fn json(keys: Option<&str>) -> Result<Rule, String> {
    let keys: Vec<String> = keys.into_iter().flat_map(|keys| keys.split(',')).map(str::to_owned).collect();
    match keys.iter().enumerate().find(|(place, key)| key.is_empty() || keys[..*place].contains(key)) {
        Some((_, key)) => Err(format!("asked keys are different and not empty, got {key:?}")),
        None => Ok(Rule::Json { keys }),
    }
}

impl BuiltIn {
    /// VADER's compound score, moved from -1..1 to 0..1. A text without words scores 0.5.
    pub fn sentiment() -> Self {
        Self { name: "sentiment".to_owned(), kind: &KINDS[0], rule: Rule::Sentiment }
    }

    /// Short words: with m the mean number of letters and digits a word, `(7 - m) / 4`, kept within 0..1. English
    /// prose has m between 4 and 5. A text without words scores 0, so that saying nothing never pays.
    pub fn simplicity() -> Self {
        Self { name: "simplicity".to_owned(), kind: &KINDS[1], rule: Rule::Simplicity }
    }

    /// The same under another name.
    pub(super) fn named(self, name: &str) -> Self {
        Self { name: name.to_owned(), ..self }
    }

    /// The score of a response: finite and within the range, whatever the text is.
    pub fn score_text(&self, text: &str) -> f64 {
        match &self.rule {
            Rule::Sentiment => (vader::compound(text) + 1.0) / 2.0,
            Rule::Simplicity => simplicity(Counts::of(text)),
            Rule::Readability => readability(Counts::of(text)),
            Rule::Length { words } => {
                let (words, found) = (f64::from(*words), Counts::of(text).words as f64);
                (1.0 - (found - words).abs() / words).max(0.0)
            }
            Rule::Regex { pattern, matches } => found(pattern, *matches, text),
            Rule::OneQuestion => f64::from(u8::from(questions(text) == 1)),
            Rule::Json { keys } => parsed(keys, text),
        }
    }
}

fn simplicity(counts: Counts) -> f64 {
    if counts.words == 0 {
        return 0.0;
    }
    let mean = counts.letters as f64 / counts.words as f64;
    ((LETTERS_HARD - mean) / (LETTERS_HARD - LETTERS_EASY)).clamp(0.0, 1.0)
}

/// Flesch, *A new readability yardstick*, 1948: 206.835 − 1.015 words a sentence − 84.6 syllables a word.
fn readability(counts: Counts) -> f64 {
    if counts.words == 0 {
        return 0.0;
    }
    let words = counts.words as f64;
    let ease = 206.835 - 1.015 * words / counts.sentences as f64 - 84.6 * counts.syllables as f64 / words;
    (ease / 100.0).clamp(0.0, 1.0)
}

fn found(pattern: &Regex, matches: Matches, text: &str) -> f64 {
    let count = || pattern.find_iter(text).count();
    match matches {
        Matches::Count => (count() as f64).min(COUNT_MAX),
        Matches::Exactly(wanted) => f64::from(u8::from(count() == wanted as usize)),
        Matches::Share => {
            let inside: usize = pattern.find_iter(text).map(|found| found.as_str().chars().count()).sum();
            inside as f64 / text.chars().count().max(1) as f64
        }
    }
}

/// Runs of question marks and exclamation marks that hold a question mark.
pub(super) fn questions(text: &str) -> usize {
    text.split(|c: char| !matches!(c, '?' | '!')).filter(|run| run.contains('?')).count()
}

fn parsed(keys: &[String], text: &str) -> f64 {
    let Ok(value) = serde_json::from_str::<serde_json::Value>(text.trim()) else { return 0.0 };
    let has = keys.iter().filter(|key| value.get(key.as_str()).is_some()).count();
    (1 + has) as f64 / (1 + keys.len()) as f64
}

impl Reward for BuiltIn {
    fn name(&self) -> &str {
        &self.name
    }

    fn summary(&self) -> String {
        match &self.rule {
            Rule::Length { words } => format!("{} ({words} words)", self.kind.summary),
            Rule::Regex { pattern, .. } => format!("{} ({pattern})", self.kind.summary),
            Rule::Json { keys } if !keys.is_empty() => format!("{} ({})", self.kind.summary, keys.join(", ")),
            _ => self.kind.summary.to_owned(),
        }
    }

    fn definition(&self) -> String {
        let argument = match &self.rule {
            Rule::Length { words } => format!(": {words}"),
            Rule::Regex { pattern, matches: Matches::Share } => format!(": share of {pattern}"),
            Rule::Regex { pattern, matches: Matches::Count } => format!(": count of {pattern}"),
            Rule::Regex { pattern, matches: Matches::Exactly(count) } => format!(": exactly {count} of {pattern}"),
            Rule::Json { keys } if !keys.is_empty() => format!(": {}", keys.join(",")),
            _ => String::new(),
        };
        format!("{} 1{argument}", self.kind.name)
    }

    fn range(&self) -> RangeInclusive<f64> {
        match &self.rule {
            Rule::Regex { matches: Matches::Count, .. } => 0.0..=COUNT_MAX,
            _ => 0.0..=1.0,
        }
    }

    fn score(&self, exchanges: &[Exchange<'_>]) -> Result<Vec<Score>, Error> {
        Ok(exchanges.iter().map(|exchange| Ok(self.score_text(exchange.response))).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn reward(kind: &str, argument: &str) -> BuiltIn {
        make(kind, Some(argument).filter(|argument| !argument.is_empty())).expect("a kind").expect("an argument")
    }

    #[track_caller]
    fn check(reward: &BuiltIn, text: &str, expected: f64) {
        let score = reward.score_text(text);
        assert!((score - expected).abs() < 1e-12, "{text:?}: {score}, expected {expected}");
    }

    #[test]
    fn sentiment_is_vader_between_0_and_1() {
        let sentiment = BuiltIn::sentiment();
        check(&sentiment, "", 0.5);
        check(&sentiment, "VADER is smart, handsome, and funny.", (0.8316 + 1.0) / 2.0);
        assert!(sentiment.score_text("A horrible, sad and ugly war.") < 0.1);
    }

    #[test]
    fn simplicity_follows_its_formula() {
        let simplicity = BuiltIn::simplicity();
        for (text, expected) in [
            ("", 0.0),
            ("... --- !!!", 0.0),
            ("the cat sat", 1.0),
            ("five letters", 0.25 * (7.0 - 5.5)),
            ("don't", 0.75),
            ("incomprehensibilities", 0.0),
            ("größer", 0.25),
        ] {
            check(&simplicity, text, expected);
        }
    }

    #[test]
    fn readability_is_flesch() {
        let readability = reward("readability", "");
        check(&readability, "", 0.0);
        // 6 words, 2 sentences, 6 syllables: beyond 100.
        check(&readability, "The cat sat. The dog ran.", 1.0);
        // 4 words, 1 sentence, 10 syllables.
        let ease = 206.835 - 1.015 * 4.0 - 84.6 * 10.0 / 4.0;
        check(&readability, "Education makes beautiful people.", (ease / 100.0f64).max(0.0));
        assert!(readability.score_text("It is easy to see why this helps you.") > 0.8);
    }

    #[test]
    fn length_is_the_distance_to_the_asked_words() {
        let length = reward("length", "4");
        for (text, expected) in [("", 0.0), ("one two", 0.5), ("one two, three four", 1.0), ("a b c d e", 0.75)] {
            check(&length, text, expected);
        }
        check(&length, "a b c d e f g h i j", 0.0);
    }

    #[test]
    fn expressions_give_a_share_a_count_or_whether_there_are_so_many() {
        check(&reward("regex", "[aeiou]"), "bananas", 3.0 / 7.0);
        check(&reward("regex", "share:é"), "été", 2.0 / 3.0);
        check(&reward("regex", "share:a"), "", 0.0);
        check(&reward("regex", "count:a"), "bananas", 3.0);
        check(&reward("regex", "count:a"), &"a".repeat(40), COUNT_MAX);
        check(&reward("regex", "exactly-3:a"), "bananas", 1.0);
        check(&reward("regex", "exactly-2:a"), "bananas", 0.0);
    }

    #[test]
    fn one_question_is_one_run_of_question_marks() {
        let one = reward("one-question", "");
        for (text, expected) in [("", 0.0), ("Why?", 1.0), ("Why?!?", 1.0), ("Why? How?", 0.0), ("No!", 0.0)] {
            check(&one, text, expected);
        }
    }

    #[test]
    fn json_parses_and_has_its_keys() {
        check(&reward("json", ""), " [1, 2] ", 1.0);
        check(&reward("json", ""), "{\"a\": 1", 0.0);
        let keys = reward("json", "name,age");
        check(&keys, "{\"name\": 1, \"age\": null}", 1.0);
        check(&keys, "{\"name\": 1}", 2.0 / 3.0);
        check(&keys, "3", 1.0 / 3.0);
        check(&keys, "Sure! {\"name\": 1}", 0.0);
        assert!(
            make("json", Some("a,,b")).expect("a kind").is_err() && make("json", Some("a,a")).expect("a kind").is_err()
        );
    }

    #[test]
    fn every_reward_stays_in_its_range_on_every_text() {
        let arguments = [("length", "3"), ("regex", "count:a*")];
        for kind in &KINDS {
            let argument = arguments.iter().find(|(name, _)| *name == kind.name).map_or("", |(_, argument)| argument);
            let reward = reward(kind.name, argument);
            for text in ["", "'", "no but bad", "\u{0}\u{feff}", "a", &"happy! ".repeat(5_000), &"[".repeat(5_000)] {
                let score = reward.score_text(text);
                assert!(reward.range().contains(&score), "{} gives {score} for {text:?}", reward.name());
            }
        }
    }
}
