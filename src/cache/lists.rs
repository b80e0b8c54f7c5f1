//! Several doubly linked lists over one array of links: a block is in one of them or in none.
//!
//! Every call is O(1) and allocates nothing. The caller remembers in which list a block is, because it has the
//! reason for that anyway. Invariant: walking `next` from a head visits each block of that list once.

use std::ops::Range;

use super::list::{self, Link, NONE, UNLINKED};
use crate::error::{Error, Result};
use crate::sys::prefetch;
use crate::sys::reserve::filled;

#[derive(Clone, Copy)]
struct Ends {
    oldest: u32,
    newest: u32,
}

/// Lists of blocks, oldest first.
pub(in crate::cache) struct Lists {
    links: Vec<Link>,
    ends: Vec<Ends>,
}

impl Lists {
    pub(in crate::cache) fn new(blocks: u32, lists: usize) -> Result<Self> {
        Ok(Self {
            links: filled(blocks as usize, Link { prev: NONE, next: UNLINKED })?,
            ends: filled(lists, Ends { oldest: NONE, newest: NONE })?,
        })
    }

    pub(in crate::cache) fn contains(&self, block: u32) -> bool {
        self.links[block as usize].next != UNLINKED
    }

    pub(in crate::cache) fn is_empty(&self, list: usize) -> bool {
        self.ends[list].oldest == NONE
    }

    pub(in crate::cache) fn oldest(&self, list: usize) -> Option<u32> {
        Some(self.ends[list].oldest).filter(|&block| block != NONE)
    }

    /// The block after this one in its list.
    pub(in crate::cache) fn newer(&self, block: u32) -> Option<u32> {
        Some(self.links[block as usize].next).filter(|&next| next != NONE)
    }

    /// Gives the oldest blocks of a list, at most so many.
    pub(in crate::cache) fn oldest_few(&self, list: usize, most: usize, each: impl FnMut(u32)) {
        std::iter::successors(self.oldest(list), |&block| self.newer(block)).take(most).for_each(each);
    }

    /// Has the links of a block fetched.
    pub(in crate::cache) fn fetch(&self, block: u32) {
        prefetch::prefetch(&self.links, block as usize);
    }

    /// The same of its neighbours, once its own are there.
    pub(in crate::cache) fn fetch_neighbours(&self, block: u32) {
        let Link { prev, next } = self.links[block as usize];
        prefetch::prefetch(&self.links, prev as usize);
        prefetch::prefetch(&self.links, next as usize);
    }

    /// The row that [`list::fetch_row`] has fetched of the oldest blocks of a list.
    #[inline]
    pub(in crate::cache) fn fetch_row(&self, list: usize, most: usize) -> Option<Range<usize>> {
        list::fetch_row(&self.links, self.oldest(list)?, most)
    }

    pub(in crate::cache) fn push_newest(&mut self, list: usize, block: u32) {
        debug_assert!(!self.contains(block), "a block is linked once");
        let newest = std::mem::replace(&mut self.ends[list].newest, block);
        self.links[block as usize] = Link { prev: newest, next: NONE };
        match newest {
            NONE => self.ends[list].oldest = block,
            newest => self.links[newest as usize].next = block,
        }
    }

    pub(in crate::cache) fn unlink(&mut self, list: usize, block: u32) {
        debug_assert!(self.contains(block), "only a linked block is unlinked");
        let Link { prev, next } = self.links[block as usize];
        match prev {
            NONE => self.ends[list].oldest = next,
            prev => self.links[prev as usize].next = next,
        }
        match next {
            NONE => self.ends[list].newest = prev,
            next => self.links[next as usize].prev = prev,
        }
        self.links[block as usize].next = UNLINKED;
    }

    /// Puts a block that is in no list in the place of one that is in this one.
    pub(in crate::cache) fn replace(&mut self, list: usize, from: u32, to: u32) {
        debug_assert!(self.contains(from) && !self.contains(to), "a block is linked once");
        let Link { prev, next } = self.links[from as usize];
        self.links[to as usize] = Link { prev, next };
        match prev {
            NONE => self.ends[list].oldest = to,
            prev => self.links[prev as usize].next = to,
        }
        match next {
            NONE => self.ends[list].newest = to,
            next => self.links[next as usize].prev = to,
        }
        self.links[from as usize].next = UNLINKED;
    }

    /// Takes the oldest blocks out of a list as long as `goes` says so of the one that is the oldest then.
    #[inline]
    pub(in crate::cache) fn pop_while(&mut self, list: usize, mut goes: impl FnMut(u32) -> bool) {
        let first = self.ends[list].oldest;
        let mut at = first;
        while at != NONE && goes(at) {
            at = std::mem::replace(&mut self.links[at as usize].next, UNLINKED);
        }
        if at == first {
            return;
        }
        self.ends[list].oldest = at;
        match at {
            NONE => self.ends[list].newest = NONE,
            oldest => self.links[oldest as usize].prev = NONE,
        }
    }

    pub(in crate::cache) fn bytes(&self) -> u64 {
        (self.links.len() * size_of::<Link>() + self.ends.len() * size_of::<Ends>()) as u64
    }

    /// Walks all lists; answers for each block the list in which it is.
    pub(in crate::cache) fn validate(&self) -> Result<Vec<Option<usize>>> {
        let mut found = filled(self.links.len(), None)?;
        for (list, ends) in self.ends.iter().enumerate() {
            let (mut at, mut prev) = (ends.oldest, NONE);
            while at != NONE {
                if self.links[at as usize].prev != prev || found[at as usize].is_some() {
                    return Err(Error::internal(format!("list {list} is broken at block {at}")));
                }
                found[at as usize] = Some(list);
                (prev, at) = (at, self.links[at as usize].next);
            }
            if ends.newest != prev {
                return Err(Error::internal(format!("list {list} does not end at its newest block")));
            }
        }
        match (0..self.links.len() as u32).find(|&b| self.contains(b) != found[b as usize].is_some()) {
            Some(block) => Err(Error::internal(format!("block {block} is marked as linked and in no list"))),
            None => Ok(found),
        }
    }
}
