//! What kernels are launched with: the structs of the `.cu` files, field by field.
//!
//! Addresses are plain `u64`, as the driver gives them. Every struct is one kernel parameter, passed by value; a test
//! compares its size with what the PTX declares. The order of fields is that of the source, and nothing here has
//! padding: what is uploaded has no byte that was never written.

/// A struct that a kernel of the same layout takes.
///
/// # Safety
/// `repr(C)`, the layout of the kernel's own struct, and no padding.
pub(super) unsafe trait Plain: Copy {}

macro_rules! plain {
    ($($(#[$note:meta])* struct $name:ident { $($field:ident: $type:ty),* $(,)? })*) => {$(
        $(#[$note])*
        #[derive(Debug, Clone, Copy)]
        #[repr(C)]
        pub(super) struct $name { $(pub(super) $field: $type),* }

        // SAFETY: `repr(C)` of plain numbers; the assertion says that they leave no gap.
        unsafe impl Plain for $name {}

        const _: () = assert!(size_of::<$name>() == 0 $(+ size_of::<$type>())*, "padding");
    )*};
}

// SAFETY: numbers, without padding.
unsafe impl Plain for u8 {}
// SAFETY: as above.
unsafe impl Plain for u16 {}
// SAFETY: as above.
unsafe impl Plain for u32 {}
// SAFETY: as above.
unsafe impl Plain for u64 {}
// SAFETY: as above.
unsafe impl Plain for f32 {}
// SAFETY: as above.
unsafe impl<const N: usize> Plain for [u32; N] {}
// SAFETY: as above.
unsafe impl<const N: usize> Plain for [f32; N] {}

plain! {
    struct Embed { quants: u64, scales: u64, tokens: u64, x: u64, format: u32, rows: u32, pairs: u32, width: u32 }

    struct Prepare {
        x: u64, from: u64, gain: u64, acts: u64, inverse: u64, sums: u64,
        rows: u32, width: u32, pairs: u32, padded: u32, epsilon: f32, unused: u32,
    }

    /// One matrix of a launch, and what is done with its results.
    struct Job { quants: u64, scales: u64, bias: u64, out: u64, format: u32, n: u32, kind: u32, first_tile: u32 }

    struct Linear {
        jobs: [Job; 3],
        acts: u64, inverse: u64, sums: u64, places: u64, turns: u64, positions: u64, slots: u64,
        rows: u32, padded: u32, pairs: u32, head_width: u32, kv_heads: u32, layers: u32, layer: u32, unused: u32,
    }

    struct Attend {
        q: u64, out: u64, keys: u64, values: u64, tiles: u64, positions: u64, slots: u64, sequences: u64,
        table_starts: u64, pages: u64, parts: u64,
        tile_count: u32, first_row: u32, heads: u32, kv_heads: u32, head_width: u32, layers: u32, layer: u32,
        splits: u32, scale: f32, unused: u32,
    }

    struct RopeStore {
        q: u64, k: u64, v: u64, keys: u64, values: u64, turns: u64, positions: u64, slots: u64,
        heads: u32, kv_heads: u32, head_width: u32, layers: u32, layer: u32, unused: u32,
    }

    struct CopyRows { from: u64, to: u64, rows: u64, width: u32, unused: u32 }

    struct Commit {
        keys: u64, values: u64, sums: u64, copies: u64,
        count: u32, layers: u32, kv_heads: u32, width: u32, hidden: u32, taps: u32,
        first_layer: u32, layer_count: u32, first_tap: u32, unused: u32,
    }

    /// What all kernels of value heads read of a pass.
    struct Features {
        x: u64, sums: u64, positions: u64, sequences: u64, slots: u64, counts: u64, remaining: u64,
        table_starts: u64, pages: u64,
        hidden: u32, taps: u32, tap: u32, unused: u32,
    }

    struct Accumulate { features: Features, chains: u64 }
    struct Values { features: Features, residual: u64, mean: u64, share: u64, out: u64, remaining: f32, bias: f32 }
    struct Project { features: Features, state: u64, out: u64 }
    struct ReadFeatures { features: Features, out: u64 }

    struct Score {
        quants: u64, scales: u64, embedding: u64, projection: u64, token_bias: u64, tokens: u64, out: u64,
        format: u32, rows: u32, pairs: u32, hidden: u32, rank: u32, biases: u32,
    }

    /// A `VocabularyBias`: words are those of all biases in one list.
    struct Bias { set: f32, unset: f32, first_word: u32, words: u32 }

    struct Query { slot: u32, k: u32, first_bias: u32, biases: u32 }

    /// Sums of a softmax relative to its largest logit.
    struct Statistics { sum: f64, moment: f64, largest: f32, unused: u32 }

    struct TopK {
        logits: u64, queries: u64, biases: u64, words: u64, lists: u64, partials: u64, tokens: u64, found: u64,
        statistics: u64,
        vocabulary: u32, chunks: u32, stride: u32, unused: u32,
    }

    struct Draw {
        random: u64, share: u64,
        slot: u32, temperature: f32, first_delta: u32, deltas: u32, first_bias: u32, biases: u32,
        first_only: u32, only: u32, masked: u32, unused: u32,
    }

    /// What a chunk of a draw knows before the choice.
    struct Partial {
        best: u64, base_sum: f64, before_sum: f64, base_largest: f32, before_largest: f32, changed: u32, unused: u32,
    }

    struct Drawn {
        weight: u64, kept: u64, base_sum: f64, before_sum: f64, shift: f64,
        base_largest: f32, before_largest: f32, largest: f32, logit: f32,
        token: u32, found: u32, changed: u32, unused: u32,
    }

    struct Sample {
        logits: u64, draws: u64, biases: u64, words: u64, delta_tokens: u64, deltas: u64, only: u64,
        z: u64, weights: u64, partials: u64, sums: u64, shifts: u64, kept_sums: u64, drawn: u64,
        vocabulary: u32, chunks: u32,
    }
}

/// The bytes of plain structs.
pub(super) fn bytes_of<T: Plain>(values: &[T]) -> &[u8] {
    // SAFETY: a plain struct has no padding, so every byte of the slice is initialised.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

/// Plain structs from bytes that a kernel wrote; `bytes` is a multiple of their size.
pub(super) fn from_bytes<T: Plain>(bytes: &[u8]) -> Vec<T> {
    let chunks = bytes.chunks_exact(size_of::<T>());
    // SAFETY: a chunk is as large as a T, any bits make a plain struct, and the read needs no alignment.
    chunks.map(|chunk| unsafe { chunk.as_ptr().cast::<T>().read_unaligned() }).collect()
}
