//! A policy whose manifest, plan, calls and decisions are read from bytes that a fuzzer chose.
//!
//! `describe` has one input, the heads on offer: the script of the manifest is the name of the last of them, a
//! character a byte. Everything after it is read from the user's prompt, a token a byte: the plan first, then, step after
//! step, a call of the host now and then and a decision. Where the script ends the answer is `keep`.
//!
//! The word before the manifest's script says that it is one; without it the manifest is a plain one.
#![forbid(unsafe_code)]

mod script;

use script::Script;
use vassal_guest::*;

const MANIFEST: &str = "script:";

struct Fuzzed {
    script: Script,
    plan: Plan,
    vocabulary_size: u32,
    heads: usize,
}

impl Policy for Fuzzed {
    fn manifest(offered: &[HeadOffer]) -> Manifest {
        let script = offered.last().and_then(|last| last.name.strip_prefix(MANIFEST));
        let heads = &offered[..offered.len() - usize::from(script.is_some())];
        let bytes = script.unwrap_or_default().chars().map(|c| c as u8).collect();
        manifest(&mut Script::new(bytes), heads)
    }

    fn start(request: &Request) -> Result<Self, String> {
        let mut script = Script::new(request.prompt.iter().map(|token| *token as u8).collect());
        if script.byte() == 0xff {
            return Err(script.text());
        }
        let plan = plan(&mut script, request.heads.len());
        Ok(Fuzzed { script, plan, vocabulary_size: request.vocabulary_size, heads: request.heads.len() })
    }

    fn plan(&self, _request: &Request) -> Plan {
        self.plan.clone()
    }

    fn decide(&mut self, step: &Step) -> Decision {
        while self.script.byte() & 7 == 7 && !self.script.is_over() {
            self.call();
        }
        if self.script.is_over() {
            return Decision::Keep;
        }
        match self.script.byte() & 15 {
            0..=2 => Decision::Keep,
            3..=9 => Decision::Steer(self.steering(step.candidates.len())),
            10..=13 => {
                let remove = if self.script.rarely() { self.script.word() } else { u32::from(self.script.byte() & 7) };
                let usual = usize::from(self.script.byte() & 3);
                Decision::Splice(Splice { remove, insert: self.script.tokens(usual, self.vocabulary_size) })
            }
            14 => Decision::Stop(self.script.text()),
            _ if self.script.rarely() => panic!("{}", self.script.text()),
            _ => Decision::Keep,
        }
    }
}

impl Fuzzed {
    /// Calls the host; whatever it answers is looked at by nobody.
    fn call(&mut self) {
        let script = &mut self.script;
        match script.byte() % 6 {
            0 => {
                let heads = self.heads;
                let heads: Vec<u32> = (0..script.length(1)).map(|_| index(script, heads)).collect();
                drop(values::evaluate(&heads, &script.tokens(2, self.vocabulary_size)));
            }
            1 => drop(values::current(index(script, self.heads))),
            2 => drop(text::bytes(&script.tokens(3, self.vocabulary_size))),
            3 => drop(text::tokens(&script.text())),
            4 => {
                let places = [Place::Whole, Place::Start, Place::End, Place::Anywhere];
                let place = places[usize::from(script.byte() & 3)];
                drop(text::find(&script.pattern(), place));
            }
            _ => audit::note(&script.text()),
        }
    }

    fn steering(&mut self, candidates: usize) -> Steering {
        let script = &mut self.script;
        let parts = script.byte();
        let mut steering = Steering::default();
        if parts & 1 != 0 {
            steering.adjust = (0..script.length(candidates)).map(|_| script.number()).collect();
        }
        if parts & 2 != 0 {
            let heads = self.heads;
            let first = usize::from(script.byte());
            // Different heads mostly: a head in two terms is a fault.
            steering.blend = (0..script.length(heads.min(1 + first % 3)))
                .map(|term| HeadWeight {
                    head: if script.rarely() { index(script, heads) } else { ((first + term) % heads.max(1)) as u32 },
                    weight: script.number(),
                    baseline: [Baseline::None, Baseline::Candidates, Baseline::Weighted, Baseline::State]
                        [usize::from(script.byte() & 3)],
                })
                .collect();
        }
        if parts & 4 != 0 {
            let tokens = script.tokens(2, self.vocabulary_size);
            let deltas = (0..script.length(tokens.len())).map(|_| script.number()).collect();
            steering.bias = Some(TokenBias { tokens, deltas });
        }
        if parts & 8 != 0 {
            let word = u64::from(script.word()) << 32 | u64::from(script.word());
            let words = script.length(self.vocabulary_size.div_ceil(64) as usize);
            // Words that differ, of one number: a rotation each.
            let bits = (0..words).map(|at| word.rotate_left(at as u32 * 7)).collect();
            steering.vocabulary = Some(VocabularyBias { bits, set: script.number(), unset: script.number() });
        }
        if parts & 16 != 0 {
            steering.tail = Tail::Mask;
        }
        steering
    }
}

/// A head's index, of these mostly.
fn index(script: &mut Script, heads: usize) -> u32 {
    if script.rarely() { script.word() } else { u32::from(script.byte()) % (heads.max(1) as u32) }
}

fn manifest(script: &mut Script, offered: &[HeadOffer]) -> Manifest {
    let name = script.text();
    let mut manifest = Manifest {
        name: if name.is_empty() { "fuzzed".into() } else { name },
        version: script.text(),
        summary: script.text(),
        candidates_max: if script.rarely() { script.word() } else { 8 },
        rewind_max: if script.rarely() { script.word() } else { 4 },
        heads: offered.iter().map(|offer| offer.name.clone()).collect(),
        settings: (0..script.byte() & 3).map(|place| setting(script, place)).collect(),
        needs: ["prompt", "rewind", "insert", "stop"].map(String::from).into(),
    };
    match script.byte() {
        0xf0..=0xf3 => manifest.heads.reverse(),
        0xf4..=0xf6 => manifest.heads.extend(offered.first().map(|offer| offer.name.clone())),
        0xf7..=0xf9 => manifest.heads.push(script.text()),
        0xfa..=0xff => manifest.heads.truncate(usize::from(script.byte() & 3)),
        _ => {}
    }
    if script.rarely() {
        manifest.needs.push(script.text());
    }
    manifest
}

fn setting(script: &mut Script, place: u8) -> Setting {
    let name = if script.rarely() { script.text() } else { format!("s{place}") };
    let kind = match script.byte() & 3 {
        0 => {
            let mut number = || f64::from(script.number());
            SettingKind::Number { minimum: number(), maximum: number(), initial: number() }
        }
        1 => SettingKind::Flag(true),
        2 => SettingKind::Choice((0..script.length(2)).map(|place| format!("{place}{}", script.text())).collect()),
        _ => SettingKind::Text(script.text()),
    };
    Setting { name, summary: script.text(), scope: Scope::Request, kind }
}

fn plan(script: &mut Script, heads: usize) -> Plan {
    let prefetch = (0..script.length(heads)).map(|_| match script.byte() & 3 {
        0 => Schedule::Never,
        1 => Schedule::EVERY_STEP,
        2 => Schedule::Every(u32::from(script.byte())),
        _ => Schedule::Unsure(script.probability()),
    });
    let prefetch = prefetch.collect();
    Plan {
        candidates: if script.rarely() { script.word() } else { 1 + u32::from(script.byte() & 7) },
        candidates_floor: script.probability() / 8.0,
        prefetch,
    }
}

export!(Fuzzed);
