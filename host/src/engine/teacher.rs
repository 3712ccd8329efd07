//! Teacher-forced passes: known responses run through the model, for learning.
//!
//! Nothing is drawn here. [`Engine::features`] reads what value heads are fitted on;
//! [`Engine::candidate_states`] asks a head for the values of next tokens at states of known responses
//! (its spread, and what a one-pass head is distilled from). Both use the pages, passes and taps of
//! ordinary decoding, so that what is learned is what will be read.

use vassal_kernels::{Device, LinearHead, PAGE_TOKENS, Plan, Row, TopK, TopKQuery};

use super::text::{TextPart, TextSoFar};
use super::{Body, Engine, EngineError, HeadId};
use crate::model::llama::Taps;
use crate::token::{Token, remaining_share};

/// A state of a known response, with its likeliest next tokens and their values.
#[derive(Debug, Clone, PartialEq)]
pub struct CandidateState {
    /// Response tokens before it; 0 is the prompt's end.
    pub response_count: usize,
    /// Features at the head's tap, `[2H + 2]`: residual, running mean, remaining share, 1.
    pub features: Vec<f32>,
    /// Each head's value of the state.
    pub state_values: Vec<f32>,
    /// The candidates, likeliest first, with base logits, log-normaliser and entropy.
    pub top: TopK,
    /// Each head's value of the state followed by each candidate, `[heads][candidates]`.
    pub values: Vec<Vec<f32>>,
}

/// A response laid out in pages of its own.
struct Laid {
    pages: Vec<u32>,
}

impl<D: Device> Engine<D> {
    /// Features of every state of some responses to one prompt, at tap layer `layer`: for each response
    /// of T tokens, T + 1 rows `[2H + 2]` (residual, running mean over the response, remaining share of
    /// `limit_tokens`, 1), the first of them the prompt's end; appended to `out`, row-major, in order.
    /// Only while no sequence runs.
    ///
    /// # Errors
    /// [`EngineError::TooLong`] where a response does not fit the cache; the device's.
    pub fn features(
        &mut self,
        layer: usize,
        prompt: &[Token],
        responses: &[&[Token]],
        limit_tokens: usize,
        out: &mut Vec<f32>,
    ) -> Result<(), EngineError> {
        let tap = self.tap_at(layer)?;
        let width = 2 * self.model.shape().hidden + 2;
        let shared = self.lay(prompt.len())?;
        let mut first = Vec::new();
        let rows = rows_of(prompt, 0, prompt.len(), limit_tokens, &shared.pages);
        self.run(&rows, &shared.pages, layer, Some((tap, &mut first)))?;
        let first = first.split_off(first.len() - width);
        for response in responses {
            out.extend_from_slice(&first);
            if response.is_empty() {
                continue;
            }
            let laid = match self.lay_after(&shared, prompt.len(), response.len(), layer) {
                Ok(laid) => laid,
                Err(error) => {
                    self.release(shared);
                    return Err(error);
                }
            };
            let tokens: Vec<Token> = prompt.iter().chain(*response).copied().collect();
            let rows = rows_of(&tokens, prompt.len(), prompt.len(), limit_tokens, &laid.pages);
            self.run(&rows, &laid.pages, layer, Some((tap, out)))?;
            self.release(laid);
        }
        self.release(shared);
        Ok(())
    }

    /// Logits `[V]` that each token of a known response was drawn from, told with the token's place in the response. Only while no
    /// sequence runs.
    ///
    /// # Errors
    /// [`EngineError::TooLong`] where it does not fit the cache; the device's.
    pub fn logits_along(
        &mut self,
        prompt: &[Token],
        response: &[Token],
        each: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<(), EngineError> {
        let tokens: Vec<Token> = prompt.iter().chain(response).copied().collect();
        // The last token is drawn and never run.
        let tokens = &tokens[..tokens.len().saturating_sub(1)];
        let laid = self.lay(tokens.len())?;
        let rows = rows_of(tokens, 0, prompt.len(), response.len(), &laid.pages);
        let told = self.tell_logits(&rows, &laid.pages, prompt.len(), each);
        self.release(laid);
        told
    }

    fn tell_logits(
        &mut self,
        rows: &[Row],
        pages: &[u32],
        prompt: usize,
        each: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<(), EngineError> {
        let mut logits = Vec::new();
        for chunk in rows.chunks(self.model.rows_max()) {
            let plan = Plan { rows: chunk.to_vec(), block_tables: vec![pages.to_vec()] };
            let taps = Taps { layers: &self.taps, ..Taps::default() };
            self.device.begin(&plan)?;
            self.model.forward(&mut self.device, &mut self.cache, 0..self.costs.layers, &taps)?;
            let drawn = chunk.iter().zip(0..).filter(|(row, _)| row.position as usize + 1 >= prompt);
            let drawn: Vec<(usize, u32)> =
                drawn.map(|(row, place)| (row.position as usize + 1 - prompt, place)).collect();
            for part in drawn.chunks(self.logits_slots.len().max(1)) {
                let heads: Vec<(u32, u32)> = part.iter().zip(0..).map(|(&(_, place), slot)| (place, slot)).collect();
                self.model.head(&mut self.device, &heads, &mut self.logits)?;
                for (&(place, _), &(_, slot)) in part.iter().zip(&heads) {
                    self.device.read_logits(&self.logits, slot, &mut logits)?;
                    each(place, &logits);
                }
            }
            self.device.end()?;
        }
        Ok(())
    }

    /// What look-ahead heads of one layer, with what they add for the text, say of the `k` likeliest next tokens at some states of a known
    /// response; `states` are response lengths, at most the response's. Features are those of that layer.
    /// Other heads are passed over. Only while no sequence runs.
    ///
    /// # Errors
    /// [`EngineError::TooLong`] where it does not fit the cache; the device's.
    pub fn candidate_states(
        &mut self,
        heads: &[HeadId],
        prompt: &[Token],
        response: &[Token],
        states: &[usize],
        k: usize,
        limit_tokens: usize,
    ) -> Result<Vec<CandidateState>, EngineError> {
        let look_ahead = |id: &HeadId| match &self.heads.get(id.0)?.body {
            Body::LookAhead(head) => Some((id.0, head.clone())),
            Body::OnePass(_) => None,
        };
        let mut linear: Vec<(usize, LinearHead)> = heads.iter().filter_map(look_ahead).collect();
        let Some(tap) = linear.first().map(|(_, head)| head.tap) else { return Ok(Vec::new()) };
        linear.retain(|(_, head)| head.tap == tap);
        let read: Vec<usize> = linear.iter().map(|(id, _)| *id).collect();
        let linear: Vec<&LinearHead> = linear.iter().map(|(_, head)| head).collect();
        let layers = self.costs.layers;
        let width = 2 * self.model.shape().hidden + 2;
        let tokens: Vec<Token> = prompt.iter().chain(response).copied().collect();
        let laid = self.lay(tokens.len() + 1)?;
        let rows = rows_of(&tokens, 0, prompt.len(), limit_tokens, &laid.pages);
        let (mut found, mut start): (Vec<CandidateState>, usize) = (Vec::new(), 0);
        for chunk in rows.chunks(self.model.rows_max()) {
            let plan = Plan { rows: chunk.to_vec(), block_tables: vec![laid.pages.clone()] };
            let taps = Taps { layers: &self.taps, linear: linear.clone(), one_pass: Vec::new() };
            self.device.begin(&plan)?;
            // Features are read at the tap, before the layers above it change the residual.
            let tapped = self.model.forward(&mut self.device, &mut self.cache, 0..self.taps[tap], &taps)?;
            let mut features = Vec::new();
            self.device.read_features(self.model.residual(), tap, &self.cache, &mut features)?;
            self.model.forward(
                &mut self.device,
                &mut self.cache,
                self.taps[tap]..layers,
                &Taps { layers: &self.taps, ..Taps::default() },
            )?;
            let count = |row: &Row| (row.position as usize + 1).checked_sub(prompt.len());
            let wanted = chunk.iter().enumerate().filter_map(|(place, row)| Some((place, count(row)?)));
            let wanted: Vec<(usize, usize)> = wanted.filter(|(_, count)| states.contains(count)).collect();
            for part in wanted.chunks(self.logits_slots.len().max(1)) {
                let read: Vec<(u32, u32)> =
                    part.iter().zip(0..).map(|(&(place, _), slot)| (place as u32, slot)).collect();
                self.model.head(&mut self.device, &read, &mut self.logits)?;
                let queries: Vec<TopKQuery<'_>> =
                    read.iter().map(|&(_, slot)| TopKQuery { slot, k, vocabulary: &[] }).collect();
                let tops = self.device.top_k(&self.logits, &queries)?;
                found.extend(part.iter().zip(tops).map(|(&(place, count), top)| CandidateState {
                    response_count: count,
                    features: features[place * width..(place + 1) * width].to_vec(),
                    state_values: tapped.values.iter().map(|values| values[place]).collect(),
                    top,
                    values: Vec::new(),
                }));
            }
            self.device.end()?;
            start += chunk.len();
        }
        debug_assert_eq!(start, tokens.len());
        // The candidates of as many states as fit one pass run together: each row has its own scratch slot.
        let most = self.model.rows_max().min(self.candidate_rows_max);
        let mut next = 0;
        while next < found.len() {
            let mut rows = Vec::new();
            let first = next;
            while next < found.len() && rows.len() + found[next].top.tokens.len() <= most {
                let state = &found[next];
                for &token in &state.top.tokens {
                    let count = state.response_count + 1;
                    rows.push(Row {
                        token,
                        position: (prompt.len() + state.response_count) as u32,
                        sequence: 0,
                        slot: self.scratch_slot + rows.len() as u32,
                        response_count: count as u32,
                        remaining: remaining_share(count, limit_tokens),
                    });
                }
                next += 1;
            }
            let plan = Plan { rows, block_tables: vec![laid.pages.clone()] };
            let taps = Taps { layers: &self.taps, linear: linear.clone(), one_pass: Vec::new() };
            self.device.begin(&plan)?;
            let tapped = self.model.forward(&mut self.device, &mut self.cache, 0..self.taps[tap], &taps)?;
            self.device.end()?;
            let mut start = 0;
            for state in &mut found[first..next] {
                let end = start + state.top.tokens.len();
                state.values = tapped.values.iter().map(|values| values[start..end].to_vec()).collect();
                start = end;
            }
            if first == next {
                break;
            }
        }
        self.release(laid);
        self.add_text(&read, response, limit_tokens, &mut found);
        Ok(found)
    }

    /// What these heads add for the text, to the values of states and of their candidates.
    fn add_text(&self, heads: &[usize], response: &[Token], limit: usize, found: &mut [CandidateState]) {
        let parts: Vec<Option<&TextPart>> = heads.iter().map(|&head| self.heads[head].text.as_ref()).collect();
        for state in found.iter_mut().filter(|_| parts.iter().any(Option::is_some)) {
            let count = state.response_count;
            let so_far = TextSoFar::new(self.vocabulary.as_ref(), &response[..count], remaining_share(count, limit));
            let after = |&token: &Token| so_far.with(token, remaining_share(count + 1, limit));
            let candidates: Vec<TextSoFar<'_>> = state.top.tokens.iter().map(after).collect();
            for (head, part) in parts.iter().enumerate().filter_map(|(head, part)| Some((head, (*part)?))) {
                state.state_values[head] += so_far.value(part);
                for (value, text) in state.values[head].iter_mut().zip(&candidates) {
                    *value += text.value(part);
                }
            }
        }
    }

    /// Input embeddings of some tokens, `[tokens, H]` row-major.
    ///
    /// # Errors
    /// The device's.
    pub fn embeddings(&mut self, tokens: &[Token]) -> Result<Vec<f32>, EngineError> {
        let mut out = Vec::with_capacity(tokens.len() * self.model.shape().hidden);
        let mut rows_read = Vec::new();
        for chunk in tokens.chunks(self.model.rows_max()) {
            let row = |(place, &token): (usize, &Token)| Row {
                token,
                position: 0,
                sequence: place as u32,
                slot: self.scratch_slot.saturating_sub(1),
                response_count: 0,
                remaining: 0.0,
            };
            let rows: Vec<Row> = chunk.iter().enumerate().map(row).collect();
            let count = rows.len();
            self.device.begin(&Plan { rows, block_tables: vec![Vec::new(); count] })?;
            // No layers: the rows are embedded and nothing else.
            self.model.forward(&mut self.device, &mut self.cache, 0..0, &Taps::default())?;
            self.device.end()?;
            self.device.read_rows(self.model.residual(), count, &mut rows_read)?;
            out.extend_from_slice(&rows_read);
        }
        Ok(out)
    }

    /// Runs rows of one sequence through `[0, layer)`, in passes, and reads the features of each where asked.
    fn run(
        &mut self,
        rows: &[Row],
        pages: &[u32],
        layer: usize,
        mut read: Option<(usize, &mut Vec<f32>)>,
    ) -> Result<(), EngineError> {
        for chunk in rows.chunks(self.model.rows_max()) {
            let plan = Plan { rows: chunk.to_vec(), block_tables: vec![pages.to_vec()] };
            self.device.begin(&plan)?;
            let taps = Taps { layers: &self.taps, ..Taps::default() };
            self.model.forward(&mut self.device, &mut self.cache, 0..layer, &taps)?;
            if let Some((tap, out)) = &mut read {
                self.device.read_features(self.model.residual(), *tap, &self.cache, out)?;
            }
            self.device.end()?;
        }
        Ok(())
    }

    fn tap_at(&self, layer: usize) -> Result<usize, EngineError> {
        let found = self.taps.iter().position(|&tap| tap == layer);
        found.ok_or_else(|| EngineError::NoTap { layer, taps: self.taps.clone() })
    }

    /// Pages for this many positions.
    fn lay(&mut self, tokens: usize) -> Result<Laid, EngineError> {
        let needed = super::Pages::needed(tokens);
        if needed > self.pages.free() {
            let available = self.pages.free() * PAGE_TOKENS;
            return Err(EngineError::TooLong { needed_tokens: tokens, available_tokens: available });
        }
        Ok(Laid { pages: (0..needed).filter_map(|_| self.pages.take()).collect() })
    }

    /// Pages for a response after a prompt that is laid: whole pages are shared, the last is copied.
    fn lay_after(&mut self, shared: &Laid, prompt: usize, response: usize, layer: usize) -> Result<Laid, EngineError> {
        let whole = prompt / PAGE_TOKENS;
        let own = self.lay(prompt + response - whole * PAGE_TOKENS)?;
        for &page in &shared.pages[..whole] {
            self.pages.hold(page);
        }
        let pages: Vec<u32> = shared.pages[..whole].iter().copied().chain(own.pages).collect();
        let copies: Vec<(u32, u32)> = (whole * PAGE_TOKENS..prompt)
            .map(|position| (slot(&shared.pages, position), slot(&pages, position)))
            .collect();
        self.device.commit(&mut self.cache, &copies, 0..layer)?;
        Ok(Laid { pages })
    }

    fn release(&mut self, laid: Laid) {
        for page in laid.pages {
            self.pages.release(page);
        }
    }
}

/// The slot of a position in these pages.
fn slot(pages: &[u32], position: usize) -> u32 {
    pages[position / PAGE_TOKENS] * PAGE_TOKENS as u32 + (position % PAGE_TOKENS) as u32
}

/// Rows of the tokens from `start` on; those from `prompt` on are the response's.
fn rows_of(tokens: &[Token], start: usize, prompt: usize, limit_tokens: usize, pages: &[u32]) -> Vec<Row> {
    let row = |position: usize| {
        let count = (position + 1).saturating_sub(prompt);
        Row {
            token: tokens[position],
            position: position as u32,
            sequence: 0,
            slot: slot(pages, position),
            response_count: count as u32,
            remaining: remaining_share(count, limit_tokens),
        }
    };
    (start..tokens.len()).map(row).collect()
}
