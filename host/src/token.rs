//! Tokens, what others need to know of a vocabulary, and text that is sent while tokens still come.
//!
//! [`Vocabulary`] is the small trait through which the sandbox and the engine meet the tokenizer.
//! [`TextDecoder`] turns the bytes of drawn tokens into text in whole UTF-8 characters, and keeps back
//! what a policy may still rewind.
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

/// A rewind past what has been sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("cannot take back {asked} tokens: {held} are held back, the rest has been sent")]
pub struct RewindError {
    /// Tokens to be taken back.
    pub asked: usize,
    /// Tokens that could be.
    pub held: usize,
}

/// Turns tokens' bytes into text, in whole characters, behind a rewindable tail.
///
/// Tokens are [pushed](TextDecoder::push) as they are drawn, may be [rewound](TextDecoder::rewind),
/// and are [settled](TextDecoder::settle) once nothing can take them back; settling gives the text.
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

    /// Tokens that are held.
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// Takes back the last `count` tokens.
    pub fn rewind(&mut self, count: usize) -> Result<(), RewindError> {
        if count > self.held.len() {
            return Err(RewindError { asked: count, held: self.held.len() });
        }
        let first = self.held.len() - count;
        let dropped: usize = self.held.drain(first..).sum();
        self.bytes.truncate(self.bytes.len() - dropped);
        Ok(())
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

/// The text of some tokens, special ones left out; what is no UTF-8 becomes U+FFFD.
pub fn decode(vocabulary: &dyn Vocabulary, tokens: &[Token]) -> String {
    let text = tokens.iter().filter(|&&token| !vocabulary.is_special(token));
    let bytes: Vec<u8> = text.flat_map(|&token| vocabulary.bytes(token)).copied().collect();
    String::from_utf8_lossy(&bytes).into_owned()
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

    #[test]
    fn a_rewind_takes_back_what_is_held_and_no_more() {
        let mut decoder = TextDecoder::new();
        for piece in ["one", " two", " three"] {
            decoder.push(piece.as_bytes());
        }
        assert_eq!(decoder.settle(2), "one");
        assert_eq!(decoder.rewind(3), Err(RewindError { asked: 3, held: 2 }));
        decoder.rewind(1).unwrap();
        decoder.push(b" four");
        assert_eq!(decoder.settle(0), " two four");
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

        #[test]
        fn a_rewound_and_repeated_tail_changes_nothing(
            pieces in proptest::collection::vec("[aé€😀]{1,2}", 1..10),
            back in 1usize..4,
        ) {
            let mut decoder = TextDecoder::new();
            let mut text = String::new();
            for (index, piece) in pieces.iter().enumerate() {
                decoder.push(piece.as_bytes());
                text.push_str(&decoder.settle(4));
                let count = back.min(decoder.held());
                decoder.rewind(count).unwrap();
                for piece in &pieces[index + 1 - count..=index] {
                    decoder.push(piece.as_bytes());
                }
            }
            text.push_str(&decoder.finish());
            prop_assert_eq!(text, pieces.concat());
        }
    }
}
