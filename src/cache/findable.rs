//! How blocks of a store become findable, and how they stop.
//!
//! What it does not: choose which; that is the policy and who asks. Part of `store`, whose invariants hold here too.

use super::Store;
use crate::cache::block::{
    Ancestry, FINDABLE, NAMED, NAMESPACE_MASK, NO_SERIAL, Origin, Publication, Published, Shared,
};
use crate::cache::children::Parent;
use crate::cache::events::{CacheEvent, CacheEventKind, RemoveReason};
use crate::cache::evict::Facts;
use crate::cache::hash::Extras;
use crate::cache::mirror::BlockHash;
use crate::cache::namespace::Namespaces;
use crate::cache::owners::owner_of;
use crate::cache::retention::Retention;
use crate::cache::tally::Tally;

impl Store {
    /// Makes a held block findable, unless the same content is or the key is taken.
    pub(in crate::cache) fn publish(
        &mut self,
        index: u32,
        as_what: &Publication,
        shared: &mut Shared,
    ) -> Published {
        let published = self.publish_uncounted(index, as_what, shared);
        if published == Published::Stored {
            shared.count_stored(1, as_what.namespace);
        }
        published
    }

    /// The same; the caller counts what is stored.
    pub(in crate::cache) fn publish_uncounted(
        &mut self,
        index: u32,
        as_what: &Publication,
        shared: &mut Shared,
    ) -> Published {
        if self.compares(as_what) && as_what.parent_serial == NO_SERIAL {
            return Published::Refused;
        }
        let hash = self.index.hash(&as_what.key, as_what.namespace);
        let found = self.index.find_or_place(hash, |block| self.has_key(block, as_what));
        if let &Ok(taken) = &found
            && self.block(taken).is_findable()
        {
            let compares = self.compares(as_what);
            let origin = self.origin(taken);
            if compares && !self.is_filled_with(taken, self.kept_tokens(index), &as_what.extras) {
                shared.counters.collisions += 1;
                return Published::Refused;
            }
            if !compares || origin.parent_serial == as_what.parent_serial {
                shared.counters.duplicate_blocks += 1;
                if self.is_inactive(taken) && !self.block(taken).is_retained() {
                    self.policy.missed(taken);
                }
                // What follows the duplicate follows the content that is found under the key.
                if let Some(own) = self.origins.get_mut(index as usize) {
                    own.serial = origin.serial;
                }
                // The private block names its content too: events of what follows tell this key as their parent's.
                self.blocks[index as usize].key = as_what.key;
                self.blocks[index as usize].namespace_and_flags |= NAMED;
                return Published::Duplicate;
            }
            // The same tokens after others whose keys collide: whoever is asked for more often may come first.
            if !self.is_inactive(taken) || self.is_pinned(taken) {
                return Published::Refused;
            }
            self.remove(taken, RemoveReason::Replaced, shared);
        }
        if let &Ok(taken) = &found {
            // It has departed: a key has one block.
            self.take_out(taken);
        }
        if !self.origins.is_empty() {
            let Publication { parent_serial, extras: Extras(extras), .. } = *as_what;
            let serial = self.identities.after(parent_serial, self.kept_tokens(index));
            self.origins[index as usize] = Origin { serial, parent_serial, extras };
        }
        if let Some(ancestry) = self.ancestries.get_mut(index as usize) {
            *ancestry = Ancestry {
                parent_key: as_what.parent_key,
                position: as_what.position,
                step: shared.steps.newest(),
            };
        }
        let block = &mut self.blocks[index as usize];
        block.key = as_what.key;
        block.namespace_and_flags =
            block.namespace_and_flags & !NAMESPACE_MASK | as_what.namespace | FINDABLE | NAMED;
        match found {
            Err(place) => self.index.insert_at(place, hash, index),
            // What was there went, and others moved.
            Ok(_) => self.index.insert(hash, index),
        }
        if let Some(mirror) = &mut self.mirror {
            let namespace = shared.namespaces.get(as_what.namespace);
            mirror.insert(BlockHash::of(namespace, &self.blocks[index as usize]), index);
        }
        if let Some(children) = self.children.as_mut().filter(|_| as_what.has_tokens) {
            let (blocks, ancestries) = (&self.blocks, &self.ancestries);
            let parent = Parent { key: as_what.parent_key, namespace: as_what.namespace };
            let is_child = |block: u32| {
                let (block, ancestry) = (&blocks[block as usize], &ancestries[block as usize]);
                Parent { key: ancestry.parent_key, namespace: block.namespace() } == parent
            };
            children.add(index, &parent, is_child, |block| blocks[block as usize].is_departed());
        }
        let facts = Facts {
            key: as_what.key,
            namespace: as_what.namespace,
            position: as_what.position,
            tokens: self.block_tokens,
        };
        self.policy.committed(index, &facts);
        let owner = owner_of(self.block(index).tenant);
        self.by_owner.push(owner, as_what.namespace, index);
        if shared.namespaces.owners.get(owner).is_ordered() {
            self.by_owner.set_aside(owner, index);
        }
        if shared.events.is_on() {
            let event = self.event(index, CacheEventKind::Stored, RemoveReason::None, &shared.namespaces);
            shared.events.push(event);
        }
        Published::Stored
    }

    /// What an event or a snapshot says about a findable block.
    #[inline]
    pub(in crate::cache) fn event(
        &self,
        index: u32,
        kind: CacheEventKind,
        reason: RemoveReason,
        namespaces: &Namespaces,
    ) -> CacheEvent {
        let namespace_id = namespaces.get(self.block(index).namespace()).id();
        self.event_in(namespace_id, index, kind, reason)
    }

    /// The same; the caller knows the namespace's id.
    #[inline]
    pub(super) fn event_in(
        &self,
        namespace_id: u64,
        index: u32,
        kind: CacheEventKind,
        reason: RemoveReason,
    ) -> CacheEvent {
        let (block, ancestry) = (self.block(index), self.ancestry(index));
        CacheEvent {
            number: 0,
            kind,
            reason,
            group: self.group,
            block: index as i32,
            namespace_id,
            token_offset: ancestry.position * u64::from(self.block_tokens),
            key: block.key,
            parent_key: ancestry.parent_key,
        }
    }

    /// A block is not findable any more; the policy has already let it go. If somebody holds it, its cells go at once.
    pub(super) fn forget(
        &mut self,
        index: u32,
        reason: RemoveReason,
        shared: &mut Shared,
        tally: &mut Tally,
    ) {
        if shared.events.is_on() {
            let event = self.event(index, CacheEventKind::Removed, reason, &shared.namespaces);
            shared.events.push(event);
        }
        let (tenant, namespace) = self.whose(index);
        if self.block(index).refs > 0 || self.block(index).is_waiting() {
            self.drop_cells(index, self.key_hash(index));
            self.blocks[index as usize].namespace_and_flags &= !(FINDABLE | NAMESPACE_MASK);
        } else {
            self.leave_siblings(index);
            self.depart(index);
        }
        self.clear_retention(index);
        self.by_owner.unlink(owner_of(tenant), namespace, index);
        let namespaces = &mut shared.namespaces;
        tally.forget((tenant, namespace), 1, reason.is_eviction(), &mut self.by_owner, namespaces);
    }

    /// Makes a findable block unfindable, whoever holds it; one that nobody holds becomes free.
    pub(in crate::cache) fn remove(&mut self, index: u32, reason: RemoveReason, shared: &mut Shared) {
        let was_inactive = self.is_inactive(index);
        let is_governed = was_inactive && self.is_taken_care_of(index, Retention::acquired);
        self.policy.removed(index, was_inactive && !is_governed);
        let mut tally = Tally::NONE;
        if was_inactive {
            self.leave_inactive(index, &mut tally, &mut shared.namespaces);
        }
        self.forget(index, reason, shared, &mut tally);
        tally.settle(&mut self.by_owner, &mut shared.namespaces);
        if was_inactive {
            self.put_free(index);
        }
    }
}
