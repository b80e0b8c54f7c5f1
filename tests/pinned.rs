//! Pinned host memory as an engine uses it: bytes go to the device and back, threads share the pool, ranges of the
//! caller's are pinned piece by piece. `KAVERN_TEST_DEVICE` names another device than the host.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::Arc;

use kavern::device::{Copy, HostRange, PinnedSlice, Place, Stream, registry};
use kavern::error::Status;
use kavern::event::NoSink;
use kavern::memory::{Limits, Memory, PinnedConfig, PinnedPool};
use kavern::sys::shm;

fn memory(params: &str) -> Arc<Memory> {
    let device = std::env::var("KAVERN_TEST_DEVICE").unwrap_or_else(|_| "host".to_owned());
    let device = registry::open(&format!("{device}{params}")).unwrap();
    Memory::new(device, Limits::default(), Arc::new(NoSink))
}

fn pool(memory: &Arc<Memory>, chunk_bytes: u64) -> PinnedPool {
    PinnedPool::new(memory, PinnedConfig { chunk_bytes, threads: 3, node: Some(0) })
}

fn fill(slice: PinnedSlice, seed: u8) {
    for offset in 0..slice.bytes() as usize {
        let byte = (slice.address() + offset) as *mut u8;
        // SAFETY: inside a live range that only this thread uses.
        unsafe { byte.write(seed.wrapping_add(offset as u8)) };
    }
}

fn holds(slice: PinnedSlice, seed: u8) -> bool {
    (0..slice.bytes() as usize).all(|offset| {
        let byte = (slice.address() + offset) as *const u8;
        // SAFETY: as above.
        unsafe { byte.read() == seed.wrapping_add(offset as u8) }
    })
}

/// From one range through device memory into another.
fn round_trip(memory: &Arc<Memory>, stream: Stream, source: PinnedSlice, target: PinnedSlice) {
    let between = memory.allocate(source.bytes(), "between").unwrap();
    let device = memory.device();
    let there = Copy { target: Place::Device(between.slice()), source: Place::Pinned(source) };
    let back = Copy { target: Place::Pinned(target), source: Place::Device(between.slice()) };
    device.copy(stream, there).unwrap();
    device.copy(stream, back).unwrap();
    device.stream_synchronize(stream).unwrap();
}

#[test]
fn threads_carve_fill_and_copy_ranges_that_are_never_shared() {
    let memory = memory("");
    let pool = pool(&memory, 8 << 20);
    pool.reserve(12 << 20).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..6_u8 {
            let (pool, memory) = (&pool, &memory);
            scope.spawn(move || {
                let stream = memory.device().stream_create().unwrap();
                let mut random = fastrand::Rng::with_seed(thread.into());
                for round in 0..60_u8 {
                    let bytes = random.u64(1..=200_000);
                    let seed = thread.wrapping_mul(41).wrapping_add(round);
                    let [source, target] = [(); 2].map(|()| pool.allocate(bytes, "thread").unwrap());
                    fill(source, seed);
                    if round % 8 == 0 {
                        round_trip(memory, stream, source, target);
                        assert!(holds(target, seed));
                    }
                    assert!(holds(source, seed), "somebody else has written there");
                    let after = random.bool().then_some(stream);
                    pool.free(source.address() as u64, after).unwrap();
                    pool.free(target.address() as u64, after).unwrap();
                    if round % 20 == 19 {
                        pool.trim();
                    }
                }
                memory.device().stream_destroy(stream).unwrap();
            });
        }
    });
    pool.wait_reserved().unwrap();
    pool.validate().unwrap();
    let totals = pool.statistics();
    assert_eq!((totals.live, totals.leaving_bytes), (0, 0));
    assert_eq!(memory.statistics().pinned.bytes, 0);
    assert_eq!(pool.trim(), totals.held_bytes);
}

#[test]
fn one_copy_may_touch_the_whole_of_a_range_that_is_larger_than_a_chunk() {
    let memory = memory("");
    let pool = pool(&memory, 2 << 20);
    let [source, target] = [(); 2].map(|()| pool.allocate((5 << 20) + 17, "large").unwrap());
    fill(source, 9);
    round_trip(&memory, Stream::DEFAULT, source, target);
    assert!(holds(target, 9));
}

#[test]
fn a_refused_piece_of_the_callers_range_unpins_those_before_it() {
    let page = 4096_u64;
    let bytes = 5 * page;
    let mut own = vec![3_u8; bytes as usize + page as usize];
    let start = own.as_mut_ptr().addr().next_multiple_of(page as usize);
    // SAFETY: inside `own`, which outlives every registration here.
    let range = unsafe { HostRange::new(start, bytes) }.unwrap();
    for nth in 1..=5 {
        let memory = memory(&format!("?kind=pinned&fail_nth={nth}"));
        let pool = pool(&memory, 2 << 20);
        let refused = pool.register(range, page, "mine").unwrap_err();
        assert!(refused.text.contains(&format!("piece {nth} of 5")), "{refused}");
        assert_eq!((memory.statistics().pinned.bytes, pool.statistics().registered_pieces), (0, 0));
        pool.register(range, page, "mine").unwrap();
        assert_eq!((memory.statistics().pinned.bytes, pool.statistics().registered_pieces), (bytes, 5));
        pool.unregister(start as u64).unwrap();
        assert_eq!(pool.unregister(start as u64).unwrap_err().status, Status::InvalidArgument);
        pool.register(range, 0, "whole, and left to the pool's end").unwrap();
        assert_eq!(pool.statistics().registered_pieces, 1);
        drop(pool);
        assert_eq!(memory.statistics().pinned.count, 0);
    }
    assert!(own.iter().all(|&byte| byte == 3), "pinning changes no byte");
    // SAFETY: no memory is touched; it is refused.
    assert!(unsafe { HostRange::new(start, u64::MAX) }.is_err());
}

/// Whether all pages of a range have memory.
fn is_populated(start: usize, bytes: usize) -> bool {
    let mut pages = vec![0; bytes / 4096];
    // SAFETY: the result has a byte for each page, and the call reads no memory of the range.
    let code = unsafe { libc::mincore(start as *mut libc::c_void, bytes, pages.as_mut_ptr()) };
    code == 0 && pages.iter().all(|is_there| is_there & 1 == 1)
}

#[test]
fn the_callers_range_has_its_pages_before_it_is_pinned() {
    // So much comes fresh from the system.
    let bytes = 48_usize << 20;
    let own = vec![0_u8; bytes];
    let start = own.as_ptr().addr().next_multiple_of(4096);
    let advice = libc::MADV_POPULATE_WRITE;
    // SAFETY: the advice changes no byte.
    let can_populate = unsafe { libc::madvise(start as *mut libc::c_void, 4096, advice) == 0 };
    if !can_populate {
        return;
    }
    let (inside, length) = (start + (1 << 20), bytes - (2 << 20));
    assert!(!is_populated(inside, length));
    // SAFETY: inside `own`, which outlives the pool.
    let range = unsafe { HostRange::new(inside, length as u64) }.unwrap();
    let memory = memory("");
    let pool = pool(&memory, 2 << 20);
    pool.register(range, 0, "mine").unwrap();
    assert!(is_populated(inside, length));
}

#[test]
fn more_than_the_machine_has_is_refused_before_anything_is_pinned() {
    let memory = memory("");
    let pool = pool(&memory, 1 << 20);
    for bytes in [u64::MAX, u64::MAX - 4095, 1 << 60, shm::physical_bytes() + 1] {
        let refusal = pool.reserve(bytes).unwrap_err();
        assert_eq!(refusal.status, Status::OutOfHostMemory);
        assert!(refusal.text.contains(&bytes.to_string()), "{}", refusal.text);
        assert_eq!(pool.allocate(bytes, "too much").unwrap_err().status, Status::OutOfHostMemory);
    }
    pool.wait_reserved().unwrap();
    assert_eq!(pool.statistics().held_bytes, 0);
    // What is pinned counts.
    let held = pool.allocate(1, "small").unwrap();
    assert_eq!(pool.reserve(shm::physical_bytes()).unwrap_err().status, Status::OutOfHostMemory);
    pool.free(held.address() as u64, None).unwrap();
}
