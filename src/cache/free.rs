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
    Stack(Vec<u32>),
    Runs(Runs),
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
    /// All blocks free.
    pub(super) fn new(blocks: u32, is_exact: bool) -> Result<Self> {
        if is_exact {
            let mut stack = room(blocks as usize)?;
            stack.extend((0..blocks).rev());
            return Ok(Self::Stack(stack));
        }
        let mut levels = Vec::new();
        let mut bits = blocks as usize;
        loop {
            let mut words = filled(bits.div_ceil(64), u64::MAX)?;
            if let (Some(last), 1..) = (words.last_mut(), bits % 64) {
                *last = (1 << (bits % 64)) - 1;
            }
            bits = words.len();
            levels.push(words);
            if bits <= 1 {
                return Ok(Self::Runs(Runs { levels, count: blocks, cursor: 0 }));
            }
        }
    }

    pub(super) fn count(&self) -> u32 {
        match self {
            Self::Stack(stack) => stack.len() as u32,
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

    /// Takes one block.
    pub(super) fn pop(&mut self) -> Option<u32> {
        match self {
            Self::Stack(stack) => stack.pop(),
            Self::Runs(runs) => runs.take_run(1, None).map(|(first, _)| first),
        }
    }

    /// Takes a run of at most `most` blocks, the one after `near` if that is free; answers its first and its length.
    pub(super) fn take_run(&mut self, most: u32, near: Option<u32>) -> Option<(u32, u32)> {
        match self {
            Self::Stack(stack) => stack.pop().map(|block| (block, 1)),
            Self::Runs(runs) => runs.take_run(most, near),
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        match self {
            Self::Stack(stack) => 4 * stack.capacity() as u64,
            Self::Runs(runs) => runs.levels.iter().map(|level| 8 * level.len() as u64).sum(),
        }
    }

    /// Checks the summaries; answers all free blocks.
    pub(super) fn validate(&self) -> Result<Vec<u32>> {
        let runs = match self {
            Self::Stack(stack) => return Ok(stack.clone()),
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

impl Runs {
    fn insert(&mut self, block: u32) {
        let mut at = block as usize;
        self.count += 1;
        for level in &mut self.levels {
            let word = &mut level[at / 64];
            let was_empty = *word == 0;
            *word |= 1 << (at % 64);
            if !was_empty {
                return;
            }
            at /= 64;
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
            let mut free = Free::new(blocks, false).unwrap();
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

    /// A million blocks come and go at 90 % use, in requests of 64 to 256.
    #[test]
    fn runs_stay_long_under_churn_at_nine_tenths_use() {
        let (blocks, mut random) = (20_000, fastrand::Rng::with_seed(11));
        let mut free = Free::new(blocks, false).unwrap();
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
