//! Device memory in stream order: allocate and free.
//!
//! What it does: serves the common pair from this thread's front cache without looking the handle up; resolves handle
//! and stream where that cannot. What it does not: know sizes, pages or streams; the heap does.
//! Invariants: an address is written out only when its block is the caller's; what is done before the guard calls
//! nothing, and so cannot panic.

use std::ffi::c_void;

use super::config::{self, Out, OutArray};
use super::guard::{guard_handle, guard_on, has_planted_fault};
use super::handle;
use super::stream;
use super::types::{kavern_manager, kavern_status};
use crate::error::{Result, Status};
use crate::memory::front_cache::{self, Answer, Key};
use crate::sys::fork::is_forked_child;

fn key(manager: *const kavern_manager, stream: *mut c_void) -> Key {
    Key { token: manager.addr() as u64, stream: config::stream_value(stream) }
}

/// The way past the front cache; afterwards this thread has one for the stream.
#[cold]
fn allocate_slowly(
    manager: *const kavern_manager,
    stream: *mut c_void,
    has_lease: bool,
    request: (u64, u64, u64),
) -> Result<u64> {
    let object = handle::get(manager)?;
    let resolved = stream::resolve(&object, stream)?;
    let heap = object.heap()?;
    let (bytes, alignment, tag) = request;
    let key = key(manager, stream);
    // Without a front cache each call goes through the guard, where a planted fault waits for it.
    if !has_lease && !has_planted_fault() {
        heap.adopt(key, handle::live_word(manager)?, *resolved)?;
        if let Answer::Done(address) = front_cache::allocate(key, bytes, alignment, tag, |address| address) {
            return Ok(address);
        }
    }
    let address = heap.allocate(*resolved, bytes, alignment, tag)?;
    heap.prefill(key, *resolved, bytes, alignment);
    Ok(address)
}

fn allocate(manager: *const kavern_manager, stream: *mut c_void, request: (u64, u64, u64)) -> Result<u64> {
    let (bytes, alignment, tag) = request;
    match front_cache::allocate(key(manager, stream), bytes, alignment, tag, |address| address) {
        Answer::Done(address) => Ok(address),
        Answer::Miss => allocate_slowly(manager, stream, true, (bytes, alignment, tag)),
        Answer::NoLease => allocate_slowly(manager, stream, false, (bytes, alignment, tag)),
    }
}

#[cold]
fn free_slowly(
    manager: *const kavern_manager,
    address: u64,
    stream: *mut c_void,
    has_lease: bool,
) -> Result<()> {
    let object = handle::get(manager)?;
    let resolved = stream::resolve(&object, stream)?;
    let heap = object.heap()?;
    heap.free(*resolved, address)?;
    // Without a front cache each call goes through the guard, where a planted fault waits for it.
    if !has_lease && !has_planted_fault() {
        // The block is free; that this thread has no cache for the stream is no failure of it.
        let _ = handle::live_word(manager).and_then(|word| heap.adopt(key(manager, stream), word, *resolved));
    }
    Ok(())
}

fn free(manager: *const kavern_manager, address: u64, stream: *mut c_void) -> Result<()> {
    match front_cache::free(key(manager, stream), address, || ()) {
        Answer::Done(()) => Ok(()),
        Answer::Miss => free_slowly(manager, address, stream, true),
        Answer::NoLease => free_slowly(manager, address, stream, false),
    }
}

/// Allocates device memory for work that follows on a stream.
///
/// The bytes are those that were there before. `alignment` is a power of two up to 2 MiB, 0 for 256; `tag` an id of
/// kavern_tag or 0. A thread that allocates and frees on the same stream is served from a cache of its own: no lock, no
/// call of the driver.
/// Stream: usable at once by work enqueued on `stream`; elsewhere after an order of yours, told by kavern_record_use.
/// Errors: KAVERN_ERR_INVALID_ARGUMENT (0 bytes, alignment), KAVERN_ERR_OUT_OF_MEMORY with a report in the text,
/// KAVERN_ERR_STALE_ID (tag), KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_NULL_POINTER, KAVERN_ERR_WRONG_STATE (during
/// a capture, on a device that cannot map memory: each allocation comes straight from it), KAVERN_ERR_LIMIT_REACHED
/// (65,536 streams are in use or have live blocks), KAVERN_ERR_DEVICE.
/// Threads: any; blocks only where memory is short or new pages are mapped.
/// Owner: free with kavern_free.
/// Since: 0.1
///
/// # Safety
/// `out` must be null or point to a writable value; a registered stream must be alive.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_alloc(
    manager: *mut kavern_manager,
    bytes: u64,
    alignment: u64,
    stream: *mut c_void,
    tag: u64,
    out: *mut u64,
) -> kavern_status {
    // What is refused is refused below, so that no text of a refusal stands in this path.
    if !is_forked_child() && !out.is_null() && out.is_aligned() {
        // SAFETY: the header asks for a writable value or null; null and alignment were looked at.
        let give = |address| unsafe { out.write(address) };
        if front_cache::allocate_at_hand(key(manager, stream), bytes, alignment, tag, give).is_some() {
            return Status::Ok as kavern_status;
        }
    }
    allocate_guarded(manager, bytes, alignment, stream, tag, out)
}

/// What `kavern_alloc` does where the front cache does not serve. It takes the same in the same places and unwinds as
/// little, so that the way here is a jump and the common case saves no registers for it.
#[cold]
#[inline(never)]
extern "C" fn allocate_guarded(
    manager: *mut kavern_manager,
    bytes: u64,
    alignment: u64,
    stream: *mut c_void,
    tag: u64,
    out: *mut u64,
) -> kavern_status {
    guard_handle("kavern_alloc", manager, || {
        // SAFETY: what the header asks of the caller of `kavern_alloc`.
        let out = unsafe { Out::new(out, "out") }?;
        out.write(allocate(manager, stream, (bytes, alignment, tag))?);
        Ok(Status::Ok)
    })
}

/// Allocates as kavern_alloc and enqueues the filling with zeros on the stream.
///
/// Errors: as kavern_alloc.
/// Threads: any; as kavern_alloc.
/// Owner: free with kavern_free.
/// Since: 0.1
///
/// # Safety
/// As kavern_alloc.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_alloc_zeroed(
    manager: *mut kavern_manager,
    bytes: u64,
    alignment: u64,
    stream: *mut c_void,
    tag: u64,
    out: *mut u64,
) -> kavern_status {
    guard_on("kavern_alloc_zeroed", manager, |object| {
        // SAFETY: the header asks for a writable value or null.
        let out = unsafe { Out::new(out, "out") }?;
        let resolved = stream::resolve(object, stream)?;
        let address = allocate(manager, stream, (bytes, alignment, tag))?;
        let heap = object.heap()?;
        heap.zero(*resolved, address).inspect_err(|_| heap.take_unused(*resolved, address))?;
        out.write(address);
        Ok(Status::Ok)
    })
}

/// Frees memory once the work is done that was enqueued on the stream before this call.
///
/// `address` 0 does nothing. The stream may be another than that of the allocation, if it is ordered after all use.
/// Errors: KAVERN_ERR_INVALID_ARGUMENT (freed before, never allocated, of another manager, not the first byte),
/// KAVERN_ERR_INVALID_HANDLE (manager, stream), KAVERN_ERR_IN_USE (pinned), KAVERN_ERR_NULL_POINTER; KAVERN_ERR_DEVICE
/// or KAVERN_ERR_OUT_OF_MEMORY where the device marks no point on a stream that used the block (kavern_record_use), and
/// KAVERN_ERR_WRONG_STATE beside a capture on a device that cannot map memory. With all of these it is live as before.
/// Two threads that free one address at the same instant may both hear that it was done.
/// Threads: any; does not block.
/// Since: 0.1
///
/// # Safety
/// No work that is not ordered before this point of the stream may use the memory any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_free(
    manager: *mut kavern_manager,
    address: u64,
    stream: *mut c_void,
) -> kavern_status {
    if !is_forked_child() && front_cache::free_at_hand(key(manager, stream), address).is_some() {
        return Status::Ok as kavern_status;
    }
    free_guarded(manager, address, stream)
}

/// What `kavern_free` does where the front cache does not serve; see `allocate_guarded`.
#[cold]
#[inline(never)]
extern "C" fn free_guarded(manager: *mut kavern_manager, address: u64, stream: *mut c_void) -> kavern_status {
    guard_handle("kavern_free", manager, || {
        if address == 0 {
            return handle::get(manager).map(|_| Status::Ok);
        }
        free(manager, address, stream).map(|()| Status::Ok)
    })
}

/// Allocates several blocks, all or none.
///
/// Shapes: `bytes` and `addresses` have `count` elements.
/// Errors: as kavern_alloc; then nothing was allocated and nothing written.
/// Threads: any; as kavern_alloc.
/// Owner: free each with kavern_free or kavern_free_batch.
/// Since: 0.1
///
/// # Safety
/// `bytes` must be null or point to `count` values, `addresses` to `count` writable ones.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_alloc_batch(
    manager: *mut kavern_manager,
    count: usize,
    bytes: *const u64,
    alignment: u64,
    stream: *mut c_void,
    tag: u64,
    addresses: *mut u64,
) -> kavern_status {
    guard_handle("kavern_alloc_batch", manager, || {
        // SAFETY: the header asks for `count` values or null.
        let bytes = unsafe { config::array(bytes, count, "bytes") }?;
        // SAFETY: the header asks for `count` writable values or null.
        let mut out = unsafe { OutArray::new(addresses, count, "addresses") }?;
        let mut made = crate::sys::reserve::room(count)?;
        for (index, &bytes) in bytes.iter().enumerate() {
            match allocate(manager, stream, (bytes, alignment, tag)) {
                Ok(address) => made.push(address),
                Err(error) => {
                    let object = handle::get(manager)?;
                    let (heap, resolved) = (object.heap()?, stream::resolve(&object, stream)?);
                    made.into_iter().for_each(|address| heap.take_unused(*resolved, address));
                    return Err(error.context(&format!("element {index}; none was allocated")));
                }
            }
        }
        if count == 0 {
            handle::get(manager)?;
        }
        made.into_iter().enumerate().for_each(|(index, address)| out.write(index, address));
        Ok(Status::Ok)
    })
}

/// Frees several blocks as kavern_free does; one that is refused does not keep the others.
///
/// Shapes: `addresses` and `statuses` (may be null) have `count` elements.
/// Errors: KAVERN_PARTIAL if some were refused, see `statuses`; KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_NULL_POINTER.
/// Threads: any; does not block.
/// Since: 0.1
///
/// # Safety
/// As kavern_free; `addresses` must be null or point to `count` values, `statuses` be null or point to `count` writable
/// ones.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_free_batch(
    manager: *mut kavern_manager,
    count: usize,
    addresses: *const u64,
    stream: *mut c_void,
    statuses: *mut kavern_status,
) -> kavern_status {
    guard_on("kavern_free_batch", manager, |object| {
        // SAFETY: the header asks for `count` values or null.
        let addresses = unsafe { config::array(addresses, count, "addresses") }?;
        // SAFETY: the header asks for `count` writable values or null.
        let out = (!statuses.is_null()).then(|| unsafe { OutArray::new(statuses, count, "statuses") });
        let mut out = out.transpose()?;
        drop(stream::resolve(object, stream)?);
        let mut status = Status::Ok;
        for (index, &address) in addresses.iter().enumerate() {
            let outcome = if address == 0 { Ok(()) } else { free(manager, address, stream) };
            let one = outcome.as_ref().map_or_else(|error| error.status, |()| Status::Ok);
            if one != Status::Ok {
                status = Status::Partial;
            }
            if let Some(out) = &mut out {
                out.write(index, one as kavern_status);
            }
        }
        Ok(status)
    })
}
