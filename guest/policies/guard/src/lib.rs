//! The shipped policy `guard`.
