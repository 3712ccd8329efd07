//! The shipped policy `vas`.
