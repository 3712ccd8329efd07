//! A host for native tests: a toy vocabulary, made-up values, and the contract's rules for steering.
//!
//! [`FakeHost`] answers a policy's calls; [`Harness`] starts a policy against one and steps it, token by
//! token or through whole responses. The rules are written plainly, a vocabulary at a time; the real
//! host's are compared with them. It is no model of the real host's limits: fuel, memory and time are
//! what `vassal policy check` is for.
//!
//! See the crate's own page for an example.

mod fake;
mod harness;

use std::cell::RefCell;

pub use fake::FakeHost;
pub use harness::{Harness, Outcome, apply};

thread_local! {
    static HOST: RefCell<Option<FakeHost>> = const { RefCell::new(None) };
}

/// Gives the policy's call to the host of the running test.
///
/// # Panics
/// If there is none: a host function is called outside a [`Harness`].
pub(crate) fn with_host<T>(call: impl FnOnce(&mut FakeHost) -> T) -> T {
    HOST.with_borrow_mut(|host| match host {
        Some(host) => call(host),
        None => {
            panic!("outside a component, a host function is answered inside a test::Harness only")
        }
    })
}

/// Lends the host to this thread while the policy runs.
pub(crate) fn lending<T>(host: &mut FakeHost, run: impl FnOnce() -> T) -> T {
    /// Gives the slot back when the policy panics too, so that the next test on this thread is clean.
    struct Guard;
    impl Drop for Guard {
        fn drop(&mut self) {
            HOST.set(None);
        }
    }
    let guard = Guard;
    HOST.set(Some(std::mem::take(host)));
    let answer = run();
    *host = HOST.take().unwrap_or_default();
    drop(guard);
    answer
}
