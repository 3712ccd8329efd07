//! One mutable slice, written by several threads at places that never overlap.
//!
//! The items of a pool's operation write their own parts of one buffer: rows, tiles of rows, blocks of a
//! panel. The borrow checker cannot see that the parts are disjoint where they interleave, so every taking
//! of a part is `unsafe` and says there why it is its item's own. Bounds are always checked.

use std::marker::PhantomData;
use std::ops::Range;

/// A mutable slice whose parts may be taken from several threads at once.
pub(crate) struct Disjoint<'a, T> {
    start: *mut T,
    len: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: it hands out parts of a `&mut [T]` under the contract of `part`, so sharing it is sharing out
// mutable slices, which is sound where T may go to another thread.
unsafe impl<T: Send> Sync for Disjoint<'_, T> {}

impl<'a, T> Disjoint<'a, T> {
    /// Borrows a slice for the time of one operation.
    pub(crate) fn new(slice: &'a mut [T]) -> Disjoint<'a, T> {
        Disjoint { start: slice.as_mut_ptr(), len: slice.len(), slice: PhantomData }
    }

    /// A part of the slice.
    ///
    /// # Panics
    /// Where the range is not within the slice.
    ///
    /// # Safety
    /// While the part lives, no other part that overlaps it may exist, on any thread.
    #[expect(clippy::mut_from_ref, reason = "that parts do not overlap is the contract of this function")]
    pub(crate) unsafe fn part(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {}", self.len);
        // SAFETY: the range lies within the borrowed slice, and the caller promises that nobody else has it.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.end - range.start) }
    }
}
