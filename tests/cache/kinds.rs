//! Forks, acceptance, going back, withdrawal and edits in caches whose groups need different parts of the past.

use kavern::cache::{CacheConfig, Change, Extra, HashKind, OpResult, PreemptMode, Reach};
use kavern::error::Status;

use super::bench::{Bench, ask, ask_with, commit, config, group, prompt};
use super::change::{change, tape};
use super::groups::{cells, cross, decode, reaching, state};

fn fork(bench: &mut Bench, sequence: u64, tokens: u64) -> OpResult {
    bench.apply(&change(sequence, Change::Fork { tokens, row: -1 }))
}

fn back(bench: &mut Bench, sequence: u64, tokens: u64) -> OpResult {
    bench.apply(&change(sequence, Change::Rollback { tokens, lookahead: 0, open_tokens: &[], extras: &[] }))
}

fn append(bench: &mut Bench, sequence: u64, tokens: u64, lookahead: u32) -> OpResult {
    let target = super::change::id(sequence);
    bench.apply(&kavern::cache::Op::Append { target, tokens, lookahead })
}

/// The first cells of a row.
fn row(bench: &Bench, group: u32, row: i32, count: usize) -> Vec<i32> {
    let each = bench.cache.describe(group).unwrap().block_tokens as usize;
    tape::row(bench, group, row as usize, count * each)
}

fn windows() -> kavern::cache::GroupConfig {
    reaching(Reach::Sliding { window_tokens: 8 }, group(4))
}

#[test]
fn a_fork_holds_what_its_window_reaches_and_copies_only_the_open_block() {
    let mut bench = Bench::new(&config(vec![group(4), windows()], 32));
    let tokens = prompt(1, 22);
    bench.begin();
    let (_, parent) = bench.start(&ask(&tokens), &tokens);
    bench.done();
    bench.begin();
    let before = bench.statistics();
    let child = fork(&mut bench, parent, 0);
    assert_eq!((child.status, child.row), (Status::Ok, 1));
    assert_eq!(bench.statistics().used_blocks, before.used_blocks, "nothing is copied by a fork");
    let (all, seen) = (row(&bench, 1, 0, 6), row(&bench, 1, 1, 6));
    assert_eq!(seen[..3], [32; 3], "tokens 0 to 14 are out of reach");
    assert_eq!(seen[3..], all[3..]);
    let numbers = [0, 1].map(|group| {
        tape::write(&bench, group, &row(&bench, group, 0, 6), 22, 100);
        row(&bench, group, 1, 6)
    });
    assert_eq!(append(&mut bench, child.sequence, 1, 0).blocks_added, 2, "a copy in each group");
    bench.append(parent, 1);
    bench.upload();
    for (group, old) in (0..).zip(&numbers) {
        let new = row(&bench, group, 1, 6);
        assert_eq!((&new[..5], new[5] != old[5]), (&old[..5], true));
        let bytes = bench.cache.describe(group).unwrap().block_bytes;
        let read = |block: i32| bench.bytes(bench.block(group, block).address(), bytes)[..16].to_vec();
        assert_eq!(read(new[5]), read(old[5]), "tokens 20 and 21");
    }
    bench.done();
    // Held blocks are shared: what one lets go stays with the other.
    for token in 0..12 {
        decode(&mut bench, parent, token);
    }
    assert_eq!(row_of_next_step(&mut bench, 1), numbers[1][3..5]);
    assert_eq!(fork(&mut bench, parent, 16).status, Status::WrongState, "the parent's window has moved on");
    assert_eq!(fork(&mut bench, parent, 16).group, 1, "the group that lacks it");
    bench.free(parent);
    bench.free(child.sequence);
    bench.done();
    assert_eq!((bench.statistics().used_blocks, bench.statistics().held_tokens), (0, 0));
}

/// Cells 3 and 4 of a row of the window, in a new step.
fn row_of_next_step(bench: &mut Bench, at: i32) -> Vec<i32> {
    bench.begin();
    row(bench, 1, at, 5)[3..].to_vec()
}

#[test]
fn forks_of_a_state_start_from_the_same_block_and_write_to_their_own() {
    let mut bench = Bench::new(&config(vec![group(4), state(2, 4)], 6));
    let lease = bench.look(&ask(&[])).lease;
    bench.begin();
    let parent = bench.admit(lease, 6).sequence;
    assert_eq!(fork(&mut bench, parent, 0).status, Status::WrongState, "the open step computes it");
    bench.done();
    bench.begin();
    let [shared, none] = cells(&bench, 1, 2)[..] else { panic!("two cells") };
    assert_eq!(none, -1);
    let children = [0, 1].map(|_| fork(&mut bench, parent, 0));
    assert_eq!(bench.statistics().used_blocks, 2 + 1);
    for child in children {
        assert_eq!(append(&mut bench, child.sequence, 1, 0).blocks_added, 1 + 1);
        let [own, start] = row(&bench, 1, child.row, 2)[..] else { panic!("two cells") };
        assert_eq!((start, own != shared), (shared, true));
    }
    assert_eq!(bench.statistics().copied_tokens, 2 + 2, "no state is copied");
    assert_eq!(append(&mut bench, parent, 1, 0).status, Status::Ok);
    assert_eq!(cells(&bench, 1, 2)[1], shared, "nobody writes what others start from");
    bench.done();
    bench.begin();
    assert_eq!(fork(&mut bench, parent, 3).status, Status::WrongState, "there is no state after 3 tokens");
    assert_eq!(fork(&mut bench, parent, 6).status, Status::Ok, "the step before started there");
    bench.done();
    bench.begin();
    let refused = append(&mut bench, parent, 6, 0);
    assert_eq!((refused.status, refused.blocks_missing, refused.group), (Status::OutOfBlocks, 1, 0));
    let accepted = bench.apply(&change(children[1].sequence, Change::Accept));
    assert_eq!((accepted.status, accepted.sequence), (Status::Ok, parent));
    assert_eq!((bench.statistics().sequences, bench.statistics().used_tokens), (1, 7));
    bench.append(parent, 1);
    bench.done();
}

#[test]
fn an_accepted_child_hands_over_its_window_and_its_state() {
    let mut bench = Bench::new(&config(vec![group(4), windows(), state(1, 4), cross(5, 4)], 32));
    let tokens = prompt(1, 20);
    let image = [Extra { id: [1; 32], token_offset: 0 }];
    let hit = bench.look(&ask_with(&tokens, &image));
    bench.begin();
    let parent = bench.admit(hit.lease, 18).sequence;
    bench.good(&commit(parent, &tokens[..18], &image));
    bench.done();
    bench.begin();
    let child = fork(&mut bench, parent, 0);
    append(&mut bench, child.sequence, 4, 0);
    bench.upload();
    bench.done();
    decode(&mut bench, child.sequence, 1);
    bench.begin();
    let of_child = [0, 1, 2, 3].map(|group| row(&bench, group, child.row, 2));
    let held = bench.statistics();
    bench.good(&change(child.sequence, Change::Accept));
    assert_eq!([0, 1, 2, 3].map(|group| row(&bench, group, 0, 2)), of_child);
    let now = bench.statistics();
    assert_eq!((held.used_tokens, now.used_tokens, now.held_tokens), (18 + 23, 23, 23 + (23 - 12) + 5));
    bench.append(parent, 1);
    bench.done();
    assert_eq!(
        bench.hits(&ask_with(&tokens, &image)),
        0,
        "no snapshot lies where all groups have their part"
    );
}

#[test]
fn cancel_and_a_preemption_that_drops_withdraw_what_nobody_will_write() {
    for how in [Change::Cancel, Change::Preempt { mode: PreemptMode::Drop }] {
        for hash in [HashKind::Blake3, HashKind::Xxh3] {
            let groups = vec![group(4), windows(), state(0, 4), cross(6, 4)];
            let mut bench = Bench::new(&CacheConfig { hash, event_capacity: 64, ..config(groups, 32) });
            let tokens = prompt(1, 16);
            let image = [Extra { id: [1; 32], token_offset: 0 }];
            let request = ask_with(&tokens, &image);
            bench.begin();
            let hit = bench.look(&request);
            let sequence = bench.admit(hit.lease, 16).sequence;
            assert_eq!(bench.good(&commit(sequence, &tokens, &image)).blocks_committed, 4 + 4 + 1 + 2);
            bench.good(&change(sequence, how));
            let now = bench.statistics();
            assert_eq!((now.indexed_blocks, now.used_blocks, now.used_slots), (0, 0, 0), "{how:?}");
            bench.done();
            // What was written in a step before stays, and so does another input that somebody else wrote.
            bench.begin();
            let hit = bench.look(&request);
            let first = bench.admit(hit.lease, 16).sequence;
            bench.good(&commit(first, &tokens, &image));
            bench.upload();
            bench.good(&change(first, how));
            bench.done();
            assert_eq!(bench.statistics().indexed_blocks, 4 + 4 + 1 + 2, "its work may be under way");
            let other = prompt(2, 8);
            let hit = bench.look(&ask_with(&other, &image));
            bench.begin();
            let second = bench.admit(hit.lease, 8).sequence;
            assert_eq!(bench.good(&commit(second, &other, &image)).blocks_committed, 2 + 2 + 1);
            bench.good(&change(second, how));
            assert_eq!(bench.statistics().indexed_blocks, 4 + 4 + 1 + 2);
            bench.done();
            assert_eq!(bench.hits(&request), 16, "{how:?}");
        }
    }
}

#[test]
fn what_somebody_has_found_is_not_withdrawn() {
    let mut bench = Bench::new(&config(vec![windows(), cross(6, 4)], 32));
    let (tokens, image) = (prompt(1, 8), [Extra { id: [1; 32], token_offset: 0 }]);
    bench.begin();
    let hit = bench.look(&ask_with(&tokens, &image));
    let sequence = bench.admit(hit.lease, 8).sequence;
    bench.good(&commit(sequence, &tokens, &image));
    let found = bench.look(&ask_with(&prompt(2, 4), &image));
    assert_eq!((found.tokens, found.blocks.len()), (0, 2));
    assert_eq!(bench.apply(&change(sequence, Change::Cancel)).status, Status::InUse);
    bench.release(found.lease);
    bench.good(&change(sequence, Change::Cancel));
    bench.done();
    assert_eq!(bench.statistics().indexed_blocks, 0);
}

#[test]
fn drafts_that_were_wrong_go_and_the_state_before_them_is_there() {
    let mut bench = Bench::new(&config(vec![group(4), state(4, 4)], 16));
    let lease = bench.look(&ask(&[])).lease;
    bench.begin();
    let sequence = bench.admit(lease, 6).sequence;
    // The step is not under way: it computes one token less.
    assert_eq!(back(&mut bench, sequence, 5).status, Status::Ok);
    bench.upload();
    assert_eq!(back(&mut bench, sequence, 4).status, Status::WrongState, "now it may be");
    assert_eq!(back(&mut bench, sequence, 4).group, 1);
    bench.done();
    bench.begin();
    let before = cells(&bench, 1, 2)[0];
    // One token and four drafts; lookahead keeps what the step starts from.
    assert_eq!(append(&mut bench, sequence, 5, 4).blocks_added, 2 + 1);
    assert_eq!(cells(&bench, 1, 2)[1], before);
    bench.done();
    bench.begin();
    assert_eq!(back(&mut bench, sequence, 7).status, Status::WrongState, "a state cannot forget");
    assert_eq!(back(&mut bench, sequence, 5).status, Status::Ok);
    assert_eq!(cells(&bench, 1, 2), [before, -1]);
    append(&mut bench, sequence, 2, 0);
    assert_eq!(cells(&bench, 1, 2), [before, -1], "without lookahead it goes on in place");
    assert_eq!(back(&mut bench, sequence, 5).status, Status::WrongState, "the tables were made");
    bench.done();
    bench.begin();
    assert_eq!(back(&mut bench, sequence, 0).status, Status::Ok, "before the first token there is none");
    assert_eq!(bench.statistics().used_blocks, 0);
    assert_eq!(append(&mut bench, sequence, 3, 0).blocks_added, 1 + 1);
    bench.done();
}

#[test]
fn a_sequence_goes_back_to_a_snapshot_that_can_be_found() {
    for hash in [HashKind::Blake3, HashKind::Xxh3] {
        let mut bench = Bench::new(&CacheConfig { hash, ..config(vec![group(4), state(2, 4)], 32) });
        let tokens = prompt(1, 24);
        bench.begin();
        let (_, sequence) = bench.start(&ask(&tokens[..8]), &tokens[..8]);
        bench.done();
        tokens[8..].iter().for_each(|&token| decode(&mut bench, sequence, token));
        bench.begin();
        let snapshots = bench.statistics().indexed_blocks;
        assert_eq!(snapshots, 6 + 3);
        assert_eq!(back(&mut bench, sequence, 12).status, Status::WrongState, "no snapshot was taken at 12");
        assert_eq!(back(&mut bench, sequence, 8).status, Status::Ok, "{hash:?}");
        assert_eq!(bench.append(sequence, 4).blocks_added, 1 + 1, "what is findable is not written");
        bench.commit(sequence, &tokens[8..12]);
        bench.done();
        while bench.cache.evict(1, 1).unwrap() > 0 {}
        bench.begin();
        assert_eq!(back(&mut bench, sequence, 8).status, Status::Ok, "the one it started from is held");
        // It goes on publishing under the names of its own chain.
        let other = [&tokens[..8], &prompt(2, 8)].concat();
        bench.append(sequence, 8);
        bench.commit(sequence, &other[8..]);
        bench.done();
        assert_eq!(bench.hits(&ask(&other)), 16, "{hash:?}");
    }
}

#[test]
fn a_window_goes_back_below_what_is_committed_and_publishes_on() {
    for hash in [HashKind::Blake3, HashKind::Xxh3] {
        let mut bench = Bench::new(&CacheConfig { hash, ..config(vec![group(4), windows()], 32) });
        let tokens = prompt(1, 20);
        bench.begin();
        let (_, sequence) = bench.start(&ask(&tokens[..19]), &tokens[..19]);
        bench.done();
        bench.begin();
        let other = [&tokens[..16], &prompt(2, 8)].concat();
        assert_eq!(back(&mut bench, sequence, 16).status, Status::Ok, "the step has let nothing go");
        bench.append(sequence, 8);
        bench.commit(sequence, &other[16..]);
        bench.done();
        assert_eq!(bench.hits(&ask(&other)), 24, "{hash:?}");
        bench.begin();
        bench.append(sequence, 1);
        bench.done();
        bench.begin();
        let refused = back(&mut bench, sequence, 16);
        assert_eq!((refused.status, refused.group), (Status::WrongState, 1), "tokens 9 to 15 were let go");
        bench.done();
    }
}

#[test]
fn an_edit_moves_what_a_window_still_holds() {
    let mut bench = Bench::new(&config(vec![group(4), windows(), cross(4, 4)], 40));
    let tokens = prompt(1, 30);
    bench.begin();
    let (_, sequence) = bench.start(&ask(&tokens), &tokens);
    let input = cells(&bench, 2, 1);
    bench.done();
    decode(&mut bench, sequence, 1);
    bench.begin();
    for group in [0, 1] {
        let row = row(&bench, group, 0, 8);
        let first = if group == 0 { 0 } else { 23 };
        let all: Vec<i32> = row.iter().map(|&block| if block == 40 { 0 } else { block }).collect();
        if first == 0 {
            tape::write(&bench, group, &all, 31, 100);
        } else {
            write_from(&bench, group, &row, first..31);
        }
    }
    let edit = |offset, tokens| Change::Edit { offset, tokens };
    let refused = bench.apply(&change(sequence, edit(25, 6)));
    assert_eq!((refused.status, refused.group), (Status::WrongState, 1), "tokens 18 and 19 would be reached");
    let before = bench.statistics();
    // 31 tokens become 20; the window of token 20 begins at 13, which was 24.
    let edited = bench.apply(&change(sequence, edit(5, 11)));
    assert_eq!((edited.status, edited.blocks_added), (Status::Ok, 4 + 2));
    bench.upload();
    let (full, window) = (row(&bench, 0, 0, 5), row(&bench, 1, 0, 5));
    assert_eq!((cells(&bench, 2, 1), &window[..3]), (input, &[40; 3][..]));
    let expected: Vec<i32> =
        (0..31).filter(|token| !(5..16).contains(token)).map(|token| 100 + token).collect();
    assert_eq!(tape::read(&bench, 0, &full, 20), expected);
    assert_eq!(read_from(&bench, 1, &window, 13..20), expected[13..]);
    let now = bench.statistics();
    assert_eq!((now.used_tokens, now.held_tokens), (20, 20 + 8 + 4));
    assert_eq!(before.used_slots - now.used_slots, 12 + 4);
    assert_eq!(back(&mut bench, sequence, 19).status, Status::WrongState, "token 12 is not in the window");
    bench.append(sequence, 1);
    bench.done();
    let mut hybrid = Bench::new(&config(vec![group(4), state(1, 4)], 8));
    hybrid.begin();
    let (_, sequence) = hybrid.start(&ask(&tokens[..8]), &tokens[..8]);
    hybrid.done();
    hybrid.begin();
    let refused = hybrid.apply(&change(sequence, edit(0, 4)));
    assert_eq!((refused.status, refused.group), (Status::Unsupported, 1), "a state cannot forget");
    hybrid.done();
}

fn place(bench: &Bench, group: u32, row: &[i32], token: usize) -> [u64; 2] {
    let about = bench.cache.describe(group).unwrap();
    let first = row[token / 4] as u64 * about.block_bytes + (token % 4) as u64 * about.strides.token;
    [0, about.strides.kv].map(|half| about.base_address + first + half)
}

fn write_from(bench: &Bench, group: u32, row: &[i32], tokens: std::ops::Range<usize>) {
    for token in tokens {
        for at in place(bench, group, row, token) {
            bench.device.write(bench.slice(at, 4), &(100 + token as i32).to_le_bytes()).unwrap();
        }
    }
}

fn read_from(bench: &Bench, group: u32, row: &[i32], tokens: std::ops::Range<usize>) -> Vec<i32> {
    tokens.map(|token| bench.words(place(bench, group, row, token)[0], 1)[0]).collect()
}

#[test]
fn a_state_is_found_when_the_step_that_writes_it_is_behind() {
    let mut bench = Bench::new(&config(vec![group(4), state(1, 4)], 16));
    let tokens = prompt(1, 9);
    bench.begin();
    let (_, sequence) = bench.start(&ask(&tokens[..4]), &tokens[..4]);
    assert_eq!(bench.hits(&ask(&tokens)), 0, "both would run side by side");
    bench.done();
    assert_eq!(bench.hits(&ask(&tokens)), 4);
    bench.begin();
    bench.append(sequence, 4);
    bench.commit(sequence, &tokens[4..8]);
    assert_eq!(bench.hits(&ask(&tokens)), 4, "the state from which this step starts is there");
    bench.free(sequence);
    bench.done();
    assert_eq!(bench.hits(&ask(&tokens)), 8);
}

#[test]
fn a_child_that_tells_other_tokens_of_a_shared_block_publishes_nothing_after_it() {
    for groups in [vec![windows()], vec![state(1, 4)]] {
        let mut bench = Bench::new(&config(groups, 16));
        let (tokens, other) = (prompt(1, 8), prompt(2, 8));
        let lease = bench.look(&ask(&[])).lease;
        bench.begin();
        let parent = bench.admit(lease, 4).sequence;
        bench.done();
        bench.begin();
        let child = fork(&mut bench, parent, 0).sequence;
        assert_eq!(bench.commit(parent, &tokens[..4]).blocks_committed, 1);
        assert_eq!(bench.commit(child, &other[..4]).blocks_committed, 0);
        bench.append(child, 4);
        assert_eq!(bench.commit(child, &other[4..]).blocks_committed, 0);
        bench.append(parent, 4);
        bench.commit(parent, &tokens[4..]);
        bench.done();
        assert_eq!((bench.hits(&ask(&tokens)), bench.hits(&ask(&other))), (8, 0));
    }
}
