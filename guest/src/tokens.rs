//! Two small helpers that most policies want: an account of the response, and sets of tokens.
//!
//! [`Response`] follows `kept` and `appended` from step to step, so that a policy always knows the
//! tokens it steers. [`TokenSet`] is a set over the vocabulary in the form in which the contract
//! passes such sets: what [`text::find`](crate::text::find) answers and what a
//! [`VocabularyBias`] takes.

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
        self.words.iter().enumerate().flat_map(|(index, word)| {
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
    fn the_response_follows_splices() {
        let mut response = Response::default();
        response.follow(&Step { appended: vec![1, 2, 3], ..Step::default() });
        response.follow(&Step { kept: 1, appended: vec![9], ..Step::default() });
        assert_eq!(response.tokens(), [1, 9]);
    }
}
