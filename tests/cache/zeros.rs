//! A cache without memory tells its engine which blocks to wipe: those that one with memory wipes itself.

use kavern::cache::{CacheConfig, Op, Request, Scrub, StepTables, ZeroBlock};
use kavern::error::Status;

use super::bench::{Bench, ask, config, group, prompt, refused};

const BLOCKS: u64 = 12;

fn settings(scrub: Scrub) -> CacheConfig {
    CacheConfig { scrub, max_sequences: 4, ..config(vec![group(4), group(2)], BLOCKS) }
}

fn without_memory(scrub: Scrub) -> Bench {
    Bench::new(&CacheConfig { metadata_only: true, ..settings(scrub) })
}

/// What the tables of the step tell, in rising order, and where the list lies.
fn told(bench: &Bench) -> (Vec<ZeroBlock>, usize) {
    let read = |tables: &StepTables<'_>| {
        assert!((0..2).all(|group| tables.group(group).unwrap().blocks_zeroed == 0));
        assert!(tables.zeros().is_sorted_by_key(|zero| zero.group));
        Ok((tables.zeros().to_vec(), tables.zeros().as_ptr() as usize))
    };
    let (mut zeros, place) = bench.cache.tables(bench.step, bench.stream, read).unwrap();
    zeros.sort();
    (zeros, place)
}

/// What the tables of the step, or of a plan, wipe in memory that is full of a tenant's bytes.
fn wiped(bench: &Bench, message: Option<&[u8]>) -> Vec<ZeroBlock> {
    let all = || (0..2).flat_map(|group| (0..BLOCKS as i32).map(move |block| ZeroBlock { group, block }));
    for ZeroBlock { group, block } in all() {
        let slice = bench.block(group, block);
        bench.device.write(slice, &vec![0xaa; slice.bytes() as usize]).unwrap();
    }
    let count = |tables: &StepTables<'_>| {
        assert_eq!(tables.zeros(), []);
        Ok((0..2).map(|group| tables.group(group).unwrap().blocks_zeroed).sum::<u64>())
    };
    let count = match message {
        Some(message) => bench.cache.apply_plan(bench.stream, message, count),
        None => bench.cache.tables(bench.step, bench.stream, count),
    };
    let is_wiped = |zero: &ZeroBlock| {
        let slice = bench.block(zero.group, zero.block);
        bench.bytes(slice.address(), slice.bytes()).iter().all(|&byte| byte == 0)
    };
    let zeros: Vec<ZeroBlock> = all().filter(is_wiped).collect();
    assert_eq!(zeros.len() as u64, count.unwrap());
    zeros
}

fn plan(bench: &Bench, is_full: bool) -> Vec<u8> {
    let mut message = vec![0; bench.cache.export_plan(bench.step, is_full, &mut []).unwrap()];
    assert_eq!(bench.cache.export_plan(bench.step, is_full, &mut message).unwrap(), message.len());
    message
}

/// Ends one sequence if told to and starts another, if its blocks are there.
fn start(bench: &mut Bench, request: &Request<'_>, tokens: &[i32], ends: Option<u64>) -> Option<u64> {
    ends.into_iter().for_each(|sequence| bench.free(sequence));
    let hit = bench.look(request);
    let rest = &tokens[hit.tokens as usize..];
    let (lease, count) = (hit.lease, rest.len() as u64);
    let admitted =
        bench.apply(&Op::Admit { lease, tokens: count, lookahead: 0, row: -1, expected_tokens: 0 });
    if admitted.status != Status::Ok {
        bench.release(lease);
        return None;
    }
    bench.commit(admitted.sequence, rest);
    Some(admitted.sequence)
}

/// The same requests of several tenants to a cache with memory, to one without, and to one whose plans a worker
/// applies; answers how many blocks were to be wiped.
fn tell_the_same(scrub: Scrub, seed: u64) -> usize {
    let mut random = fastrand::Rng::with_seed(seed);
    let worker = Bench::new(&CacheConfig { worker: true, ..settings(scrub) });
    let mut benches = [Bench::new(&settings(scrub)), without_memory(scrub), without_memory(scrub)];
    let places = [1, 2].map(|at: usize| told(begun(&mut benches[at])).1);
    benches[0].begin();
    let (mut live, mut count) = (Vec::new(), 0);
    for _ in 0..120 {
        benches.iter_mut().for_each(Bench::begin);
        let mut of_step = Vec::new();
        for _ in 0..random.usize(1..4) {
            let tokens = prompt(random.i32(0..4), random.usize(0..16));
            let request = Request { namespace_id: random.u64(1..4), ..ask(&tokens) };
            let ends = if live.len() > 1 { Some(live.swap_remove(random.usize(0..2))) } else { None };
            let started = benches.each_mut().map(|bench| start(bench, &request, &tokens, ends));
            assert!(started.iter().all(|&sequence| sequence == started[0]));
            live.extend(started[0]);
            // Some steps have several tables.
            if random.bool() {
                let expected = wiped(&benches[0], None);
                for (bench, place) in benches[1..].iter().zip(places) {
                    assert_eq!(told(bench), (expected.clone(), place), "the list lies where it lay");
                }
                of_step.extend(expected);
            }
        }
        let expected = wiped(&benches[0], None);
        assert_eq!(told(&benches[1]).0, expected);
        of_step.extend(expected);
        of_step.sort();
        // The plan tells all of the step, whatever tables told, and tables tell nothing after it.
        assert_eq!(wiped(&worker, Some(&plan(&benches[2], false))), of_step);
        assert_eq!(told(&benches[2]).0, []);
        count += of_step.len();
        benches.iter().for_each(|bench| {
            bench.done();
            bench.cache.validate().unwrap();
        });
        worker.cache.step_done(benches[2].step, None).unwrap();
    }
    count
}

fn begun(bench: &mut Bench) -> &Bench {
    bench.begin();
    bench
}

#[test]
fn what_is_told_is_what_a_cache_with_memory_wipes_and_what_the_plan_tells() {
    for seed in 0..4 {
        assert!(tell_the_same(Scrub::TenantChange, seed) > 100);
        assert!(tell_the_same(Scrub::Always, seed) > 200);
        assert_eq!(tell_the_same(Scrub::None, seed), 0);
    }
}

/// A step in which the tenant gets all blocks of the first group.
fn take_all(bench: &mut Bench, namespace_id: u64) -> u64 {
    let lease = bench.look(&Request { namespace_id, ..ask(&[]) }).lease;
    bench.begin();
    bench.admit(lease, 4 * BLOCKS).sequence
}

fn all_in_one() -> CacheConfig {
    CacheConfig { scrub: Scrub::TenantChange, ..config(vec![group(4)], BLOCKS) }
}

fn one_group() -> Bench {
    Bench::new(&CacheConfig { metadata_only: true, ..all_in_one() })
}

fn count_told(bench: &Bench) -> usize {
    bench.cache.tables(bench.step, bench.stream, |tables| Ok(tables.zeros().len())).unwrap()
}

#[test]
fn what_no_tables_told_is_told_in_a_later_step() {
    let mut bench = one_group();
    let mut last = 0;
    for tenant in 1..4 {
        if last > 0 {
            bench.free(last);
            bench.done();
        }
        last = take_all(&mut bench, tenant);
    }
    bench.done();
    bench.begin();
    assert_eq!(refused(bench.cache.tables(bench.step + 1, bench.stream, |_| Ok(()))), Status::WrongState);
    assert_eq!((count_told(&bench), count_told(&bench)), (BLOCKS as usize, 0));
    bench.done();
    bench.begin();
    assert_eq!(count_told(&bench), 0);
    // Nor is it told to workers that begin now.
    assert_eq!(
        count_wiped(&Bench::new(&CacheConfig { worker: true, ..all_in_one() }), &plan(&bench, true)),
        0
    );
    bench.done();
}

fn count_wiped(worker: &Bench, message: &[u8]) -> u64 {
    let count = |tables: &StepTables<'_>| Ok(tables.group(0)?.blocks_zeroed);
    worker.cache.apply_plan(worker.stream, message, count).unwrap()
}

#[test]
fn a_block_that_waits_for_its_plan_is_told_again_for_the_next_tenant() {
    let mut bench = one_group();
    let worker = Bench::new(&CacheConfig { worker: true, ..all_in_one() });
    let mut last = take_all(&mut bench, 1);
    assert_eq!(count_told(&bench), 0);
    let first = plan(&bench, true);
    for tenant in 2..5 {
        bench.free(last);
        bench.done();
        last = take_all(&mut bench, tenant);
        assert_eq!((count_told(&bench), count_told(&bench)), (BLOCKS as usize, 0), "tenant {tenant}");
        bench.cache.validate().unwrap();
    }
    assert_eq!(count_wiped(&worker, &first), 0);
    worker.cache.step_done(1, None).unwrap();
    bench.done();
    bench.begin();
    assert_eq!(count_wiped(&worker, &plan(&bench, false)), BLOCKS);
    assert_eq!(count_told(&bench), 0);
    bench.done();
}
