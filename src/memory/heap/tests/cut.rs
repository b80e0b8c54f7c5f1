//! Large blocks that are cut: what is left of them is as good as any other.

use super::{MIB, heap};
use crate::device::Stream;

const GIB: u64 = 1 << 30;

#[test]
fn what_is_left_of_a_cut_block_is_given_out_wherever_it_begins() {
    // Records come in steps of 8 GiB of large addresses.
    for (held, first, rest) in [
        (vec![10 * GIB], 8 * GIB, 2 * GIB),
        (vec![7 * GIB + 768 * MIB, GIB], 512 * MIB, 512 * MIB),
        (vec![9 * GIB], 8 * GIB + 512 * MIB, 512 * MIB),
    ] {
        let heap = heap("host?memory_bytes=137438953472", 0);
        let blocks: Vec<u64> =
            held.iter().map(|&bytes| heap.allocate(Stream::DEFAULT, bytes, 0, 0).unwrap()).collect();
        let whole = blocks[blocks.len() - 1];
        heap.free(Stream::DEFAULT, whole).unwrap();
        assert_eq!(heap.allocate(Stream::DEFAULT, first, 0, 0).unwrap(), whole);
        let backed = heap.statistics().backed_bytes;
        assert_eq!(heap.allocate(Stream::DEFAULT, rest, 0, 0).unwrap(), whole + first);
        assert_eq!(heap.statistics().backed_bytes, backed, "nothing new was needed");
        heap.validate().unwrap();
        heap.live_blocks().iter().for_each(|block| heap.free(Stream::DEFAULT, block.address).unwrap());
        super::give_all_back(&heap);
        assert_eq!(heap.statistics().backed_bytes, 0);
        heap.close();
    }
}

#[test]
fn a_block_made_longer_is_cut_wherever_it_ends() {
    let heap = heap("host?memory_bytes=137438953472", 0);
    let short = heap.allocate(Stream::DEFAULT, 7 * GIB, 0, 0).unwrap();
    heap.free(Stream::DEFAULT, short).unwrap();
    let long = heap.allocate(Stream::DEFAULT, 10 * GIB, 0, 0).unwrap();
    assert_eq!(heap.statistics().backed_bytes, 10 * GIB, "only what was missing");
    heap.free(Stream::DEFAULT, long).unwrap();
    assert_eq!(heap.allocate(Stream::DEFAULT, 9 * GIB, 0, 0).unwrap(), long);
    assert_eq!(heap.allocate(Stream::DEFAULT, GIB, 0, 0).unwrap(), long + 9 * GIB);
    heap.validate().unwrap();
    heap.close();
}

/// Blocks of a size until one is refused; how many there were.
fn fill_up(heap: &std::sync::Arc<super::Heap>, bytes: u64) -> u64 {
    let refused = (0..).find(|_| heap.allocate(Stream::DEFAULT, bytes, 0, 0).is_err());
    heap.validate().unwrap();
    refused.unwrap()
}

#[test]
fn what_is_left_of_a_page_that_a_cut_block_ends_in_serves_others_where_memory_is_short() {
    // Of 1 GiB; where a granule of 2 MiB is more than what is asked for, the rest of it is lost.
    for (bytes, percent) in [(2 * MIB, 99), (4 * MIB, 99), (MIB, 95)] {
        for is_trimmed in [false, true] {
            let heap = heap("host?memory_bytes=1073741824&page_bytes=2097152", 0);
            let whole: Vec<u64> =
                (0..6).map(|_| heap.allocate(Stream::DEFAULT, 64 * MIB, 0, 0).unwrap()).collect();
            whole.iter().step_by(2).for_each(|&block| heap.free(Stream::DEFAULT, block).unwrap());
            for _ in 0..3 {
                let part = heap.allocate(Stream::DEFAULT, 36 * MIB, 0, 0).unwrap();
                assert!(whole.contains(&part), "each page is cut");
            }
            if is_trimmed {
                heap.device.synchronize().unwrap();
                heap.give_back().unwrap();
                assert_eq!(heap.statistics().retained_bytes, 0, "what does not go has an owner");
                heap.validate().unwrap();
            }
            let live = 3 * (64 + 36) * MIB + bytes * fill_up(&heap, bytes);
            assert!(live >= 1024 * MIB / 100 * percent, "{} MiB in blocks of {bytes}", live / MIB);
            heap.live_blocks().iter().for_each(|block| heap.free(Stream::DEFAULT, block.address).unwrap());
            super::give_all_back(&heap);
            let held = heap.statistics();
            assert_eq!((held.backed_bytes, held.live_block_bytes), (0, 0));
            heap.close();
        }
    }
}

#[test]
fn a_large_block_that_gets_whole_pages_of_a_cut_one_leaves_the_page_that_others_share() {
    let heap = heap("host?memory_bytes=536870912&page_bytes=2097152", 0);
    let whole = heap.allocate(Stream::DEFAULT, 128 * MIB, 0, 0).unwrap();
    // So that nothing is made longer.
    let behind = heap.allocate(Stream::DEFAULT, 40 * MIB, 0, 0).unwrap();
    heap.free(Stream::DEFAULT, whole).unwrap();
    assert_eq!(heap.allocate(Stream::DEFAULT, 36 * MIB, 0, 0).unwrap(), whole);
    heap.allocate(Stream::DEFAULT, 256 * MIB, 0, 0).unwrap();
    // 88 MiB of the device, and one of the two pages of 64 MiB.
    heap.allocate(Stream::DEFAULT, 152 * MIB, 0, 0).unwrap();
    let held = heap.statistics();
    assert_eq!((held.retained_bytes, held.live_block_bytes), (0, 484 * MIB));
    heap.validate().unwrap();
    assert_eq!(fill_up(&heap, 28 * MIB), 1, "the rest of the other page");
    assert_eq!(heap.statistics().live_block_bytes, 512 * MIB);
    heap.free(Stream::DEFAULT, behind).unwrap();
    heap.close();
}

#[test]
fn a_page_of_which_a_block_has_only_a_part_and_nobody_the_rest_goes_with_the_block() {
    let heap = heap("host?page_bytes=2097152", 256 * MIB);
    let whole = heap.allocate(Stream::DEFAULT, 64 * MIB, 0, 0).unwrap();
    let others: Vec<u64> = (0..4).map(|_| heap.allocate(Stream::DEFAULT, 46 * MIB, 0, 0).unwrap()).collect();
    heap.free(Stream::DEFAULT, whole).unwrap();
    // Eight are left of the limit: the page of 64 MiB is taken over as it is, and the block has 46 of it.
    let part = heap.allocate(Stream::DEFAULT, 46 * MIB, 0, 0).unwrap();
    heap.free(Stream::DEFAULT, part).unwrap();
    heap.device.synchronize().unwrap();
    heap.give_back().unwrap();
    assert_eq!(heap.statistics().backed_bytes, 4 * 46 * MIB);
    others.into_iter().for_each(|other| heap.free(Stream::DEFAULT, other).unwrap());
    heap.close();
}

#[test]
fn memory_that_a_page_keeps_beside_live_blocks_is_told_and_is_not_said_to_be_live() {
    let heap = heap("host?memory_bytes=17179869184&page_bytes=2097152", 0);
    // Slabs of 64 MiB while there is much.
    let blocks: Vec<u64> = (0..4).map(|_| heap.allocate(Stream::DEFAULT, 4 * MIB, 0, 0).unwrap()).collect();
    assert_eq!(heap.statistics().backed_bytes, 64 * MIB);
    blocks[1..].iter().for_each(|&block| heap.free(Stream::DEFAULT, block).unwrap());
    heap.device.synchronize().unwrap();
    heap.give_back().unwrap();
    let held = heap.statistics();
    assert_eq!((held.backed_bytes, held.retained_bytes, held.live_block_bytes), (64 * MIB, 0, 4 * MIB));
    assert!(heap.can_allocate(16_320 * MIB, 0).unwrap() && !heap.can_allocate(16_322 * MIB, 0).unwrap());
    let refusal = heap.allocate(Stream::DEFAULT, 16_384 * MIB, 0, 0).unwrap_err();
    for told in ["held free 62914560 (93 % of what is backed; 0 of it", "served now 17112760320"] {
        assert!(refusal.text.contains(told), "{}", refusal.text);
    }
    heap.close();
}
