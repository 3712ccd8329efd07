//! [`Device`] on the CPU: checks of shapes, then calls to the kernels beside this file.
//!
//! Everything that a caller can get wrong is refused here with [`DeviceError::Shape`], so kernels may rely on
//! their slices. No arithmetic lives here but the sinks of the linear layers: store, add, multiply.

use std::ops::Range;
use std::sync::OnceLock;

use super::buffers::{CpuCache, Logits, Rows, Vector, zeroed};
use super::cache::Cache;
use super::disjoint::Disjoint;
use super::linear;
use super::pack::Matrix;
use super::quantize::{self, Source};
use super::rope::Rope;
use super::silu::silu_mul;
use super::tile::Lanes;
use super::{Cpu, attention, features, norm, sample, top_k};
use crate::checks::{Bounds, check_below, check_equal, check_matrix, check_one_pass, check_within, refuse};
use crate::device::{
    CacheShape, Device, DeviceError, DeviceInfo, Draw, Drawn, LinearHead, ModelShape, OnePassHead, Plan, Projections,
    TopK, TopKQuery,
};
use crate::format::Format;
use crate::pool::Pool;

/// What [`Device::norm_gate_up`] and [`Device::head`] use before the first cache brought a model's own.
pub(super) const NORM_EPSILON_BEFORE_ANY_CACHE: f32 = 1e-5;

/// Rows that one item takes of work that costs about a microsecond a row.
const ROWS_AN_ITEM: usize = 8;

impl Cpu {
    fn plan(&self, operation: &'static str) -> Result<&Plan, DeviceError> {
        plan_of(&self.plan, operation)
    }

    fn check_outside(&self, operation: &'static str) -> Result<(), DeviceError> {
        if self.plan.is_none() { Ok(()) } else { refuse(operation, "the call", "outside a pass", "within one") }
    }

    /// Prepares norms of some rows of x as the activations of `matrices`.
    fn prepare_norm(
        &mut self,
        rows: usize,
        row_of: &(dyn Fn(usize) -> usize + Sync),
        x: &Rows,
        gain: &Vector,
        matrices: &[&Matrix],
    ) {
        let formats: Vec<Format> = matrices.iter().map(|matrix| matrix.format()).collect();
        let (isa, epsilon) = (self.isa, self.norm_epsilon);
        self.activations.prepare(
            &self.pool,
            isa,
            (rows, x.width),
            &formats,
            Source::Computed(&|row, out| norm::rms_norm(isa, x.row(row_of(row)), &gain.0, epsilon, out)),
        );
    }
}

fn plan_of<'a>(plan: &'a Option<Plan>, operation: &'static str) -> Result<&'a Plan, DeviceError> {
    match plan {
        Some(plan) => Ok(plan),
        None => refuse(operation, "the call", "between begin and end", "outside a pass"),
    }
}

/// Combines the results of a tile with as many outputs as there are. A whole tile, which almost every one is,
/// has its length known to the compiler.
#[inline(always)]
fn combine(out: &mut [f32], lanes: &Lanes, with: impl Fn(&mut f32, f32)) {
    if let Ok(out) = <&mut Lanes>::try_from(&mut *out) {
        for (out, result) in out.iter_mut().zip(lanes) {
            with(out, *result);
        }
    } else {
        for (out, result) in out.iter_mut().zip(lanes) {
            with(out, *result);
        }
    }
}

impl Device for Cpu {
    type Matrix = Matrix;
    type Vector = Vector;
    type Rows = Rows;
    type Cache = CpuCache;
    type Logits = Logits;

    fn pool(&self) -> &Pool {
        &self.pool
    }

    fn info(&self) -> DeviceInfo {
        DeviceInfo { name: "cpu".into(), isa: self.isa.isa().name().into(), threads: self.pool.threads() }
    }

    fn matrix(&mut self, format: Format, n: usize, k: usize, bytes: &[u8]) -> Result<Matrix, DeviceError> {
        Matrix::pack(format, n, k, bytes)
    }

    fn vector(&mut self, values: &[f32]) -> Result<Vector, DeviceError> {
        Ok(Vector(values.to_vec()))
    }

    fn rows(&mut self, rows_max: usize, width: usize) -> Result<Rows, DeviceError> {
        Ok(Rows { rows_max, width, data: zeroed("rows", rows_max, width)? })
    }

    fn cache(&mut self, model: &ModelShape, shape: &CacheShape) -> Result<CpuCache, DeviceError> {
        let grouped = model.kv_heads > 0 && model.heads.is_multiple_of(model.kv_heads);
        if !grouped {
            return refuse("cache", "the number of heads", format!("a multiple of {}", model.kv_heads), model.heads);
        }
        if model.head_width == 0 || !model.head_width.is_multiple_of(2) {
            return refuse("cache", "the width of a head", "even and above 0", model.head_width);
        }
        check_equal("cache", "RoPE's frequencies", model.head_width / 2, model.rope_inverse_frequencies.len())?;
        self.norm_epsilon = model.norm_epsilon;
        Ok(CpuCache { cache: Cache::new(model, shape)?, rope: Rope::new(model), model: model.clone() })
    }

    fn logits(&mut self, slots: usize, vocabulary: usize) -> Result<Logits, DeviceError> {
        Logits::new(slots, vocabulary)
    }

    fn begin(&mut self, plan: &Plan) -> Result<(), DeviceError> {
        self.check_outside("begin")?;
        self.bounds = Bounds::of(plan)?;
        self.plan = Some(plan.clone());
        Ok(())
    }

    fn end(&mut self) -> Result<(), DeviceError> {
        self.plan("end")?;
        self.plan = None;
        Ok(())
    }

    fn embed(&mut self, table: &Matrix, x: &mut Rows) -> Result<(), DeviceError> {
        let plan = self.plan("embed")?;
        let rows = plan.rows.len();
        x.check("embed", "x", rows, table.k())?;
        check_within("embed", "a row's token", table.n(), self.bounds.tokens)?;
        let width = x.width;
        let out = Disjoint::new(&mut x.data);
        self.pool.for_each(rows.div_ceil(ROWS_AN_ITEM), &|item| {
            for row in item * ROWS_AN_ITEM..rows.min((item + 1) * ROWS_AN_ITEM) {
                // SAFETY: every item has rows of its own.
                let out = unsafe { out.part(row * width..(row + 1) * width) };
                let read = table.read_row(plan.rows[row].token as usize, out);
                debug_assert!(read.is_ok(), "token and width were checked");
            }
        });
        Ok(())
    }

    fn norm_qkv_store(
        &mut self,
        x: &Rows,
        gain: &Vector,
        weights: Projections<'_, Cpu>,
        cache: &mut CpuCache,
        layer: usize,
        q: &mut Rows,
    ) -> Result<(), DeviceError> {
        const OPERATION: &str = "norm_qkv_store";
        let rows = self.plan(OPERATION)?.rows.len();
        cache.check(OPERATION, &self.bounds, layer)?;
        let model = &cache.model;
        let (hidden, q_width, kv_width) =
            (model.hidden, model.heads * model.head_width, model.kv_heads * model.head_width);
        x.check(OPERATION, "x", rows, hidden)?;
        q.check(OPERATION, "q", rows, q_width)?;
        check_equal(OPERATION, "the gain", hidden, gain.0.len())?;
        let matrices = [weights.query, weights.key, weights.value];
        for (matrix, n) in matrices.into_iter().zip([q_width, kv_width, kv_width]) {
            check_matrix(OPERATION, [matrix.n(), matrix.k()], [n, hidden])?;
        }
        if let Some(biases) = weights.biases {
            for (bias, n) in biases.into_iter().zip([q_width, kv_width, kv_width]) {
                check_equal(OPERATION, "a bias", n, bias.0.len())?;
            }
        }
        self.norm_epsilon = model.norm_epsilon;
        self.prepare_norm(rows, &|row| row, x, gain, &matrices);

        self.keys.resize(rows * kv_width, 0.0);
        self.values.resize(rows * kv_width, 0.0);
        let widths = [q_width, kv_width, kv_width];
        let outs = [Disjoint::new(&mut q.data), Disjoint::new(&mut self.keys), Disjoint::new(&mut self.values)];
        linear::run(&self.pool, self.isa, &self.activations, &matrices.map(|m| [m]), &|place, [lanes]| {
            let start = place.row * widths[place.job];
            // SAFETY: every place comes once.
            let out = unsafe { outs[place.job].part(start + place.columns.start..start + place.columns.end) };
            combine(out, lanes, |out, result| *out = result);
            if let Some(biases) = weights.biases {
                for (out, bias) in out.iter_mut().zip(&biases[place.job].0[place.columns.clone()]) {
                    *out += bias;
                }
            }
        });

        cache.rope.reserve(self.bounds.positions);
        let plan = plan_of(&self.plan, OPERATION)?;
        let rope = &cache.rope;
        let [queries, keys, _] = &outs;
        self.pool.for_each(rows.div_ceil(ROWS_AN_ITEM), &|item| {
            for row in item * ROWS_AN_ITEM..rows.min((item + 1) * ROWS_AN_ITEM) {
                let position = plan.rows[row].position as usize;
                // SAFETY: every item has rows of its own.
                rope.apply(position, unsafe { queries.part(row * q_width..(row + 1) * q_width) });
                // SAFETY: as above.
                rope.apply(position, unsafe { keys.part(row * kv_width..(row + 1) * kv_width) });
            }
        });
        for (row, plan_row) in plan.rows.iter().enumerate() {
            let range = row * kv_width..(row + 1) * kv_width;
            cache.cache.store(layer, plan_row.slot as usize, &self.keys[range.clone()], &self.values[range]);
        }
        Ok(())
    }

    fn attend(&mut self, q: &Rows, cache: &CpuCache, layer: usize, out: &mut Rows) -> Result<(), DeviceError> {
        let plan = self.plan("attend")?;
        let rows = plan.rows.len();
        cache.check("attend", &self.bounds, layer)?;
        let width = cache.model.heads * cache.model.head_width;
        q.check("attend", "q", rows, width)?;
        out.check("attend", "out", rows, width)?;
        let size = rows * width;
        attention::attend(self.isa, &self.pool, plan, &q.data[..size], &cache.cache, layer, &mut out.data[..size]);
        Ok(())
    }

    fn linear_add(&mut self, input: &Rows, weight: &Matrix, x: &mut Rows) -> Result<(), DeviceError> {
        let rows = self.plan("linear_add")?.rows.len();
        input.check("linear_add", "the input", rows, weight.k())?;
        x.check("linear_add", "x", rows, weight.n())?;
        // Attention's output is small beside its own rounding errors downstream: there, what 8 bits leave of a
        // row is multiplied too (16 bits in all). That is 9 % of a layer's work, and free where bytes bound it; the
        // wide input of a feed-forward part is left at 8 bits. By the weight's shape only, so that rows do
        // not depend on their batch.
        let refined = quantize::reads_quantized(weight.format()) && weight.k() <= weight.n();
        let whole = |row: usize| input.row(row);
        let left = |row: usize, out: &mut [f32]| {
            out.copy_from_slice(input.row(row));
            quantize::keep_what_is_left(out);
        };
        let parts = [(Source::Stored(&whole), true), (Source::Computed(&left), refined)];
        for (part, _) in parts.into_iter().filter(|(_, wanted)| *wanted) {
            let shape = (rows, input.width);
            self.activations.prepare(&self.pool, self.isa, shape, &[weight.format()], part);
            let width = x.width;
            let x = Disjoint::new(&mut x.data);
            linear::run(&self.pool, self.isa, &self.activations, &[[weight]], &|place, [lanes]| {
                let start = place.row * width;
                // SAFETY: every place comes once.
                let x = unsafe { x.part(start + place.columns.start..start + place.columns.end) };
                combine(x, lanes, |x, result| *x += result);
            });
        }
        Ok(())
    }

    fn norm_gate_up(
        &mut self,
        x: &Rows,
        gain: &Vector,
        gate: &Matrix,
        up: &Matrix,
        out: &mut Rows,
    ) -> Result<(), DeviceError> {
        let rows = self.plan("norm_gate_up")?.rows.len();
        x.check("norm_gate_up", "x", rows, gate.k())?;
        out.check("norm_gate_up", "out", rows, gate.n())?;
        check_matrix("norm_gate_up", [up.n(), up.k()], [gate.n(), gate.k()])?;
        check_equal("norm_gate_up", "the gain", gate.k(), gain.0.len())?;
        self.prepare_norm(rows, &|row| row, x, gain, &[gate, up]);
        let (isa, width) = (self.isa, out.width);
        let out = Disjoint::new(&mut out.data);
        linear::run(&self.pool, isa, &self.activations, &[[gate, up]], &|place, [gate, up]| {
            let start = place.row * width;
            // SAFETY: every place comes once.
            let out = unsafe { out.part(start + place.columns.start..start + place.columns.end) };
            combine(out, &silu_mul(isa, gate, up), |out, result| *out = result);
        });
        Ok(())
    }

    fn accumulate(&mut self, x: &Rows, tap: usize, cache: &mut CpuCache) -> Result<(), DeviceError> {
        let plan = self.plan("accumulate")?;
        cache.check_tap("accumulate", &self.bounds, tap)?;
        x.check("accumulate", "x", plan.rows.len(), cache.model.hidden)?;
        cache.cache.accumulate(plan, tap, &x.data[..plan.rows.len() * x.width]);
        Ok(())
    }

    fn values(&mut self, x: &Rows, cache: &CpuCache, head: &LinearHead) -> Result<Vec<f32>, DeviceError> {
        let plan = self.plan("values")?;
        let hidden = cache.model.hidden;
        cache.check_tap("values", &self.bounds, head.tap)?;
        x.check("values", "x", plan.rows.len(), hidden)?;
        check_equal("values", "the head's weights of the residual stream", hidden, head.residual.len())?;
        check_equal("values", "the head's weights of the mean", hidden, head.mean.len())?;
        if !head.share.is_empty() {
            check_equal("values", "the head's weights of the used share", hidden, head.share.len())?;
        }
        Ok(features::values(self.isa, plan, &x.data[..plan.rows.len() * hidden], &cache.cache, head))
    }

    fn project(&mut self, x: &Rows, cache: &CpuCache, head: &OnePassHead) -> Result<Vec<f32>, DeviceError> {
        let plan = self.plan("project")?;
        let hidden = cache.model.hidden;
        cache.check_tap("project", &self.bounds, head.tap)?;
        x.check("project", "x", plan.rows.len(), hidden)?;
        check_one_pass("project", head, hidden)?;
        Ok(features::project(self.isa, &self.pool, plan, &x.data[..plan.rows.len() * hidden], &cache.cache, head))
    }

    fn score_tokens(
        &mut self,
        head: &OnePassHead,
        table: &Matrix,
        projection: &[f32],
        tokens: &[u32],
    ) -> Result<Vec<f32>, DeviceError> {
        let hidden = table.k();
        check_one_pass("score_tokens", head, hidden)?;
        check_equal("score_tokens", "the projection", head.rank, projection.len())?;
        let mut embeddings = vec![0.0; tokens.len() * hidden];
        for (&token, out) in tokens.iter().zip(embeddings.chunks_exact_mut(hidden)) {
            check_below("score_tokens", "a token", table.n(), token as usize)?;
            table.read_row(token as usize, out)?;
        }
        Ok(features::score(self.isa, head, projection, &embeddings, tokens))
    }

    fn read_features(&mut self, x: &Rows, tap: usize, cache: &CpuCache, out: &mut Vec<f32>) -> Result<(), DeviceError> {
        let plan = self.plan("read_features")?;
        let hidden = cache.model.hidden;
        cache.check_tap("read_features", &self.bounds, tap)?;
        x.check("read_features", "x", plan.rows.len(), hidden)?;
        features::read_features(plan, &x.data[..plan.rows.len() * hidden], hidden, &cache.cache, tap, out);
        Ok(())
    }

    fn copy_rows(&mut self, from: &Rows, rows: &[u32], to: &mut Rows, start: usize) -> Result<(), DeviceError> {
        self.check_outside("copy_rows")?;
        check_equal("copy_rows", "the target's width", from.width, to.width)?;
        if start > to.rows_max || rows.len() > to.rows_max - start {
            let got = format!("{} rows from {start}", rows.len());
            return refuse("copy_rows", "the target's range", format!("within {} rows", to.rows_max), got);
        }
        for &row in rows {
            check_below("copy_rows", "a row", from.rows_max, row as usize)?;
        }
        for (&row, to) in rows.iter().zip(to.data[start * from.width..].chunks_exact_mut(from.width.max(1))) {
            to.copy_from_slice(from.row(row as usize));
        }
        Ok(())
    }

    fn commit(&mut self, cache: &mut CpuCache, copies: &[(u32, u32)], layers: Range<usize>) -> Result<(), DeviceError> {
        self.check_outside("commit")?;
        if layers.start > layers.end || layers.end > cache.model.layers {
            return refuse("commit", "the layers", format!("within 0..{}", cache.model.layers), format!("{layers:?}"));
        }
        for &(from, to) in copies {
            check_below("commit", "a slot", cache.cache.slots(), from.max(to) as usize)?;
        }
        cache.cache.commit(copies, layers);
        Ok(())
    }

    fn head(
        &mut self,
        x: &Rows,
        rows: &[(u32, u32)],
        gain: &Vector,
        table: &Matrix,
        logits: &mut Logits,
    ) -> Result<(), DeviceError> {
        x.check("head", "x", 0, table.k())?;
        check_equal("head", "the gain", x.width, gain.0.len())?;
        check_equal("head", "the logits' vocabulary", table.n(), logits.vocabulary)?;
        let mut slots: Vec<u32> = rows.iter().map(|&(_, slot)| slot).collect();
        slots.sort_unstable();
        if let Some(pair) = slots.windows(2).find(|pair| pair[0] == pair[1]) {
            return refuse("head", "a slot", "written once", format!("{} twice", pair[0]));
        }
        for &(row, slot) in rows {
            check_below("head", "a row", x.rows_max, row as usize)?;
            check_below("head", "a slot", logits.slots, slot as usize)?;
        }
        rows.iter().for_each(|&(_, slot)| logits.normalizers[slot as usize] = OnceLock::new());
        self.prepare_norm(rows.len(), &|row| rows[row].0 as usize, x, gain, &[table]);
        let vocabulary = logits.vocabulary;
        let logits = Disjoint::new(&mut logits.data);
        linear::run(&self.pool, self.isa, &self.activations, &[[table]], &|place, [lanes]| {
            let start = rows[place.row].1 as usize * vocabulary;
            // SAFETY: every place comes once, and no slot occurs twice.
            let out = unsafe { logits.part(start + place.columns.start..start + place.columns.end) };
            combine(out, lanes, |out, result| *out = result);
        });
        Ok(())
    }

    fn top_k(&mut self, logits: &Logits, queries: &[TopKQuery<'_>]) -> Result<Vec<TopK>, DeviceError> {
        let row = |query: &TopKQuery<'_>| logits.slot("top_k", query.slot);
        let rows = queries.iter().map(row).collect::<Result<Vec<_>, _>>()?;
        Ok(top_k::top_k(self.isa, &self.pool, &rows, queries))
    }

    fn sample(&mut self, logits: &Logits, draws: &[Draw]) -> Result<Vec<Option<Drawn>>, DeviceError> {
        sample::sample(self.isa, &self.pool, logits, draws)
    }

    fn read_logits(&mut self, logits: &Logits, slot: u32, out: &mut Vec<f32>) -> Result<(), DeviceError> {
        let row = logits.slot("read_logits", slot)?;
        out.clear();
        out.extend_from_slice(row.logits);
        Ok(())
    }

    fn read_rows(&mut self, x: &Rows, rows: usize, out: &mut Vec<f32>) -> Result<(), DeviceError> {
        x.check("read_rows", "the rows", rows, x.width)?;
        out.clear();
        out.extend_from_slice(&x.data[..rows * x.width]);
        Ok(())
    }
}
