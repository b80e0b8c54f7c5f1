//! What is known of every block of a region: whether it is live, how much of it was asked for, for what, since when.
//!
//! What it does: a table by block index that many threads read and write without a lock. What it does not: decide who
//! may write; a block's record is written by whoever holds the block, and the holder changes hands through a front
//! cache or a lock. So plain loads and stores do, and a free of a block that is not live is told. Two threads that
//! free one block at the same instant race in the program; one of them may then be told that it was done.
//! Invariant: a record is live from the allocation to the free of its block. The table never moves; it grows.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use bytemuck::Zeroable;

use crate::error::Result;
use crate::sys::steady::Steady;

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
#[derive(Debug, Default, Zeroable)]
#[repr(C)]
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

/// Class and stream as the state of a record that is live and nothing else: what a front cache knows of its blocks
/// beforehand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Kind(u32);

impl Kind {
    /// That of a class and a stream's number.
    pub(super) fn new(class: u8, stream: u16) -> Self {
        Self(LIVE | u32::from(class) << CLASS | u32::from(stream) << STREAM)
    }
}

impl Record {
    /// The block becomes somebody's.
    #[inline]
    pub(super) fn open(&self, facts: &Facts) {
        self.born.store(facts.born, Ordering::Relaxed);
        self.asked.store(facts.bytes | u64::from(facts.tag) << TAG, Ordering::Relaxed);
        self.state.store(state_of(&Facts { is_shared: false, ..*facts }), Ordering::Release);
    }

    /// As `open`, where no graph is captured.
    #[inline(always)]
    pub(super) fn open_plain(&self, kind: Kind, bytes: u64, tag: u16, born: u32) {
        self.born.store(born, Ordering::Relaxed);
        self.asked.store(bytes | u64::from(tag) << TAG, Ordering::Relaxed);
        self.state.store(kind.0, Ordering::Release);
    }

    /// The class, if it is live, before anything else is known of it.
    #[inline(always)]
    pub(super) fn class(&self) -> u8 {
        (self.state.load(Ordering::Relaxed) >> CLASS & CLASS_MASK) as u8
    }

    /// Class and bytes, if it is live, of its own stream alone and of no graph.
    #[inline(always)]
    pub(super) fn plain(&self) -> Option<(u8, u64)> {
        let state = self.state.load(Ordering::Acquire);
        if state & (LIVE | SHARED | CAPTURED) != LIVE {
            return None;
        }
        let asked = self.asked.load(Ordering::Relaxed);
        Some(((state >> CLASS & CLASS_MASK) as u8, asked & ((1 << TAG) - 1)))
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

/// Records in two lines of memory, which processors fetch together: threads whose blocks are in different ones do not
/// slow each other down.
pub(super) const LINE: u32 = 8;

const _: () = assert!(LINE as usize * size_of::<Record>() == 128);

/// The records of one region.
pub(super) struct Records(Steady<Record>);

impl Records {
    /// Bytes from the start of this that a look at a record reads.
    pub(super) const HEAD_BYTES: usize = Steady::<Record>::HEAD_BYTES;

    /// Room for so many; they take memory as they are needed.
    pub(super) fn new(most: u64) -> Result<Self> {
        Steady::new(usize::try_from(most).unwrap_or(usize::MAX)).map(Self)
    }

    /// The record of a block that was ever given out.
    #[inline(always)]
    pub(super) fn get(&self, index: u32) -> Option<&Record> {
        self.0.get(index as usize)
    }

    /// Makes room for records up to this one; called before a block is first given out.
    pub(super) fn grow(&self, index: u32) -> Result<()> {
        self.0.grow(index as usize)
    }

    /// Has the system put pages behind some of them; else each comes when a block is first given out there.
    pub(super) fn populate(&self, first: u32, count: u32) {
        self.0.populate(first as usize, count as usize);
    }

    /// All live records with their indexes.
    pub(super) fn live(&self) -> impl Iterator<Item = (u32, Facts)> + '_ {
        let records = self.0.iter().enumerate();
        records.filter_map(|(index, record)| Some((index as u32, record.facts()?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_says_what_was_written_and_only_while_its_block_lives() {
        let records = Records::new(1 << 20).unwrap();
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
        assert_eq!(record.plain(), None, "a graph's");
        let own = Facts { is_captured: false, ..facts };
        record.open_plain(Kind::new(own.class, own.stream), own.bytes, own.tag, own.born);
        assert_eq!((record.facts(), record.plain()), (Some(own), Some((own.class, own.bytes))));
        record.open(&facts);
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
