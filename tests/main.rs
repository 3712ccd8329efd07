//! The one integration-test binary.

mod policies;
mod rebuild;
mod sketches;
