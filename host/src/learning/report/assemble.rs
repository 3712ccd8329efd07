//! The report itself: what was decoded, the pool and the heads, put together.
//!
//! No number is decoded or fitted here. Which claims failed is decided here too, by the bounds of [`Bounds`], so that what was
//! asked for stands beside what was found. Start at [`assemble`].

use std::collections::BTreeMap;

use super::super::rewards::SharedReward;
use super::super::statistics::SplitMix;
use super::analysis::{self, Group, Told, at_equal_kl, groups, reaches};
use super::best_of::{self, Pool, Scored, against_best_of, best_of_pool};
use super::methods::{self, Wanted};
use super::samples::Journal;
use super::{About, FORMAT, Grid, HeadReport, Point, Report, RewardAbout, SideBySide, trends, tuned};
use crate::learning::prompts::Prompt;

/// What fluency may cost before a point is told among what failed.
pub struct Bounds {
    /// Cross-entropy may differ from the base's by this share.
    pub cross_entropy: f64,
    /// Distinct-2 is at least this share of the base's.
    pub distinct_2: f64,
    /// Repeated 4-grams are at most so many times the base's.
    pub repeated_4: f64,
}

/// The bounds of every report.
pub const BOUNDS: Bounds = Bounds { cross_entropy: 0.15, distinct_2: 0.9, repeated_4: 1.5 };

/// Responses shown side by side, a reward.
const SHOWN: usize = 10;

/// What a report is made of.
pub struct Material<'a> {
    /// How it was made; counts of settings are filled in already.
    pub about: About,
    /// Every reward: those that guide, in the order in which they were asked for, then those that judge.
    pub rewards: &'a [SharedReward],
    /// The name of each reward that judges only, with that of the one whose responses it judges.
    pub judges: &'a [(String, String)],
    /// What was asked for.
    pub wanted: &'a Wanted,
    /// The prompts, in the order of what was decoded.
    pub prompts: &'a [&'a Prompt],
    /// Everything decoded.
    pub journal: &'a Journal,
    /// The pool's rewards, a table each.
    pub pools: &'a [Scored],
    /// What V of an end state costs, plain rows a token, where the response was not decoded by it; for each reward that guides.
    pub value_forwards: &'a [f64],
    /// Mean tokens of a pool's sample.
    pub pool_tokens: f64,
    /// What the heads are worth.
    pub heads: BTreeMap<String, HeadReport>,
    /// Whether responses are shown beside their prompts' ids, not texts.
    pub show_ids: bool,
    /// Fixes intervals and which responses are shown.
    pub seed: u64,
}

impl<'a> Material<'a> {
    /// The rewards as they are told, in order.
    fn told(&self) -> Vec<Told<'a>> {
        let rewards = self.rewards;
        let tell = |(place, reward): (usize, &'a SharedReward)| {
            let judged = self.judges.iter().find(|(judge, _)| judge == reward.name()).map(|(_, of)| of.as_str());
            let dial = judged.unwrap_or(reward.name());
            let guide = rewards.iter().position(|other| other.name() == dial).unwrap_or(place);
            Told { place, name: reward.name(), guide, dial, scoring: rewards[guide].forwards_per_token() }
        };
        rewards.iter().enumerate().map(tell).collect()
    }
}

/// Everything in one object.
pub fn assemble(material: Material<'_>) -> Report {
    let groups = groups(material.journal.done());
    let mut report = Report {
        format: FORMAT.to_owned(),
        about: material.about.clone(),
        rewards: rewards(&material),
        heads: material.heads.clone(),
        points: Vec::new(),
        comparisons: Vec::new(),
        compute: Vec::new(),
        grid: grid(&material, &groups),
        failed: Vec::new(),
        side_by_side: Vec::new(),
    };
    if let Some(base) = groups.iter().find(|group| group.method == "base") {
        for told in material.told() {
            add_reward(&mut report, &material, &groups, base, told);
        }
        report.compute = best_of::compute(&report.points);
    }
    let failed = failed(&report, &material);
    report.failed.extend(failed);
    report
}

fn rewards(material: &Material<'_>) -> BTreeMap<String, RewardAbout> {
    let about = |reward: &SharedReward| {
        let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
        let of_reward = material.journal.done().iter().filter_map(|decoded| decoded.unscored.get(reward.name()));
        for (reason, count) in of_reward.flatten() {
            *reasons.entry(reason).or_default() += count;
        }
        let words: Vec<String> = reasons.iter().map(|(reason, count)| format!("{count} x {reason}")).collect();
        let range = reward.range();
        let about = RewardAbout {
            summary: match material.judges.iter().find(|(judge, _)| judge == reward.name()) {
                Some((_, of)) => format!("{}; judges what {of} guides", reward.summary()),
                None => reward.summary(),
            },
            definition: reward.definition(),
            range: (*range.start(), *range.end()),
            unscored: reasons.values().sum(),
            reasons: words.join("; "),
        };
        (reward.name().to_owned(), about)
    };
    material.rewards.iter().map(about).collect()
}

/// One reward's points, comparisons and responses.
fn add_reward(report: &mut Report, material: &Material<'_>, groups: &[Group], base: &Group, told: Told<'_>) {
    let seed = material.seed;
    let turns = |group: &&Group| group.dials.is_empty() || group.dials.iter().any(|(name, _)| name == told.dial);
    let decoded: Vec<&Group> = groups.iter().filter(turns).filter(|group| group.method != "grid").collect();
    for group in &decoded {
        if group.method == "guided" {
            let most = group.samples.first().map_or(0, Vec::len);
            let points = || [2, 4, 8].into_iter().filter(|&n| n <= most);
            report.points.extend(points().filter_map(|n| group.guided_best_of(n, told, None, seed)));
            // Look-ahead has valued the last token when it drew it.
            let known = group.variant == "look-ahead";
            let value = if known { 0.0 } else { material.value_forwards.get(told.guide).copied().unwrap_or(0.0) };
            report.points.extend(points().filter_map(|n| group.guided_best_of(n, told, Some(value), seed)));
        } else {
            report.points.push(group.point(told, base, seed));
        }
    }
    let of_base = base.point(told, base, seed);
    let pool = Pool { choosing: &material.pools[told.guide], told: &material.pools[told.place] };
    let best = best_of_pool(pool, told, &of_base, material.pool_tokens, seed);
    let alone = |group: &&&Group| group.dials.len() == 1;
    let named = |method: &str, variant: &str| -> Vec<&Group> {
        let same = |group: &&&Group| group.method == method && group.variant == variant;
        decoded.iter().filter(same).filter(alone).copied().collect()
    };
    let own = named("vas", "");
    for against in ["vas_one_pass", "value_model", "fudge", "args", "token_bias", "dpo", "ppo", "shuffled", "random"] {
        let other = named(against, "");
        if own.is_empty() || other.is_empty() {
            continue;
        }
        for &kl in &material.wanted.kls {
            for (method, groups) in [("vas", &own), (against, &other)] {
                let most = groups.iter().map(|group| group.kl_per_token()).fold(0.0, f64::max);
                let words = format!("{}: {method} has {most:.3} nats a token at most, not {kl}", told.name);
                // A tuned model's divergence is not ours to set.
                let ours = !tuned::METHODS.contains(&method);
                if ours && !reaches(groups, kl) && !report.failed.contains(&words) {
                    report.failed.push(words);
                }
            }
            report.comparisons.extend(at_equal_kl(base, ("vas", &own), (against, &other), told, kl, seed));
        }
    }
    for group in decoded.iter().filter(alone).filter(|group| group.method != "guided") {
        let one = of_base.forwards_per_token + told.scoring;
        let forwards = (group.point(told, base, seed).forwards_per_token, one);
        report.comparisons.extend(against_best_of(group, pool, told, forwards, seed));
    }
    report.points.extend(best);
    if told.place == told.guide {
        report.side_by_side.extend(side_by_side(material, base, own.first().copied(), (told.place, told.name)));
    }
}

/// Random prompts with the first seed's responses, base and guided.
fn side_by_side(
    material: &Material<'_>,
    base: &Group,
    guided: Option<&Group>,
    reward: (usize, &str),
) -> Vec<SideBySide> {
    let Some(guided) = guided else { return Vec::new() };
    let mut places: Vec<usize> = (0..material.prompts.len()).collect();
    let mut random = SplitMix::new(material.seed);
    for last in (1..places.len()).rev() {
        places.swap(last, random.below(last + 1));
    }
    let shown = |&place: &usize| {
        let (of_base, aligned) = (base.samples[place].first()?, guided.samples[place].first()?);
        Some(SideBySide {
            reward: reward.1.to_owned(),
            prompt: if material.show_ids { &material.prompts[place].id } else { &material.prompts[place].text }.clone(),
            base: of_base.text.clone(),
            base_reward: of_base.scores[reward.0]?,
            aligned: aligned.text.clone(),
            aligned_reward: aligned.scores[reward.0]?,
        })
    };
    places.iter().filter_map(shown).take(SHOWN).collect()
}

/// The grid of the first two rewards, if all its cells are there.
fn grid(material: &Material<'_>, groups: &[Group]) -> Option<Grid> {
    let side = material.wanted.grid;
    let guides: Vec<&SharedReward> = material.rewards.iter().take(material.wanted.rewards.len()).collect();
    let [first, second, ..] = guides[..] else { return None };
    let cells: Vec<&Group> = groups.iter().filter(|group| group.method == methods::GRID).collect();
    if side == 0 || cells.len() != side * side {
        return None;
    }
    let dial = |group: &Group, place: usize| group.dials.get(place).map_or(0.0, |(_, dial)| *dial);
    let rows: Vec<f64> = (0..side).map(|row| dial(cells[row * side], 0)).collect();
    let columns: Vec<f64> = (0..side).map(|column| dial(cells[column], 1)).collect();
    let table: Vec<Vec<&Group>> = cells.chunks(side).map(<[&Group]>::to_vec).collect();
    Some(trends::grid([(0, first.name()), (1, second.name())], &rows, &columns, &table, material.seed))
}

/// What was asked for and is not so.
fn failed(report: &Report, material: &Material<'_>) -> Vec<String> {
    let mut failed = Vec::new();
    for (reward, head) in &report.heads {
        for (control, found) in &head.explained_by_controls {
            if head.explained_variance.ci_low <= found.mean {
                failed.push(format!(
                    "{reward}: the head explains {:.3} (lower bound {:.3}), not clearly more than {control} ({:.3})",
                    head.explained_variance.mean, head.explained_variance.ci_low, found.mean
                ));
            }
        }
        if head.within_state.is_none_or(|within| within.ci_low <= 0.0) {
            failed.push(format!("{reward}: the head's correlation within states is not clear of 0"));
        }
    }
    failed.extend(report.rewards.keys().filter_map(|reward| other_base(reward, &report.points)));
    let ours = |method: &str| method != "guided_best_of_n" && !tuned::METHODS.contains(&method);
    for point in report.points.iter().filter(|point| point.dial != 0.0 && ours(&point.method)) {
        failed.extend(disfluent(point).map(|what| {
            let words = analysis::words(&point.method, &point.variant);
            format!("{}: {words} at dial {:.2} has {what}", point.reward, point.dial)
        }));
    }
    let main = material.wanted.kls.first().map(|kl| format!("kl {kl}"));
    for found in
        report.comparisons.iter().filter(|found| Some(&found.matched) == main.as_ref() && found.method == "vas")
    {
        if found.ci_low <= 0.0 && !["vas_one_pass", "value_model", "dpo", "ppo"].contains(&found.against.as_str()) {
            failed.push(format!(
                "{}: look-ahead is not clearly above {} at {} nats a token ({:+.3}, {:+.3} to {:+.3})",
                found.reward,
                found.against,
                &found.matched[3..],
                found.difference,
                found.ci_low,
                found.ci_high
            ));
        }
    }
    for trend in report.grid.iter().flat_map(|grid| &grid.trends).filter(|trend| trend.p_holm >= 0.05) {
        failed.push(format!(
            "{} does not clearly rise with its dial where the other dial is {:.2} (p {:.3} after correction)",
            trend.reward, trend.other, trend.p_holm
        ));
    }
    failed
}

/// Whether the base's responses and its pool are of different means: farther apart than chance allows by twice.
fn other_base(reward: &str, points: &[Point]) -> Option<String> {
    let of =
        |method: &str| points.iter().find(|point| point.reward == reward && point.method == method && point.n == 1);
    let (base, pool) = (of("base")?, of("best_of_n")?);
    let half = (base.ci_high - base.ci_low) / 2.0;
    let words = || {
        format!(
            "{reward}: the base's responses have {:.3} ({:.3} to {:.3}), the pool's {:.3}: they are not of one model or setting",
            base.mean, base.ci_low, base.ci_high, pool.mean
        )
    };
    ((base.mean - pool.mean).abs() > 2.0 * half && half > 0.0).then(words)
}

/// Which bounds of fluency a point breaks.
fn disfluent(point: &Point) -> Option<String> {
    let mut broken = Vec::new();
    if let Some(ratio) = point.cross_entropy_ratio.filter(|ratio| (ratio - 1.0).abs() > BOUNDS.cross_entropy) {
        broken.push(format!("{ratio:.2} x the base's cross-entropy"));
    }
    if let Some(ratio) = point.distinct2_ratio.filter(|&ratio| ratio < BOUNDS.distinct_2) {
        broken.push(format!("{ratio:.2} x its distinct-2"));
    }
    if let Some(ratio) = point.repeated4_ratio.filter(|&ratio| ratio > BOUNDS.repeated_4) {
        broken.push(format!("{ratio:.2} x its repeated 4-grams"));
    }
    (!broken.is_empty()).then(|| broken.join(", "))
}
