//! Mappings that the device did not remove.
//!
//! What it does: keeps such a mapping with its page, and tries it again before its addresses get memory, in every pass
//! of the upkeep, and when the range is cleared. What it does not: give the page to anybody, now or later.
//! Invariants: where a mapping is kept, the table has none; its page is charged and not with the device until the
//! mapping has gone. Lock order: the range's, which whoever calls the device holds, then the list's.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::super::page_table::PageTable;
use super::super::physical::PhysicalPage;
use super::{BATCH, Range};
use crate::error::{Error, Result};
use crate::memory::page_class::PageClass;
use crate::sync::Mutex;

#[derive(Default)]
struct List {
    /// By number of the first page.
    mappings: BTreeMap<u64, Arc<PhysicalPage>>,
    /// Where the next pass begins, so that one that never goes keeps it from none.
    next: u64,
}

/// Those of a range.
#[derive(Default)]
pub(super) struct Stuck {
    list: Mutex<List>,
    /// How many there are, for a look without the lock.
    count: AtomicUsize,
}

impl Range {
    /// Keeps a mapping that is still there.
    pub(super) fn keep_stuck(&self, start: u64, page: Arc<PhysicalPage>) {
        page.discard();
        let mut list = self.stuck.list.lock();
        list.mappings.insert(start, page);
        self.stuck.count.store(list.mappings.len(), Ordering::Release);
    }

    /// First page and end of each mapping that is kept and meets `[first, end)`.
    pub(in crate::memory) fn stuck_in(&self, first: u64, end: u64) -> Vec<(u64, u64)> {
        if !self.has_stuck() {
            return Vec::new();
        }
        let list = self.stuck.list.lock();
        let low = first.saturating_sub(PageClass::LARGE.pages());
        let mappings = list.mappings.range(low..end);
        let places = mappings.map(|(start, page)| (*start, start + page.class().pages()));
        places.filter(|(_, stop)| *stop > first).collect()
    }

    /// Frees the addresses of `[first, end)` of what was kept there.
    pub(super) fn free_stuck(&self, first: u64, end: u64) -> Result<()> {
        self.stuck_in(first, end).into_iter().try_for_each(|(start, _)| self.retry_stuck(start).map(drop))
    }

    /// Tries some more of what was kept, until the device refuses one; the bytes that came free, and whether any are
    /// left.
    pub(super) fn retry_some_stuck(&self) -> (u64, bool) {
        let mut bytes = 0;
        for _ in 0..BATCH {
            let start = {
                let mut list = self.stuck.list.lock();
                let after = list.mappings.range(list.next..).next().or_else(|| list.mappings.iter().next());
                let Some(start) = after.map(|(start, _)| *start) else { return (bytes, false) };
                list.next = start + 1;
                start
            };
            match self.retry_stuck(start) {
                Ok(freed_bytes) => bytes += freed_bytes,
                Err(_) => return (bytes, true),
            }
        }
        (bytes, self.has_stuck())
    }

    /// Tries all of what was kept.
    pub(super) fn retry_all_stuck(&self) {
        // What stays was told when it was kept.
        self.stuck_in(0, u64::MAX).into_iter().for_each(|(start, _)| drop(self.retry_stuck(start)));
    }

    fn has_stuck(&self) -> bool {
        self.stuck.count.load(Ordering::Acquire) > 0
    }

    /// Tries one again; the bytes of the page that has no address by that.
    fn retry_stuck(&self, start: u64) -> Result<u64> {
        let Some(page) = self.stuck.list.lock().mappings.get(&start).cloned() else { return Ok(0) };
        let end = start + page.class().pages();
        self.physical.note_change();
        let unmapped = self.part(start, end).and_then(|part| self.physical.device().virtual_unmap(part));
        unmapped.map_err(|error| refusal(error, start, end))?;
        self.physical.note_unmap(true);
        {
            let mut list = self.stuck.list.lock();
            list.mappings.remove(&start);
            self.stuck.count.store(list.mappings.len(), Ordering::Release);
        }
        // Other mappings of it may be left.
        Ok(if Arc::strong_count(&page) == 1 { (end - start) * self.page_bytes } else { 0 })
    }
}

impl Stuck {
    /// What is kept is counted, and in no table.
    pub(super) fn validate(&self, table: &PageTable) -> Result<()> {
        let list = self.list.lock();
        let end = |(start, page): (&u64, &Arc<PhysicalPage>)| (*start, start + page.class().pages());
        let is_bare = |&(first, end): &(u64, u64)| table.gaps(first, end) == [(first, end)];
        if list.mappings.len() != self.count.load(Ordering::Acquire)
            || !list.mappings.iter().map(end).all(|place| is_bare(&place))
        {
            return Err(Error::internal(
                "a mapping that the device kept is not counted, or in the table too",
            ));
        }
        Ok(())
    }
}

fn refusal(error: Error, first: u64, end: u64) -> Error {
    error.context(&format!("pages {first} to {end} of a range still lead to memory that was given up"))
}
