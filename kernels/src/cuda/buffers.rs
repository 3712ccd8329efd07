//! What a caller holds of the CUDA device: matrices, vectors, activations, caches and logits.
//!
//! Memory with its shape, and the checks of that shape. The layouts are those of the kernels' headers; who may touch
//! what, and when, is for `device.rs`.

use super::gpu::Gpu;
use super::memory::{Memory, Scratch};
use crate::checks::{Bounds, check_below, check_equal, check_within, refuse};
use crate::device::{CacheShape, DeviceError, ModelShape, PAGE_TOKENS};
use crate::format::Format;

/// Widest head that attention's kernels hold in registers.
pub(super) const HEAD_WIDTH_MAX: usize = 128;

/// A weight matrix `[n, k]`, packed.
pub struct Matrix {
    pub(super) format: Format,
    pub(super) n: usize,
    pub(super) k: usize,
    /// Pairs of blocks in a row.
    pub(super) pairs: usize,
    pub(super) quants: Memory,
    pub(super) scales: Memory,
}

impl Matrix {
    /// Output rows.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Elements of a row.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Bytes that it occupies, and that one pass over it reads.
    pub fn size_bytes(&self) -> usize {
        self.quants.len() + self.scales.len()
    }
}

/// A vector of f32.
pub struct Vector {
    pub(super) len: usize,
    pub(super) data: Memory,
}

/// Activations `[rows_max, width]`, f32, row-major; behind them rows that fill a pass up to its bucket.
pub struct Rows {
    pub(super) rows_max: usize,
    pub(super) width: usize,
    pub(super) data: Memory,
}

/// Logits `[slots, V]`, f32, row-major.
pub struct Logits {
    pub(super) slots: usize,
    pub(super) vocabulary: usize,
    pub(super) data: Memory,
}

/// Keys, values and feature sums of one model, and what its passes need besides.
pub struct CudaCache {
    pub(super) model: ModelShape,
    pub(super) shape: CacheShape,
    /// f16 `[pages, layers, KV, 32, D']`, D' the head's width rounded up to 32.
    pub(super) keys: Memory,
    /// f16 `[pages, layers, KV, D', 32]`.
    pub(super) values: Memory,
    /// f32 `[pages, taps, 32, H]`.
    pub(super) sums: Memory,
    /// Cosines and sines `[turn_positions, D / 2]`.
    pub(super) turns: Scratch,
    pub(super) turn_positions: usize,
}

impl Rows {
    pub(super) fn check(
        &self,
        operation: &'static str,
        what: &'static str,
        rows: usize,
        width: usize,
    ) -> Result<(), DeviceError> {
        check_equal(operation, what, width, self.width)?;
        if rows <= self.rows_max { Ok(()) } else { refuse(operation, what, format!("{rows} rows"), self.rows_max) }
    }
}

impl CudaCache {
    /// [`DeviceError::Shape`] where a tap is not in 1..=L, ascending, heads do not group, or a size overflows.
    pub(super) fn new(gpu: &Gpu, model: &ModelShape, shape: &CacheShape) -> Result<CudaCache, DeviceError> {
        let grouped = model.kv_heads > 0 && model.heads.is_multiple_of(model.kv_heads);
        if !grouped {
            return refuse("cache", "the number of heads", format!("a multiple of {}", model.kv_heads), model.heads);
        }
        let even = model.head_width.is_multiple_of(2);
        if !(even && (2..=HEAD_WIDTH_MAX).contains(&model.head_width)) {
            let expected = format!("even, from 2 to {HEAD_WIDTH_MAX}");
            return refuse("cache", "the width of a head", expected, model.head_width);
        }
        check_equal("cache", "RoPE's frequencies", model.head_width / 2, model.rope_inverse_frequencies.len())?;
        let ascending = shape.taps.windows(2).all(|pair| pair[0] < pair[1]);
        if !(ascending && shape.taps.iter().all(|&tap| 0 < tap && tap <= model.layers)) {
            let expected = format!("ascending layers from 1 to {}", model.layers);
            return refuse("cache", "taps", expected, format!("{:?}", shape.taps));
        }
        let padded = model.head_width.next_multiple_of(32);
        let heads = size(&[2, shape.pages, model.layers, model.kv_heads, PAGE_TOKENS, padded])?;
        let sums = size(&[4, shape.pages, shape.taps.len(), PAGE_TOKENS, model.hidden])?;
        Ok(CudaCache {
            model: model.clone(),
            shape: shape.clone(),
            keys: gpu.zeroed("the cache's keys", heads)?,
            values: gpu.zeroed("the cache's values", heads)?,
            sums: gpu.zeroed("the cache's sums", sums)?,
            turns: Scratch::default(),
            turn_positions: 0,
        })
    }

    /// Slots it holds.
    pub(super) fn slots(&self) -> usize {
        self.shape.pages * PAGE_TOKENS
    }

    /// Checks that a pass fits the cache and one of its layers.
    pub(super) fn check(&self, operation: &'static str, bounds: &Bounds, layer: usize) -> Result<(), DeviceError> {
        check_below(operation, "the layer", self.model.layers, layer)?;
        self.check_plan(operation, bounds)
    }

    pub(super) fn check_tap(&self, operation: &'static str, bounds: &Bounds, tap: usize) -> Result<(), DeviceError> {
        check_below(operation, "the tap", self.shape.taps.len(), tap)?;
        self.check_plan(operation, bounds)
    }

    fn check_plan(&self, operation: &'static str, bounds: &Bounds) -> Result<(), DeviceError> {
        check_within(operation, "a row's slot", self.slots(), bounds.slots)?;
        check_within(operation, "a sequence's page", self.shape.pages, bounds.pages)?;
        check_within(operation, "a row's position", self.model.context_tokens, bounds.positions)
    }

    /// Makes RoPE's turns of positions below `positions` ready, computed in f64 as `cpu/rope.rs` does; at least doubles,
    /// so that growth is rare. The address of the table.
    pub(super) fn turns(&mut self, gpu: &Gpu, positions: usize) -> Result<u64, DeviceError> {
        let bytes = |positions: usize| positions * self.model.rope_inverse_frequencies.len() * 8;
        if positions <= self.turn_positions {
            return self.turns.reserve(gpu, "RoPE's turns", bytes(self.turn_positions));
        }
        let most = self.model.context_tokens.max(256);
        let wanted = positions.max((2 * self.turn_positions).clamp(256, most));
        let mut table = Vec::with_capacity(bytes(wanted));
        for position in 0..wanted {
            for frequency in &self.model.rope_inverse_frequencies {
                let (sin, cos) = (position as f64 * frequency).sin_cos();
                table.extend((cos as f32).to_le_bytes());
                table.extend((sin as f32).to_le_bytes());
            }
        }
        let address = gpu.write("RoPE's turns", &table, &mut self.turns)?;
        self.turn_positions = wanted;
        Ok(address)
    }
}

/// A product of sizes that an allocation can have.
pub(super) fn size(dimensions: &[usize]) -> Result<usize, DeviceError> {
    let bytes = dimensions.iter().try_fold(1usize, |bytes, &d| bytes.checked_mul(d));
    match bytes {
        Some(bytes) if bytes <= isize::MAX as usize => Ok(bytes),
        _ => refuse("allocation", "the size", "one that fits the address space", format!("{dimensions:?}")),
    }
}
