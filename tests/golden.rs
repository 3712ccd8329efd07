//! The default model against a reference in f32 (numpy, weights dequantised exactly), for five prompts.
//!
//! The reference file has the logits of its 20 likeliest tokens. With [`LOG_NORMALIZERS`] they are
//! probabilities, and what is left is a 21st outcome: distributions are compared over these 21.
//! The model is found where `vassal pull` put it, or pulled; where neither works the test says that it was
//! skipped, and fails where `CI=true`.

use std::path::PathBuf;

use serde::Deserialize;
use vassal::engine::EngineOptions;
use vassal::host::{Host, HostOptions};
use vassal::model::llama::Taps;
use vassal::model::source::{DEFAULT_MODEL, Models};
use vassal::token::Token;
use vassal_kernels::{Device, Plan, Row};

/// ln Σ exp(logit) of the reference for each prompt: not in its file, but computed once more in the same way
/// (the 20 logits came out alike to 1e-4).
const LOG_NORMALIZERS: [f64; 5] = [27.208_091, 31.580_348, 31.226_012, 35.130_868, 27.075_664];

/// Bounds of the mean and of each prompt, in nats.
const KL_MEAN_MAX: f64 = 0.01;
const KL_MAX: f64 = 0.02;

#[derive(Deserialize)]
struct Goldens {
    prompts: Vec<Golden>,
}

#[derive(Deserialize)]
struct Golden {
    prompt: String,
    ids: Vec<Token>,
    top20_ids: Vec<usize>,
    top20_logits: Vec<f64>,
    top1_top2_gap: f64,
}

/// The default model's file, or none after saying why.
pub(crate) fn default_model() -> Option<PathBuf> {
    let models = Models::from_env().unwrap();
    let found = models.find(DEFAULT_MODEL).or_else(|_| models.pull(DEFAULT_MODEL, &mut ()));
    match found {
        Ok(path) => Some(path),
        Err(error) => {
            let must = std::env::var("CI").is_ok_and(|value| value == "true");
            assert!(!must, "the default model is not to be had: {error}");
            eprintln!("SKIPPED: the default model is not to be had: {error}");
            None
        }
    }
}

/// ln of the sum of exponentials.
fn normalizer(logits: impl Iterator<Item = f64> + Clone) -> f64 {
    let largest = logits.clone().fold(f64::NEG_INFINITY, f64::max);
    largest + logits.map(|logit| (logit - largest).exp()).sum::<f64>().ln()
}

/// KL of some tokens' probabilities and of what is left, from the reference's.
fn divergence(reference: &[f64], ours: &[f64]) -> f64 {
    let with_rest = |shares: &[f64]| [shares, &[1.0 - shares.iter().sum::<f64>()]].concat();
    with_rest(reference).iter().zip(with_rest(ours)).map(|(p, q)| p * (p / q).ln()).sum()
}

#[test]
fn the_default_model_agrees_with_the_reference() {
    let Some(model) = default_model() else { return };
    let engine =
        EngineOptions { sequences_max: 1, cache_tokens: 128, rows_max: 64, candidate_rows_max: 1, taps: Vec::new() };
    let mut host = Host::open(&HostOptions { head_kind: None, engine, ..HostOptions::new(model) }).unwrap();
    let goldens: Goldens = serde_json::from_str(include_str!("goldens/smollm2_q4_1.json")).unwrap();
    assert_eq!(goldens.prompts.len(), 5);
    let (mut sum, mut compared_first) = (0.0, 0);
    for (golden, normalizer_there) in goldens.prompts.iter().zip(LOG_NORMALIZERS) {
        let ids = host.request(&golden.prompt).unwrap().prompt;
        assert_eq!(ids, golden.ids, "tokens of {:?}", golden.prompt);
        let logits = logits_after(&mut host, &ids);
        let ours = normalizer(logits.iter().map(|logit| f64::from(*logit)));
        let here: Vec<f64> = golden.top20_ids.iter().map(|&id| (f64::from(logits[id]) - ours).exp()).collect();
        let there: Vec<f64> = golden.top20_logits.iter().map(|logit| (logit - normalizer_there).exp()).collect();
        let kl = divergence(&there, &here);
        eprintln!("KL {kl:.4} for {:?}", golden.prompt);
        assert!((0.0..=KL_MAX).contains(&kl), "KL {kl} for {:?}", golden.prompt);
        sum += kl;
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b)));
        let overlap = order[..20].iter().filter(|id| golden.top20_ids.contains(id)).count();
        assert!(overlap >= 18, "{overlap} of the top 20 for {:?}", golden.prompt);
        if golden.top1_top2_gap >= 0.25 {
            assert_eq!(order[0], golden.top20_ids[0], "{:?}", golden.prompt);
            compared_first += 1;
        }
    }
    assert!(sum / 5.0 <= KL_MEAN_MAX, "mean KL {}", sum / 5.0);
    assert!(compared_first >= 2, "only {compared_first} gaps are wide enough");
}

/// The logits after a prompt, in one pass past the engine.
fn logits_after(host: &mut Host, tokens: &[Token]) -> Vec<f32> {
    let (device, model, cache, logits) = host.engine().parts();
    let row = |(position, &token): (usize, &Token)| {
        let position = position as u32;
        Row { token, position, sequence: 0, slot: position, response_count: 0, remaining: 0.0 }
    };
    let rows = tokens.iter().enumerate().map(row).collect();
    let layers = model.shape().layers;
    device.begin(&Plan { rows, block_tables: vec![vec![0, 1, 2, 3]] }).unwrap();
    model.forward(device, cache, 0..layers, &Taps::default()).unwrap();
    device.end().unwrap();
    model.head(device, &[(tokens.len() as u32 - 1, 0)], logits).unwrap();
    let mut out = Vec::new();
    device.read_logits(logits, 0, &mut out).unwrap();
    out
}
