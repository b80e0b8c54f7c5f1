//! Elastic ranges.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use kavern::device::{DeviceSlice, Stream};
use kavern::error::Status;
use kavern::event::NoSink;
use kavern::memory::{Elastic, ElasticConfig, ElasticStatistics, Extent, Limits, Memory};

use super::support::{device_bytes, each, mark, marks, memory_of, range, refused, seed, steps};

fn part(range: &Elastic, first: u64, pages: u64) -> DeviceSlice {
    let unit = range.statistics().page_bytes;
    range.slice().part(first * unit, pages * unit).unwrap()
}

#[test]
fn memory_comes_and_goes_behind_a_base_that_stays() {
    each(|memory, unit| {
        let device = memory.device();
        let before = device_bytes(device.as_ref());
        let range = range(memory, 100, true);
        let base = range.base();
        assert_eq!(
            range.statistics(),
            ElasticStatistics {
                capacity_bytes: 100 * unit,
                page_bytes: unit,
                ..ElasticStatistics::default()
            }
        );
        assert_eq!(
            range.commit(0, 3 * unit).unwrap(),
            Extent { offset: 0, bytes: 3 * unit, changed_bytes: 3 * unit }
        );
        mark(device.as_ref(), part(&range, 0, 3), 7);
        range.commit(2 * unit, 60 * unit).unwrap();
        assert_eq!(marks(device.as_ref(), part(&range, 0, 3)), [7, 7]);
        mark(device.as_ref(), part(&range, 0, 62), 8);
        let seen = range.statistics();
        assert_eq!(
            (seen.committed_bytes, seen.physical_bytes, seen.mapped_pages),
            (62 * unit, 62 * unit, 62)
        );
        // 0-2, 3-15, a middle one, 32-47 a middle one, 48-61: no large one fits.
        assert_eq!(seen.handles, 3 + 13 + 1 + 1 + 14);
        range.decommit(0, 100 * unit, None).unwrap();
        assert_eq!((range.statistics().physical_bytes, range.base()), (0, base));
        memory.physical().unwrap().trim(0);
        assert_eq!(device_bytes(device.as_ref()), before);
        range.validate().unwrap();
    });
}

#[test]
fn a_part_is_widened_to_pages_and_the_answer_says_so() {
    each(|memory, unit| {
        let config = ElasticConfig { capacity_bytes: 10 * unit - 1, page_bytes: 3 * unit, has_slabs: true };
        let range = Elastic::new(memory, config).unwrap();
        assert_eq!(range.statistics().capacity_bytes, 12 * unit);
        let got = range.commit(3 * unit - 1, 2).unwrap();
        assert_eq!(got, Extent { offset: 0, bytes: 6 * unit, changed_bytes: 6 * unit });
        assert!(range.is_committed(0, 6 * unit).unwrap() && range.is_committed(5 * unit, 1).unwrap());
        assert!(!range.is_committed(0, 6 * unit + 1).unwrap());
        let gone = range.decommit(5 * unit, 1, None).unwrap();
        assert_eq!(gone, Extent { offset: 3 * unit, bytes: 3 * unit, changed_bytes: 3 * unit });
        assert_eq!((range.statistics().committed_bytes, range.statistics().mapped_pages), (3 * unit, 1));
    });
}

#[test]
fn what_is_committed_twice_or_decommitted_twice_changes_nothing() {
    each(|memory, unit| {
        let range = range(memory, 8, true);
        assert_eq!(range.commit(0, 4 * unit).unwrap().changed_bytes, 4 * unit);
        mark(memory.device().as_ref(), part(&range, 0, 4), 3);
        assert_eq!(range.commit(0, 4 * unit).unwrap().changed_bytes, 0);
        // Overlapping: only what is new.
        assert_eq!(range.commit(2 * unit, 4 * unit).unwrap().changed_bytes, 2 * unit);
        assert_eq!(marks(memory.device().as_ref(), part(&range, 0, 4)), [3, 3]);
        assert_eq!(range.decommit(4 * unit, 4 * unit, None).unwrap().changed_bytes, 2 * unit);
        assert_eq!(range.decommit(4 * unit, 4 * unit, None).unwrap().changed_bytes, 0);
        assert_eq!(range.decommit(4 * unit, 4 * unit, Some(Stream::DEFAULT)).unwrap().changed_bytes, 0);
        assert_eq!(range.statistics().committed_bytes, 4 * unit);
    });
}

#[test]
fn what_makes_no_sense_is_refused_and_changes_nothing() {
    each(|memory, unit| {
        let make = |capacity_bytes, page_bytes| {
            Elastic::new(memory, ElasticConfig { capacity_bytes, page_bytes, has_slabs: true })
        };
        for (capacity, page) in [(0, 0), (unit, 1), (unit, unit + 1), (unit, unit / 2), (u64::MAX, 0)] {
            assert_eq!(refused(make(capacity, page)), Status::InvalidArgument, "{capacity} {page}");
        }
        let range = range(memory, 4, true);
        range.commit(unit, unit).unwrap();
        let before = range.statistics();
        for (offset, bytes) in
            [(0, 0), (0, 5 * unit), (4 * unit, 1), (u64::MAX, 2), (1, u64::MAX), (u64::MAX, u64::MAX)]
        {
            assert_eq!(refused(range.commit(offset, bytes)), Status::InvalidArgument);
            assert_eq!(refused(range.decommit(offset, bytes, None)), Status::InvalidArgument);
            assert_eq!(refused(range.is_committed(offset, bytes)), Status::InvalidArgument);
            assert_eq!(refused(range.pin(offset, bytes)), Status::InvalidArgument);
        }
        assert_eq!(refused(range.resize(5 * unit, None)), Status::InvalidArgument);
        assert_eq!(range.statistics(), before);
    });
}

#[test]
fn tens_of_tebibytes_of_addresses_cost_nothing() {
    each(|memory, unit| {
        if memory.device().simulator().is_some() {
            // Simulated addresses are fewer.
            return;
        }
        let config = ElasticConfig { capacity_bytes: 32 << 40, page_bytes: 0, has_slabs: true };
        let range = Elastic::new(memory, config).unwrap();
        let last = (32 << 40) - unit;
        range.commit(last, unit).unwrap();
        mark(memory.device().as_ref(), range.slice().part(last, unit).unwrap(), 1);
        assert_eq!(range.decommit(0, 32 << 40, None).unwrap().changed_bytes, unit);
        range.resize(unit, None).unwrap();
        assert!(range.is_committed(0, unit).unwrap());
    });
}

#[test]
fn a_slab_goes_when_its_last_page_is_given_up_and_single_pages_at_once() {
    each(|memory, unit| {
        let slabs = range(memory, 32, true);
        slabs.commit(0, 32 * unit).unwrap();
        assert_eq!(slabs.statistics().handles, 1);
        mark(memory.device().as_ref(), part(&slabs, 4, 1), 9);
        slabs.decommit(0, 4 * unit, None).unwrap();
        slabs.decommit(5 * unit, 27 * unit, None).unwrap();
        let seen = slabs.statistics();
        assert_eq!(
            (seen.committed_bytes, seen.retained_bytes, seen.physical_bytes),
            (unit, 31 * unit, 32 * unit)
        );
        // Taken again without the device, and nothing that stayed is touched.
        let calls = memory.physical().unwrap().statistics().table_changes;
        assert_eq!(slabs.commit(0, 8 * unit).unwrap().changed_bytes, 7 * unit);
        assert_eq!(memory.physical().unwrap().statistics().table_changes, calls);
        assert_eq!(marks(memory.device().as_ref(), part(&slabs, 4, 1)), [9, 9]);
        slabs.decommit(0, 8 * unit, None).unwrap();
        assert_eq!((slabs.statistics().physical_bytes, slabs.statistics().retained_bytes), (0, 0));

        let single = range(memory, 32, false);
        single.commit(0, 32 * unit).unwrap();
        single.decommit(0, 31 * unit, None).unwrap();
        assert_eq!((single.statistics().physical_bytes, single.statistics().retained_bytes), (unit, 0));
    });
}

#[test]
fn a_range_is_resized_inside_its_capacity() {
    each(|memory, unit| {
        let range = range(memory, 40, true);
        assert_eq!(
            range.resize(36 * unit - 5, None).unwrap(),
            Extent { offset: 0, bytes: 36 * unit, changed_bytes: 36 * unit }
        );
        mark(memory.device().as_ref(), part(&range, 0, 33), 4);
        let less = range.resize(33 * unit, Some(Stream::DEFAULT)).unwrap();
        assert_eq!((less.bytes, less.changed_bytes), (33 * unit, 3 * unit));
        assert_eq!(marks(memory.device().as_ref(), part(&range, 0, 33)), [4, 4]);
        assert_eq!(range.resize(40 * unit, None).unwrap().changed_bytes, 7 * unit);
        assert_eq!(range.resize(0, None).unwrap(), Extent { offset: 0, bytes: 0, changed_bytes: 40 * unit });
        range.settle().unwrap();
        assert_eq!(range.statistics().physical_bytes, 0);
    });
}

#[test]
fn without_memory_a_commit_is_refused_as_a_whole() {
    each(|memory, unit| {
        let limits = Limits { device_limit_bytes: 40 * unit, ..Limits::default() };
        let memory = Memory::new(Arc::clone(memory.device()), limits, Arc::new(NoSink));
        let (one, two) = (range(&memory, 64, true), range(&memory, 64, true));
        one.commit(0, 10 * unit).unwrap();
        let before = (one.statistics(), two.statistics());
        let error = two.commit(0, 31 * unit).err().unwrap();
        assert_eq!(error.status, Status::OutOfMemory);
        let (asked, left) = (format!("{} bytes", 31 * unit), format!("{} available", 30 * unit));
        assert!(error.text.contains(&asked) && error.text.contains(&left), "{}", error.text);
        assert_eq!((one.statistics(), two.statistics()), before);
        // A large page does not fit any more, its parts do.
        two.commit(0, 30 * unit).unwrap();
        two.decommit(0, 30 * unit, Some(Stream::DEFAULT)).unwrap();
        memory.device().synchronize().unwrap();
        // What is only waiting for its turn is had by whoever needs it.
        one.commit(32 * unit, 30 * unit).unwrap();
        assert_eq!(one.statistics().committed_bytes, 40 * unit);
    });
}

#[test]
fn what_the_device_has_not_is_refused_before_any_of_it_is_made() {
    let memory = memory_of("host?memory_bytes=268435456&page_bytes=2097152");
    let (unit, all) = (2 << 20, 256 << 20);
    let range = range(&memory, 1024, true);
    let made =
        || memory.physical().unwrap().statistics().classes.iter().map(|class| class.created).sum::<u64>();
    let refuse = |offset: u64, bytes: u64, left: u64| {
        let error = range.commit(offset, bytes).err().unwrap();
        let (asked, left) =
            (format!("{bytes} bytes of physical memory requested"), format!("{left} available"));
        assert_eq!(error.status, Status::OutOfMemory);
        assert!(error.text.contains(&asked) && error.text.contains(&left), "{}", error.text);
        assert_eq!(range.statistics().committed_bytes, offset);
    };
    let before = made();
    refuse(0, 1024 * unit, all);
    assert_eq!(made(), before);
    range.commit(0, all - 3 * unit).unwrap();
    // Few pages are asked for one by one, and told as a whole.
    refuse(all - 3 * unit, 5 * unit, 3 * unit);
    range.validate().unwrap();
}

#[test]
fn a_pinned_part_stays_committed() {
    each(|memory, unit| {
        let range = range(memory, 8, true);
        range.commit(0, 4 * unit).unwrap();
        assert_eq!(refused(range.pin(3 * unit, 2 * unit)), Status::WrongState);
        range.pin(unit, 1).unwrap();
        range.pin(unit, unit).unwrap();
        assert_eq!(refused(range.decommit(0, 2 * unit, None)), Status::InUse);
        assert_eq!(refused(range.resize(unit, None)), Status::InUse);
        assert_eq!(range.statistics().committed_bytes, 4 * unit);
        range.decommit(0, unit, None).unwrap();
        assert_eq!(refused(range.unpin(unit, 2 * unit)), Status::NotFound);
        range.unpin(unit, unit).unwrap();
        assert_eq!(refused(range.decommit(unit, unit, None)), Status::InUse);
        range.unpin(unit, unit).unwrap();
        assert_eq!(refused(range.unpin(unit, unit)), Status::NotFound);
        range.decommit(0, 8 * unit, None).unwrap();
        assert_eq!(range.statistics().pins, 0);
    });
}

#[test]
fn nothing_is_pinned_that_a_resize_is_about_to_decommit() {
    let memory = memory_of("host");
    let (unit, resizer) = (memory.device().description().page_bytes, std::thread::current().id());
    let range = range(&memory, 8, false);
    range.commit(4 * unit, 4 * unit).unwrap();
    let ((enter, entered), (leave, left)) = (channel::<()>(), channel::<()>());
    let ends = kavern::sync::Mutex::new(Some((enter, left)));
    // Asked in the middle of the first half of the resize, where the range has its lock.
    memory.physical().unwrap().set_quiet(Some(Arc::new(move || {
        let is_here = std::thread::current().id() == resizer;
        if let Some((enter, left)) = is_here.then(|| ends.lock().take()).flatten() {
            enter.send(()).unwrap();
            let _ = left.recv_timeout(Duration::from_secs(10));
        }
        true
    })));
    std::thread::scope(|scope| {
        let range = &range;
        let pinning = scope.spawn(move || {
            entered.recv().unwrap();
            let pinned = range.pin(5 * unit, unit);
            let _ = leave.send(());
            pinned
        });
        assert_eq!(range.resize(2 * unit, None).unwrap().changed_bytes, 6 * unit);
        assert_eq!(refused(pinning.join().unwrap()), Status::InUse);
    });
    range.pin(0, 2 * unit).unwrap();
    assert_eq!(refused(range.resize(unit, None)), Status::InUse);
    range.unpin(0, 2 * unit).unwrap();
    assert_eq!(range.statistics().committed_bytes, 2 * unit);
}

#[test]
fn ranges_of_several_devices_do_not_meet() {
    if std::env::var_os("KAVERN_TEST_DEVICE").is_some() {
        return;
    }
    let memories = [memory_of("host:0"), memory_of("host:1"), memory_of("sim")];
    let ranges = memories.each_ref().map(|memory| range(memory, 4, true));
    for (number, (memory, range)) in memories.iter().zip(&ranges).enumerate() {
        range.commit(0, 1).unwrap();
        mark(memory.device().as_ref(), part(range, 0, 1), number as u64);
    }
    for (number, (memory, range)) in memories.iter().zip(&ranges).enumerate() {
        assert_eq!(marks(memory.device().as_ref(), part(range, 0, 1)), [number as u64; 2]);
        assert_eq!(memory.physical().unwrap().statistics().held_bytes, range.statistics().page_bytes);
    }
}

#[test]
fn a_range_that_has_ended_has_no_memory_though_somebody_still_looks_at_it() {
    each(|memory, unit| {
        let range = range(memory, 8, true);
        range.commit(0, 8 * unit).unwrap();
        range.decommit(0, 4 * unit, Some(Stream::DEFAULT)).unwrap();
        let looked_at = memory.elastics();
        assert_eq!((looked_at.len(), memory.elastic_bytes()), (1, 4 * unit));
        range.end();
        assert_eq!(memory.physical().unwrap().statistics().held_bytes, 0);
        assert_eq!((memory.elastic_bytes(), looked_at[0].statistics().physical_bytes), (0, 0));
        memory.validate().unwrap();
    });
}

/// Work that reads and writes a part, where the device can be told of it; a fill elsewhere.
fn use_part(memory: &Memory, stream: Stream, part: DeviceSlice) {
    match memory.device().simulator() {
        Some(simulator) => simulator.declare(stream, &[part], &[part]).unwrap(),
        None => memory.device().memset(stream, part, 1).unwrap(),
    }
}

#[test]
fn pages_stay_until_the_stream_that_was_told_is_past() {
    each(|memory, unit| {
        let device = memory.device();
        let stream = device.stream_create().unwrap();
        let range = range(memory, 64, true);
        for _ in 0..20 {
            range.commit(0, 40 * unit).unwrap();
            use_part(memory, stream, part(&range, 0, 40));
            range.decommit(0, 35 * unit, Some(stream)).unwrap();
            range.collect();
            // Used again while they were on their way: the commit waits for the stream.
            range.commit(0, 10 * unit).unwrap();
            use_part(memory, Stream::DEFAULT, part(&range, 0, 10));
            device.stream_synchronize(Stream::DEFAULT).unwrap();
            range.decommit(0, 64 * unit, Some(stream)).unwrap();
        }
        range.settle().unwrap();
        assert_eq!((range.statistics().physical_bytes, range.statistics().leaving_bytes), (0, 0));
        range.validate().unwrap();
        device.stream_destroy(stream).unwrap();
        assert_eq!(device.race_count(), 0);
    });
}

#[test]
fn retained_pages_are_used_again_only_behind_their_stream() {
    each(|memory, unit| {
        let device = memory.device();
        let stream = device.stream_create().unwrap();
        let range = range(memory, 32, true);
        for _ in 0..20 {
            range.commit(0, 32 * unit).unwrap();
            use_part(memory, stream, part(&range, 0, 32));
            // The slab stays for its other half, so nobody but the commit has reason to ask for the stream.
            range.decommit(0, 20 * unit, Some(stream)).unwrap();
            range.commit(0, 10 * unit).unwrap();
            use_part(memory, Stream::DEFAULT, part(&range, 0, 10));
            device.synchronize().unwrap();
        }
        device.stream_destroy(stream).unwrap();
        assert_eq!(device.race_count(), 0);
    });
}

#[test]
fn a_simulated_device_finds_the_decommit_that_does_not_wait() {
    let found = (0..10).filter(|seed| {
        let memory = memory_of(&format!("sim?seed={seed}"));
        let unit = memory.device().description().page_bytes;
        let stream = memory.device().stream_create().unwrap();
        let range = range(&memory, 1, true);
        range.commit(0, unit).unwrap();
        use_part(&memory, stream, part(&range, 0, 1));
        // The lie: work is under way, and no stream is told.
        range.decommit(0, unit, None).unwrap();
        let _ = memory.device().synchronize();
        memory.device().race_count() > 0
    });
    assert_eq!(found.count(), 10);
}

/// What a range should have, page by page.
struct Model {
    pages: Vec<Option<u64>>,
}

#[test]
fn random_commits_and_decommits_keep_what_was_written() {
    let seed = seed();
    each(|memory, unit| {
        let mut random = fastrand::Rng::with_seed(seed);
        let device = memory.device();
        let streams = [(); 2].map(|()| device.stream_create().unwrap());
        let range = range(memory, 150, true);
        let mut model = Model { pages: vec![None; 150] };
        for step in 0..steps(1500, 50_000) {
            let first = random.u64(0..150);
            let pages = random.u64(1..=(150 - first).min(70));
            let (low, high) = (first as usize, (first + pages) as usize);
            let new = |model: &Model, is: fn(&Option<u64>) -> bool| {
                model.pages[low..high].iter().filter(|page| is(page)).count() as u64 * unit
            };
            if random.bool() {
                let got = range.commit(first * unit, pages * unit).unwrap();
                assert_eq!(got.changed_bytes, new(&model, Option::is_none), "seed {seed}, step {step}");
                for page in low..high {
                    if model.pages[page].is_none() {
                        mark(device.as_ref(), part(&range, page as u64, 1), step * 1000 + page as u64);
                        model.pages[page] = Some(step * 1000 + page as u64);
                    }
                }
            } else {
                let stream = *random.choice(&[None, Some(streams[0]), Some(streams[1])]).unwrap();
                let got = range.decommit(first * unit, pages * unit, stream).unwrap();
                assert_eq!(got.changed_bytes, new(&model, Option::is_some), "seed {seed}, step {step}");
                model.pages[low..high].fill(None);
            }
            let page = random.u64(0..150);
            let expected = model.pages[page as usize];
            assert_eq!(range.is_committed(page * unit, 1).unwrap(), expected.is_some());
            if let Some(number) = expected {
                let seen = marks(device.as_ref(), part(&range, page, 1));
                assert_eq!(seen, [number; 2], "seed {seed}, step {step}, page {page}");
            }
            range.validate().unwrap();
        }
        range.settle().unwrap();
        let live = model.pages.iter().flatten().count() as u64 * unit;
        let seen = range.statistics();
        assert_eq!(seen.committed_bytes, live);
        assert_eq!(memory.physical().unwrap().statistics().held_bytes, seen.physical_bytes);
        drop(range);
        assert_eq!(memory.physical().unwrap().statistics().held_bytes, 0);
        for stream in streams {
            device.stream_destroy(stream).unwrap();
        }
        assert_eq!(device.race_count(), 0, "seed {seed}");
    });
}

#[test]
fn threads_commit_and_decommit_parts_of_their_own() {
    each(|memory, unit| {
        let range = range(memory, 4 * 40, true);
        std::thread::scope(|scope| {
            for thread in 0..4_u64 {
                let (range, memory) = (&range, &memory);
                scope.spawn(move || {
                    for round in 0..steps(100, 5000) {
                        let first = thread * 40;
                        range.commit(first * unit, 40 * unit).unwrap();
                        mark(memory.device().as_ref(), part(range, first, 40), round);
                        assert_eq!(marks(memory.device().as_ref(), part(range, first, 40)), [round; 2]);
                        range.decommit(first * unit, 40 * unit, None).unwrap();
                    }
                });
            }
        });
        assert_eq!(range.statistics().physical_bytes, 0);
        range.validate().unwrap();
    });
}

#[test]
fn a_panic_of_the_device_leaves_a_range_that_can_be_used_on() {
    if std::env::var_os("KAVERN_TEST_DEVICE").is_some() {
        return;
    }
    let mut panics = 0;
    for nth in 1..60 {
        let memory = memory_of(&format!("host?fail_nth={nth}&error=panic"));
        let unit = memory.device().description().page_bytes;
        let used = std::panic::catch_unwind(AssertUnwindSafe(|| {
            let range = range(&memory, 64, true);
            let first = std::panic::catch_unwind(AssertUnwindSafe(|| range.commit(unit, 40 * unit).unwrap()));
            range.validate().unwrap();
            range.commit(unit, 40 * unit).unwrap();
            mark(memory.device().as_ref(), part(&range, 1, 40), 5);
            range.decommit(0, 64 * unit, Some(Stream::DEFAULT)).unwrap();
            drop(range);
            first.is_err()
        }));
        panics += u32::from(!matches!(used, Ok(false)));
        memory.trim_pages();
        let held = memory.physical().map(|physical| physical.statistics().held_bytes);
        assert_eq!(held.unwrap(), 0, "call {nth}");
        assert_eq!(device_bytes(memory.device().as_ref()), Some(0), "call {nth}");
    }
    assert!(panics > 20, "{panics}");
}
