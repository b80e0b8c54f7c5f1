//! Memory between size classes: to the one that is short or full, from what nobody uses or asks for, and never more
//! than there was.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use kavern::cache::{CacheConfig, GroupConfig, Op, Request, StepTables};
use kavern::device::registry;
use kavern::error::{Result, Status};
use kavern::event::NoSink;
use kavern::memory::{Limits, Memory, Room};

use super::adaptive::{adaptive, forced, three};
use super::bench::{Bench, Stop, ask, config, lookup, opaque, prompt};

pub(super) const PAGE: u64 = 4096;

/// A page holds one block of 64 tokens, 4 of 16, 16 of 4.
pub(super) fn settings(pages: u64) -> CacheConfig {
    let groups = vec![opaque(4, PAGE / 16), opaque(16, PAGE / 4), opaque(64, PAGE)];
    CacheConfig {
        capacity_blocks: 0,
        capacity_bytes: 3 * pages * PAGE,
        max_blocks: 3 * 16 * pages,
        max_sequences: 64,
        max_leases: 64,
        max_sequence_tokens: 4096,
        max_batch_tokens: 1 << 16,
        adaptive: adaptive(&[1, 2, 3], "predictive"),
        ..config(groups, 0)
    }
}

pub(super) fn memory(limit_pages: u64) -> Arc<Memory> {
    let device = registry::open(&format!("host?page_bytes={PAGE}")).unwrap();
    let limits = Limits { device_limit_bytes: limit_pages * PAGE, ..Limits::default() };
    Memory::new(device, limits, Arc::new(NoSink))
}

fn moving(pages: u64) -> Bench {
    Bench::of(memory(0), &settings(pages))
}

pub(super) fn class_bytes(bench: &Bench) -> [u64; 3] {
    [0, 1, 2].map(|group| {
        let about = bench.cache.describe(group).unwrap();
        u64::from(about.blocks) * about.block_bytes
    })
}

/// A request that may find no room: admitted and committed, or let go.
pub(super) fn attempt(bench: &mut Bench, request: &Request<'_>, tokens: &[i32]) -> Result<Option<u64>> {
    let hit = lookup(&bench.cache, request)?;
    let rest = &tokens[hit.tokens as usize..];
    let result = bench.apply(&Op::Admit {
        lease: hit.lease,
        tokens: rest.len() as u64,
        lookahead: 0,
        row: -1,
        expected_tokens: 0,
    });
    if result.status != Status::Ok {
        assert_eq!(result.status, Status::OutOfBlocks);
        bench.good(&Op::Release { lease: hit.lease });
        return Ok(None);
    }
    bench.commit(result.sequence, rest);
    Ok(Some(result.sequence))
}

#[test]
fn memory_moves_to_the_class_that_is_short_and_back_within_what_there_was() {
    let mut bench = moving(128);
    let whole = class_bytes(&bench);
    let (sum, physical) = (whole.iter().sum::<u64>(), bench.statistics().pool_bytes);
    let mut random = fastrand::Rng::with_seed(8);
    let mut seed = 0;
    // First everybody writes chats, then documents, then chats again.
    for (phase, class) in [(0, 1), (1, 3), (2, 1)] {
        // Sequence, blocks, and what was written into them.
        let mut live: Vec<(u64, Vec<i32>, Vec<u64>)> = Vec::new();
        let group = class - 1;
        let (mut served, mut refused) = (0, 0);
        for round in 0..1500 {
            bench.begin();
            seed += 1;
            let length = if class == 1 { random.usize(200..400) } else { random.usize(1500..3000) };
            let tokens = prompt(seed, length);
            let begun = attempt(&mut bench, &forced(&tokens, class), &tokens).unwrap();
            (served, refused) = (served + 1, refused + u64::from(begun.is_none()));
            let rows = bench.cache.tables(bench.step, bench.stream, |tables| {
                let row = tables.batch_rows()?.last().map_or(0, |&row| row as usize);
                let view = tables.group(group as usize)?;
                Ok(view.block_table[row * view.row_cells as usize..].to_vec())
            });
            if let Some(sequence) = begun {
                let count = length.div_ceil([4, 16, 64][group as usize]);
                let blocks = rows.unwrap()[..count].to_vec();
                let marks: Vec<u64> = (0..count as u64).map(|at| (sequence << 20) ^ at).collect();
                bench.cache.fill_pattern(bench.stream, group, &blocks, &marks).unwrap();
                live.push((sequence, blocks, marks));
            }
            // As many as fit into three quarters of everything.
            let most = 3 * sum / 4 / (PAGE / 64) / length as u64;
            while live.len() as u64 > most.clamp(1, 60)
                || (refused > 0 && !live.is_empty() && random.u8(0..4) == 0)
            {
                let (sequence, blocks, marks) = live.swap_remove(random.usize(..live.len()));
                bench.cache.check_pattern(bench.stream, group, &blocks, &marks).unwrap();
                bench.free(sequence);
            }
            bench.cache.step_done(bench.step, Some(bench.stream)).unwrap();
            bench.device.stream_synchronize(bench.stream).unwrap();
            bench.cache.poll().unwrap();
            let now = class_bytes(&bench);
            assert!(now.iter().sum::<u64>() <= sum, "{now:?} of {sum}");
            assert!(bench.statistics().pool_bytes <= physical + 3 * PAGE);
            if round % 100 == 0 {
                bench.cache.validate().unwrap();
            }
        }
        let now = class_bytes(&bench);
        let own = class as usize - 1;
        assert!(
            now[own] > whole[own] * 5 / 4,
            "phase {phase}: {now:?} of {whole:?}, {refused} of {served} refused"
        );
        bench.begin();
        for (sequence, blocks, marks) in &live {
            bench.cache.check_pattern(bench.stream, group, blocks, marks).unwrap();
            bench.free(*sequence);
        }
        bench.device.stream_synchronize(bench.stream).unwrap();
        bench.done();
        bench.cache.poll().unwrap();
    }
    let moved: u64 = (0..3).map(|group| bench.cache.class_statistics(group).unwrap().given_bytes).sum();
    assert!(moved > sum / 8, "{moved} bytes of {sum}");
    let result = bench.cache.take_check_result().unwrap();
    assert!(result.checked > 10_000 && result.mismatched == 0, "{result:?}");
}

#[test]
fn memory_that_nobody_uses_goes_to_a_class_whose_cache_is_full() {
    let mut bench = moving(64);
    // Twice what the small class holds; no request is ever refused or passed over.
    let again = |bench: &mut Bench| -> u64 {
        let mut run = |seed| {
            let hits = bench.run(&forced(&prompt(seed, 100), 1));
            bench.cache.poll().unwrap();
            hits
        };
        (0..80).map(&mut run).sum()
    };
    assert_eq!(again(&mut bench), 0);
    (0..6).for_each(|_| _ = again(&mut bench));
    assert_eq!(again(&mut bench), 80 * 100, "all prompts stay");
    let (now, statistics) = (class_bytes(&bench), bench.cache.class_statistics(0).unwrap());
    assert!(now[0] > 100 * PAGE && now.iter().sum::<u64>() <= 3 * 64 * PAGE, "{now:?}");
    assert_eq!((statistics.passed_over, statistics.refused_ops), (0, 0));
    // It stops where the others keep some free blocks.
    assert!(now[1] > PAGE && now[2] > PAGE, "{now:?}");
}

/// Pages that come and go together.
pub(super) const SLAB: u64 = 32 * PAGE;

#[test]
fn classes_that_nobody_uses_keep_next_to_nothing_and_get_it_back_when_somebody_does() {
    let mut bench = moving(16 * 32);
    // As much as 46 of all 48 slabs hold, in turns.
    for _ in 0..4 {
        for seed in 0..46 * 32 * 64 / 100 {
            bench.run(&forced(&prompt(seed, 100), 1));
            bench.cache.poll().unwrap();
        }
    }
    let now = class_bytes(&bench);
    assert!(now[0] >= 45 * SLAB && now[1] <= SLAB && now[2] <= SLAB, "{:?}", now.map(|bytes| bytes / SLAB));
    // A document that is longer than what the class has kept.
    let tokens = prompt(9999, 3000);
    let mut refused = 0;
    loop {
        bench.begin();
        let begun = attempt(&mut bench, &forced(&tokens, 3), &tokens).unwrap();
        begun.into_iter().for_each(|sequence| bench.free(sequence));
        bench.done();
        bench.cache.poll().unwrap();
        if begun.is_some() {
            break;
        }
        refused += 1;
        assert!(refused < 20, "{:?}", class_bytes(&bench));
    }
    assert!(refused > 0 && class_bytes(&bench).iter().sum::<u64>() <= 48 * SLAB);
}

#[test]
fn content_that_nobody_asks_for_makes_room_for_content_of_another_class() {
    let mut bench = moving(128);
    let round = |bench: &mut Bench, class: u32, seed: i32| {
        let hits = bench.run(&forced(&prompt(seed, 100), class));
        bench.cache.poll().unwrap();
        hits
    };
    // The small class is full of prompts that come once, and so are the others.
    for seed in 0..400 {
        (1..=3).for_each(|class| _ = round(&mut bench, class, seed));
    }
    // From now on all prompts are in the small class, half as many again as it has room for, and come in turns: an
    // order in which too little room finds nothing at all. None is refused or passed over.
    let mut turn = |_| (1000..1120).map(|seed| round(&mut bench, 1, seed)).sum::<u64>();
    assert_eq!(turn(0), 0);
    (0..30).for_each(|again| _ = turn(again));
    assert_eq!(turn(0), 120 * 100, "all prompts stay");
    let statistics = bench.cache.class_statistics(0).unwrap();
    assert_eq!((statistics.passed_over, statistics.refused_ops), (0, 0));
    let now = class_bytes(&bench);
    assert!(now.iter().sum::<u64>() <= 3 * 128 * PAGE && now[1] > PAGE && now[2] > PAGE, "{now:?}");
    // Then other prompts are in the large class, more than it was left with, and nobody asks for those any more.
    let mut turn = |_| (2000..2100).map(|seed| round(&mut bench, 3, seed)).sum::<u64>();
    (0..30).for_each(|again| _ = turn(again));
    assert_eq!(turn(0), 100 * 64, "all whole blocks stay");
    let after = class_bytes(&bench);
    assert!(after[2] > now[2] && after[0] <= now[0], "{now:?} {after:?}");
}

#[test]
fn without_a_shortage_nothing_moves_and_a_callers_resize_is_kept() {
    let mut bench = moving(64);
    for round in 0..600 {
        bench.run(&ask(&prompt(round % 20, 100)));
        bench.cache.poll().unwrap();
    }
    assert_eq!(class_bytes(&bench), [64 * PAGE; 3]);
    bench.cache.resize(2, 16).unwrap();
    for round in 0..600 {
        bench.run(&ask(&prompt(round % 20, 100)));
        bench.cache.poll().unwrap();
    }
    assert_eq!(class_bytes(&bench), [64 * PAGE, 64 * PAGE, 16 * PAGE]);
    // Fixed pools stay as they are, whoever is short.
    let mut fixed = Bench::new(&three(16));
    for round in 0..200 {
        fixed.begin();
        let tokens = prompt(round, 100);
        assert_eq!(attempt(&mut fixed, &forced(&tokens, 1), &tokens).unwrap(), None);
        fixed.done();
        fixed.cache.poll().unwrap();
    }
    assert_eq!([0, 1, 2].map(|group| fixed.cache.describe(group).unwrap().blocks), [16; 3]);
}

#[test]
fn no_byte_is_lost_while_another_thread_moves_memory() {
    let mut bench = moving(128);
    let sum: u64 = class_bytes(&bench).iter().sum();
    let (cache, stop) = (Arc::clone(&bench.cache), AtomicBool::new(false));
    let mut random = fastrand::Rng::with_seed(2);
    std::thread::scope(|scope| {
        let stop = Stop(&stop);
        let is_over = stop.0;
        scope.spawn(move || {
            while !is_over.load(Ordering::Relaxed) {
                cache.poll().unwrap();
                std::thread::yield_now();
            }
        });
        // Sequence, group, row, and what was written into its blocks.
        let mut live: Vec<(u64, u32, usize, Vec<u64>)> = Vec::new();
        for round in 0..2400 {
            // The class that everybody wants changes every 300 requests.
            let group = (round / 300 % 3) as u32;
            bench.begin();
            let tokens = prompt(round, random.usize(100..1500));
            let begun = attempt(&mut bench, &forced(&tokens, group + 1), &tokens).unwrap();
            // A shrink may move what is held: where blocks are is what the tables of this step show.
            let cells = |group: u32, row: usize, count: usize| {
                let read = |tables: &StepTables<'_>| {
                    let view = tables.group(group as usize)?;
                    Ok(view.block_table[row * view.row_cells as usize..][..count].to_vec())
                };
                bench.cache.tables(bench.step, bench.stream, read).unwrap()
            };
            let row = |tables: &StepTables<'_>| Ok(tables.batch_rows()?.last().map(|&row| row as usize));
            let row = bench.cache.tables(bench.step, bench.stream, row).unwrap();
            if let Some(sequence) = begun {
                let (row, count) = (row.unwrap(), tokens.len().div_ceil([4, 16, 64][group as usize]));
                let marks: Vec<u64> = (0..count as u64).map(|at| (sequence << 20) ^ at).collect();
                let blocks = cells(group, row, count);
                bench.cache.fill_pattern(bench.stream, group, &blocks, &marks).unwrap();
                live.push((sequence, group, row, marks));
            }
            let mut gone = Vec::new();
            while live.len() > 8 || ((begun.is_none() || round == 2399) && !live.is_empty()) {
                let (sequence, group, row, marks) = live.swap_remove(random.usize(..live.len()));
                let blocks = cells(group, row, marks.len());
                bench.cache.check_pattern(bench.stream, group, &blocks, &marks).unwrap();
                gone.push(sequence);
            }
            gone.into_iter().for_each(|sequence| bench.free(sequence));
            bench.cache.step_done(bench.step, Some(bench.stream)).unwrap();
            bench.device.stream_synchronize(bench.stream).unwrap();
        }
    });
    let result = bench.cache.take_check_result().unwrap();
    assert!(result.checked > 10_000 && result.mismatched == 0, "{result:?}");
    assert!(class_bytes(&bench).iter().sum::<u64>() <= sum);
    let moved: u64 = (0..3).map(|group| bench.cache.class_statistics(group).unwrap().given_bytes).sum();
    assert!(moved > 0, "memory moved");
}

/// One round in which the small class, which `fill_small` has filled, is asked for more; answers whether it had room.
fn ask_small(bench: &mut Bench, seed: i32) -> bool {
    bench.begin();
    let tokens = prompt(seed, 1500);
    let begun = attempt(bench, &forced(&tokens, 1), &tokens).unwrap();
    bench.done();
    bench.cache.poll().unwrap();
    begun.is_some()
}

/// Holds all that the small class has room for, but for less than `ask_small` needs.
fn fill_small(bench: &mut Bench) {
    bench.begin();
    for seed in 1.. {
        let tokens = prompt(seed, 1500);
        if attempt(bench, &forced(&tokens, 1), &tokens).unwrap().is_none() {
            break;
        }
    }
    bench.done();
}

#[test]
fn steps_of_two_givers_that_keep_their_slabs_do_not_keep_the_third_class_short() {
    // The large class has a step to give and the primary one two; of the first step of each a few pages come back.
    let with = |group: &GroupConfig, blocks| GroupConfig { capacity_blocks: blocks, ..*group };
    let settings = settings(128);
    let groups = settings.groups.iter().zip([100 * 16, 100 * 4, 66]).map(|(group, count)| with(group, count));
    let groups: Vec<GroupConfig> = groups.collect();
    let mut bench = Bench::of(memory(0), &CacheConfig { groups, capacity_bytes: 0, ..settings });
    let (sum, physical) = (class_bytes(&bench).iter().sum::<u64>(), bench.statistics().pool_bytes);
    fill_small(&mut bench);
    let served = (100..200).position(|seed| ask_small(&mut bench, seed));
    let now = class_bytes(&bench);
    assert!(served.is_some_and(|rounds| rounds > 16), "{served:?} {:?}", now.map(|bytes| bytes / PAGE));
    assert!(now[0] >= 132 * PAGE && now[1] < 100 * PAGE && now[2] < 66 * PAGE, "{now:?}");
    assert!(now.iter().sum::<u64>() <= sum && bench.statistics().pool_bytes <= physical);
}

/// Counts how often it is asked.
struct Asked(AtomicU64);

impl Room for Asked {
    fn reclaim(&self, _bytes: u64) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed);
        0
    }

    fn rank(&self) -> u32 {
        2
    }
}

#[test]
fn a_class_whose_memory_somebody_else_took_asks_nobody_for_it_and_rests_before_it_tries_again() {
    let memory = memory(4000);
    let mut bench = Bench::of(Arc::clone(&memory), &settings(64));
    fill_small(&mut bench);
    let left = memory.allocate(4000 * PAGE - memory.held_bytes().0, "others").unwrap();
    let asked = Arc::new(Asked(AtomicU64::new(0)));
    memory.set_callback(Some(Arc::clone(&asked) as Arc<dyn Room>));
    // A step in flight keeps the pages of the class that gives.
    let whole = class_bytes(&bench);
    let mut seed = 100;
    while class_bytes(&bench) == whole {
        bench.begin();
        seed += 1;
        assert!(seed < 200, "nobody gives");
        let tokens = prompt(seed, 1500);
        assert_eq!(attempt(&mut bench, &forced(&tokens, 1), &tokens).unwrap(), None);
        bench.cache.poll().unwrap();
        bench.done();
    }
    let given = class_bytes(&bench);
    assert_eq!(whole.iter().sum::<u64>() - given.iter().sum::<u64>(), SLAB);
    // They go back to the device, and somebody has them before anybody else.
    let giver = (0..3).find(|&class| given[class as usize] < whole[class as usize]).unwrap();
    let blocks = bench.cache.describe(giver).unwrap().blocks;
    assert!(bench.cache.resize(giver, blocks.into()).unwrap().is_done);
    let others = memory.allocate(SLAB, "others").unwrap();
    asked.0.store(0, Ordering::Relaxed);
    for seed in 200..300 {
        assert!(!ask_small(&mut bench, seed));
    }
    assert_eq!((class_bytes(&bench), asked.0.load(Ordering::Relaxed)), (given, 0));
    // It is not tried again at once when they are free, but some time later.
    drop((others, left));
    assert!((300..320).all(|seed| !ask_small(&mut bench, seed)));
    assert_eq!(class_bytes(&bench), given);
    assert!((400..700).any(|seed| ask_small(&mut bench, seed)));
    assert!(class_bytes(&bench)[0] > whole[0]);
    assert_eq!(asked.0.load(Ordering::Relaxed), 0);
}
