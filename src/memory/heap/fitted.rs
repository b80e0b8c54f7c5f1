//! Runs of granules that are as long as they were asked for: what memory is given out as where it is short.
//!
//! A block of a class is found again fast, but each class keeps pages of its own and rounds up. So once the heap holds
//! more than it can still get, what no free block of its class serves is cut from the pages of middle sizes to its own
//! length, small blocks too; a page of slots is only begun for a small class of which there are many. Under a limit,
//! blocks above 4 MiB have their own lengths long before. A page of which nothing is in use can go anywhere, one of
//! which a part is cannot: so a run of a page and more lies where it begins the fewest pages, and takes in what others
//! leave of its first and last ones, new memory between them if need be.
//! What it does not: serve what the front caches or the free blocks of a class do. Such a block passes through no
//! front cache: its length is in no class. Invariant: the run of a live block of [`FITTED`] is used in `middle`, with
//! exactly its granules.

use std::sync::atomic::Ordering;

use super::super::order::Freed;
use super::super::region::{LARGE_GRANULE_BYTES, MIDDLE_GRANULE_BYTES};
use super::super::size_class::{self, Class};
use super::core::{CLASS_ALIGNMENT, COMPOSED, Core, FITTED, LARGE, addresses_used_up};
use super::{Heap, MIDDLE};
use crate::device::Stream;
use crate::error::{Error, Result, Status};
use crate::event::Level;

/// Granules of a page.
const EACH: u32 = (LARGE_GRANULE_BYTES / MIDDLE_GRANULE_BYTES) as u32;

/// Small requests of so many granules and more do not wait for a page of their class.
const WORTH_A_RUN: u64 = 4;
/// A class gets a page of slots once so many bytes lie in runs of its own.
const WORTH_A_PAGE_BYTES: u64 = 512 << 10;

/// From here on a request that a class would hold may get a part of a large block that is free.
const LARGE_PART_BYTES: u64 = 8 << 20;

/// Under a limit, what is longer has its own length once one part in so many is held. Its class would round it up by as
/// much as whole pages, and the ends that are cut off later lie apart. It comes too seldom for front caches to matter
/// much, but where there is ten times what is needed a block of a class is had faster.
const EXACT_ABOVE_BYTES: u64 = 4 << 20;
const EXACT_SHARE: u64 = 10;

/// What a stream frees is given back once it is one part in so many of what is held.
const REUNITED_SHARE: u64 = 512;

/// Used runs up to which a place is looked for from the lowest on; a walk over as many takes a few microseconds. With
/// more of them the run comes from the lists by size, and new pages from where there are some, at a cost that does not
/// grow.
const WALK_MOST: u32 = 8192;

/// Granules of so many bytes; more than any region has for what cannot be counted.
pub(super) fn granules(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(MIDDLE_GRANULE_BYTES)).unwrap_or(u32::MAX)
}

/// Bytes of the run of a fitted block.
pub(super) fn run_bytes(bytes: u64) -> u64 {
    bytes.next_multiple_of(MIDDLE_GRANULE_BYTES)
}

impl Heap {
    /// Whether what is held was more than what could still be had when that was weighed last.
    pub(in crate::memory) fn is_short(&self) -> bool {
        self.is_short.load(Ordering::Relaxed)
    }

    /// Compares what is held with what can still be had; whether memory is short. Costs a look at each region.
    pub(super) fn weigh(&self) -> bool {
        let left = self.physical.likely_left_bytes(self.total_bytes);
        let backed = self.backed_bytes();
        let is_short = backed >= left;
        self.is_short.store(is_short, Ordering::Relaxed);
        // Not at the edge, where a page more or less would have all live blocks walked over each time.
        if backed.saturating_mul(2) < left {
            self.is_squeezed.store(false, Ordering::Relaxed);
        }
        is_short
    }

    /// Whether less can be had than the device has. Until such memory is short, blocks that there are stay as they are:
    /// what is joined and cut before leaves more holes among exact lengths.
    pub(super) fn is_limited(&self) -> bool {
        self.held_of().1 < self.total_bytes
    }

    /// Whether the blocks of a class are cut to their lengths although there may be plenty.
    pub(super) fn is_exact(&self, class: Class) -> bool {
        let is_filled = || {
            let (held, limit) = self.held_of();
            limit < self.total_bytes && held >= limit / EXACT_SHARE
        };
        size_class::bytes_of(class) > EXACT_ABOVE_BYTES && is_filled()
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
        let may_have = may_wait && !is_captured && !class.is_small();
        let instead = |refusal| {
            let index = self.part_instead(refusal, (stream, bytes), may_have)?;
            Ok(Some((LARGE, index)))
        };
        let is_short = self.is_short() || self.weigh();
        if is_short
            && !self.is_squeezed.load(Ordering::Relaxed)
            && !self.is_squeezed.swap(true, Ordering::Relaxed)
        {
            // What it cannot cut stays as it is: that is no reason to refuse what fits.
            if let Err(error) = self.squeeze() {
                self.physical.say(Level::Warn, || {
                    format!("cutting live blocks to their lengths ended early: {error}")
                });
            }
        }
        if (is_short || self.is_exact(class)) && self.core.lock().is_fitted(class, bytes) {
            let run = self.take_fitted(stream, bytes, alignment, is_captured, may_wait);
            if may_have
                && alignment <= MIDDLE_GRANULE_BYTES
                && is_refused(&run)
                && let Some(start) = self.compose(granules(bytes))?
            {
                return Ok(Some((COMPOSED, start)));
            }
            let run = match run {
                Err(refusal) => return instead(refusal),
                Ok(run) => run,
            };
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
            true => self.grow(stream, class),
            false => self.grow_middle(count, granules),
        };
        grown.map_or_else(instead, |grown| Ok(grown.map(|index| (wanted, index))))
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
        let run_bytes = run_bytes(bytes);
        let alignment = (alignment / MIDDLE_GRANULE_BYTES).max(1) as u32;
        // What was freed begins at any granule.
        let fits = |block: &Freed| block.bytes == run_bytes && block.id.is_multiple_of(u64::from(alignment));
        if is_captured && let Some(block) = self.take_captured(stream, FITTED, fits) {
            return Ok(Some(block.id as u32));
        }
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
        let bytes = (self.physical.held_bytes() / REUNITED_SHARE).max(1);
        let lanes = {
            let core = self.core.lock();
            if core.order.bytes() < bytes {
                return Ok(());
            }
            let lanes = core.order.streams_with(bytes);
            // The sum of many streams says nothing of one.
            if lanes.is_empty() && !core.is_waiting() {
                return Ok(());
            }
            lanes
        };
        lanes.into_iter().try_for_each(|lane| self.close_lane(lane))?;
        while self.collect()? {}
        Ok(())
    }

    /// A run of exactly so many granules, with as few new pages as possible once they come singly.
    pub(super) fn grow_fitted(&self, count: u32, alignment: u32) -> Result<Option<u32>> {
        if alignment > 1 || self.grows_by_slabs() || !self.core.lock().is_walked() {
            return self.grow_middle(count, alignment);
        }
        self.pass_over(MIDDLE, || self.grow_place(count))
    }

    /// As `grow_fitted`, where the run begins the fewest pages.
    fn grow_place(&self, count: u32) -> Result<Option<u32>> {
        let _growing = self.growing.lock();
        self.weigh();
        let region = self.region(MIDDLE)?;
        let (start, bare) = {
            let mut core = self.core.lock();
            // Nothing that others do makes more of them.
            let place = core.middle.place(count, EACH).ok_or_else(addresses_used_up)?;
            if !place.is_bare {
                core.middle.carve(place.start, count)?;
                return Ok(Some(place.start));
            }
            let bare = core.middle.bare_parts(place.start, count, EACH);
            for &(first, granules) in &bare {
                core.middle_bare.carve(first / EACH, granules / EACH)?;
                core.middle_bare.withdraw(first / EACH)?;
            }
            (place.start, bare)
        };
        // What got memory before one was refused is free, and goes back with the next trim.
        let mut outcome = Ok(());
        for (first, granules) in bare {
            let offset = u64::from(first) * MIDDLE_GRANULE_BYTES;
            let bytes = u64::from(granules) * MIDDLE_GRANULE_BYTES;
            let backed = outcome
                .and_then(|()| region.records.grow(first + granules - 1))
                .and_then(|()| region.back(offset, bytes))
                .inspect(|()| self.populate_tables(region, first, granules));
            let mut core = self.core.lock();
            outcome = backed.and_then(|()| core.middle.insert(first, granules));
            if outcome.is_err() {
                core.middle_bare.insert(first / EACH, granules / EACH)?;
            }
        }
        outcome?;
        let mut core = self.core.lock();
        // Somebody may have taken what was free beside the new pages meanwhile.
        match core.middle.carve(start, count) {
            Ok(()) => Ok(Some(start)),
            Err(_) => core.middle.allocate(count, 1),
        }
    }
}

/// Whether it is memory that is missing.
pub(super) fn is_refused<T>(outcome: &Result<T>) -> bool {
    outcome.as_ref().is_err_and(|error| error.status == Status::OutOfMemory)
}

/// Where fitted blocks of small requests are counted: by their bytes alone, which is all that their records say.
pub(super) fn rare_class(bytes: u64) -> Option<usize> {
    size_class::class_of(bytes, 1).filter(|class| class.is_small()).map(Class::index)
}

impl Core {
    /// A free run: for less than a page the one that fits best, because what is left of it will hardly serve another
    /// one; else, while there are few, one that begins as few pages as any, and none where new memory beside a free run
    /// would begin fewer.
    fn take_run(&mut self, count: u32, alignment: u32) -> Result<Option<u32>> {
        if count < EACH || alignment > 1 || !self.is_walked() {
            return self.middle.allocate(count, alignment);
        }
        let Some(place) = self.middle.place(count, EACH).filter(|place| !place.is_bare) else {
            return Ok(None);
        };
        self.middle.carve(place.start, count)?;
        Ok(Some(place.start))
    }

    /// How many pages on which nobody is a run needs at the place where it begins the fewest of them, if such a place
    /// is looked for.
    pub(super) fn begun_pages(&self, count: u32) -> Option<u32> {
        self.is_walked().then(|| self.middle.place(count, EACH)).flatten().map(|place| place.begun_pages)
    }

    /// Whether a run goes where it begins the fewest pages.
    pub(super) fn is_walked(&self) -> bool {
        self.middle.used_ranges() <= WALK_MOST
    }

    /// Makes a run that the stream may have as long as it is wanted; what is behind it stays freed on the stream.
    pub(super) fn cut(&mut self, stream: Stream, block: Freed, count: u32) -> Result<u32> {
        let start = block.id as u32;
        let whole = granules(block.bytes);
        if whole > count {
            if let Err(error) = self.middle.split(start, count) {
                self.order.free(stream, block);
                return Err(error);
            }
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
