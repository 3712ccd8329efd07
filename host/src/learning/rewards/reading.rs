//! Words, sentences and syllables, as the rewards count them.
//!
//! A word is a run of letters, digits and apostrophes with at least one letter or digit. A sentence ends at a run of
//! `.`, `!` or `?` after a word and before a blank or the end; what follows the last such end counts as one more.
//! Syllables are guessed from English spelling, a vowel group each. Start at [`Counts::of`].

/// What a text is made of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Words.
    pub(super) words: u64,
    /// Letters and digits in words.
    pub(super) letters: u64,
    /// Sentences; at least one where there are words.
    pub(super) sentences: u64,
    /// Syllables, at least one a word.
    pub(super) syllables: u64,
}

impl Counts {
    pub(super) fn of(text: &str) -> Self {
        let mut counts = Self::default();
        // Words since the last sentence's end.
        let mut open = 0;
        for piece in text.split_whitespace() {
            for word in piece.split(|c: char| !(c.is_alphanumeric() || c == '\'' || c == '’')) {
                let letters = word.chars().filter(|c| c.is_alphanumeric()).count() as u64;
                if letters > 0 {
                    open += 1;
                    counts.words += 1;
                    counts.letters += letters;
                    counts.syllables += syllables(word);
                }
            }
            let ends = piece.trim_end_matches(['"', '\'', '’', '”', ')']).ends_with(['.', '!', '?']);
            if ends && open > 0 {
                counts.sentences += 1;
                open = 0;
            }
        }
        counts.sentences += u64::from(open > 0);
        counts
    }
}

/// Vowel groups, without a silent e at the end: "rated" has 2 by the rule that -ed is silent but after t and d.
fn syllables(word: &str) -> u64 {
    let letters: Vec<char> = word.chars().filter(|c| c.is_alphabetic()).flat_map(char::to_lowercase).collect();
    let vowel = |c: char| matches!(c, 'a' | 'e' | 'i' | 'o' | 'u' | 'y' | 'ä' | 'ö' | 'ü' | 'é' | 'è' | 'ê');
    let starts = |place: usize| vowel(letters[place]) && (place == 0 || !vowel(letters[place - 1]));
    let groups = (0..letters.len()).filter(|&place| starts(place)).count() as u64;
    let silent = match letters.as_slice() {
        // "table" says its e, "whole" does not.
        [.., before, 'l', 'e'] if !vowel(*before) => false,
        [.., before, 'e'] => !vowel(*before),
        [.., before, 'e', 'd'] => !vowel(*before) && !matches!(before, 't' | 'd'),
        [.., before, 'e', 's'] => !vowel(*before) && !matches!(before, 's' | 'z' | 'x' | 'c' | 'g' | 'h'),
        _ => false,
    };
    groups.saturating_sub(u64::from(silent)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn syllables_follow_english_spelling() {
        for (word, count) in [
            ("cat", 1),
            ("the", 1),
            ("whole", 1),
            ("table", 2),
            ("rated", 2),
            ("jumped", 1),
            ("houses", 2),
            ("makes", 1),
            ("happy", 2),
            ("beautiful", 3),
            ("education", 4),
            ("I", 1),
            ("42", 1),
            ("don't", 1),
        ] {
            assert_eq!(syllables(word), count, "{word}");
        }
    }

    #[test]
    fn sentences_end_at_marks_before_blanks() {
        let sentences = |text: &str| Counts::of(text).sentences;
        assert_eq!(sentences(""), 0);
        assert_eq!(sentences("... !"), 0);
        assert_eq!(sentences("No end"), 1);
        assert_eq!(sentences("It costs 3.50 today. \"Really?\" Yes!!! And"), 4);
    }
}
