//! The target `gguf`: see `src/gguf.rs`.
#![no_main]

use vassal_fuzz::{gguf, seeds};

libfuzzer_sys::fuzz_target!(init: seeds::write_if_asked("gguf"), |data: &[u8]| gguf::run(data));
