//! A pass's rows on the device: what `begin` uploads, and what is derived from them for kernels.
//!
//! Two lists are cut here. *Chains* are rows whose prefix sums depend on each other and must be taken in order.
//! *Query tiles* are 16 queries of one run (rows of one sequence that stand together) for attention, and *ranges*
//! of rows bound its scratch. How rows are cut changes no result.
//!
//! A pass is filled up to a *bucket*: rows that belong to no sequence up to what linear layers take at once, lists to round
//! lengths. What kernels are launched with, addresses included, follows from the bucket, so that passes of one bucket are one
//! graph (`graphs.rs`). Padding has no slot: kernels store nothing of it where a sequence could see it.

use std::ops::Range;

use super::gpu::Gpu;
use super::memory::Scratch;
use super::stage::Stage;
use crate::checks::Bounds;
use crate::device::{DeviceError, PAGE_TOKENS, Plan, Row};

/// Queries of a tile, and keys of a split, as attend.cu has them.
const TILE_QUERIES: usize = 16;
const SPLIT: usize = 256;

/// Bytes of scratch that one launch of attention may take.
const PARTS_BYTES_MAX: usize = 64 << 20;

/// The slot of padding, as common.cuh has it.
const NO_SLOT: u32 = u32::MAX;

/// Bytes that a plan has at least: one that grows with its pages would move, and every graph would be made again.
const PLAN_BYTES_MIN: usize = 1 << 16;

/// Groups of 8 rows that a block of a linear layer takes.
pub(super) fn groups_of(rows: usize) -> usize {
    match rows.div_ceil(8) {
        groups @ 0..=4 => groups.max(1),
        _ => 8,
    }
}

/// Rows of the bucket that a pass belongs to: whole groups, which linear layers compute anyway.
pub(super) fn padded_rows(rows: usize) -> usize {
    rows.next_multiple_of(8 * groups_of(rows))
}

/// The plan of a pass, uploaded.
pub(super) struct DevicePlan {
    pub(super) plan: Plan,
    pub(super) bounds: Bounds,
    pub(super) tokens: u64,
    pub(super) positions: u64,
    pub(super) sequences: u64,
    pub(super) slots: u64,
    pub(super) counts: u64,
    pub(super) remaining: u64,
    pub(super) table_starts: u64,
    pub(super) pages: u64,
    /// As many as there are rows in the bucket, most of them empty.
    pub(super) chains: u64,
    /// Rows of the bucket.
    pub(super) padded: usize,
    /// Query tiles of the pass, once attention has asked for them.
    pub(super) tiles: Option<QueryTiles>,
}

/// How attention cuts queries: query heads to a key head, and bytes of parts a row and split.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TileKey {
    pub(super) group: usize,
    pub(super) part_bytes: usize,
}

/// Query tiles for one kind of grouping, uploaded.
pub(super) struct QueryTiles {
    key: TileKey,
    pub(super) address: u64,
    pub(super) ranges: Vec<TileRange>,
    /// Tiles of a range, empty ones included.
    pub(super) each: usize,
    /// Splits of the longest row, rounded up to a power of two.
    pub(super) splits: usize,
}

/// Rows that one launch of attention takes, and where their tiles start.
pub(super) struct TileRange {
    pub(super) rows: Range<usize>,
    pub(super) first_tile: usize,
}

impl DevicePlan {
    pub(super) fn new(
        gpu: &Gpu,
        plan: &Plan,
        grouping: Option<TileKey>,
        scratch: &mut Scratch,
    ) -> Result<DevicePlan, DeviceError> {
        let bounds = Bounds::of(plan)?;
        let padded = padded_rows(plan.rows.len());
        let column = |of: fn(&Row) -> u32, padding: u32| {
            let mut column: Vec<u32> = plan.rows.iter().map(of).collect();
            column.resize(padded, padding);
            column
        };
        let mut starts = Vec::with_capacity(plan.block_tables.len());
        let mut pages = Vec::new();
        for table in &plan.block_tables {
            starts.push(pages.len() as u32);
            pages.extend_from_slice(table);
        }
        starts.resize(starts.len().next_power_of_two(), 0);
        let mut chains = chains(plan);
        chains.resize(padded, [0, 0]);
        let cut = grouping.map(|key| Cut::new(&plan.rows, padded, key));
        let mut stage = Stage::default();
        let offsets = [
            stage.push(&column(|row| row.token, 0)),
            stage.push(&column(|row| row.position, 0)),
            stage.push(&column(|row| row.sequence, 0)),
            stage.push(&column(|row| row.slot, NO_SLOT)),
            stage.push(&column(|row| row.response_count, 0)),
            stage.push(&column(|row| row.remaining.to_bits(), 0)),
            stage.push(&starts),
            stage.push(&chains),
            stage.push(cut.as_ref().map_or(&[], |cut| &cut.list[..])),
            // Last, for their number alone is nobody's bucket.
            stage.push(&pages),
        ];
        scratch.reserve(gpu, "the plan", stage.bytes.len().max(PLAN_BYTES_MIN))?;
        let base = gpu.write("the plan", &stage.bytes, scratch)?;
        let [tokens, positions, sequences, slots, counts, remaining, table_starts, chains, tiles, pages] =
            offsets.map(|offset| base + offset);
        Ok(DevicePlan {
            plan: plan.clone(),
            bounds,
            tokens,
            positions,
            sequences,
            slots,
            counts,
            remaining,
            table_starts,
            pages,
            chains,
            padded,
            tiles: cut.map(|cut| cut.at(tiles)),
        })
    }

    /// Rows of the pass.
    pub(super) fn rows(&self) -> usize {
        self.plan.rows.len()
    }

    /// The pass cut into query tiles: as `begin` uploaded them, where it knew the grouping.
    pub(super) fn tiles(&mut self, gpu: &Gpu, key: TileKey, scratch: &mut Scratch) -> Result<&QueryTiles, DeviceError> {
        if self.tiles.as_ref().is_none_or(|tiles| tiles.key != key) {
            let cut = Cut::new(&self.plan.rows, self.padded, key);
            let mut stage = Stage::default();
            stage.push(&cut.list);
            let address = gpu.write("query tiles", &stage.bytes, scratch)?;
            self.tiles = Some(cut.at(address));
        }
        match &self.tiles {
            Some(tiles) => Ok(tiles),
            None => crate::checks::refuse("attend", "query tiles", "cut", "none"),
        }
    }
}

/// Query tiles `[first row of the run, queries of the run, first query, sequence]`, range by range.
struct Cut {
    key: TileKey,
    list: Vec<[u32; 4]>,
    ranges: Vec<TileRange>,
    each: usize,
    splits: usize,
}

impl Cut {
    /// Ranges are of equal length but for the last, and so few tiles are empty: a run's last tile is short, and the number of
    /// runs is rounded up to a power of two.
    fn new(rows: &[Row], padded: usize, key: TileKey) -> Cut {
        let longest = rows.iter().map(|row| row.position as usize).max().unwrap_or(0);
        let splits = longest.div_ceil(SPLIT).next_power_of_two();
        let rows_max = (PARTS_BYTES_MAX / (key.part_bytes * splits).max(1)).clamp(1, padded.max(1));
        let starts: Vec<usize> = (0..padded).step_by(rows_max).collect();
        let real = |start: usize| &rows[start.min(rows.len())..(start + rows_max).min(rows.len())];
        let runs = |start: usize| real(start).chunk_by(|a, b| a.sequence == b.sequence);
        let runs_most = starts.iter().map(|&start| runs(start).count()).max().unwrap_or(0);
        let each = (rows_max * key.group).div_ceil(TILE_QUERIES) + runs_most.next_power_of_two();
        let mut list = Vec::with_capacity(each * starts.len());
        for (index, &start) in starts.iter().enumerate() {
            let mut first_row = start;
            for run in runs(start) {
                let queries = (run.len() * key.group) as u32;
                let tile = |first| [first_row as u32, queries, first, run[0].sequence];
                list.extend((0..queries).step_by(TILE_QUERIES).map(tile));
                first_row += run.len();
            }
            // Of no queries: a warp that takes one has nothing to do.
            list.resize(each * (index + 1), [0; 4]);
        }
        let range = |(index, &start): (usize, &usize)| TileRange {
            rows: start..(start + rows_max).min(padded),
            first_tile: each * index,
        };
        let ranges = starts.iter().enumerate().map(range).collect();
        Cut { key, list, ranges, each, splits }
    }

    fn at(self, address: u64) -> QueryTiles {
        let Cut { key, ranges, each, splits, .. } = self;
        QueryTiles { key, address, ranges, each, splits }
    }
}

/// Chains `[first row, rows]`: rows whose sums must be taken in order. A row starts a chain of its own where no row of
/// the pass writes the sum that it reads, and none before it reads the one that it writes; else it goes on with the
/// chain before it, if its predecessor is the row before; and where that is not so either, all rows are one chain.
fn chains(plan: &Plan) -> Vec<[u32; 2]> {
    use std::collections::HashSet;
    let read = |row: &Row| {
        (row.response_count > 1).then(|| {
            let position = row.position as usize - 1;
            let page = plan.block_tables[row.sequence as usize][position / PAGE_TOKENS];
            page * PAGE_TOKENS as u32 + (position % PAGE_TOKENS) as u32
        })
    };
    let written: HashSet<u32> = plan.rows.iter().filter(|row| row.response_count > 0).map(|row| row.slot).collect();
    let reads: HashSet<u32> = plan.rows.iter().filter_map(read).collect();
    let distinct = written.len() == plan.rows.iter().filter(|row| row.response_count > 0).count();
    let mut chains: Vec<[u32; 2]> = Vec::new();
    for (index, row) in plan.rows.iter().enumerate() {
        let from = read(row).filter(|slot| written.contains(slot));
        let before = index.checked_sub(1).map(|before| &plan.rows[before]);
        let goes_on =
            from.is_some_and(|slot| before.is_some_and(|before| before.response_count > 0 && before.slot == slot));
        match chains.last_mut() {
            Some(chain) if goes_on => chain[1] += 1,
            // Written by another row than the one before, or after it was read: only one order is right.
            _ if !distinct || (from.is_some() && !goes_on) => return vec![[0, plan.rows.len() as u32]],
            _ => chains.push([index as u32, 1]),
        }
    }
    // A slot may be read by several rows, but then only by the row after the one that writes it, or by none.
    let read_twice = plan.rows.iter().filter_map(read).filter(|slot| written.contains(slot)).count()
        > reads.iter().filter(|slot| written.contains(slot)).count();
    if read_twice { vec![[0, plan.rows.len() as u32]] } else { chains }
}
