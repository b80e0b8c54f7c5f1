//! What is held serves other sizes before more is taken from the device, and a steady program does not pay for it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Barrier};
use std::thread;

use super::super::super::region::MIDDLE_GRANULE_BYTES;
use super::super::{Heap, MIDDLE};
use super::{MIB, allocate, fill, free, heap, heap_with, is_filled, key};
use crate::device::Stream;
use crate::memory::front_cache::Key;
use crate::sys::numa;

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
        most = most.max(heap.statistics().backed_bytes);
        heap.validate().unwrap();
    }
    most
}

#[test]
fn sizes_that_change_do_not_add_up() {
    let cases: [(&str, u64, Vec<u64>); 3] = [
        // A look at so many small blocks empties the account; without looks it would be 39 times.
        ("small", 16, (1..40).map(|step| step * 6 * KIB).collect()),
        ("middle", 2, (0..30).map(|step| (300 + step * 77) * KIB).collect()),
        ("large", 2, (0..30).map(|step| (40 + step) * MIB).collect()),
    ];
    for (name, times, sizes) in cases {
        let heap = heap(ROOMY, 0);
        // As on a simulated device: only what is held pays for looks.
        heap.looks.stop_clock();
        let live = 256 * MIB;
        let most = rounds(&heap, live, sizes.into_iter());
        // Room for slabs, and for what lay in the front cache; without looks it is several times as much.
        assert!(most <= times * live, "{name}: {} MiB backed", most / MIB);
        heap.close();
    }
}

#[test]
fn a_call_that_maps_nothing_meets_no_page_of_the_tables_that_is_missing() {
    if !numa::can_populate() {
        return;
    }
    let heap = heap(ROOMY, 0);
    let address = heap.allocate(Stream::DEFAULT, MIB, 0, 0).unwrap();
    let count = (heap.statistics().backed_bytes / MIDDLE_GRANULE_BYTES) as u32;
    assert!(count >= 1 << 14, "a slab of {count} granules");
    check_tables(&heap, address, count);
    heap.free(Stream::DEFAULT, address).unwrap();
    heap.close();
    // Where memory is short, what is new is as long as the request.
    let heap = super::heap("host?memory_bytes=536870912&page_bytes=2097152", 0);
    let bytes = 9 * MIB + 300 * KIB;
    while let Ok(address) = heap.allocate(Stream::DEFAULT, bytes, 0, 0) {
        check_tables(&heap, address, (bytes / MIDDLE_GRANULE_BYTES) as u32);
    }
    assert!(heap.is_short());
    heap.close();
}

/// What says what these granules are has its pages.
fn check_tables(heap: &Heap, address: u64, count: u32) {
    let region = heap.regions.get(MIDDLE).unwrap();
    let first = region.index_of(address).unwrap();
    let [low, high] = [first, first + count - 1].map(|index| region.records.get(index).unwrap());
    let low = std::ptr::from_ref(low).addr();
    assert!(numa::is_populated(low, (std::ptr::from_ref(high).addr() - low) as u64), "records");
    for (address, bytes) in heap.core.lock().middle.tables_of(first, count) {
        assert!(numa::is_populated(address, bytes), "{bytes} bytes of a table");
    }
}

#[test]
fn a_stream_has_what_it_freed_side_by_side_while_its_work_still_runs_and_no_other_stream_does() {
    for (bytes, count, longer) in [(416 * KIB, 300, 8 * MIB), (40 * MIB, 20, 70 * MIB)] {
        let heap = heap_with("host?memory_bytes=17179869184", 0, |_| {});
        let device = Arc::clone(&heap.device);
        let (owner, other) = (device.stream_create().unwrap(), device.stream_create().unwrap());
        let whole = heap.allocate(owner, count * bytes, 0, 0).unwrap();
        heap.free(owner, whole).unwrap();
        let (tell, told) = channel::<()>();
        let hold = Box::new(move || {
            let _ = told.recv();
        });
        device.stream_callback(owner, hold).unwrap();
        let mut freed: Vec<u64> = (0..count).map(|_| heap.allocate(owner, bytes, 0, 0).unwrap()).collect();
        let kept = freed.remove(count as usize / 2);
        let backed = heap.statistics().backed_bytes;
        freed.iter().for_each(|&address| heap.free(owner, address).unwrap());
        let is_freed = |address: u64| freed.iter().any(|&start| address >= start && address < start + bytes);
        let again: Vec<u64> = (0..4).map(|_| heap.allocate(owner, longer, 0, 0).unwrap()).collect();
        assert_eq!(heap.statistics().backed_bytes, backed, "nothing new was needed");
        heap.validate().unwrap();
        assert!(again.iter().all(|&address| is_freed(address)), "where neighbours were freed");
        for step in 0..2 {
            let address = heap.allocate(other, longer + step * MIB, 0, 0).unwrap();
            assert!(!is_freed(address), "{address:#x} still has work of another stream before it");
        }
        tell.send(()).unwrap();
        device.synchronize().unwrap();
        fill(&heap, kept, bytes);
        again.iter().for_each(|&address| fill(&heap, address, longer));
        let all = again.iter().all(|&address| is_filled(&heap, address, longer));
        assert!(is_filled(&heap, kept, bytes) && all);
        heap.validate().unwrap();
        heap.close();
    }
}

#[test]
fn a_large_block_that_gets_longer_takes_only_what_is_missing() {
    let heap = heap(ROOMY, 0);
    for step in 0..20 {
        let bytes = (80 + 4 * step) * MIB;
        let block = heap.allocate(Stream::DEFAULT, bytes, 0, 0).unwrap();
        assert_eq!(heap.statistics().backed_bytes, bytes, "{step}");
        fill(&heap, block, bytes);
        assert!(is_filled(&heap, block, bytes));
        heap.free(Stream::DEFAULT, block).unwrap();
        heap.validate().unwrap();
    }
    heap.close();
}

/// Mixed sizes on one thread and stream, the same each time: half of the slots are live.
fn mixed_round(heap: &Arc<Heap>, key: (Key, &'static AtomicU64), stream: Stream, seed: u64) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut slots = [0u64; 256];
    for _ in 0..8_000 {
        let slot = &mut slots[rng.usize(0..256)];
        if *slot == 0 {
            let base = 512 << rng.u32(0..14);
            *slot = allocate(heap, key, stream, base + rng.u64(0..base));
        } else {
            free(heap, key, stream, std::mem::take(slot));
        }
    }
    slots.into_iter().filter(|slot| *slot > 0).for_each(|slot| free(heap, key, stream, slot));
}

#[test]
fn steady_mixed_sizes_come_to_need_no_look_and_no_mapping() {
    for threads in [1, 2, 4] {
        let heap = heap(ROOMY, 0);
        // As on a simulated device: only what is held pays for looks.
        heap.looks.stop_clock();
        let streams: Vec<Stream> = (0..threads).map(|_| heap.device.stream_create().unwrap()).collect();
        let (rounds, quiet) = (Barrier::new(threads as usize), AtomicU64::new(0));
        let (rounds, quiet, heap) = (&rounds, &quiet, &heap);
        thread::scope(|scope| {
            for (seed, &stream) in streams.iter().enumerate() {
                scope.spawn(move || {
                    let key = key(stream);
                    let work = || {
                        let changes = heap.physical.statistics().table_changes;
                        (heap.looks.count(), changes, heap.statistics().backed_bytes)
                    };
                    for round in 0..500 {
                        rounds.wait();
                        let before = work();
                        rounds.wait();
                        mixed_round(heap, key, stream, seed as u64);
                        rounds.wait();
                        if seed == 0 {
                            let still = if work() == before { quiet.load(Ordering::Relaxed) + 1 } else { 0 };
                            quiet.store(still, Ordering::Relaxed);
                        }
                        rounds.wait();
                        if quiet.load(Ordering::Relaxed) >= 5 {
                            return;
                        }
                        assert!(round < 499, "{threads} threads: {:?} and then {:?}", before, work());
                    }
                });
            }
        });
        heap.validate().unwrap();
        heap.close();
    }
}
