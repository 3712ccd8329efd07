//! Allocation, copies and fills.
//!
//! Copies from pageable memory are taken at the call and copies to it end before the call does, as the
//! driver promises; pinned memory is read and written when the work runs. While a stream captures,
//! copies are recorded with their host addresses. Start at `cuMemAlloc_v2`.

use std::ffi::{c_int, c_uint, c_void};

use super::objects::{enqueue, objects, run_now};
use super::{Code, INVALID_VALUE, OUT_OF_MEMORY, exported, give, ready, refuse};
use crate::device::allocation::Purpose;
use crate::device::finding::Kind;
use crate::device::work::{HostPointer, Work};
use crate::device::{State, device};

fn allocate(bytes: usize) -> Result<u64, Code> {
    ready()?;
    if bytes == 0 {
        return Err(INVALID_VALUE);
    }
    let short = |state: &State| bytes as u64 > state.settings.memory_bytes.saturating_sub(state.memory.used());
    let mut state = device().lock();
    if short(&state) {
        // Frees may be under way.
        drop(state);
        let newest = device().newest();
        device().wait(newest)?;
        state = device().lock();
        if short(&state) {
            return Err(OUT_OF_MEMORY);
        }
    }
    state.memory.allocate(bytes as u64).ok_or(OUT_OF_MEMORY)
}

/// Whether an allocation of the host's begins here; what is not is a finding.
fn owned(address: u64) -> Result<(), Code> {
    let state = device().lock();
    let found = state.memory.find(address).is_some_and(|allocation| allocation.base == address);
    let freed = state.memory.was_freed(address);
    drop(state);
    if found {
        return Ok(());
    }
    let what = if freed { "was freed before" } else { "is no allocation's address" };
    refuse(INVALID_VALUE, Kind::UseAfterFree, format!("free of {address:#x}, which {what}"))
}

fn is_pinned(pointer: *const c_void) -> bool {
    let state = device().lock();
    state.memory.find(pointer as u64).is_some_and(|allocation| allocation.purpose == Purpose::Host)
}

fn allocate_host(out: *mut *mut c_void, bytes: usize) -> Result<(), Code> {
    ready()?;
    let Some(held) = device().lock().memory.allocate_host(bytes as u64) else { return Err(OUT_OF_MEMORY) };
    // SAFETY: the caller keeps the driver's contract.
    unsafe { give(out, held.host_pointer().cast()) }
}

/// A copy to the device: the bytes now, or the address for later.
fn copy_in(to: u64, from: *const c_void, bytes: usize, stream: u64) -> Result<Work, Code> {
    if from.is_null() && bytes > 0 {
        return Err(INVALID_VALUE);
    }
    if is_pinned(from) || objects().is_capturing(stream)? {
        return Ok(Work::CopyIn { to, from: HostPointer(from.cast_mut()), bytes: bytes as u64 });
    }
    let mut taken = vec![0; bytes];
    // SAFETY: the caller promises `bytes` readable bytes at `from`.
    unsafe { std::ptr::copy_nonoverlapping(from.cast::<u8>(), taken.as_mut_ptr(), bytes) };
    Ok(Work::CopyBytes { to, bytes: taken })
}

fn copy_out(to: *mut c_void, from: u64, bytes: usize, stream: u64) -> Result<(), Code> {
    if to.is_null() && bytes > 0 {
        return Err(INVALID_VALUE);
    }
    let ticket = enqueue(stream, vec![Work::CopyOut { to: HostPointer(to), from, bytes: bytes as u64 }])?;
    match ticket {
        Some(ticket) if !is_pinned(to) => device().wait(ticket),
        _ => Ok(()),
    }
}

fn fill(to: u64, value: u32, width: u64, count: usize) -> Work {
    Work::Fill { to, pattern: value.to_le_bytes(), width, count: count as u64 }
}

fn is_device(address: u64) -> bool {
    let state = device().lock();
    state.memory.find(address).is_some_and(|allocation| allocation.purpose != Purpose::Host)
}

/// A copy whose direction the addresses tell.
fn copy_any(to: u64, from: u64, bytes: usize, stream: u64) -> Result<Option<u64>, Code> {
    let work = match (is_device(to), is_device(from)) {
        (true, false) => copy_in(to, from as *const c_void, bytes, stream)?,
        (false, true) => Work::CopyOut { to: HostPointer(to as *mut c_void), from, bytes: bytes as u64 },
        _ => Work::CopyDevice { to, from, bytes: bytes as u64 },
    };
    enqueue(stream, vec![work])
}

exported! {
    fn cuMemAlloc_v2(out: *mut u64, bytes: usize) {
        objects().forbid_in_capture()?;
        let address = allocate(bytes)?;
        // SAFETY: the caller keeps the driver's contract.
        unsafe { give(out, address) }
    }

    fn cuMemAllocAsync(out: *mut u64, bytes: usize, stream: u64) {
        if objects().is_capturing(stream)? {
            return refuse(super::NOT_SUPPORTED, Kind::Call, "allocations inside graphs are not implemented");
        }
        let address = allocate(bytes)?;
        // SAFETY: the caller keeps the driver's contract.
        unsafe { give(out, address) }
    }

    fn cuMemFree_v2(address: u64) {
        ready()?;
        if address == 0 {
            return Ok(());
        }
        owned(address)?;
        run_now(Work::Free { address })
    }

    fn cuMemFreeAsync(address: u64, stream: u64) {
        ready()?;
        if objects().is_capturing(stream)? {
            return refuse(super::NOT_SUPPORTED, Kind::Call, "frees inside graphs are not implemented");
        }
        owned(address)?;
        enqueue(stream, vec![Work::Free { address }]).map(|_| ())
    }

    fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) {
        ready()?;
        let (used, all) = {
            let state = device().lock();
            (state.memory.used(), state.settings.memory_bytes)
        };
        // SAFETY: the caller keeps the driver's contract.
        unsafe {
            give(free, all.saturating_sub(used) as usize)?;
            give(total, all as usize)
        }
    }

    fn cuMemHostAlloc(out: *mut *mut c_void, bytes: usize, _flags: c_uint) {
        allocate_host(out, bytes)
    }

    fn cuMemAllocHost_v2(out: *mut *mut c_void, bytes: usize) {
        allocate_host(out, bytes)
    }

    fn cuMemFreeHost(pointer: *mut c_void) {
        ready()?;
        owned(pointer as u64)?;
        // As the driver does, so that no work is left that uses it.
        let newest = device().newest();
        device().wait(newest)?;
        device().lock().memory.free(pointer as u64);
        Ok(())
    }

    fn cuMemHostGetDevicePointer_v2(out: *mut u64, pointer: *mut c_void, flags: c_uint) {
        ready()?;
        if flags != 0 || !is_pinned(pointer) {
            return Err(INVALID_VALUE);
        }
        // SAFETY: the caller keeps the driver's contract.
        unsafe { give(out, pointer as u64) }
    }

    fn cuMemHostGetFlags(out: *mut c_uint, pointer: *mut c_void) {
        ready()?;
        if !is_pinned(pointer) {
            return Err(INVALID_VALUE);
        }
        // SAFETY: the caller keeps the driver's contract. 2 says that it is mapped.
        unsafe { give(out, 2) }
    }

    fn cuMemcpyHtoD_v2(to: u64, from: *const c_void, bytes: usize) {
        ready()?;
        let work = copy_in(to, from, bytes, 0)?;
        run_now(work)
    }

    fn cuMemcpyHtoDAsync_v2(to: u64, from: *const c_void, bytes: usize, stream: u64) {
        ready()?;
        let work = copy_in(to, from, bytes, stream)?;
        enqueue(stream, vec![work]).map(|_| ())
    }

    fn cuMemcpyDtoH_v2(to: *mut c_void, from: u64, bytes: usize) {
        ready()?;
        if to.is_null() && bytes > 0 {
            return Err(INVALID_VALUE);
        }
        run_now(Work::CopyOut { to: HostPointer(to), from, bytes: bytes as u64 })
    }

    fn cuMemcpyDtoHAsync_v2(to: *mut c_void, from: u64, bytes: usize, stream: u64) {
        ready()?;
        copy_out(to, from, bytes, stream)
    }

    fn cuMemcpyDtoD_v2(to: u64, from: u64, bytes: usize) {
        ready()?;
        run_now(Work::CopyDevice { to, from, bytes: bytes as u64 })
    }

    fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, bytes: usize, stream: u64) {
        ready()?;
        enqueue(stream, vec![Work::CopyDevice { to, from, bytes: bytes as u64 }]).map(|_| ())
    }

    fn cuMemcpy(to: u64, from: u64, bytes: usize) {
        ready()?;
        objects().forbid_in_capture()?;
        match copy_any(to, from, bytes, 0)? {
            Some(ticket) => device().wait(ticket),
            None => Ok(()),
        }
    }

    fn cuMemcpyAsync(to: u64, from: u64, bytes: usize, stream: u64) {
        ready()?;
        copy_any(to, from, bytes, stream).map(|_| ())
    }

    fn cuMemsetD8_v2(to: u64, value: u8, count: usize) {
        ready()?;
        run_now(fill(to, value.into(), 1, count))
    }

    fn cuMemsetD16_v2(to: u64, value: u16, count: usize) {
        ready()?;
        run_now(fill(to, value.into(), 2, count))
    }

    fn cuMemsetD32_v2(to: u64, value: c_uint, count: usize) {
        ready()?;
        run_now(fill(to, value, 4, count))
    }

    fn cuMemsetD8Async(to: u64, value: u8, count: usize, stream: u64) {
        ready()?;
        enqueue(stream, vec![fill(to, value.into(), 1, count)]).map(|_| ())
    }

    fn cuMemsetD16Async(to: u64, value: u16, count: usize, stream: u64) {
        ready()?;
        enqueue(stream, vec![fill(to, value.into(), 2, count)]).map(|_| ())
    }

    fn cuMemsetD32Async(to: u64, value: c_uint, count: usize, stream: u64) {
        ready()?;
        enqueue(stream, vec![fill(to, value, 4, count)]).map(|_| ())
    }

    fn cuDeviceGetDefaultMemPool(out: *mut u64, _device: c_int) {
        // SAFETY: the caller keeps the driver's contract. There is one pool, and it has no properties.
        unsafe { give(out, 0x9001) }
    }

    fn cuDeviceGetMemPool(out: *mut u64, _device: c_int) {
        // SAFETY: as above.
        unsafe { give(out, 0x9001) }
    }

    fn cuMemPoolSetAttribute(_pool: u64, _which: c_int, _value: *mut c_void) {
        ready()
    }

    fn cuMemPoolTrimTo(_pool: u64, _keep: usize) {
        ready()
    }
}
