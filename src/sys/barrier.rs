//! A full barrier on every processor that runs a thread of this process, paid for by the one who asks.
//!
//! What it does: membarrier(2); and where that was there and is refused later (a sandbox was entered, or the process
//! was restored from an image, which loses its registration), the change of a page's protection, which has to interrupt
//! the same processors, unless they can be told without an interrupt (INVLPGB of AMD): there is no second way then.
//! What it does not: work without the one or the other: the users of the fast side rely on it, so
//! then the process ends with a sentence. The second way is known from folly and liburcu.
//! Invariant: `everywhere` returns after the barrier ran. Lock order: the page's lock, alone.

use std::io::Write;
use std::sync::OnceLock;

use super::shm::{Anonymous, os_page_bytes};
use crate::sync::Mutex;

/// MEMBARRIER_CMD_PRIVATE_EXPEDITED and its registration.
const EXPEDITED: libc::c_int = 1 << 3;
const REGISTER_EXPEDITED: libc::c_int = 1 << 4;

static IS_OFFERED: OnceLock<bool> = OnceLock::new();

#[cfg(target_arch = "x86_64")]
/// The page whose protection changes.
static PAGE: Mutex<Option<Anonymous>> = Mutex::new(None);

fn membarrier(command: libc::c_int) -> bool {
    // SAFETY: the call takes numbers and touches no memory of ours.
    unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) == 0 }
}

/// Whether the system has such a barrier; the answer stays the same.
pub fn is_offered() -> bool {
    *IS_OFFERED.get_or_init(|| membarrier(REGISTER_EXPEDITED))
}

/// Runs the barrier on all processors that run a thread of this process. Only if it is offered.
pub fn everywhere() {
    if membarrier(EXPEDITED) || (membarrier(REGISTER_EXPEDITED) && membarrier(EXPEDITED)) || by_protection() {
        return;
    }
    let text =
        b"kavern: membarrier(2) worked before and is refused now; threads cannot be kept apart without it\n";
    let _ = std::io::stderr().write_all(text);
    std::process::abort();
}

/// Whether processors drop each other's entries by a broadcast, which empties nobody's store buffer.
#[cfg(target_arch = "x86_64")]
fn tells_by_broadcast() -> bool {
    const SIZES: u32 = 0x8000_0008;
    const INVLPGB: u32 = 1 << 3;
    let has_leaf = std::arch::x86_64::__cpuid(0x8000_0000).eax >= SIZES;
    has_leaf && std::arch::x86_64::__cpuid(SIZES).ebx & INVLPGB != 0
}

/// Makes a page writable, writes to it, makes it readable only: no processor may go on with the old entry.
#[cfg(target_arch = "x86_64")]
fn by_protection() -> bool {
    if tells_by_broadcast() {
        return false;
    }
    let mut page = PAGE.lock();
    if page.is_none() {
        *page = Anonymous::new(os_page_bytes()).ok();
    }
    let Some(mapping) = page.as_ref() else { return false };
    let address = mapping.address() as *mut libc::c_void;
    let protect = |protection| {
        // SAFETY: the page is this module's own, and nobody uses it but under the lock.
        unsafe { libc::mprotect(address, os_page_bytes() as usize, protection) == 0 }
    };
    if !protect(libc::PROT_READ | libc::PROT_WRITE) {
        return false;
    }
    // SAFETY: as above; the page is writable now.
    unsafe { address.cast::<u8>().write_volatile(1) };
    protect(libc::PROT_READ)
}

/// On other processors the system need not interrupt anybody for this.
#[cfg(not(target_arch = "x86_64"))]
fn by_protection() -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering, compiler_fence};

    /// Dekker's two flags: with a barrier everywhere on one side and none on the other, at least one side sees the
    /// other's store.
    fn both_missed(turns: u32, barrier: impl Fn() + Sync) -> u32 {
        let (turn, missed) = (AtomicU32::new(0), AtomicU32::new(0));
        let flags = [const { AtomicBool::new(false) }; 2];
        let seen = [const { AtomicBool::new(false) }; 2];
        let wait = |until: u32| {
            while turn.load(Ordering::Acquire) < until {
                std::thread::yield_now();
            }
        };
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for round in 0..turns {
                    wait(4 * round + 1);
                    flags[0].store(true, Ordering::Relaxed);
                    compiler_fence(Ordering::SeqCst);
                    seen[0].store(flags[1].load(Ordering::Relaxed), Ordering::Relaxed);
                    turn.fetch_add(1, Ordering::AcqRel);
                }
            });
            for round in 0..turns {
                flags.iter().for_each(|flag| flag.store(false, Ordering::Relaxed));
                turn.fetch_add(1, Ordering::AcqRel);
                flags[1].store(true, Ordering::Relaxed);
                barrier();
                seen[1].store(flags[0].load(Ordering::Relaxed), Ordering::Relaxed);
                wait(4 * round + 2);
                if seen.iter().all(|seen| !seen.load(Ordering::Relaxed)) {
                    missed.fetch_add(1, Ordering::Relaxed);
                }
                turn.fetch_add(2, Ordering::AcqRel);
            }
        });
        missed.into_inner()
    }

    /// Turns after which both have missed the other where no barrier is, twice over; nothing if this machine does not
    /// show it in a second or so.
    fn turns_that_show_a_miss() -> Option<u32> {
        let enough = (10..17).map(|bits| 1 << bits).find(|&turns| both_missed(turns, || ()) > 0);
        enough.map(|turns| 2 * turns)
    }

    #[test]
    fn one_side_always_sees_the_other() {
        assert!(is_offered() && is_offered());
        assert_eq!(both_missed(turns_that_show_a_miss().unwrap_or(500), everywhere), 0);
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn so_it_does_where_the_system_call_is_refused() {
        if tells_by_broadcast() {
            assert!(!by_protection());
            return;
        }
        let turns = turns_that_show_a_miss().unwrap_or(500).min(20_000);
        assert_eq!(both_missed(turns, || assert!(by_protection())), 0);
    }
}
