//! Instructions that the lanes of a warp execute together: shuffles, votes, matrices.
//!
//! `.aligned` ones without a mask involve the whole warp. Shapes and types of matrices that are not
//! listed here are refused. Start at [`Builder::collective`].

use super::builder::Builder;
use super::memory::ATOMIC_OPS;
use super::operand::Parts;
use super::{AtomicOp, Multiply, Op, Reg, ShuffleMode, Together, Type, VoteMode};
use crate::ptx::{Instruction, Operand, PtxError};

impl Builder<'_> {
    pub(super) fn collective(&mut self, instruction: &Instruction) -> Result<(), PtxError> {
        let operands = instruction.operands.as_slice();
        let mut parts = Parts::of(instruction);
        let synchronous = parts.take("sync");
        match (instruction.name.as_str(), operands) {
            ("activemask", [result]) => {
                let result = self.result(instruction, result)?;
                return self.push(Op::ActiveMask(result));
            }
            ("elect", [results, mask]) if synchronous => {
                let (result, chosen) = self.pair(instruction, results)?;
                let mask = self.source(instruction, mask, Type::B32)?;
                return self.push(Op::Elect { result, chosen, mask });
            }
            _ if !synchronous => return Err(instruction.error("only the .sync form is implemented")),
            _ => {}
        }
        match (instruction.name.as_str(), operands) {
            ("shfl", _) => self.shuffle(instruction, parts),
            ("vote", [result, value, mask]) => {
                let modes = [
                    ("all", VoteMode::All),
                    ("any", VoteMode::Any),
                    ("uni", VoteMode::Uniform),
                    ("ballot", VoteMode::Ballot),
                ];
                let Some(mode) = parts.choose(&modes) else { return Err(instruction.error("mode is not implemented")) };
                parts.ignore(&["pred", "b32"]);
                parts.finish()?;
                let (value, negated) = self.predicate(instruction, value)?;
                let result = self.result(instruction, result)?;
                self.together(instruction, Together::Vote { mode, result, value, negated }, Some(mask))
            }
            ("match", [results, value, mask]) => {
                let all = parts.take("all");
                let any = parts.take("any");
                let kind = parts.kind()?;
                parts.finish()?;
                let value = self.source(instruction, value, kind)?;
                let (result, same) = self.pair(instruction, results)?;
                let what = match (all, any) {
                    (true, false) => Together::MatchAll { result, same, value },
                    (false, true) => Together::MatchAny { result, value },
                    _ => return Err(instruction.error("mode is not implemented")),
                };
                self.together(instruction, what, Some(mask))
            }
            ("redux", [result, value, mask]) => {
                let op = parts.choose(&ATOMIC_OPS);
                let kind = parts.kind()?;
                parts.finish()?;
                let known = matches!(
                    op,
                    Some(AtomicOp::Add | AtomicOp::Min | AtomicOp::Max | AtomicOp::And | AtomicOp::Or | AtomicOp::Xor)
                );
                let (Some(op), true, 32, false) = (op, known, kind.bits(), kind.is_float()) else {
                    return Err(instruction.error("reduction is not implemented"));
                };
                let value = self.source(instruction, value, kind)?;
                let result = self.result(instruction, result)?;
                self.together(instruction, Together::Reduce { op, kind, result, value }, Some(mask))
            }
            ("mma", _) => self.multiply(instruction, parts),
            _ => self.matrix(instruction, parts),
        }
    }

    fn shuffle(&mut self, instruction: &Instruction, mut parts: Parts<'_>) -> Result<(), PtxError> {
        let [results, value, lane, clamp, mask] = instruction.operands.as_slice() else {
            return Err(instruction.error("takes a result, a value, a lane, a clamp and a mask"));
        };
        let modes = [
            ("up", ShuffleMode::Up),
            ("down", ShuffleMode::Down),
            ("bfly", ShuffleMode::Butterfly),
            ("idx", ShuffleMode::Index),
        ];
        let Some(mode) = parts.choose(&modes) else { return Err(instruction.error("mode is not implemented")) };
        parts.take("b32");
        parts.finish()?;
        let (result, valid) = self.pair(instruction, results)?;
        let value = self.source(instruction, value, Type::B32)?;
        let (lane, clamp) = (self.source(instruction, lane, Type::B32)?, self.source(instruction, clamp, Type::B32)?);
        self.together(instruction, Together::Shuffle { mode, result, valid, value, lane, clamp }, Some(mask))
    }

    pub(super) fn warp_sync(&mut self, instruction: &Instruction) -> Result<(), PtxError> {
        match instruction.operands.as_slice() {
            [mask] => self.together(instruction, Together::Sync, Some(mask)),
            _ => Err(instruction.error("takes a mask")),
        }
    }

    fn together(&mut self, instruction: &Instruction, what: Together, mask: Option<&Operand>) -> Result<(), PtxError> {
        let mask = match mask {
            Some(mask) => Some(self.source(instruction, mask, Type::B32)?),
            None => None,
        };
        self.push(Op::Together(Box::new(what), mask))
    }

    /// `d|p`, or `d` alone with a register for `p` that nobody reads.
    fn pair(&mut self, instruction: &Instruction, operand: &Operand) -> Result<(Reg, Reg), PtxError> {
        match operand {
            Operand::Pair(first, second) => Ok((self.result(instruction, first)?, self.result(instruction, second)?)),
            one => Ok((self.result(instruction, one)?, self.fresh())),
        }
    }

    fn matrix(&mut self, instruction: &Instruction, mut parts: Parts<'_>) -> Result<(), PtxError> {
        let shape = parts.take("aligned") && parts.take("m8n8");
        let count = parts.choose(&[("x1", 1), ("x2", 2), ("x4", 4)]);
        let transposed = parts.take("trans");
        let kind = parts.take("b16");
        let shared = parts.take("shared") || parts.take("shared::cta") || instruction.name == "movmatrix";
        parts.finish()?;
        if !shape || !kind || !shared {
            return Err(instruction.error("only .aligned.m8n8.shared.b16 is implemented"));
        }
        let (what, registers) = match (instruction.name.as_str(), instruction.operands.as_slice(), count) {
            ("ldmatrix", [results, address], Some(count)) => {
                let registers = self.results(instruction, results)?;
                let (address, offset, _) = self.address(instruction, address)?;
                let have = registers.len();
                (Together::LoadMatrix { transposed, registers, address, offset }, (have, count))
            }
            ("stmatrix", [address, values], Some(count)) => {
                let registers = self.sources(instruction, values, Type::B32)?;
                let (address, offset, _) = self.address(instruction, address)?;
                let have = registers.len();
                (Together::StoreMatrix { transposed, registers, address, offset }, (have, count))
            }
            ("movmatrix", [result, value], None) if transposed => {
                let value = self.source(instruction, value, Type::B32)?;
                let result = self.result(instruction, result)?;
                (Together::MoveMatrix { result, value }, (1, 1))
            }
            _ => return Err(instruction.error("operands do not fit")),
        };
        if registers.0 != registers.1 {
            return Err(instruction.error(format!("needs {} registers, got {}", registers.1, registers.0)));
        }
        self.together(instruction, what, None)
    }

    fn multiply(&mut self, instruction: &Instruction, mut parts: Parts<'_>) -> Result<(), PtxError> {
        let layout = parts.take("aligned") && parts.take("row") && parts.take("col");
        let depth = parts.choose(&[("m16n8k8", 8), ("m16n8k16", 16), ("m16n8k32", 32), ("m16n8k4", 4)]);
        let saturate = parts.take("satfinite");
        let (d_kind, a_kind, b_kind, c_kind) = (parts.kind()?, parts.kind()?, parts.kind()?, parts.kind()?);
        parts.finish()?;
        let (Some(depth), true, [d, a, b, c]) = (depth, layout, instruction.operands.as_slice()) else {
            return Err(instruction.error("only .aligned m16n8kK.row.col is implemented"));
        };
        let byte = |kind| matches!(kind, Type::S8 | Type::U8);
        let fits = match (a_kind, d_kind) {
            (Type::F16, Type::F16 | Type::F32) | (Type::Bf16, Type::F32) => matches!(depth, 8 | 16) && a_kind == b_kind,
            (Type::Tf32, Type::F32) => matches!(depth, 4 | 8) && a_kind == b_kind,
            (Type::S8 | Type::U8, Type::S32) => matches!(depth, 16 | 32) && byte(b_kind),
            _ => false,
        };
        if !fits || c_kind != d_kind || saturate && d_kind != Type::S32 {
            return Err(instruction.error("shape or types are not implemented"));
        }
        let multiply = Multiply {
            depth,
            a_kind,
            b_kind,
            sum_kind: d_kind,
            saturate,
            d: self.results(instruction, d)?,
            a: self.sources(instruction, a, Type::B32)?,
            b: self.sources(instruction, b, Type::B32)?,
            c: self.sources(instruction, c, Type::B32)?,
        };
        let per_register = (32 / a_kind.bits()) as usize;
        let sums = if d_kind == Type::F16 { 2 } else { 4 };
        let wanted = [sums, 16 * depth as usize / 32 / per_register, 8 * depth as usize / 32 / per_register, sums];
        let have = [multiply.d.len(), multiply.a.len(), multiply.b.len(), multiply.c.len()];
        if have != wanted {
            return Err(instruction.error(format!("needs {wanted:?} registers, got {have:?}")));
        }
        self.together(instruction, Together::Multiply(multiply), None)
    }
}
