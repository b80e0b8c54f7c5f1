//! Asking the owner of memory for some of it back.
//!
//! What it does: keeps an owner's function, calls it without a lock, knows who is inside. What it does not: know what
//! the owner gives. Invariants: after [`Hook::set`] returns, no other thread is inside the former function or will be;
//! a thread inside one is never asked again, so that two owners cannot ask each other for ever. Lock order: its one
//! lock, then nothing.

use std::sync::Arc;
use std::thread::{self, ThreadId};

use crate::sync::{Condvar, Mutex};

/// Called with the bytes that are wanted; may use the pool.
pub type Reclaim = Arc<dyn Fn(u64) + Send + Sync>;

#[derive(Default)]
struct State {
    function: Option<Reclaim>,
    inside: Vec<ThreadId>,
}

/// One owner's function.
#[derive(Default)]
pub(super) struct Hook {
    state: Mutex<State>,
    left: Condvar,
}

/// Notes that a thread has come out, also by a panic.
struct Inside<'a>(&'a Hook);

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        let here = thread::current().id();
        if let Some(at) = state.inside.iter().position(|&id| id == here) {
            state.inside.swap_remove(at);
        }
        self.0.left.notify_all();
    }
}

impl Hook {
    /// Takes the place of the former function, and waits until no other thread is inside that.
    pub(super) fn set(&self, function: Option<Reclaim>) {
        let here = thread::current().id();
        let mut state = self.state.lock();
        // Dropped after the lock is given back: it may own things that use it.
        let _former = std::mem::replace(&mut state.function, function);
        while state.inside.iter().any(|&id| id != here) {
            self.left.wait(&mut state);
        }
        drop(state);
    }

    /// Asks for bytes; false if there is nobody to ask.
    pub(super) fn ask(&self, bytes: u64) -> bool {
        let function = {
            let mut state = self.state.lock();
            let Some(function) = state.function.clone() else { return false };
            state.inside.push(thread::current().id());
            function
        };
        let _inside = Inside(self);
        function(bytes);
        true
    }

    /// Whether the calling thread is inside the function.
    pub(super) fn is_inside(&self) -> bool {
        let here = thread::current().id();
        self.state.lock().inside.contains(&here)
    }
}
