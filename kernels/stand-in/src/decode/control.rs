//! Branches, barriers, exits.
//!
//! A `ret` in an expanded device function is a branch to its end; in a kernel's own body it ends the
//! thread. Dependent launches (`griddepcontrol`) are nothing to do, because kernels run in order.
//! Start at [`Builder::control`].

use super::builder::{Builder, Entity};
use super::operand::Parts;
use super::{BarrierKind, Op, Type};
use crate::ptx::{Instruction, Operand, PtxError};

impl Builder<'_> {
    pub(super) fn control(&mut self, instruction: &Instruction) -> Result<(), PtxError> {
        let mut parts = Parts::of(instruction);
        match instruction.name.as_str() {
            "bra" => {
                parts.take("uni");
                parts.finish()?;
                let target = self.target(instruction)?;
                self.push(Op::Branch(target))
            }
            "brx" => {
                parts.take("uni");
                if !parts.take("idx") {
                    return Err(instruction.error("only brx.idx is implemented"));
                }
                parts.finish()?;
                self.switch(instruction)
            }
            "ret" => {
                parts.take("uni");
                parts.finish()?;
                match self.return_label() {
                    Some(label) => self.push(Op::Branch(label)),
                    None => self.push(Op::Exit),
                }
            }
            "exit" => {
                parts.finish()?;
                self.push(Op::Exit)
            }
            "trap" | "brkpt" => self.push(Op::Trap),
            "bar" | "barrier" => self.barrier(instruction),
            // nanosleep and griddepcontrol.
            _ => self.push(Op::Nothing),
        }
    }

    fn label_of(&self, instruction: &Instruction, name: &str) -> Result<u32, PtxError> {
        match self.find(name) {
            Some(Entity::Label(label)) => Ok(*label),
            _ => Err(instruction.error(format!("{name} is not a label"))),
        }
    }

    fn target(&self, instruction: &Instruction) -> Result<u32, PtxError> {
        match instruction.operands.as_slice() {
            [Operand::Name(name)] => self.label_of(instruction, name),
            _ => Err(instruction.error("takes a label")),
        }
    }

    fn switch(&mut self, instruction: &Instruction) -> Result<(), PtxError> {
        let [index, Operand::Name(list)] = instruction.operands.as_slice() else {
            return Err(instruction.error("takes an index and a list of labels"));
        };
        let Some(Entity::Targets(names)) = self.find(list).cloned() else {
            return Err(instruction.error(format!("{list} is not a list of labels")));
        };
        let targets = names.iter().map(|name| self.label_of(instruction, name)).collect::<Result<Box<[_]>, _>>()?;
        let index = self.source(instruction, index, Type::B32)?;
        self.push(Op::Switch { index, targets })
    }

    fn barrier(&mut self, instruction: &Instruction) -> Result<(), PtxError> {
        let mut parts = Parts::of(instruction);
        if parts.take("warp") {
            return self.warp_sync(instruction);
        }
        // `bar` is `barrier.aligned`; that the lanes of a warp wait at one place is checked for both.
        parts.ignore(&["cta", "aligned"]);
        let mut operands = instruction.operands.as_slice();
        let kind = if parts.take("sync") {
            BarrierKind::Wait
        } else if parts.take("arrive") {
            BarrierKind::Arrive
        } else if parts.take("red") {
            let ([result, rest @ ..], Some(predicate)) = (operands, operands.last()) else {
                return Err(instruction.error("takes a result and a predicate"));
            };
            operands = &rest[..rest.len().saturating_sub(1)];
            let result = self.result(instruction, result)?;
            let (value, negated) = self.predicate(instruction, predicate)?;
            match parts.choose(&[("popc", 0), ("and", 1), ("or", 2)]) {
                Some(0) => BarrierKind::Count { result, value, negated },
                Some(1) => BarrierKind::And { result, value, negated },
                Some(2) => BarrierKind::Or { result, value, negated },
                _ => return Err(instruction.error("reduction is not implemented")),
            }
        } else {
            return Err(instruction.error("is not implemented"));
        };
        parts.ignore(&["u32", "pred"]);
        parts.finish()?;
        let (id, count) = match operands {
            [id] => (self.source(instruction, id, Type::B32)?, None),
            [id, count] => {
                (self.source(instruction, id, Type::B32)?, Some(self.source(instruction, count, Type::B32)?))
            }
            _ => return Err(instruction.error("takes a barrier and perhaps a count")),
        };
        if kind == BarrierKind::Arrive && count.is_none() {
            return Err(instruction.error("takes a count"));
        }
        self.push(Op::Barrier { kind, id, count })
    }
}
