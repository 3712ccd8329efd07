// How a weight matrix [n, k] lies in device memory: the one layout that all kernels read.
//
// A tile is 16 rows of n, a pair 64 elements of k: two blocks of 32. Rows and k are filled up with zeros. Quants lie
// in the order in which lanes of a warp take them, 16 bytes a lane and load, so that each load of a warp is 512
// bytes in a row. Lane 4g + t has rows g and g + 8 of the tile and elements 8t .. 8t + 7 of each block:
//
//   F32   [tile][pair][block][4][lane]  16 bytes: row g, elements 8t and 8t + 4, then row g + 8
//   F16   [tile][pair][block][2][lane]  16 bytes: row g, row g + 8; BF16 the same, as f16 after a power of two a row
//   Q8_0  [tile][pair][block][lane]     16 bytes: 8 of row g, 8 of row g + 8
//   Q4_x  [tile][pair][lane]            16 bytes: block 0 rows g and g + 8, block 1 rows g and g + 8; in each 4 bytes
//                                       nibble i is element 8t + 2i, nibble i + 4 element 8t + 2i + 1
//
// Scales, f16: Q8_0 and Q4_0 [tile][pair][g] (block 0 d of g, d of g + 8, block 1 the same), 8 bytes; Q4_1 has
// (d, d, m, m) for each block, 16 bytes. F32 and BF16 have powers of two, f32 [2][16 tiles]: what brings each row
// into the range of f16, and its inverse. The packing is `pack.rs` in kernels/src/cuda; its CPU twin cpu/pack.rs.
#pragma once
#include "common.cuh"

enum Format : u32 { F32 = 0, F16 = 1, Q8_0 = 2, Q4_0 = 3, Q4_1 = 4, BF16 = 5 };

enum : u32 { TILE_ROWS = 16 };
enum : u32 { PAIR = 64 };

// 16-byte units of one pair of a tile.
inline u32 units_of(u32 format) {
    return format == F32 ? 256 : format == F16 || format == BF16 ? 128 : format == Q8_0 ? 64 : 32;
}

// One element, exactly as Format::dequantize has it (BF16: where it is within 2^-31 of its row's largest).
inline float element(u32 format, const void* quants, const void* scales, u32 rows, u32 pairs, u32 row, u32 k) {
    u32 tile = row / TILE_ROWS, lane = (row % 8) * 4 + k % 32 / 8;
    u32 upper = row % TILE_ROWS / 8, pair = k / PAIR, block = k % PAIR / 32, at = k % 8;
    u64 unit = (u64)(tile * pairs + pair) * units_of(format);
    const u8* start = (const u8*)quants + unit * 16;
    if (format == F32) return *(const float*)(start + ((block * 4 + upper * 2 + at / 4) * WARP + lane) * 16 + at % 4 * 4);
    if (format == F16 || format == BF16) {
        float x = half_to_float(*(const u16*)(start + ((block * 2 + upper) * WARP + lane) * 16 + at * 2));
        return format == F16 ? x : x * ((const float*)scales)[(rows + 15) / 16 * 16 + row];
    }
    const u16* scale = (const u16*)scales + ((u64)(tile * pairs + pair) * 8 + row % 8) * (format == Q4_1 ? 8 : 4);
    if (format == Q8_0) {
        float d = half_to_float(scale[block * 2 + upper]);
        return d * (float)*(const signed char*)(start + (block * WARP + lane) * 16 + upper * 8 + at);
    }
    u32 word = *(const u32*)(start + lane * 16 + (block * 2 + upper) * 4);
    float q = (float)(word >> (at / 2 + at % 2 * 4) * 4 & 15);
    if (format == Q4_0) return half_to_float(scale[block * 2 + upper]) * (q - 8.0f);
    return half_to_float(scale[block * 4 + upper]) * q + half_to_float(scale[block * 4 + 2 + upper]);
}
