//! What a look-ahead head is worth on prompts that it has not seen, whatever guidance makes of it.
//!
//! States are those of the pool's own responses; targets are final rewards, centred by prompt, since differences between
//! prompts are useless to decoding. Rules that know less are given the same states and targets: the position, the reward of
//! the text so far, the sum of context-free token biases. They are fitted on one half of the prompts and judged on the
//! other, both ways. Intervals resample prompts. Start at [`diagnose`].

use super::super::features::States;
use super::super::look_ahead::ValueHead;
use super::super::quality::part_of;
use super::super::rollouts::Rollout;
use super::super::statistics::{ROUNDS, bootstrap};
use super::super::text_columns::TextColumns;
use super::Estimate;

/// Equal parts of the token limit that figures are told for.
pub const PARTS: usize = 4;

/// States by V that the calibration plot shows, in so many equal shares.
const TENTHS: usize = 10;

/// The states of some responses with their targets, grouped by prompt.
pub struct Judged<'a> {
    /// `[prompts][responses]`, in the order of the states.
    pub groups: &'a [Vec<&'a Rollout>],
    /// All states of these responses, in order.
    pub states: &'a States,
    /// The final reward of each response less its prompt's mean.
    pub targets: &'a [f64],
    /// Response tokens at most.
    pub token_limit: usize,
    /// Fixes the intervals.
    pub seed: u64,
}

/// What [`diagnose`] finds.
#[derive(Debug, Clone, PartialEq)]
pub struct Diagnosis {
    /// See [`HeadReport`](super::HeadReport).
    pub explained_variance: Estimate,
    /// By position.
    pub explained_by_position: Vec<f64>,
    /// See [`HeadReport`](super::HeadReport).
    pub calibration_slope: Estimate,
    /// See [`HeadReport`](super::HeadReport).
    pub calibration: Vec<(f64, f64)>,
    /// See [`HeadReport`](super::HeadReport).
    pub martingale: Estimate,
    /// See [`HeadReport`](super::HeadReport).
    pub martingale_terminal: f64,
}

/// Sums of one prompt's states.
#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    error: f64,
    power: f64,
    product: f64,
    square: f64,
    change: f64,
    changes: f64,
    value: f64,
    states: f64,
}

impl Judged<'_> {
    /// Calls with each prompt's number, each response's and the rows of its states.
    fn each_response(&self, mut call: impl FnMut(usize, usize, &[f32])) {
        let (mut rows, mut response) = (Vec::new(), 0);
        for (prompt, group) in self.groups.iter().enumerate() {
            for _ in group {
                self.states.rows(response, &mut rows);
                call(prompt, response, &rows);
                response += 1;
            }
        }
    }

    /// The part of the token limit that a state lies in; 0 is the state before the first token.
    fn part(&self, position: usize) -> usize {
        part_of(position, self.token_limit, PARTS)
    }

    fn interval(&self, statistic: impl Fn(&mut dyn Iterator<Item = usize>) -> f64) -> Estimate {
        let prompts = self.groups.len();
        let all = statistic(&mut (0..prompts));
        Estimate::new(all, bootstrap(prompts, ROUNDS, self.seed, |drawn| statistic(&mut drawn.iter().copied())))
    }
}

/// Judges a head; `text` has its columns at all states, where it reads some. V is [`centred`] by prompt, as the targets and the
/// rules that know less are; its changes along a response are as they are.
pub fn diagnose(head: &ValueHead, text: Option<&TextColumns>, judged: &Judged<'_>) -> Diagnosis {
    let mut sums = vec![Sums::default(); judged.groups.len()];
    let (mut all, mut terminal) = (Vec::new(), 0.0);
    judged.each_response(|prompt, response, rows| {
        let mut of_response = Vec::new();
        head.values(judged.states, text, response, rows, &mut of_response);
        let (first, last) = (of_response.first().unwrap_or(&0.0), of_response.last().unwrap_or(&0.0));
        sums[prompt].change += last - first;
        sums[prompt].changes += of_response.len().saturating_sub(1) as f64;
        sums[prompt].value += of_response.iter().sum::<f64>();
        sums[prompt].states += of_response.len() as f64;
        terminal += judged.targets[response] - last;
        all.push(of_response);
    });
    let level = |(group, sums): (&Vec<&Rollout>, &Sums)| group.len() as f64 * sums.value / sums.states.max(1.0);
    let terminal = terminal + judged.groups.iter().zip(&sums).map(level).sum::<f64>();
    let all = centred(all, judged);
    let mut parts = [[0.0; 2]; PARTS + 1];
    let mut pairs = Vec::new();
    let prompts = judged.groups.iter().enumerate().flat_map(|(prompt, group)| group.iter().map(move |_| prompt));
    for ((prompt, of_response), &target) in prompts.zip(&all).zip(judged.targets) {
        let own = &mut sums[prompt];
        for (position, &value) in of_response.iter().enumerate() {
            let error = (target - value).powi(2);
            own.error += error;
            own.power += target.powi(2);
            own.product += value * target;
            own.square += value * value;
            let part = &mut parts[judged.part(position)];
            part[0] += error;
            part[1] += target.powi(2);
            pairs.push((value, target));
        }
    }
    let ratio = |above: fn(&Sums) -> f64, below: fn(&Sums) -> f64| {
        let sums = &sums;
        move |drawn: &mut dyn Iterator<Item = usize>| {
            let (above, below) = drawn
                .fold((0.0, 0.0), |total, prompt| (total.0 + above(&sums[prompt]), total.1 + below(&sums[prompt])));
            // Not a number where nothing varies: such a resample says nothing.
            if below > 0.0 { above / below } else { f64::NAN }
        }
    };
    let share = |[error, power]: &[f64; 2]| if *power > 0.0 { 1.0 - error / power } else { 0.0 };
    let unexplained = ratio(|sums| sums.error, |sums| sums.power);
    Diagnosis {
        explained_variance: judged.interval(|drawn| 1.0 - unexplained(drawn)),
        explained_by_position: parts.iter().skip(1).map(share).collect(),
        calibration_slope: judged.interval(ratio(|sums| sums.product, |sums| sums.square)),
        calibration: tenths(pairs),
        martingale: judged.interval(ratio(|sums| sums.change, |sums| sums.changes)),
        martingale_terminal: terminal / judged.targets.len().max(1) as f64,
    }
}

/// Mean value and mean target of equal shares of the states, by value.
fn tenths(mut pairs: Vec<(f64, f64)>) -> Vec<(f64, f64)> {
    pairs.sort_by(|a, b| a.0.total_cmp(&b.0));
    let size = pairs.len().div_ceil(TENTHS).max(1);
    let mean = |share: &[(f64, f64)]| {
        let sum = share.iter().fold((0.0, 0.0), |sum, pair| (sum.0 + pair.0, sum.1 + pair.1));
        (sum.0 / share.len() as f64, sum.1 / share.len() as f64)
    };
    pairs.chunks(size).map(mean).collect()
}

/// Share of the targets' variance that a number a state explains, with a slope for each part of the limit. `feature` is
/// `[responses][states]`; none stands for the position alone.
pub fn explained_by(feature: Option<&[Vec<f64>]>, judged: &Judged<'_>) -> Estimate {
    let (halves, mut sums) = (fitted_halves(feature, judged), vec![(0.0, 0.0); judged.groups.len()]);
    judged.each_response(|prompt, response, rows| {
        let target = judged.targets[response];
        let (slopes, levels) = &halves[1 - prompt % 2];
        for position in 0..rows.len() / judged.states.width() {
            let part = judged.part(position);
            let x = feature.map_or(0.0, |feature| feature[response][position]);
            let predicted = levels[part] + slopes[part] * x;
            sums[prompt].0 += (target - predicted).powi(2);
            sums[prompt].1 += target.powi(2);
        }
    });
    judged.interval(|drawn| {
        let total = drawn.fold((0.0, 0.0), |total, prompt| (total.0 + sums[prompt].0, total.1 + sums[prompt].1));
        if total.1 > 0.0 { 1.0 - total.0 / total.1 } else { f64::NAN }
    })
}

/// Slopes and levels by part of the limit.
type Fitted = ([f64; PARTS + 1], [f64; PARTS + 1]);

/// Least squares on the prompts of even and of odd number.
fn fitted_halves(feature: Option<&[Vec<f64>]>, judged: &Judged<'_>) -> [Fitted; 2] {
    // Count, x, y, xx, xy by part.
    let mut moments = [[[0.0_f64; 5]; PARTS + 1]; 2];
    judged.each_response(|prompt, response, rows| {
        let y = judged.targets[response];
        for position in 0..rows.len() / judged.states.width() {
            let x = feature.map_or(0.0, |feature| feature[response][position]);
            let sums = &mut moments[prompt % 2][judged.part(position)];
            for (sum, term) in sums.iter_mut().zip([1.0, x, y, x * x, x * y]) {
                *sum += term;
            }
        }
    });
    moments.map(|parts| {
        let fit = |[count, x, y, xx, xy]: [f64; 5]| {
            let (count, mean) = (f64::max(count, 1.0), x / f64::max(count, 1.0));
            let variance = xx / count - mean * mean;
            let slope = if variance > 1e-12 { (xy / count - mean * y / count) / variance } else { 0.0 };
            (slope, y / count - slope * mean)
        };
        (parts.map(|part| fit(part).0), parts.map(|part| fit(part).1))
    })
}

/// Numbers of states less their mean over the prompt's responses in the same part of the limit: what a rule says of the
/// prompt itself is taken away, as it is from the targets.
pub fn centred(mut feature: Vec<Vec<f64>>, judged: &Judged<'_>) -> Vec<Vec<f64>> {
    let mut response = 0;
    for group in judged.groups {
        let own = &mut feature[response..response + group.len()];
        let mut sums = [(0.0, 0.0); PARTS + 1];
        for states in own.iter() {
            for (position, x) in states.iter().enumerate() {
                let sum = &mut sums[judged.part(position)];
                *sum = (sum.0 + x, sum.1 + 1.0);
            }
        }
        for states in own.iter_mut() {
            for (position, x) in states.iter_mut().enumerate() {
                let (sum, count) = sums[judged.part(position)];
                *x -= sum / f64::max(count, 1.0);
            }
        }
        response += group.len();
    }
    feature
}

#[cfg(test)]
mod tests {
    use super::super::super::look_ahead::centre;
    use super::super::super::prompts::Split;
    use super::super::super::rollouts::End;
    use super::super::super::statistics::SplitMix;
    use super::*;

    /// Responses whose residual is the number of good tokens so far over 8; their reward is the final number.
    fn planted() -> (Vec<Vec<Rollout>>, States, Vec<f64>) {
        let (mut random, mut states, mut rewards) = (SplitMix::new(7), States::new(1), Vec::new());
        let groups = (0..40).map(|prompt| {
            let mut own = Vec::new();
            let group = (0..6)
                .map(|sample| {
                    let tokens: Vec<u32> = (0..8).map(|_| random.below(2) as u32).collect();
                    let (mut rows, mut good, mut sum) = (Vec::new(), 0.0_f32, 0.0_f32);
                    for position in 0..=8 {
                        if position > 0 {
                            good += tokens[position - 1] as f32 / 8.0;
                            sum += good;
                        }
                        rows.extend([good, sum / position.max(1) as f32, 1.0 - position as f32 / 8.0, 1.0]);
                    }
                    states.push(&tokens, &rows).expect("rows");
                    own.push(f64::from(good));
                    let (id, prompt) = (format!("p{prompt}"), String::new());
                    let (split, text, end) = (Split::Test, String::new(), End::TokenLimit);
                    Rollout { id, prompt, split, sample, tokens, text, end, scores: Vec::new() }
                })
                .collect();
            rewards.push(own);
            group
        });
        let groups: Vec<Vec<Rollout>> = groups.collect();
        let targets = centre(&rewards);
        (groups, states, targets)
    }

    #[test]
    fn a_true_value_explains_most_and_more_than_what_knows_less() {
        let (groups, states, targets) = planted();
        let groups: Vec<Vec<&Rollout>> = groups.iter().map(|group| group.iter().collect()).collect();
        let judged = Judged { groups: &groups, states: &states, targets: &targets, token_limit: 8, seed: 1 };
        // V = good so far + half of what remains, less a half: the centred reward's expectation.
        let linear = vassal_kernels::LinearHead {
            tap: 0,
            residual: vec![1.0],
            mean: vec![0.0],
            share: vec![],
            remaining: 0.5,
            bias: -0.5,
        };
        let head = ValueHead { linear, text: Vec::new() };
        let found = diagnose(&head, None, &judged);
        assert!(found.martingale_terminal.abs() < 0.02, "{}", found.martingale_terminal);
        let linear = vassal_kernels::LinearHead { bias: head.linear.bias + 3.0, ..head.linear };
        let raised = diagnose(&ValueHead { linear, ..head }, None, &judged);
        assert!((raised.martingale_terminal - found.martingale_terminal).abs() < 1e-6, "a level is no change of value");
        let explained = found.explained_variance;
        assert!(explained.mean > 0.4 && explained.ci_low < explained.mean && explained.mean < explained.ci_high);
        assert!(found.explained_by_position.is_sorted() && found.explained_by_position[PARTS - 1] > 0.7);
        assert!((found.calibration_slope.mean - 1.0).abs() < 0.3, "{:?}", found.calibration_slope);
        assert!(found.martingale.ci_low <= 0.0 && found.martingale.ci_high >= 0.0, "{:?}", found.martingale);
        assert!(found.calibration.len() == TENTHS && found.calibration.is_sorted_by(|a, b| a.0 <= b.0));

        let position = explained_by(None, &judged);
        assert!(position.mean.abs() < 0.05 && position.ci_high < explained.ci_low, "{position:?}");
        let so_far: Vec<Vec<f64>> = (0..states.rollouts())
            .map(|response| {
                let mut rows = Vec::new();
                states.rows(response, &mut rows);
                rows.chunks_exact(4).map(|row| f64::from(row[0])).collect()
            })
            .collect();
        let so_far = explained_by(Some(&centred(so_far, &judged)), &judged);
        assert!(so_far.mean > 0.3, "{so_far:?}");
    }
}
