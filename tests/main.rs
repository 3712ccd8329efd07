//! The one integration-test binary.

mod audit;
mod chains;
mod cli;
mod embed;
mod engine;
mod golden;
mod hostile;
mod identities;
mod loader;
mod loading;
mod policies;
mod rebuild;
mod replay;
mod sketches;
mod support;
mod template;
mod tenants;
mod tidy;
mod tree;
