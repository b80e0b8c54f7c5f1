//! A set of small numbers that finds its lowest member, or the nearest one, in a fixed number of steps.
//!
//! What it does not: count its members; who needs that keeps the number. Invariant: a bit of a level above the lowest
//! is set if and only if its word of 64 bits one level below is not zero, so one word a level leads to a member. Pages
//! of the lowest level are taken from the system as they are first written: a wide set with few members is cheap.

use crate::error::{Error, Result};
use crate::sys::reserve::Zeroed;

/// 64^6 exceeds every u32.
const MOST_LEVELS: usize = 6;

/// Numbers below a limit that is fixed when it is made.
#[derive(Debug)]
pub(super) struct Bitmap {
    /// All levels, the lowest first.
    words: Zeroed<u64>,
    /// Where each level begins in `words`; the top one is a single word.
    begins: [u32; MOST_LEVELS],
    levels: usize,
    limit: u32,
}

impl Bitmap {
    /// The empty set of numbers below `limit`.
    pub(super) fn new(limit: u32) -> Result<Self> {
        let (mut begins, mut levels, mut total) = ([0; MOST_LEVELS], 0, 0);
        let mut width = limit.div_ceil(64).max(1);
        loop {
            (begins[levels], levels) = (total, levels + 1);
            total += width;
            if width == 1 {
                break;
            }
            width = width.div_ceil(64);
        }
        Ok(Self { words: Zeroed::new(total as usize)?, begins, levels, limit })
    }

    /// Where the lowest level says what some numbers are: address and bytes.
    pub(super) fn words_of(&self, first: u32, count: u32) -> (usize, u64) {
        let (begin, end) = (first as usize / 64, (first as usize + count as usize).div_ceil(64));
        (self.words[begin..end].as_ptr().addr(), 8 * (end - begin) as u64)
    }

    #[inline]
    fn place(&self, level: usize, word: u32) -> usize {
        (self.begins[level] + word) as usize
    }

    /// Whether it is a member; a number beyond the limit never is.
    #[inline]
    pub(super) fn contains(&self, number: u32) -> bool {
        number < self.limit && self.words[(number >> 6) as usize] >> (number & 63) & 1 == 1
    }

    /// Makes a number below the limit a member.
    #[inline]
    pub(super) fn insert(&mut self, number: u32) {
        debug_assert!(number < self.limit, "{number} is not below {}", self.limit);
        let mut at = number;
        for level in 0..self.levels {
            let place = self.place(level, at >> 6);
            let before = self.words[place];
            self.words[place] = before | 1 << (at & 63);
            if before != 0 {
                return;
            }
            at >>= 6;
        }
    }

    /// Makes a number below the limit no member.
    #[inline]
    pub(super) fn remove(&mut self, number: u32) {
        debug_assert!(number < self.limit, "{number} is not below {}", self.limit);
        let mut at = number;
        for level in 0..self.levels {
            let place = self.place(level, at >> 6);
            let after = self.words[place] & !(1 << (at & 63));
            self.words[place] = after;
            if after != 0 {
                return;
            }
            at >>= 6;
        }
    }

    /// The lowest member.
    #[inline]
    pub(super) fn first(&self) -> Option<u32> {
        match self.words[self.place(self.levels - 1, 0)] {
            0 => None,
            _ => Some(self.descend(self.levels, 0, u64::trailing_zeros)),
        }
    }

    /// The lowest member that is not below `number`.
    pub(super) fn at_or_after(&self, number: u32) -> Option<u32> {
        let mut at = number;
        if at >= self.limit {
            return None;
        }
        let mut mask = u64::MAX << (at & 63);
        for level in 0..self.levels {
            let word = self.words[self.place(level, at >> 6)] & mask;
            if word != 0 {
                return Some(self.descend(level, at & !63 | word.trailing_zeros(), u64::trailing_zeros));
            }
            at >>= 6;
            // Everything above the word that has just been seen; two shifts, because 64 at once is too many.
            mask = (u64::MAX << (at & 63)) << 1;
        }
        None
    }

    /// The highest member that is not above `number`.
    pub(super) fn at_or_before(&self, number: u32) -> Option<u32> {
        let mut at = number.min(self.limit.checked_sub(1)?);
        let mut mask = u64::MAX >> (63 - (at & 63));
        for level in 0..self.levels {
            let word = self.words[self.place(level, at >> 6)] & mask;
            if word != 0 {
                return Some(self.descend(level, at & !63 | word.ilog2(), |word| 63 - word.leading_zeros()));
            }
            at >>= 6;
            mask = (1 << (at & 63)) - 1;
        }
        None
    }

    /// From word `at` of the level below `level`, down to a member.
    #[inline]
    fn descend(&self, level: usize, mut at: u32, pick: fn(u64) -> u32) -> u32 {
        for level in (0..level).rev() {
            at = at << 6 | pick(self.words[self.place(level, at)]);
        }
        at
    }

    /// Checks the invariant in the file head and that there are `members`.
    pub(super) fn validate(&self, members: u64) -> Result<()> {
        for level in 1..self.levels {
            for word in 0..self.begins[level] - self.begins[level - 1] {
                let below = self.words[self.place(level - 1, word)];
                if (self.words[self.place(level, word >> 6)] >> (word & 63) & 1 == 1) != (below != 0) {
                    return Err(Error::internal(format!("bitmap: level {level} is wrong about word {word}")));
                }
            }
        }
        let lowest = if self.levels > 1 { self.begins[1] } else { 1 };
        let counted: u64 =
            self.words[..lowest as usize].iter().map(|word| u64::from(word.count_ones())).sum();
        if counted != members {
            return Err(Error::internal(format!(
                "bitmap: {counted} bits are set, there should be {members}"
            )));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn it_agrees_with_a_sorted_set() {
        for limit in [1, 63, 64, 65, 4096, 4097, 300_000] {
            let mut rng = fastrand::Rng::with_seed(u64::from(limit));
            let (mut bitmap, mut model) = (Bitmap::new(limit).unwrap(), BTreeSet::new());
            for _ in 0..3_000 {
                let number = rng.u32(..limit);
                if rng.u32(..5) < 3 {
                    bitmap.insert(number);
                    model.insert(number);
                } else {
                    let number = bitmap.at_or_after(number).unwrap_or(number);
                    bitmap.remove(number);
                    model.remove(&number);
                }
                let asked = rng.u32(..limit + limit / 8);
                assert_eq!(bitmap.contains(asked), model.contains(&asked));
                assert_eq!(bitmap.first(), model.first().copied());
                assert_eq!(bitmap.at_or_after(asked), model.range(asked..).next().copied(), "from {asked}");
                assert_eq!(bitmap.at_or_before(asked), model.range(..=asked).last().copied(), "to {asked}");
            }
            bitmap.validate(model.len() as u64).unwrap();
            assert!(bitmap.validate(model.len() as u64 + 1).is_err());
        }
    }

    #[test]
    fn validate_sees_a_summary_that_lies() {
        let mut bitmap = Bitmap::new(100_000).unwrap();
        bitmap.insert(70_000);
        bitmap.validate(1).unwrap();
        let summary = bitmap.place(1, 70_000 >> 12);
        bitmap.words[summary] = 0;
        assert!(bitmap.validate(1).is_err());
    }

    #[test]
    fn a_set_of_nothing_and_one_of_every_u32_can_be_asked() {
        let nothing = Bitmap::new(0).unwrap();
        assert_eq!((nothing.first(), nothing.at_or_after(0), nothing.at_or_before(9)), (None, None, None));
        let mut widest = Bitmap::new(u32::MAX).unwrap();
        widest.insert(u32::MAX - 1);
        assert_eq!((widest.first(), widest.at_or_before(u32::MAX)), (Some(u32::MAX - 1), Some(u32::MAX - 1)));
        widest.remove(u32::MAX - 1);
        assert_eq!(widest.first(), None);
    }
}
