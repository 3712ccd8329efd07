//! Modules: PTX text in, kernels and variables out; attributes of functions.
//!
//! The whole module is decoded when it is loaded, so that what the stand-in does not implement shows
//! there and not in some launch. Machine code (cubins, fat binaries) has no meaning here and gives
//! `NO_BINARY_FOR_GPU`, as it does for a card that it was not made for. Start at [`load`].

use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::Arc;

use super::devices::shared_bytes_max;
use super::objects::{Function, Module, objects};
use super::{
    Code, FILE_NOT_FOUND, INVALID_HANDLE, INVALID_PTX, INVALID_VALUE, NO_BINARY_FOR_GPU, NOT_FOUND,
    UNSUPPORTED_PTX_VERSION, exported, give, ready, refuse,
};
use crate::decode;
use crate::device::device;
use crate::device::finding::Kind;
use crate::ptx::{self, PtxError, Space};

/// Shared memory that a kernel may use without opting in, static and dynamic.
const SHARED_BYTES_DEFAULT: u64 = 48 << 10;
const JIT_ERROR_LOG_BUFFER: c_int = 5;
const JIT_ERROR_LOG_BUFFER_SIZE_BYTES: c_int = 6;

/// The first bytes of an ELF file and of a fat binary.
const MACHINE_CODE: [[u8; 4]; 2] = [*b"\x7fELF", [0x50, 0xed, 0x55, 0xba]];

fn build(text: &str) -> Result<Module, (Code, String)> {
    let settings = device().lock().settings;
    let invalid = |error: PtxError| (INVALID_PTX, error.to_string());
    let tree = ptx::parse(text).map_err(invalid)?;
    if tree.version > settings.ptx_version() {
        let (have, want) = (settings.ptx_version(), tree.version);
        let text = format!(
            "PTX version {}.{}, but a driver {} reads at most {}.{}",
            want.0, want.1, settings.driver, have.0, have.1
        );
        return Err((UNSUPPORTED_PTX_VERSION, text));
    }
    if tree.target > settings.sm {
        let text = format!("PTX for sm_{}, but the device is sm_{}", tree.target, settings.sm);
        return Err((NO_BINARY_FOR_GPU, text));
    }
    let mut module = Module::default();
    let mut addresses = HashMap::new();
    for variable in tree.variables.iter().filter(|variable| matches!(variable.space, Space::Global | Space::Const)) {
        let bytes = variable.bytes.unwrap_or(0);
        let constant = variable.space == Space::Const;
        let Some(address) = device().lock().memory.allocate_variable(bytes, &variable.init, constant) else {
            return Err((super::OUT_OF_MEMORY, format!("variable {} of {bytes} bytes", variable.name)));
        };
        addresses.insert(variable.name.clone(), address);
        module.variables.insert(variable.name.clone(), (address, bytes));
    }
    for function in tree.functions.iter().filter(|function| function.entry && function.body.is_some()) {
        let kernel = decode::kernel(&tree, function, &addresses).map_err(invalid)?;
        module.kernels.insert(function.name.clone(), Arc::new(kernel));
    }
    Ok(module)
}

/// Loads an image; the message is for the caller's log.
///
/// # Safety
///
/// `image` is null, or points to PTX with a zero at its end or to machine code.
unsafe fn load(out: *mut u64, image: *const c_void) -> Result<(), (Code, String)> {
    ready().map_err(|code| (code, String::new()))?;
    if image.is_null() {
        return Err((INVALID_VALUE, "no image".into()));
    }
    // SAFETY: an image has at least four bytes: PTX begins with a directive.
    let first = unsafe { image.cast::<[u8; 4]>().read_unaligned() };
    if MACHINE_CODE.contains(&first) {
        return Err((NO_BINARY_FOR_GPU, "machine code cannot be interpreted".into()));
    }
    // SAFETY: not machine code, so a C string by contract.
    let text = unsafe { CStr::from_ptr(image.cast::<c_char>()) }.to_string_lossy();
    let built = build(&text);
    if let Err((code, message)) = &built {
        // Machine code and other cards are no finding: a host tries and goes on.
        if *code == INVALID_PTX {
            _ = refuse::<()>(*code, Kind::Module, message.clone());
        }
    }
    let mut objects = objects();
    let handle = objects.handle();
    objects.modules.insert(handle, built?);
    // SAFETY: the caller keeps the driver's contract.
    unsafe { give(out, handle) }.map_err(|code| (code, String::new()))
}

/// Writes the message into the log that the options name, if they do.
///
/// # Safety
///
/// `options` and `values` have `count` entries, and a log buffer has the room that its option says.
unsafe fn log(message: &str, count: c_uint, options: *const c_int, values: *const *mut c_void) {
    let (mut buffer, mut room) = (std::ptr::null_mut::<c_char>(), 0);
    for index in 0..count as usize {
        // SAFETY: within the `count` entries.
        let (option, value) = unsafe { (*options.add(index), *values.add(index)) };
        match option {
            JIT_ERROR_LOG_BUFFER => buffer = value.cast(),
            JIT_ERROR_LOG_BUFFER_SIZE_BYTES => room = value as usize,
            _ => {}
        }
    }
    if !buffer.is_null() && room > 0 {
        let bytes = message.len().min(room - 1);
        // SAFETY: `bytes` and the zero are within the room.
        unsafe {
            std::ptr::copy_nonoverlapping(message.as_ptr().cast::<c_char>(), buffer, bytes);
            buffer.add(bytes).write(0);
        }
    }
}

/// # Safety
///
/// `name` is null or a C string.
unsafe fn name_of(name: *const c_char) -> Result<String, Code> {
    if name.is_null() {
        return Err(INVALID_VALUE);
    }
    // SAFETY: not null, so a C string by the caller's promise.
    Ok(unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned())
}

exported! {
    fn cuModuleLoadData(out: *mut u64, image: *const c_void) {
        // SAFETY: the caller keeps the driver's contract.
        unsafe { load(out, image) }.map_err(|(code, _)| code)
    }

    fn cuModuleLoadFatBinary(out: *mut u64, image: *const c_void) {
        // SAFETY: the caller keeps the driver's contract.
        unsafe { load(out, image) }.map_err(|(code, _)| code)
    }

    fn cuModuleLoadDataEx(
        out: *mut u64,
        image: *const c_void,
        count: c_uint,
        options: *const c_int,
        values: *const *mut c_void,
    ) {
        // SAFETY: the caller keeps the driver's contract.
        unsafe { load(out, image) }.map_err(|(code, message)| {
            // SAFETY: as above.
            unsafe { log(&message, count, options, values) };
            code
        })
    }

    fn cuModuleLoad(out: *mut u64, path: *const c_char) {
        // SAFETY: the caller keeps the driver's contract.
        let path = unsafe { name_of(path)? };
        let mut image = std::fs::read(path).map_err(|_| FILE_NOT_FOUND)?;
        image.extend_from_slice(&[0; 4]);
        // SAFETY: the bytes end with zeros.
        unsafe { load(out, image.as_ptr().cast()) }.map_err(|(code, _)| code)
    }

    fn cuModuleUnload(module: u64) {
        ready()?;
        let newest = device().newest();
        device().wait(newest)?;
        let Some(gone) = objects().modules.remove(&module) else { return Err(INVALID_HANDLE) };
        for handle in gone.functions.values() {
            objects().functions.remove(handle);
        }
        for (address, _) in gone.variables.values() {
            device().lock().memory.free(*address);
        }
        Ok(())
    }

    fn cuModuleGetFunction(out: *mut u64, module: u64, name: *const c_char) {
        ready()?;
        // SAFETY: the caller keeps the driver's contract.
        let name = unsafe { name_of(name)? };
        let mut objects = objects();
        let next = objects.handle();
        let Some(module) = objects.modules.get_mut(&module) else { return Err(INVALID_HANDLE) };
        let Some(kernel) = module.kernels.get(&name).cloned() else { return Err(NOT_FOUND) };
        let handle = *module.functions.entry(name).or_insert(next);
        let granted = SHARED_BYTES_DEFAULT.saturating_sub(kernel.shared_bytes);
        objects.functions.entry(handle).or_insert(Function { kernel, dynamic_shared_bytes: granted });
        // SAFETY: the caller keeps the driver's contract.
        unsafe { give(out, handle) }
    }

    fn cuModuleGetGlobal_v2(address: *mut u64, bytes: *mut usize, module: u64, name: *const c_char) {
        ready()?;
        // SAFETY: the caller keeps the driver's contract.
        let name = unsafe { name_of(name)? };
        let objects = objects();
        let Some(module) = objects.modules.get(&module) else { return Err(INVALID_HANDLE) };
        let Some(found) = module.variables.get(&name) else { return Err(NOT_FOUND) };
        // SAFETY: the caller keeps the driver's contract; either result may be unwanted.
        unsafe {
            _ = give(address, found.0);
            _ = give(bytes, found.1 as usize);
        }
        Ok(())
    }

    fn cuFuncSetAttribute(function: u64, which: c_int, value: c_int) {
        ready()?;
        let most = shared_bytes_max(&device().lock().settings);
        let mut objects = objects();
        let Some(function) = objects.functions.get_mut(&function) else { return Err(INVALID_HANDLE) };
        match which {
            8 if value >= 0 && value as u64 + function.kernel.shared_bytes <= most => {
                function.dynamic_shared_bytes = value as u64;
                Ok(())
            }
            8 => {
                let text = format!(
                    "kernel {}: {value} bytes of dynamic shared memory beside {} static ones, at most {most} together",
                    function.kernel.name, function.kernel.shared_bytes
                );
                refuse(INVALID_VALUE, Kind::Launch, text)
            }
            // How the cache is split is only a hint.
            9 => Ok(()),
            _ => Err(INVALID_VALUE),
        }
    }

    fn cuFuncGetAttribute(out: *mut c_int, which: c_int, function: u64) {
        ready()?;
        let settings = device().lock().settings;
        let objects = objects();
        let Some(function) = objects.functions.get(&function) else { return Err(INVALID_HANDLE) };
        let value = match which {
            0 => function.kernel.max_threads as c_int,
            1 => function.kernel.shared_bytes as c_int,
            2 => 0,
            3 => function.kernel.local_bytes as c_int,
            // Registers are the assembler's matter: a number that lets any block fit.
            4 => 32,
            5 | 6 => settings.sm as c_int,
            7 => 0,
            8 => function.dynamic_shared_bytes as c_int,
            9 => -1,
            _ => return Err(INVALID_VALUE),
        };
        // SAFETY: the caller keeps the driver's contract.
        unsafe { give(out, value) }
    }

    fn cuFuncSetCacheConfig(_function: u64, _config: c_int) {
        ready()
    }

    fn cuModuleGetLoadingMode(out: *mut c_int) {
        // SAFETY: the caller keeps the driver's contract. 1 says that loading is eager.
        unsafe { give(out, 1) }
    }
}
