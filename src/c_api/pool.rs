//! Pools: blocks of device memory that are handed out and taken back without asking the device.
//!
//! What it does not: decide anything; `memory::Pool` does. Invariant: a pool lives until its handle has gone and no
//! call is inside it.

use std::ffi::c_void;
use std::sync::Arc;

use super::config::{self, Out, OutArray, OutStruct};
use super::guard::{guard, guard_on};
use super::handle::{self, Handle, Kind};
use super::pool_types::*;
use super::stream;
use super::types::{kavern_manager, kavern_pool, kavern_status};
use crate::error::{Error, Status};
use crate::manager::Manager;
use crate::memory::Pool;
use crate::sys::clock;

/// A pool with what it keeps alive.
pub struct PoolObject {
    pool: Arc<Pool>,
    manager: Arc<Manager>,
}

impl Drop for PoolObject {
    fn drop(&mut self) {
        // The upkeep must not decide when its memory goes back.
        self.pool.end();
    }
}

impl Handle for kavern_pool {
    const KIND: Kind = Kind::Pool;
    type Object = PoolObject;
}

/// Fills a configuration with its defaults: size classes 1 KiB x 32, 64 KiB x 16, 1 MiB x 8, growth by 4, no limit,
/// idle blocks go back after 5 minutes.
///
/// `size` is sizeof(kavern_pool_config) in the caller's header, which may be older or newer than the library.
/// Errors: KAVERN_ERR_NULL_POINTER, KAVERN_ERR_STRUCT_SIZE if `size` is below that of version 0.1 or above 65,536.
/// Since: 0.1
///
/// # Safety
/// `config` must be null or point to `size` writable bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_pool_config_init(
    config: *mut kavern_pool_config,
    size: usize,
) -> kavern_status {
    guard("kavern_pool_config_init", || {
        // SAFETY: the header asks for `size` bytes or null.
        unsafe { config::init_struct(config, size, "config") }
    })
}

/// Makes a pool with its initial blocks.
///
/// Errors: KAVERN_ERR_INVALID_ARGUMENT (classes of more than 1 MiB in managed memory too), KAVERN_ERR_UNSUPPORTED for
/// managed memory on a device without it (KAVERN_DEVICE_MANAGED_MEMORY), KAVERN_ERR_OUT_OF_MEMORY,
/// KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_NULL_POINTER, KAVERN_ERR_STRUCT_SIZE, KAVERN_ERR_DEVICE.
/// Threads: any; blocks while memory is allocated.
/// Owner: destroy with kavern_pool_destroy; it keeps its manager alive.
/// Since: 0.1
///
/// # Safety
/// `config` and what it points to must be as its fields say; `out` must be null or point to a writable handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_pool_create(
    manager: *mut kavern_manager,
    config: *const kavern_pool_config,
    out: *mut *mut kavern_pool,
) -> kavern_status {
    guard_on("kavern_pool_create", manager, |manager| {
        // SAFETY: the header asks for a struct that says its size, or null.
        let settings = unsafe { config::read_struct(config, "config") }?;
        // SAFETY: the header asks for a writable handle or null.
        let out = unsafe { Out::new(out, "out") }?;
        // SAFETY: the header asks for pointers as the fields say.
        let config = unsafe { pool_config(&settings) }?;
        let pool = Arc::new(Pool::new(manager.memory(), config, clock::now_ns())?);
        manager.attach_pool(&pool);
        out.write(handle::insert(Arc::new(PoolObject { pool, manager: Arc::clone(manager) }))?);
        Ok(Status::Ok)
    })
}

/// Destroys a pool and nulls the handle; null is fine. Blocks that are still in use go too, which is told as a warning
/// with their number and bytes.
///
/// Errors: KAVERN_ERR_INVALID_HANDLE; the handle then stays as it is.
/// Threads: any, also while others are inside a call on it; blocks until the device has stopped using its memory.
/// Since: 0.1
///
/// # Safety
/// `pool` must be null or point to a writable handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_pool_destroy(pool: *mut *mut kavern_pool) -> kavern_status {
    guard("kavern_pool_destroy", || {
        // SAFETY: the header asks for a writable handle or null.
        unsafe { config::destroy(pool, "pool") }
    })
}

/// Hands out a block for work that follows on the stream; its bytes are whatever was there before.
///
/// A block that the same stream released is handed out at once; one of another stream when its work is known to be
/// done, or, where the pool cannot grow, behind a wait that is put on this stream.
/// Stream: as for kavern_stream_synchronize. A stream that is being captured is never made to wait, and its blocks
/// serve no other stream while the capture lasts.
/// Errors: KAVERN_ERR_INVALID_ARGUMENT for 0 bytes and for more than the largest class, KAVERN_ERR_OUT_OF_MEMORY with
/// what was requested, what is held, and the limit; KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_NULL_POINTER,
/// KAVERN_ERR_DEVICE.
/// Threads: any; blocks only while the pool grows or gives idle blocks back.
/// Owner: release with kavern_pool_release.
/// Since: 0.1
///
/// # Safety
/// `out` must be null or point to a writable block.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_pool_acquire(
    pool: *mut kavern_pool,
    bytes: u64,
    stream: *mut c_void,
    out: *mut kavern_pool_block,
) -> kavern_status {
    guard_on("kavern_pool_acquire", pool, |object| {
        // SAFETY: the header asks for a writable block or null.
        let out = unsafe { Out::new(out, "out") }?;
        let stream = stream::resolve(&object.manager, stream)?;
        let block = object.pool.acquire(bytes, *stream, clock::now_ns())?;
        out.write(kavern_pool_block { address: block.address, bytes: block.bytes });
        Ok(Status::Ok)
    })
}

/// Takes a block back. All work on it must be on this stream, or come before it there.
///
/// Stream: as for kavern_stream_synchronize.
/// Errors: KAVERN_ERR_INVALID_ARGUMENT for an address that is no block of this pool, KAVERN_ERR_WRONG_STATE for a block
/// that is not in use, KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_NULL_POINTER.
/// Threads: any; does not call the device, unless idle blocks are due to go back and no thread of the library looks.
/// Since: 0.1
///
/// # Safety
/// None beyond handles or null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_pool_release(
    pool: *mut kavern_pool,
    address: u64,
    stream: *mut c_void,
) -> kavern_status {
    guard_on("kavern_pool_release", pool, |object| {
        let stream = stream::resolve(&object.manager, stream)?;
        object.pool.release(address, *stream, clock::now_ns())?;
        Ok(Status::Ok)
    })
}

/// Hands out a block for each request, or none at all.
///
/// Shapes: `bytes` [n], `blocks` [n], `states` [n]. If a request is refused the call answers its error, its state is
/// that error, the others' is KAVERN_ERR_DEPENDENCY, and `blocks` stays as it was; else all states are KAVERN_OK.
/// Stream: as for kavern_pool_acquire.
/// Errors: those of kavern_pool_acquire.
/// Threads: any; blocks only while the pool grows or gives idle blocks back.
/// Owner: release each block.
/// Since: 0.1
///
/// # Safety
/// `bytes` must point to `n` values, `blocks` and `states` to `n` writable ones; null is fine where n is 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_pool_acquire_batch(
    pool: *mut kavern_pool,
    n: usize,
    bytes: *const u64,
    stream: *mut c_void,
    blocks: *mut kavern_pool_block,
    states: *mut i32,
) -> kavern_status {
    guard_on("kavern_pool_acquire_batch", pool, |object| {
        // SAFETY: the header asks for `n` values.
        let bytes = unsafe { config::array(bytes, n, "bytes") }?;
        // SAFETY: the header asks for `n` writable values.
        let mut blocks = unsafe { OutArray::new(blocks, n, "blocks") }?;
        // SAFETY: the header asks for `n` writable values.
        let mut states = unsafe { OutArray::new(states, n, "states") }?;
        let stream = stream::resolve(&object.manager, stream)?;
        match object.pool.acquire_list(bytes, *stream, clock::now_ns()) {
            Ok(taken) => {
                for (index, block) in taken.into_iter().enumerate() {
                    blocks.write(index, kavern_pool_block { address: block.address, bytes: block.bytes });
                    states.write(index, Status::Ok as i32);
                }
                Ok(Status::Ok)
            }
            Err((refused, error)) => {
                (0..n).for_each(|index| states.write(index, Status::Dependency as i32));
                if n > 0 {
                    states.write(refused, error.status as i32);
                }
                Err(error.context(&format!("request {refused} of {n}")))
            }
        }
    })
}

/// Takes all of these blocks back, or none at all.
///
/// Shapes: `addresses` [n], `states` [n]. If one is refused the call answers the first error, the states of those that
/// are wrong are their errors, the others' is KAVERN_ERR_DEPENDENCY; else all states are KAVERN_OK.
/// Stream: as for kavern_pool_release.
/// Errors: those of kavern_pool_release; an address that stands twice is not in use the second time.
/// Threads: any; does not call the device, unless idle blocks are due to go back and no thread of the library looks.
/// Since: 0.1
///
/// # Safety
/// `addresses` must point to `n` values, `states` to `n` writable ones; null is fine where n is 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_pool_release_batch(
    pool: *mut kavern_pool,
    n: usize,
    addresses: *const u64,
    stream: *mut c_void,
    states: *mut i32,
) -> kavern_status {
    guard_on("kavern_pool_release_batch", pool, |object| {
        // SAFETY: the header asks for `n` values.
        let addresses = unsafe { config::array(addresses, n, "addresses") }?;
        // SAFETY: the header asks for `n` writable values.
        let mut states = unsafe { OutArray::new(states, n, "states") }?;
        let stream = stream::resolve(&object.manager, stream)?;
        let mut wrong = Vec::new();
        let note = |index: usize, error: &Error| wrong.push((index, error.status as i32));
        let released = object.pool.release_list(addresses, *stream, clock::now_ns(), note);
        let usual = if released.is_ok() { Status::Ok } else { Status::Dependency };
        (0..n).for_each(|index| states.write(index, usual as i32));
        wrong.into_iter().for_each(|(index, status)| states.write(index, status));
        released.map(|()| Status::Ok)
    })
}

/// Tells what a pool has and did, as a whole and by class.
///
/// Shapes: `classes` [max], by rising size; as many are written as there are, at most `max`. `out.class_count` says how
/// many there are.
/// Errors: KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_NULL_POINTER, KAVERN_ERR_STRUCT_SIZE.
/// Threads: any; does not block.
/// Since: 0.1
///
/// # Safety
/// `out` must be null or point to as many writable bytes as its struct_size says; `classes` must point to `max`
/// writable elements; null is fine where max is 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_pool_stats(
    pool: *const kavern_pool,
    out: *mut kavern_pool_statistics,
    max: usize,
    classes: *mut kavern_pool_class_statistics,
) -> kavern_status {
    guard_on("kavern_pool_stats", pool, |object| {
        // SAFETY: the header asks for a struct that says its size, or null.
        let out = unsafe { OutStruct::new(out, "out") }?;
        // SAFETY: the header asks for `max` writable elements.
        let mut classes = unsafe { OutArray::new(classes, max, "classes") }?;
        let (totals, found) = object.pool.statistics();
        let shown = found.iter().take(max).enumerate();
        shown.for_each(|(index, class)| classes.write(index, class.into()));
        out.write(&(totals, found.len()).into());
        Ok(Status::Ok)
    })
}

/// Gives back batches of blocks that nobody used for so long and whose streams are done with them.
///
/// Units: nanoseconds; 0 gives all idle batches back. `freed` receives bytes and may be null.
/// Errors: KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_NULL_POINTER, KAVERN_ERR_INVALID_ARGUMENT.
/// Threads: any; blocks while the device takes the memory back.
/// Since: 0.1
///
/// # Safety
/// `freed` must be null or point to a writable value.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_pool_trim(
    pool: *mut kavern_pool,
    older_than_ns: u64,
    freed: *mut u64,
) -> kavern_status {
    guard_on("kavern_pool_trim", pool, |object| {
        // SAFETY: the header asks for a writable value or null.
        let freed = unsafe { Out::optional(freed, "freed") }?;
        let bytes = object.pool.trim(older_than_ns, clock::now_ns());
        if let Some(freed) = freed {
            freed.write(bytes);
        }
        Ok(Status::Ok)
    })
}

/// Checks the invariants of a pool.
///
/// Errors: KAVERN_ERR_INTERNAL with what does not hold, KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_NULL_POINTER.
/// Threads: any; takes the pool's lock for a pass over its blocks.
/// Since: 0.1
///
/// # Safety
/// None beyond a handle or null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_pool_validate(pool: *const kavern_pool) -> kavern_status {
    guard_on("kavern_pool_validate", pool, |object| {
        object.pool.validate()?;
        Ok(Status::Ok)
    })
}
