//! Match: the longest prefix of a prompt that every group holds, kept alive by a lease.
//!
//! The keys come from outside of the lock and the walk over them is `prefix`'s; it ends at the first block that any
//! group lacks. The hit length is the largest one that all groups reached and that ends on a block boundary of each.
//! Source of the chain over the smallest common block: vLLM's hash block size for hybrid models.

use super::classes::Groups;
use super::hash::Key;
use super::namespace::Home;
use super::prefix::LinkKeys;
use super::sequence::Holder;
use super::sizes::{Found, Look, Sizing};
use super::state::State;
use crate::error::Result;
use crate::types::Id;

/// Something beside the tokens that content depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Extra {
    /// Identity of the thing.
    pub id: [u8; 32],
    /// First token that depends on it.
    pub token_offset: u64,
}

/// What names the content: tokens that the cache chains, or keys that the caller chained.
#[derive(Clone, Copy, Debug)]
pub enum Naming<'a> {
    /// Token ids and what else they depend on, in rising order of offset.
    Tokens(&'a [i32], &'a [Extra]),
    /// Keys of equal size, one for each link.
    Keys {
        /// All keys, one after the other.
        bytes: &'a [u8],
        /// Bytes of one key.
        key_bytes: u32,
    },
    /// The same in a namespace where a key names a block whatever comes before it; only requests say so.
    Chunks {
        /// All keys, one after the other.
        bytes: &'a [u8],
        /// Bytes of one key.
        key_bytes: u32,
    },
}

/// One prompt to look up.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Tenant.
    pub namespace_id: u64,
    /// Adapter that all content depends on.
    pub adapter_id: u64,
    /// Secret of the tenant.
    pub salt: &'a [u8],
    /// What names the content.
    pub naming: Naming<'a>,
    /// Tokens of the prompt.
    pub token_count: u64,
    /// Match nothing.
    pub no_read: bool,
    /// Publish nothing.
    pub no_store: bool,
    /// Leave out the last hit block.
    pub drop_last: bool,
    /// Leave at least one token to compute.
    pub keep_one_token: bool,
    /// Of the length of the sequence.
    pub sizing: Sizing,
}

impl<'a> Request<'a> {
    /// With no wishes, adapter or salt.
    pub fn new(namespace_id: u64, naming: Naming<'a>, token_count: u64) -> Self {
        Self {
            namespace_id,
            adapter_id: 0,
            salt: b"",
            naming,
            token_count,
            no_read: false,
            no_store: false,
            drop_last: false,
            keep_one_token: false,
            sizing: Sizing::default(),
        }
    }
}

/// What a lookup found.
#[derive(Clone, Copy, Debug)]
pub struct Match {
    /// Keeps the hits alive.
    pub lease: Id,
    /// Tokens found in every group.
    pub hit_tokens: u64,
    /// Blocks found, all groups together.
    pub block_count: u64,
    /// Groups of cross-attention whose whole input was found, as bits.
    pub cross_groups: u32,
    /// The group of the size class, in a cache that has several.
    pub group: Option<u32>,
}

impl State {
    pub(super) fn open_namespace(&mut self, home: &Home<'_>) -> Result<u32> {
        self.check_decides()?;
        self.shared.namespaces.open(home)
    }

    /// Refuses a request whose namespace names its blocks the other way.
    pub(super) fn check_namespace(&self, request: &Request<'_>, home: &Home<'_>) -> Result<()> {
        self.check_decides()?;
        self.class_named(&request.sizing)?;
        self.shared.namespaces.find(home).map(drop)
    }

    /// Looks one prompt up; the hits stay alive until the lease is admitted or released.
    pub(super) fn match_one(
        &mut self,
        request: &Request<'_>,
        home: &Home<'_>,
        keys: &LinkKeys<'_>,
    ) -> Result<Match> {
        let named = self.class_named(&request.sizing)?;
        let lease = self.holders.next_lease()?;
        let namespace = self.open_namespace(home)?;
        let root = self.shared.namespaces.get(namespace).root;
        let mut cross_groups = 0;
        let is_cold = request.no_read || matches!(request.naming, Naming::Chunks { .. });
        let found = match self.is_plain {
            true => {
                let look = Look { request, keys, namespace, row: lease, root, is_cold };
                self.find_plain(&look, named)
            }
            false if is_cold => Found { groups: self.classes[0], key: root, ..Found::default() },
            false => {
                let (found_tokens, hit_tokens, key, inputs) =
                    self.find_mixed(request, keys, namespace, root, lease);
                cross_groups = inputs;
                Found { groups: self.classes[0], found_tokens, hit_tokens, key, ..Found::default() }
            }
        };
        let Found { groups, found_tokens, hit_tokens, key, .. } = found;
        self.note_chosen(&found);
        let mut block_count = 0;
        for (store, rows) in self.stores.iter_mut().zip(&self.holders.lease_rows) {
            let blocks = rows.held(lease);
            block_count += blocks.len() as u64;
            store.acquire_all(blocks, &mut self.shared);
        }
        self.count_lookup(request, namespace, lease, groups, found_tokens, hit_tokens);
        let extras = keys.extras_before(request, hit_tokens, self.link_tokens);
        let epoch = self.shared.namespaces.epoch(namespace);
        let holder = Holder { namespace, groups, key, extras, epoch, ..Holder::wishing(request.no_store) };
        let id = self.holders.open_lease(lease, holder, hit_tokens);
        self.holders.leases[lease].ask = request.ask(self.max_sequence_tokens);
        let group = self.sizes.as_ref().map(|_| groups.first() as u32);
        Ok(Match { lease: id, hit_tokens, block_count, cross_groups, group })
    }

    /// Links of the longest sequence: what is beyond them is not looked for.
    pub(super) fn most_links(&self) -> usize {
        (self.max_sequence_tokens / u64::from(self.link_tokens)) as usize
    }

    /// The largest length, at most `tokens`, that ends a block of every one of these groups.
    fn align(&self, groups: Groups, mut tokens: u64) -> u64 {
        loop {
            let before = tokens;
            let stores = &self.stores[groups.range()];
            stores.iter().for_each(|store| tokens -= tokens % u64::from(store.block_tokens));
            if tokens == before {
                return tokens;
            }
        }
    }

    /// The largest length that all of these groups share in the rows of a lease.
    pub(super) fn reached_tokens(&self, lease: usize, groups: Groups) -> u64 {
        let reached = |(store, rows): (&super::store::Store, &super::sequence::Rows)| {
            rows.count(lease) as u64 * u64::from(store.block_tokens)
        };
        let rows = self.holders.lease_rows[groups.range()].iter();
        self.align(groups, self.stores[groups.range()].iter().zip(rows).map(reached).min().unwrap_or(0))
    }

    /// Cuts the rows to the largest length that all groups share, and that to what the request wants; answers both
    /// with the key of the last link.
    pub(super) fn settle_hits(
        &mut self,
        request: &Request<'_>,
        lease: usize,
        groups: Groups,
        root: Key,
    ) -> (u64, u64, Key) {
        let found_tokens = self.reached_tokens(lease, groups);
        let mut hit_tokens = found_tokens;
        if request.keep_one_token && hit_tokens >= request.token_count {
            hit_tokens = self.align(groups, request.token_count.saturating_sub(1));
        }
        if request.drop_last && hit_tokens > 0 {
            hit_tokens = self.align(groups, hit_tokens - 1);
        }
        let stores = &self.stores[groups.range()];
        let rows = &mut self.holders.lease_rows[groups.range()];
        for (store, rows) in stores.iter().zip(rows.iter_mut()) {
            rows.truncate(lease, (hit_tokens / u64::from(store.block_tokens)) as usize);
        }
        let key = rows[0].row(lease).last().map_or(root, |&block| stores[0].block(block as u32).key);
        (found_tokens, hit_tokens, key)
    }

    /// The blocks of a lease, one group after the other. They stay where they are until it ends.
    pub(super) fn lease_blocks(&mut self, lease: Id) -> Result<impl Iterator<Item = i32> + '_> {
        let index = self.holders.find_lease(lease)?;
        self.holders.leases[index].is_told = true;
        Ok(self.holders.lease_rows.iter().flat_map(move |rows| rows.held(index).iter().copied()))
    }
}
