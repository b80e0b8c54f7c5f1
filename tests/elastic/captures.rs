//! Points on streams and waits for the device beside the capture of a graph: refused, and nothing breaks the capture;
//! and what a manager that goes waits for where there is none.

use std::sync::Arc;

use kavern::device::{Device, Stream};
use kavern::error::Status;
use kavern::event::NoSink;
use kavern::manager::{Manager, wait};
use kavern::memory::Limits;

use super::support::{range, refused};

/// A manager on simulated streams that can be captured, and one such stream.
fn manager() -> (Arc<Manager>, Stream) {
    let manager = Manager::open("sim?seed=5&capture=1", Limits::default(), Arc::new(NoSink)).unwrap();
    let stream = manager.device().stream_create().unwrap();
    (manager, stream)
}

/// Runs `body` while `captured` is being captured, for it and for the default stream, which waits for it.
fn beside_a_capture(device: &dyn Device, captured: Stream, body: impl Fn(Stream)) {
    let simulator = device.simulator().unwrap();
    for stream in [captured, Stream::DEFAULT] {
        simulator.capture(captured, true).unwrap();
        body(stream);
        simulator.capture(captured, false).expect("nothing broke the capture");
    }
}

#[test]
fn pinned_memory_is_not_freed_behind_a_capture() {
    let (manager, captured) = manager();
    let pool = manager.pinned();
    let slice = pool.allocate(100_000, "staging").unwrap();
    let address = slice.address() as u64;
    beside_a_capture(manager.device().as_ref(), captured, |stream| {
        assert_eq!(refused(pool.free(address, Some(stream))), Status::WrongState);
        // Whatever asks for what is leaving asks for no event of the capture.
        assert_eq!(pool.statistics().live_bytes, 100_000);
    });
    pool.free(address, Some(captured)).unwrap();
    manager.device().synchronize().unwrap();
    assert_eq!(pool.statistics().live_bytes, 0);
}

#[test]
fn a_ticket_is_not_recorded_in_a_capture() {
    let (manager, captured) = manager();
    let other = manager.own_stream(manager.create_stream().unwrap()).unwrap();
    beside_a_capture(manager.device().as_ref(), captured, |stream| {
        assert_eq!(refused(manager.record(stream)), Status::WrongState);
        // Each ticket looks at others: none of them is of the capture.
        for _ in 0..4 {
            wait(manager.record(*other).unwrap(), u64::MAX).unwrap();
        }
    });
    let id = manager.record(captured).unwrap();
    wait(id, u64::MAX).unwrap();
}

#[test]
fn nothing_is_decommitted_behind_a_capture() {
    let (manager, captured) = manager();
    let elastic = range(manager.memory(), 4, false);
    elastic.commit(0, 1).unwrap();
    beside_a_capture(manager.device().as_ref(), captured, |stream| {
        assert_eq!(refused(elastic.decommit(0, 1, Some(stream))), Status::WrongState);
        assert_eq!(refused(elastic.resize(0, Some(stream))), Status::WrongState);
    });
    assert!(elastic.is_committed(0, 1).unwrap());
    elastic.decommit(0, 1, Some(captured)).unwrap();
}

#[test]
fn a_copy_does_not_end_behind_a_capture() {
    let (manager, captured) = manager();
    let copies = manager.memory().copies();
    copies.begin();
    beside_a_capture(manager.device().as_ref(), captured, |stream| {
        assert_eq!(refused(copies.end(Some(stream))), Status::WrongState);
        assert_eq!(copies.running(), 1);
    });
    copies.end(None).unwrap();
    assert_eq!(copies.running(), 0);
}

#[test]
fn pages_are_not_meshed_beside_a_capture() {
    let (manager, captured) = manager();
    let heap = manager.heap().unwrap();
    // Of all streams that the default stream waits for it is known without a word.
    for is_known in [false, true] {
        if is_known {
            heap.capture_begins(captured);
        }
        beside_a_capture(manager.device().as_ref(), captured, |_| {
            assert_eq!(refused(heap.defragment(0)), Status::WrongState);
        });
        heap.defragment(0).unwrap();
    }
}

#[test]
fn a_manager_that_goes_beside_a_capture_leaves_pages_for_what_is_under_way() {
    let (manager, captured) = manager();
    let device = Arc::clone(manager.device());
    let heap = manager.heap().unwrap();
    let block = heap.allocate(captured, 100_000, 0, 0).unwrap();
    heap.zero(captured, block).unwrap();
    let simulator = device.simulator().unwrap();
    simulator.capture(captured, true).unwrap();
    drop(manager);
    simulator.capture(captured, false).expect("nothing broke the capture");
    device.synchronize().unwrap();
    assert_eq!(device.race_count(), 0);
}

#[test]
fn work_under_way_on_blocks_is_over_before_their_manager_takes_the_pages_away() {
    for (seed, is_freed) in (0..20).flat_map(|seed| [(seed, false), (seed, true)]) {
        let manager =
            Manager::open(&format!("sim?seed={seed}"), Limits::default(), Arc::new(NoSink)).unwrap();
        let device = Arc::clone(manager.device());
        let heap = manager.heap().unwrap();
        for stream in [Stream::DEFAULT, device.stream_create().unwrap()] {
            for bytes in [4096, 1 << 20, 40 << 20] {
                let block = heap.allocate(stream, bytes, 0, 0).unwrap();
                heap.zero(stream, block).unwrap();
                if is_freed {
                    heap.free(stream, block).unwrap();
                }
            }
        }
        drop(manager);
        device.synchronize().unwrap();
        assert_eq!(device.race_count(), 0, "seed {seed}, freed {is_freed}");
    }
}
