//! The composition root: one open device with its memory, streams, tickets and the names of its caches.
//!
//! What it does: puts the rooms together; knows which streams may be used with the device. What it does not: handles
//! and raw pointers; those are `c_api`'s.
//!
//! Invariants: a stream value that reaches the device is its default stream, was made here or was registered; a stream
//! in use by a call is not destroyed and not forgotten before the call has ended. Whatever belongs to a manager keeps
//! it alive. Lock order: `streams`, `caches`; each alone, no device is called under them.

mod cache_note;
mod holdings;
mod report;
mod ticket;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

pub use ticket::{State, poll, wait};

pub use self::cache_note::CacheNote;
use self::holdings::Holdings;
use crate::cache;
use crate::device::{Device, Stream, registry};
use crate::error::{Error, Result, Status};
use crate::event::{Event, EventSink, Level};
use crate::memory::{
    Heap, HeapConfig, Limits, MachineBudget, Memory, PhysicalStatistics, PinnedConfig, PinnedPool, Ready,
    Statistics, Where,
};
use crate::sync::Mutex;
use crate::sys::{clock, fork};
use crate::types::Id;

/// Most foreign streams of one manager; more is a program that forgets to unregister.
const FOREIGN_LIMIT: usize = 4096;

enum Foreign {
    /// Being registered or unregistered by another thread; the device's value.
    Changing(u64),
    Ready(Arc<ForeignStream>),
}

impl Foreign {
    fn raw(&self) -> u64 {
        match self {
            Self::Changing(raw) => *raw,
            Self::Ready(foreign) => foreign.stream.0,
        }
    }
}

struct ForeignStream {
    stream: Stream,
    /// Where it is a stream of another manager: that one, kept alive.
    origin: Option<Arc<OwnStream>>,
}

#[derive(Default)]
struct Streams {
    own: BTreeSet<u64>,
    /// By the value that the caller uses.
    foreign: BTreeMap<u64, Foreign>,
}

/// What a manager has and did.
#[derive(Clone, Copy, Debug)]
pub struct Totals {
    /// Memory by place: allocations straight from the device, which pools and caches make too.
    pub memory: Statistics,
    /// Asked of the general allocator and not yet freed.
    pub heap_bytes: u64,
    /// Blocks of that.
    pub heap_count: u64,
    /// Blocks ever.
    pub heap_allocations: u64,
    /// Those bytes of the general allocator's blocks that `memory` counts too.
    pub plain_bytes: u64,
    /// As `plain_bytes`, live blocks and blocks ever.
    pub plain_counts: (u64, u64),
    /// Committed in elastic ranges, those of KV caches that can grow too.
    pub elastic_bytes: u64,
    /// Committed by models of shared pools.
    pub shared_bytes: u64,
    /// Device memory charged now, in use or kept for use.
    pub held_bytes: u64,
    /// Most that was charged at one time.
    pub held_peak_bytes: u64,
    /// Its limits.
    pub limits: Limits,
    /// Streams made here.
    pub own_streams: u64,
    /// Streams registered here.
    pub foreign_streams: u64,
    /// Tickets not known to be done.
    pub pending_tickets: u64,
    /// Caches.
    pub caches: u64,
    /// Copies to the host that are running.
    pub running_copies: u64,
    /// Physical pages, those of shared pools too.
    pub pages: PhysicalStatistics,
    /// Fallible calls of the device that a fault wrapper has counted.
    pub device_calls: u64,
    /// Races between streams that the device has found.
    pub races: u64,
}

impl Totals {
    /// Device memory that was asked for and not given up, by every way.
    pub fn device_bytes(&self) -> u64 {
        self.memory.device.bytes.saturating_sub(self.plain_bytes)
            + self.heap_bytes
            + self.elastic_bytes
            + self.shared_bytes
    }
}

/// How a manager is made.
#[derive(Clone, Copy, Debug, Default)]
pub struct Settings<'a> {
    /// Its limits.
    pub limits: Limits,
    /// A budget of the machine that its use is charged to as well: its name, and its limit or 0 for the one that is
    /// there.
    pub machine: Option<(&'a str, u64)>,
    /// Whether the allocator meshes pages before it refuses a request: see [`HeapConfig::meshes_when_short`].
    pub meshes_when_short: bool,
    /// Pages that are made ahead; nothing on a simulated device.
    pub ready: Ready,
}

/// One device with all that belongs to it.
pub struct Manager {
    device: Arc<dyn Device>,
    memory: Arc<Memory>,
    pinned: PinnedPool,
    limits: Limits,
    sink: Arc<dyn EventSink>,
    streams: Mutex<Streams>,
    pending_tickets: Arc<AtomicU64>,
    caches: Mutex<BTreeMap<u64, String>>,
    holdings: Holdings,
    next_cache: AtomicU64,
    heap: OnceLock<Arc<Heap>>,
    making_heap: Mutex<()>,
    meshes_when_short: bool,
    born_ns: u64,
}

impl Manager {
    /// Opens a device by name, for example "host" or "cuda:0".
    pub fn open(spec: &str, limits: Limits, sink: Arc<dyn EventSink>) -> Result<Arc<Self>> {
        Self::open_with(spec, Settings { limits, ..Settings::default() }, sink)
    }

    /// As `open`, with all that may be set.
    pub fn open_with(spec: &str, settings: Settings<'_>, sink: Arc<dyn EventSink>) -> Result<Arc<Self>> {
        let Settings { limits, machine, meshes_when_short, ready } = settings;
        fork::install()?;
        let machine = machine.map(|(name, bytes)| MachineBudget::open(name, bytes)).transpose()?;
        let device = registry::open_telling(spec, Arc::clone(&sink))?;
        let memory = match machine {
            Some(machine) => Memory::with_machine(Arc::clone(&device), limits, machine, Arc::clone(&sink)),
            None => Memory::new(Arc::clone(&device), limits, Arc::clone(&sink)),
        };
        if ready.high_bytes > 0 {
            // Where pages cannot be had, that is said, and not found out by whoever counts on them.
            memory.physical_with(ready)?;
        }
        let pinned = PinnedPool::new(&memory, PinnedConfig::of(&memory));
        let manager = Arc::new(Self {
            device,
            memory,
            pinned,
            limits,
            sink,
            streams: Mutex::default(),
            pending_tickets: Arc::default(),
            caches: Mutex::default(),
            holdings: Holdings::default(),
            next_cache: AtomicU64::new(0),
            heap: OnceLock::new(),
            making_heap: Mutex::default(),
            meshes_when_short,
            born_ns: clock::now_ns(),
        });
        manager.say(Level::Info, || format!("opened {} for {spec}", manager.device.description().name));
        Ok(manager)
    }

    /// The device.
    pub fn device(&self) -> &Arc<dyn Device> {
        &self.device
    }

    /// The device's memory, with accounts.
    pub fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// The general allocator, made when it is first asked for.
    pub fn heap(&self) -> Result<&Arc<Heap>> {
        if let Some(heap) = self.heap.get() {
            return Ok(heap);
        }
        let _making = self.making_heap.lock();
        if self.heap.get().is_none() {
            let config =
                HeapConfig { meshes_when_short: self.meshes_when_short, ..self.memory.heap_config() };
            let heap = self.memory.make_heap_with(config)?;
            let _ = self.heap.set(heap);
        }
        self.heap.get().ok_or_else(|| Error::internal("a heap that was made just now"))
    }

    fn forget_blocks_of(&self, stream: Stream) -> Result<()> {
        self.heap.get().map_or(Ok(()), |heap| heap.forget_stream(stream))
    }

    /// The pool of pinned host memory.
    pub fn pinned(&self) -> &PinnedPool {
        &self.pinned
    }

    /// Where news goes.
    pub fn sink(&self) -> &Arc<dyn EventSink> {
        &self.sink
    }

    fn say(&self, level: Level, text: impl FnOnce() -> String) {
        if self.sink.wants(level) {
            self.sink.emit(Event { level, room: "manager", text: &text() });
        }
    }

    /// Loads every kernel of the rooms, so that no later call loads one. Blocks.
    pub fn warm_up(&self) -> Result<()> {
        self.device.module_load(cache::kernels())
    }

    /// Makes a stream, which keeps the manager alive.
    pub fn create_stream(self: &Arc<Self>) -> Result<Arc<OwnStream>> {
        let stream = self.device.stream_create()?;
        self.streams.lock().own.insert(stream.0);
        Ok(Arc::new(OwnStream { manager: Arc::clone(self), stream }))
    }

    /// The default stream for 0 and 1, otherwise a registered stream.
    pub fn stream(&self, value: u64) -> Result<StreamRef> {
        if value <= 1 {
            return Ok(StreamRef { stream: Stream::DEFAULT, _own: None, _foreign: None });
        }
        match self.streams.lock().foreign.get(&value) {
            Some(Foreign::Ready(foreign)) => {
                Ok(StreamRef { stream: foreign.stream, _own: None, _foreign: Some(Arc::clone(foreign)) })
            }
            _ => Err(unknown_stream(value)),
        }
    }

    /// A stream that was made here, for use in a call.
    pub fn own_stream(&self, own: Arc<OwnStream>) -> Result<StreamRef> {
        if !std::ptr::eq(Arc::as_ptr(&own.manager), self) {
            return Err(Error::argument(
                "the stream belongs to another manager; register it here with kavern_manager_stream_register",
            ));
        }
        Ok(StreamRef { stream: own.stream, _own: Some(own), _foreign: None })
    }

    /// Lets a stream that somebody else made be used here under `value`. `origin` tells that it is one of another
    /// manager, and keeps it alive.
    pub fn register_stream(&self, value: u64, origin: Option<Arc<OwnStream>>) -> Result<()> {
        if value <= 1 {
            return Err(Error::argument("the default stream needs no registration"));
        }
        let raw = match &origin {
            Some(own) => self.raw_of(own)?,
            None => value,
        };
        self.claim(value, raw)?;
        // The entry says Changing meanwhile, so that no lock is held across the device.
        let wrapped = self.device.stream_wrap(raw);
        let mut streams = self.streams.lock();
        match wrapped {
            Ok(stream) => {
                let foreign = Arc::new(ForeignStream { stream, origin });
                streams.foreign.insert(value, Foreign::Ready(foreign));
                Ok(())
            }
            Err(error) => {
                streams.foreign.remove(&value);
                Err(error)
            }
        }
    }

    fn raw_of(&self, own: &OwnStream) -> Result<u64> {
        let (theirs, mine) = (own.manager.device.description(), self.device.description());
        if std::ptr::eq(Arc::as_ptr(&own.manager), self) {
            return Err(Error::argument("the stream was made by this manager and needs no registration"));
        }
        if (theirs.backend, theirs.ordinal) != (mine.backend, mine.ordinal) {
            let text = format!("a stream of {} cannot be used with {}", theirs.name, mine.name);
            return Err(Error::argument(text));
        }
        Ok(own.stream.0)
    }

    fn claim(&self, value: u64, raw: u64) -> Result<()> {
        let mut streams = self.streams.lock();
        if streams.own.contains(&raw) {
            return Err(Error::argument("this manager made that stream; pass its handle instead"));
        }
        let is_known = streams.foreign.iter().any(|(&key, entry)| key == value || entry.raw() == raw);
        if is_known {
            return Err(Error::new(
                Status::AlreadyExists,
                format!("stream {value:#x} is registered already"),
            ));
        }
        if streams.foreign.len() >= FOREIGN_LIMIT {
            let text = format!("{FOREIGN_LIMIT} streams are registered; unregister some");
            return Err(Error::new(Status::LimitReached, text));
        }
        streams.foreign.insert(value, Foreign::Changing(raw));
        Ok(())
    }

    /// Forgets a registered stream; refused while a call on another thread uses it.
    pub fn unregister_stream(&self, value: u64) -> Result<()> {
        let foreign = {
            let mut streams = self.streams.lock();
            let Some(Foreign::Ready(foreign)) = streams.foreign.get(&value) else {
                return Err(unknown_stream(value));
            };
            // Clones are made under this lock only, so a count of one cannot rise here.
            if Arc::strong_count(foreign) > 1 {
                return Err(Error::new(
                    Status::InUse,
                    format!("a call is using stream {value:#x}; try again"),
                ));
            }
            let foreign = Arc::clone(foreign);
            streams.foreign.insert(value, Foreign::Changing(foreign.stream.0));
            foreign
        };
        let left = self.forget_blocks_of(foreign.stream);
        let forgotten = self.device.stream_destroy(foreign.stream);
        self.streams.lock().foreign.remove(&value);
        left.and(forgotten)
    }

    /// A ticket for all work enqueued on the stream so far.
    pub fn record(&self, stream: Stream) -> Result<Id> {
        ticket::record(&self.device, stream, &self.pending_tickets)
    }

    /// Makes later work on the stream wait for the ticket.
    pub fn stream_wait(&self, stream: Stream, id: Id) -> Result<()> {
        ticket::stream_wait(&self.device, stream, id)
    }

    /// What it has and did.
    pub fn totals(&self) -> Totals {
        let (own_streams, foreign_streams) = {
            let streams = self.streams.lock();
            (streams.own.len() as u64, streams.foreign.len() as u64)
        };
        let heap = self.heap.get().map(|heap| heap.statistics()).unwrap_or_default();
        let (held_bytes, held_peak_bytes) = self.memory.held_bytes();
        Totals {
            memory: self.memory.statistics(),
            heap_bytes: heap.live_bytes,
            heap_count: heap.live_count,
            heap_allocations: heap.allocations,
            plain_bytes: heap.plain_bytes,
            plain_counts: (heap.plain_count, heap.plain_allocations),
            elastic_bytes: self.elastic_bytes(),
            shared_bytes: self.holdings.shared_bytes(),
            held_bytes,
            held_peak_bytes,
            limits: self.limits,
            own_streams,
            foreign_streams,
            pending_tickets: self.pending_tickets.load(Ordering::Relaxed),
            caches: self.caches.lock().len() as u64,
            running_copies: self.memory.copies().running(),
            pages: self.pages(),
            device_calls: self.device.call_count(),
            races: self.device.race_count(),
        }
    }

    /// All that a person who looks for a fault wants to see, as JSON.
    pub fn report_json(&self) -> String {
        report::json(self)
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        ticket::settle_device(self.device.key());
        if let Some(heap) = self.heap.get() {
            heap.close();
        }
        let mut live = self.memory.live();
        // The pinned pool goes after this, and says by itself what is left in it.
        live.retain(|one| one.place == Where::Device);
        if let Some(heap) = self.heap.get() {
            // Plain blocks of the heap are told by it.
            let plain = heap.plain_addresses();
            live.retain(|one| !plain.contains(&one.address));
        }
        if !live.is_empty() {
            self.say(Level::Warn, || report::leaks(&live));
        }
        for (_, entry) in std::mem::take(&mut self.streams.get_mut().foreign) {
            if let Foreign::Ready(foreign) = entry
                && let Err(error) = self.device.stream_destroy(foreign.stream)
            {
                self.say(Level::Error, || format!("forgetting a registered stream: {error}"));
            }
        }
        self.say(Level::Info, || format!("closing {}", self.device.description().name));
    }
}

fn unknown_stream(value: u64) -> Error {
    let text = format!(
        "{value:#x} is no stream of this manager; register a foreign stream with kavern_manager_stream_register first"
    );
    Error::new(Status::InvalidHandle, text)
}

/// A stream made by a manager; destroyed on drop, which waits for its work.
pub struct OwnStream {
    manager: Arc<Manager>,
    stream: Stream,
}

impl OwnStream {
    /// Who made it.
    pub fn manager(&self) -> &Arc<Manager> {
        &self.manager
    }

    /// Closes the front caches that serve it.
    pub fn close_caches(&self) {
        if let Some(heap) = self.manager.heap.get() {
            heap.close_caches(self.stream);
        }
    }
}

impl Drop for OwnStream {
    fn drop(&mut self) {
        let left = self.manager.forget_blocks_of(self.stream);
        // Before its value is free for a stream that another thread makes.
        self.manager.streams.lock().own.remove(&self.stream.0);
        let destroyed = left.and(self.manager.device.stream_destroy(self.stream));
        if let Err(error) = destroyed {
            self.manager.say(Level::Error, || format!("destroying a stream: {error}"));
        }
    }
}

/// A stream for the time of one call: not destroyed and not forgotten while this lives.
pub struct StreamRef {
    stream: Stream,
    _own: Option<Arc<OwnStream>>,
    _foreign: Option<Arc<ForeignStream>>,
}

impl Deref for StreamRef {
    type Target = Stream;

    fn deref(&self) -> &Stream {
        &self.stream
    }
}
