//! A policy is the same natively and as a component, and stays within its fuel.
//!
//! Each shipped policy and each sketch runs through a response of a toy model twice at once: as an
//! ordinary Rust type in the SDK's harness, and as a component in the sandbox. Every decision has to be the
//! same to the bit, values asked for and splices included. Start at [`Pair`].

use std::collections::BTreeMap;
use std::sync::Arc;

use vassal::policy_build::Recipe;
use vassal::sandbox::{self, Limits, Needs, Progress, Sandbox, Scope, ValueAnswer, ValueRequest, VocabularyText};
use vassal::token::{Token, Vocabulary};
use vassal_guest::test::{FakeHost, Harness, apply};
use vassal_guest::{Decision, Policy, Steering};

use crate::rebuild::root;
use crate::sketches::{contrastive, grammar, segment_rejection, watermark};
use crate::support::compilation;

/// A vocabulary of words, digits and pieces, of which the last token ends a response.
struct Toy(Vec<Vec<u8>>);

impl Toy {
    fn new() -> Toy {
        let mut words: Vec<Vec<u8>> = (0..10).map(|digit| vec![b'0' + digit]).collect();
        words.extend([", ", ",", " ", "For", "bid", "den", " for", "BIDDEN", "forbidden", "é"].map(|word| word.into()));
        words.extend((0..180).map(|number| format!("w{number}").into_bytes()));
        words.push(Vec::new());
        Toy(words)
    }
}

impl Vocabulary for Toy {
    fn size(&self) -> usize {
        self.0.len()
    }

    fn bytes(&self, token: Token) -> &[u8] {
        self.0.get(token as usize).map_or(&[], Vec::as_slice)
    }

    fn is_special(&self, token: Token) -> bool {
        self.bytes(token).is_empty()
    }

    /// The longest token that fits, as the harness does it.
    fn tokens(&self, text: &str) -> Vec<Token> {
        let mut left = text.as_bytes();
        let mut tokens = Vec::new();
        while !left.is_empty() {
            let fits = |token: &usize| !self.0[*token].is_empty() && left.starts_with(&self.0[*token]);
            let longest = (0..self.0.len()).filter(fits).max_by_key(|token| self.0[*token].len()).unwrap();
            left = &left[self.0[longest].len()..];
            tokens.push(longest as Token);
        }
        tokens
    }

    fn end_of_text(&self) -> &[Token] {
        &[200]
    }
}

/// Uneven values, so that a sum in another order would show.
fn value(head: u32, tokens: &[Token]) -> f32 {
    let mixed = tokens.iter().fold(head + 7, |mixed, token| mixed.wrapping_mul(0x9e37_79b9) ^ (token + 1));
    (mixed >> 8) as f32 / 1e6 - 5.0
}

fn logits(response: &[Token]) -> Vec<f32> {
    let mixed = response.iter().fold(11, |mixed: u32, token| mixed.wrapping_mul(31).wrapping_add(*token));
    (0..201).map(|token| ((token * 37 + mixed % 997 * 11) % 101) as f32 * 0.07 - 4.0).collect()
}

/// What the sandbox makes of a valid decision.
fn as_host(decision: &Decision) -> sandbox::Decision {
    match decision {
        Decision::Keep => sandbox::Decision::Keep,
        Decision::Stop(reason) => sandbox::Decision::Stop(reason.clone()),
        Decision::Splice(splice) => sandbox::Decision::Splice { remove: splice.remove, insert: splice.insert.clone() },
        Decision::Steer(steering) => sandbox::Decision::Steer(steering_as_host(steering)),
    }
}

fn steering_as_host(steering: &Steering) -> sandbox::Steering {
    let mut bias = BTreeMap::new();
    if let Some(given) = &steering.bias {
        for (token, delta) in given.tokens.iter().zip(&given.deltas) {
            *bias.entry(*token).or_insert(0.0) += delta;
        }
    }
    let baseline = |baseline| match baseline {
        vassal_guest::Baseline::None => sandbox::Baseline::None,
        vassal_guest::Baseline::Candidates => sandbox::Baseline::Candidates,
        vassal_guest::Baseline::Weighted => sandbox::Baseline::Weighted,
        vassal_guest::Baseline::State => sandbox::Baseline::State,
    };
    let term = |term: &vassal_guest::HeadWeight| sandbox::HeadWeight {
        head: term.head,
        weight: term.weight,
        baseline: baseline(term.baseline),
    };
    sandbox::Steering {
        adjust: steering.adjust.clone(),
        blend: steering.blend.iter().map(term).collect(),
        bias: bias.into_iter().collect(),
        vocabulary: steering.vocabulary.as_ref().map(|bias| {
            let mut bits = bias.bits.clone();
            // Bits beyond the toy's 201 tokens mean nothing, and the sandbox clears them.
            bits[3] &= (1 << (201 - 3 * 64)) - 1;
            vassal_kernels::VocabularyBias { bits, set: bias.set, unset: bias.unset }
        }),
        tail: match steering.tail {
            vassal_guest::Tail::Keep => sandbox::Tail::Keep,
            vassal_guest::Tail::Mask => sandbox::Tail::Mask,
        },
    }
}

/// What is run, and how.
struct Pair<'a> {
    component: &'a [u8],
    heads: &'a [(&'a str, &'a str)],
    settings: &'a [(&'a str, &'a str)],
}

/// The most fuel that a start and a step took.
#[derive(Debug)]
struct Fuel {
    start: u64,
    decide: u64,
}

impl Pair<'_> {
    /// Runs both through 60 tokens, or until the response ends.
    fn run<P: Policy>(&self) -> Fuel {
        let toy = Toy::new();
        let mut native = Harness::<P>::new(FakeHost::new(&toy.0).end_of_text(200).values(value));
        for (name, kind) in self.heads {
            native = native.offer(name, kind, 0.1);
        }
        for (name, text) in self.settings {
            native = match text.parse::<f64>() {
                Ok(number) => native.set(name, number),
                Err(_) => native.set(name, *text),
            };
        }
        (native.request.seed, native.request.temperature) = (5, 0.7);
        (native.request.max_tokens, native.request.candidates) = (60, 64);
        native.start().unwrap();

        let sandbox = Sandbox::new(Limits::default(), compilation()).unwrap();
        let compiled = sandbox.compile("policy", self.component).unwrap();
        let offer = |(name, kind): &(&str, &str)| sandbox::HeadOffer {
            name: (*name).into(),
            kind: (*kind).into(),
            spread: 0.1,
        };
        let offered: Vec<_> = self.heads.iter().map(offer).collect();
        let manifest = Arc::new(compiled.describe(&offered, Needs::ALL).unwrap());
        assert_eq!(manifest.name, native.manifest().name);
        let settings = sandbox::settings::resolve(&manifest, self.settings, Scope::Tenant, sandbox.limits()).unwrap();
        let request = sandbox::StartRequest {
            settings: &settings,
            prompt: &[],
            candidates: 64,
            max_tokens: 60,
            temperature: 0.7,
            top_p: 1.0,
            seed: 5,
        };
        let text = VocabularyText::new(Arc::new(toy));
        let mut instance = compiled.start(&manifest, &request, &text).unwrap();
        assert_eq!(instance.plan().candidates, native.plan().candidates);

        let mut fuel = Fuel { start: instance.start_fuel_used(), decide: 0 };
        let mut response: Vec<Token> = Vec::new();
        for _ in 0..200 {
            let logits = logits(&response);
            let ended = response.len() == 60 || response.last() == Some(&200);
            let step = if ended { native.ending() } else { native.step(&logits) };
            let given = sandbox::Step {
                kept: step.kept,
                appended: &step.appended,
                candidates: &step.candidates,
                logits: &step.logits,
                prefetched: step.prefetched,
                values: &step.values,
                log_normalizer: step.log_normalizer,
                entropy: step.entropy,
                ended: step.ended,
            };
            let mut progress = instance.decide(&given);
            while let Progress::Wants(request) = progress {
                progress = instance.resume(ValueAnswer::Values(answer(&request, &response)));
            }
            fuel.decide = fuel.decide.max(instance.fuel_used());
            let decision = native.decide(&step);
            // Where the response ends there is nothing to steer: the sandbox takes it for `keep`.
            let expected = match &decision {
                Decision::Steer(_) if ended => sandbox::Decision::Keep,
                decision => as_host(decision),
            };
            assert_eq!(progress, Progress::Decided(expected), "after {response:?}");
            let steered = match decision {
                Decision::Splice(splice) => {
                    native.splice(&splice);
                    response.truncate(response.len() - splice.remove as usize);
                    response.extend(&splice.insert);
                    continue;
                }
                Decision::Stop(_) => break,
                _ if ended => break,
                Decision::Steer(steering) => apply(&step, &steering, &logits, native.host()),
                Decision::Keep => logits,
            };
            let likeliest = (0..201).max_by(|a, b| steered[*a].total_cmp(&steered[*b])).unwrap();
            response.push(likeliest as Token);
            native.commit(likeliest as Token);
        }
        fuel
    }
}

fn answer(request: &ValueRequest, response: &[Token]) -> Vec<f32> {
    match request {
        ValueRequest::Evaluate { heads, tokens } => {
            let asked = heads.iter().flat_map(|head| tokens.iter().map(move |token| (*head, *token)));
            asked.map(|(head, token)| value(head, &[response, &[token]].concat())).collect()
        }
        ValueRequest::Current { head } => vec![value(*head, response)],
    }
}

fn shipped(file: &str) -> Vec<u8> {
    std::fs::read(root().join("guest/policies").join(file)).unwrap()
}

fn sketch(name: &str) -> Vec<u8> {
    let recipe = Recipe { dir: root().join("guest"), example: Some(name.into()), quiet: true, ..Recipe::default() };
    recipe.component().unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn vas_is_the_same_natively_and_as_a_component() {
    let heads = [("sentiment", "value"), ("simplicity", "value")];
    for (file, modes) in [("vas.wasm", &["blend", "adjust", "evaluate"][..]), ("vas_plain.wasm", &["blend", "adjust"])]
    {
        let component = shipped(file);
        for mode in modes {
            for baseline in ["weighted", "candidates", "none"] {
                let settings =
                    [("mode", *mode), ("baseline", baseline), ("sentiment", "0.02"), ("simplicity", "-0.01")];
                let pair = Pair { component: &component, heads: &heads, settings: &settings };
                let fuel = pair.run::<vassal_policy_vas::Vas>();
                assert!(fuel.decide <= 20_000 && fuel.start <= 50_000, "{file} {mode} {baseline}: {fuel:?}");
            }
        }
    }
}

#[test]
fn guard_is_the_same_natively_and_as_a_component() {
    let component = shipped("guard.wasm");
    for phrases in ["forbidden", "w1\nw2\nw33\nw7, w8\nFOR BID", ""] {
        let pair = Pair { component: &component, heads: &[], settings: &[("phrases", phrases)] };
        let fuel = pair.run::<vassal_policy_guard::Guard>();
        assert!(fuel.decide <= 50_000 && fuel.start <= 200_000, "{phrases:?}: {fuel:?}");
    }
}

#[test]
fn the_sketches_are_the_same_natively_and_as_components() {
    let heads = [("expert", "log-probability"), ("anti-expert", "log-probability")];
    let component = sketch("contrastive");
    Pair { component: &component, heads: &heads, settings: &[("strength", "0.1")] }.run::<contrastive::Contrastive>();
    let component = sketch("grammar");
    Pair { component: &component, heads: &[], settings: &[("count", "7")] }.run::<grammar::Grammar>();
    let component = sketch("watermark");
    Pair { component: &component, heads: &[], settings: &[("secret", "of the house")] }.run::<watermark::Watermark>();
    let component = sketch("segment_rejection");
    let settings = [("entropy", "4.0"), ("threshold", "5"), ("temperature", "2")];
    Pair { component: &component, heads: &[("worth", "value")], settings: &settings }
        .run::<segment_rejection::SegmentRejection>();
}

#[test]
fn only_a_policy_that_asks_imports_values() {
    let sandbox = Sandbox::new(Limits::default(), compilation()).unwrap();
    let imports = |file: &str| sandbox.compile(file, &shipped(file)).unwrap().imports().to_vec();
    assert_eq!(imports("vas.wasm"), ["values.evaluate", "values.current", "audit.note"]);
    assert_eq!(imports("vas_plain.wasm"), ["audit.note"]);
    assert_eq!(imports("guard.wasm"), ["text.bytes", "text.find", "audit.note"]);
}
