//! Which part of a prompt is found again, and what the request's flags leave out of it.

use kavern::cache::{HashKind, Naming, Op, Request, ResetScope, Target};
use kavern::error::Status;
use kavern::types::Id;

use super::bench::{Bench, ask, commit, config, group, opaque, prompt};

#[test]
fn a_prompt_that_was_committed_and_freed_is_found_again_in_full_blocks() {
    for hash in [HashKind::Blake3, HashKind::Xxh3] {
        for policy in ["lru", "fifo"] {
            let mut bench = Bench::new(&kavern::cache::CacheConfig {
                hash,
                policy: policy.to_owned(),
                ..config(vec![group(4)], 32)
            });
            let tokens = prompt(1, 19);
            assert_eq!(bench.run(&ask(&tokens)), 0);
            assert_eq!(bench.run(&ask(&tokens)), 16);
            assert_eq!(bench.hits(&ask(&tokens[..16])), 16);
            assert_eq!(bench.hits(&ask(&tokens[..15])), 12);
            assert_eq!(bench.hits(&ask(&tokens[1..])), 0, "a prefix begins at the first token");
            let mut parted = tokens.clone();
            parted[9] += 1;
            assert_eq!(bench.hits(&ask(&parted)), 8);
            assert_eq!(bench.hits(&ask(&[&tokens[..], &prompt(2, 50)].concat())), 16);
        }
    }
}

#[test]
fn each_flag_of_a_request_leaves_out_what_it_says() {
    let mut bench = Bench::simple(4, 32);
    let tokens = prompt(1, 16);
    bench.run(&ask(&tokens));
    let base = ask(&tokens);
    assert_eq!(bench.hits(&Request { drop_last: true, ..base }), 12);
    assert_eq!(bench.hits(&Request { keep_one_token: true, ..base }), 12);
    assert_eq!(bench.hits(&Request { keep_one_token: true, drop_last: true, ..base }), 8);
    assert_eq!(bench.hits(&Request { no_read: true, ..base }), 0);
    assert_eq!(bench.hits(&Request { drop_last: true, ..ask(&tokens[..4]) }), 0);
    assert_eq!(bench.hits(&Request { drop_last: true, ..ask(&tokens[..3]) }), 0);
    let longer = [&tokens[..], &[5]].concat();
    assert_eq!(bench.hits(&Request { keep_one_token: true, ..ask(&longer) }), 16);
    assert_eq!(bench.hits(&Request { keep_one_token: true, ..ask(&[]) }), 0);
}

#[test]
fn what_must_not_be_stored_is_not_found_but_still_reads() {
    let mut bench = Bench::simple(4, 32);
    let tokens = prompt(1, 16);
    bench.run(&Request { no_store: true, ..ask(&tokens) });
    assert_eq!((bench.hits(&ask(&tokens)), bench.statistics().indexed_blocks), (0, 0));
    bench.run(&ask(&tokens[..8]));
    assert_eq!(bench.run(&Request { no_store: true, ..ask(&tokens) }), 8);
    assert_eq!(bench.hits(&ask(&tokens)), 8);
}

#[test]
fn a_request_without_reading_still_stores() {
    let mut bench = Bench::simple(4, 32);
    let tokens = prompt(1, 8);
    assert_eq!(bench.run(&Request { no_read: true, ..ask(&tokens) }), 0);
    assert_eq!(bench.run(&Request { no_read: true, ..ask(&tokens) }), 0);
    assert_eq!(bench.statistics().duplicate_blocks, 2);
    assert_eq!(bench.hits(&ask(&tokens)), 8);
}

#[test]
fn a_hit_of_two_groups_is_a_multiple_of_both_blocks() {
    for hash in [HashKind::Blake3, HashKind::Xxh3] {
        let groups = vec![group(16), opaque(48, 64)];
        let mut bench = Bench::new(&kavern::cache::CacheConfig { hash, ..config(groups, 64) });
        assert_eq!(bench.cache.hash_block_tokens(), 16);
        let tokens = prompt(1, 200);
        bench.run(&ask(&tokens));
        for (length, hit) in [(200, 192), (192, 192), (191, 144), (96, 96), (95, 48), (47, 0), (16, 0)] {
            let found = bench.look(&ask(&tokens[..length]));
            assert_eq!(found.tokens, hit, "{length} tokens");
            assert_eq!(found.blocks.len() as u64, hit / 16 + hit / 48);
            bench.release(found.lease);
        }
        assert_eq!(bench.hits(&Request { drop_last: true, ..ask(&tokens) }), 144);
        assert_eq!(bench.hits(&Request { keep_one_token: true, ..ask(&tokens[..192]) }), 144);
        // One group loses a block in the middle: the other's blocks behind it are of no use.
        while bench.cache.evict(1, 1).unwrap() > 0 {}
        assert_eq!(bench.hits(&ask(&tokens)), 0);
        assert_eq!(bench.run(&ask(&tokens)), 0);
        assert_eq!(bench.hits(&ask(&tokens)), 192);
    }
}

#[test]
fn blocks_that_are_no_multiples_of_each_other_meet_at_their_common_ones() {
    let mut bench = Bench::new(&config(vec![group(6), group(4)], 64));
    assert_eq!(bench.cache.hash_block_tokens(), 2);
    let tokens = prompt(1, 40);
    bench.run(&ask(&tokens));
    assert_eq!(bench.hits(&ask(&tokens)), 36);
    assert_eq!(bench.hits(&ask(&tokens[..35])), 24);
    assert_eq!(bench.hits(&ask(&tokens[..11])), 0);
    assert_eq!(bench.hits(&Request { drop_last: true, ..ask(&tokens) }), 24);
}

#[test]
fn prompts_shorter_than_a_block_and_empty_ones_live_and_are_not_found() {
    let mut bench = Bench::simple(16, 8);
    for length in [0, 1, 15] {
        let tokens = prompt(length, length as usize);
        assert_eq!(bench.run(&ask(&tokens)), 0);
        assert_eq!(bench.run(&ask(&tokens)), 0);
    }
    assert_eq!(bench.statistics().indexed_blocks, 0);
    assert_eq!(bench.statistics().free_blocks, 8);
}

#[test]
fn a_prompt_longer_than_any_sequence_is_refused_and_costs_nothing() {
    let mut bench =
        Bench::new(&kavern::cache::CacheConfig { max_sequence_tokens: 32, ..config(vec![group(4)], 64) });
    let tokens = prompt(1, 32);
    bench.run(&ask(&tokens));
    let long = [&tokens[..], &prompt(2, 1000)].concat();
    let hit = bench.look(&ask(&long));
    assert_eq!(hit.tokens, 32, "what can be held is found");
    bench.begin();
    let before = bench.statistics();
    for tokens in [1, 1000, u64::from(u32::MAX), u64::MAX] {
        let refused =
            bench.apply(&Op::Admit { lease: hit.lease, tokens, lookahead: 0, row: -1, expected_tokens: 0 });
        assert_eq!(refused.status, Status::InvalidArgument);
    }
    let after = bench.statistics();
    assert_eq!((before.free_blocks, before.leases, before.sequences), (after.free_blocks, 1, 0));
    assert_eq!(bench.admit(hit.lease, 0).blocks_added, 0);
    bench.done();
}

#[test]
fn commits_in_pieces_equal_one_commit() {
    for (hash, groups) in [
        (HashKind::Blake3, vec![group(4)]),
        (HashKind::Xxh3, vec![group(4)]),
        (HashKind::Xxh3, vec![group(16), group(48)]),
        (HashKind::Blake3, vec![group(6), opaque(4, 16)]),
    ] {
        let mut random = fastrand::Rng::with_seed(5);
        let mut bench =
            Bench::new(&kavern::cache::CacheConfig { hash, max_namespaces: 64, ..config(groups, 200) });
        let tokens = prompt(1, 150);
        let once = Request { namespace_id: 100, ..ask(&tokens) };
        bench.run(&once);
        let whole = bench.hits(&once);
        for round in 0..40u64 {
            let request = Request { namespace_id: round, ..ask(&tokens) };
            bench.begin();
            let hit = bench.look(&request);
            let sequence = bench.admit(hit.lease, 150).sequence;
            let mut at = 0;
            while at < 150 {
                let piece = random.usize(0..20).min(150 - at);
                bench.commit(sequence, &tokens[at..at + piece]);
                at += piece;
            }
            bench.free(sequence);
            bench.done();
            assert_eq!(bench.hits(&request), whole, "namespace {round}");
            bench.cache.reset(ResetScope::Namespace(round)).unwrap();
        }
    }
}

#[test]
fn a_prefill_in_chunks_over_steps_is_found_as_far_as_it_came() {
    let mut bench = Bench::simple(4, 64);
    let tokens = prompt(1, 60);
    let hit = bench.look(&ask(&tokens));
    bench.begin();
    let sequence = bench.admit(hit.lease, 7).sequence;
    bench.commit(sequence, &tokens[..7]);
    bench.done();
    for (from, to) in [(7, 20), (20, 21), (21, 59), (59, 60)] {
        assert_eq!(bench.hits(&ask(&tokens)), from as u64 / 4 * 4);
        bench.begin();
        bench.append(sequence, to as u64 - from as u64);
        bench.commit(sequence, &tokens[from..to]);
        bench.done();
    }
    assert_eq!(bench.hits(&ask(&tokens)), 60);
    bench.begin();
    bench.free(sequence);
    bench.done();
}

#[test]
fn a_commit_of_more_than_was_scheduled_or_of_other_counts_changes_nothing() {
    let mut bench = Bench::simple(4, 16);
    let tokens = prompt(1, 9);
    bench.begin();
    let hit = bench.look(&ask(&tokens));
    let sequence = bench.admit(hit.lease, 8).sequence;
    assert_eq!(bench.apply(&commit(sequence, &tokens, &[])).status, Status::InvalidArgument);
    let naming = Naming::Tokens(&tokens[..3], &[]);
    for count in [0, 2, 4, u64::MAX] {
        let op = Op::Commit { target: Target::Id(Id(sequence)), tokens: count, naming };
        assert_eq!(bench.apply(&op).status, Status::InvalidArgument);
    }
    assert_eq!(bench.statistics().indexed_blocks, 0);
    assert_eq!(bench.commit(sequence, &tokens[..8]).blocks_committed, 2);
    assert_eq!(bench.apply(&commit(sequence, &tokens[8..], &[])).status, Status::InvalidArgument);
    bench.free(sequence);
    bench.done();
    assert_eq!(bench.hits(&ask(&tokens)), 8);
}

#[test]
fn sequences_with_the_same_prefix_hold_the_same_blocks() {
    let mut bench = Bench::simple(4, 32);
    let tokens = prompt(1, 12);
    bench.begin();
    let (_, first) = bench.start(&ask(&tokens), &tokens);
    let (hit, second) = bench.start(&ask(&tokens), &tokens);
    let (again, third) = bench.start(&ask(&tokens[..8]), &tokens[..8]);
    assert_eq!(hit.blocks[..2], again.blocks);
    assert_eq!(bench.statistics().used_blocks, 3);
    bench.free(first);
    bench.free(third);
    bench.done();
    assert_eq!(bench.look(&ask(&tokens)).blocks, hit.blocks);
    assert_eq!(bench.statistics().used_blocks, 3);
    bench.begin();
    bench.free(second);
    bench.done();
}

#[test]
fn the_first_of_two_equal_blocks_is_found_and_the_other_stays_private() {
    for hash in [HashKind::Blake3, HashKind::Xxh3] {
        let mut bench = Bench::new(&kavern::cache::CacheConfig { hash, ..config(vec![group(4)], 32) });
        let tokens = prompt(1, 12);
        bench.begin();
        let leases = [bench.look(&ask(&tokens)), bench.look(&ask(&tokens))];
        let [first, second] = leases.map(|hit| bench.admit(hit.lease, 12).sequence);
        assert_eq!(bench.commit(first, &tokens[..8]).blocks_committed, 2);
        assert_eq!(bench.commit(second, &tokens).blocks_committed, 1, "only what the first lacks");
        assert_eq!(bench.statistics().duplicate_blocks, 2);
        bench.free(second);
        bench.done();
        assert_eq!(bench.hits(&ask(&tokens)), 12, "a block of the second follows two of the first");
        bench.begin();
        bench.free(first);
        bench.done();
        let now = bench.statistics();
        assert_eq!((now.inactive_blocks, now.free_blocks), (3, 29));
    }
}

#[test]
fn eviction_takes_leaves_before_their_roots() {
    for policy in ["lru", "fifo"] {
        let mut bench = Bench::new(&kavern::cache::CacheConfig {
            policy: policy.to_owned(),
            ..config(vec![group(4)], 8)
        });
        let (old, new) = (prompt(1, 16), prompt(2, 16));
        bench.run(&ask(&old));
        bench.run(&ask(&new));
        assert_eq!(bench.cache.evict(0, 1).unwrap(), 1);
        let (of_old, of_new) = (bench.hits(&ask(&old)), bench.hits(&ask(&new)));
        assert_eq!(of_new, 16, "{policy}");
        assert!(if policy == "lru" { of_old == 12 } else { of_old < 16 });
        assert_eq!(bench.cache.evict(0, 100).unwrap(), 7);
        assert_eq!(bench.hits(&ask(&old)), 0);
        assert_eq!(bench.statistics().free_blocks, 8);
    }
}

#[test]
fn what_is_held_survives_a_reset_for_its_holders_only() {
    let mut bench = Bench::simple(4, 32);
    let (tokens, other) = (prompt(1, 12), prompt(2, 8));
    bench.begin();
    let (_, sequence) = bench.start(&ask(&tokens), &tokens);
    bench.done();
    bench.run(&Request { namespace_id: 2, ..ask(&other) });
    let lease = bench.look(&ask(&tokens));
    assert_eq!(bench.cache.reset(ResetScope::Namespace(1)).unwrap(), 3);
    assert_eq!(bench.hits(&ask(&tokens)), 0);
    assert_eq!(bench.hits(&Request { namespace_id: 2, ..ask(&other) }), 8);
    assert_eq!(bench.statistics().used_blocks, 3);
    bench.begin();
    let second = bench.admit(lease.lease, 1).sequence;
    bench.free(sequence);
    bench.free(second);
    bench.done();
    assert_eq!(bench.cache.reset(ResetScope::All).unwrap(), 2);
    assert_eq!(bench.statistics().free_blocks, 32);
    assert_eq!(bench.statistics().namespaces, 0);
}
