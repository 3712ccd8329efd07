//! The target `head_file`: see `src/head_file.rs`.
#![no_main]

use vassal_fuzz::{head_file, seeds};

libfuzzer_sys::fuzz_target!(init: seeds::write_if_asked("head_file"), |data: &[u8]| head_file::run(data));
