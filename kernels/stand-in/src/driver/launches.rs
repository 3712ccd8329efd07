//! Launches: limits of the device and of the kernel, parameters from the host's pointers.
//!
//! The driver API gives no count of parameters, so each pointer is read through the system, which says
//! if it is none: too few parameters tend to end there, too many cannot be seen. Start at [`launch`].

use std::ffi::{c_int, c_uint, c_void};
use std::fs::File;
use std::os::unix::fs::FileExt;

use super::objects::{enqueue, objects};
use super::{
    Code, INVALID_HANDLE, INVALID_VALUE, LAUNCH_OUT_OF_RESOURCES, NOT_SUPPORTED, exported, give, ready, refuse,
};
use crate::decode::Kernel;
use crate::device::device;
use crate::device::finding::Kind;
use crate::device::work::{HostPointer, Work};
use crate::machine::Launch;

const GRID_MAX: [u32; 3] = [i32::MAX as u32, 65_535, 65_535];
const BLOCK_MAX: [u32; 3] = [1024, 1024, 64];
const THREADS_MAX: u64 = 1024;

/// Keys of `extra`.
const PARAM_END: usize = 0;
const PARAM_BUFFER: usize = 1;
const PARAM_BUFFER_SIZE: usize = 2;

/// `CUlaunchConfig`.
#[repr(C)]
struct Config {
    grid: [c_uint; 3],
    block: [c_uint; 3],
    shared_bytes: c_uint,
    stream: u64,
    attributes: *const Attribute,
    attribute_count: c_uint,
}

/// `CUlaunchAttribute`.
#[repr(C)]
struct Attribute {
    id: c_uint,
    padding: [u8; 4],
    value: [u64; 8],
}

/// Attributes that change nothing where work runs in order: synchronisation policy, priority,
/// dependent launches.
const HARMLESS_ATTRIBUTES: [c_uint; 4] = [0, 3, 6, 8];

/// Bytes at an address of this process, or nothing if there are none.
fn read_memory(address: u64, out: &mut [u8]) -> Option<()> {
    // A wrong pointer gives an error here, where reading it would end the process.
    File::open("/proc/self/mem").ok()?.read_exact_at(out, address).ok()
}

fn params(kernel: &Kernel, pointers: *const *const c_void, extra: *const *const c_void) -> Result<Vec<u8>, Code> {
    let mut out = vec![0; kernel.param_bytes as usize];
    if !extra.is_null() {
        return params_in_one(kernel, extra);
    }
    let name = &kernel.name;
    if pointers.is_null() && !kernel.params.is_empty() {
        let text = format!("kernel {name} takes {} parameters, got none", kernel.params.len());
        return refuse(INVALID_VALUE, Kind::Launch, text);
    }
    for (index, (offset, bytes)) in kernel.params.iter().enumerate() {
        let mut pointer = [0; 8];
        let place = &mut out[*offset as usize..(*offset + *bytes) as usize];
        let read = read_memory(pointers as u64 + 8 * index as u64, &mut pointer)
            .and_then(|()| read_memory(u64::from_le_bytes(pointer), place));
        if read.is_none() {
            let text = format!(
                "kernel {name} takes {} parameters, and that with index {index} is no pointer: were fewer given?",
                kernel.params.len()
            );
            return refuse(INVALID_VALUE, Kind::Launch, text);
        }
    }
    Ok(out)
}

fn params_in_one(kernel: &Kernel, extra: *const *const c_void) -> Result<Vec<u8>, Code> {
    let (mut buffer, mut size, mut at) = (0, 0_u64, extra as u64);
    for _ in 0..8 {
        let mut pair = [0; 16];
        read_memory(at, &mut pair).ok_or(INVALID_VALUE)?;
        let key = u64::from_le_bytes(std::array::from_fn(|byte| pair[byte])) as usize;
        let value = u64::from_le_bytes(std::array::from_fn(|byte| pair[8 + byte]));
        match key {
            PARAM_END => break,
            PARAM_BUFFER => buffer = value,
            PARAM_BUFFER_SIZE => {
                let mut bytes = [0; 8];
                read_memory(value, &mut bytes).ok_or(INVALID_VALUE)?;
                size = u64::from_le_bytes(bytes);
            }
            _ => return Err(INVALID_VALUE),
        }
        at += 16;
    }
    if size != kernel.param_bytes {
        let text = format!("kernel {} takes {} bytes of parameters, got {size}", kernel.name, kernel.param_bytes);
        return refuse(INVALID_VALUE, Kind::Launch, text);
    }
    let mut out = vec![0; size as usize];
    read_memory(buffer, &mut out).ok_or(INVALID_VALUE)?;
    Ok(out)
}

/// What the device or the kernel refuses, in words.
fn limits(kernel: &Kernel, grid: [u32; 3], block: [u32; 3], shared: u32, granted: u64) -> Result<(), Code> {
    let name = &kernel.name;
    let threads: u64 = block.iter().map(|count| u64::from(*count)).product();
    let within = |have: [u32; 3], most: [u32; 3]| have.iter().zip(most).all(|(have, most)| (1..=most).contains(have));
    if !within(grid, GRID_MAX) {
        let text = format!("kernel {name}: grid {grid:?}, accepted is 1 to {GRID_MAX:?}");
        return refuse(INVALID_VALUE, Kind::Launch, text);
    }
    if !within(block, BLOCK_MAX) || threads > THREADS_MAX {
        let text =
            format!("kernel {name}: block {block:?}, accepted is 1 to {BLOCK_MAX:?}, at most {THREADS_MAX} threads");
        return refuse(INVALID_VALUE, Kind::Launch, text);
    }
    if threads > u64::from(kernel.max_threads) {
        let text = format!("kernel {name}: {threads} threads, but it was compiled for at most {}", kernel.max_threads);
        return refuse(LAUNCH_OUT_OF_RESOURCES, Kind::Launch, text);
    }
    if let Some(required) = kernel.required_threads.filter(|required| *required != block) {
        let text = format!("kernel {name}: block {block:?}, but it was compiled for {required:?}");
        return refuse(INVALID_VALUE, Kind::Launch, text);
    }
    if u64::from(shared) > granted {
        let text = format!("kernel {name}: {shared} bytes of dynamic shared memory, {granted} were granted");
        return refuse(INVALID_VALUE, Kind::Launch, text);
    }
    Ok(())
}

fn launch(
    function: u64,
    (grid, block, shared): ([u32; 3], [u32; 3], u32),
    stream: u64,
    pointers: *const *const c_void,
    extra: *const *const c_void,
) -> Result<(), Code> {
    ready()?;
    let found = objects().functions.get(&function).map(|found| (found.kernel.clone(), found.dynamic_shared_bytes));
    let Some((kernel, granted)) = found else { return Err(INVALID_HANDLE) };
    limits(&kernel, grid, block, shared, granted)?;
    let params = params(&kernel, pointers, extra)?;
    let seconds_max = device().lock().settings.seconds_max;
    let launch = Launch { grid, block, dynamic_shared_bytes: shared, params, seconds_max };
    enqueue(stream, vec![Work::Launch { kernel, launch }]).map(|_| ())
}

/// Blocks that fit on a multiprocessor, by threads and shared memory: registers are not known here.
fn active_blocks(function: u64, threads: c_int, dynamic: usize) -> Result<c_int, Code> {
    let objects = objects();
    let Some(found) = objects.functions.get(&function) else { return Err(INVALID_HANDLE) };
    let most = super::devices::shared_bytes_max(&device().lock().settings) + 1024;
    let shared = found.kernel.shared_bytes + dynamic as u64 + 1024;
    let by_threads = 2048 / u64::from((threads.max(1) as u32).next_multiple_of(32));
    Ok((most / shared).min(by_threads).min(32) as c_int)
}

exported! {
    fn cuLaunchKernel(
        function: u64,
        grid_x: c_uint,
        grid_y: c_uint,
        grid_z: c_uint,
        block_x: c_uint,
        block_y: c_uint,
        block_z: c_uint,
        shared_bytes: c_uint,
        stream: u64,
        pointers: *const *const c_void,
        extra: *const *const c_void,
    ) {
        launch(function, ([grid_x, grid_y, grid_z], [block_x, block_y, block_z], shared_bytes), stream, pointers, extra)
    }

    fn cuLaunchKernelEx(
        config: *const Config,
        function: u64,
        pointers: *const *const c_void,
        extra: *const *const c_void,
    ) {
        if config.is_null() {
            return Err(INVALID_VALUE);
        }
        // SAFETY: the caller keeps the driver's contract.
        let config = unsafe { &*config };
        for index in 0..config.attribute_count as usize {
            // SAFETY: within the attributes that the caller gave.
            let id = unsafe { (*config.attributes.add(index)).id };
            if !HARMLESS_ATTRIBUTES.contains(&id) {
                return refuse(NOT_SUPPORTED, Kind::Launch, format!("launch attribute {id} is not implemented"));
            }
        }
        launch(function, (config.grid, config.block, config.shared_bytes), config.stream, pointers, extra)
    }

    fn cuLaunchHostFunc(stream: u64, function: Option<unsafe extern "C" fn(*mut c_void)>, data: *mut c_void) {
        ready()?;
        let Some(function) = function else { return Err(INVALID_VALUE) };
        enqueue(stream, vec![Work::Host { function, data: HostPointer(data) }]).map(|_| ())
    }

    fn cuOccupancyMaxActiveBlocksPerMultiprocessor(out: *mut c_int, function: u64, threads: c_int, dynamic: usize) {
        ready()?;
        // SAFETY: the caller keeps the driver's contract.
        unsafe { give(out, active_blocks(function, threads, dynamic)?) }
    }

    fn cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
        out: *mut c_int,
        function: u64,
        threads: c_int,
        dynamic: usize,
        _flags: c_uint,
    ) {
        ready()?;
        // SAFETY: the caller keeps the driver's contract.
        unsafe { give(out, active_blocks(function, threads, dynamic)?) }
    }
}
