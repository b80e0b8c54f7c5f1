//! Owners: what each namespace id holds, keeps and did, and how much of it it may.
//!
//! An owner is a namespace id under all its salts and adapters. It has an entry while a namespace of that id is in use
//! or a limit is set for it. The tag that a block carries of its tenant names the owner in its lower bits, so every
//! change of a block's state finds the counters in O(1). Nothing is allocated after creation.
//! Invariants, proved by `validate`: `held` is the owner's blocks that somebody holds, `findable` those that are
//! findable, `cached` those that are findable and that the policy may evict.

use std::collections::HashMap;

use crate::error::{Error, Result, Status};
use crate::sys::reserve::room;

/// No limit.
pub const NO_LIMIT: u64 = u64::MAX;

/// Bits of a tenant's tag that name its owner.
const OWNER_BITS: u32 = 22;

/// Entries that are looked at under one hold of the lock.
const LOOK_PIECE: usize = 512;

/// A tenant's tag with its owner in the lower bits. Never 0.
pub(super) fn tag(hash: u64, owner: u32) -> u64 {
    hash << OWNER_BITS | u64::from(owner + 1)
}

/// The owner that a tag names; the tag is one of [`tag`].
pub(super) fn owner_of(tag: u64) -> u32 {
    (tag & ((1 << OWNER_BITS) - 1)) as u32 - 1
}

/// What a namespace holds, may hold and did; see the C header for each field.
#[derive(Clone, Copy, Debug, Default)]
#[expect(missing_docs, reason = "the fields are those of kavern_kv_namespace_statistics, documented there")]
pub struct NamespaceStatistics {
    pub held_blocks: u64,
    pub cached_blocks: u64,
    pub findable_blocks: u64,
    pub max_held_blocks: u64,
    pub max_cached_blocks: u64,
    pub lookups: u64,
    pub lookup_blocks: u64,
    pub hit_blocks: u64,
    pub lookup_tokens: u64,
    pub hit_tokens: u64,
    pub stored_blocks: u64,
    pub evicted_blocks: u64,
    pub refused_ops: u64,
    pub promised_blocks: u64,
}

/// Where a pass over the lists of an owner is.
#[derive(Clone, Copy, Default)]
pub(super) struct Sorting {
    /// Lists that are sorted.
    pub(super) lists_done: usize,
    /// The block with which the next list ends, and at most how many come before: others may move it meanwhile.
    pub(super) end: Option<(u32, u64)>,
}

/// One owner.
#[derive(Clone, Copy, Default)]
pub(super) struct Owner {
    id: u64,
    /// Entries of the namespace table with this id.
    namespaces: u32,
    is_live: bool,
    /// It stands in the list of those that may be over their limit.
    is_over: bool,
    /// Rises with each reset of the namespace.
    epoch: u64,
    /// The pass that sorts its lists, for a limit of cached blocks that is new.
    sorting: Option<Sorting>,
    pub(super) counts: NamespaceStatistics,
}

impl Owner {
    /// Whether its cached blocks are kept in the order of their release.
    pub(super) fn is_ordered(&self) -> bool {
        self.counts.max_cached_blocks != NO_LIMIT
    }

    fn is_limited(&self) -> bool {
        self.is_ordered() || self.counts.max_held_blocks != NO_LIMIT
    }
}

/// The table of owners.
pub(super) struct Owners {
    /// Has room for the most that can be.
    entries: Vec<Owner>,
    free: Vec<u32>,
    by_id: HashMap<u64, u32>,
    over: Vec<u32>,
    limited: usize,
    max_limited: usize,
    /// Rises with each reset of everything.
    epoch: u64,
}

impl Owners {
    /// Entries for so many namespaces in use and as many limits beside them.
    pub(super) fn capacity(max_namespaces: u32) -> u32 {
        2 * max_namespaces
    }

    pub(super) fn new(max_namespaces: u32) -> Result<Self> {
        let most = Self::capacity(max_namespaces) as usize;
        let mut by_id = HashMap::new();
        // Twice the entries: removals then never make the map grow.
        by_id.try_reserve(2 * most).map_err(|_| {
            Error::new(
                Status::OutOfHostMemory,
                format!("{max_namespaces} namespaces do not fit into host memory"),
            )
        })?;
        Ok(Self {
            entries: room(most)?,
            free: room(most)?,
            by_id,
            over: room(most)?,
            limited: 0,
            max_limited: max_namespaces as usize,
            epoch: 0,
        })
    }

    pub(super) fn get(&self, owner: u32) -> &Owner {
        &self.entries[owner as usize]
    }

    /// The counts of an owner.
    pub(super) fn counts(&mut self, owner: u32) -> &mut NamespaceStatistics {
        &mut self.entries[owner as usize].counts
    }

    pub(super) fn find(&self, id: u64) -> Option<u32> {
        self.by_id.get(&id).copied()
    }

    fn find_or_make(&mut self, id: u64) -> u32 {
        if let Some(owner) = self.find(id) {
            return owner;
        }
        let counts = NamespaceStatistics {
            max_held_blocks: NO_LIMIT,
            max_cached_blocks: NO_LIMIT,
            ..NamespaceStatistics::default()
        };
        let mut entry = Owner { id, is_live: true, counts, ..Owner::default() };
        let owner = match self.free.pop() {
            Some(owner) => {
                entry.is_over = self.entries[owner as usize].is_over;
                self.entries[owner as usize] = entry;
                owner
            }
            None => {
                debug_assert!(self.entries.len() < self.entries.capacity(), "room for all that can be");
                self.entries.push(entry);
                self.entries.len() as u32 - 1
            }
        };
        self.by_id.insert(id, owner);
        owner
    }

    /// A namespace of that id comes into use. There is always room: the namespace table is full before this one.
    pub(super) fn open(&mut self, id: u64) -> u32 {
        let owner = self.find_or_make(id);
        self.entries[owner as usize].namespaces += 1;
        owner
    }

    /// A namespace of the owner is used no more.
    pub(super) fn close(&mut self, owner: u32) {
        self.entries[owner as usize].namespaces -= 1;
        self.forget_idle(owner);
    }

    fn forget_idle(&mut self, owner: u32) {
        let entry = &mut self.entries[owner as usize];
        if entry.namespaces == 0 && !entry.is_limited() {
            entry.is_live = false;
            self.by_id.remove(&entry.id);
            self.free.push(owner);
        }
    }

    /// Sets the limits of a namespace, which need not be in use; [`NO_LIMIT`] lifts one. That of cached blocks counts
    /// once their lists are sorted, if it is new.
    pub(super) fn limit(&mut self, id: u64, max_held_blocks: u64, max_cached_blocks: u64) -> Result<()> {
        let is_limited = max_held_blocks != NO_LIMIT || max_cached_blocks != NO_LIMIT;
        if !is_limited && self.find(id).is_none() {
            // There is nothing to lift, and there may be no room for one more.
            return Ok(());
        }
        let was_limited = self.find(id).is_some_and(|owner| self.get(owner).is_limited());
        if is_limited && !was_limited && self.limited == self.max_limited {
            let text = "limits are set for max_namespaces namespaces; lift one or raise max_namespaces";
            return Err(Error::new(Status::LimitReached, text));
        }
        self.limited = self.limited + usize::from(is_limited) - usize::from(was_limited);
        let owner = self.find_or_make(id);
        let was_ordered = self.get(owner).is_ordered();
        let counts = self.counts(owner);
        (counts.max_held_blocks, counts.max_cached_blocks) = (max_held_blocks, max_cached_blocks);
        let is_ordered = self.get(owner).is_ordered();
        if was_ordered != is_ordered {
            self.entries[owner as usize].sorting = is_ordered.then(Sorting::default);
        }
        self.forget_idle(owner);
        Ok(())
    }

    /// Where the pass over the lists of an owner is, while there is one.
    pub(super) fn sorting(&self, owner: u32) -> Option<Sorting> {
        self.get(owner).sorting
    }

    /// How far the pass has come; nothing once the lists are sorted: from there on the limit counts.
    pub(super) fn set_sorting(&mut self, owner: u32, sorting: Option<Sorting>) {
        self.entries[owner as usize].sorting = sorting;
    }

    /// So many cached blocks more.
    pub(super) fn add_cached(&mut self, owner: u32, count: i64) {
        let entry = &mut self.entries[owner as usize];
        entry.counts.cached_blocks = entry.counts.cached_blocks.wrapping_add_signed(count);
        if entry.counts.cached_blocks > entry.counts.max_cached_blocks && !entry.is_over {
            entry.is_over = true;
            self.over.push(owner);
        }
    }

    /// Whether some owner may be over its limit of cached blocks.
    #[inline]
    pub(super) fn may_be_over(&self) -> bool {
        !self.over.is_empty()
    }

    /// Takes an owner that may be over its limit of cached blocks.
    pub(super) fn take_over(&mut self) -> Option<u32> {
        let owner = self.over.pop()?;
        self.entries[owner as usize].is_over = false;
        Some(owner)
    }

    /// Whether the owner has more cached blocks than it may.
    pub(super) fn has_excess(&self, owner: u32) -> bool {
        let Owner { is_live, counts, sorting, .. } = self.get(owner);
        *is_live && sorting.is_none() && counts.cached_blocks > counts.max_cached_blocks
    }

    /// What is computed under an epoch may be published as long as the epoch is the same.
    pub(super) fn epoch(&self, owner: u32) -> u64 {
        self.epoch + self.get(owner).epoch
    }

    /// Everything that is computed now may be published no more; `None` means of all owners.
    pub(super) fn turn_epoch(&mut self, id: Option<u64>) {
        match id {
            None => self.epoch += 1,
            Some(id) => {
                if let Some(owner) = self.find(id) {
                    self.entries[owner as usize].epoch += 1;
                }
            }
        }
    }

    /// Live owners with their ids.
    pub(super) fn live(&self) -> impl Iterator<Item = (u32, u64)> + '_ {
        let entries = self.entries.iter().enumerate();
        entries.filter(|(_, entry)| entry.is_live).map(|(at, entry)| (at as u32, entry.id))
    }

    /// Copies ids of live owners from a position on; answers how many, the next position, and whether that was all.
    pub(super) fn ids_piece(&self, position: u64, ids: &mut [u64]) -> (usize, u64, bool) {
        let first = usize::try_from(position).unwrap_or(usize::MAX).min(self.entries.len());
        let (mut at, mut count) = (first, 0);
        let end = self.entries.len().min(first + LOOK_PIECE);
        while at < end && count < ids.len() {
            if self.entries[at].is_live {
                ids[count] = self.entries[at].id;
                count += 1;
            }
            at += 1;
        }
        (count, at as u64, at == self.entries.len())
    }

    pub(super) fn entry_count(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn bytes(&self) -> u64 {
        (self.entries.capacity() * size_of::<Owner>() + 8 * self.free.capacity()) as u64
    }

    /// Checks the table against itself and the uses that the caller found: namespaces by owner.
    pub(super) fn validate(&self, namespaces: &[u32]) -> Result<()> {
        let live = self.live().count();
        if live != self.by_id.len() || live + self.free.len() != self.entries.len() {
            return Err(Error::internal("the table of owners lost an entry"));
        }
        if self.entries.len() > Self::capacity(self.max_limited as u32) as usize {
            return Err(Error::internal("there are more owners than lists of their blocks"));
        }
        let mut limited = 0;
        for (owner, id) in self.live() {
            let entry = self.get(owner);
            limited += usize::from(entry.is_limited());
            if entry.namespaces != namespaces[owner as usize] || self.find(id) != Some(owner) {
                return Err(Error::internal(format!("owner {owner} counts its namespaces wrongly")));
            }
        }
        let mut over = self.over.clone();
        over.sort_unstable();
        let is_over = |owner: &u32| self.get(*owner).is_over;
        if !(0..self.entries.len() as u32).filter(is_over).eq(over) {
            return Err(Error::internal("the list of owners over their limits is wrong"));
        }
        if limited != self.limited {
            return Err(Error::internal("limits of owners are counted wrongly"));
        }
        Ok(())
    }
}
