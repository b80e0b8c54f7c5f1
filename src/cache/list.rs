//! A doubly linked list over indices (blocks, rows), in one array; every call is O(1) and allocates nothing.
//!
//! Invariant: walking `next` from the head visits each linked block once and ends at the tail.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::sys::prefetch;
use crate::sys::reserve::filled;

pub(super) const NONE: u32 = u32::MAX;
/// Marks a block that is in no list, in its `next`.
pub(super) const UNLINKED: u32 = u32::MAX - 1;

/// Neighbours of a block in the one list in which it is.
#[derive(Clone, Copy)]
pub(super) struct Link {
    pub(super) prev: u32,
    pub(super) next: u32,
}

/// Has the links of the oldest blocks of a list fetched, at most so many, if those lie in a row, as they do that came
/// and went together; answers that row.
#[inline]
pub(super) fn fetch_row(links: &[Link], oldest: u32, most: usize) -> Option<Range<usize>> {
    let oldest = oldest as usize;
    let row = match links[oldest].next as usize {
        next if next == oldest + 1 => oldest..(oldest + most).min(links.len()),
        next if next + 1 == oldest => (oldest + 1).saturating_sub(most)..oldest + 1,
        _ => return None,
    };
    prefetch::prefetch_all(links, row.clone());
    Some(row)
}

/// A list of blocks, oldest first.
pub(in crate::cache) struct List {
    links: Vec<Link>,
    head: u32,
    tail: u32,
    count: u32,
}

impl List {
    pub(in crate::cache) fn new(count: u32) -> Result<Self> {
        let unlinked = Link { prev: NONE, next: UNLINKED };
        Ok(Self { links: filled(count as usize, unlinked)?, head: NONE, tail: NONE, count: 0 })
    }

    pub(in crate::cache) fn contains(&self, block: u32) -> bool {
        self.links[block as usize].next != UNLINKED
    }

    pub(in crate::cache) fn count(&self) -> u32 {
        self.count
    }

    pub(in crate::cache) fn oldest(&self) -> Option<u32> {
        Some(self.head).filter(|&head| head != NONE)
    }

    pub(in crate::cache) fn push_newest(&mut self, block: u32) {
        debug_assert!(!self.contains(block), "a block is linked once");
        self.links[block as usize] = Link { prev: self.tail, next: NONE };
        match self.tail {
            NONE => self.head = block,
            tail => self.links[tail as usize].next = block,
        }
        self.tail = block;
        self.count += 1;
    }

    pub(in crate::cache) fn push_oldest(&mut self, block: u32) {
        debug_assert!(!self.contains(block), "a block is linked once");
        self.links[block as usize] = Link { prev: NONE, next: self.head };
        match self.head {
            NONE => self.tail = block,
            head => self.links[head as usize].prev = block,
        }
        self.head = block;
        self.count += 1;
    }

    pub(in crate::cache) fn unlink(&mut self, block: u32) {
        debug_assert!(self.contains(block), "only a linked block is unlinked");
        let Link { prev, next } = self.links[block as usize];
        match prev {
            NONE => self.head = next,
            prev => self.links[prev as usize].next = next,
        }
        match next {
            NONE => self.tail = prev,
            next => self.links[next as usize].prev = prev,
        }
        self.links[block as usize].next = UNLINKED;
        self.count -= 1;
    }

    /// Puts a block that is in no list in the place of one that is.
    pub(in crate::cache) fn replace(&mut self, from: u32, to: u32) {
        debug_assert!(self.contains(from) && !self.contains(to), "a block is linked once");
        let Link { prev, next } = self.links[from as usize];
        self.links[to as usize] = Link { prev, next };
        match prev {
            NONE => self.head = to,
            prev => self.links[prev as usize].next = to,
        }
        match next {
            NONE => self.tail = to,
            next => self.links[next as usize].prev = to,
        }
        self.links[from as usize].next = UNLINKED;
    }

    pub(in crate::cache) fn pop_oldest(&mut self) -> Option<u32> {
        let block = self.oldest()?;
        let next = std::mem::replace(&mut self.links[block as usize].next, UNLINKED);
        self.head = next;
        match next {
            NONE => self.tail = NONE,
            next => self.links[next as usize].prev = NONE,
        }
        self.count -= 1;
        Some(block)
    }

    pub(in crate::cache) fn bytes(&self) -> u64 {
        (self.links.len() * size_of::<Link>()) as u64
    }

    /// Walks the list and checks both directions; returns its blocks.
    pub(in crate::cache) fn validate(&self) -> Result<Vec<u32>> {
        let (mut at, mut prev, mut seen) = (self.head, NONE, Vec::new());
        while at != NONE {
            if seen.len() > self.links.len() || self.links[at as usize].prev != prev {
                return Err(Error::internal(format!("list is broken at block {at}")));
            }
            seen.push(at);
            (prev, at) = (at, self.links[at as usize].next);
        }
        if self.tail != prev || seen.len() != self.count as usize {
            return Err(Error::internal("list does not end at its tail"));
        }
        Ok(seen)
    }
}
