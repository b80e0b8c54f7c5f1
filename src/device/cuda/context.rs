//! The primary context of a GPU, shared with the engine: entering it, and what its errors mean.
//!
//! What it does: makes the context current for the time of one call and puts back what was current before; turns codes
//! into errors; latches the loss of the device and tells of it. What it does not: release the primary context. It is
//! retained once per GPU for the life of the process, as CUDA's own runtime does, because making one takes a tenth of a
//! second and an engine may be using it.
//! Invariants: once lost, no driver call is made any more; the loss is told once. Lock order: `CONTEXTS`, `text` and
//! `CALLBACKS` each alone; the driver is called under `CONTEXTS` only, at the first open of a GPU.

use std::any::Any;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::ffi::{c_int, c_uint, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use super::codes::{self, Code};
use super::driver::{Driver, Raw};
use crate::error::{Error, Result, Status};
use crate::event::{Event, EventSink, Level};
use crate::sync::Mutex;
use crate::sys::fork;

/// CU_STREAM_CAPTURE_MODE_RELAXED.
const CAPTURE_RELAXED: c_uint = 2;

thread_local! {
    static IN_CALLBACK: Cell<bool> = const { Cell::new(false) };
}

static CONTEXTS: Mutex<BTreeMap<c_int, Raw>> = Mutex::new(BTreeMap::new());

/// Callbacks that a stream has been given and has not run. Whoever takes one out owns it: the driver's thread to run
/// it, or the loss to drop it.
static CALLBACKS: Mutex<BTreeMap<u64, Callback>> = Mutex::new(BTreeMap::new());
static NEXT_CALLBACK: AtomicU64 = AtomicU64::new(1);

struct Callback {
    run: Box<dyn FnOnce() + Send>,
    context: Weak<Context>,
}

/// Whether this thread is inside a callback; it may not call the driver.
pub(super) fn is_in_callback() -> bool {
    IN_CALLBACK.with(Cell::get)
}

/// The primary context of one GPU as one open device sees it.
pub(super) struct Context {
    pub(super) driver: &'static Driver,
    pub(super) device: c_int,
    pub(super) ordinal: u32,
    pub(super) raw: Raw,
    is_lost: AtomicBool,
    text: Mutex<String>,
    sink: Arc<dyn EventSink>,
}

/// The time in which the context is current.
pub(super) struct Entered<'a> {
    context: &'a Context,
    previous: Raw,
    /// The thread's capture mode before, if it was changed.
    mode: Option<c_uint>,
}

impl Context {
    /// Retains the primary context of a GPU, once per process.
    pub(super) fn open(
        driver: &'static Driver,
        device: c_int,
        ordinal: u32,
        sink: Arc<dyn EventSink>,
    ) -> Result<Arc<Self>> {
        let mut contexts = CONTEXTS.lock();
        let raw = match contexts.get(&device) {
            Some(&raw) => raw,
            None => {
                let mut raw = 0;
                // SAFETY: the result is writable; a wrong device is refused.
                let code = unsafe { (driver.api.cuDevicePrimaryCtxRetain)(&mut raw, device) };
                if code != codes::SUCCESS {
                    return Err(codes::error("cuDevicePrimaryCtxRetain", code));
                }
                contexts.insert(device, raw);
                raw
            }
        };
        drop(contexts);
        let (is_lost, text) = (AtomicBool::new(false), Mutex::default());
        Ok(Arc::new(Self { driver, device, ordinal, raw, is_lost, text, sink }))
    }

    /// Whether the process, the thread and the device can work; asks the driver nothing.
    pub(super) fn check(&self) -> Result<()> {
        fork::check()?;
        if is_in_callback() {
            return Err(Error::new(Status::WrongState, "a callback may not call the device"));
        }
        self.check_lost()
    }

    /// Makes the context current, if the process, the thread and the device can work.
    pub(super) fn enter(&self) -> Result<Entered<'_>> {
        self.check()?;
        let mut entered = Entered { context: self, previous: self.raw, mode: None };
        let mut previous = 0;
        // SAFETY: the result is writable.
        let code = unsafe { (self.driver.api.cuCtxGetCurrent)(&mut previous) };
        entered.done("cuCtxGetCurrent", code)?;
        if previous != self.raw {
            // SAFETY: the context is retained for the life of the process.
            let code = unsafe { (self.driver.api.cuCtxSetCurrent)(self.raw) };
            entered.done("cuCtxSetCurrent", code)?;
            entered.previous = previous;
        }
        Ok(entered)
    }

    /// As `enter`, for calls that would break a capture under way on another stream of the thread.
    pub(super) fn enter_relaxed(&self) -> Result<Entered<'_>> {
        let mut entered = self.enter()?;
        let mut mode = CAPTURE_RELAXED;
        // SAFETY: the mode is read and written in place.
        let code = unsafe { (self.driver.api.cuThreadExchangeStreamCaptureMode)(&mut mode) };
        entered.done("cuThreadExchangeStreamCaptureMode", code)?;
        entered.mode = Some(mode);
        Ok(entered)
    }

    fn check_lost(&self) -> Result<()> {
        if !self.is_lost.load(Ordering::Acquire) {
            return Ok(());
        }
        Err(self.lost())
    }

    fn lost(&self) -> Error {
        let text = format!("the device is lost: {}; restart the process", self.text.lock());
        Error::new(Status::DeviceLost, text)
    }

    fn latch(&self, text: &str) {
        {
            let mut first = self.text.lock();
            if self.is_lost.load(Ordering::Acquire) {
                return;
            }
            first.push_str(text);
            self.is_lost.store(true, Ordering::Release);
        }
        drop(self.take_callbacks());
        if self.sink.wants(Level::Error) {
            let text = format!("cuda:{} is lost: {text}; restart the process", self.ordinal);
            self.sink.emit(Event { level: Level::Error, room: "device", text: &text });
        }
    }

    fn take_callbacks(&self) -> Vec<Callback> {
        let mut callbacks = CALLBACKS.lock();
        let is_ours = |callback: &Callback| std::ptr::eq(callback.context.as_ptr(), self);
        let ids: Vec<u64> =
            callbacks.iter().filter(|(_, callback)| is_ours(callback)).map(|(&id, _)| id).collect();
        ids.into_iter().filter_map(|id| callbacks.remove(&id)).collect()
    }

    /// Tells what a user may not expect.
    pub(super) fn say(&self, level: Level, text: impl FnOnce() -> String) {
        if self.sink.wants(level) {
            self.sink.emit(Event { level, room: "device", text: &text() });
        }
    }

    /// Enqueues a callback on a stream.
    pub(super) fn enqueue_callback(
        self: &Arc<Self>,
        stream: Raw,
        run: Box<dyn FnOnce() + Send>,
    ) -> Result<()> {
        let entered = self.enter()?;
        let id = NEXT_CALLBACK.fetch_add(1, Ordering::Relaxed);
        CALLBACKS.lock().insert(id, Callback { run, context: Arc::downgrade(self) });
        // SAFETY: the function lives as long as the process, and its argument is a number, not an address.
        let code =
            unsafe { (self.driver.api.cuLaunchHostFunc)(stream, Some(run_callback), id as *mut c_void) };
        let outcome = entered.done("cuLaunchHostFunc", code);
        if outcome.is_err() {
            let refused = CALLBACKS.lock().remove(&id);
            drop(refused);
        }
        outcome
    }
}

/// Runs one callback on a thread of the driver; one that a graph repeats finds nothing the second time.
unsafe extern "C" fn run_callback(id: *mut c_void) {
    let found = CALLBACKS.lock().remove(&(id as u64));
    let Some(Callback { run, context }) = found else { return };
    IN_CALLBACK.with(|flag| flag.set(true));
    if let Err(panic) = catch_unwind(AssertUnwindSafe(run)) {
        if let Some(context) = context.upgrade() {
            // The sink is the caller's code too, and nothing may unwind into the driver.
            let latch = AssertUnwindSafe(|| context.latch(panic_text(panic.as_ref())));
            let _ = catch_unwind(latch).map_err(std::mem::forget);
        }
        // Dropping a panic's payload may itself panic, if the caller chose such a type.
        std::mem::forget(panic);
    }
    IN_CALLBACK.with(|flag| flag.set(false));
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("a panic without a text")
}

impl Entered<'_> {
    /// The context that is current.
    pub(super) fn context(&self) -> &Context {
        self.context
    }

    /// What a call's code means; the end of the context is latched.
    pub(super) fn done(&self, call: &str, code: Code) -> Result<()> {
        if code == codes::SUCCESS {
            return Ok(());
        }
        self.failed(call, code)
    }

    #[cold]
    fn failed(&self, call: &str, code: Code) -> Result<()> {
        if codes::is_sticky(code) {
            self.context.latch(&codes::text(call, code));
            return Err(self.context.lost());
        }
        Err(codes::error(call, code))
    }

    /// Waits for all work of the context, also on streams that nobody here knows: the driver takes no plain memory back
    /// before. Needs a relaxed thread, and then leaves captures whole, which the driver's own wait for a context breaks
    /// in every mode. Calls of other threads may have to wait too, so the known streams are waited for first.
    pub(super) fn outlast(&self) -> Result<()> {
        let api = &self.context.driver.api;
        let mut address = 0;
        // SAFETY: the result is writable, the context is current.
        let code = unsafe { (api.cuMemAlloc_v2)(&mut address, 1) };
        if code != codes::OUT_OF_MEMORY {
            self.done("cuMemAlloc", code)?;
            // SAFETY: the driver has just given this address.
            return self.done("cuMemFree", unsafe { (api.cuMemFree_v2)(address) });
        }
        // A full GPU; of the host's memory the same is true.
        let mut page = std::ptr::null_mut::<c_void>();
        // SAFETY: the result is writable, the context is current.
        self.done("cuMemHostAlloc", unsafe { (api.cuMemHostAlloc)(&mut page, 1, 0) })?;
        // SAFETY: the driver has just given this address.
        self.done("cuMemFreeHost", unsafe { (api.cuMemFreeHost)(page) })
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        if let Some(mut mode) = self.mode {
            // SAFETY: the mode is read and written in place; it is the one that the thread had.
            let _ = unsafe { (self.context.driver.api.cuThreadExchangeStreamCaptureMode)(&mut mode) };
        }
        if self.previous != self.context.raw {
            // SAFETY: it was current before, and only this thread could have ended that.
            let _ = unsafe { (self.context.driver.api.cuCtxSetCurrent)(self.previous) };
        }
    }
}
