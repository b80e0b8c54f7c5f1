//! Large blocks out of the pages of free ones: what moves, what stays, and what a failure leaves behind.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::*;

const BLOCK: u64 = 256 << 10;
const PAGE: u64 = 2 * MIB;

/// A heap with so much of small blocks, of which those of every other page are free for all: the rest.
fn holes(spec: &str, limit_bytes: u64, used_bytes: u64) -> (Arc<Heap>, Vec<u64>, Vec<u64>) {
    let heap = heap(spec, limit_bytes);
    let count = used_bytes / BLOCK;
    let blocks: Vec<u64> =
        (0..count).map_while(|_| heap.allocate(Stream::DEFAULT, BLOCK, 0, 0).ok()).collect();
    let is_kept = |address: &u64| (address / PAGE).is_multiple_of(2);
    let (kept, freed): (Vec<u64>, Vec<u64>) = blocks.into_iter().partition(is_kept);
    for &address in &kept {
        heap.device.write(slice_of(&heap, address, 8), &address.to_le_bytes()).unwrap();
    }
    freed.iter().for_each(|&address| heap.free(Stream::DEFAULT, address).unwrap());
    (heap, kept, freed)
}

fn check_kept(heap: &Heap, kept: &[u64], what: &str) {
    for &address in kept {
        let mut seen = [0; 8];
        heap.device.read(slice_of(heap, address, 8), &mut seen).unwrap();
        assert_eq!(seen, address.to_le_bytes(), "{what}");
    }
}

fn check_books(heap: &Heap) {
    heap.validate().unwrap();
    heap.regions.iter().for_each(|(_, region)| region.range.validate().unwrap());
}

fn moved(heap: &Heap) -> u64 {
    heap.statistics().ladder.moved_pages
}

#[test]
fn a_large_block_takes_over_the_pages_of_holes_and_no_handle_is_made() {
    let (heap, kept, freed) = holes("host", 160 * MIB, 160 * MIB);
    let before = heap.physical.statistics();
    for round in 0..4 {
        let large = heap.allocate(Stream::DEFAULT, 70 * MIB, 0, 0).unwrap();
        let after = heap.physical.statistics();
        assert_eq!(moved(&heap), (round + 1) * 70 * MIB / heap.physical.page_bytes(), "round {round}");
        for (one, other) in before.classes.iter().zip(after.classes) {
            assert_eq!((one.created, one.released), (other.created, other.released), "round {round}");
        }
        assert_eq!(after.held_bytes + after.pooled_bytes, before.held_bytes + before.pooled_bytes);
        assert!(heap.statistics().backed_bytes <= 160 * MIB);
        check_books(&heap);
        fill(&heap, large, 70 * MIB);
        check_kept(&heap, &kept, "under the new block");
        // The old addresses get memory of their own again.
        let rest = 160 * MIB - 70 * MIB - kept.len() as u64 * BLOCK;
        let again: Vec<u64> = (0..rest / PAGE * (PAGE / BLOCK))
            .map(|_| heap.allocate(Stream::DEFAULT, BLOCK, 0, 0).unwrap())
            .collect();
        again.iter().for_each(|&address| fill(&heap, address, BLOCK));
        assert!(is_filled(&heap, large, 70 * MIB), "round {round}: nobody else writes to its pages");
        again.into_iter().for_each(|address| heap.free(Stream::DEFAULT, address).unwrap());
        heap.free(Stream::DEFAULT, large).unwrap();
        let small: Vec<u64> =
            freed.iter().map(|_| heap.allocate(Stream::DEFAULT, BLOCK, 0, 0).unwrap()).collect();
        small.iter().for_each(|&address| fill(&heap, address, BLOCK));
        assert!(small.iter().all(|&address| is_filled(&heap, address, BLOCK)), "round {round}");
        small.into_iter().for_each(|address| heap.free(Stream::DEFAULT, address).unwrap());
        check_kept(&heap, &kept, "after the new block");
        check_books(&heap);
    }
    kept.into_iter().for_each(|address| heap.free(Stream::DEFAULT, address).unwrap());
    give_all_back(&heap);
    assert_eq!(heap.statistics().backed_bytes, 0);
    assert_eq!(heap.physical.statistics().held_bytes, 0);
}

/// 40 MiB where 16 are left and the rest lies in holes, with some failure on the way.
fn play_failure(nth: u64, error: &str, kind: &str) -> (u64, u64) {
    let spec = format!("host?fail_nth={nth}&error={error}{kind}");
    let (heap, kept, freed) = holes(&spec, 80 * MIB, 64 * MIB);
    let what = format!("{error} at call {nth}");
    let before = heap.statistics();
    let first = heap.device.call_count();
    let got = catch_unwind(AssertUnwindSafe(|| heap.allocate(Stream::DEFAULT, 40 * MIB, 0, 0)));
    let last = heap.device.call_count();
    check_books(&heap);
    check_kept(&heap, &kept, &what);
    let after = heap.statistics();
    match got {
        Ok(Ok(address)) => {
            assert!(nth == 0 || error == "oom", "{what}: a failure was not told");
            mark_ends(&heap, slice_of(&heap, address, 40 * MIB), address);
            check_kept(&heap, &kept, &what);
            heap.free(Stream::DEFAULT, address).unwrap();
        }
        Ok(Err(told)) => {
            let planted = if error == "oom" { Status::OutOfMemory } else { Status::Device };
            assert_eq!(told.status, planted, "{what}");
            assert_eq!(
                (after.live_bytes, after.backed_bytes),
                (before.live_bytes, before.backed_bytes),
                "{what}"
            );
        }
        Err(_) => assert_eq!((after.live_bytes, error), (before.live_bytes, "panic"), "{what}"),
    }
    // All that was free is to be had again, in small and in large.
    let small: Vec<u64> =
        freed.iter().map(|_| heap.allocate(Stream::DEFAULT, BLOCK, 0, 0).unwrap()).collect();
    small.iter().for_each(|&address| mark_ends(&heap, slice_of(&heap, address, BLOCK), address));
    for &address in &small {
        assert_eq!(read_ends(&heap, slice_of(&heap, address, BLOCK)), [address; 2], "{what}");
    }
    check_kept(&heap, &kept, &what);
    small.into_iter().for_each(|address| heap.free(Stream::DEFAULT, address).unwrap());
    let large = heap.allocate(Stream::DEFAULT, 40 * MIB, 0, 0).unwrap();
    heap.free(Stream::DEFAULT, large).unwrap();
    kept.into_iter().for_each(|address| heap.free(Stream::DEFAULT, address).unwrap());
    give_all_back(&heap);
    check_books(&heap);
    assert_eq!((heap.statistics().backed_bytes, heap.physical.statistics().held_bytes), (0, 0), "{what}");
    (first, last)
}

#[test]
fn a_takeover_that_fails_at_any_call_leaves_all_as_it_was() {
    // A panic where an event is recorded or asked about comes before the takeover, and is not its concern.
    let cases = [("oom", ""), ("device", ""), ("panic", "&kind=virtual"), ("panic", "&kind=page")];
    for (error, kind) in cases {
        let (first, last) = play_failure(0, error, kind);
        assert!(last > first + if kind == "&kind=page" { 5 } else { 12 }, "{kind}: each mapping is a call");
        for nth in first + 1..=last {
            play_failure(nth, error, kind);
        }
    }
}

#[test]
fn a_use_of_an_address_whose_page_has_moved_is_found() {
    let (heap, kept, freed) = holes("sim?seed=7&memory_bytes=268435456", 96 * MIB, 96 * MIB);
    heap.device.synchronize().unwrap();
    let simulator = heap.device.simulator().unwrap();
    let old: Vec<DeviceSlice> = freed.iter().map(|&address| slice_of(&heap, address, BLOCK)).collect();
    let large = heap.allocate(Stream::DEFAULT, 44 * MIB, 0, 0).unwrap();
    assert!(moved(&heap) > 0);
    let writes = [slice_of(&heap, large, 44 * MIB)];
    simulator.declare(Stream::DEFAULT, &[], &writes).unwrap();
    heap.device.synchronize().unwrap();
    assert_eq!(heap.device.race_count(), 0, "{:?}", simulator.report().unwrap());
    // The highest pages move first.
    simulator.declare(Stream::DEFAULT, &[old[old.len() - 1]], &[]).unwrap();
    heap.device.synchronize().unwrap();
    assert!(heap.device.race_count() > 0, "the old address leads nowhere");
    check_kept(&heap, &kept, "simulated");
    check_books(&heap);
}

#[test]
fn no_schedule_finds_a_page_that_moved_in_two_hands() {
    let first = seed();
    let mut sum = 0;
    for round in 0..if soak() > 1 { 2_000 } else { 20 } {
        let seed = first.wrapping_add(round);
        let mut random = fastrand::Rng::with_seed(seed);
        let heap = heap(&format!("sim?seed={round}"), 64 * MIB);
        let sim = Arc::clone(&heap.device);
        let simulator = sim.simulator().unwrap();
        let streams: Vec<Stream> = (0..3).map(|_| sim.stream_create().unwrap()).collect();
        let mut live: Vec<(u64, u64, Stream)> = Vec::new();
        for _ in 0..200 {
            let stream = streams[random.usize(..3)];
            if live.len() < 40 && random.u32(..3) > 0 {
                let large = [34, 40, 50][random.usize(..3)] * MIB;
                let bytes = if random.u32(..12) == 0 { large } else { some_bytes(&mut random, 14, 22) };
                let Ok(address) = heap.allocate(stream, bytes, 0, 0) else { continue };
                simulator.declare(stream, &[], &[slice_of(&heap, address, bytes)]).unwrap();
                live.push((address, bytes, stream));
            } else if !live.is_empty() {
                let (address, bytes, owner) = live.swap_remove(random.usize(..live.len()));
                simulator.declare(owner, &[slice_of(&heap, address, bytes)], &[]).unwrap();
                heap.free(owner, address).unwrap();
            }
        }
        sim.synchronize().unwrap();
        assert_eq!(sim.race_count(), 0, "seed {seed}: {:?}", simulator.report().unwrap());
        check_books(&heap);
        sum += moved(&heap);
        heap.close();
    }
    assert!(sum > 0, "no page moved in any round from seed {first} on");
}

/// The first and the last word of a block.
fn ends(slice: DeviceSlice) -> [DeviceSlice; 2] {
    [0, slice.bytes() - 8].map(|offset| slice.part(offset, 8).unwrap())
}

fn mark_ends(heap: &Heap, slice: DeviceSlice, word: u64) {
    ends(slice).into_iter().for_each(|end| heap.device.write(end, &word.to_le_bytes()).unwrap());
}

fn read_ends(heap: &Heap, slice: DeviceSlice) -> [u64; 2] {
    ends(slice).map(|end| {
        let mut word = [0; 8];
        heap.device.read(end, &mut word).unwrap();
        u64::from_le_bytes(word)
    })
}

#[test]
fn random_large_and_small_blocks_keep_their_bytes_while_pages_move_and_mesh() {
    let seed = seed();
    let mut random = fastrand::Rng::with_seed(seed);
    let heap = heap("host", 128 * MIB);
    let mut live: Vec<(u64, u64)> = Vec::new();
    for step in 0..1_500 * soak() {
        if random.u32(..200) == 0 {
            heap.defragment(0).unwrap();
            check_books(&heap);
        }
        if live.len() < 400 && random.u32(..5) > 1 {
            let large = random.u64(33..70) * MIB;
            let bytes = if random.u32(..12) == 0 { large } else { 16 + some_bytes(&mut random, 12, 22) };
            let Ok(address) = heap.allocate(Stream::DEFAULT, bytes, 0, 0) else { continue };
            let slice = slice_of(&heap, address, bytes);
            mark_ends(&heap, slice, address);
            live.push((address, bytes));
        } else if !live.is_empty() {
            let (address, bytes) = live.swap_remove(random.usize(..live.len()));
            let ends = read_ends(&heap, slice_of(&heap, address, bytes));
            assert_eq!(ends, [address; 2], "step {step}, seed {seed}");
            heap.free(Stream::DEFAULT, address).unwrap();
        }
        assert!(heap.statistics().backed_bytes <= 128 * MIB, "step {step}, seed {seed}");
    }
    assert!(moved(&heap) > 0, "seed {seed}");
    live.into_iter().for_each(|(address, _)| heap.free(Stream::DEFAULT, address).unwrap());
    give_all_back(&heap);
    check_books(&heap);
    assert_eq!((heap.statistics().backed_bytes, heap.physical.statistics().held_bytes), (0, 0));
}
