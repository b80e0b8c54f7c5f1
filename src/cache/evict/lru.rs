//! Least recently used: the block that was let go longest ago.
//!
//! The store releases a path leaf first, so its root is newest and an ancestor never goes before its descendants.

use std::ops::Range;

use super::{Facts, Policy};
use crate::cache::list::List;
use crate::error::{Error, Result};

struct Lru {
    /// Exactly the released blocks.
    released: List,
}

pub(super) fn make(blocks: u32) -> Result<Box<dyn Policy>> {
    Ok(Box::new(Lru { released: List::new(blocks)? }))
}

impl Policy for Lru {
    fn committed(&mut self, _block: u32, _facts: &Facts) {}

    fn acquired(&mut self, block: u32) {
        self.released.unlink(block);
    }

    fn released(&mut self, block: u32) {
        self.released.push_newest(block);
    }

    fn moved(&mut self, _from: u32, _to: u32) {}

    fn removed(&mut self, block: u32, was_released: bool) {
        if was_released {
            self.released.unlink(block);
        }
    }

    fn victim(&mut self) -> Option<u32> {
        self.released.pop_oldest()
    }

    fn victims(&mut self, places: &mut [u32]) -> usize {
        self.released.pop_oldest_into(places)
    }

    fn likely_victims(&mut self, most: usize, each: &mut dyn FnMut(u32)) {
        self.released.oldest_few(most, each);
    }

    fn fetch_next(&mut self, most: usize) -> Option<Range<usize>> {
        self.released.fetch_row(most)
    }

    fn fetch(&self, block: u32) {
        self.released.fetch(block);
    }

    fn bytes(&self) -> u64 {
        self.released.bytes()
    }

    fn validate(&self, is_released: &dyn Fn(u32) -> bool, _is_findable: &dyn Fn(u32) -> bool) -> Result<()> {
        let listed = self.released.validate()?;
        match listed.iter().find(|&&block| !is_released(block)) {
            Some(block) => Err(Error::internal(format!("lru lists block {block}, which is held"))),
            None => Ok(()),
        }
    }
}
