//! Copies of tokens that a step needs before its work: copy on write, moved tails, tokens taken from other blocks,
//! blocks that a resize moves.
//!
//! Operations list runs under the lock; `tables` enqueues them behind the zero fills, in the order in which they were
//! listed where one reads what another wrote. Both blocks of a run are marked with the step, so that neither is handed
//! out again before the step is over, and a step with listed copies ends only after its tables. A cache without a
//! device keeps the list for the step's plan and drops it when the next step begins. Fixed capacity; a run lies in one
//! block on either side.
//!
//! Whoever reads a list turns keys when all of its copies are made. So a run that reads what another run of the same
//! list filled is told with the shifts of both, and reads what one run alone filled. What an earlier list has told is
//! turned by then: a plan and the tables may tell one run with different shifts.

use std::ops::Range;

use super::config::Geometry;
use super::moves::MOVES_MOST;
use super::state::State;
use crate::error::{Error, Result, Status};
use crate::sys::reserve::room;

/// Words of 32 bits of a run as the device reads it.
pub(super) const COPY_WORDS: usize = 8;

/// A run of tokens that is copied before the step's work; kavern_kv_token_copy of the C header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct TokenCopy {
    /// The group.
    pub group: u32,
    /// Row of the sequence that it is for; -1 if it is for none.
    pub row: i32,
    /// First slot that is read: block x block_tokens + offset.
    pub source_slot: i64,
    /// First slot that is written.
    pub target_slot: i64,
    /// Tokens; all of a block's copy the whole block.
    pub tokens: u32,
    /// By how much the positions of these tokens rise; 0 or negative.
    pub shift: i32,
}

impl TokenCopy {
    pub(super) fn from_words(words: [i32; COPY_WORDS]) -> Self {
        let [group, row, s0, s1, t0, t1, tokens, shift] = words;
        let slot = |low: i32, high: i32| i64::from(high) << 32 | i64::from(low as u32);
        Self {
            group: group as u32,
            row,
            source_slot: slot(s0, s1),
            target_slot: slot(t0, t1),
            tokens: tokens as u32,
            shift,
        }
    }

    pub(super) fn words(&self) -> [i32; COPY_WORDS] {
        let halves = |slot: i64| [slot as i32, (slot >> 32) as i32];
        let ([s0, s1], [t0, t1]) = (halves(self.source_slot), halves(self.target_slot));
        [self.group as i32, self.row, s0, s1, t0, t1, self.tokens as i32, self.shift]
    }
}

/// A copy in the list; its shift is by how much its tokens move from where it reads them.
#[derive(Clone, Copy)]
struct Listed {
    copy: TokenCopy,
    /// Place in the list of the run that fills what it reads.
    after: Option<u32>,
}

impl Listed {
    fn fills(&self, slot: i64) -> bool {
        (self.copy.target_slot..self.copy.target_slot + i64::from(self.copy.tokens)).contains(&slot)
    }
}

/// Listed copies of one group.
struct GroupCopies {
    listed: Vec<Listed>,
    /// Places in the list that come after everything before them.
    breaks: Vec<u32>,
    /// How many of them `tables` told without a device that would apply them.
    told: usize,
}

impl GroupCopies {
    /// Where the run stands that fills a slot. What is read in order was mostly filled in order, so the places from
    /// `near` on come first; without one the latest do.
    fn filler(&self, slot: i64, near: &mut Option<usize>) -> Option<u32> {
        let from = near.unwrap_or(self.listed.len());
        let fills = |at: &usize| self.listed[*at].fills(slot);
        let found = (from..self.listed.len()).find(fills).or_else(|| (0..from).rev().find(fills));
        *near = found.or(*near);
        found.map(|at| at as u32)
    }

    /// How many of so many tokens from one on that no run fills are filled by none: an edit of a window fills a block
    /// from its middle on.
    fn unfilled(&self, slot: i64, tokens: u32) -> u32 {
        let ahead = self.listed.iter().map(|run| run.copy.target_slot - slot).filter(|&ahead| ahead > 0);
        ahead.fold(tokens, |least, ahead| u32::try_from(ahead).map_or(least, |ahead| least.min(ahead)))
    }

    /// What a reader is told of a part of the list who was told, and has turned, what stands before `from`.
    fn told(&self, from: usize, part: Range<usize>) -> impl Iterator<Item = TokenCopy> + '_ {
        self.listed[part].iter().map(move |run| {
            let Listed { mut copy, mut after } = *run;
            while let Some(at) = after.filter(|&at| at as usize >= from) {
                copy.shift += self.listed[at as usize].copy.shift;
                after = self.listed[at as usize].after;
            }
            copy
        })
    }
}

/// The copies of a cache that are listed, and those of the latest `tables`.
pub(super) struct Copies {
    groups: Vec<GroupCopies>,
    /// Enqueued by the latest `tables`, one group after the other.
    sent: Vec<TokenCopy>,
    /// The step that listed the first of them.
    first_step: u64,
    is_metadata_only: bool,
}

impl Copies {
    pub(super) fn new(geometry: &Geometry, max_sequences: u32, is_metadata_only: bool) -> Result<Self> {
        let mut groups = Vec::with_capacity(geometry.groups.len());
        for count in capacities(geometry, max_sequences) {
            groups.push(GroupCopies { listed: room(count)?, breaks: room(count)?, told: 0 });
        }
        let sent = room(capacities(geometry, max_sequences).sum())?;
        Ok(Self { groups, sent, first_step: 0, is_metadata_only })
    }

    /// Runs that may still be listed for a group.
    pub(super) fn room(&self, group: usize) -> usize {
        self.groups[group].listed.capacity() - self.groups[group].listed.len()
    }

    /// Runs that are listed for a group.
    pub(super) fn count(&self, group: usize) -> usize {
        self.groups[group].listed.len()
    }

    /// A part of them, for a reader who is told all of them.
    pub(super) fn listed(&self, group: usize, part: Range<usize>) -> impl Iterator<Item = TokenCopy> + '_ {
        self.groups[group].told(0, part)
    }

    /// Places in a group's list that come after everything before them, in rising order.
    pub(super) fn breaks(&self, group: usize) -> &[u32] {
        &self.groups[group].breaks
    }

    /// What the latest `tables` enqueued.
    pub(super) fn sent(&self) -> &[TokenCopy] {
        &self.sent
    }

    fn is_empty(&self) -> bool {
        self.groups.iter().all(|group| group.listed.is_empty())
    }

    /// Refuses the end of a step whose copies were never enqueued: its blocks would hold nothing.
    pub(super) fn check_done(&self, step: u64, has_plans: bool) -> Result<()> {
        if (self.is_metadata_only && !has_plans) || self.is_empty() || step < self.first_step {
            return Ok(());
        }
        let text = "operations of this step need copies of blocks; call kavern_kv_tables, or for workers \
             kavern_kv_plan_export, before kavern_kv_step_done";
        Err(Error::new(Status::WrongState, text))
    }

    pub(super) fn bytes(&self) -> u64 {
        let each = size_of::<Listed>() as u64 + 4;
        let groups = self.groups.iter().map(|group| group.listed.capacity() as u64 * each);
        groups.sum::<u64>() + (self.sent.capacity() * size_of::<TokenCopy>()) as u64
    }

    /// Proves that each run of a group reads what the run before it fills that it names.
    pub(super) fn validate(&self, group: usize) -> Result<()> {
        let listed = &self.groups[group].listed;
        let is_good = |(at, run): (usize, &Listed)| {
            let (first, last) = (run.copy.source_slot, run.copy.source_slot + i64::from(run.copy.tokens) - 1);
            let fills = |filler: &Listed| filler.fills(first) && filler.fills(last);
            run.after.is_none_or(|after| listed[..at].get(after as usize).is_some_and(fills))
        };
        match listed.iter().enumerate().all(is_good) {
            true => Ok(()),
            false => Err(Error::internal("a listed copy reads what the run that it names does not fill")),
        }
    }
}

/// Most runs of each group: one for every sequence, all of the longest one, each of whose blocks may take from two, and
/// the blocks that a step moves.
pub(super) fn capacities(geometry: &Geometry, max_sequences: u32) -> impl Iterator<Item = usize> + '_ {
    geometry
        .groups
        .iter()
        .map(move |group| max_sequences as usize + 2 * group.row_cells as usize + 2 + MOVES_MOST)
}

impl State {
    /// Of so many tokens from a slot on, how many one listed run fills, and its place; or that none of them is filled.
    fn part(&self, group: usize, slot: i64, tokens: u32, near: &mut Option<usize>) -> (u32, Option<u32>) {
        let (store, copies) = (&self.stores[group], &self.copies.groups[group]);
        if !store.is_copy_target((slot / i64::from(store.block_tokens)) as u32) {
            return (tokens, None);
        }
        match copies.filler(slot, near) {
            None => (copies.unfilled(slot, tokens), None),
            Some(at) => {
                let run = copies.listed[at as usize].copy;
                (tokens.min((run.target_slot - slot) as u32 + run.tokens), Some(at))
            }
        }
    }

    /// How many runs copy so many tokens from a slot on.
    pub(super) fn runs_from(
        &self,
        group: usize,
        mut slot: i64,
        mut tokens: u32,
        near: &mut Option<usize>,
    ) -> usize {
        let mut runs = 0;
        while tokens > 0 {
            let (count, _) = self.part(group, slot, tokens, near);
            (slot, tokens, runs) = (slot + i64::from(count), tokens - count, runs + 1);
        }
        runs
    }

    /// Lists a copy that an operation needs, in as many runs; the caller has checked that there is room.
    pub(super) fn list_copy(&mut self, mut copy: TokenCopy, near: &mut Option<usize>) {
        self.shared.counters.copied_tokens += u64::from(copy.tokens);
        let mut left = copy.tokens;
        while left > 0 {
            let (tokens, after) = self.part(copy.group as usize, copy.source_slot, left, near);
            copy.tokens = tokens;
            self.list_run(copy, after);
            (copy.source_slot, copy.target_slot) =
                (copy.source_slot + i64::from(tokens), copy.target_slot + i64::from(tokens));
            left -= tokens;
        }
    }

    /// Lists a run that reads what none fills but the one that is named.
    pub(super) fn list_run(&mut self, copy: TokenCopy, after: Option<u32>) {
        let store = &mut self.stores[copy.group as usize];
        let block = |slot: i64| (slot / i64::from(store.block_tokens)) as u32;
        let (source, target) = (block(copy.source_slot), block(copy.target_slot));
        let is_later = store.note_copy(source, target, self.batch.step);
        if self.copies.is_empty() {
            self.copies.first_step = self.batch.step;
        }
        let group = &mut self.copies.groups[copy.group as usize];
        if is_later {
            group.breaks.push(group.listed.len() as u32);
        }
        group.listed.push(Listed { copy, after });
    }

    /// A step begins: what nobody applies is dropped.
    pub(super) fn begin_copies(&mut self) {
        if self.copies.is_metadata_only && !self.plans.is_used() {
            self.take_copies(&|_| usize::MAX);
        }
    }

    /// Tells what was listed since the last time, for a cache without a device: the list stays for the step's plan.
    pub(super) fn tell_copies(&mut self) {
        let Copies { groups, sent, .. } = &mut self.copies;
        sent.clear();
        for group in groups {
            sent.extend(group.told(group.told, group.told..group.listed.len()));
            group.told = group.listed.len();
        }
    }

    /// The first listed copies of each group are enqueued, or nobody needs them.
    pub(super) fn take_copies(&mut self, counts: &dyn Fn(usize) -> usize) {
        let Copies { groups, sent, first_step, .. } = &mut self.copies;
        sent.clear();
        for (index, (group, store)) in groups.iter_mut().zip(&mut self.stores).enumerate() {
            let count = counts(index).min(group.listed.len());
            sent.extend(group.told(0, 0..count));
            for Listed { copy, .. } in group.listed.drain(..count) {
                store.note_copied((copy.target_slot / i64::from(store.block_tokens)) as u32);
            }
            for run in &mut group.listed {
                run.after = run.after.and_then(|at| at.checked_sub(count as u32));
            }
            group.told = group.told.saturating_sub(count);
            group.breaks.retain_mut(|at| {
                let is_left = *at as usize > count;
                *at = at.saturating_sub(count as u32);
                is_left
            });
        }
        // What is left was listed meanwhile, by the open step.
        *first_step = self.batch.step;
    }
}
