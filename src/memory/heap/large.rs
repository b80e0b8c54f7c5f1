//! Blocks above 32 MiB: addresses of their own, backed for as long as they live and a while after.
//!
//! What it does: finds addresses, backs them, keeps freed ones with their memory for a request of the same size. What
//! it does not: cut pages; a large block has whole ones.
//! Invariant: what `core.large` holds as used is backed, or is being backed or taken away by whoever holds it, and each
//! granule of it has a record; or it is set aside (`aside`).

use super::super::order::Freed;
use super::super::region::{LARGE_GRANULE_BYTES, MIDDLE_GRANULE_BYTES, Region};
use super::fitted::{granules, is_refused};
use super::{Heap, LARGE, core};
use crate::device::Stream;
use crate::error::{Error, Result, Status};

/// Large blocks begin where a handle of 64 MiB may begin.
const LARGE_ALIGNMENT: u32 = (64 << 20) / LARGE_GRANULE_BYTES as u32;

impl Heap {
    /// A large block for the stream, or at last a run of the middle region. Its class and index.
    pub(super) fn take_large(
        &self,
        stream: Stream,
        (bytes, alignment): (u64, u64),
        is_captured: bool,
        may_wait: bool,
    ) -> Result<Option<(u32, u32)>> {
        let taken = self.take_whole_pages(stream, bytes, is_captured, may_wait);
        if may_wait && !is_captured && bytes <= self.total_bytes && is_refused(&taken) {
            // Whole pages of its own lose the end of the last one, and need one more than there may be.
            // They are aligned to any request; a run of granules is not.
            let run_alignment = (alignment / MIDDLE_GRANULE_BYTES).max(1) as u32;
            let run = self.take_run_beside(granules(bytes), run_alignment);
            if !is_refused(&run) {
                return Ok(run?.map(|start| (core::FITTED, start)));
            }
            if run_alignment == 1
                && let Some(start) = self.compose(granules(bytes))?
            {
                return Ok(Some((core::COMPOSED, start)));
            }
        }
        Ok(taken?.map(|index| (core::LARGE, index)))
    }

    /// A run of so many granules that begins at a multiple of `alignment`, with new pages beside what is free.
    fn take_run_beside(&self, count: u32, alignment: u32) -> Result<Option<u32>> {
        let start = self.grow_fitted(count + (alignment - 1), 1)?;
        let Some(start) = start.filter(|_| alignment > 1) else { return Ok(start) };
        let mut core = self.core.lock();
        let room = core.middle.reserve_nodes(4);
        core.middle.free(start)?;
        room?;
        let start = start.next_multiple_of(alignment);
        core.middle.carve(start, count)?;
        Ok(Some(start))
    }

    fn take_whole_pages(
        &self,
        stream: Stream,
        bytes: u64,
        is_captured: bool,
        may_wait: bool,
    ) -> Result<Option<u32>> {
        let bytes = bytes.next_multiple_of(LARGE_GRANULE_BYTES);
        let is_as_long = |block: &Freed| block.bytes == bytes;
        if is_captured && let Some(block) = self.take_captured(stream, core::LARGE, is_as_long) {
            return Ok(Some(block.id as u32));
        }
        if !is_captured {
            let own = self.core.lock().order.take_same_sized(stream, core::LARGE, bytes);
            if let Some(block) = own {
                return Ok(Some(block.id as u32));
            }
            self.collect()?;
        }
        if let Some(block) = self.core.lock().take_idle_large(bytes) {
            return Ok(Some(block.id as u32));
        }
        if may_wait
            && !is_captured
            && let Some(block) = self.take_behind_wait(stream, core::LARGE, bytes)?
        {
            return Ok(Some(block.id as u32));
        }
        if !(is_captured || self.is_limited() || self.is_short() || self.weigh()) {
            return self.reuse_large(stream, bytes);
        }
        let grown = self.grow_large(bytes);
        let may_have = may_wait && !is_captured;
        grown.or_else(|refusal| self.part_instead(refusal, (stream, bytes), may_have)).map(Some)
    }

    pub(super) fn grow_large(&self, bytes: u64) -> Result<u32> {
        let region = {
            let _growing = self.growing.lock();
            self.region(LARGE)?
        };
        self.pass_over(LARGE, || self.back_large(region, bytes))
    }

    /// Addresses of a large block with memory behind them.
    fn back_large(&self, region: &Region, bytes: u64) -> Result<u32> {
        let start = self.large_addresses(bytes)?;
        let offset = u64::from(start) * LARGE_GRANULE_BYTES;
        let backed = grow_records(region, start, bytes).and_then(|()| region.back(offset, bytes));
        match backed {
            Ok(()) => Ok(start),
            Err(error) => {
                self.core.lock().large.free(start)?;
                Err(error)
            }
        }
    }

    /// Addresses for a large block.
    pub(super) fn large_addresses(&self, bytes: u64) -> Result<u32> {
        let too_many = || Error::new(Status::OutOfMemory, format!("{bytes} bytes; no device has that much"));
        let granules = u32::try_from(bytes / LARGE_GRANULE_BYTES).map_err(|_| too_many())?;
        self.core.lock().large.allocate(granules, LARGE_ALIGNMENT)?.ok_or_else(too_many)
    }

    /// Size of a large block.
    pub(super) fn large_bytes(&self, index: u32) -> Result<u64> {
        let granules = self.core.lock().large.size_of(index);
        let granules = granules.ok_or_else(|| Error::internal("a large block of no size"))?;
        Ok(u64::from(granules) * LARGE_GRANULE_BYTES)
    }

    /// Takes the memory away from all large blocks that are free for all, as far as it is theirs alone.
    pub(super) fn trim_large(&self) -> Result<u64> {
        let Some(region) = self.regions.get(LARGE) else { return Ok(0) };
        self.leave_ends(region)?;
        let (mut bytes, mut outcome) = (0, Ok(()));
        for block in self.take_whole_idle(region)? {
            let gone = region.unback(block.id * LARGE_GRANULE_BYTES, block.bytes);
            self.core.lock().large.free(block.id as u32)?;
            match gone {
                Ok(gone_bytes) => bytes += gone_bytes,
                Err(error) => outcome = Err(error),
            }
        }
        outcome.map(|()| bytes)
    }
}

/// Records for every granule of a block: a part of it may begin at each of them.
pub(super) fn grow_records(region: &Region, start: u32, bytes: u64) -> Result<()> {
    region.records.grow(start + (bytes / LARGE_GRANULE_BYTES) as u32 - 1)
}

impl core::Core {
    /// A large block of exactly this size that is free for all: the one freed last.
    fn take_idle_large(&mut self, bytes: u64) -> Option<Freed> {
        let block = self.idle_large.take_sized(bytes)?;
        self.idle_large_bytes -= bytes;
        Some(block)
    }

    pub(super) fn take_any_idle(&mut self) -> Option<Freed> {
        let block = self.idle_large.take_any()?;
        self.idle_large_bytes -= block.bytes;
        Some(block)
    }
}
