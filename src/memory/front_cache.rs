//! Freed blocks at the hand of one thread for one stream: the path on which most allocations end.
//!
//! A block that a thread frees on a stream lies on a stack of its class, and the thread's next allocation of that class
//! on that stream takes it: no lock, no atomic read-modify-write, no driver call. The cache is leased to its thread
//! (`sys::lease`), so that the heap can still take everything out under pressure or when the stream goes.
//! What it does: the stacks, the thread's list of its caches. What it does not: get blocks from anywhere; the heap
//! does, outside of the lease, because it may wait for other threads' caches.
//! Invariants: `bytes` is the sum over the stacks; a closed cache is empty, has let go of its heap, and stays closed.
//! Lock order: none taken here; the heap's locks may be taken inside a guest's visit, never the other way round.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::heap::Heap;
use super::order::Freed;
use super::records::Facts;
use super::region::MIDDLE_STEP_BYTES;
use super::size_class::{self, Class};
use crate::device::Stream;
use crate::sys::lease::{Guest, Owner, lease};

/// Caches of one thread; the one unused longest makes room.
const LEASES_MAX: usize = 32;

/// What is leased: the cache and, until it is closed, its heap.
pub(super) struct Leased {
    heap: Option<Arc<Heap>>,
    pub(super) cache: FrontCache,
}

/// What one thread holds for one stream of one heap.
pub(super) struct FrontCache {
    pub(super) stream: Stream,
    /// Number of the stream among those of the heap.
    pub(super) stream_number: u16,
    stacks: Box<[Stack]>,
    bytes: u64,
    limit_bytes: u64,
    /// What was done here, for statistics.
    pub(super) counts: Counts,
}

/// Blocks of one class by index.
struct Stack {
    blocks: Vec<u32>,
    bytes: u64,
}

/// What a cache did; added up over all caches.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub(super) allocations: u64,
    pub(super) allocated_bytes: u64,
    pub(super) frees: u64,
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

impl FrontCache {
    fn new(stream: Stream, stream_number: u16, limit_bytes: u64) -> Self {
        let stack = |class| {
            let bytes = size_class::bytes_of(class);
            Stack { blocks: Vec::with_capacity(depth(bytes) + 1), bytes }
        };
        let stacks = (0..size_class::CLASS_COUNT).filter_map(Class::at).map(stack).collect();
        let counts = Counts::default();
        Self { stream, stream_number, stacks, bytes: 0, limit_bytes, counts }
    }

    /// A block of the class.
    #[inline]
    fn take(&mut self, class: Class) -> Option<u32> {
        let stack = &mut self.stacks[class.index()];
        let index = stack.blocks.pop()?;
        self.bytes -= stack.bytes;
        Some(index)
    }

    /// Keeps a block. What it pushes out comes back.
    #[inline]
    fn keep(&mut self, class: Class, index: u32) -> Option<Vec<Freed>> {
        let stack = &mut self.stacks[class.index()];
        stack.blocks.push(index);
        self.bytes += stack.bytes;
        // The capacity is the depth and one more, so a push never allocates.
        if stack.blocks.len() == stack.blocks.capacity() || self.bytes > self.limit_bytes {
            return Some(self.push_out(class));
        }
        None
    }

    /// The older half of a stack, at least one block.
    #[cold]
    fn push_out(&mut self, class: Class) -> Vec<Freed> {
        let stack = &mut self.stacks[class.index()];
        let count = stack.blocks.len().div_ceil(2);
        let bytes = stack.bytes;
        self.bytes -= bytes * count as u64;
        stack
            .blocks
            .drain(..count)
            .map(|id| Freed { class: class.index() as u32, id: id.into(), bytes })
            .collect()
    }

    /// How many more blocks of a class it would take now, leaving room for as many again.
    pub(super) fn room(&self, class: Class) -> usize {
        let stack = &self.stacks[class.index()];
        let by_bytes = (self.limit_bytes / 2).saturating_sub(self.bytes) / stack.bytes;
        (stack.blocks.capacity() / 2).saturating_sub(stack.blocks.len()).min(by_bytes as usize)
    }

    /// Takes a block for which there was room.
    pub(super) fn put(&mut self, class: Class, index: u32) {
        let stack = &mut self.stacks[class.index()];
        stack.blocks.push(index);
        self.bytes += stack.bytes;
    }

    /// Takes everything out.
    pub(super) fn drain(&mut self) -> Vec<Freed> {
        self.bytes = 0;
        let stacks = self.stacks.iter_mut().enumerate();
        let freed = |(class, stack): (usize, &mut Stack)| {
            let bytes = stack.bytes;
            let blocks = std::mem::take(&mut stack.blocks);
            stack.blocks = Vec::with_capacity(blocks.capacity());
            blocks.into_iter().map(move |id| Freed { class: class as u32, id: id.into(), bytes })
        };
        stacks.flat_map(freed).collect()
    }

    /// Bytes that lie here.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Leased {
    /// Takes everything out for good, and lets go of the heap.
    pub(super) fn close(&mut self) -> Vec<Freed> {
        let heap = self.heap.take();
        let freed = self.cache.drain();
        // The heap's owner and whoever closes hold it still.
        drop(heap);
        freed
    }
}

/// What a caller asks for: names that a look at the thread's list is enough to check.
#[derive(Clone, Copy)]
pub struct Key {
    /// The caller's name of the heap.
    pub token: u64,
    /// The caller's name of the stream.
    pub stream: u64,
}

struct Entry {
    key: Key,
    /// Holds the token as long as it is valid.
    is_alive: &'static AtomicU64,
    owner: Owner<Leased>,
    guest: Guest<Leased>,
}

impl Entry {
    fn is(&self, key: Key) -> bool {
        self.key.token == key.token && self.key.stream == key.stream
    }

    /// The heap and the stream, if it was not closed before.
    fn give_up(self) -> Option<(Arc<Heap>, Stream)> {
        // As its owner, which costs the other threads nothing.
        let ended = self.owner.with(|leased| {
            let heap = leased.heap.clone();
            (heap, (leased.close(), leased.cache.stream, leased.cache.counts))
        });
        // Without a heap it was closed, and what it held and did was taken over.
        let Some((Some(heap), last)) = ended else { return None };
        let stream = last.1;
        heap.lease_ended(&self.guest, last);
        Some((heap, stream))
    }
}

/// The caches of this thread, the one used last first.
struct Leases(Vec<Entry>);

impl Drop for Leases {
    fn drop(&mut self) {
        // The thread ends.
        for entry in self.0.drain(..) {
            if let Some((heap, stream)) = entry.give_up() {
                heap.thread_ended(stream);
            }
        }
    }
}

thread_local! {
    static LEASES: RefCell<Leases> = const { RefCell::new(Leases(Vec::new())) };
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
#[inline]
fn with<R>(key: Key, body: impl FnOnce(&Arc<Heap>, &mut FrontCache) -> Answer<R>) -> Answer<R> {
    LEASES
        .try_with(|leases| {
            let Ok(mut leases) = leases.try_borrow_mut() else { return Answer::NoLease };
            let entries = &mut leases.0;
            let Some(at) = entries.iter().position(|entry| entry.is(key)) else { return Answer::NoLease };
            if at != 0 {
                entries.swap(0, at);
            }
            let entry = &entries[0];
            // Acquire: what was done before the handle was made is seen.
            if entry.is_alive.load(Ordering::Acquire) != key.token {
                return Answer::NoLease;
            }
            let inside = |leased: &mut Leased| match &leased.heap {
                Some(heap) => body(heap, &mut leased.cache),
                None => Answer::NoLease,
            };
            entry.owner.with(inside).unwrap_or(Answer::NoLease)
        })
        .unwrap_or(Answer::NoLease)
}

/// Allocates from this thread's cache: the address.
#[inline]
pub fn allocate(key: Key, bytes: u64, alignment: u64, tag: u64) -> Answer<u64> {
    let alignment = if alignment == 0 { size_class::UNIT_BYTES } else { alignment };
    let Some(class) = size_class::class_of(bytes, alignment) else { return Answer::Miss };
    if alignment > MIDDLE_STEP_BYTES && !class.is_small() {
        return Answer::Miss;
    }
    with(key, |heap, cache| {
        let Some(tag) = heap.tag_number(tag) else { return Answer::Miss };
        let Some(index) = cache.take(class) else { return Answer::Miss };
        let Some((region, record)) = heap.block_of_class(class, index) else { return Answer::Miss };
        let born = heap.tick();
        let (stream, is_shared, is_captured) = (cache.stream_number, false, false);
        let class = class.index() as u8;
        record.open(&Facts { class, stream, bytes, tag, born, is_shared, is_captured });
        cache.counts.allocations += 1;
        cache.counts.allocated_bytes += bytes;
        Answer::Done(region.address_of(index))
    })
}

/// Frees into this thread's cache.
#[inline]
pub fn free(key: Key, address: u64) -> Answer<()> {
    let mut pushed_out = None;
    let answer = with(key, |heap, cache| {
        let Some((region, index)) = heap.block_at(address) else { return Answer::Miss };
        let Some(record) = region.records.get(index) else { return Answer::Miss };
        let Some(facts) = record.facts() else { return Answer::Miss };
        let Some(class) = Class::at(facts.class.into()) else { return Answer::Miss };
        if facts.is_shared || facts.is_captured {
            return Answer::Miss;
        }
        record.close();
        cache.counts.frees += 1;
        cache.counts.freed_bytes += facts.bytes;
        pushed_out = cache.keep(class, index).map(|freed| (Arc::clone(heap), cache.stream, freed));
        Answer::Done(())
    });
    if let Some((heap, stream, freed)) = pushed_out {
        // Outside of the lease, because others may be waiting for it with the heap's lock in hand.
        heap.take_freed(stream, freed);
    }
    answer
}

/// Gives this thread a cache for the key, filled with blocks that the stream may use at once.
pub(super) fn adopt(
    key: Key,
    is_alive: &'static AtomicU64,
    heap: &Arc<Heap>,
    (stream, stream_number): (Stream, u16),
    limit_bytes: u64,
) {
    let mut fresh = FrontCache::new(stream, stream_number, limit_bytes);
    heap.fill(&mut fresh);
    let (owner, guest) = lease(Leased { heap: Some(Arc::clone(heap)), cache: fresh });
    heap.lease_began(guest.clone());
    let entry = Entry { key, is_alive, owner, guest };
    let former = LEASES.try_with(|leases| {
        let Ok(mut leases) = leases.try_borrow_mut() else { return Some(entry) };
        let entries = &mut leases.0;
        let stale = entries.iter().position(|entry| entry.is(key));
        let full = entries.len() >= LEASES_MAX;
        let former = stale.or(full.then(|| entries.len() - 1)).map(|at| entries.swap_remove(at));
        entries.insert(0, entry);
        former
    });
    // Outside of the borrow: giving up calls the heap.
    if let Ok(Some(former)) = former {
        former.give_up();
    }
}

/// Puts blocks on this thread's cache; what does not fit comes back.
pub(super) fn refill(key: Key, class: Class, mut blocks: Vec<u32>) -> Vec<u32> {
    let _ = with(key, |_, cache| {
        while cache.room(class) > 0 {
            let Some(index) = blocks.pop() else { break };
            cache.put(class, index);
        }
        Answer::Done(())
    });
    blocks
}
