//! Named prefixes: pins under a name, for system prompts that outlive every sequence.
//!
//! A name holds one pin of each findable block of the lease that it was made from; they stay findable until the name is
//! given up or their namespace is reset. One that is given up leaves: nobody finds it any more, and its blocks go from
//! its lists as their pins do, piece by piece. Memory of a name is taken and given back by the callers, outside the
//! lock. Invariant: the pins of names on a block are as many as its places in the lists of all names.

use super::kv_cache::KvCache;
use super::retention::Pinner;
use super::state::{ResetScope, State};
use crate::error::{Error, Result, Status};
use crate::sync::give_way;
use crate::sys::reserve::room;
use crate::types::Id;

/// Most names at a time.
pub const MAX_PREFIXES: usize = 256;
/// Blocks that lose the pin of a name under one hold of the lock; as many may then go above a limit.
pub(super) const UNPIN_PIECE: usize = 32;

/// What a named prefix holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrefixInfo {
    /// Whose it is.
    pub namespace_id: u64,
    /// Tokens from the start of the prompt.
    pub tokens: u64,
    /// Blocks, all groups together.
    pub blocks: u64,
}

/// A named prefix.
pub(super) struct Prefix {
    /// How many were given before it.
    number: u64,
    name: String,
    is_leaving: bool,
    info: PrefixInfo,
    /// By group.
    blocks: Vec<Vec<u32>>,
}

/// All of them; few, so they are searched one by one.
pub(super) struct Prefixes {
    named: Vec<Prefix>,
    given: u64,
}

impl Prefixes {
    pub(super) fn new() -> Result<Self> {
        Ok(Self { named: room(MAX_PREFIXES)?, given: 0 })
    }

    fn find(&self, name: &str) -> Option<usize> {
        self.named.iter().position(|prefix| prefix.name == name && !prefix.is_leaving)
    }

    /// How many names were given so far.
    pub(super) fn given(&self) -> u64 {
        self.given
    }

    /// A named block lies elsewhere now; answers how many blocks it was looked for among.
    pub(super) fn replace(&mut self, group: usize, from: u32, to: u32) -> usize {
        let mut seen = 0;
        for blocks in self.named.iter_mut().map(|prefix| &mut prefix.blocks[group]) {
            seen += blocks.len();
            blocks.iter_mut().filter(|block| **block == from).for_each(|block| *block = to);
        }
        seen
    }

    /// Counts the places of each block of a group in the lists of the names.
    pub(super) fn count_pins(&self, group: usize, counts: &mut [u32]) {
        let blocks = self.named.iter().flat_map(|prefix| &prefix.blocks[group]);
        blocks.for_each(|&block| counts[block as usize] += 1);
    }

    /// Gives each to `take`; answers how many there are.
    pub(super) fn list(&self, mut take: impl FnMut(usize, &PrefixInfo, &str)) -> usize {
        let named = self.named.iter().filter(|prefix| !prefix.is_leaving);
        named.fold(0, |at, prefix| {
            take(at, &prefix.info, &prefix.name);
            at + 1
        })
    }
}

impl State {
    /// Most blocks that a lease holds of a group.
    pub(super) fn lease_size(&self, lease: Id) -> Result<usize> {
        let lease = self.holders.find_lease(lease)?;
        Ok(self.holders.lease_rows.iter().map(|rows| rows.count(lease)).max().unwrap_or(0))
    }

    /// Pins what a lease holds under a name, which is taken with the room for the list of each group's blocks.
    pub(super) fn pin_prefix(
        &mut self,
        given: &mut (String, Vec<Vec<u32>>),
        lease: Id,
    ) -> Result<PrefixInfo> {
        let (name, blocks) = given;
        let lease = self.holders.find_lease(lease)?;
        if self.prefixes.find(name).is_some() {
            return Err(Error::new(Status::InUse, format!("a prefix is already named '{name}'")));
        }
        if self.prefixes.named.len() == MAX_PREFIXES {
            let text = format!("{MAX_PREFIXES} prefixes are named; unpin one");
            return Err(Error::new(Status::LimitReached, text));
        }
        for ((rows, store), blocks) in self.holders.lease_rows.iter().zip(&self.stores).zip(blocks.iter_mut())
        {
            let held = rows.held(lease).iter().map(|&block| block as u32);
            blocks.extend(held.filter(|&block| store.block(block).is_findable()));
        }
        for (group, named) in blocks.iter().enumerate() {
            let Err(refusal) = self.stores[group].pin(Pinner::Name, named.iter().copied()) else { continue };
            for (store, named) in self.stores.iter_mut().zip(&blocks[..group]) {
                store.retention.take_pins(Pinner::Name, named.iter().copied());
            }
            return Err(refusal);
        }
        let holder = self.holders.leases[lease];
        let info = PrefixInfo {
            namespace_id: self.shared.namespaces.get(holder.holder.namespace).id(),
            tokens: holder.hit_tokens,
            blocks: blocks.iter().map(|blocks| blocks.len() as u64).sum(),
        };
        let (name, blocks) = std::mem::take(given);
        let number = self.prefixes.given;
        self.prefixes.given += 1;
        self.prefixes.named.push(Prefix { number, name, is_leaving: false, info, blocks });
        Ok(info)
    }

    /// A named prefix leaves; answers its number.
    fn begin_unpin(&mut self, name: &str) -> Result<u64> {
        let missing = || Error::new(Status::NotFound, format!("no prefix is named '{name}'"));
        let at = self.prefixes.find(name).ok_or_else(missing)?;
        let prefix = &mut self.prefixes.named[at];
        prefix.is_leaving = true;
        Ok(prefix.number)
    }

    /// Takes pins of up to `most` blocks of a prefix away, which leaves. Answers it when those were the last: the
    /// caller drops it.
    pub(super) fn unpin_piece(&mut self, at: usize, most: usize) -> Option<Prefix> {
        let Self { stores, prefixes, shared, .. } = self;
        let prefix = &mut prefixes.named[at];
        prefix.is_leaving = true;
        let mut left = most;
        for (store, blocks) in stores.iter_mut().zip(&mut prefix.blocks) {
            // Leaf first, as sequences let go: the root is the newest.
            let from = blocks.len().saturating_sub(left);
            left -= blocks.len() - from;
            blocks.drain(from..).rev().for_each(|block| store.unpin(Pinner::Name, block, shared));
        }
        let is_rid = prefix.blocks.iter().all(Vec::is_empty);
        let rid = is_rid.then(|| prefixes.named.swap_remove(at));
        self.settle_limits();
        rid
    }

    fn prefix_in(&self, scope: ResetScope, given_before: u64) -> Option<usize> {
        let is_of = |prefix: &Prefix| match scope {
            ResetScope::All => true,
            ResetScope::Namespace(id) => prefix.info.namespace_id == id,
        };
        self.prefixes.named.iter().position(|prefix| prefix.number < given_before && is_of(prefix))
    }

    /// Gives up one name in scope at once, before its blocks are forgotten; the caller drops it and asks again.
    pub(super) fn take_prefix(&mut self, scope: ResetScope) -> Option<Prefix> {
        let at = self.prefix_in(scope, u64::MAX)?;
        self.unpin_piece(at, usize::MAX)
    }
}

impl KvCache {
    /// Takes the pins of a named prefix away. Lets other threads in between pieces.
    pub fn unpin_prefix(&self, name: &str) -> Result<()> {
        let number = {
            let mut state = self.state.lock();
            state.check_decides()?;
            state.begin_unpin(name)?
        };
        self.unpin(|state| state.prefixes.named.iter().position(|prefix| prefix.number == number));
        Ok(())
    }

    /// Takes the pins of all names in scope away that were given before a number of them was.
    pub(super) fn unpin_scope(&self, scope: ResetScope, given_before: u64) {
        self.unpin(|state| state.prefix_in(scope, given_before));
    }

    /// Takes pins of prefixes away, piece by piece, until none is found.
    fn unpin(&self, find: impl Fn(&State) -> Option<usize>) {
        loop {
            let mut state = self.state.lock();
            let Some(at) = find(&state) else { return };
            let rid = state.unpin_piece(at, UNPIN_PIECE);
            give_way(state);
            // Its memory goes when the lock is not held any more.
            drop(rid);
        }
    }
}
