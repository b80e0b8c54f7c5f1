//! Where a thread keeps the values that it owns, by key, and the place where it finds the one used last.
//!
//! A [`Desk`] is a list of a thread's [`Owner`]s. A thread-local static of a shared library is reached by a call, which
//! costs as much as what is done then; so a thread also takes one of a number of [`Seats`], found by the address of the
//! thread's own block, which is in a register. There lies the key used last and its value: two comparisons find it.
//! Two threads may meet at one seat; who comes later has none and uses the list.
//! Invariants: only the thread whose word is in `thread` reads or writes the rest of a seat; what lies there belongs to
//! an owner on the thread's desk, and is taken away before the owner leaves that. No locks.

use std::cell::{Cell, RefCell, UnsafeCell};
use std::mem::take;
use std::ptr::null;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::LocalKey;

use super::lease::{Owner, Shared, Work};

/// What values are found by.
pub type Words = [u64; 2];

/// A number that no other thread alive has, and that is not 0.
#[cfg(all(target_arch = "x86_64", target_os = "linux", not(miri)))]
#[inline(always)]
fn thread_word() -> usize {
    let word;
    // SAFETY: the ABI of the processor puts the address of a thread's block into its first word, which is at fs:0. It
    // is read and nothing else is done.
    unsafe {
        std::arch::asm!("mov {}, fs:0", out(reg) word, options(pure, readonly, nostack, preserves_flags));
    }
    word
}

/// A number that no other thread alive has, and that is not 0.
#[cfg(all(target_arch = "aarch64", target_os = "linux", not(miri)))]
#[inline(always)]
fn thread_word() -> usize {
    let word;
    // SAFETY: the register holds the address of a thread's block. It is read and nothing else is done.
    unsafe {
        std::arch::asm!("mrs {}, tpidr_el0", out(reg) word, options(pure, nomem, nostack, preserves_flags));
    }
    word
}

/// A number that no other thread alive has, and that is not 0.
#[cfg(not(all(any(target_arch = "x86_64", target_arch = "aarch64"), target_os = "linux", not(miri))))]
#[inline(always)]
fn thread_word() -> usize {
    thread_local!(static PLACE: Cell<u8> = const { Cell::new(0) });
    PLACE.with(|place| std::ptr::from_ref(place).addr())
}

/// Seats of all threads: a power of two. Many more than threads, so that few meet.
const SEATS: usize = 512;

/// What one thread has at hand. A line of its own, so that threads do not slow each other down.
#[repr(align(64))]
struct Seat<T> {
    /// The word of the thread while something is at hand, else 0.
    thread: AtomicUsize,
    /// What is at hand: its key, and its value.
    held: UnsafeCell<(Words, *const Shared<T>)>,
    /// The word of the thread whose seat it is, else 0.
    taken: AtomicUsize,
}

// SAFETY: `held` is reached by the one thread alone whose word is in `taken`, and so in `thread`; all else is atomic.
unsafe impl<T> Sync for Seat<T> {}

/// The seats of all threads for one kind of values. For a static.
pub struct Seats<T>([Seat<T>; SEATS]);

impl<T> Seats<T> {
    /// All free.
    pub const fn new() -> Self {
        Self(
            [const {
                Seat {
                    thread: AtomicUsize::new(0),
                    held: UnsafeCell::new(([0; 2], null())),
                    taken: AtomicUsize::new(0),
                }
            }; SEATS],
        )
    }

    /// The seat of a thread's word. Blocks of threads lie at multiples of some size, which the product spreads evenly.
    #[inline(always)]
    fn of(&self, word: usize) -> &Seat<T> {
        let spread = (word as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        &self.0[(spread >> (64 - SEATS.ilog2())) as usize % SEATS]
    }
}

impl<T> Default for Seats<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Seat<T> {
    /// What a thread has at hand, if it is what these words stand for.
    #[inline(always)]
    fn find(&self, thread: usize, words: Words) -> Option<*const Shared<T>> {
        if self.thread.load(Ordering::Relaxed) != thread {
            return None;
        }
        // SAFETY: this is the thread whose seat it is, and nothing here is given a reference for longer.
        let (known, at_hand) = unsafe { &*self.held.get() };
        (known[0] == words[0] && known[1] == words[1]).then_some(*at_hand)
    }

    /// Takes the seat for a thread, if no other has it.
    fn take(&self, thread: usize) -> bool {
        // Acquire: what the former one did is over.
        self.taken.compare_exchange(0, thread, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    fn put(&self, thread: usize, words: Words, value: *const Shared<T>) {
        // SAFETY: the caller has taken the seat for this thread, and nobody holds a reference.
        unsafe { *self.held.get() = (words, value) };
        self.thread.store(thread, Ordering::Relaxed);
    }
}

/// The owners of one thread, by key. For a thread-local static.
pub struct Desk<T: 'static> {
    words: Cell<Words>,
    /// The value of these; null before the first use and after its owner has left.
    at_hand: Cell<*const Shared<T>>,
    owners: RefCell<Vec<(Words, Owner<T>)>>,
    seats: &'static Seats<T>,
    /// That of this thread, once it has one.
    seat: Cell<Option<&'static Seat<T>>>,
    is_over: Cell<bool>,
    /// Called with each owner that is left when the thread ends.
    leave: fn(Owner<T>),
}

/// Works on the value of a key on this thread's desk, whose seats these are. Nothing if there is none, this thread is
/// inside it already, or is about to end.
#[inline(always)]
pub fn at_desk<T: 'static, R>(
    desk: &'static LocalKey<Desk<T>>,
    seats: &'static Seats<T>,
    words: Words,
    body: impl FnOnce(&mut T) -> R,
) -> Option<R> {
    let thread = thread_word();
    let seat = seats.of(thread);
    let at_hand = match seat.find(thread, words) {
        Some(at_hand) => at_hand,
        None => look(desk, words)?,
    };
    // SAFETY: what is at hand belongs to an owner in the list, which keeps it alive; it is taken from the hand before
    // its owner leaves the list, and none leaves while this thread works on it.
    unsafe { &*at_hand }.with(body)
}

/// As [`at_desk`], for what this thread has at its seat and nobody else works on: without a call, so that the caller
/// saves nothing for one. Nothing where that is not so.
#[inline(always)]
pub fn at_seat<T: 'static, W: Work<T>>(seats: &'static Seats<T>, words: Words, body: W) -> Option<W::Answer> {
    let thread = thread_word();
    let at_hand = seats.of(thread).find(thread, words)?;
    // SAFETY: as in `at_desk`.
    unsafe { &*at_hand }.with_promptly(body)
}

#[cold]
#[inline(never)]
fn look<T: 'static>(desk: &'static LocalKey<Desk<T>>, words: Words) -> Option<*const Shared<T>> {
    desk.try_with(|desk| desk.at_hand(words)).ok().flatten()
}

impl<T: 'static> Desk<T> {
    /// An empty one.
    pub const fn new(seats: &'static Seats<T>, leave: fn(Owner<T>)) -> Self {
        Self {
            words: Cell::new([0; 2]),
            at_hand: Cell::new(null()),
            owners: RefCell::new(Vec::new()),
            seats,
            seat: Cell::new(None),
            is_over: Cell::new(false),
            leave,
        }
    }

    /// Works on the value of a key. Nothing if there is none or this thread is inside it already.
    pub fn with<R>(&self, words: Words, body: impl FnOnce(&mut T) -> R) -> Option<R> {
        let at_hand = self.at_hand(words)?;
        // SAFETY: as in `at_desk`.
        unsafe { &*at_hand }.with(body)
    }

    /// The value of a key, which is at hand from here on.
    fn at_hand(&self, words: Words) -> Option<*const Shared<T>> {
        let at_hand = self.at_hand.get();
        if !at_hand.is_null() && self.words.get() == words {
            return Some(at_hand);
        }
        let mut owners = self.owners.try_borrow_mut().ok()?;
        let at = owners.iter().position(|(other, _)| *other == words)?;
        owners.swap(0, at);
        let at_hand = owners[0].1.at_hand();
        self.words.set(words);
        self.at_hand.set(at_hand);
        let thread = thread_word();
        if self.seat.get().is_none() {
            self.seat.set(Some(self.seats.of(thread)).filter(|seat| seat.take(thread)));
        }
        if let Some(seat) = self.seat.get() {
            seat.put(thread, words, at_hand);
        }
        Some(at_hand)
    }

    /// Puts an owner down. Those that make room for it come back: one of the same key, else the one unused longest if
    /// there are `most` already. So does the new one if the thread works on the one that would go.
    pub fn put(&self, words: Words, owner: Owner<T>, most: usize) -> Option<Owner<T>> {
        if self.is_over.get() {
            return Some(owner);
        }
        let Ok(mut owners) = self.owners.try_borrow_mut() else { return Some(owner) };
        let stale = owners.iter().position(|(other, _)| *other == words);
        let full = owners.len() >= most;
        let former = match stale.or(full.then(|| owners.len().saturating_sub(1))) {
            Some(at) if owners.get(at).is_some_and(|(_, former)| former.is_inside()) => return Some(owner),
            Some(at) if at < owners.len() => Some(self.leave(&mut owners, at)),
            _ => None,
        };
        owners.insert(0, (words, owner));
        former
    }

    /// Takes an owner out on which this thread does not work.
    fn leave(&self, owners: &mut Vec<(Words, Owner<T>)>, at: usize) -> Owner<T> {
        self.clear();
        owners.swap_remove(at).1
    }

    fn clear(&self) {
        self.at_hand.set(null());
        if let Some(seat) = self.seat.get() {
            seat.thread.store(0, Ordering::Relaxed);
        }
    }
}

impl<T: 'static> Desk<T> {
    /// Takes all owners out, gets up, and takes none any more: the thread ends. For where the destructor may not run.
    pub fn end(&self) {
        self.is_over.set(true);
        self.clear();
        if let Some(seat) = self.seat.take() {
            // Release: whoever takes it finds it cleared.
            seat.taken.store(0, Ordering::Release);
        }
        let owners = self.owners.try_borrow_mut().map_or_else(|_| Vec::new(), |mut owners| take(&mut owners));
        for (_, owner) in owners {
            (self.leave)(owner);
        }
    }

    /// Whether it takes no owner any more.
    pub fn is_over(&self) -> bool {
        self.is_over.get()
    }
}

impl<T: 'static> Drop for Desk<T> {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::lease::lease;
    use std::sync::Barrier;

    #[test]
    fn a_desk_finds_each_owner_by_its_key_and_keeps_the_ones_used_last() {
        thread_local!(static LEFT: RefCell<Vec<i32>> = const { RefCell::new(Vec::new()) });
        let leave = |owner: Owner<i32>| LEFT.with_borrow_mut(|left| left.extend(owner.with(|value| *value)));
        static SEATS: Seats<i32> = Seats::new();
        let desk = Desk::new(&SEATS, leave);
        assert_eq!(desk.with([0, 0], |value: &mut i32| *value), None);
        for key in 1..=4 {
            let put = desk.put([key, 7], lease(key as i32 * 10).0, 3);
            // The one used longest ago makes room.
            assert_eq!(put.map(|former| former.with(|value| *value)), (key == 4).then_some(Some(10)));
            assert_eq!(desk.with([key, 7], |value| *value), Some(key as i32 * 10));
        }
        assert_eq!(
            [1, 2, 3, 4].map(|key| desk.with([key, 7], |value| *value)),
            [None, Some(20), Some(30), Some(40)]
        );
        let former = desk.put([3, 7], lease(33).0, 3).unwrap();
        assert_eq!(former.with(|value| *value), Some(30));
        assert_eq!(desk.with([3, 7], |value| *value), Some(33));
        drop(desk);
        LEFT.with_borrow(|left| assert_eq!(left.iter().sum::<i32>(), 20 + 33 + 40, "{left:?}"));
    }

    #[test]
    fn what_a_thread_works_on_does_not_leave_its_desk() {
        static SEATS: Seats<i32> = Seats::new();
        let desk = Desk::new(&SEATS, |_| ());
        assert!(desk.put([1, 1], lease(1).0, 1).is_none());
        let inside = desk.with([1, 1], |value| {
            let refused = [desk.put([1, 1], lease(2).0, 1), desk.put([2, 1], lease(3).0, 1)];
            let refused = refused.map(|back| back.and_then(|owner| owner.with(|value| *value)));
            *value += 1;
            (refused, desk.with([1, 1], |_| ()))
        });
        assert_eq!(inside, Some(([Some(2), Some(3)], None)));
        assert_eq!(desk.with([1, 1], |value| *value), Some(2));
    }

    static ROW: Seats<u64> = Seats::new();
    thread_local!(static DESK: Desk<u64> = const { Desk::new(&ROW, |_| ()) });

    fn is_seated() -> bool {
        let thread = thread_word();
        ROW.of(thread).thread.load(Ordering::Relaxed) == thread
    }

    #[test]
    fn a_thread_sits_while_something_is_at_hand_and_gets_up_when_it_ends() {
        let turn = || {
            assert!(!is_seated());
            assert_eq!(at_desk(&DESK, &ROW, [1, 2], |value| *value), None);
            DESK.with(|desk| assert!(desk.put([1, 2], lease(5).0, 1).is_none()));
            for words in [[1, 2], [2, 2], [1, 1], [0, 0], [1, 2]] {
                let wanted = (words == [1, 2]).then_some(5);
                assert_eq!(at_desk(&DESK, &ROW, words, |value| *value), wanted, "{words:?}");
                assert_eq!(at_seat(&ROW, words, |value: &mut u64| Some(*value)), wanted, "{words:?}");
            }
            let is_seated_before = is_seated();
            DESK.with(|desk| assert!(desk.put([1, 2], lease(6).0, 1).is_some()));
            assert!(!is_seated(), "what was at hand has gone");
            assert_eq!(at_seat(&ROW, [1, 2], |value: &mut u64| Some(*value)), None);
            assert_eq!(at_desk(&DESK, &ROW, [1, 2], |value| *value), Some(6));
            (ROW.of(thread_word()).taken.load(Ordering::Relaxed) == thread_word(), is_seated_before)
        };
        // One thread after the other, so that the next has the block of the one before, and its seat.
        for _ in 0..20 {
            assert_eq!(std::thread::spawn(turn).join().unwrap(), (true, true));
        }
    }

    #[test]
    fn a_desk_that_has_ended_has_given_everything_back_and_takes_nothing() {
        static LATE: Seats<u64> = Seats::new();
        thread_local!(static LEFT: Cell<u64> = const { Cell::new(0) });
        thread_local!(static LATE_DESK: Desk<u64> = const {
            Desk::new(&LATE, |owner| LEFT.set(LEFT.get() + owner.with(|value| *value).unwrap()))
        });
        std::thread::spawn(|| {
            let find = || at_desk(&LATE_DESK, &LATE, [1, 2], |value| *value);
            LATE_DESK.with(|desk| assert!(desk.put([1, 2], lease(5).0, 1).is_none()));
            assert_eq!(find(), Some(5));
            LATE_DESK.with(Desk::end);
            assert_eq!((LEFT.get(), find()), (5, None));
            assert!(LATE.0.iter().all(|seat| seat.taken.load(Ordering::Relaxed) == 0));
            LATE_DESK.with(|desk| {
                assert!(desk.is_over());
                let back = desk.put([1, 2], lease(6).0, 1).and_then(|owner| owner.with(|value| *value));
                assert_eq!(back, Some(6));
            });
            assert_eq!(find(), None);
            assert!(LATE.0.iter().all(|seat| seat.taken.load(Ordering::Relaxed) == 0));
            LATE_DESK.with(Desk::end);
            assert_eq!(LEFT.get(), 5);
        })
        .join()
        .unwrap();
    }

    #[test]
    fn what_others_work_on_is_not_at_hand_for_so_long() {
        static QUIET: Seats<u64> = Seats::new();
        thread_local!(static QUIET_DESK: Desk<u64> = const { Desk::new(&QUIET, |_| ()) });
        let (owner, guest) = lease(3);
        QUIET_DESK.with(|desk| assert!(desk.put([9, 9], owner, 1).is_none()));
        assert_eq!(at_desk(&QUIET_DESK, &QUIET, [9, 9], |value| *value), Some(3));
        let inside = || at_seat(&QUIET, [9, 9], |value: &mut u64| Some(*value));
        assert_eq!(at_seat(&QUIET, [9, 9], |_: &mut u64| Some(inside())), Some(None), "not twice");
        assert_eq!(at_seat(&QUIET, [9, 9], |_: &mut u64| None::<u64>), None);
        let (begin, begun) = std::sync::mpsc::channel();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                guest.with(|value| {
                    begin.send(()).unwrap();
                    ended.recv().unwrap();
                    *value = 4;
                });
            });
            begun.recv().unwrap();
            assert_eq!(inside(), None);
            end.send(()).unwrap();
            assert_eq!(at_desk(&QUIET_DESK, &QUIET, [9, 9], |value| *value), Some(4));
            assert_eq!(inside(), Some(4));
        });
    }

    #[test]
    fn many_more_threads_than_seats_each_find_what_is_theirs() {
        let count = CROWD_COUNT;
        let together = Barrier::new(count);
        let seated: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..count as u64)
                .map(|number| {
                    let together = &together;
                    let work = move || {
                        CROWD_DESK.with(|desk| assert!(desk.put([7, 7], lease(number).0, 1).is_none()));
                        assert_eq!(at_desk(&CROWD_DESK, &CROWD, [7, 7], |value| *value), Some(number));
                        together.wait();
                        for _ in 0..100 {
                            assert_eq!(at_desk(&CROWD_DESK, &CROWD, [7, 7], |value| *value), Some(number));
                        }
                        let is_seated = CROWD_DESK.with(|desk| desk.seat.get().is_some());
                        together.wait();
                        usize::from(is_seated)
                    };
                    std::thread::Builder::new().stack_size(64 << 10).spawn_scoped(scope, work).unwrap()
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert!(seated > CROWD_COUNT / 4 && seated <= SEATS, "{seated} of {count} threads had seats");
        assert!(CROWD.0.iter().all(|seat| seat.taken.load(Ordering::Relaxed) == 0), "all got up");
    }

    const CROWD_COUNT: usize = SEATS + 100;
    static CROWD: Seats<u64> = Seats::new();
    thread_local!(static CROWD_DESK: Desk<u64> = const { Desk::new(&CROWD, |_| ()) });
}
