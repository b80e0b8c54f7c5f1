//! What a thread leaves at its end, and who gets it; what serves a request whose own size is not at hand.

use super::*;
use crate::memory::size_class::{CLASS_COUNT, Class, SMALL_CLASS_COUNT, bytes_of};

fn slow(heap: &Heap) -> u64 {
    heap.slow.allocations.load(Ordering::Relaxed)
}

/// Blocks of these sizes on a stream, freed again, on a thread of their own that ends.
fn visit(heap: &Arc<Heap>, stream: Stream, sizes: &[u64]) -> Vec<u64> {
    let work = || {
        let key = key(stream);
        heap.adopt(key.0, key.1, stream).unwrap();
        let blocks: Vec<u64> = sizes.iter().map(|&bytes| allocate(heap, key, stream, bytes)).collect();
        blocks.iter().for_each(|&address| free(heap, key, stream, address));
        blocks
    };
    std::thread::scope(|scope| scope.spawn(work).join().unwrap())
}

const SIZES: [u64; 5] = [512, 4096, 200 << 10, MIB, 5 * MIB];

#[test]
fn a_thread_takes_over_what_the_one_before_it_left_for_the_stream() {
    let heap = heap("host", 0);
    let [own, other] = [(); 2].map(|()| heap.device.stream_create().unwrap());
    let mut first = visit(&heap, own, &SIZES);
    let before = (slow(&heap), heap.statistics().backed_bytes);
    let mut second = visit(&heap, own, &SIZES);
    assert_eq!((slow(&heap), heap.statistics().backed_bytes), before, "all of it was at hand");
    first.sort_unstable();
    second.sort_unstable();
    assert_eq!(first, second);
    assert_eq!(heap.parked.lock().len(), 1);
    // Another stream gets nothing of it.
    let third = visit(&heap, other, &SIZES);
    assert!(third.iter().all(|address| !first.contains(address)));
    let counts = heap.statistics();
    assert_eq!((counts.allocations, counts.frees, counts.live_count), (15, 15, 0));
    assert!(counts.front_cache_bytes >= SIZES.iter().sum::<u64>());
    heap.validate().unwrap();
    // A stream that goes takes its parked caches along, and memory that is asked for leaves the others empty.
    heap.forget_stream(own).unwrap();
    assert_eq!((heap.parked.lock().len(), heap.leases.lock().len()), (1, 1));
    give_all_back(&heap);
    let end = heap.statistics();
    assert_eq!((end.front_cache_bytes, end.ordered_bytes, end.backed_bytes, end.allocations), (0, 0, 0, 15));
    // The emptied one serves the next thread of its stream.
    visit(&heap, other, &SIZES);
    assert_eq!(heap.leases.lock().len(), 1);
    heap.close();
    assert_eq!((heap.parked.lock().len(), heap.leases.lock().len()), (0, 0));
    heap.validate().unwrap();
    for stream in [own, other] {
        heap.device.stream_destroy(stream).unwrap();
    }
}

#[test]
fn a_thread_that_lives_on_takes_parked_blocks_of_its_stream_before_new_memory() {
    let heap = heap("host", 0);
    let stream = heap.device.stream_create().unwrap();
    let key = key(stream);
    // This thread has a cache already when the other one comes.
    let early = allocate(&heap, key, stream, 4096);
    let left = visit(&heap, stream, &[4 * MIB; 4]);
    assert_eq!(heap.parked.lock().len(), 1);
    let backed_bytes = heap.statistics().backed_bytes;
    let mut taken = Vec::new();
    while heap.statistics().backed_bytes == backed_bytes {
        taken.push(allocate(&heap, key, stream, 4 * MIB));
    }
    assert!(left.iter().all(|address| taken.contains(address)), "{left:x?} of {taken:x?}");
    assert!(heap.parked.lock().is_empty());
    for address in taken.into_iter().chain([early]) {
        free(&heap, key, stream, address);
    }
    assert_eq!(heap.statistics().live_count, 0);
    heap.validate().unwrap();
}

#[test]
fn of_very_many_streams_that_threads_left_those_left_first_are_emptied() {
    let heap = heap("host", 0);
    // Values that no call of the device is made with here.
    let streams: Vec<Stream> = (1..=200).map(|number| Stream(number << 20)).collect();
    for &stream in &streams {
        visit(&heap, stream, &[4096]);
    }
    let parked: Vec<Stream> = heap.parked.lock().iter().map(|(stream, _)| *stream).collect();
    assert!(parked.len() < streams.len() && streams.ends_with(&parked), "{} are parked", parked.len());
    assert_eq!(heap.leases.lock().len(), parked.len());
    let counts = heap.statistics();
    assert_eq!((counts.allocations, counts.live_count), (200, 0));
    heap.validate().unwrap();
}

#[test]
fn threads_that_come_and_go_beside_visits_lose_nothing() {
    let heap = heap("host", 0);
    let streams = [(); 3].map(|()| heap.device.stream_create().unwrap());
    const TURNS: u64 = 120;
    std::thread::scope(|scope| {
        let heap = &heap;
        for worker in 0..4 {
            scope.spawn(move || {
                for turn in 0..TURNS {
                    visit(heap, streams[(worker + turn) as usize % 3], &SIZES);
                }
            });
        }
        scope.spawn(move || {
            for turn in 0..TURNS {
                match turn % 4 {
                    0 => heap.flush(None),
                    1 => heap.flush(Some(streams[turn as usize % 3])),
                    2 => drop(heap.empty_parked(streams[turn as usize % 3])),
                    _ => assert!(heap.statistics().live_count <= 4 * SIZES.len() as u64),
                }
            }
        });
    });
    let counts = heap.statistics();
    let all = 4 * TURNS * SIZES.len() as u64;
    assert_eq!((counts.allocations, counts.frees, counts.live_bytes), (all, all, 0));
    assert_eq!(heap.leases.lock().len(), heap.parked.lock().len());
    heap.validate().unwrap();
    give_all_back(&heap);
    assert_eq!(heap.statistics().backed_bytes, 0);
}

#[test]
fn a_size_that_is_not_at_hand_is_served_by_one_of_the_next_two_and_no_other() {
    let bytes = |class: usize| bytes_of(Class::at(class).unwrap());
    let with_one_at_hand = |class: usize| {
        let heap = heap_with("host", 0, |config| config.front_cache_bytes = 256 * MIB);
        let key = key(Stream::DEFAULT);
        // The cache is there before the block comes.
        [0, class].map(|class| {
            let address = allocate(&heap, key, Stream::DEFAULT, bytes(class));
            free(&heap, key, Stream::DEFAULT, address);
            (Arc::clone(&heap), key, address)
        })
    };
    for class in [SMALL_CLASS_COUNT + 2, SMALL_CLASS_COUNT + 20, CLASS_COUNT - 1] {
        for near in class - 2..=class {
            let [_, (heap, key, block)] = with_one_at_hand(class);
            let take = |class| allocate(&heap, key, Stream::DEFAULT, bytes(class));
            assert_eq!(take(near), block, "class {near} by {class}");
            assert_eq!(heap.block_info(block).unwrap().bytes, bytes(near));
            assert_ne!(take(class), block, "it is somebody's");
            heap.validate().unwrap();
            free(&heap, key, Stream::DEFAULT, block);
            assert_eq!(take(class), block, "it is of its own size again");
        }
        let [_, (heap, key, block)] = with_one_at_hand(class);
        let aligned = front_cache::allocate_at_hand(key.0, bytes(class - 2), 32 << 10, 0, |address| address);
        assert_eq!(aligned, None, "a class may not be a multiple of that");
        // Where memory is short, lengths are exact.
        heap.is_short.store(true, Ordering::Relaxed);
        let exact = || front_cache::allocate_at_hand(key.0, bytes(class - 1), 0, 0, |address| address);
        assert_eq!(exact(), None);
        heap.is_short.store(false, Ordering::Relaxed);
        assert_eq!(exact(), Some(block));
        free(&heap, key, Stream::DEFAULT, block);
        let far = allocate(&heap, key, Stream::DEFAULT, bytes(class - 3));
        assert_ne!(far, block, "class {} by {class}", class - 3);
        heap.validate().unwrap();
    }
    // Of the small sizes each has its own pages.
    let [_, (heap, key, block)] = with_one_at_hand(SMALL_CLASS_COUNT - 1);
    assert_ne!(allocate(&heap, key, Stream::DEFAULT, bytes(SMALL_CLASS_COUNT - 2)), block);
    heap.validate().unwrap();
}
