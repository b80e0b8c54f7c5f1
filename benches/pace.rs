//! How long does the longest call of a thousand take, where a program works between its allocations?
//!
//! Mixed sizes of 512 B to 16 MiB in 1,024 slots, half of them live, on one thread and stream; percentiles of the
//! second half of the allocations and frees, in time of the thread, at several paces: of all calls, and of those during
//! which the device was not asked for more. `-- DEVICE` takes another device than the host.
#![expect(clippy::disallowed_macros, reason = "a program that prints its result")]

use std::ffi::CString;
use std::ptr;

use fastrand::Rng;
use kavern::c_api::manager::{
    kavern_manager_config, kavern_manager_config_init, kavern_manager_create, kavern_manager_destroy,
};
use kavern::c_api::memory::{kavern_alloc, kavern_free};
use kavern::c_api::memory_types::kavern_memory_statistics;
use kavern::c_api::types::kavern_manager;
use kavern::c_api::upkeep::kavern_memory_stats;
use kavern::sys::clock;

const SLOTS: usize = 1024;
const CALLS: usize = 300_000;
const PACES_US: [u64; 3] = [0, 10, 30];
const DEVICE: &str = "host?memory_bytes=137438953472";

fn ok(status: i32) {
    assert_eq!(status, 0, "a call of the load was refused");
}

/// Bytes behind the allocator's addresses.
fn backed_bytes(manager: *mut kavern_manager) -> u64 {
    // SAFETY: a struct of the header, in which all zeros are values.
    let mut seen: kavern_memory_statistics = unsafe { std::mem::zeroed() };
    seen.struct_size = size_of_val(&seen) as u32;
    // SAFETY: the manager lives, and the struct says its size.
    ok(unsafe { kavern_memory_stats(manager, &raw mut seen) });
    seen.backed_bytes
}

/// A call.
#[derive(Clone, Copy)]
struct Call {
    ns: u64,
    /// More memory was mapped meanwhile.
    has_grown: bool,
}

/// Each allocation and free.
fn calls(device: &CString, pace_us: u64) -> Vec<Call> {
    // SAFETY: a struct of the header, in which all zeros are values.
    let mut settings: kavern_manager_config = unsafe { std::mem::zeroed() };
    // SAFETY: a struct of the size that is given.
    ok(unsafe { kavern_manager_config_init(&raw mut settings, size_of::<kavern_manager_config>()) });
    settings.device = device.as_ptr();
    let mut manager = ptr::null_mut();
    // SAFETY: filled above; the device's name lives.
    ok(unsafe { kavern_manager_create(&raw const settings, &raw mut manager) });
    let mut rng = Rng::with_seed(7);
    let mut slots = vec![0u64; SLOTS];
    let mut calls = Vec::with_capacity(CALLS);
    let (mut due_ns, mut backed) = (clock::now_ns(), 0);
    for _ in 0..CALLS {
        due_ns = clock::now_ns().max(due_ns + pace_us * 1000);
        while clock::now_ns() < due_ns {
            std::hint::spin_loop();
        }
        let slot = &mut slots[rng.usize(..SLOTS)];
        let least = 512 << rng.u32(..15);
        let bytes = least + rng.u64(..least);
        let start_ns = clock::thread_ns();
        if *slot != 0 {
            // SAFETY: a live address of this manager; nothing uses the memory.
            ok(unsafe { kavern_free(manager, std::mem::take(slot), ptr::null_mut()) });
        } else {
            // SAFETY: the manager lives, and the place for the address is writable.
            ok(unsafe { kavern_alloc(manager, bytes, 0, ptr::null_mut(), 0, slot) });
        }
        let ns = clock::thread_ns() - start_ns;
        let before = std::mem::replace(&mut backed, backed_bytes(manager));
        calls.push(Call { ns, has_grown: backed > before });
    }
    for address in slots.into_iter().filter(|&address| address != 0) {
        // SAFETY: as above.
        ok(unsafe { kavern_free(manager, address, ptr::null_mut()) });
    }
    // SAFETY: nothing uses the manager from here on.
    ok(unsafe { kavern_manager_destroy(&raw mut manager) });
    calls
}

fn main() {
    let named = std::env::args().skip(1).find(|word| !word.starts_with("--"));
    let device = CString::new(named.as_deref().unwrap_or(DEVICE)).expect("a word of a command line");
    for pace_us in PACES_US {
        let late = calls(&device, pace_us).split_off(CALLS / 2);
        for (of, wants) in [("all", true), ("without more memory", false)] {
            let chosen = late.iter().filter(|call| wants || !call.has_grown);
            let mut times: Vec<u64> = chosen.map(|call| call.ns).collect();
            times.sort_unstable();
            let [p50, p99, p999, p9999] = [5_000, 9_900, 9_990, 9_999]
                .map(|part| times[(times.len() - 1) * part / 10_000] as f64 / 1e3);
            println!(
                "{pace_us:2} us between calls, {of}: {} calls, p50 {p50:.2} p99 {p99:.2} p99.9 {p999:.1} \
                 p99.99 {p9999:.1} us",
                times.len()
            );
        }
    }
}
