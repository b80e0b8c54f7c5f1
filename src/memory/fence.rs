//! Points on streams that can be asked whether they were reached.
//!
//! What it does: records events from a stock, so that a fence costs one driver call and not three; remembers that a
//! fence was reached, so that nobody asks twice. What it does not: decide what waits for what; that is `order`'s.
//! Invariants: an event belongs to one fence at a time; a fence that was reached stays so. Lock order: the stock's,
//! taken alone.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::device::{Device, Event, Stream, check_outside};
use crate::error::{Error, Result, Status};
use crate::sync::Mutex;

/// Events that wait in the stock; more are given back to the device as others are recorded.
const SPARE_MAX: usize = 1024;

/// A device that refuses to be waited for is asked so often.
const WAITS_MAX: u32 = 16;

/// Waits for all work on a device before memory leaves; whether it is over then. A panic of the device must not stop
/// the way back.
pub(super) fn outlasts_work(device: &dyn Device) -> bool {
    (0..WAITS_MAX).any(|_| matches!(catch_unwind(AssertUnwindSafe(|| device.synchronize())), Ok(Ok(()))))
}

/// Waits for a stream that is about to go. A panic of the device is a refusal: the stream goes all the same.
pub(super) fn outlast_stream(device: &dyn Device, stream: Stream) -> Result<()> {
    catch_unwind(AssertUnwindSafe(|| device.stream_synchronize(stream))).unwrap_or_else(|_| {
        Err(Error::new(Status::Device, "the device panicked when a stream was waited for"))
    })
}

/// A device's stock of events.
pub(super) struct Fences {
    device: Arc<dyn Device>,
    spare: Mutex<Vec<Event>>,
    /// Of the next fence.
    next: AtomicU64,
}

/// All work that was enqueued on one stream before a certain moment.
pub(super) struct Fence {
    fences: Arc<Fences>,
    event: Event,
    stream: Stream,
    is_reached: AtomicBool,
    /// Counted before and after it was recorded: threads may record on one stream at the same time.
    numbers: (u64, u64),
}

impl Fences {
    /// An empty stock.
    pub(super) fn new(device: Arc<dyn Device>) -> Arc<Self> {
        Arc::new(Self { device, spare: Mutex::default(), next: AtomicU64::new(0) })
    }

    /// The device below.
    pub(super) fn device(&self) -> &Arc<dyn Device> {
        &self.device
    }

    /// Events in the stock.
    #[cfg(test)]
    pub(super) fn spare_count(&self) -> usize {
        self.spare.lock().len()
    }

    /// Marks the end of what the stream has been given so far.
    pub(super) fn record(self: &Arc<Self>, stream: Stream) -> Result<Arc<Fence>> {
        let (spare, surplus) = {
            let mut events = self.spare.lock();
            let surplus = if events.len() > SPARE_MAX { events.pop() } else { None };
            (events.pop(), surplus)
        };
        if let Some(event) = surplus {
            // One that the device does not take back costs nobody anything.
            let _ = self.device.event_destroy(event);
        }
        let event = match spare {
            Some(event) => event,
            None => self.device.event_create()?,
        };
        // The fence owns the event from here on, whatever the next call answers.
        let begun = self.next.fetch_add(1, Ordering::AcqRel);
        let is_reached = AtomicBool::new(false);
        let mut fence =
            Fence { fences: Arc::clone(self), event, stream, is_reached, numbers: (begun, begun) };
        self.device.event_record(event, stream)?;
        fence.numbers.1 = self.next.fetch_add(1, Ordering::AcqRel);
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
    /// On which it was recorded.
    pub(super) fn stream(&self) -> Stream {
        self.stream
    }

    /// No other one's, and larger than that of a fence whose record had returned before.
    pub(super) fn number(&self) -> u64 {
        self.numbers.1
    }

    /// A fence of the same stream with a smaller number than this was recorded before.
    pub(super) fn begun(&self) -> u64 {
        self.numbers.0
    }

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
        // No call here: fences go under locks under which no device is called.
        self.fences.spare.lock().push(self.event);
    }
}
