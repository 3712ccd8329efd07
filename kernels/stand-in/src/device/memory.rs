//! The map of all allocations, and one kernel's view of it.
//!
//! The map is copied when it changes, so that a launch has a fixed view without a lock: what is freed
//! while a kernel runs stays readable to it, as it would on hardware by luck. Start at
//! [`Memory::find`].

use std::collections::BTreeMap;
use std::sync::Arc;

use super::allocation::{Allocation, Purpose};

/// The first address of device memory: no host pointer and no window is there.
const BASE: u64 = 0x300_0000_0000;
/// At least so many bytes lie between two allocations.
const GAP: u64 = 4096;

/// All allocations; cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Memory {
    live: Arc<BTreeMap<u64, Arc<Allocation>>>,
    /// First address and size of what was freed.
    freed: Arc<BTreeMap<u64, u64>>,
    next: u64,
    used: u64,
}

impl Memory {
    /// Room for `bytes`, with an address that was never given out before.
    fn place(&mut self, bytes: u64) -> u64 {
        let base = self.next.max(BASE);
        self.next = (base + bytes.max(1) + GAP).next_multiple_of(GAP);
        base
    }

    /// Adds device memory; `None` where the host has no room.
    pub(crate) fn allocate(&mut self, bytes: u64) -> Option<u64> {
        let base = self.place(bytes);
        self.insert(Allocation::device(base, bytes)?);
        Some(base)
    }

    /// Adds pinned host memory.
    pub(crate) fn allocate_host(&mut self, bytes: u64) -> Option<Arc<Allocation>> {
        let allocation = Allocation::host(bytes)?;
        // The allocator may give out an address again; what was freed there is forgotten.
        Arc::make_mut(&mut self.freed).remove(&allocation.base);
        Some(self.insert(allocation))
    }

    /// Adds a variable of a module.
    pub(crate) fn allocate_variable(&mut self, bytes: u64, init: &[u8], constant: bool) -> Option<u64> {
        let base = self.place(bytes);
        self.insert(Allocation::variable(base, bytes, init, constant)?);
        Some(base)
    }

    fn insert(&mut self, allocation: Allocation) -> Arc<Allocation> {
        let allocation = Arc::new(allocation);
        if allocation.purpose == Purpose::Device {
            self.used += allocation.bytes;
        }
        Arc::make_mut(&mut self.live).insert(allocation.base, Arc::clone(&allocation));
        allocation
    }

    /// Removes what begins at `base`; `false` if nothing does.
    pub(crate) fn free(&mut self, base: u64) -> bool {
        let Some(gone) = Arc::make_mut(&mut self.live).remove(&base) else { return false };
        if gone.purpose == Purpose::Device {
            self.used -= gone.bytes;
        }
        Arc::make_mut(&mut self.freed).insert(base, gone.bytes);
        true
    }

    /// Bytes of device memory in use.
    pub(crate) fn used(&self) -> u64 {
        self.used
    }

    /// The allocation that begins at or before `address` and reaches it.
    pub(crate) fn find(&self, address: u64) -> Option<&Arc<Allocation>> {
        let (_, allocation) = self.live.range(..=address).next_back()?;
        (address - allocation.base < allocation.bytes.max(1)).then_some(allocation)
    }

    /// The allocation that holds the whole range.
    pub(crate) fn holding(&self, address: u64, bytes: u64) -> Option<&Arc<Allocation>> {
        self.find(address).filter(|allocation| allocation.contains(address, bytes))
    }

    /// Whether the range was once allocated and then freed.
    pub(crate) fn was_freed(&self, address: u64) -> bool {
        self.freed.range(..=address).next_back().is_some_and(|(base, bytes)| address - base < *bytes)
    }

    /// What lies around an address that is in no allocation, in words.
    pub(crate) fn describe(&self, address: u64, bytes: u64) -> String {
        if let Some((base, freed)) =
            self.freed.range(..=address).next_back().filter(|(base, size)| address - **base < **size)
        {
            return format!("inside {freed} bytes at {base:#x} that were freed");
        }
        match self.live.range(..=address).next_back() {
            Some((base, allocation)) if address - base < allocation.bytes + (1 << 20) => format!(
                "bytes {}..{} of an allocation of {} bytes at {base:#x}",
                address - base,
                address - base + bytes,
                allocation.bytes
            ),
            _ => "near no allocation".into(),
        }
    }

    /// What the host allocated and did not free: (address, bytes).
    pub(crate) fn leaks(&self) -> Vec<(u64, u64)> {
        let kept = |allocation: &&Arc<Allocation>| matches!(allocation.purpose, Purpose::Device | Purpose::Host);
        self.live.values().filter(kept).map(|allocation| (allocation.base, allocation.bytes)).collect()
    }
}
