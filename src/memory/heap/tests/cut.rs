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
