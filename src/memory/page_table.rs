//! Which pages of a range of addresses have memory, whose it is, and what still waits.
//!
//! What it does: bookkeeping over numbers of pages. What it does not: call a device, or take a lock. A mapping is one
//! physical page of 1, 16 or 32 device pages, which a bit each says whether the range's user has them. Part of a
//! mapping cannot be unmapped, so one with some pages given up is *retained* for the rest; one with all given up is
//! *leaving* until the streams that may still use it are past. A leaving mapping is *stale* if its page has moved to
//! other addresses: it is never live again, only unmapped.
//!
//! Invariants, checked by [`PageTable::validate`]: mappings do not overlap; each begins at a multiple of its length;
//! a mapping is leaving if and only if it has no live page; a stale one is leaving and an alias; the counts are the
//! sums.

mod passing;

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::fence::Fence;
use super::physical::PhysicalPage;
use crate::error::{Error, Result, Status};

/// One physical page behind addresses.
struct Mapping {
    /// Shared by all mappings of it, of which there is one but after a mesh or where a part of it is lent.
    page: Arc<PhysicalPage>,
    /// Another mapping counts as the page's.
    is_alias: bool,
    /// The page is in use at other addresses, and here no more.
    is_stale: bool,
    /// A bit for each device page that the user has.
    live: u32,
    /// Pages that were given up, and the point after which nobody uses them.
    marks: Vec<(u32, Arc<Fence>)>,
}

/// Sums of a table for whoever looks without its lock, which is held across calls into the device.
#[derive(Default)]
pub(super) struct Told {
    /// `mapped_pages - alias_pages`.
    pub(super) backed_pages: AtomicU64,
    /// The user has them.
    pub(super) live_pages: AtomicU64,
}

/// The table of one range.
#[derive(Default)]
pub(super) struct PageTable {
    /// By number of the first page.
    mappings: BTreeMap<u64, Mapping>,
    leaving: BTreeSet<u64>,
    /// First page and end, with the number of pins.
    pins: BTreeMap<(u64, u64), u64>,
    live_pages: u64,
    mapped_pages: u64,
    alias_pages: u64,
    told: Arc<Told>,
    /// Stale mappings.
    stale: u64,
}

/// Sums of a table, in device pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct TableCounts {
    /// The user has them.
    pub(super) live_pages: u64,
    /// They have memory.
    pub(super) mapped_pages: u64,
    /// Of those, the memory is another mapping's.
    pub(super) alias_pages: u64,
    /// They wait for a stream, with memory of their own.
    pub(super) leaving_pages: u64,
    /// Mappings but stale ones.
    pub(super) mappings: u64,
}

/// The bits of a mapping from `start` on that lie in `[first, end)`.
fn bits(start: u64, pages: u64, first: u64, end: u64) -> u32 {
    let (low, high) = (first.max(start) - start, end.min(start + pages) - start);
    let below = |count: u64| u32::MAX.checked_shr(32 - count as u32).unwrap_or(0);
    below(high) & !below(low)
}

/// Says whether points are past. Many pages wait for one point, which is asked for once a pass. One that cannot be
/// asked for is not past: on a lost device nobody knows what still runs.
fn past() -> impl Fn(&Arc<Fence>) -> bool {
    let stuck = Cell::new(None);
    move |fence| {
        let is_past = stuck.get() != Some(Arc::as_ptr(fence)) && fence.is_reached().unwrap_or(false);
        if !is_past {
            stuck.set(Some(Arc::as_ptr(fence)));
        }
        is_past
    }
}

impl PageTable {
    /// Number of the first mapping that may reach into a range from `first` on.
    fn lead(&self, first: u64) -> u64 {
        let before = self.mappings.range(..=first).next_back();
        before
            .filter(|(start, found)| *start + found.page.class().pages() > first)
            .map_or(first, |(start, _)| *start)
    }

    fn within(&self, first: u64, end: u64) -> impl Iterator<Item = (u64, &Mapping)> {
        self.mappings.range(self.lead(first)..end).map(|(&start, mapping)| (start, mapping))
    }

    /// Parts of `[first, end)` without memory.
    pub(super) fn gaps(&self, first: u64, end: u64) -> Vec<(u64, u64)> {
        let (mut gaps, mut at) = (Vec::new(), first);
        for (start, mapping) in self.within(first, end) {
            if start > at {
                gaps.push((at, start));
            }
            at = start + mapping.page.class().pages();
        }
        if at < end {
            gaps.push((at, end));
        }
        gaps
    }

    /// Points that have to be reached before pages of `[first, end)` that were given up may be used again.
    pub(super) fn waits(&self, first: u64, end: u64) -> Vec<Arc<Fence>> {
        let mut found = Vec::new();
        for (start, mapping) in self.within(first, end) {
            let wanted = bits(start, mapping.page.class().pages(), first, end) & !mapping.live;
            let marks =
                mapping.marks.iter().filter(|(mask, fence)| mask & wanted != 0 && !fence.is_known_reached());
            found.extend(marks.map(|(_, fence)| Arc::clone(fence)));
        }
        found
    }

    /// Takes a new mapping in. Nobody has its pages yet.
    pub(super) fn add(&mut self, start: u64, page: Arc<PhysicalPage>) {
        self.mapped_pages += page.class().pages();
        self.mappings
            .insert(start, Mapping { page, is_alias: false, is_stale: false, live: 0, marks: Vec::new() });
        self.leaving.insert(start);
        self.tell();
    }

    /// Sums that follow every change of the table.
    pub(super) fn told(&self) -> Arc<Told> {
        Arc::clone(&self.told)
    }

    fn tell(&self) {
        self.told.backed_pages.store(self.mapped_pages - self.alias_pages, Ordering::Relaxed);
        self.told.live_pages.store(self.live_pages, Ordering::Relaxed);
    }

    /// Takes new mappings in and makes all of `[first, end)` live; returns how many pages were not.
    pub(super) fn publish(&mut self, made: Vec<(u64, PhysicalPage)>, first: u64, end: u64) -> u64 {
        for (start, mut page) in made {
            page.adopt();
            self.add(start, Arc::new(page));
        }
        let mut new_pages = 0;
        for (&start, mapping) in self.mappings.range_mut(self.lead(first)..end) {
            let wanted = bits(start, mapping.page.class().pages(), first, end) & !mapping.live;
            new_pages += u64::from(wanted.count_ones());
            mapping.live |= wanted;
            mapping.marks.retain(|(_, fence)| !fence.is_known_reached());
            self.leaving.remove(&start);
        }
        self.live_pages += new_pages;
        self.tell();
        new_pages
    }

    /// Makes no page of `[first, end)` live; returns how many were. Nothing is unmapped yet.
    pub(super) fn give_up(&mut self, first: u64, end: u64, fence: Option<&Arc<Fence>>) -> u64 {
        let mut given_pages = 0;
        for (&start, mapping) in self.mappings.range_mut(self.lead(first)..end) {
            let given = bits(start, mapping.page.class().pages(), first, end) & mapping.live;
            if given == 0 {
                continue;
            }
            given_pages += u64::from(given.count_ones());
            mapping.live &= !given;
            mapping.marks.extend(fence.map(|fence| (given, Arc::clone(fence))));
            if mapping.live == 0 {
                self.leaving.insert(start);
            }
        }
        self.live_pages -= given_pages;
        self.tell();
        given_pages
    }

    /// Takes out at most so many of the leaving mappings that meet `[first, end)` and whose streams are past, in order
    /// of address.
    pub(super) fn take_ripe(
        &mut self,
        first: u64,
        end: u64,
        count_max: usize,
    ) -> Vec<(u64, Arc<PhysicalPage>)> {
        if self.leaving.is_empty() {
            return Vec::new();
        }
        let mappings = &self.mappings;
        let is_past = past();
        let is_ripe = |start: &&u64| {
            mappings.get(start).is_none_or(|mapping| mapping.marks.iter().all(|(_, fence)| is_past(fence)))
        };
        let leaving = self.leaving.range(self.lead(first)..end);
        let ripe: Vec<u64> = leaving.filter(is_ripe).take(count_max).copied().collect();
        ripe.into_iter().filter_map(|start| self.remove(start)).collect()
    }

    fn remove(&mut self, start: u64) -> Option<(u64, Arc<PhysicalPage>)> {
        self.leaving.remove(&start);
        let mapping = self.mappings.remove(&start)?;
        self.mapped_pages -= mapping.page.class().pages();
        if mapping.is_alias {
            self.alias_pages -= mapping.page.class().pages();
        }
        self.stale -= u64::from(mapping.is_stale);
        self.live_pages -= u64::from(mapping.live.count_ones());
        self.tell();
        Some((start, mapping.page))
    }

    /// The physical page of a mapping that is `[first, end)`, all of it live and nothing of it pinned.
    pub(super) fn whole(&self, first: u64, end: u64) -> Option<&Arc<PhysicalPage>> {
        let mapping = self.mappings.get(&first)?;
        let is_whole = mapping.page.class().pages() == end - first
            && u64::from(mapping.live.count_ones()) == end - first;
        (is_whole && self.pin_in(first, end).is_none()).then_some(&mapping.page)
    }

    /// `[first, end)` without the mappings that reach beyond it and have something live there.
    pub(super) fn whole_within(&self, first: u64, end: u64) -> (u64, u64) {
        let at = |page: u64| self.within(page, page + 1).next();
        let places = |(start, mapping): (u64, &Mapping)| {
            let pages = mapping.page.class().pages();
            match mapping.live & !bits(start, pages, first, end) {
                0 => (first, end),
                _ => (start, start + pages),
            }
        };
        let low =
            at(first).map(places).map_or(first, |(start, stop)| if start < first { stop } else { first });
        let high = at(end - 1).map(places).map_or(end, |(start, stop)| if stop > end { start } else { end });
        let low = low.min(end);
        (low, high.max(low))
    }

    /// Mappings inside of `[first, end)` whose pages can move to other addresses: all of it live, nothing pinned or
    /// given up, and the page is nobody else's.
    pub(super) fn movable(&self, first: u64, end: u64) -> Vec<(u64, Arc<PhysicalPage>)> {
        let is_movable = |(start, mapping): &(u64, &Mapping)| {
            let stop = start + mapping.page.class().pages();
            let is_inside = first <= *start && stop <= end;
            let is_own = !mapping.is_alias && Arc::strong_count(&mapping.page) == 1;
            is_inside && is_own && mapping.marks.is_empty() && self.whole(*start, stop).is_some()
        };
        let found = self.within(first, end).filter(is_movable);
        found.map(|(start, mapping)| (start, Arc::clone(&mapping.page))).collect()
    }

    /// A whole mapping is stale from here on: its page is another mapping's.
    pub(super) fn leave_behind(&mut self, start: u64) {
        let Some(mapping) = self.mappings.get_mut(&start).filter(|mapping| !mapping.is_stale) else { return };
        self.live_pages -= u64::from(std::mem::take(&mut mapping.live).count_ones());
        if !std::mem::replace(&mut mapping.is_alias, true) {
            self.alias_pages += mapping.page.class().pages();
        }
        mapping.is_stale = true;
        self.stale += 1;
        self.leaving.insert(start);
        self.tell();
    }

    /// The page of a mapping counts as another mapping's from here on; its user keeps it.
    pub(super) fn count_elsewhere(&mut self, start: u64) {
        let Some(mapping) = self.mappings.get_mut(&start).filter(|mapping| !mapping.is_alias) else { return };
        mapping.is_alias = true;
        self.alias_pages += mapping.page.class().pages();
        self.tell();
    }

    /// The opposite of `count_elsewhere`.
    pub(super) fn count_here(&mut self, start: u64) {
        let Some(mapping) = self.mappings.get_mut(&start).filter(|mapping| mapping.is_alias) else { return };
        mapping.is_alias = false;
        self.alias_pages -= mapping.page.class().pages();
        self.tell();
    }

    /// Takes out the stale mappings that meet `[first, end)`, in order of address.
    pub(super) fn take_stale(&mut self, first: u64, end: u64) -> Vec<(u64, Arc<PhysicalPage>)> {
        if self.stale == 0 {
            return Vec::new();
        }
        let stale = self.within(first, end).filter(|(_, mapping)| mapping.is_stale);
        let starts: Vec<u64> = stale.map(|(start, _)| start).collect();
        starts.into_iter().filter_map(|start| self.remove(start)).collect()
    }

    /// Puts another page of the same size behind a whole mapping; the one before comes back.
    pub(super) fn exchange(&mut self, first: u64, page: Arc<PhysicalPage>) -> Option<Arc<PhysicalPage>> {
        let mapping = self.mappings.get_mut(&first)?;
        let pages = page.class().pages();
        let was_alias = std::mem::replace(&mut mapping.is_alias, true);
        let former = std::mem::replace(&mut mapping.page, page);
        if !was_alias {
            self.alias_pages += pages;
            self.tell();
        }
        Some(former)
    }

    /// Points to wait for before everything that was given up is past.
    pub(super) fn all_waits(&self) -> Vec<Arc<Fence>> {
        let marks = self.mappings.values().flat_map(|mapping| &mapping.marks);
        let undone = marks.filter(|(_, fence)| !fence.is_known_reached());
        undone.map(|(_, fence)| Arc::clone(fence)).collect()
    }

    /// Takes everything out.
    pub(super) fn take_all(&mut self) -> Vec<(u64, Arc<PhysicalPage>)> {
        self.pins.clear();
        let starts: Vec<u64> = self.mappings.keys().copied().collect();
        starts.into_iter().filter_map(|start| self.remove(start)).collect()
    }

    /// Whether deferred work is left.
    pub(super) fn is_waiting(&self) -> bool {
        !self.leaving.is_empty()
    }

    /// How many pages of `[first, end)` the user has.
    pub(super) fn live_in(&self, first: u64, end: u64) -> u64 {
        let live = |(start, mapping): (u64, &Mapping)| {
            let mask = bits(start, mapping.page.class().pages(), first, end);
            u64::from((mapping.live & mask).count_ones())
        };
        self.within(first, end).map(live).sum()
    }

    /// Keeps `[first, end)` as it is until it is unpinned as often.
    pub(super) fn pin(&mut self, first: u64, end: u64) -> Result<()> {
        let live = self.live_in(first, end);
        if live < end - first {
            return Err(Error::new(
                Status::WrongState,
                format!(
                    "{} of the {} pages to pin are not committed; commit them first",
                    end - first - live,
                    end - first
                ),
            ));
        }
        *self.pins.entry((first, end)).or_default() += 1;
        Ok(())
    }

    /// Undoes one pin of exactly this range.
    pub(super) fn unpin(&mut self, first: u64, end: u64) -> Result<()> {
        let Some(count) = self.pins.get_mut(&(first, end)) else {
            return Err(Error::new(
                Status::NotFound,
                format!("pages {first} to {end} are not pinned as one range; unpin what was pinned"),
            ));
        };
        *count -= 1;
        if *count == 0 {
            self.pins.remove(&(first, end));
        }
        Ok(())
    }

    /// A pinned range that shares a page with `[first, end)`.
    pub(super) fn pin_in(&self, first: u64, end: u64) -> Option<(u64, u64)> {
        self.pins.keys().find(|(start, stop)| *start < end && *stop > first).copied()
    }

    /// How many pins there are.
    pub(super) fn pins(&self) -> u64 {
        self.pins.values().sum()
    }

    /// The sums.
    pub(super) fn counts(&self) -> TableCounts {
        let leaving = self.leaving.iter().filter_map(|start| self.mappings.get(start));
        let leaving = leaving.filter(|mapping| !mapping.is_stale);
        TableCounts {
            live_pages: self.live_pages,
            mapped_pages: self.mapped_pages,
            alias_pages: self.alias_pages,
            leaving_pages: leaving.map(|mapping| mapping.page.class().pages()).sum(),
            mappings: self.mappings.len() as u64 - self.stale,
        }
    }

    /// Checks the invariants in the file head.
    pub(super) fn validate(&self) -> Result<()> {
        let (mut end, mut live, mut mapped, mut aliases, mut stale) = (0, 0, 0, 0, 0);
        for (&start, mapping) in &self.mappings {
            let pages = mapping.page.class().pages();
            let is_leaving = self.leaving.contains(&start);
            let is_wrongly_stale = mapping.is_stale && !(is_leaving && mapping.is_alias);
            if start < end
                || !start.is_multiple_of(pages)
                || is_leaving != (mapping.live == 0)
                || is_wrongly_stale
            {
                return Err(Error::internal(format!(
                    "page table: a mapping of {pages} pages at {start} after {end}, live {:#x}, leaving {is_leaving}",
                    mapping.live
                )));
            }
            end = start + pages;
            live += u64::from(mapping.live.count_ones());
            mapped += pages;
            aliases += if mapping.is_alias { pages } else { 0 };
            stale += u64::from(mapping.is_stale);
        }
        let sums = (self.live_pages, self.mapped_pages, self.alias_pages, self.stale);
        if (live, mapped, aliases, stale) != sums
            || self.told.backed_pages.load(Ordering::Relaxed) != mapped - aliases
            || self.told.live_pages.load(Ordering::Relaxed) != live
            || self.leaving.iter().any(|start| !self.mappings.contains_key(start))
            || self.pins.keys().any(|&(first, end)| self.live_in(first, end) != end - first)
        {
            let (said, held) = ((self.live_pages, self.mapped_pages), (live, mapped));
            return Err(Error::internal(format!(
                "page table: counts {said:?}, but {held:?}, or pins without pages"
            )));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::bits;

    #[test]
    fn bits_of_a_mapping_are_those_inside_the_range() {
        assert_eq!(bits(32, 32, 0, 100), u32::MAX);
        assert_eq!(bits(32, 32, 32, 33), 1);
        assert_eq!(bits(32, 32, 63, 64), 1 << 31);
        assert_eq!(bits(16, 16, 20, 30), 0x3ff0);
        assert_eq!(bits(5, 1, 0, 6), 1);
    }
}
