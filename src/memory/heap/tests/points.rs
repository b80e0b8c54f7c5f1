//! How a heap asks about points on streams: seldom, and not at all where nothing waits for one.

use std::sync::mpsc::channel;

use super::{MIB, heap};

#[test]
fn points_of_a_stream_are_asked_about_by_halves() {
    let heap = heap("host?kind=event&fail_nth=0", 0);
    let stream = heap.device.stream_create().unwrap();
    let blocks: Vec<u64> = (0..256).map(|_| heap.allocate(stream, MIB, 0, 0).unwrap()).collect();
    let (began, begins) = channel();
    let mut gates = Vec::new();
    for (at, address) in blocks.into_iter().enumerate() {
        if matches!(at, 0 | 100) {
            let (open, gate) = channel::<()>();
            let began = began.clone();
            let hold = Box::new(move || {
                began.send(at).unwrap();
                let _ = gate.recv();
            });
            heap.device.stream_callback(stream, hold).unwrap();
            gates.push(open);
        }
        heap.free(stream, address).unwrap();
        heap.close_lane(stream).unwrap();
    }
    assert_eq!(begins.recv(), Ok(0));
    let collect = || {
        let before = heap.device.call_count();
        while heap.collect().unwrap() {}
        (heap.core.lock().order.count(), heap.device.call_count() - before)
    };
    assert_eq!(collect(), (256, 1), "the oldest was not reached, nor was any other");
    drop(gates.remove(0));
    assert_eq!(begins.recv(), Ok(100));
    let (count, questions) = collect();
    assert!(count == 156 && questions <= 16, "{count} blocks are left, {questions} questions");
    drop(gates);
    heap.device.stream_synchronize(stream).unwrap();
    let (count, questions) = collect();
    assert!(count == 0 && questions <= 18, "{count} blocks are left, {questions} questions");
    assert_eq!(collect(), (0, 0), "nothing waits");
    heap.validate().unwrap();
    heap.close();
}

#[test]
fn what_an_idle_stream_freed_is_free_for_all_with_its_point() {
    let heap = heap("host", 0);
    let stream = heap.device.stream_create().unwrap();
    let address = heap.allocate(stream, MIB, 0, 0).unwrap();
    heap.free(stream, address).unwrap();
    heap.close_lane(stream).unwrap();
    assert_eq!(heap.core.lock().order.count(), 0, "nobody has to ask once more");
    // Behind work that runs, it waits.
    let address = heap.allocate(stream, MIB, 0, 0).unwrap();
    let (open, gate) = channel::<()>();
    heap.device.stream_callback(stream, Box::new(move || _ = gate.recv())).unwrap();
    heap.free(stream, address).unwrap();
    heap.close_lane(stream).unwrap();
    assert_eq!(heap.core.lock().order.count(), 1);
    heap.validate().unwrap();
    drop(open);
    heap.close();
}

#[test]
fn streams_that_freed_little_each_are_left_alone_where_memory_is_short() {
    let heap = heap("host?kind=event&fail_nth=0", 128 * MIB);
    let held: Vec<u64> = (0..80).map(|_| heap.allocate(super::Stream::DEFAULT, MIB, 0, 0).unwrap()).collect();
    assert!(heap.weigh(), "80 MiB held, 48 to be had");
    let before = heap.device.call_count();
    for _ in 0..8 {
        let stream = heap.device.stream_create().unwrap();
        for _ in 0..3 {
            let address = heap.allocate(stream, 40 << 10, 0, 0).unwrap();
            heap.free(stream, address).unwrap();
        }
    }
    assert!(heap.core.lock().order.bytes() > (80 << 20) / 512, "of all streams it is more than a share");
    assert_eq!(heap.device.call_count(), before, "no point is recorded, none is asked about");
    held.into_iter().for_each(|address| heap.free(super::Stream::DEFAULT, address).unwrap());
    heap.validate().unwrap();
    heap.close();
}
