//! The recording is sound, shipped policies pass, and what does not is refused at its stage.
//!
//! What a user sees of it, and hostile components, are in the integration test `cli`. Start at
//! [`shipped_policies_pass`].
//!
//! Components that misbehave on purpose are the integration tests' (`tests/attacks.rs`); here it is what
//! an honest author gets wrong.

use super::*;

fn check(component: &[u8], settings: &[(String, String)]) -> Report {
    let offered =
        ["sentiment", "simplicity"].map(|name| HeadOffer { name: name.into(), kind: "value".into(), spread: 0.1 });
    let check = Check {
        name: "policy",
        component,
        offered: &offered,
        settings,
        granted: Needs::ALL,
        vocabulary: None,
        compilation: Compilation::InProcess,
    };
    check.run().unwrap()
}

fn outcomes(report: &Report) -> Vec<(&'static str, &Outcome)> {
    report.stages.iter().map(|stage| (stage.name, &stage.outcome)).collect()
}

#[test]
fn shipped_policies_pass() {
    for policy in &crate::shipped::POLICIES {
        let report = check(policy.component, &[]);
        assert_eq!(report.refusal(), None, "{}: {report:?}", policy.name);
        assert_eq!(report.stages.len(), 6);
        let tally = &report.tally;
        assert!(tally.responses > 6 && tally.steps > 6 * 24, "{tally:?}");
        assert!(tally.fuel_start_max > 0 && tally.fuel_step_max > 0, "{tally:?}");
    }
    let dial = [("sentiment".to_owned(), "1".to_owned()), ("mode".to_owned(), "evaluate".to_owned())];
    let report = check(crate::shipped::POLICIES[0].component, &dial);
    assert!(report.tally.value_requests > 0 && report.refusal().is_none(), "{report:?}");
}

#[test]
fn the_first_stage_that_refuses_is_named() {
    let not_reached = &Outcome::NotReached;
    let report = check(b"not a component", &[]);
    let component = Outcome::Refused { kind: "not-webassembly" };
    let rest = ["contract", "describe", "settings", "start", "steps"].map(|name| (name, not_reached));
    assert_eq!(outcomes(&report)[0], ("component", &component));
    assert_eq!(outcomes(&report)[1..], rest);
    let vas = crate::shipped::POLICIES[0].component;
    let report = check(&vas[..vas.len() / 2], &[]);
    assert_eq!(report.refusal().unwrap().outcome, Outcome::Refused { kind: "invalid" });
}

#[test]
fn a_setting_of_the_callers_is_no_fault_of_the_policy() {
    let settings = [("sentimant".to_owned(), "1".to_owned())];
    let vas = crate::shipped::POLICIES[0].component;
    let offered = [HeadOffer { name: "sentiment".into(), kind: "value".into(), spread: 0.1 }];
    let check = Check {
        name: "vas",
        component: vas,
        offered: &offered,
        settings: &settings,
        granted: Needs::ALL,
        vocabulary: None,
        compilation: Compilation::InProcess,
    };
    let error = check.run().unwrap_err();
    assert!(matches!(&error, CheckError::Setting(_)) && error.to_string().contains("near: sentiment"), "{error}");
}

#[test]
fn the_recording_is_whole() {
    let recording = Recording::built_in().unwrap();
    let vocabulary = recording.vocabulary();
    for step in &recording.steps {
        assert_eq!(step.candidates.len(), 20);
        assert!(step.logits.is_sorted_by(|a, b| a >= b) && step.entropy > 0.0, "{step:?}");
        let mass: f32 = step.logits.iter().map(|logit| (logit - step.log_normalizer).exp()).sum();
        assert!(mass > 0.1 && mass <= 1.0001, "{mass}");
        for token in step.candidates.iter().chain([&step.drawn]) {
            assert!(vocabulary.is_special(*token) || !vocabulary.bytes(*token).is_empty(), "{token}");
        }
    }
    let text = "Ärger, 日本 \u{1}";
    let bytes: Vec<u8> = vocabulary.tokens(text).iter().flat_map(|&token| vocabulary.bytes(token)).copied().collect();
    assert_eq!(String::from_utf8_lossy(&bytes), text);
}

#[test]
fn a_damaged_recording_is_refused() {
    let good = Recording::built_in().unwrap();
    let broken = |change: fn(&mut Recording)| {
        let mut recording = good.clone();
        change(&mut recording);
        Recording::parse(&serde_json::to_string(&recording).unwrap()).unwrap_err().to_string()
    };
    assert!(broken(|recording| recording.format.clear()).contains("format"));
    assert!(broken(|recording| recording.steps.clear()).contains("no steps"));
    assert!(broken(|recording| recording.steps[3].values.truncate(5)).contains("step 3"));
    assert!(Recording::parse("{").is_err());
}
