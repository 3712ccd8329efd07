//! The main plot as a picture of its own, for a page that shows nothing else of the report: the first reward against compute.
//!
//! It is the page's plot with its style sheet inside and the legend below. Start at [`picture`].

use super::Report;
use super::charts::{self, Cost};
use super::html::STYLE;
use super::markup::Markup;
use super::svg::{HEIGHT, WIDTH};

/// A line of the legend, and entries beside each other: the second may be longer than the first.
const LINE: f64 = 18.0;
const COLUMNS: usize = 2;
const COLUMN: f64 = 215.0;

/// The picture; none where nothing was decoded.
pub fn picture(report: &Report) -> Option<String> {
    let reward = &report.points.first()?.reward;
    let groups = charts::groups(report, reward);
    let lines = groups.len().div_ceil(COLUMNS);
    let view = format!("0 0 {WIDTH} {}", HEIGHT + (lines + 1) as f64 * LINE);
    let mut page = Markup::default();
    let attributes = [
        ("xmlns", "http://www.w3.org/2000/svg"),
        ("viewBox", view.as_str()),
        ("width", "720"),
        ("font-family", "system-ui, sans-serif"),
    ];
    page.element("svg", &attributes, |svg| {
        svg.element("style", &[], |style| style.raw(STYLE));
        svg.empty("rect", &[("width", "100%"), ("height", "100%"), ("fill", "var(--paper)")]);
        let (width, height) = (WIDTH.to_string(), HEIGHT.to_string());
        svg.element("svg", &[("width", &width), ("height", &height)], |svg| {
            charts::frontier(svg, "picture", reward, &groups, Cost::Forwards);
        });
        svg.element("g", &[("class", "plot")], |svg| {
            for (place, group) in groups.iter().enumerate() {
                let x = 8.0 + (place % COLUMNS) as f64 * COLUMN;
                let y = HEIGHT + LINE / 2.0 + (place / COLUMNS) as f64 * LINE;
                let (at, words) = (format!("translate({x} {y})"), format!("translate({} {})", x + 38.0, y + 11.0));
                svg.element("g", &[("transform", &at)], |item| group.style.sample(item));
                svg.leaf("text", &[("class", "value"), ("transform", &words)], &group.label());
            }
        });
    });
    Some(page.finish())
}
