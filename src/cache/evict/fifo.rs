//! First in, first out: the block that has been findable longest.
//!
//! All findable blocks stand in one queue by age, in which held ones keep their place.

use super::queues::Queues;
use super::{Facts, Policy};
use crate::error::{Error, Result};

/// The only queue.
const ALL: usize = 0;

struct Fifo {
    by_age: Queues,
}

pub(super) fn make(blocks: u32) -> Result<Box<dyn Policy>> {
    Ok(Box::new(Fifo { by_age: Queues::new(blocks, 1)? }))
}

impl Policy for Fifo {
    fn committed(&mut self, block: u32, _facts: &Facts) {
        self.by_age.push(ALL, block);
    }

    fn acquired(&mut self, block: u32) {
        self.by_age.hold(ALL, block);
    }

    fn released(&mut self, block: u32) {
        self.by_age.release(ALL, block);
    }

    fn moved(&mut self, from: u32, to: u32) {
        self.by_age.replace(ALL, from, to);
    }

    fn removed(&mut self, block: u32, _was_released: bool) {
        self.by_age.remove(ALL, block);
    }

    fn victim(&mut self) -> Option<u32> {
        self.by_age.pop(ALL)
    }

    fn bytes(&self) -> u64 {
        self.by_age.bytes()
    }

    fn validate(&self, is_released: &dyn Fn(u32) -> bool, is_findable: &dyn Fn(u32) -> bool) -> Result<()> {
        for (block, found) in (0..).zip(self.by_age.validate()?) {
            if found != is_findable(block).then(|| (ALL, is_released(block))) {
                return Err(Error::internal(format!("fifo is wrong about block {block}")));
            }
        }
        Ok(())
    }
}
