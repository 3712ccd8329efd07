//! The bytes behind tokens: one flat table, and GPT-2's way to write any byte as a visible character.
//!
//! A vocabulary's 50,000 tokens have some 300 kB of bytes; they lie in one buffer, so that a question
//! about all of them is one scan. Start at [`TokenBytes`].

use crate::token::Token;

/// The bytes of every token in one buffer.
#[derive(Debug, Clone, Default)]
pub struct TokenBytes {
    bytes: Vec<u8>,
    /// Where each token's bytes end.
    ends: Vec<u32>,
}

impl TokenBytes {
    /// Tokens there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// A token's bytes; none past the end.
    pub fn get(&self, token: Token) -> &[u8] {
        let index = token as usize;
        let Some(&end) = self.ends.get(index) else {
            return &[];
        };
        let start = match index {
            0 => 0,
            _ => self.ends[index - 1],
        };
        &self.bytes[start as usize..end as usize]
    }

    /// Every token with its bytes, in order.
    pub fn iter(&self) -> impl Iterator<Item = (Token, &[u8])> {
        (0..self.len() as Token).map(|token| (token, self.get(token)))
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        // A header is smaller than 64 MiB, so that offsets fit.
        self.ends.push(self.bytes.len() as u32);
    }
}

/// GPT-2's way to write any bytes as visible characters, and back (`bytes_to_unicode` of its encoder.py).
pub(super) struct ByteAlphabet {
    /// The byte of each character below U+0144; 256 where there is none.
    byte_of: [u16; 0x144],
    decoded: Vec<u8>,
}

impl ByteAlphabet {
    pub(super) fn new() -> ByteAlphabet {
        let mut byte_of = [256; 0x144];
        for byte in 0..=255u8 {
            if let Some(slot) = byte_of.get_mut(character_of(byte) as usize) {
                *slot = u16::from(byte);
            }
        }
        ByteAlphabet { byte_of, decoded: Vec::new() }
    }

    /// The bytes that a token's text stands for; a text outside the alphabet stands for itself.
    pub(super) fn decode<'a>(&'a mut self, text: &'a str) -> &'a [u8] {
        self.decoded.clear();
        for character in text.chars() {
            match self.byte_of.get(character as usize) {
                Some(&byte) if byte < 256 => self.decoded.push(byte as u8),
                _ => return text.as_bytes(),
            }
        }
        &self.decoded
    }
}

/// The character that a byte is written as: itself where it is visible, else one from U+0100 on.
pub(super) fn character_of(byte: u8) -> char {
    let visible = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    if visible(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|&b| !visible(b)).count() as u32;
    char::from_u32(0x100 + before).unwrap_or(char::REPLACEMENT_CHARACTER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_byte_alphabet_is_gpt_2_s() {
        assert_eq!(character_of(b' '), 'Ġ');
        assert_eq!(character_of(b'\n'), 'Ċ');
        assert_eq!(character_of(b'a'), 'a');
        assert_eq!(character_of(0xAD), '\u{143}');
        let text: String = (0..=255u8).map(character_of).collect();
        let bytes: Vec<u8> = (0..=255).collect();
        assert_eq!(ByteAlphabet::new().decode(&text), bytes);
    }
}
