//! What threads share: the locks of the crate, in one place so that they can be switched for a checking build, and
//! tables that need none to be read.
//!
//! Lock order, outermost first: handle table, manager, cache, ledger, device tables, stream queue. A lock is never
//! held across a callback, and none but the device's own across a call into the device.

pub mod slots;

use std::time::Duration;

pub use parking_lot::{Condvar, Mutex, MutexGuard, RwLock};

/// Gives a lock back between two pieces of long work, to whoever waits for it. A plain unlock only wakes them, and who
/// asks again at once is faster.
pub fn give_way<T>(guard: MutexGuard<'_, T>) {
    #[cfg(test)]
    WAYS_GIVEN.set(ways_given() + 1);
    MutexGuard::unlock_fair(guard);
}

#[cfg(test)]
thread_local! {
    static WAYS_GIVEN: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

/// How often this thread gave way.
#[cfg(test)]
pub(crate) fn ways_given() -> u64 {
    WAYS_GIVEN.get()
}

/// Lets the thread rest for so long, or a little longer.
pub fn pause(nanoseconds: u64) {
    // Nobody can reach this pair, so nobody ends the wait. A shared one would panic when two threads rest at a time.
    let (lock, never) = (Mutex::new(()), Condvar::new());
    never.wait_for(&mut lock.lock(), Duration::from_nanos(nanoseconds));
}
