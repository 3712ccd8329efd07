//! Values of tokens for a round: from heads that need rows, and from heads that do not.
//!
//! A look-ahead head reads a token's own row, so what is missing is left in [`Round::wanted`] and the next pass runs it.
//! A one-pass head scores tokens from the row before them, at once; what it adds for the text so far is, like its values, the
//! difference that the token makes.

use vassal_kernels::Device;

use super::sequence::{Round, Sequence};
use super::text::TextSoFar;
use super::{Body, Engine, EngineError};
use crate::token::Token;

impl<D: Device> Engine<D> {
    /// Sees to it that a head's values of these tokens are known. Where rows must run first, the tokens
    /// are left in `wanted` and the answer is no. One-pass heads need no rows.
    pub(super) fn find_values(
        &mut self,
        sequence: &Sequence,
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
                Ok(true)
            }
        }
    }
}

/// Values that [`Engine::find_values`] has found, `[tokens]`.
pub(super) fn known_values(round: &Round, head: usize, tokens: &[Token]) -> Vec<f32> {
    tokens.iter().enumerate().map(|(place, &token)| round.value(head, token, place).unwrap_or(0.0)).collect()
}
