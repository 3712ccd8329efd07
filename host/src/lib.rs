//! Vassal.
pub mod learning;
pub mod model;
