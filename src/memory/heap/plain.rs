//! The heap on a device that cannot map memory: each block is an allocation of its own, straight from the device.
//!
//! What it does: gives blocks out, takes them back in the order of streams, behind events. What it does not: keep
//! freed memory for the next request; a block goes to the device when the streams that used it are known to be past:
//! on a stream on which nothing else is, so that nobody waits for other work. A device without memory in stream order
//! waits for all its work there: an allocation may, a free does not get as far.
//! Invariants: an allocation is in `blocks` or in `leaving` and in neither twice; what is in `leaving` may still be
//! used by work that was enqueued before. Lock order: each of its locks alone; no device is called under them.

mod leaving;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use self::leaving::Leaving;
use super::super::fence::{Fence, outlasts_work};
use super::super::size_class;
use super::super::{Allocation, Memory};
use super::points::is_gone;
use super::{Heap, LiveBlock, no_such_block};
use crate::device::{DeviceSlice, Stream};
use crate::error::{Error, Result, Status};
use crate::sync::Mutex;
use crate::sys::ticker;

struct Block {
    allocation: Allocation,
    bytes: u64,
    tag: u16,
    stream: u16,
    born: u32,
    /// Lanes that used it beside the one that will free it.
    users: Vec<Stream>,
}

/// All blocks of such a heap.
pub(in crate::memory) struct PlainBlocks {
    memory: Arc<Memory>,
    /// On which blocks go to the device.
    back: Stream,
    blocks: Mutex<BTreeMap<u64, Block>>,
    leaving: Mutex<Leaving>,
    allocations: AtomicU64,
    /// Bytes that went to the device, ever.
    returned_bytes: AtomicU64,
}

/// What it has and did.
pub(super) struct PlainCounts {
    pub(super) allocations: u64,
    pub(super) count: u64,
    pub(super) bytes: u64,
    pub(super) leaving_bytes: u64,
}

impl PlainBlocks {
    pub(in crate::memory) fn new(memory: &Arc<Memory>) -> Result<Self> {
        Ok(Self {
            back: memory.device().stream_create()?,
            memory: Arc::clone(memory),
            blocks: Mutex::default(),
            leaving: Mutex::default(),
            allocations: AtomicU64::new(0),
            returned_bytes: AtomicU64::new(0),
        })
    }

    /// Addresses of all allocations.
    fn addresses(&self) -> BTreeSet<u64> {
        let of = |allocation: &Allocation| allocation.slice().address();
        let mut all: BTreeSet<u64> = self.blocks.lock().values().map(|block| of(&block.allocation)).collect();
        all.extend(self.leaving.lock().allocations().map(of));
        all
    }

    /// Bytes that went to the device, ever.
    pub(super) fn returned_bytes(&self) -> u64 {
        self.returned_bytes.load(Ordering::Relaxed)
    }

    /// The numbers of the streams of all live blocks.
    pub(super) fn named_streams(&self) -> Vec<u16> {
        self.blocks.lock().values().map(|block| block.stream).collect()
    }

    /// Gives the tag and the bytes of each live block.
    pub(super) fn for_each_tagged(&self, mut each: impl FnMut(u16, u64)) {
        self.blocks.lock().values().for_each(|block| each(block.tag, block.bytes));
    }

    fn with<T>(&self, address: u64, body: impl FnOnce(&mut Block) -> T) -> Result<T> {
        self.blocks.lock().get_mut(&address).map(body).ok_or_else(|| no_such_block(address))
    }

    /// Gives blocks to the device whose streams are past; whether there were any.
    pub(super) fn collect(&self) -> Result<bool> {
        let mut gone = Vec::new();
        let asked = self.take_over(&mut gone);
        if gone.is_empty() {
            return asked.map(|()| false);
        }
        let bytes: u64 = gone.iter().map(Allocation::bytes).sum();
        drop(gone);
        self.returned_bytes.fetch_add(bytes, Ordering::Relaxed);
        // Nothing but their frees is on it.
        let returned = self.memory.device().stream_synchronize(self.back);
        asked.and(returned).map(|()| true)
    }

    /// Takes blocks out whose streams are past. A fence is asked without the lock.
    fn take_over(&self, gone: &mut Vec<Allocation>) -> Result<()> {
        let (oldest, several) = {
            let leaving = self.leaving.lock();
            (leaving.oldest(), leaving.several())
        };
        for (lane, fence) in oldest {
            let mut next = Some(fence);
            while let Some(fence) = next {
                if !fence.is_reached()? {
                    break;
                }
                next = self.leaving.lock().take_over(lane, gone);
            }
        }
        let mut busy: Vec<Stream> = Vec::new();
        for (lane, fence) in several {
            if !busy.contains(&lane) && !fence.is_reached()? {
                busy.push(lane);
            }
        }
        self.leaving.lock().take_over_several(gone);
        Ok(())
    }

    /// What keeps freed blocks.
    pub(super) fn fences(&self) -> Vec<Arc<Fence>> {
        self.leaving.lock().fences()
    }

    pub(super) fn counts(&self) -> PlainCounts {
        let (count, bytes) = {
            let blocks = self.blocks.lock();
            (blocks.len() as u64, blocks.values().map(|block| block.allocation.bytes()).sum::<u64>())
        };
        let leaving: Vec<u64> = self.leaving.lock().allocations().map(Allocation::bytes).collect();
        PlainCounts {
            allocations: self.allocations.load(Ordering::Relaxed),
            count: count + leaving.len() as u64,
            bytes: bytes + leaving.iter().sum::<u64>(),
            leaving_bytes: leaving.iter().sum(),
        }
    }

    /// That a block is there.
    pub(super) fn check(&self, address: u64) -> Result<()> {
        self.with(address, |_| ())
    }

    /// Whether one of these lanes is noted as a user of any block.
    pub(super) fn is_used_by(&self, is_one: impl Fn(&Stream) -> bool) -> bool {
        self.blocks.lock().values().any(|block| block.users.iter().any(&is_one))
    }

    /// Changes the users of all blocks.
    pub(super) fn change_users(&self, change: impl Fn(&mut Vec<Stream>)) {
        self.blocks.lock().values_mut().for_each(|block| change(&mut block.users));
    }

    /// Takes back a block that was allocated on this stream and that nothing uses; its bytes that were asked for.
    pub(super) fn take_unused(&self, stream: Stream, address: u64) -> Option<u64> {
        let Block { allocation, bytes, .. } = self.blocks.lock().remove(&address)?;
        self.returned_bytes.fetch_add(allocation.bytes(), Ordering::Relaxed);
        allocation.return_unused(stream);
        Some(bytes)
    }

    /// Notes that a lane uses a block.
    pub(super) fn record_use(&self, address: u64, stream: Stream) -> Result<()> {
        self.with(address, |block| {
            if !block.users.contains(&stream) {
                block.users.push(stream);
            }
        })
    }

    /// The bytes of a block that were asked for.
    pub(super) fn slice(&self, address: u64) -> Result<DeviceSlice> {
        self.with(address, |block| {
            let whole = block.allocation.slice();
            whole.part(address - whole.address(), block.bytes)
        })?
    }
}

impl Drop for PlainBlocks {
    fn drop(&mut self) {
        let (blocks, leaving) = (self.blocks.get_mut(), self.leaving.get_mut());
        let device = self.memory.device();
        // Work may still be on its way to these blocks; only a lost device refuses, and nothing runs on that.
        if !blocks.is_empty() || leaving.allocations().next().is_some() {
            outlasts_work(device.as_ref());
        }
        blocks.clear();
        leaving.clear();
        let _ = device.stream_destroy(self.back);
    }
}

impl Heap {
    /// Addresses of the allocations behind plain blocks, live and freed.
    pub fn plain_addresses(&self) -> BTreeSet<u64> {
        self.plain.as_ref().map(PlainBlocks::addresses).unwrap_or_default()
    }

    pub(super) fn allocate_plain(
        &self,
        plain: &PlainBlocks,
        stream: Stream,
        (bytes, alignment): (u64, u64),
        (tag, tag_name): (u16, &str),
    ) -> Result<u64> {
        if self.is_capturing(stream)? {
            let text = "a device that cannot map memory has none to give while a graph is captured";
            return Err(Error::new(Status::WrongState, text));
        }
        let number = self.stream_number(stream)?;
        plain.collect()?;
        // The device aligns to 256 bytes; for more, there is room to begin later.
        let extra = if alignment > size_class::UNIT_BYTES { alignment } else { 0 };
        let order = (stream, plain.back);
        let attempt = |_| plain.memory.allocate_ordered(bytes + extra, tag_name, order).map(Some);
        let allocation = self.climb(bytes, false, attempt, || Ok(None))?;
        let address = allocation.slice().address().next_multiple_of(alignment);
        let block = Block { allocation, bytes, tag, stream: number, born: self.tick(), users: Vec::new() };
        plain.blocks.lock().insert(address, block);
        plain.allocations.fetch_add(1, Ordering::Relaxed);
        self.slow.allocations.fetch_add(1, Ordering::Relaxed);
        self.slow.allocated_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.rooms.relax();
        Ok(address)
    }

    pub(super) fn free_plain(&self, plain: &PlainBlocks, stream: Stream, address: u64) -> Result<()> {
        let (freeing, _lanes) = (self.lane(stream), self.lanes.read());
        let users = plain.with(address, |block| block.users.clone())?;
        let mut fences = Vec::with_capacity(users.len() + 1);
        for user in users.into_iter().chain(Some(freeing)) {
            match self.mark(user) {
                Ok(Some(fence)) => fences.push((user, fence)),
                Ok(None) => {
                    let text =
                        "a block of a device that cannot map memory is not freed while a graph is captured";
                    return Err(Error::new(Status::WrongState, text));
                }
                // A user that is gone cannot be asked, but the device can be waited for.
                Err(error) if is_gone(&error) && user != freeing && self.outlasts_gone() => {}
                Err(error) => return Err(error),
            }
        }
        // Another thread may have freed it meanwhile.
        let block = plain.blocks.lock().remove(&address).ok_or_else(|| no_such_block(address))?;
        self.slow.frees.fetch_add(1, Ordering::Relaxed);
        self.slow.freed_bytes.fetch_add(block.bytes, Ordering::Relaxed);
        plain.leaving.lock().push(fences, block.allocation);
        // A device without memory in stream order would wait for all of its work here; then it is an allocation's turn.
        if self.device.description().capabilities.stream_ordered {
            // The block is freed whatever the device says now; its turn comes with a later call.
            let _ = plain.collect();
        }
        Ok(())
    }

    pub(super) fn plain_block(&self, plain: &PlainBlocks, address: u64) -> Result<LiveBlock> {
        let names = self.names.read();
        plain.with(address, |block| self.described(&names, address, block))
    }

    pub(super) fn plain_blocks(&self, plain: &PlainBlocks) -> Vec<LiveBlock> {
        let names = self.names.read();
        let blocks = plain.blocks.lock();
        blocks.iter().map(|(&address, block)| self.described(&names, address, block)).collect()
    }

    fn described(&self, names: &super::Names, address: u64, block: &Block) -> LiveBlock {
        LiveBlock {
            address,
            bytes: block.bytes,
            block_bytes: block.allocation.bytes(),
            tag: names.tags.get(usize::from(block.tag)).map(|tag| tag.to_string()).unwrap_or_default(),
            stream: names.streams.stream(block.stream).map_or(0, |stream| stream.0),
            age_ms: ticker::age_ms(ticker::clock_ms(), block.born),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::heap;
    use crate::device::Stream;
    use crate::sys::clock;
    use std::sync::atomic::Ordering;
    use std::sync::mpsc::channel;

    #[test]
    fn a_free_does_not_walk_over_what_waits() {
        const BLOCKS: usize = 12_000;
        let heap = heap("host?virtual=0", 0);
        let still = heap.device.stream_create().unwrap();
        let (open, gate) = channel::<()>();
        let hold = Box::new(move || {
            let _ = gate.recv();
        });
        heap.device.stream_callback(still, hold).unwrap();
        let blocks: Vec<u64> = (0..BLOCKS).map(|_| heap.allocate(still, 256, 0, 0).unwrap()).collect();
        // Time of this thread; the least of several groups, because other work on the machine only adds to it.
        let time = |blocks: &[u64]| {
            let groups = blocks.chunks(200).map(|group| {
                let start = clock::thread_ns();
                group.iter().for_each(|&address| heap.free(still, address).unwrap());
                clock::thread_ns() - start
            });
            groups.min().unwrap()
        };
        let few = time(&blocks[..600]);
        blocks[600..BLOCKS - 600].iter().for_each(|&address| heap.free(still, address).unwrap());
        let many = time(&blocks[BLOCKS - 600..]);
        assert!(many < 8 * few, "{few} ns for 200 frees beside few that wait, {many} beside {BLOCKS}");
        drop(open);
        heap.device.stream_synchronize(still).unwrap();
        heap.collect().unwrap();
        assert_eq!(heap.statistics().plain_count, 0);
    }

    #[test]
    fn a_thread_that_used_a_block_on_its_own_default_stream_is_waited_for_by_another_one() {
        let heap = heap("host?virtual=0", 0);
        heap.has_thread_streams.store(true, Ordering::Relaxed);
        let address = heap.allocate(Stream::DEFAULT, 4096, 0, 0).unwrap();
        let per_thread = Stream(2);
        std::thread::scope(|scope| {
            let used = scope.spawn(|| {
                heap.record_use(address, per_thread).unwrap();
                heap.lane(per_thread)
            });
            let used = used.join().unwrap();
            // So that the free leaves it there to be looked at.
            let (open, gate) = channel::<()>();
            let hold = Box::new(move || {
                let _ = gate.recv();
            });
            heap.device.stream_callback(Stream::DEFAULT, hold).unwrap();
            heap.free(per_thread, address).unwrap();
            let points = heap.plain.as_ref().unwrap().leaving.lock().several();
            let lanes: Vec<Stream> = points.iter().map(|(lane, _)| *lane).collect();
            drop(open);
            assert_eq!(lanes, [used, heap.lane(per_thread)]);
            assert_ne!(lanes[0], lanes[1]);
        });
        heap.device.synchronize().unwrap();
        heap.collect().unwrap();
        assert_eq!(heap.statistics().plain_count, 0);
    }

    #[test]
    fn a_free_asks_about_the_oldest_point_of_a_stream_only() {
        const BLOCKS: u64 = 200;
        let heap = heap("host?virtual=0&kind=event&fail_nth=0", 0);
        let still = heap.device.stream_create().unwrap();
        let (open, gate) = channel::<()>();
        let hold = Box::new(move || {
            let _ = gate.recv();
        });
        heap.device.stream_callback(still, hold).unwrap();
        let blocks: Vec<u64> = (0..BLOCKS).map(|_| heap.allocate(still, 4096, 0, 0).unwrap()).collect();
        let before = heap.device.call_count();
        blocks.into_iter().for_each(|address| heap.free(still, address).unwrap());
        let calls = heap.device.call_count() - before;
        // An event is made and recorded, and one is asked about.
        assert!(calls <= 3 * BLOCKS, "{calls} calls about events for {BLOCKS} frees");
        assert_eq!(heap.statistics().plain_count, BLOCKS);
        // What another stream frees does not stay behind them.
        let other = heap.allocate(Stream::DEFAULT, 4096, 0, 0).unwrap();
        heap.free(Stream::DEFAULT, other).unwrap();
        heap.device.stream_synchronize(Stream::DEFAULT).unwrap();
        heap.collect().unwrap();
        assert_eq!(heap.statistics().plain_count, BLOCKS);
        drop(open);
        heap.device.stream_synchronize(still).unwrap();
        heap.collect().unwrap();
        assert_eq!(heap.statistics().plain_count, 0);
        heap.device.stream_destroy(still).unwrap();
    }
}
