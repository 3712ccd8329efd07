//! Streams and events.
//!
//! All streams share one order, so waiting for an event is only about captures: it can draw a stream
//! into one, and it is refused where it would reach out of one. Start at `cuStreamWaitEvent`.

use std::ffi::{c_int, c_uint};
use std::sync::PoisonError;

use super::objects::{Event, Stream, enqueue, objects};
use super::{CAPTURE_ISOLATION, CAPTURE_MERGE, CAPTURED_EVENT, Code, INVALID_HANDLE, NOT_READY, exported, give, ready};
use crate::device::device;
use crate::device::work::Work;

fn create(out: *mut u64, flags: c_uint) -> Result<(), Code> {
    ready()?;
    let mut objects = objects();
    let handle = objects.handle();
    // Flag 1: does not wait for the legacy default stream.
    objects.streams.insert(handle, Stream { blocking: flags & 1 == 0, ..Stream::default() });
    // SAFETY: the caller keeps the driver's contract.
    unsafe { give(out, handle) }
}

/// The ticket that an event stands for; `None` if it was never recorded.
fn ticket_of(event: u64) -> Result<Option<u64>, Code> {
    let objects = objects();
    let Some(event) = objects.events.get(&event) else { return Err(INVALID_HANDLE) };
    if event.captured.is_some() {
        return Err(CAPTURED_EVENT);
    }
    Ok(event.ticket)
}

fn record(event: u64, stream: u64) -> Result<(), Code> {
    ready()?;
    let time = match objects().events.get(&event) {
        Some(event) => event.time.clone(),
        None => return Err(INVALID_HANDLE),
    };
    let capture = objects().stream(stream)?.capture;
    let (ticket, captured) = match capture {
        Some(capture) => {
            let objects = objects();
            let done = objects.captures.get(&capture).map_or(0, |capture| capture.work.len());
            (None, Some((capture, stream, done)))
        }
        None => (enqueue(stream, vec![Work::Mark(time)])?, None),
    };
    if let Some(event) = objects().events.get_mut(&event) {
        event.ticket = ticket;
        event.captured = captured;
    }
    Ok(())
}

fn wait_event(stream: u64, event: u64) -> Result<(), Code> {
    ready()?;
    let mut objects = objects();
    let Some(found) = objects.events.get(&event) else { return Err(INVALID_HANDLE) };
    let (captured, recorded) = (found.captured, found.ticket.is_some());
    let own = objects.stream(stream)?.capture;
    match (captured, own) {
        (Some((capture, from, _)), own) if objects.captures.contains_key(&capture) => {
            if own.is_some_and(|own| own != capture) {
                return Err(CAPTURE_MERGE);
            }
            objects.stream(stream)?.capture = Some(capture);
            if let Some(capture) = objects.captures.get_mut(&capture) {
                capture.unjoined.remove(&from);
                if capture.origin != stream && from != stream {
                    capture.unjoined.insert(stream);
                }
            }
            Ok(())
        }
        (None, Some(capture)) if recorded => {
            if let Some(capture) = objects.captures.get_mut(&capture) {
                capture.invalid = true;
            }
            Err(CAPTURE_ISOLATION)
        }
        _ => Ok(()),
    }
}

exported! {
    fn cuStreamCreate(out: *mut u64, flags: c_uint) {
        create(out, flags)
    }

    fn cuStreamCreateWithPriority(out: *mut u64, flags: c_uint, _priority: c_int) {
        create(out, flags)
    }

    fn cuStreamDestroy_v2(stream: u64) {
        ready()?;
        objects().streams.remove(&stream).map(|_| ()).ok_or(INVALID_HANDLE)
    }

    fn cuStreamSynchronize(stream: u64) {
        ready()?;
        objects().forbid_on_capturing(stream)?;
        let newest = objects().stream(stream)?.newest;
        device().wait(newest)
    }

    fn cuStreamQuery(stream: u64) {
        ready()?;
        objects().forbid_on_capturing(stream)?;
        let newest = objects().stream(stream)?.newest;
        if device().is_done(newest) { ready() } else { Err(NOT_READY) }
    }

    fn cuStreamWaitEvent(stream: u64, event: u64, _flags: c_uint) {
        wait_event(stream, event)
    }

    fn cuStreamAttachMemAsync(_stream: u64, _address: u64, _bytes: usize, _flags: c_uint) {
        ready()
    }

    fn cuEventCreate(out: *mut u64, _flags: c_uint) {
        ready()?;
        let mut objects = objects();
        let handle = objects.handle();
        objects.events.insert(handle, Event::default());
        // SAFETY: the caller keeps the driver's contract.
        unsafe { give(out, handle) }
    }

    fn cuEventDestroy_v2(event: u64) {
        ready()?;
        objects().events.remove(&event).map(|_| ()).ok_or(INVALID_HANDLE)
    }

    fn cuEventRecord(event: u64, stream: u64) {
        record(event, stream)
    }

    fn cuEventRecordWithFlags(event: u64, stream: u64, _flags: c_uint) {
        record(event, stream)
    }

    fn cuEventQuery(event: u64) {
        ready()?;
        match ticket_of(event)? {
            Some(ticket) if !device().is_done(ticket) => Err(NOT_READY),
            _ => ready(),
        }
    }

    fn cuEventSynchronize(event: u64) {
        ready()?;
        match ticket_of(event)? {
            Some(ticket) => device().wait(ticket),
            None => Ok(()),
        }
    }

    fn cuEventElapsedTime(out: *mut f32, start: u64, end: u64) {
        ready()?;
        let (first, last) = (ticket_of(start)?, ticket_of(end)?);
        let (Some(first), Some(last)) = (first, last) else { return Err(INVALID_HANDLE) };
        if !device().is_done(first) || !device().is_done(last) {
            return Err(NOT_READY);
        }
        let objects = objects();
        let time = |event| {
            let time = objects.events.get(&event).map(|event| event.time.clone())?;
            *time.lock().unwrap_or_else(PoisonError::into_inner)
        };
        let (Some(first), Some(last)) = (time(start), time(end)) else { return Err(INVALID_HANDLE) };
        // SAFETY: the caller keeps the driver's contract.
        unsafe { give(out, last.saturating_duration_since(first).as_secs_f32() * 1e3) }
    }
}
