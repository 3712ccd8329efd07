//! The report's tables, of which the page and Markdown show the same: captions, columns and cells as text.
//!
//! A cell is a number or a name of the report as `wording` writes it, in the report's own order or that of the
//! methods. What a reader has to know beside the numbers (a bound that is no measurement, a clock of one
//! machine) is a table's note.

use super::svg::rank;
use super::wording::{self, fixed, interval, known, reward, short, significant};
use super::{Estimate, Grid, HeadReport, Point, Report};

/// A table.
#[derive(Debug)]
pub(super) struct Table {
    /// What it has.
    pub(super) caption: String,
    /// Titles and kinds of the columns; the first names its row.
    pub(super) columns: Vec<(String, Kind)>,
    /// As many cells as columns each.
    pub(super) rows: Vec<Vec<String>>,
    /// What to know beside the numbers; may be empty.
    pub(super) note: &'static str,
}

/// What a column has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Words.
    Words,
    /// A command, a hash.
    Code,
    /// Numbers, set flush right.
    Number,
    /// [`ABOVE`], [`BELOW`] or [`UNCLEAR`].
    Verdict,
}

/// An interval is clear of 0, above it.
pub(super) const ABOVE: &str = "▲ above 0";
/// Below it.
pub(super) const BELOW: &str = "▼ below 0";
/// It holds 0.
pub(super) const UNCLEAR: &str = "○ holds 0";

/// What to know of a point's numbers.
pub(super) const CAVEATS: [&str; 4] = [
    "Intervals are of 95 %, bootstrapped over prompts: how the numbers vary with other prompts of this kind, not with \
     another model or reward.",
    "The KL of Best-of-n is an upper bound, (ln n − (n − 1)/n) over the mean length, not a measurement: its true \
     place may be farther left.",
    "Forwards a token are plain rows of arithmetic after the prompt, the same on every machine.",
    "Milliseconds a token are of the one machine named above and of how its passes were shared; compare them \
     with each other only.",
];

fn table(caption: impl Into<String>, columns: &[(&str, Kind)], rows: Vec<Vec<String>>, note: &'static str) -> Table {
    let columns = columns.iter().map(|(title, kind)| ((*title).to_owned(), *kind)).collect();
    Table { caption: caption.into(), columns, rows, note }
}

/// How the report was made.
pub(super) fn about(report: &Report) -> Table {
    let about = &report.about;
    let row = |name: &str, value: String| vec![name.to_owned(), value];
    let rows = vec![
        row("Command", about.command.clone()),
        row("Version", about.version.clone()),
        row("Model", about.model.clone()),
        row("Model, SHA-256", about.model_sha256.clone()),
        row("Prompts, SHA-256", about.prompts_sha256.clone()),
        row("Pool, SHA-256", about.pool_sha256.clone()),
        row("Split", about.split.clone()),
        row("Prompts", about.prompts.to_string()),
        row("Samples a prompt in the pool", about.pool_samples.to_string()),
        row("Seeds", wording::list(&about.seeds)),
        row("Temperature", short(about.temperature.into())),
        row("Nucleus (top-p)", short(about.top_p.into())),
        row("Candidates of a step", about.candidates.to_string()),
        row("Tail: other tokens", about.tail.clone()),
        row("Response tokens at most", about.token_limit.to_string()),
        row("Computed by", about.device.clone()),
        row("Settings missing", about.settings_missing.to_string()),
        row("Format of report.json", report.format.clone()),
    ];
    table("Settings and files", &[("What", Kind::Words), ("Value", Kind::Code)], rows, "")
}

/// The rewards.
pub(super) fn rewards(report: &Report) -> Table {
    let columns = [
        ("Reward", Kind::Words),
        ("What is measured", Kind::Words),
        ("Definition", Kind::Code),
        ("Range", Kind::Number),
        ("Without a score", Kind::Number),
        ("Why", Kind::Words),
    ];
    let row = |(name, reward): (&String, &super::RewardAbout)| {
        vec![
            name.clone(),
            reward.summary.clone(),
            reward.definition.clone(),
            format!("{} to {}", short(reward.range.0), short(reward.range.1)),
            reward.unscored.to_string(),
            reward.reasons.clone(),
        ]
    };
    table("Rewards", &columns, report.rewards.iter().map(row).collect(), "Responses without a score are left out.")
}

/// A reward's points, by method, variant, n and dial.
pub(super) fn points_of<'a>(report: &'a Report, reward: &str) -> Vec<&'a Point> {
    let mut points: Vec<&Point> = report.points.iter().filter(|point| point.reward == reward).collect();
    points.sort_by(|a, b| {
        let key = |point: &'a Point| (rank(&point.method), &point.method, &point.variant, point.n);
        key(a).cmp(&key(b)).then(a.dial.total_cmp(&b.dial))
    });
    points
}

/// Every number of every point.
pub(super) fn points(report: &Report, reward_name: &str) -> Table {
    let columns = [
        ("Method", Kind::Words),
        ("Dial", Kind::Number),
        ("n", Kind::Number),
        ("Prompts", Kind::Number),
        ("Seeds", Kind::Number),
        ("Mean reward", Kind::Number),
        ("95 % interval", Kind::Number),
        ("KL, nats a token", Kind::Number),
        ("Cross-entropy ratio", Kind::Number),
        ("Distinct-2 ratio", Kind::Number),
        ("Repeated 4-grams ratio", Kind::Number),
        ("Forwards a token", Kind::Number),
        ("ms a token", Kind::Number),
    ];
    let rows = points_of(report, reward_name).into_iter().map(|point| {
        vec![
            wording::series(point),
            short(point.dial),
            point.n.to_string(),
            point.prompts.to_string(),
            point.seeds.to_string(),
            reward(point.mean),
            interval(point.ci_low, point.ci_high),
            kl(point),
            known(point.cross_entropy_ratio, |ratio| fixed(ratio, 2)),
            known(point.distinct2_ratio, |ratio| fixed(ratio, 2)),
            known(point.repeated4_ratio, |ratio| fixed(ratio, 2)),
            significant(point.forwards_per_token),
            significant(point.ms_per_token),
        ]
    });
    let note = "≤: an upper bound, not a measurement. Ratios are over the base model's samples: a cross-entropy \
                far from 1, fewer distinct pairs of words or more repetition is what a reward does not see. \
                Milliseconds are of a single machine.";
    table(format!("Every point, {reward_name}"), &columns, rows.collect(), note)
}

/// A point's KL; Best-of-n's is a bound.
pub(super) fn kl(point: &Point) -> String {
    let bound = ["best_of_n", "guided_best_of_n"].contains(&point.method.as_str()) && point.kl_per_token.is_finite();
    format!("{}{}", if bound { "≤ " } else { "" }, significant(point.kl_per_token))
}

/// One method less another.
pub(super) fn comparisons(report: &Report, reward_name: &str) -> Table {
    let columns = [
        ("Method", Kind::Words),
        ("Less", Kind::Words),
        ("At equal", Kind::Words),
        ("Difference of mean rewards", Kind::Number),
        ("95 % interval", Kind::Number),
        ("Clear of 0", Kind::Verdict),
    ];
    let rows = report.comparisons.iter().filter(|comparison| comparison.reward == reward_name).map(|comparison| {
        vec![
            wording::method(&comparison.method).to_owned(),
            wording::method(&comparison.against).to_owned(),
            comparison.matched.clone(),
            reward(comparison.difference),
            interval(comparison.ci_low, comparison.ci_high),
            verdict(comparison.ci_low, comparison.ci_high).to_owned(),
        ]
    });
    let note = "An interval that holds 0 is no evidence that two methods are equal, only none that they differ.";
    table(format!("Differences at equal cost, {reward_name}"), &columns, rows.collect(), note)
}

fn verdict(low: f64, high: f64) -> &'static str {
    match (low, high) {
        (low, high) if !low.is_finite() || !high.is_finite() => wording::NONE,
        (low, _) if low > 0.0 => ABOVE,
        (_, high) if high < 0.0 => BELOW,
        _ => UNCLEAR,
    }
}

/// The least compute that reaches Best-of-n's reward.
pub(super) fn compute(report: &Report, reward_name: &str) -> Table {
    let columns = [
        ("Best-of-n, n", Kind::Number),
        ("Its mean reward", Kind::Number),
        ("Reached most cheaply by", Kind::Words),
        ("Forwards a token", Kind::Number),
        ("Times cheaper", Kind::Number),
    ];
    let rows = report.compute.iter().filter(|compute| compute.reward == reward_name).map(|compute| {
        vec![
            compute.n.to_string(),
            reward(compute.target),
            compute.reached_by.clone().unwrap_or_else(|| "not reached".to_owned()),
            known(compute.forwards_per_token, significant),
            known(compute.times_cheaper, |times| fixed(times, 2)),
        ]
    });
    let note = "Forwards are counted, not timed. Means are compared, not their intervals: a reward that is just \
                reached may be missed with other prompts.";
    table(format!("Least compute that reaches Best-of-n, {reward_name}"), &columns, rows.collect(), note)
}

fn estimate(estimate: Estimate) -> [String; 2] {
    [reward(estimate.mean), interval(estimate.ci_low, estimate.ci_high)]
}

/// The same where small numbers count.
fn fine(estimate: Estimate) -> [String; 2] {
    [fixed(estimate.mean, 4), wording::ends(estimate.ci_low, estimate.ci_high, 4)]
}

/// What a head is worth, in single numbers.
pub(super) fn head(name: &str, head: &HeadReport) -> Table {
    let columns =
        [("Measure", Kind::Words), ("Value", Kind::Number), ("95 % interval", Kind::Number), ("Meaning", Kind::Words)];
    let row = |name: &str, [value, interval]: [String; 2], meaning: &str| {
        vec![name.to_owned(), value, interval, meaning.to_owned()]
    };
    let single = |value: String| [value, String::new()];
    let within = head.within_state.map_or_else(|| single(wording::NONE.to_owned()), estimate);
    let mut rows = vec![
        row(
            "Explained variance",
            estimate(head.explained_variance),
            "of the prompt-centred final reward, over all states",
        ),
        row(
            "Correlation within a state",
            within,
            "of V(s·a) − V(s) with sampled values of next tokens, corrected for noise",
        ),
        row("Calibration slope", estimate(head.calibration_slope), "1 is calibrated"),
        row("Martingale, mean change of V", fine(head.martingale), "0 for the true V"),
        row(
            "Martingale, at the end",
            single(fixed(head.martingale_terminal, 4)),
            "final reward less V at the end state, both less their prompt's mean",
        ),
        row("Spread σ_A", single(significant(head.spread)), "of V between next tokens; a dial is in its units"),
        row("Layer", single(head.layer.to_string()), "that the head reads"),
    ];
    let known_less = head.explained_by_controls.iter();
    rows.extend(known_less.map(|(name, share)| {
        row(&format!("Explained variance, {name}"), estimate(*share), "a rule that knows less than the head")
    }));
    rows.extend(head.ablation.iter().map(|(features, share)| {
        row(
            &format!("Ablation, {features}"),
            single(reward(*share)),
            "explained variance on tune prompts; the best was taken",
        )
    }));
    table(format!("The head of {name} on prompts that it has not seen"), &columns, rows, "")
}

/// What stands in the head's plots, and what its dials cost.
pub(super) fn head_plots(name: &str, head: &HeadReport) -> [Table; 3] {
    let calibration = head.calibration.iter().enumerate();
    let calibration = calibration.map(|(tenth, (v, mean))| vec![(tenth + 1).to_string(), reward(*v), reward(*mean)]);
    let position = head.explained_by_position.iter().enumerate();
    let position = position.map(|(part, share)| vec![(part + 1).to_string(), reward(*share)]);
    let dials = head.dial_to_kl.iter().map(|(dial, kl)| vec![short(*dial), significant(*kl)]);
    let number = Kind::Number;
    [
        table(
            format!("Calibration of {name}, prompt-centred"),
            &[("Tenth by V", number), ("Mean V", number), ("Mean final reward", number)],
            calibration.collect(),
            "",
        ),
        table(
            format!("Explained variance of {name} by position"),
            &[("Part of the token limit", number), ("Explained variance", number)],
            position.collect(),
            "",
        ),
        table(
            format!("What a dial of {name} costs"),
            &[("Dial", number), ("KL, nats a token", number)],
            dials.collect(),
            "",
        ),
    ]
}

/// The means of a reward over both dials.
pub(super) fn grid_means(grid: &Grid, index: usize) -> Table {
    let [first, second] = &grid.rewards;
    let mut columns = vec![(format!("Dial of {first}"), Kind::Number)];
    columns.extend(grid.second.iter().map(|dial| (format!("{second} {}", short(*dial)), Kind::Number)));
    let row = |(row, dial): (usize, &f64)| {
        let mean = |column: usize| grid.means[index].get(row).and_then(|means| means.get(column)).copied();
        let means = (0..grid.second.len()).map(|column| known(mean(column), reward));
        std::iter::once(short(*dial)).chain(means).collect()
    };
    let rows = grid.first.iter().enumerate().map(row).collect();
    Table { caption: format!("Mean {} over both dials", grid.rewards[index]), columns, rows, note: "" }
}

/// Whether each reward rises with its own dial.
pub(super) fn trends(grid: &Grid) -> Table {
    let columns = [
        ("Reward", Kind::Words),
        ("The other dial", Kind::Number),
        ("p", Kind::Number),
        ("p, corrected (Holm)", Kind::Number),
    ];
    let rows = grid
        .trends
        .iter()
        .map(|trend| vec![trend.reward.clone(), short(trend.other), short(trend.p), short(trend.p_holm)]);
    let note = "One-sided: how often dials that were permuted within prompts show as much of a rise. Corrected \
                for all tests of the grid.";
    table("Does each reward rise with its own dial?", &columns, rows.collect(), note)
}
