//! What is free of pages that others have begun, for runs of granules, where memory is short.
//!
//! A page of slots stays for one live slot, and the last page of a large block for its first kilobyte. What was
//! allocated while there was plenty lives longest, so such pages cost one to two percent at a limit. Here the page is
//! mapped a second time, in the middle region: what is in use of it is a used run there, the rest is free like
//! any other. No byte moves and no address changes, so nobody has to hold still; and no byte is in use at both of its
//! addresses, so what a processor has cached by address never disagrees.
//! What it does not: lend pages that are pinned, shared by a mesh, larger than 2 MiB or more than half full, or
//! what belongs to a graph. A lent page of slots gets no new block; its last slot that is freed leaves it to the middle
//! region alone. So does a large block, which is everybody's, and without that page, once all work on it is past.
//! Invariants, checked by `validate()`: a live slot of a lent page and the begun part of a lent end are used in
//! `middle`, until they are free for all. A page counts as the middle region's from when it is lent.
//! Lock order: `growing`, then `names`, then `core`, then a page table's.

use std::collections::HashMap;
use std::sync::Arc;

use super::super::free_list::State;
use super::super::order::Freed;
use super::super::physical::PhysicalPage;
use super::super::records::{Facts, Record};
use super::super::region::{Cut, LARGE_GRANULE_BYTES, MIDDLE_GRANULE_BYTES, Region, SLAB_PAGE_BYTES, Slots};
use super::super::size_class::{self, Class};
use super::super::slab::Slot;
use super::core::{Core, FITTED, Guest, Host, LENDING};
use super::fitted::granules;
use super::mesh::holds_captured;
use super::planted::Mistake;
use super::{Heap, LARGE, MIDDLE, Names, core};
use crate::error::{Error, Result, Status};

/// Granules of a page.
const EACH: u32 = (LARGE_GRANULE_BYTES / MIDDLE_GRANULE_BYTES) as u32;

/// Pages that are lent at a time, the emptiest first: each costs a mapping, and somebody waits.
const AT_A_TIME: usize = 64;

/// Free bytes for which the end of a block is lent.
const WORTH_A_MAPPING_BYTES: u64 = 64 << 10;

/// A lent page lies in the middle of so many pages without memory: what is free at its ends goes on there.
const ROOM_PAGES: u32 = 32;

/// Pages that get such room at a time. Addresses cost records, which a walk over all live blocks passes.
const WITH_ROOM: usize = 8;

/// Granules that a slot touches, counted from its page.
fn touched(slots: Slots, index: u32) -> (u32, u32) {
    let start = u64::from(index) * slots.bytes;
    ((start / MIDDLE_GRANULE_BYTES) as u32, granules(start + slots.bytes))
}

/// Granules that any of the slots touches, neighbours as one; the slots ascend.
fn runs(slots: Slots, live: impl IntoIterator<Item = u32>) -> Vec<(u32, u32)> {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for (low, high) in live.into_iter().map(|index| touched(slots, index)) {
        match runs.last_mut().filter(|run| low <= run.1) {
            Some(run) => run.1 = high,
            None => runs.push((low, high)),
        }
    }
    runs
}

/// Bytes in use on the last page of a large block.
fn begun_bytes(facts: &Facts) -> u64 {
    (facts.bytes - 1) % LARGE_GRANULE_BYTES + 1
}

/// Whether the last page of a live large block can be lent.
fn has_loose_end(facts: &Facts) -> bool {
    u32::from(facts.class) == core::LARGE
        && !facts.is_captured
        && facts.bytes > LARGE_GRANULE_BYTES
        && LARGE_GRANULE_BYTES - begun_bytes(facts) >= WORTH_A_MAPPING_BYTES
}

impl Heap {
    /// Lends what is free of pages of slots that are half empty and of the last pages of large blocks, some of them.
    pub(super) fn lend(&self) -> Result<()> {
        let _growing = self.growing.lock();
        let lent = self.lend_slots().and_then(|()| self.lend_ends());
        match lent {
            // What is not lent stays as it was.
            Err(error) if matches!(error.status, Status::OutOfMemory | Status::OutOfHostMemory) => Ok(()),
            other => other,
        }
    }

    fn lend_slots(&self) -> Result<()> {
        let mut found: Vec<(u64, Class, u32)> = Vec::new();
        for class in (0..size_class::SMALL_CLASS_COUNT).filter_map(Class::at) {
            let bytes = size_class::bytes_of(class);
            let freed_of_graphs = self.freed_of_graphs(class, Slots::new(bytes));
            let mut core = self.core.lock();
            let Some(small) = core.small.get_mut(class.index()).and_then(Option::as_mut) else { continue };
            let pages = small.slab.open_pages().filter(|(page, _)| !small.guests.contains_key(page));
            let pages = pages.filter(|(page, _)| !freed_of_graphs.contains(page));
            let pages = pages.map(|(page, live)| (u64::from(live) * bytes, class, page));
            found.extend(pages.filter(|(live_bytes, ..)| is_worth_lending(*live_bytes)));
        }
        found.sort_by_key(|&(live_bytes, class, page)| (live_bytes, class.index(), page));
        for (at, (_, class, page)) in found.into_iter().take(AT_A_TIME).enumerate() {
            let Some(region) = self.regions.get(class.index()) else { continue };
            let Cut::Slots(slots) = region.cut else {
                return Err(Error::internal("a small class of granules"));
            };
            if holds_captured(region, slots, page) {
                continue;
            }
            let offset = u64::from(page) * SLAB_PAGE_BYTES;
            let begin = |core: &mut Core, first| core.lend_slots(class, slots, page, first);
            self.lend_page(region, offset, at < WITH_ROOM, begin)?;
        }
        Ok(())
    }

    fn lend_ends(&self) -> Result<()> {
        let Some(region) = self.regions.get(LARGE) else { return Ok(()) };
        let blocks: Vec<(u32, u32)> = {
            let core = self.core.lock();
            let used = core.large.ranges().filter(|range| range.state == State::Used);
            used.map(|range| (range.start, range.count)).collect()
        };
        let records = blocks.into_iter().filter_map(|block| Some((block, region.records.get(block.0)?)));
        let is_loose = |record: &Record| record.facts().as_ref().is_some_and(has_loose_end);
        let loose = records.filter(|(_, record)| is_loose(record)).take(AT_A_TIME);
        for (at, (block, record)) in loose.enumerate() {
            let offset = u64::from(block.0 + block.1 - 1) * LARGE_GRANULE_BYTES;
            let names = self.names.read();
            let is_for_all = self.has(Mistake::EndForAll);
            let begin = |core: &mut Core, first| core.lend_end(&names, block, record, (first, is_for_all));
            self.lend_page(region, offset, at < WITH_ROOM, begin)?;
        }
        Ok(())
    }

    /// Maps the page at `offset` in the middle region too. `begin` gets the granule that it begins with there, puts it
    /// into the lists, and says whether it did. Whoever calls has the growth to itself.
    fn lend_page(
        &self,
        region: &Region,
        offset: u64,
        has_room: bool,
        begin: impl FnOnce(&mut Core, u32) -> Result<bool>,
    ) -> Result<()> {
        let (from, from_end) = region.pages(offset, LARGE_GRANULE_BYTES);
        let Some(page) = region.range.own_page(from, from_end) else { return Ok(()) };
        let middle = self.region(MIDDLE)?;
        let pages = [page];
        let place = self.pass_over(MIDDLE, || self.map_again(middle, &pages, has_room))?;
        drop(pages);
        let Some(place) = place else { return Ok(()) };
        let lent = begin(&mut self.core.lock(), place * EACH);
        if matches!(lent, Ok(true)) {
            region.range.count_elsewhere(from);
            return Ok(());
        }
        middle.unback(u64::from(place) * LARGE_GRANULE_BYTES, LARGE_GRANULE_BYTES)?;
        self.core.lock().middle_bare.insert(place, 1)?;
        lent.map(drop)
    }

    /// Maps one page at addresses of the middle region too: where.
    fn map_again(
        &self,
        middle: &Region,
        page: &[Arc<PhysicalPage>; 1],
        has_room: bool,
    ) -> Result<Option<u32>> {
        let Some(place) = self.core.lock().take_room(1, has_room)? else { return Ok(None) };
        let (to, to_end) = middle.pages(u64::from(place) * LARGE_GRANULE_BYTES, LARGE_GRANULE_BYTES);
        let last = place * EACH + EACH - 1;
        let mapped = middle.records.grow(last).and_then(|()| middle.range.back_with(to, to_end, page));
        if !matches!(mapped, Ok(true)) {
            self.core.lock().middle_bare.insert(place, 1)?;
        }
        mapped.map(|is_mapped| is_mapped.then_some(place))
    }

    /// Takes the memory away from behind the ends of large blocks that are gone: it is the middle region's now.
    pub(super) fn leave_ends(&self, region: &Region) -> Result<()> {
        loop {
            let Some(end) = self.core.lock().left_ends.pop() else { return Ok(()) };
            let gone = region.unback(u64::from(end) * LARGE_GRANULE_BYTES, LARGE_GRANULE_BYTES);
            self.core.lock().large.free(end)?;
            gone?;
        }
    }

    /// Undoes all loans of pages of slots of which nobody has taken anything.
    pub(super) fn take_slots_back(&self) -> Result<()> {
        let _growing = self.growing.lock();
        let Some(middle) = self.regions.get(MIDDLE) else { return Ok(()) };
        for class in (0..size_class::SMALL_CLASS_COUNT).filter_map(Class::at) {
            let Some(region) = self.regions.get(class.index()) else { continue };
            let Cut::Slots(slots) = region.cut else {
                return Err(Error::internal("a small class of granules"));
            };
            let lent = self.core.lock().small(class)?.lent_pages();
            for (page, first) in lent {
                if !self.core.lock().end_loan(class, slots, page, first)? {
                    continue;
                }
                let (from, _) = region.pages(u64::from(page) * SLAB_PAGE_BYTES, SLAB_PAGE_BYTES);
                let (to, _) =
                    middle.pages(u64::from(first / EACH) * LARGE_GRANULE_BYTES, LARGE_GRANULE_BYTES);
                region.range.count_here(from);
                middle.range.count_elsewhere(to);
                middle.unback(u64::from(first / EACH) * LARGE_GRANULE_BYTES, LARGE_GRANULE_BYTES)?;
                self.core.lock().middle_bare.insert(first / EACH, 1)?;
            }
        }
        Ok(())
    }
}

/// Whether a page of slots with so many live bytes is lent.
fn is_worth_lending(live_bytes: u64) -> bool {
    live_bytes > 0 && 2 * live_bytes <= SLAB_PAGE_BYTES
}

impl core::Small {
    /// Lent pages of slots, each with the granule that it begins with in the middle region.
    fn lent_pages(&self) -> Vec<(u32, u32)> {
        let host = |guest: &Guest| if let Host::Run(first) = guest.host { Some(first) } else { None };
        self.guests.iter().filter_map(|(&page, guest)| Some((page, host(guest)?))).collect()
    }
}

impl Core {
    /// Addresses for pages that have memory elsewhere too: so many of the middle region, between others without memory.
    pub(super) fn take_room(&mut self, pages: u32, has_room: bool) -> Result<Option<u32>> {
        let room = if has_room { ROOM_PAGES } else { 0 };
        let Some(start) = self.middle_bare.take_lowest(room + pages, 1)? else { return Ok(None) };
        self.middle_bare.free(start)?;
        let page = start + room / 2;
        self.middle_bare.carve(page, pages)?;
        self.middle_bare.withdraw(page)?;
        Ok(Some(page))
    }

    /// Puts what is free of a page of slots into the middle region, where it begins with granule `first`.
    fn lend_slots(&mut self, class: Class, slots: Slots, page: u32, first: u32) -> Result<bool> {
        let slab = &self.small(class)?.slab;
        let is_live = |&index: &u32| slab.is_live(Slot { page, index });
        let (live, free): (Vec<u32>, Vec<u32>) = (0..slots.count).partition(is_live);
        // Slots may have come and gone meanwhile.
        if !is_worth_lending(live.len() as u64 * slots.bytes) {
            return Ok(false);
        }
        let runs = runs(slots, live.iter().copied());
        self.middle.reserve_nodes(2 * runs.len() as u32 + 4)?;
        self.middle.insert(first, EACH)?;
        runs.iter().try_for_each(|&(low, high)| self.middle.carve(first + low, high - low))?;
        let small = self.small(class)?;
        free.into_iter().try_for_each(|index| small.slab.claim(Slot { page, index }))?;
        small.guests.insert(page, Guest { host: Host::Run(first), live: live.into_iter().collect() });
        Ok(true)
    }

    /// Puts the end of a live block into the middle region, where its page begins with granule `first`. What is free of
    /// it goes to all in the order of the block's stream: who had the block before may be at work on it. Of a stream
    /// that is gone nobody knows.
    fn lend_end(
        &mut self,
        names: &Names,
        (start, count): (u32, u32),
        record: &Record,
        (first, is_for_all): (u32, bool),
    ) -> Result<bool> {
        self.middle.reserve_nodes(8)?;
        // Nobody gets a freed block meanwhile, so it is this one or none.
        let Some(facts) = record.facts().filter(has_loose_end) else { return Ok(false) };
        let Some(stream) = names.streams.stream_in_use(facts.stream) else { return Ok(false) };
        if self.large.size_of(start) != Some(count) || !record.reclass(&facts, LENDING as u8) {
            return Ok(false);
        }
        let begun = granules(begun_bytes(&facts));
        self.middle.insert(first, EACH)?;
        self.middle.carve(first, begun)?;
        self.middle.carve(first + begun, EACH - begun)?;
        self.lent_ends.insert(start, first);
        let bytes = u64::from(EACH - begun) * MIDDLE_GRANULE_BYTES;
        let end = Freed { class: FITTED, id: (first + begun).into(), bytes };
        if is_for_all {
            self.give_free(end)?;
        } else {
            self.order.free(stream, end);
        }
        Ok(true)
    }

    /// The page is one of slots again, if nobody has taken anything of it; the middle region's addresses are a gap.
    fn end_loan(&mut self, class: Class, slots: Slots, page: u32, first: u32) -> Result<bool> {
        let small = self.small(class)?;
        let Some(guest) = small.guests.get(&page).filter(|guest| guest.host == Host::Run(first)) else {
            return Ok(false);
        };
        let live = guest.live.clone();
        let runs = runs(slots, live.iter().copied());
        let is_used = |at: u32| self.middle.range_at(at).is_some_and(|range| range.state == State::Used);
        let (mut at, mut others) = (0, false);
        for &(low, high) in runs.iter().chain([&(EACH, EACH)]) {
            let free = self.middle.range_at(first + at).filter(|_| at < low);
            let is_free = free
                .is_none_or(|range| range.state == State::Free && range.start + range.count >= first + low);
            others |= !is_free || (low < high && !is_used(first + low));
            at = high;
        }
        if others {
            return Ok(false);
        }
        self.middle.reserve_nodes(8)?;
        for &(low, high) in &runs {
            self.middle.free_part(first + low, high - low)?;
        }
        self.middle.carve(first, EACH)?;
        self.middle.withdraw(first)?;
        let small = self.small(class)?;
        small.guests.remove(&page);
        let free = (0..slots.count).filter(|index| !live.contains(index));
        free.into_iter().try_for_each(|index| small.slab.give(Slot { page, index }).map(drop))?;
        Ok(true)
    }

    /// Frees what a slot of a lent page had in the middle region. A neighbour keeps what it shares.
    pub(super) fn take_slot_back(
        &mut self,
        class: Class,
        slots: Slots,
        (page, index): (u32, u32),
    ) -> Result<()> {
        let Some(guest) = self.small(class)?.guests.get(&page) else { return Ok(()) };
        let Host::Run(first) = guest.host else { return Ok(()) };
        if !guest.live.contains(&index) {
            return Ok(());
        }
        let (mut low, mut high) = touched(slots, index);
        if let Some(&below) = guest.live.range(..index).next_back() {
            low = low.max(touched(slots, below).1);
        }
        if let Some(&above) = guest.live.range(index + 1..).next() {
            high = high.min(touched(slots, above).0);
        }
        if low < high { self.middle.free_part(first + low, high - low) } else { Ok(()) }
    }

    /// A large block of which the end was lent is past: the end stays where it was lent to, the rest is left.
    pub(super) fn take_end_back(&mut self, block: Freed) -> Result<Freed> {
        let start = block.id as u32;
        let Some(&first) = self.lent_ends.get(&start) else {
            return Err(Error::internal("a lent end that is not known"));
        };
        let rest = (block.bytes / LARGE_GRANULE_BYTES) as u32 - 1;
        self.large.reserve_nodes(4)?;
        self.middle.free(first)?;
        self.lent_ends.remove(&start);
        self.large.free(start)?;
        self.large.carve(start, rest)?;
        self.large.carve(start + rest, 1)?;
        self.left_ends.push(start + rest);
        Ok(Freed { class: core::LARGE, id: block.id, bytes: block.bytes - LARGE_GRANULE_BYTES })
    }

    /// Whether a granule is used because a page has other addresses too.
    #[cfg(test)]
    pub(super) fn is_kept_for_pages_of_others(&self, is_large: bool, start: u32) -> bool {
        if is_large {
            return self.left_ends.contains(&start);
        }
        let is_of_slots = self.small.iter().enumerate().any(|(class, small)| {
            let (Some(class), Some(small)) = (Class::at(class), small) else { return false };
            let slots = Slots::new(size_class::bytes_of(class));
            small.lent_pages().into_iter().any(|(page, first)| {
                let live = small.guests.get(&page).map(|guest| guest.live.iter().copied());
                let mut runs = runs(slots, live.into_iter().flatten()).into_iter();
                runs.any(|(low, high)| (first + low..first + high).contains(&start))
            })
        });
        is_of_slots
            || self.lent_ends.values().any(|&first| first == start)
            || self.is_kept_for_composed(start)
    }

    /// What is in use of lent pages is used where they were lent to.
    pub(super) fn prove_lent(&self) -> Result<()> {
        let is_used =
            |granule: u32| self.middle.range_at(granule).is_some_and(|range| range.state == State::Used);
        let broken = |what: String| Err(Error::internal(format!("heap: {what}")));
        for (class, small) in self.small.iter().enumerate() {
            let (Some(class), Some(small)) = (Class::at(class), small) else { continue };
            let slots = Slots::new(size_class::bytes_of(class));
            for (page, first) in small.lent_pages() {
                let live = small.guests.get(&page).map(|guest| guest.live.iter().copied());
                let runs = runs(slots, live.into_iter().flatten());
                let mut granules = runs.into_iter().flat_map(|(low, high)| first + low..first + high);
                if let Some(granule) = granules.find(|&granule| !is_used(granule)) {
                    return broken(format!(
                        "page {page} of slots is lent from {first} on, {granule} is free"
                    ));
                }
            }
        }
        let firsts: HashMap<u32, u32> =
            self.lent_ends.iter().map(|(&start, &first)| (first, start)).collect();
        let is_right = |(&first, &start): (&u32, &u32)| is_used(first) && self.large.size_of(start).is_some();
        if firsts.len() != self.lent_ends.len() || !firsts.iter().all(is_right) {
            return broken(format!("ends of large blocks are not lent as they are said to be: {firsts:?}"));
        }
        match self.left_ends.iter().find(|&&end| self.large.size_of(end) != Some(1)) {
            Some(end) => broken(format!("the end {end} was left, and is in other hands")),
            None => Ok(()),
        }
    }
}
