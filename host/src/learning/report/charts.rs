//! Which plots the page has: a reward's frontiers, a head's diagnosis, a grid's heat maps.
//!
//! A series is a method and its variant, with one look in all plots. A line joins its points where one thing
//! varies along it: the dial or n against KL, n alone against a cost, since a dial changes no cost.

use super::markup::Markup;
use super::svg::{Axis, Bar, Bars, Dot, Heat, Name, Plot, Series, Style};
use super::tables::{kl, points_of};
use super::wording::{self, interval, reward, short, significant};
use super::{Grid, HeadReport, Point, Report};

/// Points of one method and variant, with their look.
pub(super) struct Group<'a> {
    /// How its points look.
    pub(super) style: Style,
    points: Vec<&'a Point>,
}

impl Group<'_> {
    /// What a legend says of it.
    pub(super) fn label(&self) -> String {
        self.points.first().map(|point| wording::series(point)).unwrap_or_default()
    }

    fn varies<T: PartialEq>(&self, of: impl Fn(&Point) -> T) -> bool {
        self.points.windows(2).any(|pair| of(pair[0]) != of(pair[1]))
    }
}

/// The series of a reward, in the order of methods.
pub(super) fn groups<'a>(report: &'a Report, reward: &str) -> Vec<Group<'a>> {
    let mut groups: Vec<Group<'a>> = Vec::new();
    for point in points_of(report, reward) {
        let same = |group: &Group<'_>| {
            group.points.iter().any(|other| (&other.method, &other.variant) == (&point.method, &point.variant))
        };
        match groups.last_mut().filter(|group| same(group)) {
            Some(group) => group.points.push(point),
            None => groups.push(Group { style: style(report, point), points: vec![point] }),
        }
    }
    groups
}

/// The same look for a variant in the plots of all rewards.
fn style(report: &Report, point: &Point) -> Style {
    let mut variants: Vec<&str> =
        report.points.iter().filter(|other| other.method == point.method).map(|other| &*other.variant).collect();
    variants.sort_unstable();
    variants.dedup();
    Style::of(&point.method, variants.iter().position(|variant| *variant == point.variant).unwrap_or(0))
}

/// What a reward is drawn against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cost {
    /// Nats a token.
    Kl,
    /// Rows of arithmetic a token.
    Forwards,
    /// Time a token.
    Milliseconds,
}

impl Cost {
    /// In the order of the page.
    pub(super) const ALL: [Self; 3] = [Self::Kl, Self::Forwards, Self::Milliseconds];

    fn of(self, point: &Point) -> f64 {
        match self {
            Self::Kl => point.kl_per_token,
            Self::Forwards => point.forwards_per_token,
            Self::Milliseconds => point.ms_per_token,
        }
    }

    /// The plot's title.
    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Kl => "Reward against divergence from the base model",
            Self::Forwards => "Reward against compute",
            Self::Milliseconds => "Reward against time",
        }
    }

    /// What to know when reading it.
    pub(super) fn caveat(self) -> &'static str {
        match self {
            Self::Kl => "Higher at the same KL is better. Best-of-n stands at an upper bound of its KL.",
            Self::Forwards => "Higher at the same compute is better. A dial changes the reward, not the compute.",
            Self::Milliseconds => "One machine's clock: shared passes are divided by their rows.",
        }
    }

    fn label(self) -> &'static str {
        match self {
            Self::Kl => "KL from the base model, nats a token",
            Self::Forwards => "forwards a response token (logarithmic)",
            Self::Milliseconds => "milliseconds a response token (logarithmic)",
        }
    }
}

/// A reward against a cost.
pub(super) fn frontier(page: &mut Markup, id: &str, reward_name: &str, groups: &[Group<'_>], cost: Cost) {
    let points = || groups.iter().flat_map(|group| &group.points);
    let costs = points().map(|point| cost.of(point));
    let x = if cost == Cost::Kl { Axis::linear(costs.chain([0.0])) } else { Axis::log(costs) };
    let series = groups.iter().map(|group| {
        let (dials, ns) = (group.varies(|point| point.dial), group.varies(|point| point.n));
        let joined = if cost == Cost::Kl { dials != ns } else { ns && !dials };
        Series {
            style: group.style,
            joined,
            dots: group.points.iter().map(|point| dot(point, cost.of(point))).collect(),
        }
    });
    let labels: Vec<String> = groups.iter().map(Group::label).collect();
    let description = format!(
        "The mean of {reward_name} with its 95 % interval against {}. Series: {}. The table of points has the \
         numbers.",
        cost.label(),
        labels.join("; ")
    );
    Plot {
        name: Name { id, title: &format!("{reward_name}: {}", cost.title()), description: &description },
        x_label: cost.label(),
        y_label: &format!("mean {}", axis_name(reward_name)),
        x,
        y: Axis::linear(points().flat_map(|point| [point.mean, point.ci_low, point.ci_high])),
        series: series.collect(),
        diagonal: None,
    }
    .draw(page);
}

/// A name that has room beside an axis.
fn axis_name(name: &str) -> String {
    crate::sandbox::words::clean(name, 32)
}

fn dot(point: &Point, x: f64) -> Dot {
    let words = format!(
        "{}: dial {}, n {}\nreward {} {}\nKL {}, forwards {}, ms {} a token",
        wording::series(point),
        short(point.dial),
        point.n,
        reward(point.mean),
        interval(point.ci_low, point.ci_high),
        kl(point),
        significant(point.forwards_per_token),
        significant(point.ms_per_token),
    );
    Dot { x, y: point.mean, interval: Some((point.ci_low, point.ci_high)), words }
}

/// Mean reward against mean V, by tenths.
pub(super) fn calibration(page: &mut Markup, id: &str, name: &str, head: &HeadReport) {
    let both = || head.calibration.iter().flat_map(|(v, mean)| [*v, *mean]);
    let dots = head.calibration.iter().map(|(v, mean)| Dot {
        x: *v,
        y: *mean,
        interval: None,
        words: format!("mean V {}, mean final reward {}", reward(*v), reward(*mean)),
    });
    Plot {
        name: Name {
            id,
            title: &format!("{name}: calibration"),
            description: "Tenths of the states by V: the mean final reward of each against its mean V, both less \
                          the prompt's mean. A calibrated head's lie on the diagonal.",
        },
        x_label: "mean V, prompt-centred",
        y_label: "mean final reward",
        x: Axis::linear(both()),
        y: Axis::linear(both()),
        series: vec![Series { style: Style::of("vas", 0), joined: true, dots: dots.collect() }],
        diagonal: Some("calibrated"),
    }
    .draw(page);
}

/// Explained variance by position.
pub(super) fn positions(page: &mut Markup, id: &str, name: &str, head: &HeadReport) {
    let bars = head.explained_by_position.iter().enumerate().map(|(part, share)| Bar {
        label: (part + 1).to_string(),
        value: *share,
        interval: None,
        main: true,
    });
    Bars {
        name: Name {
            id,
            title: &format!("{name}: explained variance by position"),
            description: "The share of the variance of the final reward that the head explains at each part of \
                          the response.",
        },
        x_label: "part of the token limit, first to last",
        y_label: "explained variance",
        bars: bars.collect(),
    }
    .draw(page);
}

/// Explained variance of the head and of rules that know less.
pub(super) fn controls(page: &mut Markup, id: &str, name: &str, head: &HeadReport) {
    let own = ("head".to_owned(), head.explained_variance, true);
    let others = head.explained_by_controls.iter().map(|(control, share)| (control.clone(), *share, false));
    let bars = std::iter::once(own).chain(others).map(|(label, share, main)| Bar {
        label,
        value: share.mean,
        interval: Some((share.ci_low, share.ci_high)),
        main,
    });
    Bars {
        name: Name {
            id,
            title: &format!("{name}: explained variance of the head and of rules that know less"),
            description: "The share of the variance that the head explains over all states, beside that of \
                          simpler rules, with 95 % intervals.",
        },
        x_label: "the head, and rules that know less",
        y_label: "explained variance",
        bars: bars.collect(),
    }
    .draw(page);
}

/// The means of one of the grid's rewards.
pub(super) fn heat(page: &mut Markup, id: &str, grid: &Grid, index: usize) {
    let [first, second] = &grid.rewards;
    let name = &grid.rewards[index];
    Heat {
        name: Name {
            id,
            title: &format!("Mean {name} over two dials"),
            description: &format!(
                "The mean of {name} at each pair of dials: rows are dials of {first}, columns of {second}; \
                 lighter is higher. The table below has the numbers."
            ),
        },
        row_label: &format!("dial of {}", axis_name(first)),
        column_label: &format!("dial of {}", axis_name(second)),
        rows: &grid.first,
        columns: &grid.second,
        means: &grid.means[index],
    }
    .draw(page);
}
