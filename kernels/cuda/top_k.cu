// The k likeliest tokens of rows of logits, with what their log-normaliser and entropy take, for a batch of queries.
//
// top_k_chunks: a block takes one chunk of 2048 tokens of one query: the chunk's largest logit m, sum of e^(x - m) and
//   of e^(x - m) (x - m) in f64, and its k best tokens by biased logit, sorted (bitonic, in shared memory). One
//   sweep of the vocabulary. Grid (chunks, queries), 512 threads, 20 KiB of shared memory.
// top_k_merge: a block a query merges the chunks' lists and sums. Grid queries, 512 threads, 20 KiB.
// A token and its logit are one u64 whose order is falling logit, ties to the lower token (key_of): the choice is
// exact and depends on no order. Tokens at -inf or NaN are never chosen; 0 in a list is no token.
// Shapes: logits [slots, V] f32; out: tokens and logits [queries, stride], statistics [queries].
// Bytes: 4V a query read once, 8k a chunk written and read.
// CPU twin: cpu/top_k.rs; tokens and logits to the bit, sums within f32 rounding of exp.
#include "vocabulary.cuh"

struct Query {
    u32 slot, k, first_bias, biases;
};

// The sums of a softmax relative to its largest logit.
struct Statistics {
    double sum, moment;
    float largest;
    u32 unused;
};

struct TopK {
    const float* logits;
    const Query* queries;
    const Bias* biases;
    const u64* words;
    u64* lists;
    Statistics* partials;
    u32* tokens;
    float* found;
    Statistics* statistics;
    u32 vocabulary, chunks, stride;
};

// Sorts `count` keys, a power of two and at most CHUNK, so that they fall.
inline void sort(u64* keys, u32 count) {
    for (u32 size = 2; size <= count; size *= 2)
        for (u32 step = size / 2; step > 0; step /= 2) {
            __syncthreads();
            for (u32 i = threadIdx.x; i < count / 2; i += CHUNK_THREADS) {
                u32 low = 2 * i - (i & (step - 1)), high = low + step;
                u64 a = keys[low], b = keys[high];
                bool falling = (low & size) == 0;
                if ((a < b) == falling) keys[low] = b, keys[high] = a;
            }
        }
    __syncthreads();
}

extern "C" __global__ void __launch_bounds__(512) top_k_chunks(const TopK p) {
    __shared__ u64 keys[CHUNK];
    __shared__ double space[CHUNK_THREADS];
    u32 chunk = blockIdx.x;
    Query query = p.queries[blockIdx.y];
    const float* row = p.logits + (u64)query.slot * p.vocabulary;
    float most = -INFINITY_F;
    for (u32 i = threadIdx.x; i < CHUNK; i += CHUNK_THREADS) {
        u32 token = chunk * CHUNK + i;
        float x = token < p.vocabulary ? clean(row[token]) : -INFINITY_F;
        most = fmaxf(most, x);
        float chosen = clean(biased(p.biases, p.words, query.first_bias, query.biases, token, x));
        keys[i] = chosen > -INFINITY_F ? key_of(chosen, token) : 0;
    }
    most = block_max(most, (float*)space);
    double sum = 0.0, moment = 0.0;
    if (most > -INFINITY_F)
        for (u32 token = chunk * CHUNK + threadIdx.x; token < min((chunk + 1) * CHUNK, p.vocabulary);
             token += CHUNK_THREADS) {
            float difference = clean(row[token]) - most, e = exact_exp(difference);
            sum += (double)e;
            // exp is 0 long before -100, and 0 times -inf would be NaN.
            moment += (double)e * (double)fmaxf(difference, -100.0f);
        }
    sum = block_sum(sum, space);
    moment = block_sum(moment, space);
    sort(keys, CHUNK);
    u64 list = (u64)blockIdx.y * p.chunks + chunk;
    if (threadIdx.x == 0) p.partials[list] = {sum, moment, most, 0};
    for (u32 i = threadIdx.x; i < query.k; i += CHUNK_THREADS) p.lists[list * p.stride + i] = keys[i];
}

// Merges the chunks' sums.
inline void merge_statistics(const TopK& p, double* space) {
    const Statistics* partials = p.partials + (u64)blockIdx.x * p.chunks;
    float most = -INFINITY_F;
    for (u32 i = threadIdx.x; i < p.chunks; i += CHUNK_THREADS) most = fmaxf(most, partials[i].largest);
    most = block_max(most, (float*)space);
    double sum = 0.0, moment = 0.0;
    for (u32 i = threadIdx.x; i < p.chunks; i += CHUNK_THREADS) {
        Statistics part = partials[i];
        if (!(part.sum > 0.0)) continue;
        float difference = fmaxf(part.largest - most, -100.0f);
        double scale = (double)exact_exp(difference);
        sum += scale * part.sum;
        moment += scale * (part.moment + (double)difference * part.sum);
    }
    sum = block_sum(sum, space);
    moment = block_sum(moment, space);
    if (threadIdx.x == 0) p.statistics[blockIdx.x] = {sum, moment, most, 0};
}

extern "C" __global__ void __launch_bounds__(512) top_k_merge(const TopK p) {
    __shared__ u64 keys[CHUNK];
    __shared__ double space[CHUNK_THREADS];
    Query query = p.queries[blockIdx.x];
    const float* row = p.logits + (u64)query.slot * p.vocabulary;
    merge_statistics(p, space);

    // As many lists as fit beside the best so far, at a time.
    u32 total = p.chunks * query.k, taken = 0;
    while (taken < total) {
        u32 kept = taken ? query.k : 0, here = min(CHUNK - kept, total - taken);
        for (u32 i = threadIdx.x; i < CHUNK - kept; i += CHUNK_THREADS) {
            u32 at = taken + i;
            u64 list = (u64)blockIdx.x * p.chunks + at / query.k;
            keys[kept + i] = i < here ? p.lists[list * p.stride + at % query.k] : 0;
        }
        sort(keys, CHUNK);
        taken += here;
    }
    if (query.biases > 0 && query.k > 0) {
        // Chosen by what the biases make of them, but reported as the base model sees them.
        for (u32 i = threadIdx.x; i < 256; i += CHUNK_THREADS) {
            u64 key = i < query.k ? keys[i] : 0;
            keys[i] = key ? key_of(clean(row[token_of(key)]), token_of(key)) : 0;
        }
        sort(keys, 256);
    }
    for (u32 i = threadIdx.x; i < p.stride; i += CHUNK_THREADS) {
        u64 key = i < query.k ? keys[i] : 0, at = (u64)blockIdx.x * p.stride + i;
        // The token of no key is one that no vocabulary has.
        p.tokens[at] = token_of(key);
        p.found[at] = key ? clean(row[token_of(key)]) : 0.0f;
    }
}
