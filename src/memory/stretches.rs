//! Freed blocks of one region, of any lengths: by place, by length, and as the stretches that neighbours make.
//!
//! What it does: finds the block of a length that came last, the shortest stretch that is long enough, the longest
//! that are not. Each call is O(log n), whatever is held; a block that is taken again soon after it came has been in no
//! tree. What it does not: make one block of several. Who takes from a stretch gets the blocks it is made of, and until
//! then each of them still serves a request of its own length.
//! Invariants, checked by `validate()`: a block is among the recent ones or in both trees of blocks; the stretches are
//! the longest rows of side by side blocks in these trees, and no two of them touch. Lock order: none, the owner locks.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::order::Freed;
use crate::error::{Error, Result};

/// Blocks that came last and are in no tree yet. A search among so many costs less than one tree.
const RECENT_MAX: usize = 16;

/// A row of blocks side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stretch {
    /// Place of the first one.
    pub(super) id: u64,
    /// All of them together.
    pub(super) bytes: u64,
}

/// Blocks whose ids count granules of one region.
#[derive(Debug)]
pub(super) struct Stretches {
    class: u32,
    granule_bytes: u64,
    /// The one that came last at the end.
    recent: VecDeque<Freed>,
    /// Bytes and stamp by id.
    blocks: BTreeMap<u64, (u64, u64)>,
    /// Bytes, stamp and id.
    by_bytes: BTreeSet<(u64, u64, u64)>,
    /// Bytes by the id of the first block.
    stretches: BTreeMap<u64, u64>,
    /// Bytes and id.
    by_length: BTreeSet<(u64, u64)>,
    /// Of the next block that comes to the trees.
    stamp: u64,
    /// Steps through what is held, for tests of what a call costs.
    #[cfg(test)]
    steps: u64,
}

impl Stretches {
    /// None yet. Blocks are of this class and whole granules long.
    pub(super) fn new(class: u32, granule_bytes: u64) -> Self {
        Self {
            class,
            granule_bytes,
            recent: VecDeque::new(),
            blocks: BTreeMap::new(),
            by_bytes: BTreeSet::new(),
            stretches: BTreeMap::new(),
            by_length: BTreeSet::new(),
            stamp: 0,
            #[cfg(test)]
            steps: 0,
        }
    }

    /// How many blocks there are.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.recent.len() + self.blocks.len()
    }

    /// All blocks, in no order.
    pub(super) fn blocks(&self) -> impl Iterator<Item = Freed> {
        let settled = self.blocks.iter().map(|(&id, &(bytes, _))| self.block(id, bytes));
        settled.chain(self.recent.iter().copied())
    }

    /// Takes a block in.
    pub(super) fn insert(&mut self, block: Freed) {
        if self.recent.len() >= RECENT_MAX
            && let Some(oldest) = self.recent.pop_front()
        {
            self.settle_one(oldest);
        }
        self.recent.push_back(block);
    }

    /// The block of exactly so many bytes that came last.
    pub(super) fn take_sized(&mut self, bytes: u64) -> Option<Freed> {
        self.count_steps(1);
        if let Some(at) = self.recent.iter().rposition(|block| block.bytes == bytes) {
            return self.recent.remove(at);
        }
        let &(_, _, id) = self.by_bytes.range((bytes, 0, 0)..=(bytes, u64::MAX, u64::MAX)).next_back()?;
        self.unsettle(id)
    }

    /// Any block.
    pub(super) fn take_any(&mut self) -> Option<Freed> {
        if let Some(block) = self.recent.pop_back() {
            return Some(block);
        }
        let (&id, _) = self.blocks.last_key_value()?;
        self.unsettle(id)
    }

    /// All blocks.
    pub(super) fn take_all(&mut self) -> Vec<Freed> {
        let blocks = self.blocks().collect();
        *self = Self::new(self.class, self.granule_bytes);
        blocks
    }

    /// The shortest stretch of at least so many bytes, of equals the lowest.
    pub(super) fn shortest(&mut self, bytes: u64) -> Option<Stretch> {
        self.settle();
        self.count_steps(1);
        let &(bytes, id) = self.by_length.range((bytes, 0)..).next()?;
        Some(Stretch { id, bytes })
    }

    /// The stretches of less than so many bytes, the longest first.
    pub(super) fn longest_below(&mut self, bytes: u64) -> impl Iterator<Item = Stretch> {
        self.settle();
        self.by_length.range(..(bytes, 0)).rev().map(|&(bytes, id)| Stretch { id, bytes })
    }

    /// Bytes of the longest stretch.
    pub(super) fn longest_bytes(&mut self) -> u64 {
        self.settle();
        self.by_length.last().map_or(0, |&(bytes, _)| bytes)
    }

    /// Takes the blocks of a stretch from its first one on, until they have so many bytes.
    pub(super) fn take_first(&mut self, stretch: Stretch, bytes: u64) -> Vec<Freed> {
        let (mut first, mut taken) = (Vec::new(), 0);
        while taken < bytes
            && let Some(block) = self.unsettle(stretch.id + taken / self.granule_bytes)
        {
            taken += block.bytes;
            first.push(block);
        }
        self.count_steps(first.len() as u64);
        first
    }

    fn block(&self, id: u64, bytes: u64) -> Freed {
        Freed { class: self.class, id, bytes }
    }

    fn count_steps(&mut self, _count: u64) {
        #[cfg(test)]
        {
            self.steps += _count;
        }
    }

    fn end(&self, id: u64, bytes: u64) -> u64 {
        id + bytes / self.granule_bytes
    }

    fn settle(&mut self) {
        while let Some(block) = self.recent.pop_front() {
            self.settle_one(block);
        }
    }

    /// Puts a block into the trees, where it may join the stretches beside it.
    fn settle_one(&mut self, block: Freed) {
        self.count_steps(1);
        self.stamp += 1;
        self.blocks.insert(block.id, (block.bytes, self.stamp));
        self.by_bytes.insert((block.bytes, self.stamp, block.id));
        let Freed { mut id, mut bytes, .. } = block;
        if let Some(above) = self.stretches.remove(&self.end(id, bytes)) {
            self.by_length.remove(&(above, self.end(id, bytes)));
            bytes += above;
        }
        if let Some((&below, &length)) = self.stretches.range(..id).next_back()
            && self.end(below, length) == id
        {
            self.by_length.remove(&(length, below));
            (id, bytes) = (below, bytes + length);
        }
        self.stretches.insert(id, bytes);
        self.by_length.insert((bytes, id));
    }

    /// Takes a block out of the trees, and out of the stretch that it is a part of.
    fn unsettle(&mut self, id: u64) -> Option<Freed> {
        self.count_steps(1);
        let (bytes, stamp) = self.blocks.remove(&id)?;
        self.by_bytes.remove(&(bytes, stamp, id));
        let (&start, &length) = self.stretches.range(..=id).next_back()?;
        self.by_length.remove(&(length, start));
        let (end, last) = (self.end(id, bytes), self.end(start, length));
        if start < id {
            let below = (id - start) * self.granule_bytes;
            self.stretches.insert(start, below);
            self.by_length.insert((below, start));
        } else {
            self.stretches.remove(&start);
        }
        if end < last {
            let above = (last - end) * self.granule_bytes;
            self.stretches.insert(end, above);
            self.by_length.insert((above, end));
        }
        Some(self.block(id, bytes))
    }

    /// Proves that the trees say the same, from the blocks alone.
    pub(super) fn validate(&self) -> Result<()> {
        let fail = |text: String| Err(Error::internal(text));
        let mut rows: Vec<Stretch> = Vec::new();
        for (&id, &(bytes, stamp)) in &self.blocks {
            if !self.by_bytes.contains(&(bytes, stamp, id)) || stamp > self.stamp {
                return fail(format!("block {id} of {bytes} bytes is not to be found by its length"));
            }
            match rows.last_mut() {
                Some(row) if self.end(row.id, row.bytes) > id => {
                    return fail(format!("block {id} lies in the one below it"));
                }
                Some(row) if self.end(row.id, row.bytes) == id => row.bytes += bytes,
                _ => rows.push(Stretch { id, bytes }),
            }
        }
        let is_right = |row: &Stretch| {
            self.stretches.get(&row.id) == Some(&row.bytes) && self.by_length.contains(&(row.bytes, row.id))
        };
        let counts = (self.by_bytes.len(), self.stretches.len(), self.by_length.len());
        if counts != (self.blocks.len(), rows.len(), rows.len()) || !rows.iter().all(is_right) {
            return fail(format!("{} blocks in {} rows, {counts:?} known", self.blocks.len(), rows.len()));
        }
        if self.recent.len() > RECENT_MAX || self.blocks().any(|block| block.class != self.class) {
            return fail(format!("{} recent blocks, or one of another class", self.recent.len()));
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "stretches_tests.rs"]
mod tests;
