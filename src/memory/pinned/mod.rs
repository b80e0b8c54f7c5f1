//! Pinned host memory from a pool: chunks that many threads touch before they are pinned, and ranges carved from them.
//!
//! What it does: hands out ranges of exact size, takes them back when a stream is past its copies, pins ahead in the
//! background so that the first chunk serves while later ones are on their way, pins ranges of the caller's.
//! What it does not: let a range reach over two chunks, because drivers refuse a copy that touches two registrations;
//! a request above the size of a chunk gets a chunk of its own.
//!
//! Invariants, checked by `validate()`: the ledger has one entry for each live range with exactly the bytes that were
//! asked for; the budget is charged for each chunk and each registered range before they are pinned. A failed call
//! leaves all as it was, but that idle chunks may have gone back.
//! Lock order: the books' one lock, then the ledger's; no device is called under them. The thread that pins ahead takes
//! the same lock; there is none on a simulated device. What it says is heard when it has nothing half done, and whoever
//! hears it may use the pool: so nobody waits for the thread but the drop of the pool on another one.

mod books;
mod carve;
mod statistics;

#[cfg(test)]
mod tests;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

pub use statistics::PinnedStatistics;

use self::books::{Books, Foreign};
use super::Memory;
use super::budget::Charge;
use super::fence::{Fence, Fences};
use super::ledger::{Entry, Where};
use crate::device::{Attribute, HostRange, PinnedRegion, PinnedSlice, Registration, Stream};
use crate::error::{Error, Result, Status};
use crate::event::{Event, Level};
use crate::sync::{Condvar, Mutex};
use crate::sys::numa::{self, HostMemory};
use crate::sys::{fork, shm};

/// A first chunk has so many bytes, and later ones as many as there are already, up to the configured size.
const FIRST_CHUNK: u64 = 2 << 20;
/// What a request above the size of a chunk is rounded up to: a page of the system.
const ROUNDING: u64 = 4096;
/// More threads than this gain nothing: the memory is the limit.
const THREADS_MAX: usize = 16;

/// How chunks are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PinnedConfig {
    /// Largest chunk that is carved; more in one request gets a chunk of its own.
    pub chunk_bytes: u64,
    /// Threads that touch a chunk before it is pinned.
    pub threads: usize,
    /// NUMA node that memory should lie on.
    pub node: Option<u32>,
}

impl PinnedConfig {
    /// 1 GiB, as many threads as there are processors, the node that is nearest to the device.
    pub fn of(memory: &Memory) -> Self {
        let threads = thread::available_parallelism().map_or(1, |count| count.get().min(THREADS_MAX));
        let node = memory.device().attribute(Attribute::HostNode).ok();
        Self { chunk_bytes: 1 << 30, threads, node: node.and_then(|node| u32::try_from(node).ok()) }
    }
}

struct Shared {
    memory: Arc<Memory>,
    fences: Arc<Fences>,
    config: PinnedConfig,
    books: Mutex<Books>,
    /// Told when a chunk has come or will not come.
    changed: Condvar,
    /// How a fence is asked; a test plants a fault here.
    ask: fn(&Fence) -> Result<bool>,
}

/// A pool of pinned host memory. Shared by threads.
pub struct PinnedPool {
    shared: Arc<Shared>,
    /// The thread that pins ahead, and those before it that may not have ended yet.
    workers: Mutex<Vec<JoinHandle<()>>>,
}

impl PinnedPool {
    /// An empty pool.
    pub fn new(memory: &Arc<Memory>, config: PinnedConfig) -> Self {
        let shared = Shared {
            memory: Arc::clone(memory),
            fences: Fences::new(Arc::clone(memory.device())),
            config: PinnedConfig { chunk_bytes: config.chunk_bytes.max(FIRST_CHUNK), ..config },
            books: Mutex::default(),
            changed: Condvar::new(),
            ask: Fence::is_reached,
        };
        Self { shared: Arc::new(shared), workers: Mutex::default() }
    }

    /// Pinned memory of so many bytes, whose content is whatever was there before; `tag` says for what. Blocks while a
    /// chunk is made, or waited for if chunks are on their way.
    pub fn allocate(&self, bytes: u64, tag: &str) -> Result<PinnedSlice> {
        if bytes == 0 {
            return Err(Error::argument(format!("0 bytes requested for \"{tag}\"; ask for at least 1")));
        }
        let shared = &self.shared;
        check_machine(bytes, 0).map_err(|error| error.context(tag))?;
        shared.collect();
        {
            let mut books = shared.books.lock();
            loop {
                if let Some(slice) = books.take(&shared.memory, bytes, tag, true)? {
                    return Ok(slice);
                }
                if books.ahead_bytes == 0 || bytes > shared.config.chunk_bytes {
                    break;
                }
                shared.changed.wait(&mut books);
            }
        }
        match shared.make_chunk(bytes) {
            Ok(chunk) => shared.insert_and_take(chunk, bytes, tag),
            Err(error) if error.status == Status::OutOfHostMemory => shared.last_resorts(bytes, tag, error),
            Err(error) => Err(error),
        }
        .map_err(|error| error.context(tag))
    }

    /// Takes memory back; at once, or when the stream is past what it has been given so far. Does not block.
    pub fn free(&self, address: u64, after: Option<Stream>) -> Result<()> {
        let shared = &self.shared;
        let Some(stream) = after else { return shared.books.lock().free(&shared.memory, address) };
        // Marked first, so that a second free of it is refused while the event is recorded.
        shared.books.lock().mark_leaving(address)?;
        let recorded = shared.fences.record_outside(stream, "free it when the graph is done, by NULL");
        let mut books = shared.books.lock();
        match recorded {
            Ok(fence) => books.leave(&shared.memory, address, fence),
            Err(error) => {
                books.unmark_leaving(address);
                Err(error)
            }
        }
    }

    /// The range of live memory, for copies.
    pub fn slice(&self, address: u64) -> Result<PinnedSlice> {
        self.shared.books.lock().slice(address)
    }

    /// Pins memory of the caller's, in pieces of at most so many bytes (0 for one piece). A copy must not reach from
    /// one piece into the next. Blocks.
    pub fn register(&self, range: HostRange, piece_bytes: u64, tag: &str) -> Result<()> {
        let shared = &self.shared;
        let memory = &shared.memory;
        let charge = memory.budget.charge(Where::Pinned, range.bytes())?;
        numa::populate(range.address(), range.bytes());
        let piece_bytes = if piece_bytes == 0 { range.bytes() } else { piece_bytes };
        let registration = Registration::new(memory.device(), range, piece_bytes)?;
        charge.keep();
        let entry = memory.ledger.add(Entry::new(Where::Pinned, range.address() as u64, range.bytes(), tag));
        shared.books.lock().foreign.insert(range.address() as u64, Foreign { registration, entry });
        Ok(())
    }

    /// Unpins what was registered with this first address. Blocks while copies read it.
    pub fn unregister(&self, address: u64) -> Result<()> {
        let shared = &self.shared;
        let found = shared.books.lock().foreign.remove(&address);
        let Some(mut foreign) = found else {
            let text =
                format!("no registered memory begins at {address:#x}; give the address that was registered");
            return Err(Error::argument(text));
        };
        if let Err(error) = foreign.registration.end() {
            shared.books.lock().foreign.insert(address, foreign);
            return Err(error);
        }
        let bytes = foreign.registration.range().bytes();
        shared.memory.leave(Where::Pinned, bytes, foreign.entry, Ok(()));
        Ok(())
    }

    /// Has at least so many more bytes pinned in the background, in chunks that serve as soon as each is there. On a
    /// simulated device it is done before the answer.
    pub fn reserve(&self, bytes: u64) -> Result<()> {
        let shared = &self.shared;
        let is_simulated = shared.memory.device().description().capabilities.race_detection;
        let mut workers = self.workers.lock();
        let is_idle = {
            let mut books = shared.books.lock();
            // Without a limit nothing else would end it before the system ends somebody.
            check_machine(bytes, books.carver.held_bytes().saturating_add(books.ahead_bytes))?;
            let was_idle = books.ahead_bytes == 0;
            books.ahead_bytes = books.ahead_bytes.saturating_add(bytes);
            was_idle && bytes > 0
        };
        if !is_idle {
            return Ok(());
        }
        if is_simulated {
            drop(workers);
            shared.pin_ahead();
            return Ok(());
        }
        workers.retain(|worker| !worker.is_finished());
        let body = Arc::clone(shared);
        let thread = thread::Builder::new().name("kavern-pin".to_owned());
        match thread.spawn(move || body.work()) {
            Ok(handle) => {
                workers.push(handle);
                Ok(())
            }
            Err(error) => {
                shared.books.lock().ahead_bytes = 0;
                shared.changed.notify_all();
                Err(Error::from_io("starting the thread that pins ahead", &error))
            }
        }
    }

    /// Waits until nothing is being pinned ahead, and tells why it ended early if it did. Blocks.
    pub fn wait_reserved(&self) -> Result<()> {
        let mut books = self.shared.books.lock();
        while books.ahead_bytes > 0 {
            self.shared.changed.wait(&mut books);
        }
        books.ahead_error.take().map_or(Ok(()), Err)
    }

    /// Gives chunks back that are wholly free; answers how many bytes went. Blocks.
    pub fn trim(&self) -> u64 {
        self.shared.collect();
        self.shared.trim()
    }

    /// What it has and did.
    pub fn statistics(&self) -> PinnedStatistics {
        self.shared.collect();
        let books = self.shared.books.lock();
        PinnedStatistics { node: self.shared.config.node, ..books.statistics() }
    }

    /// Proves the invariants of the books.
    pub fn validate(&self) -> Result<()> {
        self.shared.books.lock().validate()
    }
}

/// Refuses what no machine like this one can hold beside what is pinned or on its way already.
fn check_machine(bytes: u64, held_bytes: u64) -> Result<()> {
    let most_bytes = shm::physical_bytes();
    if bytes <= most_bytes.saturating_sub(held_bytes) {
        return Ok(());
    }
    let text = format!(
        "{bytes} bytes of pinned memory requested beside {held_bytes} that are pinned or on their way; the machine has \
         {most_bytes} in all"
    );
    Err(Error::new(Status::OutOfHostMemory, text))
}

impl Shared {
    /// Takes back what streams are past.
    fn collect(&self) {
        // Out of the books for the time of the questions; whoever comes meanwhile finds nothing to take back.
        let leaving = std::mem::take(&mut self.books.lock().leaving);
        if leaving.is_empty() {
            return;
        }
        let asked: Vec<_> = leaving
            .into_iter()
            .map(|(address, fence)| {
                // An error leaves the range where it is; a lost device is told by the next call that needs it.
                let is_over = matches!((self.ask)(&fence), Ok(true));
                (address, fence, is_over)
            })
            .collect();
        let mut books = self.books.lock();
        for (address, fence, is_over) in asked {
            if is_over {
                books.finish_leaving(address);
            } else {
                books.leaving.push((address, fence));
            }
        }
    }

    /// Bytes to try for a chunk that holds a request, best first.
    fn chunk_sizes(&self, bytes: u64) -> [u64; 3] {
        let held = self.books.lock().carver.held_bytes();
        let needed = bytes.checked_next_multiple_of(ROUNDING).unwrap_or(bytes);
        // Small programs stay small: each chunk at most doubles what there is.
        let usual = held.clamp(FIRST_CHUNK, self.config.chunk_bytes);
        [usual.max(needed), needed, bytes]
    }

    fn make_chunk(&self, bytes: u64) -> Result<PinnedRegion> {
        let sizes = self.chunk_sizes(bytes);
        let mut refusal = None;
        for (index, &size) in sizes.iter().enumerate() {
            if index > 0 && sizes[index - 1] == size {
                continue;
            }
            match self.pin(size) {
                Err(error) if matches!(error.status, Status::OutOfHostMemory | Status::OutOfMemory) => {
                    refusal = Some(Error::new(Status::OutOfHostMemory, error.text));
                }
                other => return other,
            }
        }
        Err(refusal.unwrap_or_else(|| Error::internal("no size was tried")))
    }

    fn pin(&self, bytes: u64) -> Result<PinnedRegion> {
        // The charge is a value, so that it also goes back if the device panics.
        let charge = self.memory.budget.charge(Where::Pinned, bytes)?;
        let region = PinnedRegion::new(self.memory.device(), self.touched(bytes)?)?;
        charge.keep();
        Ok(region)
    }

    fn touched(&self, bytes: u64) -> Result<HostMemory> {
        HostMemory::new(bytes, self.config.node, self.config.threads)
    }

    fn insert_and_take(&self, chunk: PinnedRegion, bytes: u64, tag: &str) -> Result<PinnedSlice> {
        let mut books = self.books.lock();
        books.insert(chunk);
        let taken = books.take(&self.memory, bytes, tag, false)?;
        taken.ok_or_else(|| Error::internal("a new chunk does not hold what it was made for"))
    }

    /// What is left when there is no memory: idle chunks go, then copies under way are waited for.
    fn last_resorts(&self, bytes: u64, tag: &str, refusal: Error) -> Result<PinnedSlice> {
        if self.trim() > 0
            && let Ok(chunk) = self.make_chunk(bytes)
        {
            return self.insert_and_take(chunk, bytes, tag);
        }
        let fences: Vec<Arc<Fence>> =
            self.books.lock().leaving.iter().map(|(_, fence)| Arc::clone(fence)).collect();
        for fence in &fences {
            fence.wait()?;
        }
        self.collect();
        if let Some(slice) = self.books.lock().take(&self.memory, bytes, tag, true)? {
            return Ok(slice);
        }
        if !fences.is_empty()
            && self.trim() > 0
            && let Ok(chunk) = self.make_chunk(bytes)
        {
            return self.insert_and_take(chunk, bytes, tag);
        }
        let (free, largest) = self.books.lock().carver.free_bytes();
        let text = format!("{refusal} (in the pool {free} bytes are free, at most {largest} in a row)");
        Err(Error::new(refusal.status, text))
    }

    fn trim(&self) -> u64 {
        let idle = self.books.lock().take_idle();
        idle.into_iter().map(|chunk| self.unpin(chunk)).sum()
    }

    fn unpin(&self, chunk: PinnedRegion) -> u64 {
        let bytes = chunk.slice().bytes();
        let freed = chunk.free();
        self.memory.budget.discharge(Where::Pinned, bytes);
        if let Err(error) = freed {
            self.say(Level::Error, || format!("the device did not let go of {bytes} pinned bytes: {error}"));
        }
        bytes
    }

    fn say(&self, level: Level, text: impl FnOnce() -> String) {
        if self.memory.sink.wants(level) {
            self.memory.sink.emit(Event { level, room: "memory", text: &text() });
        }
    }

    // -------------------------------------------------------------------------------------------- pinning ahead

    /// The next chunk that is to be made ahead, charged and touched.
    fn next_ahead(&self, already: u64) -> Option<Result<Ahead<'_>>> {
        let wanted = self.books.lock().ahead_bytes.saturating_sub(already);
        if wanted == 0 {
            return None;
        }
        let bytes = wanted.next_multiple_of(ROUNDING).min(self.config.chunk_bytes);
        let charge = self.memory.budget.charge(Where::Pinned, bytes);
        Some(charge.and_then(|charge| Ok(Ahead { memory: self.touched(bytes)?, charge })))
    }

    /// What the thread does.
    fn work(&self) {
        self.memory.sink.hold();
        // A panic of the device is told where it happens, and by `wait_reserved`.
        let _ = catch_unwind(AssertUnwindSafe(|| self.pin_ahead()));
        self.memory.sink.settle();
    }

    /// Makes chunks until as many bytes have come as were wished for. While the device pins one, the next is touched.
    fn pin_ahead(&self) {
        let ending = Ending(self);
        let mut next = self.next_ahead(0);
        while let Some(touched) = next {
            let ahead = match touched {
                Ok(ahead) => ahead,
                Err(error) => return ending.early(error),
            };
            let bytes = ahead.memory.bytes();
            let (pinned, following) = thread::scope(|scope| {
                let touching = scope.spawn(|| self.next_ahead(bytes));
                let pinned = PinnedRegion::new(self.memory.device(), ahead.memory);
                (pinned, touching.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            });
            let chunk = match pinned {
                Ok(chunk) => chunk,
                Err(error) => return ending.early(error),
            };
            ahead.charge.keep();
            let mut books = self.books.lock();
            books.insert(chunk);
            books.ahead_bytes = books.ahead_bytes.saturating_sub(bytes);
            let is_wanted = books.ahead_bytes > 0;
            drop(books);
            self.changed.notify_all();
            next = if is_wanted { following.or_else(|| self.next_ahead(0)) } else { None };
        }
    }
}

/// A chunk that is paid for and touched, and not pinned yet.
struct Ahead<'a> {
    memory: HostMemory,
    charge: Charge<'a>,
}

/// The end of pinning ahead, in whatever way it comes: nobody waits for chunks that nobody makes.
struct Ending<'a>(&'a Shared);

impl Ending<'_> {
    fn early(self, error: Error) {
        let (shared, text) = (self.0, format!("pinning ahead ended early: {error}"));
        {
            let mut books = shared.books.lock();
            books.ahead_bytes = 0;
            books.ahead_error = Some(error);
        }
        drop(self);
        shared.say(Level::Warn, || text);
    }
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            let mut books = self.0.books.lock();
            books.ahead_bytes = 0;
            books.ahead_error = Some(Error::internal("a panic while memory was pinned ahead"));
        }
        self.0.changed.notify_all();
    }
}

impl Drop for PinnedPool {
    fn drop(&mut self) {
        self.shared.books.lock().ahead_bytes = 0;
        // One of them itself may be the last to let go of the pool; in the child of a fork there are none.
        let is_other = |worker: &JoinHandle<()>| worker.thread().id() != thread::current().id();
        let workers = std::mem::take(self.workers.get_mut());
        for worker in workers.into_iter().filter(is_other).filter(|_| !fork::is_forked_child()) {
            let _ = worker.join();
        }
        let (chunks, foreign, left) = self.shared.books.lock().close(&self.shared.memory);
        // The device waits for copies under way before it lets go.
        for chunk in chunks {
            self.shared.unpin(chunk);
        }
        for mut foreign in foreign {
            let ended = foreign.registration.end();
            let bytes = foreign.registration.range().bytes();
            self.shared.memory.leave(Where::Pinned, bytes, foreign.entry, ended);
        }
        if let (count @ 1.., bytes) = left {
            self.shared.say(Level::Warn, || {
                format!(
                    "the pinned memory is closed with {count} ranges of {bytes} bytes in use; free them first"
                )
            });
        }
    }
}
