//! Freed blocks at the hand of one thread for one stream: the path on which most allocations end.
//!
//! A block that a thread frees on a stream lies on a stack of its class, and the thread's next allocation of that class
//! on that stream takes it: no lock, no atomic read-modify-write, no driver call. The cache is leased to its thread
//! (`sys::lease`), so that the heap can still take everything out under pressure or when the stream goes, and found at
//! the thread's seat (`sys::desk`).
//! What it does: the stacks, the thread's list of its caches. What it does not: get blocks from anywhere; the heap
//! does, outside of the lease, because it may wait for other threads' caches.
//! Invariants: `bytes` is the sum over the stacks; a closed cache is empty, has let go of its heap, and stays closed.
//! Lock order: none taken here; the heap's locks may be taken inside a guest's visit, never the other way round.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::heap::Heap;
use super::order::Freed;
use super::records::Kind;
use super::region::{Block, Directory, MIDDLE_STEP_BYTES, REGIONS_MAX, Region, number_at};
use super::size_class::{self, CLASS_COUNT, Class, SMALL_CLASS_COUNT};
use crate::device::Stream;
use crate::sys::desk::{Desk, Seats, Words, at_desk, at_seat};
use crate::sys::fork;
use crate::sys::lease::{Owner, lease};
use crate::sys::ticker;

/// Caches of one thread; the one unused longest makes room.
const LEASES_MAX: usize = 32;

/// Stacks of a cache: a power of two, so that a class is made one of them by a mask. No block is of the last ones.
const STACKS: usize = CLASS_COUNT.next_power_of_two();

/// What a cache is told by that was closed; no token is 0.
static CLOSED: AtomicU64 = AtomicU64::new(0);

/// What is leased: the cache and, until it is closed, its heap.
pub(super) struct Leased {
    heap: Option<Arc<Heap>>,
    /// Holds the token of the key as long as it is valid and the cache open.
    is_alive: &'static AtomicU64,
    pub(super) cache: FrontCache,
}

/// What one thread holds for one stream of one heap.
pub(super) struct FrontCache {
    pub(super) stream: Stream,
    stacks: [Stack; STACKS],
    /// The regions of blocks that were here, by number: small classes each have one, the others one together.
    regions: [Option<Arc<Region>>; REGIONS_MAX],
    directory: Arc<Directory>,
    bytes: u64,
    limit_bytes: u64,
    /// What was done here, for statistics.
    pub(super) counts: Counts,
}

/// Blocks of one class. The first `count` places are taken. One line of memory.
#[repr(align(64))]
struct Stack {
    places: Box<[Block]>,
    count: usize,
    /// Of one block.
    bytes: u64,
    /// What the record of a block says that goes from here.
    kind: Kind,
}

/// What a cache did; added up over all caches.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub(super) allocations: u64,
    pub(super) frees: u64,
    pub(super) allocated_bytes: u64,
    pub(super) freed_bytes: u64,
}

impl Counts {
    /// Adds those of another cache.
    pub(super) fn add(&mut self, other: &Self) {
        self.allocations += other.allocations;
        self.allocated_bytes += other.allocated_bytes;
        self.frees += other.frees;
        self.freed_bytes += other.freed_bytes;
    }
}

/// Most blocks of a class that a stack keeps: few of the large ones, and enough of the small ones that a refill of
/// half of them is rare.
fn depth(bytes: u64) -> usize {
    ((4 << 20) / bytes).clamp(4, 128) as usize
}

impl Stack {
    /// That of a class; one without places where there is no such class.
    fn new(class: usize, stream_number: u16) -> Self {
        let bytes = Class::at(class).map_or(0, size_class::bytes_of);
        let places = if bytes > 0 { depth(bytes) + 1 } else { 0 };
        let kind = Kind::new(class as u8, stream_number);
        Self { places: vec![Block::default(); places].into(), count: 0, bytes, kind }
    }

    /// Takes out the oldest blocks.
    fn drain(&mut self, class: usize, count: usize) -> Vec<Freed> {
        let bytes = self.bytes;
        let freed = |block: &Block| Freed { class: class as u32, id: block.index.into(), bytes };
        let drained = self.places[..count].iter().map(freed).collect();
        self.places.copy_within(count..self.count, 0);
        self.count -= count;
        drained
    }
}

impl FrontCache {
    fn new(heap: &Heap, (stream, stream_number): (Stream, u16), limit_bytes: u64) -> Self {
        let stacks = std::array::from_fn(|class| Stack::new(class, stream_number));
        let regions = [const { None }; REGIONS_MAX];
        let counts = Counts::default();
        Self { stream, stacks, regions, directory: heap.directory(), bytes: 0, limit_bytes, counts }
    }

    /// Has the region of a class at hand from here on.
    fn know_region(&mut self, heap: &Heap, class: usize) {
        let number = class.min(SMALL_CLASS_COUNT);
        if self.regions[number].is_none() {
            self.regions[number] = heap.share_region(number);
        }
    }

    /// Keeps a block. Answers whether blocks of the class should be pushed out; nothing if it cannot.
    #[inline(always)]
    fn keep(&mut self, class: usize, block: Block) -> Option<bool> {
        let stack = &mut self.stacks[class % STACKS];
        *stack.places.get_mut(stack.count)? = block;
        stack.count = stack.count.wrapping_add(1);
        self.bytes = self.bytes.wrapping_add(stack.bytes);
        Some(stack.count == stack.places.len() || self.bytes > self.limit_bytes)
    }

    /// The older half of a stack, at least one block.
    #[cold]
    #[inline(never)]
    fn push_out(&mut self, class: usize) -> Vec<Freed> {
        let stack = &mut self.stacks[class];
        let count = stack.count.div_ceil(2);
        self.bytes -= stack.bytes * count as u64;
        stack.drain(class, count)
    }

    /// How many more blocks of a class it would take now, leaving room for as many again.
    pub(super) fn room(&self, class: Class) -> usize {
        let stack = &self.stacks[class.index()];
        let by_bytes = (self.limit_bytes / 2).saturating_sub(self.bytes) / stack.bytes;
        (stack.places.len() / 2).saturating_sub(stack.count).min(by_bytes as usize)
    }

    /// Takes a block for which there was room.
    pub(super) fn put(&mut self, class: Class, block: Block) {
        let _ = self.keep(class.index(), block);
    }

    /// Takes everything out.
    pub(super) fn drain(&mut self) -> Vec<Freed> {
        self.bytes = 0;
        let stacks = self.stacks.iter_mut().enumerate();
        stacks.flat_map(|(class, stack)| stack.drain(class, stack.count)).collect()
    }

    /// Takes out the blocks of the classes from one on.
    pub(super) fn drain_from(&mut self, first: usize) -> Vec<Freed> {
        let stacks = self.stacks.iter_mut().enumerate().skip(first);
        let freed: Vec<Freed> = stacks.flat_map(|(class, stack)| stack.drain(class, stack.count)).collect();
        self.bytes -= freed.iter().map(|block| block.bytes).sum::<u64>();
        freed
    }

    /// Bytes that lie here.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Leased {
    /// Takes everything out for good, and lets go of the heap.
    pub(super) fn close(&mut self) -> Vec<Freed> {
        self.is_alive = &CLOSED;
        self.cache.regions.fill(None);
        let heap = self.heap.take();
        let freed = self.cache.drain();
        // The heap's owner and whoever closes hold it still.
        drop(heap);
        freed
    }
}

/// What a caller asks for: names that a look at the thread's list is enough to check.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Key {
    /// The caller's name of the heap.
    pub token: u64,
    /// The caller's name of the stream.
    pub stream: u64,
}

impl Key {
    #[inline(always)]
    fn words(self) -> Words {
        [self.token, self.stream]
    }
}

/// The heap and the stream, if it was not closed before.
fn give_up(owner: &Owner<Leased>) -> Option<(Arc<Heap>, Stream)> {
    // As its owner, which costs the other threads nothing.
    let ended = owner.with(|leased| {
        let heap = leased.heap.clone();
        (heap, (leased.close(), leased.cache.stream, leased.cache.counts))
    });
    // Without a heap it was closed, and what it held and did was taken over.
    let Some((Some(heap), last)) = ended else { return None };
    let stream = last.1;
    heap.lease_ended(&owner.guest(), last);
    Some((heap, stream))
}

fn leave(owner: &Owner<Leased>) {
    // The thread ends. In the child of a fork, threads that are not there may hold the heap's locks.
    if fork::is_forked_child() {
        return;
    }
    if let Some((heap, stream)) = give_up(owner) {
        heap.thread_ended(stream);
    }
}

static SEATS: Seats<Leased> = Seats::new();

thread_local! {
    /// The caches of this thread.
    static LEASES: Desk<Leased> = const { Desk::new(&SEATS, leave) };
}

/// How the front caches answered.
pub enum Answer<T> {
    /// Done here.
    Done(T),
    /// This thread has no cache for the key: resolve it and ask the heap.
    NoLease,
    /// The cache has nothing that fits: ask the heap.
    Miss,
}

/// Uses this thread's cache for the key.
fn with<R>(key: Key, body: impl FnOnce(&Arc<Heap>, &mut FrontCache) -> Answer<R>) -> Answer<R> {
    let inside = |leased: &mut Leased| match &leased.heap {
        // Acquire: what was done before the handle was made is seen.
        Some(heap) if leased.is_alive.load(Ordering::Acquire) == key.token => body(heap, &mut leased.cache),
        _ => Answer::NoLease,
    };
    at_desk(&LEASES, &SEATS, key.words(), inside).unwrap_or(Answer::NoLease)
}

/// The class of a request that a front cache may serve. With the alignment known, the compiler leaves nothing of it.
#[inline(always)]
fn class_for(bytes: u64, alignment: u64) -> Option<Class> {
    match alignment {
        0 => size_class::class_of(bytes, size_class::UNIT_BYTES),
        _ => size_class::class_of(bytes, alignment)
            .filter(|class| alignment <= MIDDLE_STEP_BYTES || class.is_small()),
    }
}

/// As [`allocate`], where everything is at hand: without a call, so that the caller saves nothing for one. Where it is
/// not, nothing was done.
#[inline(always)]
pub fn allocate_at_hand<R>(
    key: Key,
    bytes: u64,
    alignment: u64,
    tag: u64,
    then: impl FnOnce(u64) -> R,
) -> Option<R> {
    let class = class_for(bytes, alignment)?;
    at_seat(&SEATS, key.words(), |leased| {
        // Acquire: what was done before the handle was made is seen.
        if leased.is_alive.load(Ordering::Acquire) != key.token {
            return None;
        }
        let tag = if tag == 0 { 0 } else { leased.heap.as_ref()?.tag_number(tag)? };
        let born = ticker::noted_ms()?;
        let cache = &mut leased.cache;
        let stack = &mut cache.stacks[class.index() % STACKS];
        let last = stack.count.wrapping_sub(1);
        let &block = stack.places.get(last)?;
        let number = class.index().min(SMALL_CLASS_COUNT);
        let region = cache.regions[number % REGIONS_MAX].as_ref()?;
        region.records.get(block.index)?.open_plain(stack.kind, bytes, tag, born);
        stack.count = last;
        cache.bytes = cache.bytes.wrapping_sub(stack.bytes);
        cache.counts.allocations = cache.counts.allocations.wrapping_add(1);
        cache.counts.allocated_bytes = cache.counts.allocated_bytes.wrapping_add(bytes);
        Some(then(block.address))
    })
}

/// As [`free`], where everything is at hand; see [`allocate_at_hand`].
#[inline(always)]
pub fn free_at_hand(key: Key, address: u64) -> Option<()> {
    at_seat(&SEATS, key.words(), |leased| {
        if leased.is_alive.load(Ordering::Acquire) != key.token {
            return None;
        }
        let cache = &mut leased.cache;
        let number = number_at(&cache.directory, address);
        let region = cache.regions[number % REGIONS_MAX].as_ref()?;
        let index = region.index_at(address)?;
        let record = region.records.get(index)?;
        let (recorded, bytes) = record.plain()?;
        // Where the region tells it, the stack is known before the record has come from memory.
        let class = if number < SMALL_CLASS_COUNT { number } else { recorded.into() };
        let stack = &mut cache.stacks[class % STACKS];
        let held_bytes = cache.bytes.wrapping_add(stack.bytes);
        if held_bytes > cache.limit_bytes {
            return None;
        }
        *stack.places.get_mut(stack.count)? = Block { address, index };
        stack.count = stack.count.wrapping_add(1);
        cache.bytes = held_bytes;
        record.close();
        cache.counts.frees = cache.counts.frees.wrapping_add(1);
        cache.counts.freed_bytes = cache.counts.freed_bytes.wrapping_add(bytes);
        Some(())
    })
}

/// Allocates from this thread's cache and gives the address to `then`.
///
/// What to do with it is a parameter because each caller has code of its own then, in which everything is inlined.
pub fn allocate<R>(key: Key, bytes: u64, alignment: u64, tag: u64, then: impl FnOnce(u64) -> R) -> Answer<R> {
    let Some(class) = class_for(bytes, alignment) else { return Answer::Miss };
    with(key, |heap, cache| {
        cache.know_region(heap, class.index());
        let Some(tag) = heap.tag_number(tag) else { return Answer::Miss };
        let stack = &mut cache.stacks[class.index() % STACKS];
        let last = stack.count.wrapping_sub(1);
        let Some(&block) = stack.places.get(last) else { return Answer::Miss };
        let Some(record) = heap.record_of_class(class, block.index) else { return Answer::Miss };
        record.open_plain(stack.kind, bytes, tag, heap.tick());
        stack.count = last;
        cache.bytes = cache.bytes.wrapping_sub(stack.bytes);
        cache.counts.allocations = cache.counts.allocations.wrapping_add(1);
        cache.counts.allocated_bytes = cache.counts.allocated_bytes.wrapping_add(bytes);
        Answer::Done(then(block.address))
    })
}

/// Frees into this thread's cache, then calls `then`; a parameter for the same reason.
pub fn free<R>(key: Key, address: u64, then: impl FnOnce() -> R) -> Answer<R> {
    let mut pushed_out = None;
    let answer = with(key, |heap, cache| {
        let Some((class, region, index)) = heap.class_and_block_at(address) else { return Answer::Miss };
        let Some(record) = region.records.get(index) else { return Answer::Miss };
        let Some((recorded, bytes)) = record.plain() else { return Answer::Miss };
        // Where the region tells it, the stack is known before the record has come from memory.
        let class = class.unwrap_or(usize::from(recorded));
        if class >= CLASS_COUNT {
            return Answer::Miss;
        }
        cache.know_region(heap, class);
        let Some(is_too_full) = cache.keep(class, Block { address, index }) else {
            pushed_out = Some(class);
            return Answer::Miss;
        };
        record.close();
        cache.counts.frees = cache.counts.frees.wrapping_add(1);
        cache.counts.freed_bytes = cache.counts.freed_bytes.wrapping_add(bytes);
        if is_too_full {
            pushed_out = Some(class);
        }
        Answer::Done(then())
    });
    if let Some(class) = pushed_out {
        push_out(key, class);
    }
    answer
}

/// Makes room in a stack.
#[cold]
#[inline(never)]
fn push_out(key: Key, class: usize) {
    let pushed =
        with(key, |heap, cache| Answer::Done((Arc::clone(heap), cache.stream, cache.push_out(class))));
    // Outside of the lease, because others may be waiting for it with the heap's lock in hand.
    if let Answer::Done((heap, stream, freed)) = pushed {
        heap.take_freed(stream, freed);
    }
}

/// Gives this thread a cache for the key, filled with blocks that the stream may use at once.
pub(super) fn adopt(
    key: Key,
    is_alive: &'static AtomicU64,
    heap: &Arc<Heap>,
    (stream, stream_number): (Stream, u16),
    limit_bytes: u64,
) {
    // In the destructors of a thread that ends, the desk may be gone: a cache would be nobody's.
    if LEASES.try_with(|_| ()).is_err() {
        return;
    }
    let mut fresh = FrontCache::new(heap, (stream, stream_number), limit_bytes);
    heap.fill(&mut fresh);
    let (owner, guest) = lease(Leased { heap: Some(Arc::clone(heap)), is_alive, cache: fresh });
    heap.lease_began(guest);
    let former = LEASES.try_with(|leases| leases.put(key.words(), owner, LEASES_MAX)).ok().flatten();
    // Outside of the list: giving up calls the heap.
    if let Some(former) = former {
        give_up(&former);
    }
}

/// Puts blocks on this thread's cache; what does not fit comes back.
pub(super) fn refill(key: Key, class: Class, mut blocks: Vec<Block>) -> Vec<Block> {
    let _ = with(key, |_, cache| {
        while cache.room(class) > 0 {
            let Some(block) = blocks.pop() else { break };
            cache.put(class, block);
        }
        Answer::Done(())
    });
    blocks
}
