//! Virtual memory of a GPU: reserved addresses, physical pages, and the mappings between them.
//!
//! What it does: keeps a table of its own, so that a misuse is an error that changes nothing; the driver would answer
//! some of them with a fault of the device. What it does not: waiting for streams; whoever unmaps knows that no work
//! touches the addresses.
//!
//! Invariants: mappings lie inside reservations and do not overlap. A released page is released with the driver at
//! once, which keeps the memory until its last mapping goes. A failed call changes nothing. The caller holds the one
//! lock around all of this, also across the driver's calls, because two of them on one range must not cross.

use std::collections::{BTreeMap, HashMap};

use cudarc::driver::sys::{
    CUmemAccess_flags, CUmemAccessDesc, CUmemAllocationHandleType, CUmemAllocationProp, CUmemAllocationType,
    CUmemLocation, CUmemLocationType,
};

use super::codes;
use super::context::Entered;
use super::driver::Driver;
use crate::device::{Access, DeviceKey, DeviceSlice, Page};
use crate::error::{Error, Result, Status};

/// CU_MEM_ALLOC_GRANULARITY_MINIMUM.
const GRANULARITY_MINIMUM: u32 = 0;

struct Mapping {
    bytes: u64,
    access: Access,
}

struct PageState {
    handle: u64,
    bytes: u64,
}

/// The tables.
pub(super) struct VirtualMemory {
    key: DeviceKey,
    device: i32,
    page_bytes: u64,
    /// Start to length.
    reservations: BTreeMap<u64, u64>,
    mappings: BTreeMap<u64, Mapping>,
    pages: HashMap<u64, PageState>,
    next_page: u64,
    /// Other GPUs that may reach this one's memory.
    reachers: Vec<i32>,
}

fn location(device: i32) -> CUmemLocation {
    CUmemLocation { type_: CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE, id: device }
}

fn properties(device: i32) -> CUmemAllocationProp {
    // SAFETY: numbers, a null pointer and enumerations whose 0 is a value.
    let mut properties: CUmemAllocationProp = unsafe { std::mem::zeroed() };
    properties.type_ = CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED;
    properties.requestedHandleTypes = CUmemAllocationHandleType::CU_MEM_HANDLE_TYPE_NONE;
    properties.location = location(device);
    properties
}

fn flags(access: Access) -> CUmemAccess_flags {
    match access {
        Access::None => CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_NONE,
        Access::Read => CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READ,
        Access::ReadWrite => CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READWRITE,
    }
}

/// Size and alignment of the smallest mapping on a GPU.
pub(super) fn granularity(driver: &Driver, device: i32) -> Result<u64> {
    let properties = properties(device);
    let mut bytes = 0;
    // SAFETY: the result is writable and the properties are complete.
    let code =
        unsafe { (driver.api.cuMemGetAllocationGranularity)(&mut bytes, &properties, GRANULARITY_MINIMUM) };
    if code != codes::SUCCESS {
        return Err(codes::error("cuMemGetAllocationGranularity", code));
    }
    match bytes as u64 {
        bytes if bytes.is_power_of_two() => Ok(bytes),
        bytes => {
            Err(Error::new(Status::Device, format!("the driver maps memory in pieces of {bytes} bytes")))
        }
    }
}

impl VirtualMemory {
    /// Nothing reserved, nothing mapped.
    pub(super) fn new(key: DeviceKey, device: i32, page_bytes: u64) -> Self {
        Self {
            key,
            device,
            page_bytes,
            reservations: BTreeMap::new(),
            mappings: BTreeMap::new(),
            pages: HashMap::new(),
            next_page: 1,
            reachers: Vec::new(),
        }
    }

    fn check_size(&self, what: &str, bytes: u64) -> Result<usize> {
        if bytes == 0 || !bytes.is_multiple_of(self.page_bytes) {
            return Err(Error::argument(format!(
                "{what}: {bytes} bytes are no multiple of the page size {}",
                self.page_bytes
            )));
        }
        Ok(bytes as usize)
    }

    pub(super) fn reserve(&mut self, entered: &Entered<'_>, bytes: u64) -> Result<DeviceSlice> {
        let size = self.check_size("reserve", bytes)?;
        let mut address = 0;
        let api = &entered.context().driver.api;
        // SAFETY: the result is writable, the context is current.
        let code = unsafe { (api.cuMemAddressReserve)(&mut address, size, self.page_bytes as usize, 0, 0) };
        entered.done("cuMemAddressReserve", code)?;
        self.reservations.insert(address, bytes);
        Ok(DeviceSlice::new(self.key, address, bytes))
    }

    pub(super) fn release(&mut self, entered: &Entered<'_>, range: DeviceSlice) -> Result<()> {
        let start = range.address();
        if self.reservations.get(&start) != Some(&range.bytes()) || range.device() != self.key {
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
        // SAFETY: the driver reserved exactly this range, and nothing is mapped in it.
        let code = unsafe { (entered.context().driver.api.cuMemAddressFree)(start, range.bytes() as usize) };
        entered.done("cuMemAddressFree", code)?;
        self.reservations.remove(&start);
        Ok(())
    }

    pub(super) fn page_create(&mut self, entered: &Entered<'_>, bytes: u64) -> Result<Page> {
        let size = self.check_size("page", bytes)?;
        let properties = properties(self.device);
        let mut handle = 0;
        // SAFETY: the result is writable, the properties are complete, the context is current.
        let code = unsafe { (entered.context().driver.api.cuMemCreate)(&mut handle, size, &properties, 0) };
        entered.done("cuMemCreate", code)?;
        let page = self.next_page;
        self.next_page += 1;
        self.pages.insert(page, PageState { handle, bytes });
        Ok(Page(page))
    }

    fn live_page(&self, page: Page) -> Result<&PageState> {
        self.pages
            .get(&page.0)
            .ok_or_else(|| Error::new(Status::StaleId, format!("page {} was released or never made", page.0)))
    }

    pub(super) fn page_release(&mut self, entered: &Entered<'_>, page: Page) -> Result<()> {
        let handle = self.live_page(page)?.handle;
        // SAFETY: the handle is ours and leaves the table here; its mappings keep the memory.
        let code = unsafe { (entered.context().driver.api.cuMemRelease)(handle) };
        entered.done("cuMemRelease", code)?;
        self.pages.remove(&page.0);
        Ok(())
    }

    /// Refuses a range that is not whole pages inside a reservation.
    fn check_reserved(&self, what: &str, range: DeviceSlice) -> Result<()> {
        self.check_size(what, range.bytes())?;
        let start = range.address();
        let found = self.reservations.range(..=start).next_back().filter(|(first, bytes)| {
            range.device() == self.key && start + range.bytes() <= **first + **bytes
        });
        let Some((first, _)) = found else {
            return Err(Error::argument(format!(
                "{what}: {} bytes at {start:#x} are not reserved",
                range.bytes()
            )));
        };
        if !(start - first).is_multiple_of(self.page_bytes) {
            return Err(Error::argument(format!("{what}: {start:#x} is no multiple of the page size")));
        }
        Ok(())
    }

    /// Refuses a range that is not exactly covered by whole mappings.
    fn check_covered(&self, what: &str, range: DeviceSlice) -> Result<()> {
        self.check_reserved(what, range)?;
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

    pub(super) fn map(&mut self, entered: &Entered<'_>, target: DeviceSlice, page: Page) -> Result<()> {
        let &PageState { handle, bytes } = self.live_page(page)?;
        if bytes != target.bytes() {
            return Err(Error::argument(format!(
                "map: {} bytes of addresses for a page of {bytes} bytes; they must be equal",
                target.bytes()
            )));
        }
        self.check_reserved("map", target)?;
        let (start, end) = (target.address(), target.address() + target.bytes());
        if let Some((&address, mapping)) = self.mappings.range(..end).next_back()
            && address + mapping.bytes > start
        {
            return Err(Error::new(
                Status::AlreadyExists,
                format!("map: {start:#x} meets a mapping at {address:#x}; unmap it first"),
            ));
        }
        // SAFETY: the range is reserved and has no mapping, the handle is alive and as long.
        let code = unsafe { (entered.context().driver.api.cuMemMap)(start, bytes as usize, 0, handle, 0) };
        entered.done("cuMemMap", code)?;
        self.mappings.insert(start, Mapping { bytes, access: Access::None });
        Ok(())
    }

    fn apply(&self, entered: &Entered<'_>, start: u64, bytes: u64, access: Access) -> Result<()> {
        let devices = std::iter::once(&self.device).chain(&self.reachers);
        let wishes: Vec<CUmemAccessDesc> = devices
            .map(|&device| CUmemAccessDesc { location: location(device), flags: flags(access) })
            .collect();
        let api = &entered.context().driver.api;
        // SAFETY: the range is covered by mappings, and the wishes are as many as told.
        let code = unsafe { (api.cuMemSetAccess)(start, bytes as usize, wishes.as_ptr(), wishes.len()) };
        entered.done("cuMemSetAccess", code)
    }

    pub(super) fn set_access(
        &mut self,
        entered: &Entered<'_>,
        range: DeviceSlice,
        access: Access,
    ) -> Result<()> {
        self.check_covered("access", range)?;
        let (start, end) = (range.address(), range.address() + range.bytes());
        if let Err(error) = self.apply(entered, start, range.bytes(), access) {
            // The driver may have changed a part of it; put each mapping back.
            for (&address, mapping) in self.mappings.range(start..end) {
                let _ = self.apply(entered, address, mapping.bytes, mapping.access);
            }
            return Err(error);
        }
        for (_, mapping) in self.mappings.range_mut(start..end) {
            mapping.access = access;
        }
        Ok(())
    }

    /// Lets another GPU reach all that is and will be mapped here.
    pub(super) fn admit(&mut self, entered: &Entered<'_>, device: i32) -> Result<()> {
        if self.reachers.contains(&device) {
            return Ok(());
        }
        self.reachers.push(device);
        for (&address, mapping) in self.mappings.iter().filter(|(_, mapping)| mapping.access != Access::None)
        {
            if let Err(error) = self.apply(entered, address, mapping.bytes, mapping.access) {
                // What the other one may already reach it does not use: it was told no.
                self.reachers.pop();
                return Err(error);
            }
        }
        Ok(())
    }

    pub(super) fn unmap(&mut self, entered: &Entered<'_>, range: DeviceSlice) -> Result<()> {
        self.check_covered("unmap", range)?;
        let (start, end) = (range.address(), range.address() + range.bytes());
        // SAFETY: the range is exactly some whole mappings, and the caller knows that no work touches them.
        let code = unsafe { (entered.context().driver.api.cuMemUnmap)(start, range.bytes() as usize) };
        entered.done("cuMemUnmap", code)?;
        while let Some((&address, _)) = self.mappings.range(start..end).next() {
            self.mappings.remove(&address);
        }
        Ok(())
    }

    /// Gives everything back, once no work is left.
    pub(super) fn clear(&mut self, entered: &Entered<'_>) {
        let api = &entered.context().driver.api;
        for (address, mapping) in std::mem::take(&mut self.mappings) {
            // SAFETY: a whole mapping of ours; its owner closes the device.
            let code = unsafe { (api.cuMemUnmap)(address, mapping.bytes as usize) };
            let _ = entered.done("cuMemUnmap", code);
        }
        for (_, page) in std::mem::take(&mut self.pages) {
            // SAFETY: the handle is ours.
            let code = unsafe { (api.cuMemRelease)(page.handle) };
            let _ = entered.done("cuMemRelease", code);
        }
        for (address, bytes) in std::mem::take(&mut self.reservations) {
            // SAFETY: the reservation is ours, and nothing is mapped in it any more.
            let code = unsafe { (api.cuMemAddressFree)(address, bytes as usize) };
            let _ = entered.done("cuMemAddressFree", code);
        }
    }
}
