//! Sequences and leases: which blocks each holds, in rows of fixed size.
//!
//! A sequence is a row of the block tables; its id carries the row and a generation. A lease holds the hits of a
//! lookup in a row of its own until ADMIT copies it or RELEASE drops it. Rows never move and nothing is allocated
//! after creation. Invariant: `committed <= length`; of the first `counts[row]` cells of a row those before
//! `firsts[row]` show the null block and the others are held blocks. A row of states is `[current, start]`.

use super::config::{Geometry, GroupGeometry};
use super::group::Reach;
use super::hash::Key;
use super::holder::LINE_BYTES;
pub(super) use super::holder::{Holder, Lease, Pause, Sequence};
use super::kin::Kin;
use super::list::List;
use crate::error::{Error, Result, Status};
use crate::sys::prefetch;
use crate::sys::reserve::{Zeroed, filled, room};
use crate::types::{Id, IdKind};

/// Rows of block ids of one group.
pub(super) struct Rows {
    /// Pages come as rows are used: most rows stay far from the longest sequence.
    cells: Zeroed<i32>,
    counts: Vec<u32>,
    /// Rows whose count is not 0.
    in_use: u64,
    row_cells: usize,
    /// Cells at the start of a row that show the null block.
    firsts: Vec<u32>,
    /// What a cell shows whose block was let go.
    null_block: i32,
    /// Sum of `firsts`.
    holes: u64,
    /// Where a row has holes: the content that its last hole held. Empty in groups without holes.
    before: Vec<LetGo>,
    /// State: tokens that the state in the second cell has taken in. Empty in all other groups.
    start_tokens: Vec<u64>,
}

/// What is remembered of the last block that a row let go: what follows it is its content's child.
#[derive(Clone, Copy, Default)]
pub(super) struct LetGo {
    pub(super) serial: u64,
    pub(super) key: Key,
}

impl Rows {
    fn new(rows: u32, group: &GroupGeometry) -> Result<Self> {
        let row_cells = group.row_cells as usize;
        let count_if = |wanted: bool| if wanted { rows as usize } else { 0 };
        Ok(Self {
            cells: Zeroed::new(rows as usize * row_cells)?,
            counts: filled(rows as usize, 0)?,
            in_use: 0,
            row_cells,
            firsts: filled(rows as usize, 0)?,
            null_block: group.null_block().map_or(-1, |block| block as i32),
            holes: 0,
            before: filled(count_if(group.reach.has_holes()), LetGo::default())?,
            start_tokens: filled(count_if(matches!(group.reach, Reach::State { .. })), 0)?,
        })
    }

    /// Cells at the start of a row that show the null block.
    pub(super) fn first(&self, row: usize) -> usize {
        self.firsts[row] as usize
    }

    /// Sum of `first` over all rows.
    pub(super) fn holes(&self) -> u64 {
        self.holes
    }

    /// The blocks that a row holds, without its holes.
    pub(super) fn held(&self, row: usize) -> &[i32] {
        &self.row(row)[self.firsts[row] as usize..]
    }

    /// Cells of a row that the device must know.
    pub(super) fn shown(&self, row: usize) -> usize {
        if self.start_tokens.is_empty() { self.count(row) } else { self.row_cells }
    }

    /// Rows that hold something.
    pub(super) fn rows_in_use(&self) -> u64 {
        self.in_use
    }

    fn set_count(&mut self, row: usize, count: u32) {
        let was = std::mem::replace(&mut self.counts[row], count);
        self.in_use = self.in_use + u64::from(count > 0) - u64::from(was > 0);
    }

    pub(super) fn before(&self, row: usize) -> LetGo {
        self.before[row]
    }

    /// The first `first` cells show the null block from now on; the caller has let their blocks go.
    pub(super) fn note_let_go(&mut self, row: usize, first: usize, before: LetGo) {
        let was = self.first(row);
        self.cells[row * self.row_cells..][was..first].fill(self.null_block);
        self.firsts[row] = first as u32;
        self.before[row] = before;
        self.holes += (first - was) as u64;
    }

    /// An empty row gets `count` cells, of which the first `first` are holes; `put` fills the others.
    pub(super) fn open_with_holes(&mut self, row: usize, first: usize, count: usize) {
        if first > 0 {
            self.note_let_go(row, first, LetGo::default());
        }
        self.set_count(row, count as u32);
    }

    /// Writes one cell, which the caller counts.
    pub(super) fn put(&mut self, row: usize, position: usize, block: i32) {
        self.cells[row * self.row_cells + position] = block;
    }

    /// One cell, counted or not.
    pub(super) fn cell(&self, row: usize, position: usize) -> i32 {
        self.cells[row * self.row_cells + position]
    }

    /// Tokens that the state in the second cell has taken in.
    pub(super) fn start_tokens(&self, row: usize) -> u64 {
        self.start_tokens[row]
    }

    /// What a row of states shows and holds.
    pub(super) fn set_states(&mut self, row: usize, current: i32, start: Option<(i32, u64)>) {
        let (block, tokens) = start.unwrap_or((-1, 0));
        self.put(row, 0, current);
        self.put(row, 1, block);
        self.start_tokens[row] = tokens;
        self.set_count(row, u32::from(current >= 0) + u32::from(block >= 0));
    }

    pub(super) fn cells(&self) -> &[i32] {
        &self.cells
    }

    pub(super) fn row_cells(&self) -> usize {
        self.row_cells
    }

    pub(super) fn count(&self, row: usize) -> usize {
        self.counts[row] as usize
    }

    /// Has the last cells of rows fetched, which are read soon; a row of another size class has none. Counts lie close
    /// together, so they are read and not guessed.
    #[inline]
    pub(super) fn fetch_last(&self, rows: impl Iterator<Item = usize>) {
        let cells = &self.cells[..];
        rows.filter_map(|row| self.last_cell(row)).for_each(|last| prefetch::prefetch(cells, last));
    }

    /// Where the last cell of a row is, if it has any.
    #[inline]
    pub(super) fn last_cell(&self, row: usize) -> Option<usize> {
        let last = self.counts.get(row)?.checked_sub(1)?;
        Some(row * self.row_cells + last as usize)
    }

    /// The blocks of a row.
    pub(super) fn row(&self, row: usize) -> &[i32] {
        &self.cells[row * self.row_cells..][..self.counts[row] as usize]
    }

    pub(super) fn push(&mut self, row: usize, block: u32) {
        let count = self.counts[row] as usize;
        self.cells[row * self.row_cells + count] = block as i32;
        self.set_count(row, count as u32 + 1);
    }

    /// The same for several.
    #[inline]
    pub(super) fn push_all(&mut self, row: usize, blocks: &[i32]) {
        let count = self.counts[row] as usize;
        self.cells[row * self.row_cells + count..][..blocks.len()].copy_from_slice(blocks);
        self.set_count(row, (count + blocks.len()) as u32);
    }

    /// Writes cells of a row.
    pub(super) fn set_cells(&mut self, row: usize, first: usize, cells: impl Iterator<Item = i32>) {
        let target = &mut self.cells[row * self.row_cells + first..(row + 1) * self.row_cells];
        target.iter_mut().zip(cells).for_each(|(cell, value)| *cell = value);
    }

    /// Puts a block into a cell of a row, within or right behind its blocks.
    pub(super) fn set(&mut self, row: usize, at: usize, block: u32) {
        self.cells[row * self.row_cells + at] = block as i32;
        self.set_count(row, self.counts[row].max(at as u32 + 1));
    }

    /// Makes a row begin with so many cells of another and end there.
    pub(super) fn copy_row(&mut self, from: usize, to: usize, count: usize) {
        let first = from * self.row_cells;
        self.cells.copy_within(first..first + count, to * self.row_cells);
        self.set_count(to, count as u32);
    }

    /// Shortens a row, not into its holes but to nothing; the caller has let the blocks behind go.
    pub(super) fn truncate(&mut self, row: usize, count: usize) {
        if count == 0 && self.firsts[row] > 0 {
            self.holes -= u64::from(self.firsts[row]);
            self.firsts[row] = 0;
        }
        self.set_count(row, count as u32);
    }

    fn copy_from(&mut self, row: usize, other: &Self, other_row: usize) {
        let source = other.row(other_row);
        self.cells[row * self.row_cells..][..source.len()].copy_from_slice(source);
        self.set_count(row, source.len() as u32);
        self.firsts[row] = other.firsts[other_row];
        self.holes += u64::from(self.firsts[row]);
        if let Some(before) = self.before.get_mut(row) {
            *before = LetGo::default();
        }
        if !self.start_tokens.is_empty() {
            let current = if source.is_empty() { -1 } else { source[0] };
            self.set_states(row, current, None);
        }
    }

    /// Checks that holes show the null block and are counted, and that states stand where they are counted.
    pub(super) fn validate(&self, reach: Reach) -> Result<()> {
        let rows = 0..self.counts.len();
        let is_hole = |&cell: &i32| cell == self.null_block;
        let is_wrong = |row: usize| match reach {
            Reach::State { .. } => self.held(row).iter().any(|&block| block < 0),
            _ => {
                let (holes, held) = self.row(row).split_at(self.first(row));
                !holes.iter().all(is_hole) || (reach.has_holes() && held.iter().any(is_hole))
            }
        };
        let holes: u64 = self.firsts.iter().map(|&first| u64::from(first)).sum();
        match rows.clone().find(|&row| is_wrong(row)) {
            Some(row) => Err(Error::internal(format!("row {row} shows other holes than it has"))),
            None if holes != self.holes => Err(Error::internal("the sum of holes is wrong")),
            None if self.counts.iter().filter(|&&count| count > 0).count() as u64 != self.in_use => {
                Err(Error::internal("the count of rows in use is wrong"))
            }
            None => Ok(()),
        }
    }

    fn bytes(&self) -> u64 {
        let words = self.cells.len() + self.counts.len() + self.firsts.len() + 2 * self.start_tokens.len();
        (words * 4 + self.before.len() * size_of::<LetGo>()) as u64
    }
}

/// All sequences and leases of a cache.
pub(super) struct Holders {
    pub(super) sequences: Vec<Sequence>,
    /// By row: what it shares with others that were forked from it or it from them.
    pub(super) kin: Vec<Kin>,
    /// One for each group.
    pub(super) rows: Vec<Rows>,
    free_rows: List,
    /// How often a sequence ended, or was dropped from the batch: then an entry of the batch may be nobody's.
    pub(super) ended: u64,
    pub(super) leases: Vec<Lease>,
    /// One for each group; with one row more than there are leases.
    pub(super) lease_rows: Vec<Rows>,
    free_leases: Vec<u32>,
    /// `[row][hash_block_tokens]`: tokens of the open link.
    open_tokens: Zeroed<i32>,
    link_tokens: usize,
}

fn next_generation(generation: u32) -> u32 {
    // 0 is no generation, so that an id is never 0.
    generation.checked_add(1).unwrap_or(1)
}

impl Holders {
    pub(super) fn new(geometry: &Geometry, max_sequences: u32, max_leases: u32) -> Result<Self> {
        let rows = |count: u32| geometry.groups.iter().map(|g| Rows::new(count, g)).collect::<Result<_>>();
        let mut free_rows = List::new(max_sequences)?;
        let mut free_leases = room(max_leases as usize)?;
        free_leases.extend((0..max_leases).rev());
        (0..max_sequences).for_each(|row| free_rows.push_newest(row));
        Ok(Self {
            sequences: filled(max_sequences as usize, Sequence::default())?,
            kin: filled(max_sequences as usize, Kin::default())?,
            rows: rows(max_sequences)?,
            free_rows,
            ended: 0,
            leases: filled(max_leases as usize, Lease::default())?,
            lease_rows: rows(max_leases + 1)?,
            free_leases,
            open_tokens: Zeroed::new(max_sequences as usize * geometry.hash_block_tokens as usize)?,
            link_tokens: geometry.hash_block_tokens as usize,
        })
    }

    pub(super) fn sequence_count(&self) -> u64 {
        self.sequences.len() as u64 - u64::from(self.free_rows.count())
    }

    pub(super) fn lease_count(&self) -> u64 {
        (self.leases.len() - self.free_leases.len()) as u64
    }

    pub(super) fn sequence_id(&self, row: usize) -> Id {
        Id::new(IdKind::Sequence, self.sequences[row].holder.generation, row as u32)
    }

    /// The row of a live sequence.
    pub(super) fn find_sequence(&self, id: Id) -> Result<usize> {
        let row = id.index(IdKind::Sequence).filter(|&row| row < self.sequences.len());
        match row {
            Some(row) if self.is_this(&self.sequences[row].holder, id) => Ok(row),
            _ => Err(Error::new(Status::StaleId, "the sequence id is stale or not a sequence's")),
        }
    }

    /// The same, for those who need no reason.
    pub(super) fn peek_sequence(&self, id: Id) -> Option<(usize, &Sequence)> {
        let row = id.index(IdKind::Sequence)?;
        let sequence = self.sequences.get(row)?;
        self.is_this(&sequence.holder, id).then_some((row, sequence))
    }

    /// Has fetched what an APPEND, or a COMMIT where it is said, touches of the records of rows.
    #[inline]
    pub(super) fn fetch_sequences(&self, rows: impl Iterator<Item = (usize, bool)>) {
        let sequences = &self.sequences[..];
        for (row, is_commit) in rows {
            prefetch::prefetch(sequences, row);
            if is_commit {
                prefetch::prefetch_part(sequences, row, LINE_BYTES);
            }
        }
    }

    /// The index of a live lease.
    pub(super) fn find_lease(&self, id: Id) -> Result<usize> {
        let index = id.index(IdKind::Lease).filter(|&index| index < self.leases.len());
        match index {
            Some(index) if self.is_this(&self.leases[index].holder, id) => Ok(index),
            _ => Err(Error::new(Status::StaleId, "the lease id is stale or not a lease's")),
        }
    }

    fn is_this(&self, holder: &Holder, id: Id) -> bool {
        holder.is_live && holder.generation == id.generation()
    }

    /// A lease to be filled; it is not live yet.
    pub(super) fn next_lease(&self) -> Result<usize> {
        let full = "max_leases leases are held; ADMIT or RELEASE one, or raise the limit";
        self.free_leases.last().map(|&index| index as usize).ok_or(Error::new(Status::LimitReached, full))
    }

    /// The row after those of the leases, in which lookups without a lease gather what they find; empty between calls.
    pub(super) fn probe_row(&self) -> usize {
        self.leases.len()
    }

    /// Makes the lease from `next_lease` live.
    pub(super) fn open_lease(&mut self, index: usize, holder: Holder, hit_tokens: u64) -> Id {
        let popped = self.free_leases.pop();
        debug_assert_eq!(popped, Some(index as u32), "the lease that next_lease named");
        let generation = next_generation(self.leases[index].holder.generation);
        self.leases[index] =
            Lease { holder: Holder { generation, is_live: true, ..holder }, hit_tokens, ..Lease::default() };
        Id::new(IdKind::Lease, generation, index as u32)
    }

    /// Ends a lease; its row has been emptied or copied.
    pub(super) fn close_lease(&mut self, index: usize) {
        self.leases[index].holder.is_live = false;
        self.lease_rows.iter_mut().for_each(|rows| rows.truncate(index, 0));
        self.free_leases.push(index as u32);
    }

    /// The row that a new sequence would get: the wanted one, or any.
    pub(super) fn choose_row(&self, wanted: i32) -> Result<usize> {
        if wanted < 0 {
            let full = "max_sequences sequences run; FREE one or raise the limit";
            return self
                .free_rows
                .oldest()
                .map(|row| row as usize)
                .ok_or(Error::new(Status::LimitReached, full));
        }
        let row = wanted as usize;
        if row >= self.sequences.len() {
            return Err(Error::argument("the row is not below max_sequences"));
        }
        if self.sequences[row].holder.is_live {
            return Err(Error::new(Status::InUse, "the row belongs to a running sequence"));
        }
        Ok(row)
    }

    /// Turns a lease into a sequence in a free row: the hits change hands.
    pub(super) fn admit(&mut self, lease: usize, row: usize) {
        let generation = self.open_row(row);
        let Lease { holder, hit_tokens, ask, .. } = self.leases[lease];
        self.sequences[row] = Sequence {
            holder: Holder { generation, ..holder },
            length: hit_tokens,
            committed: hit_tokens,
            ask,
            ..Sequence::default()
        };
        for (rows, lease_rows) in self.rows.iter_mut().zip(&self.lease_rows) {
            rows.copy_from(row, lease_rows, lease);
        }
        self.close_lease(lease);
    }

    /// Takes a free row for a new sequence; answers its generation.
    pub(super) fn open_row(&mut self, row: usize) -> u32 {
        self.free_rows.unlink(row as u32);
        self.kin[row] = Kin::default();
        next_generation(self.sequences[row].holder.generation)
    }

    /// Fills the row of a sequence that holds nothing with the hits of a lease.
    pub(super) fn refill(&mut self, lease: usize, row: usize) {
        let Lease { holder, hit_tokens, .. } = self.leases[lease];
        let sequence = &mut self.sequences[row];
        let Holder { generation, is_private, .. } = sequence.holder;
        sequence.holder = Holder {
            generation,
            no_store: holder.no_store || is_private,
            is_private: holder.is_private || is_private,
            ..holder
        };
        (sequence.length, sequence.committed) = (hit_tokens, hit_tokens);
        for (rows, lease_rows) in self.rows.iter_mut().zip(&self.lease_rows) {
            rows.copy_from(row, lease_rows, lease);
        }
        self.close_lease(lease);
    }

    /// Ends a sequence; its row has been emptied.
    pub(super) fn close_sequence(&mut self, row: usize) {
        self.ended += 1;
        let sequence = &mut self.sequences[row];
        sequence.holder.is_live = false;
        (sequence.length, sequence.ready) = (0, 0);
        self.rows.iter_mut().for_each(|rows| rows.truncate(row, 0));
        self.free_rows.push_oldest(row as u32);
    }

    /// Tokens of the open link of a row.
    pub(super) fn open_tokens(&self, row: usize) -> &[i32] {
        &self.open_tokens[row * self.link_tokens..][..self.link_tokens]
    }

    /// The same, to be written.
    pub(super) fn open_tokens_mut(&mut self, row: usize) -> &mut [i32] {
        &mut self.open_tokens[row * self.link_tokens..][..self.link_tokens]
    }

    /// Gives a row the tokens of another's open link.
    pub(super) fn copy_open_tokens(&mut self, from: usize, to: usize) {
        let each = self.link_tokens;
        self.open_tokens.copy_within(from * each..(from + 1) * each, to * each);
    }

    pub(super) fn bytes(&self) -> u64 {
        let rows: u64 = self.rows.iter().chain(&self.lease_rows).map(Rows::bytes).sum();
        let sequences =
            self.sequences.len() * (size_of::<Sequence>() + size_of::<Kin>()) + self.open_tokens.len() * 4;
        rows + (sequences + self.leases.len() * size_of::<Lease>()) as u64
    }

    /// Checks that a row is free exactly if its sequence is not live.
    pub(super) fn validate(&self) -> Result<()> {
        let free = self.free_rows.validate()?;
        if free.iter().any(|&row| self.sequences[row as usize].holder.is_live)
            || free.len() + self.sequences.iter().filter(|s| s.holder.is_live).count() != self.sequences.len()
            || self.sequences.iter().any(|s| s.holder.is_live && s.committed > s.length)
        {
            return Err(Error::internal("sequence rows and their free list disagree"));
        }
        let live_leases = self.leases.iter().filter(|lease| lease.holder.is_live).count();
        if live_leases as u64 != self.lease_count() {
            return Err(Error::internal("leases and their free list disagree"));
        }
        Ok(())
    }
}

#[path = "row_moves.rs"]
mod row_moves;
