//! One sequence: a prompt, its response so far, and where it stands between two passes.
//!
//! A sequence is *pending* while tokens of it have not run through all layers, *ready* once the logits
//! after its last token are known. A ready sequence holds a [`Round`]: one decision to be taken, over
//! several passes where policies ask for values. The engine drives it; nothing here touches a device.

use std::collections::VecDeque;
use std::sync::Arc;

use vassal_kernels::TopK;

use super::chain::Chain;
use super::response::{Counters, DrawRecord, Finish, SequenceId, Timing, TokenRecord};
use super::start::StartingChain;
use super::trace::TraceKind;
use crate::request::ValidRequest;
use crate::sampling::philox::Philox;
use crate::sandbox::{Fault, Limits};
use crate::token::{TextDecoder, Token, Vocabulary, remaining_share};

/// A row of the pass that may go on after a draw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct HeldRow {
    /// Where its residual is held.
    pub(super) held: u32,
    /// The slot of its keys and values.
    pub(super) slot: u32,
}

/// What heads know of one token, were it to come next.
#[derive(Debug, Clone)]
pub(super) struct Valued {
    pub(super) token: Token,
    /// One value an engine head; none where it has not been computed.
    pub(super) values: Vec<Option<f32>>,
    /// For each one-pass head, the projection that this token's row gives; empty without a row.
    pub(super) projections: Vec<Vec<f32>>,
    /// The candidate's row, while the pass that ran it lasts.
    pub(super) row: Option<HeldRow>,
}

/// What heads know of the sequence as it stands: of its last token's row.
#[derive(Debug, Clone, Default)]
pub(super) struct StateValues {
    /// One value an engine head; none for a one-pass head.
    pub(super) values: Vec<Option<f32>>,
    /// For each one-pass head, its projection.
    pub(super) projections: Vec<Vec<f32>>,
}

/// What a round decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RoundKind {
    /// The next token, to be drawn.
    Draw,
    /// Whether the required policies let this inserted token stand.
    Offer(Token),
    /// Whether the response may end as it did.
    Ended,
}

/// One decision in the making.
#[derive(Debug, Clone)]
pub(super) struct Round {
    pub(super) kind: RoundKind,
    /// The candidates by the base model; none where the response has ended.
    pub(super) top: TopK,
    /// The candidates chosen again under vocabulary biases, for each number of candidates that a policy has.
    pub(super) rechosen: Vec<(usize, TopK)>,
    /// What heads have said so far.
    pub(super) valued: Vec<Valued>,
    /// Tokens whose rows must run before anybody can go on.
    pub(super) wanted: Vec<Token>,
    /// The last token's own row must run first: no head has seen it.
    pub(super) wants_state: bool,
    /// The link at which asking stopped because its policy is slow. No row runs for the round until it has gone on.
    pub(super) held_at: Option<usize>,
}

impl Round {
    pub(super) fn new(kind: RoundKind, top: TopK) -> Self {
        Self {
            kind,
            top,
            rechosen: Vec::new(),
            valued: Vec::new(),
            wanted: Vec::new(),
            wants_state: false,
            held_at: None,
        }
    }

    /// The tokens whose rows can run now.
    pub(super) fn wanted(&self) -> &[Token] {
        if self.held_at.is_none() { &self.wanted } else { &[] }
    }

    /// The last token's own row can run now.
    pub(super) fn wants_state(&self) -> bool {
        self.wants_state && self.held_at.is_none()
    }

    /// Nobody can be asked before rows have run.
    pub(super) fn waits_for_rows(&self) -> bool {
        !self.wanted().is_empty() || self.wants_state()
    }

    /// The candidates of a policy that has `width` of them, as blends and masks mean them.
    pub(super) fn chosen(&self, width: usize) -> &TopK {
        self.rechosen.iter().find(|(of, _)| *of == width).map_or(&self.top, |(_, top)| top)
    }

    /// The entry of a token, `hint` being where it likely stands.
    pub(super) fn entry(&self, token: Token, hint: usize) -> Option<usize> {
        match self.valued.get(hint) {
            Some(valued) if valued.token == token => Some(hint),
            _ => self.valued.iter().position(|valued| valued.token == token),
        }
    }

    /// The entry of a token, made where there is none.
    pub(super) fn entry_or_insert(&mut self, token: Token, hint: usize, heads: usize) -> usize {
        self.entry(token, hint).unwrap_or_else(|| {
            self.valued.push(Valued { token, values: vec![None; heads], projections: Vec::new(), row: None });
            self.valued.len() - 1
        })
    }

    /// A known value.
    pub(super) fn value(&self, head: usize, token: Token, hint: usize) -> Option<f32> {
        self.entry(token, hint).and_then(|entry| self.valued[entry].values[head])
    }
}

/// A sequence in the engine.
pub(super) struct Sequence {
    pub(super) id: SequenceId,
    pub(super) request: Arc<ValidRequest>,
    /// Prompt and response.
    pub(super) tokens: Vec<Token>,
    pub(super) prompt_tokens: usize,
    /// How the response's tokens came about, `[response]`.
    pub(super) records: Vec<TokenRecord>,
    /// Positions that have run through all layers.
    pub(super) cached: usize,
    pub(super) pages: Vec<u32>,
    pub(super) logits_slot: u32,
    pub(super) random: Philox,
    pub(super) chain: Chain,
    /// Its policies have not all started: nothing of it runs.
    pub(super) starting: Option<StartingChain>,
    /// The decision in the making, where there is one.
    pub(super) round: Option<Round>,
    /// Of the last token's row, where heads have seen it.
    pub(super) state: Option<StateValues>,
    /// The response's last token ends it.
    pub(super) ended: Option<Finish>,
    /// Inserted tokens that still have to be offered to the required policies.
    pub(super) inserting: VecDeque<Token>,
    pub(super) counters: Counters,
    pub(super) timing: Timing,
    pub(super) paused: bool,
    /// Steps it may take.
    pub(super) steps_max: u64,
    /// Steps and candidate rows that it may take together.
    pub(super) rows_max: u64,
    decoder: TextDecoder,
    /// Response tokens that can no longer be taken back: a function of the tokens alone, not of passes.
    settled: usize,
    /// Of those, how many the decoder has had.
    decoded: usize,
}

impl Sequence {
    pub(super) fn new(
        id: SequenceId,
        request: Arc<ValidRequest>,
        stream: u64,
        pages: Vec<u32>,
        logits_slot: u32,
        limits: &Limits,
    ) -> Self {
        Self {
            id,
            tokens: request.prompt.clone(),
            prompt_tokens: request.prompt.len(),
            records: Vec::new(),
            cached: 0,
            pages,
            logits_slot,
            random: Philox::new(request.seed, stream),
            chain: Chain::default(),
            starting: None,
            round: None,
            state: None,
            ended: None,
            inserting: VecDeque::new(),
            counters: Counters::default(),
            timing: Timing::default(),
            paused: false,
            steps_max: limits.steps_max(request.max_tokens),
            rows_max: limits.rows_max(request.max_tokens, request.candidates_max, request.policies.len()),
            decoder: TextDecoder::default(),
            settled: 0,
            decoded: 0,
            request,
        }
    }

    /// Response tokens so far.
    pub(super) fn response(&self) -> &[Token] {
        &self.tokens[self.prompt_tokens..]
    }

    /// It takes part in passes.
    pub(super) fn takes_part(&self) -> bool {
        !self.paused && self.starting.is_none()
    }

    /// The tokens whose candidate rows can run now.
    pub(super) fn wanted(&self) -> &[Token] {
        let round = self.round.as_ref().filter(|_| self.takes_part());
        round.map_or(&[], Round::wanted)
    }

    /// Tokens of it wait for a pass.
    pub(super) fn is_pending(&self) -> bool {
        self.cached < self.tokens.len()
    }

    /// No logits have been computed yet: its prompt is being read.
    pub(super) fn in_prompt(&self) -> bool {
        self.counters.logit_rows == 0
    }

    /// The decoding step under way, from 1.
    pub(super) fn step(&self) -> u64 {
        self.counters.steps + 1
    }

    /// One more decoding step; the response ends where a budget of it is spent. Both are counted alike in any company:
    /// a row that is wanted runs once, in whatever pass.
    pub(super) fn count_step(&mut self) -> Option<Finish> {
        self.counters.steps += 1;
        let (steps, rows) = (self.counters.steps, self.counters.steps + self.counters.candidate_rows);
        if steps > self.steps_max {
            return Some(Finish::StepBudget { steps: self.steps_max });
        }
        (rows > self.rows_max).then_some(Finish::RowBudget { rows: self.rows_max })
    }

    /// Replayed, it is cancelled here.
    pub(super) fn is_cancelled(&self) -> bool {
        self.request.replay.cancelled_after.is_some_and(|steps| self.counters.steps >= steps)
    }

    /// The host's fault that a replay repeats in this step for a link, with what the call had left by then.
    pub(super) fn injected_fault(&mut self, link: usize) -> Option<Fault> {
        let (request, step) = (self.request.clone(), self.step());
        let own = &mut self.chain.links[link];
        let injected = request.replay.fault(own.place, step, own.resumed)?;
        let instance = own.instance.as_mut()?;
        let fault = injected.of(instance.policy());
        // Those of before it was suspended are among the recorded ones.
        instance.take_notes();
        own.fuel = injected.fuel;
        self.counters.fuel += injected.fuel.unwrap_or(0);
        for note in &injected.notes {
            self.chain.record(link, step, TraceKind::Note(note.clone()));
        }
        Some(fault)
    }

    /// A link's splice has won the step.
    pub(super) fn record_splice(&mut self, link: usize, step: u64, remove: usize, insert: &[Token]) {
        let (remove, budget) = (remove.min(self.revocable()), self.steps_max as usize);
        self.chain.record_splice(link, step, remove, insert, budget);
    }

    /// The slot of a position in this sequence's pages.
    pub(super) fn slot(&self, position: usize) -> u32 {
        let page = self.pages[position / vassal_kernels::PAGE_TOKENS];
        page * vassal_kernels::PAGE_TOKENS as u32 + (position % vassal_kernels::PAGE_TOKENS) as u32
    }

    /// The share of the token limit that remains after `response_count` tokens.
    pub(super) fn remaining(&self, response_count: usize) -> f32 {
        remaining_share(response_count, self.request.max_tokens)
    }

    /// Appends a response token, and sees whether it ends the response.
    pub(super) fn push(&mut self, token: Token, draw: Option<DrawRecord>) {
        self.tokens.push(token);
        self.records.push(TokenRecord { token, draw });
        self.state = None;
        if self.request.end_of_text.contains(&token) {
            self.ended = Some(Finish::EndOfText);
        } else if self.response().len() >= self.request.max_tokens {
            self.ended = Some(Finish::TokenLimit);
        }
        if self.ended.is_some() {
            self.inserting.clear();
        }
        self.settled = self.settled.max(self.response().len().saturating_sub(self.chain.rewind_max()));
    }

    /// How many of the newest tokens can still be taken back: text that has been sent stands.
    pub(super) fn revocable(&self) -> usize {
        self.response().len() - self.settled
    }

    /// Takes response tokens back, the newest `count` of them.
    pub(super) fn rewind(&mut self, count: usize) {
        let response = self.response().len() - count;
        self.tokens.truncate(self.prompt_tokens + response);
        self.records.truncate(response);
        self.cached = self.cached.min(self.tokens.len());
        self.state = None;
        self.ended = None;
        self.chain.rewind(response);
    }

    /// Makes the last token run again where nothing is pending: its logits are to be known once more.
    pub(super) fn replay_last(&mut self) {
        self.cached = self.cached.min(self.tokens.len() - 1);
    }

    /// The text that can no longer be taken back and has not been sent; all that is left at the end.
    pub(super) fn take_text(&mut self, vocabulary: &dyn Vocabulary, at_end: bool) -> String {
        let safe = if at_end { self.response().len() } else { self.settled };
        let mut text = String::new();
        while self.decoded < safe {
            let token = self.tokens[self.prompt_tokens + self.decoded];
            self.decoded += 1;
            if !vocabulary.is_special(token) {
                self.decoder.push(vocabulary.bytes(token));
                text.push_str(&self.decoder.settle(0));
            }
        }
        if at_end {
            text.push_str(&self.decoder.finish());
        }
        text
    }
}
