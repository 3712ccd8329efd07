//! Policies and rewards in WebAssembly text: what safe Rust cannot make, around a guest that otherwise keeps its contract.
//!
//! [`Forged`] and [`ForgedReward`] have the parts that a test replaces. Records lie where the canonical form puts them, at
//! fixed places: a manifest at 64; of a policy the plan at 256, and the answer to `decide` at 512, where nothing is `keep`;
//! of a reward the scores' place and number at 1,024. [`put`] writes there.

use vassal::sandbox::{CompiledPolicy, CompiledReward, Exchange, Instance, LoadError, ScoreFault};

use super::start;
use crate::support::sandbox;

pub(super) const WIT: &str = include_str!("../../wit/policy-0.1/policy.wit");
pub(super) const REWARD_WIT: &str = include_str!("../../wit/reward-0.1/reward.wit");

/// `cabi_realloc` as a bump allocator whose memory every call begins anew.
pub(crate) const BUMP: &str = "(local.set $at (i32.and (i32.add (global.get $next) (i32.const 7)) (i32.const -8)))
    (global.set $next (i32.add (local.get $at) (local.get 3)))
    (local.get $at)";

/// A policy in WebAssembly text that keeps the contract but for what a test forges.
pub(crate) struct Forged<'a> {
    pub(crate) wit: &'a str,
    /// Pages of 64 KiB.
    pub(crate) memory: u32,
    /// Imports of the module.
    pub(crate) imports: &'a str,
    /// Further fields of the module.
    pub(crate) fields: &'a str,
    /// The body of `cabi_realloc`, which has a local `$at`; `$started` is set once `start` has run.
    pub(crate) realloc: &'a str,
    /// The body of `describe`, which returns where the manifest lies.
    pub(crate) describe: &'a str,
    /// The body of `decide`, whose parameters are numbered; it returns where its answer lies: 512 holds `keep`.
    pub(crate) decide: &'a str,
}

impl Default for Forged<'_> {
    fn default() -> Self {
        let describe = "i32.const 64";
        Self { wit: WIT, memory: 2, imports: "", fields: "", realloc: BUMP, describe, decide: "i32.const 512" }
    }
}

impl Forged<'_> {
    pub(super) fn load(&self) -> Result<CompiledPolicy, LoadError> {
        sandbox().compile("forged", &self.bytes())
    }

    /// An instance of it, without settings.
    pub(super) fn start(&self) -> Instance {
        start(&self.load().unwrap(), &[]).unwrap()
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let Self { memory, imports, fields, realloc, describe, decide, .. } = self;
        // The manifest lies at 64: name, version and summary; 20 candidates; no rewind, heads, settings, needs.
        // The plan lies at 256, `ok` with 20 candidates.
        let module = format!(
            r#"(module
            {imports}
            (memory (export "memory") {memory})
            (global $next (mut i32) (i32.const 4096))
            (global $started (mut i32) (i32.const 0))
            (data (i32.const 16) "forged1.0")
            (data (i32.const 64) "\10\00\00\00\06\00\00\00\16\00\00\00\03\00\00\00\10\00\00\00\06\00\00\00\14")
            (data (i32.const 256) "\00\00\00\00\14")
            {fields}
            (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (local $at i32) {realloc})
            (func (export "vassal:policy/policy@0.1.0#describe") (param i32 i32) (result i32)
                {describe})
            (func (export "vassal:policy/policy@0.1.0#start")
                (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 f32 f32 i64) (result i32)
                (global.set $started (i32.const 1)) i32.const 256)
            (func (export "vassal:policy/policy@0.1.0#decide")
                (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 f32 f32 i32) (result i32)
                (global.set $next (i32.const 4096)) {decide}))"#
        );
        componentize(&wat::parse_str(&module).unwrap(), self.wit, "aligner")
    }
}

/// A reward in WebAssembly text that keeps the contract but for what a test forges. Its name is `forged`, its range
/// -1 to 1, and every exchange scores 0.5.
pub(super) struct ForgedReward<'a> {
    pub(super) wit: &'a str,
    pub(super) imports: &'a str,
    /// Further fields of the module, among them data that lies over the manifest's, which is at 64.
    pub(super) fields: &'a str,
    /// The body of `describe`, which returns where the manifest lies.
    pub(super) describe: &'a str,
    /// The body of `score`, whose parameters are the exchanges' place and number; it returns where place and
    /// number of the scores lie: 1,024 has forty that are 0.5.
    pub(super) score: &'a str,
}

/// As many scores as exchanges.
const HONEST: &str = "(i32.store (i32.const 1028) (local.get 1)) i32.const 1024";

impl Default for ForgedReward<'_> {
    fn default() -> Self {
        Self { wit: REWARD_WIT, imports: "", fields: "", describe: "i32.const 64", score: HONEST }
    }
}

impl ForgedReward<'_> {
    pub(super) fn bytes(&self) -> Vec<u8> {
        let Self { imports, fields, describe, score, .. } = self;
        let halves = "\\00\\00\\00\\00\\00\\00\\e0\\3f".repeat(40);
        // Name, version and summary, then the range at 88 and 96.
        let module = format!(
            r#"(module
            {imports}
            (memory (export "memory") 2)
            (global $next (mut i32) (i32.const 4096))
            (data (i32.const 16) "forged1.0")
            (data (i32.const 64) "\10\00\00\00\06\00\00\00\16\00\00\00\03\00\00\00\10\00\00\00\06\00\00\00")
            (data (i32.const 88) "\00\00\00\00\00\00\f0\bf\00\00\00\00\00\00\f0\3f")
            (data (i32.const 1024) "\00\08\00\00")
            (data (i32.const 2048) "{halves}")
            {fields}
            (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (local $at i32) {BUMP})
            (func (export "vassal:reward/reward@0.1.0#describe") (result i32) {describe})
            (func (export "vassal:reward/reward@0.1.0#score") (param i32 i32) (result i32) {score}))"#
        );
        componentize(&wat::parse_str(&module).unwrap(), self.wit, "judge")
    }

    pub(super) fn load(&self) -> Result<CompiledReward, LoadError> {
        sandbox().compile_reward("forged", &self.bytes())
    }

    pub(super) fn scores(&self, count: usize) -> Vec<Result<f64, ScoreFault>> {
        self.load().unwrap().score(&vec![Exchange { prompt: "p", response: "r" }; count])
    }
}

/// Wraps a core module as a component of a world in `wit`.
pub(super) fn componentize(module: &[u8], wit: &str, world: &str) -> Vec<u8> {
    let mut resolve = wit_parser::Resolve::default();
    let package = resolve.push_str("contract.wit", wit).unwrap();
    let world = resolve.select_world(&[package], Some(world)).unwrap();
    let mut module = module.to_vec();
    wit_component::embed_component_metadata(&mut module, &resolve, world, wit_component::StringEncoding::UTF8).unwrap();
    wit_component::ComponentEncoder::default().module(&module).unwrap().encode().unwrap()
}

/// Writes 32-bit numbers at places, for the body of a function.
pub(super) fn put(numbers: &[(u32, u32)]) -> String {
    numbers.iter().map(|(at, number)| format!("(i32.store (i32.const {at}) (i32.const {number})) ")).collect()
}

/// A component in text, loaded.
pub(super) fn load_text(component: &str) -> Result<CompiledPolicy, LoadError> {
    sandbox().compile("text", &wat::parse_str(component).unwrap())
}
