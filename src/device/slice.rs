//! Checked names for memory: device ranges and pinned host ranges.
//!
//! Invariant: `address + bytes` never wraps, and a slice made from another lies inside it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::{Device, Plain};
use crate::error::{Error, Result};

/// Tells the devices of a process apart; one per open instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DeviceKey(u32);

impl DeviceKey {
    /// A key that no device had before.
    pub(in crate::device) fn fresh() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

fn check_part(what: &str, whole_bytes: u64, offset: u64, bytes: u64) -> Result<()> {
    match offset.checked_add(bytes) {
        Some(end) if end <= whole_bytes => Ok(()),
        _ => Err(Error::argument(format!(
            "{bytes} bytes at offset {offset} of a {what} range of {whole_bytes} bytes; stay inside it"
        ))),
    }
}

/// A range of device memory: which device, where, how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceSlice {
    device: DeviceKey,
    address: u64,
    bytes: u64,
}

impl DeviceSlice {
    /// A range that a backend has just made.
    pub(in crate::device) fn new(device: DeviceKey, address: u64, bytes: u64) -> Self {
        debug_assert!(address.checked_add(bytes).is_some(), "a range never wraps");
        Self { device, address, bytes }
    }

    /// A range of memory that the engine owns.
    ///
    /// # Safety
    /// The range must be memory of that device, and stay so while the slice or a part of it is in use.
    pub unsafe fn from_foreign(device: DeviceKey, address: u64, bytes: u64) -> Result<Self> {
        match address.checked_add(bytes) {
            Some(_) if address != 0 => Ok(Self { device, address, bytes }),
            _ => Err(Error::argument(format!("{bytes} bytes at address {address:#x} are no memory range"))),
        }
    }

    /// Which device.
    pub fn device(&self) -> DeviceKey {
        self.device
    }

    /// First byte.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Length.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// A part of the range.
    pub fn part(&self, offset: u64, bytes: u64) -> Result<Self> {
        check_part("device", self.bytes, offset, bytes)?;
        Ok(Self { device: self.device, address: self.address + offset, bytes })
    }

    /// Whether the two ranges share a byte.
    pub fn overlaps(&self, other: &Self) -> bool {
        let start = self.address.max(other.address);
        start < (self.address + self.bytes).min(other.address + other.bytes)
    }
}

/// A range of pinned host memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PinnedSlice {
    address: usize,
    bytes: u64,
}

impl PinnedSlice {
    /// A range that a backend has just made.
    pub(in crate::device) fn new(address: usize, bytes: u64) -> Self {
        Self { address, bytes }
    }

    /// First byte.
    pub fn address(&self) -> usize {
        self.address
    }

    /// Length.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// A part of the range.
    pub fn part(&self, offset: u64, bytes: u64) -> Result<Self> {
        check_part("pinned", self.bytes, offset, bytes)?;
        Ok(Self { address: self.address + offset as usize, bytes })
    }
}

/// Owner of pinned host memory, readable and writable as typed values; freed on drop.
///
/// A copy enqueued from a part of it reads the bytes later: do not write that part until the copy has completed.
pub struct PinnedBuffer {
    device: Arc<dyn Device>,
    slice: PinnedSlice,
    is_owned: bool,
}

impl PinnedBuffer {
    /// Allocates zeroed pinned memory.
    pub fn new(device: Arc<dyn Device>, bytes: u64) -> Result<Self> {
        let slice = device.pinned_allocate(bytes)?;
        Ok(Self { device, slice, is_owned: true })
    }

    /// Frees the memory and says whether the device took it back; a drop cannot say so.
    pub fn free(mut self) -> Result<()> {
        self.is_owned = false;
        self.device.pinned_free(self.slice)
    }

    /// The range, for copies.
    pub fn slice(&self) -> PinnedSlice {
        self.slice
    }

    fn check<T: Plain>(&self, offset: u64, count: usize) -> Result<()> {
        let bytes = (count as u64).saturating_mul(size_of::<T>() as u64);
        check_part("pinned", self.slice.bytes, offset, bytes)?;
        if !(self.slice.address as u64 + offset).is_multiple_of(align_of::<T>() as u64) {
            return Err(Error::argument(format!("offset {offset} is not aligned for the element type")));
        }
        Ok(())
    }

    /// `count` values at a byte offset.
    pub fn values<T: Plain>(&self, offset: u64, count: usize) -> Result<&[T]> {
        self.check::<T>(offset, count)?;
        let first = (self.slice.address + offset as usize) as *const T;
        // SAFETY: checked above to lie aligned inside memory that this buffer owns; `Plain` allows any bytes.
        Ok(unsafe { std::slice::from_raw_parts(first, count) })
    }

    /// `count` values at a byte offset, to write.
    pub fn values_mut<T: Plain>(&mut self, offset: u64, count: usize) -> Result<&mut [T]> {
        self.check::<T>(offset, count)?;
        let first = (self.slice.address + offset as usize) as *mut T;
        // SAFETY: as in `values`, and `&mut self` makes this the only view.
        Ok(unsafe { std::slice::from_raw_parts_mut(first, count) })
    }
}

impl Drop for PinnedBuffer {
    fn drop(&mut self) {
        if self.is_owned {
            // A failing release leaves the memory with the device; there is nobody to tell in a drop.
            let _ = self.device.pinned_free(self.slice);
        }
    }
}
