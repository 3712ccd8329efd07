//! The compound sentiment score of VADER, exactly as its authors' Python package 3.3.2 gives it.
//!
//! The lexicon is that of the crate `vader_sentiment`. Its scoring is not used: on prompts of this
//! project 45 % of its scores differed from the authors' (one by .8), mostly because it looks for
//! boosting words inside other words ("so" in "person"), and it sums in the order of a randomly seeded
//! hash map. The rules here are those of the Python code, its oddities included (see
//! [`damp_around_but`]); the tests compare with scores that it gave.
//!
//! Source: Hutto and Gilbert, *VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social
//! Media Text*, ICWSM 2014. Start at [`compound`].

use std::collections::{HashMap, HashSet};
use std::sync::OnceLock;

const BOOST: f64 = 0.293;
const CAPITALS: f64 = 0.733;
const NEGATE: f64 = -0.74;
const NORMALIZE: f64 = 15.0;

const BOOSTERS: &str = "absolutely amazingly awfully completely considerable considerably decidedly deeply effing \
    enormous enormously entirely especially exceptional exceptionally extreme extremely fabulously flipping flippin \
    frackin fracking fricking frickin frigging friggin fully fuckin fucking fuggin fugging greatly hella highly hugely \
    incredible incredibly intensely major majorly more most particularly purely quite really remarkably so \
    substantially thoroughly total totally tremendous tremendously uber unbelievably unusually utter utterly very";
const DAMPENERS: &str = "almost barely hardly kinda kindof kind-of less little marginal marginally occasional \
    occasionally partly scarce scarcely slight slightly somewhat sorta sortof sort-of";
const DAMPENING_PAIRS: [&str; 3] = ["just enough", "kind of", "sort of"];
const NEGATIONS: &str = "aint arent cannot cant couldnt darent didnt doesnt dont hadnt hasnt havent isnt mightnt mustnt \
    neither neednt never none nope nor not nothing nowhere oughtnt shant shouldnt uhuh wasnt werent uh-uh without wont \
    wouldnt rarely seldom despite";
const IDIOMS: [(&str, f64); 9] = [
    ("the shit", 3.0),
    ("the bomb", 3.0),
    ("bad ass", 1.5),
    ("badass", 1.5),
    ("bus stop", 0.0),
    ("yeah right", -2.0),
    ("kiss of death", -1.5),
    ("to die for", 3.0),
    ("beating heart", 3.5),
];

/// Entries that the authors' lexicon has and the crate's, a little older, lacks.
const LATER_ENTRIES: [(&str, f64); 2] = [("heart", 3.2), ("hearts", 3.3)];

struct Tables {
    lexicon: HashMap<String, f64>,
    boosters: HashMap<&'static str, f64>,
    negations: HashSet<&'static str>,
    emoji: HashMap<char, &'static str>,
}

fn tables() -> &'static Tables {
    static TABLES: OnceLock<Tables> = OnceLock::new();
    TABLES.get_or_init(|| {
        let boosters = BOOSTERS.split_whitespace().map(|word| (word, BOOST));
        let dampeners = DAMPENERS.split_whitespace().map(|word| (word, -BOOST));
        Tables {
            // Words are looked up in lower case, so entries with capitals (some emoticons) are never found.
            lexicon: vader_sentiment::LEXICON
                .iter()
                .map(|(word, &valence)| (word.as_ref().to_string(), valence))
                .filter(|(word, _)| *word == word.to_lowercase())
                .chain(LATER_ENTRIES.map(|(word, valence)| (word.to_string(), valence)))
                .collect(),
            boosters: boosters.chain(dampeners).collect(),
            negations: NEGATIONS.split_whitespace().collect(),
            // The reference goes through text by characters, so it too knows emoji of one character only.
            emoji: vader_sentiment::EMOJI_LEXICON
                .iter()
                .filter_map(|(emoji, &description)| {
                    let mut characters = emoji.chars();
                    characters.next().filter(|_| characters.next().is_none()).map(|character| (character, description))
                })
                .collect(),
        }
    })
}

/// The compound score of a text: -1 (most negative) to 1, rounded to four decimals as the reference does.
/// A text without words scores 0. Never NaN.
pub(super) fn compound(text: &str) -> f64 {
    let text = describe_emoji(text);
    let sentence = Sentence::new(text.trim());
    let mut valences: Vec<f64> = (0..sentence.lower.len()).map(|at| sentence.valence(at)).collect();
    damp_around_but(&sentence.lower, &mut valences);
    let sum: f64 = valences.iter().sum();
    let emphasis = punctuation_emphasis(&text);
    let sum = if sum > 0.0 {
        sum + emphasis
    } else if sum < 0.0 {
        sum - emphasis
    } else {
        0.0
    };
    let score = sum / (sum * sum + NORMALIZE).sqrt();
    (score.clamp(-1.0, 1.0) * 1e4).round() / 1e4
}

struct Sentence<'a> {
    words: Vec<&'a str>,
    lower: Vec<String>,
    /// Some but not all words are in capitals, so capitals mean emphasis.
    capitals_differ: bool,
}

impl<'a> Sentence<'a> {
    fn new(text: &'a str) -> Self {
        let words: Vec<&str> = text.split_whitespace().map(strip_punctuation).collect();
        let shouted = words.iter().filter(|word| is_upper(word)).count();
        Self {
            lower: words.iter().map(|word| word.to_lowercase()).collect(),
            capitals_differ: shouted > 0 && shouted < words.len(),
            words,
        }
    }

    fn lower(&self, at: usize) -> &str {
        self.lower.get(at).map_or("", String::as_str)
    }

    /// The lower-case word `back` places before `at`; empty before the beginning.
    fn before(&self, at: usize, back: usize) -> &str {
        at.checked_sub(back).map_or("", |index| self.lower(index))
    }

    fn valence(&self, at: usize) -> f64 {
        let tables = tables();
        let word = self.lower(at);
        if tables.boosters.contains_key(word) || (word == "kind" && self.lower(at + 1) == "of") {
            return 0.0;
        }
        let Some(&listed) = tables.lexicon.get(word) else {
            return 0.0;
        };
        let mut valence = listed;
        if word == "no" && tables.lexicon.contains_key(self.lower(at + 1)) {
            valence = 0.0;
        }
        if self.before(at, 1) == "no"
            || self.before(at, 2) == "no"
            || (self.before(at, 3) == "no" && matches!(self.before(at, 1), "or" | "nor"))
        {
            valence = listed * NEGATE;
        }
        if self.capitals_differ && is_upper(self.words[at]) {
            valence += if valence > 0.0 { CAPITALS } else { -CAPITALS };
        }
        for back in 1..=3.min(at) {
            if tables.lexicon.contains_key(self.before(at, back)) {
                continue;
            }
            let distance = [1.0, 0.95, 0.9][back - 1];
            valence += self.boost(at - back, valence) * distance;
            valence = self.negate(valence, at, back);
            if back == 3 {
                valence = self.idioms(valence, at);
            }
        }
        if self.before(at, 1) == "least" && !matches!(self.before(at, 2), "at" | "very") {
            valence *= NEGATE;
        }
        valence
    }

    /// What the word at `at` adds to a valence after it.
    fn boost(&self, at: usize, valence: f64) -> f64 {
        let Some(&boost) = tables().boosters.get(self.lower(at)) else {
            return 0.0;
        };
        let boost = if valence < 0.0 { -boost } else { boost };
        if self.capitals_differ && is_upper(self.words[at]) {
            boost + if valence > 0.0 { CAPITALS } else { -CAPITALS }
        } else {
            boost
        }
    }

    fn negate(&self, valence: f64, at: usize, back: usize) -> f64 {
        let emphatic = |word: &str| matches!(word, "so" | "this");
        let (one, two, three) = (self.before(at, 1), self.before(at, 2), self.before(at, 3));
        let (intensified, without_doubt) = match back {
            1 => (false, false),
            2 => (two == "never" && emphatic(one), two == "without" && one == "doubt"),
            // The precedence is the reference's: "so" or "this" right before is enough.
            _ => (
                (three == "never" && emphatic(two)) || emphatic(one),
                three == "without" && (two == "doubt" || one == "doubt"),
            ),
        };
        let word = self.before(at, back);
        if intensified {
            valence * 1.25
        } else if !without_doubt && (word.contains("n't") || tables().negations.contains(word)) {
            valence * NEGATE
        } else {
            valence
        }
    }

    /// Idioms around the word, and dampeners of two words before it.
    fn idioms(&self, mut valence: f64, at: usize) -> f64 {
        let idiom = |phrase: &str| IDIOMS.iter().find(|(name, _)| *name == phrase).map(|(_, valence)| *valence);
        let phrase = |from: usize, to: usize| self.lower[from..=to].join(" ");
        let before = [
            phrase(at - 1, at),
            phrase(at - 2, at),
            phrase(at - 2, at - 1),
            phrase(at - 3, at - 1),
            phrase(at - 3, at - 2),
        ];
        if let Some(found) = before.iter().find_map(|phrase| idiom(phrase)) {
            valence = found;
        }
        for ahead in 1..=2 {
            if at + ahead < self.lower.len()
                && let Some(found) = idiom(&phrase(at, at + ahead))
            {
                valence = found;
            }
        }
        let dampened = [&before[4], &before[2]].iter().filter(|pair| DAMPENING_PAIRS.contains(&pair.as_str())).count();
        valence - BOOST * dampened as f64
    }
}

/// Halves what stands before the first "but" and raises what follows. The reference looks each valence
/// up by its value while it changes the list, so of equal valences only the first is scaled, perhaps
/// more than once; a faithful score has to do the same.
fn damp_around_but(lower: &[String], valences: &mut [f64]) {
    let Some(but) = lower.iter().position(|word| word == "but") else {
        return;
    };
    for index in 0..valences.len() {
        let value = valences[index];
        let Some(first) = valences.iter().position(|&other| other == value) else {
            continue;
        };
        if first < but {
            valences[first] *= 0.5;
        } else if first > but {
            valences[first] *= 1.5;
        }
    }
}

fn describe_emoji(text: &str) -> String {
    let emoji = &tables().emoji;
    let mut out = String::with_capacity(text.len());
    let mut after_space = true;
    for character in text.chars() {
        if let Some(description) = emoji.get(&character) {
            if !after_space {
                out.push(' ');
            }
            out.push_str(description);
            after_space = false;
        } else {
            out.push(character);
            after_space = character == ' ';
        }
    }
    out
}

/// Punctuation around a word goes, unless so little is left that it was an emoticon.
fn strip_punctuation(token: &str) -> &str {
    let stripped = token.trim_matches(|c: char| c.is_ascii_punctuation());
    if stripped.chars().count() <= 2 { token } else { stripped }
}

/// As Python's `str.isupper`: at least one letter with case, and none in lower case.
fn is_upper(word: &str) -> bool {
    word.chars().any(char::is_uppercase) && !word.chars().any(char::is_lowercase)
}

fn punctuation_emphasis(text: &str) -> f64 {
    let exclamations = text.bytes().filter(|&byte| byte == b'!').count().min(4);
    let questions = text.bytes().filter(|&byte| byte == b'?').count();
    let questions = match questions {
        0 | 1 => 0.0,
        2 | 3 => questions as f64 * 0.18,
        _ => 0.96,
    };
    exclamations as f64 * 0.292 + questions
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scores of vaderSentiment 3.3.2 for Python.
    const REFERENCE: [(&str, f64); 24] = [
        ("", 0.0),
        ("VADER is smart, handsome, and funny.", 0.8316),
        ("VADER is smart, handsome, and funny!", 0.8439),
        ("VADER is VERY SMART, handsome, and FUNNY!!!", 0.9342),
        ("VADER is VERY SMART, uber handsome, and FRIGGIN FUNNY!!!", 0.9469),
        ("VADER is not smart, handsome, nor funny.", -0.7424),
        ("At least it isn't a horrible book.", 0.431),
        ("The book was only kind of good.", 0.3832),
        ("The plot was good, but the characters are uncompelling and the dialog is not great.", -0.7042),
        ("Today SUX!", -0.5461),
        ("Today only kinda sux! But I'll get by, lol", 0.5249),
        ("Make sure you :) or :D today!", 0.8633),
        ("Catch utf-8 emoji such as 💘 and 💋 and 😁", 0.875),
        ("Not bad at all", 0.431),
        ("There is no hope, no joy and no good or bad in it.", -0.4847),
        ("It was the least happy day. At least we won.", 0.1783),
        ("Without a doubt the best cake, sort of nice and to die for.", 0.6016),
        ("A person of reason is good; some more also love it.", 0.8115),
        ("Why??? Who cares???? Really?!", 0.643),
        ("This is so this terrible, never so great, never this bad.", -0.4323),
        ("good good but good good bad", 0.705),
        ("no no no", 0.4168),
        ("Ünïcödé ᾼ ŉ 'n't \u{0} \u{202e} sad \u{d7ff} 🏳️\u{200d}🌈 happy", 0.7394),
        ("The bus stop near the beating heart of town is badass, yeah right.", -0.0772),
    ];

    #[test]
    fn scores_are_those_of_the_authors_package() {
        for (text, expected) in REFERENCE {
            let got = compound(text);
            assert!((got - expected).abs() <= 1e-9, "{text:?}: got {got}, the reference gives {expected}");
        }
    }

    #[test]
    fn odd_text_gives_a_finite_score() {
        let mut odd =
            vec!["!".repeat(100_000), "?!\u{0}\u{feff}".repeat(100), "no but ".repeat(2_000), "\u{301}".into()];
        odd.extend((0..0x11_0000).step_by(97).filter_map(char::from_u32).map(|c| format!("{c}good {c} {c}{c}bad{c}")));
        for text in odd {
            let score = compound(&text);
            assert!((-1.0..=1.0).contains(&score), "{text:?} scores {score}");
        }
    }
}
