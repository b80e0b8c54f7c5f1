//! Moves in a cache whose tables are its workers': what its own tables tell, and what a plan that does not fit leaves.

use kavern::cache::{CacheConfig, Change, Op, Target, TokenCopy};
use kavern::types::Id;

use super::bench::{Bench, ask, config, group, prompt};

fn scheduler() -> (Bench, Bench) {
    let settings = CacheConfig { event_capacity: 64, ..config(vec![group(4)], 32) };
    let bench = Bench::new(&CacheConfig { metadata_only: true, ..settings.clone() });
    (bench, Bench::new(&CacheConfig { worker: true, ..settings }))
}

fn plan(bench: &Bench) -> Vec<u8> {
    let needed = bench.cache.export_plan(bench.step, false, &mut []).unwrap();
    let mut message = vec![0; needed];
    let bytes = bench.cache.export_plan(bench.step, false, &mut message).unwrap();
    assert!(bytes <= needed, "what was asked for is enough");
    message.truncate(bytes);
    message
}

/// Gives the worker the plan and writes nothing; answers the copies that it makes first and the first cells of a row.
fn apply(bench: &Bench, worker: &Bench, row: usize) -> (Vec<TokenCopy>, Vec<i32>) {
    let read = |tables: &kavern::cache::StepTables<'_>| {
        let view = tables.group(0)?;
        Ok((tables.copies().to_vec(), view.block_table[row * view.row_cells as usize..][..4].to_vec()))
    };
    let answer = worker.cache.apply_plan(worker.stream, &plan(bench), read).unwrap();
    worker.cache.step_done(bench.step, None).unwrap();
    answer
}

/// A sequence of four blocks above the limit, with a first plan that told of it; its row, and itself.
fn above(bench: &mut Bench, worker: &Bench) -> (usize, u64) {
    let tokens = prompt(1, 16);
    bench.begin();
    let lease = bench.look(&ask(&prompt(9, 64))).lease;
    let low = bench.admit(lease, 64).sequence;
    let hit = bench.look(&ask(&tokens));
    let admitted = bench.admit(hit.lease, 16);
    bench.commit(admitted.sequence, &tokens);
    let (_, cells) = apply(bench, worker, admitted.row as usize);
    assert!(cells.iter().all(|&block| block >= 16));
    bench.free(low);
    bench.done();
    assert_eq!(bench.cache.resize(0, 8).unwrap().held_blocks, 4);
    (admitted.row as usize, admitted.sequence)
}

#[test]
fn a_scheduler_that_reads_its_tables_before_the_plan_moves_blocks_too() {
    let (mut bench, worker) = scheduler();
    let (row, sequence) = above(&mut bench, &worker);
    bench.begin();
    bench.append(sequence, 1);
    let told = bench.cache.tables(bench.step, bench.stream, |tables| Ok(tables.copies().to_vec())).unwrap();
    assert_eq!(told.len(), 4);
    let (copies, cells) = apply(&bench, &worker, row);
    assert_eq!(copies, told);
    assert!(cells.iter().all(|&block| block < 8), "{cells:?}");
    bench.done();
    bench.cache.poll().unwrap();
    assert!(bench.cache.resize(0, 8).unwrap().is_done);
    assert_eq!(bench.statistics().moved_blocks, 4);
}

#[test]
fn what_tables_of_a_scheduler_told_and_no_plan_is_taken_back() {
    let (mut bench, worker) = scheduler();
    above(&mut bench, &worker);
    bench.begin();
    let tokens = prompt(2, 8);
    let (_, sequence) = bench.start(&ask(&tokens), &tokens);
    bench.upload();
    bench.good(&Op::Change { target: Target::Id(Id(sequence)), change: Change::Cancel });
    apply(&bench, &worker, 0);
    bench.done();
    assert_eq!(bench.hits(&ask(&tokens)), 0, "no worker writes it");
}

#[test]
fn a_plan_that_does_not_fit_moves_and_evicts_nothing() {
    let (mut bench, worker) = scheduler();
    let (row, sequence) = above(&mut bench, &worker);
    let cached = prompt(3, 32);
    bench.run(&ask(&cached));
    bench.begin();
    let before = bench.statistics();
    let needed = bench.cache.export_plan(bench.step, false, &mut []).unwrap();
    let short = bench.cache.export_plan(bench.step, false, &mut [0; 8]).unwrap();
    assert_eq!(short, needed);
    let after = bench.statistics();
    assert_eq!(
        (after.moved_blocks, after.evicted_blocks, after.free_blocks, after.indexed_blocks),
        (0, before.evicted_blocks, before.free_blocks, before.indexed_blocks)
    );
    bench.done();
    bench.begin();
    let (copies, cells) = apply(&bench, &worker, row);
    assert_eq!(copies.len(), 4);
    assert!(cells.iter().all(|&block| block < 8), "{cells:?}");
    assert_eq!(bench.statistics().evicted_blocks, before.evicted_blocks + 4);
    bench.free(sequence);
    bench.done();
}
