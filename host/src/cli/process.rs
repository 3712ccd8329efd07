//! What the whole process has cost so far: how soon it spoke, and how much memory it took.
//!
//! The clock starts with the program ([`started`]); the peak is the kernel's own account of resident memory
//! (VmHWM), which only Linux gives.

use std::sync::OnceLock;
use std::time::Instant;

use serde_json::{Value, json};

use crate::host::Host;

static STARTED: OnceLock<Instant> = OnceLock::new();
static FIRST_TEXT: OnceLock<f64> = OnceLock::new();

/// Starts the clock.
pub(super) fn started() {
    STARTED.get_or_init(Instant::now);
}

/// Notes that text is there; only the first time counts.
pub(super) fn has_text() {
    if let Some(started) = STARTED.get() {
        FIRST_TEXT.get_or_init(|| started.elapsed().as_secs_f64());
    }
}

/// Seconds from the program's start to its first text; none where there was none.
fn first_text_seconds() -> Option<f64> {
    FIRST_TEXT.get().copied()
}

/// The most memory that was resident at once, bytes.
fn peak_resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

/// For `--json`.
pub(super) fn report(host: &Host) -> Value {
    let model = host.model();
    json!({
        "first_text_seconds": first_text_seconds(), "peak_resident_bytes": peak_resident_bytes(),
        "model_bytes": model.size_bytes, "cache_bytes_a_token": model.cache_bytes_per_token,
    })
}

/// For people, a line.
pub(super) fn line(host: &Host) -> String {
    let mut parts = Vec::new();
    if let Some(seconds) = first_text_seconds() {
        parts.push(format!("first text after {seconds:.2} s"));
    }
    if let Some(bytes) = peak_resident_bytes() {
        let (peak, model) = (bytes as f64 / 1e6, host.model().size_bytes as f64 / 1e6);
        parts.push(format!("{peak:.0} MB of memory at most, for a model of {model:.0} MB"));
    }
    if parts.is_empty() { String::new() } else { format!("\n{}\n", parts.join("; ")) }
}
