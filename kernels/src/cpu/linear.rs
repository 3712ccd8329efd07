//! Linear layers: activations times matrices, shared out over threads.
//!
//! A *job* is one product, or two whose results are needed together (gate and up): matrices of one shape
//! over the same activations. All jobs of an operation are cut into *items*, some tiles of output rows by
//! some panels of activations, that run in any order and write disjoint outputs. How they are cut changes
//! speed only: an output is one tile times one panel from beginning to end (`cpu/tile.rs`).
//!
//! With few rows the weights are what is read, and every thread takes long runs of neighbouring tiles. With
//! many, an item keeps a run of panels in the second-level cache and passes tiles over them.
//!
//! Not here: what becomes of results. A *sink* gets each 16 of them and stores, adds or multiplies.

use std::ops::Range;

use crate::cpu::isa::Detected;
use crate::cpu::pack::{Matrix, TILE, quant_bytes};
use crate::cpu::quantize::Activations;
use crate::cpu::tile::{self, Lanes, PANEL_ROWS_MAX};
use crate::pool::Pool;

/// Items for every thread: enough that one which starts late or is interrupted costs little.
const ITEMS_A_THREAD: usize = 6;

/// Bytes of weights below which an item is not worth its hand-out.
const ITEM_BYTES_MIN: usize = 8 << 10;

/// Rows of activations that an item passes its tiles over: at k = 1,536 some 150 kB as 8-bit numbers.
const ROWS_AN_ITEM: usize = 64;

/// Where results belong.
pub(crate) struct Place {
    /// Index of the job.
    pub(crate) job: usize,
    /// The row of activations.
    pub(crate) row: usize,
    /// The outputs: 16, or as many as the matrix has left.
    pub(crate) columns: Range<usize>,
}

/// Runs jobs of `W` matrices each over the same activations.
///
/// `sink(place, results)` gets in `results[w]` the outputs of matrix w at that place, of which the first
/// `place.columns.len()` count. Every output comes exactly once, from any thread.
///
/// # Panics
/// Where a matrix and the activations differ in k, or matrices of a job in n: the caller checks first.
pub(crate) fn run<const W: usize>(
    pool: &Pool,
    isa: Detected,
    activations: &Activations,
    jobs: &[[&Matrix; W]],
    sink: &(impl Fn(Place, [&Lanes; W]) + Sync),
) {
    for matrices in jobs {
        for matrix in matrices {
            assert!(matrix.blocks() == activations.blocks() && matrix.n() == matrices[0].n());
        }
    }
    let panels = activations.panel_count();
    if panels == 0 {
        return;
    }
    let panels_an_item = (ROWS_AN_ITEM * panels).div_ceil(activations.rows()).min(panels);
    let panel_runs = panels.div_ceil(panels_an_item);
    let cut = Cut::new(pool.threads(), panel_runs, jobs);
    let tile_runs = cut.first_runs.last().copied().unwrap_or(0);
    pool.for_each(tile_runs * panel_runs, &|item| {
        let (panel_run, tile_run) = (item / tile_runs, item % tile_runs);
        let job = cut.first_runs.partition_point(|&first| first <= tile_run) - 1;
        let matrices = jobs[job];
        let from = (tile_run - cut.first_runs[job]) * cut.tiles_a_run;
        let mut results = [[[0.0; TILE]; PANEL_ROWS_MAX]; W];
        for index in from..matrices[0].tiles().min(from + cut.tiles_a_run) {
            let columns = index * TILE..matrices[0].n().min((index + 1) * TILE);
            for panel in panel_run * panels_an_item..panels.min((panel_run + 1) * panels_an_item) {
                let panel = activations.panel(panel);
                for (matrix, results) in matrices.iter().zip(&mut results) {
                    tile::multiply(isa, &matrix.tile(index), &panel, &mut results[..panel.rows]);
                }
                (0..panel.rows).for_each(|row| {
                    let place = Place { job, row: panel.first + row, columns: columns.clone() };
                    sink(place, std::array::from_fn(|w| &results[w][row]));
                });
            }
        }
    });
}

/// How the tiles of all jobs are cut into runs.
struct Cut {
    tiles_a_run: usize,
    /// For every job its first run, and at the end the number of runs.
    first_runs: Vec<usize>,
}

impl Cut {
    fn new<const W: usize>(threads: usize, panel_runs: usize, jobs: &[[&Matrix; W]]) -> Cut {
        let tiles: usize = jobs.iter().map(|matrices| matrices[0].tiles()).sum();
        let bytes: usize =
            jobs.iter().flatten().map(|matrix| matrix.tiles() * matrix.blocks() * quant_bytes(matrix.format())).sum();
        let wanted = (threads * ITEMS_A_THREAD).div_ceil(panel_runs);
        let least = (ITEM_BYTES_MIN * tiles).div_ceil(bytes.max(1));
        let tiles_a_run = tiles.div_ceil(wanted).max(least).max(1);
        let mut first_runs = vec![0];
        let mut runs = 0;
        for matrices in jobs {
            runs += matrices[0].tiles().div_ceil(tiles_a_run);
            first_runs.push(runs);
        }
        Cut { tiles_a_run, first_runs }
    }
}
