//! The free blocks of a group: handed out in runs of ascending ids where that can be, or in exact order.
//!
//! In runs: one bit a block, so the next free block after any place is found in a few words. A request looks at a few
//! runs from where the last one ended and takes the first that is long enough, or the longest of them. In exact order:
//! a stack, the block freed last goes first. Nothing is allocated after creation.

use super::bits::Bits;
use crate::error::{Error, Result};
use crate::sys::reserve::{filled, room};

/// Runs that a request looks at before it takes the longest so far.
const LOOK: u32 = 16;

/// Free blocks.
pub(super) enum Free {
    Stack(Stack),
    Runs(Runs),
}

/// The block freed last goes first.
pub(super) struct Stack {
    order: Vec<u32>,
    /// By block: where it stands in `order`, if it is free.
    places: Vec<u32>,
}

/// A set of blocks in which the next member is found fast.
pub(super) struct Runs {
    bits: Bits,
    count: u32,
    /// Where the last run ended.
    cursor: u32,
}

impl Free {
    /// The first `free` of so many blocks are free.
    pub(super) fn new(blocks: u32, free: u32, is_exact: bool) -> Result<Self> {
        if is_exact {
            let (order, places) = (room(blocks as usize)?, filled(blocks as usize, 0)?);
            let mut stack = Stack { order, places };
            (0..free).rev().for_each(|block| stack.push(block));
            return Ok(Self::Stack(stack));
        }
        Ok(Self::Runs(Runs { bits: Bits::new(blocks, free)?, count: free, cursor: 0 }))
    }

    pub(super) fn count(&self) -> u32 {
        match self {
            Self::Stack(stack) => stack.order.len() as u32,
            Self::Runs(runs) => runs.count,
        }
    }

    /// Whether blocks are handed out in exact order.
    pub(super) fn is_exact(&self) -> bool {
        matches!(self, Self::Stack(_))
    }

    pub(super) fn push(&mut self, block: u32) {
        match self {
            Self::Stack(stack) => stack.push(block),
            Self::Runs(runs) => runs.insert(block),
        }
    }

    /// The same for several blocks, in this order.
    pub(super) fn push_all(&mut self, blocks: &[u32]) {
        match self {
            Self::Stack(stack) => blocks.iter().for_each(|&block| stack.push(block)),
            Self::Runs(runs) => runs.insert_all(blocks),
        }
    }

    /// Takes this free block. In exact order the one on top comes to its place.
    pub(super) fn take(&mut self, block: u32) {
        match self {
            Self::Stack(stack) => stack.take(block),
            Self::Runs(runs) => runs.remove(block),
        }
    }

    /// Whether a block is free, where runs are sought; false in exact order, where that says nothing of who is next.
    #[inline]
    pub(super) fn has(&self, block: u32) -> bool {
        match self {
            Self::Stack(_) => false,
            Self::Runs(runs) => runs.bits.contains(block),
        }
    }

    /// Takes one block, the one after `near` if that is free; in exact order the one that was freed last.
    #[inline]
    pub(super) fn take_one(&mut self, near: Option<u32>) -> Option<u32> {
        match self {
            Self::Stack(stack) => stack.order.pop(),
            Self::Runs(runs) => runs.take_one(near),
        }
    }

    /// Takes a run of at most `most` blocks, the one after `near` if that is free; answers its first and its length.
    pub(super) fn take_run(&mut self, most: u32, near: Option<u32>) -> Option<(u32, u32)> {
        match self {
            Self::Stack(stack) => stack.order.pop().map(|block| (block, 1)),
            Self::Runs(runs) => runs.take_run(most, near),
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        match self {
            Self::Stack(stack) => 4 * (stack.order.capacity() + stack.places.len()) as u64,
            Self::Runs(runs) => runs.bits.bytes(),
        }
    }

    /// Checks places or summaries; answers all free blocks.
    pub(super) fn validate(&self) -> Result<Vec<u32>> {
        let runs = match self {
            Self::Stack(stack) => return stack.validate(),
            Self::Runs(runs) => runs,
        };
        let free = runs.bits.validate()?;
        match free.len() == runs.count as usize {
            true => Ok(free),
            false => Err(Error::internal("the count of the free blocks is wrong")),
        }
    }
}

impl Stack {
    fn push(&mut self, block: u32) {
        self.places[block as usize] = self.order.len() as u32;
        self.order.push(block);
    }

    fn take(&mut self, block: u32) {
        let at = self.places[block as usize] as usize;
        let taken = self.order.swap_remove(at);
        debug_assert_eq!(taken, block, "a free block knows its place");
        if let Some(&moved) = self.order.get(at) {
            self.places[moved as usize] = at as u32;
        }
    }

    fn validate(&self) -> Result<Vec<u32>> {
        let is_right = |(at, &block): (u32, &u32)| self.places[block as usize] == at;
        match (0..).zip(&self.order).all(is_right) {
            true => Ok(self.order.clone()),
            false => Err(Error::internal("a free block does not know its place")),
        }
    }
}

impl Runs {
    fn insert(&mut self, block: u32) {
        self.count += 1;
        self.bits.insert(block);
    }

    /// Blocks whose bits stand in one word, one after the other, are one write.
    fn insert_all(&mut self, blocks: &[u32]) {
        self.count += blocks.len() as u32;
        let (mut word, mut bits) = (0, 0);
        for &block in blocks {
            let of_block = block as usize / 64;
            if of_block != word {
                self.bits.insert_in_word(word, bits);
                (word, bits) = (of_block, 0);
            }
            bits |= 1 << (block % 64);
        }
        self.bits.insert_in_word(word, bits);
    }

    fn remove(&mut self, block: u32) {
        self.count -= 1;
        self.bits.remove(block);
    }

    /// How many blocks are free from a free one on, counted up to `most`.
    fn length(&self, first: u32, most: u32) -> u32 {
        let mut length = 0;
        while length < most {
            let at = (first + length) as usize;
            let Some(word) = self.bits.words().get(at / 64) else { break };
            let ones = (!(word >> (at % 64))).trailing_zeros().min(64 - (at % 64) as u32);
            length += ones;
            if ones == 0 || !(at + ones as usize).is_multiple_of(64) {
                break;
            }
        }
        length.min(most)
    }

    fn take_run(&mut self, most: u32, near: Option<u32>) -> Option<(u32, u32)> {
        let beside = near.and_then(|near| {
            let length = self.length(near + 1, most);
            (length > 0).then_some((near + 1, length))
        });
        let (first, length) = match beside {
            Some(run) => run,
            None => self.find_run(most)?,
        };
        (first..first + length).for_each(|block| self.remove(block));
        if beside.is_none() {
            self.cursor = first + length;
        }
        Some((first, length))
    }

    /// What `take_run` does for one block.
    fn take_one(&mut self, near: Option<u32>) -> Option<u32> {
        let beside = near.map(|near| near + 1).filter(|&block| self.bits.contains(block));
        let block = match beside {
            Some(block) => block,
            None => {
                let first = self.bits.next(self.cursor).or_else(|| self.bits.next(0))?;
                self.cursor = first + 1;
                first
            }
        };
        self.remove(block);
        Some(block)
    }

    fn find_run(&self, most: u32) -> Option<(u32, u32)> {
        let mut best = (0, 0);
        let mut from = self.cursor;
        for _ in 0..LOOK {
            let Some(first) = self.bits.next(from).or_else(|| self.bits.next(0)) else { break };
            let length = self.length(first, most);
            if length > best.1 {
                best = (first, length);
            }
            if length == most {
                break;
            }
            from = first + length;
        }
        (best.1 > 0).then_some(best)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_set_agrees_with_a_plain_one_and_runs_are_runs() {
        let mut random = fastrand::Rng::with_seed(3);
        for blocks in [1, 63, 64, 65, 4096, 4097, 9000] {
            let mut free = Free::new(blocks, blocks, false).unwrap();
            let mut taken: Vec<u32> = Vec::new();
            for _ in 0..2000 {
                if random.bool() {
                    let most = random.u32(1..100);
                    let near = random.bool().then(|| random.u32(0..blocks));
                    let beside = near.map(|near| near + 1).filter(|&block| free.has(block));
                    let is_free = |block: u32| block < blocks && !taken.contains(&block);
                    assert_eq!(beside, near.map(|near| near + 1).filter(|&block| is_free(block)));
                    let run = match random.bool() {
                        true => free.take_run(most, near),
                        false => free.take_one(near).map(|block| (block, 1)),
                    };
                    let Some((first, length)) = run else {
                        assert_eq!(taken.len(), blocks as usize);
                        continue;
                    };
                    assert!((1..=most).contains(&length) && beside.is_none_or(|block| block == first));
                    let run = first..first + length;
                    assert!(run.end <= blocks && taken.iter().all(|block| !run.contains(block)));
                    taken.extend(run);
                } else if !taken.is_empty() {
                    free.push(taken.swap_remove(random.usize(0..taken.len())));
                }
                assert_eq!(free.count() as usize + taken.len(), blocks as usize);
            }
            let mut all = free.validate().unwrap();
            all.extend(&taken);
            all.sort_unstable();
            assert_eq!(all, (0..blocks).collect::<Vec<_>>());
        }
    }

    #[test]
    fn single_blocks_leave_the_middle_and_come_back_in_either_order() {
        let mut random = fastrand::Rng::with_seed(5);
        for (blocks, first, is_exact) in [
            (1, 1, true),
            (130, 65, true),
            (1, 1, false),
            (130, 64, false),
            (130, 65, false),
            (9000, 4097, false),
        ] {
            let mut free = Free::new(blocks, first, is_exact).unwrap();
            let mut left: Vec<u32> = (0..first).collect();
            let mut taken: Vec<u32> = (first..blocks).collect();
            for _ in 0..3000 {
                if random.bool() && !left.is_empty() {
                    let block = left.swap_remove(random.usize(0..left.len()));
                    free.take(block);
                    taken.insert(random.usize(0..=taken.len()), block);
                } else if !taken.is_empty() {
                    let some = taken.split_off(random.usize(taken.len().saturating_sub(3)..taken.len()));
                    free.push_all(&some);
                    left.extend(some);
                }
                assert_eq!(free.count() as usize, left.len());
            }
            let mut all = free.validate().unwrap();
            all.sort_unstable();
            left.sort_unstable();
            assert_eq!(all, left);
        }
    }

    /// A million blocks come and go at 90 % use, in requests of 64 to 256.
    #[test]
    fn runs_stay_long_under_churn_at_nine_tenths_use() {
        let (blocks, mut random) = (20_000, fastrand::Rng::with_seed(11));
        let mut free = Free::new(blocks, blocks, false).unwrap();
        let mut requests: Vec<Vec<u32>> = Vec::new();
        let (mut churned, mut late_blocks, mut late_runs) = (0, 0, 0);
        while churned < 1_000_000 {
            let wanted = random.u32(64..=256);
            while free.count() < blocks / 10 + wanted {
                let ended = requests.swap_remove(random.usize(0..requests.len()));
                ended.iter().rev().for_each(|&block| free.push(block));
                churned += ended.len();
            }
            let (mut request, mut left, mut near) = (Vec::new(), wanted, None);
            while left > 0 {
                let (first, length) = free.take_run(left, near).unwrap();
                request.extend(first..first + length);
                (left, near) = (left - length, Some(first + length - 1));
                if churned > 500_000 {
                    (late_blocks, late_runs) = (late_blocks + length, late_runs + 1);
                }
            }
            requests.push(request);
        }
        let mean = f64::from(late_blocks) / f64::from(late_runs);
        assert!(mean >= 8.0, "mean run {mean}");
    }
}
