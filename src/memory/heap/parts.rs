//! Parts of large blocks that are free: for other sizes than the one that was freed.
//!
//! While there is plenty of memory, a large block that was freed serves any shorter request; what is left stays free,
//! and neighbours become one again. Where no block is long enough, the longest gets new memory behind its end: sizes
//! that follow the length of a batch hold the longest of them together, and not their sum.
//! What it does not: move pages; `takeover` does, where memory is short. Blocks of middle sizes lie elsewhere, so that
//! none of them stands for long where a large one has to fit.
//! Invariant: a part and the rest are blocks like any other: used in `core.large`, with whole granules and memory
//! behind them. A failed call leaves all as it was.

use super::super::free_list::{FreeList, State};
use super::super::order::Freed;
use super::super::region::LARGE_GRANULE_BYTES;
use super::large::grow_records;
use super::{Heap, LARGE, core};
use crate::device::Stream;
use crate::error::Result;

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
        match self.lengthen(stream, bytes)? {
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
                core.large.free(block.id as u32)?;
                core.large.free(end)?;
                core.large.carve(block.id as u32, (bytes / LARGE_GRANULE_BYTES) as u32)?;
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

impl core::Core {
    /// The beginning of a longer block that was freed on the stream or is free for all, of the shortest that will do.
    fn take_part(&mut self, stream: Stream, bytes: u64) -> Result<Option<u32>> {
        self.join_large(stream)?;
        let idle = self.idle_large.iter().filter(|block| block.bytes >= bytes);
        let idle = idle.min_by_key(|block| block.bytes).copied();
        let own = self.order.take_open_run(stream, core::LARGE, bytes, 1);
        let (block, is_own) = match (own, idle) {
            (Some(own), Some(idle)) if idle.bytes < own.bytes => {
                self.order.free(stream, own);
                (idle, false)
            }
            (Some(own), _) => (own, true),
            (None, Some(idle)) => (idle, false),
            (None, None) => return Ok(None),
        };
        if !is_own {
            self.take_idle(block);
        }
        if block.bytes > bytes {
            // What can fail comes before anything is free for a moment, and nobody's any more.
            if let Err(error) = self.large.reserve_nodes(4) {
                self.give_large(stream, is_own, block)?;
                return Err(error);
            }
            let (start, count) = (block.id as u32, (bytes / LARGE_GRANULE_BYTES) as u32);
            let rest = (block.bytes / LARGE_GRANULE_BYTES) as u32 - count;
            self.large.free(start)?;
            self.large.carve(start, count)?;
            self.large.carve(start + count, rest)?;
            let id = u64::from(start + count);
            let rest = Freed { class: core::LARGE, id, bytes: block.bytes - bytes };
            self.give_large(stream, is_own, rest)?;
        }
        Ok(Some(block.id as u32))
    }

    /// The longest block that was freed on the stream or is free for all, out of circulation, together with the
    /// addresses behind it that make it so long; whether it was the stream's.
    fn take_extensible(&mut self, stream: Stream, bytes: u64) -> Result<Option<(Freed, bool)>> {
        let end = |block: &Freed| (block.id + block.bytes / LARGE_GRANULE_BYTES) as u32;
        let has_room = |large: &FreeList, block: &Freed| {
            let behind = large.range_at(end(block));
            let missing = (bytes - block.bytes) / LARGE_GRANULE_BYTES;
            behind.is_some_and(|range| range.state == State::Free && u64::from(range.count) >= missing)
        };
        let own = self.order.open_blocks(stream, core::LARGE).iter().map(|block| (*block, true));
        let all = own.chain(self.idle_large.iter().map(|block| (*block, false)));
        let fitting = all.filter(|(block, _)| block.bytes < bytes && has_room(&self.large, block));
        let Some((block, is_own)) = fitting.max_by_key(|(block, _)| block.bytes) else { return Ok(None) };
        self.large.reserve_nodes(6)?;
        self.large.carve(end(&block), ((bytes - block.bytes) / LARGE_GRANULE_BYTES) as u32)?;
        let is_there = match is_own {
            true => self.order.take_open_block(stream, block),
            false => self.take_idle(block),
        };
        debug_assert!(is_there, "it was found just now");
        Ok(Some((block, is_own)))
    }

    fn give_large(&mut self, stream: Stream, is_own: bool, block: Freed) -> Result<()> {
        if is_own {
            self.order.free(stream, block);
            return Ok(());
        }
        self.give_free(block)
    }

    /// Makes one block of those side by side that the stream freed, and of those that are free for all.
    fn join_large(&mut self, stream: Stream) -> Result<()> {
        let own = self.order.take_open_blocks(stream, core::LARGE);
        let mut joined = Ok(());
        for block in joined_of(&mut self.large, own, &mut joined) {
            self.order.free(stream, block);
        }
        let idle = std::mem::take(&mut self.idle_large);
        self.idle_large = joined_of(&mut self.large, idle, &mut joined);
        joined
    }
}

/// Blocks that are used in `large`, with neighbours made one; as they were from where something failed on.
fn joined_of(large: &mut FreeList, mut blocks: Vec<Freed>, outcome: &mut Result<()>) -> Vec<Freed> {
    let end = |block: &Freed| block.id + block.bytes / LARGE_GRANULE_BYTES;
    blocks.sort_unstable_by_key(|block| block.id);
    let mut joined: Vec<Freed> = Vec::with_capacity(blocks.len());
    for block in blocks {
        match joined.last_mut().filter(|last| end(last) == block.id && outcome.is_ok()) {
            Some(last) => {
                let count = ((last.bytes + block.bytes) / LARGE_GRANULE_BYTES) as u32;
                *outcome = large.reserve_nodes(4);
                if outcome.is_err() {
                    joined.push(block);
                    continue;
                }
                *outcome = [last.id, block.id].iter().try_for_each(|&id| large.free(id as u32).map(drop));
                *outcome =
                    std::mem::replace(outcome, Ok(())).and_then(|()| large.carve(last.id as u32, count));
                last.bytes += block.bytes;
            }
            None => joined.push(block),
        }
    }
    joined
}
