//! The plainest strategy: each allocation straight from the device, each free straight back.
//!
//! What it does not: reuse anything; it suits a few large, long-lived allocations. Invariant: none of its own.

use super::Strategy;
use crate::device::{Device, DeviceSlice};
use crate::error::Result;

struct Direct;

/// Makes one.
pub(super) fn make() -> Box<dyn Strategy> {
    Box::new(Direct)
}

impl Strategy for Direct {
    fn allocate(&self, device: &dyn Device, bytes: u64) -> Result<DeviceSlice> {
        device.memory_allocate(bytes)
    }

    fn free(&self, device: &dyn Device, slice: DeviceSlice) -> Result<()> {
        device.memory_free(slice)
    }
}
