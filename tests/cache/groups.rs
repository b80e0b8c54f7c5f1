//! Groups that need only a part of the past: what each kind holds, finds, shows in its table and lets go of.

use kavern::cache::{
    Append, CacheConfig, Content, GroupConfig, HashKind, Naming, Op, OpResult, Reach, Request, Target,
};
use kavern::error::Status;
use kavern::format::LatentShape;
use kavern::types::{Dtype, Id};

use super::bench::{Bench, ask, ask_keys, config, group, lookup, opaque, prompt};

pub(super) fn reaching(reach: Reach, group: GroupConfig) -> GroupConfig {
    GroupConfig { reach, ..group }
}

fn sliding(window_tokens: u32, block_tokens: u32) -> GroupConfig {
    reaching(Reach::Sliding { window_tokens }, group(block_tokens))
}

pub(super) fn state(snapshot_blocks: u32, block_tokens: u32) -> GroupConfig {
    reaching(Reach::State { snapshot_blocks }, opaque(block_tokens, 64))
}

pub(super) fn cross(tokens: u32, block_tokens: u32) -> GroupConfig {
    reaching(Reach::Cross { tokens }, group(block_tokens))
}

/// The first cells of row 0 of a group, the same on host and device.
pub(super) fn cells(bench: &Bench, group: usize, count: usize) -> Vec<i32> {
    let (address, host) = bench
        .cache
        .tables(bench.step, bench.stream, |tables| {
            let view = tables.group(group)?;
            Ok((tables.group_addresses(group).block_table, view.block_table[..count].to_vec()))
        })
        .unwrap();
    assert_eq!(bench.words(address, count), host);
    host
}

fn null(bench: &Bench, group: u32) -> i32 {
    bench.cache.describe(group).unwrap().null_block.unwrap() as i32
}

/// Goes on by one token in a step of its own.
pub(super) fn decode(bench: &mut Bench, sequence: u64, token: i32) {
    bench.begin();
    bench.append(sequence, 1);
    bench.commit(sequence, &[token]);
    bench.upload();
    bench.done();
}

fn trim(bench: &mut Bench, sequence: u64, offset: u64) -> OpResult {
    bench.apply(&Op::Trim { target: Target::Id(Id(sequence)), offset })
}

#[test]
fn a_window_holds_what_the_next_token_reaches_and_shows_the_null_block_before_it() {
    let mut bench = Bench::new(&config(vec![sliding(8, 4)], 16));
    let tokens = prompt(1, 60);
    bench.begin();
    let (_, sequence) = bench.start(&ask(&tokens[..8]), &tokens[..8]);
    bench.done();
    for (length, &token) in tokens.iter().enumerate().skip(8) {
        decode(&mut bench, sequence, token);
        let first = (length + 1).saturating_sub(8) / 4;
        bench.begin();
        let row = cells(&bench, 0, length / 4 + 1);
        assert!(row[..first].iter().all(|&cell| cell == null(&bench, 0)), "{length}: {row:?}");
        assert!(row[first..].iter().all(|&cell| cell < 16), "{length}: {row:?}");
        assert_eq!(bench.statistics().used_blocks as usize, length / 4 + 1 - first);
        bench.done();
        bench.cache.validate().unwrap();
    }
    assert!(bench.bytes(bench.block(0, null(&bench, 0)).address(), 64).iter().all(|&byte| byte == 0));
    let now = bench.statistics();
    assert_eq!((now.used_tokens, now.held_tokens, now.used_slots), (60, 8, 8));
    bench.begin();
    bench.free(sequence);
    bench.done();
    assert_eq!((bench.statistics().held_tokens, bench.statistics().used_slots), (0, 0));
}

#[test]
fn what_a_window_let_go_waits_for_its_step_and_is_found_until_it_is_evicted() {
    let mut bench = Bench::new(&config(vec![sliding(4, 4)], 8));
    let tokens = prompt(1, 16);
    bench.begin();
    let (_, sequence) = bench.start(&ask(&tokens[..12]), &tokens[..12]);
    let gate = bench.gate();
    bench.cache.step_done(bench.step, Some(bench.stream)).unwrap();
    bench.begin();
    bench.append(sequence, 1);
    let now = bench.statistics();
    assert_eq!((now.deferred_blocks, now.used_blocks), (2, 2), "the step before may still read them");
    drop(gate);
    bench.device.stream_synchronize(bench.stream).unwrap();
    bench.cache.poll().unwrap();
    assert_eq!(bench.statistics().inactive_blocks, 2);
    bench.done();
    for length in [4, 8, 12] {
        let hit = bench.look(&ask(&tokens[..length]));
        assert_eq!((hit.tokens as usize, hit.blocks.len()), (length, 1), "one block is the whole window");
        bench.release(hit.lease);
    }
    assert_eq!(bench.cache.evict(0, 1).unwrap(), 1);
    assert_eq!(bench.hits(&ask(&tokens[..4])) + bench.hits(&ask(&tokens[..8])), 8, "one of the two is gone");
    assert_eq!(bench.cache.evict(0, 1).unwrap(), 1);
    assert_eq!(bench.hits(&ask(&tokens)), 12, "the running sequence holds the last window");
    assert_eq!(bench.hits(&ask(&tokens[..8])), 0);
}

#[test]
fn a_window_in_a_small_pool_grows_by_what_it_lets_go() {
    let mut bench = Bench::new(&config(vec![sliding(4, 4)], 2));
    let tokens = prompt(1, 40);
    bench.begin();
    let (_, sequence) = bench.start(&ask(&tokens[..4]), &tokens[..4]);
    bench.done();
    tokens[4..].iter().for_each(|&token| decode(&mut bench, sequence, token));
    assert_eq!(bench.statistics().used_blocks, 1);
    // In flight nothing returns at once: the refusal says so and changes nothing.
    bench.begin();
    let first = bench.append(sequence, 1);
    assert_eq!(first.blocks_added, 1);
    let op = Op::Append { target: Target::Id(Id(sequence)), tokens: 8, lookahead: 0 };
    let result = bench.apply(&op);
    assert_eq!((result.status, result.blocks_missing), (Status::OutOfBlocks, 2));
    assert_eq!(bench.statistics().used_tokens, 41);
    bench.done();
}

#[test]
fn tokens_that_one_step_computes_keep_the_window_of_the_first_of_them() {
    let mut bench = Bench::new(&config(vec![sliding(4, 4)], 16));
    let lease = bench.look(&ask(&[])).lease;
    bench.begin();
    let sequence = bench.admit(lease, 12).sequence;
    bench.append(sequence, 8);
    assert_eq!(bench.statistics().used_blocks, 5, "the step computes all twenty");
    bench.done();
    bench.begin();
    bench.append(sequence, 1);
    assert_eq!(cells(&bench, 0, 6)[..4], [null(&bench, 0); 4]);
    bench.append(sequence, 20);
    assert_eq!(bench.statistics().used_blocks, 7, "token 20 still reaches 17");
    bench.done();
    bench.begin();
    let slots =
        bench.cache.tables(bench.step, bench.stream, |t| Ok(t.group(0)?.slot_mapping.to_vec())).unwrap();
    assert!(slots.is_empty());
    bench.done();
}

#[test]
fn a_chunk_is_let_go_as_a_whole_and_its_end_needs_nothing_of_it() {
    let groups = vec![group(4), reaching(Reach::Chunked { chunk_tokens: 16 }, group(4))];
    let mut bench = Bench::new(&config(groups, 32));
    let tokens = prompt(1, 40);
    bench.begin();
    let (_, sequence) = bench.start(&ask(&tokens[..15]), &tokens[..15]);
    bench.done();
    decode(&mut bench, sequence, tokens[15]);
    assert_eq!(bench.statistics().used_blocks, 8);
    decode(&mut bench, sequence, tokens[16]);
    assert_eq!(bench.statistics().used_blocks, 6, "five of the full group, one of the new chunk");
    tokens[17..].iter().for_each(|&token| decode(&mut bench, sequence, token));
    for (length, chunk_blocks) in [(16, 0), (20, 1), (28, 3), (32, 0), (40, 2)] {
        let hit = bench.look(&ask(&tokens[..length]));
        assert_eq!((hit.tokens as usize, hit.blocks.len()), (length, length / 4 + chunk_blocks));
        bench.release(hit.lease);
    }
    while bench.cache.evict(1, 1).unwrap() > 0 {}
    assert_eq!(bench.hits(&ask(&tokens)), 40, "the running sequence holds its chunk");
    assert_eq!(bench.hits(&ask(&tokens[..31])), 16, "the chunk before is gone, its start needs none of it");
    assert_eq!(bench.hits(&ask(&tokens[..32])), 32);
}

#[test]
fn groups_agree_on_the_longest_length_at_which_each_has_its_part() {
    for hash in [HashKind::Blake3, HashKind::Xxh3] {
        // As Gemma: five windows to one full group.
        let windows = (0..5).map(|_| sliding(8, 4));
        let groups = windows.chain([group(4)]).collect();
        let mut bench = Bench::new(&CacheConfig { hash, ..config(groups, 32) });
        let tokens = prompt(1, 64);
        assert_eq!(bench.run(&ask(&tokens)), 0);
        let hit = bench.look(&ask(&tokens));
        assert_eq!((hit.tokens, hit.blocks.len()), (64, 16 + 5 * 2));
        bench.begin();
        let sequence = bench.admit(hit.lease, 1).sequence;
        assert_eq!(cells(&bench, 2, 14), vec![null(&bench, 2); 14]);
        assert!(cells(&bench, 2, 17)[14..].iter().all(|&cell| cell < 32));
        assert_eq!(cells(&bench, 5, 16), hit.blocks[10..]);
        bench.free(sequence);
        bench.done();
        // The third window loses all but what another lookup holds in the middle.
        let middle = bench.look(&ask(&tokens[..40]));
        while bench.cache.evict(2, 1).unwrap() > 0 {}
        assert_eq!(bench.hits(&ask(&tokens)), 40, "{hash:?}");
        assert_eq!(bench.hits(&ask(&tokens[..39])), 0, "shorter ones need what is gone");
        bench.release(middle.lease);
        // The full group is the chain: without its root nothing is found.
        while bench.cache.evict(5, 1).unwrap() > 0 {}
        assert_eq!(bench.hits(&ask(&tokens)), 0);
        assert_eq!(bench.run(&ask(&tokens)), 0);
        assert_eq!(bench.hits(&ask(&tokens)), 64, "{hash:?}: what was left behind is replaced");
    }
}

#[test]
fn each_group_keeps_its_own_block_size_and_flags_leave_out_what_they_say() {
    let groups = vec![sliding(20, 8), group(4), sliding(100, 16)];
    let mut bench = Bench::new(&config(groups, 64));
    assert_eq!(bench.cache.hash_block_tokens(), 4);
    let tokens = prompt(1, 70);
    bench.run(&ask(&tokens));
    let base = ask(&tokens);
    let hit = bench.look(&base);
    assert_eq!((hit.tokens, hit.blocks.len()), (64, 3 + 16 + 4));
    bench.release(hit.lease);
    assert_eq!(bench.hits(&Request { keep_one_token: true, ..ask(&tokens[..64]) }), 48);
    assert_eq!(bench.hits(&Request { drop_last: true, ..base }), 48);
    assert_eq!(bench.hits(&Request { no_read: true, ..base }), 0);
    bench.run(&Request { namespace_id: 2, no_store: true, ..base });
    assert_eq!(bench.hits(&Request { namespace_id: 2, ..base }), 0);
}

#[test]
fn windows_alone_find_what_their_last_blocks_prove() {
    let mut bench = Bench::new(&config(vec![sliding(1, 4), sliding(8, 4)], 32));
    let tokens = prompt(1, 24);
    assert_eq!(bench.hits(&ask(&tokens)), 0, "a window of one token needs a block that shows it was here");
    bench.run(&ask(&tokens));
    let hit = bench.look(&ask(&tokens));
    assert_eq!((hit.tokens, hit.blocks.len()), (24, 3));
    bench.release(hit.lease);
    let mut parted = tokens.clone();
    parted[0] += 1;
    assert_eq!(bench.hits(&ask(&parted)), 0, "equal tokens after another beginning are other content");
}

#[test]
fn latent_rows_have_slots_and_are_written_as_they_are() {
    let latent = GroupConfig {
        content: Content::Latent(LatentShape { layers: 3, token_bytes: 36, block_tokens: 4 }),
        ..group(4)
    };
    let mut bench = Bench::new(&config(vec![latent, group(4)], 16));
    let place = bench.cache.describe(0).unwrap();
    assert_eq!((place.block_bytes, place.strides.layer, place.strides.token), (3 * 4 * 36, 4 * 36, 36));
    let tokens = prompt(1, 6);
    bench.begin();
    let (_, sequence) = bench.start(&ask(&tokens), &tokens);
    let slots = bench.cache.tables(1, bench.stream, |t| Ok(t.group_addresses(0).slot_mapping)).unwrap();
    let rows = bench.memory.allocate(6 * 36, "rows").unwrap();
    let bytes: Vec<u8> = (0..6 * 36).map(|at| at as u8).collect();
    bench.device.write(rows.slice().part(0, 6 * 36).unwrap(), &bytes).unwrap();
    let keys = rows.slice().part(0, 6 * 36).unwrap();
    let slots = bench.slice(slots, 48);
    let append = Append { group: 0, layer: 2, dtype: Dtype::I8, tokens: 6, keys, values: keys, slots };
    bench.cache.append(bench.stream, &append).unwrap();
    let refused = bench.cache.append(bench.stream, &Append { dtype: Dtype::F16, ..append }).unwrap_err();
    assert_eq!(refused.status, Status::Unsupported);
    let blocks = cells(&bench, 0, 2);
    for token in 0..6 {
        let at = place.base_address
            + blocks[token / 4] as u64 * place.block_bytes
            + 2 * place.strides.layer
            + (token % 4) as u64 * place.strides.token;
        assert_eq!(bench.bytes(at, 36), bytes[36 * token..][..36], "token {token}");
    }
    bench.free(sequence);
    bench.done();
    assert_eq!(bench.hits(&ask(&tokens)), 4);
}

#[test]
fn a_trim_lets_go_of_whole_blocks_before_the_offset_and_nothing_else() {
    for hash in [HashKind::Blake3, HashKind::Xxh3] {
        let groups = vec![reaching(Reach::Untrimmed, group(4)), group(8), sliding(1000, 16)];
        let mut bench = Bench::new(&CacheConfig { hash, ..config(groups, 32) });
        let tokens = prompt(1, 40);
        bench.begin();
        let (_, sequence) = bench.start(&ask(&tokens[..30]), &tokens[..30]);
        assert_eq!(
            trim(&mut bench, sequence, 1).status,
            Status::WrongState,
            "the open step computes token 0"
        );
        assert_eq!(trim(&mut bench, sequence, 31).status, Status::InvalidArgument);
        bench.done();
        bench.begin();
        let before = bench.statistics();
        let done = trim(&mut bench, sequence, 23);
        assert_eq!((done.status, done.sequence), (Status::Ok, sequence));
        let after = bench.statistics();
        assert_eq!(before.used_blocks - after.used_blocks, 5 + 1);
        assert_eq!((after.held_tokens, after.used_slots), (10 + 30 + 14, 12 + 32 + 16));
        assert_eq!(cells(&bench, 0, 6)[..5], [null(&bench, 0); 5]);
        assert_eq!(cells(&bench, 2, 1), [null(&bench, 2)]);
        for offset in [23, 0, 4] {
            assert_eq!(trim(&mut bench, sequence, offset).status, Status::Ok);
        }
        assert_eq!(bench.statistics().used_blocks, after.used_blocks, "the same again does nothing");
        assert_eq!(bench.cache.describe(1).unwrap().null_block, None, "a full group keeps what it has");
        bench.append(sequence, 10);
        bench.commit(sequence, &tokens[30..]);
        bench.done();
        assert_eq!(bench.hits(&ask(&tokens)), 32, "{hash:?}: what was let go stays findable");
        bench.begin();
        assert_eq!(trim(&mut bench, sequence, 40).status, Status::Ok);
        let longer = [&tokens[..], &prompt(3, 8)].concat();
        bench.append(sequence, 8);
        bench.commit(sequence, &longer[40..]);
        bench.free(sequence);
        bench.done();
        assert_eq!(bench.hits(&ask(&longer)), 48, "{hash:?}: what was let go is still its ancestor");
        assert_eq!((bench.statistics().used_blocks, bench.statistics().held_tokens), (0, 0));
    }
}

#[test]
fn a_trim_of_tokens_that_are_not_final_yet_leaves_their_blocks_unpublished() {
    for hash in [HashKind::Blake3, HashKind::Xxh3] {
        let groups = vec![reaching(Reach::Untrimmed, group(4))];
        let mut bench = Bench::new(&CacheConfig { hash, ..config(groups, 32) });
        let tokens = prompt(1, 16);
        let lease = bench.look(&ask(&tokens)).lease;
        bench.begin();
        let sequence = bench.admit(lease, 12).sequence;
        bench.done();
        bench.begin();
        assert_eq!(trim(&mut bench, sequence, 9).status, Status::Ok);
        assert_eq!(bench.statistics().free_blocks, 31);
        bench.append(sequence, 4);
        let published = bench.commit(sequence, &tokens).blocks_committed;
        assert_eq!(published, if hash == HashKind::Blake3 { 2 } else { 0 }, "XXH3 proves the ancestors");
        bench.done();
        assert_eq!(bench.hits(&ask(&tokens)), 0);
    }
    let mut bench = Bench::simple(4, 8);
    let lease = bench.look(&ask(&[])).lease;
    bench.begin();
    let sequence = bench.admit(lease, 4).sequence;
    assert_eq!(
        trim(&mut bench, sequence, 0).status,
        Status::Unsupported,
        "no group could let go of anything"
    );
    bench.done();
}

#[test]
fn the_ragged_form_keeps_the_place_of_what_was_let_go() {
    let groups = vec![sliding(4, 4), state(1, 4), cross(6, 4)];
    let mut bench = Bench::new(&CacheConfig { ragged: true, ..config(groups, 32) });
    let lease = bench.look(&ask(&[])).lease;
    bench.begin();
    let sequence = bench.admit(lease, 10).sequence;
    bench.done();
    bench.begin();
    bench.append(sequence, 1);
    let null = null(&bench, 0);
    let (window, states, input) = (cells(&bench, 0, 3), cells(&bench, 1, 2), cells(&bench, 2, 2));
    let seen = bench
        .cache
        .tables(2, bench.stream, |tables| {
            let of = |group| -> kavern::error::Result<_> {
                let view = tables.group(group)?;
                let slots = view.slot_mapping.to_vec();
                Ok((
                    view.page_indptr.to_vec(),
                    view.page_indices.to_vec(),
                    view.last_page_tokens.to_vec(),
                    slots,
                ))
            };
            Ok([of(0)?, of(1)?, of(2)?])
        })
        .unwrap();
    assert_eq!(window[0], null);
    let slot = i64::from(window[2]) * 4 + 2;
    assert_eq!(seen[0], (vec![0, 3], window, vec![3], vec![slot]));
    assert_eq!(seen[1], (vec![0, 1], states[..1].to_vec(), vec![4], vec![]));
    assert_eq!(seen[2], (vec![0, 2], input, vec![2], vec![]));
    bench.done();
}

#[test]
fn what_no_group_can_be_is_refused_with_the_reason() {
    let refuses = |groups: Vec<GroupConfig>, hash: HashKind, words: &str| {
        let bench = Bench::simple(4, 1);
        let settings = CacheConfig { hash, ..config(groups, 8) };
        let error = kavern::cache::KvCache::new(&bench.memory, &settings).err().unwrap();
        assert_eq!(error.status, Status::InvalidArgument);
        assert!(error.text.contains(words), "{error}");
    };
    refuses(vec![sliding(0, 4)], HashKind::Blake3, "window_tokens is 0");
    refuses(vec![cross(4, 4)], HashKind::Blake3, "decoder");
    refuses(vec![group(4), cross(0, 4)], HashKind::Blake3, "cross_tokens is 0");
    refuses(vec![group(4), state(1 << 15, 4)], HashKind::Blake3, "snapshot_blocks");
    refuses(vec![sliding(8, 4)], HashKind::Xxh3, "BLAKE3");
    refuses(vec![group(8), sliding(8, 4)], HashKind::Xxh3, "divides");
    refuses(vec![reaching(Reach::Untrimmed, group(4)), sliding(8, 4)], HashKind::Xxh3, "full group");
    let latent = |layers, token_bytes| GroupConfig {
        content: Content::Latent(LatentShape { layers, token_bytes, block_tokens: 4 }),
        ..group(4)
    };
    refuses(vec![latent(0, 4)], HashKind::Blake3, "layers is 0");
    refuses(vec![latent(1, 0)], HashKind::Blake3, "token_bytes is 0");
}

#[test]
fn a_region_of_the_callers_holds_the_null_block_too() {
    let bench = Bench::simple(4, 1);
    let bytes = 4 * 4 * 2 * 2;
    let memory = bench.memory.allocate(9 * bytes, "region").unwrap();
    let with = |count: u64| {
        let region = memory.slice().part(0, count * bytes).unwrap();
        config(vec![GroupConfig { region: Some(region), ..sliding(8, 4) }], 8)
    };
    bench.device.memset(kavern::device::Stream::DEFAULT, memory.slice(), 0xff).unwrap();
    assert!(kvcache_error(&bench, &with(8)).contains("9 blocks"));
    let cache = kavern::cache::KvCache::new(&bench.memory, &with(9)).unwrap();
    assert_eq!(cache.describe(0).unwrap().null_block, Some(8));
    bench.device.stream_synchronize(kavern::device::Stream::DEFAULT).unwrap();
    let read = |block: u64| bench.bytes(memory.slice().address() + block * bytes, bytes);
    assert_eq!((read(7), read(8)), (vec![0xff; bytes as usize], vec![0; bytes as usize]));
}

fn kvcache_error(bench: &Bench, config: &CacheConfig) -> String {
    kavern::cache::KvCache::new(&bench.memory, config).err().unwrap().text.into_owned()
}

#[test]
fn a_prefix_of_tokens_is_not_taken_for_one_of_keys_in_any_group() {
    let mut bench = Bench::new(&config(vec![sliding(8, 4), state(1, 4)], 16));
    let tokens = prompt(1, 8);
    bench.run(&ask(&tokens));
    let hit = bench.look(&ask(&tokens));
    assert_eq!(hit.tokens, 8);
    bench.release(hit.lease);
    let Naming::Tokens(..) = ask(&tokens).naming else { panic!("tokens") };
    let keys = [3u8; 64];
    let error = lookup(&bench.cache, &ask_keys(&keys, 32, 4)).unwrap_err();
    assert_eq!(error.status, Status::KeyMode);
}
