//! Whole passes of a model of two small layers, as `host/src/model/llama.rs` runs them: near the CPU's numbers, and the
//! same bits however a sequence is cut into passes and whoever is beside it; and what does not fit is refused by name.
//!
//! The CPU quantises activations to 8 bits, so logits differ by its rounding, not ours: a few hundredths of their
//! size. What each kernel owes is bounded tightly in the other files.

use vassal_cuda_stand_in::in_child;

use half::f16;

use super::{Random, bits, cpu, cuda, model};
use crate::device::{
    CacheShape, Device, DeviceError, Draw, LinearHead, ModelShape, OnePassHead, PAGE_TOKENS, Plan, Projections,
    RopePairing, Row, TopKQuery,
};
use crate::format::Format;

const HIDDEN: usize = 64;
const VOCABULARY: usize = 50;
/// No multiple of what passes are filled up to.
const ROWS_MAX: usize = 41;

struct Layer<D: Device> {
    query: D::Matrix,
    key: D::Matrix,
    value: D::Matrix,
    output: D::Matrix,
    gate: D::Matrix,
    up: D::Matrix,
    down: D::Matrix,
}

pub(super) struct Model<D: Device> {
    pub(super) device: D,
    table: D::Matrix,
    gain: D::Vector,
    biases: [D::Vector; 3],
    layers: Vec<Layer<D>>,
    cache: D::Cache,
    /// The residual stream, queries, what attention gives, and the feed-forward part.
    buffers: [D::Rows; 4],
}

/// Results of every row of a pass.
#[derive(Debug, Default, Clone)]
pub(super) struct Results {
    logits: Vec<f32>,
    values: Vec<f32>,
    projections: Vec<f32>,
    features: Vec<f32>,
}

impl Results {
    pub(super) fn bits(&self) -> [Vec<u32>; 4] {
        [&self.logits, &self.values, &self.projections, &self.features].map(|x| bits(x))
    }
}

fn shape(pairing: RopePairing) -> ModelShape {
    model(HIDDEN, [4, 2, 16], pairing)
}

impl<D: Device> Model<D> {
    pub(super) fn new(mut device: D, pairing: RopePairing) -> Self {
        let mut random = Random(1);
        let mut matrix = |device: &mut D, format: Format, n: usize, k: usize| {
            let bytes = random.weights(format, n, k, 0.12);
            device.matrix(format, n, k, &bytes).expect("a valid matrix")
        };
        let mut layer = |device: &mut D, format| Layer {
            query: matrix(device, format, 64, HIDDEN),
            key: matrix(device, format, 32, HIDDEN),
            value: matrix(device, Format::Q8_0, 32, HIDDEN),
            output: matrix(device, format, HIDDEN, 64),
            gate: matrix(device, format, 96, HIDDEN),
            up: matrix(device, format, 96, HIDDEN),
            down: matrix(device, format, HIDDEN, 96),
        };
        let layers = vec![layer(&mut device, Format::Q4_1), layer(&mut device, Format::Q4_0)];
        let mut random = Random(2);
        let table = random.weights(Format::Q8_0, VOCABULARY, HIDDEN, 1.0);
        Model {
            table: device.matrix(Format::Q8_0, VOCABULARY, HIDDEN, &table).unwrap(),
            gain: device.vector(&[1.25; HIDDEN]).unwrap(),
            biases: [64, 32, 32].map(|n| device.vector(&vec![0.1; n]).unwrap()),
            layers,
            cache: device.cache(&shape(pairing), &CacheShape { pages: 9, taps: vec![1] }).unwrap(),
            buffers: [HIDDEN, 64, 64, 96].map(|width| device.rows(ROWS_MAX, width).unwrap()),
            device,
        }
    }

    /// Runs a pass and returns what each row gave.
    pub(super) fn pass(&mut self, plan: &Plan) -> Vec<Results> {
        let Model { device, table, gain, biases: [q_bias, k_bias, v_bias], layers, cache, buffers } = self;
        let rows = plan.rows.len();
        let [x, q, attended, wide] = buffers;
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
        device.begin(plan).unwrap();
        device.embed(table, x).unwrap();
        for (index, layer) in layers.iter().enumerate() {
            let biases = (index == 1).then_some([&*q_bias, &*k_bias, &*v_bias]);
            let weights = Projections { query: &layer.query, key: &layer.key, value: &layer.value, biases };
            device.norm_qkv_store(x, gain, weights, cache, index, q).unwrap();
            device.attend(q, cache, index, attended).unwrap();
            device.linear_add(attended, &layer.output, x).unwrap();
            device.norm_gate_up(x, gain, &layer.gate, &layer.up, wide).unwrap();
            device.linear_add(wide, &layer.down, x).unwrap();
            if index == 0 {
                device.accumulate(x, 0, cache).unwrap();
                values = device.values(x, cache, &linear).unwrap();
                projections = device.project(x, cache, &one_pass).unwrap();
                device.read_features(x, 0, cache, &mut features).unwrap();
            }
        }
        device.end().unwrap();
        let mut logits = device.logits(rows, VOCABULARY).unwrap();
        let ends: Vec<(u32, u32)> = (0..rows as u32).map(|row| (row, row)).collect();
        device.head(x, &ends, gain, table, &mut logits).unwrap();
        let mut all = Vec::new();
        for row in 0..rows {
            let mut logits_of_row = Vec::new();
            device.read_logits(&logits, row as u32, &mut logits_of_row).unwrap();
            assert!(logits_of_row.iter().all(|logit| logit.is_finite()));
            all.push(Results {
                logits: logits_of_row,
                values: values[row..=row].to_vec(),
                projections: projections[row * 3..][..3].to_vec(),
                features: features[row * (2 * HIDDEN + 2)..][..2 * HIDDEN + 2].to_vec(),
            });
        }
        all
    }
}

/// Sequence `sequence` of a plan whose pages are `4 * sequence ..`; its response begins at position 5.
pub(super) fn row(sequence: u32, position: u32) -> Row {
    Row {
        token: (position * 7 + 11 * sequence) % VOCABULARY as u32,
        position,
        sequence,
        slot: 4 * sequence * PAGE_TOKENS as u32 + position,
        response_count: (position + 1).saturating_sub(5),
        remaining: 1.0 - position as f32 / 64.0,
    }
}

pub(super) fn plan(rows: Vec<Row>) -> Plan {
    Plan { rows, block_tables: vec![vec![0, 1, 2], vec![4, 5, 6]] }
}

/// How far apart two vectors are, relative to their size.
fn distance(a: &[f32], b: &[f32]) -> f64 {
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let difference = norm(&mut a.iter().zip(b).map(|(a, b)| f64::from(*a) - f64::from(*b)));
    difference / norm(&mut b.iter().map(|b| f64::from(*b)))
}

/// A short prompt near the CPU's numbers, with halves.
pub(super) fn check_near() {
    let whole = plan((0..20).map(|position| row(0, position)).collect());
    let (near, got) =
        (Model::new(cpu(), RopePairing::Halves).pass(&whole), Model::new(cuda(), RopePairing::Halves).pass(&whole));
    for (near, got) in near.iter().zip(&got) {
        let off = distance(&got.logits, &near.logits);
        assert!(off <= 0.06, "logits are {off} of their size away from the CPU's");
    }
}

#[test]
fn a_sequence_is_near_the_cpus_and_the_same_in_any_passes_and_company() {
    in_child!({
        for pairing in [RopePairing::Interleaved, RopePairing::Halves] {
            let positions = 40;
            let mut on_cpu = Model::new(cpu(), pairing);
            let mut alone = Model::new(cuda(), pairing);
            let whole = plan((0..positions).map(|position| row(0, position)).collect());
            let (near, expected) = (on_cpu.pass(&whole), alone.pass(&whole));
            for (near, got) in near.iter().zip(&expected) {
                let off = distance(&got.logits, &near.logits);
                assert!(off <= 0.06, "logits are {off} of their size away from the CPU's");
                assert!(distance(&got.features, &near.features) <= 0.06);
            }
            assert!(distance(&expected[0].logits, &expected[1].logits) > 0.3, "all rows alike would prove nothing");
            let mut here = Model::new(cuda(), pairing);
            let mut start = 0;
            for (chunk, company) in [(1, 0..9), (13, 9..10), (20, 10..13), (6, 13..30)] {
                let mut rows: Vec<Row> = company.map(|position| row(1, position)).collect();
                let others = rows.len();
                rows.extend((start..start + chunk).map(|position| row(0, position)));
                let results = here.pass(&plan(rows));
                for (got, expected) in results[others..].iter().zip(&expected[start as usize..]) {
                    assert_eq!(got.bits(), expected.bits(), "beside {others}");
                }
                start += chunk;
            }
            assert_eq!(start, positions);
        }
    });
}

/// A winner's scratch slot becomes its page's: the next row sees what it would have seen.
#[test]
fn a_committed_candidate_is_as_if_it_had_run_in_its_page() {
    in_child!({
        let prompt = plan((0..33).map(|position| row(0, position)).collect());
        let mut plain = Model::new(cuda(), RopePairing::Interleaved);
        plain.pass(&prompt);
        let first = plain.pass(&plan(vec![row(0, 33)]));
        let second = plain.pass(&plan(vec![row(0, 34)]));
        let mut ahead = Model::new(cuda(), RopePairing::Interleaved);
        ahead.pass(&prompt);
        let scratch = 8 * PAGE_TOKENS as u32;
        let candidate = |i: u32| Row { token: (i + 30) % 50, slot: scratch + i, ..row(0, 33) };
        let candidates: Vec<Row> = (0..20).map(candidate).collect();
        let winner = candidates.iter().position(|c| c.token == row(0, 33).token).expect("among the candidates");
        let results = ahead.pass(&plan(candidates));
        assert_eq!(results[winner].bits(), first[0].bits());
        let Model { device, cache, .. } = &mut ahead;
        device.commit(cache, &[(scratch + winner as u32, row(0, 33).slot)], 0..2).unwrap();
        assert_eq!(ahead.pass(&plan(vec![row(0, 34)]))[0].bits(), second[0].bits());
    });
}

#[test]
fn what_does_not_fit_is_refused() {
    in_child!({
        let Model { device: mut cuda, table, gain, mut cache, layers, .. } =
            Model::new(cuda(), RopePairing::Interleaved);
        let refusal = |result: Result<(), DeviceError>| match result {
            Err(error @ DeviceError::Shape { .. }) => error.to_string(),
            other => panic!("not refused: {other:?}"),
        };
        let (mut x, mut narrow) = (cuda.rows(2, HIDDEN).unwrap(), cuda.rows(2, 16).unwrap());
        assert_eq!(
            refusal(cuda.embed(&table, &mut x)),
            "embed: the call must be between begin and end, got outside a pass"
        );
        let elsewhere = plan(vec![Row { sequence: 2, ..row(0, 0) }]);
        assert_eq!(refusal(cuda.begin(&elsewhere)), "begin: a row's sequence must be below 2, got 2");
        assert_eq!(refusal(cuda.begin(&plan(vec![row(0, 97)]))), "begin: a sequence's pages must be 4, got 3");
        refusal(cuda.begin(&plan(vec![Row { response_count: 3, ..row(0, 1) }])));
        refusal(cuda.end());

        let beyond = Row { token: VOCABULARY as u32, slot: 9 * 32, ..row(0, 1) };
        cuda.begin(&plan(vec![row(0, 0), beyond])).unwrap();
        assert_eq!(refusal(cuda.embed(&table, &mut x)), "embed: a row's token must be below 50, got 50");
        assert_eq!(refusal(cuda.accumulate(&x, 0, &mut cache)), "accumulate: a row's slot must be below 288, got 288");
        assert_eq!(refusal(cuda.accumulate(&x, 1, &mut cache)), "accumulate: the tap must be below 1, got 1");
        assert_eq!(refusal(cuda.embed(&table, &mut narrow)), "embed: x must be 64, got 16");
        assert_eq!(
            refusal(cuda.linear_add(&x, &layers[0].down, &mut narrow)),
            "linear_add: the input must be 96, got 64"
        );
        refusal(cuda.attend(&x, &cache, 0, &mut narrow));
        refusal(cuda.begin(&plan(vec![])));
        refusal(cuda.commit(&mut cache, &[], 0..1));
        cuda.end().unwrap();

        let mut logits = cuda.logits(2, VOCABULARY).unwrap();
        assert_eq!(
            refusal(cuda.head(&x, &[(0, 1), (1, 1)], &gain, &table, &mut logits)),
            "head: a slot must be written once, got 1 twice"
        );
        refusal(cuda.head(&x, &[(2, 0)], &gain, &table, &mut logits));
        refusal(cuda.head(&x, &[(0, 2)], &gain, &table, &mut logits));
        refusal(cuda.commit(&mut cache, &[(0, 9 * 32)], 0..2));
        refusal(cuda.commit(&mut cache, &[], 1..3));
        let mut other = cuda.rows(1, HIDDEN).unwrap();
        refusal(cuda.copy_rows(&x, &[0, 1], &mut other, 0));
        refusal(cuda.copy_rows(&x, &[2], &mut other, 0));
        refusal(cuda.copy_rows(&x, &[0], &mut other, usize::MAX));
        refusal(cuda.top_k(&logits, &[TopKQuery { slot: 2, k: 4, vocabulary: &[] }]).map(|_| ()));
        refusal(cuda.top_k(&logits, &[TopKQuery { slot: 0, k: 257, vocabulary: &[] }]).map(|_| ()));
        refusal(cuda.sample(&logits, &[Draw { slot: 2, ..Draw::default() }]).map(|_| ()));
        refusal(cuda.sample(&logits, &[Draw { only: Some(vec![50]), ..Draw::default() }]).map(|_| ()));
        refusal(cuda.matrix(Format::Q8_0, 2, 33, &[0; 68]).map(|_| ()));
        refusal(cuda.matrix(Format::F16, 2, 3, &[0; 11]).map(|_| ()));
        refusal(
            cuda.cache(&model(64, [4, 2, 130], RopePairing::Halves), &CacheShape { pages: 1, taps: vec![] })
                .map(|_| ()),
        );
        assert!(cuda.rows(usize::MAX, 2).is_err());
        // An empty pass is one, and does nothing.
        cuda.begin(&plan(vec![])).unwrap();
        cuda.embed(&table, &mut x).unwrap();
        cuda.linear_add(&x, &layers[0].output, &mut other).unwrap();
        cuda.end().unwrap();
    });
}
