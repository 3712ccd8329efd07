//! Streams, events, pinned memory and exits, through `cudarc` in child processes.
//!
//! What hardware does in parallel the stand-in does in one order, but calls still return before their
//! work is done: a kernel can wait for the host. Start at `a_graph_waits_for_the_host`.

use std::ffi::{CString, c_void};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use cudarc::driver::sys::{CUfunction, CUgraphInstantiate_flags, CUmodule, CUresult, CUstreamCaptureMode};
use cudarc::driver::{CudaContext, CudaStream, DevicePtr, DriverError, result};
use vassal_cuda_stand_in::{child, in_child, test_name};

/// `wait` spins until a word is not zero and copies it; `count` adds one to a word.
const KERNELS: &str = "
.version 8.0
.target sm_80
.address_size 64
.global .align 4 .u32 total = 5;
.visible .entry wait(.param .u64 flag, .param .u64 out)
{
    .reg .pred p;
    .reg .b32 %r1;
    .reg .b64 %f, %o;
    ld.param.u64 %f, [flag];
    ld.param.u64 %o, [out];
$spin:
    ld.volatile.global.u32 %r1, [%f];
    setp.eq.u32 p, %r1, 0;
    @p bra $spin;
    st.global.u32 [%o], %r1;
    ret;
}
.visible .entry count(.param .u64 unused, .param .u64 out)
{
    .reg .b32 %r1;
    .reg .b64 %o;
    ld.param.u64 %o, [out];
    red.global.add.u32 [total], 1;
    ld.global.u32 %r1, [total];
    st.global.u32 [%o], %r1;
    ret;
}
";

struct Module(CUmodule);

impl Module {
    fn load() -> Self {
        let image = CString::new(KERNELS).expect("no zeros");
        // SAFETY: PTX with a zero at its end.
        Self(unsafe { result::module::load_data(image.as_ptr().cast()) }.expect("a module"))
    }

    fn kernel(&self, name: &str) -> CUfunction {
        // SAFETY: the module is loaded.
        unsafe { result::module::get_function(self.0, CString::new(name).expect("no zeros")) }.expect("a kernel")
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        // SAFETY: loaded once, and unloaded once.
        _ = unsafe { result::module::unload(self.0) };
    }
}

/// One thread of a kernel of two addresses.
fn launch(stream: &CudaStream, kernel: CUfunction, mut first: u64, mut second: u64) -> Result<(), DriverError> {
    let mut params: [*mut c_void; 2] = [(&raw mut first).cast(), (&raw mut second).cast()];
    // SAFETY: both kernels take two addresses.
    unsafe { result::launch_kernel(kernel, (1, 1, 1), (1, 1, 1), 0, stream.cu_stream(), &mut params) }
}

/// A context whose slices keep no events, and a stream.
fn start() -> (Arc<CudaContext>, Arc<CudaStream>) {
    let context = CudaContext::new(0).expect("a device");
    // SAFETY: these tests order their streams themselves.
    unsafe { context.disable_event_tracking() };
    let stream = context.new_stream().expect("a stream");
    (context, stream)
}

const RELAXED: CUstreamCaptureMode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;

#[test]
fn a_graph_waits_for_the_host() {
    in_child!({
        let (context, stream) = start();
        let module = Module::load();
        // SAFETY: written before the kernel reads it, and atomically while it does.
        let pinned = unsafe { context.alloc_pinned::<u32>(1) }.expect("pinned memory");
        // SAFETY: the pointer is that of one pinned word, which lives until the end.
        let flag = unsafe { AtomicU32::from_ptr(pinned.as_ptr().expect("no work").cast_mut()) };
        flag.store(0, Ordering::SeqCst);
        let out = stream.alloc_zeros::<u32>(1).expect("memory");
        let address = out.device_ptr(&stream).0;
        stream.begin_capture(RELAXED).expect("a capture");
        launch(&stream, module.kernel("wait"), flag.as_ptr() as u64, address).expect("recorded");
        let graph = stream.end_capture(CUgraphInstantiate_flags(0)).expect("a graph").expect("work in it");
        graph.launch().expect("a launch");
        let event = stream.record_event(None).expect("an event");
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert!(!event.is_complete(), "the kernel waits");
        flag.store(9, Ordering::SeqCst);
        event.synchronize().expect("it goes on");
        assert_eq!(stream.clone_dtoh(&out).expect("a copy"), [9]);
    });
}

#[test]
fn a_kernel_that_never_ends_is_given_up() {
    let Some(outcome) = child::outcome(test_name!(), "seconds=1", || {
        let (_context, stream) = start();
        let module = Module::load();
        let out = stream.alloc_zeros::<u32>(1).expect("memory");
        let address = out.device_ptr(&stream).0;
        launch(&stream, module.kernel("wait"), address, address).expect("a launch");
        assert_eq!(stream.synchronize().expect_err("given up").0, CUresult::CUDA_ERROR_LAUNCH_TIMEOUT);
    }) else {
        return;
    };
    outcome.expect_finding(&["Timeout", "kernel wait", "1 s"]);
}

#[test]
fn a_capture_forks_and_must_join() {
    in_child!({
        let (context, stream) = start();
        let other = context.new_stream().expect("a stream");
        let module = Module::load();
        let out = stream.alloc_zeros::<u32>(1).expect("memory");
        let address = out.device_ptr(&stream).0;
        stream.synchronize().expect("no error");
        for joins in [true, false] {
            stream.begin_capture(RELAXED).expect("a capture");
            other.wait(&stream.record_event(None).expect("an event")).expect("the other one takes part");
            launch(&other, module.kernel("count"), 0, address).expect("recorded");
            if joins {
                stream.wait(&other.record_event(None).expect("an event")).expect("it joins");
            }
            let ended = stream.end_capture(CUgraphInstantiate_flags(0));
            if joins {
                let graph = ended.expect("a graph").expect("work in it");
                graph.launch().expect("a launch");
                graph.launch().expect("a launch");
                // The variable was 5 in the module.
                assert_eq!(stream.clone_dtoh(&out).expect("a copy"), [7]);
            } else {
                assert_eq!(ended.err().map(|error| error.0), Some(CUresult::CUDA_ERROR_STREAM_CAPTURE_UNJOINED));
            }
        }
    });
}

#[test]
fn times_pass_between_events() {
    in_child!({
        let (context, stream) = start();
        let flags = Some(cudarc::driver::sys::CUevent_flags::CU_EVENT_DEFAULT);
        let first = stream.record_event(flags).expect("an event");
        let bytes = stream.alloc_zeros::<u8>(1 << 20).expect("memory");
        let last = stream.record_event(flags).expect("an event");
        assert!(first.elapsed_ms(&last).expect("a time") > 0.0);
        drop(bytes);
        context.synchronize().expect("no error");
    });
}

#[test]
fn a_context_that_is_never_released_shows_its_leaks_at_exit() {
    let Some(outcome) = child::outcome(test_name!(), "", || {
        let (context, stream) = start();
        std::mem::forget(stream.alloc_zeros::<u8>(77).expect("memory"));
        std::mem::forget(context);
    }) else {
        return;
    };
    assert!(outcome.passed, "{}", outcome.output);
    outcome.expect_finding(&["Leak", "77 bytes"]);
    assert_eq!(outcome.findings.len(), 1);
}

#[test]
fn too_few_parameters_are_found() {
    let Some(outcome) = child::outcome(test_name!(), "", || {
        let (_context, stream) = start();
        let module = Module::load();
        let mut first = 0_u64;
        let mut params: [*mut c_void; 2] = [(&raw mut first).cast(), std::ptr::null_mut()];
        let kernel = module.kernel("count");
        // SAFETY: refused before anything runs.
        let refused =
            unsafe { result::launch_kernel(kernel, (1, 1, 1), (1, 1, 1), 0, stream.cu_stream(), &mut params) };
        assert_eq!(refused.expect_err("refused").0, CUresult::CUDA_ERROR_INVALID_VALUE);
    }) else {
        return;
    };
    assert!(outcome.passed, "{}", outcome.output);
    outcome.expect_finding(&["kernel count takes 2 parameters", "index 1"]);
}
