//! Hits that end inside a block: what is found, copied and left alone.

use kavern::cache::{CacheConfig, Extra, GroupConfig, HashKind, Op, Reach, Request, Scrub, Target};
use kavern::error::Status;
use kavern::types::Id;

use super::bench::{Bench, ask, ask_keys, ask_with, commit, commit_keys, config, group, opaque, prompt};

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

fn sliding(block_tokens: u32, window_tokens: u32) -> GroupConfig {
    GroupConfig { reach: Reach::Sliding { window_tokens }, ..group(block_tokens) }
}

/// A full group and a window in blocks of other sizes.
fn mixed(full: u32, window: GroupConfig, blocks: u64) -> CacheConfig {
    let settings = config(vec![group(full), window], blocks);
    CacheConfig {
        partial_hits: true,
        scrub: Scrub::Always,
        max_sequence_tokens: 1200,
        max_batch_tokens: 1200,
        ..settings
    }
}

#[test]
fn groups_of_several_kinds_do_not_wait_for_a_common_multiple() {
    // Blocks and window, then the hits of a prompt of 1,150 tokens that was there: in whole blocks of both, and wherever
    // one of them ends a block and the other has the one around it.
    for (full, window, whole, inside) in [
        (16, sliding(24, 64), 1104, 1128),
        (100, sliding(48, 512), 0, 1100),
        (16, sliding(112, 512), 1120, 1120),
    ] {
        let settings = mixed(full, window, 256);
        let tokens = prompt(1, 1150);
        let mut aligned = Bench::new(&CacheConfig { partial_hits: false, ..settings.clone() });
        aligned.run(&ask(&tokens));
        assert_eq!(aligned.hits(&ask(&tokens)), whole);
        let mut bench = Bench::new(&settings);
        bench.run(&ask(&tokens));
        assert_eq!(bench.hits(&ask(&tokens)), inside);
    }
}

#[test]
fn what_a_hit_of_several_kinds_leaves_out_and_counts_is_what_it_copies_too() {
    let mut bench = Bench::new(&mixed(16, sliding(24, 64), 256));
    let tokens = prompt(1, 1150);
    bench.run(&ask(&tokens));
    let keep_one = Request { keep_one_token: true, ..ask(&tokens[..1104]) };
    assert_eq!(bench.hits(&ask(&tokens[..1104])), 1104);
    assert_eq!(bench.hits(&keep_one), 1096, "the last link before the token that is left");
    let drop_last = Request { drop_last: true, ..ask(&tokens) };
    assert_eq!(bench.hits(&drop_last), 1104, "the last block of either is left out");
    let other = parted(&tokens, 1120, 1150);
    assert_eq!(bench.hits(&ask(&other)), 1104, "behind that a block of the window holds other tokens");
    // Blocks looked up, hit and missed, and the tokens of the hit.
    let counts = |bench: &mut Bench, request: &Request<'_>| {
        let before = bench.statistics();
        bench.hits(request);
        let after = bench.statistics();
        [
            after.lookup_blocks - before.lookup_blocks,
            after.hit_blocks - before.hit_blocks,
            after.missed_blocks - before.missed_blocks,
            after.hit_tokens - before.hit_tokens,
        ]
    };
    // The block that is copied is no hit, its tokens are.
    assert_eq!(counts(&mut bench, &ask(&tokens)), [71 + 3, 70 + 3, 1, 1128]);
    assert_eq!(counts(&mut bench, &keep_one), [69 + 3, 68 + 2, 0, 1096], "what is left out is no miss");
    let mut bench = Bench::new(&mixed(100, sliding(48, 512), 256));
    bench.run(&ask(&tokens));
    assert_eq!(counts(&mut bench, &ask(&tokens)), [11 + 11, 11 + 10, 1, 1100]);
}

#[test]
fn each_kind_copies_the_tokens_of_its_last_block_and_the_chain_goes_on_behind_them() {
    // Tokens of the prompt that is looked up, of the hit, and in each group the block in which it ends and its tokens.
    for (count, length, ends) in [(30, 28, [None, Some((4, 4))]), (33, 30, [Some((7, 2)), None])] {
        let mut bench = Bench::new(&mixed(4, sliding(6, 9), 32));
        let tokens = prompt(1, 34);
        bench.run(&ask(&tokens));
        bench.begin();
        bench.upload();
        bench.done();
        let asked = Request { keep_one_token: true, ..ask(&tokens[..count]) };
        let hit = bench.look(&asked);
        assert_eq!(hit.tokens, length);
        let full = length.div_ceil(4) as usize;
        for (at, &block) in hit.blocks.iter().enumerate() {
            let (group, seed) = (u32::from(at >= full), at as u64 + 1);
            bench.cache.fill_pattern(bench.stream, group, &[block], &[seed]).unwrap();
        }
        let last = [hit.blocks[full - 1], *hit.blocks.last().unwrap()];
        let bytes = |bench: &Bench, group: usize, block: i32| {
            bench.bytes(bench.block(group as u32, block).address(), [64, 96][group])
        };
        let sources = [0, 1].map(|group| bytes(&bench, group, last[group]));
        bench.begin();
        let admitted = bench.admit(hit.lease, 36 - length);
        let second = parted(&tokens, length as usize, 36);
        bench.commit(admitted.sequence, &second[length as usize..]);
        bench.upload();
        let row = admitted.row as usize;
        let rows = bench.cache.tables(bench.step, bench.stream, |tables| {
            let view =
                |group: usize| tables.group(group).map(|view| (view.row_cells as usize, view.block_table));
            let cell = |group: usize, at: usize| view(group).map(|(cells, table)| table[row * cells + at]);
            Ok([cell(0, (length / 4) as usize)?, cell(1, (length / 6) as usize)?])
        });
        for (group, block) in rows.unwrap().into_iter().enumerate() {
            let Some((_, copied)) = ends[group] else { continue };
            assert_ne!(block, last[group]);
            let (copy, half) = (bytes(&bench, group, block), sources[group].len() / 2);
            for from in [0, half] {
                let (end, next) = (from + 8 * copied, from + half);
                assert_eq!(copy[from..end], sources[group][from..end], "{length} tokens, group {group}");
                assert!(copy[end..next].iter().all(|&byte| byte == 0));
            }
            assert_eq!(bytes(&bench, group, last[group]), sources[group], "the source stays");
            assert_eq!(ends[group].map(|(at, _)| at), Some(length / [4, 6][group]));
        }
        let copied: usize = ends.iter().flatten().map(|&(_, copied)| copied).sum();
        assert_eq!(bench.statistics().copied_tokens as usize, copied);
        bench.free(admitted.sequence);
        bench.done();
        assert_eq!(bench.hits(&ask(&second)), 36, "both published what they completed");
        assert_eq!(bench.hits(&ask(&tokens)), 30);
    }
}

#[test]
fn keys_of_the_caller_find_such_hits_too() {
    let mut bench = Bench::new(&mixed(4, sliding(6, 9), 32));
    let keys: Vec<u8> = (0..32 * 16).map(|at: u32| (at / 32 + 1) as u8).collect();
    let request = ask_keys(&keys, 32, 2);
    let lease = bench.look(&request).lease;
    bench.begin();
    let sequence = bench.admit(lease, 32).sequence;
    bench.good(&commit_keys(sequence, 32, &keys, 32));
    bench.free(sequence);
    bench.done();
    let hit = bench.look(&request);
    assert_eq!(hit.tokens, 30);
    bench.begin();
    let sequence = bench.admit(hit.lease, 6).sequence;
    let more: Vec<u8> = keys[32 * 15..].iter().copied().chain([99; 64]).collect();
    bench.good(&commit_keys(sequence, 6, &more, 32));
    bench.upload();
    bench.free(sequence);
    bench.done();
    let all: Vec<u8> = keys.iter().copied().chain([99; 64]).collect();
    assert_eq!(bench.hits(&ask_keys(&all, 32, 2)), 36);
}

#[test]
fn among_several_kinds_a_block_of_the_open_step_is_no_source() {
    for hash in [HashKind::Blake3, HashKind::Xxh3] {
        let mut bench = Bench::new(&CacheConfig { hash, ..mixed(3, sliding(6, 9), 32) });
        let tokens = prompt(1, 35);
        bench.begin();
        let (_, sequence) = bench.start(&ask(&tokens), &tokens);
        let early = bench.look(&ask(&tokens[..33]));
        assert_eq!(early.tokens, 30, "{hash:?}");
        bench.good(&Op::Release { lease: early.lease });
        bench.done();
        assert_eq!(bench.hits(&ask(&tokens)), 30, "the window's next block is not whole, {hash:?}");
        bench.begin();
        bench.append(sequence, 1);
        bench.commit(sequence, &[77]);
        let whole = [&tokens[..], &[77]].concat();
        let keep_one = Request { keep_one_token: true, ..ask(&whole) };
        let early = bench.look(&keep_one);
        assert_eq!(early.tokens, 30, "the last blocks are not written, {hash:?}");
        bench.good(&Op::Release { lease: early.lease });
        bench.done();
        assert_eq!(bench.hits(&keep_one), 33, "{hash:?}");
    }
}

#[test]
fn among_several_kinds_a_copy_that_does_not_fit_is_refused_whether_it_is_made_now_or_later() {
    for blocks in [8, 9] {
        let mut bench = Bench::new(&mixed(4, sliding(6, 9), blocks));
        let tokens = prompt(1, 32);
        bench.run(&ask(&tokens));
        for (count, expected_tokens) in [(2, 0), (2, 32), (0, 32), (0, 0)] {
            let hit = bench.look(&ask(&tokens));
            assert_eq!(hit.tokens, 30);
            let before = bench.statistics();
            bench.begin();
            let lease = hit.lease;
            let admit = Op::Admit { lease, tokens: count, lookahead: 0, row: -1, expected_tokens };
            let result = bench.apply(&admit);
            if blocks == 8 && (count, expected_tokens) != (0, 0) {
                assert_eq!((result.status, result.blocks_missing), (Status::OutOfBlocks, 1));
                let after = bench.statistics();
                assert_eq!(before.used_blocks, after.used_blocks);
                assert_eq!(
                    before.free_blocks + before.inactive_blocks,
                    after.free_blocks + after.inactive_blocks
                );
                assert_eq!(after.promised_blocks, 0);
                bench.good(&Op::Release { lease });
            } else {
                assert_eq!(result.status, Status::Ok);
                let target = Target::Id(Id(result.sequence));
                let append = bench.apply(&Op::Append { target, tokens: 2 - count, lookahead: 0 });
                assert_eq!(append.status, if blocks == 8 { Status::OutOfBlocks } else { Status::Ok });
                bench.upload();
                bench.free(result.sequence);
            }
            bench.done();
        }
        assert_eq!(bench.statistics().copied_tokens, if blocks == 8 { 0 } else { 4 * 2 });
    }
}

#[test]
fn among_several_kinds_a_hit_takes_no_block_that_is_promised() {
    // Blocks of the full group and window, then the expected length of another sequence, and the hit beside it.
    for (full_blocks, window, expected_tokens, left) in [(9, 9, 8, 28), (64, 24, 36, 18)] {
        let mut settings = mixed(4, sliding(6, window), 9);
        settings.groups[0].capacity_blocks = full_blocks;
        let mut bench = Bench::new(&settings);
        let tokens = prompt(1, 32);
        bench.run(&ask(&tokens));
        let lease = bench.look(&ask(&[])).lease;
        bench.begin();
        let admit = Op::Admit { lease, tokens: 4, lookahead: 0, row: -1, expected_tokens };
        let other = bench.good(&admit).sequence;
        let hit = bench.look(&ask(&tokens));
        assert_eq!(hit.tokens, left);
        bench.cache.validate().unwrap();
        bench.good(&Op::Release { lease: hit.lease });
        bench.free(other);
        bench.done();
        assert_eq!(bench.hits(&ask(&tokens)), 30);
    }
}
