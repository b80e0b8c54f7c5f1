//! The findable blocks of one group by owner, so that a wipe or a limit touches nobody else's.
//!
//! Two lists for each owner: the order list, oldest first, and those set aside. Blocks of an owner without a limit
//! stand in the order list in the order of their publication. With a limit, a block that somebody holds is set aside
//! and comes back as the newest when its last holder lets go, so the oldest of the order list is the next to go.
//! Blocks that were held when the limit came stand in the order list until they are met there, once each.
//! Invariant: each findable block stands in exactly one list, that of its owner. Every call is O(1). The same lists
//! keep the blocks of each namespace, where none is set aside and none is counted as cached.

use crate::error::{Error, Result};
use crate::sys::prefetch;
use crate::sys::reserve::{Zeroed, filled};

/// First of the two ends of the order list among an owner's words; ends are block + 1, 0 for none.
const ORDER: usize = 0;
/// First of the two ends of the list of those set aside.
const ASIDE: usize = 2;
/// Blocks that the policy may evict.
const CACHED: usize = 4;

/// The lists of all owners.
pub(super) struct OwnerLists {
    /// Pages come as owners do.
    owners: Zeroed<[u32; 5]>,
    /// By block: the one before and the one after, + 1.
    links: Vec<[u32; 2]>,
}

impl OwnerLists {
    pub(super) fn new(blocks: u32, owners: u32) -> Result<Self> {
        Ok(Self { owners: Zeroed::new(owners as usize)?, links: filled(blocks as usize, [0; 2])? })
    }

    #[inline]
    fn push_to(&mut self, owner: u32, list: usize, block: u32) {
        let ends = &mut self.owners[owner as usize][list..list + 2];
        let tail = ends[1];
        ends[1] = block + 1;
        match tail {
            0 => ends[0] = block + 1,
            tail => self.links[tail as usize - 1][1] = block + 1,
        }
        self.links[block as usize] = [tail, 0];
    }

    /// Takes a block out of the list in which it is.
    pub(super) fn unlink(&mut self, owner: u32, block: u32) {
        let [before, after] = std::mem::take(&mut self.links[block as usize]);
        let ends = &mut self.owners[owner as usize];
        // Only an end of a list tells which list it is, and only there it matters.
        match before {
            0 if ends[ORDER] == block + 1 => ends[ORDER] = after,
            0 => ends[ASIDE] = after,
            before => self.links[before as usize - 1][1] = after,
        }
        match after {
            0 if ends[ORDER + 1] == block + 1 => ends[ORDER + 1] = before,
            0 => ends[ASIDE + 1] = before,
            after => self.links[after as usize - 1][0] = before,
        }
    }

    /// Takes several blocks out of the lists in which they are. Those of which each stood beside the one before it go
    /// as one piece.
    pub(super) fn unlink_all(&mut self, owner: u32, mut blocks: &[u32]) {
        while let [first, rest @ ..] = blocks {
            let [mut before, mut after] = self.links[*first as usize];
            let (mut front, mut back) = (first + 1, first + 1);
            blocks = rest;
            while let [next, rest @ ..] = blocks {
                if before == next + 1 {
                    (front, before) = (before, self.links[*next as usize][0]);
                } else if after == next + 1 {
                    (back, after) = (after, self.links[*next as usize][1]);
                } else {
                    break;
                }
                blocks = rest;
            }
            let ends = &mut self.owners[owner as usize];
            match before {
                0 if ends[ORDER] == front => ends[ORDER] = after,
                0 => ends[ASIDE] = after,
                before => self.links[before as usize - 1][1] = after,
            }
            match after {
                0 if ends[ORDER + 1] == back => ends[ORDER + 1] = before,
                0 => ends[ASIDE + 1] = before,
                after => self.links[after as usize - 1][0] = before,
            }
        }
    }

    /// Puts a block that is in no list in the place of one that is.
    pub(super) fn replace(&mut self, owner: u32, from: u32, to: u32) {
        let [before, after] = std::mem::take(&mut self.links[from as usize]);
        self.links[to as usize] = [before, after];
        let ends = &mut self.owners[owner as usize];
        match before {
            0 if ends[ORDER] == from + 1 => ends[ORDER] = to + 1,
            0 => ends[ASIDE] = to + 1,
            before => self.links[before as usize - 1][1] = to + 1,
        }
        match after {
            0 if ends[ORDER + 1] == from + 1 => ends[ORDER + 1] = to + 1,
            0 => ends[ASIDE + 1] = to + 1,
            after => self.links[after as usize - 1][0] = to + 1,
        }
    }

    /// A block becomes findable.
    pub(super) fn push(&mut self, owner: u32, block: u32) {
        self.push_to(owner, ORDER, block);
    }

    /// A listed block is held: it is not to be met in the order list.
    pub(super) fn set_aside(&mut self, owner: u32, block: u32) {
        self.unlink(owner, block);
        self.push_to(owner, ASIDE, block);
    }

    /// A listed block becomes the newest.
    pub(super) fn renew(&mut self, owner: u32, block: u32) {
        self.unlink(owner, block);
        self.push_to(owner, ORDER, block);
    }

    /// The oldest of the order list.
    pub(super) fn oldest(&self, owner: u32) -> Option<u32> {
        self.owners[owner as usize][ORDER].checked_sub(1)
    }

    /// The order list from its oldest on.
    pub(super) fn in_order(&self, owner: u32) -> impl Iterator<Item = u32> + '_ {
        let after = |&block: &u32| self.links[block as usize][1].checked_sub(1);
        std::iter::successors(self.oldest(owner), after)
    }

    /// Those set aside go back into the empty order list: some were released while the owner had no limit.
    pub(super) fn take_back(&mut self, owner: u32) {
        let ends = &mut self.owners[owner as usize];
        debug_assert_eq!(ends[ORDER], 0, "the order list is empty");
        (ends[ORDER], ends[ORDER + 1]) = (ends[ASIDE], ends[ASIDE + 1]);
        (ends[ASIDE], ends[ASIDE + 1]) = (0, 0);
    }

    /// Any block of the owner.
    pub(super) fn any(&self, owner: u32) -> Option<u32> {
        let ends = &self.owners[owner as usize];
        ends[ORDER].checked_sub(1).or(ends[ASIDE].checked_sub(1))
    }

    pub(super) fn cached(&self, owner: u32) -> u32 {
        self.owners[owner as usize][CACHED]
    }

    pub(super) fn add_cached(&mut self, owner: u32, count: i64) {
        let cached = &mut self.owners[owner as usize][CACHED];
        *cached = cached.wrapping_add_signed(count as i32);
    }

    /// Has what `unlink` reads of a block fetched.
    pub(super) fn fetch(&self, block: u32) {
        prefetch::prefetch(&self.links, block as usize);
    }

    /// The same of its neighbours, once its own is there.
    pub(super) fn fetch_neighbours(&self, block: u32) {
        self.links[block as usize].iter().for_each(|&at| {
            prefetch::prefetch(&self.links, (at as usize).wrapping_sub(1));
        });
    }

    pub(super) fn bytes(&self) -> u64 {
        self.links.len() as u64 * 8 + self.owners.len() as u64 * 20
    }

    /// Walks both lists of an owner, giving each block to `visit`.
    pub(super) fn validate(&self, owner: u32, mut visit: impl FnMut(u32)) -> Result<()> {
        let ends = &self.owners[owner as usize];
        for list in [ORDER, ASIDE] {
            let (mut at, mut before, mut seen) = (ends[list], 0, 0);
            while at != 0 {
                seen += 1;
                if seen > self.links.len() || self.links[at as usize - 1][0] != before {
                    return Err(Error::internal(format!("the list of owner {owner} is broken")));
                }
                visit(at - 1);
                (before, at) = (at, self.links[at as usize - 1][1]);
            }
            if ends[list + 1] != before {
                return Err(Error::internal(format!("the list of owner {owner} does not end at its tail")));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pieces of lists, out of order, over both lists and over their ends, against single blocks.
    #[test]
    fn several_blocks_leave_their_lists_as_single_ones_do() {
        let mut random = fastrand::Rng::with_seed(3);
        for _ in 0..2000 {
            let count = random.u32(1..24);
            let [mut one, mut other] = [(); 2].map(|()| OwnerLists::new(24, 2).unwrap());
            for block in 0..count {
                let is_aside = random.u8(0..4) == 0;
                for lists in [&mut one, &mut other] {
                    lists.push(1, block);
                    if is_aside {
                        lists.set_aside(1, block);
                    }
                }
            }
            let mut gone: Vec<u32> = (0..count).filter(|_| random.u8(0..3) > 0).collect();
            match random.u8(0..3) {
                0 => gone.reverse(),
                1 => random.shuffle(&mut gone),
                _ => {}
            }
            gone.iter().for_each(|&block| one.unlink(1, block));
            other.unlink_all(1, &gone);
            let [mut left, mut also] = [Vec::new(), Vec::new()];
            one.validate(1, |block| left.push(block)).unwrap();
            other.validate(1, |block| also.push(block)).unwrap();
            assert_eq!(left, also, "without {gone:?} of {count}");
        }
    }
}
