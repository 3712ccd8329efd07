//! The exported functions of the driver API, grouped as its manual groups them.
//!
//! Each is a thin `extern "C"` function: check the context, turn pointers into values, ask the device.
//! Functions that are not here are missing from the library too, and `cudarc` looks a symbol up when
//! it is first called, so a call of one says its name. Start at [`enter`].

mod devices;
mod errors;
mod graphs;
mod hooks;
mod launches;
mod memory;
mod modules;
mod objects;
mod streams;

use std::cell::Cell;

use crate::device::device;
use crate::device::finding::{Finding, Kind};

/// `CUresult`.
type Code = u32;

const INVALID_VALUE: Code = 1;
const OUT_OF_MEMORY: Code = 2;
const NOT_INITIALIZED: Code = 3;
const NO_DEVICE: Code = 100;
const INVALID_DEVICE: Code = 101;
const INVALID_CONTEXT: Code = 201;
const NO_BINARY_FOR_GPU: Code = 209;
const INVALID_PTX: Code = 218;
const UNSUPPORTED_PTX_VERSION: Code = 222;
const FILE_NOT_FOUND: Code = 301;
const INVALID_HANDLE: Code = 400;
const NOT_FOUND: Code = 500;
const NOT_READY: Code = 600;
const LAUNCH_OUT_OF_RESOURCES: Code = 701;
const NOT_SUPPORTED: Code = 801;
const CAPTURE_UNSUPPORTED: Code = 900;
const CAPTURE_INVALIDATED: Code = 901;
const CAPTURE_MERGE: Code = 902;
const CAPTURE_UNMATCHED: Code = 903;
const CAPTURE_UNJOINED: Code = 904;
const CAPTURE_ISOLATION: Code = 905;
const CAPTURE_IMPLICIT: Code = 906;
const CAPTURED_EVENT: Code = 907;

thread_local! {
    /// The context of this thread, 0 for none.
    static CURRENT: Cell<u64> = const { Cell::new(0) };
}

/// Runs the body of an exported function, and counts it. A panic must not cross into the caller.
fn enter(name: &'static str, body: impl FnOnce() -> Result<(), Code>) -> Code {
    hooks::count(name);
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)) {
        Ok(Ok(())) => 0,
        Ok(Err(code)) => code,
        Err(_) => {
            device().lock().report(Finding::new(Kind::Call, format!("{name}: the stand-in itself failed")));
            999
        }
    }
}

/// What every call needs that works on a device: an initialised driver, a context, no error that stays.
fn ready() -> Result<(), Code> {
    devices::initialised()?;
    if CURRENT.get() == 0 {
        return Err(INVALID_CONTEXT);
    }
    device().lock().sticky.map_or(Ok(()), Err)
}

/// Refuses a call, and says why where a test can read it.
fn refuse<T>(code: Code, kind: Kind, text: impl Into<String>) -> Result<T, Code> {
    device().lock().report(Finding::new(kind, text));
    Err(code)
}

/// Writes a result through a pointer of the caller.
///
/// # Safety
///
/// `to` is null or valid for a write.
unsafe fn give<T>(to: *mut T, value: T) -> Result<(), Code> {
    if to.is_null() {
        return Err(INVALID_VALUE);
    }
    // SAFETY: not null, so valid by the caller's promise.
    unsafe { to.write(value) };
    Ok(())
}

/// Exported functions: the body gives `Result<(), Code>` and may be unsafe, because the caller keeps
/// the driver's contract about its pointers.
macro_rules! exported {
    ($($(#[$meta:meta])* fn $name:ident($($argument:ident: $kind:ty),* $(,)?) $body:block)*) => { $(
        $(#[$meta])*
        #[unsafe(no_mangle)]
        #[allow(non_snake_case, reason = "the names are those of the driver API")]
        #[allow(clippy::too_many_arguments, reason = "the driver API is what it is")]
        unsafe extern "C" fn $name($($argument: $kind),*) -> crate::driver::Code {
            crate::driver::enter(stringify!($name), || $body)
        }
    )* };
}
use exported;
