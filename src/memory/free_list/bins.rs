//! Bins of free nodes by their count, and the search for one that fits.
//!
//! What it does not: split or join. Invariants: a node hangs in the bin of its count; a bin's bit is set if and only
//! if it holds a node, and a word's bit in the summary if and only if the word is not zero. A bin is a ring through a
//! node of its own, the one with the bin's number: what happens to a ring is the same wherever in it, so that linking
//! has no branch that a processor has to guess. The first few nodes of a bin are looked at, except where nothing else
//! fits.

use super::{FreeList, Kind, NONE, Node, SPARE};

/// Counts below 32 have a bin each, larger ones share 32 bins for each doubling; u32::MAX is in the last.
pub(super) const BIN_COUNT: usize = bin_of(u32::MAX) as usize + 1;

/// Nodes of a bin that are compared before the best of them is taken.
const TRIES: usize = 4;

/// The 5 bits behind the leading one, and its place.
#[inline]
pub(super) const fn bin_of(count: u32) -> u32 {
    let shift = (count | 32).ilog2() - 5;
    (shift << 5) + (count >> shift)
}

/// The node of an empty bin: nothing fits into it, and it lies above all others.
pub(super) fn ring(bin: u32) -> Node {
    Node { start: NONE, prev: bin, next: bin, kind: Kind::Bin, ..SPARE }
}

/// Which bins hold a node.
#[derive(Debug, Default)]
pub(super) struct Bins {
    pub(super) words: [u64; BIN_COUNT / 64],
    pub(super) summary: u32,
}

impl Bins {
    /// The lowest bin that holds something, from `bin` on.
    #[inline]
    fn next(&self, bin: u32) -> Option<u32> {
        let word = (bin >> 6) as usize;
        let here = self.words.get(word)? & u64::MAX << (bin & 63);
        if here != 0 {
            return Some(bin & !63 | here.trailing_zeros());
        }
        let above = self.summary & (u32::MAX << word) << 1;
        let word = if above == 0 { return None } else { above.trailing_zeros() };
        Some(word << 6 | self.words[word as usize].trailing_zeros())
    }

    /// The highest bin that holds something.
    pub(super) fn last(&self) -> Option<u32> {
        let word = self.summary.checked_ilog2()?;
        Some(word << 6 | self.words[word as usize].ilog2())
    }
}

impl FreeList {
    /// Nodes of a bin.
    pub(super) fn in_bin(&self, bin: u32) -> impl Iterator<Item = u32> {
        let follow = move |index: u32| Some(self.nodes[index as usize].next).filter(|&next| next != bin);
        std::iter::successors(follow(bin), move |&index| follow(index))
    }

    /// Hangs a free node into its bin: in front if it is lower than the first, else second. So a bin that is used leans
    /// to low addresses, for one comparison with a node that is written anyway.
    #[inline]
    pub(super) fn link(&mut self, index: u32) {
        let Node { count, start, .. } = self.nodes[index as usize];
        let bin = bin_of(count);
        let first = self.nodes[bin as usize].next;
        let prev = if start < self.nodes[first as usize].start { bin } else { first };
        let next = self.nodes[prev as usize].next;
        let node = &mut self.nodes[index as usize];
        (node.prev, node.next) = (prev, next);
        self.nodes[prev as usize].next = index;
        self.nodes[next as usize].prev = index;
        self.bins.words[(bin >> 6) as usize] |= 1 << (bin & 63);
        self.bins.summary |= 1 << (bin >> 6);
    }

    /// Takes a node out of the bin that it hangs in.
    #[inline]
    pub(super) fn unlink(&mut self, index: u32, bin: u32) {
        let Node { prev, next, .. } = self.nodes[index as usize];
        self.nodes[next as usize].prev = prev;
        self.nodes[prev as usize].next = next;
        // Only around the bin's own node are both neighbours the same.
        let is_empty = prev == next && prev == bin;
        let word = &mut self.bins.words[(bin >> 6) as usize];
        *word &= !(u64::from(is_empty) << (bin & 63));
        self.bins.summary &= !(u32::from(*word == 0) << (bin >> 6));
    }

    /// Moves a node whose count has changed from its old bin to the right one.
    #[inline]
    pub(super) fn settle(&mut self, index: u32, bin: u32) {
        if bin_of(self.nodes[index as usize].count) != bin {
            self.unlink(index, bin);
            self.link(index);
        }
    }

    /// A free node where the request fits, and where in it.
    #[inline]
    pub(super) fn find(&self, count: u32, alignment: u32) -> Option<(u32, u32)> {
        let own = bin_of(count);
        let mut at = own;
        // In its own bin a request may not fit, and an aligned one may not in some above; further up each node fits.
        while let Some(bin) = self.bins.next(at) {
            if let Some(found) = self.best_of(bin, TRIES, count, alignment) {
                return Some(found);
            }
            at = bin + 1;
        }
        self.find_thoroughly(own, count, alignment)
    }

    /// Looks at every node that may fit, because those in front do not: a request is refused only where nothing fits.
    #[cold]
    fn find_thoroughly(&self, own: u32, count: u32, alignment: u32) -> Option<(u32, u32)> {
        let mut at = own;
        while let Some(bin) = self.bins.next(at) {
            if let Some(found) = self.best_of(bin, usize::MAX, count, alignment) {
                return Some(found);
            }
            at = bin + 1;
        }
        None
    }

    /// The smallest of the first nodes of a bin in which the request fits; of equals the lowest.
    #[inline]
    fn best_of(&self, bin: u32, tries: usize, count: u32, alignment: u32) -> Option<(u32, u32)> {
        let (mut best, mut best_index, mut best_start) = (u64::MAX, NONE, 0);
        let mut index = self.nodes[bin as usize].next;
        for _ in 0..tries {
            let node = &self.nodes[index as usize];
            let (fits, start) = node.fit(count, alignment);
            let worth = u64::from(node.count) << 32 | u64::from(start);
            if fits & (worth < best) {
                (best, best_index, best_start) = (worth, index, start);
            }
            index = node.next;
            if index == bin {
                break;
            }
        }
        (best_index != NONE).then_some((best_index, best_start))
    }
}
