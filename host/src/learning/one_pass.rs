//! The one-pass head: values of candidates from the row before them, without running them.
//!
//! It is distilled from a look-ahead head: the target of a state s and a token a is V(s·a) − V(s), free of
//! noise, for candidates that an engine has run.
//!
//! The model is `Σ_j p_j(s) (B e_a)_j + bias_a`: p = A φ of the state's features, e_a the token's input
//! embedding. A comes in stages ([`STAGES`]): the cross moment of what is still unexplained with (whitened state
//! features × whitened embedding) has, where the two are nearly independent, the wanted matrix as its
//! mean; its leading directions join A; then B and the biases are solved exactly by ridge regression. A
//! token never seen has the bias that its embedding predicts. What depends on the state alone cancels
//! between candidates: it is fitted so as not to disturb, and dropped.
//!
//! Start at [`fit`].

use std::collections::BTreeMap;

use half::f16;
use vassal_kernels::OnePassHead;

use super::bilinear::{Design, Penalty, Solution};
use super::features::States;
use super::ridge::{Covariance, Moments, RidgeError};
use super::threads::on_threads;
use super::whitening::{Whitening, leading_directions};

/// Shares of the rank that each stage adds.
pub const STAGES: [f64; 3] = [0.5, 0.25, 0.25];

/// Penalties on B that are tried, falling, in samples for each of B's entries: with 1, B is expected to
/// explain as much as it leaves.
const MATRIX_PENALTIES: [f64; 8] = [30.0, 10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01];

/// Penalties on token biases that are tried, falling, in samples.
const BIAS_PENALTIES: [f64; 5] = [300.0, 100.0, 30.0, 10.0, 3.0];

/// Rows of a cross moment that are summed together.
const CROSS_ROWS: usize = 16;

/// Penalties while directions are looked for.
fn start_penalty(design: &Design) -> Penalty {
    Penalty { matrix: (design.rank * design.width) as f64, bias: 10.0 }
}

/// One pair of a state and a next token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    /// The state, by its number among all of [`States`].
    pub state: u32,
    /// The next token.
    pub token: u32,
    /// V(s·a) − V(s).
    pub target: f32,
}

/// States and pairs of them.
#[derive(Debug, Clone, Copy)]
pub struct Pairs<'a> {
    /// The states.
    pub states: &'a States,
    /// Pairs, ascending by state.
    pub samples: &'a [Sample],
}

/// How to fit.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// The rank of the head, at most 64; with 0 it is the head without any context.
    pub rank: usize,
    /// Tokens in the vocabulary.
    pub vocabulary: usize,
    /// Threads to work with; the result does not depend on it.
    pub threads: usize,
    /// The seed of the search for directions.
    pub seed: u64,
}

/// A fitted head.
#[derive(Debug, Clone, PartialEq)]
pub struct Fit {
    /// The head; its tap is 0 until an engine knows better.
    pub head: OnePassHead,
    /// Penalties chosen, in samples.
    pub penalty: Penalty,
    /// Share of the tune targets' variance explained, what depends on the state alone put aside.
    pub explained: f64,
    /// The same by token biases alone: what a head without any context reaches.
    pub explained_by_bias: f64,
    /// That head.
    pub bias_head: OnePassHead,
}

/// Fits a head to `learn`, penalties chosen on `tune`. `covariance` has the learn states' plain features
/// ([`Columns`](super::look_ahead::Columns)) in front; `embedding` writes a token's input embedding `[H]`.
pub fn fit(
    learn: Pairs<'_>,
    tune: Pairs<'_>,
    covariance: &Covariance,
    embedding: &mut dyn FnMut(u32, &mut [f32]),
    options: Options,
) -> Result<Fit, RidgeError> {
    check(learn, covariance, options)?;
    check(tune, covariance, options)?;
    let features = learn.states.width() - 1;
    let space = Space {
        whitening: Whitening::new(covariance, features)?,
        mean: covariance.mean[..features].to_vec(),
        embeddings: Embeddings::new(learn, tune, embedding, options.threads)?,
    };
    let alone = space.state_alone(learn);
    let (learn, tune) = (Sorted::new(learn, &space, &alone), Sorted::new(tune, &space, &alone));

    let mut directions: Vec<Vec<f64>> = Vec::new();
    let mut design = learn.design(&space, &directions, options.threads);
    for share in STAGES {
        let add = ((options.rank as f64 * share).round() as usize).min(options.rank - directions.len());
        if add > 0 {
            let explained = design.predict(&design.solve(&learn.targets, start_penalty(&design), None));
            let rest = subtract(&learn.targets, &explained);
            directions.extend(space.directions(&learn, &rest, add, options));
            design = learn.design(&space, &directions, options.threads);
        }
    }
    let chosen = choose(&design, &learn, &tune.design(&space, &directions, options.threads), &tune);
    // Without directions the head is its biases.
    let by_bias = if directions.is_empty() {
        chosen.clone()
    } else {
        let design = |sorted: &Sorted<'_>| sorted.design(&space, &[], options.threads);
        choose(&design(&learn), &learn, &design(&tune), &tune)
    };
    let head = space.head(&learn, &directions, &chosen.solution, embedding, options);
    let bias_head = space.head(&learn, &[], &by_bias.solution, embedding, options);
    let Chosen { penalty, explained, .. } = chosen;
    Ok(Fit { head, penalty, explained, explained_by_bias: by_bias.explained, bias_head })
}

fn check(pairs: Pairs<'_>, covariance: &Covariance, options: Options) -> Result<(), RidgeError> {
    let refuse = |what, expected: String, got: String| Err(RidgeError::Request { what, expected, got });
    let Pairs { states, samples } = pairs;
    if options.rank > 64 {
        return refuse("rank", "at most 64".into(), options.rank.to_string());
    }
    // The constant 1 of a row is no feature.
    if covariance.width + 1 < states.width() {
        return refuse("covariance", format!("of {} features", states.width() - 1), covariance.width.to_string());
    }
    if samples.len() < 2 {
        return refuse("pairs", "at least 2".into(), samples.len().to_string());
    }
    for (sample, before) in samples.iter().zip(std::iter::once(&samples[0]).chain(samples)) {
        let known = (sample.state as usize) < states.count() && (sample.token as usize) < options.vocabulary;
        if !(known && sample.target.is_finite() && before.state <= sample.state) {
            let expected = "finite, of known states ascending and tokens of the vocabulary".into();
            return refuse("pairs", expected, format!("{sample:?}"));
        }
    }
    Ok(())
}

fn subtract(left: &[f32], right: &[f32]) -> Vec<f32> {
    left.iter().zip(right).map(|(left, right)| left - right).collect()
}

/// Embeddings of the tokens that occur in pairs, in whitened coordinates.
struct Embeddings {
    whitening: Whitening,
    mean: Vec<f64>,
    /// Coordinates by token.
    known: BTreeMap<u32, Vec<f32>>,
}

impl Embeddings {
    fn new(
        learn: Pairs<'_>,
        tune: Pairs<'_>,
        embedding: &mut dyn FnMut(u32, &mut [f32]),
        threads: usize,
    ) -> Result<Self, RidgeError> {
        let hidden = learn.states.hidden();
        let mut counts: BTreeMap<u32, usize> = tune.samples.iter().map(|sample| (sample.token, 0)).collect();
        for sample in learn.samples {
            *counts.entry(sample.token).or_default() += 1;
        }
        // Between counting tokens by use and counting each once: frequent tokens matter more, and rare
        // ones must not be strangers.
        let mut moments = Moments::new(hidden, threads);
        let mut row = vec![0.0; hidden];
        for (&token, &count) in &counts {
            embedding(token, &mut row);
            for _ in 0..count.isqrt() {
                moments.add(&row)?;
            }
        }
        let covariance = moments.finish();
        let whitening = Whitening::new(&covariance, hidden)?;
        let mut out = Self { whitening, mean: covariance.mean, known: BTreeMap::new() };
        for &token in counts.keys() {
            let point = out.coordinates(token, embedding);
            out.known.insert(token, point);
        }
        Ok(out)
    }

    /// Coordinates a token has: the whitened ones, and a constant 1 that gives every factor of the state
    /// a part of its own, which cancels between candidates.
    fn width(&self) -> usize {
        self.whitening.width() + 1
    }

    fn coordinates(&self, token: u32, embedding: &mut dyn FnMut(u32, &mut [f32])) -> Vec<f32> {
        let mut row = vec![0.0; self.mean.len()];
        embedding(token, &mut row);
        let point: Vec<f64> = row.iter().zip(&self.mean).map(|(&x, mean)| f64::from(x) - mean).collect();
        self.whitening.apply(&point).into_iter().chain([1.0]).map(|x| x as f32).collect()
    }

    /// Raw weights and constant of a function of the coordinates.
    fn raw(&self, weights: &[f32]) -> (Vec<f32>, f64) {
        let Some((&constant, weights)) = weights.split_last() else {
            return (Vec::new(), 0.0);
        };
        let weights: Vec<f64> = weights.iter().map(|&x| f64::from(x)).collect();
        let raw = self.whitening.raw_weights(&weights);
        let constant = f64::from(constant) - super::cholesky::dot(&raw, &self.mean);
        (raw.into_iter().map(|x| x as f32).collect(), constant)
    }
}

/// The coordinates of a fit.
struct Space {
    whitening: Whitening,
    mean: Vec<f64>,
    embeddings: Embeddings,
}

/// Pairs in order of token, with what depends on the state alone taken off their targets.
struct Sorted<'a> {
    pairs: Pairs<'a>,
    /// For each pair in order of state, its place here.
    place: Vec<usize>,
    targets: Vec<f32>,
    tokens: Vec<u32>,
    segments: Vec<std::ops::Range<usize>>,
}

impl<'a> Sorted<'a> {
    fn new(pairs: Pairs<'a>, space: &Space, alone: &[f32]) -> Self {
        let mut order: Vec<usize> = (0..pairs.samples.len()).collect();
        order.sort_by_key(|&index| pairs.samples[index].token);
        let mut place = vec![0; order.len()];
        order.iter().enumerate().for_each(|(at, &index)| place[index] = at);
        let mut targets = vec![0.0; order.len()];
        space.for_each(pairs, |index, sample, features| {
            targets[place[index]] = sample.target - super::bilinear::dot(alone, features);
        });
        let (mut tokens, mut segments) = (Vec::new(), Vec::<std::ops::Range<usize>>::new());
        for (at, &index) in order.iter().enumerate() {
            let token = pairs.samples[index].token;
            match segments.last_mut() {
                Some(segment) if tokens.last() == Some(&token) => segment.end = at + 1,
                _ => {
                    tokens.push(token);
                    segments.push(at..at + 1);
                }
            }
        }
        Self { pairs, place, targets, tokens, segments }
    }

    /// `[n, 1 + directions]`: the constant 1, whose row of B predicts a bias from the embedding, and the
    /// projections of the state.
    fn factors(&self, space: &Space, directions: &[Vec<f64>]) -> Vec<f32> {
        let rank = 1 + directions.len();
        let rows: Vec<Vec<f32>> = directions.iter().map(|direction| space.raw_direction(direction)).collect();
        let mut out = vec![1.0; self.targets.len() * rank];
        space.for_each(self.pairs, |index, _, features| {
            let factors = &mut out[self.place[index] * rank + 1..][..rank - 1];
            factors.iter_mut().zip(&rows).for_each(|(out, row)| *out = super::bilinear::dot(row, features));
        });
        out
    }

    fn design(&self, space: &Space, directions: &[Vec<f64>], threads: usize) -> Design {
        let known = self.tokens.iter().filter_map(|token| space.embeddings.known.get(token));
        Design {
            factors: self.factors(space, directions),
            rank: 1 + directions.len(),
            segments: self.segments.clone(),
            embeddings: known.flatten().copied().collect(),
            width: space.embeddings.width(),
            threads,
        }
    }
}

impl Space {
    /// Calls with each pair's number and its state's features less their mean, `[2H + 1]`.
    fn for_each(&self, pairs: Pairs<'_>, mut call: impl FnMut(usize, &Sample, &[f32])) {
        let Pairs { states, samples } = pairs;
        let (mut rows, mut features) = (Vec::new(), vec![0.0; self.mean.len()]);
        let mut next = 0;
        for rollout in 0..states.rollouts() {
            let range = states.range(rollout);
            let count = samples[next..].partition_point(|sample| (sample.state as usize) < range.end);
            if count == 0 {
                continue;
            }
            states.rows(rollout, &mut rows);
            for (index, sample) in samples.iter().enumerate().skip(next).take(count) {
                let row = &rows[(sample.state as usize - range.start) * states.width()..];
                let centred = row.iter().zip(&self.mean).map(|(&x, mean)| (f64::from(x) - mean) as f32);
                features.iter_mut().zip(centred).for_each(|(out, x)| *out = x);
                call(index, sample, &features);
            }
            next += count;
        }
    }

    fn raw_direction(&self, direction: &[f64]) -> Vec<f32> {
        self.whitening.raw_weights(direction).iter().map(|&x| x as f32).collect()
    }

    /// Weights of the centred features that best explain targets by the state alone. With whitened
    /// features that is their cross moment.
    fn state_alone(&self, pairs: Pairs<'_>) -> Vec<f32> {
        let mut sum = vec![0.0_f64; self.mean.len()];
        self.for_each(pairs, |_, sample, features| {
            let target = f64::from(sample.target);
            sum.iter_mut().zip(features).for_each(|(sum, &x)| *sum += target * f64::from(x));
        });
        sum.iter_mut().for_each(|x| *x /= pairs.samples.len() as f64);
        self.raw_direction(&self.whitening.apply(&sum))
    }

    /// The leading directions, in whitened state features, of the cross moment of `rest` with state and
    /// embedding, scaled so that the projection varies by about 1.
    fn directions(
        &self,
        sorted: &Sorted<'_>,
        rest: &[f32],
        count: usize,
        Options { seed, threads, .. }: Options,
    ) -> Vec<Vec<f64>> {
        let width = self.mean.len();
        let mut token_of = vec![0; rest.len()];
        for (token, segment) in sorted.segments.iter().enumerate() {
            token_of[segment.clone()].fill(token);
        }
        // First by token, so that the product with the embedding is done once a token.
        let mut sums = vec![0.0_f32; sorted.tokens.len() * width];
        self.for_each(sorted.pairs, |index, _, features| {
            let (place, scale) = (sorted.place[index], rest[sorted.place[index]]);
            let sum = &mut sums[token_of[place] * width..][..width];
            sum.iter_mut().zip(features).for_each(|(sum, x)| *sum += scale * x);
        });
        let tokens = sorted.tokens.iter().zip(sums.chunks_exact(width));
        let known: Vec<(&Vec<f32>, &[f32])> =
            tokens.filter_map(|(token, sum)| Some((self.embeddings.known.get(token)?, sum))).collect();
        // A block of rows stays in the second-level cache while all tokens pass.
        let blocks = on_threads(self.embeddings.width().div_ceil(CROSS_ROWS), threads, |at| {
            let rows = at * CROSS_ROWS..self.embeddings.width().min((at + 1) * CROSS_ROWS);
            let mut cross = vec![0.0_f64; rows.len() * width];
            for (embedding, sum) in &known {
                for (row, &x) in cross.chunks_exact_mut(width).zip(&embedding[rows.clone()]) {
                    row.iter_mut().zip(*sum).for_each(|(out, &y)| *out += f64::from(x) * f64::from(y));
                }
            }
            cross
        });
        let cross = blocks.concat();
        let whitened: Vec<f64> = cross.chunks_exact(width).flat_map(|row| self.whitening.apply(row)).collect();
        leading_directions(&whitened, self.whitening.width(), count, seed)
    }

    /// Back to raw features and embeddings, with a bias for every token of the vocabulary.
    fn head(
        &self,
        learn: &Sorted<'_>,
        directions: &[Vec<f64>],
        solution: &Solution,
        embedding: &mut dyn FnMut(u32, &mut [f32]),
        options: Options,
    ) -> OnePassHead {
        let width = self.embeddings.width();
        let mut rows = solution.matrix.chunks_exact(width).map(|row| self.embeddings.raw(row));
        let (predicted, constant) = rows.next().unwrap_or_default();
        // The other rows' constants weigh the state alone.
        let mut matrix: Vec<f32> = rows.flat_map(|(raw, _)| raw).collect();
        let mut state = Vec::new();
        for direction in directions {
            let raw = self.whitening.raw_weights(direction);
            let constant = -super::cholesky::dot(&raw, &self.mean);
            state.extend(raw.iter().map(|&x| x as f32));
            state.push(constant as f32);
        }
        let mut row = vec![0.0; self.embeddings.mean.len()];
        let mut bias: Vec<f32> = (0..options.vocabulary as u32)
            .map(|token| {
                embedding(token, &mut row);
                super::bilinear::dot(&predicted, &row) + constant as f32
            })
            .collect();
        for (&token, &own) in learn.tokens.iter().zip(&solution.bias) {
            if let Some(bias) = bias.get_mut(token as usize) {
                *bias += own;
            }
        }
        let rank = directions.len().max(1);
        if directions.is_empty() {
            // Nothing but biases is left to say; a head has at least one row all the same.
            state = vec![0.0; self.mean.len() + 1];
        }
        matrix.resize(rank * self.embeddings.mean.len(), 0.0);
        let token_bias = bias.into_iter().map(|x| f16::from_f32(x.clamp(-60_000.0, 60_000.0))).collect();
        OnePassHead { tap: 0, rank, state, embedding: matrix, token_bias }
    }
}

#[derive(Clone)]
struct Chosen {
    solution: Solution,
    penalty: Penalty,
    explained: f64,
}

/// The penalty with the least error on the tune pairs: B's first, then the biases'.
fn choose(design: &Design, learn: &Sorted<'_>, tune_design: &Design, tune: &Sorted<'_>) -> Chosen {
    let power: f64 = tune.targets.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
    let places: BTreeMap<u32, usize> = learn.tokens.iter().enumerate().map(|(at, &token)| (token, at)).collect();
    let attempt = |penalty: Penalty, start: Option<&Solution>| {
        let solution = design.solve(&learn.targets, penalty, start);
        let own = |token| places.get(token).map_or(0.0, |&at: &usize| solution.bias[at]);
        let for_tune = Solution { matrix: solution.matrix.clone(), bias: tune.tokens.iter().map(own).collect() };
        let rest = subtract(&tune.targets, &tune_design.predict(&for_tune));
        let error: f64 = rest.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
        let explained = if power > 0.0 { 1.0 - error / power } else { 0.0 };
        Chosen { solution, penalty, explained }
    };
    let start = start_penalty(design);
    let mut best = attempt(start, None);
    // Falling penalties from the largest: the error has one valley, so the first rise ends the search.
    let mut search = |penalties: &mut dyn Iterator<Item = Penalty>| {
        let mut last: Option<Chosen> = None;
        for penalty in penalties {
            let next = attempt(penalty, Some(last.as_ref().map_or(&best.solution, |last| &last.solution)));
            let fallen = last.as_ref().is_some_and(|last| next.explained < last.explained);
            if next.explained > best.explained {
                best = next.clone();
            }
            if fallen {
                break;
            }
            last = Some(next);
        }
        best.penalty
    };
    let chosen = search(&mut MATRIX_PENALTIES.iter().map(|share| Penalty { matrix: share * start.matrix, ..start }));
    search(&mut BIAS_PENALTIES.iter().map(|&bias| Penalty { bias, ..chosen }));
    best
}

/// What a head makes of a state with features `row` `[2H + 2]`, `[rank]`: the plain reference, with [`value`].
pub fn projections(head: &OnePassHead, row: &[f32]) -> Vec<f64> {
    head.state.chunks_exact(row.len().max(1)).map(|state| plain_dot(state, row)).collect()
}

/// The head's value of a token after a state.
pub fn value(head: &OnePassHead, projections: &[f64], token: u32, embedding: &[f32]) -> f64 {
    let rows = head.embedding.chunks_exact(embedding.len().max(1));
    let bias = head.token_bias.get(token as usize).map_or(0.0, |bias| f64::from(bias.to_f32()));
    projections.iter().zip(rows).map(|(state, matrix)| state * plain_dot(matrix, embedding)).sum::<f64>() + bias
}

fn plain_dot(left: &[f32], right: &[f32]) -> f64 {
    std::iter::zip(left, right).map(|(&l, &r)| f64::from(l) * f64::from(r)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::learning::look_ahead::moments;
    use crate::learning::statistics::SplitMix;

    const HIDDEN: usize = 6;
    const VOCABULARY: usize = 80;

    struct World {
        states: States,
        samples: Vec<Sample>,
    }

    fn signed(random: &mut SplitMix) -> f32 {
        random.unit() as f32 * 2.0 - 1.0
    }

    fn embedding(token: u32, out: &mut [f32]) {
        let mut random = SplitMix::new(u64::from(token) + 77);
        out.iter_mut().for_each(|x| *x = 0.05 * signed(&mut random) + 0.02);
    }

    /// Two products of a state direction and an embedding direction, a bias, and something of the state.
    fn planted(row: &[f32], token: u32) -> f32 {
        let mut e = [0.0; HIDDEN];
        embedding(token, &mut e);
        let own = signed(&mut SplitMix::new(u64::from(token)));
        (row[0] - row[8]) * 10.0 * (e[0] + e[3]) + 8.0 * row[2] * (e[1] - e[5]) + 0.3 * own + 6.0 * e[2] + row[4]
    }

    /// Rollouts of 8 tokens; tokens up to `tokens` occur.
    fn world(seed: u64, rollouts: usize, tokens: usize) -> World {
        let mut random = SplitMix::new(seed);
        let (mut states, mut samples) = (States::new(HIDDEN), Vec::new());
        for _ in 0..rollouts {
            let (mut rows, mut sum) = (Vec::new(), [0.0_f32; HIDDEN]);
            for position in 0..=8 {
                let residual: [f32; HIDDEN] = std::array::from_fn(|_| signed(&mut random));
                if position > 0 {
                    sum.iter_mut().zip(residual).for_each(|(sum, x)| *sum += x);
                }
                rows.extend(residual);
                rows.extend(sum.map(|sum| sum / (position as f32).max(1.0)));
                rows.extend([1.0 - position as f32 / 8.0, 1.0]);
            }
            let drawn: Vec<u32> = (0..8).map(|_| random.below(tokens) as u32).collect();
            for (position, &token) in drawn.iter().enumerate() {
                let row = &rows[position * (2 * HIDDEN + 2)..][..2 * HIDDEN + 2];
                let state = (states.count() + position) as u32;
                samples.push(Sample { state, token, target: planted(row, token) });
            }
            states.push(&drawn, &rows).expect("fits");
        }
        World { states, samples }
    }

    fn fit_worlds(learn: &World, tune: &World, threads: usize) -> Result<Fit, RidgeError> {
        let count = learn.states.rollouts();
        let covariance = moments((&learn.states, &vec![1; count]), &[], &[&vec![0.0; count]], 1)?.total;
        fn pairs(world: &World) -> Pairs<'_> {
            Pairs { states: &world.states, samples: &world.samples }
        }
        let options = Options { rank: 4, vocabulary: VOCABULARY, threads, seed: 5 };
        fit(pairs(learn), pairs(tune), &covariance, &mut embedding, options)
    }

    #[test]
    fn a_planted_low_rank_model_is_recovered() {
        let (learn, tune) = (world(1, 800, 60), world(2, 100, 60));
        let fit = fit_worlds(&learn, &tune, 2).expect("fits");
        assert!(fit.explained > 0.97 && fit.explained_by_bias < 0.8, "{} {}", fit.explained, fit.explained_by_bias);
        let HeadShape { rank, state, embedding: matrix, bias } = HeadShape::of(&fit.head);
        assert_eq!((rank, state, matrix, bias), (4, 4 * (2 * HIDDEN + 2), 4 * HIDDEN, VOCABULARY));
        // Differences between candidates of one state, tokens that never occurred included.
        let (mut rows, mut e) = (Vec::new(), [0.0; HIDDEN]);
        let (mut error, mut power) = (0.0, 0.0);
        for rollout in 0..20 {
            tune.states.rows(rollout, &mut rows);
            for row in rows.chunks_exact(2 * HIDDEN + 2).skip(2) {
                let difference = |token: u32, e: &mut [f32; HIDDEN]| {
                    embedding(token, e);
                    (value(&fit.head, &projections(&fit.head, row), token, e), f64::from(planted(row, token)))
                };
                for token in 1..60 {
                    let (got, expected) = difference(token, &mut e);
                    let (base, base_expected) = difference(0, &mut e);
                    error += (got - base - (expected - base_expected)).powi(2);
                    power += (expected - base_expected).powi(2);
                }
            }
        }
        assert!(error / power <= 0.03, "{} of the differences missed", error / power);
        let mut unseen = [0.0; HIDDEN];
        embedding(VOCABULARY as u32 - 1, &mut unseen);
        let got = fit.head.token_bias[VOCABULARY - 1].to_f32();
        assert!(got != 0.0 && (got - 6.0 * unseen[2]).abs() < 0.4, "{got} for {}", 6.0 * unseen[2]);
    }

    /// Lengths of a head's parts.
    struct HeadShape {
        rank: usize,
        state: usize,
        embedding: usize,
        bias: usize,
    }

    impl HeadShape {
        fn of(head: &OnePassHead) -> Self {
            let OnePassHead { rank, state, embedding, token_bias, .. } = head;
            Self { rank: *rank, state: state.len(), embedding: embedding.len(), bias: token_bias.len() }
        }
    }

    #[test]
    fn fits_are_the_same_on_any_number_of_threads() {
        let (learn, tune) = (world(3, 60, 30), world(4, 20, 30));
        assert_eq!(fit_worlds(&learn, &tune, 1), fit_worlds(&learn, &tune, 3));
    }

    #[test]
    fn wrong_pairs_are_refused() {
        let (learn, mut tune) = (world(6, 30, 30), world(7, 10, 30));
        for (at, bad) in [
            (5, Sample { token: VOCABULARY as u32, ..tune.samples[5] }),
            (5, Sample { state: 10_000, ..tune.samples[5] }),
            (5, Sample { state: 0, ..tune.samples[5] }),
            (5, Sample { target: f32::NAN, ..tune.samples[5] }),
        ] {
            let good = std::mem::replace(&mut tune.samples[at], bad);
            assert!(matches!(fit_worlds(&learn, &tune, 1), Err(RidgeError::Request { what: "pairs", .. })), "{bad:?}");
            tune.samples[at] = good;
        }
    }
}
