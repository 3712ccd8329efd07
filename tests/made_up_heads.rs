//! Heads of the default synthetic model whose weights are made up.
//!
//! Random ones, for identities that hold whatever a head says, with share weights and with a reward of the text so far
//! besides; and one-pass heads whose values are known beforehand. Each has the spread 1 and a description that is accepted.

use vassal::model::heads::{Description, FORMAT, HeadFile, HeadKind, HeadWeights, Provenance, TextTerm};
use vassal::model::synthetic::SyntheticModel;
use vassal_kernels::{LinearHead, OnePassHead};

use crate::support::noise;

/// A look-ahead head of the default synthetic model with random weights, of spread 1.
pub(crate) fn look_ahead(name: &str, layer: usize, seed: u64) -> HeadFile {
    let hidden = SyntheticModel::default().hidden;
    let mut next = noise(seed);
    let mut weights = |scale: f32| (0..hidden).map(|_| scale * next()).collect::<Vec<f32>>();
    let (residual, mean) = (weights(0.15), weights(0.3));
    let head = LinearHead { tap: 0, residual, mean, share: Vec::new(), remaining: 0.5, bias: -0.25 };
    HeadFile { description: description(name, HeadKind::LookAhead, layer), weights: HeadWeights::LookAhead(head) }
}

/// The same head with random share weights besides: its value moves with the tokens of the limit that are used.
pub(crate) fn with_share(mut head: HeadFile) -> HeadFile {
    let HeadWeights::LookAhead(weights) = &mut head.weights else { panic!("a look-ahead head") };
    let mut next = noise(weights.residual.len() as u64);
    weights.share = weights.mean.iter().map(|_| 0.3 * next()).collect();
    head
}

/// The same head with a reward of the text so far: its words, of which eight are best.
pub(crate) fn with_text(mut head: HeadFile) -> HeadFile {
    let mut next = noise(8);
    let weights = (0..9).map(|_| 2.0 * next()).collect();
    head.description.text = Some(TextTerm { reward: "length 1: 8".into(), weights });
    head
}

/// A one-pass head with random weights, of spread 1.
pub(crate) fn one_pass(name: &str, layer: usize, seed: u64) -> HeadFile {
    let model = SyntheticModel::default();
    let (hidden, rank) = (model.hidden, 4);
    let mut next = noise(seed);
    let mut weights = |count: usize, scale: f32| (0..count).map(|_| scale * next()).collect::<Vec<f32>>();
    let head = OnePassHead {
        tap: 0,
        rank,
        state: weights(rank * (2 * hidden + 2), 0.1),
        embedding: weights(rank * hidden, 0.3),
        token_bias: weights(model.vocabulary_size(), 1.0).into_iter().map(half::f16::from_f32).collect(),
    };
    HeadFile { description: description(name, HeadKind::OnePass, layer), weights: HeadWeights::OnePass(head) }
}

/// A one-pass head whose values are exactly these, whatever came before.
pub(crate) fn token_values(name: &str, values: &[f32]) -> HeadFile {
    let hidden = SyntheticModel::default().hidden;
    let head = OnePassHead {
        tap: 0,
        rank: 1,
        state: vec![0.0; 2 * hidden + 2],
        embedding: vec![0.0; hidden],
        token_bias: values.iter().map(|value| half::f16::from_f32(*value)).collect(),
    };
    HeadFile { description: description(name, HeadKind::OnePass, 2), weights: HeadWeights::OnePass(head) }
}

fn description(name: &str, kind: HeadKind, layer: usize) -> Description {
    let model = SyntheticModel::default();
    Description {
        format: FORMAT.into(),
        name: name.into(),
        kind,
        layer,
        layers: model.layers,
        hidden: model.hidden,
        vocabulary: model.vocabulary_size(),
        model_sha256: "0".repeat(64),
        spread: 1.0,
        token_limit: 24,
        text: None,
        provenance: Provenance::made_up("a test"),
    }
}
