// Draws tokens: adjusted logits, temperature, nucleus and an exact choice in integers, for a batch of draws.
//
//   z = (logit + vocabulary deltas + sparse deltas) / T, only among `only`;  w = floor(exp(z - z*) 2^40), u64
//   the token drawn is the first in order of id whose running sum exceeds floor(random * total / 2^64)
//
// adjust: z of a chunk of 2048 tokens, its best key, its softmax sums before adjustment at T = 1 and at T. Grid (chunks,
//   draws), 512 threads, 12 KiB of shared memory.
// weigh: weights of a chunk, their sum, and the sum of w (z - z before). Grid (chunks, draws), 512 threads, 4 KiB.
// choose: a block a draw: the nucleus where one is asked for (radix selection of the weight at which it ends, from sums
//   of weights by digit), then the chunk and the token. Grid draws, 1024 threads, 10 KiB.
// Integer sums are the same in any order, so the token is the CPU's given the same logits, to the bit. Sums in f64
// have one order; the host makes log-probabilities and KL of them as cpu/sample.rs does.
// Shapes: logits [slots, V] f32; scratch z f32 and weights u64 [draws, V], partials and chunk sums [draws, chunks].
// Bytes: 4V read, 12V written, 8V read again a draw; a nucleus reads its 8V of weights eight times and 16V once, from L2.
// CPU twin: cpu/sample.rs.
#include "vocabulary.cuh"

struct Draw {
    u64 random;
    // floor(top_p 2^32); 2^32 or more keeps all.
    u64 share;
    u32 slot;
    // 0: greedy.
    float temperature;
    u32 first_delta, deltas, first_bias, biases, first_only, only, masked, unused;
};

struct Partial {
    u64 best;
    double base_sum, before_sum;
    float base_largest, before_largest;
    u32 changed, unused;
};

struct Drawn {
    u64 weight, kept;
    double base_sum, before_sum, shift;
    // The largest of the row at T = 1 and at T, before adjustment; z*; the drawn token's own logit.
    float base_largest, before_largest, largest, logit;
    u32 token, found, changed, unused;
};

struct Sample {
    const float* logits;
    const Draw* draws;
    const Bias* biases;
    const u64* words;
    // Sorted by token within a draw; tokens that come twice keep their order.
    const u32* delta_tokens;
    const float* deltas;
    // Ascending, each once.
    const u32* only;
    float* z;
    u64* weights;
    Partial* partials;
    u64* sums;
    double* shifts;
    u64* kept_sums;
    Drawn* drawn;
    u32 vocabulary, chunks;
};

// Whether an ascending list has a token.
inline bool has(const u32* list, u32 count, u32 token) {
    u32 low = 0, high = count;
    while (low < high) {
        u32 middle = (low + high) / 2;
        if (list[middle] < token) low = middle + 1;
        else high = middle;
    }
    return low < count && list[low] == token;
}

// z of a chunk's tokens into `chunk`, sparse deltas included, not yet divided.
inline void adjusted(const Sample& p, const Draw& draw, const float* row, u32 first, float* chunk) {
    for (u32 i = threadIdx.x; i < CHUNK; i += CHUNK_THREADS) {
        u32 token = first + i;
        bool real = token < p.vocabulary && (!draw.masked || has(p.only + draw.first_only, draw.only, token));
        chunk[i] = real ? clean(biased(p.biases, p.words, draw.first_bias, draw.biases, token, clean(row[token])))
                        : -INFINITY_F;
    }
    __syncthreads();
    const u32* tokens = p.delta_tokens + draw.first_delta;
    for (u32 i = threadIdx.x; i < draw.deltas; i += CHUNK_THREADS) {
        u32 token = tokens[i];
        if (token < first || token - first >= CHUNK || (i > 0 && tokens[i - 1] == token)) continue;
        // A thread has all deltas of its token, in their order.
        for (u32 j = i; j < draw.deltas && tokens[j] == token; j++)
            chunk[token - first] = clean(__fadd_rn(chunk[token - first], p.deltas[draw.first_delta + j]));
    }
    __syncthreads();
}

extern "C" __global__ void __launch_bounds__(512, 2) adjust(const Sample p) {
    __shared__ float chunk[CHUNK];
    __shared__ double space[CHUNK_THREADS];
    Draw draw = p.draws[blockIdx.y];
    u32 first = blockIdx.x * CHUNK, end = min(first + CHUNK, p.vocabulary);
    const float* row = p.logits + (u64)draw.slot * p.vocabulary;
    float* z = p.z + (u64)blockIdx.y * p.vocabulary;
    adjusted(p, draw, row, first, chunk);
    float temperature = draw.temperature > 0.0f ? draw.temperature : 1.0f;
    u64 best = 0;
    u32 changed = 0;
    float base_most = -INFINITY_F;
    for (u32 token = first + threadIdx.x; token < end; token += CHUNK_THREADS) {
        float base = clean(row[token]), after = scaled(chunk[token - first], temperature);
        base_most = fmaxf(base_most, base);
        u64 key = key_of(after, token);
        best = key > best ? key : best;
        changed |= after != scaled(base, temperature) ? 1 : 0;
        z[token] = after;
    }
    best = block_max(best, (u64*)space);
    changed = block_max(changed, (u32*)space);
    base_most = block_max(base_most, (float*)space);
    // Division by a temperature above 0 keeps the order, so the largest before adjustment is the largest logit's.
    float before_most = scaled(base_most, temperature);
    double base_sum = 0.0, before_sum = 0.0;
    if (base_most > -INFINITY_F)
        for (u32 token = first + threadIdx.x; token < end; token += CHUNK_THREADS) {
            float base = clean(row[token]);
            base_sum += (double)exact_exp(base - base_most);
            before_sum += (double)exact_exp(scaled(base, temperature) - before_most);
        }
    base_sum = block_sum(base_sum, space);
    before_sum = block_sum(before_sum, space);
    if (threadIdx.x == 0)
        p.partials[(u64)blockIdx.y * p.chunks + blockIdx.x] = {best,      base_sum,    before_sum, base_most,
                                                              before_most, changed, 0};
}

// The best key of a draw: every thread gets it.
inline u64 best_of(const Sample& p, u32 draw, u64* space) {
    u64 best = 0;
    for (u32 i = threadIdx.x; i < p.chunks; i += blockDim.x) {
        u64 key = p.partials[(u64)draw * p.chunks + i].best;
        best = key > best ? key : best;
    }
    return block_max(best, space);
}

// w (z - z before) of a token.
inline double shift_of(const Sample& p, const Draw& draw, u64 weight, float z, u32 token) {
    if (weight == 0) return 0.0;
    float before = scaled(clean(p.logits[(u64)draw.slot * p.vocabulary + token]), draw.temperature);
    return (double)weight * ((double)z - (double)before);
}

extern "C" __global__ void __launch_bounds__(512) weigh(const Sample p) {
    __shared__ u64 space[CHUNK_THREADS];
    Draw draw = p.draws[blockIdx.y];
    float largest = logit_of(best_of(p, blockIdx.y, space));
    if (!(draw.temperature > 0.0f) || !(largest > -INFINITY_F)) return;
    u32 first = blockIdx.x * CHUNK, end = min(first + CHUNK, p.vocabulary);
    u64 start = (u64)blockIdx.y * p.vocabulary, sum = 0;
    double shift = 0.0;
    for (u32 token = first + threadIdx.x; token < end; token += CHUNK_THREADS) {
        float z = p.z[start + token];
        u64 weight = (u64)__fmul_rn(exact_exp(z - largest), 1099511627776.0f);
        p.weights[start + token] = weight;
        sum += weight;
        shift += shift_of(p, draw, weight, z, token);
    }
    sum = block_sum(sum, space);
    shift = block_sum(shift, (double*)space);
    if (threadIdx.x == 0) {
        p.sums[(u64)blockIdx.y * p.chunks + blockIdx.x] = sum;
        p.shifts[(u64)blockIdx.y * p.chunks + blockIdx.x] = shift;
    }
}

enum : u32 { CHOOSE_THREADS = 1024, DIGIT = 256 };

// Running sums of `space`, in place.
inline void scan(u64* space) {
    __syncthreads();
    for (u32 step = 1; step < CHOOSE_THREADS; step *= 2) {
        u64 before = threadIdx.x >= step ? space[threadIdx.x - step] : 0;
        __syncthreads();
        space[threadIdx.x] += before;
        __syncthreads();
    }
}

// The first index at which the running sum of x, one of each thread, exceeds `threshold`; and the sum before it.
inline u32 first_above(u64 x, u64 threshold, u64* space, u64& before) {
    __shared__ u32 index;
    __shared__ u64 sum_before;
    __syncthreads();
    if (threadIdx.x == 0) index = 0, sum_before = 0;
    space[threadIdx.x] = x;
    scan(space);
    u64 here = space[threadIdx.x];
    if (here > threshold && here - x <= threshold) index = threadIdx.x, sum_before = here - x;
    __syncthreads();
    before = sum_before;
    u32 found = index;
    __syncthreads();
    return found;
}

// Where a nucleus ends; `weight` 0 keeps all.
struct Cut {
    u64 weight;
    u32 token;

    inline bool keeps(u64 w, u32 t) const { return w > weight || (w == weight && t <= token); }
};

// What one draw's block knows.
struct Chooser {
    const Sample& p;
    const u64* weights;
    u64* space;

    // The first token in order of id at which the running sum of count(weight, token) exceeds `threshold`; `chunk_sums`
    // has the sums of chunks, at most one a thread.
    template <typename Count>
    inline u32 find(const u64* chunk_sums, u64 threshold, Count count) {
        u64 before, unused;
        u32 chunk = first_above(threadIdx.x < p.chunks ? chunk_sums[threadIdx.x] : 0, threshold, space, before);
        u32 first = chunk * CHUNK + 2 * threadIdx.x;
        u64 one = first < p.vocabulary ? count(weights[first], first) : 0;
        u64 two = first + 1 < p.vocabulary ? count(weights[first + 1], first + 1) : 0;
        u32 pair = first_above(one + two, threshold - before, space, unused);
        // The thread that has the pair says which of the two it is.
        __shared__ u32 token;
        if (threadIdx.x == pair) token = unused + one > threshold - before ? first : first + 1;
        __syncthreads();
        u32 found = token;
        __syncthreads();
        return found;
    }

    // Sums of count over chunks, a warp a chunk, to `to`.
    template <typename Count>
    inline void sum_chunks(u64* to, Count count) {
        for (u32 chunk = threadIdx.x / WARP; chunk < p.chunks; chunk += CHOOSE_THREADS / WARP) {
            u64 sum = 0;
            for (u32 token = chunk * CHUNK + threadIdx.x % WARP; token < min((chunk + 1) * CHUNK, p.vocabulary);
                 token += WARP)
                sum += count(weights[token], token);
            for (u32 step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(ALL_LANES, sum, step);
            if (threadIdx.x % WARP == 0) to[chunk] = sum;
        }
        __syncthreads();
    }

    // The last token of the fewest that reach `target`, by falling weight, ties to the lower token, and the sum of those
    // kept. Digit by digit from the top: sums of weights by digit among those that share the digits so far.
    inline Cut nucleus(u64 target, u64* chunk_counts, u64& kept) {
        __shared__ u64 bins[DIGIT];
        u64 prefix = 0, above = 0;
        for (int shift = 40; shift >= 0; shift -= 8) {
            for (u32 i = threadIdx.x; i < DIGIT; i += CHOOSE_THREADS) bins[i] = 0;
            __syncthreads();
            // Neighbours mostly share a digit: one addition to a bin for a run of them.
            u32 last = 0;
            u64 pending = 0;
            for (u32 token = threadIdx.x; token < p.vocabulary; token += CHOOSE_THREADS) {
                u64 weight = weights[token];
                if (weight == 0 || weight >> (shift + 8) != prefix) continue;
                u32 digit = (u32)(weight >> shift) % DIGIT;
                if (digit != last && pending > 0) atomicAdd(&bins[last], pending), pending = 0;
                last = digit;
                pending += weight;
            }
            if (pending > 0) atomicAdd(&bins[last], pending);
            __syncthreads();
            // The largest digit at which the sum from the top reaches the target.
            u64 before;
            u64 bin = threadIdx.x < DIGIT ? bins[DIGIT - 1 - threadIdx.x] : 0;
            u32 digit = DIGIT - 1 - first_above(bin, target - above - 1, space, before);
            above += before;
            prefix = prefix << 8 | digit;
        }
        u64 ties = (target - above + prefix - 1) / prefix;
        kept = above + ties * prefix;
        auto is_tie = [prefix](u64 weight, u32) -> u64 { return weight == prefix ? 1 : 0; };
        sum_chunks(chunk_counts, is_tie);
        return {prefix, find(chunk_counts, ties - 1, is_tie)};
    }
};

// ceil(total share / 2^32), at least 1: nucleus_target of sampling.rs.
inline u64 nucleus_target(u64 total, u64 share) {
    u64 low = total * share, high = __umul64hi(total, share);
    u64 target = (high << 32 | low >> 32) + ((low & 0xffffffffu) != 0 ? 1 : 0);
    return target > 0 ? target : 1;
}

// Merges the chunks' softmax sums and shifts into `drawn`; whether anything was adjusted.
inline void merge_partials(const Sample& p, u64* space, Drawn& drawn) {
    const Partial* partials = p.partials + (u64)blockIdx.x * p.chunks;
    float base = -INFINITY_F, before = -INFINITY_F;
    u32 changed = 0;
    for (u32 i = threadIdx.x; i < p.chunks; i += CHOOSE_THREADS) {
        base = fmaxf(base, partials[i].base_largest);
        before = fmaxf(before, partials[i].before_largest);
        changed |= partials[i].changed;
    }
    drawn.base_largest = block_max(base, (float*)space);
    drawn.before_largest = block_max(before, (float*)space);
    drawn.changed = block_max(changed, (u32*)space);
    double base_sum = 0.0, before_sum = 0.0;
    for (u32 i = threadIdx.x; i < p.chunks; i += CHOOSE_THREADS) {
        Partial part = partials[i];
        if (!(part.base_sum > 0.0)) continue;
        base_sum += (double)exact_exp(part.base_largest - drawn.base_largest) * part.base_sum;
        before_sum += (double)exact_exp(part.before_largest - drawn.before_largest) * part.before_sum;
    }
    drawn.base_sum = block_sum(base_sum, (double*)space);
    drawn.before_sum = block_sum(before_sum, (double*)space);
}

extern "C" __global__ void __launch_bounds__(1024, 1) choose(const Sample p) {
    __shared__ u64 space[CHOOSE_THREADS];
    Draw draw = p.draws[blockIdx.x];
    u64 best = best_of(p, blockIdx.x, space);
    Drawn drawn = {};
    merge_partials(p, space, drawn);
    drawn.largest = logit_of(best);
    drawn.token = token_of(best);
    drawn.found = best != 0 && drawn.largest > -INFINITY_F ? 1 : 0;
    if (drawn.found && draw.temperature > 0.0f) {
        u64 start = (u64)blockIdx.x * p.vocabulary, chunks = (u64)blockIdx.x * p.chunks;
        Chooser chooser = {p, p.weights + start, space};
        u64 sum = 0;
        double shift = 0.0;
        for (u32 i = threadIdx.x; i < p.chunks; i += CHOOSE_THREADS) {
            sum += p.sums[chunks + i];
            shift += p.shifts[chunks + i];
        }
        u64 total = block_sum(sum, space);
        drawn.shift = block_sum(shift, (double*)space);
        drawn.kept = total;
        const u64* sums = p.sums + chunks;
        // A weight of 0 is that of no token here: without a cut all that have weight are kept.
        Cut cut = {0, 0xffffffffu};
        if (draw.share < 1ull << 32) {
            Cut last = chooser.nucleus(nucleus_target(total, draw.share), p.kept_sums + chunks, drawn.kept);
            if (drawn.kept < total) {
                cut = last;
                drawn.changed = 1;
                chooser.sum_chunks(p.kept_sums + chunks,
                                   [cut](u64 w, u32 t) -> u64 { return cut.keeps(w, t) ? w : 0; });
                sums = p.kept_sums + chunks;
                shift = 0.0;
                for (u32 token = threadIdx.x; token < p.vocabulary; token += CHOOSE_THREADS) {
                    u64 weight = chooser.weights[token];
                    if (cut.keeps(weight, token)) shift += shift_of(p, draw, weight, p.z[start + token], token);
                }
                drawn.shift = block_sum(shift, (double*)space);
            }
        }
        drawn.token = chooser.find(sums, __umul64hi(draw.random, drawn.kept),
                                   [cut](u64 w, u32 t) -> u64 { return cut.keeps(w, t) ? w : 0; });
        drawn.weight = chooser.weights[drawn.token];
    }
    if (threadIdx.x == 0) {
        drawn.logit = drawn.found ? clean(p.logits[(u64)draw.slot * p.vocabulary + drawn.token]) : 0.0f;
        p.drawn[blockIdx.x] = drawn;
    }
}
