//! Every live allocation: the truth for leaks and statistics.
//!
//! What it does not: own memory. Invariants, checked by `validate()`: for each place, the sum of the live entries
//! equals its `bytes`, their number its `count`, and `bytes <= peak_bytes`. Lock order: its one lock, then nothing.

use std::collections::BTreeMap;

use crate::device::Stream;
use crate::error::{Error, Result};
use crate::sync::Mutex;
use crate::sys::clock;

/// Where an allocation lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Where {
    /// In device memory.
    Device,
    /// In pinned host memory.
    Pinned,
}

/// Totals of one place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Allocated now.
    pub bytes: u64,
    /// Most that was allocated at one time.
    pub peak_bytes: u64,
    /// Live allocations.
    pub count: u64,
    /// Allocations ever made.
    pub total_count: u64,
}

/// Totals of a [`super::Memory`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Device memory.
    pub device: Usage,
    /// Pinned host memory.
    pub pinned: Usage,
}

/// One live allocation, as a report shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiveAllocation {
    /// Where it lies.
    pub place: Where,
    /// First byte.
    pub address: u64,
    /// Length.
    pub bytes: u64,
    /// What it is for.
    pub tag: String,
    /// How long it has been there.
    pub age_ns: u64,
    /// The device's value of the stream of its allocation; none where it is there for all streams at once.
    pub stream: Option<u64>,
}

pub(super) struct Entry {
    place: Where,
    address: u64,
    bytes: u64,
    tag: Box<str>,
    born_ns: u64,
    stream: Option<u64>,
}

impl Entry {
    pub(super) fn new(place: Where, address: u64, bytes: u64, tag: &str) -> Self {
        Self { place, address, bytes, tag: tag.into(), born_ns: clock::now_ns(), stream: None }
    }

    /// Of an allocation in the order of a stream.
    pub(super) fn on(self, stream: Stream) -> Self {
        Self { stream: Some(stream.0), ..self }
    }
}

#[derive(Default)]
struct Books {
    next: u64,
    /// By number of arrival, which is the order of age.
    live: BTreeMap<u64, Entry>,
    totals: Statistics,
}

impl Books {
    fn usage(&mut self, place: Where) -> &mut Usage {
        match place {
            Where::Device => &mut self.totals.device,
            Where::Pinned => &mut self.totals.pinned,
        }
    }
}

#[derive(Default)]
pub(super) struct Ledger {
    books: Mutex<Books>,
}

impl Ledger {
    /// Notes an allocation and returns its number.
    pub(super) fn add(&self, entry: Entry) -> u64 {
        let mut books = self.books.lock();
        let usage = books.usage(entry.place);
        usage.bytes += entry.bytes;
        usage.peak_bytes = usage.peak_bytes.max(usage.bytes);
        usage.count += 1;
        usage.total_count += 1;
        let number = books.next;
        books.next += 1;
        books.live.insert(number, entry);
        number
    }

    /// Strikes an allocation out and returns its tag.
    pub(super) fn remove(&self, number: u64) -> Option<Box<str>> {
        let mut books = self.books.lock();
        let entry = books.live.remove(&number)?;
        let usage = books.usage(entry.place);
        usage.bytes -= entry.bytes;
        usage.count -= 1;
        Some(entry.tag)
    }

    pub(super) fn statistics(&self) -> Statistics {
        self.books.lock().totals
    }

    pub(super) fn live(&self) -> Vec<LiveAllocation> {
        let books = self.books.lock();
        let now_ns = clock::now_ns();
        let show = |entry: &Entry| LiveAllocation {
            place: entry.place,
            address: entry.address,
            bytes: entry.bytes,
            tag: entry.tag.to_string(),
            age_ns: now_ns.saturating_sub(entry.born_ns),
            stream: entry.stream,
        };
        books.live.values().map(show).collect()
    }

    /// Checks the invariants in the file head.
    pub(super) fn validate(&self) -> Result<()> {
        let books = self.books.lock();
        for (place, usage) in [(Where::Device, books.totals.device), (Where::Pinned, books.totals.pinned)] {
            let live = || books.live.values().filter(|entry| entry.place == place);
            let (bytes, count) = (live().map(|entry| entry.bytes).sum::<u64>(), live().count() as u64);
            if (bytes, count) != (usage.bytes, usage.count) || usage.bytes > usage.peak_bytes {
                return Err(Error::internal(format!(
                    "{place:?} ledger: {count} live entries of {bytes} bytes, but the totals say {usage:?}"
                )));
            }
        }
        Ok(())
    }
}
