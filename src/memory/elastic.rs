//! Elastic ranges: addresses for as much as there may ever be, and memory behind the parts that are in use.
//!
//! What it does: commits and decommits any pages of one reservation, whose base never moves; counts what has memory.
//! What it does not: promise anything about the content of what is committed anew.
//!
//! Invariants: `committed <= physical <= capacity`; what is neither committed nor physical faults, but for the moment
//! in which a page was passed on to somebody else and its old address is not unmapped yet. A failed call leaves all as
//! it was. Lock order: `going`, then the range's.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Memory;
use super::fence::Fence;
use super::page_class::PageClass;
use super::page_table::Told;
use super::physical::Physical;
use super::range::{Holder, Prepare, Range};
use crate::device::{DeviceSlice, Stream};
use crate::error::{Error, Result, Status};
use crate::sync::Mutex;
use crate::sys::clock;

/// How a range is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ElasticConfig {
    /// Bytes of addresses, rounded up to whole pages. They cost no memory.
    pub capacity_bytes: u64,
    /// What is committed and decommitted at least, a multiple of the device's page; 0 takes that page.
    pub page_bytes: u64,
    /// Whether memory may come in slabs of many pages. Much faster; a slab of which a part is decommitted keeps its
    /// memory until the rest is decommitted too.
    pub has_slabs: bool,
}

/// The page of a range for which `asked_bytes` were asked, 0 for the device's.
pub(super) fn page_of(asked_bytes: u64, device_page: u64) -> Result<u64> {
    match asked_bytes {
        0 => Ok(device_page),
        whole if whole.is_multiple_of(device_page) => Ok(whole),
        _ => Err(Error::argument(format!(
            "a page of {asked_bytes} bytes; take a multiple of the device's {device_page}, or 0 for that"
        ))),
    }
}

/// A part of a range, widened to whole pages, and what a call has changed there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First byte, from the base.
    pub offset: u64,
    /// Length.
    pub bytes: u64,
    /// Bytes of it that were not as the call has left them.
    pub changed_bytes: u64,
}

/// What a range has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ElasticStatistics {
    /// Addresses.
    pub capacity_bytes: u64,
    /// What is committed and decommitted at least.
    pub page_bytes: u64,
    /// Committed.
    pub committed_bytes: u64,
    /// Memory behind the range, in use or not.
    pub physical_bytes: u64,
    /// Decommitted, but part of a slab that is still in use.
    pub retained_bytes: u64,
    /// Decommitted, and on its way back once its stream is past.
    pub leaving_bytes: u64,
    /// Committed pages of `page_bytes`.
    pub mapped_pages: u64,
    /// Handles of physical memory; the fewer, the faster are changes.
    pub handles: u64,
    /// Pins that keep parts committed.
    pub pins: u64,
}

/// Looks at what a range has committed, without its lock, and without keeping it.
#[derive(Clone)]
pub(super) struct Committed {
    told: Arc<Told>,
    device_page: u64,
}

impl Committed {
    pub(super) fn bytes(&self) -> u64 {
        self.told.live_pages.load(Ordering::Relaxed) * self.device_page
    }
}

/// One elastic range; its memory goes back on drop, once the streams that were told are past.
pub struct Elastic {
    range: Arc<Range>,
    physical: Arc<Physical>,
    /// Whoever helps where memory is short; a shared pool does by itself.
    memory: Option<Arc<Memory>>,
    page_bytes: u64,
    /// Of `page_bytes`.
    unit: u64,
    capacity_bytes: u64,
    born_ns: u64,
    /// Parts, in device pages, that a resize is going to decommit: nobody pins them meanwhile.
    going: Mutex<Vec<(u64, u64)>>,
}

/// An entry of [`Elastic::going`], until the drop.
struct Going<'a> {
    elastic: &'a Elastic,
    part: (u64, u64),
}

impl Drop for Going<'_> {
    fn drop(&mut self) {
        let mut going = self.elastic.going.lock();
        if let Some(at) = going.iter().position(|part| *part == self.part) {
            going.swap_remove(at);
        }
    }
}

impl Elastic {
    /// Reserves addresses of a memory's device; what is committed is charged to the memory's limit and in its sums.
    pub fn new(memory: &Arc<Memory>, config: ElasticConfig) -> Result<Arc<Self>> {
        let largest = PageClass::largest(config.has_slabs);
        let mut elastic = Self::of(
            memory.physical()?,
            config,
            Holder { tenant: 0, payer: None, largest, takes_passed: true },
        )?;
        elastic.memory = Some(Arc::clone(memory));
        let elastic = Arc::new(elastic);
        memory.add_elastic(&elastic);
        Ok(elastic)
    }

    /// A range with pages of a given pool.
    pub(super) fn of(physical: Arc<Physical>, config: ElasticConfig, holder: Holder) -> Result<Self> {
        let device_page = physical.page_bytes();
        let page_bytes = page_of(config.page_bytes, device_page)?;
        let capacity_bytes = config.capacity_bytes.checked_next_multiple_of(page_bytes);
        let Some(capacity_bytes) = capacity_bytes.filter(|&bytes| bytes > 0) else {
            return Err(Error::argument(format!(
                "a capacity of {} bytes in pages of {page_bytes}; take at least 1 and less than all addresses",
                config.capacity_bytes
            )));
        };
        let range = Range::new(Arc::clone(&physical), capacity_bytes, holder)?;
        let unit = page_bytes / device_page;
        let (born_ns, going) = (clock::now_ns(), Mutex::default());
        Ok(Self { range, physical, memory: None, page_bytes, unit, capacity_bytes, born_ns, going })
    }

    /// The addresses, whether they have memory or not.
    pub fn slice(&self) -> DeviceSlice {
        self.range.slice()
    }

    /// First byte; never moves.
    pub fn base(&self) -> u64 {
        self.slice().address()
    }

    /// Whole pages around a part.
    fn widen(&self, offset: u64, bytes: u64) -> Result<Extent> {
        let end = offset.checked_add(bytes).filter(|&end| end <= self.capacity_bytes);
        let Some(end) = end.filter(|_| bytes > 0) else {
            return Err(Error::argument(format!(
                "{bytes} bytes at offset {offset} of a range of {} bytes; stay inside it, with at least 1 byte",
                self.capacity_bytes
            )));
        };
        let first = offset - offset % self.page_bytes;
        // The capacity is a multiple of the page, so that this stays inside it.
        let bytes = end.next_multiple_of(self.page_bytes) - first;
        Ok(Extent { offset: first, bytes, changed_bytes: 0 })
    }

    /// Device pages of an extent.
    fn pages(&self, extent: &Extent) -> (u64, u64) {
        let page = self.page_bytes / self.unit;
        (extent.offset / page, (extent.offset + extent.bytes) / page)
    }

    fn changed(&self, extent: Extent, pages: u64) -> Extent {
        Extent { changed_bytes: pages * (self.page_bytes / self.unit), ..extent }
    }

    /// Puts memory behind a part, widened to pages, all or nothing; what has memory keeps it. Blocks where a part was
    /// decommitted and its stream is not past. May ask others for memory, so no lock is held.
    pub fn commit(&self, offset: u64, bytes: u64) -> Result<Extent> {
        self.asking((offset, bytes), || self.commit_unasked(offset, bytes))
    }

    /// As `commit`, asking nobody: for whoever holds a lock, and calls [`Memory::relax`] when it does not any more.
    pub fn commit_unasked(&self, offset: u64, bytes: u64) -> Result<Extent> {
        let commit = || self.commit_prepared(offset, bytes, &|_| Ok(()));
        match commit() {
            // The pool of pages has given what it had by itself; what the heaps keep is not there.
            Err(error) if error.status == Status::OutOfMemory && self.loosen_heaps() > 0 => commit(),
            other => other,
        }
    }

    fn loosen_heaps(&self) -> u64 {
        self.memory.as_ref().map_or(0, |memory| memory.loosen_heaps())
    }

    /// A change that needs memory behind a part: where that is short others are asked for it, and where the change
    /// passes the soft limit they are asked after it.
    fn asking<T>(&self, part: (u64, u64), change: impl Fn() -> Result<T>) -> Result<T> {
        let Some(memory) = &self.memory else { return change() };
        // A part that is none is refused by the change itself.
        let missing_bytes = self.missing_bytes(part.0, part.1).unwrap_or(0);
        let changed = memory.with_help(missing_bytes, change)?;
        memory.relax();
        Ok(changed)
    }

    pub(super) fn commit_prepared(&self, offset: u64, bytes: u64, prepare: Prepare<'_>) -> Result<Extent> {
        let extent = self.widen(offset, bytes)?;
        let (first, end) = self.pages(&extent);
        let new_pages = self.range.back(first, end, prepare).map_err(|error| {
            error.context(&format!("committing {} bytes at offset {}", extent.bytes, extent.offset))
        })?;
        Ok(self.changed(extent, new_pages))
    }

    /// Bytes of memory that a commit would have to get.
    pub(super) fn missing_bytes(&self, offset: u64, bytes: u64) -> Result<u64> {
        let (first, end) = self.pages(&self.widen(offset, bytes)?);
        Ok(self.range.gap_bytes(first, end))
    }

    /// Gives up a part, widened to pages: at once where no stream is given, else when the stream is past this point.
    /// What has no memory stays so.
    pub fn decommit(&self, offset: u64, bytes: u64, stream: Option<Stream>) -> Result<Extent> {
        let extent = self.widen(offset, bytes)?;
        let (first, end) = self.pages(&extent);
        // What has nothing to give up needs no point to wait for.
        let stream = stream.filter(|_| self.range.live_in(first, end) > 0);
        let fence = self.fence(stream)?;
        Ok(self.changed(extent, self.range.unback(first, end, fence.as_ref())?))
    }

    fn fence(&self, stream: Option<Stream>) -> Result<Option<Arc<Fence>>> {
        let Some(stream) = stream else { return Ok(None) };
        self.physical.fences().record_outside(stream, "decommit after the capture").map(Some)
    }

    /// Whether every page of a part is committed.
    pub fn is_committed(&self, offset: u64, bytes: u64) -> Result<bool> {
        let (first, end) = self.pages(&self.widen(offset, bytes)?);
        Ok(self.range.live_in(first, end) == end - first)
    }

    /// Commits the first `bytes` and decommits the rest; 0 decommits everything. Returns the length in pages.
    pub fn resize(&self, bytes: u64, stream: Option<Stream>) -> Result<Extent> {
        let device_page = self.page_bytes / self.unit;
        let kept =
            if bytes > 0 { self.widen(0, bytes)? } else { Extent { offset: 0, bytes: 0, changed_bytes: 0 } };
        let (length, end) = (kept.bytes / device_page, self.capacity_bytes / device_page);
        self.asking((0, bytes), || {
            // All that can refuse the second half comes before the first.
            let _going = self.keep_unpinned((length, end))?;
            let fence = self.fence(stream.filter(|_| self.range.live_in(length, end) > 0))?;
            let grown = if bytes > 0 { self.commit_unasked(0, bytes)?.changed_bytes } else { 0 };
            let shrunk = self.range.unback(length, end, fence.as_ref())? * device_page;
            Ok(Extent { changed_bytes: grown + shrunk, ..kept })
        })
    }

    /// Refuses a part that is pinned; what is not stays so while the answer is held.
    fn keep_unpinned(&self, part: (u64, u64)) -> Result<Going<'_>> {
        let mut going = self.going.lock();
        self.range.check_unpinned(part.0, part.1)?;
        going.push(part);
        Ok(Going { elastic: self, part })
    }

    /// Keeps a part committed until it is unpinned as often.
    pub fn pin(&self, offset: u64, bytes: u64) -> Result<Extent> {
        let extent = self.widen(offset, bytes)?;
        let (first, end) = self.pages(&extent);
        let going = self.going.lock();
        if going.iter().any(|part| part.0 < end && part.1 > first) {
            let text = "a resize is decommitting a part of it; pin what stays";
            return Err(Error::new(Status::InUse, text));
        }
        self.range.pin(first, end)?;
        Ok(extent)
    }

    /// Undoes one pin of the same part.
    pub fn unpin(&self, offset: u64, bytes: u64) -> Result<Extent> {
        let extent = self.widen(offset, bytes)?;
        let (first, end) = self.pages(&extent);
        self.range.unpin(first, end)?;
        Ok(extent)
    }

    /// Makes the decommits whose streams are past; returns the bytes that are free of their addresses by that.
    pub fn collect(&self) -> u64 {
        self.physical.collect()
    }

    /// Waits for the streams of all decommits. Blocks.
    pub(super) fn await_streams(&self) -> Result<()> {
        self.range.await_streams()
    }

    /// Waits for the streams of all decommits and makes them, what is left of passed-on pages included. Blocks.
    pub fn settle(&self) -> Result<()> {
        self.range.settle()
    }

    pub(super) fn clear(&self) {
        self.range.clear();
    }

    /// Waits for all work on the device, before a drop whose owner knows of no stream to wait for. Where the device
    /// cannot be waited for, pages stay behind their addresses, so that nothing faults that may still run. Blocks.
    pub fn drain(&self) {
        self.range.drain();
    }

    /// What is committed and decommitted at least.
    pub fn page_bytes(&self) -> u64 {
        self.page_bytes
    }

    /// Length of the addresses.
    pub fn capacity_bytes(&self) -> u64 {
        self.capacity_bytes
    }

    /// How long the addresses have been there.
    pub fn age_ns(&self) -> u64 {
        clock::now_ns().saturating_sub(self.born_ns)
    }

    /// Memory behind the range, in use or not. Waits for nobody, also while another thread commits.
    pub fn physical_bytes(&self) -> u64 {
        self.range.backed_pages() * (self.page_bytes / self.unit)
    }

    /// What the user has, for whoever looks without the range.
    pub(super) fn committed(&self) -> Committed {
        Committed { told: Arc::clone(self.range.told()), device_page: self.page_bytes / self.unit }
    }

    /// The end of its use: its memory goes back now, whoever holds it still to look at it. Blocks.
    pub fn end(&self) {
        Range::leave(&self.range);
        self.range.clear();
    }

    /// What it has. Waits for whoever commits.
    pub fn statistics(&self) -> ElasticStatistics {
        let counts = self.range.counts();
        let page = self.page_bytes / self.unit;
        // What still leads to pages that were passed on is no memory of this range.
        let physical_pages = counts.mapped_pages - counts.alias_pages;
        ElasticStatistics {
            capacity_bytes: self.capacity_bytes,
            page_bytes: self.page_bytes,
            committed_bytes: counts.live_pages * page,
            physical_bytes: physical_pages * page,
            retained_bytes: (physical_pages - counts.live_pages - counts.leaving_pages) * page,
            leaving_bytes: counts.leaving_pages * page,
            mapped_pages: counts.live_pages / self.unit,
            handles: counts.mappings,
            pins: self.range.pins(),
        }
    }

    /// Checks the invariants of the page table.
    pub fn validate(&self) -> Result<()> {
        self.range.validate()
    }
}

impl Drop for Elastic {
    fn drop(&mut self) {
        // The upkeep may hold the range at this moment; memory and addresses are back when this returns.
        Range::leave(&self.range);
    }
}
