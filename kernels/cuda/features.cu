// Value heads: prefix sums of the residual stream, linear heads, one-pass heads, features for learning.
//
// accumulate: sums[slot] = (response_count > 1 ? sums[slot of position - 1] : 0) + x where response_count > 0. Rows of
//   a chain depend on each other and are taken in order; chains (first row, rows) do not. Grid (chains, H / 256 rounded
//   up), 256 threads, one dimension each.
// values: residual·x + mean·m + (1 - r) (share·m) + (remaining r + bias), m = sum / response_count. Grid R, 256 threads.
// project: p[r][i] = state[i]·[x; m; remaining; 1]. Grid (R, rank), 256 threads.
// score: sum_r p_r (B e)_r + token_bias: B'p by dimension, r in order, then one product. Grid tokens, 256 threads.
// read_features: [x; m; remaining; 1], [R, 2H + 2]. Grid R, 256 threads.
// Shapes: x [R, H] f32, sums f32 [pages, taps, 32, H], weights f32. A sum over H runs over 256 threads, each in steps of
// 256 with fused products, then a tree: an order that depends on H only.
// Bytes: 8H a row and head read, weights from L2. CPU twin: cpu/features.rs, within f32 rounding; accumulate to the bit.
#include "matrix.cuh"

struct Features {
    const float* x;
    float* sums;
    const u32* positions;
    const u32* sequences;
    const u32* slots;
    const u32* counts;
    const float* remaining;
    const u32* table_starts;
    const u32* pages;
    u32 hidden, taps, tap;
};

enum : u32 { THREADS = 256 };

inline u64 sum_at(const Features& p, u32 slot) {
    return (((u64)(slot / PAGE_TOKENS) * p.taps + p.tap) * PAGE_TOKENS + slot % PAGE_TOKENS) * p.hidden;
}

// The running mean at a row, or none.
struct Mean {
    const float* sums;
    float count;

    inline float at(u32 d) const { return count > 0.0f ? sums[d] / count : 0.0f; }
};

inline Mean mean_of(const Features& p, u32 row) { return {p.sums + sum_at(p, p.slots[row]), (float)p.counts[row]}; }

struct Accumulate {
    Features features;
    // First row and rows of each chain.
    const uint2* chains;
};

extern "C" __global__ void __launch_bounds__(256) accumulate(const Accumulate a) {
    const Features& p = a.features;
    u32 d = blockIdx.y * THREADS + threadIdx.x;
    if (d >= p.hidden) return;
    uint2 chain = a.chains[blockIdx.x];
    for (u32 row = chain.x; row < chain.x + chain.y; row++) {
        if (p.counts[row] == 0) continue;
        float before = 0.0f;
        if (p.counts[row] > 1) {
            u32 position = p.positions[row] - 1;
            u32 page = p.pages[p.table_starts[p.sequences[row]] + position / PAGE_TOKENS];
            before = p.sums[sum_at(p, page * PAGE_TOKENS + position % PAGE_TOKENS) + d];
        }
        float x = p.x[(u64)row * p.hidden + d];
        p.sums[sum_at(p, p.slots[row]) + d] = p.counts[row] > 1 ? before + x : x;
    }
}

struct Values {
    Features features;
    const float* residual;
    const float* mean;
    // Null where the head has none.
    const float* share;
    float* out;
    float remaining, bias;
};

extern "C" __global__ void __launch_bounds__(256) values(const Values a) {
    __shared__ float space[THREADS];
    const Features& p = a.features;
    u32 row = blockIdx.x;
    const float* x = p.x + (u64)row * p.hidden;
    Mean mean = mean_of(p, row);
    float parts[3] = {0.0f, 0.0f, 0.0f};
    for (u32 d = threadIdx.x; d < p.hidden; d += THREADS) {
        float m = mean.at(d);
        parts[0] = __fmaf_rn(a.residual[d], x[d], parts[0]);
        parts[1] = __fmaf_rn(a.mean[d], m, parts[1]);
        if (a.share) parts[2] = __fmaf_rn(a.share[d], m, parts[2]);
    }
    float products = block_sum(parts[0], space) + block_sum(parts[1], space);
    float share = block_sum(parts[2], space), remaining = p.remaining[row];
    if (a.share) products += (1.0f - remaining) * share;
    if (threadIdx.x == 0) a.out[row] = products + (a.remaining * remaining + a.bias);
}

struct Project {
    Features features;
    const float* state;
    float* out;
};

extern "C" __global__ void __launch_bounds__(256) project(const Project a) {
    __shared__ float space[THREADS];
    const Features& p = a.features;
    u32 row = blockIdx.x, rank = gridDim.y, width = 2 * p.hidden + 2;
    const float* x = p.x + (u64)row * p.hidden;
    const float* state = a.state + (u64)blockIdx.y * width;
    Mean mean = mean_of(p, row);
    float parts[2] = {0.0f, 0.0f};
    for (u32 d = threadIdx.x; d < p.hidden; d += THREADS) {
        parts[0] = __fmaf_rn(state[d], x[d], parts[0]);
        parts[1] = __fmaf_rn(state[p.hidden + d], mean.at(d), parts[1]);
    }
    float products = block_sum(parts[0], space) + block_sum(parts[1], space);
    if (threadIdx.x == 0)
        a.out[(u64)row * rank + blockIdx.y] = products + (state[width - 2] * p.remaining[row] + state[width - 1]);
}

struct Score {
    const void* quants;
    const void* scales;
    const float* embedding;
    const float* projection;
    // f16; tokens past `biases` have none.
    const u16* token_bias;
    const u32* tokens;
    float* out;
    u32 format, rows, pairs, hidden, rank, biases;
};

extern "C" __global__ void __launch_bounds__(256) score(const Score p) {
    __shared__ float space[THREADS];
    u32 token = p.tokens[blockIdx.x];
    float product = 0.0f;
    for (u32 d = threadIdx.x; d < p.hidden; d += THREADS) {
        float direction = 0.0f;
        for (u32 r = 0; r < p.rank; r++)
            direction = __fmaf_rn(p.embedding[(u64)r * p.hidden + d], p.projection[r], direction);
        product = __fmaf_rn(direction, element(p.format, p.quants, p.scales, p.rows, p.pairs, token, d), product);
    }
    float sum = block_sum(product, space);
    if (threadIdx.x == 0) p.out[blockIdx.x] = sum + (token < p.biases ? half_to_float(p.token_bias[token]) : 0.0f);
}

struct ReadFeatures {
    Features features;
    float* out;
};

extern "C" __global__ void __launch_bounds__(256) read_features(const ReadFeatures a) {
    const Features& p = a.features;
    u32 row = blockIdx.x, width = 2 * p.hidden + 2;
    float* out = a.out + (u64)row * width;
    Mean mean = mean_of(p, row);
    for (u32 d = threadIdx.x; d < p.hidden; d += THREADS) {
        out[d] = p.x[(u64)row * p.hidden + d];
        out[p.hidden + d] = mean.at(d);
    }
    if (threadIdx.x == 0) out[width - 2] = p.remaining[row], out[width - 1] = 1.0f;
}
