//! Launches of a pass's layers: activations, linear layers, attention.
//!
//! Each function here is safe: it takes buffers whose shapes `device.rs` has checked against each other and against the
//! plan, sizes scratch, and launches. The grids and thread counts are those that the kernels' headers assume.

use super::Cuda;
use super::binaries::Kernel;
use super::buffers::{CudaCache, HEAD_WIDTH_MAX, Matrix, Rows, Vector, size};
use super::memory::Scratch;
use super::pack::{PAIR, TILE, code};
use super::parameters::{Attend, Job, Linear, Prepare, RopeStore};
use super::plan::{DevicePlan, TileKey, groups_of, padded_rows};
use super::stage::offsets;
use crate::checks::refuse;
use crate::device::{DeviceError, Projections, RopePairing};

/// What linear.cu does with a job's results.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    Store = 0,
    Add = 1,
    GateUp = 2,
    Query = 3,
    Key = 4,
    Value = 5,
}

/// A matrix of a launch, its bias, where results go and how.
#[derive(Clone, Copy)]
pub(super) struct Layer<'a> {
    pub(super) matrix: &'a Matrix,
    pub(super) bias: Option<&'a Vector>,
    pub(super) out: u64,
    pub(super) kind: Kind,
}

/// Activations as linear layers take them: see prepare.cu.
pub(super) struct Activations {
    rows: usize,
    /// Rows rounded up to whole groups of the kernel's.
    padded: usize,
    pairs: usize,
    /// Groups of 8 rows that a block takes.
    groups: usize,
    acts: u64,
    inverse: u64,
    sums: u64,
}

/// Where rows of a cache's layer are turned and stored.
pub(super) struct Turning {
    turns: u64,
    positions: u64,
    slots: u64,
    head_width: u32,
    kv_heads: u32,
    layers: u32,
    layer: u32,
}

impl Turning {
    /// No cache in this launch.
    const NONE: Turning = Turning { turns: 0, positions: 0, slots: 0, head_width: 2, kv_heads: 1, layers: 1, layer: 0 };

    pub(super) fn new(plan: &DevicePlan, cache: &CudaCache, turns: u64, layer: usize) -> Turning {
        Turning {
            turns,
            positions: plan.positions,
            slots: plan.slots,
            head_width: cache.model.head_width as u32,
            kv_heads: cache.model.kv_heads as u32,
            layers: cache.model.layers as u32,
            layer: layer as u32,
        }
    }
}

impl Cuda {
    /// Prepares `rows` rows of x (those that `from`, an address, lists; or the first), normed where there is a gain.
    pub(super) fn prepare(
        &mut self,
        operation: &'static str,
        x: &Rows,
        rows: usize,
        from: u64,
        gain: Option<&Vector>,
    ) -> Result<Activations, DeviceError> {
        let groups = groups_of(rows);
        let (padded, pairs) = (padded_rows(rows), x.width.div_ceil(PAIR));
        let acts = size(&[2, padded, pairs * PAIR])?;
        let ([acts, inverse, sums], bytes) = offsets([acts, 4 * padded, size(&[4, 2 * pairs, padded])?]);
        let base = self.scratch.activations.reserve(&self.gpu, "activations", bytes)?;
        let [acts, inverse, sums] = [acts, inverse, sums].map(|offset| base + offset);
        let parameters = Prepare {
            x: x.data.address(),
            from,
            gain: gain.map_or(0, |gain| gain.data.address()),
            acts,
            inverse,
            sums,
            rows: rows as u32,
            width: x.width as u32,
            pairs: pairs as u32,
            padded: padded as u32,
            epsilon: self.norm_epsilon,
            unused: 0,
        };
        // SAFETY: x has these rows (checked by the caller) of this width, the gain its length, and scratch was sized above.
        unsafe { self.gpu.launch(operation, Kernel::Prepare, [padded, 1, 1], 256, &parameters)? };
        Ok(Activations { rows, padded, pairs, groups, acts, inverse, sums })
    }

    /// Multiplies activations with up to three matrices. `places`, an address: where rows of [`Kind::Store`] go.
    pub(super) fn linear(
        &self,
        operation: &'static str,
        activations: &Activations,
        layers: &[Layer<'_>],
        places: u64,
        turning: Option<&Turning>,
    ) -> Result<(), DeviceError> {
        let Activations { rows, padded, pairs, groups, acts, inverse, sums } = *activations;
        if rows == 0 {
            return Ok(());
        }
        let gate_up = matches!(layers.first(), Some(Layer { kind: Kind::GateUp, .. }));
        // A job that is not there starts past every tile.
        let mut jobs =
            [Job { quants: 0, scales: 0, bias: 0, out: 0, format: 0, n: 0, kind: 0, first_tile: u32::MAX }; 3];
        let mut tiles = 0;
        for (job, layer) in jobs.iter_mut().zip(layers) {
            let Matrix { format, n, quants, scales, .. } = layer.matrix;
            *job = Job {
                quants: quants.address(),
                scales: scales.address(),
                bias: layer.bias.map_or(0, |bias| bias.data.address()),
                out: layer.out,
                format: code(*format),
                n: *n as u32,
                kind: layer.kind as u32,
                first_tile: if gate_up { 0 } else { tiles as u32 },
            };
            tiles += n.div_ceil(TILE);
        }
        if gate_up {
            tiles /= 2;
        }
        let kernel = match groups {
            1 => Kernel::Linear1,
            2 => Kernel::Linear2,
            3 => Kernel::Linear3,
            4 => Kernel::Linear4,
            _ => Kernel::Linear8,
        };
        let turning = turning.unwrap_or(&Turning::NONE);
        let parameters = Linear {
            jobs,
            acts,
            inverse,
            sums,
            places,
            turns: turning.turns,
            positions: turning.positions,
            slots: turning.slots,
            rows: rows as u32,
            padded: padded as u32,
            pairs: pairs as u32,
            head_width: turning.head_width,
            kv_heads: turning.kv_heads,
            layers: turning.layers,
            layer: turning.layer,
            unused: 0,
        };
        // SAFETY: the caller has checked every matrix's k against the activations, its n against bias and output, and the
        // plan against the cache; the grid has each tile and group of rows once.
        unsafe { self.gpu.launch(operation, kernel, [tiles, padded / (8 * groups), 1], 256, &parameters) }
    }

    /// Queries, keys and values of a pass, turned and stored.
    pub(super) fn qkv(
        &mut self,
        plan: &DevicePlan,
        activations: &Activations,
        weights: Projections<'_, Cuda>,
        cache: &mut CudaCache,
        layer: usize,
        q: &Rows,
    ) -> Result<(), DeviceError> {
        const OPERATION: &str = "norm_qkv_store";
        let Projections { query, key, value, biases } = weights;
        let matrices = [query, key, value];
        let turns = cache.turns(&self.gpu, plan.bounds.positions)?;
        let interleaved = cache.model.rope_pairing == RopePairing::Interleaved;
        let bytes = size(&[4, plan.padded, cache.model.kv_heads, cache.model.head_width])?;
        let (keys, values) = if interleaved {
            (cache.keys.address(), cache.values.address())
        } else {
            let reserve = |scratch: &mut Scratch, what| scratch.reserve(&self.gpu, what, bytes);
            (reserve(&mut self.scratch.keys, "keys of a pass")?, reserve(&mut self.scratch.values, "values of a pass")?)
        };
        let kinds = if interleaved { [Kind::Query, Kind::Key, Kind::Value] } else { [Kind::Store; 3] };
        let outs = [q.data.address(), keys, values];
        let layers = [0, 1, 2].map(|i| Layer {
            matrix: matrices[i],
            bias: biases.map(|biases| biases[i]),
            out: outs[i],
            kind: kinds[i],
        });
        let turning = Turning::new(plan, cache, turns, layer);
        self.linear(OPERATION, activations, &layers, 0, Some(&turning))?;
        if interleaved {
            return Ok(());
        }
        let parameters = RopeStore {
            q: q.data.address(),
            k: keys,
            v: values,
            keys: cache.keys.address(),
            values: cache.values.address(),
            turns,
            positions: plan.positions,
            slots: plan.slots,
            heads: cache.model.heads as u32,
            kv_heads: turning.kv_heads,
            head_width: turning.head_width,
            layers: turning.layers,
            layer: turning.layer,
            unused: 0,
        };
        // SAFETY: q and the scratch hold the pass's rows, and the plan's slots and positions are the cache's.
        unsafe { self.gpu.launch(OPERATION, Kernel::RopeStore, [plan.padded, 1, 1], 256, &parameters) }
    }

    /// Attention of the pass's rows, range by range.
    pub(super) fn attention(
        &mut self,
        plan: &mut DevicePlan,
        q: &Rows,
        cache: &CudaCache,
        layer: usize,
        out: &Rows,
    ) -> Result<(), DeviceError> {
        const OPERATION: &str = "attend";
        let model = &cache.model;
        let width = model.head_width.next_multiple_of(32);
        let kernel = match width {
            32 => Kernel::Attend32,
            64 => Kernel::Attend64,
            96 => Kernel::Attend96,
            128 => Kernel::Attend128,
            _ => return refuse(OPERATION, "the width of a head", format!("at most {HEAD_WIDTH_MAX}"), width),
        };
        let part_bytes = size(&[4, model.heads, width + 2])?;
        let group = model.heads / model.kv_heads;
        let (positions, slots, sequences) = (plan.positions, plan.slots, plan.sequences);
        let (table_starts, pages) = (plan.table_starts, plan.pages);
        let key = TileKey { group, part_bytes };
        self.grouping = Some(key);
        let tiles = plan.tiles(&self.gpu, key, &mut self.scratch.tiles)?;
        let rows_most = tiles.ranges.iter().map(|range| range.rows.len()).max().unwrap_or(0);
        let parts = size(&[part_bytes, rows_most, tiles.splits])?;
        let parts = self.scratch.parts.reserve(&self.gpu, "splits of attention", parts)?;
        for range in &tiles.ranges {
            let parameters = Attend {
                q: q.data.address(),
                out: out.data.address(),
                keys: cache.keys.address(),
                values: cache.values.address(),
                tiles: tiles.address + 16 * range.first_tile as u64,
                positions,
                slots,
                sequences,
                table_starts,
                pages,
                parts,
                tile_count: tiles.each as u32,
                first_row: range.rows.start as u32,
                heads: model.heads as u32,
                kv_heads: model.kv_heads as u32,
                head_width: model.head_width as u32,
                layers: model.layers as u32,
                layer: layer as u32,
                splits: tiles.splits as u32,
                scale: 1.0 / (model.head_width as f32).sqrt(),
                unused: 0,
            };
            let grid = [tiles.each.div_ceil(4), model.kv_heads, tiles.splits];
            // SAFETY: q and out hold the pass's rows, the plan's pages and slots are the cache's, parts was sized above.
            unsafe { self.gpu.launch(OPERATION, kernel, grid, 128, &parameters)? };
            let grid = [range.rows.len(), model.heads.div_ceil(4), 1];
            // SAFETY: as above.
            unsafe { self.gpu.launch(OPERATION, Kernel::MergeSplits, grid, 128, &parameters)? };
        }
        Ok(())
    }
}
