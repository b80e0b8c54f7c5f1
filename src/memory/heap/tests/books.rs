//! The books of a heap: what is counted is there, and a false entry is found.

use std::cell::Cell;
use std::sync::atomic::AtomicBool;

use super::super::aside::Aside;
use super::super::core::{Core, FITTED};
use super::super::limbo::Limbo;
use super::super::{LARGE, MIDDLE, Waits};
use super::*;
use crate::memory::free_list::State;
use crate::memory::order::Freed;
use crate::memory::records::Facts;
use crate::memory::region::SLAB_PAGE_BYTES;
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
        assert!(blocks.len() < 150, "each of them has a run of its own");
        heap.validate().unwrap();
    }
    blocks.into_iter().for_each(|address| heap.free(Stream::DEFAULT, address).unwrap());
    assert_eq!(rare(&heap), 0);
    heap.validate().unwrap();
}

#[test]
fn alignment_holds_where_free_memory_ends_anywhere_and_where_it_is_short() {
    let mut random = fastrand::Rng::with_seed(11);
    for round in 0..20 {
        let heap = heap("host", 256 * MIB);
        let mut live = Vec::new();
        for _ in 0..300 {
            let bytes = random.u64(1..4 * MIB) >> random.u32(0..14) | 1;
            let alignment = 1 << random.u32(8..22);
            match heap.allocate(Stream::DEFAULT, bytes, alignment, 0) {
                Ok(address) => {
                    assert!(address.is_multiple_of(alignment), "{bytes} at {alignment}: {address:#x}");
                    live.push(address);
                }
                Err(error) => assert_eq!(error.status, Status::OutOfMemory),
            }
            if random.u8(0..3) == 0 && !live.is_empty() {
                let address = live.swap_remove(random.usize(..live.len()));
                heap.free(Stream::DEFAULT, address).unwrap();
            }
        }
        heap.validate().unwrap_or_else(|error| panic!("round {round}: {error}"));
        live.into_iter().for_each(|address| heap.free(Stream::DEFAULT, address).unwrap());
        heap.validate().unwrap();
    }
    // The tail of one block, then a block with larger alignment behind it.
    let heap = heap("host", 256 * MIB);
    heap.allocate(Stream::DEFAULT, 3 * MIB / 2, 0, 0).unwrap();
    for alignment in [2 * MIB, MIB] {
        let address = heap.allocate(Stream::DEFAULT, alignment, alignment, 0).unwrap();
        assert!(address.is_multiple_of(alignment));
    }
}

#[test]
fn a_small_block_of_large_alignment_is_counted_when_it_is_cut() {
    let heap = heap("host", 64 * MIB);
    let small = heap.allocate(Stream::DEFAULT, 4 * KIB, MIB, 0).unwrap();
    let mut live = Vec::new();
    while let Ok(address) = heap.allocate(Stream::DEFAULT, MIB, 0, 0) {
        live.push(address);
        heap.validate().unwrap_or_else(|error| panic!("after {}: {error}", live.len()));
    }
    assert_eq!(rare(&heap), 1, "its class has ended, its length stays");
    heap.free(Stream::DEFAULT, small).unwrap();
    assert_eq!(rare(&heap), 0);
    heap.validate().unwrap();
}

#[test]
fn a_pinned_block_stays_until_it_is_unpinned() {
    let heap = heap("host", 128 * MIB);
    for bytes in [4 * KIB, 8 * MIB, 40 * MIB] {
        let address = heap.allocate(Stream::DEFAULT, bytes, 0, 0).unwrap();
        heap.pin(address).unwrap();
        heap.pin(address).unwrap();
        assert_eq!(heap.free(Stream::DEFAULT, address).unwrap_err().status, Status::InUse);
        heap.unpin(address).unwrap();
        assert_eq!(heap.free(Stream::DEFAULT, address).unwrap_err().status, Status::InUse);
        heap.unpin(address).unwrap();
        heap.free(Stream::DEFAULT, address).unwrap();
    }
    give_all_back(&heap);
    assert_eq!(heap.statistics().backed_bytes, 0, "nothing stayed behind");
}

#[test]
fn a_pin_is_undone_by_the_block_that_has_it_and_by_no_neighbour() {
    let heap = heap("host", 0);
    let [pinned, beside] = [(); 2].map(|()| heap.allocate(Stream::DEFAULT, 4 * KIB, 0, 0).unwrap());
    for _ in 0..2 {
        assert_eq!(heap.unpin(pinned).unwrap_err().status, Status::NotFound);
        heap.pin(pinned).unwrap();
        assert_eq!(heap.unpin(beside).unwrap_err().status, Status::NotFound);
        heap.validate().unwrap();
        assert_eq!(heap.free(Stream::DEFAULT, pinned).unwrap_err().status, Status::InUse);
        heap.pin(beside).unwrap();
        heap.unpin(pinned).unwrap();
        assert_eq!(heap.free(Stream::DEFAULT, beside).unwrap_err().status, Status::InUse);
        heap.unpin(beside).unwrap();
        heap.validate().unwrap();
    }
    heap.pinned.lock().insert(pinned, 1);
    assert!(heap.validate().is_err(), "a pin that no page has");
    heap.pinned.lock().clear();
    [pinned, beside].into_iter().for_each(|address| heap.free(Stream::DEFAULT, address).unwrap());
    heap.validate().unwrap();
}

#[test]
fn a_slot_that_is_live_and_about_to_be_free_is_found() {
    let heap = heap("host", 0);
    let address = heap.allocate(Stream::DEFAULT, 256, 0, 0).unwrap();
    let (_, index) = heap.block_at(address).unwrap();
    let class = size_class::class_of(256, 256).unwrap().index() as u32;
    let block = Freed { class, id: index.into(), bytes: 256 };
    heap.validate().unwrap();
    heap.core.lock().limbo.push(Limbo { waits: Waits::default(), block });
    assert!(heap.validate().is_err());
    assert_eq!(heap.core.lock().limbo.take_past(false), [block]);
    heap.validate().unwrap();
    heap.captured.lock().entry(7).or_default().push(block);
    assert!(heap.validate().is_err());
    heap.captured.lock().clear();
    heap.validate().unwrap();
}

#[test]
fn a_block_outlives_a_stream_that_used_it() {
    for spec in ["host", "host?virtual=0", "sim?seed=4"] {
        let heap = heap(spec, 0);
        let [own, user] = [(); 2].map(|()| heap.device.stream_create().unwrap());
        let address = heap.allocate(own, MIB, 0, 0).unwrap();
        heap.record_use(address, user).unwrap();
        if let Some(simulator) = heap.device.simulator() {
            (0..50).for_each(|_| simulator.declare(user, &[], &[slice_of(&heap, address, MIB)]).unwrap());
        }
        heap.forget_stream(user).unwrap();
        heap.device.stream_destroy(user).unwrap();
        heap.free(own, address).unwrap_or_else(|error| panic!("{spec}: {error}"));
        let again = heap.allocate(own, MIB, 0, 0).unwrap();
        if let Some(simulator) = heap.device.simulator() {
            simulator.declare(own, &[], &[slice_of(&heap, again, MIB)]).unwrap();
            heap.device.synchronize().unwrap();
        }
        assert_eq!(heap.device.race_count(), 0);
        heap.free(own, again).unwrap();
    }
}

#[test]
fn a_thread_that_frees_after_its_caches_are_gone_leaves_none_behind() {
    struct Late(Cell<Option<(Arc<Heap>, u64)>>);
    impl Drop for Late {
        fn drop(&mut self) {
            let Some((heap, address)) = self.0.take() else { return };
            let key = key(Stream::DEFAULT);
            free(&heap, key, Stream::DEFAULT, address);
            heap.adopt(key.0, key.1, Stream::DEFAULT).unwrap();
        }
    }
    thread_local!(static LATE: Late = const { Late(Cell::new(None)) });
    let heap = heap("host", 0);
    for _ in 0..4 {
        let its = Arc::clone(&heap);
        std::thread::spawn(move || {
            // Destructors run last to first: the one that frees was there before the caches.
            LATE.with(|late| late.0.set(None));
            let address = allocate(&its, key(Stream::DEFAULT), Stream::DEFAULT, 4 * KIB);
            LATE.with(|late| late.0.set(Some((its, address))));
        })
        .join()
        .unwrap();
    }
    assert_eq!(heap.leases.lock().len(), heap.parked.lock().len(), "a cache of a thread that is not there");
    assert_eq!(heap.statistics().live_count, 0);
    heap.validate().unwrap();
}

#[test]
fn what_is_live_is_never_less_than_nothing_beside_threads_that_allocate() {
    let heap = heap("host", 0);
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let key = key(Stream::DEFAULT);
                while !is_over.load(Ordering::Relaxed) {
                    // The one comes by the slow way and goes by the fast one.
                    let slow = heap.allocate(Stream::DEFAULT, 512 * KIB, 64 * KIB, 0).unwrap();
                    let fast = allocate(&heap, key, Stream::DEFAULT, 4 * KIB);
                    free(&heap, key, Stream::DEFAULT, slow);
                    free(&heap, key, Stream::DEFAULT, fast);
                }
            });
        }
        for _ in 0..3_000 {
            let statistics = heap.statistics();
            let most = 2 * (512 + 4) * KIB * 1000;
            assert!(statistics.live_bytes < most && statistics.live_count < 4000, "{statistics:?}");
        }
        is_over.store(true, Ordering::Relaxed);
    });
    assert_eq!((heap.statistics().live_bytes, heap.statistics().live_count), (0, 0));
}

/// Puts an idle block elsewhere.
fn shift_idle(core: &mut Core, by: i64) {
    let block = core.idle_large.take_any().unwrap();
    core.idle_large.insert(Freed { id: block.id.wrapping_add_signed(by), ..block });
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
    assert!(heap.core.lock().idle_large.len() > 0 && heap.core.lock().order.count() > 0);
    heap.validate().unwrap();
    let forgeries: [Forgery; 7] = [
        ("the sum of idle blocks", |core| core.idle_large_bytes += 1, |core| core.idle_large_bytes -= 1),
        ("the place of an idle block", |core| shift_idle(core, 1), |core| shift_idle(core, -1)),
        (
            "a block that waits and is nobody's",
            |core| {
                let block =
                    Freed { class: FITTED, id: u64::from(core.middle.capacity() - 1), bytes: 8 * KIB };
                core.limbo.push(Limbo { waits: Waits::default(), block });
            },
            |core| assert_eq!(core.limbo.take_past(false).len(), 1),
        ),
        (
            "a block that waits twice",
            |core| {
                let block = core.order.take_same(Stream::DEFAULT, FITTED).unwrap();
                core.limbo.push(Limbo { waits: Waits::default(), block });
                core.order.free(Stream::DEFAULT, block);
            },
            |core| assert_eq!(core.limbo.take_past(false).len(), 1),
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
            "addresses that are set aside and to be had",
            |core| assert!(core.aside.insert(Aside { number: LARGE, start: 4096, count: 1 })),
            |core| assert!(core.aside.pop_last().is_some()),
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

#[test]
fn what_is_held_is_weighed_while_another_thread_maps() {
    let heap = heap("host", 0);
    let address = heap.allocate(Stream::DEFAULT, 512, 0, 0).unwrap();
    let (region, _) = heap.block_at(address).unwrap();
    let backed_bytes = heap.backed_bytes();
    let (first, end) = region.pages(64 * SLAB_PAGE_BYTES, SLAB_PAGE_BYTES);
    let seen = Cell::new(None);
    // Called between the mapping and its end, with the lock of the table held.
    let look = |_: &[DeviceSlice]| {
        seen.set(Some((heap.weigh(), heap.backed_bytes())));
        Ok(())
    };
    region.range.back(first, end, &look).unwrap();
    assert_eq!(seen.get(), Some((false, backed_bytes)));
    assert_eq!(heap.backed_bytes(), backed_bytes + SLAB_PAGE_BYTES);
    region.range.unback(first, end, None).unwrap();
    assert_eq!(heap.backed_bytes(), backed_bytes);
    region.range.validate().unwrap();
}

#[test]
fn a_refusal_for_want_of_addresses_says_so_and_is_not_tried_again() {
    let heap = short();
    heap.region(MIDDLE).unwrap();
    {
        // As if every address were a live block's.
        let mut core = heap.core.lock();
        let free: Vec<(u32, u32)> = core.middle.free_ranges().collect();
        free.into_iter().for_each(|(start, count)| core.middle.carve(start, count).unwrap());
        let gaps: Vec<_> = core.middle.ranges().filter(|range| range.state == State::Gap).collect();
        for gap in gaps {
            core.middle.insert(gap.start, gap.count).unwrap();
            core.middle.carve(gap.start, gap.count).unwrap();
        }
    }
    let refused = heap.take_fitted(Stream::DEFAULT, 40 * KIB, 256, false, false).unwrap_err();
    assert_eq!(refused.status, Status::OutOfMemory);
    assert!(refused.text.contains("addresses of middle sizes"), "{}", refused.text);
}
