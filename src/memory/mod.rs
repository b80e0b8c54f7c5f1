//! Device memory with an owner: what is allocated is charged, noted and given back when its owner is dropped.
//!
//! What it does: puts a strategy, a budget and a ledger in front of a device. What it does not: unsafe code, copies,
//! policy about what to drop when memory is short. Invariant: the totals agree with the list of live
//! allocations (`validate()`), and each owner stands for one charge and one entry. A failed call leaves all as it was.
//! Lock order: the ledger's one lock, never held across a call into the device; the list of ranges, alone.

mod bitmap;
mod budget;
mod chores;
mod copies;
mod direct;
mod elastic;
mod fence;
pub mod free_list;
pub mod front_cache;
mod heap;
mod ladder;
mod ledger;
mod order;
mod page_class;
mod page_table;
mod physical;
mod pinned;
mod pool;
mod range;
mod reclaim;
mod records;
mod region;
mod rooms;
mod shared;
mod shares;
pub mod size_class;
pub mod slab;
mod stretches;
mod upkeep;

use std::sync::{Arc, Weak};

pub use budget::{Limits, MachineBudget, Payer, Quota};
pub use copies::Copies;
pub use elastic::{Elastic, ElasticConfig, ElasticStatistics, Extent};
pub use heap::{Defragmented, Heap, HeapConfig, HeapStatistics, LadderCounts, LiveBlock};
pub use ledger::{LiveAllocation, Statistics, Usage, Where};
pub use page_class::{
    CLASSES, ClassStatistics as PageStatistics, PageClass, PhysicalConfig, PhysicalStatistics, Ready,
};
pub use physical::{Physical, PhysicalPage, Quiet};
pub use pinned::{PinnedConfig, PinnedPool, PinnedStatistics};
pub use pool::{
    ClassConfig, ClassStatistics, Pool, PoolBlock, PoolConfig, PoolLive, PoolMemory, PoolStatistics, Sizes,
};
pub use reclaim::Reclaim;
pub use rooms::Room;
pub use shared::{ModelStatistics, SharedConfig, SharedPool, SharedStatistics};
pub use shares::Terms;

use self::budget::{Budget, DeviceShare};
use self::elastic::Committed;
use self::fence::Fences;
use self::heap::PlainBlocks;
use self::ledger::{Entry, Ledger};
use self::rooms::Rooms;
use crate::device::{Device, DeviceSlice, PinnedBuffer, PinnedSlice, Plain, Stream};
use crate::error::{Error, Result};
use crate::event::{Event, EventSink, Level};
use crate::sync::Mutex;

/// A way of getting device memory. One per [`Memory`], shared by threads.
pub trait Strategy: Send + Sync {
    /// Memory of exactly this size.
    fn allocate(&self, device: &dyn Device, bytes: u64) -> Result<DeviceSlice>;
    /// Takes it back.
    fn free(&self, device: &dyn Device, slice: DeviceSlice) -> Result<()>;
}

/// A line of [`STRATEGIES`].
pub struct StrategyEntry {
    /// The word that chooses it.
    pub name: &'static str,
    /// What it is for, for people.
    pub about: &'static str,
    /// Makes one.
    pub make: fn() -> Box<dyn Strategy>,
}

/// All strategies; the first is the default.
#[rustfmt::skip]
pub static STRATEGIES: &[StrategyEntry] = &[
    StrategyEntry { name: "direct", about: "each allocation straight from the device", make: direct::make },
];

/// The front: a device with accounts.
pub struct Memory {
    device: Arc<dyn Device>,
    strategy: Box<dyn Strategy>,
    sink: Arc<dyn EventSink>,
    budget: Arc<Budget>,
    ledger: Ledger,
    rooms: Arc<Rooms>,
    copies: Arc<Copies>,
    elastics: Mutex<Vec<(Weak<Elastic>, Committed)>>,
    /// Made when the first room asks for pages.
    physical: Mutex<Option<Arc<Physical>>>,
}

impl Memory {
    /// Memory of a device, with the default strategy.
    pub fn new(device: Arc<dyn Device>, limits: Limits, sink: Arc<dyn EventSink>) -> Arc<Self> {
        Self::with_strategy(device, limits, sink, &STRATEGIES[0])
    }

    /// Memory of a device, with a chosen strategy.
    pub fn with_strategy(
        device: Arc<dyn Device>,
        limits: Limits,
        sink: Arc<dyn EventSink>,
        strategy: &StrategyEntry,
    ) -> Arc<Self> {
        Self::with_all(device, limits, None, sink, strategy)
    }

    /// Memory of a device whose use is charged to a budget of the machine too.
    pub fn with_machine(
        device: Arc<dyn Device>,
        limits: Limits,
        machine: Arc<MachineBudget>,
        sink: Arc<dyn EventSink>,
    ) -> Arc<Self> {
        Self::with_all(device, limits, Some(machine), sink, &STRATEGIES[0])
    }

    fn with_all(
        device: Arc<dyn Device>,
        limits: Limits,
        machine: Option<Arc<MachineBudget>>,
        sink: Arc<dyn EventSink>,
        strategy: &StrategyEntry,
    ) -> Arc<Self> {
        let strategy = (strategy.make)();
        let budget = Arc::new(Budget::new(limits, machine));
        let copies = Copies::new(Fences::new(Arc::clone(&device)));
        Arc::new(Self {
            device,
            strategy,
            sink,
            rooms: Rooms::new(Arc::clone(&budget)),
            copies,
            budget,
            ledger: Ledger::default(),
            elastics: Mutex::default(),
            physical: Mutex::default(),
        })
    }

    /// The device below.
    pub fn device(&self) -> &Arc<dyn Device> {
        &self.device
    }

    /// Where news goes.
    pub fn sink(&self) -> &Arc<dyn EventSink> {
        &self.sink
    }

    /// What device memory that this memory does not hand out itself is charged to.
    pub fn payer(&self) -> Arc<dyn Payer> {
        Arc::new(DeviceShare(Arc::clone(&self.budget)))
    }

    /// The pool of physical pages, charged to the same budget; the first call makes it.
    pub fn physical(&self) -> Result<Arc<Physical>> {
        self.physical_with(Ready::default())
    }

    /// As `physical`, with pages made ahead if this is the call that makes the pool.
    pub fn physical_with(&self, ready: Ready) -> Result<Arc<Physical>> {
        let mut physical = self.physical.lock();
        if let Some(physical) = &*physical {
            return Ok(Arc::clone(physical));
        }
        let mut config = PhysicalConfig::of(self.device.as_ref());
        if ready.high_bytes > 0 {
            config.keep_ready(ready, self.device.description().page_bytes, PageClass::LARGE);
        }
        let made = Physical::new(Arc::clone(&self.device), self.payer(), config, Arc::clone(&self.sink))?;
        self.hush(&made);
        Ok(Arc::clone(physical.insert(made)))
    }

    /// Copies to the host that are running, beside which page tables change as little as possible.
    pub fn copies(&self) -> &Arc<Copies> {
        &self.copies
    }

    /// Keeps the upkeep of pages away from running copies.
    pub(super) fn hush(&self, physical: &Physical) {
        let copies = Arc::clone(&self.copies);
        physical.set_quiet(Some(Arc::new(move || !copies.is_any_running())));
    }

    /// What the pool of physical pages has and did.
    pub fn page_statistics(&self) -> PhysicalStatistics {
        self.physical.lock().as_ref().map(|physical| physical.statistics()).unwrap_or_default()
    }

    /// The elastic ranges of this memory, whoever made them; those of shared pools are the pools'. One that is dropped
    /// meanwhile goes with the answer.
    pub fn elastics(&self) -> Vec<Arc<Elastic>> {
        self.elastics.lock().iter().filter_map(|(elastic, _)| elastic.upgrade()).collect()
    }

    /// Committed in them. Waits for nobody, keeps none of them.
    pub fn elastic_bytes(&self) -> u64 {
        let elastics = self.elastics.lock();
        elastics.iter().map(|(_, committed)| committed.bytes()).sum()
    }

    /// Takes a range into the sums.
    pub(super) fn add_elastic(&self, elastic: &Arc<Elastic>) {
        let mut elastics = self.elastics.lock();
        elastics.retain(|(known, _)| known.strong_count() > 0);
        elastics.push((Arc::downgrade(elastic), elastic.committed()));
    }

    /// Gives idle physical pages to the device; returns their bytes.
    pub fn trim_pages(&self) -> u64 {
        let physical = self.physical.lock().clone();
        physical.map_or(0, |physical| physical.trim(0))
    }

    /// Somebody who is asked for memory before an allocation of a heap is refused; forgotten when it is dropped.
    pub fn add_room(&self, room: Weak<dyn Room>) {
        self.rooms.add(room);
    }

    /// The program's own callback, asked last; none asks nobody.
    pub fn set_callback(&self, callback: Option<Arc<dyn Room>>) {
        self.rooms.set_callback(callback);
    }

    /// What suits a general allocator on this memory.
    pub fn heap_config(&self) -> HeapConfig {
        let total_bytes = self.device.description().total_bytes;
        HeapConfig {
            front_cache_bytes: (total_bytes / 128).clamp(1 << 20, 1 << 30),
            patience_ns: 1_000_000_000,
            meshes_when_short: false,
        }
    }

    /// A general allocator on the pool of physical pages.
    pub fn make_heap(self: &Arc<Self>) -> Result<Arc<Heap>> {
        self.make_heap_with(self.heap_config())
    }

    /// As `make_heap`, with settings.
    pub fn make_heap_with(self: &Arc<Self>, config: HeapConfig) -> Result<Arc<Heap>> {
        let fences = Fences::new(Arc::clone(&self.device));
        let pages = if self.device.description().capabilities.virtual_memory {
            (self.physical()?, None)
        } else {
            self.say_plain();
            let config = PhysicalConfig { has_thread: false, ..PhysicalConfig::of(self.device.as_ref()) };
            let sink = Arc::clone(&self.sink);
            let unused = Physical::unused(Arc::clone(&self.device), self.payer(), config, sink);
            (unused, Some(PlainBlocks::new(self)?))
        };
        let (rooms, sink) = (Arc::clone(&self.rooms), Arc::clone(&self.sink));
        let heap = Heap::new(pages, fences, rooms, sink, config)?;
        self.rooms.add_heap(&heap);
        Ok(heap)
    }

    fn say_plain(&self) {
        if self.sink.wants(Level::Warn) {
            let name = &self.device.description().name;
            let text = format!("{name} cannot map memory: each allocation comes straight from the device");
            self.sink.emit(Event { level: Level::Warn, room: "memory", text: &text });
        }
    }

    /// Device memory; `tag` says for what, in statistics and leak reports. May block.
    pub fn allocate(self: &Arc<Self>, bytes: u64, tag: &str) -> Result<Allocation> {
        let make = || self.strategy.allocate(self.device.as_ref(), bytes);
        self.own(bytes, tag, make, Origin::Strategy)
    }

    /// Device memory for work that follows on `stream`, whose drop gives it back on `back` without a wait for anything
    /// else. Nobody is asked for it. Where the device has no such order it is as `allocate`.
    pub(super) fn allocate_ordered(
        self: &Arc<Self>,
        bytes: u64,
        tag: &str,
        (stream, back): (Stream, Stream),
    ) -> Result<Allocation> {
        if !self.device.description().capabilities.stream_ordered {
            return self.allocate(bytes, tag);
        }
        let make = || self.device.memory_allocate_async(bytes, stream);
        let slice = self.charged(Where::Device, bytes, tag, make)?;
        let entry = self.ledger.add(Entry::new(Where::Device, slice.address(), bytes, tag).on(stream));
        Ok(Allocation { memory: Arc::clone(self), slice, entry, origin: Origin::Ordered(back) })
    }

    /// Device memory that the CPU reaches under the same address; refused where the device has none such. May block.
    pub fn allocate_managed(self: &Arc<Self>, bytes: u64, tag: &str) -> Result<Allocation> {
        self.own(bytes, tag, || self.device.managed_allocate(bytes), Origin::Managed)
    }

    fn own(
        self: &Arc<Self>,
        bytes: u64,
        tag: &str,
        make: impl Fn() -> Result<DeviceSlice>,
        origin: Origin,
    ) -> Result<Allocation> {
        let slice = self.with_room(|| self.charged(Where::Device, bytes, tag, &make))?;
        let entry = self.ledger.add(Entry::new(Where::Device, slice.address(), bytes, tag));
        let allocation = Allocation { memory: Arc::clone(self), slice, entry, origin };
        self.relax();
        Ok(allocation)
    }

    /// Pinned host memory, zeroed. May block.
    pub fn pinned(self: &Arc<Self>, bytes: u64, tag: &str) -> Result<PinnedAllocation> {
        let make = || PinnedBuffer::new(Arc::clone(&self.device), bytes);
        let buffer = self.charged(Where::Pinned, bytes, tag, make)?;
        let address = buffer.slice().address() as u64;
        let entry = self.ledger.add(Entry::new(Where::Pinned, address, bytes, tag));
        Ok(PinnedAllocation { memory: Arc::clone(self), slice: buffer.slice(), buffer: Some(buffer), entry })
    }

    /// Charges before the device is asked, and gives the charge back when it refuses.
    fn charged<T>(&self, place: Where, bytes: u64, tag: &str, make: impl FnOnce() -> Result<T>) -> Result<T> {
        if bytes == 0 {
            return Err(Error::argument(format!("0 bytes requested for \"{tag}\"; ask for at least 1")));
        }
        // The charge is a value, so that it also goes back if the device panics.
        let named = |error: Error| if tag.is_empty() { error } else { error.context(tag) };
        let charge = self.budget.charge(place, bytes).map_err(named)?;
        let made = make().map_err(named)?;
        charge.keep();
        Ok(made)
    }

    /// What is allocated now and was at most.
    pub fn statistics(&self) -> Statistics {
        self.ledger.statistics()
    }

    /// Device memory that is charged now, in use or kept for use, and that was at most.
    pub fn held_bytes(&self) -> (u64, u64) {
        self.budget.device_bytes()
    }

    /// Every live allocation, oldest first.
    pub fn live(&self) -> Vec<LiveAllocation> {
        self.ledger.live()
    }

    /// Checks that the totals agree with the list of live allocations, the limits, the copies, and the page table of
    /// each elastic range.
    pub fn validate(&self) -> Result<()> {
        self.ledger.validate()?;
        self.budget.validate()?;
        self.copies.validate()?;
        self.elastics().iter().try_for_each(|elastic| elastic.validate())
    }

    /// Closes the accounts of an owner that has gone, and tells whom it concerns if the device kept the memory.
    fn leave(&self, place: Where, bytes: u64, entry: u64, freed: Result<()>) {
        // The memory is no longer ours to use either way; a device that keeps it is lost or has a fault.
        let tag = self.ledger.remove(entry);
        self.budget.discharge(place, bytes);
        if let Err(error) = freed
            && self.sink.wants(Level::Error)
        {
            let tag = tag.unwrap_or_default();
            let text = format!("the device did not take back {bytes} bytes of \"{tag}\": {error}");
            self.sink.emit(Event { level: Level::Error, room: "memory", text: &text });
        }
    }
}

/// Owner of device memory; freed on drop, which waits for work in flight.
pub struct Allocation {
    memory: Arc<Memory>,
    slice: DeviceSlice,
    entry: u64,
    origin: Origin,
}

/// Whence memory came, and whither it goes.
#[derive(Clone, Copy)]
enum Origin {
    Strategy,
    /// The device, past the strategy.
    Managed,
    /// The device in stream order; it goes on this stream, once nothing that runs uses it.
    Ordered(Stream),
}

impl Allocation {
    /// The range, for copies and launches; it must not be used after the owner has gone.
    pub fn slice(&self) -> DeviceSlice {
        self.slice
    }

    /// Length.
    pub fn bytes(&self) -> u64 {
        self.slice.bytes()
    }

    /// Goes in the order of the stream that it was allocated on: nothing else was enqueued that uses it.
    pub(super) fn return_unused(mut self, stream: Stream) {
        if let Origin::Ordered(back) = &mut self.origin {
            *back = stream;
        }
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        let device = self.memory.device.as_ref();
        let freed = match self.origin {
            Origin::Strategy => self.memory.strategy.free(device, self.slice),
            Origin::Managed => device.memory_free(self.slice),
            Origin::Ordered(back) => device.memory_free_async(self.slice, back),
        };
        self.memory.leave(Where::Device, self.slice.bytes(), self.entry, freed);
    }
}

/// Owner of pinned host memory; freed on drop.
///
/// A copy enqueued from a part of it reads the bytes later: do not write that part until the copy has completed.
pub struct PinnedAllocation {
    memory: Arc<Memory>,
    slice: PinnedSlice,
    /// There until the drop.
    buffer: Option<PinnedBuffer>,
    entry: u64,
}

impl PinnedAllocation {
    /// The range, for copies.
    pub fn slice(&self) -> PinnedSlice {
        self.slice
    }

    /// Length.
    pub fn bytes(&self) -> u64 {
        self.slice.bytes()
    }

    /// `count` values at a byte offset.
    pub fn values<T: Plain>(&self, offset: u64, count: usize) -> Result<&[T]> {
        self.buffer.as_ref().ok_or_else(gone)?.values(offset, count)
    }

    /// `count` values at a byte offset, to write.
    pub fn values_mut<T: Plain>(&mut self, offset: u64, count: usize) -> Result<&mut [T]> {
        self.buffer.as_mut().ok_or_else(gone)?.values_mut(offset, count)
    }
}

fn gone() -> Error {
    Error::internal("a pinned allocation without its buffer")
}

impl Drop for PinnedAllocation {
    fn drop(&mut self) {
        let freed = self.buffer.take().ok_or_else(gone).and_then(PinnedBuffer::free);
        self.memory.leave(Where::Pinned, self.slice.bytes(), self.entry, freed);
    }
}
