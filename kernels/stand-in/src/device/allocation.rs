//! One piece of memory that kernels can address, with a validity bit a byte.
//!
//! Device memory has addresses of its own that no host pointer equals, with gaps on both sides, and
//! they are never given out twice: a wrong access cannot hit something else. Pinned host memory is at
//! its host address and counts as written, because the host writes it unseen. Start at
//! [`Allocation::device`].

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::sync::atomic::{AtomicU64, Ordering};

/// What an allocation is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    Device,
    /// Pinned host memory.
    Host,
    /// Variables of a module.
    Module,
    /// Constants of a module: kernels cannot write them.
    Constant,
}

/// A piece of memory; see the module.
#[derive(Debug)]
pub(crate) struct Allocation {
    pub(crate) base: u64,
    pub(crate) bytes: u64,
    pub(crate) purpose: Purpose,
    data: *mut u8,
    /// A bit a byte; empty where everything counts as written.
    valid: Box<[AtomicU64]>,
}

// SAFETY: the pointer is owned until drop, and its bytes are only touched through `read` and `write`. Device
// memory is read and written by the one thread that runs the device's work, or before the address is given
// out; pinned memory is shared with the host by contract, as on hardware, and touched byte by byte.
unsafe impl Send for Allocation {}
// SAFETY: as above.
unsafe impl Sync for Allocation {}

/// Why bytes cannot be read or written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The first byte of the range that was never written.
    Uninitialised(u64),
    ReadOnly,
}

const ALIGN: usize = 256;

/// Copies bytes; the sizes of single accesses without a call.
#[inline(always)]
pub(crate) fn copy_bytes(to: &mut [u8], from: &[u8]) {
    fn fixed<const N: usize>(to: &mut [u8], from: &[u8]) {
        if let (Some(to), Some(from)) = (to.first_chunk_mut::<N>(), from.first_chunk::<N>()) {
            *to = *from;
        }
    }
    match from.len() {
        4 => fixed::<4>(to, from),
        16 => fixed::<16>(to, from),
        2 => fixed::<2>(to, from),
        8 => fixed::<8>(to, from),
        _ => to.copy_from_slice(from),
    }
}

impl Allocation {
    fn layout(bytes: u64) -> Option<Layout> {
        Layout::from_size_align(usize::try_from(bytes.max(1)).ok()?, ALIGN).ok()
    }

    fn with(base: impl FnOnce(*mut u8) -> u64, bytes: u64, purpose: Purpose, tracked: bool) -> Option<Self> {
        // SAFETY: the layout has at least one byte.
        let data = unsafe { alloc_zeroed(Self::layout(bytes)?) };
        if data.is_null() {
            return None;
        }
        let words = if tracked { bytes.div_ceil(64) as usize } else { 0 };
        let valid = (0..words).map(|_| AtomicU64::new(0)).collect();
        Some(Self { base: base(data), bytes, purpose, data, valid })
    }

    /// Device memory at `base`, nothing written yet; `None` where the host has no room for it.
    pub(crate) fn device(base: u64, bytes: u64) -> Option<Self> {
        Self::with(|_| base, bytes, Purpose::Device, true)
    }

    /// A module's variable at `base`, all bytes written with `init` and zeros.
    pub(crate) fn variable(base: u64, bytes: u64, init: &[u8], constant: bool) -> Option<Self> {
        let purpose = if constant { Purpose::Constant } else { Purpose::Module };
        let allocation = Self::with(|_| base, bytes, purpose, false)?;
        allocation.store(0, init);
        Some(allocation)
    }

    /// Pinned host memory, at its own address.
    pub(crate) fn host(bytes: u64) -> Option<Self> {
        Self::with(|data| data as u64, bytes, Purpose::Host, false)
    }

    /// Whether the range is inside.
    #[inline]
    pub(crate) fn contains(&self, address: u64, bytes: u64) -> bool {
        address >= self.base && bytes <= self.bytes && address - self.base <= self.bytes - bytes
    }

    fn store(&self, offset: usize, from: &[u8]) {
        assert!(offset + from.len() <= self.bytes as usize);
        // SAFETY: the range was just checked, and `from` cannot overlap memory that no reference points to.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), self.data.add(offset), from.len()) };
    }

    /// Copies bytes out, without asking whether they were written. The range must be inside.
    #[inline]
    pub(crate) fn read_unchecked(&self, address: u64, out: &mut [u8]) {
        assert!(self.contains(address, out.len() as u64));
        // SAFETY: the range was just checked, so the pointer stays inside.
        let from = unsafe { self.data.add((address - self.base) as usize) };
        // The host may write a word of pinned memory while a kernel waits for it, so words are read whole.
        if out.len() == 4 && from.cast::<u32>().is_aligned() {
            // SAFETY: four bytes in the range, aligned.
            out.copy_from_slice(&unsafe { from.cast::<u32>().read_volatile() }.to_ne_bytes());
        } else if out.len() == 8 && from.cast::<u64>().is_aligned() {
            // SAFETY: eight bytes in the range, aligned.
            out.copy_from_slice(&unsafe { from.cast::<u64>().read_volatile() }.to_ne_bytes());
        } else {
            // SAFETY: the range was just checked, and `out` is the caller's own memory.
            unsafe { std::ptr::copy_nonoverlapping(from, out.as_mut_ptr(), out.len()) };
        }
    }

    /// Copies bytes out. The range must be inside.
    #[inline]
    pub(crate) fn read(&self, address: u64, out: &mut [u8]) -> Result<(), Refusal> {
        if let Some(at) = self.first_invalid(address, out.len() as u64) {
            return Err(Refusal::Uninitialised(at));
        }
        self.read_unchecked(address, out);
        Ok(())
    }

    /// Copies bytes in for a kernel: constants refuse. The range must be inside.
    #[inline]
    pub(crate) fn write(&self, address: u64, from: &[u8]) -> Result<(), Refusal> {
        if self.purpose == Purpose::Constant {
            return Err(Refusal::ReadOnly);
        }
        self.write_unchecked(address, from);
        Ok(())
    }

    /// Copies bytes in for the host. The range must be inside.
    #[inline]
    pub(crate) fn write_unchecked(&self, address: u64, from: &[u8]) {
        assert!(self.contains(address, from.len() as u64));
        let offset = address - self.base;
        self.store(offset as usize, from);
        self.set_valid(offset, from.len() as u64, true);
    }

    /// The address of the first byte in the range that was never written.
    #[inline]
    pub(crate) fn first_invalid(&self, address: u64, bytes: u64) -> Option<u64> {
        if self.valid.is_empty() {
            return None;
        }
        let (mut at, end) = (address - self.base, address - self.base + bytes);
        while at < end {
            // An aligned access of a kernel lies in one word.
            let here = (64 - at % 64).min(end - at);
            let word = self.valid[(at / 64) as usize].load(Ordering::Relaxed) >> (at % 64);
            let missing = !word & low_bits(here);
            if missing != 0 {
                return Some(self.base + at + u64::from(missing.trailing_zeros()));
            }
            at += here;
        }
        None
    }

    fn is_valid(&self, offset: u64) -> bool {
        self.valid.is_empty() || self.valid[(offset / 64) as usize].load(Ordering::Relaxed) >> (offset % 64) & 1 == 1
    }

    #[inline]
    fn set_valid(&self, offset: u64, bytes: u64, value: bool) {
        if self.valid.is_empty() {
            return;
        }
        let (mut at, end) = (offset, offset + bytes);
        while at < end {
            let here = (64 - at % 64).min(end - at);
            let mask = low_bits(here) << (at % 64);
            let word = &self.valid[(at / 64) as usize];
            let old = word.load(Ordering::Relaxed);
            word.store(if value { old | mask } else { old & !mask }, Ordering::Relaxed);
            at += here;
        }
    }

    /// Copies between allocations with what was never written staying so. Both ranges must be inside.
    pub(crate) fn copy_from(&self, to: u64, from: &Self, source: u64, bytes: u64) {
        let mut buffer = vec![0; bytes as usize];
        from.read_unchecked(source, &mut buffer);
        if from.first_invalid(source, bytes).is_none() {
            return self.write_unchecked(to, &buffer);
        }
        let validity: Vec<bool> = (0..bytes).map(|at| from.is_valid(source - from.base + at)).collect();
        self.write_unchecked(to, &buffer);
        for (at, _) in validity.iter().enumerate().filter(|(_, valid)| !**valid) {
            self.set_valid(to - self.base + at as u64, 1, false);
        }
    }

    /// The host's address of the first byte.
    pub(crate) fn host_pointer(&self) -> *mut u8 {
        self.data
    }
}

#[inline]
fn low_bits(count: u64) -> u64 {
    if count >= 64 { u64::MAX } else { (1 << count) - 1 }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        if let Some(layout) = Self::layout(self.bytes) {
            // SAFETY: allocated in `with` with this very layout, and dropped once.
            unsafe { dealloc(self.data, layout) };
        }
    }
}
