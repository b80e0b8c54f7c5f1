//! What a heap gives up while nobody uses it. The upkeep is done by hand.

use super::*;
use crate::sys::clock;

const IDLE_NS: u64 = 10_000_000_000;

/// A heap whose upkeep is called with times of the test's own, and a time to begin with.
fn heap_by_hand() -> (Arc<Heap>, u64) {
    (heap("sim?seed=1", 0), clock::now_ns())
}

#[test]
fn a_heap_that_nobody_uses_gives_back_what_is_empty() {
    let (heap, begin_ns) = heap_by_hand();
    let key = key(Stream::DEFAULT);
    let live = allocate(&heap, key, Stream::DEFAULT, 3 * MIB);
    for bytes in [4096, 100_000, MIB, 20 * MIB] {
        let address = allocate(&heap, key, Stream::DEFAULT, bytes);
        free(&heap, key, Stream::DEFAULT, address);
    }
    let large = heap.allocate(Stream::DEFAULT, 100 * MIB, 0, 0).unwrap();
    heap.free(Stream::DEFAULT, large).unwrap();
    let before = heap.statistics();
    assert!(before.front_cache_bytes > 0 && before.ordered_bytes >= 100 * MIB);
    assert!(heap.physical.poll(begin_ns).is_some_and(|ns| ns <= IDLE_NS));
    heap.physical.poll(begin_ns + IDLE_NS - 1);
    assert_eq!(heap.statistics().backed_bytes, before.backed_bytes, "not so soon");
    heap.physical.poll(begin_ns + IDLE_NS);
    assert_eq!(heap.statistics().front_cache_bytes, 0);
    heap.device.synchronize().unwrap();
    heap.physical.poll(begin_ns + 2 * IDLE_NS);
    let after = heap.statistics();
    assert_eq!((after.ordered_bytes, after.live_bytes), (0, 3 * MIB));
    assert!(after.backed_bytes <= 64 * MIB && after.idle_flushes > 0, "{after:?}");
    heap.physical.poll(begin_ns + 4 * IDLE_NS);
    assert_eq!(heap.physical.statistics().pooled_bytes, 0, "the device has it");
    free(&heap, key, Stream::DEFAULT, live);
    heap.validate().unwrap();
}

#[test]
fn a_heap_that_is_used_keeps_what_it_has() {
    let (heap, begin_ns) = heap_by_hand();
    let key = key(Stream::DEFAULT);
    for turn in 0..5 {
        let address = allocate(&heap, key, Stream::DEFAULT, MIB);
        free(&heap, key, Stream::DEFAULT, address);
        let held = heap.statistics().front_cache_bytes;
        assert!(held >= MIB);
        heap.physical.poll(begin_ns + turn * IDLE_NS);
        assert_eq!(heap.statistics().front_cache_bytes, held, "turn {turn}");
    }
    assert_eq!(heap.statistics().idle_flushes, 0);
}

#[test]
fn what_a_thread_left_goes_while_others_work_on() {
    let (heap, begin_ns) = heap_by_hand();
    let (mine, other) = (key(Stream::DEFAULT), heap.device.stream_create().unwrap());
    std::thread::scope(|scope| {
        let work = || {
            let theirs = key(other);
            let address = allocate(&heap, theirs, other, 4 * MIB);
            free(&heap, theirs, other, address);
        };
        // A scope ends with the work of its threads, a join with what they do at their end.
        scope.spawn(work).join().unwrap();
    });
    assert_eq!(heap.parked.lock().len(), 1);
    for turn in 0..2 {
        let address = allocate(&heap, mine, Stream::DEFAULT, MIB);
        free(&heap, mine, Stream::DEFAULT, address);
        assert_eq!(heap.parked.lock().len(), 1, "turn {turn}");
        heap.physical.poll(begin_ns + turn * IDLE_NS);
    }
    assert!(heap.parked.lock().is_empty());
    let seen = heap.statistics();
    assert!(seen.ordered_bytes >= 4 * MIB && seen.front_cache_bytes >= MIB, "{seen:?}");
    heap.validate().unwrap();
}

#[test]
fn beside_a_capture_and_after_the_end_nothing_is_given_up() {
    let heap = heap("sim?seed=1&capture=1", 0);
    let begin_ns = clock::now_ns();
    let (key, captured) = (key(Stream::DEFAULT), heap.device.stream_create().unwrap());
    let simulator = heap.device.simulator().unwrap();
    let address = heap.allocate(captured, MIB, 0, 0).unwrap();
    heap.free(captured, address).unwrap();
    let address = allocate(&heap, key, Stream::DEFAULT, MIB);
    free(&heap, key, Stream::DEFAULT, address);
    let held = heap.statistics().front_cache_bytes;
    simulator.capture(captured, true).unwrap();
    for turn in 0..3 {
        heap.physical.poll(begin_ns + turn * IDLE_NS);
        assert_eq!(heap.statistics().front_cache_bytes, held);
    }
    simulator.capture(captured, false).expect("nothing broke the capture");
    heap.physical.poll(begin_ns + 3 * IDLE_NS);
    assert_eq!(heap.statistics().front_cache_bytes, 0);
    let flushes = heap.statistics().idle_flushes;
    heap.close();
    assert_eq!(heap.physical.poll(begin_ns + 9 * IDLE_NS), None);
    assert_eq!(heap.statistics().idle_flushes, flushes);
}
