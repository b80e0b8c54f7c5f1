//! Groups of recurrent state: one running state a sequence, and snapshots of it that others start from.
//!
//! A row is `[current, start]`: the block that holds the state after the tokens of the open step, and the block of the
//! state before them, -1 where that is `current` itself (or nothing, for a sequence that begins). A state that must
//! stay as it is, because it is findable, shared, or about to become findable, is read from and never written again:
//! the next step gets a new `current` and starts from it. So a snapshot costs no copy. Invariant: a findable state is
//! nobody's `current` in a step that computes tokens after it.

use super::growth::{Grower, Growth};
use super::state::State;
use super::step::Refusal;
use crate::error::Status;

impl State {
    /// Whether the current state of a sequence must not be written again.
    fn must_stay(&self, group: usize, row: usize) -> bool {
        let (store, rows) = (&self.stores[group], &self.holders.rows[group]);
        let Ok(current) = u32::try_from(rows.cell(row, 0)) else { return false };
        let (block, sequence) = (store.block(current), &self.holders.sequences[row]);
        let waits_for_commit = sequence.length.is_multiple_of(store.snapshot_tokens)
            && sequence.committed < sequence.length
            && !sequence.holder.no_store;
        block.is_findable() || block.refs > 1 || waits_for_commit
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
        if !self.must_stay(group, row) {
            return Ok((0, 0));
        }
        let (last_step, completed) = (self.holders.sequences[row].last_step, self.shared.steps.completed());
        let start = u32::try_from(rows.cell(row, 1));
        Ok((1, u32::from(start.is_ok_and(|start| store.returns_at_once(start, last_step, completed)))))
    }

    /// Gives a sequence the states for the tokens that an operation schedules.
    pub(super) fn advance_states(&mut self, group: usize, row: usize, growth: &Growth, tenant: u64) {
        if growth.tokens == 0 || self.computed_from(row).is_some() {
            return;
        }
        let stays = self.must_stay(group, row);
        let (store, rows) = (&mut self.stores[group], &mut self.holders.rows[group]);
        let is_first = rows.count(row) == 0;
        let (current, start) = if is_first { (-1, -1) } else { (rows.cell(row, 0), rows.cell(row, 1)) };
        if let Ok(start) = u32::try_from(start) {
            store.release(start, self.holders.sequences[row].last_step, &mut self.shared);
        }
        if is_first || stays {
            let new = store.allocate(tenant, &mut self.shared) as i32;
            rows.set_states(row, new, (!is_first).then_some((current, growth.length)));
        } else {
            rows.set_states(row, current, None);
        }
        self.batch.mark_cells(group, row, 0, rows.row_cells());
    }

    /// The state of a sequence after its first `tokens` tokens, if it is one to keep and is there and not findable yet.
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
        let block = rows.cell(row, cell) as u32;
        (!store.block(block).is_findable()).then_some(block)
    }
}
