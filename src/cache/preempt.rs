//! Preempt and resume: a sequence stops and goes on, with its blocks or by a new lookup of its tokens.

use super::change::PreemptMode;
use super::growth::{Grower, Growth};
use super::sequence::Pause;
use super::state::State;
use super::step::{OpOutcome, OpResult, Target};
use crate::error::Status;
use crate::types::Id;

impl State {
    pub(super) fn preempt(&mut self, target: Target, mode: PreemptMode) -> OpOutcome {
        let row = self.find_ready(target)?;
        if mode == PreemptMode::Drop {
            self.check_take_back(row, 0)?;
            self.take_back(row, 0);
            self.empty_row(row);
            self.holders.rows.iter_mut().for_each(|rows| rows.truncate(row, 0));
            let sequence = &mut self.holders.sequences[row];
            if sequence.last_step == self.batch.step && self.batch.step > 0 {
                // No sequence has generation 0: the entry is nobody's.
                self.batch.entries[sequence.batch_position as usize].generation = 0;
                self.holders.ended += 1;
            }
            (sequence.length, sequence.committed, sequence.last_step) = (0, 0, 0);
            (sequence.trimmed, sequence.edited) = (0, 0);
            self.holders.kin[row].release_step = 0;
        }
        let pause = if mode == PreemptMode::Keep { Pause::Kept } else { Pause::Dropped };
        self.holders.sequences[row].set_pause(pause);
        Ok(OpResult { row: row as i32, sequence: self.holders.sequence_id(row).0, ..OpResult::DONE })
    }

    pub(super) fn resume(
        &mut self,
        target: Target,
        lease: Option<Id>,
        tokens: u64,
        lookahead: u32,
    ) -> OpOutcome {
        let row = self.find_target(target)?;
        if self.holders.sequences[row].refused_in_call == self.call {
            return Err(Status::Dependency.into());
        }
        let pause = self.holders.sequences[row].pause;
        match (pause, lease) {
            (Pause::Running, _) => Err(Status::WrongState.into()),
            (Pause::Kept, Some(_)) | (Pause::Dropped, None) => Err(Status::InvalidArgument.into()),
            (Pause::Kept, None) => {
                self.holders.sequences[row].set_pause(Pause::Running);
                let outcome = self.append(Target::Id(self.holders.sequence_id(row)), tokens, lookahead);
                if outcome.is_err() {
                    self.holders.sequences[row].set_pause(pause);
                }
                outcome.map(|done| self.result_of(done, true))
            }
            (Pause::Dropped, Some(lease)) => self.resume_from(row, lease, tokens, lookahead),
        }
    }

    /// As ADMIT, in the row of a sequence that holds nothing.
    fn resume_from(&mut self, row: usize, lease: Id, tokens: u64, lookahead: u32) -> OpOutcome {
        let lease = self.holders.find_lease(lease)?;
        let namespace = self.holders.sequences[row].holder.namespace;
        if self.holders.leases[lease].is_chunks {
            return Err(Status::WrongState.into());
        }
        if self.holders.leases[lease].holder.namespace != namespace {
            return Err(Status::InvalidArgument.into());
        }
        let hit_tokens = self.holders.leases[lease].hit_tokens;
        let total = hit_tokens.checked_add(tokens).ok_or(Status::InvalidArgument)?;
        let reserve = total.checked_add(lookahead.into()).ok_or(Status::InvalidArgument)?;
        let growth = Growth { first: hit_tokens, length: hit_tokens, tokens, lookahead: lookahead.into() };
        let blocks_added = match self.is_plain {
            true => {
                let held = |group: usize| self.holders.lease_rows[group].count(lease);
                let groups = self.holders.leases[lease].holder.groups;
                self.check_blocks(reserve, groups, held)? + self.check_partial(lease, tokens, reserve)?
            }
            false => self.check_growth(Grower::Lease(lease), &growth)?,
        };
        self.check_limit(namespace, blocks_added)?;
        self.check_batch(tokens, true)?;
        self.holders.refill(lease, row);
        self.shared.namespaces.drop_use(namespace);
        for (group, rows) in self.holders.rows.iter().enumerate() {
            self.batch.mark_cells(group, row, 0, rows.shown(row));
            self.batch.used_slots += rows.held(row).len() as u64 * self.stores[group].slots();
        }
        self.batch.used_tokens += hit_tokens;
        let sequence = &mut self.holders.sequences[row];
        sequence.set_pause(Pause::Running);
        sequence.may_share = false;
        self.note_hits(row, hit_tokens);
        if self.finds_partial {
            self.adopt_partial(row, tokens);
        }
        match self.is_plain {
            true => self.grow(row, reserve),
            false => self.grow_mixed(row, &growth),
        }
        self.schedule(row, tokens);
        Ok(OpResult {
            row: row as i32,
            sequence: self.holders.sequence_id(row).0,
            blocks_added,
            ..OpResult::DONE
        })
    }
}
