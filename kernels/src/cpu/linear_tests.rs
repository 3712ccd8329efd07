//! What the linear layers promise: right within a derived bound, and the same bits on every instruction set,
//! for any number of threads, and whatever rows share the pass.
//!
//! Start at [`check`]; the bound is `reference.rs`'s.

use half::f16;
use proptest::prelude::*;

use super::isa::{Detected, Isa};
use super::linear;
use super::pack::Matrix;
use super::quantize::{Activations, Source};
use super::reference;
use crate::device::DeviceError;
use crate::format::{BLOCK, Format};
use crate::pool::Pool;

/// A small generator (splitmix64), so that data is the same in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// From -1 to 1.
    fn symmetric(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}

/// Bytes of a matrix: any quants at all, scales of ordinary size.
fn weights(format: Format, n: usize, k: usize, random: &mut Random) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..n * k / format.block_elements() {
        match format {
            Format::F32 => bytes.extend(random.symmetric().to_le_bytes()),
            Format::F16 => bytes.extend(f16::from_f32(random.symmetric()).to_le_bytes()),
            Format::Bf16 => bytes.extend(half::bf16::from_f32(random.symmetric()).to_le_bytes()),
            Format::Q8_0 | Format::Q4_0 | Format::Q4_1 => {
                let header = if format == Format::Q4_1 { 2 } else { 1 };
                for _ in 0..header {
                    bytes.extend(f16::from_f32(random.symmetric() / 16.0).to_le_bytes());
                }
                bytes.extend((0..format.block_bytes() - 2 * header).map(|_| random.next() as u8));
            }
        }
    }
    bytes
}

/// Activations with spikes, zero blocks, and blocks of one sign (whose integer sums are the largest).
fn activations(rows: usize, k: usize, random: &mut Random) -> Vec<f32> {
    let mut values: Vec<f32> = (0..rows * k).map(|_| random.symmetric()).collect();
    for block in values.chunks_mut(BLOCK) {
        match random.next() % 8 {
            0 => block.fill(0.0),
            1 => block[0] *= 1000.0,
            2 => block.fill(-3.0),
            3 => block.fill(0.7),
            _ => {}
        }
    }
    values
}

fn multiply(isa: Isa, threads: usize, matrix: &Matrix, values: &[f32]) -> Vec<f32> {
    let isa = Detected::new(isa).expect("an available instruction set");
    let pool = Pool::new(threads);
    let (rows, k, n) = (values.len() / matrix.k(), matrix.k(), matrix.n());
    let mut prepared = Activations::default();
    prepared.prepare(&pool, isa, (rows, k), &[matrix.format()], Source::Stored(&|row| &values[row * k..][..k]));
    let out = std::sync::Mutex::new(vec![f32::NAN; rows * n]);
    linear::run(&pool, isa, &prepared, &[[matrix]], &|place, [lanes]| {
        let start = place.row * n;
        let mut out = out.lock().expect("no sink panics");
        let out = &mut out[start + place.columns.start..start + place.columns.end];
        assert!(out.iter().all(|value| value.is_nan()), "an output came twice");
        out.copy_from_slice(&lanes[..place.columns.len()]);
    });
    out.into_inner().expect("no sink panics")
}

fn available() -> impl Iterator<Item = Isa> {
    Isa::ALL.into_iter().filter(|isa| isa.is_available())
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Right, the same everywhere, and as if each row had been alone.
fn check(format: Format, rows: usize, n: usize, k: usize, seed: u64) {
    let mut random = Random(seed);
    let bytes = weights(format, n, k, &mut random);
    let values = activations(rows, k, &mut random);
    let matrix = Matrix::pack(format, n, k, &bytes).expect("a matrix of a valid shape");
    let results = multiply(Isa::Scalar, 1, &matrix, &values);

    let expected = reference::linear(format, n, k, &bytes, &values);
    let bounds = reference::error_bound(format, n, k, &bytes, &values);
    for (i, ((result, expected), bound)) in results.iter().zip(&expected).zip(&bounds).enumerate() {
        let difference = (f64::from(*result) - expected).abs();
        assert!(difference <= *bound, "{format} {rows}x{n}x{k} [{i}]: {result} not {expected} within {bound}");
    }
    for isa in available() {
        for threads in [1, 2, 3] {
            let same = multiply(isa, threads, &matrix, &values);
            assert_eq!(bits(&results), bits(&same), "{format} {rows}x{n}x{k} {isa:?} with {threads} threads");
        }
    }
    for row in [0, rows / 2, rows - 1] {
        let alone = multiply(Isa::best(), 1, &matrix, &values[row * k..][..k]);
        assert_eq!(bits(&results[row * n..][..n]), bits(&alone), "{format} {rows}x{n}x{k} row {row} alone");
    }
}

#[test]
fn products_are_right_and_the_same_everywhere() {
    for format in Format::ALL {
        for (i, rows) in [1, 2, 5, 7, 12, 13, 20, 33, 64, 100].into_iter().enumerate() {
            let n = [16, 1, 7, 33, 48, 17, 40, 31, 64, 100][i];
            let k = [32, 64, 96, 32, 160, 64, 128, 96, 32, 64][i];
            check(format, rows, n, k, i as u64);
        }
    }
}

#[test]
fn plain_formats_take_any_k() {
    for (i, k) in [1, 31, 33, 50].into_iter().enumerate() {
        check(Format::F32, 3, 19, k, i as u64);
        check(Format::F16, 3, 19, k, i as u64);
        check(Format::Bf16, 3, 19, k, i as u64);
    }
}

/// Every weight and activation at its extreme: 16-bit sums must not saturate, byte -128 must not be lost.
#[test]
fn extremes_are_exact() {
    let k = 64;
    for (format, byte) in [
        (Format::Q8_0, 0x80u8),
        (Format::Q8_0, 0x7F),
        (Format::Q4_0, 0xFF),
        (Format::Q4_0, 0x00),
        (Format::Q4_1, 0xFF),
        (Format::Q4_1, 0x00),
    ] {
        let mut block = f16::from_f32(0.5).to_le_bytes().to_vec();
        if format == Format::Q4_1 {
            block.extend(f16::from_f32(-2.0).to_le_bytes());
        }
        block.resize(format.block_bytes(), byte);
        let bytes = block.repeat(k / BLOCK * 16);
        let matrix = Matrix::pack(format, 16, k, &bytes).unwrap();
        for sign in [1.0f32, -1.0] {
            let values = vec![sign * 127.0; k];
            let expected = reference::linear(format, 16, k, &bytes, &values);
            for isa in available() {
                let results = multiply(isa, 1, &matrix, &values);
                let exact: Vec<f64> = results.iter().map(|result| f64::from(*result)).collect();
                assert_eq!(exact, expected, "{format} {byte:#x} {sign} {isa:?}");
            }
        }
    }
}

#[test]
fn what_is_not_finite_stays_visible_and_in_its_row() {
    let (n, k) = (20, 96);
    for format in Format::ALL {
        let mut random = Random(7);
        let matrix = Matrix::pack(format, n, k, &weights(format, n, k, &mut random)).unwrap();
        let mut values = activations(3, k, &mut random);
        values[k + 40] = f32::NAN;
        values[k + 3] = f32::INFINITY;
        // Too small to scale, which counts as zero.
        values[2 * k..].fill(1e-38);
        let results = multiply(Isa::Scalar, 1, &matrix, &values);
        assert!(results[..n].iter().all(|value| value.is_finite()));
        assert!(results[n..2 * n].iter().all(|value| !value.is_finite()));
        assert!(results[2 * n..].iter().all(|value| value.abs() <= 1e-30));
        for isa in available() {
            let same = multiply(isa, 2, &matrix, &values);
            assert_eq!(bits(&results[..n]), bits(&same[..n]));
            assert!(same[n..2 * n].iter().all(|value| !value.is_finite()));
            assert_eq!(bits(&results[2 * n..]), bits(&same[2 * n..]));
        }
    }
}

#[test]
fn packing_loses_nothing() {
    for format in Format::ALL {
        for (n, k) in [(1, 32), (15, 64), (16, 32), (17, 96), (50, 160)] {
            let bytes = weights(format, n, k, &mut Random(n as u64));
            let matrix = Matrix::pack(format, n, k, &bytes).unwrap();
            assert_eq!((matrix.n(), matrix.k(), matrix.format()), (n, k, format));
            assert_eq!(matrix.size_bytes(), n.next_multiple_of(16) * format.row_bytes(k).unwrap());
            let (mut row, mut expected) = (vec![0.0; k], vec![0.0; n * k]);
            assert!(format.dequantize(&bytes, &mut expected));
            for (i, expected) in expected.chunks_exact(k).enumerate() {
                matrix.read_row(i, &mut row).unwrap();
                assert_eq!(bits(&row), bits(expected), "{format} row {i} of {n} by {k}");
            }
            assert!(matrix.read_row(n, &mut row).is_err());
            assert!(matrix.read_row(0, &mut row[1..]).is_err());
        }
    }
}

#[test]
fn shapes_that_do_not_fit_are_refused_by_name() {
    let refusal = |format, n, k, bytes: usize| match Matrix::pack(format, n, k, &vec![0; bytes]) {
        Err(error @ DeviceError::Shape { .. }) => error.to_string(),
        _ => panic!("{format} {n} by {k} from {bytes} bytes was taken"),
    };
    assert_eq!(refusal(Format::Q4_1, 16, 48, 480), "matrix: k must be a multiple of 32 in Q4_1, got 48");
    assert_eq!(refusal(Format::Q8_0, 2, 32, 67), "matrix: the data must be 2 rows of 34 bytes, got 67 bytes");
    assert_eq!(refusal(Format::F32, 0, 32, 0), "matrix: the shape must be at least 1 by 1, got 0 by 32");
    refusal(Format::F32, usize::MAX, 2, 16);
    refusal(Format::F32, 1, usize::MAX, 16);
}

/// The AVX-VNNI kernels in their AVX-512 encoding, on processors that lack the first.
#[cfg(target_arch = "x86_64")]
#[test]
fn the_256_bit_dot_product_gives_the_same_bits() {
    use super::tile::{self, Lanes};
    let Some(isa) = Detected::new(Isa::Avx512Vnni) else {
        eprintln!("skipped: this processor has no AVX-512 VNNI");
        return;
    };
    let (pool, k) = (Pool::new(1), 96);
    for format in Format::ALL {
        for rows in 1..=6 {
            let mut random = Random(rows as u64);
            let matrix = Matrix::pack(format, 16, k, &weights(format, 16, k, &mut random)).unwrap();
            let values = activations(rows, k, &mut random);
            let mut prepared = Activations::default();
            prepared.prepare(&pool, isa, (rows, k), &[format], Source::Stored(&|row| &values[row * k..][..k]));
            let (tile, panel) = (matrix.tile(0), prepared.panel(0));
            let mut expected = vec![[0.0; 16]; rows];
            let mut results: Vec<Lanes> = vec![[0.0; 16]; rows];
            tile::multiply(isa, &tile, &panel, &mut expected);
            // SAFETY: AVX-512 VL and VNNI are there, and `multiply` has checked the same tile and panel.
            unsafe { super::tile_vnni::multiply_256_vl(&tile, &panel, &mut results) };
            assert_eq!(bits(results.as_flattened()), bits(expected.as_flattened()), "{format}, {rows} rows");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn any_shape_is_right_and_the_same_everywhere(
        format in prop::sample::select(Format::ALL.to_vec()),
        rows in 1..40usize,
        n in 1..70usize,
        blocks in 1..8usize,
        seed: u64,
    ) {
        check(format, rows, n, blocks * BLOCK, seed);
    }
}
