//! A small engine on a simulated device: streams, events, memory, and work that says what it touches.

use std::sync::Arc;

use kavern::device::{
    Copy, Device, DeviceSlice, Event, FindingKind, PinnedBuffer, Place, Report, Stream, registry,
};

pub(super) const SCHEDULES: [&str; 5] = ["fair", "random", "starve", "latest", "priority"];
/// Bytes of a block of the small engine.
pub(super) const BLOCK: u64 = 512;

/// What a program may use. Its calls cannot fail, so that programs read as what they do.
pub(super) struct Engine {
    pub(super) device: Arc<dyn Device>,
    pub(super) compute: Stream,
    pub(super) transfer: Stream,
    pub(super) other: Stream,
    pub(super) pool: DeviceSlice,
    pub(super) staging: PinnedBuffer,
}

pub(super) fn spec(seed: u64) -> String {
    format!("sim?seed={seed}&schedule={}&memory_bytes=1048576", SCHEDULES[seed as usize % SCHEDULES.len()])
}

impl Engine {
    pub(super) fn new(spec: &str) -> Self {
        let device = registry::open(spec).unwrap();
        Self {
            compute: device.stream_create().unwrap(),
            transfer: device.stream_create().unwrap(),
            other: device.stream_create().unwrap(),
            pool: device.memory_allocate(64 * BLOCK).unwrap(),
            staging: PinnedBuffer::new(Arc::clone(&device), 8 * BLOCK).unwrap(),
            device,
        }
    }

    pub(super) fn block(&self, index: u64) -> DeviceSlice {
        self.pool.part(index * BLOCK, BLOCK).unwrap()
    }

    pub(super) fn launch(&self, stream: Stream, reads: &[DeviceSlice], writes: &[DeviceSlice]) {
        self.device.simulator().unwrap().declare(stream, reads, writes).unwrap();
    }

    pub(super) fn staged(&self, index: u64) -> Place {
        Place::Pinned(self.staging.slice().part(index * BLOCK, BLOCK).unwrap())
    }

    /// Device to staging.
    pub(super) fn offload(&self, stream: Stream, block: u64, slot: u64) {
        let copy = Copy { target: self.staged(slot), source: Place::Device(self.block(block)) };
        self.device.copy(stream, copy).unwrap();
    }

    /// Staging to device.
    pub(super) fn restore(&self, stream: Stream, slot: u64, block: u64) {
        let copy = Copy { target: Place::Device(self.block(block)), source: self.staged(slot) };
        self.device.copy(stream, copy).unwrap();
    }

    pub(super) fn event(&self) -> Event {
        self.device.event_create().unwrap()
    }

    /// Later work on `later` comes after all work so far on `earlier`.
    pub(super) fn order(&self, earlier: Stream, later: Stream) {
        let event = self.event();
        self.device.event_record(event, earlier).unwrap();
        self.device.stream_wait_event(later, event).unwrap();
        self.device.event_destroy(event).unwrap();
    }

    pub(super) fn synchronize(&self, stream: Stream) {
        self.device.stream_synchronize(stream).unwrap();
    }

    /// Innocent work that fills the queues, on blocks of its own for each stream.
    pub(super) fn noise(&self, count: u64) {
        for round in 0..count {
            for (index, stream) in [self.compute, self.transfer, self.other].into_iter().enumerate() {
                let (from, to) = (40 + 8 * index as u64 + round % 4, 44 + 8 * index as u64 + round % 4);
                self.launch(stream, &[self.block(from)], &[self.block(to)]);
            }
            if round % 5 == 4 {
                self.device.stream_is_idle(self.other).unwrap();
            }
        }
    }

    pub(super) fn finish(&self) -> Report {
        self.device.synchronize().unwrap();
        let report = self.device.simulator().unwrap().report().unwrap();
        assert_eq!(self.device.race_count(), report.races());
        assert_eq!(report.pending, 0);
        report
    }
}

pub(super) fn kinds(report: &Report) -> Vec<FindingKind> {
    FindingKind::ALL.into_iter().filter(|&kind| report.count(kind) > 0).collect()
}
