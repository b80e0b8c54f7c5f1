//! The log: what the library says goes to one callback and, if `KAVERN_LOG` asks for it, to stderr.
//!
//! What it does: keeps the callback, counts the calls in flight, lets an unregistering thread wait for them; keeps what
//! rooms say, who may have locks, until the thread is on its way out of the library. What it does not: filter by room.
//! Silent by default.
//!
//! Invariants: a callback is never called under a lock; after `set_callback` returns, the former callback is not
//! running on any other thread and is never called again; a thread inside a callback gets no further call from what it
//! does there, so that a callback may use the library. Locks: `STATE` and `KEPT`, each taken alone.

use std::cell::Cell;
use std::ffi::{CString, c_char, c_void};
use std::io::Write;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{self, ThreadId};

use super::guard;
use super::types::{kavern_log_fn, kavern_status};
use crate::error::{Error, Status};
use crate::event::{Event, EventSink, Level};
use crate::sync::{Condvar, Mutex};

#[derive(Clone, Copy)]
struct Callback {
    number: u64,
    function: unsafe extern "C" fn(*mut c_void, u32, *const c_char, *const c_char),
    userdata: *mut c_void,
}
// SAFETY: the header says that the callback is called from any thread, so the caller has made userdata fit for that.
unsafe impl Send for Callback {}

struct State {
    callback: Option<Callback>,
    /// Calls in flight by number of the callback; empty unless a call is running.
    in_flight: Vec<u64>,
    next_number: u64,
}

static STATE: Mutex<State> = Mutex::new(State { callback: None, in_flight: Vec::new(), next_number: 1 });
static CALL_ENDED: Condvar = Condvar::new();
/// What the callback wants; 0 without one.
static CALLBACK_LEVEL: AtomicU32 = AtomicU32::new(0);
static STDERR_LEVEL: OnceLock<u32> = OnceLock::new();

/// What was said by a thread that has not settled since.
struct Kept {
    thread: ThreadId,
    level: Level,
    room: &'static str,
    text: String,
}

static KEPT: Mutex<Vec<Kept>> = Mutex::new(Vec::new());

thread_local! {
    /// Number of the callback that this thread is in; 0 outside.
    static INSIDE: Cell<u64> = const { Cell::new(0) };
    /// Whether this thread is one of the library's, at work.
    static IS_HELD: Cell<bool> = const { Cell::new(false) };
    /// Whether anything of `KEPT` is this thread's.
    static HAS_KEPT: Cell<bool> = const { Cell::new(false) };
}

fn read_variable() -> u32 {
    let Ok(value) = std::env::var("KAVERN_LOG") else { return 0 };
    match value.as_str() {
        "" | "off" => 0,
        "error" => 1,
        "warn" => 2,
        "info" => 3,
        "debug" => 4,
        other => {
            let text = format!("KAVERN_LOG={other} is none of off, error, warn, info, debug; taken as warn");
            write_stderr(Level::Warn, "c_api", &text);
            2
        }
    }
}

fn stderr_level() -> u32 {
    *STDERR_LEVEL.get_or_init(read_variable)
}

fn write_stderr(level: Level, room: &str, text: &str) {
    let name = match level {
        Level::Error => "error",
        Level::Warn => "warn",
        Level::Info => "info",
        Level::Debug => "debug",
    };
    // A closed stderr is no reason to fail.
    let _ = writeln!(std::io::stderr(), "kavern {name} {room}: {text}");
}

/// Whether anybody reads this level.
pub(super) fn wants(level: Level) -> bool {
    let level = level as u32;
    level <= stderr_level() || level <= CALLBACK_LEVEL.load(Ordering::Relaxed)
}

fn begin_call(level: Level) -> Option<Callback> {
    if INSIDE.get() != 0 || level as u32 > CALLBACK_LEVEL.load(Ordering::Relaxed) {
        return None;
    }
    let mut state = STATE.lock();
    let callback = state.callback?;
    state.in_flight.push(callback.number);
    Some(callback)
}

fn end_call(callback: &Callback) {
    let mut state = STATE.lock();
    if let Some(at) = state.in_flight.iter().position(|&number| number == callback.number) {
        state.in_flight.swap_remove(at);
    }
    CALL_ENDED.notify_all();
}

/// Says something to whoever listens. The caller has no lock.
pub(super) fn emit(level: Level, room: &str, text: &str) {
    if level as u32 <= stderr_level() {
        write_stderr(level, room, text);
    }
    call(level, room, text);
}

/// As `emit`, where the caller may have locks: the callback hears it later.
fn keep(event: Event<'_>) {
    if event.level as u32 <= stderr_level() {
        write_stderr(event.level, event.room, event.text);
    }
    if INSIDE.get() == 0 && event.level as u32 <= CALLBACK_LEVEL.load(Ordering::Relaxed) {
        let (thread, text) = (thread::current().id(), event.text.to_owned());
        KEPT.lock().push(Kept { thread, level: event.level, room: event.room, text });
        HAS_KEPT.set(true);
    }
}

/// Tells the callback what this thread has kept. It has no lock.
pub(super) fn settle() {
    if !HAS_KEPT.get() || INSIDE.get() != 0 {
        return;
    }
    HAS_KEPT.set(false);
    let here = thread::current().id();
    let kept: Vec<Kept> = KEPT.lock().extract_if(.., |kept| kept.thread == here).collect();
    guard::keeping_last_error(|| kept.iter().for_each(|kept| call(kept.level, kept.room, &kept.text)));
}

fn call(level: Level, room: &str, text: &str) {
    let Some(callback) = begin_call(level) else { return };
    let c_text = |text: &str| CString::new(text.replace('\0', " ")).unwrap_or_default();
    let (room, text) = (c_text(room), c_text(text));
    INSIDE.set(callback.number);
    guard::outside(|| {
        // SAFETY: the caller registered a function of this type and keeps it and userdata valid until it has been
        // unregistered, which waits for this call.
        unsafe { (callback.function)(callback.userdata, level as u32, room.as_ptr(), text.as_ptr()) }
    });
    INSIDE.set(0);
    end_call(&callback);
}

/// Takes the place of the former callback and waits for the calls of that one, but not for the caller's own.
fn set_callback(level: u32, function: kavern_log_fn, userdata: *mut c_void) {
    let mut state = STATE.lock();
    let former = state.callback.take();
    if let Some(function) = function {
        let number = state.next_number;
        state.next_number += 1;
        state.callback = Some(Callback { number, function, userdata });
    }
    CALLBACK_LEVEL.store(if function.is_some() { level } else { 0 }, Ordering::Relaxed);
    let Some(former) = former else { return };
    let own = usize::from(INSIDE.get() == former.number);
    while state.in_flight.iter().filter(|&&number| number == former.number).count() > own {
        CALL_ENDED.wait(&mut state);
    }
}

/// The sink that managers get.
#[derive(Debug)]
pub(super) struct LogSink;

impl EventSink for LogSink {
    fn wants(&self, level: Level) -> bool {
        wants(level)
    }

    fn emit(&self, event: Event<'_>) {
        if guard::is_inside() || IS_HELD.get() {
            keep(event);
        } else {
            emit(event.level, event.room, event.text);
        }
    }

    fn hold(&self) {
        IS_HELD.set(true);
    }

    fn settle(&self) {
        IS_HELD.set(false);
        settle();
    }
}

/// Sets the function that receives what the library says, up to `level` (a KAVERN_LOG_ value); null removes it.
///
/// The function gets `userdata`, the level, the room of the library that speaks, and a sentence; both texts are valid
/// during the call only. It is called without a lock of the library, at the end of the call in which something was said
/// or on a thread of the library, and may call the library; what it causes there by its own calls is not passed on to
/// it. It must not throw. The variable KAVERN_LOG (off, error, warn, info, debug) writes to stderr independently of it.
/// Errors: KAVERN_ERR_INVALID_ARGUMENT for an unknown level.
/// Threads: blocks until no other thread is in the former function, which is never called again.
/// Owner: `userdata` stays yours and valid until the function has been replaced or removed.
/// Since: 0.1
///
/// # Safety
/// `function` must be null or such a function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_set_log_callback(
    level: u32,
    function: kavern_log_fn,
    userdata: *mut c_void,
) -> kavern_status {
    guard::guard("kavern_set_log_callback", || {
        if level > Level::Debug as u32 {
            return Err(Error::argument(format!("log level {level} is unknown; use a KAVERN_LOG_ value")));
        }
        set_callback(level, function, userdata);
        Ok(Status::Ok)
    })
}

#[cfg(test)]
mod tests {
    use std::ffi::CStr;
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;

    use super::*;

    struct Seen {
        calls: AtomicUsize,
        texts: Mutex<Vec<String>>,
    }

    unsafe extern "C" fn note(userdata: *mut c_void, _level: u32, _room: *const c_char, text: *const c_char) {
        // SAFETY: the tests pass a `Seen` that outlives the registration.
        let seen = unsafe { &*userdata.cast::<Seen>() };
        // SAFETY: the library passes a text with its zero.
        let text = unsafe { CStr::from_ptr(text) };
        seen.texts.lock().push(text.to_string_lossy().into_owned());
        seen.calls.fetch_add(1, Ordering::Relaxed);
        // Causes an error inside the callback: it must neither recurse nor deadlock.
        assert_eq!(guard::guard("kavern_inner", || Err(Error::argument("from the callback"))), -1);
        if text.to_bytes().ends_with(b"remove yourself") {
            set_callback(0, None, std::ptr::null_mut());
        }
    }

    // One test, because the callback is one for the process.
    #[test]
    fn a_callback_hears_its_levels_and_is_gone_after_removal() {
        let seen = Arc::new(Seen { calls: AtomicUsize::new(0), texts: Mutex::new(Vec::new()) });
        let userdata = Arc::as_ptr(&seen).cast_mut().cast::<c_void>();
        let mine = |seen: &Seen| seen.texts.lock().iter().filter(|t| t.starts_with("log-test")).count();

        set_callback(3, Some(note), userdata);
        emit(Level::Info, "test", "log-test one");
        emit(Level::Debug, "test", "log-test too quiet");
        assert_eq!(mine(&seen), 1);
        guard::guard("kavern_outer", || Err(Error::argument("kept")));
        guard::with_last_error(|text| assert_eq!(text, "kavern_outer: kept"));

        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..500).for_each(|_| emit(Level::Warn, "test", "log-test crowd")));
            }
            set_callback(0, None, std::ptr::null_mut());
            let after_removal = seen.calls.load(Ordering::Relaxed);
            emit(Level::Error, "test", "log-test nobody hears this");
            assert_eq!(seen.calls.load(Ordering::Relaxed), after_removal);
        });

        set_callback(4, Some(note), userdata);
        emit(Level::Error, "test", "log-test remove yourself");
        let count = mine(&seen);
        emit(Level::Error, "test", "log-test again");
        assert_eq!(mine(&seen), count);
    }
}
