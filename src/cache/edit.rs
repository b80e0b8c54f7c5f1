//! Edit: tokens go from the middle of a sequence, and what follows moves up.
//!
//! The tail, from the block that holds the first removed token on, is copied token by token into blocks of its own; the
//! engine is told which tokens moved by how much, so that it can turn their keys. What was computed after tokens that
//! are gone is no prefix of anything: the sequence publishes nothing more, and its old blocks stay findable. Of a
//! window, and of what TRIM left, that part is copied that the next token needs, if it is held. A state has taken in
//! what would be removed, so a cache with one edits nothing; another input stays as it is. What was found in the open
//! step and is written by its work cannot be copied before that: such an edit is refused.

use super::config::GROUPS_MAX;
use super::copies::TokenCopy;
use super::group::Reach;
use super::sequence::Sequence;
use super::state::State;
use super::step::{OpOutcome, OpResult, Refusal, Target};
use super::store::Store;
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

    /// Where a token that is not needed any more ends up.
    fn moved(&self, token: u64) -> u64 {
        if token <= self.offset { token } else { self.offset.max(token.saturating_sub(self.tokens)) }
    }

    /// What of a group's row, whose first `held_from` cells are holes, gives way to what.
    fn tail(&self, store: &Store, has_slots: bool, held_from: usize, sequence: &Sequence) -> Option<Tail> {
        let each = u64::from(store.block_tokens);
        let needed = store.needed_from(self.new_length(), self.moved(sequence.trimmed));
        let before = if needed < self.offset { needed } else { needed + self.tokens };
        let is_held = store.is_held_from(before, held_from, sequence.edited);
        if needed < self.offset {
            let first = (self.offset / each) as usize;
            let from = first as u64 * each;
            return is_held.then_some(Tail { first, from, left_from: first, is_all: false });
        }
        // What is needed lies behind the removed range: the holes end where it begins.
        let first = (needed / each) as usize;
        let from = if has_slots { needed } else { first as u64 * each };
        is_held.then_some(Tail { first, from, left_from: held_from, is_all: true })
    }

    /// Cells of the new tail.
    fn new_cells(&self, block_tokens: u64, tail: Tail) -> usize {
        (self.new_length().div_ceil(block_tokens) as usize).saturating_sub(tail.first)
    }

    /// Runs of the new tail: first token before and after, how many. Each lies in one block before and after.
    fn runs(&self, block_tokens: u64, tail: Tail) -> impl Iterator<Item = (u64, u64, u64)> + use<> {
        let Self { offset, tokens, .. } = *self;
        let end = self.new_length();
        let mut target = tail.from;
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

/// The part of a row that an edit makes anew.
#[derive(Clone, Copy)]
struct Tail {
    /// Its first cell.
    first: usize,
    /// The first token that is copied.
    from: u64,
    /// The first cell whose block the row lets go.
    left_from: usize,
    /// Nothing before the tail is needed.
    is_all: bool,
}

impl State {
    /// What an edit makes anew of a group's row; none if a part is gone.
    fn tail(&self, row: usize, group: usize, cut: Cut) -> Option<Tail> {
        let held_from = self.holders.rows[group].first(row);
        cut.tail(&self.stores[group], self.has_slots[group], held_from, &self.holders.sequences[row])
    }

    fn check_edit(&self, row: usize, cut: Cut) -> Result<u32, Refusal> {
        let refused = |status, group: usize| Refusal { status, missing: 0, group: group as u32 };
        let state = self.stores.iter().position(|store| matches!(store.reach, Reach::State { .. }));
        if let Some(group) = state {
            // It has taken in what would be removed.
            return Err(refused(Status::Unsupported, group));
        }
        let mut added = 0;
        for group in self.holders.sequences[row].holder.groups.range() {
            let store = &self.stores[group];
            let each = u64::from(store.block_tokens);
            if !store.reach.is_by_token() {
                continue;
            }
            let is_whole = cut.offset.is_multiple_of(each) && cut.tokens.is_multiple_of(each);
            if !self.has_slots[group] && !is_whole {
                return Err(refused(Status::Unsupported, group));
            }
            let tail = self.tail(row, group, cut).ok_or(refused(Status::WrongState, group))?;
            let new = cut.new_cells(each, tail);
            if new > store.available() as usize {
                let missing = new as u32 - store.available();
                return Err(Refusal { status: Status::OutOfBlocks, missing, group: group as u32 });
            }
            if new > 0 && self.copied_runs(row, group, cut, tail) > self.copies.room(group) {
                return Err(Status::LimitReached.into());
            }
            added += new as u32;
        }
        self.check_written(row)?;
        self.check_sources(row, cut)?;
        Ok(added)
    }

    /// How many runs make the new tail of a group.
    fn copied_runs(&self, row: usize, group: usize, cut: Cut, tail: Tail) -> usize {
        let mut near = None;
        let runs = cut.runs(self.stores[group].block_tokens.into(), tail);
        runs.map(|(source, _, tokens)| {
            self.runs_from(group, self.slot(row, group, source), tokens as u32, &mut near)
        })
        .sum()
    }

    /// Where a token of a row lies.
    fn slot(&self, row: usize, group: usize, token: u64) -> i64 {
        let each = u64::from(self.stores[group].block_tokens);
        let block = self.holders.rows[group].row(row)[(token / each) as usize];
        i64::from(block) * each as i64 + (token % each) as i64
    }

    /// Refuses to copy what a sequence found in this step and another one of the step is yet to write.
    fn check_sources(&self, row: usize, cut: Cut) -> Result<(), Refusal> {
        for group in self.holders.sequences[row].holder.groups.range() {
            let store = &self.stores[group];
            let Some(tail) = self.tail(row, group, cut).filter(|_| store.reach.is_by_token()) else {
                continue;
            };
            let each = u64::from(store.block_tokens);
            let mut runs = cut.runs(each, tail);
            if runs.any(|(source, ..)| self.is_found_unwritten(row, group, (source / each) as usize)) {
                let group = group as u32;
                return Err(Refusal { status: Status::WrongState, missing: 0, group });
            }
        }
        Ok(())
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
            let tail = self.tail(row, group, cut).filter(|_| self.stores[group].reach.is_by_token());
            tail.map_or(0, |tail| self.freed_behind(row, group, tail.left_from))
        };
        let freed: u32 = sequence.holder.groups.range().map(freed).sum();
        if blocks_added > freed {
            self.check_limit(sequence.holder.namespace, blocks_added - freed)?;
        }
        self.reserve_trunks();
        self.settle_tip(row);
        let groups = sequence.holder.groups;
        let mut edited = cut.moved(sequence.edited);
        // Of groups that are not its own it keeps the nothing that it has.
        let mut keep = [0; GROUPS_MAX];
        for (group, keep) in keep[..groups.range().end].iter_mut().enumerate().skip(groups.first()) {
            *keep = usize::MAX;
            if let Some(tail) = self.tail(row, group, cut).filter(|_| self.stores[group].reach.is_by_token())
            {
                *keep = tail.first;
                if self.stores[group].reach.is_window() && tail.is_all {
                    edited = edited.max(tail.from);
                }
                self.copy_tail(row, group, cut, tail);
            }
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
        sequence.share();
        (sequence.trimmed, sequence.edited) = (cut.moved(sequence.trimmed), edited);
        Ok(OpResult {
            row: row as i32,
            sequence: self.holders.sequence_id(row).0,
            blocks_added,
            ..OpResult::DONE
        })
    }

    /// Fills new blocks of a group by copies of the tail and puts them in its place.
    fn copy_tail(&mut self, row: usize, group: usize, cut: Cut, tail: Tail) {
        let each = u64::from(self.stores[group].block_tokens);
        let Tail { first, left_from, .. } = tail;
        let (count, held) = (self.holders.rows[group].count(row), self.holders.rows[group].held(row).len());
        let tenant = self.shared.namespaces.get(self.holders.sequences[row].holder.namespace).tenant;
        let last_step = self.last_use(row);
        self.edited.clear();
        for _ in 0..cut.new_cells(each, tail) {
            let block = self.stores[group].allocate(None, tenant, &mut self.shared);
            self.edited.push(block);
        }
        let mut near = None;
        for (source, target, tokens) in cut.runs(each, tail) {
            let new = self.edited[(target / each) as usize - first];
            let tokens = if self.has_slots[group] { tokens } else { each };
            let copy = TokenCopy {
                group: group as u32,
                row: row as i32,
                source_slot: self.slot(row, group, source),
                target_slot: i64::from(new) * each as i64 + (target % each) as i64,
                tokens: tokens as u32,
                shift: (target as i64 - source as i64) as i32,
            };
            self.list_copy(copy, &mut near);
        }
        self.release_cells(row, group, left_from.max(self.own_from(row, group))..count, last_step);
        let rows = &mut self.holders.rows[group];
        rows.truncate(row, first);
        if tail.is_all {
            rows.set_holes(row, first);
        }
        self.edited.iter().for_each(|&block| rows.push(row, block));
        self.batch.mark_cells(group, row, first.min(left_from), rows.count(row));
        // A window's tail may lie across one block more than before.
        self.batch.used_slots =
            self.batch.used_slots + rows.held(row).len() as u64 * each - held as u64 * each;
    }
}
