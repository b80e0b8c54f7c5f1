//! Lookups in caches of several groups beside single looks at the indexes, wherever the blocks lie.
//!
//! The other side looks each block up by itself and tries every length, longest first. What it does not: name its
//! content, which is the cache's chain in both. `tests/cache/groups_model.rs` has the same with content of its own, in
//! caches too small for a walk that looks ahead.

use std::sync::Arc;

use super::*;
use crate::cache::ahead::tests::{EACH, request};
use crate::cache::namespace::{Home, KeyMode};
use crate::cache::store::{Proof, Store};
use crate::cache::{CacheConfig, Content, GroupConfig, HashKind, KvCache, Op, Target};
use crate::error::Status;
use crate::event::NoSink;
use crate::format::LatentShape;
use crate::memory::{Limits, Memory};
use crate::types::Id;

/// Of each group.
const BLOCKS: u64 = 512;
/// Of the longest prompt: several parts of a walk.
const LINKS: usize = 200;

fn cache(hash: HashKind, groups: &[(Reach, u32)], partial_hits: bool) -> KvCache {
    let group = |&(reach, links): &(Reach, u32)| {
        let block_tokens = links * EACH;
        let content = match reach {
            Reach::State { .. } => Content::Opaque { block_bytes: 16 },
            _ => Content::Latent(LatentShape { layers: 1, token_bytes: 16, block_tokens }),
        };
        GroupConfig { reach, ..GroupConfig::new(content, block_tokens) }
    };
    let tokens = LINKS as u64 * u64::from(EACH);
    let config = CacheConfig {
        max_sequences: 4,
        max_sequence_tokens: tokens,
        max_batch_tokens: tokens as u32,
        max_leases: 4,
        max_namespaces: 4,
        steps_in_flight: 2,
        hash,
        partial_hits,
        metadata_only: true,
        ..CacheConfig::new(groups.iter().map(group).collect(), BLOCKS)
    };
    let device = crate::device::registry::open("host").unwrap();
    KvCache::new(&Memory::new(device, Limits::default(), Arc::new(NoSink)), &config).unwrap()
}

/// A prompt by its tokens, or by keys of so many bytes.
struct Prompt {
    tokens: Vec<i32>,
    keys: Vec<Key>,
    bytes: Vec<u8>,
    key_bytes: usize,
}

impl Prompt {
    /// It has the start of others and may go on by itself.
    fn new(cache: &KvCache, random: &mut fastrand::Rng, key_bytes: usize) -> Self {
        let (links, shared) = (random.usize(1..=LINKS), [7, 64, 150, LINKS][random.usize(0..4)]);
        let (family, own) = (random.i32(0..2), random.i32(0..4));
        let token = |at: usize| if at / EACH as usize >= shared { 1000 + own } else { family };
        let tokens: Vec<i32> = (0..links * EACH as usize).map(token).collect();
        let mut keys = Vec::new();
        // A namespace that is named by keys chains none.
        let namespace_id = if key_bytes == 0 { 1 } else { 2 };
        cache.keys(&Request { namespace_id, ..request(&tokens) }, |_, key| keys.push(key)).unwrap();
        let bytes: Vec<u8> = keys.iter().flat_map(|key| key.to_bytes()[..key_bytes].to_vec()).collect();
        if key_bytes > 0 {
            keys = bytes.chunks(key_bytes).map(Key::from_bytes).collect();
        }
        Self { tokens, keys, bytes, key_bytes }
    }

    /// What names it from a token on that ends a link.
    fn naming(&self, first: usize) -> Naming<'_> {
        match self.key_bytes {
            0 => Naming::Tokens(&self.tokens[first..], &[]),
            each => {
                Naming::Keys { bytes: &self.bytes[first / EACH as usize * each..], key_bytes: each as u32 }
            }
        }
    }

    fn request(&self) -> Request<'_> {
        Request { naming: self.naming(0), ..request(&self.tokens) }
    }

    fn mode(&self) -> KeyMode {
        if self.key_bytes == 0 { KeyMode::Tokens } else { KeyMode::Keys(self.key_bytes as u32) }
    }
}

/// Tokens and blocks that a match is to find.
fn expected(cache: &KvCache, prompt: &Prompt) -> (u64, Vec<i32>) {
    let state = cache.state();
    let home = Home::new(1, 0, b"", prompt.mode());
    let Ok(Some(namespace)) = state.shared.namespaces.find(&home) else { return (0, Vec::new()) };
    let look = |store: &Store, position: usize, parent: u64| {
        let key = prompt.keys.get((position + 1) * (store.block_tokens / EACH) as usize - 1)?;
        let block = store.find_named(key, namespace)?;
        let is_proved = store.proof != Proof::Key && prompt.mode() == KeyMode::Tokens;
        (!is_proved || store.origin(block).parent_serial == parent).then_some(block)
    };
    let prefix = |store: &Store| {
        let (mut parent, mut found) = (ROOT_SERIAL, Vec::new());
        while let Some(block) = look(store, found.len(), parent).filter(|_| store.reach.is_prefix()) {
            parent = store.origin(block).serial;
            found.push(block);
        }
        found
    };
    let prefixes: Vec<Vec<u32>> = state.stores.iter().map(prefix).collect();
    let has_chain = state.stores.iter().any(|store| store.reach.is_prefix());
    'lengths: for length in (1..=prompt.keys.len() as u64).rev().map(|links| links * u64::from(EACH)) {
        let cells = |store: &Store| length.div_ceil(u64::from(store.block_tokens)) as usize;
        let is_there = |(store, prefix): (&Store, &Vec<u32>)| {
            let may_end = match store.reach {
                Reach::State { .. } => length % store.snapshot_tokens == 0,
                _ => state.finds_partial || length % u64::from(store.block_tokens) == 0,
            };
            may_end && (!store.reach.is_prefix() || prefix.len() >= cells(store))
        };
        if !state.stores.iter().zip(&prefixes).all(is_there) {
            continue;
        }
        let anchor = |end: u64| {
            state.anchor.map_or(Some(ROOT_SERIAL), |anchor| {
                let store = &state.stores[anchor];
                let block = prefixes[anchor].get((end / u64::from(store.block_tokens)) as usize - 1);
                block.map(|&block| store.origin(block).serial)
            })
        };
        let mut blocks = Vec::new();
        for (store, prefix) in state.stores.iter().zip(&prefixes) {
            let each = u64::from(store.block_tokens);
            let first = match store.reach {
                Reach::State { .. } => cells(store) - 1,
                reach => (reach.first_needed(length) / each) as usize,
            };
            let first = if has_chain { first } else { first.min(cells(store) - 1) };
            if store.reach.is_prefix() {
                blocks.extend(prefix[..cells(store)].iter().map(|&block| block as i32));
                continue;
            }
            for position in first..cells(store) {
                // What ends behind all that is proved is found by its key, or not at all.
                let parent = anchor((position as u64 + 1) * each);
                let Some(block) = look(store, position, parent.unwrap_or(NO_SERIAL)) else {
                    continue 'lengths;
                };
                blocks.push(block as i32);
            }
        }
        return (length, blocks);
    }
    (0, Vec::new())
}

/// What lookups met.
#[derive(Default)]
struct Met {
    /// Hits longer than three parts of a walk.
    long: usize,
    /// Blocks that lie behind the one before, and those that do not.
    runs: usize,
    breaks: usize,
    /// Hits that end inside a block.
    inside: usize,
}

fn play(cache: &KvCache, groups: &[(Reach, u32)], key_bytes: usize, met: &mut Met) {
    let mut random = fastrand::Rng::with_seed(7);
    let mut step = 0;
    let mut apply = |op: &Op<'_>| {
        step += 1;
        let result = cache.step(step).unwrap().apply(op);
        assert_eq!(result.status, Status::Ok);
        cache.step_done(step, None).unwrap();
        result.sequence
    };
    for _ in 0..200 {
        let prompt = Prompt::new(cache, &mut random, key_bytes);
        let found = cache.lookups().find(&prompt.request()).unwrap();
        let tokens = prompt.tokens.len() as u64 - found.hit_tokens;
        let lease = found.lease;
        let admitted = apply(&Op::Admit { lease, tokens, lookahead: 0, row: -1, expected_tokens: 0 });
        let target = Target::Id(Id(admitted));
        apply(&Op::Commit { target, tokens, naming: prompt.naming(found.hit_tokens as usize) });
        apply(&Op::Free { target });
        if random.u32(0..4) == 0 {
            let group = random.u32(0..groups.len() as u32);
            cache.evict(group, random.u64(1..=BLOCKS / 2)).unwrap();
        }
        let others = [(); 2].map(|()| Prompt::new(cache, &mut random, key_bytes));
        for prompt in std::iter::once(prompt).chain(others) {
            let (tokens, blocks) = expected(cache, &prompt);
            let ends_inside = |&(_, links): &(Reach, u32)| !tokens.is_multiple_of((links * EACH).into());
            met.inside += usize::from(groups.iter().any(ends_inside));
            met.long += usize::from(tokens > 3 * 16 * u64::from(EACH));
            let neighbours = blocks.windows(2).filter(|pair| pair[0] + 1 == pair[1]).count();
            met.runs += neighbours;
            met.breaks += blocks.len().saturating_sub(1 + neighbours);
            for is_large in [false, true] {
                cache.state().stores.iter_mut().for_each(|store| store.is_large = is_large);
                assert_eq!(cache.probe(&prompt.request()).unwrap(), tokens, "{groups:?}");
                let found = cache.lookups().find(&prompt.request()).unwrap();
                assert_eq!(found.hit_tokens, tokens, "{groups:?}");
                let held: Vec<i32> = cache.lookups().blocks(found.lease).unwrap().collect();
                assert_eq!(held, blocks, "{groups:?}");
                apply(&Op::Release { lease: found.lease });
            }
        }
    }
    cache.validate().unwrap();
}

#[test]
fn lookups_in_several_groups_find_what_single_looks_find_wherever_the_blocks_lie() {
    let sliding = |links: u32| Reach::Sliding { window_tokens: links * EACH };
    let (both, blake3) = (&[HashKind::Xxh3, HashKind::Blake3][..], &[HashKind::Blake3][..]);
    let caches: [(_, &[(Reach, u32)]); 5] = [
        (both, &[(Reach::All, 1), (sliding(20), 1)]),
        (both, &[(Reach::All, 1), (Reach::State { snapshot_blocks: 0 }, 1)]),
        (both, &[(sliding(3), 2), (Reach::All, 1), (Reach::All, 2)]),
        (both, &[(Reach::Untrimmed, 4), (Reach::Chunked { chunk_tokens: 24 * EACH }, 1), (Reach::All, 1)]),
        // XXH3 wants a group that nothing trims.
        (blake3, &[(Reach::Untrimmed, 2), (sliding(40), 1), (Reach::State { snapshot_blocks: 3 }, 2)]),
    ];
    for (hashes, groups) in caches {
        for &hash in hashes {
            for key_bytes in [0, 32, 24] {
                let mut met = Met::default();
                play(&cache(hash, groups, false), groups, key_bytes, &mut met);
                let Met { long, runs, breaks, inside } = met;
                assert_eq!(inside, 0);
                assert!(
                    long > 10 && runs > 1000 && breaks > 100,
                    "{groups:?}: {long} long hits, {runs} blocks lie behind the one before, {breaks} do not"
                );
            }
        }
    }
}

#[test]
fn hits_of_groups_with_blocks_of_any_sizes_end_inside_blocks_that_are_found_whole() {
    let sliding = |links: u32| Reach::Sliding { window_tokens: links * EACH };
    let chunked = |links: u32| Reach::Chunked { chunk_tokens: links * EACH };
    let state = |snapshot_blocks| Reach::State { snapshot_blocks };
    let (both, blake3) = (&[HashKind::Xxh3, HashKind::Blake3][..], &[HashKind::Blake3][..]);
    let caches: [(_, &[(Reach, u32)]); 6] = [
        (blake3, &[(Reach::All, 5), (sliding(20), 3)]),
        (both, &[(Reach::All, 3), (sliding(14), 6), (Reach::Untrimmed, 7)]),
        // Blocks that lie across the ends of what is hashed and walked at once.
        (blake3, &[(Reach::Untrimmed, 50), (Reach::All, 1), (sliding(40), 27)]),
        (blake3, &[(sliding(9), 4), (chunked(10), 3)]),
        (both, &[(Reach::All, 2), (state(0), 2), (chunked(11), 4), (Reach::Untrimmed, 9)]),
        (blake3, &[(state(1), 2), (Reach::All, 7), (sliding(1), 5)]),
    ];
    for (hashes, groups) in caches {
        for &hash in hashes {
            for key_bytes in [0, 32] {
                let mut met = Met::default();
                play(&cache(hash, groups, true), groups, key_bytes, &mut met);
                let Met { long, inside, .. } = met;
                assert!(long > 10 && inside > 40, "{groups:?}: {long} long hits, {inside} inside blocks");
            }
        }
    }
}

#[test]
fn a_hit_may_end_inside_a_block_that_lies_across_the_end_of_a_stretch_of_the_walk() {
    for first in [0, 1] {
        let mut groups = [(Reach::Untrimmed, 50), (Reach::All, 1)];
        groups.rotate_left(first);
        let cache = cache(HashKind::Blake3, &groups, true);
        let tokens: Vec<i32> = (0..150 * EACH as i32).collect();
        let lease = cache.lookups().find(&request(&tokens)).unwrap().lease;
        let mut session = cache.step(1).unwrap();
        let count = tokens.len() as u64;
        let admit = Op::Admit { lease, tokens: count, lookahead: 0, row: -1, expected_tokens: 0 };
        let target = Target::Id(Id(session.apply(&admit).sequence));
        let commit = Op::Commit { target, tokens: count, naming: Naming::Tokens(&tokens, &[]) };
        assert_eq!(session.apply(&commit).blocks_committed, 153);
        assert_eq!(session.apply(&Op::Free { target }).status, Status::Ok);
        drop(session);
        cache.step_done(1, None).unwrap();
        // The leaves go first.
        assert_eq!(cache.evict(1 - first as u32, 40).unwrap(), 40);
        assert_eq!(cache.probe(&request(&tokens)).unwrap(), 110 * u64::from(EACH));
    }
}
