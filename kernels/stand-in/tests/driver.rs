//! Unmodified `cudarc` programs through the stand-in, each in a child process.
//!
//! These show that the library is found, that modules, memory, streams and graphs work as host code
//! uses them, and that provoked faults arrive as `cudarc`'s errors. What single instructions do is in
//! the other files. Start at `a_program_copies_launches_captures_and_copies_back`.

use std::ffi::{CString, c_void};
use std::sync::Arc;

use cudarc::driver::sys::{CUfunction, CUmodule};
use cudarc::driver::sys::{CUgraphInstantiate_flags, CUresult, CUstreamCaptureMode};
use cudarc::driver::{CudaContext, CudaSlice, CudaStream, DevicePtr, DriverError, result};
use vassal_cuda_stand_in::{child, in_child, test_name};

/// `y[i] = 2 x[i] + y[i]` for i < n, one element a thread.
const DOUBLE: &str = "
.version 8.0
.target sm_80
.address_size 64
.visible .entry double(.param .u64 x, .param .u64 y, .param .u32 n)
{
    .reg .pred %p<2>;
    .reg .f32 %f<4>;
    .reg .b32 %r<6>;
    .reg .b64 %rd<8>;
    ld.param.u64 %rd1, [x];
    ld.param.u64 %rd2, [y];
    ld.param.u32 %r1, [n];
    mov.u32 %r2, %ctaid.x;
    mov.u32 %r3, %ntid.x;
    mov.u32 %r4, %tid.x;
    mad.lo.s32 %r5, %r2, %r3, %r4;
    setp.ge.s32 %p1, %r5, %r1;
    @%p1 bra $L_end;
    cvta.to.global.u64 %rd3, %rd1;
    cvta.to.global.u64 %rd4, %rd2;
    mul.wide.s32 %rd5, %r5, 4;
    add.s64 %rd6, %rd3, %rd5;
    add.s64 %rd7, %rd4, %rd5;
    ld.global.nc.f32 %f1, [%rd6];
    ld.global.f32 %f2, [%rd7];
    fma.rn.f32 %f3, %f1, 0f40000000, %f2;
    st.global.f32 [%rd7], %f3;
$L_end:
    ret;
}
";

/// A loaded kernel; unloads its module, so that nothing is left.
struct Kernel {
    module: CUmodule,
    function: CUfunction,
}

impl Drop for Kernel {
    fn drop(&mut self) {
        // SAFETY: loaded in `load`, and dropped once. After an error that stays this fails too.
        _ = unsafe { result::module::unload(self.module) };
    }
}

fn load(text: &str) -> Result<Kernel, DriverError> {
    let image = CString::new(text).expect("no zeros");
    // SAFETY: PTX with a zero at its end.
    let module = unsafe { result::module::load_data(image.as_ptr().cast()) }?;
    // SAFETY: the module was just loaded.
    let function = unsafe { result::module::get_function(module, CString::from(c"double")) }?;
    Ok(Kernel { module, function })
}

fn start() -> (Arc<CudaContext>, Arc<CudaStream>, Kernel) {
    let context = CudaContext::new(0).expect("a device");
    let stream = context.new_stream().expect("a stream");
    let kernel = load(DOUBLE).expect("a module");
    (context, stream, kernel)
}

fn launch_as(
    stream: &CudaStream,
    kernel: &Kernel,
    [blocks, threads, shared]: [u32; 3],
    (mut x, mut y, mut n): (u64, u64, u32),
) -> Result<(), DriverError> {
    let mut params = [(&raw mut x).cast(), (&raw mut y).cast(), (&raw mut n).cast::<c_void>()];
    let stream = stream.cu_stream();
    // SAFETY: the kernel takes these parameters; a wrong value is what some tests are about.
    unsafe { result::launch_kernel(kernel.function, (blocks, 1, 1), (threads, 1, 1), shared, stream, &mut params) }
}

fn launch(
    stream: &Arc<CudaStream>,
    kernel: &Kernel,
    x: &CudaSlice<f32>,
    y: &mut CudaSlice<f32>,
    n: u32,
) -> Result<(), DriverError> {
    let (x, _x) = x.device_ptr(stream);
    let (y, _y) = y.device_ptr(stream);
    launch_as(stream, kernel, [n.div_ceil(64), 64, 0], (x, y, n))
}

#[test]
fn a_program_copies_launches_captures_and_copies_back() {
    in_child!({
        let (context, stream, kernel) = start();
        // SAFETY: one stream only, so nothing needs events; captures must not wait for what is outside.
        unsafe { context.disable_event_tracking() };
        let count = 1000_usize;
        let values: Vec<f32> = (0..count).map(|i| i as f32).collect();
        let x = stream.clone_htod(&values).expect("a copy");
        let mut y = stream.alloc_zeros::<f32>(count).expect("memory");
        launch(&stream, &kernel, &x, &mut y, count as u32).expect("a launch");
        let first = stream.clone_dtoh(&y).expect("a copy");
        assert!(first.iter().zip(&values).all(|(y, x)| *y == 2.0 * x));

        stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).expect("a capture");
        launch(&stream, &kernel, &x, &mut y, count as u32).expect("recorded");
        launch(&stream, &kernel, &x, &mut y, count as u32).expect("recorded");
        let graph = stream.end_capture(CUgraphInstantiate_flags(0)).expect("a graph").expect("work in it");
        assert_eq!(stream.clone_dtoh(&y).expect("a copy"), first, "recorded work has not run");
        graph.launch().expect("a launch");
        graph.launch().expect("a launch");
        let last = stream.clone_dtoh(&y).expect("a copy");
        assert!(last.iter().zip(&values).all(|(y, x)| *y == 10.0 * x));
    });
}

#[test]
fn pinned_memory_is_read_when_a_graph_runs() {
    in_child!({
        let (context, stream, kernel) = start();
        // SAFETY: one stream only.
        unsafe { context.disable_event_tracking() };
        // SAFETY: filled before it is read.
        let mut pinned = unsafe { context.alloc_pinned::<f32>(64) }.expect("pinned memory");
        let mut x = stream.alloc_zeros::<f32>(64).expect("memory");
        let mut y = stream.alloc_zeros::<f32>(64).expect("memory");
        pinned.as_mut_slice().expect("no work").fill(1.0);
        stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED).expect("a capture");
        stream.memcpy_htod(&pinned, &mut x).expect("recorded");
        launch(&stream, &kernel, &x, &mut y, 64).expect("recorded");
        let graph = stream.end_capture(CUgraphInstantiate_flags(0)).expect("a graph").expect("work in it");
        for value in [3.0, 5.0] {
            stream.synchronize().expect("no error");
            pinned.as_mut_slice().expect("no work").fill(value);
            graph.launch().expect("a launch");
        }
        assert_eq!(stream.clone_dtoh(&y).expect("a copy"), vec![16.0; 64]);
    });
}

#[test]
fn an_out_of_bounds_access_is_found_and_its_error_stays() {
    let Some(outcome) = child::outcome(test_name!(), "", || {
        let (_context, stream, kernel) = start();
        let x = stream.alloc_zeros::<f32>(100).expect("memory");
        let mut y = stream.alloc_zeros::<f32>(100).expect("memory");
        launch(&stream, &kernel, &x, &mut y, 101).expect("launches are asynchronous");
        let error = stream.synchronize().expect_err("the error of the launch");
        assert_eq!(error.0, CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
        let again = stream.alloc_zeros::<f32>(1).expect_err("the error stays");
        assert_eq!(again.0, CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
        assert_eq!(child::findings().len(), 1);
    }) else {
        return;
    };
    assert!(outcome.passed, "{}", outcome.output);
    outcome.expect_finding(&["OutOfBounds", "kernel double", "PTX line 25", "block [1, 0, 0]", "thread [36, 0, 0]"]);
}

#[test]
fn a_leak_and_an_uninitialised_copy_are_found() {
    let Some(outcome) = child::outcome(test_name!(), "", || {
        let (_context, stream, _) = start();
        // SAFETY: nothing reads it but the copy below, which is what the test is about.
        let never_written = unsafe { stream.alloc::<f32>(10) }.expect("memory");
        let _ = std::mem::ManuallyDrop::new(stream.alloc_zeros::<f32>(3).expect("memory"));
        assert!(stream.clone_dtoh(&never_written).is_err());
        child::reset();
    }) else {
        return;
    };
    outcome.expect_finding(&["Uninitialised", "40 bytes"]);
    outcome.expect_finding(&["Leak", "12 bytes"]);
}

#[test]
fn no_device_and_an_old_driver_are_told_apart() {
    in_child!("no-device,driver=11040", {
        let error = CudaContext::new(0).expect_err("no device");
        assert_eq!(error.0, CUresult::CUDA_ERROR_NO_DEVICE);
    });
}

#[test]
fn an_old_driver_refuses_new_ptx() {
    in_child!("driver=11080", {
        let _context = CudaContext::new(0).expect("a device");
        let error = load(DOUBLE).err().expect("PTX 8.0 on a driver 11.8");
        assert_eq!(error.0, CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION);
    });
}

#[test]
fn memory_ends_where_the_setting_says() {
    in_child!("memory=1000", {
        let context = CudaContext::new(0).expect("a device");
        let stream = context.default_stream();
        let held = stream.alloc_zeros::<u8>(600).expect("room");
        assert_eq!(stream.alloc_zeros::<u8>(401).expect_err("no room").0, CUresult::CUDA_ERROR_OUT_OF_MEMORY);
        assert_eq!(context.mem_get_info().expect("numbers"), (400, 1000));
        drop(held);
        stream.synchronize().expect("no error");
        assert!(stream.alloc_zeros::<u8>(1000).is_ok());
    });
}

#[test]
fn the_nth_launch_fails_and_a_device_can_be_lost() {
    in_child!("fail-launch=2", {
        let (_context, stream, kernel) = start();
        let x = stream.alloc_zeros::<f32>(8).expect("memory");
        let mut y = stream.alloc_zeros::<f32>(8).expect("memory");
        launch(&stream, &kernel, &x, &mut y, 8).expect("a launch");
        stream.synchronize().expect("the first is well");
        launch(&stream, &kernel, &x, &mut y, 8).expect("asynchronous");
        assert_eq!(stream.synchronize().expect_err("the second").0, CUresult::CUDA_ERROR_LAUNCH_FAILED);
        assert_eq!(stream.synchronize().expect_err("it stays").0, CUresult::CUDA_ERROR_LAUNCH_FAILED);
        child::reset();
        child::configure("lose-device=1");
        launch(&stream, &kernel, &x, &mut y, 8).expect("asynchronous");
        assert_eq!(stream.synchronize().expect_err("lost").0, CUresult::CUDA_ERROR_DEVICE_UNAVAILABLE);
        child::reset();
    });
}

#[test]
fn captures_refuse_what_hardware_refuses() {
    in_child!({
        let (context, stream, _) = start();
        stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_GLOBAL).expect("a capture");
        assert_eq!(
            stream.synchronize().expect_err("a stream that captures").0,
            CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED
        );
        let ended = stream.end_capture(CUgraphInstantiate_flags(0));
        assert_eq!(ended.err().map(|error| error.0), Some(CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED));
        let event = context.new_event(None).expect("an event");
        let other = context.new_stream().expect("a stream");
        event.record(&other).expect("recorded outside");
        stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED).expect("a capture");
        assert_eq!(stream.wait(&event).expect_err("outside").0, CUresult::CUDA_ERROR_STREAM_CAPTURE_ISOLATION);
        assert!(stream.end_capture(CUgraphInstantiate_flags(0)).is_err());
    });
}

#[test]
fn launches_beyond_limits_are_refused_with_a_reason() {
    let Some(outcome) = child::outcome(test_name!(), "", || {
        let (_context, stream, kernel) = start();
        for shape in [[1, 1025, 0], [1, 32, 50_000]] {
            let refused = launch_as(&stream, &kernel, shape, (0, 0, 0));
            assert_eq!(refused.err().map(|error| error.0), Some(CUresult::CUDA_ERROR_INVALID_VALUE));
        }
    }) else {
        return;
    };
    assert!(outcome.passed, "{}", outcome.output);
    outcome.expect_finding(&["Launch", "1025", "1024 threads"]);
    outcome.expect_finding(&["Launch", "50000 bytes", "49152 were granted"]);
}

#[test]
fn a_module_with_an_unknown_instruction_is_refused_with_its_line() {
    let Some(outcome) = child::outcome(test_name!(), "", || {
        let _context = CudaContext::new(0).expect("a device");
        let text = DOUBLE.replace("fma.rn.f32 %f3", "fma.rn.frobnicate.f32 %f3");
        let error = load(&text).err().expect("refused");
        assert_eq!(error.0, CUresult::CUDA_ERROR_INVALID_PTX);
    }) else {
        return;
    };
    outcome.expect_finding(&["Module", "PTX line 27", "frobnicate"]);
}
