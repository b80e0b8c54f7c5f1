//! What a thread has at hand, and what it leaves to the heap.

use super::*;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

#[test]
fn what_is_not_at_hand_is_left_to_the_heap_and_changes_nothing() {
    let heap = heap("host", 0);
    let key = key(Stream::DEFAULT);
    // From the second turn on the cache knows the region, and somebody writes the time down.
    for _ in 0..3 {
        let address = allocate(&heap, key, Stream::DEFAULT, 4096);
        free(&heap, key, Stream::DEFAULT, address);
    }
    let take = |key, bytes, alignment, tag| {
        heap.tick();
        front_cache::allocate_at_hand(key, bytes, alignment, tag, |address| address)
    };
    let address = take(key.0, 4096, 0, 0).unwrap();
    let foreign = Key { stream: 77, ..key.0 };
    let refused = [
        (key.0, 0, 0, 0),
        (key.0, 4096, 3, 0),
        (key.0, 4096, 0, 9),
        (key.0, 64 * MIB, 0, 0),
        (foreign, 4096, 0, 0),
    ];
    for (key, bytes, alignment, tag) in refused {
        assert_eq!(take(key, bytes, alignment, tag), None, "{bytes} bytes at {alignment} for {tag}");
    }
    for wrong in [0, address + 256, address + 4096, address ^ 1 << 46] {
        assert_eq!(front_cache::free_at_hand(key.0, wrong), None, "{wrong:#x}");
    }
    assert_eq!(front_cache::free_at_hand(foreign, address), None);
    let held = heap.statistics();
    assert_eq!((held.live_count, held.live_bytes), (1, 4096));
    assert_eq!(front_cache::free_at_hand(key.0, address), Some(()));
    assert_eq!(front_cache::free_at_hand(key.0, address), None, "freed before");
    assert_eq!(heap.statistics().live_count, 0);
    // A full stack leaves the rest to the heap, which takes some out.
    let blocks: Vec<u64> = (0..50).map(|_| allocate(&heap, key, Stream::DEFAULT, MIB)).collect();
    blocks.into_iter().for_each(|address| free(&heap, key, Stream::DEFAULT, address));
    assert_eq!((heap.statistics().live_count, heap.statistics().frees), (0, heap.statistics().allocations));
    heap.validate().unwrap();
    // The handle is gone, and then the heap.
    key.1.store(0, Ordering::Release);
    assert_eq!(take(key.0, 4096, 0, 0), None);
    key.1.store(key.0.token, Ordering::Release);
    assert!(take(key.0, 4096, 0, 0).is_some());
    heap.close();
    assert_eq!(take(key.0, 4096, 0, 0), None);
}

#[test]
fn a_front_cache_has_places_only_for_the_classes_that_were_used() {
    let heap = heap("host", 0);
    let key = key(Stream::DEFAULT);
    let places = || -> usize {
        let guests = heap.leases.lock().clone();
        guests.iter().map(|(_, guest)| guest.with(|leased| leased.cache.places())).sum()
    };
    let most = front_cache_places(4096) + front_cache_places(MIB);
    for bytes in [4096, MIB] {
        let address = allocate(&heap, key, Stream::DEFAULT, bytes);
        assert!(places() < most, "{} places before {bytes} bytes were freed", places());
        free(&heap, key, Stream::DEFAULT, address);
    }
    assert_eq!(places(), most, "for two classes out of a hundred");
    let guests = heap.leases.lock().clone();
    heap.close();
    assert_eq!(guests[0].1.with(|leased| leased.cache.places()), 0, "one that was closed keeps nothing");
}

#[test]
fn a_thread_that_changes_its_sizes_has_the_new_ones_at_hand_too() {
    const TURNS: usize = 1000;
    let heap = heap("host", 0);
    let key = key(Stream::DEFAULT);
    let left_bytes = || 32 * MIB - heap.statistics().front_cache_bytes;
    let take = |bytes| allocate(&heap, key, Stream::DEFAULT, bytes);
    let give = |address| free(&heap, key, Stream::DEFAULT, address);
    // What it did before: blocks of 1 to 4 MiB and powers of two, which fill the cache to the last byte.
    let powers: Vec<u64> = (8..22).rev().map(|power| 1 << power).collect();
    let mut before: Vec<(u64, u64)> = powers.iter().map(|&bytes| (take(bytes), bytes)).collect();
    let large: Vec<u64> = (4..=16).flat_map(|quarters| [quarters * (MIB / 4); 4]).map(take).collect();
    large.into_iter().for_each(give);
    before.retain(|&(address, bytes)| {
        let fits = bytes <= left_bytes();
        if fits {
            give(address);
        }
        !fits
    });
    assert!(left_bytes() < 256, "{}", left_bytes());
    for bytes in [3 << 8, 3 << 10, 3 << 13, 3 << 15, 3 << 18] {
        let mut at_hand = 0;
        for _ in 0..TURNS {
            let address = take(bytes);
            match front_cache::free_at_hand(key.0, address) {
                Some(()) => at_hand += 1,
                None => give(address),
            }
        }
        assert!(at_hand >= TURNS - 20, "of {bytes} bytes {at_hand} frees of {TURNS}");
    }
    // Blocks of a small size that stay come many at a time.
    let slow = || heap.slow.allocations.load(Ordering::Relaxed);
    let start = slow();
    let blocks: Vec<u64> = (0..TURNS).map(|_| take(5 << 10)).collect();
    assert!(slow() - start <= TURNS as u64 / 16, "{} of {TURNS} one by one", slow() - start);
    blocks.into_iter().chain(before.into_iter().map(|(address, _)| address)).for_each(give);
    assert!(heap.statistics().front_cache_bytes <= 32 * MIB);
    heap.validate().unwrap();
}

#[test]
fn a_stream_that_goes_does_not_wait_for_the_caches_of_others() {
    let heap = heap("host", 0);
    let [gone, other] = [(); 2].map(|()| heap.device.stream_create().unwrap());
    for stream in [gone, other] {
        let key = key(stream);
        let address = allocate(&heap, key, stream, 4096);
        free(&heap, key, stream, address);
    }
    let guests = heap.caches_of(other);
    let (tell, told) = channel();
    std::thread::scope(|scope| {
        let heap = &heap;
        guests[0].with(|_| {
            scope.spawn(move || tell.send(heap.forget_stream(gone)).unwrap());
            told.recv_timeout(Duration::from_secs(5)).expect("nobody is inside of its own caches").unwrap();
        });
    });
    assert_eq!((heap.caches_of(gone).len(), heap.caches_of(other).len()), (0, 1));
    heap.validate().unwrap();
}

/// As many as 4 MiB of blocks, but 4 to 128, and one more.
fn front_cache_places(bytes: u64) -> usize {
    ((4 * MIB / bytes).clamp(4, 128) + 1) as usize
}

/// What takes blocks out of a front cache, on the thread whose cache it is.
type TakeOut = fn(&Arc<Heap>, (Key, &'static AtomicU64), [u64; 2]);

#[test]
fn what_leaves_a_front_cache_is_in_order_before_anybody_can_find_the_cache_without_it() {
    // A lane of its own: what a thread leaves on other streams stays where it is, for the next thread.
    let lane = Stream(1 << 63 | 9);
    let ways: [(&str, Stream, TakeOut); 4] = [
        ("the thread ends", lane, |_, _, _| ()),
        ("everything is taken out", Stream::DEFAULT, |heap, _, _| heap.flush(None)),
        ("the stream goes", Stream::DEFAULT, |heap, _, _| heap.flush(Some(Stream::DEFAULT))),
        ("a stack is full", Stream::DEFAULT, |heap, key, more| {
            more.into_iter().for_each(|address| free(heap, key, Stream::DEFAULT, address));
        }),
    ];
    let mut lost = Vec::new();
    for (what, stream, take_out) in ways {
        let heap = heap("host", 0);
        let (ready, is_ready) = channel();
        let (go, may_go) = channel::<()>();
        std::thread::scope(|scope| {
            let its = Arc::clone(&heap);
            scope.spawn(move || {
                let key = key(stream);
                let blocks = [(); 6].map(|()| allocate(&its, key, stream, MIB));
                // The stack has room for one more.
                blocks[..4].iter().for_each(|&address| free(&its, key, stream, address));
                ready.send(()).unwrap();
                may_go.recv().unwrap();
                take_out(&its, key, [blocks[4], blocks[5]]);
            });
            is_ready.recv().unwrap();
            let guest = heap.leases.lock()[0].1.clone();
            let held_bytes = guest.with(|leased| leased.cache.bytes());
            assert!(held_bytes >= 4 * MIB, "{what}");
            // Nobody can put anything in order now.
            let core = heap.core.lock();
            let (tell, told) = channel();
            scope.spawn(move || {
                while guest.with(|leased| leased.cache.bytes()) >= held_bytes {}
                tell.send(()).unwrap();
            });
            go.send(()).unwrap();
            let found = told.recv_timeout(Duration::from_millis(300));
            drop(core);
            match found {
                Err(RecvTimeoutError::Timeout) => told.recv().unwrap(),
                found => lost.push((what, found)),
            }
        });
        heap.validate().unwrap();
    }
    assert!(lost.is_empty(), "for a while blocks were nowhere: {lost:?}");
}
