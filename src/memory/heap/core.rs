//! What is free and what was freed, under the heap's one lock.
//!
//! What it does: blocks of every class out of the pages that are backed, and back; the lists of freed blocks. What it
//! does not: call the device; growing and waiting are the heap's, without the lock.
//! Invariant, checked by `validate()`: a block is free here, or in `order` or `limbo`, or in a front cache, or live.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, HashMap};

use super::super::free_list::FreeList;
use super::super::order::{self, Freed, Order};
use super::super::records::LINE;
use super::super::region::{LARGE_GRANULE_BYTES, MIDDLE_GRANULE_BYTES, MIDDLE_STEP_BYTES, Slots};
use super::super::size_class::{self, Class};
use super::super::slab::{Slab, Slot};
use super::super::stretches::Stretches;
use super::aside::Aside;
use super::compose::Composed;
use super::limbo::Limbos;
use crate::device::Stream;
use crate::error::{Error, Result, Status};

/// `Freed::class` of large blocks; their sizes are told apart by their bytes.
pub(super) const LARGE: u32 = order::LARGE;
/// `Freed::class` of runs of granules that are as long as they were asked for.
pub(super) const FITTED: u32 = LARGE + 1;
/// `Freed::class` of large blocks of which the last page is lent: no other request gets them before all of it is past.
pub(super) const LENDING: u32 = order::LENDING;
/// `Freed::class` of blocks out of the ends of pages, likewise.
pub(super) const COMPOSED: u32 = order::COMPOSED;

/// Whether blocks of no size class lie in the middle region, with their own lengths.
pub(super) fn is_run(class: u32) -> bool {
    matches!(class, FITTED | COMPOSED)
}

/// Granules of the start of a block of a middle class.
pub(super) const CLASS_ALIGNMENT: u32 = (MIDDLE_STEP_BYTES / MIDDLE_GRANULE_BYTES) as u32;

/// Slots of one small class.
pub(super) struct Small {
    pub(super) slab: Slab,
    /// Pages without memory behind them, lowest first.
    bare: BinaryHeap<Reverse<u32>>,
    /// Pages that were ever used.
    used: u32,
    pages_max: u32,
    /// Pages that lie on the memory of others, by number.
    pub(super) guests: HashMap<u32, Guest>,
    /// Guests without live slots, whose addresses still lead to their hosts' memory.
    pub(super) left: Vec<u32>,
}

/// A page of which the live slots lie on another page's memory, at places that are not live there.
///
/// All of its slots are taken in the slab, so that nobody gets one; the places of its live slots are taken in the host
/// too, and become the host's to give when they are freed.
pub(super) struct Guest {
    pub(super) host: Host,
    /// Slots that are somebody's.
    pub(super) live: BTreeSet<u32>,
}

/// Whose memory the slots of a guest lie on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Host {
    /// Another page's of the same class.
    Page(u32),
    /// Its own, which is lent to the middle region and is the page there that begins with this granule.
    Run(u32),
}

impl Guest {
    /// The page whose memory its slots lie on, if it is one of slots.
    pub(super) fn host_page(&self) -> Option<u32> {
        if let Host::Page(page) = self.host { Some(page) } else { None }
    }
}

impl Small {
    fn new(class: Class, region_bytes: u64) -> Result<Self> {
        let slots = Slots::new(size_class::bytes_of(class));
        let pages_max = (region_bytes / super::super::region::SLAB_PAGE_BYTES).min(slots.pages_max()) as u32;
        let slab = Slab::new(slots.count, pages_max)?;
        let (guests, left) = (HashMap::new(), Vec::new());
        Ok(Self { slab, bare: BinaryHeap::new(), used: 0, pages_max, guests, left })
    }

    /// The lowest page without memory.
    pub(super) fn take_bare(&mut self) -> Option<u32> {
        if let Some(Reverse(page)) = self.bare.pop() {
            return Some(page);
        }
        (self.used < self.pages_max).then(|| {
            self.used += 1;
            self.used - 1
        })
    }

    /// Takes back a slot. An empty page keeps its memory until somebody trims.
    fn give(&mut self, page: u32, index: u32) -> Result<()> {
        let Some(guest) = self.guests.get_mut(&page) else {
            return self.slab.give(Slot { page, index }).map(drop);
        };
        if !guest.live.remove(&index) {
            return Err(Error::internal(format!("slot {index} of guest page {page} is not live")));
        }
        if let Host::Page(host) = guest.host {
            self.slab.give(Slot { page: host, index })?;
        }
        if guest.live.is_empty() {
            self.guests.remove(&page);
            self.drop_page(page)?;
            self.left.push(page);
        }
        Ok(())
    }

    /// Takes a page out of which all slots are taken.
    fn drop_page(&mut self, page: u32) -> Result<()> {
        (0..self.slab.slots_per_page())
            .try_for_each(|index| self.slab.give(Slot { page, index }).map(drop))?;
        self.slab.remove_page(page)
    }

    /// A page has no memory any more, or never got it.
    pub(super) fn give_bare(&mut self, page: u32) {
        self.bare.push(Reverse(page));
    }

    /// The pages of `[first, end)` that have none, which nobody is given from here on.
    pub(super) fn take_bare_in(&mut self, first: u32, end: u32) -> Vec<u32> {
        let is_inside = |page: &u32| (first..end).contains(page);
        let found = self.bare.iter().map(|Reverse(page)| *page).filter(is_inside).collect();
        self.bare.retain(|Reverse(page)| !is_inside(page));
        found
    }

    /// Whether a page was used, and neither has memory nor is to get any.
    pub(super) fn is_nowhere(&self, page: u32) -> bool {
        let is_listed = self.left.contains(&page) || self.bare.iter().any(|Reverse(bare)| *bare == page);
        page < self.used && !is_listed && self.slab.live_in(page).is_err()
    }
}

/// Everything under the lock.
pub(super) struct Core {
    pub(super) small: Vec<Option<Small>>,
    /// Granules with memory behind them.
    pub(super) middle: FreeList,
    /// Parts of the middle region without memory, in granules of `LARGE_GRANULE_BYTES`.
    pub(super) middle_bare: FreeList,
    /// Addresses of the large region.
    pub(super) large: FreeList,
    /// Large blocks that are free for all and still have their memory.
    pub(super) idle_large: Stretches,
    pub(super) idle_large_bytes: u64,
    pub(super) order: Order,
    pub(super) limbo: Limbos,
    /// First granules of the pages of the middle region that are the last ones of large blocks.
    pub(super) lent_ends: HashMap<u32, u32>,
    /// Live and freed blocks out of the ends of pages, by their first granules.
    pub(super) composed: HashMap<u32, Composed>,
    /// First and last pages of such blocks that are gone, in granules of `LARGE_GRANULE_BYTES`; they still have memory.
    pub(super) left_pages: Vec<u32>,
    /// Last pages of large blocks that are gone, in granules of the large region: addresses that still have memory.
    pub(super) left_ends: Vec<u32>,
    /// Addresses that get no memory while the device keeps a mapping there.
    pub(super) aside: BTreeSet<Aside>,
    /// Live blocks of small requests that are cut to their length, by the class of their bytes.
    pub(super) rare: [u32; size_class::SMALL_CLASS_COUNT],
    small_region_bytes: u64,
}

/// What ends the growth of middle sizes for good.
pub(super) fn addresses_used_up() -> Error {
    Error::new(Status::OutOfMemory, "the addresses of middle sizes are used up; free something")
}

impl Core {
    pub(super) fn new(small_region_bytes: u64, middle_bytes: u64, large_bytes: u64) -> Result<Self> {
        let granules = |bytes: u64, granule: u64| {
            u32::try_from(bytes / granule).map_err(|_| Error::internal("a region with too many granules"))
        };
        let middle = FreeList::new(granules(middle_bytes, MIDDLE_GRANULE_BYTES)?)?;
        let bare = granules(middle_bytes, LARGE_GRANULE_BYTES)?;
        let mut middle_bare = FreeList::new(bare)?;
        middle_bare.insert(0, bare)?;
        let large_granules = granules(large_bytes, LARGE_GRANULE_BYTES)?;
        let mut large = FreeList::new(large_granules)?;
        large.insert(0, large_granules)?;
        Ok(Self {
            small: (0..size_class::SMALL_CLASS_COUNT).map(|_| None).collect(),
            middle,
            middle_bare,
            large,
            idle_large: Stretches::new(LARGE, LARGE_GRANULE_BYTES),
            idle_large_bytes: 0,
            order: Order::of_heap(),
            limbo: Limbos::default(),
            lent_ends: HashMap::new(),
            left_ends: Vec::new(),
            aside: BTreeSet::new(),
            composed: HashMap::new(),
            left_pages: Vec::new(),
            rare: [0; size_class::SMALL_CLASS_COUNT],
            small_region_bytes,
        })
    }

    /// The slots of a small class.
    pub(super) fn small(&mut self, class: Class) -> Result<&mut Small> {
        let place = &mut self.small[class.index()];
        if place.is_none() {
            *place = Some(Small::new(class, self.small_region_bytes)?);
        }
        place.as_mut().ok_or_else(|| Error::internal("a class that was made just now"))
    }

    /// A block that every stream may have, out of what is backed.
    pub(super) fn take_free(&mut self, class: Class) -> Result<Option<u32>> {
        let bytes = size_class::bytes_of(class);
        if class.is_small() {
            let slots = Slots::new(bytes);
            let found = self.small(class)?.slab.take();
            return Ok(found.map(|slot| slots.index(slot.page, slot.index)));
        }
        self.middle.allocate((bytes / MIDDLE_GRANULE_BYTES) as u32, CLASS_ALIGNMENT)
    }

    /// As `take_free`, for a stream: the neighbours whose records lie in the same line of memory are the stream's then
    /// too, so that no other thread writes to that line.
    pub(super) fn take_line(&mut self, stream: Stream, class: Class) -> Result<Option<u32>> {
        let first = self.take_free(class)?;
        let Some(mut last) = first.filter(|_| class.is_small()) else { return Ok(first) };
        let bytes = size_class::bytes_of(class);
        let slots = Slots::new(bytes);
        // The lowest slots come first, so the next one is the neighbour, if it is free.
        while !(last + 1).is_multiple_of(LINE) && slots.place(last).1 + 1 < slots.count {
            let Some(next) = self.take_free(class)? else { break };
            self.order.free(stream, Freed { class: class.index() as u32, id: next.into(), bytes });
            last = next;
        }
        Ok(first)
    }

    /// A part of the middle region that has no memory: the lowest, at a multiple of `alignment`.
    pub(super) fn take_middle_bare(&mut self, pages: u32, alignment: u32) -> Result<u32> {
        let found = self.middle_bare.take_lowest(pages, alignment)?;
        let start = found.ok_or_else(addresses_used_up)?;
        // What has memory is a gap there, so that any part of it can come back.
        self.middle_bare.withdraw(start)?;
        Ok(start)
    }

    /// Takes back a block that every stream may have.
    pub(super) fn give_free(&mut self, block: Freed) -> Result<()> {
        if block.class == FITTED {
            return self.middle.free(block.id as u32).map(drop);
        }
        if block.class == COMPOSED {
            return self.take_apart(block);
        }
        let block = if block.class == LENDING { self.take_end_back(block)? } else { block };
        let Some(class) = Class::at(block.class as usize) else {
            self.idle_large_bytes += block.bytes;
            self.idle_large.insert(block);
            return Ok(());
        };
        if class.is_small() {
            let slots = Slots::new(block.bytes);
            let (page, index) = slots.place(block.id as u32);
            self.take_slot_back(class, slots, (page, index))?;
            return self.small(class)?.give(page, index);
        }
        self.middle.free(block.id as u32).map(drop)
    }

    /// Whether something waits for a point, or for one to be recorded.
    pub(super) fn is_waiting(&self) -> bool {
        self.order.is_any_closed() || self.order.is_any_over() || !self.limbo.is_empty()
    }

    /// Proves what can be proved here.
    pub(super) fn validate(&self) -> Result<()> {
        self.order.validate()?;
        self.limbo.validate()?;
        self.idle_large.validate()?;
        self.middle.validate()?;
        self.middle_bare.validate()?;
        self.large.validate()?;
        self.prove_bare()?;
        self.prove_lent()?;
        self.prove_composed()?;
        self.prove_aside()?;
        self.small.iter().flatten().try_for_each(Small::validate)
    }
}
