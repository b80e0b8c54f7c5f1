//! Pinned host memory: for copies that run beside the host's own work.
//!
//! What it does not: pool or pin; `memory::PinnedPool` does. Invariant: an address that goes out here lies inside
//! memory that is pinned until it is freed.

use std::ffi::{c_char, c_void};

use super::config::{self, CStruct, CValue, Out, OutStruct};
use super::guard::guard_on;
use super::stream;
use super::text;
use super::types::{kavern_manager, kavern_status};
use crate::device::HostRange;
use crate::error::{Error, Status};
use crate::memory::PinnedStatistics;

/// What the pool of pinned host memory has and did. You set struct_size; the call fills the rest.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kavern_pinned_statistics {
    /// sizeof(kavern_pinned_statistics).
    pub struct_size: u32,
    /// NUMA node that memory is asked to lie on, UINT32_MAX for none.
    pub node: u32,
    /// Bytes of all chunks that are held.
    pub held_bytes: u64,
    /// Chunks.
    pub chunks: u64,
    /// Bytes that were asked for and not freed.
    pub live_bytes: u64,
    /// Ranges of them.
    pub live_ranges: u64,
    /// Bytes that live ranges have above what was asked for.
    pub slack_bytes: u64,
    /// Bytes of freed ranges whose stream may still copy.
    pub leaving_bytes: u64,
    /// Bytes that are free.
    pub free_bytes: u64,
    /// The most of them in a row.
    pub largest_free_bytes: u64,
    /// Bytes of yours that are pinned.
    pub registered_bytes: u64,
    /// Pieces of them.
    pub registered_pieces: u64,
    /// Bytes that are still to be pinned ahead.
    pub ahead_bytes: u64,
    /// Requests that what was held served.
    pub hits: u64,
    /// Requests that needed a new chunk.
    pub misses: u64,
}

// SAFETY: numbers only.
unsafe impl CValue for kavern_pinned_statistics {}
// SAFETY: begins with struct_size.
unsafe impl CStruct for kavern_pinned_statistics {
    const NAME: &'static str = "kavern_pinned_statistics";
    const FIRST_BYTES: usize = 112;

    fn defaults() -> Self {
        config::zeroed()
    }
}

impl From<PinnedStatistics> for kavern_pinned_statistics {
    fn from(totals: PinnedStatistics) -> Self {
        Self {
            struct_size: 0,
            node: totals.node.unwrap_or(u32::MAX),
            held_bytes: totals.held_bytes,
            chunks: totals.chunks,
            live_bytes: totals.live_bytes,
            live_ranges: totals.live,
            slack_bytes: totals.slack_bytes,
            leaving_bytes: totals.leaving_bytes,
            free_bytes: totals.free_bytes,
            largest_free_bytes: totals.largest_free_bytes,
            registered_bytes: totals.registered_bytes,
            registered_pieces: totals.registered_pieces,
            ahead_bytes: totals.ahead_bytes,
            hits: totals.hits,
            misses: totals.misses,
        }
    }
}

/// Gives pinned host memory of exactly so many bytes, whose content is whatever was there before.
///
/// Aligned to 256 bytes, from 64 KiB on to 4096. A range never reaches over two registrations, so one copy may touch
/// all of it. Memory is made in chunks of up to 1 GiB, near the device, by several threads; a chunk serves many ranges.
/// Errors: KAVERN_ERR_INVALID_ARGUMENT for 0 bytes, KAVERN_ERR_OUT_OF_HOST_MEMORY with what was asked and what is left,
/// KAVERN_ERR_NULL_POINTER, KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_DEVICE.
/// Threads: any; blocks while a chunk is made, or is on its way after kavern_pinned_reserve.
/// Owner: free with kavern_pinned_free. `tag` says for what, in reports; null is fine.
/// Since: 0.1
///
/// # Safety
/// `tag` must be null or a text that ends with a zero; `out` must be null or point to a writable pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_pinned_alloc(
    manager: *mut kavern_manager,
    bytes: u64,
    tag: *const c_char,
    out: *mut *mut c_void,
) -> kavern_status {
    guard_on("kavern_pinned_alloc", manager, |manager| {
        // SAFETY: the header asks for a text or null.
        let tag = unsafe { text::read_optional(tag, "tag") }?;
        // SAFETY: the header asks for a writable pointer or null.
        let out = unsafe { Out::new(out, "out") }?;
        let slice = manager.pinned().allocate(bytes, tag.unwrap_or("pinned"))?;
        out.write(std::ptr::with_exposed_provenance_mut(slice.address()));
        Ok(Status::Ok)
    })
}

/// Takes pinned host memory back, at once or when a stream is past its copies.
///
/// Stream: NULL says that no copy touches it any more; else it comes back when the stream is past all that it was given
/// so far. KAVERN_STREAM_DEFAULT is the default stream.
/// Errors: KAVERN_ERR_INVALID_ARGUMENT for what is no pinned memory of this manager, KAVERN_ERR_WRONG_STATE for what
/// was freed before and is still waiting, and for a stream that is being captured, or the default stream beside a
/// capture that it waits for, KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_DEVICE; the memory then stays yours.
/// Threads: any; does not block.
/// Since: 0.1
///
/// # Safety
/// None beyond handles or null; the memory must not be touched afterwards.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_pinned_free(
    manager: *mut kavern_manager,
    address: *mut c_void,
    stream: *mut c_void,
) -> kavern_status {
    guard_on("kavern_pinned_free", manager, |manager| {
        if address.is_null() {
            return Err(Error::new(Status::NullPointer, "address is null"));
        }
        let address = address.addr() as u64;
        if stream.is_null() {
            manager.pinned().free(address, None)?;
        } else {
            let stream = stream::resolve(manager, stream)?;
            manager.pinned().free(address, Some(*stream))?;
        }
        Ok(Status::Ok)
    })
}

/// Pins host memory of yours, all of it or nothing.
///
/// Units: `piece_bytes` is the most that is pinned at a time, 0 for all at once. A driver refuses a copy that reaches
/// from one piece into the next, so pieces suit only copies that stay inside one; 0 suits any.
/// Errors: KAVERN_ERR_INVALID_ARGUMENT, KAVERN_ERR_ALREADY_EXISTS for memory that is pinned already,
/// KAVERN_ERR_OUT_OF_HOST_MEMORY above the manager's limit, KAVERN_ERR_NULL_POINTER, KAVERN_ERR_INVALID_HANDLE,
/// KAVERN_ERR_DEVICE.
/// Threads: any; blocks while it is pinned.
/// Owner: it stays yours; unregister it before you free it.
/// Since: 0.1
///
/// # Safety
/// `bytes` bytes at `address` must be readable and writable until kavern_pinned_unregister.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_pinned_register(
    manager: *mut kavern_manager,
    address: *mut c_void,
    bytes: u64,
    piece_bytes: u64,
) -> kavern_status {
    guard_on("kavern_pinned_register", manager, |manager| {
        if address.is_null() {
            return Err(Error::new(Status::NullPointer, "address is null"));
        }
        // SAFETY: the header asks for memory that stays until it is unregistered.
        let range = unsafe { HostRange::new(address.expose_provenance(), bytes) }?;
        manager.pinned().register(range, piece_bytes, "registered")?;
        Ok(Status::Ok)
    })
}

/// Unpins memory that was registered with this address.
///
/// Errors: KAVERN_ERR_INVALID_ARGUMENT if none was, KAVERN_ERR_NULL_POINTER, KAVERN_ERR_INVALID_HANDLE,
/// KAVERN_ERR_DEVICE; what is still pinned can be tried again.
/// Threads: any; blocks while copies read it.
/// Since: 0.1
///
/// # Safety
/// None beyond a handle or null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_pinned_unregister(
    manager: *mut kavern_manager,
    address: *mut c_void,
) -> kavern_status {
    guard_on("kavern_pinned_unregister", manager, |manager| {
        if address.is_null() {
            return Err(Error::new(Status::NullPointer, "address is null"));
        }
        manager.pinned().unregister(address.addr() as u64)?;
        Ok(Status::Ok)
    })
}

/// Has at least so many more bytes pinned ahead, in the background.
///
/// Chunks of 1 GiB serve one by one, the first long before the last; kavern_pinned_alloc waits for the next chunk
/// instead of making one. What stops it is said in the log, and kavern_pinned_alloc then makes chunks of its own.
/// Errors: KAVERN_ERR_OUT_OF_HOST_MEMORY if that is more than the machine has beside what is pinned already,
/// KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_NULL_POINTER, KAVERN_ERR_OS.
/// Threads: any; does not block, but on a simulated device.
/// Since: 0.1
///
/// # Safety
/// None beyond a handle or null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_pinned_reserve(manager: *mut kavern_manager, bytes: u64) -> kavern_status {
    guard_on("kavern_pinned_reserve", manager, |manager| {
        manager.pinned().reserve(bytes)?;
        Ok(Status::Ok)
    })
}

/// Gives back the chunks of pinned host memory of which nothing is in use.
///
/// Units: `freed` receives bytes and may be null.
/// Errors: KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_NULL_POINTER, KAVERN_ERR_INVALID_ARGUMENT.
/// Threads: any; blocks while the device lets go of them.
/// Since: 0.1
///
/// # Safety
/// `freed` must be null or point to a writable value.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_pinned_trim(manager: *mut kavern_manager, freed: *mut u64) -> kavern_status {
    guard_on("kavern_pinned_trim", manager, |manager| {
        // SAFETY: the header asks for a writable value or null.
        let freed = unsafe { Out::optional(freed, "freed") }?;
        let bytes = manager.pinned().trim();
        if let Some(freed) = freed {
            freed.write(bytes);
        }
        Ok(Status::Ok)
    })
}

/// Tells what the pool of pinned host memory has and did.
///
/// Errors: KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_NULL_POINTER, KAVERN_ERR_STRUCT_SIZE.
/// Threads: any; does not block.
/// Since: 0.1
///
/// # Safety
/// `out` must be null or point to as many writable bytes as its struct_size says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_pinned_stats(
    manager: *const kavern_manager,
    out: *mut kavern_pinned_statistics,
) -> kavern_status {
    guard_on("kavern_pinned_stats", manager, |manager| {
        // SAFETY: the header asks for a struct that says its size, or null.
        let out = unsafe { OutStruct::new(out, "out") }?;
        out.write(&manager.pinned().statistics().into());
        Ok(Status::Ok)
    })
}
