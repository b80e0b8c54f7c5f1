//! Memory between size classes: to the one that is short or full, from what nobody uses or asks for, and never more
//! than there was.

use std::sync::atomic::{AtomicBool, Ordering};

use kavern::cache::{CacheConfig, Op, Request};
use kavern::device::registry;
use kavern::error::{Result, Status};
use kavern::event::NoSink;
use kavern::memory::{Limits, Memory};

use super::adaptive::{adaptive, forced, three};
use super::bench::{Bench, ask, config, lookup, opaque, prompt};

const PAGE: u64 = 4096;

/// A page holds one block of 64 tokens, 4 of 16, 16 of 4.
fn moving(pages: u64) -> Bench {
    let groups = vec![opaque(4, PAGE / 16), opaque(16, PAGE / 4), opaque(64, PAGE)];
    let settings = CacheConfig {
        capacity_blocks: 0,
        capacity_bytes: 3 * pages * PAGE,
        max_blocks: 3 * 16 * pages,
        max_sequences: 64,
        max_leases: 64,
        max_sequence_tokens: 4096,
        max_batch_tokens: 1 << 16,
        adaptive: adaptive(&[1, 2, 3], "predictive"),
        ..config(groups, 0)
    };
    let device = registry::open(&format!("host?page_bytes={PAGE}")).unwrap();
    Bench::of(Memory::new(device, Limits::default(), std::sync::Arc::new(NoSink)), &settings)
}

fn class_bytes(bench: &Bench) -> [u64; 3] {
    [0, 1, 2].map(|group| {
        let about = bench.cache.describe(group).unwrap();
        u64::from(about.blocks) * about.block_bytes
    })
}

/// A request that may find no room: admitted and committed, or let go.
fn attempt(bench: &mut Bench, request: &Request<'_>, tokens: &[i32]) -> Result<Option<u64>> {
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
const SLAB: u64 = 32 * PAGE;

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
    let (cache, stop) = (std::sync::Arc::clone(&bench.cache), AtomicBool::new(false));
    let mut random = fastrand::Rng::with_seed(2);
    std::thread::scope(|scope| {
        let poller = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                cache.poll().unwrap();
                std::thread::yield_now();
            }
        });
        let mut live: Vec<(u64, u32, Vec<i32>, Vec<u64>)> = Vec::new();
        for round in 0..2400 {
            // The class that everybody wants changes every 300 requests.
            let group = (round / 300 % 3) as u32;
            bench.begin();
            let tokens = prompt(round, random.usize(100..1500));
            let begun = attempt(&mut bench, &forced(&tokens, group + 1), &tokens).unwrap();
            let rows = bench.cache.tables(bench.step, bench.stream, |tables| {
                let row = tables.batch_rows()?.last().map_or(0, |&row| row as usize);
                let view = tables.group(group as usize)?;
                Ok(view.block_table[row * view.row_cells as usize..].to_vec())
            });
            if let Some(sequence) = begun {
                let count = tokens.len().div_ceil([4, 16, 64][group as usize]);
                let blocks = rows.unwrap()[..count].to_vec();
                let marks: Vec<u64> = (0..count as u64).map(|at| (sequence << 20) ^ at).collect();
                bench.cache.fill_pattern(bench.stream, group, &blocks, &marks).unwrap();
                live.push((sequence, group, blocks, marks));
            }
            while live.len() > 8 || ((begun.is_none() || round == 2399) && !live.is_empty()) {
                let (sequence, group, blocks, marks) = live.swap_remove(random.usize(..live.len()));
                bench.cache.check_pattern(bench.stream, group, &blocks, &marks).unwrap();
                bench.free(sequence);
            }
            bench.cache.step_done(bench.step, Some(bench.stream)).unwrap();
            bench.device.stream_synchronize(bench.stream).unwrap();
        }
        stop.store(true, Ordering::Relaxed);
        poller.join().unwrap();
    });
    let result = bench.cache.take_check_result().unwrap();
    assert!(result.checked > 10_000 && result.mismatched == 0, "{result:?}");
    assert!(class_bytes(&bench).iter().sum::<u64>() <= sum);
    let moved: u64 = (0..3).map(|group| bench.cache.class_statistics(group).unwrap().given_bytes).sum();
    assert!(moved > 0, "memory moved");
}

/// A scheduler without memory, and a worker that has all of it from the beginning.
#[test]
fn classes_of_a_scheduler_keep_their_shares_and_a_callers_resize_reaches_the_workers() {
    let groups = vec![opaque(4, 64), opaque(16, 256), opaque(64, 1024)];
    let settings = CacheConfig {
        max_sequences: 64,
        max_leases: 64,
        max_sequence_tokens: 1024,
        max_batch_tokens: 1 << 14,
        capacity_blocks: 0,
        capacity_bytes: 3 * 32 * 1024,
        max_blocks: 3 * 32 * 16,
        adaptive: adaptive(&[1, 2, 3], "predictive"),
        ..config(groups, 0)
    };
    let mut bench = Bench::new(&CacheConfig { metadata_only: true, ..settings.clone() });
    let worker = Bench::new(&CacheConfig { worker: true, ..settings });
    let mut live = std::collections::VecDeque::new();
    // Runs one step in both; answers the class of the sequence that began.
    let step = |bench: &mut Bench, live: &mut std::collections::VecDeque<u64>, seed: i32, running: usize| {
        bench.begin();
        while live.len() > running {
            bench.free(live.pop_front().unwrap());
        }
        let tokens = prompt(seed, 60);
        let hit = lookup(&bench.cache, &ask(&tokens)).unwrap();
        let admitted = bench.admit(hit.lease, 60);
        bench.commit(admitted.sequence, &tokens);
        live.push_back(admitted.sequence);
        let mut message = vec![0; bench.cache.export_plan(bench.step, false, &mut []).unwrap()];
        bench.cache.export_plan(bench.step, false, &mut message).unwrap();
        let (group, row) = (admitted.group as usize, admitted.row as usize);
        let told = worker.cache.apply_plan(worker.stream, &message, |tables| {
            let view = tables.group(group)?;
            let cells = 60usize.div_ceil([4, 16, 64][group]);
            Ok(view.block_table[row * view.row_cells as usize..][..cells].to_vec())
        });
        let blocks = told.unwrap();
        let marks: Vec<u64> = (0..blocks.len() as u64).map(|at| (admitted.sequence << 20) ^ at).collect();
        worker.cache.fill_pattern(worker.stream, group as u32, &blocks, &marks).unwrap();
        worker.cache.check_pattern(worker.stream, group as u32, &blocks, &marks).unwrap();
        worker.cache.step_done(bench.step, Some(worker.stream)).unwrap();
        worker.device.stream_synchronize(worker.stream).unwrap();
        worker.cache.poll().unwrap();
        bench.done();
        bench.cache.poll().unwrap();
        (group, blocks.into_iter().max().unwrap())
    };
    let blocks = |bench: &Bench| [0, 1, 2].map(|group| bench.cache.describe(group).unwrap().blocks);
    // 34 sequences fill the small class, which most of them would suit; the others are passed on.
    let classes: Vec<usize> = (0..600).map(|seed| step(&mut bench, &mut live, seed, 40).0).collect();
    assert!(classes.contains(&0) && classes.contains(&1));
    let passed_over = bench.cache.class_statistics(0).unwrap().passed_over;
    assert!(passed_over > 50, "{passed_over}");
    assert_eq!(blocks(&bench), [512, 128, 32], "nothing moves by itself");
    let moved: u64 = (0..3).map(|group| bench.cache.class_statistics(group).unwrap().gained_bytes).sum();
    assert_eq!(moved, 0);
    // The caller moves counts: the worker has memory for all that there can be, and follows.
    let held = worker.statistics().pool_bytes;
    assert!(held >= 3 * 3 * 32 * 1024, "{held} bytes for the most blocks of every class");
    bench.cache.resize(2, 8).unwrap();
    bench.cache.resize(0, 512 + 24 * 16).unwrap();
    let later: Vec<(usize, i32)> = (1000..1200).map(|seed| step(&mut bench, &mut live, seed, 40)).collect();
    assert!(later.iter().any(|&(group, block)| group == 0 && block >= 512), "new blocks are used");
    assert_eq!(bench.cache.class_statistics(0).unwrap().passed_over, passed_over, "all fit now");
    assert_eq!(worker.statistics().pool_bytes, held);
    let result = worker.cache.take_check_result().unwrap();
    assert!(result.checked > 800 && result.mismatched == 0, "{result:?}");
    assert_eq!(worker.cache.resize(0, 512).unwrap_err().status, Status::Unsupported);
}
