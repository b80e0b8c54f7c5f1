//! The books of a heap: what is counted is there, and a false entry is found.

use super::super::core::{Core, FITTED, Limbo};
use super::super::{LARGE, MIDDLE};
use super::*;
use crate::memory::free_list::State;
use crate::memory::order::Freed;
use crate::memory::records::Facts;
use crate::memory::size_class;

const KIB: u64 = 1 << 10;

/// A heap that holds more than it can still get.
fn short() -> Arc<Heap> {
    let heap = heap("host", 100 * MIB);
    heap.allocate(Stream::DEFAULT, 52 * MIB, 0, 0).unwrap();
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

/// A false entry, and its way back.
type Forgery = (&'static str, fn(&mut Core), fn(&mut Core));

#[test]
fn a_false_entry_in_any_book_is_found() {
    let heap = short();
    let idle = heap.allocate(Stream::DEFAULT, 34 * MIB, 0, 0).unwrap();
    heap.free(Stream::DEFAULT, idle).unwrap();
    let cut = [(); 2].map(|()| heap.allocate(Stream::DEFAULT, 5 * KIB, 0, 0).unwrap());
    heap.free(Stream::DEFAULT, cut[0]).unwrap();
    heap.device.synchronize().unwrap();
    heap.close_lanes().unwrap();
    heap.device.synchronize().unwrap();
    heap.collect().unwrap();
    heap.free(Stream::DEFAULT, heap.allocate(Stream::DEFAULT, 5 * KIB, 0, 0).unwrap()).unwrap();
    assert!(!heap.core.lock().idle_large.is_empty() && heap.core.lock().order.count() > 0);
    heap.validate().unwrap();
    let forgeries: [Forgery; 6] = [
        ("the sum of idle blocks", |core| core.idle_large_bytes += 1, |core| core.idle_large_bytes -= 1),
        ("the length of an idle block", |core| core.idle_large[0].id += 1, |core| core.idle_large[0].id -= 1),
        (
            "a block that waits and is nobody's",
            |core| {
                let block =
                    Freed { class: FITTED, id: u64::from(core.middle.capacity() - 1), bytes: 8 * KIB };
                core.limbo.push(Limbo { fences: Vec::new(), block });
            },
            |core| drop(core.limbo.pop()),
        ),
        (
            "a block that waits twice",
            |core| {
                let block = core.order.take_same(Stream::DEFAULT, FITTED).unwrap();
                core.limbo.push(Limbo { fences: Vec::new(), block });
                core.order.free(Stream::DEFAULT, block);
            },
            |core| drop(core.limbo.pop()),
        ),
        (
            "addresses that are in no list",
            |core| assert!(core.middle_bare.allocate(1, 1).unwrap().is_some()),
            |core| {
                let taken = core.middle_bare.ranges().find(|range| range.state == State::Used).unwrap();
                core.middle_bare.free(taken.start).unwrap();
            },
        ),
        (
            "too few live blocks of their own length",
            |core| core.rare.iter_mut().for_each(|count| *count = count.wrapping_sub(1).min(*count)),
            |core| {
                let class = size_class::class_of(5 * KIB, 1).unwrap();
                core.rare[class.index()] += 1;
            },
        ),
    ];
    for (what, forge, mend) in forgeries {
        forge(&mut heap.core.lock());
        assert!(heap.validate().is_err(), "{what}");
        mend(&mut heap.core.lock());
        heap.validate().unwrap_or_else(|error| panic!("after {what}: {error}"));
    }
    assert!(heap.regions.get(LARGE).is_some());
}
