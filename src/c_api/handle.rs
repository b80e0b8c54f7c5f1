//! Handles: numbers that look like pointers and are looked up here, never dereferenced.
//!
//! What it does: gives an object a handle, finds it again, forgets it, remembers that a panic has poisoned it. What it
//! does not: keep parents alive; the objects do that with an `Arc` of their own.
//!
//! A handle is 0x4B (8 bits), kind (8), generation (24), index (24). Its top byte makes it an address that no 64-bit
//! machine gives out, so that a handle and a foreign stream's pointer are told apart by value.
//!
//! Invariants: a slot's generation rises each time its object goes, so an old handle never finds a new object; a slot
//! whose generation would wrap is retired. Slots never move, so that a lookup takes one slot's lock and no other.
//! Lock order: the free list before a slot; objects are dropped and called with neither held.

use std::any::Any;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use crate::error::{Error, Result, Status};
use crate::sync::Mutex;

const _: () = assert!(usize::BITS == 64, "a handle needs 64 bits");

const MARK: u64 = 0x4B;
const FIELD_BITS: u32 = 24;
const FIELD_MASK: u64 = (1 << FIELD_BITS) - 1;

/// What a handle stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// `kavern_manager`
    Manager = 1,
    /// `kavern_kv_cache`
    KvCache = 2,
    /// `kavern_stream`
    Stream = 3,
    /// `kavern_pool`
    Pool = 4,
    /// `kavern_elastic`
    Elastic = 5,
    /// `kavern_shared_pool`
    SharedPool = 6,
}

impl Kind {
    fn name(number: u8) -> &'static str {
        match number {
            1 => "kavern_manager",
            2 => "kavern_kv_cache",
            3 => "kavern_stream",
            4 => "kavern_pool",
            5 => "kavern_elastic",
            6 => "kavern_shared_pool",
            _ => "unknown",
        }
    }
}

/// An opaque struct of the header and what stands behind it.
pub(super) trait Handle {
    /// Tells handles of two kinds apart.
    const KIND: Kind;
    /// The object.
    type Object: Send + Sync + 'static;

    /// The handle leads nowhere any more; others may keep the object.
    fn end(object: Arc<Self::Object>) {
        drop(object);
    }
}

type AnyObject = Arc<dyn Any + Send + Sync>;

struct Place {
    generation: u32,
    kind: u8,
    is_poisoned: bool,
    object: Option<AnyObject>,
}

// 64: one cache line each, so that threads with different objects do not slow each other down.
#[repr(align(64))]
struct Slot {
    place: Mutex<Place>,
    /// The handle while its object may be used, else 0: for a look without the lock.
    live: AtomicU64,
}

/// Slots of the first chunk; each later chunk holds twice as many as the one before.
const FIRST_CHUNK: u64 = 64;
const CHUNKS: usize = (FIELD_BITS - FIRST_CHUNK.trailing_zeros()) as usize;
const INDEX_LIMIT: u64 = (FIRST_CHUNK << CHUNKS) - FIRST_CHUNK;

struct Free {
    indexes: Vec<u32>,
    next: u64,
}

static SLOTS: [OnceLock<Box<[Slot]>>; CHUNKS] = [const { OnceLock::new() }; CHUNKS];
static FREE: Mutex<Free> = Mutex::new(Free { indexes: Vec::new(), next: 0 });

fn chunk_of(index: u64) -> (usize, usize) {
    let shifted = index + FIRST_CHUNK;
    let chunk = shifted.ilog2() - FIRST_CHUNK.ilog2();
    (chunk as usize, (shifted - (FIRST_CHUNK << chunk)) as usize)
}

fn slot(index: u64) -> Option<&'static Slot> {
    let (chunk, offset) = chunk_of(index);
    SLOTS.get(chunk)?.get()?.get(offset)
}

fn grow(chunk: usize) -> Result<()> {
    if SLOTS[chunk].get().is_some() {
        return Ok(());
    }
    let count = (FIRST_CHUNK as usize) << chunk;
    let mut slots = Vec::new();
    slots
        .try_reserve_exact(count)
        .map_err(|_| Error::new(Status::OutOfHostMemory, format!("no memory for {count} more handles")))?;
    let empty = || Slot {
        place: Mutex::new(Place { generation: 1, kind: 0, is_poisoned: false, object: None }),
        live: AtomicU64::new(0),
    };
    slots.resize_with(count, empty);
    // Only one thread grows, under the lock of the free list; a value that is already there is as good.
    let _ = SLOTS[chunk].set(slots.into_boxed_slice());
    Ok(())
}

fn take_index() -> Result<u64> {
    let mut free = FREE.lock();
    if let Some(index) = free.indexes.pop() {
        return Ok(u64::from(index));
    }
    let index = free.next;
    if index >= INDEX_LIMIT {
        return Err(Error::new(
            Status::LimitReached,
            format!("{INDEX_LIMIT} handles are in use; destroy some"),
        ));
    }
    // Room for the way back, so that destroying never needs memory.
    let missing = (index as usize + 1).saturating_sub(free.indexes.len());
    free.indexes
        .try_reserve(missing)
        .map_err(|_| Error::new(Status::OutOfHostMemory, "no memory for one more handle"))?;
    grow(chunk_of(index).0)?;
    free.next += 1;
    Ok(index)
}

/// Whether a value of the caller's is meant as a handle, valid or not.
pub(super) fn is_handle_value(value: u64) -> bool {
    value >> 56 == MARK
}

fn invalid(value: u64, wanted: Kind, why: &str) -> Error {
    let name = Kind::name(wanted as u8);
    Error::new(Status::InvalidHandle, format!("{value:#x} as {name}: {why}"))
}

/// Gives the object a handle.
pub(super) fn insert<H: Handle>(object: Arc<H::Object>) -> Result<*mut H> {
    let index = take_index()?;
    let slot = slot(index).ok_or_else(|| Error::internal("a handle's slot is missing"))?;
    let mut place = slot.place.lock();
    place.kind = H::KIND as u8;
    place.is_poisoned = false;
    place.object = Some(object);
    let generation = u64::from(place.generation) << FIELD_BITS;
    let value = MARK << 56 | (H::KIND as u64) << 48 | generation | index;
    slot.live.store(value, Ordering::Release);
    Ok(std::ptr::without_provenance_mut(value as usize))
}

/// Runs `body` on the slot of a live handle, with its lock held.
fn with_place<H: Handle, R>(
    handle: *const H,
    body: impl FnOnce(&mut Place, &'static AtomicU64) -> Result<R>,
) -> Result<R> {
    let value = handle.addr() as u64;
    if value == 0 {
        let name = Kind::name(H::KIND as u8);
        return Err(Error::new(Status::NullPointer, format!("the {name} handle is null; create one first")));
    }
    if !is_handle_value(value) {
        return Err(invalid(value, H::KIND, "not a handle of this library"));
    }
    let kind = (value >> 48) as u8;
    if kind != H::KIND as u8 {
        let why = format!("a handle of kind {}", Kind::name(kind));
        return Err(invalid(value, H::KIND, &why));
    }
    let Some(slot) = slot(value & FIELD_MASK) else {
        return Err(invalid(value, H::KIND, "no such handle was ever made"));
    };
    let mut place = slot.place.lock();
    let generation = (value >> FIELD_BITS & FIELD_MASK) as u32;
    if place.generation != generation || place.kind != kind || place.object.is_none() {
        return Err(invalid(value, H::KIND, "destroyed, or never made"));
    }
    body(&mut place, &slot.live)
}

fn typed<H: Handle>(object: AnyObject) -> Result<Arc<H::Object>> {
    object.downcast().map_err(|_| Error::internal("a handle's object is of another type than its kind says"))
}

/// The object behind a handle, unless a panic has poisoned it.
pub(super) fn get<H: Handle>(handle: *const H) -> Result<Arc<H::Object>> {
    let object = with_place(handle, |place, _| {
        if place.is_poisoned {
            let text = "a call on this object ended in a panic before; destroy it and make a new one";
            return Err(Error::new(Status::Poisoned, text));
        }
        place.object.clone().ok_or_else(|| Error::internal("a live handle has no object"))
    })?;
    typed::<H>(object)
}

/// Forgets a handle, poisoned or not, and returns the object, which lives on while others hold it.
pub(super) fn remove<H: Handle>(handle: *const H) -> Result<Arc<H::Object>> {
    let (object, is_retired) = with_place(handle, |place, live| {
        let object = place.object.take().ok_or_else(|| Error::internal("a live handle has no object"))?;
        live.store(0, Ordering::Release);
        let is_retired = u64::from(place.generation) == FIELD_MASK;
        place.generation = if is_retired { 0 } else { place.generation + 1 };
        Ok((object, is_retired))
    })?;
    if !is_retired {
        FREE.lock().indexes.push((handle.addr() as u64 & FIELD_MASK) as u32);
    }
    typed::<H>(object)
}

/// A word that equals the handle for as long as [`get`] finds its object.
pub(super) fn live_word<H: Handle>(handle: *const H) -> Result<&'static AtomicU64> {
    with_place(handle, |_, live| Ok(live))
}

/// Marks the object so that [`get`] refuses it from now on. Does nothing for a handle that is not live.
pub(super) fn poison<H: Handle>(handle: *const H) {
    let _ = with_place(handle, |place, live| {
        place.is_poisoned = true;
        live.store(0, Ordering::Release);
        Ok(())
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Apple;
    struct Pear;
    impl Handle for Apple {
        const KIND: Kind = Kind::Manager;
        type Object = u32;
    }
    impl Handle for Pear {
        const KIND: Kind = Kind::Stream;
        type Object = String;
    }

    fn status_of<T>(result: Result<T>) -> Status {
        result.err().map_or(Status::Ok, |error| error.status)
    }

    #[test]
    fn a_handle_finds_its_object_until_it_is_removed() {
        let handle = insert::<Apple>(Arc::new(7)).unwrap();
        assert_eq!(*get(handle).unwrap(), 7);
        assert_eq!(*remove(handle).unwrap(), 7);
        assert_eq!(status_of(get(handle)), Status::InvalidHandle);
        assert_eq!(status_of(remove(handle)), Status::InvalidHandle);
    }

    #[test]
    fn a_recycled_slot_refuses_the_old_handle() {
        let old = insert::<Pear>(Arc::new("old".into())).unwrap();
        remove(old).unwrap();
        let new: Vec<_> = (0..100).map(|i| insert::<Pear>(Arc::new(i.to_string())).unwrap()).collect();
        assert_eq!(status_of(get(old)), Status::InvalidHandle);
        for (i, handle) in new.into_iter().enumerate() {
            assert_eq!(*remove(handle).unwrap(), i.to_string());
        }
    }

    #[test]
    fn null_forged_and_wrong_kind_are_refused() {
        let apple = insert::<Apple>(Arc::new(1)).unwrap();
        assert_eq!(status_of(get::<Apple>(std::ptr::null())), Status::NullPointer);
        assert_eq!(status_of(get::<Pear>(apple.cast())), Status::InvalidHandle);
        for bit in 0..64 {
            let forged = std::ptr::without_provenance::<Apple>(apple.addr() ^ 1 << bit);
            if bit < 24 {
                // Another index may be a live handle of another test, but never this object with this value.
                let _ = get(forged);
            } else {
                assert_eq!(status_of(get(forged)), Status::InvalidHandle, "bit {bit}");
            }
        }
        remove(apple).unwrap();
    }

    #[test]
    fn the_live_word_is_the_handle_until_its_object_goes() {
        let handle = insert::<Apple>(Arc::new(1)).unwrap();
        let word = live_word(handle).unwrap();
        assert_eq!(word.load(Ordering::Acquire), handle.addr() as u64);
        remove(handle).unwrap();
        assert_ne!(word.load(Ordering::Acquire), handle.addr() as u64);
        assert!(live_word(handle).is_err());
    }

    #[test]
    fn a_poisoned_object_is_refused_but_can_be_removed() {
        let handle = insert::<Apple>(Arc::new(1)).unwrap();
        let word = live_word(handle).unwrap();
        poison(handle);
        assert_eq!(word.load(Ordering::Acquire), 0);
        assert_eq!(status_of(get(handle)), Status::Poisoned);
        remove(handle).unwrap();
    }

    #[test]
    fn every_index_has_one_place() {
        let mut expected = (0, 0);
        for index in 0..100_000 {
            assert_eq!(chunk_of(index), expected);
            expected.1 += 1;
            if expected.1 == FIRST_CHUNK as usize * (1 << expected.0) {
                expected = (expected.0 + 1, 0);
            }
        }
        assert_eq!(chunk_of(INDEX_LIMIT - 1).0, CHUNKS - 1);
    }
}
