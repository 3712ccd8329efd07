//! The one integration-test binary.

mod hostile;
mod loader;
mod policies;
mod rebuild;
mod sketches;
mod template;
mod tidy;
