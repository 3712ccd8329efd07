//! Hostile guests: each attack beside the fault that it must end in.
//!
//! One component (`tests/hostile/`) has a mode for each attack that safe Rust can make; what needs a forged
//! binary is WebAssembly text, assembled here around a policy that otherwise keeps the contract. Instances
//! are driven directly: what an engine does with a fault is tested with the engine. After each attack the
//! same sandbox serves a good policy.

use std::sync::{Arc, OnceLock};
use vassal::sandbox::{
    BadCall, BadDecision, BadPlan, CompiledPolicy, ContractError, Decision, Fault, FaultKind, HeadOffer, Instance,
    Limits, LoadError, Manifest, ManifestError, Needs, Progress, Sandbox, Scope, StartRequest, Step, TrapCode,
    ValueAnswer, ValueRequest, VocabularyText, settings,
};
use vassal::token::{Token, Vocabulary};

use crate::support::compilation;

const WIT: &str = include_str!("../wit/policy-0.1/policy.wit");

/// Tokens 0 to 999: token t is the decimal t, 0 ends a response.
struct Numbers(Vec<String>);

impl Vocabulary for Numbers {
    fn size(&self) -> usize {
        self.0.len()
    }
    fn bytes(&self, token: Token) -> &[u8] {
        self.0[token as usize].as_bytes()
    }
    fn is_special(&self, token: Token) -> bool {
        token == 0
    }
    fn tokens(&self, text: &str) -> Vec<Token> {
        text.bytes().map(u32::from).collect()
    }
    fn end_of_text(&self) -> &[Token] {
        &[0]
    }
}

fn text() -> &'static Arc<VocabularyText> {
    static TEXT: OnceLock<Arc<VocabularyText>> = OnceLock::new();
    TEXT.get_or_init(|| VocabularyText::new(Arc::new(Numbers((0..1_000).map(|token| token.to_string()).collect()))))
}

fn sandbox() -> &'static Sandbox {
    static SANDBOX: OnceLock<Sandbox> = OnceLock::new();
    SANDBOX.get_or_init(|| Sandbox::new(Limits { sequences: 64, ..Limits::default() }, compilation()).unwrap())
}

fn hostile() -> &'static CompiledPolicy {
    static HOSTILE: OnceLock<CompiledPolicy> = OnceLock::new();
    HOSTILE.get_or_init(|| {
        let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("hostile");
        let recipe = vassal::policy_build::Recipe { dir, quiet: true, ..Default::default() };
        sandbox().compile("hostile", &recipe.component().unwrap()).unwrap()
    })
}

fn head(name: &str) -> HeadOffer {
    HeadOffer { name: name.into(), kind: "value".into(), spread: 0.1 }
}

const GRANTED: Needs = Needs { prompt: false, insert: true, rewind: true, stop: false };

fn start(policy: &CompiledPolicy, given: &[(&str, &str)]) -> Result<Instance, Fault> {
    let manifest = policy.describe(&[head("value")], GRANTED).unwrap();
    let settings = settings::resolve(&manifest, given, Scope::Request, sandbox().limits()).unwrap();
    let request = StartRequest {
        settings: &settings,
        prompt: &[1, 2, 3],
        candidates: 20,
        max_tokens: 100,
        temperature: 1.0,
        top_p: 1.0,
        seed: 1,
    };
    policy.start(&Arc::new(manifest), &request, text())
}

fn hostile_in(mode: &str) -> Instance {
    start(hostile(), &[("mode", mode)]).unwrap()
}

const CANDIDATES: [Token; 4] = [10, 20, 30, 40];

fn step() -> Step<'static> {
    Step {
        kept: 0,
        appended: &[5, 6],
        candidates: &CANDIDATES,
        logits: &[4.0, 3.0, 2.0, 1.0],
        prefetched: 0,
        values: &[],
        log_normalizer: 5.0,
        entropy: 1.0,
        ended: false,
    }
}

/// Answers every request with 100 * head + token, a current value with the head.
fn drive(instance: &mut Instance, step: &Step<'_>) -> (Progress, usize) {
    let mut progress = instance.decide(step);
    for asked in 0.. {
        let values = match progress {
            Progress::Wants(ValueRequest::Evaluate { heads, tokens }) => {
                let pairs = heads.iter().flat_map(|head| tokens.iter().map(move |token| 100 * head + token));
                pairs.map(|value| value as f32).collect()
            }
            Progress::Wants(ValueRequest::Current { head }) => vec![head as f32],
            done => return (done, asked),
        };
        progress = instance.resume(ValueAnswer::Values(values));
    }
    unreachable!("a guest's fuel ends")
}

/// The decision of a mode that stays within the contract.
fn decision_of(mode: &str) -> (Decision, usize) {
    match drive(&mut hostile_in(mode), &step()) {
        (Progress::Decided(decision), asked) => (decision, asked),
        other => panic!("`{mode}`: {other:?}"),
    }
}

/// The fault of a mode; it must stick, and the sandbox must go on serving.
fn fault_of(mode: &str) -> FaultKind {
    fault_at(mode, &step())
}

fn fault_at(mode: &str, step: &Step<'_>) -> FaultKind {
    let mut instance = hostile_in(mode);
    let (Progress::Faulted(fault), _) = drive(&mut instance, step) else { panic!("`{mode}` is not at fault") };
    let Progress::Faulted(again) = instance.decide(step) else { panic!("`{mode}`: a fault sticks") };
    // By their words, because a NaN that was refused is not equal to itself.
    assert_eq!(again.to_string(), fault.to_string());
    assert_eq!(instance.fault().map(ToString::to_string), Some(fault.to_string()));
    assert_eq!(fault.policy, "hostile");
    assert_plain(&fault.to_string());
    good_policy_is_served();
    fault.kind
}

fn bad_decision_of(mode: &str) -> BadDecision {
    match fault_of(mode) {
        FaultKind::BadDecision(reason) => reason,
        other => panic!("`{mode}`: {other:?}"),
    }
}

fn assert_plain(text: &str) {
    assert!(text.chars().all(|c| !c.is_control() && !('\u{202a}'..='\u{202e}').contains(&c)), "{text:?}");
    assert!(text.len() <= 1_024, "{} bytes", text.len());
}

fn good_policy_is_served() {
    assert_eq!(decision_of("none").0, Decision::Keep);
}

fn adjust_of(decision: Decision) -> Vec<f32> {
    match decision {
        Decision::Steer(steering) => steering.adjust,
        other => panic!("{other:?}"),
    }
}

#[test]
fn endless_loops_run_out_of_fuel() {
    assert_eq!(fault_of("loop"), FaultKind::OutOfFuel);
    assert_eq!(start(hostile(), &[("mode", "start-loop")]).err().unwrap().kind, FaultKind::OutOfFuel);
    let described = hostile().describe(&[head("lie-loop")], GRANTED);
    assert!(matches!(described, Err(LoadError::Describe(Fault { kind: FaultKind::OutOfFuel, .. }))));
    let mut instance = hostile_in("loop");
    instance.decide(&step());
    assert_eq!(instance.fuel_used(), 250_000);
}

#[test]
fn a_realloc_that_spins_runs_out_of_fuel() {
    let policy = Forged { realloc: "(loop $forever (br $forever)) unreachable", ..Forged::default() }.load().unwrap();
    let described = policy.describe(&[head("value")], GRANTED);
    assert!(matches!(described, Err(LoadError::Describe(Fault { kind: FaultKind::OutOfFuel, .. }))), "{described:?}");
    // It behaves while nothing is offered and nothing prompted, and spins where a step is lowered.
    let body = format!("(if (global.get $started) (then (loop $forever (br $forever)))) {BUMP}");
    let policy = Forged { realloc: &body, ..Forged::default() }.load().unwrap();
    let mut instance = start(&policy, &[]).unwrap();
    assert!(matches!(instance.decide(&step()), Progress::Faulted(Fault { kind: FaultKind::OutOfFuel, .. })));
}

#[test]
fn a_realloc_that_traps_or_lies_is_at_fault() {
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
fn memory_grows_to_its_limit_and_no_further() {
    let FaultKind::Memory { wanted_bytes, limit_bytes } = fault_of("grow") else { panic!() };
    assert_eq!(limit_bytes, 16 << 20);
    assert!(wanted_bytes > limit_bytes);
    let grow = |pages: u32| {
        let decide = format!("(drop (memory.grow (i32.const {pages}))) i32.const 512");
        let policy = Forged { decide: &decide, ..Forged::default() }.load().unwrap();
        start(&policy, &[]).unwrap().decide(&step())
    };
    // The forged policy has 2 pages of 64 KiB.
    assert_eq!(grow(254), Progress::Decided(Decision::Keep));
    let Progress::Faulted(fault) = grow(255) else { panic!() };
    assert_eq!(fault.kind, FaultKind::Memory { wanted_bytes: 257 << 16, limit_bytes: 256 << 16 });
}

#[test]
fn tables_grow_to_their_limit_and_no_further() {
    let grow = |entries: u32| {
        let decide = format!("(drop (table.grow $t (ref.null func) (i32.const {entries}))) i32.const 512");
        let policy = Forged { fields: "(table $t 0 funcref)", decide: &decide, ..Forged::default() }.load().unwrap();
        start(&policy, &[]).unwrap().decide(&step())
    };
    assert_eq!(grow(10_000), Progress::Decided(Decision::Keep));
    let Progress::Faulted(fault) = grow(10_001) else { panic!() };
    assert_eq!(fault.kind, FaultKind::Table { wanted: 10_001, limit: 10_000 });
}

#[test]
fn a_table_or_memory_that_starts_too_large_is_refused() {
    let load = |fields| {
        Forged { fields, ..Forged::default() }.load().and_then(|policy| policy.describe(&[], GRANTED).map(|_| ()))
    };
    assert!(load("(table 10000 funcref)").is_ok());
    assert!(load("(table 10001 funcref)").is_err());
    assert!(load("(table 1000000 funcref)").is_err());
    let large = Forged { memory: 257, ..Forged::default() }.load();
    assert!(large.is_err());
}

#[test]
fn recursion_ends_in_a_trap() {
    // A Rust guest's stack lies at the start of its memory.
    let kind = fault_of("recurse");
    let known = [TrapCode::MemoryOutOfBounds, TrapCode::StackOverflow].map(FaultKind::Trap);
    assert!(known.contains(&kind), "{kind:?}");
    let fields = "(func $deeper (result i32) (i32.add (i32.const 1) (call $deeper)))";
    let policy = Forged { fields, decide: "call $deeper", ..Forged::default() }.load().unwrap();
    let Progress::Faulted(fault) = start(&policy, &[]).unwrap().decide(&step()) else { panic!() };
    assert_eq!(fault.kind, FaultKind::Trap(TrapCode::StackOverflow));
}

#[test]
fn a_panic_is_a_trap_that_tells_its_message() {
    let mut instance = hostile_in("panic");
    let Progress::Faulted(fault) = instance.decide(&step()) else { panic!() };
    assert_eq!(fault.kind, FaultKind::Trap(TrapCode::Unreachable));
    assert!(fault.detail.contains("out of ideas"), "{fault}");
    assert_plain(&fault.to_string());
    assert!(instance.take_notes()[0].contains("out of ideas"), "notes survive a fault");
    assert_eq!(fault_of("divide"), FaultKind::Trap(TrapCode::Unreachable));
    let refused = start(hostile(), &[("mode", "start-panic")]).err().unwrap();
    assert_eq!(refused.kind, FaultKind::Trap(TrapCode::Unreachable));
    assert!(refused.detail.contains("giving up in start"), "{refused}");
    assert_plain(&refused.to_string());
    let described = hostile().describe(&[head("lie-panic")], GRANTED);
    let Err(LoadError::Describe(fault)) = described else { panic!("{described:?}") };
    assert_eq!(fault.kind, FaultKind::Trap(TrapCode::Unreachable));
}

#[test]
fn start_may_refuse_in_clean_words() {
    let fault = start(hostile(), &[("mode", "start-refuse")]).err().unwrap();
    assert_eq!(fault.kind, FaultKind::StartRefused);
    assert!(fault.detail.starts_with("not today not today"), "{fault}");
    assert!(fault.detail.len() <= 256);
    assert_plain(&fault.to_string());
}

#[test]
fn answers_of_the_wrong_length_are_refused() {
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
    let token = BadDecision::UnknownToken { place: "bias", given: 1_000, vocabulary: 1_000 };
    assert_eq!(bad_decision_of("token"), token);
    let token = BadDecision::UnknownToken { place: "insert", given: u32::MAX, vocabulary: 1_000 };
    assert_eq!(bad_decision_of("insert-token"), token);
    assert_eq!(bad_decision_of("head"), BadDecision::UnknownHead { given: 7, heads: 1 });
    assert_eq!(bad_decision_of("head-twice"), BadDecision::HeadTwice(0));
}

#[test]
fn biases_of_one_token_add_up_and_bits_beyond_the_vocabulary_are_dropped() {
    let (Decision::Steer(steering), _) = decision_of("bias-twice") else { panic!() };
    assert_eq!(steering.bias, [(1, 2.0), (3, 5.0)]);
    let (Decision::Steer(steering), _) = decision_of("vocabulary-full") else { panic!() };
    let bits = steering.vocabulary.unwrap().bits;
    assert_eq!(bits.iter().map(|word| word.count_ones()).sum::<u32>(), 1_000);
}

#[test]
fn splices_and_stops_need_their_grants_and_stay_in_bounds() {
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
    let (decision, asked) = decision_of("evaluate-flood");
    assert_eq!((adjust_of(decision), asked), (vec![2.0; 4], 2));
    let (decision, asked) = decision_of("current-flood");
    assert_eq!((adjust_of(decision), asked), (vec![0.0; 4], 1));
    assert_eq!(fault_of("evaluate-forever"), FaultKind::OutOfFuel);
    let fault = start(hostile(), &[("mode", "start-evaluate")]).err().unwrap();
    assert!(fault.detail.contains("only known while a step is decided"), "{fault}");
    let mut instance = hostile_in("evaluate-refusals");
    assert_eq!(instance.decide(&step()), Progress::Decided(Decision::Keep));
    let refusals = instance.take_notes();
    let expected = ["UnknownHead", "UnknownHead", "UnknownHead", "InvalidTokens", "InvalidTokens", "InvalidTokens"];
    assert_eq!(refusals, expected.map(|refusal| format!("Err({refusal})")));
}

#[test]
fn values_that_are_known_are_not_computed_again() {
    let (decision, asked) = decision_of("evaluate-again");
    assert_eq!((adjust_of(decision), asked), (vec![1.0; 4], 1));
    let prefetched = Step { prefetched: 1, values: &[0.1, 0.2, 0.3, 0.4], ..step() };
    let (Progress::Decided(decision), asked) = drive(&mut hostile_in("evaluate-again"), &prefetched) else { panic!() };
    assert_eq!((adjust_of(decision), asked), (vec![1.0; 4], 0));
}

#[test]
fn a_failed_head_is_an_answer_to_the_guest() {
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
fn an_instance_can_be_dropped_while_it_waits() {
    for _ in 0..200 {
        let mut instance = hostile_in("evaluate-flood");
        assert!(matches!(instance.decide(&step()), Progress::Wants(_)));
    }
    good_policy_is_served();
}

#[test]
fn notes_are_counted_cut_and_cleaned() {
    let mut instance = hostile_in("note-flood");
    assert_eq!(instance.decide(&step()), Progress::Decided(Decision::Keep));
    let notes = instance.take_notes();
    assert_eq!((notes.len(), instance.notes_dropped()), (64, 36));
    assert!(notes.iter().all(|note| note.len() <= 1_024));
    notes.iter().for_each(|note| assert_plain(note));
    assert!(instance.take_notes().is_empty());
    assert_eq!(fault_of("note-forever"), FaultKind::OutOfFuel);
}

#[test]
fn text_functions_are_paid_for_by_the_byte() {
    for mode in ["text-flood", "bytes-flood", "find-flood"] {
        assert_eq!(fault_of(mode), FaultKind::OutOfFuel, "`{mode}`");
    }
    let long = FaultKind::BadCall(BadCall::TextTooLong { bytes: 4_097, limit: 4_096 });
    assert_eq!(fault_of("text-long"), long);
    assert!(matches!(fault_of("find-invalid"), FaultKind::BadCall(BadCall::Pattern(_))));
}

#[test]
fn an_answer_that_is_too_large_is_not_lifted() {
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
    let bad_plan = |mode| match start(hostile(), &[("mode", mode)]).err().unwrap().kind {
        FaultKind::BadPlan(reason) => reason,
        other => panic!("`{mode}`: {other:?}"),
    };
    assert_eq!(bad_plan("plan-candidates"), BadPlan::Candidates { given: 257, most: 256 });
    assert!(matches!(bad_plan("plan-floor"), BadPlan::Floor(_)));
    assert_eq!(bad_plan("plan-short"), BadPlan::Schedules { given: 0, heads: 1 });
    assert_eq!(bad_plan("plan-every"), BadPlan::Schedule(0));
}

#[test]
fn lying_manifests_are_refused_by_name() {
    let refused = |lie| match hostile().describe(&[head(lie)], GRANTED) {
        Err(LoadError::Manifest { error, .. }) => {
            assert_plain(&error.to_string());
            error
        }
        other => panic!("`{lie}`: {other:?}"),
    };
    for lie in ["lie-candidates", "lie-rewind", "lie-heads", "lie-settings", "lie-choice"] {
        let error = refused(lie);
        assert!(matches!(error, ManifestError::Bound { .. }), "`{lie}`: {error:?}");
    }
    for lie in ["lie-range", "lie-nan"] {
        let error = refused(lie);
        assert!(matches!(error, ManifestError::Range { .. }), "`{lie}`: {error:?}");
    }
    for lie in ["lie-name", "lie-long-name", "lie-no-name"] {
        let error = refused(lie);
        assert!(matches!(error, ManifestError::Name { .. }), "`{lie}`: {error:?}");
    }
    for lie in ["lie-head-twice", "lie-setting-twice"] {
        let error = refused(lie);
        assert!(matches!(error, ManifestError::Twice { .. }), "`{lie}`: {error:?}");
    }
    let near = vec![String::from("lie-head")];
    assert_eq!(refused("lie-head"), ManifestError::UnknownHead { name: "lie-heed".into(), near });
    assert_eq!(refused("lie-need"), ManifestError::UnknownNeed("network".into()));
    assert_eq!(refused("lie-stop"), ManifestError::NotGranted("stop"));
    let granted = hostile().describe(&[head("lie-stop")], Needs { stop: true, ..GRANTED }).unwrap();
    assert!(granted.needs.stop);
}

#[test]
fn imports_beyond_the_contract_are_refused_by_name() {
    let wasi = r#"(component
        (import "wasi:clocks/monotonic-clock@0.2.0" (instance (export "now" (func (result u64))))))"#;
    let error = load_text(wasi).unwrap_err();
    let LoadError::Contract { error: ContractError::UnknownImport { import, known }, .. } = error else { panic!() };
    assert_eq!(import, "wasi:clocks/monotonic-clock@0.2.0");
    assert_eq!(known.len(), 3);
    let later = r#"(component (import "vassal:policy/text@0.2.0" (instance)))"#;
    let error = load_text(later).unwrap_err().to_string();
    assert!(error.contains("`vassal:policy/text@0.2.0`"), "{error}");
    let function = r#"(component
        (import "vassal:policy/text@0.1.0" (instance (export "fetch" (func (param "url" string))))))"#;
    let error = load_text(function).unwrap_err().to_string();
    assert!(error.contains("vassal:policy/text@0.1.0#fetch"), "{error}");
    let plain = r#"(component (import "\1b[2Jhelp" (func)))"#;
    assert!(load_text(plain).is_err());
}

#[test]
fn types_that_differ_are_refused_at_the_first_difference() {
    let refused = |from: &str, to: &str| {
        let wit = WIT.replace(from, to);
        assert_ne!(wit, WIT, "`{from}` is in the contract");
        match (Forged { wit: &wit, ..Forged::default() }).load() {
            Err(LoadError::Contract { error: ContractError::Types { function, difference }, .. }) => {
                format!("{function}: {difference}")
            }
            other => panic!("`{from}` -> `{to}`: {:?}", other.map(|policy| policy.name().to_owned())),
        }
    };
    assert_eq!(
        refused("        stop(string),\n", "        stop(string),\n        fork,\n"),
        "vassal:policy/policy@0.1.0#decide: result case `fork` is not in the contract"
    );
    assert_eq!(
        refused("        ended: bool,\n", "        ended: u8,\n"),
        "vassal:policy/policy@0.1.0#decide: parameter `step` field `ended` is u8, but bool in the contract"
    );
    assert_eq!(
        refused("enum tail {", "enum tail { both,"),
        "vassal:policy/policy@0.1.0#decide: result case `steer` field `tail` case `both` stands where the \
         contract has `keep`"
    );
    assert_eq!(
        refused("        needs: list<string>,\n", ""),
        "vassal:policy/policy@0.1.0#describe: result field `needs` of the contract is missing"
    );
}

#[test]
fn files_that_are_no_policies_are_refused() {
    let good = Forged::default().bytes();
    let load = |bytes: &[u8]| sandbox().compile("file", bytes).map(|_| ()).unwrap_err();
    assert!(matches!(load(b""), LoadError::NotWebAssembly { .. }));
    assert!(matches!(load(b"GGUF\0\0\0\0\0"), LoadError::NotWebAssembly { .. }));
    assert!(matches!(load(&wat::parse_str("(module)").unwrap()), LoadError::CoreModule { .. }));
    assert!(matches!(load(&vec![0; (1 << 20) + 1]), LoadError::TooLarge { bytes: 1_048_577, .. }));
    assert!(matches!(
        load_text("(component)").unwrap_err(),
        LoadError::Contract { error: ContractError::MissingExport { .. }, .. }
    ));
    // Cut anywhere, it is refused; never a panic, never accepted.
    for length in (0..good.len()).step_by(97).chain([good.len() - 1]) {
        let error = load(&good[..length]);
        assert_plain(&error.to_string());
    }
    good_policy_is_served();
}

#[test]
fn proposals_that_no_guest_needs_are_off() {
    let refused = |fields: &str| {
        let error = Forged { fields, ..Forged::default() }.load().err();
        assert!(matches!(error, Some(LoadError::Invalid { .. })), "`{fields}`: {error:?}");
    };
    refused("(memory 1)");
    refused("(memory $large i64 1)");
    refused("(func $f (return_call $f))");
    refused("(memory $shared 1 1 shared)");
    refused("(type $s (struct (field i32)))");
    refused("(tag $t)");
    refused(
        "(func (param i64 i64 i64 i64) (result i64 i64) (i64.add128 (local.get 0) (local.get 1) (local.get 2) (local.get 3)))",
    );
}

#[test]
fn core_start_functions_run_under_the_limits() {
    let fields = "(func $spin (loop $forever (br $forever))) (start $spin)";
    let policy = Forged { fields, ..Forged::default() }.load().unwrap();
    let described = policy.describe(&[], GRANTED);
    assert!(matches!(described, Err(LoadError::Describe(Fault { kind: FaultKind::OutOfFuel, .. }))), "{described:?}");
}

#[test]
fn a_full_pool_is_the_hosts_fault_and_heals() {
    let small = Sandbox::new(Limits { sequences: 2, ..Limits::default() }, compilation()).unwrap();
    let policy = small.compile("good", &Forged::default().bytes()).unwrap();
    let manifest = Arc::new(policy.describe(&[], GRANTED).unwrap());
    let request = StartRequest {
        settings: &[],
        prompt: &[],
        candidates: 20,
        max_tokens: 1,
        temperature: 1.0,
        top_p: 1.0,
        seed: 0,
    };
    let open = || policy.start(&manifest, &request, text());
    let live = [open().unwrap(), open().unwrap()];
    let fault = open().err().unwrap();
    assert_eq!(fault.kind, FaultKind::Capacity);
    assert!(fault.kind.is_the_hosts());
    drop(live);
    assert!(open().is_ok());
}

#[test]
fn the_clock_is_a_backstop_and_the_hosts_fault() {
    let impatient =
        Limits { fuel_decide: u64::MAX, deadline_ms: 20, deadline_windows: 2, sequences: 2, ..Limits::default() };
    let sandbox = Sandbox::new(impatient, compilation()).unwrap();
    let forged = Forged { decide: "(loop $forever (br $forever)) unreachable", ..Forged::default() };
    let policy = sandbox.compile("slow", &forged.bytes()).unwrap();
    let Progress::Faulted(fault) = start(&policy, &[]).unwrap().decide(&step()) else { panic!() };
    assert_eq!(fault.kind, FaultKind::Deadline);
    assert!(fault.kind.is_the_hosts());
}

#[test]
fn the_shipped_text_and_the_sandbox_agree_on_a_good_policy() {
    let policy = Forged::default().load().unwrap();
    assert!(!policy.imports_values());
    assert!(policy.imports().is_empty());
    let manifest: Manifest = policy.describe(&[], GRANTED).unwrap();
    assert_eq!((manifest.name.as_str(), manifest.version.as_str(), manifest.candidates_max), ("forged", "1.0", 20));
    let mut instance = start(&policy, &[]).unwrap();
    assert_eq!(instance.plan().candidates, 20);
    assert_eq!(instance.decide(&step()), Progress::Decided(Decision::Keep));
    assert!((1..1_000).contains(&instance.fuel_used()), "{}", instance.fuel_used());
    assert!(hostile().imports_values());
}

/// `cabi_realloc` as a bump allocator whose memory every call begins anew.
pub(crate) const BUMP: &str = "(local.set $at (i32.and (i32.add (global.get $next) (i32.const 7)) (i32.const -8)))
    (global.set $next (i32.add (local.get $at) (local.get 3)))
    (local.get $at)";

/// A policy in WebAssembly text that keeps the contract but for what a test forges.
pub(crate) struct Forged<'a> {
    pub(crate) wit: &'a str,
    /// Pages of 64 KiB.
    pub(crate) memory: u32,
    /// Further fields of the module.
    pub(crate) fields: &'a str,
    /// The body of `cabi_realloc`, which has a local `$at`; `$started` is set once `start` has run.
    pub(crate) realloc: &'a str,
    /// The body of `decide`, which returns where its answer lies: 512 holds `keep`.
    pub(crate) decide: &'a str,
}

impl Default for Forged<'_> {
    fn default() -> Self {
        Self { wit: WIT, memory: 2, fields: "", realloc: BUMP, decide: "i32.const 512" }
    }
}

impl Forged<'_> {
    fn load(&self) -> Result<CompiledPolicy, LoadError> {
        sandbox().compile("forged", &self.bytes())
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let Self { memory, fields, realloc, decide, .. } = self;
        // The manifest lies at 64: name, version and summary; 20 candidates; no rewind, heads, settings, needs.
        // The plan lies at 256, `ok` with 20 candidates.
        let module = format!(
            r#"(module
            (memory (export "memory") {memory})
            (global $next (mut i32) (i32.const 4096))
            (global $started (mut i32) (i32.const 0))
            (data (i32.const 16) "forged1.0")
            (data (i32.const 64) "\10\00\00\00\06\00\00\00\16\00\00\00\03\00\00\00\10\00\00\00\06\00\00\00\14")
            (data (i32.const 256) "\00\00\00\00\14")
            {fields}
            (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (local $at i32) {realloc})
            (func (export "vassal:policy/policy@0.1.0#describe") (param i32 i32) (result i32)
                i32.const 64)
            (func (export "vassal:policy/policy@0.1.0#start")
                (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 f32 f32 i64) (result i32)
                (global.set $started (i32.const 1)) i32.const 256)
            (func (export "vassal:policy/policy@0.1.0#decide")
                (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 f32 f32 i32) (result i32)
                (global.set $next (i32.const 4096)) {decide}))"#
        );
        componentize(&wat::parse_str(&module).unwrap(), self.wit)
    }
}

/// Wraps a core module as a component of the world `aligner` in `wit`.
fn componentize(module: &[u8], wit: &str) -> Vec<u8> {
    let mut resolve = wit_parser::Resolve::default();
    let package = resolve.push_str("policy.wit", wit).unwrap();
    let world = resolve.select_world(&[package], Some("aligner")).unwrap();
    let mut module = module.to_vec();
    wit_component::embed_component_metadata(&mut module, &resolve, world, wit_component::StringEncoding::UTF8).unwrap();
    wit_component::ComponentEncoder::default().module(&module).unwrap().encode().unwrap()
}

fn load_text(component: &str) -> Result<CompiledPolicy, LoadError> {
    sandbox().compile("text", &wat::parse_str(component).unwrap())
}
