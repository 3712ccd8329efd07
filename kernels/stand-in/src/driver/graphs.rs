//! Stream capture and graphs.
//!
//! A graph is the work that was recorded, in order: one order among those that its dependencies allow.
//! Parameters of kernels are taken when they are recorded, host memory of copies when they run. Start
//! at `cuStreamBeginCapture_v2`.

use std::ffi::{c_char, c_int, c_uint, c_ulonglong};

use super::objects::{Capture, enqueue, objects};
use super::{
    CAPTURE_INVALIDATED, CAPTURE_UNJOINED, CAPTURE_UNMATCHED, CAPTURE_UNSUPPORTED, Code, INVALID_HANDLE, INVALID_VALUE,
    OUT_OF_MEMORY, exported, give, ready,
};
use crate::device::device;

fn end(stream: u64) -> Result<u64, Code> {
    let mut objects = objects();
    let Some(id) = objects.stream(stream)?.capture else { return Err(INVALID_VALUE) };
    if objects.captures.get(&id).is_none_or(|capture| capture.origin != stream) {
        return Err(CAPTURE_UNMATCHED);
    }
    for other in objects.streams.values_mut().filter(|other| other.capture == Some(id)) {
        other.capture = None;
    }
    let Some(capture) = objects.captures.remove(&id) else { return Err(CAPTURE_UNMATCHED) };
    if capture.invalid {
        return Err(CAPTURE_INVALIDATED);
    }
    if !capture.unjoined.is_empty() {
        return Err(CAPTURE_UNJOINED);
    }
    let graph = objects.handle();
    objects.graphs.insert(graph, capture.work);
    Ok(graph)
}

fn instantiate(out: *mut u64, graph: u64) -> Result<(), Code> {
    ready()?;
    if device().lock().settings.no_graphs {
        return Err(OUT_OF_MEMORY);
    }
    let mut objects = objects();
    let Some(work) = objects.graphs.get(&graph).cloned() else { return Err(INVALID_HANDLE) };
    let handle = objects.handle();
    objects.executables.insert(handle, work);
    // SAFETY: the caller keeps the driver's contract.
    unsafe { give(out, handle) }
}

exported! {
    fn cuStreamBeginCapture_v2(stream: u64, mode: c_uint) {
        ready()?;
        if stream < 2 {
            return Err(CAPTURE_UNSUPPORTED);
        }
        if mode > 2 {
            return Err(INVALID_VALUE);
        }
        let mut objects = objects();
        if objects.is_capturing(stream)? {
            return Err(INVALID_VALUE);
        }
        let id = objects.handle();
        objects.captures.insert(id, Capture { origin: stream, mode, ..Capture::default() });
        objects.stream(stream)?.capture = Some(id);
        Ok(())
    }

    fn cuStreamEndCapture(stream: u64, out: *mut u64) {
        ready()?;
        let graph = end(stream);
        // SAFETY: the caller keeps the driver's contract. On failure there is no graph.
        unsafe { give(out, graph.unwrap_or(0))? };
        graph.map(|_| ())
    }

    fn cuStreamIsCapturing(stream: u64, out: *mut c_int) {
        ready()?;
        let mut objects = objects();
        let status = match objects.stream(stream)?.capture {
            None => 0,
            Some(id) => 1 + c_int::from(objects.captures.get(&id).is_none_or(|capture| capture.invalid)),
        };
        // SAFETY: the caller keeps the driver's contract.
        unsafe { give(out, status) }
    }

    fn cuThreadExchangeStreamCaptureMode(mode: *mut c_uint) {
        if mode.is_null() { Err(INVALID_VALUE) } else { Ok(()) }
    }

    fn cuGraphInstantiateWithFlags(out: *mut u64, graph: u64, _flags: c_ulonglong) {
        instantiate(out, graph)
    }

    fn cuGraphInstantiate_v2(out: *mut u64, graph: u64, _node: *mut u64, _log: *mut c_char, _bytes: usize) {
        instantiate(out, graph)
    }

    fn cuGraphUpload(executable: u64, _stream: u64) {
        ready()?;
        if objects().executables.contains_key(&executable) { Ok(()) } else { Err(INVALID_HANDLE) }
    }

    fn cuGraphLaunch(executable: u64, stream: u64) {
        ready()?;
        let Some(work) = objects().executables.get(&executable).cloned() else { return Err(INVALID_HANDLE) };
        enqueue(stream, work).map(|_| ())
    }

    fn cuGraphGetNodes(graph: u64, nodes: *mut u64, count: *mut usize) {
        ready()?;
        let objects = objects();
        let Some(work) = objects.graphs.get(&graph) else { return Err(INVALID_HANDLE) };
        if !nodes.is_null() {
            return Err(super::NOT_SUPPORTED);
        }
        // SAFETY: the caller keeps the driver's contract.
        unsafe { give(count, work.len()) }
    }

    fn cuGraphExecDestroy(executable: u64) {
        ready()?;
        objects().executables.remove(&executable).map(|_| ()).ok_or(INVALID_HANDLE)
    }

    fn cuGraphDestroy(graph: u64) {
        ready()?;
        objects().graphs.remove(&graph).map(|_| ()).ok_or(INVALID_HANDLE)
    }
}
