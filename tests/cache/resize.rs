//! Blocks that come and go while sequences run: counts, content, memory.

use std::sync::atomic::{AtomicBool, Ordering};

use kavern::cache::{
    CacheConfig, CheckResult, GroupConfig, HashKind, KvCache, Op, OpResult, Reach, Resized, Scrub, Target,
};
use kavern::device::registry;
use kavern::error::Status;
use kavern::event::NoSink;
use kavern::memory::{Limits, Memory};
use kavern::types::Id;

use super::bench::{Bench, Stop, ask, commit, config, group, lookup, opaque, prompt, refused};

const PAGE: u64 = 4096;
/// Pages that may stay because they came in one piece with others that are in use.
const SLAB: u64 = 32;

/// One block a page.
fn paged(blocks: u64, max_blocks: u64) -> CacheConfig {
    CacheConfig { max_blocks, ..config(vec![opaque(4, PAGE)], blocks) }
}

fn bench(config: &CacheConfig) -> Bench {
    let device = registry::open(&format!("host?page_bytes={PAGE}")).unwrap();
    Bench::of(Memory::new(device, Limits::default(), std::sync::Arc::new(NoSink)), config)
}

/// Pages that the pool has of all that the memory manager has handed out.
fn held_pages(bench: &Bench) -> u64 {
    let held = bench.memory.physical().unwrap().statistics().held_bytes;
    assert_eq!(held, bench.statistics().pool_bytes, "the manager counts what the cache says");
    held / PAGE
}

#[test]
fn a_group_grows_to_its_most_and_shrinks_to_one_block() {
    for metadata_only in [false, true] {
        let mut bench = bench(&CacheConfig { metadata_only, ..paged(10, 700) });
        assert_eq!(bench.statistics().free_blocks, 10);
        let page = if metadata_only { 0 } else { PAGE };
        for blocks in [700, 1, 300, 10] {
            let resized = bench.cache.resize(0, blocks).unwrap();
            let expected = Resized {
                blocks: blocks as u32,
                max_blocks: 700,
                held_blocks: 0,
                committed_bytes: resized.committed_bytes,
                is_done: true,
            };
            assert_eq!(resized, expected);
            let statistics = bench.statistics();
            assert_eq!((statistics.free_blocks, statistics.used_blocks), (blocks, 0));
            assert_eq!(statistics.capacity_blocks, blocks);
            let memory = blocks * page..=(blocks + SLAB) * page;
            assert!(
                memory.contains(&statistics.pool_bytes),
                "{} bytes for {blocks} blocks",
                statistics.pool_bytes
            );
            assert_eq!(bench.cache.describe(0).unwrap().blocks, blocks as u32);
            bench.cache.validate().unwrap();
        }
        // All of them can be had, and not one more.
        bench.begin();
        let lease = bench.look(&ask(&prompt(1, 41))).lease;
        assert_eq!(
            bench
                .apply(&Op::Admit { lease, tokens: 41, lookahead: 0, row: -1, expected_tokens: 0 })
                .blocks_missing,
            1
        );
        assert_eq!(bench.admit(lease, 40).blocks_added, 10);
        bench.done();
    }
}

#[test]
fn a_count_out_of_range_or_a_group_that_is_not_there_is_refused() {
    let bench = bench(&paged(10, 20));
    for (group, blocks) in [(0, 0), (0, 21), (0, u64::MAX), (1, 5)] {
        assert_eq!(refused(bench.cache.resize(group, blocks)), Status::InvalidArgument);
    }
    assert_eq!(bench.statistics().free_blocks, 10);
    let fixed = Bench::simple(4, 10);
    assert_eq!(refused(fixed.cache.resize(0, 11)), Status::InvalidArgument);
    // Memory that stays: the count changes alone.
    let bytes = fixed.statistics().pool_bytes;
    assert!(fixed.cache.resize(0, 3).unwrap().is_done);
    assert_eq!((fixed.statistics().free_blocks, fixed.statistics().pool_bytes), (3, bytes));
    assert!(fixed.cache.resize(0, 10).unwrap().is_done);
    assert_eq!(fixed.statistics().free_blocks, 10);
}

#[test]
fn held_blocks_above_stay_with_their_holder_and_go_out_of_use_with_it() {
    for hash in [HashKind::Blake3, HashKind::Xxh3] {
        let mut bench = bench(&CacheConfig { hash, ..paged(8, 8) });
        bench.begin();
        let tokens = prompt(1, 32);
        let (_, sequence) = bench.start(&ask(&tokens[..24]), &tokens[..24]);
        let hit = bench.look(&ask(&tokens[..24]));
        let above = hit.blocks.iter().filter(|&&block| block >= 3).count() as u32;
        let resized = bench.cache.resize(0, 3).unwrap();
        assert_eq!((resized.held_blocks, resized.is_done), (above, false));
        // It is found as long as it is held, and the sequence cannot grow; what it has is its own.
        let found = bench.look(&ask(&tokens[..24]));
        assert_eq!(found.blocks, hit.blocks);
        let target = Target::Id(Id(sequence));
        let more = bench.apply(&Op::Append { target, tokens: 8, lookahead: 0 });
        assert_eq!((more.status, more.blocks_missing), (Status::OutOfBlocks, 2));
        bench.cache.validate().unwrap();
        bench.good(&Op::Release { lease: found.lease });
        bench.free(sequence);
        bench.cache.poll().unwrap();
        let resized = bench.cache.resize(0, 3).unwrap();
        assert_eq!(resized.held_blocks, above, "a lease and the open step still reach them");
        bench.good(&Op::Release { lease: hit.lease });
        bench.done();
        bench.cache.poll().unwrap();
        assert!(bench.cache.resize(0, 3).unwrap().is_done);
        assert_eq!(bench.statistics().used_blocks, 0);
    }
}

#[test]
fn blocks_of_a_freed_sequence_lose_their_memory_only_when_the_step_is_past() {
    let mut bench = bench(&paged(128, 256));
    bench.begin();
    let tokens = prompt(1, 512);
    let (_, sequence) = bench.start(&ask(&tokens), &tokens);
    bench.upload();
    bench.free(sequence);
    let gate = bench.gate();
    bench.cache.step_done(bench.step, Some(bench.stream)).unwrap();
    let resized = bench.cache.resize(0, 32).unwrap();
    assert_eq!((resized.held_blocks, resized.is_done), (96, false));
    assert_eq!((held_pages(&bench), bench.statistics().deferred_blocks), (128, 128));
    bench.cache.poll().unwrap();
    assert_eq!(held_pages(&bench), 128);
    drop(gate);
    bench.device.stream_synchronize(bench.stream).unwrap();
    bench.cache.poll().unwrap();
    assert_eq!(held_pages(&bench), 32);
    assert!(bench.cache.resize(0, 32).unwrap().is_done);
    // The tail is not found any more; what is left is.
    assert_eq!(bench.hits(&ask(&tokens)), 128);
    assert!(bench.cache.resize(0, 256).unwrap().is_done);
    assert_eq!(held_pages(&bench), 256);
}

#[test]
fn a_block_whose_zeros_are_still_to_be_written_keeps_its_memory() {
    let mut bench = bench(&CacheConfig { scrub: Scrub::Always, ..paged(64, 64) });
    bench.begin();
    let lease = bench.look(&ask(&prompt(1, 256))).lease;
    let sequence = bench.admit(lease, 256).sequence;
    bench.free(sequence);
    bench.done();
    // Nobody asked for the tables: the fills are still listed.
    assert_eq!((bench.cache.resize(0, 1).unwrap().is_done, held_pages(&bench)), (false, 64));
    bench.begin();
    bench.upload();
    bench.cache.poll().unwrap();
    assert_eq!(held_pages(&bench), 64, "the step with the fills is in flight");
    bench.cache.step_done(bench.step, Some(bench.stream)).unwrap();
    bench.device.stream_synchronize(bench.stream).unwrap();
    bench.cache.poll().unwrap();
    assert_eq!(held_pages(&bench), SLAB);
}

#[test]
fn a_growth_without_memory_changes_nothing() {
    let device = registry::open(&format!("host?page_bytes={PAGE}")).unwrap();
    let limits = Limits { device_limit_bytes: 3 << 20, ..Limits::default() };
    let memory = Memory::new(device, limits, std::sync::Arc::new(NoSink));
    let mut bench = Bench::of(memory, &paged(16, 4096));
    let tokens = prompt(1, 40);
    bench.run(&ask(&tokens));
    assert!(bench.cache.resize(0, 12).unwrap().is_done);
    let before = (held_pages(&bench), bench.hits(&ask(&tokens)));
    assert_eq!(refused(bench.cache.resize(0, 4096)), Status::OutOfMemory);
    assert_eq!((held_pages(&bench), bench.hits(&ask(&tokens))), before);
    assert_eq!(bench.statistics().capacity_blocks, 12);
    assert_eq!(bench.cache.describe(0).unwrap().blocks, 12);
    assert!(bench.cache.resize(0, 100).unwrap().is_done);
}

#[test]
fn a_slot_that_got_other_memory_is_wiped_before_a_tenant_sees_it() {
    let mut bench = bench(&CacheConfig { scrub: Scrub::TenantChange, ..paged(64, 64) });
    let place = bench.cache.describe(0).unwrap();
    let tokens = prompt(1, 256);
    bench.run(&ask(&tokens));
    bench.device.write(bench.slice(place.base_address, 64 * PAGE), &[0xaa; 64 * PAGE as usize]).unwrap();
    bench.cache.resize(0, SLAB).unwrap();
    bench.cache.resize(0, 64).unwrap();
    bench.begin();
    // The same tenant: what it wrote itself it may see, but in the upper half others may have written since.
    let lease = bench.look(&ask(&prompt(2, 256))).lease;
    bench.admit(lease, 256);
    bench.upload();
    let bytes = bench.bytes(place.base_address, 64 * PAGE);
    let (old, new) = bytes.split_at((SLAB * PAGE) as usize);
    assert!(old.iter().all(|&byte| byte == 0xaa) && new.iter().all(|&byte| byte == 0));
    bench.done();
}

#[test]
fn windows_keep_their_null_block_whatever_the_count() {
    let window = GroupConfig { reach: Reach::Sliding { window_tokens: 8 }, ..opaque(4, 256) };
    let mut bench = bench(&CacheConfig { max_blocks: 200, ..config(vec![window], 100) });
    let place = bench.cache.describe(0).unwrap();
    assert_eq!(place.null_block, Some(200));
    for blocks in [20, 200, 8] {
        assert!(bench.cache.resize(0, blocks).unwrap().is_done);
        let null = bench.block(0, 200);
        assert!(bench.bytes(null.address(), null.bytes()).iter().all(|&byte| byte == 0));
        let tokens = prompt(blocks as i32, 30);
        bench.run(&ask(&tokens));
    }
}

#[test]
fn a_region_of_the_engines_holds_all_blocks_and_keeps_its_memory() {
    let device = registry::open("host").unwrap();
    let own = device.memory_allocate(64 * PAGE).unwrap();
    let memory = Memory::new(std::sync::Arc::clone(&device), Limits::default(), std::sync::Arc::new(NoSink));
    let with = |bytes: u64| {
        let group = GroupConfig { region: Some(own.part(0, bytes).unwrap()), ..opaque(4, PAGE) };
        CacheConfig { max_blocks: 64, ..config(vec![group], 16) }
    };
    assert_eq!(refused(KvCache::new(&memory, &with(63 * PAGE))), Status::InvalidArgument);
    let bench = Bench::of(memory, &with(64 * PAGE));
    for blocks in [64, 3, 16] {
        assert!(bench.cache.resize(0, blocks).unwrap().is_done);
        assert_eq!((bench.statistics().free_blocks, bench.statistics().pool_bytes), (blocks, 64 * PAGE));
    }
}

/// What a block holds after these tokens.
fn seed(tokens: &[i32]) -> u64 {
    tokens.iter().fold(17, |seed: u64, &token| (seed ^ token as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

struct Request {
    id: u64,
    row: usize,
    tokens: Vec<i32>,
    /// Whole blocks whose content is written.
    written: usize,
}

/// Serves random requests for so many steps, checking every block that is found or held; answers requests and hits.
fn serve(bench: &Bench, random: &mut fastrand::Rng, steps: u64) -> (u64, u64) {
    let (cache, stream) = (&bench.cache, bench.stream);
    let apply = |step: u64, op: &Op<'_>| -> OpResult { cache.step(step).unwrap().apply(op) };
    let free = |step: u64, id: u64| {
        assert_eq!(apply(step, &Op::Free { target: Target::Id(Id(id)) }).status, Status::Ok);
    };
    let mut live: Vec<Request> = Vec::new();
    let (mut served, mut hits) = (0, 0);
    for step in 1..=steps {
        let count = 4 * random.usize(1..12);
        let tokens: Vec<i32> = (0..count).map(|at| if at % 8 == 0 { random.i32(0..3) } else { 1 }).collect();
        let hit = lookup(cache, &ask(&tokens)).unwrap();
        let rest = &tokens[hit.tokens as usize..];
        let admitted = apply(
            step,
            &Op::Admit {
                lease: hit.lease,
                tokens: rest.len() as u64,
                lookahead: 0,
                row: -1,
                expected_tokens: 0,
            },
        );
        match admitted.status {
            Status::Ok => {
                assert_eq!(apply(step, &commit(admitted.sequence, rest, &[])).status, Status::Ok);
                (served, hits) = (served + 1, hits + hit.tokens);
                let (id, row, written) = (admitted.sequence, admitted.row as usize, hit.blocks.len());
                live.push(Request { id, row, tokens, written });
            }
            Status::OutOfBlocks | Status::LimitReached => {
                assert_eq!(apply(step, &Op::Release { lease: hit.lease }).status, Status::Ok);
            }
            other => panic!("{other:?}"),
        }
        let rows = cache.tables(step, stream, |tables| Ok(tables.group(0)?.block_table.to_vec())).unwrap();
        let cells = cache.describe(0).unwrap().row_cells as usize;
        for request in &mut live {
            let count = request.tokens.len() / 4;
            let blocks = &rows[request.row * cells..][..count];
            let seeds: Vec<u64> = (1..=count).map(|end| seed(&request.tokens[..4 * end])).collect();
            let (old, new) = (0..request.written, request.written..count);
            cache.check_pattern(stream, 0, &blocks[old.clone()], &seeds[old]).unwrap();
            cache.fill_pattern(stream, 0, &blocks[new.clone()], &seeds[new]).unwrap();
            request.written = count;
        }
        while live.len() > 5 || (!live.is_empty() && (step == steps || random.u8(0..3) == 0)) {
            free(step, live.swap_remove(random.usize(..live.len())).id);
        }
        cache.step_done(step, Some(stream)).unwrap();
        if bench.statistics().steps_in_flight == 4 {
            bench.device.stream_synchronize(stream).unwrap();
        }
        cache.poll().unwrap();
    }
    bench.device.stream_synchronize(stream).unwrap();
    cache.poll().unwrap();
    (served, hits)
}

#[test]
fn no_byte_is_lost_while_another_thread_grows_and_shrinks_the_pool() {
    for (hash, scrub) in [(HashKind::Blake3, Scrub::None), (HashKind::Xxh3, Scrub::TenantChange)] {
        let bench = bench(&CacheConfig { hash, scrub, ..paged(64, 400) });
        let stop = AtomicBool::new(false);
        let mut random = fastrand::Rng::with_seed(5);
        let (served, hits, resizes, pages) = std::thread::scope(|scope| {
            let (stop, cache) = (&stop, &bench.cache);
            let resizing = scope.spawn(move || {
                let mut random = fastrand::Rng::with_seed(6);
                let (mut resizes, mut pages) = (0u64, (u64::MAX, 0));
                while !stop.load(Ordering::Relaxed) {
                    let blocks = if random.bool() { random.u64(24..80) } else { random.u64(24..=400) };
                    let resized = cache.resize(0, blocks).unwrap();
                    let now = resized.committed_bytes / PAGE;
                    assert!(now >= blocks, "{now} pages for {blocks} blocks");
                    pages = (pages.0.min(now), pages.1.max(now));
                    resizes += 1;
                    if random.u8(..) == 0 {
                        cache.validate().unwrap();
                    }
                }
                (resizes, pages)
            });
            let stopping = Stop(stop);
            let (served, hits) = serve(&bench, &mut random, 3000);
            drop(stopping);
            let (resizes, pages) = resizing.join().unwrap();
            (served, hits, resizes, pages)
        });
        let CheckResult { checked, mismatched, .. } = bench.cache.take_check_result().unwrap();
        assert!(served > 1500 && hits > 1500 && checked > 10_000, "{served} {hits} {checked}");
        assert_eq!(mismatched, 0);
        assert!(resizes > 50 && pages.0 < 100 && pages.1 > 300, "{resizes} resizes, pages {pages:?}");
        // Everything is let go: the pool is as small as asked, and so is its memory.
        bench.cache.poll().unwrap();
        assert!(bench.cache.resize(0, 2).unwrap().is_done);
        assert!(held_pages(&bench) <= SLAB && bench.statistics().used_blocks == 0);
    }
}

#[test]
fn a_large_pool_is_retired_in_stretches_and_comes_back_whole() {
    let metadata = CacheConfig { metadata_only: true, ..config(vec![group(4)], 200_000) };
    let mut bench = Bench::new(&metadata);
    for at in 0..40 {
        bench.run(&ask(&prompt(at, 400)));
    }
    let inactive = bench.statistics().inactive_blocks;
    assert_eq!(inactive, 40 * 100);
    assert!(bench.cache.resize(0, 150).unwrap().is_done);
    assert!(bench.statistics().inactive_blocks <= 150);
    assert!(bench.cache.resize(0, 200_000).unwrap().is_done);
    assert_eq!(bench.statistics().free_blocks + bench.statistics().inactive_blocks, 200_000);
}

#[test]
fn a_block_that_a_pattern_is_still_written_into_keeps_its_memory() {
    for block in [31, 127] {
        let bench = bench(&paged(128, 128));
        let gate = bench.gate();
        bench.cache.fill_pattern(bench.stream, 0, &[block], &[7]).unwrap();
        let resized = bench.cache.resize(0, 32).unwrap();
        // One below the new count is in nobody's way.
        assert_eq!((resized.held_blocks, resized.is_done), (0, block < 32));
        bench.cache.poll().unwrap();
        assert_eq!(held_pages(&bench), if block < 32 { 32 } else { 128 });
        assert_eq!(refused(bench.cache.fill_pattern(bench.stream, 0, &[127], &[7])), Status::InvalidArgument);
        drop(gate);
        bench.device.stream_synchronize(bench.stream).unwrap();
        bench.cache.poll().unwrap();
        assert_eq!(held_pages(&bench), 32);
    }
}

#[test]
fn a_cache_that_goes_waits_for_the_work_on_its_blocks() {
    let device = registry::open(&format!("host?page_bytes={PAGE}")).unwrap();
    let memory = Memory::new(std::sync::Arc::clone(&device), Limits::default(), std::sync::Arc::new(NoSink));
    let cache = KvCache::new(&memory, &paged(64, 64)).unwrap();
    let stream = device.stream_create().unwrap();
    let (open, wait) = std::sync::mpsc::channel::<()>();
    device.stream_callback(stream, Box::new(move || wait.recv().unwrap_or(()))).unwrap();
    cache.fill_pattern(stream, 0, &[63], &[7]).unwrap();
    let is_gone = &AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            drop(cache);
            is_gone.store(true, Ordering::Release);
        });
        for _ in 0..1000 {
            std::thread::yield_now();
        }
        assert!(!is_gone.load(Ordering::Acquire), "its work is behind a closed gate");
        // With its memory gone this write would fault.
        drop(open);
    });
    device.stream_synchronize(stream).unwrap();
    device.stream_destroy(stream).unwrap();
}

/// Hits of a hundred prompts that come again after more new ones than the cache has blocks.
fn hits_of_returning_prompts(policy: &str, max_blocks: u64) -> u64 {
    let settings = CacheConfig {
        policy: policy.to_owned(),
        metadata_only: true,
        max_blocks,
        ..config(vec![group(4)], 256)
    };
    let mut bench = Bench::new(&settings);
    let mut new = 1000;
    for _ in 0..150 {
        for seed in 0..100 {
            bench.run(&ask(&prompt(seed, 4)));
            for _ in 0..2 {
                new += 1;
                bench.run(&ask(&prompt(new, 4)));
            }
        }
    }
    bench.statistics().hit_blocks
}

#[test]
fn a_cache_that_may_grow_learns_as_one_of_its_present_size() {
    assert_eq!(hits_of_returning_prompts("lru", 0), 0);
    for policy in ["adaptive", "s3fifo"] {
        let [fixed, elastic] = [0, 1024].map(|most| hits_of_returning_prompts(policy, most));
        assert!(fixed > 5_000, "{policy}: {fixed} hits of 15,000");
        assert!(10 * elastic > 9 * fixed, "{policy}: {elastic} hits, {fixed} in a cache that cannot grow");
    }
}
