//! Pools: blocks of a few sizes, handed out and taken back in stream order without asking the device.
//!
//! What it does: hands out what a stream released itself, what is known to be done, what a new batch brings, and, where
//! a batch is refused, what another stream released, behind a wait. Gives back batches that nobody used for a while
//! (`resting`). What it does not: own addresses; a batch is an [`Allocation`]. It has no clock: `now_ns` comes from the
//! caller.
//!
//! Invariants: those of the books; a block is handed out on a stream only when all work on it is known to be done, or
//! comes before on that stream. A failed call leaves all as it was, but that idle batches may have gone back.
//! Lock order: the books' one lock; no device is called, and no batch allocated or freed, while it is held.

mod books;
mod config;
mod resting;
mod statistics;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

pub use books::{PoolBlock, PoolLive};
pub use config::{ClassConfig, PoolConfig, PoolMemory, Sizes};
pub use statistics::{ClassStatistics, PoolStatistics};

use self::books::{Books, Cells, Growth, Source};
use super::fence::{Fence, Fences, outlasts_work};
use super::{Allocation, Memory, Room};
use crate::device::Stream;
use crate::error::{Error, Result, Status};
use crate::event::{Event, Level};
use crate::sync::Mutex;
use crate::sys::reserve;

/// How a stream is made to wait, and how an event is recorded; tests plant faults here.
#[derive(Clone, Copy)]
struct Ways {
    hold_back: fn(&Fence, Stream) -> Result<()>,
    record: fn(&Arc<Fences>, Stream) -> Result<Arc<Fence>>,
}

/// A pool. Shared by threads.
pub struct Pool {
    memory: Arc<Memory>,
    fences: Arc<Fences>,
    tag: String,
    kind: PoolMemory,
    idle_ns: u64,
    books: Mutex<Books<Allocation>>,
    /// When a call looks for idle batches again.
    next_look_ns: AtomicU64,
    ways: Ways,
}

impl Pool {
    /// Makes a pool with its initial blocks. Blocks while they are allocated.
    pub fn new(memory: &Arc<Memory>, config: PoolConfig, now_ns: u64) -> Result<Self> {
        let config = config.checked()?;
        let description = memory.device().description();
        if config.memory == PoolMemory::Managed && !description.capabilities.managed_memory {
            let text = "no managed memory that CPU and device may touch at the same time; use a pool in device memory";
            return Err(Error::new(Status::Unsupported, format!("{} has {text}", description.name)));
        }
        let pool = Self {
            memory: Arc::clone(memory),
            fences: Fences::new(Arc::clone(memory.device())),
            books: Mutex::new(Books::new(&config)),
            next_look_ns: AtomicU64::new(now_ns.saturating_add(config.idle_ns)),
            tag: config.tag,
            kind: config.memory,
            idle_ns: config.idle_ns,
            ways: Ways { hold_back: Fence::hold_back, record: Fences::record },
        };
        if let Sizes::Classes(classes) = &config.sizes {
            for class in classes.iter().filter(|class| class.initial_blocks > 0) {
                pool.fill(class, now_ns)?;
            }
        }
        Ok(pool)
    }

    fn fill(&self, class: &ClassConfig, now_ns: u64) -> Result<()> {
        let bytes = class.block_bytes.saturating_mul(class.initial_blocks.into());
        self.memory.with_help(bytes, || self.try_fill(class, now_ns))
    }

    fn try_fill(&self, class: &ClassConfig, now_ns: u64) -> Result<()> {
        let (count, bytes) = (class.initial_blocks, class.block_bytes);
        let growth = {
            let mut books = self.books.lock();
            let number = books.class_of(bytes)?;
            books.begin_growth(number, bytes, Some(count))?
        };
        if growth.blocks < count {
            self.books.lock().cancel_growth(&growth);
            let text = format!("{count} initial blocks of {bytes} bytes do not fit below the pool's limit");
            return Err(Error::argument(text));
        }
        let (cells, allocation) = self.allocate(&growth)?;
        self.books.lock().end_growth(&growth, cells, allocation.slice().address(), allocation, now_ns);
        Ok(())
    }

    // -------------------------------------------------------------------------------------------- acquire, release

    /// A block of at least so many bytes for work that follows on the stream. Blocks only while memory is allocated.
    pub fn acquire(&self, bytes: u64, stream: Stream, now_ns: u64) -> Result<PoolBlock> {
        self.look_for_idle(now_ns);
        self.acquire_from(bytes, stream, now_ns).map(|(block, _)| block)
    }

    /// A block for each request, or none at all: then the place of the request that was refused, and why.
    pub fn acquire_list(
        &self,
        bytes: &[u64],
        stream: Stream,
        now_ns: u64,
    ) -> std::result::Result<Vec<PoolBlock>, (usize, Error)> {
        self.look_for_idle(now_ns);
        let mut taken = reserve::room(bytes.len()).map_err(|error| (0, error))?;
        for (index, &bytes) in bytes.iter().enumerate() {
            match self.acquire_from(bytes, stream, now_ns) {
                Ok(found) => taken.push(found),
                Err(error) => {
                    let undone = self.undo(&taken, stream, now_ns);
                    return Err((index, undone.err().unwrap_or(error)));
                }
            }
        }
        Ok(taken.into_iter().map(|(block, _)| block).collect())
    }

    fn undo(&self, taken: &[(PoolBlock, Source)], stream: Stream, now_ns: u64) -> Result<()> {
        let mut grown = Vec::new();
        let mut books = self.books.lock();
        for &(block, source) in taken.iter().rev() {
            let batch = books.undo_take(block, source, stream, now_ns)?;
            if source == Source::Grown {
                grown.push(batch);
            }
        }
        let grown = books.take_idle(u64::MAX, |batch, _, _| grown.contains(&batch));
        drop(books);
        drop(grown);
        Ok(())
    }

    fn acquire_from(&self, bytes: u64, stream: Stream, now_ns: u64) -> Result<(PoolBlock, Source)> {
        let served = self.serve(bytes, stream, now_ns);
        if served.as_ref().is_err_and(|error| error.status == Status::OutOfMemory) {
            self.books.lock().totals().refusals += 1;
        }
        served
    }

    fn serve(&self, bytes: u64, stream: Stream, now_ns: u64) -> Result<(PoolBlock, Source)> {
        let (class, has_waiting) = {
            let mut books = self.books.lock();
            let class = books.class_of(bytes)?;
            if let Some(found) = books.take(class, stream, bytes, now_ns)? {
                return Ok(found);
            }
            (class, books.has_waiting(class))
        };
        if has_waiting {
            self.refresh();
            if let Some(block) = self.books.lock().take_ready(class, bytes, now_ns)? {
                return Ok((block, Source::Ready));
            }
        }
        // More memory before a wait: a wait would tie two streams together that have nothing to do with each other.
        let refusal = match self.expand(class, bytes, now_ns) {
            Ok(block) => return Ok((block, Source::Grown)),
            Err(error) if error.status == Status::OutOfMemory => error,
            Err(error) => return Err(error),
        };
        if let Some(block) = self.take_behind_wait(class, bytes, stream, now_ns)? {
            return Ok((block, Source::Stream));
        }
        let refusal = match self.make_room(class) {
            0 => refusal,
            _ => match self.expand(class, bytes, now_ns) {
                Err(error) if error.status == Status::OutOfMemory => error,
                other => return other.map(|block| (block, Source::Grown)),
            },
        };
        // What others hold comes last. Where it is the pool's own limit that is reached they cannot help.
        let Some(missing_bytes) = self.books.lock().growth_of_one(class) else { return Err(refusal) };
        match self.memory.ask_others(missing_bytes) {
            0 => Err(refusal),
            _ => Ok((self.expand(class, bytes, now_ns)?, Source::Grown)),
        }
    }

    /// Takes a block back. All work on it is on this stream or comes before it there. Does not block.
    pub fn release(&self, address: u64, stream: Stream, now_ns: u64) -> Result<()> {
        self.books.lock().release(address, stream, now_ns)?;
        self.look_for_idle(now_ns);
        Ok(())
    }

    /// Takes all of these blocks back, or none: then `tell` hears of each that is wrong, and the first is the answer.
    pub fn release_list(
        &self,
        addresses: &[u64],
        stream: Stream,
        now_ns: u64,
        mut tell: impl FnMut(usize, &Error),
    ) -> Result<()> {
        let mut released = reserve::room(addresses.len())?;
        let mut refusal = Ok(());
        let mut books = self.books.lock();
        for (index, &address) in addresses.iter().enumerate() {
            let before = books.cell(address);
            match books.release(address, stream, now_ns) {
                Ok(()) => released.extend(before.map(|cell| (address, cell))),
                Err(error) => {
                    tell(index, &error);
                    refusal = refusal.and(Err(error));
                }
            }
        }
        if refusal.is_err() {
            for (address, cell) in released.into_iter().rev() {
                books.undo_release(address, cell, stream)?;
            }
            return refusal;
        }
        drop(books);
        self.look_for_idle(now_ns);
        Ok(())
    }

    // -------------------------------------------------------------------------------------------- stream order

    /// Puts an event behind all that was released, asks which events were reached, and lets any stream have those
    /// blocks. What the device refuses stays as it was and is tried again another time.
    fn refresh(&self) {
        let streams = self.books.lock().order.streams();
        streams.into_iter().for_each(|stream| self.close(stream));
        loop {
            let fences = self.books.lock().order.oldest();
            for fence in &fences {
                // An error leaves the fence unreached; a lost device is told by the call that follows.
                let _ = fence.is_reached();
            }
            let mut books = self.books.lock();
            let reached = books.order.take_reached(0);
            if reached.is_empty() || books.make_ready(&reached).is_err() {
                return;
            }
        }
    }

    fn close(&self, stream: Stream) {
        let blocks = self.books.lock().take_open(stream);
        if blocks.is_empty() {
            return;
        }
        let device = self.memory.device();
        // An event that is recorded in a capture is a part of the graph, and nobody can ask for it.
        let is_in_the_way = || matches!(device.stream_takes_events(stream), Ok(false));
        let fence = if is_in_the_way() { None } else { Some((self.ways.record)(&self.fences, stream)) };
        // A capture may have begun in between: nobody could ask for the event, and so another one has to follow.
        let fence = fence.filter(|_| !is_in_the_way());
        // A stream that was destroyed cannot be asked, but the device can be waited for.
        let is_gone = matches!(&fence, Some(Err(error)) if error.status == Status::InvalidArgument);
        let is_over = is_gone && device.synchronize().is_ok();
        let mut books = self.books.lock();
        books.moved(blocks.len());
        match fence {
            Some(Ok(fence)) => books.order.close(stream, fence, blocks),
            _ if is_over => {
                books.totals().device_waits += 1;
                let closed = books.order.take_stream(stream);
                // Only a block of a batch that is gone is refused, and a batch does not go while a block waits.
                let _ = books.make_ready(&blocks).and_then(|()| books.make_ready(&closed));
            }
            _ => blocks.into_iter().for_each(|block| books.order.free(stream, block)),
        }
    }

    fn take_behind_wait(
        &self,
        class: u32,
        bytes: u64,
        stream: Stream,
        now_ns: u64,
    ) -> Result<Option<PoolBlock>> {
        // A graph cannot wait for an event from outside of it.
        if !self.memory.device().stream_takes_events(stream)? {
            return Ok(None);
        }
        let Some((owner, fence, freed)) = self.books.lock().take_other(stream, class) else {
            return Ok(None);
        };
        let held_back = (self.ways.hold_back)(&fence, stream);
        let mut books = self.books.lock();
        books.moved(1);
        if let Err(error) = held_back {
            books.order.put_back(owner, fence, freed);
            return Err(error);
        }
        books.totals().stream_waits += 1;
        books.take_waiting(freed, bytes, now_ns).map(Some)
    }

    // -------------------------------------------------------------------------------------------- growing, shrinking

    fn allocate(&self, growth: &Growth) -> Result<(Cells, Allocation)> {
        let take = || match self.kind {
            PoolMemory::Device => self.memory.allocate(growth.bytes, &self.tag),
            PoolMemory::Managed => self.memory.allocate_managed(growth.bytes, &self.tag),
        };
        let made = Cells::new(growth.blocks).and_then(|cells| Ok((cells, take()?)));
        made.inspect_err(|_| self.books.lock().cancel_growth(growth))
    }

    fn expand(&self, class: u32, bytes: u64, now_ns: u64) -> Result<PoolBlock> {
        let mut growth = self.books.lock().begin_growth(class, bytes, None)?;
        let mut made = self.allocate(&growth);
        if growth.blocks > 1 && made.as_ref().is_err_and(|error| error.status == Status::OutOfMemory) {
            growth = self.books.lock().begin_growth(class, bytes, Some(1))?;
            made = self.allocate(&growth);
        }
        let (cells, allocation) = made?;
        let mut books = self.books.lock();
        books.end_growth(&growth, cells, allocation.slice().address(), allocation, now_ns);
        books.take_grown(class, bytes, now_ns)
    }

    /// Gives idle batches of other classes back, until a block of this one fits; answers how many bytes went.
    fn make_room(&self, class: u32) -> u64 {
        self.refresh();
        let mut books = self.books.lock();
        let wanted = books.wanted_room(class);
        let idle = books.take_idle(wanted, |_, other, _| other != class);
        drop(books);
        idle.iter().map(Allocation::bytes).sum()
    }

    /// Gives batches back that nobody used for so long; answers how many bytes went. Blocks while they are freed.
    pub fn trim(&self, older_than_ns: u64, now_ns: u64) -> u64 {
        self.refresh();
        let is_old = |_, _, last_use_ns| now_ns.saturating_sub(last_use_ns) >= older_than_ns;
        let idle = self.books.lock().take_idle(u64::MAX, is_old);
        idle.iter().map(Allocation::bytes).sum()
    }

    // -------------------------------------------------------------------------------------------- looking

    /// What its memory is called in reports.
    pub fn tag(&self) -> &str {
        &self.tag
    }

    /// Totals, and classes by size.
    pub fn statistics(&self) -> (PoolStatistics, Vec<ClassStatistics>) {
        self.books.lock().statistics()
    }

    /// The blocks that somebody has, by address.
    pub fn live(&self) -> Vec<PoolLive> {
        self.books.lock().live()
    }

    /// Proves the invariants of the books.
    pub fn validate(&self) -> Result<()> {
        self.books.lock().validate()
    }
}

impl Room for Pool {
    fn reclaim(&self, bytes: u64) -> u64 {
        self.refresh();
        let idle = self.books.lock().take_idle(bytes, |_, _, _| true);
        idle.iter().map(Allocation::bytes).sum()
    }

    fn rank(&self) -> u32 {
        0
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let books = self.books.get_mut();
        let (totals, busy) = (books.statistics().0, books.busy_blocks());
        // Work may still be on its way to these blocks; only a lost device refuses, and nothing runs on that.
        if busy > 0 {
            outlasts_work(self.memory.device().as_ref());
        }
        let sink = &self.memory.sink;
        if totals.in_use > 0 && sink.wants(Level::Warn) {
            let (count, bytes) = (totals.in_use, totals.in_use_bytes);
            let text = format!(
                "pool \"{}\" is closed with {count} blocks of {bytes} bytes in use; release them first",
                self.tag
            );
            sink.emit(Event { level: Level::Warn, room: "memory", text: &text });
        }
    }
}
