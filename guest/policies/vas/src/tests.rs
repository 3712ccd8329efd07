//! The dial, the three modes, and what a dial of 0 does.
//!
//! Everything runs natively against the SDK's double of a host, with values and logits made up here; that the
//! component does the same is tested in `tests/policies.rs`.

use vassal_guest::test::{FakeHost, Harness};

use super::*;

/// Uneven values, so that a sum in another order would show.
fn value(head: u32, tokens: &[Token]) -> f32 {
    let mixed = tokens.iter().fold(head + 7, |mixed, token| mixed.wrapping_mul(0x9e37_79b9) ^ (token + 1));
    (mixed >> 8) as f32 / 1e6 - 5.0
}

fn logits(length: usize) -> Vec<f32> {
    (0..200).map(|token| ((token * 37 + length * 11) % 101) as f32 * 0.13 - 4.0).collect()
}

fn harness() -> Harness<Vas> {
    let host = FakeHost::new(&["x"; 200]).values(value);
    Harness::new(host).offer("sentiment", "value", 0.031).offer("simplicity", "value", 0.7)
}

fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|logit| logit.to_bits()).collect()
}

#[test]
fn three_modes_give_the_same_bits() {
    for baseline in ["weighted", "candidates", "state", "none"] {
        for tail in ["keep", "mask"] {
            let run = |mode: &str| {
                let mut harness = harness()
                    .set("mode", mode)
                    .set("baseline", baseline)
                    .set("tail", tail)
                    .set("floor", 0.001)
                    .set("sentiment", 0.8)
                    .set("simplicity", -0.35);
                harness.request.temperature = 0.7;
                harness.start().unwrap();
                let steps = (0..5).map(|length| {
                    let steered = bits(&harness.steered(&logits(length)));
                    harness.commit(length as Token * 3);
                    steered
                });
                steps.collect::<Vec<_>>()
            };
            let blend = run("blend");
            assert_eq!(blend, run("adjust"), "{baseline} {tail}");
            assert_eq!(blend, run("evaluate"), "{baseline} {tail}");
            assert_ne!(blend[0], bits(&logits(0)), "the dials do something");
        }
    }
}

#[test]
fn a_dial_is_nats_by_the_spread() {
    let mut harness = harness().set("sentiment", 1.5);
    harness.request.temperature = 0.5;
    harness.start().unwrap();
    let step = harness.step(&logits(0));
    let Decision::Steer(steering) = harness.decide(&step) else { panic!("a steering") };
    let weight = (1.5 * 0.5 / f64::from(0.031f32)) as f32;
    assert_eq!(steering.blend, [HeadWeight { head: 0, weight, baseline: Baseline::Weighted }]);
    harness.request.temperature = 0.0;
    harness.start().unwrap();
    let Decision::Steer(greedy) = harness.decide(&step) else { panic!("a steering") };
    assert_eq!(greedy.blend[0].weight, (1.5 / f64::from(0.031f32)) as f32);
}

#[test]
fn only_turned_heads_are_prefetched() {
    let mut harness = harness().set("simplicity", 0.5).set("candidates", 40.0);
    harness.start().unwrap();
    let plan = Plan { candidates: 40, candidates_floor: 0.0, prefetch: vec![Schedule::Never, Schedule::EVERY_STEP] };
    assert_eq!(*harness.plan(), plan);
    let mut asking = self::harness().set("simplicity", 0.5).set("mode", "evaluate");
    asking.start().unwrap();
    assert_eq!(asking.plan().prefetch, [Schedule::Never, Schedule::Never]);
}

#[test]
fn dial_0_is_the_base_model() {
    let mut keep = harness();
    keep.start().unwrap();
    assert_eq!(keep.decide(&keep.step(&logits(0))), Decision::Keep);
    let mut mask = harness().set("tail", "mask").set("candidates", 3.0);
    mask.start().unwrap();
    let steered = mask.steered(&logits(0));
    let step = mask.step(&logits(0));
    for (token, logit) in steered.iter().enumerate() {
        let base = if step.candidates.contains(&(token as Token)) { logits(0)[token] } else { f32::NEG_INFINITY };
        assert_eq!(*logit, base);
    }
    assert_eq!(step.candidates.len(), 3);
}

#[test]
fn a_constant_added_to_all_values_changes_nothing() {
    for baseline in ["weighted", "candidates", "state"] {
        let run = |constant: f32| {
            // Eighths, and dials that make weights powers of two, are exact in every operation.
            let host = FakeHost::new(&["x"; 4]).values(move |_, tokens| constant + tokens.len() as f32 / 8.0);
            let mut harness =
                Harness::<Vas>::new(host).offer("h", "value", 0.5).set("h", 2.0).set("baseline", baseline);
            harness.start().unwrap();
            bits(&harness.steered(&[1.0; 4]))
        };
        assert_eq!(run(0.0), run(1024.0), "{baseline}");
    }
}

#[test]
fn a_failing_head_is_noted_once_and_the_base_stands() {
    let mut harness = harness().set("mode", "evaluate").set("sentiment", 1.0);
    harness.start().unwrap();
    // More candidates than the request allows is an error of the host's.
    let step =
        Step { candidates: (0..300).map(|token| token % 200).collect(), logits: vec![0.0; 300], ..Step::default() };
    for _ in 0..2 {
        assert_eq!(harness.decide(&step), Decision::Steer(Steering::default()));
    }
    assert_eq!(harness.host().notes().len(), 1);
}

#[test]
fn heads_without_a_usable_dial_are_left_out() {
    let offer = |name: &str, spread| HeadOffer { name: name.into(), kind: "value".into(), spread };
    let offered = [offer("mode", 1.0), offer("flat", 0.0), offer("odd", f32::NAN), offer("good", 1.0)];
    assert_eq!(Vas::manifest(&offered).heads, ["good"]);
}
