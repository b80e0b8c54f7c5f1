//! The operations of a step. Each is all or nothing: it checks everything first, then changes without failing.
//!
//! Nothing here allocates, grows memory or calls a device. A refused operation is counted and leaves everything else
//! as it was; later operations of the same call on the same sequence answer DEPENDENCY.

use super::classes::Groups;
use super::growth::{Grower, Growth};
use super::hash::{self, Key};
use super::lookup::{Extra, Naming};
use super::namespace::KeyMode;
pub use super::op::{Op, Target};
pub use super::op_result::OpResult;
pub(super) use super::op_result::{Done, OpOutcome, Refusal};
use super::sequence::{Holder, Lease, Pause, Rows, Sequence};
use super::state::State;
use super::store::Store;
use crate::error::{Error, Result, Status};
use crate::types::{Id, IdKind};

impl State {
    /// Starts a call of `step`: opens the step or goes on with it.
    pub(super) fn begin_call(&mut self, step: u64) -> Result<()> {
        self.check_decides()?;
        if self.shared.steps.open(step)? {
            self.batch.begin(step, self.holders.ended);
            self.begin_copies();
            self.begin_zeros();
        }
        self.call += 1;
        Ok(())
    }

    /// Applies one operation.
    #[inline]
    pub(super) fn apply(&mut self, op: &Op<'_>) -> OpResult {
        let promised = self.take_promise_back(op);
        let (done, is_append) = match *op {
            Op::Append { target, tokens, lookahead } => (self.append(target, tokens, lookahead), true),
            Op::Commit { target, tokens, ref naming } => (self.commit(target, tokens, naming), false),
            _ => return self.apply_rare(op, promised),
        };
        self.settle(promised, done.is_err());
        match done {
            Ok(done) => self.tell_group(self.result_of(done, is_append)),
            Err(refusal) => self.refused(op, &refusal),
        }
    }

    /// APPENDs to sequences that are ready for them, as nearly all are in a step that decodes: target, tokens and
    /// lookahead of each, `None` for what is no APPEND, beside the place where its result is told. Ends with the list,
    /// or before the first for which [`apply`] is to look closer, where nothing was changed; answers how many there
    /// were.
    ///
    /// [`apply`]: Self::apply
    #[inline]
    pub(super) fn append_ready<P>(
        &mut self,
        ops: impl Iterator<Item = (Option<(Id, u64, u32)>, P)>,
        mut tell: impl FnMut(P, OpResult),
    ) -> usize {
        let Self { holders, batch, shared, .. } = self;
        if shared.namespaces.owners.may_be_over() {
            return 0;
        }
        let sequences = &mut holders.sequences[..];
        let mut entering = batch.entering();
        for (op, place) in ops {
            let Some((id, tokens, lookahead)) = op else { break };
            let row = id.likely_index();
            let Some(sequence) = sequences.get_mut(row) else { break };
            let Sequence { holder, ready, last_step, .. } = *sequence;
            let is_ready = id.is_of(IdKind::Sequence, holder.generation)
                // One of nothing looks: it may be to a sequence that does not run.
                && tokens.wrapping_sub(1).saturating_add(lookahead.into()) < u64::from(ready)
                && last_step != entering.step
                && entering.has_room(tokens);
            if !is_ready {
                break;
            }
            sequence.ready = ready - tokens as u16;
            // Without size classes all groups are a sequence's, and the first is 0 like that of any result.
            let group = holder.groups.first() as u32;
            tell(place, OpResult { row: row as i32, sequence: id.0, group, ..OpResult::DONE });
            entering.enter(row, sequence, tokens);
        }
        let count = entering.count();
        batch.note_entered(count);
        count
    }

    /// How far beyond its length a row of plain groups can go in the blocks that it has.
    fn room_in_blocks(&self, row: usize) -> u64 {
        let sequence = &self.holders.sequences[row];
        let groups = sequence.holder.groups.range();
        let room = |(store, rows): (&Store, &Rows)| rows.count(row) as u64 * u64::from(store.block_tokens);
        let rooms = self.stores[groups.clone()].iter().zip(&self.holders.rows[groups]).map(room);
        rooms.fold(self.max_sequence_tokens, u64::min).saturating_sub(sequence.length)
    }

    /// Notes how far the next APPENDs need not look.
    fn note_ready(&mut self, row: usize) {
        let Sequence { may_share, expected_tokens, .. } = self.holders.sequences[row];
        let is_sure = self.is_plain && !may_share && expected_tokens == 0;
        let room = if is_sure { self.room_in_blocks(row) } else { 0 };
        self.holders.sequences[row].ready = u16::try_from(room).unwrap_or(u16::MAX);
    }

    /// Checks that no sequence takes itself for ready that is not.
    pub(super) fn validate_ready(&self) -> Result<()> {
        let sequences = self.holders.sequences.iter().enumerate();
        let is_wrong = |&(row, s): &(usize, &Sequence)| {
            let runs = s.holder.is_live && s.pause == Pause::Running && s.refused_in_call != self.call;
            let may = runs && self.is_plain && !s.may_share && s.expected_tokens == 0;
            !may || u64::from(s.ready) > self.room_in_blocks(row)
        };
        match sequences.filter(|(_, s)| s.ready > 0).find(is_wrong) {
            Some((row, s)) => Err(Error::internal(format!("row {row} is not ready for {} tokens", s.ready))),
            None => Ok(()),
        }
    }

    /// The same, for the other kinds.
    #[inline(never)]
    fn apply_rare(&mut self, op: &Op<'_>, promised: Option<usize>) -> OpResult {
        let outcome = match *op {
            Op::Admit { lease, tokens, lookahead, row, expected_tokens: 0 } => {
                self.admit(lease, tokens, lookahead, row)
            }
            Op::Admit { lease, tokens, lookahead, row, expected_tokens } => {
                self.admit_expecting(lease, tokens, lookahead, row, expected_tokens)
            }
            // `apply` has done these itself.
            Op::Append { .. } | Op::Commit { .. } => Err(Status::Internal.into()),
            Op::Free { target } => self.free(target),
            Op::Release { lease } => self.release(lease),
            Op::Trim { target, offset } => self.trim(target, offset),
            Op::Change { target, ref change } => self.change(target, change),
            Op::Retain { ref stretch, priority, ttl_ms } => self.retain(stretch, priority, ttl_ms),
            Op::Pin { ref stretch } => self.pin(stretch),
            Op::Unpin { ref stretch } => self.unpin(stretch),
        };
        self.settle(promised, outcome.is_err());
        match outcome {
            Ok(result) => self.tell_group(result),
            Err(refusal) => self.refused(op, &refusal),
        }
    }

    #[inline]
    pub(super) fn result_of(&self, Done { row, blocks }: Done, is_append: bool) -> OpResult {
        OpResult {
            row: row as i32,
            sequence: self.holders.sequence_id(row as usize).0,
            blocks_added: if is_append { blocks } else { 0 },
            blocks_committed: if is_append { 0 } else { blocks },
            ..OpResult::DONE
        }
    }

    /// After an operation: promises and limits are what they should be again.
    #[inline]
    fn settle(&mut self, promised: Option<usize>, is_refused: bool) {
        if let Some(row) = promised {
            self.settle_promise(row, is_refused);
        }
        if self.shared.namespaces.owners.may_be_over() {
            self.settle_limits();
        }
    }

    #[cold]
    fn refused(&mut self, op: &Op<'_>, refusal: &Refusal) -> OpResult {
        self.note_short(refusal);
        let result = self.refuse(refusal.status, op.dependants());
        OpResult { blocks_missing: refusal.missing, group: refusal.group, ..result }
    }

    /// Counts a refused operation; later ones of this call on its target depend on it.
    pub(super) fn refuse(&mut self, status: Status, target: Option<Target>) -> OpResult {
        self.shared.counters.refused_ops += 1;
        if let Some(Ok(row)) = target.map(|target| self.find_target(target)) {
            let sequence = &mut self.holders.sequences[row];
            (sequence.refused_in_call, sequence.ready) = (self.call, 0);
        }
        OpResult::refused(status)
    }

    pub(super) fn find_target(&self, target: Target) -> std::result::Result<usize, Refusal> {
        match target {
            Target::Id(id) | Target::Admitted(Ok(id)) => Ok(self.holders.find_sequence(id)?),
            Target::Admitted(Err(_)) => Err(Status::Dependency.into()),
        }
    }

    /// The row of a running sequence on which no earlier operation of this call was refused.
    pub(super) fn find_ready(&self, target: Target) -> std::result::Result<usize, Refusal> {
        let row = self.find_target(target)?;
        if self.holders.sequences[row].refused_in_call == self.call {
            return Err(Status::Dependency.into());
        }
        if self.holders.sequences[row].pause != Pause::Running {
            return Err(Status::WrongState.into());
        }
        Ok(row)
    }

    /// Checks that blocks for `tokens` tokens can be held where `held(group)` are; answers how many are new.
    pub(super) fn check_blocks(
        &self,
        tokens: u64,
        groups: Groups,
        held: impl Fn(usize) -> usize,
    ) -> std::result::Result<u32, Refusal> {
        if tokens > self.max_sequence_tokens {
            return Err(Status::InvalidArgument.into());
        }
        let mut added = 0;
        for group in groups.range() {
            let store = &self.stores[group];
            let needed = tokens.div_ceil(u64::from(store.block_tokens)) as u32;
            let new = needed.saturating_sub(held(group) as u32);
            if new > store.available() {
                let missing = new - store.available();
                return Err(Refusal { status: Status::OutOfBlocks, missing, group: group as u32 });
            }
            added += new;
        }
        Ok(added)
    }

    pub(super) fn check_batch(&self, tokens: u64, is_new_entry: bool) -> std::result::Result<(), Refusal> {
        match self.batch.has_room(tokens, is_new_entry) {
            true => Ok(()),
            false => Err(Status::LimitReached.into()),
        }
    }

    /// Hands a sequence the blocks that `check_blocks` found room for.
    pub(super) fn grow(&mut self, row: usize, tokens: u64) {
        let Holder { namespace, groups, .. } = self.holders.sequences[row].holder;
        let tenant = self.shared.namespaces.get(namespace).tenant;
        for group in groups.range() {
            let store = &mut self.stores[group];
            let needed = tokens.div_ceil(u64::from(store.block_tokens)) as usize;
            let rows = &mut self.holders.rows[group];
            let held = rows.count(row);
            if needed <= held {
                continue;
            }
            let near = rows.row(row).last().map(|&block| block as u32);
            let count = (needed - held) as u32;
            store.allocate_run(count, near, tenant, &mut self.shared, |block| rows.push(row, block));
            self.batch.used_slots += (needed - held) as u64 * u64::from(store.block_tokens);
            self.batch.mark_cells(group, row, held, needed);
        }
    }

    /// Schedules the next tokens of a sequence that has blocks for them.
    pub(super) fn schedule(&mut self, row: usize, tokens: u64) {
        let sequence = &mut self.holders.sequences[row];
        let is_in_batch = sequence.last_step == self.batch.step && self.batch.step > 0;
        match is_in_batch {
            true => self.batch.go_on_with_entry(row, sequence, tokens),
            false => self.batch.begin_entry(row, sequence, tokens),
        }
    }

    pub(super) fn admit(&mut self, lease: Id, tokens: u64, lookahead: u32, row: i32) -> OpOutcome {
        let lease = self.holders.find_lease(lease)?;
        if self.holders.leases[lease].is_chunks {
            return Err(Status::WrongState.into());
        }
        let row = self.holders.choose_row(row)?;
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
        self.check_limit(self.holders.leases[lease].holder.namespace, blocks_added)?;
        self.check_batch(tokens, true)?;
        self.holders.admit(lease, row);
        self.note_hits(row, hit_tokens);
        self.note_begun(row);
        for (group, rows) in self.holders.rows.iter().enumerate() {
            self.batch.mark_cells(group, row, 0, rows.shown(row));
            self.batch.used_slots += rows.held(row).len() as u64 * self.stores[group].slots();
        }
        self.batch.used_tokens += hit_tokens;
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

    pub(super) fn append(
        &mut self,
        target: Target,
        tokens: u64,
        lookahead: u32,
    ) -> std::result::Result<Done, Refusal> {
        let row = self.find_ready(target)?;
        let sequence = &self.holders.sequences[row];
        let total = sequence.length.checked_add(tokens).ok_or(Status::InvalidArgument)?;
        let reserve = total.checked_add(lookahead.into()).ok_or(Status::InvalidArgument)?;
        let is_new_entry = sequence.last_step != self.batch.step;
        let may_share = sequence.may_share && tokens > 0;
        let blocks_added = if self.is_plain {
            let (added, held) = match may_share {
                true => self.check_shared_append(row, reserve)?,
                false => {
                    let groups = sequence.holder.groups;
                    let held = |group: usize| self.holders.rows[group].count(row);
                    self.check_blocks(reserve, groups, held).map(|n| (n, n))?
                }
            };
            self.check_batch(tokens, is_new_entry)?;
            if held > 0 {
                self.check_limit(self.holders.sequences[row].holder.namespace, held)?;
            }
            if may_share {
                self.own_open_blocks(row);
            }
            if added > 0 {
                self.grow(row, reserve);
            }
            added
        } else {
            self.append_mixed(row, tokens, lookahead, is_new_entry)?
        };
        self.schedule(row, tokens);
        self.note_ready(row);
        Ok(Done { row: row as u32, blocks: blocks_added })
    }

    fn free(&mut self, target: Target) -> OpOutcome {
        let row = self.find_target(target)?;
        Ok(self.end_sequence(row))
    }

    /// Ends a sequence and lets go of everything that it holds.
    pub(super) fn end_sequence(&mut self, row: usize) -> OpResult {
        let sequence = self.holders.sequences[row];
        let id = self.holders.sequence_id(row);
        self.note_ended(row);
        self.empty_row(row);
        self.holders.leave_kin(row);
        self.holders.close_sequence(row);
        self.shared.namespaces.drop_use(sequence.holder.namespace);
        OpResult { row: row as i32, sequence: id.0, ..OpResult::DONE }
    }

    /// Lets go of all blocks of a row.
    pub(super) fn empty_row(&mut self, row: usize) {
        for (rows, store) in self.holders.rows.iter().zip(&self.stores) {
            self.batch.used_slots -= rows.held(row).len() as u64 * store.slots();
        }
        self.batch.used_tokens -= self.holders.sequences[row].length;
        self.release_sequence(row);
        self.batch.set_length(row, 0);
    }

    fn release(&mut self, lease: Id) -> OpOutcome {
        let lease = self.holders.find_lease(lease)?;
        let Lease { holder: Holder { namespace, .. }, is_chunks, .. } = self.holders.leases[lease];
        // What is read from chunks is read by the work of steps up to this one.
        self.release_lease(lease, if is_chunks { self.batch.step } else { 0 });
        self.holders.close_lease(lease);
        self.shared.namespaces.drop_use(namespace);
        Ok(OpResult::DONE)
    }

    fn commit(
        &mut self,
        target: Target,
        tokens: u64,
        naming: &Naming<'_>,
    ) -> std::result::Result<Done, Refusal> {
        let row = self.find_ready(target)?;
        let sequence = &self.holders.sequences[row];
        let mode = self.shared.namespaces.get(sequence.holder.namespace).mode;
        if tokens > sequence.length - sequence.committed {
            return Err(Status::InvalidArgument.into());
        }
        let link = u64::from(self.link_tokens);
        let links = (sequence.committed + tokens) / link - sequence.committed / link;
        let first = sequence.committed;
        match (*naming, mode) {
            (Naming::Tokens(ids, extras), KeyMode::Tokens) => {
                let end = first + tokens;
                let in_range = |e: &Extra| (first..end).contains(&e.token_offset);
                if ids.len() as u64 != tokens
                    || !extras.iter().all(in_range)
                    || !extras.is_sorted_by_key(|e| e.token_offset)
                {
                    return Err(Status::InvalidArgument.into());
                }
            }
            (Naming::Keys { bytes, key_bytes }, KeyMode::Keys(expected) | KeyMode::Chunks(expected)) => {
                if key_bytes != expected {
                    return Err(Status::KeyMode.into());
                }
                if bytes.len() as u64 != links * u64::from(key_bytes) {
                    return Err(Status::InvalidArgument.into());
                }
            }
            _ => return Err(Status::KeyMode.into()),
        }
        let blocks_committed = match *naming {
            Naming::Tokens(ids, extras) => {
                let is_start = first == 0 && tokens > 0 && !self.is_plain;
                let inputs = if is_start { self.publish_inputs(row, extras) } else { 0 };
                inputs + self.commit_tokens(row, ids, extras)
            }
            Naming::Keys { bytes, key_bytes } | Naming::Chunks { bytes, key_bytes } => {
                let each = key_bytes as usize;
                let key_at = |at: usize| bytes.get(at * each..(at + 1) * each).map(Key::from_bytes);
                self.complete_links(row, first / link, key_at, false)
            }
        };
        self.holders.sequences[row].committed = first + tokens;
        Ok(Done { row: row as u32, blocks: blocks_committed })
    }

    /// Chains token ids that follow the committed ones; answers how many blocks became findable.
    fn commit_tokens(&mut self, row: usize, mut ids: &[i32], mut extras: &[Extra]) -> u32 {
        let link = self.link_tokens as usize;
        let mut at = self.holders.sequences[row].committed;
        let (mut blocks, mut is_first) = (0, true);
        while !ids.is_empty() {
            let offset = (at % link as u64) as usize;
            let count = ids.len().min(link - offset);
            let (part, rest) = ids.split_at(count);
            self.keep_tokens(row, at, part);
            let sequence = &mut self.holders.sequences[row];
            let here = extras.partition_point(|extra| extra.token_offset < at + count as u64);
            extras[..here]
                .iter()
                .for_each(|extra| sequence.holder.extras.fold(&extra.id, extra.token_offset));
            extras = &extras[here..];
            if offset + count == link {
                let Holder { key: parent, extras: folded, .. } = sequence.holder;
                let key = if offset > 0 {
                    self.holders.open_tokens_mut(row)[offset..].copy_from_slice(part);
                    self.ahead.first_key(self.hash, row, &parent, self.holders.open_tokens(row), &folded)
                } else if is_first {
                    self.ahead.first_key(self.hash, row, &parent, part, &folded)
                } else {
                    hash::link(self.hash, &parent, part, &folded)
                };
                is_first = false;
                let key_at = |at: usize| Some(key).filter(|_| at == 0);
                blocks += self.complete_links(row, at / link as u64, key_at, true);
            } else {
                self.holders.open_tokens_mut(row)[offset..offset + count].copy_from_slice(part);
            }
            at += count as u64;
            ids = rest;
        }
        blocks
    }

    fn keep_tokens(&mut self, row: usize, first: u64, tokens: &[i32]) {
        for group in self.holders.sequences[row].holder.groups.range() {
            let (store, rows) = (&mut self.stores[group], &self.holders.rows[group]);
            let position = (first / u64::from(store.block_tokens)) as usize;
            if store.compares_tokens() && position >= rows.first(row) {
                let block = rows.row(row)[position];
                store.keep_tokens(block as u32, (first % u64::from(store.block_tokens)) as u32, tokens);
            }
        }
    }
}
