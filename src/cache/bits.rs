//! A set of small numbers in which the next member after any place is found in a few words.
//!
//! One bit a number, with levels of summary bits above. Nothing is allocated after creation. What it does not: count
//! its members. Invariant: a bit of a level above the first is set exactly where the word below it is not 0.

use crate::error::{Error, Result};
use crate::sys::reserve::{filled, room};

pub(super) struct Bits {
    /// The first level has one bit for each number, each next one a bit for each word below that is not 0.
    levels: Vec<Vec<u64>>,
}

impl Bits {
    /// Numbers below `count`, of which the first `members` are members.
    pub(super) fn new(count: u32, members: u32) -> Result<Self> {
        // 64^6 exceeds every u32.
        let mut levels = room(6)?;
        let (mut bits, mut set) = (count as usize, members as usize);
        loop {
            let mut words = filled(bits.div_ceil(64), 0)?;
            words[..set / 64].fill(u64::MAX);
            if !set.is_multiple_of(64) {
                words[set / 64] = (1 << (set % 64)) - 1;
            }
            (bits, set) = (words.len(), set.div_ceil(64));
            levels.push(words);
            if bits <= 1 {
                return Ok(Self { levels });
            }
        }
    }

    /// Words of the first level.
    pub(super) fn words(&self) -> &[u64] {
        &self.levels[0]
    }

    /// Whether it is a member; no number beyond the last is.
    #[inline]
    pub(super) fn contains(&self, number: u32) -> bool {
        self.words().get(number as usize / 64).is_some_and(|word| word >> (number % 64) & 1 == 1)
    }

    pub(super) fn insert(&mut self, number: u32) {
        self.insert_in_word(number as usize / 64, 1 << (number % 64));
    }

    /// Sets bits of a word of the first level, if there are any, and of those above what follows from that.
    pub(super) fn insert_in_word(&mut self, mut at: usize, mut bits: u64) {
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

    pub(super) fn remove(&mut self, number: u32) {
        let mut at = number as usize;
        for level in &mut self.levels {
            let word = &mut level[at / 64];
            *word &= !(1 << (at % 64));
            if *word != 0 {
                return;
            }
            at /= 64;
        }
    }

    /// The first member at or after this number: up until a word has a bit beyond, then down.
    pub(super) fn next(&self, from: u32) -> Option<u32> {
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

    pub(super) fn bytes(&self) -> u64 {
        self.levels.iter().map(|level| 8 * level.len() as u64).sum()
    }

    /// Checks the summaries; answers all members.
    pub(super) fn validate(&self) -> Result<Vec<u32>> {
        for (below, above) in self.levels.iter().zip(&self.levels[1..]) {
            let is_right = |(at, &word): (usize, &u64)| (word != 0) == (above[at / 64] >> (at % 64) & 1 == 1);
            if !below.iter().enumerate().all(is_right) {
                return Err(Error::internal("a summary of a set of bits is wrong"));
            }
        }
        Ok((0..64 * self.words().len() as u32).filter(|&number| self.contains(number)).collect())
    }
}
