//! Blocks and streams that are being captured or that went without a wait.

use super::*;
use crate::memory::order::Freed;

fn allocate_all(heap: &Arc<Heap>, stream: Stream, count: usize) -> Vec<u64> {
    (0..count).map(|_| heap.allocate(stream, MIB, 0, 0).unwrap()).collect()
}

/// What waits in `limbo`, and how much of it without a point.
fn waiting(heap: &Heap) -> (usize, usize) {
    let core = heap.core.lock();
    core.limbo.counts()
}

#[test]
fn a_block_that_is_freed_beside_a_capture_waits_for_its_end_and_breaks_nothing() {
    for (freeing, using) in [(0, 1), (1, 0)] {
        let heap = heap("sim?seed=3&capture=1", 0);
        let simulator = heap.device.simulator().unwrap();
        let streams = [(); 3].map(|()| heap.device.stream_create().unwrap());
        let blocks = allocate_all(&heap, streams[2], 3);
        for &block in &blocks {
            heap.record_use(block, streams[using]).unwrap();
            simulator.declare(streams[using], &[], &[slice_of(&heap, block, MIB)]).unwrap();
        }
        heap.capture_begins(streams[0]);
        simulator.capture(streams[0], true).unwrap();
        blocks.iter().for_each(|&block| heap.free(streams[freeing], block).unwrap());
        assert_eq!(waiting(&heap), (3, 3));
        // Whoever gets as far as asking about fences gets memory all the same, and none of these blocks.
        let others = allocate_all(&heap, streams[2], 8);
        assert!(!others.iter().any(|other| blocks.contains(other)));
        heap.close_lanes().unwrap();
        heap.collect().unwrap();
        assert_eq!(waiting(&heap), (3, 3));
        heap.validate().unwrap();
        simulator.capture(streams[0], false).expect("nothing broke the capture");
        heap.collect().unwrap();
        assert_eq!(waiting(&heap).1, 0, "now they are behind points");
        heap.device.synchronize().unwrap();
        heap.collect().unwrap();
        assert_eq!(waiting(&heap), (0, 0));
        let again = allocate_all(&heap, streams[2], 3);
        for &block in &again {
            simulator.declare(streams[2], &[], &[slice_of(&heap, block, MIB)]).unwrap();
        }
        heap.device.synchronize().unwrap();
        assert_eq!(heap.device.race_count(), 0);
        heap.validate().unwrap();
    }
}

#[test]
fn what_a_capture_allocated_is_freed_without_an_event() {
    // Calls about events are counted.
    let heap = heap("sim?capture=1&kind=event&fail_nth=0", 0);
    let simulator = heap.device.simulator().unwrap();
    let [stream, user] = [(); 2].map(|()| heap.device.stream_create().unwrap());
    heap.capture_begins(stream);
    simulator.capture(stream, true).unwrap();
    let block = heap.allocate(stream, MIB, 0, 0).unwrap();
    heap.record_use(block, user).unwrap();
    heap.free(stream, block).unwrap();
    assert_eq!((waiting(&heap), heap.device.call_count()), ((0, 0), 0));
    assert_eq!(heap.allocate(stream, MIB, 0, 0).unwrap(), block, "the same capture may have it");
    heap.free(stream, block).unwrap();
    simulator.capture(stream, false).unwrap();
    heap.capture_released(stream, user);
    assert_eq!(heap.allocate(user, MIB, 0, 0).unwrap(), block);
}

#[test]
fn the_default_stream_gets_no_event_while_a_stream_that_it_waits_for_is_captured() {
    let heap = heap("sim?capture=1", 64 * MIB);
    let simulator = heap.device.simulator().unwrap();
    let [captured, other] = [(); 2].map(|()| heap.device.stream_create().unwrap());
    let shared = heap.allocate(Stream::DEFAULT, MIB, 0, 0).unwrap();
    heap.record_use(shared, other).unwrap();
    let blocks = allocate_all(&heap, Stream::DEFAULT, 40);
    simulator.capture(captured, true).unwrap();
    heap.free(Stream::DEFAULT, shared).unwrap();
    blocks.into_iter().for_each(|block| heap.free(Stream::DEFAULT, block).unwrap());
    // A thread that has nothing to do with the capture runs out of memory: the whole ladder.
    assert_eq!(heap.allocate(other, 60 * MIB, 0, 0).unwrap_err().status, Status::OutOfMemory);
    heap.give_back().unwrap();
    simulator.capture(captured, false).expect("nothing broke the capture");
    give_all_back(&heap);
    heap.allocate(other, 60 * MIB, 0, 0).unwrap();
    heap.validate().unwrap();
}

#[test]
fn what_a_capture_left_is_nobody_elses_when_its_stream_has_gone() {
    let heap = heap("sim?capture=1", 0);
    let simulator = heap.device.simulator().unwrap();
    let stream = heap.device.stream_create().unwrap();
    simulator.capture(stream, true).unwrap();
    let blocks = allocate_all(&heap, stream, 2);
    heap.free(stream, blocks[0]).unwrap();
    simulator.capture(stream, false).unwrap();
    heap.forget_stream(stream).unwrap();
    // The driver gives the value to the next stream.
    simulator.capture(stream, true).unwrap();
    heap.free(stream, blocks[1]).unwrap();
    let taken = allocate_all(&heap, stream, 2);
    assert!(!taken.iter().any(|block| blocks.contains(block)), "its graph may still be launched");
    taken.iter().for_each(|&block| heap.free(stream, block).unwrap());
    simulator.capture(stream, false).unwrap();
    heap.capture_released(stream, Stream::DEFAULT);
    let left: Vec<Freed> = heap.captured.lock().values().flatten().copied().collect();
    assert_eq!(left.len(), 2, "the new stream's are released, the old one's stay");
    heap.validate().unwrap();
}

#[test]
fn a_stream_that_cannot_be_waited_for_leaves_no_block_that_cannot_be_freed() {
    for base in ["host?kind=stream&error=device", "host?virtual=0&kind=stream&error=device"] {
        let first = heap(&format!("{base}&fail_nth=0"), 0).device.call_count() + 1;
        let mut refused = 0;
        for nth in first.. {
            let heap = heap(&format!("{base}&fail_nth={nth}"), 0);
            let (Ok(own), Ok(user)) = (heap.device.stream_create(), heap.device.stream_create()) else {
                continue;
            };
            let Ok(used) = heap.allocate(own, MIB, 0, 0) else { continue };
            let Ok(freed) = heap.allocate(user, MIB, 0, 0) else { continue };
            heap.record_use(used, user).unwrap();
            heap.free(user, freed).unwrap();
            refused += u32::from(heap.forget_stream(user).is_err());
            heap.device.stream_destroy(user).unwrap();
            if heap.free(own, used).is_err() {
                heap.free(own, used).unwrap_or_else(|error| panic!("{base} {nth}: {error}"));
            }
            // Only the call that was chosen fails.
            for _ in 0..4 {
                drop((heap.give_back(), heap.device.synchronize()));
            }
            assert_eq!(waiting(&heap), (0, 0), "{base} {nth}");
            let held = heap.statistics();
            assert_eq!((held.live_bytes, held.ordered_bytes), (0, 0), "{base} {nth}");
            heap.validate().unwrap();
            if heap.device.call_count() < nth {
                break;
            }
        }
        assert!(refused > 0, "{base}");
    }
}

#[test]
fn a_stream_goes_though_the_device_panics_when_it_is_waited_for() {
    for virtual_memory in ["", "&virtual=0"] {
        let prepared = |nth: u64| {
            let heap = heap(&format!("host?kind=stream&error=panic&fail_nth={nth}{virtual_memory}"), 0);
            let [own, user] = [(); 2].map(|()| heap.device.stream_create().unwrap());
            let used = heap.allocate(own, MIB, 0, 0).unwrap();
            let freed = heap.allocate(user, MIB, 0, 0).unwrap();
            heap.record_use(used, user).unwrap();
            heap.free(user, freed).unwrap();
            (heap, own, user, used)
        };
        let (heap, _, user, _) = prepared(0);
        let first = heap.device.call_count() + 1;
        heap.forget_stream(user).unwrap();
        for nth in first..=heap.device.call_count() {
            let (heap, own, user, used) = prepared(nth);
            assert_eq!(heap.forget_stream(user).unwrap_err().status, Status::Device, "{nth}");
            heap.device.stream_destroy(user).unwrap();
            heap.free(own, used).unwrap();
            for _ in 0..2 {
                heap.give_back().unwrap();
                heap.device.synchronize().unwrap();
            }
            heap.collect().unwrap();
            assert_eq!(waiting(&heap), (0, 0), "{nth}");
            let held = heap.statistics();
            assert_eq!((held.live_bytes, held.ordered_bytes), (0, 0), "{nth}");
            heap.validate().unwrap();
        }
    }
}

#[test]
fn a_heap_that_is_closed_beside_a_capture_gives_its_memory_back_and_leaves_the_capture_whole() {
    let heap = heap("sim?seed=2&capture=1", 0);
    let device = Arc::clone(&heap.device);
    let [stream, captured] = [(); 2].map(|()| device.stream_create().unwrap());
    let blocks = allocate_all(&heap, stream, 4);
    heap.capture_begins(captured);
    device.simulator().unwrap().capture(captured, true).unwrap();
    for &block in &blocks {
        device.simulator().unwrap().declare(stream, &[], &[slice_of(&heap, block, MIB)]).unwrap();
        heap.free(stream, block).unwrap();
    }
    heap.close();
    drop(heap);
    let info = device.memory_info().unwrap();
    assert_eq!(info.free_bytes, info.total_bytes);
    device.simulator().unwrap().capture(captured, false).expect("nothing broke the capture");
    assert_eq!(device.race_count(), 0, "the work was waited for");
}

#[test]
fn the_next_stream_of_the_same_value_gets_nothing_that_was_not_waited_for() {
    let heap = heap("sim?capture=1", 0);
    let simulator = heap.device.simulator().unwrap();
    let stream = heap.device.stream_create().unwrap();
    let blocks = allocate_all(&heap, stream, 3);
    heap.free(stream, blocks[0]).unwrap();
    heap.record_use(blocks[1], stream).unwrap();
    // A capture refuses the wait.
    simulator.capture(stream, true).unwrap();
    assert!(heap.forget_stream(stream).is_err());
    assert!(simulator.capture(stream, false).is_err());
    assert_eq!(heap.core.lock().order.take_same(stream, class_of_mib()), None);
    heap.free(Stream::DEFAULT, blocks[1]).unwrap();
    heap.free(Stream::DEFAULT, blocks[2]).unwrap();
    give_all_back(&heap);
    assert_eq!(heap.statistics().ordered_bytes, 0);
    heap.validate().unwrap();
}

#[test]
fn what_a_stream_left_that_went_without_a_wait_fails_nobody_else() {
    let heap = heap("sim?capture=1", 64 * MIB);
    let simulator = heap.device.simulator().unwrap();
    let [stream, captured, other] = [(); 3].map(|()| heap.device.stream_create().unwrap());
    let left = allocate_all(&heap, stream, 30);
    left.iter().for_each(|&block| heap.free(stream, block).unwrap());
    // A capture refuses the wait, and another one that the device is waited for.
    simulator.capture(stream, true).unwrap();
    assert!(heap.forget_stream(stream).is_err());
    assert!(simulator.capture(stream, false).is_err());
    heap.allocate(captured, MIB, 0, 0).unwrap();
    simulator.capture(captured, true).unwrap();
    heap.close_lanes().unwrap();
    // The whole ladder: it ends with what is there, not with what is wrong with the stream.
    let taken = allocate_all(&heap, other, 30);
    assert!(!taken.iter().any(|block| left.contains(block)), "its work was not waited for");
    assert_eq!(heap.allocate(other, 60 * MIB, 0, 0).unwrap_err().status, Status::OutOfMemory);
    heap.validate().unwrap();
    simulator.capture(captured, false).expect("nothing broke the capture");
    taken.iter().for_each(|&block| heap.free(other, block).unwrap());
    heap.allocate(other, 60 * MIB, 0, 0).unwrap();
    heap.validate().unwrap();
}

#[test]
fn a_capture_that_was_announced_is_not_disturbed_though_nothing_was_allocated_on_its_stream() {
    let heap = heap("sim?capture=1", 0);
    let simulator = heap.device.simulator().unwrap();
    let [stream, captured] = [(); 2].map(|()| heap.device.stream_create().unwrap());
    let block = allocate_all(&heap, stream, 1)[0];
    heap.free(stream, block).unwrap();
    simulator.capture(stream, true).unwrap();
    assert!(heap.forget_stream(stream).is_err());
    assert!(simulator.capture(stream, false).is_err());
    heap.capture_begins(captured);
    simulator.capture(captured, true).unwrap();
    heap.close_lanes().unwrap();
    simulator.capture(captured, false).expect("nobody waited for the device");
}

#[test]
fn a_user_that_goes_before_it_has_a_point_is_waited_for_and_nobody_else_is_taken_for_it() {
    for is_refused in [false, true] {
        let heap = heap("sim?seed=5&capture=1", 0);
        let simulator = heap.device.simulator().unwrap();
        let [owner, user] = [(); 2].map(|()| heap.device.stream_create().unwrap());
        let block = allocate_all(&heap, owner, 1)[0];
        heap.record_use(block, user).unwrap();
        simulator.declare(user, &[], &[slice_of(&heap, block, MIB)]).unwrap();
        simulator.capture(user, true).unwrap();
        heap.free(owner, block).unwrap();
        assert_eq!(waiting(&heap), (1, 1));
        if !is_refused {
            simulator.capture(user, false).unwrap();
        }
        assert_eq!(heap.forget_stream(user).is_err(), is_refused);
        let mut named = Vec::new();
        heap.core.lock().limbo.is_any_late(|lane| {
            named.push(*lane);
            false
        });
        assert_eq!(named.len(), usize::from(is_refused));
        // The driver gives the value to the next stream, on which nothing of this is.
        assert!(!named.contains(&user));
        if is_refused {
            assert!(simulator.capture(user, false).is_err(), "the wait that was refused broke it");
        }
        heap.collect().unwrap();
        heap.device.synchronize().unwrap();
        heap.collect().unwrap();
        assert_eq!(waiting(&heap), (0, 0));
        heap.validate().unwrap();
    }
}

fn class_of_mib() -> u32 {
    crate::memory::size_class::class_of(MIB, 256).unwrap().index() as u32
}

#[test]
fn a_capture_that_reuses_its_own_where_memory_is_short_keeps_alignments() {
    const SLOT: u64 = 256 << 10;
    let mut reused = 0;
    for seed in 0..4 {
        let heap = heap(&format!("sim?seed={seed}&capture=1&page_bytes=2097152"), 24 * MIB);
        let simulator = heap.device.simulator().unwrap();
        let captured = heap.device.stream_create().unwrap();
        let mut random = fastrand::Rng::with_seed(seed);
        // More than half of what can be had, so that blocks are cut to length.
        let holes: Vec<u64> = (0..45)
            .map(|_| heap.allocate(Stream::DEFAULT, SLOT + random.u64(..200_000), 0, 0).unwrap())
            .collect();
        holes.iter().step_by(2).for_each(|&block| heap.free(Stream::DEFAULT, block).unwrap());
        heap.device.synchronize().unwrap();
        heap.capture_begins(captured);
        simulator.capture(captured, true).unwrap();
        let some = |alignment: u64| -> Vec<u64> {
            (0..8).map(|_| heap.allocate(captured, 200 << 10, alignment, 0).unwrap()).collect()
        };
        let first = some(0);
        first.iter().for_each(|&block| heap.free(captured, block).unwrap());
        let aligned = some(SLOT);
        for block in &aligned {
            assert_eq!(block % SLOT, 0, "seed {seed}: {block:#x}");
        }
        aligned.iter().for_each(|&block| heap.free(captured, block).unwrap());
        let again = some(0);
        reused += again.iter().filter(|&block| first.contains(block) || aligned.contains(block)).count();
        simulator.capture(captured, false).expect("nothing broke the capture");
        heap.validate().unwrap();
    }
    assert!(reused > 0, "a capture has what it freed again");
}
