//! [`Device`] on an NVIDIA card: checks of shapes, then the launches beside this file.
//!
//! Everything that a caller can get wrong is refused here with [`DeviceError::Shape`], in the words of the CPU's device,
//! so launches may rely on their buffers. Operations return before the card has done them, but for those that
//! answer with numbers; what fails on the card shows at the next of those.

use std::ops::Range;

use super::Cuda;
use super::binaries::Kernel;
use super::buffers::{CudaCache, Logits, Matrix, Rows, Vector, size};
use super::layers::{Kind, Layer};
use super::pack::{self, PAIR, code};
use super::parameters::{Commit, CopyRows, Embed};
use super::plan::{DevicePlan, padded_rows};
use super::stage::Stage;
use super::top_k::CHUNK;
use crate::checks::{check_below, check_equal, check_matrix, check_one_pass, check_within, refuse};
use crate::device::{
    CacheShape, Device, DeviceError, DeviceInfo, Draw, Drawn, LinearHead, ModelShape, OnePassHead, Plan, Projections,
    TopK, TopKQuery,
};
use crate::format::Format;
use crate::pool::Pool;

/// Chunks of a vocabulary that one block chooses among: a thread each.
const CHUNKS_MAX: usize = 1024;

impl Cuda {
    fn plan(&self, operation: &'static str) -> Result<&DevicePlan, DeviceError> {
        match &self.plan {
            Some(plan) => Ok(plan),
            None => refuse(operation, "the call", "between begin and end", "outside a pass"),
        }
    }

    /// Runs with the plan beside the device, so that both can be borrowed.
    fn in_pass<T>(
        &mut self,
        operation: &'static str,
        run: impl FnOnce(&mut Cuda, &mut DevicePlan) -> Result<T, DeviceError>,
    ) -> Result<T, DeviceError> {
        self.plan(operation)?;
        let Some(mut plan) = self.plan.take() else {
            return refuse(operation, "the call", "between begin and end", "outside a pass");
        };
        let result = run(self, &mut plan);
        self.plan = Some(plan);
        result
    }

    /// The plan, where it, x and the tap fit the cache.
    fn check_tap(
        &self,
        operation: &'static str,
        x: &Rows,
        tap: usize,
        cache: &CudaCache,
    ) -> Result<&DevicePlan, DeviceError> {
        let plan = self.plan(operation)?;
        cache.check_tap(operation, &plan.bounds, tap)?;
        x.check(operation, "x", plan.rows(), cache.model.hidden)?;
        Ok(plan)
    }

    fn check_outside(&self, operation: &'static str) -> Result<(), DeviceError> {
        if self.plan.is_none() { Ok(()) } else { refuse(operation, "the call", "outside a pass", "within one") }
    }
}

impl Device for Cuda {
    type Matrix = Matrix;
    type Vector = Vector;
    type Rows = Rows;
    type Cache = CudaCache;
    type Logits = Logits;

    fn pool(&self) -> &Pool {
        &self.pool
    }

    fn info(&self) -> DeviceInfo {
        self.gpu.card().info()
    }

    fn matrix(&mut self, format: Format, n: usize, k: usize, bytes: &[u8]) -> Result<Matrix, DeviceError> {
        let packed = pack::pack(format, n, k, bytes)?;
        let quants = self.gpu.upload("a matrix", &packed.quants)?;
        let scales = self.gpu.upload("a matrix's scales", &packed.scales)?;
        Ok(Matrix { format, n, k, pairs: k.div_ceil(PAIR), quants, scales })
    }

    fn vector(&mut self, values: &[f32]) -> Result<Vector, DeviceError> {
        Ok(Vector { len: values.len(), data: self.gpu.upload("a vector", values)? })
    }

    fn rows(&mut self, rows_max: usize, width: usize) -> Result<Rows, DeviceError> {
        check_within("rows", "the rows", i32::MAX as usize, rows_max)?;
        check_within("rows", "the width", i32::MAX as usize, width)?;
        Ok(Rows { rows_max, width, data: self.gpu.zeroed("rows", size(&[4, padded_rows(rows_max), width])?)? })
    }

    fn cache(&mut self, model: &ModelShape, shape: &CacheShape) -> Result<CudaCache, DeviceError> {
        let cache = CudaCache::new(&self.gpu, model, shape)?;
        self.norm_epsilon = model.norm_epsilon;
        Ok(cache)
    }

    fn logits(&mut self, slots: usize, vocabulary: usize) -> Result<Logits, DeviceError> {
        check_within("logits", "the vocabulary", CHUNKS_MAX * CHUNK, vocabulary)?;
        Ok(Logits { slots, vocabulary, data: self.gpu.zeroed("logits", size(&[4, slots, vocabulary])?)? })
    }

    fn begin(&mut self, plan: &Plan) -> Result<(), DeviceError> {
        self.check_outside("begin")?;
        self.plan = Some(DevicePlan::new(&self.gpu, plan, self.grouping, &mut self.scratch.plan)?);
        self.gpu.begin();
        Ok(())
    }

    fn end(&mut self) -> Result<(), DeviceError> {
        self.plan("end")?;
        self.plan = None;
        self.gpu.end()
    }

    fn embed(&mut self, table: &Matrix, x: &mut Rows) -> Result<(), DeviceError> {
        let plan = self.plan("embed")?;
        x.check("embed", "x", plan.rows(), table.k)?;
        check_within("embed", "a row's token", table.n, plan.bounds.tokens)?;
        let parameters = Embed {
            quants: table.quants.address(),
            scales: table.scales.address(),
            tokens: plan.tokens,
            x: x.data.address(),
            format: code(table.format),
            rows: table.n as u32,
            pairs: table.pairs as u32,
            width: x.width as u32,
        };
        // SAFETY: every token is a row of the table (padding's is 0), x holds the pass's rows, padded, of its width.
        unsafe { self.gpu.launch("embed", Kernel::Embed, [plan.padded, 1, 1], 256, &parameters) }
    }

    fn norm_qkv_store(
        &mut self,
        x: &Rows,
        gain: &Vector,
        weights: Projections<'_, Cuda>,
        cache: &mut CudaCache,
        layer: usize,
        q: &mut Rows,
    ) -> Result<(), DeviceError> {
        const OPERATION: &str = "norm_qkv_store";
        let plan = self.plan(OPERATION)?;
        let rows = plan.rows();
        cache.check(OPERATION, &plan.bounds, layer)?;
        let model = &cache.model;
        let (hidden, q_width, kv_width) =
            (model.hidden, model.heads * model.head_width, model.kv_heads * model.head_width);
        x.check(OPERATION, "x", rows, hidden)?;
        q.check(OPERATION, "q", rows, q_width)?;
        check_equal(OPERATION, "the gain", hidden, gain.len)?;
        let matrices = [weights.query, weights.key, weights.value];
        for (matrix, n) in matrices.into_iter().zip([q_width, kv_width, kv_width]) {
            check_matrix(OPERATION, [matrix.n, matrix.k], [n, hidden])?;
        }
        if let Some(biases) = weights.biases {
            for (bias, n) in biases.into_iter().zip([q_width, kv_width, kv_width]) {
                check_equal(OPERATION, "a bias", n, bias.len)?;
            }
        }
        self.norm_epsilon = model.norm_epsilon;
        self.in_pass(OPERATION, |cuda, plan| {
            let activations = cuda.prepare(OPERATION, x, plan.padded, 0, Some(gain))?;
            cuda.qkv(plan, &activations, weights, cache, layer, q)
        })
    }

    fn attend(&mut self, q: &Rows, cache: &CudaCache, layer: usize, out: &mut Rows) -> Result<(), DeviceError> {
        let plan = self.plan("attend")?;
        let rows = plan.rows();
        cache.check("attend", &plan.bounds, layer)?;
        let width = cache.model.heads * cache.model.head_width;
        q.check("attend", "q", rows, width)?;
        out.check("attend", "out", rows, width)?;
        self.in_pass("attend", |cuda, plan| cuda.attention(plan, q, cache, layer, out))
    }

    fn linear_add(&mut self, input: &Rows, weight: &Matrix, x: &mut Rows) -> Result<(), DeviceError> {
        const OPERATION: &str = "linear_add";
        let plan = self.plan(OPERATION)?;
        let (rows, padded) = (plan.rows(), plan.padded);
        input.check(OPERATION, "the input", rows, weight.k)?;
        x.check(OPERATION, "x", rows, weight.n)?;
        let activations = self.prepare(OPERATION, input, padded, 0, None)?;
        let layer = Layer { matrix: weight, bias: None, out: x.data.address(), kind: Kind::Add };
        self.linear(OPERATION, &activations, &[layer], 0, None)
    }

    fn norm_gate_up(
        &mut self,
        x: &Rows,
        gain: &Vector,
        gate: &Matrix,
        up: &Matrix,
        out: &mut Rows,
    ) -> Result<(), DeviceError> {
        const OPERATION: &str = "norm_gate_up";
        let plan = self.plan(OPERATION)?;
        let (rows, padded) = (plan.rows(), plan.padded);
        x.check(OPERATION, "x", rows, gate.k)?;
        out.check(OPERATION, "out", rows, gate.n)?;
        check_matrix(OPERATION, [up.n, up.k], [gate.n, gate.k])?;
        check_equal(OPERATION, "the gain", gate.k, gain.len)?;
        let activations = self.prepare(OPERATION, x, padded, 0, Some(gain))?;
        let layers = [gate, up].map(|matrix| Layer { matrix, bias: None, out: out.data.address(), kind: Kind::GateUp });
        self.linear(OPERATION, &activations, &layers, 0, None)
    }

    fn accumulate(&mut self, x: &Rows, tap: usize, cache: &mut CudaCache) -> Result<(), DeviceError> {
        let plan = self.check_tap("accumulate", x, tap, cache)?;
        self.launch_accumulate(plan, x, tap, cache)
    }

    fn values(&mut self, x: &Rows, cache: &CudaCache, head: &LinearHead) -> Result<Vec<f32>, DeviceError> {
        let hidden = cache.model.hidden;
        self.check_tap("values", x, head.tap, cache)?;
        check_equal("values", "the head's weights of the residual stream", hidden, head.residual.len())?;
        check_equal("values", "the head's weights of the mean", hidden, head.mean.len())?;
        if !head.share.is_empty() {
            check_equal("values", "the head's weights of the used share", hidden, head.share.len())?;
        }
        self.in_pass("values", |cuda, plan| cuda.launch_values(plan, x, cache, head))
    }

    fn project(&mut self, x: &Rows, cache: &CudaCache, head: &OnePassHead) -> Result<Vec<f32>, DeviceError> {
        self.check_tap("project", x, head.tap, cache)?;
        check_one_pass("project", head, cache.model.hidden)?;
        self.in_pass("project", |cuda, plan| cuda.launch_project(plan, x, cache, head))
    }

    fn score_tokens(
        &mut self,
        head: &OnePassHead,
        table: &Matrix,
        projection: &[f32],
        tokens: &[u32],
    ) -> Result<Vec<f32>, DeviceError> {
        check_one_pass("score_tokens", head, table.k)?;
        check_equal("score_tokens", "the projection", head.rank, projection.len())?;
        for &token in tokens {
            check_below("score_tokens", "a token", table.n, token as usize)?;
        }
        self.launch_score(head, table, projection, tokens)
    }

    fn read_features(
        &mut self,
        x: &Rows,
        tap: usize,
        cache: &CudaCache,
        out: &mut Vec<f32>,
    ) -> Result<(), DeviceError> {
        self.check_tap("read_features", x, tap, cache)?;
        let features = self.in_pass("read_features", |cuda, plan| cuda.launch_read_features(plan, x, tap, cache))?;
        out.extend(features);
        Ok(())
    }

    fn copy_rows(&mut self, from: &Rows, rows: &[u32], to: &mut Rows, start: usize) -> Result<(), DeviceError> {
        const OPERATION: &str = "copy_rows";
        self.check_outside(OPERATION)?;
        check_equal(OPERATION, "the target's width", from.width, to.width)?;
        if start > to.rows_max || rows.len() > to.rows_max - start {
            let got = format!("{} rows from {start}", rows.len());
            return refuse(OPERATION, "the target's range", format!("within {} rows", to.rows_max), got);
        }
        for &row in rows {
            check_below(OPERATION, "a row", from.rows_max, row as usize)?;
        }
        let mut stage = Stage::default();
        stage.push(rows);
        let list = self.gpu.write(OPERATION, &stage.bytes, &mut self.scratch.input)?;
        let parameters = CopyRows {
            from: from.data.address(),
            to: to.data.address() + 4 * (start * to.width) as u64,
            rows: list,
            width: from.width as u32,
            unused: 0,
        };
        let grid = [rows.len(), from.width.div_ceil(256), 1];
        // SAFETY: rows are those of `from`, and as many fit in `to` from `start` on.
        unsafe { self.gpu.launch(OPERATION, Kernel::CopyRows, grid, 256, &parameters) }
    }

    fn commit(
        &mut self,
        cache: &mut CudaCache,
        copies: &[(u32, u32)],
        layers: Range<usize>,
    ) -> Result<(), DeviceError> {
        const OPERATION: &str = "commit";
        self.check_outside(OPERATION)?;
        let model = &cache.model;
        if layers.start > layers.end || layers.end > model.layers {
            return refuse(OPERATION, "the layers", format!("within 0..{}", model.layers), format!("{layers:?}"));
        }
        for &(from, to) in copies {
            check_below(OPERATION, "a slot", cache.slots(), from.max(to) as usize)?;
        }
        let mut stage = Stage::default();
        let pairs = copies.iter().filter(|(from, to)| from != to).map(|&(from, to)| [from, to]);
        let pairs: Vec<[u32; 2]> = pairs.collect();
        stage.push(&pairs);
        let list = self.gpu.write(OPERATION, &stage.bytes, &mut self.scratch.input)?;
        let within = |tap: &&usize| layers.start < **tap && **tap <= layers.end;
        let taps = &cache.shape.taps;
        let tap_count = taps.iter().filter(within).count();
        let width = model.head_width.next_multiple_of(32);
        let parameters = Commit {
            keys: cache.keys.address(),
            values: cache.values.address(),
            sums: cache.sums.address(),
            copies: list,
            count: pairs.len() as u32,
            layers: model.layers as u32,
            kv_heads: model.kv_heads as u32,
            width: width as u32,
            hidden: model.hidden as u32,
            taps: taps.len() as u32,
            first_layer: layers.start as u32,
            layer_count: layers.len() as u32,
            first_tap: taps.iter().position(|tap| within(&tap)).unwrap_or(0) as u32,
            unused: 0,
        };
        let widest = if tap_count > 0 { width.max(model.hidden) } else { width };
        let grid = [layers.len() * model.kv_heads + tap_count, widest.div_ceil(256), 1];
        // SAFETY: slots and layers are the cache's, and the grid has every head of the layers and every tap within them.
        unsafe { self.gpu.launch(OPERATION, Kernel::Commit, grid, 256, &parameters) }
    }

    fn head(
        &mut self,
        x: &Rows,
        rows: &[(u32, u32)],
        gain: &Vector,
        table: &Matrix,
        logits: &mut Logits,
    ) -> Result<(), DeviceError> {
        const OPERATION: &str = "head";
        x.check(OPERATION, "x", 0, table.k)?;
        check_equal(OPERATION, "the gain", x.width, gain.len)?;
        check_equal(OPERATION, "the logits' vocabulary", table.n, logits.vocabulary)?;
        let mut slots: Vec<u32> = rows.iter().map(|&(_, slot)| slot).collect();
        slots.sort_unstable();
        if let Some(pair) = slots.windows(2).find(|pair| pair[0] == pair[1]) {
            return refuse(OPERATION, "a slot", "written once", format!("{} twice", pair[0]));
        }
        for &(row, slot) in rows {
            check_below(OPERATION, "a row", x.rows_max, row as usize)?;
            check_below(OPERATION, "a slot", logits.slots, slot as usize)?;
        }
        let (from, to): (Vec<u32>, Vec<u32>) = rows.iter().copied().unzip();
        let mut stage = Stage::default();
        let offsets = [stage.push(&from), stage.push(&to)];
        let base = self.gpu.write(OPERATION, &stage.bytes, &mut self.scratch.input)?;
        let activations = self.prepare(OPERATION, x, rows.len(), base + offsets[0], Some(gain))?;
        let layer = Layer { matrix: table, bias: None, out: logits.data.address(), kind: Kind::Store };
        self.linear(OPERATION, &activations, &[layer], base + offsets[1], None)
    }

    fn top_k(&mut self, logits: &Logits, queries: &[TopKQuery<'_>]) -> Result<Vec<TopK>, DeviceError> {
        self.top_k_batch(logits, queries)
    }

    fn sample(&mut self, logits: &Logits, draws: &[Draw]) -> Result<Vec<Option<Drawn>>, DeviceError> {
        self.sample_batch(logits, draws)
    }

    fn read_logits(&mut self, logits: &Logits, slot: u32, out: &mut Vec<f32>) -> Result<(), DeviceError> {
        check_below("read_logits", "the slot", logits.slots, slot as usize)?;
        let start = 4 * slot as usize * logits.vocabulary;
        *out = self.gpu.read("read_logits", &logits.data, start, logits.vocabulary)?;
        Ok(())
    }

    fn read_rows(&mut self, x: &Rows, rows: usize, out: &mut Vec<f32>) -> Result<(), DeviceError> {
        x.check("read_rows", "the rows", rows, x.width)?;
        *out = self.gpu.read("read_rows", &x.data, 0, rows * x.width)?;
        Ok(())
    }
}
