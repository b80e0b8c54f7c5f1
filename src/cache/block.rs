//! A block and its content as types, and the parts of a cache that its groups share.
//!
//! Life of a block: free, then open in a sequence, then findable from its publication on; nobody holds it when its
//! last holder lets go; it waits for steps in flight, is inactive, and is evicted or taken again. Once evicted it is
//! free, and departed until the tables that list findable blocks are rid of it.

use super::events::Events;
use super::hash::{Extras, Key};
use super::namespace::Namespaces;
use super::owners::owner_of;
use super::steps::{NONE, Steps};

/// Upper bits of [`Block::namespace_and_flags`].
pub(super) const FINDABLE: u32 = 1 << 31;
pub(super) const WAITING: u32 = 1 << 30;
pub(super) const ZERO_LISTED: u32 = 1 << 29;
/// Something was said of its content's retention: it may be pinned or have a priority. Without it, it is ordinary.
pub(super) const RETAINED: u32 = 1 << 28;
/// It was published before its bytes: the work of the step `last_step` writes them.
pub(super) const UNWRITTEN: u32 = 1 << 27;
/// Its key names what it holds, findable or not.
pub(super) const NAMED: u32 = 1 << 26;
/// Two held it independently, so that work of either may still read what the other does not count.
pub(super) const HELD_TWICE: u32 = 1 << 25;
/// A copy into it is listed and not enqueued.
pub(super) const COPY_TARGET: u32 = 1 << 24;
/// Free, and cells in the tables of its group (`departed`) still name it, under its old key and namespace.
pub(super) const DEPARTED: u32 = 1 << 23;
pub(super) const NAMESPACE_MASK: u32 = (1 << 23) - 1;

/// Identity of the content before the first block.
pub(super) const ROOT_SERIAL: u64 = 1;
/// Identity of content that must not be found, nor anything after it.
pub(super) const NO_SERIAL: u64 = 0;

/// One block; one cache line.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(super) struct Block {
    /// Its content, while findable or departed.
    pub(super) key: Key,
    /// Whose bytes lie in the slot; 0 nobody's.
    pub(super) tenant: u64,
    /// Latest step in which a former holder was scheduled, or whose work writes what was published before.
    pub(super) last_step: u64,
    /// Sequences and leases that hold it.
    pub(super) refs: u32,
    pub(super) namespace_and_flags: u32,
    /// Links of the waiting list, or of the departed ones.
    pub(super) prev: u32,
    pub(super) next: u32,
}

impl Block {
    pub(super) const EMPTY: Self = Self {
        key: Key([0; 4]),
        tenant: 0,
        last_step: 0,
        refs: 0,
        namespace_and_flags: 0,
        prev: NONE,
        next: NONE,
    };

    pub(super) fn is_findable(&self) -> bool {
        self.namespace_and_flags & FINDABLE != 0
    }

    pub(super) fn is_departed(&self) -> bool {
        self.namespace_and_flags & DEPARTED != 0
    }

    /// The key of what it holds, if that is known.
    pub(super) fn name(&self) -> Option<Key> {
        (self.namespace_and_flags & NAMED != 0).then_some(self.key)
    }

    /// Whether `retention` has to be asked about it.
    pub(super) fn is_retained(&self) -> bool {
        self.namespace_and_flags & RETAINED != 0
    }

    pub(super) fn is_waiting(&self) -> bool {
        self.namespace_and_flags & WAITING != 0
    }

    pub(super) fn namespace(&self) -> u32 {
        self.namespace_and_flags & NAMESPACE_MASK
    }

    pub(super) fn last_step(&self) -> u64 {
        self.last_step
    }

    /// Work of a step uses it; what an earlier one was to write is there by then.
    pub(super) fn note_use(&mut self, step: u64) {
        if step > self.last_step {
            self.last_step = step;
            self.namespace_and_flags &= !UNWRITTEN;
        }
    }

    /// It became findable before its bytes are there, which the work of the newest step writes.
    pub(super) fn note_unwritten(&mut self, step: u64) {
        self.note_use(step);
        self.namespace_and_flags |= UNWRITTEN;
    }

    /// Whether the open step is yet to write some of what it was published as.
    pub(super) fn is_unwritten(&self, open_step: u64) -> bool {
        self.namespace_and_flags & UNWRITTEN != 0 && self.last_step == open_step
    }
}

/// What proves a block's content beyond its key; kept only where it is asked for, apart from its [`Ancestry`]: a match
/// reads all of the one and nothing of the other, an eviction the reverse, and each takes three quarters of a line of
/// the processor's cache.
#[derive(Clone, Copy, Default)]
pub(super) struct Origin {
    /// Identity of the content and of all that came before it; see `identity`.
    pub(super) serial: u64,
    pub(super) parent_serial: u64,
    pub(super) extras: [u64; 4],
}

/// What events and the lists of children tell of a findable block beyond its key; kept where there are such.
#[derive(Clone, Copy, Default)]
pub(super) struct Ancestry {
    pub(super) parent_key: Key,
    /// Blocks before it in its sequence.
    pub(super) position: u64,
    /// Step in which it became findable; its bytes are written before that step's end.
    pub(super) step: u64,
}

/// What a block is published as.
#[derive(Clone, Copy)]
pub(super) struct Publication {
    pub(super) key: Key,
    pub(super) namespace: u32,
    pub(super) parent_key: Key,
    pub(super) parent_serial: u64,
    /// Digest of all extras up to the end of the block.
    pub(super) extras: Extras,
    pub(super) position: u64,
    /// The library chained the key from tokens, which a store that compares tokens keeps.
    pub(super) has_tokens: bool,
}

/// What became of a publication.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Published {
    /// The block is findable.
    Stored,
    /// The same content is findable already, or the block goes out of use; it stays private and names its content.
    Duplicate,
    /// The key is taken by content that could not be proved equal; neither the block nor its followers are published.
    Refused,
}

/// The parts of the cache that every group shares.
pub(super) struct Shared {
    pub(super) namespaces: Namespaces,
    pub(super) events: Events,
    pub(super) steps: Steps,
    pub(super) counters: Counters,
}

impl Shared {
    /// Free blocks became a tenant's.
    pub(super) fn count_handed_out(&mut self, count: u32, tenant: u64) {
        self.counters.allocated_blocks += u64::from(count);
        self.namespaces.owners.counts(owner_of(tenant)).held_blocks += u64::from(count);
    }

    /// Held blocks became findable in a namespace.
    pub(super) fn count_stored(&mut self, count: u32, namespace: u32) {
        self.counters.committed_blocks += u64::from(count);
        self.namespaces.add_uses(namespace, count.into());
        let owner = self.namespaces.get(namespace).owner;
        let counts = self.namespaces.owners.counts(owner);
        counts.findable_blocks += u64::from(count);
        counts.stored_blocks += u64::from(count);
    }
}

/// What the cache did since it was made.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counters {
    pub(super) lookups: u64,
    pub(super) lookup_blocks: u64,
    pub(super) hit_blocks: u64,
    pub(super) hit_tokens: u64,
    pub(super) allocated_blocks: u64,
    pub(super) committed_blocks: u64,
    pub(super) duplicate_blocks: u64,
    pub(super) evicted_blocks: u64,
    pub(super) collisions: u64,
    pub(super) refused_ops: u64,
    pub(super) copied_tokens: u64,
    pub(super) missed_blocks: u64,
    pub(super) skipped_blocks: u64,
    pub(super) moved_blocks: u64,
}
