//! Initialisation, devices with their attributes, contexts.
//!
//! All devices are the same one under different numbers. Attributes are those of a large server card;
//! one that is not listed is refused rather than invented. Start at [`attribute`].

use std::ffi::{c_char, c_int, c_uint};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{CURRENT, Code, INVALID_DEVICE, INVALID_VALUE, NO_DEVICE, NOT_INITIALIZED, exported, give, ready, refuse};
use crate::device::device;
use crate::device::finding::Kind;
use crate::device::settings::Settings;

static INITIALISED: AtomicBool = AtomicBool::new(false);
/// How often each device's primary context is held.
static PRIMARY: Mutex<Vec<u32>> = Mutex::new(Vec::new());
/// Handles of primary contexts are this and the device's number.
const CONTEXT: u64 = 0xc0de_0000;

pub(super) fn initialised() -> Result<(), Code> {
    if INITIALISED.load(Ordering::Relaxed) { Ok(()) } else { Err(NOT_INITIALIZED) }
}

fn settings() -> Settings {
    device().lock().settings
}

fn known(number: c_int) -> Result<(), Code> {
    initialised()?;
    if (0..settings().devices as c_int).contains(&number) { Ok(()) } else { Err(INVALID_DEVICE) }
}

/// The most shared memory a block may have, static and dynamic.
pub(super) fn shared_bytes_max(settings: &Settings) -> u64 {
    match settings.sm {
        90.. => 232_448,
        86 | 89 => 101_376,
        80..=88 => 166_912,
        _ => 65_536,
    }
}

/// The number of registers and threads is the same for all that we play.
fn attribute(number: c_int, settings: &Settings) -> Option<c_int> {
    Some(match number {
        1..=3 => 1024,                                    // threads a block, and its first two dimensions
        4 => 64,                                          // third dimension
        5 => c_int::MAX,                                  // blocks in x
        6 | 7 => 65_535,                                  // blocks in y and z
        8 => 49_152,                                      // shared memory a block without opting in
        9 => 65_536,                                      // constant memory
        10 => 32,                                         // lanes of a warp
        12 | 82 => 65_536,                                // registers a block, a multiprocessor
        13 => 1_755_000,                                  // clock, kHz
        15 | 31 | 41 | 83 | 115 => 1, // overlap, concurrent kernels, one address space, managed, pools
        16 => settings.multiprocessors as c_int, //
        17 => 0,                      // no limit on time
        18 => 0,                      // not integrated
        19 => 1,                      // maps host memory
        20 => 0,                      // default compute mode
        32 => 1,                      // ECC
        33 | 34 | 50 => 0,            // bus, device, domain
        36 => 2_619_000,              // memory clock, kHz
        37 => 5_120,                  // memory bus, bits
        38 => 50 << 20,               // L2
        39 => 2048,                   // threads a multiprocessor
        40 => 3,                      // copy engines
        75 => (settings.sm / 10) as c_int, // compute capability
        76 => (settings.sm % 10) as c_int, //
        78..=80 => 1,                 // stream priorities, caching of globals and locals
        81 => shared_bytes_max(settings) as c_int + 1024, // shared memory a multiprocessor
        88 | 89 | 95 | 96 => 0,       // pageable and concurrent managed access, cooperative launches
        97 => shared_bytes_max(settings) as c_int, // shared memory a block that opts in
        106 => 32,                    // blocks a multiprocessor
        108 => 31 << 20,              // L2 that may be set aside
        109 => 128 << 20,             // window of it
        111 => 1024,                  // shared memory that the system keeps
        _ => return None,
    })
}

exported! {
    fn cuInit(flags: c_uint) {
        if flags != 0 {
            return Err(INVALID_VALUE);
        }
        if settings().devices == 0 {
            return Err(NO_DEVICE);
        }
        INITIALISED.store(true, Ordering::Relaxed);
        super::hooks::report_at_exit();
        Ok(())
    }

    fn cuDriverGetVersion(out: *mut c_int) {
        // SAFETY: the caller keeps the driver's contract.
        unsafe { give(out, settings().driver as c_int) }
    }

    fn cuDeviceGetCount(out: *mut c_int) {
        initialised()?;
        // SAFETY: the caller keeps the driver's contract.
        unsafe { give(out, settings().devices as c_int) }
    }

    fn cuDeviceGet(out: *mut c_int, ordinal: c_int) {
        known(ordinal)?;
        // SAFETY: the caller keeps the driver's contract.
        unsafe { give(out, ordinal) }
    }

    fn cuDeviceGetName(out: *mut c_char, bytes: c_int, number: c_int) {
        known(number)?;
        let name = b"Vassal stand-in (PTX interpreter)\0";
        if out.is_null() || bytes < 1 {
            return Err(INVALID_VALUE);
        }
        let count = (bytes as usize).min(name.len());
        // SAFETY: the caller gave room for `bytes` bytes, and no more are written.
        unsafe {
            std::ptr::copy_nonoverlapping(name.as_ptr().cast::<c_char>(), out, count);
            out.add(count - 1).write(0);
        }
        Ok(())
    }

    fn cuDeviceGetUuid(out: *mut [u8; 16], number: c_int) {
        known(number)?;
        // SAFETY: the caller keeps the driver's contract.
        unsafe { give(out, [number as u8; 16]) }
    }

    fn cuDeviceGetUuid_v2(out: *mut [u8; 16], number: c_int) {
        known(number)?;
        // SAFETY: the caller keeps the driver's contract.
        unsafe { give(out, [number as u8; 16]) }
    }

    fn cuDeviceTotalMem_v2(out: *mut usize, number: c_int) {
        known(number)?;
        // SAFETY: the caller keeps the driver's contract.
        unsafe { give(out, settings().memory_bytes as usize) }
    }

    fn cuDeviceGetAttribute(out: *mut c_int, which: c_int, number: c_int) {
        known(number)?;
        let Some(value) = attribute(which, &settings()) else {
            return refuse(INVALID_VALUE, Kind::Call, format!("device attribute {which} is not known to the stand-in"));
        };
        // SAFETY: the caller keeps the driver's contract.
        unsafe { give(out, value) }
    }

    fn cuDevicePrimaryCtxRetain(out: *mut u64, number: c_int) {
        known(number)?;
        device().lock().sticky.map_or(Ok(()), Err)?;
        let mut held = PRIMARY.lock().unwrap_or_else(PoisonError::into_inner);
        if held.len() <= number as usize {
            held.resize(number as usize + 1, 0);
        }
        held[number as usize] += 1;
        // SAFETY: the caller keeps the driver's contract.
        unsafe { give(out, CONTEXT + number as u64) }
    }

    fn cuDevicePrimaryCtxRelease_v2(number: c_int) {
        known(number)?;
        let mut held = PRIMARY.lock().unwrap_or_else(PoisonError::into_inner);
        match held.get_mut(number as usize) {
            Some(count) if *count > 0 => *count -= 1,
            _ => return Err(super::INVALID_CONTEXT),
        }
        if held.iter().all(|count| *count == 0) {
            let newest = device().newest();
            _ = device().wait(newest);
            super::hooks::report_leaks();
        }
        Ok(())
    }

    fn cuDevicePrimaryCtxGetState(number: c_int, flags: *mut c_uint, active: *mut c_int) {
        known(number)?;
        let held = PRIMARY.lock().unwrap_or_else(PoisonError::into_inner);
        let count = held.get(number as usize).copied().unwrap_or(0);
        // SAFETY: the caller keeps the driver's contract.
        unsafe {
            give(flags, 0)?;
            give(active, c_int::from(count > 0))
        }
    }

    fn cuDevicePrimaryCtxSetFlags_v2(number: c_int, _flags: c_uint) {
        known(number)
    }

    fn cuCtxGetCurrent(out: *mut u64) {
        initialised()?;
        // SAFETY: the caller keeps the driver's contract.
        unsafe { give(out, CURRENT.get()) }
    }

    fn cuCtxSetCurrent(context: u64) {
        initialised()?;
        if context != 0 && !(CONTEXT..CONTEXT + u64::from(settings().devices)).contains(&context) {
            return Err(super::INVALID_CONTEXT);
        }
        CURRENT.set(context);
        Ok(())
    }

    fn cuCtxGetDevice(out: *mut c_int) {
        ready()?;
        // SAFETY: the caller keeps the driver's contract.
        unsafe { give(out, (CURRENT.get() - CONTEXT) as c_int) }
    }

    fn cuCtxSynchronize() {
        ready()?;
        super::objects::objects().forbid_in_capture()?;
        let newest = device().newest();
        device().wait(newest)
    }

    fn cuCtxSetFlags(_flags: c_uint) {
        ready()
    }

    fn cuCtxSetLimit(_limit: c_int, _value: usize) {
        ready()
    }

    fn cuCtxSetCacheConfig(_config: c_int) {
        ready()
    }

    fn cuCtxGetStreamPriorityRange(least: *mut c_int, greatest: *mut c_int) {
        ready()?;
        // SAFETY: the caller keeps the driver's contract.
        unsafe {
            give(least, 0)?;
            give(greatest, -5)
        }
    }

    fn cuProfilerStart() {
        ready()
    }

    fn cuProfilerStop() {
        ready()
    }
}
