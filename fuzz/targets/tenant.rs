//! The target `tenant`: see `src/tenant.rs`.
#![no_main]

use vassal_fuzz::{seeds, tenant};

libfuzzer_sys::fuzz_target!(init: seeds::write_if_asked("tenant"), |data: &[u8]| tenant::run(data));
