//! What a model asks of a device's memory, for the error where it has not enough: weights; keys and values, rows and
//! logits beside an option that lowers them.
//!
//! The sizes follow from the model's own numbers, with room for candidate rows whether or not heads need it, and without
//! what a device pads: they say where the memory goes, not to the byte.

use vassal_kernels::{DeviceError, ModelShape};

use crate::engine::{EngineError, EngineOptions};

/// What a model and its engine ask of a device's memory, with the options that lower it: of [`EngineOptions`], and of the
/// command line under the same names.
#[derive(Debug, Clone, thiserror::Error)]
#[error(
    "weights need {} MB, keys and values {} MB (less with --cache-tokens below {cache_tokens}), rows and logits {} MB \
     (less with --rows-max below {rows_max})",
    megabytes(*weights_bytes), megabytes(*cache_bytes), megabytes(*work_bytes)
)]
pub struct MemoryNeeds {
    /// The model's file.
    pub weights_bytes: u64,
    /// Keys and values of all positions.
    pub cache_bytes: u64,
    /// [`crate::engine::EngineOptions::cache_tokens`].
    pub cache_tokens: usize,
    /// Activations and logits.
    pub work_bytes: u64,
    /// [`crate::engine::EngineOptions::rows_max`].
    pub rows_max: usize,
}

impl MemoryNeeds {
    pub(crate) fn new(weights_bytes: u64, shape: &ModelShape, engine: &EngineOptions) -> Self {
        let attention = shape.heads * shape.head_width;
        let row = 2 * shape.hidden + 2 * attention + shape.feed_forward;
        let work =
            engine.rows_max * row + engine.candidate_rows_max * shape.hidden + engine.sequences_max * shape.vocabulary;
        Self {
            weights_bytes,
            cache_bytes: ((engine.cache_tokens + engine.candidate_rows_max) * cache_bytes_per_token(shape)) as u64,
            cache_tokens: engine.cache_tokens,
            work_bytes: 4 * work as u64,
            rows_max: engine.rows_max,
        }
    }

    /// An engine's error; where it is for want of memory, with what all of the model needs.
    pub(crate) fn beside(&self, error: EngineError) -> EngineError {
        match error {
            EngineError::Device(source @ DeviceError::Memory { .. }) => {
                EngineError::Memory { needs: Box::new(self.clone()), source }
            }
            other => other,
        }
    }
}

/// Keys and values of one position in all layers, f16.
pub(crate) fn cache_bytes_per_token(shape: &ModelShape) -> usize {
    shape.layers * 2 * shape.kv_heads * shape.head_width * 2
}

/// Bytes in millions, rounded up.
fn megabytes(bytes: u64) -> u64 {
    bytes.div_ceil(1_000_000)
}
