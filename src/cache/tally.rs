//! Changes to blocks of one owner, added up and told to its counters at once.
//!
//! Neighbours in a row are nearly always one owner's, so a list of blocks costs one look at the counters. What it does
//! not: change a block or a list. Invariant: who makes a tally settles it before the store's call returns, so nobody
//! reads counters that lack something.

use super::namespace::Namespaces;
use super::owner_lists::OwnerLists;
use super::owners::owner_of;

/// What became of some blocks of one owner.
pub(super) struct Tally {
    /// Tag of the tenant; 0 while nothing is added.
    tenant: u64,
    /// Of the blocks that are cached, or not any more, and of those that are gone.
    namespace: u32,
    /// Whether the owner's cached blocks are kept in the order of their release.
    pub(super) is_ordered: bool,
    pub(super) held: i64,
    pub(super) cached: i64,
    /// No longer findable.
    gone: u64,
    evicted: u64,
}

impl Tally {
    pub(super) const NONE: Self =
        Self { tenant: 0, namespace: 0, is_ordered: false, held: 0, cached: 0, gone: 0, evicted: 0 };

    /// What comes next is a block of this tenant.
    #[inline]
    pub(super) fn turn(&mut self, tenant: u64, by_owner: &mut OwnerLists, namespaces: &mut Namespaces) {
        if self.tenant != tenant {
            self.settle(by_owner, namespaces);
            self.tenant = tenant;
            self.is_ordered = namespaces.owners.get(owner_of(tenant)).is_ordered();
        }
    }

    /// What comes next is a findable block of this tenant and namespace.
    #[inline]
    pub(super) fn turn_to(
        &mut self,
        (tenant, namespace): (u64, u32),
        by_owner: &mut OwnerLists,
        namespaces: &mut Namespaces,
    ) {
        if self.namespace != namespace && (self.cached != 0 || self.gone > 0) {
            self.settle(by_owner, namespaces);
        }
        self.turn(tenant, by_owner, namespaces);
        self.namespace = namespace;
    }

    /// Blocks of this tenant and namespace, so many, stop being findable.
    #[inline]
    pub(super) fn forget(
        &mut self,
        whose: (u64, u32),
        count: u32,
        is_eviction: bool,
        by_owner: &mut OwnerLists,
        namespaces: &mut Namespaces,
    ) {
        self.turn_to(whose, by_owner, namespaces);
        self.gone += u64::from(count);
        self.evicted += u64::from(if is_eviction { count } else { 0 });
    }

    /// Tells the counters.
    pub(super) fn settle(&mut self, by_owner: &mut OwnerLists, namespaces: &mut Namespaces) {
        let Self { tenant, namespace, held, cached, gone, evicted, .. } = std::mem::replace(self, Self::NONE);
        if tenant == 0 {
            return;
        }
        let owner = owner_of(tenant);
        let counts = namespaces.owners.counts(owner);
        counts.held_blocks = counts.held_blocks.wrapping_add_signed(held);
        counts.findable_blocks -= gone;
        counts.evicted_blocks += evicted;
        namespaces.owners.add_cached(owner, cached);
        by_owner.add_cached(owner, cached);
        if cached != 0 {
            namespaces.add_cached(namespace, cached);
        }
        if gone > 0 {
            namespaces.drop_uses(namespace, gone);
        }
    }
}
