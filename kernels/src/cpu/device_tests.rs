//! The whole device on a model of two small layers: a sequence gives the same bits on every instruction set,
//! for any number of threads, in passes of any size and beside any other sequence; and what does not fit is
//! refused by name.

use half::f16;

use super::{Cpu, CpuCache, Isa, Matrix, Vector};
use crate::device::{
    CacheShape, Device, DeviceError, Draw, LinearHead, ModelShape, OnePassHead, PAGE_TOKENS, Plan, Projections,
    RopePairing, Row, TopKQuery,
};
use crate::format::Format;

const HIDDEN: usize = 64;
const VOCABULARY: usize = 50;

fn shape() -> ModelShape {
    ModelShape {
        layers: 2,
        hidden: HIDDEN,
        heads: 4,
        kv_heads: 2,
        head_width: 16,
        feed_forward: 96,
        vocabulary: VOCABULARY,
        context_tokens: 128,
        norm_epsilon: 1e-5,
        rope_pairing: RopePairing::Interleaved,
        rope_inverse_frequencies: (0..8).map(|i| 1e4f64.powf(-f64::from(i) / 8.0)).collect(),
    }
}

struct Layer {
    query: Matrix,
    key: Matrix,
    value: Matrix,
    output: Matrix,
    gate: Matrix,
    up: Matrix,
    down: Matrix,
}

struct Model {
    cpu: Cpu,
    table: Matrix,
    gain: Vector,
    bias: [Vector; 3],
    layers: Vec<Layer>,
    cache: CpuCache,
}

fn matrix(cpu: &mut Cpu, format: Format, n: usize, k: usize) -> Matrix {
    let mut state = (n * 31 + k) as u32;
    let mut bytes = Vec::new();
    for _ in 0..n * k / format.block_elements() {
        let scale = f16::from_f32(if format == Format::Q8_0 { 0.001 } else { 0.02 }).to_le_bytes();
        bytes.extend(scale);
        if format == Format::Q4_1 {
            bytes.extend(f16::from_f32(-0.15).to_le_bytes());
        }
        while bytes.len() % format.block_bytes() != 0 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            bytes.push((state >> 24) as u8);
        }
    }
    cpu.matrix(format, n, k, &bytes).expect("a valid matrix")
}

fn model(isa: Isa, threads: usize) -> Model {
    let mut cpu = Cpu::with(isa, threads).expect("an available instruction set");
    let shape = shape();
    let layer = |cpu: &mut Cpu, format| Layer {
        query: matrix(cpu, format, 64, HIDDEN),
        key: matrix(cpu, format, 32, HIDDEN),
        value: matrix(cpu, Format::Q8_0, 32, HIDDEN),
        output: matrix(cpu, format, HIDDEN, 64),
        gate: matrix(cpu, format, 96, HIDDEN),
        up: matrix(cpu, format, 96, HIDDEN),
        down: matrix(cpu, format, HIDDEN, 96),
    };
    Model {
        table: matrix(&mut cpu, Format::Q8_0, VOCABULARY, HIDDEN),
        gain: cpu.vector(&[1.25; HIDDEN]).unwrap(),
        bias: [64, 32, 32].map(|n| cpu.vector(&vec![0.1; n]).unwrap()),
        layers: vec![layer(&mut cpu, Format::Q4_1), layer(&mut cpu, Format::Q4_0)],
        cache: cpu.cache(&shape, &CacheShape { pages: 8, taps: vec![1] }).unwrap(),
        cpu,
    }
}

/// Results of every position of one sequence, as bits.
#[derive(Debug, Default, PartialEq)]
struct Results {
    logits: Vec<u32>,
    values: Vec<u32>,
    projections: Vec<u32>,
    features: Vec<u32>,
}

impl Model {
    /// Runs a pass and returns what each row gave.
    fn pass(&mut self, plan: &Plan) -> Vec<Results> {
        let Model { cpu, table, gain, bias: [q_bias, k_bias, v_bias], layers, cache } = self;
        let rows = plan.rows.len();
        let mut x = cpu.rows(rows, HIDDEN).unwrap();
        let mut q = cpu.rows(rows, 64).unwrap();
        let mut attended = cpu.rows(rows, 64).unwrap();
        let mut wide = cpu.rows(rows, 96).unwrap();
        let linear = LinearHead {
            tap: 0,
            residual: vec![0.5; HIDDEN],
            mean: vec![-0.25; HIDDEN],
            share: vec![0.75; HIDDEN],
            remaining: 2.0,
            bias: 0.125,
        };
        let one_pass = OnePassHead {
            tap: 0,
            rank: 3,
            state: (0..3 * (2 * HIDDEN + 2)).map(|i| (i % 7) as f32 - 3.0).collect(),
            embedding: vec![0.5; 3 * HIDDEN],
            token_bias: vec![f16::ONE; VOCABULARY],
        };
        let (mut values, mut projections, mut features) = (vec![], vec![], vec![]);
        cpu.begin(plan).unwrap();
        cpu.embed(table, &mut x).unwrap();
        for (index, layer) in layers.iter().enumerate() {
            let biases = (index == 1).then_some([&*q_bias, &*k_bias, &*v_bias]);
            let weights = Projections { query: &layer.query, key: &layer.key, value: &layer.value, biases };
            cpu.norm_qkv_store(&x, gain, weights, cache, index, &mut q).unwrap();
            cpu.attend(&q, cache, index, &mut attended).unwrap();
            cpu.linear_add(&attended, &layer.output, &mut x).unwrap();
            cpu.norm_gate_up(&x, gain, &layer.gate, &layer.up, &mut wide).unwrap();
            cpu.linear_add(&wide, &layer.down, &mut x).unwrap();
            if index == 0 {
                cpu.accumulate(&x, 0, cache).unwrap();
                values = cpu.values(&x, cache, &linear).unwrap();
                projections = cpu.project(&x, cache, &one_pass).unwrap();
                cpu.read_features(&x, 0, cache, &mut features).unwrap();
            }
        }
        cpu.end().unwrap();
        let mut logits = cpu.logits(rows, VOCABULARY).unwrap();
        let ends: Vec<(u32, u32)> = (0..rows as u32).map(|row| (row, row)).collect();
        cpu.head(&x, &ends, gain, table, &mut logits).unwrap();
        let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect();
        let mut row_logits = Vec::new();
        (0..rows)
            .map(|row| {
                cpu.read_logits(&logits, row as u32, &mut row_logits).unwrap();
                assert!(row_logits.iter().all(|logit| logit.is_finite()));
                Results {
                    logits: bits(&row_logits),
                    values: bits(&values[row..=row]),
                    projections: bits(&projections[row * 3..][..3]),
                    features: bits(&features[row * (2 * HIDDEN + 2)..][..2 * HIDDEN + 2]),
                }
            })
            .collect()
    }
}

/// Sequence `sequence` of a plan whose pages are `4 * sequence ..`; its response begins at position 5.
fn row(sequence: u32, position: u32) -> Row {
    Row {
        token: (position * 7 + 11 * sequence) % VOCABULARY as u32,
        position,
        sequence,
        slot: 4 * sequence * PAGE_TOKENS as u32 + position,
        response_count: (position + 1).saturating_sub(5),
        remaining: 1.0 - position as f32 / 64.0,
    }
}

fn plan(rows: Vec<Row>) -> Plan {
    Plan { rows, block_tables: vec![vec![0, 1, 2], vec![4, 5, 6]] }
}

#[test]
fn a_sequence_is_the_same_everywhere() {
    let positions = 40;
    let mut alone = model(Isa::Scalar, 1);
    let expected: Vec<Results> =
        (0..positions).flat_map(|position| alone.pass(&plan(vec![row(0, position)]))).collect();
    assert_ne!(expected[0].logits, expected[1].logits, "all rows alike would prove nothing");
    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
        for threads in [1, 2] {
            // In one pass; in ragged chunks beside another sequence.
            let mut model_here = model(isa, threads);
            let results = model_here.pass(&plan((0..positions).map(|position| row(0, position)).collect()));
            assert_eq!(results, expected, "{isa:?} in one pass with {threads} threads");
            let mut model_here = model(isa, threads);
            let mut start = 0;
            for (chunk, company) in [(1, 0..9), (13, 9..10), (20, 10..13), (6, 13..30)] {
                let mut rows: Vec<Row> = company.map(|position| row(1, position)).collect();
                let others = rows.len();
                rows.extend((start..start + chunk).map(|position| row(0, position)));
                let results = model_here.pass(&plan(rows));
                assert_eq!(results[others..], expected[start as usize..][..chunk as usize], "{isa:?} beside {others}");
                start += chunk;
            }
            assert_eq!(start, positions);
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let Model { mut cpu, table, gain, mut cache, layers, .. } = model(Isa::best(), 1);
    let refusal = |result: Result<(), DeviceError>| match result {
        Err(error @ DeviceError::Shape { .. }) => error.to_string(),
        other => panic!("not refused: {other:?}"),
    };
    let mut x = cpu.rows(2, HIDDEN).unwrap();
    let mut narrow = cpu.rows(2, 16).unwrap();
    assert_eq!(refusal(cpu.embed(&table, &mut x)), "embed: the call must be between begin and end, got outside a pass");
    assert_eq!(
        refusal(cpu.begin(&plan(vec![Row { sequence: 2, ..row(0, 0) }]))),
        "begin: a row's sequence must be below 2, got 2"
    );
    assert_eq!(refusal(cpu.begin(&plan(vec![row(0, 97)]))), "begin: a sequence's pages must be 4, got 3");
    refusal(cpu.begin(&plan(vec![Row { response_count: 3, ..row(0, 1) }])));
    refusal(cpu.end());

    cpu.begin(&plan(vec![row(0, 0), Row { token: VOCABULARY as u32, slot: 8 * 32, ..row(0, 1) }])).unwrap();
    assert_eq!(refusal(cpu.embed(&table, &mut x)), "embed: a row's token must be below 50, got 50");
    assert_eq!(refusal(cpu.accumulate(&x, 0, &mut cache)), "accumulate: a row's slot must be below 256, got 256");
    assert_eq!(refusal(cpu.accumulate(&x, 1, &mut cache)), "accumulate: the tap must be below 1, got 1");
    assert_eq!(refusal(cpu.embed(&table, &mut narrow)), "embed: x must be 64, got 16");
    assert_eq!(refusal(cpu.linear_add(&x, &layers[0].down, &mut narrow)), "linear_add: the input must be 96, got 64");
    refusal(cpu.begin(&plan(vec![])));
    refusal(cpu.commit(&mut cache, &[], 0..1));
    cpu.end().unwrap();

    let mut logits = cpu.logits(2, VOCABULARY).unwrap();
    assert_eq!(
        refusal(cpu.head(&x, &[(0, 1), (1, 1)], &gain, &table, &mut logits)),
        "head: a slot must be written once, got 1 twice"
    );
    refusal(cpu.head(&x, &[(2, 0)], &gain, &table, &mut logits));
    refusal(cpu.head(&x, &[(0, 2)], &gain, &table, &mut logits));
    refusal(cpu.commit(&mut cache, &[(0, 256)], 0..2));
    refusal(cpu.commit(&mut cache, &[], 1..3));
    let mut other = cpu.rows(1, HIDDEN).unwrap();
    refusal(cpu.copy_rows(&x, &[0, 1], &mut other, 0));
    refusal(cpu.copy_rows(&x, &[2], &mut other, 0));
    refusal(cpu.copy_rows(&x, &[0], &mut other, usize::MAX));
    refusal(cpu.top_k(&logits, &[TopKQuery { slot: 2, k: 4, vocabulary: &[] }]).map(|_| ()));
    refusal(cpu.sample(&logits, &[Draw { slot: 2, temperature: 1.0, top_p: 1.0, ..Draw::default() }]).map(|_| ()));
    assert!(cpu.rows(usize::MAX, 2).is_err());
}

#[test]
fn rows_are_copied_where_they_are_told() {
    let Model { mut cpu, table, .. } = model(Isa::best(), 1);
    let mut x = cpu.rows(3, HIDDEN).unwrap();
    let mut y = cpu.rows(3, HIDDEN).unwrap();
    cpu.begin(&plan(vec![row(0, 0), row(0, 1), row(0, 2)])).unwrap();
    cpu.embed(&table, &mut x).unwrap();
    cpu.end().unwrap();
    cpu.copy_rows(&x, &[2, 0], &mut y, 1).unwrap();
    let (mut from, mut to) = (vec![], vec![]);
    cpu.read_rows(&x, 3, &mut from).unwrap();
    cpu.read_rows(&y, 3, &mut to).unwrap();
    let expected = [&[0.0; HIDDEN][..], &from[2 * HIDDEN..], &from[..HIDDEN]].concat();
    assert_eq!(to, expected);
}
