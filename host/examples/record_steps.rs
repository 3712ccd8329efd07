//! Records the steps that `vassal policy check` drives policies with:
//!
//!     cargo run --release -p vassal --example record_steps -- MODEL.gguf > host/data/recorded_steps.json
//!
//! The model answers the built-in prompt once, unaligned. Then the response runs again, and at each of its
//! states the likeliest tokens are valued by a head of made-up, fixed weights: real heads are fitted anew now
//! and then, and the recording need not follow them.

use std::collections::BTreeMap;
use std::io::Write;

use anyhow::Context;
use vassal::engine::HeadId;
use vassal::host::{Host, HostOptions, hexadecimal};
use vassal::model::heads::{self, Description, HeadFile, HeadKind, HeadWeights, Provenance};
use vassal::policy_check::recorded::{FORMAT, RecordedStep, Recording};
use vassal::request::Request;
use vassal::token::Vocabulary;
use vassal_kernels::{LinearHead, ModelShape};

/// Steps to record, and candidates of each.
const STEPS: usize = 24;
const CANDIDATES: usize = 20;

fn main() -> anyhow::Result<()> {
    let model = std::env::args().nth(1).context("usage: record_steps MODEL.gguf")?;
    let mut host = Host::open_with(&HostOptions::new(model), |sha256, shape| Ok(vec![made_up_head(sha256, shape)]))?;
    let request = Request { max_tokens: Some(STEPS), seed: Some(1), ..host.request(vassal::shipped::PROMPT)? };
    let response = host.generate(request.clone(), |_| {})?.token_ids();
    anyhow::ensure!(response.len() == STEPS, "{} tokens, not {STEPS}: take another seed", response.len());

    let states: Vec<usize> = (0..STEPS).collect();
    let found = host.engine().candidate_states(&[HeadId(0)], &request.prompt, &response, &states, CANDIDATES, STEPS)?;
    // How much the head's values differ between next tokens: the unit that they are written in.
    let spread = (found.iter().map(|state| variance(&state.values[0])).sum::<f32>() / found.len() as f32).sqrt();
    anyhow::ensure!(spread.is_finite() && spread > 0.0, "the head values everything alike");
    let mean = found.iter().map(|state| state.state_values[0]).sum::<f32>() / found.len() as f32;
    let unit = |value: f32| ((value - mean) / spread * 1e4).round() / 1e4;
    let steps: Vec<RecordedStep> = found
        .iter()
        .zip(&response)
        .map(|(state, &drawn)| RecordedStep {
            drawn,
            candidates: state.top.tokens.clone(),
            logits: state.top.logits.clone(),
            values: state.values[0].iter().map(|&value| unit(value)).collect(),
            state: unit(state.state_values[0]),
            log_normalizer: state.top.log_normalizer,
            entropy: state.top.entropy,
        })
        .collect();

    let tokenizer = host.tokenizer();
    let mentioned = steps.iter().flat_map(|step| step.candidates.iter().chain([&step.drawn]));
    let single = 0..tokenizer.size() as u32;
    let single = single.filter(|&token| !tokenizer.is_special(token) && tokenizer.bytes(token).len() == 1);
    let tokens = mentioned.chain(&request.user_prompt).copied().chain(single);
    let tokens: BTreeMap<u32, String> = tokens.map(|token| (token, hexadecimal(tokenizer.bytes(token)))).collect();
    let recording = Recording {
        format: FORMAT.to_owned(),
        model_sha256: host.model().sha256.clone(),
        vocabulary: tokenizer.size(),
        end_of_text: tokenizer.end_of_text().to_vec(),
        prompt: request.user_prompt,
        steps,
        tokens,
    };
    // A line a step, so that a difference can be read.
    let text = serde_json::to_string(&recording)?;
    let text = text.replace("{\"drawn\"", "\n{\"drawn\"").replace(",\"tokens\":", ",\n\"tokens\":");
    writeln!(std::io::stdout(), "{text}")?;
    Ok(())
}

fn variance(values: &[f32]) -> f32 {
    let mean = values.iter().sum::<f32>() / values.len() as f32;
    values.iter().map(|value| (value - mean).powi(2)).sum::<f32>() / values.len() as f32
}

/// A look-ahead head two thirds up the model: weights of either sign, the same in every run.
fn made_up_head(model_sha256: &str, shape: &ModelShape) -> HeadFile {
    let sign = |place: usize| if (place as u32).wrapping_mul(0x9e37_79b9) >> 31 == 0 { 1.0 } else { -1.0 };
    let residual: Vec<f32> = (0..shape.hidden).map(sign).collect();
    let provenance = Provenance::made_up("record_steps");
    let description = Description {
        format: heads::FORMAT.to_owned(),
        name: "made-up".to_owned(),
        kind: HeadKind::LookAhead,
        layer: (shape.layers * 2).div_ceil(3),
        layers: shape.layers,
        hidden: shape.hidden,
        vocabulary: shape.vocabulary,
        model_sha256: model_sha256.to_owned(),
        spread: 1.0,
        token_limit: STEPS as u32,
        text: None,
        provenance,
    };
    let head =
        LinearHead { tap: 0, residual, mean: vec![0.0; shape.hidden], share: Vec::new(), remaining: 0.0, bias: 0.0 };
    HeadFile { description, weights: HeadWeights::LookAhead(head) }
}
