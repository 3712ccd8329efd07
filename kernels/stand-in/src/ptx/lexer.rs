//! Tokens of PTX text, each with its line.
//!
//! Not a preprocessor: NVRTC emits none of PTX's `#` directives, so they are refused. Opcodes and
//! directives come out as a word followed by its dotted parts, and the parser puts them together.
//! Start at [`tokens`].

use super::PtxError;

/// One token.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Token {
    /// An identifier or register: `%r1`, `$L__BB0_2`, `add`.
    Word(String),
    /// A dotted part without its dot: `f32`, `L2::128B`.
    Dot(String),
    /// An integer literal, negative ones come as a minus sign before it.
    Int(u64),
    /// `0f` and eight hexadecimal digits.
    F32(u32),
    /// `0d` and sixteen hexadecimal digits, or a decimal fraction.
    F64(u64),
    /// A quoted string.
    Text(String),
    /// Anything else, one character.
    Mark(char),
}

/// All tokens of `text`, with line numbers from 1.
pub(crate) fn tokens(text: &str) -> Result<Vec<(Token, u32)>, PtxError> {
    let mut lexer = Lexer { bytes: text.as_bytes(), at: 0, line: 1 };
    let mut out = Vec::new();
    while let Some(token) = lexer.next()? {
        out.push((token, lexer.line));
    }
    Ok(out)
}

struct Lexer<'a> {
    bytes: &'a [u8],
    at: usize,
    line: u32,
}

fn starts_word(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || matches!(byte, b'_' | b'$' | b'%')
}

fn in_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$')
}

impl Lexer<'_> {
    fn peek(&self, ahead: usize) -> u8 {
        self.bytes.get(self.at + ahead).copied().unwrap_or(0)
    }

    fn error(&self, message: String) -> PtxError {
        PtxError { line: self.line, message }
    }

    fn take_while(&mut self, accept: impl Fn(u8) -> bool) -> String {
        let start = self.at;
        while self.at < self.bytes.len() && accept(self.bytes[self.at]) {
            self.at += 1;
        }
        String::from_utf8_lossy(&self.bytes[start..self.at]).into_owned()
    }

    fn skip_blank(&mut self) -> Result<(), PtxError> {
        while self.at < self.bytes.len() {
            match (self.peek(0), self.peek(1)) {
                (b'\n', _) => {
                    self.line += 1;
                    self.at += 1;
                }
                // A module handed over as a C string ends with a zero byte.
                (b' ' | b'\t' | b'\r' | 0, _) => self.at += 1,
                (b'/', b'/') => _ = self.take_while(|byte| byte != b'\n'),
                (b'/', b'*') => {
                    self.at += 2;
                    while (self.peek(0), self.peek(1)) != (b'*', b'/') {
                        if self.at >= self.bytes.len() {
                            return Err(self.error("comment without an end".into()));
                        }
                        self.line += u32::from(self.peek(0) == b'\n');
                        self.at += 1;
                    }
                    self.at += 2;
                }
                _ => break,
            }
        }
        Ok(())
    }

    fn next(&mut self) -> Result<Option<Token>, PtxError> {
        self.skip_blank()?;
        if self.at >= self.bytes.len() {
            return Ok(None);
        }
        let byte = self.peek(0);
        if starts_word(byte) {
            self.at += 1;
            let rest = self.take_while(in_word);
            return Ok(Some(Token::Word(format!("{}{rest}", byte as char))));
        }
        if byte.is_ascii_digit() {
            return self.number().map(Some);
        }
        if byte == b'.' && in_word(self.peek(1)) {
            self.at += 1;
            let mut part = self.take_while(in_word);
            while self.peek(0) == b':' && self.peek(1) == b':' {
                self.at += 2;
                part = format!("{part}::{}", self.take_while(in_word));
            }
            return Ok(Some(Token::Dot(part)));
        }
        self.at += 1;
        if byte == b'"' {
            let text = self.take_while(|byte| byte != b'"' && byte != b'\n');
            self.at += 1;
            return Ok(Some(Token::Text(text)));
        }
        if byte.is_ascii_graphic() && byte != b'#' {
            return Ok(Some(Token::Mark(byte as char)));
        }
        Err(self.error(format!("character {:?} is not part of PTX", byte as char)))
    }

    fn number(&mut self) -> Result<Token, PtxError> {
        let word = self.take_while(in_word);
        let lower = word.to_ascii_lowercase();
        let bad = |lexer: &Self| lexer.error(format!("{word} is not a number"));
        if let Some(digits) = lower.strip_prefix("0f") {
            return u32::from_str_radix(digits, 16).map(Token::F32).map_err(|_| bad(self));
        }
        if let Some(digits) = lower.strip_prefix("0d") {
            return u64::from_str_radix(digits, 16).map(Token::F64).map_err(|_| bad(self));
        }
        if self.peek(0) == b'.' && self.peek(1).is_ascii_digit() {
            self.at += 1;
            let fraction = self.take_while(|byte| byte.is_ascii_digit());
            let value: f64 = format!("{word}.{fraction}").parse().map_err(|_| bad(self))?;
            return Ok(Token::F64(value.to_bits()));
        }
        let digits = lower.trim_end_matches('u');
        let value = match digits.as_bytes() {
            [b'0', b'x', ..] => u64::from_str_radix(&digits[2..], 16),
            [b'0', b'b', ..] => u64::from_str_radix(&digits[2..], 2),
            [b'0', _, ..] => u64::from_str_radix(&digits[1..], 8),
            _ => digits.parse(),
        };
        value.map(Token::Int).map_err(|_| bad(self))
    }
}
