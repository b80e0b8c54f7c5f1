//! From a block's key to the findable blocks that follow it, newest first, for hits that end inside a block.
//!
//! An index holds the first child of each parent; the others hang on it, linked through an array. Adding and removing
//! are O(1); a search looks at the first [`SEARCHED`] children. A child that departs leaves at once if others stay, who
//! know its place; an only child, as nearly all are, stays until its cell is taken out or another comes. Invariants: a
//! listed block is findable, or departed and alone in its list, and stands in the list of the parent that its origin
//! names.

use super::hash::Key;
use super::index::Index;
use super::steps::NONE;
use crate::error::{Error, Result};
use crate::sys::prefetch;
use crate::sys::reserve::filled;

/// Most children of one parent that a search looks at: the newest, which are the likeliest.
pub(super) const SEARCHED: usize = 16;
/// In `next` of a block that is in no list.
const UNLISTED: u32 = u32::MAX - 1;

#[derive(Clone, Copy)]
struct Link {
    prev: u32,
    next: u32,
}

/// A parent by its key, in its namespace.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Parent {
    pub(super) key: Key,
    pub(super) namespace: u32,
}

pub(super) struct Children {
    firsts: Index,
    links: Vec<Link>,
}

impl Children {
    pub(super) fn new(blocks: u32, seed: [u64; 4]) -> Result<Self> {
        let unlisted = Link { prev: NONE, next: UNLISTED };
        Ok(Self { firsts: Index::new(blocks, seed)?, links: filled(blocks as usize, unlisted)? })
    }

    fn hash(&self, parent: &Parent) -> u32 {
        self.firsts.hash(&parent.key, parent.namespace)
    }

    /// The first block in the list of a parent; `is_child` tells whether a block is in it.
    pub(super) fn first(&self, parent: &Parent, is_child: impl FnMut(u32) -> bool) -> Option<u32> {
        self.firsts.find(self.hash(parent), is_child)
    }

    /// The child after this one.
    pub(super) fn next(&self, block: u32) -> Option<u32> {
        Some(self.links[block as usize].next).filter(|&next| next != NONE)
    }

    /// A block became findable. It takes the place of one that has departed.
    pub(super) fn add(
        &mut self,
        block: u32,
        parent: &Parent,
        is_child: impl FnMut(u32) -> bool,
        is_departed: impl FnOnce(u32) -> bool,
    ) {
        let hash = self.hash(parent);
        let mut next = NONE;
        match self.firsts.find(hash, is_child) {
            None => self.firsts.insert(hash, block),
            Some(first) => {
                self.firsts.replace(hash, first, block);
                if is_departed(first) {
                    self.links[first as usize].next = UNLISTED;
                } else {
                    self.links[first as usize].prev = block;
                    next = first;
                }
            }
        }
        self.links[block as usize] = Link { prev: NONE, next };
    }

    /// Whether a block is in a list.
    #[inline]
    pub(super) fn has(&self, block: u32) -> bool {
        self.links[block as usize].next != UNLISTED
    }

    /// Whether a block is in a list with others, which it leaves when it departs.
    #[inline]
    pub(super) fn has_siblings(&self, block: u32) -> bool {
        let Link { prev, next } = self.links[block as usize];
        next != UNLISTED && (prev != NONE || next != NONE)
    }

    /// Has the links of a block fetched.
    #[inline]
    pub(super) fn fetch(&self, block: u32) {
        prefetch::prefetch(&self.links, block as usize);
    }

    /// Has fetched what `remove` of a listed block reads beyond its links, once those are there.
    #[inline]
    pub(super) fn prepare_to_remove(&self, block: u32, parent: &Parent) {
        let Link { prev, next } = self.links[block as usize];
        prefetch::prefetch(&self.links, next as usize);
        match prev {
            NONE => self.firsts.fetch_around(self.hash(parent)),
            prev => prefetch::prefetch(&self.links, prev as usize),
        }
    }

    /// Takes a block out of its list; one that is in none is left alone.
    pub(super) fn remove(&mut self, block: u32, parent: &Parent) {
        let Link { prev, next } = self.links[block as usize];
        if next == UNLISTED {
            return;
        }
        self.links[block as usize].next = UNLISTED;
        if next != NONE {
            self.links[next as usize].prev = prev;
        }
        if prev != NONE {
            self.links[prev as usize].next = next;
            return;
        }
        let hash = self.hash(parent);
        match next {
            NONE => self.firsts.remove(hash, block),
            next => self.firsts.replace(hash, block, next),
        }
    }

    /// Puts an unlisted block in the place of one; where that was never added, there is nothing to do.
    pub(super) fn replace(&mut self, from: u32, to: u32, parent: &Parent) {
        let link = self.links[from as usize];
        if link.next == UNLISTED {
            return;
        }
        self.links[to as usize] = link;
        self.links[from as usize].next = UNLISTED;
        if link.next != NONE {
            self.links[link.next as usize].prev = to;
        }
        match link.prev {
            NONE => self.firsts.replace(self.hash(parent), from, to),
            prev => self.links[prev as usize].next = to,
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.firsts.bytes() + (self.links.len() * size_of::<Link>()) as u64
    }

    /// Checks every list; `parent_of` answers the parent of a block that is findable or departed.
    pub(super) fn validate(
        &self,
        parent_of: impl Fn(u32) -> Option<Parent>,
        is_departed: impl Fn(u32) -> bool,
    ) -> Result<()> {
        let mut lists = 0;
        for (block, link) in (0u32..).zip(&self.links).filter(|(_, link)| link.next != UNLISTED) {
            lists += u32::from(link.prev == NONE);
            if is_departed(block) && self.has_siblings(block) {
                return Err(Error::internal(format!("block {block} departed and is in a list of children")));
            }
            let is_in_place = match (parent_of(block), link.prev) {
                (None, _) => false,
                (Some(parent), NONE) => {
                    self.firsts.find(self.hash(&parent), |first| first == block) == Some(block)
                }
                (_, prev) => self.links[prev as usize].next == block,
            };
            if !is_in_place || (link.next != NONE && self.links[link.next as usize].prev != block) {
                return Err(Error::internal(format!("block {block} is in the wrong list of children")));
            }
        }
        match lists == self.firsts.count() {
            true => Ok(()),
            false => Err(Error::internal("lists of children begin with blocks that are in none")),
        }
    }
}
