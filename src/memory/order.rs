//! Blocks that were freed in stream order: which stream may have them at once, and who has to wait for what.
//!
//! A block that was freed on a stream may be used by later work on that stream without further ado. For any other
//! stream it has to be known that the work which was enqueued before the free has completed, or the other stream has
//! to wait for it. Blocks gather without an event; one event is recorded for all of them when somebody else needs some
//! ("closing"). The idea of one event a batch instead of one a free is a note in RAPIDS RMM's own source.
//!
//! What it does: the lists. What it does not: call the device, or look inside a block. So the caller takes blocks out,
//! calls the device without holding its lock, and puts back what was refused.
//! Invariant, checked by `validate()`: `count` and `bytes` are those of all blocks in all lists. Cost: a block of
//! a size class that was freed on the stream that wants it is found at once; one in a closed batch is searched for in
//! the batches; one whose size the class does not say, and a run to cut, in all blocks of the lane or of all lanes.

use std::collections::VecDeque;
use std::sync::Arc;

use super::fence::Fence;
use super::heap::is_of_a_thread;
use super::size_class;
use crate::device::Stream;
use crate::error::{Error, Result};

/// `Freed::class` of large blocks, which follows those of the size classes.
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

/// Blocks behind one event.
struct Batch {
    fence: Arc<Fence>,
    blocks: Vec<Freed>,
}

/// What was freed on one stream.
struct Lane {
    stream: Stream,
    /// Not yet behind an event, by class.
    open: Vec<Vec<Freed>>,
    open_count: usize,
    open_bytes: u64,
    /// Oldest first. If one has not been reached, neither has any later one.
    closed: VecDeque<Batch>,
    /// Whoever freed here has ended.
    is_over: bool,
}

/// All that was freed and is not anybody's yet.
#[derive(Default)]
pub(super) struct Order {
    lanes: Vec<Lane>,
    count: usize,
    bytes: u64,
}

impl Order {
    /// Blocks in all lists.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// Bytes of them.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    fn lane(&mut self, stream: Stream) -> &mut Lane {
        // Streams are few: a search is cheaper than any table.
        let index = match self.lanes.iter().position(|lane| lane.stream == stream) {
            Some(index) => index,
            None => {
                self.lanes.push(Lane::of(stream));
                self.lanes.len() - 1
            }
        };
        &mut self.lanes[index]
    }

    fn took(&mut self, block: Freed) -> Freed {
        self.count -= 1;
        self.bytes -= block.bytes;
        block
    }

    /// Takes a block that was freed on a stream.
    pub(super) fn free(&mut self, stream: Stream, block: Freed) {
        self.count += 1;
        self.bytes += block.bytes;
        let lane = self.lane(stream);
        let class = block.class as usize;
        if lane.open.len() <= class {
            lane.open.resize_with(class + 1, Vec::new);
        }
        lane.open_count += 1;
        lane.open_bytes += block.bytes;
        lane.open[class].push(block);
    }

    /// A block of the class for the stream on which it was freed: usable at once.
    pub(super) fn take_same(&mut self, stream: Stream, class: u32) -> Option<Freed> {
        let lane = self.lanes.iter_mut().find(|lane| lane.stream == stream)?;
        let open = lane.open.get_mut(class as usize).and_then(Vec::pop);
        let block = match open {
            Some(block) => lane.left(block),
            None => lane.take_closed(class, 0)?.1,
        };
        Some(self.took(block))
    }

    /// As `take_same`, of what stands behind no event.
    pub(super) fn take_open(&mut self, stream: Stream, class: u32) -> Option<Freed> {
        let lane = self.lanes.iter_mut().find(|lane| lane.stream == stream)?;
        let block = lane.open.get_mut(class as usize)?.pop()?;
        let block = lane.left(block);
        Some(self.took(block))
    }

    /// As `take_same`, for a class of blocks that only stand in for each other if they have the same size.
    pub(super) fn take_same_sized(&mut self, stream: Stream, class: u32, bytes: u64) -> Option<Freed> {
        let lane = self.lanes.iter_mut().find(|lane| lane.stream == stream)?;
        let open = lane.open.get_mut(class as usize);
        let at = open.as_ref().and_then(|list| list.iter().rposition(|block| block.bytes == bytes));
        let block = match (open, at) {
            (Some(list), Some(at)) => {
                let block = list.swap_remove(at);
                lane.left(block)
            }
            _ => lane.take_closed(class, bytes)?.1,
        };
        Some(self.took(block))
    }

    /// The smallest block of at least so many bytes, of a class from `class` on, for the stream on which it was freed.
    pub(super) fn take_same_run(&mut self, stream: Stream, class: u32, bytes: u64) -> Option<Freed> {
        let lane = self.lanes.iter_mut().find(|lane| lane.stream == stream)?;
        let open = lane.open.iter().enumerate().skip(class as usize);
        let best = open
            .flat_map(|(class, list)| list.iter().enumerate().map(move |(at, block)| ((class, at), block)))
            .filter(|(_, block)| is_run(block, class, bytes))
            .min_by_key(|(_, block)| block.bytes);
        let block = match best {
            Some(((class, at), _)) => {
                let block = lane.open[class].swap_remove(at);
                lane.left(block)
            }
            None => lane.take_closed_run(class, bytes)?.1,
        };
        Some(self.took(block))
    }

    /// The smallest block of exactly this class, but of at least so many bytes and at a multiple of `alignment`, that
    /// stands behind no event of its stream.
    pub(super) fn take_open_run(
        &mut self,
        stream: Stream,
        class: u32,
        bytes: u64,
        alignment: u32,
    ) -> Option<Freed> {
        let lane = self.lanes.iter_mut().find(|lane| lane.stream == stream)?;
        let list = lane.open.get_mut(class as usize)?;
        let (mut best, mut best_bytes) = (None, u64::MAX);
        for (at, block) in list.iter().enumerate() {
            if block.bytes >= bytes && block.bytes < best_bytes && block.id & u64::from(alignment - 1) == 0 {
                (best, best_bytes) = (Some(at), block.bytes);
                // Nearly as good as it gets, and most of the list need not be looked at.
                if best_bytes - bytes <= bytes / 16 {
                    break;
                }
            }
        }
        let block = list.swap_remove(best?);
        let block = lane.left(block);
        Some(self.took(block))
    }

    /// Blocks of a class that stand behind no event of their stream.
    pub(super) fn open_blocks(&self, stream: Stream, class: u32) -> &[Freed] {
        let lane = self.lanes.iter().find(|lane| lane.stream == stream);
        lane.and_then(|lane| lane.open.get(class as usize)).map_or(&[], Vec::as_slice)
    }

    /// Takes out exactly this one of them; whether it was there.
    pub(super) fn take_open_block(&mut self, stream: Stream, block: Freed) -> bool {
        let Some(lane) = self.lanes.iter_mut().find(|lane| lane.stream == stream) else { return false };
        let Some(list) = lane.open.get_mut(block.class as usize) else { return false };
        let Some(at) = list.iter().position(|open| *open == block) else { return false };
        let block = list.swap_remove(at);
        let block = lane.left(block);
        self.took(block);
        true
    }

    /// Takes out all of them.
    pub(super) fn take_open_blocks(&mut self, stream: Stream, class: u32) -> Vec<Freed> {
        let Some(lane) = self.lanes.iter_mut().find(|lane| lane.stream == stream) else { return Vec::new() };
        let Some(list) = lane.open.get_mut(class as usize) else { return Vec::new() };
        let blocks = std::mem::take(list);
        let bytes = blocks.iter().map(|block| block.bytes).sum::<u64>();
        (lane.open_count, lane.open_bytes) = (lane.open_count - blocks.len(), lane.open_bytes - bytes);
        (self.count, self.bytes) = (self.count - blocks.len(), self.bytes - bytes);
        blocks
    }

    /// As `take_other`, the smallest block of at least so many bytes, of a class from `class` on.
    pub(super) fn take_other_run(
        &mut self,
        stream: Stream,
        class: u32,
        bytes: u64,
    ) -> Option<(Stream, Arc<Fence>, Freed)> {
        let others = self.lanes.iter_mut().filter(|lane| lane.stream != stream);
        let sizes = others.filter_map(|lane| Some((lane.smallest_run(class, bytes)?.1, lane)));
        let (_, lane) = sizes.min_by_key(|(size, _)| *size)?;
        let owner = lane.stream;
        let (fence, block) = lane.take_closed_run(class, bytes)?;
        Some((owner, fence, self.took(block)))
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
        let others = self.lanes.iter_mut().filter(|lane| lane.stream != stream);
        let found = |lane: &mut Lane| Some((lane.stream, lane.take_closed(class, bytes)?));
        let (owner, (fence, block)) = others.into_iter().find_map(found)?;
        Some((owner, fence, self.took(block)))
    }

    /// Undoes `take_other`: the block stands behind its fence again.
    pub(super) fn put_back(&mut self, stream: Stream, fence: Arc<Fence>, block: Freed) {
        self.close(stream, fence, vec![block]);
    }

    /// Takes out all that stands behind no event, to record one: then `close`, or `free` again if that is refused.
    pub(super) fn take_all_open(&mut self, stream: Stream) -> Vec<Freed> {
        let Some(lane) = self.lanes.iter_mut().find(|lane| lane.stream == stream) else { return Vec::new() };
        (lane.open_count, lane.open_bytes) = (0, 0);
        let blocks: Vec<Freed> = lane.open.iter_mut().flat_map(|class| class.drain(..)).collect();
        self.count -= blocks.len();
        self.bytes -= blocks.iter().map(|block| block.bytes).sum::<u64>();
        blocks
    }

    /// Takes out all blocks of a stream that are runs: of a class from `class` on, but for large ones.
    pub(super) fn take_own_runs(&mut self, stream: Stream, class: u32) -> Vec<Freed> {
        let Some(lane) = self.lanes.iter_mut().find(|lane| lane.stream == stream) else { return Vec::new() };
        let mut runs = Vec::new();
        for list in lane.open.iter_mut().skip(class as usize) {
            runs.extend(list.extract_if(.., |block| is_run(block, class, 0)));
        }
        lane.open_count -= runs.len();
        lane.open_bytes -= runs.iter().map(|block| block.bytes).sum::<u64>();
        for batch in &mut lane.closed {
            runs.extend(batch.blocks.extract_if(.., |block| is_run(block, class, 0)));
        }
        lane.closed.retain(|batch| !batch.blocks.is_empty());
        self.count -= runs.len();
        self.bytes -= runs.iter().map(|block| block.bytes).sum::<u64>();
        runs
    }

    /// Puts blocks behind a fence that was recorded on their stream after they were freed.
    pub(super) fn close(&mut self, stream: Stream, fence: Arc<Fence>, blocks: Vec<Freed>) {
        if blocks.is_empty() {
            return;
        }
        self.count += blocks.len();
        self.bytes += blocks.iter().map(|block| block.bytes).sum::<u64>();
        self.lane(stream).closed.push_back(Batch { fence, blocks });
    }

    /// The oldest fence of every stream, for the caller to ask about.
    pub(super) fn oldest(&self) -> Vec<Arc<Fence>> {
        self.lanes.iter().filter_map(|lane| Some(Arc::clone(&lane.closed.front()?.fence))).collect()
    }

    /// The fence that was recorded last, for whoever waits for everything.
    pub(super) fn youngest(&self, stream: Stream) -> Option<Arc<Fence>> {
        let lane = self.lanes.iter().find(|lane| lane.stream == stream)?;
        Some(Arc::clone(&lane.closed.back()?.fence))
    }

    /// Streams of which so many bytes and more stand behind no event.
    pub(super) fn streams_with(&self, bytes: u64) -> Vec<Stream> {
        let lanes = self.lanes.iter().filter(|lane| lane.open_bytes >= bytes);
        lanes.map(|lane| lane.stream).collect()
    }

    /// Nobody frees on a stream any more.
    pub(super) fn end(&mut self, stream: Stream) {
        if let Some(lane) = self.lanes.iter_mut().find(|lane| lane.stream == stream) {
            lane.is_over = true;
        }
    }

    /// Streams that are over and of which something stands behind no event.
    pub(super) fn over(&self) -> Vec<Stream> {
        let lanes = self.lanes.iter().filter(|lane| lane.is_over && lane.open_count > 0);
        lanes.map(|lane| lane.stream).collect()
    }

    /// Streams of which something is held.
    pub(super) fn streams(&self) -> Vec<Stream> {
        self.lanes.iter().map(|lane| lane.stream).collect()
    }

    /// Takes out the blocks whose fences are known to be reached: any stream may have them. `too_many` batches more are
    /// taken of each stream for a test that plants that mistake; else it is 0.
    pub(super) fn take_reached(&mut self, too_many: usize) -> Vec<Freed> {
        let mut reached = Vec::new();
        for lane in &mut self.lanes {
            // A point that was reached was reached after all earlier ones of its stream.
            let count = lane
                .closed
                .iter()
                .rposition(|batch| batch.fence.is_known_reached())
                .map_or(0, |last| last + 1);
            let count = count.saturating_add(too_many).min(lane.closed.len());
            reached.extend(lane.closed.drain(..count).flat_map(|batch| batch.blocks));
        }
        self.count -= reached.len();
        self.bytes -= reached.iter().map(|block| block.bytes).sum::<u64>();
        // The next blocks of a stream find their lists, but threads come and go.
        let may_stay = |lane: &Lane| !lane.open.is_empty() && !is_of_a_thread(lane.stream);
        self.lanes.retain(|lane| lane.open_count > 0 || !lane.closed.is_empty() || may_stay(lane));
        reached
    }

    /// Takes out everything of a stream that is about to go, without a fence: the caller has waited for the stream.
    pub(super) fn take_stream(&mut self, stream: Stream) -> Vec<Freed> {
        let mut blocks = self.take_all_open(stream);
        let Some(index) = self.lanes.iter().position(|lane| lane.stream == stream) else { return blocks };
        let lane = self.lanes.swap_remove(index);
        let closed: Vec<Freed> = lane.closed.into_iter().flat_map(|batch| batch.blocks).collect();
        self.count -= closed.len();
        self.bytes -= closed.iter().map(|block| block.bytes).sum::<u64>();
        blocks.extend(closed);
        blocks
    }

    /// What was freed on a stream is another's from here on, which nobody has used before.
    pub(super) fn rename(&mut self, stream: Stream, heir: Stream) {
        if let Some(lane) = self.lanes.iter_mut().find(|lane| lane.stream == stream) {
            lane.stream = heir;
        }
    }

    /// All blocks, in no order.
    pub(super) fn blocks(&self) -> impl Iterator<Item = &Freed> {
        self.lanes.iter().flat_map(|lane| {
            lane.open.iter().flatten().chain(lane.closed.iter().flat_map(|batch| &batch.blocks))
        })
    }

    /// Proves that the totals are those of the lists.
    pub(super) fn validate(&self) -> Result<()> {
        let mut count = 0;
        let mut bytes = 0;
        for lane in &self.lanes {
            let open: usize = lane.open.iter().map(Vec::len).sum();
            let open_bytes: u64 = lane.open.iter().flatten().map(|block| block.bytes).sum();
            if (open, open_bytes) != (lane.open_count, lane.open_bytes) {
                return Err(Error::internal(format!(
                    "{open} open blocks of {open_bytes} bytes, {} of {} counted",
                    lane.open_count, lane.open_bytes
                )));
            }
            for (class, list) in lane.open.iter().enumerate() {
                if list.iter().any(|block| block.class as usize != class) {
                    return Err(Error::internal(format!("a block of another class in the list of {class}")));
                }
            }
            if lane.closed.iter().any(|batch| batch.blocks.is_empty()) {
                return Err(Error::internal("a batch without blocks"));
            }
            let blocks = lane.open.iter().flatten().chain(lane.closed.iter().flat_map(|batch| &batch.blocks));
            for block in blocks {
                count += 1;
                bytes += block.bytes;
            }
        }
        if (count, bytes) != (self.count, self.bytes) {
            return Err(Error::internal(format!(
                "{count} freed blocks of {bytes} bytes, {} of {} counted",
                self.count, self.bytes
            )));
        }
        Ok(())
    }
}

/// Whether a block can be cut to a run of so many bytes; large ones lie elsewhere.
fn is_run(block: &Freed, class: u32, bytes: u64) -> bool {
    block.class >= class && !matches!(block.class, LARGE | LENDING | COMPOSED) && block.bytes >= bytes
}

impl Lane {
    fn of(stream: Stream) -> Self {
        Self {
            stream,
            open: Vec::new(),
            open_count: 0,
            open_bytes: 0,
            closed: VecDeque::new(),
            is_over: false,
        }
    }

    /// Notes that a block has left the open ones.
    fn left(&mut self, block: Freed) -> Freed {
        self.open_count -= 1;
        self.open_bytes -= block.bytes;
        block
    }

    /// Place and size of the smallest closed block that can be cut to a run.
    fn smallest_run(&self, class: u32, bytes: u64) -> Option<((usize, usize), u64)> {
        let batches = self.closed.iter().enumerate();
        let blocks = batches.flat_map(|(batch, closed)| {
            closed.blocks.iter().enumerate().map(move |(at, block)| ((batch, at), block))
        });
        let runs = blocks.filter(|(_, block)| is_run(block, class, bytes));
        runs.map(|(place, block)| (place, block.bytes)).min_by_key(|(_, bytes)| *bytes)
    }

    fn take_closed_run(&mut self, class: u32, bytes: u64) -> Option<(Arc<Fence>, Freed)> {
        let ((index, at), _) = self.smallest_run(class, bytes)?;
        let batch = &mut self.closed[index];
        let block = batch.blocks.swap_remove(at);
        let fence = Arc::clone(&batch.fence);
        if batch.blocks.is_empty() {
            self.closed.remove(index);
        }
        Some((fence, block))
    }

    /// The youngest closed block of a class: the oldest batches are about to be free for all anyway.
    fn take_closed(&mut self, class: u32, bytes: u64) -> Option<(Arc<Fence>, Freed)> {
        let fits = |block: &Freed| block.class == class && (bytes == 0 || block.bytes == bytes);
        for index in (0..self.closed.len()).rev() {
            let batch = &mut self.closed[index];
            if let Some(at) = batch.blocks.iter().rposition(fits) {
                let block = batch.blocks.swap_remove(at);
                let fence = Arc::clone(&batch.fence);
                if batch.blocks.is_empty() {
                    self.closed.remove(index);
                }
                return Some((fence, block));
            }
        }
        None
    }
}

#[cfg(test)]
#[path = "order_tests.rs"]
mod tests;
