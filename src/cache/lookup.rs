//! Match: the longest prefix of a prompt that every group holds, kept alive by a lease.
//!
//! One walk over the links of the chain; it ends at the first block that any group lacks. The hit length is the
//! largest one that all groups reached and that ends on a block boundary of each. Source of the chain over the
//! smallest common block: vLLM's hash block size for hybrid models.

use super::block::{Publication, ROOT_SERIAL};
use super::events::RemoveReason;
use super::hash::{self, Extras, Key};
use super::hybrid::ChainLink;
use super::namespace::KeyMode;
use super::sequence::Holder;
use super::state::State;
use crate::error::{Error, Result, Status};
use crate::types::Id;

/// Most blocks of each group that a lookup evicts to make room for a new namespace.
const EVICTIONS_FOR_A_NAMESPACE: u32 = 64;

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
}

/// Walks the links of a request, giving the key of each.
pub(super) struct Walk<'a> {
    naming: Naming<'a>,
    hash: super::config::HashKind,
    link_tokens: usize,
    extras_seen: usize,
    position: usize,
    pub(super) key: Key,
    pub(super) extras: Extras,
}

impl Walk<'_> {
    pub(super) fn link_count(&self) -> usize {
        match self.naming {
            Naming::Tokens(tokens, _) => tokens.len() / self.link_tokens,
            Naming::Keys { bytes, key_bytes } => bytes.len() / key_bytes as usize,
        }
    }

    /// Goes on by one link.
    pub(super) fn next(&mut self) {
        match self.naming {
            Naming::Tokens(tokens, all_extras) => {
                let from = self.position * self.link_tokens;
                let to = from + self.link_tokens;
                while let Some(extra) =
                    all_extras.get(self.extras_seen).filter(|e| e.token_offset < to as u64)
                {
                    self.extras.fold(&extra.id, extra.token_offset);
                    self.extras_seen += 1;
                }
                self.key = hash::link(self.hash, &self.key, &tokens[from..to], &self.extras);
            }
            Naming::Keys { bytes, key_bytes } => {
                let each = key_bytes as usize;
                self.key = Key::from_bytes(&bytes[self.position * each..][..each]);
            }
        }
        self.position += 1;
    }
}

impl State {
    pub(super) fn walk<'a>(&self, request: &Request<'a>, root: Key) -> Walk<'a> {
        Walk {
            naming: request.naming,
            hash: self.hash,
            link_tokens: self.link_tokens as usize,
            extras_seen: 0,
            position: 0,
            key: root,
            extras: Extras::NONE,
        }
    }

    fn open_namespace(&mut self, request: &Request<'_>) -> Result<u32> {
        let mode = match request.naming {
            Naming::Tokens(_, extras) => {
                if !extras.is_sorted_by_key(|extra| extra.token_offset) {
                    return Err(Error::argument("extras must stand in rising order of token_offset"));
                }
                KeyMode::Tokens
            }
            Naming::Keys { key_bytes, .. } => KeyMode::Keys(key_bytes),
        };
        let Request { namespace_id, adapter_id, salt, .. } = *request;
        for _ in 0..EVICTIONS_FOR_A_NAMESPACE {
            let opened = self.shared.namespaces.open(namespace_id, adapter_id, salt, mode);
            if !opened.as_ref().is_err_and(|error| error.status == Status::LimitReached) {
                return opened;
            }
            // A full table is mostly old tenants' content that nobody holds: the oldest of it makes room.
            self.stores
                .iter_mut()
                .for_each(|store| _ = store.evict_one(RemoveReason::Evicted, &mut self.shared));
        }
        self.shared.namespaces.open(namespace_id, adapter_id, salt, mode)
    }

    /// Keys of all full links of a request, each given to `take`; answers how many there are.
    pub(super) fn keys(&mut self, request: &Request<'_>, mut take: impl FnMut(usize, Key)) -> Result<u64> {
        let namespace = self.open_namespace(request)?;
        let mut walk = self.walk(request, self.shared.namespaces.get(namespace).root);
        let count = walk.link_count();
        for position in 0..count {
            walk.next();
            take(position, walk.key);
        }
        self.shared.namespaces.drop_use(namespace);
        Ok(count as u64)
    }

    /// Looks one prompt up; the hits stay alive until the lease is admitted or released.
    pub(super) fn match_one(&mut self, request: &Request<'_>) -> Result<Match> {
        let lease = self.holders.next_lease()?;
        let namespace = self.open_namespace(request)?;
        let root = self.shared.namespaces.get(namespace).root;
        let mut cross_groups = 0;
        let (hit_tokens, key) = match request.no_read {
            true => (0, root),
            false if self.is_plain => {
                self.find_prefix(request, namespace, root, lease);
                let has_promises = self.leave_promised(lease);
                match self.finds_partial && !has_promises {
                    true => self.settle_partial(request, namespace, lease, root),
                    false => self.settle_hits(request, lease, root),
                }
            }
            false => {
                let (hit_tokens, key, inputs) = self.find_mixed(request, namespace, root, lease);
                cross_groups = inputs;
                (hit_tokens, key)
            }
        };
        let mut block_count = 0;
        for (store, rows) in self.stores.iter_mut().zip(&self.holders.lease_rows) {
            let blocks = rows.held(lease);
            block_count += blocks.len() as u64;
            for &block in blocks {
                store.acquire(block as u32, &mut self.shared);
            }
            self.shared.counters.lookup_blocks +=
                store.reach.wanted_blocks(store.block_tokens, request.token_count);
        }
        self.shared.counters.lookups += 1;
        // A block that is copied is no hit; its tokens are.
        let ends_inside = |store: &&super::store::Store| hit_tokens % u64::from(store.block_tokens) > 0;
        let sources = match self.finds_partial {
            true => self.stores.iter().filter(ends_inside).count() as u64,
            false => 0,
        };
        self.shared.counters.hit_blocks += block_count - sources;
        self.shared.counters.hit_tokens += hit_tokens;
        let mut extras = Extras::NONE;
        if let Naming::Tokens(_, all_extras) = request.naming {
            let before = all_extras.iter().take_while(|extra| extra.token_offset < hit_tokens);
            before.for_each(|extra| extras.fold(&extra.id, extra.token_offset));
        }
        let holder = Holder { namespace, no_store: request.no_store, key, extras, ..Holder::default() };
        let lease = self.holders.open_lease(lease, holder, hit_tokens);
        Ok(Match { lease, hit_tokens, block_count, cross_groups })
    }

    /// Fills the lease's rows with the blocks of the longest prefix, not yet acquired.
    fn find_prefix(&mut self, request: &Request<'_>, namespace: u32, root: Key, lease: usize) {
        let mut walk = self.walk(request, root);
        let most = (self.max_sequence_tokens / u64::from(self.link_tokens)) as usize;
        let single = self.stores.len() == 1 && self.stores[0].block_tokens == self.link_tokens;
        'links: for link in 0..walk.link_count().min(most) {
            walk.next();
            if let Some(at) = self.chain.get_mut(link) {
                *at = ChainLink { key: walk.key, extras: walk.extras.0 };
            }
            for (group, store) in self.stores.iter().enumerate() {
                let links = (store.block_tokens / self.link_tokens) as usize;
                if !single && (link + 1) % links != 0 {
                    continue;
                }
                let rows = &mut self.holders.lease_rows[group];
                let position = rows.count(lease);
                let tokens = match request.naming {
                    Naming::Tokens(tokens, _) => {
                        let each = store.block_tokens as usize;
                        &tokens[position * each..][..each]
                    }
                    Naming::Keys { .. } => &[],
                };
                let parent = rows.row(lease).last();
                let wanted = Publication {
                    key: walk.key,
                    namespace,
                    parent_key: Key::default(),
                    parent_serial: parent.map_or(ROOT_SERIAL, |&parent| store.origin(parent as u32).serial),
                    extras: walk.extras,
                    position: position as u64,
                    has_tokens: !tokens.is_empty(),
                };
                match store.find(&wanted, tokens, &mut self.shared.counters) {
                    Some(block) => rows.push(lease, block),
                    None => break 'links,
                }
            }
        }
    }

    /// Cuts the rows to the largest length that all groups share; answers it with the key of its last link.
    pub(super) fn settle_hits(&mut self, request: &Request<'_>, lease: usize, root: Key) -> (u64, Key) {
        let rows = &mut self.holders.lease_rows;
        let reached = |(store, rows): (&super::store::Store, &super::sequence::Rows)| {
            rows.count(lease) as u64 * u64::from(store.block_tokens)
        };
        let mut hit_tokens = self.stores.iter().zip(rows.iter()).map(reached).min().unwrap_or(0);
        if request.keep_one_token {
            hit_tokens = hit_tokens.min(request.token_count.saturating_sub(1));
        }
        let align = |mut tokens: u64| loop {
            let before = tokens;
            self.stores.iter().for_each(|store| tokens -= tokens % u64::from(store.block_tokens));
            if tokens == before {
                return tokens;
            }
        };
        hit_tokens = align(hit_tokens);
        if request.drop_last && hit_tokens > 0 {
            hit_tokens = align(hit_tokens - 1);
        }
        for (store, rows) in self.stores.iter().zip(rows.iter_mut()) {
            rows.truncate(lease, (hit_tokens / u64::from(store.block_tokens)) as usize);
        }
        let key = rows[0].row(lease).last().map_or(root, |&block| self.stores[0].block(block as u32).key);
        (hit_tokens, key)
    }

    /// The blocks of a lease, one group after the other.
    pub(super) fn lease_blocks(&self, lease: Id) -> Result<impl Iterator<Item = i32> + '_> {
        let index = self.holders.find_lease(lease)?;
        Ok(self.holders.lease_rows.iter().flat_map(move |rows| rows.held(index).iter().copied()))
    }
}
