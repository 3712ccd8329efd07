//! Bytes as a source of answers: numbers, lists and words, most of them such as the contract takes.
//!
//! A byte in sixteen or so asks for something that it does not take. A script that is used up gives zeros, which
//! every reader here takes for the plainest thing there is.

use vassal_guest::*;

pub struct Script {
    bytes: Vec<u8>,
    at: usize,
}

impl Script {
    pub fn new(bytes: Vec<u8>) -> Self {
        Self { bytes, at: 0 }
    }

    pub fn is_over(&self) -> bool {
        self.at >= self.bytes.len()
    }

    pub fn byte(&mut self) -> u8 {
        let byte = self.bytes.get(self.at).copied().unwrap_or(0);
        self.at += 1;
        byte
    }

    pub fn word(&mut self) -> u32 {
        u32::from_le_bytes([self.byte(), self.byte(), self.byte(), self.byte()])
    }

    /// One time in sixteen.
    pub fn rarely(&mut self) -> bool {
        self.byte() & 0xf0 == 0xf0
    }

    /// A length: the usual one mostly, then those beside it, then any to 2,047.
    pub fn length(&mut self, usual: usize) -> usize {
        match self.byte() {
            0..=0xe7 => usual,
            0xe8..=0xef => 0,
            0xf0..=0xf3 => usual + 1,
            0xf4..=0xf7 => usual.saturating_sub(1),
            _ => (self.word() % 2_048) as usize,
        }
    }

    pub fn number(&mut self) -> f32 {
        match self.byte() {
            byte @ 0..=0xdf => (f32::from(byte) - 64.0) / 8.0,
            0xe0..=0xe3 => f32::NEG_INFINITY,
            0xe4..=0xe7 => 10_000.0,
            0xe8..=0xeb => -10_000.0,
            0xec => 10_000.001,
            0xed => f32::INFINITY,
            0xee => f32::NAN,
            0xef => -0.0,
            0xf0..=0xf3 => f32::MIN_POSITIVE / 3.0,
            _ => f32::from_bits(self.word()),
        }
    }

    pub fn probability(&mut self) -> f32 {
        if self.rarely() { self.number() } else { f32::from(self.byte()) / 255.0 }
    }

    pub fn token(&mut self, vocabulary_size: u32) -> Token {
        match self.byte() {
            0xff => self.word(),
            0xfe => vocabulary_size,
            high => (u32::from(high) << 8 | u32::from(self.byte())) % vocabulary_size.max(1),
        }
    }

    pub fn tokens(&mut self, usual: usize, vocabulary_size: u32) -> Vec<Token> {
        let length = self.length(usual);
        // What a script cannot say token by token is the same token again.
        let said: Vec<Token> = (0..length.min(16)).map(|_| self.token(vocabulary_size)).collect();
        (0..length).map(|place| said[place % 16]).collect()
    }

    /// Text of up to 15 characters, or of many.
    pub fn text(&mut self) -> String {
        const CHARACTERS: [char; 16] =
            ['a', 'e', ' ', 'T', '=', '"', '\n', '\u{1b}', '\u{202e}', '\u{0}', 'ß', '語', '😀', '\u{300}', '0', '-'];
        let length = self.byte();
        let once: String = (0..length & 15).map(|_| CHARACTERS[usize::from(self.byte() & 15)]).collect();
        if length >= 0xf0 { once.repeat((self.word() % 1_024) as usize) } else { once }
    }

    pub fn pattern(&mut self) -> Pattern {
        let mut pattern = Pattern::new();
        let letters = self.length(2);
        for _ in 0..letters {
            let spellings = self.length(1).min(20);
            let spellings: Vec<Vec<u8>> = (0..spellings)
                .map(|_| {
                    let bytes = self.length(1).min(20);
                    (0..bytes).map(|_| self.byte()).collect()
                })
                .collect();
            pattern.push(spellings.iter().map(Vec::as_slice));
        }
        pattern
    }
}
