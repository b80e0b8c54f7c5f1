//! The heap against a naive model, on the host and on simulated streams.

mod aside;
mod asked;
mod at_hand;
mod books;
mod captures;
mod cut;
mod lend;
mod many;
mod parked;
mod points;
mod resting;
mod reuse;
mod short;
mod takeover;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Heap;
use super::planted::Mistake;
use super::squeeze_tests::races_on_a_tail;
use crate::device::{DeviceSlice, Stream, registry};
use crate::error::Status;
use crate::event::NoSink;
use crate::memory::front_cache::{self, Answer, Key};
use crate::memory::{HeapConfig, Limits, Memory};

const MIB: u64 = 1 << 20;

pub(super) fn heap(spec: &str, limit_bytes: u64) -> Arc<Heap> {
    heap_with(spec, limit_bytes, |_| {})
}

pub(super) fn heap_with(spec: &str, limit_bytes: u64, change: impl FnOnce(&mut HeapConfig)) -> Arc<Heap> {
    let device = registry::open(spec).unwrap();
    let limits = Limits { device_limit_bytes: limit_bytes, ..Limits::default() };
    let memory = Memory::new(device, limits, Arc::new(NoSink));
    let mut config =
        HeapConfig { front_cache_bytes: 32 * MIB, patience_ns: 1_000_000, ..memory.heap_config() };
    change(&mut config);
    memory.make_heap_with(config).unwrap()
}

/// Tokens of the tests' own, each alive for ever.
fn key(stream: Stream) -> (Key, &'static AtomicU64) {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let token = NEXT.fetch_add(1, Ordering::Relaxed);
    (Key { token, stream: stream.0 }, Box::leak(Box::new(AtomicU64::new(token))))
}

/// As the C function does it.
fn allocate(heap: &Arc<Heap>, (key, alive): (Key, &'static AtomicU64), stream: Stream, bytes: u64) -> u64 {
    if let Some(address) = front_cache::allocate_at_hand(key, bytes, 256, 0, |address| address) {
        return address;
    }
    match front_cache::allocate(key, bytes, 256, 0, |address| address) {
        Answer::Done(address) => address,
        other => {
            let address = heap.allocate(stream, bytes, 256, 0).unwrap();
            if matches!(other, Answer::NoLease) {
                heap.adopt(key, alive, stream).unwrap();
            }
            heap.prefill(key, stream, bytes, 256);
            address
        }
    }
}

/// As `allocate`, where short memory is no failure of the test.
fn try_allocate(
    heap: &Arc<Heap>,
    (key, alive): (Key, &'static AtomicU64),
    stream: Stream,
    bytes: u64,
) -> Option<u64> {
    match front_cache::allocate(key, bytes, 256, 0, |address| address) {
        Answer::Done(address) => return Some(address),
        Answer::Miss => {}
        Answer::NoLease => heap.adopt(key, alive, stream).unwrap(),
    }
    match heap.allocate(stream, bytes, 256, 0) {
        Ok(address) => Some(address),
        Err(error) => {
            assert_eq!(error.status, Status::OutOfMemory, "{error:?}");
            None
        }
    }
}

fn free(heap: &Arc<Heap>, (key, _): (Key, &'static AtomicU64), stream: Stream, address: u64) {
    if front_cache::free_at_hand(key, address).is_some() {
        return;
    }
    if !matches!(front_cache::free(key, address, || ()), Answer::Done(())) {
        heap.free(stream, address).unwrap();
    }
}

pub(super) fn slice_of(heap: &Heap, address: u64, bytes: u64) -> DeviceSlice {
    let (region, _) = heap.block_at(address).unwrap();
    region.range.slice().part(region.lead + (address - region.base), bytes).unwrap()
}

/// What is behind an event goes in the second turn.
fn give_all_back(heap: &Heap) {
    heap.give_back().unwrap();
    heap.device.synchronize().unwrap();
    heap.give_back().unwrap();
}

/// Writes a pattern of its own into every block, or checks it.
pub(super) fn fill(heap: &Heap, address: u64, bytes: u64) {
    let pattern: Vec<u8> = (0..bytes).map(|at| (at * 31 + address / 256) as u8).collect();
    heap.device.write(slice_of(heap, address, bytes), &pattern).unwrap();
}

pub(super) fn is_filled(heap: &Heap, address: u64, bytes: u64) -> bool {
    let mut seen = vec![0; bytes as usize];
    heap.device.read(slice_of(heap, address, bytes), &mut seen).unwrap();
    (0..bytes).zip(&seen).all(|(at, &byte)| byte == (at * 31 + address / 256) as u8)
}

#[test]
fn every_size_and_alignment_has_a_place_of_its_own() {
    let heap = heap("host", 0);
    let mut live: Vec<(u64, u64)> = Vec::new();
    for shift in 0..27 {
        for bytes in [(1 << shift) - 1, 1 << shift, (1 << shift) + 1, 3 << shift]
            .into_iter()
            .filter(|&bytes| bytes > 0)
        {
            for alignment in [0, 256, 4096, 64 << 10, 2 << 20] {
                let address = heap.allocate(Stream::DEFAULT, bytes, alignment, 0).unwrap();
                assert!(address.is_multiple_of(alignment.max(256)), "{bytes} at {alignment}");
                live.push((address, bytes));
            }
        }
    }
    live.sort_unstable();
    assert!(live.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0), "two blocks overlap");
    let statistics = heap.statistics();
    assert_eq!(statistics.live_bytes, live.iter().map(|(_, bytes)| bytes).sum::<u64>());
    assert_eq!(statistics.live_count, live.len() as u64);
    assert_eq!(heap.live_blocks().len(), live.len());
    heap.validate().unwrap();
    for (address, bytes) in live {
        assert_eq!(heap.block_info(address).unwrap().bytes, bytes);
        heap.free(Stream::DEFAULT, address).unwrap();
        assert_eq!(heap.free(Stream::DEFAULT, address).unwrap_err().status, Status::InvalidArgument);
    }
    assert_eq!(heap.statistics().live_bytes, 0);
    give_all_back(&heap);
    heap.validate().unwrap();
    assert_eq!(heap.statistics().backed_bytes, 0, "all of it went back");
}

#[test]
fn wrong_frees_and_requests_are_told_and_change_nothing() {
    let heap = heap("host", 0);
    let address = heap.allocate(Stream::DEFAULT, 1000, 0, 0).unwrap();
    for wrong in [address + 1, address + 256, address + 1024, 8, 0x1234_5678_9abc, u64::MAX] {
        assert_eq!(
            heap.free(Stream::DEFAULT, wrong).unwrap_err().status,
            Status::InvalidArgument,
            "{wrong:#x}"
        );
    }
    let other = self::heap("host", 0);
    assert!(other.free(Stream::DEFAULT, address).is_err(), "another manager's");
    assert_eq!(heap.allocate(Stream::DEFAULT, 0, 0, 0).unwrap_err().status, Status::InvalidArgument);
    assert_eq!(heap.allocate(Stream::DEFAULT, 1, 3, 0).unwrap_err().status, Status::InvalidArgument);
    assert_eq!(heap.allocate(Stream::DEFAULT, 1, 4 << 20, 0).unwrap_err().status, Status::InvalidArgument);
    assert_eq!(heap.allocate(Stream::DEFAULT, u64::MAX, 0, 0).unwrap_err().status, Status::OutOfMemory);
    assert_eq!(heap.allocate(Stream::DEFAULT, 1, 0, 77).unwrap_err().status, Status::StaleId);
    assert_eq!(heap.statistics().live_count, 1);
    heap.validate().unwrap();
}

#[test]
fn what_a_thread_frees_it_gets_again_without_asking_the_heap() {
    let heap = heap("host", 0);
    let key = key(Stream::DEFAULT);
    let first = allocate(&heap, key, Stream::DEFAULT, 64 << 10);
    free(&heap, key, Stream::DEFAULT, first);
    let slow = heap.statistics().allocations;
    for _ in 0..1000 {
        let address = allocate(&heap, key, Stream::DEFAULT, 64 << 10);
        free(&heap, key, Stream::DEFAULT, address);
    }
    assert_eq!(heap.statistics().allocations, slow + 1000);
    let slow = heap.slow.allocations.load(Ordering::Relaxed);
    assert_eq!(slow, 1, "one went past the front cache");
    // A double free that the front cache sees first is still told.
    let address = allocate(&heap, key, Stream::DEFAULT, 64 << 10);
    free(&heap, key, Stream::DEFAULT, address);
    assert!(!matches!(front_cache::free(key.0, address, || ()), Answer::Done(())));
    assert!(heap.free(Stream::DEFAULT, address).is_err());
    heap.close();
    assert!(matches!(front_cache::allocate(key.0, 64, 256, 0, |_| ()), Answer::NoLease));
}

#[test]
fn short_memory_is_found_again_and_a_refusal_says_what_is_held() {
    let heap = heap("host", 256 * MIB);
    let key = key(Stream::DEFAULT);
    // Many sizes, so that the memory lies in pages of many classes, then all of it in one piece.
    for round in 0..3 {
        let blocks: Vec<u64> =
            (0..200).map(|i| allocate(&heap, key, Stream::DEFAULT, 1 + i * 5000)).collect();
        blocks.into_iter().for_each(|address| free(&heap, key, Stream::DEFAULT, address));
        let whole = heap.allocate(Stream::DEFAULT, 250 * MIB, 0, 0).unwrap();
        heap.free(Stream::DEFAULT, whole).unwrap();
        heap.validate().unwrap();
        assert!(heap.statistics().ladder.trims > round);
    }
    let tag = heap.tag("weights").unwrap();
    let held = heap.allocate(Stream::DEFAULT, 100 * MIB, 0, tag.0).unwrap();
    let refusal = heap.allocate(Stream::DEFAULT, 200 * MIB, 0, 0).unwrap_err();
    assert_eq!(refusal.status, Status::OutOfMemory);
    for part in ["209715200 bytes requested", "live 104857600 bytes in 1", "\"weights\" 104857600"] {
        assert!(refusal.text.contains(part), "{part}: {}", refusal.text);
    }
    assert!(heap.can_allocate(100 * MIB, 10).unwrap());
    assert!(!heap.can_allocate(200 * MIB, 10).unwrap());
    heap.free(Stream::DEFAULT, held).unwrap();
    assert!(heap.can_allocate(200 * MIB, 10).unwrap());
}

/// Sizes of every magnitude.
fn some_bytes(random: &mut fastrand::Rng, low: u32, high: u32) -> u64 {
    let magnitude = random.u32(low..high);
    1 + random.u64(..1 << magnitude)
}

fn soak() -> usize {
    if std::env::var_os("KAVERN_SOAK").is_some() { 100 } else { 1 }
}

/// A seed that a failure names, or the one of KAVERN_SEED.
fn seed() -> u64 {
    std::env::var("KAVERN_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| fastrand::u64(..))
}

#[test]
fn random_requests_on_several_streams_never_overlap_and_all_come_back() {
    let seed = seed();
    let mut random = fastrand::Rng::with_seed(seed);
    let heap = heap("host", 1 << 30);
    let streams: Vec<Stream> = (0..3).map(|_| heap.device.stream_create().unwrap()).collect();
    let keys: Vec<_> = streams.iter().map(|&stream| key(stream)).collect();
    let mut live: Vec<(u64, u64, usize)> = Vec::new();
    let mut starts: std::collections::BTreeMap<u64, u64> = std::collections::BTreeMap::new();
    for step in 0..30_000 * soak() {
        let at = random.usize(..3);
        if live.len() < 400 && random.bool() {
            let bytes = some_bytes(&mut random, 1, 26);
            let address = allocate(&heap, keys[at], streams[at], bytes);
            let before = starts.range(..=address).next_back().map_or(0, |(start, bytes)| start + bytes);
            let after = starts.range(address..).next().map_or(u64::MAX, |(&start, _)| start);
            assert!(before <= address && address + bytes <= after, "step {step}, seed {seed}");
            starts.insert(address, bytes);
            live.push((address, bytes, at));
        } else if !live.is_empty() {
            let (address, _, owner) = live.swap_remove(random.usize(..live.len()));
            starts.remove(&address);
            match random.u32(..10) {
                0 => heap.record_use(address, streams[at]).unwrap(),
                1 => heap.device.stream_synchronize(streams[owner]).unwrap(),
                _ => {}
            }
            // A free on another stream is fine here: nothing runs on them.
            let on = if random.u32(..8) == 0 { at } else { owner };
            free(&heap, keys[on], streams[on], address);
        }
        if step % 10_000 == 0 {
            heap.validate().unwrap();
            heap.give_back().unwrap();
        }
        if step % 7919 == 0 {
            heap.forget_stream(streams[at]).unwrap();
        }
    }
    let bytes: u64 = live.iter().map(|(_, bytes, _)| bytes).sum();
    assert_eq!((heap.statistics().live_bytes, heap.statistics().live_count), (bytes, live.len() as u64));
    for (address, _, at) in live {
        free(&heap, keys[at], streams[at], address);
    }
    streams.iter().for_each(|&stream| heap.forget_stream(stream).unwrap());
    give_all_back(&heap);
    heap.validate().unwrap();
    let end = heap.statistics();
    assert_eq!((end.live_bytes, end.backed_bytes, end.ordered_bytes, end.front_cache_bytes), (0, 0, 0, 0));
}

/// Races that a random program finds: several streams, short memory, blocks that a second stream reads.
fn races(seed: u64, operations: usize, mistake: Option<Mistake>) -> u64 {
    let mut random = fastrand::Rng::with_seed(seed);
    // How short memory is decides which step of the ladder serves a request.
    let (page_bytes, limit, high) = match random.u32(..8) {
        // Large blocks, those that lend their ends, and pages as a GPU has them.
        0 => (2 * MIB, 160, 26),
        other => (64 << 10, [24, 40, 64][other as usize % 3], 23),
    };
    let heap = heap(&format!("sim?seed={}&page_bytes={page_bytes}", seed >> 16), limit * MIB);
    heap.mistake.store(mistake.map_or(0, |mistake| mistake as u32), Ordering::Relaxed);
    let sim = Arc::clone(&heap.device);
    let simulator = sim.simulator().unwrap();
    let streams: Vec<Stream> = (0..3).map(|_| sim.stream_create().unwrap()).collect();
    let keys: Vec<_> = streams.iter().map(|&stream| key(stream)).collect();
    let mut live: Vec<(u64, u64, usize)> = Vec::new();
    for _ in 0..operations {
        let at = random.usize(..3);
        if random.u32(..50) == 0 {
            heap.forget_stream(streams[at]).unwrap();
        } else if live.len() < 16 && random.u32(..5) > 1 {
            let bytes = some_bytes(&mut random, 5, high) + 16;
            let Some(address) = try_allocate(&heap, keys[at], streams[at], bytes) else { continue };
            simulator.declare(streams[at], &[], &[slice_of(&heap, address, bytes)]).unwrap();
            live.push((address, bytes, at));
        } else if !live.is_empty() {
            let (address, bytes, owner) = live.swap_remove(random.usize(..live.len()));
            let slice = slice_of(&heap, address, bytes);
            // At times so much work that asking a few times does not see its end.
            let reads = if random.u32(..4) == 0 { 40 } else { 1 };
            (0..reads).for_each(|_| simulator.declare(streams[owner], &[slice], &[]).unwrap());
            if random.u32(..3) == 0 && at != owner {
                // Another stream reads it, ordered after what was written, and says so.
                let event = sim.event_create().unwrap();
                sim.event_record(event, streams[owner]).unwrap();
                sim.stream_wait_event(streams[at], event).unwrap();
                sim.event_destroy(event).unwrap();
                simulator.declare(streams[at], &[slice], &[]).unwrap();
                heap.record_use(address, streams[at]).unwrap();
                // And its owner once more, which the reader does not wait for.
                simulator.declare(streams[owner], &[slice], &[]).unwrap();
            }
            free(&heap, keys[owner], streams[owner], address);
        }
    }
    sim.synchronize().unwrap();
    let races = sim.race_count();
    assert!(mistake.is_some() || races == 0, "seed {seed}: {:?}", simulator.report().unwrap());
    live.drain(..).for_each(|(address, _, at)| free(&heap, keys[at], streams[at], address));
    heap.close();
    races
}

#[test]
fn no_schedule_of_simulated_streams_finds_memory_in_two_hands() {
    let first = seed();
    let (seeds, operations) = if soak() > 1 { (10_000, 1_000) } else { (60, 400) };
    for round in 0..seeds {
        races(first.wrapping_add(round << 16 | round), operations, None);
    }
}

/// One stream has freed nearly all there is with its work under way, and another asks for it: each block comes behind a
/// wait. How often the other one's writes met that work.
fn races_behind_waits(seed: u64, mistake: Option<Mistake>) -> u64 {
    let heap = heap(&format!("sim?seed={seed}"), 24 * MIB);
    heap.mistake.store(mistake.map_or(0, |mistake| mistake as u32), Ordering::Relaxed);
    let sim = Arc::clone(&heap.device);
    let simulator = sim.simulator().unwrap();
    let [one, other] = [(); 2].map(|()| sim.stream_create().unwrap());
    // An event from before the work, which is a wait for nothing.
    let old = heap.allocate(one, MIB, 0, 0).unwrap();
    (0..20).for_each(|_| simulator.declare(one, &[], &[slice_of(&heap, old, MIB)]).unwrap());
    heap.free(one, old).unwrap();
    heap.close_lanes().unwrap();
    let freed: Vec<u64> = (0..5).map(|_| heap.allocate(one, 4 * MIB, 0, 0).unwrap()).collect();
    for &address in freed.iter().cycle().take(200) {
        simulator.declare(one, &[], &[slice_of(&heap, address, 4 * MIB)]).unwrap();
    }
    freed.iter().for_each(|&address| heap.free(one, address).unwrap());
    for _ in 0..5 {
        let address = heap.allocate(other, 4 * MIB, 0, 0).unwrap();
        simulator.declare(other, &[], &[slice_of(&heap, address, 4 * MIB)]).unwrap();
    }
    assert!(heap.statistics().ladder.stream_waits > 0, "seed {seed}: nobody had to wait");
    sim.synchronize().unwrap();
    sim.race_count()
}

#[test]
fn every_planted_mistake_in_the_order_of_streams_is_found() {
    let first = seed();
    for mistake in Mistake::ALL {
        let found = (0..400).find(|&round: &u64| {
            let seed = first.wrapping_add(round << 16 | round);
            // Random use seldom comes to these, so they are led there.
            match mistake {
                Mistake::WaitForgotten | Mistake::WaitTooOld => races_behind_waits(seed, Some(mistake)) > 0,
                Mistake::TailForAll => races_on_a_tail(seed, Some(mistake), false) > 0,
                Mistake::EndForAll => lend::races_on_a_lent_end(seed, Some(mistake)) > 0,
                _ => races(seed, 400, Some(mistake)) > 0,
            }
        });
        assert!(found.is_some(), "{mistake:?} was not found by 400 seeds from {first} on");
    }
    (0..20).for_each(|round| assert_eq!(races_behind_waits(first.wrapping_add(round), None), 0));
}

#[test]
fn threads_allocate_and_free_each_others_blocks() {
    let heap = heap("host", 0);
    let (give, take) = std::sync::mpsc::channel::<(u64, u64)>();
    let take = crate::sync::Mutex::new(take);
    let counts: HashMap<usize, u64> = std::thread::scope(|scope| {
        let heap = &heap;
        let take = &take;
        let workers: Vec<_> = (0..4)
            .map(|worker| {
                let give = give.clone();
                scope.spawn(move || {
                    let key = key(Stream::DEFAULT);
                    let mut random = fastrand::Rng::with_seed(worker as u64);
                    let mut done = 0;
                    for _ in 0..20_000 {
                        let bytes = some_bytes(&mut random, 1, 22);
                        let address = allocate(heap, key, Stream::DEFAULT, bytes);
                        give.send((address, bytes)).unwrap();
                        if random.bool() {
                            let Ok((address, bytes)) = take.lock().try_recv() else { continue };
                            assert_eq!(heap.block_info(address).unwrap().bytes, bytes);
                            free(heap, key, Stream::DEFAULT, address);
                            done += 1;
                        }
                    }
                    (worker, done)
                })
            })
            .collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).collect()
    });
    drop(give);
    let left: Vec<(u64, u64)> = take.into_inner().into_iter().collect();
    let statistics = heap.statistics();
    assert_eq!(statistics.live_count, left.len() as u64);
    assert_eq!(statistics.frees, counts.values().sum::<u64>());
    for (address, _) in left {
        heap.free(Stream::DEFAULT, address).unwrap();
    }
    heap.close();
    heap.validate().unwrap();
    assert_eq!(heap.statistics().live_bytes, 0);
}

#[test]
fn a_block_that_several_streams_used_is_waited_for_before_a_request_is_refused() {
    let heap = heap_with("host", 64 * MIB, |config| {
        (config.front_cache_bytes, config.patience_ns) = (MIB, 20_000_000_000);
    });
    let device = Arc::clone(&heap.device);
    let (owner, user) = (device.stream_create().unwrap(), device.stream_create().unwrap());
    let address = heap.allocate(owner, 40 * MIB, 0, 0).unwrap();
    let (tell, told) = std::sync::mpsc::channel::<()>();
    let hold = Box::new(move || {
        let _ = told.recv();
    });
    device.stream_callback(user, hold).unwrap();
    heap.record_use(address, user).unwrap();
    heap.free(owner, address).unwrap();
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| heap.allocate(owner, 40 * MIB, 0, 0));
        // The request climbs the ladder up to the wait, which ends when the other stream does.
        while heap.statistics().ladder.host_waits == 0 {
            std::thread::yield_now();
        }
        tell.send(()).unwrap();
        asking.join().unwrap().unwrap();
    });
    heap.close();
}
