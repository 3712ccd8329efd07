//! The engine: many sequences, one model, one pass after another.
//!
//! A sequence is pending (tokens to run) or ready (logits known). A pass takes the pending rows and
//! the candidate rows of ready sequences through the layers `[0, exit)`, where look-ahead heads read
//! them; policies decide and tokens are drawn; then the pending rows and the winners' rows go on
//! through `[exit, layers)`. Batching, look-ahead, `evaluate` and rewinding are this one mechanism.
//!
//! - [`Engine::submit`] and [`Engine::step`] are the whole road; [`response`] is what comes back.
//! - `admission.rs` lets sequences in, `pass.rs` runs rows, `start.rs` starts policies, `decide.rs` brings a round of decisions to its end, `chain.rs`
//!   makes one answer of many policies', `sequence.rs` and `pages.rs` are the book-keeping.
//! - `values.rs` finds what heads say, `text.rs` what they add for the text so far; `teacher.rs` runs known responses, for learning.
//! - A sequence whose policy is slow is left out of passes until it has answered (`slices.rs`).
//!
//! A sequence's tokens do not depend on its neighbours: rows do not (the device's promise), draws are
//! counter-based, and a policy sees its own sequence only. Not here: text templates, files, servers.

mod admission;
mod calls;
mod chain;
mod decide;
mod pages;
mod pass;
pub mod response;
mod rounds;
mod sequence;
mod slices;
mod start;
pub mod teacher;
mod text;
pub mod trace;
mod values;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use vassal_kernels::{CacheShape, Device, DeviceError, LinearHead, ModelShape, OnePassHead, PAGE_TOKENS};

pub use self::response::{Counters, DrawRecord, Event, Finish, Note, Response, SequenceId, Timing, TokenRecord};
pub use self::trace::{InjectedFault, Replay, TraceEvent, TraceKind};

use self::admission::{SharedPrompt, Waiting};
use self::chain::Chain;
use self::pages::Pages;
use self::sequence::Sequence;
use self::slices::{STARTS_SHARE, STEPS_SHARE, Slices};
use self::text::TextPart;
use crate::memory::MemoryNeeds;
use crate::model::heads::{HeadError, HeadFile, HeadWeights, Readings};
use crate::model::llama::Llama;
use crate::request::{LoadedPolicy, ValidRequest};
use crate::sandbox::{Fault, HeadOffer, Limits, LoadError, Needs, Sandbox, VocabularyText};
use crate::token::Vocabulary;

/// Why the engine could not do something. A failed device ends all sequences; the rest ends one request.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The device refused or failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The device has not enough memory for the model and what it needs besides.
    #[error("{source}; of the whole, {needs}")]
    Memory {
        /// What there is to hold.
        needs: Box<MemoryNeeds>,
        /// What did not fit.
        source: DeviceError,
    },
    /// The device failed in an earlier step, and the engine with it.
    #[error("the engine ended with its device: {first}")]
    Failed {
        /// What went wrong then.
        first: String,
    },
    /// A policy asks for a head that was not offered to this request.
    #[error("policy {policy:?} asks for the head {head:?}, which this request does not offer; offered: {offered}")]
    HeadNotOffered {
        /// The policy.
        policy: String,
        /// The head.
        head: String,
        /// Names of the offered heads.
        offered: String,
    },
    /// A head that cannot be read here.
    #[error(transparent)]
    Head(#[from] HeadError),
    /// A layer that the engine was not built to read.
    #[error("layer {layer} is no tap of this engine; its taps are {taps:?}")]
    NoTap {
        /// What was asked for.
        layer: usize,
        /// The engine's.
        taps: Vec<usize>,
    },
    /// An engine of nothing.
    #[error("{what} must be at least 1, got 0")]
    Options {
        /// The option.
        what: &'static str,
    },
    /// The request can never fit.
    #[error(
        "the request needs {needed_tokens} tokens of cache (prompt and token limit), the engine has {available_tokens}"
    )]
    TooLong {
        /// Prompt and token limit together.
        needed_tokens: usize,
        /// What the cache holds in all.
        available_tokens: usize,
    },
    /// Too many wait already.
    #[error("{waiting} sequences wait already and {more} more are asked for; the engine keeps at most {limit} waiting")]
    Full {
        /// Sequences that wait.
        waiting: usize,
        /// What would have joined them.
        more: usize,
        /// The engine's limit.
        limit: usize,
    },
    /// The request's chain can never fit.
    #[error("the request has {needed} policies, which are as many instances; the sandbox holds {limit} in all")]
    TooManyPolicies {
        /// Instances that it needs.
        needed: usize,
        /// What the sandbox's pool holds.
        limit: usize,
    },
}

/// How large an engine is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineOptions {
    /// Sequences that decode at once; more wait.
    pub sequences_max: usize,
    /// Positions of keys and values for all sequences together, in tokens.
    pub cache_tokens: usize,
    /// Rows of one pass: bounds activations, and the chunk of a prompt.
    pub rows_max: usize,
    /// Candidate rows of one step, all sequences together: bounds scratch memory.
    pub candidate_rows_max: usize,
    /// Sequences that wait at most; more are refused. A large rollout hands in all its samples at once, which share their
    /// prompts; whoever serves strangers sets what these may keep waiting, since each holds its prompt and its policies.
    pub waiting_max: usize,
    /// Layers to tap beside those of the heads, for learning: features can be read there.
    pub taps: Vec<usize>,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            sequences_max: 32,
            cache_tokens: 32 * 512,
            rows_max: 512,
            candidate_rows_max: 1024,
            waiting_max: 1 << 20,
            taps: Vec::new(),
        }
    }
}

/// A value head of the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct HeadId(pub usize);

/// A head ready for passes: the file's, with its tap.
struct Head {
    name: String,
    spread: f32,
    body: Body,
    /// What is added for the text so far.
    text: Option<TextPart>,
}

enum Body {
    LookAhead(LinearHead),
    OnePass(OnePassHead),
}

/// Passes, sequences and their memory. See the module's page.
pub struct Engine<D: Device> {
    device: D,
    model: Llama<D>,
    cache: D::Cache,
    logits: D::Logits,
    /// Residuals between the halves of a pass, `[held_max, H]`.
    held: D::Rows,
    held_max: usize,
    heads: Vec<Head>,
    /// Layers with heads, ascending.
    taps: Vec<usize>,
    /// Where candidate rows leave: the last head's layer, or all layers.
    exit: usize,
    sandbox: Sandbox,
    vocabulary: Arc<dyn Vocabulary>,
    /// The vocabulary as policies see it.
    text: Arc<VocabularyText>,
    pages: Pages,
    pages_total: usize,
    /// First slot of the scratch pages.
    scratch_slot: u32,
    candidate_rows_max: usize,
    waiting_max: usize,
    /// Instances of policies that no sequence has been promised.
    instances_free: usize,
    logits_slots: Vec<u32>,
    running: Vec<Option<Sequence>>,
    waiting: VecDeque<Waiting>,
    groups: HashMap<u64, Option<SharedPrompt>>,
    /// The device's error that ended the engine.
    failed: Option<String>,
    /// What all of this asks of the device's memory, for the error where it runs out.
    needs: MemoryNeeds,
    next_id: u64,
    /// Steps so far: whose turn it is to be first in a pass.
    turn: usize,
    /// Time of slow policies' steps.
    slices: Slices,
    /// Time of slow policies' starts: its own, or starting would starve who has started.
    starts: Slices,
    costs: Costs,
}

/// Multiply-adds of weight matrices, for forward-equivalents.
#[derive(Debug, Clone, Copy)]
struct Costs {
    layer: f64,
    head: f64,
    layers: usize,
}

impl Costs {
    fn of(shape: &ModelShape) -> Self {
        let attention = 2 * shape.hidden * shape.head_width * (shape.heads + shape.kv_heads);
        Self {
            layer: (attention + 3 * shape.hidden * shape.feed_forward) as f64,
            head: (shape.hidden * shape.vocabulary) as f64,
            layers: shape.layers,
        }
    }

    /// Rows through some layers and rows of logits, in plain rows.
    fn forwards(&self, rows: usize, layers: usize, logit_rows: usize) -> f64 {
        let plain = self.layer * self.layers as f64 + self.head;
        (self.layer * (rows * layers) as f64 + self.head * logit_rows as f64) / plain
    }
}

impl<D: Device> Engine<D> {
    /// An engine over a loaded model. Heads must have been checked against the model
    /// ([`HeadFile::check_model`]); their order gives their [`HeadId`]s. `readings` finds what heads read off the text so far.
    ///
    /// # Errors
    /// The device's, where cache, logits or scratch do not fit; [`EngineError::Head`].
    pub fn new(
        mut device: D,
        model: Llama<D>,
        vocabulary: Arc<dyn Vocabulary>,
        sandbox: Sandbox,
        head_files: &[HeadFile],
        readings: Readings<'_>,
        options: &EngineOptions,
    ) -> Result<Self, EngineError> {
        let sizes = [
            ("sequences_max", options.sequences_max),
            ("cache_tokens", options.cache_tokens),
            ("rows_max", options.rows_max),
            ("candidate_rows_max", options.candidate_rows_max),
            ("waiting_max", options.waiting_max),
        ];
        if let Some((what, _)) = sizes.into_iter().find(|(_, size)| *size == 0) {
            return Err(EngineError::Options { what });
        }
        let shape = model.shape().clone();
        let mut taps: Vec<usize> =
            head_files.iter().map(|file| file.description.layer).chain(options.taps.iter().copied()).collect();
        taps.sort_unstable();
        taps.dedup();
        let heads = head_files.iter().map(|file| Head::new(file, &taps, readings)).collect::<Result<_, _>>()?;
        let head_layer = head_files.iter().map(|file| file.description.layer).max();
        let exit = head_layer.unwrap_or(shape.layers);
        let pages_total = Pages::needed(options.cache_tokens);
        let scratch_pages = if taps.is_empty() { 0 } else { Pages::needed(options.candidate_rows_max) };
        let needs = MemoryNeeds::new(model.weights_bytes(), &shape, options);
        let too_large = |error: DeviceError| needs.beside(error.into());
        let cache_shape = CacheShape { pages: pages_total + scratch_pages, taps: taps.clone() };
        let cache = device.cache(&shape, &cache_shape).map_err(too_large)?;
        let logits = device.logits(options.sequences_max, shape.vocabulary).map_err(too_large)?;
        let held_max = options.rows_max + options.candidate_rows_max;
        let held = device.rows(held_max, shape.hidden).map_err(too_large)?;
        Ok(Self {
            device,
            model,
            cache,
            logits,
            held,
            held_max,
            heads,
            taps,
            exit,
            instances_free: sandbox.limits().sequences as usize,
            sandbox,
            text: VocabularyText::new(vocabulary.clone()),
            vocabulary,
            pages: Pages::new(pages_total),
            pages_total,
            scratch_slot: (pages_total * PAGE_TOKENS) as u32,
            candidate_rows_max: options.candidate_rows_max,
            waiting_max: options.waiting_max,
            logits_slots: (0..options.sequences_max as u32).rev().collect(),
            running: Vec::new(),
            waiting: VecDeque::new(),
            groups: HashMap::new(),
            failed: None,
            needs,
            next_id: 0,
            turn: 0,
            slices: Slices::new(STEPS_SHARE),
            starts: Slices::new(STARTS_SHARE),
            costs: Costs::of(&shape),
        })
    }

    /// The device.
    pub fn device(&self) -> &D {
        &self.device
    }

    /// The model and the device together, for tools that run passes of their own. Not while sequences run.
    pub fn parts(&mut self) -> (&mut D, &mut Llama<D>, &mut D::Cache, &mut D::Logits) {
        (&mut self.device, &mut self.model, &mut self.cache, &mut self.logits)
    }

    /// Heads there are; their ids count from 0.
    pub fn head_count(&self) -> usize {
        self.heads.len()
    }

    /// Width of the model's residual stream.
    pub fn hidden(&self) -> usize {
        self.model.shape().hidden
    }

    /// What a row through the layers below `layer` costs, in plain rows: forward-equivalents.
    pub fn forwards_below(&self, layer: usize) -> f64 {
        self.costs.forwards(1, layer, 0)
    }

    /// The model's numbers.
    pub fn shape(&self) -> &ModelShape {
        self.model.shape()
    }

    /// Tokens in the vocabulary.
    pub fn vocabulary_size(&self) -> usize {
        self.model.shape().vocabulary
    }

    /// The layers that heads read, ascending.
    pub fn taps(&self) -> &[usize] {
        &self.taps
    }

    /// Where candidate rows leave, in layers.
    pub fn exit_layer(&self) -> usize {
        self.exit
    }

    /// Compiles a policy and lets it describe itself, given these heads.
    ///
    /// # Errors
    /// [`LoadError`], which names what is wrong with the component or its manifest.
    pub fn load_policy(
        &self,
        name: &str,
        component: &[u8],
        heads: &[HeadId],
        grants: Needs,
    ) -> Result<LoadedPolicy, LoadError> {
        let compiled = self.sandbox.compile(name, component)?;
        compiled.prepare(&self.text);
        let manifest = Arc::new(compiled.describe(&self.offers(heads), grants)?);
        Ok(LoadedPolicy { name: manifest.name.clone(), compiled, manifest, signers: Vec::new() })
    }

    /// The limits that every policy here runs under.
    pub fn sandbox_limits(&self) -> &Limits {
        self.sandbox.limits()
    }

    /// What policies are told of these heads.
    pub fn offers(&self, heads: &[HeadId]) -> Vec<HeadOffer> {
        heads
            .iter()
            .filter_map(|head| self.heads.get(head.0))
            .map(|head| HeadOffer { name: head.name.clone(), kind: "value".to_owned(), spread: head.spread })
            .collect()
    }

    /// Takes a request in; it runs as soon as there is room.
    ///
    /// # Errors
    /// [`EngineError::TooLong`], [`EngineError::TooManyPolicies`], [`EngineError::HeadNotOffered`], [`EngineError::Full`], and
    /// [`EngineError::Failed`] once the device has failed.
    pub fn submit(&mut self, request: ValidRequest) -> Result<SequenceId, EngineError> {
        Ok(self.submit_samples(request, 1)?[0])
    }

    /// Takes a request in as `samples` sequences that share its prompt; sample `i` draws from stream
    /// `request.stream + i`, so each gives the tokens it would give alone.
    ///
    /// # Errors
    /// As [`Engine::submit`].
    pub fn submit_samples(&mut self, request: ValidRequest, samples: usize) -> Result<Vec<SequenceId>, EngineError> {
        if let Some(first) = &self.failed {
            return Err(EngineError::Failed { first: first.clone() });
        }
        let needed = request.prompt.len() + request.max_tokens;
        if Pages::needed(needed) > self.pages_total {
            let available = self.pages_total * PAGE_TOKENS;
            return Err(EngineError::TooLong { needed_tokens: needed, available_tokens: available });
        }
        let (needed, limit) = (request.policies.len(), self.sandbox.limits().sequences as usize);
        if needed > limit {
            return Err(EngineError::TooManyPolicies { needed, limit });
        }
        for policy in &request.policies {
            self.policy_heads(&request, &policy.policy)?;
        }
        let (waiting, limit) = (self.waiting.len(), self.waiting_max);
        if waiting.saturating_add(samples) > limit {
            return Err(EngineError::Full { waiting, more: samples, limit });
        }
        let request = Arc::new(request);
        let group = self.next_id;
        if samples > 1 {
            self.groups.insert(group, None);
        }
        let ids = (0..samples as u64).map(|sample| {
            let id = SequenceId(self.next_id + sample);
            let group = (samples > 1).then_some((group, sample == 0));
            self.waiting.push_back(Waiting {
                id,
                request: request.clone(),
                stream: request.stream.wrapping_add(sample),
                group,
                paused: false,
            });
            id
        });
        let ids: Vec<_> = ids.collect();
        self.next_id += samples as u64;
        Ok(ids)
    }

    /// Nothing runs and nothing waits.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.iter().all(Option::is_none)
    }

    /// Leaves a sequence out of passes, or takes it in again. Its tokens do not change for it.
    pub fn set_paused(&mut self, id: SequenceId, paused: bool) {
        for sequence in self.running.iter_mut().flatten().filter(|sequence| sequence.id == id) {
            sequence.paused = paused;
        }
        for waiting in self.waiting.iter_mut().filter(|waiting| waiting.id == id) {
            waiting.paused = paused;
        }
    }

    /// Ends a sequence, running or waiting; its response so far is the event that comes back. None if there is no such sequence.
    pub fn cancel(&mut self, id: SequenceId) -> Option<Event> {
        if let Some(place) = self.waiting.iter().position(|waiting| waiting.id == id) {
            let waiting = self.waiting.remove(place)?;
            self.leave_group(waiting.group);
            let nothing =
                Sequence::new(id, waiting.request, waiting.stream, Vec::new(), u32::MAX, self.sandbox.limits());
            let mut events = Vec::new();
            self.finish(nothing, Finish::Cancelled, &mut events);
            return events.pop();
        }
        let place =
            self.running.iter().position(|sequence| sequence.as_ref().is_some_and(|sequence| sequence.id == id))?;
        let mut sequence = self.running[place].take()?;
        if sequence.starting.take().is_some() {
            // Some of its policies may have started: as if none had.
            sequence.chain = Chain::default();
        }
        let mut events = Vec::new();
        self.finish(sequence, Finish::Cancelled, &mut events);
        events.pop()
    }

    /// Ends all sequences without a word, and the engine: the device has failed, perhaps in the middle of a pass.
    fn fail(&mut self, error: &EngineError) {
        self.failed = Some(error.to_string());
        self.running.clear();
        self.waiting.clear();
        self.groups.clear();
    }

    /// The engine's heads that a policy's manifest names, in its order.
    fn policy_heads(&self, request: &ValidRequest, policy: &LoadedPolicy) -> Result<Vec<usize>, EngineError> {
        let find = |need: &HeadOffer| {
            let name = &need.name;
            let offered = request.heads.iter().find(|head| self.heads.get(head.0).is_some_and(|own| own.name == *name));
            offered.map(|head| head.0).ok_or_else(|| EngineError::HeadNotOffered {
                policy: policy.name.clone(),
                head: name.clone(),
                offered: self.offers(&request.heads).into_iter().map(|offer| offer.name).collect::<Vec<_>>().join(", "),
            })
        };
        policy.manifest.heads.iter().map(find).collect()
    }

    /// Ends a sequence: its memory is free again, its response is an event.
    fn finish(&mut self, mut sequence: Sequence, finish: Finish, events: &mut Vec<Event>) {
        if matches!(self.groups.get(&sequence.id.0), Some(None)) {
            self.groups.remove(&sequence.id.0);
        }
        for page in std::mem::take(&mut sequence.pages) {
            self.pages.release(page);
        }
        if sequence.logits_slot != u32::MAX {
            self.logits_slots.push(sequence.logits_slot);
            self.instances_free += sequence.request.policies.len();
        }
        let text = sequence.take_text(self.vocabulary.as_ref(), true);
        if !text.is_empty() {
            events.push(Event::Text { sequence: sequence.id, text });
        }
        let text = crate::token::decode(self.vocabulary.as_ref(), sequence.response());
        let step = sequence.step();
        sequence.chain.record_rest(step);
        let trace = sequence.chain.take_trace();
        let mut faults: Vec<Fault> = trace.iter().filter_map(TraceEvent::fault).cloned().collect();
        // The one that ended the response is no policy that was dropped on the way.
        if let Finish::Faulted(last) = &finish {
            // Not by equality: a fault may name a number that is none.
            let is_it = |fault: &Fault| {
                fault.guest == last.guest && std::mem::discriminant(&fault.kind) == std::mem::discriminant(&last.kind)
            };
            let at = faults.iter().rposition(is_it);
            at.map(|at| faults.remove(at));
        }
        let response = Response {
            text,
            tokens: sequence.records,
            prompt_tokens: sequence.prompt_tokens,
            finish,
            draws: sequence.random.draws(),
            counters: sequence.counters,
            timing: sequence.timing,
            faults,
            notes: trace.iter().filter_map(TraceEvent::note).collect(),
            trace,
        };
        if let Some(account) = &sequence.request.account {
            account.count(&response);
        }
        events.push(Event::Finished { sequence: sequence.id, response: Box::new(response) });
    }
}

impl Head {
    fn new(file: &HeadFile, taps: &[usize], readings: Readings<'_>) -> Result<Self, EngineError> {
        let description = &file.description;
        let tap = taps.iter().position(|&layer| layer == description.layer).unwrap_or_default();
        let body = match &file.weights {
            HeadWeights::LookAhead(head) => Body::LookAhead(LinearHead { tap, ..head.clone() }),
            HeadWeights::OnePass(head) => Body::OnePass(OnePassHead { tap, ..head.clone() }),
        };
        let text =
            description.text.as_ref().map(|term| TextPart::new(&description.name, term, readings)).transpose()?;
        Ok(Self { name: description.name.clone(), spread: description.spread as f32, body, text })
    }
}
