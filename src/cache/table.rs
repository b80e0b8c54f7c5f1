//! Block tables and slot mappings at device addresses that never change.
//!
//! All device tables lie in one arena. A step packs what changed into one staging slot of pinned memory: one copy to
//! the device and one kernel spread it over the arena in stream order, so a reader on the stream sees either the old
//! tables or the new ones. A staging slot is written again only after its copy has completed. Nothing is allocated
//! after creation; a step whose changes exceed a slot goes in several pieces, which may wait for an earlier one.

use super::config::{CacheConfig, Geometry, GroupGeometry};
use super::copies::{self, COPY_WORDS};
use super::device_index::{DeviceIndex, IndexUpdate};
use super::kernels::{TOKENS, UPLOAD, UPLOAD_HEAD, ZERO, grid};
use super::state::State;
use super::upload::{
    DeviceStaging, GroupArrays, Packer, Staging, StepArrays, pack_batch, pack_cells, pack_copies,
    pack_ragged, pack_slots,
};
use crate::device::{Arg, Device, DeviceSlice, Launch, Stream};
use crate::error::{Error, Result};
use crate::memory::{Allocation, Memory};
use crate::sys::reserve::{filled, room};
use std::sync::Arc;

/// Words to which every array of the arena is aligned: 256 bytes.
const ALIGN_WORDS: u64 = 64;
/// Most cells that one staging slot carries beside the arrays of the batch.
const CELLS_MAX: u64 = 1 << 20;
/// Least cells that one staging slot carries.
const CELLS_MIN: u64 = 1 << 14;

/// First words of the arrays of one group in the arena.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct GroupPlaces {
    pub(super) table: u64,
    pub(super) slots: u64,
    pub(super) indptr: u64,
    pub(super) indices: u64,
    pub(super) last: u64,
}

/// First words of all arrays in the arena.
#[derive(Clone, Debug, Default)]
pub(super) struct Places {
    pub(super) rows: u64,
    pub(super) starts: u64,
    pub(super) lengths: u64,
    /// Copied runs, one group after the other.
    pub(super) copies: u64,
    pub(super) groups: Vec<GroupPlaces>,
    words: u64,
}

impl Places {
    fn new(geometry: &Geometry, config: &CacheConfig) -> Self {
        let rows = u64::from(config.max_sequences);
        let mut at = 0;
        let mut take = |words: u64| {
            let first = at;
            at += words.next_multiple_of(ALIGN_WORDS);
            first
        };
        let mut places =
            Self { rows: take(rows), starts: take(rows + 1), lengths: take(rows), ..Self::default() };
        for group in &geometry.groups {
            let cells = rows * u64::from(group.row_cells);
            let ragged = |words: u64| if config.ragged { words } else { 0 };
            places.groups.push(GroupPlaces {
                table: take(cells),
                slots: take(if group.has_slots() { 2 * u64::from(config.max_batch_tokens) } else { 0 }),
                indptr: take(ragged(rows + 1)),
                indices: take(ragged(cells)),
                last: take(ragged(rows)),
            });
        }
        let runs: usize = copies::capacities(geometry, config.max_sequences).sum();
        places.copies = take((COPY_WORDS * runs) as u64);
        places.words = at;
        places
    }
}

/// What one call of `tables` gives for one group, besides addresses that never change.
#[derive(Clone, Copy, Debug)]
pub struct GroupView<'a> {
    /// `[max_sequences][row_cells]`.
    pub block_table: &'a [i32],
    /// Of the scheduled tokens; empty for opaque groups.
    pub slot_mapping: &'a [i64],
    /// Ragged form; empty if not asked for.
    pub page_indptr: &'a [i32],
    /// Ragged form.
    pub page_indices: &'a [i32],
    /// Ragged form.
    pub last_page_tokens: &'a [i32],
    /// Cells of a row.
    pub row_cells: u64,
    /// Cells that this call uploads.
    pub cells_uploaded: u64,
    /// Blocks that this call fills with zeros.
    pub blocks_zeroed: u64,
}

/// Device addresses of the tables; 0 where there is none.
#[derive(Clone, Copy, Debug, Default)]
pub struct GroupAddresses {
    /// `i32 [max_sequences][row_cells]`.
    pub block_table: u64,
    /// `i64 [max_batch_tokens]`.
    pub slot_mapping: u64,
    /// `i32 [max_sequences + 1]`.
    pub page_indptr: u64,
    /// `i32`.
    pub page_indices: u64,
    /// `i32 [max_sequences]`.
    pub last_page_tokens: u64,
}

/// Packs and enqueues the tables of a cache. One call at a time owns it.
pub(super) struct Uploader {
    pub(super) places: Places,
    arena: Option<Allocation>,
    staging: Vec<Staging>,
    next: usize,
    current: usize,
    /// The slot with the arrays of the batch, which the host reads after the call.
    batch_slot: usize,
    /// A call failed: a slot may be in use without a mark that says until when.
    is_unsettled: bool,
    pub(super) arrays: StepArrays,
    /// Tokens whose slots the device array holds, so that a shorter batch is padded again.
    slots_known: usize,
    segments: Vec<[i32; 3]>,
    changes: Vec<[i32; 2]>,
    ragged: Vec<Vec<i32>>,
    ragged_sent: Vec<usize>,
    pub(super) cells_uploaded: Vec<u64>,
    pub(super) blocks_zeroed: Vec<usize>,
    zero_runs: Vec<(usize, usize)>,
    pub(super) index: Option<IndexUpdate>,
    /// Copies of this call and those already packed, by group.
    pub(super) copies_planned: Vec<usize>,
    copies_packed: Vec<usize>,
    /// Launches of the packed piece: group, first word, runs.
    copy_launches: Vec<(usize, usize, usize)>,
    max_tokens: usize,
}

impl Uploader {
    pub(super) fn new(memory: &Arc<Memory>, geometry: &Geometry, config: &CacheConfig) -> Result<Self> {
        let places = Places::new(geometry, config);
        let groups = geometry.groups.len();
        let (rows, tokens) = (u64::from(config.max_sequences), u64::from(config.max_batch_tokens));
        let blocks: u64 = geometry.groups.iter().map(|group| u64::from(group.blocks)).sum();
        let with_slots = geometry.groups.iter().filter(|group| group.has_slots()).count() as u64;
        // Rows, starts, changes of lengths, and for each group slots, indptr, last pages; 64 for odd ends.
        let fixed = 4 * rows + with_slots * 2 * tokens + groups as u64 * 2 * rows + 64 * (groups as u64 + 1);
        let cells = if config.metadata_only { 0 } else { 4 * blocks.clamp(CELLS_MIN, CELLS_MAX) };
        let words = fixed + cells;
        if words > i32::MAX as u64 || places.words > u64::from(u32::MAX) {
            return Err(Error::argument(
                "max_sequences x longest sequence needs tables of over 16 GiB; lower one",
            ));
        }
        let mut staging = Vec::new();
        for _ in 0..=config.steps_in_flight {
            staging.push(match config.metadata_only {
                true => Staging::Host(filled(words.div_ceil(2) as usize, 0)?),
                false => Staging::Device(DeviceStaging::new(memory, words, &config.name)?),
            });
        }
        let arena = match config.metadata_only {
            true => None,
            false => Some(memory.allocate(4 * places.words, &config.name)?),
        };
        let mut ragged = vec![Vec::new(); groups];
        if config.ragged {
            for (pages, group) in ragged.iter_mut().zip(&geometry.groups) {
                *pages = room((rows * u64::from(group.row_cells)) as usize)?;
            }
        }
        Ok(Self {
            places,
            arena,
            staging,
            next: 0,
            current: 0,
            batch_slot: 0,
            is_unsettled: false,
            arrays: StepArrays { groups: vec![GroupArrays::default(); groups], ..StepArrays::default() },
            slots_known: 0,
            segments: room((words / 4) as usize)?,
            changes: room(config.max_sequences as usize)?,
            ragged,
            ragged_sent: vec![0; groups],
            cells_uploaded: vec![0; groups],
            blocks_zeroed: vec![0; groups],
            zero_runs: vec![(0, 0); groups],
            index: match config.index.device {
                true => Some(IndexUpdate::new(Arc::new(DeviceIndex::new(memory, geometry, &config.name)?))),
                false => None,
            },
            copies_planned: vec![0; groups],
            copies_packed: vec![0; groups],
            copy_launches: room(copies::capacities(geometry, config.max_sequences).sum())?,
            max_tokens: config.max_batch_tokens as usize,
        })
    }

    /// Zeroes the arena and pads the slot mappings. Blocks.
    pub(super) fn clear(&mut self, device: &dyn Device, geometry: &Geometry) -> Result<()> {
        let Some(arena) = &self.arena else { return Ok(()) };
        device.memset(Stream::DEFAULT, arena.slice(), 0)?;
        for (group, places) in geometry.groups.iter().zip(&self.places.groups) {
            if group.has_slots() {
                let slots = arena.slice().part(4 * places.slots, 8 * self.max_tokens as u64)?;
                device.memset(Stream::DEFAULT, slots, 0xff)?;
            }
        }
        if let Some(IndexUpdate { index, .. }) = &self.index {
            index.clear(device, Stream::DEFAULT)?;
        }
        device.stream_synchronize(Stream::DEFAULT)
    }

    /// Address of an array of the arena; 0 without a device.
    pub(super) fn address(&self, first_word: u64) -> u64 {
        self.arena.as_ref().map_or(0, |arena| arena.slice().address() + 4 * first_word)
    }

    pub(super) fn arena(&self) -> Option<&Allocation> {
        self.arena.as_ref()
    }

    /// Turns to the next staging slot; waits if its last copy is still under way, which is rare. Later pieces of a call
    /// leave the slot of the first one alone.
    pub(super) fn turn(&mut self, device: &dyn Device, is_first: bool) -> Result<()> {
        if self.is_unsettled {
            self.staging.iter_mut().try_for_each(|staging| staging.settle(device))?;
            self.is_unsettled = false;
        }
        if !is_first && self.next == self.batch_slot {
            // There are at least two slots, because a step is in flight.
            self.next = (self.next + 1) % self.staging.len();
        }
        self.staging[self.next].wait(device)?;
        self.current = self.next;
        if is_first {
            self.batch_slot = self.current;
        }
        self.next = (self.current + 1) % self.staging.len();
        Ok(())
    }

    /// Packs the arrays of the batch and as many changes as fit. Answers the words used and whether that was all.
    /// Called with the cache's lock held; calls no device.
    pub(super) fn pack(&mut self, state: &mut State, is_first: bool) -> Result<(usize, bool)> {
        let is_device = self.arena.is_some();
        let mut packer = Packer {
            words: self.staging[self.current].words()?,
            at: UPLOAD_HEAD,
            segments: &mut self.segments,
            changes: &mut self.changes,
        };
        if is_first {
            self.cells_uploaded.fill(0);
            self.blocks_zeroed.fill(0);
            self.ragged_sent.fill(0);
            self.copies_packed.fill(0);
            let listed = |group: usize| state.copies.count(group);
            self.copies_planned.iter_mut().enumerate().for_each(|(group, count)| *count = listed(group));
            pack_batch(&mut packer, state, &self.places, &mut self.arrays);
            pack_slots(
                &mut packer,
                state,
                &self.places,
                &mut self.arrays,
                &mut self.slots_known,
                self.max_tokens,
            );
            pack_ragged(&mut packer, state, &self.places, &mut self.arrays, &mut self.ragged);
            // Without a device the notes stay, for the step's plan.
            if let Some(rows) = is_device.then(|| state.batch.take_dirty_run()).flatten() {
                let target = self.places.lengths + rows.start as u64;
                packer.run(Some(target), rows.len()).1.copy_from_slice(&state.batch.lengths[rows]);
            }
            while let Some((row, length)) = is_device.then(|| state.batch.pop_dirty_length()).flatten() {
                packer.changes.push([(self.places.lengths + u64::from(row)) as u32 as i32, length]);
            }
        }
        let mut is_all = true;
        self.copy_launches.clear();
        let places_of_copies = self.places.copies;
        if is_device {
            for group in 0..state.stores.len() {
                let places = &self.places.groups[group];
                // The zero list may be long; what is listed stays listed until the fill is enqueued.
                let listed = &state.stores[group].zero_list()[self.blocks_zeroed[group]..];
                let count = listed.len().min(packer.room());
                let (first, words) = packer.run(None, count);
                words.copy_from_slice(&listed[..count]);
                self.zero_runs[group] = (first, count);
                // A target may stand in the zero list: copies come behind all of it.
                is_all &= count == listed.len();
                if count == listed.len() {
                    let before: usize = self.copies_planned[..group].iter().sum();
                    let (from, planned) = (self.copies_packed[group], self.copies_planned[group]);
                    let target = places_of_copies + (COPY_WORDS * (before + from)) as u64;
                    let count = pack_copies(
                        &mut packer,
                        state,
                        group,
                        from..planned,
                        target,
                        &mut self.copy_launches,
                    );
                    self.copies_packed[group] += count;
                }
                is_all &= self.copies_packed[group] == self.copies_planned[group];
                let pages = &self.ragged[group][self.ragged_sent[group]..];
                let count = pages.len().min(packer.room());
                let target = places.indices + self.ragged_sent[group] as u64;
                packer.run(Some(target), count).1.copy_from_slice(&pages[..count]);
                self.ragged_sent[group] += count;
                is_all &= count == pages.len();
                let sent = pack_cells(&mut packer, state, group, places.table);
                self.cells_uploaded[group] += sent;
                is_all &= state.batch.dirty[group].last().is_none();
                if let Some(index) = &mut self.index {
                    is_all &= index.pack(&mut packer, group, &mut state.stores[group]);
                }
            }
        }
        Ok((packer.finish(), is_all))
    }

    /// Enqueues what `pack` left: one copy, the zero fills, one spreading kernel.
    pub(super) fn enqueue(
        &mut self,
        device: &dyn Device,
        stream: Stream,
        words: usize,
        pools: &dyn Fn(usize) -> Result<(DeviceSlice, GroupGeometry)>,
    ) -> Result<()> {
        let (Some(arena), Staging::Device(staging)) = (&self.arena, &mut self.staging[self.current]) else {
            return Ok(());
        };
        let (zero_runs, blocks_zeroed) = (&self.zero_runs, &mut self.blocks_zeroed);
        let index = &self.index;
        let copy_launches = &self.copy_launches;
        staging.send(device, stream, words, |packed| {
            for (group, &(first, count)) in zero_runs.iter().enumerate().filter(|(_, run)| run.1 > 0) {
                let (pool, GroupGeometry { block_bytes, .. }) = pools(group)?;
                let ids = packed.part(4 * first as u64, 4 * count as u64)?;
                let args = [Arg::Write(pool), Arg::Read(ids), Arg::U64(block_bytes)];
                let grid = grid(count, block_bytes);
                device.launch(stream, &Launch { kernel: &ZERO, grid, block: 256, args: &args })?;
                blocks_zeroed[group] += count;
            }
            for &(group, first, count) in copy_launches {
                let (pool, geometry) = pools(group)?;
                let args = [
                    Arg::Write(pool),
                    Arg::Read(packed.part(4 * first as u64, (4 * COPY_WORDS * count) as u64)?),
                    Arg::U64(geometry.block_tokens.into()),
                    Arg::U64(geometry.block_bytes),
                    Arg::U64(geometry.plane_bytes()),
                ];
                let grid = grid(count, geometry.block_bytes);
                device.launch(stream, &Launch { kernel: &TOKENS, grid, block: 256, args: &args })?;
            }
            // Behind the copies: whoever is told of a place on another stream finds the bytes there.
            if let Some(index) = index {
                index.enqueue(device, stream, packed)?;
            }
            let args = [Arg::Write(arena.slice()), Arg::Read(packed)];
            device.launch(stream, &Launch { kernel: &UPLOAD, grid: 64, block: 256, args: &args })
        })
    }

    /// The current step's arrays of a group as the host sees them.
    pub(super) fn group_view<'a>(&'a self, state: &'a State, group: usize) -> Result<GroupView<'a>> {
        let arrays = self.arrays.groups[group];
        let (batch, tokens) = (self.arrays.batch_count, self.arrays.token_count);
        let ragged =
            |first: usize, count: usize| if first == 0 { Ok(&[][..]) } else { self.view(first, count) };
        // An empty slice of words need not be aligned for 64 bits, so it is never cast.
        let slot_mapping: &[i64] = match 2 * tokens {
            words if arrays.slots > 0 && words > 0 => bytemuck::cast_slice(self.view(arrays.slots, words)?),
            _ => &[],
        };
        Ok(GroupView {
            block_table: state.holders.rows[group].cells(),
            slot_mapping,
            page_indptr: ragged(arrays.indptr, batch + 1)?,
            page_indices: &self.ragged[group],
            last_page_tokens: ragged(arrays.last, batch)?,
            row_cells: state.holders.rows[group].row_cells() as u64,
            cells_uploaded: self.cells_uploaded[group],
            blocks_zeroed: self.blocks_zeroed[group] as u64,
        })
    }

    fn view(&self, first: usize, count: usize) -> Result<&[i32]> {
        self.staging[self.batch_slot].view(first, count)
    }

    /// Rows of the batch positions.
    pub(super) fn batch_rows(&self) -> Result<&[i32]> {
        self.view(self.arrays.rows, self.arrays.batch_count)
    }

    /// First token of each batch position, and the end.
    pub(super) fn batch_starts(&self) -> Result<&[i32]> {
        self.view(self.arrays.starts, self.arrays.batch_count + 1)
    }

    /// After a failed call nobody knows what the device holds: everything goes again.
    pub(super) fn forget_known(&mut self, state: &mut State) {
        self.is_unsettled = true;
        self.slots_known = self.max_tokens;
        state.mark_all_dirty();
    }

    pub(super) fn bytes(&self) -> u64 {
        let ragged: usize = self.ragged.iter().map(Vec::capacity).sum();
        (self.segments.capacity() * 12 + self.changes.capacity() * 8 + ragged * 4) as u64
    }
}
