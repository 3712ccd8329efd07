// Causal grouped-query attention over the paged cache, for decode and prefill alike.
//
// For a row at position p and a query head: scores q·k_j / sqrt(D) over positions j < p in tiles of 32 keys (a page)
// from position 0, softmax merged tile by tile within a split of 256 keys, the splits merged in order, then the row's
// own key, wherever its slot is:
//
//   m' = max(m, max_j s_j)    l' = l e^(m-m') + sum_j e^(s_j-m')    o' = o e^(m-m') + sum_j e^(s_j-m') v_j
//
// Shapes: q, out [R, A*D] f32; keys f16 [pages, layers, KV, 32, D'], values f16 [pages, layers, KV, D', 32], D' the
// head's width rounded up to 32, the rest zero. A row's numbers depend on its own position only.
//
// attend_<D'>: a warp takes 16 queries (heads of a group, then rows of a run: rows of one sequence that stand together)
// of one key head and one split. Scores are mma of 16 queries by 8 keys, four to a tile; which key is which column is
// chosen so that a lane's 8 weights are those of 8 neighbouring keys, the second mma's operand as they are. All loads
// are 16 bytes, straight to registers. Queries and weights are rounded to f16; sums are f32.
// Launch: grid (query tiles / 4 rounded up, KV, splits), 128 threads: four tiles, as a rule of one sequence, so that
// candidates read their shared prefix from L1. Writes (m, l, o) of the split to `parts`.
// merge_splits: grid (R, A / 4 rounded up), 128 threads, a warp a head: splits in order, own key last.
// Bytes: 4 * D * KV a position and layer, once for every 4 tiles; parts 4 * (D' + 2) a row, head and split, twice.
// CPU twin: cpu/attention.rs, within the rounding of q and of weights to 11 bits.
#include "common.cuh"

struct Attend {
    const float* q;
    float* out;
    const u16* keys;
    const u16* values;
    // Query tiles: first row of the run, queries of the run, first query of the tile, sequence.
    const uint4* tiles;
    const u32* positions;
    const u32* slots;
    const u32* sequences;
    const u32* table_starts;
    const u32* pages;
    // [rows from first_row on, A, splits, D' + 2]: o, then m and l.
    float* parts;
    u32 tile_count, first_row, heads, kv_heads, head_width, layers, layer, splits;
    float scale;
};

enum : u32 { SPLIT = 256 };

// The row and head of a query of a run, and where its numbers start in [R, A*D].
struct Query {
    u32 row, head;
    bool real;
};

inline Query query_of(const Attend& p, uint4 tile, u32 at, u32 kv_head) {
    u32 group = p.heads / p.kv_heads, query = tile.z + at;
    return {tile.x + query / group, kv_head * group + query % group, query < tile.y};
}

// Lane t's eight dimensions from `first` on, scaled, as pairs of halves; zero past the head's width.
inline void load_query(const Attend& p, Query query, u32 first, u32 (&to)[4]) {
    const float* from = p.q + ((u64)query.row * p.heads + query.head) * p.head_width;
    for (u32 i = 0; i < 4; i++) {
        u32 d = first + 2 * i;
        float low = query.real && d < p.head_width ? from[d] * p.scale : 0.0f;
        float high = query.real && d + 1 < p.head_width ? from[d + 1] * p.scale : 0.0f;
        to[i] = (u32)float_to_finite_half(low) | ((u32)float_to_finite_half(high) << 16);
    }
}

// The largest of four lanes that hold one query, and their sum.
inline float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 1));
    return fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 2));
}

inline float quad_sum(float x) {
    x += __shfl_xor_sync(ALL_LANES, x, 1);
    return x + __shfl_xor_sync(ALL_LANES, x, 2);
}

// The running softmax of the two queries that a lane holds, g and g + 8 of the tile: o[8 dimensions][c] as mma has c.
template <u32 WIDTH>
struct State {
    float largest[2], sum[2], o[WIDTH / 8][4];
};

// Merges a tile of 32 keys; `counts` of its keys come before each of the two rows.
template <u32 WIDTH>
inline void take_tile(State<WIDTH>& state, const u32 (&q)[WIDTH / 32][2][4], const u16* keys, const u16* values,
                      const int (&counts)[2], u32 lane) {
    u32 g = lane / 4, t = lane % 4;
    float scores[4][4];
#pragma unroll
    for (u32 j = 0; j < 4; j++) {
        scores[j][0] = scores[j][1] = scores[j][2] = scores[j][3] = 0.0f;
        // Column c of tile j is key 8 (c / 2) + 2j + c % 2.
        const u16* key = keys + (8 * (g / 2) + 2 * j + g % 2) * WIDTH + 8 * t;
#pragma unroll
        for (u32 chunk = 0; chunk < WIDTH / 32; chunk++) {
            uint4 k = *(const uint4*)(key + 32 * chunk);
            mma(scores[j], q[chunk][0][0], q[chunk][1][0], q[chunk][0][1], q[chunk][1][1], k.x, k.y);
            mma(scores[j], q[chunk][0][2], q[chunk][1][2], q[chunk][0][3], q[chunk][1][3], k.z, k.w);
        }
    }
    u32 weights[2][4];
    float decay[2];
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        float most = -INFINITY_F;
#pragma unroll
        for (u32 i = 0; i < 8; i++) {
            float& score = scores[i / 2][2 * half + i % 2];
            // Keys past a row's position come later, or are whatever a page held before.
            if ((int)(8 * t + i) >= counts[half]) score = -INFINITY_F;
            most = fmaxf(most, score);
        }
        float largest = fmaxf(state.largest[half], quad_max(most));
        // Where no key has come yet the difference is NaN, whose exp is 0.
        decay[half] = exact_exp(state.largest[half] - largest);
        float sum = 0.0f;
#pragma unroll
        for (u32 j = 0; j < 4; j++) {
            weights[half][j] = pack_halves(exact_exp(scores[j][2 * half] - largest),
                                           exact_exp(scores[j][2 * half + 1] - largest));
            sum += low_half(weights[half][j]) + high_half(weights[half][j]);
        }
        state.sum[half] = __fmaf_rn(state.sum[half], decay[half], sum);
        state.largest[half] = largest;
    }
#pragma unroll
    for (u32 n = 0; n < WIDTH / 8; n++) {
        float(&o)[4] = state.o[n];
        o[0] *= decay[0], o[1] *= decay[0], o[2] *= decay[1], o[3] *= decay[1];
        uint4 v = *(const uint4*)(values + (8 * n + g) * PAGE_TOKENS + 8 * t);
        mma(o, weights[0][0], weights[1][0], weights[0][1], weights[1][1], v.x, v.y);
        mma(o, weights[0][2], weights[1][2], weights[0][3], weights[1][3], v.z, v.w);
    }
}

// Writes a lane's part of one query's split.
template <u32 WIDTH>
inline void store_part(const Attend& p, const State<WIDTH>& state, Query query, u32 half, u32 split, u32 t) {
    float sum = quad_sum(state.sum[half]);
    if (!query.real) return;
    float* part = p.parts + (((u64)(query.row - p.first_row) * p.heads + query.head) * p.splits + split) * (WIDTH + 2);
#pragma unroll
    for (u32 n = 0; n < WIDTH / 8; n++) {
        part[8 * n + 2 * t] = state.o[n][2 * half];
        part[8 * n + 2 * t + 1] = state.o[n][2 * half + 1];
    }
    if (t == 0) part[WIDTH] = state.largest[half], part[WIDTH + 1] = sum;
}

template <u32 WIDTH>
inline void attend(const Attend& p) {
    u32 index = blockIdx.x * 4 + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    u32 kv_head = blockIdx.y, split = blockIdx.z;
    if (index >= p.tile_count) return;
    uint4 tile = p.tiles[index];
    Query queries[2] = {query_of(p, tile, lane / 4, kv_head), query_of(p, tile, lane / 4 + 8, kv_head)};
    int positions[2];
    for (u32 half = 0; half < 2; half++)
        positions[half] = queries[half].real ? (int)p.positions[queries[half].row] : 0;
    int end = max(positions[0], positions[1]);
    for (u32 step = 4; step < WARP; step *= 2) end = max(end, __shfl_xor_sync(ALL_LANES, end, step));
    int start = split * SPLIT;
    if (start >= end) return;
    end = min(end, start + (int)SPLIT);

    u32 q[WIDTH / 32][2][4];
#pragma unroll
    for (u32 chunk = 0; chunk < WIDTH / 32; chunk++)
#pragma unroll
        for (u32 half = 0; half < 2; half++) load_query(p, queries[half], 32 * chunk + 8 * (lane % 4), q[chunk][half]);
    State<WIDTH> state;
    state.largest[0] = state.largest[1] = -INFINITY_F;
    state.sum[0] = state.sum[1] = 0.0f;
#pragma unroll
    for (u32 n = 0; n < WIDTH / 8; n++) state.o[n][0] = state.o[n][1] = state.o[n][2] = state.o[n][3] = 0.0f;
    const u32* pages = p.pages + p.table_starts[tile.w];
    for (int first = start; first < end; first += PAGE_TOKENS) {
        u64 at = ((u64)pages[first / PAGE_TOKENS] * p.layers + p.layer) * p.kv_heads + kv_head;
        int counts[2] = {positions[0] - first, positions[1] - first};
        take_tile<WIDTH>(state, q, p.keys + at * WIDTH * PAGE_TOKENS, p.values + at * WIDTH * PAGE_TOKENS, counts, lane);
    }
    store_part<WIDTH>(p, state, queries[0], 0, split, lane % 4);
    store_part<WIDTH>(p, state, queries[1], 1, split, lane % 4);
}

extern "C" __global__ void __launch_bounds__(128) attend_32(const Attend p) { attend<32>(p); }
extern "C" __global__ void __launch_bounds__(128) attend_64(const Attend p) { attend<64>(p); }
extern "C" __global__ void __launch_bounds__(128) attend_96(const Attend p) { attend<96>(p); }
extern "C" __global__ void __launch_bounds__(128) attend_128(const Attend p) { attend<128>(p); }

extern "C" __global__ void __launch_bounds__(128) merge_splits(const Attend p) {
    u32 row = p.first_row + blockIdx.x, head = blockIdx.y * 4 + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    u32 slot = p.slots[row], offset = slot % PAGE_TOKENS;
    if (head >= p.heads || slot == NO_SLOT) return;
    u32 width = (p.head_width + 31) / 32 * 32, splits = (p.positions[row] + SPLIT - 1) / SPLIT;
    const float* part = p.parts + ((u64)blockIdx.x * p.heads + head) * p.splits * (width + 2);
    float largest = -INFINITY_F, sum = 0.0f, o[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    for (u32 split = 0; split < splits; split++, part += width + 2) {
        float here = part[width], most = fmaxf(largest, here);
        float decay = exact_exp(largest - most), weight = exact_exp(here - most);
        sum = __fmaf_rn(sum, decay, part[width + 1] * weight);
#pragma unroll
        for (u32 i = 0; i < 4; i++)
            if (lane + 32 * i < width) o[i] = __fmaf_rn(o[i], decay, part[lane + 32 * i] * weight);
        largest = most;
    }
    u64 tile = ((u64)(slot / PAGE_TOKENS) * p.layers + p.layer) * p.kv_heads + head / (p.heads / p.kv_heads);
    const u16* key = p.keys + tile * width * PAGE_TOKENS + offset * width;
    const u16* value = p.values + tile * width * PAGE_TOKENS + offset;
    u64 start = ((u64)row * p.heads + head) * p.head_width;
    float score = 0.0f;
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        u32 d = lane + 32 * i;
        if (d < p.head_width) score = __fmaf_rn(p.q[start + d] * p.scale, half_to_float(key[d]), score);
    }
    for (u32 step = 16; step > 0; step /= 2) score += __shfl_xor_sync(ALL_LANES, score, step);
    float most = fmaxf(largest, score), decay = exact_exp(largest - most), weight = exact_exp(score - most);
    sum = __fmaf_rn(sum, decay, weight);
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        u32 d = lane + 32 * i;
        if (d < p.head_width)
            p.out[start + d] = __fmaf_rn(o[i], decay, half_to_float(value[d * PAGE_TOKENS]) * weight) / sum;
    }
}
