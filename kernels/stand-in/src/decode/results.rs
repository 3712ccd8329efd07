//! `cvt`, `setp` and `set`: instructions whose result has another type than their sources.
//!
//! A comparison is one of four outcomes looked up in a set, and the condition that it is combined with
//! is a step of its own. Start at [`Builder::compare`].

use super::arithmetic::ROUNDS;
use super::builder::Builder;
use super::convert::Conversion;
use super::lanes::{W2, lanes};
use super::operand::Parts;
use super::{Op, Type, float};
use crate::number::Round;
use crate::ptx::{Instruction, Operand, PtxError};

const INTEGRAL_ROUNDS: [(&str, Round); 4] =
    [("rni", Round::Nearest), ("rzi", Round::Zero), ("rmi", Round::Down), ("rpi", Round::Up)];

impl Builder<'_> {
    pub(super) fn convert(&mut self, instruction: &Instruction) -> Result<(), PtxError> {
        let mut parts = Parts::of(instruction);
        let (ftz, mut saturate, relu) = (parts.take("ftz"), parts.take("sat"), parts.take("relu"));
        let mut round = parts.choose(&ROUNDS);
        if parts.take("rna") {
            round = Some(Round::Away);
        }
        let whole = parts.choose(&INTEGRAL_ROUNDS);
        let (to, from) = (parts.kind()?, parts.kind()?);
        parts.finish()?;
        if to.is_half() && (saturate || ftz) || matches!(from, Type::F16x2 | Type::Bf16x2) {
            return Err(instruction.error("this conversion of f16 or bf16 is not implemented"));
        }
        // Floats to integers always saturate.
        saturate |= from.is_float() && !to.is_float();
        let spec = Conversion {
            to,
            from,
            round: whole.or(round).unwrap_or(if to.is_float() { Round::Nearest } else { Round::Zero }),
            integral: whole.is_some(),
            saturate,
            ftz,
            relu,
        };
        match instruction.operands.as_slice() {
            [result, high, low] if matches!(to, Type::F16x2 | Type::Bf16x2) && from == Type::F32 => {
                let (high, low) = (self.source(instruction, high, from)?, self.source(instruction, low, from)?);
                let (upper, lower) = (self.fresh(), self.fresh());
                let each = Conversion { to: if to == Type::F16x2 { Type::F16 } else { Type::Bf16 }, ..spec };
                self.push(Op::Convert(Box::new(each), upper, high))?;
                self.push(Op::Convert(Box::new(each), lower, low))?;
                let result = self.result(instruction, result)?;
                self.push(Op::Two(lanes!(|a, b| a << 16 | b), result, [upper, lower]))
            }
            [result, source] if !matches!(to, Type::F16x2 | Type::Bf16x2) => {
                let source = self.source(instruction, source, from)?;
                let (result, width) = self.register(instruction, result)?;
                self.push(Op::Convert(Box::new(spec), result, source))?;
                // A narrow signed result is sign-extended to the width of its register.
                if to.is_signed() && to.bits() < width {
                    let extend = match (to.bits(), width) {
                        (8, 16) => lanes!(|a| (a as i8 as i16 as u16).into()),
                        (8, 32) => lanes!(|a| (a as i8 as i32 as u32).into()),
                        (16, 32) => lanes!(|a| (a as i16 as i32 as u32).into()),
                        (8, 64) => lanes!(|a| a as i8 as u64),
                        (16, 64) => lanes!(|a| a as i16 as u64),
                        (32, 64) => lanes!(|a| a as i32 as u64),
                        _ => return Err(instruction.error("width of the result is not implemented")),
                    };
                    self.push(Op::One(extend, result, result))?;
                }
                Ok(())
            }
            _ => Err(instruction.error("operands are not implemented")),
        }
    }

    pub(super) fn compare(&mut self, instruction: &Instruction) -> Result<(), PtxError> {
        let mut parts = Parts::of(instruction);
        let comparison = parts.first().unwrap_or_default();
        let combine: Option<W2> = if parts.take("and") {
            Some(lanes!(|a, b| a & b & 1))
        } else if parts.take("or") {
            Some(lanes!(|a, b| (a | b) & 1))
        } else if parts.take("xor") {
            Some(lanes!(|a, b| (a ^ b) & 1))
        } else {
            None
        };
        let ftz = parts.take("ftz");
        let set = if instruction.name == "set" { Some(parts.kind()?) } else { None };
        let kind = parts.kind()?;
        parts.finish()?;
        let (Some(accept), Some(order)) = (float::accepted(comparison, kind.is_float()), float::order(kind, ftz))
        else {
            return Err(instruction.error("comparison is not implemented"));
        };
        let [results, left, right, rest @ ..] = instruction.operands.as_slice() else {
            return Err(instruction.error("takes two sources"));
        };
        let (left, right) = (self.source(instruction, left, kind)?, self.source(instruction, right, kind)?);
        if set.is_none() && rest.is_empty() && combine.is_none() && !matches!(results, Operand::Pair(..)) {
            let result = self.result(instruction, results)?;
            return self.push(Op::Compare { order, accept, result, left, right });
        }
        let mut yes = self.fresh();
        self.push(Op::Compare { order, accept, result: yes, left, right })?;
        let mut no = self.fresh();
        self.push(Op::One(lanes!(|a| a ^ 1), no, yes))?;
        if let (Some(combine), [condition]) = (combine, rest) {
            let (mut with, negated) = self.predicate(instruction, condition)?;
            if negated {
                let opposite = self.fresh();
                self.push(Op::One(lanes!(|a| a & 1 ^ 1), opposite, with))?;
                with = opposite;
            }
            let both = (self.fresh(), self.fresh());
            self.push(Op::Two(combine, both.0, [yes, with]))?;
            self.push(Op::Two(combine, both.1, [no, with]))?;
            (yes, no) = both;
        } else if combine.is_some() || !rest.is_empty() {
            return Err(instruction.error("operands do not fit"));
        }
        let value = match set {
            None => lanes!(|a| a),
            Some(Type::F32) => lanes!(|a| if a & 1 == 1 { 0x3f80_0000 } else { 0 }),
            Some(Type::B32 | Type::U32 | Type::S32) => lanes!(|a| (a & 1) * 0xffff_ffff),
            Some(_) => return Err(instruction.error("type of the result is not implemented")),
        };
        if let Operand::Pair(first, second) = results {
            let (first, second) = (self.result(instruction, first)?, self.result(instruction, second)?);
            self.push(Op::One(value, first, yes))?;
            self.push(Op::One(value, second, no))
        } else {
            let result = self.result(instruction, results)?;
            self.push(Op::One(value, result, yes))
        }
    }
}
