//! Edit: tokens go from the middle of a sequence, and what follows moves up.
//!
//! The tail, from the block that holds the first removed token on, is copied token by token into blocks of its own; the
//! engine is told which tokens moved by how much, so that it can turn their keys. What was computed after tokens that
//! are gone is no prefix of anything: the sequence publishes nothing more, and its old blocks stay findable.

use super::copies::TokenCopy;
use super::state::State;
use super::step::{OpOutcome, OpResult, Refusal, Target};
use super::trunks::GROUPS_MAX;
use crate::error::Status;

/// A removed range, and the sequence before it.
#[derive(Clone, Copy)]
struct Cut {
    offset: u64,
    tokens: u64,
    length: u64,
}

impl Cut {
    fn new_length(&self) -> u64 {
        self.length - self.tokens
    }

    /// First cell that changes.
    fn first_cell(&self, block_tokens: u64) -> usize {
        (self.offset / block_tokens) as usize
    }

    /// Cells of the new tail.
    fn new_cells(&self, block_tokens: u64) -> usize {
        (self.new_length().div_ceil(block_tokens) as usize).saturating_sub(self.first_cell(block_tokens))
    }

    /// Runs of the new tail: first token before and after, how many. Each lies in one block before and after.
    fn runs(&self, block_tokens: u64) -> impl Iterator<Item = (u64, u64, u64)> + use<> {
        let Self { offset, tokens, .. } = *self;
        let end = self.new_length();
        let mut target = offset - offset % block_tokens;
        std::iter::from_fn(move || {
            if target >= end {
                return None;
            }
            let (source, stop) =
                if target < offset { (target, offset.min(end)) } else { (target + tokens, end) };
            let room = |at: u64| block_tokens - at % block_tokens;
            let count = room(source).min(room(target)).min(stop - target);
            let run = (source, target, count);
            target += count;
            Some(run)
        })
    }
}

impl State {
    fn check_edit(&self, row: usize, cut: Cut) -> Result<u32, Refusal> {
        let mut added = 0;
        for group in self.holders.sequences[row].holder.groups.range() {
            let store = &self.stores[group];
            let each = u64::from(store.block_tokens);
            let is_whole = cut.offset.is_multiple_of(each) && cut.tokens.is_multiple_of(each);
            if !self.has_slots[group] && !is_whole {
                return Err(Status::Unsupported.into());
            }
            let new = cut.new_cells(each);
            if new > store.available() as usize {
                let missing = new as u32 - store.available();
                return Err(Refusal { status: Status::OutOfBlocks, missing, group: group as u32 });
            }
            if new > 0 && 2 * new + 1 > self.copies.room(group) {
                return Err(Status::LimitReached.into());
            }
            added += new as u32;
        }
        self.check_written(row)?;
        Ok(added)
    }

    pub(super) fn edit(&mut self, target: Target, offset: u64, tokens: u64) -> OpOutcome {
        let row = self.find_ready(target)?;
        let sequence = self.holders.sequences[row];
        if tokens == 0 || offset.checked_add(tokens).is_none_or(|end| end > sequence.length) {
            return Err(Status::InvalidArgument.into());
        }
        let cut = Cut { offset, tokens, length: sequence.length };
        self.settle_tip(row);
        let blocks_added = self.check_edit(row, cut)?;
        let freed = |group: usize| {
            self.freed_behind(row, group, cut.first_cell(self.stores[group].block_tokens.into()))
        };
        let freed: u32 = (0..self.stores.len()).map(freed).sum();
        if blocks_added > freed {
            self.check_limit(sequence.holder.namespace, blocks_added - freed)?;
        }
        self.reserve_trunks();
        self.settle_tip(row);
        let groups = sequence.holder.groups;
        // Of groups that are not its own it keeps the nothing that it has.
        let mut keep = [0; GROUPS_MAX];
        for (group, keep) in keep[..groups.range().end].iter_mut().enumerate().skip(groups.first()) {
            *keep = cut.first_cell(self.stores[group].block_tokens.into());
            self.copy_tail(row, group, cut);
        }
        self.cut(row, |group| keep[group]);
        let length = cut.new_length();
        self.trim_batch(row, length);
        self.batch.used_tokens -= tokens;
        self.batch.set_length(row, length);
        let sequence = &mut self.holders.sequences[row];
        sequence.length = length;
        sequence.committed = match sequence.committed.checked_sub(offset + tokens) {
            Some(behind) => offset + behind,
            None => sequence.committed.min(offset),
        };
        sequence.holder.no_store = true;
        sequence.may_share = true;
        Ok(OpResult {
            row: row as i32,
            sequence: self.holders.sequence_id(row).0,
            blocks_added,
            ..OpResult::DONE
        })
    }

    /// Fills new blocks of a group by copies of the tail and puts them in its place.
    fn copy_tail(&mut self, row: usize, group: usize, cut: Cut) {
        let each = u64::from(self.stores[group].block_tokens);
        let (first, count) = (cut.first_cell(each), self.holders.rows[group].count(row));
        let tenant = self.shared.namespaces.get(self.holders.sequences[row].holder.namespace).tenant;
        let last_step = self.last_use(row);
        self.edited.clear();
        for _ in 0..cut.new_cells(each) {
            let block = self.stores[group].allocate(tenant, &mut self.shared);
            self.edited.push(block);
        }
        for (source, target, tokens) in cut.runs(each) {
            let slot = |block: u32, token: u64| i64::from(block) * each as i64 + (token % each) as i64;
            let old = self.holders.rows[group].row(row)[(source / each) as usize] as u32;
            let new = self.edited[(target / each) as usize - first];
            let tokens = if self.has_slots[group] { tokens } else { each };
            self.list_copy(TokenCopy {
                group: group as u32,
                row: row as i32,
                source_slot: slot(old, source),
                target_slot: slot(new, target),
                tokens: tokens as u32,
                shift: (target as i64 - source as i64) as i32,
            });
        }
        self.release_cells(row, group, first.max(self.own_from(row, group))..count, last_step);
        let rows = &mut self.holders.rows[group];
        rows.truncate(row, first);
        self.edited.iter().for_each(|&block| rows.push(row, block));
        let new_count = first + self.edited.len();
        self.batch.mark_cells(group, row, first, new_count);
        self.batch.used_slots -= (count - new_count) as u64 * each;
    }
}
