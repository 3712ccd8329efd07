//! What tests of the engine share: a tiny model that runs within milliseconds, heads with chosen weights,
//! policies, and readings of the model that go past the engine.
//!
//! [`Setup`] says how an engine is made, [`Tiny`] is one, [`Tiny::run`] drives requests to their end.
//! [`Tiny::logits_after`] and [`Tiny::values_along`] run whole sequences from nothing, without pages that were
//! used before, candidate rows or rounds: the oracle of what was cached, batched or rewound.

use std::collections::HashMap;
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use vassal::engine::{Engine, EngineOptions, Event, HeadId, Response, SequenceId};
use vassal::learning::rewards::reading;
use vassal::model::config::LlamaConfig;
use vassal::model::heads::{HeadFile, HeadWeights};
use vassal::model::llama::{Llama, Taps};
use vassal::model::source::{DEFAULT_MODEL, Models};
use vassal::model::synthetic::SyntheticModel;
use vassal::model::tokenizer::Tokenizer;
use vassal::policy_build::Recipe;
use vassal::request::{FaultPolicy, LoadedPolicy, PolicyUse, Request, ValidRequest};
use vassal::sandbox::{ChildCompiler, Compilation, CompiledPolicy, Limits, Needs, Sandbox, Scope, settings};
use vassal::token::{Token, Vocabulary};
use vassal_kernels::cpu::Isa;
use vassal_kernels::{AnyDevice, Device, DeviceChoice, LinearHead, PAGE_TOKENS, Plan, Row};

use crate::made_up_heads::{look_ahead, one_pass, with_share, with_text};
use crate::rebuild::root;

/// A prompt of the toy tokenizer; its length in tokens is no multiple of a page.
pub(crate) const PROMPT: &str = "you and the one at the go: in 3 words";

/// The default model's file, where it has been pulled. The one rule for what needs it: nothing is fetched here, the
/// test is skipped visibly, and where CI is set a skip is a failure.
#[track_caller]
pub(crate) fn default_model() -> Option<PathBuf> {
    let found = Models::from_env().and_then(|models| models.find(DEFAULT_MODEL));
    let Err(error) = &found else { return found.ok() };
    assert!(std::env::var_os("CI").is_none(), "the default model's tests may not be skipped here: {error}");
    // Not `eprintln!`, which the test harness swallows where a test passes.
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    let _ = writeln!(std::io::stderr(), "SKIPPED {test}: {error}");
    None
}

/// One for all tests: a sandbox reserves address space and has a thread. Its clock is patient: on a busy machine
/// a test may stand still for longer than a guest may run.
pub(crate) fn sandbox() -> &'static Sandbox {
    static SANDBOX: OnceLock<Sandbox> = OnceLock::new();
    SANDBOX.get_or_init(|| Sandbox::new(Limits { deadline_ms: 60_000, ..Limits::default() }, compilation()).unwrap())
}

/// As the program compiles: in a child, here of the program under test, because a test's own `main` is not ours.
pub(crate) fn compilation() -> Compilation {
    Compilation::Child(ChildCompiler { program: Some(env!("CARGO_BIN_EXE_vassal-under-test").into()), cache: None })
}

/// Compiled policies by name: compiling takes longer than most tests.
pub(crate) fn compiled(name: &str) -> CompiledPolicy {
    static COMPILED: OnceLock<Mutex<HashMap<String, CompiledPolicy>>> = OnceLock::new();
    let mut compiled = COMPILED.get_or_init(Mutex::default).lock().unwrap();
    let build = || sandbox().compile(name, &component(name)).unwrap();
    compiled.entry(name.to_owned()).or_insert_with(build).clone()
}

/// A shipped component, or one of the test guests, built.
pub(crate) fn component(name: &str) -> Vec<u8> {
    let hostile = root().join("tests/hostile");
    let (dir, example) = match name {
        "hostile" => (hostile, None),
        "spinner" => (root().join("tests/spinner"), None),
        "scripted" | "hostile_reward" => (hostile, Some(name.to_owned())),
        "contrastive" | "segment_rejection" | "watermark" | "grammar" => (root().join("guest"), Some(name.to_owned())),
        shipped => return std::fs::read(root().join(format!("guest/policies/{shipped}.wasm"))).unwrap(),
    };
    Recipe { dir, example, quiet: true, ..Recipe::default() }.component().unwrap()
}

/// Whether engines of this process are on the card: it is a child that finds the stand-in as its driver.
static ON_A_CARD: AtomicBool = AtomicBool::new(false);

pub(crate) fn take_the_card() {
    ON_A_CARD.store(true, Ordering::Relaxed);
}

/// What engines run on: one thread of the processor, or the card.
pub(crate) fn device() -> DeviceChoice {
    if ON_A_CARD.load(Ordering::Relaxed) { DeviceChoice::Cuda { ordinal: 0 } } else { processor(Isa::best(), 1) }
}

pub(crate) fn processor(isa: Isa, threads: usize) -> DeviceChoice {
    DeviceChoice::Cpu { threads: Some(threads), isa: Some(isa) }
}

/// How an engine is made.
#[derive(Clone)]
pub(crate) struct Setup {
    pub(crate) model: SyntheticModel,
    pub(crate) heads: Vec<HeadFile>,
    pub(crate) options: EngineOptions,
    pub(crate) device: DeviceChoice,
}

impl Default for Setup {
    /// The default synthetic model, no heads, room for a few sequences, on [`device`].
    fn default() -> Self {
        let options = EngineOptions {
            sequences_max: 16,
            cache_tokens: 16 * 256,
            rows_max: 128,
            candidate_rows_max: 512,
            ..EngineOptions::default()
        };
        Setup { model: SyntheticModel::default(), heads: Vec::new(), options, device: device() }
    }
}

impl Setup {
    /// With two look-ahead heads at different layers, one of them with share weights and a reward of the text so far, and a
    /// one-pass head, which has such a reward too.
    pub(crate) fn with_heads() -> Self {
        let heads = vec![
            with_text(with_share(look_ahead("sentiment", 2, 11))),
            look_ahead("simplicity", 1, 12),
            with_text(one_pass("brevity", 2, 13)),
        ];
        Setup { heads, ..Setup::default() }
    }

    pub(crate) fn open(&self) -> Tiny {
        self.open_in(sandbox())
    }

    /// With a sandbox of its own, whose policies are not [`compiled`]'s.
    pub(crate) fn open_in(&self, sandbox: &Sandbox) -> Tiny {
        let gguf = self.model.gguf().unwrap();
        let config = LlamaConfig::from_gguf(&gguf).unwrap();
        let tokenizer = Arc::new(Tokenizer::from_gguf(&gguf).unwrap());
        let mut device = AnyDevice::open(self.device).unwrap();
        let llama = Llama::load(&mut device, &gguf, &config, self.options.rows_max).unwrap();
        let (words, sandbox) = (tokenizer.clone(), sandbox.clone());
        let engine = Engine::new(device, llama, words, sandbox, &self.heads, &reading, &self.options).unwrap();
        Tiny {
            engine,
            tokenizer,
            heads: self.heads.clone(),
            layers: config.shape.layers,
            context: config.shape.context_tokens,
        }
    }
}

/// An engine over a tiny model.
pub(crate) struct Tiny {
    pub(crate) engine: Engine<AnyDevice>,
    pub(crate) tokenizer: Arc<Tokenizer>,
    pub(crate) heads: Vec<HeadFile>,
    layers: usize,
    context: usize,
}

impl Tiny {
    pub(crate) fn head_ids(&self) -> Vec<HeadId> {
        (0..self.heads.len()).map(HeadId).collect()
    }

    /// A policy that was offered all heads, with settings as its tenant gives them.
    pub(crate) fn policy(&self, name: &str, given: &[(&str, &str)]) -> PolicyUse {
        self.policy_of(compiled(name), given)
    }

    /// The same of a component that a test compiled in [`sandbox`].
    pub(crate) fn policy_of(&self, compiled: CompiledPolicy, given: &[(&str, &str)]) -> PolicyUse {
        let manifest = Arc::new(compiled.describe(&self.engine.offers(&self.head_ids()), Needs::ALL).unwrap());
        let settings = settings::resolve(&manifest, given, Scope::Tenant, sandbox().limits()).unwrap();
        let policy = Arc::new(LoadedPolicy { name: manifest.name.clone(), compiled, manifest, signers: Vec::new() });
        PolicyUse { policy, settings, required: false, fault_policy: FaultPolicy::Abort }
    }

    /// The scripted policy of `tests/hostile/examples`.
    pub(crate) fn scripted(&self, script: &str) -> PolicyUse {
        self.policy("scripted", &[("script", script)])
    }

    /// A request for a prompt, offering all heads, of 24 tokens at temperature 1.
    pub(crate) fn request(&self, prompt: &str, policies: Vec<PolicyUse>) -> Request {
        Request {
            prompt: self.tokenizer.encode(prompt, false).unwrap(),
            max_tokens: Some(24),
            seed: Some(7),
            policies,
            heads: self.head_ids(),
            ..Request::default()
        }
    }

    /// The request, checked; a random model would say soon that it is at its end, so nothing ends a text.
    pub(crate) fn endless(&self, request: Request) -> ValidRequest {
        let valid = request.validate(self.tokenizer.as_ref(), self.context).unwrap();
        ValidRequest { end_of_text: Vec::new(), ..valid }
    }

    /// Runs requests to their end, each handed in before the step that stands with it.
    pub(crate) fn run_joining(&mut self, requests: Vec<(usize, ValidRequest)>) -> Vec<Response> {
        let mut ids = vec![None; requests.len()];
        let mut responses: HashMap<SequenceId, Response> = HashMap::new();
        for step in 0..100_000 {
            for (place, (at, request)) in requests.iter().enumerate() {
                if *at == step {
                    ids[place] = Some(self.engine.submit(request.clone()).unwrap());
                }
            }
            for event in self.engine.step().unwrap() {
                if let Event::Finished { sequence, response } = event {
                    responses.insert(sequence, *response);
                }
            }
            if responses.len() == requests.len() {
                return ids.into_iter().map(|id| responses.remove(&id.unwrap()).unwrap()).collect();
            }
        }
        panic!("{} of {} responses after 100,000 steps", responses.len(), requests.len());
    }

    /// Runs requests together.
    pub(crate) fn run(&mut self, requests: Vec<ValidRequest>) -> Vec<Response> {
        self.run_joining(requests.into_iter().map(|request| (0, request)).collect())
    }

    /// Runs a request alone.
    pub(crate) fn alone(&mut self, request: Request) -> Response {
        let request = self.endless(request);
        self.run(vec![request]).remove(0)
    }

    /// Runs samples of one request, in their order.
    pub(crate) fn samples(&mut self, request: ValidRequest, count: usize) -> Vec<Response> {
        let ids = self.engine.submit_samples(request, count).unwrap();
        let mut responses: HashMap<SequenceId, Response> = HashMap::new();
        while !self.engine.is_idle() {
            for event in self.engine.step().unwrap() {
                if let Event::Finished { sequence, response } = event {
                    responses.insert(sequence, *response);
                }
            }
        }
        ids.iter().map(|id| responses.remove(id).unwrap()).collect()
    }

    /// The logits after some tokens, run from nothing. Only while no sequence runs.
    pub(crate) fn logits_after(&mut self, tokens: &[Token]) -> Vec<f32> {
        let layers = self.layers;
        let (device, model, cache, logits) = self.engine.parts();
        let rows: Vec<Row> = (0..tokens.len() as u32)
            .map(|position| {
                let token = tokens[position as usize];
                Row { token, position, sequence: 0, slot: position, response_count: 0, remaining: 0.0 }
            })
            .collect();
        let pages: Vec<u32> = (0..tokens.len().div_ceil(PAGE_TOKENS) as u32).collect();
        let mut last = 0;
        for chunk in rows.chunks(model.rows_max()) {
            device.begin(&Plan { rows: chunk.to_vec(), block_tables: vec![pages.clone()] }).unwrap();
            model.forward(device, cache, 0..layers, &Taps::default()).unwrap();
            device.end().unwrap();
            last = chunk.len() as u32 - 1;
        }
        model.head(device, &[(last, 0)], logits).unwrap();
        let mut out = Vec::new();
        device.read_logits(logits, 0, &mut out).unwrap();
        out
    }

    /// The logits that a sequence has left in a slot; sequences take slots in the order of their start.
    pub(crate) fn logits_left(&mut self, slot: u32) -> Vec<f32> {
        let (device, _, _, logits) = self.engine.parts();
        let mut out = Vec::new();
        device.read_logits(logits, slot, &mut out).unwrap();
        out
    }

    /// A look-ahead head's value of every state of a response, the prompt's end first, in f64 from the
    /// features, and what the head adds for the text. Only while no sequence runs.
    pub(crate) fn values_along(&mut self, head: usize, prompt: &[Token], response: &[Token], limit: usize) -> Vec<f64> {
        let HeadWeights::LookAhead(weights) = self.heads[head].weights.clone() else { panic!("a look-ahead head") };
        let linear = self.linear_along(head, &weights, prompt, response, limit);
        let texts = (0..=response.len()).map(|count| self.text_value(head, &response[..count], limit));
        linear.into_iter().zip(texts).map(|(value, added)| value + added).collect()
    }

    /// What a head adds for the text of a response.
    pub(crate) fn text_value(&self, head: usize, response: &[Token], limit: usize) -> f64 {
        let Some(term) = &self.heads[head].description.text else { return 0.0 };
        let reading = reading(&term.reward).unwrap();
        f64::from(term.of_response(reading.as_ref(), self.tokenizer.as_ref(), response, limit))
    }

    /// The same of other weights at a head's layer.
    pub(crate) fn linear_along(
        &mut self,
        head: usize,
        weights: &LinearHead,
        prompt: &[Token],
        response: &[Token],
        limit: usize,
    ) -> Vec<f64> {
        let layer = self.heads[head].description.layer;
        let mut features = Vec::new();
        self.engine.features(layer, prompt, &[response], limit, &mut features).unwrap();
        let hidden = weights.residual.len();
        let all: Vec<f32> = [&weights.residual[..], &weights.mean, &[weights.remaining, weights.bias]].concat();
        let product = |row: &[f32], weights: &[f32]| -> f64 {
            row.iter().zip(weights).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
        };
        let value = |row: &[f32]| {
            // The running mean, once more by the share of the limit that is used.
            let used = 1.0 - f64::from(row[2 * hidden]);
            product(row, &all) + used * product(&row[hidden..2 * hidden], &weights.share)
        };
        features.chunks(2 * hidden + 2).map(value).collect()
    }

    /// The token of one byte.
    pub(crate) fn byte(&self, byte: u8) -> Token {
        vassal::model::synthetic::FIRST_BYTE + u32::from(byte)
    }

    /// The bytes of some tokens; special ones are no text.
    pub(crate) fn bytes(&self, tokens: &[Token]) -> Vec<u8> {
        let text = tokens.iter().filter(|token| !self.tokenizer.is_special(**token));
        text.flat_map(|token| self.tokenizer.bytes(*token)).copied().collect()
    }
}

/// Everything that is said of a response's tokens, so that equal means equal to the bit.
pub(crate) fn bits(response: &Response) -> Vec<(Token, Option<[u32; 3]>)> {
    let draw =
        |draw: vassal::engine::DrawRecord| [draw.log_probability, draw.base_log_probability, draw.kl].map(f32::to_bits);
    response.tokens.iter().map(|record| (record.token, record.draw.map(draw))).collect()
}

/// Numbers between -1 and 1 out of a seed.
pub(crate) fn noise(seed: u64) -> impl FnMut() -> f32 {
    let mut random = vassal::sampling::philox::Philox::new(seed, 0);
    move || 2.0 * random.uniform() as f32 - 1.0
}
