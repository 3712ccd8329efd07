//! The module level of PTX: versions, variables with initialisers, kernels and device functions.
//!
//! Bodies are read in `body.rs` by the same [`Parser`]. Sizes and alignments are taken as written;
//! addresses are given out later, at load. Start at [`parse`].

use super::lexer::{Token, tokens};
use super::{Function, Module, PtxError, Space, Variable};

/// The most bytes that a variable may have: far above any table of ours, far below a mistake.
const VARIABLE_BYTES_MAX: u64 = 1 << 28;

/// Reads a whole module.
pub(crate) fn parse(text: &str) -> Result<Module, PtxError> {
    let mut parser = Parser { tokens: tokens(text)?, at: 0 };
    let mut module = Module { version: (0, 0), target: 0, variables: Vec::new(), functions: Vec::new() };
    while parser.at < parser.tokens.len() {
        parser.item(&mut module)?;
    }
    if module.version.0 == 0 || module.target == 0 {
        return Err(PtxError { line: 1, message: "a module needs .version and .target".into() });
    }
    Ok(module)
}

pub(super) struct Parser {
    pub(super) tokens: Vec<(Token, u32)>,
    pub(super) at: usize,
}

/// Bits of a fundamental type, 1 for a predicate.
pub(super) fn bits_of(kind: &str) -> Option<u32> {
    Some(match kind {
        "pred" => 1,
        "b8" | "u8" | "s8" => 8,
        "b16" | "u16" | "s16" | "f16" | "bf16" => 16,
        "b32" | "u32" | "s32" | "f32" | "f16x2" | "bf16x2" => 32,
        "b64" | "u64" | "s64" | "f64" => 64,
        "b128" => 128,
        _ => return None,
    })
}

impl Parser {
    pub(super) fn line(&self) -> u32 {
        self.tokens.get(self.at.min(self.tokens.len().saturating_sub(1))).map_or(0, |token| token.1)
    }

    pub(super) fn error<T>(&self, message: impl Into<String>) -> Result<T, PtxError> {
        Err(PtxError { line: self.line(), message: message.into() })
    }

    pub(super) fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at).map(|token| &token.0)
    }

    pub(super) fn take(&mut self) -> Result<Token, PtxError> {
        let Some(token) = self.peek().cloned() else { return self.error("the text ends too early") };
        self.at += 1;
        Ok(token)
    }

    pub(super) fn eat(&mut self, mark: char) -> bool {
        let found = self.peek() == Some(&Token::Mark(mark));
        self.at += usize::from(found);
        found
    }

    pub(super) fn expect(&mut self, mark: char) -> Result<(), PtxError> {
        if self.eat(mark) { Ok(()) } else { self.error(format!("expected {mark:?}, found {:?}", self.peek())) }
    }

    pub(super) fn word(&mut self) -> Result<String, PtxError> {
        match self.take()? {
            Token::Word(word) => Ok(word),
            other => self.error(format!("expected a name, found {other:?}")),
        }
    }

    pub(super) fn dot(&mut self) -> Option<String> {
        let Some(Token::Dot(part)) = self.peek() else { return None };
        let part = part.clone();
        self.at += 1;
        Some(part)
    }

    pub(super) fn int(&mut self) -> Result<i64, PtxError> {
        let negative = self.eat('-');
        match self.take()? {
            Token::Int(value) if negative => Ok((value as i64).wrapping_neg()),
            Token::Int(value) => Ok(value as i64),
            other => self.error(format!("expected an integer, found {other:?}")),
        }
    }

    /// Skips to the end of the line: `.file` and `.loc` have no terminator.
    pub(super) fn skip_line(&mut self, line: u32) {
        while self.at < self.tokens.len() && self.tokens[self.at].1 == line {
            self.at += 1;
        }
    }

    fn item(&mut self, module: &mut Module) -> Result<(), PtxError> {
        let line = self.line();
        let Some(first) = self.dot() else {
            return self.error(format!("expected a directive, found {:?}", self.peek()));
        };
        match first.as_str() {
            "version" => {
                // 8.8 arrives as a decimal fraction.
                let Token::F64(bits) = self.take()? else { return self.error("expected a version such as 8.0") };
                let tenths = (f64::from_bits(bits) * 10.0).round() as u32;
                module.version = (tenths / 10, tenths % 10);
            }
            "target" => {
                let word = self.word()?;
                let digits: String = word.chars().filter(char::is_ascii_digit).collect();
                module.target = digits.parse().or_else(|_| self.error(format!("target {word} is not sm_NN")))?;
                self.skip_line(line);
            }
            "address_size" => {
                let size = self.int()?;
                if size != 64 {
                    return self.error(format!("address_size must be 64, got {size}"));
                }
            }
            "file" | "loc" => self.skip_line(line),
            "section" => {
                while !self.eat('}') {
                    self.take()?;
                }
            }
            "pragma" => while !matches!(self.take()?, Token::Mark(';')) {},
            _ => {
                self.at -= 1;
                self.declaration(module)?;
            }
        }
        Ok(())
    }

    fn declaration(&mut self, module: &mut Module) -> Result<(), PtxError> {
        while let Some(Token::Dot(part)) = self.peek() {
            match part.as_str() {
                "visible" | "weak" | "extern" | "common" => self.at += 1,
                "entry" | "func" => {
                    let function = self.function()?;
                    module.functions.push(function);
                    return Ok(());
                }
                "global" | "const" | "shared" => {
                    let variable = self.variable()?;
                    self.expect(';')?;
                    module.variables.push(variable);
                    return Ok(());
                }
                other => {
                    let message = format!("directive .{other} is not implemented");
                    return self.error(message);
                }
            }
        }
        self.error("expected a declaration")
    }

    /// `.space .align N .type name[count] = init`, without its terminator.
    pub(super) fn variable(&mut self) -> Result<Variable, PtxError> {
        let (mut space, mut align, mut element, mut vector) = (Space::Param, None, None, 1);
        while let Some(part) = self.dot() {
            match part.as_str() {
                "global" => space = Space::Global,
                "const" => space = Space::Const,
                "shared" => space = Space::Shared,
                "local" => space = Space::Local,
                "param" => space = Space::Param,
                // The space that a pointer parameter points to, a hint only.
                "ptr" => {}
                "align" => align = Some(self.int()? as u64),
                "v2" => vector = 2,
                "v4" => vector = 4,
                other => match bits_of(other) {
                    Some(bits) => element = Some(u64::from(bits.div_ceil(8))),
                    None => return self.error(format!("variable with .{other} is not implemented")),
                },
            }
        }
        let name = self.word()?;
        let Some(element) = element else { return self.error(format!("variable {name} has no type")) };
        let mut count = Some(1_u64);
        while self.eat('[') {
            count = match (count, self.peek()) {
                (_, Some(Token::Mark(']'))) => None,
                (Some(have), _) => have.checked_mul(self.int()? as u64),
                (None, _) => return self.error("an array without a size has one dimension"),
            };
            self.expect(']')?;
        }
        let bytes = count.map(|count| count.saturating_mul(element * vector));
        if bytes.is_some_and(|bytes| bytes > VARIABLE_BYTES_MAX) {
            return self.error(format!("variable {name} has {bytes:?} bytes, at most {VARIABLE_BYTES_MAX} are taken"));
        }
        let mut init = Vec::new();
        if self.eat('=') {
            self.initialiser(element, &mut init)?;
        }
        if init.len() as u64 > bytes.unwrap_or(0) {
            return self.error(format!("variable {name} has more values than room"));
        }
        Ok(Variable { space, name, align: align.unwrap_or(element * vector), bytes, init })
    }

    fn initialiser(&mut self, element: u64, out: &mut Vec<u8>) -> Result<(), PtxError> {
        if self.eat('{') {
            while !self.eat('}') {
                self.initialiser(element, out)?;
                self.eat(',');
            }
            return Ok(());
        }
        let negative = self.eat('-');
        let bits = match self.take()? {
            Token::Int(value) if negative => value.wrapping_neg(),
            Token::Int(value) | Token::F64(value) if !negative => value,
            Token::F32(value) if !negative => u64::from(value),
            other => return self.error(format!("initial value {other:?} is not implemented")),
        };
        out.extend_from_slice(&bits.to_le_bytes()[..element as usize]);
        Ok(())
    }

    fn parameters(&mut self) -> Result<Vec<Variable>, PtxError> {
        let mut out = Vec::new();
        if self.eat('(') {
            while !self.eat(')') {
                out.push(self.variable()?);
                self.eat(',');
            }
        }
        Ok(out)
    }

    fn function(&mut self) -> Result<Function, PtxError> {
        let line = self.line();
        let entry = self.dot().as_deref() == Some("entry");
        let returns = if entry { Vec::new() } else { self.parameters()? };
        let name = self.word()?;
        let params = self.parameters()?;
        let (mut max_threads, mut required_threads, mut body) = (None, None, None);
        loop {
            if self.eat(';') {
                break;
            }
            if self.eat('{') {
                body = Some(self.statements()?);
                break;
            }
            let Some(part) = self.dot() else {
                return self.error(format!("expected the body of {name}, found {:?}", self.peek()));
            };
            let mut numbers = [1_u32; 3];
            let mut count = 0;
            while let Some(Token::Int(value)) = self.peek() {
                numbers[count.min(2)] = *value as u32;
                count += 1;
                self.at += 1;
                self.eat(',');
            }
            match part.as_str() {
                "maxntid" => max_threads = Some(numbers.iter().product()),
                "reqntid" => required_threads = Some(numbers),
                "minnctapersm" | "maxnreg" | "maxnctapersm" | "noreturn" => {}
                "pragma" => while !matches!(self.take()?, Token::Mark(';')) {},
                other => return self.error(format!("directive .{other} of {name} is not implemented")),
            }
        }
        Ok(Function { entry, name, params, returns, body, max_threads, required_threads, line })
    }
}
