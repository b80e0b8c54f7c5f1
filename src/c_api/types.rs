//! Numbers and opaque objects of the C ABI that belong to no single noun.
//!
//! Enums go outward only: functions take `uint32_t` and check it, because a Rust enum that holds an unknown value is
//! undefined behaviour. A test holds them equal to the rooms' own enums.

/// Result of every function: 0 done, > 0 done with news, < 0 refused (a KAVERN_ERR_ value).
pub type kavern_status = i32;

/// Values of kavern_status. Bands: -1..-99 your argument, -100..-199 resources (free something and retry),
/// -200..-299 device or operating system, -300.. a bug of the library. Numbers are never reused.
#[repr(i32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum kavern_status_code {
    /// Done.
    KAVERN_OK = 0,
    /// Some elements of the batch were refused; their own status says why.
    KAVERN_PARTIAL = 1,
    /// Still running.
    KAVERN_PENDING = 2,
    /// A value is outside what the function accepts.
    KAVERN_ERR_INVALID_ARGUMENT = -1,
    /// A pointer that must not be null is null.
    KAVERN_ERR_NULL_POINTER = -2,
    /// The handle is forged, destroyed or of another kind.
    KAVERN_ERR_INVALID_HANDLE = -3,
    /// The id was valid once, or belongs to something else.
    KAVERN_ERR_STALE_ID = -4,
    /// struct_size is not one that this library knows, or a field that it does not know is not zero.
    KAVERN_ERR_STRUCT_SIZE = -5,
    /// Exists in the interface, but not in this version or for this object.
    KAVERN_ERR_UNSUPPORTED = -6,
    /// An operation of the same list, on which this one depends, was refused.
    KAVERN_ERR_DEPENDENCY = -7,
    /// The call comes at the wrong time.
    KAVERN_ERR_WRONG_STATE = -8,
    /// Your buffer is too small; the needed size is told.
    KAVERN_ERR_BUFFER_TOO_SMALL = -9,
    /// Tokens where the namespace takes keys, or the other way round.
    KAVERN_ERR_KEY_MODE = -10,
    /// The object is still in use.
    KAVERN_ERR_IN_USE = -11,
    /// The name is already taken.
    KAVERN_ERR_ALREADY_EXISTS = -12,
    /// Nothing has that name.
    KAVERN_ERR_NOT_FOUND = -13,
    /// Device memory is exhausted.
    KAVERN_ERR_OUT_OF_MEMORY = -100,
    /// No free or evictable block is left.
    KAVERN_ERR_OUT_OF_BLOCKS = -101,
    /// A table of fixed size (sequences, leases, namespaces, handles) is full.
    KAVERN_ERR_LIMIT_REACHED = -102,
    /// More steps in flight than the configuration allows.
    KAVERN_ERR_TOO_MANY_STEPS = -103,
    /// Host memory is exhausted.
    KAVERN_ERR_OUT_OF_HOST_MEMORY = -104,
    /// There is no such device on this machine.
    KAVERN_ERR_NO_DEVICE = -200,
    /// The device or its driver refused a call.
    KAVERN_ERR_DEVICE = -201,
    /// The device is lost; restart the process.
    KAVERN_ERR_DEVICE_LOST = -202,
    /// The operating system refused a call.
    KAVERN_ERR_OS = -203,
    /// The process was forked; the child cannot use the parent's devices.
    KAVERN_ERR_FORKED = -204,
    /// A panic was caught at the boundary: a bug of the library.
    KAVERN_ERR_PANIC = -300,
    /// The object saw a panic before and refuses further work; destroy it.
    KAVERN_ERR_POISONED = -301,
    /// An invariant of the library does not hold: a bug.
    KAVERN_ERR_INTERNAL = -302,
}

/// How much a reader of the log needs to care.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum kavern_log_level {
    /// Silent.
    KAVERN_LOG_OFF = 0,
    /// Something failed.
    KAVERN_LOG_ERROR = 1,
    /// Something works otherwise than you may expect.
    KAVERN_LOG_WARN = 2,
    /// Life cycle of long-lived objects.
    KAVERN_LOG_INFO = 3,
    /// Details for a person who looks for a fault.
    KAVERN_LOG_DEBUG = 4,
}

/// Receives what the library says: your userdata, a KAVERN_LOG_ level, the room that speaks, a sentence.
pub type kavern_log_fn = Option<
    unsafe extern "C" fn(
        userdata: *mut core::ffi::c_void,
        level: u32,
        room: *const core::ffi::c_char,
        text: *const core::ffi::c_char,
    ),
>;

/// One device with its memory, streams and caches. Thread-safe.
pub struct kavern_manager {
    _opaque: [u8; 0],
}

/// A paged, prefix-sharing KV cache. Thread-safe; keeps its manager alive.
pub struct kavern_kv_cache {
    _opaque: [u8; 0],
}

/// A stream made by the library; pass it wherever a `void *stream` is taken.
pub struct kavern_stream {
    _opaque: [u8; 0],
}

/// Blocks of device memory of a few sizes, handed out in stream order. Thread-safe; keeps its manager alive.
pub struct kavern_pool {
    _opaque: [u8; 0],
}

/// The status numbers of the header and of the rooms, side by side.
#[cfg(test)]
pub(super) const STATUSES: &[(kavern_status_code, crate::error::Status)] = {
    use crate::error::Status;
    use kavern_status_code::*;
    &[
        (KAVERN_OK, Status::Ok),
        (KAVERN_PARTIAL, Status::Partial),
        (KAVERN_PENDING, Status::Pending),
        (KAVERN_ERR_INVALID_ARGUMENT, Status::InvalidArgument),
        (KAVERN_ERR_NULL_POINTER, Status::NullPointer),
        (KAVERN_ERR_INVALID_HANDLE, Status::InvalidHandle),
        (KAVERN_ERR_STALE_ID, Status::StaleId),
        (KAVERN_ERR_STRUCT_SIZE, Status::StructSize),
        (KAVERN_ERR_UNSUPPORTED, Status::Unsupported),
        (KAVERN_ERR_DEPENDENCY, Status::Dependency),
        (KAVERN_ERR_WRONG_STATE, Status::WrongState),
        (KAVERN_ERR_BUFFER_TOO_SMALL, Status::BufferTooSmall),
        (KAVERN_ERR_KEY_MODE, Status::KeyMode),
        (KAVERN_ERR_IN_USE, Status::InUse),
        (KAVERN_ERR_ALREADY_EXISTS, Status::AlreadyExists),
        (KAVERN_ERR_NOT_FOUND, Status::NotFound),
        (KAVERN_ERR_OUT_OF_MEMORY, Status::OutOfMemory),
        (KAVERN_ERR_OUT_OF_BLOCKS, Status::OutOfBlocks),
        (KAVERN_ERR_LIMIT_REACHED, Status::LimitReached),
        (KAVERN_ERR_TOO_MANY_STEPS, Status::TooManySteps),
        (KAVERN_ERR_OUT_OF_HOST_MEMORY, Status::OutOfHostMemory),
        (KAVERN_ERR_NO_DEVICE, Status::NoDevice),
        (KAVERN_ERR_DEVICE, Status::Device),
        (KAVERN_ERR_DEVICE_LOST, Status::DeviceLost),
        (KAVERN_ERR_OS, Status::Os),
        (KAVERN_ERR_FORKED, Status::Forked),
        (KAVERN_ERR_PANIC, Status::Panic),
        (KAVERN_ERR_POISONED, Status::Poisoned),
        (KAVERN_ERR_INTERNAL, Status::Internal),
    ]
};
