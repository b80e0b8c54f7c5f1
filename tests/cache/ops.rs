//! Operations that change a sequence otherwise than at its end: fork, accept, rollback, edit, preempt, resume, cancel.

use kavern::cache::{CacheStatistics, Change, Extra, HashKind, Op, PreemptMode, Target, TokenCopy};
use kavern::error::Status;
use kavern::types::Id;

use super::bench::{Bench, ask, ask_keys, commit, commit_keys, config, group, opaque, prompt};
use super::change::{change, rollback, tape};

fn counts(s: &CacheStatistics) -> [u64; 10] {
    [
        s.free_blocks,
        s.used_blocks,
        s.inactive_blocks,
        s.deferred_blocks,
        s.indexed_blocks,
        s.sequences,
        s.leases,
        s.used_tokens,
        s.used_slots,
        s.allocated_blocks,
    ]
}

impl Bench {
    /// The operation is refused with this status, and nothing but the count of refusals changes.
    #[track_caller]
    pub(super) fn bad(&mut self, op: &Op<'_>, status: Status) {
        let before = self.statistics();
        let result = self.apply(op);
        let after = self.statistics();
        assert_eq!(result.status, status, "{op:?}");
        assert_eq!(counts(&before), counts(&after), "{op:?}");
        assert_eq!(after.refused_ops, before.refused_ops + 1);
    }

    #[track_caller]
    pub(super) fn fork(&mut self, sequence: u64, tokens: u64) -> u64 {
        self.good(&change(sequence, Change::Fork { tokens, row: -1 })).sequence
    }

    /// Runs a step: uploads tables, lets the work be over and goes on to the next step.
    pub(super) fn turn(&mut self) {
        self.upload();
        self.device.stream_synchronize(self.stream).unwrap();
        self.done();
        self.begin();
    }
}

#[test]
fn a_fork_shares_all_blocks_and_the_first_append_copies_the_open_one() {
    let mut bench = Bench::simple(4, 16);
    let tokens = prompt(1, 10);
    let (_, parent) = bench.start(&ask(&tokens), &tokens);
    bench.turn();
    let children = [bench.fork(parent, 0), bench.fork(parent, 0), bench.fork(parent, 0)];
    let s = bench.statistics();
    assert_eq!((s.used_blocks, s.used_tokens, s.used_slots, s.sequences), (3, 40, 48, 4));
    // Three of four copy, the last one keeps the block; nobody copies twice.
    for (copied, sequence) in [(1, children[0]), (1, parent), (1, children[1]), (0, children[2])] {
        assert_eq!(bench.append(sequence, 1).blocks_added, copied);
        assert_eq!(bench.append(sequence, 1).blocks_added, 0);
    }
    assert_eq!(bench.statistics().used_blocks, 2 + 4);
    bench.turn();
    for sequence in [children[1], parent, children[0]] {
        bench.free(sequence);
    }
    assert_eq!(bench.statistics().used_blocks, 3);
    bench.free(children[2]);
    bench.done();
    assert_eq!((bench.statistics().used_blocks, bench.statistics().inactive_blocks), (0, 2));
}

#[test]
fn a_copy_takes_exactly_the_tokens_that_count_and_all_of_an_opaque_block() {
    let mut bench = Bench::new(&config(vec![group(4), opaque(8, 64)], 16));
    let tokens = prompt(1, 10);
    let (_, parent) = bench.start(&ask(&tokens), &tokens);
    bench.turn();
    let child = bench.fork(parent, 9);
    let row = bench.append(child, 1).row;
    let copies = bench.cache.tables(bench.step, bench.stream, |tables| {
        let table = |group: usize, row: usize, cell: usize| {
            let view = tables.group(group).unwrap();
            i64::from(view.block_table[row * view.row_cells as usize + cell])
        };
        let expected = [
            TokenCopy {
                group: 0,
                row,
                source_slot: table(0, 0, 2) * 4,
                target_slot: table(0, 1, 2) * 4,
                tokens: 1,
                shift: 0,
            },
            TokenCopy {
                group: 1,
                row,
                source_slot: table(1, 0, 1) * 8,
                target_slot: table(1, 1, 1) * 8,
                tokens: 8,
                shift: 0,
            },
        ];
        assert_eq!(tables.copies(), expected);
        Ok((tables.copies().to_vec(), tables.copies_address()))
    });
    let (copies, address) = copies.unwrap();
    let words = bench.words(address, 16);
    assert_eq!(words[..2], [0, row]);
    assert_eq!(words[8 + 2], copies[1].source_slot as i32);
    assert_eq!((words[6], words[14], words[15]), (1, 8, 0));
    // The next tables have nothing to copy again.
    let copies = bench.cache.tables(bench.step, bench.stream, |tables| Ok(tables.copies().len())).unwrap();
    assert_eq!(copies, 0);
    bench.done();
}

#[test]
fn a_step_with_copies_cannot_end_without_its_tables() {
    let mut bench = Bench::simple(4, 16);
    let tokens = prompt(1, 6);
    let (_, parent) = bench.start(&ask(&tokens), &tokens);
    bench.turn();
    let child = bench.fork(parent, 0);
    bench.append(child, 1);
    assert_eq!(super::bench::refused(bench.cache.step_done(bench.step, None)), Status::WrongState);
    bench.upload();
    bench.done();
}

#[test]
fn refused_forks_change_nothing() {
    let mut bench = Bench::simple(4, 16);
    let tokens = prompt(1, 10);
    let (_, parent) = bench.start(&ask(&tokens), &tokens);
    let fork = |tokens, row| change(parent, Change::Fork { tokens, row });
    // What the open step is yet to write cannot be copied before its work.
    bench.bad(&fork(0, -1), Status::WrongState);
    bench.turn();
    bench.bad(&fork(11, -1), Status::InvalidArgument);
    bench.bad(&fork(0, 8), Status::InvalidArgument);
    bench.bad(&fork(0, 0), Status::InUse);
    bench.bad(&change(5, Change::Fork { tokens: 0, row: -1 }), Status::StaleId);
    let all: Vec<u64> = (0..7).map(|_| bench.fork(parent, 0)).collect();
    bench.bad(&fork(0, -1), Status::LimitReached);
    all.iter().for_each(|&child| bench.free(child));
    bench.done();
}

#[test]
fn a_copy_for_which_no_block_is_free_refuses_the_append() {
    let mut bench = Bench::simple(4, 3);
    let tokens = prompt(1, 10);
    let (_, parent) = bench.start(&ask(&tokens), &tokens);
    bench.turn();
    let child = bench.fork(parent, 0);
    let before = bench.statistics();
    let append = Op::Append { target: super::change::id(child), tokens: 1, lookahead: 0 };
    let result = bench.apply(&append);
    assert_eq!((result.status, result.blocks_missing), (Status::OutOfBlocks, 1));
    assert_eq!(counts(&before), counts(&bench.statistics()));
    bench.free(parent);
    // Alone now, it writes where it stands.
    assert_eq!(bench.append(child, 1).blocks_added, 0);
    bench.upload();
    bench.done();
}

#[test]
fn a_child_of_fewer_tokens_publishes_from_there_what_it_computes() {
    let mut bench = Bench::simple(4, 32);
    let (tokens, other) = (prompt(1, 16), prompt(2, 16));
    let (_, parent) = bench.start(&ask(&tokens), &tokens);
    bench.turn();
    // On a block boundary the chain goes on.
    let child = bench.fork(parent, 8);
    bench.append(child, 8);
    assert_eq!(bench.commit(child, &other[..8]).blocks_committed, 2);
    // Within the newest link too, its tokens being known.
    let inside = bench.fork(parent, 14);
    bench.append(inside, 2);
    assert_eq!(bench.commit(inside, &other[..2]).blocks_committed, 0, "an older link's tokens are not known");
    bench.turn();
    let mixed: Vec<i32> = tokens[..8].iter().chain(&other[..8]).copied().collect();
    assert_eq!(bench.hits(&ask(&mixed)), 16);
    assert_eq!(bench.hits(&ask(&tokens)), 16);
    bench.done();
}

#[test]
fn an_accepted_child_takes_the_place_of_its_parent_and_the_others_end() {
    let mut bench = Bench::simple(4, 32);
    let tokens = prompt(1, 10);
    let (_, parent) = bench.start(&ask(&tokens), &tokens);
    bench.turn();
    let children = [bench.fork(parent, 0), bench.fork(parent, 0), bench.fork(parent, 0)];
    let grandchild = bench.fork(children[1], 0);
    let nephew = bench.fork(children[2], 0);
    for (&child, seed) in children.iter().zip(2..) {
        bench.append(child, 4);
        bench.commit(child, &prompt(seed, 4));
    }
    bench.bad(&change(children[1], Change::Accept), Status::WrongState);
    bench.turn();
    bench.bad(&change(parent, Change::Accept), Status::WrongState);
    let accepted = bench.good(&change(children[1], Change::Accept));
    assert_eq!((accepted.sequence, accepted.row), (parent, 0));
    for gone in [children[0], children[1], children[2], nephew] {
        bench.bad(&change(gone, Change::Accept), Status::StaleId);
    }
    let s = bench.statistics();
    assert_eq!((s.sequences, s.used_tokens, s.used_slots), (2, 24, 28));
    let row = bench.append(parent, 2).row;
    bench.commit(parent, &prompt(5, 2));
    let lengths =
        bench.cache.tables(bench.step, bench.stream, |t| Ok(t.sequence_lengths().to_vec())).unwrap();
    assert_eq!((row, lengths[0]), (0, 16));
    bench.turn();
    let text: Vec<i32> = [&tokens[..], &prompt(3, 4)[..], &prompt(5, 2)[..]].concat();
    assert_eq!(bench.hits(&ask(&text)), 16);
    // What was forked from the accepted one belongs to its heir.
    bench.good(&change(grandchild, Change::Accept));
    assert_eq!(bench.statistics().used_tokens, 10);
    let orphan = bench.fork(parent, 0);
    bench.free(parent);
    bench.bad(&change(orphan, Change::Accept), Status::WrongState);
    bench.free(orphan);
    bench.done();
}

#[test]
fn a_speculative_loop_keeps_its_slots_and_commits_what_was_verified() {
    let mut bench = Bench::simple(4, 16);
    let tokens = prompt(1, 8);
    let (_, sequence) = bench.start(&ask(&tokens), &tokens);
    bench.turn();
    let mut text = tokens.clone();
    let before = bench.statistics().allocated_blocks;
    for round in 0..12 {
        let (accepted, length) = (round % 4, text.len() as u64);
        bench.append(sequence, 4);
        bench.turn();
        text.extend(prompt(round + 2, accepted as usize));
        bench.good(&rollback(sequence, length + accepted as u64, 4));
        bench.commit(sequence, &text[length as usize..]);
        assert_eq!(bench.statistics().used_tokens, text.len() as u64);
    }
    let s = bench.statistics();
    assert_eq!(text.len(), 26);
    // No slot was given back and taken again: as many blocks as the longest draft needed.
    assert_eq!(s.allocated_blocks - before, 27u64.div_ceil(4) - 2);
    assert_eq!(bench.hits(&ask(&text)), 24);
    bench.free(sequence);
    bench.done();
}

#[test]
fn a_rollback_into_published_blocks_leaves_them_findable_and_copies_on_append() {
    for hash in [HashKind::Blake3, HashKind::Xxh3] {
        let base = config(vec![group(4)], 16);
        let mut bench = Bench::new(&kavern::cache::CacheConfig { hash, ..base });
        let (tokens, other) = (prompt(1, 12), prompt(2, 12));
        let (_, sequence) = bench.start(&ask(&tokens), &tokens);
        bench.turn();
        let open = &tokens[4..6];
        bench.good(&change(
            sequence,
            Change::Rollback { tokens: 6, lookahead: 0, open_tokens: open, extras: &[] },
        ));
        assert_eq!(bench.statistics().used_blocks, 2);
        assert_eq!(bench.append(sequence, 6).blocks_added, 2, "one copied, one new");
        bench.commit(sequence, &other[..6]);
        bench.turn();
        assert_eq!(bench.hits(&ask(&tokens)), 12);
        let mixed: Vec<i32> = tokens[..6].iter().chain(&other[..6]).copied().collect();
        assert_eq!(bench.hits(&ask(&mixed)), 12, "{hash:?}");
        bench.free(sequence);
        bench.done();
    }
}

#[test]
fn a_rollback_without_the_open_tokens_publishes_nothing_more() {
    let mut bench = Bench::simple(4, 16);
    let tokens = prompt(1, 12);
    let (_, sequence) = bench.start(&ask(&tokens), &tokens);
    bench.turn();
    bench.good(&rollback(sequence, 6, 0));
    bench.append(sequence, 6);
    assert_eq!(bench.commit(sequence, &tokens[6..]).blocks_committed, 0);
    bench.turn();
    let bad = |tokens, open_tokens| {
        change(sequence, Change::Rollback { tokens, lookahead: 0, open_tokens, extras: &[] })
    };
    bench.bad(&bad(13, &[]), Status::InvalidArgument);
    bench.bad(&bad(6, &tokens[..1]), Status::InvalidArgument);
    let extras = [Extra { id: [1; 32], token_offset: 2 }];
    let with_extra =
        Change::Rollback { tokens: 6, lookahead: 0, open_tokens: &tokens[4..6], extras: &extras };
    bench.bad(&change(sequence, with_extra), Status::InvalidArgument);
    bench.free(sequence);
    bench.done();
}

#[test]
fn a_rollback_in_a_namespace_of_keys_goes_on_publishing() {
    let mut bench = Bench::simple(4, 16);
    let keys: Vec<u8> = (0..4 * 8).collect();
    let lease = bench.look(&ask_keys(&keys, 8, 4)).lease;
    let sequence = bench.admit(lease, 16).sequence;
    bench.good(&commit_keys(sequence, 16, &keys, 8));
    bench.turn();
    let open = Change::Rollback { tokens: 6, lookahead: 0, open_tokens: &[1, 2], extras: &[] };
    bench.bad(&change(sequence, open), Status::KeyMode);
    bench.good(&rollback(sequence, 6, 0));
    bench.append(sequence, 2);
    let other = [99; 8];
    assert_eq!(bench.good(&commit_keys(sequence, 2, &other, 8)).blocks_committed, 1);
    bench.turn();
    let text = [&keys[..8], &other[..]].concat();
    assert_eq!(bench.hits(&ask_keys(&text, 8, 4)), 8);
    bench.free(sequence);
    bench.done();
}

#[test]
fn what_the_open_step_published_is_taken_back_by_rollback_and_cancel() {
    let mut bench = Bench::simple(4, 32);
    let tokens = prompt(1, 16);
    let (_, sequence) = bench.start(&ask(&tokens), &tokens);
    assert_eq!(bench.statistics().indexed_blocks, 4);
    bench.good(&rollback(sequence, 8, 0));
    assert_eq!(bench.statistics().indexed_blocks, 2);
    bench.append(sequence, 8);
    bench.commit(sequence, &tokens[8..]);
    assert_eq!(bench.statistics().indexed_blocks, 4);
    let hit = bench.look(&ask(&tokens));
    bench.bad(&change(sequence, Change::Cancel), Status::InUse);
    bench.bad(&rollback(sequence, 8, 0), Status::InUse);
    bench.bad(&change(sequence, Change::Preempt { mode: PreemptMode::Drop }), Status::InUse);
    bench.release(hit.lease);
    bench.good(&change(sequence, Change::Cancel));
    let s = bench.statistics();
    assert_eq!((s.indexed_blocks, s.sequences, s.used_blocks), (0, 0, 0));
    // Once its tables are made the work runs, and a cancel is a free.
    let (_, sequence) = bench.start(&ask(&tokens), &tokens);
    bench.upload();
    bench.good(&change(sequence, Change::Cancel));
    assert_eq!(bench.statistics().indexed_blocks, 4);
    bench.turn();
    assert_eq!(bench.hits(&ask(&tokens)), 16);
    bench.done();
}

#[test]
fn an_edit_moves_the_tail_into_private_blocks_and_tells_what_moved() {
    let mut bench = Bench::new(&config(vec![group(4), group(8)], 32));
    let tokens = prompt(1, 18);
    let (_, sequence) = bench.start(&ask(&tokens), &tokens);
    bench.turn();
    let before: Vec<Vec<i32>> = (0..2).map(|group| tape::row(&bench, group, 0, 18)).collect();
    (0..2).for_each(|group| tape::write(&bench, group, &before[group as usize], 18, 1000));
    let edit = |offset, tokens| change(sequence, Change::Edit { offset, tokens });
    bench.bad(&edit(3, 0), Status::InvalidArgument);
    bench.bad(&edit(3, 16), Status::InvalidArgument);
    bench.bad(&edit(u64::MAX, 2), Status::InvalidArgument);
    let edited = bench.good(&edit(6, 5));
    assert_eq!(edited.blocks_added, 3 + 2);
    bench.bad(&edit(0, 19), Status::InvalidArgument);
    bench
        .cache
        .tables(bench.step, bench.stream, |tables| {
            let moved: u32 =
                tables.copies().iter().filter(|copy| copy.shift == -5).map(|copy| copy.tokens).sum();
            let kept: u32 =
                tables.copies().iter().filter(|copy| copy.shift == 0).map(|copy| copy.tokens).sum();
            assert_eq!((moved, kept), (2 * 7, 2 + 6));
            Ok(())
        })
        .unwrap();
    for group in 0..2 {
        let row = tape::row(&bench, group, 0, 13);
        let expected: Vec<i32> = (0..6).chain(11..18).map(|token| 1000 + token).collect();
        assert_eq!(tape::read(&bench, group, &row, 13), expected, "group {group}");
    }
    bench.done();
    bench.begin();
    bench.append(sequence, 3);
    assert_eq!(bench.commit(sequence, &prompt(3, 3)).blocks_committed, 0);
    bench.bad(&edit(0, 1), Status::WrongState);
    bench.turn();
    assert_eq!(bench.hits(&ask(&tokens)), 16, "what was published stays");
    bench.free(sequence);
    bench.done();
}

#[test]
fn an_edit_needs_room_and_does_not_split_opaque_blocks() {
    let mut bench = Bench::new(&config(vec![opaque(4, 64)], 6));
    let tokens = prompt(1, 14);
    let (_, sequence) = bench.start(&ask(&tokens), &tokens);
    bench.turn();
    let edit = |offset, tokens| change(sequence, Change::Edit { offset, tokens });
    bench.bad(&edit(4, 3), Status::Unsupported);
    bench.bad(&edit(3, 4), Status::Unsupported);
    let before = bench.statistics();
    let result = bench.apply(&edit(0, 4));
    assert_eq!((result.status, result.blocks_missing), (Status::OutOfBlocks, 1));
    assert_eq!(counts(&before), counts(&bench.statistics()));
    assert_eq!(bench.good(&edit(4, 4)).blocks_added, 2);
    bench.upload();
    bench.done();
}

#[test]
fn a_preempted_sequence_that_keeps_its_blocks_waits_for_its_resume() {
    let mut bench = Bench::simple(4, 16);
    let tokens = prompt(1, 8);
    let (_, sequence) = bench.start(&ask(&tokens), &tokens);
    bench.turn();
    let resume = |lease, tokens| change(sequence, Change::Resume { lease, tokens, lookahead: 0 });
    bench.bad(&resume(None, 1), Status::WrongState);
    bench.begin();
    bench.good(&change(sequence, Change::Preempt { mode: PreemptMode::Keep }));
    let append = Op::Append { target: super::change::id(sequence), tokens: 1, lookahead: 0 };
    bench.bad(&append, Status::WrongState);
    bench.begin();
    bench.bad(&commit(sequence, &[], &[]), Status::WrongState);
    bench.done();
    bench.begin();
    for what in [Change::Fork { tokens: 0, row: -1 }, Change::Accept, Change::Edit { offset: 0, tokens: 1 }] {
        bench.bad(&change(sequence, what), Status::WrongState);
        drop(bench.cache.step(bench.step).unwrap());
    }
    bench.done();
    bench.begin();
    assert_eq!(bench.statistics().used_blocks, 2);
    bench.bad(&resume(Some(Id(7)), 1), Status::InvalidArgument);
    bench.bad(&resume(None, 2000), Status::InvalidArgument);
    assert_eq!(bench.good(&resume(None, 1)).blocks_added, 1);
    bench.commit(sequence, &[5]);
    bench.free(sequence);
    bench.done();
}

#[test]
fn a_preempted_sequence_that_drops_its_blocks_resumes_from_what_is_found() {
    let mut bench = Bench::simple(4, 16);
    let tokens = prompt(1, 10);
    let (_, sequence) = bench.start(&ask(&tokens), &tokens);
    bench.turn();
    bench.good(&change(sequence, Change::Preempt { mode: PreemptMode::Drop }));
    let s = bench.statistics();
    assert_eq!((s.used_blocks, s.used_tokens, s.used_slots, s.sequences), (0, 0, 0, 1));
    bench.turn();
    let resume = |lease| change(sequence, Change::Resume { lease, tokens: 2, lookahead: 0 });
    bench.bad(&resume(None), Status::InvalidArgument);
    bench.begin();
    let elsewhere = bench.look(&kavern::cache::Request { namespace_id: 2, ..ask(&tokens) });
    bench.bad(&resume(Some(elsewhere.lease)), Status::InvalidArgument);
    bench.release(elsewhere.lease);
    bench.done();
    bench.begin();
    let hit = bench.look(&ask(&tokens));
    assert_eq!(hit.tokens, 8);
    let resumed = bench.good(&resume(Some(hit.lease)));
    assert_eq!((resumed.sequence, resumed.blocks_added), (sequence, 1));
    bench.commit(sequence, &tokens[8..]);
    assert_eq!((bench.statistics().used_tokens, bench.statistics().leases), (10, 0));
    bench.free(sequence);
    bench.done();
    assert_eq!(bench.hits(&ask(&tokens)), 8);
}

#[test]
fn a_sequence_that_stores_nothing_does_not_store_after_a_resume_either() {
    let mut bench = Bench::simple(4, 32);
    let tokens = prompt(1, 10);
    let drop = |sequence| change(sequence, Change::Preempt { mode: PreemptMode::Drop });
    let request = kavern::cache::Request { no_store: true, ..ask(&tokens) };
    let (_, sequence) = bench.start(&request, &tokens);
    bench.turn();
    let child = bench.fork(sequence, 0);
    for sequence in [sequence, child, sequence] {
        bench.good(&drop(sequence));
        let lease = Some(bench.look(&ask(&tokens)).lease);
        bench.good(&change(sequence, Change::Resume { lease, tokens: 10, lookahead: 0 }));
        assert_eq!(bench.commit(sequence, &tokens).blocks_committed, 0);
        bench.turn();
    }
    // What an edit made of a sequence goes with its blocks: computed anew its tokens are what their ids say.
    let (_, edited) = bench.start(&ask(&tokens), &tokens[..8]);
    bench.turn();
    bench.good(&change(edited, Change::Edit { offset: 0, tokens: 8 }));
    bench.turn();
    bench.good(&drop(edited));
    let hit = bench.look(&ask(&prompt(2, 8)));
    bench.good(&change(edited, Change::Resume { lease: Some(hit.lease), tokens: 8, lookahead: 0 }));
    assert_eq!(bench.commit(edited, &prompt(2, 8)).blocks_committed, 2);
    // A resume may ask for it too.
    bench.turn();
    bench.good(&drop(edited));
    let other = prompt(3, 8);
    let lease = Some(bench.look(&kavern::cache::Request { no_store: true, ..ask(&other) }).lease);
    bench.good(&change(edited, Change::Resume { lease, tokens: 8, lookahead: 0 }));
    assert_eq!(bench.commit(edited, &other).blocks_committed, 0);
}

#[test]
fn a_sequence_dropped_in_the_step_that_scheduled_it_leaves_the_batch() {
    let mut bench = Bench::simple(4, 16);
    let tokens = prompt(1, 10);
    let (_, sequence) = bench.start(&ask(&tokens), &tokens);
    bench.good(&change(sequence, Change::Preempt { mode: PreemptMode::Drop }));
    assert_eq!(bench.statistics().indexed_blocks, 0);
    let rows = |bench: &Bench| {
        bench.cache.tables(bench.step, bench.stream, |t| Ok(t.batch_rows()?.to_vec())).unwrap()
    };
    assert_eq!(rows(&bench), [0i32; 0]);
    let hit = bench.look(&ask(&tokens));
    bench.good(&change(sequence, Change::Resume { lease: Some(hit.lease), tokens: 10, lookahead: 0 }));
    assert_eq!(rows(&bench), [0]);
    bench.free(sequence);
    bench.done();
}

#[test]
fn operations_that_depend_on_a_refused_one_are_refused_too() {
    let mut bench = Bench::simple(4, 16);
    let tokens = prompt(1, 8);
    let (_, sequence) = bench.start(&ask(&tokens), &tokens);
    bench.turn();
    let mut session = bench.cache.step(bench.step).unwrap();
    let status = |session: &mut kavern::cache::StepSession<'_>, op: &Op<'_>| session.apply(op).status;
    let bad_fork = change(sequence, Change::Fork { tokens: 99, row: -1 });
    assert_eq!(status(&mut session, &bad_fork), Status::InvalidArgument);
    let append = Op::Append { target: super::change::id(sequence), tokens: 1, lookahead: 0 };
    assert_eq!(status(&mut session, &append), Status::Ok, "a fork leaves its parent alone");
    assert_eq!(status(&mut session, &rollback(sequence, 99, 0)), Status::InvalidArgument);
    assert_eq!(status(&mut session, &append), Status::Dependency);
    let fork = change(sequence, Change::Fork { tokens: 0, row: -1 });
    assert_eq!(status(&mut session, &fork), Status::Dependency);
    let cancel = change(sequence, Change::Cancel);
    assert_eq!(status(&mut session, &cancel), Status::Ok, "it can end nevertheless");
    drop(session);
    bench.done();
}

#[test]
fn blocks_let_go_by_a_rollback_wait_for_the_steps_of_all_their_holders() {
    let mut bench = Bench::simple(4, 16);
    let tokens = prompt(1, 12);
    let (_, parent) = bench.start(&ask(&tokens), &tokens);
    bench.turn();
    let child = bench.fork(parent, 0);
    bench.append(child, 1);
    bench.upload();
    // The child's step runs and reads what it shares; its parent, idle, is the last holder.
    bench.free(child);
    bench.good(&rollback(parent, 4, 0));
    assert_eq!(bench.statistics().deferred_blocks, 3);
    bench.free(parent);
    assert_eq!(bench.statistics().deferred_blocks, 4);
    bench.done();
    assert_eq!((bench.statistics().deferred_blocks, bench.statistics().inactive_blocks), (0, 3));
}

#[test]
fn two_sequences_that_share_an_open_block_may_both_tell_its_tokens() {
    for hash in [HashKind::Blake3, HashKind::Xxh3] {
        let base = config(vec![group(4)], 16);
        let mut bench = Bench::new(&kavern::cache::CacheConfig { hash, ..base });
        let tokens = prompt(1, 8);
        let lease = bench.look(&ask(&tokens)).lease;
        let parent = bench.admit(lease, 8).sequence;
        bench.commit(parent, &tokens[..5]);
        bench.turn();
        let (child, liar) = (bench.fork(parent, 0), bench.fork(parent, 0));
        assert_eq!(bench.commit(child, &tokens[5..]).blocks_committed, 1);
        assert_eq!(bench.commit(parent, &tokens[5..]).blocks_committed, 0);
        bench.commit(liar, &[7, 7, 7]);
        for sequence in [parent, child, liar] {
            bench.append(sequence, 4);
        }
        assert_eq!(bench.commit(liar, &prompt(9, 4)).blocks_committed, 0);
        assert_eq!(bench.commit(child, &prompt(2, 4)).blocks_committed, 1);
        assert_eq!(bench.commit(parent, &prompt(3, 4)).blocks_committed, 1);
        bench.turn();
        assert_eq!(bench.hits(&ask(&[&tokens[..], &prompt(2, 4)].concat())), 12);
        assert_eq!(bench.hits(&ask(&[&tokens[..], &prompt(3, 4)].concat())), 12);
        bench.done();
    }
}

#[test]
fn a_child_waits_for_no_step_of_the_sequence_whose_row_it_got() {
    let mut bench = Bench::simple(4, 16);
    let (short, long) = (prompt(2, 4), prompt(1, 8));
    bench.begin();
    let lease = bench.look(&ask(&short)).lease;
    let before = bench.admit(lease, 4);
    let (_, parent) = bench.start(&ask(&long), &long);
    bench.turn();
    bench.append(before.sequence, 1);
    let sibling = bench.fork(parent, 0);
    bench.free(before.sequence);
    // It shares a part of what the others share.
    let child = bench.good(&change(parent, Change::Fork { tokens: 4, row: before.row }));
    assert_eq!(child.row, before.row);
    let waiting = bench.statistics().deferred_blocks;
    [child.sequence, sibling, parent].into_iter().for_each(|sequence| bench.free(sequence));
    assert_eq!(bench.statistics().deferred_blocks, waiting, "the step that computed them is over");
    bench.done();
}

#[test]
fn a_copy_that_takes_the_place_of_its_source_holds_no_more_than_before() {
    let mut bench = Bench::simple(4, 16);
    let tokens = prompt(1, 8);
    bench.begin();
    let (_, sequence) = bench.start(&ask(&tokens), &tokens);
    bench.turn();
    bench.good(&rollback(sequence, 6, 0));
    bench.cache.limit_namespace(1, 2, kavern::cache::NO_LIMIT).unwrap();
    // The open block is findable, so it is copied; nobody else holds it.
    bench.append(sequence, 1);
    assert_eq!(bench.cache.namespace_statistics(1).held_blocks, 2);
    bench
        .bad(&Op::Append { target: Target::Id(Id(sequence)), tokens: 2, lookahead: 0 }, Status::LimitReached);
    bench.turn();
    bench.done();
}

#[test]
fn an_edit_does_not_copy_what_another_sequence_of_the_step_is_yet_to_write() {
    let mut bench = Bench::simple(4, 32);
    let tokens = prompt(1, 12);
    bench.begin();
    let (_, writer) = bench.start(&ask(&tokens), &tokens);
    let hit = bench.look(&ask(&tokens));
    assert_eq!(hit.tokens, 12, "published, though its bytes come with the step's work");
    let sequence = bench.admit(hit.lease, 0).sequence;
    let edit = |sequence, offset| Op::Change {
        target: Target::Id(Id(sequence)),
        change: Change::Edit { offset, tokens: 2 },
    };
    let before = counts(&bench.statistics());
    assert_eq!(bench.apply(&edit(sequence, 3)).status, Status::WrongState);
    assert_eq!(counts(&bench.statistics()), before);
    bench.upload();
    bench.done();
    // A step later the bytes are there.
    bench.begin();
    bench.good(&edit(sequence, 3));
    bench.free(writer);
    bench.upload();
    bench.done();
}

/// A sequence of 8 tokens that were written before the open step and 4 that are not, all findable, and one that found
/// them all.
fn half_written(bench: &mut Bench) -> u64 {
    let tokens = prompt(1, 12);
    bench.begin();
    let lease = bench.look(&ask(&tokens)).lease;
    let writer = bench.admit(lease, 8).sequence;
    bench.turn();
    bench.append(writer, 4);
    assert_eq!(bench.commit(writer, &tokens).blocks_committed, 3);
    let hit = bench.look(&ask(&tokens));
    assert_eq!(hit.tokens, 12);
    bench.admit(hit.lease, 0).sequence
}

#[test]
fn an_edit_of_what_was_published_late_is_refused_for_the_blocks_alone_that_are_not_written() {
    let edit = |sequence, offset, tokens| change(sequence, Change::Edit { offset, tokens });
    for (offset, tokens, is_early) in
        [(3, 2, true), (5, 6, true), (2, 9, true), (2, 10, false), (8, 4, false)]
    {
        let mut bench = Bench::simple(4, 32);
        let sequence = half_written(&mut bench);
        let before = counts(&bench.statistics());
        let result = bench.apply(&edit(sequence, offset, tokens));
        match is_early {
            true => {
                assert_eq!((result.status, result.group), (Status::WrongState, 0), "{offset} {tokens}");
                assert_eq!(counts(&bench.statistics()), before);
            }
            false => assert_eq!(result.status, Status::Ok, "{offset} {tokens}: the rest was written before"),
        }
        bench.turn();
        bench.done();
    }
}

#[test]
fn an_append_does_not_copy_what_another_sequence_of_the_step_is_yet_to_write() {
    let append = |sequence, tokens| Op::Append { target: super::change::id(sequence), tokens, lookahead: 0 };
    let mut bench = Bench::simple(4, 32);
    let sequence = half_written(&mut bench);
    bench.good(&rollback(sequence, 10, 0));
    let child = bench.fork(sequence, 9);
    let before = counts(&bench.statistics());
    for row in [sequence, child] {
        assert_eq!(bench.apply(&append(row, 1)).status, Status::WrongState);
        assert_eq!(counts(&bench.statistics()), before);
        bench.good(&append(row, 0));
    }
    // One that goes back to what was written, and a step later all of them.
    let other = bench.fork(sequence, 7);
    bench.good(&append(other, 1));
    bench.turn();
    [sequence, child].into_iter().for_each(|row| _ = bench.good(&append(row, 1)));
    bench.turn();
    bench.done();
}
