// What all kernels share: types, exact conversions, the shared exp, loads and the tensor-core instruction.
//
// NVRTC compiles without the toolkit's headers, so half precision is inline PTX here. Everything is compiled
// with --fmad=false: a product that feeds a sum is fused only where a kernel says fmaf. CPU twins: lanes.rs and
// sampling.rs, to the bit where a name says exact.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

// Positions in a page of the cache, and keys in a tile of attention (PAGE_TOKENS in device.rs).
enum : u32 { PAGE_TOKENS = 32 };
// The slot of rows that only fill a pass up: nothing of them is stored in the cache (NO_SLOT in plan.rs).
enum : u32 { NO_SLOT = 0xffffffffu };
enum : u32 { WARP = 32 };
enum : u32 { ALL_LANES = 0xffffffffu };

#define INFINITY_F __int_as_float(0x7f800000)
#define LARGEST_F __int_as_float(0x7f7fffff)

// Half precision by its bits.

inline float half_to_float(u16 bits) {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
    return x;
}

inline u16 float_to_half(float x) {
    u16 bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
}

// Two halves in one register, the first in the low half.
inline u32 pack_halves(float low, float high) {
    return (u32)float_to_half(low) | ((u32)float_to_half(high) << 16);
}

inline float low_half(u32 pair) { return half_to_float((u16)(pair & 0xffff)); }
inline float high_half(u32 pair) { return half_to_float((u16)(pair >> 16)); }

// a - b of two halves each.
inline u32 sub_halves(u32 a, u32 b) {
    u32 d;
    asm("sub.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
    return d;
}

// What the cache takes: the nearest f16, never infinite or NaN, so that a masked key's weight of 0 always makes 0.
inline u16 float_to_finite_half(float x) { return float_to_half(fminf(fmaxf(x, -65504.0f), 65504.0f)); }

// 16 bytes of weights, read once: they leave L1 to what is read again.
inline uint4 load_once(const uint4* from) {
    uint4 x;
    asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
        : "l"(__cvta_generic_to_global(from)));
    return x;
}

// c += a·b on tensor cores: a is 16 by 16 halves, b 16 by 8, c 16 by 8 f32. With g = lane / 4 and t = lane % 4:
// a0 holds row g, columns 2t and 2t + 1; a1 row g + 8; a2 and a3 the same of columns + 8; b0 rows 2t, 2t + 1 of
// column g, b1 those + 8; c0 and c1 row g, columns 2t and 2t + 1; c2 and c3 row g + 8. Which element of k a
// column of a stands for is ours to choose, if b's rows follow: kernels take 8 neighbours a lane, one 16-byte load.
inline void mma(float (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// sampling.rs's exp, exact: the order of operations is its definition.
inline float exact_exp(float x) {
    float clamped = x < 88.0f ? x : 88.0f;
    float rounded = __fmaf_rn(clamped, 1.44269504f, 12582912.0f);
    float n = __fadd_rn(rounded, -12582912.0f);
    float r = __fmaf_rn(n, 2.1219444e-4f, __fmaf_rn(n, -0.6933594f, clamped));
    float p = 1.9875691e-4f;
    p = __fmaf_rn(p, r, 1.3981999e-3f);
    p = __fmaf_rn(p, r, 8.333452e-3f);
    p = __fmaf_rn(p, r, 4.1665796e-2f);
    p = __fmaf_rn(p, r, 1.6666665e-1f);
    p = __fmaf_rn(p, r, 0.5f);
    float mantissa = __fadd_rn(__fmaf_rn(p, __fmul_rn(r, r), r), 1.0f);
    float power = __uint_as_float((__float_as_uint(rounded) << 23) + 0x3f800000u);
    return x > -87.0f ? __fmul_rn(mantissa, power) : 0.0f;
}

// vocabulary.rs's clean, exact: NaN becomes -inf, +inf the largest finite number.
inline float clean(float x) {
    float number = x > -INFINITY_F ? x : -INFINITY_F;
    return number < LARGEST_F ? number : LARGEST_F;
}

// top_k.rs's key, exact: a logit and its token as one number, the larger the earlier; both zeros are one.
inline u64 key_of(float logit, u32 token) {
    u32 bits = __float_as_uint(__fadd_rn(logit, 0.0f));
    u32 ordered = bits >> 31 ? ~bits : bits | 0x80000000u;
    return ((u64)ordered << 32) | (u64)(u32)~token;
}

inline u32 token_of(u64 key) { return ~(u32)key; }

inline float logit_of(u64 key) {
    u32 ordered = (u32)(key >> 32);
    return __uint_as_float(ordered >> 31 ? ordered & 0x7fffffffu : ~ordered);
}

// Sums (and maxima) over a block, in one tree whatever the numbers: every thread gets the result. `space` holds
// blockDim.x elements, a power of two.
template <typename T>
inline T block_sum(T x, T* space) {
    u32 at = threadIdx.x;
    __syncthreads();
    space[at] = x;
    __syncthreads();
    for (u32 half = blockDim.x / 2; half > 0; half /= 2) {
        if (at < half) space[at] = space[at] + space[at + half];
        __syncthreads();
    }
    T sum = space[0];
    __syncthreads();
    return sum;
}

template <typename T>
inline T block_max(T x, T* space) {
    u32 at = threadIdx.x;
    __syncthreads();
    space[at] = x;
    __syncthreads();
    for (u32 half = blockDim.x / 2; half > 0; half /= 2) {
        if (at < half) space[at] = space[at + half] > space[at] ? space[at + half] : space[at];
        __syncthreads();
    }
    T most = space[0];
    __syncthreads();
    return most;
}
