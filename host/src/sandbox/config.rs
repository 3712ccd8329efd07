//! The runtime's configuration and its clock.
//!
//! Fuel is the contract (deterministic), the clock a backstop. What guests do not need is off: each proposal
//! that is on is one that ordinary compilers emit for a policy.

use super::limits::Limits;
use std::thread;
use std::time::Duration;
use wasmtime::{Config, Engine, InstanceAllocationStrategy, PoolingAllocationConfig};

/// Ticks of the clock in one of its windows, which lasts between 4/4 and 5/4 of its length.
const TICKS: u64 = 4;

/// What [`Limits`] mean to the runtime.
pub(super) fn config(limits: &Limits) -> Config {
    let mut config = Config::new();
    config
        // The component model's own concurrency would double the cost of a call; we suspend by hand.
        .concurrency_support(false)
        .consume_fuel(true)
        .epoch_interruption(true)
        .cranelift_nan_canonicalization(true)
        .relaxed_simd_deterministic(true)
        .memory_init_cow(true)
        .max_wasm_stack(limits.stack_bytes)
        .async_stack_size(limits.async_stack_bytes)
        // A trap's kind is what counts, and collecting frames costs more than the call.
        .wasm_backtrace_max_frames(None)
        .wasm_memory64(false)
        .wasm_multi_memory(false)
        .wasm_tail_call(false)
        .wasm_custom_page_sizes(false)
        .wasm_wide_arithmetic(false)
        .wasm_extended_const(false)
        .wasm_shared_everything_threads(false)
        .wasm_stack_switching(false)
        .wasm_gc(false)
        .allocation_strategy(InstanceAllocationStrategy::Pooling(pool(limits)));
    config
}

/// Room for `limits.sequences` live instances, whose shares were measured on Rust guests.
fn pool(limits: &Limits) -> PoolingAllocationConfig {
    const KIB: usize = 1 << 10;
    let n = limits.sequences;
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(n)
        .total_core_instances(n.saturating_mul(4))
        .total_memories(n)
        .total_tables(n.saturating_mul(2))
        .total_stacks(n)
        .max_core_instances_per_component(limits.core_instances)
        .max_memories_per_component(limits.memories)
        .max_tables_per_component(limits.tables)
        .max_memory_size(limits.memory_bytes)
        .table_elements(limits.table_elements)
        .linear_memory_keep_resident(256 * KIB)
        .table_keep_resident(16 * KIB)
        .async_stack_keep_resident(16 * KIB)
        .max_unused_warm_slots(n);
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
