//! The blocks of one group: who holds them, which are findable, which come back next.
//!
//! Each block is in exactly one state: free (in the free list), used (`refs > 0`), inactive (nobody holds it, but it
//! is findable: the policy lists it), waiting (nobody holds it, but a step in flight may still read it).
//! `free + used + inactive + waiting + retired == blocks`; a retired one is out of use (`resize`). All calls are O(1) and allocate nothing. The caller holds the
//! cache's lock.

use super::block::{
    Block, COPY_TARGET, Counters, FINDABLE, HELD_TWICE, NAMESPACE_MASK, NO_SERIAL, Origin, Publication,
    Published, ROOT_SERIAL, Shared, WAITING, ZERO_LISTED,
};
use super::children::{Children, Parent};
use super::config::{GroupGeometry, Scrub};
use super::events::{CacheEvent, CacheEventKind, RemoveReason};
use super::evict::Policy;
use super::group::Reach;
use super::hash::{Extras, Key};
use super::index::Index;
use super::namespace::Namespaces;
use super::steps::{NONE, Waiting};
use crate::error::Result;
use crate::sys::reserve::{filled, room};

/// What proves that a block found by its key is the wanted content.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Proof {
    /// The key.
    Key,
    /// Its tokens, extras and the identity of the block before it.
    Chain,
    /// The identity of the full group's block that ends with it.
    Anchor,
    /// The digest of the extras.
    Extras,
}

/// The blocks of one group.
pub(super) struct Store {
    pub(super) group: u32,
    pub(super) block_tokens: u32,
    pub(super) reach: Reach,
    /// State: a snapshot is kept at multiples of so many tokens.
    pub(super) snapshot_tokens: u64,
    proof: Proof,
    pub(super) blocks: Vec<Block>,
    /// Empty unless tokens are compared or events are kept.
    origins: Vec<Origin>,
    /// `[block][token]`; empty unless tokens are compared.
    tokens: Vec<i32>,
    next_serial: u64,
    pub(super) free: Vec<u32>,
    /// Ids below may be handed out; see `resize`.
    pub(super) limit: u32,
    /// Blocks above it that nobody holds.
    pub(super) retired: u32,
    /// Free or inactive blocks that are promised to sequences; see `promise`.
    pub(super) promised: u32,
    pub(super) index: Index,
    /// Only where hits may end inside a block.
    children: Option<Children>,
    policy: Box<dyn Policy>,
    inactive: u32,
    waiting: u32,
    scrub: Scrub,
    /// Blocks to fill with zeros before the next step's work; each at most once.
    zero_list: Vec<i32>,
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
        free.extend((0..geometry.first_blocks).rev());
        let mut store = Self {
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
            limit: geometry.first_blocks,
            retired: blocks - geometry.first_blocks,
            promised: 0,
            index: Index::new(blocks, seed)?,
            children: options.finds_partial.then(|| Children::new(blocks, seed)).transpose()?,
            policy,
            inactive: 0,
            waiting: 0,
            scrub: options.scrub,
            zero_list: room(if options.scrub == Scrub::None { 0 } else { blocks as usize })?,
        };
        store.note_places();
        Ok(store)
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

    /// Blocks that can be handed out now to whom none are promised.
    pub(super) fn available(&self) -> u32 {
        self.free.len() as u32 + self.inactive - self.promised
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
                self.inactive -= 1;
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
        if wants_zeros && block.namespace_and_flags & ZERO_LISTED == 0 {
            block.namespace_and_flags |= ZERO_LISTED;
            self.zero_list.push(index as i32);
        }
        block.tenant = tenant;
        block.key = Key::default();
        block.namespace_and_flags &= !HELD_TWICE;
        block.refs = 1;
        block.last_step = 0;
        if let Some(origin) = self.origins.get_mut(index as usize) {
            origin.serial = NO_SERIAL;
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
        if block.is_waiting() {
            let last_step = block.last_step;
            let waiting = shared.steps.waiting(last_step, self.group as usize);
            self.unlink_waiting(index, waiting);
        } else {
            self.inactive -= 1;
            self.policy.acquired(index);
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
        if block.last_step > shared.steps.completed() {
            let last_step = block.last_step;
            let waiting = shared.steps.waiting(last_step, self.group as usize);
            self.link_waiting(index, waiting);
        } else {
            self.give_back(index);
        }
    }

    fn give_back(&mut self, index: u32) {
        if self.blocks[index as usize].is_findable() {
            self.inactive += 1;
            self.policy.released(index);
        } else {
            self.put_free(index);
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
    pub(super) fn give_back_waiting(&mut self, list: &mut Waiting) {
        while list.head != NONE {
            let index = list.head;
            self.unlink_waiting(index, list);
            self.give_back(index);
        }
    }

    /// The findable block with this key, if it is proved to be this content with these tokens.
    pub(super) fn find(&self, wanted: &Publication, tokens: &[i32], counters: &mut Counters) -> Option<u32> {
        let hash = self.index.hash(&wanted.key, wanted.namespace);
        let found = self.index.find(hash, |block| self.has_key(block, wanted))?;
        if !self.compares(wanted) {
            return Some(found);
        }
        let has_tokens = self.is_filled_with(found, tokens, wanted.extras);
        counters.collisions += u64::from(!has_tokens);
        (has_tokens && self.origin(found).parent_serial == wanted.parent_serial).then_some(found)
    }

    /// Whether found content is proved by its ancestors too.
    pub(super) fn proves_ancestry(&self) -> bool {
        self.proof == Proof::Chain
    }

    fn parent_of(&self, block: u32) -> Parent {
        Parent { key: self.origin(block).parent_key, namespace: self.block(block).namespace() }
    }

    /// The newest findable block after a parent.
    pub(super) fn first_child(&self, parent: &Parent) -> Option<u32> {
        let is_child = |block| self.parent_of(block) == *parent;
        self.children.as_ref()?.first(parent, is_child)
    }

    /// The one after it.
    pub(super) fn next_child(&self, block: u32) -> Option<u32> {
        self.children.as_ref()?.next(block)
    }

    fn has_key(&self, block: u32, wanted: &Publication) -> bool {
        let block = &self.blocks[block as usize];
        block.namespace() == wanted.namespace && block.key == wanted.key
    }

    /// Whether tokens and ancestry of this content are compared.
    fn compares(&self, wanted: &Publication) -> bool {
        self.proof != Proof::Key && wanted.has_tokens
    }

    fn is_filled_with(&self, block: u32, tokens: &[i32], extras: Extras) -> bool {
        let has_extras = || self.origin(block).extras == extras.0;
        match self.proof {
            Proof::Key | Proof::Anchor => true,
            Proof::Chain => self.kept_tokens(block) == tokens && has_extras(),
            Proof::Extras => has_extras(),
        }
    }

    pub(super) fn kept_tokens(&self, block: u32) -> &[i32] {
        if !self.compares_tokens() {
            return &[];
        }
        let each = self.block_tokens as usize;
        &self.tokens[block as usize * each..][..each]
    }

    /// Forgets what a block was to be that its only holder fills anew from some token on.
    pub(super) fn reopen(&mut self, block: u32) {
        self.blocks[block as usize].key = Key::default();
        if let Some(origin) = self.origins.get_mut(block as usize) {
            origin.serial = NO_SERIAL;
        }
    }

    /// Gives a block the kept tokens of another.
    pub(super) fn copy_kept(&mut self, source: u32, target: u32) {
        if self.compares_tokens() {
            let each = self.block_tokens as usize;
            let from = source as usize * each;
            self.tokens.copy_within(from..from + each, target as usize * each);
        }
    }

    /// Keeps tokens of a block that is being filled, if this store compares them. A findable one never changes.
    pub(super) fn keep_tokens(&mut self, block: u32, offset: u32, tokens: &[i32]) {
        if self.compares_tokens() && !self.block(block).is_findable() {
            let at = block as usize * self.block_tokens as usize + offset as usize;
            self.tokens[at..at + tokens.len()].copy_from_slice(tokens);
        }
    }

    /// Makes a held block findable, unless the same content is or the key is taken.
    pub(super) fn publish(&mut self, index: u32, as_what: &Publication, shared: &mut Shared) -> Published {
        if self.compares(as_what) && as_what.parent_serial == NO_SERIAL {
            return Published::Refused;
        }
        if index >= self.limit {
            // Out of use once its holder lets go: it stays private, with the name of its content.
            self.blocks[index as usize].key = as_what.key;
            return Published::Duplicate;
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
                return Published::Duplicate;
            }
            // Same tokens after an ancestor that was evicted since: nobody can find it any more.
            if self.blocks[taken as usize].refs > 0 || self.blocks[taken as usize].is_waiting() {
                return Published::Refused;
            }
            self.policy.removed(taken, true);
            self.inactive -= 1;
            self.forget(taken, RemoveReason::Replaced, shared);
            self.put_free(taken);
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
            block.namespace_and_flags & !NAMESPACE_MASK | as_what.namespace | FINDABLE;
        self.index.insert(hash, index);
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
        self.blocks[index as usize].namespace_and_flags &= !(FINDABLE | NAMESPACE_MASK);
        shared.namespaces.drop_use(namespace);
    }

    /// Makes a findable block unfindable, whoever holds it; one that nobody holds becomes free.
    pub(super) fn remove(&mut self, index: u32, reason: RemoveReason, shared: &mut Shared) {
        let block = self.block(index);
        let was_inactive = block.refs == 0 && !block.is_waiting();
        self.policy.removed(index, was_inactive);
        self.forget(index, reason, shared);
        if was_inactive {
            self.inactive -= 1;
            self.put_free(index);
        }
    }

    /// Evicts the policy's next victim. False if nothing is inactive.
    pub(super) fn evict_one(&mut self, reason: RemoveReason, shared: &mut Shared) -> bool {
        let Some(victim) = self.policy.victim() else { return false };
        self.inactive -= 1;
        shared.counters.evicted_blocks += u64::from(reason == RemoveReason::Evicted);
        self.forget(victim, reason, shared);
        self.put_free(victim);
        true
    }

    pub(super) fn bytes(&self) -> u64 {
        let blocks = self.blocks.len() as u64 * size_of::<Block>() as u64;
        blocks
            + self.origins.len() as u64 * size_of::<Origin>() as u64
            + (self.tokens.len() + self.free.capacity() + self.zero_list.capacity()) as u64 * 4
            + self.index.bytes()
            + self.children.as_ref().map_or(0, Children::bytes)
    }

    /// The free list and the policy, for the cache's `validate`.
    pub(super) fn validate_lists(&self) -> Result<&[u32]> {
        let released = |index: u32| {
            let block = self.block(index);
            block.is_findable() && block.refs == 0 && !block.is_waiting()
        };
        self.validate_limit()?;
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
    pub(super) finds_partial: bool,
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
