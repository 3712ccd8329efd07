//! What a policy answers in a step, checked before anything acts on it.
//!
//! [`Decision`] is valid by construction: lengths fit the step, heads and tokens exist, numbers are within
//! the contract's bounds (so NaN is refused), and what needs a grant has it. How several policies' decisions
//! are joined is the engine's.

use super::bindings;
use super::limits::Limits;
use super::manifest::Manifest;
use super::words::clean;
use crate::token::Token;
use vassal_kernels::VocabularyBias;

/// What a policy asks the host to do with a step.
#[derive(Debug, Clone, PartialEq)]
pub enum Decision {
    /// Sample from the base logits, as far as this policy is concerned.
    Keep,
    /// Change this step's logits.
    Steer(Steering),
    /// Take `remove` response tokens back, then commit `insert`; not both are nothing.
    Splice {
        /// At most the manifest's `rewind_max`, and no more than the response has.
        remove: u32,
        /// At most 256 tokens of the vocabulary.
        insert: Vec<Token>,
    },
    /// End the response, for this reason (cleaned).
    Stop(String),
}

/// Changes to a step's logits; terms add up.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Steering {
    /// One delta a candidate, in nats, or empty; −∞ forbids.
    pub adjust: Vec<f32>,
    /// `weight * (value - baseline)` of each term, at most one a head.
    pub blend: Vec<HeadWeight>,
    /// Deltas of single tokens, in nats, each token once, by rising token; −∞ forbids.
    pub bias: Vec<(Token, f32)>,
    /// A delta for every token.
    pub vocabulary: Option<VocabularyBias>,
    /// What becomes of the tokens that are not candidates.
    pub tail: Tail,
}

/// One term of a blend.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HeadWeight {
    /// The head's index in the manifest.
    pub head: u32,
    /// Nats of logit per unit of value; finite.
    pub weight: f32,
    /// What is subtracted from each value.
    pub baseline: Baseline,
}

/// What is subtracted from a candidate's value in a blend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Baseline {
    /// Nothing.
    None,
    /// The plain mean over the candidates.
    Candidates,
    /// The mean over the candidates, weighted by base probability.
    Weighted,
    /// The value of the sequence as it stands.
    State,
}

/// What becomes of the tokens that are not candidates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Tail {
    /// Their base logits stand.
    #[default]
    Keep,
    /// They cannot be sampled.
    Mask,
}

/// Why a decision is refused.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum BadDecision {
    /// `adjust` is neither empty nor one delta a candidate.
    #[error("`adjust` has {given} deltas for {candidates} candidates")]
    AdjustLength {
        /// What was given.
        given: usize,
        /// The step's candidates.
        candidates: usize,
    },
    /// A delta that is neither at most the limit in magnitude nor −∞.
    #[error("a delta of {given} in `{place}`: at most {limit} in magnitude, or -inf")]
    Delta {
        /// Where it stands.
        place: &'static str,
        /// What was given.
        given: f32,
        /// The limit.
        limit: f32,
    },
    /// A weight that is not finite and at most the limit in magnitude.
    #[error("a weight of {given}: at most {limit} in magnitude")]
    Weight {
        /// What was given.
        given: f32,
        /// The limit.
        limit: f32,
    },
    /// A head that the manifest does not name.
    #[error("`blend` names head {given}, the manifest has {heads}, counted from 0")]
    UnknownHead {
        /// What was given.
        given: u32,
        /// The manifest's heads.
        heads: usize,
    },
    /// A head in two terms of a blend.
    #[error("head {0} stands in two terms of `blend`")]
    HeadTwice(u32),
    /// A token outside the vocabulary.
    #[error("token {given} in `{place}`, of a vocabulary of {vocabulary}")]
    UnknownToken {
        /// Where it stands.
        place: &'static str,
        /// What was given.
        given: Token,
        /// Tokens in the vocabulary.
        vocabulary: usize,
    },
    /// A bias whose two lists differ in length.
    #[error("`bias` has {tokens} tokens and {deltas} deltas")]
    BiasLengths {
        /// Its tokens.
        tokens: usize,
        /// Its deltas.
        deltas: usize,
    },
    /// A list longer than the contract allows.
    #[error("`{place}` has {given} entries, at most {limit} allowed")]
    TooLong {
        /// Which list.
        place: &'static str,
        /// What was given.
        given: usize,
        /// The limit.
        limit: usize,
    },
    /// A vocabulary bias with another number of words than the vocabulary takes.
    #[error("`vocabulary` has {given} words, but the vocabulary takes {words}")]
    VocabularyWords {
        /// What was given.
        given: usize,
        /// What there must be.
        words: usize,
    },
    /// A splice that takes more back than the manifest announces or the response has.
    #[error("a splice removes {given} tokens, at most {most} can be taken back")]
    Remove {
        /// What was given.
        given: u32,
        /// The most.
        most: u32,
    },
    /// A splice that does nothing, or at the end one that takes nothing back.
    #[error("a splice that takes nothing back{}", if *.ended { " from an ended response" } else { " and inserts nothing" })]
    EmptySplice {
        /// Whether the response had ended.
        ended: bool,
    },
    /// Something that the manifest does not announce as a need.
    #[error("needs `{0}`, which the manifest does not name")]
    NotGranted(&'static str),
}

/// What a decision is checked against.
pub(super) struct Context<'a> {
    pub(super) manifest: &'a Manifest,
    pub(super) limits: &'a Limits,
    /// Tokens in the vocabulary.
    pub(super) vocabulary: usize,
    /// Candidates of the step.
    pub(super) candidates: usize,
    /// Response tokens that stand.
    pub(super) response: u32,
    pub(super) ended: bool,
}

impl Context<'_> {
    /// Validates a decision. A steering of an ended response is taken for `keep`, valid or not.
    pub(super) fn check(&self, raw: bindings::Decision) -> Result<Decision, BadDecision> {
        match raw {
            bindings::Decision::Keep => Ok(Decision::Keep),
            bindings::Decision::Steer(_) if self.ended => Ok(Decision::Keep),
            bindings::Decision::Steer(steering) => Ok(Decision::Steer(self.steering(steering)?)),
            bindings::Decision::Splice(splice) => self.splice(splice),
            bindings::Decision::Stop(reason) => {
                self.granted("stop", self.manifest.needs.stop)?;
                Ok(Decision::Stop(clean(&reason, self.limits.summary_bytes)))
            }
        }
    }

    fn steering(&self, raw: bindings::Steering) -> Result<Steering, BadDecision> {
        let (given, candidates) = (raw.adjust.len(), self.candidates);
        if given != 0 && given != candidates {
            return Err(BadDecision::AdjustLength { given, candidates });
        }
        self.deltas("adjust", &raw.adjust)?;
        let tail = match raw.tail {
            bindings::Tail::Keep => Tail::Keep,
            bindings::Tail::Mask => Tail::Mask,
        };
        Ok(Steering {
            adjust: raw.adjust,
            blend: self.blend(raw.blend)?,
            bias: raw.bias.map_or_else(|| Ok(Vec::new()), |bias| self.bias(&bias))?,
            vocabulary: raw.vocabulary.map(|bias| self.vocabulary(bias)).transpose()?,
            tail,
        })
    }

    fn deltas(&self, place: &'static str, deltas: &[f32]) -> Result<(), BadDecision> {
        let limit = self.limits.magnitude;
        match deltas.iter().find(|delta| !(delta.abs() <= limit || **delta == f32::NEG_INFINITY)) {
            Some(&given) => Err(BadDecision::Delta { place, given, limit }),
            None => Ok(()),
        }
    }

    fn blend(&self, terms: Vec<bindings::HeadWeight>) -> Result<Vec<HeadWeight>, BadDecision> {
        let (heads, limit) = (self.manifest.heads.len(), self.limits.magnitude);
        let mut seen = 0_u64;
        let check = |term: bindings::HeadWeight| {
            if !usize::try_from(term.head).is_ok_and(|head| head < heads) {
                return Err(BadDecision::UnknownHead { given: term.head, heads });
            }
            // Heads are at most 16, so a word holds one bit for each.
            let bit = 1_u64 << (term.head % 64);
            if seen & bit != 0 {
                return Err(BadDecision::HeadTwice(term.head));
            }
            seen |= bit;
            let within = term.weight.abs() <= limit;
            if !within {
                return Err(BadDecision::Weight { given: term.weight, limit });
            }
            let baseline = match term.baseline {
                bindings::Baseline::None => Baseline::None,
                bindings::Baseline::Candidates => Baseline::Candidates,
                bindings::Baseline::Weighted => Baseline::Weighted,
                bindings::Baseline::State => Baseline::State,
            };
            Ok(HeadWeight { head: term.head, weight: term.weight, baseline })
        };
        // Collected in the place of the list that was lifted.
        terms.into_iter().map(check).collect()
    }

    /// Deltas of a token that is named more than once add up, in the order given.
    fn bias(&self, raw: &bindings::TokenBias) -> Result<Vec<(Token, f32)>, BadDecision> {
        let (tokens, deltas) = (raw.tokens.len(), raw.deltas.len());
        if tokens != deltas {
            return Err(BadDecision::BiasLengths { tokens, deltas });
        }
        self.tokens("bias", &raw.tokens, self.limits.bias_tokens)?;
        self.deltas("bias", &raw.deltas)?;
        let mut pairs: Vec<(Token, f32)> = raw.tokens.iter().copied().zip(raw.deltas.iter().copied()).collect();
        // Stable, so that sums run in the order given.
        pairs.sort_by_key(|(token, _)| *token);
        pairs.dedup_by(|later, earlier| {
            let same = later.0 == earlier.0;
            if same {
                earlier.1 += later.1;
            }
            same
        });
        match pairs.iter().find(|(_, sum)| !(sum.abs() <= self.limits.magnitude || *sum == f32::NEG_INFINITY)) {
            Some((_, sum)) => Err(BadDecision::Delta { place: "bias", given: *sum, limit: self.limits.magnitude }),
            None => Ok(pairs),
        }
    }

    fn vocabulary(&self, mut raw: bindings::VocabularyBias) -> Result<VocabularyBias, BadDecision> {
        let (given, words) = (raw.bits.len(), self.vocabulary.div_ceil(64));
        if given != words {
            return Err(BadDecision::VocabularyWords { given, words });
        }
        self.deltas("vocabulary", &[raw.set, raw.unset])?;
        // Bits beyond the vocabulary mean nothing: no kernel shall meet them.
        let used = self.vocabulary % 64;
        if let (Some(last), true) = (raw.bits.last_mut(), used > 0) {
            *last &= (1 << used) - 1;
        }
        Ok(VocabularyBias { bits: raw.bits, set: raw.set, unset: raw.unset })
    }

    fn splice(&self, raw: bindings::Splice) -> Result<Decision, BadDecision> {
        let bindings::Splice { remove, insert } = raw;
        if remove == 0 && (insert.is_empty() || self.ended) {
            return Err(BadDecision::EmptySplice { ended: self.ended });
        }
        if remove > 0 {
            self.granted("rewind", self.manifest.needs.rewind)?;
        }
        if !insert.is_empty() {
            self.granted("insert", self.manifest.needs.insert)?;
        }
        let most = self.manifest.rewind_max.min(self.response);
        if remove > most {
            return Err(BadDecision::Remove { given: remove, most });
        }
        self.tokens("insert", &insert, self.limits.insert_tokens)?;
        Ok(Decision::Splice { remove, insert })
    }

    fn tokens(&self, place: &'static str, tokens: &[Token], limit: usize) -> Result<(), BadDecision> {
        let (given, vocabulary) = (tokens.len(), self.vocabulary);
        if given > limit {
            return Err(BadDecision::TooLong { place, given, limit });
        }
        match tokens.iter().find(|token| **token as usize >= vocabulary) {
            Some(&given) => Err(BadDecision::UnknownToken { place, given, vocabulary }),
            None => Ok(()),
        }
    }

    fn granted(&self, need: &'static str, granted: bool) -> Result<(), BadDecision> {
        if granted { Ok(()) } else { Err(BadDecision::NotGranted(need)) }
    }
}
