//! The free blocks of a group: handed out in runs of ascending ids where that can be, or in exact order.
//!
//! In runs: one bit a block with levels of summary bits above, so the next free block after any place is found in a
//! few words. A request looks at a few runs from where the last one ended and takes the first that is long enough, or
//! the longest of them. In exact order: a stack, the block freed last goes first. Nothing is allocated after creation.

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
    /// The first level has one bit for each block, each next one a bit for each word below that is not 0.
    levels: Vec<Vec<u64>>,
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
        let mut levels = Vec::new();
        let (mut bits, mut set) = (blocks as usize, free as usize);
        loop {
            let mut words = filled(bits.div_ceil(64), 0)?;
            words[..set / 64].fill(u64::MAX);
            if !set.is_multiple_of(64) {
                words[set / 64] = (1 << (set % 64)) - 1;
            }
            (bits, set) = (words.len(), set.div_ceil(64));
            levels.push(words);
            if bits <= 1 {
                return Ok(Self::Runs(Runs { levels, count: free, cursor: 0 }));
            }
        }
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

    /// Takes one block.
    pub(super) fn pop(&mut self) -> Option<u32> {
        match self {
            Self::Stack(stack) => stack.order.pop(),
            Self::Runs(runs) => runs.take_run(1, None).map(|(first, _)| first),
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
            Self::Runs(runs) => runs.levels.iter().map(|level| 8 * level.len() as u64).sum(),
        }
    }

    /// Checks places or summaries; answers all free blocks.
    pub(super) fn validate(&self) -> Result<Vec<u32>> {
        let runs = match self {
            Self::Stack(stack) => return stack.validate(),
            Self::Runs(runs) => runs,
        };
        for (below, above) in runs.levels.iter().zip(&runs.levels[1..]) {
            let is_right = |(at, &word): (usize, &u64)| (word != 0) == (above[at / 64] >> (at % 64) & 1 == 1);
            if !below.iter().enumerate().all(is_right) {
                return Err(Error::internal("a summary of the free blocks is wrong"));
            }
        }
        let has = |block: &u32| runs.levels[0][*block as usize / 64] >> (block % 64) & 1 == 1;
        let free: Vec<u32> = (0..64 * runs.levels[0].len() as u32).filter(has).collect();
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
        self.set(block as usize / 64, 1 << (block % 64));
    }

    /// Blocks whose bits stand in one word, one after the other, are one write.
    fn insert_all(&mut self, blocks: &[u32]) {
        self.count += blocks.len() as u32;
        let (mut word, mut bits) = (0, 0);
        for &block in blocks {
            let of_block = block as usize / 64;
            if of_block != word {
                self.set(word, bits);
                (word, bits) = (of_block, 0);
            }
            bits |= 1 << (block % 64);
        }
        self.set(word, bits);
    }

    /// Sets bits of a word of the first level, if there are any, and of those above what follows from that.
    fn set(&mut self, mut at: usize, mut bits: u64) {
        if bits == 0 {
            return;
        }
        for level in &mut self.levels {
            let word = &mut level[at];
            let was_empty = *word == 0;
            *word |= bits;
            if !was_empty {
                return;
            }
            (at, bits) = (at / 64, 1 << (at % 64));
        }
    }

    fn remove(&mut self, block: u32) {
        let mut at = block as usize;
        self.count -= 1;
        for level in &mut self.levels {
            let word = &mut level[at / 64];
            *word &= !(1 << (at % 64));
            if *word != 0 {
                return;
            }
            at /= 64;
        }
    }

    /// The first free block at or after this one: up until a word has a bit beyond, then down.
    fn next(&self, from: u32) -> Option<u32> {
        let mut at = from as usize;
        for (height, level) in self.levels.iter().enumerate() {
            let rest = level.get(at / 64)? & (u64::MAX << (at % 64));
            if rest != 0 {
                at = at / 64 * 64 + rest.trailing_zeros() as usize;
                for below in self.levels[..height].iter().rev() {
                    at = at * 64 + below[at].trailing_zeros() as usize;
                }
                return Some(at as u32);
            }
            at = at / 64 + 1;
        }
        None
    }

    /// How many blocks are free from a free one on, counted up to `most`.
    fn length(&self, first: u32, most: u32) -> u32 {
        let mut length = 0;
        while length < most {
            let at = (first + length) as usize;
            let Some(word) = self.levels[0].get(at / 64) else { break };
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

    fn find_run(&self, most: u32) -> Option<(u32, u32)> {
        let mut best = (0, 0);
        let mut from = self.cursor;
        for _ in 0..LOOK {
            let Some(first) = self.next(from).or_else(|| self.next(0)) else { break };
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
                    let Some((first, length)) = free.take_run(most, near) else {
                        assert_eq!(taken.len(), blocks as usize);
                        continue;
                    };
                    assert!((1..=most).contains(&length));
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
