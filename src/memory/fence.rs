//! Points on streams that can be asked whether they were reached.
//!
//! What it does: records events from a stock, so that a fence costs one driver call and not three; remembers that a
//! fence was reached, so that nobody asks twice. What it does not: decide what waits for what; that is `order`'s.
//! Invariants: an event belongs to one fence at a time; a fence that was reached stays so. Lock order: the stock's,
//! taken alone.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::device::{Device, Event, Stream, check_outside};
use crate::error::Result;
use crate::sync::Mutex;

/// Events that wait in the stock at most; more are given back to the device.
const SPARE_MAX: usize = 1024;

/// A device's stock of events.
pub(super) struct Fences {
    device: Arc<dyn Device>,
    spare: Mutex<Vec<Event>>,
}

/// All work that was enqueued on one stream before a certain moment.
pub(super) struct Fence {
    fences: Arc<Fences>,
    event: Event,
    is_reached: AtomicBool,
}

impl Fences {
    /// An empty stock.
    pub(super) fn new(device: Arc<dyn Device>) -> Arc<Self> {
        Arc::new(Self { device, spare: Mutex::default() })
    }

    /// The device below.
    pub(super) fn device(&self) -> &Arc<dyn Device> {
        &self.device
    }

    /// Marks the end of what the stream has been given so far.
    pub(super) fn record(self: &Arc<Self>, stream: Stream) -> Result<Arc<Fence>> {
        let spare = self.spare.lock().pop();
        let event = match spare {
            Some(event) => event,
            None => self.device.event_create()?,
        };
        // The fence owns the event from here on, whatever the next call answers.
        let fence = Fence { fences: Arc::clone(self), event, is_reached: AtomicBool::new(false) };
        self.device.event_record(event, stream)?;
        Ok(Arc::new(fence))
    }
}

impl Fences {
    /// As `record`; refused where the point would be a part of a graph, which cannot be asked how far it is, or would
    /// break a capture under way. `advice`: what to do instead.
    pub(super) fn record_outside(self: &Arc<Self>, stream: Stream, advice: &str) -> Result<Arc<Fence>> {
        check_outside(self.device.as_ref(), stream, advice)?;
        let fence = self.record(stream)?;
        // A capture may have begun in between.
        check_outside(self.device.as_ref(), stream, advice)?;
        Ok(fence)
    }
}

impl Drop for Fences {
    fn drop(&mut self) {
        for event in self.spare.get_mut().drain(..) {
            // Only a lost device refuses, and its events are lost with it.
            let _ = self.device.event_destroy(event);
        }
    }
}

impl Fence {
    /// Whether it is known to be reached; asks nobody.
    pub(super) fn is_known_reached(&self) -> bool {
        self.is_reached.load(Ordering::Acquire)
    }

    /// Whether it was reached; asks the device.
    pub(super) fn is_reached(&self) -> Result<bool> {
        if !self.is_known_reached() && self.fences.device.event_is_done(self.event)? {
            self.is_reached.store(true, Ordering::Release);
        }
        Ok(self.is_known_reached())
    }

    /// Waits until it is reached. Blocks.
    pub(super) fn wait(&self) -> Result<()> {
        if !self.is_known_reached() {
            self.fences.device.event_synchronize(self.event)?;
            self.is_reached.store(true, Ordering::Release);
        }
        Ok(())
    }

    /// Makes later work on a stream wait for it.
    pub(super) fn hold_back(&self, stream: Stream) -> Result<()> {
        if self.is_known_reached() {
            return Ok(());
        }
        self.fences.device.stream_wait_event(stream, self.event)
    }
}

impl Drop for Fence {
    fn drop(&mut self) {
        // A wait that was enqueued for the event is a wait for this record, also after the next one.
        let mut spare = self.fences.spare.lock();
        if spare.len() < SPARE_MAX {
            spare.push(self.event);
            return;
        }
        drop(spare);
        let _ = self.fences.device.event_destroy(self.event);
    }
}
