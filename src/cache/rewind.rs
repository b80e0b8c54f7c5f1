//! Rollback and cancel: what a sequence has too much goes, and its hash chain goes back with it.

use super::block::NO_SERIAL;
use super::config::GROUPS_MAX;
use super::events::RemoveReason;
use super::group::Reach;
use super::hash::{Extras, Key};
use super::lookup::Extra;
use super::namespace::KeyMode;
use super::sequence::Sequence;
use super::state::State;
use super::step::{OpOutcome, OpResult, Refusal, Target};
use crate::error::Status;
use std::ops::Range;

impl State {
    pub(super) fn rollback(
        &mut self,
        target: Target,
        tokens: u64,
        lookahead: u32,
        open_tokens: &[i32],
        extras: &[Extra],
    ) -> OpOutcome {
        let row = self.find_ready(target)?;
        let sequence = self.holders.sequences[row];
        let mode = self.shared.namespaces.get(sequence.holder.namespace).mode;
        let open_from = tokens - tokens % u64::from(self.link_tokens);
        let is_open = |extra: &Extra| (open_from..tokens).contains(&extra.token_offset);
        if tokens > sequence.length
            || !(open_tokens.is_empty() || open_tokens.len() as u64 == tokens - open_from)
            || !extras.iter().all(is_open)
            || !extras.is_sorted_by_key(|extra| extra.token_offset)
        {
            return Err(Status::InvalidArgument.into());
        }
        if mode != KeyMode::Tokens && !(open_tokens.is_empty() && extras.is_empty()) {
            return Err(Status::KeyMode.into());
        }
        self.check_kept(row, tokens)?;
        self.check_take_back(row, tokens)?;
        self.take_back(row, tokens);
        self.reserve_trunks();
        self.settle_tip(row);
        let last_step = self.last_use(row);
        let mut keep = [usize::MAX; GROUPS_MAX];
        for (group, keep) in keep.iter_mut().enumerate().take(self.stores.len()) {
            let each = u64::from(self.stores[group].block_tokens);
            let count = self.holders.rows[group].count(row);
            if !self.stores[group].reach.is_by_token() {
                if matches!(self.stores[group].reach, Reach::State { .. }) {
                    self.rewind_state(group, row, tokens);
                }
                continue;
            }
            let cells = |tokens: u64| (tokens.div_ceil(each) as usize).min(count);
            let own_from = self.own_from(row, group);
            let mut kept = cells(tokens);
            // Blocks behind the tokens stay if nobody else has or reads them: a fork's other holder may have published
            // one.
            let wanted = cells(tokens.saturating_add(lookahead.into()));
            while kept < wanted && self.is_writable(row, group, kept) {
                let block = self.holders.rows[group].row(row)[kept] as u32;
                self.stores[group].reopen(block);
                kept += 1;
            }
            self.release_cells(row, group, kept.max(own_from)..count, last_step);
            self.batch.used_slots -= (count - kept) as u64 * each;
            *keep = kept;
        }
        self.cut(row, |group| keep[group]);
        for (rows, &kept) in self.holders.rows.iter_mut().zip(&keep) {
            let kept = kept.min(rows.count(row));
            rows.truncate(row, kept);
        }
        self.trim_batch(row, tokens);
        self.batch.used_tokens -= sequence.length - tokens;
        self.batch.set_length(row, tokens);
        let sequence = &mut self.holders.sequences[row];
        sequence.length = tokens;
        sequence.share();
        sequence.trimmed = sequence.trimmed.min(tokens);
        sequence.edited = sequence.edited.min(tokens);
        sequence.hits = sequence.hits.cut(tokens);
        if tokens < sequence.committed {
            self.rewind(row, tokens, open_tokens, extras);
        }
        Ok(OpResult { row: row as i32, sequence: self.holders.sequence_id(row).0, ..OpResult::DONE })
    }

    /// Sets the chain of a row back to where `tokens` tokens are committed. Without what it needs to go on from there
    /// the sequence publishes nothing more.
    pub(super) fn rewind(&mut self, row: usize, tokens: u64, open_tokens: &[i32], extras: &[Extra]) {
        let link = u64::from(self.link_tokens);
        let (boundary, open) = (tokens - tokens % link, (tokens % link) as usize);
        let sequence = &mut self.holders.sequences[row];
        let committed = std::mem::replace(&mut sequence.committed, tokens);
        let holder = sequence.holder;
        let namespace = self.shared.namespaces.get(holder.namespace);
        let is_same_link = boundary == committed - committed % link;
        let has_extras = holder.extras != Extras::NONE;
        let found = match boundary {
            0 => Some((namespace.root, Extras::NONE)),
            _ if is_same_link && !has_extras => Some((holder.key, Extras::NONE)),
            _ => self.chain_at(row, boundary, has_extras),
        };
        if namespace.mode != KeyMode::Tokens {
            self.holders.sequences[row].holder.key = found.map_or(Key::default(), |(key, _)| key);
            return;
        }
        let knows_open = open == 0 || !open_tokens.is_empty() || (is_same_link && !has_extras);
        let holder = &mut self.holders.sequences[row].holder;
        match found.filter(|_| knows_open) {
            Some((key, folded)) => {
                (holder.key, holder.extras) = (key, folded);
                extras.iter().for_each(|extra| holder.extras.fold(&extra.id, extra.token_offset));
                if !open_tokens.is_empty() {
                    self.holders.open_tokens_mut(row)[..open].copy_from_slice(open_tokens);
                }
            }
            None => holder.no_store = true,
        }
    }

    /// Key and folded extras at the end of a block, as far as a block of any group that ends there tells them.
    pub(super) fn chain_at(&self, row: usize, boundary: u64, has_extras: bool) -> Option<(Key, Extras)> {
        for group in self.holders.sequences[row].holder.groups.range() {
            let (store, rows) = (&self.stores[group], &self.holders.rows[group]);
            let each = u64::from(store.block_tokens);
            let position = (boundary / each).saturating_sub(1) as usize;
            let block = match store.reach {
                Reach::Cross { .. } => continue,
                _ if !boundary.is_multiple_of(each) => continue,
                Reach::State { .. } if boundary == self.holders.sequences[row].length => {
                    // A state that is not findable may have been written on under the name that it had.
                    let state = rows.row(row).first().map(|&state| state as u32);
                    match state.filter(|&state| store.block(state).is_findable()) {
                        Some(state) => state,
                        None => continue,
                    }
                }
                Reach::State { .. } => continue,
                _ if position + 1 == rows.first(row) => {
                    let key = rows.before(row).key;
                    if key != Key::default() && !has_extras {
                        return Some((key, Extras::NONE));
                    }
                    continue;
                }
                _ if position < rows.first(row) => continue,
                _ => rows.row(row)[position] as u32,
            };
            let (entry, origin) = (store.block(block), store.origin(block));
            if let Some(key) = entry.name().filter(|_| !has_extras) {
                return Some((key, Extras::NONE));
            }
            if has_extras && entry.is_findable() && origin.serial != NO_SERIAL {
                return Some((entry.key, Extras(origin.extras)));
            }
        }
        None
    }

    /// Committed tokens of a row from `tokens` on that the open step is yet to write.
    pub(super) fn unwritten_commits(&self, row: usize, tokens: u64) -> Range<u64> {
        let Sequence { committed, last_step, batch_position, .. } = self.holders.sequences[row];
        let mut unwritten_from = self.unwritten_from(row);
        if last_step == self.batch.step && self.batch.step > 0 {
            // The work on what was told may be under way: it will be written.
            unwritten_from += u64::from(self.batch.entries[batch_position as usize].told);
        }
        unwritten_from.max(tokens).min(committed)..committed
    }

    /// Calls `visit` with the group and block of everything that ends in unwritten committed tokens and is findable.
    fn each_unwritten(&self, row: usize, tokens: u64, mut visit: impl FnMut(usize, u32)) {
        let range = self.unwritten_commits(row, tokens);
        for (group, (store, rows)) in self.stores.iter().zip(&self.holders.rows).enumerate() {
            let cells = self.unwritten_cells(row, group, &range);
            for &block in rows.row(row).get(cells).unwrap_or(&[]) {
                if store.block(block as u32).is_findable() {
                    visit(group, block as u32);
                }
            }
        }
    }

    /// The cells of a row whose blocks the open step has published if it commits these tokens without writing them.
    fn unwritten_cells(&self, row: usize, group: usize, range: &Range<u64>) -> Range<usize> {
        let (store, sequence) = (&self.stores[group], &self.holders.sequences[row]);
        let each = u64::from(store.block_tokens);
        match store.reach {
            _ if range.is_empty() => 0..0,
            // The state after the last token of the step; the one that it starts from was written before.
            Reach::State { .. } => 0..usize::from(range.end == sequence.length),
            // Another input is written with the first token, by whom it was not found.
            Reach::Cross { .. } => {
                let (step, groups) = sequence.inputs;
                let is_own = range.start == 0 && step == self.batch.step && groups >> group & 1 == 1;
                0..if is_own { self.holders.rows[group].count(row) } else { 0 }
            }
            _ => (range.start / each) as usize..(range.end / each) as usize,
        }
    }

    /// Refuses to take back what somebody else has found already; a pin outlives the lease under which it was found.
    pub(super) fn check_take_back(&self, row: usize, tokens: u64) -> Result<(), Refusal> {
        let mut is_found = false;
        self.each_unwritten(row, tokens, |group, block| {
            let store = &self.stores[group];
            is_found |= store.block(block).refs > 1 || store.retention.is_pinned(block);
        });
        if is_found { Err(Status::InUse.into()) } else { Ok(()) }
    }

    /// Makes unfindable what nobody will write.
    pub(super) fn take_back(&mut self, row: usize, tokens: u64) {
        let range = self.unwritten_commits(row, tokens);
        for group in self.holders.sequences[row].holder.groups.range() {
            for at in self.unwritten_cells(row, group, &range) {
                let block = self.holders.rows[group].row(row)[at] as u32;
                if self.stores[group].block(block).is_findable() {
                    self.stores[group].remove(block, RemoveReason::Cancelled, &mut self.shared);
                }
            }
        }
    }

    pub(super) fn cancel(&mut self, target: Target) -> OpOutcome {
        let row = self.find_target(target)?;
        self.check_take_back(row, 0)?;
        self.take_back(row, 0);
        Ok(self.end_sequence(row))
    }
}
