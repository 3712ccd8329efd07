// What top_k.cu and sample.cu share: chunks of the vocabulary, biases, and the start of a row of logits.
//
// A chunk is 2048 tokens, whatever the batch, so that sums over the vocabulary have one order. CPU twin:
// cpu/vocabulary.rs; clean, biases and scaling to the bit.
#pragma once
#include "common.cuh"

enum : u32 { CHUNK = 2048, CHUNK_THREADS = 512 };

// A VocabularyBias: `words` of 64 tokens from `first_word` on; tokens past them count as unset.
struct Bias {
    float set, unset;
    u32 first_word, words;
};

// Adds biases in order to one token, as biased_one does.
inline float biased(const Bias* biases, const u64* words, u32 first, u32 count, u32 token, float x) {
    for (u32 i = first; i < first + count; i++) {
        Bias bias = biases[i];
        bool set = token / 64 < bias.words && words[bias.first_word + token / 64] >> token % 64 & 1;
        x = __fadd_rn(x, set ? bias.set : bias.unset);
    }
    return x;
}

// Logits over a temperature above 0, cleaned; division by 1 changes nothing.
inline float scaled(float x, float temperature) { return clean(__fdiv_rn(x, temperature)); }
