//! The heap's side of the front caches, and of streams that go or are captured.
//!
//! What it does: gives threads their caches and fills them, keeps those of threads that ended for the next ones, takes
//! everything out of them, keeps what graphs may use. What it does not: serve a request.
//! Invariants: blocks of a cache that has ended are in `order`; what is parked is in `leases` too, or was closed. A
//! front cache is visited before `core` is locked, never after.
//! Totals visit every cache, each with a barrier of its own: one barrier for all would keep all owners waiting until
//! the last visit is over, and totals are asked for rarely.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::super::fence::{outlast_stream, outlasts_work};
use super::super::front_cache::{self, Counts, FrontCache, Key, Leased};
use super::super::order::Freed;
use super::super::region::Block;
use super::super::size_class::{self, Class};
use super::Heap;
use super::core::is_run;
use super::lane::{gone_lane, is_of_a_thread};
use super::planted::Mistake;
use crate::device::Stream;
use crate::error::Result;
use crate::event::{Event, Level};
use crate::sys::lease::{Guest, Owner};
use crate::sys::ticker::Ticker;

/// What a thread gets at once of a small size: so many bytes, but at most so many blocks.
const PREFILL_BYTES: u64 = 512 << 10;
const PREFILL_MAX: u64 = 64;

/// Front caches that wait for a thread; the one that waits longest is emptied for another.
const PARKED_MAX: usize = 64;

impl Heap {
    /// A freed block of the capture under way on a stream, of a class and fit for the request.
    pub(super) fn take_captured(
        &self,
        stream: Stream,
        class: u32,
        fits: impl Fn(&Freed) -> bool,
    ) -> Option<Freed> {
        let number = self.names.read().streams.find(stream)?;
        let mut captured = self.captured.lock();
        let blocks = captured.get_mut(&number)?;
        let at = blocks.iter().rposition(|block| block.class == class && fits(block))?;
        Some(blocks.swap_remove(at))
    }

    /// Prepares a stream for the capture of a graph: no front cache serves it, so that each allocation is looked at,
    /// and whoever must not disturb a capture knows the stream.
    pub fn capture_begins(&self, stream: Stream) {
        self.close_caches(stream);
        // Without a number it can have no memory either.
        let _ = self.stream_number(self.lane(stream));
    }

    /// Closes the front caches of a stream.
    pub fn close_caches(&self, stream: Stream) {
        self.flush(Some(self.lane(stream)));
    }

    /// What was allocated and freed during the captures of a stream goes back in the order of `stream`: all launches of
    /// their graphs were enqueued before.
    pub fn capture_released(&self, capture: Stream, stream: Stream) {
        let number = self.names.read().streams.find(self.lane(capture));
        let blocks = number.and_then(|number| self.captured.lock().remove(&number)).unwrap_or_default();
        self.take_freed(self.lane(stream), blocks);
    }

    /// Gives this thread a front cache for a stream that it was just resolved to.
    pub fn adopt(self: &Arc<Self>, key: Key, is_alive: &'static AtomicU64, stream: Stream) -> Result<()> {
        let stream = self.lane(stream);
        // Plain blocks are not kept for reuse.
        if self.plain.is_some() || (stream != Stream::DEFAULT && self.is_capturing(stream)?) {
            return Ok(());
        }
        let number = self.stream_number(stream)?;
        self.ticker.get_or_init(Ticker::shared);
        front_cache::adopt(key, is_alive, self, (stream, number), self.config.front_cache_bytes);
        Ok(())
    }

    /// Puts more blocks of a size on this thread's cache for the stream, as far as they are there already.
    pub fn prefill(&self, key: Key, stream: Stream, bytes: u64, alignment: u64) {
        let stream = self.lane(stream);
        let Some(class) = size_class::class_of(bytes, alignment.max(1)) else { return };
        if self.plain.is_some() || !class.is_small() || self.is_capturing(stream).unwrap_or(true) {
            return;
        }
        let Some(region) = self.region_of_class(class) else { return };
        let block_bytes = size_class::bytes_of(class);
        let count = (PREFILL_BYTES / block_bytes).clamp(1, PREFILL_MAX);
        let mut blocks = Vec::new();
        {
            let mut core = self.core.lock();
            while blocks.len() < count as usize {
                let own = core.order.take_same(stream, class.index() as u32).map(|block| block.id as u32);
                // A class without room is not an error here: nobody has asked for these blocks yet.
                let Some(index) = own.or_else(|| core.take_line(stream, class).ok().flatten()) else { break };
                blocks.push(region.block(index));
            }
        }
        if blocks.is_empty() {
            return;
        }
        let left = front_cache::refill(key, class, blocks);
        let freed =
            |block: Block| Freed { class: class.index() as u32, id: block.index.into(), bytes: block_bytes };
        self.take_freed(stream, left.into_iter().map(freed).collect());
    }

    /// Fills a new front cache with what was freed on its stream.
    pub(in crate::memory) fn fill(&self, cache: &mut FrontCache) {
        let stream = cache.stream;
        let mut core = self.core.lock();
        for class in (0..size_class::CLASS_COUNT).filter_map(Class::at) {
            // Blocks of a class lie in its region.
            let Some(region) = self.region_of_class(class) else { continue };
            let room = if cache.is_half_full() { 0 } else { cache.room(class) };
            for _ in 0..room {
                let Some(block) = core.order.take_open(stream, class.index() as u32) else { break };
                cache.put(class, region.block(block.id as u32));
            }
        }
    }

    pub(in crate::memory) fn lease_began(&self, lane: Stream, guest: Guest<Leased>) {
        self.leases.lock().push((lane, guest));
    }

    /// The front caches of a lane. None of another is visited: each visit interrupts all processors of the program.
    pub(super) fn caches_of(&self, lane: Stream) -> Vec<Guest<Leased>> {
        let leases = self.leases.lock();
        leases.iter().filter(|(its, _)| *its == lane).map(|(_, guest)| guest.clone()).collect()
    }

    /// Keeps a front cache that no thread uses, with its blocks, for the next thread that comes to its stream.
    pub(in crate::memory) fn park(&self, owner: Owner<Leased>, stream: Stream) {
        let last = if is_of_a_thread(stream) {
            // No other thread comes to it.
            Some(owner)
        } else {
            let mut parked = self.parked.lock();
            parked.extend(owner.park().map(|parked| (stream, parked)));
            let is_full = parked.len() > PARKED_MAX;
            is_full.then(|| parked.remove(0).1.take())
        };
        if let Some(owner) = last {
            self.end_own(&owner);
        }
    }

    /// The front cache that was parked last for a stream; this thread is its owner.
    pub(in crate::memory) fn unpark(&self, stream: Stream) -> Option<Owner<Leased>> {
        let mut parked = self.parked.lock();
        let at = parked.iter().rposition(|(other, _)| *other == stream)?;
        let (_, cache) = parked.remove(at);
        Some(cache.take())
    }

    /// Takes the blocks out of what is parked for a stream; whether anything was.
    pub(super) fn empty_parked(&self, stream: Stream) -> bool {
        let mut is_any = false;
        while let Some(owner) = self.unpark(stream) {
            is_any = true;
            self.end_own(&owner);
        }
        is_any
    }

    pub(in crate::memory) fn lease_ended(&self, guest: &Guest<Leased>, counts: Counts) {
        {
            let mut leases = self.leases.lock();
            let before = leases.len();
            leases.retain(|(_, other)| !other.is_same(guest));
            // The thread that gives a cache up and whoever closes it may both come here with the same counts.
            if leases.len() < before {
                self.ended.lock().add(&counts);
            }
        }
        let parked = {
            let mut parked = self.parked.lock();
            let at = parked.iter().position(|(_, parked)| parked.guest().is_same(guest));
            at.map(|at| parked.remove(at))
        };
        drop(parked);
    }

    /// Takes blocks in the order of a stream. What comes from a front cache comes from within the visit: whoever visits
    /// it next finds its blocks here.
    pub(in crate::memory) fn take_freed(&self, stream: Stream, freed: Vec<Freed>) {
        if freed.is_empty() {
            return;
        }
        let mut core = self.core.lock();
        if self.has(Mistake::CachesForAll) {
            freed.into_iter().for_each(|block| drop(core.give_free(block)));
            return;
        }
        freed.into_iter().for_each(|block| core.order.free(stream, block));
    }

    /// A block that is somebody's, with its length.
    pub(super) fn block(&self, class: u32, index: u32) -> Result<Freed> {
        let bytes = match Class::at(class as usize) {
            Some(class) => size_class::bytes_of(class),
            None if is_run(class) => self.run_bytes(index)?,
            None => self.large_bytes(index)?,
        };
        Ok(Freed { class, id: index.into(), bytes })
    }

    /// Takes back a block that was never given out.
    pub(super) fn take_freed_back(&self, (stream, number): (Stream, u16), is_captured: bool, block: Freed) {
        if is_captured {
            self.captured.lock().entry(number).or_default().push(block);
        } else {
            self.core.lock().order.free(stream, block);
        }
    }

    /// Takes everything out of the front caches; those of a stream that goes are closed.
    pub(super) fn flush(&self, gone: Option<Stream>) {
        if let Some(gone) = gone {
            self.caches_of(gone).iter().for_each(|guest| self.end_lease(guest));
            return;
        }
        let leases = self.leases.lock().clone();
        for (lane, guest) in leases {
            guest.with(|leased| self.take_freed(lane, leased.cache.drain()));
        }
    }

    /// Forgets a stream that is about to go. Blocks until its work is done, if something was freed on it.
    pub fn forget_stream(&self, stream: Stream) -> Result<()> {
        let lanes = self.lanes_of(stream);
        lanes.iter().for_each(|&lane| self.flush(Some(lane)));
        self.retire_lanes_of(stream);
        let known: Vec<Stream> = {
            let _nobody_else = self.lanes.write();
            self.core.lock().order.streams()
        };
        let known: Vec<Stream> = known.into_iter().filter(|lane| self.enqueued(*lane) == stream).collect();
        let mut refused = Ok(());
        for lane in known {
            let is_awaited = !self.has(Mistake::StreamNotAwaited);
            let wait = || outlast_stream(self.device.as_ref(), self.marked(lane));
            let waited = if is_awaited { wait() } else { Ok(()) };
            let _nobody_else = self.lanes.write();
            let mut core = self.core.lock();
            match waited {
                Ok(()) => {
                    let blocks = core.order.take_stream(lane);
                    Self::give_all(&mut core, blocks)?;
                }
                // It goes all the same, and its value may be the next stream's.
                Err(error) => {
                    core.order.rename(lane, gone_lane());
                    refused = Err(error);
                }
            }
        }
        refused.and(self.forget_user(stream))
    }

    /// Takes a stream that goes out of the lists of those that used a block: nobody could ask it any more, and whoever
    /// gets its value has nothing to do with the block.
    fn forget_user(&self, stream: Stream) -> Result<()> {
        let is_it = |lane: &Stream| self.enqueued(*lane) == stream;
        let is_known = {
            let _nobody_else = self.lanes.write();
            let is_in_plain = self.plain.as_ref().is_some_and(|plain| plain.is_used_by(is_it));
            let is_in_live = self.shared.lock().values().flatten().any(is_it);
            let core = self.core.lock();
            is_in_plain || is_in_live || core.limbo.is_any_late(is_it)
        };
        if !is_known {
            return Ok(());
        }
        let waited = outlast_stream(self.device.as_ref(), stream);
        // Where it cannot be waited for, something that the device does not know stands in for it.
        let heir = waited.is_err().then(gone_lane);
        let forget = |users: &mut Vec<Stream>| {
            let count = users.len();
            users.retain(|lane| !is_it(lane));
            users.extend(heir.filter(|_| users.len() < count));
        };
        let _nobody_else = self.lanes.write();
        if let Some(plain) = &self.plain {
            plain.change_users(forget);
        }
        self.shared.lock().values_mut().for_each(forget);
        self.core.lock().limbo.change_late(forget);
        waited
    }

    /// Ends the heap: every front cache is closed, so that no thread allocates any more, and no work is left that may
    /// use its pages. Blocks.
    pub fn close(&self) {
        self.is_closed.store(true, Ordering::Release);
        // From here on the upkeep does not hold it either.
        self.physical.idlers().remove(std::ptr::from_ref(self).cast());
        let leases = self.leases.lock().clone();
        leases.iter().for_each(|(_, guest)| self.end_lease(guest));
        let live = self.live_blocks();
        #[cfg(test)]
        if live.is_empty() {
            self.prove_whole().expect("a test that closes a heap does nothing beside that");
        }
        if !live.is_empty() && self.sink.wants(Level::Warn) {
            let bytes: u64 = live.iter().map(|block| block.bytes).sum();
            let text =
                format!("closed with {} live allocations of {bytes} bytes: {}", live.len(), self.top_tags(8));
            self.sink.emit(Event { level: Level::Warn, room: "memory", text: &text });
        }
        self.outlast_work();
    }

    /// Waits for work on blocks, live and freed, before their pages leave. Where the device cannot be waited for, they
    /// stay until it is closed.
    fn outlast_work(&self) {
        let mut regions = self.regions.iter().peekable();
        if regions.peek().is_some() && !outlasts_work(self.device.as_ref()) {
            regions.for_each(|(_, region)| region.range.abandon());
        }
    }

    /// Closes a front cache that is this thread's, which costs the other threads nothing.
    pub(super) fn end_own(&self, owner: &Owner<Leased>) {
        let counts = owner.with(|leased| {
            self.take_freed(leased.cache.stream, leased.close());
            leased.cache.counts
        });
        if let Some(counts) = counts {
            self.lease_ended(&owner.guest(), counts);
        }
    }

    /// Closes a front cache that its thread has not given up.
    fn end_lease(&self, guest: &Guest<Leased>) {
        let counts = guest.with(|leased| {
            self.take_freed(leased.cache.stream, leased.close());
            leased.cache.counts
        });
        self.lease_ended(guest, counts);
    }
}
