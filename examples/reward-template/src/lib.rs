//! My reward: how much of what the prompt asks about the response takes up, and how much it adds of its own.
//!
//! It counts words, and knows nothing of what they mean: a response that is long and stays with its topic does best.
//! `CHANGE` marks what you want to change.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;

use vassal_guest::reward::{Exchange, Manifest, Reward};

/// Words that say nothing about a topic. CHANGE: whatever is prepared once for all exchanges of a call.
const COMMON: &str = "a about after all also am an and any are as at be because been but by can could did do does for \
    from get give had has have he her him his how i if in into is it its just like make many may me more most my no \
    not of on one only or other our out over please say she should so some such tell than that the their them then \
    there these they this those to too up us very was we were what when where which while who why will with would \
    write you your";

/// The fewest new words that a whole answer has. CHANGE: as long as yours are.
const NEW_WORDS: usize = 8;

/// What scores. One is made for each call, and no score can change it.
pub struct OnTopic {
    common: BTreeSet<&'static str>,
}

impl Default for OnTopic {
    fn default() -> Self {
        OnTopic { common: COMMON.split_whitespace().collect() }
    }
}

impl OnTopic {
    /// The different words of a text that say something, in lower case and without a plural's s.
    fn words(&self, text: &str) -> BTreeSet<String> {
        let words = text.split(|c: char| !c.is_alphanumeric()).map(str::to_lowercase);
        let said = words.filter(|word| !word.is_empty() && !self.common.contains(word.as_str()));
        said.map(|word| match word.strip_suffix('s') {
            Some(singular) if singular.len() > 2 && !singular.ends_with('s') => singular.to_owned(),
            _ => word,
        })
        .collect()
    }
}

impl Reward for OnTopic {
    /// What it is called, and its range: 0 to 1 where nothing else is said. CHANGE: all of it.
    fn manifest() -> Manifest {
        Manifest {
            name: "on-topic".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            summary: "takes up the prompt's words and adds its own: 0 neither, 1 all of them and 8 more".into(),
            ..Manifest::default()
        }
    }

    /// The score of one exchange. CHANGE: what you want more of.
    fn score(&self, exchange: &Exchange) -> f64 {
        let (asked, said) = (self.words(&exchange.prompt), self.words(&exchange.response));
        let taken_up = match asked.len() {
            // A prompt without such words has no topic to leave.
            0 => 1.0,
            all => asked.intersection(&said).count() as f64 / all as f64,
        };
        // Who only repeats the prompt has said nothing.
        let new = said.difference(&asked).count().min(NEW_WORDS) as f64 / NEW_WORDS as f64;
        taken_up * new
    }
}

vassal_guest::export_reward!(OnTopic);

#[cfg(test)]
mod tests {
    use super::*;

    fn score(prompt: &str, response: &str) -> f64 {
        OnTopic::default().score(&Exchange::new(prompt, response))
    }

    const PROMPT: &str = "Why do cats purr?";

    #[test]
    fn an_answer_beats_an_echo_and_an_answer_to_something_else() {
        let answer =
            "A cat purrs when its throat muscles twitch; most purring means comfort, and some of it heals bones.";
        assert_eq!(score(PROMPT, answer), 1.0);
        assert_eq!(score(PROMPT, "Why do cats purr? Cats purr."), 0.0);
        assert_eq!(score(PROMPT, "Bread rises because yeast makes gas, which dough traps while it bakes slowly."), 0.0);
    }

    #[test]
    fn it_grows_with_what_is_added() {
        assert_eq!(score(PROMPT, "Cats purr. Nobody knows."), 0.25);
        assert_eq!(score(PROMPT, "Cats are happy."), 0.0625);
    }

    #[test]
    fn any_text_has_a_score() {
        for text in ["", " ", "ß", "日本", "\u{0}\u{feff}", "s ss sss", &"cats ".repeat(10_000)] {
            for other in ["", PROMPT, text] {
                let score = score(other, text);
                assert!((0.0..=1.0).contains(&score), "{score} for {other:?} and {text:?}");
            }
        }
    }
}
