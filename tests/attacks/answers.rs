//! Answers: decisions, plans and requests for values that do not fit the step, the manifest or the contract.
//!
//! What is forged here is what an answer says of itself: lengths, places, tags. That a list is not lifted beyond its
//! number of bytes, to the byte, is in [`super::limits`].

use vassal::sandbox::{BadDecision, BadPlan, BadSchedule, Decision, FaultKind, Progress, Step, TrapCode, ValueAnswer};

use super::forged::{BUMP, Forged, put};
use super::{
    Served, adjust_of, bad_decision_of, decision_of, drive, fault_at, fault_of, hostile, hostile_in, start, step,
};

#[test]
fn answers_of_the_wrong_length_are_refused() {
    let _served = Served::as_before();
    assert_eq!(bad_decision_of("short"), BadDecision::AdjustLength { given: 3, candidates: 4 });
    assert_eq!(bad_decision_of("long"), BadDecision::AdjustLength { given: 5, candidates: 4 });
    assert_eq!(bad_decision_of("bias-lengths"), BadDecision::BiasLengths { tokens: 2, deltas: 1 });
    let long = BadDecision::TooLong { place: "bias", given: 1_025, limit: 1_024 };
    assert_eq!(bad_decision_of("bias-long"), long);
    assert_eq!(bad_decision_of("vocabulary-short"), BadDecision::VocabularyWords { given: 15, words: 16 });
    assert_eq!(bad_decision_of("vocabulary-long"), BadDecision::VocabularyWords { given: 17, words: 16 });
}

#[test]
fn numbers_are_bounded_and_nan_is_refused() {
    let _served = Served::as_before();
    for mode in ["nan", "huge", "infinite", "beyond", "vocabulary-nan", "bias-sum"] {
        let reason = bad_decision_of(mode);
        assert!(matches!(reason, BadDecision::Delta { .. }), "`{mode}`: {reason:?}");
    }
    assert!(matches!(bad_decision_of("weight-nan"), BadDecision::Weight { .. }));
    assert!(matches!(bad_decision_of("weight-forbids"), BadDecision::Weight { .. }));
    let bound = adjust_of(decision_of("bound").0);
    assert_eq!(bound, [10_000.0, -10_000.0, f32::NEG_INFINITY, 10_000.0]);
}

#[test]
fn unknown_tokens_and_heads_are_refused() {
    let _served = Served::as_before();
    let token = BadDecision::UnknownToken { place: "bias", given: 1_000, vocabulary: 1_000 };
    assert_eq!(bad_decision_of("token"), token);
    let token = BadDecision::UnknownToken { place: "insert", given: u32::MAX, vocabulary: 1_000 };
    assert_eq!(bad_decision_of("insert-token"), token);
    assert_eq!(bad_decision_of("head"), BadDecision::UnknownHead { given: 7, heads: 1 });
    assert_eq!(bad_decision_of("head-twice"), BadDecision::HeadTwice(0));
}

#[test]
fn biases_of_one_token_add_up_and_bits_beyond_the_vocabulary_are_dropped() {
    let _served = Served::as_before();
    let (Decision::Steer(steering), _) = decision_of("bias-twice") else { panic!() };
    assert_eq!(steering.bias, [(1, 2.0), (3, 5.0)]);
    let (Decision::Steer(steering), _) = decision_of("vocabulary-full") else { panic!() };
    let bits = steering.vocabulary.unwrap().bits;
    assert_eq!(bits.iter().map(|word| word.count_ones()).sum::<u32>(), 1_000);
}

#[test]
fn splices_and_stops_need_their_grants_and_stay_in_bounds() {
    let _served = Served::as_before();
    assert_eq!(bad_decision_of("stop"), BadDecision::NotGranted("stop"));
    assert_eq!(bad_decision_of("remove"), BadDecision::Remove { given: 5, most: 2 });
    assert_eq!(bad_decision_of("remove-too-early"), BadDecision::Remove { given: 3, most: 2 });
    let far = Step { kept: 10, ..step() };
    let FaultKind::BadDecision(reason) = fault_at("remove", &far) else { panic!() };
    assert_eq!(reason, BadDecision::Remove { given: 5, most: 4 });
    let long = BadDecision::TooLong { place: "insert", given: 257, limit: 256 };
    assert_eq!(bad_decision_of("insert-long"), long);
    assert_eq!(bad_decision_of("splice-nothing"), BadDecision::EmptySplice { ended: false });
    assert_eq!(decision_of("insert").0, Decision::Splice { remove: 0, insert: vec![1] });
}

#[test]
fn an_ended_response_is_kept_or_taken_back() {
    let _served = Served::as_before();
    let ended = Step { candidates: &[], logits: &[], ended: true, ..step() };
    assert_eq!(hostile_in("steer").decide(&ended), Progress::Decided(Decision::Keep));
    let FaultKind::BadDecision(reason) = fault_at("insert", &ended) else { panic!() };
    assert_eq!(reason, BadDecision::EmptySplice { ended: true });
    let mut instance = hostile_in("evaluate-refusals");
    assert_eq!(instance.decide(&ended), Progress::Decided(Decision::Keep), "nothing is evaluated after the end");
    assert!(instance.take_notes().iter().all(|note| note == "Err(NotNow)"));
}

#[test]
fn evaluations_are_bounded_a_step_and_refused_outside_of_one() {
    let _served = Served::as_before();
    let (decision, asked) = decision_of("evaluate-flood");
    assert_eq!((adjust_of(decision), asked), (vec![2.0; 4], 2));
    let (decision, asked) = decision_of("current-flood");
    assert_eq!((adjust_of(decision), asked), (vec![0.0; 4], 1));
    assert_eq!(fault_of("evaluate-forever"), FaultKind::OutOfFuel);
    let fault = start(&hostile(), &[("mode", "start-evaluate")]).err().unwrap();
    assert!(fault.detail.contains("only known while a step is decided"), "{fault}");
    let mut instance = hostile_in("evaluate-refusals");
    assert_eq!(instance.decide(&step()), Progress::Decided(Decision::Keep));
    let refusals = instance.take_notes();
    let expected = ["UnknownHead", "UnknownHead", "UnknownHead", "InvalidTokens", "InvalidTokens", "InvalidTokens"];
    assert_eq!(refusals, expected.map(|refusal| format!("Err({refusal})")));
}

#[test]
fn values_that_are_known_are_not_computed_again() {
    let _served = Served::as_before();
    let (decision, asked) = decision_of("evaluate-again");
    assert_eq!((adjust_of(decision), asked), (vec![1.0; 4], 1));
    let prefetched = Step { prefetched: 1, values: &[0.1, 0.2, 0.3, 0.4], ..step() };
    let (Progress::Decided(decision), asked) = drive(&mut hostile_in("evaluate-again"), &prefetched) else { panic!() };
    assert_eq!((adjust_of(decision), asked), (vec![1.0; 4], 0));
}

#[test]
fn a_failed_head_is_an_answer_to_the_guest() {
    let _served = Served::as_before();
    let mut instance = hostile_in("evaluate-flood");
    let mut progress = instance.decide(&step());
    while let Progress::Wants(_) = progress {
        assert!(instance.is_suspended());
        progress = instance.resume(ValueAnswer::Unavailable);
    }
    let Progress::Decided(decision) = progress else { panic!("{progress:?}") };
    assert_eq!(adjust_of(decision), [0.0; 4]);
}

#[test]
fn an_answer_that_is_too_large_is_not_lifted() {
    let _served = Served::as_before();
    assert_eq!(fault_of("flood-answer"), FaultKind::Error);
    // Half a billion deltas that are not there.
    let decide = "(i32.store8 (i32.const 512) (i32.const 1)) (i32.store (i32.const 516) (i32.const 1024))
        (i32.store (i32.const 520) (i32.const 0x1fffffff)) i32.const 512";
    let policy = Forged { decide, ..Forged::default() }.load().unwrap();
    let Progress::Faulted(fault) = start(&policy, &[]).unwrap().decide(&step()) else { panic!() };
    assert_eq!(fault.kind, FaultKind::Error);
    // A decision that does not exist.
    let decide = "(i32.store8 (i32.const 512) (i32.const 9)) i32.const 512";
    let policy = Forged { decide, ..Forged::default() }.load().unwrap();
    let Progress::Faulted(fault) = start(&policy, &[]).unwrap().decide(&step()) else { panic!() };
    assert_eq!(fault.kind, FaultKind::Error);
}

#[test]
fn plans_that_do_not_fit_the_manifest_are_refused() {
    let _served = Served::as_before();
    let bad_plan = |mode| match start(&hostile(), &[("mode", mode)]).err().unwrap().kind {
        FaultKind::BadPlan(reason) => reason,
        other => panic!("`{mode}`: {other:?}"),
    };
    assert_eq!(bad_plan("plan-candidates"), BadPlan::Candidates { given: 257, most: 256 });
    assert!(matches!(bad_plan("plan-floor"), BadPlan::Floor(_)));
    assert_eq!(bad_plan("plan-short"), BadPlan::Schedules { given: 0, heads: 1 });
    assert_eq!(bad_plan("plan-every"), BadPlan::Schedule { head: 0, given: BadSchedule::Every(0) });
}

#[test]
fn a_realloc_that_traps_or_lies_is_at_fault() {
    let _served = Served::as_before();
    let kind = |realloc: &str| {
        let body = format!("(if (global.get $started) (then {realloc})) {BUMP}");
        let policy = Forged { realloc: &body, ..Forged::default() }.load().unwrap();
        match start(&policy, &[]).unwrap().decide(&step()) {
            Progress::Faulted(fault) => fault.kind,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(kind("(unreachable)"), FaultKind::Trap(TrapCode::Unreachable));
    // Outside the memory, and not aligned.
    assert_eq!(kind("(return (i32.const -16))"), FaultKind::Error);
    assert_eq!(kind("(return (i32.const 1026))"), FaultKind::Error);
}

#[test]
fn lists_that_claim_to_be_endless_are_not_lifted() {
    let _served = Served::as_before();
    const ENDLESS: u32 = u32::MAX;
    // Where each list of a decision lies: its tags, then its place and length. 532 and 552 hold tags of options.
    for (list, forged) in [
        ("adjust", put(&[(512, 1), (516, 1_024), (520, ENDLESS)])),
        ("blend", put(&[(512, 1), (524, 1_024), (528, ENDLESS)])),
        ("bias tokens", put(&[(512, 1), (532, 1), (536, 1_024), (540, ENDLESS)])),
        ("bias deltas", put(&[(512, 1), (532, 1), (544, 1_024), (548, ENDLESS)])),
        ("vocabulary", put(&[(512, 1), (552, 1), (556, 1_024), (560, ENDLESS)])),
        ("insert", put(&[(512, 2), (520, 1_024), (524, ENDLESS)])),
        ("stop", put(&[(512, 3), (516, 1_024), (520, ENDLESS)])),
    ] {
        let decide = format!("{forged} i32.const 512");
        let Progress::Faulted(fault) = Forged { decide: &decide, ..Forged::default() }.start().decide(&step()) else {
            panic!("`{list}` is not at fault")
        };
        assert!(matches!(fault.kind, FaultKind::Error | FaultKind::Trap(TrapCode::InvalidValue)), "{list}: {fault}");
    }
    // An answer that lies beyond the memory, and one at its last byte.
    for place in [-16, 131_071] {
        let decide = format!("i32.const {place}");
        let Progress::Faulted(fault) = Forged { decide: &decide, ..Forged::default() }.start().decide(&step()) else {
            panic!("an answer at {place} is read")
        };
        assert!(matches!(fault.kind, FaultKind::Error | FaultKind::Trap(TrapCode::InvalidValue)), "{place}: {fault}");
    }
}

#[test]
fn text_that_is_none_is_refused() {
    let _served = Served::as_before();
    let decide = format!(
        "{} (i32.store16 (i32.const 1024) (i32.const 0xffff)) i32.const 512",
        put(&[(512, 3), (516, 1_024), (520, 2)])
    );
    let Progress::Faulted(fault) = Forged { decide: &decide, ..Forged::default() }.start().decide(&step()) else {
        panic!("bytes that are no UTF-8 are a reason")
    };
    assert_eq!(fault.kind, FaultKind::Error, "{fault}");
}
