//! The one integration-test binary.

mod loader;
