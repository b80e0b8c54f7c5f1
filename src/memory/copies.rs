//! Copies from the device to the host that are running, by count: page tables change slowly beside one.
//!
//! What it does: counts those that were begun and not ended, and those whose end lies on a stream that has not got
//! there. What it does not: copy, or know how large a copy is; whoever copies says so. Invariant:
//! `running == begun + ends being recorded + ends not known to be reached`. Lock order: its one lock, which is not held
//! while the device is called.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::fence::{Fence, Fences};
use crate::device::Stream;
use crate::error::{Error, Result, Status};
use crate::sync::Mutex;

/// Ends are looked at once there are so many, and again at twice what is left then, so that a list of which nobody
/// asks stays short.
const LOOK_AT: usize = 16;

#[derive(Default)]
struct State {
    /// Begun and not ended.
    begun: u64,
    /// Whose end is being recorded at this moment.
    marking: u64,
    ending: Vec<Arc<Fence>>,
    look_at: usize,
}

/// The copies of one manager. Shared by threads.
pub struct Copies {
    fences: Arc<Fences>,
    running: AtomicU64,
    state: Mutex<State>,
}

/// A copy whose end is being recorded; begun again with the drop, also by a panic of the device.
struct Unmarked<'a>(&'a Copies);

impl Drop for Unmarked<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.marking -= 1;
        state.begun += 1;
    }
}

impl Copies {
    /// None yet.
    pub(super) fn new(fences: Arc<Fences>) -> Arc<Self> {
        let state = State { look_at: LOOK_AT, ..State::default() };
        Arc::new(Self { fences, running: AtomicU64::new(0), state: Mutex::new(state) })
    }

    /// Says that a copy is about to begin.
    pub fn begin(&self) {
        let mut state = self.state.lock();
        state.begun += 1;
        self.running.fetch_add(1, Ordering::AcqRel);
    }

    /// Says that a copy is over: now, or once the stream is past this point.
    pub fn end(&self, stream: Option<Stream>) -> Result<()> {
        {
            let mut state = self.state.lock();
            state.begun = state.begun.checked_sub(1).ok_or_else(|| {
                let text = "no copy to the host is under way: each begin has one end";
                Error::new(Status::WrongState, text)
            })?;
            match stream {
                None => {
                    self.running.fetch_sub(1, Ordering::AcqRel);
                }
                Some(_) => state.marking += 1,
            }
        }
        let Some(stream) = stream else { return Ok(()) };
        let unmarked = Unmarked(self);
        let fence = self.mark(stream)?;
        std::mem::forget(unmarked);
        let is_long = {
            let mut state = self.state.lock();
            state.marking -= 1;
            state.ending.push(fence);
            state.ending.len() >= state.look_at
        };
        if is_long {
            self.look();
        }
        Ok(())
    }

    fn mark(&self, stream: Stream) -> Result<Arc<Fence>> {
        self.fences.record_outside(stream, "end the copy by NULL once the graph is done")
    }

    /// Forgets the ends that were reached.
    fn look(&self) {
        let ending = self.state.lock().ending.clone();
        let mut is_lost = false;
        for fence in &ending {
            // On a device that is lost nothing runs; any other refusal is asked again another time.
            is_lost |= fence.is_reached().is_err_and(|error| error.status == Status::DeviceLost);
        }
        let mut state = self.state.lock();
        let before = state.ending.len();
        state.ending.retain(|fence| !is_lost && !fence.is_known_reached());
        self.running.fetch_sub((before - state.ending.len()) as u64, Ordering::AcqRel);
        state.look_at = LOOK_AT.max(2 * state.ending.len());
    }

    /// How many are running. Asks the device about those whose end lies on a stream.
    pub fn running(&self) -> u64 {
        if self.running.load(Ordering::Acquire) > 0 {
            self.look();
        }
        self.running.load(Ordering::Acquire)
    }

    /// Whether any is running. Asks the device until it knows of one.
    pub(super) fn is_any_running(&self) -> bool {
        if self.running.load(Ordering::Acquire) == 0 {
            return false;
        }
        let oldest = {
            let state = self.state.lock();
            if state.begun > 0 {
                return true;
            }
            state.ending.first().map(Arc::clone)
        };
        // The oldest is the likeliest to be over; where it is not, the others need not be asked.
        if oldest.is_some_and(|fence| matches!(fence.is_reached(), Ok(false))) {
            return true;
        }
        self.running() > 0
    }

    /// Checks that all that runs is counted.
    pub(super) fn validate(&self) -> Result<()> {
        let state = self.state.lock();
        let known = state.begun + state.marking + state.ending.len() as u64;
        // Written under this lock only.
        let running = self.running.load(Ordering::Acquire);
        if running != known {
            return Err(Error::internal(format!("{running} copies are running, {known} are known")));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;
    use crate::device::registry;

    #[test]
    fn an_end_that_the_device_did_not_take_may_be_said_again() {
        for error in ["device", "panic"] {
            let device = registry::open(&format!("host?kind=event&fail_nth=2&error={error}")).unwrap();
            let copies = Copies::new(Fences::new(device));
            copies.begin();
            let ended = catch_unwind(AssertUnwindSafe(|| copies.end(Some(Stream::DEFAULT))));
            assert!(!matches!(ended, Ok(Ok(()))), "{error}");
            assert_eq!(copies.running(), 1);
            copies.end(None).unwrap();
            assert_eq!(copies.running(), 0, "{error}");
        }
    }

    #[test]
    fn a_copy_that_is_counted_and_known_to_nobody_is_found() {
        let copies = Copies::new(Fences::new(registry::open("host").unwrap()));
        copies.begin();
        copies.validate().unwrap();
        copies.running.fetch_add(1, Ordering::AcqRel);
        assert!(copies.validate().is_err(), "it would never be quiet again");
        copies.running.fetch_sub(2, Ordering::AcqRel);
        assert!(copies.validate().is_err());
    }

    #[test]
    fn one_copy_that_runs_is_enough_to_know_that_one_does() {
        let device = registry::open("host?kind=event&fail_nth=0").unwrap();
        let copies = Copies::new(Fences::new(Arc::clone(&device)));
        assert!(!copies.is_any_running());
        for _ in 0..4 {
            copies.begin();
            copies.end(Some(Stream::DEFAULT)).unwrap();
        }
        copies.begin();
        let calls = device.call_count();
        assert!(copies.is_any_running());
        assert_eq!(device.call_count(), calls, "no end is asked for beside one that was not said");
        copies.validate().unwrap();
        copies.end(None).unwrap();
        device.synchronize().unwrap();
        assert!(!copies.is_any_running());
        copies.validate().unwrap();
    }
}
