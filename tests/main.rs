//! The one integration-test binary.
mod hostile;
