//! The target `audit`: see `src/audit.rs`.
#![no_main]

use vassal_fuzz::{audit, seeds};

libfuzzer_sys::fuzz_target!(init: seeds::write_if_asked("audit"), |data: &[u8]| audit::run(data));
