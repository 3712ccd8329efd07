//! Learning: from rollouts of the base model to value heads, and the numbers that say what they are worth.
//!
//! The road: [`prompts`] → the engine samples [`rollouts`] → [`rewards`] score them → the engine runs them
//! again through its lower layers, whose rows [`features`] keeps → [`look_ahead`] fits V (Han et al.,
//! *Value Augmented Sampling*, arXiv 2405.06639) by [`ridge`] regression → [`one_pass`] distils it into a
//! head that needs no candidate rows → `model::heads` writes both. [`statistics`] has the estimators of
//! the evaluation.
//!
//! Everything here is a pure function of arrays and seeds: no model, device or clock is known, and the
//! results do not depend on the machine or the number of threads. What needs the engine is one trait,
//! [`features::FeatureSource`]. Start at [`penalties::fit`].

pub mod bilinear;
pub mod cholesky;
pub mod comparison;
pub mod decoding;
pub mod distilling;
pub mod features;
pub mod fitting;
pub mod journal;
pub mod look_ahead;
pub mod one_pass;
pub mod panel;
pub mod penalties;
pub mod preference;
pub mod prompts;
pub mod quality;
pub mod report;
pub mod rewards;
pub mod ridge;
pub mod rollouts;
pub mod statistics;
pub mod text_columns;
pub mod threads;
pub mod whitening;
