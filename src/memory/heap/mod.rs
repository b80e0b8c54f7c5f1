//! The general allocator: device memory of any size, in stream order, from mapped pages.
//!
//! Four layers, each asked only when the one before has nothing: the thread's front cache for the stream
//! (`front_cache`), blocks freed on the same stream or free for all (`core`), new pages (`grow`), and the ladder of
//! what can be done when memory is short (`pressure`). Small blocks (to 256 KiB) are slots in pages of 2 MiB, middle
//! ones (to 32 MiB) runs of granules in such pages, large ones have addresses of their own. Where memory is short, what
//! would need a new page is cut to its own length instead (`fitted`).
//! A device that cannot map memory gets allocations one by one instead (`plain`).
//! What it does not: budgets and pages of the driver; those are `physical`'s and `range`'s.
//! Invariants: an address that was given out leads to a live record and to no other block; memory that was freed on
//! one stream reaches another only behind a fence that was reached or waited for. A failed call leaves all as it was.
//! Lock order: `growing`, then `lanes`, then `core`; `leases`, then `ended`. A front cache is visited before `core` is
//! locked, never after. No driver call under `core`.

mod aside;
mod asked;
mod compose;
mod core;
mod edges;
mod fitted;
mod grow;
mod lane;
mod large;
mod leases;
mod lend;
mod limbo;
mod mesh;
#[cfg(test)]
mod mesh_tests;
mod names;
mod parts;
mod plain;
mod planted;
mod points;
mod pressure;
mod proof;
mod report;
mod resting;
mod reuse;
mod squeeze;
#[cfg(test)]
mod squeeze_tests;
mod streams;
mod takeover;
#[cfg(test)]
mod tests;
mod uses;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use self::core::Core;
use self::fitted::run_bytes;
use self::limbo::Limbo;
use self::names::Names;
use self::planted::Mistake;
use self::points::Waits;
use self::streams::StreamNumbers;
use super::fence::Fences;
use super::front_cache::{Counts, Leased};
use super::order::Freed;
use super::physical::Physical;
use super::records::{Facts, Record};
use super::region::{Directory, MIDDLE_GRANULE_BYTES, MIDDLE_STEP_BYTES, REGIONS_MAX, Region, Regions};
use super::rooms::Rooms;
use super::size_class::{self, Class};
use super::upkeep::Idler;
use crate::device::{Device, Stream};
use crate::error::{Error, Result, Status};
use crate::event::EventSink;
use crate::sync::{Mutex, RwLock};
use crate::sys::lease::{Guest, Parked};
use crate::sys::ticker::{self, Ticker};

pub(in crate::memory) use self::lane::is_of_a_thread;
pub use self::mesh::Defragmented;
pub(in crate::memory) use self::plain::PlainBlocks;
pub use self::pressure::LadderCounts;
pub use self::report::{HeapStatistics, LiveBlock};

/// Numbers of the regions after those of the small classes.
const MIDDLE: usize = size_class::SMALL_CLASS_COUNT;
const LARGE: usize = MIDDLE + 1;
const _: () = assert!(LARGE < REGIONS_MAX - 1);

/// Blocks that go from one list to another while `core` stays locked; others may have the lock before the next ones.
const MOVED_MOST: usize = 256;

/// What a caller may set.
#[derive(Clone, Copy, Debug)]
pub struct HeapConfig {
    /// Bytes that the front caches of one thread and stream keep at most.
    pub front_cache_bytes: u64,
    /// How long the last attempt before an error waits for work in flight, in nanoseconds.
    pub patience_ns: u64,
    /// Whether a request that would be refused meshes pages first: while an allocation runs, no other thread enqueues
    /// work, launches a graph or captures one.
    pub meshes_when_short: bool,
}

/// What was done outside of the front caches.
#[derive(Default)]
struct SlowCounts {
    allocations: AtomicU64,
    allocated_bytes: AtomicU64,
    frees: AtomicU64,
    freed_bytes: AtomicU64,
}

/// The allocator of one manager.
pub struct Heap {
    device: Arc<dyn Device>,
    fences: Arc<Fences>,
    physical: Arc<Physical>,
    rooms: Arc<Rooms>,
    /// There where the device cannot map memory.
    plain: Option<PlainBlocks>,
    sink: Arc<dyn EventSink>,
    config: HeapConfig,
    total_bytes: u64,
    regions: Regions,
    core: Mutex<Core>,
    growing: Mutex<()>,
    /// All front caches, by lane.
    leases: Mutex<Vec<(Stream, Guest<Leased>)>>,
    /// Those of `leases` that no thread uses, by stream, the one left last at the end.
    parked: Mutex<Vec<(Stream, Parked<Leased>)>>,
    /// What ended front caches did.
    ended: Mutex<Counts>,
    /// Shared by whoever has something in hand that will name a lane again: a stream that goes is found wherever it is
    /// named once nobody has.
    lanes: RwLock<()>,
    slow: SlowCounts,
    names: RwLock<Names>,
    tag_count: AtomicU32,
    /// Streams that used a block beside the one that will free it, by address.
    shared: Mutex<HashMap<u64, Vec<Stream>>>,
    /// How often blocks are pinned, by address.
    pinned: Mutex<HashMap<u64, u32>>,
    /// Freed blocks that a graph may use, by the number of the capture's stream, which is not another's before.
    captured: Mutex<HashMap<u16, Vec<Freed>>>,
    ladder: pressure::Ladder,
    /// Whether more is held than can still be had; see `fitted`.
    is_short: AtomicBool,
    /// Whether the live blocks were cut to their lengths since then; see `squeeze`.
    is_squeezed: AtomicBool,
    /// What may be looked through before more is taken; see `reuse`.
    looks: reuse::Looks,
    resting: resting::Resting,
    is_closed: AtomicBool,
    /// Whoever writes the time down, once there is a front cache; none if the system has no thread to give.
    ticker: OnceLock<Option<Arc<Ticker>>>,
    /// Which mistake a test planted.
    #[cfg(test)]
    mistake: AtomicU32,
    /// Whether streams are as those of a device that has a default stream for each thread.
    #[cfg(test)]
    has_thread_streams: AtomicBool,
}

fn no_such_block(address: u64) -> Error {
    Error::argument(format!(
        "{address:#x} is no live allocation of this manager: freed already, never given out, or another manager's"
    ))
}

impl Heap {
    /// An empty one. Reserves addresses as sizes are first used; takes no memory yet.
    pub(super) fn new(
        (physical, plain): (Arc<Physical>, Option<PlainBlocks>),
        fences: Arc<Fences>,
        rooms: Arc<Rooms>,
        sink: Arc<dyn EventSink>,
        config: HeapConfig,
    ) -> Result<Arc<Self>> {
        let device = Arc::clone(fences.device());
        let total_bytes = device.description().total_bytes;
        let sizes = grow::Sizes::of(total_bytes);
        let core = Core::new(sizes.small_bytes, sizes.middle_bytes, sizes.large_bytes)?;
        let heap = Arc::new(Self {
            device,
            fences,
            physical,
            rooms,
            plain,
            sink,
            config,
            total_bytes,
            regions: Regions::new(),
            core: Mutex::new(core),
            growing: Mutex::default(),
            leases: Mutex::default(),
            parked: Mutex::default(),
            ended: Mutex::default(),
            lanes: RwLock::new(()),
            slow: SlowCounts::default(),
            names: RwLock::new(Names { tags: vec!["".into()], streams: StreamNumbers::default() }),
            tag_count: AtomicU32::new(1),
            shared: Mutex::default(),
            pinned: Mutex::default(),
            captured: Mutex::default(),
            ladder: pressure::Ladder::default(),
            is_short: AtomicBool::new(false),
            is_squeezed: AtomicBool::new(false),
            looks: reuse::Looks::default(),
            resting: resting::Resting::default(),
            is_closed: AtomicBool::new(false),
            ticker: OnceLock::new(),
            #[cfg(test)]
            mistake: AtomicU32::new(0),
            #[cfg(test)]
            has_thread_streams: AtomicBool::new(false),
        });
        let idler: Weak<Self> = Arc::downgrade(&heap);
        heap.physical.idlers().add(idler as Weak<dyn Idler>);
        heap.physical.stir();
        Ok(heap)
    }

    /// Milliseconds, a few of them inexact, for the beginning of ages. Never more than [`ticker::clock_ms`] at their
    /// end.
    #[inline(always)]
    pub(super) fn tick(&self) -> u32 {
        ticker::noted_ms().unwrap_or_else(|| self.call_ticker())
    }

    #[cold]
    #[inline(never)]
    fn call_ticker(&self) -> u32 {
        self.ticker.get().and_then(Option::as_ref).map_or_else(ticker::clock_ms, |ticker| ticker.call())
    }

    /// Where the blocks of a class lie.
    #[inline(always)]
    pub(super) fn region_of_class(&self, class: Class) -> Option<&Region> {
        self.regions.get(class.index().min(MIDDLE))
    }

    /// What leads from an address to the number of its region.
    pub(super) fn directory(&self) -> Arc<Directory> {
        self.regions.directory()
    }

    /// A region by its number, for whoever keeps it.
    pub(super) fn share_region(&self, number: usize) -> Option<Arc<Region>> {
        self.regions.share(number).cloned()
    }

    /// The block that begins at an address.
    #[inline]
    pub(super) fn block_at(&self, address: u64) -> Option<(&Region, u32)> {
        let (_, region) = self.regions.find(address)?;
        Some((region, region.index_of(address)?))
    }

    /// The block that begins at an address, and its class if its region has blocks of one class only.
    #[inline(always)]
    pub(super) fn class_and_block_at(&self, address: u64) -> Option<(Option<usize>, &Region, u32)> {
        let (number, region) = self.regions.find(address)?;
        Some(((number < MIDDLE).then_some(number), region, region.index_of(address)?))
    }

    fn live(&self, address: u64) -> Result<(&Region, u32, &Record, Facts)> {
        let (region, index) = self.block_at(address).ok_or_else(|| no_such_block(address))?;
        let record = region.records.get(index).ok_or_else(|| no_such_block(address))?;
        let facts = record.facts().ok_or_else(|| no_such_block(address))?;
        Ok((region, index, record, facts))
    }

    fn check_open(&self) -> Result<()> {
        if self.is_closed.load(Ordering::Acquire) {
            return Err(Error::new(Status::InvalidHandle, "the manager is being destroyed"));
        }
        Ok(())
    }

    /// Memory for work that follows on the stream, aligned to at least 256 bytes. Blocks where memory is short.
    pub fn allocate(self: &Arc<Self>, stream: Stream, bytes: u64, alignment: u64, tag: u64) -> Result<u64> {
        self.check_open()?;
        let tag = self.known_tag(tag)?;
        let (bytes, alignment) = checked_request(bytes, alignment)?;
        if let Some(plain) = &self.plain {
            let name = self.names.read().tags[usize::from(tag)].clone();
            return self.allocate_plain(plain, stream, (bytes, alignment), (tag, &name));
        }
        let stream = self.lane(stream);
        let stream_number = self.stream_number(stream)?;
        let is_captured = self.is_capturing(stream)?;
        let (class, index) = match size_class::class_of(bytes, alignment) {
            Some(class) => {
                let wanted = (bytes, class);
                let attempt = |may_wait| self.take_block(stream, wanted, alignment, is_captured, may_wait);
                self.climb(bytes, is_captured, attempt, || Ok(None))?
            }
            None => {
                let attempt = |may_wait| self.take_large(stream, (bytes, alignment), is_captured, may_wait);
                let take_over = || Ok(self.take_over(bytes)?.map(|index| (core::LARGE, index)));
                self.climb(bytes, is_captured, attempt, take_over)?
            }
        };
        let number = if class == core::LARGE { LARGE } else { (class as usize).min(MIDDLE) };
        let region = self.regions.get(number);
        let Some((region, record)) = region.and_then(|region| Some((region, region.records.get(index)?)))
        else {
            self.take_freed_back((stream, stream_number), is_captured, self.block(class, index)?);
            return Err(Error::internal("a block without a record"));
        };
        let class = class as u8;
        let born = self.tick();
        record.open(&Facts { class, stream: stream_number, bytes, tag, born, is_shared: false, is_captured });
        self.slow.allocations.fetch_add(1, Ordering::Relaxed);
        self.slow.allocated_bytes.fetch_add(bytes, Ordering::Relaxed);
        if !is_captured {
            self.rooms.relax();
        }
        Ok(region.address_of(index))
    }

    /// A block of the class out of what is there.
    fn take_of_class(
        &self,
        stream: Stream,
        class: Class,
        alignment: u64,
        is_captured: bool,
        may_wait: bool,
    ) -> Result<Option<u32>> {
        // Every slot is aligned as its size is; a run of granules only to its step.
        if !class.is_small() && alignment > MIDDLE_STEP_BYTES {
            let count = (size_class::bytes_of(class) / MIDDLE_GRANULE_BYTES) as u32;
            let granules = (alignment / MIDDLE_GRANULE_BYTES) as u32;
            return self.core.lock().middle.allocate(count, granules);
        }
        let wanted = class.index() as u32;
        if is_captured && let Some(block) = self.take_captured(stream, wanted, |_| true) {
            return Ok(Some(block.id as u32));
        }
        let is_fitted = !class.is_small() && (self.is_short() || self.is_exact(class));
        let is_waiting = {
            let mut core = self.core.lock();
            // What a graph captures must not be anybody's later, so it takes nothing that is only free for a stream.
            let own = if is_captured { None } else { core.order.take_same(stream, wanted) };
            let found = match own {
                Some(block) => Some(block.id as u32),
                None if is_fitted => return Ok(None),
                None if is_captured => core.take_free(class)?,
                None if class.is_small() => core.take_line(stream, class)?,
                None => core.take_run_of_class(stream, class)?,
            };
            if found.is_some() {
                return Ok(found);
            }
            core.is_waiting()
        };
        if !is_captured
            && self.empty_parked(stream)
            && let Some(block) = self.core.lock().order.take_same(stream, wanted)
        {
            return Ok(Some(block.id as u32));
        }
        if !is_captured
            && is_waiting
            && self.collect()?
            && let Some(index) = self.core.lock().take_free(class)?
        {
            return Ok(Some(index));
        }
        if may_wait
            && !is_captured
            && let Some(block) = self.take_behind_wait(stream, wanted, 0)?
        {
            return Ok(Some(block.id as u32));
        }
        Ok(None)
    }

    fn give_all(core: &mut Core, blocks: Vec<Freed>) -> Result<()> {
        blocks.into_iter().try_for_each(|block| core.give_free(block))
    }

    /// Frees memory in the order of a stream: work that was enqueued on it before may still use the memory.
    pub fn free(&self, stream: Stream, address: u64) -> Result<()> {
        if let Some(plain) = &self.plain {
            return self.free_plain(plain, stream, address);
        }
        let stream = self.lane(stream);
        // A block that is cut meanwhile is looked at again.
        while !self.try_free(stream, address)? {}
        Ok(())
    }

    /// Takes back a block that was allocated on this stream just now and that no work was enqueued for: there is no
    /// point to wait for that a device could refuse.
    pub fn take_unused(&self, stream: Stream, address: u64) {
        let Some(plain) = &self.plain else {
            // Nobody but whoever allocated it could have freed it.
            let _ = self.free(stream, address);
            return;
        };
        if let Some(bytes) = plain.take_unused(stream, address) {
            self.slow.frees.fetch_add(1, Ordering::Relaxed);
            self.slow.freed_bytes.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    fn try_free(&self, stream: Stream, address: u64) -> Result<bool> {
        let (_, index, record, facts) = self.live(address)?;
        let class = u32::from(facts.class);
        let block = match class {
            // The lists need not be asked: such a run is as long as its block.
            core::FITTED => Freed { class, id: index.into(), bytes: run_bytes(facts.bytes) },
            _ => self.block(class, index)?,
        };
        if facts.is_shared {
            self.check_unpinned(address)?;
        }
        // What a graph keeps waits for nobody before the graph is given up.
        let is_shared = facts.is_shared && !facts.is_captured && !self.has(Mistake::UsersForgotten);
        let _lanes = is_shared.then(|| self.lanes.read());
        let users = if is_shared { self.shared.lock().get(&address).cloned() } else { None };
        let freeing = Some(stream).filter(|_| !self.has(Mistake::OwnerForgotten));
        let waits = users.map_or_else(|| Ok(Waits::default()), |users| self.waits(users, freeing))?;
        // A number that nobody's record has any more is named here before the lock is let go.
        let mut captured = facts.is_captured.then(|| self.captured.lock());
        if !record.close_if(&facts) {
            return Ok(false);
        }
        if let Some(captured) = &mut captured {
            // The graph keeps the address: nobody else gets the memory before the graph is given up.
            captured.entry(facts.stream).or_default().push(block);
        }
        drop(captured);
        self.slow.frees.fetch_add(1, Ordering::Relaxed);
        self.slow.freed_bytes.fetch_add(facts.bytes, Ordering::Relaxed);
        if facts.is_shared {
            self.shared.lock().remove(&address);
        }
        let mut core = self.core.lock();
        if class == core::FITTED {
            core.count_rare(facts.bytes, false);
        }
        if facts.is_captured {
            return Ok(true);
        }
        if self.has(Mistake::FreeForAll) {
            core.give_free(block)?;
        } else if waits.fences.is_empty() && waits.unmarked.is_empty() {
            core.order.free(if self.has(Mistake::WrongLane) { Stream::DEFAULT } else { stream }, block);
        } else {
            core.limbo.push(Limbo { waits, block });
        }
        Ok(true)
    }
}

/// Refuses a request of nothing.
fn check_asked(bytes: u64) -> Result<()> {
    if bytes == 0 {
        return Err(Error::argument("0 bytes requested; ask for at least 1"));
    }
    Ok(())
}

/// Bytes and alignment of a request, or what is wrong with it.
fn checked_request(bytes: u64, alignment: u64) -> Result<(u64, u64)> {
    check_asked(bytes)?;
    let alignment = if alignment == 0 { size_class::UNIT_BYTES } else { alignment };
    if !alignment.is_power_of_two() || alignment > size_class::MOST_ALIGNED_BYTES {
        return Err(Error::argument(format!(
            "alignment {alignment}; use a power of two up to 2 MiB, or 0 for 256"
        )));
    }
    if bytes >> 47 != 0 {
        return Err(Error::new(
            Status::OutOfMemory,
            format!("{bytes} bytes requested; no device has that much"),
        ));
    }
    Ok((bytes, alignment))
}
