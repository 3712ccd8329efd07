//! Operands and the dotted parts of an opcode.
//!
//! [`Parts`] is how nothing is guessed: each part is taken by who understands it, and what is left
//! over at the end is an error. Operands become registers: constants, special registers and addresses
//! of variables included. Start at [`Builder::source`].

use super::builder::{Builder, Entity};
use super::{Init, Op, Reg, Special, Type, Where};
use crate::ptx::{Instruction, Operand, PtxError};

/// The dotted parts of an opcode that nobody has taken yet.
pub(super) struct Parts<'a> {
    instruction: &'a Instruction,
    left: Vec<&'a str>,
}

impl<'a> Parts<'a> {
    pub(super) fn of(instruction: &'a Instruction) -> Self {
        Self { instruction, left: instruction.parts.iter().map(String::as_str).collect() }
    }

    /// Takes a part, if it is there.
    pub(super) fn take(&mut self, part: &str) -> bool {
        let found = self.left.iter().position(|have| *have == part);
        if let Some(at) = found {
            self.left.remove(at);
        }
        found.is_some()
    }

    /// Takes all of these parts; for those that change nothing here, such as cache hints.
    pub(super) fn ignore(&mut self, parts: &[&str]) {
        self.left.retain(|have| !parts.contains(have));
    }

    /// Takes the first of the choices that is there.
    pub(super) fn choose<T: Copy>(&mut self, choices: &[(&str, T)]) -> Option<T> {
        choices.iter().find(|(part, _)| self.take(part)).map(|(_, value)| *value)
    }

    /// Takes the first type.
    pub(super) fn kind(&mut self) -> Result<Type, PtxError> {
        let found = self.left.iter().enumerate().find_map(|(at, part)| Type::named(part).map(|kind| (at, kind)));
        let Some((at, kind)) = found else { return Err(self.instruction.error("no type that is implemented")) };
        self.left.remove(at);
        Ok(kind)
    }

    /// Takes the first part, whatever it is.
    pub(super) fn first(&mut self) -> Option<&'a str> {
        if self.left.is_empty() { None } else { Some(self.left.remove(0)) }
    }

    /// Refuses what nobody took.
    pub(super) fn finish(self) -> Result<(), PtxError> {
        if self.left.is_empty() {
            return Ok(());
        }
        Err(self.instruction.error(format!("part .{} is not implemented", self.left.join("."))))
    }
}

/// Whether `operand` mentions `name`.
pub(super) fn mentions(operand: &Operand, name: &str) -> bool {
    match operand {
        Operand::Name(have) | Operand::Sum(have, _) => have == name,
        Operand::Address(base, _) | Operand::Not(base) => mentions(base, name),
        Operand::Vector(all) | Operand::List(all) => all.iter().any(|operand| mentions(operand, name)),
        _ => false,
    }
}

/// Results, function and arguments of a call.
pub(super) fn call_parts(instruction: &Instruction) -> Result<(Vec<String>, String, Vec<String>), PtxError> {
    let names = |list: &[Operand]| {
        list.iter()
            .map(|operand| match operand {
                Operand::Name(name) => Ok(name.clone()),
                other => Err(instruction.error(format!("argument {other:?} is not implemented"))),
            })
            .collect::<Result<Vec<_>, _>>()
    };
    match instruction.operands.as_slice() {
        [Operand::List(results), Operand::Name(name), Operand::List(arguments)] => {
            Ok((names(results)?, name.clone(), names(arguments)?))
        }
        [Operand::Name(name), Operand::List(arguments)] => Ok((Vec::new(), name.clone(), names(arguments)?)),
        [Operand::List(results), Operand::Name(name)] => Ok((names(results)?, name.clone(), Vec::new())),
        [Operand::Name(name)] => Ok((Vec::new(), name.clone(), Vec::new())),
        _ => Err(instruction.error("only direct calls are implemented")),
    }
}

fn special(name: &str) -> Option<Special> {
    Some(match name {
        "%tid.x" => Special::ThreadX,
        "%tid.y" => Special::ThreadY,
        "%tid.z" => Special::ThreadZ,
        "%ntid.x" => Special::ThreadsX,
        "%ntid.y" => Special::ThreadsY,
        "%ntid.z" => Special::ThreadsZ,
        "%ctaid.x" => Special::BlockX,
        "%ctaid.y" => Special::BlockY,
        "%ctaid.z" => Special::BlockZ,
        "%nctaid.x" => Special::BlocksX,
        "%nctaid.y" => Special::BlocksY,
        "%nctaid.z" => Special::BlocksZ,
        "%laneid" => Special::Lane,
        "%warpid" => Special::Warp,
        "%nwarpid" => Special::Warps,
        "%lanemask_eq" => Special::LanesEqual,
        "%lanemask_lt" => Special::LanesLess,
        "%lanemask_le" => Special::LanesLessEqual,
        "%lanemask_gt" => Special::LanesGreater,
        "%lanemask_ge" => Special::LanesGreaterEqual,
        "%dynamic_smem_size" => Special::DynamicSharedBytes,
        "%total_smem_size" => Special::TotalSharedBytes,
        _ => return None,
    })
}

impl Builder<'_> {
    /// The register of a name, with its width.
    pub(super) fn register(&self, instruction: &Instruction, operand: &Operand) -> Result<(Reg, u32), PtxError> {
        if let Operand::Name(name) = operand
            && let Some(Entity::Register { reg, bits }) = self.find(name)
        {
            return Ok((*reg, *bits));
        }
        Err(instruction.error(format!("{operand:?} is not a register")))
    }

    /// Where a result goes; a sink gets a register nobody reads.
    pub(super) fn result(&mut self, instruction: &Instruction, operand: &Operand) -> Result<Reg, PtxError> {
        match operand {
            Operand::Sink => Ok(self.fresh()),
            other => Ok(self.register(instruction, other)?.0),
        }
    }

    /// A register that holds the operand, read as `kind`.
    pub(super) fn source(&mut self, instruction: &Instruction, operand: &Operand, kind: Type) -> Result<Reg, PtxError> {
        let bits = match operand {
            Operand::Name(name) if name == "WARP_SZ" => 32,
            Operand::Name(name) => return self.named_source(instruction, name, 0),
            Operand::Sum(name, offset) => return self.named_source(instruction, name, *offset),
            Operand::Int(value) => match kind.bits() {
                // A register holds its value zero-extended, and an immediate stands for a register.
                bits @ 1..64 => value & ((1 << bits) - 1),
                _ => *value,
            },
            Operand::F32(bits) if kind == Type::F64 => f64::from(f32::from_bits(*bits)).to_bits(),
            Operand::F32(bits) => u64::from(*bits),
            Operand::F64(bits) if kind == Type::F32 => u64::from((f64::from_bits(*bits) as f32).to_bits()),
            Operand::F64(bits) => *bits,
            other => return Err(instruction.error(format!("operand {other:?} is not implemented here"))),
        };
        Ok(self.constant(bits))
    }

    fn named_source(&mut self, instruction: &Instruction, name: &str, offset: i64) -> Result<Reg, PtxError> {
        if let Some(entity) = self.find(name) {
            let address = match entity {
                Entity::Register { reg, .. } if offset == 0 => return Ok(*reg),
                Entity::Local(at) | Entity::Param(at) | Entity::Shared(at) => *at,
                Entity::Global(at) | Entity::Const(at) => *at,
                _ => return Err(instruction.error(format!("{name} cannot be read as a value"))),
            };
            return Ok(self.constant(address.wrapping_add_signed(offset)));
        }
        match name {
            "%clock" | "%clock64" | "%globaltimer" | "%clock_hi" | "%globaltimer_lo" => {
                let reg = self.fresh();
                self.push(Op::Clock(reg))?;
                return Ok(reg);
            }
            "%smid" | "%gridid" => return Ok(self.constant(0)),
            "%nsmid" => return Ok(self.constant(1)),
            _ => {}
        }
        let Some(special) = special(name) else {
            return Err(instruction.error(format!("{name} is not a register, variable or special register we know")));
        };
        let found = self.registers.iter().position(|init| *init == Init::Special(special));
        Ok(found.unwrap_or_else(|| {
            self.registers.push(Init::Special(special));
            self.registers.len() - 1
        }) as Reg)
    }

    /// A predicate that may be negated: its register and whether it is.
    pub(super) fn predicate(&mut self, instruction: &Instruction, operand: &Operand) -> Result<(Reg, bool), PtxError> {
        match operand {
            Operand::Not(inner) => Ok((self.source(instruction, inner, Type::Pred)?, true)),
            other => Ok((self.source(instruction, other, Type::Pred)?, false)),
        }
    }

    /// Register and offset of `[base+offset]`, and where a variable's name says it is.
    pub(super) fn address(
        &mut self,
        instruction: &Instruction,
        operand: &Operand,
    ) -> Result<(Reg, i64, Option<Where>), PtxError> {
        let Operand::Address(base, offset) = operand else {
            return Err(instruction.error(format!("{operand:?} is not an address")));
        };
        let space = match &**base {
            Operand::Name(name) => match self.find(name) {
                Some(Entity::Local(_)) => Some(Where::Local),
                Some(Entity::Param(_)) => Some(Where::Param),
                Some(Entity::Shared(_)) => Some(Where::Shared),
                Some(Entity::Global(_)) => Some(Where::Global),
                Some(Entity::Const(_)) => Some(Where::Const),
                _ => None,
            },
            _ => None,
        };
        Ok((self.source(instruction, base, Type::B64)?, *offset, space))
    }

    /// Registers of `{a, b}`, or of a single operand.
    pub(super) fn sources(
        &mut self,
        instruction: &Instruction,
        operand: &Operand,
        kind: Type,
    ) -> Result<Vec<Reg>, PtxError> {
        match operand {
            Operand::Vector(all) => all.iter().map(|one| self.source(instruction, one, kind)).collect(),
            one => Ok(vec![self.source(instruction, one, kind)?]),
        }
    }

    /// Registers that results go to, of `{a, b}` or a single one.
    pub(super) fn results(&mut self, instruction: &Instruction, operand: &Operand) -> Result<Vec<Reg>, PtxError> {
        match operand {
            Operand::Vector(all) => all.iter().map(|one| self.result(instruction, one)).collect(),
            one => Ok(vec![self.result(instruction, one)?]),
        }
    }
}
