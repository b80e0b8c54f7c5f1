//! The owner of one physical page, and what ties a page to addresses that it has left.
//!
//! What it does: gives its page back on drop; passes it on to the pool while its old addresses still lead to it, and
//! stands for that mapping from then on. What it does not: unmap anything; the range does, and drops the owner then.
//! Invariant: a page with a bond that is tied is not given to the device.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::Core;
use crate::device::Page;
use crate::memory::budget::Paid;
use crate::memory::page_class::PageClass;

/// What ties a page to addresses that were given up.
#[derive(Default)]
pub(super) struct Bond {
    /// Mappings of such addresses.
    mappings: AtomicU32,
    /// One of them could not be removed: once nobody has the page, the device gets it.
    is_broken: AtomicBool,
}

impl Bond {
    pub(super) fn is_tied(&self) -> bool {
        self.mappings.load(Ordering::Acquire) > 0
    }

    pub(super) fn is_broken(&self) -> bool {
        self.is_broken.load(Ordering::Acquire)
    }
}

/// Owner of a physical page; back to the pool on drop.
pub struct PhysicalPage {
    pub(super) core: Arc<Core>,
    pub(super) page: Page,
    pub(super) class: PageClass,
    /// Whose bytes it holds.
    pub(super) tenant: u64,
    pub(super) taker: u64,
    pub(super) is_used_by_us: bool,
    pub(super) is_broken: AtomicBool,
    /// There once the page was passed on.
    pub(super) bond: Option<Arc<Bond>>,
    /// The page was passed on: this stands for a mapping that is left of it.
    pub(super) is_shadow: bool,
    /// Goes after the page is back, so that whoever is charged next finds it.
    pub(super) paid: Option<Paid>,
}

impl PhysicalPage {
    /// The page, to map.
    pub fn page(&self) -> Page {
        self.page
    }

    /// Its size.
    pub fn class(&self) -> PageClass {
        self.class
    }

    /// Whether the tenant that has it now was also the last to have it; never of a page that is new.
    pub fn is_used_by_us(&self) -> bool {
        self.is_used_by_us
    }

    /// Its bytes are the taker's from here on; before, they are still those of whoever had it last.
    pub fn adopt(&mut self) {
        self.tenant = self.taker;
    }

    /// For the device and not for the pool: a mapping of it is left that the device does not remove.
    pub(in crate::memory) fn discard(&self) {
        self.is_broken.store(true, Ordering::Relaxed);
        if let Some(bond) = self.bond.as_ref().filter(|_| self.is_shadow) {
            bond.is_broken.store(true, Ordering::Release);
        }
    }

    /// Puts the page into the pool, to be had by anybody, and stands from now on for the mapping of it that is left.
    /// Nobody uses the page, and whoever calls this unmaps it where it was before anybody may use it there again.
    pub(in crate::memory) fn pass_on(&mut self) {
        if std::mem::replace(&mut self.is_shadow, true) {
            return;
        }
        let bond = self.bond.get_or_insert_with(Arc::default);
        bond.mappings.fetch_add(1, Ordering::Relaxed);
        self.core.stale.fetch_add(1, Ordering::Relaxed);
        self.core.passed_on.fetch_add(1, Ordering::Relaxed);
        self.core.put(self.class, self.page, self.tenant, Some(Arc::clone(bond)));
        drop(self.paid.take());
    }

    /// What keeps the page from the device, if anything does.
    fn bond_left(&mut self) -> Option<Arc<Bond>> {
        let bond = self.bond.take().filter(|bond| bond.is_tied() || bond.is_broken());
        if self.is_broken.load(Ordering::Relaxed) {
            let bond = bond.unwrap_or_default();
            bond.is_broken.store(true, Ordering::Release);
            return Some(bond);
        }
        bond
    }
}

impl AsRef<Self> for PhysicalPage {
    fn as_ref(&self) -> &Self {
        self
    }
}

impl Drop for PhysicalPage {
    fn drop(&mut self) {
        if !self.is_shadow {
            let bond = self.bond_left();
            self.core.put(self.class, self.page, self.tenant, bond);
        } else if let Some(bond) = &self.bond {
            bond.mappings.fetch_sub(1, Ordering::Release);
            self.core.stale.fetch_sub(1, Ordering::Release);
        }
    }
}
