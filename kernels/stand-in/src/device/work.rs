//! Work on the device, as streams submit it and graphs record it.
//!
//! Copies and fills are checked like kernels: bounds against one allocation, and copies to the host
//! against what was never written. After an error nothing runs any more but frees, events and host
//! functions. Start at [`Device::perform`].

use std::ffi::c_void;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::finding::{Finding, Kind};
use super::{Device, Held};
use crate::decode::Kernel;
use crate::machine::{self, Launch};

/// A host address that crosses to the device's thread.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HostPointer(pub(crate) *mut c_void);

// SAFETY: it is only an address here; whoever submitted the work promised, by the driver's contract, that the
// memory stays valid until the work is done.
unsafe impl Send for HostPointer {}

/// One piece of work.
#[derive(Clone, Debug)]
pub(crate) enum Work {
    Launch {
        kernel: Arc<Kernel>,
        launch: Launch,
    },
    /// To the device, from bytes that were taken at the call.
    CopyBytes {
        to: u64,
        bytes: Vec<u8>,
    },
    /// To the device, from memory that is read when the work runs: pinned, or in a graph.
    CopyIn {
        to: u64,
        from: HostPointer,
        bytes: u64,
    },
    CopyOut {
        to: HostPointer,
        from: u64,
        bytes: u64,
    },
    CopyDevice {
        to: u64,
        from: u64,
        bytes: u64,
    },
    Fill {
        to: u64,
        pattern: [u8; 4],
        width: u64,
        count: u64,
    },
    Free {
        address: u64,
    },
    Host {
        function: unsafe extern "C" fn(*mut c_void),
        data: HostPointer,
    },
    /// A place in the order, for events: the time at which it was reached.
    Mark(Arc<Mutex<Option<Instant>>>),
}

impl Device {
    pub(super) fn perform(&self, work: Work) {
        let broken = self.lock().sticky.is_some();
        let done = match work {
            Work::Free { address } => self.free(address),
            Work::Host { function, data } => {
                // SAFETY: the host gave the function for just this argument.
                unsafe { function(data.0) };
                Ok(())
            }
            Work::Mark(time) => {
                *time.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
                Ok(())
            }
            _ if broken => Ok(()),
            Work::Launch { kernel, launch } => self.launch(&kernel, &launch),
            Work::CopyBytes { to, bytes } => self.copy_bytes(to, &bytes),
            Work::CopyIn { to, from, bytes } => {
                // SAFETY: the host keeps the source valid until the work is done.
                let source = unsafe { std::slice::from_raw_parts(from.0.cast::<u8>(), bytes as usize) };
                self.copy_bytes(to, source)
            }
            Work::CopyOut { to, from, bytes } => self.copy_out(to, from, bytes),
            Work::CopyDevice { to, from, bytes } => self.copy_device(to, from, bytes),
            Work::Fill { to, pattern, width, count } => {
                let bytes = pattern[..width as usize].repeat(count as usize);
                self.copy_bytes(to, &bytes)
            }
        };
        if let Err(finding) = done {
            self.lock().fail(finding);
        }
    }

    fn launch(&self, kernel: &Kernel, launch: &Launch) -> Result<(), Finding> {
        let memory = {
            let mut state = self.lock();
            if let Some(code) = state.provoke() {
                state.sticky = Some(code);
                return Ok(());
            }
            state.memory.clone()
        };
        machine::run(kernel, launch, &memory).map(|_| ())
    }

    fn holding(&self, address: u64, bytes: u64, what: &str) -> Result<Held, Finding> {
        let state = self.lock();
        match state.memory.holding(address, bytes) {
            Some(held) => Ok(Arc::clone(held)),
            None => {
                let kind = if state.memory.was_freed(address) { Kind::UseAfterFree } else { Kind::OutOfBounds };
                let around = state.memory.describe(address, bytes);
                Err(Finding::new(kind, format!("{what} of {bytes} bytes at {address:#x}: {around}")))
            }
        }
    }

    fn copy_bytes(&self, to: u64, bytes: &[u8]) -> Result<(), Finding> {
        if !bytes.is_empty() {
            self.holding(to, bytes.len() as u64, "a copy or fill")?.write_unchecked(to, bytes);
        }
        Ok(())
    }

    fn copy_out(&self, to: HostPointer, from: u64, bytes: u64) -> Result<(), Finding> {
        if bytes == 0 {
            return Ok(());
        }
        let held = self.holding(from, bytes, "a copy to the host")?;
        let lenient = self.lock().settings.uninitialised_copies;
        if let Some(at) = held.first_invalid(from, bytes).filter(|_| !lenient) {
            let text = format!(
                "a copy of {bytes} bytes at {from:#x} to the host includes bytes that nothing wrote, first byte {} of it",
                at - from
            );
            return Err(Finding::new(Kind::Uninitialised, text));
        }
        // SAFETY: the host keeps the target valid, and writes nothing there, until the work is done.
        let target = unsafe { std::slice::from_raw_parts_mut(to.0.cast::<u8>(), bytes as usize) };
        held.read_unchecked(from, target);
        Ok(())
    }

    fn copy_device(&self, to: u64, from: u64, bytes: u64) -> Result<(), Finding> {
        if bytes != 0 {
            let source = self.holding(from, bytes, "the source of a copy")?;
            self.holding(to, bytes, "the target of a copy")?.copy_from(to, &source, from, bytes);
        }
        Ok(())
    }

    fn free(&self, address: u64) -> Result<(), Finding> {
        let mut state = self.lock();
        if state.memory.free(address) {
            return Ok(());
        }
        let what = if state.memory.was_freed(address) { "was freed before" } else { "is no allocation's address" };
        Err(Finding::new(Kind::UseAfterFree, format!("free of {address:#x}, which {what}")))
    }
}
