//! Freed blocks at the hand of one thread for one stream: the path on which most allocations end.
//!
//! A block that a thread frees on a stream lies on a stack of its class, and the thread's next allocation of that class
//! on that stream takes it: no lock, no atomic read-modify-write, no driver call. The cache is leased to its thread
//! (`sys::lease`), so that the heap can still take everything out under pressure or when the stream goes, and found at
//! the thread's seat (`sys::desk`).
//! What it does: the stacks, the thread's list of its caches. What it does not: get blocks from anywhere; the heap
//! does, outside of the lease, because it may wait for other threads' caches.
//! A cache that its thread leaves is parked with all its blocks, for the next thread that comes to its stream.
//! Invariants: `bytes` is the sum over the stacks; a parked or closed cache has let go of its heap; a closed one is
//! empty and stays closed.
//! Lock order: none taken here; the heap's locks may be taken inside a guest's visit, never the other way round.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use super::heap::Heap;
use super::order::Freed;
use super::region::{Block, MIDDLE_STEP_BYTES, REGIONS_MAX, number_at};
use super::size_class::{self, CLASS_COUNT, Class, SMALL_CLASS_COUNT, UNIT_BYTES};
use crate::device::Stream;
use crate::sys::desk::{Desk, Seats, Words, at_desk, at_seat};
use crate::sys::fork;
use crate::sys::lease::{Owner, Work, lease};
use crate::sys::{thread_end, ticker};

mod stacks;

use stacks::STACKS;
pub(super) use stacks::{Counts, FrontCache};

/// Caches of one thread; the one unused longest makes room.
const LEASES_MAX: usize = 32;

/// What a cache is told by that was closed; no token is 0.
static CLOSED: AtomicU64 = AtomicU64::new(0);

/// What is leased: the cache and, while a thread uses it, its heap.
pub(super) struct Leased {
    heap: Option<Arc<Heap>>,
    /// The same, also when no thread uses it.
    home: Weak<Heap>,
    /// Holds the token of the key as long as it is valid and a thread uses the cache.
    is_alive: &'static AtomicU64,
    is_closed: bool,
    pub(super) cache: FrontCache,
}

impl Leased {
    /// Takes everything out for good, and lets go of the heap.
    pub(super) fn close(&mut self) -> Vec<Freed> {
        self.is_alive = &CLOSED;
        self.is_closed = true;
        self.cache.regions.fill(None);
        let freed = self.cache.drain();
        self.cache.stacks.iter_mut().for_each(|stack| stack.places = Box::default());
        // The heap's owner and whoever closes hold it still.
        drop(self.heap.take());
        freed
    }

    /// Nobody uses it from here on; its heap, if it was not closed.
    fn set_down(&mut self) -> Option<Arc<Heap>> {
        self.is_alive = &CLOSED;
        self.heap.take()
    }

    /// This thread uses it from here on; whether it was not closed.
    fn pick_up(&mut self, heap: &Arc<Heap>, is_alive: &'static AtomicU64, stream_number: u16) -> bool {
        if !self.is_closed {
            (self.heap, self.is_alive) = (Some(Arc::clone(heap)), is_alive);
            self.cache.set_stream_number(stream_number);
        }
        !self.is_closed
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

/// Leaves a cache to the next thread of its stream. The heap, if it is still there, and the stream.
fn set_down(owner: Owner<Leased>) -> Option<(Arc<Heap>, Stream)> {
    // As its owner, which costs the other threads nothing.
    let parts = |leased: &mut Leased| (leased.set_down(), Weak::clone(&leased.home), leased.cache.stream);
    let (heap, home, stream) = owner.with(parts)?;
    // Without a heap it was closed, and what it held and did was taken over.
    if let Some(heap) = heap {
        heap.park(owner, stream);
    }
    Some((home.upgrade()?, stream))
}

fn leave(owner: Owner<Leased>) {
    // The thread ends. In the child of a fork, threads that are not there may hold the heap's locks.
    if !fork::is_forked_child()
        && let Some((heap, stream)) = set_down(owner)
    {
        heap.thread_left(stream);
    }
}

/// For threads whose first use of this library is in the destructors of their thread-specific values.
fn end_desk() {
    let _ = LEASES.try_with(Desk::end);
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
        0 => size_class::class_of(bytes, UNIT_BYTES),
        _ => size_class::class_of(bytes, alignment)
            .filter(|class| alignment <= MIDDLE_STEP_BYTES || class.is_small()),
    }
}

/// What is asked for, and what is done with its address.
struct Taking<F> {
    key: Key,
    class: Class,
    bytes: u64,
    alignment: u64,
    tag: u64,
    then: F,
}

impl<R, F: FnOnce(u64) -> R> Work<Leased> for Taking<F> {
    type Answer = R;

    #[inline(always)]
    fn work(self, leased: &mut Leased) -> Option<R> {
        // Acquire: what was done before the handle was made is seen.
        if leased.is_alive.load(Ordering::Acquire) != self.key.token {
            return None;
        }
        let heap = leased.heap.as_ref()?;
        let tag = if self.tag == 0 { 0 } else { heap.tag_number(self.tag)? };
        self.take(heap, &mut leased.cache, tag, ticker::noted_ms()?)
    }
}

impl<R, F: FnOnce(u64) -> R> Taking<F> {
    /// A block of the cache, if there is one that serves and its region is known.
    #[inline(always)]
    fn take(self, heap: &Heap, cache: &mut FrontCache, tag: u16, born: u32) -> Option<R> {
        let (class, block) = cache.at_hand(heap, self.class.index(), self.alignment)?;
        let region = cache.regions[class.min(SMALL_CLASS_COUNT) % REGIONS_MAX].as_ref()?;
        let stack = &mut cache.stacks[class % STACKS];
        region.records.get(block.index)?.open_plain(stack.kind, self.bytes, tag, born);
        stack.count = stack.count.wrapping_sub(1);
        cache.bytes = cache.bytes.wrapping_sub(stack.bytes);
        cache.counts.allocations = cache.counts.allocations.wrapping_add(1);
        cache.counts.allocated_bytes = cache.counts.allocated_bytes.wrapping_add(self.bytes);
        Some((self.then)(block.address))
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
    at_seat(&SEATS, key.words(), Taking { key, class, bytes, alignment, tag, then })
}

/// A free where everything is at hand.
struct Giving {
    key: Key,
    address: u64,
}

impl Work<Leased> for Giving {
    type Answer = ();

    #[inline(always)]
    fn work(self, leased: &mut Leased) -> Option<()> {
        let Self { key, address } = self;
        if leased.is_alive.load(Ordering::Acquire) != key.token {
            return None;
        }
        let cache = &mut leased.cache;
        let number = number_at(&cache.directory, address);
        let region = cache.regions[number % REGIONS_MAX].as_ref()?;
        let index = region.index_at(address)?;
        let record = region.records.get(index)?;
        // Where the region tells the class, the stack is known before the record has come from memory: a load of its
        // own keeps the compiler from a choice that waits for both.
        let class = if number < SMALL_CLASS_COUNT { number } else { record.class().into() };
        let stack = &mut cache.stacks[class % STACKS];
        let held_bytes = cache.bytes.wrapping_add(stack.bytes);
        let (recorded, bytes) = record.plain()?;
        if held_bytes > cache.limit_bytes || usize::from(recorded) != class {
            return None;
        }
        *stack.places.get_mut(stack.count)? = Block { address, index };
        stack.count = stack.count.wrapping_add(1);
        cache.bytes = held_bytes;
        record.close();
        cache.counts.frees = cache.counts.frees.wrapping_add(1);
        cache.counts.freed_bytes = cache.counts.freed_bytes.wrapping_add(bytes);
        Some(())
    }
}

/// As [`free`], where everything is at hand; see [`allocate_at_hand`].
#[inline(always)]
pub fn free_at_hand(key: Key, address: u64) -> Option<()> {
    at_seat(&SEATS, key.words(), Giving { key, address })
}

/// Allocates from this thread's cache and gives the address to `then`.
///
/// What to do with it is a parameter because each caller has code of its own then, in which everything is inlined.
pub fn allocate<R>(key: Key, bytes: u64, alignment: u64, tag: u64, then: impl FnOnce(u64) -> R) -> Answer<R> {
    let Some(class) = class_for(bytes, alignment) else { return Answer::Miss };
    with(key, |heap, cache| {
        cache.know_region(heap, class.index());
        let Some(tag_number) = heap.tag_number(tag) else { return Answer::Miss };
        let taking = Taking { key, class, bytes, alignment, tag, then };
        taking.take(heap, cache, tag_number, heap.tick()).map_or(Answer::Miss, Answer::Done)
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
        pushed_out = is_too_full.then_some(class);
        Answer::Done(then())
    });
    if let Some(class) = pushed_out {
        push_out(key, class);
    }
    answer
}

/// Makes room in a stack, and where all are too many bytes.
#[cold]
#[inline(never)]
fn push_out(key: Key, class: usize) {
    let _ = with(key, |heap, cache| {
        // Within the lease: who takes everything out for a stream that goes must not miss what is under way.
        heap.take_freed(cache.stream, cache.push_out(class));
        Answer::Done(())
    });
}

/// Gives this thread a cache for the key: one that another thread left, or one filled with blocks that the stream may
/// use at once.
pub(super) fn adopt(
    key: Key,
    is_alive: &'static AtomicU64,
    heap: &Arc<Heap>,
    (stream, stream_number): (Stream, u16),
    limit_bytes: u64,
) {
    // In the destructors of a thread that ends, the desk may be gone: a cache would be nobody's.
    if LEASES.try_with(Desk::is_over).unwrap_or(true) {
        return;
    }
    thread_end::call_at_end(end_desk);
    let take = |owner: &Owner<Leased>| owner.with(|leased| leased.pick_up(heap, is_alive, stream_number));
    let parked = std::iter::from_fn(|| heap.unpark(stream)).find(|owner| take(owner) == Some(true));
    let owner = parked.unwrap_or_else(|| {
        let mut cache = FrontCache::new(heap, (stream, stream_number), limit_bytes);
        heap.fill(&mut cache);
        let (its, home) = (Some(Arc::clone(heap)), Arc::downgrade(heap));
        let (owner, guest) = lease(Leased { heap: its, home, is_alive, is_closed: false, cache });
        heap.lease_began(stream, guest);
        owner
    });
    let former = LEASES.try_with(|leases| leases.put(key.words(), owner, LEASES_MAX)).ok().flatten();
    // Outside of the list: setting down calls the heap.
    if let Some((home, lane)) = former.and_then(set_down)
        && !(Arc::ptr_eq(&home, heap) && lane == stream)
    {
        home.thread_left(lane);
    }
}

/// Puts blocks on this thread's cache; what does not fit comes back.
pub(super) fn refill(key: Key, class: Class, mut blocks: Vec<Block>) -> Vec<Block> {
    let _ = with(key, |_, cache| {
        while cache.room(class) > 0
            && let Some(block) = blocks.pop()
        {
            cache.put(class, block);
        }
        Answer::Done(())
    });
    blocks
}
