//! Best-of-n, plain and guided: what it reaches, what it costs, and the compute that reaches it by other means.
//!
//! Plain Best-of-n comes from the pool by the unbiased estimator, guided Best-of-n from several guided responses by the same. Both
//! cost n responses; the divergence told is a bound. Start at [`best_of_pool`].

use std::collections::BTreeMap;

use super::super::statistics::best_of;
use super::analysis::{Group, estimate, words};
use super::{Comparison, Compute, Point};

/// Every n that Best-of-n is told for, where the pool is at least twice as large.
pub const BEST_OF: [usize; 9] = [1, 2, 4, 8, 16, 24, 32, 64, 128];

impl Group {
    /// Guided Best-of-n: the best by the reward itself of n of this group's responses.
    pub fn guided_best_of(&self, n: usize, reward: (usize, &str), seed: u64) -> Option<Point> {
        let best: Vec<Option<f64>> = self
            .samples
            .iter()
            .map(|group| best_of(&group.iter().filter_map(|own| own.scores[reward.0]).collect::<Vec<_>>(), n))
            .collect();
        if best.iter().flatten().count() == 0 {
            return None;
        }
        let plain = self.point(reward, self, seed);
        let estimate = estimate(&best, seed);
        let length =
            self.all().map(|sample| sample.tokens.len()).sum::<usize>() as f64 / self.all().count().max(1) as f64;
        Some(Point {
            method: "guided_best_of_n".into(),
            variant: self.variant.clone(),
            n,
            mean: estimate.mean,
            ci_low: estimate.ci_low,
            ci_high: estimate.ci_high,
            // Choosing the best of n adds at most its own bound to what guidance costs.
            kl_per_token: plain.kl_per_token + best_of_kl(n) / length.max(1.0),
            cross_entropy_ratio: None,
            distinct2_ratio: None,
            repeated4_ratio: None,
            forwards_per_token: n as f64 * plain.forwards_per_token,
            ms_per_token: n as f64 * plain.ms_per_token,
            ..plain
        })
    }
}

/// The bound of Best-of-n's divergence from the base, nats a response.
fn best_of_kl(n: usize) -> f64 {
    let n = n as f64;
    n.ln() - (n - 1.0) / n
}

/// Best-of-n of a pool of base samples: `pool` `[prompts][samples]`; `base` says what one sample costs.
pub fn best_of_pool(pool: &[Vec<f64>], reward: &str, base: &Point, mean_tokens: f64, seed: u64) -> Vec<Point> {
    let smallest = pool.iter().map(Vec::len).min().unwrap_or(0);
    let of = |n: usize| {
        let best: Vec<Option<f64>> = pool.iter().map(|rewards| best_of(rewards, n)).collect();
        let estimate = estimate(&best, seed);
        Point {
            method: "best_of_n".into(),
            variant: String::new(),
            reward: reward.to_owned(),
            dial: 0.0,
            n,
            seeds: 1,
            prompts: pool.len(),
            mean: estimate.mean,
            ci_low: estimate.ci_low,
            ci_high: estimate.ci_high,
            kl_per_token: best_of_kl(n) / mean_tokens.max(1.0),
            cross_entropy_ratio: None,
            distinct2_ratio: None,
            repeated4_ratio: None,
            forwards_per_token: n as f64 * base.forwards_per_token,
            ms_per_token: n as f64 * base.ms_per_token,
        }
    };
    BEST_OF.iter().filter(|&&n| 2 * n <= smallest.max(2)).map(|&n| of(n)).collect()
}

/// A method less Best-of-n with n chosen so that it costs at least as much arithmetic (the smallest such n, at least 1).
pub fn against_best_of(
    group: &Group,
    pool: &[Vec<f64>],
    reward: (usize, &str),
    forwards: (f64, f64),
    seed: u64,
) -> Option<Comparison> {
    let (own, one) = forwards;
    let n = ((own / one.max(f64::MIN_POSITIVE)) - 1e-9).ceil().max(1.0) as usize;
    let pairs: Vec<f64> = group
        .rewards(reward.0)
        .into_iter()
        .zip(pool)
        .filter_map(|(own, pool)| Some(own? - best_of(pool, n)?))
        .collect();
    if pairs.is_empty() {
        return None;
    }
    let found = estimate(&pairs.iter().copied().map(Some).collect::<Vec<_>>(), seed);
    Some(Comparison {
        reward: reward.1.to_owned(),
        method: words(&group.method, &group.variant),
        against: format!("best_of_{n}"),
        matched: format!("forwards {own:.2} for {:.2}", n as f64 * one),
        difference: found.mean,
        ci_low: found.ci_low,
        ci_high: found.ci_high,
    })
}

/// For each n, the cheapest point of another method whose mean reaches Best-of-n's.
pub fn compute(points: &[Point]) -> Vec<Compute> {
    let mut found = Vec::new();
    let mut rewards: BTreeMap<&str, Vec<&Point>> = BTreeMap::new();
    for point in points {
        rewards.entry(&point.reward).or_default().push(point);
    }
    for (reward, points) in rewards {
        for target in points.iter().filter(|point| point.method == "best_of_n" && point.n >= 8) {
            let reaches = |point: &&&Point| point.method != "best_of_n" && point.mean >= target.mean;
            let cheapest =
                points.iter().filter(reaches).min_by(|a, b| a.forwards_per_token.total_cmp(&b.forwards_per_token));
            let name = |point: &&Point| {
                let of_n = if point.n > 1 { format!(", n = {}", point.n) } else { String::new() };
                format!("{}, dial {:.2}{of_n}", words(&point.method, &point.variant), point.dial)
            };
            found.push(Compute {
                reward: reward.to_owned(),
                n: target.n,
                target: target.mean,
                reached_by: cheapest.map(name),
                forwards_per_token: cheapest.map(|point| point.forwards_per_token),
                times_cheaper: cheapest.map(|point| target.forwards_per_token / point.forwards_per_token),
            });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::analysis::groups;
    use super::super::analysis::tests::decoded;
    use super::*;

    #[test]
    fn best_of_n_costs_n_rows_and_the_least_compute_is_found() {
        let groups = groups(&[decoded("base", 0.0, 1, &[0.5; 4], 0.0), decoded("vas", 1.0, 1, &[0.9; 4], 0.2)]);
        let base = groups[0].point((0, "r"), &groups[0], 1);
        let pool: Vec<Vec<f64>> = (0..4).map(|_| (0..32).map(|i| f64::from(i) / 40.0).collect()).collect();
        let best = best_of_pool(&pool, "r", &base, 4.0, 1);
        assert_eq!(best.iter().map(|point| point.n).collect::<Vec<_>>(), [1, 2, 4, 8, 16]);
        assert_eq!(best[3].forwards_per_token, 8.0);
        assert!(best.windows(2).all(|pair| pair[0].mean < pair[1].mean));
        let mut points = best;
        points.push(groups[1].point((0, "r"), &groups[0], 1));
        let compute = compute(&points);
        assert_eq!(compute.iter().map(|found| found.n).collect::<Vec<_>>(), [8, 16]);
        assert_eq!(compute[1].reached_by.as_deref(), Some("vas, dial 1.00"));
        assert_eq!(compute[1].times_cheaper, Some(16.0));
        let against = against_best_of(&groups[1], &pool, (0, "r"), (11.5, 1.0), 1).expect("scored");
        assert_eq!(against.against, "best_of_12");
        assert!(against.difference > 0.0);
    }
}
