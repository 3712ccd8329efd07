//! Modules, functions, streams, events and graphs behind the handles that the host holds.
//!
//! A handle is a number that is never used again, so a stale one is an error and not another object.
//! Start at [`objects`]; [`enqueue`] is how work reaches a stream or the graph that it records.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use super::{CAPTURE_IMPLICIT, CAPTURE_INVALIDATED, CAPTURE_UNSUPPORTED, Code, INVALID_HANDLE};
use crate::decode::Kernel;
use crate::device::device;
use crate::device::work::Work;

/// Handles of the legacy default stream and of the one a thread.
const DEFAULT_STREAMS: [u64; 3] = [0, 1, 2];

#[derive(Debug, Default)]
pub(super) struct Module {
    pub(super) kernels: HashMap<String, Arc<Kernel>>,
    /// Address and size of each variable.
    pub(super) variables: HashMap<String, (u64, u64)>,
    /// Handles of functions that were asked for.
    pub(super) functions: HashMap<String, u64>,
}

#[derive(Debug)]
pub(super) struct Function {
    pub(super) kernel: Arc<Kernel>,
    /// Dynamic shared memory that was granted.
    pub(super) dynamic_shared_bytes: u64,
}

#[derive(Debug, Default)]
pub(super) struct Stream {
    /// Waits for the legacy default stream.
    pub(super) blocking: bool,
    /// Ticket of its newest work.
    pub(super) newest: u64,
    /// The capture that it takes part in.
    pub(super) capture: Option<u64>,
}

#[derive(Debug, Default)]
pub(super) struct Event {
    /// Ticket of the work that it follows, once it was recorded outside a capture.
    pub(super) ticket: Option<u64>,
    pub(super) time: Arc<Mutex<Option<Instant>>>,
    /// Recorded while capturing: (capture, stream, work recorded by then).
    pub(super) captured: Option<(u64, u64, usize)>,
}

#[derive(Debug, Default)]
pub(super) struct Capture {
    pub(super) origin: u64,
    pub(super) work: Vec<Work>,
    /// 0 global, 1 this thread, 2 relaxed.
    pub(super) mode: u32,
    pub(super) invalid: bool,
    /// Streams with work that the origin does not follow yet.
    pub(super) unjoined: HashSet<u64>,
}

#[derive(Debug, Default)]
pub(super) struct Objects {
    next: u64,
    pub(super) modules: HashMap<u64, Module>,
    pub(super) functions: HashMap<u64, Function>,
    pub(super) streams: HashMap<u64, Stream>,
    pub(super) events: HashMap<u64, Event>,
    pub(super) captures: HashMap<u64, Capture>,
    pub(super) graphs: HashMap<u64, Vec<Work>>,
    pub(super) executables: HashMap<u64, Vec<Work>>,
}

/// The objects, locked. Never lock the device's state and then this.
pub(super) fn objects() -> MutexGuard<'static, Objects> {
    static OBJECTS: OnceLock<Mutex<Objects>> = OnceLock::new();
    OBJECTS.get_or_init(Default::default).lock().unwrap_or_else(PoisonError::into_inner)
}

impl Objects {
    /// A new handle, far from small numbers that mean default streams.
    pub(super) fn handle(&mut self) -> u64 {
        self.next = self.next.max(0x1000) + 16;
        self.next
    }

    /// The stream of a handle; default streams appear when they are first used.
    pub(super) fn stream(&mut self, handle: u64) -> Result<&mut Stream, Code> {
        if DEFAULT_STREAMS.contains(&handle) {
            return Ok(self.streams.entry(0).or_insert_with(|| Stream { blocking: true, ..Stream::default() }));
        }
        self.streams.get_mut(&handle).ok_or(INVALID_HANDLE)
    }

    /// What a call that captures forbid does: while one is under way that is not relaxed it fails, and
    /// the capture is spoilt.
    pub(super) fn forbid_in_capture(&mut self) -> Result<(), Code> {
        let mut found = false;
        for capture in self.captures.values_mut().filter(|capture| capture.mode != 2) {
            capture.invalid = true;
            found = true;
        }
        if found { Err(CAPTURE_UNSUPPORTED) } else { Ok(()) }
    }

    /// Waiting for a stream that captures fails, and spoils the capture.
    pub(super) fn forbid_on_capturing(&mut self, handle: u64) -> Result<(), Code> {
        let Some(capture) = self.stream(handle)?.capture else { return Ok(()) };
        if let Some(capture) = self.captures.get_mut(&capture) {
            capture.invalid = true;
        }
        Err(CAPTURE_UNSUPPORTED)
    }

    /// Whether work on this stream is recorded and not run.
    pub(super) fn is_capturing(&mut self, handle: u64) -> Result<bool, Code> {
        Ok(self.stream(handle)?.capture.is_some())
    }
}

/// Submits work to a stream, or records it; gives the ticket where it was submitted.
pub(super) fn enqueue(handle: u64, work: Vec<Work>) -> Result<Option<u64>, Code> {
    let mut objects = objects();
    if let Some(id) = objects.stream(handle)?.capture {
        let Some(capture) = objects.captures.get_mut(&id) else { return Err(CAPTURE_INVALIDATED) };
        if capture.invalid {
            return Err(CAPTURE_INVALIDATED);
        }
        capture.work.extend(work);
        if capture.origin != handle {
            capture.unjoined.insert(handle);
        }
        return Ok(None);
    }
    // The legacy stream would have to wait for a stream that does not run.
    if handle < 2 && objects.streams.values().any(|stream| stream.blocking && stream.capture.is_some()) {
        for capture in objects.captures.values_mut() {
            capture.invalid = true;
        }
        return Err(CAPTURE_IMPLICIT);
    }
    let mut ticket = objects.stream(handle)?.newest;
    for piece in work {
        ticket = device().submit(piece);
    }
    objects.stream(handle)?.newest = ticket;
    Ok(Some(ticket))
}

/// Submits work and waits for it and for everything before it, as calls without a stream do.
pub(super) fn run_now(work: Work) -> Result<(), Code> {
    objects().forbid_in_capture()?;
    let ticket = device().submit(work);
    device().wait(ticket)
}
