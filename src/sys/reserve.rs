//! Memory whose size comes from a caller: running out of it is an error and not an abort.
//!
//! [`filled`] and [`room`] touch or reserve at once, so that later use allocates nothing and meets no page fault;
//! [`Lined`] does, too, and begins at a line of the processor's cache; [`Zeroed`] takes its pages from the system as
//! they are first written, for tables that are mostly empty. Large vectors ask for huge pages: random reads in them
//! then seldom wait for a translation of the address.

use std::ops::{Deref, DerefMut};

use bytemuck::Pod;

use super::prefetch::LINE_BYTES;
use super::shm::Anonymous;
use crate::error::{Error, Result, Status};

/// A vector without elements and with room for `count`.
pub fn room<T>(count: usize) -> Result<Vec<T>> {
    let mut values = Vec::new();
    values.try_reserve_exact(count).map_err(|_| {
        let text = format!("{count} entries of {} bytes do not fit into host memory", size_of::<T>());
        Error::new(Status::OutOfHostMemory, text)
    })?;
    ask_for_huge_pages(values.as_ptr() as usize, count.saturating_mul(size_of::<T>()));
    Ok(values)
}

/// Bytes of a huge page of x86-64, and of 64-bit ARM with pages of 4 KiB.
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// Asks for huge pages behind the whole ones that lie in a range just reserved, whose pages come with its first use.
/// A system that has none, or was told to give none, gives small ones.
fn ask_for_huge_pages(address: usize, bytes: usize) {
    let first = address.next_multiple_of(HUGE_PAGE_BYTES);
    let end = (address.saturating_add(bytes)) / HUGE_PAGE_BYTES * HUGE_PAGE_BYTES;
    if end > first {
        // SAFETY: the range lies in an allocation of ours; the advice changes no byte of it.
        _ = unsafe { libc::madvise(first as *mut libc::c_void, end - first, libc::MADV_HUGEPAGE) };
    }
}

/// A vector of `count` equal values.
pub fn filled<T: Clone>(count: usize, value: T) -> Result<Vec<T>> {
    let mut values = room(count)?;
    values.resize(count, value);
    Ok(values)
}

/// Owner of values that are zero until they are written.
#[derive(Debug)]
pub struct Zeroed<T> {
    memory: Anonymous,
    count: usize,
    values: std::marker::PhantomData<T>,
}

impl<T: Pod> Zeroed<T> {
    /// `count` zeros.
    pub fn new(count: usize) -> Result<Self> {
        let bytes = (count as u64).saturating_mul(size_of::<T>() as u64).max(1);
        Ok(Self { memory: Anonymous::new(bytes)?, count, values: std::marker::PhantomData })
    }
}

impl<T: Pod> Deref for Zeroed<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        let first = self.memory.address() as *const T;
        // SAFETY: the mapping is page-aligned, holds `count` values, and any bytes are a value.
        unsafe { std::slice::from_raw_parts(first, self.count) }
    }
}

impl<T: Pod> DerefMut for Zeroed<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        let first = self.memory.address() as *mut T;
        // SAFETY: as above, and `&mut self` makes this the only view.
        unsafe { std::slice::from_raw_parts_mut(first, self.count) }
    }
}

/// What a line of the processor's cache holds.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line(#[expect(dead_code, reason = "read as the values that lie in it")] [u8; LINE_BYTES]);

/// A vector whose first value begins a line of the processor's cache: of values that are used in groups as large as a
/// line, each group is one line and not parts of two.
pub struct Lined<T> {
    lines: Vec<Line>,
    count: usize,
    values: std::marker::PhantomData<T>,
}

impl<T: Pod> Lined<T> {
    /// `count` zeros.
    pub fn new(count: usize) -> Result<Self> {
        const { assert!(align_of::<T>() <= LINE_BYTES) };
        let lines = count.saturating_mul(size_of::<T>()).div_ceil(LINE_BYTES);
        Ok(Self { lines: filled(lines, Line([0; LINE_BYTES]))?, count, values: std::marker::PhantomData })
    }
}

impl<T: Pod> Deref for Lined<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: the lines hold `count` values, are aligned as these are or better, and any bytes are a value.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.count) }
    }
}

impl<T: Pod> DerefMut for Lined<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and `&mut self` makes this the only view.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.count) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_that_cannot_be_are_errors() {
        assert_eq!(room::<u64>(usize::MAX / 8).unwrap_err().status, Status::OutOfHostMemory);
        assert!(Zeroed::<u64>::new(usize::MAX).is_err());
    }

    #[test]
    fn large_vectors_hold_what_is_put_into_them() {
        let values = filled(1 << 20, 0x5a5a_u64).unwrap();
        assert!(values.iter().all(|&value| value == 0x5a5a));
        assert_eq!(room::<u64>(1 << 20).unwrap().capacity(), 1 << 20);
    }

    #[test]
    fn lined_values_begin_a_line_and_keep_what_is_written() {
        for count in [0, 1, 15, 16, 17, 100_000] {
            let mut values = Lined::<i32>::new(count).unwrap();
            assert!(values.as_ptr().addr().is_multiple_of(LINE_BYTES));
            assert_eq!((values.len(), values.iter().filter(|&&value| value == 0).count()), (count, count));
            values.iter_mut().zip(1..).for_each(|(value, number)| *value = number);
            assert!(values.iter().zip(1..).all(|(&value, number)| value == number));
        }
        assert!(Lined::<u64>::new(usize::MAX).is_err());
    }

    #[test]
    fn zeroed_values_are_zero_and_keep_what_is_written() {
        let mut values = Zeroed::<i32>::new(100_000).unwrap();
        assert!(values.iter().all(|&value| value == 0));
        values[99_999] = 7;
        assert_eq!((values[99_999], values.len()), (7, 100_000));
        assert!(Zeroed::<i32>::new(0).unwrap().is_empty());
    }
}
