//! Fork and accept: several sequences from one beginning, and back to one.
//!
//! A fork touches no block of a full group: parent and child hang on one trunk, and the first of them that writes into
//! the open block copies it. Of the other groups the child holds what its next token needs; that is `held`. What is
//! shared is what was written before the open step, so nothing depends on work of that step.

use super::config::GROUPS_MAX;
use super::group::Reach;
use super::sequence::Sequence;
use super::state::State;
use super::step::{OpOutcome, OpResult, Refusal, Target};
use crate::error::Status;

impl State {
    pub(super) fn fork(&mut self, target: Target, tokens: u64, row: i32) -> OpOutcome {
        let parent = self.find_ready(target)?;
        let sequence = self.holders.sequences[parent];
        if tokens > sequence.length {
            return Err(Status::InvalidArgument.into());
        }
        self.check_written(parent)?;
        let child = self.holders.choose_row(row)?;
        // It holds no block more, but what is over its limit starts nothing new.
        self.check_limit(sequence.holder.namespace, 0)?;
        let length = if tokens == 0 { sequence.length } else { tokens };
        self.check_kept(parent, length)?;
        self.reserve_trunks();
        let generation = self.holders.open_row(child);
        let mut cells = [0; GROUPS_MAX];
        for group in sequence.holder.groups.range() {
            let (cells, store) = (&mut cells[group], &self.stores[group]);
            if store.reach == Reach::All {
                *cells = length.div_ceil(u64::from(store.block_tokens)) as usize;
            }
        }
        let mut holder = sequence.holder;
        holder.generation = generation;
        self.holders.sequences[child] = Sequence {
            holder,
            length,
            committed: sequence.committed,
            may_share: true,
            trimmed: sequence.trimmed.min(length),
            edited: sequence.edited.min(length),
            hits: sequence.hits.cut(length),
            ..Sequence::default()
        };
        // After that: when the row was used last was told of the sequence before.
        self.share(parent, child, |group| cells[group]);
        self.holders.sequences[parent].share();
        if !self.is_plain {
            self.share_held(parent, child, length);
        }
        self.holders.copy_open_tokens(parent, child);
        self.holders.link_child(parent, child);
        self.shared.namespaces.add_use(holder.namespace);
        if length < sequence.committed {
            self.rewind(child, length, &[], &[]);
        }
        for (group, (store, rows)) in self.stores.iter().zip(&self.holders.rows).enumerate() {
            self.batch.mark_cells(group, child, 0, rows.shown(child));
            self.batch.used_slots += rows.held(child).len() as u64 * store.slots();
        }
        self.batch.used_tokens += length;
        self.batch.set_length(child, length);
        Ok(OpResult { row: child as i32, sequence: self.holders.sequence_id(child).0, ..OpResult::DONE })
    }

    /// Everything that an acceptance ends may end: nothing of it that others found is still to be written.
    fn check_family(&self, parent: usize, child: usize) -> Result<(), Refusal> {
        let mut at = self.holders.next_descendant(parent, parent, child);
        while let Some(row) = at {
            if row != child {
                self.check_take_back(row, 0)?;
            }
            at = self.holders.next_descendant(parent, row, child);
        }
        Ok(())
    }

    pub(super) fn accept(&mut self, target: Target) -> OpOutcome {
        let child = self.find_ready(target)?;
        let parent = self.holders.parent(child).ok_or(Status::WrongState)?;
        let parent_id = self.holders.sequence_id(parent);
        self.find_ready(Target::Id(parent_id))?;
        self.check_written(parent)?;
        self.check_written(child)?;
        self.check_family(parent, child)?;
        while let Some(other) = self.holders.first_child(parent).and_then(|first| match first == child {
            true => self.holders.next_sibling(first),
            false => Some(first),
        }) {
            self.holders.move_children(other, parent);
            self.take_back(other, 0);
            self.end_sequence(other);
        }
        self.replace_content(parent, child);
        self.holders.unlink_child(child);
        self.holders.move_children(child, parent);
        let namespace = self.holders.sequences[child].holder.namespace;
        self.holders.close_sequence(child);
        self.shared.namespaces.drop_use(namespace);
        self.batch.set_length(child, 0);
        let length = self.holders.sequences[parent].length;
        self.batch.set_length(parent, length);
        Ok(OpResult { row: parent as i32, sequence: parent_id.0, ..OpResult::DONE })
    }

    /// The parent lets go of its own blocks and takes those of the child, which is left with none.
    fn replace_content(&mut self, parent: usize, child: usize) {
        let (old, new) = (self.holders.sequences[parent], self.holders.sequences[child]);
        for group in 0..self.stores.len() {
            let held = self.holders.rows[group].held(parent).len() as u64;
            self.batch.used_slots -= held * self.stores[group].slots();
        }
        self.batch.used_tokens -= old.length;
        let last_step = self.last_use(child);
        self.release_sequence(parent);
        for group in 0..self.stores.len() {
            let rows = &mut self.holders.rows[group];
            let (before, after) = (rows.row(parent), rows.row(child));
            let same = before.iter().zip(after).take_while(|(a, b)| a == b).count();
            rows.take_row(child, parent);
            let count = rows.shown(parent);
            self.batch.mark_cells(group, parent, same.min(count), count);
        }
        let kin = &mut self.holders.kin;
        kin[parent].tip = std::mem::take(&mut kin[child].tip);
        kin[parent].release_step = last_step;
        kin[child].release_step = 0;
        let mut holder = new.holder;
        holder.generation = old.holder.generation;
        let sequence = &mut self.holders.sequences[parent];
        *sequence = Sequence {
            holder,
            length: new.length,
            committed: new.committed,
            may_share: true,
            ready: 0,
            trimmed: new.trimmed,
            edited: new.edited,
            hits: new.hits,
            ..*sequence
        };
        self.holders.copy_open_tokens(child, parent);
        if old.last_step == self.batch.step && self.batch.step > 0 {
            // It has no token in the batch, or the acceptance were refused; its next one follows the new content.
            self.batch.entries[old.batch_position as usize].first = new.length;
        }
    }
}
