//! The CUDA device against its CPU twin and exact oracles, on the stand-in driver.
//!
//! Each test runs its body in a child process that finds the stand-in in place of the driver (`in_child!`): the
//! same host code and the same PTX as on a card, every access checked. A finding of the interpreter is an error of the
//! device, so it fails whatever test it happens in; leaks show at the child's exit.
//!
//! Here are the numbers and the ways in and out of a device that tests share; tolerances stand beside their tests, derived
//! from the formats and written `difference <= bound`.

mod attention;
mod binaries;
mod faults;
mod features;
mod graphs;
mod linear;
mod mutants;
mod pass;
mod vocabulary;

use half::f16;

use super::{Cuda, Logits};
use crate::cpu::{self, Cpu, Isa};
use crate::device::{CacheShape, Device, ModelShape, PAGE_TOKENS, Plan, RopePairing, Row};
use crate::format::Format;

/// A small generator (splitmix64), so that data is the same in every run.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Below `bound`.
    pub(super) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// From -1 to 1.
    pub(super) fn symmetric(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    /// Bell-shaped, deviation 1.
    pub(super) fn bell(&mut self) -> f32 {
        (0..3).map(|_| self.symmetric()).sum()
    }

    pub(super) fn bells(&mut self, count: usize, scale: f32) -> Vec<f32> {
        (0..count).map(|_| self.bell() * scale).collect()
    }

    /// Bytes of a matrix: any quants at all, scales of ordinary size.
    pub(super) fn weights(&mut self, format: Format, n: usize, k: usize, scale: f32) -> Vec<u8> {
        let mut bytes = Vec::new();
        for _ in 0..n * k / format.block_elements() {
            let quants = match format {
                Format::F32 => {
                    bytes.extend((self.bell() * scale).to_le_bytes());
                    continue;
                }
                Format::F16 => {
                    bytes.extend(f16::from_f32(self.bell() * scale).to_le_bytes());
                    continue;
                }
                Format::Bf16 => {
                    bytes.extend(half::bf16::from_f32(self.bell() * scale).to_le_bytes());
                    continue;
                }
                Format::Q8_0 => (32, scale / 73.0),
                Format::Q4_0 | Format::Q4_1 => (16, scale / 4.6),
            };
            bytes.extend(f16::from_f32(quants.1 * (1.0 + 0.3 * self.symmetric())).to_le_bytes());
            if format == Format::Q4_1 {
                bytes.extend(f16::from_f32(quants.1 * (-7.5 + self.symmetric())).to_le_bytes());
            }
            bytes.extend((0..quants.0).map(|_| self.next() as u8));
        }
        bytes
    }
}

/// The bits, for comparisons that mean bits.
pub(super) fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// The card, under the stand-in.
pub(super) fn cuda() -> Cuda {
    mutants::open().expect("the stand-in has a card")
}

/// The CPU, whose instruction sets all give the same bits.
pub(super) fn cpu() -> Cpu {
    Cpu::with(Isa::best(), 1).expect("an available instruction set")
}

/// A model that passes of a test share; `heads`: query heads, key heads, head width.
pub(super) fn model(hidden: usize, [heads, kv_heads, head_width]: [usize; 3], pairing: RopePairing) -> ModelShape {
    let pairs = head_width / 2;
    ModelShape {
        layers: 2,
        hidden,
        heads,
        kv_heads,
        head_width,
        feed_forward: 96,
        vocabulary: 50,
        context_tokens: 1024,
        norm_epsilon: 1e-5,
        rope_pairing: pairing,
        rope_inverse_frequencies: (0..pairs).map(|i| 1e4f64.powf(-(i as f64) / pairs as f64)).collect(),
    }
}

/// A plan of rows whose tokens count up, for operations that read nothing else of it.
pub(super) fn counting(rows: usize) -> Plan {
    let row = |token| Row { token, position: 0, sequence: 0, slot: 0, response_count: 0, remaining: 0.0 };
    Plan { rows: (0..rows as u32).map(row).collect(), block_tables: vec![vec![0]] }
}

/// Activations with these values, `[R, width]`, through an embedding of F32.
pub(super) fn rows_of<D: Device>(device: &mut D, values: &[f32], width: usize) -> D::Rows {
    let rows = values.len() / width;
    let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    let table = device.matrix(Format::F32, rows, width, &bytes).expect("a table");
    let mut x = device.rows(rows, width).expect("rows");
    device.begin(&counting(rows)).expect("a pass");
    device.embed(&table, &mut x).expect("embedded");
    device.end().expect("ended");
    x
}

pub(super) fn read<D: Device>(device: &mut D, x: &D::Rows, rows: usize) -> Vec<f32> {
    let mut out = Vec::new();
    device.read_rows(x, rows, &mut out).expect("rows");
    out
}

/// Logits `[slots, V]` of the card with these values.
pub(super) fn cuda_logits(cuda: &Cuda, values: &[f32], vocabulary: usize) -> Logits {
    let data = cuda.gpu.upload("logits", values).expect("room");
    Logits { slots: values.len() / vocabulary, vocabulary, data }
}

/// The same on the CPU: products with a row of ones of width 1, whose norm is exactly itself without an epsilon.
pub(super) fn cpu_logits(cpu: &mut Cpu, values: &[f32], vocabulary: usize) -> cpu::Logits {
    let shape = ModelShape { norm_epsilon: 0.0, ..model(1, [1, 1, 2], RopePairing::Halves) };
    cpu.cache(&shape, &CacheShape { pages: 1, taps: vec![] }).expect("a cache for its epsilon");
    let (x, gain) = (rows_of(cpu, &[1.0], 1), cpu.vector(&[1.0]).expect("a vector"));
    let mut logits = cpu.logits(values.len() / vocabulary, vocabulary).expect("logits");
    for (slot, row) in values.chunks_exact(vocabulary).enumerate() {
        let bytes: Vec<u8> = row.iter().flat_map(|x| x.to_le_bytes()).collect();
        let table = cpu.matrix(Format::F32, vocabulary, 1, &bytes).expect("a table");
        cpu.head(&x, &[(0, slot as u32)], &gain, &table, &mut logits).expect("logits");
    }
    logits
}

/// The slot of a position of a sequence whose pages are `pages`.
pub(super) fn slot_of(pages: &[u32], position: u32) -> u32 {
    pages[position as usize / PAGE_TOKENS] * PAGE_TOKENS as u32 + position % PAGE_TOKENS as u32
}
