//! Pins, promises and runs of blocks in a pool whose size changes.

use kavern::cache::{CacheConfig, GroupConfig, Op, Reach, Stretch, Target};
use kavern::error::Status;
use kavern::types::Id;

use super::bench::{Bench, ask, config, group, prompt};

fn all_of(id: u64) -> Stretch {
    Stretch { target: Target::Id(Id(id)), offset: 0, tokens: 0 }
}

/// Three prompts of two blocks each, cached, and two blocks free; the last prompt, in blocks 4 and 5, is pinned.
fn with_pins(exact_order: bool) -> Bench {
    let mut bench = Bench::new(&CacheConfig { exact_order, ..config(vec![group(4)], 8) });
    for seed in [1, 2, 3] {
        bench.run(&ask(&prompt(seed, 8)));
    }
    let hit = bench.look(&ask(&prompt(3, 8)));
    assert_eq!(hit.blocks, [4, 5]);
    bench.begin();
    bench.good(&Op::Pin { stretch: all_of(hit.lease.0) });
    bench.done();
    bench.release(hit.lease);
    bench
}

#[test]
fn a_pinned_block_above_is_found_until_its_last_pin_goes() {
    for exact_order in [false, true] {
        let mut bench = with_pins(exact_order);
        let resized = bench.cache.resize(0, 2).unwrap();
        assert_eq!((resized.held_blocks, resized.is_done), (2, false));
        bench.cache.validate().unwrap();
        for (seed, tokens) in [(1, 8), (2, 0), (3, 8)] {
            assert_eq!(bench.hits(&ask(&prompt(seed, 8))), tokens, "prompt {seed}");
        }
        assert_eq!(bench.cache.evict(0, 100).unwrap(), 2, "what is pinned makes no room");
        assert_eq!((bench.statistics().free_blocks, bench.statistics().pinned_blocks), (2, 2));
        // Half of what is left may be pinned, and that is spent.
        let first = bench.run(&ask(&prompt(1, 4)));
        assert_eq!(first, 0);
        let hit = bench.look(&ask(&prompt(1, 4)));
        bench.begin();
        let refused = bench.apply(&Op::Pin { stretch: all_of(hit.lease.0) });
        assert_eq!(refused.status, Status::LimitReached);
        bench.release(hit.lease);
        // Without its pins it is out of use as soon as nobody holds it.
        let hit = bench.look(&ask(&prompt(3, 8)));
        bench.good(&Op::Unpin { stretch: all_of(hit.lease.0) });
        assert_eq!(bench.hits(&ask(&prompt(3, 8))), 8, "somebody holds it");
        assert_eq!(bench.cache.resize(0, 2).unwrap().held_blocks, 2);
        bench.release(hit.lease);
        assert_eq!(bench.hits(&ask(&prompt(3, 8))), 0);
        bench.done();
        assert!(bench.cache.resize(0, 2).unwrap().is_done);
        bench.cache.validate().unwrap();
        // All that comes back can be had, once each.
        assert!(bench.cache.resize(0, 8).unwrap().is_done);
        bench.cache.validate().unwrap();
        assert_eq!(bench.statistics().capacity_blocks, 8);
        bench.begin();
        let lease = bench.look(&ask(&prompt(9, 32))).lease;
        assert_eq!(bench.admit(lease, 32).blocks_added, 8);
        bench.done();
    }
}

#[test]
fn a_pin_outlasts_a_pool_that_shrinks_and_grows_again() {
    for exact_order in [false, true] {
        let mut bench = with_pins(exact_order);
        let hit = bench.look(&ask(&prompt(3, 8)));
        bench.cache.pin_prefix("kept", hit.lease).unwrap();
        bench.release(hit.lease);
        assert!(!bench.cache.resize(0, 1).unwrap().is_done);
        assert!(bench.cache.resize(0, 8).unwrap().is_done);
        bench.cache.validate().unwrap();
        bench.begin();
        let hit = bench.look(&ask(&prompt(3, 8)));
        assert_eq!(hit.tokens, 8);
        bench.good(&Op::Unpin { stretch: all_of(hit.lease.0) });
        bench.release(hit.lease);
        bench.done();
        assert_eq!(bench.statistics().pinned_blocks, 2, "the name's pins");
        bench.cache.unpin_prefix("kept").unwrap();
        assert_eq!(bench.hits(&ask(&prompt(3, 8))), 8, "it is below the limit again");
        bench.cache.evict(0, 100).unwrap();
        assert_eq!(bench.statistics().free_blocks, 8);
    }
}

#[test]
fn what_is_pinned_is_not_promised() {
    for exact_order in [false, true] {
        let mut bench = with_pins(exact_order);
        bench.begin();
        let lease = bench.look(&ask(&prompt(7, 4))).lease;
        let expect = |expected_tokens| Op::Admit { lease, tokens: 4, lookahead: 0, row: -1, expected_tokens };
        let refused = bench.apply(&expect(28));
        assert_eq!((refused.status, refused.blocks_missing), (Status::OutOfBlocks, 1));
        let sequence = bench.good(&expect(24)).sequence;
        assert_eq!(bench.statistics().promised_blocks, 5);
        // The pinned hit takes nothing from the promise, an evictable one would.
        let pinned = bench.look(&ask(&prompt(3, 8)));
        let evictable = bench.look(&ask(&prompt(2, 8)));
        assert_eq!((pinned.tokens, evictable.tokens), (8, 0));
        // Nor does a request that would be given more than it asked for, for the sake of runs.
        let other = bench.look(&ask(&prompt(8, 4))).lease;
        let refused =
            bench.apply(&Op::Admit { lease: other, tokens: 4, lookahead: 0, row: -1, expected_tokens: 0 });
        assert_eq!((refused.status, refused.blocks_missing), (Status::OutOfBlocks, 1));
        bench.cache.validate().unwrap();
        assert_eq!(bench.append(sequence, 20).blocks_added, 5);
        bench.release(pinned.lease);
        bench.done();
    }
}

#[test]
fn a_window_counts_on_no_block_that_is_pinned_or_goes_out_of_use() {
    let window = GroupConfig { reach: Reach::Sliding { window_tokens: 4 }, ..group(4) };
    for (is_pinned, is_smaller) in [(false, false), (true, false), (false, true)] {
        let mut bench = Bench::new(&config(vec![window.clone()], 4));
        // The other sequence has the low blocks, so that the window's are above a smaller size.
        let tokens = prompt(1, 8);
        bench.begin();
        bench.start(&ask(&prompt(2, 8)), &prompt(2, 8));
        let sequence = bench.start(&ask(&tokens), &tokens).1;
        if is_pinned {
            bench.good(&Op::Pin { stretch: all_of(sequence) });
        }
        bench.done();
        if is_smaller {
            assert_eq!(bench.cache.resize(0, 2).unwrap().held_blocks, 2);
        }
        bench.begin();
        let target = Target::Id(Id(sequence));
        let result = bench.apply(&Op::Append { target, tokens: 4, lookahead: 0 });
        let expected = if is_pinned || is_smaller { Status::OutOfBlocks } else { Status::Ok };
        assert_eq!(result.status, expected, "pinned {is_pinned}, smaller {is_smaller}");
        bench.cache.validate().unwrap();
        bench.done();
    }
}
