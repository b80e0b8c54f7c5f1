//! Who waits for a lock has it between two pieces of long work.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use kavern::sync::{Mutex, give_way, pause};

const PIECES: u64 = 40;

/// Whether a thread of the system sleeps.
fn sleeps(thread: &str) -> bool {
    let state = std::fs::read_to_string(format!("/proc/{thread}/stat"));
    state.is_ok_and(|state| state.rsplit(')').next().is_some_and(|rest| rest.starts_with(" S")))
}

#[test]
fn who_waits_for_a_lock_has_it_when_its_holder_gives_way_and_asks_again_at_once() {
    let (lock, name) = (Mutex::new(0_u64), Mutex::new(String::new()));
    // Pieces of which the other one is about to wait for the end, and those that are over.
    let (begun, over) = (AtomicU64::new(0), AtomicU64::new(0));
    let mut held = lock.lock();
    let last = thread::scope(|scope| {
        scope.spawn(|| {
            *name.lock() = std::fs::read_link("/proc/thread-self").unwrap().display().to_string();
            for piece in 1..=PIECES {
                while over.load(Ordering::Acquire) < piece - 1 {
                    thread::yield_now();
                }
                begun.store(piece, Ordering::Release);
                *lock.lock() = piece;
            }
        });
        let mut pieces = 0;
        while *held == pieces && pieces < PIECES {
            pieces += 1;
            over.store(pieces - 1, Ordering::Release);
            while begun.load(Ordering::Acquire) < pieces || !sleeps(&name.lock()) {
                pause(1000);
            }
            give_way(held);
            held = lock.lock();
        }
        over.store(u64::MAX, Ordering::Release);
        *held
    });
    assert_eq!(last, PIECES, "so many pieces, and then one behind which the other had no turn");
}
