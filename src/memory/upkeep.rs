//! The upkeep of physical pages: makes pages ahead, lets idle ones go, makes the deferred page-table changes, and asks
//! those who use pages for what they do not use.
//!
//! What it does: one pass at a given time ([`Core::tick`]), and a thread that makes passes when there is reason. What
//! it does not: run on a simulated device, where a caller makes the passes, so that the order of calls is the same each
//! time. Invariants: the thread sleeps without a timeout while nothing is idle, deferred or missing, nobody is to be
//! asked and the moment is quiet; it ends before the pool's owner does. Lock order: `asking`, then the list of those
//! who are asked or their locks; the pool's lock, alone.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::thread::{JoinHandle, ThreadId};
use std::time::Duration;

use super::page_class::PageClass;
use super::physical::{Core, Pool};
use crate::event::Level;
use crate::sync::Mutex;
use crate::sys::{clock, fork};

/// Deferred changes are asked for again after so long, each time later while none of them comes.
const PATIENCE_MIN_NS: u64 = 250_000;
const PATIENCE_MAX_NS: u64 = 16_000_000;
/// After a device that has refused a page or a change of page tables, and after somebody took pooled pages for their
/// bytes.
const REFUSED_NS: u64 = 1_000_000_000;
/// A pass waits so long for a quiet moment: many copies later than that, memory that others need would not come back.
const HELD_MAX_NS: u64 = 100_000_000;
/// And so long for those who wait for a change: one of them may wait for a stream.
const AWAITED_MAX_NS: u64 = 1_000_000_000;

/// Whoever gives something up when nobody uses it.
pub(super) trait Idler: Send + Sync {
    /// Does so as of `now_ns` with what was not used for `idle_ns`; after how long it wants to be asked again.
    fn look(&self, now_ns: u64, idle_ns: u64) -> u64;
}

/// All of them.
#[derive(Default)]
pub(super) struct Idlers {
    list: Mutex<Vec<Weak<dyn Idler>>>,
    /// Held while they are asked. Not the list's: one of them may wait for the device, and nobody comes in late for it.
    asking: Mutex<()>,
}

impl Idlers {
    pub(super) fn add(&self, idler: Weak<dyn Idler>) {
        self.list.lock().push(idler);
    }

    /// Forgets one by its address, and waits until it is not being asked.
    pub(super) fn remove(&self, idler: *const ()) {
        self.list.lock().retain(|other| other.as_ptr().cast::<()>() != idler);
        drop(self.asking.lock());
    }

    /// Asks all; after how long the first one wants to be asked again.
    fn look(&self, now_ns: u64, idle_ns: u64) -> Option<u64> {
        // The lock is held: who removes one must not find it at work afterwards.
        let _asking = self.asking.lock();
        let idlers = {
            let mut list = self.list.lock();
            list.retain(|idler| idler.strong_count() > 0);
            list.clone()
        };
        idlers.iter().filter_map(Weak::upgrade).map(|idler| idler.look(now_ns, idle_ns)).min()
    }
}

impl Core {
    /// One pass. Returns after how long the next one has something to do, if it has.
    pub(super) fn tick(&self, now_ns: u64) -> Option<u64> {
        if self.is_held_back(now_ns) {
            return Some(PATIENCE_MIN_NS);
        }
        let collected = self.chores.collect(false);
        let deferred = collected.is_waiting.then_some(PATIENCE_MIN_NS);
        let refused = collected.is_stuck.then_some(REFUSED_NS);
        let idle_ns = self.config.idle_ns;
        let is_strained = self.account.is_strained();
        self.shed(|pool, class, idle, _| {
            let is_old = now_ns.saturating_sub(idle.since_ns) >= idle_ns;
            let is_too_much = self.pooled_bytes(pool) > self.config.high_bytes;
            is_strained || is_too_much || (is_old && self.is_above_low(pool, class))
        });
        let idlers = self.idlers.look(now_ns, idle_ns);
        [deferred, refused, self.stock_up(now_ns), idlers, self.next_idle(now_ns)].into_iter().flatten().min()
    }

    /// Whether the pass is to wait for a quiet moment, or for those who wait for a change; it does not wait for ever.
    fn is_held_back(&self, now_ns: u64) -> bool {
        let is_quiet = self.is_quiet();
        self.is_overdue.store(false, Ordering::Relaxed);
        if is_quiet && self.awaited.load(Ordering::Acquire) == 0 {
            self.held_since_ns.store(0, Ordering::Relaxed);
            return false;
        }
        let most_ns = if is_quiet { AWAITED_MAX_NS } else { HELD_MAX_NS };
        let since_ns = self.held_since_ns.load(Ordering::Relaxed);
        let is_over = since_ns > 0 && now_ns.saturating_sub(since_ns) >= most_ns;
        let next_ns = match (is_over, since_ns) {
            (true, _) => 0,
            (false, 0) => now_ns.max(1),
            (false, since_ns) => since_ns,
        };
        self.held_since_ns.store(next_ns, Ordering::Relaxed);
        self.is_overdue.store(is_over, Ordering::Relaxed);
        !is_over
    }

    /// Makes what is missing of the pages that are to be there ahead. Not after somebody needed the bytes of pooled
    /// pages in another form, before pages are asked for again, and not at once then: they must not be taken from under
    /// whoever is about to get them.
    fn stock_up(&self, now_ns: u64) -> Option<u64> {
        let is_low = self.is_low();
        let is_used_up = PageClass::ALL.into_iter().any(|class| self.is_used_up(class));
        if !(is_low || is_used_up) || self.is_pressed.load(Ordering::Relaxed) {
            return None;
        }
        let pressed_ns = self.pressed_ns.load(Ordering::Relaxed);
        if pressed_ns > 0 && now_ns.saturating_sub(pressed_ns) < REFUSED_NS {
            return Some(REFUSED_NS - now_ns.saturating_sub(pressed_ns));
        }
        for class in PageClass::ALL {
            if !self.is_used_up[class.index()].swap(false, Ordering::Relaxed) && !is_low {
                continue;
            }
            while self.lacks(class) && self.account.spare_bytes() >= self.bytes_of(class) {
                if let Err(error) = self.stock(class) {
                    self.say(Level::Debug, || format!("making a physical page ahead: {error}"));
                    return Some(REFUSED_NS);
                }
            }
        }
        None
    }

    /// Whether so little waits for use that more is to be made.
    pub(super) fn is_low(&self) -> bool {
        let low_bytes = self.config.low_bytes(self.page_bytes);
        low_bytes > 0 && self.pooled_bytes(&self.pool.lock()) < low_bytes
    }

    /// Nothing waits of this size any more.
    pub(super) fn note_used_up(&self, class: PageClass) {
        let is_made_ahead = self.config.ahead[class.index()] > 0;
        self.is_used_up[class.index()].store(is_made_ahead, Ordering::Relaxed);
    }

    /// Whether pages of this size are to be made, however much waits of others.
    pub(super) fn is_used_up(&self, class: PageClass) -> bool {
        self.is_used_up[class.index()].load(Ordering::Relaxed)
    }

    /// Whether a page that nobody wants may go.
    fn is_above_low(&self, pool: &Pool, class: PageClass) -> bool {
        let left_bytes = self.pooled_bytes(pool).saturating_sub(self.bytes_of(class));
        pool.idle[class.index()].len() > self.config.low_count(class)
            && left_bytes >= self.config.low_bytes(self.page_bytes)
    }

    /// Whether one more is to be made, and may be kept.
    fn lacks(&self, class: PageClass) -> bool {
        let pool = self.pool.lock();
        let is_short = pool.idle[class.index()].len() < self.config.ahead[class.index()] as usize;
        let bytes = self.pooled_bytes(&pool) + self.bytes_of(class);
        is_short && !pool.is_stopping && bytes <= self.config.high_bytes
    }

    /// How long until the next page has been idle for long enough to go.
    fn next_idle(&self, now_ns: u64) -> Option<u64> {
        let pool = self.pool.lock();
        let due = PageClass::ALL.into_iter().filter(|class| self.is_above_low(&pool, *class));
        let times = due.filter_map(|class| pool.idle[class.index()].iter().find(|idle| !idle.is_tied()));
        let wait = |since_ns: u64| since_ns.saturating_add(self.config.idle_ns).saturating_sub(now_ns).max(1);
        times.map(|idle| wait(idle.since_ns)).min()
    }

    /// Gives the upkeep reason to look.
    pub(super) fn stir(&self) {
        if self.config.has_thread {
            self.pool.lock().is_stirred = true;
            self.wake.notify_one();
        }
    }

    pub(super) fn pooled_bytes(&self, pool: &Pool) -> u64 {
        PageClass::ALL.iter().map(|&class| pool.idle[class.index()].len() as u64 * self.bytes_of(class)).sum()
    }

    fn work(&self) {
        let mut patience_ns = PATIENCE_MIN_NS;
        loop {
            let pass = AssertUnwindSafe(|| self.tick(clock::now_ns()));
            self.sink.hold();
            // A panic of the device is told where it happens; the next pass may find it well.
            let next = catch_unwind(pass).unwrap_or(Some(REFUSED_NS));
            self.sink.settle();
            let mut pool = self.pool.lock();
            if pool.is_stopping {
                return;
            }
            if !pool.is_stirred {
                match next {
                    None => self.wake.wait(&mut pool),
                    Some(PATIENCE_MIN_NS) => {
                        let _ = self.wake.wait_for(&mut pool, Duration::from_nanos(patience_ns));
                        patience_ns = (patience_ns * 2).min(PATIENCE_MAX_NS);
                    }
                    Some(ns) => {
                        let _ = self.wake.wait_for(&mut pool, Duration::from_nanos(ns));
                    }
                }
            }
            if std::mem::take(&mut pool.is_stirred) {
                patience_ns = PATIENCE_MIN_NS;
            }
        }
    }
}

/// Owner of the thread; stopped and awaited on drop.
pub(super) struct Worker {
    core: Arc<Core>,
    thread: Option<JoinHandle<()>>,
    id: ThreadId,
}

impl Worker {
    /// Starts the thread; none if the system has none to give, which is told.
    pub(super) fn start(core: &Arc<Core>) -> Option<Self> {
        let theirs = Arc::clone(core);
        let made = std::thread::Builder::new().name("kavern-pages".to_owned()).spawn(move || theirs.work());
        match made {
            Ok(thread) => {
                Some(Self { core: Arc::clone(core), id: thread.thread().id(), thread: Some(thread) })
            }
            Err(error) => {
                core.say(Level::Warn, || format!("no thread for the upkeep of physical pages: {error}"));
                None
            }
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // In the child of a fork the thread is not there, and waiting for it would not end.
        let Some(thread) = self.thread.take().filter(|_| !fork::is_forked_child()) else { return };
        self.core.pool.lock().is_stopping = true;
        self.core.wake.notify_one();
        // The thread itself may be the last to let go of the pool's owner.
        if std::thread::current().id() != self.id {
            // It ends in any case; whether by a panic of the device is told by the panic.
            let _ = thread.join();
        }
    }
}
