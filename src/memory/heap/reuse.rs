//! What is held already, looked through before more is taken from the device.
//!
//! A block that was freed serves the next request of its class. Programs whose sizes change leave blocks behind that
//! nobody asks for again; without more, what is held would be the sum of what each size once needed. So each time that
//! what is backed has grown by a sixteenth, and memory is about to be taken from the device, the heap looks first: it
//! empties the front caches, joins what was freed side by side, and lets free pages go where they are wanted. A request
//! that this serves costs no new memory, and the next one looks again; where nothing is found, the device is asked, and
//! the next look is a sixteenth later (sooner while something is on its way): a program that only grows pays for a few.
//! What it does not: wait for work in flight, but for a moment; take a block from another stream behind a wait.
//! Invariant: a joined run is a freed run of its stream like any other. Lock order: front caches, then `core`.

use std::sync::atomic::Ordering;

use super::super::order::Freed;
use super::super::region::MIDDLE_GRANULE_BYTES;
use super::super::size_class::{self, Class};
use super::core::{CLASS_ALIGNMENT, Core, FITTED};
use super::fitted::granules;
use super::{Heap, MIDDLE};
use crate::device::Stream;
use crate::error::Result;
use crate::sys::clock;

/// What is backed grows by one part in so many before it is looked through again.
const LOOK_SHARE: u64 = 16;
/// And by no less than this.
pub(super) const LOOK_LEAST_BYTES: u64 = 16 << 20;

/// How long a look waits for events that were recorded just now: an idle device needs a few microseconds, and to take
/// memory from a driver costs more.
const MOMENT_NS: u64 = 20_000;

impl Heap {
    /// Whether what is backed has grown so much since the last look that found nothing.
    pub(super) fn is_look_due(&self) -> bool {
        self.backed_bytes() >= self.next_look_bytes.load(Ordering::Relaxed)
    }

    /// Notes that a look found nothing.
    pub(super) fn looked(&self) {
        let backed = self.backed_bytes();
        // What is on its way will be there soon, and its events are recorded.
        let is_waiting = self.core.lock().order.count() > 0;
        let share = if is_waiting { 0 } else { backed / LOOK_SHARE };
        self.next_look_bytes.store(backed + share.max(LOOK_LEAST_BYTES), Ordering::Relaxed);
    }

    /// A block of the class out of what is held, where a look is due. `alignment` is that of a run, in granules.
    pub(super) fn reuse_block(&self, stream: Stream, class: Class, alignment: u32) -> Result<Option<u32>> {
        if !self.is_look_due() {
            return Ok(None);
        }
        if class.is_small() {
            self.gather()?;
            let mut core = self.core.lock();
            let own = core.order.take_same(stream, class.index() as u32);
            return own.map_or_else(|| core.take_line(stream, class), |block| Ok(Some(block.id as u32)));
        }
        let count = (size_class::bytes_of(class) / MIDDLE_GRANULE_BYTES) as u32;
        // What the stream itself has freed needs no event and empties no cache.
        if alignment <= CLASS_ALIGNMENT
            && let Some(start) = self.core.lock().take_joined(stream, count)?
        {
            return Ok(Some(start));
        }
        self.gather()?;
        let mut core = self.core.lock();
        match core.middle.allocate(count, alignment)? {
            None if alignment <= CLASS_ALIGNMENT => core.take_joined(stream, count),
            found => Ok(found),
        }
    }

    /// A large block out of what is held, where a look is due.
    pub(super) fn reuse_large(&self, bytes: u64) -> Result<Option<u32>> {
        if !self.is_look_due() {
            return Ok(None);
        }
        self.gather()?;
        if let Some(block) = self.core.lock().take_idle_large(bytes) {
            return Ok(Some(block.id as u32));
        }
        let found = self.take_over(bytes, true)?;
        if found.is_none() {
            self.looked();
        }
        Ok(found)
    }

    /// Takes back all that was freed, as far as it is past or will be in a moment.
    fn gather(&self) -> Result<()> {
        self.flush(None);
        self.close_lanes()?;
        // What a simulated device does must not depend on a clock.
        let moment_ns = if self.device.simulator().is_none() { MOMENT_NS } else { 0 };
        let deadline_ns = clock::now_ns() + moment_ns;
        loop {
            // Of each stream one event is asked about at a time.
            while self.collect()? {}
            if self.core.lock().order.count() == 0 || clock::now_ns() >= deadline_ns {
                return Ok(());
            }
            std::hint::spin_loop();
        }
    }
}

impl Core {
    /// A run of what was freed on the stream, after neighbours were joined.
    fn take_joined(&mut self, stream: Stream, count: u32) -> Result<Option<u32>> {
        self.join(stream)?;
        let bytes = u64::from(count) * MIDDLE_GRANULE_BYTES;
        match self.order.take_same_run(stream, MIDDLE as u32, bytes) {
            // What was cut to its length may lie before it.
            Some(block) if !block.id.is_multiple_of(CLASS_ALIGNMENT.into()) => {
                self.order.free(stream, block);
                Ok(None)
            }
            Some(block) => self.cut(stream, block, count).map(Some),
            None => Ok(None),
        }
    }

    /// Makes one run of all that were freed on the stream side by side.
    fn join(&mut self, stream: Stream) -> Result<()> {
        let mut runs = self.order.take_own_runs(stream, MIDDLE as u32);
        runs.sort_unstable_by_key(|run| run.id);
        let end = |run: &Freed| run.id + u64::from(granules(run.bytes));
        let mut outcome = Ok(());
        for side_by_side in runs.chunk_by(|one, next| end(one) == next.id) {
            // What can fail comes before anything is free for a moment, and nobody's any more.
            let is_joined = side_by_side.len() > 1 && {
                outcome = outcome.and_then(|()| self.middle.reserve_nodes(4));
                outcome.is_ok()
            };
            if !is_joined {
                side_by_side.iter().for_each(|&run| self.order.free(stream, run));
                continue;
            }
            let id = side_by_side[0].id;
            let bytes = side_by_side.iter().map(|run| run.bytes).sum();
            side_by_side.iter().try_for_each(|run| self.middle.free(run.id as u32).map(drop))?;
            self.middle.carve(id as u32, granules(bytes))?;
            self.order.free(stream, Freed { class: FITTED, id, bytes });
        }
        outcome
    }
}
