//! Passes as graphs: the bits of the same launches one by one, few calls of the driver, and a bound on what is kept; and
//! the buckets that passes are filled up to change no row.
//!
//! Graphs are switched off here by keeping none. Calls of the driver are counted by the stand-in, so that test is skipped on
//! a real card, as all with settings are.

use vassal_cuda_stand_in::child::calls;
use vassal_cuda_stand_in::in_child;

use super::pass::{Model, Results, plan, row};
use super::{cuda, model, rows_of};
use crate::cuda::Cuda;
use crate::cuda::plan::padded_rows;
use crate::device::{CacheShape, Device, PAGE_TOKENS, Plan, RopePairing, Row};

/// A prompt of one sequence, then both decoding a row at a time, with candidates beside them every third time.
fn passes() -> Vec<Plan> {
    let mut passes = vec![plan((0..20).map(|position| row(0, position)).collect())];
    for position in 20..29 {
        let mut rows = vec![row(0, position), row(1, position - 20)];
        if position % 3 == 0 {
            let scratch = 8 * PAGE_TOKENS as u32;
            rows.extend((0..5).map(|i| Row { token: i + 30, slot: scratch + i, ..row(1, position - 19) }));
        }
        passes.push(plan(rows));
    }
    passes
}

fn run(model: &mut Model<Cuda>) -> Vec<[Vec<u32>; 4]> {
    passes().iter().flat_map(|plan| model.pass(plan)).map(|results: Results| results.bits()).collect()
}

#[test]
fn a_graph_is_its_launches_to_the_bit() {
    in_child!({
        for pairing in [RopePairing::Interleaved, RopePairing::Halves] {
            let mut plain = Model::new(cuda(), pairing);
            plain.device.gpu.graphs.borrow_mut().most = 0;
            let expected = run(&mut plain);
            assert_eq!(plain.device.gpu.graphs.borrow().count(), 0);
            let mut graphs = Model::new(cuda(), pairing);
            assert_eq!(run(&mut graphs), expected);
            // Three stretches of a pass: to the first head, and behind the features that are read; of one bucket of rows and
            // two of runs, for all splits are one.
            let count = graphs.device.gpu.graphs.borrow().count();
            assert!((2..=6).contains(&count), "{count} graphs");
        }
    });
}

#[test]
fn a_step_calls_the_driver_a_few_times_whatever_its_layers() {
    in_child!("devices=1", {
        let mut model = Model::new(cuda(), RopePairing::Interleaved);
        let mut step = |position: u32| {
            let before = [calls("cuLaunchKernel"), calls("")];
            model.pass(&plan(vec![row(0, position)]));
            [calls("cuLaunchKernel") - before[0], calls("") - before[1]]
        };
        // The first learns how attention groups queries, the second sees the lists as they will be, the third captures them.
        let [_, plain, _, graph, again] = [0, 1, 2, 3, 4].map(&mut step);
        assert_eq!(graph, again);
        // Embedding and 10 launches of the first layer, 10 of the second are two calls; heads and logits stay launches.
        assert!(graph[0] + 20 <= plain[0] && graph[1] + 18 <= plain[1], "{plain:?} became {graph:?}");
    });
}

#[test]
fn where_the_driver_has_no_room_for_graphs_a_pass_goes_on_without() {
    in_child!("no-graphs", {
        let mut without = Model::new(cuda(), RopePairing::Interleaved);
        let results = run(&mut without);
        assert_eq!(without.device.gpu.graphs.borrow().count(), 0);
        without.device.gpu.graphs.borrow_mut().most = 0;
        assert_eq!(run(&mut without), results);
    });
}

#[test]
fn no_more_graphs_are_kept_than_the_bound() {
    in_child!({
        let mut model = Model::new(cuda(), RopePairing::Interleaved);
        model.device.gpu.graphs.borrow_mut().most = 2;
        let few: Vec<_> = (0..4).map(|position| plan(vec![row(0, position)])).collect();
        let many: Vec<_> = (0..3).map(|_| plan((0..9).map(|position| row(1, position)).collect())).collect();
        for plan in few.iter().chain(&many).chain(&few) {
            model.pass(plan);
            assert!(model.device.gpu.graphs.borrow().count() <= 2);
        }
    });
}

/// Memory that goes while launches wait for the end of their pass is there for them.
#[test]
fn buffers_may_go_before_the_pass_ends() {
    in_child!({
        let mut cuda = cuda();
        let x = rows_of(&mut cuda, &[1.5; 64], 32);
        let bytes: Vec<u8> = (0..64).flat_map(|i| (i as f32).to_le_bytes()).collect();
        let table = cuda.matrix(crate::format::Format::F32, 2, 32, &bytes).unwrap();
        let mut out = cuda.rows(2, 32).unwrap();
        cuda.begin(&super::counting(2)).unwrap();
        cuda.embed(&table, &mut out).unwrap();
        drop((x, table));
        // Takes their place, where they are gone.
        let other = cuda.rows(64, 64).unwrap();
        cuda.end().unwrap();
        drop(other);
        assert_eq!(super::read(&mut cuda, &out, 2), (0..64).map(|i| i as f32).collect::<Vec<_>>());
    });
}

/// Rows that fill a pass up have no slot: nothing in the cache changes but where the plan says, though page 0, where they
/// would be with a slot of 0, belongs to somebody.
#[test]
fn padding_stores_nothing_and_changes_no_row() {
    assert_eq!([0, 1, 8, 9, 25, 33, 64, 65].map(padded_rows), [0, 8, 8, 16, 32, 64, 64, 128]);
    in_child!({
        for pairing in [RopePairing::Interleaved, RopePairing::Halves] {
            let mut alone = Model::new(cuda(), pairing);
            let expected: Vec<_> =
                (0..10).map(|position| alone.pass(&plan(vec![row(0, position)]))[0].bits()).collect();
            let mut model = Model::new(cuda(), pairing);
            for position in 0..10 {
                // Eight rows and no padding, or one and seven, in turn.
                let others = if position % 2 == 0 { 7 } else { 0 };
                let mut rows: Vec<Row> = (0..others).map(|i| row(1, i)).collect();
                rows.push(row(0, position));
                let results = model.pass(&plan(rows));
                assert_eq!(results[others as usize].bits(), expected[position as usize], "position {position}");
            }
        }
        // Without a cache of its own a device has no page that padding could take.
        let mut cuda = cuda();
        let shape = model(64, [4, 2, 16], RopePairing::Interleaved);
        assert!(cuda.cache(&shape, &CacheShape { pages: 1, taps: vec![] }).is_ok());
    });
}
