//! The time in milliseconds for the price of one load, a few milliseconds old.
//!
//! A thread writes the time down every few milliseconds while there is somebody who reads it. It cannot see readers; so
//! it stops after a while, and who finds that nobody writes asks the clock and calls it back.
//! What it does not: tell times that are compared with deadlines. Invariants: what is read was the time at some moment
//! before, never one to come; the thread ends before the last [`Ticker`] has gone. Lock order: `SHARED` alone.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle, ThreadId};
use std::time::Duration;

use super::{clock, fork};
use crate::sync::Mutex;

/// How often the time is written down.
const TICK: Duration = Duration::from_millis(4);
/// After so many times the thread rests: a second, so that calling it back costs nobody anything.
const TICKS: u32 = 250;

/// The time that was written down last; 0 while nobody does.
static TIME_MS: AtomicU32 = AtomicU32::new(0);
static SHARED: Mutex<Weak<Ticker>> = Mutex::new(Weak::new());

/// Keeps the thread that writes the time down.
#[derive(Debug)]
pub struct Ticker {
    is_stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    id: ThreadId,
}

/// Milliseconds since some moment, with wraparound, by the clock. The moment in which they are 0 is left out: it stands
/// for a time that nobody writes down.
pub fn clock_ms() -> u32 {
    match clock::coarse_ms() as u32 {
        0 => u32::MAX,
        time_ms => time_ms,
    }
}

/// The time, a few milliseconds old; nothing while nobody writes it down.
#[inline(always)]
pub fn noted_ms() -> Option<u32> {
    match TIME_MS.load(Ordering::Relaxed) {
        0 => None,
        time_ms => Some(time_ms),
    }
}

/// Milliseconds from `then_ms` to `now_ms`. What came after the look at the clock, up to minutes, is 0 ms old.
pub fn age_ms(now_ms: u32, then_ms: u32) -> u64 {
    const LATER: u32 = u32::MAX - (1 << 20);
    match now_ms.wrapping_sub(then_ms) {
        LATER.. => 0,
        age_ms => age_ms.into(),
    }
}

fn work(is_stopping: &AtomicBool) {
    loop {
        for _ in 0..TICKS {
            if is_stopping.load(Ordering::Acquire) {
                break;
            }
            TIME_MS.store(clock_ms(), Ordering::Relaxed);
            thread::park_timeout(TICK);
        }
        TIME_MS.store(0, Ordering::Relaxed);
        if is_stopping.load(Ordering::Acquire) {
            return;
        }
        // Who read the time before this was no longer than that ago; who reads it after this calls.
        thread::park();
    }
}

impl Ticker {
    /// The one of this process; the first call makes it. None if the system has no thread to give.
    pub fn shared() -> Option<Arc<Self>> {
        let mut shared = SHARED.lock();
        if let Some(ticker) = shared.upgrade() {
            return Some(ticker);
        }
        let is_stopping = Arc::new(AtomicBool::new(false));
        let theirs = Arc::clone(&is_stopping);
        let made = thread::Builder::new().name("kavern-clock".to_owned()).spawn(move || work(&theirs));
        let thread = made.ok()?;
        let ticker = Arc::new(Self { is_stopping, id: thread.thread().id(), thread: Some(thread) });
        *shared = Arc::downgrade(&ticker);
        Some(ticker)
    }

    /// The time by the clock, where nobody has written it down; the thread does from here on.
    #[cold]
    #[inline(never)]
    pub fn call(&self) -> u32 {
        let time_ms = clock_ms();
        TIME_MS.store(time_ms, Ordering::Relaxed);
        if let Some(thread) = &self.thread {
            thread.thread().unpark();
        }
        time_ms
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        // In the child of a fork the thread is not there, and waiting for it would not end.
        let Some(thread) = self.thread.take().filter(|_| !fork::is_forked_child()) else { return };
        self.is_stopping.store(true, Ordering::Release);
        thread.thread().unpark();
        if thread::current().id() != self.id {
            // It has nothing in it that panics.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::pause;

    #[test]
    fn the_noted_time_is_never_one_to_come_and_goes_on_also_after_a_rest() {
        let ticker = Ticker::shared().unwrap();
        let rest_ns = TICK.as_nanos() as u64 * u64::from(TICKS) * 3 / 2;
        for _ in 0..2 {
            let first = noted_ms().unwrap_or_else(|| ticker.call());
            let mut turns = 0;
            // Written down again by the thread, however late.
            while noted_ms().is_none_or(|noted| noted == first) {
                turns += 1;
                assert!(turns < 100_000, "nobody writes the time down");
                pause(1_000_000);
            }
            for _ in 0..100_000 {
                let noted = noted_ms().unwrap_or_else(|| ticker.call());
                assert!(clock_ms().wrapping_sub(noted) < 1 << 20, "a time to come");
            }
            pause(rest_ns);
        }
    }
}
