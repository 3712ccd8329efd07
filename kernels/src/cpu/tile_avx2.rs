//! A tile times a panel with AVX2, FMA and F16C: 8 output rows a register, two halves of a tile in turn.
//!
//! 4-bit weights: a nibble (0 to 15) times an 8-bit activation, two products added by `maddubs`, and all 8
//! groups of a block added in 16 bits: 16 products of at most 15·127 are 30,480, which 16 bits hold. So a block
//! unpacks into 8 registers that stay while the panel's rows go by, and one `madd` by ones widens it.
//!
//! Q8_0: `maddubs` wants an unsigned operand and saturates, so it gets |w| and the activation with w's sign:
//! two products of at most 128·127 are 32,512. That the other variants take w + 128 instead changes no bit: both
//! are exact.

#![allow(
    clippy::needless_range_loop,
    reason = "iterators over arrays of vectors are library code without the features, and stay calls"
)]

use std::arch::x86_64::*;

use crate::cpu::pack::{TILE, Tile, quant_bytes};
use crate::cpu::quantize::{Panel, ROW_WORDS};
use crate::cpu::tile::Lanes;
use crate::format::{BLOCK, Format};

const HALF: usize = TILE / 2;

/// The plain formats, as parameters of kernels.
pub(super) const F32: usize = 0;
pub(super) const F16: usize = 1;
pub(super) const BF16: usize = 2;

/// The AVX2 variant of [`crate::cpu::tile::multiply`].
///
/// # Safety
/// The processor has AVX2, FMA and F16C, and tile, panel and output have passed the checks of `multiply`.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn multiply(tile: &Tile<'_>, panel: &Panel<'_>, out: &mut [Lanes]) {
    macro_rules! by_rows {
        ($kernel:ident, $format:expr) => {
            // SAFETY: the caller's promise, and the number of rows is the panel's.
            unsafe {
                match panel.rows {
                    1 => $kernel::<1, { $format }>(tile, panel, out),
                    2 => $kernel::<2, { $format }>(tile, panel, out),
                    3 => $kernel::<3, { $format }>(tile, panel, out),
                    4 => $kernel::<4, { $format }>(tile, panel, out),
                    rows => assert!(rows == 0, "panels have at most 4 rows"),
                }
            }
        };
    }
    match tile.format {
        Format::Q4_0 => by_rows!(nibbles, 0),
        Format::Q4_1 => by_rows!(nibbles, 1),
        Format::Q8_0 => {
            // SAFETY: the caller's promise.
            unsafe { bytes(tile, panel, out) }
        }
        Format::F16 => by_rows!(plain, F16),
        Format::Bf16 => by_rows!(plain, BF16),
        Format::F32 => by_rows!(plain, F32),
    }
}

/// 8 scales (or minima) from place `at`.
///
/// # Safety
/// `scales` has 8 elements from `at`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn load_scales(scales: *const half::f16, at: usize) -> __m256 {
    // SAFETY: the caller's promise; `f16` is two bytes without padding.
    _mm256_cvtph_ps(unsafe { _mm_loadu_si128(scales.add(at).cast()) })
}

/// Q4_0 (`MINIMA` 0) and Q4_1 (1), for panels of M rows.
///
/// Both halves of a tile go along together, so that an activation is broadcast once for 16 output rows: with 4 rows
/// 8 sums of 16 bits, 4 registers of weights and the operands in flight are the 16 registers there are. The f32
/// accumulators are touched once a block and may lie in memory.
///
/// # Safety
/// As for [`multiply`], with a 4-bit tile of that format and a panel of M rows.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline(never)]
unsafe fn nibbles<const M: usize, const MINIMA: usize>(tile: &Tile<'_>, panel: &Panel<'_>, out: &mut [Lanes]) {
    let low = _mm256_set1_epi8(15);
    let ones = _mm256_set1_epi16(1);
    let mut acc = [[_mm256_setzero_ps(); 2]; M];
    for b in 0..tile.blocks {
        // SAFETY: block b is below `tile.blocks`, for which quants, scales and panel were checked: 8 loads of
        // 32 bytes in 256, 16 (or 32) scales of this block, M times 8 groups and 4 sums.
        unsafe {
            let quants = tile.quants.as_ptr().add(b * quant_bytes(Format::Q4_0));
            let words = panel.quantized.as_ptr().add(b * M * ROW_WORDS);
            let mut sums = [[_mm256_setzero_si256(); 2]; M];
            for g in 0..4 {
                let packed = [0, 1].map(|half| _mm256_load_si256(quants.add(g * 64 + half * 32).cast()));
                let lower = packed.map(|packed| _mm256_and_si256(packed, low));
                let upper = packed.map(|packed| _mm256_and_si256(_mm256_srli_epi16::<4>(packed), low));
                for r in 0..M {
                    for (weights, at) in [(lower, g), (upper, g + 4)] {
                        let group = _mm256_set1_epi32(words.add(r * 8 + at).read().cast_signed());
                        for half in 0..2 {
                            let products = _mm256_maddubs_epi16(weights[half], group);
                            sums[r][half] = _mm256_add_epi16(sums[r][half], products);
                        }
                    }
                }
            }
            let scales = tile.scales.as_ptr().add(b * (TILE + MINIMA * TILE));
            let d = [load_scales(scales, 0), load_scales(scales, HALF)];
            for r in 0..M {
                let scale = _mm256_set1_ps(f32::from_bits(words.add(M * 8 + r).read()));
                for half in 0..2 {
                    let mut s = _mm256_madd_epi16(sums[r][half], ones);
                    if MINIMA == 0 {
                        s = _mm256_add_epi32(s, _mm256_set1_epi32(words.add(M * 10 + r).read().cast_signed()));
                    }
                    let d = _mm256_mul_ps(d[half], scale);
                    acc[r][half] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(s), d, acc[r][half]);
                }
            }
            if MINIMA == 1 {
                let minima = [load_scales(scales, TILE), load_scales(scales, TILE + HALF)];
                for r in 0..M {
                    let sum = _mm256_set1_ps(f32::from_bits(words.add(M * 9 + r).read()));
                    for half in 0..2 {
                        acc[r][half] = _mm256_fmadd_ps(minima[half], sum, acc[r][half]);
                    }
                }
            }
        }
    }
    for r in 0..M {
        for half in 0..2 {
            // SAFETY: 8 of the 16 lanes from `half * 8`.
            unsafe { _mm256_storeu_ps(out[r].as_mut_ptr().add(half * HALF), acc[r][half]) };
        }
    }
}

/// Q8_0, for panels of any size, at most four rows at a time.
///
/// # Safety
/// As for [`multiply`], with a Q8_0 tile.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn bytes(tile: &Tile<'_>, panel: &Panel<'_>, out: &mut [Lanes]) {
    for (index, out) in out.chunks_mut(4).enumerate() {
        // SAFETY: the caller's promise; the chunk's rows are rows of the panel, from 4 times its index.
        unsafe {
            match out.len() {
                1 => bytes_of_rows::<1>(tile, panel, 4 * index, out),
                2 => bytes_of_rows::<2>(tile, panel, 4 * index, out),
                3 => bytes_of_rows::<3>(tile, panel, 4 * index, out),
                _ => bytes_of_rows::<4>(tile, panel, 4 * index, out),
            }
        }
    }
}

/// Q8_0, for M rows of a panel from row `first`.
///
/// # Safety
/// As for [`multiply`], with a Q8_0 tile, M outputs, and `first + M` rows in the panel.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline(never)]
unsafe fn bytes_of_rows<const M: usize>(tile: &Tile<'_>, panel: &Panel<'_>, first: usize, out: &mut [Lanes]) {
    let ones = _mm256_set1_epi16(1);
    for half in 0..2 {
        let mut acc = [_mm256_setzero_ps(); M];
        for b in 0..tile.blocks {
            // SAFETY: block b is below `tile.blocks`, for which quants, scales and panel were checked: 8 loads of
            // 32 bytes in 512, 8 scales of this block, 8 groups and 4 sums for each row of the panel.
            unsafe {
                let quants = tile.quants.as_ptr().add(b * quant_bytes(Format::Q8_0) + half * 32);
                let d = load_scales(tile.scales.as_ptr().add(b * TILE + half * HALF), 0);
                let words = panel.quantized.as_ptr().add(b * panel.rows * ROW_WORDS);
                let groups = words.add(first * 8);
                let scales = words.add(panel.rows * 8 + first);
                let mut sums = [_mm256_setzero_si256(); M];
                for g in 0..8 {
                    let w = _mm256_load_si256(quants.add(g * 64).cast());
                    let magnitude = _mm256_abs_epi8(w);
                    for r in 0..M {
                        let q = _mm256_set1_epi32(groups.add(r * 8 + g).read().cast_signed());
                        let products = _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(q, w));
                        sums[r] = _mm256_add_epi32(sums[r], _mm256_madd_epi16(products, ones));
                    }
                }
                for r in 0..M {
                    let scale = _mm256_set1_ps(f32::from_bits(scales.add(r).read()));
                    acc[r] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums[r]), _mm256_mul_ps(d, scale), acc[r]);
                }
            }
        }
        for r in 0..M {
            // SAFETY: 8 of the 16 lanes from `half * 8`.
            unsafe { _mm256_storeu_ps(out[r].as_mut_ptr().add(half * HALF), acc[r]) };
        }
    }
}

/// The plain formats, for panels of M rows. The 256-bit VNNI variant uses it too.
///
/// # Safety
/// As for [`multiply`], with a tile of that format and a panel of M rows.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline(never)]
pub(super) unsafe fn plain<const M: usize, const FORMAT: usize>(tile: &Tile<'_>, panel: &Panel<'_>, out: &mut [Lanes]) {
    for half in 0..2 {
        let mut acc = [_mm256_setzero_ps(); M];
        for b in 0..tile.blocks {
            let mut part = [_mm256_setzero_ps(); M];
            // SAFETY: block b is below `tile.blocks`, for which quants and panel were checked: 32 times 16 elements,
            // of which this half takes 8, and M times 32 activations.
            unsafe {
                let element = if FORMAT == F32 { 4 } else { 2 };
                let weights = tile.quants.as_ptr().add((b * BLOCK * TILE + half * HALF) * element);
                let values = panel.plain.as_ptr().add(b * M * BLOCK);
                for i in 0..BLOCK {
                    let at = weights.add(i * TILE * element);
                    let w = match FORMAT {
                        F16 => _mm256_cvtph_ps(_mm_loadu_si128(at.cast())),
                        BF16 => {
                            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(at.cast()));
                            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
                        }
                        _ => _mm256_loadu_ps(at.cast()),
                    };
                    for r in 0..M {
                        let value = _mm256_set1_ps(values.add(r * BLOCK + i).read());
                        part[r] = _mm256_fmadd_ps(w, value, part[r]);
                    }
                }
            }
            for r in 0..M {
                acc[r] = _mm256_add_ps(acc[r], part[r]);
            }
        }
        for r in 0..M {
            // SAFETY: 8 of the 16 lanes from `half * 8`.
            unsafe { _mm256_storeu_ps(out[r].as_mut_ptr().add(half * HALF), acc[r]) };
        }
    }
}
