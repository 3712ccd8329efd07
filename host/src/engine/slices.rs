//! The time that slow policies get, so that nobody waits for them.
//!
//! A policy that is not done within a slice (some 200 µs) is slow. Its sequence is left out of passes until it has
//! answered, and all slow policies together get at most a share of a step's time, one after the other: whoever is quick is
//! held up by no more than that, however many are slow. Where nothing else runs, steps are short and all time is theirs.

use std::time::{Duration, Instant};

/// In steps, slow policies take at most 1 part of time for each so many parts of rows.
pub(super) const STEPS_SHARE: u32 = 32;

/// Of starts it is more: they are rare, and with each a request waits for its first token.
pub(super) const STARTS_SHARE: u32 = 4;

/// And at most this, however long a prompt's pass was.
const SLOW_MOST: Duration = Duration::from_millis(5);

/// The time of this step's slow policies.
#[derive(Debug)]
pub(super) struct Slices {
    /// Parts of rows' time for a part of theirs.
    parts: u32,
    /// What the last step's rows took, of those that ran some.
    rows_before: Duration,
    /// What this step's rows have taken.
    rows: Duration,
    /// What this step's slow policies have taken.
    used: Duration,
    /// Whose turn it is: the place after the last that had a slice.
    next: usize,
    /// There was one since the last turn.
    served: bool,
}

impl Slices {
    /// With 1 part of time for each so many parts of rows.
    pub(super) fn new(parts: u32) -> Self {
        Self { parts, rows_before: Duration::ZERO, rows: Duration::ZERO, used: Duration::ZERO, next: 0, served: false }
    }

    /// A step begins.
    pub(super) fn begin(&mut self) {
        if !self.rows.is_zero() {
            self.rows_before = self.rows;
        }
        (self.rows, self.used) = (Duration::ZERO, Duration::ZERO);
    }

    /// Whether a slow policy may have a slice now: one always may.
    pub(super) fn is_open(&self) -> bool {
        self.used.is_zero() || self.used < (self.rows_before / self.parts).min(SLOW_MOST)
    }

    /// A slow policy has run for so long.
    pub(super) fn took(&mut self, time: Duration) {
        self.used += time;
        self.served = true;
    }

    /// The sequence in this place has had its turn: if a slow policy of its ran, it is first from now on while it is held,
    /// and the next place once it has answered. One after the other: in slices all at once, they would all be done in
    /// the same step, and their rows would come together.
    pub(super) fn turn(&mut self, place: usize, is_held: bool) {
        if std::mem::take(&mut self.served) {
            self.next = place + usize::from(!is_held);
        }
    }

    /// The place that is first now.
    pub(super) fn next(&self) -> usize {
        self.next
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
        let ms = Duration::from_millis;
        let mut slices = Slices::new(STEPS_SHARE);
        slices.begin();
        assert!(slices.is_open(), "one always may");
        slices.took(ms(1));
        slices.turn(4, false);
        slices.turn(9, false);
        assert_eq!((slices.is_open(), slices.next()), (false, 5), "nothing has run yet");
        slices.rows = ms(64);
        slices.begin();
        slices.took(Duration::from_micros(1_999));
        assert!(slices.is_open());
        slices.took(Duration::from_micros(1));
        assert!(!slices.is_open());
        slices.begin();
        slices.took(ms(1));
        assert!(slices.is_open(), "a step without rows leaves the share as it was");
        slices.rows = ms(4_000);
        slices.begin();
        slices.took(SLOW_MOST);
        assert!(!slices.is_open(), "a long pass gives no more than the most");
    }
}
