//! Vassal.

pub mod model;
pub mod token;
