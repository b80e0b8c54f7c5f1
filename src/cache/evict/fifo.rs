//! First in, first out: the block that has been findable longest.
//!
//! All findable blocks stand in one list by age. A held block at the old end is set aside once, and put back at the
//! old end when it is released: it is older than everything listed. So each block is passed over at most once for
//! each time it is held, and a victim costs O(1) amortised. Among blocks set aside together the order is that of
//! their release; the store releases a path leaf first, which puts its root, the oldest, in front.

use super::{Facts, Policy};
use crate::cache::list::List;
use crate::error::{Error, Result};
use crate::sys::reserve::filled;

struct Fifo {
    by_age: List,
    is_held: Vec<bool>,
}

pub(super) fn make(blocks: u32) -> Result<Box<dyn Policy>> {
    Ok(Box::new(Fifo { by_age: List::new(blocks)?, is_held: filled(blocks as usize, false)? }))
}

impl Policy for Fifo {
    fn committed(&mut self, block: u32, _facts: &Facts) {
        self.is_held[block as usize] = true;
        self.by_age.push_newest(block);
    }

    fn acquired(&mut self, block: u32) {
        self.is_held[block as usize] = true;
    }

    fn released(&mut self, block: u32) {
        self.is_held[block as usize] = false;
        if !self.by_age.contains(block) {
            self.by_age.push_oldest(block);
        }
    }

    fn moved(&mut self, from: u32, to: u32) {
        self.is_held.swap(from as usize, to as usize);
        if self.by_age.contains(from) {
            self.by_age.replace(from, to);
        }
    }

    fn removed(&mut self, block: u32, _was_released: bool) {
        self.is_held[block as usize] = false;
        if self.by_age.contains(block) {
            self.by_age.unlink(block);
        }
    }

    fn victim(&mut self) -> Option<u32> {
        loop {
            let block = self.by_age.pop_oldest()?;
            if !self.is_held[block as usize] {
                return Some(block);
            }
        }
    }

    fn bytes(&self) -> u64 {
        self.by_age.bytes() + self.is_held.len() as u64
    }

    fn validate(&self, is_released: &dyn Fn(u32) -> bool, is_findable: &dyn Fn(u32) -> bool) -> Result<()> {
        let mut is_listed = filled(self.is_held.len(), false)?;
        for block in self.by_age.validate()? {
            is_listed[block as usize] = true;
        }
        for block in 0..self.is_held.len() as u32 {
            let held = is_findable(block) && !is_released(block);
            if held != self.is_held[block as usize] || (is_released(block) && !is_listed[block as usize]) {
                return Err(Error::internal(format!("fifo is wrong about block {block}")));
            }
        }
        Ok(())
    }
}
