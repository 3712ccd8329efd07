//! What heads add for the text so far.
//!
//! A look-ahead value is of the text with the candidate, a one-pass value a difference between two texts. Texts are put together
//! here, once for all heads that read them. Start at [`TextSoFar`].

use crate::model::heads::{HeadError, Readings, SharedReading, TextTerm};
use crate::token::{Token, Vocabulary, push_bytes};

/// A head's term with what reads for it.
pub(super) struct TextPart {
    term: TextTerm,
    reading: SharedReading,
}

impl TextPart {
    pub(super) fn new(head: &str, term: &TextTerm, readings: Readings<'_>) -> Result<Self, HeadError> {
        Ok(Self { term: term.clone(), reading: term.reading(head, readings)? })
    }
}

/// A response so far, as text, and with one token more.
pub(super) struct TextSoFar<'a> {
    vocabulary: &'a dyn Vocabulary,
    /// Of the response without the token.
    bytes: Vec<u8>,
    text: String,
    remaining: f32,
    ended: bool,
}

impl<'a> TextSoFar<'a> {
    /// The text of a response; `remaining` is the remaining share of the token limit after it.
    pub(super) fn new(vocabulary: &'a dyn Vocabulary, response: &[Token], remaining: f32) -> Self {
        let mut bytes = Vec::new();
        for &token in response {
            push_bytes(vocabulary, token, &mut bytes);
        }
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let ended = response.last().is_some_and(|last| vocabulary.end_of_text().contains(last));
        Self { vocabulary, bytes, text, remaining, ended }
    }

    /// The same response and one token, after which this share of the limit remains.
    pub(super) fn with(&self, token: Token, remaining: f32) -> Self {
        let mut bytes = self.bytes.clone();
        push_bytes(self.vocabulary, token, &mut bytes);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let ended = self.vocabulary.end_of_text().contains(&token);
        Self { vocabulary: self.vocabulary, bytes, text, remaining, ended }
    }

    /// What a head adds for this text.
    pub(super) fn value(&self, part: &TextPart) -> f32 {
        let value = part.term.value(part.reading.as_ref(), &self.text, self.remaining, self.ended);
        // As of a head gone wild: it must not take the sampler along.
        if value.is_finite() { value } else { 0.0 }
    }
}
