//! The second witness: bytes. What a copy out of pinned memory should find there, and what a declared read should.
//!
//! What it does: hashes sources of copies until the host knows of the copy's end; remembers the mark that the latest
//! enqueued declared write leaves in its first bytes. What it does not: need clocks; a finding of one kind supports
//! those of `shadow`, and neither relies on the other. Invariant: no note outlives the memory that it is about.

use std::collections::BTreeMap;

use super::clock::Stamp;
use super::report::{FindingKind, Party};
use super::world::World;

/// Bytes that a declared write marks at its start.
pub(super) const MARK_BYTES: u64 = 16;

/// A copy whose source must not change.
struct Watch {
    stamp: Stamp,
    gpu: usize,
    who: Party,
    start: u64,
    bytes: u64,
    hash: u64,
}

/// The notes.
pub(super) struct Values {
    watches: Vec<Watch>,
    /// Pinned ranges that enqueued copies will write.
    device_writes: Vec<(u64, u64)>,
    /// First address of a declared write, and the mark that it will leave.
    marks: BTreeMap<u64, u64>,
}

/// Hash of host memory.
///
/// # Safety
/// The range must be readable.
unsafe fn hash(start: u64, bytes: u64) -> u64 {
    // SAFETY: the caller vouches for the range. The host may be writing to it, which is what is looked for: a torn
    // read gives some hash, and no value is made of the bytes.
    xxhash_rust::xxh3::xxh3_64(unsafe { std::slice::from_raw_parts(start as *const u8, bytes as usize) })
}

fn meets((a, a_end): (u64, u64), (b, b_end): (u64, u64)) -> bool {
    a < b_end && b < a_end
}

impl Values {
    /// None.
    pub(super) const fn new() -> Self {
        Self { watches: Vec::new(), device_writes: Vec::new(), marks: BTreeMap::new() }
    }

    /// Hash of a pinned source at the time of its copy's enqueue; None if enqueued work will still change it.
    ///
    /// # Safety
    /// The range must be readable.
    pub(super) unsafe fn source_hash(&self, start: u64, bytes: u64) -> Option<u64> {
        let will_change = self.device_writes.iter().any(|&range| meets(range, (start, start + bytes)));
        // SAFETY: as the caller vouches.
        (!will_change).then(|| unsafe { hash(start, bytes) })
    }

    /// Notes that an enqueued copy will write pinned memory.
    pub(super) fn add_device_write(&mut self, start: u64, bytes: u64) {
        self.device_writes.push((start, start + bytes));
    }

    /// That copy has run or was dropped.
    pub(super) fn end_device_write(&mut self, start: u64, bytes: u64) {
        let range = (start, start + bytes);
        if let Some(index) = self.device_writes.iter().position(|&known| known == range) {
            self.device_writes.swap_remove(index);
        }
        self.forget_watches(range);
    }

    /// Forgets sources in a range: it is freed, or the device has written there.
    pub(super) fn forget_watches(&mut self, range: (u64, u64)) {
        self.watches.retain(|watch| !meets((watch.start, watch.start + watch.bytes), range));
    }

    /// Forgets what a device watches, because it closes.
    pub(super) fn forget_gpu(&mut self, gpu: usize) {
        self.watches.retain(|watch| watch.gpu != gpu);
    }

    /// Notes a declared write and answers the mark that it will leave.
    pub(super) fn expect(&mut self, start: u64, bytes: u64, mark: u64) {
        self.forget_marks(start, bytes);
        if bytes >= MARK_BYTES {
            self.marks.insert(start, mark);
        }
    }

    /// The mark that a read enqueued now has to find.
    pub(super) fn expected(&self, start: u64, bytes: u64) -> Option<u64> {
        self.marks.get(&start).copied().filter(|_| bytes >= MARK_BYTES)
    }

    /// Other work will write here.
    pub(super) fn forget_marks(&mut self, start: u64, bytes: u64) {
        if self.marks.is_empty() || bytes == 0 {
            return;
        }
        let range = start.saturating_sub(MARK_BYTES - 1)..start.saturating_add(bytes);
        while let Some((&first, _)) = self.marks.range(range.clone()).next() {
            self.marks.remove(&first);
        }
    }
}

impl World {
    /// A copy reads its pinned source now: the bytes must be those of its enqueue, and stay so until the host knows.
    ///
    /// # Safety
    /// The range must be readable, and stay so until [`Values::forget_watches`] is called for it.
    pub(super) unsafe fn read_pinned(
        &mut self,
        gpu: usize,
        stamp: &Stamp,
        who: Party,
        (start, bytes): (u64, u64),
        expected: u64,
    ) {
        // SAFETY: as the caller vouches.
        if unsafe { hash(start, bytes) } != expected {
            self.gpu(gpu).find(FindingKind::PinnedReuse, who, None, (start, bytes));
            return;
        }
        let watch = Watch { stamp: stamp.clone(), gpu, who, start, bytes, hash: expected };
        self.values.watches.push(watch);
    }

    /// Looks at the sources of all copies that the host now knows to be done, for the last time.
    pub(super) fn check_pinned(&mut self, host: &Stamp) {
        for watch in std::mem::take(&mut self.values.watches) {
            if !host.knows(watch.stamp.slot, watch.stamp.count) {
                self.values.watches.push(watch);
                continue;
            }
            // SAFETY: a watch goes when its memory is freed, so the memory is there.
            if unsafe { hash(watch.start, watch.bytes) } != watch.hash {
                let range = (watch.start, watch.bytes);
                self.gpu(watch.gpu).find(FindingKind::PinnedReuse, watch.who, None, range);
            }
        }
    }
}
