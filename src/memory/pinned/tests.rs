//! Pinned memory against the books, on simulated streams, with failing devices, and with a fault planted in it.

use super::*;
use crate::device::{Copy, DeviceSlice, Place, registry};
use crate::event::NoSink;
use crate::memory::Limits;

fn memory(spec: &str, pinned_limit_bytes: u64) -> Arc<Memory> {
    let limits = Limits { pinned_limit_bytes, ..Limits::default() };
    Memory::new(registry::open(spec).unwrap(), limits, Arc::new(NoSink))
}

fn config() -> PinnedConfig {
    PinnedConfig { chunk_bytes: 4 << 20, threads: 2, node: None }
}

#[test]
fn what_is_asked_is_charged_noted_and_comes_back() {
    let memory = memory("host", 9 << 20);
    let pool = PinnedPool::new(&memory, config());
    let small = pool.allocate(1000, "small").unwrap();
    let large = pool.allocate(3 << 20, "large").unwrap();
    assert_eq!((small.bytes(), large.bytes()), (1000, 3 << 20));
    let usage = memory.statistics().pinned;
    assert_eq!((usage.bytes, usage.count), (1000 + (3 << 20), 2), "the ledger has what was asked");
    let totals = pool.statistics();
    assert_eq!((totals.held_bytes, totals.chunks, totals.hits, totals.misses), (5 << 20, 2, 0, 2));
    // Larger than a chunk: exactly what the limit leaves.
    let rest = pool.allocate(4 << 20, "rest").unwrap();
    let refused = pool.allocate(3 << 20, "none").unwrap_err();
    assert_eq!(refused.status, Status::OutOfHostMemory);
    assert!(refused.text.contains("0 left of the limit") && refused.text.contains("in a row"), "{refused}");
    assert_eq!(pool.free(small.address() as u64 + 256, None).unwrap_err().status, Status::InvalidArgument);
    for slice in [small, large, rest] {
        pool.free(slice.address() as u64, None).unwrap();
        assert_eq!(pool.free(slice.address() as u64, None).unwrap_err().status, Status::InvalidArgument);
    }
    assert_eq!(memory.statistics().pinned.count, 0);
    // All chunks are idle, so they make room for a larger one.
    pool.allocate(9 << 20, "all of it").unwrap();
    assert_eq!(pool.statistics().held_bytes, 9 << 20);
    pool.validate().unwrap();
    drop(pool);
    memory.validate().unwrap();
    assert_eq!(memory.statistics().pinned.bytes, 0);
    memory.pinned(9 << 20, "the budget is whole again").unwrap();
}

#[test]
fn a_freed_range_comes_back_when_its_stream_is_past_it() {
    let memory = memory("host", 2 << 20);
    let device = memory.device();
    let stream = device.stream_create().unwrap();
    let pool = PinnedPool::new(&memory, config());
    let slice = pool.allocate(2 << 20, "copied").unwrap();
    let (open, gate) = std::sync::mpsc::channel::<()>();
    let hold = Box::new(move || {
        let _ = gate.recv();
    });
    device.stream_callback(stream, hold).unwrap();
    let address = slice.address() as u64;
    pool.free(address, Some(stream)).unwrap();
    assert_eq!(memory.statistics().pinned.bytes, 0, "to its user it is gone");
    assert_eq!(pool.free(address, Some(stream)).unwrap_err().status, Status::WrongState);
    assert!(pool.slice(address).is_err());
    assert_eq!(pool.statistics().leaving_bytes, 2 << 20);
    assert_eq!(pool.trim(), 0);
    // There is no more memory: the next request waits for the stream.
    thread::scope(|scope| {
        let waiting = scope.spawn(|| pool.allocate(1 << 20, "next").unwrap());
        drop(open);
        assert_eq!(waiting.join().unwrap().address(), slice.address());
    });
    pool.validate().unwrap();
    device.stream_destroy(stream).unwrap();
}

/// Copies from the device into ranges that come and go on three streams; answers how many races were seen.
fn copies(seed: u64, plant: impl FnOnce(&mut Shared)) -> u64 {
    let memory = memory(&format!("sim?seed={seed}"), 2 << 20);
    let device = Arc::clone(memory.device());
    let mut pool = PinnedPool::new(&memory, config());
    plant(Arc::get_mut(&mut pool.shared).unwrap());
    let streams = [(); 3].map(|()| device.stream_create().unwrap());
    let source = device.memory_allocate(1 << 20).unwrap();
    let mut random = fastrand::Rng::with_seed(seed);
    let part = |bytes| -> DeviceSlice { source.part(0, bytes).unwrap() };
    for step in 0..60 {
        let stream = streams[random.usize(0..3)];
        let bytes = random.u64(1..=256 << 10);
        let target = pool.allocate(bytes, "copy").unwrap();
        let copy = Copy { target: Place::Pinned(target), source: Place::Device(part(bytes)) };
        device.copy(stream, copy).unwrap();
        pool.free(target.address() as u64, Some(stream)).unwrap();
        if step % 7 == 0 {
            device.stream_synchronize(stream).unwrap();
        }
        pool.validate().unwrap();
    }
    device.synchronize().unwrap();
    assert_eq!(pool.statistics().leaving_bytes, 0);
    drop(pool);
    device.race_count()
}

#[test]
fn copies_into_recycled_ranges_have_no_race_and_one_that_does_not_wait_is_found() {
    let mut guilty = 0;
    for seed in 0..40 {
        assert_eq!(copies(seed, |_| {}), 0, "seed {seed}");
        guilty += u64::from(copies(seed, |shared| shared.ask = |_| Ok(true)) > 0);
    }
    assert!(guilty >= 20, "{guilty}");
}

#[test]
fn memory_is_pinned_ahead_chunk_by_chunk_up_to_the_limit() {
    for device in ["host", "sim"] {
        let memory = memory(device, 14 << 20);
        let pool = PinnedPool::new(&memory, config());
        pool.reserve(10 << 20).unwrap();
        let first = pool.allocate(4 << 20, "first").unwrap();
        pool.wait_reserved().unwrap();
        let totals = pool.statistics();
        assert_eq!(
            (totals.held_bytes, totals.chunks, totals.hits, totals.misses),
            (10 << 20, 3, 1, 0),
            "{device}"
        );
        pool.free(first.address() as u64, None).unwrap();
        // Another 10 MiB go over the limit after one more chunk.
        pool.reserve(10 << 20).unwrap();
        assert_eq!(pool.wait_reserved().unwrap_err().status, Status::OutOfHostMemory);
        assert_eq!((pool.statistics().held_bytes, pool.statistics().ahead_bytes), (14 << 20, 0));
        assert_eq!(pool.trim(), 14 << 20);
        pool.reserve(1 << 30).unwrap();
        drop(pool);
        memory.pinned(14 << 20, "all of it is there again").unwrap();
    }
}

/// Every kind of use, on a device that fails somewhere.
fn scene(device: &str) -> u64 {
    let memory = memory(device, 12 << 20);
    let pool = PinnedPool::new(&memory, config());
    let mut live = Vec::new();
    for round in 0..6_u64 {
        let before = pool.statistics();
        match pool.allocate(900_000 * (round + 1), "scene") {
            Ok(slice) => live.push(slice.address() as u64),
            Err(_) => assert_eq!(pool.statistics().live_bytes, before.live_bytes),
        }
        pool.validate().unwrap();
        if round % 2 == 1 && !live.is_empty() {
            let (address, before) = (live.remove(0), pool.statistics());
            if pool.free(address, Some(Stream::DEFAULT)).is_err() {
                assert_eq!(pool.statistics(), before);
                pool.free(address, None).unwrap();
            }
        }
        pool.validate().unwrap();
    }
    let _ = pool.reserve(3 << 20).and_then(|()| pool.wait_reserved());
    live.into_iter().for_each(|address| pool.free(address, None).unwrap());
    pool.trim();
    let calls = memory.device().call_count();
    drop(pool);
    memory.validate().unwrap();
    assert_eq!((memory.statistics().pinned.bytes, memory.statistics().pinned.count), (0, 0));
    if !device.contains("lost") {
        let _again = memory.budget.charge(Where::Pinned, 12 << 20).unwrap();
    }
    calls
}

#[test]
fn each_call_of_the_device_may_fail_and_the_accounts_stay_exact() {
    for error in ["oom", "device", "lost"] {
        let calls = scene(&format!("host?fail_nth=0&error={error}"));
        assert!(calls >= 10, "{calls}");
        for nth in 1..=calls {
            scene(&format!("host?fail_nth={nth}&error={error}"));
        }
    }
}
