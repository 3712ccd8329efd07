//! Values of tokens for a round: from heads that need rows, and from heads that do not.
//!
//! A look-ahead head reads a token's own row, so what is missing is left in [`Round::wanted`] and the next pass runs it.
//! A one-pass head scores tokens from the row before them, at once; what it adds for the text so far is, like its values, the
//! difference that the token makes.

use std::time::Instant;

use vassal_kernels::{Device, Row};

use super::pass::Owner;
use super::sequence::{HeldRow, Round, Sequence, StateValues};
use super::text::TextSoFar;
use super::{Body, Engine, EngineError, Head};
use crate::model::llama::Tapped;
use crate::token::{Token, Vocabulary};

impl<D: Device> Engine<D> {
    /// Sees to it that a head's values of these tokens are known. Where rows must run first, the tokens
    /// are left in `wanted` and the answer is no. One-pass heads need no rows.
    pub(super) fn find_values(
        &mut self,
        sequence: &mut Sequence,
        round: &mut Round,
        head: usize,
        tokens: &[Token],
    ) -> Result<bool, EngineError> {
        let missing: Vec<Token> = tokens
            .iter()
            .enumerate()
            .filter(|(place, token)| round.value(head, **token, *place).is_none())
            .map(|(_, token)| *token)
            .collect();
        if missing.is_empty() {
            return Ok(true);
        }
        match &self.heads[head].body {
            Body::LookAhead(_) => {
                for token in missing {
                    if !round.wanted.contains(&token) {
                        round.wanted.push(token);
                    }
                }
                Ok(false)
            }
            Body::OnePass(body) => {
                let place = self.heads[..head].iter().filter(|head| matches!(head.body, Body::OnePass(_))).count();
                let state = sequence.state.as_ref();
                let Some(projection) = state.and_then(|state| state.projections.get(place)) else {
                    round.wants_state = true;
                    return Ok(false);
                };
                let start = Instant::now();
                let values = self.device.score_tokens(body, self.model.embedding(), projection, &missing)?;
                let response = sequence.response();
                let so_far = self.heads[head].text.as_ref().map(|part| {
                    let remaining = sequence.remaining(response.len());
                    let text = TextSoFar::new(self.vocabulary.as_ref(), response, remaining);
                    let before = text.value(part);
                    (part, text, before)
                });
                let added = |token| {
                    let remaining = sequence.remaining(response.len() + 1);
                    so_far.as_ref().map_or(0.0, |(part, text, before)| text.with(token, remaining).value(part) - before)
                };
                for (token, value) in missing.into_iter().zip(values) {
                    let value = value + added(token);
                    let entry = round.entry_or_insert(token, usize::MAX, self.heads.len());
                    round.valued[entry].values[head] = Some(if value.is_finite() { value } else { 0.0 });
                }
                sequence.timing.head_seconds += start.elapsed().as_secs_f64();
                Ok(true)
            }
        }
    }

    /// Hands what the heads said to the rounds (candidates) and the sequences (their last tokens).
    pub(super) fn take_values(&mut self, rows: &[(Owner, Row)], tapped: &Tapped, held: usize) {
        let ranks: Vec<usize> = self
            .heads
            .iter()
            .filter_map(|head| match &head.body {
                Body::OnePass(head) => Some(head.rank),
                Body::LookAhead(_) => None,
            })
            .collect();
        let count = self.heads.len();
        let vocabulary = self.vocabulary.clone();
        let mut so_far = None;
        for (place, (owner, row)) in rows.iter().enumerate() {
            let mut linear = tapped.values.iter();
            let values: Vec<Option<f32>> = self
                .heads
                .iter()
                .map(|head| match &head.body {
                    // A head gone wild must not take the sampler along: its value counts as nothing.
                    Body::LookAhead(_) => {
                        linear.next().map(|values| if values[place].is_finite() { values[place] } else { 0.0 })
                    }
                    Body::OnePass(_) => None,
                })
                .collect();
            let start = Instant::now();
            let values = self.with_text(*owner, values, (vocabulary.as_ref(), &mut so_far));
            let text_seconds = start.elapsed().as_secs_f64();
            let projections: Vec<Vec<f32>> = tapped
                .projections
                .iter()
                .zip(&ranks)
                .map(|(projection, &rank)| projection[place * rank..(place + 1) * rank].to_vec())
                .collect();
            let index = match owner {
                Owner::Pending { sequence, .. } | Owner::Candidate { sequence, .. } => *sequence,
            };
            let Some(sequence) = self.running[index].as_mut() else { continue };
            sequence.timing.head_seconds += text_seconds;
            match owner {
                Owner::Pending { last: true, .. } => {
                    sequence.state = Some(StateValues { values, projections });
                    if let Some(round) = &mut sequence.round {
                        round.wants_state = false;
                    }
                }
                Owner::Pending { .. } => {}
                Owner::Candidate { token, .. } => {
                    let Some(round) = &mut sequence.round else { continue };
                    let entry = round.entry_or_insert(*token, round.valued.len(), count);
                    let valued = &mut round.valued[entry];
                    for (known, new) in valued.values.iter_mut().zip(values) {
                        *known = new.or(*known);
                    }
                    valued.projections = projections;
                    valued.row = Some(HeldRow { held: (held + place) as u32, slot: row.slot });
                    round.wanted.retain(|wanted| wanted != token);
                }
            }
        }
    }

    /// Look-ahead values of a row with what their heads add for the text so far. Heads that no policy of the sequence
    /// reads are not asked, and have no value where they would add something. `so_far` is the text of the last row's sequence, whose
    /// index stands with it: a sequence's rows come together.
    fn with_text<'a>(
        &self,
        owner: Owner,
        mut values: Vec<Option<f32>>,
        (vocabulary, so_far): (&'a dyn Vocabulary, &mut Option<(usize, TextSoFar<'a>)>),
    ) -> Vec<Option<f32>> {
        let index = match owner {
            Owner::Pending { last: false, .. } => return values,
            Owner::Pending { sequence, .. } | Owner::Candidate { sequence, .. } => sequence,
        };
        let Some(sequence) = self.running[index].as_ref() else { return values };
        let reads = |head: usize| sequence.chain.live().any(|link| link.heads.contains(&head));
        let adds = |head: &Head| head.text.is_some() && matches!(head.body, Body::LookAhead(_));
        let adding: Vec<usize> = (0..self.heads.len()).filter(|&head| adds(&self.heads[head])).collect();
        adding.iter().filter(|&&head| !reads(head)).for_each(|&head| values[head] = None);
        if !adding.iter().any(|&head| reads(head)) {
            return values;
        }
        let response = sequence.response();
        if so_far.as_ref().is_none_or(|(of, _)| *of != index) {
            *so_far = Some((index, TextSoFar::new(vocabulary, response, sequence.remaining(response.len()))));
        }
        let Some((_, text)) = so_far else { return values };
        let with_token = match owner {
            Owner::Candidate { token, .. } => Some(text.with(token, sequence.remaining(response.len() + 1))),
            Owner::Pending { .. } => None,
        };
        let text = with_token.as_ref().unwrap_or(text);
        for head in adding {
            if let (Some(part), Some(value)) = (&self.heads[head].text, &mut values[head]) {
                *value += text.value(part);
            }
        }
        values
    }
}

/// Values that [`Engine::find_values`] has found, `[tokens]`.
pub(super) fn known_values(round: &Round, head: usize, tokens: &[Token]) -> Vec<f32> {
    tokens.iter().enumerate().map(|(place, &token)| round.value(head, token, place).unwrap_or(0.0)).collect()
}
