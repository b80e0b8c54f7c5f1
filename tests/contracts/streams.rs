//! Streams, events and callbacks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use kavern::device::{Copy, Event, Place, Stream, registry};
use kavern::error::Status;
use kavern::sync::Mutex;

use super::support::{Gate, bytes_of, each, refused};

#[test]
fn work_on_one_stream_runs_in_order() {
    each(|subject| {
        let device = subject.open();
        let stream = device.stream_create().unwrap();
        let (a, b) = (device.memory_allocate(4096).unwrap(), device.memory_allocate(4096).unwrap());
        // More than any queue holds at first, so that growing is part of the sentence.
        for round in 0..1000u32 {
            device.memset(stream, a, round as u8).unwrap();
            let copy = Copy { target: Place::Device(b), source: Place::Device(a) };
            device.copy(stream, copy).unwrap();
        }
        device.memset(stream, a, 1).unwrap();
        device.stream_synchronize(stream).unwrap();
        assert!(device.stream_is_idle(stream).unwrap());
        assert_eq!(bytes_of(&*device, b), vec![999u32 as u8; 4096]);
        assert_eq!(bytes_of(&*device, a), vec![1; 4096]);
        device.memory_free(a).unwrap();
        device.memory_free(b).unwrap();
        device.stream_destroy(stream).unwrap();
    });
}

#[test]
fn an_event_orders_work_across_streams() {
    each(|subject| {
        let device = subject.open();
        let (first, second) = (device.stream_create().unwrap(), device.stream_create().unwrap());
        let (a, b) = (device.memory_allocate(64).unwrap(), device.memory_allocate(64).unwrap());
        let event = device.event_create().unwrap();
        let gate = Gate::close(&*device, first, || {});
        device.memset(first, a, 7).unwrap();
        device.event_record(event, first).unwrap();
        device.stream_wait_event(second, event).unwrap();
        device.copy(second, Copy { target: Place::Device(b), source: Place::Device(a) }).unwrap();
        assert!(!device.event_is_done(event).unwrap());
        assert!(!device.stream_is_idle(second).unwrap());
        gate.open();
        device.stream_synchronize(second).unwrap();
        assert!(device.event_is_done(event).unwrap());
        assert_eq!(bytes_of(&*device, b), vec![7; 64]);
    });
}

#[test]
fn waiting_on_a_never_recorded_event_does_not_wait() {
    each(|subject| {
        let device = subject.open();
        let (stream, event) = (device.stream_create().unwrap(), device.event_create().unwrap());
        assert!(device.event_is_done(event).unwrap());
        device.event_synchronize(event).unwrap();
        device.stream_wait_event(stream, event).unwrap();
        device.stream_synchronize(stream).unwrap();
    });
}

#[test]
fn recording_again_moves_the_mark_but_not_the_waits_before() {
    each(|subject| {
        let device = subject.open();
        let (held, waiting, idle) = (
            device.stream_create().unwrap(),
            device.stream_create().unwrap(),
            device.stream_create().unwrap(),
        );
        let event = device.event_create().unwrap();
        let gate = Gate::close(&*device, held, || {});
        device.event_record(event, held).unwrap();
        device.stream_wait_event(waiting, event).unwrap();
        device.event_record(event, idle).unwrap();
        assert!(device.event_is_done(event).unwrap() || !device.stream_is_idle(idle).unwrap());
        device.event_synchronize(event).unwrap();
        assert!(!device.stream_is_idle(waiting).unwrap(), "it waits for the mark of the time of its call");
        gate.open();
        device.stream_synchronize(waiting).unwrap();
    });
}

#[test]
fn a_destroyed_event_is_refused_and_its_waits_stay_good() {
    each(|subject| {
        let device = subject.open();
        let (held, waiting) = (device.stream_create().unwrap(), device.stream_create().unwrap());
        let event = device.event_create().unwrap();
        let is_done = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&is_done);
        let gate = Gate::close(&*device, held, move || flag.store(true, Ordering::SeqCst));
        device.event_record(event, held).unwrap();
        device.stream_wait_event(waiting, event).unwrap();
        device.event_destroy(event).unwrap();
        for status in [
            refused(device.event_record(event, held)),
            refused(device.event_is_done(event)),
            refused(device.event_synchronize(event)),
            refused(device.event_destroy(event)),
            refused(device.stream_wait_event(waiting, event)),
            refused(device.event_is_done(Event(u64::MAX))),
        ] {
            assert!(matches!(status, Status::StaleId | Status::InvalidArgument));
        }
        let other = device.event_create().unwrap();
        assert_ne!(other, event, "an event that came back is a new one");
        gate.open();
        device.stream_synchronize(waiting).unwrap();
        assert!(is_done.load(Ordering::SeqCst));
    });
}

#[test]
fn callbacks_run_in_the_order_of_their_stream() {
    each(|subject| {
        let device = subject.open();
        let stream = device.stream_create().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        for number in 0..100 {
            let seen = Arc::clone(&seen);
            device.stream_callback(stream, Box::new(move || seen.lock().push(number))).unwrap();
        }
        device.synchronize().unwrap();
        assert_eq!(*seen.lock(), (0..100).collect::<Vec<_>>());
    });
}

#[test]
fn destroying_a_stream_waits_for_its_work_and_later_use_is_refused() {
    each(|subject| {
        let device = subject.open();
        let (stream, event) = (device.stream_create().unwrap(), device.event_create().unwrap());
        let count = Arc::new(AtomicU32::new(0));
        for _ in 0..100 {
            let count = Arc::clone(&count);
            let add = move || {
                count.fetch_add(1, Ordering::SeqCst);
            };
            device.stream_callback(stream, Box::new(add)).unwrap();
        }
        device.event_record(event, stream).unwrap();
        device.stream_destroy(stream).unwrap();
        assert_eq!(count.load(Ordering::SeqCst), 100);
        assert!(device.event_is_done(event).unwrap(), "a mark outlives its stream");
        let memory = device.memory_allocate(64).unwrap();
        for status in [
            refused(device.stream_destroy(stream)),
            refused(device.stream_synchronize(stream)),
            refused(device.stream_is_idle(stream)),
            refused(device.stream_is_capturing(stream)),
            refused(device.stream_takes_events(stream)),
            refused(device.stream_wait_event(stream, event)),
            refused(device.stream_callback(stream, Box::new(|| {}))),
            refused(device.event_record(event, stream)),
            refused(device.memset(stream, memory, 0)),
            refused(device.copy_batch(stream, &[])),
            refused(device.memory_allocate_async(64, stream)),
        ] {
            assert!(matches!(status, Status::StaleId | Status::InvalidArgument));
        }
        device.memory_free(memory).unwrap();
    });
}

#[test]
fn the_default_stream_is_always_there() {
    each(|subject| {
        let device = subject.open();
        assert!(device.stream_is_idle(Stream::DEFAULT).unwrap());
        assert!(!device.stream_is_capturing(Stream::DEFAULT).unwrap());
        assert!(device.stream_takes_events(Stream::DEFAULT).unwrap());
        assert_eq!(device.stream_wrap(0).unwrap(), Stream::DEFAULT);
        refused(device.stream_destroy(Stream::DEFAULT));
        let memory = device.memory_allocate(64).unwrap();
        device.memset(Stream::DEFAULT, memory, 9).unwrap();
        assert_eq!(bytes_of(&*device, memory), vec![9; 64], "a read comes after the default stream");
        device.memory_free(memory).unwrap();
    });
}

#[test]
fn a_stream_of_another_instance_can_be_wrapped() {
    each(|subject| {
        let (maker, user) = (subject.open(), subject.open());
        let made = maker.stream_create().unwrap();
        let wrapped = user.stream_wrap(made.0).unwrap();
        assert_eq!(user.stream_wrap(made.0).unwrap(), wrapped);
        let memory = user.memory_allocate(64).unwrap();
        let gate = Gate::close(&*maker, made, || {});
        user.memset(wrapped, memory, 5).unwrap();
        assert!(!user.stream_is_idle(wrapped).unwrap());
        // Forgetting does not wait, but what frees memory still knows of the work.
        user.stream_destroy(wrapped).unwrap();
        refused(user.memset(wrapped, memory, 6));
        gate.open();
        user.synchronize().unwrap();
        assert_eq!(bytes_of(&*user, memory), vec![5; 64]);
        user.memory_free(memory).unwrap();

        let wrapped = user.stream_wrap(made.0).unwrap();
        maker.stream_destroy(made).unwrap();
        refused(user.stream_callback(wrapped, Box::new(|| {})));
        if subject.backend == "host" {
            // A driver cannot be asked whether a value is a live stream; there the caller vouches for it.
            refused(user.stream_wrap(made.0));
        }
        refused(user.stream_wrap(u64::MAX));
        assert_eq!(user.call_count() > 0, subject.is_counting);
    });
}

#[test]
fn a_stream_of_another_ordinal_is_not_wrapped() {
    each(|subject| {
        if registry::count(subject.backend).unwrap() < 2 {
            return;
        }
        let other = registry::open(&subject.spec(1, "")).unwrap();
        let stream = other.stream_create().unwrap();
        refused(subject.open().stream_wrap(stream.0));
    });
}

#[test]
fn closing_a_device_finishes_the_work_on_it() {
    each(|subject| {
        let device = subject.open();
        let count = Arc::new(AtomicU32::new(0));
        for stream in [Stream::DEFAULT, device.stream_create().unwrap()] {
            for _ in 0..50 {
                let count = Arc::clone(&count);
                let add = move || {
                    count.fetch_add(1, Ordering::SeqCst);
                };
                device.stream_callback(stream, Box::new(add)).unwrap();
            }
        }
        drop(device);
        assert_eq!(count.load(Ordering::SeqCst), 100);
    });
}

#[test]
fn a_callback_that_calls_the_device_is_told_so() {
    each(|subject| {
        let device = subject.open();
        let (inner, seen) = (Arc::clone(&device), Arc::new(Mutex::new(None)));
        let note = Arc::clone(&seen);
        let callback = move || *note.lock() = inner.synchronize().err().map(|error| error.status);
        device.stream_callback(Stream::DEFAULT, Box::new(callback)).unwrap();
        device.synchronize().unwrap();
        assert!(matches!(*seen.lock(), Some(Status::WrongState)));
    });
}

#[test]
fn threads_share_streams_and_events() {
    each(|subject| {
        let device = subject.open();
        let count = Arc::new(AtomicU32::new(0));
        let streams = [device.stream_create().unwrap(), device.stream_create().unwrap()];
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (device, count) = (&device, &count);
                scope.spawn(move || {
                    let event = device.event_create().unwrap();
                    for round in 0..500 {
                        let count = Arc::clone(count);
                        let add = move || {
                            count.fetch_add(1, Ordering::SeqCst);
                        };
                        let stream = streams[(thread + round) % 2];
                        device.stream_callback(stream, Box::new(add)).unwrap();
                        device.event_record(event, stream).unwrap();
                        device.stream_wait_event(streams[(thread + round + 1) % 2], event).unwrap();
                        if round % 50 == 0 {
                            device.event_synchronize(event).unwrap();
                        }
                    }
                    device.event_destroy(event).unwrap();
                });
            }
        });
        device.synchronize().unwrap();
        assert_eq!(count.load(Ordering::SeqCst), 2000);
    });
}
