//! Numbered news about what is findable, for consumers that mirror the index.
//!
//! A ring of fixed size. Numbers rise by one with each event, kept or not; a reader whose cursor fell out of the ring,
//! or never was in it, is told so and takes a snapshot.
//! Invariant: the ring holds the numbers `last - kept + 1 ..= last`.

use super::hash::Key;
use crate::error::Result;
use crate::sys::prefetch;
use crate::sys::reserve::room;

/// What changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum CacheEventKind {
    /// A block became findable.
    Stored = 1,
    /// A block stopped being findable.
    Removed = 2,
    /// Everything of a namespace, or of the cache, stopped being findable.
    Cleared = 3,
}

/// Why a block stopped being findable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum RemoveReason {
    /// It did not.
    None = 0,
    /// Its slot was needed.
    Evicted = 1,
    /// Somebody asked for the eviction.
    Requested = 2,
    /// A reset.
    Reset = 3,
    /// Newer content with the same key took its place.
    Replaced = 4,
    /// Its namespace had more cached blocks than it may.
    Limit = 6,
    /// The sequence that was to write it was cancelled or rolled back first.
    Cancelled = 7,
    /// Its slot was needed, and its priority had expired.
    Expired = 5,
    /// It was not: it lies in another slot from now on, as the event that follows says.
    Moved = 8,
}

impl RemoveReason {
    /// Whether the cache chose the block, to make room or to keep a limit.
    pub(super) fn is_eviction(self) -> bool {
        matches!(self, Self::Evicted | Self::Expired | Self::Limit)
    }
}

/// One change.
#[derive(Clone, Copy, Debug)]
pub struct CacheEvent {
    /// Rises by one.
    pub number: u64,
    /// What changed.
    pub kind: CacheEventKind,
    /// Why, for a removal.
    pub reason: RemoveReason,
    /// Group of the block.
    pub group: u32,
    /// The block; -1 for a clearing.
    pub block: i32,
    /// Its namespace.
    pub namespace_id: u64,
    /// First token of the block.
    pub token_offset: u64,
    /// Its key.
    pub key: Key,
    /// Key of the block before it.
    pub parent_key: Key,
}

/// The ring.
pub(super) struct Events {
    ring: Vec<CacheEvent>,
    capacity: usize,
    last: u64,
    /// Place of the next one: `last % capacity`.
    next: usize,
}

impl Events {
    pub(super) fn new(capacity: u32) -> Result<Self> {
        Ok(Self { ring: room(capacity as usize)?, capacity: capacity as usize, last: 0, next: 0 })
    }

    /// Whether events are kept at all.
    pub(super) fn is_on(&self) -> bool {
        self.capacity > 0
    }

    pub(super) fn last(&self) -> u64 {
        self.last
    }

    /// Numbers the event and keeps it.
    #[inline]
    pub(super) fn push(&mut self, event: CacheEvent) {
        self.last += 1;
        if self.capacity == 0 {
            return;
        }
        let event = CacheEvent { number: self.last, ..event };
        match self.ring.get_mut(self.next) {
            Some(place) => *place = event,
            None => self.ring.push(event),
        }
        self.next = if self.next + 1 == self.capacity { 0 } else { self.next + 1 };
    }

    /// Has fetched where the event after so many others will be written.
    #[inline]
    pub(super) fn fetch_next(&self, others: usize) {
        let at = self.next + others;
        prefetch::prefetch(&self.ring, at);
        prefetch::prefetch_part(&self.ring, at, prefetch::LINE_BYTES);
    }

    /// The event after `cursor`, if it is kept. `Err` carries the number of the oldest kept one after a gap: a cursor
    /// above the latest number is that of another cache, made before this one, of which nothing was read.
    pub(super) fn after(&self, cursor: u64) -> std::result::Result<Option<&CacheEvent>, u64> {
        let oldest = self.last - self.ring.len() as u64 + 1;
        if cursor == self.last {
            return Ok(None);
        }
        if cursor > self.last || cursor + 1 < oldest {
            return Err(oldest);
        }
        Ok(Some(&self.ring[cursor as usize % self.capacity]))
    }
}
