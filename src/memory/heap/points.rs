//! Points on lanes after which freed memory is another's, also where a graph is being captured or a stream has gone.
//!
//! An event that is recorded in a capture is a part of its graph: nobody can ask for it, and to try breaks the capture.
//! So does an event on the default stream while a stream that it waits for is captured. A block that needs a point
//! there waits without one; it is recorded when the capture is over.
//! What it does: records points, or says that none can be had now; takes back what is behind reached ones. What it does
//! not: decide who needs one.
//! Invariants: a fence that `mark` gives was recorded outside of any capture; whoever names a lane again after `mark`
//! shares `lanes` from before.

use std::sync::Arc;

use super::super::fence::Fence;
use super::super::order::{self, Freed};
use super::lane::is_gone_lane;
use super::planted::Mistake;
use super::{Heap, MOVED_MOST};
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

    /// Whether the work of streams that are gone is over. Waits for the device, unless a stream is known to be
    /// captured: whoever captures a graph is not to wait for the work of others.
    pub(super) fn outlasts_gone(&self) -> bool {
        !self.is_any_capturing() && self.device.synchronize().is_ok()
    }

    /// Whether a stream is known to be captured, or one that the default stream waits for is.
    pub(super) fn is_any_capturing(&self) -> bool {
        let streams = self.names.read().streams.streams();
        // A stream that is gone cannot be asked and captures nothing.
        streams.into_iter().any(|stream| matches!(self.is_capturing(stream), Ok(true)))
            || matches!(self.takes_points(Stream::DEFAULT), Ok(false))
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
        let mut from = 0;
        loop {
            // What is freed from here on is not behind the point.
            let Some((lane, until)) = self.core.lock().limbo.next_unmarked(from) else { return };
            match self.mark(lane) {
                Ok(Some(fence)) => self.core.lock().limbo.mark(lane, until, Some(&fence)),
                Err(error) if is_gone(&error) && self.outlasts_gone() => {
                    self.core.lock().limbo.mark(lane, until, None);
                }
                // It has to be tried again.
                Ok(None) | Err(_) => {}
            }
            let Some(next) = lane.0.checked_add(1) else { return };
            from = next;
        }
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
        let (blocks, is_first) = {
            let mut core = self.core.lock();
            (core.order.take_all_open(lane), !core.order.is_closed(lane))
        };
        if blocks.is_empty() {
            return Ok(());
        }
        match self.mark(if self.has(Mistake::FenceElsewhere) { Stream::DEFAULT } else { lane }) {
            Ok(Some(fence)) => {
                // A stream that has nothing to do is past it already.
                let asked = is_first.then_some(&fence).map_or(Ok(false), |fence| fence.is_reached());
                if let Ok(true) = asked {
                    self.give_parts(&blocks)?;
                    self.core.lock().order.note_closed(lane.0);
                    return Ok(());
                }
                self.core.lock().order.close(lane, fence, blocks);
                // What a capture has taken cannot be asked for.
                asked.or_else(
                    |error| if error.status == Status::WrongState { Ok(false) } else { Err(error) },
                )?;
            }
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

    /// Asks which fences were reached and takes back what is free for all now. Whether anything was.
    pub(super) fn collect(&self) -> Result<bool> {
        if let Some(plain) = &self.plain {
            return plain.collect();
        }
        let is_unmarked = {
            let core = self.core.lock();
            if !core.is_waiting() {
                return Ok(false);
            }
            core.order.is_any_over() || core.limbo.next_unmarked(0).is_some()
        };
        if is_unmarked {
            self.mark_late();
            self.close_ended()?;
        }
        let (closed, mut of_several, has_limbo) = {
            let core = self.core.lock();
            (core.order.closed_streams(), core.limbo.oldest(), !core.limbo.is_empty())
        };
        let mut is_any = self.has(Mistake::FenceTaken);
        for lane in closed {
            is_any |= self.is_any_reached(lane)?;
        }
        if is_any {
            is_any = self.take_reached()?;
        }
        if !has_limbo {
            return Ok(is_any);
        }
        // Each of these points is another one's, and the next of its stream is asked about once it was reached.
        loop {
            let is_next = self.are_any_reached(&of_several)?;
            let mut core = self.core.lock();
            let blocks = core.limbo.take_past(self.has(Mistake::AnyUser));
            is_any |= !blocks.is_empty();
            Self::give_all(&mut core, blocks)?;
            if !is_next {
                return Ok(is_any);
            }
            of_several = core.limbo.oldest();
        }
    }

    /// Asks about the points of a lane, of many in flight about few; whether any was reached.
    fn is_any_reached(&self, lane: Stream) -> Result<bool> {
        let ask = |at: usize| {
            // No call to the device under the lock.
            let fence = self.core.lock().order.fence_at(lane, at);
            self.are_any_reached(fence.as_slice())
        };
        Ok(order::count_reached(ask)? > 0)
    }

    fn are_any_reached(&self, fences: &[Arc<Fence>]) -> Result<bool> {
        fences.iter().try_fold(false, |is_any, fence| match fence.is_reached() {
            // What a capture has taken cannot be asked for: it keeps its blocks, and nobody else fails for that.
            Err(error) if error.status == Status::WrongState => Ok(is_any),
            answer => Ok(answer? || is_any),
        })
    }

    /// Gives back what stands behind fences that are known to be reached; whether anything did.
    fn take_reached(&self) -> Result<bool> {
        let too_many = if self.has(Mistake::FenceTaken) {
            usize::MAX
        } else {
            usize::from(self.has(Mistake::NextBatchToo))
        };
        let blocks = self.core.lock().order.take_reached(too_many);
        self.give_parts(&blocks)?;
        Ok(!blocks.is_empty())
    }

    /// Gives back what is free for all. Whoever waits for the lock has it in between.
    fn give_parts(&self, blocks: &[Freed]) -> Result<()> {
        blocks.chunks(MOVED_MOST).try_for_each(|part| {
            let mut core = self.core.lock();
            part.iter().try_for_each(|&block| core.give_free(block))
        })
    }
}
