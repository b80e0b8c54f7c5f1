//! The memory room over every backend: owners, budget, ledger.

use std::sync::Arc;

use kavern::device::{Copy, Place, Stream, registry};
use kavern::error::Status;
use kavern::event::{Event, EventSink, Level, NoSink};
use kavern::memory::{Limits, Memory, STRATEGIES, Where};
use kavern::sync::Mutex;

use super::support::{Subject, assert_memory, bytes_of, each, refused};

#[derive(Default)]
struct Notes(Mutex<Vec<String>>);

impl EventSink for Notes {
    fn wants(&self, level: Level) -> bool {
        level == Level::Error
    }

    fn emit(&self, event: Event<'_>) {
        self.0.lock().push(format!("{}: {}", event.room, event.text));
    }
}

fn each_strategy(limits: Limits, sentence: impl Fn(&Subject, Arc<Memory>)) {
    each(|subject| {
        for strategy in STRATEGIES {
            sentence(subject, Memory::with_strategy(subject.open(), limits, Arc::new(NoSink), strategy));
        }
    });
}

#[test]
fn an_owner_gives_its_memory_back_when_it_is_dropped() {
    each_strategy(Limits::default(), |_, memory| {
        let before = memory.device().memory_info().unwrap();
        let first = memory.allocate(1000, "weights").unwrap();
        let mut second = memory.pinned(64, "staging").unwrap();
        assert_eq!((first.bytes(), first.slice().bytes(), second.bytes()), (1000, 1000, 64));
        second.values_mut::<u32>(0, 16).unwrap().fill(7);
        let target = Place::Device(first.slice().part(0, 64).unwrap());
        let copy = Copy { target, source: Place::Pinned(second.slice()) };
        memory.device().copy(Stream::DEFAULT, copy).unwrap();
        assert_eq!(bytes_of(&**memory.device(), first.slice().part(60, 4).unwrap()), [7, 0, 0, 0]);
        assert_eq!(second.values::<u32>(60, 1).unwrap(), [7]);

        let live = memory.live();
        let shown: Vec<_> = live.iter().map(|live| (live.place, live.bytes, live.tag.as_str())).collect();
        assert_eq!(shown, [(Where::Device, 1000, "weights"), (Where::Pinned, 64, "staging")]);
        assert_eq!(live[0].address, first.slice().address());
        assert!(live[0].age_ns >= live[1].age_ns);
        memory.validate().unwrap();
        drop(first);
        drop(second);
        assert!(memory.live().is_empty());
        let statistics = memory.statistics();
        assert_eq!((statistics.device.bytes, statistics.device.peak_bytes), (0, 1000));
        assert_eq!((statistics.pinned.count, statistics.pinned.total_count), (0, 1));
        assert_memory(&**memory.device(), before);
        memory.validate().unwrap();
    });
}

#[test]
fn nothing_is_not_allocated() {
    each_strategy(Limits::default(), |_, memory| {
        assert_eq!(refused(memory.allocate(0, "nothing")), Status::InvalidArgument);
        assert_eq!(refused(memory.pinned(0, "nothing")), Status::InvalidArgument);
        assert_eq!(memory.statistics().device.total_count, 0);
    });
}

#[test]
fn the_budget_refuses_what_is_over_it_and_forgets_failures() {
    let limits = Limits { device_limit_bytes: 1000, pinned_limit_bytes: 100, ..Limits::default() };
    each_strategy(limits, |_, memory| {
        let first = memory.allocate(600, "first").unwrap();
        let error = memory.allocate(401, "second").err().unwrap();
        assert_eq!(error.status, Status::OutOfMemory);
        assert!(error.text.contains("401") && error.text.contains("400") && error.text.contains("second"));
        let second = memory.allocate(400, "second").unwrap();
        refused(memory.allocate(1, "third"));
        drop(first);
        drop(memory.allocate(600, "third").unwrap());
        assert_eq!(refused(memory.pinned(101, "staging")), Status::OutOfHostMemory);
        drop(memory.pinned(100, "staging").unwrap());
        drop(second);
        assert_eq!(memory.statistics().device.peak_bytes, 1000);
        memory.validate().unwrap();
    });
}

#[test]
fn an_allocation_that_the_device_refuses_is_not_charged() {
    each(|subject| {
        for error in ["oom", "device", "panic"] {
            let device =
                registry::open(&format!("{}:0?fail_rate=0.5&seed=1&error={error}", subject.backend)).unwrap();
            let limits = Limits { device_limit_bytes: 4096, pinned_limit_bytes: 4096, ..Limits::default() };
            let memory = Memory::new(device, limits, Arc::new(NoSink));
            let mut failures = 0;
            for _ in 0..100 {
                let attempt = std::panic::AssertUnwindSafe(|| {
                    memory.allocate(4096, "whole").map(drop)?;
                    memory.pinned(4096, "whole").map(drop)
                });
                failures += u32::from(!matches!(std::panic::catch_unwind(attempt), Ok(Ok(()))));
                assert_eq!((memory.statistics().device.bytes, memory.statistics().pinned.bytes), (0, 0));
                memory.validate().unwrap();
            }
            assert!((1..100).contains(&failures), "{failures}");
        }
    });
}

#[test]
fn a_free_that_fails_is_told() {
    each(|subject| {
        let notes = Arc::new(Notes::default());
        let memory = Memory::new(subject.open(), Limits::default(), Arc::<Notes>::clone(&notes));
        let (first, second) = (memory.allocate(64, "taken").unwrap(), memory.pinned(64, "snatched").unwrap());
        // Somebody else frees what the owners hold; the device then refuses them.
        memory.device().memory_free(first.slice()).unwrap();
        memory.device().pinned_free(second.slice()).unwrap();
        drop(first);
        drop(second);
        let notes = notes.0.lock();
        assert_eq!(notes.len(), 2);
        assert!(notes[0].starts_with("memory: ") && notes[0].contains("\"taken\""), "{}", notes[0]);
        assert!(notes[1].contains("\"snatched\""), "{}", notes[1]);
        assert!(memory.live().is_empty());
        memory.validate().unwrap();
    });
}

#[test]
fn threads_allocate_and_free_without_losing_count() {
    let limits = Limits { device_limit_bytes: 64 << 10, pinned_limit_bytes: 0, ..Limits::default() };
    each_strategy(limits, |_, memory| {
        std::thread::scope(|scope| {
            for thread in 0..4u64 {
                let memory = &memory;
                scope.spawn(move || {
                    let mut held = Vec::new();
                    for round in 0..200 {
                        held.extend(memory.allocate(1 + (thread * 31 + round * 97) % 8192, "thread"));
                        if round % 3 == 0 {
                            held.pop();
                        }
                        if held.len() > 4 {
                            held.remove(0);
                        }
                        memory.validate().unwrap();
                        assert!(memory.statistics().device.bytes <= 64 << 10);
                    }
                });
            }
        });
        assert_eq!(memory.statistics().device.bytes, 0);
        memory.validate().unwrap();
    });
}
