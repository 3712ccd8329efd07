//! Weight matrices in the one layout that every CPU kernel reads.
//!
//! A *tile* is 16 output rows, a *block* 32 elements of k. Within a block the 16 rows are interleaved by
//! *groups* of 4 elements, so that one 512-bit load (or two of 256 bits) brings 4 elements of k for each
//! row of the tile, and one 8-bit dot product instruction adds 4 products to each row's own lane. Nothing
//! is ever summed across lanes.
//!
//! ```text
//! quants, by tile, block:
//!   Q8_0   8 groups g of 16 rows of 4 bytes            512 bytes   element 4g + i is byte i
//!   Q4_x   4 groups g of 16 rows of 4 bytes            256 bytes   low half: element 4g + i, high half: 4g + i + 16
//!   F16, BF16  32 elements of 16 rows                1,024 bytes
//!   F32    32 elements of 16 rows                    2,048 bytes
//! scales, by tile, block:
//!   Q8_0, Q4_0   d of 16 rows, f16                      32 bytes
//!   Q4_1         d of 16 rows, then m of 16 rows        64 bytes
//! ```
//!
//! A packed matrix is as large as its source, but for rows (and, in the plain formats, k) rounded up with zeros.

use half::{bf16, f16};

use crate::device::DeviceError;
use crate::format::{BLOCK, Format};

/// Output rows of a tile.
pub(crate) const TILE: usize = 16;

/// A cache line: the alignment of packed quants.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// A weight matrix `[n, k]` in the layout of this module.
pub struct Matrix {
    format: Format,
    n: usize,
    k: usize,
    blocks: usize,
    quants: Vec<Line>,
    scales: Vec<f16>,
}

/// 16 rows of a matrix: what a kernel runs over.
#[derive(Clone, Copy)]
pub(crate) struct Tile<'a> {
    /// How the elements are stored.
    pub(crate) format: Format,
    /// Blocks of k.
    pub(crate) blocks: usize,
    /// `blocks` times [`quant_bytes`], aligned to 64 bytes.
    pub(crate) quants: &'a [u8],
    /// `blocks` times [`scale_count`].
    pub(crate) scales: &'a [f16],
}

/// Bytes of quants of one block of a tile; a multiple of 64.
pub(crate) const fn quant_bytes(format: Format) -> usize {
    match format {
        Format::F32 => TILE * BLOCK * 4,
        Format::F16 | Format::Bf16 => TILE * BLOCK * 2,
        Format::Q8_0 => TILE * BLOCK,
        Format::Q4_0 | Format::Q4_1 => TILE * BLOCK / 2,
    }
}

/// Scales (and minima) of one block of a tile.
pub(crate) const fn scale_count(format: Format) -> usize {
    match format {
        Format::F32 | Format::F16 | Format::Bf16 => 0,
        Format::Q8_0 | Format::Q4_0 => TILE,
        Format::Q4_1 => 2 * TILE,
    }
}

impl Matrix {
    /// Packs a matrix `[n, k]`, row-major in `format`.
    ///
    /// # Errors
    /// [`DeviceError::Shape`] where `n` or `k` is 0, `k` is not a multiple of the format's block, or `bytes`
    /// is not exactly `n` rows.
    pub fn pack(format: Format, n: usize, k: usize, bytes: &[u8]) -> Result<Matrix, DeviceError> {
        let shape =
            |what, expected: String, got: String| DeviceError::Shape { operation: "matrix", what, expected, got };
        if n == 0 || k == 0 {
            return Err(shape("the shape", "at least 1 by 1".into(), format!("{n} by {k}")));
        }
        let Some(row_bytes) = format.row_bytes(k) else {
            let step = format.block_elements();
            return Err(shape("k", format!("a multiple of {step} in {format}"), k.to_string()));
        };
        if n.checked_mul(row_bytes) != Some(bytes.len()) {
            let expected = format!("{n} rows of {row_bytes} bytes");
            return Err(shape("the data", expected, format!("{} bytes", bytes.len())));
        }
        let (tiles, blocks) = (n.div_ceil(TILE), k.div_ceil(BLOCK));
        let mut quants = vec![Line([0; 64]); tiles * blocks * quant_bytes(format) / 64];
        let mut scales = vec![f16::ZERO; tiles * blocks * scale_count(format)];
        for (row, source) in bytes.chunks_exact(row_bytes).enumerate() {
            let (tile, lane) = (row / TILE, row % TILE);
            let tile_bytes = blocks * quant_bytes(format);
            let quants = &mut bytes_of_mut(&mut quants)[tile * tile_bytes..][..tile_bytes];
            let tile_scales = blocks * scale_count(format);
            let scales = &mut scales[tile * tile_scales..][..tile_scales];
            pack_row(format, source, lane, quants, scales);
        }
        Ok(Matrix { format, n, k, blocks, quants, scales })
    }

    /// Output rows.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Elements of a row.
    pub fn k(&self) -> usize {
        self.k
    }

    /// How its elements are stored.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Bytes that it occupies, and that one pass over it reads.
    pub fn size_bytes(&self) -> usize {
        size_of_val(self.quants.as_slice()) + size_of_val(self.scales.as_slice())
    }

    /// Tiles of 16 rows; the rows past `n` are zero.
    pub(crate) fn tiles(&self) -> usize {
        self.n.div_ceil(TILE)
    }

    /// Blocks of 32 elements in a row, the last one filled up with zeros.
    pub(crate) fn blocks(&self) -> usize {
        self.blocks
    }

    /// One tile. `index` must be below [`Matrix::tiles`].
    pub(crate) fn tile(&self, index: usize) -> Tile<'_> {
        let bytes = self.blocks * quant_bytes(self.format);
        let scales = self.blocks * scale_count(self.format);
        Tile {
            format: self.format,
            blocks: self.blocks,
            quants: &bytes_of(&self.quants)[index * bytes..][..bytes],
            scales: &self.scales[index * scales..][..scales],
        }
    }

    /// Dequantises one row, exactly as [`Format::dequantize`] does.
    ///
    /// # Errors
    /// [`DeviceError::Shape`] where there is no such row or `out` is not `k` long.
    pub fn read_row(&self, row: usize, out: &mut [f32]) -> Result<(), DeviceError> {
        let shape = |what, expected, got: usize| DeviceError::Shape {
            operation: "read_row",
            what,
            expected,
            got: got.to_string(),
        };
        if row >= self.n {
            return Err(shape("the row", format!("below {}", self.n), row));
        }
        if out.len() != self.k {
            return Err(shape("the output's length", self.k.to_string(), out.len()));
        }
        let (tile, lane) = (self.tile(row / TILE), row % TILE);
        for (b, out) in out.chunks_mut(BLOCK).enumerate() {
            let quants = &tile.quants[b * quant_bytes(self.format)..][..quant_bytes(self.format)];
            let scales = &tile.scales[b * scale_count(self.format)..][..scale_count(self.format)];
            read_block(self.format, quants, scales, lane, out);
        }
        Ok(())
    }
}

fn pack_row(format: Format, source: &[u8], lane: usize, quants: &mut [u8], scales: &mut [f16]) {
    let scale = |bytes: &[u8], at: usize| f16::from_le_bytes([bytes[at], bytes[at + 1]]);
    let element_bytes = match format {
        Format::F32 => 4,
        Format::F16 | Format::Bf16 => 2,
        Format::Q8_0 | Format::Q4_0 | Format::Q4_1 => {
            let header = if format == Format::Q4_1 { 4 } else { 2 };
            let blocks = source.chunks_exact(format.block_bytes());
            let packed = quants.chunks_exact_mut(quant_bytes(format)).zip(scales.chunks_exact_mut(scale_count(format)));
            for (source, (quants, scales)) in blocks.zip(packed) {
                scales[lane] = scale(source, 0);
                if format == Format::Q4_1 {
                    scales[TILE + lane] = scale(source, 2);
                }
                for (group, bytes) in source[header..].chunks_exact(4).enumerate() {
                    quants[(group * TILE + lane) * 4..][..4].copy_from_slice(bytes);
                }
            }
            return;
        }
    };
    for (i, bytes) in source.chunks_exact(element_bytes).enumerate() {
        quants[(i * TILE + lane) * element_bytes..][..element_bytes].copy_from_slice(bytes);
    }
}

/// Dequantises up to 32 elements of one row of a tile.
fn read_block(format: Format, quants: &[u8], scales: &[f16], lane: usize, out: &mut [f32]) {
    let byte = |element: usize| quants[((element / 4) * TILE + lane) * 4 + element % 4];
    let nibble = |element: usize| f32::from(if element < 16 { byte(element) & 15 } else { byte(element - 16) >> 4 });
    for (i, value) in out.iter_mut().enumerate() {
        *value = match format {
            Format::F32 => {
                let at = (i * TILE + lane) * 4;
                f32::from_le_bytes([quants[at], quants[at + 1], quants[at + 2], quants[at + 3]])
            }
            Format::F16 => {
                let at = (i * TILE + lane) * 2;
                f16::from_le_bytes([quants[at], quants[at + 1]]).to_f32()
            }
            Format::Bf16 => {
                let at = (i * TILE + lane) * 2;
                bf16::from_le_bytes([quants[at], quants[at + 1]]).to_f32()
            }
            Format::Q8_0 => scales[lane].to_f32() * f32::from(byte(i).cast_signed()),
            Format::Q4_0 => scales[lane].to_f32() * (nibble(i) - 8.0),
            Format::Q4_1 => scales[lane].to_f32() * nibble(i) + scales[TILE + lane].to_f32(),
        };
    }
}

fn bytes_of(lines: &[Line]) -> &[u8] {
    // SAFETY: `Line` is `repr(C)` over `[u8; 64]` with alignment 64, so it has no padding and every byte is initialised.
    unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), size_of_val(lines)) }
}

fn bytes_of_mut(lines: &mut [Line]) -> &mut [u8] {
    // SAFETY: as in `bytes_of`; the slice is borrowed mutably, and any bytes make a valid `Line`.
    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), size_of_val(lines)) }
}
