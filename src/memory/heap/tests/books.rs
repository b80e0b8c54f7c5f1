//! The books of a heap: what is counted is there.

use super::super::MIDDLE;
use super::super::core::FITTED;
use super::*;
use crate::memory::records::Facts;
use crate::memory::size_class;

const KIB: u64 = 1 << 10;

/// A heap that holds more than it can still get.
fn short() -> Arc<Heap> {
    let heap = heap("host", 64 * MIB);
    heap.allocate(Stream::DEFAULT, 40 * MIB, 0, 0).unwrap();
    assert!(heap.weigh());
    heap
}

fn rare(heap: &Heap) -> u32 {
    heap.core.lock().rare.iter().sum()
}

#[test]
fn a_block_that_a_graph_gave_up_does_not_count_as_a_live_one() {
    let heap = short();
    let (bytes, class) = (5 * KIB, size_class::class_of(5 * KIB, 1).unwrap());
    for round in 0..3 {
        let found = heap.take_block(Stream::DEFAULT, (bytes, class), 256, true, false).unwrap();
        let (kind, start) = found.unwrap();
        assert_eq!(kind, FITTED);
        assert_eq!(rare(&heap), 1, "round {round}");
        let region = heap.regions.get(MIDDLE).unwrap();
        let facts = Facts {
            class: FITTED as u8,
            stream: heap.stream_number(Stream::DEFAULT).unwrap(),
            bytes,
            tag: 0,
            born: 0,
            is_shared: false,
            is_captured: true,
        };
        region.records.get(start).unwrap().open(&facts);
        heap.validate().unwrap();
        heap.free(Stream::DEFAULT, region.address_of(start)).unwrap();
        assert_eq!(rare(&heap), 0, "round {round}");
        heap.validate().unwrap();
    }
    heap.capture_released(Stream::DEFAULT, Stream::DEFAULT);
    assert_eq!(rare(&heap), 0);
    heap.validate().unwrap();
}

#[test]
fn many_small_blocks_get_a_page_of_their_class_also_where_that_is_a_matter_of_alignment() {
    let heap = short();
    let class = size_class::class_of(4 * KIB, 64 * KIB).unwrap();
    let pages = |heap: &Heap| heap.core.lock().small(class).unwrap().slab.page_count();
    let mut blocks = Vec::new();
    while pages(&heap) == 0 {
        blocks.push(heap.allocate(Stream::DEFAULT, 4 * KIB, 64 * KIB, 0).unwrap());
        assert!(blocks.len() < 100, "each of them has a run of its own");
        heap.validate().unwrap();
    }
    blocks.into_iter().for_each(|address| heap.free(Stream::DEFAULT, address).unwrap());
    assert_eq!(rare(&heap), 0);
    heap.validate().unwrap();
}
