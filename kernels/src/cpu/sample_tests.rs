//! Draws against an oracle that sorts the vocabulary and sums in f64, and the identities of dials, masks and
//! nuclei.
//!
//! Start at [`check`], which compares the token, its log-probabilities and the KL of one draw.

use super::super::buffers::Logits;
use super::super::top_k::top_k;
use super::sample;
use crate::cpu::isa::Detected;
use crate::cpu::testing::{Random, best_isa, every_isa};
use crate::device::{DeviceError, Draw, Drawn, TopKQuery, VocabularyBias};
use crate::pool::Pool;
use crate::sampling;

const FORBIDDEN: f32 = f32::NEG_INFINITY;

/// A plain draw at temperature 1.
fn plain(random: u64) -> Draw {
    Draw { temperature: 1.0, top_p: 1.0, random, ..Draw::default() }
}

/// Rows of logits.
fn held(logits: &[f32], vocabulary: usize) -> Logits {
    let mut held = Logits::new(logits.len() / vocabulary.max(1), vocabulary).unwrap();
    held.data.copy_from_slice(logits);
    held
}

fn draw_with(isa: Detected, logits: &[f32], draw: &Draw) -> Option<Drawn> {
    let drawn = sample(isa, &Pool::new(1), &held(logits, logits.len()), std::slice::from_ref(draw));
    drawn.expect("a draw that fits")[0]
}

fn draw(logits: &[f32], draw: &Draw) -> Option<Drawn> {
    draw_with(best_isa(), logits, draw)
}

/// Weights of all tokens after everything but the nucleus, and z before and after adjustment.
fn oracle_weights(logits: &[f32], draw: &Draw) -> (Vec<u64>, Vec<f32>, Vec<f32>) {
    let temperature = if draw.temperature > 0.0 { draw.temperature } else { 1.0 };
    let adjusted = |token: usize| {
        let mut x = logits[token];
        for bias in &draw.vocabulary {
            let word = bias.bits.get(token / 64).copied().unwrap_or(0);
            x += if word >> (token % 64) & 1 == 1 { bias.set } else { bias.unset };
        }
        let delta = draw.deltas.iter().find(|(t, _)| *t as usize == token);
        delta.map_or(x, |(_, delta)| x + delta)
    };
    let allowed = |token: usize| draw.only.as_ref().is_none_or(|only| only.contains(&(token as u32)));
    let after: Vec<f32> =
        (0..logits.len()).map(|t| if allowed(t) { adjusted(t) / temperature } else { FORBIDDEN }).collect();
    let top = after.iter().copied().fold(FORBIDDEN, f32::max);
    let weights = after.iter().map(|z| if top == FORBIDDEN { 0 } else { sampling::weight(z - top) }).collect();
    (weights, logits.iter().map(|x| x / temperature).collect(), after)
}

/// The draw by its definition. `None` where nothing has weight.
fn oracle(logits: &[f32], draw: &Draw) -> Option<(u32, f64, f64, f64)> {
    let (mut weights, before, after) = oracle_weights(logits, draw);
    let lse = |z: &[f32]| {
        let top = f64::from(z.iter().copied().fold(FORBIDDEN, f32::max));
        top + z.iter().map(|z| (f64::from(*z) - top).exp()).sum::<f64>().ln()
    };
    let total: u64 = weights.iter().sum();
    if total == 0 {
        return None;
    }
    let base = |token: usize| f64::from(logits[token]) - lse(logits);
    if draw.temperature == 0.0 {
        let token = (0..after.len()).rev().max_by(|a, b| after[*a].total_cmp(&after[*b]))?;
        return Some((token as u32, 0.0, base(token), -base(token)));
    }
    if draw.top_p < 1.0 {
        let mut order: Vec<usize> = (0..weights.len()).collect();
        order.sort_by_key(|token| (std::cmp::Reverse(weights[*token]), *token));
        let target = sampling::nucleus_target(total, draw.top_p);
        let mut sum = 0;
        for token in order {
            if sum >= target {
                weights[token] = 0;
            }
            sum += weights[token];
        }
    }
    let total: u64 = weights.iter().sum();
    let threshold = sampling::threshold(draw.random, total);
    let mut sum = 0;
    let token = weights.iter().position(|w| {
        sum += w;
        sum > threshold
    })?;
    let p = |token: usize| weights[token] as f64 / total as f64;
    let normal = lse(&before);
    let kl =
        (0..weights.len()).filter(|t| weights[*t] > 0).map(|t| p(t) * (p(t).ln() - (f64::from(before[t]) - normal)));
    Some((token as u32, p(token).ln(), base(token), kl.sum()))
}

fn check(logits: &[f32], draw: &Draw) -> Option<Drawn> {
    let expected = oracle(logits, draw);
    let drawn = every_isa().into_iter().map(|isa| draw_with(isa, logits, draw)).collect::<Vec<_>>();
    let bits =
        |d: &Option<Drawn>| d.map(|d| (d.token, [d.log_probability, d.base_log_probability, d.kl].map(f32::to_bits)));
    assert!(drawn.windows(2).all(|pair| bits(&pair[0]) == bits(&pair[1])), "{drawn:?}");
    let Some(drawn) = drawn[0] else {
        assert!(expected.is_none(), "nothing drawn, expected {expected:?} from {draw:?}");
        return None;
    };
    let (token, log_probability, base, kl) = expected.expect("nothing can be drawn");
    assert_eq!(drawn.token, token, "{draw:?}");
    for (name, got, expected) in [
        ("log-probability", drawn.log_probability, log_probability),
        ("base log-probability", drawn.base_log_probability, base),
        ("KL", drawn.kl, kl),
    ] {
        let bound = 1e-4 + 1e-6 * expected.abs();
        assert!((f64::from(got) - expected).abs() <= bound, "{name} {got} is not {expected} of {draw:?}");
    }
    Some(drawn)
}

/// Logits of a language model's shape: a few high, a long tail.
fn logits(vocabulary: usize, random: &mut Random) -> Vec<f32> {
    let mut logits = random.bells(vocabulary, 2.5);
    for _ in 0..vocabulary.min(12) {
        let token = random.below(vocabulary);
        logits[token] += 4.0 + 4.0 * random.bell();
    }
    logits
}

/// A draw with a random mixture of everything.
fn any_draw(vocabulary: usize, random: &mut Random) -> Draw {
    let mut draw = plain(random.next());
    draw.temperature = [1.0, 1.0, 0.7, 2.5, 0.0][random.below(5)];
    draw.top_p = [1.0, 1.0, 0.9, 0.5, 0.05, 0.9999][random.below(6)];
    let mut tokens: Vec<u32> = (0..random.below(20)).map(|_| random.below(vocabulary) as u32).collect();
    tokens.sort_unstable();
    tokens.dedup();
    let mut delta = || {
        if random.below(8) == 0 { FORBIDDEN } else { 3.0 * random.bell() }
    };
    draw.deltas = tokens.iter().map(|token| (*token, delta())).collect();
    for _ in 0..[0, 0, 1, 2][random.below(4)] {
        let bits = (0..random.below(vocabulary / 64 + 2)).map(|_| random.next() | random.next()).collect();
        let unset = if random.below(3) == 0 { FORBIDDEN } else { random.bell() };
        draw.vocabulary.push(VocabularyBias { bits, set: random.bell(), unset });
    }
    if random.below(4) == 0 {
        draw.only = Some((0..1 + random.below(20)).map(|_| random.below(vocabulary) as u32).collect());
    }
    draw
}

#[test]
fn draws_agree_with_the_oracle() {
    let mut random = Random(1);
    let (mut drawn, mut nothing, mut not_the_likeliest) = (0, 0, 0);
    for round in 0..1500 {
        let vocabulary = [1, 2, 7, 8, 9, 64, 511, 513, 3000][round % 9];
        let mut logits = logits(vocabulary, &mut random);
        if round % 4 == 0 {
            // Ties, down to all being equal.
            logits.iter_mut().for_each(|x| *x = (*x / 4.0).round() * 4.0);
        }
        let draw = any_draw(vocabulary, &mut random);
        match check(&logits, &draw) {
            None => nothing += 1,
            Some(token) => {
                drawn += 1;
                not_the_likeliest += usize::from(token.log_probability < -1.0);
            }
        }
    }
    assert!(drawn > 1000 && nothing > 5 && not_the_likeliest > 150, "{drawn} {nothing} {not_the_likeliest}");
}

#[test]
fn a_whole_vocabulary_agrees_with_the_oracle() {
    let mut random = Random(2);
    let logits = logits(49_152, &mut random);
    for top_p in [1.0, 0.95, 0.3, 0.999_99] {
        for temperature in [1.0, 1.5, 30.0] {
            let deltas = (0..20).map(|i| (i * 2000, random.bell())).collect();
            check(&logits, &Draw { top_p, temperature, deltas, ..plain(random.next()) });
        }
    }
}

#[test]
fn frequencies_are_those_of_the_adjusted_softmax() {
    let logits = [1.0f32, 0.0, -1.0, 2.0, 0.5, -3.0, 1.5, 0.0, 0.25, -0.5, 1.0];
    let steered = Draw { deltas: vec![(3, -1.5), (5, 4.0), (9, FORBIDDEN)], temperature: 1.3, ..plain(0) };
    let (weights, _, _) = oracle_weights(&logits, &steered);
    let total: u64 = weights.iter().sum();
    let mut random = Random(3);
    let mut counts = [0usize; 11];
    let rounds = 40_000;
    let pool = Pool::new(2);
    let draws: Vec<Draw> = (0..rounds).map(|_| Draw { random: random.next(), ..steered.clone() }).collect();
    for drawn in sample(best_isa(), &pool, &held(&logits, 11), &draws).unwrap() {
        counts[drawn.unwrap().token as usize] += 1;
    }
    let mut chi_square = 0.0;
    for (count, weight) in counts.iter().zip(&weights).filter(|(_, w)| **w > 0) {
        let expected = rounds as f64 * *weight as f64 / total as f64;
        assert!(expected > 5.0, "too few to test");
        chi_square += (*count as f64 - expected).powi(2) / expected;
    }
    assert_eq!(counts[9], 0, "a forbidden token");
    // Nine degrees of freedom: 33.7 in one of ten thousand runs.
    assert!(chi_square > 0.5 && chi_square < 33.7, "{chi_square}");
}

#[test]
fn a_nucleus_ends_where_its_share_is_reached() {
    // Weights in halves: 1/2, 1/4, 1/8, 1/8, in another order of token.
    let ln2 = std::f32::consts::LN_2;
    let logits = [-3.0 * ln2, -ln2, -3.0 * ln2, -2.0 * ln2];
    let reached = |top_p: f32| {
        let mut tokens: Vec<u32> =
            (0..64).map(|i| check(&logits, &Draw { top_p, ..plain(i << 58) }).unwrap().token).collect();
        tokens.sort_unstable();
        tokens.dedup();
        tokens
    };
    assert_eq!(reached(0.0), [1]);
    assert_eq!(reached(0.49), [1]);
    assert_eq!(reached(0.51), [1, 3]);
    assert_eq!(reached(0.74), [1, 3]);
    // Tokens 0 and 2 tie: the lower one comes first.
    assert_eq!(reached(0.76), [0, 1, 3]);
    assert_eq!(reached(0.87), [0, 1, 3]);
    assert_eq!(reached(0.88), [0, 1, 2, 3]);
    assert_eq!(reached(f32::NAN), [0, 1, 2, 3]);
    // All equal: the lowest tokens.
    let flat = vec![0.5f32; 1000];
    for i in 0..50 {
        let drawn = check(&flat, &Draw { top_p: 0.25, ..plain(i << 58) }).unwrap();
        assert!(drawn.token < 250);
        assert!((drawn.kl - 4f32.ln()).abs() < 1e-4);
    }
}

#[test]
fn nothing_is_drawn_where_everything_is_forbidden() {
    let logits = [1.0f32, 2.0, 3.0];
    let all = VocabularyBias { bits: vec![], set: 0.0, unset: FORBIDDEN };
    for temperature in [0.0, 1.0] {
        for top_p in [1.0, 0.5] {
            let plain = Draw { temperature, top_p, ..plain(7) };
            let sparse = Draw { deltas: (0..3).map(|t| (t, FORBIDDEN)).collect(), ..plain.clone() };
            let masked = Draw { only: Some(vec![1]), deltas: vec![(1, FORBIDDEN)], ..plain.clone() };
            let none = Draw { only: Some(vec![]), ..plain.clone() };
            for draw in [Draw { vocabulary: vec![all.clone()], ..plain.clone() }, sparse, masked, none] {
                assert_eq!(check(&logits, &draw), None);
            }
            assert_eq!(draw(&[FORBIDDEN; 5], &plain), None);
            assert_eq!(draw(&[f32::NAN; 5], &plain), None);
            let one = Draw { deltas: vec![(0, FORBIDDEN), (2, FORBIDDEN)], ..plain.clone() };
            assert_eq!(check(&logits, &one).unwrap().token, 1);
        }
    }
}

#[test]
fn kl_is_zero_exactly_where_nothing_changes() {
    let mut random = Random(5);
    let logits = random.bells(1000, 1.0);
    for temperature in [1.0, 0.6, 3.0] {
        let plain = Draw { temperature, ..plain(random.next()) };
        let zeros = Draw { deltas: (0..20).map(|t| (t, 0.0)).collect(), ..plain.clone() };
        let bias = VocabularyBias { bits: vec![5], set: 0.0, unset: -0.0 };
        let whole = Draw { top_p: 2.0, vocabulary: vec![bias], ..plain.clone() };
        // A share that only tokens without weight are beyond truncates nothing.
        let few = [0.0f32, -1.0, -40.0];
        assert_eq!(check(&few, &Draw { top_p: 1.0 - f32::EPSILON / 2.0, ..plain.clone() }).unwrap().kl.to_bits(), 0);
        let base = check(&logits, &plain).unwrap();
        for draw in [&plain, &zeros, &whole] {
            let drawn = check(&logits, draw).unwrap();
            assert_eq!(drawn.kl.to_bits(), 0);
            assert_eq!(drawn, base, "dial 0 is the base model");
        }
        assert!(check(&logits, &Draw { deltas: vec![(base.token, 2.0)], ..plain.clone() }).unwrap().kl > 1e-4);
        assert!(check(&logits, &Draw { top_p: 0.9, ..plain.clone() }).unwrap().kl > 1e-3);
        // One constant on every token changes the tilt of none.
        let constant = VocabularyBias { bits: vec![], set: 0.0, unset: 1.5 };
        let shifted = check(&logits, &Draw { vocabulary: vec![constant], ..plain.clone() }).unwrap();
        assert!(shifted.token == base.token && shifted.kl < 1e-5);
    }
}

#[test]
fn masks_keep_their_tokens_only() {
    let mut random = Random(6);
    let logits = logits(2000, &mut random);
    for _ in 0..50 {
        // Unordered and with repetition; the mask is a set.
        let only = vec![1999, 4, 700, 4];
        let drawn = check(&logits, &Draw { only: Some(only), ..plain(random.next()) }).unwrap();
        assert!([4, 700, 1999].contains(&drawn.token));
    }
    let single = check(&logits, &Draw { only: Some(vec![8]), ..plain(1) }).unwrap();
    assert_eq!((single.token, single.log_probability), (8, 0.0));
    assert!((single.kl + single.base_log_probability).abs() < 1e-4);
}

#[test]
fn temperature_zero_is_greedy() {
    let logits = [1.0f32, 5.0, 5.0, 2.0, -0.0, 0.0];
    let greedy = Draw { temperature: 0.0, ..plain(u64::MAX) };
    let drawn = check(&logits, &greedy).unwrap();
    assert_eq!((drawn.token, drawn.log_probability), (1, 0.0), "ties go to the lower token");
    assert_eq!(drawn.kl, -drawn.base_log_probability);
    let steered = Draw { deltas: vec![(3, 3.5)], ..greedy.clone() };
    assert_eq!(check(&logits, &steered).unwrap().token, 3);
    let zeros = Draw { only: Some(vec![5, 4]), ..greedy.clone() };
    assert_eq!(draw(&logits, &zeros).unwrap().token, 4, "both zeros are one");
    assert_eq!(draw(&logits, &Draw { temperature: f32::NAN, ..greedy }).unwrap().token, 1);
}

#[test]
fn extreme_numbers_never_break_a_draw() {
    let mut random = Random(7);
    let extremes = [10_000.0, -10_000.0, FORBIDDEN, f32::MAX, f32::MIN, f32::INFINITY, f32::NAN, 1e-40, -0.0];
    let mut drawn = 0;
    for round in 0..2000 {
        let vocabulary = [3, 17, 600][round % 3];
        let mut logits = logits(vocabulary, &mut random);
        for _ in 0..random.below(6) {
            let token = random.below(vocabulary);
            logits[token] = extremes[random.below(extremes.len())];
        }
        let mut draw = any_draw(vocabulary, &mut random);
        draw.temperature = [1.0, 1e-30, 1e30, f32::MIN_POSITIVE, 0.0][random.below(5)];
        for (_, delta) in &mut draw.deltas {
            *delta = extremes[random.below(extremes.len())];
        }
        let results: Vec<_> = every_isa().into_iter().map(|isa| draw_with(isa, &logits, &draw)).collect();
        assert!(results.windows(2).all(|pair| format!("{:?}", pair[0]) == format!("{:?}", pair[1])), "{results:?}");
        if let Some(found) = results[0] {
            drawn += 1;
            assert!((found.token as usize) < vocabulary);
            assert!(found.log_probability <= 0.0 && found.kl >= 0.0, "{found:?}");
            assert!(!logits[found.token as usize].is_nan(), "a token that is no number has no weight");
        }
    }
    assert!(drawn > 1000, "{drawn}");
    // The largest sums of deltas that policies may ask for.
    let far = Draw { deltas: vec![(0, 10_000.0), (1, -10_000.0)], ..plain(9) };
    let found = check(&[0.0, 0.0, 0.0], &far).unwrap();
    assert_eq!((found.token, found.log_probability), (0, 0.0));
    assert!((found.kl - 3f32.ln()).abs() < 1e-4);
}

#[test]
fn many_draws_equal_each_alone() {
    let mut random = Random(8);
    let (slots, vocabulary) = (5, 777);
    let logits: Vec<f32> = (0..slots).flat_map(|_| logits(vocabulary, &mut random)).collect();
    let draws: Vec<Draw> =
        (0..40).map(|i| Draw { slot: i % slots as u32, ..any_draw(vocabulary, &mut random) }).collect();
    let together = sample(best_isa(), &Pool::new(3), &held(&logits, vocabulary), &draws).unwrap();
    let asked = held(&logits, vocabulary);
    let rows: Vec<_> = (0..slots as u32).map(|slot| asked.slot("test", slot).unwrap()).collect();
    let query = |slot| TopKQuery { slot, k: 1, vocabulary: &[] };
    top_k(best_isa(), &Pool::new(1), &rows, &(0..slots as u32).map(query).collect::<Vec<_>>());
    let after_top_k = sample(best_isa(), &Pool::new(3), &asked, &draws).unwrap();
    assert_eq!(after_top_k, together, "what is known by then changes nothing");
    for (draw, together) in draws.iter().zip(together) {
        let row = &logits[draw.slot as usize * vocabulary..][..vocabulary];
        assert_eq!(draw_with(best_isa(), row, &Draw { slot: 0, ..draw.clone() }), together);
    }
}

#[test]
fn draws_that_name_what_is_not_there_are_refused() {
    let refused = |draw: Draw| {
        let result = sample(best_isa(), &Pool::new(1), &held(&[0.0; 20], 10), &[draw]);
        matches!(result, Err(DeviceError::Shape { operation: "sample", .. }))
    };
    assert!(!refused(Draw { slot: 1, ..plain(0) }));
    assert!(refused(Draw { slot: 2, ..plain(0) }));
    assert!(refused(Draw { deltas: vec![(10, 0.0)], ..plain(0) }));
    assert!(refused(Draw { only: Some(vec![3, 10]), ..plain(0) }));
}
