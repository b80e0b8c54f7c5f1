//! A table that grows while others read it: its values never move, so that a look takes no lock and finds its value by
//! one comparison and one addition.
//!
//! What it does: reserves addresses for all values there can be, and gives memory to a prefix of them, whose values are
//! zero. The system gives each page when it is first touched, so that growing costs little and rarely used values cost
//! nothing. What it does not: shrink. Invariants: the values below `length` are initialized and stay where they are
//! until the drop; `length` only grows. Lock order: `growing` alone.

use std::mem::offset_of;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytemuck::Zeroable;

use super::numa;
use super::shm::{Protection, Reservation};
use crate::error::{Error, Result, Status};
use crate::sync::Mutex;

/// Bytes by which a table grows at least.
const STEP_BYTES: usize = 64 << 10;

/// A growing table; its memory goes with the drop. What a look reads comes first, so that it can share a line of memory
/// with what its owner reads then.
#[derive(Debug)]
#[repr(C)]
pub struct Steady<T> {
    values: NonNull<T>,
    length: AtomicUsize,
    capacity: usize,
    growing: Mutex<()>,
    memory: Reservation,
}

// SAFETY: the table owns its values, which are not of one thread.
unsafe impl<T: Send> Send for Steady<T> {}
// SAFETY: others get shared references only, and growing does not touch what they can see.
unsafe impl<T: Send + Sync> Sync for Steady<T> {}

impl<T: Zeroable> Steady<T> {
    const IS_PLAIN: () = assert!(size_of::<T>() > 0 && !std::mem::needs_drop::<T>());

    /// An empty table that can grow to `capacity` values.
    pub fn new(capacity: usize) -> Result<Self> {
        let () = Self::IS_PLAIN;
        let bytes =
            capacity.checked_mul(size_of::<T>()).and_then(|bytes| bytes.checked_next_multiple_of(STEP_BYTES));
        let Some(bytes) = bytes.filter(|&bytes| bytes > 0) else {
            return Err(Error::argument(format!("a table of {capacity} values of {} bytes", size_of::<T>())));
        };
        let memory = Reservation::new(bytes as u64, align_of::<T>() as u64)?;
        // The addresses are reserved, so that nothing of the program lies there.
        let values = NonNull::new(std::ptr::with_exposed_provenance_mut(memory.address()))
            .ok_or_else(|| Error::internal("a reservation at no address"))?;
        Ok(Self { values, length: AtomicUsize::new(0), capacity, growing: Mutex::default(), memory })
    }

    /// Makes room for values up to `index`, and for some more.
    pub fn grow(&self, index: usize) -> Result<()> {
        if index < self.length.load(Ordering::Acquire) {
            return Ok(());
        }
        if index >= self.capacity {
            let text = format!("value {index} of a table for {}", self.capacity);
            return Err(Error::new(Status::LimitReached, text));
        }
        let _growing = self.growing.lock();
        let length = self.length.load(Ordering::Acquire);
        if index < length {
            return Ok(());
        }
        // Steps may end inside a value; the last one of a step belongs to the next.
        let from = (length * size_of::<T>()).next_multiple_of(STEP_BYTES);
        let end = ((index + 1) * size_of::<T>()).next_multiple_of(STEP_BYTES);
        if end > from {
            self.memory.protect(from as u64, (end - from) as u64, Protection::ReadWrite).map_err(
                |error| Error::new(Status::OutOfHostMemory, error.text).context("growing a table"),
            )?;
        }
        let count = (end / size_of::<T>()).min(self.capacity);
        // Release: whoever sees the length sees the values.
        self.length.store(count, Ordering::Release);
        Ok(())
    }
}

impl<T> Steady<T> {
    /// Bytes from the start of this that `get` reads.
    pub const HEAD_BYTES: usize = offset_of!(Self, capacity);

    /// A value, if the table has grown so far.
    #[inline(always)]
    pub fn get(&self, index: usize) -> Option<&T> {
        if index >= self.length.load(Ordering::Acquire) {
            return None;
        }
        // SAFETY: below the length, so inside the reservation.
        let value = unsafe { self.values.add(index) };
        // SAFETY: below the length memory is readable and was zero, which is a value; values stay, and only shared
        // references to them are given out.
        Some(unsafe { value.as_ref() })
    }

    /// Has the system put pages behind some values now, so that nobody waits for one who touches them first.
    pub fn populate(&self, first: usize, count: usize) {
        if let Some(value) = self.get(first)
            && self.get(first + count.max(1) - 1).is_some()
        {
            numa::populate(std::ptr::from_ref(value).addr(), (count * size_of::<T>()) as u64);
        }
    }

    /// All values there are now.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        (0..self.length.load(Ordering::Acquire)).filter_map(|index| self.get(index))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;

    #[test]
    fn values_stay_where_they_are_while_the_table_grows() {
        let table: Steady<AtomicU64> = Steady::new(1 << 20).unwrap();
        assert!(table.get(0).is_none());
        table.grow(0).unwrap();
        let first = std::ptr::from_ref(table.get(0).unwrap());
        table.get(0).unwrap().store(7, Ordering::Relaxed);
        for index in [1, 8191, 8192, 100_000, (1 << 20) - 1] {
            table.grow(index).unwrap();
            assert_eq!(table.get(index).unwrap().load(Ordering::Relaxed), 0);
            table.get(index).unwrap().store(index as u64, Ordering::Relaxed);
        }
        assert_eq!(std::ptr::from_ref(table.get(0).unwrap()), first);
        let sum: u64 = table.iter().map(|value| value.load(Ordering::Relaxed)).sum();
        assert_eq!(sum, 7 + 1 + 8191 + 8192 + 100_000 + (1 << 20) - 1);
    }

    #[test]
    fn beyond_its_capacity_there_is_nothing_and_the_rest_stays() {
        let table: Steady<[u8; 24]> = Steady::new(5000).unwrap();
        table.grow(4999).unwrap();
        assert_eq!(table.grow(5000).unwrap_err().status, Status::LimitReached);
        assert!(table.get(4999).is_some() && table.get(5000).is_none() && table.get(usize::MAX).is_none());
        assert!(Steady::<u64>::new(usize::MAX).is_err() && Steady::<u64>::new(0).is_err());
    }

    #[test]
    fn values_that_are_to_be_touched_soon_have_their_pages_and_no_others() {
        let table: Steady<u64> = Steady::new(1 << 20).unwrap();
        table.grow(1 << 19).unwrap();
        let is_there = |index: usize| {
            let address = std::ptr::from_ref(table.get(index).unwrap()).addr();
            numa::is_populated(address, 8)
        };
        assert!(!is_there(0));
        table.populate(1 << 16, 1 << 15);
        if !numa::can_populate() {
            return;
        }
        let pages = [1 << 16, (1 << 16) + 1000, (1 << 16) + (1 << 15) - 1];
        assert!(pages.into_iter().all(is_there));
        assert!(!is_there(0) && !is_there(1 << 19));
        // Beyond its end there is nothing to have pages.
        table.populate(1 << 19, 1 << 19);
        assert!(!is_there(1 << 19));
        assert_eq!(table.iter().sum::<u64>(), 0);
    }

    #[test]
    fn a_value_that_reaches_over_the_end_of_a_step_is_there_as_a_whole() {
        // 24 does not divide the step.
        let table: Steady<[u64; 3]> = Steady::new(100_000).unwrap();
        for index in (0..100_000).step_by(517) {
            table.grow(index).unwrap();
            assert_eq!(*table.get(index).unwrap(), [0; 3]);
        }
    }

    #[test]
    fn threads_that_grow_and_look_at_once_see_whole_values_only() {
        let table: Steady<AtomicU64> = Steady::new(1 << 18).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for index in (0..1 << 18).step_by(97) {
                        table.grow(index).unwrap();
                        table.get(index).unwrap().fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
        });
        let every = (0..1usize << 18).step_by(97);
        assert!(every.into_iter().all(|index| table.get(index).unwrap().load(Ordering::Relaxed) == 3));
    }
}
