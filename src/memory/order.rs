//! Blocks that were freed in stream order: which stream may have them at once, and who has to wait for what.
//!
//! A block that was freed on a stream may be used by later work on that stream without further ado. For any other
//! stream it has to be known that the work which was enqueued before the free has completed, or the other stream has
//! to wait for it. Blocks gather without an event; one event is recorded for all of them when somebody else needs some
//! ("closing"). The idea of one event a batch instead of one a free is a note in RAPIDS RMM's own source.
//!
//! What it does: the lists. What it does not: call the device, or look inside a block. So the caller takes blocks out,
//! calls the device without holding its lock, and puts back what was refused.
//! Invariant, checked by `validate()`: `count` and `bytes` are those of all blocks in all lists, and a stream is in a
//! list of some streams if and only if it belongs there. Cost: a block is found, and goes, in a time that grows with
//! the logarithm of what is held; whoever asks about all streams walks over those that have something to tell.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::fence::Fence;
use super::heap::is_of_a_thread;
use super::size_class;
use super::stretches::{Stretch, Stretches};
use crate::device::Stream;
use crate::error::{Error, Result};

mod closed;
mod lane;

pub(super) use closed::count_reached;
use lane::Lane;

/// `Freed::class` of large blocks, which follows those of the size classes. It says no size, and no later one does.
pub(super) const LARGE: u32 = size_class::CLASS_COUNT as u32;

/// `Freed::class` of large blocks and runs that are nobody's before they are everybody's.
pub(super) const LENDING: u32 = LARGE + 2;
pub(super) const COMPOSED: u32 = LARGE + 3;

/// A freed block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Freed {
    /// Blocks of one class can stand in for each other.
    pub(super) class: u32,
    /// What the owner knows it by.
    pub(super) id: u64,
    /// Its size.
    pub(super) bytes: u64,
}

/// All that was freed and is not anybody's yet.
#[derive(Default)]
pub(super) struct Order {
    /// By the value of the stream.
    lanes: BTreeMap<u64, Box<Lane>>,
    /// Those of them with something behind fences.
    closed: BTreeSet<u64>,
    /// Those of them whose users have ended.
    over: BTreeSet<u64>,
    /// Whether classes from [`LARGE`] on say no size, but the blocks do.
    has_lengths: bool,
    count: usize,
    bytes: u64,
}

impl Order {
    /// For a heap. Where classes are another's, each of them has one size.
    pub(super) fn of_heap() -> Self {
        Self { has_lengths: true, ..Self::default() }
    }

    /// Blocks in all lists.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// Bytes of them.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    fn took(&mut self, block: Freed) -> Freed {
        self.count -= 1;
        self.bytes -= block.bytes;
        block
    }

    fn took_all(&mut self, blocks: Vec<Freed>) -> Vec<Freed> {
        self.count -= blocks.len();
        self.bytes -= blocks.iter().map(|block| block.bytes).sum::<u64>();
        blocks
    }

    /// Takes a block that was freed on a stream.
    pub(super) fn free(&mut self, stream: Stream, block: Freed) {
        self.count += 1;
        self.bytes += block.bytes;
        self.lanes.entry(stream.0).or_default().free(block, self.has_lengths);
    }

    /// What was found behind a fence of a stream; the stream may have nothing any more.
    fn took_closed(&mut self, stream: u64, block: Freed) -> Freed {
        self.note_closed(stream);
        self.took(block)
    }

    /// Notes whether a stream has something behind fences, and lets it go if it has nothing and will not.
    pub(super) fn note_closed(&mut self, stream: u64) {
        let Some(lane) = self.lanes.get(&stream) else { return };
        if !lane.closed.is_empty() {
            self.closed.insert(stream);
            return;
        }
        self.closed.remove(&stream);
        // The next blocks of a stream find their lists, but threads come and go.
        if lane.is_empty() && (is_of_a_thread(Stream(stream)) || !lane.has_lists()) {
            self.lanes.remove(&stream);
            self.over.remove(&stream);
        }
    }

    /// A block of the class for the stream on which it was freed: usable at once.
    pub(super) fn take_same(&mut self, stream: Stream, class: u32) -> Option<Freed> {
        self.take_same_sized(stream, class, 0)
    }

    /// As `take_same`, of what stands behind no event.
    pub(super) fn take_open(&mut self, stream: Stream, class: u32) -> Option<Freed> {
        let block = self.lanes.get_mut(&stream.0)?.take(class)?;
        Some(self.took(block))
    }

    /// As `take_same`, for a class of blocks that only stand in for each other if they have the same size.
    pub(super) fn take_same_sized(&mut self, stream: Stream, class: u32, bytes: u64) -> Option<Freed> {
        let lane = self.lanes.get_mut(&stream.0)?;
        let open = if bytes == 0 { lane.take(class) } else { lane.take_sized(class, bytes) };
        if let Some(block) = open {
            return Some(self.took(block));
        }
        let (_, block) = lane.closed.take(class, bytes)?;
        Some(self.took_closed(stream.0, block))
    }

    /// The smallest block of at least so many bytes, of a class from `class` on, for the stream on which it was freed.
    pub(super) fn take_same_run(&mut self, stream: Stream, class: u32, bytes: u64) -> Option<Freed> {
        let lane = self.lanes.get_mut(&stream.0)?;
        if let Some(block) = lane.take_run(class, bytes) {
            return Some(self.took(block));
        }
        let (_, block) = lane.closed.take_run(class, bytes)?;
        Some(self.took_closed(stream.0, block))
    }

    /// The smallest block of exactly this class, which says no size, but of at least so many bytes and at a multiple of
    /// `alignment`, that stands behind no event of its stream.
    pub(super) fn take_open_run(
        &mut self,
        stream: Stream,
        class: u32,
        bytes: u64,
        alignment: u32,
    ) -> Option<Freed> {
        let block = self.lanes.get_mut(&stream.0)?.take_aligned(class, bytes, alignment)?;
        Some(self.took(block))
    }

    #[cfg(test)]
    pub(super) fn open_blocks(&self, stream: Stream, class: u32) -> Vec<Freed> {
        let open = self.lanes.get(&stream.0).into_iter().flat_map(|lane| lane.open_blocks());
        open.filter(|block| block.class == class).collect()
    }

    /// The large blocks that stand behind no event of their stream. To be looked through only.
    pub(super) fn large(&mut self, stream: Stream) -> Option<&mut Stretches> {
        self.lanes.get_mut(&stream.0)?.large()
    }

    /// Takes the first of them in a stretch, as far as so many bytes need.
    pub(super) fn take_first_large(&mut self, stream: Stream, stretch: Stretch, bytes: u64) -> Vec<Freed> {
        let Some(lane) = self.lanes.get_mut(&stream.0) else { return Vec::new() };
        let first = lane.large().map_or_else(Vec::new, |large| large.take_first(stretch, bytes));
        lane.left(&first);
        self.took_all(first)
    }

    /// As `take_other`, the smallest block of at least so many bytes, of a class from `class` on.
    pub(super) fn take_other_run(
        &mut self,
        stream: Stream,
        class: u32,
        bytes: u64,
    ) -> Option<(Stream, Arc<Fence>, Freed)> {
        let others = self.closed.iter().filter(|&&other| other != stream.0);
        let sizes = others
            .filter_map(|other| Some((self.lanes.get(other)?.closed.shortest_run(class, bytes)?.1, *other)));
        let (_, owner) = sizes.min_by_key(|&(size, _)| size)?;
        let (fence, block) = self.lanes.get_mut(&owner)?.closed.take_run(class, bytes)?;
        Some((Stream(owner), fence, self.took_closed(owner, block)))
    }

    /// A block of the class that was freed on another stream, with the fence that `stream` has to wait for.
    /// The block comes back by `free` on `stream` if the wait was enqueued, else by `put_back`.
    /// `bytes` tells blocks of several sizes apart, 0 where the class says all.
    pub(super) fn take_other(
        &mut self,
        stream: Stream,
        class: u32,
        bytes: u64,
    ) -> Option<(Stream, Arc<Fence>, Freed)> {
        let mut others = self.closed.iter().filter(|&&other| other != stream.0);
        let lanes = &mut self.lanes;
        let found = |&other: &u64| Some((other, lanes.get_mut(&other)?.closed.take(class, bytes)?));
        let (owner, (fence, block)) = others.find_map(found)?;
        Some((Stream(owner), fence, self.took_closed(owner, block)))
    }

    /// Undoes `take_other`: the block stands behind its fence again.
    pub(super) fn put_back(&mut self, stream: Stream, fence: Arc<Fence>, block: Freed) {
        self.close(stream, fence, vec![block]);
    }

    /// Takes out all that stands behind no event, to record one: then `close`, or `free` again if that is refused.
    pub(super) fn take_all_open(&mut self, stream: Stream) -> Vec<Freed> {
        let blocks = self.lanes.get_mut(&stream.0).map_or_else(Vec::new, |lane| lane.take_open());
        self.took_all(blocks)
    }

    /// Takes out all blocks of a stream that are runs: of a class from `class` on, but for large ones.
    pub(super) fn take_own_runs(&mut self, stream: Stream, class: u32) -> Vec<Freed> {
        let runs = self.lanes.get_mut(&stream.0).map_or_else(Vec::new, |lane| lane.take_runs(class));
        self.note_closed(stream.0);
        self.took_all(runs)
    }

    /// Puts blocks behind a fence that was recorded on their stream after they were freed.
    pub(super) fn close(&mut self, stream: Stream, fence: Arc<Fence>, blocks: Vec<Freed>) {
        if blocks.is_empty() {
            return;
        }
        self.count += blocks.len();
        self.bytes += blocks.iter().map(|block| block.bytes).sum::<u64>();
        self.closed.insert(stream.0);
        let lane = self.lanes.entry(stream.0).or_default();
        lane.closed.put(&fence, blocks, self.has_lengths);
    }

    fn closed_lanes(&self) -> impl Iterator<Item = &Lane> {
        self.closed.iter().filter_map(|stream| self.lanes.get(stream).map(Box::as_ref))
    }

    /// Whether something of a stream stands behind a fence.
    pub(super) fn is_closed(&self, stream: Stream) -> bool {
        self.closed.contains(&stream.0)
    }

    /// Whether something stands behind a fence.
    pub(super) fn is_any_closed(&self) -> bool {
        !self.closed.is_empty()
    }

    /// Streams with something behind fences.
    pub(super) fn closed_streams(&self) -> Vec<Stream> {
        self.closed.iter().map(|&stream| Stream(stream)).collect()
    }

    /// A fence of a stream by its place, from the oldest on, for the caller to ask about.
    pub(super) fn fence_at(&self, stream: Stream, at: usize) -> Option<Arc<Fence>> {
        self.lanes.get(&stream.0)?.closed.fence_at(at).cloned()
    }

    /// The oldest fence of every stream.
    pub(super) fn oldest(&self) -> Vec<Arc<Fence>> {
        self.closed_lanes().filter_map(|lane| lane.closed.oldest().cloned()).collect()
    }

    /// The fences that were recorded last on every stream, for whoever waits for everything.
    pub(super) fn youngest(&self) -> Vec<Arc<Fence>> {
        self.closed_lanes().filter_map(|lane| lane.closed.youngest().cloned()).collect()
    }

    /// Streams of which something, and so many bytes or more, stands behind no event.
    pub(super) fn streams_with(&self, bytes: u64) -> Vec<Stream> {
        let lanes = self.lanes.iter().filter(|(_, lane)| lane.count > 0 && lane.bytes >= bytes);
        lanes.map(|(&stream, _)| Stream(stream)).collect()
    }

    /// Nobody frees on a stream any more.
    pub(super) fn end(&mut self, stream: Stream) {
        if self.lanes.contains_key(&stream.0) {
            self.over.insert(stream.0);
            self.note_closed(stream.0);
        }
    }

    /// Whether a stream is over of which something is held.
    pub(super) fn is_any_over(&self) -> bool {
        !self.over.is_empty()
    }

    /// Streams that are over and of which something stands behind no event.
    pub(super) fn over(&self) -> Vec<Stream> {
        let is_open = |stream: &&u64| self.lanes.get(stream).is_some_and(|lane| lane.count > 0);
        self.over.iter().filter(is_open).map(|&stream| Stream(stream)).collect()
    }

    /// Streams of which something is held.
    pub(super) fn streams(&self) -> Vec<Stream> {
        self.lanes.keys().map(|&stream| Stream(stream)).collect()
    }

    /// Takes out the blocks whose fences are known to be reached: any stream may have them. The blocks of `too_many`
    /// fences more are taken of each stream for a test that plants that mistake; else it is 0.
    pub(super) fn take_reached(&mut self, too_many: usize) -> Vec<Freed> {
        let mut reached = Vec::new();
        let streams: Vec<u64> = self.closed.iter().copied().collect();
        for stream in streams {
            if let Some(lane) = self.lanes.get_mut(&stream) {
                reached.extend(lane.closed.take_reached(too_many));
            }
            self.note_closed(stream);
        }
        self.took_all(reached)
    }

    /// Takes out everything of a stream that is about to go, without a fence: the caller has waited for the stream.
    pub(super) fn take_stream(&mut self, stream: Stream) -> Vec<Freed> {
        let Some(mut lane) = self.lanes.remove(&stream.0) else { return Vec::new() };
        self.closed.remove(&stream.0);
        self.over.remove(&stream.0);
        let mut blocks = lane.take_open();
        blocks.extend(lane.closed.take_all());
        self.took_all(blocks)
    }

    /// What was freed on a stream is another's from here on, which nobody has used before.
    pub(super) fn rename(&mut self, stream: Stream, heir: Stream) {
        let Some(lane) = self.lanes.remove(&stream.0) else { return };
        self.lanes.insert(heir.0, lane);
        for some in [&mut self.closed, &mut self.over] {
            if some.remove(&stream.0) {
                some.insert(heir.0);
            }
        }
    }

    /// All blocks, in no order.
    pub(super) fn blocks(&self) -> impl Iterator<Item = Freed> {
        self.lanes.values().flat_map(|lane| lane.open_blocks().chain(lane.closed.blocks()))
    }

    /// Proves that the totals are those of the lists.
    pub(super) fn validate(&self) -> Result<()> {
        for (stream, lane) in &self.lanes {
            lane.validate(self.has_lengths)?;
            if lane.closed.is_empty() == self.closed.contains(stream) {
                return Err(Error::internal(format!(
                    "stream {stream:#x}: not in its list, or nothing to wait for"
                )));
            }
        }
        if !self.closed.union(&self.over).all(|stream| self.lanes.contains_key(stream)) {
            return Err(Error::internal("a stream in a list that has nothing"));
        }
        let bytes: u64 = self.blocks().map(|block| block.bytes).sum();
        let (count, counted) = (self.blocks().count(), (self.count, self.bytes));
        if (count, bytes) != counted {
            let text = format!("{count} freed blocks of {bytes} bytes, {counted:?} counted");
            return Err(Error::internal(text));
        }
        Ok(())
    }
}

/// Whether a block can be cut to a run of so many bytes; large ones lie elsewhere.
fn is_run(block: &Freed, class: u32, bytes: u64) -> bool {
    block.class >= class && serves_parts(block.class) && block.bytes >= bytes
}

/// Whether others may have a part of a block of a class.
fn serves_parts(class: u32) -> bool {
    !matches!(class, LARGE | LENDING | COMPOSED)
}

#[cfg(test)]
#[path = "order_tests.rs"]
mod tests;
