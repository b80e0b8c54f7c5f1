//! Pages that go to the pool before they are unmapped, and what waits for that.
//!
//! What it does: has so much passed on as somebody lacks, and bounds what is left to unmap; keeps the upkeep away while
//! somebody waits for a change of page tables; gives idle pages to the device, for which they have to be unmapped. What
//! it does not: choose the pages; that is the ranges'.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::{Core, Physical, Pool};
use crate::memory::chores::Skipped;
use crate::memory::upkeep::Idlers;

/// Old mappings of pages that were passed on, at most: what two moves of 8 GiB leave, and 0.2 s of a driver.
const STALE_MAX: u64 = 8192;

/// What became of removals of mappings.
#[derive(Default)]
pub(super) struct Unmaps {
    failed: AtomicU64,
    /// Of the last one.
    is_refused: AtomicBool,
}

impl Unmaps {
    /// How many the device did not make.
    pub(super) fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }
}

/// A change of page tables that somebody waits for, until the drop.
pub(in crate::memory) struct Awaited<'a>(&'a Core);

impl Drop for Awaited<'_> {
    fn drop(&mut self) {
        self.0.awaited.fetch_sub(1, Ordering::Release);
    }
}

impl Physical {
    /// Gives idle pages to the device until at most so many bytes are pooled; returns what was given.
    pub fn trim(&self, keep_bytes: u64) -> u64 {
        self.core.note_pressure();
        let is_over = |pool: &Pool| self.core.pooled_bytes(pool) > keep_bytes;
        let given_bytes = self.core.shed(|pool, _, _, _| is_over(pool));
        if !self.has_stale() || !is_over(&self.core.pool.lock()) {
            return given_bytes;
        }
        self.collect();
        given_bytes + self.core.shed(|pool, _, _, _| is_over(pool))
    }

    /// Gives at least so many bytes of idle pages to the device, as far as there are so many; what was given.
    pub(in crate::memory) fn give(&self, bytes: u64) -> u64 {
        self.core.note_pressure();
        let given_bytes = self.core.shed(|_, _, _, shed_bytes| shed_bytes < bytes);
        if given_bytes >= bytes || !self.has_stale() {
            return given_bytes;
        }
        self.collect();
        given_bytes + self.core.shed(|_, _, _, shed_bytes| given_bytes + shed_bytes < bytes)
    }

    fn has_stale(&self) -> bool {
        self.core.stale.load(Ordering::Acquire) > 0
    }

    /// Lets so many bytes of what was given up, and whose streams are past, go to the pool before it is unmapped;
    /// returns what went. Nothing where as much waits for its unmapping as may: then the caller unmaps.
    pub(in crate::memory) fn pass_on(&self, bytes: u64, skipped: Skipped) -> u64 {
        let waiting = self.core.stale.load(Ordering::Acquire);
        let most = STALE_MAX.saturating_sub(waiting);
        if bytes == 0 || most == 0 { 0 } else { self.core.chores.pass_on(bytes, most, skipped) }
    }

    /// What was passed on is unmapped at its old addresses: now where nobody does the upkeep.
    pub(in crate::memory) fn tidy(&self) {
        if self.has_thread() {
            self.stir();
        } else if self.has_stale() {
            self.collect();
        }
    }

    /// Somebody waits for a change of page tables from here on.
    pub(in crate::memory) fn await_change(&self) -> Awaited<'_> {
        self.core.awaited.fetch_add(1, Ordering::Acquire);
        Awaited(&self.core)
    }

    /// Whether the upkeep leaves changes alone for the sake of those who wait for one.
    pub(in crate::memory) fn is_awaited(&self) -> bool {
        self.core.awaited.load(Ordering::Acquire) > 0 && !self.core.is_overdue.load(Ordering::Relaxed)
    }

    /// Those who are asked for what they do not use.
    pub(in crate::memory) fn idlers(&self) -> &Idlers {
        &self.core.idlers
    }

    /// Notes whether the device has removed a mapping.
    pub(in crate::memory) fn note_unmap(&self, is_done: bool) {
        let unmaps = &self.core.unmaps;
        if unmaps.is_refused.load(Ordering::Relaxed) == is_done {
            unmaps.is_refused.store(!is_done, Ordering::Relaxed);
        }
        if !is_done {
            unmaps.failed.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Whether the device did not remove what it was asked to remove last: it may keep the next mapping too.
    pub(in crate::memory) fn is_refused(&self) -> bool {
        self.core.unmaps.is_refused.load(Ordering::Relaxed)
    }

    /// Counts what is free of its old addresses by a deferred change, after it is back in the pool.
    pub(in crate::memory) fn note_unmapped(&self, bytes: u64) {
        self.core.unmapped_bytes.fetch_add(bytes, Ordering::Release);
    }

    /// All that was ever counted so. Where it has grown, what was refused before may be had now.
    pub(in crate::memory) fn unmapped_bytes(&self) -> u64 {
        self.core.unmapped_bytes.load(Ordering::Acquire)
    }
}
