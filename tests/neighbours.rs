//! Hostile neighbours: every attack that a guest has, in one batch with a good sequence, whose tokens are the same
//! as without them.
//!
//! `tests/attacks.rs` drives each attack alone and looks at its fault closely; here an engine has them all at once,
//! and the kind of each fault shows that it is the attack that ended and not something beside it.

use vassal::engine::{Finish, Response};
use vassal::request::{PolicyUse, ValidRequest};
use vassal::sandbox::{BadCall, BadDecision, BadPlan, FaultKind, TrapCode};

use crate::attacks::{BUMP, Forged, Served};
use crate::support::{PROMPT, Setup, Tiny, bits, sandbox};

/// Whether a fault is of the kind that an attack must end in; none for what the engine must take.
type Expected = Option<fn(&FaultKind) -> bool>;

macro_rules! fault {
    ($kind:pat) => {
        Some(|kind: &FaultKind| matches!(kind, $kind))
    };
}

/// Modes of the hostile guest.
const ATTACKS: [(&str, Expected); 55] = [
    ("loop", fault!(FaultKind::OutOfFuel)),
    // These responses are shorter than that.
    ("thousandth", None),
    ("grow", fault!(FaultKind::Memory { .. })),
    ("recurse", fault!(FaultKind::Trap(TrapCode::MemoryOutOfBounds | TrapCode::StackOverflow))),
    ("panic", fault!(FaultKind::Trap(TrapCode::Unreachable))),
    ("divide", fault!(FaultKind::Trap(TrapCode::Unreachable))),
    ("start-loop", fault!(FaultKind::OutOfFuel)),
    ("start-panic", fault!(FaultKind::Trap(TrapCode::Unreachable))),
    ("start-refuse", fault!(FaultKind::StartRefused)),
    ("start-evaluate", fault!(FaultKind::StartRefused)),
    ("plan-candidates", fault!(FaultKind::BadPlan(BadPlan::Candidates { .. }))),
    ("plan-floor", fault!(FaultKind::BadPlan(BadPlan::Floor(_)))),
    ("plan-short", fault!(FaultKind::BadPlan(BadPlan::Schedules { .. }))),
    ("plan-every", fault!(FaultKind::BadPlan(BadPlan::Schedule { .. }))),
    ("short", fault!(FaultKind::BadDecision(BadDecision::AdjustLength { .. }))),
    ("long", fault!(FaultKind::BadDecision(BadDecision::AdjustLength { .. }))),
    ("nan", fault!(FaultKind::BadDecision(BadDecision::Delta { .. }))),
    ("huge", fault!(FaultKind::BadDecision(BadDecision::Delta { .. }))),
    ("infinite", fault!(FaultKind::BadDecision(BadDecision::Delta { .. }))),
    ("bound", None),
    ("beyond", fault!(FaultKind::BadDecision(BadDecision::Delta { .. }))),
    ("head", fault!(FaultKind::BadDecision(BadDecision::UnknownHead { .. }))),
    ("head-twice", fault!(FaultKind::BadDecision(BadDecision::HeadTwice(0)))),
    ("weight-nan", fault!(FaultKind::BadDecision(BadDecision::Weight { .. }))),
    ("weight-forbids", fault!(FaultKind::BadDecision(BadDecision::Weight { .. }))),
    ("token", fault!(FaultKind::BadDecision(BadDecision::UnknownToken { .. }))),
    ("bias-lengths", fault!(FaultKind::BadDecision(BadDecision::BiasLengths { .. }))),
    ("bias-long", fault!(FaultKind::BadDecision(BadDecision::TooLong { .. }))),
    ("bias-sum", fault!(FaultKind::BadDecision(BadDecision::Delta { .. }))),
    ("bias-twice", None),
    ("vocabulary-short", fault!(FaultKind::BadDecision(BadDecision::VocabularyWords { .. }))),
    ("vocabulary-long", fault!(FaultKind::BadDecision(BadDecision::VocabularyWords { .. }))),
    ("vocabulary-nan", fault!(FaultKind::BadDecision(BadDecision::Delta { .. }))),
    ("vocabulary-full", None),
    ("flood-answer", fault!(FaultKind::Error)),
    ("remove", fault!(FaultKind::BadDecision(BadDecision::Remove { .. }))),
    ("remove-too-early", fault!(FaultKind::BadDecision(BadDecision::Remove { .. }))),
    ("insert-long", fault!(FaultKind::BadDecision(BadDecision::TooLong { .. }))),
    ("insert-token", fault!(FaultKind::BadDecision(BadDecision::UnknownToken { .. }))),
    ("splice-nothing", fault!(FaultKind::BadDecision(BadDecision::EmptySplice { ended: false }))),
    // It inserts until the response is at its limit, and once more.
    ("insert", fault!(FaultKind::BadDecision(BadDecision::EmptySplice { ended: true }))),
    ("stop", fault!(FaultKind::BadDecision(BadDecision::NotGranted(_)))),
    ("steer", None),
    ("evaluate-flood", None),
    ("evaluate-again", fault!(FaultKind::Trap(TrapCode::Unreachable))),
    ("evaluate-refusals", None),
    ("evaluate-forever", fault!(FaultKind::OutOfFuel)),
    ("current-flood", None),
    ("note-flood", None),
    ("note-forever", fault!(FaultKind::OutOfFuel)),
    ("text-flood", fault!(FaultKind::OutOfFuel)),
    ("text-long", fault!(FaultKind::BadCall(BadCall::TextTooLong { .. }))),
    ("bytes-flood", fault!(FaultKind::OutOfFuel)),
    ("find-flood", fault!(FaultKind::OutOfFuel)),
    ("find-invalid", fault!(FaultKind::BadCall(BadCall::Pattern(_)))),
];

/// Binaries that safe Rust cannot make, by the body of their `cabi_realloc` once `start` has run.
const FORGED: [(&str, &str, Expected); 3] = [
    ("a realloc that spins", "(loop $forever (br $forever))", fault!(FaultKind::OutOfFuel)),
    ("a realloc that traps", "(unreachable)", fault!(FaultKind::Trap(TrapCode::Unreachable))),
    ("a realloc that lies", "(return (i32.const -16))", fault!(FaultKind::Error)),
];

fn forged(tiny: &Tiny, realloc: &str) -> PolicyUse {
    let realloc = format!("(if (global.get $started) (then {realloc})) {BUMP}");
    let component = Forged { realloc: &realloc, ..Forged::default() }.bytes();
    tiny.policy_of(sandbox().compile("forged", &component).unwrap(), &[])
}

fn good(tiny: &Tiny) -> ValidRequest {
    let dials = [("sentiment", "0.9"), ("simplicity", "-0.6"), ("mode", "evaluate")];
    let request = tiny.request(PROMPT, vec![tiny.policy("vas", &dials)]);
    tiny.endless(request)
}

#[track_caller]
fn check(attack: &str, expected: Expected, response: &Response) {
    match (&response.finish, expected) {
        (Finish::Faulted(fault), Some(is_expected)) => assert!(is_expected(&fault.kind), "`{attack}`: {fault:?}"),
        (finish, None) => assert_eq!((finish, response.tokens.len()), (&Finish::TokenLimit, 24), "`{attack}`"),
        (finish, Some(_)) => panic!("`{attack}` is not at fault: {finish:?}"),
    }
}

#[test]
fn a_good_neighbours_tokens_are_the_same_as_without_the_attack() {
    let _served = Served::as_before();
    let setup = Setup::with_heads();
    let expected = {
        let mut tiny = setup.open();
        let request = good(&tiny);
        bits(&tiny.run(vec![request])[0])
    };
    let mut tiny = setup.open();
    let hostile = ATTACKS.iter().map(|(mode, expected)| {
        let policy = tiny.policy("hostile", &[("mode", mode)]);
        (*mode, policy, *expected)
    });
    let forged = FORGED.iter().map(|(name, realloc, expected)| (*name, forged(&tiny, realloc), *expected));
    let attacks: Vec<(&str, PolicyUse, Expected)> = hostile.chain(forged).collect();
    let mut requests: Vec<ValidRequest> =
        attacks.iter().map(|(_, policy, _)| tiny.endless(tiny.request(PROMPT, vec![policy.clone()]))).collect();
    // One in the middle of them, one at the end, in an engine that holds 16 at once.
    requests.insert(7, good(&tiny));
    requests.push(good(&tiny));
    let mut responses = tiny.run(requests);
    assert_eq!(bits(&responses.pop().unwrap()), expected);
    assert_eq!(bits(&responses.remove(7)), expected);
    assert_eq!(responses.len(), attacks.len());
    for ((attack, _, expected), response) in attacks.iter().zip(&responses) {
        check(attack, *expected, response);
    }
}
