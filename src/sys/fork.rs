//! Knows whether this process is the child of a fork that happened after the first device was opened.
//!
//! A fork copies memory but no threads: workers and locks of the parent are dead in the child, so every call there
//! has to answer an error instead of waiting for ever. Invariant: once true, it stays true.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, Result, Status};

static IN_CHILD: AtomicBool = AtomicBool::new(false);
static INSTALLED: OnceLock<i32> = OnceLock::new();

extern "C" fn in_child() {
    // Only an atomic store: almost nothing else is allowed between a fork of a threaded process and exec.
    IN_CHILD.store(true, Ordering::Relaxed);
}

/// Asks the system to tell us of forks; the first call does it, the others find it done.
pub fn install() -> Result<()> {
    let code = *INSTALLED.get_or_init(|| {
        // SAFETY: the handler is a function of the program's lifetime (the library is never unloaded) and only
        // stores an atomic.
        unsafe { libc::pthread_atfork(None, None, Some(in_child)) }
    });
    match code {
        0 => Ok(()),
        code => Err(Error::from_io("pthread_atfork", &std::io::Error::from_raw_os_error(code))),
    }
}

/// Whether this is a child that cannot use its parent's devices. One relaxed load.
pub fn is_forked_child() -> bool {
    IN_CHILD.load(Ordering::Relaxed)
}

/// The error for such a child, or nothing.
pub fn check() -> Result<()> {
    if is_forked_child() {
        return Err(Error::new(
            Status::Forked,
            "this process was forked after its device was opened; open devices in the child after exec",
        ));
    }
    Ok(())
}
