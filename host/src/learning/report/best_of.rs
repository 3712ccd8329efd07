//! Best-of-n, plain and guided: what it reaches, what it costs, and the compute that reaches it by other means.
//!
//! Plain Best-of-n comes from the pool by the unbiased estimator, guided Best-of-n from several guided responses by the same. Both
//! cost n responses; the divergence told is a bound. Start at [`best_of_pool`].

use std::collections::BTreeMap;

use super::super::statistics::best_of_by;
use super::analysis::{Group, Told, estimate, words};
use super::samples::Sample;
use super::{Comparison, Compute, Point, tuned};

/// The scores of a pool's samples by one reward, `[prompts][samples]`; none where it has no score.
pub type Scored = Vec<Vec<Option<f64>>>;

/// A pool as two rewards see it.
#[derive(Debug, Clone, Copy)]
pub struct Pool<'a> {
    /// The scores that the best is chosen by.
    pub choosing: &'a Scored,
    /// The scores that are told.
    pub told: &'a Scored,
}

impl Pool<'_> {
    /// The samples of each prompt that both have scored.
    fn pairs(self) -> Vec<Vec<(f64, f64)>> {
        let both = |(choosing, told): (&Vec<Option<f64>>, &Vec<Option<f64>>)| {
            choosing.iter().zip(told).filter_map(|(choosing, told)| Some(((*choosing)?, (*told)?))).collect()
        };
        self.choosing.iter().zip(self.told).map(both).collect()
    }
}

/// Every n that Best-of-n is told for, where the pool is at least twice as large.
pub const BEST_OF: [usize; 9] = [1, 2, 4, 8, 16, 24, 32, 64, 128];

impl Group {
    /// Guided Best-of-n: the best of n of this group's responses by the reward that guided, or by `by_value`: by V alone, which
    /// costs so many plain rows a token where the responses were not decoded by it.
    pub fn guided_best_of(&self, n: usize, told: Told<'_>, by_value: Option<f64>, seed: u64) -> Option<Point> {
        let scores = |of: &dyn Fn(&Sample) -> Option<f64>| -> Scored {
            self.samples.iter().map(|group| group.iter().map(of).collect()).collect()
        };
        let choosing = match by_value {
            Some(_) => scores(&|own| own.value),
            None => scores(&|own| own.scores[told.guide]),
        };
        let of_told = scores(&|own| own.scores[told.place]);
        let scoring = by_value.unwrap_or(told.scoring);
        let pool = Pool { choosing: &choosing, told: &of_told };
        let best: Vec<Option<f64>> = pool.pairs().iter().map(|samples| best_of_by(samples, n)).collect();
        if best.iter().flatten().count() == 0 {
            return None;
        }
        let plain = self.point(told, self, seed);
        let estimate = estimate(&best, seed);
        let length =
            self.all().map(|sample| sample.tokens.len()).sum::<usize>() as f64 / self.all().count().max(1) as f64;
        Some(Point {
            method: "guided_best_of_n".into(),
            variant: format!("{}{}", self.variant, if by_value.is_some() { ", by V" } else { "" }),
            n,
            mean: estimate.mean,
            ci_low: estimate.ci_low,
            ci_high: estimate.ci_high,
            // Choosing the best of n adds at most its own bound to what guidance costs.
            kl_per_token: plain.kl_per_token + best_of_kl(n) / length.max(1.0),
            cross_entropy_ratio: None,
            distinct2_ratio: None,
            repeated4_ratio: None,
            forwards_per_token: n as f64 * (plain.forwards_per_token + scoring),
            ms_per_token: n as f64 * with_scoring(plain.ms_per_token, plain.forwards_per_token, scoring),
            ..plain
        })
    }
}

/// Milliseconds a token with a score's rows at the price of the others: worked out, not measured.
fn with_scoring(ms: f64, forwards: f64, scoring: f64) -> f64 {
    ms * (1.0 + scoring / forwards.max(f64::MIN_POSITIVE))
}

/// The bound of Best-of-n's divergence from the base, nats a response.
fn best_of_kl(n: usize) -> f64 {
    let n = n as f64;
    n.ln() - (n - 1.0) / n
}

/// Best-of-n of a pool of base samples; `base` says what one sample costs without its score.
pub fn best_of_pool(pool: Pool<'_>, told: Told<'_>, base: &Point, mean_tokens: f64, seed: u64) -> Vec<Point> {
    let pool = pool.pairs();
    let smallest = pool.iter().map(Vec::len).min().unwrap_or(0);
    let of = |n: usize| {
        let best: Vec<Option<f64>> = pool.iter().map(|samples| best_of_by(samples, n)).collect();
        let estimate = estimate(&best, seed);
        Point {
            method: "best_of_n".into(),
            variant: String::new(),
            reward: told.name.to_owned(),
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
            forwards_per_token: n as f64 * (base.forwards_per_token + told.scoring),
            ms_per_token: n as f64 * with_scoring(base.ms_per_token, base.forwards_per_token, told.scoring),
        }
    };
    BEST_OF.iter().filter(|&&n| 2 * n <= smallest.max(2)).map(|&n| of(n)).collect()
}

/// What counts as equal cost: within this share, so that n does not turn on a last digit.
const EQUAL: f64 = 0.01;

/// A method less Best-of-n with n chosen so that it costs at least as much arithmetic, but for a hundredth (the smallest such n,
/// at least 1). `forwards` are the method's and one sample's with its score.
pub fn against_best_of(
    group: &Group,
    pool: Pool<'_>,
    told: Told<'_>,
    forwards: (f64, f64),
    seed: u64,
) -> Option<Comparison> {
    let (own, one) = forwards;
    let n = (own * (1.0 - EQUAL) / one.max(f64::MIN_POSITIVE)).ceil().max(1.0) as usize;
    let pairs: Vec<f64> = group
        .rewards(told.place)
        .into_iter()
        .zip(pool.pairs())
        .filter_map(|(own, samples)| Some(own? - best_of_by(&samples, n)?))
        .collect();
    if pairs.is_empty() {
        return None;
    }
    let found = estimate(&pairs.iter().copied().map(Some).collect::<Vec<_>>(), seed);
    Some(Comparison {
        reward: told.name.to_owned(),
        method: words(&group.method, &group.variant),
        against: format!("best_of_{n}"),
        matched: format!("forwards {own:.2} for {:.2}", n as f64 * one),
        difference: found.mean,
        ci_low: found.ci_low,
        ci_high: found.ci_high,
    })
}

/// For each n, the cheapest point of another method whose mean reaches Best-of-n's. Not of a tuned model: its cost lies in the tuning.
pub fn compute(points: &[Point]) -> Vec<Compute> {
    let mut found = Vec::new();
    let mut rewards: BTreeMap<&str, Vec<&Point>> = BTreeMap::new();
    for point in points {
        rewards.entry(&point.reward).or_default().push(point);
    }
    for (reward, points) in rewards {
        for target in points.iter().filter(|point| point.method == "best_of_n" && point.n >= 8) {
            let other = |point: &Point| point.method != "best_of_n" && !tuned::METHODS.contains(&point.method.as_str());
            let reaches = |point: &&&Point| other(point) && point.mean >= target.mean;
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
        let told = Told::own(0, "r");
        let base = groups[0].point(told, &groups[0], 1);
        let scores: Scored = (0..4).map(|_| (0..32).map(|i| Some(f64::from(i) / 40.0)).collect()).collect();
        let pool = Pool { choosing: &scores, told: &scores };
        let best = best_of_pool(pool, told, &base, 4.0, 1);
        assert_eq!(best.iter().map(|point| point.n).collect::<Vec<_>>(), [1, 2, 4, 8, 16]);
        assert_eq!(best[3].forwards_per_token, 8.0);
        assert!(best.windows(2).all(|pair| pair[0].mean < pair[1].mean));
        let mut points = best;
        points.push(groups[1].point(told, &groups[0], 1));
        let compute = compute(&points);
        assert_eq!(compute.iter().map(|found| found.n).collect::<Vec<_>>(), [8, 16]);
        assert_eq!(compute[1].reached_by.as_deref(), Some("vas, dial 1.00"));
        assert_eq!(compute[1].times_cheaper, Some(16.0));
        let against = against_best_of(&groups[1], pool, told, (11.5, 1.0), 1).expect("scored");
        assert_eq!(against.against, "best_of_12");
        assert!(against.difference > 0.0);
        let near = against_best_of(&groups[1], pool, told, (11.05, 1.0), 1).expect("scored");
        assert_eq!(near.against, "best_of_11", "half a hundredth more is equal");
    }

    #[test]
    fn guided_best_of_n_is_chosen_by_the_reward_or_by_v() {
        let mut several = decoded("guided", 0.5, 1, &[0.0; 2], 0.1);
        several.setting.variant = "one-pass".into();
        for group in &mut several.samples {
            *group = (0..4).map(|i| super::super::analysis::tests::sample(f64::from(i), 0.1)).collect();
        }
        let groups = groups(&[several]);
        let told = Told { scoring: 0.5, ..Told::own(0, "r") };
        let by_reward = groups[0].guided_best_of(4, told, None, 1).expect("scored");
        assert_eq!((by_reward.mean, by_reward.variant.as_str(), by_reward.forwards_per_token), (3.0, "one-pass", 6.0));
        // Here V is the reward turned round.
        let by_value = groups[0].guided_best_of(4, told, Some(0.25), 1).expect("valued");
        assert_eq!(
            (by_value.mean, by_value.variant.as_str(), by_value.forwards_per_token),
            (0.0, "one-pass, by V", 5.0)
        );
    }

    #[test]
    fn a_judge_tells_of_what_another_has_chosen_and_a_score_costs_its_rows() {
        let groups = groups(&[decoded("base", 0.0, 1, &[0.5; 2], 0.0)]);
        let own = Told::own(0, "r");
        let base = groups[0].point(own, &groups[0], 1);
        let (up, down): (Vec<_>, Vec<_>) = (0..8).map(|i| (Some(f64::from(i)), Some(-f64::from(i)))).unzip();
        let (choosing, told) = (vec![up.clone(); 2], vec![down; 2]);
        let judge = Told { place: 1, name: "gold", scoring: 0.5, ..own };
        let best = best_of_pool(Pool { choosing: &choosing, told: &told }, judge, &base, 4.0, 1);
        assert_eq!((best[0].mean, best[0].reward.as_str()), (-3.5, "gold"));
        assert!(best.windows(2).all(|pair| pair[0].mean > pair[1].mean), "the better chosen, the worse told");
        assert_eq!(best[2].forwards_per_token, 4.0 * 1.5);
        // What the first does not tell apart is equally likely.
        let blind = vec![vec![Some(1.0); 8]; 2];
        let best = best_of_pool(Pool { choosing: &blind, told: &choosing }, judge, &base, 4.0, 1);
        assert!(best.iter().all(|point| (point.mean - 3.5).abs() < 1e-12));
        let missing = vec![vec![None; 8]; 2];
        let none = Pool { choosing: &missing, told: &told };
        assert!(against_best_of(&groups[0], none, own, (1.0, 1.0), 1).is_none());
    }
}
