//! A full table of namespaces: which one makes room for another, which never does, and what that costs.

use kavern::cache::{CacheConfig, Op, Request, Stretch, Target};
use kavern::error::Status;
use kavern::sys::clock::now_ns;
use kavern::types::Id;

use super::bench::{Bench, ask, config, group, lookup, prompt, refused};

fn with_room_for(max_namespaces: u32, blocks: u64) -> Bench {
    let settings = config(vec![group(4)], blocks);
    let long = CacheConfig { max_sequence_tokens: 2048, max_batch_tokens: 2048, ..settings };
    Bench::new(&CacheConfig { max_namespaces, max_sequences: 32, ..long })
}

fn of(namespace_id: u64, adapter_id: u64, tokens: &[i32]) -> Request<'_> {
    Request { namespace_id, adapter_id, ..ask(tokens) }
}

#[test]
fn the_namespace_that_goes_is_the_least_recently_used_whatever_it_published_first() {
    let mut bench = with_room_for(2, 64);
    let (old, busy, other) = (prompt(1, 8), prompt(2, 8), prompt(3, 8));
    bench.run(&of(1, 0, &old));
    bench.run(&of(2, 0, &other));
    (0..3).for_each(|_| _ = bench.run(&of(1, 0, &busy)));
    assert_eq!(bench.run(&of(3, 0, &other)), 0);
    assert_eq!(bench.hits(&of(1, 0, &busy)), 8, "it was used just now");
    assert_eq!(bench.hits(&of(1, 0, &old)), 8);
    assert_eq!(bench.statistics().evicted_blocks, 2);
}

#[test]
fn adapters_of_one_id_are_judged_one_by_one() {
    let mut bench = with_room_for(2, 512);
    let (long, short) = (prompt(1, 600), prompt(2, 8));
    // Together they have more blocks than a namespace that goes may have; the one that was used last began first.
    bench.run(&of(1, 2, &short));
    bench.run(&of(1, 1, &long));
    bench.run(&of(1, 2, &long[..480]));
    assert_eq!(bench.run(&of(1, 3, &short)), 0);
    assert_eq!(bench.statistics().evicted_blocks, 150, "all of adapter 1 and nothing else");
    assert_eq!([bench.hits(&of(1, 2, &long)), bench.hits(&of(1, 2, &short))], [480, 8]);
}

#[test]
fn an_adapter_that_runs_keeps_no_other_of_its_id() {
    let mut bench = with_room_for(2, 64);
    let tokens = prompt(1, 8);
    bench.begin();
    let (_, sequence) = bench.start(&of(1, 1, &tokens), &tokens);
    bench.done();
    bench.run(&of(1, 2, &tokens));
    assert_eq!(bench.run(&of(1, 3, &tokens)), 0);
    assert_eq!(bench.hits(&of(1, 1, &tokens)), 8);
    bench.begin();
    bench.free(sequence);
    bench.done();
}

#[test]
fn large_and_pinned_namespaces_stand_in_nobodys_way_and_lose_nothing_while_a_small_one_can_go() {
    let kept = 40;
    let mut bench = with_room_for(kept + 2, 2048);
    let (large, small) = (prompt(1, 257 * 4), prompt(2, 8));
    bench.run(&of(1, 0, &large));
    for id in 2..=u64::from(kept) {
        bench.begin();
        let (_, sequence) = bench.start(&of(id, 0, &small), &small);
        let stretch = Stretch { target: Target::Id(Id(sequence)), offset: 0, tokens: 8 };
        bench.good(&Op::Pin { stretch });
        bench.free(sequence);
        bench.done();
    }
    bench.run(&of(100, 0, &small));
    bench.run(&of(101, 0, &small));
    assert_eq!(bench.run(&of(102, 0, &small)), 0, "one lookup sees past all that stay");
    assert_eq!(bench.hits(&of(101, 0, &small)), 8);
    assert_eq!([bench.hits(&of(1, 0, &large)), bench.hits(&of(2, 0, &small))], [257 * 4, 8]);
    let held = [101, 102].map(|id| bench.look(&of(id, 0, &small)).lease);
    let before = bench.statistics();
    // No small one is left that could go.
    let last = lookup(&bench.cache, &of(103, 0, &small)).unwrap().lease;
    assert_eq!(bench.statistics().evicted_blocks, before.evicted_blocks + 257);
    assert_eq!(bench.hits(&of(2, 0, &small)), 8);
    assert_eq!(refused(lookup(&bench.cache, &of(104, 0, &small))), Status::LimitReached);
    assert_eq!(bench.statistics().evicted_blocks, before.evicted_blocks + 257);
    held.into_iter().chain([last]).for_each(|lease| bench.release(lease));
}

#[test]
fn idle_namespaces_that_are_all_large_shut_nobody_out() {
    let mut bench = with_room_for(4, 8192);
    let long: Vec<Vec<i32>> = (0..6).map(|seed| prompt(seed, 2000)).collect();
    // One with 3,000 blocks, one of which a block is pinned, and two with 300.
    long.iter().for_each(|tokens| _ = bench.run(&of(1, 0, tokens)));
    bench.begin();
    let (_, sequence) = bench.start(&of(2, 0, &long[0]), &long[0]);
    let stretch = Stretch { target: Target::Id(Id(sequence)), offset: 0, tokens: 4 };
    bench.good(&Op::Pin { stretch });
    bench.free(sequence);
    bench.done();
    [3, 4].iter().for_each(|&id| _ = bench.run(&of(id, 0, &long[0][..1200])));
    // The one that was used least recently goes, as much of it as one lookup may evict, and then the rest.
    let new = prompt(9, 8);
    assert_eq!(refused(lookup(&bench.cache, &of(5, 0, &new))), Status::LimitReached);
    bench.cache.validate().unwrap();
    let evicted = bench.statistics().evicted_blocks;
    assert!((1024..3000).contains(&evicted), "{evicted}");
    assert_eq!([3, 4].map(|id| bench.cache.probe(&of(id, 0, &long[0])).unwrap()), [1200; 2]);
    assert_eq!(bench.run(&of(5, 0, &new)), 0);
    assert_eq!(bench.statistics().evicted_blocks, 3000);
    // As many tenants as there may be come after each other, and each is served.
    for id in 6..40 {
        assert_eq!(bench.run(&of(id, 0, &long[1][..1200])), 0);
        bench.cache.validate().unwrap();
    }
    assert_eq!(bench.hits(&of(2, 0, &long[0])), 2000, "a pinned one stays whole");
}

#[test]
fn a_large_namespace_that_shrinks_is_the_oldest_again() {
    let mut bench = with_room_for(3, 2048);
    let (large, small) = (prompt(1, 257 * 4), prompt(2, 8));
    bench.run(&of(1, 0, &large));
    [2, 3].iter().for_each(|&id| _ = bench.run(&of(id, 0, &small)));
    bench.run(&of(4, 0, &small));
    let probe = |bench: &Bench, id, tokens: &[i32]| bench.cache.probe(&of(id, 0, tokens)).unwrap();
    assert_eq!(
        [probe(&bench, 1, &large), probe(&bench, 2, &small)],
        [257 * 4, 0],
        "the large one was set aside"
    );
    assert_eq!(bench.cache.evict(0, 100).unwrap(), 100);
    bench.cache.validate().unwrap();
    bench.run(&of(5, 0, &small));
    assert_eq!([1, 3, 4, 5].map(|id| probe(&bench, id, &small)), [0, 8, 8, 8]);
    assert_eq!(bench.cache.namespace_statistics(1).findable_blocks, 0);
}

#[test]
fn namespaces_that_wait_for_a_step_stand_in_nobodys_way() {
    let waiting = 20;
    let mut bench = with_room_for(waiting + 1, 64);
    let tokens = prompt(1, 8);
    bench.run(&of(1, 0, &tokens));
    bench.begin();
    for id in 100..100 + u64::from(waiting) {
        let (_, sequence) = bench.start(&of(id, 0, &tokens), &tokens);
        bench.free(sequence);
    }
    // Idle for a shorter time than the others, and the only one that may go.
    let hit = lookup(&bench.cache, &of(1, 0, &tokens)).unwrap();
    assert_eq!(hit.tokens, 8);
    bench.release(hit.lease);
    let hit = lookup(&bench.cache, &of(7, 0, &tokens)).unwrap();
    bench.release(hit.lease);
    bench.done();
    for id in 100..100 + u64::from(waiting) {
        assert_eq!(bench.hits(&of(id, 0, &tokens)), 8, "namespace {id}");
    }
}

#[test]
fn a_lookup_notices_that_the_last_step_of_a_namespace_is_over() {
    let mut bench = with_room_for(1, 64);
    let tokens = prompt(1, 8);
    let gate = bench.gate();
    bench.begin();
    let (_, sequence) = bench.start(&of(1, 0, &tokens), &tokens);
    bench.free(sequence);
    bench.cache.step_done(bench.step, Some(bench.stream)).unwrap();
    assert_eq!(refused(lookup(&bench.cache, &of(2, 0, &tokens))), Status::LimitReached, "it still runs");
    drop(gate);
    bench.device.stream_synchronize(bench.stream).unwrap();
    let hit = lookup(&bench.cache, &of(2, 0, &tokens)).unwrap();
    assert_eq!((hit.tokens, bench.statistics().evicted_blocks), (0, 2));
    bench.release(hit.lease);
}

#[test]
fn a_lookup_that_lacks_a_lease_as_well_evicts_nothing() {
    let settings = config(vec![group(4)], 64);
    let mut bench = Bench::new(&CacheConfig { max_namespaces: 2, max_leases: 1, ..settings });
    let tokens = prompt(1, 8);
    bench.run(&of(1, 0, &tokens));
    bench.run(&of(2, 0, &tokens));
    let lease = bench.look(&of(2, 0, &tokens)).lease;
    assert_eq!(refused(lookup(&bench.cache, &of(3, 0, &tokens))), Status::LimitReached);
    assert_eq!(bench.statistics().evicted_blocks, 0);
    bench.release(lease);
}

/// What a new namespace costs in a full table of so many, at best, in nanoseconds.
fn cost(namespaces: u32) -> u64 {
    let blocks = u64::from(namespaces) + 8;
    let settings = CacheConfig { metadata_only: true, ..config(vec![group(4)], blocks) };
    let mut bench = Bench::new(&CacheConfig { max_namespaces: namespaces, ..settings });
    let tokens = prompt(1, 4);
    (0..u64::from(namespaces)).for_each(|id| _ = bench.run(&of(id, 0, &tokens)));
    let mut one = |id: u64| {
        let began = now_ns();
        let hit = lookup(&bench.cache, &of(id, 0, &tokens)).unwrap();
        let took = now_ns() - began;
        bench.release(hit.lease);
        // The place is taken again.
        bench.run(&of(id, 0, &tokens));
        took
    };
    let first = u64::from(namespaces);
    let best = (first..first + 64).map(&mut one).min().unwrap();
    assert_eq!(bench.statistics().evicted_blocks, 64, "each lookup found the table full");
    best
}

#[test]
fn a_place_in_a_full_table_costs_the_same_however_large_it_is() {
    let [small, large] = [64, 65_536].map(cost);
    // A walk over the table takes a hundred times as long there; memory that is further away, a few times.
    assert!(large < 20 * small.max(2_000), "{small} ns of 64, {large} ns of 65,536");
}

/// What a refused lookup costs, at best, in nanoseconds, in a full table of namespaces with so many blocks each, of
/// which the last one is pinned.
fn cost_of_refusal(blocks: usize) -> u64 {
    let namespaces = 400;
    let settings = CacheConfig { metadata_only: true, ..config(vec![group(4)], 100_000) };
    let long = CacheConfig { max_sequence_tokens: 1024, max_batch_tokens: 1024, ..settings };
    let mut bench = Bench::new(&CacheConfig { max_namespaces: namespaces, ..long });
    let tokens = prompt(1, 4 * blocks);
    for id in 0..u64::from(namespaces) {
        bench.begin();
        let (_, sequence) = bench.start(&of(id, 0, &tokens), &tokens);
        let last = Stretch { target: Target::Id(Id(sequence)), offset: 4 * (blocks as u64 - 1), tokens: 4 };
        bench.good(&Op::Pin { stretch: last });
        bench.free(sequence);
        bench.done();
    }
    let one = |_| {
        let began = now_ns();
        assert_eq!(refused(lookup(&bench.cache, &of(1000, 0, &tokens[..4]))), Status::LimitReached);
        now_ns() - began
    };
    (0..64).map(one).min().unwrap()
}

#[test]
fn pins_at_the_end_of_long_namespaces_cost_a_refused_lookup_nothing() {
    let [short, long] = [2, 250].map(cost_of_refusal);
    // A walk to the pinned block takes more than a hundred times as many steps in a long one.
    assert!(long < 5 * short.max(2_000), "{short} ns with 2 blocks each, {long} ns with 250");
}

/// Pins by operations and names come and go, on the same blocks too; only the last one that goes lets the namespace go.
#[test]
fn a_namespace_makes_room_once_its_last_pin_is_gone() {
    let mut bench = with_room_for(1, 64);
    let tokens = prompt(1, 24);
    bench.begin();
    let (_, sequence) = bench.start(&of(1, 0, &tokens), &tokens);
    let of_all = |target| Stretch { target, offset: 0, tokens: 0 };
    bench.good(&Op::Pin { stretch: of_all(Target::Id(Id(sequence))) });
    bench.free(sequence);
    bench.done();
    let hit = bench.look(&of(1, 0, &tokens[..16]));
    ["one", "other"].iter().for_each(|name| _ = bench.cache.pin_prefix(name, hit.lease).unwrap());
    bench.release(hit.lease);
    let is_refused = |bench: &Bench| {
        bench.cache.validate().unwrap();
        refused(lookup(&bench.cache, &of(2, 0, &tokens))) == Status::LimitReached
    };
    assert!(is_refused(&bench), "pinned by an operation, and under two names");
    bench.cache.unpin_prefix("one").unwrap();
    assert!(is_refused(&bench), "pinned by an operation, and under a name");
    let hit = bench.look(&of(1, 0, &tokens));
    bench.begin();
    bench.good(&Op::Unpin { stretch: of_all(Target::Id(hit.lease)) });
    bench.release(hit.lease);
    bench.done();
    assert!(is_refused(&bench), "pinned under a name");
    assert_eq!(bench.hits(&of(1, 0, &tokens)), 24);
    bench.cache.unpin_prefix("other").unwrap();
    let hit = lookup(&bench.cache, &of(2, 0, &tokens)).unwrap();
    assert_eq!((hit.tokens, bench.statistics().evicted_blocks), (0, 6));
    bench.release(hit.lease);
}

#[test]
fn a_namespace_that_was_pinned_is_as_old_as_before_once_it_is_not() {
    let mut bench = with_room_for(3, 64);
    let tokens = prompt(1, 8);
    bench.run(&of(1, 0, &tokens));
    let hit = bench.look(&of(1, 0, &tokens));
    bench.cache.pin_prefix("pinned", hit.lease).unwrap();
    bench.release(hit.lease);
    (2..=3).for_each(|id| _ = bench.run(&of(id, 0, &tokens)));
    let are_there =
        |bench: &Bench, ids: [u64; 4]| ids.map(|id| bench.cache.namespace_statistics(id).findable_blocks > 0);
    assert_eq!(bench.run(&of(4, 0, &tokens)), 0);
    assert_eq!(are_there(&bench, [1, 2, 3, 4]), [true, false, true, true]);
    bench.cache.unpin_prefix("pinned").unwrap();
    assert_eq!(bench.run(&of(5, 0, &tokens)), 0);
    assert_eq!(are_there(&bench, [1, 3, 4, 5]), [false, true, true, true]);
    bench.cache.validate().unwrap();
}
