//! A tile times a panel with 8-bit dot products: `vpdpbusd` adds 4 products of unsigned weights and signed
//! activations to each 32-bit lane, exactly.
//!
//! Weights must be unsigned: nibbles are, bytes of Q8_0 become so by flipping their sign bit (w + 128). The
//! sums start at −8·Σq (Q4_0) or −128·Σq (Q8_0), which undoes the offset. A panel's 32-bit sums and its f32
//! accumulators stay in registers, which is what bounds its rows.
//!
//! 512 bits take the 16 rows of a tile at once; 256 bits take them in two halves and come in two encodings of
//! the same instruction, AVX-VNNI and AVX-512 VL. The second exists for tests, on processors that lack the first.

#![allow(
    clippy::needless_range_loop,
    reason = "iterators over arrays of vectors are library code without the features, and stay calls"
)]

use std::arch::x86_64::*;

use crate::cpu::pack::{TILE, Tile, quant_bytes};
use crate::cpu::quantize::{Panel, ROW_WORDS};
use crate::cpu::tile::Lanes;
use crate::cpu::tile_avx2::{self, BF16, F16, F32};
use crate::format::{BLOCK, Format};

const Q4_0: usize = 0;
const Q4_1: usize = 1;
const Q8_0: usize = 2;

/// Calls a kernel that is generic over the panel's rows and the format.
macro_rules! by_rows {
    ($kernel:ident, $format:expr, $tile:ident, $panel:ident, $out:ident, $($rows:literal)*) => {
        match $panel.rows {
            // SAFETY: the caller's promise, and the number of rows is the panel's.
            $($rows => unsafe { $kernel::<$rows, { $format }>($tile, $panel, $out) },)*
            rows => assert!(rows == 0, "a panel has more rows than there are registers"),
        }
    };
}

/// The AVX-512 variant of [`crate::cpu::tile::multiply`].
///
/// # Safety
/// The processor has AVX-512 F, BW, VL, DQ and VNNI, and tile, panel and output have passed the checks of `multiply`.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
pub(super) unsafe fn multiply_512(tile: &Tile<'_>, panel: &Panel<'_>, out: &mut [Lanes]) {
    match tile.format {
        Format::Q4_0 => by_rows!(quantized_512, Q4_0, tile, panel, out, 1 2 3 4 5 6 7 8 9 10 11 12),
        Format::Q4_1 => by_rows!(quantized_512, Q4_1, tile, panel, out, 1 2 3 4 5 6 7 8 9 10 11 12),
        Format::Q8_0 => by_rows!(quantized_512, Q8_0, tile, panel, out, 1 2 3 4 5 6 7 8 9 10 11 12),
        Format::F16 => by_rows!(plain_512, F16, tile, panel, out, 1 2 3 4 5 6 7 8 9 10 11 12),
        Format::Bf16 => by_rows!(plain_512, BF16, tile, panel, out, 1 2 3 4 5 6 7 8 9 10 11 12),
        Format::F32 => by_rows!(plain_512, F32, tile, panel, out, 1 2 3 4 5 6 7 8 9 10 11 12),
    }
}

/// Q4_0, Q4_1 and Q8_0 for panels of M rows, 16 output rows a register.
///
/// # Safety
/// As for [`multiply_512`], with a tile of that format and a panel of M rows.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
#[inline(never)]
unsafe fn quantized_512<const M: usize, const FORMAT: usize>(tile: &Tile<'_>, panel: &Panel<'_>, out: &mut [Lanes]) {
    let low = _mm512_set1_epi8(15);
    let flip = _mm512_set1_epi8(-128);
    let mut acc = [_mm512_setzero_ps(); M];
    for b in 0..tile.blocks {
        // SAFETY: block b is below `tile.blocks`, for which quants, scales and panel were checked: 4 or 8 loads of
        // 64 bytes, 16 or 32 scales, M times 8 groups and 4 sums.
        unsafe {
            let words = panel.quantized.as_ptr().add(b * M * ROW_WORDS);
            let word = |at: usize| words.add(at).read();
            let mut sums = [_mm512_setzero_si512(); M];
            if FORMAT != Q4_1 {
                let correction = if FORMAT == Q4_0 { 10 } else { 11 };
                for r in 0..M {
                    sums[r] = _mm512_set1_epi32(word(M * correction + r).cast_signed());
                }
            }
            if FORMAT == Q8_0 {
                let quants = tile.quants.as_ptr().add(b * quant_bytes(Format::Q8_0));
                for g in 0..8 {
                    let w = _mm512_xor_si512(_mm512_load_si512(quants.add(g * 64).cast()), flip);
                    for r in 0..M {
                        sums[r] = _mm512_dpbusd_epi32(sums[r], w, _mm512_set1_epi32(word(r * 8 + g).cast_signed()));
                    }
                }
            } else {
                let quants = tile.quants.as_ptr().add(b * quant_bytes(Format::Q4_0));
                for g in 0..4 {
                    let packed = _mm512_load_si512(quants.add(g * 64).cast());
                    let lower = _mm512_and_si512(packed, low);
                    let upper = _mm512_and_si512(_mm512_srli_epi16::<4>(packed), low);
                    for r in 0..M {
                        sums[r] = _mm512_dpbusd_epi32(sums[r], lower, _mm512_set1_epi32(word(r * 8 + g).cast_signed()));
                    }
                    for r in 0..M {
                        sums[r] =
                            _mm512_dpbusd_epi32(sums[r], upper, _mm512_set1_epi32(word(r * 8 + g + 4).cast_signed()));
                    }
                }
            }
            let stride = if FORMAT == Q4_1 { 2 * TILE } else { TILE };
            let scales = tile.scales.as_ptr().add(b * stride);
            let d = _mm512_cvtph_ps(_mm256_loadu_si256(scales.cast()));
            let minima = if FORMAT == Q4_1 { _mm512_cvtph_ps(_mm256_loadu_si256(scales.add(TILE).cast())) } else { d };
            for r in 0..M {
                let scale = _mm512_set1_ps(f32::from_bits(word(M * 8 + r)));
                acc[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[r]), _mm512_mul_ps(d, scale), acc[r]);
                if FORMAT == Q4_1 {
                    acc[r] = _mm512_fmadd_ps(minima, _mm512_set1_ps(f32::from_bits(word(M * 9 + r))), acc[r]);
                }
            }
        }
    }
    for r in 0..M {
        // SAFETY: the output of a row is 16 floats.
        unsafe { _mm512_storeu_ps(out[r].as_mut_ptr(), acc[r]) };
    }
}

/// The plain formats for panels of M rows, 16 output rows a register.
///
/// # Safety
/// As for [`multiply_512`], with a tile of that format and a panel of M rows.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
#[inline(never)]
unsafe fn plain_512<const M: usize, const FORMAT: usize>(tile: &Tile<'_>, panel: &Panel<'_>, out: &mut [Lanes]) {
    let mut acc = [_mm512_setzero_ps(); M];
    for b in 0..tile.blocks {
        let mut part = [_mm512_setzero_ps(); M];
        // SAFETY: block b is below `tile.blocks`, for which quants and panel were checked: 32 times 16 elements and
        // M times 32 activations.
        unsafe {
            let element = if FORMAT == F32 { 4 } else { 2 };
            let weights = tile.quants.as_ptr().add(b * BLOCK * TILE * element);
            let values = panel.plain.as_ptr().add(b * M * BLOCK);
            for i in 0..BLOCK {
                let at = weights.add(i * TILE * element);
                let w = match FORMAT {
                    F16 => _mm512_cvtph_ps(_mm256_loadu_si256(at.cast())),
                    BF16 => {
                        let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(at.cast()));
                        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
                    }
                    _ => _mm512_loadu_ps(at.cast()),
                };
                for r in 0..M {
                    part[r] = _mm512_fmadd_ps(w, _mm512_set1_ps(values.add(r * BLOCK + i).read()), part[r]);
                }
            }
        }
        for r in 0..M {
            acc[r] = _mm512_add_ps(acc[r], part[r]);
        }
    }
    for r in 0..M {
        // SAFETY: the output of a row is 16 floats.
        unsafe { _mm512_storeu_ps(out[r].as_mut_ptr(), acc[r]) };
    }
}

/// The 256-bit variants: one body, two encodings of the dot product.
macro_rules! variant_256 {
    ($(#[$attribute:meta])* $multiply:ident, $quantized:ident, $features:literal, $dot:ident) => {
        $(#[$attribute])*
        #[target_feature(enable = $features)]
        pub(super) unsafe fn $multiply(tile: &Tile<'_>, panel: &Panel<'_>, out: &mut [Lanes]) {
            use tile_avx2::plain;
            match tile.format {
                Format::Q4_0 => by_rows!($quantized, Q4_0, tile, panel, out, 1 2 3 4 5 6),
                Format::Q4_1 => by_rows!($quantized, Q4_1, tile, panel, out, 1 2 3 4 5 6),
                Format::Q8_0 => by_rows!($quantized, Q8_0, tile, panel, out, 1 2 3 4 5 6),
                Format::F16 => by_rows!(plain, F16, tile, panel, out, 1 2 3 4 5 6),
                Format::Bf16 => by_rows!(plain, BF16, tile, panel, out, 1 2 3 4 5 6),
                Format::F32 => by_rows!(plain, F32, tile, panel, out, 1 2 3 4 5 6),
            }
        }

        /// Q4_0, Q4_1 and Q8_0 for panels of M rows, 8 output rows a register.
        ///
        /// # Safety
        /// As for the function above, with a tile of that format and a panel of M rows.
        #[target_feature(enable = $features)]
#[inline(never)]
        unsafe fn $quantized<const M: usize, const FORMAT: usize>(
            tile: &Tile<'_>,
            panel: &Panel<'_>,
            out: &mut [Lanes],
        ) {
            let low = _mm256_set1_epi8(15);
            let flip = _mm256_set1_epi8(-128);
            for half in 0..2 {
                let mut acc = [_mm256_setzero_ps(); M];
                for b in 0..tile.blocks {
                    // SAFETY: block b is below `tile.blocks`, for which quants, scales and panel were checked: 4 or
                    // 8 loads of 32 bytes at steps of 64, 8 scales and minima of this half, M times 8 groups and 4 sums.
                    unsafe {
                        let words = panel.quantized.as_ptr().add(b * M * ROW_WORDS);
                        let word = |at: usize| words.add(at).read();
                        let group = |r: usize, g: usize| _mm256_set1_epi32(word(r * 8 + g).cast_signed());
                        let mut sums = [_mm256_setzero_si256(); M];
                        if FORMAT != Q4_1 {
                            let correction = if FORMAT == Q4_0 { 10 } else { 11 };
                            for r in 0..M {
                                sums[r] = _mm256_set1_epi32(word(M * correction + r).cast_signed());
                            }
                        }
                        if FORMAT == Q8_0 {
                            let quants = tile.quants.as_ptr().add(b * quant_bytes(Format::Q8_0) + half * 32);
                            for g in 0..8 {
                                let w = _mm256_xor_si256(_mm256_load_si256(quants.add(g * 64).cast()), flip);
                                for r in 0..M {
                                    sums[r] = $dot(sums[r], w, group(r, g));
                                }
                            }
                        } else {
                            let quants = tile.quants.as_ptr().add(b * quant_bytes(Format::Q4_0) + half * 32);
                            for g in 0..4 {
                                let packed = _mm256_load_si256(quants.add(g * 64).cast());
                                let lower = _mm256_and_si256(packed, low);
                                let upper = _mm256_and_si256(_mm256_srli_epi16::<4>(packed), low);
                                for r in 0..M {
                                    sums[r] = $dot($dot(sums[r], lower, group(r, g)), upper, group(r, g + 4));
                                }
                            }
                        }
                        let stride = if FORMAT == Q4_1 { 2 * TILE } else { TILE };
                        let scales = tile.scales.as_ptr().add(b * stride + half * 8);
                        let d = _mm256_cvtph_ps(_mm_loadu_si128(scales.cast()));
                        let minima =
                            if FORMAT == Q4_1 { _mm256_cvtph_ps(_mm_loadu_si128(scales.add(TILE).cast())) } else { d };
                        for r in 0..M {
                            let scale = _mm256_set1_ps(f32::from_bits(word(M * 8 + r)));
                            acc[r] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums[r]), _mm256_mul_ps(d, scale), acc[r]);
                            if FORMAT == Q4_1 {
                                let sum = _mm256_set1_ps(f32::from_bits(word(M * 9 + r)));
                                acc[r] = _mm256_fmadd_ps(minima, sum, acc[r]);
                            }
                        }
                    }
                }
                for r in 0..M {
                    // SAFETY: 8 of the 16 lanes from `half * 8`.
                    unsafe { _mm256_storeu_ps(out[r].as_mut_ptr().add(half * 8), acc[r]) };
                }
            }
        }
    };
}

variant_256!(
    /// The AVX-VNNI variant of [`crate::cpu::tile::multiply`].
    ///
    /// # Safety
    /// The processor has AVX2, FMA, F16C and AVX-VNNI, and tile, panel and output have passed the checks of `multiply`.
    multiply_256, quantized_256, "avx2,fma,f16c,avxvnni", _mm256_dpbusd_avx_epi32
);

#[cfg(test)]
variant_256!(
    /// The 256-bit variant in AVX-512's encoding.
    ///
    /// # Safety
    /// The processor has AVX-512 VL and VNNI, and tile, panel and output have passed the checks of `multiply`.
    multiply_256_vl, quantized_256_vl, "avx2,fma,f16c,avx512f,avx512vl,avx512vnni", _mm256_dpbusd_epi32
);
