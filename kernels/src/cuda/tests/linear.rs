//! Linear layers against exactly dequantised products in f64, over shapes that straddle tiles and groups of rows; and
//! a row alone against the same row in a batch, bit for bit.
//!
//! The bound: activations are rounded to 11 bits (2^-11 of each product), F32 weights too; f32 sums over pairs, warps and
//! blocks are off by some k / 8 + 64 roundings of 2^-24 of the sum of magnitudes. Q4_1 adds d·q and m, so
//! both count.

use vassal_cuda_stand_in::in_child;

use half::f16;

use super::{Random, bits, counting, cuda, model, read, rows_of};
use crate::cuda::Cuda;
use crate::device::{CacheShape, Device, RopePairing};
use crate::format::Format;

/// `[n, k]` weights and their magnitudes as the kernels add them.
pub(super) struct Weights {
    pub(super) format: Format,
    pub(super) n: usize,
    pub(super) k: usize,
    pub(super) bytes: Vec<u8>,
    values: Vec<f32>,
    magnitudes: Vec<f32>,
}

impl Weights {
    pub(super) fn new(random: &mut Random, format: Format, n: usize, k: usize) -> Weights {
        let bytes = random.weights(format, n, k, 1.0);
        let mut values = vec![0.0; n * k];
        assert!(format.dequantize(&bytes, &mut values));
        let mut magnitudes: Vec<f32> = values.iter().map(|w| w.abs()).collect();
        if format == Format::Q4_1 {
            for (block, magnitudes) in bytes.chunks_exact(20).zip(magnitudes.chunks_exact_mut(32)) {
                let m = f16::from_le_bytes([block[2], block[3]]).to_f32().abs();
                magnitudes.iter_mut().for_each(|x| *x += 2.0 * m);
            }
        }
        Weights { format, n, k, bytes, values, magnitudes }
    }

    /// Each result of a row of activations, and how far off the kernel's may be.
    pub(super) fn product(&self, a: &[f32]) -> Vec<(f64, f64)> {
        let weight_rounding = if self.format == Format::F32 { 2.0 } else { 1.0 };
        let relative = 1.001 * weight_rounding / 2048.0 + (self.k as f64 / 8.0 + 64.0) / f64::from(1 << 24);
        let rows = self.values.chunks_exact(self.k).zip(self.magnitudes.chunks_exact(self.k));
        rows.map(|(w, magnitudes)| {
            let exact: f64 = w.iter().zip(a).map(|(w, a)| f64::from(*w) * f64::from(*a)).sum();
            let sum: f64 = magnitudes.iter().zip(a).map(|(w, a)| f64::from(*w) * f64::from(a.abs())).sum();
            (exact, sum * relative + 1e-30)
        })
        .collect()
    }
}

/// Activations with spikes, zero blocks, and blocks of one sign.
pub(super) fn activations(random: &mut Random, rows: usize, k: usize) -> Vec<f32> {
    let mut values: Vec<f32> = (0..rows * k).map(|_| random.symmetric()).collect();
    for block in values.chunks_mut(32) {
        match random.below(8) {
            0 => block.fill(0.0),
            1 => block[0] *= 1000.0,
            2 => block.fill(-3.0),
            3 => block.iter_mut().for_each(|x| *x *= 1e-4),
            _ => {}
        }
    }
    values
}

/// `x + W a` of every row, through the device.
fn linear_add(cuda: &mut Cuda, weights: &Weights, a: &[f32], x: &[f32]) -> Vec<f32> {
    let rows = a.len() / weights.k;
    let matrix = cuda.matrix(weights.format, weights.n, weights.k, &weights.bytes).expect("a matrix");
    let (input, mut out) = (rows_of(cuda, a, weights.k), rows_of(cuda, x, weights.n));
    cuda.begin(&counting(rows)).unwrap();
    cuda.linear_add(&input, &matrix, &mut out).unwrap();
    cuda.end().unwrap();
    read(cuda, &out, rows)
}

/// Right within the bound, and as if each row had been alone.
pub(super) fn check(cuda: &mut Cuda, random: &mut Random, format: Format, n: usize, k: usize, rows: usize) {
    let weights = Weights::new(random, format, n, k);
    let a = activations(random, rows, k);
    let x = random.bells(rows * n, 1.0);
    let out = linear_add(cuda, &weights, &a, &x);
    for (row, (a, x)) in a.chunks_exact(k).zip(x.chunks_exact(n)).enumerate() {
        for (i, (expected, bound)) in weights.product(a).into_iter().enumerate() {
            let (got, before) = (f64::from(out[row * n + i]), f64::from(x[i]));
            let bound = bound + 1e-6 * (before.abs() + expected.abs());
            assert!(
                (got - before - expected).abs() <= bound,
                "{format} {n} by {k}, row {row} of {rows}, output {i}: {got} is not {before} + {expected} within {bound}"
            );
        }
    }
    for row in [0, rows - 1] {
        let alone = linear_add(cuda, &weights, &a[row * k..][..k], &x[row * n..][..n]);
        assert_eq!(bits(&alone), bits(&out[row * n..][..n]), "{format} {n} by {k}: row {row} of {rows} alone");
    }
}

#[test]
fn products_are_right_and_rows_are_as_if_alone() {
    in_child!({
        let (mut cuda, mut random) = (cuda(), Random(1));
        for format in Format::ALL {
            for (n, k, rows) in [
                (1, 32, 1),
                (16, 64, 7),
                (17, 96, 8),
                (33, 160, 9),
                (20, 544, 17),
                (48, 576, 25),
                (15, 1088, 33),
                (40, 128, 65),
            ] {
                check(&mut cuda, &mut random, format, n, k, rows);
            }
        }
        // Widths that are no multiple of a block, where formats have none.
        for (n, k, rows) in [(5, 1, 3), (3, 77, 2), (18, 70, 40)] {
            check(&mut cuda, &mut random, Format::F16, n, k, rows);
            check(&mut cuda, &mut random, Format::Bf16, n, k, rows);
            check(&mut cuda, &mut random, Format::F32, n, k, rows);
        }
    });
}

#[test]
fn ranges_of_numbers_that_f16_lacks_are_scaled() {
    in_child!({
        let (mut cuda, mut random) = (cuda(), Random(2));
        let weights = [Format::F32, Format::Bf16].map(|format| {
            let mut weights = Weights::new(&mut random, format, 16, 64);
            for (row, scale) in [1e-20f32, 1e20, 1.0, 1e-6].into_iter().enumerate() {
                for value in &mut weights.values[row * 64..][..64] {
                    // The upper half of an F32 is what BF16 keeps.
                    let kept = if format == Format::Bf16 { 0xFFFF_0000 } else { u32::MAX };
                    *value = f32::from_bits((*value * scale).to_bits() & kept);
                }
            }
            weights.magnitudes = weights.values.iter().map(|w| w.abs()).collect();
            let bytes = |value: &f32| {
                if format == Format::Bf16 { value.to_le_bytes()[2..].to_vec() } else { value.to_le_bytes().to_vec() }
            };
            weights.bytes = weights.values.iter().flat_map(bytes).collect();
            weights
        });
        let mut a = random.bells(5 * 64, 1.0);
        for (row, scale) in [1e-12f32, 1e9, 65_504.0, 0.0].into_iter().enumerate() {
            a[row * 64..][..64].iter_mut().for_each(|a| *a *= scale);
        }
        for weights in &weights {
            let out = linear_add(&mut cuda, weights, &a, &[0.0; 5 * 16]);
            for (row, a) in a.chunks_exact(64).enumerate() {
                for (i, (expected, bound)) in weights.product(a).into_iter().enumerate() {
                    let got = f64::from(out[row * 16 + i]);
                    let fits = (got - expected).abs() <= bound + 1e-6 * expected.abs();
                    assert!(fits, "{} {row} {i}: {got} is not {expected}", weights.format);
                }
            }
        }
    });
}

/// `silu(gate·norm(x)) * (up·norm(x))`, against f64 with the bounds of both products.
pub(super) fn check_gates(cuda: &mut Cuda, random: &mut Random, formats: [Format; 2], rows: usize) {
    let (width, n) = (96, 37);
    let weights = formats.map(|format| Weights::new(random, format, n, width));
    let (x, gain) = (random.bells(rows * width, 3.0), random.bells(width, 1.0));
    let matrices = [0, 1].map(|i| cuda.matrix(formats[i], n, width, &weights[i].bytes).unwrap());
    let device_gain = cuda.vector(&gain).unwrap();
    let (device_x, mut out) = (rows_of(cuda, &x, width), cuda.rows(rows, n).unwrap());
    cuda.begin(&counting(rows)).unwrap();
    cuda.norm_gate_up(&device_x, &device_gain, &matrices[0], &matrices[1], &mut out).unwrap();
    cuda.end().unwrap();
    let out = read(cuda, &out, rows);
    for (row, x) in x.chunks_exact(width).enumerate() {
        let normed = normed(x, &gain, 1e-5);
        let [gate, up] = [0, 1].map(|i| weights[i].product(&normed));
        for (i, ((g, g_bound), (u, u_bound))) in gate.into_iter().zip(up).enumerate() {
            let expected = g * u / (1.0 + (-g).exp());
            // The slope of silu is at most 1.1.
            let bound = 1.1 * g_bound * (u.abs() + u_bound) + g.abs() * u_bound + 1e-5 * expected.abs() + 1e-7;
            let got = f64::from(out[row * n + i]);
            assert!((got - expected).abs() <= bound, "row {row}, {i}: {got} is not {expected} within {bound}");
        }
    }
}

#[test]
fn gates_are_silu_of_normed_products() {
    in_child!({
        let (mut cuda, mut random) = (cuda(), Random(3));
        check_gates(&mut cuda, &mut random, [Format::Q4_1, Format::Q8_0], 3);
        check_gates(&mut cuda, &mut random, [Format::F16, Format::F16], 20);
    });
}

/// RMS norm in f64, rounded to f32.
pub(super) fn normed(x: &[f32], gain: &[f32], epsilon: f64) -> Vec<f32> {
    let squares: f64 = x.iter().map(|x| f64::from(*x).powi(2)).sum();
    let scale = 1.0 / (squares / x.len() as f64 + epsilon).sqrt();
    x.iter().zip(gain).map(|(x, gain)| (f64::from(*x) * scale * f64::from(*gain)) as f32).collect()
}

#[test]
fn a_head_takes_the_rows_and_slots_it_is_told() {
    in_child!({
        let (mut cuda, mut random) = (cuda(), Random(4));
        let shape = model(64, [4, 2, 16], RopePairing::Interleaved);
        cuda.cache(&shape, &CacheShape { pages: 1, taps: vec![] }).unwrap();
        let (rows, vocabulary) = (6, 50);
        let table = Weights::new(&mut random, Format::Q8_0, vocabulary, 64);
        let (x, gain) = (random.bells(rows * 64, 2.0), random.bells(64, 1.0));
        let matrix = cuda.matrix(table.format, vocabulary, 64, &table.bytes).unwrap();
        let (device_x, device_gain) = (rows_of(&mut cuda, &x, 64), cuda.vector(&gain).unwrap());
        let mut logits = cuda.logits(9, vocabulary).unwrap();
        let places = [(5, 0), (0, 8), (3, 4), (5, 2)];
        cuda.head(&device_x, &places, &device_gain, &matrix, &mut logits).unwrap();
        let mut out = Vec::new();
        for (row, slot) in places {
            cuda.read_logits(&logits, slot, &mut out).unwrap();
            let expected = table.product(&normed(&x[row as usize * 64..][..64], &gain, 1e-5));
            for (got, (expected, bound)) in out.iter().zip(expected) {
                assert!((f64::from(*got) - expected).abs() <= bound + 1e-5 * expected.abs(), "{got} is not {expected}");
            }
        }
        cuda.read_logits(&logits, 1, &mut out).unwrap();
        assert!(out.iter().all(|x| *x == 0.0), "other slots stay as they were");
    });
}

/// A row of BF16 from its largest number down to 2^-60 of it: exact to 2^-31, and below that off by 2^-38 at most.
#[test]
fn a_row_of_bf16_is_exact_but_for_what_is_far_below_its_largest() {
    in_child!({
        let mut cuda = cuda();
        let values: Vec<f32> = (0..61).map(|i| 1.9921875 * 2.0f32.powi(40 - i)).collect();
        let bytes: Vec<u8> = values.iter().flat_map(|value| half::bf16::from_f32(*value).to_le_bytes()).collect();
        let matrix = cuda.matrix(Format::Bf16, 1, 61, &bytes).unwrap();
        let mut x = cuda.rows(1, 61).unwrap();
        cuda.begin(&counting(1)).unwrap();
        cuda.embed(&matrix, &mut x).unwrap();
        cuda.end().unwrap();
        for (i, (got, value)) in read(&mut cuda, &x, 1).into_iter().zip(&values).enumerate() {
            let bound = if i <= 31 { 0.0 } else { values[0] * 2.0f32.powi(-38) };
            assert!((got - value).abs() <= bound, "element {i}: {got} is not {value} within {bound}");
        }
    });
}

#[test]
fn embeddings_are_exact() {
    in_child!({
        let (mut cuda, mut random) = (cuda(), Random(5));
        for format in Format::ALL {
            for (n, k) in [(1, 32), (37, 96), (16, 64)] {
                let weights = Weights::new(&mut random, format, n, k);
                let matrix = cuda.matrix(format, n, k, &weights.bytes).unwrap();
                let mut x = cuda.rows(n, k).unwrap();
                cuda.begin(&counting(n)).unwrap();
                cuda.embed(&matrix, &mut x).unwrap();
                cuda.end().unwrap();
                assert_eq!(bits(&read(&mut cuda, &x, n)), bits(&weights.values), "{format} {n} by {k}");
            }
        }
    });
}
