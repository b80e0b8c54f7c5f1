//! Runs of granules that are as long as they were asked for: what memory is given out as where it is short.
//!
//! A block of a class is found again fast, but each class keeps pages of its own and rounds up. So once the heap holds
//! more than it can still get, what no free block of its class serves is cut from the pages of middle sizes to its own
//! length, small blocks too; a page of slots is only begun for a small class of which there are many. New pages are put
//! where they lengthen a run that is free already.
//! What it does not: serve what the front caches or the free blocks of a class do. Such a block passes through no
//! front cache: its length is in no class. Invariant: the run of a live block of [`FITTED`] is used in `middle`, with
//! exactly its granules.

use std::sync::atomic::Ordering;

use super::super::free_list::{FreeList, State};
use super::super::order::Freed;
use super::super::region::{LARGE_GRANULE_BYTES, MIDDLE_GRANULE_BYTES};
use super::super::size_class::{self, Class};
use super::core::{CLASS_ALIGNMENT, Core, FITTED, LARGE, addresses_used_up};
use super::{Heap, MIDDLE};
use crate::device::Stream;
use crate::error::{Error, Result};

/// Granules of a page.
const EACH: u32 = (LARGE_GRANULE_BYTES / MIDDLE_GRANULE_BYTES) as u32;

/// Small requests of so many granules and more do not wait for a page of their class.
const WORTH_A_RUN: u64 = 4;
/// A class gets a page of slots once so many bytes lie in runs of its own.
const WORTH_A_PAGE_BYTES: u64 = 512 << 10;
/// Above it a request has addresses of its own where memory is short: what it leaves of its last page is little, and
/// it breaks no run.
const OWN_PAGES_BYTES: u64 = 16 << 20;

/// From here on a request that a class would hold may get a part of a large block that is free.
const LARGE_PART_BYTES: u64 = 8 << 20;

/// What a stream frees is given back once it is one part in so many of what is held.
const REUNITED_SHARE: u64 = 128;

/// Used runs up to which a place is looked for from the lowest on; a walk over as many takes a few microseconds. With
/// more of them the run comes from the lists by size, and new pages from where there are some, at a cost that does not
/// grow.
const WALK_MOST: u32 = 2048;

pub(super) fn granules(bytes: u64) -> u32 {
    bytes.div_ceil(MIDDLE_GRANULE_BYTES) as u32
}

/// Where new pages go for a run: what of the gap gets memory, and where the run begins.
struct Site {
    first: u32,
    pages: u32,
    start: u32,
}

impl Heap {
    /// Whether what is held was more than what could still be had when that was weighed last.
    pub(super) fn is_short(&self) -> bool {
        self.is_short.load(Ordering::Relaxed)
    }

    /// Compares what is held with what can still be had; whether memory is short. Costs a look at each region.
    pub(super) fn weigh(&self) -> bool {
        let held = self.physical.statistics().held_bytes;
        let left = self.physical.left_bytes().min(self.total_bytes.saturating_sub(held));
        let is_short = self.backed_bytes() >= left;
        self.is_short.store(is_short, Ordering::Relaxed);
        if !is_short {
            self.is_squeezed.store(false, Ordering::Relaxed);
        }
        is_short
    }

    /// Whether less can be had than the device has. Until such memory is short, blocks stay as they are: what is joined
    /// and cut before leaves more holes among exact lengths.
    pub(super) fn is_limited(&self) -> bool {
        let held = self.physical.statistics().held_bytes;
        self.physical.left_bytes().saturating_add(held) < self.total_bytes
    }

    /// Whether a request that a class would hold has addresses of its own.
    pub(super) fn has_own_pages(&self, bytes: u64) -> bool {
        bytes > OWN_PAGES_BYTES && self.is_short()
    }

    /// A block for the stream: freed on it, free for all, on new pages, or from another stream behind a wait. Its class
    /// and index.
    pub(super) fn take_block(
        &self,
        stream: Stream,
        (bytes, class): (u64, Class),
        alignment: u64,
        is_captured: bool,
        may_wait: bool,
    ) -> Result<Option<(u32, u32)>> {
        let wanted = class.index() as u32;
        if let Some(index) = self.take_of_class(stream, class, alignment, is_captured, may_wait)? {
            return Ok(Some((wanted, index)));
        }
        let is_short = self.is_short() || self.weigh();
        if is_short && !self.is_squeezed.swap(true, Ordering::Relaxed) {
            self.squeeze()?;
        }
        if is_short && self.core.lock().is_fitted(class, bytes) {
            let run = self.take_fitted(stream, bytes, alignment, is_captured, may_wait)?;
            if run.is_some() {
                self.core.lock().count_rare(bytes, true);
            }
            return Ok(run.map(|start| (FITTED, start)));
        }
        let granules = ((alignment / MIDDLE_GRANULE_BYTES) as u32).max(CLASS_ALIGNMENT);
        let count = (size_class::bytes_of(class) / MIDDLE_GRANULE_BYTES) as u32;
        if !is_captured && !is_short && !self.is_limited() {
            if class.is_small() {
                self.reuse_pages()?;
            } else if bytes >= LARGE_PART_BYTES
                && let Some(index) = self.reuse_part(stream, bytes)?
            {
                return Ok(Some((LARGE, index)));
            } else if let Some(start) = self.reuse_run(stream, count, granules)? {
                return Ok(Some((wanted, start)));
            }
        }
        let grown = match class.is_small() {
            true => self.grow(stream, class)?,
            false => self.grow_middle(count, granules)?,
        };
        Ok(grown.map(|index| (wanted, index)))
    }

    /// Size of the run of a fitted block.
    pub(super) fn run_bytes(&self, start: u32) -> Result<u64> {
        let count = self.core.lock().middle.size_of(start);
        let count = count.ok_or_else(|| Error::internal("a run of no length"))?;
        Ok(u64::from(count) * MIDDLE_GRANULE_BYTES)
    }

    /// A run of as many granules as the request needs.
    pub(super) fn take_fitted(
        &self,
        stream: Stream,
        bytes: u64,
        alignment: u64,
        is_captured: bool,
        may_wait: bool,
    ) -> Result<Option<u32>> {
        let count = granules(bytes);
        let run_bytes = u64::from(count) * MIDDLE_GRANULE_BYTES;
        let alignment = (alignment / MIDDLE_GRANULE_BYTES).max(1) as u32;
        if is_captured && let Some(block) = self.take_captured(stream, FITTED, run_bytes) {
            return Ok(Some(block.id as u32));
        }
        // What was freed on a stream begins at any granule.
        let may_reuse = !is_captured && alignment == 1;
        if !is_captured {
            self.reunite()?;
        }
        let ordered_bytes = {
            let mut core = self.core.lock();
            // Of the same length only: what is cut is long in coming together again.
            if may_reuse && let Some(block) = core.order.take_same_sized(stream, FITTED, run_bytes) {
                return Ok(Some(block.id as u32));
            }
            if let Some(start) = core.take_run(count, alignment)? {
                return Ok(Some(start));
            }
            core.order.bytes()
        };
        if may_reuse && may_wait {
            let mut own = self.core.lock().order.take_same_run(stream, MIDDLE as u32, run_bytes);
            if own.is_none() {
                own = self.take_run_behind_wait(stream, run_bytes)?;
            }
            if let Some(block) = own {
                return self.core.lock().cut(stream, block, count).map(Some);
            }
        }
        if !is_captured && ordered_bytes >= run_bytes {
            self.flush(None);
            self.close_lanes()?;
            self.collect()?;
            if let Some(start) = self.core.lock().take_run(count, alignment)? {
                return Ok(Some(start));
            }
        }
        self.grow_fitted(count, alignment)
    }

    /// Gives back what was freed and is past, once a stream has freed so much that the holes it leaves matter.
    ///
    /// A run that stands in the order of a stream joins nothing beside it, and the next run is put elsewhere. Left to
    /// when nothing fits, that spreads what lives long over all that is held.
    fn reunite(&self) -> Result<()> {
        let bytes = (self.physical.statistics().held_bytes / REUNITED_SHARE).max(1);
        if self.core.lock().order.bytes() < bytes {
            return Ok(());
        }
        self.close_lanes_from(bytes)?;
        while self.collect()? {}
        Ok(())
    }

    /// A run of exactly so many granules, with as few new pages as possible.
    fn grow_fitted(&self, count: u32, alignment: u32) -> Result<Option<u32>> {
        if alignment > 1 || self.core.lock().middle.used_ranges() > WALK_MOST {
            return self.grow_middle(count, alignment);
        }
        let _growing = self.growing.lock();
        self.weigh();
        let region = self.region(MIDDLE)?;
        let mut core = self.core.lock();
        if let Some(start) = core.take_run(count, 1)? {
            return Ok(Some(start));
        }
        // Nothing that others do makes more of them.
        let Some(site) = best_site(&core.middle, count) else { return Err(addresses_used_up()) };
        core.middle_bare.carve(site.first / EACH, site.pages)?;
        core.middle_bare.withdraw(site.first / EACH)?;
        drop(core);
        let offset = u64::from(site.first) * MIDDLE_GRANULE_BYTES;
        let bytes = u64::from(site.pages) * LARGE_GRANULE_BYTES;
        let last = site.first + site.pages * EACH - 1;
        let backed = region.records.grow(last).and_then(|()| region.back(offset, bytes));
        let mut core = self.core.lock();
        match backed.and_then(|()| core.middle.insert(site.first, site.pages * EACH)) {
            // Somebody may have taken the free run beside the new pages meanwhile.
            Ok(()) => match core.middle.carve(site.start, count) {
                Ok(()) => Ok(Some(site.start)),
                Err(_) => core.middle.allocate(count, 1),
            },
            Err(error) => {
                core.middle_bare.insert(site.first / EACH, site.pages)?;
                Err(error)
            }
        }
    }
}

/// The place where the fewest new pages make a run of that length; of equals the lowest.
fn best_site(middle: &FreeList, count: u32) -> Option<Site> {
    let mut best: Option<Site> = None;
    let mut below = 0;
    let mut ranges = middle.ranges().peekable();
    while let Some(range) = ranges.next() {
        match range.state {
            State::Free => below = range.count,
            State::Used => below = 0,
            State::Gap => {
                let above =
                    ranges.peek().filter(|next| next.state == State::Free).map_or(0, |next| next.count);
                let mut propose = |site: Site| {
                    if best.as_ref().is_none_or(|best| site.pages < best.pages) {
                        best = Some(site);
                    }
                };
                let end = range.start + range.count;
                let upward = (count - below.min(count)).div_ceil(EACH);
                let downward = (count - above.min(count)).div_ceil(EACH);
                if upward * EACH <= range.count {
                    propose(Site { first: range.start, pages: upward, start: range.start - below });
                }
                if downward * EACH <= range.count {
                    let first = end - downward * EACH;
                    propose(Site { first, pages: downward, start: end + above - count });
                }
                if below + range.count + above >= count {
                    let pages = range.count / EACH;
                    propose(Site { first: range.start, pages, start: range.start - below });
                }
                below = 0;
            }
        }
    }
    best
}

/// Where fitted blocks of small requests are counted: by their bytes alone, which is all that their records say.
pub(super) fn rare_class(bytes: u64) -> Option<usize> {
    size_class::class_of(bytes, 1).filter(|class| class.is_small()).map(Class::index)
}

impl Core {
    /// A free run: the lowest that fits while there are few, so that the memory above it empties.
    fn take_run(&mut self, count: u32, alignment: u32) -> Result<Option<u32>> {
        match self.middle.used_ranges() > WALK_MOST {
            true => self.middle.allocate(count, alignment),
            false => self.middle.take_lowest(count, alignment),
        }
    }

    /// Makes a run that the stream may have as long as it is wanted; what is behind it stays freed on the stream.
    pub(super) fn cut(&mut self, stream: Stream, block: Freed, count: u32) -> Result<u32> {
        let start = block.id as u32;
        let whole = granules(block.bytes);
        if whole > count {
            // What can fail comes before the run is free for a moment, and nobody's any more.
            if let Err(error) = self.middle.reserve_nodes(4) {
                self.order.free(stream, block);
                return Err(error);
            }
            self.middle.free(start)?;
            self.middle.carve(start, count)?;
            self.middle.carve(start + count, whole - count)?;
            let id = u64::from(start + count);
            let bytes = u64::from(whole - count) * MIDDLE_GRANULE_BYTES;
            self.order.free(stream, Freed { class: FITTED, id, bytes });
        }
        Ok(start)
    }

    /// Whether a request is cut to its length: a small one is if it fills some granules, or if its class has too few
    /// blocks to fill a page of its own.
    pub(super) fn is_fitted(&self, class: Class, bytes: u64) -> bool {
        let Some(rare) = rare_class(bytes).filter(|_| class.is_small()) else { return true };
        let count = self.rare[rare];
        let spent_bytes = u64::from(count) * u64::from(granules(bytes)) * MIDDLE_GRANULE_BYTES;
        bytes >= WORTH_A_RUN * MIDDLE_GRANULE_BYTES || spent_bytes < WORTH_A_PAGE_BYTES
    }

    /// Counts a fitted block of a small request.
    pub(super) fn count_rare(&mut self, bytes: u64, is_live: bool) {
        let Some(rare) = rare_class(bytes) else { return };
        let count = &mut self.rare[rare];
        *count = if is_live { *count + 1 } else { count.saturating_sub(1) };
    }
}
