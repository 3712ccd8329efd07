//! The target `component`: see `src/component.rs`.
#![no_main]

use vassal_fuzz::{component, seeds};

libfuzzer_sys::fuzz_target!(init: seeds::write_if_asked("component"), |data: &[u8]| component::run(data));
