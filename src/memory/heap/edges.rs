//! What is free of large blocks and shares a page of the device with something that is not.
//!
//! A block that was cut ends inside of a page of up to 64 MiB. The rest of that page cannot go to the device before the
//! block does; as addresses without an owner it would be nobody's, and its memory with it. So it stays a free block
//! where only whole pages go, and serves whoever would be refused otherwise.
//! What it does not: decide when pages go. Invariant: a large block that is given up has whole pages behind it.

use super::super::order::Freed;
use super::super::region::{LARGE_GRANULE_BYTES, Region};
use super::{Heap, LARGE, core};
use crate::device::Stream;
use crate::error::{Error, Result, Status};

fn end(block: &Freed) -> u64 {
    block.id + block.bytes / LARGE_GRANULE_BYTES
}

impl Heap {
    /// The large blocks that are free for all, out of circulation, neighbours that share a page as one; what shares one
    /// with others is cut off and stays free.
    pub(super) fn take_whole_idle(&self, region: &Region) -> Result<Vec<Freed>> {
        let mut idle: Vec<Freed> = {
            let mut core = self.core.lock();
            std::iter::from_fn(|| core.take_any_idle()).collect()
        };
        idle.sort_unstable_by_key(|block| block.id);
        let mut runs: Vec<Freed> = Vec::with_capacity(idle.len());
        for block in idle {
            let before = runs.last_mut().filter(|last| end(last) == block.id);
            // A page table's lock is held across calls into the device, and so not taken under `core`.
            let is_joined = match before.filter(|_| begins_inside(region, &block)) {
                Some(last) => self.core.lock().join_two(last, &block)?,
                None => false,
            };
            if !is_joined {
                runs.push(block);
            }
        }
        let mut outcome = Ok(());
        let mut whole = Vec::with_capacity(runs.len());
        for run in runs {
            let part = whole_part(region, &run);
            let mut core = self.core.lock();
            match part.filter(|_| outcome.is_ok()) {
                Some(part) if part == run => whole.push(part),
                Some(part) => match core.cut_out(&run, &part) {
                    Ok(()) => whole.push(part),
                    Err(error) => {
                        outcome = Err(error);
                        core.give_free(run)?;
                    }
                },
                None => core.give_free(run)?,
            }
        }
        if outcome.is_err() {
            let mut core = self.core.lock();
            whole.drain(..).try_for_each(|block| core.give_free(block))?;
        }
        outcome.map(|()| whole)
    }

    /// The longest part of free large blocks that shares a page with something else, and stays where pages go.
    pub(super) fn longest_rest_bytes(&self) -> u64 {
        let Some(region) = self.regions.get(LARGE) else { return 0 };
        let mut idle: Vec<Freed> = self.core.lock().idle_large.blocks().collect();
        idle.sort_unstable_by_key(|block| block.id);
        let rest = |blocks: &[Freed]| {
            let bytes = blocks.iter().map(|block| block.bytes).sum();
            let run = Freed { bytes, ..*blocks.first()? };
            let Some(part) = whole_part(region, &run) else { return Some(bytes) };
            Some((part.id - run.id).max(end(&run) - end(&part)) * LARGE_GRANULE_BYTES)
        };
        idle.chunk_by(|one, next| end(one) == next.id).filter_map(rest).max().unwrap_or(0)
    }

    /// A part of a free large block for what was refused for want of memory, if it may have one and one is left.
    pub(super) fn part_instead(
        &self,
        refusal: Error,
        (stream, bytes): (Stream, u64),
        may_have: bool,
    ) -> Result<u32> {
        if !may_have || refusal.status != Status::OutOfMemory {
            return Err(refusal);
        }
        self.reuse_part(stream, bytes)?.ok_or(refusal)
    }
}

/// The part of a block that has pages of its own.
fn whole_part(region: &Region, block: &Freed) -> Option<Freed> {
    let (first, end) = region.pages(block.id * LARGE_GRANULE_BYTES, block.bytes);
    let (low, high) = region.range.whole_within(first, end);
    // A page that reaches across the edge of a granule is one of several granules.
    let granules = |pages: u64| pages * region.page_bytes / LARGE_GRANULE_BYTES;
    let (id, bytes) = (block.id + granules(low - first), granules(high - low) * LARGE_GRANULE_BYTES);
    (bytes > 0).then_some(Freed { class: block.class, id, bytes })
}

/// Whether a block begins inside of a page of the device.
fn begins_inside(region: &Region, block: &Freed) -> bool {
    let (first, _) = region.pages(block.id * LARGE_GRANULE_BYTES, 0);
    region.range.whole_within(first, first + 1).0 > first
}

impl core::Core {
    /// Makes a block longer by the one behind it, both out of circulation; not where there is no room for the change.
    fn join_two(&mut self, block: &mut Freed, next: &Freed) -> Result<bool> {
        if self.large.reserve_nodes(4).is_err() {
            return Ok(false);
        }
        self.large.free(block.id as u32)?;
        self.large.free(next.id as u32)?;
        block.bytes += next.bytes;
        self.large.carve(block.id as u32, (block.bytes / LARGE_GRANULE_BYTES) as u32)?;
        Ok(true)
    }

    /// Makes a part of a block that is out of circulation a block of its own; what is before and behind it is free.
    fn cut_out(&mut self, block: &Freed, part: &Freed) -> Result<()> {
        // What can fail comes before anything is free for a moment, and nobody's any more.
        self.large.reserve_nodes(6)?;
        self.large.free(block.id as u32)?;
        let places = [(block.id, part.id), (part.id, end(part)), (end(part), end(block))];
        for (first, end) in places.into_iter().filter(|(first, end)| first < end) {
            self.large.carve(first as u32, (end - first) as u32)?;
            if first != part.id {
                let bytes = (end - first) * LARGE_GRANULE_BYTES;
                self.give_free(Freed { class: block.class, id: first, bytes })?;
            }
        }
        Ok(())
    }
}
