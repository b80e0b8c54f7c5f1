//! Defragmentation without moving an address: empty pages go back, and half-empty pages of slots share their memory.
//!
//! Two pages of one class whose live slots lie at different places fit on one physical page. The live slots of one, the
//! guest, are copied to the same places of the other, the host; then the guest's addresses lead to the host's memory,
//! and its own goes back. The idea is that of the Mesh allocator for C programs (Powers and others, PLDI 2019), with
//! a remapping driver in place of the operating system.
//! What it does not: touch pages that are pinned or hold memory of a captured graph. Nobody may enqueue work on live
//! allocations meanwhile: the caller's promise.
//! Invariants: a place of a host's memory is live for one page at most; the bytes of every live slot are those from
//! before, whatever call fails.

use std::collections::BTreeSet;

use super::super::region::{Cut, Region, SLAB_PAGE_BYTES, Slots};
use super::super::size_class::{self, Class};
use super::super::slab::Slot;
use super::Heap;
use super::core::{Guest, Host, Small};
use crate::device::{Copy, Place, Stream};
use crate::error::{Error, Result, Status};

/// A device that refuses to be waited for is asked so often.
const WAITS_MAX: u32 = 16;
/// Hosts that a page is compared with.
const HOSTS_TRIED: usize = 64;

/// What a defragmentation did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Defragmented {
    /// Physical memory behind the heap before.
    pub before_bytes: u64,
    /// And after.
    pub after_bytes: u64,
    /// Pages of slots that lie on the memory of others now.
    pub meshed_pages: u64,
    /// Live bytes that were copied for that.
    pub copied_bytes: u64,
}

impl Heap {
    /// Gives empty memory back and meshes pages of slots, copying at most `budget_bytes` (0: no limit). Waits for all
    /// work on the device. Refused while a stream is known to be captured: the program works on its blocks. Blocks.
    pub fn defragment(&self, budget_bytes: u64) -> Result<Defragmented> {
        if self.is_any_capturing() {
            let text = "a graph is being captured, and meshing wants quiet; end the capture first";
            return Err(Error::new(Status::WrongState, text));
        }
        let mut done =
            Defragmented { before_bytes: self.statistics().backed_bytes, ..Defragmented::default() };
        self.device.synchronize()?;
        self.give_back()?;
        self.device.synchronize()?;
        self.collect()?;
        self.trim()?;
        // A lent page is in use at two places and cannot be meshed.
        self.take_slots_back()?;
        for class in (0..size_class::SMALL_CLASS_COUNT).filter_map(Class::at) {
            let Some(region) = self.regions.get(class.index()) else { continue };
            self.mesh_class(class, region, budget_bytes, &mut done)?;
        }
        self.physical.trim(0);
        done.after_bytes = self.statistics().backed_bytes;
        Ok(done)
    }

    fn mesh_class(
        &self,
        class: Class,
        region: &Region,
        budget_bytes: u64,
        done: &mut Defragmented,
    ) -> Result<()> {
        let Cut::Slots(slots) = region.cut else { return Err(Error::internal("a small class of granules")) };
        // Nobody grows or trims meanwhile, so pages stay where they are.
        let _growing = self.growing.lock();
        for (guest, host) in self.mesh_plan(class, region, slots)? {
            let left = budget_bytes.saturating_sub(done.copied_bytes);
            let Some(live) = self.core.lock().small(class)?.begin_mesh(guest, host)? else { continue };
            let bytes = live.len() as u64 * slots.bytes;
            let is_affordable = budget_bytes == 0 || bytes <= left;
            let meshed =
                if is_affordable { self.mesh(region, slots, (guest, host), &live) } else { Ok(false) };
            if matches!(meshed, Ok(true)) {
                done.meshed_pages += 1;
                done.copied_bytes += bytes;
                continue;
            }
            self.core.lock().small(class)?.undo_mesh(guest)?;
            meshed?;
            if !is_affordable {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Pages with a slot that a graph has and that was freed: it writes where it was told to all the same.
    pub(super) fn freed_of_graphs(&self, class: Class, slots: Slots) -> BTreeSet<u32> {
        let captured = self.captured.lock();
        let blocks = captured.values().flatten().filter(|block| block.class == class.index() as u32);
        blocks.map(|block| slots.place(block.id as u32).0).collect()
    }

    /// Pairs of guest and host, the fullest pages first, so that they become hosts.
    fn mesh_plan(&self, class: Class, region: &Region, slots: Slots) -> Result<Vec<(u32, u32)>> {
        let freed_of_graphs = self.freed_of_graphs(class, slots);
        let mut core = self.core.lock();
        let small = core.small(class)?;
        let hosts_of_guests: BTreeSet<u32> = small.guests.values().filter_map(Guest::host_page).collect();
        let mut pages: Vec<(u32, u32)> = small
            .slab
            .open_pages()
            .filter(|(page, live)| *live > 0 && !small.guests.contains_key(page))
            .filter(|(page, _)| !freed_of_graphs.contains(page) && !holds_captured(region, slots, *page))
            .collect();
        pages.sort_by_key(|&(page, live)| (std::cmp::Reverse(live), page));
        let words = |page: u32| -> Result<Vec<u64>> { Ok(small.slab.live_words(page)?.collect()) };
        let mut hosts: Vec<(u32, Vec<u64>)> = Vec::new();
        let mut plan = Vec::new();
        for (page, _) in pages {
            let live = words(page)?;
            let is_host = hosts_of_guests.contains(&page);
            let fits =
                |host: &&mut (u32, Vec<u64>)| host.1.iter().zip(&live).all(|(word, other)| word & other == 0);
            match hosts.iter_mut().rev().take(HOSTS_TRIED).find(fits) {
                Some((host, taken)) if !is_host => {
                    taken.iter_mut().zip(&live).for_each(|(word, other)| *word |= other);
                    plan.push((page, *host));
                }
                _ => hosts.push((page, live)),
            }
        }
        Ok(plan)
    }

    /// Copies the live slots of the guest and puts the host's memory behind it.
    fn mesh(&self, region: &Region, slots: Slots, (guest, host): (u32, u32), live: &[u32]) -> Result<bool> {
        let place = |page: u32, index: u32| {
            let offset = u64::from(page) * SLAB_PAGE_BYTES + u64::from(index) * slots.bytes;
            region.slice(offset, slots.bytes).map(Place::Device)
        };
        let copy = |&index: &u32| Ok(Copy { target: place(host, index)?, source: place(guest, index)? });
        let copies: Vec<Copy> = live.iter().map(copy).collect::<Result<_>>()?;
        let copied = self.device.copy_batch(Stream::DEFAULT, &copies);
        // If this ends here the places in the host's memory are anybody's again, so no copy may be on its way to them.
        let waited = (1..WAITS_MAX).find_map(|_| self.device.synchronize().ok());
        copied.and_then(|()| waited.map_or_else(|| self.device.synchronize(), Ok))?;
        region.mesh(guest, host)
    }
}

/// Whether a live block of the page belongs to a graph.
pub(super) fn holds_captured(region: &Region, slots: Slots, page: u32) -> bool {
    (0..slots.count).any(|slot| {
        let facts = region.records.get(slots.index(page, slot)).and_then(|record| record.facts());
        facts.is_some_and(|facts| facts.is_captured)
    })
}

impl Small {
    /// Takes the places of the guest's live slots in the host, and the rest of the guest out of circulation. Nothing
    /// if they meet.
    fn begin_mesh(&mut self, guest: u32, host: u32) -> Result<Option<Vec<u32>>> {
        if !self.slab.disjoint(guest, host)? {
            return Ok(None);
        }
        let count = self.slab.slots_per_page();
        let is_live = |&index: &u32| self.slab.is_live(Slot { page: guest, index });
        let (live, free): (Vec<u32>, Vec<u32>) = (0..count).partition(is_live);
        live.iter().try_for_each(|&index| self.slab.claim(Slot { page: host, index }))?;
        free.iter().try_for_each(|&index| self.slab.claim(Slot { page: guest, index }))?;
        self.guests.insert(guest, Guest { host: Host::Page(host), live: live.iter().copied().collect() });
        Ok(Some(live))
    }

    /// The guest stays on its own memory.
    fn undo_mesh(&mut self, guest: u32) -> Result<()> {
        // Without an entry its last slot was freed meanwhile, and it is on the list of those that left.
        let Some(Guest { host: Host::Page(host), live }) = self.guests.remove(&guest) else { return Ok(()) };
        for index in 0..self.slab.slots_per_page() {
            let page = if live.contains(&index) { host } else { guest };
            self.slab.give(Slot { page, index })?;
        }
        Ok(())
    }
}
