//! Keys, values and feature sums by page.
//!
//! A page holds [`PAGE_TOKENS`] positions of every layer: f16 keys and values in the tiles that attention
//! reads, and for every tap the f32 prefix sum of the residual stream over the response, beside them so
//! that a rewind or a shared prefix is exact for both. Memory comes zeroed from the system and becomes
//! resident only as pages are used.
//!
//! The cache does not know which page belongs to whom (the engine does), nor how attention runs
//! (`attention.rs`). Layout, private to these two files:
//!
//! ```text
//! keys    [pages, layers, KV, D, 32]                f16   one tile: all keys' dimension 0, then 1, …
//! values  [pages, layers, KV, ceil(D/32), 32, 32]   f16   one tile: panels of 32 dimensions, a row a key
//! sums    [pages, taps, 32, H]                      f32
//! ```

use std::alloc::{Layout, alloc_zeroed};
use std::ops::Range;

use half::f16;
use half::slice::HalfFloatSliceExt;

use crate::device::{CacheShape, DeviceError, ModelShape, PAGE_TOKENS, Plan, Row};

/// Dimensions in a panel of a value tile.
pub(crate) const PANEL: usize = 32;

/// Keys, values and prefix sums of one model.
pub(crate) struct Cache {
    layers: usize,
    kv_heads: usize,
    head_width: usize,
    hidden: usize,
    pages: usize,
    taps: Vec<usize>,
    keys: Vec<u16>,
    values: Vec<u16>,
    sums: Vec<f32>,
}

impl Cache {
    /// A cache of `shape.pages` pages. [`DeviceError::Shape`] where a tap is not in 1..=L, ascending, or
    /// sizes overflow; [`DeviceError::Failed`] where the system refuses the memory.
    pub(crate) fn new(model: &ModelShape, shape: &CacheShape) -> Result<Cache, DeviceError> {
        let ascending = shape.taps.windows(2).all(|w| w[0] < w[1]);
        if !(ascending && shape.taps.iter().all(|&tap| 0 < tap && tap <= model.layers)) {
            return Err(DeviceError::Shape {
                operation: "cache",
                what: "taps",
                expected: format!("ascending layers from 1 to {}", model.layers),
                got: format!("{:?}", shape.taps),
            });
        }
        let heads = [shape.pages, model.layers, model.kv_heads, PAGE_TOKENS];
        let padded = model.head_width.next_multiple_of(PANEL);
        Ok(Cache {
            layers: model.layers,
            kv_heads: model.kv_heads,
            head_width: model.head_width,
            hidden: model.hidden,
            pages: shape.pages,
            taps: shape.taps.clone(),
            keys: zeroed("keys", &[&heads[..], &[model.head_width]].concat())?,
            values: zeroed("values", &[&heads[..], &[padded]].concat())?,
            sums: zeroed("sums", &[shape.pages, shape.taps.len(), PAGE_TOKENS, model.hidden])?,
        })
    }

    /// Pages it holds.
    pub(crate) fn pages(&self) -> usize {
        self.pages
    }

    /// Slots it holds.
    pub(crate) fn slots(&self) -> usize {
        self.pages * PAGE_TOKENS
    }

    /// The taps it keeps sums for.
    pub(crate) fn taps(&self) -> &[usize] {
        &self.taps
    }

    /// Key and value heads.
    pub(crate) fn kv_heads(&self) -> usize {
        self.kv_heads
    }

    /// Width of one head, D.
    pub(crate) fn head_width(&self) -> usize {
        self.head_width
    }

    /// D rounded up to whole panels.
    pub(crate) fn padded_width(&self) -> usize {
        self.head_width.next_multiple_of(PANEL)
    }

    /// Rounds one position's keys (after RoPE) and values, `[KV * D]` each, to f16 and stores them.
    pub(crate) fn store(&mut self, layer: usize, slot: usize, k: &[f32], v: &[f32]) {
        let (page, offset) = (slot / PAGE_TOKENS, slot % PAGE_TOKENS);
        let (width, padded) = (self.head_width, self.padded_width());
        let mut rounded = [f16::ZERO; 256];
        for head in 0..self.kv_heads {
            let at = self.tile(page, layer, head);
            let keys = &mut self.keys[at * width * PAGE_TOKENS..][..width * PAGE_TOKENS];
            let values = &mut self.values[at * padded * PAGE_TOKENS..][..padded * PAGE_TOKENS];
            let (k, v) = (&k[head * width..][..width], &v[head * width..][..width]);
            for (block, chunk) in k.chunks(rounded.len()).enumerate() {
                rounded[..chunk.len()].convert_from_f32_slice(chunk);
                let to = keys[block * rounded.len() * PAGE_TOKENS + offset..].iter_mut().step_by(PAGE_TOKENS);
                for (to, from) in to.zip(&rounded[..chunk.len()]) {
                    *to = from.to_bits();
                }
            }
            for (panel, chunk) in v.chunks(PANEL).enumerate() {
                rounded[..chunk.len()].convert_from_f32_slice(chunk);
                let to = &mut values[(panel * PAGE_TOKENS + offset) * PANEL..][..chunk.len()];
                for (to, from) in to.iter_mut().zip(&rounded) {
                    *to = from.to_bits();
                }
            }
        }
    }

    /// The key tile `[D, 32]` of a page, layer and head.
    #[inline(always)]
    pub(crate) fn key_tile(&self, page: usize, layer: usize, head: usize) -> &[u16] {
        let len = self.head_width * PAGE_TOKENS;
        &self.keys[self.tile(page, layer, head) * len..][..len]
    }

    /// The value tile `[panels, 32, 32]` of a page, layer and head.
    #[inline(always)]
    pub(crate) fn value_tile(&self, page: usize, layer: usize, head: usize) -> &[u16] {
        let len = self.padded_width() * PAGE_TOKENS;
        &self.values[self.tile(page, layer, head) * len..][..len]
    }

    /// Stores the prefix sums of one tap for the rows of a plan: see [`crate::Device::accumulate`].
    /// `x`: `[R, H]`.
    pub(crate) fn accumulate(&mut self, plan: &Plan, tap: usize, x: &[f32]) {
        for (row, x) in plan.rows.iter().zip(x.chunks_exact(self.hidden)) {
            if row.response_count == 0 {
                continue;
            }
            let to = self.sum_at(tap, row.slot as usize);
            if row.response_count == 1 {
                self.sums[to..to + self.hidden].copy_from_slice(x);
                continue;
            }
            let from = self.sum_at(tap, before(plan, row));
            // In place where a row's predecessor lies in its own slot: element by element, so any overlap is right.
            for (i, x) in x.iter().enumerate() {
                self.sums[to + i] = self.sums[from + i] + x;
            }
        }
    }

    /// The prefix sum `[H]` of one tap at a slot.
    pub(crate) fn sum(&self, tap: usize, slot: usize) -> &[f32] {
        &self.sums[self.sum_at(tap, slot)..][..self.hidden]
    }

    /// Copies keys and values of `layers`, and the sums of taps within them, from slot to slot, in order.
    pub(crate) fn commit(&mut self, copies: &[(u32, u32)], layers: Range<usize>) {
        for &(from, to) in copies {
            let (from, to) = (from as usize, to as usize);
            if from == to {
                continue;
            }
            for layer in layers.clone() {
                for head in 0..self.kv_heads {
                    self.copy_head(layer, head, from, to);
                }
            }
            for tap in 0..self.taps.len() {
                if layers.start < self.taps[tap] && self.taps[tap] <= layers.end {
                    let (from, to) = (self.sum_at(tap, from), self.sum_at(tap, to));
                    self.sums.copy_within(from..from + self.hidden, to);
                }
            }
        }
    }

    fn copy_head(&mut self, layer: usize, head: usize, from: usize, to: usize) {
        let tiles = [from, to].map(|slot| self.tile(slot / PAGE_TOKENS, layer, head));
        let [from, to] = [from, to].map(|slot| slot % PAGE_TOKENS);
        let [source, target] = tiles.map(|tile| tile * self.head_width * PAGE_TOKENS);
        for d in (0..self.head_width * PAGE_TOKENS).step_by(PAGE_TOKENS) {
            self.keys[target + d + to] = self.keys[source + d + from];
        }
        let [source, target] = tiles.map(|tile| tile * self.padded_width() * PAGE_TOKENS);
        for panel in (0..self.padded_width() * PAGE_TOKENS).step_by(PANEL * PAGE_TOKENS) {
            let start = source + panel + from * PANEL;
            self.values.copy_within(start..start + PANEL, target + panel + to * PANEL);
        }
    }

    /// Index of a tile in units of tiles.
    #[inline(always)]
    fn tile(&self, page: usize, layer: usize, head: usize) -> usize {
        (page * self.layers + layer) * self.kv_heads + head
    }

    fn sum_at(&self, tap: usize, slot: usize) -> usize {
        let (page, offset) = (slot / PAGE_TOKENS, slot % PAGE_TOKENS);
        ((page * self.taps.len() + tap) * PAGE_TOKENS + offset) * self.hidden
    }
}

/// The slot of the position before a row's own, in its sequence's pages.
fn before(plan: &Plan, row: &Row) -> usize {
    let position = row.position as usize - 1;
    let page = plan.block_tables[row.sequence as usize][position / PAGE_TOKENS] as usize;
    page * PAGE_TOKENS + position % PAGE_TOKENS
}

/// Plain numbers, for which all bits zero is zero.
trait Zeroable: Copy {}
impl Zeroable for u16 {}
impl Zeroable for f32 {}

/// A zeroed vector of the product of `dimensions`, or why not. `vec![0; n]` would do, but for aborting
/// the process where the system refuses.
fn zeroed<T: Zeroable>(what: &'static str, dimensions: &[usize]) -> Result<Vec<T>, DeviceError> {
    let count = dimensions.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
    let layout = count.and_then(|n| Layout::array::<T>(n).ok().map(|layout| (n, layout)));
    let Some((count, layout)) = layout else {
        return Err(DeviceError::Shape {
            operation: "cache",
            what,
            expected: "a size that fits the address space".into(),
            got: format!("{dimensions:?} elements"),
        });
    };
    if count == 0 {
        return Ok(Vec::new());
    }
    // SAFETY: the layout is not empty.
    let start = unsafe { alloc_zeroed(layout) };
    if start.is_null() {
        let message = format!("the system refused {} bytes for {what}", layout.size());
        return Err(DeviceError::Failed { operation: "cache", message });
    }
    // SAFETY: the global allocator gave this memory for exactly `count` elements of T, and zero is a T.
    Ok(unsafe { Vec::from_raw_parts(start.cast::<T>(), count, count) })
}
