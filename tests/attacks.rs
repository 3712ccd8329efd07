//! Attacks: what a stranger's policy may try, each beside the fault that it must end in.
//!
//! `tests/attacks/README.md` is the table of them all. The hostile guest (`tests/hostile/`) has a mode for each attack
//! that safe Rust can make; what needs a forged binary is WebAssembly text ([`forged`]), assembled around a policy that
//! otherwise keeps the contract. Attacks are sorted by the room that they are tried in: [`loading`], [`answers`],
//! [`resources`], [`words`], [`chains`], [`life`], [`rewards`]; [`limits`] and [`rates`] have every number at its bound and one beyond.
//!
//! Each test begins with [`Served::as_before`]: when it is over, the same process serves a good request, whose tokens
//! are those from before, and, where the test runs [`alone`], its memory is back.

mod alone;
mod answers;
mod chains;
mod forged;
mod life;
mod limits;
mod loading;
mod rates;
mod resources;
mod rewards;
mod words;

use std::sync::{Arc, OnceLock};

use vassal::sandbox::{
    BadDecision, CompiledPolicy, Decision, Fault, FaultKind, Guest, HeadOffer, Instance, Needs, Progress, Scope,
    SettingValue, StartRequest, Step, ValueAnswer, ValueRequest, VocabularyText, settings,
};
use vassal::token::{Token, Vocabulary};

pub(crate) use self::alone::Served;
pub(crate) use self::forged::{BUMP, Forged};
use crate::support::{compiled, component, sandbox};

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

fn hostile() -> CompiledPolicy {
    compiled("hostile")
}

/// Its component.
fn hostile_bytes() -> &'static [u8] {
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    BYTES.get_or_init(|| component("hostile"))
}

fn head(name: &str) -> HeadOffer {
    HeadOffer { name: name.into(), kind: "value".into(), spread: 0.1 }
}

const GRANTED: Needs = Needs { prompt: false, insert: true, rewind: true, stop: false };

fn start(policy: &CompiledPolicy, given: &[(&str, &str)]) -> Result<Instance, Fault> {
    let manifest = policy.describe(&[head("value")], GRANTED).unwrap();
    let settings = settings::resolve(&manifest, given, Scope::Request, sandbox().limits()).unwrap();
    policy.start(&Arc::new(manifest), &asked(&settings), text())
}

fn asked(settings: &[SettingValue]) -> StartRequest<'_> {
    StartRequest {
        settings,
        prompt: &[1, 2, 3],
        candidates: 20,
        max_tokens: 100,
        temperature: 1.0,
        top_p: 1.0,
        seed: 1,
    }
}

fn hostile_in(mode: &str) -> Instance {
    start(&hostile(), &[("mode", mode)]).unwrap()
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
    assert_eq!(fault.guest, Guest::policy("hostile"));
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
