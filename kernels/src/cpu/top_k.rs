//! The likeliest tokens of a row of logits, its log-normaliser and its entropy.
//!
//! Three sweeps of the vocabulary in eight lanes: the largest logit, the sums of the softmax, and the choice. The
//! choice keeps a short list and a threshold, the k-th best so far: after the first few thousand tokens
//! hardly one in a hundred passes it. A token and its logit stand in one u64 whose order is falling logit, ties to
//! the lower token, so the result does not depend on how the list was cut.
//!
//! About 45 µs for 49,152 tokens and k = 20 on one AVX2 thread; `examples/ops.rs` measures it.

use super::buffers::LogitRow;
use super::disjoint::Disjoint;
use super::isa::Detected;
use super::lanes::{Simd, for_every_isa};
use super::vocabulary::{Eights, Normalizer, biased, clean, clean_one, normalizer};
use crate::device::{TopK, TopKQuery, VocabularyBias};
use crate::pool::Pool;

/// What is asked of each of `rows`: see [`crate::Device::top_k`]. Tokens at −∞ (or NaN) are never chosen, so fewer than
/// `k` may come.
pub(super) fn top_k(isa: Detected, pool: &Pool, rows: &[LogitRow<'_>], queries: &[TopKQuery<'_>]) -> Vec<TopK> {
    let mut keys = vec![Vec::new(); rows.len()];
    {
        let keys = Disjoint::new(&mut keys);
        // The sums and the choice read the same row and write nothing in common.
        pool.for_each(2 * rows.len(), &|item| {
            let (i, row) = (item / 2, rows[item / 2]);
            if item % 2 == 0 {
                row.normalizer.get_or_init(|| normalizer(isa, row.logits));
            } else {
                // SAFETY: every odd item writes its own element.
                let keys = unsafe { &mut keys.part(i..i + 1)[0] };
                choose(isa, row.logits, queries[i].k, queries[i].vocabulary, keys);
            }
        });
    }
    let found = rows.iter().zip(queries).zip(keys);
    found.map(|((row, query), keys)| likeliest(row, query.vocabulary, keys)).collect()
}

/// The tokens of `keys`, as the base model sees them.
fn likeliest(row: &LogitRow<'_>, vocabulary: &[VocabularyBias], mut keys: Vec<u64>) -> TopK {
    let normalizer = row.normalizer.get().copied().unwrap_or(Normalizer::NONE);
    let logit = |token: u32| clean_one(row.logits[token as usize]);
    if !vocabulary.is_empty() {
        // Chosen by what the biases make of them, but reported as the base model sees them.
        keys.iter_mut().for_each(|key| *key = self::key(logit(token_of(*key)), token_of(*key)));
        keys.sort_unstable_by(|a, b| b.cmp(a));
    }
    let tokens: Vec<u32> = keys.iter().map(|key| token_of(*key)).collect();
    TopK {
        logits: tokens.iter().map(|token| logit(*token)).collect(),
        tokens,
        log_normalizer: normalizer.log() as f32,
        entropy: normalizer.entropy() as f32,
    }
}

/// A logit and a token as one number: the larger, the earlier. No NaN; both zeros are one.
#[inline(always)]
fn key(logit: f32, token: u32) -> u64 {
    let bits = (logit + 0.0).to_bits();
    // Negative numbers grow with falling bits.
    let ordered = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
    u64::from(ordered) << 32 | u64::from(!token)
}

#[inline(always)]
fn token_of(key: u64) -> u32 {
    !(key as u32)
}

for_every_isa! {
    /// Fills `keys` with those of the k likeliest tokens, best first.
    fn choose(row: &[f32], k: usize, vocabulary: &[VocabularyBias], keys: &mut Vec<u64>) = choose_with;
}

#[inline(always)]
fn choose_with<S: Simd>(s: S, row: &[f32], k: usize, vocabulary: &[VocabularyBias], keys: &mut Vec<u64>) {
    if k == 0 {
        return;
    }
    let full = (4 * k).max(256);
    keys.reserve(full + 8);
    // The k-th best logit so far. Later tokens must exceed it: at a tie the earlier one stays.
    let mut threshold = f32::NEG_INFINITY;
    let row = Eights::new(row);
    for i in 0..row.count() {
        let mut x = row.at(s, i);
        if !vocabulary.is_empty() {
            x = clean(s, biased(s, vocabulary, i, x));
        }
        let mut passed = s.above(x, s.splat(threshold));
        if passed == 0 {
            continue;
        }
        let mut logits = [0.0; 8];
        s.store(x, &mut logits);
        while passed != 0 {
            let lane = passed.trailing_zeros() as usize;
            keys.push(key(logits[lane], (8 * i + lane) as u32));
            passed &= passed - 1;
        }
        if keys.len() >= full {
            let (_, last, _) = keys.select_nth_unstable_by(k - 1, |a, b| b.cmp(a));
            threshold = logit_of(*last);
            keys.truncate(k);
        }
    }
    keys.sort_unstable_by(|a, b| b.cmp(a));
    keys.truncate(k);
}

#[inline(always)]
fn logit_of(key: u64) -> f32 {
    let ordered = (key >> 32) as u32;
    f32::from_bits(if ordered >> 31 == 1 { ordered & !(1 << 31) } else { !ordered })
}

#[cfg(test)]
mod tests {
    use std::sync::OnceLock;

    use super::*;
    use crate::cpu::testing::{Random, best_isa, every_isa};

    /// By sorting, and in f64.
    fn oracle(row: &[f32], k: usize, vocabulary: &[VocabularyBias]) -> (Vec<u32>, f64, f64) {
        let value = |token: u32| {
            let set = |bias: &VocabularyBias| {
                bias.bits.get(token as usize / 64).is_some_and(|word| word >> (token % 64) & 1 == 1)
            };
            vocabulary.iter().fold(row[token as usize], |x, bias| x + if set(bias) { bias.set } else { bias.unset })
        };
        let mut tokens: Vec<u32> = (0..row.len() as u32).filter(|t| value(*t) > f32::NEG_INFINITY).collect();
        tokens.sort_by(|a, b| value(*b).partial_cmp(&value(*a)).unwrap().then(a.cmp(b)));
        tokens.truncate(k);
        let logit = |token: u32| row[token as usize];
        tokens.sort_by(|a, b| logit(*b).partial_cmp(&logit(*a)).unwrap().then(a.cmp(b)));
        let finite: Vec<f64> = row.iter().filter(|x| **x > f32::NEG_INFINITY).map(|x| f64::from(*x)).collect();
        let top = finite.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let normalizer = top + finite.iter().map(|x| (x - top).exp()).sum::<f64>().ln();
        let entropy = finite.iter().map(|x| (x - normalizer).exp() * (normalizer - x)).sum();
        (tokens, normalizer, entropy)
    }

    fn of(isa: Detected, pool: &Pool, row: &[f32], k: usize, vocabulary: &[VocabularyBias]) -> TopK {
        let row = LogitRow { logits: row, normalizer: &OnceLock::new() };
        top_k(isa, pool, &[row], &[TopKQuery { slot: 0, k, vocabulary }]).remove(0)
    }

    fn check(row: &[f32], k: usize, vocabulary: &[VocabularyBias]) -> TopK {
        let pool = Pool::new(2);
        let (tokens, normalizer, entropy) = oracle(row, k, vocabulary);
        let mut found = every_isa().into_iter().map(|isa| of(isa, &pool, row, k, vocabulary));
        let first = found.next().expect("scalar");
        assert!(found.all(|other| other == first), "every instruction set gives the same");
        assert_eq!(first.tokens, tokens);
        assert!(tokens.iter().zip(&first.logits).all(|(token, logit)| row[*token as usize] == *logit));
        assert!((f64::from(first.log_normalizer) - normalizer).abs() <= 1e-5 * normalizer.abs().max(1.0));
        assert!((f64::from(first.entropy) - entropy).abs() <= 1e-5, "{} is not {entropy}", first.entropy);
        first
    }

    #[test]
    fn the_likeliest_agree_with_sorting() {
        let mut random = Random(1);
        for round in 0..400 {
            let count = [1, 5, 8, 63, 500, 4001][round % 6];
            let mut row = random.bells(count, 4.0);
            match round % 5 {
                // Ties, both zeros among them.
                0 => row.iter_mut().for_each(|x| *x = (*x / 3.0).round()),
                1 => row.sort_by(f32::total_cmp),
                2 => row.iter_mut().step_by(3).for_each(|x| *x = f32::NEG_INFINITY),
                _ => {}
            }
            if row.iter().all(|x| *x == f32::NEG_INFINITY) {
                continue;
            }
            let bits = (0..count / 100).map(|_| random.next()).collect();
            let allow = VocabularyBias { bits, set: 0.5, unset: [f32::NEG_INFINITY, -2.0][round % 2] };
            let shift = VocabularyBias { bits: vec![random.next(); 3], set: 10_000.0, unset: -10_000.0 };
            for biases in [&[][..], std::slice::from_ref(&allow), &[shift.clone(), allow.clone()]] {
                check(&row, [0, 1, 20, 256][round % 4], biases);
            }
        }
    }

    #[test]
    fn a_whole_vocabulary_agrees_with_sorting() {
        let mut random = Random(2);
        let row = random.bells(49_152, 2.0);
        assert!(check(&row, 256, &[]).entropy > 5.0);
        assert_eq!(check(&row, 20, &[]).tokens.len(), 20);
        let rising: Vec<f32> = (0..49_152).map(|i| i as f32 * 1e-3).collect();
        check(&rising, 20, &[]);
        assert_eq!(check(&vec![0.25; 49_152], 3, &[]).tokens, [0, 1, 2]);
    }

    #[test]
    fn rows_of_a_batch_are_each_as_alone() {
        let mut random = Random(3);
        let rows: Vec<Vec<f32>> = [1, 63, 500, 4001, 8].map(|count| random.bells(count, 4.0)).into();
        let bias = [VocabularyBias { bits: vec![random.next(); 8], set: 1.0, unset: f32::NEG_INFINITY }];
        let queries: Vec<TopKQuery<'_>> =
            (0..rows.len()).map(|i| TopKQuery { slot: 0, k: 7 * i + 1, vocabulary: &bias[..i % 2] }).collect();
        let normalizers: Vec<OnceLock<Normalizer>> = vec![OnceLock::new(); rows.len()];
        let views = rows.iter().zip(&normalizers).map(|(logits, normalizer)| LogitRow { logits, normalizer });
        let views: Vec<LogitRow<'_>> = views.collect();
        let pool = Pool::new(2);
        let alone: Vec<TopK> = rows
            .iter()
            .zip(&queries)
            .map(|(row, query)| of(best_isa(), &pool, row, query.k, query.vocabulary))
            .collect();
        assert_eq!(top_k(best_isa(), &pool, &views, &queries), alone);
        assert!(top_k(best_isa(), &pool, &[], &[]).is_empty());
    }

    #[test]
    fn biases_choose_but_leave_logits_raw() {
        let row = [3.0, 2.0, 1.0, 0.0];
        let only_high = VocabularyBias { bits: vec![0b1100], set: 0.0, unset: f32::NEG_INFINITY };
        let found = check(&row, 3, std::slice::from_ref(&only_high));
        assert_eq!((found.tokens, found.logits), (vec![2, 3], vec![1.0, 0.0]), "fewer than asked for");
        let none = VocabularyBias { bits: vec![], set: 0.0, unset: f32::NEG_INFINITY };
        assert!(check(&row, 3, &[only_high, none]).tokens.is_empty());
    }

    #[test]
    fn numbers_of_a_broken_model_do_no_harm() {
        let broken = [f32::NAN, 1.0, f32::INFINITY, f32::NEG_INFINITY, -f32::NAN, 2.0, f32::MAX, f32::MIN, 0.0];
        for isa in every_isa() {
            let found = of(isa, &Pool::new(1), &broken, 9, &[]);
            assert_eq!(found.tokens, [2, 6, 5, 1, 8, 7], "NaN counts as -∞, infinity as the largest number");
            assert!(found.logits.iter().all(|x| x.is_finite()));
            assert!(found.log_normalizer.is_finite() && (found.entropy - 2f32.ln()).abs() < 1e-6);
            let nothing = of(isa, &Pool::new(1), &[f32::NAN; 20], 9, &[]);
            assert!(nothing.tokens.is_empty() && nothing.log_normalizer == f32::NEG_INFINITY);
            assert_eq!(nothing.entropy, 0.0);
        }
        assert!(of(best_isa(), &Pool::new(1), &[], 5, &[]).tokens.is_empty());
    }
}
