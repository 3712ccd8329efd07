//! The allocator of a policy: a list of free blocks for each size class.
//!
//! A step of a policy allocates and frees some ten short lists, all under fuel, and a general allocator
//! costs more there than the policy itself: about 100 instructions a call (dlmalloc) or 250 (TLSF), where
//! taking a block from the head of a list costs 15. The price is memory: a block's size is rounded up to a
//! power of two, and a free block serves its own class only. An instance lives for one response in some MiB
//! of memory of its own, so neither adds up.
//!
//! It stands in this folder because an allocator cannot be written without unsafe code. That code runs inside
//! the sandbox: what goes wrong here spoils one response, as any bug of a policy does. Natively, outside of its
//! tests, the crate is empty. Start at `Blocks`.
#![cfg(any(all(target_arch = "wasm32", not(target_feature = "atomics")), test))]

use core::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;
use core::ptr;

/// The alignment of every block, bytes: no type of wasm32 wants more by itself. A layout that does is refused.
const ALIGN: usize = 16;
/// Classes: blocks of 16, 32, ... bytes, up to half of a 32-bit address space.
const CLASSES: usize = 28;
/// What memory grows by, bytes.
const PAGE: usize = 1 << 16;

/// Where memory comes from.
pub trait Source {
    /// Adds `bytes` (a multiple of 64 KiB) to memory and returns where they begin, aligned to 16 bytes and
    /// owned by the caller for ever; null if there are no more.
    fn grow(bytes: usize) -> *mut u8;
}

/// Free blocks, and the rest of the memory that has been added last.
struct State {
    /// The first free block of each class; its first bytes point to the next.
    free: [*mut u8; CLASSES],
    next: *mut u8,
    left: usize,
}

/// The allocator, for one thread.
pub struct Blocks<S> {
    state: UnsafeCell<State>,
    source: core::marker::PhantomData<fn() -> S>,
}

// SAFETY: outside of tests this is compiled for wasm32 without threads only, and each test uses its allocator on
// one thread.
unsafe impl<S> Sync for Blocks<S> {}

impl<S: Source> Blocks<S> {
    /// An allocator that has no memory yet.
    #[allow(clippy::new_without_default, reason = "an allocator is a static, made in a constant context")]
    pub const fn new() -> Self {
        let state = State { free: [ptr::null_mut(); CLASSES], next: ptr::null_mut(), left: 0 };
        Self { state: UnsafeCell::new(state), source: core::marker::PhantomData }
    }
}

/// The class of a size, which need not exist.
#[inline]
fn class(size: usize) -> usize {
    // 16 bytes and less are class 0, 17 to 32 class 1.
    (usize::BITS - ((size.max(1) - 1) | (ALIGN - 1)).leading_zeros()) as usize - ALIGN.trailing_zeros() as usize
}

impl State {
    /// A block of a class that has no free one.
    #[cold]
    #[inline(never)]
    fn carve<S: Source>(&mut self, class: usize) -> *mut u8 {
        let size = ALIGN << class;
        if self.left < size {
            let bytes = size.div_ceil(PAGE) * PAGE;
            let start = S::grow(bytes);
            if start.is_null() {
                return start;
            }
            // Memory that follows what is left makes one piece with it; otherwise the shorter piece is given up.
            if self.next.wrapping_add(self.left) == start {
                self.left += bytes;
            } else if self.left < bytes {
                (self.next, self.left) = (start, bytes);
            }
        }
        let block = self.next;
        self.next = self.next.wrapping_add(size);
        self.left -= size;
        block
    }
}

// SAFETY: blocks of a class do not overlap, because each is carved once from memory that only this allocator
// owns, and is handed out again only after it was freed; they are as large as their class, which is at least as
// large as the layout's size, and aligned to 16 bytes, beyond which layouts are refused.
unsafe impl<S: Source> GlobalAlloc for Blocks<S> {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: there is one thread, and no reference to the state outlives a method.
        let state = unsafe { &mut *self.state.get() };
        let class = class(layout.size());
        if class >= CLASSES || layout.align() > ALIGN {
            return ptr::null_mut();
        }
        let block = state.free[class];
        if block.is_null() {
            return state.carve::<S>(class);
        }
        // SAFETY: a free block is at least 16 bytes long, aligned, and holds the pointer that `dealloc` wrote.
        state.free[class] = unsafe { *block.cast::<*mut u8>() };
        block
    }

    #[inline]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as in `alloc`.
        let state = unsafe { &mut *self.state.get() };
        let class = class(layout.size());
        if class >= CLASSES {
            return;
        }
        // SAFETY: the caller gives back a block that `alloc` gave for this layout, hence of this class.
        unsafe { *block.cast::<*mut u8>() = state.free[class] };
        state.free[class] = block;
    }

    #[inline]
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if class(layout.size()) == class(size) {
            return block;
        }
        // SAFETY: the caller promises that `size`, rounded up to the alignment, is a valid layout.
        let wanted = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        // SAFETY: the layout's size is not zero, which the caller promises too.
        let moved = unsafe { self.alloc(wanted) };
        if !moved.is_null() {
            // SAFETY: both blocks hold the smaller of the sizes, and a new block overlaps no live one.
            unsafe { ptr::copy_nonoverlapping(block, moved, layout.size().min(size)) };
            // SAFETY: the caller gives `block` up, which was allocated for `layout`.
            unsafe { self.dealloc(block, layout) };
        }
        moved
    }
}

/// A guest's linear memory.
#[cfg(target_arch = "wasm32")]
pub struct Memory;

#[cfg(target_arch = "wasm32")]
impl Source for Memory {
    fn grow(bytes: usize) -> *mut u8 {
        match core::arch::wasm32::memory_grow(0, bytes / PAGE) {
            usize::MAX => ptr::null_mut(),
            pages => ptr::with_exposed_provenance_mut(pages * PAGE),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::alloc::System;

    struct Leaked;

    impl Source for Leaked {
        fn grow(bytes: usize) -> *mut u8 {
            // SAFETY: the size is not zero; the memory is never given back, as the trait asks.
            unsafe { System.alloc(Layout::from_size_align(bytes, PAGE).unwrap()) }
        }
    }

    fn layout(size: usize) -> Layout {
        Layout::from_size_align(size, 8).unwrap()
    }

    #[test]
    fn classes_hold_their_sizes() {
        for size in (1..5_000).chain([65_536, 65_537, 1 << 20]) {
            let held = ALIGN << class(size);
            assert!(held >= size && (held < 2 * size || held == ALIGN), "{size} in {held}");
        }
    }

    #[test]
    fn a_freed_block_serves_its_class_again() {
        let blocks = Blocks::<Leaked>::new();
        // SAFETY: layouts have a size, and each block is freed once with its own.
        unsafe {
            let (a, b) = (blocks.alloc(layout(20)), blocks.alloc(layout(20)));
            blocks.dealloc(a, layout(20));
            assert_ne!(blocks.alloc(layout(40)), a);
            assert_eq!(blocks.alloc(layout(30)), a);
            assert_eq!(blocks.realloc(b, layout(20), 32), b, "the same class needs no move");
        }
    }

    #[test]
    fn what_cannot_be_given_is_refused() {
        let blocks = Blocks::<Leaked>::new();
        // SAFETY: layouts have a size, and nothing is used.
        unsafe {
            assert!(blocks.alloc(Layout::from_size_align(8, 32).unwrap()).is_null());
            assert!(blocks.alloc(layout(1 << 40)).is_null());
        }
    }

    /// Ten thousand random steps: live blocks keep what was written in them, so none overlap.
    #[test]
    fn live_blocks_do_not_overlap() {
        let blocks = Blocks::<Leaked>::new();
        let mut live: Vec<(*mut u8, usize, u8)> = Vec::new();
        let mut random = 1_u64;
        for step in 0..10_000_usize {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let size = 1 + (random >> 33) as usize % [16, 300, 70_000][step % 3];
            let fill = step as u8;
            // SAFETY: every block is used within its size, and freed or moved once with the size it has.
            unsafe {
                let (block, kept) = if live.len() > 50 {
                    let (block, old, was) = live.swap_remove((random >> 40) as usize % 50);
                    assert!((0..old).all(|at| *block.add(at) == was), "a block of {old} bytes changed");
                    if step % 2 == 0 {
                        blocks.dealloc(block, layout(old));
                        continue;
                    }
                    let moved = blocks.realloc(block, layout(old), size);
                    assert!((0..old.min(size)).all(|at| *moved.add(at) == was));
                    (moved, size)
                } else {
                    (blocks.alloc(layout(size)), size)
                };
                assert!(!block.is_null() && block.addr() % ALIGN == 0);
                ptr::write_bytes(block, fill, kept);
                live.push((block, kept, fill));
            }
        }
    }
}
