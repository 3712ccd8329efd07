//! Running a guest's call for a slice of time.
//!
//! A call is a future that yields after some fuel. It is polled by hand, with a waker that does nothing, until it is
//! done, waits for values, or its slice is over; then others have their turn. The clock is a backstop here too: it
//! counts the time that slices took together, not what lies between them.

use super::imports::Exchange;
use super::limits::Limits;
use std::future::Future;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

/// How a slice ended.
pub(super) enum Slice<T> {
    /// The call is done.
    Done(T),
    /// It waits for values.
    Waits,
    /// It could go on.
    Over,
    /// It has had all the time that a call may take: [`FaultKind::Deadline`](super::FaultKind::Deadline).
    Late,
}

/// The time that a call has had in slices.
#[derive(Default)]
pub(super) struct Running(Duration);

impl Running {
    /// Polls a call for a slice.
    pub(super) fn poll<T>(
        &mut self,
        mut call: Pin<&mut (dyn Future<Output = T> + Send)>,
        exchange: &Exchange,
        limits: &Limits,
    ) -> Slice<T> {
        let slice = Duration::from_micros(limits.slice_us);
        let mut started = None;
        loop {
            if let Poll::Ready(answer) = call.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                return Slice::Done(answer);
            }
            if exchange.lock().request.is_some() {
                return Slice::Waits;
            }
            // It yields after some fuel, which takes at most about a slice: a quick call never comes to look at a clock.
            let ran = started.get_or_insert_with(Instant::now).elapsed();
            if ran >= slice {
                self.0 += ran;
                let most = limits.deadline_ms.saturating_mul(limits.deadline_windows.into());
                return if self.0 < Duration::from_millis(most) { Slice::Over } else { Slice::Late };
            }
        }
    }
}

/// Runs a future that only yields: instantiation and `describe`, where `values` answers at once.
pub(super) fn to_its_end<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(answer) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return answer;
        }
    }
}
