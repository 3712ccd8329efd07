//! Measures the linear layers of a model the size of SmolLM2-135M: all of a pass but attention.
//!
//! `cargo run --release -p vassal-kernels --example linear [-- SECONDS [WORD...]]`
//!
//! One line for each mix of formats, instruction set, number of threads and rows: the median time of a pass
//! (norms, quantisation of activations, all products, RoPE and storing keys and values), what that is in
//! operations (two for each weight and row) and in bytes of weights read each second. Passes of up to 20 rows give
//! logits of every row, a prefill of 512 rows only of the last. SECONDS (default 1) is the time for each line;
//! with words, only lines that have them all are measured (`avx2`, `Q4_1/Q8_0`, `threads=2`, `rows=1`). On a
//! machine that others use too, *best*, the fastest pass, and *processor*, the mean time that this thread really
//! ran (Linux only), say more.

#![allow(clippy::print_stdout, reason = "a benchmark reports on standard output")]

use std::time::Instant;

use vassal_kernels::cpu::{Cpu, CpuCache, Isa, Logits, Matrix, Rows, Vector};
use vassal_kernels::{
    CacheShape, Device, DeviceError, Format, ModelShape, PAGE_TOKENS, Plan, Projections, RopePairing, Row,
};

const ROWS: [usize; 4] = [1, 10, 20, 512];

struct Layer {
    gain: Vector,
    query: Matrix,
    key: Matrix,
    value: Matrix,
    output: Matrix,
    gate: Matrix,
    up: Matrix,
    down: Matrix,
}

struct Model {
    shape: ModelShape,
    layers: Vec<Layer>,
    gain: Vector,
    table: Matrix,
    cache: CpuCache,
    x: Rows,
    wide: Rows,
    logits: Logits,
}

fn smollm2() -> ModelShape {
    ModelShape {
        layers: 30,
        hidden: 576,
        heads: 9,
        kv_heads: 3,
        head_width: 64,
        feed_forward: 1536,
        vocabulary: 49_152,
        context_tokens: 2048,
        norm_epsilon: 1e-5,
        rope_pairing: RopePairing::Interleaved,
        rope_inverse_frequencies: (0..32).map(|i| 1e5f64.powf(-f64::from(i) / 32.0)).collect(),
    }
}

/// Weights of ordinary size: scales of a hundredth, quants from a small generator.
fn matrix(cpu: &mut Cpu, format: Format, n: usize, k: usize) -> Result<Matrix, DeviceError> {
    let mut state = (n * k) as u32 | 1;
    let mut bytes = Vec::with_capacity(n * format.row_bytes(k).unwrap_or(0));
    for _ in 0..n * k / format.block_elements() {
        let scale = half::f16::from_f32(0.01).to_le_bytes();
        bytes.extend(scale);
        if format == Format::Q4_1 {
            bytes.extend(half::f16::from_f32(-0.075).to_le_bytes());
        }
        while bytes.len() % format.block_bytes() != 0 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            bytes.push((state >> 24) as u8);
        }
    }
    cpu.matrix(format, n, k, &bytes)
}

fn model(cpu: &mut Cpu, layers: Format, head: Format) -> Result<Model, DeviceError> {
    let shape = smollm2();
    let (hidden, q, kv, wide) = (shape.hidden, 576, 192, shape.feed_forward);
    let rows_max = ROWS[ROWS.len() - 1];
    let layer = |cpu: &mut Cpu| -> Result<Layer, DeviceError> {
        Ok(Layer {
            gain: cpu.vector(&vec![1.0; hidden])?,
            query: matrix(cpu, layers, q, hidden)?,
            key: matrix(cpu, layers, kv, hidden)?,
            value: matrix(cpu, layers, kv, hidden)?,
            output: matrix(cpu, layers, hidden, q)?,
            gate: matrix(cpu, layers, wide, hidden)?,
            up: matrix(cpu, layers, wide, hidden)?,
            down: matrix(cpu, layers, hidden, wide)?,
        })
    };
    let pages = rows_max / PAGE_TOKENS;
    Ok(Model {
        layers: (0..shape.layers).map(|_| layer(cpu)).collect::<Result<_, _>>()?,
        gain: cpu.vector(&vec![1.0; hidden])?,
        table: matrix(cpu, head, shape.vocabulary, hidden)?,
        cache: cpu.cache(&shape, &CacheShape { pages, taps: vec![] })?,
        x: cpu.rows(rows_max, hidden)?,
        wide: cpu.rows(rows_max, wide)?,
        logits: cpu.logits(20, shape.vocabulary)?,
        shape,
    })
}

impl Model {
    fn pass(&mut self, cpu: &mut Cpu, q: &mut Rows, rows: usize) -> Result<(), DeviceError> {
        let row = |i: u32| Row { token: i, position: i, sequence: 0, slot: i, response_count: 0, remaining: 1.0 };
        let plan = Plan {
            rows: (0..rows as u32).map(row).collect(),
            block_tables: vec![(0..rows.div_ceil(PAGE_TOKENS) as u32).collect()],
        };
        cpu.begin(&plan)?;
        cpu.embed(&self.table, &mut self.x)?;
        for (index, layer) in self.layers.iter().enumerate() {
            let weights = Projections { query: &layer.query, key: &layer.key, value: &layer.value, biases: None };
            cpu.norm_qkv_store(&self.x, &layer.gain, weights, &mut self.cache, index, q)?;
            cpu.linear_add(q, &layer.output, &mut self.x)?;
            cpu.norm_gate_up(&self.x, &layer.gain, &layer.gate, &layer.up, &mut self.wide)?;
            cpu.linear_add(&self.wide, &layer.down, &mut self.x)?;
        }
        cpu.end()?;
        let ends: Vec<(u32, u32)> = (0..rows as u32).map(|row| (row, row)).collect();
        let ends = if rows <= 20 { ends } else { vec![(rows as u32 - 1, 0)] };
        cpu.head(&self.x, &ends, &self.gain, &self.table, &mut self.logits)
    }

    /// Operations of a pass and bytes of weights.
    fn work(&self, rows: usize) -> (f64, f64) {
        let (mut weights, mut bytes) = (0, 0);
        for layer in &self.layers {
            for matrix in [&layer.query, &layer.key, &layer.value, &layer.output, &layer.gate, &layer.up, &layer.down] {
                weights += matrix.n() * matrix.k();
                bytes += matrix.size_bytes();
            }
        }
        let ends = if rows <= 20 { rows } else { 1 };
        let products = weights * rows + self.shape.vocabulary * self.shape.hidden * ends;
        (2.0 * products as f64, (bytes + self.table.size_bytes()) as f64)
    }
}

fn main() -> Result<(), DeviceError> {
    let mut arguments = std::env::args().skip(1);
    let seconds = arguments.next().and_then(|text| text.parse().ok()).unwrap_or(1.0);
    let words: Vec<String> = arguments.collect();
    let mixes = [
        (Format::Q4_1, Format::Q8_0),
        (Format::Q4_0, Format::Q8_0),
        (Format::Q4_0, Format::Q4_0),
        (Format::Q8_0, Format::Q8_0),
        (Format::F16, Format::F16),
        (Format::Bf16, Format::Bf16),
    ];
    for (layers, head) in mixes {
        for isa in Isa::ALL.into_iter().filter(|isa| *isa != Isa::Scalar && isa.is_available()) {
            for threads in [1, 2] {
                let names = ROWS.map(|rows| format!("{layers}/{head} {} threads={threads} rows={rows}", isa.name()));
                let wanted = names.each_ref().map(|name| words.iter().all(|word| name.split(' ').any(|w| w == word)));
                if !wanted.contains(&true) {
                    continue;
                }
                let mut cpu = Cpu::with(isa, threads)?;
                let mut model = model(&mut cpu, layers, head)?;
                let mut q = cpu.rows(ROWS[ROWS.len() - 1], model.shape.hidden)?;
                for ((rows, name), wanted) in ROWS.into_iter().zip(&names).zip(wanted) {
                    if wanted {
                        measure(&mut cpu, &mut model, &mut q, rows, seconds, name)?;
                    }
                }
            }
        }
    }
    Ok(())
}

fn measure(
    cpu: &mut Cpu,
    model: &mut Model,
    q: &mut Rows,
    rows: usize,
    seconds: f64,
    name: &str,
) -> Result<(), DeviceError> {
    let processor = processor_seconds();
    let begin = Instant::now();
    let mut times = Vec::new();
    while times.len() < 3 || begin.elapsed().as_secs_f64() < seconds {
        let begin = Instant::now();
        model.pass(cpu, q, rows)?;
        times.push(begin.elapsed().as_secs_f64());
    }
    let processor = (processor_seconds() - processor) / times.len() as f64;
    times.sort_by(f64::total_cmp);
    let (best, median) = (times[0], times[times.len() / 2]);
    let (operations, bytes) = model.work(rows);
    println!(
        "{name:45} {:8.2} ms (best {:8.2}, processor {:8.2})  {:5.0} GOP/s  {:5.1} GB/s",
        median * 1e3,
        best * 1e3,
        processor * 1e3,
        operations / median / 1e9,
        bytes / median / 1e9,
    );
    Ok(())
}

/// Seconds that this thread has run, as Linux counts them, or 0.
fn processor_seconds() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    text.split(' ').next().and_then(|nanoseconds| nanoseconds.parse::<f64>().ok()).unwrap_or(0.0) / 1e9
}
