//! Weight matrices in the layout that CUDA kernels read: `matrix.cuh` says what it is and why.
//!
//! Packing happens once, on the host, when a matrix is loaded. A packed matrix is as large as its source but for rows
//! rounded up to 16 and k to 64 with zeros, and two f32 a row for F32 and BF16. The twin of `cpu/pack.rs`.
//!
//! BF16 is stored as f16 after a power of two a row. Its 8 significant bits fit f16's 11, so elements within 2^-31 of their
//! row's largest lose nothing, and smaller ones less than 2^-38 of it, where activations lose as much. Tensor cores
//! that took bf16 would want activations of 8 bits, or twice as many of them.

use half::{bf16, f16};

use crate::checks::refuse;
use crate::device::DeviceError;
use crate::format::{BLOCK, Format};

/// Rows of a tile, and elements of k of a pair of blocks.
pub(super) const TILE: usize = 16;
pub(super) const PAIR: usize = 2 * BLOCK;

/// Lanes of a warp, and bytes that one of them loads at once.
const LANES: usize = 32;
const UNIT: usize = 16;

/// A packed matrix on the host.
pub(super) struct Packed {
    /// By tile, pair, unit and lane.
    pub(super) quants: Vec<u8>,
    /// Scales of the quantised formats; for F32 and BF16 two powers of two a row; else empty.
    pub(super) scales: Vec<u8>,
}

/// The number that kernels know a format by.
pub(super) const fn code(format: Format) -> u32 {
    match format {
        Format::F32 => 0,
        Format::F16 => 1,
        Format::Q8_0 => 2,
        Format::Q4_0 => 3,
        Format::Q4_1 => 4,
        Format::Bf16 => 5,
    }
}

/// Units a lane loads of one pair of a tile.
const fn units(format: Format) -> usize {
    match format {
        Format::F32 => 8,
        Format::F16 | Format::Bf16 => 4,
        Format::Q8_0 => 2,
        Format::Q4_0 | Format::Q4_1 => 1,
    }
}

/// f16 numbers in the scales of one block and row.
const fn scale_count(format: Format) -> usize {
    match format {
        Format::F32 | Format::F16 | Format::Bf16 => 0,
        Format::Q8_0 | Format::Q4_0 => 1,
        Format::Q4_1 => 2,
    }
}

/// Packs a matrix `[n, k]`, row-major in `format`.
///
/// # Errors
/// [`DeviceError::Shape`] where `n` or `k` is 0, `k` is not a multiple of the format's block, the matrix is too large for
/// 32-bit counts, or `bytes` is not exactly `n` rows.
pub(super) fn pack(format: Format, n: usize, k: usize, bytes: &[u8]) -> Result<Packed, DeviceError> {
    let small = |x: usize| (1..=i32::MAX as usize / PAIR).contains(&x);
    if !(small(n) && small(k)) {
        let most = i32::MAX as usize / PAIR;
        return refuse("matrix", "the shape", format!("from 1 by 1 to {most} by {most}"), format!("{n} by {k}"));
    }
    let Some(row_bytes) = format.row_bytes(k) else {
        let step = format.block_elements();
        return refuse("matrix", "k", format!("a multiple of {step} in {format}"), k);
    };
    if n.checked_mul(row_bytes) != Some(bytes.len()) {
        let expected = format!("{n} rows of {row_bytes} bytes");
        return refuse("matrix", "the data", expected, format!("{} bytes", bytes.len()));
    }
    let (tiles, pairs) = (n.div_ceil(TILE), k.div_ceil(PAIR));
    let scale_bytes = if matches!(format, Format::F32 | Format::Bf16) { 2 * 4 * TILE * tiles } else { 0 };
    let blocks = tiles * pairs * 2;
    let mut packed = Packed {
        quants: vec![0; tiles * pairs * units(format) * LANES * UNIT],
        scales: vec![0; scale_bytes + blocks * TILE * scale_count(format) * 2],
    };
    for (row, source) in bytes.chunks_exact(row_bytes).enumerate() {
        match format {
            Format::F32 | Format::F16 => plain_row(format, row, pairs, source, &mut packed.quants),
            Format::Bf16 => {
                let [up, _] = powers(bf16_values(source));
                let halves: Vec<u8> =
                    bf16_values(source).flat_map(|value| f16::from_f32(value * up).to_le_bytes()).collect();
                plain_row(format, row, pairs, &halves, &mut packed.quants);
            }
            Format::Q8_0 | Format::Q4_0 | Format::Q4_1 => quantised_row(format, row, pairs, source, &mut packed),
        }
        let powers = match format {
            Format::F32 => powers(source.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes))),
            Format::Bf16 => powers(bf16_values(source)),
            _ => continue,
        };
        for (half, power) in powers.into_iter().enumerate() {
            packed.scales[(half * tiles * TILE + row) * 4..][..4].copy_from_slice(&power.to_le_bytes());
        }
    }
    Ok(packed)
}

/// Where the 16 bytes of a unit of a lane start.
fn unit_at(format: Format, pairs: usize, row: usize, pair: usize, unit: usize, lane: usize) -> usize {
    (((row / TILE * pairs + pair) * units(format) + unit) * LANES + lane) * UNIT
}

/// Elements 8t .. 8t + 7 of a block of a row belong to lane 4g + t; upper rows (g + 8) to the second half of units.
fn plain_row(format: Format, row: usize, pairs: usize, source: &[u8], quants: &mut [u8]) {
    let (lane, upper) = (row % 8 * 4, row % TILE / 8);
    let size = if format == Format::F32 { 4 } else { 2 };
    // Units a row and block: two of 4 elements, or one of 8.
    let a_row = size / 2;
    for (chunk, from) in source.chunks(UNIT).enumerate() {
        let k = chunk * UNIT / size;
        let block = k % PAIR / BLOCK;
        let unit = (block * 2 + upper) * a_row + if size == 4 { k % 8 / 4 } else { 0 };
        let at = unit_at(format, pairs, row, k / PAIR, unit, lane + k % BLOCK / 8);
        quants[at..at + from.len()].copy_from_slice(from);
    }
}

fn quantised_row(format: Format, row: usize, pairs: usize, source: &[u8], packed: &mut Packed) {
    let (lane, upper) = (row % 8 * 4, row % TILE / 8);
    let count = scale_count(format);
    for (index, block) in source.chunks_exact(format.block_bytes()).enumerate() {
        let (pair, half) = (index / 2, index % 2);
        let scales = ((row / TILE * pairs + pair) * 8 + row % 8) * 4 * count;
        for (i, scale) in block[..2 * count].chunks_exact(2).enumerate() {
            let at = (scales + (half * count + i) * 2 + upper) * 2;
            packed.scales[at..at + 2].copy_from_slice(scale);
        }
        let quants = &block[2 * count..];
        for t in 0..4 {
            if format == Format::Q8_0 {
                let at = unit_at(format, pairs, row, pair, half, lane + t) + upper * 8;
                packed.quants[at..at + 8].copy_from_slice(&quants[8 * t..8 * t + 8]);
                continue;
            }
            let nibble =
                |element: usize| u32::from(if element < 16 { quants[element] & 15 } else { quants[element - 16] >> 4 });
            let word = (0..4)
                .fold(0, |word, i| word | nibble(8 * t + 2 * i) << (4 * i) | nibble(8 * t + 2 * i + 1) << (4 * i + 16));
            let at = unit_at(format, pairs, row, pair, 0, lane + t) + (half * 2 + upper) * 4;
            packed.quants[at..at + 4].copy_from_slice(&word.to_le_bytes());
        }
    }
}

fn bf16_values(row: &[u8]) -> impl Iterator<Item = f32> {
    row.as_chunks::<2>().0.iter().map(|bytes| bf16::from_le_bytes(*bytes).to_f32())
}

/// The power of two that brings a row's largest magnitude to 2^14 or just above, and its inverse; 1 where there is no
/// largest number.
fn powers(row: impl Iterator<Item = f32>) -> [f32; 2] {
    let largest = row.map(|value| value.to_bits() & 0x7FFF_FFFF).max().unwrap_or(0);
    let biased = if largest >= 0x7F80_0000 { 127 } else { 268u32.saturating_sub(largest >> 23).clamp(1, 253) };
    [biased, 254 - biased].map(|exponent| f32::from_bits(exponent << 23))
}
