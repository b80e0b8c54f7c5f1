//! A call when a thread ends, after the destructors of its thread-locals.
//!
//! Those run before the destructors of thread-specific values (pthread_key_create), in which a program may still call
//! this library: what a thread puts into a thread-local there, and its destructor, stay for ever. A value of a key of
//! one's own that is set there has its turn in a later round of the same destructors.
//! What it does not: promise the call where the system has no key left, or after its last round of destructors.
//! Invariant: every value of the key is a function. No locks.

use std::ffi::c_void;
use std::sync::OnceLock;

static KEY: OnceLock<Option<libc::pthread_key_t>> = OnceLock::new();

extern "C" fn at_end(value: *mut c_void) {
    // SAFETY: only `call_at_end` sets values of the key, and each was made from a function of this type.
    let call = unsafe { std::mem::transmute::<*mut c_void, fn()>(value) };
    call();
}

fn make_key() -> Option<libc::pthread_key_t> {
    let mut key = 0;
    // SAFETY: the result is writable; the destructor is a function of the program's lifetime (the library is never
    // unloaded).
    let code = unsafe { libc::pthread_key_create(&mut key, Some(at_end)) };
    (code == 0).then_some(key)
}

/// Has this thread call a function when it ends; one for a thread, the last one given. It may be called more than once.
pub fn call_at_end(call: fn()) {
    let Some(key) = *KEY.get_or_init(make_key) else { return };
    // SAFETY: the key was made and is never deleted. Where there is no memory for the value, the destructors of
    // thread-locals have to do.
    let _ = unsafe { libc::pthread_setspecific(key, call as *const c_void) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::sync::atomic::{AtomicU32, Ordering};

    static CALLS: AtomicU32 = AtomicU32::new(0);
    static GONE: AtomicU32 = AtomicU32::new(0);

    struct Local(Cell<u32>);

    impl Drop for Local {
        fn drop(&mut self) {
            GONE.fetch_add(1, Ordering::SeqCst);
        }
    }

    thread_local!(static LOCAL: Local = const { Local(Cell::new(0)) });

    #[test]
    fn a_thread_that_ends_calls_after_its_thread_locals_are_gone() {
        let call = || {
            assert!(LOCAL.try_with(|_| ()).is_err() && GONE.load(Ordering::SeqCst) == 1);
            CALLS.fetch_add(1, Ordering::SeqCst);
        };
        std::thread::spawn(move || {
            LOCAL.with(|local| local.0.set(1));
            (0..3).for_each(|_| call_at_end(call));
        })
        .join()
        .unwrap();
        assert_eq!(CALLS.load(Ordering::SeqCst), 1);
    }
}
