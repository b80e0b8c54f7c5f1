//! What an idle heap gives up by itself: front caches, freed blocks and empty pages.
//!
//! The upkeep of pages looks at each heap once in the time after which idle pages go. What threads did since is told by
//! the counts that their caches keep anyway, so nothing of it is on the path of a request; a cache is visited once in
//! that time. What threads have left that ended goes when no thread came to it in between, whatever others do; all else
//! when nobody has allocated or freed anything. What it does not: wait for work in flight; the next look finds it done.
//! Invariant: no event is recorded beside a capture that it would break: one that has begun is seen before, and one
//! that begins meanwhile by each event itself (`points`). Lock order: `resting` before all others; the upkeep alone
//! takes it.

use std::sync::atomic::{AtomicU64, Ordering};

use super::super::front_cache::Leased;
use super::super::upkeep::Idler;
use super::Heap;
use crate::event::Level;
use crate::sync::Mutex;
use crate::sys::lease::Guest;

/// What the look before has seen.
#[derive(Default)]
struct Seen {
    /// When it was.
    at_ns: Option<u64>,
    /// Allocations and frees ever.
    counts: (u64, u64),
    /// Front caches that no thread used, and what each had done.
    parked: Vec<(Guest<Leased>, u64)>,
}

/// What the upkeep knows of a heap.
#[derive(Default)]
pub(super) struct Resting {
    seen: Mutex<Seen>,
    flushes: AtomicU64,
}

impl Resting {
    /// How often an idle heap gave something back.
    pub(super) fn flushes(&self) -> u64 {
        self.flushes.load(Ordering::Relaxed)
    }
}

impl Idler for Heap {
    fn look(&self, now_ns: u64, idle_ns: u64) -> u64 {
        let mut seen = self.resting.seen.lock();
        let since_ns = seen.at_ns.map_or(idle_ns, |at_ns| now_ns.saturating_sub(at_ns));
        if since_ns < idle_ns {
            return idle_ns - since_ns;
        }
        self.take_aside_back();
        let is_first = seen.at_ns.replace(now_ns).is_none();
        let counts = self.activity();
        let is_idle = std::mem::replace(&mut seen.counts, counts) == counts && !is_first;
        self.end_unused(&mut seen);
        if is_idle && !self.is_any_capturing() {
            self.rest();
        }
        idle_ns
    }
}

impl Heap {
    fn rest(&self) {
        match self.let_go() {
            Ok(0) => {}
            Ok(_) => {
                self.resting.flushes.fetch_add(1, Ordering::Relaxed);
            }
            // What it was tried with is where it was.
            Err(error) => {
                self.physical.say(Level::Debug, || format!("an idle allocator kept what it has: {error}"));
            }
        }
    }

    /// Empties the parked front caches to which no thread has come since the look before.
    fn end_unused(&self, seen: &mut Seen) {
        let parked: Vec<Guest<Leased>> =
            self.parked.lock().iter().map(|(_, parked)| parked.guest()).collect();
        let done = |guest: &Guest<Leased>| guest.with(|leased| leased.cache.counts.done());
        let parked: Vec<_> = parked.into_iter().map(|guest| (done(&guest), guest)).collect();
        let former = std::mem::take(&mut seen.parked);
        for (done, guest) in parked {
            if !former.iter().any(|(other, then)| other.is_same(&guest) && *then == done) {
                seen.parked.push((guest, done));
                continue;
            }
            let unused = {
                let mut parked = self.parked.lock();
                // A thread may have come to it meanwhile.
                let at = parked.iter().position(|(_, parked)| parked.guest().is_same(&guest));
                at.map(|at| parked.remove(at).1.take())
            };
            if let Some(owner) = unused {
                self.end_own(&owner);
            }
        }
    }
}
