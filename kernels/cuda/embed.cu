// x[r] = table[token of r]
//
// Shapes: table [V, H] in the layout of matrix.cuh, tokens [R], x [R, H] f32.
// Launch: one block of 256 threads a row; no shared memory.
// Bytes: H elements of the table's format read and 4H written a row; scattered reads, for a row of the table is
// spread over its tile. A few microseconds a pass, never repeated: not worth a second copy of the table.
// CPU twin: Matrix::read_row in cpu/pack.rs, to the bit where matrix.cuh's element is exact.
#include "matrix.cuh"

struct Embed {
    const void* quants;
    const void* scales;
    const u32* tokens;
    float* x;
    u32 format, rows, pairs, width;
};

extern "C" __global__ void __launch_bounds__(256) embed(const Embed p) {
    u32 row = blockIdx.x, token = p.tokens[row];
    for (u32 k = threadIdx.x; k < p.width; k += blockDim.x)
        p.x[(u64)row * p.width + k] = element(p.format, p.quants, p.scales, p.rows, p.pairs, token, k);
}
