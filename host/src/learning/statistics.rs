//! Estimators of the evaluation: Best-of-N, intervals, and measures of text that rewards do not see.
//!
//! All are functions of numbers, tokens or log-probabilities; sampling and models are elsewhere.
//! Random choices come from a seed through [`SplitMix`], so a table can be made again to the digit.

use std::collections::HashSet;
use std::ops::Range;

use serde::{Deserialize, Serialize};

/// The expected best reward of `n` samples drawn without replacement from a pool of M rewards: unbiased
/// for Best-of-n of the model behind the pool, with far less noise than taking maxima of actual groups.
///
/// With the pool in ascending order the i-th smallest (from 0) is the best of n in C(i, n-1) of C(M, n)
/// choices. Nothing where n is 0, M < n, or a reward is NaN.
///
/// Samples are pairs of (what chooses, what is told): the same reward twice, or one that chooses and another that judges. Those
/// that the first does not tell apart are equally likely.
pub fn best_of_by(samples: &[(f64, f64)], n: usize) -> Option<f64> {
    if n == 0 || samples.len() < n || samples.iter().any(|(chooses, told)| chooses.is_nan() || told.is_nan()) {
        return None;
    }
    let mut pool = samples.to_vec();
    pool.sort_by(|a, b| a.0.total_cmp(&b.0));
    for equal in pool.chunk_by_mut(|a, b| a.0 == b.0) {
        let told = equal.iter().map(|(_, told)| told).sum::<f64>() / equal.len() as f64;
        equal.iter_mut().for_each(|sample| sample.1 = told);
    }
    // Weights from the largest down: n/M for it, and each next one is (i - n + 1) / i of the one above.
    let mut weight = n as f64 / pool.len() as f64;
    let mut expected = 0.0;
    for (index, (_, told)) in pool.iter().enumerate().rev() {
        expected += weight * told;
        if index < n {
            break;
        }
        weight *= (index + 1 - n) as f64 / index as f64;
    }
    Some(expected)
}

/// Resamplings behind an interval.
pub const ROUNDS: usize = 2000;

/// A mean with its 95 % interval, bootstrapped over prompts.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// The mean over prompts.
    pub mean: f64,
    /// The lower end.
    pub ci_low: f64,
    /// The upper end.
    pub ci_high: f64,
}

impl Estimate {
    /// A mean beside its interval; the mean alone where there is none. What is not a number, because nothing varies, is 0:
    /// nothing is explained there, nor changes.
    pub fn new(mean: f64, interval: Option<Range<f64>>) -> Self {
        let mean = if mean.is_finite() { mean } else { 0.0 };
        let interval = interval.unwrap_or(mean..mean);
        Self { mean, ci_low: interval.start, ci_high: interval.end }
    }
}

/// The arithmetic mean; 0 of nothing.
pub fn mean(numbers: &[f64]) -> f64 {
    numbers.iter().sum::<f64>() / numbers.len().max(1) as f64
}

/// The 95 % percentile bootstrap interval of a statistic over prompts: prompts are drawn anew with
/// replacement `rounds` times, and `statistic` sees the drawn prompts' indices. Samples and seeds within a
/// prompt belong inside `statistic`. Nothing without prompts, rounds, or a finite statistic.
pub fn bootstrap(
    prompts: usize,
    rounds: usize,
    seed: u64,
    mut statistic: impl FnMut(&[usize]) -> f64,
) -> Option<Range<f64>> {
    if prompts == 0 {
        return None;
    }
    let mut random = SplitMix::new(seed);
    let mut drawn = vec![0; prompts];
    let mut found: Vec<f64> = (0..rounds)
        .map(|_| {
            drawn.iter_mut().for_each(|index| *index = random.below(prompts));
            statistic(&drawn)
        })
        .filter(|value| value.is_finite())
        .collect();
    found.sort_by(f64::total_cmp);
    let at = |share: f64| found.get((share * found.len().saturating_sub(1) as f64).round() as usize).copied();
    Some(at(0.025)?..at(0.975)?)
}

/// Distinct-2: different pairs of neighbouring tokens as a share of all pairs, over all texts together.
/// It falls as texts grow in number: compare equal numbers of texts only. Nothing without pairs.
pub fn distinct_2<'a>(texts: impl IntoIterator<Item = &'a [u32]>) -> Option<f64> {
    let (mut different, mut all) = (HashSet::new(), 0_u64);
    for pair in texts.into_iter().flat_map(|text| text.array_windows::<2>()) {
        different.insert(*pair);
        all += 1;
    }
    (all > 0).then(|| different.len() as f64 / all as f64)
}

/// The share of a text's runs of four tokens that occurred before in the same text, over all texts
/// together. Nothing without runs.
pub fn repeated_4<'a>(texts: impl IntoIterator<Item = &'a [u32]>) -> Option<f64> {
    let (mut repeated, mut all) = (0_u64, 0_u64);
    for text in texts {
        let mut seen = HashSet::new();
        for run in text.array_windows::<4>() {
            repeated += u64::from(!seen.insert(run));
            all += 1;
        }
    }
    (all > 0).then(|| repeated as f64 / all as f64)
}

/// SplitMix64 (Steele, Lea and Flood, 2014): a small generator for resampling and for starting points of
/// fits. Draws of tokens never use it.
#[derive(Debug, Clone)]
pub struct SplitMix(u64);

impl SplitMix {
    /// A generator; equal seeds give equal numbers.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// An index below `count`; 0 if there is none. The bias of 2⁻⁶⁴ · count is of no account here.
    pub fn below(&mut self, count: usize) -> usize {
        ((u128::from(self.bits()) * count as u128) >> 64) as usize
    }

    /// A number in [0, 1).
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The best by the reward that is told.
    fn best_of(rewards: &[f64], n: usize) -> Option<f64> {
        best_of_by(&rewards.iter().map(|&reward| (reward, reward)).collect::<Vec<_>>(), n)
    }

    /// Mean of the best over all choices of n.
    fn best_by_force(rewards: &[f64], n: u32) -> f64 {
        let choices = (0_u32..1 << rewards.len()).filter(|choice| choice.count_ones() == n);
        let best = choices.map(|choice| {
            let chosen = rewards.iter().enumerate().filter(|(index, _)| choice >> index & 1 == 1);
            chosen.fold(f64::NEG_INFINITY, |best, (_, &reward)| best.max(reward))
        });
        mean(&best.collect::<Vec<_>>())
    }

    #[test]
    fn best_of_n_equals_the_mean_over_all_choices() {
        let mut random = SplitMix::new(3);
        let mut pool: Vec<f64> = (0..9).map(|_| random.unit()).collect();
        pool[4] = pool[2];
        for n in 1..=9 {
            let (got, expected) = (best_of(&pool, n).expect("enough"), best_by_force(&pool, n as u32));
            assert!((got - expected).abs() <= 1e-12, "n = {n}: {got} for {expected}");
        }
        assert!((best_of(&pool, 1).expect("enough") - mean(&pool)).abs() <= 1e-12);
        for (pool, n) in [(&pool[..], 10), (&pool[..], 0), (&[1.0, f64::NAN][..], 1), (&[][..], 1)] {
            assert_eq!(best_of(pool, n), None);
        }
    }

    #[test]
    fn the_bootstrap_covers_the_mean_as_often_as_it_says() {
        let mut random = SplitMix::new(11);
        let covered = (0..300).filter(|&round| {
            let numbers: Vec<f64> = (0..60).map(|_| random.unit()).collect();
            let interval =
                bootstrap(numbers.len(), 400, round, |drawn| drawn.iter().map(|&i| numbers[i]).sum::<f64>() / 60.0);
            interval.expect("prompts").contains(&0.5)
        });
        let covered = covered.count();
        assert!((265..=299).contains(&covered), "{covered} of 300 intervals of 95 %");
        let again = || bootstrap(5, 100, 9, |drawn| drawn[0] as f64);
        assert_eq!(again(), again());
        assert_eq!(bootstrap(0, 10, 1, |_| 0.0), None);
        assert_eq!(bootstrap(3, 10, 1, |_| f64::NAN), None);
    }

    #[test]
    fn text_measures_match_counting_by_hand() {
        let texts: [&[u32]; 3] = [&[1, 2, 1, 2, 1], &[2, 1], &[7]];
        assert_eq!(distinct_2(texts), Some(2.0 / 5.0));
        assert_eq!(distinct_2([&[7_u32][..]]), None);
        // Runs: 1212 2121 1212 2121 in the first text (two repeated), 1212 in the second (none).
        let texts: [&[u32]; 2] = [&[1, 2, 1, 2, 1, 2, 1], &[1, 2, 1, 2]];
        assert_eq!(repeated_4(texts), Some(2.0 / 5.0));
        assert_eq!(repeated_4([&[1_u32, 2, 3][..]]), None);
    }

    #[test]
    fn text_measures_equal_brute_force_on_random_texts() {
        let mut random = SplitMix::new(5);
        for _ in 0..50 {
            let text: Vec<u32> = (0..40).map(|_| random.below(3) as u32).collect();
            let runs: Vec<&[u32]> = text.windows(4).collect();
            let repeated = (0..runs.len()).filter(|&at| runs[..at].contains(&runs[at])).count();
            assert_eq!(repeated_4([text.as_slice()]), Some(repeated as f64 / 37.0));
            let pairs: Vec<&[u32]> = text.windows(2).collect();
            let first = (0..pairs.len()).filter(|&at| !pairs[..at].contains(&pairs[at])).count();
            assert_eq!(distinct_2([text.as_slice()]), Some(first as f64 / 39.0));
        }
    }

    #[test]
    fn split_mix_gives_the_published_numbers() {
        let mut random = SplitMix::new(1_234_567);
        assert_eq!([random.bits(), random.bits()], [6_457_827_717_110_365_317, 3_203_168_211_198_807_973]);
        assert!((0..1_000).all(|_| random.below(7) < 7 && (0.0..1.0).contains(&random.unit())));
    }
}
