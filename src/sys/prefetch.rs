//! Asks the processor to fetch memory that is read soon, so that several waits for it overlap.
//!
//! What it does: one hint, on processors that are known to have it; nothing on others. What it does not: read the
//! value, or change any. Invariant: a hint never faults, and a wrong index asks for nothing.

use std::ops::Range;

/// Bytes of a line of the processor's cache.
pub const LINE_BYTES: usize = 64;

/// Asks for the value at `index`, if there is one.
#[inline(always)]
pub fn prefetch<T>(values: &[T], index: usize) {
    let Some(value) = values.get(index) else { return };
    fetch(std::ptr::from_ref(value).cast());
}

/// Asks for all lines of the values in a range, if there are so many.
#[inline(always)]
pub fn prefetch_all<T>(values: &[T], range: Range<usize>) {
    let Some(values) = values.get(range) else { return };
    let Range { start, end } = values.as_ptr_range();
    // From the beginning of a line: the last value may begin in one of its own.
    let mut at = start.cast::<u8>().wrapping_sub(start.addr() % LINE_BYTES);
    while at < end.cast() {
        fetch(at);
        at = at.wrapping_add(LINE_BYTES);
    }
}

/// Asks for the line of cache that lies `bytes` after the start of a value, for values of several lines.
#[inline(always)]
pub fn prefetch_part<T>(values: &[T], index: usize, bytes: usize) {
    let Some(value) = values.get(index).filter(|_| bytes < size_of::<T>()) else { return };
    fetch(std::ptr::from_ref(value).cast::<u8>().wrapping_add(bytes));
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn fetch(address: *const u8) {
    // SAFETY: a hint, which reads nothing and faults nowhere; every x86-64 processor has it.
    unsafe { std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(address.cast()) };
}

#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
fn fetch(_: *const u8) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hint_changes_nothing_and_a_wrong_index_is_none() {
        let values = [[1u64; 16], [2; 16]];
        for index in [0, 1, 2, usize::MAX] {
            prefetch(&values, index);
            prefetch_part(&values, index, 64);
            prefetch_part(&values, index, usize::MAX);
            prefetch_all(&values, 0..index);
            prefetch_all(&values, index..0);
        }
        assert_eq!(values, [[1; 16], [2; 16]]);
    }
}
