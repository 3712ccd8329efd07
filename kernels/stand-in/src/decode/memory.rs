//! Loads, stores, atomics, asynchronous copies and fences.
//!
//! Cache operators, eviction hints and prefetch sizes change no result and are dropped by name; cache
//! policies are evaluated nowhere. Fences are nothing to do, because blocks run one after the other
//! and warps in turns. Start at [`Builder::memory`].

use super::builder::Builder;
use super::lanes::lanes;
use super::operand::Parts;
use super::{Access, Atomic, AtomicOp, CopyAsync, Op, Type, Where};
use crate::ptx::{Instruction, Operand, PtxError};

const SPACES: [(&str, Where); 9] = [
    ("global", Where::Global),
    ("const", Where::Const),
    ("shared", Where::Shared),
    ("shared::cta", Where::Shared),
    ("local", Where::Local),
    ("param", Where::Param),
    ("param::entry", Where::Param),
    ("param::func", Where::Param),
    ("generic", Where::Generic),
];

/// Parts that only say something about caches or about how far an order reaches.
const HINTS: [&str; 30] = [
    "ca",
    "cg",
    "cs",
    "cv",
    "lu",
    "wb",
    "wt",
    "nc",
    "weak",
    "cta",
    "cluster",
    "gpu",
    "sys",
    "L1::evict_normal",
    "L1::evict_unchanged",
    "L1::evict_first",
    "L1::evict_last",
    "L1::no_allocate",
    "L2::evict_normal",
    "L2::evict_first",
    "L2::evict_last",
    "L2::cache_hint",
    "L2::64B",
    "L2::128B",
    "L2::256B",
    "L2::evict_unchanged",
    "L1",
    "L2",
    "noftz",
    "mmio",
];

pub(super) const ATOMIC_OPS: [(&str, AtomicOp); 10] = [
    ("add", AtomicOp::Add),
    ("and", AtomicOp::And),
    ("or", AtomicOp::Or),
    ("xor", AtomicOp::Xor),
    ("min", AtomicOp::Min),
    ("max", AtomicOp::Max),
    ("inc", AtomicOp::Inc),
    ("dec", AtomicOp::Dec),
    ("exch", AtomicOp::Exchange),
    ("cas", AtomicOp::CompareExchange),
];

impl Builder<'_> {
    pub(super) fn memory(&mut self, instruction: &Instruction) -> Result<(), PtxError> {
        match instruction.name.as_str() {
            "ld" | "ldu" => self.load(instruction),
            "st" => self.store(instruction),
            "atom" | "red" => self.atomic(instruction),
            "cp" => self.copy_async(instruction),
            "isspacep" => self.is_space(instruction),
            // A policy is an opaque value that only hints read.
            "createpolicy" => {
                let result = self.result(instruction, &instruction.operands[0])?;
                let zero = self.constant(0);
                self.push(Op::One(lanes!(|a| a), result, zero))
            }
            "fence" if instruction.has("proxy") => Err(instruction.error("proxy fences are not implemented")),
            "discard" => Err(instruction.error("instruction is not implemented")),
            // Fences, prefetches and priorities.
            _ => self.push(Op::Nothing),
        }
    }

    /// Takes what loads and stores have in common: (space, strong, type, elements).
    fn access_parts(&mut self, instruction: &Instruction) -> Result<(Option<Where>, bool, Type, usize), PtxError> {
        let mut parts = Parts::of(instruction);
        let mut strong = false;
        for part in ["volatile", "relaxed", "acquire", "release", "mmio"] {
            strong |= parts.take(part);
        }
        parts.ignore(&HINTS);
        let space = parts.choose(&SPACES);
        let elements = parts.choose(&[("v2", 2), ("v4", 4), ("v8", 8)]).unwrap_or(1);
        let kind = parts.kind()?;
        parts.finish()?;
        if kind.bits() > 64 || kind == Type::Pred {
            return Err(instruction.error("type is not implemented"));
        }
        Ok((space, strong, kind, elements))
    }

    fn load(&mut self, instruction: &Instruction) -> Result<(), PtxError> {
        let (space, strong, kind, elements) = self.access_parts(instruction)?;
        let [to, from, ..] = instruction.operands.as_slice() else {
            return Err(instruction.error("takes a result and an address"));
        };
        let registers = self.results(instruction, to)?;
        let mut sign_to = 0;
        if kind.is_signed() {
            let first = if let Operand::Vector(all) = to { &all[0] } else { to };
            sign_to = self.register(instruction, first).map_or(kind.bits(), |(_, bits)| bits);
        }
        let access = self.access(instruction, from, space, (strong, kind, elements), registers, sign_to)?;
        self.push(Op::Load(Box::new(access)))
    }

    fn store(&mut self, instruction: &Instruction) -> Result<(), PtxError> {
        let (space, strong, kind, elements) = self.access_parts(instruction)?;
        let [to, from, ..] = instruction.operands.as_slice() else {
            return Err(instruction.error("takes an address and a value"));
        };
        let registers = self.sources(instruction, from, kind)?;
        let access = self.access(instruction, to, space, (strong, kind, elements), registers, 0)?;
        if matches!(access.space, Where::Const | Where::Param) {
            return Err(instruction.error("constants and a kernel's parameters cannot be written"));
        }
        self.push(Op::Store(Box::new(access)))
    }

    fn access(
        &mut self,
        instruction: &Instruction,
        address: &Operand,
        space: Option<Where>,
        (strong, kind, elements): (bool, Type, usize),
        registers: Vec<super::Reg>,
        sign_to: u32,
    ) -> Result<Access, PtxError> {
        let (address, offset, named) = self.address(instruction, address)?;
        if registers.len() != elements {
            return Err(instruction.error(format!("has {} values for {elements} elements", registers.len())));
        }
        let space = match (space, named) {
            // Parameters of expanded calls are local memory.
            (Some(Where::Param), Some(Where::Local)) => Where::Local,
            (Some(given), Some(named)) if given != named && given != Where::Generic => {
                return Err(instruction.error(format!("the variable is in {named:?} memory")));
            }
            (Some(given), _) => given,
            (None, Some(named @ (Where::Global | Where::Const))) => named,
            (None, Some(named)) => return Err(instruction.error(format!("a generic address of {named:?} needs cvta"))),
            (None, None) => Where::Generic,
        };
        let bytes = kind.bits() / 8;
        if bytes * elements as u32 > 16 {
            return Err(instruction.error("accesses of more than 16 bytes are not implemented"));
        }
        Ok(Access { space, bytes, registers, address, offset, sign_to, strong })
    }

    fn atomic(&mut self, instruction: &Instruction) -> Result<(), PtxError> {
        let mut parts = Parts::of(instruction);
        for part in ["relaxed", "acquire", "release", "acq_rel"] {
            parts.take(part);
        }
        parts.ignore(&HINTS);
        let space = parts.choose(&SPACES);
        let Some(op) = parts.choose(&ATOMIC_OPS) else { return Err(instruction.error("operation is not implemented")) };
        let kind = parts.kind()?;
        parts.finish()?;
        let float_add = op == AtomicOp::Add && kind.is_float();
        if kind.is_float() && !float_add || !matches!(kind.bits(), 16 | 32 | 64) {
            return Err(instruction.error("operation of this type is not implemented"));
        }
        let (result, rest) = match instruction.operands.as_slice() {
            [result, rest @ ..] if instruction.name == "atom" => (Some(self.result(instruction, result)?), rest),
            rest => (None, rest),
        };
        let [address, values @ ..] = rest else { return Err(instruction.error("takes an address")) };
        let (address, offset, named) = self.address(instruction, address)?;
        let wanted = if op == AtomicOp::CompareExchange { 2 } else { 1 };
        if values.len() < wanted {
            return Err(instruction.error(format!("takes {wanted} values")));
        }
        let value = self.source(instruction, &values[0], kind)?;
        let other = if wanted == 2 { self.source(instruction, &values[1], kind)? } else { value };
        let space = space.or(named).unwrap_or(Where::Generic);
        if matches!(space, Where::Const | Where::Param | Where::Local) {
            return Err(instruction.error("atomics are for global and shared memory"));
        }
        let atomic = Atomic { op, kind, space, result, address, offset, value, other };
        self.push(Op::Atomic(Box::new(atomic)))
    }

    fn copy_async(&mut self, instruction: &Instruction) -> Result<(), PtxError> {
        let mut parts = Parts::of(instruction);
        if !parts.take("async") {
            return Err(instruction.error("only cp.async is implemented"));
        }
        if parts.take("commit_group") {
            parts.finish()?;
            return self.push(Op::CommitGroup);
        }
        if parts.take("wait_all") {
            parts.finish()?;
            return self.push(Op::WaitAll);
        }
        if parts.take("wait_group") {
            parts.finish()?;
            return match instruction.operands.as_slice() {
                [Operand::Int(count)] if *count < 1 << 16 => self.push(Op::WaitGroup(*count as u32)),
                _ => Err(instruction.error("takes a small number")),
            };
        }
        let only_16 = instruction.has("cg");
        parts.ignore(&HINTS);
        let spaces = parts.take("shared") || parts.take("shared::cta");
        let global = parts.take("global");
        parts.finish()?;
        let [to, from, Operand::Int(bytes), rest @ ..] = instruction.operands.as_slice() else {
            return Err(instruction.error("takes two addresses and a size"));
        };
        if !spaces || !global || !matches!(bytes, 4 | 8 | 16) || only_16 && *bytes != 16 {
            return Err(instruction.error("copies 4, 8 or 16 bytes (.cg: 16) from global to shared memory"));
        }
        let (to, to_offset, _) = self.address(instruction, to)?;
        let (from, from_offset, _) = self.address(instruction, from)?;
        let policy = usize::from(instruction.has("L2::cache_hint"));
        let source_bytes = match rest.len() - policy.min(rest.len()) {
            0 => None,
            1 => Some(self.source(instruction, &rest[0], Type::B32)?),
            _ => return Err(instruction.error("has too many operands")),
        };
        let copy = CopyAsync { to, to_offset, from, from_offset, bytes: *bytes as u32, source_bytes };
        self.push(Op::CopyAsync(Box::new(copy)))
    }

    fn is_space(&mut self, instruction: &Instruction) -> Result<(), PtxError> {
        let mut parts = Parts::of(instruction);
        let space = parts.choose(&SPACES);
        parts.finish()?;
        let (Some(space), [result, address]) = (space, instruction.operands.as_slice()) else {
            return Err(instruction.error("needs a state space and two operands"));
        };
        let address = self.source(instruction, address, Type::B64)?;
        let result = self.result(instruction, result)?;
        self.push(Op::IsSpace { space, result, address })
    }
}
