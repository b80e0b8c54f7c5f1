//! Operations that change a sequence otherwise than at its end, and the open block of one that shares it.
//!
//! What each does lives beside its kind: `branch` (fork, accept), `rewind` (rollback, cancel), `edit`, `preempt`.
//! As all operations they check first and then change without failing.

use super::config::GROUPS_MAX;
use super::copies::TokenCopy;
use super::lookup::Extra;
use super::sequence::Holder;
use super::state::State;
use super::step::{OpOutcome, Refusal, Target};
use crate::error::Status;
use crate::types::Id;

/// What a preempted sequence keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PreemptMode {
    /// Blocks and id.
    Keep,
    /// The id.
    Drop,
}

/// How a sequence changes.
#[derive(Clone, Copy, Debug)]
pub enum Change<'a> {
    /// Drops its last tokens.
    Rollback {
        /// Tokens that it keeps.
        tokens: u64,
        /// Tokens beyond those whose blocks it keeps, as far as they are its own alone.
        lookahead: u32,
        /// Ids of the kept tokens behind the last complete link, or none.
        open_tokens: &'a [i32],
        /// What else those depend on.
        extras: &'a [Extra],
    },
    /// Makes a child that shares its first tokens.
    Fork {
        /// Tokens that the child has; 0 for all.
        tokens: u64,
        /// Row of the child, or negative.
        row: i32,
    },
    /// Its content becomes that of the sequence it was forked from, whose other children end, as it does.
    Accept,
    /// Removes tokens from its middle.
    Edit {
        /// First removed token.
        offset: u64,
        /// How many.
        tokens: u64,
    },
    /// Stops it until it is resumed.
    Preempt {
        /// What it keeps.
        mode: PreemptMode,
    },
    /// Lets a preempted sequence run again and schedules tokens.
    Resume {
        /// The lease of a lookup of its tokens, if its blocks were dropped.
        lease: Option<Id>,
        /// Tokens to schedule.
        tokens: u64,
        /// Tokens beyond those for which blocks are held.
        lookahead: u32,
    },
    /// Ends it and takes back what the open step published for it.
    Cancel,
}

/// What a sequence, or the one that it was forked from, found when it was admitted or resumed.
#[derive(Clone, Copy, Default)]
pub(super) struct Hits {
    /// The step of that.
    pub(super) step: u64,
    pub(super) tokens: u64,
    /// Blocks that begin before this token are still those.
    pub(super) kept: u64,
}

impl Hits {
    /// Only the first `tokens` tokens are left.
    pub(super) fn cut(self, tokens: u64) -> Self {
        Self { kept: self.kept.min(tokens), ..self }
    }

    /// Whether the block in this cell is one of those, whole.
    fn has(&self, at: u64, block_tokens: u64) -> bool {
        (at + 1) * block_tokens <= self.tokens && at * block_tokens < self.kept
    }
}

impl Change<'_> {
    /// Whether later operations on the same sequence depend on this one.
    pub(super) fn has_dependants(&self) -> bool {
        match self {
            Self::Fork { .. } | Self::Cancel => false,
            Self::Rollback { .. } | Self::Accept | Self::Edit { .. } => true,
            Self::Preempt { .. } | Self::Resume { .. } => true,
        }
    }
}

impl State {
    pub(super) fn change(&mut self, target: Target, change: &Change<'_>) -> OpOutcome {
        match *change {
            Change::Rollback { tokens, lookahead, open_tokens, extras } => {
                self.rollback(target, tokens, lookahead, open_tokens, extras)
            }
            Change::Fork { tokens, row } => self.fork(target, tokens, row),
            Change::Accept => self.accept(target),
            Change::Edit { offset, tokens } => self.edit(target, offset, tokens),
            Change::Preempt { mode } => self.preempt(target, mode),
            Change::Resume { lease, tokens, lookahead } => self.resume(target, lease, tokens, lookahead),
            Change::Cancel => self.cancel(target),
        }
    }

    /// The first token of a row that the open step is yet to write; its length if there is none.
    pub(super) fn unwritten_from(&self, row: usize) -> u64 {
        let sequence = &self.holders.sequences[row];
        match sequence.last_step == self.batch.step && self.batch.step > 0 {
            true => self.batch.entries[sequence.batch_position as usize].first,
            false => sequence.length,
        }
    }

    /// Refuses what needs the bytes of tokens that the open step is yet to write.
    pub(super) fn check_written(&self, row: usize) -> Result<(), Refusal> {
        match self.unwritten_from(row) < self.holders.sequences[row].length {
            true => Err(Status::WrongState.into()),
            false => Ok(()),
        }
    }

    /// A sequence begins with what a lookup found.
    pub(super) fn note_hits(&mut self, row: usize, tokens: u64) {
        self.holders.sequences[row].hits = Hits { step: self.batch.step, tokens, kept: tokens };
    }

    /// Whether a row found a block in the open step whose bytes another sequence of that step is yet to write. A copy
    /// of it would come too early; the row's own work may read it.
    pub(super) fn is_found_unwritten(&self, row: usize, group: usize, at: usize) -> bool {
        let (hits, store) = (self.holders.sequences[row].hits, &self.stores[group]);
        let is_found = hits.step == self.batch.step && hits.has(at as u64, store.block_tokens.into());
        is_found && store.block(self.holders.rows[group].cell(row, at) as u32).is_unwritten(hits.step)
    }

    /// The batch holds no more than the first `tokens` tokens of a row.
    pub(super) fn trim_batch(&mut self, row: usize, tokens: u64) {
        let sequence = &self.holders.sequences[row];
        if sequence.last_step != self.batch.step || self.batch.step == 0 {
            return;
        }
        let entry = &mut self.batch.entries[sequence.batch_position as usize];
        let count = tokens.saturating_sub(entry.first).min(entry.count.into()) as u32;
        self.batch.tokens -= entry.count - count;
        entry.count = count;
        (entry.told, entry.packed) = (entry.told.min(count), entry.packed.min(count));
        entry.first = entry.first.min(tokens);
    }

    /// The cell of the open block of a row that the next token needs as its own.
    fn shared_cell(&self, row: usize, group: usize) -> Option<usize> {
        if !self.stores[group].reach.is_by_token() {
            return None;
        }
        let length = self.holders.sequences[row].length;
        let block_tokens = u64::from(self.stores[group].block_tokens);
        let at = (length / block_tokens) as usize;
        let is_open = !length.is_multiple_of(block_tokens);
        Some(at).filter(|&at| is_open && !self.is_writable(row, group, at))
    }

    /// As `shared_cell`, of a row that may share its open blocks.
    pub(super) fn copied_cell(&self, row: usize, group: usize) -> Option<usize> {
        self.shared_cell(row, group).filter(|_| self.holders.sequences[row].may_share)
    }

    /// What a copy of the open block in a cell of a row reads: the first slot, and tokens from there on.
    fn open_part(&self, row: usize, group: usize, at: usize) -> (i64, u32) {
        let each = self.stores[group].block_tokens;
        let used = (self.holders.sequences[row].length % u64::from(each)) as u32;
        let slot = i64::from(self.holders.rows[group].row(row)[at]) * i64::from(each);
        (slot, if self.has_slots[group] { used } else { each })
    }

    /// How many runs such a copy takes.
    pub(super) fn open_runs(&self, row: usize, group: usize, at: usize) -> usize {
        let (slot, tokens) = self.open_part(row, group, at);
        self.runs_from(group, slot, tokens, &mut None)
    }

    /// As `check_blocks`, for a row whose open blocks may have to be copied; answers too how many blocks more are held
    /// then: a copy takes the place of a block that nobody else holds.
    pub(super) fn check_shared_append(&mut self, row: usize, reserve: u64) -> Result<(u32, u32), Refusal> {
        self.settle_tip(row);
        if reserve > self.max_sequence_tokens {
            return Err(Status::InvalidArgument.into());
        }
        let (mut added, mut held) = (0, 0);
        for group in self.holders.sequences[row].holder.groups.range() {
            let store = &self.stores[group];
            let needed = reserve.div_ceil(u64::from(store.block_tokens)) as u32;
            let shared = self.shared_cell(row, group);
            let copied = u32::from(shared.is_some());
            if shared.is_some_and(|at| self.is_found_unwritten(row, group, at)) {
                return Err(Refusal { status: Status::WrongState, missing: 0, group: group as u32 });
            }
            let is_replaced = shared.is_some_and(|at| {
                let old = self.holders.rows[group].row(row)[at] as u32;
                at >= self.own_from(row, group) && store.block(old).refs == 1
            });
            let new = needed.saturating_sub(self.holders.rows[group].count(row) as u32) + copied;
            if new > store.available() {
                let missing = new - store.available();
                return Err(Refusal { status: Status::OutOfBlocks, missing, group: group as u32 });
            }
            if shared.is_some_and(|at| self.open_runs(row, group, at) > self.copies.room(group)) {
                return Err(Status::LimitReached.into());
            }
            added += new;
            held += new - u32::from(is_replaced);
        }
        Ok((added, held))
    }

    /// Copies the open blocks of a row that are not its own alone. `check_shared_append` found room.
    pub(super) fn own_open_blocks(&mut self, row: usize) {
        self.reserve_trunks();
        self.settle_tip(row);
        let sequence = &mut self.holders.sequences[row];
        sequence.may_share = false;
        let length = sequence.length;
        let Holder { namespace, groups, .. } = sequence.holder;
        let tenant = self.shared.namespaces.get(namespace).tenant;
        let last_step = self.last_use(row);
        // Of groups that are not its own it keeps the nothing that it has.
        let mut keep = [0; GROUPS_MAX];
        for (group, keep) in keep[..groups.range().end].iter_mut().enumerate().skip(groups.first()) {
            *keep = usize::MAX;
            let each = u64::from(self.stores[group].block_tokens);
            let used = (length % each) as u32;
            let Some(at) = self.shared_cell(row, group) else {
                if used > 0 && self.stores[group].reach.is_by_token() {
                    let open = self.holders.rows[group].row(row)[(length / each) as usize];
                    self.stores[group].reopen(open as u32);
                }
                continue;
            };
            let old = self.holders.rows[group].row(row)[at] as u32;
            let new = self.stores[group].allocate(None, tenant, &mut self.shared);
            self.stores[group].copy_kept(old, new);
            let (source_slot, tokens) = self.open_part(row, group, at);
            let copy = TokenCopy {
                group: group as u32,
                row: row as i32,
                source_slot,
                target_slot: i64::from(new) * each as i64,
                tokens,
                shift: 0,
            };
            self.list_copy(copy, &mut None);
            if at < self.own_from(row, group) {
                *keep = at;
            } else {
                self.stores[group].release(old, last_step, &mut self.shared);
            }
            self.holders.rows[group].set(row, at, new);
            self.batch.mark_cells(group, row, at, at + 1);
        }
        self.cut(row, |group| keep[group]);
    }
}
