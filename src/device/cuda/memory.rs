//! Memory of a GPU and pinned memory of the host: calls of the driver, and tables of what was handed out.
//!
//! What it does: allocates, frees, refuses what it did not hand out. What it does not: virtual memory (`vmm`).
//! Invariant: an entry of a table is memory that the driver has given and not taken back; a failed call leaves the
//! tables as before. Lock order: a table, then nothing; the driver is not called under it.

use std::collections::BTreeMap;
use std::ffi::{c_uint, c_void};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::context::{Context, Entered};
use super::driver::{Managed, Raw};
use crate::device::{DeviceKey, DeviceSlice, PinnedSlice};
use crate::error::{Error, Result, Status};
use crate::sync::Mutex;

/// Alignment that the driver promises for every allocation.
pub(super) const ALIGNMENT: u64 = 256;

/// CU_MEM_ATTACH_GLOBAL: every stream may touch it.
const ATTACH_GLOBAL: c_uint = 1;

/// CU_MEMHOSTALLOC_PORTABLE and CU_MEMHOSTREGISTER_PORTABLE.
const PORTABLE: c_uint = 1;

#[derive(Clone, Copy)]
struct Block {
    bytes: u64,
    is_async: bool,
    is_managed: bool,
}

/// All allocations of one instance.
#[derive(Default)]
pub(super) struct Blocks {
    live: Mutex<BTreeMap<u64, Block>>,
    /// Whether memory was ever freed in stream order, so that waiting may bring some back.
    has_freed_async: AtomicBool,
    /// Bytes of the managed blocks.
    managed_bytes: AtomicU64,
}

fn check_bytes(bytes: u64, place: &str) -> Result<usize> {
    if bytes == 0 {
        return Err(Error::argument(format!("0 bytes of {place} memory requested; ask for at least 1")));
    }
    usize::try_from(bytes)
        .map_err(|_| Error::argument(format!("{bytes} bytes of {place} memory are too many")))
}

/// Says how much there was, where the driver only says no.
fn say_missing(entered: &Entered<'_>, bytes: u64, error: Error) -> Error {
    if error.status != Status::OutOfMemory {
        return error;
    }
    let free = info(entered).map_or(0, |(free, _)| free);
    let text = format!("{bytes} bytes of device memory requested, {free} available; free something");
    Error::new(Status::OutOfMemory, text)
}

/// Free and total bytes.
pub(super) fn info(entered: &Entered<'_>) -> Result<(u64, u64)> {
    let (mut free, mut total) = (0, 0);
    // SAFETY: both results are writable, the context is current.
    let code = unsafe { (entered.context().driver.api.cuMemGetInfo_v2)(&mut free, &mut total) };
    entered.done("cuMemGetInfo", code).map(|()| (free as u64, total as u64))
}

impl Blocks {
    /// Memory; in stream order if a stream is given. `settle` waits for the streams in which memory was freed.
    pub(super) fn allocate(
        &self,
        context: &Context,
        key: DeviceKey,
        bytes: u64,
        stream: Option<Raw>,
        settle: impl FnOnce(),
    ) -> Result<DeviceSlice> {
        let size = check_bytes(bytes, "device")?;
        let entered = context.enter_relaxed()?;
        let mut taken = take(&entered, size, stream);
        let is_full = |error: &Error| error.status == Status::OutOfMemory;
        if taken.as_ref().is_err_and(is_full) && self.has_freed_async.load(Ordering::Relaxed) {
            // Memory whose free waits in a stream is only a wait away.
            settle();
            taken = take(&entered, size, stream);
        }
        let address = taken.map_err(|error| say_missing(&entered, bytes, error))?;
        self.live.lock().insert(address, Block { bytes, is_async: stream.is_some(), is_managed: false });
        Ok(DeviceSlice::new(key, address, bytes))
    }

    /// Memory that the host reaches too, never more than is free: the driver itself would let it grow beyond the GPU's
    /// memory and move pages to and fro.
    pub(super) fn allocate_managed(
        &self,
        context: &Context,
        key: DeviceKey,
        bytes: u64,
        managed: Managed,
    ) -> Result<DeviceSlice> {
        let size = check_bytes(bytes, "managed")?;
        let entered = context.enter_relaxed()?;
        let (free, _) = info(&entered)?;
        // Pages come when they are touched, so what was given out so far may still be missing from the free bytes.
        let given = self.managed_bytes.fetch_add(bytes, Ordering::AcqRel);
        let taken = if given.checked_add(bytes).is_some_and(|sum| sum <= free) {
            let mut address = 0;
            // SAFETY: the result is writable, the context is current.
            let code = unsafe { managed(&mut address, size, ATTACH_GLOBAL) };
            entered.done("cuMemAllocManaged", code).map(|()| address)
        } else {
            let text = format!(
                "{bytes} bytes of managed memory requested next to {given}, {free} free; free something"
            );
            Err(Error::new(Status::OutOfMemory, text))
        };
        let address = taken.inspect_err(|_| {
            self.managed_bytes.fetch_sub(bytes, Ordering::AcqRel);
        })?;
        self.live.lock().insert(address, Block { bytes, is_async: false, is_managed: true });
        Ok(DeviceSlice::new(key, address, bytes))
    }

    /// Takes an entry out, so that a second free of it is refused at once.
    fn begin_free(&self, slice: DeviceSlice, only_async: bool) -> Result<Block> {
        let mut live = self.live.lock();
        match live.get(&slice.address()).copied() {
            Some(block) if block.bytes == slice.bytes() && (block.is_async || !only_async) => {
                live.remove(&slice.address());
                Ok(block)
            }
            Some(block) if block.bytes == slice.bytes() => {
                Err(Error::argument("the memory was not allocated in stream order; use memory_free"))
            }
            _ => Err(Error::argument(format!(
                "{} bytes at {:#x} are no live allocation of this device; free exactly what was allocated, once",
                slice.bytes(),
                slice.address()
            ))),
        }
    }

    fn undo_free(&self, slice: DeviceSlice, block: Block) {
        self.live.lock().insert(slice.address(), block);
    }

    /// Gives memory back once all work is over. The driver waits by itself for plain and managed memory, for nothing
    /// where the memory came in stream order. `settle` waits before, so that other threads are not held up.
    pub(super) fn free(&self, context: &Context, slice: DeviceSlice, settle: impl FnOnce()) -> Result<()> {
        let entered = context.enter_relaxed()?;
        let block = self.begin_free(slice, false)?;
        settle();
        let outlasted = if block.is_async { entered.outlast() } else { Ok(()) };
        let freed = outlasted.and_then(|()| {
            // SAFETY: the driver gave this address, it leaves the table here, and goes when no work touches it.
            let code = unsafe { (context.driver.api.cuMemFree_v2)(slice.address()) };
            entered.done("cuMemFree", code)
        });
        if freed.is_ok() && block.is_managed {
            self.managed_bytes.fetch_sub(block.bytes, Ordering::AcqRel);
        }
        freed.inspect_err(|_| self.undo_free(slice, block))
    }

    /// Gives memory back when the stream gets there.
    pub(super) fn free_async(&self, context: &Context, slice: DeviceSlice, stream: Raw) -> Result<()> {
        let entered = context.enter_relaxed()?;
        let block = self.begin_free(slice, true)?;
        self.has_freed_async.store(true, Ordering::Relaxed);
        // SAFETY: the driver gave this address in stream order, and it leaves the table here.
        let code = unsafe { (context.driver.api.cuMemFreeAsync)(slice.address(), stream) };
        entered.done("cuMemFreeAsync", code).inspect_err(|_| self.undo_free(slice, block))
    }

    /// Gives everything back, once no work is left.
    pub(super) fn clear(&self, entered: &Entered<'_>) {
        let live = std::mem::take(&mut *self.live.lock());
        for &address in live.keys() {
            // SAFETY: the driver gave this address, and its owner closes the device.
            let code = unsafe { (entered.context().driver.api.cuMemFree_v2)(address) };
            let _ = entered.done("cuMemFree", code);
        }
    }
}

fn take(entered: &Entered<'_>, size: usize, stream: Option<Raw>) -> Result<u64> {
    let api = &entered.context().driver.api;
    let mut address = 0;
    match stream {
        None => {
            // SAFETY: the result is writable, the context is current.
            let code = unsafe { (api.cuMemAlloc_v2)(&mut address, size) };
            entered.done("cuMemAlloc", code)?;
        }
        Some(stream) => {
            // SAFETY: as above; the stream was looked up.
            let code = unsafe { (api.cuMemAllocAsync)(&mut address, size, stream) };
            entered.done("cuMemAllocAsync", code)?;
        }
    }
    Ok(address)
}

#[derive(Clone, Copy)]
struct Pin {
    bytes: u64,
    is_registered: bool,
}

/// Page-locked host memory of one instance: ours and the caller's.
#[derive(Default)]
pub(super) struct Pinned {
    table: Mutex<BTreeMap<usize, Pin>>,
}

impl Pinned {
    /// Zeroed memory.
    pub(super) fn allocate(&self, context: &Context, bytes: u64) -> Result<PinnedSlice> {
        let size = check_bytes(bytes, "pinned")?;
        let entered = context.enter_relaxed()?;
        let mut address = std::ptr::null_mut::<c_void>();
        // SAFETY: the result is writable, the context is current.
        let code = unsafe { (context.driver.api.cuMemHostAlloc)(&mut address, size, PORTABLE) };
        entered.done("cuMemHostAlloc", code).map_err(|error| match error.status {
            Status::OutOfMemory => Error::new(
                Status::OutOfHostMemory,
                format!(
                    "{bytes} bytes of pinned memory requested, the system has not so many; free something"
                ),
            ),
            _ => error,
        })?;
        // SAFETY: the driver has just given so many bytes, and nobody else knows of them.
        unsafe { std::ptr::write_bytes(address.cast::<u8>(), 0, size) };
        self.table.lock().insert(address as usize, Pin { bytes, is_registered: false });
        Ok(PinnedSlice::new(address as usize, bytes))
    }

    /// Page-locks memory of the caller's.
    pub(super) fn register(&self, context: &Context, address: usize, bytes: u64) -> Result<PinnedSlice> {
        let entered = context.enter_relaxed()?;
        let end = usize::try_from(bytes).ok().and_then(|bytes| address.checked_add(bytes));
        let Some(end) = end.filter(|_| address != 0 && bytes != 0) else {
            return Err(Error::argument(format!("{bytes} bytes at {address:#x} are no memory range")));
        };
        {
            let mut table = self.table.lock();
            // Ranges do not overlap, so the last one that starts below our end is the only one that can reach us.
            if let Some((&start, pin)) = table.range(..end).next_back()
                && start + pin.bytes as usize > address
            {
                let text = format!(
                    "{bytes} bytes at {address:#x} overlap pinned memory at {start:#x}; unregister it first"
                );
                return Err(Error::new(Status::AlreadyExists, text));
            }
            // Entered before the driver is asked, so that two threads cannot register one range.
            table.insert(address, Pin { bytes, is_registered: true });
        }
        let at = address as *mut c_void;
        // SAFETY: the caller vouches for the range until it is unregistered.
        let code = unsafe { (context.driver.api.cuMemHostRegister_v2)(at, end - address, PORTABLE) };
        if let Err(error) = entered.done("cuMemHostRegister", code) {
            self.table.lock().remove(&address);
            return Err(error);
        }
        Ok(PinnedSlice::new(address, bytes))
    }

    /// Gives back what was allocated, or unlocks what was registered, once all work is over: the driver waits by
    /// itself. `settle` as for [`Blocks::free`].
    pub(super) fn remove(
        &self,
        context: &Context,
        slice: PinnedSlice,
        is_registered: bool,
        settle: impl FnOnce(),
    ) -> Result<()> {
        let entered = context.enter_relaxed()?;
        let pin = {
            let mut table = self.table.lock();
            match table.get(&slice.address()).copied() {
                Some(pin) if pin.bytes == slice.bytes() && pin.is_registered == is_registered => {
                    table.remove(&slice.address());
                    pin
                }
                _ => {
                    return Err(Error::argument(format!(
                        "{} bytes at {:#x} are not {} pinned memory of this device",
                        slice.bytes(),
                        slice.address(),
                        if is_registered { "registered" } else { "allocated" }
                    )));
                }
            }
        };
        settle();
        unpin(&entered, slice.address(), pin).inspect_err(|_| {
            self.table.lock().insert(slice.address(), pin);
        })
    }

    /// Gives everything back, once no work is left.
    pub(super) fn clear(&self, entered: &Entered<'_>) {
        let table = std::mem::take(&mut *self.table.lock());
        for (address, pin) in table {
            let _ = unpin(entered, address, pin);
        }
    }
}

fn unpin(entered: &Entered<'_>, address: usize, pin: Pin) -> Result<()> {
    let api = &entered.context().driver.api;
    let at = address as *mut c_void;
    if pin.is_registered {
        // SAFETY: the range was registered with this address; the driver waits for the work that touches it.
        let code = unsafe { (api.cuMemHostUnregister)(at) };
        return entered.done("cuMemHostUnregister", code);
    }
    // SAFETY: the driver gave this address, and waits for the work that touches it.
    let code = unsafe { (api.cuMemFreeHost)(at) };
    entered.done("cuMemFreeHost", code)
}
