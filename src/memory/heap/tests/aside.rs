//! Addresses at which the device keeps a mapping that it was asked to remove.

use super::*;

const KIB: u64 = 1024;
/// One for each way in which memory gets behind addresses.
const SIZES: [u64; 5] = [KIB, 300 * KIB, 5 * MIB, 40 * MIB, 100 * MIB];

fn use_and_free(heap: &Arc<Heap>, bytes: u64) -> u64 {
    let address = heap.allocate(Stream::DEFAULT, bytes, 0, 0).unwrap();
    fill(heap, address, bytes.min(KIB));
    assert!(is_filled(heap, address, bytes.min(KIB)));
    heap.free(Stream::DEFAULT, address).unwrap();
    address
}

fn is_any_aside(heap: &Heap) -> bool {
    !heap.core.lock().aside.is_empty()
}

#[test]
fn a_mapping_that_the_device_keeps_ends_no_size() {
    for device in ["host?page_bytes=2097152&", "host?", "sim?page_bytes=2097152&"] {
        let heap = heap(&format!("{device}kind=unmap&fail_from=1"), 0);
        for bytes in SIZES {
            let first = use_and_free(&heap, bytes);
            give_all_back(&heap);
            for _ in 0..3 {
                assert_ne!(use_and_free(&heap, bytes), first, "{bytes} bytes on {device}");
            }
            heap.validate().unwrap();
        }
        assert!(is_any_aside(&heap));
        // With all that it has kept there is room for others still.
        for bytes in SIZES {
            use_and_free(&heap, bytes);
        }
    }
}

#[test]
fn a_kept_mapping_is_not_tried_by_each_request() {
    let heap = heap("sim?page_bytes=2097152&kind=unmap&fail_from=1", 0);
    for bytes in SIZES {
        use_and_free(&heap, bytes);
        give_all_back(&heap);
        use_and_free(&heap, bytes);
        let calls = heap.device.call_count();
        let many: Vec<u64> = (0..8).map(|_| heap.allocate(Stream::DEFAULT, bytes, 0, 0).unwrap()).collect();
        assert_eq!(heap.device.call_count(), calls, "{bytes} bytes");
        many.into_iter().for_each(|address| heap.free(Stream::DEFAULT, address).unwrap());
    }
    heap.validate().unwrap();
}

#[test]
fn addresses_from_which_the_mapping_has_gone_are_used_again() {
    for bytes in SIZES {
        // The first eight removals fail, the next ten do not.
        let heap = heap("sim?page_bytes=2097152&kind=unmap&fail_rate=0.5&seed=36391", 0);
        let first = use_and_free(&heap, bytes);
        give_all_back(&heap);
        assert_ne!(use_and_free(&heap, bytes), first, "{bytes} bytes");
        assert!(is_any_aside(&heap));
        while heap.device.call_count() < 8 {
            heap.physical.collect();
            heap.trim().unwrap();
            assert!(is_any_aside(&heap));
            heap.validate().unwrap();
        }
        give_all_back(&heap);
        assert!(!is_any_aside(&heap));
        assert_eq!(use_and_free(&heap, bytes), first, "{bytes} bytes");
        heap.validate().unwrap();
    }
}

#[test]
fn a_device_that_keeps_mappings_is_not_said_to_have_their_memory() {
    let seed = seed();
    let (mut yes, mut no) = (0, 0);
    for from in 1..=8 {
        let mut random = fastrand::Rng::with_seed(seed.wrapping_add(from));
        let heap = heap(&format!("sim?page_bytes=2097152&kind=unmap&fail_from={from}"), 256 * MIB);
        let mut live = Vec::new();
        for turn in 0..200 {
            if random.bool() && !live.is_empty() {
                heap.free(Stream::DEFAULT, live.swap_remove(random.usize(..live.len()))).unwrap();
            } else {
                let bytes = if random.u32(..7) == 0 {
                    some_bytes(&mut random, 10, 20)
                } else {
                    random.u64(1..60 * MIB)
                };
                let is_keeping = heap.physical.statistics().failed_unmaps > 0;
                let can = heap.can_allocate(bytes, 0).unwrap();
                match heap.allocate(Stream::DEFAULT, bytes, 0, 0) {
                    Ok(address) => live.push(address),
                    Err(error) => {
                        let place =
                            format!("{bytes} bytes, fail_from {from}, turn {turn}, seed {seed}: {error}");
                        assert_eq!(error.status, Status::OutOfMemory, "{place}");
                        assert!(!(can && is_keeping), "{place}");
                    }
                }
                (yes, no) = if can { (yes + 1, no) } else { (yes, no + 1) };
            }
            if turn % 100 == 99 {
                give_all_back(&heap);
                heap.validate().unwrap();
            }
        }
    }
    assert!(yes > 0 && no > 0, "{yes} and {no}");
}
