//! Two dials at once: whether each reward rises with its own, at every setting of the other.
//!
//! One test for each row of the grid: the statistic is how much of the rewards' variance an isotonic fit over the dial
//! explains, summed over prompts, and its distribution without any rise comes from permuting the dial's settings inside each
//! prompt. All tests of a grid are corrected together by Holm's method. Start at [`grid`].

use super::super::statistics::SplitMix;
use super::analysis::Group;
use super::{Grid, Trend};

/// Permutations behind a p.
const ROUNDS: usize = 2000;

/// The grid of two rewards from the groups that were decoded for it; none where one is missing. `groups` are
/// `[rows][columns]`, the first reward's dial down, the second's across.
pub(super) fn grid(
    rewards: [(usize, &str); 2],
    first: &[f64],
    second: &[f64],
    groups: &[Vec<&Group>],
    seed: u64,
) -> Grid {
    // [reward][row][column][prompt]
    let table = rewards.map(|(place, _)| -> Vec<Vec<Vec<Option<f64>>>> {
        groups.iter().map(|row| row.iter().map(|group| group.rewards(place)).collect()).collect()
    });
    let mean = |cell: &Vec<Option<f64>>| {
        let known: Vec<f64> = cell.iter().flatten().copied().collect();
        super::super::statistics::mean(&known)
    };
    let means = table.each_ref().map(|table| table.iter().map(|row| row.iter().map(mean).collect()).collect());
    let mut trends = Vec::new();
    let mut test = |reward: &str, other: f64, levels: Vec<&Vec<Option<f64>>>| {
        let p = p_of_rise(&levels, seed);
        trends.push(Trend { reward: reward.to_owned(), other, p, p_holm: p });
    };
    for (column, &other) in second.iter().enumerate() {
        test(rewards[0].1, other, table[0].iter().map(|row| &row[column]).collect());
    }
    for (row, &other) in first.iter().enumerate() {
        test(rewards[1].1, other, table[1][row].iter().collect());
    }
    holm(&mut trends);
    Grid {
        rewards: rewards.map(|(_, name)| name.to_owned()),
        first: first.to_vec(),
        second: second.to_vec(),
        means,
        trends,
    }
}

/// One-sided p of no rise over the levels `[levels][prompts]`. Prompts that lack a score at a level are left out.
fn p_of_rise(levels: &[&Vec<Option<f64>>], seed: u64) -> f64 {
    let prompts = levels.first().map_or(0, |level| level.len());
    let row = |prompt: usize| levels.iter().map(|level| level[prompt]).collect::<Option<Vec<f64>>>();
    let mut rows: Vec<Vec<f64>> = (0..prompts).filter_map(row).collect();
    if rows.is_empty() {
        return 1.0;
    }
    let observed = rise(&rows);
    let mut random = SplitMix::new(seed);
    let mut as_high = 0;
    for _ in 0..ROUNDS {
        for row in &mut rows {
            for last in (1..row.len()).rev() {
                row.swap(last, random.below(last + 1));
            }
        }
        as_high += usize::from(rise(&rows) >= observed - 1e-12);
    }
    (1 + as_high) as f64 / (1 + ROUNDS) as f64
}

/// Sum of squares that the isotonic fit of the levels' means explains.
fn rise(rows: &[Vec<f64>]) -> f64 {
    let width = rows[0].len();
    let means: Vec<f64> =
        (0..width).map(|at| rows.iter().map(|row| row[at]).sum::<f64>() / rows.len() as f64).collect();
    let all = means.iter().sum::<f64>() / width as f64;
    isotonic(&means).iter().map(|fit| (fit - all).powi(2)).sum()
}

/// The least-squares fit that never falls: neighbours that do are pooled.
fn isotonic(values: &[f64]) -> Vec<f64> {
    let mut blocks: Vec<(f64, usize)> = Vec::new();
    for &value in values {
        blocks.push((value, 1));
        while let [.., (a, m), (b, n)] = blocks[..]
            && a > b
        {
            blocks.truncate(blocks.len() - 2);
            blocks.push(((a * m as f64 + b * n as f64) / (m + n) as f64, m + n));
        }
    }
    blocks.into_iter().flat_map(|(value, count)| std::iter::repeat_n(value, count)).collect()
}

/// Holm's correction for all tests together.
fn holm(trends: &mut [Trend]) {
    let mut order: Vec<usize> = (0..trends.len()).collect();
    order.sort_by(|&a, &b| trends[a].p.total_cmp(&trends[b].p));
    let mut least: f64 = 0.0;
    for (rank, &place) in order.iter().enumerate() {
        least = least.max((trends[place].p * (order.len() - rank) as f64).min(1.0));
        trends[place].p_holm = least;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn falling_neighbours_are_pooled() {
        assert_eq!(isotonic(&[1.0, 3.0, 2.0, 4.0]), [1.0, 2.5, 2.5, 4.0]);
        assert_eq!(isotonic(&[3.0, 2.0, 1.0]), [2.0, 2.0, 2.0]);
    }

    #[test]
    fn a_rise_is_seen_and_noise_is_not() {
        let mut random = SplitMix::new(4);
        let mut levels = |slope: f64| -> Vec<Vec<Option<f64>>> {
            (0..5).map(|level| (0..60).map(|_| Some(random.unit() + slope * f64::from(level))).collect()).collect()
        };
        let p = |levels: &[Vec<Option<f64>>]| p_of_rise(&levels.iter().collect::<Vec<_>>(), 1);
        assert!(p(&levels(0.1)) < 0.01);
        assert!(p(&levels(-0.1)) > 0.5);
        let (flat, many) = (levels(0.0), 40);
        assert!(p(&flat) > 0.001);
        let small = (0..many).filter(|_| p(&levels(0.0)) < 0.05).count();
        assert!(small <= 8, "{small} of {many} tests of noise below .05");
    }

    #[test]
    fn holm_multiplies_the_smallest_most_and_never_changes_the_order() {
        let trend = |p| Trend { reward: "r".into(), other: 0.0, p, p_holm: 0.0 };
        let mut trends = [trend(0.02), trend(0.01), trend(0.5)];
        holm(&mut trends);
        assert_eq!(trends.map(|trend| trend.p_holm), [0.04, 0.03, 0.5]);
    }
}
