//! Operations, their limits, and when a block that was given up is used again.

use kavern::cache::{CacheConfig, Change, Naming, Op, OpResult, Request, StepTables, Target};
use kavern::error::Status;
use kavern::types::{Id, IdKind};

use super::bench::{Bench, ask, commit, config, group, lookup, opaque, prompt, refused};

fn append(sequence: u64, tokens: u64) -> Op<'static> {
    Op::Append { target: Target::Id(Id(sequence)), tokens, lookahead: 0 }
}

/// So many sequences that have room in their only block, for which an APPEND takes the short way.
fn ready(bench: &mut Bench, count: usize) -> Vec<u64> {
    bench.begin();
    let leases: Vec<Id> = (0..count).map(|_| bench.look(&ask(&[])).lease).collect();
    let sequences: Vec<u64> = leases.into_iter().map(|lease| bench.admit(lease, 1).sequence).collect();
    bench.done();
    bench.begin();
    sequences.iter().for_each(|&sequence| _ = bench.append(sequence, 1));
    bench.done();
    sequences
}

#[test]
fn an_append_that_needs_no_block_is_refused_as_well_after_a_refusal_and_in_a_full_batch() {
    let mut bench = Bench::new(&CacheConfig { max_batch_tokens: 8, ..config(vec![group(16)], 8) });
    let sequences = ready(&mut bench, 2);
    bench.begin();
    let mut session = bench.cache.step(bench.step).unwrap();
    let tokens = [1, 2, 3];
    assert_eq!(session.apply(&commit(sequences[0], &tokens, &[])).status, Status::InvalidArgument);
    assert_eq!(session.apply(&append(sequences[0], 1)).status, Status::Dependency);
    assert_eq!(session.apply(&append(sequences[1], 6)).status, Status::Ok);
    drop(session);
    let mut session = bench.cache.step(bench.step).unwrap();
    assert_eq!(session.apply(&append(sequences[0], 3)).status, Status::LimitReached);
    assert_eq!(session.apply(&append(sequences[0], 2)).status, Status::Dependency);
    drop(session);
    assert_eq!(bench.apply(&append(sequences[0], 2)).status, Status::Ok);
    bench.done();
}

#[test]
fn appends_that_need_no_block_and_follow_each_other_in_a_step_are_one_entry_of_its_batch() {
    let mut bench = Bench::new(&config(vec![group(16)], 8));
    let sequences = ready(&mut bench, 2);
    bench.begin();
    for (at, tokens) in [(0, 1), (1, 2), (0, 3), (0, 1)] {
        bench.append(sequences[at], tokens);
    }
    let entries =
        |tables: &StepTables<'_>| Ok((tables.batch_rows()?.to_vec(), tables.batch_starts()?.to_vec()));
    let (rows, starts) = bench.cache.tables(bench.step, bench.stream, entries).unwrap();
    assert_eq!((rows.len(), starts), (2, vec![0, 5, 7]));
    bench.done();
}

#[test]
fn a_block_that_a_running_step_may_read_is_not_handed_out() {
    let mut bench = Bench::simple(4, 4);
    let (held, wanted) = (bench.look(&ask(&[])), bench.look(&ask(&[])));
    bench.begin();
    let sequence = bench.admit(held.lease, 16).sequence;
    bench.free(sequence);
    let gate = bench.gate();
    bench.cache.step_done(bench.step, Some(bench.stream)).unwrap();
    bench.begin();
    let op = Op::Admit { lease: wanted.lease, tokens: 5, lookahead: 0, row: -1, expected_tokens: 0 };
    let result = bench.apply(&op);
    assert_eq!((result.status, result.blocks_missing), (Status::OutOfBlocks, 2));
    assert_eq!((bench.statistics().deferred_blocks, bench.statistics().free_blocks), (4, 0));
    drop(gate);
    bench.device.stream_synchronize(bench.stream).unwrap();
    assert_eq!(bench.good(&op).blocks_added, 2);
    assert_eq!(bench.statistics().deferred_blocks, 0);
}

#[test]
fn a_block_freed_before_step_done_waits_for_it() {
    let mut bench = Bench::simple(4, 4);
    let hit = bench.look(&ask(&[]));
    bench.begin();
    let sequence = bench.admit(hit.lease, 16).sequence;
    bench.free(sequence);
    bench.cache.poll().unwrap();
    assert_eq!(bench.statistics().deferred_blocks, 4);
    bench.done();
    assert_eq!(bench.statistics().free_blocks, 4);
}

#[test]
fn blocks_of_a_sequence_that_no_running_step_touched_are_free_at_once() {
    let mut bench = Bench::simple(4, 4);
    let hit = bench.look(&ask(&[]));
    bench.begin();
    let sequence = bench.admit(hit.lease, 16).sequence;
    bench.done();
    bench.begin();
    bench.free(sequence);
    assert_eq!(bench.statistics().free_blocks, 4);
    bench.done();
}

#[test]
fn a_shared_block_waits_for_the_latest_step_of_any_former_holder() {
    let mut bench = Bench::simple(4, 8);
    let tokens = prompt(1, 8);
    bench.begin();
    let (_, first) = bench.start(&ask(&tokens), &tokens);
    bench.done();
    bench.begin();
    let hit = bench.look(&ask(&tokens));
    let second = bench.admit(hit.lease, 0).sequence;
    bench.free(second);
    let gate = bench.gate();
    bench.cache.step_done(bench.step, Some(bench.stream)).unwrap();
    bench.begin();
    bench.free(first);
    bench.done();
    assert_eq!((bench.statistics().deferred_blocks, bench.statistics().inactive_blocks), (2, 0));
    assert_eq!(bench.cache.evict(0, 2).unwrap(), 0);
    drop(gate);
    bench.device.stream_synchronize(bench.stream).unwrap();
    bench.cache.poll().unwrap();
    assert_eq!((bench.statistics().deferred_blocks, bench.statistics().inactive_blocks), (0, 2));
}

#[test]
fn a_lookup_takes_back_a_block_that_waits() {
    let mut bench = Bench::simple(4, 8);
    let tokens = prompt(1, 8);
    bench.begin();
    let (_, sequence) = bench.start(&ask(&tokens), &tokens);
    bench.free(sequence);
    let gate = bench.gate();
    bench.cache.step_done(bench.step, Some(bench.stream)).unwrap();
    let hit = bench.look(&ask(&tokens));
    assert_eq!((hit.tokens, bench.statistics().deferred_blocks), (8, 0));
    bench.cache.validate().unwrap();
    bench.begin();
    bench.good(&Op::Release { lease: hit.lease });
    assert_eq!(bench.statistics().deferred_blocks, 2, "the step that read it still runs");
    let again = bench.look(&ask(&tokens));
    drop(gate);
    bench.device.stream_synchronize(bench.stream).unwrap();
    bench.cache.poll().unwrap();
    assert_eq!(bench.statistics().used_blocks, 2);
    bench.good(&Op::Release { lease: again.lease });
    assert_eq!(bench.statistics().inactive_blocks, 2);
    bench.done();
}

#[test]
fn a_reset_frees_waiting_blocks_only_when_their_step_is_over() {
    let mut bench = Bench::simple(4, 8);
    bench.begin();
    let tokens = prompt(1, 8);
    let (_, sequence) = bench.start(&ask(&tokens), &tokens);
    bench.free(sequence);
    assert_eq!(bench.cache.reset(kavern::cache::ResetScope::All).unwrap(), 2);
    assert_eq!((bench.statistics().deferred_blocks, bench.statistics().free_blocks), (2, 6));
    bench.done();
    assert_eq!(bench.statistics().free_blocks, 8);
}

#[test]
fn step_done_covers_every_step_below() {
    let mut bench = Bench::simple(4, 8);
    let leases = [0, 1, 2].map(|_| bench.look(&ask(&[])).lease);
    for lease in leases {
        bench.begin();
        let sequence = bench.admit(lease, 8).sequence;
        bench.free(sequence);
    }
    assert_eq!((bench.statistics().steps_in_flight, bench.statistics().deferred_blocks), (3, 6));
    bench.cache.step_done(3, None).unwrap();
    assert_eq!((bench.statistics().steps_in_flight, bench.statistics().free_blocks), (0, 8));
}

#[test]
fn a_later_step_that_is_over_does_not_free_what_an_earlier_one_reads() {
    let mut bench = Bench::simple(4, 8);
    let leases = [bench.look(&ask(&[])).lease, bench.look(&ask(&[])).lease];
    bench.begin();
    let sequence = bench.admit(leases[0], 8).sequence;
    bench.free(sequence);
    let gate = bench.gate();
    bench.cache.step_done(1, Some(bench.stream)).unwrap();
    bench.begin();
    let sequence = bench.admit(leases[1], 8).sequence;
    bench.free(sequence);
    bench.done();
    assert_eq!(bench.statistics().deferred_blocks, 4);
    drop(gate);
    bench.device.stream_synchronize(bench.stream).unwrap();
    bench.cache.poll().unwrap();
    assert_eq!(bench.statistics().free_blocks, 8);
}

#[test]
fn more_steps_than_configured_are_refused_until_one_is_over() {
    let mut bench = Bench::simple(4, 8);
    (0..4).for_each(|_| bench.begin());
    assert_eq!(refused(bench.cache.step(5)), Status::TooManySteps);
    drop(bench.cache.step(4).unwrap());
    let gate = bench.gate();
    bench.cache.step_done(4, Some(bench.stream)).unwrap();
    assert_eq!(refused(bench.cache.step(5)), Status::TooManySteps);
    drop(gate);
    bench.device.stream_synchronize(bench.stream).unwrap();
    bench.begin();
    bench.done();
}

#[test]
fn steps_out_of_order_are_refused_with_their_state() {
    let bench = Bench::simple(4, 8);
    assert_eq!(bench.statistics().last_step, 0);
    assert_eq!(refused(bench.cache.step(0)), Status::WrongState);
    assert_eq!(refused(bench.cache.step_done(1, None)), Status::WrongState);
    drop(bench.cache.step(5).unwrap());
    drop(bench.cache.step(5).unwrap());
    assert_eq!(refused(bench.cache.step(4)), Status::WrongState);
    assert_eq!(bench.statistics().last_step, 5);
    assert_eq!(refused(bench.cache.step_done(6, None)), Status::WrongState);
    let tables = |step| bench.cache.tables(step, bench.stream, |_| Ok(()));
    assert_eq!(refused(tables(4)), Status::WrongState);
    assert_eq!(refused(tables(6)), Status::WrongState);
    tables(5).unwrap();
    tables(5).unwrap();
    let gate = bench.gate();
    bench.cache.step_done(5, Some(bench.stream)).unwrap();
    assert_eq!(refused(tables(5)), Status::WrongState);
    assert_eq!(refused(bench.cache.step(5)), Status::WrongState);
    assert_eq!(refused(bench.cache.step_done(5, None)), Status::WrongState);
    drop(gate);
    drop(bench.cache.step(u64::MAX).unwrap());
    assert_eq!(refused(bench.cache.step(u64::MAX - 1)), Status::WrongState);
    bench.cache.step_done(u64::MAX, None).unwrap();
    assert_eq!(bench.statistics().last_step, u64::MAX);
}

#[test]
fn tables_on_another_stream_wait_for_the_step_before() {
    let mut bench = Bench::simple(4, 8);
    let other = bench.device.stream_create().unwrap();
    let lease = bench.look(&ask(&[])).lease;
    bench.begin();
    let sequence = bench.admit(lease, 3).sequence;
    bench.upload();
    let gate = bench.gate();
    bench.begin();
    bench.append(sequence, 4);
    let tables = |step, stream| bench.cache.tables(step, stream, |tables| Ok(tables.addresses()[2]));
    assert_eq!(refused(tables(2, other)), Status::WrongState, "the first step has no end yet");
    bench.cache.step_done(1, Some(bench.stream)).unwrap();
    let lengths = tables(2, other).unwrap();
    assert!(!bench.device.stream_is_idle(other).unwrap());
    drop(gate);
    bench.device.stream_synchronize(other).unwrap();
    assert_eq!(bench.words(lengths, 8)[0], 7);
    bench.cache.step_done(2, Some(other)).unwrap();
    bench.device.stream_synchronize(other).unwrap();
}

#[test]
fn refused_operations_change_nothing_and_say_what_is_missing() {
    let mut bench = Bench::new(&CacheConfig {
        max_sequences: 2,
        max_batch_tokens: 24,
        ..config(vec![group(4), opaque(8, 16)], 4)
    });
    let leases = [0, 1, 2, 3].map(|_| bench.look(&ask(&[])).lease);
    bench.begin();
    let first = bench.admit(leases[0], 6).sequence;
    let admit = |lease, tokens, row| Op::Admit { lease, tokens, lookahead: 0, row, expected_tokens: 0 };
    let status = |result: OpResult| (result.status, result.blocks_missing, result.group);
    let before = bench.statistics();
    assert_eq!(status(bench.apply(&admit(leases[1], 12, -1))), (Status::OutOfBlocks, 1, 0));
    assert_eq!(status(bench.apply(&append(first, 15))), (Status::OutOfBlocks, 2, 0));
    let reserve = Op::Admit { lease: leases[1], tokens: 1, lookahead: 8, row: -1, expected_tokens: 0 };
    assert_eq!(status(bench.apply(&reserve)), (Status::OutOfBlocks, 1, 0));
    assert_eq!(status(bench.apply(&admit(leases[1], 0, 0))), (Status::InUse, 0, 0));
    assert_eq!(status(bench.apply(&admit(leases[1], 0, 2))), (Status::InvalidArgument, 0, 0));
    let after = bench.statistics();
    assert_eq!(after.refused_ops - before.refused_ops, 5);
    assert_eq!(
        (before.free_blocks, before.used_tokens, before.leases),
        (after.free_blocks, after.used_tokens, after.leases)
    );
    let second = bench.admit(leases[1], 2);
    assert_eq!(second.row, 1);
    assert_eq!(bench.apply(&admit(leases[2], 0, -1)).status, Status::LimitReached);
    bench.free(second.sequence);
    bench.done();
    bench.begin();
    assert_eq!(bench.apply(&append(first, 25)).status, Status::OutOfBlocks);
    bench.append(first, 8);
    bench.done();
    bench.begin();
    bench.good(&Op::Release { lease: leases[3] });
    assert_eq!(bench.apply(&Op::Release { lease: leases[3] }).status, Status::StaleId);
    bench.done();
}

#[test]
fn a_batch_holds_no_more_tokens_than_configured() {
    let mut bench = Bench::new(&CacheConfig { max_batch_tokens: 10, ..config(vec![group(4)], 32) });
    let leases = [bench.look(&ask(&[])).lease, bench.look(&ask(&[])).lease];
    bench.begin();
    let first = bench.admit(leases[0], 7).sequence;
    let op = Op::Admit { lease: leases[1], tokens: 4, lookahead: 0, row: -1, expected_tokens: 0 };
    assert_eq!(bench.apply(&op).status, Status::LimitReached);
    assert_eq!(bench.apply(&append(first, 4)).status, Status::LimitReached);
    drop(bench.cache.step(bench.step).unwrap());
    assert_eq!(bench.admit(leases[1], 3).status, Status::Ok);
    bench.upload();
    bench.done();
    bench.begin();
    bench.append(first, 10);
    bench.done();
}

#[test]
fn what_depends_on_a_refused_operation_of_the_list_is_refused_too() {
    let mut bench = Bench::simple(4, 4);
    let lease = bench.look(&ask(&[])).lease;
    bench.begin();
    let sequence = bench.admit(lease, 4).sequence;
    {
        let mut list = bench.cache.step(1).unwrap();
        assert_eq!(list.apply(&append(sequence, 100)).status, Status::OutOfBlocks);
        assert_eq!(list.apply(&append(sequence, 1)).status, Status::Dependency);
        assert_eq!(list.apply(&commit(sequence, &[1], &[])).status, Status::Dependency);
        let target = Target::Admitted(Err(Status::OutOfBlocks));
        let naming = Naming::Tokens(&[], &[]);
        assert_eq!(list.apply(&Op::Append { target, tokens: 1, lookahead: 0 }).status, Status::Dependency);
        assert_eq!(list.apply(&Op::Commit { target, tokens: 0, naming }).status, Status::Dependency);
        assert_eq!(list.apply(&Op::Free { target }).status, Status::Dependency);
    }
    bench.append(sequence, 1);
    {
        let mut list = bench.cache.step(1).unwrap();
        assert_eq!(list.apply(&append(sequence, 100)).status, Status::OutOfBlocks);
        let target = Target::Id(Id(sequence));
        assert_eq!(list.apply(&Op::Free { target }).status, Status::Ok, "ending it is always possible");
    }
    bench.done();
}

#[test]
fn ids_of_what_is_gone_or_of_another_kind_are_stale() {
    let mut bench = Bench::simple(4, 8);
    let lease = bench.look(&ask(&[])).lease;
    bench.begin();
    let sequence = bench.admit(lease, 1).sequence;
    bench.append(sequence, 1);
    bench.done();
    // The sequence has room for another token, so that its own id would be taken the short way.
    bench.begin();
    let (row, generation) = (Id(sequence).likely_index() as u32, Id(sequence).generation());
    let others = [IdKind::Lease, IdKind::Ticket].map(|kind| Id::new(kind, generation, row).0);
    let stale = [0, lease.0, sequence + 1, sequence + (1 << 24), u64::MAX, Id::new(IdKind::Ticket, 1, 0).0];
    for stale in stale.into_iter().chain(others) {
        let target = Target::Id(Id(stale));
        assert_eq!(bench.apply(&append(stale, 1)).status, Status::StaleId);
        assert_eq!(bench.apply(&commit(stale, &[1], &[])).status, Status::StaleId);
        assert_eq!(bench.apply(&Op::Free { target }).status, Status::StaleId);
    }
    for stale in [0, lease.0, sequence, u64::MAX] {
        assert_eq!(bench.apply(&Op::Release { lease: Id(stale) }).status, Status::StaleId);
        let op = Op::Admit { lease: Id(stale), tokens: 0, lookahead: 0, row: -1, expected_tokens: 0 };
        assert_eq!(bench.apply(&op).status, Status::StaleId);
    }
    bench.free(sequence);
    assert_eq!(bench.apply(&append(sequence, 1)).status, Status::StaleId);
    let lease = bench.look(&ask(&[])).lease;
    let next = bench.admit(lease, 1);
    assert_eq!(next.row, 0, "the row is used again");
    assert_ne!(next.sequence, sequence);
    bench.done();
}

#[test]
fn lookahead_reserves_blocks_that_later_tokens_use() {
    let mut bench = Bench::simple(4, 8);
    let lease = bench.look(&ask(&[])).lease;
    bench.begin();
    let result = bench.good(&Op::Admit { lease, tokens: 4, lookahead: 5, row: -1, expected_tokens: 0 });
    assert_eq!(result.blocks_added, 3);
    bench.done();
    for tokens in [1, 4, 3] {
        bench.begin();
        assert_eq!(bench.append(result.sequence, tokens).blocks_added, 0);
        bench.done();
    }
    bench.begin();
    assert_eq!(bench.append(result.sequence, 1).blocks_added, 1);
    bench.free(result.sequence);
    bench.done();
    assert_eq!(bench.statistics().free_blocks, 8);
}

#[test]
fn leases_hold_their_hits_against_eviction_and_are_bounded() {
    let mut bench = Bench::new(&CacheConfig { max_leases: 2, ..config(vec![group(4)], 4) });
    let tokens = prompt(1, 8);
    bench.run(&ask(&tokens));
    let hit = bench.look(&ask(&tokens));
    assert_eq!(bench.cache.evict(0, 9).unwrap(), 0);
    let other = bench.look(&ask(&[]));
    assert_eq!(refused(lookup(&bench.cache, &ask(&tokens))), Status::LimitReached);
    bench.begin();
    let op = Op::Admit { lease: other.lease, tokens: 12, lookahead: 0, row: -1, expected_tokens: 0 };
    let result = bench.apply(&op);
    assert_eq!((result.status, result.blocks_missing), (Status::OutOfBlocks, 1));
    bench.good(&Op::Release { lease: hit.lease });
    assert_eq!(bench.good(&op).blocks_added, 3);
    assert_eq!(bench.statistics().evicted_blocks, 1);
    bench.done();
}

#[test]
fn a_cache_of_metadata_only_keeps_books_and_host_tables_without_memory() {
    let settings = CacheConfig {
        metadata_only: true,
        ragged: true,
        capacity_blocks: 0,
        capacity_bytes: 32 * 64,
        ..config(vec![group(4)], 0)
    };
    let mut bench = Bench::new(&settings);
    assert_eq!(bench.memory.statistics().device.bytes + bench.memory.statistics().pinned.bytes, 0);
    assert_eq!((bench.cache.describe(0).unwrap().base_address, bench.statistics().pool_bytes), (0, 0));
    let tokens = prompt(1, 10);
    bench.run(&ask(&tokens));
    assert_eq!(bench.hits(&ask(&tokens)), 8);
    bench.begin();
    let (hit, _) = bench.start(&Request { keep_one_token: true, ..ask(&tokens) }, &tokens);
    bench
        .cache
        .tables(bench.step, bench.stream, |tables| {
            assert_eq!((tables.addresses(), tables.group_addresses(0).block_table), ([0; 3], 0));
            let view = tables.group(0)?;
            assert_eq!(view.block_table[..2], hit.blocks);
            assert_eq!(view.slot_mapping.len(), 2);
            assert_eq!((view.page_indptr, view.last_page_tokens), (&[0, 3][..], &[2][..]));
            assert_eq!(tables.sequence_lengths()[0], 10);
            Ok(())
        })
        .unwrap();
    bench.cache.step_done(bench.step, Some(bench.stream)).unwrap();
    assert_eq!(bench.statistics().steps_in_flight, 0);
    assert_eq!(refused(bench.cache.fill_pattern(bench.stream, 0, &[0], &[1])), Status::Unsupported);
    assert_eq!(refused(bench.cache.take_check_result()), Status::Unsupported);
}

#[test]
fn what_a_list_after_the_tables_of_its_step_commits_is_taken_back_and_what_they_told_is_not() {
    let mut bench = Bench::simple(4, 32);
    let (early, late) = (prompt(1, 16), prompt(2, 8));
    bench.begin();
    let lease = bench.look(&ask(&early)).lease;
    let first = bench.admit(lease, 8).sequence;
    bench.commit(first, &early[..8]);
    bench.upload();
    bench.append(first, 8);
    bench.commit(first, &early[8..]);
    let (_, second) = bench.start(&ask(&late), &late);
    for sequence in [first, second] {
        bench.good(&Op::Change { target: Target::Id(Id(sequence)), change: Change::Cancel });
    }
    bench.upload();
    bench.done();
    assert_eq!((bench.hits(&ask(&early)), bench.hits(&ask(&late))), (8, 0));
}
