//! The blocks of one group: who holds them, which are findable, which come back next.
//!
//! Each block is in exactly one state: free (in the free list), used (`refs > 0`), inactive (nobody holds it, but it
//! is findable: the policy lists it), waiting (nobody holds it, but a step in flight may still read it).
//! `free + used + inactive + waiting == blocks`. All calls are O(1) and allocate nothing. The caller holds the
//! cache's lock.

pub(super) use self::find::Proof;
use super::block::{
    Block, COPY_TARGET, FINDABLE, HELD_TWICE, NAMED, NAMESPACE_MASK, NO_SERIAL, Origin, Publication,
    Published, ROOT_SERIAL, Shared, WAITING, ZERO_LISTED,
};
use super::children::{Children, Parent};
use super::config::{GroupGeometry, Scrub};
use super::events::{CacheEvent, CacheEventKind, RemoveReason};
use super::evict::Policy;
use super::group::Reach;
use super::index::Index;
use super::mirror::{BlockHash, Mirror};
use super::namespace::Namespaces;
use super::owner_lists::OwnerLists;
use super::owners::{Owners, owner_of};
use super::steps::{NONE, Waiting};
use crate::error::Result;
use crate::sys::reserve::{filled, room};

/// The blocks of one group.
pub(super) struct Store {
    pub(super) group: u32,
    pub(super) block_tokens: u32,
    pub(super) reach: Reach,
    /// State: a snapshot is kept at multiples of so many tokens.
    pub(super) snapshot_tokens: u64,
    pub(super) proof: Proof,
    pub(super) blocks: Vec<Block>,
    /// Empty unless tokens are compared or events are kept.
    pub(super) origins: Vec<Origin>,
    /// `[block][token]`; empty unless tokens are compared.
    pub(super) tokens: Vec<i32>,
    next_serial: u64,
    free: Vec<u32>,
    pub(super) index: Index,
    /// Of the index on the device, if there is one.
    mirror: Option<Mirror>,
    /// Only where hits may end inside a block.
    pub(super) children: Option<Children>,
    policy: Box<dyn Policy>,
    pub(super) inactive: u32,
    waiting: u32,
    scrub: Scrub,
    /// Blocks to fill with zeros before the next step's work; each at most once.
    zero_list: Vec<i32>,
    /// Findable blocks by owner.
    pub(super) by_owner: OwnerLists,
}

impl Store {
    pub(super) fn new(
        group: u32,
        geometry: &GroupGeometry,
        policy: Box<dyn Policy>,
        seed: [u64; 4],
        options: StoreOptions,
    ) -> Result<Self> {
        let blocks = geometry.blocks;
        let count_if = |wanted: bool, each: usize| if wanted { blocks as usize * each } else { 0 };
        let proof = match (options.compares_tokens, geometry.reach) {
            (false, _) => Proof::Key,
            (true, Reach::All | Reach::Untrimmed) => Proof::Chain,
            (true, Reach::Cross { .. }) => Proof::Extras,
            (true, _) => Proof::Anchor,
        };
        let keeps_tokens = proof == Proof::Chain || options.finds_partial;
        let mut free = room(blocks as usize)?;
        free.extend((0..blocks).rev());
        Ok(Self {
            group,
            block_tokens: geometry.block_tokens,
            reach: geometry.reach,
            snapshot_tokens: geometry.snapshot_tokens,
            proof,
            blocks: filled(blocks as usize, Block::EMPTY)?,
            origins: filled(
                count_if(options.compares_tokens || options.keeps_events || options.finds_partial, 1),
                Origin::default(),
            )?,
            tokens: filled(count_if(keeps_tokens, geometry.block_tokens as usize), 0)?,
            next_serial: ROOT_SERIAL + 1,
            free,
            index: Index::new(blocks, seed)?,
            mirror: if options.mirrors { Some(Mirror::new(blocks)?) } else { None },
            children: options.finds_partial.then(|| Children::new(blocks, seed)).transpose()?,
            policy,
            inactive: 0,
            waiting: 0,
            scrub: options.scrub,
            zero_list: room(if options.scrub == Scrub::None { 0 } else { blocks as usize })?,
            by_owner: OwnerLists::new(blocks, options.owners)?,
        })
    }

    pub(super) fn block(&self, block: u32) -> &Block {
        &self.blocks[block as usize]
    }

    pub(super) fn block_count(&self) -> u32 {
        self.blocks.len() as u32
    }

    pub(super) fn free_count(&self) -> u32 {
        self.free.len() as u32
    }

    pub(super) fn inactive_count(&self) -> u32 {
        self.inactive
    }

    pub(super) fn waiting_count(&self) -> u32 {
        self.waiting
    }

    /// Blocks that can be handed out now.
    pub(super) fn available(&self) -> u32 {
        self.free.len() as u32 + self.inactive
    }

    pub(super) fn compares_tokens(&self) -> bool {
        !self.tokens.is_empty()
    }

    /// Places for tokens in one block.
    pub(super) fn slots(&self) -> u64 {
        if matches!(self.reach, Reach::State { .. }) { 0 } else { self.block_tokens.into() }
    }

    /// Whether a block that one more `release` with this step lets go of could be handed out at once.
    pub(super) fn returns_at_once(&self, index: u32, last_step: u64, completed: u64) -> bool {
        let block = self.block(index);
        block.refs == 1 && block.last_step.max(last_step) <= completed
    }

    pub(super) fn origin(&self, block: u32) -> Origin {
        self.origins.get(block as usize).copied().unwrap_or_default()
    }

    pub(super) fn zero_list(&self) -> &[i32] {
        &self.zero_list
    }

    /// Lists a block that is to be filled with zeros.
    pub(super) fn list_zero(&mut self, index: u32) {
        let block = &mut self.blocks[index as usize];
        if block.namespace_and_flags & ZERO_LISTED == 0 {
            block.namespace_and_flags |= ZERO_LISTED;
            self.zero_list.push(index as i32);
        }
    }

    /// Forgets the first blocks of the zero list; they are being filled.
    pub(super) fn zeroed(&mut self, count: usize) {
        for block in self.zero_list.drain(..count) {
            self.blocks[block as usize].namespace_and_flags &= !ZERO_LISTED;
        }
    }

    /// A copy between two held blocks is listed in this step: neither is used otherwise before the step is over.
    /// Answers whether it must come after a copy that is listed already.
    pub(super) fn note_copy(&mut self, source: u32, target: u32, step: u64) -> bool {
        let is_target = self.blocks[source as usize].namespace_and_flags & COPY_TARGET != 0;
        for block in [source, target] {
            let block = &mut self.blocks[block as usize];
            block.last_step = block.last_step.max(step);
        }
        self.blocks[target as usize].namespace_and_flags |= COPY_TARGET;
        is_target
    }

    /// One more holder of a held block, whatever it holds.
    pub(super) fn hold_twice(&mut self, index: u32) {
        let block = &mut self.blocks[index as usize];
        block.refs += 1;
        block.namespace_and_flags |= HELD_TWICE;
    }

    /// Whether one holder has the block, it is not findable, and nobody else ever held it but together with that one.
    pub(super) fn is_exclusive(&self, index: u32) -> bool {
        let block = self.block(index);
        block.refs == 1 && block.namespace_and_flags & (FINDABLE | HELD_TWICE) == 0
    }

    /// The copies into this block are enqueued.
    pub(super) fn note_copied(&mut self, target: u32) {
        self.blocks[target as usize].namespace_and_flags &= !COPY_TARGET;
    }

    /// Hands out a block, evicting if none is free. The caller has checked `available`.
    pub(super) fn allocate(&mut self, tenant: u64, shared: &mut Shared) -> u32 {
        let index = match self.free.pop() {
            Some(index) => index,
            None => {
                let victim = self.policy.victim().expect("the caller checked that a block is available");
                shared.counters.evicted_blocks += 1;
                self.leave_cached(victim, &mut shared.namespaces.owners);
                self.forget(victim, RemoveReason::Evicted, shared);
                victim
            }
        };
        shared.counters.allocated_blocks += 1;
        let block = &mut self.blocks[index as usize];
        let foreign = block.tenant != 0 && block.tenant != tenant;
        let wants_zeros = match self.scrub {
            Scrub::None => false,
            Scrub::TenantChange => foreign,
            Scrub::Always => true,
        };
        block.tenant = tenant;
        block.namespace_and_flags &= !(HELD_TWICE | NAMED);
        block.refs = 1;
        block.last_step = 0;
        shared.namespaces.owners.counts(owner_of(tenant)).held_blocks += 1;
        if let Some(origin) = self.origins.get_mut(index as usize) {
            origin.serial = NO_SERIAL;
        }
        if wants_zeros {
            self.list_zero(index);
        }
        index
    }

    /// One more holder of a findable block.
    pub(super) fn acquire(&mut self, index: u32, shared: &mut Shared) {
        let block = &mut self.blocks[index as usize];
        block.refs += 1;
        if block.refs > 1 {
            return;
        }
        let owner = owner_of(block.tenant);
        shared.namespaces.owners.counts(owner).held_blocks += 1;
        if block.is_waiting() {
            let last_step = block.last_step;
            let waiting = shared.steps.waiting(last_step, self.group as usize);
            self.unlink_waiting(index, waiting);
        } else {
            self.leave_cached(index, &mut shared.namespaces.owners);
            self.policy.acquired(index);
            if shared.namespaces.owners.get(owner).is_ordered() {
                self.by_owner.set_aside(owner, index);
            }
        }
    }

    /// One holder less, which was scheduled last in `last_step`.
    pub(super) fn release(&mut self, index: u32, last_step: u64, shared: &mut Shared) {
        let block = &mut self.blocks[index as usize];
        block.refs -= 1;
        block.last_step = block.last_step.max(last_step);
        if block.refs > 0 {
            return;
        }
        shared.namespaces.owners.counts(owner_of(block.tenant)).held_blocks -= 1;
        if block.last_step > shared.steps.completed() {
            let last_step = block.last_step;
            let waiting = shared.steps.waiting(last_step, self.group as usize);
            self.link_waiting(index, waiting);
        } else {
            self.give_back(index, &mut shared.namespaces.owners);
        }
    }

    fn give_back(&mut self, index: u32, owners: &mut Owners) {
        if self.blocks[index as usize].is_findable() {
            self.inactive += 1;
            self.policy.released(index);
            let owner = owner_of(self.blocks[index as usize].tenant);
            owners.cached(owner);
            self.by_owner.add_cached(owner);
            if owners.get(owner).is_ordered() {
                self.by_owner.renew(owner, index);
            }
        } else {
            self.free.push(index);
        }
    }

    fn link_waiting(&mut self, index: u32, list: &mut Waiting) {
        let block = &mut self.blocks[index as usize];
        block.namespace_and_flags |= WAITING;
        block.prev = list.tail;
        block.next = NONE;
        match list.tail {
            NONE => list.head = index,
            tail => self.blocks[tail as usize].next = index,
        }
        list.tail = index;
        self.waiting += 1;
    }

    fn unlink_waiting(&mut self, index: u32, list: &mut Waiting) {
        let block = &mut self.blocks[index as usize];
        block.namespace_and_flags &= !WAITING;
        let (prev, next) = (block.prev, block.next);
        match prev {
            NONE => list.head = next,
            prev => self.blocks[prev as usize].next = next,
        }
        match next {
            NONE => list.tail = prev,
            next => self.blocks[next as usize].prev = prev,
        }
        self.waiting -= 1;
    }

    /// Gives back all blocks that waited for a step that is now complete, in the order in which they were let go.
    pub(super) fn give_back_waiting(&mut self, list: &mut Waiting, owners: &mut Owners) {
        while list.head != NONE {
            let index = list.head;
            self.unlink_waiting(index, list);
            self.give_back(index, owners);
        }
    }

    fn parent_of(&self, block: u32) -> Parent {
        Parent { key: self.origin(block).parent_key, namespace: self.block(block).namespace() }
    }

    /// Makes a held block findable, unless the same content is or the key is taken.
    pub(super) fn publish(&mut self, index: u32, as_what: &Publication, shared: &mut Shared) -> Published {
        if self.compares(as_what) && as_what.parent_serial == NO_SERIAL {
            return Published::Refused;
        }
        let hash = self.index.hash(&as_what.key, as_what.namespace);
        if let Some(taken) = self.index.find(hash, |block| self.has_key(block, as_what)) {
            let compares = self.compares(as_what);
            let origin = self.origin(taken);
            if compares && !self.is_filled_with(taken, self.kept_tokens(index), as_what.extras) {
                shared.counters.collisions += 1;
                return Published::Refused;
            }
            if !compares || origin.parent_serial == as_what.parent_serial {
                shared.counters.duplicate_blocks += 1;
                // What follows the duplicate follows the content that is found under the key.
                if let Some(own) = self.origins.get_mut(index as usize) {
                    own.serial = origin.serial;
                }
                // The private block names its content too: events of what follows tell this key as their parent's.
                self.blocks[index as usize].key = as_what.key;
                self.blocks[index as usize].namespace_and_flags |= NAMED;
                return Published::Duplicate;
            }
            // Same tokens after an ancestor that was evicted since: nobody can find it any more.
            if self.blocks[taken as usize].refs > 0 || self.blocks[taken as usize].is_waiting() {
                return Published::Refused;
            }
            self.policy.removed(taken, true);
            self.leave_cached(taken, &mut shared.namespaces.owners);
            self.forget(taken, RemoveReason::Replaced, shared);
            self.free.push(taken);
        }
        if let Some(origin) = self.origins.get_mut(index as usize) {
            *origin = Origin {
                serial: self.next_serial,
                parent_serial: as_what.parent_serial,
                parent_key: as_what.parent_key,
                extras: as_what.extras.0,
                position: as_what.position,
                step: shared.steps.newest(),
            };
            self.next_serial += 1;
        }
        let block = &mut self.blocks[index as usize];
        block.key = as_what.key;
        block.namespace_and_flags =
            block.namespace_and_flags & !NAMESPACE_MASK | as_what.namespace | FINDABLE | NAMED;
        self.index.insert(hash, index);
        if let Some(mirror) = &mut self.mirror {
            let namespace = shared.namespaces.get(as_what.namespace);
            mirror.insert(BlockHash::of(namespace, &self.blocks[index as usize]), index);
        }
        if let Some(children) = self.children.as_mut().filter(|_| as_what.has_tokens) {
            let (blocks, origins) = (&self.blocks, &self.origins);
            let parent = Parent { key: as_what.parent_key, namespace: as_what.namespace };
            let is_child = |block: u32| {
                let (block, origin) = (&blocks[block as usize], &origins[block as usize]);
                Parent { key: origin.parent_key, namespace: block.namespace() } == parent
            };
            children.add(index, &parent, is_child);
        }
        self.policy.committed(index);
        shared.namespaces.add_use(as_what.namespace);
        shared.counters.committed_blocks += 1;
        self.note_findable(index, &mut shared.namespaces.owners);
        if shared.events.is_on() {
            let event = self.event(index, CacheEventKind::Stored, RemoveReason::None, &shared.namespaces);
            shared.events.push(event);
        }
        Published::Stored
    }

    /// What an event or a snapshot says about a findable block.
    pub(super) fn event(
        &self,
        index: u32,
        kind: CacheEventKind,
        reason: RemoveReason,
        namespaces: &Namespaces,
    ) -> CacheEvent {
        let (block, origin) = (self.block(index), self.origin(index));
        CacheEvent {
            number: 0,
            kind,
            reason,
            group: self.group,
            block: index as i32,
            namespace_id: namespaces.get(block.namespace()).id(),
            token_offset: origin.position * u64::from(self.block_tokens),
            key: block.key,
            parent_key: origin.parent_key,
        }
    }

    /// Takes a block out of the index; the policy has already let it go.
    fn forget(&mut self, index: u32, reason: RemoveReason, shared: &mut Shared) {
        if shared.events.is_on() {
            let event = self.event(index, CacheEventKind::Removed, reason, &shared.namespaces);
            shared.events.push(event);
        }
        let (key, namespace) = (self.block(index).key, self.block(index).namespace());
        let parent = self.parent_of(index);
        if let Some(children) = &mut self.children {
            children.remove(index, &parent);
        }
        self.index.remove(self.index.hash(&key, namespace), index);
        if let Some(mirror) = &mut self.mirror {
            let hash = BlockHash::of(shared.namespaces.get(namespace), &self.blocks[index as usize]);
            mirror.remove(hash, index);
        }
        self.blocks[index as usize].namespace_and_flags &= !(FINDABLE | NAMESPACE_MASK);
        let owner = owner_of(self.block(index).tenant);
        self.by_owner.unlink(owner, index);
        let counts = shared.namespaces.owners.counts(owner);
        counts.findable_blocks -= 1;
        counts.evicted_blocks += u64::from(matches!(reason, RemoveReason::Evicted | RemoveReason::Limit));
        shared.namespaces.drop_use(namespace);
    }

    /// Makes a findable block unfindable, whoever holds it; one that nobody holds becomes free.
    pub(super) fn remove(&mut self, index: u32, reason: RemoveReason, shared: &mut Shared) {
        let block = self.block(index);
        let was_inactive = block.refs == 0 && !block.is_waiting();
        self.policy.removed(index, was_inactive);
        if was_inactive {
            self.leave_cached(index, &mut shared.namespaces.owners);
        }
        self.forget(index, reason, shared);
        if was_inactive {
            self.free.push(index);
        }
    }

    /// Evicts the policy's next victim. False if nothing is inactive.
    pub(super) fn evict_one(&mut self, reason: RemoveReason, shared: &mut Shared) -> bool {
        let Some(victim) = self.policy.victim() else { return false };
        self.leave_cached(victim, &mut shared.namespaces.owners);
        shared.counters.evicted_blocks += u64::from(reason == RemoveReason::Evicted);
        self.forget(victim, reason, shared);
        self.free.push(victim);
        true
    }

    pub(super) fn bytes(&self) -> u64 {
        let blocks = self.blocks.len() as u64 * size_of::<Block>() as u64;
        blocks
            + self.origins.len() as u64 * size_of::<Origin>() as u64
            + (self.tokens.len() + self.free.capacity() + self.zero_list.capacity()) as u64 * 4
            + self.index.bytes()
            + self.mirror.as_ref().map_or(0, Mirror::bytes)
            + self.children.as_ref().map_or(0, Children::bytes)
            + self.by_owner.bytes()
    }

    /// The image of the index on the device.
    pub(super) fn mirror(&self) -> Option<&Mirror> {
        self.mirror.as_ref()
    }

    pub(super) fn mirror_mut(&mut self) -> Option<&mut Mirror> {
        self.mirror.as_mut()
    }

    /// The free list and the policy, for the cache's `validate`.
    pub(super) fn validate_lists(&self) -> Result<&[u32]> {
        let released = |index: u32| {
            let block = self.block(index);
            block.is_findable() && block.refs == 0 && !block.is_waiting()
        };
        self.policy.validate(&released, &|index| self.block(index).is_findable())?;
        if let Some(children) = &self.children {
            children.validate(|index| self.block(index).is_findable().then(|| self.parent_of(index)))?;
        }
        Ok(&self.free)
    }
}

/// How a store is made.
#[derive(Clone, Copy)]
pub(super) struct StoreOptions {
    pub(super) scrub: Scrub,
    pub(super) compares_tokens: bool,
    pub(super) keeps_events: bool,
    /// The index has a copy on the device.
    pub(super) mirrors: bool,
    pub(super) finds_partial: bool,
    /// Entries of the table of owners.
    pub(super) owners: u32,
}

#[path = "find.rs"]
mod find;

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
