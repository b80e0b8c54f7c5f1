//! What a store tells the owners of its blocks: which of theirs are findable, and which are cached: findable, held by
//! nobody, and not pinned.

use super::block::Shared;
use super::events::RemoveReason;
use super::namespace::Namespaces;
use super::owners::owner_of;
use super::store::Store;
use super::tally::Tally;

impl Store {
    /// A findable block that nobody holds is no longer one.
    #[inline]
    pub(super) fn leave_inactive(&mut self, index: u32, tally: &mut Tally, namespaces: &mut Namespaces) {
        self.inactive -= 1;
        if !self.is_pinned(index) {
            tally.turn_to(self.whose(index), &mut self.by_owner, namespaces);
            tally.cached -= 1;
        }
    }

    /// A findable block that nobody holds or pins: the newest of its owner's.
    #[inline]
    pub(super) fn join_cached(&mut self, index: u32, tally: &mut Tally, namespaces: &mut Namespaces) {
        self.join_cached_of(self.whose(index), index, tally, namespaces);
    }

    /// The same, of which tenant and namespace are known.
    #[inline]
    pub(super) fn join_cached_of(
        &mut self,
        whose: (u64, u32),
        index: u32,
        tally: &mut Tally,
        namespaces: &mut Namespaces,
    ) {
        tally.turn_to(whose, &mut self.by_owner, namespaces);
        tally.cached += 1;
        if tally.is_ordered {
            self.by_owner.renew(owner_of(whose.0), index);
        }
    }

    /// Whether a listed block is cached.
    pub(super) fn may_go(&self, index: u32) -> bool {
        self.is_inactive(index) && !self.is_pinned(index)
    }

    /// Makes the oldest cached block of an owner go. False if it has none here.
    pub(super) fn evict_oldest_of(&mut self, owner: u32, reason: RemoveReason, shared: &mut Shared) -> bool {
        if self.by_owner.cached(owner) == 0 {
            return false;
        }
        loop {
            match self.by_owner.oldest(owner) {
                Some(oldest) if self.may_go(oldest) => {
                    self.remove(oldest, reason, shared);
                    return true;
                }
                Some(held) => self.by_owner.set_aside(owner, held),
                None => self.by_owner.take_back(owner),
            }
        }
    }
}
