//! What a store tells the owners of its blocks: which of theirs are findable, and which are cached: findable, held by
//! nobody, and not pinned.

use super::block::Shared;
use super::events::RemoveReason;
use super::owners::{Owners, owner_of};
use super::store::Store;

impl Store {
    /// A findable block that nobody holds is no longer one.
    pub(super) fn leave_inactive(&mut self, index: u32, owners: &mut Owners) {
        self.inactive -= 1;
        if !self.is_pinned(index) {
            self.leave_cached(index, owners);
        }
    }

    /// A findable block that nobody holds or pins: the newest of its owner's.
    pub(super) fn join_cached(&mut self, index: u32, owners: &mut Owners) {
        let owner = owner_of(self.block(index).tenant);
        owners.cached(owner);
        self.by_owner.add_cached(owner);
        if owners.get(owner).is_ordered() {
            self.by_owner.renew(owner, index);
        }
    }

    fn leave_cached(&mut self, index: u32, owners: &mut Owners) {
        let owner = owner_of(self.block(index).tenant);
        owners.counts(owner).cached_blocks -= 1;
        self.by_owner.drop_cached(owner);
    }

    /// A held block became findable.
    pub(super) fn note_findable(&mut self, index: u32, owners: &mut Owners) {
        let owner = owner_of(self.block(index).tenant);
        self.by_owner.push(owner, index);
        if owners.get(owner).is_ordered() {
            self.by_owner.set_aside(owner, index);
        }
        let counts = owners.counts(owner);
        counts.findable_blocks += 1;
        counts.stored_blocks += 1;
    }

    /// Makes the oldest cached block of an owner go. False if it has none here.
    pub(super) fn evict_oldest_of(&mut self, owner: u32, shared: &mut Shared) -> bool {
        if self.by_owner.cached(owner) == 0 {
            return false;
        }
        loop {
            match self.by_owner.oldest(owner) {
                Some(oldest) if self.is_inactive(oldest) && !self.is_pinned(oldest) => {
                    self.remove(oldest, RemoveReason::Limit, shared);
                    return true;
                }
                Some(held) => self.by_owner.set_aside(owner, held),
                None => self.by_owner.take_back(owner),
            }
        }
    }
}
