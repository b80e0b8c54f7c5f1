//! The one error type of the crate and the status numbers it maps to.
//!
//! An error says what was asked, what was there and what to do. Its [`Status`] tells the caller's *program* what to
//! do; the text tells the caller's *person*. Bands: -1..-99 the caller's argument, -100..-199 resources (free
//! something and retry), -200..-299 device or operating system, -300.. our bug. Numbers are never reused.

use std::borrow::Cow;

/// Result of every fallible function in the crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong, coarse enough to act on; the numbers are the C ABI's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(i32)]
pub enum Status {
    /// Done.
    Ok = 0,
    /// Some elements of a batch were refused; their own status says why.
    Partial = 1,
    /// Still running.
    Pending = 2,

    /// A value is outside what the function accepts.
    InvalidArgument = -1,
    /// A pointer that must not be null is null.
    NullPointer = -2,
    /// The handle is forged, destroyed or of another kind.
    InvalidHandle = -3,
    /// The id was valid once, or belongs to something else.
    StaleId = -4,
    /// `struct_size` is not one that this library knows.
    StructSize = -5,
    /// The feature exists in the interface but not in this build or for this object.
    Unsupported = -6,
    /// An operation of the same list, on which this one depends, was refused.
    Dependency = -7,
    /// The call comes at the wrong time (step order, state of a sequence).
    WrongState = -8,
    /// The caller's buffer is too small; the needed size is told.
    BufferTooSmall = -9,
    /// Tokens where the namespace takes keys, or the other way round.
    KeyMode = -10,
    /// The object is still in use.
    InUse = -11,
    /// The name is already taken.
    AlreadyExists = -12,
    /// Nothing has that name.
    NotFound = -13,

    /// Device memory is exhausted.
    OutOfMemory = -100,
    /// No free or evictable block is left.
    OutOfBlocks = -101,
    /// A table of fixed size (sequences, leases, namespaces) is full.
    LimitReached = -102,
    /// More steps in flight than the configuration allows.
    TooManySteps = -103,
    /// Host memory is exhausted.
    OutOfHostMemory = -104,

    /// There is no such device on this machine.
    NoDevice = -200,
    /// The device or its driver refused a call.
    Device = -201,
    /// The device is lost; restart the process.
    DeviceLost = -202,
    /// The operating system refused a call.
    Os = -203,
    /// The process was forked; the child cannot use the parent's devices.
    Forked = -204,

    /// A panic was caught at the boundary: a bug of ours.
    Panic = -300,
    /// The object saw a panic before and refuses further work; destroy it.
    Poisoned = -301,
    /// An invariant does not hold: a bug of ours.
    Internal = -302,
}

/// An error: its status and a text that says what was asked, what was there, what to do.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{text}")]
pub struct Error {
    /// What the caller's program should act on.
    pub status: Status,
    /// The text for people; static where the path must not allocate.
    pub text: Cow<'static, str>,
}

impl Error {
    /// An error with a text made for this occasion, or a static one where nothing may be allocated.
    pub fn new(status: Status, text: impl Into<Cow<'static, str>>) -> Self {
        Self { status, text: text.into() }
    }

    /// The caller passed something that the function does not accept.
    pub fn argument(text: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Status::InvalidArgument, text)
    }

    /// An errno of the operating system, with what was being done.
    pub fn os(doing: &str) -> Self {
        Self::from_io(doing, &std::io::Error::last_os_error())
    }

    /// An I/O error with what was being done; keeps the raw errno in the text.
    pub fn from_io(doing: &str, error: &std::io::Error) -> Self {
        let status = match error.raw_os_error() {
            Some(libc::ENOMEM) => Status::OutOfHostMemory,
            _ => Status::Os,
        };
        Self::new(status, format!("{doing}: {error}"))
    }

    /// An invariant of ours does not hold.
    pub fn internal(text: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Status::Internal, text)
    }

    /// The same error with words in front, for callers that know more of the request.
    #[must_use]
    pub fn context(self, doing: &str) -> Self {
        Self { status: self.status, text: format!("{doing}: {}", self.text).into() }
    }
}
