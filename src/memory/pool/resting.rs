//! What a pool gives back by itself: batches that nobody used for its idle time.
//!
//! The upkeep of pages asks a pool when its oldest batch is due. A pool that is not in the upkeep, or on a device for
//! which there is no thread, looks when it is called. What it does not: wait for a call into the pool, or for work on
//! its blocks; but the device may wait for what runs before it takes memory back, and the upkeep with it.
//! Invariant: after `end` the upkeep neither is inside of the pool nor keeps it. Lock order: none is held over another.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use super::Pool;
use crate::memory::upkeep::Idler;

/// The upkeep asks a pool at most so often: one with a shorter idle time is not worth a thread that never sleeps.
const LOOK_MIN_NS: u64 = 100_000_000;

impl Idler for Pool {
    fn look(&self, now_ns: u64, _pages_idle_ns: u64) -> u64 {
        let left_ns = || {
            let since_ns = self.books.lock().oldest_use_ns().unwrap_or(now_ns);
            since_ns.saturating_add(self.idle_ns).saturating_sub(now_ns)
        };
        if left_ns() == 0 {
            self.trim(self.idle_ns, now_ns);
        }
        // What is overdue now is in use, or its stream is not done.
        let next_ns = match left_ns() {
            0 => self.idle_ns / 8,
            left_ns => left_ns,
        };
        next_ns.max(LOOK_MIN_NS)
    }
}

impl Pool {
    /// Has the upkeep of pages look for idle batches, whether anybody calls the pool or not. Where it has a thread,
    /// calls do not look any more; where the device cannot map memory there is no upkeep, and they go on.
    pub fn begin_upkeep(self: &Arc<Self>) {
        if self.idle_ns == 0 {
            return;
        }
        let Ok(physical) = self.memory.physical() else { return };
        let idler: Weak<Self> = Arc::downgrade(self);
        physical.idlers().add(idler as Weak<dyn Idler>);
        if physical.has_thread() {
            self.next_look_ns.store(u64::MAX, Ordering::Relaxed);
            physical.stir();
        }
    }

    /// The end of its use: the upkeep lets go of it, so that the owner's drop is its end. Waits for a look under way.
    pub fn end(&self) {
        let physical = self.memory.physical.lock().clone();
        if let Some(physical) = physical {
            physical.idlers().remove(std::ptr::from_ref(self).cast());
        }
    }

    /// At a call.
    pub(super) fn look_for_idle(&self, now_ns: u64) {
        let due_ns = self.next_look_ns.load(Ordering::Relaxed);
        if self.idle_ns == 0 || now_ns < due_ns {
            return;
        }
        // An eighth: often enough to be near the time that was asked for, seldom enough to cost nothing.
        let next_ns = now_ns.saturating_add((self.idle_ns / 8).max(1));
        if self.next_look_ns.compare_exchange(due_ns, next_ns, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            self.trim(self.idle_ns, now_ns);
        }
    }
}
