//! Blocks put together from the free ends of pages, when nothing else is left.
//!
//! Behind addresses of its own a block may lie on any pages, but where memory is short the last whole page is gone
//! while many are free in part. The free end of one page, whole pages, and the free beginning of another one make a
//! block: the first and the last are mapped a second time, side by side with the whole ones. It needs up to two whole
//! pages less than any other block of its length.
//! What it does not: anything before a request would be refused; touch pages of more than 2 MiB or what is pinned;
//! serve a graph, or requests of which many would lie in one page.
//! Such a block is nobody's before it is everybody's: until all work on it is past. Then its parts are free where they
//! came from, and its first and last page, of which the memory is others', lose their addresses with the next trim.
//! Invariants, checked by `validate()`: the block, what it has of others' pages, and what is left of its own first and
//! last pages are used in `middle`, each by itself; so is a page that was left.
//! Lock order: `growing`, then `core`, then a page table's.

use super::super::free_list::State;
use super::super::order::Freed;
use super::super::region::{LARGE_GRANULE_BYTES, MIDDLE_GRANULE_BYTES, Region};
use super::core::Core;
use super::fitted::is_refused;
use super::{Heap, MIDDLE};
use crate::error::{Error, Result};

/// Granules of a page.
const EACH: u32 = (LARGE_GRANULE_BYTES / MIDDLE_GRANULE_BYTES) as u32;

/// A free part of a page, at its end or at its beginning: first granule and count.
type Part = (u32, u32);

/// What a block has of others' pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Composed {
    /// The end of a page, in which the block begins.
    low: Option<Part>,
    /// The beginning of a page, in which it ends.
    high: Option<Part>,
}

/// Free ends and free beginnings of pages, shortest first.
#[derive(Default)]
pub(super) struct Parts {
    ends: Vec<Part>,
    beginnings: Vec<Part>,
}

impl Parts {
    fn of(ranges: impl Iterator<Item = (u32, u32)>) -> Self {
        let mut parts = Self::default();
        for (start, count) in ranges {
            let end = start + count;
            let (above, below) = (start.next_multiple_of(EACH), end / EACH * EACH);
            if above > start && above <= end {
                parts.ends.push((start, above - start));
            }
            if below < end && below >= start {
                parts.beginnings.push((below, end - below));
            }
        }
        parts.ends.sort_by_key(|part| part.1);
        parts.beginnings.sort_by_key(|part| part.1);
        parts
    }

    /// How a block of so many granules is put together, where there are so many bytes for whole pages: how many of
    /// those, and the parts.
    pub(super) fn of_block(&self, count: u32, left_bytes: u64) -> Option<(u32, Composed)> {
        let whole = u64::from(count / EACH).min(left_bytes / LARGE_GRANULE_BYTES) as u32;
        let missing = count - whole * EACH;
        if missing == 0 || missing > 2 * EACH {
            return None;
        }
        self.best(missing).map(|composed| (whole, composed))
    }

    /// The most granules that an end and a beginning of two pages have together.
    pub(super) fn most(&self) -> u32 {
        let longest = |parts: &[Part]| parts.iter().rev().take(2).copied().map(Some).collect::<Vec<_>>();
        let (ends, beginnings) = (longest(&self.ends), longest(&self.beginnings));
        let pairs = ends.iter().chain([&None]).flat_map(|low| {
            beginnings.iter().chain([&None]).map(move |high| Composed { low: *low, high: *high })
        });
        let pairs = pairs.filter(|pair| !pair.is_of_one_page());
        pairs.map(|pair| pair.parts().map(|part| part.1).sum()).max().unwrap_or(0)
    }

    /// The parts that have so many granules with the least that is left over, cut to them.
    fn best(&self, count: u32) -> Option<Composed> {
        let mut best: Option<(u32, Composed)> = None;
        let mut offer = |granules: u32, low: Option<Part>, high: Option<Part>| {
            if best.is_none_or(|(least, _)| granules < least) {
                best = Some((granules, Composed { low, high }));
            }
        };
        if let Some(&(start, long)) = self.ends.iter().find(|part| part.1 >= count) {
            offer(long, Some((start + long - count, count)), None);
        }
        if let Some(&(start, long)) = self.beginnings.iter().find(|part| part.1 >= count) {
            offer(long, None, Some((start, count)));
        }
        for &(low, granules) in self.ends.iter().filter(|part| part.1 < count) {
            let missing = count - granules;
            let at = self.beginnings.partition_point(|part| part.1 < missing);
            let others = self.beginnings[at..].iter();
            if let Some(&(high, long)) = others.take(2).find(|part| part.0 / EACH != low / EACH) {
                offer(granules + long, Some((low, granules)), Some((high, missing)));
            }
        }
        best.map(|(_, composed)| composed)
    }

    /// Only those on pages that can be mapped a second time, each by itself.
    fn keep_mappable(&mut self, region: &Region) {
        for parts in [&mut self.ends, &mut self.beginnings] {
            let pages = parts.iter().map(|part| page_at(region, part.0 / EACH).0);
            let mut is_whole =
                region.range.whole_pages(pages, LARGE_GRANULE_BYTES / region.page_bytes).into_iter();
            parts.retain(|_| is_whole.next().unwrap_or(false));
        }
    }
}

/// Pages of the device behind one page of the middle region.
fn page_at(region: &Region, page: u32) -> (u64, u64) {
    region.pages(u64::from(page) * LARGE_GRANULE_BYTES, LARGE_GRANULE_BYTES)
}

impl Composed {
    fn is_of_one_page(&self) -> bool {
        matches!((self.low, self.high), (Some(low), Some(high)) if low.0 / EACH == high.0 / EACH)
    }

    fn parts(&self) -> impl Iterator<Item = Part> {
        [self.low, self.high].into_iter().flatten()
    }
}

impl Heap {
    /// A block of so many granules out of the ends of pages and as many whole pages as there are.
    pub(super) fn compose(&self, count: u32) -> Result<Option<u32>> {
        let _growing = self.growing.lock();
        let Some(region) = self.regions.get(MIDDLE) else { return Ok(None) };
        // Whole pages that are free are no parts.
        self.trim_middle(region)?;
        let left_bytes = self.fresh_bytes()?;
        let Some((whole, composed)) = self.claim_parts(region, count, left_bytes)? else { return Ok(None) };
        let pages = whole + composed.parts().count() as u32;
        let composed_at = self.pass_over(MIDDLE, || {
            let place = self.core.lock().take_room(pages, true)?;
            let Some(place) = place else { return Ok(None) };
            let made = self.put_together(region, place, whole, &composed);
            let made = made.and_then(|()| self.core.lock().begin_composed(place, pages, count, composed));
            if made.is_err() {
                // Not all of it has memory.
                let bytes = u64::from(pages) * LARGE_GRANULE_BYTES;
                region.unback(u64::from(place) * LARGE_GRANULE_BYTES, bytes)?;
                self.core.lock().middle_bare.insert(place, pages)?;
            }
            made.map(Some)
        });
        if !matches!(composed_at, Ok(Some(_))) {
            let mut core = self.core.lock();
            composed.parts().try_for_each(|(start, _)| core.middle.free(start).map(drop))?;
        }
        // There may be other ways.
        if is_refused(&composed_at) { Ok(None) } else { composed_at }
    }

    /// Free parts of pages out of which blocks are put together.
    pub(super) fn parts(&self, region: &Region) -> Parts {
        let mut parts = Parts::of(self.core.lock().middle.free_ranges());
        parts.keep_mappable(region);
        parts
    }

    /// Takes parts of pages for a block of so many granules out of circulation; how many whole pages it has beside.
    fn claim_parts(&self, region: &Region, count: u32, left_bytes: u64) -> Result<Option<(u32, Composed)>> {
        // Pages cannot change before the growth is others' again, but for pins, which hold them as they are.
        let Some((whole, composed)) = self.parts(region).of_block(count, left_bytes) else { return Ok(None) };
        let mut core = self.core.lock();
        core.middle.reserve_nodes(4)?;
        let mut claimed = Vec::with_capacity(2);
        for (start, count) in composed.parts() {
            if core.middle.carve(start, count).is_err() {
                // Somebody was faster.
                claimed.into_iter().try_for_each(|start| core.middle.free(start).map(drop))?;
                return Ok(None);
            }
            claimed.push(start);
        }
        Ok(Some((whole, composed)))
    }

    /// Memory behind the addresses of such a block, all or some of it.
    fn put_together(&self, region: &Region, place: u32, whole: u32, composed: &Composed) -> Result<()> {
        let low = u32::from(composed.low.is_some());
        let pages = whole + composed.parts().count() as u32;
        region.records.grow((place + pages) * EACH - 1)?;
        if whole > 0 {
            let bytes = u64::from(whole) * LARGE_GRANULE_BYTES;
            region.back(u64::from(place + low) * LARGE_GRANULE_BYTES, bytes)?;
        }
        for (part, at) in [(composed.low, place), (composed.high, place + pages - 1)] {
            let Some((start, _)) = part else { continue };
            let ((from, from_end), (to, to_end)) = (page_at(region, start / EACH), page_at(region, at));
            let page = region.range.shared_page(from, from_end);
            let page = page.ok_or_else(|| Error::internal("a page in use that has moved"))?;
            if !region.range.back_with(to, to_end, &[page])? {
                return Err(Error::internal("addresses without memory that have some"));
            }
            region.range.count_elsewhere(to);
        }
        Ok(())
    }

    /// Takes the addresses from the pages that were the first and last of composed blocks.
    pub(super) fn leave_pages(&self, region: &Region) -> Result<()> {
        loop {
            let Some(page) = self.core.lock().left_pages.pop() else { return Ok(()) };
            let gone = region.unback(u64::from(page) * LARGE_GRANULE_BYTES, LARGE_GRANULE_BYTES);
            let mut core = self.core.lock();
            core.middle.withdraw(page * EACH)?;
            core.middle_bare.insert(page, 1)?;
            gone?;
        }
    }
}

impl Core {
    /// Puts a block that has its memory into the lists; its first granule.
    fn begin_composed(&mut self, place: u32, pages: u32, count: u32, composed: Composed) -> Result<u32> {
        self.middle.reserve_nodes(8)?;
        let start = composed.low.map_or(place * EACH, |(_, granules)| (place + 1) * EACH - granules);
        let end = (place + pages) * EACH;
        self.middle.insert(place * EACH, pages * EACH)?;
        let around = [(place * EACH, start), (start, start + count), (start + count, end)];
        let around = around.into_iter().filter(|(first, end)| first < end);
        for (first, end) in around {
            self.middle.carve(first, end - first)?;
        }
        self.composed.insert(start, composed);
        Ok(start)
    }

    /// A composed block is past: what it has of others' pages is free there.
    pub(super) fn take_apart(&mut self, block: Freed) -> Result<()> {
        let start = block.id as u32;
        let (Some(&composed), Some(count)) = (self.composed.get(&start), self.middle.size_of(start)) else {
            return Err(Error::internal("a composed block that is not known"));
        };
        self.middle.reserve_nodes(12)?;
        self.composed.remove(&start);
        self.middle.free(start)?;
        composed.parts().try_for_each(|(part, _)| self.middle.free(part).map(drop))?;
        let (first, last) = (start / EACH, (start + count - 1) / EACH);
        let ends =
            [composed.low.map(|_| (first, first * EACH)), composed.high.map(|_| (last, start + count))];
        for (page, rest) in ends.into_iter().flatten() {
            self.middle.free(rest)?;
            self.middle.carve(page * EACH, EACH)?;
            self.left_pages.push(page);
        }
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn is_kept_for_composed(&self, start: u32) -> bool {
        let is_beside = |(&first, composed): (&u32, &Composed)| {
            let end = self.middle.size_of(first).map(|count| first + count);
            composed.parts().any(|part| part.0 == start) || first / EACH * EACH == start || end == Some(start)
        };
        self.composed.iter().any(is_beside) || self.left_pages.iter().any(|&page| page * EACH == start)
    }

    /// Composed blocks, what they have of others, and pages that were left are in use.
    pub(super) fn prove_composed(&self) -> Result<()> {
        let is_used = |&(start, count): &Part| self.middle.size_of(start) == Some(count);
        let parts = self.composed.values().flat_map(Composed::parts);
        let left = self.left_pages.iter().map(|&page| (page * EACH, EACH));
        if let Some(part) = parts.chain(left).find(|part| !is_used(part)) {
            return Err(Error::internal(format!(
                "heap: {part:?} is not in use as a part of a composed block"
            )));
        }
        let is_there = |start: u32| {
            self.middle
                .range_at(start)
                .is_some_and(|range| range.state == State::Used && range.start == start)
        };
        match self.composed.keys().find(|&&start| !is_there(start)) {
            Some(start) => Err(Error::internal(format!("heap: no composed block begins at {start}"))),
            None => Ok(()),
        }
    }
}
