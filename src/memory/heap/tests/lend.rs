//! Pages that are lent, and blocks out of the ends of pages: who gets what, whose bytes stay, what goes back.

use super::*;
use crate::memory::heap::core::{COMPOSED, FITTED, LENDING};

const KIB: u64 = 1 << 10;
const PAGE: u64 = 2 * MIB;

/// Blocks of so many bytes until memory ends, each filled.
fn fill_up(heap: &Arc<Heap>, bytes: u64) -> Vec<u64> {
    let blocks: Vec<u64> = std::iter::from_fn(|| heap.allocate(Stream::DEFAULT, bytes, 0, 0).ok()).collect();
    blocks.iter().for_each(|&address| fill(heap, address, bytes));
    blocks
}

fn free_all(heap: &Heap, blocks: impl IntoIterator<Item = u64>) {
    blocks.into_iter().for_each(|address| heap.free(Stream::DEFAULT, address).unwrap());
}

fn check_filled(heap: &Heap, blocks: &[(u64, u64)], what: &str) {
    assert!(blocks.iter().all(|&(address, bytes)| is_filled(heap, address, bytes)), "{what}");
    heap.validate().unwrap();
}

/// Everything went back, also what had memory at two addresses.
fn check_empty(heap: &Heap) {
    give_all_back(heap);
    heap.validate().unwrap();
    assert_eq!(heap.statistics().backed_bytes, 0);
    assert_eq!(heap.physical.statistics().held_bytes, 0);
}

fn class_of(heap: &Heap, address: u64) -> u32 {
    heap.live(address).unwrap().3.class.into()
}

#[test]
fn pages_of_a_few_small_blocks_serve_others_once_memory_is_short() {
    const SIZES: [u64; 6] = [300, 700, 5 * KIB, 40 * KIB, 200 * KIB, 100];
    let heap = heap("host", 64 * MIB);
    let small: Vec<(u64, u64)> = SIZES
        .iter()
        .flat_map(|&bytes| [(); 3].map(|()| (heap.allocate(Stream::DEFAULT, bytes, 0, 0).unwrap(), bytes)))
        .collect();
    small.iter().for_each(|&(address, bytes)| fill(&heap, address, bytes));
    let blocks = fill_up(&heap, 300 * KIB);
    // Six pages are begun by less than 800 KiB; of each page and each end of a run less than a block is left over.
    let used: u64 = small.iter().map(|(_, bytes)| bytes).sum();
    let free = 64 * MIB - used - blocks.len() as u64 * 300 * KIB;
    assert!(free < 5 * MIB, "{free} bytes are left over");
    check_filled(&heap, &small, "what was there before");
    // Places that are given up serve others, one after the other and in any order.
    let mut random = fastrand::Rng::with_seed(3);
    let mut left = small;
    while !left.is_empty() {
        let (address, _) = left.swap_remove(random.usize(..left.len()));
        heap.free(Stream::DEFAULT, address).unwrap();
        heap.give_back().unwrap();
        let others: Vec<u64> =
            (0..4).filter_map(|_| heap.allocate(Stream::DEFAULT, 30 * KIB, 0, 0).ok()).collect();
        others.iter().for_each(|&address| fill(&heap, address, 30 * KIB));
        check_filled(&heap, &left, "beside what came later");
        free_all(&heap, others);
    }
    let blocks: Vec<(u64, u64)> = blocks.into_iter().map(|address| (address, 300 * KIB)).collect();
    check_filled(&heap, &blocks, "where small ones have gone");
    free_all(&heap, blocks.into_iter().map(|(address, _)| address));
    check_empty(&heap);
}

#[test]
fn the_last_page_of_a_large_block_serves_others_and_outlives_it() {
    const LARGE: u64 = 34 * MIB + 100 * KIB;
    let heap = heap("host", 64 * MIB);
    let large = heap.allocate(Stream::DEFAULT, LARGE, 0, 0).unwrap();
    let end = slice_of(&heap, large, LARGE).part(LARGE - 8, 8).unwrap();
    heap.device.write(end, &[7; 8]).unwrap();
    let blocks = fill_up(&heap, 300 * KIB);
    assert_eq!(class_of(&heap, large), LENDING);
    let free = 64 * MIB - LARGE - blocks.len() as u64 * 300 * KIB;
    assert!(free < 600 * KIB, "{free} bytes are left over");
    let mut seen = [0; 8];
    heap.device.read(end, &mut seen).unwrap();
    assert_eq!(seen, [7; 8]);
    heap.validate().unwrap();
    heap.free(Stream::DEFAULT, large).unwrap();
    heap.validate().unwrap();
    // The same length comes back on whole pages of its own, and meets nobody.
    let again = heap.allocate(Stream::DEFAULT, 34 * MIB, 0, 0).unwrap();
    fill(&heap, again, 34 * MIB);
    let blocks: Vec<(u64, u64)> = blocks.into_iter().map(|address| (address, 300 * KIB)).collect();
    check_filled(&heap, &blocks, "beside the next large block");
    free_all(&heap, blocks.into_iter().map(|(address, _)| address));
    assert!(is_filled(&heap, again, 34 * MIB));
    heap.free(Stream::DEFAULT, again).unwrap();
    check_empty(&heap);
}

#[test]
fn the_free_end_of_a_large_block_goes_the_way_of_its_stream() {
    const LARGE: u64 = 34 * MIB + 512 * KIB;
    let heap = heap("host", 64 * MIB);
    let [stream, gone] = [(); 2].map(|()| heap.device.stream_create().unwrap());
    let large = heap.allocate(stream, LARGE, 0, 0).unwrap();
    heap.lend().unwrap();
    let core = heap.core.lock();
    let ends = core.order.open_blocks(stream, FITTED);
    assert_eq!(ends.iter().map(|end| end.bytes).collect::<Vec<_>>(), [PAGE - 512 * KIB]);
    assert_eq!(core.middle.free_granules(), 0, "nobody else has it");
    drop(core);
    heap.validate().unwrap();
    heap.free(stream, large).unwrap();
    heap.forget_stream(stream).unwrap();
    give_all_back(&heap);
    // Of a stream that is gone nobody knows when its work ends.
    let large = heap.allocate(gone, LARGE, 0, 0).unwrap();
    heap.forget_stream(gone).unwrap();
    heap.lend().unwrap();
    assert_ne!(class_of(&heap, large), LENDING);
    heap.free(Stream::DEFAULT, large).unwrap();
    check_empty(&heap);
}

#[test]
fn what_is_pinned_or_half_full_is_not_lent() {
    let heap = heap("host", 0);
    let pinned = heap.allocate(Stream::DEFAULT, 40 * KIB, 0, 0).unwrap();
    heap.pin(pinned).unwrap();
    let large = heap.allocate(Stream::DEFAULT, 34 * MIB + 1, 0, 0).unwrap();
    heap.pin(large).unwrap();
    let full: Vec<u64> = (0..5).map(|_| heap.allocate(Stream::DEFAULT, 250 * KIB, 0, 0).unwrap()).collect();
    let before = heap.statistics().backed_bytes;
    heap.lend().unwrap();
    heap.validate().unwrap();
    assert!(!is_any_lent(&heap));
    heap.unpin(pinned).unwrap();
    heap.lend().unwrap();
    assert!(is_any_lent(&heap));
    assert_eq!(heap.statistics().backed_bytes, before, "a page is counted once");
    heap.unpin(large).unwrap();
    free_all(&heap, full.into_iter().chain([pinned, large]));
    check_empty(&heap);
}

fn is_any_lent(heap: &Heap) -> bool {
    heap.regions.get(super::super::MIDDLE).is_some_and(|middle| middle.range.backed_pages() > 0)
}

#[test]
fn a_page_of_which_a_graph_has_a_slot_is_not_lent_before_the_graph_is_gone() {
    let heap = heap("sim?capture=1", 0);
    let simulator = heap.device.simulator().unwrap();
    let stream = heap.device.stream_create().unwrap();
    heap.capture_begins(stream);
    simulator.capture(stream, true).unwrap();
    let [live, freed] = [5 * KIB, 40 * KIB].map(|bytes| heap.allocate(stream, bytes, 0, 0).unwrap());
    heap.free(stream, freed).unwrap();
    simulator.capture(stream, false).unwrap();
    heap.lend().unwrap();
    assert!(!is_any_lent(&heap), "of one the slot is live, of the other freed");
    heap.validate().unwrap();
    heap.free(stream, live).unwrap();
    heap.lend().unwrap();
    assert!(!is_any_lent(&heap));
    heap.capture_released(stream, Stream::DEFAULT);
    heap.lend().unwrap();
    assert!(is_any_lent(&heap));
    heap.validate().unwrap();
    check_empty(&heap);
}

/// A limit of pages that are all half full, the lower ones below and the upper ones above: the blocks that are left.
fn half_full(spec: &str, pages: u64) -> (Arc<Heap>, Vec<u64>) {
    let heap = heap(spec, pages * PAGE);
    let blocks: Vec<u64> =
        (0..2 * pages).map_while(|_| heap.allocate(Stream::DEFAULT, MIB, 0, 0).ok()).collect();
    let place = |address: &u64| address - heap.block_at(*address).unwrap().0.base;
    let middle = blocks.iter().map(place).min().map_or(0, |first| first / PAGE) + pages / 2;
    let is_kept = |address: &u64| (place(address) / PAGE < middle) == place(address).is_multiple_of(PAGE);
    let (kept, freed): (Vec<u64>, Vec<u64>) = blocks.into_iter().partition(is_kept);
    kept.iter().for_each(|&address| {
        let _ = heap.device.write(slice_of(&heap, address, 8), &address.to_le_bytes());
    });
    free_all(&heap, freed);
    (heap, kept)
}

fn check_kept(heap: &Heap, kept: &[u64]) {
    for &address in kept {
        let mut seen = [0; 8];
        heap.device.read(slice_of(heap, address, 8), &mut seen).unwrap();
        assert_eq!(seen, address.to_le_bytes());
    }
}

#[test]
fn blocks_lie_on_the_ends_of_pages_when_nothing_else_is_left() {
    let (heap, mut kept) = half_full("host", 32);
    assert_eq!(kept.len(), 32);
    // A whole page for the one in the middle.
    let [first, second] = [kept.pop().unwrap(), kept.pop().unwrap()];
    free_all(&heap, [first, second]);
    for round in 0..3 {
        let sizes = [3 * MIB + 7 * KIB, 2 * MIB, MIB + 513 * KIB, 2 * MIB];
        let composed: Vec<(u64, u64)> = sizes
            .iter()
            .map(|&bytes| (heap.allocate(Stream::DEFAULT, bytes, 0, 0).unwrap(), bytes))
            .collect();
        composed.iter().for_each(|&(address, bytes)| fill(&heap, address, bytes));
        let count = composed.iter().filter(|(address, _)| class_of(&heap, *address) == COMPOSED).count();
        assert!(count >= 2, "round {round}: {count} of them are composed");
        let others = fill_up(&heap, 500 * KIB);
        check_filled(&heap, &composed, "beside all that is left");
        check_kept(&heap, &kept);
        assert!(heap.statistics().backed_bytes <= 64 * MIB);
        free_all(&heap, composed.into_iter().map(|(address, _)| address));
        heap.validate().unwrap();
        assert!(others.iter().all(|&address| is_filled(&heap, address, 500 * KIB)));
        free_all(&heap, others);
        heap.validate().unwrap();
    }
    free_all(&heap, kept);
    check_empty(&heap);
}

/// Frees the upper half of the lowest page of blocks of 1 MiB, and the lower half of one above: a place for a block out
/// of both ends.
fn free_two_halves(heap: &Heap, blocks: &[u64]) {
    let mut blocks = blocks.to_vec();
    blocks.sort_unstable();
    let mut halves = blocks.iter().copied().filter(|address| !address.is_multiple_of(PAGE));
    let low = halves.next().unwrap();
    let high =
        blocks.iter().copied().find(|&address| address > low + 2 * PAGE && address.is_multiple_of(PAGE));
    free_all(heap, [low, high.unwrap()]);
    heap.device.synchronize().unwrap();
}

#[test]
fn the_ends_of_pages_serve_where_the_device_ends_as_where_a_limit_does() {
    for (spec, limit_bytes) in
        [("host?page_bytes=2097152", 64 * MIB), ("host?page_bytes=2097152&memory_bytes=67108864", 0)]
    {
        let heap = heap(spec, limit_bytes);
        let blocks: Vec<u64> = (0..62).map(|_| heap.allocate(Stream::DEFAULT, MIB, 0, 0).unwrap()).collect();
        free_two_halves(&heap, &blocks);
        let composed = heap.allocate(Stream::DEFAULT, 4 * MIB, 0, 0).unwrap();
        assert_eq!(class_of(&heap, composed), COMPOSED, "{spec}");
        fill(&heap, composed, 4 * MIB);
        assert!(is_filled(&heap, composed, 4 * MIB));
        heap.validate().unwrap();
    }
}

#[test]
fn what_a_large_block_has_free_is_given_where_the_ends_of_pages_do_not_do() {
    let heap = heap("host?page_bytes=2097152&memory_bytes=536870912", 0);
    let large = heap.allocate(Stream::DEFAULT, 64 * MIB, 0, 0).unwrap();
    heap.free(Stream::DEFAULT, large).unwrap();
    heap.device.synchronize().unwrap();
    heap.allocate(Stream::DEFAULT, 36 * MIB, 0, 0).unwrap();
    let backed = |heap: &Heap| heap.statistics().backed_bytes;
    let mut blocks = Vec::new();
    while backed(&heap) < 512 * MIB || blocks.len() % 2 == 1 {
        blocks.push(heap.allocate(Stream::DEFAULT, MIB, 0, 0).unwrap());
    }
    free_two_halves(&heap, &blocks);
    for bytes in [5 * MIB, 21 * MIB] {
        let part = heap.allocate(Stream::DEFAULT, bytes, 0, 0).unwrap();
        heap.free(Stream::DEFAULT, part).unwrap();
        heap.device.synchronize().unwrap();
    }
    heap.validate().unwrap();
}

#[test]
fn a_large_request_on_what_is_left_of_others_is_aligned_as_it_asks() {
    const LARGE: u64 = 34 * MIB + 100 * KIB;
    for alignment in [4 * KIB, 512 * KIB] {
        let heap = heap("host?page_bytes=2097152", 64 * MIB);
        let blocks = fill_up(&heap, 300 * KIB);
        // Long enough for the request, but not for as many whole pages.
        let first = blocks.iter().min().unwrap() + 1101 * KIB;
        let freed = first..first + LARGE + alignment + 600 * KIB;
        let (freed, kept): (Vec<u64>, Vec<u64>) = blocks.into_iter().partition(|at| freed.contains(at));
        free_all(&heap, freed);
        let large = heap.allocate(Stream::DEFAULT, LARGE, alignment, 0).unwrap();
        assert_eq!(class_of(&heap, large), FITTED);
        assert!(large.is_multiple_of(alignment), "{large:#x} for {alignment}");
        heap.validate().unwrap();
        free_all(&heap, kept.into_iter().chain([large]));
        check_empty(&heap);
    }
}

/// A stream is at work on all of a large block, frees it and has a shorter one in its place, of which the end is lent.
/// Another stream asks for all that is left. How many of its writes met the work.
pub(super) fn races_on_a_lent_end(seed: u64, mistake: Option<Mistake>) -> u64 {
    let heap = heap(&format!("sim?seed={seed}"), 64 * MIB);
    heap.mistake.store(mistake.map_or(0, |mistake| mistake as u32), Ordering::Relaxed);
    let sim = Arc::clone(&heap.device);
    let simulator = sim.simulator().unwrap();
    let [one, other] = [(); 2].map(|()| sim.stream_create().unwrap());
    let full = heap.allocate(one, 36 * MIB, 0, 0).unwrap();
    (0..200).for_each(|_| simulator.declare(one, &[], &[slice_of(&heap, full, 36 * MIB)]).unwrap());
    heap.free(one, full).unwrap();
    let short = heap.allocate(one, 34 * MIB + 512 * KIB, 0, 0).unwrap();
    assert_eq!(short, full);
    write_all_that_is_left(&heap, other, 300 * KIB);
    assert_eq!(class_of(&heap, short), LENDING);
    heap.validate().unwrap();
    sim.synchronize().unwrap();
    sim.race_count()
}

/// A stream is at work on a block out of the ends of pages and frees it; another stream asks for all that is left. How
/// many of its writes met the work.
fn races_on_the_ends_of_pages(seed: u64, mistake: Option<Mistake>) -> u64 {
    let (heap, _) = half_full(&format!("sim?seed={seed}"), 16);
    let sim = Arc::clone(&heap.device);
    let simulator = sim.simulator().unwrap();
    let [one, other] = [(); 2].map(|()| sim.stream_create().unwrap());
    sim.synchronize().unwrap();
    // The first one lies where the two kinds of pages meet.
    let [_, composed] = [(); 2].map(|()| heap.allocate(one, 2 * MIB, 0, 0).unwrap());
    assert_eq!(class_of(&heap, composed), COMPOSED);
    (0..200).for_each(|_| simulator.declare(one, &[], &[slice_of(&heap, composed, 2 * MIB)]).unwrap());
    heap.mistake.store(mistake.map_or(0, |mistake| mistake as u32), Ordering::Relaxed);
    heap.free(one, composed).unwrap();
    write_all_that_is_left(&heap, other, MIB);
    heap.validate().unwrap();
    sim.synchronize().unwrap();
    sim.race_count()
}

fn write_all_that_is_left(heap: &Arc<Heap>, stream: Stream, bytes: u64) {
    while let Ok(address) = heap.allocate(stream, bytes, 0, 0) {
        let simulator = heap.device.simulator().unwrap();
        simulator.declare(stream, &[], &[slice_of(heap, address, bytes)]).unwrap();
    }
}

#[test]
fn what_is_behind_two_addresses_goes_the_way_of_its_stream() {
    let first = seed();
    for round in 0..20 {
        let seed = first.wrapping_add(round);
        assert_eq!(races_on_a_lent_end(seed, None), 0, "seed {seed}");
        assert_eq!(races_on_the_ends_of_pages(seed, None), 0, "seed {seed}");
    }
    let is_found = |found: &dyn Fn(u64) -> u64| (0..20).any(|round| found(first.wrapping_add(round)) > 0);
    assert!(is_found(&|seed| races_on_a_lent_end(seed, Some(Mistake::EndForAll))));
    assert!(is_found(&|seed| races_on_the_ends_of_pages(seed, Some(Mistake::FreeForAll))));
}

#[test]
fn loans_and_composed_blocks_survive_a_failure_of_any_call() {
    for nth in 1..80 {
        let spec = format!("host?kind=virtual&fail_nth={nth}&error=oom");
        let (heap, kept) = half_full(&spec, 16);
        let small: Vec<u64> = [5 * KIB, 60 * KIB]
            .iter()
            .filter_map(|&bytes| heap.allocate(Stream::DEFAULT, bytes, 0, 0).ok())
            .collect();
        let others: Vec<u64> =
            (0..6).filter_map(|_| heap.allocate(Stream::DEFAULT, MIB + 513 * KIB, 0, 0).ok()).collect();
        let _ = heap.lend();
        heap.validate().unwrap();
        check_kept(&heap, &kept);
        free_all(&heap, others.into_iter().chain(small));
        let _ = heap.give_back();
        heap.validate().unwrap();
        free_all(&heap, kept);
        check_empty(&heap);
    }
}
