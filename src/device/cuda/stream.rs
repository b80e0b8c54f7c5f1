//! Streams and events: what this instance may use, by value, and owners that destroy them.
//!
//! What it does: makes streams and events, wraps streams of others, refuses what was destroyed. What it does not: tell
//! whether a raw value of somebody else's is a live stream; the driver cannot be asked, so the caller vouches for it.
//!
//! Streams of other instances of this library are known and refused once they are destroyed; an event is told from
//! one that came after it by its generation. Streams are non-blocking: the default stream orders only its own work.
//! Invariant: a raw stream or event is destroyed when its last user has let go. Lock order: a table, then `STREAMS`.

use std::collections::BTreeMap;
use std::ffi::c_uint;
use std::sync::{Arc, Weak};

use super::codes;
use super::context::Context;
use super::driver::Raw;
use crate::device::{Event, Stream};
use crate::error::{Error, Result, Status};
use crate::sync::{Mutex, RwLock};

/// CU_STREAM_NON_BLOCKING.
const NON_BLOCKING: c_uint = 1;
/// CU_EVENT_DISABLE_TIMING.
const DISABLE_TIMING: c_uint = 2;
/// CU_STREAM_LEGACY and CU_STREAM_PER_THREAD are below, every other stream is an address.
const FIRST_ADDRESS: u64 = 3;

/// Live streams that instances of this library made, by raw value.
static STREAMS: Mutex<BTreeMap<u64, Weak<OwnStream>>> = Mutex::new(BTreeMap::new());

/// Owner of a stream.
pub(super) struct OwnStream {
    context: Arc<Context>,
    raw: Raw,
}

impl Drop for OwnStream {
    fn drop(&mut self) {
        // First forgotten, because the driver may give the same value to the next stream.
        STREAMS.lock().remove(&(self.raw as u64));
        if let Ok(entered) = self.context.enter() {
            // SAFETY: the stream is ours, and this is its last user.
            let code = unsafe { (self.context.driver.api.cuStreamDestroy_v2)(self.raw) };
            let _ = entered.done("cuStreamDestroy", code);
        }
    }
}

enum Entry {
    Own(Arc<OwnStream>),
    /// Made by another instance.
    Sister(Weak<OwnStream>),
    /// Made by somebody else.
    Foreign,
}

/// A stream for the time of one call.
pub(super) struct StreamRef {
    /// The driver's value.
    pub(super) raw: Raw,
    _keep: Option<Arc<OwnStream>>,
}

/// The streams that one instance may use.
#[derive(Default)]
pub(super) struct Streams {
    table: RwLock<BTreeMap<u64, Entry>>,
}

fn unknown(stream: Stream) -> Error {
    Error::argument(format!("stream {:#x} is destroyed or unknown to this device", stream.0))
}

impl Streams {
    /// Makes one.
    pub(super) fn create(&self, context: &Arc<Context>) -> Result<Stream> {
        let entered = context.enter()?;
        let mut raw = 0;
        // SAFETY: the result is writable, the context is current.
        let code = unsafe { (context.driver.api.cuStreamCreate)(&mut raw, NON_BLOCKING) };
        entered.done("cuStreamCreate", code)?;
        drop(entered);
        let own = Arc::new(OwnStream { context: Arc::clone(context), raw });
        let value = raw as u64;
        STREAMS.lock().insert(value, Arc::downgrade(&own));
        self.table.write().insert(value, Entry::Own(own));
        Ok(Stream(value))
    }

    /// Takes a stream of somebody else's.
    pub(super) fn wrap(&self, context: &Context, raw: u64) -> Result<Stream> {
        let entered = context.enter()?;
        if raw == Stream::DEFAULT.0 {
            return Ok(Stream::DEFAULT);
        }
        if raw >= FIRST_ADDRESS && !raw.is_multiple_of(8) {
            return Err(Error::argument(format!("{raw:#x} is no stream of cuda:{}", context.ordinal)));
        }
        if let Some(Entry::Own(_)) = self.table.read().get(&raw) {
            return Ok(Stream(raw));
        }
        let sister = STREAMS.lock().get(&raw).cloned();
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
        self.table.write().insert(raw, sister.map_or(Entry::Foreign, Entry::Sister));
        Ok(Stream(raw))
    }

    /// A stream that may be used.
    pub(super) fn get(&self, stream: Stream) -> Result<StreamRef> {
        if stream == Stream::DEFAULT {
            return Ok(StreamRef { raw: 0, _keep: None });
        }
        let keep = match self.table.read().get(&stream.0) {
            Some(Entry::Own(own)) => Some(Arc::clone(own)),
            Some(Entry::Sister(sister)) => Some(sister.upgrade().ok_or_else(|| unknown(stream))?),
            Some(Entry::Foreign) => None,
            None => return Err(unknown(stream)),
        };
        Ok(StreamRef { raw: stream.0 as Raw, _keep: keep })
    }

    /// Waits for a stream of ours and destroys it; one of somebody else's is only forgotten.
    pub(super) fn destroy(&self, context: &Context, stream: Stream) -> Result<()> {
        let entered = context.enter_relaxed()?;
        if stream == Stream::DEFAULT {
            return Err(Error::argument("the default stream lives as long as its device"));
        }
        let entry = self.table.write().remove(&stream.0).ok_or_else(|| unknown(stream))?;
        let Entry::Own(own) = entry else { return Ok(()) };
        STREAMS.lock().remove(&stream.0);
        // SAFETY: the stream is ours and alive.
        let code = unsafe { (context.driver.api.cuStreamSynchronize)(own.raw) };
        entered.done("cuStreamSynchronize", code)
    }

    /// Forgets all of them; ours are destroyed.
    pub(super) fn clear(&self) {
        let table = std::mem::take(&mut *self.table.write());
        drop(table);
    }

    /// Leaves all of them as they are, for a process that may not touch them.
    pub(super) fn leak(&self) {
        std::mem::forget(std::mem::take(&mut *self.table.write()));
    }
}

/// Owner of an event.
pub(super) struct OwnEvent {
    context: Arc<Context>,
    /// The driver's value.
    pub(super) raw: Raw,
}

impl Drop for OwnEvent {
    fn drop(&mut self) {
        if let Ok(entered) = self.context.enter() {
            // SAFETY: the event is ours, and this is its last user; the driver keeps what still waits for it.
            let code = unsafe { (self.context.driver.api.cuEventDestroy_v2)(self.raw) };
            let _ = entered.done("cuEventDestroy", code);
        }
    }
}

#[derive(Default)]
struct Slot {
    generation: u32,
    event: Option<Arc<OwnEvent>>,
}

#[derive(Default)]
struct Slots {
    slots: Vec<Slot>,
    free: Vec<u32>,
}

/// The events of one instance.
#[derive(Default)]
pub(super) struct Events {
    table: RwLock<Slots>,
}

fn stale() -> Error {
    Error::new(Status::StaleId, "the event was destroyed or is of another device")
}

impl Events {
    /// Makes one that was never recorded.
    pub(super) fn create(&self, context: &Arc<Context>) -> Result<Event> {
        let entered = context.enter()?;
        let mut raw = 0;
        // SAFETY: the result is writable, the context is current.
        let code = unsafe { (context.driver.api.cuEventCreate)(&mut raw, DISABLE_TIMING) };
        entered.done("cuEventCreate", code)?;
        let event = Arc::new(OwnEvent { context: Arc::clone(context), raw });
        let mut table = self.table.write();
        let index = match table.free.pop() {
            Some(index) => index,
            None => {
                table.slots.push(Slot::default());
                (table.slots.len() - 1) as u32
            }
        };
        let slot = &mut table.slots[index as usize];
        // Generations start at 1, so that 0 is never an event.
        slot.generation = slot.generation.wrapping_add(1).max(1);
        slot.event = Some(event);
        Ok(Event(u64::from(slot.generation) << 32 | u64::from(index)))
    }

    /// A live event.
    pub(super) fn get(&self, event: Event) -> Result<Arc<OwnEvent>> {
        let table = self.table.read();
        let slot = table.slots.get(event.0 as u32 as usize);
        let live = slot.filter(|slot| slot.generation == (event.0 >> 32) as u32);
        live.and_then(|slot| slot.event.clone()).ok_or_else(stale)
    }

    /// Destroys an event; waits for it that were enqueued stay good.
    pub(super) fn destroy(&self, event: Event) -> Result<()> {
        let mut table = self.table.write();
        let slot = table.slots.get_mut(event.0 as u32 as usize);
        let live = slot.filter(|slot| slot.generation == (event.0 >> 32) as u32);
        let gone = live.and_then(|slot| slot.event.take()).ok_or_else(stale)?;
        table.free.push(event.0 as u32);
        drop(table);
        // The driver is called here, outside the lock.
        drop(gone);
        Ok(())
    }

    /// Destroys all of them.
    pub(super) fn clear(&self) {
        let table = std::mem::take(&mut *self.table.write());
        drop(table);
    }

    /// Leaves all of them as they are, for a process that may not touch them.
    pub(super) fn leak(&self) {
        std::mem::forget(std::mem::take(&mut *self.table.write()));
    }
}

/// Whether a query found the work done.
pub(super) fn is_done(entered: &super::context::Entered<'_>, call: &str, code: codes::Code) -> Result<bool> {
    match code {
        codes::NOT_READY => Ok(false),
        code => entered.done(call, code).map(|()| true),
    }
}
