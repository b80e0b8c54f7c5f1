//! New memory behind the heap's addresses, and its way back.
//!
//! What it does: makes regions, backs pages of slots and slabs of granules, takes the memory away from what is empty.
//! What it does not: choose handles; `range` does. One thread grows at a time; the others wait, and look again.
//! Invariant: a page or granule that `core` gives out is backed. A failed call leaves all as it was.

use super::super::page_class::PageClass;
use super::super::range::{Holder, Range};
use super::super::records::Records;
use super::super::region::{
    Cut, DIRECTORY_STEP, LARGE_GRANULE_BYTES, MIDDLE_GRANULE_BYTES, Region, SLAB_PAGE_BYTES, Slots,
};
use super::super::size_class::{self, Class};
use super::{Heap, LARGE, MIDDLE};
use std::sync::Arc;

use crate::device::Stream;
use crate::error::{Error, Result, Status};
use crate::sys::numa;

/// By how much the middle region grows while most of the memory is unused: one page of the largest size, because the
/// driver prices pages and not bytes.
const SLAB_BYTES: u64 = 64 << 20;
/// And later: small pages, which go one by one when they are empty.
const STEP_BYTES: u64 = 8 << 20;

/// How many addresses the regions of a device have.
pub(super) struct Sizes {
    pub(super) small_bytes: u64,
    pub(super) middle_bytes: u64,
    pub(super) large_bytes: u64,
}

impl Sizes {
    /// Twice the memory for middle sizes and four times for large ones, so that holes in the addresses never matter.
    pub(super) fn of(total_bytes: u64) -> Self {
        let total = total_bytes.clamp(1 << 30, 1 << 42).next_power_of_two();
        // Granules of middle sizes are counted with 32 bits.
        let middle_bytes = (2 * total).min(MIDDLE_GRANULE_BYTES << 31);
        Self { small_bytes: total.min(64 << 30), middle_bytes, large_bytes: 4 * total }
    }
}

impl Heap {
    /// The region of a number, made if it is not there yet.
    pub(super) fn region(&self, number: usize) -> Result<&Region> {
        if let Some(region) = self.regions.get(number) {
            return Ok(region);
        }
        let sizes = Sizes::of(self.total_bytes);
        let (bytes, cut) = match number {
            MIDDLE => (sizes.middle_bytes, Cut::Granules(MIDDLE_GRANULE_BYTES)),
            LARGE => (sizes.large_bytes, Cut::Granules(LARGE_GRANULE_BYTES)),
            _ => {
                let class = Class::at(number).ok_or_else(|| Error::internal("a region of no class"))?;
                (sizes.small_bytes, Cut::Slots(Slots::new(size_class::bytes_of(class))))
            }
        };
        // A step more on either side: no other region shares a step, and slabs lie at multiples of their size.
        // Pages on their way between ranges fit worse at a limit: fragmentation of 8 instead of 3 % was seen.
        let largest = self.largest_page(number);
        let holder = Holder { tenant: 0, payer: None, largest, takes_passed: false };
        let range = Range::new(Arc::clone(&self.physical), bytes + 2 * DIRECTORY_STEP, holder)?;
        let lead = DIRECTORY_STEP;
        let base = range.slice().address() + lead;
        let page_bytes = self.physical.page_bytes();
        let grid = match cut {
            Cut::Slots(slots) => slots,
            Cut::Granules(bytes) => Slots::new(bytes),
        };
        let records = Records::new(grid.indexes(bytes))?;
        let region = Region { base, bytes, cut, grid, range, page_bytes, lead, records };
        self.regions.insert(number, region).ok_or_else(|| {
            Error::new(
                Status::Unsupported,
                format!("the device's address {base:#x} lies 2^47 from another of it"),
            )
        })
    }

    /// Slots lie on pages of 2 MiB, which can share memory and go one by one; the rest on the largest that fit.
    fn largest_page(&self, number: usize) -> PageClass {
        if number >= MIDDLE {
            return PageClass::LARGE;
        }
        let fits = |class: &&PageClass| self.physical.bytes_of(**class) <= SLAB_PAGE_BYTES;
        PageClass::ALL.iter().rev().find(fits).copied().unwrap_or(PageClass::SMALL)
    }

    /// A new page for a small class, and a block of it. Nothing if another thread's growth may have left one.
    pub(super) fn grow(&self, stream: Stream, class: Class) -> Result<Option<u32>> {
        self.pass_over(class.index(), || self.grow_page(stream, class))
    }

    fn grow_page(&self, stream: Stream, class: Class) -> Result<Option<u32>> {
        let _growing = self.growing.lock();
        if let Some(index) = self.core.lock().take_line(stream, class)? {
            return Ok(Some(index));
        }
        let region = self.region(class.index())?;
        let Cut::Slots(slots) = region.cut else { return Err(Error::internal("a small class of granules")) };
        let page = self.core.lock().small(class)?.take_bare();
        let Some(page) = page else {
            let bytes = region.bytes;
            return Err(Error::new(Status::OutOfMemory, format!("all {bytes} bytes of one size are in use")));
        };
        let offset = u64::from(page) * SLAB_PAGE_BYTES;
        let last = slots.index(page, slots.count - 1);
        let backed = region.records.grow(last).and_then(|()| region.back(offset, SLAB_PAGE_BYTES));
        let mut core = self.core.lock();
        let added = backed.and_then(|()| core.small(class)?.slab.add_page(page));
        if let Err(error) = added {
            core.small(class)?.give_bare(page);
            return Err(error);
        }
        core.take_line(stream, class)
    }

    /// More pages for runs of granules, and such a run of them.
    pub(super) fn grow_middle(&self, count: u32, alignment: u32) -> Result<Option<u32>> {
        self.pass_over(MIDDLE, || self.grow_run(count, alignment))
    }

    /// What is held, and what there may be of all together.
    pub(super) fn held_of(&self) -> (u64, u64) {
        let held = self.physical.held_bytes();
        (held, self.physical.left_bytes().saturating_add(held).min(self.total_bytes))
    }

    /// In which steps the pages of runs grow, and what there may be of all together.
    fn step_bytes(&self) -> (u64, u64) {
        let (held, limit) = self.held_of();
        (if held < limit / 4 { SLAB_BYTES } else { STEP_BYTES }, limit)
    }

    /// Whether runs get slabs, out of which those that follow are cut.
    pub(super) fn grows_by_slabs(&self) -> bool {
        let (step, limit) = self.step_bytes();
        step == SLAB_BYTES && step <= limit / 64
    }

    fn grow_run(&self, count: u32, alignment: u32) -> Result<Option<u32>> {
        let _growing = self.growing.lock();
        if let Some(index) = self.core.lock().middle.allocate(count, alignment)? {
            return Ok(Some(index));
        }
        let region = self.region(MIDDLE)?;
        let needed = (u64::from(count) * MIDDLE_GRANULE_BYTES).next_multiple_of(LARGE_GRANULE_BYTES);
        let (grand, limit) = self.step_bytes();
        // Much while there is much, else just what is needed.
        let attempts = [needed.next_multiple_of(grand), needed];
        let first = if attempts[0] > limit / 64 { 1 } else { 0 };
        for (at, &bytes) in attempts.iter().enumerate().skip(first) {
            let pages = (bytes / LARGE_GRANULE_BYTES) as u32;
            // Of the new pages. The request's own counts for the run that is taken: free granules may end before it.
            let page_alignment = if at == 0 { (grand / LARGE_GRANULE_BYTES) as u32 } else { 1 };
            let start = self.core.lock().take_middle_bare(pages, page_alignment)?;
            let each = (LARGE_GRANULE_BYTES / MIDDLE_GRANULE_BYTES) as u32;
            let (first, granules) = (start * each, pages * each);
            let offset = u64::from(start) * LARGE_GRANULE_BYTES;
            let last = first + granules - 1;
            let backed = region.records.grow(last).and_then(|()| region.back(offset, bytes));
            let backed = backed.inspect(|()| self.populate_tables(region, first, granules));
            let mut core = self.core.lock();
            match backed.and_then(|()| core.middle.insert(first, granules)) {
                Ok(()) => return core.middle.allocate(count, alignment),
                Err(error) => {
                    core.middle_bare.insert(start, pages)?;
                    let is_last = at + 1 == attempts.len();
                    if is_last || error.status != Status::OutOfMemory {
                        return Err(error);
                    }
                }
            }
        }
        Ok(None)
    }

    /// Has the system put pages behind what says what some granules of middle sizes are. Where each came with the first
    /// block that lies there, calls waited for it that map nothing themselves.
    pub(super) fn populate_tables(&self, region: &Region, first: u32, count: u32) {
        region.records.populate(first, count);
        let tables = self.core.lock().middle.tables_of(first, count);
        tables.into_iter().for_each(|(address, bytes)| numa::populate(address, bytes));
    }

    /// Takes everything out of the caches and gives free memory back to the device. Bytes that went.
    pub fn give_back(&self) -> Result<u64> {
        // Above the soft limit pages go past the pool, so that what leaves the pool is not all of it.
        let before = self.returned_bytes();
        self.let_go()?;
        self.physical.trim(0);
        Ok(self.returned_bytes() - before)
    }

    /// Bytes that the device ever got back, by whatever way.
    fn returned_bytes(&self) -> u64 {
        let plain = self.plain.as_ref().map_or(0, |plain| plain.returned_bytes());
        plain + self.physical.statistics().released_bytes()
    }

    /// Takes everything out of the caches and leaves free memory to the pool of pages. Bytes that went there, or past
    /// it to the device.
    pub(in crate::memory) fn let_go(&self) -> Result<u64> {
        let before = self.returned_bytes();
        self.flush(None);
        self.close_lanes()?;
        self.collect()?;
        let bytes = self.trim()?;
        // Pages that have moved before their old addresses were left are the device's only after that.
        let bytes = bytes + self.physical.collect();
        self.take_aside_back();
        Ok(bytes.max(self.returned_bytes() - before))
    }

    /// Takes the memory away from behind everything that is empty and free for all. Bytes that went back.
    pub fn trim(&self) -> Result<u64> {
        let _growing = self.growing.lock();
        let mut bytes = 0;
        for (number, region) in self.regions.iter() {
            bytes += match number {
                LARGE => self.trim_large()?,
                MIDDLE => self.trim_middle(region)?,
                _ => self.trim_small(number, region)?,
            };
        }
        self.take_aside_back();
        self.weigh();
        Ok(bytes)
    }

    /// Takes the memory away from behind all pages of slots that are empty. Bytes that went back.
    pub(super) fn trim_small_pages(&self) -> Result<u64> {
        let _growing = self.growing.lock();
        let small = self.regions.iter().filter(|(number, _)| *number < MIDDLE);
        small.map(|(number, region)| self.trim_small(number, region)).sum()
    }

    fn trim_small(&self, number: usize, region: &Region) -> Result<u64> {
        let Some(class) = Class::at(number) else { return Ok(0) };
        let pages = {
            let mut core = self.core.lock();
            let small = core.small(class)?;
            let empty = small.slab.open_pages().filter(|&(_, live)| live == 0);
            let mut pages: Vec<u32> = empty.map(|(page, _)| page).collect();
            pages.iter().try_for_each(|&page| small.slab.remove_page(page))?;
            pages.append(&mut small.left);
            pages
        };
        let mut bytes = 0;
        let mut outcome = Ok(());
        for page in pages {
            match region.unback(u64::from(page) * SLAB_PAGE_BYTES, SLAB_PAGE_BYTES) {
                Ok(gone) => bytes += gone,
                Err(error) => outcome = Err(error),
            }
            self.core.lock().small(class)?.give_bare(page);
        }
        outcome.map(|()| bytes)
    }

    pub(super) fn trim_middle(&self, region: &Region) -> Result<u64> {
        self.leave_pages(region)?;
        let each = (LARGE_GRANULE_BYTES / MIDDLE_GRANULE_BYTES) as u32;
        let free: Vec<(u32, u32)> = self.core.lock().middle.free_ranges().collect();
        let mut bytes = 0;
        for (start, count) in free {
            // Whole pages only, and whole mappings: a part of one would keep its memory and be nobody's, where it is a
            // free run as it stands.
            let (first, last) = whole_part(region, start.div_ceil(each), (start + count) / each);
            if first >= last {
                continue;
            }
            let pages = last - first;
            // Somebody may have taken a part of it since.
            if self.core.lock().middle.carve(first * each, pages * each).is_err() {
                continue;
            }
            let length = u64::from(pages) * LARGE_GRANULE_BYTES;
            let gone = region.unback(u64::from(first) * LARGE_GRANULE_BYTES, length);
            let mut core = self.core.lock();
            core.middle.withdraw(first * each)?;
            core.middle_bare.insert(first, pages)?;
            drop(core);
            bytes += gone?;
        }
        Ok(bytes)
    }
}

/// The granules of `LARGE_GRANULE_BYTES` from `first` up to `last` that share no page of the device with others.
fn whole_part(region: &Region, first: u32, last: u32) -> (u32, u32) {
    if first >= last {
        return (first, first);
    }
    let bytes = u64::from(last - first) * LARGE_GRANULE_BYTES;
    let (begin, end) = region.pages(u64::from(first) * LARGE_GRANULE_BYTES, bytes);
    let (low, high) = region.range.whole_within(begin, end);
    let each = (LARGE_GRANULE_BYTES / region.page_bytes).max(1);
    (first + (low - begin).div_ceil(each) as u32, first + ((high - begin) / each) as u32)
}
