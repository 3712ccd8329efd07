//! Plots as SVG that stands in the page: points with intervals and lines, bars, heat maps.
//!
//! A plot gets names and numbers and decides nothing about them: which series there are is `charts`' matter.
//! All have a title and a description for those who do not see them, axes with round ticks, and colours by
//! class, so that the page's style sheet has both schemes. What is not finite is left out. Start at
//! [`Plot::draw`].

mod axis;
mod bars;
mod heat;
mod mark;

use super::markup::Markup;

pub(super) use axis::Axis;
pub(super) use bars::{Bar, Bars};
pub(super) use heat::Heat;
pub(super) use mark::{Style, rank};

/// The plot's own units: narrow, so that its letters stay legible on a telephone.
pub(super) const WIDTH: f64 = 480.0;
pub(super) const HEIGHT: f64 = 320.0;

/// What a plot is called, and how it is told.
#[derive(Debug)]
pub(super) struct Name<'a> {
    /// Unique in the page; letters, digits and hyphens.
    pub(super) id: &'a str,
    /// The title.
    pub(super) title: &'a str,
    /// What there is to see.
    pub(super) description: &'a str,
}

/// Points on two axes.
#[derive(Debug)]
pub(super) struct Plot<'a> {
    pub(super) name: Name<'a>,
    pub(super) x_label: &'a str,
    pub(super) y_label: &'a str,
    pub(super) x: Axis,
    pub(super) y: Axis,
    pub(super) series: Vec<Series>,
    /// Draws the line of equal coordinates, with these words.
    pub(super) diagonal: Option<&'a str>,
}

/// Points of one look.
#[derive(Debug)]
pub(super) struct Series {
    pub(super) style: Style,
    /// Whether a line joins them, in the order of x.
    pub(super) joined: bool,
    pub(super) dots: Vec<Dot>,
}

/// A point.
#[derive(Debug)]
pub(super) struct Dot {
    pub(super) x: f64,
    pub(super) y: f64,
    /// Its interval.
    pub(super) interval: Option<(f64, f64)>,
    /// What a pointer over it shows.
    pub(super) words: String,
}

/// A rectangle of the drawing, in its units.
#[derive(Debug, Clone, Copy)]
struct Frame {
    left: f64,
    top: f64,
    right: f64,
    bottom: f64,
}

impl Frame {
    fn x(self, share: f64) -> f64 {
        self.left + share * (self.right - self.left)
    }

    fn y(self, share: f64) -> f64 {
        self.bottom - share * (self.bottom - self.top)
    }
}

impl Plot<'_> {
    /// Writes it.
    pub(super) fn draw(&self, page: &mut Markup) {
        let frame = Frame { left: left_of(&self.y), top: 10.0, right: WIDTH - 12.0, bottom: HEIGHT - 46.0 };
        drawing(page, &self.name, HEIGHT, |svg| {
            y_axis(svg, frame, &self.y, self.y_label);
            x_axis(svg, frame, &self.x, self.x_label);
            self.draw_diagonal(svg, frame);
            // The first series is the most important one: drawn last, it lies above the others.
            for series in self.series.iter().rev() {
                self.draw_series(svg, frame, series);
            }
            let nothing = |series: &Series| series.dots.iter().all(|dot| self.place(frame, dot.x, dot.y).is_none());
            if self.series.iter().all(nothing) {
                text(svg, "empty", "middle", frame.x(0.5), frame.y(0.5), "no points");
            }
        });
    }

    fn place(&self, frame: Frame, x: f64, y: f64) -> Option<(f64, f64)> {
        Some((frame.x(self.x.share(x)?), frame.y(self.y.share(y)?)))
    }

    fn draw_series(&self, svg: &mut Markup, frame: Frame, series: &Series) {
        let placed = |dot: &'_ Dot| self.place(frame, dot.x, dot.y);
        let mut dots: Vec<(&Dot, (f64, f64))> =
            series.dots.iter().filter_map(|dot| placed(dot).map(|place| (dot, place))).collect();
        dots.sort_by(|a, b| a.1.0.total_cmp(&b.1.0));
        if series.joined && dots.len() > 1 {
            let corners: Vec<String> = dots.iter().map(|(_, (x, y))| format!("{x:.1} {y:.1}")).collect();
            let path = format!("M{}", corners.join("L"));
            svg.empty("path", &[("class", &series.style.class("line")), ("d", &path)]);
        }
        for (dot, (x, y)) in dots {
            svg.element("g", &[], |group| {
                group.leaf("title", &[], &dot.words);
                let ends = dot.interval.and_then(|(low, high)| Some((self.y.clamped(low)?, self.y.clamped(high)?)));
                if let Some((low, high)) = ends {
                    whisker(group, &series.style.class("whisker"), x, frame.y(low), frame.y(high));
                }
                series.style.draw(group, x, y);
            });
        }
    }

    fn draw_diagonal(&self, svg: &mut Markup, frame: Frame) {
        let Some(words) = self.diagonal else { return };
        let ((x_low, x_high), (y_low, y_high)) = (self.x.ends(), self.y.ends());
        let (low, high) = (x_low.max(y_low), x_high.min(y_high));
        let (Some((x1, y1)), Some((x2, y2))) = (self.place(frame, low, low), self.place(frame, high, high)) else {
            return;
        };
        line(svg, "reference", x1, y1, x2, y2);
        // Its words stand where no point near it is: in the corner below.
        line(svg, "reference", frame.right - 104.0, frame.bottom - 16.0, frame.right - 76.0, frame.bottom - 16.0);
        text(svg, "note", "start", frame.right - 70.0, frame.bottom - 12.0, words);
    }
}

/// An element `svg` with its title and description.
fn drawing(page: &mut Markup, name: &Name<'_>, height: f64, inside: impl FnOnce(&mut Markup)) {
    let (title, description) = (format!("{}-title", name.id), format!("{}-description", name.id));
    let view = format!("0 0 {WIDTH} {height}");
    let attributes = [
        ("class", "plot"),
        ("viewBox", view.as_str()),
        ("role", "img"),
        ("aria-labelledby", title.as_str()),
        ("aria-describedby", description.as_str()),
    ];
    page.element("svg", &attributes, |svg| {
        svg.leaf("title", &[("id", &title)], name.title);
        svg.leaf("desc", &[("id", &description)], name.description);
        inside(svg);
    });
}

/// Where a frame begins: right of its y axis' name and labels.
fn left_of(axis: &Axis) -> f64 {
    34.0 + 7.2 * axis.letters() as f64
}

/// Ticks and name below the frame.
fn x_axis(svg: &mut Markup, frame: Frame, axis: &Axis, label: &str) {
    svg.element("g", &[("class", "axis x")], |group| {
        for tick in &axis.ticks {
            let Some(share) = axis.share(*tick) else { continue };
            let x = frame.x(share);
            line(group, "tick", x, frame.bottom, x, frame.bottom + 4.0);
            text(group, "", "middle", x, frame.bottom + 17.0, &axis.label(*tick));
        }
        line(group, "edge", frame.left, frame.bottom, frame.right, frame.bottom);
        text(group, "label", "middle", frame.x(0.5), frame.bottom + 37.0, label);
    });
}

/// Ticks, lines across and name left of the frame.
fn y_axis(svg: &mut Markup, frame: Frame, axis: &Axis, label: &str) {
    svg.element("g", &[("class", "axis y")], |group| {
        for tick in &axis.ticks {
            let Some(share) = axis.share(*tick) else { continue };
            let y = frame.y(share);
            line(group, "grid", frame.left, y, frame.right, y);
            text(group, "", "end", frame.left - 7.0, y + 4.0, &axis.label(*tick));
        }
        side_label(group, frame, 13.0, label);
    });
}

/// Words that run upwards at the left.
fn side_label(svg: &mut Markup, frame: Frame, x: f64, label: &str) {
    let turn = format!("translate({x} {:.1}) rotate(-90)", frame.y(0.5));
    svg.leaf("text", &[("class", "label"), ("text-anchor", "middle"), ("transform", &turn)], label);
}

/// An interval's bar with its caps.
fn whisker(svg: &mut Markup, class: &str, x: f64, low: f64, high: f64) {
    let (left, right) = (x - 3.0, x + 3.0);
    let path = format!("M{x:.1} {low:.1}V{high:.1}M{left:.1} {low:.1}H{right:.1}M{left:.1} {high:.1}H{right:.1}");
    svg.empty("path", &[("class", class), ("d", &path)]);
}

fn line(svg: &mut Markup, class: &str, x1: f64, y1: f64, x2: f64, y2: f64) {
    let [x1, y1, x2, y2] = [x1, y1, x2, y2].map(|number| format!("{number:.1}"));
    svg.empty("line", &[("class", class), ("x1", &x1), ("y1", &y1), ("x2", &x2), ("y2", &y2)]);
}

fn text(svg: &mut Markup, class: &str, anchor: &str, x: f64, y: f64, words: &str) {
    let [x, y] = [x, y].map(|number| format!("{number:.1}"));
    let attributes = [("class", class), ("text-anchor", anchor), ("x", &x), ("y", &y)];
    svg.leaf("text", if class.is_empty() { &attributes[1..] } else { &attributes }, words);
}
