//! What a test asks of the stand-in itself: findings, settings, a fresh start.
//!
//! These are exported beside the driver's functions; `child.rs` calls them through the loaded library.
//! At exit, leaks are reported once more, for hosts that never release their context. Start at
//! [`vassal_stand_in_findings`].

use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_int};
use std::sync::{Mutex, Once, PoisonError};

use super::objects::objects;
use super::{INVALID_VALUE, exported, refuse};
use crate::device::device;
use crate::device::finding::{Finding, Kind};
use crate::device::settings::Settings;

unsafe extern "C" {
    fn atexit(function: extern "C" fn()) -> c_int;
}

extern "C" fn at_exit() {
    report_leaks();
}

/// Registers the report of leaks for the end of the process.
pub(super) fn report_at_exit() {
    static ONCE: Once = Once::new();
    // SAFETY: the function is a plain one of this library, which is never unloaded: `cudarc` keeps it for ever.
    ONCE.call_once(|| _ = unsafe { atexit(at_exit) });
}

/// Reports what was not freed, unless an error stays: then frees fail on hardware too.
pub(super) fn report_leaks() {
    let broken = device().lock().sticky.is_some();
    if !broken {
        device().report_leaks();
        let mut objects = objects();
        let (graphs, executables) = (objects.graphs.drain().count(), objects.executables.drain().count());
        drop(objects);
        for (count, what) in [(graphs, "graphs"), (executables, "instantiated graphs")] {
            if count > 0 {
                device().lock().report(Finding::new(Kind::Leak, format!("{count} {what} were never destroyed")));
            }
        }
    }
}

/// Calls of each function so far.
static CALLS: Mutex<BTreeMap<&'static str, u64>> = Mutex::new(BTreeMap::new());

/// Counts a call.
pub(super) fn count(name: &'static str) {
    *CALLS.lock().unwrap_or_else(PoisonError::into_inner).entry(name).or_default() += 1;
}

/// How often the host called this function of the driver; of all of them, where no name is given.
///
/// # Safety
///
/// `name` is null or a C string.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn vassal_stand_in_calls(name: *const c_char) -> u64 {
    let calls = CALLS.lock().unwrap_or_else(PoisonError::into_inner);
    if name.is_null() {
        return calls.values().sum();
    }
    // SAFETY: not null, so a C string by contract.
    let name = unsafe { CStr::from_ptr(name) }.to_string_lossy();
    calls.get(name.as_ref()).copied().unwrap_or(0)
}

/// Copies the findings, a line each, into `out` (at most `bytes` with the zero at the end); gives the
/// bytes that all of them need.
///
/// # Safety
///
/// `out` is null or has room for `bytes` bytes.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn vassal_stand_in_findings(out: *mut c_char, bytes: usize) -> usize {
    let newest = device().newest();
    _ = device().wait(newest);
    let state = device().lock();
    let text: String = state.findings.iter().map(|finding| format!("{finding}\n")).collect();
    if !out.is_null() && bytes > 0 {
        let count = text.len().min(bytes - 1);
        // SAFETY: `count` and the zero are within the caller's room.
        unsafe {
            std::ptr::copy_nonoverlapping(text.as_ptr().cast::<c_char>(), out, count);
            out.add(count).write(0);
        }
    }
    text.len() + 1
}

exported! {
    /// Changes settings, as the environment variable does; launches are counted from here.
    fn vassal_stand_in_configure(text: *const c_char) {
        if text.is_null() {
            return Err(INVALID_VALUE);
        }
        // SAFETY: not null, and a C string by contract.
        let text = unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned();
        let settings = device().lock().settings;
        match settings.parse(&text) {
            Ok(settings) => {
                device().configure(settings);
                Ok(())
            }
            Err(message) => refuse(INVALID_VALUE, Kind::Call, message),
        }
    }

    /// Forgets findings and the error that stays, and goes back to the default settings.
    fn vassal_stand_in_reset() {
        device().reset(Settings::default());
        Ok(())
    }
}
