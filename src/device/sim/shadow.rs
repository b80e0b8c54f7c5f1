//! What was last done to each byte of a piece of memory, by ranges: the last write, and the reads since.
//!
//! What it does: exact ranges, cut where accesses overlap in part and joined again by a write over them. What it does
//! not: say what a conflict means to people; `report` does. Invariants: ranges do not overlap; a read that lies before
//! another read of the same range is forgotten, because whoever comes after the second comes after the first.

use std::collections::BTreeMap;

use super::clock::Stamp;
use crate::device::DeviceKey;

/// One access in short: enough to ask whether it lies before another, and to name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Access {
    /// Index of the device that enqueued it, and its key, because indices are used again.
    pub(super) gpu: (usize, DeviceKey),
    /// Slot of the stream.
    pub(super) slot: u32,
    /// Number of the stream on its device, for people.
    pub(super) stream: u32,
    /// Work of the slot.
    pub(super) count: u64,
    /// Which operation of the device, in the order of execution.
    pub(super) step: u64,
    /// Its place among all that was enqueued, by which people tell who comes first.
    pub(super) serial: u64,
    /// Name of the operation.
    pub(super) name: &'static str,
}

/// Two accesses without an order between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Clash {
    /// A read of what another writes.
    ReadAfterWrite,
    /// A write over what another reads.
    WriteAfterRead,
    /// A write over what another writes.
    WriteAfterWrite,
}

#[derive(Clone, Debug)]
struct Range {
    end: u64,
    writer: Option<Access>,
    readers: Vec<Access>,
}

impl Range {
    fn read(&mut self, access: &Access, stamp: &Stamp, tell: &mut dyn FnMut(Clash, &Access)) {
        if let Some(writer) = self.writer.as_ref().filter(|writer| !stamp.knows(writer.slot, writer.count)) {
            tell(Clash::ReadAfterWrite, writer);
        }
        self.readers.retain(|reader| !stamp.knows(reader.slot, reader.count));
        self.readers.push(*access);
    }

    fn check_write(&self, stamp: &Stamp, tell: &mut dyn FnMut(Clash, &Access)) {
        if let Some(writer) = self.writer.as_ref().filter(|writer| !stamp.knows(writer.slot, writer.count)) {
            tell(Clash::WriteAfterWrite, writer);
        }
        for reader in self.readers.iter().filter(|reader| !stamp.knows(reader.slot, reader.count)) {
            tell(Clash::WriteAfterRead, reader);
        }
    }
}

/// The ranges of one piece of memory; what is in none was never touched.
#[derive(Debug, Default)]
pub(super) struct Shadow {
    ranges: BTreeMap<u64, Range>,
}

impl Shadow {
    /// Notes an access and tells of every earlier one that it is in conflict and in no order with.
    pub(super) fn note(
        &mut self,
        (start, end): (u64, u64),
        access: &Access,
        stamp: &Stamp,
        is_write: bool,
        tell: &mut dyn FnMut(Clash, &Access),
    ) {
        if let Some(range) = self.ranges.get_mut(&start).filter(|range| range.end == end) {
            if is_write {
                range.check_write(stamp, tell);
                range.writer = Some(*access);
                range.readers.clear();
            } else {
                range.read(access, stamp, tell);
            }
            return;
        }
        self.cut(start);
        self.cut(end);
        if is_write {
            for range in self.ranges.range(start..end).map(|(_, range)| range) {
                range.check_write(stamp, tell);
            }
            self.remove(start, end);
            self.ranges.insert(start, Range { end, writer: Some(*access), readers: Vec::new() });
            return;
        }
        let mut at = start;
        let mut gaps = Vec::new();
        for (&first, range) in self.ranges.range_mut(start..end) {
            if at < first {
                gaps.push((at, first));
            }
            range.read(access, stamp, tell);
            at = range.end;
        }
        if at < end {
            gaps.push((at, end));
        }
        for (first, end) in gaps {
            self.ranges.insert(first, Range { end, writer: None, readers: vec![*access] });
        }
    }

    /// Tells of every access in the range that does not lie before `stamp`.
    pub(super) fn check_end(&self, (start, end): (u64, u64), stamp: &Stamp, tell: &mut dyn FnMut(&Access)) {
        let before = self.ranges.range(..start).next_back().filter(|(_, range)| range.end > start);
        for (_, range) in before.into_iter().chain(self.ranges.range(start..end)) {
            let all = range.writer.iter().chain(&range.readers);
            all.filter(|access| !stamp.knows(access.slot, access.count)).for_each(&mut *tell);
        }
    }

    /// Forgets a range.
    pub(super) fn clear(&mut self, start: u64, end: u64) {
        self.cut(start);
        self.cut(end);
        self.remove(start, end);
    }

    fn cut(&mut self, at: u64) {
        let Some((_, range)) = self.ranges.range_mut(..at).next_back() else { return };
        if range.end > at {
            let rest = range.clone();
            range.end = at;
            self.ranges.insert(at, rest);
        }
    }

    fn remove(&mut self, start: u64, end: u64) {
        while let Some((&first, _)) = self.ranges.range(start..end).next() {
            self.ranges.remove(&first);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;

    use super::*;
    use crate::device::sim::clock::{Clock, join_stamp};

    const BYTES: usize = 24;

    /// What was last done to one byte.
    #[derive(Clone, Default)]
    struct Byte {
        writer: Option<Access>,
        readers: Vec<Access>,
    }

    fn told(found: &mut BTreeSet<(u8, u64)>, clash: Clash, other: &Access) {
        found.insert((clash as u8, other.step));
    }

    fn check_byte(byte: &mut Byte, access: &Access, stamp: &Stamp, is_write: bool) -> BTreeSet<(u8, u64)> {
        let mut found = BTreeSet::new();
        let is_new = |other: &&Access| !stamp.knows(other.slot, other.count);
        if let Some(writer) = byte.writer.as_ref().filter(is_new) {
            told(&mut found, if is_write { Clash::WriteAfterWrite } else { Clash::ReadAfterWrite }, writer);
        }
        if is_write {
            byte.readers.iter().filter(is_new).for_each(|r| told(&mut found, Clash::WriteAfterRead, r));
            *byte = Byte { writer: Some(*access), readers: Vec::new() };
        } else {
            byte.readers.retain(|reader| is_new(&reader));
            byte.readers.push(*access);
        }
        found
    }

    #[test]
    fn ranges_tell_what_single_bytes_would() {
        let mut random = fastrand::Rng::with_seed(11);
        let key = DeviceKey::fresh();
        for _ in 0..300 {
            let (mut shadow, mut bytes) = (Shadow::default(), vec![Byte::default(); BYTES]);
            let mut stamps: Vec<Stamp> =
                (0..3).map(|slot| Stamp { base: Arc::new(Clock::default()), slot, count: 0 }).collect();
            for step in 0..60 {
                let slot = random.usize(..3);
                if random.u8(..3) == 0 {
                    let other = stamps[random.usize(..3)].clone();
                    join_stamp(&mut stamps[slot].base, &other);
                }
                stamps[slot].count += 1;
                let stamp = &stamps[slot];
                let access = Access {
                    gpu: (0, key),
                    slot: slot as u32,
                    stream: 0,
                    count: stamp.count,
                    step,
                    serial: step,
                    name: "test",
                };
                let start = random.usize(..BYTES);
                let end = random.usize(start + 1..=BYTES);
                let is_write = random.bool();
                let (mut found, mut expected) = (BTreeSet::new(), BTreeSet::new());
                let range = (start as u64, end as u64);
                shadow.note(range, &access, stamp, is_write, &mut |clash, other| {
                    told(&mut found, clash, other);
                });
                for byte in &mut bytes[start..end] {
                    expected.extend(check_byte(byte, &access, stamp, is_write));
                }
                assert_eq!(found, expected, "step {step}");
            }
        }
    }
}
