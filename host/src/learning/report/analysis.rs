//! From decoded responses to estimates: points, and comparisons at equal divergence.
//!
//! Everything is by prompt first: seeds are averaged inside a prompt, and intervals resample prompts. Where two methods are
//! compared at equal KL, both frontiers are interpolated anew in every resample, so that the interval has the KL's noise
//! in it too. Start at [`groups`].

use super::super::statistics::{ROUNDS, bootstrap, distinct_2, mean, repeated_4};
use super::samples::{Decoded, Sample};
use super::{Comparison, Estimate, Point};

/// The share of a divergence from which on it counts as reached: dials are set by other prompts than these.
pub const REACHED: f64 = 0.8;

/// One method at one setting, all seeds together, `[prompts]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    /// Its method.
    pub method: String,
    /// See [`Point::variant`].
    pub variant: String,
    /// The rewards whose dials are turned, with the dials.
    pub dials: Vec<(String, f64)>,
    /// Seeds.
    pub seeds: usize,
    /// Responses by prompt, all seeds.
    pub samples: Vec<Vec<Sample>>,
}

/// A reward as a report tells it: of responses that it has guided itself, or, for a judge, another one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Told<'a> {
    /// Its place among all that were scored.
    pub place: usize,
    /// Its name.
    pub name: &'a str,
    /// The place of the reward that guided, and that Best-of-n chooses by.
    pub guide: usize,
    /// The name of that, and of its dial.
    pub dial: &'a str,
    /// What a score of that costs ([`Reward::forwards_per_token`](crate::learning::rewards::Reward::forwards_per_token)).
    pub scoring: f64,
}

impl<'a> Told<'a> {
    /// A reward that guides, costs nothing, and tells of itself.
    pub fn own(place: usize, name: &'a str) -> Self {
        Self { place, name, guide: place, dial: name, scoring: 0.0 }
    }
}

/// The mean of numbers by prompt, with its interval. Prompts without a number are left out.
pub fn estimate(by_prompt: &[Option<f64>], seed: u64) -> Estimate {
    let known: Vec<f64> = by_prompt.iter().flatten().copied().collect();
    let statistic = |drawn: &[usize]| drawn.iter().map(|&prompt| known[prompt]).sum::<f64>() / known.len() as f64;
    Estimate::new(mean(&known), bootstrap(known.len(), ROUNDS, seed, statistic))
}

/// Settings that differ in nothing but the seed, together, in the order in which they were decoded first.
pub fn groups(done: &[Decoded]) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for Decoded { setting, samples, .. } in done.iter().filter(|decoded| !decoded.setting.tune) {
        let same = |group: &&mut Group| {
            group.method == setting.method && group.variant == setting.variant && group.dials == setting.dials
        };
        match groups.iter_mut().find(same) {
            Some(group) => {
                group.seeds += 1;
                group.samples.iter_mut().zip(samples).for_each(|(all, new)| all.extend_from_slice(new));
            }
            None => groups.push(Group {
                method: setting.method.clone(),
                variant: setting.variant.clone(),
                dials: setting.dials.clone(),
                seeds: 1,
                samples: samples.clone(),
            }),
        }
    }
    groups
}

/// A sum over all responses, by response token.
pub(super) fn a_token(samples: &[Vec<Sample>], of: impl Fn(&Sample) -> f64) -> f64 {
    let all = || samples.iter().flatten();
    let tokens: usize = all().map(|sample| sample.tokens.len()).sum();
    all().map(of).sum::<f64>() / tokens.max(1) as f64
}

impl Group {
    /// Mean reward of each prompt; none where no response has a score.
    pub fn rewards(&self, reward: usize) -> Vec<Option<f64>> {
        let of = |group: &Vec<Sample>| {
            let scores: Vec<f64> = group.iter().filter_map(|sample| sample.scores[reward]).collect();
            (!scores.is_empty()).then(|| mean(&scores))
        };
        self.samples.iter().map(of).collect()
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Sample> {
        self.samples.iter().flatten()
    }

    fn a_token(&self, of: impl Fn(&Sample) -> f64) -> f64 {
        a_token(&self.samples, of)
    }

    /// Nats a token.
    pub fn kl_per_token(&self) -> f64 {
        self.a_token(|sample| sample.kl)
    }

    fn cross_entropy(&self) -> f64 {
        let drawn: usize = self.all().map(|sample| sample.drawn).sum();
        -self.all().map(|sample| sample.log_probability).sum::<f64>() / drawn.max(1) as f64
    }

    /// Distinct-2 of each prompt's first `samples` responses, all prompts together: equal numbers of texts only compare.
    fn distinct_2(&self, samples: usize) -> Option<f64> {
        distinct_2(self.samples.iter().flat_map(|group| group.iter().take(samples)).map(|own| own.tokens.as_slice()))
    }

    fn repeated_4(&self) -> Option<f64> {
        repeated_4(self.all().map(|sample| sample.tokens.as_slice()))
    }

    /// Responses a prompt.
    fn width(&self) -> usize {
        self.samples.first().map_or(0, Vec::len)
    }

    /// The point of this group for one reward. `base` are base samples with the same tail.
    pub fn point(&self, told: Told<'_>, base: &Group, seed: u64) -> Point {
        let estimate = estimate(&self.rewards(told.place), seed);
        let samples = self.width().min(base.width());
        let ratio = |own: Option<f64>, of_base: Option<f64>| Some(own? / of_base.filter(|of_base| *of_base > 0.0)?);
        let dial = self.dials.iter().find(|(name, _)| name == told.dial).map_or(0.0, |(_, dial)| *dial);
        Point {
            method: self.method.clone(),
            variant: self.variant.clone(),
            reward: told.name.to_owned(),
            dial,
            n: 1,
            seeds: self.seeds,
            prompts: self.samples.len(),
            mean: estimate.mean,
            ci_low: estimate.ci_low,
            ci_high: estimate.ci_high,
            kl_per_token: self.kl_per_token(),
            cross_entropy_ratio: Some(self.cross_entropy() / base.cross_entropy()),
            distinct2_ratio: ratio(self.distinct_2(samples), base.distinct_2(samples)),
            repeated4_ratio: ratio(self.repeated_4(), base.repeated_4()),
            forwards_per_token: self.a_token(|sample| sample.forwards),
            ms_per_token: 1e3 * self.a_token(|sample| sample.seconds),
        }
    }
}

/// A method's frontier: its groups with the base in front, by prompt.
struct Frontier {
    /// `[settings][prompts]`: reward, nats, tokens.
    settings: Vec<Vec<Option<[f64; 3]>>>,
}

impl Frontier {
    fn new(base: &Group, own: &[&Group], reward: usize) -> Self {
        let of = |group: &Group| {
            let numbers = |(reward, samples): (Option<f64>, &Vec<Sample>)| {
                let sum = |of: &dyn Fn(&Sample) -> f64| samples.iter().map(of).sum::<f64>();
                Some([reward?, sum(&|sample| sample.kl), sum(&|sample| sample.tokens.len() as f64)])
            };
            group.rewards(reward).into_iter().zip(&group.samples).map(numbers).collect()
        };
        Self { settings: std::iter::once(&base).chain(own).map(|group| of(group)).collect() }
    }

    /// The reward at `kl` nats a token over these prompts, between settings linear in the root of KL (which a dial is about
    /// linear in); the last setting's where the frontier ends before. None where nothing is scored.
    fn at(&self, kl: f64, drawn: &[usize]) -> Option<f64> {
        let mut found: Vec<(f64, f64)> = Vec::new();
        for setting in &self.settings {
            let known = drawn.iter().filter_map(|&prompt| setting[prompt]);
            let (mut reward, mut nats, mut tokens, mut count) = (0.0, 0.0, 0.0, 0.0);
            for [of_reward, of_nats, of_tokens] in known {
                reward += of_reward;
                nats += of_nats;
                tokens += of_tokens;
                count += 1.0;
            }
            if count > 0.0 {
                found.push(((nats / f64::max(tokens, 1.0)).max(0.0).sqrt(), reward / count));
            }
        }
        found.sort_by(|a, b| a.0.total_cmp(&b.0));
        let root = kl.sqrt();
        let above = found.iter().position(|(x, _)| *x >= root);
        match above {
            None => found.last().map(|(_, reward)| *reward),
            Some(0) => found.first().map(|(_, reward)| *reward),
            Some(place) => {
                let ((x0, y0), (x1, y1)) = (found[place - 1], found[place]);
                Some(if x1 > x0 { y0 + (y1 - y0) * (root - x0) / (x1 - x0) } else { y1 })
            }
        }
    }
}

/// Whether groups come near this divergence: a frontier is not drawn on past its end.
pub fn reaches(groups: &[&Group], kl: f64) -> bool {
    groups.iter().any(|group| group.kl_per_token() >= REACHED * kl)
}

/// One method less another at `kl` nats a token: groups of each, decoded on the same prompts. None where one of them ends
/// before ([`reaches`]), or nothing is scored.
pub fn at_equal_kl(
    base: &Group,
    (method, own): (&str, &[&Group]),
    (against, other): (&str, &[&Group]),
    told: Told<'_>,
    kl: f64,
    seed: u64,
) -> Option<Comparison> {
    if !reaches(own, kl) || !reaches(other, kl) {
        return None;
    }
    let (own, other) = (Frontier::new(base, own, told.place), Frontier::new(base, other, told.place));
    let prompts: Vec<usize> = (0..base.samples.len()).collect();
    let difference = own.at(kl, &prompts)? - other.at(kl, &prompts)?;
    let statistic = |drawn: &[usize]| own.at(kl, drawn).zip(other.at(kl, drawn)).map_or(f64::NAN, |(a, b)| a - b);
    let interval = Estimate::new(difference, bootstrap(prompts.len(), ROUNDS, seed, statistic));
    Some(Comparison {
        reward: told.name.to_owned(),
        method: method.to_owned(),
        against: against.to_owned(),
        matched: format!("kl {kl}"),
        difference,
        ci_low: interval.ci_low,
        ci_high: interval.ci_high,
    })
}

/// A method with its variant, in words.
pub(super) fn words(method: &str, variant: &str) -> String {
    if variant.is_empty() { method.to_owned() } else { format!("{method} {variant}") }
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeMap;

    use super::super::samples::Setting;
    use super::*;

    pub(in super::super) fn sample(score: f64, kl: f64) -> Sample {
        Sample {
            tokens: vec![1, 2, 3, 4],
            text: String::new(),
            scores: vec![Some(score)],
            kl: 4.0 * kl,
            log_probability: -8.0,
            drawn: 4,
            forwards: 4.0,
            seconds: 0.04,
            value: Some(-score),
        }
    }

    pub(in super::super) fn decoded(method: &str, dial: f64, seed: u64, scores: &[f64], kl: f64) -> Decoded {
        let dials = if dial == 0.0 { Vec::new() } else { vec![("r".to_owned(), dial)] };
        let (variant, samples) = (String::new(), 1);
        let setting = Setting { method: method.into(), variant, dials, samples, seed, tune: false, model_sha256: None };
        let samples = scores.iter().map(|&score| vec![sample(score, kl)]).collect();
        Decoded { setting, samples, unscored: BTreeMap::new() }
    }

    #[test]
    fn seeds_are_averaged_inside_a_prompt() {
        let groups = groups(&[
            decoded("base", 0.0, 1, &[0.0, 1.0], 0.0),
            decoded("vas", 0.5, 1, &[0.2, 1.0], 0.1),
            decoded("base", 0.0, 2, &[0.5, 1.0], 0.0),
        ]);
        assert_eq!(groups.len(), 2);
        assert_eq!(groups[0].rewards(0), [Some(0.25), Some(1.0)]);
        let point = groups[0].point(Told::own(0, "r"), &groups[0], 1);
        assert_eq!((point.mean, point.seeds, point.prompts), (0.625, 2, 2));
        assert!(point.ci_low >= 0.25 && point.ci_high <= 1.0);
        assert_eq!((point.cross_entropy_ratio, point.distinct2_ratio), (Some(1.0), Some(1.0)));
        assert_eq!((point.forwards_per_token, point.ms_per_token), (1.0, 10.0));
        assert!((groups[1].point(Told::own(0, "r"), &groups[0], 1).kl_per_token - 0.1).abs() < 1e-12);
    }

    #[test]
    fn frontiers_are_compared_at_equal_kl() {
        let ten = |score: f64| vec![score; 10];
        let groups = groups(&[
            decoded("base", 0.0, 1, &ten(0.0), 0.0),
            decoded("vas", 1.0, 1, &ten(1.0), 0.16),
            decoded("random", 1.0, 1, &ten(0.5), 0.04),
        ]);
        let at =
            |kl| at_equal_kl(&groups[0], ("vas", &[&groups[1]]), ("random", &[&groups[2]]), Told::own(0, "r"), kl, 1);
        // At .04 vas has half of its way, in the root of KL.
        assert!(at(0.04).expect("scored").difference.abs() < 1e-12);
        let near = at(0.048).expect("near enough");
        assert!((near.difference - (0.3_f64.sqrt() - 0.5)).abs() < 1e-9 && near.ci_low == near.ci_high, "{near:?}");
        assert_eq!(near.matched, "kl 0.048");
        assert_eq!(at(0.16), None, "what ends at .04 is not compared at .16");
    }
}
