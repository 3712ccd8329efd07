//! What the fuzz targets do with their bytes: a function a target, and the inputs that each starts from.
//!
//! A target's `main` is libFuzzer's, in `targets/`; everything else is here. A function that returns has found
//! nothing; a panic, an overflow, an endless loop or too much memory is a finding. What is refused is no finding: most
//! inputs are, and that it happens by an error is the point.
//!
//! Inputs are files of the format as it is, so that any file of the world can be tried. Where mutated bytes alone would
//! rarely come past a checksum or a validator, an input that does not begin like a file is taken for choices by
//! which one is made. `docs/fuzzing.md` is the guide.

#![forbid(unsafe_code)]

pub mod audit;
pub mod component;
pub mod decision;
mod forged;
pub mod gguf;
pub mod head_file;
pub mod seeds;
pub mod tenant;
