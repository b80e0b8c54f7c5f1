//! What could be allocated now: the answer to a program that asks, and the largest request that a refusal names.
//!
//! What it does: looks at what one more request would find: what the device and the limits leave, mappings of which all
//! is free, free slots, free runs with new pages beside them, what would be put together of the ends of pages, and the
//! longest rest of a large block that was cut. What it does not: count what would be lent, what others would give if
//! they were asked, or what comes back when work in flight is done; a request may be served by that on top.
//! Invariant: what is said to fit is given to the next request, if nobody takes anything meanwhile and the device keeps
//! its word. Lock order: `core` and those of ranges, one after the other.

use super::super::region::{LARGE_GRANULE_BYTES, MIDDLE_GRANULE_BYTES, Region, SLAB_PAGE_BYTES};
use super::super::size_class::{self, Class};
use super::compose::Parts;
use super::core::CLASS_ALIGNMENT;
use super::fitted::granules;
use super::takeover::{pages_of, units};
use super::{Heap, LARGE, MIDDLE, check_asked, checked_request};
use crate::error::Result;

/// Granules of a middle block in a page.
const EACH: u32 = (LARGE_GRANULE_BYTES / MIDDLE_GRANULE_BYTES) as u32;
/// How long work that was put behind an event just now is waited for: what an idle device needs, and many times less
/// than what hangs on the answer.
const MOMENT_NS: u64 = 200_000;

/// What one more request would find.
#[derive(Default)]
struct Possible {
    /// New memory, and the memory of mappings of which all is free.
    pages_bytes: u64,
    /// The longest free run of granules.
    run: u32,
    /// The longest part of free large blocks that stays where whole pages go.
    rest_bytes: u64,
    /// Small classes that have a free slot.
    has_slot: Vec<bool>,
    /// Whether blocks are cut to their exact lengths.
    is_short: bool,
    /// Free ends and beginnings of pages, where all that was freed and is past has come back: else that comes first,
    /// and the pages may be others then.
    parts: Option<Parts>,
}

impl Heap {
    /// Whether so many bytes and a margin could be had now. Where it takes what is freed and has not come back yet,
    /// that is taken back, the front caches included.
    pub fn can_allocate(&self, bytes: u64, margin_percent: u32) -> Result<bool> {
        check_asked(bytes)?;
        let wanted = u128::from(bytes) * (100 + u128::from(margin_percent)) / 100;
        let Ok(wanted) = u64::try_from(wanted) else { return Ok(false) };
        let fresh = Possible { pages_bytes: self.fresh_bytes()?, ..Possible::default() };
        if self.plain.is_some() {
            return Ok(wanted <= fresh.pages_bytes);
        }
        if self.holds(&fresh, wanted) || self.holds(&self.possible(false)?, wanted) {
            return Ok(true);
        }
        let statistics = self.statistics();
        let free = statistics.backed_bytes.saturating_sub(statistics.live_block_bytes);
        let hidden = statistics.front_cache_bytes + statistics.ordered_bytes;
        if free.saturating_add(fresh.pages_bytes) < wanted {
            return Ok(false);
        }
        if hidden > 0 {
            self.take_back(MOMENT_NS)?;
        }
        Ok(self.holds(&self.possible(true)?, wanted))
    }

    /// The largest request that would be served now, where all that was freed has come back.
    pub(super) fn largest_bytes(&self) -> Result<u64> {
        if self.plain.is_some() {
            return self.fresh_bytes();
        }
        let possible = self.possible(true)?;
        let pages = possible.pages_bytes - possible.pages_bytes % LARGE_GRANULE_BYTES;
        let run = u64::from(possible.run) * MIDDLE_GRANULE_BYTES;
        let classes = (0..size_class::CLASS_COUNT).filter_map(Class::at).map(size_class::bytes_of);
        let parts = possible.parts.as_ref().map_or(0, Parts::most);
        let composed = pages + u64::from(parts) * MIDDLE_GRANULE_BYTES;
        let all = classes
            .chain([pages, run, composed, possible.rest_bytes])
            .filter(|&bytes| bytes > 0 && self.holds(&possible, bytes));
        Ok(all.max().unwrap_or(0))
    }

    /// What the device still has and the limits leave, with the pages that wait for use.
    pub(super) fn fresh_bytes(&self) -> Result<u64> {
        let free = self.device.memory_info()?.free_bytes;
        let pooled = self.physical.usable_bytes();
        Ok(free.saturating_add(pooled).min(self.physical.certain_bytes()))
    }

    fn possible(&self, is_settled: bool) -> Result<Possible> {
        if is_settled {
            // A page that has moved is nobody else's only once its old addresses are left.
            self.physical.collect();
        }
        // As the request itself looks at it.
        let is_short = self.is_short() || self.weigh();
        let whole = self.whole_bytes();
        let rest_bytes = self.longest_rest_bytes();
        let fresh = self.fresh_bytes()?;
        let parts = self.regions.get(MIDDLE).filter(|_| is_settled).map(|region| self.parts(region));
        let core = self.core.lock();
        let has_slot = |at: usize| core.small[at].as_ref().is_some_and(|small| small.slab.free_slots() > 0);
        Ok(Possible {
            pages_bytes: fresh.saturating_add(whole),
            run: core.middle.largest_free(),
            rest_bytes,
            has_slot: (0..size_class::SMALL_CLASS_COUNT).map(has_slot).collect(),
            is_short,
            parts,
        })
    }

    fn holds(&self, possible: &Possible, bytes: u64) -> bool {
        let Ok((bytes, alignment)) = checked_request(bytes, 0) else { return false };
        let Some(class) = size_class::class_of(bytes, alignment) else {
            return bytes.next_multiple_of(LARGE_GRANULE_BYTES)
                <= possible.pages_bytes.max(possible.rest_bytes)
                || self.has_room(possible, granules(bytes));
        };
        if class.is_small() {
            let has_slot = possible.has_slot.get(class.index()).is_some_and(|has_slot| *has_slot);
            let is_fitted = || possible.is_short && self.core.lock().is_fitted(class, bytes);
            return has_slot
                || possible.pages_bytes >= SLAB_PAGE_BYTES
                || (is_fitted() && self.has_run(possible, granules(bytes), true));
        }
        let count = (size_class::bytes_of(class) / MIDDLE_GRANULE_BYTES) as u32;
        let new_bytes = (u64::from(count) * MIDDLE_GRANULE_BYTES).next_multiple_of(LARGE_GRANULE_BYTES);
        // A run of a class begins at a multiple of its step.
        let is_cut = possible.is_short || self.is_exact(class);
        let run = if is_cut { granules(bytes) } else { count + CLASS_ALIGNMENT - 1 };
        new_bytes <= possible.pages_bytes
            || bytes <= possible.rest_bytes
            || self.has_run(possible, run, is_cut)
    }

    /// Whether a run of so many granules would be found; `is_cut`: of one that is as long as it was asked for.
    fn has_run(&self, possible: &Possible, count: u32, is_cut: bool) -> bool {
        let may_have_first = || match is_cut && count >= EACH {
            // It goes where it begins few pages, which need not be in the longest run.
            true => possible.parts.is_some() && !self.core.lock().is_walked(),
            false => true,
        };
        (possible.run >= count && may_have_first()) || (is_cut && self.has_room(possible, count))
    }

    /// Whether a run that is cut to its length would be had after a trim, which takes the pages in the middle of free
    /// runs away: where some are put beside what is left, or of that alone.
    fn has_room(&self, possible: &Possible, count: u32) -> bool {
        let Some(parts) = &possible.parts else { return false };
        let begun_pages = self.core.lock().begun_pages(count);
        begun_pages.is_some_and(|pages| u64::from(pages) * LARGE_GRANULE_BYTES <= possible.pages_bytes)
            || parts.of_block(count, possible.pages_bytes).is_some()
    }

    /// Memory of mappings of which all is free for everybody: a trim makes new pages of it, but where the device keeps
    /// what it was asked for last.
    fn whole_bytes(&self) -> u64 {
        if self.physical.is_refused() {
            return 0;
        }
        let page_bytes = self.physical.page_bytes();
        let granule = (LARGE_GRANULE_BYTES / page_bytes).max(1);
        let whole = |region: &Region, offset: u64, bytes: u64| -> u64 {
            let (first, end) = region.pages(offset, bytes);
            let pages = units(region.range.movable(first, end), granule);
            pages.iter().map(|unit| pages_of(unit)).sum::<u64>() * page_bytes
        };
        let mut sum = 0;
        for (number, region) in self.regions.iter() {
            for (offset, bytes) in self.empty_parts(number) {
                sum += whole(region, offset, bytes);
            }
        }
        sum
    }

    /// Offsets and lengths of the whole pages of a region that are free for all.
    fn empty_parts(&self, number: usize) -> Vec<(u64, u64)> {
        let core = self.core.lock();
        match number {
            LARGE => {
                let blocks = core.idle_large.blocks();
                let mut idle: Vec<(u64, u64)> =
                    blocks.map(|block| (block.id * LARGE_GRANULE_BYTES, block.bytes)).collect();
                idle.sort_unstable();
                // A page of the device may have parts of several.
                idle.dedup_by(|next, last| {
                    let is_joined = last.0 + last.1 == next.0;
                    last.1 += if is_joined { next.1 } else { 0 };
                    is_joined
                });
                idle
            }
            MIDDLE => {
                let whole = |(start, count): (u32, u32)| {
                    let (low, high) = (start.div_ceil(EACH), (start + count) / EACH);
                    let bytes = u64::from(high.saturating_sub(low)) * LARGE_GRANULE_BYTES;
                    (u64::from(low) * LARGE_GRANULE_BYTES, bytes)
                };
                core.middle.free_ranges().map(whole).filter(|part| part.1 > 0).collect()
            }
            _ => {
                let Some(small) = core.small.get(number).and_then(Option::as_ref) else { return Vec::new() };
                let empty = small.slab.open_pages().filter(|&(_, live)| live == 0);
                empty.map(|(page, _)| (u64::from(page) * SLAB_PAGE_BYTES, SLAB_PAGE_BYTES)).collect()
            }
        }
    }
}
