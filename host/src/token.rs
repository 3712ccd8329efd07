//! Tokens, what others need to know of a vocabulary, and text that is sent while tokens still come.
//!
//! [`Vocabulary`] is the small trait through which the sandbox and the engine meet the tokenizer.
//! [`TextDecoder`] turns the bytes of tokens that stand for good into text, in whole UTF-8 characters. Which
//! tokens those are the engine knows.
//!
//! Nothing here knows how text becomes tokens: that is `model/tokenizer.rs`.

use std::collections::VecDeque;

/// A token's id, below the vocabulary's size.
pub type Token = u32;

/// What the sandbox and the engine need to know of a tokenizer.
pub trait Vocabulary: Send + Sync {
    /// Tokens there are.
    fn size(&self) -> usize;

    /// The bytes that a token stands for: for a special token its name's; none past the size.
    fn bytes(&self, token: Token) -> &[u8];

    /// Whether a token is a special one, which text cannot contain.
    fn is_special(&self, token: Token) -> bool;

    /// The tokens of a text; special tokens are neither added nor recognised.
    fn tokens(&self, text: &str) -> Vec<Token>;

    /// The tokens that end a response.
    fn end_of_text(&self) -> &[Token];
}

/// Turns tokens' bytes into text, in whole characters.
///
/// Tokens are [pushed](TextDecoder::push) and [settled](TextDecoder::settle); settling gives the text.
/// A character whose bytes are not all there is held back, and bytes that are no UTF-8 become U+FFFD:
/// the texts given, put together, are `String::from_utf8_lossy` of all bytes.
#[derive(Debug, Clone, Default)]
pub struct TextDecoder {
    /// Bytes not yet given: those of an incomplete character of settled tokens, then those of held ones.
    bytes: Vec<u8>,
    /// How many of `bytes` belong to settled tokens; at most 3.
    carried: usize,
    /// Byte counts of the tokens that are held.
    held: VecDeque<usize>,
}

impl TextDecoder {
    /// A decoder with nothing in it.
    pub fn new() -> TextDecoder {
        TextDecoder::default()
    }

    /// Adds a token's bytes; it is held until settled.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        self.held.push_back(bytes.len());
    }

    /// Settles all but the last `keep` tokens and gives their text, which may be empty.
    pub fn settle(&mut self, keep: usize) -> String {
        let count = self.held.len().saturating_sub(keep);
        let settled: usize = self.held.drain(..count).sum();
        let end = self.carried + settled;
        let whole = whole_characters(&self.bytes[..end]);
        let text = String::from_utf8_lossy(&self.bytes[..whole]).into_owned();
        self.bytes.drain(..whole);
        self.carried = end - whole;
        text
    }

    /// Settles everything, and gives an incomplete last character as U+FFFD.
    pub fn finish(&mut self) -> String {
        let text = String::from_utf8_lossy(&self.bytes).into_owned();
        *self = TextDecoder::default();
        text
    }
}

/// Appends the bytes that a token adds to text: none for a special one.
pub fn push_bytes(vocabulary: &dyn Vocabulary, token: Token, bytes: &mut Vec<u8>) {
    if !vocabulary.is_special(token) {
        bytes.extend_from_slice(vocabulary.bytes(token));
    }
}

/// The text of some tokens, special ones left out; what is no UTF-8 becomes U+FFFD.
pub fn decode(vocabulary: &dyn Vocabulary, tokens: &[Token]) -> String {
    let mut bytes = Vec::new();
    tokens.iter().for_each(|&token| push_bytes(vocabulary, token, &mut bytes));
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The share of a token limit that remains after `count` response tokens: what heads read it as.
pub fn remaining_share(count: usize, limit: usize) -> f32 {
    limit.saturating_sub(count) as f32 / limit.max(1) as f32
}

/// How many bytes come before a character that has begun at the end and is incomplete so far.
fn whole_characters(bytes: &[u8]) -> usize {
    // A character has at most four bytes, so that only the last three can begin an incomplete one.
    for start in (bytes.len().saturating_sub(3)..bytes.len()).rev() {
        if bytes[start] < 0x80 {
            break;
        }
        if bytes[start] >= 0xC0 {
            let incomplete = match std::str::from_utf8(&bytes[start..]) {
                Ok(_) => false,
                // No length of error: the input ended too early, and more bytes may complete it.
                Err(error) => error.error_len().is_none(),
            };
            return if incomplete { start } else { bytes.len() };
        }
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn characters_are_given_whole() {
        let mut decoder = TextDecoder::new();
        decoder.push(b"a\xF0\x9F");
        assert_eq!(decoder.settle(0), "a");
        decoder.push(b"\x98");
        assert_eq!(decoder.settle(0), "");
        decoder.push(b"\x80b");
        assert_eq!(decoder.settle(0), "\u{1F600}b");
        decoder.push(b"\xC3");
        assert_eq!(decoder.settle(0), "");
        assert_eq!(decoder.finish(), "\u{FFFD}");
    }

    proptest! {
        #[test]
        fn pieces_add_up_to_the_lossy_text(
            pieces in proptest::collection::vec(proptest::collection::vec(
                prop_oneof![Just(b'a'), Just(0xC3), Just(0xA9), Just(0xF0), Just(0x9F), Just(0x98), Just(0x80), any::<u8>()],
                0..4), 0..12),
            keep in 0usize..4,
        ) {
            let mut decoder = TextDecoder::new();
            let mut text = String::new();
            for piece in &pieces {
                decoder.push(piece);
                text.push_str(&decoder.settle(keep));
            }
            text.push_str(&decoder.finish());
            prop_assert_eq!(text, String::from_utf8_lossy(&pieces.concat()).into_owned());
        }
    }
}
