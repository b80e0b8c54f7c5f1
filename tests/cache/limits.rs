//! What each namespace holds and did, what it may hold and keep, and to which outcome each looked-up block goes.

use std::collections::BTreeSet;

use kavern::cache::{
    AdaptiveBlocks, CacheConfig, CacheEventKind, Change, Extra, GroupConfig, NO_LIMIT, Naming, Op,
    PreemptMode, Reach, RemoveReason, Request, ResetScope, Sizing, Target,
};
use kavern::error::Status;
use kavern::types::Id;

use super::bench::{Bench, ask, ask_keys, ask_with, commit, config, group, lookup, opaque, prompt, refused};
use super::groups::{cross, reaching};

fn of(namespace_id: u64, tokens: &[i32]) -> Request<'_> {
    Request { namespace_id, ..ask(tokens) }
}

fn ids(bench: &Bench, most: usize) -> BTreeSet<u64> {
    let (mut position, mut is_all, mut ids) = (0, false, BTreeSet::new());
    while !is_all {
        let mut count = 0;
        (position, is_all) = bench.cache.namespace_ids(position, most, |at, id| {
            assert_eq!(at, count);
            assert!(ids.insert(id), "{id} twice");
            count += 1;
        });
        assert!(count <= most);
    }
    ids
}

#[test]
fn a_namespace_counts_its_own_under_all_salts_and_adapters_and_is_forgotten_when_nothing_is_left() {
    let mut bench = Bench::simple(4, 32);
    let tokens = prompt(1, 12);
    bench.run(&of(5, &tokens));
    bench.run(&Request { salt: b"other", ..of(5, &tokens) });
    bench.run(&Request { adapter_id: 3, ..of(5, &tokens[..8]) });
    bench.run(&of(6, &tokens));
    bench.begin();
    let hits = [bench.look(&of(5, &tokens)), bench.look(&of(5, &tokens))];
    let five = bench.cache.namespace_statistics(5);
    assert_eq!(
        (five.held_blocks, five.cached_blocks, five.findable_blocks),
        (3, 5, 8),
        "shared blocks count once"
    );
    assert_eq!((five.lookups, five.lookup_blocks, five.hit_blocks), (5, 14, 6));
    assert_eq!((five.lookup_tokens, five.hit_tokens), (56, 24));
    assert_eq!((five.stored_blocks, five.evicted_blocks, five.refused_ops), (8, 0, 0));
    assert_eq!((five.max_held_blocks, five.max_cached_blocks), (NO_LIMIT, NO_LIMIT));
    let six = bench.cache.namespace_statistics(6);
    assert_eq!((six.held_blocks, six.cached_blocks, six.lookups), (0, 3, 1));
    hits.iter().for_each(|hit| bench.release(hit.lease));
    bench.done();
    assert_eq!(ids(&bench, 1), [5, 6].into());
    assert_eq!(bench.cache.reset(ResetScope::Namespace(5)).unwrap(), 8);
    assert_eq!(bench.cache.namespace_statistics(5).lookups, 0, "forgotten with its last block");
    assert_eq!(ids(&bench, 9), [6].into());
    assert_eq!(bench.hits(&of(6, &tokens)), 12, "another's blocks stay");
}

#[test]
fn what_would_hold_more_than_the_limit_is_refused_and_changes_nothing() {
    let mut bench = Bench::simple(4, 32);
    bench.cache.limit_namespace(1, 3, NO_LIMIT).unwrap();
    let tokens = prompt(1, 32);
    bench.begin();
    let hit = bench.look(&ask(&tokens));
    let before = bench.statistics();
    let result =
        bench.apply(&Op::Admit { lease: hit.lease, tokens: 17, lookahead: 0, row: -1, expected_tokens: 0 });
    assert_eq!((result.status, result.blocks_missing), (Status::LimitReached, 2));
    let after = bench.statistics();
    assert_eq!((after.free_blocks, after.sequences, after.leases), (before.free_blocks, 0, 1));
    let sequence = bench.admit(hit.lease, 9).sequence;
    bench.append(sequence, 3);
    let target = Target::Id(Id(sequence));
    let refused = bench.apply(&Op::Append { target, tokens: 1, lookahead: 0 });
    assert_eq!((refused.status, refused.blocks_missing), (Status::LimitReached, 1));
    assert_eq!(bench.cache.namespace_statistics(1).refused_ops, 2);
    // Others are not concerned, and the same namespace may hold again what it let go.
    let other = bench.look(&of(2, &tokens));
    bench.admit(other.lease, 32);
    bench.commit(sequence, &tokens[..12]);
    bench.free(sequence);
    bench.done();
    bench.begin();
    let hit = bench.look(&ask(&tokens));
    assert_eq!(hit.tokens, 12);
    let result =
        bench.apply(&Op::Admit { lease: hit.lease, tokens: 1, lookahead: 0, row: -1, expected_tokens: 0 });
    assert_eq!((result.status, result.blocks_missing), (Status::LimitReached, 1), "hits count as held");
    bench.cache.limit_namespace(1, NO_LIMIT, NO_LIMIT).unwrap();
    bench.admit(hit.lease, 1);
    bench.done();
}

#[test]
fn cached_blocks_above_the_limit_go_oldest_first_and_others_stay() {
    let settings = CacheConfig { event_capacity: 1000, ..config(vec![group(4)], 64) };
    let mut bench = Bench::new(&settings);
    bench.cache.limit_namespace(1, NO_LIMIT, 4).unwrap();
    let prompts: Vec<Vec<i32>> = (1..5).map(|seed| prompt(seed, 8)).collect();
    prompts.iter().for_each(|tokens| assert_eq!(bench.run(&of(2, tokens)), 0));
    bench.run(&ask(&prompts[0]));
    bench.run(&ask(&prompts[1]));
    bench.run(&ask(&prompts[0]));
    bench.run(&ask(&prompts[2]));
    let kept: Vec<u64> = prompts.iter().map(|tokens| bench.hits(&ask(tokens))).collect();
    assert_eq!(kept, [8, 0, 8, 0], "used again is younger than published later");
    let one = bench.cache.namespace_statistics(1);
    assert_eq!((one.cached_blocks, one.evicted_blocks, one.max_cached_blocks), (4, 2, 4));
    prompts.iter().for_each(|tokens| assert_eq!(bench.hits(&of(2, tokens)), 8, "another's stay"));
    let mut reasons = Vec::new();
    bench.cache.read_events(0, 1000, |_, event| {
        if event.kind == CacheEventKind::Removed {
            reasons.push((event.namespace_id, event.reason));
        }
    });
    assert_eq!(reasons, [(1, RemoveReason::Limit); 2]);
    // What is held is not cached: it goes only after it was let go.
    bench.begin();
    let hits = [bench.look(&ask(&prompts[0])), bench.look(&ask(&prompts[2]))];
    bench.cache.limit_namespace(1, NO_LIMIT, 1).unwrap();
    assert_eq!(bench.cache.namespace_statistics(1).findable_blocks, 4);
    hits.iter().for_each(|hit| bench.release(hit.lease));
    bench.done();
    assert_eq!(bench.cache.namespace_statistics(1).cached_blocks, 1);
    assert_eq!(bench.hits(&ask(&prompts[2])), 4, "the root of the path that was let go last");
}

#[test]
fn a_limit_on_a_namespace_that_has_more_takes_effect_at_once_and_counts_tokens_over_groups() {
    let mut bench = Bench::new(&config(vec![group(4), opaque(8, 16)], 64));
    for seed in 0..4 {
        bench.run(&ask(&prompt(seed, 32)));
        bench.run(&of(2, &prompt(seed, 8)));
    }
    assert_eq!(bench.cache.namespace_statistics(1).cached_blocks, 48);
    bench.begin();
    let hit = bench.look(&ask(&prompt(0, 32)));
    bench.cache.limit_namespace(1, NO_LIMIT, 12).unwrap();
    let one = bench.cache.namespace_statistics(1);
    assert_eq!((one.held_blocks, one.cached_blocks, one.findable_blocks), (12, 12, 24));
    assert_eq!(bench.cache.namespace_statistics(2).cached_blocks, 12);
    bench.cache.validate().unwrap();
    bench.release(hit.lease);
    bench.cache.limit_namespace(1, 0, 0).unwrap();
    assert_eq!(bench.cache.namespace_statistics(1).findable_blocks, 0);
    assert_eq!(ids(&bench, 3), [1, 2].into(), "a limit keeps the namespace known");
    bench.cache.limit_namespace(1, NO_LIMIT, NO_LIMIT).unwrap();
    assert_eq!(ids(&bench, 3), [2].into());
    bench.done();
}

#[test]
fn a_limit_that_is_set_while_another_is_being_kept_is_kept_when_its_call_ends() {
    const PROMPT: usize = 1 << 14;
    for round in 0..8 {
        let settings = CacheConfig {
            max_sequence_tokens: PROMPT as u64,
            max_batch_tokens: PROMPT as u32,
            metadata_only: true,
            ..config(vec![group(1)], 4 * PROMPT as u64)
        };
        let mut bench = Bench::new(&settings);
        for seed in 0..4 {
            bench.run(&ask(&prompt(4 * round + seed, PROMPT)));
        }
        let cache = &bench.cache;
        assert!(cache.namespace_statistics(1).cached_blocks > 3 * PROMPT as u64);
        std::thread::scope(|scope| {
            scope.spawn(|| cache.limit_namespace(1, NO_LIMIT, 20).unwrap());
            while cache.namespace_statistics(1).max_cached_blocks != 20 {
                std::hint::spin_loop();
            }
            cache.limit_namespace(1, NO_LIMIT, 10).unwrap();
            assert!(cache.namespace_statistics(1).cached_blocks <= 10);
        });
        cache.validate().unwrap();
    }
}

#[test]
fn limits_are_set_for_as_many_namespaces_as_there_may_be_and_leave_those_their_place() {
    let mut bench = Bench::new(&CacheConfig { max_namespaces: 3, ..config(vec![group(4)], 32) });
    (10..13).for_each(|id| bench.cache.limit_namespace(id, 9, 9).unwrap());
    assert_eq!(refused(bench.cache.limit_namespace(13, 9, 9)), Status::LimitReached);
    bench.cache.limit_namespace(12, 5, 5).unwrap();
    (0..3).for_each(|id| assert_eq!(bench.run(&of(id, &prompt(1, 8))), 0));
    assert_eq!(ids(&bench, 2), [0, 1, 2, 10, 11, 12].into());
    bench.cache.limit_namespace(12, NO_LIMIT, NO_LIMIT).unwrap();
    bench.cache.limit_namespace(13, 9, NO_LIMIT).unwrap();
    assert_eq!(ids(&bench, 1), [0, 1, 2, 10, 11, 13].into());
}

/// Hit, missed, skipped and all blocks of one lookup.
fn outcomes(bench: &mut Bench, request: &Request<'_>) -> [u64; 4] {
    let of = |bench: &Bench| {
        let s = bench.statistics();
        [s.hit_blocks, s.missed_blocks, s.skipped_blocks, s.lookup_blocks]
    };
    let before = of(bench);
    bench.hits(request);
    let after = of(bench);
    std::array::from_fn(|outcome| after[outcome] - before[outcome])
}

#[test]
fn each_looked_up_block_has_exactly_one_outcome() {
    let mut bench = Bench::new(&config(vec![group(4), opaque(8, 16)], 64));
    let tokens = prompt(1, 36);
    bench.run(&ask(&tokens[..24]));
    // 9 blocks of 4 and 4 of 8 in the prompt; 6 and 3 are known.
    assert_eq!(outcomes(&mut bench, &ask(&tokens)), [9, 4, 0, 13]);
    assert_eq!(outcomes(&mut bench, &ask(&tokens[..24])), [9, 0, 0, 9]);
    assert_eq!(outcomes(&mut bench, &Request { no_read: true, ..ask(&tokens) }), [0, 0, 13, 13]);
    assert_eq!(outcomes(&mut bench, &Request { drop_last: true, ..ask(&tokens) }), [6, 4, 3, 13]);
    let keep = Request { keep_one_token: true, ..ask(&tokens[..24]) };
    assert_eq!(outcomes(&mut bench, &keep), [6, 0, 3, 9]);
    // One more block in the first group alone is found, but of no use.
    bench.run(&ask(&tokens[..28]));
    assert_eq!(outcomes(&mut bench, &ask(&tokens)), [9, 4, 0, 13]);
    // Beyond the longest sequence nothing is looked for.
    let long = prompt(9, 520);
    assert_eq!(outcomes(&mut bench, &ask(&long)), [0, 128 + 64, 3, 130 + 65]);
    // Nor beyond the keys.
    let keys = [7u8; 64];
    let request = Request { namespace_id: 77, token_count: 16, ..ask_keys(&keys, 32, 4) };
    assert_eq!(outcomes(&mut bench, &request), [0, 3, 3, 6]);
    bench.cache.validate().unwrap();
}

#[test]
fn outcomes_lists_and_counts_hold_over_random_operations_under_changing_limits() {
    for policy in ["lru", "fifo"] {
        let settings = CacheConfig { policy: policy.to_owned(), ..config(vec![group(4), opaque(8, 16)], 40) };
        let mut bench = Bench::new(&settings);
        let mut random = fastrand::Rng::with_seed(23);
        let mut live: Vec<(u64, u64)> = Vec::new();
        let mut refused = 0;
        bench.begin();
        for round in 0..6000 {
            let id = random.u64(0..3);
            match random.u8(0..12) {
                0..=4 => {
                    let length = random.usize(0..40);
                    let tokens: Vec<i32> = (0..length).map(|_| i32::from(random.u8(0..16) == 0)).collect();
                    let request = Request {
                        no_read: random.u8(0..9) == 0,
                        drop_last: random.u8(0..5) == 0,
                        keep_one_token: random.bool(),
                        ..of(id, &tokens)
                    };
                    let hit = bench.look(&request);
                    let rest = &tokens[hit.tokens as usize..];
                    let op = Op::Admit {
                        lease: hit.lease,
                        tokens: rest.len() as u64,
                        lookahead: 0,
                        row: -1,
                        expected_tokens: 0,
                    };
                    let result = bench.apply(&op);
                    refused += u32::from(result.status == Status::LimitReached && result.blocks_missing > 0);
                    if result.sequence == 0 {
                        bench.good(&Op::Release { lease: hit.lease });
                    } else {
                        bench.good(&commit(result.sequence, rest, &[]));
                        live.push((id, result.sequence));
                    }
                }
                5..=7 if !live.is_empty() => {
                    let (_, sequence) = live.swap_remove(random.usize(0..live.len()));
                    bench.free(sequence);
                }
                8 => {
                    let limit = |random: &mut fastrand::Rng| match random.u8(0..3) {
                        0 => NO_LIMIT,
                        _ => random.u64(0..20),
                    };
                    let (held, cached) = (limit(&mut random), limit(&mut random));
                    bench.cache.limit_namespace(id, held, cached).unwrap();
                }
                9 if random.u8(0..8) == 0 => _ = bench.cache.reset(ResetScope::Namespace(id)).unwrap(),
                10 if random.u8(0..8) == 0 => _ = bench.cache.evict(0, 3).unwrap(),
                _ => {
                    bench.done();
                    bench.begin();
                }
            }
            for id in 0..3 {
                let counts = bench.cache.namespace_statistics(id);
                assert!(counts.cached_blocks <= counts.max_cached_blocks, "round {round}");
            }
            if round % 50 == 0 {
                bench.cache.validate().unwrap();
            }
        }
        let all = bench.statistics();
        assert_eq!(all.lookup_blocks, all.hit_blocks + all.missed_blocks + all.skipped_blocks);
        assert!(
            refused > 50 && all.hit_blocks > 500 && all.skipped_blocks > 500,
            "{refused} refused: {all:?}"
        );
        bench.done();
    }
}

#[test]
fn what_a_sequence_computed_before_a_reset_is_never_published_after_it() {
    let mut bench = Bench::simple(4, 32);
    let tokens = prompt(1, 16);
    for scope in [ResetScope::Namespace(1), ResetScope::All] {
        bench.begin();
        let hit = bench.look(&ask(&tokens));
        let waiting = bench.look(&ask(&tokens));
        let sequence = bench.admit(hit.lease, 16).sequence;
        bench.commit(sequence, &tokens[..4]);
        assert_eq!(bench.cache.reset(scope).unwrap(), 1);
        assert_eq!(bench.commit(sequence, &tokens[4..]).blocks_committed, 0);
        let late = bench.admit(waiting.lease, 16).sequence;
        let naming = Naming::Tokens(&tokens, &[]);
        let op = Op::Commit { target: Target::Id(Id(late)), tokens: 16, naming };
        assert_eq!(bench.good(&op).blocks_committed, 0);
        // One that began after the reset publishes.
        let (_, fresh) = bench.start(&ask(&tokens[..8]), &tokens[..8]);
        assert_eq!(bench.statistics().indexed_blocks, 2);
        [sequence, late, fresh].iter().for_each(|&sequence| bench.free(sequence));
        bench.done();
        assert_eq!(bench.cache.reset(ResetScope::All).unwrap(), 2);
    }
}

#[test]
fn an_edit_counts_what_it_takes_less_what_it_lets_go_and_a_fork_is_refused_above_the_limit() {
    let mut bench = Bench::simple(4, 40);
    let tokens = prompt(1, 32);
    bench.begin();
    let sequence = bench.start(&of(5, &tokens), &tokens).1;
    bench.done();
    bench.begin();
    let on = |sequence, change| Op::Change { target: Target::Id(Id(sequence)), change };
    let child = bench.good(&on(sequence, Change::Fork { tokens: 0, row: -1 })).sequence;
    assert_eq!(bench.cache.namespace_statistics(5).held_blocks, 8, "a fork holds nothing more");
    // The tail is shared: its copies come on top of what is held.
    bench.cache.limit_namespace(5, 10, NO_LIMIT).unwrap();
    let before = bench.statistics();
    let refused = bench.apply(&on(child, Change::Edit { offset: 8, tokens: 4 }));
    assert_eq!((refused.status, refused.blocks_missing), (Status::LimitReached, 3));
    assert_eq!(bench.statistics().used_blocks, before.used_blocks);
    bench.good(&on(child, Change::Edit { offset: 20, tokens: 4 }));
    assert_eq!(bench.cache.namespace_statistics(5).held_blocks, 10);
    // Of its own it lets go as much as it takes, also above a limit that came later.
    bench.cache.limit_namespace(5, 4, NO_LIMIT).unwrap();
    bench.good(&on(child, Change::Edit { offset: 20, tokens: 4 }));
    assert_eq!(bench.cache.namespace_statistics(5).held_blocks, 9);
    let refused = bench.apply(&on(sequence, Change::Fork { tokens: 4, row: -1 }));
    assert_eq!((refused.status, refused.blocks_missing), (Status::LimitReached, 5));
    bench.upload();
    bench.done();
}

#[test]
fn what_is_promised_counts_as_held_and_is_not_refused_by_the_limit_later() {
    let mut bench = Bench::simple(4, 40);
    bench.cache.limit_namespace(5, 10, NO_LIMIT).unwrap();
    bench.begin();
    let admit =
        |lease, tokens, expected_tokens| Op::Admit { lease, tokens, lookahead: 0, row: -1, expected_tokens };
    let lease = bench.look(&of(5, &prompt(1, 8))).lease;
    let refused = bench.apply(&admit(lease, 8, 44));
    assert_eq!((refused.status, refused.blocks_missing), (Status::LimitReached, 1));
    let sequence = bench.good(&admit(lease, 8, 32)).sequence;
    let five = bench.cache.namespace_statistics(5);
    assert_eq!((five.held_blocks, five.promised_blocks), (2, 6));
    let other = bench.look(&of(5, &prompt(2, 12))).lease;
    let refused = bench.apply(&admit(other, 12, 0));
    assert_eq!((refused.status, refused.blocks_missing), (Status::LimitReached, 1));
    bench.good(&admit(other, 8, 0));
    // Others of the namespace are at its limit: the promise is kept all the same, and nothing beyond it.
    bench.append(sequence, 24);
    let five = bench.cache.namespace_statistics(5);
    assert_eq!((five.held_blocks, five.promised_blocks), (10, 0));
    let more = bench.apply(&Op::Append { target: Target::Id(Id(sequence)), tokens: 1, lookahead: 0 });
    assert_eq!((more.status, more.blocks_missing), (Status::LimitReached, 1));
    // What a rollback lets go is promised again, but no more than the namespace may hold by now.
    bench.cache.limit_namespace(5, 7, NO_LIMIT).unwrap();
    let back = Change::Rollback { tokens: 12, lookahead: 0, open_tokens: &[], extras: &[] };
    bench.good(&Op::Change { target: Target::Id(Id(sequence)), change: back });
    let five = bench.cache.namespace_statistics(5);
    assert_eq!((five.held_blocks, five.promised_blocks), (5, 2));
    bench.free(sequence);
    assert_eq!(bench.cache.namespace_statistics(5).promised_blocks, 0);
    bench.done();
}

#[test]
fn inputs_of_a_sequence_that_a_reset_met_are_never_published_after_it() {
    let mut bench = Bench::new(&config(vec![group(4), cross(6, 4)], 32));
    let tokens = prompt(1, 16);
    let picture = [Extra { id: [9; 32], token_offset: 0 }];
    let request = ask_with(&tokens, &picture);
    bench.begin();
    let lease = bench.look(&request).lease;
    let sequence = bench.admit(lease, 16).sequence;
    bench.cache.reset(ResetScope::Namespace(1)).unwrap();
    assert_eq!(bench.good(&commit(sequence, &tokens, &picture)).blocks_committed, 0);
    assert_eq!(bench.statistics().indexed_blocks, 0);
    bench.free(sequence);
    bench.done();
    assert_eq!(bench.run(&request), 0, "one that began after the reset publishes");
    assert_eq!(bench.hits(&request), 16);
}

#[test]
fn each_block_that_a_mixed_cache_looks_for_has_the_outcome_that_is_told_of_it() {
    let window = reaching(Reach::Sliding { window_tokens: 16 }, group(16));
    let mut bench = Bench::new(&config(vec![group(16), window], 32));
    let tokens = prompt(1, 64);
    bench.run(&ask(&tokens));
    assert_eq!(outcomes(&mut bench, &ask(&tokens)), [5, 0, 0, 5]);
    // The last block is left out at the request's wish: it was found.
    let keep = Request { keep_one_token: true, ..ask(&tokens) };
    assert_eq!(outcomes(&mut bench, &keep), [4, 0, 1, 5]);
    let mut bench = Bench::new(&config(vec![group(4), cross(6, 4)], 32));
    let picture = [Extra { id: [9; 32], token_offset: 0 }];
    let other = [Extra { id: [8; 32], token_offset: 0 }];
    bench.run(&ask_with(&tokens[..8], &picture));
    assert_eq!(outcomes(&mut bench, &ask_with(&tokens[..8], &picture)), [4, 0, 0, 4]);
    assert_eq!(
        outcomes(&mut bench, &ask_with(&tokens[..8], &other)),
        [0, 4, 0, 4],
        "an unknown input is missed"
    );
    bench.cache.validate().unwrap();
}

#[test]
fn a_limit_that_is_lifted_from_a_namespace_nobody_knows_takes_no_place() {
    let mut bench = Bench::new(&CacheConfig { max_namespaces: 3, ..config(vec![group(4)], 32) });
    (10..13).for_each(|id| bench.cache.limit_namespace(id, 9, 9).unwrap());
    (0..3).for_each(|id| assert_eq!(bench.run(&of(id, &prompt(1, 8))), 0));
    bench.cache.limit_namespace(99, NO_LIMIT, NO_LIMIT).unwrap();
    assert_eq!(ids(&bench, 2), [0, 1, 2, 10, 11, 12].into());
    bench.cache.validate().unwrap();
}

#[test]
fn a_stopped_sequence_without_blocks_holds_no_tokens_of_its_input() {
    let mut bench = Bench::new(&config(vec![group(4), cross(6, 4)], 32));
    let tokens = prompt(1, 8);
    bench.begin();
    let (_, sequence) = bench.start(&ask(&tokens), &tokens);
    bench.upload();
    assert_eq!(bench.statistics().held_tokens, 8 + 6);
    let change = Change::Preempt { mode: PreemptMode::Drop };
    bench.good(&Op::Change { target: Target::Id(Id(sequence)), change });
    assert_eq!(bench.statistics().held_tokens, 0);
    bench.done();
}

#[test]
fn a_sequence_that_is_expected_to_be_endless_is_one_as_long_as_there_can_be() {
    let adaptive = Some(AdaptiveBlocks {
        classes: vec![1, 2],
        advisor: "predictive".to_owned(),
        waste_permille: 50,
        table_permille: 35,
    });
    let groups = vec![group(1), GroupConfig { capacity_blocks: 100, ..group(256) }];
    let settings = CacheConfig { max_sequence_tokens: 16_384, adaptive, ..config(groups, 20_000) };
    let bench = Bench::new(&settings);
    let chosen = |expected_tokens| {
        let sizing = Sizing { class: 0, expected_tokens };
        bench.cache.lookups().find(&Request { sizing, ..ask(&prompt(1, 4)) }).unwrap().group
    };
    assert_eq!([16_384, u64::MAX].map(chosen), [Some(1); 2]);
}

#[test]
fn a_new_limit_finds_what_is_held_so_that_no_step_has_to_look_for_it() {
    let settings =
        CacheConfig { max_sequences: 64, max_batch_tokens: 1 << 13, ..config(vec![group(4)], 2000) };
    let mut bench = Bench::new(&settings);
    bench.begin();
    let cached = [200, 201].map(|seed| prompt(seed, 8));
    let sequences: Vec<u64> = cached.iter().map(|tokens| bench.start(&ask(tokens), tokens).1).collect();
    let held: Vec<u64> =
        (0..50).map(|seed| bench.start(&ask(&prompt(seed, 80)), &prompt(seed, 80)).1).collect();
    sequences.into_iter().for_each(|sequence| bench.free(sequence));
    bench.done();
    // Beside the 4 that are cached, a thousand are held. `validate` proves that none of them stands in the order of
    // those that may go.
    for _ in 0..3 {
        bench.cache.limit_namespace(1, NO_LIMIT, 4).unwrap();
        bench.cache.validate().unwrap();
        let one = bench.cache.namespace_statistics(1);
        assert_eq!((one.held_blocks, one.cached_blocks), (1000, 4));
        bench.cache.limit_namespace(1, NO_LIMIT, NO_LIMIT).unwrap();
    }
    // What was set aside under a limit and let go without one is found as well.
    bench.begin();
    held[..10].iter().for_each(|&sequence| bench.free(sequence));
    bench.done();
    bench.cache.limit_namespace(1, NO_LIMIT, 202).unwrap();
    bench.cache.validate().unwrap();
    assert_eq!(bench.cache.namespace_statistics(1).cached_blocks, 202);
    let hits = cached.each_ref().map(|tokens| bench.hits(&ask(tokens)));
    assert_eq!(hits, [0, 8], "the oldest went");
}

#[test]
fn limits_that_come_and_go_while_others_release_leave_every_block_in_its_list() {
    let mut bench = Bench::new(&config(vec![group(4), opaque(8, 16)], 1000));
    let cache = std::sync::Arc::clone(&bench.cache);
    let limits = std::thread::spawn(move || {
        for round in 0..600 {
            cache.limit_namespace(1, NO_LIMIT, [NO_LIMIT, 300, 5][round % 3]).unwrap();
            if round % 20 == 0 {
                cache.validate().unwrap();
            }
        }
    });
    let mut seed = 0;
    while !limits.is_finished() {
        seed += 1;
        let tokens = prompt(seed % 40, 64);
        bench.begin();
        let hit = lookup(&bench.cache, &ask(&tokens)).unwrap();
        let rest = &tokens[hit.tokens as usize..];
        let sequence = bench.admit(hit.lease, rest.len() as u64).sequence;
        bench.commit(sequence, rest);
        bench.free(sequence);
        bench.done();
    }
    limits.join().unwrap();
    bench.cache.limit_namespace(1, NO_LIMIT, 3).unwrap();
    bench.cache.validate().unwrap();
    assert!(bench.cache.namespace_statistics(1).cached_blocks <= 3);
}
