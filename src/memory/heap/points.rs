//! Points on lanes after which freed memory is another's, also where a graph is being captured or a stream has gone.
//!
//! An event that is recorded in a capture is a part of its graph: nobody can ask for it, and to try breaks the capture.
//! So does an event on the default stream while a stream that it waits for is captured. A block that needs a point
//! there waits without one; it is recorded when the capture is over.
//! What it does: records points, or says that none can be had now. What it does not: decide who needs one.
//! Invariants: a fence that `mark` gives was recorded outside of any capture; whoever names a lane again after `mark`
//! shares `lanes` from before.

use std::collections::HashMap;
use std::sync::Arc;

use super::super::fence::Fence;
use super::Heap;
use super::core::Limbo;
use super::lane::is_gone_lane;
use super::planted::Mistake;
use crate::device::Stream;
use crate::error::{Error, Result, Status};

/// What a block waits for that several streams used.
#[derive(Default)]
pub(super) struct Waits {
    pub(super) fences: Vec<Arc<Fence>>,
    /// Lanes on which no point could be recorded yet.
    pub(super) unmarked: Vec<Stream>,
}

/// A stream may go while somebody holds its value, after a wait for its work or, if that was refused, without one.
pub(super) fn is_gone(error: &Error) -> bool {
    error.status == Status::InvalidArgument
}

impl Heap {
    /// Whether a graph is being captured on a lane of this thread.
    pub(super) fn is_capturing(&self, stream: Stream) -> Result<bool> {
        Ok(self.device.description().capabilities.capture
            && self.device.stream_is_capturing(self.enqueued(stream))?)
    }

    /// Whether a point can be had on a lane now.
    pub(super) fn takes_points(&self, lane: Stream) -> Result<bool> {
        if is_gone_lane(lane) {
            return Err(Error::argument("the stream is gone, and its work was not waited for"));
        }
        let is_asked = self.device.description().capabilities.capture;
        Ok(!is_asked || self.device.stream_takes_events(self.marked(lane))?)
    }

    /// A point after all that a lane was given; nothing where a capture stands in the way.
    pub(super) fn mark(&self, lane: Stream) -> Result<Option<Arc<Fence>>> {
        if !self.takes_points(lane)? {
            return Ok(None);
        }
        let fence = self.fences.record(self.marked(lane))?;
        // A capture may have begun in between; then the next record makes an event of it that can be asked for.
        Ok(self.takes_points(lane)?.then_some(fence))
    }

    /// Whether the work of streams that are gone is over. Waits for the device, unless that would break a capture.
    pub(super) fn outlasts_gone(&self) -> bool {
        !self.is_any_capturing() && self.device.synchronize().is_ok()
    }

    /// Whether a stream is known to be captured.
    pub(super) fn is_any_capturing(&self) -> bool {
        let streams = self.names.read().streams.streams();
        // A stream that is gone cannot be asked and captures nothing.
        streams.into_iter().any(|stream| matches!(self.is_capturing(stream), Ok(true)))
    }

    /// What has to be past before a block is anybody's: its users, and the lane on which it is freed.
    pub(super) fn waits(&self, users: Vec<Stream>, freeing: Option<Stream>) -> Result<Waits> {
        let mut waits = Waits::default();
        for lane in users.into_iter().chain(freeing) {
            match self.mark(lane) {
                Ok(Some(fence)) => waits.fences.push(fence),
                Ok(None) => waits.unmarked.push(lane),
                // One that is gone has no end to record; it is the device that is waited for, now or later.
                Err(error) if is_gone(&error) && freeing != Some(lane) => {
                    waits.unmarked.extend(Some(lane).filter(|_| !self.outlasts_gone()));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(waits)
    }

    /// Records what could not be recorded when blocks were freed.
    pub(super) fn mark_late(&self) {
        let _lanes = self.lanes.read();
        let is_late = |limbo: &mut Limbo| !limbo.waits.unmarked.is_empty();
        let mut late: Vec<Limbo> = self.core.lock().limbo.extract_if(.., is_late).collect();
        if late.is_empty() {
            return;
        }
        // One point of a lane serves all of them, which were freed before it. Nothing where it has to be tried again.
        let mut points: HashMap<u64, Option<Vec<Arc<Fence>>>> = HashMap::new();
        for Waits { fences, unmarked } in late.iter_mut().map(|limbo| &mut limbo.waits) {
            unmarked.retain(|lane| {
                let point = points.entry(lane.0).or_insert_with(|| match self.mark(*lane) {
                    Ok(point) => point.map(|fence| vec![fence]),
                    Err(error) => (is_gone(&error) && self.outlasts_gone()).then(Vec::new),
                });
                fences.extend(point.iter().flatten().cloned());
                point.is_none()
            });
        }
        self.core.lock().limbo.append(&mut late);
    }

    /// Puts what threads left that have ended behind points. Not at their end: a driver may be gone from them already.
    pub(super) fn close_ended(&self) -> Result<()> {
        let over = self.core.lock().order.over();
        over.into_iter().try_for_each(|lane| self.close_lane(lane))
    }

    /// Puts what a lane freed behind a point, if one can be had.
    pub(super) fn close_lane(&self, lane: Stream) -> Result<()> {
        match self.takes_points(lane) {
            Ok(false) => return Ok(()),
            Err(error) if !is_gone(&error) => return Err(error),
            Ok(true) | Err(_) => {}
        }
        let _lanes = self.lanes.read();
        let blocks = self.core.lock().order.take_all_open(lane);
        if blocks.is_empty() {
            return Ok(());
        }
        match self.mark(if self.has(Mistake::FenceElsewhere) { Stream::DEFAULT } else { lane }) {
            Ok(Some(fence)) => self.core.lock().order.close(lane, fence, blocks),
            Err(error) if is_gone(&error) && self.outlasts_gone() => {
                Self::give_all(&mut self.core.lock(), blocks)?;
            }
            refused => {
                self.take_freed(lane, blocks);
                return match refused {
                    // They stay where they are until the device can be waited for: that is nobody else's failure.
                    Err(error) if is_gone(&error) => Ok(()),
                    refused => refused.map(drop),
                };
            }
        }
        Ok(())
    }
}
