//! What is done when memory is short, step by step, and the sentence that ends it.
//!
//! Each step gives back more than the one before and costs more: own caches, fences that were reached, empty pages and
//! loans of begun ones, blocks of other streams behind a wait or out of the ends of pages, what others hold and can
//! spare (pools, idle models, the program's callbacks), waiting for work in flight, and at last, where the program
//! allows it, meshing half-empty pages. After each step the request is tried again. Each step is counted.
//! What it does not: take from anybody who did not offer it. Invariant: no lock is held while somebody else is asked.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::super::fence::Fence;
use super::super::order::Freed;
use super::super::region::LARGE_GRANULE_BYTES;
use super::planted::Mistake;
use super::{Heap, MIDDLE, PlainBlocks};
use crate::device::Stream;
use crate::error::{Error, Result, Status};
use crate::sync::pause;
use crate::sys::clock;

/// How often each step was taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LadderCounts {
    /// Front caches emptied and freed blocks put behind events.
    pub own_caches: u64,
    /// Fences asked about.
    pub fences: u64,
    /// Pages without blocks taken from behind their addresses.
    pub trims: u64,
    /// Blocks of other streams taken behind a wait.
    pub stream_waits: u64,
    /// Pools, models and callbacks asked.
    pub rooms: u64,
    /// Waits of the host for work in flight.
    pub host_waits: u64,
    /// Half-empty pages meshed; 0 where the program did not allow it.
    pub meshes: u64,
    /// Requests that were refused after all of it.
    pub refusals: u64,
    /// Pages of the device that went from free blocks to a large one without being unmapped first.
    pub moved_pages: u64,
}

#[derive(Default)]
pub(super) struct Ladder {
    own_caches: AtomicU64,
    fences: AtomicU64,
    trims: AtomicU64,
    stream_waits: AtomicU64,
    rooms: AtomicU64,
    host_waits: AtomicU64,
    meshes: AtomicU64,
    refusals: AtomicU64,
    pub(super) moved_pages: AtomicU64,
}

#[derive(Clone, Copy)]
enum Step {
    OwnCaches,
    Fences,
    Trim,
    StreamWaits,
    Rooms,
    HostWaits,
    Mesh,
}

const STEPS: [Step; 7] =
    [Step::OwnCaches, Step::Fences, Step::Trim, Step::StreamWaits, Step::Rooms, Step::HostWaits, Step::Mesh];

impl Step {
    /// Whether it ends with taking what is empty.
    fn trims(self) -> bool {
        matches!(self, Self::Trim | Self::Rooms | Self::HostWaits)
    }
}

impl Ladder {
    fn count(&self, step: Step) {
        let counter = match step {
            Step::OwnCaches => &self.own_caches,
            Step::Fences => &self.fences,
            Step::Trim => &self.trims,
            Step::StreamWaits => &self.stream_waits,
            Step::Rooms => &self.rooms,
            Step::HostWaits => &self.host_waits,
            Step::Mesh => &self.meshes,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn counts(&self) -> LadderCounts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        LadderCounts {
            own_caches: read(&self.own_caches),
            fences: read(&self.fences),
            trims: read(&self.trims),
            stream_waits: read(&self.stream_waits),
            rooms: read(&self.rooms),
            host_waits: read(&self.host_waits),
            meshes: read(&self.meshes),
            refusals: read(&self.refusals),
            moved_pages: read(&self.moved_pages),
        }
    }
}

impl Heap {
    /// Tries, makes room, tries again. `attempt` is told whether it may make a stream wait. `take_over` is tried before
    /// empty pages are unmapped: it may do with them as they are.
    pub(super) fn climb<T>(
        &self,
        bytes: u64,
        is_captured: bool,
        attempt: impl Fn(bool) -> Result<Option<T>>,
        take_over: impl Fn() -> Result<Option<T>>,
    ) -> Result<T> {
        let mut last = match tried(&attempt, false)? {
            Ok(found) => return Ok(found),
            Err(refusal) => refusal,
        };
        let mut may_wait = false;
        // What the device has not at all, nobody has to give anything for.
        let steps = if bytes > self.total_bytes { &[][..] } else { &STEPS[..] };
        for &step in steps {
            if is_captured && !matches!(step, Step::Rooms) {
                // A capture forbids asking about events and waiting.
                continue;
            }
            if matches!(step, Step::Mesh) && !self.may_mesh() {
                continue;
            }
            self.ladder.count(step);
            may_wait |= matches!(step, Step::StreamWaits);
            self.take_step(step, bytes)?;
            if step.trims() {
                // What a graph captures keeps its addresses for long; it gets memory in the plain way.
                if !is_captured && let Some(found) = take_over()? {
                    return Ok(found);
                }
                self.trim()?;
                self.lend()?;
            }
            last = match tried(&attempt, may_wait)? {
                Ok(found) => return Ok(found),
                Err(refusal) => refusal,
            };
        }
        self.ladder.refusals.fetch_add(1, Ordering::Relaxed);
        Err(self.refusal(bytes, &last))
    }

    /// All of a step but the trim at its end. What a trim leaves in the pool of pages stays there: the next attempt
    /// takes it, or gives it to the device itself where it needs the bytes in another form.
    fn take_step(&self, step: Step, bytes: u64) -> Result<()> {
        match step {
            Step::OwnCaches => {
                self.flush(None);
                self.close_lanes()
            }
            Step::Fences => self.collect().map(drop),
            Step::Trim | Step::StreamWaits => Ok(()),
            Step::Rooms => {
                self.rooms.ask(self.missing_bytes(bytes));
                Ok(())
            }
            Step::HostWaits => {
                self.close_lanes()?;
                self.wait_for_streams()?;
                self.collect().map(drop)
            }
            Step::Mesh => self.defragment(0).map(drop),
        }
    }

    /// Whether the program has promised what meshing needs. Beside a capture it is refused.
    fn may_mesh(&self) -> bool {
        if !self.config.meshes_when_short || self.plain.is_some() {
            return false;
        }
        !self.is_any_capturing()
    }

    /// What others have to give so that a request fits; all of it where it is not bytes that are missing.
    fn missing_bytes(&self, bytes: u64) -> u64 {
        let free = self.device.memory_info().map_or(u64::MAX, |info| info.free_bytes);
        let wanted = bytes.next_multiple_of(LARGE_GRANULE_BYTES);
        match wanted.saturating_sub(self.physical.left_bytes().min(free)) {
            0 => wanted,
            missing => missing,
        }
    }

    /// Puts all that was freed behind events, one for each stream. What is being captured records nothing outside of
    /// its graph and is left alone.
    pub(super) fn close_lanes(&self) -> Result<()> {
        let lanes = self.core.lock().order.streams_with(0);
        lanes.into_iter().try_for_each(|lane| self.close_lane(lane))
    }

    /// A block that was freed on another stream, after `stream` was made to wait for it.
    pub(super) fn take_behind_wait(&self, stream: Stream, class: u32, bytes: u64) -> Result<Option<Freed>> {
        if !self.may_hold_back(stream)? {
            return Ok(None);
        }
        let _lanes = self.lanes.read();
        let taken = self.core.lock().order.take_other(stream, class, bytes);
        taken.map_or(Ok(None), |taken| self.hold_back(stream, taken).map(Some))
    }

    /// As `take_behind_wait`, any run of granules that is long enough.
    pub(super) fn take_run_behind_wait(&self, stream: Stream, bytes: u64) -> Result<Option<Freed>> {
        if !self.may_hold_back(stream)? {
            return Ok(None);
        }
        let _lanes = self.lanes.read();
        let taken = self.core.lock().order.take_other_run(stream, MIDDLE as u32, bytes);
        taken.map_or(Ok(None), |taken| self.hold_back(stream, taken).map(Some))
    }

    /// Whether a stream can be made to wait: not while that would be a part of a graph, or break one.
    fn may_hold_back(&self, stream: Stream) -> Result<bool> {
        let is_asked = self.device.description().capabilities.capture;
        Ok(!is_asked || self.device.stream_takes_events(self.enqueued(stream))?)
    }

    fn hold_back(&self, stream: Stream, (owner, fence, block): (Stream, Arc<Fence>, Freed)) -> Result<Freed> {
        let held = match (self.has(Mistake::WaitForgotten), self.has(Mistake::WaitTooOld)) {
            (false, false) => fence.hold_back(self.enqueued(stream)),
            (true, _) => Ok(()),
            (_, true) => {
                self.core.lock().order.oldest().first().map_or(Ok(()), |fence| fence.hold_back(stream))
            }
        };
        match held {
            Ok(()) => Ok(block),
            Err(error) => {
                self.core.lock().order.put_back(owner, fence, block);
                Err(error)
            }
        }
    }

    /// Waits for the youngest fence of each stream and for other users of blocks, but not longer than the patience.
    fn wait_for_streams(&self) -> Result<()> {
        let fences: Vec<Arc<Fence>> = {
            let core = self.core.lock();
            let youngest = core.order.youngest().into_iter();
            // What several streams used waits for all of them.
            youngest.chain(core.limbo.fences()).collect()
        };
        let plain = self.plain.as_ref().map(PlainBlocks::fences).unwrap_or_default();
        let deadline_ns = clock::now_ns().saturating_add(self.config.patience_ns);
        for fence in fences.into_iter().chain(plain) {
            // One that cannot be asked for is not waited for either.
            while !fence.is_reached().or_else(|error| match error.status {
                Status::WrongState => Ok(true),
                _ => Err(error),
            })? {
                let left_ns = deadline_ns.saturating_sub(clock::now_ns());
                if left_ns == 0 {
                    return Ok(());
                }
                pause(left_ns.min(50_000));
            }
        }
        Ok(())
    }

    fn refusal(&self, bytes: u64, last: &Error) -> Error {
        let statistics = self.statistics();
        let free = self.device.memory_info().map_or(0, |info| info.free_bytes);
        let tags = self.top_tags(3);
        let largest = self.largest_bytes().unwrap_or(0);
        let pooled = statistics.backed_bytes.saturating_sub(statistics.live_block_bytes);
        let share = (100 * pooled).checked_div(statistics.backed_bytes).unwrap_or(0);
        let text = format!(
            "{bytes} bytes requested: {}; {}; live {} bytes in {} allocations, held free {pooled} ({share} % of what \
             is backed; {} of it beside something in the same mapping), in the pool of pages {}, the largest request \
             that would be served now {largest}, the device has {free} of {} free; most: {tags}; free something or \
             raise the limit",
            last.text,
            self.physical.limit_text(),
            statistics.live_bytes,
            statistics.live_count,
            statistics.retained_bytes,
            self.physical.usable_bytes(),
            self.total_bytes,
        );
        Error::new(Status::OutOfMemory, text)
    }
}

/// One attempt: found, refused for want of memory, or failed otherwise.
fn tried<T>(
    attempt: &impl Fn(bool) -> Result<Option<T>>,
    may_wait: bool,
) -> Result<std::result::Result<T, Error>> {
    // Between growing and taking another thread may be faster; after so many times it is no accident.
    for _ in 0..64 {
        match attempt(may_wait) {
            Ok(Some(found)) => return Ok(Ok(found)),
            Ok(None) => {}
            Err(error) if error.status == Status::OutOfMemory => return Ok(Err(error)),
            Err(error) => return Err(error),
        }
    }
    Ok(Err(Error::new(Status::OutOfMemory, "other threads took each block that was made")))
}
