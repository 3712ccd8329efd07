//! The CPU as a device.
//!
//! [`Cpu`] owns a pool of threads and the scratch of a pass; `device.rs` implements [`crate::Device`] on it.
//! Linear layers (`linear`, `tile*`, `pack`, `quantize`) run on 8-bit activations against the file's own 4- and
//! 8-bit weights, repacked; all else runs in f32 over eight lanes (`lanes`).
//!
//! The promise of this folder: **same bits everywhere**. Every instruction set, any number of threads, any
//! company in the batch: sums have one written order, integer parts are exact, and exp is our own polynomial.
//! So the scalar code is the readable definition, and tests compare the fast code with it bit for bit.

mod attention;
mod buffers;
mod cache;
mod device;
#[cfg(test)]
mod device_tests;
mod disjoint;
mod features;
mod isa;
mod lanes;
mod linear;
#[cfg(test)]
mod linear_tests;
mod norm;
mod pack;
mod quantize;
#[cfg(test)]
mod reference;
mod rope;
mod sample;
mod silu;
#[cfg(test)]
mod testing;
mod tile;
#[cfg(target_arch = "x86_64")]
mod tile_avx2;
#[cfg(target_arch = "x86_64")]
mod tile_vnni;
mod top_k;
mod vocabulary;

pub use buffers::{CpuCache, Logits, Rows, Vector};
pub use isa::Isa;
pub use pack::Matrix;

use crate::device::{DeviceError, Plan};
use crate::pool::Pool;
use isa::Detected;
use quantize::Activations;

/// The most threads that [`Cpu::new`] takes by itself: decoding is bound by memory long before.
const THREADS_BY_DEFAULT_MAX: usize = 16;

/// A CPU: the device that every machine has.
pub struct Cpu {
    isa: Detected,
    pool: Pool,
    /// The rows of the pass, between `begin` and `end`.
    plan: Option<Plan>,
    /// What [`Cpu::begin`](crate::Device::begin) learned about the plan.
    bounds: crate::checks::Bounds,
    activations: Activations,
    /// Keys and values of the pass before they go to the cache, `[R, KV * D]` each.
    keys: Vec<f32>,
    values: Vec<f32>,
    norm_epsilon: f32,
}

impl Cpu {
    /// The fastest instruction set that the processor has, with `threads` threads; by default as many as the
    /// process may use, at most 16.
    pub fn new(threads: Option<usize>) -> Cpu {
        Cpu::on(Detected::best(), threads.unwrap_or_else(threads_by_default))
    }

    /// A given instruction set and number of threads (at least 1 and at most 64 are used).
    ///
    /// # Errors
    /// [`DeviceError::Failed`] where the processor lacks the instruction set.
    pub fn with(isa: Isa, threads: usize) -> Result<Cpu, DeviceError> {
        let Some(detected) = Detected::new(isa) else {
            let message = format!("this processor has no {}", isa.name());
            return Err(DeviceError::Failed { operation: "cpu", message });
        };
        Ok(Cpu::on(detected, threads))
    }

    fn on(isa: Detected, threads: usize) -> Cpu {
        Cpu {
            isa,
            pool: Pool::new(threads),
            plan: None,
            bounds: crate::checks::Bounds::default(),
            activations: Activations::default(),
            keys: Vec::new(),
            values: Vec::new(),
            norm_epsilon: device::NORM_EPSILON_BEFORE_ANY_CACHE,
        }
    }
}

/// As many threads as the process may use, at most 16.
pub(crate) fn threads_by_default() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(THREADS_BY_DEFAULT_MAX)
}
