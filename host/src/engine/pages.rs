//! The pages of the cache: who holds which, and how often.
//!
//! A page is [`PAGE_TOKENS`] positions of keys, values and feature sums. Sequences that share a prompt
//! share its whole pages; a page is free again when its last holder lets go. The pages' memory is the
//! device's: this is only the book-keeping.

use vassal_kernels::PAGE_TOKENS;

/// Reference-counted pages.
#[derive(Debug)]
pub(super) struct Pages {
    free: Vec<u32>,
    holders: Vec<u32>,
}

impl Pages {
    /// `count` free pages, numbered from 0.
    pub(super) fn new(count: usize) -> Self {
        Self { free: (0..count as u32).rev().collect(), holders: vec![0; count] }
    }

    /// Pages that hold `tokens` positions.
    pub(super) fn needed(tokens: usize) -> usize {
        tokens.div_ceil(PAGE_TOKENS)
    }

    /// Free pages.
    pub(super) fn free(&self) -> usize {
        self.free.len()
    }

    /// Takes a free page.
    pub(super) fn take(&mut self) -> Option<u32> {
        let page = self.free.pop()?;
        self.holders[page as usize] = 1;
        Some(page)
    }

    /// One more holder of a held page.
    pub(super) fn hold(&mut self, page: u32) {
        assert!(self.holders[page as usize] > 0, "page {page} is free: nothing to share");
        self.holders[page as usize] += 1;
    }

    /// One holder less; the last frees the page.
    pub(super) fn release(&mut self, page: u32) {
        let holders = &mut self.holders[page as usize];
        assert!(*holders > 0, "page {page} released twice");
        *holders -= 1;
        if *holders == 0 {
            self.free.push(page);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Whatever is taken, shared and released: a page is free exactly when nobody holds it.
        #[test]
        fn pages_are_free_exactly_when_nobody_holds_them(steps in prop::collection::vec((0u8..3, 0usize..8), 0..200)) {
            let mut pages = Pages::new(8);
            let mut held: Vec<u32> = Vec::new();
            for (what, which) in steps {
                match what {
                    0 => match pages.take() {
                        Some(page) => {
                            prop_assert!(!held.contains(&page));
                            held.push(page);
                        }
                        None => prop_assert_eq!(held.iter().collect::<std::collections::HashSet<_>>().len(), 8),
                    },
                    1 if !held.is_empty() => {
                        let page = held[which % held.len()];
                        pages.hold(page);
                        held.push(page);
                    }
                    2 if !held.is_empty() => pages.release(held.swap_remove(which % held.len())),
                    _ => {}
                }
                let distinct: std::collections::HashSet<_> = held.iter().collect();
                prop_assert_eq!(pages.free() + distinct.len(), 8);
            }
        }
    }
}
