//! The runtime's configuration and its clock.
//!
//! Fuel is the contract (deterministic), the clock a backstop. The proposals that are on are the validator's
//! (`validate.rs`): each is one that ordinary compilers emit for a policy.

use super::limits::Limits;
use super::validate::FEATURES;
use sha2::{Digest, Sha256};
use std::hash::{Hash, Hasher};
use std::thread;
use std::time::Duration;
use wasmparser::WasmFeatures;
use wasmtime::{Config, Enabled, Engine, InstanceAllocationStrategy, PoolingAllocationConfig};

/// Ticks of the clock in one of its windows, which lasts between 4/4 and 5/4 of its length.
const TICKS: u64 = 4;

/// What decides the machine code: all that the compiler's child needs, since it runs nothing.
pub(super) fn compiler() -> Config {
    let mut config = Config::new();
    config
        // The component model's own concurrency would double the cost of a call; we suspend by hand.
        .concurrency_support(false)
        .consume_fuel(true)
        .epoch_interruption(true)
        .cranelift_nan_canonicalization(true)
        .memory_init_cow(true)
        // A trap's kind is what counts, and collecting frames costs more than the call.
        .wasm_backtrace_max_frames(None)
        .wasm_features(WasmFeatures::all(), false)
        .wasm_features(FEATURES, true);
    config
}

/// The same, with what [`Limits`] mean to the runtime: a pool of instances, and stacks.
pub(super) fn config(limits: &Limits) -> Config {
    let mut config = compiler();
    config
        .max_wasm_stack(limits.stack_bytes)
        .async_stack_size(limits.async_stack_bytes)
        .allocation_strategy(InstanceAllocationStrategy::Pooling(pool(limits)));
    config
}

/// A digest of all that decides whether an engine can run machine code: the runtime's version, the instruction
/// set, the settings and the proposals.
pub(super) fn settings_digest(engine: &Engine) -> [u8; 32] {
    /// Takes what is hashed, in place of a number that would be too short for a name.
    struct Digesting(Sha256);
    impl Hasher for Digesting {
        fn write(&mut self, bytes: &[u8]) {
            self.0.update((bytes.len() as u64).to_le_bytes());
            self.0.update(bytes);
        }
        fn finish(&self) -> u64 {
            0
        }
    }
    let mut hasher = Digesting(Sha256::new());
    engine.precompile_compatibility_hash().hash(&mut hasher);
    hasher.0.finalize().into()
}

/// Room for `limits.sequences` live instances, each as large in every count as one component may be: whoever admits
/// sequences counts instances, so what is admitted must fit, whatever its components declare. A guest has one memory, two
/// tables and four core instances at most; the rest is address space (4 GiB a memory, 8 TiB of the 128 that a process has by
/// default) that nobody touches.
fn pool(limits: &Limits) -> PoolingAllocationConfig {
    const KIB: usize = 1 << 10;
    let n = limits.sequences;
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(n)
        .total_core_instances(n.saturating_mul(limits.core_instances))
        .total_memories(n.saturating_mul(limits.memories))
        .total_tables(n.saturating_mul(limits.tables))
        .total_stacks(n)
        .max_core_instances_per_component(limits.core_instances)
        .max_memories_per_component(limits.memories)
        .max_tables_per_component(limits.tables)
        .max_memory_size(limits.memory_bytes)
        .table_elements(limits.table_elements)
        .linear_memory_keep_resident(256 * KIB)
        .table_keep_resident(16 * KIB)
        .async_stack_keep_resident(16 * KIB)
        .max_unused_warm_slots(n)
        // Only pages that a guest wrote are set back and kept, where the kernel tells which they are.
        .pagemap_scan(Enabled::Auto);
    pool
}

/// Starts the thread that advances the engine's epoch, and returns how many epochs a window has.
///
/// The thread holds the engine weakly: it ends within a tick of the last sandbox, policy or instance.
pub(super) fn start_clock(engine: &Engine, window_ms: u64) -> std::io::Result<u64> {
    let tick = Duration::from_millis(window_ms.div_ceil(TICKS).max(1));
    let weak = engine.weak();
    thread::Builder::new().name("policy-clock".into()).spawn(move || {
        loop {
            thread::sleep(tick);
            match weak.upgrade() {
                Some(engine) => engine.increment_epoch(),
                None => return,
            }
        }
    })?;
    // The tick that is under way counts as one.
    Ok(TICKS + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_compilers_code_is_for_the_engine_that_runs_it() {
        let small = Limits { sequences: 2, ..Limits::default() };
        let runs = Engine::new(&config(&small)).unwrap();
        let compiles = Engine::new(&compiler()).unwrap();
        assert_eq!(settings_digest(&runs), settings_digest(&compiles));
        let other = Engine::new(compiler().consume_fuel(false)).unwrap();
        assert_ne!(settings_digest(&other), settings_digest(&compiles));
    }

    #[test]
    fn the_compiler_has_the_same_proposals_off() {
        let engine = Engine::new(&compiler()).unwrap();
        let module = |section: &[u8]| [b"\0asm\x01\0\0\0", section].concat();
        assert!(engine.precompile_module(&module(&[5, 3, 1, 0, 1])).is_ok());
        for (proposal, section) in [
            ("threads", &[5, 4, 1, 3, 1, 1][..]),
            ("memory64", &[5, 3, 1, 4, 1]),
            ("multi-memory", &[5, 5, 2, 0, 1, 0, 1]),
            ("exceptions", &[1, 4, 1, 0x60, 0, 0, 13, 3, 1, 0, 0]),
            ("gc", &[1, 3, 1, 0x5f, 0]),
        ] {
            assert!(engine.precompile_module(&module(section)).is_err(), "{proposal}");
        }
    }
}
