//! Mappings that the device does not remove when it is told to: their memory is nobody's, their addresses are not lost.

use std::sync::Arc;

use kavern::device::{Stream, registry};
use kavern::error::Status;
use kavern::event::NoSink;
use kavern::memory::{Limits, Memory};

use super::support::{device_bytes, devices, mark, marks, memory_of, range, refused, with};

fn held_bytes(memory: &Arc<Memory>) -> u64 {
    memory.physical().unwrap().statistics().held_bytes
}

#[test]
fn addresses_of_a_mapping_that_the_device_kept_once_get_memory_again() {
    for device in devices() {
        for nth in 1..=4 {
            let memory = memory_of(&with(&device, &format!("kind=unmap&fail_nth={nth}")));
            let unit = memory.device().description().page_bytes;
            let range = range(&memory, 100, true);
            for round in 0..4 {
                range.commit(0, 100 * unit).unwrap();
                let part = range.slice().part(64 * unit, 36 * unit).unwrap();
                mark(memory.device().as_ref(), part, round);
                assert_eq!(marks(memory.device().as_ref(), part), [round; 2]);
                let stream = (round % 2 == 1).then_some(Stream::DEFAULT);
                range.decommit(40 * unit, 60 * unit, stream).unwrap();
                memory.device().synchronize().unwrap();
                range.collect();
                range.validate().unwrap();
            }
            assert_eq!(memory.physical().unwrap().statistics().failed_unmaps, 1, "{device} {nth}");
            assert_eq!(held_bytes(&memory), 64 * unit);
            drop(range);
            assert_eq!(held_bytes(&memory), 0);
            memory.trim_pages();
            if let Some(left) = device_bytes(memory.device().as_ref()) {
                assert_eq!(left, 0, "{device} {nth}");
            }
        }
    }
}

#[test]
fn the_upkeep_tries_a_mapping_again_that_the_device_kept() {
    // A simulated device has no thread that does the upkeep, so that it is done when this says so.
    let memory = memory_of("sim?seed=1&kind=unmap&fail_nth=1");
    let unit = memory.device().description().page_bytes;
    let range = range(&memory, 8, false);
    range.commit(0, 8 * unit).unwrap();
    range.decommit(0, 8 * unit, None).unwrap();
    let physical = memory.physical().unwrap();
    assert_eq!((held_bytes(&memory), range.statistics().physical_bytes), (8 * unit, 0), "nobody has them");
    physical.poll(1);
    assert_eq!(held_bytes(&memory), 0);
    // Nor does it ask a device that refuses for ever without a pause.
    let memory = memory_of("sim?seed=1&kind=unmap&fail_from=1");
    let range = super::support::range(&memory, 8, false);
    range.commit(0, 8 * unit).unwrap();
    range.decommit(0, 8 * unit, None).unwrap();
    assert_eq!(memory.physical().unwrap().poll(1), Some(1_000_000_000));
    assert_eq!(held_bytes(&memory), 8 * unit);
}

#[test]
fn a_commit_is_refused_with_what_the_device_says_as_long_as_it_keeps_a_mapping_there() {
    for device in devices() {
        let memory = memory_of(&with(&device, "kind=unmap&fail_from=1"));
        let unit = memory.device().description().page_bytes;
        let range = range(&memory, 100, true);
        range.commit(0, 100 * unit).unwrap();
        range.decommit(96 * unit, 3 * unit, None).unwrap();
        for _ in 0..3 {
            let before = range.statistics();
            let error = range.commit(0, 100 * unit).unwrap_err();
            assert_eq!(error.status, Status::Device);
            assert!(error.text.contains("injected fault"), "{}", error.text);
            assert_eq!(range.statistics(), before);
            range.validate().unwrap();
        }
        // What it keeps is told, and in nobody else's way.
        assert_eq!((held_bytes(&memory), range.statistics().physical_bytes), (100 * unit, 97 * unit));
        range.commit(99 * unit, unit).unwrap();
        range.commit(0, 96 * unit).unwrap();
        super::support::range(&memory, 3, true).commit(0, 3 * unit).unwrap();
    }
}

#[test]
fn addresses_of_a_commit_that_could_not_be_taken_back_get_memory_later() {
    let device = registry::open("host?memory_bytes=409600&page_bytes=4096&kind=unmap&fail_nth=1").unwrap();
    let [ours, others] =
        [(); 2].map(|()| Memory::new(Arc::clone(&device), Limits::default(), Arc::new(NoSink)));
    let theirs = range(&others, 80, false);
    theirs.commit(0, 80 * 4096).unwrap();
    let range = range(&ours, 30, false);
    // The device, which is not asked before so few pages, is full in the middle of it, and then does not unmap what
    // there is.
    assert_eq!(refused(range.commit(0, 30 * 4096)), Status::OutOfMemory);
    assert_eq!(ours.physical().unwrap().statistics().failed_unmaps, 1);
    drop(theirs);
    others.trim_pages();
    range.commit(0, 30 * 4096).unwrap();
    mark(device.as_ref(), range.slice(), 7);
    assert_eq!(marks(device.as_ref(), range.slice()), [7; 2]);
    drop(range);
    ours.trim_pages();
    assert_eq!(device_bytes(device.as_ref()), Some(0));
}
