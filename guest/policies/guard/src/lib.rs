//! The shipped policy `guard`: a tenant's forbidden phrases are never said.
//!
//! A phrase is matched on bytes, across token boundaries and in any letter case, and no token that
//! would complete it can be drawn, whether it is a candidate or not: the guard asks the host which tokens
//! of the whole vocabulary contain a phrase, and which begin with the rest of one that the response has
//! begun, and forbids exactly these. Every other token keeps its probability. It reads the response only:
//! what the prompt began does not count. It knows words as little as the tokenizer does: a phrase is
//! found inside a longer word too.
//!
//! Start at [`Guard::decide`]; what a letter is stands in `phrases.rs`.

mod phrases;

use phrases::{Begun, Phrases};
use vassal_guest::*;

/// The most tokens that a bias of single tokens may name; beyond, the whole vocabulary is biased.
const BIAS_MAX: usize = 1024;

/// The policy of one response.
#[derive(Default)]
pub struct Guard {
    phrases: Phrases,
    /// The tokens that contain a whole phrase: forbidden in every step.
    always: Vec<Token>,
    /// The tokens that begin with the rest of a phrase, as they were found once; sorted.
    completing: Vec<(Begun, Vec<Token>)>,
    /// The phrases begun after each of the response's tokens, so that a splice costs nothing.
    begun: Vec<Vec<Begun>>,
    vocabulary_size: u32,
}

impl Policy for Guard {
    fn manifest(_offered: &[HeadOffer]) -> Manifest {
        let summary = "the phrases that must not be said, one a line, in any letter case";
        Manifest {
            name: "guard".into(),
            version: "0.1.0".into(),
            summary: "Forbidden phrases are never said".into(),
            candidates_max: 1,
            settings: vec![Setting::text("phrases", summary, "").of_tenant()],
            ..Manifest::default()
        }
    }

    fn start(request: &Request) -> Result<Self, String> {
        let phrases = Phrases::new(request.text("phrases"))?;
        let mut always = TokenSet::default();
        for phrase in phrases.iter() {
            always.union(&text::find(phrase, Place::Anywhere));
        }
        let always = always.iter().collect();
        Ok(Guard { phrases, always, vocabulary_size: request.vocabulary_size, ..Guard::default() })
    }

    /// No candidates to speak of: the guard asks for tokens by what they say.
    fn plan(&self, _request: &Request) -> Plan {
        Plan { candidates: 1, candidates_floor: 0.0, prefetch: Vec::new() }
    }

    fn decide(&mut self, step: &Step) -> Decision {
        if self.phrases.is_empty() {
            return Decision::Keep;
        }
        self.follow(step);
        if step.ended {
            return Decision::Keep;
        }
        let begun = self.begun.last().map(Vec::as_slice).unwrap_or_default();
        if begun.is_empty() {
            return self.forbid(&self.always);
        }
        let mut forbidden = self.always.clone();
        for place in begun {
            let known = self.completing.binary_search_by(|(other, _)| other.cmp(place));
            let known = known.unwrap_or_else(|new| {
                let found = text::find(&self.phrases.rest(place), Place::Start);
                self.completing.insert(new, (place.clone(), found.iter().collect()));
                new
            });
            // A token that is named twice is forbidden all the same.
            forbidden.extend_from_slice(&self.completing[known].1);
        }
        self.forbid(&forbidden)
    }
}

impl Guard {
    /// Takes the step's news in.
    fn follow(&mut self, step: &Step) {
        self.begun.truncate(step.kept as usize);
        for bytes in text::bytes(&step.appended) {
            let mut begun = self.begun.last().cloned().unwrap_or_default();
            for byte in bytes {
                begun = self.phrases.advance(&begun, byte);
            }
            self.begun.push(begun);
        }
    }

    fn forbid(&self, tokens: &[Token]) -> Decision {
        if tokens.is_empty() {
            return Decision::Keep;
        }
        let mut steering = Steering::default();
        if tokens.len() <= BIAS_MAX {
            let deltas = vec![f32::NEG_INFINITY; tokens.len()];
            steering.bias = Some(TokenBias { tokens: tokens.to_vec(), deltas });
        } else {
            let mut set = TokenSet::empty(self.vocabulary_size);
            for token in tokens {
                set.insert(*token);
            }
            steering.vocabulary = Some(set.forbid());
        }
        Decision::Steer(steering)
    }
}

export!(Guard);

#[cfg(test)]
mod tests;
