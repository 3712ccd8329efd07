//! Eight lanes of f32: the one order in which the CPU adds.
//!
//! A kernel is written once over [`Simd`] and instantiated by [`for_every_isa`] twice: with AVX2, FMA and
//! F16C, and as plain Rust, which is the reference. Every operation here gives the same bits in both, so
//! kernels do too. A value of [`Avx2`] is the proof that the processor has the instructions; after that
//! everything is safe code.
//!
//! Not here: the integer kernels of the linear layers, which have their own files.

use crate::sampling::{EXP_CEILING, EXP_FLOOR, EXP_POLYNOMIAL, LN_2, ROUNDER, WEIGHT_BITS};

/// Eight lanes of f32 and what kernels do with them. A NaN operand of [`Simd::min`] and [`Simd::max`]
/// loses to the second operand, as in the x86 instructions.
pub(crate) trait Simd: Copy {
    /// Eight f32.
    type F: Copy;
    /// Eight f64 accumulators.
    type W: Copy;

    fn splat(self, x: f32) -> Self::F;
    fn load(self, x: &[f32; 8]) -> Self::F;
    fn store(self, x: Self::F, to: &mut [f32; 8]);
    /// Widens eight f16, given by their bits.
    fn load_f16(self, x: &[u16; 8]) -> Self::F;
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// a * b + c, rounded once.
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// 2^n of `rounded` = n + [`ROUNDER`].
    fn power(self, rounded: Self::F) -> Self::F;
    /// `value` where `x > floor`, else +0.
    fn where_above(self, x: Self::F, floor: Self::F, value: Self::F) -> Self::F;
    /// Lane i of `set` where bit i of `bits` is set, else of `unset`.
    fn pick(self, bits: u8, set: Self::F, unset: Self::F) -> Self::F;
    /// Bit i is set where `a > b` in lane i.
    fn above(self, a: Self::F, b: Self::F) -> u32;
    /// Lanes added as ((0+4)+(2+6))+((1+5)+(3+7)).
    fn sum(self, x: Self::F) -> f32;
    /// The largest lane.
    fn largest(self, x: Self::F) -> f32;

    fn wide_zero(self) -> Self::W;
    /// acc + x in f64.
    fn wide_add(self, acc: Self::W, x: Self::F) -> Self::W;
    /// acc + a * b in f64, where the product is exact.
    fn wide_mul_add(self, acc: Self::W, a: Self::F, b: Self::F) -> Self::W;
    /// Lanes added in the order of [`Simd::sum`].
    fn wide_sum(self, acc: Self::W) -> f64;

    /// acc + floor(e · 2^40) for e from 0 to 1: exact below 2^53, so for at most 2^13 additions.
    fn weights_add(self, acc: Self::W, e: Self::F) -> Self::W;
}

/// The order of [`Simd::sum`] for eight numbers.
macro_rules! tree {
    ($x:expr) => {
        (($x[0] + $x[4]) + ($x[2] + $x[6])) + (($x[1] + $x[5]) + ($x[3] + $x[7]))
    };
}

/// [`crate::sampling::exp`], eight at a time, bit for bit.
#[inline(always)]
pub(crate) fn exp<S: Simd>(s: S, x: S::F) -> S::F {
    let e = exp_of_difference(s, s.min(x, s.splat(EXP_CEILING)));
    s.where_above(x, s.splat(EXP_FLOOR), e)
}

/// [`exp`] of what is not above its ceiling: a difference to a maximum, or NaN.
#[inline(always)]
pub(crate) fn exp_of_difference<S: Simd>(s: S, x: S::F) -> S::F {
    let rounded = s.mul_add(x, s.splat(std::f32::consts::LOG2_E), s.splat(ROUNDER));
    let n = s.sub(rounded, s.splat(ROUNDER));
    let r = s.mul_add(n, s.splat(-LN_2[1]), s.mul_add(n, s.splat(-LN_2[0]), x));
    let mut p = s.splat(EXP_POLYNOMIAL[0]);
    for c in &EXP_POLYNOMIAL[1..] {
        p = s.mul_add(p, r, s.splat(*c));
    }
    let mantissa = s.add(s.mul_add(p, s.mul(r, r), r), s.splat(1.0));
    s.where_above(x, s.splat(EXP_FLOOR), s.mul(mantissa, s.power(rounded)))
}

/// The dot product of two slices of one length: 32 running sums, added (0+1)+(2+3) by groups of eight lanes, then
/// by [`Simd::sum`]; what is left over beyond a multiple of eight is added last, one by one.
#[inline(always)]
pub(crate) fn dot<S: Simd>(s: S, a: &[f32], b: &[f32]) -> f32 {
    let ((a8, a_rest), (b8, b_rest)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    let ((a32, a8), (b32, b8)) = (a8.as_chunks::<4>(), b8.as_chunks::<4>());
    let mut acc = [s.splat(0.0); 4];
    for (x, y) in a32.iter().zip(b32) {
        for i in 0..4 {
            acc[i] = s.mul_add(s.load(&x[i]), s.load(&y[i]), acc[i]);
        }
    }
    for (i, (x, y)) in a8.iter().zip(b8).enumerate() {
        acc[i] = s.mul_add(s.load(x), s.load(y), acc[i]);
    }
    let mut sum = s.sum(s.add(s.add(acc[0], acc[1]), s.add(acc[2], acc[3])));
    for (x, y) in a_rest.iter().zip(b_rest) {
        sum = x.mul_add(*y, sum);
    }
    sum
}

/// Defines `fn name(isa, args…)` that runs a kernel written over [`Simd`] under the instruction set given,
/// whose proof of detection makes it safe.
macro_rules! for_every_isa {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? = $kernel:ident;) => {
        $(#[$meta])*
        $vis fn $name(isa: $crate::cpu::isa::Detected, $($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma,f16c")]
                fn fast($($arg: $ty),*) $(-> $ret)? {
                    // SAFETY: this function has the three features, so whoever called it made sure of them.
                    let s = unsafe { $crate::cpu::lanes::Avx2::assume() };
                    $kernel(s, $($arg),*)
                }
                if isa.isa() != $crate::cpu::isa::Isa::Scalar {
                    // SAFETY: the processor has this instruction set, and every one but `Scalar` includes
                    // AVX2, FMA and F16C.
                    return unsafe { fast($($arg),*) };
                }
            }
            let _ = isa;
            $kernel($crate::cpu::lanes::Scalar, $($arg),*)
        }
    };
}
pub(crate) use for_every_isa;

/// Plain Rust, the reference.
#[derive(Clone, Copy)]
pub(crate) struct Scalar;

#[inline(always)]
fn each<T: Copy, U: Copy>(a: [T; 8], b: [T; 8], f: impl Fn(T, T) -> U) -> [U; 8] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

impl Simd for Scalar {
    type F = [f32; 8];
    type W = [f64; 8];

    fn splat(self, x: f32) -> [f32; 8] {
        [x; 8]
    }
    fn load(self, x: &[f32; 8]) -> [f32; 8] {
        *x
    }
    fn store(self, x: [f32; 8], to: &mut [f32; 8]) {
        *to = x;
    }
    fn load_f16(self, x: &[u16; 8]) -> [f32; 8] {
        x.map(|bits| half::f16::from_bits(bits).to_f32())
    }
    fn add(self, a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        each(a, b, |a, b| a + b)
    }
    fn sub(self, a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        each(a, b, |a, b| a - b)
    }
    fn mul(self, a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        each(a, b, |a, b| a * b)
    }
    fn div(self, a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        each(a, b, |a, b| a / b)
    }
    fn mul_add(self, a: [f32; 8], b: [f32; 8], c: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
    }
    fn min(self, a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        each(a, b, |a, b| if a < b { a } else { b })
    }
    fn max(self, a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        each(a, b, |a, b| if a > b { a } else { b })
    }
    fn power(self, rounded: [f32; 8]) -> [f32; 8] {
        rounded.map(|x| f32::from_bits((x.to_bits() << 23).wrapping_add(1.0f32.to_bits())))
    }
    fn where_above(self, x: [f32; 8], floor: [f32; 8], value: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|i| if x[i] > floor[i] { value[i] } else { 0.0 })
    }
    fn pick(self, bits: u8, set: [f32; 8], unset: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|i| if bits >> i & 1 == 1 { set[i] } else { unset[i] })
    }
    fn above(self, a: [f32; 8], b: [f32; 8]) -> u32 {
        (0..8).map(|i| u32::from(a[i] > b[i]) << i).sum()
    }
    fn sum(self, x: [f32; 8]) -> f32 {
        tree!(x)
    }
    fn largest(self, x: [f32; 8]) -> f32 {
        let half = |a: f32, b: f32| if a > b { a } else { b };
        half(half(half(x[0], x[4]), half(x[2], x[6])), half(half(x[1], x[5]), half(x[3], x[7])))
    }
    fn wide_zero(self) -> [f64; 8] {
        [0.0; 8]
    }
    fn wide_add(self, acc: [f64; 8], x: [f32; 8]) -> [f64; 8] {
        each(acc, x.map(f64::from), |a, b| a + b)
    }
    fn wide_mul_add(self, acc: [f64; 8], a: [f32; 8], b: [f32; 8]) -> [f64; 8] {
        each(acc, each(a, b, |a, b| f64::from(a) * f64::from(b)), |a, b| a + b)
    }
    fn wide_sum(self, acc: [f64; 8]) -> f64 {
        tree!(acc)
    }
    fn weights_add(self, acc: [f64; 8], e: [f32; 8]) -> [f64; 8] {
        each(acc, e.map(|e| crate::sampling::weight_of(e) as f64), |acc, w| acc + w)
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::Avx2;

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::{Simd, WEIGHT_BITS};

    /// AVX2, FMA and F16C. Holding one proves that the processor has them.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx2(());

    impl Avx2 {
        /// # Safety
        /// The processor has AVX2, FMA and F16C.
        #[inline(always)]
        pub(crate) unsafe fn assume() -> Avx2 {
            Avx2(())
        }
    }

    /// A method whose body is one expression of intrinsics.
    macro_rules! method {
        ($name:ident($($arg:ident: $ty:ty),*) -> $ret:ty = $body:expr) => {
            #[inline(always)]
            fn $name(self, $($arg: $ty),*) -> $ret {
                // SAFETY: `self` proves the features, and the pointers are to whole arrays.
                unsafe { $body }
            }
        };
    }

    impl Simd for Avx2 {
        type F = __m256;
        type W = [__m256d; 2];

        method!(splat(x: f32) -> __m256 = _mm256_set1_ps(x));
        method!(load(x: &[f32; 8]) -> __m256 = _mm256_loadu_ps(x.as_ptr()));
        method!(store(x: __m256, to: &mut [f32; 8]) -> () = _mm256_storeu_ps(to.as_mut_ptr(), x));
        method!(load_f16(x: &[u16; 8]) -> __m256 = _mm256_cvtph_ps(_mm_loadu_si128(x.as_ptr().cast())));
        method!(add(a: __m256, b: __m256) -> __m256 = _mm256_add_ps(a, b));
        method!(sub(a: __m256, b: __m256) -> __m256 = _mm256_sub_ps(a, b));
        method!(mul(a: __m256, b: __m256) -> __m256 = _mm256_mul_ps(a, b));
        method!(div(a: __m256, b: __m256) -> __m256 = _mm256_div_ps(a, b));
        method!(mul_add(a: __m256, b: __m256, c: __m256) -> __m256 = _mm256_fmadd_ps(a, b, c));
        method!(min(a: __m256, b: __m256) -> __m256 = _mm256_min_ps(a, b));
        method!(max(a: __m256, b: __m256) -> __m256 = _mm256_max_ps(a, b));
        method!(power(rounded: __m256) -> __m256 = _mm256_castsi256_ps(_mm256_add_epi32(
            _mm256_slli_epi32::<23>(_mm256_castps_si256(rounded)),
            _mm256_set1_epi32(1.0f32.to_bits() as i32),
        )));
        method!(where_above(x: __m256, floor: __m256, value: __m256) -> __m256 =
            _mm256_and_ps(_mm256_cmp_ps::<_CMP_GT_OQ>(x, floor), value));
        method!(pick(bits: u8, set: __m256, unset: __m256) -> __m256 = {
            let lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
            let chosen = _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(i32::from(bits)), lane), lane);
            _mm256_blendv_ps(unset, set, _mm256_castsi256_ps(chosen))
        });
        method!(above(a: __m256, b: __m256) -> u32 = _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_GT_OQ>(a, b)) as u32);
        method!(sum(x: __m256) -> f32 = {
            let four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        });
        method!(largest(x: __m256) -> f32 = {
            let four = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
        });

        method!(wide_zero() -> [__m256d; 2] = [_mm256_setzero_pd(); 2]);
        method!(wide_add(acc: [__m256d; 2], x: __m256) -> [__m256d; 2] = {
            let [low, high] = widen(x);
            [_mm256_add_pd(acc[0], low), _mm256_add_pd(acc[1], high)]
        });
        method!(wide_mul_add(acc: [__m256d; 2], a: __m256, b: __m256) -> [__m256d; 2] = {
            let ([a0, a1], [b0, b1]) = (widen(a), widen(b));
            [_mm256_fmadd_pd(a0, b0, acc[0]), _mm256_fmadd_pd(a1, b1, acc[1])]
        });
        method!(wide_sum(acc: [__m256d; 2]) -> f64 = {
            let mut x = [0.0f64; 8];
            _mm256_storeu_pd(x.as_mut_ptr(), acc[0]);
            _mm256_storeu_pd(x[4..].as_mut_ptr(), acc[1]);
            tree!(x)
        });

        method!(weights_add(acc: [__m256d; 2], e: __m256) -> [__m256d; 2] = {
            let scaled = _mm256_mul_ps(e, _mm256_set1_ps((1u64 << WEIGHT_BITS) as f32));
            let [low, high] = widen(_mm256_floor_ps(scaled));
            [_mm256_add_pd(acc[0], low), _mm256_add_pd(acc[1], high)]
        });
    }

    /// # Safety
    /// The processor has AVX.
    #[inline(always)]
    unsafe fn widen(x: __m256) -> [__m256d; 2] {
        // SAFETY: the caller's.
        unsafe { [_mm256_cvtps_pd(_mm256_castps256_ps128(x)), _mm256_cvtps_pd(_mm256_extractf128_ps::<1>(x))] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::testing::{Random, bits, every_isa};
    use crate::sampling;

    for_every_isa! {
        fn exp_of(x: &[f32; 8], to: &mut [f32; 8]) = exp_with;
    }

    #[inline(always)]
    fn exp_with<S: Simd>(s: S, x: &[f32; 8], to: &mut [f32; 8]) {
        s.store(exp(s, s.load(x)), to);
    }

    for_every_isa! {
        fn everything(x: &[f32; 8], y: &[f32; 8], half: &[u16; 8]) -> Vec<u64> = everything_with;
    }

    /// Every operation once, as bits.
    #[inline(always)]
    fn everything_with<S: Simd>(s: S, x: &[f32; 8], y: &[f32; 8], half: &[u16; 8]) -> Vec<u64> {
        let (a, b) = (s.load(x), s.load(y));
        let picked = s.pick(half[0] as u8, a, b);
        let results = [
            s.add(a, b),
            s.sub(a, b),
            s.mul(a, b),
            s.div(a, b),
            s.mul_add(a, b, a),
            s.min(a, b),
            s.max(a, b),
            s.power(s.add(b, s.splat(ROUNDER))),
            s.where_above(a, b, s.splat(3.0)),
            picked,
            s.load_f16(half),
        ];
        let mut out = Vec::new();
        for result in results {
            let mut plain = [0.0; 8];
            s.store(result, &mut plain);
            // A NaN's payload is nobody's business.
            out.extend(plain.map(|x| if x.is_nan() { u64::MAX } else { u64::from(x.to_bits()) }));
        }
        out.push(u64::from(s.above(a, b)));
        out.extend([s.sum(b), s.largest(b)].map(|x| u64::from(x.to_bits())));
        let wide = s.wide_mul_add(s.wide_add(s.wide_zero(), b), b, b);
        out.push(s.wide_sum(wide).to_bits());
        let e = exp(s, s.sub(b, s.splat(60.0)));
        let weights = s.weights_add(s.weights_add(s.wide_zero(), e), s.splat(1.0));
        out.push(s.wide_sum(weights) as u64);
        out
    }

    #[test]
    fn every_operation_gives_the_same_bits_everywhere() {
        let mut random = Random(1);
        let special = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0, -0.0, f32::MAX, 1e-40];
        for _ in 0..2000 {
            let mut x: [f32; 8] = std::array::from_fn(|_| 20.0 * random.bell());
            x[random.below(8)] = special[random.below(special.len())];
            let y: [f32; 8] = std::array::from_fn(|_| 20.0 * random.bell());
            let half: [u16; 8] = std::array::from_fn(|_| random.next() as u16);
            let all: Vec<_> = every_isa().into_iter().map(|isa| everything(isa, &x, &y, &half)).collect();
            assert!(all.windows(2).all(|pair| pair[0] == pair[1]), "{x:?} {y:?} {half:?}");
        }
    }

    #[test]
    fn exp_in_lanes_is_the_shared_one() {
        let mut random = Random(2);
        for round in 0..20_000 {
            let mut x: [f32; 8] = std::array::from_fn(|_| -100.0 * random.symmetric());
            if round % 50 == 0 {
                x = [0.0, -0.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, EXP_FLOOR, EXP_CEILING, f32::MIN];
            }
            for isa in every_isa() {
                let mut out = [f32::NAN; 8];
                exp_of(isa, &x, &mut out);
                assert_eq!(bits(&out), bits(&x.map(sampling::exp)), "{x:?}");
            }
        }
    }

    for_every_isa! {
        fn product(a: &[f32], b: &[f32]) -> f32 = dot;
    }

    #[test]
    fn dot_products_are_right_and_the_same_everywhere() {
        let mut random = Random(3);
        for length in (0..70).chain([576, 1153]) {
            let (a, b) = (random.bells(length, 1.0), random.bells(length, 1.0));
            let expected: f64 = a.iter().zip(&b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            let found: Vec<f32> = every_isa().into_iter().map(|isa| product(isa, &a, &b)).collect();
            assert!((f64::from(found[0]) - expected).abs() <= 1e-4, "{length}");
            assert!(found.iter().all(|x| x.to_bits() == found[0].to_bits()), "{length}");
        }
    }
}
