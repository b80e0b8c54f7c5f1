//! Meshing: by hand and as the last step of a request that would be refused.

use std::sync::Arc;

use super::Heap;
use super::tests::{fill, heap, heap_with, is_filled, slice_of};
use crate::device::Stream;
use crate::error::Status;

const MIB: u64 = 1 << 20;

#[test]
fn pages_with_every_eighth_slot_live_are_meshed_into_few_and_keep_their_bytes() {
    const BYTES: u64 = 64 << 10;
    let heap = heap("host", 0);
    let blocks: Vec<u64> =
        (0..32 * 64).map(|_| heap.allocate(Stream::DEFAULT, BYTES, 0, 0).unwrap()).collect();
    // The phase differs from page to page.
    let is_kept = |at: usize| at % 8 == at / 32 % 8;
    let (kept, freed): (Vec<usize>, Vec<usize>) = (0..blocks.len()).partition(|&at| is_kept(at));
    kept.iter().for_each(|&at| fill(&heap, blocks[at], BYTES));
    freed.iter().for_each(|&at| heap.free(Stream::DEFAULT, blocks[at]).unwrap());
    let done = heap.defragment(0).unwrap();
    heap.validate().unwrap();
    let floor = (kept.len() as u64 * BYTES).next_multiple_of(2 * MIB);
    assert!(done.after_bytes * 100 <= floor * 115, "{done:?}, packed {floor}");
    assert_eq!(done.before_bytes, 64 * 2 * MIB);
    assert!(kept.iter().all(|&at| is_filled(&heap, blocks[at], BYTES)), "bytes survive");
    // Places that a guest gives up are the host's, and no two live blocks share one.
    let again: Vec<u64> = (0..32 * 8).map(|_| heap.allocate(Stream::DEFAULT, BYTES, 0, 0).unwrap()).collect();
    again.iter().for_each(|&address| fill(&heap, address, BYTES));
    assert!(kept.iter().all(|&at| is_filled(&heap, blocks[at], BYTES)));
    assert!(again.iter().all(|&address| is_filled(&heap, address, BYTES)));
    for (turn, &at) in kept.iter().enumerate() {
        heap.free(Stream::DEFAULT, blocks[at]).unwrap();
        if turn % 2 == 0 {
            let address = heap.allocate(Stream::DEFAULT, BYTES, 0, 0).unwrap();
            fill(&heap, address, BYTES);
            heap.free(Stream::DEFAULT, address).unwrap();
        }
        if turn % 64 == 0 {
            heap.defragment(0).unwrap();
            heap.validate().unwrap();
            assert!(again.iter().all(|&address| is_filled(&heap, address, BYTES)));
        }
    }
    assert!(again.iter().all(|&address| is_filled(&heap, address, BYTES)));
    again.iter().for_each(|&address| heap.free(Stream::DEFAULT, address).unwrap());
    heap.defragment(0).unwrap();
    assert_eq!(heap.statistics().backed_bytes, 0);
}

#[test]
fn a_mesh_that_fails_anywhere_keeps_every_byte_and_loses_no_page() {
    const BYTES: u64 = 64 << 10;
    for nth in 1..60 {
        for kind in ["virtual", "copy"] {
            let heap = heap(&format!("host?kind={kind}&fail_nth={nth}&error=oom"), 0);
            let allocate = || heap.allocate(Stream::DEFAULT, BYTES, 0, 0);
            let blocks: Vec<u64> = (0..32 * 4).filter_map(|_| allocate().ok()).collect();
            let is_kept = |at: usize| at % 4 == at / 32 % 4;
            let (kept, freed): (Vec<usize>, Vec<usize>) = (0..blocks.len()).partition(|&at| is_kept(at));
            kept.iter().for_each(|&at| {
                let _ = heap.device.write(slice_of(&heap, blocks[at], 8), &[at as u8; 8]);
            });
            freed.iter().for_each(|&at| heap.free(Stream::DEFAULT, blocks[at]).unwrap());
            let _ = heap.defragment(0);
            heap.validate().unwrap();
            for &at in &kept {
                let mut seen = [0; 8];
                if heap.device.read(slice_of(&heap, blocks[at], 8), &mut seen).is_ok() {
                    assert!(seen == [at as u8; 8] || seen == [0; 8], "{kind} {nth}: block {at}");
                }
                heap.free(Stream::DEFAULT, blocks[at]).unwrap();
            }
            let _ = heap.defragment(0);
            heap.defragment(0).unwrap();
            assert_eq!(heap.statistics().backed_bytes, 0, "{kind} {nth}");
        }
    }
}

/// Fills the limit with pages of which every eighth slot is live, at places that differ from page to page; the blocks.
fn half_empty_pages(heap: &Arc<Heap>, bytes: u64, pages: usize) -> Vec<u64> {
    let blocks: Vec<u64> =
        (0..32 * pages).map(|_| heap.allocate(Stream::DEFAULT, bytes, 0, 0).unwrap()).collect();
    let (kept, freed): (Vec<usize>, Vec<usize>) = (0..blocks.len()).partition(|&at| at % 8 == at / 32 % 8);
    kept.iter().for_each(|&at| fill(heap, blocks[at], bytes));
    freed.iter().for_each(|&at| heap.free(Stream::DEFAULT, blocks[at]).unwrap());
    kept.into_iter().map(|at| blocks[at]).collect()
}

#[test]
fn a_request_that_would_be_refused_meshes_where_the_program_allows_it() {
    const BYTES: u64 = 64 << 10;
    for allows in [false, true] {
        let heap = heap_with("host", 128 * MIB, |config| config.meshes_when_short = allows);
        let kept = half_empty_pages(&heap, BYTES, 16);
        // Only now: where memory is short, blocks of this size would not lie in slots.
        let rest = heap.allocate(Stream::DEFAULT, 96 * MIB, 0, 0).unwrap();
        let large = heap.allocate(Stream::DEFAULT, 16 * MIB, 0, 0);
        let ladder = heap.statistics().ladder;
        assert_eq!((ladder.meshes, ladder.refusals), if allows { (1, 0) } else { (0, 1) });
        match large {
            Ok(address) if allows => {
                fill(&heap, address, 16 * MIB);
                assert!(kept.iter().all(|&block| is_filled(&heap, block, BYTES)), "bytes survive");
                assert!(is_filled(&heap, address, 16 * MIB));
                heap.free(Stream::DEFAULT, address).unwrap();
            }
            Err(error) if !allows => assert_eq!(error.status, Status::OutOfMemory),
            other => panic!("allowed {allows}: {other:?}"),
        }
        kept.iter().chain([&rest]).for_each(|&block| heap.free(Stream::DEFAULT, block).unwrap());
        heap.validate().unwrap();
        heap.defragment(0).unwrap();
        assert_eq!(heap.statistics().backed_bytes, 0);
    }
}

#[test]
fn what_cannot_be_meshed_is_refused_after_the_step() {
    let heap = heap_with("host", 8 * MIB, |config| config.meshes_when_short = true);
    let blocks: Vec<u64> = (0..4).map(|_| heap.allocate(Stream::DEFAULT, 2 * MIB, 0, 0).unwrap()).collect();
    assert_eq!(heap.allocate(Stream::DEFAULT, MIB, 0, 0).unwrap_err().status, Status::OutOfMemory);
    assert_eq!((heap.statistics().ladder.meshes, heap.statistics().ladder.refusals), (1, 1));
    blocks.iter().for_each(|&block| heap.free(Stream::DEFAULT, block).unwrap());
}

/// Meshes simulated pages with the `nth` call of streams refused, then lets another stream write wherever room is left.
/// Calls of streams before and after the meshing, whether it was refused, and the races that were seen.
fn mesh_with_a_refused_wait(nth: u64) -> (u64, u64, bool, u64) {
    const BYTES: u64 = 64 << 10;
    let heap = heap(&format!("sim?seed={nth}&schedule=starve&kind=stream&fail_nth={nth}"), 0);
    let other = heap.device.stream_create().or_else(|_| heap.device.stream_create()).unwrap();
    let kept = half_empty_pages(&heap, BYTES, 4);
    let before = heap.device.call_count();
    let done = heap.defragment(0);
    let after = heap.device.call_count();
    let simulator = heap.device.simulator().unwrap();
    // Whatever became of the meshing, what is handed out now is nobody else's.
    for _ in 0..4 * 32 - kept.len() {
        let address = heap.allocate(other, BYTES, 0, 0).unwrap();
        simulator.declare(other, &[], &[slice_of(&heap, address, BYTES)]).unwrap();
    }
    heap.device.synchronize().or_else(|_| heap.device.synchronize()).unwrap();
    assert!(kept.iter().all(|&block| is_filled(&heap, block, BYTES)), "call {nth}: bytes survive");
    heap.validate().unwrap();
    (before, after, done.is_err(), heap.device.race_count())
}

#[test]
fn a_mesh_whose_wait_is_refused_leaves_no_copy_on_its_way_to_memory_that_is_handed_out() {
    let (before, after, is_refused, races) = mesh_with_a_refused_wait(0);
    assert!(!is_refused && races == 0);
    // Two waits come before the first pair of pages, and each pair has one.
    assert!(after >= before + 3, "{before} to {after}");
    for nth in before + 1..=after {
        let (.., races) = mesh_with_a_refused_wait(nth);
        assert_eq!(races, 0, "call {nth} of {before} to {after}");
    }
}

/// A program of one thread on three simulated streams, with short memory; how often it was meshed.
fn meshes_of(seed: u64) -> u64 {
    let mut random = fastrand::Rng::with_seed(seed);
    let heap = heap_with(&format!("sim?seed={seed}"), 8 * MIB, |config| config.meshes_when_short = true);
    let sim = Arc::clone(&heap.device);
    let simulator = sim.simulator().unwrap();
    let streams: Vec<Stream> = (0..3).map(|_| sim.stream_create().unwrap()).collect();
    let mut live: Vec<(u64, u64, usize)> = Vec::new();
    for _ in 0..600 {
        let at = random.usize(..3);
        if random.u32(..5) < 3 {
            let bytes = [48 << 10, 64 << 10, 128 << 10, MIB][random.usize(..4)];
            match heap.allocate(streams[at], bytes, 0, 0) {
                Ok(address) => {
                    simulator.declare(streams[at], &[], &[slice_of(&heap, address, bytes)]).unwrap();
                    live.push((address, bytes, at));
                }
                Err(error) => assert_eq!(error.status, Status::OutOfMemory, "{error}"),
            }
        } else if !live.is_empty() {
            let (address, bytes, owner) = live.swap_remove(random.usize(..live.len()));
            simulator.declare(streams[owner], &[slice_of(&heap, address, bytes)], &[]).unwrap();
            heap.free(streams[owner], address).unwrap();
        }
    }
    sim.synchronize().unwrap();
    assert_eq!(sim.race_count(), 0, "seed {seed}: {:?}", simulator.report().unwrap());
    live.into_iter().for_each(|(address, _, at)| heap.free(streams[at], address).unwrap());
    heap.validate().unwrap();
    heap.statistics().ladder.meshes
}

#[test]
fn meshing_in_a_request_has_no_race_while_nobody_else_enqueues() {
    let meshes: u64 = (0..40).map(meshes_of).sum();
    assert!(meshes > 100, "{meshes}");
}
