//! Rewards: what a stranger's judge of finished responses may try, and what it gets.
//!
//! The hostile reward (`tests/hostile/examples/hostile_reward.rs`) has the modes that safe Rust can make; what needs a
//! forged binary is [`ForgedReward`]. After each attack a good reward gives the scores that it gave before: [`Judged`].
//! An honest reward, and an author's road to it, is `tests/rewards.rs`.

use std::sync::OnceLock;

use vassal::sandbox::{
    CompiledReward, ContractError, Exchange, Fault, FaultKind, Limits, LoadError, ManifestError, RewardManifest,
    Sandbox, ScoreFault, TrapCode,
};

use super::forged::{Forged, ForgedReward, REWARD_WIT, put};
use super::limits::{defaults, started, under};
use super::{Served, assert_plain, hostile_bytes};
use crate::rewards::{borrowed, exchanges, on_topic};
use crate::support::{component, sandbox};

/// Held while an attack is tried: when it is dropped, what [`Served`] says must hold, and a good reward's scores must be
/// those from before.
struct Judged {
    _served: Served,
}

/// The good reward's scores as they were first.
fn good_scores() -> &'static [Result<f64, ScoreFault>] {
    static SCORES: OnceLock<Vec<Result<f64, ScoreFault>>> = OnceLock::new();
    SCORES.get_or_init(|| on_topic().score(&borrowed(&exchanges())))
}

impl Judged {
    fn as_before() -> Self {
        // Made once for a process: before its memory is looked at.
        good_scores();
        hostile();
        Self { _served: Served::as_before() }
    }
}

impl Drop for Judged {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert!(on_topic().score(&borrowed(&exchanges())) == good_scores(), "a good reward scores otherwise");
        }
    }
}

fn hostile() -> CompiledReward {
    static COMPILED: OnceLock<CompiledReward> = OnceLock::new();
    let load = || sandbox().compile_reward("hostile", &component("hostile_reward")).unwrap();
    COMPILED.get_or_init(load).clone()
}

/// The fault of a mode in the middle of forty others' exchanges, which must have the scores that they have without it.
fn fault_of(mode: &str) -> ScoreFault {
    let neighbours: Vec<String> = (0..40).map(|length| "n".repeat(length)).collect();
    let mut responses: Vec<Exchange<'_>> =
        neighbours.iter().map(|text| Exchange { prompt: "", response: text }).collect();
    let expected = hostile().score(&responses);
    assert!(expected.iter().all(Result::is_ok) && expected[1] == Ok(1.0 / 101.0), "{expected:?}");
    responses.insert(20, Exchange { prompt: "", response: mode });
    let mut scores = hostile().score(&responses);
    let fault = scores.remove(20).expect_err(mode);
    assert_eq!(scores, expected, "`{mode}` has changed its neighbours");
    // And so alone.
    assert_eq!(hostile().score(&responses[20..21])[0].as_ref().unwrap_err().to_string(), fault.to_string());
    assert_plain(&fault.to_string());
    fault
}

fn kind_of(mode: &str) -> FaultKind {
    match fault_of(mode) {
        ScoreFault::Fault(Fault { kind, guest, .. }) if guest.to_string() == "reward `hostile`" => kind,
        other => panic!("`{mode}`: {other:?}"),
    }
}

#[test]
fn a_forged_reward_that_keeps_the_contract_is_a_good_reward() {
    let _judged = Judged::as_before();
    let reward = ForgedReward::default().load().unwrap();
    let manifest = reward.describe().unwrap();
    let (name, version) = (String::from("forged"), String::from("1.0"));
    let summary = name.clone();
    assert_eq!(manifest, RewardManifest { name, version, summary, minimum: -1.0, maximum: 1.0 });
    assert_eq!(ForgedReward::default().scores(70), vec![Ok(0.5); 70]);
}

#[test]
fn a_guest_of_the_other_kind_is_told_what_it_is() {
    let _judged = Judged::as_before();
    for policy in [hostile_bytes(), &Forged::default().bytes()] {
        let error = sandbox().compile_reward("steers", policy).unwrap_err();
        assert!(matches!(error, LoadError::Contract { error: ContractError::OtherKind { .. }, .. }), "{error:?}");
        let words = error.to_string();
        assert!(
            words.starts_with("reward `steers`: it is a policy, not a reward") && words.contains("vassal run --policy")
        );
    }
    let error = sandbox().compile("scores", &component("hostile_reward")).unwrap_err().to_string();
    assert!(
        error.starts_with("policy `scores`: it is a reward, not a policy") && error.contains("vassal reward"),
        "{error}"
    );
    let error = sandbox().compile_reward("nothing", &wat::parse_str("(component)").unwrap()).unwrap_err().to_string();
    assert!(error.contains("does not export `vassal:reward/reward@0.1.0`"), "{error}");
}

#[test]
fn a_reward_that_imports_anything_is_refused_by_name() {
    let _judged = Judged::as_before();
    let refused = |declared: &str, world: &str, wanted: &str| {
        let wit = REWARD_WIT.replace("world judge {", &format!("{declared} world judge {{ {world}"));
        let imports = format!("(import \"{wanted}\" \"f\" (func (result i64)))");
        let error = ForgedReward { wit: &wit, imports: &imports, ..ForgedReward::default() }.load().unwrap_err();
        let LoadError::Contract { error: ContractError::UnknownImport { import, known, .. }, .. } = &error else {
            panic!("{error:?}")
        };
        assert_eq!((import.as_str(), known.len()), (wanted, 0));
        assert!(error.to_string().ends_with("a reward may import nothing"), "{error}");
    };
    refused("interface values { f: func() -> u64; }", "import values;", "vassal:reward/values@0.1.0");
    // What policies have, and what nobody has, in text: their packages are not this contract's.
    for wanted in ["vassal:policy/values@0.1.0", "vassal:policy/audit@0.1.0", "wasi:clocks/monotonic-clock@0.2.0"] {
        let text = format!(
            r#"(component (import "{wanted}" (instance (export "note" (func (param "message" string)))))
            (instance $empty) (export "vassal:reward/reward@0.1.0" (instance $empty)))"#
        );
        let error = sandbox().compile_reward("text", &wat::parse_str(&text).unwrap()).unwrap_err().to_string();
        assert!(error.contains(&format!("imports `{wanted}`; a reward may import nothing")), "{error}");
    }
}

#[test]
fn types_of_a_reward_that_differ_are_refused_at_the_first_difference() {
    let _judged = Judged::as_before();
    for (from, to, expected) in [
        ("-> list<f64>", "-> list<f32>", "#score: result is f32"),
        (
            "        response: string,",
            "        response: string,\n        more: string,",
            "`more` is not in the contract",
        ),
        ("maximum: f64", "most: f64", "`most` stands where the contract has `maximum`"),
    ] {
        let wit = REWARD_WIT.replace(from, to);
        assert_ne!(wit, REWARD_WIT, "`{from}` is in the contract");
        let error = ForgedReward { wit: &wit, ..ForgedReward::default() }.load().unwrap_err();
        assert!(matches!(error, LoadError::Contract { error: ContractError::Types { .. }, .. }), "{error:?}");
        assert!(error.to_string().contains(expected), "`{expected}` is not in {error}");
    }
}

/// What a reward is refused for whose manifest has other bytes somewhere.
fn described(fields: &str) -> LoadError {
    let reward = ForgedReward { fields, ..ForgedReward::default() }.load().unwrap();
    let error = reward.describe().unwrap_err();
    // Nothing is scored with it, and each exchange says why.
    let scores = reward.score(&[Exchange { prompt: "", response: "" }; 2]);
    assert_eq!(scores.len(), 2);
    for score in scores {
        assert_eq!(score.unwrap_err().to_string(), error.to_string());
    }
    assert_plain(&error.to_string());
    error
}

#[test]
fn lying_rewards_are_refused_by_name() {
    let _judged = Judged::as_before();
    let long = format!("(data (i32.const 8192) \"{}\") (data (i32.const 64) \"\\00\\20\\00\\00\\41\")", "n".repeat(65));
    for name in [
        "(data (i32.const 68) \"\\00\")",
        "(data (i32.const 16) \"For\")",
        "(data (i32.const 16) \"\\1b[2Jd\")",
        "(data (i32.const 16) \"a b\")",
        &long,
    ] {
        let error = described(name);
        assert!(
            matches!(&error, LoadError::Manifest { error: ManifestError::RewardName { .. }, .. }),
            "{name}: {error}"
        );
    }
    for range in [
        "(data (i32.const 88) \"\\00\\00\\00\\00\\00\\00\\f8\\7f\")",
        "(data (i32.const 88) \"\\00\\00\\00\\00\\00\\00\\f0\\ff\")",
        "(data (i32.const 96) \"\\00\\00\\00\\00\\00\\00\\f0\\7f\")",
        "(data (i32.const 96) \"\\00\\00\\00\\00\\00\\00\\f0\\bf\")",
        "(data (i32.const 96) \"\\00\\00\\00\\00\\00\\00\\f8\\bf\")",
    ] {
        let error = described(range);
        assert!(
            matches!(error, LoadError::Manifest { error: ManifestError::RewardRange { .. }, .. }),
            "{range}: {error}"
        );
    }
    let error = described("(data (i32.const 22) \"1\\1b0\")");
    assert!(matches!(error, LoadError::Manifest { error: ManifestError::Name { .. }, .. }), "{error}");
    // Bytes that are no text, and lists that claim what is not there.
    for place in [
        "(data (i32.const 16) \"\\ff\\fe\")",
        "(data (i32.const 68) \"\\ff\\ff\\ff\\ff\")",
        "(data (i32.const 64) \"\\00\\00\\00\\7f\")",
    ] {
        let LoadError::Describe(fault) = described(place) else { panic!("{place} is read") };
        assert!(matches!(fault.kind, FaultKind::Error | FaultKind::Trap(TrapCode::InvalidValue)), "{place}: {fault}");
    }
    let words = "(data (i32.const 8192) \"s\\1b[2J\\e2\\80\\aeh\\0ao\") (data (i32.const 80) \"\\00\\20\\00\\00\\0b\")";
    let manifest = ForgedReward { fields: words, ..ForgedReward::default() }.load().unwrap().describe().unwrap();
    assert_eq!(manifest.summary, "s[2Jh o");
    let spin = ForgedReward { describe: "(loop $l (br $l)) i32.const 64", ..ForgedReward::default() };
    let error = spin.load().unwrap().describe().unwrap_err();
    assert!(matches!(error, LoadError::Describe(Fault { kind: FaultKind::OutOfFuel, .. })), "{error:?}");
}

#[test]
fn a_reward_cannot_know_which_call_of_describe_it_is() {
    let _judged = Judged::as_before();
    // It counts its calls in a global and in memory, and names as its minimum what it has counted.
    let describe = "(global.set $next (i32.add (global.get $next) (i32.const 1)))
        (i32.store (i32.const 8192) (i32.add (i32.load (i32.const 8192)) (i32.const 1)))
        (f64.store (i32.const 88) (f64.neg (f64.convert_i32_u
            (i32.add (i32.load (i32.const 8192)) (i32.sub (global.get $next) (i32.const 4096))))))
        i32.const 64";
    for _ in 0..3 {
        let reward = ForgedReward { describe, ..ForgedReward::default() }.load().unwrap();
        assert_eq!((reward.describe().unwrap().minimum, reward.describe().unwrap().minimum), (-2.0, -2.0));
    }
}

#[test]
fn numbers_that_are_no_scores_fail_their_exchange_and_no_other() {
    let _judged = Judged::as_before();
    assert_eq!(fault_of("score-nan"), ScoreFault::NotANumber);
    let outside = |given| ScoreFault::OutOfRange { given, minimum: -1.0, maximum: 1.0 };
    assert_eq!(fault_of("score-infinite"), outside(f64::INFINITY));
    assert_eq!(fault_of("score-forbids"), outside(f64::NEG_INFINITY));
    assert_eq!(fault_of("score-above"), outside(1.000_000_1));
    assert_eq!(fault_of("score-below"), outside(-1e300));
    let bounds = ["score-bounds", "score-bounds "].map(|response| Exchange { prompt: "", response });
    assert_eq!(hostile().score(&bounds), [Ok(-1.0), Ok(1.0)]);
}

#[test]
fn a_fault_fails_the_exchange_that_causes_it_and_no_other() {
    let _judged = Judged::as_before();
    assert_eq!(kind_of("score-panic"), FaultKind::Trap(TrapCode::Unreachable));
    assert_eq!(kind_of("score-loop"), FaultKind::OutOfFuel);
    assert!(matches!(kind_of("score-grow"), FaultKind::Memory { .. }));
    assert!(matches!(kind_of("score-recurse"), FaultKind::Trap(TrapCode::MemoryOutOfBounds | TrapCode::StackOverflow)));
}

#[test]
fn another_number_of_scores_than_exchanges_is_none() {
    let _judged = Judged::as_before();
    let scores = |score: &str, count: usize| ForgedReward { score, ..ForgedReward::default() }.scores(count);
    let answered = |count: u32| put(&[(1_028, count)]) + "i32.const 1024";
    for (count, given) in [(0, 0), (2, 2), (40, 40)] {
        assert_eq!(scores(&answered(count), 1), [Err(ScoreFault::Count { given })]);
        assert_eq!(scores(&answered(count), 3), vec![Err(ScoreFault::Count { given }); 3]);
    }
    // One score whatever comes: right where one is asked, so each is asked alone.
    assert_eq!(scores(&answered(1), 33), vec![Ok(0.5); 33]);
    // More than is lifted, more than there is, and not where it is said to be.
    for body in [
        answered(9_000),
        answered(u32::MAX),
        put(&[(1_024, 1 << 30), (1_028, 1)]) + "i32.const 1024",
        "i32.const -8".into(),
    ] {
        for score in scores(&body, 2) {
            let Err(ScoreFault::Fault(fault)) = score else { panic!("`{body}`: {score:?}") };
            assert!(matches!(fault.kind, FaultKind::Error | FaultKind::Trap(_)), "`{body}`: {fault}");
        }
    }
}

#[test]
fn what_a_reward_remembers_ends_with_its_call() {
    let _judged = Judged::as_before();
    let exchange = Exchange { prompt: "", response: "score-remember" };
    // Within a call it may count, and shows by it that it is no function of an exchange; the next call finds nothing.
    for _ in 0..3 {
        assert_eq!(hostile().score(&[exchange; 2]), [Ok(0.01), Ok(0.02)]);
        assert_eq!(hostile().score(&[exchange]), [Ok(0.01)]);
    }
}

#[test]
fn every_number_of_a_reward_holds_at_its_bound_and_one_beyond() {
    let _judged = Judged::as_before();
    let score = |limits: Limits, forged: &ForgedReward<'_>, exchanges: &[Exchange<'_>]| {
        under(limits).compile_reward("forged", &forged.bytes()).unwrap().score(exchanges)
    };
    let five = [Exchange { prompt: "12345", response: "67890" }; 5];
    // It traps where more than three come at once, or one alone: four fail together and then one by one.
    let counts = "(if (i32.gt_u (local.get 1) (i32.const 3)) (then unreachable))
        (if (i32.eq (local.get 1) (i32.const 1)) (then unreachable))
        (i32.store (i32.const 1028) (local.get 1)) i32.const 1024";
    let counts = ForgedReward { score: counts, ..ForgedReward::default() };
    let traps = |limits, count: usize| {
        let scores = score(limits, &counts, &vec![five[0]; count]);
        scores.iter().filter(|score| score.is_err()).count()
    };
    let bound = |score_exchanges| Limits { score_exchanges, ..defaults() };
    assert_eq!((traps(bound(3), 6), traps(bound(4), 4), traps(bound(2), 4)), (0, 4, 0));
    let honest = ForgedReward::default();
    assert_eq!(score(Limits { score_text_bytes: 10, ..defaults() }, &honest, &five), vec![Ok(0.5); 5]);
    let long = ScoreFault::TooLong { bytes: 10, limit_bytes: 9 };
    assert_eq!(score(Limits { score_text_bytes: 9, ..defaults() }, &honest, &five), vec![Err(long); 5]);
    // Fuel: the least that suffices, with all of it an exchange's, and with all of it its text's.
    let suffices = |fuel_score, fuel_score_byte| {
        let limits = Limits { fuel_score, fuel_score_byte, ..defaults() };
        match &score(limits, &honest, &five[..1])[0] {
            Ok(score) => *score == 0.5,
            Err(ScoreFault::Fault(fault)) if fault.kind == FaultKind::OutOfFuel => false,
            Err(other) => panic!("{other}"),
        }
    };
    let least = (1..500).find(|fuel| suffices(*fuel, 0)).unwrap();
    assert!(!suffices(least - 1, 0) && suffices(0, least.div_ceil(10)) && !suffices(0, (least - 1) / 10), "{least}");
}

#[test]
fn the_hosts_own_faults_are_told_apart() {
    let _judged = Judged::as_before();
    let loops = ForgedReward { score: "(loop $l (br $l)) i32.const 1024", ..ForgedReward::default() }.bytes();
    let exchange = [Exchange { prompt: "", response: "" }];
    let limits = Limits { fuel_score: u64::MAX, deadline_ms: 20, score_windows: 2, sequences: 2, ..Limits::default() };
    let late = under(limits).compile_reward("late", &loops).unwrap().score(&exchange);
    let Err(fault) = &late[0] else { panic!("{late:?}") };
    assert!(matches!(fault, ScoreFault::Fault(Fault { kind: FaultKind::Deadline, .. })) && fault.is_the_hosts());
    // A pool that policies have filled: nothing to score in, and scores again when there is room.
    let small: Sandbox = under(Limits { sequences: 1, ..defaults() });
    let reward = small.compile_reward("forged", &ForgedReward::default().bytes()).unwrap();
    let policy = started(&small, &Forged::default().bytes(), &[]).unwrap();
    let full = reward.score(&exchange);
    let Err(fault) = &full[0] else { panic!("{full:?}") };
    assert!(fault.is_the_hosts() && fault.to_string().contains("no free instance"), "{fault}");
    drop(policy);
    assert_eq!(reward.score(&exchange), [Ok(0.5)]);
    let policy = started(&small, &Forged::default().bytes(), &[]).unwrap();
    assert!(reward.score(&exchange)[0].as_ref().unwrap_err().is_the_hosts());
    drop(policy);
    assert!(!fault_of("score-loop").is_the_hosts());
    assert!(Sandbox::new(Limits { score_windows: 0, ..defaults() }, crate::support::compilation()).is_err());
}
