//! Bars from a common zero, with intervals, their numbers above and their names below.
//!
//! A name is broken at its spaces into two lines; numbers stand beyond the interval's end, so that neither
//! hides the other. Start at [`Bars::draw`].

use super::super::markup::Markup;
use super::super::wording;
use super::{Axis, Frame, HEIGHT, Name, WIDTH, drawing, left_of, line, text, whisker, y_axis};

/// A bar chart.
#[derive(Debug)]
pub(in super::super) struct Bars<'a> {
    pub(in super::super) name: Name<'a>,
    pub(in super::super) x_label: &'a str,
    pub(in super::super) y_label: &'a str,
    pub(in super::super) bars: Vec<Bar>,
}

/// A bar.
#[derive(Debug)]
pub(in super::super) struct Bar {
    pub(in super::super) label: String,
    pub(in super::super) value: f64,
    pub(in super::super) interval: Option<(f64, f64)>,
    /// Whether it is what the chart is about, and not what that is compared with.
    pub(in super::super) main: bool,
}

/// Numbers are written out above so many bars at most; more would run into each other.
const NUMBERED_MAX: usize = 12;

impl Bars<'_> {
    /// Writes it.
    pub(in super::super) fn draw(&self, page: &mut Markup) {
        let ends = self.bars.iter().flat_map(|bar| {
            let (low, high) = bar.interval.unwrap_or((bar.value, bar.value));
            [bar.value, low, high]
        });
        let axis = Axis::linear(ends.filter(|end| end.is_finite()).chain([0.0]));
        let frame = Frame { left: left_of(&axis), top: 22.0, right: WIDTH - 12.0, bottom: HEIGHT - 54.0 };
        drawing(page, &self.name, HEIGHT, |svg| {
            y_axis(svg, frame, &axis, self.y_label);
            let width = (frame.right - frame.left) / self.bars.len().max(1) as f64;
            for (index, bar) in self.bars.iter().enumerate() {
                bar.draw(svg, frame, &axis, (index as f64 + 0.5) * width + frame.left, width, self.bars.len());
            }
            if let Some(zero) = axis.share(0.0).map(|share| frame.y(share)) {
                line(svg, "edge", frame.left, zero, frame.right, zero);
            }
            svg.element("g", &[("class", "axis x")], |group| {
                text(group, "label", "middle", frame.x(0.5), HEIGHT - 8.0, self.x_label);
            });
            if self.bars.is_empty() {
                text(svg, "empty", "middle", frame.x(0.5), frame.y(0.5), "no numbers");
            }
        });
    }
}

impl Bar {
    fn draw(&self, svg: &mut Markup, frame: Frame, axis: &Axis, x: f64, width: f64, bars: usize) {
        let room = (width / 7.6) as usize;
        svg.element("g", &[("class", "axis x")], |group| {
            for (index, words) in two_lines(&self.label, room).iter().enumerate() {
                text(group, "", "middle", x, frame.bottom + 15.0 + 13.0 * index as f64, words);
            }
        });
        let (Some(zero), Some(end)) = (axis.share(0.0), axis.share(self.value)) else {
            text(svg, "value", "middle", x, frame.y(axis.share(0.0).unwrap_or(0.0)) - 5.0, wording::NONE);
            return;
        };
        let class = if self.main { "bar main" } else { "bar" };
        let [left, top, wide, high] = [
            x - width.min(80.0) * 0.34,
            frame.y(zero.max(end)),
            width.min(80.0) * 0.68,
            (frame.y(zero) - frame.y(end)).abs().max(0.5),
        ]
        .map(|number| format!("{number:.1}"));
        svg.empty("rect", &[("class", class), ("x", &left), ("y", &top), ("width", &wide), ("height", &high)]);
        let mut upper = frame.y(zero.max(end));
        if let Some((low, high)) = self.interval.and_then(|(low, high)| Some((axis.clamped(low)?, axis.clamped(high)?)))
        {
            whisker(svg, "whisker ink", x, frame.y(low), frame.y(high));
            upper = upper.min(frame.y(high));
        }
        if bars <= NUMBERED_MAX {
            text(svg, "value", "middle", x, upper - 5.0, &wording::fixed(self.value, 2));
        }
    }
}

/// Words in two lines of `room` letters; what has no room is cut.
fn two_lines(words: &str, room: usize) -> Vec<String> {
    let room = room.max(2);
    let mut lines = vec![String::new()];
    for word in words.split_whitespace() {
        let line = lines.last_mut().expect("there is a first line");
        if line.is_empty() {
            line.push_str(word);
        } else if line.chars().count() + 1 + word.chars().count() <= room {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    let more = lines.len() > 2;
    lines.truncate(2);
    for (index, line) in lines.iter_mut().enumerate() {
        if line.chars().count() > room || (more && index == 1) {
            *line = line.chars().take(room - 1).chain(['…']).collect();
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_bars_are_broken_and_cut() {
        assert_eq!(two_lines("prefix reward", 14), ["prefix reward"]);
        assert_eq!(two_lines("prefix reward", 8), ["prefix", "reward"]);
        assert_eq!(two_lines("one two three four", 5), ["one", "two…"]);
        assert_eq!(two_lines("incomprehensible", 6), ["incom…"]);
        assert_eq!(two_lines("", 6), [""]);
    }
}
