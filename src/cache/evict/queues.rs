//! Queues by age in which a block keeps its place while it is held, however many are: the oldest that may go is found
//! in a few words.
//!
//! A queue is a ring of slots, twice as many as there are blocks. A block takes the next one and leaves a gap when it
//! goes; one bit a slot tells which may go. Where an old block comes near to the next slot, the gaps are closed, a few
//! slots for each block that is pushed: from the youngest to the oldest, each moves up to the one before it. Every call
//! looks at a bounded number of slots. The caller remembers in which queue a block is.

use crate::cache::bits::Bits;
use crate::error::{Error, Result};
use crate::sys::reserve::filled;

const NONE: u32 = u32::MAX;
/// Slots that are looked at for each push while gaps are closed. A quarter of the ring is free when that begins, so
/// that the other three quarters must be done by then.
const LOOKED_AT: u32 = 4;

pub(super) struct Queues {
    rings: Vec<Ring>,
    /// By block: its slot.
    slots: Vec<u32>,
}

struct Ring {
    /// By slot: its block. From `next` on, around the ring, the oldest block comes first.
    blocks: Vec<u32>,
    /// Slots of the blocks that may go.
    ready: Bits,
    next: u32,
    count: u32,
    /// While gaps are closed: slots yet to be looked at, which end before `from`, and where the last block went.
    left: u32,
    from: u32,
    to: u32,
}

impl Queues {
    pub(super) fn new(blocks: u32, queues: usize) -> Result<Self> {
        let rings = (0..queues).map(|_| Ring::new(blocks)).collect::<Result<_>>()?;
        Ok(Self { rings, slots: filled(blocks as usize, NONE)? })
    }

    /// Adds a block, which is held, as the newest of a queue.
    pub(super) fn push(&mut self, queue: usize, block: u32) {
        let ring = &mut self.rings[queue];
        ring.put(ring.next, block, &mut self.slots);
        ring.next = ring.after(ring.next);
        ring.count += 1;
        ring.close_gaps(&mut self.slots);
    }

    /// The block may not go from now on.
    pub(super) fn hold(&mut self, queue: usize, block: u32) {
        self.rings[queue].ready.remove(self.slots[block as usize]);
    }

    /// The block may go from now on.
    pub(super) fn release(&mut self, queue: usize, block: u32) {
        self.rings[queue].ready.insert(self.slots[block as usize]);
    }

    /// Puts `to`, which is in no queue, in the place of a held one.
    pub(super) fn replace(&mut self, queue: usize, from: u32, to: u32) {
        let slot = std::mem::replace(&mut self.slots[from as usize], NONE);
        self.rings[queue].put(slot, to, &mut self.slots);
    }

    pub(super) fn remove(&mut self, queue: usize, block: u32) {
        let (ring, slot) = (&mut self.rings[queue], std::mem::replace(&mut self.slots[block as usize], NONE));
        ring.ready.remove(slot);
        ring.blocks[slot as usize] = NONE;
        ring.count -= 1;
    }

    /// Takes the oldest block that may go.
    pub(super) fn pop(&mut self, queue: usize) -> Option<u32> {
        let ring = &self.rings[queue];
        let slot = ring.ready.next(ring.next).or_else(|| ring.ready.next(0))?;
        let block = ring.blocks[slot as usize];
        self.remove(queue, block);
        Some(block)
    }

    /// Blocks of a queue, held ones too.
    pub(super) fn count(&self, queue: usize) -> u32 {
        self.rings[queue].count
    }

    pub(super) fn bytes(&self) -> u64 {
        let of_ring = |ring: &Ring| 4 * ring.blocks.len() as u64 + ring.ready.bytes();
        4 * self.slots.len() as u64 + self.rings.iter().map(of_ring).sum::<u64>()
    }

    /// Checks all queues; answers for each block the queue in which it is, and whether it may go.
    pub(super) fn validate(&self) -> Result<Vec<Option<(usize, bool)>>> {
        let mut found = filled(self.slots.len(), None)?;
        for (queue, ring) in self.rings.iter().enumerate() {
            ring.validate(&self.slots)?;
            for (slot, &block) in (0..).zip(&ring.blocks).filter(|&(_, &block)| block != NONE) {
                found[block as usize] = Some((queue, ring.ready.contains(slot)));
            }
        }
        match found.iter().zip(&self.slots).position(|(found, &slot)| found.is_some() != (slot != NONE)) {
            Some(block) => Err(Error::internal(format!("block {block} has a slot and is in no queue"))),
            None => Ok(found),
        }
    }
}

impl Ring {
    fn new(blocks: u32) -> Result<Self> {
        let slots = (2 * u64::from(blocks)).next_multiple_of(64);
        let slots = u32::try_from(slots).map_err(|_| Error::internal("a queue of too many blocks"))?;
        let (blocks, ready) = (filled(slots as usize, NONE)?, Bits::new(slots, 0)?);
        Ok(Self { blocks, ready, next: 0, count: 0, left: 0, from: 0, to: 0 })
    }

    fn len(&self) -> u32 {
        self.blocks.len() as u32
    }

    /// Slots that are free from the next one on unless gaps are being closed.
    fn margin(&self) -> u32 {
        self.len() / 4
    }

    fn after(&self, slot: u32) -> u32 {
        if slot + 1 == self.len() { 0 } else { slot + 1 }
    }

    fn before(&self, slot: u32) -> u32 {
        slot.checked_sub(1).unwrap_or(self.len() - 1)
    }

    /// The slot so many after the next one.
    fn ahead(&self, count: u32) -> u32 {
        let to_end = self.len() - self.next;
        if count < to_end { self.next + count } else { count - to_end }
    }

    fn put(&mut self, slot: u32, block: u32, slots: &mut [u32]) {
        self.blocks[slot as usize] = block;
        slots[block as usize] = slot;
    }

    fn close_gaps(&mut self, slots: &mut [u32]) {
        if self.left == 0 {
            if self.blocks[self.ahead(self.margin()) as usize] == NONE {
                return;
            }
            (self.left, self.from, self.to) = (self.len() - self.margin(), self.next, self.next);
        }
        let looked_at = LOOKED_AT.min(self.left);
        self.left -= looked_at;
        for _ in 0..looked_at {
            self.from = self.before(self.from);
            let block = std::mem::replace(&mut self.blocks[self.from as usize], NONE);
            if block == NONE {
                continue;
            }
            self.to = self.before(self.to);
            if self.ready.contains(self.from) {
                self.ready.remove(self.from);
                self.ready.insert(self.to);
            }
            self.put(self.to, block, slots);
        }
    }

    fn validate(&self, slots: &[u32]) -> Result<()> {
        let of_block = |slot: u32| slots.get(self.blocks[slot as usize] as usize);
        let is_used = |slot: u32| self.blocks[slot as usize] != NONE;
        let is_right = (0..self.len()).all(|slot| !is_used(slot) || of_block(slot) == Some(&slot))
            && (0..self.len()).filter(|&slot| is_used(slot)).count() == self.count as usize
            && self.ready.validate()?.into_iter().all(is_used);
        let free = if self.left > 0 { self.left.div_ceil(LOOKED_AT) } else { self.margin() };
        match is_right && (0..free).all(|count| !is_used(self.ahead(count))) {
            true => Ok(()),
            false => Err(Error::internal("a queue does not agree with its slots, or has no room")),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    /// Few blocks or many are left behind by those that come and go.
    #[test]
    fn the_oldest_that_may_go_is_that_of_a_plain_queue_through_many_rounds() {
        let mut closings = 0;
        for (blocks, seldom) in [(1, 2), (2, 2), (31, 4), (32, 4), (33, 50), (200, 3), (200, 300)] {
            let mut random = fastrand::Rng::with_seed(u64::from(blocks + seldom));
            let mut queues = Queues::new(2 * blocks, 2).unwrap();
            // Blocks in order, and whether each may go.
            let mut plain: [VecDeque<(u32, bool)>; 2] = Default::default();
            let mut spare: Vec<u32> = (0..2 * blocks).collect();
            let mut pushed = 0;
            while pushed < 40_000 {
                let queue = usize::from(random.u32(..seldom) == 0);
                let at = random.usize(..plain[queue].len().max(1));
                match (plain[queue].get_mut(at), random.u32(..seldom + 8)) {
                    (Some(entry), 0) => {
                        queues.remove(queue, entry.0);
                        spare.push(entry.0);
                        plain[queue].remove(at);
                    }
                    (Some((block, may_go)), 1..=3) => {
                        match *may_go {
                            true => queues.hold(queue, *block),
                            false => queues.release(queue, *block),
                        }
                        *may_go = !*may_go;
                    }
                    (Some((block, false)), 4) if !spare.is_empty() => {
                        let to = spare.swap_remove(random.usize(..spare.len()));
                        queues.replace(queue, *block, to);
                        spare.push(std::mem::replace(block, to));
                    }
                    (_, 5..) if !spare.is_empty() => {
                        let block = spare.swap_remove(random.usize(..spare.len()));
                        let was_closing = queues.rings[queue].left > 0;
                        queues.push(queue, block);
                        let may_go = random.u32(..seldom) > 0;
                        may_go.then(|| queues.release(queue, block));
                        plain[queue].push_back((block, may_go));
                        pushed += 1;
                        closings += u32::from(!was_closing && queues.rings[queue].left > 0);
                    }
                    _ => {
                        let oldest = plain[queue].iter().position(|entry| entry.1);
                        let expected = oldest.and_then(|at| plain[queue].remove(at)).map(|entry| entry.0);
                        assert_eq!(queues.pop(queue), expected, "{blocks} blocks after {pushed}");
                        spare.extend(expected);
                        if expected.is_none() && spare.is_empty() {
                            plain[queue].iter_mut().for_each(|entry| {
                                queues.release(queue, entry.0);
                                entry.1 = true;
                            });
                        }
                    }
                }
                assert_eq!(
                    [0, 1].map(|queue| queues.count(queue) as usize),
                    plain.each_ref().map(VecDeque::len)
                );
                if random.u8(..) == 0 {
                    let found = queues.validate().unwrap();
                    for (queue, entries) in plain.iter().enumerate() {
                        assert!(
                            entries.iter().all(|&(block, goes)| found[block as usize] == Some((queue, goes)))
                        );
                    }
                }
            }
        }
        assert!(closings > 1000, "{closings}");
    }

    #[test]
    fn validate_sees_what_does_not_agree() {
        let damages: [fn(&mut Queues); 6] = [
            |queues| queues.slots[3] = NONE,
            |queues| queues.slots[3] = 7,
            |queues| queues.slots[9] = 0,
            |queues| queues.rings[0].count += 1,
            |queues| queues.rings[0].ready.insert(20),
            |queues| queues.rings[0].next = 0,
        ];
        for damage in damages {
            let mut queues = Queues::new(16, 1).unwrap();
            (0..8).for_each(|block| queues.push(0, block));
            queues.validate().unwrap();
            damage(&mut queues);
            assert!(queues.validate().is_err());
        }
    }
}
