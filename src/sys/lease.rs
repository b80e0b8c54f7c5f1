//! A value that one thread uses nearly always and that others can still reach.
//!
//! The thread that made it, the owner, uses it without a lock and without an atomic read-modify-write: it says that it
//! is busy, looks whether it was revoked, works. Whoever else wants the value revokes it, waits until the owner is not
//! busy, works, and lets go again. That the owner's "busy" is seen, or the other's "revoked", is what a full barrier
//! on both sides would give; here the other side pays for both with the system call membarrier(2), which runs a barrier
//! on every processor that runs a thread of this process. Where the system has no such call the owner runs a fence.
//! The idea is that of biased locks; see also the asymmetric fences of C++ P1202.
//!
//! An owner that is not inside may be parked; then there is none, until a thread takes it.
//!
//! Invariants: at most one thread is inside `body` at a time; `busy` is written by the owner alone. `body` must not use
//! the same value again: the owner is refused, others would wait for themselves. Lock order: `outside` alone.
//! Where a thread keeps its owners is `desk`'s matter.

use std::cell::UnsafeCell;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, compiler_fence, fence};
use std::time::Duration;

use super::barrier;
use crate::sync::Mutex;

pub(super) struct Shared<T> {
    is_busy: AtomicBool,
    is_revoked: AtomicBool,
    /// Copied from the system's answer, so that the owner reads one line of memory.
    has_membarrier: bool,
    /// Held by whoever works from outside, and by the owner while it was revoked.
    outside: Mutex<()>,
    value: UnsafeCell<T>,
}

// SAFETY: `value` is reached by one thread at a time, as the module says, so it moves between threads like a value
// in a mutex does.
unsafe impl<T: Send> Sync for Shared<T> {}

/// What is done with a value by whoever has it at hand. A trait and not a closure where the compiler has to put it into
/// its caller: a closure cannot ask for that.
pub trait Work<T> {
    /// What comes of it.
    type Answer;

    /// Does it; nothing where it cannot be done here.
    fn work(self, value: &mut T) -> Option<Self::Answer>;
}

impl<T, R, F: FnOnce(&mut T) -> Option<R>> Work<T> for F {
    type Answer = R;

    #[inline(always)]
    fn work(self, value: &mut T) -> Option<R> {
        self(value)
    }
}

/// The owner's end. Stays on its thread.
pub struct Owner<T> {
    shared: Arc<Shared<T>>,
    _stays: PhantomData<*mut ()>,
}

/// The owner's end between two threads: nobody's, until one takes it.
pub struct Parked<T> {
    shared: Arc<Shared<T>>,
}

/// Everybody else's end.
pub struct Guest<T> {
    shared: Arc<Shared<T>>,
}

impl<T> Clone for Guest<T> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

/// Makes a value with this thread as its owner.
pub fn lease<T: Send>(value: T) -> (Owner<T>, Guest<T>) {
    let has_membarrier = barrier::is_offered();
    let shared = Arc::new(Shared {
        is_busy: AtomicBool::new(false),
        is_revoked: AtomicBool::new(false),
        has_membarrier,
        outside: Mutex::new(()),
        value: UnsafeCell::new(value),
    });
    (Owner { shared: Arc::clone(&shared), _stays: PhantomData }, Guest { shared })
}

/// Ends the owner's work also if it panics.
struct Busy<'a>(&'a AtomicBool);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        // Release: what the owner wrote is seen by whoever finds it not busy.
        self.0.store(false, Ordering::Release);
    }
}

impl<T> Shared<T> {
    /// For the owner.
    #[inline(always)]
    pub(super) fn with<R>(&self, body: impl FnOnce(&mut T) -> R) -> Option<R> {
        // Only this thread writes it, so a plain look is enough.
        if self.is_busy.load(Ordering::Relaxed) {
            return None;
        }
        loop {
            self.is_busy.store(true, Ordering::Relaxed);
            // The store above must be seen before the load below is made; the other side's system call sees to it.
            compiler_fence(Ordering::SeqCst);
            if !self.has_membarrier {
                fence(Ordering::SeqCst);
            }
            if !self.is_revoked.load(Ordering::Acquire) {
                break;
            }
            self.wait();
        }
        let _busy = Busy(&self.is_busy);
        // SAFETY: busy was set before revoked was found unset, so others wait; this thread is not inside already.
        Some(body(unsafe { &mut *self.value.get() }))
    }

    /// For the owner: as `with`, but steps back at once where others work. Has no call in it, so that its caller saves
    /// nothing for one.
    #[inline(always)]
    pub(super) fn with_promptly<W: Work<T>>(&self, body: W) -> Option<W::Answer> {
        if self.is_busy.load(Ordering::Relaxed) {
            return None;
        }
        self.is_busy.store(true, Ordering::Relaxed);
        // As in `with`.
        compiler_fence(Ordering::SeqCst);
        if !self.has_membarrier {
            fence(Ordering::SeqCst);
        }
        if self.is_revoked.load(Ordering::Acquire) {
            self.is_busy.store(false, Ordering::Release);
            return None;
        }
        let _busy = Busy(&self.is_busy);
        // SAFETY: as in `with`.
        body.work(unsafe { &mut *self.value.get() })
    }

    /// Steps back until nobody works from outside.
    #[cold]
    #[inline(never)]
    fn wait(&self) {
        self.is_busy.store(false, Ordering::Release);
        drop(self.outside.lock());
    }
}

impl<T> Owner<T> {
    /// Works on the value. Nothing if this thread is already inside.
    #[inline(always)]
    pub fn with<R>(&self, body: impl FnOnce(&mut T) -> R) -> Option<R> {
        self.shared.with(body)
    }
}

impl<T> Owner<T> {
    pub(super) fn is_inside(&self) -> bool {
        self.shared.is_busy.load(Ordering::Relaxed)
    }

    /// The value, which lives as long as this or a guest does.
    pub(super) fn at_hand(&self) -> *const Shared<T> {
        Arc::as_ptr(&self.shared)
    }

    /// Gives the value to the thread that will take it from here; nothing where this one is inside.
    pub fn park(self) -> Option<Parked<T>> {
        (!self.is_inside()).then_some(Parked { shared: self.shared })
    }

    /// Another end for others.
    pub fn guest(&self) -> Guest<T> {
        Guest { shared: Arc::clone(&self.shared) }
    }
}

impl<T> Parked<T> {
    /// Makes this thread the owner. It sees what the one before did, by whatever handed it over.
    pub fn take(self) -> Owner<T> {
        Owner { shared: self.shared, _stays: PhantomData }
    }

    /// Another end for others.
    pub fn guest(&self) -> Guest<T> {
        Guest { shared: Arc::clone(&self.shared) }
    }
}

/// Lets the owner go on without the lock, also after a panic.
struct Revoked<'a>(&'a AtomicBool);

impl Drop for Revoked<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// Turns in which an owner that runs is done.
const TURNS: u32 = 64;
const PAUSE: Duration = Duration::from_micros(50);
/// Pauses until they are twice as long, and how often that comes: an owner that is off for long stays so for long.
const PAUSES: u32 = 8;
const DOUBLINGS: u32 = 4;

/// One turn of the wait for an owner. It is inside for nanoseconds; after many turns it is off its processor, which it
/// may never get where a visitor of a higher priority only yields.
#[expect(
    clippy::disallowed_methods,
    reason = "the owner tells nobody that it is done: that would cost it a fence"
)]
fn step_aside(turn: u32) {
    match turn.checked_sub(TURNS) {
        None => std::thread::yield_now(),
        Some(pauses) => std::thread::sleep(PAUSE * (1 << (pauses / PAUSES).min(DOUBLINGS))),
    }
}

impl<T> Guest<T> {
    /// Whether both reach the same value.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }

    /// Works on the value from another thread, or from the owner's own outside of its `with`. Blocks while the owner
    /// works.
    pub fn with<R>(&self, body: impl FnOnce(&mut T) -> R) -> R {
        let shared = &*self.shared;
        let _outside = shared.outside.lock();
        shared.is_revoked.store(true, Ordering::Relaxed);
        let _revoked = Revoked(&shared.is_revoked);
        if shared.has_membarrier {
            barrier::everywhere();
        } else {
            // Then the owner runs its fence.
            fence(Ordering::SeqCst);
        }
        let mut turn = 0;
        while shared.is_busy.load(Ordering::Acquire) {
            step_aside(turn);
            turn += 1;
        }
        // SAFETY: the owner sees that it is revoked, or was waited for; other guests wait for the lock.
        body(unsafe { &mut *shared.value.get() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_owner_is_not_let_in_twice() {
        let (owner, guest) = lease(1);
        assert_eq!(owner.with(|_| owner.with(|_| ())), Some(None));
        assert_eq!(owner.with(|value| *value), Some(1));
        assert_eq!(guest.with(|value| std::mem::replace(value, 2)), 1);
        assert_eq!(owner.with(|value| *value), Some(2));
    }

    #[test]
    fn the_owner_is_not_let_in_twice_while_it_is_revoked() {
        let (owner, guest) = lease(1);
        let (begin, begun) = std::sync::mpsc::channel();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let ended = ended;
                guest.with(|_| {
                    begin.send(()).unwrap();
                    ended.recv().unwrap();
                });
            });
            begun.recv().unwrap();
            scope.spawn(move || end.send(()).unwrap());
            assert_eq!(owner.with(|_| owner.with(|_| ())), Some(None));
        });
    }

    #[test]
    fn a_visitor_leaves_the_processor_to_an_owner_that_is_off_it() {
        let (tell, told) = std::sync::mpsc::channel();
        let (begin, begun) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let (owner, guest) = lease(());
                tell.send(guest).unwrap();
                owner.with(|()| {
                    begin.send(()).unwrap();
                    // Nobody writes into it: 200 ms off its processor.
                    let (_open, never) = std::sync::mpsc::channel::<()>();
                    assert!(never.recv_timeout(Duration::from_millis(200)).is_err());
                });
            });
            let guest = told.recv().unwrap();
            begun.recv().unwrap();
            let (start, ran) = (crate::sys::clock::now_ns(), crate::sys::clock::thread_ns());
            guest.with(|()| ());
            let (waited, ran) = (crate::sys::clock::now_ns() - start, crate::sys::clock::thread_ns() - ran);
            assert!(ran < waited / 4, "{ran} ns of a wait of {waited} ns");
        });
    }

    #[test]
    fn a_panic_of_either_side_leaves_the_value_usable() {
        let (owner, guest) = lease(1);
        let inside = std::panic::AssertUnwindSafe(|| owner.with(|_| panic!("planned")));
        assert!(std::panic::catch_unwind(inside).is_err());
        let outside = std::panic::AssertUnwindSafe(|| guest.with(|_| panic!("planned")));
        assert!(std::panic::catch_unwind(outside).is_err());
        assert_eq!(owner.with(|value| *value), Some(1));
        assert_eq!(guest.with(|value| *value), 1);
    }

    #[test]
    fn owner_and_guests_never_work_at_the_same_time() {
        const OWNED: u64 = 3_000_000;
        const VISITS: u64 = 2_000;
        // Two words that only agree between two turns, written without any atomics.
        let (tell, told) = std::sync::mpsc::channel();
        let owning = std::thread::spawn(move || {
            let (owner, guest) = lease((0u64, 0u64));
            tell.send(guest).unwrap();
            for _ in 0..OWNED {
                owner.with(|(one, other)| {
                    assert_eq!(one, other);
                    *one += 1;
                    *other = std::hint::black_box(*other) + 1;
                });
            }
        });
        let guest = told.recv().unwrap();
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..VISITS {
                        guest.with(|(one, other)| {
                            assert_eq!(one, other);
                            *one += 1;
                            *other = std::hint::black_box(*other) + 1;
                        });
                    }
                });
            }
        });
        owning.join().unwrap();
        assert_eq!(guest.with(|value| *value), (OWNED + 2 * VISITS, OWNED + 2 * VISITS));
    }

    #[test]
    fn what_is_parked_goes_on_with_its_next_owner_and_stays_open_to_guests() {
        let (owner, guest) = lease(0u64);
        assert!(owner.with(|_| owner.is_inside()).unwrap() && !owner.is_inside());
        let mut parked = owner.park().unwrap();
        for turn in 1..=100 {
            assert!(parked.guest().is_same(&guest));
            parked = std::thread::scope(|scope| {
                let visit = scope.spawn(|| guest.with(|value| *value += 1));
                let next = scope.spawn(move || {
                    let owner = parked.take();
                    assert_eq!(owner.with(|value| *value += 1), Some(()));
                    owner.park().unwrap()
                });
                visit.join().unwrap();
                next.join().unwrap()
            });
            assert_eq!(guest.with(|value| *value), 2 * turn);
        }
    }

    #[test]
    fn the_owners_turn_costs_a_few_nanoseconds() {
        let (owner, _guest) = lease(0u64);
        let turns = 10_000_000;
        let start = crate::sys::clock::now_ns();
        for _ in 0..turns {
            owner.with(|value| *std::hint::black_box(value) += 1);
        }
        let nanoseconds = (crate::sys::clock::now_ns() - start) / turns;
        assert!(nanoseconds < 50, "{nanoseconds} ns a turn; about 2 on an idle machine");
    }
}
