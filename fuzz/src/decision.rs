//! Every guest answer against real steps of an engine: manifest, plan, calls and decisions, read from the input by a
//! guest (`guest/`) that runs in the sandbox like any other, beside a good neighbour.
//!
//! What has to hold: the engine never fails for it; every response ends, within its budget of steps; each token is the
//! vocabulary's, and was drawn with a probability; the neighbour's tokens and their probabilities are those that it has
//! alone; and what is recorded of each response reads back.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use arbitrary::{Result, Unstructured};
use vassal::audit::surroundings::{ModelRecord, Surroundings};
use vassal::audit::{FORMAT, Record};
use vassal::engine::{Engine, EngineOptions, Event, Finish, HeadId, Response};
use vassal::model::config::LlamaConfig;
use vassal::model::heads::HeadFile;
use vassal::model::llama::Llama;
use vassal::model::tokenizer::Tokenizer;
use vassal::policy_build::Recipe;
use vassal::request::{FaultPolicy, LoadedPolicy, PolicyUse, Request, TEMPERATURE_MAX, TEMPERATURE_MIN, ValidRequest};
use vassal::sandbox::{Compilation, CompiledPolicy, HeadOffer, Limits, Needs, Sandbox, Scope, settings};
use vassal::token::Token;
use vassal_kernels::cpu::{Cpu, Isa};

use crate::seeds;

/// Steps of the engine, after which it is said to go on for ever: some ten times what any input takes.
const PASSES_MAX: usize = 4_000;

/// Response tokens of a good neighbour.
const NEIGHBOUR_TOKENS: usize = 6;

/// Bytes of a script: what some dozen steps read.
const SCRIPT_BYTES_MAX: usize = 1_024;

/// What a head on offer is called, whose name is the script of a manifest (`guest/src/lib.rs`).
const MANIFEST: &str = "script:";

thread_local! {
    static HOST: RefCell<Host> = RefCell::new(Host::open());
}

struct Host {
    engine: Engine<Cpu>,
    tokenizer: Arc<Tokenizer>,
    context: usize,
    limits: Limits,
    surroundings: Surroundings,
    guest: CompiledPolicy,
    good: PolicyUse,
    /// What the neighbour gives alone.
    expected: Vec<(Token, Option<[u32; 3]>)>,
}

/// Runs what an input says; its end is cut off where the input ends.
pub fn run(data: &[u8]) {
    let _ = HOST.with_borrow_mut(|host| host.run(&mut Unstructured::new(data)));
}

impl Host {
    fn open() -> Self {
        // What counts is fuel; a busy machine is no finding.
        // Calls are left alone wherever they yield, so that much is under way at once.
        let limits = Limits { sequences: 16, deadline_ms: 10_000, slice_us: 0, fuel_slice: 1_000, ..Limits::default() };
        let sandbox = Sandbox::new(limits.clone(), Compilation::InProcess).expect("a sandbox");
        let gguf = seeds::model().gguf().expect("the tiny model");
        let config = LlamaConfig::from_gguf(&gguf).expect("its configuration");
        let tokenizer = Arc::new(Tokenizer::from_gguf(&gguf).expect("its tokenizer"));
        let mut device = Cpu::with(Isa::best(), 1).expect("a device");
        let llama = Llama::load(&mut device, &gguf, &config, 24).expect("its weights");
        let heads: Vec<HeadFile> = seeds::heads();
        // Room for three sequences of four, so that one waits; few rows, so that passes are full.
        let options = EngineOptions {
            sequences_max: 3,
            cache_tokens: 3 * 64,
            rows_max: 24,
            candidate_rows_max: 24,
            ..EngineOptions::default()
        };
        let model = ModelRecord { name: "tiny".into(), sha256: "0".repeat(64), source: String::new() };
        let surroundings = Surroundings::new(&device_info(&device), &limits, model, &heads, &[]).expect("surroundings");
        let engine = Engine::new(device, llama, tokenizer.clone(), sandbox.clone(), &heads, &|_| None, &options);
        let engine = engine.expect("an engine");
        let guest = sandbox.compile("fuzzed", &guest()).expect("the guest");
        let shipped = include_bytes!("../../guest/policies/vas.wasm");
        let vas = sandbox.compile("vas", shipped).expect("a shipped policy");
        let heads: Vec<HeadId> = (0..heads.len()).map(HeadId).collect();
        let offers = engine.offers(&heads);
        let dials = [("sentiment", "0.9"), ("simplicity", "-0.6"), ("mode", "evaluate"), ("candidates", "8")];
        let good = used(&vas, &offers, &dials, &limits).expect("a shipped policy's manifest");
        let mut host = Self {
            engine,
            tokenizer,
            context: config.shape.context_tokens,
            limits,
            surroundings,
            guest,
            good,
            expected: Vec::new(),
        };
        let neighbour = host.neighbour();
        host.engine.submit(neighbour).expect("a request");
        let alone = host.finish(usize::MAX, &mut Vec::new());
        host.expected = bits(alone.values().next().expect("a response"));
        assert_eq!(host.expected.len(), NEIGHBOUR_TOKENS);
        host
    }

    fn run(&mut self, u: &mut Unstructured) -> Result<()> {
        let mut requests = Vec::new();
        for left in (1..=u.int_in_range(1..=2)?).rev() {
            requests.extend(self.fuzzed(u, left)?);
        }
        let cancelled_at = if u.ratio(1, 8)? { u.int_in_range(0..=30)? } else { usize::MAX };
        let good = self.neighbour();
        let first = self.submit(&good);
        let mut submitted = vec![(first, good.clone())];
        for (request, samples) in &requests {
            let ids = self.engine.submit_samples(request.clone(), *samples).expect("it fits, and names its heads");
            submitted.extend(ids.into_iter().map(|id| (id.0, request.clone())));
        }
        let last = self.submit(&good);
        submitted.push((last, good));
        let mut cancel: Vec<u64> = submitted[1..submitted.len() - 1].iter().map(|(id, _)| *id).take(1).collect();
        let responses = self.finish(cancelled_at, &mut cancel);
        for (id, request) in &submitted {
            self.check(request, responses.get(id).expect("every request has a response"));
        }
        for neighbour in [first, last] {
            assert!(bits(&responses[&neighbour]) == self.expected, "the neighbour's tokens changed");
        }
        Ok(())
    }

    fn submit(&mut self, request: &ValidRequest) -> u64 {
        self.engine.submit(request.clone()).expect("it fits").0
    }

    /// A request with one policy or two that the input drives, the first of `left`; none where a manifest is refused.
    fn fuzzed(&self, u: &mut Unstructured, left: usize) -> Result<Option<(ValidRequest, usize)>> {
        let all: Vec<HeadId> = (0..self.engine.head_count()).map(HeadId).collect();
        let mut policies = Vec::new();
        for _ in 0..u.int_in_range(1..=2)? {
            let mut offers = self.engine.offers(&all);
            let length = u.int_in_range(0..=48)?;
            let script: String = u.bytes(length.min(u.len()))?.iter().copied().map(char::from).collect();
            if !script.is_empty() {
                offers.push(HeadOffer { name: format!("{MANIFEST}{script}"), kind: String::new(), spread: 1.0 });
            }
            let Some(policy) = used(&self.guest, &offers, &[], &self.limits) else { return Ok(None) };
            // A head that is only a script is none of the engine's.
            if policy.policy.manifest.heads.iter().any(|head| head.name.starts_with(MANIFEST)) {
                return Ok(None);
            }
            let fault_policy = if u.arbitrary()? { FaultPolicy::Base } else { FaultPolicy::Abort };
            policies.push(PolicyUse { required: u.arbitrary()?, fault_policy, ..policy });
        }
        if u.ratio(1, 4)? {
            policies.push(self.good.clone());
        }
        let max_tokens = u.int_in_range(1..=12)?;
        let temperature = *u.choose(&[1.0, 0.0, 0.7, TEMPERATURE_MAX, TEMPERATURE_MIN])?;
        let top_p = *u.choose(&[1.0, 0.9, f32::MIN_POSITIVE])?;
        let candidates = if u.ratio(1, 4)? { u.int_in_range(1..=256)? } else { 8 };
        let (seed, ends): (u64, bool) = u.arbitrary()?;
        let samples = if u.ratio(1, 8)? { 2 } else { 1 };
        let length = (u.len() / left).min(SCRIPT_BYTES_MAX);
        let script = u.bytes(length)?.iter().map(|byte| u32::from(*byte)).collect();
        let request = Request {
            prompt: self.tokenizer.encode("you and the one: 3", false).expect("a prompt"),
            user_prompt: script,
            max_tokens: Some(max_tokens),
            temperature: Some(temperature),
            top_p: Some(top_p),
            seed: Some(seed),
            candidates_max: Some(candidates),
            policies,
            heads: all,
            ..Request::default()
        };
        let mut request = request.validate(self.tokenizer.as_ref(), self.context).expect("a valid request");
        if !ends {
            request.end_of_text.clear();
        }
        Ok(Some((request, samples)))
    }

    /// The request of whom nothing may disturb.
    fn neighbour(&self) -> ValidRequest {
        let request = Request {
            prompt: self.tokenizer.encode("the go and on", false).expect("a prompt"),
            max_tokens: Some(NEIGHBOUR_TOKENS),
            seed: Some(7),
            policies: vec![self.good.clone()],
            heads: (0..self.engine.head_count()).map(HeadId).collect(),
            ..Request::default()
        };
        let request = request.validate(self.tokenizer.as_ref(), self.context).expect("a valid request");
        ValidRequest { end_of_text: Vec::new(), ..request }
    }

    /// Steps until nothing runs; before the step `cancelled_at` the named sequences are cancelled.
    fn finish(&mut self, cancelled_at: usize, cancel: &mut Vec<u64>) -> HashMap<u64, Response> {
        let mut responses = HashMap::new();
        let mut keep = |event| {
            if let Event::Finished { sequence, response } = event {
                assert!(responses.insert(sequence.0, *response).is_none(), "a second response");
            }
        };
        for pass in 0..PASSES_MAX {
            if pass == cancelled_at {
                cancel
                    .drain(..)
                    .filter_map(|id| self.engine.cancel(vassal::engine::SequenceId(id)))
                    .for_each(&mut keep);
            }
            if self.engine.is_idle() {
                return responses;
            }
            self.engine.step().expect("no guest can make the engine fail").into_iter().for_each(&mut keep);
        }
        panic!("not idle after {PASSES_MAX} steps");
    }

    /// What holds of any response.
    fn check(&self, request: &ValidRequest, response: &Response) {
        let size = self.engine.vocabulary_size();
        let budget = 4 * request.max_tokens as u64;
        assert!(response.counters.steps <= budget + 1, "{} steps of {budget}", response.counters.steps);
        assert!(response.tokens.len() <= request.max_tokens);
        assert!(!matches!(response.finish, Finish::TokenLimit) || response.tokens.len() == request.max_tokens);
        for record in &response.tokens {
            assert!((record.token as usize) < size, "token {}", record.token);
            let Some(draw) = record.draw else { continue };
            assert!(draw.log_probability <= 1e-3 && draw.log_probability.is_finite(), "{draw:?}");
            assert!(draw.base_log_probability <= 1e-3 && draw.base_log_probability.is_finite(), "{draw:?}");
            assert!(draw.kl >= -1e-3 && draw.kl.is_finite(), "{draw:?}");
        }
        let record = Record::new(&self.surroundings, request, &BTreeMap::new(), response);
        let text = serde_json::to_string(&record).expect("a record is JSON");
        let again: Record = serde_json::from_str(&text).expect("a record reads back");
        assert!(again == record && again.format == FORMAT, "a record reads back as another: {text}");
    }
}

fn device_info(device: &Cpu) -> vassal_kernels::DeviceInfo {
    vassal_kernels::Device::info(device)
}

/// A policy with the manifest that it has under these offers, and its settings; none where the manifest is refused.
fn used(compiled: &CompiledPolicy, offers: &[HeadOffer], given: &[(&str, &str)], limits: &Limits) -> Option<PolicyUse> {
    let manifest = Arc::new(compiled.describe(offers, Needs::ALL).ok()?);
    let settings = settings::resolve(&manifest, given, Scope::Tenant, limits).expect("valid settings");
    let policy = Arc::new(LoadedPolicy {
        name: manifest.name.clone(),
        compiled: compiled.clone(),
        manifest,
        signers: Vec::new(),
    });
    Some(PolicyUse { policy, settings, required: false, fault_policy: FaultPolicy::Abort })
}

/// The guest's component, built where it is not yet.
pub fn guest() -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let target_dir = Some(folder.join("../target"));
    let recipe = Recipe { dir: folder.join("guest"), target_dir, quiet: true, locked: true, ..Recipe::default() };
    recipe.component().unwrap_or_else(|error| panic!("{error}"))
}

/// Everything that is said of a response's tokens, so that equal means equal to the bit.
fn bits(response: &Response) -> Vec<(Token, Option<[u32; 3]>)> {
    let bits =
        |draw: vassal::engine::DrawRecord| [draw.log_probability, draw.base_log_probability, draw.kl].map(f32::to_bits);
    response.tokens.iter().map(|record| (record.token, record.draw.map(bits))).collect()
}
