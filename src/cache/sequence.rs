//! Sequences and leases: which blocks each holds, in rows of fixed size.
//!
//! A sequence is a row of the block tables; its id carries the row and a generation. A lease holds the hits of a
//! lookup in a row of its own until ADMIT copies it or RELEASE drops it. Rows never move and nothing is allocated
//! after creation. Invariant: `committed <= length`, and the first `counts[row]` cells of a row are held blocks.

use super::config::Geometry;
use super::hash::{Extras, Key};
use super::list::List;
use crate::error::{Error, Result, Status};
use crate::sys::reserve::{Zeroed, filled, room};
use crate::types::{Id, IdKind};

/// Rows of block ids of one group.
pub(super) struct Rows {
    /// Pages come as rows are used: most rows stay far from the longest sequence.
    cells: Zeroed<i32>,
    counts: Vec<u32>,
    row_cells: usize,
}

impl Rows {
    fn new(rows: u32, row_cells: u32) -> Result<Self> {
        Ok(Self {
            cells: Zeroed::new(rows as usize * row_cells as usize)?,
            counts: filled(rows as usize, 0)?,
            row_cells: row_cells as usize,
        })
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

    /// The blocks of a row.
    pub(super) fn row(&self, row: usize) -> &[i32] {
        &self.cells[row * self.row_cells..][..self.counts[row] as usize]
    }

    pub(super) fn push(&mut self, row: usize, block: u32) {
        let count = self.counts[row] as usize;
        self.cells[row * self.row_cells + count] = block as i32;
        self.counts[row] += 1;
    }

    pub(super) fn truncate(&mut self, row: usize, count: usize) {
        self.counts[row] = count as u32;
    }

    fn copy_from(&mut self, row: usize, other: &Self, other_row: usize) {
        let source = other.row(other_row);
        self.cells[row * self.row_cells..][..source.len()].copy_from_slice(source);
        self.counts[row] = source.len() as u32;
    }

    fn bytes(&self) -> u64 {
        (self.cells.len() + self.counts.len()) as u64 * 4
    }
}

/// What a lease and a sequence have in common: whose it is and where its chain stands.
#[derive(Clone, Copy, Default)]
pub(super) struct Holder {
    pub(super) generation: u32,
    pub(super) is_live: bool,
    pub(super) no_store: bool,
    pub(super) namespace: u32,
    /// Key of the last complete link.
    pub(super) key: Key,
    /// Digest of all extras so far.
    pub(super) extras: Extras,
}

/// Hits that are kept alive.
#[derive(Clone, Copy, Default)]
pub(super) struct Lease {
    pub(super) holder: Holder,
    pub(super) hit_tokens: u64,
    /// The blocks are no prefix: they are read where they lie, until the lease is released.
    pub(super) is_chunks: bool,
}

/// A running sequence.
#[derive(Clone, Copy, Default)]
pub(super) struct Sequence {
    pub(super) holder: Holder,
    /// Tokens that were scheduled.
    pub(super) length: u64,
    /// Tokens whose ids or keys are final.
    pub(super) committed: u64,
    /// Latest step in which it was scheduled.
    pub(super) last_step: u64,
    /// Call of `step` in which an operation on it was refused.
    pub(super) refused_in_call: u64,
    /// Its place in the batch of `last_step`.
    pub(super) batch_position: u32,
}

/// All sequences and leases of a cache.
pub(super) struct Holders {
    pub(super) sequences: Vec<Sequence>,
    /// One for each group.
    pub(super) rows: Vec<Rows>,
    free_rows: List,
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
        let rows =
            |count: u32| geometry.groups.iter().map(|g| Rows::new(count, g.row_cells)).collect::<Result<_>>();
        let mut free_rows = List::new(max_sequences)?;
        let mut free_leases = room(max_leases as usize)?;
        free_leases.extend((0..max_leases).rev());
        (0..max_sequences).for_each(|row| free_rows.push_newest(row));
        Ok(Self {
            sequences: filled(max_sequences as usize, Sequence::default())?,
            rows: rows(max_sequences)?,
            free_rows,
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
            Lease { holder: Holder { generation, is_live: true, ..holder }, hit_tokens, is_chunks: false };
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
        self.free_rows.unlink(row as u32);
        let Lease { holder, hit_tokens, .. } = self.leases[lease];
        let generation = next_generation(self.sequences[row].holder.generation);
        self.sequences[row] = Sequence {
            holder: Holder { generation, ..holder },
            length: hit_tokens,
            committed: hit_tokens,
            ..Sequence::default()
        };
        for (rows, lease_rows) in self.rows.iter_mut().zip(&self.lease_rows) {
            rows.copy_from(row, lease_rows, lease);
        }
        self.close_lease(lease);
    }

    /// Ends a sequence; its row has been emptied.
    pub(super) fn close_sequence(&mut self, row: usize) {
        self.sequences[row].holder.is_live = false;
        self.sequences[row].length = 0;
        self.rows.iter_mut().for_each(|rows| rows.truncate(row, 0));
        self.free_rows.push_oldest(row as u32);
    }

    /// Tokens of the open link of a row.
    pub(super) fn open_tokens(&mut self, row: usize) -> &mut [i32] {
        &mut self.open_tokens[row * self.link_tokens..][..self.link_tokens]
    }

    pub(super) fn bytes(&self) -> u64 {
        let rows: u64 = self.rows.iter().chain(&self.lease_rows).map(Rows::bytes).sum();
        let sequences = self.sequences.len() * size_of::<Sequence>() + self.open_tokens.len() * 4;
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
