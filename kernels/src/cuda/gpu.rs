//! One card through the driver: context, stream, modules, launches.
//!
//! This file, `memory.rs`, `graphs.rs` and `failure.rs` are all that call cudarc. Everything runs on one stream, so an operation sees what earlier ones did and
//! memory is freed after its last use. A failed launch leaves a context that answers every call with the same
//! error: [`Gpu`] remembers the first and gives it back without calling the driver again.

use std::cell::RefCell;
use std::ffi::{CString, c_void};
use std::sync::Arc;

use cudarc::driver::sys::{self, CUresult};
use cudarc::driver::{CudaContext, CudaStream, DriverError, result};

use super::binaries::{Kernel, MODULES, Module};
use super::failure::{Sticky, fault};
use super::graphs::Graphs;
use super::parameters::Plain;
use super::pending::{Launch, Launches, Pending};
use crate::device::{DeviceError, DeviceInfo};

/// The oldest driver that takes our PTX, as the driver counts: 11.4.
const DRIVER_VERSION_MIN: i32 = 11_040;

/// The oldest cards: they have the tensor-core instruction that the kernels use.
const CAPABILITY_MIN: (i32, i32) = (8, 0);

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
    pub(super) context: Arc<CudaContext>,
    pub(super) stream: Arc<CudaStream>,
    modules: Vec<sys::CUmodule>,
    functions: Vec<sys::CUfunction>,
    /// Launches of a pass that wait.
    pub(super) pending: Arc<Pending>,
    pub(super) graphs: RefCell<Graphs>,
    /// The error that the context will answer everything with.
    sticky: RefCell<Option<Sticky>>,
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
        let mut gpu = Gpu {
            card,
            context,
            stream,
            modules: vec![],
            functions: vec![],
            pending: Arc::default(),
            graphs: RefCell::default(),
            sticky: RefCell::default(),
        };
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

    /// Launches a kernel of one parameter; within a pass, with its other launches.
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
        let mut pending = self.pending.lock();
        pending.push(operation, kernel, (x as u32, y as u32, z as u32), threads, parameters);
        if pending.gathering {
            return Ok(());
        }
        self.submit(&mut pending)
    }

    /// From here on launches wait, until something needs them or [`Gpu::end`].
    pub(super) fn begin(&self) {
        self.pending.lock().gathering = true;
    }

    /// Sends off what waits; nothing does from here on.
    pub(super) fn end(&self) -> Result<(), DeviceError> {
        self.pending.lock().gathering = false;
        self.flush()
    }

    /// Sends off the launches that wait.
    pub(super) fn flush(&self) -> Result<(), DeviceError> {
        let mut pending = self.pending.lock();
        if pending.count() == 0 { Ok(()) } else { self.submit(&mut pending) }
    }

    fn submit(&self, launches: &mut Launches) -> Result<(), DeviceError> {
        let submitted = self.alive().and_then(|()| self.launch_all(launches));
        launches.clear();
        submitted
    }

    fn launch_all(&self, launches: &Launches) -> Result<(), DeviceError> {
        self.check("launch", self.context.bind_to_thread())?;
        let launch = |one: &Launch<'_>| {
            let mut arguments = [one.parameters.as_ptr().cast_mut().cast::<c_void>()];
            let (function, block) = (self.functions[one.kernel], (one.threads, 1, 1));
            let stream = self.stream.cu_stream();
            // SAFETY: the function belongs to this context; whoever called `launch` answers for its parameters, whose memory
            // has been kept since.
            unsafe { result::launch_kernel(function, one.grid, block, 0, stream, &mut arguments) }
        };
        // SAFETY: the context was bound above; each launch may be made now, which is what `launch` does where there is no graph.
        let as_graph = unsafe { self.graphs.borrow_mut().run(self.stream.cu_stream(), launches, &launch) };
        if self.check("a pass", as_graph)? {
            return Ok(());
        }
        launches.iter().try_for_each(|one| self.check(one.operation, launch(&one)))
    }

    /// The first sticky error, again.
    pub(super) fn alive(&self) -> Result<(), DeviceError> {
        self.sticky.borrow().as_ref().map_or(Ok(()), |sticky| Err(sticky.error()))
    }

    pub(super) fn check<T>(&self, operation: &'static str, result: Result<T, DriverError>) -> Result<T, DeviceError> {
        result.map_err(|error| self.fault(operation, error))
    }

    pub(super) fn fault(&self, operation: &'static str, error: DriverError) -> DeviceError {
        fault(operation, error, &mut self.sticky.borrow_mut())
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        if self.context.bind_to_thread().is_ok() {
            let _ = self.stream.synchronize();
            self.pending.lock().clear();
            self.graphs.borrow_mut().clear();
            for module in self.modules.drain(..) {
                // SAFETY: it was loaded here, the context is current, and no kernel of it runs any more.
                let _ = unsafe { result::module::unload(module) };
            }
        }
    }
}

fn driver_version() -> Result<i32, DriverError> {
    let mut version = 0;
    // SAFETY: it writes one integer, and may be called before the driver is initialised.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result()?;
    Ok(version)
}
