//! Owners of pinned host memory that the device did not allocate: ours, touched first, and the caller's.
//!
//! What it does: registers with the device and takes that back. What it does not: decide how much at a time. Drivers
//! refuse a copy that reaches from one registration into the next (CUDA: INVALID_VALUE, seen on an H200), so a piece is
//! what one copy may touch. Invariant: memory of ours is unmapped only after the device has let go of it.

use std::sync::Arc;

use super::{Device, PinnedSlice};
use crate::error::{Error, Result};
use crate::sys::numa::HostMemory;
use crate::sys::reserve;

/// Owner of memory that was mapped by us and is pinned as one piece.
pub struct PinnedRegion {
    device: Arc<dyn Device>,
    slice: PinnedSlice,
    /// There until the end.
    memory: Option<HostMemory>,
}

impl PinnedRegion {
    /// Pins it.
    pub fn new(device: &Arc<dyn Device>, memory: HostMemory) -> Result<Self> {
        // SAFETY: the memory is ours, and `give_back` unmaps it only after it was unregistered.
        let slice = unsafe { device.pinned_register(memory.address(), memory.bytes()) }?;
        Ok(Self { device: Arc::clone(device), slice, memory: Some(memory) })
    }

    /// All of it, for copies.
    pub fn slice(&self) -> PinnedSlice {
        self.slice
    }

    /// Waits for copies, unpins and unmaps; says whether the device let go of it. Blocks.
    pub fn free(mut self) -> Result<()> {
        self.give_back()
    }

    fn give_back(&mut self) -> Result<()> {
        let Some(memory) = self.memory.take() else { return Ok(()) };
        let freed = self.device.pinned_unregister(self.slice);
        if freed.is_err() {
            // The device may still write there, so the addresses must never be anybody else's.
            memory.leak();
        }
        freed
    }
}

impl Drop for PinnedRegion {
    fn drop(&mut self) {
        // There is nobody to tell in a drop.
        let _ = self.give_back();
    }
}

/// Host memory of the caller's.
#[derive(Clone, Copy, Debug)]
pub struct HostRange {
    address: usize,
    bytes: u64,
}

impl HostRange {
    /// A range of the caller's.
    ///
    /// # Safety
    /// The range must be readable and writable until its registration has gone.
    pub unsafe fn new(address: usize, bytes: u64) -> Result<Self> {
        match usize::try_from(bytes).ok().and_then(|bytes| address.checked_add(bytes)) {
            Some(_) if address != 0 && bytes != 0 => Ok(Self { address, bytes }),
            _ => Err(Error::argument(format!("{bytes} bytes at {address:#x} are no memory range"))),
        }
    }

    /// First byte.
    pub fn address(&self) -> usize {
        self.address
    }

    /// Length.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// Owner of the pinning of a caller's range, piece by piece.
pub struct Registration {
    device: Arc<dyn Device>,
    range: HostRange,
    pieces: Vec<PinnedSlice>,
}

impl Registration {
    /// Pins the range in pieces of at most so many bytes, or none of it.
    pub fn new(device: &Arc<dyn Device>, range: HostRange, piece_bytes: u64) -> Result<Self> {
        let count = range.bytes.div_ceil(piece_bytes.max(1));
        let pieces = reserve::room(usize::try_from(count).unwrap_or(usize::MAX))?;
        // Owned from here on: a piece that is refused gives those before it back.
        let mut made = Self { device: Arc::clone(device), range, pieces };
        for index in 0..count {
            let offset = index * piece_bytes;
            let bytes = piece_bytes.min(range.bytes - offset);
            // SAFETY: whoever made the range promised that it stays until the registration has gone.
            let piece = unsafe { device.pinned_register(range.address + offset as usize, bytes) };
            let doing = || format!("piece {} of {count}, {bytes} bytes", index + 1);
            made.pieces.push(piece.map_err(|error| error.context(&doing()))?);
        }
        Ok(made)
    }

    /// The range.
    pub fn range(&self) -> HostRange {
        self.range
    }

    /// Pieces that are pinned.
    pub fn pieces(&self) -> usize {
        self.pieces.len()
    }

    /// Unpins the range; after a refusal the pieces that are left can be tried again. Blocks.
    pub fn end(&mut self) -> Result<()> {
        while let Some(&piece) = self.pieces.last() {
            self.device.pinned_unregister(piece)?;
            self.pieces.pop();
        }
        Ok(())
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        // There is nobody to tell in a drop; the memory is the caller's and stays.
        let _ = self.end();
    }
}
