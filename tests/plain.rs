//! A device that cannot map memory: allocations come straight from it, are freed in the order of streams, and are told.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use kavern::device::{Stream, registry};
use kavern::error::Status;
use kavern::event::{Event, EventSink, Level};
use kavern::manager::Manager;
use kavern::memory::{Elastic, ElasticConfig, Limits};
use kavern::sync::Mutex;

const MIB: u64 = 1 << 20;

/// Keeps what is said.
#[derive(Default)]
struct Ear(Mutex<Vec<String>>);

impl EventSink for Ear {
    fn wants(&self, level: Level) -> bool {
        level <= Level::Warn
    }

    fn emit(&self, event: Event<'_>) {
        self.0.lock().push(event.text.to_owned());
    }
}

fn open(limit_bytes: u64) -> (Arc<Manager>, Arc<Ear>) {
    let ear = Arc::new(Ear::default());
    let limits = Limits { device_limit_bytes: limit_bytes, ..Limits::default() };
    let sink = Arc::clone(&ear) as Arc<dyn EventSink>;
    (Manager::open("host?virtual=0", limits, sink).unwrap(), ear)
}

#[test]
fn a_host_without_virtual_memory_says_so_and_refuses_to_map() {
    let device = registry::open("host?virtual=0").unwrap();
    assert!(!device.description().capabilities.virtual_memory);
    assert_eq!(device.virtual_reserve(MIB).unwrap_err().status, Status::Unsupported);
    assert_eq!(device.page_create(MIB).unwrap_err().status, Status::Unsupported);
    assert_eq!(registry::open("host?virtual=2").err().unwrap().status, Status::InvalidArgument);
    let (manager, _) = open(0);
    let config = ElasticConfig { capacity_bytes: MIB, page_bytes: 0, has_slabs: true };
    let refused = Elastic::new(manager.memory(), config).err().unwrap();
    assert_eq!(refused.status, Status::Unsupported);
}

#[test]
fn plain_blocks_are_aligned_counted_described_and_back_at_the_end() {
    let (manager, ear) = open(0);
    let heap = Arc::clone(manager.heap().unwrap());
    let tag = heap.tag("weights").unwrap();
    let (mut live, mut total) = (Vec::new(), 0);
    for (step, alignment) in [0, 256, 4096, 64 << 10, 2 << 20].into_iter().enumerate() {
        for bytes in [1, 1000, 300 << 10, 40 * MIB] {
            let address = heap.allocate(Stream::DEFAULT, bytes, alignment, tag.0).unwrap();
            assert!(address.is_multiple_of(alignment.max(256)), "{bytes} at {alignment}");
            heap.zero(Stream::DEFAULT, address).unwrap();
            total += bytes;
            live.push((address, bytes));
        }
        assert_eq!(heap.statistics().plain_allocations, 4 * (step as u64 + 1));
    }
    let totals = manager.totals();
    assert_eq!((totals.heap_bytes, totals.device_bytes()), (total, total), "no byte is counted twice");
    assert_eq!(heap.live_blocks().len(), live.len());
    let (first, bytes) = live[0];
    assert_eq!(
        (heap.block_info(first).unwrap().bytes, &*heap.block_info(first).unwrap().tag),
        (bytes, "weights")
    );
    heap.pin(first).unwrap();
    heap.unpin(first).unwrap();
    assert_eq!(heap.defragment(0).unwrap().meshed_pages, 0);
    for (address, _) in live {
        assert_eq!(heap.free(Stream::DEFAULT, address + 1).unwrap_err().status, Status::InvalidArgument);
        heap.free(Stream::DEFAULT, address).unwrap();
        for refused in [
            heap.free(Stream::DEFAULT, address),
            heap.record_use(address, Stream::DEFAULT),
            heap.pin(address),
            heap.zero(Stream::DEFAULT, address),
        ] {
            assert_eq!(refused.unwrap_err().status, Status::InvalidArgument);
        }
    }
    manager.device().synchronize().unwrap();
    heap.give_back().unwrap();
    let totals = manager.totals();
    assert_eq!((totals.device_bytes(), totals.held_bytes, totals.memory.device.count), (0, 0, 0));
    manager.validate().unwrap();
    let said = ear.0.lock().clone();
    assert_eq!(said.iter().filter(|text| text.contains("cannot map memory")).count(), 1, "{said:?}");
}

#[test]
fn a_freed_plain_block_stays_until_every_stream_that_used_it_is_past() {
    let (manager, _) = open(64 * MIB);
    let heap = manager.heap().unwrap();
    let other = manager.device().stream_create().unwrap();
    let address = heap.allocate(Stream::DEFAULT, 40 * MIB, 0, 0).unwrap();
    let (open, gate) = channel::<()>();
    let hold = Box::new(move || {
        let _ = gate.recv();
    });
    manager.device().stream_callback(other, hold).unwrap();
    heap.record_use(address, other).unwrap();
    heap.free(Stream::DEFAULT, address).unwrap();
    manager.device().stream_synchronize(Stream::DEFAULT).unwrap();
    // It is freed and not gone: the limit still counts it.
    assert_eq!(heap.statistics().live_bytes, 0);
    heap.give_back().unwrap();
    assert_eq!(heap.statistics().ordered_bytes, 40 * MIB);
    assert_eq!(manager.memory().allocate(40 * MIB, "now").err().unwrap().status, Status::OutOfMemory);
    // The last step of an allocation waits for work that ends meanwhile.
    let waiting = Arc::clone(heap);
    let opener = std::thread::spawn(move || {
        while waiting.statistics().ladder.host_waits == 0 {
            std::thread::yield_now();
        }
        drop(open);
    });
    let next = heap.allocate(Stream::DEFAULT, 40 * MIB, 0, 0).unwrap();
    opener.join().unwrap();
    assert!(heap.statistics().ladder.host_waits > 0);
    heap.free(Stream::DEFAULT, next).unwrap();
    manager.device().stream_destroy(other).unwrap();
}

#[test]
fn a_refusal_names_the_tag_where_there_is_one_and_a_question_about_nothing_is_a_mistake() {
    let (manager, _) = open(0);
    let heap = manager.heap().unwrap();
    let tag = heap.tag("weights").unwrap();
    let refusal = |tag| heap.allocate(Stream::DEFAULT, 1 << 45, 0, tag).unwrap_err();
    for (tag, text) in
        [(0, "requested: 35184372088832 bytes"), (tag.0, "requested: weights: 35184372088832 bytes")]
    {
        let refusal = refusal(tag);
        assert_eq!(refusal.status, Status::OutOfMemory);
        assert!(refusal.text.contains(text), "{refusal}");
    }
    assert_eq!(heap.can_allocate(0, 10).unwrap_err().status, Status::InvalidArgument);
    assert!(heap.can_allocate(1, 10).unwrap());
}

#[test]
fn what_is_left_of_plain_blocks_is_named_when_the_manager_closes() {
    let (manager, ear) = open(0);
    let heap = manager.heap().unwrap();
    let tag = heap.tag("forgotten").unwrap();
    heap.allocate(Stream::DEFAULT, 4321, 0, tag.0).unwrap();
    drop(manager);
    let said = ear.0.lock().clone();
    assert!(said.iter().any(|text| text.contains("\"forgotten\" 4321")), "{said:?}");
}

/// A stream that stands still until the sender is dropped.
fn held(manager: &Manager) -> (Stream, std::sync::mpsc::Sender<()>) {
    let stream = manager.device().stream_create().unwrap();
    let (open, gate) = channel::<()>();
    let hold = Box::new(move || {
        let _ = gate.recv();
    });
    manager.device().stream_callback(stream, hold).unwrap();
    (stream, open)
}

#[test]
fn a_plain_block_is_freed_and_another_allocated_while_a_stream_stands_still() {
    let (manager, _) = open(0);
    let heap = Arc::clone(manager.heap().unwrap());
    let (still, open) = held(&manager);
    let (done, is_done) = channel();
    let device = Arc::clone(manager.device());
    std::thread::spawn(move || {
        let first = heap.allocate(Stream::DEFAULT, MIB, 0, 0).unwrap();
        let second = heap.allocate(Stream::DEFAULT, MIB, 0, 0).unwrap();
        heap.free(Stream::DEFAULT, first).unwrap();
        device.stream_synchronize(Stream::DEFAULT).unwrap();
        // The first one's turn is now, and nothing that runs may use it.
        heap.free(Stream::DEFAULT, second).unwrap();
        device.stream_synchronize(Stream::DEFAULT).unwrap();
        heap.allocate(Stream::DEFAULT, MIB, 0, 0).unwrap();
        let _ = done.send(heap.statistics().ordered_bytes);
    });
    let left = is_done.recv_timeout(Duration::from_secs(20));
    drop(open);
    assert_eq!(left.expect("waits for a stream that has nothing to do with it"), 0);
    manager.device().stream_destroy(still).unwrap();
}

#[test]
fn what_a_plain_heap_gives_to_others_is_found_at_the_first_attempt() {
    let (manager, _) = open(64 * MIB);
    let heap = manager.heap().unwrap();
    // Freed while its stream stands still, and to be had when it has gone on.
    let leave = || {
        let (stream, open) = held(&manager);
        let address = heap.allocate(stream, 40 * MIB, 0, 0).unwrap();
        heap.free(stream, address).unwrap();
        drop(open);
        manager.device().stream_synchronize(stream).unwrap();
        stream
    };
    let one = leave();
    drop(manager.memory().allocate(40 * MIB, "next").unwrap());
    let other = leave();
    assert_eq!(heap.give_back().unwrap(), 40 * MIB);
    for stream in [one, other] {
        manager.device().stream_destroy(stream).unwrap();
    }
}

#[test]
fn a_plain_block_that_is_left_does_not_hide_what_else_is_left() {
    let (manager, ear) = open(0);
    let heap = manager.heap().unwrap();
    heap.allocate(Stream::DEFAULT, 4321, 0, heap.tag("block").unwrap().0).unwrap();
    let lost = manager.memory().allocate(1234, "lost").unwrap();
    drop(manager);
    let said = ear.0.lock().clone();
    assert!(said.iter().any(|text| text.contains("\"lost\" 1234") && !text.contains("block")), "{said:?}");
    assert!(said.iter().any(|text| text.contains("\"block\" 4321")), "{said:?}");
    drop(lost);
}
