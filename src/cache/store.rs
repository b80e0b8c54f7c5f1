//! The blocks of one group: who holds them, which are findable, which come back next.
//!
//! Each block is in exactly one state: free (in the free list), used (`refs > 0`), inactive (nobody holds it, but it
//! is findable: the policy lists it), waiting (nobody holds it, but a step in flight may still read it).
//! `free + used + inactive + waiting == blocks`. All calls are O(1) and allocate nothing. The caller holds the
//! cache's lock.

use super::block::{
    Block, Counters, FINDABLE, NAMESPACE_MASK, NO_SERIAL, Origin, Publication, Published, ROOT_SERIAL,
    Shared, WAITING, ZERO_LISTED,
};
use super::config::{GroupGeometry, Scrub};
use super::events::{CacheEvent, CacheEventKind, RemoveReason};
use super::evict::{Facts, Policy};
use super::free::Free;
use super::hash::{Extras, Key};
use super::index::Index;
use super::namespace::Namespaces;
use super::retention::Retention;
use super::steps::{NONE, Waiting};
use crate::error::Result;
use crate::sys::reserve::{filled, room};

/// At most one block in so many is pinned.
const PINNED_SHARE: u32 = 2;

/// The blocks of one group.
pub(super) struct Store {
    pub(super) group: u32,
    pub(super) block_tokens: u32,
    blocks: Vec<Block>,
    /// Empty unless tokens are compared or events are kept.
    origins: Vec<Origin>,
    /// `[block][token]`; empty unless tokens are compared.
    tokens: Vec<i32>,
    next_serial: u64,
    free: Free,
    pub(super) index: Index,
    policy: Box<dyn Policy>,
    pub(super) retention: Retention,
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
        Ok(Self {
            group,
            block_tokens: geometry.block_tokens,
            blocks: filled(blocks as usize, Block::EMPTY)?,
            origins: filled(count_if(options.compares_tokens || options.keeps_events, 1), Origin::default())?,
            tokens: filled(count_if(options.compares_tokens, geometry.block_tokens as usize), 0)?,
            next_serial: ROOT_SERIAL + 1,
            free: Free::new(blocks, options.exact_order)?,
            index: Index::new(blocks, seed)?,
            policy,
            retention: Retention::new(blocks, blocks / PINNED_SHARE)?,
            inactive: 0,
            waiting: 0,
            scrub: options.scrub,
            zero_list: room(if options.scrub == Scrub::None { 0 } else { blocks as usize })?,
        })
    }

    pub(super) fn block(&self, block: u32) -> &Block {
        &self.blocks[block as usize]
    }

    pub(super) fn block_count(&self) -> u32 {
        self.blocks.len() as u32
    }

    pub(super) fn free_count(&self) -> u32 {
        self.free.count()
    }

    pub(super) fn inactive_count(&self) -> u32 {
        self.inactive
    }

    pub(super) fn waiting_count(&self) -> u32 {
        self.waiting
    }

    /// Blocks that can be handed out now.
    pub(super) fn available(&self) -> u32 {
        self.free.count() + self.inactive - self.retention.pinned_inactive()
    }

    pub(super) fn compares_tokens(&self) -> bool {
        !self.tokens.is_empty()
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

    /// Hands out a block, evicting if none is free. The caller has checked `available`.
    pub(super) fn allocate(&mut self, tenant: u64, shared: &mut Shared) -> u32 {
        let index = match self.free.pop() {
            Some(index) => index,
            None => self
                .evict(RemoveReason::Evicted, shared)
                .expect("the caller checked that a block is available"),
        };
        self.hand_out(index, tenant, shared);
        index
    }

    /// A block that was free becomes a holder's.
    fn hand_out(&mut self, index: u32, tenant: u64, shared: &mut Shared) {
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
        block.refs = 1;
        block.last_step = 0;
        if let Some(origin) = self.origins.get_mut(index as usize) {
            origin.serial = NO_SERIAL;
        }
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
            if !self.retention.acquired(index) {
                self.policy.acquired(index);
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
            if !self.retention.released(index) {
                self.policy.released(index);
            }
        } else {
            self.retention.clear(index);
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

    fn has_key(&self, block: u32, wanted: &Publication) -> bool {
        let block = &self.blocks[block as usize];
        block.namespace() == wanted.namespace && block.key == wanted.key
    }

    /// Whether tokens and ancestry of this content are compared.
    fn compares(&self, wanted: &Publication) -> bool {
        self.compares_tokens() && wanted.has_tokens
    }

    fn is_filled_with(&self, block: u32, tokens: &[i32], extras: Extras) -> bool {
        self.kept_tokens(block) == tokens && self.origin(block).extras == extras.0
    }

    fn kept_tokens(&self, block: u32) -> &[i32] {
        let each = self.block_tokens as usize;
        &self.tokens[block as usize * each..][..each]
    }

    /// Keeps tokens of a block that is being filled, if this store compares them.
    pub(super) fn keep_tokens(&mut self, block: u32, offset: u32, tokens: &[i32]) {
        if self.compares_tokens() {
            let at = block as usize * self.block_tokens as usize + offset as usize;
            self.tokens[at..at + tokens.len()].copy_from_slice(tokens);
        }
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
                return Published::Duplicate;
            }
            // Same tokens after an ancestor that was evicted since: nobody can find it any more.
            if !self.is_inactive(taken) || self.retention.is_pinned(taken) {
                return Published::Refused;
            }
            self.remove(taken, RemoveReason::Replaced, shared);
        }
        if let Some(origin) = self.origins.get_mut(index as usize) {
            *origin = Origin {
                serial: self.next_serial,
                parent_serial: as_what.parent_serial,
                parent_key: as_what.parent_key,
                extras: as_what.extras.0,
                position: as_what.position,
            };
            self.next_serial += 1;
        }
        let block = &mut self.blocks[index as usize];
        block.key = as_what.key;
        block.namespace_and_flags =
            block.namespace_and_flags & !NAMESPACE_MASK | as_what.namespace | FINDABLE;
        self.index.insert(hash, index);
        let facts = Facts {
            fingerprint: fingerprint(&as_what.key, as_what.namespace),
            position: as_what.position,
            tokens: self.block_tokens,
        };
        self.policy.committed(index, &facts);
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
        self.index.remove(self.index.hash(&key, namespace), index);
        self.blocks[index as usize].namespace_and_flags &= !(FINDABLE | NAMESPACE_MASK);
        self.retention.clear(index);
        shared.namespaces.drop_use(namespace);
    }

    /// Makes a findable block unfindable, whoever holds it; one that nobody holds becomes free.
    pub(super) fn remove(&mut self, index: u32, reason: RemoveReason, shared: &mut Shared) {
        let was_inactive = self.is_inactive(index);
        let is_governed = was_inactive && self.retention.acquired(index);
        self.policy.removed(index, was_inactive && !is_governed);
        self.forget(index, reason, shared);
        if was_inactive {
            self.inactive -= 1;
            self.free.push(index);
        }
    }

    /// Whether nobody holds a findable block, nor waits for it.
    pub(super) fn is_inactive(&self, index: u32) -> bool {
        let block = self.block(index);
        block.is_findable() && block.refs == 0 && !block.is_waiting()
    }

    pub(super) fn bytes(&self) -> u64 {
        let blocks = self.blocks.len() as u64 * size_of::<Block>() as u64;
        blocks
            + self.origins.len() as u64 * size_of::<Origin>() as u64
            + (self.tokens.len() + self.zero_list.capacity()) as u64 * 4
            + self.free.bytes()
            + self.retention.bytes()
            + self.index.bytes()
            + self.policy.bytes()
    }

    /// The free list and the policy, for the cache's `validate`.
    pub(super) fn validate_lists(&self) -> Result<Vec<u32>> {
        let (is_inactive, is_findable) =
            (|index: u32| self.is_inactive(index), |index: u32| self.block(index).is_findable());
        self.retention.validate(&is_inactive, &is_findable)?;
        let is_ordinary = |index: u32| self.is_inactive(index) && !self.retention.governs(index);
        self.policy.validate(&is_ordinary, &is_findable)?;
        self.free.validate()
    }
}

/// Digest of a content's name for the policy: the same in every run, and spread although keys of callers may be plain
/// counts.
fn fingerprint(key: &Key, namespace: u32) -> u64 {
    key.0.iter().fold(u64::from(namespace) + 1, |digest, word| {
        let mixed = (digest ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed ^ mixed >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93)
    })
}

/// How a store is made.
#[derive(Clone, Copy)]
pub(super) struct StoreOptions {
    pub(super) scrub: Scrub,
    pub(super) compares_tokens: bool,
    pub(super) keeps_events: bool,
    /// Free blocks are handed out in the order in which they were freed, not in runs.
    pub(super) exact_order: bool,
}

#[path = "victims.rs"]
mod victims;

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
