//! Vassal.

pub mod sandbox;
pub mod token;
pub mod token_search;
