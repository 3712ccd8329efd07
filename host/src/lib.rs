//! Vassal.
pub mod policy_build;
pub mod token_search;
