//! Address ranges of the heap, and the way from an address to its block.
//!
//! What it does: one reservation for each small class, one for all middle sizes, one for large ones; the directory that
//! finds the region of an address with one load. What it does not: know which blocks are free.
//! Invariants: a region lies alone in its steps of `DIRECTORY_STEP`; once made it stays for the
//! life of the heap, so that a lookup takes no lock. An index and its address stand for each other:
//! `address_of(index_of(address)) == address`.

use std::mem::offset_of;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};

use super::range::Range;
use super::records::Records;
use crate::device::DeviceSlice;
use crate::error::Result;

/// Bytes of a page of small blocks.
pub(super) const SLAB_PAGE_BYTES: u64 = 2 << 20;
/// Granule of middle sizes: an exact length loses half of it. Its record takes a 128th of it from the host.
pub(super) const MIDDLE_GRANULE_BYTES: u64 = 2 << 10;
/// Every class above 256 KiB is a multiple of it, and its blocks begin at multiples of it.
pub(super) const MIDDLE_STEP_BYTES: u64 = 32 << 10;
/// Granule of large sizes.
pub(super) const LARGE_GRANULE_BYTES: u64 = 2 << 20;

/// 2^47 addresses in steps of 1 GiB; beyond that they wrap, and the region's bounds tell.
pub(super) const DIRECTORY_STEP: u64 = 1 << 30;
const DIRECTORY_STEPS: usize = 1 << 17;

/// How a region is cut into blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cut {
    /// Slots of one size in pages.
    Slots(Slots),
    /// Runs of granules of so many bytes, a power of two.
    Granules(u64),
}

/// Slots of one size in pages of `SLAB_PAGE_BYTES`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slots {
    /// Size of a slot.
    pub(super) bytes: u64,
    /// Slots of a page.
    pub(super) count: u32,
    /// Bits of an index that count slots; the rest counts pages.
    bits: u32,
    /// 2^42 / bytes, rounded up: (offset * reciprocal) >> 42 is offset / bytes for every offset in a page.
    reciprocal: u64,
}

const RECIPROCAL_BITS: u32 = 42;

impl Slots {
    /// The cut for slots of a size.
    pub(super) fn new(bytes: u64) -> Self {
        let count = (SLAB_PAGE_BYTES / bytes) as u32;
        let reciprocal = (1u64 << RECIPROCAL_BITS).div_ceil(bytes);
        Self { bytes, count, bits: count.next_power_of_two().trailing_zeros(), reciprocal }
    }

    /// Index of a slot of a page.
    pub(super) fn index(&self, page: u32, slot: u32) -> u32 {
        page << self.bits | slot
    }

    /// Page and slot of an index.
    pub(super) fn place(&self, index: u32) -> (u32, u32) {
        (index >> self.bits, index & ((1 << self.bits) - 1))
    }

    /// Indexes of so many bytes.
    pub(super) fn indexes(&self, bytes: u64) -> u64 {
        bytes.div_ceil(SLAB_PAGE_BYTES) << self.bits
    }

    /// Most pages whose indexes fit.
    pub(super) fn pages_max(&self) -> u64 {
        1 << (32 - self.bits)
    }
}

/// Where a block begins, and its number among those of its region.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Block {
    pub(super) address: u64,
    pub(super) index: u32,
}

/// One range of addresses with the records of its blocks. What leads from an address to a record is the first line of
/// memory of it, and nobody writes there but to grow.
#[repr(C, align(64))]
pub(super) struct Region {
    /// First address.
    pub(super) base: u64,
    /// Length.
    pub(super) bytes: u64,
    /// The cut as slots: granules are slots that leave nothing of a page.
    pub(super) grid: Slots,
    /// What is known of its blocks.
    pub(super) records: Records,
    /// How it is cut.
    pub(super) cut: Cut,
    /// The addresses and what is behind them.
    pub(super) range: Arc<Range>,
    /// The device's page.
    pub(super) page_bytes: u64,
    /// From the start of `range` to `base`.
    pub(super) lead: u64,
}

const _: () = assert!(offset_of!(Region, records) + Records::HEAD_BYTES <= 64);

impl Region {
    /// Pages of the device behind a part of the region: the first, and the one after.
    pub(super) fn pages(&self, offset: u64, bytes: u64) -> (u64, u64) {
        let page_bytes = self.page_bytes;
        let first = (self.lead + offset) / page_bytes;
        (first, first + bytes / page_bytes)
    }

    /// Puts memory behind a part of the region.
    pub(super) fn back(&self, offset: u64, bytes: u64) -> Result<()> {
        let (first, end) = self.pages(offset, bytes);
        self.range.back(first, end, &|_| Ok(())).map(drop)
    }

    /// Takes the memory away from behind a part of the region that nobody uses. What had memory, in bytes.
    pub(super) fn unback(&self, offset: u64, bytes: u64) -> Result<u64> {
        let (first, end) = self.pages(offset, bytes);
        Ok(self.range.unback(first, end, None)? * self.page_bytes)
    }

    /// Puts the memory of one page of slots behind another too; see [`Range::mesh`].
    pub(super) fn mesh(&self, guest: u32, host: u32) -> Result<bool> {
        let [guest, host] =
            [guest, host].map(|page| self.pages(u64::from(page) * SLAB_PAGE_BYTES, SLAB_PAGE_BYTES));
        self.range.mesh(guest.0, host.0, guest.1 - guest.0)
    }

    /// Keeps the pages of a part of the region from being moved or taken away.
    pub(super) fn pin(&self, offset: u64, bytes: u64) -> Result<()> {
        let (first, end) = self.covering(offset, bytes);
        self.range.pin(first, end)
    }

    /// Undoes one pin of the same part.
    pub(super) fn unpin(&self, offset: u64, bytes: u64) -> Result<()> {
        let (first, end) = self.covering(offset, bytes);
        self.range.unpin(first, end)
    }

    fn covering(&self, offset: u64, bytes: u64) -> (u64, u64) {
        ((self.lead + offset) / self.page_bytes, (self.lead + offset + bytes).div_ceil(self.page_bytes))
    }

    /// Memory of a part of the region, for copies.
    pub(super) fn slice(&self, offset: u64, bytes: u64) -> Result<DeviceSlice> {
        self.range.slice().part(self.lead + offset, bytes)
    }

    /// A block of the region.
    pub(super) fn block(&self, index: u32) -> Block {
        Block { address: self.address_of(index), index }
    }

    /// Address of a block.
    #[inline]
    pub(super) fn address_of(&self, index: u32) -> u64 {
        let (page, slot) = self.grid.place(index);
        self.base + u64::from(page) * SLAB_PAGE_BYTES + u64::from(slot) * self.grid.bytes
    }

    /// As `index_of`, for an address that may lie elsewhere.
    #[inline(always)]
    pub(super) fn index_at(&self, address: u64) -> Option<u32> {
        if address.wrapping_sub(self.base) >= self.bytes {
            return None;
        }
        self.index_of(address)
    }

    /// Index of the block that begins at an address of the region; nothing if none can begin there.
    #[inline(always)]
    pub(super) fn index_of(&self, address: u64) -> Option<u32> {
        let offset = address - self.base;
        let (page, inside) = (offset / SLAB_PAGE_BYTES, offset % SLAB_PAGE_BYTES);
        let slot = (inside * self.grid.reciprocal) >> RECIPROCAL_BITS;
        let is_start = slot * self.grid.bytes == inside && slot < u64::from(self.grid.count);
        is_start.then_some(self.grid.index(page as u32, slot as u32))
    }
}

/// Places for regions, a power of two, so that a number is made one of them by a mask.
pub(super) const REGIONS_MAX: usize = 128;

/// All regions of a heap.
pub(super) struct Regions {
    directory: Arc<Directory>,
    regions: Box<[OnceLock<Arc<Region>>; REGIONS_MAX]>,
}

/// Number of the region for each step of the address space.
pub(super) type Directory = [AtomicU8; DIRECTORY_STEPS];

/// No region has this number.
const NOWHERE: u8 = REGIONS_MAX as u8 - 1;

/// The number of the region that may hold an address, or one that no region has.
#[inline(always)]
pub(super) fn number_at(directory: &Directory, address: u64) -> usize {
    let step = (address / DIRECTORY_STEP) as usize % DIRECTORY_STEPS;
    usize::from(directory[step].load(Ordering::Acquire)) % REGIONS_MAX
}

impl Regions {
    /// None yet.
    pub(super) fn new() -> Self {
        // Made where it stays: it is larger than some stacks.
        let nowhere: Arc<[AtomicU8]> = (0..DIRECTORY_STEPS).map(|_| AtomicU8::new(NOWHERE)).collect();
        let directory = nowhere.try_into().expect("as many as there are steps");
        Self { directory, regions: Box::new([const { OnceLock::new() }; REGIONS_MAX]) }
    }

    /// The way from an address to a number, for whoever keeps the regions it needs.
    pub(super) fn directory(&self) -> Arc<Directory> {
        Arc::clone(&self.directory)
    }

    /// One of them, if it was made.
    #[inline(always)]
    pub(super) fn get(&self, number: usize) -> Option<&Region> {
        self.share(number).map(|region| &**region)
    }

    /// As `get`, for whoever keeps it.
    #[inline(always)]
    pub(super) fn share(&self, number: usize) -> Option<&Arc<Region>> {
        self.regions[number % REGIONS_MAX].get()
    }

    /// All that were made, with their numbers.
    pub(super) fn iter(&self) -> impl Iterator<Item = (usize, &Region)> {
        self.regions.iter().enumerate().filter_map(|(number, region)| Some((number, &**region.get()?)))
    }

    /// Adds one; the caller makes each number once.
    pub(super) fn insert(&self, number: usize, region: Region) -> Option<&Region> {
        let steps = region.base / DIRECTORY_STEP..(region.base + region.bytes).div_ceil(DIRECTORY_STEP);
        let places = steps.map(|step| step as usize % DIRECTORY_STEPS);
        if places.clone().any(|place| self.directory[place].load(Ordering::Acquire) != NOWHERE) {
            return None;
        }
        self.regions[number].set(Arc::new(region)).ok()?;
        for place in places {
            // Release: whoever finds the number finds the region.
            self.directory[place].store(number as u8, Ordering::Release);
        }
        self.get(number)
    }

    /// The region of an address.
    #[inline(always)]
    pub(super) fn find(&self, address: u64) -> Option<(usize, &Region)> {
        let number = number_at(&self.directory, address);
        let region = self.get(number)?;
        (address.wrapping_sub(region.base) < region.bytes).then_some((number, region))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn granules_are_slots_that_leave_nothing() {
        for bytes in [MIDDLE_GRANULE_BYTES, LARGE_GRANULE_BYTES] {
            let slots = Slots::new(bytes);
            for index in [0, 1, 255, 256, 1000, 100_000] {
                let (page, slot) = slots.place(index);
                let offset = u64::from(page) * SLAB_PAGE_BYTES + u64::from(slot) * slots.bytes;
                assert_eq!(offset, u64::from(index) * bytes);
            }
            assert_eq!(u64::from(slots.count) * bytes, SLAB_PAGE_BYTES);
        }
    }

    #[test]
    fn every_slot_of_every_size_is_found_by_its_address_and_nothing_between() {
        for bytes in (1..=1024).map(|step| step * 256) {
            let slots = Slots::new(bytes);
            assert!(u64::from(slots.count) * bytes <= SLAB_PAGE_BYTES);
            for inside in (0..SLAB_PAGE_BYTES).step_by(256) {
                let slot = (inside * slots.reciprocal) >> RECIPROCAL_BITS;
                assert_eq!(slot, inside / bytes, "offset {inside} of slots of {bytes}");
            }
            let index = slots.index(77, slots.count - 1);
            assert_eq!(slots.place(index), (77, slots.count - 1));
            assert!(slots.pages_max() >= 1 << 18, "at least half a TiB of slots of {bytes}");
        }
    }
}
