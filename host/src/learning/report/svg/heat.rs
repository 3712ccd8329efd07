//! A heat map: a mean for each pair of dials, its number in its cell.
//!
//! The colours rise evenly in lightness (after viridis), so that they are told apart without hues and in grey;
//! each number is written in black or white, whichever can be read on its colour.

use super::super::markup::Markup;
use super::super::wording;
use super::{Frame, Name, WIDTH, drawing, side_label, text};

/// Means over two dials.
#[derive(Debug)]
pub(in super::super) struct Heat<'a> {
    pub(in super::super) name: Name<'a>,
    pub(in super::super) row_label: &'a str,
    pub(in super::super) column_label: &'a str,
    pub(in super::super) rows: &'a [f64],
    pub(in super::super) columns: &'a [f64],
    /// `[rows][columns]`.
    pub(in super::super) means: &'a [Vec<f64>],
}

/// A row's height.
const ROW: f64 = 40.0;

/// Red, green and blue at even steps, from low to high.
const RAMP: [[f64; 3]; 6] = [
    [68.0, 1.0, 84.0],
    [65.0, 68.0, 135.0],
    [42.0, 120.0, 142.0],
    [34.0, 168.0, 132.0],
    [122.0, 209.0, 81.0],
    [253.0, 231.0, 37.0],
];

impl Heat<'_> {
    /// Writes it.
    pub(in super::super) fn draw(&self, page: &mut Markup) {
        let frame =
            Frame { left: 62.0, top: 8.0, right: WIDTH - 12.0, bottom: 8.0 + ROW * self.rows.len().max(1) as f64 };
        let finite = || self.means.iter().flatten().copied().filter(|mean| mean.is_finite());
        let (low, high) = (finite().fold(f64::INFINITY, f64::min), finite().fold(f64::NEG_INFINITY, f64::max));
        let width = (frame.right - frame.left) / self.columns.len().max(1) as f64;
        drawing(page, &self.name, frame.bottom + 46.0, |svg| {
            for (row, dial) in self.rows.iter().enumerate() {
                // The greatest dial stands at the top, as on an axis.
                let top = frame.bottom - ROW * (row + 1) as f64;
                svg.element("g", &[("class", "axis y")], |group| {
                    text(group, "", "end", frame.left - 7.0, top + ROW / 2.0 + 4.0, &wording::short(*dial));
                });
                for column in 0..self.columns.len() {
                    let mean = self.means.get(row).and_then(|row| row.get(column)).copied().unwrap_or(f64::NAN);
                    let share = if high > low { (mean - low) / (high - low) } else { 0.5 };
                    cell(svg, (frame.left + width * column as f64, top), width, mean, share);
                }
            }
            svg.element("g", &[("class", "axis x")], |group| {
                for (column, dial) in self.columns.iter().enumerate() {
                    let x = frame.left + width * (column as f64 + 0.5);
                    text(group, "", "middle", x, frame.bottom + 17.0, &wording::short(*dial));
                }
                text(group, "label", "middle", frame.x(0.5), frame.bottom + 38.0, self.column_label);
            });
            svg.element("g", &[("class", "axis y")], |group| side_label(group, frame, 14.0, self.row_label));
        });
    }
}

/// A rectangle of its colour and the number in it.
fn cell(svg: &mut Markup, (left, top): (f64, f64), width: f64, mean: f64, share: f64) {
    let colour = mean.is_finite().then(|| colour(share));
    let fill = colour.map_or_else(|| "none".to_owned(), |[r, g, b]| format!("rgb({r:.0} {g:.0} {b:.0})"));
    let ink = match colour {
        // The usual weights of the three primaries in lightness.
        Some([r, g, b]) if 0.299 * r + 0.587 * g + 0.114 * b < 105.0 => "on-dark",
        Some(_) => "on-light",
        None => "empty",
    };
    let [x, y, wide, high] = [left + 1.0, top + 1.0, width - 2.0, ROW - 2.0].map(|number| format!("{number:.1}"));
    let place = [("x", x.as_str()), ("y", &y), ("width", &wide), ("height", &high), ("rx", "3")];
    svg.empty("rect", &[&[("class", "cell"), ("fill", fill.as_str())][..], &place].concat());
    let decimals = if width < 40.0 { 2 } else { 3 };
    text(svg, ink, "middle", left + width / 2.0, top + ROW / 2.0 + 4.0, &wording::fixed(mean, decimals));
}

/// The ramp's colour at a share.
fn colour(share: f64) -> [f64; 3] {
    let place = share.clamp(0.0, 1.0) * (RAMP.len() - 1) as f64;
    let index = (place as usize).min(RAMP.len() - 2);
    let part = place - index as f64;
    std::array::from_fn(|channel| RAMP[index][channel] * (1.0 - part) + RAMP[index + 1][channel] * part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_rise_in_lightness() {
        let lightness = |share| {
            let [r, g, b] = colour(share);
            0.299 * r + 0.587 * g + 0.114 * b
        };
        assert!((0..20).all(|step| lightness(f64::from(step) / 20.0) < lightness(f64::from(step + 1) / 20.0)));
    }
}
