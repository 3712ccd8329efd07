//! Vassal.

pub mod model;
pub mod sandbox;
pub mod token;
pub mod token_search;
