//! The guard around each exported function: forks, panics, poisoned objects, status and last error.
//!
//! What it does: turns `Result<Status>` into a `kavern_status` and leaves the reason for `kavern_last_error`; stops a
//! panic at the boundary and poisons the object it happened to. What it does not: check arguments (`config`).
//!
//! `KAVERN_FAULT_PANIC=<function>` in the environment, read at the first call, plants a panic in that function, so that
//! a user can test how their program survives a bug of ours.
//!
//! Invariants: the text changes only with a failure; nothing here has a thread-local destructor, which would run after
//! a dlclose. No locks.

use std::cell::{Cell, RefCell};
use std::fmt::{self, Write};
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};

use super::handle::{self, Handle};
use super::log;
use super::types::kavern_status;
use crate::error::{Error, Result, Status};
use crate::event::Level;
use crate::sys::fork;

/// Room for the last error without its terminating zero.
const TEXT_BYTES: usize = 1023;

/// A text in place; what does not fit is cut at a character's end.
struct Text {
    length: usize,
    bytes: [u8; TEXT_BYTES],
}

impl Text {
    const fn new() -> Self {
        Self { length: 0, bytes: [0; TEXT_BYTES] }
    }

    fn as_str(&self) -> &str {
        str::from_utf8(&self.bytes[..self.length]).unwrap_or("")
    }
}

impl Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        // A zero would end the text for a C reader; it can only come from a caller's own string.
        for character in text.chars().filter(|&c| c != '\0') {
            let end = self.length + character.len_utf8();
            if end > TEXT_BYTES {
                return Err(fmt::Error);
            }
            character.encode_utf8(&mut self.bytes[self.length..end]);
            self.length = end;
        }
        Ok(())
    }
}

#[derive(Clone, Copy)]
enum Place {
    /// Not in a function of ours: a panic is somebody else's.
    Outside,
    /// In this function.
    Inside(&'static str),
    /// Dropping the payload of a panic whose text is already kept.
    Dropping,
}

thread_local! {
    static LAST_ERROR: RefCell<Text> = const { RefCell::new(Text::new()) };
    static PLACE: Cell<Place> = const { Cell::new(Place::Outside) };
}

const UNPREPARED: u8 = 0;
const READY: u8 = 1;
const PLANTED: u8 = 2;
static STATE: AtomicU8 = AtomicU8::new(UNPREPARED);
static FAULT: OnceLock<Option<String>> = OnceLock::new();

/// Calls `body` with the text of this thread's last failure.
pub(super) fn with_last_error<R>(body: impl FnOnce(&str) -> R) -> R {
    LAST_ERROR.with_borrow(|text| body(text.as_str()))
}

fn keep(function: &str, text: fmt::Arguments<'_>) {
    LAST_ERROR.with_borrow_mut(|last| {
        last.length = 0;
        // Writing ends early where the room ends.
        let _ = write!(last, "{function}: {text}");
    });
}

fn keep_panic(function: &str, info: &PanicHookInfo<'_>) {
    let payload = info.payload();
    let text = payload.downcast_ref::<&str>().copied();
    let message =
        text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message");
    match info.location() {
        Some(at) => keep(function, format_args!("panic at {}:{}: {message}", at.file(), at.line())),
        None => keep(function, format_args!("panic: {message}")),
    }
}

fn install_hook() {
    let previous = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| match PLACE.get() {
        Place::Inside(function) => keep_panic(function, info),
        Place::Dropping => {}
        Place::Outside => previous(info),
    }));
}

#[cold]
fn prepare() {
    // Changing the hook while this thread unwinds would panic; the next call will do it.
    if std::thread::panicking() {
        return;
    }
    let fault = FAULT.get_or_init(|| {
        install_hook();
        std::env::var("KAVERN_FAULT_PANIC").ok().filter(|name| !name.is_empty())
    });
    STATE.store(if fault.is_some() { PLANTED } else { READY }, Ordering::Relaxed);
}

#[cold]
fn meet_fault(function: &str) {
    let fault = FAULT.get().and_then(Option::as_deref);
    assert!(fault != Some(function), "planted by KAVERN_FAULT_PANIC");
}

/// Tells the log of the failure; the text stays, whatever a callback does on this thread.
fn announce(level: Level) {
    if log::wants(level) {
        let text = with_last_error(|text| text.to_owned());
        keeping_last_error(|| log::emit(level, "c_api", &text));
    }
}

/// Runs code during which the program may call the library; the text of the last failure is the same afterwards.
pub(super) fn keeping_last_error(body: impl FnOnce()) {
    let text = with_last_error(|text| text.to_owned());
    body();
    LAST_ERROR.with_borrow_mut(|last| {
        last.length = 0;
        let _ = last.write_str(&text);
    });
}

/// Whether this thread is in a function of ours, and so may have a lock of ours.
pub(super) fn is_inside() -> bool {
    !matches!(PLACE.get(), Place::Outside)
}

#[cold]
fn fail(function: &'static str, error: &Error) -> kavern_status {
    keep(function, format_args!("{}", error.text));
    if error.status != Status::Forked {
        announce(Level::Debug);
    }
    error.status as kavern_status
}

#[cold]
fn survive(payload: Box<dyn std::any::Any + Send>) -> kavern_status {
    let outer = PLACE.replace(Place::Dropping);
    // A payload may panic when it is dropped; what it throws then is left alone for good.
    if let Err(second) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        std::mem::forget(second);
    }
    PLACE.set(outer);
    announce(Level::Error);
    Status::Panic as kavern_status
}

/// Runs code of the caller's (a callback), during which a panic is not ours.
pub(super) fn outside<R>(body: impl FnOnce() -> R) -> R {
    let inner = PLACE.replace(Place::Outside);
    let result = body();
    PLACE.set(inner);
    result
}

/// Runs the body of an exported function.
pub(super) fn guard(function: &'static str, body: impl FnOnce() -> Result<Status>) -> kavern_status {
    let state = STATE.load(Ordering::Relaxed);
    if state != READY {
        prepare();
    }
    if fork::is_forked_child() {
        return fail(
            function,
            &fork::check().err().unwrap_or_else(|| Error::internal("fork flag went back")),
        );
    }
    let outer = PLACE.replace(Place::Inside(function));
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        if state != READY {
            meet_fault(function);
        }
        body()
    }));
    PLACE.set(outer);
    if matches!(outer, Place::Outside) {
        log::settle();
    }
    match outcome {
        Ok(Ok(status)) => status as kavern_status,
        Ok(Err(error)) => fail(function, &error),
        Err(payload) => survive(payload),
    }
}

/// Whether `KAVERN_FAULT_PANIC` names a function, which may be one that is served without the guard otherwise.
pub(super) fn has_planted_fault() -> bool {
    STATE.load(Ordering::Relaxed) == PLANTED
}

/// Runs the body of an exported function that looks the handle up by itself; a panic poisons its object.
pub(super) fn guard_handle<H: Handle>(
    function: &'static str,
    handle: *const H,
    body: impl FnOnce() -> Result<Status>,
) -> kavern_status {
    let status = guard(function, body);
    if status == Status::Panic as kavern_status {
        handle::poison(handle);
    }
    status
}

/// Runs the body of an exported function on the object behind a handle; a panic poisons that object.
pub(super) fn guard_on<H: Handle>(
    function: &'static str,
    handle: *const H,
    body: impl FnOnce(&Arc<H::Object>) -> Result<Status>,
) -> kavern_status {
    guard_handle(function, handle, || {
        let object = handle::get(handle)?;
        body(&object)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::c_api::handle::Kind;

    struct Thing;
    impl Handle for Thing {
        const KIND: Kind = Kind::KvCache;
        type Object = u32;
    }

    #[test]
    fn an_error_leaves_its_text_and_success_does_not_clear_it() {
        let status = guard("kavern_x", || Err(Error::argument("three is too many")));
        assert_eq!(status, -1);
        assert_eq!(guard("kavern_y", || Ok(Status::Partial)), 1);
        with_last_error(|text| assert_eq!(text, "kavern_x: three is too many"));
    }

    #[test]
    fn a_panic_becomes_a_status_and_poisons_its_object() {
        let handle = handle::insert::<Thing>(Arc::new(3)).unwrap();
        assert_eq!(guard_on("kavern_x", handle, |object| panic!("object {object}")), -300);
        with_last_error(|text| {
            assert!(text.starts_with("kavern_x: panic at src/c_api/guard.rs:"), "{text}");
            assert!(text.ends_with(": object 3"), "{text}");
        });
        assert_eq!(guard_on("kavern_x", handle, |_| Ok(Status::Ok)), -301);
        handle::remove(handle).unwrap();
    }

    struct ThrowsAgain;
    impl Drop for ThrowsAgain {
        fn drop(&mut self) {
            panic!("from the payload's drop");
        }
    }

    #[test]
    fn a_payload_that_panics_when_dropped_is_survived() {
        let status = guard("kavern_x", || std::panic::panic_any(ThrowsAgain));
        assert_eq!(status, -300);
        with_last_error(|text| assert!(text.ends_with("no message"), "{text}"));
    }

    #[test]
    fn a_long_text_is_cut_at_a_character() {
        guard("f", || Err(Error::argument("ü".repeat(2000))));
        with_last_error(|text| {
            assert!(text.len() <= TEXT_BYTES && text.len() > TEXT_BYTES - 2);
            assert!(text.ends_with('ü'));
        });
    }

    #[test]
    fn a_guarded_call_on_an_object_takes_well_under_a_microsecond() {
        let handle = handle::insert::<Thing>(Arc::new(3)).unwrap();
        let calls = 1_000_000;
        let start = crate::sys::clock::now_ns();
        for _ in 0..calls {
            assert_eq!(guard_on("kavern_x", std::hint::black_box(handle), |_| Ok(Status::Ok)), 0);
        }
        let nanoseconds = (crate::sys::clock::now_ns() - start) / calls;
        handle::remove(handle).unwrap();
        assert!(nanoseconds < 1000, "{nanoseconds} ns a call; about 20 on an idle machine");
    }
}
