// What moves in the cache and between activations: copies, and RoPE where linear.cu cannot do it on the way.
//
// rope_store: q, k, v [R, width] f32 -> q turned in place; k turned and v rounded to their slots. For RoPE of halves
//   (dimension d with d + D/2), whose partners lie in different tiles of 16 outputs. Grid R, 256 threads.
// copy_rows: to[start + i] = from[rows[i]], [., width] f32. Grid (rows, width / 256 rounded up), 256 threads.
// commit: keys and values of layers, and sums of taps, from slot to slot, in the order of the copies: a thread has one
//   dimension and makes all copies of it. Grid (layers * KV + taps, widest / 256 rounded up), 256 threads.
// Layouts: keys f16 [pages, layers, KV, 32, D'], values f16 [pages, layers, KV, D', 32], sums f32 [pages, taps, 32, H].
// Bytes: what is moved, read and written once. CPU twins: cpu/rope.rs, cpu/cache.rs, copies to the bit.
#include "common.cuh"

struct RopeStore {
    float* q;
    const float* k;
    const float* v;
    u16* keys;
    u16* values;
    const float2* turns;
    const u32* positions;
    const u32* slots;
    u32 heads, kv_heads, head_width, layers, layer;
};

extern "C" __global__ void __launch_bounds__(256) rope_store(const RopeStore p) {
    u32 row = blockIdx.x, half = p.head_width / 2, slot = p.slots[row], offset = slot % PAGE_TOKENS;
    if (slot == NO_SLOT) return;
    u32 width = (p.head_width + 31) / 32 * 32;
    const float2* turns = p.turns + (u64)p.positions[row] * half;
    u64 first_tile = ((u64)(slot / PAGE_TOKENS) * p.layers + p.layer) * p.kv_heads;
    for (u32 i = threadIdx.x; i < (p.heads + 2 * p.kv_heads) * half; i += blockDim.x) {
        u32 head = i / half, d = i % half;
        if (head < p.heads) {
            float* q = p.q + ((u64)row * p.heads + head) * p.head_width + d;
            float a = q[0], b = q[half];
            q[0] = a * turns[d].x - b * turns[d].y;
            q[half] = a * turns[d].y + b * turns[d].x;
            continue;
        }
        bool value = head >= p.heads + p.kv_heads;
        u32 kv_head = head - p.heads - (value ? p.kv_heads : 0);
        u64 from = ((u64)row * p.kv_heads + kv_head) * p.head_width + d;
        u64 tile = (first_tile + kv_head) * width * PAGE_TOKENS;
        if (value) {
            p.values[tile + d * PAGE_TOKENS + offset] = float_to_finite_half(p.v[from]);
            p.values[tile + (d + half) * PAGE_TOKENS + offset] = float_to_finite_half(p.v[from + half]);
        } else {
            float a = p.k[from], b = p.k[from + half];
            p.keys[tile + offset * width + d] = float_to_finite_half(a * turns[d].x - b * turns[d].y);
            p.keys[tile + offset * width + d + half] = float_to_finite_half(a * turns[d].y + b * turns[d].x);
        }
    }
}

struct CopyRows {
    const float* from;
    float* to;
    const u32* rows;
    u32 width;
};

extern "C" __global__ void __launch_bounds__(256) copy_rows(const CopyRows p) {
    u32 column = blockIdx.y * blockDim.x + threadIdx.x;
    if (column >= p.width) return;
    p.to[(u64)blockIdx.x * p.width + column] = p.from[(u64)p.rows[blockIdx.x] * p.width + column];
}

struct Commit {
    u16* keys;
    u16* values;
    float* sums;
    // From and to.
    const uint2* copies;
    // first_layer and layer_count of keys and values; first_tap and tap_count of sums.
    u32 count, layers, kv_heads, width, hidden, taps, first_layer, layer_count, first_tap;
};

extern "C" __global__ void __launch_bounds__(256) commit(const Commit p) {
    u32 d = blockIdx.y * blockDim.x + threadIdx.x, item = blockIdx.x, heads = p.layer_count * p.kv_heads;
    for (u32 i = 0; i < p.count; i++) {
        u32 from = p.copies[i].x, to = p.copies[i].y;
        u32 from_page = from / PAGE_TOKENS, from_offset = from % PAGE_TOKENS;
        u32 to_page = to / PAGE_TOKENS, to_offset = to % PAGE_TOKENS;
        if (item < heads && d < p.width) {
            u32 layer = p.first_layer + item / p.kv_heads, head = item % p.kv_heads;
            u64 source = (((u64)from_page * p.layers + layer) * p.kv_heads + head) * p.width * PAGE_TOKENS;
            u64 target = (((u64)to_page * p.layers + layer) * p.kv_heads + head) * p.width * PAGE_TOKENS;
            p.keys[target + to_offset * p.width + d] = p.keys[source + from_offset * p.width + d];
            p.values[target + d * PAGE_TOKENS + to_offset] = p.values[source + d * PAGE_TOKENS + from_offset];
        } else if (item >= heads && d < p.hidden) {
            u32 tap = p.first_tap + item - heads;
            u64 source = (((u64)from_page * p.taps + tap) * PAGE_TOKENS + from_offset) * p.hidden;
            u64 target = (((u64)to_page * p.taps + tap) * PAGE_TOKENS + to_offset) * p.hidden;
            p.sums[target + d] = p.sums[source + d];
        }
    }
}
