//! Fragmentation-aware lru: among the oldest few, the one that lies beside the latest victim goes first.
//!
//! Free slots then come in longer runs of ascending numbers, which copies and transfers like. It looks at
//! [`LOOK`] blocks and no further, so a victim is never younger than that, and costs O(1).

use super::{Facts, Policy};
use crate::cache::lists::Lists;
use crate::error::{Error, Result};

/// Blocks among which the neighbour is looked for.
const LOOK: usize = 8;

struct RunsLru {
    /// Exactly the released blocks, in one list.
    released: Lists,
    latest: u32,
}

pub(super) fn make(blocks: u32) -> Result<Box<dyn Policy>> {
    Ok(Box::new(RunsLru { released: Lists::new(blocks, 1)?, latest: u32::MAX }))
}

impl Policy for RunsLru {
    fn committed(&mut self, _block: u32, _facts: &Facts) {}

    fn acquired(&mut self, block: u32) {
        self.released.unlink(0, block);
    }

    fn released(&mut self, block: u32) {
        self.released.push_newest(0, block);
    }

    fn moved(&mut self, _from: u32, _to: u32) {}

    fn removed(&mut self, block: u32, was_released: bool) {
        if was_released {
            self.released.unlink(0, block);
        }
    }

    fn victim(&mut self) -> Option<u32> {
        let oldest = self.released.oldest(0)?;
        let mut oldest_few =
            std::iter::successors(Some(oldest), |&block| self.released.newer(block)).take(LOOK);
        let beside = oldest_few.find(|block| block.abs_diff(self.latest) == 1);
        let block = beside.unwrap_or(oldest);
        self.released.unlink(0, block);
        self.latest = block;
        Some(block)
    }

    fn likely_victims(&mut self, most: usize, each: &mut dyn FnMut(u32)) {
        self.released.oldest_few(0, most, each);
    }

    fn fetch(&self, block: u32) {
        self.released.fetch(block);
    }

    fn bytes(&self) -> u64 {
        self.released.bytes()
    }

    fn validate(&self, is_released: &dyn Fn(u32) -> bool, _is_findable: &dyn Fn(u32) -> bool) -> Result<()> {
        for (block, list) in (0..).zip(self.released.validate()?) {
            if list.is_some() != is_released(block) {
                return Err(Error::internal(format!("runs-lru is wrong about block {block}")));
            }
        }
        Ok(())
    }
}
