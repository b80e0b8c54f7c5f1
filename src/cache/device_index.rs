//! The index on the device: one table for each group, brought up to date with a step's tables, and batches of lookups.
//!
//! Cells that changed travel in the staging of the tables and are written on the stream of the step; nothing is sent
//! twice unless a call failed. Lookups may run on any stream: one that is not the step's waits for the last update,
//! and the next update waits for the lookups before it. Lookups on several streams wait for one another, so that one
//! event stands for all of them. Invariant: no update and lookup of one table are unordered on the device.
//!
//! Locks: `marks`, under no other lock, while launches are enqueued: between the wait for what the other side has
//! enqueued and the mark behind one's own nobody may come, or the two are unordered. So a lookup on a stream whose
//! queue is full holds up the index's part of `tables`, and no other.

use super::config::Geometry;
use super::index_kernels::{INDEPENDENT, LOOKUP, PREFIX, THREADS, UPDATE, lookup_grid, update_grid};
use super::kv_cache::KvCache;
use super::mirror::{CHANGE_WORDS, cell_count};
use super::store::Store;
use super::upload::Packer;
use crate::device::{Arg, Device, DeviceSlice, Launch, OwnedEvent, Stream};
use crate::error::{Error, Result, Status};
use crate::memory::{Allocation, Memory};
use crate::sync::Mutex;
use std::sync::Arc;

/// What follows a miss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LookupMode {
    /// Every hash is looked up by itself.
    Independent,
    /// After the first miss of a row everything is a miss.
    Prefix,
}

/// A batch of lookups by hashes that are on the device.
#[derive(Clone, Copy, Debug)]
pub struct DeviceLookup {
    /// Whose blocks.
    pub group: u32,
    /// What follows a miss.
    pub mode: LookupMode,
    /// Rows.
    pub rows: u32,
    /// Hashes of a row.
    pub row_hashes: u32,
    /// `u64 [rows][row_hashes][2]`.
    pub hashes: DeviceSlice,
    /// `i32 [rows]`: how many hashes of each row count; `None`: all.
    pub counts: Option<DeviceSlice>,
    /// `i32 [rows][row_hashes]`: receives blocks, -1 for a miss.
    pub blocks: DeviceSlice,
}

/// A place on a stream that others wait for.
struct Mark {
    event: OwnedEvent,
    stream: Option<Stream>,
    /// The event could not be recorded: the stream has work that it does not cover.
    is_unrecorded: bool,
}

impl Mark {
    fn new(device: &Arc<dyn Device>) -> Result<Self> {
        Ok(Self { event: OwnedEvent::new(device)?, stream: None, is_unrecorded: false })
    }

    /// The stream gets work that the mark does not cover yet.
    fn note(&mut self, stream: Stream) {
        (self.stream, self.is_unrecorded) = (Some(stream), true);
    }

    /// Covers all that was enqueued on the stream until now.
    fn record(&mut self, device: &dyn Device, stream: Stream) -> Result<()> {
        self.note(stream);
        device.event_record(self.event.event(), stream)?;
        self.is_unrecorded = false;
        Ok(())
    }

    /// Has a stream wait for what the mark covers.
    fn order(&mut self, device: &dyn Device, stream: Stream) -> Result<()> {
        let Some(other) = self.stream.filter(|&other| other != stream) else { return Ok(()) };
        if self.is_unrecorded {
            // Later than needed, but never too early.
            self.record(device, other)?;
        }
        device.stream_wait_event(stream, self.event.event())
    }
}

/// How updates and lookups are ordered.
struct Marks {
    updated: Mark,
    read: Mark,
}

/// The tables on the device, for updates and lookups.
pub(super) struct DeviceIndex {
    tables: Vec<Allocation>,
    marks: Mutex<Marks>,
}

/// What the next update sends. The owner of the uploader owns it.
pub(super) struct IndexUpdate {
    pub(super) index: Arc<DeviceIndex>,
    /// First word and changes of each group in the packed words.
    runs: Vec<(usize, usize)>,
}

impl DeviceIndex {
    pub(super) fn new(memory: &Arc<Memory>, geometry: &Geometry, tag: &str) -> Result<Self> {
        let table = |blocks: u32| memory.allocate(16 * cell_count(blocks), tag);
        Ok(Self {
            tables: geometry.groups.iter().map(|group| table(group.blocks)).collect::<Result<_>>()?,
            marks: Mutex::new(Marks {
                updated: Mark::new(memory.device())?,
                read: Mark::new(memory.device())?,
            }),
        })
    }

    /// Empties the tables. The caller waits for the stream.
    pub(super) fn clear(&self, device: &dyn Device, stream: Stream) -> Result<()> {
        self.tables.iter().try_for_each(|table| device.memset(stream, table.slice(), 0))
    }

    fn lookup(&self, device: &dyn Device, stream: Stream, lookup: &DeviceLookup) -> Result<()> {
        let mode = if lookup.mode == LookupMode::Prefix { PREFIX } else { INDEPENDENT };
        let (rows, each) = (u64::from(lookup.rows), u64::from(lookup.row_hashes));
        let counts = lookup.counts.unwrap_or(lookup.hashes);
        let args = [
            Arg::Write(lookup.blocks),
            Arg::Read(self.tables[lookup.group as usize].slice()),
            Arg::Read(lookup.hashes),
            Arg::Read(counts),
            Arg::U64(rows),
            Arg::U64(each),
            Arg::U64(mode),
            Arg::U64(lookup.counts.is_some().into()),
        ];
        let grid = lookup_grid(rows, each, mode);
        let mut marks = self.marks.lock();
        marks.updated.order(device, stream)?;
        marks.read.order(device, stream)?;
        device.launch(stream, &Launch { kernel: &LOOKUP, grid, block: THREADS, args: &args })?;
        marks.read.record(device, stream)
    }
}

impl IndexUpdate {
    pub(super) fn new(index: Arc<DeviceIndex>) -> Self {
        let runs = vec![(0, 0); index.tables.len()];
        Self { index, runs }
    }

    /// Packs changed cells of a group, as many as fit; answers whether that were all.
    pub(super) fn pack(&mut self, packer: &mut Packer<'_>, group: usize, store: &mut Store) -> bool {
        let most = packer.room() / CHANGE_WORDS;
        // Who departed must not be found there any more.
        while store.mirror().is_some_and(|mirror| mirror.dirty_cells() < most) && store.take_out_latest() > 0
        {
        }
        let has_departed = store.has_departed();
        let Some(mirror) = store.mirror_mut() else { return true };
        let count = mirror.dirty_cells().min(most);
        let (first, words) = packer.run(None, count * CHANGE_WORDS);
        mirror.take_changes(words);
        self.runs[group] = (first, count);
        mirror.dirty_cells() == 0 && !has_departed
    }

    /// Enqueues what `pack` left, after the lookups before it.
    pub(super) fn enqueue(&self, device: &dyn Device, stream: Stream, packed: DeviceSlice) -> Result<()> {
        if self.runs.iter().all(|run| run.1 == 0) {
            return Ok(());
        }
        let DeviceIndex { tables, marks } = &*self.index;
        let mut marks = marks.lock();
        marks.read.order(device, stream)?;
        // Also where a launch fails after others went well.
        marks.updated.note(stream);
        for (table, &(first, count)) in tables.iter().zip(&self.runs).filter(|(_, run)| run.1 > 0) {
            let changes = packed.part(4 * first as u64, (4 * CHANGE_WORDS * count) as u64)?;
            let args = [Arg::Write(table.slice()), Arg::Read(changes)];
            let grid = update_grid(count);
            device.launch(stream, &Launch { kernel: &UPDATE, grid, block: THREADS, args: &args })?;
        }
        marks.updated.record(device, stream)
    }
}

impl KvCache {
    /// Enqueues a batch of lookups in the index on the device, as of the latest call of `tables`.
    pub fn lookup_device(&self, stream: Stream, lookup: &DeviceLookup) -> Result<()> {
        self.group(lookup.group)?;
        let total = u64::from(lookup.rows) * u64::from(lookup.row_hashes);
        let counts = lookup.counts.map(|counts| ("counts", counts, 4, 4 * u64::from(lookup.rows)));
        // More bytes than a number can hold: no memory is as large, so it is refused below.
        let bytes = |each: u64| total.saturating_mul(each);
        let given = [("hashes", lookup.hashes, 16, bytes(16)), ("block ids", lookup.blocks, 4, bytes(4))];
        for (name, slice, align, bytes) in given.into_iter().chain(counts) {
            // A kernel that reads a misaligned address loses the device.
            if slice.address() % align != 0 || slice.bytes() < bytes {
                let text = format!(
                    "{name} are {} bytes at {:#x}; {bytes} bytes aligned to {align} are needed",
                    slice.bytes(),
                    slice.address()
                );
                return Err(Error::argument(text));
            }
        }
        let missing = || Error::new(Status::Unsupported, "the cache was made without KAVERN_KV_DEVICE_INDEX");
        let index = self.device_index.as_ref().ok_or_else(missing)?;
        if total == 0 {
            return Ok(());
        }
        index.lookup(self.device(), stream, lookup)
    }
}
