//! A queue by rank with a moving floor: lists for the ranks from the floor up, and bits that tell which hold blocks.
//!
//! Ranks only ever enter at or above the floor, which is the rank of the latest victim, and less than [`RANKS`] above
//! it; so a ring of lists is enough and the next victim is found in a few words. Source: greedy dual with buckets
//! (Cao and Irani, GDSF; LFU with dynamic ageing by Arlitt et al.): the floor is what makes old merit fade.

use crate::cache::lists::Lists;
use crate::error::{Error, Result};
use crate::sys::reserve::filled;

const WORDS: usize = 8;
/// Distinct ranks above the floor.
pub(super) const RANKS: u64 = 64 * WORDS as u64;

pub(super) struct Ranks {
    lists: Lists,
    ranks: Vec<u64>,
    floor: u64,
    /// One bit for each place of the ring.
    is_used: [u64; WORDS],
}

impl Ranks {
    pub(super) fn new(blocks: u32) -> Result<Self> {
        Ok(Self {
            lists: Lists::new(blocks, RANKS as usize)?,
            ranks: filled(blocks as usize, 0)?,
            floor: 0,
            is_used: [0; WORDS],
        })
    }

    /// Lists a block with so much merit above the floor; answers its rank.
    pub(super) fn push(&mut self, block: u32, merit: u64) -> u64 {
        self.push_above(block, merit, 0)
    }

    /// The same, but not below a rank that another block was given.
    pub(super) fn push_above(&mut self, block: u32, merit: u64, least: u64) -> u64 {
        let rank = (self.floor + merit).max(least).min(self.floor + RANKS - 1);
        self.ranks[block as usize] = rank;
        let place = (rank % RANKS) as usize;
        self.lists.push_newest(place, block);
        self.is_used[place / 64] |= 1 << (place % 64);
        rank
    }

    pub(super) fn unlink(&mut self, block: u32) {
        let place = (self.ranks[block as usize] % RANKS) as usize;
        self.lists.unlink(place, block);
        if self.lists.is_empty(place) {
            self.is_used[place / 64] &= !(1 << (place % 64));
        }
    }

    /// The oldest block of the lowest rank, which becomes the floor.
    pub(super) fn pop(&mut self) -> Option<u32> {
        let start = (self.floor % RANKS) as usize;
        let (word, bit) = (start / 64, start % 64);
        let from_start = |at: usize| match at {
            0 => self.is_used[word] & (u64::MAX << bit),
            WORDS => self.is_used[word] & !(u64::MAX << bit),
            at => self.is_used[(word + at) % WORDS],
        };
        let at = (0..=WORDS).find(|&at| from_start(at) != 0)?;
        let place = (word + at) % WORDS * 64 + from_start(at).trailing_zeros() as usize;
        let block = self.lists.oldest(place)?;
        self.floor = self.ranks[block as usize];
        self.unlink(block);
        Some(block)
    }

    pub(super) fn bytes(&self) -> u64 {
        self.lists.bytes() + 8 * self.ranks.len() as u64
    }

    pub(super) fn validate(&self, is_released: &dyn Fn(u32) -> bool) -> Result<()> {
        for (block, list) in (0..).zip(self.lists.validate()?) {
            let rank = self.ranks[block as usize];
            let is_right = match list {
                Some(list) => {
                    list as u64 == rank % RANKS
                        && (self.floor..self.floor + RANKS).contains(&rank)
                        && self.is_used[list / 64] >> (list % 64) & 1 == 1
                }
                None => true,
            };
            if !is_right || list.is_some() != is_released(block) {
                return Err(Error::internal(format!("the ranks are wrong about block {block}")));
            }
        }
        Ok(())
    }
}
