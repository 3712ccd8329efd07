//! Three small helpers: an account of the response, sets of tokens, and patterns to find tokens by.
//!
//! [`Response`] follows `kept` and `appended` from step to step, so that a policy always knows the
//! tokens it steers. [`TokenSet`] is a set over the vocabulary in the form in which the contract
//! passes such sets: what [`text::find`](crate::text::find) answers and what a
//! [`VocabularyBias`] takes. [`Pattern`] is a text whose letters may be spelled in several ways.

use crate::{Step, Token, VocabularyBias};

/// The response so far, as the steps have told it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Response {
    tokens: Vec<Token>,
}

impl Response {
    /// Takes a step's news in. To be called once a step, before anything is decided.
    pub fn follow(&mut self, step: &Step) {
        self.tokens.truncate(step.kept as usize);
        self.tokens.extend_from_slice(&step.appended);
    }

    /// The response's tokens.
    pub fn tokens(&self) -> &[Token] {
        &self.tokens
    }

    /// How many they are.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether nothing has been said yet.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }
}

/// A set of tokens of the vocabulary.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenSet {
    words: Vec<u64>,
}

impl TokenSet {
    /// The empty set over a vocabulary of this many tokens.
    pub fn empty(vocabulary_size: u32) -> TokenSet {
        TokenSet { words: vec![0; vocabulary_size.div_ceil(64) as usize] }
    }

    /// A set in the contract's form: bit i is token i, 64 a word, lowest bit first.
    pub fn from_words(words: Vec<u64>) -> TokenSet {
        TokenSet { words }
    }

    /// Adds a token; one outside the vocabulary is left out.
    pub fn insert(&mut self, token: Token) {
        if let Some(word) = self.words.get_mut(token as usize / 64) {
            *word |= 1 << (token % 64);
        }
    }

    /// Takes a token out.
    pub fn remove(&mut self, token: Token) {
        if let Some(word) = self.words.get_mut(token as usize / 64) {
            *word &= !(1 << (token % 64));
        }
    }

    /// Whether the token is in the set.
    pub fn contains(&self, token: Token) -> bool {
        self.words.get(token as usize / 64).is_some_and(|word| word >> (token % 64) & 1 == 1)
    }

    /// Adds every token of the other set over the same vocabulary.
    pub fn union(&mut self, other: &TokenSet) {
        if self.words.len() < other.words.len() {
            self.words.resize(other.words.len(), 0);
        }
        for (word, more) in self.words.iter_mut().zip(&other.words) {
            *word |= more;
        }
    }

    /// How many tokens it has.
    pub fn len(&self) -> usize {
        self.words.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }

    /// Its tokens in rising order.
    pub fn iter(&self) -> impl Iterator<Item = Token> + '_ {
        let nonempty = self.words.iter().enumerate().filter(|(_, word)| **word != 0);
        nonempty.flat_map(|(index, word)| {
            let mut left = *word;
            core::iter::from_fn(move || {
                let bit = (left != 0).then(|| left.trailing_zeros())?;
                left &= left - 1;
                Some(index as u32 * 64 + bit)
            })
        })
    }

    /// The bias that adds `delta` nats to the tokens of the set and nothing to the others.
    pub fn bias(&self, delta: f32) -> VocabularyBias {
        VocabularyBias { bits: self.words.clone(), set: delta, unset: 0.0 }
    }

    /// The bias that forbids the tokens of the set.
    pub fn forbid(&self) -> VocabularyBias {
        self.bias(f32::NEG_INFINITY)
    }

    /// The bias that forbids every token outside the set.
    pub fn allow_only(&self) -> VocabularyBias {
        VocabularyBias { bits: self.words.clone(), set: 0.0, unset: f32::NEG_INFINITY }
    }
}

/// A text in which each letter may be spelled in several ways, for [`text::find`](crate::text::find): at most
/// 256 letters, each of 1 to 16 spellings, each of 1 to 16 bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pattern {
    pub(crate) bytes: Vec<u8>,
    /// The end of each spelling in `bytes`.
    pub(crate) spellings: Vec<u32>,
    /// The end of each letter in `spellings`.
    pub(crate) letters: Vec<u32>,
}

impl Pattern {
    /// The pattern without letters, which lies in every token that has bytes.
    pub fn new() -> Pattern {
        Pattern::default()
    }

    /// The pattern that is exactly this text, one letter a character.
    pub fn text(text: &str) -> Pattern {
        let mut pattern = Pattern::new();
        for character in text.chars() {
            pattern.push([character.encode_utf8(&mut [0; 4]).as_bytes()]);
        }
        pattern
    }

    /// Adds a letter with these spellings.
    pub fn push<S: AsRef<[u8]>>(&mut self, spellings: impl IntoIterator<Item = S>) {
        for spelling in spellings {
            self.bytes.extend_from_slice(spelling.as_ref());
            self.spellings.push(self.bytes.len() as u32);
        }
        self.letters.push(self.spellings.len() as u32);
    }

    /// How many letters it has.
    pub fn len(&self) -> usize {
        self.letters.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.letters.is_empty()
    }

    /// The spellings of a letter; none past the last.
    pub fn spellings(&self, letter: usize) -> impl Iterator<Item = &[u8]> {
        let end = |ends: &[u32], index: usize| ends.get(index).map_or(0, |end| *end as usize);
        let start = if letter == 0 { 0 } else { end(&self.letters, letter - 1) };
        let range = start..end(&self.letters, letter).max(start);
        range.map(move |spelling| {
            let start = if spelling == 0 { 0 } else { end(&self.spellings, spelling - 1) };
            self.bytes.get(start..end(&self.spellings, spelling)).unwrap_or_default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_holds_what_was_put_in() {
        let mut set = TokenSet::empty(130);
        for token in [0, 63, 64, 129, 5000] {
            set.insert(token);
        }
        set.remove(64);
        assert_eq!(set.iter().collect::<Vec<_>>(), [0, 63, 129]);
        assert_eq!(set.len(), 3);
        assert!(set.contains(129) && !set.contains(64) && !set.contains(5000));
        assert_eq!(set.forbid().bits, [1 | 1 << 63, 0, 2]);
    }

    #[test]
    fn a_pattern_is_flat() {
        let mut pattern = Pattern::text("hé");
        pattern.push(["i", "I", "ii"]);
        assert_eq!(pattern.bytes, "héiIii".as_bytes());
        assert_eq!((&pattern.spellings[..], &pattern.letters[..]), (&[1, 3, 4, 5, 7][..], &[1, 2, 5][..]));
        assert_eq!(pattern.spellings(2).collect::<Vec<_>>(), [&b"i"[..], b"I", b"ii"]);
        assert_eq!(pattern.spellings(3).count(), 0);
    }

    #[test]
    fn the_response_follows_splices() {
        let mut response = Response::default();
        response.follow(&Step { appended: vec![1, 2, 3], ..Step::default() });
        response.follow(&Step { kept: 1, appended: vec![9], ..Step::default() });
        assert_eq!(response.tokens(), [1, 9]);
    }
}
