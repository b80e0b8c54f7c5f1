//! Named prefixes: pins under a name, for system prompts that outlive every sequence.
//!
//! A name holds one pin of each findable block of the lease that it was made from; they stay findable until the name is
//! given up or their namespace is reset. Memory of a name is taken and given back by the callers, outside the lock.
//! Invariant: the pins of names on a block are as many as its places in the lists of all names.

use super::retention::Pinner;
use super::state::{ResetScope, State};
use crate::error::{Error, Result, Status};
use crate::sys::reserve::room;
use crate::types::Id;

/// Most names at a time.
pub const MAX_PREFIXES: usize = 256;

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
    name: String,
    info: PrefixInfo,
    /// By group.
    blocks: Vec<Vec<u32>>,
}

/// All of them; few, so they are searched one by one.
pub(super) struct Prefixes {
    named: Vec<Prefix>,
}

impl Prefixes {
    pub(super) fn new() -> Result<Self> {
        Ok(Self { named: room(MAX_PREFIXES)? })
    }

    fn find(&self, name: &str) -> Option<usize> {
        self.named.iter().position(|prefix| prefix.name == name)
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
        for (at, prefix) in self.named.iter().enumerate() {
            take(at, &prefix.info, &prefix.name);
        }
        self.named.len()
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
        self.prefixes.named.push(Prefix { name, info, blocks });
        Ok(info)
    }

    /// Takes the pins of a named prefix away; the caller drops it.
    pub(super) fn unpin_prefix(&mut self, name: &str) -> Result<Prefix> {
        let missing = || Error::new(Status::NotFound, format!("no prefix is named '{name}'"));
        let at = self.prefixes.find(name).ok_or_else(missing)?;
        Ok(self.unpin_at(at))
    }

    fn unpin_at(&mut self, at: usize) -> Prefix {
        let prefix = self.prefixes.named.swap_remove(at);
        for (store, blocks) in self.stores.iter_mut().zip(&prefix.blocks) {
            // Leaf first, as sequences let go: the root is the newest.
            blocks.iter().rev().for_each(|&block| store.unpin(Pinner::Name, block, &mut self.shared));
        }
        self.settle_limits();
        prefix
    }

    /// Gives up one name in scope, before its blocks are forgotten; the caller drops it and asks again.
    pub(super) fn take_prefix(&mut self, scope: ResetScope) -> Option<Prefix> {
        let at = self.prefixes.named.iter().position(|prefix| match scope {
            ResetScope::All => true,
            ResetScope::Namespace(id) => prefix.info.namespace_id == id,
        })?;
        Some(self.unpin_at(at))
    }
}
