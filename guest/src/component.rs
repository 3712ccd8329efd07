//! The component's side of the contract: the generated bindings, and the conversions between their
//! types and the SDK's. Compiled for wasm32 only, and public only for the export macro's sake.
//!
//! The conversions move vectors and copy numbers, and cost some tens of instructions a call.
#![allow(missing_docs, reason = "hidden from the documentation; an author sees the SDK's own types")]

use std::cell::RefCell;
use std::marker::PhantomData;

use crate::{
    Baseline, Decision, HeadOffer, Manifest, NamedValue, Pattern, Place, Plan, Policy, Request, Schedule, Scope,
    SettingKind, SettingValue, Step, Tail, Token, ValueError,
};

/// What wit-bindgen generates, alone in its module. Its unsafe code comes out of a macro of another
/// crate, where this crate's lint does not look; nothing else in the SDK needs any.
pub mod bindings {
    wit_bindgen::generate!({
        world: "aligner",
        path: "../wit/policy-0.1",
        pub_export_macro: true,
    });
}

use bindings::exports::vassal::policy::policy as wit;
use bindings::vassal::policy::{audit, text, types, values};

/// The generated trait for any policy.
pub struct Component<P>(PhantomData<P>);

/// A policy whose type is forgotten, so that one static can hold any.
trait Decide {
    fn decide(&mut self, step: &Step) -> Decision;
}

impl<P: Policy> Decide for P {
    fn decide(&mut self, step: &Step) -> Decision {
        Policy::decide(self, step)
    }
}

thread_local! {
    /// The policy of this instance's one response.
    static POLICY: RefCell<Option<Box<dyn Decide>>> = const { RefCell::new(None) };
}

impl<P: Policy> wit::Guest for Component<P> {
    fn describe(offered: Vec<wit::HeadOffer>) -> wit::Manifest {
        let offered: Vec<HeadOffer> = offered.into_iter().map(HeadOffer::from).collect();
        P::manifest(&offered).into()
    }

    fn start(request: wit::Request) -> Result<wit::Plan, String> {
        // The message of a panic is the one thing an author needs to know of a fault.
        std::panic::set_hook(Box::new(|panic| audit::note(&panic.to_string())));
        let request = Request::from(request);
        let policy = P::start(&request)?;
        let plan = policy.plan(&request).into();
        POLICY.set(Some(Box::new(policy)));
        Ok(plan)
    }

    fn decide(step: types::Step) -> types::Decision {
        let step = Step::from(step);
        POLICY.with_borrow_mut(|policy| match policy {
            Some(policy) => policy.decide(&step).into(),
            None => types::Decision::Keep,
        })
    }
}

pub(crate) fn evaluate(heads: &[u32], tokens: &[Token]) -> Result<Vec<f32>, ValueError> {
    values::evaluate(heads, tokens).map_err(ValueError::from)
}

pub(crate) fn current(head: u32) -> Result<f32, ValueError> {
    values::current(head).map_err(ValueError::from)
}

pub(crate) fn bytes(tokens: &[Token]) -> (Vec<u8>, Vec<u32>) {
    text::bytes(tokens)
}

pub(crate) fn tokens(given: &str) -> Vec<Token> {
    text::tokens(given)
}

pub(crate) fn find(pattern: &Pattern, place: Place) -> Vec<u64> {
    let place = match place {
        Place::Whole => text::Place::Whole,
        Place::Start => text::Place::Start,
        Place::End => text::Place::End,
        Place::Anywhere => text::Place::Anywhere,
    };
    // An argument's record owns its lists: a copy of some hundred bytes.
    let Pattern { bytes, spellings, letters } = pattern.clone();
    text::find(&text::Pattern { bytes, spellings, letters }, place)
}

pub(crate) fn note(message: &str) {
    audit::note(message);
}

impl From<values::ValueError> for ValueError {
    fn from(error: values::ValueError) -> ValueError {
        match error {
            values::ValueError::NotNow => ValueError::NotNow,
            values::ValueError::UnknownHead => ValueError::UnknownHead,
            values::ValueError::InvalidTokens => ValueError::InvalidTokens,
            values::ValueError::BudgetSpent => ValueError::BudgetSpent,
            values::ValueError::Unavailable => ValueError::Unavailable,
        }
    }
}

impl From<types::Step> for Step {
    fn from(step: types::Step) -> Step {
        Step {
            kept: step.kept,
            appended: step.appended,
            candidates: step.candidates,
            logits: step.logits,
            prefetched: step.prefetched,
            values: step.values,
            log_normalizer: step.log_normalizer,
            entropy: step.entropy,
            ended: step.ended,
        }
    }
}

impl From<Decision> for types::Decision {
    // Called once, on the way out of every step: there it costs a third less.
    #[inline(always)]
    fn from(decision: Decision) -> types::Decision {
        match decision {
            Decision::Keep => types::Decision::Keep,
            Decision::Steer(steering) => types::Decision::Steer(types::Steering {
                adjust: steering.adjust,
                blend: steering.blend.into_iter().map(head_weight).collect(),
                bias: steering.bias.map(|bias| types::TokenBias { tokens: bias.tokens, deltas: bias.deltas }),
                vocabulary: steering.vocabulary.map(|bias| types::VocabularyBias {
                    bits: bias.bits,
                    set: bias.set,
                    unset: bias.unset,
                }),
                tail: match steering.tail {
                    Tail::Keep => types::Tail::Keep,
                    Tail::Mask => types::Tail::Mask,
                },
            }),
            Decision::Splice(splice) => {
                types::Decision::Splice(types::Splice { remove: splice.remove, insert: splice.insert })
            }
            Decision::Stop(reason) => types::Decision::Stop(reason),
        }
    }
}

fn head_weight(term: crate::HeadWeight) -> types::HeadWeight {
    types::HeadWeight {
        head: term.head,
        weight: term.weight,
        baseline: match term.baseline {
            Baseline::None => types::Baseline::None,
            Baseline::Candidates => types::Baseline::Candidates,
            Baseline::Weighted => types::Baseline::Weighted,
            Baseline::State => types::Baseline::State,
        },
    }
}

impl From<wit::HeadOffer> for HeadOffer {
    fn from(offer: wit::HeadOffer) -> HeadOffer {
        HeadOffer { name: offer.name, kind: offer.kind, spread: offer.spread }
    }
}

impl From<wit::NamedValue> for NamedValue {
    fn from(named: wit::NamedValue) -> NamedValue {
        let value = match named.value {
            wit::SettingValue::Number(value) => SettingValue::Number(value),
            wit::SettingValue::Flag(value) => SettingValue::Flag(value),
            wit::SettingValue::Choice(word) => SettingValue::Choice(word),
            wit::SettingValue::Text(text) => SettingValue::Text(text),
        };
        NamedValue { name: named.name, value }
    }
}

impl From<wit::Request> for Request {
    fn from(request: wit::Request) -> Request {
        Request {
            settings: request.settings.into_iter().map(NamedValue::from).collect(),
            heads: request.heads.into_iter().map(HeadOffer::from).collect(),
            prompt: request.prompt,
            candidates: request.candidates,
            vocabulary_size: request.vocabulary_size,
            end_of_text: request.end_of_text,
            max_tokens: request.max_tokens,
            temperature: request.temperature,
            top_p: request.top_p,
            seed: request.seed,
        }
    }
}

impl From<Plan> for wit::Plan {
    fn from(plan: Plan) -> wit::Plan {
        let schedule = |schedule| match schedule {
            Schedule::Never => wit::Schedule::Never,
            Schedule::Every(steps) => wit::Schedule::Every(steps),
            Schedule::Unsure(probability) => wit::Schedule::Unsure(probability),
        };
        wit::Plan {
            candidates: plan.candidates,
            candidates_floor: plan.candidates_floor,
            prefetch: plan.prefetch.into_iter().map(schedule).collect(),
        }
    }
}

impl From<Manifest> for wit::Manifest {
    fn from(manifest: Manifest) -> wit::Manifest {
        let setting = |setting: crate::Setting| wit::Setting {
            name: setting.name,
            summary: setting.summary,
            scope: match setting.scope {
                Scope::Tenant => wit::Scope::Tenant,
                Scope::Request => wit::Scope::Request,
            },
            kind: match setting.kind {
                SettingKind::Number { minimum, maximum, initial } => {
                    wit::SettingKind::Number(wit::NumberSetting { minimum, maximum, initial })
                }
                SettingKind::Flag(initial) => wit::SettingKind::Flag(initial),
                SettingKind::Choice(words) => wit::SettingKind::Choice(words),
                SettingKind::Text(initial) => wit::SettingKind::Text(initial),
            },
        };
        wit::Manifest {
            name: manifest.name,
            version: manifest.version,
            summary: manifest.summary,
            candidates_max: manifest.candidates_max,
            rewind_max: manifest.rewind_max,
            heads: manifest.heads,
            settings: manifest.settings.into_iter().map(setting).collect(),
            needs: manifest.needs,
        }
    }
}
