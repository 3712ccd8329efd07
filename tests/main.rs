//! The one integration-test binary.

mod attacks;
mod audit;
mod chains;
mod cli;
mod cli_bench;
mod cli_default_model;
mod cli_learning;
mod embed;
mod engine;
mod golden;
mod identities;
mod loader;
mod loading;
mod neighbours;
mod policies;
mod program;
mod prompts;
mod rebuild;
mod replay;
mod sketches;
mod support;
mod template;
mod tenants;
mod tidy;
mod tree;
