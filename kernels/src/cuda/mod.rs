//! An NVIDIA card as a device.
//!
//! [`Cuda`] owns one card, its kernels and the scratch of a pass; `device.rs` implements [`crate::Device`] on it. The
//! kernels are CUDA C++ in `kernels/cuda/`, compiled ahead (`binaries.rs`): no toolkit is needed to build or run, and the
//! driver is looked for when a card is opened. `layers.rs`, `heads.rs`, `top_k.rs` and `sample.rs` launch them behind
//! checked shapes; `gpu.rs` and `memory.rs` talk to the driver, which runs a pass as one graph where it can (`graphs.rs`).
//!
//! What holds: a row's numbers do not depend on its neighbours, for every order of summation follows from the weights'
//! shape and the row's position alone; a draw equals the CPU's given the same logits. Logits are not the CPU's to
//! the bit: activations are f16 here, 8-bit blocks there.

mod binaries;
mod buffers;
mod device;
mod failure;
mod gpu;
mod graphs;
mod heads;
mod layers;
mod memory;
mod pack;
mod parameters;
mod pending;
mod plan;
mod sample;
mod stage;
#[cfg(test)]
mod tests;
mod top_k;

pub use buffers::{CudaCache, Logits, Matrix, Rows, Vector};

use crate::device::{DeviceError, DeviceInfo};
use crate::pool::Pool;
use gpu::Gpu;
use memory::Scratch;
use plan::{DevicePlan, TileKey};

/// What norms outside any pass use before the first cache brought a model's own epsilon; as on the CPU.
const NORM_EPSILON_BEFORE_ANY_CACHE: f32 = 1e-5;

/// The most threads for the host's own work: policies of a batch are called on them, some microseconds each.
const THREADS_MAX: usize = 8;

/// An NVIDIA card of compute capability 8.0 or later.
pub struct Cuda {
    gpu: Gpu,
    pool: Pool,
    /// The rows of the pass, between `begin` and `end`.
    plan: Option<DevicePlan>,
    /// How attention groups queries, as the last pass had it: the next one's tiles are cut so when it begins.
    grouping: Option<TileKey>,
    norm_epsilon: f32,
    heads: heads::Held,
    scratch: Scratches,
}

/// Device memory that operations use and leave.
#[derive(Default)]
struct Scratches {
    /// The plan's arrays, and attention's query tiles.
    plan: Scratch,
    tiles: Scratch,
    /// Activations of a linear layer: f16, inverse scales, sums of blocks.
    activations: Scratch,
    /// Keys and values of a pass before RoPE, `[R, KV * D]` each, where RoPE pairs halves.
    keys: Scratch,
    values: Scratch,
    /// Splits of attention.
    parts: Scratch,
    /// What an operation sends, works on, and gives back.
    input: Scratch,
    work: Scratch,
    output: Scratch,
}

impl Cuda {
    /// How many cards there are.
    ///
    /// # Errors
    /// [`DeviceError::NoDriver`] and [`DeviceError::DriverTooOld`] where they cannot be counted.
    pub fn count() -> Result<usize, DeviceError> {
        Gpu::count()
    }

    /// What the card of this ordinal is, without opening it.
    ///
    /// # Errors
    /// Those of [`Cuda::count`], [`DeviceError::NoDevice`], and [`DeviceError::CardTooOld`].
    pub fn find(ordinal: usize) -> Result<DeviceInfo, DeviceError> {
        Ok(Gpu::find(ordinal)?.info())
    }

    /// Opens a card by its ordinal, from 0, and loads the kernels.
    ///
    /// # Errors
    /// Those of [`Cuda::find`] where there is no card to open; [`DeviceError::Failed`] where the driver refuses.
    pub fn open(ordinal: usize) -> Result<Cuda, DeviceError> {
        Cuda::open_with(ordinal, &|module| module.ptx.to_owned())
    }

    /// Opens a card with other PTX than that built ahead.
    fn open_with(ordinal: usize, ptx: &dyn Fn(&binaries::Module) -> String) -> Result<Cuda, DeviceError> {
        Ok(Cuda {
            gpu: Gpu::open(ordinal, ptx)?,
            pool: Pool::new(crate::cpu::threads_by_default().min(THREADS_MAX)),
            plan: None,
            grouping: None,
            norm_epsilon: NORM_EPSILON_BEFORE_ANY_CACHE,
            heads: heads::Held::default(),
            scratch: Scratches::default(),
        })
    }
}
