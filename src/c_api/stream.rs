//! Streams and tickets.
//!
//! What it does: makes streams, turns a `void *stream` of the header into a stream that is safe to use for one call,
//! records and awaits tickets. What it does not: know foreign streams; the manager does.
//! Invariant: a handle that is destroyed during a call on its stream lives until the call has ended.

use std::ffi::c_void;
use std::sync::Arc;

use super::config::{self, Out, OutArray};
use super::guard::{guard, guard_on};
use super::handle::{self, Handle, Kind};
use super::types::{kavern_manager, kavern_status, kavern_stream};
use crate::error::{Result, Status};
use crate::manager::{self, Manager, OwnStream, State, StreamRef};
use crate::types::Id;

impl Handle for kavern_stream {
    const KIND: Kind = Kind::Stream;
    type Object = OwnStream;

    fn end(object: Arc<OwnStream>) {
        // Another manager may have it registered; by this handle no thread is served from its cache any more.
        object.close_caches();
    }
}

fn own(stream: *mut c_void) -> Result<Arc<OwnStream>> {
    handle::get(stream.cast::<kavern_stream>().cast_const())
}

/// The stream that a `void *stream` of the header stands for, kept alive for the call.
pub(super) fn resolve(manager: &Arc<Manager>, stream: *mut c_void) -> Result<StreamRef> {
    let value = config::stream_value(stream);
    if !handle::is_handle_value(value) {
        return manager.stream(value);
    }
    // A handle of another manager may have been registered here; the refusal of its own manager says more if not.
    own(stream)
        .and_then(|own| manager.own_stream(own))
        .or_else(|refusal| manager.stream(value).map_err(|_| refusal))
}

/// The stream of another manager that a value to be registered stands for, if it is a handle.
pub(super) fn origin(stream: *mut c_void) -> Result<Option<Arc<OwnStream>>> {
    if handle::is_handle_value(config::stream_value(stream)) { own(stream).map(Some) } else { Ok(None) }
}

/// Makes a stream, to be passed wherever a `void *stream` is taken together with this manager.
///
/// Errors: KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_NULL_POINTER, KAVERN_ERR_LIMIT_REACHED, KAVERN_ERR_DEVICE.
/// Threads: any.
/// Owner: destroy with kavern_stream_destroy; it keeps its manager alive.
/// Since: 0.1
///
/// # Safety
/// `out` must be null or point to a writable handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_stream_create(
    manager: *mut kavern_manager,
    out: *mut *mut kavern_stream,
) -> kavern_status {
    guard_on("kavern_stream_create", manager, |manager| {
        // SAFETY: the header asks for a writable handle or null.
        let out = unsafe { Out::new(out, "out") }?;
        out.write(handle::insert(manager.create_stream()?)?);
        Ok(Status::Ok)
    })
}

/// Waits for the stream's work, destroys the stream and nulls the handle; null is fine.
///
/// Errors: KAVERN_ERR_INVALID_HANDLE; the handle then stays as it is.
/// Threads: any; blocks until the work is done. A call on another thread that uses the stream ends first.
/// Since: 0.1
///
/// # Safety
/// `stream` must be null or point to a writable handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_stream_destroy(stream: *mut *mut kavern_stream) -> kavern_status {
    guard("kavern_stream_destroy", || {
        // SAFETY: the header asks for a writable handle or null.
        unsafe { config::destroy(stream, "stream") }
    })
}

/// Waits until all work enqueued on the stream so far is done.
///
/// Stream: 0 or KAVERN_STREAM_DEFAULT for the default stream, a kavern_stream of this manager, or a registered one.
/// Errors: KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_INVALID_ARGUMENT, KAVERN_ERR_DEVICE_LOST.
/// Threads: any; blocks.
/// Since: 0.1
///
/// # Safety
/// None beyond handles or null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_stream_synchronize(
    manager: *mut kavern_manager,
    stream: *mut c_void,
) -> kavern_status {
    guard_on("kavern_stream_synchronize", manager, |manager| {
        let stream = resolve(manager, stream)?;
        manager.device().stream_synchronize(*stream)?;
        Ok(Status::Ok)
    })
}

/// Makes later work on the stream wait for the work of a ticket.
///
/// Stream: as for kavern_stream_synchronize.
/// Errors: KAVERN_ERR_STALE_ID for what is no ticket, KAVERN_ERR_INVALID_ARGUMENT for one of another manager, the
/// ticket's own error if its work has failed, KAVERN_ERR_INVALID_HANDLE.
/// Threads: any; enqueues and returns.
/// Since: 0.1
///
/// # Safety
/// None beyond handles or null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_stream_wait(
    manager: *mut kavern_manager,
    stream: *mut c_void,
    ticket: u64,
) -> kavern_status {
    guard_on("kavern_stream_wait", manager, |manager| {
        let stream = resolve(manager, stream)?;
        manager.stream_wait(*stream, Id(ticket))?;
        Ok(Status::Ok)
    })
}

/// Makes a ticket for all work enqueued on the stream so far.
///
/// Stream: as for kavern_stream_synchronize.
/// Errors: KAVERN_ERR_WRONG_STATE (the stream is being captured, or it is the default stream and waits for one that
/// is), KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_INVALID_ARGUMENT, KAVERN_ERR_NULL_POINTER, KAVERN_ERR_LIMIT_REACHED if
/// 2^20 tickets are pending.
/// Threads: any; enqueues and returns.
/// Owner: nothing to free; a ticket that nobody asks for goes by itself.
/// Since: 0.1
///
/// # Safety
/// `ticket` must be null or point to a writable value.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_stream_record(
    manager: *mut kavern_manager,
    stream: *mut c_void,
    ticket: *mut u64,
) -> kavern_status {
    guard_on("kavern_stream_record", manager, |manager| {
        // SAFETY: the header asks for a writable value or null.
        let ticket = unsafe { Out::new(ticket, "ticket") }?;
        let stream = resolve(manager, stream)?;
        ticket.write(manager.record(*stream)?.0);
        Ok(Status::Ok)
    })
}

/// Asks for the state of tickets, of any managers.
///
/// Shapes: `tickets` [n], `states` [n]. A state is KAVERN_OK (done), KAVERN_PENDING, or an error: the ticket's own,
/// told once, after which it counts as done; KAVERN_ERR_STALE_ID for what is no ticket.
/// Errors: the call answers KAVERN_PENDING if a ticket is pending, else KAVERN_PARTIAL if a state is an error, else
/// KAVERN_OK; KAVERN_ERR_NULL_POINTER, KAVERN_ERR_INVALID_ARGUMENT.
/// Threads: any; does not block.
/// Since: 0.1
///
/// # Safety
/// `tickets` must point to `n` values and `states` to `n` writable ones; null is fine where n is 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_ticket_poll(
    tickets: *const u64,
    n: usize,
    states: *mut i32,
) -> kavern_status {
    guard("kavern_ticket_poll", || {
        // SAFETY: the header asks for `n` values.
        let tickets = unsafe { config::array(tickets, n, "tickets") }?;
        // SAFETY: the header asks for `n` writable values.
        let mut states = unsafe { OutArray::new(states, n, "states") }?;
        let (mut is_pending, mut has_failed) = (false, false);
        for (index, &ticket) in tickets.iter().enumerate() {
            let status = match manager::poll(Id(ticket)) {
                Ok(State::Done) => Status::Ok,
                Ok(State::Pending) => Status::Pending,
                Ok(State::Failed(error)) | Err(error) => error.status,
            };
            is_pending |= status == Status::Pending;
            has_failed |= (status as i32) < 0;
            states.write(index, status as i32);
        }
        Ok(if is_pending {
            Status::Pending
        } else if has_failed {
            Status::Partial
        } else {
            Status::Ok
        })
    })
}

/// Waits for the work of a ticket, at most so long.
///
/// Units: nanoseconds; 0 only asks, UINT64_MAX waits for ever.
/// Errors: KAVERN_PENDING if the time was not enough; KAVERN_ERR_STALE_ID for what is no ticket; the ticket's own
/// error, told once.
/// Threads: any; blocks.
/// Since: 0.1
///
/// # Safety
/// None.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_ticket_wait(ticket: u64, timeout_ns: u64) -> kavern_status {
    guard("kavern_ticket_wait", || match manager::wait(Id(ticket), timeout_ns)? {
        State::Done => Ok(Status::Ok),
        State::Pending => Ok(Status::Pending),
        State::Failed(error) => Err(error),
    })
}

/// Makes later work on a stream wait for the work of a ticket; the same as kavern_stream_wait.
///
/// Stream: as for kavern_stream_synchronize.
/// Errors: as kavern_stream_wait.
/// Threads: any; enqueues and returns.
/// Since: 0.1
///
/// # Safety
/// None beyond handles or null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_ticket_wait_on_stream(
    ticket: u64,
    manager: *mut kavern_manager,
    stream: *mut c_void,
) -> kavern_status {
    guard_on("kavern_ticket_wait_on_stream", manager, |manager| {
        let stream = resolve(manager, stream)?;
        manager.stream_wait(*stream, Id(ticket))?;
        Ok(Status::Ok)
    })
}
