//! Copies from the device to the host that the engine runs itself, so that page tables change beside none of them.
//!
//! What it does not: copy. Invariant: a refused call leaves the count as it was.

use std::ffi::c_void;

use super::guard::guard_on;
use super::stream;
use super::types::{kavern_manager, kavern_status};
use crate::error::Status;

/// Says that you are about to copy from the device to the host, by means of your own.
///
/// Changes of page tables and such a copy slow each other down. While one runs, the upkeep of the library's pages
/// waits: pages are unmapped and given back later, after 100 ms at most. What an allocation or a commit
/// needs is mapped all the same and counted in loud_table_changes of kavern_manager_stats. Copies of a few kilobytes
/// are not worth the call.
/// Errors: KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_NULL_POINTER.
/// Threads: any; does not block and does not call the device.
/// Owner: end each with kavern_copies_end.
/// Since: 0.1
///
/// # Safety
/// None beyond a handle or null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_copies_begin(manager: *mut kavern_manager) -> kavern_status {
    guard_on("kavern_copies_begin", manager, |manager| {
        manager.memory().copies().begin();
        Ok(Status::Ok)
    })
}

/// Says that one copy is over once the stream is past this point; NULL says that it is over now.
///
/// Which of the copies under way it was does not matter: they are counted.
/// Stream: as for kavern_stream_synchronize, but for NULL; the default stream is KAVERN_STREAM_DEFAULT.
/// Errors: KAVERN_ERR_WRONG_STATE if no copy is under way, or if the stream is being captured, or is the default stream
/// and waits for one that is; then end it by NULL when the graph is done. KAVERN_ERR_INVALID_HANDLE,
/// KAVERN_ERR_NULL_POINTER, KAVERN_ERR_DEVICE. The count then stays.
/// Threads: any, also another than that of the begin; enqueues and returns.
/// Since: 0.1
///
/// # Safety
/// None beyond handles or null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_copies_end(
    manager: *mut kavern_manager,
    stream: *mut c_void,
) -> kavern_status {
    guard_on("kavern_copies_end", manager, |manager| {
        let copies = manager.memory().copies();
        if stream.is_null() {
            copies.end(None)?;
        } else {
            copies.end(Some(*stream::resolve(manager, stream)?))?;
        }
        Ok(Status::Ok)
    })
}
