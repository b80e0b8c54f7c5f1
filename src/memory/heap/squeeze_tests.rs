//! That live blocks are cut to their lengths where memory is short, in the order of their streams, and under the hands
//! of threads that free them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::Heap;
use super::planted::Mistake;
use super::tests::heap;
use crate::device::{DeviceSlice, Stream};
use crate::memory::front_cache::{self, Answer, Key};
use crate::sync::Mutex;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// A block of the class of 4.5 MiB that leaves much of it. Of such a length from the start where a limit is set, and so
/// it is the device here that has no more.
const LOOSE: u64 = 4 * MIB + 8 * KIB;

fn slice_of(heap: &Heap, address: u64, bytes: u64) -> DeviceSlice {
    let (region, _) = heap.block_at(address).unwrap();
    region.slice(address - region.base, bytes).unwrap()
}

#[test]
fn what_classes_round_up_serves_others_once_memory_is_short() {
    let heap = heap("host?memory_bytes=67108864", 0);
    let stream = Stream::DEFAULT;
    let mut live: Vec<u64> = (0..10).map(|_| heap.allocate(stream, LOOSE, 0, 0).unwrap()).collect();
    let rounded = |address: &u64| heap.block_info(*address).unwrap().block_bytes > LOOSE;
    // The first ones were of a class, and are as long as they were asked for since memory is short.
    assert!(heap.is_short() && !live.iter().any(rounded));
    heap.validate().unwrap();
    while let Ok(address) = heap.allocate(stream, 400 * KIB, 0, 0) {
        live.push(address);
    }
    // But for one piece too small for another one and the ends of seven runs, all is in use.
    let free = 64 * MIB - 10 * LOOSE - (live.len() as u64 - 10) * 400 * KIB;
    assert!(free < 8 * 104 * KIB + 400 * KIB, "{free} bytes are left over");
    live.drain(..).for_each(|address| heap.free(stream, address).unwrap());
    heap.validate().unwrap();
    heap.close();
    assert_eq!(heap.statistics().live_bytes, 0);
    heap.give_back().unwrap();
    assert_eq!(heap.statistics().backed_bytes, 0);
}

/// A block that was full and still at work is freed, and a shorter one takes its place before memory is short. Another
/// stream asks for all that is left. How many of its writes met the work.
pub(super) fn races_on_a_tail(seed: u64, mistake: Option<Mistake>, is_gone: bool) -> u64 {
    let heap = heap(&format!("sim?memory_bytes=67108864&seed={seed}"), 0);
    heap.mistake.store(mistake.map_or(0, |mistake| mistake as u32), Ordering::Relaxed);
    let sim = Arc::clone(&heap.device);
    let simulator = sim.simulator().unwrap();
    let [one, other] = [(); 2].map(|()| sim.stream_create().unwrap());
    let full = heap.allocate(one, 4608 * KIB, 0, 0).unwrap();
    for _ in 0..200 {
        simulator.declare(one, &[], &[slice_of(&heap, full, 4608 * KIB)]).unwrap();
    }
    heap.free(one, full).unwrap();
    let short = heap.allocate(one, LOOSE, 0, 0).unwrap();
    assert_eq!(short, full);
    if is_gone {
        // It may be at work still; the block keeps its end.
        heap.mistake.store(Mistake::StreamNotAwaited as u32, Ordering::Relaxed);
        heap.forget_stream(one).unwrap();
        heap.mistake.store(0, Ordering::Relaxed);
    }
    let mut live = Vec::new();
    for bytes in [6 * MIB; 5].into_iter().chain([400 * KIB; 80]) {
        let Ok(address) = heap.allocate(other, bytes, 0, 0) else { continue };
        simulator.declare(other, &[], &[slice_of(&heap, address, bytes)]).unwrap();
        live.push(address);
    }
    let tail = short + LOOSE..short + 4608 * KIB;
    assert_eq!(live.iter().any(|address| tail.contains(address)), !is_gone);
    heap.validate().unwrap();
    sim.synchronize().unwrap();
    let races = sim.race_count();
    live.into_iter().for_each(|address| heap.free(other, address).unwrap());
    heap.free(one, short).unwrap();
    heap.close();
    races
}

#[test]
fn under_a_limit_long_blocks_leave_no_ends_between_them() {
    let last_bytes = |spec: &str, limit_bytes: u64| {
        let heap = heap(spec, limit_bytes);
        let live: Vec<u64> = (0..6).map(|_| heap.allocate(Stream::DEFAULT, LOOSE, 0, 0).unwrap()).collect();
        assert!(!heap.is_short());
        // The first ones are cut to their class: next to nothing is held.
        let last_bytes = heap.block_info(live[5]).unwrap().block_bytes;
        // Six are 25 MiB, and 27 in their class.
        let can = heap.can_allocate(38 * MIB, 0).unwrap();
        let rest = heap.allocate(Stream::DEFAULT, 38 * MIB, 0, 0);
        assert_eq!((can, rest.is_ok()), (last_bytes == LOOSE, last_bytes == LOOSE), "{spec}");
        heap.validate().unwrap();
        live.into_iter().chain(rest).for_each(|block| heap.free(Stream::DEFAULT, block).unwrap());
        heap.validate().unwrap();
        heap.close();
        last_bytes
    };
    assert_eq!(last_bytes("host", 64 * MIB), LOOSE);
    assert_eq!(last_bytes("host?memory_bytes=67108864", 0), 4608 * KIB);
}

#[test]
fn exact_blocks_share_the_slabs_in_which_a_heap_grows() {
    let heap = heap("host?page_bytes=2097152&memory_bytes=17179869184", 8 << 30);
    let most = heap.allocate(Stream::DEFAULT, 1 << 30, 0, 0).unwrap();
    let held = heap.statistics().backed_bytes;
    let blocks = [(); 12].map(|()| heap.allocate(Stream::DEFAULT, LOOSE, 0, 0).unwrap());
    assert!(blocks.windows(2).all(|pair| pair[1] == pair[0] + LOOSE), "{blocks:?}");
    assert_eq!(heap.statistics().backed_bytes, held + 64 * MIB);
    heap.free(Stream::DEFAULT, most).unwrap();
    heap.validate().unwrap();
    blocks.into_iter().for_each(|block| heap.free(Stream::DEFAULT, block).unwrap());
    heap.close();
}

#[test]
fn the_end_of_a_block_goes_the_way_of_its_stream() {
    assert_eq!(races_on_a_tail(3, None, false), 0);
    assert_eq!(races_on_a_tail(3, None, true), 0);
    assert!(races_on_a_tail(3, Some(Mistake::TailForAll), false) > 0);
}

#[test]
fn blocks_are_not_cut_again_before_memory_was_plenty() {
    let heap = heap("host?memory_bytes=67108864", 0);
    let mut live: Vec<u64> = (0..10).map(|_| heap.allocate(Stream::DEFAULT, LOOSE, 0, 0).unwrap()).collect();
    let is_squeezed = || heap.is_squeezed.load(Ordering::Relaxed);
    let free = |live: &mut Vec<u64>, count: usize| {
        live.drain(..count).for_each(|address| heap.free(Stream::DEFAULT, address).unwrap());
        heap.give_back().unwrap();
        heap.device.synchronize().unwrap();
        heap.give_back().unwrap();
        heap.weigh()
    };
    assert!(heap.weigh() && is_squeezed());
    // Some pages below the edge.
    assert!(!free(&mut live, 4) && is_squeezed(), "{:?}", heap.statistics());
    assert!(!free(&mut live, 6) && !is_squeezed());
}

#[test]
fn blocks_that_cannot_be_cut_keep_their_fast_free() {
    let heap = heap("host?memory_bytes=67108864", 0);
    let stream = heap.device.stream_create().unwrap();
    let blocks = [stream, Stream::DEFAULT].map(|stream| heap.allocate(stream, LOOSE, 0, 0).unwrap());
    heap.forget_stream(stream).unwrap();
    heap.squeeze().unwrap();
    let is_shared = blocks.map(|address| heap.live(address).unwrap().3.is_shared);
    assert_eq!(is_shared, [false, true], "only what is cut is marked");
    blocks.into_iter().for_each(|address| heap.free(Stream::DEFAULT, address).unwrap());
    heap.device.stream_destroy(stream).unwrap();
}

#[test]
fn blocks_are_cut_while_threads_allocate_and_free_them() {
    static TOKENS: AtomicU64 = AtomicU64::new(1 << 40);
    let heap = heap("host", 0);
    let (is_over, cut) = (AtomicBool::new(false), AtomicU64::new(0));
    let places: Mutex<BTreeMap<u64, u64>> = Mutex::default();
    let work = |worker: u64| {
        let token = TOKENS.fetch_add(1, Ordering::Relaxed);
        let (key, alive) = (Key { token, stream: 0 }, &*Box::leak(Box::new(AtomicU64::new(token))));
        let stream = Stream::DEFAULT;
        heap.adopt(key, alive, stream).unwrap();
        let mut random = fastrand::Rng::with_seed(worker);
        let mut live = Vec::new();
        for turn in 0..2_000_000 {
            if turn >= 20_000 && cut.load(Ordering::Relaxed) > 100 {
                break;
            }
            if live.len() < 6 && random.bool() {
                let bytes = random.u64(300 * KIB..600 * KIB);
                let address = match front_cache::allocate(key, bytes, 0, 0, |address| address) {
                    Answer::Done(address) => address,
                    _ => heap.allocate(stream, bytes, 0, 0).unwrap(),
                };
                let mut places = places.lock();
                let below = places.range(..address + bytes).next_back();
                assert!(below.is_none_or(|(_, end)| *end <= address), "{address:#x} is in two hands");
                places.insert(address, address + bytes);
                live.push(address);
            } else if !live.is_empty() {
                let address = live.swap_remove(random.usize(..live.len()));
                let info = heap.block_info(address).unwrap();
                // No class has such a size.
                cut.fetch_add(u64::from(!info.block_bytes.is_multiple_of(32 * KIB)), Ordering::Relaxed);
                places.lock().remove(&address);
                if !matches!(front_cache::free(key, address, || ()), Answer::Done(())) {
                    heap.free(stream, address).unwrap();
                }
            }
        }
        live
    };
    let left: Vec<u64> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..3).map(|worker| scope.spawn(move || work(worker))).collect();
        let squeezer = scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                heap.squeeze().unwrap();
                heap.validate().unwrap();
            }
        });
        let left = workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect();
        is_over.store(true, Ordering::Relaxed);
        squeezer.join().unwrap();
        left
    });
    assert!(cut.load(Ordering::Relaxed) > 100, "hardly a block was cut to its length");
    assert_eq!(heap.statistics().live_count, left.len() as u64);
    left.into_iter().for_each(|address| heap.free(Stream::DEFAULT, address).unwrap());
    heap.close();
    heap.validate().unwrap();
    heap.give_back().unwrap();
    assert_eq!((heap.statistics().live_bytes, heap.statistics().backed_bytes), (0, 0));
}
