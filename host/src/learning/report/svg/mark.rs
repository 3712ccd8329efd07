//! Marks of points: a shape, a colour and a line for each method, so that colour is never the only difference.
//!
//! Colours are classes of the page's style sheet (a palette after Okabe and Ito, lighter where the page is
//! dark); shapes are paths around a centre. Start at [`Style::of`].

use super::super::markup::Markup;

/// How a series looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct Style {
    /// The colour's class.
    colour: &'static str,
    shape: Shape,
    /// The how-many-th variant of its method: the next ones are hollow and have broken lines.
    variant: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    Circle,
    Square,
    Diamond,
    Up,
    Down,
    Hexagon,
    Plus,
    Cross,
    Star,
    Dash,
}

/// Methods in the order of a legend, with their looks.
const METHODS: [(&str, &str, Shape); 14] = [
    ("base", "ink", Shape::Square),
    ("base_top_k", "ink", Shape::Plus),
    ("vas", "blue", Shape::Circle),
    ("vas_one_pass", "sky", Shape::Square),
    ("value_model", "green", Shape::Up),
    ("best_of_n", "vermilion", Shape::Diamond),
    ("guided_best_of_n", "orange", Shape::Down),
    ("fudge", "purple", Shape::Hexagon),
    ("args", "olive", Shape::Cross),
    ("token_bias", "olive", Shape::Dash),
    ("dpo", "purple", Shape::Up),
    ("ppo", "purple", Shape::Down),
    ("shuffled", "grey", Shape::Star),
    ("random", "grey", Shape::Cross),
];

/// Where a method stands among others; those that are not known come last.
pub(in super::super) fn rank(method: &str) -> usize {
    METHODS.iter().position(|(known, ..)| *known == method).unwrap_or(METHODS.len())
}

impl Style {
    /// The look of a method's series; `variant` tells its variants apart.
    pub(in super::super) fn of(method: &str, variant: usize) -> Self {
        let (_, colour, shape) = METHODS.get(rank(method)).copied().unwrap_or(("", "purple", Shape::Star));
        Self { colour, shape, variant }
    }

    /// The class of what is drawn in this style.
    pub(super) fn class(self, what: &str) -> String {
        format!("{what} {}{}", self.colour, ["", " second", " third", " fourth"][self.variant.min(3)])
    }

    /// The mark itself.
    pub(super) fn draw(self, svg: &mut Markup, x: f64, y: f64) {
        let path = self.shape.path(x, y, 3.7);
        svg.empty("path", &[("class", &self.class("mark")), ("d", &path)]);
    }

    /// A sample for a legend.
    pub(in super::super) fn sample(self, page: &mut Markup) {
        let size = [("class", "sample"), ("viewBox", "0 0 32 14"), ("width", "32"), ("height", "14")];
        page.element("svg", &[&size[..], &[("aria-hidden", "true")]].concat(), |svg| {
            svg.empty("path", &[("class", &self.class("line")), ("d", "M1 7H31")]);
            self.draw(svg, 16.0, 7.0);
        });
    }
}

impl Shape {
    /// The outline around a centre.
    fn path(self, x: f64, y: f64, r: f64) -> String {
        let corners = |count: u32, turn: f64, r: f64| {
            let corner = |index: u32| {
                let angle = std::f64::consts::TAU * (f64::from(index) / f64::from(count) + turn);
                format!("{:.1} {:.1}", x + r * angle.sin(), y - r * angle.cos())
            };
            let corners: Vec<String> = (0..count).map(corner).collect();
            format!("M{}Z", corners.join("L"))
        };
        let strokes = |count: u32, turn: f64| {
            let stroke = |index: u32| {
                let angle = std::f64::consts::PI * (f64::from(index) / f64::from(count) + turn);
                let (dx, dy) = (r * angle.sin(), r * angle.cos());
                format!("M{:.1} {:.1}L{:.1} {:.1}", x - dx, y - dy, x + dx, y + dy)
            };
            (0..count).map(stroke).collect::<String>()
        };
        match self {
            Self::Circle => {
                let d = 2.0 * r;
                format!("M{:.1} {y:.1}a{r} {r} 0 1 0 {d} 0a{r} {r} 0 1 0 -{d} 0Z", x - r)
            }
            Self::Square => corners(4, 0.125, r * 1.2),
            Self::Diamond => corners(4, 0.0, r * 1.25),
            Self::Up => corners(3, 0.0, r * 1.25),
            Self::Down => corners(3, 0.5, r * 1.25),
            Self::Hexagon => corners(6, 0.0, r * 1.1),
            Self::Plus => strokes(2, 0.0),
            Self::Cross => strokes(2, 0.25),
            Self::Star => strokes(3, 0.0),
            Self::Dash => strokes(1, 0.5),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_methods_or_variants_look_alike() {
        let known = METHODS.iter().map(|(method, ..)| *method).chain(["unknown"]);
        let styles: Vec<Style> =
            known.flat_map(|method| (0..4).map(move |variant| Style::of(method, variant))).collect();
        for (index, style) in styles.iter().enumerate() {
            assert!(!styles[..index].contains(style), "{style:?}");
        }
        assert_eq!(Style::of("vas", 9).class("mark"), Style::of("vas", 3).class("mark"));
    }
}
