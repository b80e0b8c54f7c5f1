//! Hits that end inside a block: the tokens that a findable block shares with the prompt are copied at ADMIT.
//!
//! Each group goes as far as its full blocks reach, and from there into the child that shares most tokens with the
//! prompt; the hit is what all groups reach, so it ends on no block boundary of any. The lease holds the blocks that it
//! ends in; ADMIT copies them by the way of a fork's open block. A block that an open step published is no source: it
//! may be written after the copies. In a cache with windows or states hits end inside blocks that were found whole
//! (`hybrid`), and nothing looks for children. Source of the idea: partial reuse with copy on write of TensorRT-LLM.

use super::block::ROOT_SERIAL;
use super::children::{Parent, SEARCHED};
use super::classes::Groups;
use super::hash::{Extras, Key};
use super::lookup::Naming;
use super::sequence::Pause;
use super::sizes::Look;
use super::state::State;
use super::step::Refusal;
use super::store::Store;
use crate::error::{Error, Result, Status};

/// What a source must follow and hold.
pub(super) struct Tail<'a> {
    pub(super) parent: Parent,
    pub(super) parent_serial: u64,
    pub(super) extras: Extras,
    pub(super) position: u64,
    pub(super) tokens: &'a [i32],
}

impl Store {
    /// Whether a hit of so many tokens ends inside a block of this group, which is then copied.
    pub(super) fn ends_inside(&self, length: u64) -> bool {
        self.reach.is_by_token() && !length.is_multiple_of(u64::from(self.block_tokens))
    }

    /// Whether a findable block may be copied: no step from `open_step` on published it, as such a one may be written
    /// after the copies.
    pub(super) fn is_source(&self, block: u32, open_step: Option<u64>) -> bool {
        open_step.is_none_or(|open| self.ancestry(block).step < open)
    }

    /// The block after a parent that begins with most of these tokens, and how many.
    fn best_child(&self, tail: &Tail<'_>, open_step: Option<u64>) -> Option<(u32, usize)> {
        let mut child = self.first_child(&tail.parent);
        let mut best = None;
        for _ in 0..SEARCHED {
            let Some(block) = child else { break };
            let (origin, ancestry) = (self.origin(block), self.ancestry(block));
            if self.is_source(block, open_step)
                && ancestry.position == tail.position
                && origin.extras == tail.extras.0
                && (!self.proves_ancestry() || origin.parent_serial == tail.parent_serial)
            {
                let same =
                    self.kept_tokens(block).iter().zip(tail.tokens).take_while(|(a, b)| a == b).count();
                if same > best.map_or(0, |(_, most)| most) {
                    best = Some((block, same));
                }
            }
            child = self.next_child(block);
        }
        best
    }
}

impl State {
    /// As `settle_hits`, with hits that end inside blocks.
    pub(super) fn settle_partial(&mut self, look: &Look<'_>, groups: Groups) -> (u64, u64, Key) {
        let Look { request, keys, namespace, row: lease, root, .. } = *look;
        let Naming::Tokens(tokens, extras) = request.naming else {
            return self.settle_hits(request, lease, groups, root);
        };
        if request.drop_last {
            return self.settle_hits(request, lease, groups, root);
        }
        let keep = u64::from(request.keep_one_token);
        let mut length = (tokens.len() as u64).saturating_sub(keep).min(self.max_sequence_tokens);
        let reached = |group: usize| {
            self.holders.lease_rows[group].count(lease) as u64 * u64::from(self.stores[group].block_tokens)
        };
        let found = groups.range().map(reached).min();
        let open_step = self.shared.steps.oldest_open();
        for group in groups.range() {
            let store = &self.stores[group];
            let rows = &mut self.holders.lease_rows[group];
            let at = rows.count(lease) * store.block_tokens as usize;
            // What follows depends on the same things as before: the tail ends where the prompt brings in another.
            let end = extras.iter().map(|extra| extra.token_offset).find(|&offset| offset >= at as u64);
            let end = end.unwrap_or(u64::MAX).min(length) as usize;
            let mut reached = at as u64;
            if at < end {
                let last = rows.row(lease).last().map(|&block| block as u32);
                let link = (at / self.link_tokens as usize).checked_sub(1);
                let tail = Tail {
                    parent: Parent {
                        key: last.map_or(Key::default(), |last| store.block(last).key),
                        namespace,
                    },
                    parent_serial: last.map_or(ROOT_SERIAL, |last| store.origin(last).serial),
                    extras: link.map_or(Extras::NONE, |link| *keys.extras(link)),
                    position: rows.count(lease) as u64,
                    tokens: &tokens[at..end],
                };
                if let Some((block, count)) = store.best_child(&tail, open_step) {
                    rows.push(lease, block);
                    reached += count as u64;
                }
            }
            length = length.min(reached);
        }
        length = self.written_length(lease, groups, length, open_step);
        for group in groups.range() {
            let (store, rows) = (&self.stores[group], &mut self.holders.lease_rows[group]);
            rows.truncate(lease, length.div_ceil(u64::from(store.block_tokens)) as usize);
        }
        let last = (length / u64::from(self.link_tokens)).checked_sub(1);
        (found.unwrap_or(0), length, last.map_or(root, |link| keys.key(link as usize)))
    }

    /// The largest length, at most `length`, that ends inside no block which an open step writes.
    fn written_length(&self, lease: usize, groups: Groups, mut length: u64, open_step: Option<u64>) -> u64 {
        loop {
            let before = length;
            for group in groups.range() {
                let (store, rows) = (&self.stores[group], &self.holders.lease_rows[group]);
                let each = u64::from(store.block_tokens);
                let source = rows.row(lease).get((length / each) as usize);
                let is_source = |&block: &i32| store.is_source(block as u32, open_step);
                if !length.is_multiple_of(each) && !source.is_some_and(is_source) {
                    length -= length % each;
                }
            }
            if length == before {
                return length;
            }
        }
    }

    fn ends_inside(&self, groups: Groups, length: u64) -> bool {
        self.stores[groups.range()].iter().any(|store| store.ends_inside(length))
    }

    /// Checks that the blocks in which a lease's hit ends can be copied behind `added` new ones for `reserve` tokens;
    /// answers how many are copied.
    pub(super) fn check_partial(
        &self,
        lease: usize,
        tokens: u64,
        reserve: u64,
    ) -> std::result::Result<u32, Refusal> {
        let length = self.holders.leases[lease].hit_tokens;
        let groups = self.holders.leases[lease].holder.groups;
        if tokens == 0 || !self.ends_inside(groups, length) {
            return Ok(0);
        }
        let mut copied = 0;
        for group in groups.range() {
            let store = &self.stores[group];
            let each = u64::from(store.block_tokens);
            if length.is_multiple_of(each) {
                continue;
            }
            let held = self.holders.lease_rows[group].count(lease) as u64;
            let new = reserve.div_ceil(each).saturating_sub(held) as u32 + 1;
            if new > store.available() {
                let missing = new - store.available();
                return Err(Refusal { status: Status::OutOfBlocks, missing, group: group as u32 });
            }
            if self.copies.room(group) == 0 {
                return Err(Status::LimitReached.into());
            }
            copied += 1;
        }
        Ok(copied)
    }

    /// A sequence took over a hit: what ends inside a block becomes its own before it goes on.
    pub(super) fn adopt_partial(&mut self, row: usize, tokens: u64) {
        let length = self.holders.sequences[row].length;
        let groups = self.holders.sequences[row].holder.groups;
        if !self.ends_inside(groups, length) {
            return;
        }
        let open = (length % u64::from(self.link_tokens)) as usize;
        // In a cache of several kinds each hit ends a link.
        if open > 0 {
            let store = &self.stores[groups.first()];
            let (at, end) = (length / u64::from(store.block_tokens), length % u64::from(store.block_tokens));
            let block = self.holders.rows[groups.first()].row(row)[at as usize] as u32;
            let kept = &store.kept_tokens(block)[end as usize - open..end as usize];
            self.holders.open_tokens_mut(row)[..open].copy_from_slice(kept);
        }
        self.holders.sequences[row].share();
        // With windows, what they leave behind goes first: `grow_mixed` sees to both.
        if tokens > 0 && self.is_plain {
            self.own_open_blocks(row);
        }
    }

    /// Checks that the leases hold what their hits need, and that who may write into the block in which it ends says
    /// so if others can find it.
    pub(super) fn validate_ends(&self) -> Result<()> {
        for (number, lease) in self.holders.leases.iter().enumerate() {
            let is_prefix = lease.holder.is_live && !lease.is_chunks;
            for group in lease.holder.groups.range().filter(|_| is_prefix) {
                let (store, rows) = (&self.stores[group], &self.holders.lease_rows[group]);
                let (length, each) = (lease.hit_tokens, u64::from(store.block_tokens));
                let is_held =
                    !store.reach.is_by_token() || rows.count(number) as u64 == length.div_ceil(each);
                let is_place =
                    length.is_multiple_of(self.hit_unit(store)) || (self.is_plain && self.finds_partial);
                if !is_held || !is_place {
                    let text = format!("lease {number} does not hold {length} tokens in group {group}");
                    return Err(Error::internal(text));
                }
            }
        }
        for (row, sequence) in self.holders.sequences.iter().enumerate() {
            let may_write =
                sequence.holder.is_live && sequence.pause != Pause::Dropped && !sequence.may_share;
            for group in sequence.holder.groups.range().filter(|_| may_write) {
                let (store, rows) = (&self.stores[group], &self.holders.rows[group]);
                let last = (sequence.length / u64::from(store.block_tokens)) as usize;
                if store.ends_inside(sequence.length)
                    && store.block(rows.cell(row, last) as u32).is_findable()
                {
                    let text = format!("row {row} writes into a findable block of group {group}");
                    return Err(Error::internal(text));
                }
            }
        }
        Ok(())
    }
}
