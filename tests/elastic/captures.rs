//! Points on streams beside the capture of a graph: refused, and nothing breaks the capture.

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
