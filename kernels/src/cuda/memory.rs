//! Memory of a card: buffers that are freed behind their last use, scratch that grows, and copies to and from it.
//!
//! Everything goes through the card's one stream, so a copy sees what was launched before it. Launches of a pass may still
//! wait in the host (`pending.rs`): what reads their results, or overwrites what they read, sends them off first.

use std::sync::Arc;

use cudarc::driver::sys::CUresult;
use cudarc::driver::{CudaSlice, DevicePtr, DriverError};

use super::gpu::Gpu;
use super::parameters::{Plain, bytes_of, from_bytes};
use super::pending::Pending;
use crate::device::DeviceError;

/// Device memory of bytes; freed on the stream when dropped, behind launches that wait.
pub(super) struct Memory {
    /// None once it is dropped.
    slice: Option<CudaSlice<u8>>,
    address: u64,
    bytes: usize,
    pending: Arc<Pending>,
}

impl Memory {
    /// Its address.
    pub(super) fn address(&self) -> u64 {
        self.address
    }

    /// Bytes it holds.
    pub(super) fn len(&self) -> usize {
        self.bytes
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if let Some(slice) = self.slice.take() {
            self.pending.free(slice);
        }
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

impl Gpu {
    /// Allocates memory that nothing has been written to.
    pub(super) fn allocate(&self, what: &'static str, bytes: usize) -> Result<Memory, DeviceError> {
        self.alive()?;
        // The driver refuses to allocate nothing.
        // SAFETY: whoever allocates writes before reading: `zeroed`, `upload` and the kernels' own outputs.
        match unsafe { self.stream.alloc::<u8>(bytes.max(16)) } {
            Ok(slice) => {
                let (address, bytes) = (slice.device_ptr(&self.stream).0, slice.len());
                Ok(Memory { slice: Some(slice), address, bytes, pending: self.pending.clone() })
            }
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
        if let Some(slice) = &mut memory.slice {
            self.check(what, self.stream.memset_zeros(slice))?;
        }
        Ok(memory)
    }

    /// Allocates memory with these contents.
    pub(super) fn upload<T: Plain>(&self, what: &'static str, values: &[T]) -> Result<Memory, DeviceError> {
        let mut memory = self.allocate(what, size_of_val(values))?;
        if let (Some(slice), false) = (&mut memory.slice, values.is_empty()) {
            self.check(what, self.stream.memcpy_htod(bytes_of(values), slice))?;
        }
        Ok(memory)
    }

    /// Copies bytes to the start of scratch, which grows as needed; its address. Launches that wait go first, for they may
    /// read what is there.
    pub(super) fn write(&self, what: &'static str, bytes: &[u8], scratch: &mut Scratch) -> Result<u64, DeviceError> {
        self.flush()?;
        let address = scratch.reserve(self, what, bytes.len())?;
        let slice = scratch.0.as_mut().and_then(|memory| memory.slice.as_mut());
        if let (Some(slice), false) = (slice, bytes.is_empty()) {
            self.check(what, self.stream.memcpy_htod(bytes, slice))?;
        }
        Ok(address)
    }

    /// Reads `count` values of memory behind launches that wait, and waits for them.
    pub(super) fn read<T: Plain>(
        &self,
        operation: &'static str,
        memory: &Memory,
        start_bytes: usize,
        count: usize,
    ) -> Result<Vec<T>, DeviceError> {
        self.flush()?;
        self.alive()?;
        let mut bytes = vec![0; count * size_of::<T>()];
        if !bytes.is_empty() {
            let part = memory.slice.as_ref().and_then(|slice| slice.try_slice(start_bytes..start_bytes + bytes.len()));
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
}
