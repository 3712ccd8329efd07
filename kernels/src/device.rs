//! The device trait: everything the engine asks of the machine that owns the base model.
//!
//! One trait, one forward pass written over it (`host/src/model/llama.rs`), and one implementation a
//! kind of machine. No type here knows where memory lives: matrices, activations, caches and logits
//! are the device's own types, and only small plain values cross. The CPU's implementation is
//! [`crate::cpu::Cpu`].
//!
//! Two promises hold on every device, and the engine stands on them:
//!
//! 1. **A row does not depend on its neighbours.** The order of every sum depends on the shapes of
//!    weights and on a row's own position only, never on how many rows or sequences share the pass.
//! 2. **Cached equals uncached.** Keys and values are rounded to the cache's type *before* anything
//!    attends to them, and a row's attention runs over fixed tiles of [`PAGE_TOKENS`] keys from
//!    position 0, merged in order, the row's own key last.
//!
//! Words: a *row* is one token at one position of one sequence; a *slot* is the place of one
//! position's keys, values and feature sums in the cache (`page * PAGE_TOKENS + offset`); a *tap* is
//! a layer whose residual stream feeds value heads.

use std::ops::Range;

use crate::format::Format;
use crate::pool::Pool;

/// Positions in a page of the cache, and keys in a tile of attention.
pub const PAGE_TOKENS: usize = 32;

/// The most candidates a step may have.
pub const CANDIDATES_MAX: usize = 256;

/// What went wrong on a device. Shapes are checked before anything runs; an error leaves the rows
/// and the cache of the pass in an unspecified but safe state.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// An argument does not fit the operation.
    #[error("{operation}: {what} must be {expected}, got {got}")]
    Shape {
        /// The operation that refused.
        operation: &'static str,
        /// Which argument.
        what: &'static str,
        /// What is accepted.
        expected: String,
        /// What was given.
        got: String,
    },
    /// The device cannot hold what was asked for.
    #[error("{what} needs {needed_bytes} bytes of device memory, {available_bytes} are free")]
    Memory {
        /// What was to be allocated.
        what: &'static str,
        /// Bytes asked for.
        needed_bytes: u64,
        /// Bytes free.
        available_bytes: u64,
    },
    /// There is no driver for the kind of device that was asked for.
    #[error("there is no CUDA driver on this machine (libcuda was not found)")]
    NoDriver,
    /// The driver does not know what the kernels need.
    #[error(
        "the CUDA driver supports CUDA {}.{}, at least {}.{} is needed",
        found / 1000, found % 1000 / 10, needed / 1000, needed % 1000 / 10
    )]
    DriverTooOld {
        /// The driver's version, as it counts: 1000 times the major number plus 10 times the minor.
        found: i32,
        /// The oldest version that will do.
        needed: i32,
    },
    /// No device has this number.
    #[error("there is no CUDA device {ordinal}: the driver has {devices}")]
    NoDevice {
        /// Which was asked for, from 0.
        ordinal: usize,
        /// How many there are.
        devices: usize,
    },
    /// The card cannot run the kernels.
    #[error(
        "the card {name:?} (cuda:{ordinal}) has compute capability {}.{}, at least {}.{} is needed",
        found.0, found.1, needed.0, needed.1
    )]
    CardTooOld {
        /// Which, from 0.
        ordinal: usize,
        /// Its name.
        name: String,
        /// Its compute capability, major and minor.
        found: (i32, i32),
        /// The least that will do.
        needed: (i32, i32),
    },
    /// The device is gone: only another process, or none, will find it again.
    #[error("the device was lost in {operation}: {message}")]
    Lost {
        /// The operation during which it showed.
        operation: &'static str,
        /// The driver's words.
        message: String,
    },
    /// The device itself failed; sequences in flight are lost.
    #[error("device failure in {operation}: {message}")]
    Failed {
        /// The operation that failed.
        operation: &'static str,
        /// The driver's words.
        message: String,
    },
}

/// What a device is, for reports and the audit log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceInfo {
    /// `cpu`, or the card's name.
    pub name: String,
    /// The instruction set that the kernels run on: `scalar`, `avx2`, `avx-vnni`, `avx512-vnni`, …
    pub isa: String,
    /// Threads that work on a pass.
    pub threads: usize,
}

/// Which dimensions of a head RoPE rotates together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopePairing {
    /// (0, 1), (2, 3), …: GGUF files of the Llama family.
    Interleaved,
    /// (0, D/2), (1, D/2 + 1), …: safetensors files.
    Halves,
}

/// The shapes that all passes of one model share.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelShape {
    /// Decoder layers, L.
    pub layers: usize,
    /// Width of the residual stream, H.
    pub hidden: usize,
    /// Query heads, A.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of one head, D; even.
    pub head_width: usize,
    /// Width of the feed-forward part, F.
    pub feed_forward: usize,
    /// Tokens in the vocabulary, V.
    pub vocabulary: usize,
    /// The longest sequence that the model and its cache take, in tokens.
    pub context_tokens: usize,
    /// Epsilon of every RMS norm.
    pub norm_epsilon: f32,
    /// Which dimensions RoPE pairs.
    pub rope_pairing: RopePairing,
    /// RoPE's inverse frequencies, `[D / 2]`, in radians a position.
    pub rope_inverse_frequencies: Vec<f64>,
}

/// How much a cache holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheShape {
    /// Pages of [`PAGE_TOKENS`] slots, scratch pages for candidate rows included.
    pub pages: usize,
    /// The layers whose input feeds value heads, ascending: a head at tap layer `n` reads the
    /// residual stream after `n` layers have run (0 < n <= L). One prefix sum a tap lives beside the keys.
    pub taps: Vec<usize>,
}

/// One row of a pass.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Row {
    /// The token, below the vocabulary's size.
    pub token: u32,
    /// Its position in its sequence, from 0.
    pub position: u32,
    /// Index into [`Plan::block_tables`].
    pub sequence: u32,
    /// Where this row's own keys, values and sums go.
    pub slot: u32,
    /// How many response tokens there are up to and including this row; 0 in the prompt.
    pub response_count: u32,
    /// The share of the response's token limit that remains after this row, 0 to 1.
    pub remaining: f32,
}

/// The rows of one pass. Rows of one sequence that follow each other stand in order of position; a
/// row finds positions before its own in its sequence's pages, its own in `slot`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Plan {
    /// The rows, R.
    pub rows: Vec<Row>,
    /// For every sequence, the page of each [`PAGE_TOKENS`] positions.
    pub block_tables: Vec<Vec<u32>>,
}

/// The three projections of an attention block, `[A*D, H]`, `[KV*D, H]` twice, with optional biases.
pub struct Projections<'a, D: Device + ?Sized> {
    /// Query weights.
    pub query: &'a D::Matrix,
    /// Key weights.
    pub key: &'a D::Matrix,
    /// Value weights.
    pub value: &'a D::Matrix,
    /// Query, key and value biases, or none.
    pub biases: Option<[&'a D::Vector; 3]>,
}

/// A linear value head over features of one tap: with the running mean `m = sum / response_count` (zero
/// in the prompt), `value = residual·x + mean·m + (1 − r)·(share·m) + remaining·r + bias`, where r is the
/// remaining share of the token limit. `share` weighs the stream's sum over the limit: under it a token's
/// influence does not fade as the response grows, under `mean` it does.
#[derive(Debug, Clone, PartialEq)]
pub struct LinearHead {
    /// Index of the tap in [`CacheShape::taps`].
    pub tap: usize,
    /// Weights of the residual stream, `[H]`.
    pub residual: Vec<f32>,
    /// Weights of its running mean over the response, `[H]`.
    pub mean: Vec<f32>,
    /// Weights of the running mean times the used share of the limit, `[H]`, or empty for none.
    pub share: Vec<f32>,
    /// Weight of the remaining share of the token limit.
    pub remaining: f32,
    /// Constant.
    pub bias: f32,
}

/// A one-pass head: `value(a) = Σ_r p_r · (B e_a)_r + token_bias_a`, with `p = A φ` the projection of
/// the row before the candidates and `e_a` the candidate's input embedding.
#[derive(Debug, Clone, PartialEq)]
pub struct OnePassHead {
    /// Index of the tap in [`CacheShape::taps`].
    pub tap: usize,
    /// r, at most 64.
    pub rank: usize,
    /// A, `[r, 2H + 2]`, row-major, over [residual; running mean; remaining; 1].
    pub state: Vec<f32>,
    /// B, `[r, H]`, row-major.
    pub embedding: Vec<f32>,
    /// One bias a token, `[V]`.
    pub token_bias: Vec<half::f16>,
}

/// The likeliest tokens of one row of logits.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct TopK {
    /// Tokens by falling logit, ties to the lower token.
    pub tokens: Vec<u32>,
    /// Their logits: the base model's own, whatever `vocabulary` bias chose them.
    pub logits: Vec<f32>,
    /// ln Σ exp(logit) over the whole vocabulary, without bias.
    pub log_normalizer: f32,
    /// Entropy of softmax(logits) over the whole vocabulary, without bias, in nats.
    pub entropy: f32,
}

/// Asks for the `k` likeliest tokens of a row after adding `vocabulary` biases. Forbidden tokens are left out, so fewer
/// than `k` may come; log-normaliser and entropy are those of the unbiased logits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TopKQuery<'a> {
    /// The row of [`Device::Logits`].
    pub slot: u32,
    /// How many tokens.
    pub k: usize,
    /// Biases that choose, in the order in which they are added.
    pub vocabulary: &'a [VocabularyBias],
}

/// A delta for every token: `set` where its bit is set, `unset` where not. Bit i of word i / 64, lowest
/// first; missing words count as unset. −∞ forbids.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct VocabularyBias {
    /// The bits, 64 tokens a word.
    pub bits: Vec<u64>,
    /// Nats where the bit is set.
    pub set: f32,
    /// Nats where it is not.
    pub unset: f32,
}

/// Which logits to draw from, and how. A token's adjusted logit is
/// `logit + Σ vocabulary deltas + Σ sparse deltas`, added in this order in f32; it is then divided by the temperature.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Draw {
    /// The row of [`Device::Logits`].
    pub slot: u32,
    /// Above 0: softmax of `adjusted / temperature`. 0: the largest adjusted logit, ties to the lower token.
    pub temperature: f32,
    /// Nucleus: the fewest likeliest tokens whose weight reaches this share of the total; 1 keeps all.
    pub top_p: f32,
    /// Sparse deltas in nats; a token occurs at most once. −∞ forbids.
    pub deltas: Vec<(u32, f32)>,
    /// Deltas for every token, applied in order.
    pub vocabulary: Vec<VocabularyBias>,
    /// Where set, only these tokens can be drawn (the tail is masked).
    pub only: Option<Vec<u32>>,
    /// 64 random bits from the counter-based generator.
    pub random: u64,
}

/// What was drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Drawn {
    /// The token.
    pub token: u32,
    /// ln of the probability with which it was drawn, after everything.
    pub log_probability: f32,
    /// ln of its probability under softmax(logits): temperature 1, no adjustment, no truncation.
    pub base_log_probability: f32,
    /// KL(what was drawn from ‖ softmax(logits / temperature), untruncated), in nats. Exactly 0 where
    /// nothing was adjusted, masked or truncated. At temperature 0: `-base_log_probability`.
    pub kl: f32,
}

/// A machine that owns weights, caches and logits, and runs passes over them.
///
/// A pass is `begin(plan)`, operations on the plan's rows, `end()`. Operations outside a pass, or on
/// buffers smaller than the plan, are refused with [`DeviceError::Shape`]. What a pass leaves in rows of a buffer past the
/// plan's is the device's own matter. An error may show later than in the operation that met it, at the pass's end or
/// with the next answer.
pub trait Device {
    /// A weight matrix `[n, k]` in the device's own layout.
    type Matrix;
    /// A vector of f32.
    type Vector;
    /// Activations `[rows_max, width]`, f32.
    type Rows;
    /// Keys, values and feature sums by page.
    type Cache;
    /// Logits `[slots, V]`, f32.
    type Logits;

    /// Threads for the host's own work between passes: where the device computes on the CPU they are its own, so that no two
    /// pools compete for the cores.
    fn pool(&self) -> &Pool;

    /// What this device is.
    fn info(&self) -> DeviceInfo;

    /// Loads a matrix `[n, k]`, row-major in `format`; `bytes` is exactly `n` rows of `k` elements.
    fn matrix(&mut self, format: Format, n: usize, k: usize, bytes: &[u8]) -> Result<Self::Matrix, DeviceError>;

    /// Loads a vector.
    fn vector(&mut self, values: &[f32]) -> Result<Self::Vector, DeviceError>;

    /// Allocates activations, zeroed.
    fn rows(&mut self, rows_max: usize, width: usize) -> Result<Self::Rows, DeviceError>;

    /// Allocates a cache for a model; memory may be touched only as pages are used.
    fn cache(&mut self, model: &ModelShape, shape: &CacheShape) -> Result<Self::Cache, DeviceError>;

    /// Allocates logits.
    fn logits(&mut self, slots: usize, vocabulary: usize) -> Result<Self::Logits, DeviceError>;

    /// Starts a pass over these rows.
    fn begin(&mut self, plan: &Plan) -> Result<(), DeviceError>;

    /// Ends the pass.
    fn end(&mut self) -> Result<(), DeviceError>;

    /// `x[r] = table[token of r]`; x: `[R, H]`.
    fn embed(&mut self, table: &Self::Matrix, x: &mut Self::Rows) -> Result<(), DeviceError>;

    /// `q = rope(Wq·norm(x))`; keys (after RoPE) and values go, rounded to the cache's type, to each
    /// row's slot of `layer`. norm is RMS norm times `gain`; x: `[R, H]`, q: `[R, A*D]`.
    fn norm_qkv_store(
        &mut self,
        x: &Self::Rows,
        gain: &Self::Vector,
        weights: Projections<'_, Self>,
        cache: &mut Self::Cache,
        layer: usize,
        q: &mut Self::Rows,
    ) -> Result<(), DeviceError>;

    /// Causal grouped-query attention of every row over positions before its own and itself, scores
    /// scaled by 1/√D; q, out: `[R, A*D]`.
    fn attend(
        &mut self,
        q: &Self::Rows,
        cache: &Self::Cache,
        layer: usize,
        out: &mut Self::Rows,
    ) -> Result<(), DeviceError>;

    /// `x += weight·input`; input: `[R, k]`, x: `[R, n]`.
    fn linear_add(&mut self, input: &Self::Rows, weight: &Self::Matrix, x: &mut Self::Rows) -> Result<(), DeviceError>;

    /// `out = silu(gate·norm(x)) * (up·norm(x))`; x: `[R, H]`, out: `[R, F]`.
    fn norm_gate_up(
        &mut self,
        x: &Self::Rows,
        gain: &Self::Vector,
        gate: &Self::Matrix,
        up: &Self::Matrix,
        out: &mut Self::Rows,
    ) -> Result<(), DeviceError>;

    /// Stores at every row's slot the prefix sum of the residual stream over the response:
    /// `sum[slot] = (response_count > 1 ? sum[slot of position - 1] : 0) + x` where `response_count > 0`.
    /// In row order, so that rows of one sequence may follow each other in a pass.
    fn accumulate(&mut self, x: &Self::Rows, tap: usize, cache: &mut Self::Cache) -> Result<(), DeviceError>;

    /// The head's value of every row, `[R]`. After [`Device::accumulate`] of its tap.
    fn values(&mut self, x: &Self::Rows, cache: &Self::Cache, head: &LinearHead) -> Result<Vec<f32>, DeviceError>;

    /// The head's projection of every row, `[R, rank]` row-major. After [`Device::accumulate`] of its tap.
    fn project(&mut self, x: &Self::Rows, cache: &Self::Cache, head: &OnePassHead) -> Result<Vec<f32>, DeviceError>;

    /// Values of candidate tokens from one row's projection `[rank]`; `table` is the embedding. A value
    /// depends on its own token only.
    fn score_tokens(
        &mut self,
        head: &OnePassHead,
        table: &Self::Matrix,
        projection: &[f32],
        tokens: &[u32],
    ) -> Result<Vec<f32>, DeviceError>;

    /// Reads features for learning: for every row `[residual; running mean; remaining; 1]`,
    /// `[R, 2H + 2]` row-major, appended to `out`. After [`Device::accumulate`] of its tap.
    fn read_features(
        &mut self,
        x: &Self::Rows,
        tap: usize,
        cache: &Self::Cache,
        out: &mut Vec<f32>,
    ) -> Result<(), DeviceError>;

    /// `to[start + i] = from[rows[i]]`: rows that leave a pass, or go on in another. Outside a pass.
    fn copy_rows(
        &mut self,
        from: &Self::Rows,
        rows: &[u32],
        to: &mut Self::Rows,
        start: usize,
    ) -> Result<(), DeviceError>;

    /// Copies keys and values of `layers`, and all sums of taps within them (tap <= layers.end), from one slot to
    /// another: a winner's scratch slot into its page. Outside a pass.
    fn commit(
        &mut self,
        cache: &mut Self::Cache,
        copies: &[(u32, u32)],
        layers: Range<usize>,
    ) -> Result<(), DeviceError>;

    /// Logits of some rows: `logits[slot] = table·norm(x[row])` for each `(row, slot)`. In a pass or outside.
    fn head(
        &mut self,
        x: &Self::Rows,
        rows: &[(u32, u32)],
        gain: &Self::Vector,
        table: &Self::Matrix,
        logits: &mut Self::Logits,
    ) -> Result<(), DeviceError>;

    /// The likeliest tokens of each row of logits that is asked about.
    fn top_k(&mut self, logits: &Self::Logits, queries: &[TopKQuery<'_>]) -> Result<Vec<TopK>, DeviceError>;

    /// Draws one token from each. `None` where no token has any weight left.
    ///
    /// The draw is exact in integers: with z = adjusted / T (f32) and z* its maximum over what can be
    /// drawn, a token weighs floor(exp(z − z*)·2^40) (`exp` the shared polynomial of
    /// [`crate::sampling::exp`]), sums run in u64, and the token drawn is the first in order of id whose
    /// running sum exceeds floor(random · total / 2^64). Nucleus order: weight falling, ties to the lower token.
    fn sample(&mut self, logits: &Self::Logits, draws: &[Draw]) -> Result<Vec<Option<Drawn>>, DeviceError>;

    /// Reads one row of logits, `[V]`, into `out`: for tests and tools.
    fn read_logits(&mut self, logits: &Self::Logits, slot: u32, out: &mut Vec<f32>) -> Result<(), DeviceError>;

    /// Reads the first `rows` rows of activations, row-major, into `out`: for tests and tools.
    fn read_rows(&mut self, x: &Self::Rows, rows: usize, out: &mut Vec<f32>) -> Result<(), DeviceError>;
}
