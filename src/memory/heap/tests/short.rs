//! Whether memory is short where others have most of it.

use std::sync::Arc;

use super::{MIB, heap};
use crate::device::{Stream, registry};
use crate::error::Status;
use crate::event::NoSink;
use crate::memory::{Limits, Memory};
use crate::sys::clock;

const ALL: u64 = 2048 * MIB;

fn memory() -> Arc<Memory> {
    let device = registry::open(&format!("host?memory_bytes={ALL}")).unwrap();
    Memory::new(device, Limits::default(), Arc::new(NoSink))
}

#[test]
fn what_others_of_the_same_manager_have_is_not_to_be_had() {
    let memory = memory();
    let heap = memory.make_heap_with(memory.heap_config()).unwrap();
    let others = memory.allocate(1536 * MIB, "others").unwrap();
    let take = |count| {
        for _ in 0..count {
            heap.allocate(Stream::DEFAULT, 8 * MIB, 0, 0).unwrap();
        }
    };
    take(20);
    assert!(!heap.weigh(), "160 MiB held, 352 to be had");
    take(20);
    assert!(heap.weigh(), "320 MiB held, 192 to be had");
    drop(others);
    assert!(!heap.weigh());
    heap.close();
}

#[test]
fn what_others_elsewhere_have_is_known_from_a_refusal_until_there_is_more_again() {
    let memory = memory();
    let heap = memory.make_heap_with(memory.heap_config()).unwrap();
    let device = memory.device();
    let others = device.page_create(1536 * MIB).unwrap();
    let take = || heap.allocate(Stream::DEFAULT, 8 * MIB, 0, 0);
    let refused = (0..).find_map(|_| take().err()).unwrap();
    assert_eq!(refused.status, Status::OutOfMemory);
    assert_eq!(heap.statistics().live_count, 64);
    assert!(heap.weigh(), "512 MiB held, and no more to be had");
    device.page_release(others).unwrap();
    take().unwrap();
    assert!(!heap.weigh(), "520 MiB held, more than when it was refused");
    heap.validate().unwrap();
    heap.close();
}

#[test]
fn what_the_device_has_refused_was_never_held() {
    let device = registry::open("host?page_bytes=2097152&memory_bytes=134217728").unwrap();
    let memory = Memory::new(device, Limits::default(), Arc::new(NoSink));
    let heap = memory.make_heap_with(memory.heap_config()).unwrap();
    while heap.allocate(Stream::DEFAULT, MIB, 0, 0).is_ok() {}
    assert_eq!(memory.budget.device_bytes(), (128 * MIB, 128 * MIB));
    heap.close();
}

#[test]
fn a_length_that_no_region_has_is_refused_and_not_cut() {
    for spec in ["host?memory_bytes=1073741824", "host?page_bytes=2097152&memory_bytes=1073741824"] {
        let device = registry::open(spec).unwrap();
        let memory = Memory::new(device, Limits::default(), Arc::new(NoSink));
        let heap = memory.make_heap_with(memory.heap_config()).unwrap();
        for power in [1_u64 << 43, 1 << 45, 1 << 46] {
            for more in [0, 1, 64 << 10, 64 * MIB, power - 1] {
                let outcome = heap.allocate(Stream::DEFAULT, power + more, 0, 0);
                let status = outcome.map_err(|error| error.status);
                assert_eq!(status, Err(Status::OutOfMemory), "{power} and {more} bytes");
            }
        }
        heap.validate().unwrap();
        heap.close();
    }
}

#[test]
fn without_a_limit_what_the_device_has_not_is_refused_before_any_of_it_is_made() {
    let device = registry::open("host?page_bytes=2097152&memory_bytes=1073741824").unwrap();
    let memory = Memory::new(device, Limits::default(), Arc::new(NoSink));
    let heap = memory.make_heap_with(memory.heap_config()).unwrap();
    heap.allocate(Stream::DEFAULT, 600 * MIB, 0, 0).unwrap();
    let made = || heap.physical.statistics().classes.iter().map(|class| class.created).sum::<u64>();
    let before = made();
    let refused = |bytes: u64| {
        let error = heap.allocate(Stream::DEFAULT, bytes, 0, 0).unwrap_err();
        assert_eq!(error.status, Status::OutOfMemory);
        error.text
    };
    let text = refused(700 * MIB);
    let asked = format!("{} bytes of physical memory requested, {} available", 700 * MIB, 424 * MIB);
    assert!(text.contains(&asked), "{text}");
    refused(4096 * MIB);
    // All is tried for the first; nobody is asked for what the device has not even when it is empty.
    let ladder = heap.ladder.counts();
    assert_eq!((made(), ladder.rooms, ladder.refusals), (before, 1, 2));
    heap.allocate(Stream::DEFAULT, 424 * MIB, 0, 0).unwrap();
    heap.validate().unwrap();
    heap.close();
}

#[test]
fn a_refusal_beside_many_blocks_of_many_tags_is_told_soon() {
    const BLOCKS: usize = 60_000;
    let heap = heap("host", 512 * MIB);
    let tags: Vec<u64> =
        (0..2000).map(|n| heap.tag(&format!("a layer of the model, {n}")).unwrap().0).collect();
    for n in 0..BLOCKS {
        heap.allocate(Stream::DEFAULT, 1024, 0, tags[n % 1500]).unwrap();
    }
    heap.allocate(Stream::DEFAULT, 8 * MIB, 0, tags[1700]).unwrap();
    let refused_in_ns = || {
        let start = clock::thread_ns();
        let refusal = heap.allocate(Stream::DEFAULT, 4096 * MIB, 0, 0).unwrap_err();
        assert!(refusal.text.contains("most: \"a layer of the model, 1700\" 8388608, "), "{}", refusal.text);
        clock::thread_ns() - start
    };
    let least = (0..5).map(|_| refused_in_ns()).min().unwrap_or_default();
    let listed_in_ns = || {
        let start = clock::thread_ns();
        assert_eq!(heap.live_blocks().len(), BLOCKS + 1);
        clock::thread_ns() - start
    };
    let listed = (0..5).map(|_| listed_in_ns()).min().unwrap_or_default();
    assert!(least < 20_000_000 && least < listed, "{least} ns; all blocks are listed in {listed}");
}
