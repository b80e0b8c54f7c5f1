//! Plans of steps: how a scheduler's cache tells the caches of its workers, in other processes, what a step changes.

use std::ffi::c_void;

use super::config::{self, Out, OutArray, OutStruct};
use super::guard::{guard, guard_on};
use super::kv_types::kavern_kv_step_tables;
use super::stream;
use super::tables::fill_tables;
use super::types::{kavern_kv_cache, kavern_status};
use crate::cache::PlanInfo;
use crate::error::{Error, Result, Status};

/// Bits of the flags of kavern_kv_plan_export and kavern_kv_plan_info.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum kavern_kv_plan_flag {
    /// Everything and not only what changed: for a worker that is new or missed a plan.
    KAVERN_PLAN_FULL = 1,
}

/// What a plan is about.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kavern_kv_plan_info {
    /// sizeof(kavern_kv_plan_info).
    pub struct_size: u32,
    /// KAVERN_PLAN_ bits.
    pub flags: u32,
    /// The step.
    pub step_id: u64,
    /// Rises by one from plan to plan of a scheduler.
    pub number: u64,
    /// The plan that a worker must have applied before; 0 for a full one and for the first.
    pub follows: u64,
    /// Names the scheduler's cache; drawn at random when that was made.
    pub scheduler: u64,
    /// Digest of the geometry that scheduler and worker share.
    pub geometry: u64,
    /// Bytes of the message.
    pub bytes: u64,
}

impl From<PlanInfo> for kavern_kv_plan_info {
    fn from(info: PlanInfo) -> Self {
        Self {
            struct_size: 0,
            flags: if info.is_full { kavern_kv_plan_flag::KAVERN_PLAN_FULL as u32 } else { 0 },
            step_id: info.step,
            number: info.number,
            follows: info.follows,
            scheduler: info.scheduler,
            geometry: info.geometry,
            bytes: info.bytes,
        }
    }
}

/// # Safety
/// `buffer` must be null or point to `capacity` bytes that nobody else uses during the call.
unsafe fn buffer_bytes<'a>(buffer: *mut c_void, capacity: u64) -> Result<&'a mut [u8]> {
    let count = usize::try_from(capacity).unwrap_or(usize::MAX);
    // SAFETY: the caller's promise; this refuses null and sizes that cannot be.
    unsafe { OutArray::<u8>::new(buffer.cast(), count, "buffer") }?;
    match count {
        0 => Ok(&mut []),
        // SAFETY: the caller's promise; the pointer is not null, and any bytes are values.
        _ => Ok(unsafe { std::slice::from_raw_parts_mut(buffer.cast(), count) }),
    }
}

/// Writes the plan of a step: what kavern_kv_tables would upload, as a message for caches that own the memory.
///
/// The cache is metadata-only and makes the plan of its open step, after kavern_kv_step. The plan tells the batch and
/// what changed since the plan before; every worker gets the same message, over whatever you have. `flags`: 0 or
/// KAVERN_PLAN_FULL. A full plan right after the plan of the same step has the same number, so it brings one worker up
/// to the others; made instead of it, it goes to all of them.
/// Shapes: `buffer` [capacity] bytes; `needed` receives the bytes of the message, or, if they do not fit, bytes that
/// are enough. While a shrink by kavern_kv_resize is under way these are more than the message gets: blocks move only
/// with a plan whose buffer has room for the cells of every row, so they stay where they are if it is never as large.
/// Errors: KAVERN_ERR_BUFFER_TOO_SMALL: nothing was written, moved or told; KAVERN_ERR_WRONG_STATE if the step is not
/// the open one; KAVERN_ERR_UNSUPPORTED for a cache that owns memory; KAVERN_ERR_INVALID_ARGUMENT,
/// KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_NULL_POINTER.
/// Threads: any; host only; takes the cache's lock while the message is written.
/// Since: 0.1
///
/// # Safety
/// `buffer` must be null with a capacity of 0 or point to `capacity` writable bytes, `needed` be null or point to a
/// writable value.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_kv_plan_export(
    cache: *mut kavern_kv_cache,
    step_id: u64,
    flags: u32,
    buffer: *mut c_void,
    capacity: u64,
    needed: *mut u64,
) -> kavern_status {
    guard_on("kavern_kv_plan_export", cache, |object| {
        let full = kavern_kv_plan_flag::KAVERN_PLAN_FULL as u32;
        config::check_flags(flags, full, "kavern_kv_plan_export")?;
        // SAFETY: the header asks for `capacity` writable bytes.
        let buffer = unsafe { buffer_bytes(buffer, capacity) }?;
        // SAFETY: the header asks for a writable value or null.
        let needed = unsafe { Out::new(needed, "needed") }?;
        let bytes = object.cache.export_plan(step_id, flags & full != 0, buffer)? as u64;
        needed.write(bytes);
        if bytes > capacity {
            let text = format!("the plan has {bytes} bytes, the buffer {capacity}");
            return Err(Error::new(Status::BufferTooSmall, text));
        }
        Ok(Status::Ok)
    })
}

/// # Safety
/// `message` must be null or point to `bytes` bytes that nobody writes during the call.
unsafe fn message_bytes<'a>(message: *const c_void, bytes: u64) -> Result<&'a [u8]> {
    // SAFETY: the caller's promise.
    unsafe { config::array_u64(message.cast::<u8>(), bytes, "message") }
}

/// Reads what a plan is about, so that a worker knows its step; checks that the message is whole.
///
/// Shapes: `message` [bytes].
/// Errors: KAVERN_ERR_INVALID_ARGUMENT for what is no whole and unchanged plan, KAVERN_ERR_UNSUPPORTED for one of
/// another version, KAVERN_ERR_NULL_POINTER, KAVERN_ERR_STRUCT_SIZE.
/// Threads: any.
/// Since: 0.1
///
/// # Safety
/// `message` must point to `bytes` bytes, `out` be null or point to as many writable bytes as its struct_size says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_kv_plan_read(
    message: *const c_void,
    bytes: u64,
    out: *mut kavern_kv_plan_info,
) -> kavern_status {
    guard("kavern_kv_plan_read", || {
        // SAFETY: the header asks for `bytes` bytes.
        let message = unsafe { message_bytes(message, bytes) }?;
        // SAFETY: the header asks for a struct that says its size, or null.
        let out = unsafe { OutStruct::new(out, "out") }?;
        out.write(&PlanInfo::read(message)?.into());
        Ok(Status::Ok)
    })
}

/// Applies a plan: uploads and fills what it tells and gives the tables of its step, as kavern_kv_tables does.
///
/// The cache was made with KAVERN_KV_WORKER and with the groups, max_sequences, max_batch_tokens and scrubbing of its
/// scheduler; heads, types and bytes of a block may differ. Call kavern_kv_step_done with the plan's step on this cache
/// when its work is enqueued, and tell the scheduler, whose cache gets kavern_kv_step_done with a null stream when all
/// workers are done. With KAVERN_KV_ADAPTIVE_BLOCKS and max_blocks the memory of the size classes follows the plan, and
/// KAVERN_ERR_OUT_OF_MEMORY says that there is none for a class that grew: nothing was taken over but that others have
/// become smaller, and the same plan may be applied again when there is.
/// Shapes: `message` [bytes], read before the call returns; `out` as in kavern_kv_tables.
/// Stream: as kavern_kv_tables.
/// Errors: KAVERN_ERR_DEPENDENCY if a plan before it was missed, or if it is another scheduler's: ask for a full one.
/// KAVERN_ERR_INVALID_ARGUMENT for a message that was cut or changed, whose numbers are out of range, or whose geometry
/// is not this cache's; KAVERN_ERR_UNSUPPORTED for another version, for one that tells no sizes of classes where memory
/// follows them, and for a cache that is no worker's;
/// KAVERN_ERR_WRONG_STATE for a plan that was applied before and for a step that is over; KAVERN_ERR_TOO_MANY_STEPS;
/// with all of these nothing has changed. KAVERN_ERR_DEVICE, after which the same plan may be applied again; the others
/// of kavern_kv_tables.
/// Threads: any, one at a time; may wait for the device to map memory for a class that grew.
/// Since: 0.1
///
/// # Safety
/// `message` must point to `bytes` bytes; `out` as in kavern_kv_tables.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_kv_plan_apply(
    worker: *mut kavern_kv_cache,
    stream: *mut c_void,
    message: *const c_void,
    bytes: u64,
    out: *mut kavern_kv_step_tables,
) -> kavern_status {
    guard_on("kavern_kv_plan_apply", worker, |object| {
        // SAFETY: the header asks for `bytes` bytes.
        let message = unsafe { message_bytes(message, bytes) }?;
        // SAFETY: the header asks for what kavern_kv_tables asks for.
        unsafe {
            fill_tables(object, out, |read| {
                let stream = stream::resolve(object.manager(), stream)?;
                object.cache.apply_plan(*stream, message, |tables| read(tables))
            })
        }
    })
}
