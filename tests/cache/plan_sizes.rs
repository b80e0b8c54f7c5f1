//! Sizes of classes in plans: a scheduler without memory moves what its workers have, and they follow.

use std::collections::VecDeque;

use kavern::cache::{CacheConfig, Op};
use kavern::error::{Result, Status};
use kavern::memory::Allocation;

use super::adaptive::forced;
use super::adaptive_memory::{PAGE, SLAB, class_bytes, memory, settings};
use super::bench::{Bench, ask, lookup, prompt, refused};

/// Pages of a memory that is large enough.
const LIMIT_PAGES: u64 = 1 << 14;

/// A sequence, where its blocks stand, and what was written into them.
struct Running {
    sequence: u64,
    group: u32,
    row: usize,
    marks: Vec<u64>,
}

/// A scheduler, and a worker with memory for what the classes begin with, and for what slabs keep of which a part is in
/// use.
struct Pair {
    scheduler: Bench,
    worker: Bench,
    /// All other memory of the worker's.
    _others: Allocation,
    live: VecDeque<Running>,
    /// Tables of the latest plan.
    rows: Vec<Vec<i32>>,
    pool_bytes: u64,
}

impl Pair {
    fn new(pages: u64) -> Self {
        let settings = settings(pages);
        let scheduler = Bench::new(&CacheConfig { metadata_only: true, ..settings.clone() });
        let memory = memory(LIMIT_PAGES);
        let worker = Bench::of(memory, &CacheConfig { worker: true, ..settings });
        let pool_bytes = worker.statistics().pool_bytes;
        assert_eq!(pool_bytes, 3 * pages * PAGE, "no more than the classes begin with");
        let others = LIMIT_PAGES * PAGE - worker.memory.held_bytes().0 - 3 * SLAB;
        let others = worker.memory.allocate(others, "others").unwrap();
        Self { scheduler, worker, _others: others, live: VecDeque::new(), rows: Vec::new(), pool_bytes }
    }

    fn export(&self, is_full: bool) -> Vec<u8> {
        let (cache, step) = (&self.scheduler.cache, self.scheduler.step);
        let mut message = vec![0; cache.export_plan(step, is_full, &mut []).unwrap()];
        let bytes = cache.export_plan(step, is_full, &mut message).unwrap();
        message.truncate(bytes);
        message
    }

    fn apply(&mut self, message: &[u8]) -> Result<()> {
        self.rows = self.worker.cache.apply_plan(self.worker.stream, message, |tables| {
            (0..3).map(|group| Ok(tables.group(group)?.block_table.to_vec())).collect::<Result<_>>()
        })?;
        Ok(())
    }

    fn blocks(&self, group: u32, row: usize, count: usize) -> Vec<i32> {
        let rows = &self.rows[group as usize];
        rows[row * (rows.len() / 64)..][..count].to_vec()
    }

    /// Ends the sequence that has run longest; what it wrote is checked in front of the step's work.
    fn end_one(&mut self) {
        let Some(Running { sequence, group, row, marks }) = self.live.pop_front() else { return };
        let blocks = self.blocks(group, row, marks.len());
        self.worker.cache.check_pattern(self.worker.stream, group, &blocks, &marks).unwrap();
        self.scheduler.free(sequence);
    }

    /// The step is over in the worker, and then in the scheduler.
    fn done(&mut self) {
        self.worker.cache.step_done(self.scheduler.step, Some(self.worker.stream)).unwrap();
        self.worker.device.stream_synchronize(self.worker.stream).unwrap();
        self.scheduler.done();
        self.scheduler.cache.poll().unwrap();
    }

    /// One step, in which a prompt is asked for in a class while at most so many others run; answers whether it had
    /// room.
    fn step(&mut self, seed: i32, class: u32, length: usize, most: usize) -> bool {
        self.scheduler.begin();
        while self.live.len() > most {
            self.end_one();
        }
        let tokens = prompt(seed, length);
        let hit = lookup(&self.scheduler.cache, &forced(&tokens, class)).unwrap();
        let op =
            Op::Admit { lease: hit.lease, tokens: length as u64, lookahead: 0, row: -1, expected_tokens: 0 };
        let result = self.scheduler.apply(&op);
        if result.status == Status::Ok {
            self.scheduler.commit(result.sequence, &tokens);
        } else {
            assert_eq!(result.status, Status::OutOfBlocks);
            self.scheduler.good(&Op::Release { lease: hit.lease });
            self.end_one();
        }
        let message = self.export(false);
        self.apply(&message).unwrap();
        if result.status == Status::Ok {
            let (group, row) = (class - 1, result.row as usize);
            let count = length.div_ceil([4, 16, 64][group as usize]);
            let marks: Vec<u64> = (0..count as u64).map(|at| (seed as u64) << 20 ^ at).collect();
            let blocks = self.blocks(group, row, count);
            self.worker.cache.fill_pattern(self.worker.stream, group, &blocks, &marks).unwrap();
            self.live.push_back(Running { sequence: result.sequence, group, row, marks });
        }
        self.done();
        result.status == Status::Ok
    }

    fn worker_blocks(&self) -> [u32; 3] {
        [0, 1, 2].map(|group| self.worker.cache.describe(group).unwrap().blocks)
    }

    fn scheduler_blocks(&self) -> [u32; 3] {
        [0, 1, 2].map(|group| self.scheduler.cache.describe(group).unwrap().blocks)
    }
}

#[test]
fn a_scheduler_moves_memory_to_the_class_that_is_short_and_its_worker_follows_with_no_more_than_there_was() {
    let mut pair = Pair::new(128);
    let whole = class_bytes(&pair.scheduler);
    let sum: u64 = whole.iter().sum();
    let mut seed = 0;
    for (phase, class) in [(0, 1), (1, 3), (2, 1)] {
        let own = class as usize - 1;
        let length = if class == 1 { 300 } else { 2000 };
        // Three quarters of everything.
        let most = (3 * sum / 4 / (PAGE / 64) / length as u64).min(60) as usize;
        let mut refused = 0;
        for _ in 0..1200 {
            seed += 1;
            refused += u64::from(!pair.step(seed, class, length, most));
            assert!(class_bytes(&pair.scheduler).iter().sum::<u64>() <= sum);
            assert!(pair.worker.statistics().pool_bytes <= pair.pool_bytes + 3 * SLAB);
            if seed % 100 == 0 {
                pair.scheduler.cache.validate().unwrap();
            }
        }
        let now = class_bytes(&pair.scheduler);
        assert!(now[own] > whole[own] * 5 / 4, "phase {phase}: {now:?} of {whole:?}, {refused} refused");
        assert_eq!(pair.worker_blocks(), pair.scheduler_blocks(), "phase {phase}");
    }
    pair.scheduler.begin();
    while !pair.live.is_empty() {
        pair.end_one();
    }
    let message = pair.export(false);
    pair.apply(&message).unwrap();
    pair.done();
    let result = pair.worker.cache.take_check_result().unwrap();
    assert!(result.checked > 10_000 && result.mismatched == 0, "{result:?}");
    assert!(pair.scheduler.statistics().moved_blocks > 0, "blocks of running sequences moved");
}

#[test]
fn a_worker_keeps_the_memory_of_a_class_until_nothing_there_is_used_and_the_step_that_told_so_is_over() {
    let mut pair = Pair::new(128);
    // A sequence at the far end of the large class, held by a lease that was told where its blocks lie.
    assert!(pair.step(1, 3, 64 * 40, 9) && pair.step(2, 3, 64 * 40, 9));
    let told = lookup(&pair.scheduler.cache, &forced(&prompt(2, 64 * 40), 3)).unwrap();
    assert_eq!(told.blocks.len(), 40);
    let before = pair.worker.statistics().pool_bytes;
    let resized = pair.scheduler.cache.resize(2, 16).unwrap();
    assert!(!resized.is_done && resized.held_blocks > 0);
    for seed in 10..20 {
        pair.step(seed, 1, 4, 9);
        assert!(!pair.scheduler.cache.resize(2, 16).unwrap().is_done);
    }
    // The other sequence's blocks have moved; what the lease names keeps its memory.
    let last = *told.blocks.iter().max().unwrap() as u32;
    assert!(pair.worker_blocks()[2] > last);
    pair.scheduler.begin();
    pair.end_one();
    pair.end_one();
    pair.scheduler.good(&Op::Release { lease: told.lease });
    let message = pair.export(false);
    pair.apply(&message).unwrap();
    assert!(pair.worker_blocks()[2] > last, "a step may still read them");
    pair.done();
    // Nobody uses them: the next plan tells so.
    assert!(!pair.scheduler.cache.resize(2, 16).unwrap().is_done, "no worker knows yet");
    pair.scheduler.begin();
    let message = pair.export(false);
    pair.apply(&message).unwrap();
    assert_eq!(pair.worker_blocks()[2], 16);
    assert!(!pair.scheduler.cache.resize(2, 16).unwrap().is_done, "the step is not over");
    pair.done();
    assert!(pair.scheduler.cache.resize(2, 16).unwrap().is_done);
    pair.worker.cache.poll().unwrap();
    assert!(pair.worker.statistics().pool_bytes <= before - 3 * SLAB, "112 of 128 pages, in slabs of 32");
}

#[test]
fn a_worker_without_memory_for_a_class_that_grew_takes_nothing_over_and_can_be_asked_again() {
    let mut pair = Pair::new(128);
    pair.step(1, 1, 64, 9);
    // More than the worker has, by the scheduler's own will.
    let more = 128 + 32 * 4;
    pair.scheduler.cache.resize(2, more).unwrap();
    pair.scheduler.begin();
    let message = pair.export(false);
    let before = pair.worker_blocks();
    assert_eq!(refused(pair.apply(&message)), Status::OutOfMemory);
    assert_eq!((pair.worker_blocks(), pair.worker.statistics().last_step), (before, 1));
    // Others give some back.
    let freed = std::mem::replace(&mut pair._others, pair.worker.memory.allocate(PAGE, "others").unwrap());
    drop(freed);
    pair.apply(&message).unwrap();
    assert_eq!(pair.worker_blocks()[2], more as u32);
    // A message that was applied is no longer one whose turn it is, whatever sizes it tells.
    pair.done();
    pair.scheduler.cache.resize(2, 128).unwrap();
    pair.scheduler.begin();
    let next = pair.export(false);
    pair.apply(&next).unwrap();
    assert_eq!(pair.worker_blocks()[2], 128);
    assert_eq!(refused(pair.apply(&message)), Status::WrongState);
    assert_eq!(pair.worker_blocks()[2], 128);
    pair.done();
}

#[test]
fn a_worker_that_comes_late_has_the_sizes_of_a_full_plan() {
    let mut pair = Pair::new(128);
    for seed in 0..400 {
        pair.step(seed, 1, 300, 60);
    }
    let sizes = pair.scheduler_blocks();
    assert!(sizes[0] > 128 * 16);
    pair.scheduler.begin();
    let message = pair.export(false);
    pair.apply(&message).unwrap();
    let full = pair.export(true);
    // No more memory than the other one, and all of it in the classes of the beginning.
    let memory = memory(LIMIT_PAGES);
    let late = Bench::of(memory, &CacheConfig { worker: true, ..settings(128) });
    let others = LIMIT_PAGES * PAGE - late.memory.held_bytes().0 - 3 * SLAB;
    let _others = late.memory.allocate(others, "others").unwrap();
    late.cache.apply_plan(late.stream, &full, |_| Ok(())).unwrap();
    let blocks = [0, 1, 2].map(|group| late.cache.describe(group).unwrap().blocks);
    assert_eq!((blocks, pair.worker_blocks()), (sizes, sizes));
    pair.done();
}

#[test]
fn a_refused_plan_of_another_scheduler_takes_no_memory_from_a_worker() {
    let mut pair = Pair::new(128);
    // More steps than a stranger's first one.
    (1..=5).for_each(|seed| assert!(pair.step(seed, 1, 64, 0)));
    let last = pair.worker_blocks()[0] as i32 - 1;
    pair.worker.cache.fill_pattern(pair.worker.stream, 0, &[last], &[7]).unwrap();
    let held = |pair: &Pair| (pair.worker_blocks(), pair.worker.statistics().pool_bytes);
    let before = held(&pair);
    let full_plan_of_a_stranger = |step: u64| {
        let stranger = Bench::new(&CacheConfig { metadata_only: true, ..settings(128) });
        stranger.cache.resize(0, u64::from(before.0[0]) / 2).unwrap();
        drop(stranger.cache.step(step).unwrap());
        let mut message = vec![0; stranger.cache.export_plan(step, true, &mut []).unwrap()];
        let bytes = stranger.cache.export_plan(step, true, &mut message).unwrap();
        message.truncate(bytes);
        message
    };
    // Of a step that is over here.
    assert_eq!(refused(pair.apply(&full_plan_of_a_stranger(1))), Status::WrongState);
    assert_eq!(held(&pair), before);
    // Of one more step than may be in flight.
    for _ in 0..4 {
        pair.scheduler.begin();
        let message = pair.export(false);
        pair.apply(&message).unwrap();
    }
    assert_eq!(refused(pair.apply(&full_plan_of_a_stranger(10))), Status::TooManySteps);
    pair.done();
    pair.worker.cache.poll().unwrap();
    assert_eq!(held(&pair), before);
    // The own scheduler goes on.
    assert!(pair.step(6, 1, 64, 0));
    assert_eq!(held(&pair), before);
    let cache = &pair.worker.cache;
    cache.check_pattern(pair.worker.stream, 0, &[last], &[7]).unwrap();
    pair.worker.device.stream_synchronize(pair.worker.stream).unwrap();
    assert_eq!(cache.take_check_result().unwrap().mismatched, 0, "what stood in the last block is there");
}

#[test]
fn a_worker_with_size_classes_chooses_none_and_counts_none() {
    let worker = Bench::of(memory(0), &CacheConfig { worker: true, ..settings(64) });
    assert_eq!(refused(worker.cache.advise(1, 8, 0)), Status::Unsupported);
    assert_eq!(refused(worker.cache.class_statistics(0)), Status::Unsupported);
}

#[test]
fn a_plan_without_sizes_is_refused_where_memory_follows_them_and_one_with_sizes_needs_none_that_follows() {
    let settings = settings(64);
    // Fixed classes with as many blocks as the others can get to: the same geometry of plans.
    let most = [3 * 16 * 64, 3 * 4 * 64, 3 * 64];
    let mut fixed = CacheConfig { max_blocks: 0, capacity_bytes: 0, ..settings.clone() };
    fixed.groups.iter_mut().zip(most).for_each(|(group, blocks)| group.capacity_blocks = blocks);
    let plan = |config: &CacheConfig| {
        let mut bench = Bench::new(&CacheConfig { metadata_only: true, ..config.clone() });
        bench.begin();
        let tokens = prompt(1, 40);
        bench.start(&ask(&tokens), &tokens);
        let mut message = vec![0; bench.cache.export_plan(1, false, &mut []).unwrap()];
        bench.cache.export_plan(1, false, &mut message).unwrap();
        bench.done();
        message
    };
    let apply = |config: &CacheConfig, message: &[u8]| {
        let worker = Bench::of(memory(0), &CacheConfig { worker: true, ..config.clone() });
        let applied = worker.cache.apply_plan(worker.stream, message, |_| Ok(()));
        (applied.map_err(|error| error.status), worker.cache.describe(0).unwrap().blocks)
    };
    let (moving, still) = (plan(&settings), plan(&fixed));
    assert_eq!(moving.len(), still.len() + 3 * 4);
    assert_eq!(apply(&settings, &still), (Err(Status::Unsupported), 16 * 64));
    assert_eq!(apply(&settings, &moving), (Ok(()), 16 * 64));
    assert_eq!(apply(&fixed, &moving), (Ok(()), 3 * 16 * 64));
    assert_eq!(apply(&fixed, &still), (Ok(()), 3 * 16 * 64));
    // Where pages cannot come and go, all that there can be is there from the beginning.
    let device = kavern::device::registry::open("host?virtual=0").unwrap();
    let memory =
        kavern::memory::Memory::new(device, Default::default(), std::sync::Arc::new(kavern::event::NoSink));
    let worker = Bench::of(memory, &CacheConfig { worker: true, ..settings });
    worker.cache.apply_plan(worker.stream, &moving, |_| Ok(())).unwrap();
    assert_eq!(worker.statistics().pool_bytes, 3 * 3 * 64 * PAGE);
}
