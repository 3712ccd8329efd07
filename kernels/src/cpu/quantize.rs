//! Activations as the linear kernels read them: quantised to 8 bits by blocks of 32, or plain f32.
//!
//! A block x of a row becomes `q = round(x·127/a)`, ties to even, with `a = max |x|`, and the scale `a/127`.
//! The kernels also want the sum of q: times the scale for the minima of Q4_1, and times −8 and −128 to undo
//! the offsets of Q4_0 and Q8_0, whose elements they take as unsigned. A block with a value that is not
//! finite has a NaN for its scale, so that every output that depends on it is NaN; one whose largest value is
//! below [`SMALLEST`] is zero.
//!
//! Rows stand in *panels*, the rows that one call of a kernel takes together. A panel of m rows holds, by
//! block: 8 groups of 4 q (as little-endian u32) for each row, then m scales, m scaled sums, m sums times −8, and
//! m sums times −128. Plain panels hold 32 f32 for each row by block. A row's numbers do not depend on its panel.

use crate::cpu::disjoint::Disjoint;
use crate::cpu::isa::{Detected, Isa};
use crate::format::{BLOCK, Format};
use crate::pool::Pool;

/// u32 words that one row takes in one block of a quantised panel.
pub(crate) const ROW_WORDS: usize = 12;

/// Blocks whose largest magnitude is below this are taken as zero: 127 over it must be finite.
const SMALLEST: f32 = 1e-30;

/// Rows that one thread prepares at a time.
const ROWS_AN_ITEM: usize = 4;

/// Activations `[rows, k]` of one operation, in panels. Buffers are kept from operation to operation.
#[derive(Default)]
pub(crate) struct Activations {
    rows: usize,
    blocks: usize,
    panel_rows_max: usize,
    has_quantized: bool,
    has_plain: bool,
    quantized: Vec<u32>,
    plain: Vec<f32>,
    scratch: Vec<f32>,
}

/// Where rows come from.
#[derive(Clone, Copy)]
pub(crate) enum Source<'a> {
    /// They lie somewhere: row → `[k]`.
    Stored(&'a (dyn Fn(usize) -> &'a [f32] + Sync)),
    /// They are computed: (row, output `[k]`).
    Computed(&'a (dyn Fn(usize, &mut [f32]) + Sync)),
}

/// Some rows of activations, side by side.
#[derive(Clone, Copy)]
pub(crate) struct Panel<'a> {
    /// The first row of the panel.
    pub(crate) first: usize,
    /// Rows in the panel, m.
    pub(crate) rows: usize,
    /// Blocks of 32 elements of k.
    pub(crate) blocks: usize,
    /// `blocks * m * ROW_WORDS` words, or empty if no quantised matrix reads these activations.
    pub(crate) quantized: &'a [u32],
    /// `blocks * m * 32` floats, or empty if no plain matrix reads them.
    pub(crate) plain: &'a [f32],
}

/// One quantised block.
struct Quantized {
    /// 8 groups of 4.
    groups: [u32; BLOCK / 4],
    scale: f32,
    sum: i32,
}

/// Whether matrices of a format read quantised activations.
pub(crate) fn reads_quantized(format: Format) -> bool {
    !matches!(format, Format::F32 | Format::F16 | Format::Bf16)
}

impl Activations {
    /// Prepares `rows` rows of `k` for matrices of these formats.
    pub(crate) fn prepare(
        &mut self,
        pool: &Pool,
        isa: Detected,
        (rows, k): (usize, usize),
        formats: &[Format],
        source: Source<'_>,
    ) {
        let blocks = k.div_ceil(BLOCK);
        let padded = blocks * BLOCK;
        let items = rows.div_ceil(ROWS_AN_ITEM);
        self.rows = rows;
        self.blocks = blocks;
        self.panel_rows_max = panel_rows_max(isa.isa());
        self.has_quantized = formats.iter().any(|&format| reads_quantized(format));
        self.has_plain = !formats.iter().all(|&format| reads_quantized(format));
        if self.has_quantized {
            grow(&mut self.quantized, rows * blocks * ROW_WORDS);
        }
        if self.has_plain {
            grow(&mut self.plain, rows * padded);
        }
        grow(&mut self.scratch, items * padded);
        let out = Outputs {
            isa,
            panels: self.panels(),
            blocks,
            quantized: self.has_quantized.then(|| Disjoint::new(&mut self.quantized)),
            plain: self.has_plain.then(|| Disjoint::new(&mut self.plain)),
        };
        let scratch = Disjoint::new(&mut self.scratch);
        pool.for_each(items, &|item| {
            // SAFETY: every item has its own range of the scratch.
            let scratch = unsafe { scratch.part(item * padded..(item + 1) * padded) };
            for row in item * ROWS_AN_ITEM..rows.min((item + 1) * ROWS_AN_ITEM) {
                match source {
                    Source::Stored(row_of) if k == padded => {
                        // SAFETY: every item has rows of its own.
                        unsafe { out.write(row, row_of(row)) };
                        continue;
                    }
                    Source::Stored(row_of) => scratch[..k].copy_from_slice(row_of(row)),
                    Source::Computed(compute) => compute(row, &mut scratch[..k]),
                }
                scratch[k..].fill(0.0);
                // SAFETY: as above.
                unsafe { out.write(row, scratch) };
            }
        });
    }

    /// Rows that were prepared.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Blocks of k that were prepared.
    pub(crate) fn blocks(&self) -> usize {
        self.blocks
    }

    /// How many panels there are.
    pub(crate) fn panel_count(&self) -> usize {
        self.panels().count
    }

    /// One panel, below [`Activations::panel_count`].
    pub(crate) fn panel(&self, index: usize) -> Panel<'_> {
        let range = self.panels().range(index);
        let words = self.blocks * ROW_WORDS;
        let floats = self.blocks * BLOCK;
        Panel {
            first: range.start,
            rows: range.len(),
            blocks: self.blocks,
            quantized: if self.has_quantized { &self.quantized[range.start * words..range.end * words] } else { &[] },
            plain: if self.has_plain { &self.plain[range.start * floats..range.end * floats] } else { &[] },
        }
    }

    fn panels(&self) -> Panels {
        Panels::new(self.rows, self.panel_rows_max)
    }
}

/// The buffers of an operation's activations while its rows are written.
struct Outputs<'a> {
    isa: Detected,
    panels: Panels,
    blocks: usize,
    quantized: Option<Disjoint<'a, u32>>,
    plain: Option<Disjoint<'a, f32>>,
}

impl Outputs<'_> {
    /// Writes one row, whole blocks of it, to its places in its panel.
    ///
    /// # Safety
    /// No other thread writes the same row.
    unsafe fn write(&self, row: usize, values: &[f32]) {
        let panel = self.panels.containing(row);
        let (m, at) = (panel.len(), row - panel.start);
        for (b, values) in values.as_chunks::<BLOCK>().0.iter().enumerate() {
            let block_start = panel.start * self.blocks + b * m;
            if let Some(quantized) = &self.quantized {
                let block = quantize_block(self.isa, values);
                let start = block_start * ROW_WORDS;
                // SAFETY: these words belong to this row and block alone, and the caller alone has the row.
                let groups = unsafe { quantized.part(start + at * 8..start + at * 8 + 8) };
                groups.copy_from_slice(&block.groups);
                let sums = [
                    block.scale.to_bits(),
                    (block.scale * block.sum as f32).to_bits(),
                    (-8 * block.sum).cast_unsigned(),
                    (-128 * block.sum).cast_unsigned(),
                ];
                for (i, sum) in sums.into_iter().enumerate() {
                    let place = start + (8 + i) * m + at;
                    // SAFETY: as above.
                    let to = unsafe { quantized.part(place..place + 1) };
                    to[0] = sum;
                }
            }
            if let Some(plain) = &self.plain {
                let start = (block_start + at) * BLOCK;
                // SAFETY: as above.
                unsafe { plain.part(start..start + BLOCK) }.copy_from_slice(values);
            }
        }
    }
}

/// Makes a buffer at least this long; it never shrinks, so that operations in turn do not clear it again.
fn grow<T: Clone + Default>(buffer: &mut Vec<T>, len: usize) {
    if buffer.len() < len {
        buffer.resize(len, T::default());
    }
}

/// The most rows of a panel: what accumulators fit the registers.
pub(crate) fn panel_rows_max(isa: Isa) -> usize {
    match isa {
        Isa::Avx2 => 4,
        Isa::Scalar | Isa::AvxVnni => 6,
        Isa::Avx512Vnni => 12,
    }
}

/// How rows are cut into panels: as few as possible, of sizes that differ by at most one.
#[derive(Clone, Copy)]
struct Panels {
    count: usize,
    /// Rows of a panel; the first `longer` ones have one more.
    rows: usize,
    longer: usize,
}

impl Panels {
    fn new(rows: usize, rows_max: usize) -> Panels {
        let count = rows.div_ceil(rows_max.max(1));
        Panels { count, rows: rows.checked_div(count).unwrap_or(0), longer: rows.checked_rem(count).unwrap_or(0) }
    }

    fn range(self, index: usize) -> std::ops::Range<usize> {
        let start = index * self.rows + index.min(self.longer);
        start..start + self.rows + usize::from(index < self.longer)
    }

    fn containing(self, row: usize) -> std::ops::Range<usize> {
        let in_longer = self.longer * (self.rows + 1);
        let index = if row < in_longer { row / (self.rows + 1) } else { self.longer + (row - in_longer) / self.rows };
        self.range(index)
    }
}

fn quantize_block(isa: Detected, values: &[f32; BLOCK]) -> Quantized {
    #[cfg(target_arch = "x86_64")]
    if isa.isa() != Isa::Scalar {
        // SAFETY: every detected instruction set but scalar includes AVX2.
        return unsafe { quantize_block_avx2(values) };
    }
    let _ = isa;
    quantize_block_scalar(values)
}

/// The scale and its inverse of a block whose largest magnitude has these bits. Magnitudes are compared as
/// integers, which orders them like floats and puts infinities and NaN above all.
#[inline(always)]
fn scale_of(magnitude: u32) -> (f32, f32) {
    let largest = f32::from_bits(magnitude);
    if !largest.is_finite() {
        (f32::NAN, 0.0)
    } else if largest >= SMALLEST {
        (largest / 127.0, 127.0 / largest)
    } else {
        (0.0, 0.0)
    }
}

/// Adding and subtracting it rounds a float of magnitude below 2²² to an integer, ties to even.
const ROUNDER: f32 = 1.5 * (1 << 23) as f32;

/// Replaces a row by what quantising it leaves: `x − q·a/127`, block by block, at most half a step of 8 bits.
/// Plain operations that every instruction set has in vectors: a call of the library for each element would
/// cost more than the product that it is for.
pub(crate) fn keep_what_is_left(row: &mut [f32]) {
    for block in row.chunks_mut(BLOCK) {
        let magnitude = block.iter().fold(0, |most, value| value.abs().to_bits().max(most));
        let (scale, inverse) = scale_of(magnitude);
        for value in block {
            let q = (*value * inverse + ROUNDER) - ROUNDER;
            *value -= q * scale;
        }
    }
}

fn quantize_block_scalar(values: &[f32; BLOCK]) -> Quantized {
    let magnitude = values.iter().map(|value| value.abs().to_bits()).max().unwrap_or(0);
    let (scale, inverse) = scale_of(magnitude);
    let mut groups = [0; BLOCK / 4];
    let mut sum = 0;
    if inverse > 0.0 {
        for (group, values) in groups.iter_mut().zip(values.as_chunks::<4>().0) {
            let q = values.map(|value| (value * inverse).round_ties_even() as i8);
            sum += q.iter().map(|&q| i32::from(q)).sum::<i32>();
            *group = u32::from_le_bytes(q.map(i8::cast_unsigned));
        }
    }
    Quantized { groups, scale, sum }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn quantize_block_avx2(values: &[f32; BLOCK]) -> Quantized {
    use std::arch::x86_64::*;
    let (chunks, _) = values.as_chunks::<8>();
    let mut x = [_mm256_setzero_ps(); 4];
    let mut most = _mm256_setzero_si256();
    let bits = _mm256_set1_epi32(0x7FFF_FFFF);
    // Plain loops: library code that takes closures lacks the features, and would not be inlined.
    for (x, chunk) in x.iter_mut().zip(chunks) {
        // SAFETY: the chunk is 8 floats.
        *x = unsafe { _mm256_loadu_ps(chunk.as_ptr()) };
        most = _mm256_max_epu32(most, _mm256_and_si256(_mm256_castps_si256(*x), bits));
    }
    let most = _mm_max_epu32(_mm256_castsi256_si128(most), _mm256_extracti128_si256::<1>(most));
    let most = _mm_max_epu32(most, _mm_shuffle_epi32::<0b01_00_11_10>(most));
    let most = _mm_max_epu32(most, _mm_shuffle_epi32::<0b10_11_00_01>(most));
    let (scale, inverse) = scale_of(_mm_cvtsi128_si32(most).cast_unsigned());
    if inverse <= 0.0 {
        return Quantized { groups: [0; BLOCK / 4], scale, sum: 0 };
    }
    let inverse = _mm256_set1_ps(inverse);
    // The conversion rounds to even: no code of this process changes the rounding mode.
    let mut q = [_mm256_setzero_si256(); 4];
    for (q, x) in q.iter_mut().zip(x) {
        *q = _mm256_cvtps_epi32(_mm256_mul_ps(x, inverse));
    }
    let sum = _mm256_add_epi32(_mm256_add_epi32(q[0], q[1]), _mm256_add_epi32(q[2], q[3]));
    let sum = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256::<1>(sum));
    let sum = _mm_add_epi32(sum, _mm_shuffle_epi32::<0b01_00_11_10>(sum));
    let sum = _mm_add_epi32(sum, _mm_shuffle_epi32::<0b10_11_00_01>(sum));
    // Packing interleaves the 128-bit halves: groups come out as 0 2 4 6 1 3 5 7.
    let bytes = _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
    let bytes = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    let mut groups = [0; BLOCK / 4];
    // SAFETY: `groups` is 32 bytes.
    unsafe { _mm256_storeu_si256(groups.as_mut_ptr().cast(), bytes) };
    Quantized { groups, scale, sum: _mm_cvtsi128_si32(sum) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is left and what was kept are the row again, and what is left is at most half a step.
    #[test]
    fn what_is_left_is_at_most_half_a_step() {
        let row: Vec<f32> = (0..96).map(|i| ((i * 37 % 101) as f32 - 50.0) * 0.173).collect();
        let mut left = row.clone();
        keep_what_is_left(&mut left);
        for (block, left) in row.chunks(BLOCK).zip(left.chunks(BLOCK)) {
            let step = block.iter().fold(0.0f32, |most, value| most.max(value.abs())) / 127.0;
            assert!(left.iter().all(|left| left.abs() <= 0.5001 * step));
            for (value, left) in block.iter().zip(left) {
                let kept = (value - left) / step;
                assert!((kept - kept.round()).abs() <= 1e-3, "{kept} is no integer");
            }
        }
        assert!(left.iter().any(|left| *left != 0.0));
    }
}
