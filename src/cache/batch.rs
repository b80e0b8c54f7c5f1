//! What is scheduled in the open step, and which cells of the tables changed since the device, or the workers of a
//! cache without one, last heard of them.
//!
//! A batch position is one sequence with a run of new tokens. Changed cells of a row are one range, because a row
//! only grows at its end until it is freed. All lists have fixed capacity.

use std::ops::{Deref, DerefMut, Range};

use super::config::{CacheConfig, Geometry};
use super::sequence::Sequence;
use crate::error::Result;
use crate::sys::reserve::{filled, room};

/// A list of fixed capacity whose free places can be written, too, by whoever counts them.
pub(super) struct Listed<T> {
    places: Vec<T>,
    count: usize,
}

impl<T: Copy + Default> Listed<T> {
    fn new(capacity: usize) -> Result<Self> {
        Ok(Self { places: filled(capacity, T::default())?, count: 0 })
    }

    pub(super) fn push(&mut self, value: T) {
        self.places[self.count] = value;
        self.count += 1;
    }

    fn pop(&mut self) -> Option<T> {
        let last = *self.last()?;
        self.count -= 1;
        Some(last)
    }

    fn clear(&mut self) {
        self.count = 0;
    }
}

impl<T> Deref for Listed<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.places[..self.count]
    }
}

impl<T> DerefMut for Listed<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.places[..self.count]
    }
}

/// One sequence of the batch.
#[derive(Clone, Copy, Default)]
pub(super) struct BatchEntry {
    pub(super) row: u32,
    pub(super) generation: u32,
    /// First scheduled token, counted from the start of the sequence.
    pub(super) first: u64,
    pub(super) count: u32,
    /// How many of them tables or a plan told: the work on those may be under way.
    pub(super) told: u32,
    /// How many of them tables that are not over yet, or failed, have packed.
    pub(super) packed: u32,
}

/// Changed cells of the rows of one group.
pub(super) struct Dirty {
    /// `from..to` by row; empty if nothing changed.
    ranges: Vec<(u32, u32)>,
    /// The rows whose range is not empty.
    rows: Vec<u32>,
}

impl Dirty {
    fn new(rows: usize) -> Result<Self> {
        Ok(Self { ranges: filled(rows, (0, 0))?, rows: room(rows)? })
    }

    fn mark(&mut self, row: usize, from: u32, to: u32) {
        let range = &mut self.ranges[row];
        if from >= to {
            return;
        }
        if range.0 == range.1 {
            self.rows.push(row as u32);
            *range = (from, to);
        } else {
            *range = (range.0.min(from), range.1.max(to));
        }
    }

    /// Changed rows with their ranges.
    pub(super) fn last(&self) -> Option<(u32, (u32, u32))> {
        self.rows.last().map(|&row| (row, self.ranges[row as usize]))
    }

    /// Row, first and end of each changed range.
    pub(super) fn ranges(&self) -> impl Iterator<Item = (u32, u32, u32)> + '_ {
        self.rows.iter().map(|&row| (row, self.ranges[row as usize].0, self.ranges[row as usize].1))
    }

    /// Cells of a row that changed.
    pub(super) fn range(&self, row: usize) -> (u32, u32) {
        self.ranges[row]
    }

    /// Everybody knows everything.
    pub(super) fn clear(&mut self) {
        for row in self.rows.drain(..) {
            self.ranges[row as usize] = (0, 0);
        }
    }

    /// The device knows the last row's range up to `known`.
    pub(super) fn note_known(&mut self, known: u32) {
        if let Some(&row) = self.rows.last() {
            let range = &mut self.ranges[row as usize];
            range.0 = known;
            if range.0 >= range.1 {
                *range = (0, 0);
                self.rows.pop();
            }
        }
    }
}

/// The batch of the open step, and what the device must still learn.
pub(super) struct Batch {
    pub(super) step: u64,
    pub(super) entries: Listed<BatchEntry>,
    pub(super) tokens: u32,
    /// `Holders::ended` when the step began: while it is the same, all entries are live.
    pub(super) ended_before: u64,
    /// Tables or a plan of this step were made: its work may be under way.
    pub(super) is_told: bool,
    pub(super) max_tokens: u32,
    pub(super) max_entries: u32,
    /// `[row]`: tokens of each row's sequence.
    pub(super) lengths: Vec<i32>,
    /// Rows whose length the device does not know.
    pub(super) dirty_lengths: Listed<u32>,
    is_length_dirty: Vec<bool>,
    /// One for each group.
    pub(super) dirty: Vec<Dirty>,
    pub(super) used_tokens: u64,
    pub(super) used_slots: u64,
}

impl Batch {
    pub(super) fn new(geometry: &Geometry, config: &CacheConfig) -> Result<Self> {
        let rows = config.max_sequences as usize;
        Ok(Self {
            step: 0,
            entries: Listed::new(rows)?,
            tokens: 0,
            ended_before: 0,
            is_told: false,
            max_tokens: config.max_batch_tokens,
            max_entries: config.max_sequences,
            lengths: filled(rows, 0)?,
            dirty_lengths: Listed::new(rows)?,
            is_length_dirty: filled(rows, false)?,
            dirty: geometry.groups.iter().map(|_| Dirty::new(rows)).collect::<Result<_>>()?,
            used_tokens: 0,
            used_slots: 0,
        })
    }

    /// Starts the batch of a new step; `ended` is that of the holders.
    pub(super) fn begin(&mut self, step: u64, ended: u64) {
        self.step = step;
        self.ended_before = ended;
        self.is_told = false;
        self.entries.clear();
        self.tokens = 0;
    }

    /// Tables have packed everything that is scheduled: what is listed from now on, they do not tell.
    pub(super) fn note_packed(&mut self) {
        self.entries.iter_mut().for_each(|entry| entry.packed = entry.count);
    }

    /// Tables told what they packed.
    pub(super) fn note_packed_told(&mut self) {
        self.entries.iter_mut().for_each(|entry| entry.told = entry.told.max(entry.packed));
    }

    /// A plan told everything that is scheduled.
    pub(super) fn note_told(&mut self) {
        self.is_told = true;
        self.note_packed();
        self.note_packed_told();
    }

    /// Whether so many tokens more may be scheduled.
    pub(super) fn has_room(&self, tokens: u64, is_new_entry: bool) -> bool {
        tokens <= u64::from(self.max_tokens - self.tokens)
            && !(is_new_entry && self.entries.len() == self.max_entries as usize)
    }

    /// Has new entries come one after the other.
    #[inline(always)]
    pub(super) fn entering(&mut self) -> Entering<'_> {
        let room_tokens = u64::from(self.max_tokens - self.tokens);
        let free = &mut self.entries.places[self.entries.count..];
        Entering { step: self.step, room_tokens, first: self.entries.count as u32, free, count: 0 }
    }

    /// Counts so many entries that have come.
    #[inline(always)]
    pub(super) fn note_entered(&mut self, count: usize) {
        let rows = self.lengths.len();
        let (lengths, is_dirty) = (&mut self.lengths[..rows], &mut self.is_length_dirty[..rows]);
        let entries = &self.entries.places[self.entries.count..][..count];
        let mut tokens = 0;
        for &BatchEntry { row, first, count, .. } in entries {
            let row = row as usize;
            tokens += count;
            lengths[row] = (first + u64::from(count)) as i32;
            if !std::mem::replace(&mut is_dirty[row], true) {
                self.dirty_lengths.push(row as u32);
            }
        }
        self.entries.count += count;
        self.tokens += tokens;
        self.used_tokens += u64::from(tokens);
    }

    /// Schedules the next tokens of a sequence that is not in the batch; there is room.
    pub(super) fn begin_entry(&mut self, row: usize, sequence: &mut Sequence, tokens: u64) {
        let mut entering = self.entering();
        entering.enter(row, sequence, tokens);
        self.note_entered(1);
    }

    /// The same of one that is in it.
    pub(super) fn go_on_with_entry(&mut self, row: usize, sequence: &mut Sequence, tokens: u64) {
        self.entries[sequence.batch_position as usize].count += tokens as u32;
        sequence.length += tokens;
        self.tokens += tokens as u32;
        self.used_tokens += tokens;
        self.set_length(row, sequence.length);
    }

    pub(super) fn set_length(&mut self, row: usize, length: u64) {
        self.lengths[row] = length as i32;
        if !std::mem::replace(&mut self.is_length_dirty[row], true) {
            self.dirty_lengths.push(row as u32);
        }
    }

    /// Takes all rows whose length the device must learn, if most of the rows from the first to the last of them are
    /// such: then all of these go. They are nearly always one run, because each running sequence gets a token a step.
    pub(super) fn take_dirty_run(&mut self) -> Option<Range<usize>> {
        let among = |of: fn(u32, u32) -> u32| self.dirty_lengths.iter().copied().reduce(of);
        let (first, end) = (among(u32::min)? as usize, among(u32::max)? as usize + 1);
        if 2 * self.dirty_lengths.len() < end - first {
            return None;
        }
        self.dirty_lengths.clear();
        self.is_length_dirty[first..end].fill(false);
        Some(first..end)
    }

    /// Takes the next row whose length the device must learn.
    pub(super) fn pop_dirty_length(&mut self) -> Option<(u32, i32)> {
        let row = self.dirty_lengths.pop()?;
        self.is_length_dirty[row as usize] = false;
        Some((row, self.lengths[row as usize]))
    }

    pub(super) fn mark_cells(&mut self, group: usize, row: usize, from: usize, to: usize) {
        self.dirty[group].mark(row, from as u32, to as u32);
    }

    pub(super) fn bytes(&self) -> u64 {
        let rows = self.lengths.len() as u64;
        rows * (size_of::<BatchEntry>() as u64 + 9 + self.dirty.len() as u64 * 12)
    }
}

/// A batch into which entries come one after the other; it counts them, and the lengths of their rows, in
/// [`Batch::note_entered`].
pub(super) struct Entering<'a> {
    pub(super) step: u64,
    room_tokens: u64,
    /// Position of the first place that was free.
    first: u32,
    free: &'a mut [BatchEntry],
    count: usize,
}

impl Entering<'_> {
    /// Whether there is room for one more of so many tokens.
    #[inline(always)]
    pub(super) fn has_room(&self, tokens: u64) -> bool {
        tokens <= self.room_tokens && self.count < self.free.len()
    }

    /// Schedules the next tokens of a sequence that is not in the batch; there is room.
    #[inline(always)]
    pub(super) fn enter(&mut self, row: usize, sequence: &mut Sequence, tokens: u64) {
        let (first, generation) = (sequence.length, sequence.holder.generation);
        (sequence.batch_position, sequence.last_step) = (self.first + self.count as u32, self.step);
        sequence.length = first + tokens;
        self.free[self.count] =
            BatchEntry { row: row as u32, generation, first, count: tokens as u32, told: 0, packed: 0 };
        self.room_tokens -= tokens;
        self.count += 1;
    }

    /// How many have come.
    #[inline(always)]
    pub(super) fn count(&self) -> usize {
        self.count
    }
}
