//! Memory of the host device: blocks of its own with a limit, and the table of pinned host memory.
//!
//! What it does: allocation, accounting against the limit, refusal of what it did not hand out. What it does not:
//! waiting for streams; the device does that before a block goes away. Invariant: `used` is the sum of the blocks that
//! are live or wait for their stream, plus the physical pages that `vmm` charged. Lock order: a table, then nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::device::{DeviceKey, DeviceSlice, PinnedSlice};
use crate::error::{Error, Result, Status};
use crate::sync::Mutex;
use crate::sys::shm::{Anonymous, os_page_bytes};

/// Physical bytes of the device: what there is and what is used.
pub(in crate::device) struct Physical {
    limit_bytes: u64,
    used_bytes: AtomicU64,
}

impl Physical {
    /// None used.
    pub(in crate::device) fn new(limit_bytes: u64) -> Self {
        Self { limit_bytes, used_bytes: AtomicU64::new(0) }
    }

    /// All there is.
    pub(in crate::device) fn limit_bytes(&self) -> u64 {
        self.limit_bytes
    }

    /// Not used by anybody.
    pub(in crate::device) fn free_bytes(&self) -> u64 {
        self.limit_bytes - self.used_bytes.load(Ordering::Acquire)
    }

    /// Takes bytes or says what is missing.
    pub(in crate::device) fn charge(&self, bytes: u64) -> Result<()> {
        let take = |used: u64| used.checked_add(bytes).filter(|&sum| sum <= self.limit_bytes);
        let taken = self.used_bytes.fetch_update(Ordering::AcqRel, Ordering::Acquire, take);
        taken.map(drop).map_err(|used| {
            Error::new(
                Status::OutOfMemory,
                format!(
                    "{bytes} bytes of device memory requested, {} available of {}; free something",
                    self.limit_bytes - used,
                    self.limit_bytes
                ),
            )
        })
    }

    /// Gives bytes back.
    pub(in crate::device) fn discharge(&self, bytes: u64) {
        let before = self.used_bytes.fetch_sub(bytes, Ordering::AcqRel);
        debug_assert!(before >= bytes, "more given back than taken");
    }
}

/// One allocation.
pub(super) struct Block {
    memory: Anonymous,
    bytes: u64,
    is_async: bool,
}

/// All allocations of one device.
pub(super) struct Blocks {
    physical: Arc<Physical>,
    live: Mutex<BTreeMap<u64, Block>>,
    /// Bytes whose free waits in a stream.
    leaving_bytes: AtomicU64,
}

impl Blocks {
    /// None yet.
    pub(super) fn new(physical: Arc<Physical>) -> Self {
        Self { physical, live: Mutex::new(BTreeMap::new()), leaving_bytes: AtomicU64::new(0) }
    }

    /// Whether memory will come back by itself when the streams have done their work.
    pub(super) fn has_leaving(&self) -> bool {
        self.leaving_bytes.load(Ordering::Acquire) > 0
    }

    /// Zeroed memory.
    pub(super) fn allocate(&self, key: DeviceKey, bytes: u64, is_async: bool) -> Result<DeviceSlice> {
        if bytes == 0 {
            return Err(Error::argument("0 bytes of device memory requested; ask for at least 1"));
        }
        let Some(charged) = bytes.checked_next_multiple_of(os_page_bytes()) else {
            return Err(Error::argument(format!(
                "{bytes} bytes of device memory are more than addresses exist"
            )));
        };
        self.physical.charge(charged)?;
        let memory = Anonymous::new(bytes).inspect_err(|_| self.physical.discharge(charged))?;
        debug_assert_eq!(memory.bytes(), charged, "both round to the same page");
        let address = memory.address() as u64;
        self.live.lock().insert(address, Block { memory, bytes, is_async });
        Ok(DeviceSlice::new(key, address, bytes))
    }

    /// Takes a block out of the table, so that a second free of it is refused at once.
    pub(super) fn begin_free(&self, slice: DeviceSlice, only_async: bool) -> Result<Block> {
        let mut live = self.live.lock();
        match live.get(&slice.address()) {
            Some(block) if block.bytes == slice.bytes() && (block.is_async || !only_async) => {}
            Some(block) if block.bytes == slice.bytes() => {
                return Err(Error::argument("the memory was not allocated in stream order; use memory_free"));
            }
            _ => {
                return Err(Error::argument(format!(
                    "{} bytes at {:#x} are no live allocation of this device; free exactly what was allocated, once",
                    slice.bytes(),
                    slice.address()
                )));
            }
        }
        let block =
            live.remove(&slice.address()).ok_or_else(|| Error::internal("a block left under the lock"))?;
        self.leaving_bytes.fetch_add(block.memory.bytes(), Ordering::AcqRel);
        Ok(block)
    }

    /// Puts a block back whose free could not be enqueued.
    pub(super) fn undo_free(&self, block: Block) {
        self.leaving_bytes.fetch_sub(block.memory.bytes(), Ordering::AcqRel);
        self.live.lock().insert(block.memory.address() as u64, block);
    }

    /// Gives the memory back to the system.
    pub(super) fn finish_free(&self, block: Block) {
        let bytes = block.memory.bytes();
        drop(block);
        self.physical.discharge(bytes);
        self.leaving_bytes.fetch_sub(bytes, Ordering::AcqRel);
    }
}

/// Host memory that copies may use: ours and the caller's.
///
/// Nothing is locked into memory with mlock: no engine reads it behind the page tables' back, and the usual limit of
/// 8 MiB on locked memory would make real sizes fail.
#[derive(Default)]
pub(super) struct Pinned {
    table: Mutex<BTreeMap<usize, Entry>>,
}

struct Entry {
    bytes: u64,
    /// None for memory of the caller's.
    memory: Option<Anonymous>,
}

impl Pinned {
    /// Zeroed memory.
    pub(super) fn allocate(&self, bytes: u64) -> Result<PinnedSlice> {
        if bytes == 0 {
            return Err(Error::argument("0 bytes of pinned memory requested; ask for at least 1"));
        }
        let memory = Anonymous::new(bytes)?;
        let address = memory.address();
        self.table.lock().insert(address, Entry { bytes, memory: Some(memory) });
        Ok(PinnedSlice::new(address, bytes))
    }

    /// Notes memory of the caller's.
    pub(super) fn register(&self, address: usize, bytes: u64) -> Result<PinnedSlice> {
        let end = usize::try_from(bytes).ok().and_then(|bytes| address.checked_add(bytes));
        let Some(end) = end.filter(|_| address != 0 && bytes != 0) else {
            return Err(Error::argument(format!("{bytes} bytes at {address:#x} are no memory range")));
        };
        let mut table = self.table.lock();
        // Ranges do not overlap, so the last one that starts below our end is the only one that can reach us.
        if let Some((&start, entry)) = table.range(..end).next_back()
            && start + entry.bytes as usize > address
        {
            return Err(Error::new(
                Status::AlreadyExists,
                format!(
                    "{bytes} bytes at {address:#x} overlap pinned memory at {start:#x}; unregister it first"
                ),
            ));
        }
        table.insert(address, Entry { bytes, memory: None });
        Ok(PinnedSlice::new(address, bytes))
    }

    /// Whether the slice is exactly one that was allocated (or registered), before anything is waited for.
    pub(super) fn check(&self, slice: PinnedSlice, is_registered: bool) -> Result<()> {
        Self::find(&self.table.lock(), slice, is_registered)
    }

    /// Takes the slice out of the table, and gives our memory back.
    pub(super) fn remove(&self, slice: PinnedSlice, is_registered: bool) -> Result<()> {
        let mut table = self.table.lock();
        Self::find(&table, slice, is_registered)?;
        let entry = table.remove(&slice.address());
        drop(table);
        // The unmapping of our memory happens here, outside the lock.
        drop(entry.and_then(|entry| entry.memory));
        Ok(())
    }

    fn find(table: &BTreeMap<usize, Entry>, slice: PinnedSlice, is_registered: bool) -> Result<()> {
        match table.get(&slice.address()) {
            Some(entry) if entry.bytes == slice.bytes() && entry.memory.is_none() == is_registered => Ok(()),
            _ => Err(Error::argument(format!(
                "{} bytes at {:#x} are not {} pinned memory of this device",
                slice.bytes(),
                slice.address(),
                if is_registered { "registered" } else { "allocated" }
            ))),
        }
    }
}
