//! The blocks of one group: who holds them, which are findable, which come back next.
//!
//! Each block is in exactly one state: free (in the free list), used (`refs > 0`), inactive (nobody holds it, but it
//! is findable: the policy lists it), waiting (nobody holds it, but a step in flight may still read it).
//! `free + used + inactive + waiting + retired == blocks`; a retired one is out of use (`resize`). All calls are O(1)
//! and allocate nothing. The caller holds the cache's lock.

pub(super) use self::find::Proof;
use super::ages::Ages;
use super::block::{
    Ancestry, Block, COPY_TARGET, HELD_TWICE, NAMED, NO_SERIAL, Origin, UNWRITTEN, ZERO_LISTED,
};
use super::children::{Children, Parent};
use super::config::{GroupGeometry, Scrub};
use super::evict::Policy;
use super::free::Free;
use super::group::Reach;
use super::identity::Identities;
use super::index::Index;
use super::mirror::Mirror;
use super::owner_lists::OwnerLists;
use super::retention::Retention;
use super::steps::Waiting;
use crate::error::Result;
use crate::sys::reserve::{Lined, filled, room};

/// At most one block in so many is pinned.
const PINNED_SHARE: u32 = 2;

/// The blocks of one group.
pub(super) struct Store {
    pub(super) group: u32,
    pub(super) block_tokens: u32,
    pub(super) reach: Reach,
    /// State: a snapshot is kept at multiples of so many tokens.
    pub(super) snapshot_tokens: u64,
    pub(super) proof: Proof,
    /// Its bookkeeping is larger than the processor's second-level cache: fetching ahead is worth the hints.
    pub(super) is_large: bool,
    pub(super) blocks: Vec<Block>,
    /// Empty unless tokens are compared or events are kept.
    pub(super) origins: Vec<Origin>,
    /// As long as `origins`.
    pub(super) ancestries: Vec<Ancestry>,
    /// `[block][token]`; empty unless tokens are compared.
    pub(super) tokens: Lined<i32>,
    identities: Identities,
    pub(super) free: Free,
    /// Ids below may be handed out; see `resize`.
    pub(super) limit: u32,
    /// Blocks above it that nobody holds.
    pub(super) retired: u32,
    /// Free or inactive blocks that are promised to sequences; see `promise`.
    pub(super) promised: u32,
    pub(super) index: Index,
    /// Blocks that departed; where there is a mirror, also in a list, in the order in which they did.
    departed: u32,
    departed_list: Waiting,
    /// Of the index on the device, if there is one.
    mirror: Option<Mirror>,
    /// Only where hits may end inside a block.
    pub(super) children: Option<Children>,
    policy: Box<dyn Policy>,
    /// So many of the latest victims that went together lay in a row.
    latest_row: usize,
    pub(super) ages: Ages,
    pub(super) retention: Retention,
    pub(super) inactive: u32,
    waiting: u32,
    scrub: Scrub,
    /// Blocks to fill with zeros before the next step's work; each at most once.
    zero_list: Vec<i32>,
    /// How many of them, from the first on, `tables` told without a device that would fill them.
    zeros_told: usize,
    /// Findable blocks by owner, and by entry of the table of namespaces.
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
        let mut policy = policy;
        policy.room(geometry.first_blocks);
        let keeps_tokens = proof == Proof::Chain || options.finds_children;
        let keeps_ancestries = options.keeps_events || options.finds_children;
        let keeps_origins = options.compares_tokens || keeps_ancestries;
        let mut store = Self {
            group,
            block_tokens: geometry.block_tokens,
            reach: geometry.reach,
            snapshot_tokens: geometry.snapshot_tokens,
            proof,
            is_large: false,
            blocks: filled(blocks as usize, Block::EMPTY)?,
            origins: filled(count_if(keeps_origins, 1), Origin::default())?,
            ancestries: filled(count_if(keeps_ancestries, 1), Ancestry::default())?,
            tokens: Lined::new(count_if(keeps_tokens, geometry.block_tokens as usize))?,
            identities: Identities::new(
                seed,
                if proof == Proof::Chain { geometry.block_tokens as usize } else { 0 },
            )?,
            free: Free::new(blocks, geometry.first_blocks, options.exact_order)?,
            limit: geometry.first_blocks,
            retired: blocks - geometry.first_blocks,
            promised: 0,
            index: Index::new(blocks, seed)?,
            departed: 0,
            departed_list: Waiting::EMPTY,
            mirror: if options.mirrors { Some(Mirror::new(blocks)?) } else { None },
            children: options.finds_children.then(|| Children::new(blocks, seed)).transpose()?,
            policy,
            latest_row: 0,
            ages: Ages::default(),
            retention: Retention::new(blocks, blocks / PINNED_SHARE)?,
            inactive: 0,
            waiting: 0,
            scrub: options.scrub,
            zeros_told: 0,
            zero_list: room(if options.scrub == Scrub::None { 0 } else { blocks as usize })?,
            by_owner: OwnerLists::new(blocks, options.owners, options.namespaces)?,
        };
        store.is_large = store.bytes() > options.small_bytes;
        Ok(store)
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

    /// Blocks that can be handed out now to whom none are promised.
    pub(super) fn available(&self) -> u32 {
        (self.free.count() + self.inactive)
            .saturating_sub(self.retention.pinned_inactive())
            .saturating_sub(self.promised)
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
        block.refs == 1
            && block.last_step.max(last_step) <= completed
            && index < self.limit
            && !self.is_pinned(index)
    }

    pub(super) fn origin(&self, block: u32) -> Origin {
        self.origins.get(block as usize).copied().unwrap_or_default()
    }

    pub(super) fn ancestry(&self, block: u32) -> Ancestry {
        self.ancestries.get(block as usize).copied().unwrap_or_default()
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
            return;
        }
        // It was told for the tenant before this one, who may have written since.
        let told = &self.zero_list[..self.zeros_told];
        if let Some(at) = told.iter().position(|&told| told == index as i32) {
            self.zeros_told -= 1;
            self.zero_list.swap(at, self.zeros_told);
        }
    }

    /// Forgets the first blocks of the zero list; they are being filled.
    pub(super) fn zeroed(&mut self, count: usize) {
        for block in self.zero_list.drain(..count) {
            self.blocks[block as usize].namespace_and_flags &= !ZERO_LISTED;
        }
        self.zeros_told = self.zeros_told.saturating_sub(count);
    }

    /// Those of the zero list that were not told; they are now.
    pub(super) fn tell_zeros(&mut self) -> &[i32] {
        let from = std::mem::replace(&mut self.zeros_told, self.zero_list.len());
        &self.zero_list[from..]
    }

    /// Forgets those that were told.
    pub(super) fn forget_told_zeros(&mut self) {
        self.zeroed(self.zeros_told);
    }

    /// A copy between two held blocks is listed in this step: neither is used otherwise before the step is over.
    /// Answers whether it must come after a copy that is listed already.
    pub(super) fn note_copy(&mut self, source: u32, target: u32, step: u64) -> bool {
        let is_target = self.is_copy_target(source);
        for block in [source, target] {
            self.blocks[block as usize].note_use(step);
        }
        self.blocks[target as usize].namespace_and_flags |= COPY_TARGET;
        is_target
    }

    /// A block was published that the work of the open step is yet to write.
    pub(super) fn note_unwritten(&mut self, index: u32, step: u64) {
        self.blocks[index as usize].note_unwritten(step);
    }

    /// One more holder of a held block, whatever it holds.
    pub(super) fn hold_twice(&mut self, index: u32) {
        let block = &mut self.blocks[index as usize];
        block.refs += 1;
        block.namespace_and_flags |= HELD_TWICE;
    }

    /// Whether one holder has the block, it is not findable, and what others that held it independently ran is over.
    pub(super) fn is_exclusive(&self, index: u32, completed: u64) -> bool {
        let block = self.block(index);
        let was_shared = block.namespace_and_flags & HELD_TWICE != 0;
        block.refs == 1 && !block.is_findable() && (!was_shared || block.last_step <= completed)
    }

    /// Whether copies into this block are listed and not enqueued.
    pub(super) fn is_copy_target(&self, index: u32) -> bool {
        self.blocks[index as usize].namespace_and_flags & COPY_TARGET != 0
    }

    /// The copies into this block are enqueued.
    pub(super) fn note_copied(&mut self, target: u32) {
        self.blocks[target as usize].namespace_and_flags &= !COPY_TARGET;
    }

    /// A block that was free becomes a holder's; the caller counts it and has taken it out of all tables.
    fn hand_out(&mut self, index: u32, tenant: u64) {
        let block = &mut self.blocks[index as usize];
        let foreign = block.tenant != 0 && block.tenant != tenant;
        let wants_zeros = match self.scrub {
            Scrub::None => false,
            Scrub::TenantChange => foreign,
            Scrub::Always => true,
        };
        block.tenant = tenant;
        block.namespace_and_flags &= !(HELD_TWICE | NAMED | UNWRITTEN);
        block.refs = 1;
        block.last_step = 0;
        if let Some(origin) = self.origins.get_mut(index as usize) {
            origin.serial = NO_SERIAL;
        }
        if wants_zeros {
            self.list_zero(index);
        }
    }

    fn parent_of(&self, block: u32) -> Parent {
        Parent { key: self.ancestry(block).parent_key, namespace: self.block(block).namespace() }
    }

    /// Whether nobody holds a findable block, nor waits for it.
    pub(super) fn is_inactive(&self, index: u32) -> bool {
        let block = self.block(index);
        block.is_findable() && block.refs == 0 && !block.is_waiting()
    }

    pub(super) fn bytes(&self) -> u64 {
        let blocks = self.blocks.len() as u64 * size_of::<Block>() as u64;
        blocks
            + (self.origins.len() * size_of::<Origin>()) as u64
            + (self.ancestries.len() * size_of::<Ancestry>()) as u64
            + (self.tokens.len() + self.zero_list.capacity()) as u64 * 4
            + self.free.bytes()
            + self.retention.bytes()
            + self.policy.bytes()
            + self.index.bytes()
            + self.mirror.as_ref().map_or(0, Mirror::bytes)
            + self.children.as_ref().map_or(0, Children::bytes)
            + self.by_owner.bytes()
    }

    /// Tells the policy that the limit moved.
    pub(super) fn note_room(&mut self) {
        self.policy.room(self.limit);
    }

    /// The image of the index on the device.
    pub(super) fn mirror(&self) -> Option<&Mirror> {
        self.mirror.as_ref()
    }

    pub(super) fn mirror_mut(&mut self) -> Option<&mut Mirror> {
        self.mirror.as_mut()
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
    /// Blocks that follow one are looked through for the best.
    pub(super) finds_children: bool,
    /// Entries of the table of owners.
    pub(super) owners: u32,
    /// Entries of the table of namespaces.
    pub(super) namespaces: u32,
    /// Free blocks are handed out in the order in which they were freed, not in runs.
    pub(super) exact_order: bool,
    /// A group whose bookkeeping takes more bytes asks for memory ahead.
    pub(super) small_bytes: u64,
}

#[path = "acquire.rs"]
mod acquire;
#[path = "departed.rs"]
mod departed;
#[path = "find.rs"]
mod find;
#[path = "findable.rs"]
mod findable;
#[path = "store_proof.rs"]
mod proof;
#[path = "relocate.rs"]
mod relocate;
#[path = "victims.rs"]
mod victims;

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
