//! The time that slow policies get, so that nobody waits for them.
//!
//! A policy that is not done within a slice (some 200 µs) is slow. Its sequence is left out of passes until it has
//! answered, and all slow policies together get at most a share of a step's time, in turn: whoever is quick is
//! held up by no more than that, however many are slow. Where nothing else runs, steps are short and all time is theirs.

use std::time::{Duration, Instant};

/// Slow policies take at most 1 part of a step for each so many parts of rows.
const ROWS_TO_SLOW: u32 = 4;

/// The time of this step's slow policies.
#[derive(Debug, Default)]
pub(super) struct Slices {
    /// What the last step's rows took, of those that ran some.
    rows_before: Duration,
    /// What this step's rows have taken.
    rows: Duration,
    /// What this step's slow policies have taken.
    used: Duration,
}

impl Slices {
    /// A step begins.
    pub(super) fn begin(&mut self) {
        if !self.rows.is_zero() {
            self.rows_before = self.rows;
        }
        (self.rows, self.used) = (Duration::ZERO, Duration::ZERO);
    }

    /// Whether a slow policy may have a slice now: one always may.
    pub(super) fn is_open(&self) -> bool {
        self.used.is_zero() || self.used < self.rows_before / ROWS_TO_SLOW
    }

    /// A slow policy has run since then.
    pub(super) fn took(&mut self, since: Instant) {
        self.used += since.elapsed();
    }

    /// Rows have run since then.
    pub(super) fn ran_rows(&mut self, since: Instant) {
        self.rows += since.elapsed();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_policies_get_one_slice_and_then_a_share_of_the_rows_time() {
        let ago = |ms| Instant::now() - Duration::from_millis(ms);
        let mut slices = Slices::default();
        slices.begin();
        assert!(slices.is_open(), "one always may");
        slices.took(ago(1));
        assert!(!slices.is_open(), "nothing has run yet");
        slices.ran_rows(ago(4_000));
        slices.begin();
        slices.took(ago(900));
        assert!(slices.is_open());
        slices.took(ago(200));
        assert!(!slices.is_open());
        slices.begin();
        slices.took(ago(900));
        assert!(slices.is_open(), "a step without rows leaves the share as it was");
    }
}
