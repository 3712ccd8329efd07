// Activations as linear layers take them: norm (or not), a power of two into the range of f16, f16.
//
//   v = (x / sqrt(mean(x^2) + epsilon)) * gain   or   v = x
//   s = the power of two with 2^14 <= s * max|v| < 2^15;   acts = f16(s * v);   inverse = 1 / s
//   sums[block of 32] = sum of acts, f32: what the minima of Q4_1 are multiplied by
//
// Shapes: x [rows, width] f32, taken by `from` where that is given; acts [padded, 64 * pairs] f16; inverse [padded];
// sums [2 * pairs, padded]. Rows past `rows` and elements past `width` are zero.
// Launch: one block of 256 threads a padded row; 1 KiB of shared memory.
// Bytes: 4 * width read (three times, twice of them from L1), 2 * width written a row.
// A row's numbers depend on the row alone. CPU twin: cpu/norm.rs (the norm), within f32 rounding.
#include "common.cuh"

struct Prepare {
    const float* x;
    const u32* from;
    const float* gain;
    u16* acts;
    float* inverse;
    float* sums;
    u32 rows, width, pairs, padded;
    float epsilon;
};

enum : u32 { THREADS = 256 };

inline float value(const Prepare& p, const float* x, float scale, u32 k) {
    float v = x[k];
    return p.gain ? (v * scale) * p.gain[k] : v;
}

extern "C" __global__ void __launch_bounds__(256) prepare(const Prepare p) {
    __shared__ float space[THREADS];
    u32 row = blockIdx.x, width = p.pairs * 64;
    u16* acts = p.acts + (u64)row * width;
    bool real = row < p.rows;
    const float* x = p.x + (u64)(real ? (p.from ? p.from[row] : row) : 0) * p.width;
    float scale = 1.0f;
    if (real && p.gain) {
        float squares = 0.0f;
        for (u32 k = threadIdx.x; k < p.width; k += THREADS) squares = __fmaf_rn(x[k], x[k], squares);
        float mean = block_sum(squares, space) / (float)p.width;
        scale = 1.0f / sqrtf(mean + p.epsilon);
    }
    // Magnitudes are compared by their bits, which puts infinities and NaN above all.
    u32 magnitude = 0;
    if (real)
        for (u32 k = threadIdx.x; k < p.width; k += THREADS)
            magnitude = max(magnitude, __float_as_uint(value(p, x, scale, k)) & 0x7fffffffu);
    magnitude = block_max(magnitude, (u32*)space);
    // 2^(14 - exponent), as far as it and its inverse are normal numbers; 1 where there is no largest number.
    u32 biased = magnitude >= 0x7f800000u ? 127 : min(max(268 - (int)(magnitude >> 23), 1), 253);
    float up = __uint_as_float(biased << 23), down = __uint_as_float((254 - biased) << 23);
    if (threadIdx.x == 0) p.inverse[row] = real ? down : 0.0f;

    // Each thread makes 8 neighbours, a 16-byte store; four threads have a block of 32. Loops are of equal length for
    // all lanes of a warp: width is a multiple of 64, so the four threads of a block stand together.
    for (u32 first = threadIdx.x * 8; first < (width + 255) / 256 * 256; first += THREADS * 8) {
        u32 pairs[4] = {0, 0, 0, 0};
        float sum = 0.0f;
        for (u32 i = 0; i < 4; i++) {
            u32 k = first + 2 * i;
            float low = real && k < p.width ? value(p, x, scale, k) * up : 0.0f;
            float high = real && k + 1 < p.width ? value(p, x, scale, k + 1) * up : 0.0f;
            pairs[i] = pack_halves(low, high);
            sum += low_half(pairs[i]) + high_half(pairs[i]);
        }
        sum += __shfl_xor_sync(ALL_LANES, sum, 1);
        sum += __shfl_xor_sync(ALL_LANES, sum, 2);
        if (first < width) {
            *(uint4*)(acts + first) = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
            if (threadIdx.x % 4 == 0) p.sums[(u64)(first / 32) * p.padded + row] = sum;
        }
    }
}
