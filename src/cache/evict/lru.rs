//! Least recently used: the block that was let go longest ago.
//!
//! The store releases a path leaf first, so its root is newest and an ancestor never goes before its descendants.

use std::ops::Range;

use super::{Facts, Policy};
use crate::cache::lanes::Lanes;
use crate::error::{Error, Result};

struct Lru {
    /// Exactly the released blocks.
    released: Lanes,
    /// Stamp of the latest.
    now: u64,
}

pub(super) fn make(blocks: u32) -> Result<Box<dyn Policy>> {
    Ok(Box::new(Lru { released: Lanes::new(blocks, 1)?, now: 0 }))
}

impl Policy for Lru {
    fn committed(&mut self, _block: u32, _facts: &Facts) {}

    fn acquired(&mut self, block: u32) {
        self.released.unlink(block);
    }

    fn released(&mut self, block: u32) {
        self.now += 1;
        self.released.push_newest(0, block, self.now);
    }

    fn moved(&mut self, _from: u32, _to: u32) {}

    fn removed(&mut self, block: u32, was_released: bool) {
        if was_released {
            self.released.unlink(block);
        }
    }

    fn victim(&mut self) -> Option<u32> {
        let mut place = [0];
        (self.victims(&mut place) > 0).then_some(place[0])
    }

    fn victims(&mut self, places: &mut [u32]) -> usize {
        let mut count = 0;
        self.released.pop_while(0, |oldest, _| {
            let Some(place) = places.get_mut(count) else { return false };
            *place = oldest;
            count += 1;
            true
        });
        count
    }

    fn likely_victims(&mut self, most: usize, each: &mut dyn FnMut(u32)) {
        self.released.oldest_few(0, most, each);
    }

    fn fetch_next(&mut self, most: usize) -> Option<Range<usize>> {
        self.released.fetch_row(0, most)
    }

    fn fetch(&self, block: u32) {
        self.released.fetch(block);
    }

    fn bytes(&self) -> u64 {
        self.released.bytes()
    }

    fn validate(&self, is_released: &dyn Fn(u32) -> bool, _is_findable: &dyn Fn(u32) -> bool) -> Result<()> {
        let listed = self.released.validate()?;
        match (0..).zip(listed).find(|&(block, list)| list.is_some() != is_released(block)) {
            Some((block, _)) => Err(Error::internal(format!("lru is wrong about block {block}"))),
            None => Ok(()),
        }
    }
}
