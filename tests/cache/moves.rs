//! A shrink moves what is held above the new count: content, holders, and everything that is known of a block go along.

use std::sync::Arc;

use kavern::cache::{
    CacheConfig, CacheEventKind, Change, GroupConfig, HashKind, Op, Reach, RemoveReason, Stretch, Target,
    TokenCopy,
};
use kavern::device::registry;
use kavern::event::NoSink;
use kavern::memory::{Limits, Memory};
use kavern::types::Id;

use super::bench::{Bench, ask, config, group, lookup, opaque, prompt};

/// Most blocks of a group that a step may move.
const MOST: usize = 64;

/// The tables of the open step: the cells of each group, and the copies before the step's work.
fn tables(bench: &Bench) -> (Vec<Vec<i32>>, Vec<TokenCopy>) {
    let groups = bench.cache.group_count() as usize;
    let read = |tables: &kavern::cache::StepTables<'_>| {
        let cells = (0..groups).map(|group| Ok(tables.group(group)?.block_table.to_vec()));
        Ok((cells.collect::<Result<_, kavern::error::Error>>()?, tables.copies().to_vec()))
    };
    bench.cache.tables(bench.step, bench.stream, read).unwrap()
}

/// A row of a group, as far as it shows blocks.
fn row(bench: &Bench, cells: &[Vec<i32>], group: usize, row: usize, count: usize) -> Vec<i32> {
    let each = bench.cache.describe(group as u32).unwrap().row_cells as usize;
    cells[group][row * each..][..count].to_vec()
}

fn end_step(bench: &Bench) {
    bench.cache.step_done(bench.step, Some(bench.stream)).unwrap();
    bench.device.stream_synchronize(bench.stream).unwrap();
    bench.cache.poll().unwrap();
    bench.cache.validate().unwrap();
}

/// Takes the low blocks for a while: answers a sequence that holds as many.
fn take_low(bench: &mut Bench, tokens: usize) -> u64 {
    let low = prompt(999, tokens);
    let lease = bench.look(&ask(&low)).lease;
    bench.admit(lease, tokens as u64).sequence
}

fn all_of(id: u64) -> Stretch {
    Stretch { target: Target::Id(Id(id)), offset: 0, tokens: 0 }
}

fn check(bench: &Bench, group: u32, blocks: &[i32], seeds: &[u64]) {
    bench.cache.check_pattern(bench.stream, group, blocks, seeds).unwrap();
    let result = bench.cache.take_check_result().unwrap();
    assert_eq!((result.checked, result.mismatched), (blocks.len() as u64, 0));
}

#[test]
fn a_shrink_by_half_does_not_wait_for_a_sequence_of_a_hundred_thousand_tokens() {
    const BLOCKS: u64 = 16_384;
    let device = registry::open("host?page_bytes=4096").unwrap();
    let memory = Memory::new(device, Limits::default(), Arc::new(NoSink));
    let mut bench = Bench::of(
        memory,
        &CacheConfig {
            max_blocks: BLOCKS,
            max_sequence_tokens: 200_000,
            max_batch_tokens: 200_000,
            ..config(vec![opaque(16, 4096)], BLOCKS)
        },
    );
    bench.begin();
    let low = take_low(&mut bench, 16 * 4_000);
    let tokens = prompt(1, 100_000);
    let (_, long) = bench.start(&ask(&tokens), &tokens);
    let (before, _) = tables(&bench);
    let place = bench.look(&ask(&tokens)).lease;
    let seeds: Vec<u64> = (0..6250).map(|at| at * 77 + 5).collect();
    let long_row = row(&bench, &before, 0, 1, 6250);
    bench.cache.fill_pattern(bench.stream, 0, &long_row, &seeds).unwrap();
    bench.good(&Op::Release { lease: place });
    bench.free(low);
    end_step(&bench);
    let above = long_row.iter().filter(|&&block| block >= 8192).count();
    let resized = bench.cache.resize(0, BLOCKS / 2).unwrap();
    assert_eq!((resized.held_blocks as usize, resized.is_done), (above, false));
    assert!(above > 2000);
    let mut steps = 0;
    while !bench.cache.resize(0, BLOCKS / 2).unwrap().is_done {
        bench.begin();
        bench.append(long, 1);
        let (cells, copies) = tables(&bench);
        assert!(copies.len() <= MOST, "a step's cost is bounded");
        check(&bench, 0, &row(&bench, &cells, 0, 1, 6250), &seeds);
        end_step(&bench);
        steps += 1;
        assert!(steps <= above.div_ceil(MOST) + 2, "{steps} steps for {above} blocks");
    }
    let statistics = bench.statistics();
    assert_eq!(statistics.moved_blocks as usize, above);
    assert_eq!(statistics.used_blocks as usize, (100_000 + steps).div_ceil(16));
    assert!(statistics.pool_bytes <= (BLOCKS / 2 + 32) * 4096);
    assert_eq!(bench.hits(&ask(&tokens)), 100_000, "it is found where it is now");
    bench.begin();
    bench.free(long);
    end_step(&bench);
}

#[test]
fn all_holders_of_a_block_follow_it_and_whoever_was_told_its_place_keeps_it() {
    for hash in [HashKind::Blake3, HashKind::Xxh3] {
        let mut bench = Bench::new(&CacheConfig { hash, ..config(vec![group(4)], 40) });
        let tokens = prompt(1, 30);
        bench.begin();
        let low = take_low(&mut bench, 4 * 20);
        let (_, first) = bench.start(&ask(&tokens), &tokens);
        end_step(&bench);
        // Another that found the first five blocks, a fork that shares all, and a fork of the fork.
        bench.begin();
        let second_lease = bench.cache.lookups().find(&ask(&tokens[..20])).unwrap().lease;
        let second = bench.admit(second_lease, 2).sequence;
        let fork = |parent, tokens| Op::Change {
            target: Target::Id(Id(parent)),
            change: Change::Fork { tokens, row: -1 },
        };
        let third = bench.good(&fork(first, 0)).sequence;
        let fourth = bench.good(&fork(third, 9)).sequence;
        let untold = bench.cache.lookups().find(&ask(&tokens[..12])).unwrap();
        assert_eq!(untold.hit_tokens, 12);
        let (cells, _) = tables(&bench);
        let old = row(&bench, &cells, 0, 1, 8);
        assert!(old.iter().all(|&block| block >= 20), "{old:?}");
        let seeds: Vec<u64> = (1..=8).collect();
        bench.cache.fill_pattern(bench.stream, 0, &old, &seeds).unwrap();
        bench.free(low);
        let told = lookup(&bench.cache, &ask(&tokens[..4])).unwrap();
        bench.cache.pin_prefix("named", told.lease).unwrap();
        end_step(&bench);
        assert_eq!(bench.cache.resize(0, 20).unwrap().held_blocks, 9);
        bench.begin();
        let (cells, copies) = tables(&bench);
        assert_eq!(copies.len(), 8, "all but the one whose place was told");
        let new = row(&bench, &cells, 0, 1, 8);
        assert_eq!(new[0], told.blocks[0]);
        assert!(new[1..].iter().all(|&block| block < 20), "{new:?}");
        for (other, count) in [(2, 5), (3, 8), (4, 3)] {
            assert_eq!(row(&bench, &cells, 0, other, count), new[..count], "row {other}");
        }
        check(&bench, 0, &new, &seeds);
        end_step(&bench);
        // The told one follows when its lease has ended, and its name's pin with it.
        bench.begin();
        bench.good(&Op::Release { lease: told.lease });
        let (cells, copies) = tables(&bench);
        assert_eq!((copies.len(), copies[0].tokens), (1, 4));
        let last = row(&bench, &cells, 0, 1, 8);
        assert!(last[0] < 20);
        check(&bench, 0, &last, &seeds);
        end_step(&bench);
        assert!(bench.cache.resize(0, 20).unwrap().is_done);
        // The untold lease goes on with the new places.
        bench.begin();
        let admitted = bench.admit(untold.lease, 1);
        let (cells, _) = tables(&bench);
        assert_eq!(row(&bench, &cells, 0, admitted.row as usize, 3), last[..3]);
        for sequence in [first, second, third, fourth, admitted.sequence] {
            bench.free(sequence);
        }
        end_step(&bench);
        assert_eq!((bench.statistics().pinned_blocks, bench.cache.evict(0, 100).unwrap()), (1, 6));
        assert_eq!(bench.hits(&ask(&tokens)), 4, "the named one");
        bench.cache.unpin_prefix("named").unwrap();
        assert_eq!(bench.cache.evict(0, 100).unwrap(), 1);
        assert_eq!(bench.statistics().free_blocks, 20);
    }
}

#[test]
fn a_pinned_block_that_nobody_holds_moves_and_is_found_at_its_new_place() {
    let mut bench = Bench::new(&CacheConfig { event_capacity: 64, ..config(vec![group(4)], 16) });
    let tokens = prompt(1, 8);
    bench.begin();
    let low = take_low(&mut bench, 4 * 10);
    let (_, sequence) = bench.start(&ask(&tokens), &tokens);
    bench.good(&Op::Pin { stretch: all_of(sequence) });
    bench.free(sequence);
    bench.free(low);
    end_step(&bench);
    let old = bench.look(&ask(&tokens));
    bench.cache.fill_pattern(bench.stream, 0, &old.blocks, &[3, 4]).unwrap();
    bench.release(old.lease);
    bench.cache.resize(0, 4).unwrap();
    bench.begin();
    let (_, copies) = tables(&bench);
    assert_eq!(copies.iter().map(|copy| copy.row).collect::<Vec<_>>(), [-1, -1]);
    let new = bench.look(&ask(&tokens));
    assert_eq!(new.tokens, 8);
    assert!(new.blocks.iter().all(|&block| block < 4), "{:?}", new.blocks);
    check(&bench, 0, &new.blocks, &[3, 4]);
    bench.good(&Op::Release { lease: new.lease });
    end_step(&bench);
    assert!(bench.cache.resize(0, 4).unwrap().is_done);
    assert_eq!((bench.statistics().pinned_blocks, bench.cache.evict(0, 9).unwrap()), (2, 0));
    // Consumers are told of both ends of the way, the old one first.
    let mut seen = Vec::new();
    bench.cache.read_events(0, 64, |_, event| seen.push((event.kind, event.reason, event.block)));
    for (old, new) in old.blocks.iter().zip(&new.blocks) {
        let gone = (CacheEventKind::Removed, RemoveReason::Moved, *old);
        let at = seen.iter().position(|event| *event == gone).unwrap();
        assert_eq!(seen[at + 1], (CacheEventKind::Stored, RemoveReason::None, *new));
    }
}

#[test]
fn what_was_said_of_a_block_holds_at_its_new_place() {
    let mut bench = Bench::simple(4, 16);
    let [dear, cheap] = [1, 2].map(|seed| prompt(seed, 8));
    bench.cache.step_at(1, 1000).unwrap();
    bench.step = 1;
    let low = take_low(&mut bench, 4 * 8);
    let (_, first) = bench.start(&ask(&dear), &dear);
    let (_, second) = bench.start(&ask(&cheap), &cheap);
    bench.good(&Op::Retain { stretch: all_of(first), priority: 90, ttl_ms: 0 });
    bench.good(&Op::Retain { stretch: all_of(second), priority: 95, ttl_ms: 500 });
    bench.free(low);
    end_step(&bench);
    bench.cache.resize(0, 6).unwrap();
    bench.begin();
    assert_eq!(tables(&bench).1.len(), 4);
    bench.free(second);
    bench.free(first);
    end_step(&bench);
    assert!(bench.cache.resize(0, 6).unwrap().is_done);
    // Its time is over, at its new place as it would have been at the old one: it goes before the other.
    drop(bench.cache.step_at(3, 1_000_000_000_000).unwrap());
    bench.step = 3;
    bench.done();
    assert_eq!(bench.cache.evict(0, 2).unwrap(), 2);
    assert_eq!([bench.hits(&ask(&dear)), bench.hits(&ask(&cheap))], [8, 0]);
}

#[test]
fn windows_states_and_other_inputs_move_too() {
    let of = |reach, group: GroupConfig| GroupConfig { reach, ..group };
    for groups in [
        vec![group(4), of(Reach::Sliding { window_tokens: 12 }, group(4))],
        vec![group(8), of(Reach::State { snapshot_blocks: 1 }, opaque(8, 64))],
        vec![group(4), of(Reach::Cross { tokens: 8 }, group(4))],
    ] {
        let mut bench = Bench::new(&config(groups, 80));
        let tokens = prompt(1, 44);
        bench.begin();
        let low = [20, 20, 20].map(|tokens| take_low(&mut bench, tokens));
        let (_, sequence) = bench.start(&ask(&tokens), &tokens);
        end_step(&bench);
        bench.begin();
        bench.append(sequence, 1);
        low.into_iter().for_each(|low| bench.free(low));
        let (before, _) = tables(&bench);
        let mut held = Vec::new();
        for group in 0..2 {
            let place = bench.cache.describe(group as u32).unwrap();
            let cells = row(&bench, &before, group, 3, place.row_cells as usize);
            let is_block = |at: &usize| cells[*at] > 0 && Some(cells[*at] as u32) != place.null_block;
            let shown: Vec<usize> = (0..cells.len().min(12)).filter(is_block).collect();
            let blocks: Vec<i32> = shown.iter().map(|&at| cells[at]).collect();
            let seeds: Vec<u64> = (0..blocks.len() as u64).map(|at| 10 * group as u64 + at).collect();
            bench.cache.fill_pattern(bench.stream, group as u32, &blocks, &seeds).unwrap();
            held.push((shown, blocks, seeds));
        }
        end_step(&bench);
        for (group, (_, blocks, _)) in held.iter().enumerate() {
            let low = *blocks.iter().min().unwrap() as u64;
            bench.cache.resize(group as u32, low).unwrap();
        }
        bench.begin();
        let (after, copies) = tables(&bench);
        assert!(copies.len() > 2, "{copies:?}");
        for (group, (shown, blocks, seeds)) in held.iter().enumerate() {
            let cells = row(&bench, &after, group, 3, 12.min(shown[shown.len() - 1] + 1));
            let now: Vec<i32> = shown.iter().map(|&at| cells[at]).collect();
            assert!(now.iter().zip(blocks).all(|(now, before)| now != before), "{now:?} {blocks:?}");
            check(&bench, group as u32, &now, seeds);
        }
        end_step(&bench);
        bench.begin();
        bench.append(sequence, 3);
        bench.free(sequence);
        end_step(&bench);
    }
}

#[test]
fn only_as_many_move_as_there_is_room_for_and_what_is_cached_makes_room() {
    let mut bench = Bench::simple(4, 16);
    let (cached, held) = (prompt(1, 16), prompt(2, 32));
    bench.begin();
    let (_, other) = bench.start(&ask(&cached), &cached);
    let (_, sequence) = bench.start(&ask(&held), &held);
    bench.free(other);
    end_step(&bench);
    // Four blocks are left for eight that are held: those below, whose content is only cached, make room.
    bench.cache.resize(0, 4).unwrap();
    bench.begin();
    assert_eq!(tables(&bench).1.len(), 4);
    end_step(&bench);
    let resized = bench.cache.resize(0, 4).unwrap();
    assert_eq!((resized.held_blocks, resized.is_done), (4, false));
    assert_eq!((bench.statistics().free_blocks, bench.statistics().evicted_blocks), (0, 4));
    assert_eq!(bench.hits(&ask(&held)), 32, "found wherever it lies, as long as somebody holds it");
    bench.begin();
    assert_eq!(tables(&bench).1.len(), 0);
    bench.free(sequence);
    end_step(&bench);
    assert!(bench.cache.resize(0, 4).unwrap().is_done);
    assert_eq!(bench.hits(&ask(&held)), 16, "what came below is cached like everything else");
}

#[test]
fn blocks_that_leases_alone_hold_move_unless_their_place_was_told() {
    let mut bench = Bench::simple(4, 40);
    let (tokens, other) = (prompt(1, 32), prompt(2, 8));
    bench.begin();
    let low = take_low(&mut bench, 4 * 20);
    let (_, first) = bench.start(&ask(&tokens), &tokens);
    let (_, second) = bench.start(&ask(&other), &other);
    [low, first, second].into_iter().for_each(|sequence| bench.free(sequence));
    end_step(&bench);
    let waiting = [32, 20].map(|count| bench.cache.lookups().find(&ask(&tokens[..count])).unwrap());
    let told = bench.look(&ask(&other));
    let seeds: Vec<u64> = (0..8).collect();
    bench.begin();
    let before = bench.admit(waiting[1].lease, 1);
    let (cells, _) = tables(&bench);
    let old = row(&bench, &cells, 0, before.row as usize, 5);
    bench.cache.fill_pattern(bench.stream, 0, &old, &seeds[..5]).unwrap();
    bench.free(before.sequence);
    end_step(&bench);
    assert_eq!(bench.cache.resize(0, 20).unwrap().held_blocks, 10);
    bench.begin();
    let (_, copies) = tables(&bench);
    assert_eq!(copies.len(), 8, "those of the lease that waits");
    assert!(copies.iter().all(|copy| copy.row == -1), "{copies:?}");
    end_step(&bench);
    assert_eq!(bench.cache.resize(0, 20).unwrap().held_blocks, 2, "what was told stays");
    bench.begin();
    let admitted = bench.admit(waiting[0].lease, 1);
    let (cells, _) = tables(&bench);
    let new = row(&bench, &cells, 0, admitted.row as usize, 8);
    assert!(new.iter().all(|&block| block < 20), "{new:?}");
    check(&bench, 0, &new[..5], &seeds[..5]);
    bench.free(admitted.sequence);
    bench.good(&Op::Release { lease: told.lease });
    end_step(&bench);
    assert!(bench.cache.resize(0, 20).unwrap().is_done);
}

#[test]
fn moved_blocks_are_no_copies_that_operations_had() {
    let mut bench = Bench::simple(4, 16);
    let tokens = prompt(1, 16);
    bench.begin();
    let low = take_low(&mut bench, 4 * 8);
    let (_, sequence) = bench.start(&ask(&tokens), &tokens);
    bench.free(low);
    end_step(&bench);
    bench.cache.resize(0, 8).unwrap();
    bench.begin();
    assert_eq!(tables(&bench).1.len(), 4);
    let statistics = bench.statistics();
    assert_eq!((statistics.moved_blocks, statistics.copied_tokens), (4, 0));
    bench.free(sequence);
    end_step(&bench);
}

#[test]
fn a_part_of_a_block_is_found_again_when_the_step_that_moved_it_is_over() {
    let mut bench = Bench::new(&CacheConfig { partial_hits: true, ..config(vec![group(4)], 16) });
    let tokens = prompt(1, 8);
    let parting = [&tokens[..6], &prompt(2, 4)].concat();
    bench.begin();
    let low = take_low(&mut bench, 4 * 8);
    let (_, sequence) = bench.start(&ask(&tokens), &tokens);
    bench.free(low);
    end_step(&bench);
    let probe = |bench: &Bench| bench.cache.probe(&ask(&parting)).unwrap();
    assert_eq!(probe(&bench), 6);
    bench.cache.resize(0, 8).unwrap();
    bench.begin();
    assert_eq!(tables(&bench).1.len(), 2);
    assert_eq!(probe(&bench), 4, "the bytes of the second block are on their way");
    end_step(&bench);
    assert_eq!(probe(&bench), 6);
    bench.begin();
    bench.free(sequence);
    end_step(&bench);
}
