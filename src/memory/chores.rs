//! Page-table changes that wait for their time, and passes over all who have some.
//!
//! What it does: knows who has deferred changes, lets them make those, and lets go of one for certain. What it does
//! not: decide when. Invariant: after [`Chores::remove`] no pass holds the one that was removed. Lock order: its one
//! lock, which is not held while anybody is asked.

use std::sync::{Arc, Weak};

use crate::sync::{Condvar, Mutex};

/// Whoever has page-table changes to make later.
pub(super) trait Chore: Send + Sync {
    /// Makes those whose time has come. `waits`: for the lock of the one who is being asked.
    fn collect(&self, waits: bool) -> Collected;
    /// Passes on at most `count_max` mappings until there are so many bytes, none of `skipped`; what was passed on.
    fn pass_on(&self, bytes: u64, count_max: u64, skipped: Skipped) -> Passed;
}

/// Pages, by their first and end, of the range that begins at an address.
#[derive(Clone, Copy, Debug)]
pub(super) struct Skipped {
    pub(super) address: u64,
    pub(super) pages: (u64, u64),
}

/// What went to the pool before it was unmapped.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Passed {
    pub(super) bytes: u64,
    pub(super) mappings: u64,
}

/// What a [`Chore`] did.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Collected {
    /// Free of their old addresses.
    pub(super) bytes: u64,
    /// Whether there is more to do later.
    pub(super) is_waiting: bool,
    /// Whether the device has refused some of it.
    pub(super) is_stuck: bool,
}

#[derive(Default)]
struct State {
    all: Vec<Weak<dyn Chore>>,
    /// Passes that have begun and not ended.
    passes: Vec<u64>,
    next_pass: u64,
}

/// All who have something to do later.
#[derive(Default)]
pub(super) struct Chores {
    state: Mutex<State>,
    /// Told when a pass has ended.
    passed: Condvar,
}

/// A pass; ends with the drop.
struct Pass<'a> {
    chores: &'a Chores,
    number: u64,
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        self.chores.state.lock().passes.retain(|&number| number != self.number);
        self.chores.passed.notify_all();
    }
}

impl Chores {
    pub(super) fn add(&self, chore: Weak<dyn Chore>) {
        self.state.lock().all.push(chore);
    }

    /// Forgets one, and waits for the passes that may hold it.
    pub(super) fn remove(&self, chore: &Weak<dyn Chore>) {
        let mut state = self.state.lock();
        state.all.retain(|known| !known.ptr_eq(chore));
        let next_pass = state.next_pass;
        while state.passes.iter().any(|&number| number < next_pass) {
            self.passed.wait(&mut state);
        }
    }

    /// All of them, in a pass.
    fn begin(&self) -> (Pass<'_>, Vec<Arc<dyn Chore>>) {
        let mut state = self.state.lock();
        let number = state.next_pass;
        state.next_pass += 1;
        state.passes.push(number);
        (Pass { chores: self, number }, state.all.iter().filter_map(Weak::upgrade).collect())
    }

    /// Lets everybody make the changes whose time has come.
    pub(super) fn collect(&self, waits: bool) -> Collected {
        // Named before the list, so that the list has gone when the pass ends, also by a panic.
        let (_pass, all) = self.begin();
        let mut sum = Collected::default();
        for chore in all {
            let collected = chore.collect(waits);
            sum.bytes += collected.bytes;
            sum.is_waiting |= collected.is_waiting;
            sum.is_stuck |= collected.is_stuck;
        }
        sum
    }

    /// Lets everybody pass on what has been given up, at most `count_max` mappings, until there are so many bytes;
    /// returns the bytes.
    pub(super) fn pass_on(&self, bytes: u64, count_max: u64, skipped: Skipped) -> u64 {
        let (_pass, all) = self.begin();
        let mut sum = Passed::default();
        for chore in all {
            if sum.bytes >= bytes || sum.mappings == count_max {
                break;
            }
            let passed = chore.pass_on(bytes - sum.bytes, count_max - sum.mappings, skipped);
            sum.bytes += passed.bytes;
            sum.mappings += passed.mappings;
        }
        sum.bytes
    }
}
