//! Bodies of functions: registers, variables, labels, scopes, instructions and their operands.
//!
//! Operands stay as written; which of them are registers and which are labels or variables is only
//! known where scopes are, in [`crate::decode`]. Start at [`Parser::statements`].

use super::lexer::Token;
use super::parser::{Parser, bits_of};
use super::{Instruction, Operand, PtxError, Statement};

/// The deepest nesting of scopes; inline assembly nests two deep.
const DEPTH_MAX: usize = 64;

impl Parser {
    /// Statements up to and with the closing brace.
    pub(super) fn statements(&mut self) -> Result<Vec<Statement>, PtxError> {
        self.statements_at(0)
    }

    fn statements_at(&mut self, depth: usize) -> Result<Vec<Statement>, PtxError> {
        if depth > DEPTH_MAX {
            return self.error(format!("scopes nest at most {DEPTH_MAX} deep"));
        }
        let mut out = Vec::new();
        while !self.eat('}') {
            if self.eat('{') {
                out.push(Statement::Block(self.statements_at(depth + 1)?));
            } else if self.eat(';') {
                // Inline assembly leaves empty statements behind.
            } else if matches!(self.peek(), Some(Token::Dot(_))) {
                self.directive(&mut out)?;
            } else if let (Some(Token::Word(name)), Some((Token::Mark(':'), _))) =
                (self.peek(), self.tokens.get(self.at + 1))
            {
                let name = name.clone();
                self.at += 2;
                if self.peek() == Some(&Token::Dot("branchtargets".into())) {
                    self.at += 1;
                    let labels = self.names()?;
                    out.push(Statement::Targets { name, labels });
                } else {
                    out.push(Statement::Label(name));
                }
            } else {
                let instruction = self.instruction()?;
                out.push(Statement::Instruction(instruction));
            }
        }
        Ok(out)
    }

    /// Names with commas between them, up to and with the semicolon.
    fn names(&mut self) -> Result<Vec<String>, PtxError> {
        let mut out = Vec::new();
        while !self.eat(';') {
            out.push(self.word()?);
            self.eat(',');
        }
        Ok(out)
    }

    fn directive(&mut self, out: &mut Vec<Statement>) -> Result<(), PtxError> {
        let line = self.line();
        let Some(Token::Dot(part)) = self.peek().cloned() else { return self.error("expected a directive") };
        match part.as_str() {
            "reg" => {
                self.at += 1;
                let kind = self.dot().unwrap_or_default();
                let Some(bits) = bits_of(&kind) else { return self.error(format!("register type .{kind}")) };
                while !self.eat(';') {
                    let name = self.word()?;
                    let mut range = None;
                    if self.eat('<') {
                        range = Some(self.int()? as u32);
                        self.expect('>')?;
                    }
                    out.push(Statement::Registers { name, range, bits });
                    self.eat(',');
                }
            }
            "shared" | "local" | "param" => {
                let variable = self.variable()?;
                self.expect(';')?;
                out.push(Statement::Variable(variable));
            }
            "loc" | "file" => self.skip_line(line),
            "pragma" => while !matches!(self.take()?, Token::Mark(';')) {},
            other => return self.error(format!("directive .{other} is not implemented in a body")),
        }
        Ok(())
    }

    fn instruction(&mut self) -> Result<Instruction, PtxError> {
        let line = self.line();
        let mut guard = None;
        if self.eat('@') {
            let negated = self.eat('!');
            guard = Some((self.word()?, negated));
        }
        let name = self.word()?;
        let mut parts = Vec::new();
        while let Some(part) = self.dot() {
            parts.push(part);
        }
        let mut operands = Vec::new();
        while !self.eat(';') {
            operands.push(self.operand()?);
            if !self.eat(',') && self.peek() != Some(&Token::Mark(';')) {
                return self.error(format!("expected ',' or ';', found {:?}", self.peek()));
            }
        }
        Ok(Instruction { line, guard, name, parts, operands })
    }

    fn operand(&mut self) -> Result<Operand, PtxError> {
        let first = self.simple()?;
        if self.eat('|') {
            let second = self.simple()?;
            return Ok(Operand::Pair(Box::new(first), Box::new(second)));
        }
        Ok(first)
    }

    fn sequence(&mut self, end: char) -> Result<Vec<Operand>, PtxError> {
        let mut out = Vec::new();
        while !self.eat(end) {
            out.push(self.operand()?);
            self.eat(',');
        }
        Ok(out)
    }

    fn simple(&mut self) -> Result<Operand, PtxError> {
        Ok(match self.take()? {
            Token::Mark('{') => Operand::Vector(self.sequence('}')?),
            Token::Mark('(') => Operand::List(self.sequence(')')?),
            Token::Mark('!') => Operand::Not(Box::new(self.simple()?)),
            Token::Mark('[') => {
                let base = self.simple()?;
                let (base, offset) = match base {
                    Operand::Sum(name, offset) => (Operand::Name(name), offset),
                    other => (other, 0),
                };
                self.expect(']')?;
                Operand::Address(Box::new(base), offset)
            }
            Token::Mark('-') => match self.take()? {
                Token::Int(value) => Operand::Int(value.wrapping_neg()),
                Token::F64(bits) => Operand::F64((-f64::from_bits(bits)).to_bits()),
                other => return self.error(format!("expected a number after a minus sign, found {other:?}")),
            },
            Token::Int(value) => Operand::Int(value),
            Token::F32(bits) => Operand::F32(bits),
            Token::F64(bits) => Operand::F64(bits),
            Token::Word(word) if word == "_" => Operand::Sink,
            Token::Word(word) => self.named(word)?,
            other => return self.error(format!("{other:?} is not an operand")),
        })
    }

    /// A name, with `.x` of a special register or `+4` of an address behind it.
    fn named(&mut self, mut word: String) -> Result<Operand, PtxError> {
        if let Some(part) = self.dot() {
            word = format!("{word}.{part}");
        }
        let negative = match self.peek() {
            Some(Token::Mark('+')) => false,
            Some(Token::Mark('-')) => true,
            _ => return Ok(Operand::Name(word)),
        };
        self.at += 1;
        let offset = self.int()?;
        Ok(Operand::Sum(word, if negative { -offset } else { offset }))
    }
}
