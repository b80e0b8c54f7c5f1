//! The proof that a heap's books are what they say, from the lists and records themselves.
//!
//! What it does: walks over everything that is free, freed or live. What it does not: look into front caches, or say
//! what memory holds. Each rule holds whenever the two locks are held, also while other threads are inside of calls.
//! Lock order: `growing`, then `core`, then `captured`; then `pinned`, then each page table's.

use std::collections::HashSet;

use super::super::free_list::{FreeList, State};
use super::super::order::Freed;
use super::super::region::{LARGE_GRANULE_BYTES, MIDDLE_GRANULE_BYTES, Slots};
use super::super::size_class::{self, Class};
use super::super::slab::Slot;
use super::core::{Core, FITTED, Small, is_run};
use super::fitted::rare_class;
use super::{Heap, LARGE, MIDDLE};
use crate::error::{Error, Result};

/// Granules of a middle block in one of a large one.
const EACH: u32 = (LARGE_GRANULE_BYTES / MIDDLE_GRANULE_BYTES) as u32;

/// Region and id of a block.
type Place = (usize, u64);

fn place(block: &Freed) -> Place {
    let class = Class::at(block.class as usize);
    let region = match class {
        Some(class) if class.is_small() => class.index(),
        None if !is_run(block.class) => LARGE,
        _ => MIDDLE,
    };
    (region, block.id)
}

fn ensure(holds: bool, what: impl FnOnce() -> String) -> Result<()> {
    if holds { Ok(()) } else { Err(Error::internal(format!("heap: {}", what()))) }
}

impl Heap {
    /// Proves every invariant. Waits for a growth that is under way.
    pub fn validate(&self) -> Result<()> {
        {
            // While middle sizes grow, their new pages are in neither of two lists.
            let _growing = self.growing.lock();
            let core = self.core.lock();
            core.validate()?;
            let captured: Vec<Freed> = self.captured.lock().values().flatten().copied().collect();
            let freed = core.prove_freed(&captured)?;
            self.prove_live(&core, &freed)?;
        }
        self.prove_pins()?;
        self.regions.iter().try_for_each(|(_, region)| region.range.validate())
    }

    /// Of a heap that was closed without live blocks: all that is used of middle and large sizes is in a list of freed
    /// ones, and nothing was lost on its way.
    #[cfg(test)]
    pub(super) fn prove_whole(&self) -> Result<()> {
        let core = self.core.lock();
        let captured: Vec<Freed> = self.captured.lock().values().flatten().copied().collect();
        // What is wrong with the lists themselves is found by `validate`.
        let Ok(freed) = core.prove_freed(&captured) else { return Ok(()) };
        for (number, list) in [(MIDDLE, &core.middle), (LARGE, &core.large)] {
            let used = list.ranges().filter(|range| range.state == State::Used);
            let is_known = |start: u32| {
                freed.contains(&(number, start.into()))
                    || core.is_kept_for_pages_of_others(number == LARGE, start)
            };
            let lost: Vec<_> = used.filter(|range| !is_known(range.start)).collect();
            ensure(lost.is_empty(), || format!("used and nobody's, in region {number}: {lost:?}"))?;
        }
        Ok(())
    }

    /// What pages are pinned is what live blocks have pinned.
    fn prove_pins(&self) -> Result<()> {
        let pinned = self.pinned.lock();
        let of_pages: u64 = self.regions.iter().map(|(_, region)| region.range.pins()).sum();
        let of_blocks: u64 = pinned.values().map(|&count| u64::from(count)).sum();
        ensure(of_pages == of_blocks, || format!("{of_pages} pins of pages, {of_blocks} of blocks"))?;
        let is_kept = |address| self.live(address).is_ok_and(|(.., facts)| facts.is_shared);
        let loose = pinned.keys().find(|&&address| !is_kept(address));
        ensure(loose.is_none(), || format!("pinned, but not live or not said to be: {loose:x?}"))
    }

    /// Live blocks are in use with their length, and in no list of freed ones.
    fn prove_live(&self, core: &Core, freed: &HashSet<Place>) -> Result<()> {
        let mut rare = [0; size_class::SMALL_CLASS_COUNT];
        for (_, region) in self.regions.iter() {
            for (index, facts) in region.records.live() {
                let class = u32::from(facts.class);
                let bytes = match Class::at(facts.class.into()) {
                    Some(class) => size_class::bytes_of(class),
                    None if is_run(class) => facts.bytes.next_multiple_of(MIDDLE_GRANULE_BYTES),
                    None => facts.bytes.next_multiple_of(LARGE_GRANULE_BYTES),
                };
                let block = Freed { class, id: index.into(), bytes };
                ensure(core.is_used(&block), || format!("a live block that is not in use: {block:?}"))?;
                ensure(!freed.contains(&place(&block)), || format!("live and freed: {block:?}"))?;
                if class == FITTED
                    && let Some(class) = rare_class(facts.bytes)
                {
                    rare[class] += 1;
                }
            }
        }
        // Whoever is about to open or has just closed a record is counted.
        ensure(rare.iter().zip(&core.rare).all(|(live, counted)| live <= counted), || {
            format!("{rare:?} live blocks of their own length, {:?} counted", core.rare)
        })
    }
}

impl Core {
    /// Everything that is freed and not free is in use for everybody else, and in one list.
    fn prove_freed(&self, captured: &[Freed]) -> Result<HashSet<Place>> {
        let idle_bytes: u64 = self.idle_large.blocks().map(|block| block.bytes).sum();
        ensure(idle_bytes == self.idle_large_bytes, || {
            format!("{idle_bytes} bytes of idle large blocks, {} counted", self.idle_large_bytes)
        })?;
        let mut freed = HashSet::new();
        let captured = captured.iter().copied();
        for block in
            self.idle_large.blocks().chain(self.limbo.blocks()).chain(self.order.blocks()).chain(captured)
        {
            ensure(freed.insert(place(&block)), || format!("freed twice: {block:?}"))?;
            ensure(self.is_used(&block), || format!("freed, and free for all as well: {block:?}"))?;
        }
        for place in self.aside_runs() {
            ensure(freed.insert(place), || format!("freed, and set aside as well: {place:?}"))?;
        }
        Ok(freed)
    }

    /// Whether a block is taken, with its length, where it lies.
    fn is_used(&self, block: &Freed) -> bool {
        let has = |list: &FreeList, granule: u64| {
            let count = u32::try_from(block.id).ok().and_then(|start| list.size_of(start));
            count.is_some_and(|count| u64::from(count) * granule == block.bytes)
        };
        match Class::at(block.class as usize) {
            Some(class) if class.is_small() => {
                let (page, index) = Slots::new(block.bytes).place(block.id as u32);
                let small = self.small.get(class.index()).and_then(Option::as_ref);
                small.is_some_and(|small| small.is_used(page, index))
            }
            None if !is_run(block.class) => has(&self.large, LARGE_GRANULE_BYTES),
            _ => has(&self.middle, MIDDLE_GRANULE_BYTES),
        }
    }

    /// What has no memory in the middle region is what can get some.
    pub(super) fn prove_bare(&self) -> Result<()> {
        let of = |list: &FreeList, state: State, each: u32| -> Vec<(u32, u32)> {
            let ranges = list.ranges().filter(|range| range.state == state);
            ranges.map(|range| (range.start * each, range.count * each)).collect()
        };
        let (gaps, bare) = (of(&self.middle, State::Gap, 1), of(&self.middle_bare, State::Free, EACH));
        ensure(gaps == bare, || format!("gaps {gaps:?} of middle sizes, but {bare:?} without memory"))
    }
}

impl Small {
    /// Whether a slot is somebody's.
    fn is_used(&self, page: u32, index: u32) -> bool {
        match self.guests.get(&page) {
            Some(guest) => guest.live.contains(&index),
            None => self.slab.is_live(Slot { page, index }),
        }
    }

    /// The slab's own rules, and those of guests.
    pub(super) fn validate(&self) -> Result<()> {
        self.slab.validate()?;
        for (&page, guest) in &self.guests {
            let is_full = self.slab.live_in(page)? == self.slab.slots_per_page();
            let host = guest.host_page();
            let is_hosted = |&index: &u32| host.is_none_or(|page| self.slab.is_live(Slot { page, index }));
            let is_right = !guest.live.is_empty()
                && host.is_none_or(|host| !self.guests.contains_key(&host))
                && guest.live.iter().all(is_hosted);
            ensure(is_full && is_right, || {
                format!("page {page} lies on the memory of {:?}, with {:?} live", guest.host, guest.live)
            })?;
        }
        Ok(())
    }
}
