//! How rows grow and let go in a cache that has other groups than full ones.
//!
//! What it does: counts the blocks that ADMIT and APPEND need in each kind of group, lets go of what a window has left
//! behind, takes the new ones; TRIM. What it does not: states, which are in `snapshots`; going back and forks, which
//! are in `held`. Invariant: a token that the open step computes never loses a block that it reaches, and a block that
//! a step in flight may read waits for it like any other. Caches of full groups alone never come here.

use super::group::Reach;
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
    pub(super) fn cells(&self, store: &Store) -> (usize, usize) {
        let each = u64::from(store.block_tokens);
        let end = self.length + self.tokens + store.reach.reserve(self.lookahead);
        (end.div_ceil(each) as usize, (store.reach.first_needed(self.first) / each) as usize)
    }
}

impl State {
    /// Whether tables or a plan told of a sequence in the open step, or are about to: its work may be under way.
    pub(super) fn is_told(&self, row: usize) -> bool {
        let sequence = &self.holders.sequences[row];
        let is_in_batch = sequence.last_step == self.batch.step && self.batch.step > 0;
        is_in_batch && self.batch.entries[sequence.batch_position as usize].packed > 0
    }

    /// First token that the open step computes for a sequence, if it computes any.
    pub(super) fn computed_from(&self, row: usize) -> Option<u64> {
        let sequence = &self.holders.sequences[row];
        let is_in_batch = sequence.last_step == self.batch.step && self.batch.step > 0;
        let entry = is_in_batch.then(|| self.batch.entries[sequence.batch_position as usize]);
        entry.filter(|entry| entry.count > 0).map(|entry| entry.first)
    }

    /// As APPEND, without the scheduling; answers how many blocks are new.
    pub(super) fn append_mixed(
        &mut self,
        row: usize,
        tokens: u64,
        lookahead: u32,
        is_new_entry: bool,
    ) -> Result<u32, Refusal> {
        if self.holders.sequences[row].may_share {
            self.settle_tip(row);
        }
        let length = self.holders.sequences[row].length;
        let first = self.computed_from(row).unwrap_or(length);
        let growth = Growth { first, length, tokens, lookahead: lookahead.into() };
        let added = self.check_growth(Grower::Row(row), &growth)?;
        self.check_batch(tokens, is_new_entry)?;
        self.check_limit(self.holders.sequences[row].holder.namespace, added)?;
        self.grow_mixed(row, &growth);
        Ok(added)
    }

    /// Checks that every group can hold what is asked; answers how many blocks are new.
    pub(super) fn check_growth(&self, who: Grower, growth: &Growth) -> Result<u32, Refusal> {
        let most = growth.length.checked_add(growth.tokens).and_then(|end| end.checked_add(growth.lookahead));
        if most.is_none_or(|tokens| tokens > self.max_sequence_tokens) {
            return Err(Status::InvalidArgument.into());
        }
        let mut added = 0;
        for (group, store) in self.stores.iter().enumerate() {
            let (new, returned) = self.growth_of(who, group, growth)?;
            let available = store.available() + returned;
            if new > available {
                let missing = new - available;
                return Err(Refusal { status: Status::OutOfBlocks, missing, group: group as u32 });
            }
            added += new;
        }
        Ok(added)
    }

    /// New blocks that an operation needs of a group, and how many it lets go of that can be had at once.
    pub(super) fn growth_of(
        &self,
        who: Grower,
        group: usize,
        growth: &Growth,
    ) -> Result<(u32, u32), Refusal> {
        let store = &self.stores[group];
        let (rows, row, last_step) = match who {
            Grower::Lease(lease) => (&self.holders.lease_rows[group], lease, 0),
            Grower::Row(row) => (&self.holders.rows[group], row, self.last_use(row)),
        };
        match store.reach {
            Reach::State { .. } => return self.check_states(who, group, growth),
            Reach::Cross { .. } => return Ok(((rows.row_cells() - rows.count(row)) as u32, 0)),
            _ => {}
        }
        let (is_copied, runs) = match who {
            _ if growth.tokens == 0 => (false, 0),
            // What was found whole no copy of an open step writes: it is read in one run.
            Grower::Lease(_) => (store.ends_inside(growth.length), 1),
            Grower::Row(row) => {
                let copied = self.copied_cell(row, group);
                if copied.is_some_and(|at| self.is_found_unwritten(row, group, at)) {
                    return Err(Refusal { status: Status::WrongState, missing: 0, group: group as u32 });
                }
                (copied.is_some(), copied.map_or(0, |at| self.open_runs(row, group, at)))
            }
        };
        if is_copied && runs > self.copies.room(group) {
            return Err(Status::LimitReached.into());
        }
        let (cells, first) = growth.cells(store);
        let completed = self.shared.steps.completed();
        let left = rows.row(row).get(rows.first(row)..first.min(rows.count(row)));
        let returns = |&&block: &&i32| store.returns_at_once(block as u32, last_step, completed);
        let returned = left.unwrap_or(&[]).iter().filter(returns).count();
        Ok((cells.saturating_sub(rows.count(row)) as u32 + u32::from(is_copied), returned as u32))
    }

    /// Lets go of what is out of reach and takes the blocks that `check_growth` found room for.
    pub(super) fn grow_mixed(&mut self, row: usize, growth: &Growth) {
        let tenant = self.shared.namespaces.get(self.holders.sequences[row].holder.namespace).tenant;
        for group in 0..self.stores.len() {
            let store = &self.stores[group];
            if store.reach.has_holes() {
                let (_, first) = growth.cells(store);
                self.let_go(group, row, first.min(self.holders.rows[group].count(row)));
            }
        }
        if growth.tokens > 0 && self.holders.sequences[row].may_share {
            self.own_open_blocks(row);
        }
        for group in 0..self.stores.len() {
            let store = &self.stores[group];
            let held = self.holders.rows[group].count(row);
            let cells = match store.reach {
                Reach::State { .. } => {
                    self.advance_states(group, row, growth, tenant);
                    continue;
                }
                Reach::Cross { .. } => self.holders.rows[group].row_cells(),
                _ => growth.cells(store).0,
            };
            let (store, rows) = (&mut self.stores[group], &mut self.holders.rows[group]);
            for _ in held..cells {
                let block = store.allocate(None, tenant, &mut self.shared);
                rows.push(row, block);
            }
            self.batch.used_slots += cells.saturating_sub(held) as u64 * store.slots();
            self.batch.mark_cells(group, row, held, cells);
        }
    }

    /// The first `first` cells of a row show the null block from now on.
    fn let_go(&mut self, group: usize, row: usize, first: usize) {
        let was = self.holders.rows[group].first(row);
        if first <= was {
            return;
        }
        let (before, last_step) = (self.let_go_before(group, row, first), self.last_use(row));
        let (store, rows) = (&mut self.stores[group], &mut self.holders.rows[group]);
        for &block in &rows.row(row)[was..first] {
            store.release(block as u32, last_step, &mut self.shared);
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
        let trimmed = &mut self.holders.sequences[row].trimmed;
        *trimmed = offset.max(*trimmed);
        let sequence = self.holders.sequence_id(row).0;
        Ok(OpResult { row: row as i32, sequence, ..OpResult::DONE })
    }
}
