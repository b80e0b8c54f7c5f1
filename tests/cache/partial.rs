//! Hits that end inside a block: what is found, copied and left alone.

use kavern::cache::{CacheConfig, Extra, HashKind, Op, Request, Scrub, Target};
use kavern::error::Status;
use kavern::types::Id;

use super::bench::{Bench, ask, ask_with, commit, config, group, opaque, prompt};

fn settings(block_tokens: &[u32], hash: HashKind) -> CacheConfig {
    let groups = block_tokens.iter().map(|&tokens| group(tokens)).collect();
    CacheConfig { partial_hits: true, hash, scrub: Scrub::Always, ..config(groups, 32) }
}

/// Tokens of two prompts: the first `same` are those of `like`, the others of their own.
fn parted(like: &[i32], same: usize, count: usize) -> Vec<i32> {
    [&like[..same], &prompt(9, count)[same..]].concat()
}

#[test]
fn a_hit_ends_where_the_prompts_part_and_its_last_block_is_a_copy() {
    for hash in [HashKind::Blake3, HashKind::Xxh3] {
        let mut bench = Bench::new(&settings(&[16], hash));
        let (first, second) = (prompt(1, 48), parted(&prompt(1, 48), 27, 40));
        assert_eq!(bench.run(&ask(&first)), 0);
        // What the scrub still has to do is done first.
        bench.begin();
        bench.upload();
        bench.done();
        let hit = bench.look(&ask(&first));
        for (&block, seed) in hit.blocks.iter().zip(1u64..) {
            bench.cache.fill_pattern(bench.stream, 0, &[block], &[seed]).unwrap();
        }
        let source = bench.bytes(bench.block(0, hit.blocks[1]).address(), 256);
        bench.release(hit.lease);
        let hit = bench.look(&ask(&second));
        assert_eq!((hit.tokens, hit.blocks.len()), (27, 2));
        // Nobody takes the source away while the lease holds it.
        while bench.cache.evict(0, 1).unwrap() > 0 {}
        bench.begin();
        let admitted = bench.admit(hit.lease, 13);
        assert_eq!(admitted.blocks_added, 2, "a copy, and the block behind it");
        bench.good(&commit(admitted.sequence, &second[27..], &[]));
        let (row, copies) = bench
            .cache
            .tables(bench.step, bench.stream, |tables| {
                Ok((tables.group(0)?.block_table[..3].to_vec(), tables.copies().to_vec()))
            })
            .unwrap();
        assert_eq!((row[0], copies.len(), copies[0].tokens), (hit.blocks[0], 1, 11));
        assert_ne!(row[1], hit.blocks[1]);
        let copy = bench.bytes(bench.block(0, row[1]).address(), 256);
        // Keys of 16 tokens of 8 bytes, then as many values; behind the copied tokens zeros of the scrub.
        for half in [0, 128] {
            assert_eq!(copy[half..half + 88], source[half..half + 88]);
            assert_eq!(copy[half + 88..half + 128], [0; 40]);
        }
        assert_eq!(bench.bytes(bench.block(0, hit.blocks[1]).address(), 256), source, "the source stays");
        assert_eq!(bench.statistics().copied_tokens, 11);
        bench.free(admitted.sequence);
        bench.done();
        assert_eq!(bench.hits(&ask(&second)), 32, "{hash:?}: the chain went on from inside the block");
        let mut other = second.clone();
        other[31] += 1;
        assert_eq!(bench.hits(&ask(&other)), 31);
        assert_eq!(bench.hits(&ask(&first)), 32, "the lease kept what the copy was made of");
    }
}

#[test]
fn a_running_sequence_is_a_source_once_its_step_is_declared_done() {
    let mut bench = Bench::new(&settings(&[8], HashKind::Xxh3));
    let (first, second) = (prompt(1, 20), parted(&prompt(1, 20), 13, 16));
    bench.begin();
    let (_, sequence) = bench.start(&ask(&first), &first);
    let early = bench.look(&ask(&second));
    assert_eq!(early.tokens, 8, "what the open step writes is not there before its copies");
    bench.good(&Op::Release { lease: early.lease });
    bench.upload();
    bench.done();
    let hit = bench.look(&ask(&second));
    assert_eq!(hit.tokens, 13);
    bench.begin();
    // The copy may also be left to the first append.
    let admitted = bench.admit(hit.lease, 0);
    assert_eq!((admitted.blocks_added, bench.statistics().copied_tokens), (0, 0));
    bench.append(sequence, 1);
    assert_eq!(bench.append(admitted.sequence, 3).blocks_added, 1);
    assert_eq!(bench.statistics().copied_tokens, 5);
    bench.commit(admitted.sequence, &second[13..]);
    bench.upload();
    bench.done();
    assert_eq!(bench.hits(&ask(&second)), 16);
    assert_eq!(bench.hits(&ask(&first)), 16);
}

#[test]
fn groups_of_any_block_sizes_meet_at_any_token() {
    for hash in [HashKind::Blake3, HashKind::Xxh3] {
        let mut bench = Bench::new(&settings(&[6, 16, 4], hash));
        let first = prompt(1, 48);
        bench.run(&ask(&first));
        for same in [1, 3, 4, 6, 11, 16, 17, 23, 32, 37, 44, 47] {
            let second = parted(&first, same, 48);
            let hit = bench.look(&ask(&second));
            assert_eq!(hit.tokens, same as u64, "{hash:?}");
            let cells = [6, 16, 4].map(|each: usize| same.div_ceil(each));
            assert_eq!(hit.blocks.len(), cells.iter().sum::<usize>());
            bench.release(hit.lease);
        }
        let kept = Request { keep_one_token: true, ..ask(&first) };
        assert_eq!(bench.hits(&kept), 47);
        assert_eq!(bench.hits(&Request { drop_last: true, ..ask(&first) }), 0, "whole blocks, at 48 or not");
        assert_eq!(bench.hits(&Request { no_read: true, ..ask(&first) }), 0);
        assert_eq!(bench.hits(&Request { namespace_id: 2, ..ask(&first) }), 0);
        assert_eq!(bench.hits(&Request { adapter_id: 1, ..ask(&first) }), 0);
        assert_eq!(bench.hits(&Request { salt: b"s", ..ask(&first) }), 0);
    }
}

#[test]
fn a_tail_ends_where_the_prompt_depends_on_something_else() {
    let mut bench = Bench::new(&settings(&[8], HashKind::Xxh3));
    let tokens = prompt(1, 24);
    let image = |id: u8, token_offset: u64| [Extra { id: [id; 32], token_offset }];
    bench.run(&ask_with(&tokens, &image(1, 11)));
    let other = parted(&tokens, 14, 24);
    assert_eq!(bench.hits(&ask_with(&other, &image(1, 11))), 8, "the block brings an image in, whichever");
    assert_eq!(bench.hits(&ask(&other)), 8);
    bench.run(&Request { namespace_id: 2, ..ask(&tokens) });
    let [one, late, two] = [image(1, 2), image(1, 11), image(2, 2)];
    let of = |namespace_id, request| Request { namespace_id, ..request };
    assert_eq!(bench.hits(&of(2, ask(&other))), 14);
    assert_eq!(bench.hits(&of(2, ask_with(&other, &late))), 11, "up to the image the tokens are the same");
    // An image before the tail is the same for both.
    bench.run(&Request { namespace_id: 3, ..ask_with(&tokens, &image(1, 2)) });
    assert_eq!(bench.hits(&of(3, ask_with(&other, &one))), 14);
    assert_eq!(
        bench.hits(&of(3, ask_with(&other, &two))),
        0,
        "which image a block has is known at its end only"
    );
}

#[test]
fn a_copy_that_does_not_fit_is_refused_and_changes_nothing() {
    let mut bench = Bench::new(&CacheConfig { capacity_blocks: 3, ..settings(&[8], HashKind::Blake3) });
    let tokens = prompt(1, 16);
    bench.begin();
    let (_, sequence) = bench.start(&ask(&tokens), &tokens);
    bench.done();
    let hit = bench.look(&ask(&parted(&tokens, 12, 20)));
    bench.begin();
    let op = |tokens| Op::Admit { lease: hit.lease, tokens, lookahead: 0, row: -1, expected_tokens: 0 };
    let before = bench.statistics();
    let result = bench.apply(&op(5));
    assert_eq!((result.status, result.blocks_missing), (Status::OutOfBlocks, 1));
    let after = bench.statistics();
    assert_eq!((before.free_blocks, before.copied_tokens, after.leases), (after.free_blocks, 0, 1));
    assert_eq!(bench.good(&op(4)).blocks_added, 1);
    assert_eq!(refused_step(&bench), Status::WrongState, "a listed copy must be enqueued");
    bench.upload();
    bench.free(sequence);
    bench.done();
    assert_eq!(bench.statistics().used_blocks, 2);
}

fn refused_step(bench: &Bench) -> Status {
    bench.cache.step_done(bench.step, None).unwrap_err().status
}

#[test]
fn a_source_that_is_reset_while_a_lease_holds_it_becomes_the_sequences_own() {
    let mut bench = Bench::new(&settings(&[8], HashKind::Xxh3));
    let (first, second) = (prompt(1, 16), parted(&prompt(1, 16), 12, 16));
    bench.run(&ask(&first));
    let hit = bench.look(&ask(&second));
    bench.cache.reset(kavern::cache::ResetScope::All).unwrap();
    bench.begin();
    let admitted = bench.admit(hit.lease, 4);
    bench.commit(admitted.sequence, &second[12..]);
    assert_eq!(bench.statistics().copied_tokens, 0);
    bench.good(&Op::Free { target: Target::Id(Id(admitted.sequence)) });
    bench.done();
    assert_eq!(bench.statistics().free_blocks, 32);
}

#[test]
fn of_many_children_the_newest_are_searched_and_evicted_ones_are_not_found() {
    let mut bench = Bench::new(&CacheConfig { capacity_blocks: 64, ..settings(&[8], HashKind::Blake3) });
    let root = prompt(1, 8);
    let child = |at: i32| [&root[..], &[at, at, at, at], &prompt(at + 2, 4)].concat();
    for at in 0..20 {
        bench.run(&ask(&child(at)));
    }
    for at in 0..20 {
        let tokens = [&child(at)[..12], &[-1, -1]].concat();
        assert_eq!(bench.hits(&ask(&tokens)), if at < 4 { 8 } else { 12 }, "child {at}");
    }
    while bench.cache.evict(0, 1).unwrap() > 0 {}
    assert_eq!(bench.hits(&ask(&child(19))), 0);
}

#[test]
fn only_caches_whose_tokens_can_be_copied_take_such_hits() {
    let bench = Bench::simple(4, 1);
    let settings = CacheConfig { partial_hits: true, ..config(vec![group(4), opaque(4, 16)], 8) };
    let error = kavern::cache::KvCache::new(&bench.memory, &settings).err().unwrap();
    assert_eq!(error.status, Status::InvalidArgument);
    assert!(error.text.contains("slots"), "{error}");
}
