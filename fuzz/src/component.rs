//! Components through the whole loading road: validator, compiler, contract, `describe`, `start`, steps.
//!
//! An input that begins like a component is one. Of any other the first byte chooses how one is made:
//! - a module that keeps the contract in every type and does anything in its functions (wasm-smith, with the feature `smith`);
//! - a fixed module whose memory is the input's: the answers of a guest as bytes, with pointers, lengths, discriminants
//!   and an allocator that nobody has to believe;
//! - a shipped policy with constants of its code changed.
//!
//! The compiler is in this process, without the child's limits; caps are lower than a host's instead.

use std::sync::{Arc, LazyLock};

use arbitrary::{Result, Unstructured};
use vassal::model::tokenizer::Tokenizer;
use vassal::sandbox::{
    Compilation, CompiledPolicy, Decision, HeadOffer, Instance, Limits, Needs, Progress, Sandbox, Scope, StartRequest,
    Step, ValueAnswer, VocabularyText, settings,
};
use vassal::token::Token;
use wasmparser::{Operator, Parser, Payload};

use crate::forged;

/// How every component begins, and every core module.
const MAGIC: &[u8] = b"\0asm";

/// The shipped policy that is edited: the smallest.
const SHIPPED: &[u8] = include_bytes!("../../guest/policies/vas_plain.wasm");

static SANDBOX: LazyLock<Sandbox> = LazyLock::new(|| {
    let limits = Limits {
        sequences: 4,
        component_bytes: 128 << 10,
        functions: 400,
        function_bytes: 16 << 10,
        function_loops: 8,
        function_operands: 64,
        function_locals: 128,
        memory_bytes: 1 << 20,
        // What counts is fuel; a busy machine is no finding.
        deadline_ms: 10_000,
        ..Limits::default()
    };
    Sandbox::new(limits, Compilation::InProcess).expect("a sandbox")
});

static TEXT: LazyLock<Arc<VocabularyText>> = LazyLock::new(|| {
    let gguf = crate::gguf::model().gguf().expect("the tiny model");
    VocabularyText::new(Arc::new(Tokenizer::from_gguf(&gguf).expect("its tokenizer")))
});

/// Loads a component, or makes one, and asks it for three steps and an end.
pub fn run(data: &[u8]) {
    if data.starts_with(MAGIC) {
        return load(data);
    }
    if let Ok(component) = made(&mut Unstructured::new(data)) {
        load(&component);
    }
}

fn made(u: &mut Unstructured) -> Result<Vec<u8>> {
    // The shipped policy takes the compiler some hundred times as long as the others.
    match u.int_in_range(0..=31)? {
        0 => edited(u),
        #[cfg(feature = "smith")]
        1..=12 => random(u),
        _ => forged::component(u),
    }
}

fn load(bytes: &[u8]) {
    let Ok(policy) = SANDBOX.compile("fuzzed", bytes) else { return };
    let offers = ["one", "two"].map(|name| HeadOffer { name: name.into(), kind: "value".into(), spread: 1.0 });
    let Ok(manifest) = policy.describe(&offers, Needs::ALL) else { return };
    assert!((1..=256).contains(&manifest.candidates_max) && manifest.rewind_max <= 256);
    assert!((1..=64).contains(&manifest.name.len()), "{:?}", manifest.name);
    let manifest = Arc::new(manifest);
    let none: [(&str, &str); 0] = [];
    let settings = settings::resolve(&manifest, &none, Scope::Tenant, SANDBOX.limits()).expect("initial values");
    let request = StartRequest {
        settings: &settings,
        prompt: &[70, 71, 72],
        candidates: 4,
        max_tokens: 8,
        temperature: 1.0,
        top_p: 1.0,
        seed: 7,
    };
    if let Ok(instance) = policy.start(&manifest, &request, &TEXT) {
        steps(&policy, instance);
    }
}

fn steps(policy: &CompiledPolicy, mut instance: Instance) {
    let (candidates, logits) = ([70, 71, 72, 73], [1.0, 0.5, 0.0, -2.0]);
    let mut kept = 0;
    for step in 0..4u32 {
        let ended = step == 3;
        let shown = if ended { 0 } else { candidates.len() };
        let appended: &[Token] = if step == 0 { &[] } else { &[70] };
        let progress = instance.decide(&Step {
            kept,
            appended,
            candidates: &candidates[..shown],
            logits: &logits[..shown],
            prefetched: 0,
            values: &[],
            log_normalizer: 2.0,
            entropy: 1.0,
            ended,
        });
        kept += appended.len() as u32;
        if !settled(&mut instance, progress, shown, kept) {
            break;
        }
    }
    let _ = (instance.take_notes(), policy.imports());
}

/// Answers what the guest asks for, until its step is decided; whether it was.
fn settled(instance: &mut Instance, mut progress: Progress, candidates: usize, response: u32) -> bool {
    loop {
        match progress {
            Progress::Wants(request) => {
                progress = instance.resume(ValueAnswer::Values(vec![0.25; request.len()]));
            }
            Progress::Decided(decision) => {
                check(&decision, candidates, response);
                return true;
            }
            Progress::Faulted(_) => return false,
        }
    }
}

/// What a decision promises to whoever acts on it.
fn check(decision: &Decision, candidates: usize, response: u32) {
    let size = TEXT.size();
    let delta = |delta: &f32| delta.abs() <= 10_000.0 || *delta == f32::NEG_INFINITY;
    match decision {
        Decision::Keep => {}
        Decision::Steer(steering) => {
            assert!(steering.adjust.is_empty() || steering.adjust.len() == candidates);
            assert!(steering.adjust.iter().all(delta));
            assert!(steering.blend.iter().all(|term| term.weight.abs() <= 10_000.0));
            assert!(steering.bias.iter().all(|(token, nats)| (*token as usize) < size && delta(nats)));
            assert!(steering.bias.windows(2).all(|pair| pair[0].0 < pair[1].0), "each token once");
            if let Some(bias) = &steering.vocabulary {
                assert!(bias.bits.len() == size.div_ceil(64) && delta(&bias.set) && delta(&bias.unset));
            }
        }
        Decision::Splice { remove, insert } => {
            assert!(*remove <= response && insert.len() <= 256 && (*remove > 0 || !insert.is_empty()));
            assert!(insert.iter().all(|token| (*token as usize) < size));
        }
        Decision::Stop(reason) => assert!(reason.len() <= 256 && !reason.chars().any(char::is_control)),
    }
}

/// A module that imports and exports what the contract has, with functions of any kind.
#[cfg(feature = "smith")]
fn random(u: &mut Unstructured) -> Result<Vec<u8>> {
    let config = wasm_smith::Config {
        available_imports: Some(forged::SHAPE.clone()),
        exports: Some(forged::SHAPE.clone()),
        max_funcs: 24,
        max_instructions: 60,
        max_memories: 1,
        max_tables: 2,
        max_table_elements: 1_000,
        generate_custom_sections: false,
        gc_enabled: false,
        exceptions_enabled: false,
        tail_call_enabled: false,
        threads_enabled: false,
        relaxed_simd_enabled: false,
        memory64_enabled: false,
        extended_const_enabled: false,
        ..wasm_smith::Config::default()
    };
    let module = wasm_smith::Module::new(config, u)?.to_bytes();
    forged::componentize(module).map_err(|_| arbitrary::Error::IncorrectFormat)
}

/// The shipped policy with up to 16 constants of its code changed, none of them in length.
fn edited(u: &mut Unstructured) -> Result<Vec<u8>> {
    static CONSTANTS: LazyLock<Vec<(usize, usize)>> = LazyLock::new(|| constants(SHIPPED));
    let mut component = SHIPPED.to_vec();
    for _ in 0..u.int_in_range(1..=16)? {
        let (start, end) = *u.choose(&CONSTANTS)?;
        let last = end - start - 1;
        for byte in &mut component[start..start + last] {
            *byte = u.arbitrary::<u8>()? | 0x80;
        }
        // A number's fifth byte has fewer bits than fit, and stays.
        if last < 4 {
            component[end - 1] = u.arbitrary::<u8>()? & 0x7f;
        }
    }
    Ok(component)
}

/// Where the 32-bit constants of a component's functions stand.
fn constants(component: &[u8]) -> Vec<(usize, usize)> {
    let mut places = Vec::new();
    for payload in Parser::new(0).parse_all(component) {
        let Ok(Payload::CodeSectionEntry(body)) = payload else { continue };
        let Ok(mut operators) = body.get_operators_reader() else { continue };
        while let Ok((operator, at)) = operators.read_with_offset() {
            if matches!(operator, Operator::I32Const { .. }) {
                places.push((at as usize + 1, operators.original_position() as usize));
            }
        }
    }
    places
}
