//! Which granules of a range are free: two-level segregated fit with O(1) allocate and free.
//!
//! What it does: finds, splits and joins ranges of numbers. What it does not: touch memory, lock, know what a granule
//! is. The range is tiled by nodes, each a *gap* (not ours to give), *free* or *used*. Free nodes hang in bins by their
//! count, 32 bins for each doubling; a bitmap over the bins leads to the next larger one that holds something. Fit is
//! the best of a few, and of equals the lowest.
//! Invariants, all checked by `validate()`: the nodes tile `0..capacity` in order; no two free and no two gap nodes
//! touch; each free node is in the bin of its count and nothing else is in a bin; `gap + free + used == capacity`;
//! the start of each gap and used node, and of no other, is in `starts` and leads to its node. A refused call changes
//! nothing. Lock order: none, the owner locks. The two levels are M. Masmano's TLSF; nodes live beside the range.

use crate::error::{Error, Result, Status};
use crate::memory::bitmap::Bitmap;
use crate::sys::reserve::{Zeroed, room};

mod bins;
mod check;
mod part;
pub mod place;

use bins::Bins;

const NONE: u32 = u32::MAX;

/// Nodes made at a time when the spare ones have run out.
const NODE_BATCH: usize = 64;

/// What a range of granules is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum State {
    /// Not ours to give: never inserted, or withdrawn.
    Gap,
    /// May be allocated.
    Free,
    /// Allocated.
    Used,
}

/// A range of granules that are all the same and belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First granule.
    pub start: u32,
    /// How many.
    pub count: u32,
    /// What they are.
    pub state: State,
}

/// What a node is; `Spare` nodes wait to be used, `Bin` nodes hold the rings of the bins together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Spare,
    Bin,
    Is(State),
}

const GAP: Kind = Kind::Is(State::Gap);
const FREE: Kind = Kind::Is(State::Free);
const USED: Kind = Kind::Is(State::Used);

/// 32 bytes, two in a cache line.
#[derive(Clone, Copy, Debug)]
#[repr(align(32))]
struct Node {
    start: u32,
    count: u32,
    /// Neighbours by address, [`NONE`] at the ends of the range.
    below: u32,
    above: u32,
    /// Neighbours in the bin, for a free node; `next` chains the spare ones.
    prev: u32,
    next: u32,
    kind: Kind,
}

const SPARE: Node =
    Node { start: 0, count: 0, below: NONE, above: NONE, prev: NONE, next: NONE, kind: Kind::Spare };

impl Node {
    fn end(&self) -> u32 {
        self.start + self.count
    }

    /// Whether `count` granules fit, and its first aligned one.
    #[inline]
    fn fit(&self, count: u32, alignment: u32) -> (bool, u32) {
        let mask = u64::from(alignment) - 1;
        let first = (u64::from(self.start) + mask) & !mask;
        let fits = first + u64::from(count) <= u64::from(self.start) + u64::from(self.count);
        (fits, first as u32)
    }
}

/// The granules of one range.
#[derive(Debug)]
pub struct FreeList {
    capacity: u32,
    nodes: Vec<Node>,
    spare: u32,
    spare_count: u32,
    /// The node at granule 0.
    lowest: u32,
    bins: Bins,
    /// Starts of gap and used nodes.
    starts: Bitmap,
    /// Node of each granule in `starts`; what it says of others is of the past.
    node_at: Zeroed<u32>,
    free_granules: u32,
    free_ranges: u32,
    used_granules: u32,
    used_ranges: u32,
}

impl FreeList {
    /// A range of that many granules, all of them a gap. Host memory is used as granules are.
    pub fn new(capacity: u32) -> Result<Self> {
        if capacity == 0 || capacity == u32::MAX {
            return Err(Error::argument(format!("{capacity} granules; a range has 1 to {}", u32::MAX - 1)));
        }
        let mut list = Self {
            capacity,
            nodes: room(bins::BIN_COUNT + NODE_BATCH)?,
            spare: NONE,
            spare_count: 0,
            lowest: 0,
            bins: Bins::default(),
            starts: Bitmap::new(capacity)?,
            node_at: Zeroed::new(capacity as usize)?,
            free_granules: 0,
            free_ranges: 0,
            used_granules: 0,
            used_ranges: 0,
        };
        list.nodes.extend((0..bins::BIN_COUNT as u32).map(bins::ring));
        list.reserve_nodes(1)?;
        list.lowest = list.new_node(Node { count: capacity, kind: GAP, ..SPARE });
        list.mark(list.lowest);
        Ok(list)
    }

    /// Granules that it was made for.
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Free granules.
    pub fn free_granules(&self) -> u32 {
        self.free_granules
    }

    /// Allocated granules.
    pub fn used_granules(&self) -> u32 {
        self.used_granules
    }

    /// Live allocations.
    pub fn used_ranges(&self) -> u32 {
        self.used_ranges
    }

    /// Free ranges; many of them where much is free is fragmentation.
    pub fn free_range_count(&self) -> u32 {
        self.free_ranges
    }

    /// Granules of the largest free range. Costs a walk over the free ranges of about that size.
    pub fn largest_free(&self) -> u32 {
        let Some(bin) = self.bins.last() else { return 0 };
        self.in_bin(bin).map(|index| self.nodes[index as usize].count).max().unwrap_or(0)
    }

    /// All ranges in the order of their addresses.
    pub fn ranges(&self) -> impl Iterator<Item = Range> {
        let walk = std::iter::successors(self.nodes.get(self.lowest as usize), |node| {
            self.nodes.get(node.above as usize)
        });
        walk.filter_map(|node| match node.kind {
            Kind::Is(state) => Some(Range { start: node.start, count: node.count, state }),
            Kind::Spare | Kind::Bin => None,
        })
    }

    /// The free ranges in the order of their addresses: start and count.
    pub fn free_ranges(&self) -> impl Iterator<Item = (u32, u32)> {
        self.ranges().filter(|range| range.state == State::Free).map(|range| (range.start, range.count))
    }

    /// The range that a granule lies in; None beyond the capacity. O(1), also for the inside of an allocation.
    pub fn range_at(&self, granule: u32) -> Option<Range> {
        let node = &self.nodes[self.containing(granule)? as usize];
        match node.kind {
            Kind::Is(state) => Some(Range { start: node.start, count: node.count, state }),
            Kind::Spare | Kind::Bin => None,
        }
    }

    /// Granules of the allocation that begins at `start`.
    #[inline]
    pub fn size_of(&self, start: u32) -> Option<u32> {
        self.used_at(start).map(|index| self.nodes[index as usize].count)
    }

    /// Makes room for that many more nodes. A call that splits needs 2, so half as many calls need no host memory.
    #[inline]
    pub fn reserve_nodes(&mut self, count: u32) -> Result<()> {
        while self.spare_count < count {
            self.more_nodes()?;
        }
        Ok(())
    }

    /// Takes a part of a gap in; it is free now.
    pub fn insert(&mut self, start: u32, count: u32) -> Result<()> {
        let gap = self.covering(start, count, GAP, "insert", "ours already")?;
        self.reserve_nodes(2)?;
        let (head, middle, tail) = self.isolate(gap, start, count);
        for index in [head, tail].into_iter().filter(|&index| index != NONE) {
            self.mark(index);
        }
        if head == NONE {
            self.starts.remove(start);
        }
        self.set_free(middle);
        Ok(())
    }

    /// Takes an allocation out, the opposite of `insert`: it becomes a gap. Returns its granules.
    pub fn withdraw(&mut self, start: u32) -> Result<u32> {
        let Some(mut index) = self.used_at(start) else { return Err(self.not_used(start, "withdraw")) };
        let Node { count, below, above, .. } = self.nodes[index as usize];
        self.used_granules -= count;
        self.used_ranges -= 1;
        self.nodes[index as usize].kind = GAP;
        if above != NONE && self.nodes[above as usize].kind == GAP {
            self.starts.remove(self.nodes[above as usize].start);
            self.join(index, above);
        }
        if below != NONE && self.nodes[below as usize].kind == GAP {
            self.starts.remove(start);
            self.join(below, index);
            index = below;
        }
        self.mark(index);
        Ok(count)
    }

    /// Takes `count` granules at a multiple of `alignment` (in granules, a power of two). None if no free range fits.
    #[inline]
    pub fn allocate(&mut self, count: u32, alignment: u32) -> Result<Option<u32>> {
        self.prepare(count, alignment)?;
        let Some((index, start)) = self.find(count, alignment) else { return Ok(None) };
        self.take(index, start, count);
        Ok(Some(start))
    }

    /// As `allocate`, at the lowest place that fits; costs a walk over all ranges below it.
    pub fn take_lowest(&mut self, count: u32, alignment: u32) -> Result<Option<u32>> {
        self.prepare(count, alignment)?;
        let mut index = self.lowest;
        while index != NONE {
            let node = &self.nodes[index as usize];
            let (fits, start) = node.fit(count, alignment);
            if node.kind == FREE && fits {
                self.take(index, start, count);
                return Ok(Some(start));
            }
            index = node.above;
        }
        Ok(None)
    }

    /// Takes exactly these granules, which have to be free; `free(start)` gives them back.
    pub fn carve(&mut self, start: u32, count: u32) -> Result<()> {
        let index = self.covering(start, count, FREE, "carve", "not free")?;
        self.reserve_nodes(2)?;
        self.take(index, start, count);
        Ok(())
    }

    /// Gives an allocation back, joined with what is free beside it. Returns its granules.
    #[inline]
    pub fn free(&mut self, start: u32) -> Result<u32> {
        let Some(index) = self.used_at(start) else { return Err(self.not_used(start, "free")) };
        let count = self.nodes[index as usize].count;
        self.used_granules -= count;
        self.used_ranges -= 1;
        self.starts.remove(start);
        self.set_free(index);
        Ok(count)
    }

    // -------------------------------------------------------------------------------------------- refusals

    #[inline]
    fn prepare(&mut self, count: u32, alignment: u32) -> Result<()> {
        if count == 0 || !alignment.is_power_of_two() {
            return Err(bad_request(count, alignment));
        }
        self.reserve_nodes(2)
    }

    /// The node of a kind that covers all of a range, or why there is none.
    fn covering(&self, start: u32, count: u32, kind: Kind, verb: &str, otherwise: &str) -> Result<u32> {
        let refuse = |why: String| Err(Error::argument(format!("{verb} {count} granules at {start}: {why}")));
        if count == 0 || start >= self.capacity || count > self.capacity - start {
            return refuse(format!("a part of 0..{} is needed", self.capacity));
        }
        let Some(index) = self.containing(start) else { return Err(Error::internal("a granule of no node")) };
        let node = &self.nodes[index as usize];
        match node.kind == kind {
            false => refuse(format!("the first is {otherwise}")),
            true if node.end() < start + count => refuse(format!("granule {} is {otherwise}", node.end())),
            true => Ok(index),
        }
    }

    #[cold]
    fn not_used(&self, start: u32, verb: &str) -> Error {
        let why = match self.range_at(start) {
            None => format!("the range ends at {}", self.capacity),
            Some(Range { state: State::Free, .. }) => "it is free already".into(),
            Some(Range { state: State::Gap, .. }) => "it lies in a gap".into(),
            Some(range) => format!("it lies inside the allocation at {}", range.start),
        };
        Error::argument(format!("{verb} granule {start}: no allocation begins there; {why}"))
    }

    // -------------------------------------------------------------------------------------------- finding

    /// The node of the allocation that begins at `start`.
    #[inline]
    fn used_at(&self, start: u32) -> Option<u32> {
        let index = *self.node_at.get(start as usize)?;
        // What is said of a granule where nothing begins may be old, so the node itself has the word.
        let node = self.nodes.get(index as usize)?;
        (node.start == start && node.kind == USED).then_some(index)
    }

    /// The node of a granule: it begins at the nearest start below, or is the free node above that one.
    fn containing(&self, granule: u32) -> Option<u32> {
        if granule >= self.capacity {
            return None;
        }
        let Some(start) = self.starts.at_or_before(granule) else { return Some(self.lowest) };
        let index = self.node_at[start as usize];
        let node = &self.nodes[index as usize];
        Some(if granule < node.end() { index } else { node.above })
    }

    // -------------------------------------------------------------------------------------------- nodes

    #[cold]
    fn more_nodes(&mut self) -> Result<()> {
        let first = self.nodes.len();
        if first + NODE_BATCH >= NONE as usize || self.nodes.try_reserve(NODE_BATCH).is_err() {
            let text = format!("no host memory for the list of {first} ranges; free something");
            return Err(Error::new(Status::OutOfHostMemory, text));
        }
        let last = first + NODE_BATCH - 1;
        self.nodes.extend((first..last).map(|index| Node { next: index as u32 + 1, ..SPARE }));
        self.nodes.push(Node { next: self.spare, ..SPARE });
        self.spare = first as u32;
        self.spare_count += NODE_BATCH as u32;
        Ok(())
    }

    /// Uses a spare node; the caller has made sure that there is one.
    #[inline]
    fn new_node(&mut self, node: Node) -> u32 {
        let index = self.spare;
        self.spare = self.nodes[index as usize].next;
        self.spare_count -= 1;
        self.nodes[index as usize] = node;
        index
    }

    #[inline]
    fn retire(&mut self, index: u32) {
        self.nodes[index as usize] = Node { next: self.spare, ..SPARE };
        self.spare = index;
        self.spare_count += 1;
    }

    /// Notes where a gap or used node begins.
    #[inline]
    fn mark(&mut self, index: u32) {
        let start = self.nodes[index as usize].start;
        self.node_at[start as usize] = index;
        self.starts.insert(start);
    }

    /// Cuts a node at a granule inside it; it keeps the upper part, a new node of its kind gets the lower.
    #[inline]
    fn cut(&mut self, index: u32, at: u32) -> u32 {
        let node = self.nodes[index as usize];
        let lower = self.new_node(Node { count: at - node.start, above: index, ..node });
        let upper = &mut self.nodes[index as usize];
        (upper.start, upper.count, upper.below) = (at, node.end() - at, lower);
        match node.below {
            NONE => self.lowest = lower,
            below => self.nodes[below as usize].above = lower,
        }
        lower
    }

    /// Joins a node with the one above it, which goes.
    #[inline]
    fn join(&mut self, lower: u32, upper: u32) {
        let Node { count, above, .. } = self.nodes[upper as usize];
        let node = &mut self.nodes[lower as usize];
        (node.count, node.above) = (node.count + count, above);
        if above != NONE {
            self.nodes[above as usize].below = lower;
        }
        self.retire(upper);
    }

    /// Cuts a node so that a part of it stands alone: what is below it, itself, what is above it.
    #[inline]
    fn isolate(&mut self, index: u32, start: u32, count: u32) -> (u32, u32, u32) {
        let head = if self.nodes[index as usize].start < start { self.cut(index, start) } else { NONE };
        if self.nodes[index as usize].end() == start + count {
            return (head, index, NONE);
        }
        (head, self.cut(index, start + count), index)
    }

    /// Makes a part of a free node used.
    #[inline]
    fn take(&mut self, index: u32, start: u32, count: u32) {
        let bin = bins::bin_of(self.nodes[index as usize].count);
        let (head, middle, tail) = self.isolate(index, start, count);
        // The node that was in the bin is the tail if there is one.
        match tail {
            NONE => self.unlink(index, bin),
            tail => self.settle(tail, bin),
        }
        if head != NONE {
            self.link(head);
        }
        self.nodes[middle as usize].kind = USED;
        self.mark(middle);
        self.free_ranges = self.free_ranges + u32::from(head != NONE) + u32::from(tail != NONE) - 1;
        self.free_granules -= count;
        self.used_granules += count;
        self.used_ranges += 1;
    }

    /// Makes a node free that is in no bin and not in `starts`, and joins it with free neighbours.
    #[inline]
    fn set_free(&mut self, index: u32) {
        let Node { count, below, above, start, .. } = self.nodes[index as usize];
        self.free_granules += count;
        let is_free = |neighbour: u32| neighbour != NONE && self.nodes[neighbour as usize].kind == FREE;
        match (is_free(below), is_free(above)) {
            (false, false) => {
                self.nodes[index as usize].kind = FREE;
                self.link(index);
                self.free_ranges += 1;
            }
            // A neighbour that is in a bin takes the node over: it often stays where it is.
            (true, false) => {
                let bin = bins::bin_of(self.nodes[below as usize].count);
                self.join(below, index);
                self.settle(below, bin);
            }
            (false, true) => {
                let node = &mut self.nodes[above as usize];
                let bin = bins::bin_of(node.count);
                (node.start, node.count, node.below) = (start, node.count + count, below);
                match below {
                    NONE => self.lowest = above,
                    below => self.nodes[below as usize].above = above,
                }
                self.retire(index);
                self.settle(above, bin);
            }
            (true, true) => {
                self.unlink(above, bins::bin_of(self.nodes[above as usize].count));
                let bin = bins::bin_of(self.nodes[below as usize].count);
                self.join(index, above);
                self.join(below, index);
                self.settle(below, bin);
                self.free_ranges -= 1;
            }
        }
    }
}

#[cold]
fn bad_request(count: u32, alignment: u32) -> Error {
    Error::argument(format!(
        "{count} granules aligned to {alignment}; ask for 1 or more, aligned to a power of two"
    ))
}

#[cfg(test)]
mod tests;
