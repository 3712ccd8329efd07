//! The target `decision`: see `src/decision.rs`.
#![no_main]

use vassal_fuzz::{decision, seeds};

libfuzzer_sys::fuzz_target!(init: seeds::write_if_asked("decision"), |data: &[u8]| decision::run(data));
