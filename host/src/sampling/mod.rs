//! Sampling: which random number a draw uses.
//!
//! The draw itself sweeps the whole vocabulary and so belongs to the device
//! ([`vassal_kernels::Device::sample`]); the arithmetic of a blend is the contract's and stands once, in
//! [`vassal_guest::blend`], for guests and host alike. What is left is [`philox`].

pub mod philox;
