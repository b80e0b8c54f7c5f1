//! Addresses at which the device keeps a mapping though its memory was given up: others are used instead.
//!
//! What it does: takes such addresses out of the lists of what can get memory, once they were tried in vain, and puts
//! them back when the mapping has gone. What it does not: try to remove a mapping; the range does, in the passes of the
//! upkeep and with each trim, and not for each request.
//! Invariants, checked by `validate()`: what is set aside of middle and large sizes is used there and is nobody's
//! block; a page of slots is in no list. Lock order: `growing`, then `core`; a range's list of what it keeps, alone.

use std::collections::BTreeSet;

use super::super::free_list::{FreeList, State};
use super::super::region::{LARGE_GRANULE_BYTES, MIDDLE_GRANULE_BYTES, Region, SLAB_PAGE_BYTES};
use super::core::Core;
use super::{Heap, LARGE, MIDDLE};
use crate::error::{Error, Result};

/// Granules of a middle block in one of a large one.
const EACH: u32 = (LARGE_GRANULE_BYTES / MIDDLE_GRANULE_BYTES) as u32;

/// Addresses of a region, in granules of `LARGE_GRANULE_BYTES`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Aside {
    pub(super) number: usize,
    pub(super) start: u32,
    pub(super) count: u32,
}

const _: () = assert!(SLAB_PAGE_BYTES == LARGE_GRANULE_BYTES, "pages of slots count as granules");

/// First granule and end of all that meets a mapping which the device keeps.
fn stuck_parts(region: &Region) -> Vec<(u32, u32)> {
    let base = region.pages(0, 0).0;
    let offset = |page: u64| (page - base) * region.page_bytes;
    let granules = |(first, end)| {
        let end = offset(end).div_ceil(LARGE_GRANULE_BYTES) as u32;
        ((offset(first) / LARGE_GRANULE_BYTES) as u32, end)
    };
    region.range.stuck_in(0, u64::MAX).into_iter().map(granules).collect()
}

/// Start and count of what is free of `[first, end)`.
fn free_in(list: &FreeList, first: u32, end: u32) -> Vec<(u32, u32)> {
    let (mut found, mut at) = (Vec::new(), first);
    while let Some(range) = list.range_at(at).filter(|_| at < end) {
        let stop = end.min(range.start + range.count);
        if range.state == State::Free {
            found.push((at, stop - at));
        }
        at = stop;
    }
    found
}

impl Heap {
    /// Grows; again, at other addresses, as long as the device keeps mappings at those that were tried. `grow` leaves
    /// all as it was where it fails.
    pub(super) fn pass_over<T>(&self, number: usize, grow: impl Fn() -> Result<T>) -> Result<T> {
        loop {
            let grown = grow();
            if grown.is_ok() || !self.set_aside(number) {
                return grown;
            }
        }
    }

    /// Sets aside what is stuck and could get memory; whether there was any.
    fn set_aside(&self, number: usize) -> bool {
        let stuck = self.regions.get(number).map(stuck_parts).unwrap_or_default();
        if stuck.is_empty() {
            return false;
        }
        let mut core = self.core.lock();
        let before = core.aside.len();
        for (first, end) in stuck {
            if core.set_aside(number, first, end).is_err() {
                // Without host memory the rest stays where it is.
                break;
            }
        }
        core.aside.len() > before
    }

    /// What is not stuck any more can get memory again.
    pub(super) fn take_aside_back(&self) {
        let aside: BTreeSet<Aside> = self.core.lock().aside.clone();
        let is_free = |part: &&Aside| {
            self.regions.get(part.number).is_none_or(|region| {
                let bytes = |granules: u32| u64::from(granules) * LARGE_GRANULE_BYTES;
                let (first, end) = region.pages(bytes(part.start), bytes(part.count));
                region.range.stuck_in(first, end).is_empty()
            })
        };
        for part in aside.iter().filter(is_free) {
            let mut core = self.core.lock();
            if core.aside.remove(part) && core.give_aside(part).is_err() {
                core.aside.insert(*part);
            }
        }
    }
}

impl Core {
    fn set_aside(&mut self, number: usize, first: u32, end: u32) -> Result<()> {
        match number {
            MIDDLE => {
                for (start, count) in free_in(&self.middle_bare, first, end) {
                    self.middle_bare.reserve_nodes(4)?;
                    self.middle.reserve_nodes(4)?;
                    self.middle_bare.carve(start, count)?;
                    self.middle_bare.withdraw(start)?;
                    // A gap there is where new memory may go.
                    self.middle.insert(start * EACH, count * EACH)?;
                    self.middle.carve(start * EACH, count * EACH)?;
                    self.aside.insert(Aside { number, start, count });
                }
            }
            LARGE => {
                for (start, count) in free_in(&self.large, first, end) {
                    self.large.carve(start, count)?;
                    self.aside.insert(Aside { number, start, count });
                }
            }
            _ => {
                let Some(small) = self.small.get_mut(number).and_then(Option::as_mut) else { return Ok(()) };
                let pages = small.take_bare_in(first, end);
                self.aside.extend(pages.into_iter().map(|start| Aside { number, start, count: 1 }));
            }
        }
        Ok(())
    }

    fn give_aside(&mut self, &Aside { number, start, count }: &Aside) -> Result<()> {
        match number {
            MIDDLE => {
                self.middle.reserve_nodes(4)?;
                self.middle_bare.reserve_nodes(4)?;
                self.middle.withdraw(start * EACH)?;
                self.middle_bare.insert(start, count)
            }
            LARGE => self.large.free(start).map(drop),
            _ => {
                let small = self.small.get_mut(number).and_then(Option::as_mut);
                small.ok_or_else(|| Error::internal("a page of no class"))?.give_bare(start);
                Ok(())
            }
        }
    }

    /// What is set aside of middle and large sizes: region, and id as of a block.
    pub(super) fn aside_runs(&self) -> impl Iterator<Item = (usize, u64)> {
        let runs = self.aside.iter().filter(|part| part.number >= MIDDLE);
        runs.map(|part| {
            (part.number, u64::from(part.start) * if part.number == MIDDLE { EACH.into() } else { 1 })
        })
    }

    /// What is set aside is in no list of what can get memory.
    pub(super) fn prove_aside(&self) -> Result<()> {
        let is_right = |&&Aside { number, start, count }: &&Aside| match number {
            MIDDLE => self.middle.size_of(start * EACH) == Some(count * EACH),
            LARGE => self.large.size_of(start) == Some(count),
            _ => {
                let small = self.small.get(number).and_then(Option::as_ref);
                small.is_some_and(|small| count == 1 && small.is_nowhere(start))
            }
        };
        match self.aside.iter().find(|part| !is_right(part)) {
            Some(part) => Err(Error::internal(format!("heap: {part:?} is set aside, and in a list as well"))),
            None => Ok(()),
        }
    }
}
