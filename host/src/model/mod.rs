//! The base model's files: reading them, checking them, fetching them.
//!
//! - [`gguf`]: metadata and tensors of a GGUF file; hostile until proven otherwise.
//! - [`config`]: the numbers and weights of a Llama-family model, checked against each other.
//! - [`tensors`]: which tensor is which weight.
//! - [`llama`]: the forward pass, over the device trait.
//! - [`heads`]: value heads in files, checked against their model.
//! - [`tokenizer`]: text to tokens and back; [`token_bytes`]: what tokens stand for.
//! - [`template`]: conversations to the text a model continues.
//! - [`source`]: where models come from, and how they get here.
//! - [`synthetic`]: tiny models out of a seed, for tests and benchmarks.
//!
//! What is absent: kernels (those are `vassal_kernels`) and sequences (that is the engine).

pub mod config;
pub mod gguf;
pub mod heads;
pub mod llama;
pub mod source;
pub mod synthetic;
pub mod template;
pub mod tensors;
pub mod token_bytes;
pub mod tokenizer;
