//! Built-in rewards read off unfinished texts: what heads know of the text so far.
//!
//! Each gives its own score, and where that alone does not tell how far the text has come (one question or two?), a second number
//! that does. A head's file names the reward by its definition, in which the number of the rule covers what is read here too; [`reading`]
//! finds it again. Not `regex`: a head's file may come from a stranger, and what an expression costs on a text is the expression's own.

use std::sync::Arc;

use super::Reward;
use super::builtin::{BuiltIn, Rule, make, questions};
use super::reading::Counts;
use crate::model::heads::{SharedReading, TextReading};

/// The reading of the reward of this definition; none where it is no built-in one.
pub fn reading(definition: &str) -> Option<SharedReading> {
    let (kind, argument) = match definition.split_once(" 1: ") {
        Some((kind, argument)) => (kind, Some(argument)),
        None => (definition.strip_suffix(" 1")?, None),
    };
    if kind == "regex" {
        return None;
    }
    let reward = make(kind, argument)?.ok()?;
    // By the definition and nothing less: what a later version understands otherwise is not the same reward.
    if reward.definition() == definition { Some(Arc::new(reward)) } else { None }
}

impl BuiltIn {
    /// How far a text has come towards what is asked, 0 to 2, where the score alone does not tell.
    fn progress(&self, text: &str) -> Option<f64> {
        match &self.rule {
            Rule::Length { words } => Some((Counts::of(text).words as f64 / f64::from(*words)).min(2.0)),
            Rule::OneQuestion => Some(questions(text).min(2) as f64),
            Rule::Sentiment | Rule::Simplicity | Rule::Readability | Rule::Regex { .. } | Rule::Json { .. } => None,
        }
    }
}

impl TextReading for BuiltIn {
    fn count(&self) -> usize {
        1 + usize::from(self.progress("").is_some())
    }

    fn read(&self, text: &str, out: &mut Vec<f32>) {
        out.push((self.score_text(text) / self.range().end()) as f32);
        out.extend(self.progress(text).map(|progress| progress as f32));
    }
}

#[cfg(test)]
mod tests {
    use super::super::Spec;
    use super::*;

    #[test]
    fn every_built_in_reward_but_expressions_is_found_again_by_its_definition() {
        for spec in ["sentiment", "simplicity", "readability", "length=40", "one-question", "json", "json=name,age"] {
            let Ok(Spec::BuiltIn(reward)) = Spec::parse(spec) else { panic!("{spec}") };
            let found = reading(&reward.definition()).expect(spec);
            let (mut own, mut numbers) = (Vec::new(), Vec::new());
            for text in ["", "How are you? Fine of course, aabb. And you?"] {
                reward.read(text, &mut own);
                found.read(text, &mut numbers);
            }
            assert_eq!(own, numbers, "{spec}");
            assert_eq!(numbers.len(), 2 * found.count(), "{spec}");
            assert!(numbers.iter().all(|x| (0.0..=2.0).contains(x)), "{spec}: {numbers:?}");
        }
        for other in [
            "",
            "sentiment",
            "sentiment 2",
            "length 1",
            "length 1: 0",
            "component 1: abc",
            "length 1: 040",
            "regex 1: share of a",
        ] {
            assert!(reading(other).is_none(), "{other:?}");
        }
    }

    #[test]
    fn progress_tells_what_a_score_does_not() {
        let numbers = |definition: &str, text: &str| {
            let mut out = Vec::new();
            reading(definition).expect(definition).read(text, &mut out);
            out
        };
        assert_eq!(numbers("one-question 1", "No."), [0.0, 0.0]);
        assert_eq!(numbers("one-question 1", "Why? Who? When?"), [0.0, 2.0]);
        assert_eq!(numbers("length 1: 4", "one"), [0.25, 0.25]);
        assert_eq!(numbers("length 1: 4", "a b c d e f g"), [0.25, 1.75]);
    }
}
