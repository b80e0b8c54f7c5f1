//! ADMIT with an expected length: what is promised is there when it is wanted, whatever others do.

use kavern::cache::{CacheConfig, Change, GroupConfig, HashKind, Op, OpResult, PreemptMode, Reach, Target};
use kavern::error::Status;
use kavern::sys::clock::thread_ns;
use kavern::types::Id;

use super::bench::{Bench, ask, config, group, prompt};
use super::groups::{cross, decode, reaching, state};

fn expect(bench: &mut Bench, lease: Id, tokens: u64, expected_tokens: u64) -> OpResult {
    bench.apply(&Op::Admit { lease, tokens, lookahead: 0, row: -1, expected_tokens })
}

/// A sequence in the open step that holds 2 blocks of 4 and is promised 6 more.
fn promised(bench: &mut Bench) -> u64 {
    bench.begin();
    let lease = bench.look(&ask(&prompt(1, 8))).lease;
    let admitted = expect(bench, lease, 8, 30);
    assert_eq!((admitted.status, admitted.blocks_added), (Status::Ok, 2));
    assert_eq!(bench.statistics().promised_blocks, 6);
    admitted.sequence
}

#[test]
fn others_are_refused_what_is_promised_and_the_sequence_gets_it() {
    let mut bench = Bench::simple(4, 10);
    let sequence = promised(&mut bench);
    let other = bench.look(&ask(&prompt(2, 12))).lease;
    let refused =
        bench.apply(&Op::Admit { lease: other, tokens: 12, lookahead: 0, row: -1, expected_tokens: 0 });
    assert_eq!((refused.status, refused.blocks_missing), (Status::OutOfBlocks, 1));
    bench.admit(other, 8);
    for length in 9..=30 {
        assert_eq!(bench.append(sequence, 1).status, Status::Ok, "{length}");
    }
    assert_eq!(bench.statistics().promised_blocks, 0);
    bench.append(sequence, 2);
    // Beyond the expected length it is one among others.
    let more = bench.apply(&Op::Append { target: Target::Id(Id(sequence)), tokens: 1, lookahead: 0 });
    assert_eq!((more.status, more.blocks_missing), (Status::OutOfBlocks, 1));
    bench.done();
}

#[test]
fn what_cannot_be_promised_is_refused_with_what_is_missing() {
    let mut bench = Bench::simple(4, 10);
    let sequence = promised(&mut bench);
    let lease = bench.look(&ask(&prompt(2, 12))).lease;
    let before = bench.statistics();
    let refused = expect(&mut bench, lease, 4, 12);
    assert_eq!((refused.status, refused.blocks_missing), (Status::OutOfBlocks, 1));
    assert_eq!(expect(&mut bench, lease, 4, 513).status, Status::InvalidArgument);
    assert_eq!(bench.statistics().promised_blocks, before.promised_blocks);
    assert_eq!(expect(&mut bench, lease, 4, 8).status, Status::Ok);
    assert_eq!(bench.statistics().promised_blocks, 7);
    bench.free(sequence);
    assert_eq!(bench.statistics().promised_blocks, 1);
    bench.done();
}

#[test]
fn a_promise_ends_with_its_sequence_and_with_a_preemption_that_drops() {
    for change in [Change::Cancel, Change::Preempt { mode: PreemptMode::Drop }] {
        let mut bench = Bench::simple(4, 10);
        let sequence = promised(&mut bench);
        bench.good(&Op::Change { target: Target::Id(Id(sequence)), change });
        assert_eq!(bench.statistics().promised_blocks, 0);
        bench.done();
    }
    let mut bench = Bench::simple(4, 10);
    let sequence = promised(&mut bench);
    bench.good(&Op::Change {
        target: Target::Id(Id(sequence)),
        change: Change::Preempt { mode: PreemptMode::Keep },
    });
    assert_eq!(bench.statistics().promised_blocks, 6);
    bench.done();
}

#[test]
fn a_lookup_takes_no_evictable_block_that_is_promised() {
    for partial_hits in [false, true] {
        let hash = HashKind::Xxh3;
        let mut bench =
            Bench::new(&CacheConfig { hash, partial_hits, ..config(vec![group(4), group(8)], 10) });
        let cached = prompt(5, 32);
        bench.run(&ask(&cached));
        bench.begin();
        let lease = bench.look(&ask(&prompt(1, 8))).lease;
        let sequence = expect(&mut bench, lease, 8, 24).sequence;
        // 2 of the 4 blocks that are left beside the promise of the first group are wanted elsewhere.
        let other = bench.look(&ask(&prompt(2, 8))).lease;
        bench.admit(other, 8);
        let hit = bench.look(&ask(&cached));
        assert_eq!(hit.tokens, 8, "2 blocks of the first group are left");
        bench.append(sequence, 16);
        bench.done();
    }
}

#[test]
fn a_rollback_gets_its_promise_back_and_a_resize_leaves_it_alone() {
    let mut bench = Bench::simple(4, 10);
    let sequence = promised(&mut bench);
    let target = Target::Id(Id(sequence));
    bench.append(sequence, 20);
    assert_eq!(bench.statistics().promised_blocks, 1);
    bench.done();
    bench.begin();
    let (open_tokens, extras): (&[i32], _) = (&[], &[][..]);
    let change = Change::Rollback { tokens: 8, lookahead: 0, open_tokens, extras };
    bench.good(&Op::Change { target, change });
    assert_eq!(bench.statistics().promised_blocks, 6);
    let resized = bench.cache.resize(0, 5).unwrap();
    assert!(!resized.is_done);
    assert_eq!(bench.statistics().capacity_blocks, 8);
    bench.cache.validate().unwrap();
    bench.append(sequence, 22);
    bench.free(sequence);
    bench.done();
    bench.cache.poll().unwrap();
    assert!(bench.cache.resize(0, 5).unwrap().is_done);
}

#[test]
fn each_kind_of_group_promises_what_it_takes_at_most() {
    let window = reaching(Reach::Sliding { window_tokens: 8 }, group(4));
    let sizes = |group: GroupConfig, capacity_blocks| GroupConfig { capacity_blocks, ..group };
    let groups = vec![sizes(group(4), 26), sizes(window, 8), sizes(state(1, 4), 5), sizes(cross(6, 4), 4)];
    let mut bench = Bench::new(&config(groups, 64));
    let tokens = prompt(1, 100);
    bench.begin();
    let lease = bench.look(&ask(&tokens)).lease;
    let refused = expect(&mut bench, lease, 8, 105);
    assert_eq!((refused.status, refused.blocks_missing, refused.group), (Status::OutOfBlocks, 1, 0));
    assert_eq!(expect(&mut bench, lease, 8, 513).status, Status::InvalidArgument);
    let admitted = expect(&mut bench, lease, 8, 100);
    assert_eq!((admitted.status, admitted.blocks_added), (Status::Ok, 2 + 2 + 1 + 2));
    assert_eq!(bench.statistics().promised_blocks, 23 + 2 + 2, "up to four of a window, three states");
    let sequence = admitted.sequence;
    // Others are refused what is promised: all of the full group and all but four of the window's.
    let other = bench.look(&ask(&prompt(2, 8))).lease;
    let refused =
        bench.apply(&Op::Admit { lease: other, tokens: 8, lookahead: 0, row: -1, expected_tokens: 0 });
    assert_eq!((refused.status, refused.blocks_missing, refused.group), (Status::OutOfBlocks, 1, 0));
    let small = bench.admit(other, 4).sequence;
    bench.commit(sequence, &tokens[..8]);
    bench.done();
    for &token in &tokens[8..] {
        decode(&mut bench, sequence, token);
        bench.cache.validate().unwrap();
    }
    assert_eq!(bench.statistics().promised_blocks, 0);
    bench.begin();
    bench.free(sequence);
    bench.free(small);
    bench.done();
    assert_eq!(bench.hits(&ask(&tokens)), 0, "the other input has no name");
}

#[test]
fn a_lookup_in_mixed_groups_leaves_what_is_promised() {
    let window = reaching(Reach::Sliding { window_tokens: 8 }, group(4));
    let mut bench = Bench::new(&config(vec![group(4), window, state(1, 4)], 12));
    let cached = prompt(5, 32);
    bench.begin();
    let (_, writer) = bench.start(&ask(&cached[..16]), &cached[..16]);
    bench.done();
    bench.begin();
    bench.append(writer, 16);
    bench.commit(writer, &cached[16..]);
    bench.done();
    bench.begin();
    bench.free(writer);
    bench.done();
    bench.begin();
    let lease = bench.look(&ask(&prompt(1, 4))).lease;
    let sequence = expect(&mut bench, lease, 4, 24).sequence;
    let hit = bench.look(&ask(&cached));
    assert_eq!(hit.tokens, 16, "six of the full group's blocks are left, and a hit of 32 takes eight");
    bench.cache.validate().unwrap();
    bench.release(hit.lease);
    bench.free(sequence);
    bench.done();
    assert_eq!(bench.hits(&ask(&cached)), 32);
}

/// One running sequence.
struct Running {
    id: u64,
    length: u64,
    expected: u64,
    tokens: Vec<i32>,
}

#[test]
fn no_append_within_a_promise_is_refused_whatever_runs_beside() {
    let (mut kept, mut refusals) = (0, 0);
    for seed in 0..40 {
        let mut random = fastrand::Rng::with_seed(seed);
        let partial_hits = seed % 2 == 1;
        let config = CacheConfig { partial_hits, ..config(vec![group(4), group(2)], 48) };
        let mut bench = Bench::new(&CacheConfig { max_blocks: 96, ..config });
        let mut live: Vec<Running> = Vec::new();
        let mut leases: Vec<Id> = Vec::new();
        for step in 0..400 {
            bench.begin();
            let tokens: Vec<i32> =
                (0..random.usize(1..40)).map(|at| if at % 6 == 0 { random.i32(0..2) } else { 0 }).collect();
            let hit = bench.look(&ask(&tokens));
            let rest = tokens.len() as u64 - hit.tokens;
            let expected = if random.bool() { tokens.len() as u64 + random.u64(0..60) } else { 0 };
            let admitted = match expected {
                0 => bench.apply(&Op::Admit {
                    lease: hit.lease,
                    tokens: rest,
                    lookahead: 0,
                    row: -1,
                    expected_tokens: 0,
                }),
                expected => expect(&mut bench, hit.lease, rest, expected),
            };
            if admitted.status == Status::Ok {
                bench.commit(admitted.sequence, &tokens[hit.tokens as usize..]);
                let length = tokens.len() as u64;
                live.push(Running { id: admitted.sequence, length, expected, tokens });
            } else {
                leases.push(hit.lease);
            }
            // Some leases stay a while and hold what they found.
            if leases.len() > 3 {
                let lease = leases.swap_remove(random.usize(..leases.len()));
                bench.good(&Op::Release { lease });
            }
            for running in &mut live {
                let target = Target::Id(Id(running.id));
                let count = random.u64(0..4);
                if running.length + count > 200 {
                    continue;
                }
                let appended = bench.apply(&Op::Append { target, tokens: count, lookahead: 0 });
                if appended.status == Status::Ok {
                    running.length += count;
                } else {
                    assert_eq!(appended.status, Status::OutOfBlocks);
                    assert!(running.length + count > running.expected, "step {step} of seed {seed}");
                    refusals += 1;
                }
                kept += u64::from(running.length <= running.expected);
                if running.length > 8 && random.u8(0..20) == 0 && running.expected == 0 {
                    let (open_tokens, extras): (&[i32], _) = (&[], &[][..]);
                    let tokens = running.tokens.len() as u64;
                    let change = Change::Rollback { tokens, lookahead: 0, open_tokens, extras };
                    if bench.apply(&Op::Change { target, change }).status == Status::Ok {
                        running.length = tokens;
                    }
                }
            }
            while live.len() > 6 || (!live.is_empty() && random.u8(0..4) == 0) {
                bench.free(live.swap_remove(random.usize(..live.len())).id);
            }
            bench.upload();
            // The copies of the step must be over before it is said to be.
            bench.device.stream_synchronize(bench.stream).unwrap();
            bench.done();
            if random.u8(0..8) == 0 {
                bench.cache.resize(random.u32(0..2), random.u64(20..=96)).unwrap();
            }
            bench.cache.validate().unwrap();
        }
    }
    assert!(kept > 10_000 && refusals > 1000, "{kept} appends within a promise, {refusals} refusals");
}

#[test]
fn what_a_lookup_leaves_to_promises_was_not_missed() {
    let mut bench = Bench::simple(4, 8);
    bench.run(&ask(&prompt(5, 12)));
    bench.begin();
    let lease = bench.look(&ask(&prompt(1, 4))).lease;
    assert_eq!(expect(&mut bench, lease, 4, 28).status, Status::Ok);
    let before = bench.statistics();
    let hit = bench.look(&ask(&prompt(5, 12)));
    assert_eq!(hit.tokens, 4);
    let after = bench.statistics();
    assert_eq!(
        (after.missed_blocks, after.skipped_blocks),
        (before.missed_blocks, before.skipped_blocks + 2)
    );
    bench.release(hit.lease);
    bench.done();
}

#[test]
fn a_window_whose_blocks_a_fork_holds_too_is_refused_whole_until_the_fork_lets_them_go() {
    let window =
        GroupConfig { capacity_blocks: 5, ..reaching(Reach::Sliding { window_tokens: 8 }, group(4)) };
    let mut bench = Bench::new(&config(vec![group(4), window], 64));
    bench.begin();
    let [lease, other] = [1, 2].map(|seed| bench.look(&ask(&prompt(seed, 4))).lease);
    let sequence = expect(&mut bench, lease, 4, 40).sequence;
    // Four are promised and held; somebody else has the fifth.
    bench.admit(other, 4);
    bench.turn();
    let mut child = 0;
    for length in 4..20 {
        if length == 12 {
            child = bench.fork(sequence, 0);
        }
        bench.append(sequence, 1);
        bench.turn();
    }
    let append = Op::Append { target: Target::Id(Id(sequence)), tokens: 1, lookahead: 0 };
    let counts = |bench: &Bench| {
        let s = bench.statistics();
        [s.free_blocks, s.used_blocks, s.deferred_blocks, s.promised_blocks, s.used_tokens, s.used_slots]
    };
    let before = counts(&bench);
    let refused = bench.apply(&append);
    assert_eq!((refused.status, refused.group, refused.blocks_missing), (Status::OutOfBlocks, 1, 1));
    assert_eq!(counts(&bench), before);
    bench.cache.validate().unwrap();
    bench.free(child);
    for _ in 20..40 {
        bench.good(&append);
        bench.turn();
    }
    bench.done();
}

#[test]
fn a_sequence_that_expects_nothing_is_one_without_a_promise() {
    let mut bench = Bench::simple(4, 8);
    bench.begin();
    let lease = bench.look(&ask(&prompt(1, 8))).lease;
    let admitted = expect(&mut bench, lease, 8, 0);
    assert_eq!((admitted.status, admitted.blocks_added), (Status::Ok, 2));
    bench.cache.validate().unwrap();
    bench.free(admitted.sequence);
    bench.done();
}

#[test]
fn no_decode_within_a_promise_is_refused_in_mixed_groups_where_nobody_shares_its_window() {
    let (mut kept, mut refusals) = (0, 0);
    for seed in 0..24 {
        let mut random = fastrand::Rng::with_seed(seed);
        let sized = |reach, capacity_blocks| GroupConfig { capacity_blocks, ..reaching(reach, group(4)) };
        let states = GroupConfig { capacity_blocks: 14, ..state(1, 4) };
        let groups = [group(4), sized(Reach::Sliding { window_tokens: 8 }, 20), states];
        let mut bench = Bench::new(&config(groups[..2 + seed as usize % 2].to_vec(), 80));
        let mut live: Vec<Running> = Vec::new();
        for step in 0..400 {
            bench.begin();
            for running in &mut live {
                let op = Op::Append { target: Target::Id(Id(running.id)), tokens: 1, lookahead: 0 };
                let appended = bench.apply(&op);
                if appended.status == Status::Ok {
                    running.length += 1;
                    running.tokens.push(0);
                    bench.commit(running.id, &[0]);
                    kept += u64::from(running.length <= running.expected);
                } else {
                    assert_eq!(appended.status, Status::OutOfBlocks);
                    assert!(running.length + 1 > running.expected, "seed {seed}, group {}", appended.group);
                    refusals += 1;
                }
            }
            live.retain(|running| {
                let is_over = running.length > running.expected + 20;
                if is_over {
                    bench.free(running.id);
                }
                !is_over
            });
            // What two share, neither gives back when its window leaves it: each has tokens of its own.
            let tokens = prompt(step, random.usize(1..24));
            let hit = bench.look(&ask(&tokens));
            let rest = tokens.len() as u64 - hit.tokens;
            let length = tokens.len() as u64;
            let expected = if random.bool() { length + random.u64(0..60) } else { 0 };
            let admitted = expect(&mut bench, hit.lease, rest, expected);
            if admitted.status == Status::Ok {
                bench.commit(admitted.sequence, &tokens[hit.tokens as usize..]);
                live.push(Running { id: admitted.sequence, length, expected, tokens });
            } else {
                bench.good(&Op::Release { lease: hit.lease });
            }
            bench.done();
            bench.cache.validate().unwrap();
        }
    }
    assert!(kept > 5000 && refusals > 500, "{kept} appends within a promise, {refusals} refusals");
}

#[test]
fn what_a_trim_lets_go_is_promised_again() {
    let window =
        GroupConfig { capacity_blocks: 5, ..reaching(Reach::Sliding { window_tokens: 8 }, group(4)) };
    let mut bench = Bench::new(&config(vec![group(4), window], 64));
    bench.begin();
    let lease = bench.look(&ask(&prompt(1, 8))).lease;
    let sequence = expect(&mut bench, lease, 8, 100).sequence;
    assert_eq!(bench.statistics().promised_blocks, 23 + 2);
    bench.done();
    bench.begin();
    bench.good(&Op::Trim { target: Target::Id(Id(sequence)), offset: 8 });
    bench.done();
    // Others may have the one block beside the four that a window touches.
    bench.begin();
    let mut others = 0;
    for seed in 2..5 {
        let lease = bench.look(&ask(&prompt(seed, 4))).lease;
        let op = Op::Admit { lease, tokens: 4, lookahead: 0, row: -1, expected_tokens: 0 };
        others += u32::from(bench.apply(&op).status == Status::Ok);
    }
    bench.done();
    assert_eq!(others, 1);
    for at in 8..100 {
        decode(&mut bench, sequence, at);
        bench.cache.validate().unwrap();
    }
}

#[test]
fn a_lookup_of_a_long_document_beside_promises_takes_about_as_long_as_one_without() {
    const BLOCKS: u64 = 16_384;
    let window = reaching(Reach::Sliding { window_tokens: 8 }, group(4));
    let (max_sequence_tokens, max_batch_tokens) = (8 * BLOCKS, 8 * BLOCKS as u32);
    let sizes = CacheConfig { max_sequence_tokens, max_batch_tokens, ..config(vec![], BLOCKS + 2) };
    let mut bench = Bench::new(&CacheConfig { groups: vec![group(4), window], ..sizes });
    let document = prompt(1, 4 * BLOCKS as usize);
    bench.run(&ask(&document));
    let quickest = |bench: &Bench, hit: u64| {
        let took = (0..5).map(|_| {
            let start = thread_ns();
            assert_eq!(bench.cache.probe(&ask(&document)).unwrap(), hit);
            thread_ns() - start
        });
        took.min().unwrap()
    };
    let alone = quickest(&bench, 4 * BLOCKS);
    bench.begin();
    let lease = bench.look(&ask(&prompt(2, 4))).lease;
    // All that is free, and of what is cached all but nothing.
    let admitted = expect(&mut bench, lease, 4, 4 * (BLOCKS + 2));
    assert_eq!(admitted.status, Status::Ok);
    let beside = quickest(&bench, 0);
    assert!(beside < 8 * alone, "{beside} ns beside a promise, {alone} alone");
    bench.free(admitted.sequence);
    bench.done();
}
