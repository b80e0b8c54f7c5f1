//! What is known of every block of a region: whether it is live, how much of it was asked for, for what, since when.
//!
//! What it does: a table by block index that many threads read and write without a lock. What it does not: decide who
//! may write; a block's record is written by whoever holds the block, and the holder changes hands through a front
//! cache or a lock. So plain loads and stores do, and a free of a block that is not live is told. Two threads that
//! free one block at the same instant race in the program; one of them may then be told that it was done.
//! Invariant: a record is live from the allocation to the free of its block. The table never moves; it grows by chunks.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::error::{Error, Result, Status};

/// Records of the first chunk; each chunk holds twice as many as the one before.
const FIRST: usize = 1024;
const CHUNKS: usize = 22;

/// The block is somebody's.
const LIVE: u32 = 1;
/// Another stream than the one of the allocation used it too; a list of the heap says which.
const SHARED: u32 = 2;
/// It was allocated while a graph was captured.
const CAPTURED: u32 = 4;
const CLASS: u32 = 8;
const CLASS_MASK: u32 = 0xff;
const STREAM: u32 = 16;

/// Bits of `asked` for the bytes; the rest is the tag.
const TAG: u32 = 48;

/// One block.
#[derive(Default)]
pub(super) struct Record {
    /// LIVE, SHARED, CAPTURED, class, stream.
    state: AtomicU32,
    /// Tick of the allocation.
    born: AtomicU32,
    /// Bytes that were asked for, and the tag.
    asked: AtomicU64,
}

/// What a live record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Facts {
    pub(super) class: u8,
    /// Number of the stream among those of the heap.
    pub(super) stream: u16,
    pub(super) bytes: u64,
    pub(super) tag: u16,
    pub(super) born: u32,
    pub(super) is_shared: bool,
    pub(super) is_captured: bool,
}

impl Record {
    /// The block becomes somebody's.
    #[inline]
    pub(super) fn open(&self, facts: &Facts) {
        self.born.store(facts.born, Ordering::Relaxed);
        self.asked.store(facts.bytes | u64::from(facts.tag) << TAG, Ordering::Relaxed);
        let flags = LIVE | if facts.is_captured { CAPTURED } else { 0 };
        let state = flags | u32::from(facts.class) << CLASS | u32::from(facts.stream) << STREAM;
        self.state.store(state, Ordering::Release);
    }

    /// What it says, if it is live.
    #[inline]
    pub(super) fn facts(&self) -> Option<Facts> {
        let state = self.state.load(Ordering::Acquire);
        if state & LIVE == 0 {
            return None;
        }
        let asked = self.asked.load(Ordering::Relaxed);
        Some(Facts {
            class: (state >> CLASS & CLASS_MASK) as u8,
            stream: (state >> STREAM) as u16,
            bytes: asked & ((1 << TAG) - 1),
            tag: (asked >> TAG) as u16,
            born: self.born.load(Ordering::Relaxed),
            is_shared: state & SHARED != 0,
            is_captured: state & CAPTURED != 0,
        })
    }

    /// The block is nobody's from here on.
    #[inline]
    pub(super) fn close(&self) {
        self.state.store(0, Ordering::Release);
    }

    /// As `close`, but only if the record still says this; whether it did.
    pub(super) fn close_if(&self, facts: &Facts) -> bool {
        self.change(facts, 0)
    }

    /// Makes a live block one of another class, if the record still says this; whether it did.
    pub(super) fn reclass(&self, facts: &Facts, class: u8) -> bool {
        self.change(facts, state_of(&Facts { class, ..*facts }))
    }

    fn change(&self, from: &Facts, to: u32) -> bool {
        self.state.compare_exchange(state_of(from), to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Says that another stream uses the block too.
    pub(super) fn share(&self) {
        self.state.fetch_or(SHARED, Ordering::AcqRel);
    }
}

/// The state of a live record.
fn state_of(facts: &Facts) -> u32 {
    let shared = if facts.is_shared { SHARED } else { 0 };
    let captured = if facts.is_captured { CAPTURED } else { 0 };
    LIVE | shared | captured | u32::from(facts.class) << CLASS | u32::from(facts.stream) << STREAM
}

/// Records in one [`Line`].
pub(super) const LINE: u32 = 8;

/// Records of neighbours in two lines of memory, which processors fetch together: threads whose blocks are in different
/// lines do not slow each other down.
#[derive(Default)]
#[repr(align(128))]
struct Line([Record; LINE as usize]);

/// The records of one region.
#[derive(Default)]
pub(super) struct Records {
    chunks: [OnceLock<Box<[Line]>>; CHUNKS],
}

#[inline]
fn place(index: u32) -> (usize, usize) {
    let shifted = index as usize + FIRST;
    let chunk = (shifted.ilog2() - FIRST.ilog2()) as usize;
    (chunk, shifted - (FIRST << chunk))
}

impl Records {
    /// The record of a block that was ever given out.
    #[inline]
    pub(super) fn get(&self, index: u32) -> Option<&Record> {
        let (chunk, place) = place(index);
        let line = self.chunks.get(chunk)?.get()?.get(place / LINE as usize)?;
        Some(&line.0[place % LINE as usize])
    }

    /// Makes room for records up to this one; called before a block is first given out.
    pub(super) fn grow(&self, index: u32) -> Result<()> {
        let (last, _) = place(index);
        for chunk in 0..=last {
            let Some(slot) = self.chunks.get(chunk) else {
                return Err(Error::new(Status::LimitReached, format!("{index} blocks in one region")));
            };
            if slot.get().is_some() {
                continue;
            }
            let count = FIRST << chunk;
            let mut records = Vec::new();
            records.try_reserve_exact(count / LINE as usize).map_err(|_| {
                Error::new(Status::OutOfHostMemory, format!("no memory for the records of {count} blocks"))
            })?;
            records.resize_with(count / LINE as usize, Line::default);
            // Whoever was first made the same.
            let _ = slot.set(records.into_boxed_slice());
        }
        Ok(())
    }

    /// All live records with their indexes.
    pub(super) fn live(&self) -> impl Iterator<Item = (u32, Facts)> + '_ {
        let chunks = self.chunks.iter().enumerate();
        chunks.filter_map(|(chunk, slot)| Some((chunk, slot.get()?))).flat_map(|(chunk, records)| {
            let first = (FIRST << chunk) - FIRST;
            let live = records.iter().flat_map(|line| &line.0).enumerate();
            live.filter_map(move |(at, record)| Some(((first + at) as u32, record.facts()?)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_says_what_was_written_and_only_while_its_block_lives() {
        let records = Records::default();
        assert!(records.get(5000).is_none());
        records.grow(5000).unwrap();
        let facts = Facts {
            class: 200,
            stream: 65_535,
            bytes: (1 << 48) - 1,
            tag: 65_535,
            born: u32::MAX,
            is_shared: false,
            is_captured: true,
        };
        for index in [0, 1023, 1024, 5000] {
            let record = records.get(index).unwrap();
            assert_eq!(record.facts(), None);
            record.open(&facts);
            assert_eq!(record.facts(), Some(facts));
        }
        let record = records.get(5000).unwrap();
        record.share();
        assert_eq!(record.facts(), Some(Facts { is_shared: true, ..facts }));
        assert_eq!(records.live().map(|(index, _)| index).collect::<Vec<_>>(), [0, 1023, 1024, 5000]);
        // What was read before it was shared is no longer what it says.
        assert!(!record.close_if(&facts) && !record.reclass(&facts, 7));
        let facts = record.facts().unwrap();
        assert!(record.reclass(&facts, 7));
        assert_eq!(record.facts(), Some(Facts { class: 7, ..facts }));
        assert!(!record.close_if(&facts) && record.close_if(&Facts { class: 7, ..facts }));
        assert_eq!(record.facts(), None);
        assert_eq!(records.live().count(), 3);
    }
}
