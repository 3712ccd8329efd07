//! The host's answers: values from a function of the test's, text from a toy vocabulary.
//!
//! Start at [`FakeHost::new`]. The search of [`FakeHost::find`] is the plain one, token by token and
//! place by place, so that it can be the oracle of faster ones.

use std::rc::Rc;

use crate::{Pattern, Place, Token, ValueError};

type ValueFunction = dyn Fn(u32, &[Token]) -> f32;

/// A host for one policy under test.
#[derive(Clone)]
pub struct FakeHost {
    vocabulary: Vec<Vec<u8>>,
    pub(super) end_of_text: Vec<Token>,
    value: Rc<ValueFunction>,
    pub(super) heads: u32,
    pub(super) candidates: u32,
    evaluations_max: u32,
    pub(super) response: Vec<Token>,
    /// Whether the policy is inside `decide`, where values are known.
    pub(super) deciding: bool,
    pub(super) evaluations: u32,
    pub(super) known: Vec<(u32, Token)>,
    pub(super) notes: Vec<String>,
}

impl Default for FakeHost {
    fn default() -> FakeHost {
        FakeHost::new::<&str>(&[])
    }
}

impl FakeHost {
    /// A host whose vocabulary is these texts: token i is the i-th, a special token where it is empty.
    /// Every value is 0 until [`values`](FakeHost::values) says otherwise.
    pub fn new<T: AsRef<[u8]>>(vocabulary: &[T]) -> FakeHost {
        FakeHost {
            vocabulary: vocabulary.iter().map(|token| token.as_ref().to_vec()).collect(),
            end_of_text: Vec::new(),
            value: Rc::new(|_, _| 0.0),
            heads: 0,
            candidates: 256,
            evaluations_max: 2,
            response: Vec::new(),
            deciding: false,
            evaluations: 0,
            known: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// Makes this token end a response.
    pub fn end_of_text(mut self, token: Token) -> FakeHost {
        self.end_of_text.push(token);
        self
    }

    /// What a head (by its index in the manifest) says of a response.
    pub fn values(mut self, value: impl Fn(u32, &[Token]) -> f32 + 'static) -> FakeHost {
        self.value = Rc::new(value);
        self
    }

    /// How many tokens the vocabulary has.
    pub fn vocabulary_size(&self) -> u32 {
        self.vocabulary.len() as u32
    }

    /// The value of the response as it stands, with `next` tokens after it.
    pub fn value(&self, head: u32, next: &[Token]) -> f32 {
        (self.value)(head, &[&self.response, next].concat())
    }

    /// The bytes of these tokens, one after the other.
    pub fn text(&self, tokens: &[Token]) -> Vec<u8> {
        tokens.iter().flat_map(|token| self.bytes_of(*token)).copied().collect()
    }

    /// What the policy has noted.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    fn bytes_of(&self, token: Token) -> &[u8] {
        self.vocabulary.get(token as usize).map_or(&[], Vec::as_slice)
    }

    pub(crate) fn evaluate(&mut self, heads: &[u32], tokens: &[Token]) -> Result<Vec<f32>, ValueError> {
        if !self.deciding {
            return Err(ValueError::NotNow);
        }
        if heads.iter().any(|head| *head >= self.heads) {
            return Err(ValueError::UnknownHead);
        }
        let known_tokens = tokens.iter().all(|token| *token < self.vocabulary_size());
        if tokens.is_empty() || tokens.len() > self.candidates as usize || !known_tokens {
            return Err(ValueError::InvalidTokens);
        }
        let asked = heads.iter().flat_map(|head| tokens.iter().map(move |token| (*head, *token)));
        let fresh: Vec<_> = asked.filter(|pair| !self.known.contains(pair)).collect();
        if !fresh.is_empty() {
            if self.evaluations == self.evaluations_max {
                return Err(ValueError::BudgetSpent);
            }
            self.evaluations += 1;
            self.known.extend(fresh);
        }
        Ok(heads.iter().flat_map(|head| tokens.iter().map(|token| self.value(*head, &[*token]))).collect())
    }

    pub(crate) fn current(&mut self, head: u32) -> Result<f32, ValueError> {
        if !self.deciding {
            return Err(ValueError::NotNow);
        }
        if head >= self.heads {
            return Err(ValueError::UnknownHead);
        }
        Ok(self.value(head, &[]))
    }

    pub(crate) fn bytes(&mut self, tokens: &[Token]) -> (Vec<u8>, Vec<u32>) {
        let (mut bytes, mut ends) = (Vec::new(), Vec::new());
        for token in tokens {
            bytes.extend_from_slice(self.bytes_of(*token));
            ends.push(bytes.len() as u32);
        }
        (bytes, ends)
    }

    /// The longest token that fits, again and again; bytes that no token begins with are left out.
    pub(crate) fn tokens(&mut self, text: &str) -> Vec<Token> {
        let mut left = text.as_bytes();
        let mut tokens = Vec::new();
        while !left.is_empty() {
            let fitting = (0..self.vocabulary_size()).filter(|token| {
                let bytes = self.bytes_of(*token);
                !bytes.is_empty() && left.starts_with(bytes)
            });
            match fitting.max_by_key(|token| (self.bytes_of(*token).len(), std::cmp::Reverse(*token))) {
                Some(token) => {
                    left = &left[self.bytes_of(token).len()..];
                    tokens.push(token);
                }
                None => left = &left[1..],
            }
        }
        tokens
    }

    /// The contract's `text.find`, by trying every token.
    ///
    /// # Panics
    /// If the pattern breaks a bound of the contract, where the real host faults the policy.
    pub fn find(&mut self, pattern: &Pattern, place: Place) -> Vec<u64> {
        let letter_is_bounded = |letter: usize| {
            let mut spellings = pattern.spellings(letter);
            (1..=16).contains(&pattern.spellings(letter).count())
                && spellings.all(|spelling| (1..=16).contains(&spelling.len()))
        };
        let bounded = pattern.len() <= 256 && (0..pattern.len()).all(letter_is_bounded);
        assert!(bounded, "a pattern has at most 256 letters of 1 to 16 spellings of 1 to 16 bytes: {pattern:?}");
        let mut words = vec![0u64; self.vocabulary.len().div_ceil(64)];
        for (token, bytes) in self.vocabulary.iter().enumerate() {
            let last_start = if matches!(place, Place::Anywhere | Place::End) { bytes.len() } else { 1 };
            let found = (0..last_start.min(bytes.len())).any(|start| {
                let ends = ends_of(pattern, &bytes[start..]);
                let to_the_end = matches!(place, Place::Whole | Place::End);
                ends.iter().any(|end| !to_the_end || start + end == bytes.len())
            });
            if found {
                words[token / 64] |= 1 << (token % 64);
            }
        }
        if words.iter().all(|word| *word == 0) {
            words.clear();
        }
        words
    }

    pub(crate) fn note(&mut self, message: &str) {
        self.notes.push(message.to_owned());
    }
}

/// Where in `bytes` a pattern that begins at their start may end.
fn ends_of(pattern: &Pattern, bytes: &[u8]) -> Vec<usize> {
    let mut ends = vec![0];
    for letter in 0..pattern.len() {
        let mut next: Vec<usize> = Vec::new();
        for end in ends {
            let fitting = pattern.spellings(letter).filter(|spelling| bytes[end..].starts_with(spelling));
            next.extend(fitting.map(|spelling| end + spelling.len()));
        }
        next.sort_unstable();
        next.dedup();
        ends = next;
    }
    ends
}
