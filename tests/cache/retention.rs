//! Priorities, expiry, pins and named prefixes, as users of the cache see them; runs of block ids.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kavern::cache::{
    CacheConfig, CacheEventKind, Change, KvCache, Op, RemoveReason, ResetScope, Stretch, Target,
};
use kavern::error::Status;
use kavern::types::Id;

use super::bench::{Bench, Stop, ask, config, group, opaque, prompt, refused};

fn all_of(id: u64) -> Stretch {
    Stretch { target: Target::Id(Id(id)), offset: 0, tokens: 0 }
}

/// A prompt of two blocks that comes and goes, with one operation on it before it ends.
fn with(bench: &mut Bench, seed: i32, op: impl Fn(u64) -> Op<'static>) {
    let tokens = prompt(seed, 8);
    bench.begin();
    let (_, sequence) = bench.start(&ask(&tokens), &tokens);
    bench.good(&op(sequence));
    bench.free(sequence);
    bench.done();
}

fn retained(bench: &mut Bench, seed: i32, priority: u8, ttl_ms: u64) {
    with(bench, seed, |id| Op::Retain { stretch: all_of(id), priority, ttl_ms });
}

fn order_of_eviction(bench: &mut Bench, seeds: &[i32]) -> Vec<i32> {
    let mut order = Vec::new();
    while bench.cache.evict(0, 2).unwrap() > 0 {
        for &seed in seeds {
            if bench.hits(&ask(&prompt(seed, 8))) == 0 && !order.contains(&seed) {
                order.push(seed);
            }
        }
    }
    order
}

#[test]
fn low_priorities_go_first_and_high_ones_last_under_every_policy() {
    for policy in kavern::cache::policy_names() {
        let mut bench = Bench::new(&CacheConfig { policy: policy.to_owned(), ..config(vec![group(4)], 32) });
        for (seed, priority) in [(1, 80), (2, 50), (3, 20), (4, 0), (5, 51)] {
            retained(&mut bench, seed, priority, 0);
        }
        // A hit moves nothing between priorities.
        assert_eq!(bench.run(&ask(&prompt(4, 8))), 8);
        assert_eq!(order_of_eviction(&mut bench, &[1, 2, 3, 4, 5]), [4, 3, 2, 5, 1], "{policy}");
    }
}

#[test]
fn a_priority_expires_and_its_eviction_says_so() {
    let mut bench = Bench::new(&CacheConfig { event_capacity: 64, ..config(vec![group(4)], 4) });
    // Steps of the bench take the machine's time; this one is far ahead, so that only it decides.
    let later = 1 << 36;
    drop(bench.cache.step_at(1, later).unwrap());
    bench.step = 1;
    bench.done();
    retained(&mut bench, 1, 90, 1000);
    with(&mut bench, 2, |id| Op::Retain { stretch: all_of(id), priority: 50, ttl_ms: 0 });
    assert_eq!(bench.cache.evict(0, 2).unwrap(), 2);
    assert_eq!(bench.hits(&ask(&prompt(1, 8))), 8, "the ordinary one went");
    bench.step += 1;
    drop(bench.cache.step_at(bench.step, later + 1100).unwrap());
    bench.done();
    bench.run(&ask(&prompt(3, 16)));
    let mut reasons = Vec::new();
    bench.cache.read_events(0, 64, |_, event| {
        if event.kind == CacheEventKind::Removed {
            reasons.push(event.reason);
        }
    });
    use RemoveReason::{Evicted, Expired, Requested};
    assert_eq!(reasons[..2], [Requested; 2]);
    assert!(reasons[2..].iter().all(|&reason| reason == Expired || reason == Evicted));
    assert!(reasons[2..].contains(&Expired), "{reasons:?}");
}

#[test]
fn what_is_pinned_stays_until_it_is_unpinned_and_half_of_the_pool_at_most() {
    let mut bench = Bench::simple(4, 8);
    with(&mut bench, 1, |id| Op::Pin { stretch: all_of(id) });
    with(&mut bench, 2, |id| Op::Pin { stretch: all_of(id) });
    bench.run(&ask(&prompt(3, 8)));
    assert_eq!(bench.statistics().pinned_blocks, 4);
    let (_, third) = {
        bench.begin();
        bench.start(&ask(&prompt(3, 8)), &prompt(3, 8))
    };
    let before = bench.statistics();
    assert_eq!(bench.apply(&Op::Pin { stretch: all_of(third) }).status, Status::LimitReached);
    assert_eq!(bench.statistics().pinned_blocks, before.pinned_blocks);
    bench.free(third);
    bench.done();
    assert_eq!(bench.cache.evict(0, 100).unwrap(), 2, "only what is not pinned");
    // Pinned blocks are not available: a prompt that would need them is told how many are missing.
    bench.begin();
    let hit = bench.look(&ask(&prompt(4, 20)));
    let refused =
        bench.apply(&Op::Admit { lease: hit.lease, tokens: 20, lookahead: 0, row: -1, expected_tokens: 0 });
    assert_eq!((refused.status, refused.blocks_missing), (Status::OutOfBlocks, 1));
    bench.release(hit.lease);
    let lease = bench.look(&ask(&prompt(1, 8))).lease;
    bench.good(&Op::Unpin { stretch: all_of(lease.0) });
    bench.release(lease);
    bench.done();
    assert_eq!(bench.cache.evict(0, 100).unwrap(), 2);
    assert_eq!((bench.hits(&ask(&prompt(1, 8))), bench.hits(&ask(&prompt(2, 8)))), (0, 8));
}

#[test]
fn a_stretch_touches_its_blocks_only_and_a_wrong_one_is_refused() {
    let mut bench = Bench::simple(4, 16);
    let tokens = prompt(1, 16);
    bench.begin();
    let (_, sequence) = bench.start(&ask(&tokens), &tokens);
    let stretch = |offset, tokens| Stretch { target: Target::Id(Id(sequence)), offset, tokens };
    bench.good(&Op::Pin { stretch: stretch(5, 1) });
    assert_eq!(bench.statistics().pinned_blocks, 1);
    bench.good(&Op::Pin { stretch: stretch(3, 2) });
    assert_eq!(bench.statistics().pinned_blocks, 2);
    for wrong in [stretch(0, 17), stretch(17, 0), stretch(u64::MAX, 2)] {
        assert_eq!(bench.apply(&Op::Pin { stretch: wrong }).status, Status::InvalidArgument);
    }
    let too_high = Op::Retain { stretch: stretch(0, 0), priority: 101, ttl_ms: 0 };
    assert_eq!(bench.apply(&too_high).status, Status::InvalidArgument);
    assert_eq!(bench.apply(&Op::Pin { stretch: all_of(7) }).status, Status::StaleId);
    bench.free(sequence);
    bench.done();
    bench.cache.reset(ResetScope::All).unwrap();
    assert_eq!(bench.statistics().pinned_blocks, 0, "a reset forgets pins");
}

#[test]
fn a_named_prefix_outlives_its_sequence_until_it_is_unpinned_or_reset() {
    let mut bench = Bench::simple(4, 16);
    for seed in [1, 2] {
        bench.run(&ask(&prompt(seed, 8)));
    }
    let hit = bench.look(&ask(&prompt(1, 8)));
    let info = bench.cache.pin_prefix("system", hit.lease).unwrap();
    assert_eq!((info.namespace_id, info.tokens, info.blocks), (1, 8, 2));
    assert_eq!(refused(bench.cache.pin_prefix("system", hit.lease)), Status::InUse);
    // An UNPIN takes no pin of a name's.
    bench.begin();
    bench.good(&Op::Unpin { stretch: all_of(hit.lease.0) });
    bench.done();
    bench.release(hit.lease);
    assert_eq!(refused(bench.cache.pin_prefix("late", hit.lease)), Status::StaleId);
    assert_eq!(bench.cache.evict(0, 100).unwrap(), 2);
    assert_eq!(bench.hits(&ask(&prompt(1, 8))), 8);
    let mut names = Vec::new();
    assert_eq!(bench.cache.prefixes(|_, info, name| names.push((name.to_owned(), *info))), 1);
    assert_eq!(names, [("system".to_owned(), info)]);
    bench.cache.unpin_prefix("system").unwrap();
    assert_eq!(refused(bench.cache.unpin_prefix("system")), Status::NotFound);
    assert_eq!(bench.cache.evict(0, 100).unwrap(), 2);

    bench.run(&ask(&prompt(3, 8)));
    let hit = bench.look(&ask(&prompt(3, 8)));
    bench.cache.pin_prefix("of namespace 1", hit.lease).unwrap();
    bench.release(hit.lease);
    bench.cache.reset(ResetScope::Namespace(2)).unwrap();
    assert_eq!((bench.cache.prefixes(|_, _, _| {}), bench.hits(&ask(&prompt(3, 8)))), (1, 8));
    bench.cache.reset(ResetScope::Namespace(1)).unwrap();
    assert_eq!((bench.cache.prefixes(|_, _, _| {}), bench.statistics().pinned_blocks), (0, 0));
}

/// Blocks that come and go before runs are looked at, and while they are.
const CHURN: usize = 1_000_000;

/// Mean length of runs of ascending ids in what sequences of many blocks get, in a pool that is held to nine tenths and
/// whose rest is cached, after a million blocks came and went.
fn mean_run(exact_order: bool, policy: &str) -> f64 {
    let mut random = fastrand::Rng::with_seed(3);
    let settings = CacheConfig {
        exact_order,
        policy: policy.to_owned(),
        metadata_only: true,
        max_sequences: 64,
        max_sequence_tokens: 256,
        ..config(vec![opaque(1, 16)], 4096)
    };
    let mut bench = Bench::new(&settings);
    let mut live: Vec<(u64, usize)> = Vec::new();
    let (mut held, mut churned, mut seed) = (0, 0, 0);
    let (mut blocks, mut runs) = (0, 0);
    while churned < CHURN + CHURN / 10 {
        seed += 1;
        let tokens = prompt(seed, random.usize(64..192));
        bench.begin();
        while held + tokens.len() > 4096 * 9 / 10 {
            let (sequence, count) = live.swap_remove(random.usize(0..live.len()));
            bench.free(sequence);
            (held, churned) = (held - count, churned + count);
        }
        let (_, sequence) = bench.start(&ask(&tokens), &tokens);
        bench.done();
        live.push((sequence, tokens.len()));
        held += tokens.len();
        if churned >= CHURN {
            let hit = bench.look(&ask(&tokens));
            blocks += hit.blocks.len();
            runs += 1 + hit.blocks.windows(2).filter(|pair| pair[1] != pair[0] + 1).count();
            bench.release(hit.lease);
        }
    }
    blocks as f64 / runs as f64
}

#[test]
fn blocks_come_in_runs_unless_exact_order_is_asked_for() {
    for policy in ["adaptive", "lru", "runs-lru"] {
        let (in_runs, exact) = (mean_run(false, policy), mean_run(true, policy));
        let text = format!("{policy}: mean run {in_runs:.1}, in exact order {exact:.1}\n");
        let _ = std::io::stderr().lock().write_all(text.as_bytes());
        assert!(in_runs >= 8.0, "{policy}: mean run {in_runs}");
        assert!(exact < in_runs, "{policy}: exact order has runs of {exact}");
    }
}

#[test]
fn a_cache_takes_every_policy_and_one_that_names_none_takes_the_default() {
    assert!(kavern::cache::policy_names().any(|name| name == kavern::cache::DEFAULT_POLICY));
    for policy in kavern::cache::policy_names() {
        let settings = CacheConfig { policy: policy.to_owned(), ..config(vec![group(4), group(8)], 16) };
        let mut bench = Bench::new(&settings);
        for round in 0..40 {
            bench.run(&ask(&prompt(round % 7, 24)));
        }
        let _: &KvCache = &bench.cache;
        assert!(bench.statistics().evicted_blocks > 0, "{policy}");
    }
}

#[test]
fn what_a_name_pinned_is_not_taken_back_by_the_sequence_that_is_yet_to_write_it() {
    let mut bench = Bench::simple(4, 16);
    let tokens = prompt(1, 8);
    bench.begin();
    let (_, sequence) = bench.start(&ask(&tokens), &tokens);
    let hit = bench.look(&ask(&tokens));
    bench.cache.pin_prefix("x", hit.lease).unwrap();
    bench.release(hit.lease);
    let cancel = Op::Change { target: Target::Id(Id(sequence)), change: Change::Cancel };
    bench.bad(&cancel, Status::InUse);
    bench.free(sequence);
    bench.done();
    assert_eq!(bench.statistics().pinned_blocks, 2);
    bench.cache.unpin_prefix("x").unwrap();
    assert_eq!(bench.statistics().pinned_blocks, 0);
}

#[test]
fn names_pinned_during_a_reset_never_list_blocks_that_it_took() {
    let mut bench = Bench::simple(1, 4096);
    let tokens = prompt(1, 500);
    let stop = AtomicBool::new(false);
    for _ in 0..40 {
        bench.run(&ask(&tokens));
        stop.store(false, Ordering::Relaxed);
        let lease = bench.look(&ask(&tokens)).lease;
        let cache = Arc::clone(&bench.cache);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    // Refused where the name is there already.
                    _ = cache.pin_prefix("x", lease);
                }
            });
            let _stop = Stop(&stop);
            while cache.prefixes(|_, _, _| {}) == 0 {
                std::thread::yield_now();
            }
            bench.cache.reset(ResetScope::All).unwrap();
        });
        bench.cache.validate().unwrap();
        bench.release(lease);
        _ = bench.cache.unpin_prefix("x");
        assert_eq!(bench.statistics().pinned_blocks, 0);
        bench.cache.reset(ResetScope::All).unwrap();
    }
}
