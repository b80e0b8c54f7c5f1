//! Mappings that the device did not remove.
//!
//! What it does: keeps such a mapping with its page, and tries it again before its addresses get memory, in every pass
//! of the upkeep, and when the range is cleared. What it does not: give the page to anybody, now or later.
//! Invariants: where a mapping is kept, the table has none; its page is charged and not with the device until the
//! mapping has gone. Lock order: the range's, which whoever calls the device holds, then the list's.

use std::collections::BTreeMap;
use std::sync::Arc;

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
pub(super) struct Stuck(Mutex<List>);

impl Range {
    /// Keeps a mapping that is still there.
    pub(super) fn keep_stuck(&self, start: u64, page: Arc<PhysicalPage>) {
        page.discard();
        self.stuck.0.lock().mappings.insert(start, page);
    }

    /// Frees the addresses of `[first, end)` of what was kept there.
    pub(super) fn free_stuck(&self, first: u64, end: u64) -> Result<()> {
        let meets = |(start, page): (&u64, &Arc<PhysicalPage>)| {
            (start + page.class().pages() > first).then_some(*start)
        };
        let starts: Vec<u64> = {
            let list = self.stuck.0.lock();
            let low = first.saturating_sub(PageClass::LARGE.pages());
            list.mappings.range(low..end).filter_map(meets).collect()
        };
        starts.into_iter().try_for_each(|start| self.retry_stuck(start).map(drop))
    }

    /// Tries some more of what was kept, until the device refuses one; the bytes that came free, and whether any are
    /// left.
    pub(super) fn retry_some_stuck(&self) -> (u64, bool) {
        let mut bytes = 0;
        for _ in 0..BATCH {
            let start = {
                let mut list = self.stuck.0.lock();
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
        let starts: Vec<u64> = self.stuck.0.lock().mappings.keys().copied().collect();
        // What stays was told when it was kept.
        starts.into_iter().for_each(|start| drop(self.retry_stuck(start)));
    }

    fn has_stuck(&self) -> bool {
        !self.stuck.0.lock().mappings.is_empty()
    }

    /// Tries one again; the bytes of the page that has no address by that.
    fn retry_stuck(&self, start: u64) -> Result<u64> {
        let Some(page) = self.stuck.0.lock().mappings.get(&start).cloned() else { return Ok(0) };
        let end = start + page.class().pages();
        self.physical.note_change();
        let unmapped = self.part(start, end).and_then(|part| self.physical.device().virtual_unmap(part));
        unmapped.map_err(|error| refusal(error, start, end))?;
        self.stuck.0.lock().mappings.remove(&start);
        // Other mappings of it may be left.
        Ok(if Arc::strong_count(&page) == 1 { (end - start) * self.page_bytes } else { 0 })
    }
}

fn refusal(error: Error, first: u64, end: u64) -> Error {
    error.context(&format!("pages {first} to {end} of a range still lead to memory that was given up"))
}
