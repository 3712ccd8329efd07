//! One tile of a matrix times one panel of activations: where the instruction sets part.
//!
//! Every variant computes the same sums in the same order, so their results are equal bit for bit. For each
//! activation row and each output row, over blocks b in order:
//!
//! ```text
//! s   = Σ over the block of u·q, exact in integers; u: the stored nibble, or the stored byte plus 128
//! s  -= 8·Σq in Q4_0, 128·Σq in Q8_0
//! acc = fma(s, d_b · scale_b, acc)
//! acc = fma(m_b, scale_b · Σq, acc)      in Q4_1 only
//! ```
//!
//! The plain formats add up a block with fma from element 0 and then add the block to acc. This file has the checks,
//! the choice, and the scalar variant, which is the definition; `tile_avx2.rs` and `tile_vnni.rs` have the others.

use crate::cpu::isa::{Detected, Isa};
use crate::cpu::pack::{TILE, Tile, quant_bytes, scale_count};
use crate::cpu::quantize::{Panel, ROW_WORDS, panel_rows_max, reads_quantized};
use crate::format::{BLOCK, Format};

/// The most rows of a panel, on any instruction set.
pub(crate) const PANEL_ROWS_MAX: usize = 12;

/// Results of one activation row: one for each row of the tile.
pub(crate) type Lanes = [f32; TILE];

/// `out[r][lane] = tile row lane · panel row r`.
///
/// # Panics
/// Where tile, panel and output do not belong together: a bug of the caller, which checks shapes first.
pub(crate) fn multiply(isa: Detected, tile: &Tile<'_>, panel: &Panel<'_>, out: &mut [Lanes]) {
    let (blocks, rows) = (tile.blocks, panel.rows);
    assert!(panel.blocks == blocks && out.len() == rows && rows <= panel_rows_max(isa.isa()));
    assert!(tile.quants.len() == blocks * quant_bytes(tile.format));
    assert!(tile.scales.len() == blocks * scale_count(tile.format));
    if reads_quantized(tile.format) {
        assert!(panel.quantized.len() == blocks * rows * ROW_WORDS);
    } else {
        assert!(panel.plain.len() == blocks * rows * BLOCK);
    }
    match isa.isa() {
        Isa::Scalar => scalar(tile, panel, out),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => {
            // SAFETY: `isa` was detected, and the lengths of all parts are as asserted above.
            unsafe { super::tile_avx2::multiply(tile, panel, out) }
        }
        #[cfg(target_arch = "x86_64")]
        Isa::AvxVnni => {
            // SAFETY: as above.
            unsafe { super::tile_vnni::multiply_256(tile, panel, out) }
        }
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Vnni => {
            // SAFETY: as above.
            unsafe { super::tile_vnni::multiply_512(tile, panel, out) }
        }
        #[cfg(not(target_arch = "x86_64"))]
        _ => scalar(tile, panel, out),
    }
}

fn scalar(tile: &Tile<'_>, panel: &Panel<'_>, out: &mut [Lanes]) {
    for (row, out) in out.iter_mut().enumerate() {
        for (lane, out) in out.iter_mut().enumerate() {
            *out = if reads_quantized(tile.format) {
                scalar_quantized(tile, panel, row, lane)
            } else {
                scalar_plain(tile, panel, row, lane)
            };
        }
    }
}

fn scalar_quantized(tile: &Tile<'_>, panel: &Panel<'_>, row: usize, lane: usize) -> f32 {
    let m = panel.rows;
    let mut acc = 0.0f32;
    for b in 0..tile.blocks {
        let quants = &tile.quants[b * quant_bytes(tile.format)..][..quant_bytes(tile.format)];
        let scales = &tile.scales[b * scale_count(tile.format)..][..scale_count(tile.format)];
        let words = &panel.quantized[b * m * ROW_WORDS..][..m * ROW_WORDS];
        let (groups, sums) = words.split_at(m * 8);
        let mut s = 0i32;
        for (g, group) in groups[row * 8..][..8].iter().enumerate() {
            for (i, q) in group.to_le_bytes().into_iter().enumerate() {
                let u = match tile.format {
                    Format::Q8_0 => i32::from(quants[(g * TILE + lane) * 4 + i].cast_signed()) + 128,
                    _ if g < 4 => i32::from(quants[(g * TILE + lane) * 4 + i] & 15),
                    _ => i32::from(quants[((g - 4) * TILE + lane) * 4 + i] >> 4),
                };
                s += u * i32::from(q.cast_signed());
            }
        }
        match tile.format {
            Format::Q4_0 => s += sums[2 * m + row].cast_signed(),
            Format::Q8_0 => s += sums[3 * m + row].cast_signed(),
            Format::Q4_1 | Format::F16 | Format::Bf16 | Format::F32 => {}
        }
        acc = (s as f32).mul_add(scales[lane].to_f32() * f32::from_bits(sums[row]), acc);
        if tile.format == Format::Q4_1 {
            acc = scales[TILE + lane].to_f32().mul_add(f32::from_bits(sums[m + row]), acc);
        }
    }
    acc
}

fn scalar_plain(tile: &Tile<'_>, panel: &Panel<'_>, row: usize, lane: usize) -> f32 {
    let mut acc = 0.0f32;
    for b in 0..tile.blocks {
        let quants = &tile.quants[b * quant_bytes(tile.format)..][..quant_bytes(tile.format)];
        let values = &panel.plain[(b * panel.rows + row) * BLOCK..][..BLOCK];
        let mut part = 0.0f32;
        for (i, value) in values.iter().enumerate() {
            let at = i * TILE + lane;
            let weight = match tile.format {
                Format::F16 => half::f16::from_le_bytes([quants[2 * at], quants[2 * at + 1]]).to_f32(),
                Format::Bf16 => half::bf16::from_le_bytes([quants[2 * at], quants[2 * at + 1]]).to_f32(),
                _ => {
                    let bytes = &quants[4 * at..];
                    f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
                }
            };
            part = weight.mul_add(*value, part);
        }
        acc += part;
    }
    acc
}
