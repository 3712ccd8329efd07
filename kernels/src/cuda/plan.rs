//! A pass's rows on the device: what `begin` uploads, and what is derived from them for kernels.
//!
//! Two lists are cut here. *Chains* are rows whose prefix sums depend on each other and must be taken in order.
//! *Query tiles* are 16 queries of one run (rows of one sequence that stand together) for attention, and *ranges*
//! of rows bound its scratch. How rows are cut changes no result.

use std::ops::Range;

use super::gpu::{Gpu, Scratch};
use super::stage::Stage;
use crate::checks::Bounds;
use crate::device::{DeviceError, PAGE_TOKENS, Plan, Row};

/// Queries of a tile, and keys of a split, as attend.cu has them.
const TILE_QUERIES: usize = 16;
const SPLIT: usize = 256;

/// Bytes of scratch that one launch of attention may take.
const PARTS_BYTES_MAX: usize = 64 << 20;

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
    pub(super) chains: u64,
    pub(super) chain_count: usize,
    /// Query tiles of the pass, once attention has asked for them.
    pub(super) tiles: Option<QueryTiles>,
}

/// Query tiles for one kind of grouping, uploaded.
pub(super) struct QueryTiles {
    /// Query heads to a key head, and bytes of parts a row and split.
    pub(super) key: (usize, usize),
    pub(super) address: u64,
    pub(super) ranges: Vec<TileRange>,
    /// Splits of the longest row.
    pub(super) splits: usize,
}

/// Rows that one launch of attention takes, and their tiles.
pub(super) struct TileRange {
    pub(super) rows: Range<usize>,
    pub(super) tiles: Range<usize>,
}

impl DevicePlan {
    pub(super) fn new(gpu: &Gpu, plan: &Plan, scratch: &mut Scratch) -> Result<DevicePlan, DeviceError> {
        let bounds = Bounds::of(plan)?;
        let column = |of: fn(&Row) -> u32| plan.rows.iter().map(of).collect::<Vec<u32>>();
        let mut starts = Vec::with_capacity(plan.block_tables.len());
        let mut pages = Vec::new();
        for table in &plan.block_tables {
            starts.push(pages.len() as u32);
            pages.extend_from_slice(table);
        }
        let chains = chains(plan);
        let mut stage = Stage::default();
        let offsets = [
            stage.push(&column(|row| row.token)),
            stage.push(&column(|row| row.position)),
            stage.push(&column(|row| row.sequence)),
            stage.push(&column(|row| row.slot)),
            stage.push(&column(|row| row.response_count)),
            stage.push(&column(|row| row.remaining.to_bits())),
            stage.push(&starts),
            stage.push(&pages),
            stage.push(&chains),
        ];
        let base = gpu.write("the plan", &stage.bytes, scratch)?;
        let [tokens, positions, sequences, slots, counts, remaining, table_starts, pages, chain_list] =
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
            chains: chain_list,
            chain_count: chains.len(),
            tiles: None,
        })
    }

    /// Rows of the pass.
    pub(super) fn rows(&self) -> usize {
        self.plan.rows.len()
    }

    /// Cuts the pass into query tiles and uploads them, once a pass and grouping. `part_bytes`: of parts a row and split.
    pub(super) fn tiles(
        &mut self,
        gpu: &Gpu,
        group: usize,
        part_bytes: usize,
        scratch: &mut Scratch,
    ) -> Result<&QueryTiles, DeviceError> {
        let key = (group, part_bytes);
        if self.tiles.as_ref().is_none_or(|tiles| tiles.key != key) {
            let longest = self.plan.rows.iter().map(|row| row.position as usize).max().unwrap_or(0);
            let splits = longest.div_ceil(SPLIT);
            let rows_max = (PARTS_BYTES_MAX / (part_bytes * splits).max(1)).max(1);
            let (list, ranges) = query_tiles(&self.plan.rows, group, rows_max);
            let mut stage = Stage::default();
            stage.push(&list);
            let address = gpu.write("query tiles", &stage.bytes, scratch)?;
            self.tiles = Some(QueryTiles { key, address, ranges, splits });
        }
        match &self.tiles {
            Some(tiles) => Ok(tiles),
            None => crate::checks::refuse("attend", "query tiles", "cut", "none"),
        }
    }
}

/// Tiles `[first row of the run, queries of the run, first query, sequence]` of ranges of at most `rows_max` rows.
fn query_tiles(rows: &[Row], group: usize, rows_max: usize) -> (Vec<[u32; 4]>, Vec<TileRange>) {
    let (mut tiles, mut ranges) = (Vec::new(), Vec::new());
    for (index, range) in rows.chunks(rows_max).enumerate() {
        let (first_tile, first_row) = (tiles.len(), index * rows_max);
        let mut start = first_row;
        for run in range.chunk_by(|a, b| a.sequence == b.sequence) {
            let queries = run.len() * group;
            tiles.extend(
                (0..queries)
                    .step_by(TILE_QUERIES)
                    .map(|first| [start as u32, queries as u32, first as u32, run[0].sequence]),
            );
            start += run.len();
        }
        ranges.push(TileRange { rows: first_row..start, tiles: first_tile..tiles.len() });
    }
    (tiles, ranges)
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
