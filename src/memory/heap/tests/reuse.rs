//! What is held serves other sizes before more is taken from the device.

use std::sync::Arc;
use std::sync::mpsc::channel;

use super::super::Heap;
use super::{MIB, allocate, fill, free, heap, heap_with, is_filled, key};
use crate::device::Stream;

const KIB: u64 = 1 << 10;
const ROOMY: &str = "host?memory_bytes=17179869184";

/// Rounds of blocks of a size of their own, each with about so many bytes live; the most that was backed.
fn rounds(heap: &Arc<Heap>, live_bytes: u64, sizes: impl Iterator<Item = u64>) -> u64 {
    let key = key(Stream::DEFAULT);
    let mut most = 0;
    for bytes in sizes {
        let count = (live_bytes / bytes).max(1);
        let blocks: Vec<u64> = (0..count).map(|_| allocate(heap, key, Stream::DEFAULT, bytes)).collect();
        blocks.into_iter().for_each(|address| free(heap, key, Stream::DEFAULT, address));
        // What a busy machine does late is not the heap's.
        heap.close_lanes().unwrap();
        heap.device.synchronize().unwrap();
        most = most.max(heap.statistics().backed_bytes);
        heap.validate().unwrap();
    }
    most
}

#[test]
fn sizes_that_change_do_not_add_up() {
    let cases: [(&str, Vec<u64>); 3] = [
        ("small", (1..40).map(|step| step * 6 * KIB).collect()),
        ("middle", (0..30).map(|step| (300 + step * 77) * KIB).collect()),
        ("large", (0..30).map(|step| (40 + step) * MIB).collect()),
    ];
    for (name, sizes) in cases {
        let heap = heap(ROOMY, 0);
        let live = 256 * MIB;
        let most = rounds(&heap, live, sizes.into_iter());
        // Room for slabs, and for what lay in the front cache; without reuse it is several times as much.
        assert!(most <= 2 * live + 64 * MIB, "{name}: {} MiB backed", most / MIB);
        heap.close();
    }
}

#[test]
fn a_stream_has_what_it_freed_side_by_side_while_its_work_still_runs_and_no_other_stream_does() {
    let heap = heap_with("host?memory_bytes=4294967296", 0, |_| {});
    let device = Arc::clone(&heap.device);
    let (owner, other) = (device.stream_create().unwrap(), device.stream_create().unwrap());
    let (tell, told) = channel::<()>();
    let hold = Box::new(move || {
        let _ = told.recv();
    });
    device.stream_callback(owner, hold).unwrap();
    let bytes = 416 * KIB;
    let mut freed: Vec<u64> = (0..300).map(|_| heap.allocate(owner, bytes, 0, 0).unwrap()).collect();
    let kept = freed.remove(150);
    let backed = heap.statistics().backed_bytes;
    freed.iter().for_each(|&address| heap.free(owner, address).unwrap());
    let is_freed = |address: u64| freed.iter().any(|&start| address >= start && address < start + bytes);
    let again: Vec<u64> = (0..11).map(|_| heap.allocate(owner, 8 * MIB, 0, 0).unwrap()).collect();
    assert_eq!(heap.statistics().backed_bytes, backed, "nothing new was needed");
    heap.validate().unwrap();
    let first = again.iter().filter(|&&address| is_freed(address)).count();
    assert!(first >= 10, "{first} of 11 lie where neighbours were freed");
    for step in 0..4 {
        let address = heap.allocate(other, (6 + step) * MIB, 0, 0).unwrap();
        assert!(!is_freed(address), "{address:#x} still has work of another stream before it");
    }
    tell.send(()).unwrap();
    device.synchronize().unwrap();
    fill(&heap, kept, bytes);
    again.iter().for_each(|&address| fill(&heap, address, 8 * MIB));
    assert!(is_filled(&heap, kept, bytes) && again.iter().all(|&address| is_filled(&heap, address, 8 * MIB)));
    heap.close();
}
