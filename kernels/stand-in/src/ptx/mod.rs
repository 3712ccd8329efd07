//! PTX as a tree: what the text says, nothing resolved and nothing executed.
//!
//! The subset is what NVRTC 12 emits for `sm_80` to `sm_90` (PTX ISA 7 and 8, 64-bit addresses),
//! inline assembly with scopes of its own included. What is not understood is an error with its
//! line, never skipped; only debugging directives (`.loc`, `.file`, `.pragma`, `.section`) are.
//! Start at [`parse`]; instructions get their meaning in [`crate::decode`].

mod body;
mod lexer;
mod parser;

pub(crate) use parser::parse;

/// The text is not PTX that we know, or asks for something that is not implemented.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PtxError {
    /// Line of the PTX text, from 1.
    pub(crate) line: u32,
    /// What is wrong.
    pub(crate) message: String,
}

impl std::fmt::Display for PtxError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PTX line {}: {}", self.line, self.message)
    }
}

/// Where a variable lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Space {
    Global,
    Const,
    Shared,
    Local,
    Param,
}

/// A module: variables and functions in the order of the text.
#[derive(Debug)]
pub(crate) struct Module {
    /// `.version`, as (major, minor).
    pub(crate) version: (u32, u32),
    /// The number in `.target sm_NN`.
    pub(crate) target: u32,
    pub(crate) variables: Vec<Variable>,
    pub(crate) functions: Vec<Function>,
}

/// A variable with its bytes, zero where nothing initialises them.
#[derive(Clone, Debug)]
pub(crate) struct Variable {
    pub(crate) space: Space,
    pub(crate) name: String,
    pub(crate) align: u64,
    /// Size in bytes; `None` for `.extern .shared x[]`, whose size the launch decides.
    pub(crate) bytes: Option<u64>,
    pub(crate) init: Vec<u8>,
}

/// A kernel (`.entry`) or a device function (`.func`).
#[derive(Clone, Debug)]
pub(crate) struct Function {
    pub(crate) entry: bool,
    pub(crate) name: String,
    pub(crate) params: Vec<Variable>,
    pub(crate) returns: Vec<Variable>,
    /// `None` for a declaration.
    pub(crate) body: Option<Vec<Statement>>,
    /// Product of `.maxntid`, where given.
    pub(crate) max_threads: Option<u32>,
    /// `.reqntid`, where given.
    pub(crate) required_threads: Option<[u32; 3]>,
    pub(crate) line: u32,
}

/// One statement of a body.
#[derive(Clone, Debug)]
pub(crate) enum Statement {
    /// `{ ... }`, a scope for registers, variables and labels.
    Block(Vec<Statement>),
    /// `.reg .b32 %r<10>;` or `.reg .pred p;`
    Registers {
        name: String,
        range: Option<u32>,
        bits: u32,
    },
    /// `.shared`, `.local` or `.param` inside a body.
    Variable(Variable),
    Label(String),
    /// `name: .branchtargets a, b;`
    Targets {
        name: String,
        labels: Vec<String>,
    },
    Instruction(Instruction),
}

/// An instruction as written.
#[derive(Clone, Debug)]
pub(crate) struct Instruction {
    pub(crate) line: u32,
    /// Predicate register, and whether it is negated.
    pub(crate) guard: Option<(String, bool)>,
    /// The word before the first dot.
    pub(crate) name: String,
    /// The dotted parts.
    pub(crate) parts: Vec<String>,
    pub(crate) operands: Vec<Operand>,
}

impl Instruction {
    /// The opcode with all its parts.
    pub(crate) fn opcode(&self) -> String {
        std::iter::once(&self.name).chain(&self.parts).map(String::as_str).collect::<Vec<_>>().join(".")
    }

    pub(crate) fn error(&self, message: impl std::fmt::Display) -> PtxError {
        PtxError { line: self.line, message: format!("{}: {message}", self.opcode()) }
    }

    pub(crate) fn has(&self, part: &str) -> bool {
        self.parts.iter().any(|have| have == part)
    }
}

/// An operand as written.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Operand {
    /// A register, special register, variable, label or function.
    Name(String),
    /// `name+4`: the address of a variable with an offset.
    Sum(String, i64),
    Int(u64),
    F32(u32),
    F64(u64),
    /// `{a, b}`
    Vector(Vec<Operand>),
    /// `[base+offset]`
    Address(Box<Operand>, i64),
    /// `!p`
    Not(Box<Operand>),
    /// `p|q`
    Pair(Box<Operand>, Box<Operand>),
    /// `(a, b)` of a call.
    List(Vec<Operand>),
    /// `_`, a result that is not wanted.
    Sink,
}
