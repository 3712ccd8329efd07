//! The reward contract's records as the runtime lowers and lifts them; nothing else. Their shapes follow
//! `wit/reward-0.1/reward.wit`, with which `contract.rs` compares a guest's types before any of these is used.

use wasmtime::component::{ComponentType, Lift, Lower};

#[derive(ComponentType, Lift)]
#[component(record)]
pub(super) struct Manifest {
    pub(super) name: String,
    pub(super) version: String,
    pub(super) summary: String,
    pub(super) minimum: f64,
    pub(super) maximum: f64,
}

#[derive(ComponentType, Lower)]
#[component(record)]
pub(super) struct Exchange<'a> {
    pub(super) prompt: &'a str,
    pub(super) response: &'a str,
}
