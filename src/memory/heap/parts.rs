//! Parts of large blocks that are free: for other sizes than the one that was freed.
//!
//! While there is plenty of memory, a large block that was freed serves any shorter request; what is left stays free,
//! and neighbours serve as one. Where they are not long enough, the longest get new memory behind their end: sizes that
//! follow the length of a batch hold the longest of them together, and not their sum. No cost grows with what is held,
//! but that of a search by size.
//! What it does not: move pages; `takeover` does, where memory is short. Blocks of middle sizes lie elsewhere, so that
//! none of them stands for long where a large one has to fit.
//! Invariant: a part and the rest are blocks like any other: used in `core.large`, with whole granules and memory
//! behind them. A failed call leaves all as it was.

use super::super::free_list::State;
use super::super::order::Freed;
use super::super::region::LARGE_GRANULE_BYTES;
use super::super::stretches::{Stretch, Stretches};
use super::large::grow_records;
use super::{Heap, LARGE, core};
use crate::device::Stream;
use crate::error::Result;

/// Of so many stretches, the longest ones that are too short, it is asked whether there is room behind them.
const LONGEST_MOST: usize = 64;

impl Heap {
    /// A part of a large block that is free.
    pub(super) fn reuse_part(&self, stream: Stream, bytes: u64) -> Result<Option<u32>> {
        let bytes = bytes.next_multiple_of(LARGE_GRANULE_BYTES);
        self.core.lock().take_part(stream, bytes)
    }

    /// A part of a longer block that is free, else one that is made longer, else a new one.
    pub(super) fn reuse_large(&self, stream: Stream, bytes: u64) -> Result<Option<u32>> {
        if let Some(index) = self.reuse_part(stream, bytes)? {
            return Ok(Some(index));
        }
        if self.core.lock().order.bytes() >= bytes && self.may_look() {
            self.gather()?;
            if let Some(index) = self.reuse_part(stream, bytes)? {
                return Ok(Some(index));
            }
        }
        match self.pass_over(LARGE, || self.lengthen(stream, bytes))? {
            None => self.grow_large(bytes).map(Some),
            found => Ok(found),
        }
    }

    /// The longest free block with new memory behind its end, where there are addresses for it.
    fn lengthen(&self, stream: Stream, bytes: u64) -> Result<Option<u32>> {
        let Some(region) = self.regions.get(LARGE) else { return Ok(None) };
        let (block, is_own) = {
            let mut core = self.core.lock();
            let Some((block, is_own)) = core.take_extensible(stream, bytes)? else { return Ok(None) };
            (block, is_own)
        };
        let backed = grow_records(region, block.id as u32, bytes)
            .and_then(|()| region.back((block.id * LARGE_GRANULE_BYTES) + block.bytes, bytes - block.bytes));
        let mut core = self.core.lock();
        let end = (block.id + block.bytes / LARGE_GRANULE_BYTES) as u32;
        match backed {
            Ok(()) => {
                core.large.unite(block.id as u32)?;
                Ok(Some(block.id as u32))
            }
            Err(error) => {
                core.large.free(end)?;
                core.give_large(stream, is_own, block)?;
                Err(error)
            }
        }
    }
}

/// A stretch of free large blocks, and whether they are the stream's own.
struct Found {
    stretch: Stretch,
    is_own: bool,
}

impl Found {
    /// As one block.
    fn block(&self) -> Freed {
        Freed { class: core::LARGE, id: self.stretch.id, bytes: self.stretch.bytes }
    }
}

impl core::Core {
    /// The beginning of a stretch that was freed on the stream or is free for all, of the shortest that will do.
    fn take_part(&mut self, stream: Stream, bytes: u64) -> Result<Option<u32>> {
        let own = self.order.large(stream).and_then(|large| large.shortest(bytes));
        let idle = self.idle_large.shortest(bytes);
        let found = match (own, idle) {
            (Some(own), Some(idle)) if idle.bytes < own.bytes => Found { stretch: idle, is_own: false },
            (Some(stretch), _) => Found { stretch, is_own: true },
            (None, Some(stretch)) => Found { stretch, is_own: false },
            (None, None) => return Ok(None),
        };
        let block = self.take_first(stream, &found, bytes)?;
        if block.bytes > bytes {
            let (start, count) = (block.id as u32, (bytes / LARGE_GRANULE_BYTES) as u32);
            self.large.split(start, count)?;
            let id = u64::from(start + count);
            let rest = Freed { class: core::LARGE, id, bytes: block.bytes - bytes };
            self.give_large(stream, found.is_own, rest)?;
        }
        Ok(Some(block.id as u32))
    }

    /// The longest stretch that was freed on the stream or is free for all, out of circulation as one block, together
    /// with the addresses behind it that make it so long; whether it was the stream's.
    fn take_extensible(&mut self, stream: Stream, bytes: u64) -> Result<Option<(Freed, bool)>> {
        let large = &self.large;
        let end = |stretch: &Stretch| (stretch.id + stretch.bytes / LARGE_GRANULE_BYTES) as u32;
        let has_room = |stretch: &Stretch| {
            let behind = large.range_at(end(stretch));
            let missing = (bytes - stretch.bytes) / LARGE_GRANULE_BYTES;
            behind.is_some_and(|range| range.state == State::Free && u64::from(range.count) >= missing)
        };
        let longest = |all: &mut Stretches| all.longest_below(bytes).take(LONGEST_MOST).find(has_room);
        let own = self.order.large(stream).and_then(longest).map(|stretch| Found { stretch, is_own: true });
        let idle = longest(&mut self.idle_large).map(|stretch| Found { stretch, is_own: false });
        let Some(found) = own.into_iter().chain(idle).max_by_key(|found| found.stretch.bytes) else {
            return Ok(None);
        };
        let missing = (bytes - found.stretch.bytes) / LARGE_GRANULE_BYTES;
        self.large.reserve_nodes(8)?;
        self.large.carve(end(&found.stretch), missing as u32)?;
        let block = self.take_first(stream, &found, found.stretch.bytes)?;
        Ok(Some((block, found.is_own)))
    }

    /// So many bytes of a stretch and what is left of its last block, out of circulation as one block. With room for
    /// the nodes of one that is cut.
    fn take_first(&mut self, stream: Stream, found: &Found, bytes: u64) -> Result<Freed> {
        // What can fail comes before a block is out of its list: the rest of it needs a node.
        self.large.reserve_nodes(1)?;
        let blocks = match found.is_own {
            true => self.order.take_first_large(stream, found.stretch, bytes),
            false => self.idle_large.take_first(found.stretch, bytes),
        };
        let whole = Freed { bytes: blocks.iter().map(|block| block.bytes).sum(), ..found.block() };
        if !found.is_own {
            self.idle_large_bytes -= whole.bytes;
        }
        blocks.iter().skip(1).try_for_each(|_| self.large.unite(whole.id as u32))?;
        Ok(whole)
    }

    fn give_large(&mut self, stream: Stream, is_own: bool, block: Freed) -> Result<()> {
        if is_own {
            self.order.free(stream, block);
            return Ok(());
        }
        self.give_free(block)
    }
}
