//! Chunks: blocks that are found by their own keys, whatever came before them when they were stored.
//!
//! For passages that stand at other places in other prompts. A namespace takes chunks or prefixes, never both, so no
//! prefix is ever built of blocks that were computed elsewhere. A lookup holds its hits by a lease that cannot be
//! admitted: the engine reads the blocks where they lie, rotates keys by the shift that it is told, and writes what it
//! made into slots of its own sequence. After the release the blocks wait for the steps whose work may read them.

use super::block::{Publication, ROOT_SERIAL};
use super::hash::{Extras, Key};
use super::lookup::{Match, Naming, Request};
use super::namespace::Home;
use super::outcomes::Outcomes;
use super::prefix::LinkKeys;
use super::sequence::Holder;
use super::session::MatchSession;
use super::state::State;
use super::walk::AHEAD;
use crate::error::{Error, Result, Status};

/// One block of one group that a lookup found, or did not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkHit {
    /// Where it lies; -1 if some group lacks it.
    pub block: i32,
    /// Tokens by which its place in the new prompt lies behind the one where it was stored.
    pub shift: i64,
}

impl ChunkHit {
    const MISS: Self = Self { block: -1, shift: 0 };
}

impl MatchSession<'_> {
    /// Looks blocks up by their own keys, the block of key i for a place `offsets[i]` of the new prompt, or one after
    /// the other if there are none. Gives each group's answer for each key to `take(group, key, hit)`.
    pub fn find_chunks(
        &mut self,
        request: &Request<'_>,
        offsets: &[u64],
        mut take: impl FnMut(usize, usize, ChunkHit),
    ) -> Result<Match> {
        self.state = None;
        let home = self.cache.chain.home(request)?;
        self.cache.look_up(&home, |state| state.match_chunks(request, &home, offsets, &mut take))
    }
}

impl State {
    fn match_chunks(
        &mut self,
        request: &Request<'_>,
        home: &Home<'_>,
        offsets: &[u64],
        mut take: impl FnMut(usize, usize, ChunkHit),
    ) -> Result<Match> {
        if !self.has_chunks {
            let text = "the cache was made without KAVERN_KV_CHUNK_INDEX";
            return Err(Error::new(Status::Unsupported, text));
        }
        self.class_named(&request.sizing)?;
        let Naming::Chunks { bytes, key_bytes } = request.naming else {
            return Err(Error::argument("chunks are asked for by keys, with KAVERN_REQUEST_CHUNKS"));
        };
        let keys = LinkKeys::Given { bytes, key_bytes: key_bytes as usize };
        let count = keys.count();
        if count as u64 * u64::from(self.link_tokens) > self.max_sequence_tokens {
            return Err(Error::argument("more keys than the blocks of the longest sequence"));
        }
        if (!offsets.is_empty() && offsets.len() != count) || request.drop_last || request.keep_one_token {
            return Err(Error::argument(
                "chunks take an offset for each key or none, and no flags of a prefix",
            ));
        }
        let lease = self.holders.next_lease()?;
        let namespace = self.open_namespace(home)?;
        let mut hits = 0;
        for key in 0..count {
            self.fetch_chunks(namespace, &keys, key);
            let place = offsets.get(key).copied().unwrap_or(key as u64 * u64::from(self.link_tokens));
            let is_hit = !request.no_read && self.take_chunk(lease, namespace, &keys.key(key));
            hits += usize::from(is_hit);
            for (group, store) in self.stores.iter().enumerate() {
                let last = self.holders.lease_rows[group].row(lease).last().filter(|_| is_hit);
                let hit = last.map_or(ChunkHit::MISS, |&block| ChunkHit {
                    block,
                    shift: place
                        .wrapping_sub(store.ancestry(block as u32).position * u64::from(store.block_tokens))
                        as i64,
                });
                take(group, key, hit);
            }
        }
        let groups = self.stores.len() as u64;
        let hit_tokens = hits as u64 * u64::from(self.link_tokens);
        let (blocks, hit) = (groups * count as u64, groups * hits as u64);
        let missed = if request.no_read { 0 } else { blocks - hit };
        let tokens = count as u64 * u64::from(self.link_tokens);
        self.count_outcomes(namespace, &Outcomes { blocks, hit, missed, tokens, hit_tokens });
        let epoch = self.shared.namespaces.epoch(namespace);
        let groups = self.classes[0];
        let holder = Holder { namespace, groups, epoch, ..Holder::wishing(request.no_store) };
        let id = self.holders.open_lease(lease, holder, hit_tokens);
        let lease = &mut self.holders.leases[lease];
        (lease.is_chunks, lease.is_told) = (true, true);
        Ok(Match { lease: id, hit_tokens, block_count: hit, cross_groups: 0, group: None })
    }

    /// Has the memory fetched that the lookups of the next keys read, every so many keys.
    fn fetch_chunks(&self, namespace: u32, keys: &LinkKeys<'_>, first: usize) {
        if !first.is_multiple_of(AHEAD) {
            return;
        }
        let next = || first..keys.count().min(first + AHEAD);
        for store in &self.stores {
            next().for_each(|key| store.index.fetch(store.index.hash(&keys.key(key), namespace)));
            next().for_each(|key| _ = store.fetch_found(store.index.hash(&keys.key(key), namespace)));
        }
    }

    /// Takes a block that every group has under this key into the lease's rows; answers whether they have.
    fn take_chunk(&mut self, lease: usize, namespace: u32, key: &Key) -> bool {
        let wanted = Publication {
            key: *key,
            namespace,
            parent_key: Key::default(),
            parent_serial: ROOT_SERIAL,
            extras: Extras::NONE,
            position: 0,
            has_tokens: false,
        };
        // What an open step is yet to write cannot be read where it lies.
        let open_step = self.shared.steps.oldest_open().unwrap_or(u64::MAX);
        let rows = &mut self.holders.lease_rows;
        let held = rows[0].count(lease);
        for (store, rows) in self.stores.iter().zip(rows.iter_mut()) {
            let hash = store.index.hash(key, namespace);
            match store.find(hash, &wanted, &[], &mut self.shared.counters) {
                Some(block) if store.may_take(block) && store.ancestry(block).step < open_step => {
                    rows.push(lease, block)
                }
                _ => break,
            }
        }
        if rows.iter().any(|rows| rows.count(lease) == held) {
            rows.iter_mut().for_each(|rows| rows.truncate(lease, held));
            return false;
        }
        for (store, rows) in self.stores.iter_mut().zip(rows.iter()) {
            store.acquire(rows.row(lease)[held] as u32, &mut self.shared);
        }
        true
    }
}
