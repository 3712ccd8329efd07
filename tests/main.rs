//! The one integration-test binary.

mod loader;
mod policies;
mod rebuild;
mod sketches;
mod template;
