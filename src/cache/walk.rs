//! The walk along a prompt's keys in one group: block after block, as long as each is there.
//!
//! Positions go in parts of [`AHEAD`], each of which is met three times: the cells of the index are asked for, then the
//! blocks that they name with what proves their content, then all of it is read. In between other parts have their
//! turn, so the reads of many blocks overlap. Blocks of a prompt mostly lie one behind the other, as they were handed
//! out in runs. While they do, only the last of a part is looked up in the index: where it stands tells where the
//! others should. What it does not: believe that. Invariant: a block is taken only if it is findable under the key of
//! its position and proved to be the wanted content; no other can be then, as a key has one block.

use super::block::{Counters, ROOT_SERIAL};
use super::hash::Key;
use super::lookup::{Naming, Request};
use super::prefix::LinkKeys;
use super::sequence::Rows;
use super::store::{Proof, Store};

/// Positions between the fetch of a cell and of its block, and from there to their use.
pub(super) const AHEAD: usize = 16;
/// No block.
pub(super) const NONE: u32 = u32::MAX;

/// What is looked up, and the row that receives what is found.
pub(super) struct Search<'a> {
    pub(super) request: &'a Request<'a>,
    pub(super) keys: &'a LinkKeys<'a>,
    pub(super) namespace: u32,
    pub(super) row: usize,
}

impl Search<'_> {
    /// Pushes blocks of one group until the row has `to` of them or one is missing; answers whether it has.
    pub(super) fn take_blocks(
        &self,
        store: &Store,
        rows: &mut Rows,
        links_each: usize,
        to: usize,
        counters: &mut Counters,
    ) -> bool {
        // One walk for each kind of keys, which then knows how to read one.
        let link = |position: usize| (position + 1) * links_each - 1;
        let shelf = Shelf { search: self, store, rows, links_each, counters };
        match *self.keys {
            LinkKeys::Chained(scratch) => {
                let keys = scratch.keys();
                shelf.walk(to, |position| keys[link(position)])
            }
            LinkKeys::Given { bytes, key_bytes: 32 } => {
                let keys = bytes.as_chunks::<32>().0;
                shelf.walk(to, |position| Key::from_bytes(&keys[link(position)]))
            }
            LinkKeys::Given { .. } => shelf.walk(to, |position| self.keys.key(link(position))),
        }
    }
}

/// Where the walk looks and what it fills.
struct Shelf<'a> {
    search: &'a Search<'a>,
    store: &'a Store,
    rows: &'a mut Rows,
    links_each: usize,
    counters: &'a mut Counters,
}

impl Shelf<'_> {
    fn walk(self, to: usize, key: impl Fn(usize) -> Key) -> bool {
        let Self { search, store, rows, links_each, counters } = self;
        let Search { request, keys, namespace, row } = *search;
        let first = rows.count(row);
        let before = rows.row(row).last().map(|&block| block as u32);
        let mut near = before.unwrap_or(NONE);
        let (tokens, is_proved) = match request.naming {
            Naming::Tokens(tokens, _) if store.proof != Proof::Key => (tokens, true),
            _ => (&[][..], false),
        };
        let parent_serial = before.filter(|_| is_proved).map_or(ROOT_SERIAL, |block| store.serial(block));
        let mut walk = Walk { store, namespace, key, keys, links_each, tokens, is_proved, parent_serial };
        if !store.is_large {
            // All of it is near: what is looked up beyond the end of the prefix would be for nothing.
            return (first..to).all(|position| {
                let Some(block) = walk.take(position, near.wrapping_add(1), counters) else { return false };
                rows.push(row, block);
                near = block;
                true
            });
        }
        let (mut asked, mut known) = (Part::empty(first), Part::empty(first));
        let mut is_run = false;
        while known.first < to {
            let from = asked.first + asked.count;
            let next = walk.ask(from, to.min(from + AHEAD), is_run);
            let coming = walk.find(asked, &mut near, &mut is_run);
            let mut blocks = known.blocks.map(|block| block as i32);
            if !walk.takes_run(&known) {
                for at in 0..known.count {
                    let Some(block) = walk.take(known.first + at, known.blocks[at], counters) else {
                        rows.push_all(row, &blocks[..at]);
                        return false;
                    };
                    blocks[at] = block as i32;
                }
            }
            rows.push_all(row, &blocks[..known.count]);
            (known, asked) = (coming, next);
        }
        true
    }
}

/// Neighbouring positions on their way.
#[derive(Clone, Copy)]
struct Part {
    first: usize,
    count: usize,
    /// The blocks before the last one are expected to lie before it, and only that one is asked for.
    is_run: bool,
    hashes: [u32; AHEAD],
    /// Where the blocks are likely.
    blocks: [u32; AHEAD],
}

impl Part {
    fn empty(first: usize) -> Self {
        Self { first, count: 0, is_run: false, hashes: [0; AHEAD], blocks: [NONE; AHEAD] }
    }
}

/// What one position after the other is taken with.
struct Walk<'a, K> {
    store: &'a Store,
    namespace: u32,
    /// The key of a position.
    key: K,
    keys: &'a LinkKeys<'a>,
    links_each: usize,
    tokens: &'a [i32],
    /// Whether content is proved beyond its key.
    is_proved: bool,
    /// Identity of the content taken last.
    parent_serial: u64,
}

impl<K: Fn(usize) -> Key> Walk<'_, K> {
    /// The block of the next position, which is this one or another.
    #[inline(always)]
    fn take(&mut self, position: usize, likely: u32, counters: &mut Counters) -> Option<u32> {
        let key = (self.key)(position);
        let block = match self.store.is_named(likely, &key, self.namespace) {
            true => likely,
            false => self.store.find_named(&key, self.namespace)?,
        };
        if self.is_proved {
            let each = self.store.block_tokens as usize;
            let tokens = &self.tokens[position * each..][..each];
            let extras = self.keys.extras((position + 1) * self.links_each - 1);
            self.parent_serial = self.store.prove(block, self.parent_serial, extras, tokens, counters)?;
        }
        Some(block)
    }

    /// Takes all of a part at once, if its blocks lie one behind the other as expected and are the next ones.
    #[inline]
    fn takes_run(&mut self, part: &Part) -> bool {
        let &Part { first, count, is_run, blocks: [block, ..], .. } = part;
        if !is_run || !self.store.is_run_named(block, count, self.namespace, |at| (self.key)(first + at)) {
            return false;
        }
        if self.is_proved {
            let each = self.store.block_tokens as usize;
            let tokens = &self.tokens[first * each..][..count * each];
            let extras = |at| self.keys.extras((first + at + 1) * self.links_each - 1);
            match self.store.prove_run(block, self.parent_serial, tokens, extras) {
                Some(serial) => self.parent_serial = serial,
                None => return false,
            }
        }
        true
    }

    /// Asks for the cells of these positions.
    #[inline]
    fn ask(&self, first: usize, to: usize, is_run: bool) -> Part {
        let count = to - first;
        let mut part = Part { count, is_run, ..Part::empty(first) };
        let from = if is_run { count.saturating_sub(1) } else { 0 };
        for at in from..count {
            let hash = self.store.index.hash(&(self.key)(first + at), self.namespace);
            part.hashes[at] = hash;
            self.store.index.fetch(hash);
        }
        part
    }

    /// Finds where the blocks of a part are likely and asks for them. `near` is the last one of the part before and
    /// then of this one; answers in `is_run` whether those that follow are expected one behind the other.
    #[inline]
    fn find(&self, mut part: Part, near: &mut u32, is_run: &mut bool) -> Part {
        let Some(last) = part.count.checked_sub(1) else { return part };
        let store = self.store;
        if part.is_run {
            let first = near.wrapping_add(1);
            if store.index.find(part.hashes[last], |_| true) == Some(first.wrapping_add(last as u32)) {
                (first..).zip(&mut part.blocks[..=last]).for_each(|(block, place)| *place = block);
                *near = part.blocks[last];
                store.fetch_run(first, part.count);
                return part;
            }
            part = self.ask(part.first, part.first + part.count, false);
        }
        *is_run = true;
        for at in 0..part.count {
            let Some(block) = store.fetch_found(part.hashes[at]) else {
                // The prefix ends here.
                *is_run = false;
                break;
            };
            *is_run &= at == 0 || block == near.wrapping_add(1);
            (part.blocks[at], *near) = (block, block);
        }
        part
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::ahead::tests::{EACH, cache, request};
    use crate::cache::block::FINDABLE;
    use crate::cache::namespace::{Home, KeyMode};
    use crate::cache::{HashKind, KvCache, Op, Target};
    use crate::error::Status;
    use crate::types::Id;

    const BLOCKS: u64 = 256;

    /// Tokens that a match is to find, one look at the index for each link.
    fn expected(cache: &KvCache, tokens: &[i32]) -> u64 {
        let mut keys = Vec::new();
        cache.keys(&request(tokens), |_, key| keys.push(key)).unwrap();
        let state = cache.state();
        let home = Home::new(1, 0, b"", KeyMode::Tokens);
        let Ok(Some(namespace)) = state.shared.namespaces.find(&home) else { return 0 };
        let store = &state.stores[0];
        let mut parent = ROOT_SERIAL;
        let is_there = |key: &&Key| {
            let Some(block) = store.find_named(key, namespace) else { return false };
            let origin = store.origin(block);
            let is_child = store.proof == Proof::Key || origin.parent_serial == parent;
            parent = origin.serial;
            is_child
        };
        keys.iter().take_while(is_there).count() as u64 * u64::from(EACH)
    }

    /// Stores a prompt in a step.
    fn store(cache: &KvCache, tokens: &[i32], step: u64) {
        let found = cache.lookups().find(&request(tokens)).unwrap();
        let (hit_tokens, rest) = (found.hit_tokens as usize, tokens.len() as u64 - found.hit_tokens);
        let mut session = cache.step(step).unwrap();
        let admit = Op::Admit { lease: found.lease, tokens: rest, lookahead: 0, row: -1, expected_tokens: 0 };
        let admitted = session.apply(&admit);
        assert_eq!(admitted.status, Status::Ok);
        let target = Target::Id(Id(admitted.sequence));
        let commit = Op::Commit { target, tokens: rest, naming: Naming::Tokens(&tokens[hit_tokens..], &[]) };
        assert_eq!(session.apply(&commit).status, Status::Ok);
        assert_eq!(session.apply(&Op::Free { target }).status, Status::Ok);
        drop(session);
        cache.step_done(step, None).unwrap();
    }

    #[test]
    fn a_prefix_ends_inside_of_a_run_where_anything_differs() {
        let cache = cache(HashKind::Xxh3, BLOCKS);
        let tokens: Vec<i32> = (0..BLOCKS as i32 / 2 * EACH as i32).collect();
        store(&cache, &tokens, 1);
        let lease = cache.lookups().find(&request(&tokens)).unwrap().lease;
        let blocks: Vec<i32> = cache.lookups().blocks(lease).unwrap().collect();
        assert!(blocks.len() == BLOCKS as usize / 2 && blocks.windows(2).all(|pair| pair[0] + 1 == pair[1]));
        cache.state().stores[0].is_large = true;
        // Each changes one thing of a block, and changes it back.
        let faults: [fn(&mut Store, usize); 6] = [
            |store, block| store.tokens[(block + 1) * EACH as usize - 1] ^= 1,
            |store, block| store.origins[block].extras[3] ^= 1,
            |store, block| store.origins[block].parent_serial ^= 1,
            |store, block| store.blocks[block].key.0[3] ^= 1,
            |store, block| store.blocks[block].namespace_and_flags ^= 1,
            |store, block| store.blocks[block].namespace_and_flags ^= FINDABLE,
        ];
        for (at, &block) in blocks.iter().enumerate() {
            for (number, fault) in faults.iter().enumerate() {
                fault(&mut cache.state().stores[0], block as usize);
                let expected = at as u64 * u64::from(EACH);
                assert_eq!(cache.probe(&request(&tokens)).unwrap(), expected, "fault {number}");
                fault(&mut cache.state().stores[0], block as usize);
            }
        }
        cache.validate().unwrap();
        assert_eq!(cache.probe(&request(&tokens)).unwrap(), tokens.len() as u64);
    }

    #[test]
    fn the_walk_finds_what_single_looks_find_wherever_the_blocks_lie() {
        for hash in [HashKind::Xxh3, HashKind::Blake3] {
            let cache = cache(hash, BLOCKS);
            let mut random = fastrand::Rng::with_seed(3);
            // A prompt has the start of another and goes on by itself.
            let prompt = |random: &mut fastrand::Rng| {
                let (links, shared) = (random.usize(1..=BLOCKS as usize / 2), random.usize(0..64));
                let (family, own) = (random.i32(0..3), random.i32(0..12));
                let token = |at: usize| if at / EACH as usize >= shared { 1000 + own } else { family };
                (0..links * EACH as usize).map(token).collect::<Vec<i32>>()
            };
            let (mut step, mut runs, mut breaks) = (0, 0, 0);
            for _ in 0..400 {
                let tokens = prompt(&mut random);
                step += 1;
                store(&cache, &tokens, step);
                if random.u32(0..4) == 0 {
                    cache.evict(0, random.u64(1..=BLOCKS / 2)).unwrap();
                }
                for tokens in [tokens, prompt(&mut random), prompt(&mut random)] {
                    let expected = expected(&cache, &tokens);
                    for is_large in [false, true] {
                        cache.state().stores[0].is_large = is_large;
                        assert_eq!(cache.probe(&request(&tokens)).unwrap(), expected);
                        let found = cache.lookups().find(&request(&tokens)).unwrap();
                        assert_eq!(found.hit_tokens, expected);
                        let mut session = cache.lookups();
                        let blocks: Vec<i32> = session.blocks(found.lease).unwrap().collect();
                        assert_eq!(blocks.len() as u64 * u64::from(EACH), expected);
                        let neighbours = blocks.windows(2).filter(|pair| pair[0] + 1 == pair[1]).count();
                        runs += neighbours;
                        breaks += blocks.len().saturating_sub(1 + neighbours);
                        drop(session);
                        step += 1;
                        let released = cache.step(step).unwrap().apply(&Op::Release { lease: found.lease });
                        assert_eq!(released.status, Status::Ok);
                        cache.step_done(step, None).unwrap();
                    }
                }
            }
            cache.validate().unwrap();
            assert!(
                runs > 10_000 && breaks > 1000,
                "{runs} blocks lie behind the one before, {breaks} do not"
            );
        }
    }
}
