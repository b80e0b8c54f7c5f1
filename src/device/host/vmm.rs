//! Virtual memory of the host device: reserved addresses, physical pages, and the mappings between them.
//!
//! One memory file per device stands for physical memory: a page is a run of its offsets, and a released page is
//! punched out of it, so that the system really gets the memory back. Pages take memory when they are first written.
//! What it does not: waiting for streams; whoever unmaps knows that no work touches the addresses.
//!
//! Invariants: mappings lie inside reservations and do not overlap; a page's `mapped_count` is the number of mappings
//! that name it; a page leaves when it is released and its count is 0. A failed call changes nothing. The caller holds
//! the one lock around all of this, also across the system calls, because two of them on one range must not cross.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::memory::Physical;
use crate::device::{Access, DeviceKey, DeviceSlice, Page};
use crate::error::{Error, Result, Status};
use crate::sys::shm::{Pages, Protection, Reservation};

/// Reserved addresses begin at a multiple of this, as they do on a GPU.
const RESERVATION_ALIGNMENT: u64 = 2 << 20;

struct Mapping {
    bytes: u64,
    page: u64,
    access: Access,
}

struct PageState {
    offset: u64,
    bytes: u64,
    mapped_count: u64,
    is_released: bool,
}

/// The tables.
pub(in crate::device) struct VirtualMemory {
    key: DeviceKey,
    page_bytes: u64,
    physical: Arc<Physical>,
    reservations: BTreeMap<u64, Reservation>,
    mappings: BTreeMap<u64, Mapping>,
    pages: HashMap<u64, PageState>,
    next_page: u64,
    /// Made by the first page, so that a device without pages holds no file.
    file: Option<Pages>,
    /// Free offsets below `end`: start to length, neighbours joined.
    holes: BTreeMap<u64, u64>,
    end: u64,
    /// Access is never refused by the system: whoever uses the addresses asks [`VirtualMemory::allows`] instead.
    is_open: bool,
}

fn protection(access: Access) -> Protection {
    match access {
        Access::None => Protection::None,
        Access::Read => Protection::Read,
        Access::ReadWrite => Protection::ReadWrite,
    }
}

impl VirtualMemory {
    /// Nothing reserved, nothing mapped.
    pub(in crate::device) fn new(key: DeviceKey, page_bytes: u64, physical: Arc<Physical>) -> Self {
        Self {
            key,
            page_bytes,
            physical,
            reservations: BTreeMap::new(),
            mappings: BTreeMap::new(),
            pages: HashMap::new(),
            next_page: 1,
            file: None,
            holes: BTreeMap::new(),
            end: 0,
            is_open: false,
        }
    }

    /// Leaves all reserved addresses readable and writable, so that a wrong access can be told instead of dying of it.
    pub(in crate::device) fn new_open(key: DeviceKey, page_bytes: u64, physical: Arc<Physical>) -> Self {
        Self { is_open: true, ..Self::new(key, page_bytes, physical) }
    }

    /// Whether every byte of the range is mapped and may be read, or written.
    pub(in crate::device) fn allows(&self, start: u64, bytes: u64, is_write: bool) -> bool {
        let first = self.mappings.range(..=start).next_back().map_or(start, |(&first, _)| first);
        let mut next = start;
        for (&address, mapping) in self.mappings.range(first..start + bytes) {
            let is_allowed = match mapping.access {
                Access::None => false,
                Access::Read => !is_write,
                Access::ReadWrite => true,
            };
            if address > next || !is_allowed {
                break;
            }
            next = address + mapping.bytes;
        }
        next >= start + bytes
    }

    /// The mapped parts of a range: of each the number of its page, which is never given again, and its first byte and
    /// end there.
    pub(in crate::device) fn pages_behind(
        &self,
        start: u64,
        bytes: u64,
    ) -> impl Iterator<Item = (u64, (u64, u64))> {
        let end = start + bytes;
        let first = self.mappings.range(..=start).next_back().map_or(start, |(&first, _)| first);
        let parts = self.mappings.range(first..end).map(move |(&address, mapping)| {
            let (low, high) = (start.max(address), end.min(address + mapping.bytes));
            (mapping.page, (low.saturating_sub(address), high.saturating_sub(address)))
        });
        parts.filter(|(_, (low, high))| low < high)
    }

    fn protection(&self, access: Access) -> Protection {
        if self.is_open { Protection::ReadWrite } else { protection(access) }
    }

    fn check_size(&self, what: &str, bytes: u64) -> Result<()> {
        if bytes == 0 || !bytes.is_multiple_of(self.page_bytes) {
            return Err(Error::argument(format!(
                "{what}: {bytes} bytes are no multiple of the page size {}",
                self.page_bytes
            )));
        }
        Ok(())
    }

    pub(in crate::device) fn reserve(&mut self, bytes: u64) -> Result<DeviceSlice> {
        self.check_size("reserve", bytes)?;
        let reservation = Reservation::new(bytes, self.page_bytes.max(RESERVATION_ALIGNMENT))?;
        if self.is_open {
            reservation.protect(0, bytes, Protection::ReadWrite)?;
        }
        let address = reservation.address() as u64;
        self.reservations.insert(address, reservation);
        Ok(DeviceSlice::new(self.key, address, bytes))
    }

    pub(in crate::device) fn release(&mut self, range: DeviceSlice) -> Result<()> {
        let start = range.address();
        let is_ours = self.reservations.get(&start).is_some_and(|found| found.bytes() == range.bytes());
        if !is_ours || range.device() != self.key {
            return Err(Error::argument(format!(
                "{} bytes at {start:#x} are no reservation; release exactly what was reserved",
                range.bytes()
            )));
        }
        if let Some((address, _)) = self.mappings.range(start..start + range.bytes()).next() {
            return Err(Error::new(
                Status::InUse,
                format!("the reservation at {start:#x} has a mapping at {address:#x}; unmap it first"),
            ));
        }
        self.reservations.remove(&start);
        Ok(())
    }

    pub(in crate::device) fn page_create(&mut self, bytes: u64) -> Result<Page> {
        self.check_size("page", bytes)?;
        self.physical.charge(bytes)?;
        match self.take_offsets(bytes) {
            Ok(offset) => {
                let page = self.next_page;
                self.next_page += 1;
                self.pages.insert(page, PageState { offset, bytes, mapped_count: 0, is_released: false });
                Ok(Page(page))
            }
            Err(error) => {
                self.physical.discharge(bytes);
                Err(error)
            }
        }
    }

    fn take_offsets(&mut self, bytes: u64) -> Result<u64> {
        let hole = self.holes.iter().find(|&(_, &length)| length >= bytes);
        if let Some((&start, &length)) = hole {
            self.holes.remove(&start);
            if length > bytes {
                self.holes.insert(start + bytes, length - bytes);
            }
            return Ok(start);
        }
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(Pages::new()?),
        };
        let start = self.end;
        let end =
            start.checked_add(bytes).ok_or_else(|| Error::argument("more pages than a file can hold"))?;
        // Twice the need, so that growing is rare; offsets without writes take no memory.
        file.grow(end.checked_next_power_of_two().unwrap_or(end))?;
        self.end = end;
        Ok(start)
    }

    fn give_offsets(&mut self, mut start: u64, mut bytes: u64) {
        if let Some((&before, &length)) = self.holes.range(..start).next_back()
            && before + length == start
        {
            self.holes.remove(&before);
            start = before;
            bytes += length;
        }
        if let Some(length) = self.holes.remove(&(start + bytes)) {
            bytes += length;
        }
        if start + bytes == self.end {
            self.end = start;
        } else {
            self.holes.insert(start, bytes);
        }
    }

    fn live_page(&mut self, page: Page) -> Result<&mut PageState> {
        self.pages
            .get_mut(&page.0)
            .filter(|state| !state.is_released)
            .ok_or_else(|| Error::new(Status::StaleId, format!("page {} was released or never made", page.0)))
    }

    pub(in crate::device) fn page_release(&mut self, page: Page) -> Result<()> {
        self.live_page(page)?.is_released = true;
        self.drop_if_unused(page.0);
        Ok(())
    }

    fn drop_if_unused(&mut self, page: u64) {
        let Some(state) = self.pages.get(&page).filter(|state| state.is_released && state.mapped_count == 0)
        else {
            return;
        };
        let (offset, bytes) = (state.offset, state.bytes);
        self.pages.remove(&page);
        // A hole that the system refuses keeps old bytes until they are overwritten; the offsets are free all the same.
        let _ = self.file.as_ref().map(|file| file.punch(offset, bytes));
        self.give_offsets(offset, bytes);
        self.physical.discharge(bytes);
    }

    /// The reservation around a range, which must be made of whole pages.
    fn around(&self, what: &str, range: DeviceSlice) -> Result<(&Reservation, u64)> {
        self.check_size(what, range.bytes())?;
        let start = range.address();
        let found = self.reservations.range(..=start).next_back().filter(|(first, reservation)| {
            range.device() == self.key && start + range.bytes() <= *first + reservation.bytes()
        });
        let Some((first, reservation)) = found else {
            return Err(Error::argument(format!(
                "{what}: {} bytes at {start:#x} are not reserved",
                range.bytes()
            )));
        };
        if !(start - first).is_multiple_of(self.page_bytes) {
            return Err(Error::argument(format!("{what}: {start:#x} is no multiple of the page size")));
        }
        Ok((reservation, start - first))
    }

    /// Refuses a range that is not exactly covered by whole mappings.
    fn check_covered(&self, what: &str, range: DeviceSlice) -> Result<()> {
        let (start, end) = (range.address(), range.address() + range.bytes());
        let mut next = start;
        for (&address, mapping) in self.mappings.range(start..end) {
            if address != next {
                break;
            }
            next = address + mapping.bytes;
        }
        if next == end {
            return Ok(());
        }
        Err(Error::argument(format!(
            "{what}: {} bytes at {start:#x} do not cover whole mappings; the first fault is at {next:#x}",
            range.bytes()
        )))
    }

    pub(in crate::device) fn map(&mut self, target: DeviceSlice, page: Page) -> Result<()> {
        let state = self.live_page(page)?;
        let (page_offset, page_bytes) = (state.offset, state.bytes);
        if page_bytes != target.bytes() {
            return Err(Error::argument(format!(
                "map: {} bytes of addresses for a page of {page_bytes} bytes; they must be equal",
                target.bytes()
            )));
        }
        let (reservation, offset) = self.around("map", target)?;
        let (start, end) = (target.address(), target.address() + target.bytes());
        if let Some((&address, mapping)) = self.mappings.range(..end).next_back()
            && address + mapping.bytes > start
        {
            return Err(Error::new(
                Status::AlreadyExists,
                format!("map: {start:#x} meets a mapping at {address:#x}; unmap it first"),
            ));
        }
        let file = self.file.as_ref().ok_or_else(|| Error::internal("a page without page memory"))?;
        reservation.map(offset, target.bytes(), file, page_offset)?;
        if self.is_open {
            reservation.protect(offset, target.bytes(), Protection::ReadWrite)?;
        }
        self.mappings.insert(start, Mapping { bytes: page_bytes, page: page.0, access: Access::None });
        self.live_page(page)?.mapped_count += 1;
        Ok(())
    }

    pub(in crate::device) fn set_access(&mut self, range: DeviceSlice, access: Access) -> Result<()> {
        let (reservation, offset) = self.around("access", range)?;
        self.check_covered("access", range)?;
        let (start, end) = (range.address(), range.address() + range.bytes());
        if let Err(error) = reservation.protect(offset, range.bytes(), self.protection(access)) {
            // The system may have changed a part of it; put each mapping back.
            for (&address, mapping) in self.mappings.range(start..end) {
                let at = address - start + offset;
                let _ = reservation.protect(at, mapping.bytes, self.protection(mapping.access));
            }
            return Err(error);
        }
        for (_, mapping) in self.mappings.range_mut(start..end) {
            mapping.access = access;
        }
        Ok(())
    }

    pub(in crate::device) fn unmap(&mut self, range: DeviceSlice) -> Result<()> {
        let (reservation, offset) = self.around("unmap", range)?;
        self.check_covered("unmap", range)?;
        reservation.unmap(offset, range.bytes())?;
        if self.is_open {
            reservation.protect(offset, range.bytes(), Protection::ReadWrite)?;
        }
        let end = range.address() + range.bytes();
        while let Some((&address, _)) = self.mappings.range(range.address()..end).next() {
            let Some(mapping) = self.mappings.remove(&address) else { break };
            if let Some(state) = self.pages.get_mut(&mapping.page) {
                state.mapped_count -= 1;
            }
            self.drop_if_unused(mapping.page);
        }
        Ok(())
    }
}
