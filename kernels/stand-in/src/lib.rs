//! A stand-in for NVIDIA's driver library that interprets PTX on the CPU, for tests only.
//!
//! The cdylib exports the functions of the driver API that `cudarc` looks up; loaded in place of
//! `libcuda.so` it runs unmodified host code: modules, allocations, streams, graphs, launches, copies.
//! Every kernel runs under checks (bounds, uninitialised reads, races, barriers), and faults can be
//! provoked. It is not a model of speed, caches or of the inner order of sums in tensor cores, and no
//! shipped program links or finds it.
//!
//! Start at [`child`] to use it from a test; at `driver/` for what is exported; at `machine/` for how
//! kernels run. README.md says what is supported.

pub mod child;
mod decode;
mod device;
pub mod direct;
mod driver;
mod machine;
mod number;
mod ptx;

pub use device::finding::{Finding, Kind};
