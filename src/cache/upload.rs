//! Staging of a step's tables: memory that is copied to the device, and what is packed into it.
//!
//! Packed words: a head, then runs, then the lists that say where each run and each single word belongs; the kernel
//! `UPLOAD` reads this form. Invariant: a slot is written only when nothing reads it any more, also after a call that
//! failed half way.

use std::ops::Range;
use std::sync::Arc;

use super::batch::{Batch, BatchEntry};
use super::copies::COPY_WORDS;
use super::group::Reach;
use super::kernels::UPLOAD_HEAD;
use super::sequence::Rows;
use super::state::State;
use super::table::Places;
use crate::device::{Copy, Device, DeviceSlice, OwnedEvent, Place, Stream};
use crate::error::Result;
use crate::memory::{Allocation, Memory, PinnedAllocation};

/// Where a staging slot lies: pinned and with a copy on the device, or plain memory where there is no device.
pub(super) enum Staging {
    Device(DeviceStaging),
    /// 64-bit words, so that slot mappings are aligned.
    Host(Vec<i64>),
}

/// A staging slot of a device.
pub(super) struct DeviceStaging {
    pinned: PinnedAllocation,
    packed: Allocation,
    event: OwnedEvent,
    /// A stream that may still read the slot, because recording the event failed.
    unrecorded: Option<Stream>,
}

impl DeviceStaging {
    pub(super) fn new(memory: &Arc<Memory>, words: u64, tag: &str) -> Result<Self> {
        Ok(Self {
            pinned: memory.pinned(4 * words, tag)?,
            packed: memory.allocate(4 * words, tag)?,
            event: OwnedEvent::new(memory.device())?,
            unrecorded: None,
        })
    }

    /// Marks the end of work that an earlier call could not mark; later than needed, but never too early.
    fn settle(&mut self, device: &dyn Device) -> Result<()> {
        if let Some(stream) = self.unrecorded {
            device.event_record(self.event.event(), stream)?;
            self.unrecorded = None;
        }
        Ok(())
    }

    /// Waits until nothing reads the slot any more.
    fn wait(&mut self, device: &dyn Device) -> Result<()> {
        self.settle(device)?;
        device.event_synchronize(self.event.event())
    }

    /// Copies the first words to the device, gives them to `work` and marks when both are over.
    pub(super) fn send(
        &mut self,
        device: &dyn Device,
        stream: Stream,
        words: usize,
        work: impl FnOnce(DeviceSlice) -> Result<()>,
    ) -> Result<()> {
        let bytes = 4 * words as u64;
        let (source, target) = (self.pinned.slice().part(0, bytes)?, self.packed.slice().part(0, bytes)?);
        device.copy(stream, Copy { target: Place::Device(target), source: Place::Pinned(source) })?;
        let outcome = work(target);
        // Whatever became of the work, the copy is under way and must be waited for.
        self.unrecorded = Some(stream);
        self.settle(device)?;
        outcome
    }
}

impl Staging {
    /// Marks the end of work that an earlier call could not mark.
    pub(super) fn settle(&mut self, device: &dyn Device) -> Result<()> {
        match self {
            Self::Device(staging) => staging.settle(device),
            Self::Host(_) => Ok(()),
        }
    }

    /// Waits until nothing reads the slot any more.
    pub(super) fn wait(&mut self, device: &dyn Device) -> Result<()> {
        match self {
            Self::Device(staging) => staging.wait(device),
            Self::Host(_) => Ok(()),
        }
    }

    pub(super) fn view(&self, first: usize, count: usize) -> Result<&[i32]> {
        match self {
            Self::Device(staging) => staging.pinned.values(4 * first as u64, count),
            Self::Host(words) => Ok(&bytemuck::cast_slice(words)[first..first + count]),
        }
    }

    pub(super) fn words(&mut self) -> Result<&mut [i32]> {
        match self {
            Self::Device(DeviceStaging { pinned, .. }) => {
                let count = (pinned.bytes() / 4) as usize;
                pinned.values_mut(0, count)
            }
            Self::Host(words) => Ok(bytemuck::cast_slice_mut(words)),
        }
    }
}

/// Word ranges of the arrays of the current step in its staging slot.
#[derive(Clone, Debug, Default)]
pub(super) struct StepArrays {
    pub(super) batch_count: usize,
    pub(super) token_count: usize,
    pub(super) rows: usize,
    pub(super) starts: usize,
    pub(super) groups: Vec<GroupArrays>,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct GroupArrays {
    pub(super) slots: usize,
    pub(super) indptr: usize,
    pub(super) last: usize,
}

/// Piece by piece, packs words and notes where each run belongs.
pub(super) struct Packer<'a> {
    pub(super) words: &'a mut [i32],
    pub(super) at: usize,
    pub(super) segments: &'a mut Vec<[i32; 3]>,
    pub(super) changes: &'a mut Vec<[i32; 2]>,
}

impl Packer<'_> {
    /// Words that another run may take, with room kept for the lists at the end. The changes are all there.
    pub(super) fn room(&self) -> usize {
        let lists = 3 * (self.segments.len() + 1) + 2 * self.changes.len();
        (self.words.len() - self.at).saturating_sub(lists)
    }

    /// A run of words, to fill. It goes to `target` in the arena, if that is somewhere.
    pub(super) fn run(&mut self, target: Option<u64>, count: usize) -> (usize, &mut [i32]) {
        let first = self.at;
        self.at += count;
        if let Some(target) = target.filter(|_| count > 0) {
            self.segments.push([target as u32 as i32, first as i32, count as i32]);
        }
        (first, &mut self.words[first..first + count])
    }

    pub(super) fn finish(mut self) -> usize {
        let (segments, changes) = (std::mem::take(self.segments), std::mem::take(self.changes));
        let (segments_at, words) = self.run(None, 3 * segments.len());
        words.copy_from_slice(segments.as_flattened());
        let (changes_at, words) = self.run(None, 2 * changes.len());
        words.copy_from_slice(changes.as_flattened());
        let head = [segments.len(), segments_at, changes.len(), changes_at].map(|word| word as i32);
        self.words[..UPLOAD_HEAD].copy_from_slice(&head);
        (*self.segments, *self.changes) = (segments, changes);
        self.segments.clear();
        self.changes.clear();
        self.at
    }
}

/// Whether all sequences of the batch still run.
fn are_all_live(state: &State) -> bool {
    state.batch.ended_before == state.holders.ended
}

/// Entries of the batch whose sequence still runs.
pub(super) fn live_entries(state: &State) -> impl Iterator<Item = &BatchEntry> + Clone {
    let are_all = are_all_live(state);
    state.batch.entries.iter().filter(move |entry| {
        if are_all {
            return true;
        }
        let holder = &state.holders.sequences[entry.row as usize].holder;
        holder.is_live && holder.generation == entry.generation
    })
}

pub(super) fn pack_batch(packer: &mut Packer<'_>, state: &State, places: &Places, arrays: &mut StepArrays) {
    match are_all_live(state) {
        true => pack_entries(packer, state.batch.entries.iter(), places, arrays),
        false => pack_entries(packer, live_entries(state), places, arrays),
    }
}

fn pack_entries<'a>(
    packer: &mut Packer<'_>,
    entries: impl Iterator<Item = &'a BatchEntry> + Clone,
    places: &Places,
    arrays: &mut StepArrays,
) {
    let count = entries.clone().count();
    let (rows_at, rows) = packer.run(Some(places.rows), count);
    entries.clone().zip(rows).for_each(|(entry, cell)| *cell = entry.row as i32);
    let (starts_at, starts) = packer.run(Some(places.starts), count + 1);
    let mut tokens = 0;
    for (entry, cell) in entries.zip(starts.iter_mut()) {
        *cell = tokens as i32;
        tokens += entry.count as usize;
    }
    starts[count] = tokens as i32;
    (arrays.rows, arrays.starts, arrays.batch_count, arrays.token_count) =
        (rows_at, starts_at, count, tokens);
}

/// Slots of batch positions of one token each, from the first on; answers how many there were. Blocks have 1 << `shift`
/// tokens.
fn pack_decodes(entries: &[BatchEntry], rows: &Rows, shift: u32, slots: &mut [i64]) -> usize {
    let (cells, row_cells, mask) = (rows.cells(), rows.row_cells(), (1 << shift) - 1);
    let ones = entries.iter().zip(slots).take_while(|(entry, _)| entry.count == 1);
    ones.map(|(entry, slot)| {
        // Lengths are 31 bits wide in the tables.
        let first = entry.first as u32;
        let block = cells[entry.row as usize * row_cells + (first >> shift) as usize];
        *slot = i64::from(block) << shift | i64::from(first & mask);
    })
    .count()
}

/// Slot of each scheduled token, and -1 up to where the device array holds older ones.
pub(super) fn pack_slots(
    packer: &mut Packer<'_>,
    state: &State,
    places: &Places,
    arrays: &mut StepArrays,
    slots_known: &mut usize,
    max_tokens: usize,
) {
    let padded = arrays.token_count.max(*slots_known).min(max_tokens);
    for (group, store) in state.stores.iter().enumerate() {
        if !state.has_slots[group] {
            continue;
        }
        if packer.at % 2 == 1 {
            packer.run(None, 1);
        }
        let (first, words) = packer.run(Some(places.groups[group].slots), 2 * padded);
        arrays.groups[group].slots = first;
        let slots: &mut [i64] = bytemuck::cast_slice_mut(words);
        let block_tokens = store.block_tokens;
        let has_classes = state.classes.len() > 1;
        let rows = &state.holders.rows[group];
        let mut at = 0;
        if are_all_live(state) && !has_classes && block_tokens.is_power_of_two() {
            at = pack_decodes(&state.batch.entries, rows, block_tokens.trailing_zeros(), slots);
        }
        for entry in live_entries(state).skip(at) {
            if has_classes && !state.holders.sequences[entry.row as usize].holder.groups.has(group) {
                slots[at..at + entry.count as usize].fill(-1);
                at += entry.count as usize;
                continue;
            }
            let row = rows.row(entry.row as usize);
            let first = entry.first as u32;
            let (mut position, mut offset) = (first / block_tokens, first % block_tokens);
            for slot in &mut slots[at..at + entry.count as usize] {
                *slot = i64::from(row[position as usize]) * i64::from(block_tokens) + i64::from(offset);
                offset += 1;
                if offset == block_tokens {
                    (position, offset) = (position + 1, 0);
                }
            }
            at += entry.count as usize;
        }
        slots[at..].fill(-1);
    }
    *slots_known = arrays.token_count;
}

/// Tokens that a group's pages of a sequence stand for; a state counts as a page that is full.
fn length_in(state: &State, group: usize, entry: &BatchEntry) -> u64 {
    let sequence = &state.holders.sequences[entry.row as usize];
    let store = &state.stores[group];
    match store.reach {
        Reach::State { .. } => u64::from(sequence.length > 0) * u64::from(store.block_tokens),
        Reach::Cross { tokens } => tokens.into(),
        _ if !sequence.holder.groups.has(group) => 0,
        _ => sequence.length,
    }
}

/// Pages of each batch position one after the other, for kernels that take ragged tables.
pub(super) fn pack_ragged(
    packer: &mut Packer<'_>,
    state: &State,
    places: &Places,
    arrays: &mut StepArrays,
    ragged: &mut [Vec<i32>],
) {
    for (group, pages) in ragged.iter_mut().enumerate().filter(|(_, pages)| pages.capacity() > 0) {
        pages.clear();
        let block_tokens = u64::from(state.stores[group].block_tokens);
        let (indptr_at, indptr) = packer.run(Some(places.groups[group].indptr), arrays.batch_count + 1);
        for (entry, cell) in live_entries(state).zip(indptr.iter_mut()) {
            *cell = pages.len() as i32;
            let length = length_in(state, group, entry);
            let used = length.div_ceil(block_tokens) as usize;
            pages.extend_from_slice(&state.holders.rows[group].row(entry.row as usize)[..used]);
        }
        indptr[arrays.batch_count] = pages.len() as i32;
        let (last_at, last) = packer.run(Some(places.groups[group].last), arrays.batch_count);
        for (entry, cell) in live_entries(state).zip(last) {
            let length = length_in(state, group, entry);
            *cell = if length == 0 { 0 } else { ((length - 1) % block_tokens + 1) as i32 };
        }
        (arrays.groups[group].indptr, arrays.groups[group].last) = (indptr_at, last_at);
    }
}

/// Changed cells of the block tables, as many as fit; answers how many.
pub(super) fn pack_cells(packer: &mut Packer<'_>, state: &mut State, group: usize, table: u64) -> u64 {
    let State { batch: Batch { dirty, .. }, holders, .. } = state;
    let rows = &holders.rows[group];
    let mut sent = 0;
    while let Some((row, (from, to))) = dirty[group].last() {
        let count = ((to - from) as usize).min(packer.room());
        if count == 0 {
            break;
        }
        let first = row as usize * rows.row_cells() + from as usize;
        packer.run(Some(table + first as u64), count).1.copy_from_slice(&rows.cells()[first..first + count]);
        dirty[group].note_known(from + count as u32);
        sent += count as u64;
    }
    sent
}

/// Listed copies of a group from a place in its list on, as many as fit; answers how many. A launch ends where a run
/// must come after those before it.
pub(super) fn pack_copies(
    packer: &mut Packer<'_>,
    state: &State,
    group: usize,
    range: Range<usize>,
    target: u64,
    launches: &mut Vec<(usize, usize, usize)>,
) -> usize {
    if range.is_empty() {
        return 0;
    }
    if packer.at % 2 == 1 {
        packer.run(None, 1);
    }
    let count = range.len().min(packer.room() / COPY_WORDS);
    let (first, words) = packer.run(Some(target), COPY_WORDS * count);
    let copies = state.copies.listed(group, range.start..range.start + count);
    for (copy, words) in copies.zip(words.chunks_exact_mut(COPY_WORDS)) {
        words.copy_from_slice(&copy.words());
    }
    let end = range.start + count;
    let breaks = state.copies.breaks(group).iter().map(|&at| at as usize);
    let mut from = range.start;
    for to in breaks.filter(|at| (range.start + 1..end).contains(at)).chain([end]) {
        if to > from {
            launches.push((group, first + COPY_WORDS * (from - range.start), to - from));
            from = to;
        }
    }
    count
}
