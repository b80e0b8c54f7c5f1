//! What was evicted a while ago: fingerprints with the time they were let go and a class, in fixed memory.
//!
//! A table of sets of eight words, one cache line each; a new ghost takes the place of the oldest of its set. A word
//! is a fingerprint of 23 bits, a stamp of 38 and a class of 2, so a strange block is taken for a ghost about once in
//! a million lookups, which costs a wrong guess and nothing else. Stamps are compared modulo 2^38.

use crate::error::Result;
use crate::sys::prefetch;
use crate::sys::reserve::filled;

const WAYS: usize = 8;
const STAMP_BITS: u32 = 38;
const STAMP_MASK: u64 = (1 << STAMP_BITS) - 1;

/// What is remembered of an evicted block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ghost {
    /// Touches since the block was let go.
    pub(super) age: u64,
    /// 0 to 3.
    pub(super) class: usize,
}

#[derive(Clone)]
#[repr(align(64))]
struct Set([u64; WAYS]);

pub(super) struct Ghosts {
    sets: Vec<Set>,
}

impl Ghosts {
    /// Room for about that many.
    pub(super) fn new(count: u64) -> Result<Self> {
        // At least sixteen sets, so that a small table does not hang on the luck of its hash.
        let sets = count.div_ceil(WAYS as u64).max(16) as usize;
        Ok(Self { sets: filled(sets, Set([0; WAYS]))? })
    }

    fn place(&self, fingerprint: u64) -> usize {
        ((u128::from(fingerprint.rotate_left(32)) * self.sets.len() as u128) >> 64) as usize
    }

    fn set(&mut self, fingerprint: u64) -> &mut Set {
        let at = self.place(fingerprint);
        &mut self.sets[at]
    }

    /// Has fetched where a ghost of this fingerprint is or will be.
    pub(super) fn fetch(&self, fingerprint: u64) {
        prefetch::prefetch(&self.sets, self.place(fingerprint));
    }

    fn tag(fingerprint: u64) -> u64 {
        // Never 0, which marks an empty word.
        fingerprint >> 40 | 1
    }

    fn age(word: u64, now: u64) -> u64 {
        now.wrapping_sub(word >> 2) & STAMP_MASK
    }

    pub(super) fn insert(&mut self, fingerprint: u64, stamp: u64, class: usize, now: u64) {
        let word = Self::tag(fingerprint) << 40 | (stamp & STAMP_MASK) << 2 | class as u64;
        let set = self.set(fingerprint);
        // The stamp in the upper bits, the tag shifted out, counted from the oldest that there can be. An empty word is
        // older than every ghost until stamps wrap, and from then on as old as any.
        let first = now.wrapping_add(1) << (64 - STAMP_BITS);
        let (mut oldest, mut least) = (0, u64::MAX);
        for (way, &word) in set.0.iter().enumerate() {
            let youth = (word << (62 - STAMP_BITS)).wrapping_sub(first);
            if youth <= least {
                (oldest, least) = (way, youth);
            }
        }
        set.0[oldest] = word;
    }

    /// Finds a ghost and lays it to rest.
    pub(super) fn take(&mut self, fingerprint: u64, now: u64) -> Option<Ghost> {
        // A tag is never 0, so an empty word has none.
        let tag = Self::tag(fingerprint);
        let set = self.set(fingerprint);
        let way = set.0.iter().position(|&word| word >> 40 == tag)?;
        let word = std::mem::take(&mut set.0[way]);
        Some(Ghost { age: Self::age(word, now), class: (word & 3) as usize })
    }

    pub(super) fn bytes(&self) -> u64 {
        (self.sets.len() * size_of::<Set>()) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ghost_is_found_once_and_the_oldest_of_a_full_set_gives_way() {
        let mut ghosts = Ghosts::new(8).unwrap();
        // Equal low halves fall into one set; tags differ above bit 40.
        let fingerprint = |n: u64| (n + 1) << 41;
        for n in 0..9 {
            ghosts.insert(fingerprint(n), 100 + n, (n % 4) as usize, 110);
        }
        assert_eq!(ghosts.take(fingerprint(0), 110), None);
        assert_eq!(ghosts.take(fingerprint(5), 110), Some(Ghost { age: 5, class: 1 }));
        assert_eq!(ghosts.take(fingerprint(5), 110), None);
    }

    #[test]
    fn ages_survive_the_wrap_of_the_stamp() {
        let mut ghosts = Ghosts::new(8).unwrap();
        let stamp = (1 << STAMP_BITS) - 3;
        ghosts.insert(u64::MAX / 3, stamp, 3, stamp + 1);
        assert_eq!(ghosts.take(u64::MAX / 3, stamp + 9), Some(Ghost { age: 9, class: 3 }));
    }
}
