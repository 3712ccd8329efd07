//! Measures what a decoding step does besides the linear layers: attention, top-k and draws.
//!
//! `cargo run --release -p vassal-kernels --example ops [-- SECONDS [WORD...]]`
//!
//! Shapes are those of SmolLM2-135M: attention runs over all 30 layers of one pass, top-k and draws over 49,152
//! logits. SECONDS (default 0.5) is the time for each line; with words, only lines that have them all are
//! measured (`attend`, `threads=2`, `draws=8`). The median and the fastest time are given; the fastest says
//! more on a machine that others use too.

#![allow(clippy::print_stdout, reason = "a benchmark reports on standard output")]

use std::time::Instant;

use vassal_kernels::cpu::{Cpu, CpuCache, Isa, Logits, Rows};
use vassal_kernels::{
    CacheShape, Device, DeviceError, Draw, Format, ModelShape, PAGE_TOKENS, Plan, Projections, RopePairing, Row,
    TopKQuery, VocabularyBias,
};

const VOCABULARY: usize = 49_152;
/// Rows of logits, so that several draws run side by side.
const SLOTS: usize = 8;
/// Width of the made-up rows that make the logits.
const NARROW: usize = 32;

fn smollm2() -> ModelShape {
    ModelShape {
        layers: 30,
        hidden: 576,
        heads: 9,
        kv_heads: 3,
        head_width: 64,
        feed_forward: 1536,
        vocabulary: VOCABULARY,
        context_tokens: 2048,
        norm_epsilon: 1e-5,
        rope_pairing: RopePairing::Interleaved,
        rope_inverse_frequencies: (0..32).map(|i| 1e5f64.powf(-f64::from(i) / 32.0)).collect(),
    }
}

/// Bell-shaped numbers from a small generator, as the bytes of an f32 matrix.
fn bells(count: usize, scale: f32, seed: u64) -> Vec<u8> {
    let mut state = seed;
    let mut symmetric = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).flat_map(|_| ((symmetric() + symmetric() + symmetric()) * scale).to_le_bytes()).collect()
}

/// A cache with positions filled in every layer, and queries for a pass.
struct World {
    cache: CpuCache,
    q: Rows,
    out: Rows,
    layers: usize,
}

impl World {
    fn new(cpu: &mut Cpu) -> Result<World, DeviceError> {
        let model = smollm2();
        let (hidden, kv) = (model.hidden, model.kv_heads * model.head_width);
        let mut cache = cpu.cache(&model, &CacheShape { pages: 2 + 2048 / PAGE_TOKENS, taps: vec![] })?;
        let table = cpu.matrix(Format::F32, 64, hidden, &bells(64 * hidden, 1.0, 1))?;
        let weights = [(hidden, 2), (kv, 3), (kv, 4)]
            .map(|(n, seed)| cpu.matrix(Format::F32, n, hidden, &bells(n * hidden, 0.04, seed)));
        let [query, key, value] = weights;
        let (query, key, value) = (query?, key?, value?);
        let gain = cpu.vector(&vec![1.0; hidden])?;
        let mut x = cpu.rows(512, hidden)?;
        let mut q = cpu.rows(512, hidden)?;
        // Keys and values of one page are computed, those of the others are copies.
        cpu.begin(&plan((0..PAGE_TOKENS).map(|i| row(i, i)).collect()))?;
        cpu.embed(&table, &mut x)?;
        for layer in 0..model.layers {
            let weights = Projections { query: &query, key: &key, value: &value, biases: None };
            cpu.norm_qkv_store(&x, &gain, weights, &mut cache, layer, &mut q)?;
        }
        cpu.end()?;
        let copies: Vec<(u32, u32)> = (0..2048).map(|to| (to % PAGE_TOKENS as u32, to)).collect();
        cpu.commit(&mut cache, &copies, 0..model.layers)?;
        // Queries for as many rows as any pass has.
        cpu.begin(&plan((0..512).map(|i| row(i, i)).collect()))?;
        cpu.embed(&table, &mut q)?;
        cpu.end()?;
        let out = cpu.rows(512, hidden)?;
        Ok(World { cache, q, out, layers: model.layers })
    }

    /// One pass of these rows through the attention of every layer.
    fn attend(&mut self, cpu: &mut Cpu, plan: &Plan) -> Result<(), DeviceError> {
        cpu.begin(plan)?;
        for layer in 0..self.layers {
            cpu.attend(&self.q, &self.cache, layer, &mut self.out)?;
        }
        cpu.end()
    }
}

fn row(position: usize, slot: usize) -> Row {
    let token = (position * 7 % 64) as u32;
    Row { token, position: position as u32, sequence: 0, slot: slot as u32, response_count: 0, remaining: 1.0 }
}

fn plan(rows: Vec<Row>) -> Plan {
    Plan { rows, block_tables: vec![(0..2048 / PAGE_TOKENS as u32).collect()] }
}

/// Logits with deviation 2.5, from products of made-up rows.
fn logits(cpu: &mut Cpu) -> Result<Logits, DeviceError> {
    let mut logits = cpu.logits(SLOTS, VOCABULARY)?;
    let bytes = bells(VOCABULARY * NARROW, 2.5 / (NARROW as f32).sqrt(), 5);
    let table = cpu.matrix(Format::F32, VOCABULARY, NARROW, &bytes)?;
    let gain = cpu.vector(&[1.0; NARROW])?;
    let mut x = cpu.rows(SLOTS, NARROW)?;
    cpu.begin(&plan((0..SLOTS).map(|i| row(i, i)).collect()))?;
    cpu.embed(&table, &mut x)?;
    let rows: Vec<(u32, u32)> = (0..SLOTS as u32).map(|i| (i, i)).collect();
    cpu.head(&x, &rows, &gain, &table, &mut logits)?;
    cpu.end()?;
    Ok(logits)
}

/// What the command line asked for.
struct Options {
    seconds: f64,
    words: Vec<String>,
}

impl Options {
    /// Times `body` and prints a line, if the line was asked for.
    fn measure(
        &self,
        name: &str,
        cpu: &mut Cpu,
        mut body: impl FnMut(&mut Cpu) -> Result<(), DeviceError>,
    ) -> Result<(), DeviceError> {
        let info = cpu.info();
        let line = format!("{name:<32} isa={:<12} threads={}", info.isa, info.threads);
        if !self.words.iter().all(|word| line.contains(word.as_str())) {
            return Ok(());
        }
        body(cpu)?;
        let mut times = Vec::new();
        let start = Instant::now();
        while times.len() < 3 || (start.elapsed().as_secs_f64() < self.seconds && times.len() < 100_000) {
            let one = Instant::now();
            body(cpu)?;
            times.push(one.elapsed().as_secs_f64() * 1e6);
        }
        times.sort_by(f64::total_cmp);
        println!("{line}  median {:>9.1} us  best {:>9.1} us", times[times.len() / 2], times[0]);
        Ok(())
    }
}

fn attention(options: &Options, cpu: &mut Cpu) -> Result<(), DeviceError> {
    let mut world = World::new(cpu)?;
    for prefix in [128, 1024] {
        let single = plan(vec![row(prefix, prefix)]);
        options.measure(&format!("attend rows=1 prefix={prefix}"), cpu, |cpu| world.attend(cpu, &single))?;
        let candidates = plan((0..20).map(|i| row(prefix, 2048 + i)).collect());
        options.measure(&format!("attend rows=20 prefix={prefix}"), cpu, |cpu| world.attend(cpu, &candidates))?;
    }
    let prefill = plan((0..512).map(|i| row(i, i)).collect());
    options.measure("attend prefill=512", cpu, |cpu| world.attend(cpu, &prefill))
}

fn query(k: usize, vocabulary: &[VocabularyBias]) -> TopKQuery<'_> {
    TopKQuery { slot: 0, k, vocabulary }
}

fn vocabulary(options: &Options, cpu: &mut Cpu) -> Result<(), DeviceError> {
    let logits = logits(cpu)?;
    let bias = VocabularyBias {
        bits: (0..VOCABULARY / 64).map(|i| 0x9E37_79B9_7F4A_7C15u64.wrapping_mul(i as u64)).collect(),
        set: 0.0,
        unset: -2.0,
    };
    for k in [20, 256] {
        options.measure(&format!("top_k k={k}"), cpu, |cpu| cpu.top_k(&logits, &[query(k, &[])]).map(drop))?;
    }
    let biases = [bias.clone()];
    options.measure("top_k k=20 biased", cpu, |cpu| cpu.top_k(&logits, &[query(20, &biases)]).map(drop))?;

    let tokens = cpu.top_k(&logits, &[query(20, &[])])?.remove(0).tokens;
    let deltas: Vec<(u32, f32)> = tokens.iter().zip(0i16..).map(|(t, i)| (*t, f32::from(i) / 7.0 - 1.0)).collect();
    let plain = Draw { temperature: 1.0, top_p: 1.0, random: 1 << 63, ..Draw::default() };
    let steered = Draw { deltas, ..plain.clone() };
    let draws = [
        ("sample plain", plain),
        ("sample 20 deltas", steered.clone()),
        ("sample 20 deltas T=0.8", Draw { temperature: 0.8, ..steered.clone() }),
        ("sample 20 deltas top_p=0.9", Draw { top_p: 0.9, ..steered.clone() }),
        ("sample 20 deltas T=5 top_p=0.9", Draw { top_p: 0.9, temperature: 5.0, ..steered.clone() }),
        ("sample 20 deltas bias", Draw { vocabulary: vec![bias], ..steered.clone() }),
        ("sample 20 deltas masked", Draw { only: Some(tokens), ..steered.clone() }),
        ("sample 20 deltas greedy", Draw { temperature: 0.0, ..steered.clone() }),
    ];
    for (name, draw) in draws {
        let draw = [draw];
        options.measure(name, cpu, |cpu| cpu.sample(&logits, &draw).map(drop))?;
    }
    let many: Vec<Draw> = (0..SLOTS as u32).map(|slot| Draw { slot, ..steered.clone() }).collect();
    options.measure("sample 20 deltas draws=8", cpu, |cpu| cpu.sample(&logits, &many).map(drop))
}

fn main() -> Result<(), DeviceError> {
    let mut words = std::env::args().skip(1);
    let seconds = words.next().and_then(|word| word.parse().ok()).unwrap_or(0.5);
    let options = Options { seconds, words: words.collect() };
    for threads in [1, 2] {
        let mut cpu = Cpu::with(Isa::best(), threads)?;
        // Setting up takes longer than many a line.
        let excluded = |others: [&str; 2]| options.words.iter().any(|word| others.iter().any(|o| word.starts_with(o)));
        if !excluded(["top_k", "sample"]) {
            attention(&options, &mut cpu)?;
        }
        if !excluded(["attend", "prefill"]) {
            vocabulary(&options, &mut cpu)?;
        }
    }
    Ok(())
}
