//! Vassal aligns a frozen language model while it decodes, by policies that nobody has to trust.
//!
//! A host owns the base model and calls sandboxed WebAssembly components, the policies, inside the
//! decoding loop. Start at [`host::Host`] (one prompt, one answer) or at [`engine::Engine`] (many
//! sequences); `ARCHITECTURE.md` follows one decoding step from end to end.
//!
//! Floors: `cli`, `tenant`, `signature`, `audit`, `host`, `learning` → `engine` → `model` | `sampling` | `sandbox` →
//! `vassal-kernels`, `token`. The three in the middle do not import each other.

pub mod audit;
pub mod cli;
pub mod engine;
pub mod error;
mod files;
mod hex;
pub mod host;
pub mod learning;
pub mod memory;
pub mod model;
pub mod names;
pub mod policy_build;
pub mod policy_check;
pub mod request;
pub mod sampling;
pub mod sandbox;
pub mod shipped;
pub mod signature;
pub mod tenant;
pub mod token;
pub mod token_search;
