//! Memory for a range out of pages that others have given up and that are not unmapped yet.
//!
//! What it does: where a range is short of memory, has pages passed on whose streams are past, maps them here, and
//! leaves it to the upkeep to unmap their old addresses, so that nobody waits for that. What it does not: pass a page
//! on before its point; wait for a stream.
//! Invariants: those of the range; addresses that lead to a page which was passed on are unmapped before they have
//! memory again (`take_stale`), and the page does not go to the device before (`physical`).

use super::{Prepare, Range};
use crate::error::{Result, Status};
use crate::memory::chores::{Passed, Skipped};

impl Range {
    /// Puts memory behind all pages of `[first, end)`; returns how many had none, or had given it up.
    pub(in crate::memory) fn back(&self, first: u64, end: u64, prepare: Prepare<'_>) -> Result<u64> {
        let unmapped_bytes = self.physical.unmapped_bytes();
        let awaited = self.physical.await_change();
        let mut backed = self.try_back(first, end, prepare);
        let is_short =
            |backed: &Result<u64>| backed.as_ref().is_err_and(|error| error.status == Status::OutOfMemory);
        // What others have given up may be a step away from the pool; no lock is held here.
        let skipped = Skipped { address: self.slice.address(), pages: (first, end) };
        if is_short(&backed)
            && self.holder.takes_passed
            && self.physical.pass_on(self.lack_bytes(first, end), skipped) > 0
        {
            backed = self.try_back(first, end, prepare);
            drop(awaited);
            self.physical.tidy();
        }
        // As much as may wait is waiting, or it is of the wrong sizes, which go through the device. The upkeep may have
        // been faster.
        if is_short(&backed) {
            self.physical.collect();
            if self.physical.unmapped_bytes() != unmapped_bytes {
                backed = self.try_back(first, end, prepare);
            }
        }
        backed
    }

    /// What is needed for `[first, end)` and not to be had.
    fn lack_bytes(&self, first: u64, end: u64) -> u64 {
        self.gap_bytes(first, end).saturating_sub(self.left_bytes())
    }

    pub(super) fn pass_pages_on(&self, bytes: u64, count_max: u64, skipped: Skipped) -> Passed {
        let skipped = if skipped.address == self.slice.address() { skipped.pages } else { (0, 0) };
        let pages = bytes.div_ceil(self.page_bytes);
        let (mappings, passed) = self.table.lock().pass_on(pages, count_max, skipped);
        Passed { bytes: passed * self.page_bytes, mappings }
    }
}
