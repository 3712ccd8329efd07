//! The default model against a reference in f32 (numpy, weights dequantised exactly), for five prompts.
//!
//! The reference file has the logits of its 20 likeliest tokens and no more. Two divergences are bounded: the KL of
//! 21 outcomes, those 20 and everything else lumped into one, which is a lower bound of the KL over the whole
//! vocabulary (lumping never adds to it); and the KL among the 20 alone, renormalised. The second needs nothing
//! but the file, the first the reference's [`LOG_NORMALIZERS`].

use serde::Deserialize;
use vassal::engine::EngineOptions;
use vassal::host::{Host, HostOptions};
use vassal::model::llama::Taps;
use vassal::token::Token;
use vassal_kernels::{Device, Plan, Row};

use crate::support::default_model;

/// ln Σ exp(logit) of the reference for each prompt. The file lacks them; `tests/goldens/log_normalizers.py` repeats its
/// forward pass in numpy, without a line of ours, and prints them (to 1e-5; the 20 logits come out alike to 4e-5).
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

/// ln of the sum of exponentials.
fn normalizer(logits: impl Iterator<Item = f64> + Clone) -> f64 {
    let largest = logits.clone().fold(f64::NEG_INFINITY, f64::max);
    largest + logits.map(|logit| (logit - largest).exp()).sum::<f64>().ln()
}

/// KL of probabilities that sum to 1, from the reference's.
fn divergence(reference: &[f64], ours: &[f64]) -> f64 {
    reference.iter().zip(ours).map(|(p, q)| p * (p / q).ln()).sum()
}

/// Logits as probabilities, and what is left as one more.
fn lumped(logits: &[f64], normalizer: f64) -> Vec<f64> {
    let mut shares: Vec<f64> = logits.iter().map(|logit| (logit - normalizer).exp()).collect();
    shares.push(1.0 - shares.iter().sum::<f64>());
    shares
}

/// Logits as probabilities of nothing but themselves.
fn renormalised(logits: &[f64]) -> Vec<f64> {
    let all = normalizer(logits.iter().copied());
    logits.iter().map(|logit| (logit - all).exp()).collect()
}

#[test]
fn the_default_model_agrees_with_the_reference() {
    let Some(model) = default_model() else { return };
    let engine = EngineOptions {
        sequences_max: 1,
        cache_tokens: 128,
        rows_max: 64,
        candidate_rows_max: 1,
        ..EngineOptions::default()
    };
    let mut host = Host::open(&HostOptions { head_kind: None, engine, ..HostOptions::new(model) }).unwrap();
    let goldens: Goldens = serde_json::from_str(include_str!("goldens/smollm2_q4_1.json")).unwrap();
    assert_eq!(goldens.prompts.len(), 5);
    let (mut sums, mut compared_first) = ([0.0; 2], 0);
    for (golden, normalizer_there) in goldens.prompts.iter().zip(LOG_NORMALIZERS) {
        let ids = host.request(&golden.prompt).unwrap().prompt;
        assert_eq!(ids, golden.ids, "tokens of {:?}", golden.prompt);
        let logits = logits_after(&mut host, &ids);
        let ours = normalizer(logits.iter().map(|logit| f64::from(*logit)));
        let here: Vec<f64> = golden.top20_ids.iter().map(|&id| f64::from(logits[id])).collect();
        let there = &golden.top20_logits;
        let kl = divergence(&lumped(there, normalizer_there), &lumped(&here, ours));
        let among = divergence(&renormalised(there), &renormalised(&here));
        eprintln!("KL {kl:.4}, among the 20 alone {among:.4}, for {:?}", golden.prompt);
        for (sum, kl) in sums.iter_mut().zip([kl, among]) {
            assert!((0.0..=KL_MAX).contains(&kl), "KL {kl} for {:?}", golden.prompt);
            *sum += kl;
        }
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b)));
        let overlap = order[..20].iter().filter(|id| golden.top20_ids.contains(id)).count();
        assert!(overlap >= 18, "{overlap} of the top 20 for {:?}", golden.prompt);
        if golden.top1_top2_gap >= 0.25 {
            assert_eq!(order[0], golden.top20_ids[0], "{:?}", golden.prompt);
            compared_first += 1;
        }
    }
    assert!(sums.iter().all(|sum| sum / 5.0 <= KL_MEAN_MAX), "sums of five KLs {sums:?}");
    assert_eq!(compared_first, 4, "prompts whose likeliest token leads by .25 or more");
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
