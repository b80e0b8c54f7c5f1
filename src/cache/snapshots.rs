//! Groups of recurrent state: one running state a sequence, and snapshots of it that others start from.
//!
//! A row is `[current, start]`: the block that holds the state after the tokens of the open step, and the block of the
//! state before them, -1 where that is `current` itself (or nothing, for a sequence that begins). A state that must
//! stay as it is, because it is findable, shared, or about to become findable, is read from and never written again:
//! the next step gets a new `current` and starts from it. So a snapshot costs no copy. Invariant: a findable state is
//! nobody's `current` in a step that computes tokens after it.
//!
//! A state cannot forget. Going back means to an older one that is there: of what the open step is yet to compute,
//! whatever is wanted; else what the latest step started from; else a findable snapshot; else nothing, which is the
//! state before the first token. An APPEND with lookahead keeps what its step starts from for that purpose.

use super::block::{Counters, Publication};
use super::growth::{Grower, Growth};
use super::hash::{Extras, Key};
use super::namespace::KeyMode;
use super::publish::anchor_serial;
use super::state::State;
use super::step::Refusal;
use crate::error::Status;

impl State {
    /// Whether the current state of a sequence must not be written by an operation.
    fn must_stay(&self, group: usize, row: usize, growth: &Growth) -> bool {
        let (store, rows) = (&self.stores[group], &self.holders.rows[group]);
        let Ok(current) = u32::try_from(rows.cell(row, 0)) else { return false };
        let sequence = &self.holders.sequences[row];
        let waits_for_commit = sequence.length.is_multiple_of(store.snapshot_tokens)
            && sequence.committed < sequence.length
            && !sequence.holder.no_store;
        growth.lookahead > 0
            || waits_for_commit
            || !store.is_exclusive(current, self.shared.steps.completed())
    }

    /// How many states an operation needs, and how many return by it at once.
    pub(super) fn check_states(
        &self,
        who: Grower,
        group: usize,
        growth: &Growth,
    ) -> Result<(u32, u32), Refusal> {
        let row = match who {
            _ if growth.tokens == 0 => return Ok((0, 0)),
            // A hit is never written: whatever was found, the sequence gets a state of its own.
            Grower::Lease(_) => return Ok((1, 0)),
            Grower::Row(row) => row,
        };
        let (store, rows) = (&self.stores[group], &self.holders.rows[group]);
        if rows.count(row) == 0 {
            return Ok((1, 0));
        }
        if self.computed_from(row).is_some() {
            // The open step writes one state a sequence; that of a token in the middle is known already.
            let block = store.block(rows.cell(row, 0) as u32);
            let is_taken = block.is_findable() || block.refs > 1;
            return if is_taken { Err(Status::WrongState.into()) } else { Ok((0, 0)) };
        }
        if !self.must_stay(group, row, growth) {
            return Ok((0, 0));
        }
        let (last_step, completed) = (self.last_use(row), self.shared.steps.completed());
        let start = u32::try_from(rows.cell(row, 1));
        Ok((1, u32::from(start.is_ok_and(|start| store.returns_at_once(start, last_step, completed)))))
    }

    /// Gives a sequence the states for the tokens that an operation schedules.
    pub(super) fn advance_states(&mut self, group: usize, row: usize, growth: &Growth, tenant: u64) {
        if growth.tokens == 0 || self.computed_from(row).is_some() {
            return;
        }
        let (stays, last_step) = (self.must_stay(group, row, growth), self.last_use(row));
        let (store, rows) = (&mut self.stores[group], &mut self.holders.rows[group]);
        let is_first = rows.count(row) == 0;
        let (current, start) = if is_first { (-1, -1) } else { (rows.cell(row, 0), rows.cell(row, 1)) };
        if let Ok(start) = u32::try_from(start) {
            store.release(start, last_step, &mut self.shared);
        }
        if is_first || stays {
            let new = store.allocate(None, tenant, &mut self.shared) as i32;
            rows.set_states(row, new, (!is_first).then_some((current, growth.length)));
        } else {
            rows.set_states(row, current, None);
        }
        self.batch.mark_cells(group, row, 0, rows.row_cells());
    }

    /// The state of a sequence after its first `tokens` tokens, if it is one to keep and is there.
    pub(super) fn state_at(&self, group: usize, row: usize, tokens: u64) -> Option<u32> {
        let (store, rows) = (&self.stores[group], &self.holders.rows[group]);
        if !tokens.is_multiple_of(store.snapshot_tokens) || rows.count(row) == 0 {
            return None;
        }
        let cell = if tokens == self.holders.sequences[row].length {
            0
        } else if rows.cell(row, 1) >= 0 && rows.start_tokens(row) == tokens {
            1
        } else {
            return None;
        };
        Some(rows.cell(row, cell) as u32)
    }

    /// Where the state after the first `tokens` tokens of a sequence is, if it is anywhere.
    fn kept_state(&self, group: usize, row: usize, tokens: u64) -> Option<Kept> {
        let rows = &self.holders.rows[group];
        let has_start = rows.count(row) > 0 && rows.cell(row, 1) >= 0;
        if tokens == self.holders.sequences[row].length {
            return Some(Kept::Current);
        }
        if tokens == 0 {
            return Some(Kept::Nothing);
        }
        if let Some(first) = self.computed_from(row).filter(|_| !self.is_told(row)) {
            // The step will compute what is left of its part; of nothing, `current` stays what it was.
            if tokens > first || (tokens == first && !has_start) {
                return Some(Kept::Current);
            }
        }
        if has_start && rows.start_tokens(row) == tokens {
            return Some(Kept::Start);
        }
        self.snapshot_at(group, row, tokens).map(Kept::Snapshot)
    }

    /// The findable snapshot of a sequence's first `tokens` tokens, if its bytes are there before the open step.
    fn snapshot_at(&self, group: usize, row: usize, tokens: u64) -> Option<u32> {
        let (store, sequence) = (&self.stores[group], &self.holders.sequences[row]);
        if !tokens.is_multiple_of(store.snapshot_tokens)
            || tokens > sequence.committed
            || sequence.holder.no_store
        {
            return None;
        }
        let (key, _) = self.chain_at(row, tokens, false)?;
        let namespace = sequence.holder.namespace;
        let wanted = Publication {
            key,
            namespace,
            parent_key: Key::default(),
            parent_serial: anchor_serial(self.anchor, &self.stores, &self.holders.rows, row, tokens),
            extras: Extras::NONE,
            position: tokens / u64::from(store.block_tokens) - 1,
            has_tokens: self.shared.namespaces.get(namespace).mode == KeyMode::Tokens,
        };
        let hash = store.index.hash(&key, namespace);
        let found = store.find(hash, &wanted, &[], &mut Counters::default())?;
        (!self.is_being_written(group, found)).then_some(found)
    }

    /// Whether the open step is yet to write a findable state: nothing of the same step can start from it. It was
    /// published for tokens of that step then: any other findable state is nobody's `current`, and FORK shares nothing
    /// that the step computes.
    pub(super) fn is_being_written(&self, group: usize, state: u32) -> bool {
        self.shared.steps.is_open(self.batch.step)
            && self.stores[group].block(state).is_unwritten(self.batch.step)
    }

    /// Whether the state after the first `tokens` tokens of a row is there; refused if it is but promised to others.
    pub(super) fn check_kept_state(&self, group: usize, row: usize, tokens: u64) -> Result<bool, Refusal> {
        match self.kept_state(group, row, tokens) {
            Some(Kept::Snapshot(block)) if !self.stores[group].may_take(block) => {
                Err(Refusal { status: Status::OutOfBlocks, missing: 1, group: group as u32 })
            }
            kept => Ok(kept.is_some()),
        }
    }

    /// A row goes back to the state after its first `tokens` tokens, which `check_kept_state` found.
    pub(super) fn rewind_state(&mut self, group: usize, row: usize, tokens: u64) {
        let last_step = self.last_use(row);
        let kept = self.kept_state(group, row, tokens);
        let (store, rows) = (&mut self.stores[group], &mut self.holders.rows[group]);
        let (current, start) = match rows.count(row) {
            0 => (-1, -1),
            _ => (rows.cell(row, 0), rows.cell(row, 1)),
        };
        let (left, new) = match kept {
            Some(Kept::Start) => ([current, -1], start),
            Some(Kept::Snapshot(block)) => {
                store.acquire(block, &mut self.shared);
                ([current, start], block as i32)
            }
            Some(Kept::Nothing) => ([current, start], -1),
            Some(Kept::Current) | None => return,
        };
        for block in left.into_iter().filter(|&block| block >= 0) {
            store.release(block as u32, last_step, &mut self.shared);
        }
        rows.set_states(row, new, None);
        self.batch.mark_cells(group, row, 0, rows.row_cells());
    }

    /// A child starts from the state after the first `tokens` tokens of its parent, which nobody writes from now on.
    pub(super) fn share_state(&mut self, group: usize, parent: usize, child: usize, tokens: u64) {
        let kept = self.kept_state(group, parent, tokens);
        let (store, rows) = (&mut self.stores[group], &mut self.holders.rows[group]);
        let state = match kept {
            Some(Kept::Current) if rows.count(parent) > 0 => rows.cell(parent, 0),
            Some(Kept::Start) => rows.cell(parent, 1),
            Some(Kept::Snapshot(block)) => {
                store.acquire(block, &mut self.shared);
                block as i32
            }
            Some(Kept::Current | Kept::Nothing) | None => -1,
        };
        if let (Ok(block), Some(Kept::Current | Kept::Start)) = (u32::try_from(state), kept) {
            store.hold_twice(block);
        }
        rows.set_states(child, state, None);
    }
}

/// Where an earlier state of a sequence is.
#[derive(Clone, Copy)]
enum Kept {
    /// In its first cell.
    Current,
    /// In its second cell.
    Start,
    /// Nowhere: a sequence begins with none.
    Nothing,
    /// In a findable block.
    Snapshot(u32),
}
