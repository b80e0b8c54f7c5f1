//! How the content of a block goes to another slot, with all that a store knows of it.
//!
//! Key, index, order among others, priority, pins and counts stay what they were; only the number changes. What it does
//! not: copy the bytes, or tell the holders; that is `moves`. Part of `store`, whose invariants hold here too.

use super::Store;
use crate::cache::block::{
    Ancestry, FINDABLE, HELD_TWICE, NAMED, NAMESPACE_MASK, NO_SERIAL, RETAINED, Shared, UNWRITTEN,
};
use crate::cache::children::Parent;
use crate::cache::events::{CacheEventKind, RemoveReason};
use crate::cache::owners::owner_of;

/// Flags that tell of the content of a block and not of its slot.
const OF_CONTENT: u32 = FINDABLE | NAMED | HELD_TWICE | UNWRITTEN | NAMESPACE_MASK | RETAINED;

impl Store {
    /// Blocks above the limit that are not retired.
    pub(in crate::cache) fn stray_count(&self) -> u32 {
        self.block_count() - self.limit - self.retired
    }

    /// Takes a block that is free, evicting if none is, for content that comes from another slot; the one after `near`
    /// if that is free. The caller has checked `available`.
    pub(in crate::cache) fn take_slot(&mut self, near: Option<u32>, shared: &mut Shared) -> u32 {
        if let Some(slot) = self.free.take_one(near) {
            self.take_out(slot);
            return slot;
        }
        self.evict(RemoveReason::Evicted, shared).expect("the caller checked that a block is available")
    }

    /// A block that one holder has, and that no step in flight names which knew it with two, is that one's alone. Asked
    /// before a copy from it makes it one of the open step's.
    pub(in crate::cache) fn forget_sharing(&mut self, index: u32, completed: u64) {
        let block = &mut self.blocks[index as usize];
        if block.refs == 1 && block.last_step <= completed {
            block.namespace_and_flags &= !HELD_TWICE;
        }
    }

    /// Gives a held block's content, holders and place among others to a slot that was taken for it. The copy of the
    /// bytes is listed: the old slot waits for that step.
    pub(in crate::cache) fn relocate(&mut self, from: u32, to: u32, shared: &mut Shared) {
        let old = *self.block(from);
        let moved = |kind, reason, index, store: &Self, shared: &mut Shared| {
            if shared.events.is_on() {
                let event = store.event(index, kind, reason, &shared.namespaces);
                shared.events.push(event);
            }
        };
        if old.is_findable() {
            moved(CacheEventKind::Removed, RemoveReason::Moved, from, self, shared);
        }
        let parent = Parent { key: self.ancestry(from).parent_key, namespace: old.namespace() };
        let new = &mut self.blocks[to as usize];
        (new.key, new.tenant, new.refs) = (old.key, old.tenant, old.refs);
        new.last_step = new.last_step.max(old.last_step);
        new.namespace_and_flags =
            new.namespace_and_flags & !OF_CONTENT | old.namespace_and_flags & OF_CONTENT;
        let left = &mut self.blocks[from as usize];
        left.refs = 0;
        left.namespace_and_flags &= !OF_CONTENT;
        if !self.origins.is_empty() {
            self.origins[to as usize] = self.origins[from as usize];
            self.origins[from as usize].serial = NO_SERIAL;
        }
        if !self.ancestries.is_empty() {
            // Its bytes come with the step of the copy.
            let step = self.blocks[to as usize].last_step;
            self.ancestries[to as usize] = Ancestry { step, ..self.ancestries[from as usize] };
        }
        self.copy_kept(from, to);
        self.retention.moved(from, to);
        if old.is_findable() {
            self.index.replace(self.index.hash(&old.key, old.namespace()), from, to);
            if let Some(mirror) = &mut self.mirror {
                mirror.replace(from, to);
            }
            if let Some(children) = &mut self.children {
                children.replace(from, to, &parent);
            }
            self.by_owner.replace(owner_of(old.tenant), old.namespace(), from, to);
            self.policy.moved(from, to);
            moved(CacheEventKind::Stored, RemoveReason::None, to, self, shared);
        }
        shared.counters.moved_blocks += 1;
        let last_step = self.block(from).last_step;
        let waiting = shared.steps.waiting(last_step, self.group as usize);
        self.link_waiting(from, waiting);
    }
}
