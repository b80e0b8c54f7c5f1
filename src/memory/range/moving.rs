//! Physical pages that go from one range to another without a moment in which they have no address.
//!
//! What it does: names pages that can go, maps them behind new addresses while the old ones still lead to them, and
//! lets go of the old ones: at once where nobody does the upkeep, else off the caller's path. Mapping first makes a
//! failure harmless, and the unmapping is not waited for. What it does not: ask whether anybody uses the old addresses;
//! the heap asks for pages of free blocks only, whose streams are past.
//! Invariants: a page is charged once, to its one owner; between the two ranges no lock is held.

use std::sync::Arc;

use super::super::physical::PhysicalPage;
use super::{Plan, Range, room_for_one};
use crate::error::Result;

/// One mapping of a range: its first page, and what is behind it.
pub(in crate::memory) type Movable = (u64, Arc<PhysicalPage>);

impl Range {
    /// Mappings inside of `[first, end)` whose pages can move; none where pages have to be told apart by who had them,
    /// or are charged to somebody of their own.
    pub(in crate::memory) fn movable(&self, first: u64, end: u64) -> Vec<Movable> {
        if self.holder.tenant != 0 || self.holder.payer.is_some() {
            return Vec::new();
        }
        self.table.lock().movable(first, end)
    }

    /// The one page behind `[first, end)`, if it is nobody else's, and nothing of it is pinned or given up.
    pub(in crate::memory) fn own_page(&self, first: u64, end: u64) -> Option<Arc<PhysicalPage>> {
        let mut found = self.movable(first, end);
        let (_, page) = found.pop()?;
        (page.class().pages() == end - first).then_some(page)
    }

    /// The one page behind `[first, end)`, whoever else has it, if nothing of it is pinned or given up.
    pub(in crate::memory) fn shared_page(&self, first: u64, end: u64) -> Option<Arc<PhysicalPage>> {
        self.table.lock().whole(first, end).cloned()
    }

    /// For each of these, whether one page that nothing of is pinned or given up is so long and begins there.
    pub(in crate::memory) fn whole_pages(&self, starts: impl Iterator<Item = u64>, pages: u64) -> Vec<bool> {
        let table = self.table.lock();
        starts.map(|first| table.whole(first, first + pages).is_some()).collect()
    }

    /// The page that begins at `first` counts as that of the range it was put behind by [`Range::back_with`]; it stays
    /// in use here.
    pub(in crate::memory) fn count_elsewhere(&self, first: u64) {
        self.table.lock().count_elsewhere(first);
    }

    /// The opposite of [`Range::count_elsewhere`].
    pub(in crate::memory) fn count_here(&self, first: u64) {
        self.table.lock().count_here(first);
    }

    /// Puts these pages, larger ones first, behind `[first, end)` from its beginning, and others behind the rest. The
    /// caller keeps them from being used at their old places, and calls [`Range::leave_behind`] there. Nothing was
    /// done if some of it has memory already.
    pub(in crate::memory) fn back_with(
        &self,
        first: u64,
        end: u64,
        pages: &[Arc<PhysicalPage>],
    ) -> Result<bool> {
        let mut table = self.lock_settled(first, end)?;
        self.unmap(table.take_stale(first, end));
        // What else is on its way from here is past its streams by now.
        self.unmap(table.take_ripe(first, end, usize::MAX));
        self.free_stuck(first, end)?;
        let moved: u64 = pages.iter().map(|page| page.class().pages()).sum();
        if table.gaps(first, end) != [(first, end)] || moved > end - first {
            return Ok(false);
        }
        self.check_left((end - first - moved) * self.page_bytes)?;
        let mut plan = Plan::new(self);
        // What may be refused comes before what costs the most.
        self.fill(&mut plan, first + moved, end)?;
        let mut at = first;
        for page in pages {
            room_for_one(&mut plan.moved)?;
            self.map(at, page)?;
            plan.moved.push((at, Arc::clone(page)));
            at += page.class().pages();
        }
        plan.open()?;
        std::mem::take(&mut plan.moved).into_iter().for_each(|(start, page)| table.add(start, page));
        table.publish(std::mem::take(&mut plan.made), first, end);
        Ok(true)
    }

    /// The mappings that begin at `moved` have given their pages away; all else of the parts is given up.
    pub(in crate::memory) fn leave_behind(&self, parts: &[(u64, u64)], moved: &[u64]) {
        let mut table = self.table.lock();
        moved.iter().for_each(|&start| table.leave_behind(start));
        for &(first, end) in parts {
            table.give_up(first, end, None);
        }
        if !self.physical.has_thread() {
            let ripe = table.take_ripe(0, u64::MAX, usize::MAX);
            self.unmap(ripe);
            return;
        }
        drop(table);
        self.physical.stir();
    }
}
