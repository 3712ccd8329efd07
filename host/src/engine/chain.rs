//! The policies of one sequence, in their order of rank, and how their answers become one.
//!
//! Every policy answers every step. `stop` wins over `splice`, `splice` over `steer`; steerings add
//! up, and `mask` wins over `keep`. Tenant-required policies rank before the request's. What is asked
//! of heads and devices on the way is `decide.rs`'s; here is the book-keeping and the arithmetic.

use std::sync::Arc;

use vassal_guest::blend;
use vassal_kernels::{TopK, VocabularyBias};

use super::calls::Called;
use super::trace::TraceEvent;
use crate::request::{FaultPolicy, LoadedPolicy};
use crate::sandbox::{Baseline, Decision, Instance, Schedule, Steering, Tail, ValueRequest};
use crate::token::Token;

/// What a link waits for.
#[derive(Debug, Clone)]
pub(super) enum Asked {
    /// Nothing: it has not been asked in this round.
    Not,
    /// Suspended until the host answers.
    Waiting(ValueRequest),
    /// Its slice was over before it had answered.
    Unfinished,
    /// It has decided.
    Decided(Decision),
}

/// One policy on one sequence.
pub(super) struct Link {
    pub(super) policy: Arc<LoadedPolicy>,
    /// Its rank among the request's policies, those included that did not start.
    pub(super) place: usize,
    /// None once it has failed under the fault policy `base`.
    pub(super) instance: Option<Instance>,
    pub(super) required: bool,
    pub(super) fault_policy: FaultPolicy,
    /// For each head of the manifest, the engine's.
    pub(super) heads: Vec<usize>,
    /// Candidates it sees a step, and the base probability they need.
    pub(super) candidates: usize,
    pub(super) floor: f32,
    /// For each head of the manifest, when it is prefetched.
    pub(super) prefetch: Vec<Schedule>,
    /// Response tokens it has been shown and that still stand.
    pub(super) kept: usize,
    pub(super) asked: Asked,
    /// It has been called for this round, and that has still to be taken up.
    pub(super) called: Option<Called>,
    /// Fuel of its last call; none while one is suspended.
    pub(super) fuel: Option<u64>,
    /// How often that call has been resumed with values.
    pub(super) resumed: u32,
}

impl Link {
    /// How many candidates this policy sees: the likeliest `candidates` above its floor, at least one.
    pub(super) fn seen(&self, top: &TopK) -> usize {
        let most = self.candidates.min(top.tokens.len());
        let above = |logit: f32| vassal_kernels::sampling::exp(logit - top.log_normalizer) >= self.floor;
        if self.floor > 0.0 {
            top.logits[..most].iter().position(|&logit| !above(logit)).unwrap_or(most).max(most.min(1))
        } else {
            most
        }
    }

    /// These candidates, with their logits.
    pub(super) fn view<'a>(&self, top: &'a TopK) -> (&'a [Token], &'a [f32]) {
        let seen = self.seen(top);
        (&top.tokens[..seen], &top.logits[..seen])
    }

    /// Which heads of the manifest are prefetched before the response's token `response`, as a bit set.
    pub(super) fn prefetched(&self, response: usize, top: &TopK) -> u32 {
        let likeliest =
            top.logits.first().map_or(0.0, |logit| vassal_kernels::sampling::exp(logit - top.log_normalizer));
        let mut bits = 0;
        for (head, schedule) in self.prefetch.iter().enumerate() {
            let due = match *schedule {
                Schedule::Never => false,
                Schedule::Every(n) => response.is_multiple_of(n as usize),
                Schedule::Unsure(below) => likeliest < below,
            };
            bits |= u32::from(due) << head;
        }
        bits
    }

    pub(super) fn decision(&self) -> Option<&Decision> {
        match &self.asked {
            Asked::Decided(decision) => Some(decision),
            _ => None,
        }
    }

    pub(super) fn steering(&self) -> Option<&Steering> {
        match self.decision() {
            Some(Decision::Steer(steering)) => Some(steering),
            _ => None,
        }
    }

    /// Its policy is called only where there is time for slow ones.
    pub(super) fn is_slow(&self) -> bool {
        self.instance.as_ref().is_some_and(Instance::is_slow)
    }

    fn name(&self) -> &str {
        &self.policy.name
    }
}

/// What a chain's answers come to, before any value is needed.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Verdict {
    Stop { link: usize, reason: String },
    Splice { link: usize, remove: usize, insert: Vec<Token> },
    Steer,
}

/// Steerings merged into what a draw takes.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Merged {
    pub(super) deltas: Vec<(Token, f32)>,
    pub(super) vocabulary: Vec<VocabularyBias>,
    pub(super) only: Option<Vec<Token>>,
    /// Policies that forbade something.
    pub(super) forbidding: Vec<String>,
}

/// All policies of one sequence, required ones first.
#[derive(Default)]
pub(super) struct Chain {
    pub(super) links: Vec<Link>,
    /// What they did, for the record.
    pub(super) trace: Vec<TraceEvent>,
}

impl Chain {
    /// The candidates that the widest policy sees; 0 without policies.
    pub(super) fn candidates(&self) -> usize {
        self.live().map(|link| link.candidates).max().unwrap_or(0)
    }

    /// How far back any policy may reach, in tokens.
    pub(super) fn rewind_max(&self) -> usize {
        self.live().map(|link| link.policy.rewind_max()).max().unwrap_or(0)
    }

    /// Policies that still take part.
    pub(super) fn live(&self) -> impl Iterator<Item = &Link> {
        self.links.iter().filter(|link| link.instance.is_some())
    }

    /// The response was cut to this many tokens.
    pub(super) fn rewind(&mut self, response: usize) {
        for link in &mut self.links {
            link.kept = link.kept.min(response);
        }
    }

    /// Forgets the answers of the round.
    pub(super) fn clear(&mut self) {
        for link in &mut self.links {
            (link.asked, link.called) = (Asked::Not, None);
        }
    }

    /// What the answers come to. In rank order, the first stop wins; else the first splice.
    pub(super) fn verdict(&self) -> Verdict {
        let mut splice = None;
        for (place, link) in self.links.iter().enumerate().filter(|(_, link)| link.instance.is_some()) {
            match link.decision() {
                Some(Decision::Stop(reason)) => return Verdict::Stop { link: place, reason: reason.clone() },
                Some(Decision::Splice { remove, insert }) if splice.is_none() => {
                    let (remove, insert) = (*remove as usize, insert.clone());
                    splice = Some(Verdict::Splice { link: place, remove, insert });
                }
                _ => {}
            }
        }
        splice.unwrap_or(Verdict::Steer)
    }

    /// The vocabulary biases of everybody, in rank order.
    pub(super) fn vocabulary(&self) -> Vec<VocabularyBias> {
        self.live().filter_map(|link| link.steering()?.vocabulary.clone()).collect()
    }

    /// Merges the steerings. `shown` are the candidates that policies saw, `chosen` gives those that blends and
    /// masks of a policy with that many are about (chosen again under vocabulary biases, or the same); `values` gives the
    /// value of an engine head for `(token, place)`, `state` a head's value of the sequence as it stands.
    /// A token's delta is the sum over policies in rank order, and for one policy `adjust`, then the
    /// sum of its blend's terms, then `bias`; f32, in this order.
    pub(super) fn merge<'a>(
        &self,
        shown: &TopK,
        chosen: impl Fn(usize) -> &'a TopK,
        values: impl Fn(usize, Token, usize) -> f32,
        state: impl Fn(usize) -> f32,
    ) -> Merged {
        let mut merged = Merged { vocabulary: self.vocabulary(), ..Merged::default() };
        for link in self.live() {
            let Some(steering) = link.steering() else { continue };
            let mut forbids =
                steering.vocabulary.as_ref().is_some_and(|bias| is_forbidden(bias.set) || is_forbidden(bias.unset));
            let (tokens, _) = link.view(shown);
            merged.deltas.extend(tokens.iter().copied().zip(steering.adjust.iter().copied()));
            let (tokens, logits) = link.view(chosen(link.candidates));
            if !steering.blend.is_empty() {
                let mut deltas = vec![0.0f32; tokens.len()];
                for term in &steering.blend {
                    let head = link.heads[term.head as usize];
                    let row: Vec<f32> =
                        tokens.iter().enumerate().map(|(place, &token)| values(head, token, place)).collect();
                    let baseline = blend::baseline(baseline_kind(term.baseline), &row, logits, state(head));
                    blend::add_term(&mut deltas, term.weight, &row, baseline);
                }
                // Heads gone wild count as nothing: an infinity must neither forbid nor undo what forbids.
                merged.deltas.extend(tokens.iter().copied().zip(deltas).filter(|(_, delta)| delta.is_finite()));
            }
            merged.deltas.extend(steering.bias.iter().copied());
            forbids |= steering
                .adjust
                .iter()
                .chain(steering.bias.iter().map(|(_, delta)| delta))
                .any(|&delta| is_forbidden(delta));
            if steering.tail == Tail::Mask {
                forbids = true;
                merged.only = Some(match merged.only {
                    None => tokens.to_vec(),
                    Some(only) => only.into_iter().filter(|token| tokens.contains(token)).collect(),
                });
            }
            if forbids {
                merged.forbidding.push(link.name().to_owned());
            }
        }
        sum_by_token(&mut merged.deltas);
        merged
    }
}

/// The arithmetic of a blend is the guest SDK's, so that host and guest cannot differ.
fn baseline_kind(baseline: Baseline) -> vassal_guest::Baseline {
    match baseline {
        Baseline::None => vassal_guest::Baseline::None,
        Baseline::Candidates => vassal_guest::Baseline::Candidates,
        Baseline::Weighted => vassal_guest::Baseline::Weighted,
        Baseline::State => vassal_guest::Baseline::State,
    }
}

/// −∞ forbids a token.
pub(super) fn is_forbidden(delta: f32) -> bool {
    delta == f32::NEG_INFINITY
}

/// Sums the deltas of each token, in the order in which they stand. What is forbidden stays so, and nothing else is:
/// two blends that are finite may overflow together, and an infinity of theirs is none of a policy's.
fn sum_by_token(deltas: &mut Vec<(Token, f32)>) {
    deltas.sort_by_key(|(token, _)| *token);
    deltas.dedup_by(|next, sum| {
        let same = next.0 == sum.0;
        if same {
            let forbidden = is_forbidden(sum.1) || is_forbidden(next.1);
            sum.1 = if forbidden { f32::NEG_INFINITY } else { (sum.1 + next.1).clamp(f32::MIN, f32::MAX) };
        }
        same
    });
    deltas.retain(|(_, delta)| *delta != 0.0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deltas_of_a_token_add_up_in_order_and_forbidden_stays_forbidden() {
        let mut deltas = vec![(5, 1.0), (3, 0.5), (5, 2.0), (3, f32::NEG_INFINITY), (3, 10_000.0), (1, 1.0), (1, -1.0)];
        sum_by_token(&mut deltas);
        assert_eq!(deltas, vec![(3, f32::NEG_INFINITY), (5, 3.0)]);
    }

    #[test]
    fn sums_that_overflow_neither_forbid_nor_undo_what_forbids() {
        let (most, forbid) = (f32::MAX, f32::NEG_INFINITY);
        let mut deltas =
            vec![(1, most), (1, most), (1, forbid), (2, -most), (2, -most), (3, most), (3, most), (3, -1.0)];
        sum_by_token(&mut deltas);
        assert_eq!(deltas, vec![(1, forbid), (2, -most), (3, most)]);
    }
}
