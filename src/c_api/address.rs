//! What is known and wanted of one allocation: its facts, its other users, its tag, its place in a graph.
//!
//! What it does not: allocate or free. Invariant: an address that is no live allocation is refused.

use std::ffi::{c_char, c_void};

use super::config::{Out, OutStruct};
use super::guard::guard_on;
use super::memory_types::kavern_address_description;
use super::stream;
use super::text;
use super::types::{kavern_manager, kavern_status};
use crate::error::Status;

/// Tells what an address belongs to.
///
/// Errors: KAVERN_ERR_INVALID_ARGUMENT (no live allocation begins there), KAVERN_ERR_INVALID_HANDLE,
/// KAVERN_ERR_NULL_POINTER, KAVERN_ERR_STRUCT_SIZE.
/// Threads: any; does not block.
/// Since: 0.1
///
/// # Safety
/// `out` must be null or point to as many writable bytes as its struct_size says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_address_info(
    manager: *const kavern_manager,
    address: u64,
    out: *mut kavern_address_description,
) -> kavern_status {
    guard_on("kavern_address_info", manager, |object| {
        // SAFETY: the header asks for a struct that says its size, or null.
        let out = unsafe { OutStruct::new(out, "out") }?;
        out.write(&object.heap()?.block_info(address)?.into());
        Ok(Status::Ok)
    })
}

/// Says that work on another stream uses an allocation too, so that its free waits for what is enqueued there by then.
///
/// Errors: KAVERN_ERR_INVALID_ARGUMENT (no live allocation begins there), KAVERN_ERR_INVALID_HANDLE,
/// KAVERN_ERR_NULL_POINTER.
/// Threads: any; does not block.
/// Since: 0.1
///
/// # Safety
/// A registered stream must be alive, and stay so until the allocation is freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_record_use(
    manager: *mut kavern_manager,
    address: u64,
    stream: *mut c_void,
) -> kavern_status {
    guard_on("kavern_record_use", manager, |object| {
        let resolved = stream::resolve(object, stream)?;
        object.heap()?.record_use(address, *resolved).map(|()| Status::Ok)
    })
}

/// Keeps the physical memory of an allocation in place: it is registered with NCCL, RDMA or another process.
///
/// Unpin it as often as it was pinned, before you free it.
/// Errors: KAVERN_ERR_INVALID_ARGUMENT (no live allocation begins there), KAVERN_ERR_INVALID_HANDLE,
/// KAVERN_ERR_NULL_POINTER.
/// Threads: any; does not block.
/// Since: 0.1
///
/// # Safety
/// None beyond a handle or null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_address_pin(manager: *mut kavern_manager, address: u64) -> kavern_status {
    guard_on("kavern_address_pin", manager, |object| object.heap()?.pin(address).map(|()| Status::Ok))
}

/// Undoes one kavern_address_pin.
///
/// Errors: KAVERN_ERR_INVALID_ARGUMENT (no live allocation begins there), KAVERN_ERR_NOT_FOUND (not pinned),
/// KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_NULL_POINTER.
/// Threads: any; does not block.
/// Since: 0.1
///
/// # Safety
/// None beyond a handle or null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_address_unpin(manager: *mut kavern_manager, address: u64) -> kavern_status {
    guard_on("kavern_address_unpin", manager, |object| object.heap()?.unpin(address).map(|()| Status::Ok))
}

/// Gives the id of a name that allocations carry in reports; the same name gives the same id.
///
/// Errors: KAVERN_ERR_LIMIT_REACHED (65,536 names), KAVERN_ERR_INVALID_ARGUMENT (no UTF-8 or too long),
/// KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_NULL_POINTER.
/// Threads: any.
/// Since: 0.1
///
/// # Safety
/// `name` must be null or a text with a zero at its end, `out` be null or point to a writable value.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_tag(
    manager: *mut kavern_manager,
    name: *const c_char,
    out: *mut u64,
) -> kavern_status {
    guard_on("kavern_tag", manager, |object| {
        // SAFETY: the header asks for a text or null.
        let name = unsafe { text::read(name, "name") }?;
        // SAFETY: the header asks for a writable value or null.
        let out = unsafe { Out::new(out, "out") }?;
        out.write(object.heap()?.tag(name)?.0);
        Ok(Status::Ok)
    })
}

/// Prepares a stream for the capture of a graph; call it before the capture begins.
///
/// What is allocated on the stream while it is captured belongs to the graph: freed during or after the capture, it is
/// given to nobody but later allocations of a capture of the same stream, until kavern_capture_release.
/// Errors: KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_NULL_POINTER.
/// Threads: any.
/// Since: 0.1
///
/// # Safety
/// A registered stream must be alive.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_capture_begin(
    manager: *mut kavern_manager,
    stream: *mut c_void,
) -> kavern_status {
    guard_on("kavern_capture_begin", manager, |object| {
        let resolved = stream::resolve(object, stream)?;
        object.heap()?.capture_begins(*resolved);
        Ok(Status::Ok)
    })
}

/// Gives up what was allocated and freed in the captures of a stream: their graphs are not launched any more.
///
/// Stream: the memory is free once `stream` is past this point; all launches of the graphs come before it.
/// The captured stream has to live until then: what its captures hold when it goes stays theirs until the manager goes.
/// Errors: KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_NULL_POINTER.
/// Threads: any.
/// Since: 0.1
///
/// # Safety
/// Registered streams must be alive.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_capture_release(
    manager: *mut kavern_manager,
    captured_stream: *mut c_void,
    stream: *mut c_void,
) -> kavern_status {
    guard_on("kavern_capture_release", manager, |object| {
        let captured = stream::resolve(object, captured_stream)?;
        let resolved = stream::resolve(object, stream)?;
        object.heap()?.capture_released(*captured, *resolved);
        Ok(Status::Ok)
    })
}
