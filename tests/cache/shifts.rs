//! Shifts of copies: whoever makes the copies of a list in order, and then turns keys as it says, has each key at the
//! position of its token, however often it was copied.

use kavern::cache::{CacheConfig, Change, GroupConfig, Op, Reach, StepTables, Target, TokenCopy};
use kavern::error::Status;
use kavern::types::Id;

use super::bench::{Bench, ask, config, group, prompt};
use super::change::change;
use crate::positions::{Positions, slot};

const EACH: [usize; 2] = [16, 4];

fn settings(blocks: u64) -> CacheConfig {
    config(EACH.map(|each| group(each as u32)).to_vec(), blocks)
}

fn edit(sequence: u64, offset: u64, tokens: u64) -> Op<'static> {
    change(sequence, Change::Edit { offset, tokens })
}

/// What a call of `tables` or of `apply_plan` tells: the cells of each group, and the copies.
struct Told {
    groups: Vec<(Vec<i32>, usize)>,
    copies: Vec<TokenCopy>,
}

fn told(tables: &StepTables<'_>) -> kavern::error::Result<Told> {
    let view = |group| tables.group(group).map(|view| (view.block_table.to_vec(), view.row_cells as usize));
    let groups = (0..EACH.len()).map(view).collect::<kavern::error::Result<_>>()?;
    Ok(Told { groups, copies: tables.copies().to_vec() })
}

fn tables(bench: &Bench) -> Told {
    bench.cache.tables(bench.step, bench.stream, told).unwrap()
}

impl Told {
    fn slots(&self, row: usize, tokens: usize) -> impl Iterator<Item = (usize, usize, i64)> + '_ {
        self.groups.iter().enumerate().flat_map(move |(group, (table, cells))| {
            let row = &table[row * cells..][..*cells];
            (0..tokens).map(move |token| (group, token, slot(row, EACH[group], token)))
        })
    }

    /// The work of the step computes the first tokens of a row.
    fn write(&self, row: usize, tokens: usize, positions: &mut Positions) {
        self.slots(row, tokens).for_each(|(group, token, slot)| positions.write(group, slot, token));
    }

    fn check(&self, row: usize, tokens: usize, positions: &Positions) {
        self.slots(row, tokens).for_each(|(group, token, slot)| positions.check(group, slot, token));
    }
}

/// A sequence of so many tokens whose keys stand where they were computed.
fn begin(bench: &mut Bench, tokens: usize) -> (u64, Positions) {
    let (_, sequence) = bench.start(&ask(&prompt(1, tokens)), &prompt(1, tokens));
    let mut positions = Positions::default();
    tables(bench).write(0, tokens, &mut positions);
    bench.turn();
    (sequence, positions)
}

#[test]
fn edits_of_what_was_edited_and_copies_of_that_are_told_with_all_their_shifts() {
    let mut bench = Bench::new(&settings(128));
    let (sequence, mut positions) = begin(&mut bench, 40);
    bench.good(&edit(sequence, 2, 3));
    bench.good(&edit(sequence, 10, 4));
    let child = bench.fork(sequence, 0);
    bench.good(&edit(child, 0, 1));
    let grandchild = bench.fork(child, 31);
    [grandchild, child, sequence].into_iter().for_each(|sequence| _ = bench.append(sequence, 1));
    bench.cache.validate().unwrap();
    let told = tables(&bench);
    positions.follow(&told.copies);
    [(0, 33), (1, 32), (2, 31)].into_iter().for_each(|(row, tokens)| told.check(row, tokens, &positions));
    bench.done();
}

/// The edit of a window copies what the next token needs, so it may fill a block from its middle on; a fork copies the
/// whole of such a block.
#[test]
fn a_block_of_which_an_edit_fills_the_end_is_copied_with_the_shift_of_that_end() {
    const WINDOW: usize = 3;
    let mut cut_blocks = 0;
    for removed in 1..=8 {
        let [full, window] = EACH.map(|each| group(each as u32));
        let window = GroupConfig { reach: Reach::Sliding { window_tokens: WINDOW as u32 }, ..window };
        let mut bench = Bench::new(&config(vec![full, window], 128));
        let (sequence, mut positions) = begin(&mut bench, 40);
        bench.good(&edit(sequence, 2, removed as u64));
        let child = bench.fork(sequence, 0);
        bench.append(child, 1);
        bench.cache.validate().unwrap();
        let told = tables(&bench);
        positions.follow(&told.copies);
        let length = 40 - removed;
        let is_needed = |group: usize, token: usize| group == 0 || token + WINDOW > length;
        for (group, token, slot) in told.slots(1, length).filter(|&(group, token, _)| is_needed(group, token))
        {
            positions.check(group, slot, token);
        }
        cut_blocks += usize::from(length % EACH[1] >= WINDOW);
        bench.done();
    }
    assert!(cut_blocks > 0, "no copied block was filled from its middle on");
}

#[test]
fn an_edit_needs_no_token_that_the_edit_before_it_left_out_of_a_block() {
    let [full, chunked] = EACH.map(|each| group(each as u32));
    let chunked = GroupConfig { reach: Reach::Chunked { chunk_tokens: 14 }, ..chunked };
    let mut bench = Bench::new(&config(vec![full, chunked], 64));
    let (sequence, _) = begin(&mut bench, 50);
    // 44 tokens are left, of which the next one reaches those from 42 on: two of their block are not filled.
    bench.good(&edit(sequence, 0, 6));
    // Where 40 more go the two would be the first of their chunk; where 42 go they do not count.
    assert_eq!(bench.apply(&edit(sequence, 0, 40)).status, Status::WrongState);
    bench.good(&edit(sequence, 0, 42));
    tables(&bench);
    bench.done();
}

#[test]
fn what_an_earlier_list_told_is_turned_when_the_next_one_copies_it() {
    let mut bench = Bench::new(&settings(64));
    let (sequence, mut positions) = begin(&mut bench, 40);
    bench.good(&edit(sequence, 2, 3));
    let first = tables(&bench);
    positions.follow(&first.copies);
    first.check(0, 37, &positions);
    let child = bench.fork(sequence, 0);
    bench.append(child, 1);
    let second = tables(&bench);
    assert!(second.copies.iter().all(|copy| copy.shift == 0), "{:?}", second.copies);
    positions.follow(&second.copies);
    second.check(1, 37, &positions);
    bench.done();
}

#[test]
fn an_engine_that_copies_by_itself_and_a_worker_are_each_told_what_they_have_not_turned() {
    let mut bench = Bench::new(&CacheConfig { metadata_only: true, ..settings(64) });
    let worker = Bench::new(&CacheConfig { worker: true, ..settings(64) });
    let plan = |bench: &Bench| {
        let mut message = vec![0; bench.cache.export_plan(bench.step, false, &mut []).unwrap()];
        let bytes = bench.cache.export_plan(bench.step, false, &mut message).unwrap();
        worker.cache.apply_plan(worker.stream, &message[..bytes], told).unwrap()
    };
    let (_, sequence) = bench.start(&ask(&prompt(1, 40)), &prompt(1, 40));
    let (mut by_itself, mut by_plan) = (Positions::default(), Positions::default());
    tables(&bench).write(0, 40, &mut by_itself);
    plan(&bench).write(0, 40, &mut by_plan);
    bench.done();
    bench.begin();
    bench.good(&edit(sequence, 2, 3));
    by_itself.follow(&tables(&bench).copies);
    let child = bench.fork(sequence, 0);
    bench.append(child, 1);
    let told = tables(&bench);
    by_itself.follow(&told.copies);
    told.check(1, 37, &by_itself);
    let told = plan(&bench);
    by_plan.follow(&told.copies);
    told.check(1, 37, &by_plan);
    bench.done();
}

#[test]
fn a_shrink_leaves_blocks_that_the_step_copies_into_where_they_are() {
    let mut bench = Bench::new(&settings(64));
    let (sequence, mut positions) = begin(&mut bench, 40);
    let (_, low) = bench.start(&ask(&prompt(2, 60)), &prompt(2, 60));
    bench.turn();
    bench.good(&edit(sequence, 2, 3));
    bench.free(low);
    bench.cache.resize(1, 20).unwrap();
    let told = tables(&bench);
    positions.follow(&told.copies);
    told.check(0, 37, &positions);
    bench.turn();
    let moved = tables(&bench);
    assert!(moved.copies.iter().any(|copy| copy.group == 1), "with the next step they move");
    positions.follow(&moved.copies);
    moved.check(0, 37, &positions);
    bench.done();
}

#[test]
fn edits_of_one_step_are_refused_when_their_copies_would_be_too_many() {
    let mut bench = Bench::new(&CacheConfig { max_sequence_tokens: 40, max_sequences: 2, ..settings(512) });
    let (sequence, mut positions) = begin(&mut bench, 40);
    let mut left = 40;
    let refused = loop {
        let before = bench.statistics();
        let result = bench.apply(&edit(sequence, left as u64 / 2, 1));
        if result.status != Status::Ok {
            assert_eq!(before.used_blocks, bench.statistics().used_blocks);
            break result;
        }
        left -= 1;
    };
    assert_eq!(refused.status, Status::LimitReached);
    bench.cache.validate().unwrap();
    let told = tables(&bench);
    positions.follow(&told.copies);
    told.check(0, left, &positions);
    bench.turn();
    bench.good(&edit(sequence, 0, 1));
    bench.good(&Op::Free { target: Target::Id(Id(sequence)) });
    bench.turn();
}
