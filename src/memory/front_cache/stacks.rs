//! The stacks of a front cache: blocks by class, of one thread for one stream.
//!
//! What it does: keeps blocks, gives out the one kept last of a class or of the next, and lets the oldest go. What it
//! does not: know whose turn it is; whoever calls has the lease. Invariant: `bytes` is the sum over the stacks.
//! Where all together are too many bytes, those that hold much let go in turn, not the one that just grew: a thread
//! that changes its sizes would keep those of yesterday for good, and nothing of today's. That its turn comes costs a
//! stack in use no more than its older half. To know which are in use would cost each call a store; to look for the one
//! that holds most is 120 lines of memory, a seventh of all time where sizes are mixed.

use std::sync::Arc;

use super::super::heap::Heap;
use super::super::order::Freed;
use super::super::records::Kind;
use super::super::region::{Block, Directory, REGIONS_MAX, Region};
use super::super::size_class::{self, CLASS_COUNT, Class, SMALL_CLASS_COUNT, UNIT_BYTES};
use crate::device::Stream;

/// How many classes above its own may serve a request, so that a block is at most 3/8 longer than what was asked for.
const NEXT: usize = 2;

/// Stacks of a cache: a power of two, so that a class is made one of them by a mask. No block is of the last ones.
pub(super) const STACKS: usize = CLASS_COUNT.next_power_of_two();

/// What one thread holds for one stream of one heap.
pub(in crate::memory) struct FrontCache {
    pub(in crate::memory) stream: Stream,
    pub(super) stacks: [Stack; STACKS],
    /// The regions of blocks that were here, by number: small classes each have one, the others one together.
    pub(super) regions: [Option<Arc<Region>>; REGIONS_MAX],
    pub(super) directory: Arc<Directory>,
    pub(super) bytes: u64,
    pub(super) limit_bytes: u64,
    pub(in crate::memory) counts: Counts,
    /// The stack whose turn it is to let go where all together are too much.
    hand: usize,
}

/// Blocks of one class. The first `count` places are taken. One line of memory.
#[repr(align(64))]
pub(super) struct Stack {
    pub(super) places: Box<[Block]>,
    pub(super) count: usize,
    /// Of one block.
    pub(super) bytes: u64,
    /// What the record of a block says that goes from here.
    pub(super) kind: Kind,
}

/// What a cache did; added up over all caches.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::memory) struct Counts {
    pub(in crate::memory) allocations: u64,
    pub(in crate::memory) frees: u64,
    pub(in crate::memory) allocated_bytes: u64,
    pub(in crate::memory) freed_bytes: u64,
}

impl Counts {
    /// What it did, in one number that rises with each.
    pub(in crate::memory) fn done(&self) -> u64 {
        self.allocations.wrapping_add(self.frees)
    }

    /// Adds those of another cache.
    pub(in crate::memory) fn add(&mut self, other: &Self) {
        self.allocations += other.allocations;
        self.allocated_bytes += other.allocated_bytes;
        self.frees += other.frees;
        self.freed_bytes += other.freed_bytes;
    }
}

/// Most blocks of a class that a stack keeps: few of the large ones, and enough of the small ones that a refill of
/// half of them is rare.
fn depth(bytes: u64) -> usize {
    ((4 << 20) / bytes).clamp(4, 128) as usize
}

impl Stack {
    /// That of a class. It gets its places with its first block: a thread uses few classes on a stream.
    pub(super) fn new(class: usize, stream_number: u16) -> Self {
        let bytes = Class::at(class).map_or(0, size_class::bytes_of);
        let kind = Kind::new(class as u8, stream_number);
        Self { places: Box::default(), count: 0, bytes, kind }
    }

    /// How many places it has once it is used; none where there is no such class.
    pub(super) fn depth(&self) -> usize {
        if self.bytes > 0 { depth(self.bytes) + 1 } else { 0 }
    }

    fn held_bytes(&self) -> u64 {
        self.bytes * self.count as u64
    }

    /// Makes the places of a stack that has none.
    #[cold]
    #[inline(never)]
    pub(super) fn open(&mut self) {
        if self.places.is_empty() {
            self.places = vec![Block::default(); self.depth()].into();
        }
    }

    /// Takes out the oldest blocks.
    pub(super) fn drain(&mut self, class: usize, count: usize) -> Vec<Freed> {
        let freed = |block: &Block| Freed { class: class as u32, id: block.index.into(), bytes: self.bytes };
        let drained = self.places[..count].iter().map(freed).collect();
        self.places.copy_within(count..self.count, 0);
        self.count -= count;
        drained
    }
}

impl FrontCache {
    pub(super) fn new(heap: &Heap, (stream, stream_number): (Stream, u16), limit_bytes: u64) -> Self {
        let stacks = std::array::from_fn(|class| Stack::new(class, stream_number));
        let regions = [const { None }; REGIONS_MAX];
        let counts = Counts::default();
        Self { stream, stacks, regions, directory: heap.directory(), bytes: 0, limit_bytes, counts, hand: 0 }
    }

    /// The records of blocks that go from here name their stream by this.
    pub(super) fn set_stream_number(&mut self, stream_number: u16) {
        if self.stacks[0].kind != Kind::new(0, stream_number) {
            let stacks = self.stacks.iter_mut().enumerate();
            stacks.for_each(|(class, stack)| stack.kind = Kind::new(class as u8, stream_number));
        }
    }

    /// Has the region of a class at hand from here on.
    pub(super) fn know_region(&mut self, heap: &Heap, class: usize) {
        let number = class.min(SMALL_CLASS_COUNT);
        if self.regions[number].is_none() {
            self.regions[number] = heap.share_region(number);
        }
    }

    /// The block that was kept last of a class.
    #[inline(always)]
    pub(super) fn last(&self, class: usize) -> Option<Block> {
        let stack = &self.stacks[class % STACKS];
        stack.places.get(stack.count.wrapping_sub(1)).copied()
    }

    /// The block that serves a request, and its class: the request's own, or where that is empty one of the next, so
    /// that no new memory is taken while some of nearly the size lies here. Not for small blocks, whose pages are
    /// small; nor where memory is short, because then lengths are exact.
    #[inline(always)]
    pub(super) fn at_hand(&self, heap: &Heap, class: usize, alignment: u64) -> Option<(usize, Block)> {
        if let Some(block) = self.last(class) {
            return Some((class, block));
        }
        if class < SMALL_CLASS_COUNT || alignment > UNIT_BYTES || heap.is_short() {
            return None;
        }
        (class + 1..=class + NEXT).find_map(|next| Some((next, self.last(next)?)))
    }

    /// Keeps a block. Answers whether blocks should be pushed out; nothing if it cannot.
    #[inline(always)]
    pub(super) fn keep(&mut self, class: usize, block: Block) -> Option<bool> {
        let stack = &mut self.stacks[class % STACKS];
        if stack.count >= stack.places.len() {
            stack.open();
        }
        *stack.places.get_mut(stack.count)? = block;
        stack.count = stack.count.wrapping_add(1);
        self.bytes = self.bytes.wrapping_add(stack.bytes);
        Some(stack.count == stack.places.len() || self.bytes > self.limit_bytes)
    }

    /// What has to go: of the class whose stack is full, and of others where all are too many bytes.
    #[cold]
    #[inline(never)]
    pub(super) fn push_out(&mut self, class: usize) -> Vec<Freed> {
        let is_full = self.stacks[class].count == self.stacks[class].places.len();
        let mut freed = if is_full { self.halve(class) } else { Vec::new() };
        // Mostly a few hold most of it. Where they do not, one holds more than its share of what is more than all.
        let [mut large_bytes, share_bytes] = [16, STACKS as u64].map(|parts| self.limit_bytes / parts);
        let mut steps = 0;
        while self.bytes > self.limit_bytes {
            self.hand = (self.hand + 1) % STACKS;
            if self.stacks[self.hand].held_bytes() > large_bytes {
                freed.extend(self.halve(self.hand));
            }
            steps += 1;
            if steps == STACKS {
                large_bytes = share_bytes;
            }
        }
        freed
    }

    /// The older half of a stack, at least one block.
    fn halve(&mut self, class: usize) -> Vec<Freed> {
        let stack = &mut self.stacks[class];
        let count = stack.count.div_ceil(2);
        self.bytes -= stack.bytes * count as u64;
        stack.drain(class, count)
    }

    /// How many more blocks of a class it would take now, leaving room for as many again.
    pub(in crate::memory) fn room(&self, class: Class) -> usize {
        let stack = &self.stacks[class.index()];
        let by_bytes = self.limit_bytes.saturating_sub(self.bytes) / 2 / stack.bytes;
        (stack.depth() / 2).saturating_sub(stack.count).min(by_bytes as usize)
    }

    /// Whether it holds what is enough for the beginning.
    pub(in crate::memory) fn is_half_full(&self) -> bool {
        self.bytes > self.limit_bytes / 2
    }

    /// Takes a block for which there was room.
    pub(in crate::memory) fn put(&mut self, class: Class, block: Block) {
        let _ = self.keep(class.index(), block);
    }

    /// Takes everything out.
    pub(in crate::memory) fn drain(&mut self) -> Vec<Freed> {
        self.bytes = 0;
        let stacks = self.stacks.iter_mut().enumerate();
        stacks.flat_map(|(class, stack)| stack.drain(class, stack.count)).collect()
    }

    /// Places for blocks, taken or not.
    #[cfg(test)]
    pub(in crate::memory) fn places(&self) -> usize {
        self.stacks.iter().map(|stack| stack.places.len()).sum()
    }

    /// Takes out the blocks of the classes from one on.
    pub(in crate::memory) fn drain_from(&mut self, first: usize) -> Vec<Freed> {
        let stacks = self.stacks.iter_mut().enumerate().skip(first);
        let freed: Vec<Freed> = stacks.flat_map(|(class, stack)| stack.drain(class, stack.count)).collect();
        self.bytes -= freed.iter().map(|block| block.bytes).sum::<u64>();
        freed
    }

    /// Bytes that lie here.
    pub(in crate::memory) fn bytes(&self) -> u64 {
        self.bytes
    }
}
