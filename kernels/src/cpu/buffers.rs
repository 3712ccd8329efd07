//! What a caller holds of the CPU device: vectors, activations, caches and logits.
//!
//! Plain memory with its shape, and the checks of that shape. Matrices are in `pack.rs`, the pages of a cache in
//! `cache.rs`; who may touch what, and when, is for `device.rs`.

use std::sync::OnceLock;

use super::cache::Cache;
use super::rope::Rope;
use super::vocabulary::Normalizer;
use crate::checks::{Bounds, check_below, check_equal, check_within, refuse};
use crate::device::{DeviceError, ModelShape};

/// A vector of f32.
pub struct Vector(pub(super) Vec<f32>);

/// Activations `[rows_max, width]`, f32, row-major.
pub struct Rows {
    pub(super) rows_max: usize,
    pub(super) width: usize,
    pub(super) data: Vec<f32>,
}

/// Keys, values and feature sums of one model, and what its passes need besides.
pub struct CpuCache {
    pub(super) cache: Cache,
    pub(super) rope: Rope,
    pub(super) model: ModelShape,
}

/// Logits `[slots, V]`, f32, row-major.
pub struct Logits {
    pub(super) slots: usize,
    pub(super) vocabulary: usize,
    pub(super) data: Vec<f32>,
    /// What each row is normalised by, where [`crate::Device::top_k`] has been asked since it was written: the sums are half
    /// of what a draw costs, and it needs the same.
    pub(super) normalizers: Vec<OnceLock<Normalizer>>,
}

/// One row of logits, `[V]`.
#[derive(Clone, Copy)]
pub(super) struct LogitRow<'a> {
    pub(super) logits: &'a [f32],
    pub(super) normalizer: &'a OnceLock<Normalizer>,
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

    pub(super) fn row(&self, index: usize) -> &[f32] {
        &self.data[index * self.width..][..self.width]
    }
}

impl CpuCache {
    /// Checks that a pass fits the cache and one of its layers.
    pub(super) fn check(&self, operation: &'static str, bounds: &Bounds, layer: usize) -> Result<(), DeviceError> {
        check_below(operation, "the layer", self.model.layers, layer)?;
        self.check_plan(operation, bounds)
    }

    pub(super) fn check_tap(&self, operation: &'static str, bounds: &Bounds, tap: usize) -> Result<(), DeviceError> {
        check_below(operation, "the tap", self.cache.taps().len(), tap)?;
        self.check_plan(operation, bounds)
    }

    pub(super) fn check_plan(&self, operation: &'static str, bounds: &Bounds) -> Result<(), DeviceError> {
        check_within(operation, "a row's slot", self.cache.slots(), bounds.slots)?;
        check_within(operation, "a sequence's page", self.cache.pages(), bounds.pages)?;
        check_within(operation, "a row's position", self.model.context_tokens, bounds.positions)
    }
}

impl Logits {
    pub(super) fn new(slots: usize, vocabulary: usize) -> Result<Logits, DeviceError> {
        let data = zeroed("logits", slots, vocabulary)?;
        Ok(Logits { slots, vocabulary, data, normalizers: vec![OnceLock::new(); slots] })
    }

    pub(super) fn slot(&self, operation: &'static str, slot: u32) -> Result<LogitRow<'_>, DeviceError> {
        check_below(operation, "the slot", self.slots, slot as usize)?;
        let slot = slot as usize;
        let logits = &self.data[slot * self.vocabulary..][..self.vocabulary];
        Ok(LogitRow { logits, normalizer: &self.normalizers[slot] })
    }
}

pub(super) fn zeroed(what: &'static str, rows: usize, width: usize) -> Result<Vec<f32>, DeviceError> {
    match rows.checked_mul(width) {
        // Zeroed memory comes from the system as it is touched.
        Some(size) if size <= isize::MAX as usize / 4 => Ok(vec![0.0; size]),
        _ => refuse("allocation", what, "a size that fits the address space", format!("{rows} by {width}")),
    }
}
