//! What a call costs beside much that is held: it must not grow with it.

use std::sync::Arc;
use std::sync::mpsc::channel;

use super::super::Heap;
use super::{MIB, heap, heap_with};
use crate::device::Stream;
use crate::sys::clock;

/// Memory for thousands of large blocks.
const VAST: &str = "host?memory_bytes=4000000000000";

/// Time of a call, in nanoseconds of this thread: the least of several groups, because other work on the machine only
/// adds to it.
fn time(mut call: impl FnMut(u64)) -> u64 {
    let mut turn = 0;
    let groups = (0..30).map(|_| {
        let start = clock::thread_ns();
        for _ in 0..100 {
            call(turn);
            turn += 1;
        }
        (clock::thread_ns() - start) / 100
    });
    groups.min().unwrap_or(u64::MAX)
}

/// Every second of so many large blocks is free, and no two of those touch.
fn with_large(count: u64) -> Arc<Heap> {
    let heap = heap(VAST, 0);
    let blocks: Vec<u64> =
        (0..count).map(|at| heap.allocate(Stream::DEFAULT, (40 + at % 7) * MIB, 0, 0).unwrap()).collect();
    blocks.into_iter().step_by(2).for_each(|address| heap.free(Stream::DEFAULT, address).unwrap());
    heap
}

fn pair(heap: &Arc<Heap>, stream: Stream, bytes: u64) {
    let address = heap.allocate(stream, bytes, 0, 0).unwrap();
    heap.free(stream, address).unwrap();
}

fn compare(what: &str, of: impl Fn(u64) -> u64) {
    let (few, many) = (of(100), of(4_000));
    assert!(many < 6 * few, "{what}: {few} ns beside 100, {many} beside 4,000");
}

#[test]
fn a_large_block_costs_the_same_beside_many_that_are_free() {
    compare("pairs of lengths that come again", |count| {
        let heap = with_large(count);
        time(|turn| pair(&heap, Stream::DEFAULT, (36 + turn % 10) * MIB))
    });
    compare("parts, two at a time", |count| {
        let heap = with_large(count);
        time(|turn| {
            let lengths = [33 + turn % 3, 34 + turn % 5];
            let blocks = lengths.map(|mib| heap.allocate(Stream::DEFAULT, mib * MIB, 0, 0).unwrap());
            blocks.into_iter().for_each(|address| heap.free(Stream::DEFAULT, address).unwrap());
        })
    });
    compare("blocks that are free for all", |count| {
        let heap = with_large(count);
        let stream = heap.device.stream_create().unwrap();
        heap.gather().unwrap();
        time(|turn| pair(&heap, stream, (33 + turn % 13) * MIB))
    });
}

#[test]
fn a_block_costs_the_same_beside_many_streams_with_freed_ones() {
    compare("streams", |count| {
        let heap = heap(VAST, 0);
        let streams: Vec<Stream> = (0..count).map(|_| heap.device.stream_create().unwrap()).collect();
        for &stream in &streams {
            pair(&heap, stream, 3 * MIB);
        }
        time(|turn| {
            pair(&heap, streams[(turn * 7 % 50) as usize], 3 * MIB);
            pair(&heap, streams[0], (9 + turn % 10) * MIB);
        })
    });
}

#[test]
fn a_block_costs_the_same_beside_many_that_wait_for_several_streams() {
    compare("blocks of two streams", |count| {
        let heap = heap_with(VAST, 0, |_| {});
        let device = Arc::clone(&heap.device);
        let (owner, busy) = (device.stream_create().unwrap(), device.stream_create().unwrap());
        let (open, gate) = channel::<()>();
        let hold = Box::new(move || {
            let _ = gate.recv();
        });
        device.stream_callback(busy, hold).unwrap();
        let blocks: Vec<u64> = (0..count).map(|_| heap.allocate(owner, 9 * MIB, 0, 0).unwrap()).collect();
        for address in blocks {
            heap.record_use(address, busy).unwrap();
            heap.free(owner, address).unwrap();
        }
        // Asks whether something came back, as every call that finds nothing at hand.
        let each = time(|_| assert!(!heap.collect().unwrap()));
        drop(open);
        device.synchronize().unwrap();
        assert!(heap.collect().unwrap());
        assert_eq!(heap.statistics().ordered_bytes, 0, "all of them came back");
        heap.validate().unwrap();
        each
    });
}
