//! Top-k and draws against the CPU's given the same logits: tokens to the bit, sums within f32 rounding.
//!
//! The CPU is the oracle: `cpu/sample_tests.rs` and `cpu/top_k.rs` hold it to the definition. Logarithms of sums of the
//! same exponentials differ by their order alone, some 1e-6; bounds are 1e-4, as there.

use vassal_cuda_stand_in::in_child;

use super::{Random, cpu, cpu_logits, cuda, cuda_logits};
use crate::device::{Device, Draw, Drawn, TopK, TopKQuery, VocabularyBias};

const FORBIDDEN: f32 = f32::NEG_INFINITY;

/// Sizes around a chunk of 2048 tokens, a pair, a warp and a word of bits.
const VOCABULARIES: [usize; 8] = [1, 2, 7, 64, 511, 2047, 2049, 5000];

/// Logits of a language model's shape: a few high, a long tail; every fourth with ties, down to all being equal.
fn logits(vocabulary: usize, random: &mut Random) -> Vec<f32> {
    let mut logits = random.bells(vocabulary, 2.5);
    for _ in 0..vocabulary.min(12) {
        let token = random.below(vocabulary);
        logits[token] += 4.0 + 4.0 * random.bell();
    }
    if random.below(4) == 0 {
        logits.iter_mut().for_each(|x| *x = (*x / 4.0).round() * 4.0);
    }
    logits
}

/// Replaces some numbers by those of a broken model.
fn broken(logits: &mut [f32], random: &mut Random) {
    let extremes = [10_000.0, -10_000.0, FORBIDDEN, f32::MAX, f32::MIN, f32::INFINITY, f32::NAN, 1e-40, -0.0];
    for _ in 0..random.below(6) {
        let token = random.below(logits.len());
        logits[token] = extremes[random.below(extremes.len())];
    }
}

fn bias(vocabulary: usize, random: &mut Random) -> VocabularyBias {
    let bits = (0..random.below(vocabulary / 64 + 3)).map(|_| random.next() | random.next()).collect();
    let unset = if random.below(3) == 0 { FORBIDDEN } else { random.bell() };
    VocabularyBias { bits, set: random.bell(), unset }
}

/// A draw with a random mixture of everything.
fn any_draw(slot: u32, vocabulary: usize, random: &mut Random) -> Draw {
    let mut draw = Draw { slot, random: random.next(), ..Draw::default() };
    draw.temperature = [1.0, 1.0, 0.7, 2.5, 0.0, f32::NAN, 1e-30, 1e30][random.below(8)];
    draw.top_p = [1.0, 1.0, 0.9, 0.5, 0.05, 0.9999, 0.0, f32::NAN][random.below(8)];
    let delta = |random: &mut Random| match random.below(8) {
        0 => FORBIDDEN,
        1 => [10_000.0, -10_000.0][random.below(2)],
        _ => 3.0 * random.bell(),
    };
    // Unordered, and sometimes with a token twice.
    draw.deltas = (0..random.below(20)).map(|_| (random.below(vocabulary) as u32, delta(random))).collect();
    draw.vocabulary = (0..[0, 0, 1, 2][random.below(4)]).map(|_| bias(vocabulary, random)).collect();
    if random.below(4) == 0 {
        draw.only = Some((0..random.below(20)).map(|_| random.below(vocabulary) as u32).collect());
    }
    draw
}

#[track_caller]
fn check_drawn(got: &Option<Drawn>, expected: &Option<Drawn>, draw: &Draw) {
    let (Some(got), Some(expected)) = (got, expected) else {
        assert_eq!(got, expected, "{draw:?}");
        return;
    };
    assert_eq!(got.token, expected.token, "{draw:?}");
    // The CPU takes differences of z in f32 where a vocabulary is biased: KL is off by the rounding of z.
    let most = draw.deltas.iter().map(|(_, delta)| delta.abs()).filter(|delta| delta.is_finite()).fold(100.0, f32::max);
    let rounding = if draw.temperature > 0.0 { 1e-7 * most / draw.temperature } else { 0.0 };
    for (name, got, expected, bound) in [
        ("log-probability", got.log_probability, expected.log_probability, 1e-4),
        ("base log-probability", got.base_log_probability, expected.base_log_probability, 1e-4),
        ("KL", got.kl, expected.kl, 1e-4 + rounding),
    ] {
        let close = (got - expected).abs() <= bound + 1e-6 * expected.abs();
        assert!(close || got == expected, "{name} {got} is not {expected} of {draw:?}");
    }
    assert!(expected.kl.to_bits() != 0 || got.kl.to_bits() == 0, "KL is exactly 0 where nothing changes: {draw:?}");
}

/// Draws of `rounds` rows of logits; how many came, came not, were not the likeliest, and were cut by a nucleus.
pub(super) fn check_draws(rounds: usize) -> [usize; 4] {
    let (mut cuda, mut cpu, mut random) = (cuda(), cpu(), Random(1));
    let (mut drawn, mut nothing, mut not_the_likeliest, mut cut) = (0, 0, 0, 0);
    for round in 0..rounds {
        let vocabulary = VOCABULARIES[round % VOCABULARIES.len()];
        let slots = 3;
        let mut values: Vec<f32> = (0..slots).flat_map(|_| logits(vocabulary, &mut random)).collect();
        if round % 3 == 0 {
            broken(&mut values, &mut random);
        }
        let (on_cuda, on_cpu) = (cuda_logits(&cuda, &values, vocabulary), cpu_logits(&mut cpu, &values, vocabulary));
        let draws: Vec<Draw> = (0..12).map(|i| any_draw(i % slots as u32, vocabulary, &mut random)).collect();
        let (got, expected) = (cuda.sample(&on_cuda, &draws).unwrap(), cpu.sample(&on_cpu, &draws).unwrap());
        for ((got, expected), draw) in got.iter().zip(&expected).zip(&draws) {
            check_drawn(got, expected, draw);
            drawn += usize::from(got.is_some());
            nothing += usize::from(got.is_none());
            not_the_likeliest += usize::from(got.is_some_and(|got| got.log_probability < -1.0));
            cut += usize::from(draw.top_p < 1.0 && draw.only.is_none() && got.is_some_and(|got| got.kl > 0.0));
        }
        let alone = cuda.sample(&on_cuda, &draws[5..6]).unwrap();
        assert_eq!(format!("{alone:?}"), format!("{:?}", &got[5..6]), "a draw alone");
    }
    [drawn, nothing, not_the_likeliest, cut]
}

#[test]
fn draws_are_the_cpus() {
    in_child!({
        let counts = check_draws(40);
        assert!(counts.into_iter().zip([300, 20, 40, 40]).all(|(count, least)| count > least), "{counts:?}");
        let mut cuda = cuda();
        let one = cuda_logits(&cuda, &[1.0], 1);
        assert!(cuda.sample(&one, &[]).unwrap().is_empty());
    });
}

#[test]
fn a_whole_vocabulary_is_drawn_from_as_on_the_cpu() {
    in_child!({
        let (mut cuda, mut cpu, mut random) = (cuda(), cpu(), Random(2));
        let vocabulary = 49_152;
        let values = logits(vocabulary, &mut random);
        let (on_cuda, on_cpu) = (cuda_logits(&cuda, &values, vocabulary), cpu_logits(&mut cpu, &values, vocabulary));
        let deltas: Vec<(u32, f32)> = (0..20).map(|i| (i * 2000, random.bell())).collect();
        let draw =
            |top_p, temperature, random| Draw { top_p, temperature, deltas: deltas.clone(), random, ..Draw::default() };
        let draws = [draw(1.0, 1.0, random.next()), draw(0.95, 1.0, random.next()), draw(0.99999, 30.0, random.next())];
        let (got, expected) = (cuda.sample(&on_cuda, &draws).unwrap(), cpu.sample(&on_cpu, &draws).unwrap());
        for ((got, expected), draw) in got.iter().zip(&expected).zip(&draws) {
            check_drawn(got, expected, draw);
        }
        let query = [TopKQuery { slot: 0, k: 256, vocabulary: &[] }];
        check_top(&cuda.top_k(&on_cuda, &query).unwrap()[0], &cpu.top_k(&on_cpu, &query).unwrap()[0]);
    });
}

#[track_caller]
fn check_top(got: &TopK, expected: &TopK) {
    assert_eq!(got.tokens, expected.tokens);
    assert_eq!(got.logits, expected.logits);
    let close = |got: f32, expected: f32| got == expected || (got - expected).abs() <= 1e-5 * expected.abs().max(1.0);
    assert!(
        close(got.log_normalizer, expected.log_normalizer),
        "{} is not {}",
        got.log_normalizer,
        expected.log_normalizer
    );
    assert!(close(got.entropy, expected.entropy), "{} is not {}", got.entropy, expected.entropy);
}

pub(super) fn check_likeliest(rounds: usize) {
    let (mut cuda, mut cpu, mut random) = (cuda(), cpu(), Random(3));
    for round in 0..rounds {
        let vocabulary = VOCABULARIES[round % VOCABULARIES.len()];
        let mut values: Vec<f32> = (0..2).flat_map(|_| logits(vocabulary, &mut random)).collect();
        if round % 2 == 0 {
            broken(&mut values, &mut random);
        }
        let (on_cuda, on_cpu) = (cuda_logits(&cuda, &values, vocabulary), cpu_logits(&mut cpu, &values, vocabulary));
        let biases = [bias(vocabulary, &mut random), bias(vocabulary, &mut random)];
        let query = |slot, k, count| TopKQuery { slot, k, vocabulary: &biases[..count] };
        let queries = [query(0, 20, 0), query(1, [0, 1, 256][round % 3], 1), query(0, 7, 2)];
        let found = cuda.top_k(&on_cuda, &queries).unwrap();
        for (got, expected) in found.iter().zip(&cpu.top_k(&on_cpu, &queries).unwrap()) {
            check_top(got, expected);
        }
        assert_eq!(cuda.top_k(&on_cuda, &queries[1..2]).unwrap(), found[1..2], "a query alone");
    }
    let nothing = cuda_logits(&cuda, &[f32::NAN; 20], 20);
    let found = cuda.top_k(&nothing, &[TopKQuery { slot: 0, k: 5, vocabulary: &[] }]).unwrap().remove(0);
    assert!(found.tokens.is_empty() && found.log_normalizer == FORBIDDEN && found.entropy == 0.0);
}

#[test]
fn the_likeliest_are_the_cpus() {
    in_child!({ check_likeliest(24) });
}
