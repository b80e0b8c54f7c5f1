//! How rows grow and let go in a cache that has other groups than full ones.
//!
//! What it does: counts the blocks that ADMIT and APPEND need in each kind of group, lets go of what a window has left
//! behind, takes the new ones; TRIM; refuses what mixed groups cannot do. What it does not: states, which are in
//! `snapshots`. Invariant: a token that the open step computes never loses a block that it reaches, and a block that a
//! step in flight may read waits for it like any other. Caches of full groups alone never come here.

use super::change::{Change, PreemptMode};
use super::group::Reach;
use super::hash::Key;
use super::sequence::LetGo;
use super::state::State;
use super::step::{OpOutcome, OpResult, Refusal, Target};
use super::store::Store;
use crate::error::Status;

/// Whose row grows.
#[derive(Clone, Copy)]
pub(super) enum Grower {
    /// A lease that becomes a sequence.
    Lease(usize),
    /// A running sequence.
    Row(usize),
}

/// What ADMIT or APPEND asks of every group.
#[derive(Clone, Copy)]
pub(super) struct Growth {
    /// First token that the open step computes for the sequence.
    pub(super) first: u64,
    /// Tokens before the operation.
    pub(super) length: u64,
    pub(super) tokens: u64,
    pub(super) lookahead: u64,
}

impl Growth {
    /// Cells of a row of a group by token, the blocks in them, and how many of the first are out of reach.
    fn cells(&self, store: &Store) -> (usize, usize) {
        let each = u64::from(store.block_tokens);
        let end = self.length + self.tokens + store.reach.reserve(self.lookahead);
        (end.div_ceil(each) as usize, (store.reach.first_needed(self.first) / each) as usize)
    }
}

impl State {
    /// First token that the open step computes for a sequence, if it computes any.
    pub(super) fn computed_from(&self, row: usize) -> Option<u64> {
        let sequence = &self.holders.sequences[row];
        let is_in_batch = sequence.last_step == self.batch.step && self.batch.step > 0;
        let entry = is_in_batch.then(|| self.batch.entries[sequence.batch_position as usize]);
        entry.filter(|entry| entry.count > 0).map(|entry| entry.first)
    }

    /// Checks that every group can hold what is asked; answers how many blocks are new.
    pub(super) fn check_growth(&self, who: Grower, growth: &Growth) -> Result<u32, Refusal> {
        let most = growth.length.checked_add(growth.tokens).and_then(|end| end.checked_add(growth.lookahead));
        if most.is_none_or(|tokens| tokens > self.max_sequence_tokens) {
            return Err(Status::InvalidArgument.into());
        }
        let mut added = 0;
        for (group, store) in self.stores.iter().enumerate() {
            let (rows, row, last_step) = match who {
                Grower::Lease(lease) => (&self.holders.lease_rows[group], lease, 0),
                Grower::Row(row) => (&self.holders.rows[group], row, self.holders.sequences[row].last_step),
            };
            let (new, returned) = match store.reach {
                Reach::State { .. } => self.check_states(who, group, growth)?,
                Reach::Cross { .. } => ((rows.row_cells() - rows.count(row)) as u32, 0),
                _ => {
                    let (cells, first) = growth.cells(store);
                    let completed = self.shared.steps.completed();
                    let left = rows.row(row).get(rows.first(row)..first.min(rows.count(row)));
                    let returns = |&&block: &&i32| store.returns_at_once(block as u32, last_step, completed);
                    let returned = left.unwrap_or(&[]).iter().filter(returns).count();
                    (cells.saturating_sub(rows.count(row)) as u32, returned as u32)
                }
            };
            let available = store.available() + returned;
            if new > available {
                let missing = new - available;
                return Err(Refusal { status: Status::OutOfBlocks, missing, group: group as u32 });
            }
            added += new;
        }
        Ok(added)
    }

    /// Lets go of what is out of reach and takes the blocks that `check_growth` found room for.
    pub(super) fn grow_mixed(&mut self, row: usize, growth: &Growth) {
        let tenant = self.shared.namespaces.get(self.holders.sequences[row].holder.namespace).tenant;
        for group in 0..self.stores.len() {
            let store = &self.stores[group];
            let held = self.holders.rows[group].count(row);
            let (cells, first) = match store.reach {
                Reach::State { .. } => {
                    self.advance_states(group, row, growth, tenant);
                    continue;
                }
                Reach::Cross { .. } => (self.holders.rows[group].row_cells(), 0),
                _ => growth.cells(store),
            };
            self.let_go(group, row, first.min(held));
            let (store, rows) = (&mut self.stores[group], &mut self.holders.rows[group]);
            for _ in held..cells {
                let block = store.allocate(tenant, &mut self.shared);
                rows.push(row, block);
            }
            self.batch.used_slots += cells.saturating_sub(held) as u64 * store.slots();
            self.batch.mark_cells(group, row, held, cells);
        }
    }

    /// The first `first` cells of a row show the null block from now on.
    fn let_go(&mut self, group: usize, row: usize, first: usize) {
        let (store, rows) = (&mut self.stores[group], &mut self.holders.rows[group]);
        let was = rows.first(row);
        if first <= was {
            return;
        }
        let sequence = &self.holders.sequences[row];
        let last = rows.row(row)[first - 1] as u32;
        let is_named = first as u64 * u64::from(store.block_tokens) <= sequence.committed;
        let key = if is_named { store.block(last).key } else { Key::default() };
        let before = LetGo { serial: store.origin(last).serial, key };
        for &block in &rows.row(row)[was..first] {
            store.release(block as u32, sequence.last_step, &mut self.shared);
        }
        rows.note_let_go(row, first, before);
        self.batch.used_slots -= (first - was) as u64 * store.slots();
        self.batch.mark_cells(group, row, was, first);
    }

    /// Lets go of the blocks that lie wholly before `offset` in every group that can do without them.
    pub(super) fn trim(&mut self, target: Target, offset: u64) -> OpOutcome {
        let row = self.find_ready(target)?;
        if offset > self.holders.sequences[row].length {
            return Err(Status::InvalidArgument.into());
        }
        if self.stores.iter().all(|store| !store.reach.has_holes()) {
            return Err(Status::Unsupported.into());
        }
        // What the open step computes is written, and reads at least itself.
        if self.computed_from(row).is_some_and(|first| offset > first) {
            return Err(Status::WrongState.into());
        }
        for group in 0..self.stores.len() {
            let store = &self.stores[group];
            if store.reach.has_holes() {
                let first = (offset / u64::from(store.block_tokens)) as usize;
                self.let_go(group, row, first.min(self.holders.rows[group].count(row)));
            }
        }
        let sequence = self.holders.sequence_id(row).0;
        Ok(OpResult { row: row as i32, sequence, ..OpResult::DONE })
    }

    /// Refuses what the groups of a mixed cache cannot do: share parts of rows, or have back what they let go.
    pub(super) fn check_mixed_change(&self, target: Target, change: &Change<'_>) -> Result<(), Refusal> {
        if self.is_plain {
            return Ok(());
        }
        let row = self.find_target(target)?;
        let sequence = &self.holders.sequences[row];
        match *change {
            Change::Fork { .. } | Change::Accept | Change::Edit { .. } => Err(Status::Unsupported.into()),
            Change::Rollback { tokens, .. } => {
                let has_states =
                    || self.stores.iter().any(|store| matches!(store.reach, Reach::State { .. }));
                if tokens < sequence.committed || (tokens < sequence.length && has_states()) {
                    return Err(Status::Unsupported.into());
                }
                let has_let_go = self.stores.iter().zip(&self.holders.rows).any(|(store, rows)| {
                    // What TRIM let go is not needed, but the place of the next token is.
                    let needed =
                        if store.reach.is_window() { store.reach.first_needed(tokens) } else { tokens };
                    (needed / u64::from(store.block_tokens)) < rows.first(row) as u64
                });
                if has_let_go { Err(Status::WrongState.into()) } else { Ok(()) }
            }
            Change::Cancel | Change::Preempt { mode: PreemptMode::Drop } => {
                let is_unwritten = !self.unwritten_commits(row, 0).is_empty();
                if is_unwritten { Err(Status::WrongState.into()) } else { Ok(()) }
            }
            Change::Preempt { .. } | Change::Resume { .. } => Ok(()),
        }
    }
}
