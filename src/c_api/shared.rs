//! Shared pools: models under one limit of physical memory.
//!
//! What it does not: decide who gives. Invariants: a callback is called without a lock, and its panic-free C code is
//! not ours; a pool keeps its manager.

use std::ffi::{CString, c_char, c_void};
use std::sync::Arc;

use super::config::{self, Out, OutStruct};
use super::elastic::{kavern_elastic_extent, kavern_elastic_flags, past, write_extent};
use super::guard::{self, guard, guard_on};
use super::handle::{self, Handle, Kind};
use super::shared_types::{
    kavern_model_statistics, kavern_reclaim_fn, kavern_shared_pool_config, kavern_shared_pool_statistics,
};
use super::text;
use super::types::{kavern_manager, kavern_status};
use crate::error::{Error, Result, Status};
use crate::manager::Manager;
use crate::memory::{Ready, Reclaim, SharedConfig, SharedPool, Terms};

/// Several models under one limit of physical memory. Thread-safe; keeps its manager alive.
pub struct kavern_shared_pool {
    _opaque: [u8; 0],
}

/// A pool and the manager that it lives in.
pub(super) struct Pooled {
    /// Goes before its manager.
    pool: Arc<SharedPool>,
    manager: Arc<Manager>,
}

impl Handle for kavern_shared_pool {
    const KIND: Kind = Kind::SharedPool;
    type Object = Pooled;
}

/// Fills a configuration with its defaults: pages of the device, in slabs where they fit, no budget of the machine;
/// physical_limit_bytes is yours.
///
/// `size` is sizeof(kavern_shared_pool_config) in the caller's header, which may be older or newer than the library.
/// Errors: KAVERN_ERR_NULL_POINTER, KAVERN_ERR_STRUCT_SIZE if `size` is below that of version 0.1 or above 65,536.
/// Since: 0.1
///
/// # Safety
/// `config` must be null or point to `size` writable bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_shared_pool_config_init(
    config: *mut kavern_shared_pool_config,
    size: usize,
) -> kavern_status {
    guard("kavern_shared_pool_config_init", || {
        // SAFETY: the header asks for `size` bytes or null.
        unsafe { config::init_struct(config, size, "config") }
    })
}

/// Makes a pool without models. What it holds is charged to the manager's limit of device memory too.
///
/// Errors: KAVERN_ERR_INVALID_ARGUMENT (a limit of less than a page, more pages ahead than that, a low mark above the
/// high one, a bad name or another limit of the machine's budget), KAVERN_ERR_UNSUPPORTED (the device cannot map
/// memory), KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_NULL_POINTER, KAVERN_ERR_STRUCT_SIZE, KAVERN_ERR_LIMIT_REACHED (256
/// processes share the budget), KAVERN_ERR_OS, KAVERN_ERR_DEVICE.
/// Threads: any.
/// Owner: destroy with kavern_shared_pool_destroy; it keeps its manager alive.
/// Since: 0.1
///
/// # Safety
/// `config` must be null or point to as many bytes as its struct_size says, `out` be null or point to a writable
/// handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_shared_pool_create(
    manager: *mut kavern_manager,
    config: *const kavern_shared_pool_config,
    out: *mut *mut kavern_shared_pool,
) -> kavern_status {
    guard_on("kavern_shared_pool_create", manager, |manager| {
        // SAFETY: the header asks for a struct that says its size, or null.
        let settings = unsafe { config::read_struct(config, "config") }?;
        // SAFETY: the header asks for a writable handle or null.
        let out = unsafe { Out::new(out, "out") }?;
        let single = kavern_elastic_flags::KAVERN_ELASTIC_SINGLE_PAGES as u32;
        config::check_flags(settings.flags, single, "kavern_shared_pool_config")?;
        config::check_reserved(&settings.reserved, "kavern_shared_pool_config")?;
        // SAFETY: the header asks for a text or null.
        let machine = unsafe { text::read_optional(settings.machine_name, "config.machine_name") }?;
        if machine.is_none() && settings.machine_limit_bytes > 0 {
            return Err(Error::argument("config.machine_limit_bytes without a machine_name; give both"));
        }
        let ready = Ready::new(settings.ready_low_bytes, settings.ready_high_bytes)?;
        if ready.high_bytes > settings.physical_limit_bytes {
            return Err(Error::argument(format!(
                "config.ready_high_bytes is {}, above physical_limit_bytes, which is {}",
                ready.high_bytes, settings.physical_limit_bytes
            )));
        }
        let config = SharedConfig {
            limit_bytes: settings.physical_limit_bytes,
            page_bytes: settings.page_bytes,
            has_slabs: settings.flags & single == 0,
            machine: machine.map(|name| (name.to_owned(), settings.machine_limit_bytes)),
            ready,
        };
        let pool = Arc::new(SharedPool::new(manager.memory(), config)?);
        manager.attach_shared(&pool);
        out.write(handle::insert(Arc::new(Pooled { pool, manager: Arc::clone(manager) }))?);
        Ok(Status::Ok)
    })
}

/// Lets all models go and nulls the handle; null is fine.
///
/// Waits for the streams of decommits. What is still committed is taken at once: no work may use it any more. Callbacks
/// and their userdata stay in use until no call on the pool is running.
/// Errors: KAVERN_ERR_INVALID_HANDLE; the handle then stays as it is.
/// Threads: any, also while others are inside a call on it; blocks.
/// Since: 0.1
///
/// # Safety
/// `pool` must be null or point to a writable handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_shared_pool_destroy(pool: *mut *mut kavern_shared_pool) -> kavern_status {
    guard("kavern_shared_pool_destroy", || {
        // SAFETY: the header asks for a writable handle or null.
        unsafe { config::destroy(pool, "pool") }
    })
}

/// Takes a model in, with addresses of its own.
///
/// `min_bytes` is always there for it, whatever others do; what is over all minimums goes by `weight` (at least 1)
/// when memory is short; it never has more than `cap_bytes` (0 for no cap but the pool's limit).
/// Errors: KAVERN_ERR_ALREADY_EXISTS, KAVERN_ERR_INVALID_ARGUMENT (no name or capacity, a weight of 0, minimums over
/// the limit or the cap), KAVERN_ERR_OUT_OF_MEMORY (others use what the minimum needs, and did not give it when asked),
/// KAVERN_ERR_OUT_OF_HOST_MEMORY (the system gives the device "host" no such range), KAVERN_ERR_INVALID_HANDLE,
/// KAVERN_ERR_NULL_POINTER.
/// Threads: any, while others work; may call callbacks of other models.
/// Since: 0.1
///
/// # Safety
/// `name` must be null or a text that ends with a zero.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_shared_pool_register_model(
    pool: *mut kavern_shared_pool,
    name: *const c_char,
    virtual_capacity: u64,
    min_bytes: u64,
    weight: u64,
    cap_bytes: u64,
) -> kavern_status {
    guard_on("kavern_shared_pool_register_model", pool, |pooled| {
        // SAFETY: the header asks for a text or null.
        let name = unsafe { text::read(name, "name") }?;
        pooled.pool.register(name, virtual_capacity, Terms { min_bytes, weight, cap_bytes })?;
        Ok(Status::Ok)
    })
}

/// Lets a model go with all its memory; its callback is not called any more when this returns.
///
/// Waits for the streams of its decommits. What is still committed is taken at once: no work may use it any more.
/// Errors: KAVERN_ERR_NOT_FOUND, KAVERN_ERR_IN_USE (a range is pinned), KAVERN_ERR_INVALID_HANDLE,
/// KAVERN_ERR_NULL_POINTER.
/// Threads: any, while others work; blocks.
/// Since: 0.1
///
/// # Safety
/// `name` must be null or a text that ends with a zero.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_shared_pool_unregister_model(
    pool: *mut kavern_shared_pool,
    name: *const c_char,
) -> kavern_status {
    guard_on("kavern_shared_pool_unregister_model", pool, |pooled| {
        // SAFETY: the header asks for a text or null.
        let name = unsafe { text::read(name, "name") }?;
        pooled.pool.unregister(name)?;
        Ok(Status::Ok)
    })
}

/// Puts memory behind a part of a model's range, widened to whole pages, all or nothing.
///
/// New memory is zeroed if another model had it or the device has just made it; what comes back to the model that had
/// it last may hold its old bytes. When memory is short, models that have more than is due are asked by their
/// callbacks, the greediest first. `out` may be null.
/// Errors: KAVERN_ERR_OUT_OF_MEMORY with the bytes requested and available in the text, KAVERN_ERR_NOT_FOUND,
/// KAVERN_ERR_INVALID_ARGUMENT (0 bytes, outside of the capacity), KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_NULL_POINTER,
/// KAVERN_ERR_DEVICE, KAVERN_ERR_DEVICE_LOST.
/// Threads: any; blocks until the memory is zeroed, may call callbacks of other models and wait for their streams.
/// Since: 0.1
///
/// # Safety
/// `name` must be null or a text that ends with a zero, `out` be null or point to a writable struct.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_shared_pool_commit(
    pool: *mut kavern_shared_pool,
    name: *const c_char,
    offset: u64,
    bytes: u64,
    out: *mut kavern_elastic_extent,
) -> kavern_status {
    guard_on("kavern_shared_pool_commit", pool, |pooled| {
        // SAFETY: the header asks for a text or null.
        let name = unsafe { text::read(name, "name") }?;
        // SAFETY: the header asks for a writable struct or null.
        let out = unsafe { Out::optional(out, "out") }?;
        write_extent(out, pooled.pool.commit(name, offset, bytes)?);
        Ok(Status::Ok)
    })
}

/// Gives up a part of a model's range, as kavern_elastic_decommit does.
///
/// Stream: as for kavern_elastic_decommit.
/// Errors: those of kavern_elastic_decommit, KAVERN_ERR_NOT_FOUND, KAVERN_ERR_NULL_POINTER.
/// Threads: any; does not wait for the stream.
/// Since: 0.1
///
/// # Safety
/// `name` must be null or a text that ends with a zero, `out` be null or point to a writable struct.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_shared_pool_decommit(
    pool: *mut kavern_shared_pool,
    name: *const c_char,
    offset: u64,
    bytes: u64,
    stream: *mut c_void,
    out: *mut kavern_elastic_extent,
) -> kavern_status {
    guard_on("kavern_shared_pool_decommit", pool, |pooled| {
        // SAFETY: the header asks for a text or null.
        let name = unsafe { text::read(name, "name") }?;
        // SAFETY: the header asks for a writable struct or null.
        let out = unsafe { Out::optional(out, "out") }?;
        let stream = past(&pooled.manager, stream)?;
        write_extent(out, pooled.pool.decommit(name, offset, bytes, stream.as_deref().copied())?);
        Ok(Status::Ok)
    })
}

/// Writes the device address of the first byte of a model's range, which never moves.
///
/// Errors: KAVERN_ERR_NOT_FOUND, KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_NULL_POINTER.
/// Threads: any.
/// Since: 0.1
///
/// # Safety
/// `name` must be null or a text that ends with a zero, `out` be null or point to a writable value.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_shared_pool_base(
    pool: *const kavern_shared_pool,
    name: *const c_char,
    out: *mut u64,
) -> kavern_status {
    guard_on("kavern_shared_pool_base", pool, |pooled| {
        // SAFETY: the header asks for a text or null.
        let name = unsafe { text::read(name, "name") }?;
        // SAFETY: the header asks for a writable value or null.
        let out = unsafe { Out::new(out, "out") }?;
        out.write(pooled.pool.slice(name)?.address());
        Ok(Status::Ok)
    })
}

/// Reads what a model has.
///
/// Errors: KAVERN_ERR_NOT_FOUND, KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_NULL_POINTER, KAVERN_ERR_STRUCT_SIZE.
/// Threads: any.
/// Since: 0.1
///
/// # Safety
/// `name` must be null or a text that ends with a zero, `out` be null or point to as many writable bytes as its
/// struct_size says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_shared_pool_model_stats(
    pool: *const kavern_shared_pool,
    name: *const c_char,
    out: *mut kavern_model_statistics,
) -> kavern_status {
    guard_on("kavern_shared_pool_model_stats", pool, |pooled| {
        // SAFETY: the header asks for a text or null.
        let name = unsafe { text::read(name, "name") }?;
        // SAFETY: the header asks for a struct that says its size, or null.
        let out = unsafe { OutStruct::new(out, "out") }?;
        out.write(&pooled.pool.model_statistics(name)?.into());
        Ok(Status::Ok)
    })
}

/// Reads what a pool has and did.
///
/// Errors: KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_NULL_POINTER, KAVERN_ERR_STRUCT_SIZE.
/// Threads: any.
/// Since: 0.1
///
/// # Safety
/// `out` must be null or point to as many writable bytes as its struct_size says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_shared_pool_stats(
    pool: *const kavern_shared_pool,
    out: *mut kavern_shared_pool_statistics,
) -> kavern_status {
    guard_on("kavern_shared_pool_stats", pool, |pooled| {
        // SAFETY: the header asks for a struct that says its size, or null.
        let out = unsafe { OutStruct::new(out, "out") }?;
        out.write(&pooled.pool.statistics().into());
        Ok(Status::Ok)
    })
}

/// Keeps a committed part, widened to whole pages, committed until it is unpinned as often.
///
/// Memory that you have registered with NCCL, RDMA or IPC must not move: pin it for that time.
/// Errors: KAVERN_ERR_WRONG_STATE (not committed), KAVERN_ERR_INVALID_ARGUMENT, KAVERN_ERR_NOT_FOUND,
/// KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_NULL_POINTER.
/// Threads: any.
/// Since: 0.1
///
/// # Safety
/// `name` must be null or a text that ends with a zero.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_shared_pool_pin_range(
    pool: *mut kavern_shared_pool,
    name: *const c_char,
    offset: u64,
    bytes: u64,
) -> kavern_status {
    guard_on("kavern_shared_pool_pin_range", pool, |pooled| {
        // SAFETY: the header asks for a text or null.
        let name = unsafe { text::read(name, "name") }?;
        pooled.pool.pin(name, offset, bytes)?;
        Ok(Status::Ok)
    })
}

/// Undoes one pin of the same part.
///
/// Errors: KAVERN_ERR_NOT_FOUND (no such model, or no pin of this part), KAVERN_ERR_INVALID_ARGUMENT,
/// KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_NULL_POINTER.
/// Threads: any.
/// Since: 0.1
///
/// # Safety
/// `name` must be null or a text that ends with a zero.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_shared_pool_unpin_range(
    pool: *mut kavern_shared_pool,
    name: *const c_char,
    offset: u64,
    bytes: u64,
) -> kavern_status {
    guard_on("kavern_shared_pool_unpin_range", pool, |pooled| {
        // SAFETY: the header asks for a text or null.
        let name = unsafe { text::read(name, "name") }?;
        pooled.pool.unpin(name, offset, bytes)?;
        Ok(Status::Ok)
    })
}

struct Callback {
    function: unsafe extern "C" fn(*mut c_void, *const c_char, u64),
    userdata: *mut c_void,
    model: CString,
}

// SAFETY: the header says that the callback is called from any thread, so the caller has made userdata fit for that.
unsafe impl Send for Callback {}
// SAFETY: as above.
unsafe impl Sync for Callback {}

impl Callback {
    fn call(&self, bytes: u64) {
        guard::outside(|| {
            // SAFETY: the caller registered a function of this type and keeps it and userdata valid until it has been
            // unregistered, which waits for this call.
            unsafe { (self.function)(self.userdata, self.model.as_ptr(), bytes) }
        });
    }
}

fn callback(function: kavern_reclaim_fn, userdata: *mut c_void, model: &str) -> Result<Option<Reclaim>> {
    let Some(function) = function else { return Ok(None) };
    let model = CString::new(model).map_err(|_| Error::internal("a text of C with a zero inside"))?;
    let callback = Callback { function, userdata, model };
    Ok(Some(Arc::new(move |bytes| callback.call(bytes))))
}

/// Sets what is called when others need memory that a model has over its due; a null callback takes it away.
///
/// The former callback is not running on any other thread when this returns, and is not called again. Instead of a
/// callback, kavern_model_statistics.wanted_bytes can be looked at.
/// Errors: KAVERN_ERR_NOT_FOUND, KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_NULL_POINTER.
/// Threads: any; blocks while the former callback runs. The callback runs on the thread that needs memory, without a
/// lock; what it commits in turn asks nobody.
/// Owner: callback and userdata stay yours, and valid until they are taken away or the model is unregistered.
/// Since: 0.1
///
/// # Safety
/// `name` must be null or a text that ends with a zero; `callback` must be null or a function of that type.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_shared_pool_on_reclaim(
    pool: *mut kavern_shared_pool,
    name: *const c_char,
    callback: kavern_reclaim_fn,
    userdata: *mut c_void,
) -> kavern_status {
    guard_on("kavern_shared_pool_on_reclaim", pool, |pooled| {
        // SAFETY: the header asks for a text or null.
        let name = unsafe { text::read(name, "name") }?;
        pooled.pool.on_reclaim(name, self::callback(callback, userdata, name)?)?;
        Ok(Status::Ok)
    })
}
