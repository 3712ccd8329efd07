//! Weight formats: how GGUF lays out a row of a matrix, and what its bytes mean exactly.
//!
//! Three plain formats and three of 32-element blocks. [`Format::dequantize`] is the definition that
//! every kernel is tested against; kernels never call it, they read their own packed layout
//! (`cpu/pack.rs`). The numeric type ids of GGUF files belong to the model reader.

use half::{bf16, f16};

/// Elements in a block of the quantised formats, and the step in which all kernels walk a row.
pub const BLOCK: usize = 32;

/// How the elements of a matrix are stored. Little endian everywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// 32-bit floats.
    F32,
    /// 16-bit floats of 11 significant bits.
    F16,
    /// 16-bit floats of 8 significant bits, with F32's exponents: the upper half of an F32.
    Bf16,
    /// Blocks of `d: f16, q: [i8; 32]`; an element is `d·q`.
    Q8_0,
    /// Blocks of `d: f16, nibbles: [u8; 16]`; an element is `d·(q - 8)`. Byte i holds element i in its
    /// low half and element i + 16 in its high half.
    Q4_0,
    /// Blocks of `d: f16, m: f16, nibbles: [u8; 16]`; an element is `d·q + m`, nibbles as in Q4_0.
    Q4_1,
}

impl Format {
    /// All formats.
    pub const ALL: [Format; 6] = [Format::F32, Format::F16, Format::Bf16, Format::Q8_0, Format::Q4_0, Format::Q4_1];

    /// Elements that are stored together: a row holds a multiple of this.
    pub const fn block_elements(self) -> usize {
        match self {
            Format::F32 | Format::F16 | Format::Bf16 => 1,
            Format::Q8_0 | Format::Q4_0 | Format::Q4_1 => BLOCK,
        }
    }

    /// Bytes of one block of [`Format::block_elements`].
    pub const fn block_bytes(self) -> usize {
        match self {
            Format::F32 => 4,
            Format::F16 | Format::Bf16 => 2,
            Format::Q8_0 => 2 + 32,
            Format::Q4_0 => 2 + 16,
            Format::Q4_1 => 4 + 16,
        }
    }

    /// Bytes of a row of `k` elements; `None` where `k` is not a multiple of the block or the size overflows.
    pub const fn row_bytes(self, k: usize) -> Option<usize> {
        if !k.is_multiple_of(self.block_elements()) {
            return None;
        }
        (k / self.block_elements()).checked_mul(self.block_bytes())
    }

    /// Turns stored elements into f32, exactly as the format defines them: the product and, for Q4_1, the
    /// sum are rounded once each to f32.
    ///
    /// Returns false, and leaves `out` alone, where `bytes` is not exactly `out.len()` elements.
    pub fn dequantize(self, bytes: &[u8], out: &mut [f32]) -> bool {
        if self.row_bytes(out.len()) != Some(bytes.len()) {
            return false;
        }
        match self {
            Format::F32 => {
                for (value, bytes) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                    *value = f32::from_le_bytes(*bytes);
                }
            }
            Format::F16 => {
                for (value, bytes) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *value = f16::from_le_bytes(*bytes).to_f32();
                }
            }
            Format::Bf16 => {
                for (value, bytes) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *value = bf16::from_le_bytes(*bytes).to_f32();
                }
            }
            Format::Q8_0 => blocks::<34>(bytes, out, |block, out| {
                let d = f16::from_le_bytes([block[0], block[1]]).to_f32();
                for (value, &q) in out.iter_mut().zip(&block[2..]) {
                    *value = d * f32::from(q.cast_signed());
                }
            }),
            Format::Q4_0 => blocks::<18>(bytes, out, |block, out| {
                let d = f16::from_le_bytes([block[0], block[1]]).to_f32();
                nibbles(&block[2..], out, |q| d * (q - 8.0));
            }),
            Format::Q4_1 => blocks::<20>(bytes, out, |block, out| {
                let d = f16::from_le_bytes([block[0], block[1]]).to_f32();
                let m = f16::from_le_bytes([block[2], block[3]]).to_f32();
                nibbles(&block[4..], out, |q| d * q + m);
            }),
        }
        true
    }
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Format::F32 => "F32",
            Format::F16 => "F16",
            Format::Bf16 => "BF16",
            Format::Q8_0 => "Q8_0",
            Format::Q4_0 => "Q4_0",
            Format::Q4_1 => "Q4_1",
        })
    }
}

fn blocks<const BYTES: usize>(bytes: &[u8], out: &mut [f32], decode: impl Fn(&[u8; BYTES], &mut [f32; BLOCK])) {
    for (block, out) in bytes.as_chunks::<BYTES>().0.iter().zip(out.as_chunks_mut::<BLOCK>().0) {
        decode(block, out);
    }
}

fn nibbles(bytes: &[u8], out: &mut [f32; BLOCK], element: impl Fn(f32) -> f32) {
    for (i, &byte) in bytes.iter().enumerate() {
        out[i] = element(f32::from(byte & 15));
        out[i + BLOCK / 2] = element(f32::from(byte >> 4));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_mean_what_gguf_says() {
        let one_and_half = f16::from_f32(1.5).to_le_bytes();
        let minus_two = f16::from_f32(-2.0).to_le_bytes();
        let mut out = [0.0; 32];

        let halves = [0x80, 0x3F, 0x01, 0xC0, 0x7F, 0x7F];
        assert!(Format::Bf16.dequantize(&halves, &mut out[..3]));
        assert_eq!(out[..3], [1.0, -2.0 - 1.0 / 64.0, f32::from_bits(0x7F7F_0000)]);

        let mut q8 = vec![0; 34];
        q8[..2].copy_from_slice(&one_and_half);
        q8[2] = (-128i8).cast_unsigned();
        q8[33] = 127;
        assert!(Format::Q8_0.dequantize(&q8, &mut out));
        assert_eq!((out[0], out[1], out[31]), (-192.0, 0.0, 190.5));

        let mut q4 = vec![0; 18];
        q4[..2].copy_from_slice(&one_and_half);
        q4[2] = 0xF1;
        assert!(Format::Q4_0.dequantize(&q4, &mut out));
        assert_eq!((out[0], out[16], out[1], out[17]), (-10.5, 10.5, -12.0, -12.0));

        let mut q4 = vec![0; 20];
        q4[..2].copy_from_slice(&one_and_half);
        q4[2..4].copy_from_slice(&minus_two);
        q4[19] = 0x2F;
        assert!(Format::Q4_1.dequantize(&q4, &mut out));
        assert_eq!((out[0], out[15], out[31]), (-2.0, 20.5, 1.0));
    }

    #[test]
    fn lengths_that_do_not_fit_are_refused() {
        for format in Format::ALL {
            let bytes = vec![0; format.row_bytes(64).unwrap()];
            assert!(format.dequantize(&bytes, &mut [0.0; 64]));
            assert!(!format.dequantize(&bytes, &mut [0.0; 32]));
            assert!(!format.dequantize(&bytes[1..], &mut [0.0; 64]));
        }
        assert_eq!(Format::Q4_1.row_bytes(33), None);
        assert_eq!(Format::F32.row_bytes(usize::MAX), None);
    }
}
