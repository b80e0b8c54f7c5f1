//! Least frequently used, with ageing: merit is the number of times a block came back, above a floor that rises.
//!
//! A block that was popular once and is no more is overtaken by the floor, the merit of the latest victim. Our
//! variant: at most [`MOST`] returns count; in-cache counts, lost on eviction; the oldest of equal merit goes.

use super::ranks::Ranks;
use super::{Facts, Policy};
use crate::error::Result;
use crate::sys::reserve::filled;

/// Returns that count.
const MOST: u8 = 63;

struct Lfu {
    ranks: Ranks,
    returns: Vec<u8>,
}

pub(super) fn make(blocks: u32) -> Result<Box<dyn Policy>> {
    Ok(Box::new(Lfu { ranks: Ranks::new(blocks)?, returns: filled(blocks as usize, 0)? }))
}

impl Policy for Lfu {
    fn committed(&mut self, block: u32, _facts: &Facts) {
        self.returns[block as usize] = 0;
    }

    fn acquired(&mut self, block: u32) {
        self.ranks.unlink(block);
        let returns = &mut self.returns[block as usize];
        *returns = (*returns + 1).min(MOST);
    }

    fn released(&mut self, block: u32) {
        self.ranks.push(block, self.returns[block as usize].into());
    }

    fn moved(&mut self, from: u32, to: u32) {
        self.returns[to as usize] = self.returns[from as usize];
    }

    fn removed(&mut self, block: u32, was_released: bool) {
        if was_released {
            self.ranks.unlink(block);
        }
    }

    fn victim(&mut self) -> Option<u32> {
        self.ranks.pop()
    }

    fn bytes(&self) -> u64 {
        self.ranks.bytes() + self.returns.len() as u64
    }

    fn validate(&self, is_released: &dyn Fn(u32) -> bool, _is_findable: &dyn Fn(u32) -> bool) -> Result<()> {
        self.ranks.validate(is_released)
    }
}
