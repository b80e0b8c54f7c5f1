//! One small program for each class of bug, and its correct twin: the bug is found with every seed, the twin never.

use kavern::device::FindingKind::{self, *};
use kavern::device::{Access, Copy, Place};

use super::support::{BLOCK, Engine, kinds, spec};

/// Programs of one class are run with so many seeds.
const SEEDS: u64 = 1000;

/// Runs `program` with the bug and without. The first kind has to be found, the others may.
fn found(expected: &[FindingKind], program: impl Fn(&mut Engine, bool)) {
    for seed in 0..SEEDS {
        for is_right in [false, true] {
            let mut engine = Engine::new(&spec(seed));
            engine.noise(4 + seed % 5);
            program(&mut engine, is_right);
            engine.noise(4);
            let report = engine.finish();
            if is_right {
                assert_eq!(kinds(&report), [], "seed {seed}: {}", report.to_json());
                continue;
            }
            assert!(report.count(expected[0]) > 0, "seed {seed}: {}", report.to_json());
            let is_expected = kinds(&report).iter().all(|kind| expected.contains(kind));
            assert!(is_expected, "seed {seed}: {}", report.to_json());
        }
    }
}

#[test]
fn an_offload_that_does_not_wait_for_the_compute() {
    found(&[ReadAfterWrite], |engine, is_right| {
        engine.launch(engine.compute, &[], &[engine.block(1)]);
        if is_right {
            engine.order(engine.compute, engine.transfer);
        }
        engine.offload(engine.transfer, 1, 0);
    });
}

#[test]
fn a_slot_that_is_reused_before_its_offload_has_read_it() {
    found(&[WriteAfterRead], |engine, is_right| {
        engine.launch(engine.compute, &[], &[engine.block(1)]);
        engine.order(engine.compute, engine.transfer);
        engine.offload(engine.transfer, 1, 0);
        if is_right {
            engine.order(engine.transfer, engine.compute);
        }
        engine.launch(engine.compute, &[], &[engine.block(1)]);
    });
}

#[test]
fn a_staging_buffer_that_the_host_fills_again_too_early() {
    found(&[PinnedReuse], |engine, is_right| {
        engine.staging.values_mut::<u8>(0, 64).unwrap().fill(1);
        engine.restore(engine.transfer, 0, 1);
        // Whether the copy ran by now does not matter: the host does not know.
        engine.noise(5);
        if is_right {
            engine.synchronize(engine.transfer);
        }
        engine.staging.values_mut::<u8>(0, 64).unwrap().fill(2);
    });
}

#[test]
fn two_streams_that_write_the_same_block() {
    found(&[WriteAfterWrite], |engine, is_right| {
        engine.launch(engine.compute, &[], &[engine.block(1)]);
        if is_right {
            engine.order(engine.compute, engine.other);
        }
        engine.device.memset(engine.other, engine.block(1), 0).unwrap();
    });
}

#[test]
fn a_launch_on_memory_that_was_freed() {
    found(&[UseAfterFree], |engine, is_right| {
        let scratch = engine.device.memory_allocate(BLOCK).unwrap();
        engine.launch(engine.compute, &[], &[scratch]);
        if is_right {
            engine.launch(engine.compute, &[scratch], &[]);
        }
        engine.device.memory_free(scratch).unwrap();
        if !is_right {
            engine.launch(engine.compute, &[scratch], &[]);
        }
    });
}

#[test]
fn a_free_in_stream_order_while_another_stream_reads() {
    found(&[FreeWhilePending], |engine, is_right| {
        let scratch = engine.device.memory_allocate_async(BLOCK, engine.compute).unwrap();
        engine.launch(engine.compute, &[], &[scratch]);
        engine.order(engine.compute, engine.transfer);
        engine.launch(engine.transfer, &[scratch], &[]);
        if is_right {
            engine.order(engine.transfer, engine.compute);
        }
        engine.device.memory_free_async(scratch, engine.compute).unwrap();
    });
}

#[test]
fn memory_of_one_stream_used_on_another() {
    found(&[UnorderedReuse], |engine, is_right| {
        let scratch = engine.device.memory_allocate_async(BLOCK, engine.compute).unwrap();
        if is_right {
            engine.order(engine.compute, engine.other);
        }
        engine.launch(engine.other, &[], &[scratch]);
    });
}

#[test]
fn an_event_that_is_recorded_before_the_work() {
    found(&[ReadAfterWrite, WrongValue], |engine, is_right| {
        let event = engine.event();
        if !is_right {
            engine.device.event_record(event, engine.compute).unwrap();
        }
        engine.launch(engine.compute, &[], &[engine.block(1)]);
        if is_right {
            engine.device.event_record(event, engine.compute).unwrap();
        }
        engine.device.stream_wait_event(engine.transfer, event).unwrap();
        engine.launch(engine.transfer, &[engine.block(1)], &[]);
    });
}

#[test]
fn a_wait_for_an_event_that_was_never_recorded() {
    found(&[UnrecordedWait, ReadAfterWrite, WrongValue], |engine, is_right| {
        let event = engine.event();
        engine.launch(engine.compute, &[], &[engine.block(1)]);
        if is_right {
            engine.device.event_record(event, engine.compute).unwrap();
        }
        engine.device.stream_wait_event(engine.transfer, event).unwrap();
        engine.launch(engine.transfer, &[engine.block(1)], &[]);
    });
}

#[test]
fn a_wait_on_the_wrong_stream() {
    found(&[ReadAfterWrite, WrongValue], |engine, is_right| {
        engine.launch(engine.compute, &[], &[engine.block(1), engine.block(2)]);
        engine.order(engine.compute, if is_right { engine.transfer } else { engine.other });
        engine.launch(engine.transfer, &[engine.block(2)], &[engine.block(3)]);
    });
}

#[test]
fn an_event_that_is_recorded_again_elsewhere_before_the_wait() {
    found(&[ReadAfterWrite, WrongValue], |engine, is_right| {
        let event = engine.event();
        engine.launch(engine.compute, &[], &[engine.block(1)]);
        engine.device.event_record(event, engine.compute).unwrap();
        if !is_right {
            engine.device.event_record(event, engine.other).unwrap();
        }
        engine.device.stream_wait_event(engine.transfer, event).unwrap();
        engine.launch(engine.transfer, &[engine.block(1)], &[]);
    });
}

#[test]
fn a_host_that_reads_without_waiting_for_the_stream() {
    found(&[ReadAfterWrite], |engine, is_right| {
        engine.launch(engine.compute, &[], &[engine.block(1)]);
        if is_right {
            engine.synchronize(engine.compute);
        }
        let mut bytes = [0; BLOCK as usize];
        engine.device.read(engine.block(1), &mut bytes).unwrap();
    });
}

#[test]
fn a_write_that_overruns_into_the_next_block() {
    found(&[WriteAfterWrite], |engine, is_right| {
        let overrun = if is_right { 0 } else { 8 };
        let written = engine.pool.part(BLOCK, BLOCK + overrun).unwrap();
        engine.launch(engine.other, &[], &[engine.block(2)]);
        engine.launch(engine.compute, &[], &[written]);
    });
}

#[test]
fn addresses_that_are_unmapped_under_work() {
    found(&[FreeWhilePending], |engine, is_right| {
        let device = &engine.device;
        let unit = device.description().page_bytes;
        let (range, page) = (device.virtual_reserve(unit).unwrap(), device.page_create(unit).unwrap());
        device.virtual_map(range, page).unwrap();
        device.virtual_set_access(range, Access::ReadWrite).unwrap();
        engine.launch(engine.compute, &[], &[range.part(64, 128).unwrap()]);
        engine.noise(2);
        if is_right {
            engine.synchronize(engine.compute);
        }
        device.virtual_unmap(range).unwrap();
        device.page_release(page).unwrap();
    });
}

#[test]
fn two_addresses_of_one_page() {
    found(&[WriteAfterWrite], |engine, is_right| {
        let device = &engine.device;
        let unit = device.description().page_bytes;
        let page = device.page_create(unit).unwrap();
        let [one, other] = [(); 2].map(|()| {
            let range = device.virtual_reserve(unit).unwrap();
            device.virtual_map(range, page).unwrap();
            device.virtual_set_access(range, Access::ReadWrite).unwrap();
            range
        });
        engine.launch(engine.compute, &[], &[one.part(0, 128).unwrap()]);
        // Other bytes of the page need no order.
        engine.launch(engine.transfer, &[], &[other.part(if is_right { 128 } else { 64 }, 128).unwrap()]);
        engine.synchronize(engine.compute);
        engine.synchronize(engine.transfer);
        [one, other].into_iter().for_each(|range| device.virtual_unmap(range).unwrap());
        device.page_release(page).unwrap();
    });
}

#[test]
fn two_offloads_into_the_same_staging() {
    found(&[WriteAfterWrite], |engine, is_right| {
        engine.offload(engine.compute, 1, 0);
        if is_right {
            engine.order(engine.compute, engine.transfer);
        }
        engine.offload(engine.transfer, 2, 0);
    });
}

#[test]
fn a_restore_that_the_attention_does_not_wait_for() {
    found(&[ReadAfterWrite], |engine, is_right| {
        engine.restore(engine.transfer, 0, 1);
        if is_right {
            engine.order(engine.transfer, engine.compute);
        }
        engine.launch(engine.compute, &[engine.block(1)], &[engine.block(2)]);
    });
}

#[test]
fn a_copy_from_a_peer_that_is_still_writing() {
    found(&[ReadAfterWrite], |engine, is_right| {
        let peer = Engine::new("sim:1?seed=1");
        engine.device.peer_enable(peer.device.key()).unwrap();
        peer.launch(peer.compute, &[], &[peer.block(1)]);
        if is_right {
            peer.synchronize(peer.compute);
        }
        let copy = Copy { target: Place::Device(engine.block(1)), source: Place::Device(peer.block(1)) };
        engine.device.copy(engine.transfer, copy).unwrap();
        engine.synchronize(engine.transfer);
        assert_eq!(peer.finish().races() > 0, !is_right, "both devices are told");
    });
}
