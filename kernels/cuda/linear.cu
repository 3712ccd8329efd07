// Linear layers for any number of rows: out[r][i] = sum over k of W[i][k] * a[r][k], and what follows it.
//
// Weights [n, k] lie as matrix.cuh says; activations come from prepare.cu: f16 with a power of two a row. A block makes
// one tile of 16 outputs for up to 8 * G rows. Its 8 warps take the pairs of 64 elements of k in turn (warp w: w,
// w + 8, ...), weights as the 16 by 16 operand of mma, activations as the 16 by 8 one; their sums are added in
// order of warp. So the order over k depends on k alone: not on the rows, not on G. One row takes the road of 64.
//
// Weights enter mma exactly: F16 as they are, BF16 as f16 after a power of two a row (pack.rs), quants as whole numbers (their block's scale, and Q4_1's minimum
// times the block's sum of activations, follow in f32). F32 is rounded to f16 after a power of two a row of W. So
// results differ from exact ones by the activations' rounding to 11 bits, and F32's.
//
// Jobs: up to three matrices side by side in one launch, each with what is done with its results:
//   STORE out[row] = r   ADD out[row] += r   GATE_UP out[row] = silu(r of job 0) * r of job 1, tile by tile
//   QUERY RoPE of neighbouring pairs, to out   KEY the same, to the cache   VALUE to the cache
// Launch: grid (tiles of all jobs, rows / 8G rounded up), 256 threads, linear_<G> for G in 1, 2, 3, 4, 8; (4 G + 0.5 G)
// KiB of shared memory. Bytes: the weights once a grid row, activations from L2 and L1.
// CPU twins: cpu/linear.rs, cpu/silu.rs, cpu/rope.rs, cpu/cache.rs; within the rounding above.
#include "matrix.cuh"

enum Kind : u32 { STORE = 0, ADD = 1, GATE_UP = 2, QUERY = 3, KEY = 4, VALUE = 5 };

struct Job {
    const uint4* quants;
    const void* scales;
    const float* bias;
    void* out;
    u32 format, n, kind, first_tile;
};

struct Linear {
    Job jobs[3];
    const u16* acts;
    const float* inverse;
    const float* sums;
    // For STORE, where a row goes; null: to its own place.
    const u32* places;
    // For QUERY, KEY and VALUE: cosines and sines [positions, D / 2], positions and slots [rows].
    const float2* turns;
    const u32* positions;
    const u32* slots;
    u32 rows, padded, pairs, head_width, kv_heads, layers, layer;
};

enum : u32 { WARPS = 8 };

// Which job a tile belongs to, without indexing parameters (that would copy them to local memory).
inline Job job_of(const Linear& p, u32 index) {
#define PICK(field) (index == 0 ? p.jobs[0].field : index == 1 ? p.jobs[1].field : p.jobs[2].field)
    return {PICK(quants), PICK(scales), PICK(bias), PICK(out), PICK(format), PICK(n), PICK(kind), PICK(first_tile)};
#undef PICK
}

// 8 signed bytes as 4 pairs of halves: 1024 + (q + 128) less 1152, all exact.
inline void widen_bytes(u32 low, u32 high, u32 (&to)[4]) {
    low ^= 0x80808080u;
    high ^= 0x80808080u;
    to[0] = sub_halves(__byte_perm(low, 0x64646464u, 0x4140), 0x64806480u);
    to[1] = sub_halves(__byte_perm(low, 0x64646464u, 0x4342), 0x64806480u);
    to[2] = sub_halves(__byte_perm(high, 0x64646464u, 0x4140), 0x64806480u);
    to[3] = sub_halves(__byte_perm(high, 0x64646464u, 0x4342), 0x64806480u);
}

// 8 nibbles as 4 pairs of halves, less 8 for Q4_0.
template <bool CENTRED>
inline void widen_nibbles(u32 word, u32 (&to)[4]) {
    for (u32 i = 0; i < 4; i++)
        to[i] = sub_halves((word >> 4 * i & 0x000f000fu) | 0x64006400u, CENTRED ? 0x64086408u : 0x64006400u);
}


// Loads what a lane has of a pair, before anything is computed with it.
template <u32 FORMAT>
struct Loaded {
    uint4 units[FORMAT == F32 ? 8 : FORMAT == F16 ? 4 : FORMAT == Q8_0 ? 2 : 1];
    u32 scales[4];

    inline void load(const uint4* quants, const void* all_scales, u32 pair, u32 lane) {
        constexpr u32 UNITS = sizeof(units) / sizeof(uint4);
        for (u32 i = 0; i < UNITS; i++) units[i] = load_once(quants + (u64)(pair * UNITS + i) * WARP + lane);
        if (FORMAT == Q8_0 || FORMAT == Q4_0) {
            uint2 s = __ldg((const uint2*)all_scales + pair * 8 + lane / 4);
            scales[0] = s.x, scales[1] = s.y;
        } else if (FORMAT == Q4_1) {
            uint4 s = __ldg((const uint4*)all_scales + pair * 8 + lane / 4);
            scales[0] = s.x, scales[1] = s.y, scales[2] = s.z, scales[3] = s.w;
        }
    }

    inline void widen(u32 block, float low_scale, float high_scale, u32 (&a)[4], u32 (&b)[4]) const {
        if (FORMAT == F32) {
            for (u32 i = 0; i < 2; i++) {
                uint4 x = units[block * 4 + i], y = units[block * 4 + 2 + i];
                a[2 * i] = pack_halves(__uint_as_float(x.x) * low_scale, __uint_as_float(x.y) * low_scale);
                a[2 * i + 1] = pack_halves(__uint_as_float(x.z) * low_scale, __uint_as_float(x.w) * low_scale);
                b[2 * i] = pack_halves(__uint_as_float(y.x) * high_scale, __uint_as_float(y.y) * high_scale);
                b[2 * i + 1] = pack_halves(__uint_as_float(y.z) * high_scale, __uint_as_float(y.w) * high_scale);
            }
        } else if (FORMAT == F16) {
            uint4 x = units[block * 2], y = units[block * 2 + 1];
            a[0] = x.x, a[1] = x.y, a[2] = x.z, a[3] = x.w;
            b[0] = y.x, b[1] = y.y, b[2] = y.z, b[3] = y.w;
        } else if (FORMAT == Q8_0) {
            uint4 x = units[block];
            widen_bytes(x.x, x.y, a);
            widen_bytes(x.z, x.w, b);
        } else {
            uint4 x = units[0];
            widen_nibbles<FORMAT == Q4_0>(block ? x.z : x.x, a);
            widen_nibbles<FORMAT == Q4_0>(block ? x.w : x.y, b);
        }
    }
};

// Adds one warp's share of a tile to acc.
template <u32 G, u32 FORMAT>
inline void multiply(const Linear& p, const Job& job, u32 tile, u32 first_row, u32 warp, u32 lane, float (&acc)[G][4]) {
    u32 group = lane / 4, t = lane % 4;
    const uint4* quants = job.quants + (u64)tile * p.pairs * units_of(FORMAT);
    const void* scales = (const u8*)job.scales + (u64)tile * p.pairs * (FORMAT == Q4_1 ? 128 : 64);
    const u16* acts = p.acts + (u64)(first_row + group) * p.pairs * PAIR + 8 * t;
    float low_scale = 1.0f, high_scale = 1.0f;
    if (FORMAT == F32) {
        low_scale = ((const float*)job.scales)[tile * TILE_ROWS + group];
        high_scale = ((const float*)job.scales)[tile * TILE_ROWS + group + 8];
    }
#pragma unroll 2
    for (u32 pair = warp; pair < p.pairs; pair += WARPS) {
        Loaded<FORMAT> loaded;
        loaded.load(quants, scales, pair, lane);
#pragma unroll
        for (u32 block = 0; block < 2; block++) {
            u32 a[4], b[4];
            loaded.widen(block, low_scale, high_scale, a, b);
#pragma unroll
            for (u32 j = 0; j < G; j++) {
                const u16* from = acts + (u64)(8 * j) * p.pairs * PAIR + pair * PAIR + block * 32;
                uint4 x = __ldg((const uint4*)from);
                if (FORMAT == F32 || FORMAT == F16) {
                    mma(acc[j], a[0], b[0], a[1], b[1], x.x, x.y);
                    mma(acc[j], a[2], b[2], a[3], b[3], x.z, x.w);
                    continue;
                }
                float whole[4] = {0.0f, 0.0f, 0.0f, 0.0f};
                mma(whole, a[0], b[0], a[1], b[1], x.x, x.y);
                mma(whole, a[2], b[2], a[3], b[3], x.z, x.w);
                u32 d = FORMAT == Q4_1 ? loaded.scales[2 * block] : loaded.scales[block];
                acc[j][0] = __fmaf_rn(low_half(d), whole[0], acc[j][0]);
                acc[j][1] = __fmaf_rn(low_half(d), whole[1], acc[j][1]);
                acc[j][2] = __fmaf_rn(high_half(d), whole[2], acc[j][2]);
                acc[j][3] = __fmaf_rn(high_half(d), whole[3], acc[j][3]);
                if (FORMAT == Q4_1) {
                    u32 m = loaded.scales[2 * block + 1];
                    u64 at = (u64)(2 * pair + block) * p.padded + first_row + 8 * j + 2 * t;
                    float2 sum = __ldg((const float2*)(p.sums + at));
                    acc[j][0] = __fmaf_rn(low_half(m), sum.x, acc[j][0]);
                    acc[j][1] = __fmaf_rn(low_half(m), sum.y, acc[j][1]);
                    acc[j][2] = __fmaf_rn(high_half(m), sum.x, acc[j][2]);
                    acc[j][3] = __fmaf_rn(high_half(m), sum.y, acc[j][3]);
                }
            }
        }
    }
}

// One tile's results to `results`, [8 * G rows, 16], with every power of two taken back and the bias added.
template <u32 G>
inline void tile_results(const Linear& p, const Job& job, u32 tile, u32 first_row, float* partial, float* results) {
    u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    float acc[G][4];
#pragma unroll
    for (u32 j = 0; j < G; j++) acc[j][0] = acc[j][1] = acc[j][2] = acc[j][3] = 0.0f;
    switch (job.format) {
        case F32: multiply<G, F32>(p, job, tile, first_row, warp, lane, acc); break;
        case F16:
        case BF16: multiply<G, F16>(p, job, tile, first_row, warp, lane, acc); break;
        case Q8_0: multiply<G, Q8_0>(p, job, tile, first_row, warp, lane, acc); break;
        case Q4_0: multiply<G, Q4_0>(p, job, tile, first_row, warp, lane, acc); break;
        default: multiply<G, Q4_1>(p, job, tile, first_row, warp, lane, acc); break;
    }
    // partial: [warp][8 * G rows][16]
#pragma unroll
    for (u32 j = 0; j < G; j++) {
        float* to = partial + (warp * 8 * G + 8 * j + lane % 4 * 2) * TILE_ROWS + lane / 4;
        to[0] = acc[j][0], to[TILE_ROWS] = acc[j][1];
        to[8] = acc[j][2], to[TILE_ROWS + 8] = acc[j][3];
    }
    __syncthreads();
    for (u32 at = threadIdx.x; at < 8 * G * TILE_ROWS; at += WARPS * WARP) {
        float sum = partial[at];
        for (u32 w = 1; w < WARPS; w++) sum += partial[w * 8 * G * TILE_ROWS + at];
        u32 column = tile * TILE_ROWS + at % TILE_ROWS;
        sum *= p.inverse[first_row + at / TILE_ROWS];
        if (job.format == F32 || job.format == BF16) sum *= ((const float*)job.scales)[(job.n + 15) / 16 * 16 + column];
        if (job.bias && column < job.n) sum += job.bias[column];
        results[at] = sum;
    }
    __syncthreads();
}

// Turns the pair that starts at an even column.
inline float2 turned(const Linear& p, u32 row, u32 column, float a, float b) {
    u32 pair = column % p.head_width / 2;
    float2 turn = p.turns[(u64)p.positions[row] * (p.head_width / 2) + pair];
    return make_float2(a * turn.x - b * turn.y, a * turn.y + b * turn.x);
}

// Where a dimension of a key (or value) of a row lies in the cache: keys [pages, layers, KV, 32, D'], values
// [pages, layers, KV, D', 32], with D' the head's width rounded up to 32.
inline u64 place(const Linear& p, u32 row, u32 column, bool value) {
    u32 slot = p.slots[row], head = column / p.head_width, d = column % p.head_width;
    u32 width = (p.head_width + 31) / 32 * 32;
    u64 tile = ((u64)(slot / PAGE_TOKENS) * p.layers + p.layer) * p.kv_heads + head;
    u32 offset = slot % PAGE_TOKENS;
    return tile * width * PAGE_TOKENS + (value ? d * PAGE_TOKENS + offset : offset * width + d);
}

// What is done with one tile: a thread takes two neighbouring columns of a row.
template <u32 G>
inline void finish(const Linear& p, const Job& job, u32 tile, u32 first_row, const float* first, const float* second) {
    for (u32 i = threadIdx.x; i < 8 * G * TILE_ROWS / 2; i += WARPS * WARP) {
        u32 at = 2 * i, row = first_row + at / TILE_ROWS, column = tile * TILE_ROWS + at % TILE_ROWS;
        if (row >= p.rows || column >= job.n) continue;
        float a = first[at], b = first[at + 1];
        bool both = column + 1 < job.n;
        u32 to = job.kind == STORE && p.places ? p.places[row] : row;
        float* out = (float*)job.out + (u64)to * job.n + column;
        if (job.kind == ADD) {
            a += out[0];
            if (both) b += out[1];
        } else if (job.kind == GATE_UP) {
            a = (a * second[at]) / (1.0f + exact_exp(0.0f - a));
            b = (b * second[at + 1]) / (1.0f + exact_exp(0.0f - b));
        } else if (job.kind == QUERY || job.kind == KEY) {
            float2 pair = turned(p, row, column, a, b);
            a = pair.x, b = pair.y;
        }
        if (job.kind == KEY || job.kind == VALUE) {
            if (p.slots[row] == NO_SLOT) continue;
            u16* cache = (u16*)job.out;
            cache[place(p, row, column, job.kind == VALUE)] = float_to_finite_half(a);
            if (both) cache[place(p, row, column + 1, job.kind == VALUE)] = float_to_finite_half(b);
            continue;
        }
        out[0] = a;
        if (both) out[1] = b;
    }
}

template <u32 G>
inline void linear(const Linear& p) {
    __shared__ float partial[WARPS * 8 * G * TILE_ROWS];
    __shared__ float results[2 * 8 * G * TILE_ROWS];
    u32 tile = blockIdx.x, first_row = blockIdx.y * 8 * G;
    bool gate_up = p.jobs[0].kind == GATE_UP;
    u32 index = gate_up ? 0 : tile >= p.jobs[2].first_tile ? 2 : tile >= p.jobs[1].first_tile ? 1 : 0;
    // One copy of the code for both tiles of a gate: it is large.
#pragma unroll 1
    for (u32 i = 0; i <= (gate_up ? 1u : 0u); i++) {
        Job job = job_of(p, index + i);
        tile_results<G>(p, job, tile - job.first_tile, first_row, partial, results + i * 8 * G * TILE_ROWS);
    }
    Job job = job_of(p, index);
    finish<G>(p, job, tile - job.first_tile, first_row, results, results + 8 * G * TILE_ROWS);
}

extern "C" __global__ void __launch_bounds__(256) linear_1(const Linear p) { linear<1>(p); }
extern "C" __global__ void __launch_bounds__(256) linear_2(const Linear p) { linear<2>(p); }
extern "C" __global__ void __launch_bounds__(256) linear_3(const Linear p) { linear<3>(p); }
extern "C" __global__ void __launch_bounds__(256) linear_4(const Linear p) { linear<4>(p); }
extern "C" __global__ void __launch_bounds__(256) linear_8(const Linear p) { linear<8>(p); }
