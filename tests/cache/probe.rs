//! Probes: the answer of a match without a lease, and no block of another namespace ever.

use fastrand::Rng;
use kavern::cache::{CacheConfig, Extra, HashKind, Request};
use kavern::error::Status;

use super::bench::{Bench, ask, ask_keys, ask_with, commit_keys, config, group, opaque, prompt, refused};

/// Tokens that share prefixes of several lengths with other prompts.
fn branching(random: &mut Rng, links: usize) -> Vec<i32> {
    (0..links * 4).map(|at| if at % 4 == 3 && random.u8(0..5) == 0 { random.i32(1..3) } else { 0 }).collect()
}

#[test]
fn a_probe_answers_as_a_match_does_whatever_was_evicted() {
    for (hash, groups) in [
        (HashKind::Blake3, vec![group(4)]),
        (HashKind::Xxh3, vec![group(4)]),
        (HashKind::Blake3, vec![group(4), opaque(12, 16)]),
        (HashKind::Xxh3, vec![opaque(8, 16), group(4)]),
    ] {
        let mut random = Rng::with_seed(31);
        let mut bench = Bench::new(&CacheConfig { hash, ..config(groups, 300) });
        for round in 0..400 {
            let tokens = branching(&mut random, 128);
            let extra = [Extra { id: [1; 32], token_offset: random.u64(0..512) }];
            let asked = |random: &mut Rng| {
                let count = random.usize(0..=tokens.len());
                let has_extra = extra[0].token_offset < count as u64 && random.u8(0..4) == 0;
                let extras = if has_extra { &extra[..] } else { &[] };
                Request {
                    namespace_id: random.u64(1..3),
                    no_read: random.u8(0..20) == 0,
                    drop_last: random.u8(0..4) == 0,
                    keep_one_token: random.bool(),
                    ..ask_with(&tokens[..count], extras)
                }
            };
            let request = Request { drop_last: false, keep_one_token: false, ..asked(&mut random) };
            bench.run(&request);
            if round % 7 == 0 {
                // Takes some out of the middle of their prefixes.
                bench.cache.evict(0, random.u64(1..40)).unwrap();
            }
            for _ in 0..4 {
                let request = asked(&mut random);
                let before = bench.statistics();
                let found = bench.cache.probe(&request).unwrap();
                let after = bench.statistics();
                assert_eq!((before.lookups, before.leases), (after.lookups, after.leases));
                assert_eq!(found, bench.hits(&request), "round {round}, {hash:?}");
            }
        }
        assert!(bench.statistics().evicted_blocks > 100 && bench.statistics().hit_blocks > 1000);
    }
}

#[test]
fn a_probe_needs_no_lease_and_makes_no_namespace() {
    let mut bench =
        Bench::new(&CacheConfig { max_leases: 1, max_namespaces: 1, ..config(vec![group(4)], 16) });
    let tokens = prompt(1, 12);
    bench.run(&ask(&tokens));
    let hit = bench.look(&ask(&tokens));
    assert_eq!(bench.cache.probe(&ask(&tokens)).unwrap(), 12);
    assert_eq!(bench.cache.probe(&Request { namespace_id: 9, ..ask(&tokens) }).unwrap(), 0);
    assert_eq!(refused(bench.cache.probe(&ask_keys(&[1; 16], 16, 4))), Status::KeyMode);
    let extras = [Extra { id: [1; 32], token_offset: 5 }, Extra { id: [1; 32], token_offset: 4 }];
    assert_eq!(refused(bench.cache.probe(&ask_with(&tokens, &extras))), Status::InvalidArgument);
    bench.release(hit.lease);
    assert_eq!(bench.statistics().namespaces, 1);
}

/// One probe by hashing differs from the owner's in one thing; one million of them find nothing.
#[test]
fn a_million_probes_of_other_namespaces_find_nothing() {
    const KEYS: u32 = 3;
    let mut random = Rng::with_seed(17);
    let bytes: Vec<u8> = (0..16 * KEYS).map(|_| random.u8(..)).collect();
    let tokens = prompt(1, 8);
    let extras = [Extra { id: [5; 32], token_offset: 0 }];
    let mut bench = Bench::new(&CacheConfig { max_namespaces: 4, ..config(vec![group(4)], 32) });
    let by_tokens = Request { namespace_id: 7, adapter_id: 3, salt: b"secret", ..ask_with(&tokens, &extras) };
    bench.run(&by_tokens);
    let by_keys = Request { namespace_id: 8, adapter_id: 3, salt: b"secret", ..ask_keys(&bytes, 16, 4) };
    bench.begin();
    let hit = bench.look(&by_keys);
    let sequence = bench.admit(hit.lease, 12).sequence;
    bench.good(&commit_keys(sequence, 12, &bytes, 16));
    bench.free(sequence);
    bench.done();
    let mut probes = 0;
    while probes < 1_000_000 {
        let salt: [u8; 8] = random.u64(..).to_le_bytes();
        let other_extras = [Extra { id: std::array::from_fn(|_| random.u8(..)), token_offset: 0 }];
        let owner = if probes % 2 == 0 { by_tokens } else { by_keys };
        let probe = match probes / 2 % 5 {
            0 => Request { namespace_id: random.u64(..), ..owner },
            1 => Request { adapter_id: random.u64(..), ..owner },
            2 => Request { salt: &salt, ..owner },
            3 => Request { salt: &b"secret"[..random.usize(0..6)], ..owner },
            // Keys stand for all that they depend on: only tokens have extras.
            _ => Request { naming: ask_with(&tokens, &other_extras).naming, ..by_tokens },
        };
        if (probe.namespace_id, probe.adapter_id) != (owner.namespace_id, owner.adapter_id)
            || probe.salt != owner.salt
            || probes / 2 % 5 == 4
        {
            assert_eq!(bench.cache.probe(&probe).unwrap(), 0, "{probe:?}");
            probes += 1;
        }
    }
    assert_eq!((bench.cache.probe(&by_tokens).unwrap(), bench.cache.probe(&by_keys).unwrap()), (8, 12));
    assert_eq!(bench.statistics().namespaces, 2);
}

/// An embedding that stands in for tokens is named by a digest of its values: an extra at its first token.
#[test]
fn prompt_embeddings_are_told_apart_by_their_digests() {
    let digest = |values: &[f32]| {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        *blake3::hash(&bytes).as_bytes()
    };
    let mut bench = Bench::simple(4, 32);
    // The place of an embedded token holds a number that says nothing of it.
    let tokens = [11, 12, 13, 14, -1, -1, -1, -1, 21, 22, 23, 24];
    let [ours, other] =
        [[0.5, 0.25], [0.5, 0.26]].map(|values| Extra { id: digest(&values), token_offset: 4 });
    bench.run(&ask_with(&tokens, &[ours]));
    assert_eq!(bench.hits(&ask_with(&tokens, &[ours])), 12);
    assert_eq!(bench.hits(&ask_with(&tokens, &[other])), 4);
    assert_eq!(bench.hits(&ask(&tokens)), 4);
}
