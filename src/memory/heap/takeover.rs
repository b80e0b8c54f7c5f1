//! A large block out of the pages of free ones, while those still have their old addresses.
//!
//! A driver prices each mapping, in and out. Where all free memory lies in small holes, a large block that waits for
//! them to be unmapped pays twice. Here the pages are mapped behind the new addresses first; the old ones are left
//! afterwards, by the upkeep where there is one. What it does not: copy, or touch a page with anything live or pinned,
//! on the way to a stream, or shared by a mesh.
//! Invariants: whoever is claimed here is in nobody else's hands; where anything fails, everybody is free again with
//! the memory from before. An address that was left is unmapped before it has memory again (`range`).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::super::order::Freed;
use super::super::physical::PhysicalPage;
use super::super::range::Movable;
use super::super::region::{LARGE_GRANULE_BYTES, MIDDLE_GRANULE_BYTES, Region, SLAB_PAGE_BYTES};
use super::super::size_class::{self, Class};
use super::large::grow_records;
use super::{Heap, LARGE, MIDDLE};
use crate::error::{Result, Status};

/// Granules of a middle block in one of a large one.
const EACH: u32 = (LARGE_GRANULE_BYTES / MIDDLE_GRANULE_BYTES) as u32;

/// Somebody free, taken out of circulation.
#[derive(Clone, Copy)]
enum Donor {
    /// A page of slots without live ones.
    Slots(Class, u32),
    /// A free run of the middle region: start and count in granules of `LARGE_GRANULE_BYTES`.
    Run(u32, u32),
    /// A large block that is free for all.
    Block(Freed),
}

/// What a donor gives.
struct Part {
    number: usize,
    donor: Donor,
    /// First page and end of the donor.
    pages: (u64, u64),
    /// Mappings whose pages move.
    moved: Vec<u64>,
}

/// Donors and their pages; free again with the drop.
struct Claims<'a> {
    heap: &'a Heap,
    parts: Vec<Part>,
    pages: Vec<Arc<PhysicalPage>>,
    count: u64,
}

/// Neighbouring mappings that together are whole granules of the donor's region.
pub(super) fn units(pages: Vec<Movable>, granule: u64) -> Vec<Vec<Movable>> {
    let mut units = Vec::new();
    let mut unit: Vec<Movable> = Vec::new();
    let mut next = 0;
    for (start, page) in pages {
        if start != next {
            unit.clear();
        }
        next = start + page.class().pages();
        if unit.is_empty() && !start.is_multiple_of(granule) {
            continue;
        }
        unit.push((start, page));
        if next.is_multiple_of(granule) {
            units.push(std::mem::take(&mut unit));
        }
    }
    units
}

pub(super) fn pages_of(unit: &[Movable]) -> u64 {
    unit.iter().map(|(_, page)| page.class().pages()).sum()
}

impl Heap {
    /// A large block of which a part at least is pages of free blocks. Nothing if there are not enough of them.
    pub(super) fn take_over(&self, bytes: u64) -> Result<Option<u32>> {
        let bytes = bytes.next_multiple_of(LARGE_GRANULE_BYTES);
        let _growing = self.growing.lock();
        let region = self.region(LARGE)?;
        let free = self.device.memory_info().map_or(0, |info| info.free_bytes);
        let left = self.physical.left_bytes().min(free).min(bytes);
        let left = left - left % LARGE_GRANULE_BYTES;
        let mut claims = Claims { heap: self, parts: Vec::new(), pages: Vec::new(), count: 0 };
        // What is said to be left may be refused after all; then all has to come from here.
        let fresh = [Some(left).filter(|left| *left > 0), Some(0)];
        let spare_bytes = self.spare_bytes();
        for fresh in fresh.into_iter().flatten() {
            // What is refused here is not taken out of circulation for a moment.
            if spare_bytes < bytes - fresh {
                continue;
            }
            if !claims.gather((bytes - fresh) / self.physical.page_bytes())? {
                return Ok(None);
            }
            match self.pass_over(LARGE, || self.put_behind(region, bytes, &claims.pages)) {
                Ok(Some(start)) => return claims.leave().map(|()| Some(start)),
                Ok(None) => return Ok(None),
                Err(error) if error.status == Status::OutOfMemory => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// What free blocks could give at most.
    fn spare_bytes(&self) -> u64 {
        let core = self.core.lock();
        let small = core.small.iter().flatten();
        let empty = small.map(|small| small.slab.open_pages().filter(|&(_, live)| live == 0).count() as u64);
        let granules = u64::from(core.middle.free_granules());
        empty.sum::<u64>() * SLAB_PAGE_BYTES + granules * MIDDLE_GRANULE_BYTES + core.idle_large_bytes
    }

    fn put_behind(&self, region: &Region, bytes: u64, pages: &[Arc<PhysicalPage>]) -> Result<Option<u32>> {
        let start = self.large_addresses(bytes)?;
        let (first, end) = region.pages(u64::from(start) * LARGE_GRANULE_BYTES, bytes);
        let backed = grow_records(region, start, bytes);
        let backed = backed.and_then(|()| region.range.back_with(first, end, pages));
        if !matches!(backed, Ok(true)) {
            self.core.lock().large.free(start)?;
        }
        backed.map(|is_done| is_done.then_some(start))
    }
}

impl Claims<'_> {
    /// Claims until there are so many pages, the largest ones first; whether there are.
    fn gather(&mut self, count: u64) -> Result<bool> {
        self.gather_blocks(count)?;
        self.gather_runs(count);
        for class in (0..size_class::SMALL_CLASS_COUNT).filter_map(Class::at) {
            self.gather_slots(class, count)?;
        }
        self.pages.sort_by_key(|page| std::cmp::Reverse(page.class()));
        Ok(self.count == count)
    }

    /// Notes what of a donor fits; whether anything did.
    fn note(
        &mut self,
        number: usize,
        donor: Donor,
        pages: (u64, u64),
        units: Vec<Vec<Movable>>,
        count: u64,
    ) -> bool {
        let mut moved = Vec::new();
        for unit in units {
            let unit_pages = pages_of(&unit);
            if self.count + unit_pages <= count {
                self.count += unit_pages;
                moved.extend(unit.iter().map(|(start, _)| *start));
                self.pages.extend(unit.into_iter().map(|(_, page)| page));
            }
        }
        let is_any = !moved.is_empty();
        if is_any {
            self.parts.push(Part { number, donor, pages, moved });
        }
        is_any
    }

    fn granule(&self) -> u64 {
        (LARGE_GRANULE_BYTES / self.heap.physical.page_bytes()).max(1)
    }

    fn gather_blocks(&mut self, count: u64) -> Result<()> {
        let heap = self.heap;
        let Some(region) = heap.regions.get(LARGE) else { return Ok(()) };
        for block in heap.take_whole_idle(region)? {
            let pages = region.pages(block.id * LARGE_GRANULE_BYTES, block.bytes);
            let units = units(region.range.movable(pages.0, pages.1), self.granule());
            if !self.note(LARGE, Donor::Block(block), pages, units, count) {
                heap.free_again(Donor::Block(block));
            }
        }
        Ok(())
    }

    fn gather_runs(&mut self, count: u64) {
        let heap = self.heap;
        let Some(region) = heap.regions.get(MIDDLE) else { return };
        let free: Vec<(u32, u32)> = heap.core.lock().middle.free_ranges().collect();
        let (granule, base) = (self.granule(), region.pages(0, 0).0);
        for (start, length) in free {
            // Whole pages only.
            let (low, high) = (start.div_ceil(EACH), (start + length) / EACH);
            if low >= high || self.count == count {
                continue;
            }
            let offset = u64::from(low) * LARGE_GRANULE_BYTES;
            let (first, end) = region.pages(offset, u64::from(high - low) * LARGE_GRANULE_BYTES);
            for unit in units(region.range.movable(first, end), granule) {
                let pages = pages_of(&unit);
                let Some((first, _)) = unit.first().filter(|_| self.count + pages <= count) else { continue };
                let (at, length) = (((first - base) / granule) as u32, (pages / granule) as u32);
                // Somebody may have taken a part of it since.
                if heap.core.lock().middle.carve(at * EACH, length * EACH).is_ok() {
                    let place = (*first, first + pages);
                    self.note(MIDDLE, Donor::Run(at, length), place, vec![unit], count);
                }
            }
        }
    }

    fn gather_slots(&mut self, class: Class, count: u64) -> Result<()> {
        let heap = self.heap;
        let Some(region) = heap.regions.get(class.index()).filter(|_| self.count < count) else {
            return Ok(());
        };
        let empty: Vec<u32> = {
            let mut core = heap.core.lock();
            let pages = core.small(class)?.slab.open_pages();
            pages.filter(|&(_, live)| live == 0).map(|(page, _)| page).collect()
        };
        // The lowest pages are the next to be used.
        for page in empty.into_iter().rev() {
            if self.count == count {
                break;
            }
            // Somebody may have taken a slot of it since.
            if heap.core.lock().small(class)?.slab.remove_page(page).is_err() {
                continue;
            }
            let pages = region.pages(u64::from(page) * SLAB_PAGE_BYTES, SLAB_PAGE_BYTES);
            let units = units(region.range.movable(pages.0, pages.1), self.granule());
            if !self.note(class.index(), Donor::Slots(class, page), pages, units, count) {
                heap.free_again(Donor::Slots(class, page));
            }
        }
        Ok(())
    }

    /// The pages are somebody else's now: the donors become addresses without memory.
    fn leave(mut self) -> Result<()> {
        let mut parts = std::mem::take(&mut self.parts);
        self.heap.ladder.moved_pages.fetch_add(self.count, Ordering::Relaxed);
        parts.sort_by_key(|part| part.number);
        for of_region in parts.chunk_by(|one, other| one.number == other.number) {
            let Some(region) = of_region.first().and_then(|part| self.heap.regions.get(part.number)) else {
                continue;
            };
            let places: Vec<(u64, u64)> = of_region.iter().map(|part| part.pages).collect();
            let moved: Vec<u64> = of_region.iter().flat_map(|part| part.moved.iter().copied()).collect();
            region.range.leave_behind(&places, &moved);
        }
        parts.iter().try_for_each(|part| self.heap.make_bare(part.donor))
    }
}

impl Drop for Claims<'_> {
    fn drop(&mut self) {
        self.pages.clear();
        for part in self.parts.drain(..) {
            self.heap.free_again(part.donor);
        }
    }
}

impl Heap {
    /// A donor has its memory as before.
    fn free_again(&self, donor: Donor) {
        let mut core = self.core.lock();
        let freed = match donor {
            Donor::Slots(class, page) => core.small(class).map(|small| {
                if small.slab.add_page(page).is_err() {
                    // Without host memory for its slots the page waits among the bare ones, and keeps its memory.
                    small.give_bare(page);
                }
            }),
            Donor::Run(start, _) => core.middle.free(start * EACH).map(drop),
            Donor::Block(block) => core.give_free(block),
        };
        debug_assert!(freed.is_ok(), "what was claimed is known: {freed:?}");
    }

    /// A donor has no memory any more.
    fn make_bare(&self, donor: Donor) -> Result<()> {
        let mut core = self.core.lock();
        match donor {
            Donor::Slots(class, page) => core.small(class).map(|small| small.give_bare(page)),
            Donor::Run(start, count) => {
                core.middle.withdraw(start * EACH)?;
                core.middle_bare.insert(start, count)
            }
            Donor::Block(block) => core.large.free(block.id as u32).map(drop),
        }
    }
}
