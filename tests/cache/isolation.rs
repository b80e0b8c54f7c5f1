//! Who shares with whom: keys, namespaces, salts, adapters, extras; and whose bytes a slot may still hold.

use kavern::cache::{CacheConfig, Extra, GroupConfig, HashKind, Key, Op, Request, ResetScope, Scrub};
use kavern::device::{DeviceSlice, registry};
use kavern::error::Status;

use super::bench::{
    Bench, ask, ask_keys, ask_with, commit, commit_keys, config, group, lookup, opaque, prompt, refused,
};

/// Keys of one link each, unlike those of any other seed.
fn keys(seed: u8, key_bytes: usize, count: usize) -> Vec<u8> {
    (0..count * key_bytes).map(|at| (at as u8).wrapping_mul(37) ^ seed ^ (at / key_bytes) as u8).collect()
}

/// Runs a request of keys through the cache; every link is 4 tokens.
fn run_keys(bench: &mut Bench, request: &Request<'_>, bytes: &[u8], key_bytes: u32) {
    bench.begin();
    let hit = bench.look(request);
    let rest = &bytes[(hit.tokens / 4) as usize * key_bytes as usize..];
    let tokens = request.token_count - hit.tokens;
    let sequence = bench.admit(hit.lease, tokens).sequence;
    bench.good(&commit_keys(sequence, tokens, rest, key_bytes));
    bench.free(sequence);
    bench.done();
}

#[test]
fn nothing_is_found_across_namespaces_salts_and_adapters() {
    for hash in [HashKind::Blake3, HashKind::Xxh3] {
        let mut random = fastrand::Rng::with_seed(9);
        let mut bench = Bench::new(&CacheConfig { hash, ..config(vec![group(4)], 32) });
        let tokens = prompt(1, 8);
        let owner = Request { namespace_id: 7, adapter_id: 3, salt: b"secret", ..ask(&tokens) };
        bench.run(&owner);
        let mut probes = 0;
        while probes < 100_000 {
            let salt: [u8; 6] = std::array::from_fn(|_| random.u8(..));
            let probe = match probes % 4 {
                0 => Request { namespace_id: random.u64(..), ..owner },
                1 => Request { adapter_id: random.u64(..), ..owner },
                2 => Request { salt: &salt, ..owner },
                _ => Request { salt: &b"secret"[..random.usize(0..6)], ..owner },
            };
            if (probe.namespace_id, probe.adapter_id, probe.salt) != (7, 3, b"secret") {
                assert_eq!(bench.hits(&probe), 0, "{probe:?}");
                probes += 1;
            }
        }
        assert_eq!(bench.hits(&owner), 8);
        assert_eq!(bench.statistics().namespaces, 1);
        assert_eq!(bench.statistics().collisions, 0);
    }
}

#[test]
fn equal_content_of_two_namespaces_lies_in_blocks_of_its_own() {
    let mut bench = Bench::simple(4, 32);
    let tokens = prompt(1, 8);
    bench.run(&ask(&tokens));
    bench.run(&Request { salt: b"x", ..ask(&tokens) });
    let (plain, salted) = (bench.look(&ask(&tokens)), bench.look(&Request { salt: b"x", ..ask(&tokens) }));
    assert_eq!((plain.tokens, salted.tokens), (8, 8));
    assert!(plain.blocks.iter().all(|block| !salted.blocks.contains(block)));
}

#[test]
fn a_salt_can_be_required() {
    let bench = Bench::new(&CacheConfig { require_salt: true, ..config(vec![group(4)], 8) });
    let tokens = prompt(1, 4);
    assert_eq!(refused(lookup(&bench.cache, &ask(&tokens))), Status::InvalidArgument);
    assert_eq!(refused(bench.cache.keys(&ask(&tokens), |_, _| ())), Status::InvalidArgument);
    assert_eq!(bench.statistics().leases, 0);
    bench.look(&Request { salt: b"s", ..ask(&tokens) });
}

#[test]
fn a_full_table_of_namespaces_forgets_the_oldest_content_but_nothing_that_is_held() {
    let mut bench = Bench::new(&CacheConfig { max_namespaces: 2, ..config(vec![group(4)], 8) });
    let tokens = prompt(1, 4);
    for id in [1, 2] {
        bench.run(&Request { namespace_id: id, ..ask(&tokens) });
    }
    let third = Request { namespace_id: 3, ..ask(&tokens) };
    assert_eq!(bench.run(&third), 0);
    assert_eq!(bench.statistics().evicted_blocks, 1);
    let [second, third] = [2, 3].map(|id| bench.look(&Request { namespace_id: id, ..ask(&tokens) }));
    assert_eq!([second.tokens, third.tokens], [4, 4]);
    let fourth = Request { namespace_id: 4, ..ask(&tokens) };
    assert_eq!(refused(lookup(&bench.cache, &fourth)), Status::LimitReached);
    assert_eq!(bench.statistics().leases, 2);
    bench.begin();
    bench.release(second.lease);
    bench.release(third.lease);
    bench.cache.reset(ResetScope::Namespace(2)).unwrap();
    assert_eq!(bench.hits(&fourth), 0);
    assert_eq!(bench.hits(&Request { namespace_id: 3, ..ask(&tokens) }), 4);
}

#[test]
fn a_lookup_that_finds_no_place_for_its_namespace_evicts_nothing() {
    let mut bench = Bench::new(&CacheConfig { max_namespaces: 2, ..config(vec![group(4), group(8)], 16) });
    let in_namespace = |namespace_id, tokens| Request { namespace_id, ..ask(tokens) };
    let (tokens, other) = (prompt(1, 24), prompt(2, 8));
    for id in [1, 2] {
        bench.run(&in_namespace(id, &tokens));
        bench.run(&in_namespace(id, &other));
    }
    // Each has something that is held, and much that is not.
    let held = [1, 2].map(|id| bench.look(&in_namespace(id, &other)).lease);
    let before = bench.statistics();
    assert_eq!(refused(lookup(&bench.cache, &in_namespace(3, &tokens))), Status::LimitReached);
    let after = bench.statistics();
    assert_eq!((after.evicted_blocks, after.indexed_blocks), (0, before.indexed_blocks));
    bench.begin();
    held.into_iter().for_each(|lease| bench.release(lease));
    bench.done();
    // The first was used least recently: all of it goes, and nothing of the second.
    assert_eq!(bench.hits(&in_namespace(3, &tokens)), 0);
    assert_eq!(bench.statistics().evicted_blocks, before.indexed_blocks / 2);
    assert_eq!(bench.hits(&in_namespace(2, &tokens)), 24);
}

#[test]
fn what_runs_during_a_reset_publishes_nothing_more() {
    let mut bench = Bench::simple(4, 32);
    let tokens = prompt(1, 12);
    bench.begin();
    let lease = bench.look(&ask(&tokens)).lease;
    let sequence = bench.admit(lease, 12).sequence;
    bench.good(&commit(sequence, &tokens[..4], &[]));
    let early = bench.look(&ask(&prompt(2, 4))).lease;
    let other = bench.look(&Request { namespace_id: 2, ..ask(&tokens) }).lease;
    assert_eq!(bench.cache.reset(ResetScope::Namespace(1)).unwrap(), 1);
    assert_eq!(bench.good(&commit(sequence, &tokens[4..], &[])).blocks_committed, 0);
    let admitted = bench.admit(early, 4).sequence;
    assert_eq!(bench.good(&commit(admitted, &prompt(2, 4), &[])).blocks_committed, 0);
    let untouched = bench.admit(other, 12).sequence;
    assert_eq!(bench.good(&commit(untouched, &tokens, &[])).blocks_committed, 3);
    [sequence, admitted, untouched].into_iter().for_each(|id| bench.free(id));
    bench.done();
    assert_eq!(bench.run(&ask(&tokens)), 0);
    assert_eq!(bench.hits(&ask(&tokens)), 12);
}

#[test]
fn keys_of_every_size_are_compared_whole() {
    for key_bytes in 1..=32 {
        let mut bench = Bench::simple(4, 32);
        let bytes = keys(1, key_bytes, 3);
        let size = key_bytes as u32;
        run_keys(&mut bench, &ask_keys(&bytes, size, 4), &bytes, size);
        assert_eq!(bench.hits(&ask_keys(&bytes, size, 4)), 12);
        for at in 0..bytes.len() {
            let mut other = bytes.clone();
            other[at] ^= 1 << (at % 8);
            let found = bench.hits(&ask_keys(&other, size, 4));
            assert_eq!(found, (at / key_bytes) as u64 * 4, "byte {at} of keys of {key_bytes}");
        }
    }
}

#[test]
fn a_namespace_takes_tokens_or_keys_of_one_size_and_never_both() {
    let mut bench = Bench::simple(4, 32);
    let (tokens, bytes) = (prompt(1, 8), keys(1, 16, 2));
    let of_keys = Request { namespace_id: 2, ..ask_keys(&bytes, 16, 4) };
    bench.run(&ask(&tokens));
    run_keys(&mut bench, &of_keys, &bytes, 16);
    for wrong in [
        ask_keys(&bytes, 16, 4),
        Request { namespace_id: 2, ..ask(&tokens) },
        Request { namespace_id: 2, ..ask_keys(&bytes, 8, 4) },
    ] {
        assert_eq!(refused(lookup(&bench.cache, &wrong)), Status::KeyMode);
        assert_eq!(refused(bench.cache.keys(&wrong, |_, _| ())), Status::KeyMode);
    }
    let leases = [bench.look(&ask(&[])).lease, bench.look(&of_keys).lease];
    bench.begin();
    let [by_tokens, by_keys] = leases.map(|lease| bench.admit(lease, 4).sequence);
    assert_eq!(bench.apply(&commit_keys(by_tokens, 4, &bytes[..16], 16)).status, Status::KeyMode);
    assert_eq!(bench.apply(&commit(by_keys, &tokens[..4], &[])).status, Status::KeyMode);
    drop(bench.cache.step(bench.step).unwrap());
    assert_eq!(bench.apply(&commit_keys(by_keys, 4, &bytes[..8], 8)).status, Status::KeyMode);
    for count in [0, 15, 17, 32] {
        let op = commit_keys(by_keys, 4, &bytes[..count], 16);
        assert_eq!(bench.apply(&op).status, Status::InvalidArgument, "{count} bytes for one link");
    }
    bench.good(&commit_keys(by_keys, 3, &[], 16));
    bench.good(&commit_keys(by_keys, 1, &bytes[..16], 16));
    bench.free(by_tokens);
    bench.free(by_keys);
    bench.done();
    // With its last block a namespace forgets what it took.
    bench.cache.reset(ResetScope::Namespace(1)).unwrap();
    run_keys(&mut bench, &ask_keys(&bytes, 16, 4), &bytes, 16);
}

#[test]
fn keys_work_over_several_groups_and_either_hash() {
    for hash in [HashKind::Blake3, HashKind::Xxh3] {
        let mut bench = Bench::new(&CacheConfig { hash, ..config(vec![group(4), opaque(12, 16)], 32) });
        let bytes = keys(1, 20, 7);
        run_keys(&mut bench, &ask_keys(&bytes, 20, 4), &bytes, 20);
        assert_eq!(bench.hits(&ask_keys(&bytes, 20, 4)), 24);
        assert_eq!(bench.hits(&ask_keys(&bytes[..100], 20, 4)), 12);
        assert_eq!(bench.hits(&Request { drop_last: true, ..ask_keys(&bytes, 20, 4) }), 12);
        // The namespace root is not part of such a key: equal keys elsewhere are still not found.
        assert_eq!(bench.hits(&Request { salt: b"other", ..ask_keys(&bytes, 20, 4) }), 0);
    }
}

fn image(seed: u8, token_offset: u64) -> Extra {
    Extra { id: [seed; 32], token_offset }
}

#[test]
fn an_extra_changes_the_blocks_from_its_offset_on() {
    for hash in [HashKind::Blake3, HashKind::Xxh3] {
        let mut bench = Bench::new(&CacheConfig { hash, ..config(vec![group(4)], 64) });
        let tokens = prompt(1, 24);
        let extras = [image(1, 9), image(2, 18)];
        bench.run(&ask_with(&tokens, &extras));
        assert_eq!(bench.hits(&ask_with(&tokens, &extras)), 24);
        let cases: &[(&[Extra], u64)] = &[
            (&[], 8),
            (&[image(1, 9)], 16),
            (&[image(2, 9), image(2, 18)], 8),
            (&[image(1, 10), image(2, 18)], 8),
            (&[image(1, 9), image(2, 19)], 16),
            (&[image(1, 9), image(1, 18)], 16),
            (&[image(1, 9), image(1, 9), image(2, 18)], 8),
            (&[image(3, 0), image(1, 9), image(2, 18)], 0),
            (&[image(1, 9), image(2, 18), image(9, 24)], 24),
        ];
        for (other, hit) in cases {
            assert_eq!(bench.hits(&ask_with(&tokens, other)), *hit, "{other:?}");
        }
        assert_eq!(bench.hits(&ask_with(&tokens, &extras)), 24);
        let unsorted = [image(2, 18), image(1, 9)];
        assert_eq!(refused(lookup(&bench.cache, &ask_with(&tokens, &unsorted))), Status::InvalidArgument);
    }
}

#[test]
fn extras_given_in_several_commits_name_the_same_blocks() {
    let mut random = fastrand::Rng::with_seed(4);
    let mut bench = Bench::new(&config(vec![group(4), opaque(12, 16)], 64));
    let tokens = prompt(1, 40);
    let extras = [image(1, 0), image(2, 5), image(3, 5), image(4, 17), image(5, 23), image(6, 38)];
    let request = ask_with(&tokens, &extras);
    for _ in 0..50 {
        bench.begin();
        let hit = bench.look(&Request { no_read: true, ..request });
        let sequence = bench.admit(hit.lease, 40).sequence;
        let mut at = 0;
        while at < 40 {
            let to = (at + random.usize(1..9)).min(40);
            let inside: Vec<Extra> = extras
                .iter()
                .copied()
                .filter(|extra| (at as u64..to as u64).contains(&extra.token_offset))
                .collect();
            bench.good(&commit(sequence, &tokens[at..to], &inside));
            at = to;
        }
        bench.free(sequence);
        bench.done();
        assert_eq!((bench.hits(&request), bench.hits(&ask(&tokens))), (36, 0));
        bench.cache.reset(ResetScope::All).unwrap();
    }
}

#[test]
fn extras_after_a_hit_go_on_from_those_before_it() {
    let mut bench = Bench::simple(4, 64);
    let tokens = prompt(1, 24);
    let extras = [image(1, 2), image(2, 13), image(3, 20)];
    bench.run(&ask_with(&tokens[..12], &extras[..1]));
    assert_eq!(bench.run(&ask_with(&tokens, &extras)), 12);
    assert_eq!(bench.hits(&ask_with(&tokens, &extras)), 24);
    bench.cache.reset(ResetScope::All).unwrap();
    bench.run(&ask_with(&tokens, &extras));
    assert_eq!(bench.hits(&ask_with(&tokens[..16], &extras[..2])), 16);
}

#[test]
fn extras_outside_of_the_committed_tokens_are_refused() {
    let mut bench = Bench::simple(4, 16);
    let tokens = prompt(1, 8);
    let lease = bench.look(&ask(&[])).lease;
    bench.begin();
    let sequence = bench.admit(lease, 8).sequence;
    bench.commit(sequence, &tokens[..4]);
    let cases: [&[Extra]; 4] =
        [&[image(1, 3)], &[image(1, 8)], &[image(1, 6), image(1, 5)], &[image(1, u64::MAX)]];
    for extras in cases {
        assert_eq!(bench.apply(&commit(sequence, &tokens[4..], extras)).status, Status::InvalidArgument);
        drop(bench.cache.step(bench.step).unwrap());
    }
    bench.good(&commit(sequence, &tokens[4..], &[image(1, 4), image(2, 7)]));
    bench.done();
}

#[test]
fn keys_depend_on_the_secret_and_on_nothing_of_the_process() {
    for hash in [HashKind::Blake3, HashKind::Xxh3] {
        let chain = |secret: u8, blocks: u64| {
            let settings = CacheConfig { hash, hash_secret: [secret; 32], ..config(vec![group(4)], blocks) };
            let bench = Bench::new(&settings);
            let mut keys = Vec::<Key>::new();
            let count = bench.cache.keys(&ask(&prompt(1, 18)), |_, key| keys.push(key)).unwrap();
            assert_eq!((count, keys.len(), bench.statistics().namespaces), (4, 4, 0));
            keys
        };
        assert_eq!(chain(1, 8), chain(1, 9));
        let (ours, theirs) = (chain(1, 8), chain(2, 8));
        assert!(ours.iter().all(|key| !theirs.contains(key)));
    }
}

/// Fills every block with a byte, as a tenant would.
fn soil(bench: &Bench) {
    let place = bench.cache.describe(0).unwrap();
    let pool = bench.slice(place.base_address, u64::from(place.blocks) * place.block_bytes);
    bench.device.write(pool, &vec![0xaa; pool.bytes() as usize]).unwrap();
}

/// Gives tenant `first` all blocks of a pool, then `second`; answers whether the bytes of the first were wiped.
fn is_wiped(scrub: Scrub, first: Request<'_>, second: Request<'_>) -> bool {
    let mut bench = Bench::new(&CacheConfig { scrub, ..config(vec![group(4)], 6) });
    for request in [first, second] {
        let lease = bench.look(&request).lease;
        bench.begin();
        let sequence = bench.admit(lease, 24).sequence;
        bench.upload();
        bench.device.stream_synchronize(bench.stream).unwrap();
        let seen: Vec<bool> = (0..6)
            .map(|block| {
                let slice = bench.block(0, block);
                let bytes = bench.bytes(slice.address(), slice.bytes());
                assert!(bytes.iter().all(|&byte| byte == bytes[0]), "a block is wiped whole or not at all");
                bytes[0] == 0
            })
            .collect();
        assert!(seen.iter().all(|&is_zero| is_zero == seen[0]));
        if request.adapter_id == second.adapter_id
            && request.salt == second.salt
            && request.namespace_id == second.namespace_id
            && bench.step > 1
        {
            return seen[0];
        }
        soil(&bench);
        // Half of the blocks stay behind findable, half free.
        bench.commit(sequence, &prompt(1, 12));
        bench.free(sequence);
        bench.done();
    }
    panic!("the second tenant has its turn")
}

#[test]
fn bytes_of_another_tenant_are_wiped_and_those_of_the_same_are_not() {
    let none: &[i32] = &[];
    let one = ask(none);
    let other = Request { namespace_id: 2, ..one };
    let salted = Request { salt: b"s", ..one };
    let adapted = Request { adapter_id: 5, ..one };
    for (second, is_foreign) in [(one, false), (other, true), (salted, true), (adapted, false)] {
        assert_eq!(is_wiped(Scrub::TenantChange, one, second), is_foreign, "{second:?}");
        assert!(is_wiped(Scrub::Always, one, second));
        assert!(!is_wiped(Scrub::None, one, second));
    }
}

#[test]
fn a_block_is_wiped_once_and_never_after_its_new_owner_wrote() {
    let mut bench = Bench::new(&CacheConfig { scrub: Scrub::Always, ..config(vec![group(4)], 6) });
    let lease = bench.look(&ask(&[])).lease;
    bench.begin();
    let sequence = bench.admit(lease, 4).sequence;
    let zeroed = |bench: &Bench| {
        let read = |tables: &kavern::cache::StepTables<'_>| Ok(tables.group(0)?.blocks_zeroed);
        bench.cache.tables(bench.step, bench.stream, read).unwrap()
    };
    assert_eq!(zeroed(&bench), 1);
    bench.device.stream_synchronize(bench.stream).unwrap();
    soil(&bench);
    assert_eq!(zeroed(&bench), 0);
    bench.append(sequence, 4);
    assert_eq!(zeroed(&bench), 1);
    let first = bench.block(0, 0);
    assert!(bench.bytes(first.address(), first.bytes()).iter().all(|&byte| byte == 0xaa));
    bench.done();
}

#[test]
fn blocks_may_lie_in_memory_of_the_callers() {
    let plain = group(4);
    let bytes = 16 * 4 * 16;
    let device = registry::open("host").unwrap();
    let memory = kavern::memory::Memory::new(
        device.clone(),
        kavern::memory::Limits::default(),
        std::sync::Arc::new(kavern::event::NoSink),
    );
    let own = device.memory_allocate(bytes + 512).unwrap();
    let with = |region| config(vec![GroupConfig { region: Some(region), ..plain.clone() }], 16);
    {
        let mut bench = Bench::of(memory.clone(), &with(own.part(256, bytes).unwrap()));
        assert_eq!(bench.cache.describe(0).unwrap().base_address, own.address() + 256);
        let lease = bench.look(&ask(&[])).lease;
        bench.begin();
        bench.good(&Op::Admit { lease, tokens: 64, lookahead: 0, row: -1, expected_tokens: 0 });
        let blocks: Vec<i32> = (0..16).collect();
        bench.cache.fill_pattern(bench.stream, 0, &blocks, &[9; 16]).unwrap();
        bench.cache.check_pattern(bench.stream, 0, &blocks, &[9; 16]).unwrap();
        assert_eq!(bench.cache.take_check_result().unwrap().mismatched, 0);
        let whole = bench.bytes(own.address(), bytes + 512);
        assert!(whole[..256].iter().chain(&whole[256 + bytes as usize..]).all(|&byte| byte == 0));
        assert!(whole[256..256 + bytes as usize].iter().any(|&byte| byte != 0));
    }
    let other = registry::open("host").unwrap();
    let foreign = other.memory_allocate(bytes).unwrap();
    let before = memory.statistics();
    for region in [own.part(256, bytes - 1).unwrap(), own.part(128, bytes).unwrap(), foreign] {
        assert_eq!(refused(kavern::cache::KvCache::new(&memory, &with(region))), Status::InvalidArgument);
    }
    let [first, second] = [0, 512].map(|at| Some(own.part(at, bytes).unwrap()));
    let both = |regions: [Option<DeviceSlice>; 2]| {
        config(regions.map(|region| GroupConfig { region, ..plain.clone() }).to_vec(), 16)
    };
    let overlapping = kavern::cache::KvCache::new(&memory, &both([first, second]));
    assert_eq!(refused(overlapping), Status::InvalidArgument);
    let settings = CacheConfig { metadata_only: true, ..with(own) };
    assert_eq!(refused(kavern::cache::KvCache::new(&memory, &settings)), Status::InvalidArgument);
    assert_eq!(memory.statistics().device.bytes, before.device.bytes);
    device.memory_free(own).unwrap();
    other.memory_free(foreign).unwrap();
}
