//! One card through the driver: context, stream, modules, memory, launches, and what can go wrong with them.
//!
//! The only file that calls cudarc. Everything runs on one stream, so an operation sees what earlier ones did and
//! memory is freed after its last use. A failed launch leaves a context that answers every call with the same
//! error: [`Gpu`] remembers the first and gives it back without calling the driver again.

use std::cell::RefCell;
use std::ffi::{CStr, CString, c_void};
use std::sync::Arc;

use cudarc::driver::sys::{self, CUresult};
use cudarc::driver::{CudaContext, CudaSlice, CudaStream, DevicePtr, DriverError, result};

use super::binaries::{Kernel, MODULES, Module};
use super::parameters::{Plain, bytes_of, from_bytes};
use crate::device::{DeviceError, DeviceInfo};

/// The oldest driver that takes our PTX, as the driver counts: 11.4.
const DRIVER_VERSION_MIN: i32 = 11_040;

/// The oldest cards: they have the tensor-core instruction that the kernels use.
const CAPABILITY_MIN: (i32, i32) = (8, 0);

/// Device memory of bytes; freed on the stream when dropped.
pub(super) struct Memory {
    slice: CudaSlice<u8>,
}

impl Memory {
    /// Its address.
    pub(super) fn address(&self) -> u64 {
        self.slice.device_ptr(self.slice.stream()).0
    }

    /// Bytes it holds.
    pub(super) fn len(&self) -> usize {
        self.slice.len()
    }
}

/// Scratch that grows: what it held is gone when it does.
#[derive(Default)]
pub(super) struct Scratch(Option<Memory>);

impl Scratch {
    /// The address of at least `bytes`.
    pub(super) fn reserve(&mut self, gpu: &Gpu, what: &'static str, bytes: usize) -> Result<u64, DeviceError> {
        match &self.0 {
            Some(memory) if memory.len() >= bytes => Ok(memory.address()),
            _ => {
                // The old one goes first: both at once may not fit.
                self.0 = None;
                Ok(self.0.insert(gpu.allocate(what, bytes.next_power_of_two().max(256))?).address())
            }
        }
    }
}

/// What a card is.
pub(super) struct Card {
    name: String,
    /// Compute capability, major and minor.
    capability: (i32, i32),
    multiprocessors: usize,
}

impl Card {
    pub(super) fn info(&self) -> DeviceInfo {
        let (major, minor) = self.capability;
        DeviceInfo { name: self.name.clone(), isa: format!("sm_{major}{minor}"), threads: self.multiprocessors }
    }
}

/// A card, opened.
pub(super) struct Gpu {
    card: Card,
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    modules: Vec<sys::CUmodule>,
    functions: Vec<sys::CUfunction>,
    /// The error that the context will answer everything with.
    sticky: RefCell<Option<Sticky>>,
}

#[derive(Clone)]
struct Sticky {
    operation: &'static str,
    message: String,
    lost: bool,
}

// SAFETY: modules and functions are handles that any thread may use while the context, which is kept, lives.
unsafe impl Send for Gpu {}

impl Gpu {
    /// Cards that the driver has.
    pub(super) fn count() -> Result<usize, DeviceError> {
        // SAFETY: it loads a library by the driver's own name; the driver's initialisation has no preconditions.
        if !unsafe { sys::is_culib_present() } {
            return Err(DeviceError::NoDriver);
        }
        let outside = |error| fault("open", error, &mut None);
        let found = driver_version().map_err(outside)?;
        if found < DRIVER_VERSION_MIN {
            return Err(DeviceError::DriverTooOld { found, needed: DRIVER_VERSION_MIN });
        }
        match CudaContext::device_count() {
            Ok(count) => Ok(count.max(0) as usize),
            Err(DriverError(CUresult::CUDA_ERROR_NO_DEVICE)) => Ok(0),
            Err(error) => Err(outside(error)),
        }
    }

    /// What a card is, without a context on it; refuses one that the driver does not have or that is too old.
    pub(super) fn find(ordinal: usize) -> Result<Card, DeviceError> {
        use sys::CUdevice_attribute::{
            CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR,
            CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as MINOR, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT as COUNT,
        };
        let devices = Gpu::count()?;
        if ordinal >= devices {
            return Err(DeviceError::NoDevice { ordinal, devices });
        }
        let outside = |error| fault("open", error, &mut None);
        let device = result::device::get(ordinal as i32).map_err(outside)?;
        let attribute = |attribute| {
            // SAFETY: the driver has just given this device.
            unsafe { result::device::get_attribute(device, attribute) }.map_err(outside)
        };
        let capability = (attribute(MAJOR)?, attribute(MINOR)?);
        let multiprocessors = attribute(COUNT)?.max(0) as usize;
        let name = result::device::get_name(device).map_err(outside)?;
        if capability < CAPABILITY_MIN {
            return Err(DeviceError::CardTooOld { ordinal, name, found: capability, needed: CAPABILITY_MIN });
        }
        Ok(Card { name, capability, multiprocessors })
    }

    /// Opens a card and loads the kernels; `ptx` is what to load of a module as PTX, for tests to change.
    pub(super) fn open(ordinal: usize, ptx: &dyn Fn(&Module) -> String) -> Result<Gpu, DeviceError> {
        let card = Gpu::find(ordinal)?;
        let outside = |error| fault("open", error, &mut None);
        let context = CudaContext::new(ordinal).map_err(outside)?;
        let own = card.capability == (9, 0);
        // SAFETY: there is one stream, so nothing needs events to wait for another.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream().map_err(outside)?;
        let mut gpu = Gpu { card, context, stream, modules: vec![], functions: vec![], sticky: RefCell::default() };
        for module in MODULES {
            gpu.load(module, &ptx(module), own)?;
        }
        Ok(gpu)
    }

    /// Loads a module: its cubin where the card is the cubin's own and takes it, else its PTX.
    fn load(&mut self, module: &Module, ptx: &str, own: bool) -> Result<(), DeviceError> {
        debug_assert!(ptx.ends_with('\0'), "the driver looks for the end");
        let image = |bytes: &[u8]| {
            // SAFETY: the context is current, and an image is a whole cubin or PTX ended by zero.
            unsafe { result::module::load_data(bytes.as_ptr().cast::<c_void>()) }
        };
        let changed = ptx != module.ptx;
        let loaded = match (own && !changed).then(|| image(module.cubin)) {
            Some(Ok(loaded)) => Ok(loaded),
            _ => image(ptx.as_bytes()),
        };
        let loaded = self.check(module.name, loaded)?;
        self.modules.push(loaded);
        for kernel in module.kernels {
            let name = CString::new(kernel.name()).unwrap_or_default();
            // SAFETY: the module has just been loaded.
            let function = unsafe { result::module::get_function(loaded, name) };
            debug_assert_eq!(self.functions.len(), *kernel as usize, "kernels in order of modules");
            let function = self.check(module.name, function)?;
            self.functions.push(function);
        }
        Ok(())
    }

    /// The card.
    pub(super) fn card(&self) -> &Card {
        &self.card
    }

    /// Allocates memory that nothing has been written to.
    pub(super) fn allocate(&self, what: &'static str, bytes: usize) -> Result<Memory, DeviceError> {
        self.alive()?;
        // The driver refuses to allocate nothing.
        // SAFETY: whoever allocates writes before reading: `zeroed`, `upload` and the kernels' own outputs.
        match unsafe { self.stream.alloc::<u8>(bytes.max(16)) } {
            Ok(slice) => Ok(Memory { slice }),
            Err(DriverError(CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => {
                let available_bytes = self.context.mem_get_info().map_or(0, |(free, _)| free as u64);
                Err(DeviceError::Memory { what, needed_bytes: bytes as u64, available_bytes })
            }
            Err(error) => Err(self.fault(what, error)),
        }
    }

    /// Allocates zeros.
    pub(super) fn zeroed(&self, what: &'static str, bytes: usize) -> Result<Memory, DeviceError> {
        let mut memory = self.allocate(what, bytes)?;
        self.check(what, self.stream.memset_zeros(&mut memory.slice))?;
        Ok(memory)
    }

    /// Allocates memory with these contents.
    pub(super) fn upload<T: Plain>(&self, what: &'static str, values: &[T]) -> Result<Memory, DeviceError> {
        let mut memory = self.allocate(what, size_of_val(values))?;
        if !values.is_empty() {
            self.check(what, self.stream.memcpy_htod(bytes_of(values), &mut memory.slice))?;
        }
        Ok(memory)
    }

    /// Copies bytes to the start of scratch, which grows as needed; its address.
    pub(super) fn write(&self, what: &'static str, bytes: &[u8], scratch: &mut Scratch) -> Result<u64, DeviceError> {
        let address = scratch.reserve(self, what, bytes.len())?;
        if let (Some(memory), false) = (&mut scratch.0, bytes.is_empty()) {
            self.check(what, self.stream.memcpy_htod(bytes, &mut memory.slice))?;
        }
        Ok(address)
    }

    /// Reads `count` values from the start of memory, and waits for them.
    pub(super) fn read<T: Plain>(
        &self,
        operation: &'static str,
        memory: &Memory,
        start_bytes: usize,
        count: usize,
    ) -> Result<Vec<T>, DeviceError> {
        self.alive()?;
        let mut bytes = vec![0; count * size_of::<T>()];
        if !bytes.is_empty() {
            let part = memory.slice.try_slice(start_bytes..start_bytes + bytes.len());
            let Some(part) = part else {
                return crate::checks::refuse(operation, "a read", format!("within {}", memory.len()), bytes.len());
            };
            self.check(operation, self.stream.memcpy_dtoh(&part, &mut bytes))?;
            self.check(operation, self.stream.synchronize())?;
        }
        Ok(from_bytes(&bytes))
    }

    /// [`Gpu::read`] of scratch.
    pub(super) fn read_scratch<T: Plain>(
        &self,
        operation: &'static str,
        scratch: &Scratch,
        start_bytes: usize,
        count: usize,
    ) -> Result<Vec<T>, DeviceError> {
        match &scratch.0 {
            Some(memory) => self.read(operation, memory, start_bytes, count),
            None => Ok(vec![]),
        }
    }

    /// Launches a kernel of one parameter.
    ///
    /// # Safety
    /// The kernel takes a P; its addresses are of memory that holds what the kernel reads and writes for this grid.
    pub(super) unsafe fn launch<P: Plain>(
        &self,
        operation: &'static str,
        kernel: Kernel,
        grid: [usize; 3],
        threads: u32,
        parameters: &P,
    ) -> Result<(), DeviceError> {
        self.alive()?;
        let [x, y, z] = grid;
        if !(x <= i32::MAX as usize && y <= 65_535 && z <= 65_535) {
            return crate::checks::refuse(operation, "the grid", "2147483647, 65535, 65535", format!("{grid:?}"));
        }
        if x * y * z == 0 {
            return Ok(());
        }
        self.check(operation, self.context.bind_to_thread())?;
        let mut arguments = [std::ptr::from_ref(parameters).cast_mut().cast::<c_void>()];
        let (grid, block) = ((x as u32, y as u32, z as u32), (threads, 1, 1));
        let function = self.functions[kernel as usize];
        // SAFETY: the function belongs to this context, the one argument is a P, and the caller answers for the rest.
        let launched =
            unsafe { result::launch_kernel(function, grid, block, 0, self.stream.cu_stream(), &mut arguments) };
        self.check(operation, launched)
    }

    /// The first sticky error, again.
    fn alive(&self) -> Result<(), DeviceError> {
        self.sticky.borrow().as_ref().map_or(Ok(()), |sticky| Err(sticky.error()))
    }

    pub(super) fn check<T>(&self, operation: &'static str, result: Result<T, DriverError>) -> Result<T, DeviceError> {
        result.map_err(|error| self.fault(operation, error))
    }

    fn fault(&self, operation: &'static str, error: DriverError) -> DeviceError {
        fault(operation, error, &mut self.sticky.borrow_mut())
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        if self.context.bind_to_thread().is_ok() {
            let _ = self.stream.synchronize();
            for module in self.modules.drain(..) {
                // SAFETY: it was loaded here, the context is current, and no kernel of it runs any more.
                let _ = unsafe { result::module::unload(module) };
            }
        }
    }
}

impl Sticky {
    fn error(&self) -> DeviceError {
        let Sticky { operation, message, lost } = self.clone();
        if lost { DeviceError::Lost { operation, message } } else { DeviceError::Failed { operation, message } }
    }
}

/// What an error of the driver means; errors that the context keeps are remembered.
fn fault(operation: &'static str, error: DriverError, sticky: &mut Option<Sticky>) -> DeviceError {
    use CUresult::*;
    if let Some(sticky) = sticky {
        return sticky.error();
    }
    let message = words(error);
    let lost = matches!(
        error.0,
        CUDA_ERROR_DEVICE_UNAVAILABLE
            | CUDA_ERROR_ECC_UNCORRECTABLE
            | CUDA_ERROR_NVLINK_UNCORRECTABLE
            | CUDA_ERROR_CONTEXT_IS_DESTROYED
            | CUDA_ERROR_DEINITIALIZED
            | CUDA_ERROR_SYSTEM_NOT_READY
            | CUDA_ERROR_UNKNOWN
    );
    let kept = matches!(
        error.0,
        CUDA_ERROR_ILLEGAL_ADDRESS
            | CUDA_ERROR_LAUNCH_TIMEOUT
            | CUDA_ERROR_ASSERT
            | CUDA_ERROR_HARDWARE_STACK_ERROR
            | CUDA_ERROR_ILLEGAL_INSTRUCTION
            | CUDA_ERROR_MISALIGNED_ADDRESS
            | CUDA_ERROR_INVALID_ADDRESS_SPACE
            | CUDA_ERROR_INVALID_PC
            | CUDA_ERROR_LAUNCH_FAILED
    );
    let found = Sticky { operation, message, lost };
    let error = found.error();
    if lost || kept {
        *sticky = Some(found);
    }
    error
}

/// The driver's name for an error and what it says about it.
fn words(error: DriverError) -> String {
    let text = |text: Result<&CStr, DriverError>| text.map(|text| text.to_string_lossy().into_owned());
    let name = text(error.error_name()).unwrap_or_else(|_| format!("error {}", error.0 as u32));
    match text(error.error_string()) {
        Ok(words) => format!("{name}: {words}"),
        Err(_) => name,
    }
}

fn driver_version() -> Result<i32, DriverError> {
    let mut version = 0;
    // SAFETY: it writes one integer, and may be called before the driver is initialised.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result()?;
    Ok(version)
}
