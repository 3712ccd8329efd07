//! Matrices spread over the lanes of a warp: `ldmatrix`, `stmatrix`, `movmatrix` and `mma.sync`.
//!
//! Where an element lies is PTX's fragment layout: of an 8 x 8 matrix of 16-bit elements, lane `l` has
//! row `l / 4`, columns `2 (l % 4)` and the next. A product is summed exactly enough in f64 and rounded
//! once; hardware rounds inside in an order that is not specified, so compare within bounds. Start at
//! [`multiply`].

use super::Fault;
use super::access::Spaces;
use super::warp::Warp;
use crate::decode::lanes::Lanes;
use crate::decode::{Multiply, Reg, Type, Where};
use crate::number::{F16, F32, Round, bf16_value, f32_bits, narrow, widen};

/// `ldmatrix`: lanes 0 to 7 have the addresses of the first matrix's rows, and so on.
pub(super) fn load(
    space: &mut Spaces<'_>,
    warp: &mut Warp,
    (registers, address, offset): (&[Reg], Reg, i64),
    transposed: bool,
    line: u32,
) -> Result<(), Fault> {
    let addresses = warp.registers[address as usize];
    for (matrix, register) in registers.iter().enumerate() {
        let mut rows = [[0_u8; 16]; 8];
        for (row, bytes) in rows.iter_mut().enumerate() {
            let lane = matrix * 8 + row;
            let at = addresses[lane].wrapping_add_signed(offset);
            space.read(warp, warp.who(lane, line, false), Where::Shared, at, bytes)?;
        }
        let element = |row: usize, column: usize| {
            u64::from(u16::from_le_bytes([rows[row][2 * column], rows[row][2 * column + 1]]))
        };
        for lane in 0..32 {
            let (row, column) = (lane / 4, lane % 4 * 2);
            let (low, high) = if transposed {
                (element(column, row), element(column + 1, row))
            } else {
                (element(row, column), element(row, column + 1))
            };
            warp.registers[*register as usize][lane] = high << 16 | low;
        }
    }
    Ok(())
}

/// The 8 x 8 matrix of a register.
fn gather(register: &Lanes) -> [[u16; 8]; 8] {
    std::array::from_fn(|row| {
        std::array::from_fn(|column| (register[row * 4 + column / 2] >> (16 * (column % 2))) as u16)
    })
}

/// `stmatrix`, the other way round.
pub(super) fn store(
    space: &mut Spaces<'_>,
    warp: &mut Warp,
    (registers, address, offset): (&[Reg], Reg, i64),
    transposed: bool,
    line: u32,
) -> Result<(), Fault> {
    let addresses = warp.registers[address as usize];
    for (matrix, register) in registers.iter().enumerate() {
        let values = gather(&warp.registers[*register as usize]);
        for (row, own) in values.iter().enumerate() {
            let mut bytes = [0; 16];
            for column in 0..8 {
                let value = if transposed { values[column][row] } else { own[column] };
                bytes[2 * column..2 * column + 2].copy_from_slice(&value.to_le_bytes());
            }
            let lane = matrix * 8 + row;
            let at = addresses[lane].wrapping_add_signed(offset);
            let who = warp.who(lane, line, false);
            space.write(warp, who, Where::Shared, at, &bytes)?;
        }
    }
    Ok(())
}

/// `movmatrix.trans`.
pub(super) fn transpose(warp: &mut Warp, result: Reg, value: Reg) {
    let values = gather(&warp.registers[value as usize]);
    for lane in 0..32 {
        let (row, column) = (lane / 4, lane % 4 * 2);
        let pair = u64::from(values[column + 1][row]) << 16 | u64::from(values[column][row]);
        warp.registers[result as usize][lane] = pair;
    }
}

fn element(kind: Type, bits: u64) -> f64 {
    match kind {
        Type::F16 => widen(bits as u32 & 0xffff, F16),
        Type::Bf16 => f64::from(bf16_value(bits)),
        // The hardware reads the upper 19 bits.
        Type::Tf32 => f64::from(f32::from_bits(bits as u32 & !0x1fff)),
        Type::S8 => f64::from(bits as i8),
        _ => f64::from(bits as u8),
    }
}

/// A[16, depth], B[depth, 8] and C[16, 8] as the lanes hold them.
struct Operands {
    a: [[f64; 32]; 16],
    b: [[f64; 8]; 32],
}

/// Element `index` of lane `lane` in an operand with `per` elements a register.
fn fragment(warp: &Warp, registers: &[Reg], kind: Type, lane: usize, index: usize) -> f64 {
    let per = (32 / kind.bits()) as usize;
    let bits = warp.registers[registers[index / per] as usize][lane];
    element(kind, bits >> (kind.bits() as usize * (index % per)))
}

fn operands(warp: &Warp, what: &Multiply) -> Operands {
    let mut out = Operands { a: [[0.0; 32]; 16], b: [[0.0; 8]; 32] };
    let depth = what.depth as usize;
    let per = (32 / what.a_kind.bits()) as usize;
    for lane in 0..32 {
        let (group, member) = (lane / 4, lane % 4);
        // A register of A holds `per` neighbours in k; registers go down 8 rows first, then along k.
        for index in 0..16 * depth / 32 {
            let register = index / per;
            let row = group + 8 * (register % 2);
            let k = member * per + index % per + 4 * per * (register / 2);
            out.a[row][k] = fragment(warp, &what.a, what.a_kind, lane, index);
        }
        for index in 0..8 * depth / 32 {
            let k = member * per + index % per + 4 * per * (index / per);
            out.b[k][group] = fragment(warp, &what.b, what.b_kind, lane, index);
        }
    }
    out
}

/// `mma.sync`: D = A B + C.
pub(super) fn multiply(warp: &mut Warp, what: &Multiply) {
    let Operands { a, b } = operands(warp, what);
    let depth = what.depth as usize;
    for lane in 0..32 {
        let mut sums = [0_u64; 4];
        for (index, sum) in sums.iter_mut().enumerate() {
            let (row, column) = (lane / 4 + 8 * (index / 2), lane % 4 * 2 + index % 2);
            let product: f64 = (0..depth).map(|k| a[row][k] * b[k][column]).sum();
            *sum = match what.sum_kind {
                Type::F32 => {
                    let c = f64::from(f32::from_bits(warp.registers[what.c[index] as usize][lane] as u32));
                    f32_bits(f32::from_bits(narrow(product + c, F32, Round::Nearest)))
                }
                Type::F16 => {
                    let c = warp.registers[what.c[index / 2] as usize][lane] >> (16 * (index % 2));
                    u64::from(narrow(product + widen(c as u32 & 0xffff, F16), F16, Round::Nearest))
                }
                _ => {
                    let whole = product as i64 + i64::from(warp.registers[what.c[index] as usize][lane] as i32);
                    let kept = if what.saturate {
                        whole.clamp(i64::from(i32::MIN), i64::from(i32::MAX)) as i32
                    } else {
                        whole as i32
                    };
                    u64::from(kept as u32)
                }
            };
        }
        // D may be C: a lane's sums depend on its own C only, and A and B were read before.
        if what.sum_kind == Type::F16 {
            warp.registers[what.d[0] as usize][lane] = sums[1] << 16 | sums[0];
            warp.registers[what.d[1] as usize][lane] = sums[3] << 16 | sums[2];
        } else {
            for (register, sum) in what.d.iter().zip(sums) {
                warp.registers[*register as usize][lane] = sum;
            }
        }
    }
}
