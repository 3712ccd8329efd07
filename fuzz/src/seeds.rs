//! Where each target starts from: inputs made of the tests' models, the shipped heads and policies and the guide's
//! example. Nothing of it is in the repository twice.
//!
//! A target writes its seeds where it is started with [`FOLDER`] in its environment, and ends; `run` does that.

use std::path::Path;

use vassal::model::heads::{Description, FORMAT, HeadFile, HeadKind, HeadWeights, Provenance};
use vassal::model::synthetic::SyntheticModel;
use vassal_kernels::{Format, LinearHead, OnePassHead};

use crate::audit;

/// The environment's name for the folder into which seeds are written.
pub const FOLDER: &str = "VASSAL_FUZZ_SEEDS";

/// Writes a target's seeds and ends the process, where that is asked for.
pub fn write_if_asked(target: &str) {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let folder = Path::new(&folder);
    std::fs::create_dir_all(folder).expect("the folder of the seeds");
    for (number, seed) in of(target).into_iter().enumerate() {
        std::fs::write(folder.join(format!("seed-{number}")), seed).expect("a seed");
    }
    // Its guest is built now, not on the time of the run.
    if target == "decision" {
        drop(crate::decision::guest());
    }
    std::process::exit(0);
}

fn of(target: &str) -> Vec<Vec<u8>> {
    match target {
        "gguf" => models(),
        "head_file" => heads().iter().map(|head| head.to_bytes().expect("a valid head")).chain(choices()).collect(),
        "component" => [shipped().to_vec()].into_iter().chain(choices()).collect(),
        "tenant" => examples(include_str!("../../docs/tenants.md")),
        "audit" => audits(),
        _ => choices().collect(),
    }
}

/// A model of the tests, as small as it can be with two layers to read.
pub fn model() -> SyntheticModel {
    SyntheticModel { layers: 2, hidden: 32, heads: 2, kv_heads: 1, feed_forward: 32, ..SyntheticModel::default() }
}

fn models() -> Vec<Vec<u8>> {
    let small = crate::gguf::model();
    let plain = SyntheticModel { matrices: Format::F32, embedding: Format::F16, biases: true, ..small.clone() };
    vec![small.bytes(), SyntheticModel { own_output: true, ..plain }.bytes()].into_iter().chain(choices()).collect()
}

fn shipped() -> &'static [u8] {
    include_bytes!("../../guest/policies/vas_plain.wasm")
}

/// Two heads of the model above, one of each kind, of spread 1.
pub fn heads() -> Vec<HeadFile> {
    let (hidden, vocabulary) = (model().hidden, model().vocabulary_size());
    // Numbers that differ, between -1 and 1.
    let some = |count: usize, scale: f32| -> Vec<f32> {
        (0..count).map(|at| scale * ((at * 37 % 64) as f32 / 32.0 - 1.0)).collect()
    };
    let look_ahead = LinearHead {
        tap: 0,
        residual: some(hidden, 0.2),
        mean: some(hidden, 0.3),
        share: some(hidden, 0.1),
        remaining: 0.5,
        bias: -0.25,
    };
    let rank = 2;
    let one_pass = OnePassHead {
        tap: 0,
        rank,
        state: some(rank * (2 * hidden + 2), 0.1),
        embedding: some(rank * hidden, 0.3),
        token_bias: some(vocabulary, 1.0).into_iter().map(half::f16::from_f32).collect(),
    };
    vec![
        HeadFile {
            description: description("sentiment", HeadKind::LookAhead),
            weights: HeadWeights::LookAhead(look_ahead),
        },
        HeadFile { description: description("simplicity", HeadKind::OnePass), weights: HeadWeights::OnePass(one_pass) },
    ]
}

fn description(name: &str, kind: HeadKind) -> Description {
    let provenance = Provenance::made_up("a seed");
    Description {
        format: FORMAT.into(),
        name: name.into(),
        kind,
        layer: 1,
        layers: model().layers,
        hidden: model().hidden,
        vocabulary: model().vocabulary_size(),
        model_sha256: "0".repeat(64),
        spread: 1.0,
        token_limit: 24,
        text: None,
        provenance,
    }
}

/// The fenced examples of a guide in TOML.
fn examples(guide: &str) -> Vec<Vec<u8>> {
    let blocks = guide.split("```toml\n").skip(1);
    blocks.filter_map(|block| block.split("```").next()).map(|block| block.as_bytes().to_vec()).collect()
}

/// A valid file, the bodies of one (`@` stands for the hash of the line before), a change, and one cut short.
fn audits() -> Vec<Vec<u8>> {
    let first = audit::sealed(&audit::body(vassal::audit::record::NO_PREVIOUS, 1));
    let bodies = [audit::body("@", 1), audit::body("@", 2)].join(&b'\n');
    let with = |kind: u8, rest: &[u8]| [&[kind], rest].concat();
    let mut all = vec![
        with(audit::kind::FILE, &first),
        with(audit::kind::FILE, &first[..first.len() / 2]),
        with(audit::kind::BODIES, &bodies),
    ];
    all.extend(choices().map(|choices| with(audit::kind::CHANGES, &choices)));
    all
}

/// Inputs of choices alone: long enough that none ends before what it decides.
fn choices() -> impl Iterator<Item = Vec<u8>> {
    (0..8usize).map(|seed| {
        let mut state = seed as u64 + 1;
        let mut next = move || {
            // A linear congruential generator (Knuth's constants): only that bytes differ counts.
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        };
        (0..64 << (seed % 4)).map(|_| next()).collect()
    })
}
