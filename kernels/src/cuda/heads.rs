//! Launches of value heads, whose weights stay on the device between calls.
//!
//! The trait passes heads as plain values. Those used last are kept here beside what was uploaded of them, and found
//! again by comparing every weight: a head that was changed in place is another head. The comparison costs some 20 µs
//! a megabyte; the upload that it saves costs more.

use super::Cuda;
use super::binaries::Kernel;
use super::buffers::{CudaCache, Matrix, Rows};
use super::gpu::Gpu;
use super::memory::Memory;
use super::pack::code;
use super::parameters::{Accumulate, Features, Project, ReadFeatures, Score, Values};
use super::plan::DevicePlan;
use super::stage::Stage;
use crate::device::{DeviceError, LinearHead, OnePassHead};

/// Heads of each kind that stay on the device.
const HELD_MAX: usize = 16;

/// Heads on the device, the last used last.
#[derive(Default)]
pub(super) struct Held {
    linear: Vec<(LinearHead, Memory)>,
    one_pass: Vec<(OnePassHead, Memory, OnePassPlaces)>,
}

/// Where the parts of a one-pass head lie.
#[derive(Clone, Copy)]
struct OnePassPlaces {
    state: u64,
    embedding: u64,
    token_bias: u64,
}

impl Held {
    /// Addresses of residual, mean and share weights; share 0 where there are none.
    fn linear(&mut self, gpu: &Gpu, head: &LinearHead) -> Result<[u64; 3], DeviceError> {
        let held = match self.linear.iter().position(|(held, _)| held == head) {
            Some(index) => self.linear.remove(index),
            None => {
                let weights = [&head.residual[..], &head.mean, &head.share].concat();
                (head.clone(), gpu.upload("a head", &weights)?)
            }
        };
        let (first, row) = (held.1.address(), 4 * head.residual.len() as u64);
        keep(&mut self.linear, held);
        Ok([first, first + row, if head.share.is_empty() { 0 } else { first + 2 * row }])
    }

    fn one_pass(&mut self, gpu: &Gpu, head: &OnePassHead) -> Result<OnePassPlaces, DeviceError> {
        let held = match self.one_pass.iter().position(|(held, ..)| held == head) {
            Some(index) => self.one_pass.remove(index),
            None => {
                let bias: Vec<u16> = head.token_bias.iter().map(|bias| bias.to_bits()).collect();
                let mut stage = Stage::default();
                let offsets = [stage.push(&head.state), stage.push(&head.embedding), stage.push(&bias)];
                let memory = gpu.upload("a head", &stage.bytes)?;
                let [state, embedding, token_bias] = offsets.map(|offset| memory.address() + offset);
                (head.clone(), memory, OnePassPlaces { state, embedding, token_bias })
            }
        };
        let places = held.2;
        keep(&mut self.one_pass, held);
        Ok(places)
    }
}

/// Puts the one just used last, and lets the one used longest ago go where there are too many.
fn keep<T>(list: &mut Vec<T>, held: T) {
    list.push(held);
    if list.len() > HELD_MAX {
        list.remove(0);
    }
}

/// What all kernels here read.
fn features(plan: &DevicePlan, x: &Rows, cache: &CudaCache, tap: usize) -> Features {
    Features {
        x: x.data.address(),
        sums: cache.sums.address(),
        positions: plan.positions,
        sequences: plan.sequences,
        slots: plan.slots,
        counts: plan.counts,
        remaining: plan.remaining,
        table_starts: plan.table_starts,
        pages: plan.pages,
        hidden: cache.model.hidden as u32,
        taps: cache.shape.taps.len() as u32,
        tap: tap as u32,
        unused: 0,
    }
}

impl Cuda {
    pub(super) fn launch_accumulate(
        &self,
        plan: &DevicePlan,
        x: &Rows,
        tap: usize,
        cache: &CudaCache,
    ) -> Result<(), DeviceError> {
        let parameters = Accumulate { features: features(plan, x, cache, tap), chains: plan.chains };
        let grid = [plan.padded, cache.model.hidden.div_ceil(256), 1];
        // SAFETY: the plan's slots and pages are the cache's, x holds its rows; checked by the caller.
        unsafe { self.gpu.launch("accumulate", Kernel::Accumulate, grid, 256, &parameters) }
    }

    pub(super) fn launch_values(
        &mut self,
        plan: &DevicePlan,
        x: &Rows,
        cache: &CudaCache,
        head: &LinearHead,
    ) -> Result<Vec<f32>, DeviceError> {
        let [residual, mean, share] = self.heads.linear(&self.gpu, head)?;
        let out = self.scratch.output.reserve(&self.gpu, "values", 4 * plan.padded)?;
        let features = features(plan, x, cache, head.tap);
        let parameters = Values { features, residual, mean, share, out, remaining: head.remaining, bias: head.bias };
        // SAFETY: as in `launch_accumulate`; the head's weights are as long as the rows are wide, out has one f32 a row.
        unsafe { self.gpu.launch("values", Kernel::Values, [plan.padded, 1, 1], 256, &parameters)? };
        self.gpu.read_scratch("values", &self.scratch.output, 0, plan.rows())
    }

    pub(super) fn launch_project(
        &mut self,
        plan: &DevicePlan,
        x: &Rows,
        cache: &CudaCache,
        head: &OnePassHead,
    ) -> Result<Vec<f32>, DeviceError> {
        let places = self.heads.one_pass(&self.gpu, head)?;
        let out = self.scratch.output.reserve(&self.gpu, "projections", 4 * plan.padded * head.rank)?;
        let parameters = Project { features: features(plan, x, cache, head.tap), state: places.state, out };
        // SAFETY: as above; state has rank rows of 2H + 2, out rank f32 a row.
        unsafe { self.gpu.launch("project", Kernel::Project, [plan.padded, head.rank, 1], 256, &parameters)? };
        self.gpu.read_scratch("project", &self.scratch.output, 0, plan.rows() * head.rank)
    }

    pub(super) fn launch_score(
        &mut self,
        head: &OnePassHead,
        table: &Matrix,
        projection: &[f32],
        tokens: &[u32],
    ) -> Result<Vec<f32>, DeviceError> {
        const OPERATION: &str = "score_tokens";
        let places = self.heads.one_pass(&self.gpu, head)?;
        let mut stage = Stage::default();
        let offsets = [stage.push(projection), stage.push(tokens)];
        let base = self.gpu.write(OPERATION, &stage.bytes, &mut self.scratch.input)?;
        let [projection, token_list] = offsets.map(|offset| base + offset);
        let out = self.scratch.output.reserve(&self.gpu, "scores", 4 * tokens.len())?;
        let parameters = Score {
            quants: table.quants.address(),
            scales: table.scales.address(),
            embedding: places.embedding,
            projection,
            token_bias: places.token_bias,
            tokens: token_list,
            out,
            format: code(table.format),
            rows: table.n as u32,
            pairs: table.pairs as u32,
            hidden: table.k as u32,
            rank: head.rank as u32,
            biases: head.token_bias.len().min(table.n) as u32,
        };
        // SAFETY: tokens are below the table's rows, the embedding matrix has rank rows of its width.
        unsafe { self.gpu.launch(OPERATION, Kernel::Score, [tokens.len(), 1, 1], 256, &parameters)? };
        self.gpu.read_scratch(OPERATION, &self.scratch.output, 0, tokens.len())
    }

    pub(super) fn launch_read_features(
        &mut self,
        plan: &DevicePlan,
        x: &Rows,
        tap: usize,
        cache: &CudaCache,
    ) -> Result<Vec<f32>, DeviceError> {
        let width = 2 * cache.model.hidden + 2;
        let out = self.scratch.output.reserve(&self.gpu, "features", 4 * plan.padded * width)?;
        let parameters = ReadFeatures { features: features(plan, x, cache, tap), out };
        // SAFETY: as above; out has 2H + 2 f32 a row.
        unsafe { self.gpu.launch("read_features", Kernel::ReadFeatures, [plan.padded, 1, 1], 256, &parameters)? };
        self.gpu.read_scratch("read_features", &self.scratch.output, 0, plan.rows() * width)
    }
}
