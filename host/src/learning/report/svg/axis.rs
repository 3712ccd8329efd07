//! An axis: the range that holds its numbers, where a number lies in it, and its ticks.
//!
//! Ticks are 1, 2 or 5 times a power of ten. Numbers that an axis cannot hold (NaN, infinite, and on a
//! logarithmic one what is not positive) take no part in its range and have no place on it.

use super::super::wording;

/// Beyond it differences of two numbers might overflow; no measure comes near.
const MAGNITUDE_MAX: f64 = 1e100;

/// Steps between ticks that a linear axis aims at.
const STEPS: f64 = 5.0;

/// Room on both sides of a logarithmic axis.
const LOG_MARGIN: f64 = 1.18;

/// A range of numbers, drawn evenly or by their logarithm.
#[derive(Debug, Clone, PartialEq)]
pub(in super::super) struct Axis {
    low: f64,
    high: f64,
    log: bool,
    /// Where ticks stand, ascending.
    pub(super) ticks: Vec<f64>,
}

impl Axis {
    /// An even axis around `values`, from tick to tick.
    pub(in super::super) fn linear(values: impl IntoIterator<Item = f64>) -> Self {
        let (mut low, mut high) = extent(values.into_iter().filter(|value| value.abs() < MAGNITUDE_MAX), (0.0, 1.0));
        let magnitude = low.abs().max(high.abs());
        if high - low <= magnitude * 1e-9 || magnitude < 1.0 / MAGNITUDE_MAX {
            let nothing = magnitude < 1.0 / MAGNITUDE_MAX;
            (low, high) = if nothing { (0.0, 1.0) } else { (low - magnitude * 0.1, high + magnitude * 0.1) };
        }
        let step = nice((high - low) / STEPS);
        // To the next tick where it is near, and else a little beyond the numbers: an empty step is room lost.
        let near = |end: f64, tick: f64, margin: f64| if (tick - end).abs() < 0.6 * step { tick } else { end + margin };
        let low = near(low, (low / step + 0.02).floor() * step, -0.05 * (high - low));
        let high = near(high, (high / step - 0.02).ceil() * step, 0.05 * (high - low));
        let (first, last) = ((low / step - 1e-6).ceil(), (high / step + 1e-6).floor());
        let ticks: Vec<f64> = (0..=(last - first) as usize).map(|index| (first + index as f64) * step).collect();
        Self { low: low.min(first * step), high: high.max(last * step), log: false, ticks }
    }

    /// A logarithmic axis around `values`.
    pub(in super::super) fn log(values: impl IntoIterator<Item = f64>) -> Self {
        let fits = |value: &f64| (1.0 / MAGNITUDE_MAX..MAGNITUDE_MAX).contains(value);
        let (low, high) = extent(values.into_iter().filter(fits), (1.0, 10.0));
        let (low, high) = (low / LOG_MARGIN, high * LOG_MARGIN);
        let decades = low.log10().floor() as i32..=high.log10().ceil() as i32;
        let parts: &[f64] = match high.log10() - low.log10() {
            narrow if narrow < 0.5 => &[1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0],
            middle if middle < 2.2 => &[1.0, 2.0, 5.0],
            _ => &[1.0],
        };
        let every = (decades.clone().count() / 8).max(1);
        let ticks = decades.step_by(every).flat_map(|decade| parts.iter().map(move |part| part * 10f64.powi(decade)));
        let mut ticks: Vec<f64> = ticks.filter(|tick| (low..=high).contains(tick)).collect();
        if ticks.len() < 3 {
            // A range too narrow for them: round numbers at even steps, as far as they lie in it.
            ticks = Self::linear([low, high]).ticks;
            ticks.retain(|tick| (low..=high).contains(tick));
        }
        Self { low, high, log: true, ticks }
    }

    /// Where a number lies, from 0 to 1; nothing where the axis cannot hold it.
    pub(super) fn share(&self, value: f64) -> Option<f64> {
        let share = if self.log {
            (value.log10() - self.low.log10()) / (self.high.log10() - self.low.log10())
        } else {
            (value - self.low) / (self.high - self.low)
        };
        (-1e-9..=1.0 + 1e-9).contains(&share).then_some(share)
    }

    /// The same for the end of an interval, which is drawn up to the frame.
    pub(super) fn clamped(&self, value: f64) -> Option<f64> {
        if value.is_finite() { self.share(value.clamp(self.low, self.high)) } else { None }
    }

    /// What stands beside a tick.
    pub(super) fn label(&self, tick: f64) -> String {
        let step = match self.ticks[..] {
            [first, second, ..] if !self.log => second - first,
            _ => return wording::short(tick),
        };
        let decimals = -(step * 1.0001).log10().floor();
        if (0.0..=6.0).contains(&decimals.max(0.0)) {
            wording::fixed(tick, decimals.max(0.0) as usize)
        } else {
            wording::significant(tick)
        }
    }

    /// Room for the widest label, in letters.
    pub(super) fn letters(&self) -> usize {
        self.ticks.iter().map(|tick| self.label(*tick).chars().count()).max().unwrap_or(0)
    }

    /// The ends of the range, for a line across the plot.
    pub(super) fn ends(&self) -> (f64, f64) {
        (self.low, self.high)
    }
}

/// The least and the greatest of them.
fn extent(values: impl Iterator<Item = f64>, otherwise: (f64, f64)) -> (f64, f64) {
    let wider = |range: Option<(f64, f64)>, value: f64| match range {
        Some((low, high)) => Some((low.min(value), high.max(value))),
        None => Some((value, value)),
    };
    values.fold(None, wider).unwrap_or(otherwise)
}

/// The least of 1, 2 and 5 times a power of ten that is not below `step`.
fn nice(step: f64) -> f64 {
    let power = 10f64.powf(step.log10().floor());
    let part = [1.0, 2.0, 5.0].into_iter().find(|part| part * power >= step * 0.999).unwrap_or(10.0);
    part * power
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(axis: &Axis) -> Vec<String> {
        axis.ticks.iter().map(|tick| axis.label(*tick)).collect()
    }

    #[test]
    fn ticks_are_round_numbers_that_hold_the_range() {
        assert_eq!(labels(&Axis::linear([0.28, 0.93])), ["0.2", "0.4", "0.6", "0.8", "1.0"]);
        assert_eq!(labels(&Axis::linear([0.0, 0.47])), ["0.0", "0.1", "0.2", "0.3", "0.4", "0.5"]);
        assert_eq!(labels(&Axis::linear([-0.1, 0.1])), ["−0.10", "−0.05", "0.00", "0.05", "0.10"]);
        assert_eq!(labels(&Axis::log([1.0, 64.0])), ["1", "2", "5", "10", "20", "50"]);
        assert_eq!(labels(&Axis::log([0.01, 1000.0])).len(), 6);
        assert_eq!(labels(&Axis::log([31.0, 31.1])), ["30", "35"]);
    }

    #[test]
    fn no_numbers_equal_ones_and_absurd_ones_make_an_axis_too() {
        let absurd = [f64::NAN, f64::INFINITY, f64::MAX, f64::MIN_POSITIVE];
        for values in [&[][..], &[f64::NAN], &[3.0, 3.0], &[0.0], &[-1e99, 1e99], &[1e-30], &absurd] {
            for axis in [Axis::linear(values.iter().copied()), Axis::log(values.iter().copied())] {
                assert!(axis.low < axis.high && axis.ticks.len() < 40, "{values:?}: {axis:?}");
                assert!(axis.ticks.iter().all(|tick| axis.share(*tick).is_some()), "{values:?}: {axis:?}");
            }
        }
    }

    #[test]
    fn what_an_axis_cannot_hold_has_no_place_on_it() {
        let axis = Axis::log([1.0, 10.0]);
        assert_eq!([f64::NAN, 0.0, -1.0, 1e6].map(|value| axis.share(value)), [None; 4]);
        assert_eq!(axis.share(axis.low), Some(0.0));
        assert_eq!(axis.clamped(1e6), Some(1.0));
        assert_eq!(axis.clamped(f64::NAN), None);
    }
}
