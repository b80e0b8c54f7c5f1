//! Streams and events: what this instance may use, by value, and owners that destroy them.
//!
//! What it does: makes streams and events, wraps streams of others, refuses what was destroyed. What it does not: tell
//! whether a raw value of somebody else's is a live stream; the driver cannot be asked, so the caller vouches for it.
//!
//! Streams of other instances of this library are known and refused once they are destroyed; an event is told from
//! one that came after it by its generation. Streams are non-blocking: the default stream orders only its own work.
//! A lookup takes no lock where the stream was used before; its place in the table is guessed and then proved.
//! Invariant: a raw stream or event is destroyed when its last user has let go. Lock order: a table and `MADE`, each
//! alone.

use std::collections::BTreeMap;
use std::ffi::c_uint;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::codes;
use super::context::Context;
use super::driver::Raw;
use crate::device::{Event, Stream};
use crate::error::{Error, Result, Status};
use crate::sync::slots::{Slots, Stale};
use crate::sync::{Mutex, RwLock};

/// CU_STREAM_NON_BLOCKING.
const NON_BLOCKING: c_uint = 1;
/// CU_EVENT_DISABLE_TIMING.
const DISABLE_TIMING: c_uint = 2;
/// CU_STREAM_LEGACY and CU_STREAM_PER_THREAD are below, every other stream is an address.
const FIRST_ADDRESS: u64 = 3;

/// The streams of all instances: the raw value times two, plus one if it is the library's to destroy.
static SLOTS: Slots = Slots::new();

/// Ids in `SLOTS` of the live streams that instances of this library made, by raw value.
static MADE: Mutex<BTreeMap<u64, u64>> = Mutex::new(BTreeMap::new());

/// Places for ids of streams that were used lately.
const HINTS: usize = 64;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Own,
    /// Made by another instance.
    Sister,
    /// Made by somebody else.
    Foreign,
}

#[derive(Clone, Copy)]
struct Entry {
    id: u64,
    kind: Kind,
}

/// A stream for the time of one call.
pub(super) struct StreamRef<'a> {
    /// The driver's value.
    pub(super) raw: Raw,
    /// 0 for the default stream.
    id: u64,
    context: &'a Context,
}

impl Drop for StreamRef<'_> {
    fn drop(&mut self) {
        if self.id != 0 {
            end_stream(self.context, SLOTS.release(self.id));
        }
    }
}

/// Destroys a stream that nobody uses any more, if it was ours.
fn end_stream(context: &Context, value: Option<u64>) {
    let Some(value) = value.filter(|value| value & 1 == 1) else { return };
    if let Ok(entered) = context.enter() {
        // SAFETY: the stream was made by this library in this context, and this is its last user.
        let code = unsafe { (context.driver.api.cuStreamDestroy_v2)((value >> 1) as Raw) };
        let _ = entered.done("cuStreamDestroy", code);
    }
}

/// The streams that one instance may use.
pub(super) struct Streams {
    context: Arc<Context>,
    table: RwLock<BTreeMap<u64, Entry>>,
    /// Guesses at ids, which a lookup proves; written under the table's lock, so that none outlives its entry.
    hints: [AtomicU64; HINTS],
}

fn unknown(stream: Stream) -> Error {
    Error::argument(format!("stream {:#x} is destroyed or unknown to this device", stream.0))
}

fn full(what: &str) -> Error {
    Error::new(Status::OutOfHostMemory, format!("2^30 {what} are alive; destroy some"))
}

impl Streams {
    /// None yet.
    pub(super) fn new(context: Arc<Context>) -> Self {
        Self { context, table: RwLock::default(), hints: [const { AtomicU64::new(0) }; HINTS] }
    }

    fn hint(&self, stream: Stream) -> &AtomicU64 {
        // Addresses of streams differ in the middle bits; a multiplication brings those to the top.
        &self.hints[(stream.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 58) as usize]
    }

    /// Makes one.
    pub(super) fn create(&self) -> Result<Stream> {
        let context = &self.context;
        let entered = context.enter()?;
        let mut raw = 0;
        // SAFETY: the result is writable, the context is current.
        let code = unsafe { (context.driver.api.cuStreamCreate)(&mut raw, NON_BLOCKING) };
        entered.done("cuStreamCreate", code)?;
        drop(entered);
        let raw = raw as u64;
        let Some(id) = SLOTS.insert(raw << 1 | 1) else {
            end_stream(context, Some(raw << 1 | 1));
            return Err(full("streams"));
        };
        MADE.lock().insert(raw, id);
        let stale = self.table.write().insert(raw, Entry { id, kind: Kind::Own });
        self.close_foreign(stale);
        Ok(Stream(raw))
    }

    /// Ends the use of somebody else's stream. Blocks until no call is inside the driver with it: its owner may destroy
    /// it then.
    fn close_foreign(&self, entry: Option<Entry>) {
        if let Some(Entry { id, kind: Kind::Foreign }) = entry {
            // What comes back is not ours to destroy.
            let _ = SLOTS.close(id);
            while SLOTS.is_pinned_still(id) {
                std::thread::yield_now();
            }
        }
    }

    /// Takes a stream of somebody else's.
    pub(super) fn wrap(&self, raw: u64) -> Result<Stream> {
        let context = &self.context;
        let entered = context.enter()?;
        if raw == Stream::DEFAULT.0 {
            return Ok(Stream::DEFAULT);
        }
        if raw >= FIRST_ADDRESS && !raw.is_multiple_of(8) {
            return Err(Error::argument(format!("{raw:#x} is no stream of cuda:{}", context.ordinal)));
        }
        let known = self.table.read().get(&raw).copied();
        if known.is_some_and(|entry| entry.kind == Kind::Own) {
            return Ok(Stream(raw));
        }
        let sister = MADE.lock().get(&raw).copied();
        let mut owner = 0;
        // SAFETY: the caller vouches for a live stream; the result is writable.
        let code = unsafe { (context.driver.api.cuStreamGetCtx)(raw as Raw, &mut owner) };
        entered.done("cuStreamGetCtx", code)?;
        if owner != context.raw {
            let text = format!(
                "stream {raw:#x} is of another context than the primary one of cuda:{}",
                context.ordinal
            );
            return Err(Error::argument(text));
        }
        let entry = match (sister, known) {
            (Some(id), _) => Entry { id, kind: Kind::Sister },
            (None, Some(known)) if known.kind == Kind::Foreign => return Ok(Stream(raw)),
            (None, _) => {
                let id = SLOTS.insert(raw << 1).ok_or_else(|| full("streams"))?;
                Entry { id, kind: Kind::Foreign }
            }
        };
        let stale = self.table.write().insert(raw, entry);
        self.close_foreign(stale);
        Ok(Stream(raw))
    }

    /// All that may be used now, the default stream too.
    pub(super) fn known(&self) -> Vec<Stream> {
        let table = self.table.read();
        std::iter::once(Stream::DEFAULT).chain(table.keys().map(|&raw| Stream(raw))).collect()
    }

    /// Keeps a stream for a call; nothing if the id is over or is another stream's.
    fn pin(&self, id: u64, stream: Stream) -> Option<StreamRef<'_>> {
        match SLOTS.pin(id) {
            Ok(value) => {
                let pinned = StreamRef { raw: (value >> 1) as Raw, id, context: &self.context };
                (value >> 1 == stream.0).then_some(pinned)
            }
            Err(Stale(last)) => {
                end_stream(&self.context, last);
                None
            }
        }
    }

    /// A stream that may be used.
    pub(super) fn get(&self, stream: Stream) -> Result<StreamRef<'_>> {
        if stream == Stream::DEFAULT {
            return Ok(StreamRef { raw: 0, id: 0, context: &self.context });
        }
        let hint = self.hint(stream);
        let guess = hint.load(Ordering::Relaxed);
        if guess != 0
            && let Some(pinned) = self.pin(guess, stream)
        {
            return Ok(pinned);
        }
        let table = self.table.read();
        let id = table.get(&stream.0).ok_or_else(|| unknown(stream))?.id;
        hint.store(id, Ordering::Relaxed);
        drop(table);
        self.pin(id, stream).ok_or_else(|| unknown(stream))
    }

    /// Waits for a stream of ours and destroys it; one of somebody else's is only forgotten.
    pub(super) fn destroy(&self, stream: Stream) -> Result<()> {
        let context = &self.context;
        let entered = context.enter_relaxed()?;
        if stream == Stream::DEFAULT {
            return Err(Error::argument("the default stream lives as long as its device"));
        }
        let entry = {
            let mut table = self.table.write();
            let entry = table.remove(&stream.0).ok_or_else(|| unknown(stream))?;
            self.hint(stream).store(0, Ordering::Relaxed);
            entry
        };
        if entry.kind != Kind::Own {
            self.close_foreign(Some(entry));
            return Ok(());
        }
        MADE.lock().remove(&stream.0);
        let pinned = self.pin(entry.id, stream).ok_or_else(|| unknown(stream))?;
        let _ = SLOTS.close(entry.id);
        // SAFETY: the stream is ours and pinned.
        let code = unsafe { (context.driver.api.cuStreamSynchronize)(pinned.raw) };
        entered.done("cuStreamSynchronize", code)
    }

    /// Forgets all of them; ours are destroyed.
    pub(super) fn clear(&self) {
        let table = std::mem::take(&mut *self.table.write());
        for (raw, entry) in table {
            if entry.kind == Kind::Own {
                // First forgotten, because the driver may give the same value to the next stream.
                MADE.lock().remove(&raw);
            }
            if entry.kind != Kind::Sister
                && let Ok(last) = SLOTS.close(entry.id)
            {
                end_stream(&self.context, last);
            }
        }
    }
}

/// An event for the time of one call.
pub(super) struct EventRef<'a> {
    /// The driver's value.
    pub(super) raw: Raw,
    id: u64,
    events: &'a Events,
}

impl Drop for EventRef<'_> {
    fn drop(&mut self) {
        self.events.end(self.events.slots.release(self.id));
    }
}

/// The events of one instance.
pub(super) struct Events {
    context: Arc<Context>,
    slots: Slots,
}

fn stale() -> Error {
    Error::new(Status::StaleId, "the event was destroyed or is of another device")
}

impl Events {
    /// None yet.
    pub(super) fn new(context: Arc<Context>) -> Self {
        // Instances count from places far from each other, so that one's event is none of another's.
        static INSTANCES: AtomicU32 = AtomicU32::new(0);
        let generation = INSTANCES.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9e37_79b9);
        Self { context, slots: Slots::starting_at(generation) }
    }

    /// Makes one that was never recorded.
    pub(super) fn create(&self) -> Result<Event> {
        let entered = self.context.enter()?;
        let mut raw = 0;
        // SAFETY: the result is writable, the context is current.
        let code = unsafe { (self.context.driver.api.cuEventCreate)(&mut raw, DISABLE_TIMING) };
        entered.done("cuEventCreate", code)?;
        match self.slots.insert(raw as u64) {
            Some(id) => Ok(Event(id)),
            None => {
                self.end(Some(raw as u64));
                Err(full("events"))
            }
        }
    }

    /// A live event.
    pub(super) fn get(&self, event: Event) -> Result<EventRef<'_>> {
        match self.slots.pin(event.0) {
            Ok(raw) => Ok(EventRef { raw: raw as Raw, id: event.0, events: self }),
            Err(Stale(last)) => {
                self.end(last);
                Err(stale())
            }
        }
    }

    /// Destroys an event that nobody uses any more; the driver keeps what still waits for it.
    fn end(&self, raw: Option<u64>) {
        let Some(raw) = raw else { return };
        if let Ok(entered) = self.context.enter() {
            // SAFETY: the event is ours, and this is its last user.
            let code = unsafe { (self.context.driver.api.cuEventDestroy_v2)(raw as Raw) };
            let _ = entered.done("cuEventDestroy", code);
        }
    }

    /// Destroys an event; waits for it that were enqueued stay good.
    pub(super) fn destroy(&self, event: Event) -> Result<()> {
        self.end(self.slots.close(event.0).map_err(|_| stale())?);
        Ok(())
    }

    /// Destroys all of them.
    pub(super) fn clear(&self) {
        for id in self.slots.ids() {
            if let Ok(last) = self.slots.close(id) {
                self.end(last);
            }
        }
    }
}

/// Whether a query found the work done.
pub(super) fn is_done(entered: &super::context::Entered<'_>, call: &str, code: codes::Code) -> Result<bool> {
    match code {
        codes::NOT_READY => Ok(false),
        code => entered.done(call, code).map(|()| true),
    }
}
