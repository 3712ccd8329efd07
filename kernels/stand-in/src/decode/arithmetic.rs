//! What an opcode means, for everything that a lane does alone in registers.
//!
//! [`Builder::decode`] sends memory, control and warp instructions on to their modules. Rounding and
//! saturation parts choose among the functions of the tables; a part that changes nothing in results
//! (`.full` is not one of them) is dropped by name. Start at [`Builder::decode`].

use super::builder::Builder;
use super::lanes::{W2, lanes};
use super::operand::Parts;
use super::{Carry, Op, Type, float, half, integer};
use crate::number::Round;
use crate::ptx::{Instruction, Operand, PtxError};

pub(super) const ROUNDS: [(&str, Round); 4] =
    [("rn", Round::Nearest), ("rz", Round::Zero), ("rm", Round::Down), ("rp", Round::Up)];
/// Parts that belong to the name of an operation rather than to its type or rounding.
const NAME_PARTS: [&str; 17] = [
    "lo",
    "hi",
    "wide",
    "approx",
    "full",
    "NaN",
    "l",
    "r",
    "wrap",
    "clamp",
    "finite",
    "infinite",
    "number",
    "notanumber",
    "normal",
    "subnormal",
    "shiftamt",
];

impl Builder<'_> {
    /// Decodes one instruction.
    pub(super) fn decode(&mut self, instruction: &Instruction) -> Result<(), PtxError> {
        match instruction.name.as_str() {
            "ld" | "ldu" | "st" | "atom" | "red" | "cp" | "prefetch" | "prefetchu" | "createpolicy" | "fence"
            | "membar" | "isspacep" | "applypriority" | "discard" => self.memory(instruction),
            "bra" | "brx" | "ret" | "exit" | "trap" | "brkpt" | "bar" | "barrier" | "nanosleep" | "griddepcontrol" => {
                self.control(instruction)
            }
            "shfl" | "vote" | "match" | "redux" | "activemask" | "elect" | "ldmatrix" | "stmatrix" | "movmatrix"
            | "mma" => self.collective(instruction),
            "mov" => self.mov(instruction),
            "cvt" => self.convert(instruction),
            "cvta" => self.cvta(instruction),
            "setp" | "set" => self.compare(instruction),
            "addc" | "subc" | "madc" => self.carry(instruction),
            "add" | "sub" | "mad" if instruction.has("cc") => self.carry(instruction),
            "lop3" | "bfi" => self.bits_of_four(instruction),
            "dp4a" => self.dot_product(instruction),
            _ => self.plain(instruction),
        }
    }

    /// Instructions with one type whose sources and result are registers.
    fn plain(&mut self, instruction: &Instruction) -> Result<(), PtxError> {
        let mut parts = Parts::of(instruction);
        let mut name = instruction.name.clone();
        for part in NAME_PARTS {
            if parts.take(part) {
                name = format!("{name}.{part}");
            }
        }
        let (mut ftz, saturate) = (parts.take("ftz"), parts.take("sat"));
        let round = parts.choose(&ROUNDS).unwrap_or(Round::Nearest);
        let kind = parts.kind()?;
        parts.finish()?;
        if name == "mad" && kind.is_float() {
            name = "fma".into();
        }
        if saturate && !kind.is_float() {
            name = format!("{name}.sat");
        }
        let [result, sources @ ..] = instruction.operands.as_slice() else {
            return Err(instruction.error("no operands"));
        };
        let wide = name.ends_with(".wide");
        let mut registers = Vec::new();
        for (index, source) in sources.iter().enumerate() {
            registers.push(self.source(instruction, source, source_kind(&name, kind, index, wide))?);
        }
        let result = self.result(instruction, result)?;
        let half = kind.is_half();
        if half && ftz && name == "ex2.approx" {
            (name, ftz) = ("ex2.approx.ftz".into(), false);
        }
        if half && (ftz || saturate || round != Round::Nearest) {
            return Err(instruction.error("rounding, .ftz and .sat of f16 and bf16 are not implemented"));
        }
        let op = match *registers.as_slice() {
            [a] => one(&name, kind, ftz, round).map(|function| Op::One(function, result, a)),
            [a, b] => two(&name, kind, ftz, round).map(|function| Op::Two(function, result, [a, b])),
            [a, b, c] => three(&name, kind, ftz, round).map(|function| Op::Three(function, result, [a, b, c])),
            _ => None,
        };
        let Some(op) = op else { return Err(instruction.error("instruction is not implemented")) };
        self.push(op)?;
        if saturate && kind == Type::F32 {
            let Some(function) = float::one("sat", kind, false) else {
                return Err(instruction.error("saturation is not implemented"));
            };
            self.push(Op::One(function, result, result))?;
        } else if saturate && kind.is_float() {
            return Err(instruction.error("saturation of this type is not implemented"));
        }
        Ok(())
    }

    fn mov(&mut self, instruction: &Instruction) -> Result<(), PtxError> {
        let mut parts = Parts::of(instruction);
        let kind = parts.kind()?;
        parts.finish()?;
        let [to, from] = instruction.operands.as_slice() else { return Err(instruction.error("takes two operands")) };
        match (to, from) {
            (Operand::Vector(all), from) => {
                let each = kind.bits() / all.len().max(1) as u32;
                let source = self.source(instruction, from, kind)?;
                // The source may be one of the results.
                let copy = self.fresh();
                self.push(Op::One(lanes!(|a| a), copy, source))?;
                for (index, one) in all.iter().enumerate().filter(|(_, one)| **one != Operand::Sink) {
                    let result = self.result(instruction, one)?;
                    let shift = self.constant(u64::from(each) * index as u64);
                    let take: W2 = match each {
                        8 => lanes!(|a, b| a >> b & 0xff),
                        16 => lanes!(|a, b| a >> b & 0xffff),
                        32 => lanes!(|a, b| a >> b & 0xffff_ffff),
                        _ => return Err(instruction.error("elements must have 8, 16 or 32 bits")),
                    };
                    self.push(Op::Two(take, result, [copy, shift]))?;
                }
                Ok(())
            }
            (to, Operand::Vector(all)) => {
                let each = u64::from(kind.bits()) / all.len().max(1) as u64;
                let element = Type::named(&format!("b{each}")).ok_or_else(|| instruction.error("odd element size"))?;
                let sources = self.sources(instruction, from, element)?;
                let sum = self.fresh();
                let zero = self.constant(0);
                self.push(Op::One(lanes!(|a| a), sum, zero))?;
                for (index, source) in sources.iter().enumerate() {
                    let shift = self.constant(each * index as u64);
                    let put = lanes!(|sum, value, shift| sum | value << shift);
                    self.push(Op::Three(put, sum, [sum, *source, shift]))?;
                }
                debug_assert_eq!(all.len(), sources.len());
                let result = self.result(instruction, to)?;
                self.push(Op::One(lanes!(|a| a), result, sum))
            }
            (to, from) => {
                let source = self.source(instruction, from, kind)?;
                let result = self.result(instruction, to)?;
                let function = one("mov", kind, false, Round::Nearest);
                let Some(function) = function else { return Err(instruction.error("type is not implemented")) };
                self.push(Op::One(function, result, source))
            }
        }
    }

    /// To and from generic addresses: windows for shared and local memory, the same elsewhere.
    fn cvta(&mut self, instruction: &Instruction) -> Result<(), PtxError> {
        let mut parts = Parts::of(instruction);
        let to = parts.take("to");
        let window = parts.choose(&[
            ("global", 0),
            ("const", 0),
            ("param", 0),
            ("shared", crate::machine::SHARED_WINDOW),
            ("shared::cta", crate::machine::SHARED_WINDOW),
            ("local", crate::machine::LOCAL_WINDOW),
        ]);
        let kind = parts.kind()?;
        parts.finish()?;
        let (Some(window), [result, source]) = (window, instruction.operands.as_slice()) else {
            return Err(instruction.error("needs a state space and two operands"));
        };
        let source = self.source(instruction, source, kind)?;
        let result = self.result(instruction, result)?;
        let window = self.constant(window);
        let function: W2 = if to { lanes!(|a, b| a.wrapping_sub(b)) } else { lanes!(|a, b| a.wrapping_add(b)) };
        self.push(Op::Two(function, result, [source, window]))
    }

    /// `add.cc`, `addc`, `sub.cc`, `subc`, `mad.cc` and `madc`.
    fn carry(&mut self, instruction: &Instruction) -> Result<(), PtxError> {
        let mut parts = Parts::of(instruction);
        let writes = parts.take("cc");
        let half = parts.choose(&[("lo", "mul.lo"), ("hi", "mul.hi")]);
        let kind = parts.kind()?;
        parts.finish()?;
        let flag = match self.carry {
            Some(flag) => flag,
            None => {
                let flag = self.fresh();
                self.carry = Some(flag);
                flag
            }
        };
        let name = instruction.name.as_str();
        let carry =
            Carry { subtract: name.starts_with("sub"), bits: kind.bits(), reads: name.ends_with('c'), writes, flag };
        let mut sources = Vec::new();
        for source in instruction.operands.iter().skip(1) {
            sources.push(self.source(instruction, source, kind)?);
        }
        let result = self.result(instruction, &instruction.operands[0])?;
        match (sources.as_slice(), half) {
            (&[a, b], None) => self.push(Op::Carry(carry, result, [a, b])),
            (&[a, b, c], Some(half)) => {
                let Some(function) = integer::two(half, kind) else {
                    return Err(instruction.error("type is not implemented"));
                };
                let product = self.fresh();
                self.push(Op::Two(function, product, [a, b]))?;
                self.push(Op::Carry(carry, result, [product, c]))
            }
            _ => Err(instruction.error("operands do not fit")),
        }
    }

    fn bits_of_four(&mut self, instruction: &Instruction) -> Result<(), PtxError> {
        let mut parts = Parts::of(instruction);
        let kind = parts.kind()?;
        parts.finish()?;
        let [result, sources @ ..] = instruction.operands.as_slice() else {
            return Err(instruction.error("no operands"));
        };
        let mut registers = Vec::new();
        for (index, source) in sources.iter().enumerate() {
            let of = if instruction.name == "bfi" && index >= 2 { Type::B32 } else { kind };
            registers.push(self.source(instruction, source, of)?);
        }
        let result = self.result(instruction, result)?;
        match (registers.try_into(), integer::four(&instruction.name, kind)) {
            (Ok(sources), Some(function)) => self.push(Op::Four(function, result, sources)),
            _ => Err(instruction.error("instruction is not implemented")),
        }
    }

    fn dot_product(&mut self, instruction: &Instruction) -> Result<(), PtxError> {
        let [result, a, b, c] = instruction.operands.as_slice() else {
            return Err(instruction.error("takes three sources"));
        };
        let Some(function) = integer::three(&instruction.opcode(), Type::B32) else {
            return Err(instruction.error("instruction is not implemented"));
        };
        let mut source = |operand| self.source(instruction, operand, Type::B32);
        let sources = [source(a)?, source(b)?, source(c)?];
        let result = self.result(instruction, result)?;
        self.push(Op::Three(function, result, sources))
    }
}

/// The type of a source where it is not that of the instruction.
fn source_kind(name: &str, kind: Type, index: usize, wide: bool) -> Type {
    match (name, index) {
        ("shl" | "shr", 1) => Type::B32,
        ("bfe", 1 | 2) => Type::B32,
        ("selp", 2) => Type::Pred,
        (_, 2) if wide && kind.bits() == 32 => Type::B64,
        (_, 2) if wide => Type::B32,
        _ => kind,
    }
}

fn one(name: &str, kind: Type, ftz: bool, round: Round) -> Option<super::lanes::W1> {
    match kind {
        _ if round != Round::Nearest => None,
        _ if kind.is_half() => half::one(name, kind),
        _ if kind.is_float() => float::one(name, kind, ftz),
        _ => integer::one(name, kind),
    }
}

fn two(name: &str, kind: Type, ftz: bool, round: Round) -> Option<W2> {
    match kind {
        _ if kind.is_half() => half::two(name, kind),
        _ if kind.is_float() => float::two(name, kind, ftz, round),
        _ => integer::two(name, kind),
    }
}

fn three(name: &str, kind: Type, ftz: bool, round: Round) -> Option<super::lanes::W3> {
    match kind {
        _ if name == "selp" && kind.is_float() => integer::three(
            name,
            if kind.bits() == 64 {
                Type::B64
            } else if kind.bits() == 32 {
                Type::B32
            } else {
                Type::B16
            },
        ),
        _ if kind.is_half() => half::three(name, kind),
        _ if kind.is_float() => float::three(name, kind, ftz, round),
        _ => integer::three(name, kind),
    }
}
