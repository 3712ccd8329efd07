//! The one integration-test binary.

mod chains;
mod engine;
mod golden;
mod hostile;
mod identities;
mod loader;
mod policies;
mod rebuild;
mod sketches;
mod template;
mod tidy;
mod support;
mod tree;
