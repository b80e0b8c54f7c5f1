//! The allocator as a whole: what it holds, what could be had, giving back, defragmentation, the call for memory.
//!
//! What it does not: single allocations. Invariant: the program's callback runs without a lock of the library.

use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::config::{Out, OutStruct};
use super::guard::{guard_on, outside};
use super::memory_types::{kavern_defragment_result, kavern_memory_statistics};
use super::types::{kavern_manager, kavern_status};
use crate::error::Status;
use crate::memory::Room;

/// Reads what the allocator holds and did.
///
/// Errors: KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_NULL_POINTER, KAVERN_ERR_STRUCT_SIZE.
/// Threads: any; threads that allocate at this moment wait for a few microseconds.
/// Since: 0.1
///
/// # Safety
/// `out` must be null or point to as many writable bytes as its struct_size says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_memory_stats(
    manager: *const kavern_manager,
    out: *mut kavern_memory_statistics,
) -> kavern_status {
    guard_on("kavern_memory_stats", manager, |object| {
        // SAFETY: the header asks for a struct that says its size, or null.
        let out = unsafe { OutStruct::new(out, "out") }?;
        out.write(&object.heap()?.statistics().into());
        Ok(Status::Ok)
    })
}

/// Answers in `out` whether so many bytes and a margin could be allocated now: 1 or 0.
///
/// After a yes, kavern_alloc of that much is served, if nobody takes memory in between. It counts what the device and
/// the limits leave and what is free here in the form that such a request needs; not what pools, models and callbacks
/// would give if they were asked, and not what waits for work in flight, so that it may be served after a no as well.
/// `margin_percent` is added to the bytes; KAVERN_MARGIN_DEFAULT is what suits most.
/// Errors: KAVERN_ERR_INVALID_ARGUMENT (0 bytes), KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_NULL_POINTER,
/// KAVERN_ERR_DEVICE.
/// Threads: any; asks the driver. Where what is freed could make the difference, the caches of threads are emptied.
/// Since: 0.1
///
/// # Safety
/// `out` must be null or point to a writable value.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_can_allocate(
    manager: *const kavern_manager,
    bytes: u64,
    margin_percent: u32,
    out: *mut u32,
) -> kavern_status {
    guard_on("kavern_can_allocate", manager, |object| {
        // SAFETY: the header asks for a writable value or null.
        let out = unsafe { Out::new(out, "out") }?;
        out.write(u32::from(object.heap()?.can_allocate(bytes, margin_percent)?));
        Ok(Status::Ok)
    })
}

/// Gives free memory back to the device: cached blocks whose work is done, empty pages, pooled pages.
///
/// `released_bytes` (may be null) receives what went back.
/// Errors: KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_DEVICE.
/// Threads: any; blocks for the driver's calls, not for work in flight.
/// Since: 0.1
///
/// # Safety
/// `released_bytes` must be null or point to a writable value.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_manager_trim(
    manager: *mut kavern_manager,
    released_bytes: *mut u64,
) -> kavern_status {
    guard_on("kavern_manager_trim", manager, |object| {
        // SAFETY: the header asks for a writable value or null.
        let out = unsafe { Out::optional(released_bytes, "released_bytes") }?;
        let released = object.heap()?.give_back()?;
        if let Some(out) = out {
            out.write(released);
        }
        Ok(Status::Ok)
    })
}

/// Makes the allocator's live blocks lie on less memory, without moving an address.
///
/// Empty pages go back to the device, and pages of small blocks whose live slots lie at different places share one
/// physical page. Pages with pinned allocations or with memory of a captured graph stay. `budget_bytes` limits the live
/// bytes that are copied; 0 is no limit.
/// Stream: waits for all work on the device first; until the call returns nobody may enqueue work on live allocations
/// or launch a graph that uses them.
/// Errors: KAVERN_ERR_WRONG_STATE (a graph is being captured on a stream that has allocated or that
/// kavern_capture_begin was told of, or on one that the default stream waits for: end the capture first; nothing was
/// done), KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_NULL_POINTER, KAVERN_ERR_STRUCT_SIZE, KAVERN_ERR_DEVICE; what was done
/// before the failure stays done. No driver can be asked for captures on other streams: the call is made beside them,
/// and they stay whole.
/// Threads: any may allocate and free meanwhile; blocks.
/// Since: 0.1
/// Source: Mesh (Powers and others, PLDI 2019), for memory of the host.
///
/// # Safety
/// `out` must be null or point to as many writable bytes as its struct_size says; and what "Stream" asks for.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_manager_defragment(
    manager: *mut kavern_manager,
    budget_bytes: u64,
    out: *mut kavern_defragment_result,
) -> kavern_status {
    guard_on("kavern_manager_defragment", manager, |object| {
        // SAFETY: the header asks for a struct that says its size, or null.
        let out = unsafe { OutStruct::new(out, "out") }?;
        out.write(&object.heap()?.defragment(budget_bytes)?.into());
        Ok(Status::Ok)
    })
}

/// Asked when memory is short: gives back what it can, at best `bytes`, and answers how much it gave.
pub type kavern_give_back_fn = Option<unsafe extern "C" fn(userdata: *mut c_void, bytes: u64) -> u64>;

/// A callback of the program, as one of those that the heap asks.
struct Callback {
    function: unsafe extern "C" fn(*mut c_void, u64) -> u64,
    userdata: usize,
    is_inside: AtomicBool,
}

impl Room for Callback {
    fn reclaim(&self, bytes: u64) -> u64 {
        // It may allocate by itself, and is not asked again for that.
        if self.is_inside.swap(true, Ordering::Acquire) {
            return 0;
        }
        // SAFETY: whoever set the callback vouches for it and its userdata until it is replaced.
        let given = outside(|| unsafe { (self.function)(self.userdata as *mut c_void, bytes) });
        self.is_inside.store(false, Ordering::Release);
        given
    }

    fn rank(&self) -> u32 {
        2
    }
}

/// Sets what is asked for memory before kavern_alloc, kavern_pool_create, kavern_pool_acquire, kavern_kv_cache_create,
/// kavern_kv_resize, kavern_elastic_commit or kavern_elastic_resize is refused, and after any call that passes the soft
/// limit; null asks nobody. A pool whose own limit is reached does not ask.
///
/// It is called without a lock of the library, on the thread that needs memory, may use all of this manager, also
/// shrink the cache or the range that grows, and is not called while it runs already.
/// Errors: KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_NULL_POINTER.
/// Threads: any; a call that has begun may still be running when this returns.
/// Since: 0.1
///
/// # Safety
/// `function` must be null or a function that may be called with `userdata` until it is replaced and the calls in
/// flight have ended.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_manager_on_reclaim(
    manager: *mut kavern_manager,
    function: kavern_give_back_fn,
    userdata: *mut c_void,
) -> kavern_status {
    guard_on("kavern_manager_on_reclaim", manager, |object| {
        let room = function.map(|function| -> Arc<dyn Room> {
            let is_inside = AtomicBool::new(false);
            Arc::new(Callback { function, userdata: userdata as usize, is_inside })
        });
        object.memory().set_callback(room);
        Ok(Status::Ok)
    })
}
