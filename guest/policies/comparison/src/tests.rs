//! What the three methods put in the values' place.
//!
//! Natively, against the SDK's double of a host, with values and logits made up here; the component itself runs in
//! the evaluation's tests.

use vassal_guest::test::{FakeHost, Harness};

use super::*;

fn value(head: u32, tokens: &[Token]) -> f32 {
    let mixed = tokens.iter().fold(head + 7, |mixed, token| (mixed ^ (token + 1)).wrapping_mul(0x9e37_79b9));
    (mixed >> 8) as f32 / 4e6 - 2.0
}

fn logits() -> Vec<f32> {
    (0..50).map(|token| ((token * 37) % 101) as f32 * 0.05).collect()
}

/// What is added to each token's logit at a dial of 1, where the spread is 1: less the baseline, the values.
fn added(method: &str, length: usize) -> Vec<f32> {
    let host = FakeHost::new(&["x"; 50]).values(value);
    let harness = Harness::<Comparison>::new(host).offer("good", "value", 1.0).set("method", method).set("good", 1.0);
    let mut harness = harness.set("candidates", 50.0);
    harness.start().unwrap();
    for token in 0..length {
        harness.commit(token as Token);
    }
    let (steered, logits) = (harness.steered(&logits()), logits());
    steered.iter().zip(&logits).map(|(steered, logit)| steered - logit).collect()
}

fn sorted(mut numbers: Vec<f32>) -> Vec<f32> {
    numbers.sort_by(f32::total_cmp);
    numbers
}

fn less_first(numbers: &[f32]) -> Vec<f32> {
    numbers.iter().map(|number| number - numbers[0]).collect()
}

#[test]
fn fudge_adds_the_log_of_the_probability() {
    let expected: Vec<f32> = (0..50).map(|token| ln_probability(value(0, &[token]))).collect();
    for (got, expected) in less_first(&added("fudge", 0)).iter().zip(less_first(&expected)) {
        assert!((got - expected).abs() < 1e-5, "{got} for {expected}");
    }
    assert!((ln_probability(0.0) - 0.5f32.ln()).abs() < 1e-6);
    assert_eq!(ln_probability(100.0), 0.0);
    assert_eq!(ln_probability(-100.0), -100.0);
}

#[test]
fn shuffled_values_are_the_same_values_elsewhere() {
    let own: Vec<f32> = (0..50).map(|token| value(0, &[token])).collect();
    let first = added("shuffled", 0);
    let ranges = |numbers: Vec<f32>| less_first(&sorted(numbers));
    for (got, expected) in ranges(first.clone()).iter().zip(ranges(own.clone())) {
        assert!((got - expected).abs() < 1e-5, "{got} for {expected}");
    }
    let moved = first.iter().zip(&own).filter(|(a, b)| ((*a - first[0]) - (*b - own[0])).abs() > 1e-4).count();
    assert!(moved > 40, "{moved} of 50 moved");
    assert_ne!(first, added("shuffled", 1), "every step deals anew");
    assert_eq!(first, added("shuffled", 0));
}

#[test]
fn random_values_have_the_spread() {
    let numbers: Vec<f32> = (0..20).flat_map(|length| added("random", length)).collect();
    let mean = numbers.iter().sum::<f32>() / numbers.len() as f32;
    let variance = numbers.iter().map(|number| (number - mean).powi(2)).sum::<f32>() / numbers.len() as f32;
    assert!((variance.sqrt() - 1.0).abs() < 0.1, "{variance}");
}
