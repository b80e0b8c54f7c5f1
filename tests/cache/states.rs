//! Groups of recurrent state and of other inputs: snapshots, what a step reads and writes, what is found by which name.

use kavern::cache::{
    CacheConfig, Change, Extra, HashKind, Op, OpResult, PreemptMode, Reach, Request, Target,
};
use kavern::error::Status;
use kavern::types::Id;

use super::bench::{Bench, ask, ask_keys, ask_with, commit, commit_keys, config, group, lookup, prompt};
use super::groups::{cells, cross, decode, reaching, state};

#[test]
fn a_state_is_read_from_its_snapshot_and_written_to_a_block_of_its_own() {
    let mut bench = Bench::new(&config(vec![group(4), state(0, 4)], 32));
    let tokens = prompt(1, 17);
    bench.begin();
    let (_, sequence) = bench.start(&ask(&tokens[..7]), &tokens[..7]);
    let [first, none] = cells(&bench, 1, 2)[..] else { panic!("two cells") };
    assert_eq!(none, -1, "a sequence begins with nothing");
    bench.done();
    decode(&mut bench, sequence, tokens[7]);
    bench.begin();
    assert_eq!(cells(&bench, 1, 2), [first, -1], "updated in place");
    bench.append(sequence, 1);
    let [second, start] = cells(&bench, 1, 2)[..] else { panic!("two cells") };
    assert_eq!(start, first, "the state after 8 tokens became findable and stays as it is");
    bench.commit(sequence, &tokens[8..9]);
    let hit = bench.look(&ask(&tokens));
    assert_eq!((hit.tokens, hit.blocks.as_slice().last()), (8, Some(&first)), "from a running sequence");
    bench.done();
    decode(&mut bench, sequence, tokens[9]);
    assert_eq!(bench.statistics().used_blocks, 3 + 2, "the old start is held by the lease alone");
    bench.begin();
    assert_eq!(cells(&bench, 1, 2), [second, -1]);
    bench.free(sequence);
    let other =
        bench.good(&Op::Admit { lease: hit.lease, tokens: 5, lookahead: 0, row: 0, expected_tokens: 0 });
    assert_eq!(cells(&bench, 1, 2)[1], first);
    assert_ne!(cells(&bench, 1, 2)[0], first, "nobody writes into a snapshot");
    bench.done();
    decode(&mut bench, other.sequence, 5);
    let before = bench.statistics();
    bench.begin();
    bench.free(other.sequence);
    bench.done();
    assert_eq!((before.held_tokens, before.used_slots), (14, 16), "a state has no slots");
    assert_eq!(bench.hits(&ask(&tokens)), 8);
    // Another sequence goes from 8 to 16 in one step: the next snapshot lies there.
    bench.begin();
    let hit = bench.look(&ask(&tokens[..16]));
    let last = bench.admit(hit.lease, 8).sequence;
    bench.commit(last, &tokens[8..16]);
    let late = bench.apply(&Op::Append { target: Target::Id(Id(last)), tokens: 1, lookahead: 0 });
    assert_eq!(late.status, Status::WrongState, "the step's state is that of token 16 and findable");
    bench.done();
    decode(&mut bench, last, tokens[16]);
    assert_eq!(bench.hits(&ask(&tokens)), 16);
    assert_eq!(bench.hits(&ask(&tokens[..15])), 8, "no snapshot was taken at 12");
}

#[test]
fn snapshots_every_so_many_blocks_do_not_widen_the_blocks_of_other_groups() {
    for hash in [HashKind::Blake3, HashKind::Xxh3] {
        let mut bench = Bench::new(&CacheConfig { hash, ..config(vec![group(4), state(3, 4)], 64) });
        let tokens = prompt(1, 40);
        bench.begin();
        let (_, sequence) = bench.start(&ask(&tokens[..12]), &tokens[..12]);
        bench.done();
        tokens[12..].iter().for_each(|&token| decode(&mut bench, sequence, token));
        for (length, hit) in [(11, 0), (12, 12), (23, 12), (24, 24), (35, 24), (40, 36)] {
            let found = bench.look(&ask(&tokens[..length]));
            assert_eq!(found.tokens, hit, "{length} tokens");
            assert_eq!(found.blocks.len() as u64, hit / 4 + u64::from(hit > 0));
            bench.release(found.lease);
        }
        bench.begin();
        bench.free(sequence);
        bench.done();
        // One snapshot is as good as all: the rest may be evicted, and a hit ends at it.
        let kept = bench.look(&ask(&tokens[..24]));
        while bench.cache.evict(1, 1).unwrap() > 0 {}
        assert_eq!(bench.hits(&ask(&tokens)), 24, "{hash:?}");
        bench.release(kept.lease);
        let other = CacheConfig { hash, ..config(vec![state(1, 4)], 4) };
        assert_eq!(kvcache_is_refused(&other), hash == HashKind::Xxh3, "nothing proves a lone state");
    }
}

fn kvcache_is_refused(config: &CacheConfig) -> bool {
    let bench = Bench::simple(4, 1);
    kavern::cache::KvCache::new(&bench.memory, config).is_err()
}

/// Whether a running sequence holds it, or nobody does.
#[test]
fn a_state_that_the_open_step_writes_is_found_when_the_step_is_over() {
    let tokens = prompt(1, 9);
    for is_freed in [false, true] {
        let mut bench = Bench::new(&config(vec![group(4), state(0, 4)], 32));
        bench.begin();
        let lease = bench.look(&ask(&tokens)).lease;
        let sequence = bench.admit(lease, 8).sequence;
        bench.commit(sequence, &tokens[..8]);
        let target = Target::Id(Id(sequence));
        let fork = Op::Change { target, change: Change::Fork { tokens: 8, row: -1 } };
        assert_eq!(bench.apply(&fork).status, Status::WrongState, "a child would start from it too");
        if is_freed {
            bench.free(sequence);
        }
        let early = bench.look(&ask(&tokens));
        assert_eq!(early.tokens, 0, "its bytes are not there; freed: {is_freed}");
        bench.release(early.lease);
        bench.done();
        bench.begin();
        let late = bench.look(&ask(&tokens));
        assert_eq!(late.tokens, 8, "freed: {is_freed}");
        bench.release(late.lease);
        bench.done();
    }
}

#[test]
fn a_commit_after_the_next_append_still_publishes_the_snapshot() {
    let mut bench = Bench::new(&config(vec![state(1, 4)], 8));
    let tokens = prompt(1, 9);
    let lease = bench.look(&ask(&tokens)).lease;
    bench.begin();
    let sequence = bench.admit(lease, 4).sequence;
    bench.done();
    bench.begin();
    bench.append(sequence, 1);
    assert_eq!(bench.commit(sequence, &tokens[..4]).blocks_committed, 1);
    bench.done();
    assert_eq!(bench.hits(&ask(&tokens)), 4);
    bench.begin();
    bench.append(sequence, 3);
    bench.done();
    bench.begin();
    bench.append(sequence, 1);
    bench.done();
    bench.begin();
    bench.append(sequence, 1);
    assert_eq!(bench.commit(sequence, &tokens[4..9]).blocks_committed, 0, "the state after 8 was let go");
    bench.done();
    assert_eq!(bench.statistics().used_blocks, 1);
}

#[test]
fn states_that_do_not_fit_are_refused_and_change_nothing() {
    let mut bench = Bench::new(&config(vec![state(1, 4)], 2));
    let tokens = prompt(1, 4);
    let leases = [0, 1, 2].map(|_| bench.look(&ask(&[])).lease);
    bench.begin();
    let first = bench.admit(leases[0], 4).sequence;
    bench.commit(first, &tokens);
    let second = bench.admit(leases[1], 4).sequence;
    let op = Op::Admit { lease: leases[2], tokens: 1, lookahead: 0, row: -1, expected_tokens: 0 };
    let result = bench.apply(&op);
    assert_eq!((result.status, result.blocks_missing), (Status::OutOfBlocks, 1));
    bench.done();
    bench.begin();
    let op = Op::Append { target: Target::Id(Id(first)), tokens: 1, lookahead: 0 };
    assert_eq!(bench.apply(&op).status, Status::OutOfBlocks, "its state is findable and must stay");
    assert_eq!(bench.statistics().used_tokens, 8);
    bench.free(second);
    bench.done();
    bench.begin();
    assert_eq!(bench.good(&op).blocks_added, 1);
    bench.done();
    bench.begin();
    assert_eq!(bench.append(first, 1).blocks_added, 0);
    bench.done();
}

fn image(id: u8) -> [Extra; 1] {
    [Extra { id: [id; 32], token_offset: 0 }]
}

#[test]
fn another_input_is_taken_whole_and_found_by_its_own_name() {
    for hash in [HashKind::Blake3, HashKind::Xxh3] {
        let groups = vec![group(4), cross(10, 4)];
        let mut bench = Bench::new(&CacheConfig { hash, ..config(groups, 32) });
        let (audio, other) = (image(1), image(2));
        let tokens = prompt(1, 9);
        let request = ask_with(&tokens, &audio);
        bench.begin();
        let hit = bench.look(&request);
        assert_eq!(hit.tokens, 0);
        let admitted = bench.admit(hit.lease, 9);
        assert_eq!(admitted.blocks_added, 3 + 3);
        let input = cells(&bench, 1, 3);
        assert_eq!(bench.good(&commit(admitted.sequence, &tokens, &audio)).blocks_committed, 2 + 3);
        bench.done();
        bench.begin();
        assert_eq!(bench.append(admitted.sequence, 5).blocks_added, 1, "the other input does not grow");
        let now = bench.statistics();
        assert_eq!((now.held_tokens, now.used_slots), (14 + 10, 16 + 12));
        bench.done();
        let found = |request: &Request<'_>| {
            let mut lookups = bench.cache.lookups();
            let found = lookups.find(request).unwrap();
            let blocks: Vec<i32> = lookups.blocks(found.lease).unwrap().collect();
            (found.lease, found.hit_tokens, found.cross_groups, blocks)
        };
        let (lease, hit, groups, blocks) = found(&request);
        assert_eq!((hit, groups, &blocks[2..]), (8, 2, &input[..]));
        // Another text about the same input: its encoder need not run.
        let text = prompt(2, 5);
        let (text_lease, hit, groups, blocks) = found(&ask_with(&text, &audio));
        assert_eq!((hit, groups, blocks.as_slice()), (0, 2, &input[..]));
        assert_eq!(found(&ask_with(&tokens, &other)).2, 0);
        assert_eq!(found(&ask(&text)).2, 0, "an input without a name is private");
        bench.begin();
        let second = bench.admit(text_lease, 5);
        assert_eq!(second.blocks_added, 2);
        assert_eq!(bench.good(&commit(second.sequence, &text, &audio)).blocks_committed, 1);
        bench.release(lease);
        bench.free(admitted.sequence);
        bench.free(second.sequence);
        bench.done();
        // A hit needs the whole input.
        assert_eq!(bench.cache.evict(1, 1).unwrap(), 1);
        let (lease, hit, groups, blocks) = {
            let hit = lookup(&bench.cache, &request).unwrap();
            (hit.lease, hit.tokens, 0, hit.blocks)
        };
        assert_eq!((hit, groups, blocks.len()), (0, 0, 0));
        bench.release(lease);
    }
}

#[test]
fn another_input_under_keys_goes_by_the_first_key() {
    let mut bench = Bench::new(&config(vec![group(4), cross(8, 4)], 32));
    let keys: Vec<u8> = (0..64).collect();
    bench.begin();
    let hit = bench.look(&ask_keys(&keys, 32, 4));
    let sequence = bench.admit(hit.lease, 8).sequence;
    assert_eq!(bench.good(&commit_keys(sequence, 8, &keys, 32)).blocks_committed, 2 + 2);
    bench.done();
    let hit = bench.look(&ask_keys(&keys, 32, 4));
    assert_eq!((hit.tokens, hit.blocks.len()), (8, 4));
    let mut other = keys.clone();
    other[0] += 1;
    let miss = bench.look(&ask_keys(&other, 32, 4));
    assert_eq!(miss.blocks.len(), 0);
    bench.release(hit.lease);
    bench.release(miss.lease);
}

fn change(bench: &mut Bench, sequence: u64, change: Change<'_>) -> OpResult {
    bench.apply(&Op::Change { target: Target::Id(Id(sequence)), change })
}

fn rollback(bench: &mut Bench, sequence: u64, tokens: u64) -> Status {
    let back = Change::Rollback { tokens, lookahead: 0, open_tokens: &[], extras: &[] };
    change(bench, sequence, back).status
}

#[test]
fn a_window_goes_back_as_far_as_it_holds_and_a_sequence_goes_on_without_its_blocks() {
    let windows = reaching(Reach::Sliding { window_tokens: 8 }, group(4));
    let mut bench = Bench::new(&config(vec![group(4), windows, cross(6, 4)], 32));
    let tokens = prompt(1, 30);
    bench.begin();
    let (_, sequence) = bench.start(&ask(&tokens[..20]), &tokens[..20]);
    bench.done();
    bench.begin();
    // Five tokens to verify, of which two are right.
    bench.append(sequence, 5);
    let held = bench.statistics();
    assert_eq!(rollback(&mut bench, sequence, 22), Status::Ok);
    bench.commit(sequence, &tokens[20..22]);
    let now = bench.statistics();
    assert_eq!((held.used_tokens - now.used_tokens, held.used_blocks - now.used_blocks), (3, 2));
    assert_eq!(now.held_tokens, 22 + (22 - 12) + 6);
    bench.done();
    bench.begin();
    bench.append(sequence, 8);
    bench.done();
    bench.begin();
    bench.append(sequence, 1);
    assert_eq!(rollback(&mut bench, sequence, 22), Status::WrongState, "token 15 was let go");
    assert_eq!(rollback(&mut bench, sequence, 30), Status::Ok);
    bench.done();
    bench.begin();
    assert_eq!(change(&mut bench, sequence, Change::Preempt { mode: PreemptMode::Keep }).status, Status::Ok);
    let resume = |lease, tokens| Change::Resume { lease, tokens, lookahead: 0 };
    assert_eq!(change(&mut bench, sequence, resume(None, 1)).status, Status::Ok);
    bench.done();
    bench.begin();
    assert_eq!(change(&mut bench, sequence, Change::Preempt { mode: PreemptMode::Drop }).status, Status::Ok);
    assert_eq!((bench.statistics().used_blocks, bench.statistics().used_slots), (0, 0));
    bench.done();
    let hit = bench.look(&ask(&tokens));
    bench.begin();
    assert_eq!(hit.tokens, 0, "its other input has no name");
    assert_eq!(change(&mut bench, sequence, resume(Some(hit.lease), 30)).blocks_added, 8 + 8 + 2);
    bench.done();
    bench.begin();
    assert_eq!(change(&mut bench, sequence, Change::Cancel).status, Status::Ok);
    bench.done();
    assert_eq!(bench.statistics().held_tokens, 0);
}
