//! Devices and kernels: the machine side of Vassal, and the only home of `unsafe`.
//!
//! [`device::Device`] is everything the engine asks of the machine that owns the base model: weights,
//! passes over rows, caches, logits, draws. [`cpu::Cpu`] is the implementation that every machine can
//! run; it finds its instruction set at run time and gives the same bits on all of them. [`cuda::Cuda`] is the one for
//! NVIDIA cards; its driver is looked for when a card is opened. [`Format`]
//! names the weight formats that devices take. [`AnyDevice`] is whichever was chosen at the start.
//!
//! This crate knows no files, tokenizers, sequences or policies: matrices come as bytes, rows as plain
//! values. Start at [`device`], then [`cpu`]; `examples/linear.rs` measures the linear layers.

/// The version of the kernels' arithmetic, for audit records. Raised by one whenever a change alters any bit of any
/// result (logits, values, draws) for some input; left alone where all bits stay.
pub const KERNELS_VERSION: u32 = 1;

mod any;
mod checks;
pub mod cpu;
pub mod cuda;
pub mod device;
pub mod format;
mod pool;
pub mod sampling;

pub use any::{AnyDevice, DeviceChoice, Either};
pub use device::{
    CANDIDATES_MAX, CacheShape, Device, DeviceError, DeviceInfo, Draw, Drawn, LinearHead, ModelShape, OnePassHead,
    PAGE_TOKENS, Plan, Projections, RopePairing, Row, TopK, TopKQuery, VocabularyBias,
};
pub use format::Format;
pub use pool::Pool;
